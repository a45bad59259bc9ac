"""Recording a command: with perf where there is one, and clear words where there is not."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from emulator.designs.mainline import Mainline
from emulator.errors import UsageError
from emulator.image import KernelImage
from fuzz.record import recorder, storage
from fuzz.record.events import Exec, Exit, Fork
from fuzz.record.recorder import record_command
from fuzz.record.replay import replay_recording
from fuzz.record.tracer import Tracer


def perf_works() -> bool:
    """May this user record tracepoints with perf, and does perf run here?"""
    perf = shutil.which("perf")
    if perf is None or os.geteuid() != 0:
        return False
    command = [perf, "record", "-q", "-o", os.devnull, "-e", "raw_syscalls:sys_enter", "--", "true"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


needs_perf = pytest.mark.skipif(not perf_works(), reason="needs perf and root")


@needs_perf
def test_a_command_is_recorded_and_replays(tmp_path: Path) -> None:
    """The whole way: fork, exec and exit status, a layout after each exec and at each end, no lost event."""
    path = tmp_path / "x.rec"
    recording = record_command(["sh", "-c", "true; /bin/true; exit 3"], path)
    assert storage.load(path) == recording
    header = recording.header
    assert (header.program, header.source) == (("sh", "-c", "true; /bin/true; exit 3"), "perf")
    assert (header.exit_status, header.lost, header.running) == (3, 0, 0)
    assert header.skipped == {}
    execs = [event for event in recording.events if isinstance(event, Exec)]
    ends = [event for event in recording.events if isinstance(event, Exit)]
    assert recording.events[0].at == 0
    assert len(execs) == len(ends) == 2
    assert sum(isinstance(event, Fork) for event in recording.events) == 1
    assert sorted((layout.pid, layout.when) for layout in recording.layouts) == sorted(
        [(event.pid, "exec") for event in execs] + [(event.pid, "exit") for event in ends]
    )
    report = replay_recording(recording, KernelImage(Mainline))
    assert [str(difference) for difference in report.differences] == []
    assert report.share >= 0.95


@needs_perf
def test_lost_events_are_refused(tmp_path: Path) -> None:
    """With a buffer of one page perf cannot keep up: a recording with holes is not written."""
    script = "import mmap\nfor i in range(20000): mmap.mmap(-1, 4096).close()"
    with pytest.raises(UsageError, match=r"perf lost \d+ events.*larger buffer than 4K"):
        record_command([sys.executable, "-c", script], tmp_path / "x.rec", buffer="4K")
    assert list(tmp_path.iterdir()) == []


@needs_perf
def test_perf_that_fails_is_explained(tmp_path: Path) -> None:
    """perf's own complaint reaches the user, and the command never ran."""
    with pytest.raises(UsageError, match="perf record failed"):
        record_command(["touch", str(tmp_path / "ran")], tmp_path / "x.rec", buffer="nonsense")
    assert list(tmp_path.iterdir()) == []


def test_without_perf_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first thing that most users will see."""
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(UsageError, match="apt install linux-perf"):
        record_command(["true"], tmp_path / "x.rec")


def test_another_machine_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """System call numbers and error codes are those of x86-64."""
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    with pytest.raises(UsageError, match="Linux on x86-64"):
        record_command(["true"], tmp_path / "x.rec")


@pytest.mark.parametrize(
    ("argv", "output", "message"),
    [
        ([], "x.rec", "no command to record"),
        (["no-such-command-anywhere"], "x.rec", "no such command: no-such"),
        (["true"], "none/x.rec", "cannot write the recording"),
        (["true"], ".", "it is a folder"),
    ],
)
def test_mistakes_are_found_before_the_command_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, argv: list[str], output: str, message: str
) -> None:
    """A long command must not run in vain."""
    monkeypatch.setattr(recorder, "_require_perf", lambda: "perf")
    with pytest.raises(UsageError, match=message):
        record_command(argv, tmp_path / output)


@pytest.mark.parametrize(
    ("log", "root", "message"),
    [
        ("Error:\nAccess to performance monitoring is denied\n", True, "perf may not record here"),
        ("", False, "perf may not record here"),
        ("\nError: something else\n", True, "perf record failed: Error: something else"),
        ("", True, "it says nothing about why"),
    ],
)
def test_perfs_complaints_are_translated(
    monkeypatch: pytest.MonkeyPatch, log: str, root: bool, message: str
) -> None:
    """Missing permission is by far the most common, and perf explains it in a page."""
    monkeypatch.setattr("os.geteuid", lambda: 0 if root else 1000)
    assert message in recorder._explain(log)


def test_settings_show_the_choice_that_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``always [madvise] never`` means madvise; what is not there is left out."""
    (tmp_path / "enabled").write_text("always [madvise] never\n")
    (tmp_path / "count").write_text("65530\n")
    paths = {name: str(tmp_path / name) for name in ("enabled", "count", "missing")}
    monkeypatch.setattr(recorder, "_SETTINGS", paths)
    assert recorder._settings() == {"enabled": "madvise", "count": "65530"}


