"""What units respond to and what they write: strongest tokens in context, direct effect on refusing, likenesses.

The strongest stretches show what a unit reads; one stretch per prompt, so that a repetitive prompt does not fill the
list. The direct effect is the mean activation at the decision position times what the unit's output column does to the
refusing minus the fulfilling logits straight through the final norm and the unembedding (direct logit attribution;
Elhage et al. 2021): what later blocks make of it is not in it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ssah_lens.chat.batch import Batch, Position, Row
from ssah_lens.chat.model import ChatModel, unembed
from ssah_lens.chat.prompts import PromptSet, instructions, pairs
from ssah_lens.errors import BadInput
from ssah_lens.intervene.metric import Metric
from ssah_lens.intervene.sites import Site
from ssah_lens.progress import progress
from ssah_lens.results import Snippet, UnitContext
from ssah_lens.study.openings import Openings
from ssah_lens.units import Kind, UnitSet

WINDOW = 8
"""Tokens shown on each side of the strongest one."""
NEIGHBOURS = 5
ADDS_UP = 1e-3
"""A block whose output is input + attention + MLP to this relative error writes its units straight to the residual."""
Unit = tuple[Kind | str, int, int]


@dataclass
class _Best:
    """The k strongest prompts of some units so far, per prompt set.

    Attributes:
        strength: [unit, k], -inf where none.
        row: which prompt.
        place: of the strongest token, counted from the end of its prompt (-1 the last).
        window: activations around it, [unit, k, 2 * WINDOW + 1].
    """

    strength: Float[Tensor, "unit k"]
    row: Tensor
    place: Tensor
    window: Float[Tensor, "unit k around"]

    @classmethod
    def empty(cls, n: int, k: int) -> _Best:
        zeros = torch.zeros(n, k, dtype=torch.long)
        return cls(torch.full((n, k), -torch.inf), zeros, zeros.clone(), torch.zeros(n, k, 2 * WINDOW + 1))

    def add(self, acts: Float[Tensor, "batch pos unit"], batch: Batch, rows: Sequence[int]) -> None:
        """Folds in one batch."""
        n_pos = acts.shape[1]
        said = (batch.mask == 1) & (batch.positions >= Position.INSTRUCTION)
        size = acts.abs().masked_fill(~said[:, :, None], -torch.inf)
        strength, place = (x.T for x in size.max(1))  # [unit, batch]
        padded = torch.nn.functional.pad(acts, (0, 0, WINDOW, WINDOW)).permute(2, 0, 1)  # [unit, batch, pos]
        around = place[:, :, None] + torch.arange(2 * WINDOW + 1)
        window = padded.gather(2, around)
        row = torch.tensor(rows).expand_as(place)
        every = [torch.cat(both, 1) for both in ((self.strength, strength), (self.row, row),
                                                 (self.place, place - n_pos), (self.window, window))]  # fmt: skip
        top = every[0].topk(self.strength.shape[1], 1).indices
        self.strength, self.row, self.place = (x.gather(1, top) for x in every[:3])
        self.window = every[3].gather(1, top[:, :, None].expand(-1, -1, 2 * WINDOW + 1))


def unit_contexts(
    model: ChatModel,
    units: UnitSet | Iterable[Unit],
    sets: Mapping[str, PromptSet] | None = None,
    k: int = 3,
    openings: Openings | None = None,
) -> list[UnitContext]:
    """The strongest tokens of units on each of some prompt sets, and what the units write.

    Args:
        model: the model.
        units: a set, or (kind, layer, index) triples; contexts come in this order.
        sets: name -> prompts; validation prompts, harmful and ordinary, when None. The direct effect is taken on the
            first.
        k: stretches per set.
        openings: first tokens of refusals and answers; without them no direct effect is given.

    Raises:
        BadInput: no units, or a unit that the model does not have.
    """
    wanted = _listed(model, units)
    if sets is None:
        sets = {"harmful": pairs("validation")[0], "harmless": instructions("validation")}
    if not sets or not all(len(s) for s in sets.values()):
        raise BadInput("contexts need at least one prompt set, and none may be empty")
    by_place: dict[tuple[Kind, int], list[int]] = {}
    for number, (kind, layer, _) in enumerate(wanted):
        by_place.setdefault((kind, layer), []).append(number)
    found, rows = {}, {}
    means: list[Tensor] = []  # over the first set
    for name, prompts in sets.items():
        rows[name] = model.rows(prompts)
        found[name], mean = _strongest(model, rows[name], wanted, by_place, min(k, len(prompts)), name)
        means = means or mean
    direct = _direct(model, rows[next(iter(sets))], openings.metric, wanted, means) if openings else None
    near = _neighbours(model, wanted)
    words = {name: [[model.tokenizer.decode([i]) for i in row.ids] for row in rows[name]] for name in sets}
    return [
        UnitContext(
            str(kind),
            layer,
            index,
            None if direct is None else float(direct[number]),
            {name: _snippets(words[name], found[name], number) for name in sets},
            near[number],
        )
        for number, (kind, layer, index) in enumerate(wanted)
    ]


def _listed(model: ChatModel, units: UnitSet | Iterable[Unit]) -> list[tuple[Kind, int, int]]:
    if isinstance(units, UnitSet):
        wanted = [(k, int(a), int(b)) for k in Kind for a, b in np.argwhere(units.masks[k])]
    else:
        units = list(units)
        names = [k for k, _, _ in units if k not in list(Kind)]
        if names:
            raise BadInput(f"no kind of unit '{names[0]}': allowed are {', '.join(Kind)}")
        wanted = [(Kind(k), int(a), int(b)) for k, a, b in units]
    if not wanted:
        raise BadInput("no units were given; name at least one (kind, layer, index)")
    UnitSet.of(model.grid, wanted)  # refuses what is outside the model
    return wanted


@torch.inference_mode()
def _strongest(
    model: ChatModel,
    rows: list[Row],
    wanted: list[tuple[Kind, int, int]],
    by_place: dict[tuple[Kind, int], list[int]],
    k: int,
    name: str,
) -> tuple[dict[int, tuple[_Best, int]], list[Tensor]]:
    """The strongest stretches of every unit, and each unit's mean activation at the decision position."""
    best = {place: _Best.empty(len(numbers), k) for place, numbers in by_place.items()}
    means = [torch.zeros(0)] * len(wanted)
    batches = model.batches(rows, share_prefix=False)
    for chosen, batch in progress(batches, f"contexts, {name}"):
        seen: dict[tuple[Kind, int], Tensor] = {}

        def hook(x: Tensor, hook, place: tuple[Kind, int], seen=seen) -> None:
            index = torch.tensor([wanted[i][2] for i in by_place[place]], device=x.device)
            seen[place] = x.view(*x.shape[:2], model.grid.width(place[0]), -1)[:, :, index].float().cpu()

        hooks = [(p[0].hook(p[1]), lambda x, hook, p=p, read=hook: read(x, None, p)) for p in by_place]
        with batches.room():
            with model.bridge.hooks(fwd_hooks=hooks):
                model.logits(batch)
            here = Batch(batch.ids.cpu(), batch.mask.cpu(), batch.positions.cpu())
            for place, acts in seen.items():
                for at, i in enumerate(by_place[place]):
                    last = acts[:, -1, at].sum(0)
                    means[i] = last if not means[i].numel() else means[i] + last
                best[place].add(acts[..., 0] if acts.shape[-1] == 1 else acts.norm(dim=-1), here, chosen)
    where = {i: (best[place], at) for place, numbers in by_place.items() for at, i in enumerate(numbers)}
    return where, [m / len(rows) for m in means]


