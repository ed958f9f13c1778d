"""Importing the package and asking for help answer at once; `benchmarks/startup.py` has the times by the clock."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def startup(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    import startup

    yield startup
    sys.modules.pop("startup", None)


def test_starting_costs_less_than_half_a_second(startup):
    """Of processor time, which other work on the machine hardly changes; the least of three."""
    cost = {name: min(startup.once(words)[1] for _ in range(3)) for name, words in list(startup.COMMANDS.items())[:3]}
    bare = cost.pop(startup.BARE)
    assert len(cost) == 2
    for name, seconds in cost.items():
        assert seconds - bare < startup.LIMIT, f"{name} takes {seconds:.2f} s, a bare interpreter {bare:.2f} s"


@pytest.mark.parametrize("words", [["--help"], ["study", "--help"], ["finetune", "--help"], ["models"]])
def test_help_loads_no_model_library(words: list[str]):
    """In a process of its own, since this one has torch."""
    code = (
        "import sys\nfrom ssah_lens.cli import main\n"
        f"sys.argv = ['ssah-lens', *{words!r}]\n"
        "try:\n    main()\nexcept SystemExit as e:\n    assert not e.code, e.code\n"
        "heavy = {'torch', 'transformers', 'transformer_lens', 'datasets', 'pyarrow', 'scipy'} & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
