"""What the one-line views compute, against the plain model run by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ssah_lens.chat.batch import Position
from ssah_lens.chat.model import ChatModel, unembed
from ssah_lens.chat.prompts import Prompt, PromptSet
from ssah_lens.errors import BadInput
from ssah_lens.show.page import Page
from ssah_lens.study import look
from ssah_lens.study.contexts import unit_contexts
from ssah_lens.study.look import (
    attention_view,
    embedding_attribution,
    explore_units,
    neuron_view,
    refusal_view,
    response_view,
    top_tokens_view,
)
from ssah_lens.study.openings import Openings
from ssah_lens.units import Kind, Role, UnitSet, UnitTable

PROMPT = "How do I bake a loaf of bread at home?"
TEXTS = ["tell me a story", "How do I bake bread?", "x", "one two three four five six seven eight nine ten"]
SETS = {"harmful": PromptSet("h", tuple(map(Prompt, TEXTS[:3]))), "harmless": PromptSet("o", (Prompt(TEXTS[3]),))}
OPENINGS = Openings((40, 50), (60, 70, 80))
UNITS = [(Kind.MLP, 0, 3), (Kind.MLP, 1, 11), (Kind.HEAD, 1, 2), (Kind.MLP, 0, 0)]


def activations(model: ChatModel, text: str) -> dict:
    """Unit activations of one prompt by plain torch hooks, and the final residual stream."""
    kept, handles = {}, []
    for i, block in enumerate(model.anatomy.blocks):
        keep = lambda key: lambda m, args: kept.update({key: args[0][0].detach()})
        handles += [block.down.register_forward_pre_hook(keep((Kind.MLP, i)))]
        handles += [block.o.register_forward_pre_hook(keep((Kind.HEAD, i)))]
    handles.append(model.anatomy.final_norm.register_forward_pre_hook(keep("final")))
    ids = torch.tensor([model.rows([text])[0].ids])
    with torch.no_grad():
        kept["out"] = model.plain(ids, output_attentions=True)
    for handle in handles:
        handle.remove()
    return kept


def sizes(model: ChatModel, kept: dict, kind: Kind, layer: int, index: int) -> np.ndarray:
    acts = kept[kind, layer]
    channels = acts.view(len(acts), model.grid.width(kind), -1)[:, index]
    return (channels[:, 0] if kind is Kind.MLP else channels.norm(dim=1)).numpy()


def test_attention_is_the_models(micro: ChatModel):
    heads = [(0, 3), (1, 0)]
    (part,) = attention_view(micro, PROMPT, heads).parts
    expected = activations(micro, PROMPT)["out"].attentions
    for got, (layer, head) in zip(part.props["attention"], heads, strict=True):
        np.testing.assert_allclose(got, expected[layer][0, head], rtol=1e-4, atol=1e-6)
    assert part.props["attentionHeadNames"] == ["L0H3", "L1H0"]
    with pytest.raises(BadInput, match="no head unit 9"):
        attention_view(micro, PROMPT, [(0, 9)])


def test_the_heads_that_move_the_choice_are_chosen(micro: ChatModel):
    view = attention_view(micro, PROMPT, openings=OPENINGS)
    assert len(view.parts[0].props["attentionHeadNames"]) == 8 and "attribution patching" in view.words


def test_word_attributions_add_up_and_the_template_has_none(micro_copy: ChatModel, monkeypatch: pytest.MonkeyPatch):
    micro = micro_copy
    row = micro.rows([PROMPT])[0]
    values, whole = embedding_attribution(micro, row, OPENINGS)
    said = np.array(row.positions) == Position.INSTRUCTION
    assert (values[~said] == 0).all() and (values[said] != 0).any()
    assert values.sum() == pytest.approx(whole, rel=0.1)
    monkeypatch.setattr(look, "STEPS", 400)
    fine, _ = embedding_attribution(micro, row, OPENINGS)
    assert fine.sum() == pytest.approx(whole, rel=0.005), "with many points the integral is exact"
    assert all(p.requires_grad for p in micro.plain.parameters()) and all(
        p.grad is None for p in micro.plain.parameters()
    )
    assert len(refusal_view(micro, PROMPT, OPENINGS).parts[0].props["tokens"]) == said.sum()


def test_activations_are_the_models(micro: ChatModel):
    (part,) = neuron_view(micro, TEXTS, UNITS).parts
    assert part.props["firstDimensionLabels"] == ["L0N3", "L1N11", "L1H2", "L0N0"]
    for text, got in zip(TEXTS, part.props["activations"], strict=True):
        kept = activations(micro, text)
        expected = np.stack([sizes(micro, kept, *u) for u in UNITS], 1)
        np.testing.assert_allclose(np.array(got)[:, :, 0], expected, rtol=1e-3, atol=1e-5)


def test_a_response_has_its_own_odds(micro: ChatModel):
    (part,) = response_view(micro, PROMPT, 6).parts
    answer = micro.generate([PROMPT], 6)[0]
    ids = micro.rows([PROMPT], [answer])[0].ids
    with torch.no_grad():
        log_probs = micro.plain(torch.tensor([ids])).logits[0].log_softmax(-1)
    expected = [float(log_probs[len(ids) - len(answer) - 1 + i, t]) for i, t in enumerate(answer)]
    np.testing.assert_allclose(part.props["correctTokenLogProb"], expected, rtol=1e-3, atol=1e-4)
    assert part.props["correctTokenRank"] == [0] * len(answer), "greedy: always the likeliest"
    assert part.props["topKTokens"][0][0] == part.props["prompt"][1]


# ---- contexts


def test_contexts_are_the_strongest_stretches(micro: ChatModel):
    found = unit_contexts(micro, UNITS, SETS, k=2)
    for c, unit in zip(found, UNITS, strict=True):
        assert (c.kind, c.layer, c.index, c.direct) == (str(unit[0]), unit[1], unit[2], None)
        for name, prompts in SETS.items():
            peaks = []
            for prompt in prompts:
                row = micro.rows([prompt.text])[0]
                size = sizes(micro, activations(micro, prompt.text), *unit)
                said = np.array(row.positions) >= Position.INSTRUCTION
                at = int(np.where(said, np.abs(size), -1).argmax())
                peaks.append((abs(size[at]), size[at], micro.tokenizer.decode([row.ids[at]])))
            best = sorted(peaks, reverse=True)[:2]
            got = c.examples[name]
            assert len(got) == min(2, len(prompts))
            for snippet, (_, value, token) in zip(got, best, strict=True):
                assert snippet.values[snippet.peak] == pytest.approx(value, rel=1e-3, abs=1e-5)
                assert snippet.tokens[snippet.peak] == token
                assert len(snippet.tokens) == len(snippet.values) <= 17


def test_a_snippet_is_a_stretch_of_its_prompt(micro: ChatModel):
    (c,) = unit_contexts(micro, [(Kind.MLP, 1, 4)], SETS, k=1)
    (snippet,) = c.examples["harmless"]
    row = micro.rows([TEXTS[3]])[0]
    tokens = [micro.tokenizer.decode([i]) for i in row.ids]
    starts = [i for i in range(len(tokens)) if tuple(tokens[i : i + len(snippet.tokens)]) == snippet.tokens]
    size = sizes(micro, activations(micro, TEXTS[3]), Kind.MLP, 1, 4)
    assert any(np.allclose(size[i : i + len(snippet.values)], snippet.values, rtol=1e-3, atol=1e-5) for i in starts)


def test_the_direct_effect_is_the_slope_through_the_unembedding(micro: ChatModel):
    """A finite difference: a little of the unit's mean output added to the final residual stream."""
    found = unit_contexts(micro, UNITS, SETS, openings=OPENINGS)
    runs = [activations(micro, t) for t in TEXTS[:3]]
    metric = lambda x: OPENINGS.metric.of(unembed(micro.plain, micro.anatomy.final_norm(x))).item()
    for c, (kind, layer, index) in zip(found, UNITS, strict=True):
        means = torch.stack([r[kind, layer][-1] for r in runs]).mean(0).view(micro.grid.width(kind), -1)[index]
        weight = micro.anatomy.blocks[layer].output_weight(kind).detach()
        step = 1e-2 * weight[:, index * len(means) : (index + 1) * len(means)] @ means
        with torch.no_grad():
            slopes = [(metric(r["final"][-1:] + step) - metric(r["final"][-1:] - step)) / 2e-2 for r in runs]
        assert c.direct == pytest.approx(np.mean(slopes), rel=0.02, abs=2e-4)


