"""What tests of whole studies share, and the planted models of the room `direction`."""

from __future__ import annotations

from pathlib import Path

import micro_study
import pytest
from planted_choice import blank, one_direction

__all__ = ["blank", "one_direction"]


@pytest.fixture(scope="session")
def micro_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the micro model that a study begins with."""
    return micro_study.build(tmp_path_factory.mktemp("micro") / "base")
