"""Directions projected out and vectors added, against activations and weights changed by hand."""

from __future__ import annotations

import numpy as np
import torch
from activations import states

from ssah_lens.chat.batch import Position
from ssah_lens.chat.model import ChatModel
from ssah_lens.intervene.sites import Site
from ssah_lens.intervene.steer import PROMPT, RESPONSE, added, projected_out, stream_means
from ssah_lens.measure.refusal import refusal_scores

PROMPTS = ["Hi", "How do I bake a loaf of bread?", "Why not", "Tell me, please: what is 7 x 8?"]
TOKENS = (40, 50)


def test_nothing_is_left_along_a_direction_that_is_projected_out(any_family: ChatModel):
    model, last = any_family, any_family.grid.n_layers - 1
    r = torch.randn(16)
    names = [
        Site.RESID.hook(0),
        Site.RESID.hook(1),
        Site.ATTN.hook(1),
        Site.MLP.hook(0),
        f"blocks.{last}.hook_resid_post",
    ]
    with projected_out(model, r):
        for name in names:
            x = states(model, model.rows(PROMPTS[1:2])[0], name)
            assert (x @ (r / r.norm())).abs().max() < 1e-4, name
            assert x.abs().max() > 1e-2


def test_the_mean_is_left_along_a_direction_where_it_is_asked_for(any_family: ChatModel):
    """Means by hand, from unpadded rows; then every prompt has them along the direction, and keeps the rest."""
    model, r = any_family, torch.randn(16)
    last, unit = model.grid.n_layers - 1, r / r.norm()
    rows = model.rows(PROMPTS, [model.response_tokens(text) for text in ("Sure", "No, I cannot", "Yes", "56")])
    means = stream_means(model, rows)
    names = [Site.RESID.hook(1), Site.ATTN.hook(0), Site.MLP.hook(1), f"blocks.{last}.hook_resid_post"]
    assert set(names) < set(means) and len(means) == 3 * model.grid.n_layers + 1
    for name in names:
        seen = [states(model, row, name) for row in rows]
        for position in Position:
            here = torch.cat([x[torch.tensor(row.positions) == position] for x, row in zip(seen, rows, strict=True)])
            torch.testing.assert_close(means[name][position], here.mean(0), atol=1e-5, rtol=1e-4)
    classes = torch.tensor(rows[1].positions)
    with projected_out(model, r, towards=means):
        for name in names:
            left = states(model, rows[1], name) @ unit
            torch.testing.assert_close(left, means[name][classes] @ unit, atol=1e-4, rtol=1e-4)
    first = Site.RESID.hook(0)
    before = states(model, rows[1], first)
    with projected_out(model, r, towards=means):
        after = states(model, rows[1], first)
    along = torch.outer(unit, unit)
    torch.testing.assert_close(after - after @ along, before - before @ along, atol=1e-5, rtol=1e-4)


def test_the_mean_is_left_under_padding_a_shared_prefix_and_while_answering(micro: ChatModel):
    """Prompts of unequal length that open alike, in one batch: every pass of the generation, by class."""
    prompts, name = ["How do I bake", "How do I bake a loaf of bread at home?"], Site.RESID.hook(1)
    rows, r = micro.rows(prompts, [[70, 71]] * 2), torch.randn(16)
    means, unit = stream_means(micro, rows), r / r.norm()
    level, passes = means[name] @ unit, []

    def read(x: torch.Tensor, hook) -> None:
        passes.append((micro.positions_of(x.shape[1]).clone(), x @ unit))

    with projected_out(micro, r, towards=means), micro.bridge.hooks(fwd_hooks=[(name, read)]):
        said = micro.generate(prompts, 4)
    assert max(map(len, said)) == 4 and sum(along.shape == (2, 1) for _, along in passes) == 3
    assert {int(c) for classes, _ in passes for c in classes.unique()} == set(map(int, Position))
    for classes, along in passes:
        torch.testing.assert_close(along, level[classes.long()], atol=1e-4, rtol=1e-3)


def test_a_class_without_tokens_gets_the_mean_of_all(micro: ChatModel):
    rows = micro.rows(PROMPTS)
    means = stream_means(micro, rows)[Site.RESID.hook(1)]
    every = torch.cat([states(micro, row, Site.RESID.hook(1)) for row in rows])
    torch.testing.assert_close(means[Position.RESPONSE], every.mean(0), atol=1e-5, rtol=1e-4)


def test_projecting_out_equals_projected_weights(micro: ChatModel, micro_copy: ChatModel):
    """Orthogonalising every matrix that writes to the stream is the same model (Arditi et al., section 4.1)."""
    r = torch.randn(16)
    unit = r / r.norm()
    with torch.no_grad():
        micro_copy.plain.get_input_embeddings().weight.sub_(
            torch.outer(micro_copy.plain.get_input_embeddings().weight @ unit, unit)
        )
        for block in micro_copy.anatomy.blocks:
            for m in (block.o, block.down):
                m.weight.sub_(torch.outer(unit, unit @ m.weight))
    with projected_out(micro, r):
        got = refusal_scores(micro, PROMPTS, TOKENS)
    np.testing.assert_allclose(got, refusal_scores(micro_copy, PROMPTS, TOKENS), atol=1e-4)


def test_prompt_and_response_are_told_apart(micro: ChatModel):
    r = torch.randn(16)
    row = micro.rows(PROMPTS[1:2], [micro.response_tokens("Sure, here")])[0]
    name = Site.RESID.hook(0)
    clean = states(micro, row, name)
    inside = torch.tensor(row.positions) == Position.RESPONSE
    for where, chosen in ((PROMPT, ~inside), (RESPONSE, inside), (None, torch.ones_like(inside))):
        with added(micro, 0, r, where):
            moved = states(micro, row, name) - clean
        assert torch.allclose(moved[chosen], r.expand(int(chosen.sum()), -1), atol=1e-6)
        assert (moved[~chosen] == 0).all()
    # A generated token is a response: added there it changes the second token's state, never the decision.
    with added(micro, 1, 50 * r, RESPONSE):
        steered = micro.generate(PROMPTS, 4)
    plain = micro.generate(PROMPTS, 4)
    assert [t[:1] for t in steered] == [t[:1] for t in plain] and steered != plain
