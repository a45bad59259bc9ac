"""The collision oracle and the differential oracle's treatment of collisions, on the real machine."""

from __future__ import annotations

import pytest

from emulator.designs.mainline import Mainline
from emulator.designs.mainline_fixed import MainlineFixed
from emulator.uapi import (
    EBUSY,
    EEXIST,
    EINVAL,
    MADV_DONTFORK,
    MADV_DONTNEED,
    MADV_FREE,
    MADV_GUARD_INSTALL,
    MADV_MERGEABLE,
    MADV_PAGEOUT,
    MAP_FIXED,
    MAP_GROWSDOWN,
    MAP_PRIVATE,
    MAP_SHARED,
    MCL_CURRENT,
    MREMAP_DONTUNMAP,
    MREMAP_MAYMOVE,
    PROT_READ,
    SIGBUS,
    SIGSEGV,
)
from emulator.workload import FOLL_PIN, FOLL_WRITE, Op, Step, Switch, Workload
from oracle.finding import Finding, distinct
from oracle.judge import Judge
from tests.oracle import planted
from tests.oracle.test_judge import FIXED, MOVE, PIN, RW, image, judge, mmap, op, signatures, workload

FIRST_WHOLE = (Switch(0, "", 99), Switch(1, "", 99))
SECOND_WHOLE = (Switch(1, "", 99), Switch(0, "", 99))


@pytest.mark.parametrize("schedule", [(), FIRST_WHOLE, SECOND_WHOLE, (Switch(0, "", 1), Switch(1, "", 1))])
@pytest.mark.parametrize(
    "ops",
    [
        (op("write", 10, 0), op("munmap", 10, 1)),
        (op("write", 10, 1), op("mremap", 10, 2, 2, MOVE, 50)),
        (op("write", 10, 1), op("madvise", 10, 2, MADV_DONTNEED)),
        (op("fork", 1), op("write", 10, 1), op("write", 10, 2)),
        (op("gup_fast", 10, PIN, 1), mmap(10, 2)),
        (op("gup_fast", 10, FOLL_WRITE, 1), op("fork", 1), op("pin_write", 2, 0)),
        (op("mremap", 10, 2, 2, MOVE, 50), op("mremap", 10, 2, 2, MOVE, 60)),
        (op("reclaim", 10), op("read", 10), op("migrate", 10)),
        (op("exit"), op("write", 10, 1)),
        (op("unpin", 2), op("munmap", 10, 1)),
    ],
    ids=lambda ops: "+".join(o.kind for o in ops) if ops and isinstance(ops[0], Op) else None,
)
def test_right_code_always_has_a_serial_order(ops: tuple[Op, ...], schedule: tuple[Switch, ...]) -> None:
    """Whatever the schedule, and the two states cannot be told from a serial run afterwards either."""
    before = (mmap(10, 2), op("write", 10, 0), op("gup_fast", 11, PIN, 2))
    work = workload(*before, Step(ops, schedule), op("fork", 3), op("write", 10, 3))
    judging = Judge(image(Mainline), image(Mainline), thorough=True)
    assert signatures(judging.run(work)) == []


@pytest.mark.parametrize("nth", range(1, 9))
@pytest.mark.parametrize("schedule", [FIRST_WHOLE, SECOND_WHOLE])
@pytest.mark.parametrize(
    "ops",
    [
        (op("mremap", 10, 4, 4, MOVE, 50), op("munmap", 11, 2)),
        (op("mremap", 10, 4, 4, MOVE, 50), op("mremap", 10, 4, 4, MOVE, 70)),
        (op("mprotect", 10, 4, 1), op("munmap", 11, 1)),
        (op("mmap", 10, 4, RW, FIXED, 1, 0), op("write", 11, 1)),
        (op("fork", 1), op("write", 11, 1)),
        (op("write", 11, 1), op("munmap", 10, 4)),
    ],
)
def test_failures_beside_something(ops: tuple[Op, ...], schedule: tuple[Switch, ...], nth: int) -> None:
    """An allocation fails in one op while another works on the same pages: some order and outcome explains it."""
    work = workload(
        mmap(10, 4),
        op("write", 11, 0),
        op("mprotect", 12, 1, 1),
        Step((ops[0]._replace(fail_nth=nth), *ops[1:]), schedule),
        op("read", 11),
    )
    judging = Judge(image(Mainline), image(Mainline))
    assert [s for s in signatures(judging.run(work)) if not s.startswith("accounting/")] == []


