"""Prompt sets from the Hugging Face hub, through `datasets`: any set whose columns the readers know."""

from __future__ import annotations

import re
from typing import Any

from ssah_lens.chat.promptset import PromptSet
from ssah_lens.chat.readers import headed, prompts_of
from ssah_lens.errors import BadInput

PREFIX = "hub:"
FORM = "hub:owner/name[:config][:split] (hub:owner/name::split for the default configuration)"
SOURCE = re.compile(r"hub:(?P<repo>[\w.-]+/[\w.-]+)(:(?P<config>[^:]*)(:(?P<split>[^:]+))?)?")


def read_hub(source: str, need_answers: bool = False) -> PromptSet:
    """Loads a prompt or fine-tuning set from the hub, e.g. 'hub:JailbreakBench/JBB-Behaviors:behaviors:harmful'.

    Args:
        source: `hub:owner/name[:config][:split]`; the split may be left out when there is only one.
        need_answers: refuse rows without an answer.

    Raises:
        BadInput: not of that form, no such set or no network, several splits to choose from, rows that the readers
            refuse.
    """
    match = SOURCE.fullmatch(source)
    if match is None:
        raise BadInput(f"'{source}' is no hub data set: the form is {FORM}")
    repo, config, split = match["repo"], match["config"] or None, match["split"]
    data = _load(repo, config, split)
    if isinstance(data, dict):
        if len(data) > 1:
            choice = ", ".join(f"hub:{repo}:{config or ''}:{name}" for name in data)
            raise BadInput(f"'{source}' has {len(data)} splits: name one ({choice})")
        [(split, data)] = data.items()
    name = repo.split("/")[1] + (f" ({split})" if split else "")
    return prompts_of(f"'{source}'", name, headed(data.column_names, list(data)), need_answers)


def _load(repo: str, config: str | None, split: str | None) -> Any:
    from datasets import load_dataset

    try:
        return load_dataset(repo, config, split=split)
    except Exception as e:  # the library raises many kinds: no network, no such set or configuration, gated, damaged
        says = str(e).strip().split("\n")[0] or type(e).__name__
        raise BadInput(
            f"hub data set '{repo}' cannot be loaded: {says[:300]}; without network or access, give a file instead"
        ) from e
