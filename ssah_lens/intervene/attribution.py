"""Attribution patching: the first-order guess of every unit's effect, from one forward and one backward pass.

effect of unit u = sum over positions of (fill - a) * dM/da (Nanda 2023; AtP*, Kramar et al. 2024, arXiv 2403.00745).
A fill from another run takes one more forward pass, which reads all layers.
With integrated gradients (Sundararajan et al. 2017) the gradient is averaged over `steps` points between a and the
fill, one layer and kind at a time, so that the effects of a layer's units add up to the effect of replacing them all.
Its points are run from stored states (`replay.py`): no block below the layer and no earlier position is run again.
It misses saturation and self-repair: compare with the exact sweep (`agreement`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ssah_lens.chat.batch import Batch, Position, Row
from ssah_lens.chat.decoding import noise, race
from ssah_lens.chat.model import ChatModel
from ssah_lens.errors import BadInput
from ssah_lens.intervene.fill import Fill, Given, replacement
from ssah_lens.intervene.gradients import gradients_of
from ssah_lens.intervene.metric import Metric, finite
from ssah_lens.intervene.replay import CannotReplay, Replay
from ssah_lens.intervene.sites import Site, on_site
from ssah_lens.progress import progress
from ssah_lens.units import Kind

PerUnit = dict[Kind, Float[np.ndarray, "layer unit prompt"]]
BATCH_TOKENS = 2048
"""Positions that go forward and backward together: with all activations kept, a gigabyte for a model of 135M."""


def attribution(
    model: ChatModel,
    rows: Sequence[Row],
    metric: Metric,
    fill: Fill,
    last: int | None = 1,
    steps: int = 0,
    what: str = "attribution",
) -> PerUnit:
    """Estimated change of the metric when each unit is replaced by its fill, per prompt.

    Args:
        model: the model.
        rows: prompts; the metric is read at their last position.
        metric: what to read.
        fill: what would replace an activation.
        last: positions that count, from the end; None for all.
        steps: 0 for the plain gradient; m >= 1 for integrated gradients at m midpoints (m passes per layer and kind,
            of the blocks above and the positions that count).
        what: label of the progress bar.

    Raises:
        BadInput: a number of midpoints that does not exist, rows to patch from that do not fit the prompts, a metric
            or a gradient of it that is not finite.
    """
    check_steps(steps)
    out = {k: np.zeros((model.grid.n_layers, model.grid.width(k), len(rows))) for k in Kind}
    sources = fill.sources(rows, last)
    batches = model.batches(rows, BATCH_TOKENS, share_prefix=False)
    for chosen, batch in progress(batches, what):
        with batches.room():
            source = None if sources is None else model.pad([sources[i] for i in chosen])
            n_pos = batch.ids.shape[1] if last is None else min(last, batch.ids.shape[1])
            prompts = torch.tensor(chosen, device=model.device)
            for (kind, layer), product in _products(model, batch, metric, prompts, fill, source, n_pos, steps, what):
                found = _per_unit(model, kind, product, batch, n_pos)
                out[kind][layer][:, chosen] = finite(
                    found, metric, f"in its gradient at {Site.of(kind)} of layer {layer}"
                )
    return out


def _known(values: Float[Tensor, " batch"], metric: Metric) -> Float[Tensor, " batch"]:
    finite(values.detach().double().cpu().numpy(), metric, "on the undamaged model")
    return values


def check_steps(steps: int) -> None:
    """Raises BadInput for a number of midpoints that does not exist."""
    if steps < 0:
        raise BadInput(f"steps is {steps}: allowed are 0 (plain gradient) and more")


def _products(
    model: ChatModel,
    batch: Batch,
    metric: Metric,
    prompts: Int[Tensor, " batch"],
    fill: Fill,
    source: Batch | None,
    n_pos: int,
    steps: int,
    what: str,
) -> Iterator[tuple[tuple[Kind, int], Float[Tensor, "batch pos channel"]]]:
    """(fill - a) times the gradient at the last positions, place by place."""
    places = [(k, layer) for k in model.grid.kinds for layer in range(model.grid.n_layers)]
    given = None if source is None else Given(model, source, [(Site.of(k), layer) for k, layer in places])
    put = lambda kind, layer: replacement(model, fill, batch, given, Site.of(kind), layer, n_pos)
    if steps == 0:
        acts, grads = gradients_at(
            model,
            [(Site.of(k), layer) for k, layer in places],
            lambda: _known(metric.of(decision_logits(model, batch), prompts), metric).sum(),
        )
        for kind, layer in places:
            at = Site.of(kind), layer
            yield (kind, layer), (put(kind, layer) - acts[at][:, -n_pos:]) * grads[at][:, -n_pos:]
        return
    replay = recorded(model, batch)
    _known(metric.of(replay.logits, prompts), metric)
    for kind, layer in progress(places, f"{what}, by layer"):
        yield (kind, layer), integrated(replay, metric, prompts, Site.of(kind), layer, put(kind, layer), steps)


def recorded(model: ChatModel, batch: Batch) -> Replay:
    """A recorded run for integrated gradients.

    Raises:
        BadInput: a model that cannot be replayed.
    """
    try:
        return Replay.record(model, batch)
    except CannotReplay as e:
        raise BadInput(f"{e}: no integrated gradients; use steps=0, the plain gradient") from e


def integrated(
    replay: Replay,
    metric: Metric,
    prompts: Int[Tensor, " batch"],
    site: Site,
    layer: int,
    put: Float[Tensor, "batch pos channel"],
    steps: int,
) -> Float[Tensor, "batch pos channel"]:
    """(fill - a) times the gradient's mean over the midpoints of the way from a to the fill.

    Args:
        replay: the recorded run.
        metric, prompts: what to read, and which prompt each row is.
        site, layer: where.
        put: the fill at the last positions; all of them move together.
        steps: midpoints.
    """
    model, n_pos = replay.model, put.shape[1]
    shares = (torch.arange(steps, device=put.device) + 0.5) / steps
    total, difference = torch.zeros_like(put), torch.zeros_like(put)
    for part in shares.split(max(1, int(BATCH_TOKENS * model.room.share) // (replay.n_rows * n_pos))):
        leaves: list[Tensor] = []

        def move(x: Tensor, part=part, leaves=leaves) -> Tensor:
            nonlocal difference
            own = x.detach().view(replay.n_rows, len(part), n_pos, -1)
            difference = put.to(x.dtype) - own[:, 0]
            leaves.append(torch.lerp(own, put[:, None].to(x.dtype), part[None, :, None, None].to(x.dtype)))
            leaves[0].requires_grad_()
            return leaves[0].view_as(x)

        hidden = replay.resid[layer][:, None, -n_pos:].expand(-1, len(part), -1, -1)
        handle = on_site(model, site, layer, move)
        try:
            with torch.enable_grad(), gradients_of(model):
                final = replay.run(layer, hidden)[:, :, -1]
                logits = replay.logits_of(final).flatten(0, 1)
                metric.of(logits, prompts.repeat_interleave(len(part))).sum().backward()
        finally:
            handle.remove()
        total += leaves[0].grad.sum(1)
    return difference * total / steps


def _per_unit(model: ChatModel, kind: Kind, product: Tensor, batch: Batch, n_pos: int) -> np.ndarray:
    """Sums over positions (padding left out) and over a head's channels: [unit, prompt]."""
    product = product * batch.mask[:, -n_pos:, None]
    summed = product.double().sum(1).view(product.shape[0], model.grid.width(kind), -1).sum(-1)
    return summed.T.cpu().numpy()


