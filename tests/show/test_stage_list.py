"""The list of stages: what it says at each moment, and what is said where nothing can be redrawn."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from ssah_lens.progress import bars_told, progress, quiet
from ssah_lens.show.stage_list import LiveList, stage_list

BUDGET = {"align": 4, "units": 3, "report": 0.2}


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def drawn(stages: LiveList) -> list[str]:
    out = io.StringIO()
    Console(file=out, width=100).print(stages.table())
    return [line.rstrip() for line in out.getvalue().splitlines()]


def test_it_says_what_is_done_what_runs_and_how_long_is_left():
    clock = Clock()
    stages = LiveList(BUDGET, clock)
    assert [line.split()[:2] for line in drawn(stages)] == [["·", "align"], ["·", "units"], ["·", "report"]]
    with stages.doing("align"):
        clock.now = 120
        stages.tell(1, "training 3 of 9, 00:40 left")
        first, *_, last = drawn(stages)
        assert "▸" in first and "2 min 00 s of about 4 min 00 s; training 3 of 9, 00:40 left" in first
        assert last.strip() == "about 5 min 12 s left"
        stages.tell(1, "")
        assert "training" not in drawn(stages)[0]
        clock.now = 480  # twice its budget
    assert "✓" in drawn(stages)[0] and drawn(stages)[0].endswith("8 min 00 s")
    assert stages.left == pytest.approx(3.2 * 60 * 2), "the machine is half as fast as the budget says"


def test_a_stage_that_stops_is_marked():
    stages = LiveList(BUDGET)
    with pytest.raises(KeyboardInterrupt), stages.doing("align"):
        raise KeyboardInterrupt
    assert "✗" in drawn(stages)[0] and "stopped after" in drawn(stages)[0]


def test_in_a_log_each_stage_says_a_line():
    said: list[str] = []
    with stage_list(BUDGET, said.append, live=True) as stages:  # standard error is no terminal here
        assert stages.tell is None
        with stages.doing("align"):
            pass
    assert said == ["stage align ...", "stage align done in 0 s"]


def test_on_a_terminal_it_is_redrawn(monkeypatch: pytest.MonkeyPatch):
    from ssah_lens.show import stage_list as module

    out = io.StringIO()
    monkeypatch.setattr(module, "_console", lambda: Console(file=out, force_terminal=True, width=80))
    said: list[str] = []
    with stage_list(BUDGET, said.append, live=True) as stages:
        for stage in BUDGET:
            with stages.doing(stage):
                pass
    assert said == [] and out.getvalue().count("✓") >= 3
    with stage_list(BUDGET, said.append, live=False) as stages, stages.doing("align"):
        pass
    assert len(said) == 2, "quiet: lines, which the caller may drop"


def test_bars_tell_their_lines_and_when_they_end():
    told: list[tuple[int, str]] = []
    with quiet(False), bars_told(lambda bar, line: told.append((bar, line))):
        assert list(progress(range(3), "asking")) == [0, 1, 2]
        with quiet():
            list(progress(range(3), "silent"))
    assert told[0][1].startswith("asking 0 of 3") and told[-1][1] == ""
    assert len({bar for bar, _ in told}) == 1, "a quiet bar tells nothing"
    told.clear()
    with quiet(False):
        list(progress(range(3), "drawn as ever"))
    assert told == []
