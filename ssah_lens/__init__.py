"""ssah-lens: does safety live in a few units, behind one binary choice?

Names are loaded when first used, so that importing the package stays fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_WHERE = {
    "ChatModel": "ssah_lens.chat.model",
    "PromptSet": "ssah_lens.chat.prompts",
    "prompt_set": "ssah_lens.chat.prompts",
    "read_prompts": "ssah_lens.chat.prompts",
    "pairs": "ssah_lens.chat.prompts",
    "instructions": "ssah_lens.chat.prompts",
    "refusals": "ssah_lens.measure.refusal",
    "refusal_scores": "ssah_lens.measure.refusal",
    "choices": "ssah_lens.measure.utility",
    "ablated": "ssah_lens.intervene.hooks",
    "collect": "ssah_lens.intervene.moments",
    "UnitSet": "ssah_lens.units",
    "UnitTable": "ssah_lens.units",
    "Role": "ssah_lens.units",
    "Kind": "ssah_lens.units",
    "Estimate": "ssah_lens.stats",
    "study_config": "ssah_lens.config",
    "run_study": "ssah_lens.study.runner",
    "Outcome": "ssah_lens.measure.judges",
    "BadInput": "ssah_lens.errors",
    "aligned": "ssah_lens.study.ready",
    "aligned_units": "ssah_lens.study.ready",
    "token_aligned": "ssah_lens.chat.prompts",
    "find_openings": "ssah_lens.study.openings",
    "patch": "ssah_lens.study.patch",
    "patch_heatmap": "ssah_lens.study.patch",
    "agreement_view": "ssah_lens.study.effects",
    "attention_view": "ssah_lens.study.look",
    "refusal_view": "ssah_lens.study.look",
    "neuron_view": "ssah_lens.study.look",
    "top_tokens_view": "ssah_lens.study.look",
    "response_view": "ssah_lens.study.look",
    "explore_units": "ssah_lens.study.look",
    "unit_contexts": "ssah_lens.study.contexts",
}
__all__ = [*_WHERE, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'ssah_lens' has no attribute '{name}'")
    return getattr(import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return __all__