def test_collision_that_no_order_explains_names_the_closest() -> None:
    """The detail says how far the best order came; ops that have nothing to do with the pages are left out."""
    work = workload(
        mmap(10, 4),
        mmap(60, 1),
        Step(
            (op("munmap", 10, 4), mmap(10, 4), op("read", 60)),
            (Switch(0, "planted.half", 1), Switch(1, "", 99)),
        ),
    )
    verdict = judge(planted.MunmapByHalves, work)
    assert signatures(verdict) == ["collision/no-serial-order:mmap+munmap, mappings"]
    assert "closest" in verdict.findings[0].detail


def test_wrong_result_in_a_collision() -> None:
    """No order allows the result, as it would not alone: the op that gave it is named."""
    work = workload(mmap(10, 1), Step((op("mremap", 10, 1, 1, MOVE, 50), op("read", 10))))
    verdict = judge(planted.RefusesMremap, work)
    assert signatures(verdict) == ["specification/result:mremap gave -EINVAL, allowed success"]
    assert verdict.findings[0].op == 0


def test_result_that_another_order_explains_detaches_the_reference() -> None:
    """In a collision the order is a guess: a result that the reference does not give is no finding."""
    work = workload(mmap(10, 2), Step((op("mremap", 10, 2, 3, MREMAP_MAYMOVE, 0), op("read", 10))), op("read", 10))
    verdict = judge(planted.RefusesToGrow, work)
    assert signatures(verdict) == []
    assert "in one order of the collision" in verdict.notes[0]


def test_reference_is_detached_where_it_cannot_follow() -> None:
    """After a write through a mere reference, and after a failure that left a call half done; the verdict says so."""
    wild = workload(mmap(10, 1), op("gup_fast", 10, FOLL_WRITE, 1), op("pin_write", 1, 0), op("read", 10))
    assert "mere reference" in judge(planted.LowPlaces, wild).notes[0]
    notes: set[str] = set()
    for nth in range(1, 10):
        work = workload(
            mmap(10, 4), op("write", 11, 0), op("mremap", 11, 1, 1, MOVE, 50, fail_nth=nth), op("read", 11)
        )
        verdict = Judge(image(Mainline), image(Mainline)).run(work)
        notes.update(verdict.notes)
    assert any("half done" in note for note in notes)


def test_reference_that_stops() -> None:
    """A reference with a bug of its own judges nobody."""
    work = workload(mmap(10, 1), op("madvise", 10, 1, MADV_DONTNEED), op("read", 10))
    verdict = Judge(image(Mainline), image(planted.Stops)).run(work)
    assert signatures(verdict) == []
    assert "the reference stopped" in verdict.notes[0]


def test_reference_that_differs() -> None:
    """Pages and contents are compared with the reference too; here it is the reference that is wrong."""
    lost = workload(mmap(10, 1), op("write", 10, 0), op("reclaim", 10), op("read", 10))
    verdict = Judge(image(Mainline), image(planted.WritesNothingOut)).run(lost)
    assert signatures(verdict) == ["differential/read"]
    verdict = Judge(image(Mainline), image(planted.MprotectLies)).run(
        workload(mmap(10, 1), op("mprotect", 10, 1, 1), op("exec", 10))
    )
    assert signatures(verdict) == ["differential/pages:permissions"]


def test_layouts_that_differ_by_design_excuse_results() -> None:
    """Once layouts differ, a result that hangs on VMA boundaries may differ too."""
    work = workload(
        mmap(10, 2), mmap(12, 2), op("write", 10, 0), op("mremap", 10, 4, 5, MREMAP_MAYMOVE, 0), op("read", 10)
    )
    verdict = Judge(image(Mainline), image(planted.NeverMerges)).run(work)
    assert signatures(verdict) == []
    assert "layouts differ" in verdict.notes[0]