def _snippets(words: list[list[str]], found: dict[int, tuple[_Best, int]], number: int) -> tuple[Snippet, ...]:
    best, at = found[number]
    out = []
    for strength, row, place, window in zip(
        best.strength[at].tolist(),
        best.row[at].tolist(),
        best.place[at].tolist(),
        best.window[at].tolist(),
        strict=True,
    ):
        if strength == -float("inf"):
            continue
        said = words[row]
        peak = len(said) + place
        first, end = max(peak - WINDOW, 0), min(peak + WINDOW + 1, len(said))
        values = window[first - peak + WINDOW : end - peak + WINDOW]
        out.append(Snippet(tuple(said[first:end]), tuple(values), peak - first))
    return tuple(out)


def _direct(
    model: ChatModel, rows: list[Row], metric: Metric, wanted: list[tuple[Kind, int, int]], means: list[Tensor]
) -> Float[Tensor, " unit"] | None:
    """Direct effect on the metric; None for blocks that do not simply add their halves to the residual stream."""
    towards = _towards(model, rows, metric)
    if towards is None:
        return None
    out = torch.zeros(len(wanted))
    for number, ((kind, layer, index), mean) in enumerate(zip(wanted, means, strict=True)):
        weight = model.anatomy.blocks[layer].output_weight(kind).detach().float().cpu()
        width = len(mean)
        out[number] = (weight[:, index * width : (index + 1) * width] @ mean) @ towards
    return out


