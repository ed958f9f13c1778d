"""The notebooks: run from top to bottom on a tiny model, and kept with real outputs that hold nothing of any machine.

One kernel runs them all, emptied in between: starting it and importing torch costs more than the notebooks do.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import nbformat
import pytest
from tiny_chat import tiny_chat

import ssah_lens as sl
from ssah_lens.chat.model import ChatModel
from ssah_lens.chat.save import save_model
from ssah_lens.config import StudyConfig, study_config
from ssah_lens.errors import BadInput
from ssah_lens.study.ready import aligned, aligned_units, kept_run
from ssah_lens.study.runner import run_study

FOLDER = Path(__file__).parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
SMALL = {"N": 8, "PAIRS": 2, "TWINS": 1, "CONTEXTS": 3, "STEPS": 2, "EVERY": 1, "CALIBRATION": 20}
"""Sizes for the tests, as far as a notebook has them."""
EXERCISES = ("02", "03", "04", "05")
MOST_BYTES = 1_500_000


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(model folder, run folder) of the tiny model; it refuses already, so nothing is trained."""
    place = tmp_path_factory.mktemp("tiny")
    folder = save_model(tiny_chat(), place / "tiny-chat")
    config = study_config(
        model=str(folder),
        measure={"harmful": 8, "ordinary": 8, "twins": 8, "choices": 8, "prose": 8, "max_new_tokens": 4},
        units={"score": "wifv", "calibration": 20, "validation": 12},
    )
    run_study(config, place / "run", ["align"])
    return folder, place / "run"


# ---- an aligned model and its units, made when they are missing


def test_stages_that_are_missing_are_run_once(tiny_run: tuple[Path, Path]):
    folder, run = tiny_run
    told: list[str] = []
    units = aligned_units(run=run, note=told.append)
    assert any("stages to do: refusal, units" in line for line in told)
    assert len(units.roles[sl.Role.SCU]) > 0
    told.clear()
    model = aligned(run=run, note=told.append)
    assert aligned_units(run=run, note=told.append).grid == model.grid == units.grid
    assert not told, "nothing is done twice"
    assert model.name == folder.name, "it refuses already: it is the given model"


