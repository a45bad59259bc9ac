"""Reading perf's text: what each line becomes, and that nothing is lost in silence."""

from __future__ import annotations

import pytest

from emulator.errors import UsageError
from fuzz.record import perf_script
from fuzz.record.collector import CLONE_THREAD, CLONE_VFORK, CLONE_VM
from fuzz.record.events import NEVER, Call, Exec, Exit, Fault, Fork, Mapping, Signal
from tests.fuzz.record.perf_text import Script

SAMPLE = """\
         swapper     0/0     [000]     0.000000000: PERF_RECORD_MMAP -1/0: [0xffffffff81000000(0x1) @ 0]: x [kernel]
            a b  19465/19465 [001]  3785.493873825: PERF_RECORD_MMAP2 19465/19465: [0x7ffdb1d53000(0x21000) @ 0x7ffffffde000 00:00 0 0]: rw-p [stack]
            a b  19465/19465 [-01]  3785.493884692: PERF_RECORD_MMAP2 19465/19465: [0x563da3ce1000(0xb000) @ 0 fe:00 2148022 2237314749]: r--p ./my prog
            a b  19465/19465 [001]  3785.493907706: exceptions:page_fault_kernel: address=0x563da3cea1bc ip=elf_load error_code=0x2
            a b  19465/19465 [001]  3785.494151687:     sched:sched_process_exec: filename=./my prog pid=19465 old_pid=19465
            a b  19465/19465 [001]  3785.494155763:        raw_syscalls:sys_exit: NR 59 = 0
            a b  19465/19465 [001]  3785.494172468:   exceptions:page_fault_user: address=0x7fd02739cb70 ip=0x7fd02739cb70 error_code=0x14
            a b  19465/19465 [001]  3785.494202653:       raw_syscalls:sys_enter: NR 12 (0, 7ffdb1d726ec, 0, 37f, 0, 0)
            a b  19465/19465 [001]  3785.494203934:        raw_syscalls:sys_exit: NR 12 = 94823093731328
            a b  19465/19465 [001]  3785.494210000:       signal:signal_generate: sig=11 errno=0 code=2 comm=a b pid=19465 grp=0 res=0
            a b  19465/19465 [001]  3785.494210001:        signal:signal_deliver: sig=11 errno=0 code=2 sa_handler=55b sa_flags=14000000
            a b  19465/19465 [001]  3785.495000000:     sched:sched_process_exit: comm=a b pid=19465 prio=120 group_dead=true
"""  # noqa: E501


def test_every_kind_of_line_becomes_its_event() -> None:
    """A golden sample of perf 6.1: each line's numbers arrive in the right fields, in order."""
    recording = perf_script.parse(SAMPLE.splitlines())
    assert recording.events == [
        Call(0, 19465, 19465, 5, "execve", (), 0, False),
        Mapping(
            1, 19465, 19465, 0x7FFDB1D53000, 0x21000, 0x7FFFFFFDE000, "00:00", 0, 0, "rw-p", "[stack]"
        ),
        Mapping(
            2, 19465, 19465, 0x563DA3CE1000, 0xB000, 0, "fe:00", 2148022, 2237314749, "r--p", "./my prog"
        ),
        Fault(3, 19465, 19465, 0x563DA3CEA1BC, 2, True),
        Exec(4, 19465, 19465, 19465, "./my prog"),
        Fault(6, 19465, 19465, 0x7FD02739CB70, 0x14, False),
        Call(7, 19465, 19465, 8, "brk", (0, 0x7FFDB1D726EC, 0, 0x37F, 0, 0), 94823093731328),
        Signal(9, 19465, 19465, 11, 2, False),
        Signal(10, 19465, 19465, 11, 2, True),
        Exit(11, 19465, 19465, True),
    ]
    assert recording.header.program == ("./my prog",)
    assert recording.header.skipped == {}


def test_timeline_shows_a_call_before_and_after_what_happens_in_it() -> None:
    """A replay runs a call at the mapping inside it, so both of its ends must stand in the order."""
    script = Script().enter(9, 0, 0x1000, 3, 0x22).mapping(0x1000, 0x1000).leave(9, 0x1000)
    shown = [(type(event).__name__, returned) for event, returned in script.recording().timeline()]
    assert shown == [("Call", False), ("Mapping", False), ("Call", True)]


def test_calls_of_two_threads_are_joined_apart() -> None:
    """Enter and exit lines of threads interleave; each thread's belong together."""
    script = Script().enter(9, 1, tid=101).enter(11, 2, tid=102)
    script.leave(9, 4096, tid=101).leave(11, 0, tid=102)
    calls = [event for event in script.recording().events if isinstance(event, Call)]
    assert [(call.tid, call.name, call.at, call.done, call.result) for call in calls] == [
        (101, "mmap", 0, 2, 4096),
        (102, "munmap", 1, 3, 0),
    ]


def test_a_call_that_never_returned_stays() -> None:
    """exit_group has no return; losing it would lose the end of a process."""
    (call,) = Script().enter(231, 0).recording().events
    assert isinstance(call, Call)
    assert call.done == NEVER
    assert call.result is None