def test_no_direct_effect_where_norms_stand_in_between(make_family):
    model = make_family("olmo2")
    (c,) = unit_contexts(model, [(Kind.MLP, 0, 0)], SETS, openings=OPENINGS)
    assert c.direct is None and c.examples["harmful"]


def test_neighbours_write_alike(micro: ChatModel):
    units = [(Kind.MLP, layer, i) for layer in range(2) for i in range(12)]
    found = unit_contexts(micro, units, SETS, k=1)
    columns = torch.stack([micro.anatomy.blocks[a].output_weight(Kind.MLP)[:, i] for _, a, i in units]).detach().numpy()
    columns /= np.linalg.norm(columns, axis=1, keepdims=True)
    cosines = columns @ columns.T - 9 * np.eye(24)
    for c, row in zip(found, cosines, strict=True):
        assert len(c.neighbours) == 5
        np.testing.assert_allclose([n[3] for n in c.neighbours], np.sort(row)[::-1][:5], atol=1e-5)
        assert units[int(row.argmax())] == (Kind(c.neighbours[0][0]), *c.neighbours[0][1:3])


@pytest.mark.parametrize(
    ("units", "sets", "match"),
    [
        ([], SETS, "no units were given"),
        ([("mlp", 0, 12)], SETS, "no mlp unit 12"),
        ([("expert", 0, 1)], SETS, "no kind of unit 'expert'"),
        ([("mlp", 0, 1)], {}, "at least one prompt set"),
        ([("mlp", 0, 1)], {"none": PromptSet("none", ())}, "none may be empty"),
    ],
)
def test_bad_units_and_sets_are_refused(micro: ChatModel, units, sets, match: str):
    with pytest.raises(BadInput, match=match):
        unit_contexts(micro, units, sets)


def test_top_tokens_take_units_of_any_form(micro: ChatModel):
    by_set = top_tokens_view(micro, TEXTS, UnitSet.of(micro.grid, UNITS[:2]), 2)
    assert [p.label for p in by_set.parts] == ["L0N3", "L1N11"] and len(by_set.parts[0].props["tokens"]) == 2


def test_the_explorer_takes_a_table_and_a_model(micro: ChatModel):
    rng = np.random.default_rng(0)
    scores = {k: rng.normal(size=(2, micro.grid.width(k))) for k in Kind}
    scu = UnitSet.of(micro.grid, UNITS[:3])
    whole = UnitSet(micro.grid, {k: np.ones_like(scores[k], dtype=bool) for k in Kind})
    roles = {
        Role.SCU: scu,
        Role.UCU: UnitSet.empty(micro.grid),
        Role.CU: whole - scu,
        Role.RU: UnitSet.empty(micro.grid),
    }
    table = UnitTable(micro.grid, scores, scores, roles, {"model": "micro", "score": "wifv"})
    page = explore_units(table, micro, openings=OPENINGS)
    assert isinstance(page, Page) and page.title == "Units of micro"
    assert len(page.document) > len(explore_units(table).document)
