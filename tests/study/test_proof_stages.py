"""The proof's stages through a whole run folder, on the planted pair: from scores to the report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from planted import Planted, plant, prompts

from ssah_lens.chat.promptset import PromptSet
from ssah_lens.chat.save import save_model
from ssah_lens.config import (
    AblateConfig,
    MeasureConfig,
    ScoresConfig,
    StabilityConfig,
    StudyConfig,
    UnitsConfig,
)
from ssah_lens.results import Results
from ssah_lens.study.record import RunFolder
from ssah_lens.study.runner import run_study
from ssah_lens.units import Kind, Role, UnitTable

SEEDS = {"train": 0, "validation": 5, "test": 7}
STAGES = ["align", "refusal", "units", "scores", "stability", "contexts", "ablate", "sufficiency", "report"]


@pytest.fixture(scope="module")
def planted(make_tokenizer) -> Planted:
    return plant(make_tokenizer)


@pytest.fixture(scope="module")
def folder(planted: Planted, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("proof")
    for name, model in (("aligned", planted.model), ("unaligned", planted.unaligned)):
        save_model(model, out / name)
    (out / "own.txt").write_text("\n".join(prompts(True, 9, 11).texts))
    config = StudyConfig(
        model=str(out / "aligned"),
        unaligned=str(out / "unaligned"),
        measure=MeasureConfig(harmful=12, ordinary=8, twins=8, max_new_tokens=4, choices=9, prose=8),
        units=UnitsConfig(score="attribution", calibration=16, validation=12, steps=2, scu=(0.05,)),
        scores=ScoresConfig(exact_units=60, exact_prompts=2),
        stability=StabilityConfig(reruns=1),
        ablate=AblateConfig(
            controls=1,
            score_controls=1,
            modes=("mean", "resample"),
            doses=(0.01, 0.05),
            harmful=(str(out / "own.txt"),),
        ),
    )
    pairs = lambda split: (prompts(True, 24, SEEDS[split]), prompts(False, 24, SEEDS[split]))
    ordinary = lambda split: PromptSet("ordinary", prompts(False, 24, SEEDS[split] + 1).prompts)
    with pytest.MonkeyPatch.context() as patch:
        for place in ("chat.prompts", "study.stages", "study.units", "study.openings", "study.contexts"):
            patch.setattr(f"ssah_lens.{place}.pairs", pairs, raising=False)
            patch.setattr(f"ssah_lens.{place}.instructions", ordinary, raising=False)
        patch.setattr("ssah_lens.study.sizes.SHARES", {Role.UCU: (0.05,), Role.RU: (0.05,)})
        run_study(config, out / "run", STAGES)
    return out / "run"


@pytest.fixture(scope="module")
def results(folder: Path) -> Results:
    return RunFolder.existing(folder).results()


def test_the_scores_are_compared_and_the_report_says_which_is_best(results: Results, folder: Path):
    by = {s.name: s for s in results.scores.scores}
    assert {"mask", "snip", "wanda", "wifv", "contrast", "attribution", "attribution-ig", "random"} == set(by)
    assert results.scores.best in by and results.scores.shared["mask"]["mask"] == 1
    page = (folder / "report.html").read_text()
    assert "Which score is best" in page and "The winner on validation is" in page
    assert json.loads((folder / "results.json").read_text())["scores"]["scores"][0]["name"] == "attribution"


def test_the_configured_shares_are_those_tried_as_scu(results: Results):
    assert [c.share for c in results.units.sizes["SCU"].curve] == [0.05]


def test_every_unit_has_its_confidence(results: Results, folder: Path):
    table = UnitTable.load(folder / "units.parquet")
    assert set(table.frame()["confidence"]) <= {0.0, 1.0}
    assert "half against half" in results.stability.compared and results.stability.confidence["SCU"] > 0.3


def test_the_grid_has_modes_doses_groups_and_the_users_own_set(results: Results, planted: Planted):
    found = results.ablate
    assert {c.mode for c in found.conditions} == {"mean", "resample"} and [d.share for d in found.doses] == [0.01, 0.05]
    assert found.doses[1].behaviour.harmful.refused.value < found.baseline.harmful.refused.value
    assert found.sets[0].name and found.sets[0].baseline.refused.n == 9 and found.sets[0].baseline.refused.value == 1


def test_sufficiency_and_contexts_are_there(results: Results, folder: Path):
    names = [t.name for t in results.sufficiency.transplants]
    assert names[:2] == ["nothing", "SCU"] and names[-1] == "all units"
    assert results.sufficiency.transplants[0].harmful.refused.value == 0
    assert [c.values[-1] for c in results.sufficiency.faithfulness] == [1, 1, 1, 1]
    units = results.contexts.units
    assert units and all(u.kind in list(Kind) and set(u.examples) == {"harmful", "harmless"} for u in units)
    for name in ("scores_compared", "stability", "dose_response", "transplants", "faithfulness", "units_by_kind"):
        assert (folder / "figures" / f"{name}.png").is_file(), name
    assert not list((folder / "stages").glob("*.parts"))
