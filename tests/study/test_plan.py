"""What a stage needs is asked for before the first stage is begun."""

from __future__ import annotations

import pytest

from ssah_lens.errors import BadInput
from ssah_lens.study.plan import NEEDS, STAGES, check_order


class Folder:
    """Stands for a run folder with these stages done."""

    path = "run"

    def __init__(self, *done: str) -> None:
        self.done = set(done).__contains__


def test_the_whole_way_to_a_stage_is_named():
    with pytest.raises(BadInput, match="'ablate' needs 'units'.*give --stages align,refusal,units,ablate,report"):
        check_order(Folder(), ["ablate", "report"])
    with pytest.raises(BadInput, match="'units' needs 'refusal'.*give --stages align,refusal,units$"):
        check_order(Folder(), ["align", "units"])
    with pytest.raises(BadInput, match="give --stages units,freeze$"):
        check_order(Folder("align", "refusal"), ["freeze"])


@pytest.mark.parametrize("done", [0, 1, 3, len(STAGES)])
def test_stages_in_their_order_are_never_refused(done: int):
    check_order(Folder(*STAGES[:done]), STAGES[done:])
    assert all(STAGES.index(n) < STAGES.index(s) for s, needs in NEEDS.items() for n in needs)
