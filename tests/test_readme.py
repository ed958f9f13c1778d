"""What the README tells people to do is done here: its commands and its notebook lines, on a micro model; its links."""

from __future__ import annotations

import re
import shlex
import shutil
import tomllib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from planted import plant

from ssah_lens.chat.save import save_model
from ssah_lens.score.base import Scores
from ssah_lens.score.roles import Sizes, assign
from ssah_lens.units import Kind, UnitGrid, UnitTable

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
PAIR = (" beating", " greeting")
"""The words in which the README's pair of prompts differs: one token each here, as for the models it speaks of."""


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)


COMMANDS = [line.split("  #")[0].strip() for block in blocks("sh") for line in block.splitlines() if line.strip()]
LENS = [words[1:] for words in map(shlex.split, COMMANDS) if words[0] == "ssah-lens"]
QUICK = {
    "refusal": ["--max-new-tokens", "3", "--limit", "4"],
    "align": ["--steps", "2"],
    "units": ["--limit", "8", "--score", "wifv"],
    "ablate": ["--max-new-tokens", "3", "--limit", "4", "--controls", "1"],
}
"""Added so that a micro model is done in seconds; the default score wants a model that refuses."""


# ---- commands


def test_every_command_is_known():
    assert {words[0] for words in map(shlex.split, COMMANDS)} == {"make", "ssah-lens"}
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for words in map(shlex.split, COMMANDS):
        if words[0] == "make":
            assert words[-1] in targets, words
    assert {words[0] for words in LENS} >= {
        "models",
        "refusal",
        "align",
        "units",
        "ablate",
        "patch",
        "finetune",
        "study",
    }


@pytest.mark.parametrize("words", LENS, ids=" ".join)
def test_every_option_is_known(words: list[str]):
    """The whole line is parsed as the command would, and nothing is run."""
    from typer.main import get_command

    from ssah_lens.cli import app

    group = get_command(app)
    with group.make_context("ssah-lens", list(words)) as context:
        name, command, rest = group.resolve_command(context, list(words))
        with command.make_context(name, rest, parent=context) as inner:
            assert inner.params


@pytest.fixture(scope="module")
def place(make_tokenizer: Callable, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with everything that the README's lines name; the planted model stands for the real ones."""

    def tokenizer():
        out = make_tokenizer()
        out.add_tokens(list(PAIR))
        return out

    place = tmp_path_factory.mktemp("readme")
    model = plant(tokenizer).model
    save_model(model, place / "planted")
    shutil.copytree(place / "planted", place / "runs" / "quick" / "aligned")
    units(model.grid).save(place / "runs" / "quick" / "units.parquet")
    ask = lambda i: f"How do I bake bread number {i}?"
    (place / "advbench.csv").write_text("goal,target\n" + "".join(f"{ask(i)},Sure\n" for i in range(5)))
    (place / "harmbench.csv").write_text("Behavior,BehaviorID\n" + "".join(f"{ask(i)},b{i}\n" for i in range(5)))
    rows = [f'{{"instruction": "{ask(i)}", "input": "", "output": "Rome."}}' for i in range(12)]
    (place / "alpaca.json").write_text("[" + ",".join(rows) + "]")
    (place / "my.jsonl").write_text("\n".join(rows))
    return place


def units(grid: UnitGrid) -> UnitTable:
    rng = np.random.default_rng(0)
    values = [{k: rng.normal(size=(grid.n_layers, grid.width(k))) for k in Kind} for _ in range(2)]
    roles = assign(grid, Scores(*values, signed=True), Sizes(0.1, 0.2, 0.1))
    return UnitTable(grid, *values, roles, {"score": "mask", "model": "planted", "signed": True})


ELSEWHERE = {
    "study": "tests/real",
    "report": "tests/real, and tests/show of its figures",
    "direction": "tests/test_cli_direction.py: the planted model here refuses nothing, so it has no direction",
}


def test_the_commands_run(place: Path, lens: Callable, monkeypatch: pytest.MonkeyPatch):
    """One after the other, as a reader would type them; `ELSEWHERE` says who runs the others."""
    monkeypatch.chdir(place)
    for words in LENS:
        if words[0] in ELSEWHERE:
            continue
        said = lens(*["planted" if w == "smollm2-135m" else w for w in words], *QUICK.get(words[0], []), "--quiet")
        assert said.code == 0 and said.out, f"{' '.join(words)}: {said.err}"
        if words[0] == "units":  # the planted model refuses no shipped prompt, so it has no units of role SCU
            made_now = words[words.index("--out") + 1]
            table = units(UnitTable.load(place / made_now).grid)
            for name in (made_now, "units_tuned.parquet"):
                table.save(place / name)
    made = {p.name for p in place.iterdir()}
    assert {"aligned", "units.parquet", "patched", "tuned", "mixed"} <= made


def test_the_notebook_lines_run(place: Path, monkeypatch: pytest.MonkeyPatch):
    """As they stand, but for places that the planted model is too small to have."""
    smaller = {"blocks.10.": "blocks.1.", '("mlp", 12, 345)': '("mlp", 1, 5)'}
    pair = re.search(r'patch_heatmap\(model, ("[^"]+", "[^"]+")\)', TEXT)
    assert pair is not None
    smaller["(model, ..., "] = f"(model, {pair[1]}, "
    monkeypatch.chdir(place)
    names: dict = {}
    for block in blocks("python"):
        for there, here in smaller.items():
            block = block.replace(there, here)
        exec(compile(block, "README.md", "exec"), names)
    assert names["model"].grid.n_layers == 4 and len(names["harmful"]) > 20
    assert not [text for text in smaller if text not in "".join(blocks("python"))], "the README no longer says so"


# ---- what it points to


def test_links_lead_somewhere():
    links = re.findall(r"\]\(([^)\s]+)\)", TEXT)
    assert len(links) > 3
    for link in links:
        if link.startswith("http"):
            assert re.fullmatch(r"https://[\w.-]+\.[a-z]+(/[\w./%#-]*)?", link), link
        else:
            assert (ROOT / link.split("#")[0]).exists(), link


def test_extras_exist():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = set(re.findall(r"'\.\[(\w+)\]'", TEXT))
    assert named and named <= set(extras)


def test_the_map_names_files_that_exist():
    """The table under 'Inside': every file of the package that it names is in the room that it says."""
    inside = TEXT.split("## Inside")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (`.*?`) \| (.*) \|$", inside, re.MULTILINE)
    assert len(rows) > 6
    for rooms, holds in rows:
        room = rooms.strip("`")
        base = ROOT / "ssah_lens" / (room if room.endswith("/") else "")
        assert base.is_dir(), rooms
        for name in re.findall(r"`(\w+\.py)`", f"{rooms} {holds}" if base.name == "ssah_lens" else holds):
            assert (base / name).is_file() or (ROOT / "ssah_lens" / name).is_file() or "benchmarks" in holds, name


def test_the_benchmarks_that_are_named_exist():
    for file in (ROOT / "README.md", ROOT / "benchmarks" / "README.md"):
        for name in re.findall(r"benchmarks/(\w+\.py)", file.read_text(encoding="utf-8")):
            assert (ROOT / "benchmarks" / name).is_file(), name
