"""Finished parts of a long measurement outside a study: a killed run does again only the part that was under way.

Inside a study the run folder does the same for its stages; both are a `Keep`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from ssah_lens.errors import BadInput

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
        adapter, file = TypeAdapter(kind), folder / f"{name}-{digest}.json"
        if file.is_file():
            try:
                return adapter.validate_json(file.read_bytes())
            except (OSError, ValidationError) as e:
                raise BadInput(f"'{file}' is damaged; delete it to measure it again") from e
        made = make()
        partial = file.with_name(file.name + ".partial")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            partial.write_bytes(adapter.dump_json(made))
            partial.replace(file)
        except OSError as e:
            with suppress(OSError):
                partial.unlink(missing_ok=True)
            raise BadInput(f"cannot write '{file}': {e.strerror or e}; finished parts are kept") from e
        return made

    return keep
