"""Which parameters a unit owns, counted by hand, and that frozen ones keep their bits through AdamW."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ssah_lens.chat.model import ChatModel
from ssah_lens.errors import BadInput
from ssah_lens.train.freeze import FrozenSlices, Slice, layer_slices, other_slices, owned_slices
from ssah_lens.train.loop import TrainSettings, train
from ssah_lens.units import Kind, UnitGrid, UnitSet

NEURON = 3 * 16  # a gate row, an up row, a down column of width 16
HEAD = 2 * 4 * 16  # 4 q rows, 4 o columns
GROUP = 2 * 4 * 16  # 4 k rows, 4 v rows
BLOCK = 12 * NEURON + 4 * HEAD + 2 * GROUP
LLAMA = UnitGrid(2, 12, 4, NEURON, HEAD, 2 * BLOCK)
QWEN = UnitGrid(2, 12, 4, NEURON, HEAD + 4, 2 * (BLOCK + 16 + 8 + 8))  # biases on q, k, v

HARMLESS = ["Hi", "How do I bake a loaf of bread?", "Why not"]
ANSWERS = ["Sure, here is how you can do that.", "No", "Ask the assistant"]


def covered(model: ChatModel, slices: list[Slice]) -> dict[str, np.ndarray]:
    """How often each element of each block parameter is in the slices."""
    names = {id(p): n for n, p in model.plain.named_parameters()}
    out = {
        names[id(p)]: np.zeros(tuple(p.shape), dtype=int)
        for b in model.anatomy.blocks for m in b.matrices for p in m.parameters(recurse=False)
    }  # fmt: skip
    for s in slices:
        where = s.index.numpy() if s.dim == 0 else (slice(None), s.index.numpy())
        out[names[id(s.parameter)]][where] += 1
    return out


def bits(model: ChatModel) -> dict[str, np.ndarray]:
    return {n: p.detach().view(torch.int32).numpy().copy() for n, p in model.plain.named_parameters()}


def rows(model: ChatModel):
    return model.rows(HARMLESS, [model.response_tokens(a) for a in ANSWERS])


@st.composite
def unit_sets(draw) -> UnitSet:
    return UnitSet(LLAMA, {k: draw(hnp.arrays(bool, (2, LLAMA.width(k)))) for k in Kind})


# --- what is owned


def test_the_grids_by_hand(micro: ChatModel, micro_qwen: ChatModel):
    assert micro.grid == LLAMA and micro_qwen.grid == QWEN
    inside = [p.numel() for n, p in micro.plain.named_parameters() if "proj" in n]
    assert sum(inside) == LLAMA.block_parameters == 2688


def test_a_neuron_owns_two_rows_and_a_column(micro: ChatModel):
    got = covered(micro, owned_slices(micro.anatomy, UnitSet.of(LLAMA, [(Kind.MLP, 1, 5)])))
    for name, counts in got.items():
        expected = np.zeros_like(counts)
        if name == "model.layers.1.mlp.down_proj.weight":
            expected[:, 5] = 1
        elif name.startswith("model.layers.1.mlp"):
            expected[5] = 1
        np.testing.assert_array_equal(counts, expected, err_msg=name)


def test_a_head_owns_its_rows_and_columns_and_holds_its_group(micro: ChatModel):
    """Heads 2 and 3 share the second key-value head: rows 4 to 7 of k and v."""
    got = covered(micro, owned_slices(micro.anatomy, UnitSet.of(LLAMA, [(Kind.HEAD, 0, 3)])))
    for name, counts in got.items():
        expected = np.zeros_like(counts)
        if name == "model.layers.0.self_attn.q_proj.weight":
            expected[12:16] = 1
        elif name == "model.layers.0.self_attn.o_proj.weight":
            expected[:, 12:16] = 1
        elif name in ("model.layers.0.self_attn.k_proj.weight", "model.layers.0.self_attn.v_proj.weight"):
            expected[4:8] = 1
        np.testing.assert_array_equal(counts, expected, err_msg=name)


@pytest.mark.parametrize(
    ("heads", "owned", "trainable"),
    [
        ([0], HEAD + GROUP, HEAD),
        ([0, 1], 2 * HEAD + GROUP, 2 * HEAD + GROUP),
        ([0, 2], 2 * HEAD + 2 * GROUP, 2 * HEAD),
        ([0, 1, 3], 3 * HEAD + 2 * GROUP, 3 * HEAD + GROUP),
        ([0, 1, 2, 3], 4 * HEAD + 2 * GROUP, 4 * HEAD + 2 * GROUP),
        ([], 0, 0),
    ],
)
def test_groups_freeze_with_any_head_and_train_with_all(micro: ChatModel, heads, owned, trainable):
    units = UnitSet.of(LLAMA, [(Kind.HEAD, 1, h) for h in heads])
    assert FrozenSlices(owned_slices(micro.anatomy, units)).n_parameters == owned
    assert FrozenSlices(other_slices(micro.anatomy, units)).n_parameters == 2 * BLOCK - trainable


def test_biases_belong_to_their_rows(micro_qwen: ChatModel):
    units = UnitSet.of(QWEN, [(Kind.HEAD, 0, 1), (Kind.MLP, 0, 0)])
    assert FrozenSlices(owned_slices(micro_qwen.anatomy, units)).n_parameters == NEURON + (HEAD + 4) + (GROUP + 8)
    got = covered(micro_qwen, owned_slices(micro_qwen.anatomy, units))
    assert np.flatnonzero(got["model.layers.0.self_attn.q_proj.bias"]).tolist() == [4, 5, 6, 7]
    assert np.flatnonzero(got["model.layers.0.self_attn.v_proj.bias"]).tolist() == [0, 1, 2, 3]
    # trained alone, one head of a group may move its q bias but not the group's
    rest = covered(micro_qwen, other_slices(micro_qwen.anatomy, units))
    assert np.flatnonzero(rest["model.layers.0.self_attn.q_proj.bias"] == 0).tolist() == [4, 5, 6, 7]
    assert rest["model.layers.0.self_attn.k_proj.bias"].all()


@given(unit_sets())
def test_counts_of_any_set(micro: ChatModel, units: UnitSet):
    neurons, heads = units.masks[Kind.MLP], units.masks[Kind.HEAD].reshape(2, 2, 2)
    own = int(neurons.sum()) * NEURON + int(heads.sum()) * HEAD
    owned = owned_slices(micro.anatomy, units)
    assert FrozenSlices(owned).n_parameters == own + int(heads.any(2).sum()) * GROUP
    rest = FrozenSlices(other_slices(micro.anatomy, units)).n_parameters
    assert rest == 2 * BLOCK - own - int(heads.all(2).sum()) * GROUP
    assert all(c.max() <= 1 for c in covered(micro, owned).values())  # nothing is counted twice


@given(unit_sets())
def test_frozen_and_trainable_cover_everything(micro: ChatModel, units: UnitSet):
    owned, other = (covered(micro, f(micro.anatomy, units)) for f in (owned_slices, other_slices))
    both = {name for name in owned if (owned[name] & other[name]).any()}
    assert all((owned[n] + other[n] >= 1).all() for n in owned)
    assert all(("k_proj" in n or "v_proj" in n) for n in both)  # only a half-chosen group's rows are in neither role


def test_all_and_nothing(micro: ChatModel):
    everything = UnitSet(LLAMA, {k: np.ones((2, LLAMA.width(k)), dtype=bool) for k in Kind})
    assert all((c == 1).all() for c in covered(micro, owned_slices(micro.anatomy, everything)).values())
    assert other_slices(micro.anatomy, everything) == []
    nothing = UnitSet.empty(LLAMA)
    assert owned_slices(micro.anatomy, nothing) == []
    assert all((c == 1).all() for c in covered(micro, other_slices(micro.anatomy, nothing)).values())


# --- holding still

SETS = {
    "some": [
        (Kind.MLP, 0, 3),
        (Kind.MLP, 1, 0),
        (Kind.MLP, 1, 11),
        (Kind.HEAD, 0, 1),
        (Kind.HEAD, 1, 2),
        (Kind.HEAD, 1, 3),
    ],
    "neurons": [(Kind.MLP, 0, j) for j in range(12)],
    "heads": [(Kind.HEAD, 1, h) for h in range(4)],
}
HARD = TrainSettings(steps=5, batch_size=3, lr=1e-2, weight_decay=0.1)


@pytest.mark.parametrize("pick", [owned_slices, other_slices])
@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("which", ["micro_copy", "qwen_copy"])
def test_frozen_keeps_its_bits_and_the_rest_moves(which, request, name, pick):
    model: ChatModel = request.getfixturevalue(which)
    frozen = FrozenSlices(pick(model.anatomy, UnitSet.of(model.grid, SETS[name])))
    held, before = covered(model, frozen.slices), bits(model)
    result = train(model, rows(model), HARD, frozen)
    assert result.unchanged is True and result.frozen_parameters == sum(int(c.sum()) for c in held.values())
    after = bits(model)
    for parameter, counts in held.items():
        same = before[parameter] == after[parameter]
        assert same[counts == 1].all(), parameter
        # A key bias shifts all scores of a query alike, so that its gradient is noise; all else must have moved.
        if not parameter.endswith("k_proj.bias"):
            assert not same[counts == 0].any(), parameter


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("part_tokens", [30, 768], ids=["accumulated", "at once"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_it_holds_under_any_optimizer_accumulation_and_precision(micro_copy: ChatModel, optimizer, part_tokens, dtype):
    """Weight decay, momentum, clipping to almost nothing, gradients added up from parts, rounding to bfloat16."""
    micro_copy.plain.to(dtype)
    model = ChatModel(micro_copy.plain, micro_copy.tokenizer, "hard")
    frozen = FrozenSlices(owned_slices(model.anatomy, UnitSet.of(LLAMA, SETS["some"])))
    held = {n: torch.from_numpy(c == 1) for n, c in covered(model, frozen.slices).items()}
    before = {n: p.detach().clone() for n, p in model.plain.named_parameters()}
    settings = TrainSettings(
        steps=6, batch_size=3, lr=3e-2, weight_decay=0.5, clip=1e-2, part_tokens=part_tokens, optimizer=optimizer
    )
    result = train(model, rows(model), settings, frozen)
    assert result.unchanged is True and result.sha256 == frozen.sha256
    for name, inside in held.items():
        now, then = model.plain.get_parameter(name).detach(), before[name]
        assert torch.equal(now[inside].view(torch.uint8), then[inside].view(torch.uint8)), name
        assert (now[~inside] != then[~inside]).any() == (~inside).any(), name


def test_the_record_holds_the_hash_of_the_frozen_bits(micro_copy: ChatModel, micro: ChatModel):
    """The same slices of an untouched model of the same weights have it too; another set has another one."""
    units = UnitSet.of(LLAMA, SETS["some"])
    result = train(micro_copy, rows(micro_copy), HARD, FrozenSlices(owned_slices(micro_copy.anatomy, units)))
    assert len(result.sha256) == 64 and result.sha256 == FrozenSlices(owned_slices(micro.anatomy, units)).sha256
    other = UnitSet.of(LLAMA, SETS["heads"])
    assert result.sha256 != FrozenSlices(owned_slices(micro.anatomy, other)).sha256


def test_a_frozen_gradient_never_reaches_the_others(micro: ChatModel, make_llama, make_tokenizer):
    """Clipping by the norm of trained gradients only: training with a frozen half equals training with its gradient
    taken away by hand (here: a model whose frozen rows get no gradient because a hook zeroes them)."""
    units = UnitSet.of(LLAMA, SETS["some"])
    settings = TrainSettings(steps=4, batch_size=3, lr=1e-2, weight_decay=0.0, clip=1e-3)

    def trained(by_hand: bool) -> ChatModel:
        tokenizer = make_tokenizer()
        model = ChatModel(make_llama(tokenizer), tokenizer, "clip")
        slices = owned_slices(model.anatomy, units)
        if by_hand:
            for s in slices:
                s.parameter.register_hook(lambda g, s=s: g.index_fill(s.dim, s.index, 0))
        train(model, rows(model), settings, None if by_hand else FrozenSlices(slices))
        return model

    a, b = trained(False), trained(True)
    for (name, p), q in zip(a.plain.named_parameters(), b.plain.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-6, msg=name)


def test_whole_layers_are_held_with_their_norms(micro_copy: ChatModel):
    frozen = FrozenSlices(layer_slices(micro_copy.anatomy, range(1, 2)))
    assert frozen.n_parameters == BLOCK + 2 * 16
    before = bits(micro_copy)
    train(micro_copy, rows(micro_copy), replace(HARD, policy="all"), frozen)
    after = bits(micro_copy)
    changed = {n for n in before if (before[n] != after[n]).any()}
    assert changed == {n for n in before if "layers.1." not in n}


@pytest.mark.parametrize("layers", [range(1, 3), range(0), range(-1, 1)])
def test_layers_that_are_not_there(micro: ChatModel, layers: range):
    with pytest.raises(BadInput, match="it has layers 0-1"):
        layer_slices(micro.anatomy, layers)


# --- comparing bits


def slices_of(values: list[float]) -> tuple[torch.nn.Parameter, FrozenSlices]:
    p = torch.nn.Parameter(torch.tensor(values))
    return p, FrozenSlices([Slice(p, 0, torch.tensor([0, 1]))])


@pytest.mark.parametrize(("before", "after"), [(0.0, -0.0), (-0.0, 0.0), (1.0, 1.0000001), (1.0, float("nan"))])
def test_a_changed_bit_is_seen(before: float, after: float):
    p, frozen = slices_of([before, 2.0, 3.0])
    assert frozen.unchanged()
    with torch.no_grad():
        p[0] = after
    assert not frozen.unchanged()
    with torch.no_grad():
        p[0] = before
    assert frozen.unchanged()


def test_a_nan_that_stays_is_unchanged_and_another_is_not():
    p, frozen = slices_of([float("nan"), 2.0, 3.0])
    assert frozen.unchanged()
    with torch.no_grad():
        p.data.view(torch.int32)[0] ^= 1  # a NaN with other bits
    assert p[0].isnan() and not frozen.unchanged()


def test_what_is_not_held_may_change():
    p, frozen = slices_of([1.0, 2.0, 3.0])
    with torch.no_grad():
        p[2] = 9
    assert frozen.unchanged()


def test_bits_of_bfloat16():
    p = torch.nn.Parameter(torch.tensor([[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]], dtype=torch.bfloat16))
    frozen = FrozenSlices([Slice(p, 1, torch.tensor([0, 2]))])
    assert frozen.unchanged() and frozen.n_parameters == 4
    with torch.no_grad():
        p[0, 0] = -0.0
    assert not frozen.unchanged()
