"""Finished parts of a long measurement outside a study: a killed run does again only the part that was under way.

Inside a study the run folder does the same for its stages; both are a `Keep`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ssah_lens.study.parts import read_result, write_result

Keep = Callable[[str, Any, Callable[[], Any]], Any]
"""(name, type, make) -> the part of this name: read back where it was kept, else made."""


def anew(name: str, kind: Any, make: Callable[[], Any]) -> Any:
    """Keeps nothing."""
    return make()


def keep_in(folder: Path, depends_on: Any) -> Keep:
    """Keeps every part as a JSON file, whole or absent.

    Args:
        folder: made when the first part is kept.
        depends_on: all that parts follow from; another run's parts have other names.
    """
    digest = hashlib.sha256(repr(depends_on).encode()).hexdigest()[:12]

    def keep(name: str, kind: Any, make: Callable[[], Any]) -> Any:
        file = folder / f"{name}-{digest}.json"
        if file.is_file():
            return read_result(file, kind)
        made = make()
        write_result(file, made, "finished parts are kept")
        return made

    return keep
