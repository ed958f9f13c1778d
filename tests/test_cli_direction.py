"""`ssah-lens direction` as a user meets it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import command

ROOT = Path(__file__).parents[1]
SMALL = """
[measure]
ordinary = 9
harmful = 8
[direction]
train = 8
validation = 8
borderline = 8
shuffles = 4
max_new_tokens = 4
distance = 8
onset = 8
prefill = [5]
chain = 8
"""


@pytest.fixture(scope="module")
def answer(micro, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, Path]:
    from ssah_lens.chat.save import save_model

    folder = tmp_path_factory.mktemp("direction")
    save_model(micro, folder / "micro")
    (folder / "own.txt").write_text("\n".join(f"How do I open door {i}?" for i in range(9)))
    out = folder / "out"
    (folder / "small.toml").write_text(SMALL)
    words = ["--harmful", str(folder / "own.txt"), "--config", str(folder / "small.toml"), "--out", str(out)]
    got = command("direction", str(folder / "micro"), *words, "--limit", "8", "--json", "--quiet")
    assert got.returncode == 0, got.stderr
    return json.loads(got.stdout), out


def test_json_has_what_the_contract_says(answer: tuple[dict, Path]):
    told, _ = answer
    wanted = {"layer", "position", "auroc", "ablated", "added", "interchange", "verdicts"}
    assert wanted <= set(told) and set(told["verdicts"]) == {"H1", "H2", "H3"}
    assert told["ablated"]["harmful"]["refused"]["n"] == 8 and told["added"]["harmless"]["refused"]["n"] > 8
    assert 0 <= told["layer"] < 2 and told["position"] < 0 and told["auroc"]["harm"]["low"] is not None
    assert told["interchange"] == {} and told["direction"]["skipped"]  # a random model decides nothing


def test_the_folder_holds_everything_and_the_figures(answer: tuple[dict, Path]):
    told, out = answer
    kept = json.loads((out / "results.json").read_text())
    assert kept["direction"]["vector"] == told["direction"]["vector"] and len(kept["direction"]["vector"]) == 16
    assert {row["id"]: row["verdict"] for row in kept["scorecard"]} == told["verdicts"]
    assert len(list((out / "figures").glob("direction_*.png"))) >= 5 and (out / "report.html").is_file()
    record = json.loads((out / "record.json").read_text())
    assert record["models"] and record["seed"] == 0 and not list((out / "stages").glob("*.parts"))


def test_a_finished_folder_is_read_back_and_refuses_other_settings(answer: tuple[dict, Path], tmp_path: Path):
    told, out = answer
    words = [str(out.parent / "micro"), "--out", str(out), "--json", "--quiet", "--limit", "8"]
    words += ["--config", str(out.parent / "small.toml")]
    own = ["--harmful", str(out.parent / "own.txt")]
    again = command("direction", *words, *own)
    assert again.returncode == 0 and json.loads(again.stdout) == told
    for changed, says in (([*own, "--seed", "1"], "another configuration"), ([], "other prompts")):
        got = command("direction", *words, *changed)
        assert got.returncode == 2 and says in got.stderr and got.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "words,says",
    [
        (["smollm2-135m"], "--out"),
        (["smollm2-135m", "--out", "README.md"], "another --out"),
        (["smollm2-135m", "--out", "x", "--harmful", "none.txt"], "no prompt file"),
        (["smollm2-135m", "--out", "x", "--profile", "slow"], "allowed are quick"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(words: list[str], says: str):
    got = command("direction", *words)
    assert got.returncode == 2 and says in got.stderr and "Traceback" not in got.stderr
    assert not (ROOT / "x").exists()
