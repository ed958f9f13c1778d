"""What tests of whole studies share, and the planted models of the room `direction`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import micro_study
import pytest
from planted_choice import blank, one_direction

from ssah_lens.chat.model import ChatModel
from ssah_lens.study.parts import Parts

__all__ = ["blank", "one_direction"]


@pytest.fixture(scope="session")
def micro_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the micro model that a study begins with."""
    return micro_study.build(tmp_path_factory.mktemp("micro") / "base")


@pytest.fixture
def elsewhere(tmp_path: Path) -> Callable[[ChatModel], tuple[Any, Any]]:
    """(ahead, keep) for a copy of a model: parts are made as a worker makes them, pickled and the last one first, and
    `keep` makes none of those that were said ahead."""
    cloudpickle = pytest.importorskip("cloudpickle")
    kept = Parts(tmp_path / "elsewhere")

    def of(model: ChatModel):
        said: list[str] = []

        def ahead(task, shared, items, kind) -> None:
            said.extend(items)
            for name, item in reversed(items.items()):
                task_, shared_, item_ = cloudpickle.loads(cloudpickle.dumps((task, shared, item)))
                kept.save(name, task_(model, shared_, item_))

        return ahead, lambda name, kind, make: kept(name, kind, pytest.fail if name in said else make)

    return of
