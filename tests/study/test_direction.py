"""Stage `direction` as a whole: on a planted model, and on one that never refuses."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter

from ssah_lens.chat.prompts import Prompt, PromptSet
from ssah_lens.config import DirectionConfig, study_config
from ssah_lens.direction.choice import Choice
from ssah_lens.direction.onset import REFUSING, opening
from ssah_lens.intervene.steer import projected_out
from ssah_lens.measure.judges import Outcome
from ssah_lens.results import DirectionResult, Results, Steered, Verdict
from ssah_lens.stats import Estimate
from ssah_lens.study.behaviour import own_answers
from ssah_lens.study.direction import direction_report, study_direction
from ssah_lens.study.direction_data import DirectionData
from ssah_lens.study.direction_verdicts import direction_rows
from ssah_lens.study.onset import _forced_refusal
from ssah_lens.study.record import RunFolder
from ssah_lens.study.scorecard import scorecard
from ssah_lens.study.steering import Steering

CONFIG = DirectionConfig(
    layer_step=1, shuffles=8, max_new_tokens=4, pairs=12, ranks=(1, 2), das_epochs=8, das_controls=2, distance=8,
    onset=8, prefill=(1, 5), chain=8, choices=8,
)  # fmt: skip


def as_set(name: str, texts: list[str]) -> PromptSet:
    return PromptSet(name, tuple(Prompt(t) for t in texts))


@pytest.fixture(scope="module")
def data(one_direction) -> DirectionData:
    p = one_direction
    sides = lambda n, seed: (as_set("harmful", p.harmful(n, seed)), as_set("twins", p.harmless(n, seed)))
    plain = lambda n, seed: as_set("ordinary", p.harmless(n, seed))
    test = sides(16, 5)
    return DirectionData(
        sides(16, 1), plain(16, 2), sides(12, 3), plain(12, 4), test, plain(16, 6), test[0],
        as_set("safe", p.harmless(6, 7)), as_set("unsafe", p.harmful(6, 8)), sides(16, 1), sides(16, 5),
        sides(10, 9),
    )  # fmt: skip


@pytest.fixture(scope="module")
def result(one_direction, data: DirectionData) -> DirectionResult:
    p = one_direction
    return study_direction(p.model, p.model.copy(), data, p.tokens, CONFIG, seed=0)


def test_the_planted_choice_is_found_and_steered(one_direction, result: DirectionResult):
    truth = one_direction.directions[0]
    cosine = torch.nn.functional.cosine_similarity(torch.tensor(result.vector), truth, dim=0).abs()
    assert cosine > 0.99 and result.by_choice and result.agreement == 1 and result.refused_train == (16, 48)
    rates = {s.name: s.harmful.refused.value for s in result.steered if s.control is None and s.harmful}
    assert rates["undamaged"] == 1 and rates["ablated"] == 0
    # The word is chosen at the decision position: the response alone changes nothing.
    assert rates["ablated at the prompt"] == 0 and rates["ablated at the response"] == 1
    assert result.find("added").harmless.refused.value == 1
    assert all(s.harmful.refused.value == 1 for s in result.controls("ablated"))
    assert result.find("undamaged").kl is None and result.find("ablated").kl.value > 0


def test_utility_is_measured_without_the_direction_and_without_a_random_one(result: DirectionResult):
    measured = {(s.name, s.control): s for s in result.steered if s.answer_perplexity}
    assert set(measured) == {("undamaged", None), ("ablated", None), ("ablated", 0)}
    assert all(s.choices.n == 8 for s in measured.values())
    whole, without, random = (s.answer_perplexity for s in measured.values())
    assert whole.n == 16 and whole.value < 1.05  # its own answers: it would give them again
    assert random.value < 1.1 and without.value < 1.1  # the mean of answered prompts is left: they are answered


def test_utility_is_measured_inside_the_change(one_direction, data: DirectionData, result: DirectionResult):
    """Nothing left along the planted direction: the choice is all there is, and without it answers are unlikely."""
    model = one_direction.model
    choice = Choice(one_direction.tokens, result.threshold)
    steering = Steering(model, data.harmful, data.ordinary, choice, "keyword", 4)
    steering.answers = own_answers(model, data.ordinary, 4, "own answers")
    without = projected_out(model, torch.tensor(result.vector))
    assert steering.measure("ablated", None, without, data.harmful, data.ordinary, True).answer_perplexity.value > 1.1


def test_the_gentlest_ablation_is_chosen_and_the_published_one_stands_beside_it(result: DirectionResult):
    first, *others = result.ablations
    assert result.ablation == first.name != "zero" and {t.name for t in others} > {"zero"}
    assert first.refused == 0 and all(t.kl >= first.kl or t.refused > 0.05 for t in others)
    both = result.find("ablated"), result.find("ablated to zero everywhere")
    assert both[0].kl.value < both[1].kl.value and both[0].harmful.refused.value == 0
    assert "the harmless mean in its place" in next(r.reading for r in direction_rows(result) if r.id == "H2")
    assert replace(result, ablations=()).ablation == "zero", "older runs"


def test_it_is_read_from_block_1_on(result: DirectionResult):
    choice, harm = result.readout("choice"), result.readout("harm")
    for found in (choice, harm):
        assert found.layer == 1 and found.auroc.value == found.probe_auroc.value == 1 and found.transfer.value == 1
        assert found.mean_difference[0] == [0.5] * len(result.positions) and len(found.null) == 8
    assert choice.auroc.n == 48 and harm.auroc.n == 32
    for found in (choice, harm):  # the user's own prompts, which took no part in anything else
        assert found.elsewhere.prompts == "harmful, twins" and found.elsewhere.harm.n == 20
        assert found.elsewhere.harm.value == found.elsewhere.choice.value == found.elsewhere.probe_harm.value == 1
    assert harm.within is None and choice.within is None  # all harmless prompts are answered, all refused ones harmful


def test_one_dimension_flips_the_decisions(result: DirectionResult):
    (found,) = result.interchange  # token-aligned twins come first
    assert found.pairs == "twins" and found.layer == 1 and found.n_test == 12
    assert found.find("difference of means").flipped.value == found.find("DAS", 1).flipped.value == 1
    assert found.find("random subspace", 1).flipped.value < 0.5
    assert found.cosines["difference of means"] > 0.99


def test_the_chain_adds_up(result: DirectionResult):
    c = result.chain
    assert c.embedding + sum(c.attention) + sum(c.mlp) == pytest.approx(c.total, rel=1e-3)
    assert c.attention[0] == pytest.approx(c.total, rel=0.02)  # block 0's attention writes all of it
    assert (c.top[0].layer, c.top[0].head) == (0, 0) and c.refusing == ("Sorry",)


def test_a_counterpart_with_the_same_weights_differs_in_nothing(result: DirectionResult):
    assert result.before.cosine == pytest.approx(1, abs=1e-4) and result.before.added.refused.value == 1
    assert max(abs(v) for curve in result.onset.kl for v in curve.mean) < 1e-5
    aligned, unaligned = result.distances
    assert aligned.gap == unaligned.gap and aligned.n == 8


def test_forced_refusals_are_those_of_the_unaligned_model(one_direction, data: DirectionData, result, monkeypatch):
    """Per prompt the mean over openings, harmful and ordinary prompts apart, judged from the opening's last word."""
    names = [name for name, _ in result.onset.forced_refusal]
    assert names == [f"{side} prompts, opening 'I'm sorry, but I' and the like" for side in ("harmful", "ordinary")]
    assert [e.n for _, e in result.onset.forced_refusal] == [8, 8]
    p, asked = one_direction, []

    def forced(model, prompts, prefix, max_new_tokens, judge, judged_from="", what=""):
        asked.append((model, tuple(prefix), judged_from))
        first, n = len(asked) == 1, len(prompts) // 2
        goes_on = [i < n and (first or i % 2 == 0) for i in range(len(prompts))]
        return tuple(Outcome.REFUSED if yes else Outcome.FULFILLED for yes in goes_on)

    monkeypatch.setattr("ssah_lens.study.onset.forced", forced)
    unaligned = p.model.copy()
    (_, harmful), (_, ordinary) = _forced_refusal(unaligned, data.harmful, data.ordinary, CONFIG, "keyword")
    assert (harmful.value, ordinary.value, harmful.n, ordinary.n) == (0.75, 0, 16, 16)
    assert asked == [(unaligned, tuple(opening(unaligned, text)), "I") for text in REFUSING]
    assert _forced_refusal(None, data.harmful, data.ordinary, CONFIG, "keyword") == ()


