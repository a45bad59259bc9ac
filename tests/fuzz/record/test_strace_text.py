"""Reading strace's text, in the forms that its options give."""

from __future__ import annotations

import errno

import pytest

from emulator.errors import UsageError
from fuzz.record import strace_text
from fuzz.record.collector import CLONE_THREAD, CLONE_VFORK, CLONE_VM
from fuzz.record.events import NEVER, Call, Event, Exec, Exit, Fork, Recording, Signal

U64 = 1 << 64


def parse(text: str) -> Recording:
    return strace_text.parse(text.splitlines(keepends=True))


def calls(text: str) -> list[Call]:
    return [event for event in parse(text).events if isinstance(event, Call)]


def only(text: str) -> Call:
    (call,) = calls(text)
    return call


@pytest.mark.parametrize(
    ("line", "name", "args", "result"),
    [
        ("brk(NULL) = 0x1b39b000", "brk", (0,), 0x1B39B000),
        (
            "mmap(NULL, 8192, PROT_READ|PROT_WRITE, MAP_PRIVATE|MAP_ANONYMOUS, -1, 0) = 0x7fb4ef7a2000",
            "mmap",
            (0, 8192, 3, 0x22, U64 - 1, 0),
            0x7FB4EF7A2000,
        ),
        (
            "mmap(0x10000, 4096, PROT_NONE, MAP_SHARED|MAP_FIXED|0x8000000, 3</tmp/a b>, 0x2000) = 0x10000",
            "mmap",
            (0x10000, 4096, 0, 0x11 | 0x8000000, 3, 0x2000),
            0x10000,
        ),
        ("munmap(0x10000, 4096) = 0", "munmap", (0x10000, 4096), 0),
        (
            "mremap(0x10000, 4096, 8192, MREMAP_MAYMOVE|MREMAP_FIXED, 0x20000) = 0x20000",
            "mremap",
            (0x10000, 4096, 8192, 3, 0x20000),
            0x20000,
        ),
        (
            "mprotect(0x10000, 4096, PROT_READ) = -1 EACCES (Permission denied)",
            "mprotect",
            (0x10000, 4096, 1),
            -errno.EACCES,
        ),
        ("madvise(0x10000, 4096, MADV_DONTNEED) = 0 <0.000012>", "madvise", (0x10000, 4096, 4), 0),
        ("madvise(0x10000, 4096, 0x66 /* MADV_??? */) = 0", "madvise", (0x10000, 4096, 0x66), 0),
        ("openat(AT_FDCWD, \"a, b)(\\\"\", O_RDONLY|O_CLOEXEC) = 3", "openat", (U64 - 100, 0, 0o2000000), 3),
        ("close(3) = 0", "close", (3,), 0),
        ("getpid() = 77", "getpid", (), 77),
        ("poll([{fd=3, events=POLLIN}], 1, -1) = ? ERESTART_RESTARTBLOCK (x)", "poll", (0, 1, U64 - 1), -516),
    ],
)
def test_one_call(line: str, name: str, args: tuple[int, ...], result: int) -> None:
    """Symbols, paths, strings with commas and errors become the numbers that the kernel had."""
    call = only(line)
    assert (call.name, call.args, call.result) == (name, args, result)


@pytest.mark.parametrize(
    "prefix",
    ["", "77 ", "[pid    77] ", "12:30:01 ", "77 12:30:01.123456 ", "1795230673.721561 ", "77 1795230673.7 "],
)
def test_prefixes(prefix: str) -> None:
    """-o, -f, -t, -tt and -ttt put different things before a call."""
    assert only(f"{prefix}munmap(0x10000, 4096) = 0").name == "munmap"


def test_a_constant_without_a_number_makes_the_arguments_unknown() -> None:
    """A flag of a newer kernel must not be replayed as if it were not there."""
    call = only("mmap(NULL, 4096, PROT_READ, MAP_PRIVATE|MAP_BRANDNEW, -1, 0) = 0x1000")
    assert not call.known


def test_unfinished_and_resumed_are_one_call() -> None:
    """The two halves of a call that another thread interrupted are joined, each at its own place."""
    text = """\
[pid 10] munmap(0x1000, 4096 <unfinished ...>
[pid 11] mmap(NULL, 4096, PROT_READ, MAP_PRIVATE|MAP_ANONYMOUS, -1, 0) = 0x5000
[pid 10] <... munmap resumed>) = 0
"""
    first, second = calls(text)
    assert (first.name, first.args, first.result) == ("munmap", (0x1000, 4096), 0)
    assert first.at < second.at < second.done < first.done


