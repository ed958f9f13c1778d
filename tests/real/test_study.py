"""The real 135M model through every stage, once per test run: killed after the first stage, resumed, run again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SMALL = """
[align]
steps = 46
batch_size = 8
ordinary = 160
answer_tokens = 8
forms = 80
twins = 60
[measure]
harmful = 12
ordinary = 8
twins = 8
max_new_tokens = 10
choices = 8
prose = 8
[units]
calibration = 20
validation = 20
steps = 5
[ablate]
controls = 1
other_controls = 1
score_controls = 2
modes = ["mean"]
[freeze]
steps = 3
"""


def study(folder: Path, config: Path) -> subprocess.Popen[str]:
    words = [sys.executable, "-m", "ssah_lens", "study", "--config", str(config), "--out", str(folder), "--json"]
    pipe = subprocess.PIPE
    env = {**os.environ, "TQDM_DISABLE": "1"}
    return subprocess.Popen(words, cwd=ROOT, stdout=pipe, stderr=pipe, text=True, env=env)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("config") / "small.toml"
    file.write_text(SMALL)
    return file


@pytest.fixture(scope="module")
def folder(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder whose run was killed in the stage after `align` and then resumed."""
    out = tmp_path_factory.mktemp("run") / "study"
    first = study(out, config)
    started = out / "stages" / "align.json"
    deadline = time.monotonic() + 900
    while not started.exists() and first.poll() is None and time.monotonic() < deadline:
        time.sleep(0.2)
    time.sleep(3)
    first.send_signal(signal.SIGKILL)
    _, errors = first.communicate(timeout=60)
    assert started.exists(), errors
    assert not (out / "results.json").exists()
    stamp = started.stat().st_mtime_ns
    second = study(out, config)
    output, errors = second.communicate(timeout=1500)
    assert second.returncode == 0, errors
    assert started.stat().st_mtime_ns == stamp, "a finished stage was done again"
    assert json.loads(output)["scorecard"] and "stages to do: refusal, units, ablate, freeze, report" in errors
    return out


@pytest.fixture(scope="module")
def results(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


def test_alignment_teaches_refusal(results: dict):
    align = results["align"]
    before, after = align["refused_before"]["value"], align["refused_after"]["value"]
    assert before < 0.3 and after > before + 0.4
    assert align["training"]["losses"][0] is not None and len(align["training"]["losses"]) == 46


def test_plain_transformers_loads_the_aligned_folder(folder: Path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder / "aligned")
    tokenizer = AutoTokenizer.from_pretrained(folder / "aligned")
    assert model.config.num_hidden_layers == 30 and tokenizer.chat_template
    assert list((folder / "aligned").glob("*.safetensors")) and not list((folder / "aligned").glob("*.bin"))


def test_roles_are_disjoint_and_cover_all_units(folder: Path, results: dict):
    from ssah_lens.units import Role, UnitTable

    table = UnitTable.load(folder / "units.parquet")
    assert sum(len(table.roles[r]) for r in Role) == table.grid.n_units == 30 * (1536 + 9)
    assert sum(r["n"] for r in results["units"]["roles"].values()) == table.grid.n_units
    assert 0 < results["units"]["roles"]["SCU"]["units"] <= 0.03


def test_every_role_is_ablated_beside_a_random_set(results: dict):
    conditions = results["ablate"]["conditions"]
    ways = {(c["role"], c["mode"]) for c in conditions if c["control"] is None}
    assert ways == {(r, "mean") for r in ("SCU", "UCU", "CU", "RU")}
    scu_twins = [c for c in conditions if c["role"] == "SCU" and c["control"] is not None]
    assert scu_twins and all(c["overlap"] == 0 for c in scu_twins)
    assert not [c for c in conditions if c["role"] == "CU" and c["control"] is not None], "twins of CU are CU"
    assert len(results["ablate"]["score_controls"]["SCU"]) == 2


def test_the_learnt_units_matter_more_than_random_ones(results: dict):
    conditions = results["ablate"]["conditions"]
    pick = lambda control: next(
        c for c in conditions if (c["role"], c["mode"]) == ("SCU", "mean") and (c["control"] is None) is not control
    )
    score = lambda c: c["behaviour"]["refusal_score"]["value"]
    assert score(pick(False)) < score(pick(True))


def test_frozen_parameters_are_bit_identical(results: dict):
    arms = {a["name"]: a["training"] for a in results["freeze"]["arms"]}
    assert set(arms) == {"full", "freeze SCU + top CU", "freeze random"}
    assert arms["full"]["unchanged"] is None and arms["full"]["frozen_parameters"] == 0
    frozen = [arms["freeze SCU + top CU"], arms["freeze random"]]
    assert all(a["unchanged"] is True and a["frozen_parameters"] > 1_000_000 for a in frozen)
    assert all(a["losses"] != arms["full"]["losses"] for a in frozen)


def test_the_report_stands_alone(folder: Path):
    page = (folder / "report.html").read_text()
    assert "Scorecard" in page or "scorecard" in page
    for attribute in ('src="http', "src='http", 'href="http', "@import", "cdn."):
        assert attribute not in page
    assert len(list((folder / "figures").glob("*.png"))) >= 6


def test_the_record_says_where_it_came_from(folder: Path):
    record = json.loads((folder / "record.json").read_text())
    assert record["versions"]["torch"] and record["seed"] == 0 and record["threads"] >= 1
    assert set(record["seconds"]) == {"align", "refusal", "units", "ablate", "freeze", "report"}
    assert any(h for model in record["models"].values() for h in model.values())
    assert (folder / "config.toml").is_file() and (folder / "log.jsonl").is_file()


def test_a_finished_study_is_not_done_again(folder: Path, config: Path):
    before = {p: p.stat().st_mtime_ns for p in (folder / "stages").iterdir()}
    again = study(folder, config)
    _, errors = again.communicate(timeout=300)
    assert again.returncode == 0 and "stages to do: report" in errors
    assert {p: p.stat().st_mtime_ns for p in (folder / "stages").iterdir()} == before
