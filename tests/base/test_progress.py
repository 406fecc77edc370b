"""How far work is: lines each minute in a log, a bar on a terminal, nothing where it is to be quiet."""

import re
import sys
from typing import Any

import pytest

from bbdm.base import progress
from bbdm.base.progress import Meter, counted, duration


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time in seconds, which a test sets."""
    now = [0.0]
    monkeypatch.setattr(progress, "clock", lambda: now[0])
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False)
    return now


def test_a_log_has_a_line_each_minute(clock: list[float], capsys: Any):
    """Of 10 steps of 25 seconds, of which 2 were done before: at 75, 150 and 225 seconds of the rest."""
    with Meter("training", 12, "steps", True, done=2) as meter:
        for step in range(3, 12):
            clock[0] += 25
            if meter.due:
                meter.note = f"loss {step / 10}"
            meter.reach(step)
    assert capsys.readouterr().err.splitlines() == [
        "training: 5 of 12 steps, loss 0.5; about 3 min left",
        "training: 8 of 12 steps, loss 0.8; about 2 min left",
        "training: 11 of 12 steps, loss 1.1; about 25 s left",
    ]


def test_parts_of_a_result_count_and_leave_whole_numbers(clock: list[float], capsys: Any):
    with Meter("translating", 2, "results", True) as meter:
        with meter.part(1):
            clock[0] = 60
            meter.note = "step 1 of 4"
            meter.advance(0.25)
        clock[0] = 240
        meter.reach(1)
    assert (meter.done, meter.note) == (1, "")
    assert capsys.readouterr().err.splitlines() == [
        "translating: 0 of 2 results, step 1 of 4; about 7 min left",
        "translating: 1 of 2 results; about 4 min left",
    ]


def test_of_a_batch_no_result_is_done_before_its_last_step(clock: list[float], capsys: Any):
    """Though half of the work is, by which the rest of the time is told."""
    with Meter("translating", 6, "results", True) as meter, meter.part(6):
        clock[0] = 60
        meter.note = "step 30 of 60"
        meter.advance(3)
    assert (
        capsys.readouterr().err == "translating: 0 of 6 results, step 30 of 60; about 60 s left\n"
    )


def test_quiet_work_and_short_work_say_nothing(clock: list[float], capsys: Any):
    assert [*counted("abc", "checking", 3, "pairs", True)] == [*"abc"]
    for _ in counted("abc", "checking", 3, "pairs", False):
        clock[0] += 100
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("terminal", "shown"), [(True, True), (False, "bar")])
def test_a_terminal_has_a_bar(
    terminal: bool, shown: Any, clock: list[float], monkeypatch: Any, capsys: Any
):
    """Or what is to be shown as on one."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    with Meter("translating", 4, "results", shown) as meter:
        meter.note = "step 1 of 2"
        monkeypatch.setattr(meter._bar, "mininterval", 0)
        meter.advance(1.5)
    assert re.search(r"translating: 1 of 4 results, step 1 of 2 +38%\|", capsys.readouterr().err)


def test_times_for_people():
    assert [duration(each) for each in (5, 89, 720, 9000, 3e5)] == [
        "5 s",
        "89 s",
        "12 min",
        "2.5 h",
        "3.5 days",
    ]