def _towards(model: ChatModel, rows: list[Row], metric: Metric) -> Float[Tensor, " d_model"] | None:
    """Mean gradient of the metric at the final residual stream of the decision position."""
    block, norm = model.anatomy.blocks[0], model.anatomy.final_norm
    total = torch.zeros(model.anatomy.d_model)
    seen: dict[str, Tensor] = {}
    first = lambda x: (x[0] if isinstance(x, tuple) else x).detach()
    given = lambda a, named: first(a or named["hidden_states"])
    handles = [
        block.module.register_forward_hook(lambda m, a, named, y: seen.update(x=given(a, named), y=first(y)),
                                           with_kwargs=True),
        block.o.register_forward_hook(lambda m, a, y: seen.update(o=first(y))),
        Site.MLP.owner(block).register_forward_hook(lambda m, a, y: seen.update(down=first(y))),
        norm.register_forward_pre_hook(lambda m, a: seen.update(final=first(a))),
    ]  # fmt: skip
    try:
        batches = model.batches(rows, share_prefix=False)
        for _, batch in batches:
            with batches.room():
                with torch.no_grad():
                    model.plain(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False, logits_to_keep=1,
                                position_ids=(batch.mask.cumsum(1) - 1).clamp(min=0))  # fmt: skip
                added = seen["x"] + seen["o"] + seen["down"].view_as(seen["x"])
                if (added - seen["y"]).norm() > ADDS_UP * seen["y"].norm():
                    return None
                final = seen["final"][:, -1].clone().requires_grad_()
                with torch.enable_grad():
                    metric.of(unembed(model.plain, norm(final))).sum().backward()
                total += final.grad.float().cpu().sum(0)
    finally:
        for handle in handles:
            handle.remove()
        model.plain.zero_grad(set_to_none=True)
    return total / len(rows)


def _neighbours(model: ChatModel, wanted: list[tuple[Kind, int, int]]) -> list[tuple[tuple[str, int, int, float], ...]]:
    """Of every neuron, the other given neurons whose output columns point most nearly the same way."""
    out: list[tuple[tuple[str, int, int, float], ...]] = [()] * len(wanted)
    neurons = [i for i, (kind, _, _) in enumerate(wanted) if kind is Kind.MLP]
    if len(neurons) < 2:
        return out
    columns = torch.stack(
        [model.anatomy.blocks[wanted[i][1]].output_weight(Kind.MLP)[:, wanted[i][2]].detach() for i in neurons]
    )
    columns = torch.nn.functional.normalize(columns.float().cpu(), dim=1)
    for start in range(0, len(neurons), 1024):
        part = columns[start : start + 1024] @ columns.T
        part[torch.arange(len(part)), start + torch.arange(len(part))] = -torch.inf
        values, index = part.topk(min(NEIGHBOURS, len(neurons) - 1), 1)
        for row, (cosines, others) in enumerate(zip(values.tolist(), index.tolist(), strict=True)):
            named = [(wanted[neurons[j]], c) for c, j in zip(cosines, others, strict=True)]
            out[neurons[start + row]] = tuple((str(u[0]), u[1], u[2], c) for u, c in named)
    return out
