"""Records what a command does to its address spaces: ``vmafuzz record -o FILE -- COMMAND``.

The kernel's tracepoints tell of system calls, faults, forks, execs; ``perf record -d`` makes it tell of every
mapping. The layout at the end of each process is read at a ptrace stop, by this process, while perf records.
"""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from emulator.errors import UsageError
from fuzz.record import perf_script, storage
from fuzz.record.collector import BEFORE
from fuzz.record.events import NEVER, Call, Event, Exec, Header, Mapping, Recording
from fuzz.record.tracer import Tracer

_PR_SET_PDEATHSIG: Final = 1
BUFFER: Final = "16M"  # for each CPU; what does not fit is lost

_SETTINGS: Final = {  # what of the kernel's settings an address space depends on
    "thp_enabled": "/sys/kernel/mm/transparent_hugepage/enabled",
    "thp_shmem_enabled": "/sys/kernel/mm/transparent_hugepage/shmem_enabled",
    "max_map_count": "/proc/sys/vm/max_map_count",
    "overcommit_memory": "/proc/sys/vm/overcommit_memory",
    "mmap_min_addr": "/proc/sys/vm/mmap_min_addr",
}


def record_command(argv: Sequence[str], output: str | os.PathLike[str], buffer: str = BUFFER) -> Recording:
    """Run ``argv`` and write its recording to ``output``; the command's exit status is in the header.

    The command has our standard input and output. Raises UsageError (nothing is written then) when there is no
    perf, no permission, no such command, when the file could not be written, or when perf lost events.
    """
    perf = _require_perf()
    if not argv:
        raise UsageError("no command to record")
    program = shutil.which(argv[0])
    if program is None:
        raise UsageError(f"no such command: {argv[0]}")
    _require_writable(Path(output))
    with tempfile.TemporaryDirectory(prefix="vmafuzz-record-") as folder:
        tracer = Tracer([program, *argv[1:]])
        running = _run(perf, tracer, Path(folder), buffer)
        recording = _read(perf, Path(folder), tracer, argv, buffer)
        recording.header.running = running
    storage.save(recording, output)
    return recording


def _require_perf() -> str:
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        raise UsageError("recording needs Linux on x86-64; import a recording taken there instead")
    perf = shutil.which("perf")
    if perf is None:
        raise UsageError("recording needs perf (Debian: apt install linux-perf), which is not installed")
    return perf


def _require_writable(output: Path) -> None:
    """Find out before the command runs that its recording cannot be written."""
    if output.is_dir():
        raise UsageError(f"cannot write the recording {output}: it is a folder")
    try:
        with tempfile.TemporaryFile(dir=output.parent):
            pass
    except OSError as error:
        raise UsageError(f"cannot write the recording {output}: {error.strerror or error}") from None