def test_one_finding_for_each_object() -> None:
    """The first oracle to speak about an object in a step wins, complaints give way, a signature is told once."""
    a = Finding("undo", "x", "undo/x", "", 1, None, (("folio", 3),))
    b = Finding("rmap", "y", "rmap/y", "", 1, None, (("folio", 3), ("page", 9)))
    c = Finding("tlb", "z", "tlb/z", "", 1, None, (("page", 9),))
    d = Finding("rmap", "y", "rmap/y", "again", 1, None, (("folio", 4),))
    e = Finding("rmap", "y", "rmap/y", "again", 1, 2, (("folio", 5),))
    later = Finding("tlb", "z", "tlb/z", "", 2, None, (("page", 9),))
    complaint = Finding("kernel", "w", "kernel/w", "", 1, None, (("folio", 3),), False)
    earlier = Finding("kernel", "v", "kernel/v", "", 0, None, (("folio", 3),), False)
    assert distinct([earlier, complaint, a, b, c, d, e, later]) == [earlier, a, d, later]
    assert distinct([complaint, e]) == [complaint, e]
    assert str(e) == "rmap/y at step 1 op 2: again"
    assert str(a) == "undo/x at step 1: "


def test_pins_that_a_collision_made_are_followed() -> None:
    """gup_fast beside mmap: whichever came first, the pin's page is the process's page or it is not."""
    for schedule in (FIRST_WHOLE, SECOND_WHOLE, (Switch(0, "gup_fast.folio_grabbed", 1), Switch(1, "", 99))):
        work = workload(
            mmap(10, 2),
            Step((op("gup_fast", 10, FOLL_PIN | FOLL_WRITE, 1), mmap(10, 1)), schedule),
            op("write", 10, 0),
            op("pin_write", 1, 1),
            op("read", 10),
        )
        assert signatures(judge(Mainline, work)) == []


def test_a_load_may_see_a_store_through_a_mere_reference() -> None:
    """The store is promised to nobody: the load beside it sees it or not, and nothing else."""
    work = workload(
        mmap(10, 1), op("gup_slow", 10, FOLL_WRITE, 1), Step((op("pin_write", 1, 0), op("read", 10))), op("read", 10)
    )
    assert signatures(Judge(image(Mainline)).run(work)) == []


@pytest.mark.parametrize(
    "beside", [op("madvise", 10, 4, MADV_DONTNEED), op("uffd_move", 20, 10, 4, 0)], ids=["dontneed", "move"]
)
def test_others_come_between_pages_that_are_filled(beside: Op) -> None:
    """UFFDIO_COPY goes on page by page: something may be done to the first two and not to the others."""
    work = workload(
        mmap(10, 4),
        mmap(20, 4),
        mmap(40, 4),
        op("write", 40, 0),
        op("write", 43, 0),
        op("uffd_register", 10, 14, 1),
        Step((op("uffd_copy", 10, 40, 4, 0), beside), (Switch(0, "uffd.copied", 3), Switch(1, "", 99))),
        op("read", 10),
        op("read", 13),
    )
    verdict = Judge(image(Mainline), image(Mainline), thorough=True).run(work)
    assert signatures(verdict) == []
    assert [outcome.ret for outcome, *_ in verdict.outcomes[-2:]] == [SIGBUS, 0]
    assert "took turns" in " ".join(verdict.notes)


def test_a_page_that_is_protected_between_its_fault_and_the_write() -> None:
    """UFFDIO_WRITEPROTECT finds the page that the write has brought; tried again, the write fails."""
    work = workload(
        mmap(10, 1),
        op("uffd_register", 10, 1, 2),
        Step((op("write", 10, 0), op("uffd_wp", 10, 1, 1)), (Switch(0, "fault.end", 1), Switch(1, "", 99))),
        op("read", 10),
    )
    verdict = judge(Mainline, work)
    assert signatures(verdict) == []
    assert [outcome.ret for outcome in verdict.outcomes[2]] == [SIGBUS, 0]


def test_a_lock_whose_pages_come_later() -> None:
    """mlock sets flags, and then faults pages in: UFFDIO_MOVE between the two finds both sides locked."""
    work = workload(
        mmap(10, 1),
        mmap(20, 1),
        op("mlock", 20, 1),
        op("uffd_register", 10, 1, 1),
        Step((op("mlock", 10, 1), op("uffd_move", 10, 20, 1, 0)), (Switch(0, "populate.page", 1), Switch(1, "", 99))),
    )
    verdict = judge(Mainline, work)
    assert signatures(verdict) == []
    assert [outcome.ret for outcome in verdict.outcomes[-1]] == [0, 1]