def curvature(
    model: ChatModel, rows: Sequence[Row], fill: Fill, samples: int = 2, seed: int = 0, what: str = "curvature"
) -> dict[Kind, Float[np.ndarray, "layer unit"]]:
    """Estimated KL from the undamaged model, in nats per response token, when each unit is replaced everywhere.

    The KL has no slope at the undamaged model. Its curvature is the Fisher information, so to second order it is half
    the mean square of the first-order change of log p(t), t drawn from the model's own distribution (Theis et al. 2018,
    arXiv 1801.05787). Tokens are drawn at all response positions at once: drawn independently, their cross terms
    vanish in the mean.

    Args:
        model: the model.
        rows: prompts with responses.
        fill: what would replace an activation; zero or mean.
        samples: draws per response token; each is a forward and a backward pass.
        seed: of the draws.
        what: label of the progress bar.
    """
    if samples < 1:
        raise BadInput(f"samples is {samples}: allowed are 1 and more")
    if fill.mode not in ("zero", "mean"):
        raise BadInput(f"the curvature of fill '{fill.mode}' is not measured: allowed are zero and mean")
    out = {k: np.zeros((model.grid.n_layers, model.grid.width(k))) for k in Kind}
    places = [(k, layer) for k in model.grid.kinds for layer in range(model.grid.n_layers)]
    generator = torch.Generator(model.device).manual_seed(seed)
    answered = lambda i: rows[i].positions.count(Position.RESPONSE)
    tokens = 0
    for _ in range(samples):
        batches = model.batches(rows, BATCH_TOKENS, share_prefix=False)
        whole: list[int] = []
        q: Tensor | None = None
        for chosen, batch in progress(batches, what):
            if batches.whole is not whole:  # drawn for the batch as it was planned, also when it is then cut
                whole, q = batches.whole, None

            def drawn(chosen=chosen, batch=batch, whole=whole) -> Tensor:
                nonlocal q
                log_p = model.response_logits(batch, plain=True).float().log_softmax(-1)
                if q is None:
                    n = sum(map(answered, whole))
                    q = noise(n, log_p, generator)
                before = sum(map(answered, whole[: whole.index(chosen[0])]))
                found = race(log_p.detach().exp(), q[before : before + len(log_p)]).argmax(-1, keepdim=True)
                return log_p.gather(-1, found).sum()

            with batches.room():
                acts, grads = gradients_at(model, [(Site.of(k), layer) for k, layer in places], drawn)
                squares = {}
                for kind, layer in places:
                    at = Site.of(kind), layer
                    n_pos = acts[at].shape[1]
                    put = replacement(model, fill, batch, None, *at, n_pos)
                    change = _per_unit(model, kind, (put - acts[at]) * grads[at], batch, n_pos)
                    squares[kind, layer] = np.square(change).sum(1)
                for (kind, layer), square in squares.items():
                    out[kind][layer] += square
                tokens += int(batch.response.sum())
    return {k: v / (2 * max(tokens, 1)) for k, v in out.items()}


