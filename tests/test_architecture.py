"""Who may import whom (the rooms of README.md, 'Inside'), and that importing the package costs nothing."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "ssah_lens"

GROUND = {"units", "stats", "errors", "files", "config", "progress", "memory"}
CHAT = GROUND | {"chat"}
MEASURE = CHAT | {"measure"}
INTERVENE = MEASURE | {"intervene"}
SCORE = INTERVENE | {"score"}
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "progress": {"errors"},
    "memory": set(),
    "files": {"errors"},
    "units": {"errors", "files"},
    "stats": {"errors"},
    "config": {"errors"},
    "results": {"units", "stats", "errors"},
    "chat": CHAT,
    "measure": MEASURE,
    "intervene": INTERVENE,
    "direction": INTERVENE | {"results", "direction"},
    "score": SCORE,
    "train": SCORE | {"train"},
    # The report is the last stage of a study, so its runner calls `show`; `show` never calls back.
    "study": SCORE | {"direction", "train", "results", "study", "show"},
    "show": {"units", "stats", "results", "errors", "files", "show"},
    "cli": {"*"},
    "__init__": {"*"},  # lazily: see the second test
    "__main__": {"cli"},
}
"""Room -> rooms that its modules may import. A room may always import itself."""


def modules() -> list[Path]:
    return sorted(p for p in PACKAGE.rglob("*.py") if "__pycache__" not in p.parts)


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[tuple[str, int]]:
    """Modules of ours that a file imports anywhere in it (functions and TYPE_CHECKING blocks too), with the line."""
    inside = path.relative_to(PACKAGE.parent).with_suffix("").parts
    package = inside if path.name == "__init__.py" else inside[:-1]
    found: set[tuple[str, int]] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {(alias.name, node.lineno) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = list(package[: len(package) - node.level + 1]) if node.level else []
            source = ".".join([*base, *(node.module or "").split(".")]).strip(".")
            # `from ssah_lens import stats` names the module last, `from ssah_lens.stats import mean` does not
            found |= {
                (f"{source}.{alias.name}" if source == "ssah_lens" else source, node.lineno) for alias in node.names
            }
    return {(name, line) for name, line in found if name.split(".")[0] == "ssah_lens"}


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_import_goes_upward(path: Path):
    here = room(path)
    assert here in ALLOWED, f"'{here}' is a new room: write down what it may import, here and in README's 'Inside'"
    allowed = ALLOWED[here]
    wrong = []
    for name, line in sorted(imported(path)):
        there = name.split(".")[1] if "." in name else "__init__"
        if there != here and there not in allowed and "*" not in allowed:
            wrong.append(f"{path.relative_to(PACKAGE)}:{line} imports {name}")
    assert not wrong, "\n".join(wrong) + f"\n'{here}' may import {', '.join(sorted(allowed)) or 'nothing of ours'}"


def test_training_takes_roles_from_scores_and_nothing_else():
    """Training may know roles, not how units are scored."""
    names = {name for path in modules() if room(path) == "train" for name, _ in imported(path)}
    assert {n for n in names if n.startswith("ssah_lens.score")} <= {"ssah_lens.score.roles"}


def test_the_reader_of_imports_reads_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The tests above could pass by finding nothing."""
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", tmp_path / "ssah_lens")
    path = tmp_path / "ssah_lens" / "measure" / "x.py"
    path.parent.mkdir(parents=True)
    path.write_text(
        "import os, ssah_lens.chat.model as m\nfrom ssah_lens import stats, units\n"
        "from ssah_lens.errors import BadInput\n"
        "def f():\n    from ssah_lens.study import runner\n    from . import judges\n    from ..chat import prompts\n"
    )
    assert {name for name, _ in imported(path)} == {
        "ssah_lens.chat.model", "ssah_lens.stats", "ssah_lens.units", "ssah_lens.errors", "ssah_lens.study",
        "ssah_lens.measure", "ssah_lens.chat",
    }  # fmt: skip


def test_every_room_of_the_table_is_looked_at():
    seen = {room(p) for p in modules()}
    assert {"chat", "measure", "intervene", "score", "train", "study", "show", "units", "stats", "cli"} <= seen


# --- importing costs nothing


def loaded_after(code: str) -> set[str]:
    """Top-level modules that a fresh interpreter has loaded after this code."""
    run = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys\nprint(*sorted({{m.split('.')[0] for m in sys.modules}}))"],
        cwd=PACKAGE.parent,
        env={**os.environ, "PYTHONPATH": str(PACKAGE.parent)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    return set(run.stdout.split())


HEAVY = {
    "torch",
    "transformers",
    "transformer_lens",
    "datasets",
    "scipy",
    "pandas",
    "matplotlib",
    "pyarrow",
    "statsmodels",
}


def test_importing_the_package_loads_nothing_heavy():
    assert not loaded_after("import ssah_lens") & HEAVY


def test_importing_the_command_line_loads_no_model_library():
    """`ssah-lens --help` answers at once."""
    assert not loaded_after("import ssah_lens.cli") & HEAVY


def test_names_of_light_modules_stay_light():
    """Units and configuration are used where no model is (the report, the command line's --help)."""
    code = "import ssah_lens\nssah_lens.UnitSet, ssah_lens.Estimate, ssah_lens.study_config"
    assert not loaded_after(code) & {"torch", "transformers", "transformer_lens"}


def test_every_public_name_is_there():
    import ssah_lens

    for name in ssah_lens.__all__:
        assert getattr(ssah_lens, name) is not None
    assert set(dir(ssah_lens)) == set(ssah_lens.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = ssah_lens.nothing