def test_the_result_survives_a_file_and_makes_a_report(result: DirectionResult):
    adapter = TypeAdapter(DirectionResult)
    assert adapter.validate_json(adapter.dump_json(result)) == result
    told = direction_report(result, "out")
    assert set(told.verdicts) == {"H1", "H2", "H3"} and set(told.interchange) >= {"1", "2"}
    own = {f"{target}, own prompts, {by}" for target in ("choice", "harm") for by in ("label", "behaviour")}
    assert set(told.auroc) == {"choice", "choice, probe", "harm", "harm, probe"} | own
    assert told.undamaged.name == "undamaged" and told.controls["added"][0].control == 0


@pytest.mark.parametrize("at", ["selection", "steered_ablated_at_the_prompt", "distances"])
def test_an_interrupted_run_goes_on_from_what_it_kept(one_direction, data: DirectionData, result, tmp_path, at: str):
    p = one_direction
    folder = RunFolder.open(tmp_path, study_config())
    kept: list[str] = []
    study = lambda keep: study_direction(p.model, p.model.copy(), data, p.tokens, CONFIG, 0, keep=keep)

    def keep(name: str, kind, make):
        if name == at:
            raise KeyboardInterrupt
        kept.append(name)
        return folder.part("direction", name, kind, make)

    with pytest.raises(KeyboardInterrupt):
        study(keep)
    changes = (
        *("undamaged", "ablated", "ablated_to_zero_everywhere", "added", "ablated_at_the_prompt"),
        *("ablated_at_the_response", "ablated_0", "added_0"),
    )
    steered = [f"steered_{change}" for change in changes]
    every = ["read", "selection", *steered, "pairs_twins", "interchange_twins", "distances"]
    assert kept == every[: every.index(at)]
    again = study(lambda name, kind, make: folder.part("direction", name, kind, pytest.fail if name in kept else make))
    assert again == result