FORKED = """\
execve("/bin/sh", ["sh", "-c", "a"], 0x7ffd /* 20 vars */) = 0
clone(child_stack=NULL, flags=CLONE_CHILD_CLEARTID|CLONE_CHILD_SETTID|SIGCHLDstrace: Process 7001 attached
, child_tidptr=0x7fc8) = 7001
[pid  7001] getpid( <unfinished ...>
[pid  7000] wait4(-1,  <unfinished ...>
[pid  7001] <... getpid resumed>)       = 7001
[pid  7001] exit_group(3)               = ?
[pid  7001] +++ exited with 3 +++
<... wait4 resumed>[{WIFEXITED(s)}], 0, NULL) = 7001
--- SIGCHLD {si_signo=SIGCHLD, si_code=CLD_EXITED, si_pid=7001} ---
exit_group(0)                           = ?
+++ exited with 5 +++
"""


def test_a_fork_as_the_terminal_shows_it() -> None:
    """strace's own notes cut lines in two, and prefixes come and go with the number of processes."""
    recording = parse(FORKED)
    kinds: list[tuple[str, int]] = [(type(event).__name__, event.tid) for event in recording.events]
    assert kinds == [
        ("Call", 7000),
        ("Exec", 7000),
        ("Call", 7000),
        ("Fork", 7000),
        ("Call", 7001),
        ("Call", 7000),
        ("Call", 7001),
        ("Exit", 7001),
        ("Signal", 7000),
        ("Call", 7000),
        ("Exit", 7000),
    ]
    fork = recording.events[3]
    assert isinstance(fork, Fork)
    assert (fork.child_pid, fork.flags) == (7001, 0x200000 | 0x1000000 | 17)
    assert recording.header.exit_status == 5
    assert recording.header.skipped == {"notes of strace": 1}
    ends = [event for event in recording.events if isinstance(event, Call) and event.name == "exit_group"]
    assert [end.done for end in ends] == [NEVER, NEVER]


def first(text: str, kind: type[Event]) -> Event:
    return next(event for event in parse(text).events if isinstance(event, kind))


def test_a_child_seen_before_its_parents_return_is_born_in_time() -> None:
    """The fork must stand before the child's first event, or a replay has no address space for it."""
    text = """\
10 vfork( <unfinished ...>
11 execve("/bin/true", ["true"], 0x7ffd /* 1 var */) = 0
10 <... vfork resumed>) = 11
"""
    events = parse(text).events
    fork = first(text, Fork)
    assert isinstance(fork, Fork)
    assert (fork.tid, fork.child_tid, fork.flags) == (10, 11, CLONE_VM | CLONE_VFORK)
    assert events.index(fork) < min(i for i, event in enumerate(events) if event.tid == 11)
    done = first(text, Exec)
    assert isinstance(done, Exec)
    assert done.filename == "/bin/true"


def test_threads_share_their_process() -> None:
    """clone3 shows its flags in a struct; a thread's events belong to its parent's process."""
    text = """\
10 clone3({flags=CLONE_VM|CLONE_THREAD|CLONE_SIGHAND, child_tid=0x7f}, 88) = 11
11 munmap(0x1000, 4096) = 0
11 exit(0) = ?
11 +++ exited with 0 +++
10 +++ killed by SIGSEGV (core dumped) +++
"""
    recording = parse(text)
    fork = first(text, Fork)
    assert isinstance(fork, Fork)
    assert fork.child_pid == 10
    assert fork.flags is not None
    assert fork.flags & CLONE_THREAD
    ends = [event for event in recording.events if isinstance(event, Exit)]
    assert [(end.pid, end.tid, end.group_dead) for end in ends] == [(10, 11, False), (10, 10, True)]
    assert recording.header.exit_status == 128 + 11


def test_a_signal_is_told() -> None:
    """--- SIGSEGV --- is the only trace that a failed access leaves in strace's text."""
    signal = first("10 --- SIGSEGV {si_signo=SIGSEGV, si_code=SEGV_MAPERR, si_addr=NULL} ---", Signal)
    assert isinstance(signal, Signal)
    assert (signal.number, signal.delivered) == (11, True)


def test_output_of_the_program_is_counted_not_lost() -> None:
    """Without -o the program's own output stands between the lines."""
    recording = parse("munmap(0x1000, 4096) = 0\nhello, world\n+++ superseded by execve in pid 9 +++\n")
    assert recording.header.skipped == {"lines of another form": 1}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("getpid() = 1\nmunmap(0x1000, 40", r"^line 2: munmap without its result"),
        ("munmap(0x1000, 4096) = -1 EBRANDNEW (x)", r"^line 1: munmap failed with an error of unknown number"),
        ("clone(flags=SIGCHLDstrace: Process 7 attached", r"^the text ends within a call"),
    ],
)
def test_damage_is_refused_with_its_line(text: str, message: str) -> None:
    """Half a call must not be replayed."""
    with pytest.raises(UsageError, match=message):
        parse(text)