# ---- the tracer alone: needs no perf


def trace(*command: str, linger: float = 2.0) -> tuple[Tracer, int]:
    tracer = Tracer(command)
    try:
        tracer.start()
    except UsageError as error:
        pytest.skip(str(error))
    tracer.release()
    running = tracer.follow(lambda pid, status: None, linger)
    return tracer, running


def test_every_process_shows_its_last_layout() -> None:
    """Forked and exec'ed processes are followed; each has a stack and a program in its layout."""
    tracer, running = trace("/bin/sh", "-c", "/bin/true & /bin/true; wait; exit 7")
    assert (tracer.status, running) == (7, 0)
    seen = [(layout.when, layout.nth) for layout in tracer.layouts]
    assert sorted(seen) == [("exec", 0)] * 3 + [("exit", 0)] * 3
    for layout in tracer.layouts:
        names = [line.name for line in layout.lines]
        assert "[stack]" in names
        assert any(name.startswith("/") for name in names)


def test_threads_belong_to_their_process() -> None:
    """The layout of a thread carries the process that it is of."""
    # join() returns a moment before the kernel's thread has ended, and a process that ends then takes it along
    script = "import threading, time; t = threading.Thread(target=print); t.start(); t.join(); time.sleep(0.5)"
    tracer, _ = trace(sys.executable, "-c", script)
    ends = [layout for layout in tracer.layouts if layout.when == "exit"]
    assert {layout.pid for layout in ends} == {tracer.root}
    assert len({layout.tid for layout in ends}) == 2


def test_death_by_signal_is_kept_as_a_shell_shows_it() -> None:
    """Signals are passed on: the command dies of them as it would without us."""
    tracer, _ = trace("/bin/sh", "-c", "kill -TERM $$")
    assert tracer.status == 128 + signal.SIGTERM


def test_a_stopped_command_goes_on() -> None:
    """Job control works under the tracer: stopped by SIGSTOP, continued by SIGCONT."""
    tracer, _ = trace("/bin/sh", "-c", "(sleep 0.2; kill -CONT $$) & kill -STOP $$; exit 4")
    assert tracer.status == 4


def test_a_daemon_is_let_go_of() -> None:
    """What outlives the command by more than the grace period runs on, and the recording ends."""
    tracer, running = trace("/bin/sh", "-c", "sleep 5 & exit 0", linger=0.2)
    assert (tracer.status, running) == (0, 1)


def test_a_command_that_was_cancelled_never_runs(tmp_path: Path) -> None:
    """When perf cannot start, the waiting process goes away without its exec."""
    tracer = Tracer(["/usr/bin/touch", str(tmp_path / "ran")])
    tracer.start()
    tracer.cancel()
    assert list(tmp_path.iterdir()) == []


def test_a_program_that_cannot_be_executed_has_the_shells_status(tmp_path: Path) -> None:
    """126, as a shell says."""
    path = tmp_path / "empty"
    path.write_bytes(b"\0\0\0\0")
    path.chmod(0o755)
    assert trace(str(path))[0].status == 126
