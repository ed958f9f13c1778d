"""Tasks of the lm-evaluation-harness on a `ChatModel`, with whatever hooks the caller has set.

An extra: `pip install 'ssah-lens[eval]'`. The harness gets the bridge's inner model, on which hooks act, and our own
tokenizer: the bridge's would put a second BOS before every text and shift the scores.
Gao et al., "A framework for few-shot language model evaluation", https://github.com/EleutherAI/lm-evaluation-harness.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ssah_lens.chat.model import ChatModel
from ssah_lens.errors import BadInput
from ssah_lens.stats import Estimate

Z = 1.96
"""The harness gives standard errors; our intervals are 95%."""


def harness(
    model: ChatModel,
    tasks: Sequence[str],
    limit: int | None = None,
    folder: str | Path | None = None,
    chat_template: bool = False,
    batch_size: int = 8,
    seed: int = 0,
) -> dict[str, dict[str, Estimate]]:
    """Runs tasks of the lm-evaluation-harness.

    Units ablated to zero stay ablated inside; mean ablation is refused by its hooks, since the harness does not say
    which tokens are instruction and which are response.

    Args:
        model: the model, with whatever hooks the caller has set.
        tasks: names of tasks or groups, e.g. 'hellaswag'. Most fetch their data from the hub.
        limit: items per task; None for all.
        folder: a folder of the user's own task files (.yaml); only those are known then, and nothing is fetched.
        chat_template: wrap the contexts in the model's chat template.
        batch_size: rows per forward pass.
        seed: seed of the few-shot examples.

    Returns:
        task -> metric -> value with its interval (value +- 1.96 standard errors, where the harness gives one); n counts
        the items. Metrics other than the harness's default filter carry its name ('exact_match,strict').

    Raises:
        BadInput: the extra is not installed, an unknown task, data that cannot be loaded.
    """
    try:
        from lm_eval.evaluator import simple_evaluate
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
    except ImportError as e:
        raise BadInput(f"the lm-evaluation-harness is not installed ({e}): pip install 'ssah-lens[eval]'") from e
    if folder is not None and not Path(folder).is_dir():
        raise BadInput(f"no folder of tasks '{folder}'")
    manager = TaskManager(include_path=str(folder) if folder else None, include_defaults=folder is None)
    unknown = [t for t in tasks if t not in manager.all_tasks]
    if unknown or not tasks:
        some = ", ".join(manager.all_tasks[:10])
        raise BadInput(f"no task '{unknown[0] if unknown else ''}': {len(manager.all_tasks)} are known ({some} ...)")
    wrapped = HFLM(
        pretrained=model.bridge.original_model,
        tokenizer=copy.deepcopy(model.tokenizer),  # the harness sets its padding
        batch_size=batch_size,
        device=str(model.device),
    )
    try:
        found = simple_evaluate(
            wrapped,
            tasks=list(tasks),
            limit=limit,
            task_manager=manager,
            apply_chat_template=chat_template,
            log_samples=False,
            bootstrap_iters=1000,
            random_seed=None,
            numpy_random_seed=None,
            torch_random_seed=None,
            fewshot_random_seed=seed,
        )
    except (OSError, ValueError) as e:  # no network, no such data set
        if isinstance(e, BadInput):
            raise
        raise BadInput(f"tasks {', '.join(tasks)} cannot be run: {str(e).splitlines()[0][:300]}") from e
    counts = found["n-samples"]
    return {
        task: _metrics(values, counts.get(task, {}).get("effective", 0)) for task, values in found["results"].items()
    }


def _metrics(values: dict[str, Any], n: int) -> dict[str, Estimate]:
    """`{"acc,none": 0.5, "acc_stderr,none": 0.1}` as estimates."""
    out = {}
    for key, value in values.items():
        metric, _, filtered = key.partition(",")
        if not filtered or metric.endswith("_stderr") or not isinstance(value, float | int):
            continue
        error = values.get(f"{metric}_stderr,{filtered}")
        low, high = (value - Z * error, value + Z * error) if isinstance(error, float | int) else (None, None)
        out[metric if filtered == "none" else key] = Estimate(float(value), low, high, n)
    return out
