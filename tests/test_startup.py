"""Importing the package and asking for help load no library of models; `benchmarks/startup.py` has the times."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_importing_loads_no_model_library():
    """In a process of its own, since this one has torch."""
    code = (
        "import sys, ssah_lens\n"
        "heavy = {'torch', 'transformers', 'transformer_lens', 'datasets', 'pandas', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


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