def test_a_run_folder_is_kept_in_the_cache_by_its_settings(tiny_run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SSAH_LENS_CACHE", str(tmp_path))
    folder, _ = tiny_run
    model = aligned(str(folder), note=lambda line: None)
    (kept,) = (tmp_path / "runs").iterdir()
    assert kept == kept_run(study_config(model=str(folder))) and (kept / "stages" / "align.json").is_file()
    assert isinstance(model, ChatModel)
    other = StudyConfig(model=str(folder), seed=1)
    assert kept_run(other) != kept and kept_run(other).parent == kept.parent
    with pytest.raises(BadInput, match="not a run folder"):
        aligned(run=tmp_path / "nowhere")


def test_the_explorer_of_a_run_shows_texts(tiny_run: tuple[Path, Path]):
    """Stage `contexts` keeps what the units that matter respond to; the report's explorer carries it."""
    from ssah_lens.study.explored import FILE, load_contexts
    from ssah_lens.study.record import RunFolder
    from ssah_lens.study.runner import run_study

    _, run = tiny_run
    units = aligned_units(run=run)
    run_study(RunFolder.existing(run).config, run, ["contexts"])
    contexts = load_contexts(run)
    assert len(contexts) == len(units.units([sl.Role.SCU, sl.Role.UCU]))
    assert all(set(c.examples) == {"harmful", "harmless"} and c.direct is not None for c in contexts)
    kept = (run / FILE).read_bytes()
    (run / FILE).write_bytes(kept[:100])
    with pytest.raises(BadInput, match="damaged"):
        load_contexts(run)
    (run / FILE).write_bytes(kept)


# ---- running them


@pytest.fixture(scope="module")
def kernel(tiny_run: tuple[Path, Path]) -> Iterator[object]:
    from jupyter_client.manager import start_new_kernel

    paths = os.pathsep.join([str(FOLDER.parent), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
    manager, client = start_new_kernel(kernel_name="python3", env=env)
    yield manager
    client.stop_channels()
    manager.shutdown_kernel(now=True)


def parameters(notebook: nbformat.NotebookNode, tiny_run: tuple[Path, Path]) -> str:
    """Settings that replace those of the cell tagged 'parameters', as papermill does."""
    (cell,) = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
    names = re.findall(r"^([A-Z]+) = ", cell.source, re.MULTILINE)
    given = {"MODEL": str(tiny_run[0]), "RUN": str(tiny_run[1])} | SMALL
    return "\n".join(f"{name} = {given[name]!r}" for name in names if name in given)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_it_runs_from_top_to_bottom(path: Path, kernel, tiny_run: tuple[Path, Path], tmp_path: Path):
    from nbclient import NotebookClient

    if path.stem.startswith("02"):
        pytest.importorskip("ssah_lens.direction.extract", reason="the direction room is not here yet")
    aligned_units(run=tiny_run[1])
    notebook = nbformat.read(path, as_version=4)
    at = next(i for i, c in enumerate(notebook.cells) if "parameters" in c.metadata.get("tags", []))
    notebook.cells.insert(at + 1, nbformat.v4.new_code_cell(parameters(notebook, tiny_run)))
    notebook.cells.insert(0, nbformat.v4.new_code_cell("%reset -f"))
    for cell in notebook.cells:
        cell.pop("outputs", None)
        if cell.cell_type == "code":
            cell.outputs = []
    NotebookClient(notebook, km=kernel, timeout=120, resources={"metadata": {"path": tmp_path}}).execute(
        reset_kc=True, cleanup_kc=False
    )
    pictures = [o for c in notebook.cells for o in c.get("outputs", []) if "image/png" in o.get("data", {})]
    assert pictures or path.stem.startswith("07"), "a notebook without a picture"
    assert not list(tmp_path.iterdir()), "it leaves nothing behind where it is run"


# ---- what is kept in them


def test_there_are_seven_and_each_leads_to_the_next():
    assert [p.stem[:2] for p in NOTEBOOKS] == [f"0{i}" for i in range(1, 8)]
    for path, following in pairwise(NOTEBOOKS):
        assert f"({following.name})" in path.read_text(encoding="utf-8"), path.name


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_its_outputs_are_those_of_its_cells(path: Path):
    """A cell that was edited after it was run shows numbers of other code: run benchmarks/notebooks.py."""
    notebook = nbformat.read(path, as_version=4)
    for cell in (c for c in notebook.cells if c.cell_type == "code"):
        assert cell.metadata["ran"] == hashlib.sha256(cell.source.encode()).hexdigest()[:12], cell.source[:80]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_its_outputs_are_real_small_and_of_no_machine(path: Path):
    text = path.read_text(encoding="utf-8")
    assert len(text) < MOST_BYTES
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [c for c in notebook.cells if c.cell_type == "code"]
    assert [c.execution_count for c in code] == list(range(1, len(code) + 1)), "run once, from top to bottom"
    outputs = [o for c in code for o in c.outputs]
    assert len(outputs) >= 4 and not [o for o in outputs if o.output_type == "error"]
    assert not re.search(r"/(tmp|home|root|work|Users)/| at 0x[0-9a-f]{6}", json.dumps(outputs))
    shown = [o.data for o in outputs if "data" in o]
    assert all("image/png" in d for d in shown if re.match("<(Figure|Shown)|Picture", d.get("text/plain", "")))
    assert not [o for o in outputs if o.get("name") == "stderr"], "no warning and no progress bar is kept"
    words = "\n".join(c.source for c in notebook.cells if c.cell_type == "markdown")
    assert "In plain words" in words
    assert ("arxiv.org/abs/" in words) or path.stem.startswith("07")
    assert ("## Exercises" in words) == path.stem.startswith(EXERCISES)