Place = tuple[Site, int]


def gradients_at(
    model: ChatModel, places: Sequence[Place], objective: Callable[[], Tensor]
) -> tuple[dict[Place, Tensor], dict[Place, Tensor]]:
    """Activations at sites of layers in one run of the plain model, and the gradient there of what the run gives.

    Args:
        model: the model.
        places: (site, layer).
        objective: runs the plain model once and gives a number.
    """
    leaves: dict[Place, Tensor] = {}

    def keep(place: Place) -> Callable[[Tensor], Tensor]:
        def inner(x: Tensor) -> Tensor:
            x = x if x.requires_grad else x.detach().requires_grad_()
            x.retain_grad()
            leaves[place] = x
            return x

        return inner

    handles = [on_site(model, *p, keep(p)) for p in places]
    try:
        with torch.enable_grad(), gradients_of(model):
            objective().backward()
    finally:
        for handle in handles:
            handle.remove()
    return {p: x.detach() for p, x in leaves.items()}, {p: x.grad for p, x in leaves.items()}


def decision_logits(model: ChatModel, batch: Batch) -> Float[Tensor, "batch vocab"]:
    """Of the plain model, at the last position of whole rows."""
    return model.plain(
        input_ids=batch.ids,
        attention_mask=batch.mask,
        position_ids=(batch.mask.cumsum(1) - 1).clamp(min=0),
        use_cache=False,
        logits_to_keep=1,
    ).logits[:, -1]


@dataclass(frozen=True)
class Agreement:
    """How well an approximation ranks units like the exact effect.

    Attributes:
        spearman: rank correlation over all units; NaN when one of the two is the same for all.
        overlap: share of the exact top units that are in the approximation's top, by share of units.
        n: units compared.
    """

    spearman: float
    overlap: dict[float, float]
    n: int


def agreement(
    exact: Float[np.ndarray, " unit"],
    guess: Float[np.ndarray, " unit"],
    shares: Sequence[float] = (0.001, 0.01, 0.05),
    by_size: bool = False,
) -> Agreement:
    """Spearman correlation and top-k overlap of two effects over the same units.

    Args:
        exact, guess: change of the metric by each unit; the most negative lose most refusal.
        shares: k as shares of the units.
        by_size: top units are those with the largest change of either sign, not the most negative ones.
    """
    from scipy.stats import spearmanr

    exact, guess = np.asarray(exact, dtype=float), np.asarray(guess, dtype=float)
    if exact.shape != guess.shape or exact.ndim != 1:
        raise BadInput(f"agreement needs two effects over the same units, got {exact.shape} and {guess.shape}")
    overlap = {}
    for share in shares:
        k = max(1, round(share * exact.size))
        top = [set(np.argsort(-np.abs(x) if by_size else x, kind="stable")[:k].tolist()) for x in (exact, guess)]
        overlap[share] = len(top[0] & top[1]) / k
    constant = np.ptp(exact) == 0 or np.ptp(guess) == 0
    return Agreement(np.nan if constant else float(spearmanr(exact, guess).statistic), overlap, exact.size)