def _run(perf: str, tracer: Tracer, folder: Path, buffer: str) -> int:
    """Record into ``folder``/perf.data while the command runs; how many of its tasks outlive it."""
    tracer.start()
    control, acknowledge = os.pipe(), os.pipe()
    with (folder / "perf.log").open("wb") as log:
        recorder = subprocess.Popen(
            [
                perf, "record", "-q", "-d", "--synth=no", "-B", "-N", "-m", buffer, "-D", "-1",
                "--control", f"fd:{control[0]},{acknowledge[1]}", "-o", str(folder / "perf.data"),
                "-e", ",".join(perf_script.EVENTS), "-p", str(tracer.root),
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=(control[0], acknowledge[1]),
            start_new_session=True,
            preexec_fn=_end_with_parent,  # noqa: PLW1509 - no threads here
        )  # fmt: skip
    os.close(control[0])
    os.close(acknowledge[1])
    try:
        if not _enable(control[1], acknowledge[0]):
            recorder.wait()
            tracer.cancel()
            raise UsageError(_explain((folder / "perf.log").read_text(errors="replace")))
        return _follow(tracer, recorder)
    finally:
        os.close(control[1])
        os.close(acknowledge[0])


def _enable(control: int, acknowledge: int) -> bool:
    """Tell perf to begin; True when it says that it has."""
    try:
        os.write(control, b"enable\n")
    except BrokenPipeError:
        return False
    return os.read(acknowledge, 16).startswith(b"ack")


def _follow(tracer: Tracer, recorder: subprocess.Popen[bytes]) -> int:
    """Let the command run to its end, then end perf. A second Ctrl-C lets go of a command that does not end."""
    ended: list[int] = []

    def stranger(pid: int, status: int) -> None:
        if pid == recorder.pid:
            recorder.returncode = os.waitstatus_to_exitcode(status)
            ended.append(pid)

    interrupts: list[int] = []

    def interrupted(number: int, _frame: object) -> None:
        interrupts.append(number)
        if len(interrupts) > 1:
            raise KeyboardInterrupt

    def terminated(number: int, _frame: object) -> None:
        raise SystemExit(128 + number)

    before = [
        (number, signal.signal(number, handler))
        for number, handler in ((signal.SIGINT, interrupted), (signal.SIGTERM, terminated))
    ]
    try:
        tracer.release()
        return tracer.follow(stranger)
    except (KeyboardInterrupt, SystemExit):
        tracer.detach()
        raise
    finally:
        for number, handler in before:
            signal.signal(number, handler)
        if not ended:
            recorder.send_signal(signal.SIGINT)
            recorder.wait()


def _end_with_parent() -> None:
    """In perf's process: a recorder that is killed must not leave perf behind, which would fill the disk."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGINT, 0, 0, 0)


def _explain(log: str) -> str:
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    reason = next((line for line in lines if "denied" in line or "permission" in line.lower()), None)
    if reason or os.geteuid() != 0:
        return (
            "perf may not record here: run as root, or let this user trace "
            "(sysctl kernel.perf_event_paranoid=-1 and read access to /sys/kernel/tracing)"
        )
    return f"perf record failed: {lines[0] if lines else 'it says nothing about why'}"


def _read(perf: str, folder: Path, tracer: Tracer, argv: Sequence[str], buffer: str) -> Recording:
    header = Header(tuple(argv), "perf", platform.release(), tracer.status)
    header.settings = _settings()
    printer = subprocess.Popen(
        [perf, "script", "-i", str(folder / "perf.data"), *perf_script.OPTIONS.split()],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        errors="backslashreplace",
    )
    assert printer.stdout is not None
    with printer.stdout:
        recording = perf_script.parse(printer.stdout, header)
    if printer.wait() != 0 or not recording.events:
        log = (folder / "perf.log").read_text(errors="replace")
        raise UsageError(f"perf has recorded nothing: {log.strip()[-200:] or 'it says nothing about why'}")
    if header.lost:
        raise UsageError(
            f"perf lost {header.lost} events, so the recording would have holes; "
            f"record again with a larger buffer than {buffer} for each CPU"
        )
    recording.layouts = tracer.layouts
    _cut(recording, tracer.root)
    kinds = _filesystems()
    devices = sorted({event.device for event in recording.events if isinstance(event, Mapping)})
    header.filesystems = {device: kinds[device] for device in devices if device in kinds}
    return recording


def _cut(recording: Recording, root: int) -> None:
    """Leave out what the process did before it became the command."""
    begin = None
    for event in recording.events:
        if isinstance(event, Exec) and event.tid == root:
            break
        if isinstance(event, Call) and event.tid == root and event.name == "execve":
            begin = event.at
    else:
        raise UsageError(f"the command could not be executed: {' '.join(recording.header.program)}")
    assert begin is not None
    recording.header.skipped.pop(BEFORE, None)
    recording.events = [_shifted(event, begin) for event in recording.events if event.at >= begin]


def _shifted(event: Event, by: int) -> Event:
    if isinstance(event, Call) and event.done != NEVER:
        event = event._replace(done=event.done - by)
    return event._replace(at=event.at - by)


def _filesystems() -> dict[str, str]:
    """Device, as perf and /proc/PID/maps write it (hexadecimal), to the kind of file system on it."""
    kinds = {}
    with Path("/proc/self/mountinfo").open() as file:
        for line in file:
            words = line.split()
            major, minor = words[2].split(":")
            kinds[f"{int(major):02x}:{int(minor):02x}"] = words[words.index("-") + 1]
    return kinds


def _settings() -> dict[str, str]:
    settings = {}
    for name, path in _SETTINGS.items():
        try:
            text = Path(path).read_text().strip()
        except OSError:
            continue
        settings[name] = text.split("[")[1].split("]")[0] if "[" in text else text  # "always [madvise] never"
    return settings
