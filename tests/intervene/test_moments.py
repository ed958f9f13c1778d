"""Streamed moments against numpy over all tokens at once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ssah_lens.chat.batch import Position, Row
from ssah_lens.chat.model import ChatModel
from ssah_lens.intervene.moments import Moments, collect
from ssah_lens.units import Kind

PROMPTS = [
    "Hi",
    "How do I bake a loaf of bread at home, and how long does it take?",
    "Why not",
    "Tell me",
    "a b c d e f",
]
ANSWERS = [
    "Sure, here is how you can do that.",
    "No",
    "Ask the assistant",
    "Sorry, I cannot help with that request.",
    "1 2 3",
]


@pytest.fixture(scope="module")
def rows(micro: ChatModel) -> list[Row]:
    return micro.rows(PROMPTS, [micro.response_tokens(a) for a in ANSWERS])


@pytest.fixture(scope="module")
def seen(micro: ChatModel, rows: list[Row]) -> tuple[Moments, dict[tuple[Kind, int], np.ndarray], np.ndarray]:
    """Moments, and the very activations that they were streamed from with the class of each (padding left out)."""
    raw: dict[tuple[Kind, int], list[torch.Tensor]] = {(k, layer): [] for k in Kind for layer in range(2)}

    def keep(kind: Kind, layer: int):
        return kind.hook(layer), lambda x, hook: raw[kind, layer].append(x.detach().clone())

    with micro.bridge.hooks(fwd_hooks=[keep(*key) for key in raw]):
        moments = collect(micro, rows)
    batches = [b for _, b in micro.batches(rows)]
    real = [b.mask.bool() for b in batches]
    tokens = {
        key: np.concatenate([x[m].flatten(1).double().numpy() for x, m in zip(xs, real, strict=True)])
        for key, xs in raw.items()
    }
    return moments, tokens, np.concatenate([b.positions[m].numpy() for b, m in zip(batches, real, strict=True)])


def test_moments_equal_numpy_over_all_tokens(seen):
    moments, tokens, positions = seen
    for (kind, layer), x in tokens.items():
        for position in Position:
            mine = x[positions == position]
            np.testing.assert_allclose(moments.mean[kind][layer, position], mine.mean(0), rtol=1e-9, atol=1e-15)
            np.testing.assert_allclose(moments.variance(kind, position)[layer], mine.var(0), rtol=1e-9, atol=1e-18)
            assert mine.var(0).min() > 0


def test_every_token_is_counted_once_and_padding_never(seen, rows: list[Row]):
    moments, _, _ = seen
    expected = [sum(r.positions.count(int(p)) for r in rows) for p in Position]
    assert moments.count.tolist() == expected and len({len(r.ids) for r in rows}) > 1  # there was padding to leave out


def test_moments_of_the_plain_model_on_unpadded_rows(micro: ChatModel, rows: list[Row], seen):
    """Independent of batches, padding and TransformerLens: pre-hooks on the output matrices of the plain model."""
    raw: dict[tuple[Kind, int], list[torch.Tensor]] = {(k, layer): [] for k in Kind for layer in range(2)}
    handles = [
        getattr(block, name).register_forward_pre_hook(
            lambda m, args, key=(kind, layer): raw[key].append(args[0][0].detach())
        )
        for layer, block in enumerate(micro.anatomy.blocks)
        for kind, name in ((Kind.MLP, "down"), (Kind.HEAD, "o"))
    ]
    try:
        for row in rows:
            with torch.no_grad():
                micro.plain(torch.tensor([row.ids]))
    finally:
        for handle in handles:
            handle.remove()
    positions = np.concatenate([r.positions for r in rows])
    for (kind, layer), xs in raw.items():
        x = torch.cat(xs).double().numpy()
        for position in Position:
            mine = x[positions == position]
            np.testing.assert_allclose(seen[0].mean[kind][layer, position], mine.mean(0), atol=1e-5)
            np.testing.assert_allclose(seen[0].variance(kind, position)[layer], mine.var(0), rtol=1e-4, atol=1e-6)


def assert_close(a: Moments, b: Moments, rtol: float, atol: float) -> None:
    assert torch.equal(a.count, b.count)
    for kind in Kind:
        torch.testing.assert_close(a.mean[kind], b.mean[kind], rtol=rtol, atol=atol)
        torch.testing.assert_close(a.m2[kind], b.m2[kind], rtol=rtol, atol=atol)


def test_batches_do_not_matter(micro: ChatModel, rows: list[Row], seen):
    merged = Moments.zeros(micro)
    for row in rows:  # one row a batch
        merged = merged.merged(collect(micro, [row]))
    assert_close(merged, seen[0], rtol=1e-4, atol=1e-5)
    assert_close(collect(micro, rows[::-1]), seen[0], rtol=1e-4, atol=1e-5)


def test_merging_equals_one_pass(micro: ChatModel, seen):
    _, tokens, positions = seen
    half = len(positions) // 3
    parts = [
        streamed(micro, {k: x[s] for k, x in tokens.items()}, positions[s]) for s in (slice(half), slice(half, None))
    ]
    whole = streamed(micro, tokens, positions)
    assert_close(parts[0].merged(parts[1]), whole, rtol=1e-9, atol=1e-15)
    assert_close(parts[1].merged(parts[0]), whole, rtol=1e-9, atol=1e-15)
    assert_close(whole, seen[0], rtol=1e-9, atol=1e-15)
    assert_close(whole.merged(Moments.zeros(micro)), whole, rtol=0, atol=0)


def test_merging_leaves_its_parts_alone(micro: ChatModel, seen):
    before = seen[0].mean[Kind.MLP].clone(), seen[0].count.clone()
    seen[0].merged(seen[0])
    assert torch.equal(seen[0].mean[Kind.MLP], before[0]) and torch.equal(seen[0].count, before[1])


def streamed(model: ChatModel, tokens: dict[tuple[Kind, int], np.ndarray], positions: np.ndarray) -> Moments:
    moments = Moments.zeros(model)
    for (kind, layer), x in tokens.items():
        for position in Position:
            moments.update(layer, kind, position, torch.from_numpy(x[positions == position]), 0.0)
    moments.count += torch.tensor([float((positions == p).sum()) for p in Position], dtype=torch.float64)
    return moments


@given(st.lists(st.integers(0, 40), min_size=1, max_size=8), st.integers(0, 1000))
def test_any_chunks_of_a_far_off_mean(micro: ChatModel, sizes: list[int], seed: int):
    """Values near 10^6 with unit spread: a sum of squares would lose the variance, Welford's formula does not."""
    data = 1e6 + np.random.default_rng(seed).normal(size=(sum(sizes), micro.grid.d_mlp))
    moments, at = Moments.zeros(micro), 0
    for n in sizes:
        moments.update(1, Kind.MLP, Position.RESPONSE, torch.from_numpy(data[at : at + n]), float(at))
        moments.count[Position.RESPONSE] += n
        at += n
    if at:
        np.testing.assert_allclose(moments.mean[Kind.MLP][1, Position.RESPONSE], data.mean(0), rtol=1e-12)
        np.testing.assert_allclose(moments.variance(Kind.MLP, Position.RESPONSE)[1], data.var(0), rtol=1e-6, atol=1e-9)
    assert moments.mean[Kind.MLP][0].abs().sum() == 0  # the other layer saw nothing


def test_nothing_seen_is_zero(micro: ChatModel):
    got = collect(micro, micro.rows(PROMPTS))  # prompts without responses
    assert got.count[Position.RESPONSE] == 0
    assert got.variance(Kind.HEAD, Position.RESPONSE).abs().sum() == 0
    assert torch.isfinite(got.merged(got).mean[Kind.MLP]).all()


def test_the_memory_is_that_of_the_units(micro: ChatModel, seen):
    assert seen[0].mean[Kind.MLP].shape == (2, 4, 12) and seen[0].mean[Kind.HEAD].shape == (2, 4, 16)
    assert seen[0].m2[Kind.MLP].dtype == torch.float64
