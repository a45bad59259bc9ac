"""Replaying small made-up recordings: what each kind of event does, and what counts as a difference."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest

from emulator.designs.mainline import Mainline
from emulator.image import KernelImage
from fuzz.record.events import Layout, MapsLine, Recording
from fuzz.record.replay import Replay, replay_recording
from fuzz.record.report import ReplayReport
from tests.fuzz.record.perf_text import FIRST, MMAP_BASE, STACK_TOP, Script, exits, forked, map_page, started

ANON = 0x22  # MAP_PRIVATE | MAP_ANONYMOUS


@cache
def mainline() -> KernelImage:
    """An image holds no state."""
    return KernelImage(Mainline)


def replay(recording: Recording) -> ReplayReport:
    return replay_recording(recording, mainline())


def told(report: ReplayReport) -> list[str]:
    return [str(difference) for difference in report.differences]


# ---- one thing at a time


def test_the_highest_free_place_is_expected() -> None:
    """mmap_base is learnt from exec; from there on every address is compared."""
    report = replay(map_page(started(), FIRST - 0x1000).recording())
    assert told(report) == []
    assert report.modelled == {"exec": 1, "mmap": 1}


def test_another_address_is_a_difference() -> None:
    """The kernel left a hole that the machine would have used."""
    report = replay(map_page(started(), FIRST - 0x5000).recording())
    assert any("mmap(0, 1000, 3, 22" in line for line in told(report))


@pytest.mark.parametrize("change", [{"perms": "r--p"}, {"length": 0x2000}, {"offset": 0x5000}])
def test_another_mapping_is_a_difference(change: dict[str, Any]) -> None:
    """perf tells range, permissions and offset of the whole VMA: each is compared."""
    address = FIRST - 0x1000
    script = started().enter(9, 0, 0x1000, 3, ANON, -1, 0)
    script.mapping(address, **{"length": 0x1000, **change})
    report = replay(script.leave(9, address).recording())
    assert any("a mapping: kernel 7effffffe000" in line for line in told(report)), told(report)


def test_a_mapping_of_another_file_is_a_difference() -> None:
    """The same range of another inode is another mapping."""
    address = FIRST - 0x1000
    script = started().enter(9, 0, 0x1000, 3, ANON, -1, 0)
    script.mapping(address, 0x1000, inode=77)
    assert any("of another file" in line for line in told(replay(script.leave(9, address).recording())))


def test_a_mapping_that_the_kernel_did_not_tell_of_is_a_difference() -> None:
    """The machine changed permissions where the kernel changed nothing."""
    script = map_page(started(), FIRST - 0x1000).call(10, FIRST - 0x1000, 0x1000, 1, result=0)
    assert any("told of no such mapping" in line for line in told(replay(script.recording())))


def test_a_mapping_that_the_machine_did_not_make_is_a_difference() -> None:
    """And the other way round."""
    script = started().enter(39).mapping(FIRST - 0x1000, 0x1000).leave(39, 100)
    assert any("told of none" in line for line in told(replay(script.recording())))


def test_an_errno_is_compared() -> None:
    """Failures are results too."""
    script = started().call(25, 0x10000, 0x1000, 0x2000, 0, result=-14).call(11, 0x10001, 0x1000, result=0)
    assert told(replay(script.recording())) == [
        "event 7, 100: munmap(10001, 1000): kernel 0, machine -EINVAL"
    ]


def signal(script: Script, number: int, code: int) -> Script:
    return script.line(
        f"signal:signal_generate: sig={number} errno=0 code={code} comm=prog pid=100 grp=0 res=0"
    )


def test_a_fault_must_succeed_unless_a_signal_follows() -> None:
    """Unmapped memory: the machine's SIGSEGV agrees with a recorded one, and with nothing else."""
    good = signal(started().fault(0x10000), 11, 1).recording()
    assert told(replay(good)) == []
    bad = signal(started().fault(0x10000).call(39, result=100), 17, 1).recording()
    assert told(replay(bad)) == ["event 5, 100: write to 10000: kernel succeeds, machine SIGSEGV"]


def test_a_signal_where_the_machine_succeeds_is_a_difference() -> None:
    """The kernel refused an access that the machine allows."""
    script = map_page(started(), FIRST - 0x1000).fault(FIRST - 0x1000)
    report = replay(signal(script, 11, 2).recording())
    assert told(report) == ["event 8, 100: write to 7effffffe000: kernel a signal, machine succeeds"]


def test_a_signal_for_another_reason_is_none_of_the_faults() -> None:
    """SI_KERNEL: a general protection fault, which happens to follow a page fault."""
    script = map_page(started(), FIRST - 0x1000).fault(FIRST - 0x1000)
    assert told(replay(signal(script, 11, 128).recording())) == []


def test_without_signals_in_the_source_a_failing_fault_is_a_note() -> None:
    """Nobody can say whether the kernel refused it too; it is counted, not hidden."""
    report = replay(started().fault(0x10000).recording())
    assert told(report) == []
    assert report.notes == {"faults that fail in the machine; the source tells of no signals": 1}