def test_fork_takes_its_flags_from_the_call() -> None:
    """clone shows its flags in the first argument; the child's own return from it is no event."""
    script = Script().enter(56, 0x1200011)
    script.line("sched:sched_process_fork: comm=prog pid=100 child_comm=prog child_pid=200")
    script.leave(56, 200).leave(56, 0, pid=200).call(39, result=200, pid=200)
    events = script.recording().events
    assert events[1] == Fork(1, 100, 100, 200, 200, 0x1200011)
    assert [event.tid for event in events] == [100, 100, 200]
    assert script.recording().header.skipped == {}


def test_flags_of_clone3_come_from_task_newtask() -> None:
    """clone3 keeps its flags in memory, so the tracepoint that shows them must win over guessing."""
    script = Script().enter(435, 0x7FFF0000, 0x58)
    script.line("task:task_newtask: pid=200 comm=prog clone_flags=4100 oom_score_adj=0")
    script.line("sched:sched_process_fork: comm=prog pid=100 child_comm=prog child_pid=200")
    script.leave(435, 200)
    (fork,) = (event for event in script.recording().events if isinstance(event, Fork))
    assert fork.flags == CLONE_VM | CLONE_VFORK


def test_without_newtask_a_clone3_that_waited_for_exec_was_a_vfork() -> None:
    """posix_spawn: the parent comes back after the child's exec, so they shared memory until then."""
    script = Script().enter(435, 0x7FFF0000, 0x58)
    script.line("sched:sched_process_fork: comm=prog pid=100 child_comm=prog child_pid=200")
    script.line("sched:sched_process_exec: filename=/bin/x pid=200 old_pid=200", pid=200)
    script.leave(435, 200)
    (fork,) = (event for event in script.recording().events if isinstance(event, Fork))
    assert fork.flags == CLONE_VM | CLONE_VFORK


def test_without_newtask_a_clone3_into_the_same_process_made_a_thread() -> None:
    """The child's lines carry its process: the parent's own means a thread."""
    script = Script().enter(435, 0x7FFF0000, 0x58)
    script.line("sched:sched_process_fork: comm=prog pid=100 child_comm=prog child_pid=200")
    script.leave(435, 200).call(39, result=100, pid=100, tid=200)
    (fork,) = (event for event in script.recording().events if isinstance(event, Fork))
    assert fork.child_pid == 100
    assert fork.flags is not None
    assert fork.flags & (CLONE_VM | CLONE_THREAD) == CLONE_VM | CLONE_THREAD


def test_return_of_sigreturn_closes_whatever_call_is_open() -> None:
    """rt_sigreturn restores other registers, so its exit line carries number -1."""
    (call,) = Script().enter(15).leave(-1, 0).recording().events
    assert isinstance(call, Call)
    assert (call.name, call.result) == ("rt_sigreturn", 0)


def test_signals_to_others_are_no_events() -> None:
    """Only a signal to the task itself can tell that its fault failed."""
    script = Script().line("signal:signal_generate: sig=17 errno=0 code=1 comm=x pid=55 grp=1 res=0")
    assert script.recording().events == []


def test_lost_events_are_counted() -> None:
    """A recording with holes must say so."""
    script = Script().line("PERF_RECORD_LOST lost 12").line("PERF_RECORD_LOST_SAMPLES lost 3")
    assert script.recording().header.lost == 15


def test_unknown_lines_are_counted_by_kind() -> None:
    """Whatever the parser does not know shows in the header."""
    script = Script().line("irq:irq_handler_entry: irq=1 name=x").line("irq:irq_handler_entry: irq=2 name=x")
    script.lines += ["# a comment\n", "\n", "no line of perf\n"]
    assert script.recording().header.skipped == {"irq:irq_handler_entry": 2, "lines of another form": 1}


def test_a_return_without_its_call_is_counted() -> None:
    """A hole in the text (lost lines) shows, in place of joining the wrong halves."""
    script = Script().call(39, result=100).leave(9, 4096).enter(9, 0).leave(11, 0)
    assert script.recording().header.skipped == {
        "returns whose call is missing": 2,
        "calls whose return is missing": 1,
    }


@pytest.mark.parametrize(
    "damaged",
    [
        "raw_syscalls:sys_enter: NR 9 (0, 10",
        "raw_syscalls:sys_enter: NR 9 (0, xyz)",
        "raw_syscalls:sys_exit: NR 9",
        "exceptions:page_fault_user: address=0x10",
        "PERF_RECORD_MMAP2 100/100: [0x10(0x10) @",
        "sched:sched_process_fork: comm=x",
        "sched:sched_process_exec: filename=x",
        "sched:sched_process_exit: comm",
        "task:task_newtask: pid=1",
        "signal:signal_generate: sig=1",
        "signal:signal_deliver: x",
        "PERF_RECORD_LOST many",
    ],
)
def test_a_damaged_event_is_refused_with_its_line(damaged: str) -> None:
    """Half a line must not become a wrong event or vanish."""
    script = Script().call(39, result=100).line(damaged)
    with pytest.raises(UsageError, match=r"^line 3: "):
        script.recording()
