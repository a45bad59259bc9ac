"""Whole workloads: what the judge says of designs with a planted bug, and that it is silent about the right code."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from emulator.designs.base import Design
from emulator.designs.mainline import Mainline
from emulator.designs.relocate_anon import RelocateAnon
from emulator.image import KernelImage
from emulator.uapi import (
    MADV_DONTNEED,
    MADV_HUGEPAGE,
    MADV_PAGEOUT,
    MAP_FIXED,
    MAP_PRIVATE,
    MAP_SHARED,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    MREMAP_RELOCATE_ANON,
    PROT_READ,
    PROT_WRITE,
)
from emulator.workload import FOLL_PIN, FOLL_WRITE, RLIMIT_DATA, Op, Step, Switch, Workload
from oracle.judge import Judge, Verdict
from tests.oracle import planted

RW = PROT_READ | PROT_WRITE
FIXED = MAP_PRIVATE | MAP_FIXED
MOVE = MREMAP_MAYMOVE | MREMAP_FIXED
RELOCATE = MOVE | MREMAP_RELOCATE_ANON
PIN = FOLL_PIN | FOLL_WRITE

_DESIGNS: dict[str, type[Design]] = {}


@cache
def _image(name: str) -> KernelImage:
    return KernelImage(_DESIGNS[name])


def image(design: type[Design]) -> KernelImage:
    """An image keeps nothing of the runs, so all tests share one for each design."""
    _DESIGNS[design.name] = design
    return _image(design.name)


def op(kind: str, *args: int, proc: int = 0, fail_nth: int = 0) -> Op:
    return Op(kind, proc, args, fail_nth)


def mmap(first: int, pages: int, *, proc: int = 0) -> Op:
    return op("mmap", first, pages, RW, FIXED, 0, 0, proc=proc)


def shared(first: int, pages: int) -> Op:
    return op("mmap", first, pages, RW, MAP_SHARED | MAP_FIXED, 0, 0)


def workload(*steps: Op | Step) -> Workload:
    return Workload("small8", tuple(s if isinstance(s, Step) else Step((s,)) for s in steps))


def judge(design: type[Design], work: Workload, *, thorough: bool = False, reference: bool = True) -> Verdict:
    beside = image(Mainline) if reference and design is not Mainline else None
    return Judge(image(design), beside, thorough=thorough).run(work)


def signatures(verdict: Verdict) -> list[str]:
    return [found.signature for found in verdict.findings]


# design, what the judge must say, the workload
PLANTED = [
    (
        planted.NoFlush,
        ["tlb/stale-translation:permission taken away"],
        workload(mmap(10, 1), op("write", 10, 0), op("mprotect", 10, 1, PROT_READ)),
    ),
    (
        planted.StaysExclusive,
        ["structure/exclusive-shared"],
        workload(mmap(10, 1), op("write", 10, 0), op("fork", 1)),
    ),
    (
        planted.ForgetsAnonVma,
        ["rmap/unreachable:folio left behind, present"],
        workload(mmap(10, 2), mmap(14, 2), op("write", 14, 0), mmap(12, 2)),
    ),
    (
        planted.LeavesMigrationEntries,
        ["rmap/migration-entry-left"],
        workload(mmap(10, 1), op("write", 10, 0), op("migrate", 10)),
    ),
    (
        planted.WritesNothingOut,
        ["specification/contents:contents lost, reclaim"],
        workload(mmap(10, 1), op("write", 10, 0), op("reclaim", 10)),
    ),
    (
        planted.MprotectLies,
        ["specification/permissions:mprotect"],
        workload(mmap(10, 1), op("mprotect", 10, 1, PROT_READ)),
    ),
    (
        planted.WritesZerosOut,  # noticed though nobody has it mapped
        ["specification/contents:contents lost, reclaim"],
        workload(shared(10, 1), op("write", 10, 0), op("reclaim", 10)),
    ),
    (
        planted.ForgetsLimits,
        ["specification/limits:fork"],
        workload(op("setrlimit", RLIMIT_DATA, 8), op("fork", 1)),
    ),
    (
        planted.MlockLies,
        ["specification/flags:mlock"],
        workload(mmap(10, 1), op("mlock", 10, 1)),
    ),
    (
        planted.MlockallLies,
        ["specification/flags:mlockall"],
        workload(mmap(10, 1), op("mlockall", 1)),
    ),
    (
        planted.MunmapLies,
        ["specification/mapped:munmap"],
        workload(mmap(10, 1), op("munmap", 10, 1)),
    ),
    (
        planted.ForkLies,
        ["specification/processes:fork"],
        workload(mmap(10, 1), op("fork", 1)),
    ),
    (
        planted.LeaksSlots,
        ["lifetime/swap-count: too many"],
        workload(mmap(10, 1), op("write", 10, 0), op("reclaim", 10), op("munmap", 10, 1)),
    ),
    (
        planted.LeaksPins,
        ["lifetime/refcount:too many, small"],
        workload(mmap(10, 1), op("gup_fast", 10, PIN, 3), op("unpin", 3)),
    ),
    (
        planted.LeaksFolios,
        ["lifetime/folio-leaked"],
        workload(mmap(10, 1), op("write", 10, 0), op("exit")),
    ),
    (
        planted.ForgetsToUncharge,
        ["accounting/total_vm", "accounting/committed:too many, munmap"],
        workload(mmap(10, 4), op("munmap", 10, 1)),
    ),
    (
        planted.KeepsSharedMemory,
        ["lifetime/shared-memory-leaked"],
        workload(shared(10, 4), op("munmap", 10, 4)),
    ),
    (
        planted.LosesSharedMemory,
        ["lifetime/folio-leaked"],
        workload(shared(10, 4), op("write", 10, 0), op("exit")),
    ),
    (
        planted.LosesSharedMemory,
        ["lifetime/swap-count: too many"],
        workload(shared(10, 4), op("write", 10, 0), op("reclaim", 10), op("exit")),
    ),
    (
        planted.KeepsSlotOfSharedMemory,
        ["lifetime/file-page-twice"],
        workload(shared(10, 4), op("write", 10, 0), op("reclaim", 10), op("read", 10)),
    ),
    (
        planted.SharedMemoryIsFree,
        ["accounting/committed:too few, mmap"],
        workload(shared(10, 4), op("munmap", 10, 4)),
    ),
    (
        planted.NeverMerges,
        ["differential/more-vmas:mmap"],
        workload(mmap(10, 1), mmap(11, 1)),
    ),
    (
        planted.RefusesMremap,
        ["specification/result:mremap gave -EINVAL, allowed success"],
        workload(mmap(10, 1), op("mremap", 10, 1, 1, MOVE, 50)),
    ),
    (
        planted.RefusesToGrow,
        ["differential/result:mremap, -EFAULT against success"],
        workload(mmap(10, 2), op("mremap", 10, 2, 3, MREMAP_MAYMOVE, 0)),
    ),
    (
        planted.LowPlaces,
        ["differential/address:mmap"],
        workload(op("mmap", 10, 1, RW, MAP_PRIVATE, 0, 0)),
    ),
    (
        planted.CopiesAtFork,
        ["differential/sharing"],
        workload(mmap(10, 1), op("write", 10, 0), op("fork", 1)),
    ),
    (
        planted.IgnoresPins,
        ["specification/pin-incoherent:fork"],
        workload(mmap(10, 1), op("gup_fast", 10, PIN, 3), op("fork", 1)),
    ),
    (
        planted.KeepsTheLock,
        ["kernel/deadlock:mmap_lock"],
        workload(mmap(10, 2), op("munmap", 10, 1), op("munmap", 11, 1)),
    ),
    (
        planted.Complains,
        ["kernel/planted-warning:VmAreaStruct"],
        workload(mmap(10, 1), op("madvise", 10, 1, MADV_PAGEOUT), op("munmap", 10, 1)),
    ),
    (
        planted.Stops,
        ["kernel/planted-bug:Folio"],
        workload(mmap(10, 1), op("madvise", 10, 1, MADV_PAGEOUT), op("munmap", 10, 1)),
    ),
    (
        planted.MunmapByHalves,
        ["collision/no-serial-order:mmap+munmap, mappings"],
        workload(
            mmap(10, 4),
            Step((op("munmap", 10, 4), mmap(10, 4)), (Switch(0, "planted.half", 1), Switch(1, "", 99))),
        ),
    ),
]


@pytest.mark.parametrize("thorough", [False, True])
@pytest.mark.parametrize(
    ("design", "expected", "work"), PLANTED, ids=[design.name for design, _, _ in PLANTED]
)
def test_planted_bug_is_found(design: type[Design], expected: list[str], work: Workload, *, thorough: bool) -> None:
    """Each planted bug is named, by the oracle that knows best; the same workload on the right code is clean."""
    assert signatures(judge(design, work, thorough=thorough)) == expected
    assert signatures(judge(Mainline, work, thorough=thorough)) == []


def test_a_complaint_does_not_end_the_run() -> None:
    """After WARN_ON the kernel goes on, and so does the judge; after BUG it does not."""
    work = workload(mmap(10, 1), op("madvise", 10, 1, MADV_PAGEOUT), op("munmap", 10, 1))
    assert judge(planted.Complains, work).steps_run == 3
    verdict = judge(planted.Stops, work)
    assert verdict.steps_run == 2
    assert len(verdict.outcomes) == 1


def test_our_own_mistakes_are_not_findings() -> None:
    """An exception that is no KernelBug leaves the judge as it is."""
    with pytest.raises(ZeroDivisionError):
        judge(planted.OurOwnMistake, workload(mmap(10, 1), op("madvise", 10, 1, MADV_PAGEOUT)))


# ---- the posted relocation


UNDO_BESIDE_GUP_FAST = workload(
    mmap(96, 16),
    op("write", 98, 0),
    op("madvise", 96, 16, MADV_HUGEPAGE),
    op("write", 104, 0),
    Step(
        (op("mremap", 96, 16, 16, RELOCATE, 112), op("gup_fast", 98, PIN, 1)),
        (Switch(0, "relocate.undo_begin", 1), Switch(1, "", 99)),
    ),
)


def found(verdict: Verdict) -> list[str]:
    """What ended the run."""
    return [f.signature for f in verdict.findings if f.ends_run]


def test_undo_fails_beside_gup_fast() -> None:
    """The finding of the 2025 review, in five steps: pinned between relocation and undo, the folio is not undone."""
    verdict = judge(RelocateAnon, UNDO_BESIDE_GUP_FAST)
    assert found(verdict) == ["undo/folio-not-restored:pinned"]
    assert verdict.findings[-1].step == 4
    assert signatures(judge(Mainline, without_flag(UNDO_BESIDE_GUP_FAST))) == []


def without_flag(work: Workload) -> Workload:
    """The workload with plain moves."""
    steps = []
    for step in work.steps:
        ops = [
            o._replace(args=(*o.args[:3], o.args[3] & ~MREMAP_RELOCATE_ANON, o.args[4])) if o.kind == "mremap" else o
            for o in step.ops
        ]
        steps.append(Step(tuple(ops), step.schedule))
    return Workload(work.geometry, tuple(steps))


def test_pinned_folio_is_left_behind() -> None:
    """Skipped as a success (kernel-facts 4.6a): the VMA has a new page offset, its pinned folio the old."""
    work = workload(
        mmap(10, 2), op("write", 10, 0), op("gup_fast", 10, PIN, 1), op("mremap", 10, 2, 2, RELOCATE, 50)
    )
    assert found(judge(RelocateAnon, work)) == ["rmap/misplaced:folio left behind, present, pinned"]
    beside = workload(
        mmap(10, 2),
        Step((op("gup_fast", 10, PIN, 1), op("mremap", 10, 2, 2, RELOCATE, 50)), (Switch(0, "", 99),)),
    )
    assert found(judge(RelocateAnon, beside)) == ["rmap/misplaced:folio left behind, present, pinned"]


def test_swap_cache_is_left_behind() -> None:
    """Not-present entries are skipped (4.6b): the cached folio keeps the old index and will be mapped with it."""
    work = workload(
        mmap(10, 2),
        op("write", 10, 0),
        op("gup_slow", 10, 0, 1),
        op("madvise", 10, 2, MADV_PAGEOUT),
        op("mremap", 10, 2, 2, RELOCATE, 50),
    )
    assert found(judge(RelocateAnon, work)) == ["rmap/misplaced:folio left behind, swap cache"]


def test_undo_from_the_advanced_address() -> None:
    """When page tables run out half-way, what has moved is not undone (4.6d)."""
    steps = [mmap(6, 4), op("write", 6, 0), op("write", 9, 0)]
    seen = set()
    for nth in range(1, 12):
        work = workload(*steps, op("mremap", 6, 4, 4, RELOCATE, 53, fail_nth=nth))
        seen.update(found(judge(RelocateAnon, work)))
    assert "undo/folio-not-restored:failure injected" in seen


def test_successful_relocation_is_clean() -> None:
    """Small pages, nobody pins: only the sleeping lock under the spinlock is complained of."""
    work = workload(
        mmap(10, 2),
        op("write", 10, 0),
        op("mremap", 10, 2, 2, RELOCATE, 50),
        op("fork", 1),
        op("write", 50, 1),
        op("reclaim", 50),
        op("read", 50),
        op("munmap", 50, 2),
        op("exit"),
        op("exit", proc=1),
    )
    verdict = judge(RelocateAnon, work, thorough=True)
    assert signatures(verdict) == ["kernel/sleep-in-atomic:folio lock"]
    assert not verdict.notes


def test_destination_left_mapped_after_a_failure() -> None:
    """The fallback unmaps the destination and does not look whether that worked."""
    seen = set()
    for nth in range(1, 10):
        work = workload(
            mmap(96, 16),
            op("write", 98, 0),
            op("madvise", 96, 16, MADV_HUGEPAGE),
            op("write", 104, 0),
            op("mremap", 96, 16, 16, RELOCATE, 112, fail_nth=nth),
        )
        seen.update(found(judge(RelocateAnon, work)))
    assert "specification/after-failure:mremap" in seen


# ---- verdicts


def test_verdict_of_an_empty_workload() -> None:
    """Nothing run, nothing found, and still a digest."""
    verdict = judge(Mainline, workload())
    assert verdict.findings == ()
    assert verdict.steps_run == 0
    assert len(verdict.digest) == 32


def test_runs_do_not_influence_each_other() -> None:
    """One judge, many workloads: the second run of a workload gives what the first gave."""
    judging = Judge(image(RelocateAnon), image(Mainline))
    first = judging.run(UNDO_BESIDE_GUP_FAST)
    judging.run(workload(mmap(1, 5), op("write", 3, 0), op("fork", 1)))
    second = judging.run(UNDO_BESIDE_GUP_FAST)
    assert first[:4] == second[:4]


def test_digest_tells_states_apart() -> None:
    """Results, layout and contents all count."""
    base = [mmap(10, 2), op("write", 10, 0)]
    digests = {
        judge(Mainline, workload(*base)).digest,
        judge(Mainline, workload(*base, op("write", 10, 0))).digest,
        judge(Mainline, workload(*base, op("read", 10))).digest,
        judge(Mainline, workload(*base, op("mprotect", 10, 1, PROT_READ))).digest,
        judge(Mainline, workload(*base, op("madvise", 10, 1, MADV_DONTNEED))).digest,
    }
    assert len(digests) == 5


def test_digest_is_the_same_in_every_process() -> None:
    """Whatever the hash seed: a digest is what tells two machines that they saw the same."""
    program = (
        "from tests.oracle.test_judge import *\n"
        "v = judge(RelocateAnon, UNDO_BESIDE_GUP_FAST)\n"
        "print(v.digest, *signatures(v), sep='|')\n"
    )
    outputs = set()
    for seed in ("0", "1", "977"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        result = subprocess.run(
            [sys.executable, "-c", program],
            cwd=Path(__file__).parents[2],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        outputs.add(result.stdout)
    assert len(outputs) == 1


def test_geometries() -> None:
    """The oracles take the shape of page tables from the machine."""
    for geometry in ("small4", "small8", "x86-64"):
        work = Workload(geometry, workload(mmap(10, 9), op("write", 12, 0), op("fork", 1), op("exit")).steps)
        assert signatures(judge(Mainline, work, thorough=True)) == []


def test_oops_of_a_design() -> None:
    """An exception out of kernel code that mainline does not meet is the design's doing: a finding."""
    work = workload(mmap(0, 2), mmap(3, 2), op("write", 3, 0), mmap(2, 1), op("munmap", 0, 8))
    verdict = judge(planted.Oopses, work)
    assert len(signatures(verdict)) == 1
    assert signatures(verdict)[0].startswith("kernel/oops:AttributeError in ")
    with pytest.raises(AttributeError):
        judge(planted.Oopses, work, reference=False)


def test_exceptions_that_mainline_meets_too_are_ours() -> None:
    """Then it is not the design that is wrong, but the machine or the workload."""
    broken = Workload("small8", (Step((Op("no such op", 0, ()),)),))
    with pytest.raises(KeyError):
        judge(planted.Oopses, broken)