# --- verdicts


def row(r: DirectionResult, name: str):
    return next(x for x in direction_rows(r) if x.id == name)


def harming(result: DirectionResult, kl: float) -> tuple[Steered, ...]:
    """The same changes, but for the KL on ordinary prompts with the direction taken out."""
    e = Estimate(kl, kl / 2, 2 * kl, 16)
    return tuple(replace(s, kl=e, kl_all=e) if s.name == "ablated" else s for s in result.steered)


def test_the_planted_choice_is_separable_and_one_direction(result: DirectionResult):
    h1, h2 = row(result, "H1"), row(result, "H2")
    assert h1.verdict is Verdict.SUPPORTED and h1.effect.value == 1
    assert h2.effect.value == 1 and h2.control.value == 0
    assert "a choice added after a first run; with nothing in its place in any block, as published, 0%" in h2.reading
    # Taking the direction out that moves harmless prompts far is what the rule calls damage.
    assert row(replace(result, steered=harming(result, 0.01)), "H2").verdict is Verdict.SUPPORTED
    # The rule reads all ordinary prompts, also those that the undamaged model was about to refuse.
    some = tuple(replace(s, kl=Estimate(0.01, 0.0, 0.02, 16)) for s in harming(result, 0.2))
    assert row(replace(result, steered=some), "H2").verdict is Verdict.NOT_SETTLED
    assert [x.id for x in scorecard(Results(direction=result))] == ["H1", "H2", "H3"]