def test_a_private_page_is_copied_when_it_is_brought_in() -> None:
    """mlockall copies the file's page, and then the file changes: the copy, and a store to it, start from before."""
    file, offset = 1, 0
    mapped = (
        op("mmap", 11, 1, RW, MAP_PRIVATE | MAP_FIXED, file, offset),
        op("mmap", 10, 1, RW, MAP_SHARED | MAP_FIXED, file, offset),
    )
    lock, store = op("mlockall", MCL_CURRENT), op("write", 10, 0)
    work = workload(*mapped, Step((lock, store), FIRST_WHOLE), op("write", 11, 1), op("read", 11))
    assert signatures(judge(Mainline, work)) == []
    for last in (op("write", 11, 1), op("read", 11)):
        thrice = workload(*mapped, Step((lock, store, last), (*FIRST_WHOLE, Switch(2, "", 99))), op("read", 11))
        assert signatures(judge(Mainline, thrice)) == []


def test_a_copy_of_what_nobody_has_seen_is_told() -> None:
    """A private page that is copied, and shows what the file never held beside it, is still a finding."""
    work = workload(
        op("mmap", 11, 1, RW, MAP_PRIVATE | MAP_FIXED, 1, 0),
        op("mmap", 10, 1, RW, MAP_SHARED | MAP_FIXED, 1, 0),
        Step((op("mlockall", MCL_CURRENT), op("write", 10, 0)), FIRST_WHOLE),
    )
    assert signatures(judge(planted.CopiesNothing, work)) == ["specification/contents:contents lost, mlockall"]


def test_what_a_copy_reads_it_brings_in() -> None:
    """UFFDIO_COPY loads from an empty page before UFFDIO_MOVE looks for something there to move."""
    work = workload(
        mmap(10, 2),
        op("uffd_register", 10, 1, 2),
        Step(
            (op("uffd_move", 10, 11, 1, 0), op("uffd_copy", 10, 11, 1, 0)),
            (Switch(1, "uffd.copied", 1), Switch(0, "", 99)),
        ),
    )
    verdict = judge(Mainline, work)
    assert signatures(verdict) == []
    assert [outcome.ret for outcome in verdict.outcomes[-1]] == [1, -EEXIST]


def test_the_order_is_one_that_the_pins_show() -> None:
    """A reader's pin taken before the copy stays with the file's page: no order in which it has the copy will do."""
    work = workload(
        op("mmap", 10, 1, RW, MAP_PRIVATE | MAP_FIXED, 1, 0),
        op("read", 10),
        Step(
            (op("gup_fast", 10, FOLL_PIN | FOLL_WRITE, 0), op("gup_fast", 10, FOLL_PIN, 1)),
            (Switch(1, "gup_fast.done", 1),),
        ),
        op("unpin", 0),
        op("mremap", 10, 1, 1, MREMAP_MAYMOVE, 0),
    )
    assert signatures(judge(Mainline, work)) == []


def test_a_mapping_that_changes_between_two_looks() -> None:
    """remap_file_pages looks, lets the lock go, takes it for writing, and gives up where the flags are others now."""
    work = workload(
        op("mmap", 10, 2, RW, MAP_SHARED | MAP_FIXED, 1, 0),
        Step(
            (op("remap_file_pages", 10, 1, 1), op("mprotect", 10, 2, PROT_READ)),
            (Switch(0, "remap_file_pages.seen", 1), Switch(1, "", 99)),
        ),
    )
    verdict = judge(Mainline, work)
    assert signatures(verdict) == []
    assert [outcome.ret for outcome in verdict.outcomes[-1]] == [-EINVAL, 0]


def test_a_part_that_is_moved_beside_the_rest_keeps_its_lock() -> None:
    """DONTUNMAP unlocks what it leaves, and pageout then works there; the new place is locked still."""
    work = workload(
        mmap(10, 2),
        op("mlock", 10, 2),
        Step((op("mremap", 10, 1, 1, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, 12), op("madvise", 10, 2, MADV_PAGEOUT))),
    )
    assert signatures(Judge(image(MainlineFixed)).run(work)) == []