def test_a_kernel_access_that_fails_makes_the_call_fail() -> None:
    """The kernel gets no signal for a bad address of its caller: EFAULT is the trace of it."""
    line = "exceptions:page_fault_kernel: address=0x10000 ip=copy error_code=0x0"
    good = started().enter(1, 1, 0x10000, 8).line(line).leave(1, -14)
    assert told(replay(good.recording())) == []
    bad = started().enter(1, 1, 0x10000, 8).line(line).leave(1, 8)
    assert told(replay(bad.recording())) == [
        "event 6, 100: access to 10000 by the kernel: kernel succeeds, machine SIGSEGV"
    ]


def test_the_size_of_a_file_is_learnt_from_sigbus() -> None:
    """Recordings do not tell how long files are; the first SIGBUS does, and holds from then on."""
    address = FIRST - 0x4000
    script = started().enter(9, 0, 0x4000, 1, 2, 3, 0)
    script.mapping(address, 0x4000, "r--p", "/data", offset=0, inode=9).leave(9, address)
    signal(script.fault(address + 0x2000, 4), 7, 2)
    signal(script.fault(address + 0x3000, 4), 7, 2)
    report = replay(script.fault(address, 4).recording())
    assert told(report) == []
    assert report.unmodelled == {"page faults past the end of a file of unknown size": 1}


def test_ftruncate_tells_the_size() -> None:
    """A file that was just cut is known to the byte: beyond it is SIGBUS, modelled."""
    address = FIRST - 0x4000
    script = started().call(319, 0, 0, result=3).call(77, 3, 0x2000, result=0).enter(9, 0, 0x4000, 3, 1, 3, 0)
    script.mapping(address, 0x4000, "rw-s", "/memfd:x", offset=0, inode=9).leave(9, address)
    signal(script.fault(address + 0x2000), 7, 2)
    report = replay(script.recording())
    assert told(report) == []
    assert report.share == 1


def test_a_call_under_way_may_explain_an_address() -> None:
    """Two threads: the munmap had taken effect before it returned, so its range was free for the other's mmap."""
    script = map_page(started(), FIRST - 0x1000)
    script.line("task:task_newtask: pid=101 comm=prog clone_flags=10d00 oom_score_adj=0")
    script.line("sched:sched_process_fork: comm=prog pid=100 child_comm=prog child_pid=101")
    script.call(39, result=100, pid=100, tid=101)
    script.enter(11, FIRST - 0x1000, 0x1000, pid=100, tid=101)
    map_page(script, FIRST - 0x1000)
    script.leave(11, 0, pid=100, tid=101)
    report = replay(script.recording())
    assert told(report) == []
    assert report.notes == {"calls that took effect before they returned": 1}


def with_layout(recording: Recording, pid: int, *lines: MapsLine) -> Recording:
    recording.layouts.append(Layout(pid, pid, "exit", 0, lines))
    return recording


STACK_LINE = MapsLine(STACK_TOP - 0x21000, STACK_TOP, "rw-p", 0, "00:00", 0, "[stack]")
LD_LINE = MapsLine(FIRST, MMAP_BASE, "r-xp", 0, "fe:00", 5, "/lib/ld.so")


def test_a_fork_has_its_own_address_space() -> None:
    """What the child maps, the parent does not have."""
    script = forked(started())
    map_page(script, FIRST - 0x1000, pid=200)
    recording = exits(exits(script, 200), 100).recording()
    with_layout(
        recording, 200, MapsLine(FIRST - 0x1000, FIRST, "rw-p", 0, "00:00", 0, ""), LD_LINE, STACK_LINE
    )
    report = replay(with_layout(recording, 100, LD_LINE, STACK_LINE))
    assert told(report) == []
    assert report.layouts_compared == 2
    assert report.modelled["fork"] == 1


def test_a_vfork_shares_until_exec() -> None:
    """What the child maps before exec, the parent has; what it maps after, not."""
    script = started().enter(58)
    script.line("sched:sched_process_fork: comm=prog pid=100 child_comm=prog child_pid=200")
    map_page(script, FIRST - 0x1000, pid=200)
    script.enter(59, pid=200)
    script.mapping(STACK_TOP - 0x21000, 0x21000, name="[stack]", offset=0x7FFFFFFDE000, pid=200)
    script.mapping(FIRST, 0x1000, "r-xp", "/lib/ld.so", offset=0, inode=5, pid=200)
    script.line("sched:sched_process_exec: filename=/bin/x pid=200 old_pid=200", 200).leave(59, 0, pid=200)
    map_page(script, FIRST - 0x3000, 3, pid=200)
    recording = exits(exits(script, 200).leave(58, 200), 100).recording()
    one = MapsLine(FIRST - 0x1000, FIRST, "rw-p", 0, "00:00", 0, "")
    three = MapsLine(FIRST - 0x3000, FIRST, "rw-p", 0, "00:00", 0, "")
    with_layout(recording, 200, three, LD_LINE, STACK_LINE)
    report = replay(with_layout(recording, 100, one, LD_LINE, STACK_LINE))
    assert told(report) == []
    assert report.modelled["vfork"] == 1