def with_flips(result: DirectionResult, one: float, most: float) -> DirectionResult:
    kept = harming(result, 0.01)
    (found,) = result.interchange
    hits = lambda share: tuple((np.arange(100) < 100 * share).astype(float).tolist())
    change = lambda f: replace(
        f, hits=hits(one if f.rank == 1 else most), flipped=Estimate(one if f.rank == 1 else most, 0, 1, 100)
    )
    flips = tuple(change(f) if f.basis in ("DAS", "probe", "difference of means") else f for f in found.flips)
    flips = tuple(
        replace(f, flipped=Estimate(0.1, 0, 1, 24)) if "random" in f.basis or "," in f.basis else f for f in flips
    )
    return replace(result, steered=kept, interchange=(replace(found, flips=flips),))


def test_a_choice_of_several_dimensions_contradicts_h2(result: DirectionResult):
    assert row(with_flips(result, 0.95, 1.0), "H2").verdict is Verdict.SUPPORTED
    assert row(with_flips(result, 0.4, 1.0), "H2").verdict is Verdict.CONTRADICTED
    assert row(with_flips(result, 0.05, 0.06), "H2").verdict is Verdict.NOT_SETTLED  # no better than its controls
    assert row(replace(with_flips(result, 1, 1), interchange=()), "H2").verdict is Verdict.NOT_SETTLED


def test_a_direction_that_does_no_more_than_a_random_one_contradicts_h2(result: DirectionResult):
    base = result.find("undamaged")
    idle = [replace(s, refused=base.refused) if s.name == "ablated" else s for s in result.steered]
    assert row(replace(result, steered=tuple(idle)), "H2").verdict is Verdict.CONTRADICTED


def test_h3_asks_whether_forced_tokens_undo_refusals_beyond_shuffled_ones(result: DirectionResult):
    def forced(k: int, share: float):
        hits = tuple((np.arange(50) < 50 * share).astype(float).tolist())
        return replace(result.onset.prefilled[0], tokens=k, hits=hits, refused=Estimate(share, 0, 1, 50))

    def h3(at_5: float, shuffled: float) -> Verdict:
        onset = replace(
            result.onset, prefilled=(forced(0, 1), forced(1, 0.9), forced(5, at_5)), shuffled=(forced(5, shuffled),)
        )
        near = tuple(replace(d, gap=[[0.1, 0.2]]) for d in result.distances)
        return row(replace(result, onset=onset, distances=near), "H3").verdict

    assert h3(0.1, 0.9) is Verdict.SUPPORTED
    assert h3(0.8, 0.9) is Verdict.CONTRADICTED
    assert h3(0.1, 0.2) is Verdict.NOT_SETTLED  # any opening undoes them, a fulfilling one no more than others


def test_a_model_that_never_refuses_has_no_choice_to_read(micro, data: DirectionData):
    config = CONFIG.model_copy(update={"prefill": (5,), "layer_step": 1})
    found = study_direction(micro, None, data, (40, 50), config, seed=0)
    assert not found.by_choice and found.agreement is None and found.readout("choice") is None
    assert found.interchange == () and found.before is None and found.onset.kl == ()
    assert len(found.skipped) == 4 and found.skipped[0].startswith("AUROC of the choice"), found.skipped
    (missing,) = [text for text in found.skipped if "no unaligned model was given" in text]
    for what in ("KL by token", "forced refusals", "before alignment", "unaligned half of the distance probe"):
        assert what in missing, what
    assert "turned the sign" in missing and found.onset.forced_refusal == ()
    assert [d.model for d in found.distances] == ["aligned"]
    verdicts = {x.id: x.verdict for x in direction_rows(found)}
    assert verdicts["H1"] is Verdict.NOT_SETTLED and verdicts["H2"] is Verdict.CONTRADICTED
