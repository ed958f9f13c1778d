"""Runs the notebooks on the real model, keeps their outputs in them, and says how long each took (target: 3 minutes).

    python benchmarks/notebooks.py           # all of them
    python benchmarks/notebooks.py 03 05     # some

The aligned model and its units are made first, if the cache has none; that time is not counted. Progress bars and
other things of the moment are not kept.
"""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
import time
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "notebooks"
TARGET = 180
OF_THE_MOMENT = "application/vnd.jupyter.widget-view+json"


def run(path: Path) -> float:
    """Seconds that a notebook takes from top to bottom; its outputs are written into it when it is whole."""
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as place:
        NotebookClient(notebook, timeout=900, resources={"metadata": {"path": place}}, record_timing=False).execute()
    seconds = time.perf_counter() - started
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.metadata["ran"] = hashlib.sha256(cell.source.encode()).hexdigest()[:12]  # a test asks: is it still so?
            cell.outputs = [
                o for o in cell.outputs if o.get("name") != "stderr" and OF_THE_MOMENT not in o.get("data", {})
            ]
    notebook.metadata.pop("widgets", None)
    notebook.metadata["language_info"] = {"name": "python"}
    nbformat.write(notebook, path)
    return seconds


def main(numbers: list[str]) -> None:
    """Runs those whose names begin with one of the numbers; all when there are none."""
    os.environ.update(TRANSFORMERS_VERBOSITY="error", HF_HUB_DISABLE_PROGRESS_BARS="1", TOKENIZERS_PARALLELISM="false")
    import ssah_lens as sl

    sl.aligned_units()
    for path in sorted(FOLDER.glob("*.ipynb")):
        if not numbers or path.stem.startswith(tuple(numbers)):
            seconds = run(path)
            print(f"{path.name}  {seconds:6.0f} s{'  OVER THE TARGET' if seconds > TARGET else ''}  "
                  f"{path.stat().st_size / 1e3:6.0f} kB", flush=True)  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1:])
