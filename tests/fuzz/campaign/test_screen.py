"""What a person sees of a campaign."""

from __future__ import annotations

import dataclasses
import io

import pytest
from rich.console import Console

from fuzz.campaign.screen import LiveScreen, PlainScreen, duration, render, summary
from fuzz.campaign.status import FindingStatus, Status
from fuzz.target import Target


def a_status() -> Status:
    one = FindingStatus(
        signature="undo/[frozen]-page",
        oracle="undo",
        rule="frozen-page",
        detail="page 3 stays frozen",
        steps=5,
        count=1234,
        minimized=True,
        replays="20/20",
        on_reference=False,
        workload="out/x/workload.msgpack",
        replay="vmafuzz replay out/x/workload.msgpack --design relocate-anon",
    )
    return Status(
        "fuzzing",
        Target(),
        7,
        2,
        workers_alive=2,
        seconds=75.0,
        execs=10_000,
        execs_per_second=133.3,
        execs_per_second_now=50.0,
        steps=90_000,
        steps_per_second=1200.0,
        features=321,
        corpus=45,
        stability=99.5,
        last_feature=3.0,
        findings=[one],
    )


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "–"), (0.4, "0 s"), (59, "59 s"), (72, "1 min 12 s"), (7500, "2 h 5 min"), (273_600, "3 d 4 h")],
)
def test_durations(seconds: float | None, text: str) -> None:
    """Times are read at a glance."""
    assert duration(seconds) == text


def test_the_live_screen_shows_the_figures() -> None:
    """Everything that says whether to go on; brackets in a signature are no markup."""
    console = Console(file=io.StringIO(), width=110, force_terminal=False)
    console.print(render(a_status()))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    for text in ("1 min 15 s", "10,000", "50/s now, 133/s mean", "1,200", "45", "321", "99.5 %", "3 s ago"):
        assert text in shown
    for text in ("undo/[frozen]-page", "frozen-page", "1,234", "20/20"):
        assert text in shown


def test_the_live_screen_leaves_the_terminal_as_it_was() -> None:
    """The cursor comes back."""
    console = Console(file=io.StringIO(), width=100, force_terminal=True)
    screen = LiveScreen(console)
    screen.update(a_status())
    screen.close()
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1


def test_without_a_terminal_a_line_every_ten_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Logs stay readable, and one can see that it lives."""
    now = 100.0
    monkeypatch.setattr("fuzz.campaign.screen.time.monotonic", lambda: now)
    stream = io.StringIO()
    screen = PlainScreen(stream)
    status = a_status()
    for now in (100.0, 101.0, 109.9, 110.0, 111.0):  # noqa: B007
        screen.update(status)
    assert stream.getvalue().splitlines() == [
        "[1 min 15 s] fuzzing: 10000 execs, 50/s, corpus 45, features 321, stability 99.5 %, findings 1"
    ] * 2


def test_the_summary_ends_each_finding_with_its_replay_line() -> None:
    """Exactly one line to paste."""
    status = a_status()
    text = summary(status)
    replay = status.findings[0].replay
    assert text.splitlines()[-1].strip() == replay
    assert text.count(replay) == 1
    assert "1 finding." in text
    assert "was the code changed" not in text
    status.findings[0].replays = "0/20"
    assert "replays 0/20 — was the code changed meanwhile?" in summary(status)
    status.findings.clear()
    assert "no finding." in summary(status)


def test_what_the_reference_shows_too_comes_last() -> None:
    """A user looks for what the design broke; what mainline does as well is said to be so."""
    status = a_status()
    own = status.findings[0]
    status.findings = [dataclasses.replace(own, signature="accounting/x", on_reference=True), own]
    lines = summary(status).splitlines()
    first, second = (line for line in lines if line[:1].isdigit())
    assert first.startswith("1. undo/")
    assert second.startswith("2. accounting/x")
    assert "also on mainline" in second
    assert "also on" not in first


def test_causes_of_one_rule_stand_together() -> None:
    """The smallest in full, the others in a line each; what mainline shows too stands apart."""
    status = a_status()
    own = status.findings[0]
    status.findings = [
        dataclasses.replace(own, signature=f"{own.oracle}/{own.rule}:{cause}", steps=steps, on_reference=on_reference)
        for cause, steps, on_reference in [("large", 5, False), ("pinned", 3, False), ("large, pinned", 4, True)]
    ]
    lines = summary(status).splitlines()
    assert [line.split("  (")[0] for line in lines if line[:1].isdigit()] == [
        f"1. {own.oracle}/{own.rule}:pinned",
        f"2. {own.oracle}/{own.rule}:large, pinned",
    ]
    place = next(number for number, line in enumerate(lines) if line.startswith("   also, in "))
    assert lines[place + 1].startswith("     large  (5 steps, seen 1,234 times")
    assert sum(own.replay in line for line in lines) == 2


def test_tracepoints_are_shown_where_they_were_counted() -> None:
    """On the live screen, in the lines where there is no terminal, and in the summary; else nowhere."""
    status = a_status()
    assert "vm_av_merge" not in summary(status)
    status.traced = {"vm_av_merge: merged=1 predecessor=MERGE_OK": 1234}
    out = io.StringIO()
    Console(file=out, width=100).print(render(status))
    assert "vm_av_merge: 1,234" in out.getvalue()
    assert "1,234  vm_av_merge: merged=1 predecessor=MERGE_OK" in summary(status)
    plain = io.StringIO()
    PlainScreen(plain).update(status)
    assert plain.getvalue().endswith("vm_av_merge 1,234 (merged 1,234)\n")
