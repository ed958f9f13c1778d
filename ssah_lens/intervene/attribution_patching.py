"""Attribution patching over token-aligned pairs: every cell of a patching map guessed from gradients.

effect of a cell = sum of (other run - this run) * dM/da over the cell's channels: two forward passes and one backward
for all layers, units and positions together (Nanda 2023; Kramar et al. 2024, arXiv 2403.00745). With `steps` the
gradient is averaged on the way from one run to the other, a layer at a time (integrated gradients, as in Hanna et al.
2024, arXiv 2403.17806). Compare with `activation_patching`, which is exact: saturated cells are what the gradient
misses.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ssah_lens.chat.batch import Batch
from ssah_lens.chat.model import ChatModel
from ssah_lens.chat.promptset import Prompt
from ssah_lens.intervene.attribution import (
    BATCH_TOKENS,
    check_steps,
    decision_logits,
    gradients_at,
    integrated,
    recorded,
)
from ssah_lens.intervene.metric import Metric
from ssah_lens.intervene.patching import Patched, Task
from ssah_lens.intervene.sites import Site, on_site
from ssah_lens.progress import progress


def attribution_patching(
    model: ChatModel,
    clean: Sequence[str | Prompt],
    corrupted: Sequence[str | Prompt],
    metric: Metric,
    site: Site,
    by_position: bool | None = None,
    noising: bool = False,
    layers: Sequence[int] | None = None,
    steps: int = 0,
) -> Patched:
    """Guesses what `activation_patching` measures; the same arguments, axes and scale.

    Args:
        model: the model.
        clean, corrupted: prompts; both sides of a pair have the same number of tokens.
        metric: what to read at the decision position.
        site: residual stream, attention or MLP output, head or neuron.
        by_position: an axis of positions; by default for the sites that are one vector per position.
        noising: patch corrupted into clean instead.
        layers: which layers; all by default.
        steps: 0 for the plain gradient, m >= 1 for integrated gradients at m midpoints.

    Raises:
        BadInput: pairs that are not token-aligned, or that do not differ in tokens or in the metric; a layer outside
            the model; a metric or a gradient of it that is not finite.
    """
    check_steps(steps)
    task = Task.of(model, clean, corrupted, site, by_position, noising, layers)
    values = np.zeros(task.shape)
    base, other = np.zeros(len(task.run)), np.zeros(len(task.run))
    places = [(site, layer) for layer in task.layers]
    batches = model.batches(task.run, BATCH_TOKENS, share_prefix=False)
    for chosen, batch in progress(batches, f"attribution, {site}"):
        with batches.room():
            which = torch.tensor(chosen, device=model.device)
            theirs = model.pad([task.source[i] for i in chosen])
            read = lambda b, which=which: metric.of(decision_logits(model, b), which)
            given, other[chosen] = _activations(model, places, lambda b=theirs, read=read: read(b))
            if steps:
                replay = recorded(model, batch)
                base[chosen] = metric.of(replay.logits, which).double().cpu().numpy()
                products = (integrated(replay, metric, which, *p, given[p], steps) for p in places)
            else:

                def objective(batch=batch, chosen=chosen, read=read) -> Tensor:
                    found = read(batch)
                    base[chosen] = found.detach().double().cpu().numpy()
                    return found.sum()

                own, slopes = gradients_at(model, places, objective)
                products = ((given[p] - own[p]) * slopes[p] for p in places)
            for i, product in enumerate(products):
                values[i][..., chosen] = _per_cell(product, batch, task)
    name = f"integrated gradients, {steps} steps" if steps else "attribution patching"
    return task.patched(model, metric, values + base, base, other, 0, name)


def changeable(found: Patched) -> np.ndarray:
    """True for cells that are not known beforehand: from the first differing token of any pair on."""
    base = found.clean if found.noising else found.corrupted
    return ((found.values != base) & ~np.isnan(found.values)).any(-1)


def _activations(model: ChatModel, places: Sequence[tuple[Site, int]], read) -> tuple[dict, np.ndarray]:
    """Activations at these places in one run, and what the run reads."""
    found: dict[tuple[Site, int], Tensor] = {}

    def keep(place):
        def inner(x: Tensor) -> Tensor:
            found[place] = x.detach()
            return x

        return inner

    handles = [on_site(model, *p, keep(p)) for p in places]
    try:
        with torch.no_grad():
            value = read()
    finally:
        for handle in handles:
            handle.remove()
    return found, value.double().cpu().numpy()


def _per_cell(
    product: Float[Tensor, "batch pos channel"], batch: Batch, task: Task
) -> Float[np.ndarray, "unit pos batch"]:
    """Sums over a unit's channels, and over positions where they are no axis; columns counted from the end."""
    product = (product * batch.mask[..., None]).double()
    cells = product.view(*product.shape[:2], task.n_units, -1).sum(-1).permute(2, 1, 0).cpu().numpy()
    if not task.by_position:
        return cells.sum(1, keepdims=True)
    out = np.zeros((task.n_units, task.differ.shape[1], cells.shape[2]))
    out[:, -cells.shape[1] :] = cells
    return out
