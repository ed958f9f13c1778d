"""Finished parts are read back and not made again; those of another run are not found."""

from __future__ import annotations

from pathlib import Path

import pytest

from ssah_lens.errors import BadInput
from ssah_lens.results import SizeChoice
from ssah_lens.study.keep import anew, keep_in

PART = SizeChoice(0.01, 0.5, 0.7)


def test_a_kept_part_is_not_made_again(tmp_path: Path):
    made = []
    make = lambda: made.append(1) or PART
    for _ in range(2):
        assert keep_in(tmp_path / "parts", ["run", 1])("scu-0.01", SizeChoice, make) == PART
    assert len(made) == 1
    keep_in(tmp_path / "parts", ["run", 2])("scu-0.01", SizeChoice, make)
    assert anew("scu-0.01", SizeChoice, make) == PART and len(made) == 3
    assert len(list((tmp_path / "parts").iterdir())) == 2  # and no half-written one


def test_damaged_and_unwritable_parts_say_what_to_do(tmp_path: Path):
    keep = keep_in(tmp_path, "run")
    keep("a", SizeChoice, lambda: PART)
    (file,) = tmp_path.iterdir()
    file.write_text('{"share": 0.')
    with pytest.raises(BadInput, match="delete it"):
        keep("a", SizeChoice, lambda: PART)
    (tmp_path / "file").touch()
    with pytest.raises(BadInput, match="finished parts are kept"):
        keep_in(tmp_path / "file", "run")("a", SizeChoice, lambda: PART)
