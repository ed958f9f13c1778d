"""Calibration and roles, on a model whose truth is known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from planted import HARM, Planted, plant, prompts

from ssah_lens.chat.prompts import PromptSet
from ssah_lens.config import AlignConfig, UnitsConfig, study_config
from ssah_lens.errors import BadInput
from ssah_lens.score.base import Calibration, Measured
from ssah_lens.study.record import RunFolder
from ssah_lens.study.runner import run_study
from ssah_lens.study.units import answered_by, calibrate, find_units
from ssah_lens.units import Kind, Role


@pytest.fixture(scope="module")
def planted(make_tokenizer) -> Planted:
    return plant(make_tokenizer)


@pytest.fixture(scope="module")
def data(planted: Planted) -> Calibration:
    config = UnitsConfig(score="exact", exact_prompts=12, steps=10)
    return calibrate(planted.model, planted.unaligned, prompts(True, 24), prompts(False, 24), config, 0)


def test_calibration_of_the_planted_model(planted: Planted, data: Calibration):
    assert data.refusal_tokens == (planted.token("Sorry"),)
    assert (len(data.safety), len(data.utility), len(data.fulfilling)) == (24, 24, 24)
    assert data.unaligned is planted.unaligned and data.measured == Measured(prompts=12)


def test_given_refusal_tokens_are_taken_and_none_are_looked_for_in_vain(planted: Planted):
    args = planted.model, None, prompts(True, 12), prompts(False, 12)
    assert calibrate(*args, UnitsConfig(score="exact"), 0, [7, 8]).refusal_tokens == (7, 8)
    assert calibrate(*args, UnitsConfig(score="wifv"), 0).refusal_tokens == ()


def test_without_a_counterpart_fulfilling_answers_begin_as_such_and_never_refuse(planted: Planted):
    """The planted model refuses even after the opening: then the opening is all that is left of the answer."""
    model = planted.model
    alone = calibrate(model, None, prompts(True, 12), prompts(False, 12), UnitsConfig(score="mask"), 0)
    assert alone.refusal_tokens == (planted.token("Sorry"),) and len(alone.fulfilling) == 12
    opening = model.response_tokens("Sure, here is", ended=False)
    for row in alone.fulfilling:
        said = row.ids[len(row.prompt.ids) :]
        assert said[: len(opening)] == opening and planted.token("Sorry") not in said


def test_harmless_prompts_that_are_refused_are_no_utility(planted: Planted):
    """Losing an over-refusal must not count as losing answers: only what the model answers is kept."""
    plain = prompts(False, 20, 3)
    over = replace(plain[5], text=plain[5].text + f" {HARM}")
    mixed = PromptSet("mixed", (*plain[:5], over, *plain[6:]))
    answered, replies = answered_by(planted.model, mixed)
    assert answered.texts == [*plain.texts[:5], *plain.texts[6:]]
    assert {planted.model.text(r) for r in replies} == {"Paris", "Rome"}
    with pytest.raises(BadInput, match="answers 0 of 12"):
        answered_by(planted.model, prompts(True, 12))


def test_a_model_that_refuses_most_twins_is_asked_spare_prompts(planted: Planted):
    few = PromptSet("few", (*prompts(True, 12), *prompts(False, 4, 3)))
    spare = prompts(False, 12, 4)
    answered, replies = answered_by(planted.model, few, spare)
    assert answered.texts == [*few.texts[12:], *spare.texts] and len(replies) == 16
    enough, _ = answered_by(planted.model, prompts(False, 12, 5), spare)
    assert len(enough) == 12
    with pytest.raises(BadInput, match="answers 4 of 28"):
        answered_by(planted.model, few, prompts(True, 12, 6))


def test_calibration_asks_spare_prompts_too(planted: Planted):
    """As after a fine-tuning that garbles most answers, when the tuned model is scored again."""
    few = PromptSet("few", (*prompts(True, 12), *prompts(False, 4, 3)))
    args = planted.model, None, prompts(True, 12), few, UnitsConfig(score="wifv"), 0
    assert len(calibrate(*args, spare=prompts(False, 12, 4)).utility) == 16
    with pytest.raises(BadInput, match="answers 4 of 16"):
        calibrate(*args)


def test_the_exact_score_makes_roles_in_a_study(planted: Planted, data: Calibration, tmp_path):
    """Through `find_units`: a sample of units, layers of the user's choice, kept where a killed run resumes."""
    config = UnitsConfig(score="exact")
    args = planted.model, data, prompts(True, 16, 5), prompts(False, 16, 5), config
    table, result = find_units(*args, store=tmp_path / "exact")
    assert len(list((tmp_path / "exact").glob("*.npy"))) == 2
    scu, size = table.roles[Role.SCU], result.sizes["SCU"]
    assert result.base_refused == 1 and len(scu & planted.safety) == len(scu) > 0
    assert min(c.refused for c in size.curve) < result.base_refused or not size.reached
    part, _ = find_units(*args, layers=range(2, 3))
    for role in (Role.SCU, Role.UCU, Role.RU):
        assert all(part.roles[role].masks[k][[0, 1, 3]].sum() == 0 for k in Kind)
    path = tmp_path / "units.parquet"
    part.save(path)
    again = type(part).load(path)
    assert np.isnan(again.safety[Kind.MLP][0]).all() and again.roles[Role.SCU] == part.roles[Role.SCU]


def test_a_study_refuses_an_unknown_score_before_it_begins(tmp_path):
    config = study_config()
    config = config.model_copy(update={"units": UnitsConfig(score="luck")})
    with pytest.raises(BadInput, match="allowed are attribution"):
        run_study(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("aligned_at", "trained"), [(0.0, False), (0.5, True)])
def test_a_model_that_does_not_refuse_is_aligned_unless_the_user_says_otherwise(
    micro_folder: Path, tmp_path: Path, aligned_at: float, trained: bool
):
    align = {"aligned_at": aligned_at, "steps": 2, "batch_size": 4, "twins": 4, "ordinary": 8, "forms": 8}
    config = study_config(model=str(micro_folder)).model_copy(update={"align": AlignConfig(**align)})
    run_study(config, tmp_path, ["align"])
    result = RunFolder(tmp_path).load_stage("align")
    assert (result.training is not None) == trained and result.refused_before.value < 0.5
