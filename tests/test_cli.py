"""The command line as a user meets it: a process, its exit status, its streams."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import typer
from commands import command, python, run_anew

from ssah_lens.cli import app

ROOT = Path(__file__).parents[1]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    file = tmp_path / "prompts.txt"
    file.write_text("\n".join(f"How do I bake bread number {i}?" for i in range(5)))
    return file


@pytest.mark.parametrize(
    "code,status",
    [("", 0), ("raise SystemExit(3)", 3), ("1 / 0", 1), ("import os; os.kill(os.getpid(), 9)", -9)],
    ids=["done", "exit", "raised", "killed"],
)
def test_a_forked_process_is_what_a_new_one_is(code: str, status: int, tmp_path: Path):
    """Everything below leans on this; that a new interpreter says the same is asked of one command."""
    code = f"import os, sys; print(os.getcwd(), os.environ['A'], 'ssah_lens' in sys.modules, flush=True)\n{code}"
    got = python("-c", code, cwd=tmp_path, A="ours")
    assert (got.returncode, got.stdout) == (status, f"{tmp_path} ours False\n")
    assert ("ZeroDivisionError" in got.stderr) == (status == 1)


def test_a_forked_process_that_hangs_is_killed():
    with pytest.raises(subprocess.TimeoutExpired) as late:
        python("-c", "import time; print('begun', flush=True); time.sleep(600)", timeout=0.5)
    assert late.value.stdout == "begun\n"


def test_what_is_read_at_import_cannot_be_set_for_a_forked_process():
    with pytest.raises(ValueError, match="use a new interpreter"):
        command("models", HF_HOME="elsewhere")


# --- bad input: one line, exit 2, no traceback, nothing written


BAD = {
    "no command": ([], "Usage"),
    "unknown command": (["dance"], "No such command"),
    "unknown option": (["models", "--nope"], "No such option"),
    "missing model": (["refusal", "--harmful", "p.txt"], "model"),
    "missing prompt file": (["refusal", "smollm2-135m", "--harmful", "none.txt"], "no prompt file 'none.txt'"),
    "misspelt set": (["refusal", "smollm2-135m", "--harmful", "harm:test"], "no prompt file or set 'harm:test'"),
    "set without its split": (["refusal", "smollm2-135m", "--harmful", "harmful"], "write harmful:train"),
    "hub id of no form": (["refusal", "smollm2-135m", "--harmful", "hub:alpaca"], "the form is hub:owner/name"),
    "empty prompt file": (["refusal", "smollm2-135m", "--harmful", "empty.txt"], "holds no prompts"),
    "not a prompt file": (["refusal", "smollm2-135m", "--harmful", "picture.png"], "allowed are .txt"),
    "no known column": (["refusal", "smollm2-135m", "--harmful", "columns.csv"], "needs one of prompt"),
    "broken json": (["refusal", "smollm2-135m", "--harmful", "broken.jsonl"], "line 2 is not valid JSON"),
    "not utf-8": (["refusal", "smollm2-135m", "--harmful", "latin.txt"], "not UTF-8"),
    "unknown judge": (["refusal", "smollm2-135m", "--harmful", "good.txt", "--judge", "me"], "allowed are keyword"),
    "negative limit": (["refusal", "smollm2-135m", "--harmful", "good.txt", "--limit", "-1"], "--limit"),
    "unknown model": (["refusal", "nobody", "--harmful", "good.txt"], "no model 'nobody'"),
    "unknown model to fetch": (["fetch", "nobody"], "smollm2-135m"),
    "unknown dtype": (["refusal", "smollm2-135m", "--harmful", "good.txt", "--dtype", "int3"], "allowed are float32"),
    "unknown profile": (["study", "--profile", "slow", "--out", "run"], "allowed are quick"),
    "unknown stage": (["study", "--stages", "dance", "--out", "run"], "allowed are align"),
    "unknown key in config": (["study", "--config", "bad.toml", "--out", "run"], "align.stepz"),
    "config that is no TOML": (["study", "--config", "good.txt", "--out", "run"], "not valid TOML"),
    "no run folder": (["report", "nowhere"], "not a run folder"),
    "unknown score": (["units", "smollm2-135m", "--out", "u.parquet", "--score", "luck"], "allowed are attribution"),
    "layers upside down": (["units", "smollm2-135m", "--out", "u.parquet", "--layers", "9-3"], "A-B"),
    "unknown role": (
        ["ablate", "smollm2-135m", "--units", "u", "--harmful", "good.txt", "--harmless", "good.txt", "--roles", "X"],
        "allowed are SCU, UCU, CU, RU",
    ),
    "unknown mode": (
        ["ablate", "smollm2-135m", "--units", "u", "--harmful", "good.txt", "--harmless", "good.txt", "--mode", "x"],
        "allowed are mean, zero",
    ),
    "no answers to tune on": (["finetune", "smollm2-135m", "--data", "good.txt", "--out", "t"], "has no answer"),
    "unknown method": (
        ["finetune", "smollm2-135m", "--data", "good.txt", "--out", "t", "--method", "magic"], "allowed are full",
    ),
    "nothing to patch": (["patch", "smollm2-135m", "--out", "o"], "give --clean TEXT and --corrupted TEXT"),
    "half a pair": (["patch", "smollm2-135m", "--out", "o", "--clean", "a"], "needs two prompts"),
    "pairs without columns": (["patch", "smollm2-135m", "--out", "o", "--pairs", "columns.csv"], "pairs need harmful"),
    "unknown site": (
        ["patch", "smollm2-135m", "--out", "o", "--clean", "a", "--corrupted", "b", "--site", "norm"],
        "allowed are resid, attn, mlp, head, neuron",
    ),
    "unknown policy": (
        ["finetune", "smollm2-135m", "--data", "tune.jsonl", "--out", "t", "--policy", "x"], "allowed are blocks, all",
    ),
    "no units file to compare": (["transfer", "none.parquet", "none.parquet"], "not a whole units file"),
    "learning rate of nothing": (
        ["finetune", "smollm2-135m", "--data", "good.txt", "--out", "t", "--lr", "0"], "--lr is 0",
    ),
}  # fmt: skip


def test_the_help_of_units_names_every_score():
    """Written out there, so that `--help` need not import the scores."""
    from ssah_lens.cli.options import SCORES
    from ssah_lens.score import NAMES

    assert [name.split(" ")[0] for name in SCORES.split(", ")] == list(NAMES)


def commands(group, path: tuple[str, ...] = ()) -> Iterator[tuple[str, object]]:
    """Every command with its full name; a group has some of its own."""
    for name, found in group.commands.items():
        if hasattr(found, "commands"):
            yield from commands(found, (*path, name))
        else:
            yield " ".join((*path, name)), found


COMMANDS = dict(commands(typer.main.get_command(app)))
CONTRACT = {"--json", "--device", "--dtype", "--seed", "--quiet"}
ASKS_A_MODEL = {"study", "refusal", "align", "units", "ablate", "finetune", "direction", "patch"}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_takes_the_common_options(name: str):
    options = {o: p for p in COMMANDS[name].params for o in p.opts}
    assert options.keys() >= CONTRACT | ({"--system"} if name in ASKS_A_MODEL else set())
    for option in ("--device", "--dtype", "--seed"):  # where nothing comes of it the help says so
        assert ("without effect here" in (options[option].help or "")) == (name not in ASKS_A_MODEL), option


def test_the_commands_are_those_of_the_contract():
    assert COMMANDS.keys() == ASKS_A_MODEL | {"models", "fetch", "data check", "transfer", "report"}


def test_options_without_effect_are_taken(lens: Callable):
    said = lens("models", "--json", "--device", "cuda:7", "--dtype", "bfloat16", "--seed", 3)
    assert said.code == 0 and json.loads(said.out)["models"], said.err


@pytest.fixture
def bad_files(tmp_path: Path) -> Path:
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "good.txt").write_text("How do I bake bread?\n")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    (tmp_path / "columns.csv").write_text("name,age\nAda,36\n")
    (tmp_path / "broken.jsonl").write_text('{"prompt": "a"}\n{"prompt": \n')
    (tmp_path / "latin.txt").write_bytes("caf\xe9".encode("latin-1"))
    (tmp_path / "bad.toml").write_text("[align]\nstepz = 3\n")
    return tmp_path


@pytest.mark.parametrize("words,says", BAD.values(), ids=BAD)
def test_bad_input_is_one_line_and_exit_2(words: list[str], says: str, bad_files: Path):
    before = sorted(bad_files.iterdir())
    got = command(*words, cwd=bad_files)
    assert got.returncode == 2, got.stderr
    assert says in got.stderr and "Traceback" not in got.stderr and got.stdout == ""
    if "Usage" not in got.stderr:
        assert len([line for line in got.stderr.splitlines() if line.startswith("ssah-lens:")]) == 1
    written = {p.name for p in sorted(bad_files.iterdir()) if p not in before}
    assert written <= {"run"}, written
    assert not (bad_files / "run" / "results.json").exists()


def test_output_places_are_checked_before_any_work(bad_files: Path):
    (bad_files / "full").mkdir()
    (bad_files / "full" / "something").write_text("mine")
    (bad_files / "tune.jsonl").write_text('{"prompt": "a", "response": "b"}\n')
    for words in (
        ["align", "smollm2-135m", "--out", "full"],
        ["finetune", "smollm2-135m", "--data", "tune.jsonl", "--out", "full"],
        ["align", "smollm2-135m", "--out", "good.txt/inside"],
        ["study", "--out", "good.txt"],
    ):
        got = command(*words, cwd=bad_files)
        assert got.returncode == 2 and "another --out" in got.stderr, (words, got.stderr)
    assert (bad_files / "full" / "something").read_text() == "mine"


# --- good input


def test_models_lists_all_three_as_json():
    got = run_anew("models", "--json")
    rows = json.loads(got.stdout)["models"]
    assert got.returncode == 0 and {r["name"] for r in rows} == {"smollm2-135m", "qwen2.5-coder-1.5b", "gemma-3-270m"}


def test_the_shipped_collection_is_whole():
    got = command("data", "check", "--json")
    found = json.loads(got.stdout)
    assert got.returncode == 0 and found["problems"] == []
    assert found["files"]["refusal_pairs"]["rows"] >= 600
    assert found["matching"]["leak"]["matched"]["value"] < 0.75 < found["matching"]["leak"]["unmatched"]["value"]
    table = command("data", "check", COLUMNS="160").stdout
    assert "no problems" in table and "cybercrime" in table and "harmful side scores above its own twin" in table


def test_a_shipped_set_or_a_file_can_be_asked(micro_folder: Path):
    got = command("refusal", str(micro_folder), "--harmful", "borderline_unsafe", "--limit", "3", "--json")
    assert got.returncode == 0, got.stderr
    assert json.loads(got.stdout)["harmful"]["refused"]["n"] == 3


def test_refusal_prints_one_json_object_and_nothing_else(micro_folder: Path, prompts: Path, tmp_path: Path):
    table = tmp_path / "harmbench.csv"
    table.write_text('Behavior,Category\n"one, with\na line break",x\nSECOND,y\n')
    files = ["--harmful", str(table), "--harmless", str(prompts)]
    got = command("refusal", str(micro_folder), *files, "--max-new-tokens", "4", "--json")
    assert got.returncode == 0, got.stderr
    found = json.loads(got.stdout)
    assert found["harmful"]["refused"]["n"] == 2 and found["harmless"]["refused"]["n"] == 5
    shares = [found["harmful"][k]["value"] for k in ("refused", "fulfilled", "incoherent")]
    assert sum(shares) == pytest.approx(1)
    assert set(found["harmful"]["refused"]) == {"value", "low", "high", "n"}


def test_quiet_says_nothing_on_standard_error(micro_folder: Path, prompts: Path):
    """In a new interpreter, since libraries talk while they are imported; the other commands here are forked."""
    words = ["refusal", str(micro_folder), "--harmful", str(prompts), "--max-new-tokens", "2", "--quiet"]
    got, forked = run_anew(*words), command(*words)
    assert got.returncode == 0 and got.stderr == "" and "refused" in got.stdout
    assert (forked.returncode, forked.stderr, forked.stdout) == (0, "", got.stdout)


def test_ablate_refuses_units_of_another_shape(micro_folder: Path, micro_qwen, prompts: Path, tmp_path: Path):
    import numpy as np

    from ssah_lens.score.base import Scores
    from ssah_lens.score.roles import Sizes, assign
    from ssah_lens.units import Kind, UnitGrid, UnitTable

    grid = UnitGrid(3, 10, 2, 30, 60, 2000)
    values = {k: np.arange(3.0 * grid.width(k)).reshape(3, -1) for k in Kind}
    scores = Scores(values, values, signed=False)
    table = UnitTable(grid, values, values, assign(grid, scores, Sizes(0.2, 0.1, 0.1)), {"model": "other"})
    table.save(tmp_path / "u.parquet")
    got = command(
        "ablate", str(micro_folder), "--units", str(tmp_path / "u.parquet"), "--harmful", str(prompts), "--harmless",
        str(prompts),
    )  # fmt: skip
    assert got.returncode == 2 and "make a units file for this model" in got.stderr and "Traceback" not in got.stderr


def test_finetune_freezes_bit_for_bit_and_saves_what_transformers_loads(micro_folder: Path, micro, tmp_path: Path):
    import numpy as np
    import torch
    from transformers import AutoModelForCausalLM

    from ssah_lens.score.base import Scores
    from ssah_lens.score.roles import Sizes, assign
    from ssah_lens.units import Kind, Role, UnitTable

    rng = np.random.default_rng(0)
    values = {k: rng.normal(size=(micro.grid.n_layers, micro.grid.width(k))) for k in Kind}
    roles = assign(micro.grid, Scores(values, values, signed=True), Sizes(0.2, 0.3, 0.1))
    UnitTable(micro.grid, values, values, roles, {"model": "elsewhere"}).save(tmp_path / "u.parquet")
    data = tmp_path / "tune.jsonl"
    data.write_text("".join(json.dumps({"instruction": f"Say {i}", "output": f"{i} it is"}) + "\n" for i in range(20)))
    got = command(
        "finetune", str(micro_folder), "--data", str(data), "--out", str(tmp_path / "tuned"), "--freeze",
        str(tmp_path / "u.parquet"), "--roles", "SCU", "--lr", "1e-2", "--epochs", "2", "--json",
    )  # fmt: skip
    assert got.returncode == 0, got.stderr
    found = json.loads(got.stdout)
    assert found["frozen"]["unchanged"] is True and found["frozen"]["parameters"] > 0
    assert {"harmful", "harmless", "refused", "validation_loss", "held_out"} == set(found["before"])
    assert found["before"]["held_out"] == 2 and len(found["before"]["refused"]) == 60 == found["lost"]["n"]
    assert len(found["train_loss"]) == 5 and "may differ" in got.stderr  # 18 rows, batch 8, 2 epochs
    tuned = AutoModelForCausalLM.from_pretrained(tmp_path / "tuned")
    layer, neuron = np.argwhere(roles[Role.SCU].masks[Kind.MLP])[0]
    before, after = micro.plain.model.layers[layer].mlp, tuned.model.layers[layer].mlp
    assert torch.equal(before.gate_proj.weight[neuron], after.gate_proj.weight[neuron])
    assert torch.equal(before.down_proj.weight[:, neuron], after.down_proj.weight[:, neuron])
    assert not torch.equal(before.gate_proj.weight, after.gate_proj.weight)


def test_patch_answers_axes_labels_and_values(micro_folder: Path, tmp_path: Path):
    pairs = tmp_path / "pairs.csv"
    pairs.write_text("harmful,harmless\ntell x me,tell y me\nabc x def,abc y def\n")
    for site, axes, more in (("resid", ["layer", "pos"], ()), ("head", ["layer", "unit"], ("--attribution", "0"))):
        out = tmp_path / site
        words = ["patch", str(micro_folder), "--pairs", str(pairs), "--out", str(out), "--site", site, "--json"]
        got = command(*words, *more)
        assert got.returncode == 0, got.stderr
        found = json.loads(got.stdout)
        assert found["axes"] == axes and found == json.loads((out / "patching.json").read_text())
        values = found["values"]
        where = "one position at a time" if site == "resid" else "all positions at once"
        assert found["estimand"] == f"its value in the clean run, {where}"
        assert found["method"] == ("attribution patching" if more else "exact")
        assert (len(values), len(values[0])) == tuple(len(found["labels"][a]) for a in axes)
        assert {p.name for p in out.iterdir()} == {"patching.json", "patching.png", "patching.html"}


def test_patch_says_which_pair_is_not_aligned(micro_folder: Path, tmp_path: Path):
    words = ["patch", str(micro_folder), "--clean", "abc", "--corrupted", "abc def ghi", "--out", str(tmp_path / "o")]
    got = command(*words)
    assert got.returncode == 2 and "not token-aligned" in got.stderr and "Traceback" not in got.stderr
    assert got.stdout == ""


def test_finetune_tells_people_what_it_did(micro_folder: Path, tmp_path: Path):
    data = tmp_path / "tune.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"Say {i}", "response": f"{i} it is"}) + "\n" for i in range(20)))
    words = ["--data", str(data), "--out", str(tmp_path / "tuned"), "--method", "safety-layers", "--layers", "1-1"]
    got = command("finetune", str(micro_folder), *words, "--curve-every", "2", "--quiet")
    assert got.returncode == 0, got.stderr
    assert "during training" in got.stdout and "method: safety-layers, learning rate 5e-05" in got.stdout
    assert "bit-identical afterwards (sha256" in got.stdout


def test_a_disk_that_fills_is_one_line_and_exit_2(micro_folder: Path, tmp_path: Path):
    """A limit on file size stands for a full disk: the weights do not fit."""
    data = tmp_path / "tune.jsonl"
    data.write_text('{"prompt": "Say it", "response": "It is said"}\n')
    words = ["finetune", str(micro_folder), "--data", str(data), "--out", str(tmp_path / "out" / "tuned"), "--json"]
    got = command(*words, file_size=20_000)
    assert got.returncode == 2 and "Traceback" not in got.stderr and got.stdout == "", got.stderr
    assert "cannot save the model" in got.stderr and "File too large" in got.stderr
    assert list((tmp_path / "out").iterdir()) == []


def test_transfer_prints_shares_of_all_units(micro, tmp_path: Path):
    import numpy as np

    from ssah_lens.score.base import Scores
    from ssah_lens.score.roles import Sizes, assign
    from ssah_lens.units import Kind, UnitTable

    rng = np.random.default_rng(0)
    files = []
    for name in ("before", "after", "null"):
        values = [{k: rng.normal(size=(2, micro.grid.width(k))) for k in Kind} for _ in range(2)]
        roles = assign(micro.grid, Scores(*values, signed=True), Sizes(0.2, 0.3, 0.1))
        table = UnitTable(micro.grid, *values, roles, {"score": "mask", "model": name, "signed": True, "layers": None})
        table.save(tmp_path / f"{name}.parquet")
        files.append(str(tmp_path / f"{name}.parquet"))
    picture = tmp_path / "transfer.svg"
    got = command("transfer", files[0], files[1], "--null", files[2], "--picture", str(picture), "--json")
    assert picture.read_text(encoding="utf-8").startswith("<?xml")
    assert got.returncode == 0, got.stderr
    found = json.loads(got.stdout)
    assert set(found["matrix"]) == {"SCU", "UCU", "CU", "RU"} == set(found["matrix"]["SCU"])
    assert sum(v for row in found["matrix"].values() for v in row.values()) == pytest.approx(1)
    assert set(found["held"]["SCU"]) == {"value", "low", "high", "n"} and found["null"]["matrix"]
    table = command("transfer", *files[:2])
    assert table.returncode == 0 and "by chance" in table.stdout and "Traceback" not in table.stderr
    assert "without --null" in table.stderr and "without --null" not in got.stderr
    assert "both units files were made from 'before'" in command("transfer", files[0], files[0]).stderr


def test_tables_of_a_terminal_cut_nothing():
    table = command("models", COLUMNS="60").stdout
    assert "qwen2.5-coder-1.5b" in table and "…" not in table


def test_ctrl_c_is_status_130(micro_folder: Path, prompts: Path):
    words = ["refusal", str(micro_folder), "--harmful", str(prompts), "--max-new-tokens", "400"]
    job = subprocess.Popen(
        [sys.executable, "-m", "ssah_lens", *words],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # background jobs of a shell ignore it
    )
    assert "loading" in job.stderr.readline()
    time.sleep(0.1)  # a micro model is loaded, and may have answered, within a second
    job.send_signal(signal.SIGINT)
    output, errors = job.communicate(timeout=120)
    assert job.returncode == 130, errors
    assert output == "" and "interrupted" in errors and "Traceback" not in errors


def test_importing_is_light():
    code = "import sys, ssah_lens.cli; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT)
    assert done.returncode == 0
