"""`ssah-lens direction` as a user meets it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(*words: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "ssah_lens", "direction", *words]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def answer(micro, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, Path]:
    from ssah_lens.chat.save import save_model

    folder = tmp_path_factory.mktemp("direction")
    save_model(micro, folder / "micro")
    (folder / "own.txt").write_text("\n".join(f"How do I open door {i}?" for i in range(9)))
    out = folder / "out"
    words = ["--harmful", str(folder / "own.txt"), "--limit", "8", "--out", str(out), "--json", "--quiet"]
    got = run(str(folder / "micro"), *words)
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
    kept = json.loads((out / "direction.json").read_text())
    assert kept["vector"] == told["direction"]["vector"] and len(kept["vector"]) == 16
    assert len(list(out.glob("direction_*.png"))) >= 5


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
    got = run(*words)
    assert got.returncode == 2 and says in got.stderr and "Traceback" not in got.stderr
    assert not (ROOT / "x").exists()