def test_a_wrong_layout_is_a_difference() -> None:
    """The last word: what /proc/PID/maps showed at the end."""
    recording = with_layout(exits(started(), 100).recording(), 100, LD_LINE)
    assert told(replay(recording)) == [
        "event 6, 100: layout at the end: kernel ends before, machine "
        "7ffcfffdf000-7ffd00000000 rw-p 00000000 00:00 0"
    ]


def test_heap_begins_where_the_first_brk_says() -> None:
    """Its place is random and no mapping shows it; from there on brk is compared."""
    heap = 0x5600_0000_0000
    script = started().call(12, 0, result=heap).enter(12, heap + 0x21000).mapping(heap, 0x21000)
    report = replay(script.leave(12, heap + 0x21000).call(12, heap + 0x22000, result=heap).recording())
    assert [line.split(": ", 1)[1] for line in told(report)] == [
        "brk(560000022000): kernel 0x560000000000, machine 0x560000022000"
    ]


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda s: s.call(323, 0, result=3), "userfaultfd"),
        (lambda s: s.call(9, 0, 0x200000, 3, 0x40022, -1, 0, result=-12), "mmap MAP_HUGETLB"),
        (lambda s: s.call(9, 0, 0x1000, 3, 0x62, -1, 0, result=0x40000000), "mmap MAP_32BIT"),
        (lambda s: s.call(9, 0, 0x1000, 3, 2, 9, 0, result=-9), "mmap of a file that cannot be mapped"),
        (lambda s: s.call(28, FIRST, 0x1000, 25, result=0), "madvise MADV_COLLAPSE"),
        (lambda s: s.call(329, FIRST, 0x1000, 1, 2, result=0), "pkey_mprotect with a key"),
        (lambda s: s.call(157, 41, 1, result=0), "prctl PR_SET_THP_DISABLE"),
        (lambda s: s.call(12, 0x1000, result=0x5000), "brk before the place of the heap is known"),
        (lambda s: s.call(11, FIRST, 0x1000, result=-4), "munmap interrupted by a signal"),
        (lambda s: s.call(56, 0, result=-11), "clone that failed"),
        (lambda s: s.call(11, 0, 0x1000, result=0, pid=7), "munmap in an address space of which nothing is known"),
        (lambda s: s.fault(0x1000, pid=7), "faults in an address space of which nothing is known"),
    ],
)
def test_each_kind_that_is_not_modelled_is_counted(make: Callable[[Script], Script], kind: str) -> None:
    """A replay never stays silent about what it left out."""
    report = replay(make(started()).recording())
    assert report.unmodelled == {kind: 1}
    assert report.share < 1


def test_calls_that_have_nothing_to_do_with_memory_stand_apart() -> None:
    """They are listed, and count for nothing in the share; so does an exec that failed."""
    script = started().call(39, result=100).call(59, 1, 2, 3, result=-2).call(157, 15, 0, result=0)
    report = replay(script.recording())
    assert report.apart == {"getpid": 1, "execve that failed": 1, "prctl": 1}
    assert report.share == 1


def test_the_place_of_the_vdso_is_compared() -> None:
    """exec chooses it top-down like any mapping."""
    script = Script()
    script.mapping(STACK_TOP - 0x21000, 0x21000, name="[stack]", offset=0x7FFFFFFDE000)
    script.mapping(FIRST, 0x1000, "r-xp", "/lib/ld.so", offset=0, inode=5)
    script.mapping(FIRST - 0x9000, 0x2000, "r-xp", "[vdso]", offset=0)
    script.line("sched:sched_process_exec: filename=./prog pid=100 old_pid=100").leave(59, 0)
    assert told(replay(script.recording())) == [
        "event 4, 100: place of the vdso: kernel 0x7effffff6000, machine 0x7effffffd000"
    ]


def test_exec_without_its_mappings_is_said() -> None:
    """Without -d perf does not tell what exec maps; the rest is replayed as far as that goes."""
    script = Script().enter(59).line("sched:sched_process_exec: filename=./x pid=100 old_pid=100").leave(59, 0)
    report = replay(script.call(10, 0x1000, 0x1000, 1, result=0).recording())
    assert report.unmodelled == {
        "exec: the source does not show what exec maps": 1,
        "mprotect of what exec mapped, which the source does not show": 1,
    }


def test_memory_that_is_not_given_back_is_a_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    """When the last process has ended no anon_vma and no anonymous folio may be left."""
    run = Replay(exits(started(), 100).recording(), KernelImage(Mainline))
    monkeypatch.setattr(run.context.image.fork, "sys_exit", lambda mm: 0)
    assert any("after the last process" in line for line in told(run.run()))
