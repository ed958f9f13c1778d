"""Resample ablation: what comes in is what the units were on some token of the same class, in all layers the same."""

from __future__ import annotations

import pytest
import torch

from ssah_lens.chat.batch import Position, Row
from ssah_lens.chat.model import ChatModel
from ssah_lens.errors import BadInput
from ssah_lens.intervene.hooks import ablated
from ssah_lens.intervene.resample import Bank
from ssah_lens.units import Kind, UnitSet

PROMPTS = ["Hi", "How do I bake a loaf of bread?", "Why not"]
UNITS = [(Kind.MLP, 0, 3), (Kind.MLP, 0, 7), (Kind.MLP, 1, 11), (Kind.HEAD, 0, 1), (Kind.HEAD, 1, 2)]


@pytest.fixture(scope="module")
def rows(micro: ChatModel) -> list[Row]:
    return micro.rows(PROMPTS, [micro.response_tokens(a) for a in ("Sure, here is how", "No", "Ask the assistant")])


@pytest.fixture(scope="module")
def bank(micro: ChatModel, rows: list[Row]) -> Bank:
    return Bank.collect(micro, rows, seed=3, tokens=5)


def seen(model: ChatModel, rows: list[Row], **context) -> dict[tuple[Kind, int], torch.Tensor]:
    """Activations [row, pos, unit, channel] of every layer and kind."""
    out: dict[tuple[Kind, int], torch.Tensor] = {}

    def keep(kind: Kind, layer: int):
        return lambda x, hook: out.update(
            {(kind, layer): x.detach().clone().unflatten(2, (-1, 1)) if x.ndim == 3 else x.detach().clone()}
        )

    hooks = [(k.hook(layer), keep(k, layer)) for k in Kind for layer in range(model.grid.n_layers)]
    with torch.no_grad(), ablated(model, **context), model.bridge.hooks(fwd_hooks=hooks):
        model.logits(model.pad(rows))
    return out


def test_a_bank_holds_the_model_s_own_activations(micro: ChatModel, rows: list[Row], bank: Bank):
    """Each kept token is one of the rows' tokens of that class, with the same token in every layer."""
    alone = [seen(micro, [row], units=UnitSet.empty(micro.grid), mode="zero") for row in rows]
    for p in Position:
        for slot in range(5):
            places = []
            for kind in Kind:
                for layer in range(2):
                    value = bank.values[kind][layer, p, slot]
                    close = {
                        (i, at)
                        for i, row in enumerate(rows)
                        for at, q in enumerate(row.positions)
                        if q == p and torch.allclose(alone[i][kind, layer][0, at].flatten(), value, atol=1e-5)
                    }
                    places.append(close)
            assert set.intersection(*places), (p, slot)


def test_every_token_draws_one_of_its_class_for_all_units(micro: ChatModel, rows: list[Row], bank: Bank):
    units = UnitSet.of(micro.grid, UNITS)
    batch = micro.pad(rows)
    got = seen(micro, rows, units=units, mode="resample", bank=bank)
    drawn: dict[tuple[int, int], set[int]] = {}
    for kind, layer, unit in UNITS:
        stored = bank.values[kind][layer]
        stored = stored[..., None] if kind is Kind.MLP else stored.unflatten(-1, (micro.grid.n_heads, -1))
        for row in range(len(rows)):
            for at in range(batch.ids.shape[1]):
                choices = stored[batch.positions[row, at], :, unit]
                mine = {s for s in range(5) if torch.equal(choices[s], got[kind, layer][row, at, unit])}
                assert mine
                drawn[row, at] = drawn.get((row, at), mine) & mine
    assert all(drawn.values())  # one slot explains all units of a token
    assert len({min(s) for s in drawn.values()}) > 1  # and tokens draw different ones


def test_other_units_keep_their_bits_and_the_seed_repeats(micro: ChatModel, rows: list[Row], bank: Bank):
    one = UnitSet.of(micro.grid, [(Kind.MLP, 1, 11)])
    clean = seen(micro, rows, units=UnitSet.empty(micro.grid), mode="zero")
    first, again = (seen(micro, rows, units=one, mode="resample", bank=bank) for _ in range(2))
    assert all(torch.equal(first[place], again[place]) for place in first)
    others = [u for u in range(micro.grid.d_mlp) if u != 11]
    assert torch.equal(first[Kind.MLP, 1][:, :, others], clean[Kind.MLP, 1][:, :, others])
    assert not torch.equal(first[Kind.MLP, 1][:, :, 11], clean[Kind.MLP, 1][:, :, 11])


def test_it_generates_and_refuses_what_it_cannot_do(micro: ChatModel, bank: Bank):
    units = UnitSet.of(micro.grid, UNITS)
    with ablated(micro, units, "resample", bank=bank):
        said = micro.generate(PROMPTS, 4)
    assert len(said) == 3 and all(len(t) <= 4 for t in said)
    with pytest.raises(BadInput, match="bank"), ablated(micro, units, "resample"):
        pass
    with pytest.raises(BadInput, match="post_instruction"):
        Bank.collect(micro, [Row([1, 2], [int(Position.TEMPLATE), int(Position.INSTRUCTION)])])
