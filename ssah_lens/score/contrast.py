"""Generation-time activation contrasting (Chen et al. 2024, arXiv 2406.14144): where do the two models differ?

The change of a unit is the root mean square, over response tokens, of its activation in the aligned model minus that in
the unaligned one; both read the same completions, the aligned model's own. Nothing is standardised, as in the source:
units of all layers are ranked by the size of the change itself.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ssah_lens.chat.batch import Batch, Row
from ssah_lens.chat.model import ChatModel
from ssah_lens.errors import BadInput
from ssah_lens.progress import progress
from ssah_lens.score.base import Calibration, PerUnit, Scores, nothing
from ssah_lens.units import Kind

BATCH_TOKENS = 1024
"""Fewer than elsewhere: the response tokens' activations of all layers are kept until the second model has run."""


def contrast(model: ChatModel, data: Calibration) -> Scores:
    """I_S on refusals of harmful prompts, I_U on answers to harmless ones; each model runs once over both.

    Raises:
        BadInput: no unaligned model, or one of another shape or vocabulary.
    """
    other = counterpart(model, data.unaligned)
    sides = ((data.safety, "contrast: refusals"), (data.utility, "contrast: answers"))
    safety, utility = (_scores(model, other, rows, what) for rows, what in sides)
    return Scores(safety, utility, signed=False)


def counterpart(model: ChatModel, other: ChatModel | None) -> ChatModel:
    """The unaligned model, if it is one that this model can be compared with.

    Raises:
        BadInput: none given, or one of another shape or vocabulary.
    """
    if other is None:
        raise BadInput(
            f"the score 'contrast' sets '{model.name}' beside its unaligned counterpart: "
            "name that with --unaligned, or use another --score"
        )
    if other.grid != model.grid or other.tokenizer.get_vocab() != model.tokenizer.get_vocab():
        raise BadInput(f"'{other.name}' has another shape or vocabulary than '{model.name}': it is not its counterpart")
    return other


@torch.no_grad()
def _scores(model: ChatModel, other: ChatModel, rows: Sequence[Row], what: str) -> PerUnit:
    if not rows:
        return nothing(model)
    total = {k: torch.zeros(model.grid.n_layers, model.grid.width(k), dtype=torch.float64) for k in Kind}
    tokens = 0
    batches = model.batches(rows, BATCH_TOKENS, share_prefix=False)
    for _, batch in progress(batches, what):
        with batches.room():
            for (kind, layer), squares in _squares(model, other, batch).items():
                total[kind][layer] += squares
            tokens += int(batch.response.sum())
    return {k: (v / max(tokens, 1)).sqrt().numpy() for k, v in total.items()}


def _squares(model: ChatModel, other: ChatModel, batch: Batch) -> dict[tuple[Kind, int], Float[Tensor, " unit"]]:
    """Squared difference of every unit between the two models, summed over the batch's response tokens."""
    seen: dict[tuple[Kind, int], Tensor] = {}
    response = batch.response

    def keep(place):
        def hook(x: Tensor, hook) -> None:
            seen[place] = x.flatten(2)[response]

        return hook

    def compare(place):
        def hook(x: Tensor, hook) -> None:
            squared = (seen[place] - x.flatten(2)[response]).double().square()
            seen[place] = squared.view(len(squared), model.grid.width(place[0]), -1).mean(-1).sum(0).cpu()

        return hook

    places = [(k, layer) for k in model.grid.kinds for layer in range(model.grid.n_layers)]
    for which, read in ((model, keep), (other, compare)):
        with which.bridge.hooks(fwd_hooks=[(kind.hook(layer), read((kind, layer))) for kind, layer in places]):
            which.logits(batch)
    return seen