def test_a_flaw_that_wants_nobody_beside_it_has_one_signature() -> None:
    """Whoever runs beside: the finding is the one that the operation gives when it runs alone."""
    beside = (op("reclaim", 20), op("mlockall", MCL_CURRENT), op("fork", 2), op("read", 20))
    alone = signatures(judge(planted.ForkIgnoresAdvice, forked_without(op("fork", 1))))
    assert len(alone) == 1
    for other in beside:
        assert signatures(judge(planted.ForkIgnoresAdvice, forked_without(op("fork", 1), other))) == alone


def forked_without(*last: Op) -> Workload:
    """A page that no child is to have, and then ``last`` together."""
    return workload(mmap(10, 1), mmap(20, 1), op("write", 10, 0), op("madvise", 10, 1, MADV_DONTFORK), Step(last))


def test_what_was_copied_early_is_not_asked_of_the_reference() -> None:
    """UFFDIO_COPY had read before the store came: no order of the two gives that, on whichever design."""
    work = workload(
        mmap(10, 2),
        op("write", 11, 0),
        op("uffd_register", 10, 1, 2),
        Step(
            (op("write", 11, 0), op("uffd_copy", 10, 11, 1, 0)),
            (Switch(1, "uffd.pte_locked", 1), Switch(0, "", 99)),
        ),
    )
    verdict = Judge(image(Mainline), image(Mainline)).run(work)
    assert signatures(verdict) == []
    assert "copied before" in " ".join(verdict.notes)


def test_a_stack_that_grows_before_a_guard_comes() -> None:
    """The store that has made it grow traps when it is tried again; without a stack there is no such excuse."""
    guard = op("madvise", 9, 1, MADV_GUARD_INSTALL)
    schedule = (Switch(0, "fault.folio_allocated", 1), Switch(1, "", 99))
    stack = op("mmap", 10, 1, RW, MAP_PRIVATE | MAP_FIXED | MAP_GROWSDOWN, 0, 0)
    work = workload(stack, Step((op("write", 9, 0), guard), schedule), op("read", 9))
    verdict = judge(Mainline, work)
    assert signatures(verdict) == []
    assert [outcome.ret for outcome in verdict.outcomes[1]] == [SIGSEGV, 0]


@pytest.mark.parametrize("scanned", [False, True])
def test_a_merged_page_is_busy(scanned: bool) -> None:
    """UFFDIO_MOVE wants pages that are the process's alone: after a scan it may find one that is not."""
    scans = [op("ksm_scan", 0)] * 2 if scanned else []
    work = workload(
        mmap(10, 3),
        op("fill", 10, 1),
        op("fill", 11, 1),
        op("madvise", 10, 2, MADV_MERGEABLE),
        *scans,
        op("uffd_register", 10, 3, 1),
        op("uffd_move", 12, 10, 1, 0),
    )
    verdict = judge(Mainline, work)
    assert signatures(verdict) == []
    assert verdict.outcomes[-1][0].ret == (-EBUSY if scanned else 1)


@pytest.mark.parametrize(("flags", "shared"), [(FOLL_PIN, True), (PIN, False)])
def test_a_pin_of_what_has_just_been_thrown_away(flags: int, shared: bool) -> None:
    """For reading it gets the page of zeros, as a child has it; for writing a page of the process's own."""
    work = workload(
        mmap(10, 1),
        op("write", 10, 0),
        op("madvise", 10, 1, MADV_FREE),
        Step((op("reclaim", 10), op("gup_slow", 10, flags, 0)), FIRST_WHOLE),
        op("fork", 1),
        op("read", 10, proc=1),
    )
    verdict = judge(Mainline, work)
    assert signatures(verdict) == []
    assert verdict.outcomes[-1][0].data == ()
    pin = verdict.machine.pins[0]
    assert (pin.folio is verdict.machine.phys.zero_folio) == shared


def test_what_another_order_meets_does_not_hide_the_collision() -> None:
    """Where the operations run one after the other, one order ends in a bug of the kernel: here that did not happen."""
    work = workload(
        mmap(10, 4),
        Step(
            (op("munmap", 10, 4), mmap(10, 4), op("madvise", 10, 1, MADV_DONTNEED)),
            (Switch(2, "", 99), Switch(0, "planted.half", 1), Switch(1, "", 99)),
        ),
    )
    found = signatures(judge(planted.MunmapByHalvesAndStops, work))
    assert [one.split(":")[0] for one in found] == ["collision/no-serial-order"]
