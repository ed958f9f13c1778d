"""Ablation by hook against the same ablation of the weights, exact fills, and hooks that always leave."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ssah_lens.chat.batch import Position, Row
from ssah_lens.chat.model import ChatModel
from ssah_lens.errors import BadInput
from ssah_lens.intervene.hooks import ablated, fills, gated
from ssah_lens.intervene.moments import Moments, collect
from ssah_lens.units import Kind, UnitGrid, UnitSet

PROMPTS = ["Hi", "How do I bake a loaf of bread?", "Why not"]
ANSWERS = ["Sure, here is how you can do that.", "No", "Ask the assistant"]
UNITS = [(Kind.MLP, 0, 3), (Kind.MLP, 0, 7), (Kind.MLP, 1, 11), (Kind.HEAD, 0, 1), (Kind.HEAD, 1, 2), (Kind.HEAD, 1, 3)]


@pytest.fixture(scope="module")
def rows(micro: ChatModel) -> list[Row]:
    return micro.rows(PROMPTS, [micro.response_tokens(a) for a in ANSWERS])


@pytest.fixture(scope="module")
def moments(micro: ChatModel, rows: list[Row]) -> Moments:
    return collect(micro, rows)


def silence(model: ChatModel, units: UnitSet) -> None:
    """Zeroes the columns through which these units act."""
    with torch.no_grad():
        for layer, block in enumerate(model.anatomy.blocks):
            for j in np.flatnonzero(units.masks[Kind.MLP][layer]):
                block.down.weight[:, j] = 0
            for h in np.flatnonzero(units.masks[Kind.HEAD][layer]):
                block.o.weight[:, 4 * h : 4 * h + 4] = 0


def read(model: ChatModel, kind: Kind, layer: int, rows: list[Row], **context) -> tuple[torch.Tensor, torch.Tensor]:
    """Activations [token, unit, channel] after whatever `context` does to them, and the class of each token."""
    batch = model.pad(rows)
    out: list[torch.Tensor] = []
    hook = (kind.hook(layer), lambda x, hook: out.append(x.detach().clone()))
    with torch.no_grad():
        if context:
            with ablated(model, **context), model.bridge.hooks(fwd_hooks=[hook]):
                model.logits(batch)
        else:
            with model.bridge.hooks(fwd_hooks=[hook]):
                model.logits(batch)
    x = out[0] if kind is Kind.HEAD else out[0][..., None]
    return x[batch.mask.bool()], batch.positions[batch.mask.bool()]


def bits(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous().view(torch.int32)


def n_hooks(model: ChatModel) -> int:
    points = {id(point): point for point in model.bridge.hook_dict.values()}  # a point has several names
    return sum(len(point.fwd_hooks) for point in points.values())


# --- what an ablation is


@pytest.mark.parametrize("kind", list(Kind))
def test_zero_ablation_equals_zeroed_weights(micro: ChatModel, micro_copy: ChatModel, rows, kind):
    units = UnitSet.of(micro.grid, [u for u in UNITS if u[0] is kind])
    silence(micro_copy, units)
    batch = micro.pad(rows)
    with torch.no_grad():
        with ablated(micro, units, "zero"):
            hooked = micro.logits(batch, keep=20)
        edited = micro_copy.plain(batch.ids, attention_mask=batch.mask).logits[:, -20:]
        untouched = micro.logits(batch, keep=20)
    torch.testing.assert_close(hooked, edited, atol=1e-5, rtol=0)
    assert (hooked - untouched).abs().max() > 0.1


def test_zero_ablation_of_a_biased_model(micro_qwen: ChatModel, qwen_copy: ChatModel):
    units = UnitSet.of(micro_qwen.grid, UNITS)
    silence(qwen_copy, units)
    batch = micro_qwen.pad(micro_qwen.rows(PROMPTS))
    with torch.no_grad():
        with ablated(micro_qwen, units, "zero"):
            hooked = micro_qwen.logits(batch)
        edited = qwen_copy.plain(batch.ids, attention_mask=batch.mask).logits[:, -1:]
    torch.testing.assert_close(hooked, edited, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("kind", "layer", "unit"), UNITS)
def test_mean_ablation_puts_the_mean_of_the_class(micro: ChatModel, moments, rows, kind, layer, unit):
    units = UnitSet.of(micro.grid, [(kind, layer, unit)])
    x, positions = read(micro, kind, layer, rows, units=units, mode="mean", moments=moments)
    mean = moments.mean[kind][layer].float().unflatten(-1, (micro.grid.width(kind), -1))
    assert torch.equal(bits(x[:, unit]), bits(mean[positions.long(), unit]))
    assert len(set(positions.tolist())) == 4 and mean[:, unit].std(0).min() > 0  # four classes, four fills


@pytest.mark.parametrize("mode", ["mean", "zero"])
@pytest.mark.parametrize("kind", list(Kind))
def test_other_units_keep_their_bits(micro: ChatModel, moments, rows, kind, mode):
    units = UnitSet.of(micro.grid, [(kind, 0, 1), (kind, 0, 3)])
    before, _ = read(micro, kind, 0, rows)
    after, _ = read(micro, kind, 0, rows, units=units, mode=mode, moments=moments)
    others = [u for u in range(micro.grid.width(kind)) if u not in (1, 3)]
    assert torch.equal(bits(after[:, others]), bits(before[:, others]))
    assert not torch.equal(after[:, [1, 3]], before[:, [1, 3]])
    if mode == "zero":
        assert torch.equal(after[:, [1, 3]], torch.zeros_like(after[:, [1, 3]]))


def test_no_units_no_change(micro: ChatModel, moments, rows):
    batch = micro.pad(rows)
    with torch.no_grad():
        before = micro.logits(batch)
        with ablated(micro, UnitSet.empty(micro.grid), "mean", moments):
            assert n_hooks(micro) == 0  # and no hook to pay for
            assert torch.equal(bits(micro.logits(batch)), bits(before))


def test_ablating_everything_leaves_the_embedding(micro: ChatModel):
    everything = UnitSet(micro.grid, {k: np.ones((2, micro.grid.width(k)), dtype=bool) for k in Kind})
    batch = micro.pad(micro.rows(["Hi"]))
    with torch.no_grad(), ablated(micro, everything, "zero"):
        got = micro.logits(batch)[0, -1]
        inner = micro.plain.model
        expected = micro.plain.lm_head(inner.norm(inner.embed_tokens(batch.ids[0, -1:])))[0]
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=0)


def test_a_half_open_gate_is_halfway(micro: ChatModel, moments, rows):
    gates = {k: torch.ones(2, micro.grid.width(k)) for k in Kind}
    gates[Kind.MLP][0, 5] = 0.25
    before, positions = read(micro, Kind.MLP, 0, rows)
    out: list[torch.Tensor] = []
    batch = micro.pad(rows)
    hook = (Kind.MLP.hook(0), lambda x, hook: out.append(x.clone()))
    with torch.no_grad(), gated(micro, gates, fills(micro, moments, "mean")), micro.bridge.hooks(fwd_hooks=[hook]):
        micro.logits(batch)
    mean = moments.mean[Kind.MLP][0].float()[positions.long(), 5]
    torch.testing.assert_close(
        out[0][batch.mask.bool()][:, 5], 0.25 * before[:, 5, 0] + 0.75 * mean, atol=1e-6, rtol=1e-5
    )


def test_gradients_flow_into_gates_and_agree_with_differences(micro: ChatModel, moments, rows):
    batch, fill = micro.pad(rows), fills(micro, moments, "mean")
    gates = {k: torch.full((2, micro.grid.width(k)), 0.7, requires_grad=True) for k in Kind}

    def loss(g):
        with gated(micro, g, fill):
            return micro.logits(batch)[:, -1].log_softmax(-1)[:, 7].sum()

    slopes = dict(zip(gates, torch.autograd.grad(loss(gates), list(gates.values())), strict=True))
    for kind, layer, unit in UNITS:
        moved = []
        for step in (1e-2, -1e-2):
            g = {k: v.detach().clone() for k, v in gates.items()}
            g[kind][layer, unit] += step
            with torch.no_grad():
                moved.append(loss(g).item())
        assert slopes[kind][layer, unit].item() == pytest.approx((moved[0] - moved[1]) / 2e-2, rel=0.05, abs=1e-3)


# --- every step of generation


def test_ablation_acts_at_decoding_steps_as_well(micro: ChatModel, micro_copy: ChatModel):
    units = UnitSet.of(micro.grid, UNITS)
    silence(micro_copy, units)
    expected = micro_copy.generate(PROMPTS, max_new_tokens=8)
    with ablated(micro, units, "zero"):
        assert micro.generate(PROMPTS, max_new_tokens=8) == expected
    assert micro.generate(PROMPTS, max_new_tokens=8) != expected


def test_decoding_steps_get_the_mean_of_responses(micro: ChatModel, moments):
    units = UnitSet.of(micro.grid, [(Kind.MLP, 1, 4)])
    steps: list[torch.Tensor] = []
    hook = (Kind.MLP.hook(1), lambda x, hook: steps.append(x[..., 4].clone()))
    with ablated(micro, units, "mean", moments), micro.bridge.hooks(fwd_hooks=[hook]):
        micro.generate(["Hi"], max_new_tokens=4)
    mean = moments.mean[Kind.MLP][1, :, 4].float()
    positions = torch.tensor(micro.prompt_tokens("Hi")[1])
    assert torch.equal(steps[0][0], mean[positions])
    assert len(steps) > 1 and all(torch.equal(s, mean[Position.RESPONSE].view(1, 1)) for s in steps[1:])


@pytest.mark.parametrize(
    "prompts", [["How do I bake bread?"] * 2, ["How do I bake bread?", "How do I bake a loaf of bread?"]]
)
def test_ablation_does_not_depend_on_what_the_batch_shares(micro: ChatModel, moments, prompts):
    """A prefix that the rows share may be run apart; every token must still get the mean of its own class."""
    units = UnitSet.of(micro.grid, UNITS)
    with ablated(micro, units, "mean", moments):
        together = micro.generate(prompts, max_new_tokens=8)
        assert together == [micro.generate([p], max_new_tokens=8)[0] for p in prompts]


def test_every_decoding_step_of_equal_prompts_gets_the_mean_of_responses(micro: ChatModel, moments):
    units, steps = UnitSet.of(micro.grid, [(Kind.MLP, 1, 4)]), []
    hook = (Kind.MLP.hook(1), lambda x, hook: steps.append(x[..., 4].clone()))
    with ablated(micro, units, "mean", moments), micro.bridge.hooks(fwd_hooks=[hook]):
        micro.generate(["How do I bake bread?"] * 2, max_new_tokens=4)
    mean = moments.mean[Kind.MLP][1, Position.RESPONSE, 4].float()
    assert all(torch.equal(s, mean.expand(2, 1)) for s in steps[-3:])


def test_a_class_that_was_never_seen_is_not_silently_zero(micro: ChatModel, rows):
    """Means over prompts alone know no response; filling in zeros would be zero ablation under another name."""
    units = UnitSet.of(micro.grid, UNITS)
    prompts_only = collect(micro, micro.rows(PROMPTS))
    try:
        x, positions = read(micro, Kind.MLP, 0, rows, units=units, mode="mean", moments=prompts_only)
    except BadInput:
        return  # refused: good
    assert x[positions == Position.RESPONSE][:, 3].abs().max() > 0


# --- coming and going


def test_hooks_are_gone_afterwards(micro: ChatModel, moments):
    units, before = UnitSet.of(micro.grid, UNITS), n_hooks(micro)
    with ablated(micro, units, "mean", moments):
        assert n_hooks(micro) == before + 4  # two layers of two kinds
    assert n_hooks(micro) == before


def test_hooks_are_gone_after_an_exception(micro: ChatModel, rows):
    units, batch = UnitSet.of(micro.grid, UNITS), micro.pad(rows)
    with torch.no_grad():
        expected = micro.logits(batch)
        with pytest.raises(KeyError), ablated(micro, units, "zero"):
            micro.logits(batch)
            raise KeyError("the user's own")
        assert n_hooks(micro) == 0 and torch.equal(micro.logits(batch), expected)


def test_hooks_are_gone_when_the_model_itself_fails(micro: ChatModel, rows):
    def fail(x, hook):
        raise RuntimeError("inside the model")

    units, batch = UnitSet.of(micro.grid, UNITS), micro.pad(rows)
    failing = micro.bridge.hooks(fwd_hooks=[(Kind.MLP.hook(1), fail)])
    with pytest.raises(RuntimeError, match="inside the model"), ablated(micro, units, "zero"), failing:
        micro.logits(batch)
    assert n_hooks(micro) == 0
    with pytest.raises(BadInput):  # and no batch is thought to be under way
        micro.positions_of(1)


def test_the_users_own_hooks_survive(micro: ChatModel, moments, rows):
    calls = []
    handle_count = n_hooks(micro)
    micro.bridge.add_hook(Kind.MLP.hook(0), lambda x, hook: calls.append(1))
    try:
        batch = micro.pad(rows)
        with torch.no_grad():
            with ablated(micro, UnitSet.of(micro.grid, UNITS), "mean", moments):
                micro.logits(batch)
            micro.logits(batch)
            collect(micro, rows)
        assert len(calls) == 3 and n_hooks(micro) == handle_count + 1
    finally:
        micro.bridge.reset_hooks()


def test_ablations_nest(micro: ChatModel, micro_copy: ChatModel, rows):
    mlp, heads = (UnitSet.of(micro.grid, [u for u in UNITS if u[0] is k]) for k in Kind)
    batch = micro.pad(rows)
    with torch.no_grad():
        with ablated(micro, mlp | heads, "zero"):
            together = micro.logits(batch)
        with ablated(micro, mlp, "zero"), ablated(micro, heads, "zero"):
            nested = micro.logits(batch)
    assert torch.equal(nested, together)


# --- refusals


def test_the_wrong_set_or_mode_is_refused(micro: ChatModel):
    other = UnitGrid(2, 13, 4, 1, 1, 100)
    with pytest.raises(BadInput, match="another shape"), ablated(micro, UnitSet.empty(other), "zero"):
        pass
    units = UnitSet.of(micro.grid, UNITS)
    with pytest.raises(BadInput, match="allowed are mean, zero"), ablated(micro, units, "half"):
        pass
    with pytest.raises(BadInput, match="needs activation moments"), ablated(micro, units, "mean"):
        pass
    assert n_hooks(micro) == 0


def test_mean_ablation_refuses_to_guess_positions(micro: ChatModel, moments):
    """Run past ChatModel, the classes of the tokens are unknown: better an error than some mean."""
    ids = torch.tensor([micro.prompt_tokens("Hi")[0]])
    with (
        ablated(micro, UnitSet.of(micro.grid, UNITS), "mean", moments),
        pytest.raises(BadInput, match="position classes"),
    ):
        micro.bridge.original_model(ids)
