"""What tests of whole studies share."""

from __future__ import annotations

from pathlib import Path

import micro_study
import pytest


@pytest.fixture(scope="session")
def micro_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the micro model that a study begins with."""
    return micro_study.build(tmp_path_factory.mktemp("micro") / "base")
