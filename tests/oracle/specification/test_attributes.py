"""Seals, names, policies and the rest in the specification: errors, and what must stay as it is."""

from __future__ import annotations

import pytest

from emulator.designs.mainline import Mainline
from emulator.mm_types import VM_LOCKED, VM_MERGEABLE, VM_SEALED
from emulator.uapi import (
    EBADF,
    EFAULT,
    EINVAL,
    ENOMEM,
    ENOSYS,
    EPERM,
    MADV_DONTNEED,
    MADV_UNMERGEABLE,
    MAP_FIXED,
    MAP_SHARED,
    MREMAP_DONTUNMAP,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    PROT_READ,
    SIGSEGV,
)
from emulator.workload import MEMFD, Op, Outcome, Step, Workload
from oracle.judge import Judge
from oracle.specification.failure import left_in_part, settle
from oracle.specification.page import NAME, NAME_SHIFT, POLICY, POLICY_SHIFT, Page
from tests.emulator.kernel_world import kernel_image
from tests.oracle import planted
from tests.oracle.specification.bench import FIXED, RW, Bench

MOVE = MREMAP_MAYMOVE | MREMAP_FIXED


class Attributes(Bench):
    def kept(self, mask: int, *numbers: int, proc: int = 0) -> list[int]:
        return [self.spec.procs[proc][number].flags & mask for number in numbers]

    def without(self, **rules: object) -> None:
        """A kernel that is another in these rules of its profile."""
        limits = self.spec.limits
        self.spec.limits = limits._replace(profile=limits.profile._replace(**rules))  # type: ignore[arg-type]


@pytest.fixture
def bench() -> Attributes:
    made = Attributes()
    made.map(10, 4)
    return made


# ---- seals


def test_sealing(bench: Attributes) -> None:
    """Everything in the range or, where there is a hole, nothing."""
    bench.do("mseal", 12, 3, ret=-ENOMEM)
    assert bench.refuses("mseal", 12, 3).rule == "result"
    bench.do("mseal", 12, 1)
    assert bench.kept(VM_SEALED, 11, 12, 13) == [0, VM_SEALED, 0]
    bench.without(mseal=False)
    bench.do("mseal", 12, 1, ret=-ENOSYS)


@pytest.mark.parametrize(
    ("kind", "args"),
    [
        ("munmap", (10, 4)),
        ("mmap", (12, 2, RW, FIXED, 0, 0)),
        ("mprotect", (12, 1, RW)),
        ("mremap", (12, 1, 1, 0, 0)),
        ("mremap", (10, 1, 1, MOVE, 12)),
        ("mremap", (10, 3, 1, 0, 0)),
        ("mremap", (10, 3, 1, MOVE, 50)),
        ("mremap", (10, 3, 4, MREMAP_MAYMOVE, 0)),
    ],
)
def test_refused(bench: Attributes, kind: str, args: tuple[int, ...]) -> None:
    """EPERM and nothing else (where the source is not one mapping, EFAULT comes first)."""
    bench.do("mseal", 12, 1)
    error = EFAULT if args == (10, 3, 4, MREMAP_MAYMOVE, 0) else EPERM
    assert bench.refuses(kind, *args, ret=args[0]).rule == "result"
    bench.do(kind, *args, ret=-error)
    assert bench.mapped() == [10, 11, 12, 13]


def test_a_refused_shrinking_move_has_unmapped_its_destination(bench: Attributes) -> None:
    """The destination goes first, then the tail of the source meets the seal."""
    bench.do("mseal", 12, 1)
    bench.map(50, 2)
    bench.do("mremap", 10, 3, 1, MOVE, 50, ret=-EPERM)
    assert bench.mapped() == [10, 11, 12, 13, 51]


def test_mprotect_up_to_the_seal(bench: Attributes) -> None:
    bench.do("mseal", 12, 1)
    bench.do("mprotect", 10, 4, PROT_READ, ret=-EPERM)
    assert bench.kept(7, 10, 11, 12, 13) == [PROT_READ, PROT_READ, RW, RW]


def test_discards(bench: Attributes) -> None:
    """Only what the process could write itself may be thrown away."""
    bench.do("mprotect", 10, 2, PROT_READ)
    bench.do("mseal", 10, 4)
    bench.do("madvise", 10, 1, MADV_DONTNEED, ret=-EPERM)
    bench.do("madvise", 12, 1, MADV_DONTNEED)


def test_a_move_of_several_mappings_that_meets_a_seal(bench: Attributes) -> None:
    """What is of another kind before it has moved; of its own kind, so much as the machine shows."""
    bench.do("mprotect", 10, 2, PROT_READ)
    bench.map(60, 1)
    bench.do("mseal", 60, 1)
    op, outcome = Op("mremap", 0, (10, 4, 4, MOVE, 57)), Outcome(-EPERM)  # page 13 onto the seal
    assert left_in_part(bench.spec, op, outcome)
    for moved in (0, 1):
        spec = bench.spec.copy()
        before = dict(spec.procs[0])
        went = {10, 11} | ({12} if moved else set())
        shown = {n: page for n, page in before.items() if n not in went}
        shown.update((n + 47, before[n]) for n in went)
        assert settle(spec, op, outcome, 1, lambda _, n, page, shown=shown: shown.get(n) == page) is None  # type: ignore[misc]
        assert spec.procs[0] == shown
    assert bench.refuses("mremap", *op.args, ret=57).rule == "result"
    bench.do("mprotect", 12, 1, PROT_READ)
    bench.do("mremap", *op.args, ret=-EPERM)  # three pages of one kind before one of another: no doubt is left
    assert bench.mapped() == [13, 57, 58, 59, 60]


# ---- names and policies


def test_shared_memory_has_names_in_newer_kernels(bench: Attributes) -> None:
    bench.map(20, 2, flags=MAP_SHARED | MAP_FIXED)
    bench.do("set_vma_name", 20, 1, 1)
    assert bench.kept(NAME, 20, 21) == [1 << NAME_SHIFT, 0]
    bench.map(22, 2, file=MEMFD + 1)
    bench.do("set_vma_name", 22, 1, 1)
    bench.without(anon_shmem_name=False)
    bench.do("set_vma_name", 20, 1, 1, ret=-EBADF)
    bench.do("set_vma_name", 22, 1, 1, ret=-EBADF)


def test_names(bench: Attributes) -> None:
    """Only anonymous memory; what stands before a file is named, a hole is an error at the end."""
    bench.map(15, 1)
    bench.do("set_vma_name", 12, 4, 2, ret=-ENOMEM)
    assert bench.kept(NAME, 11, 12, 15) == [0, 2 << NAME_SHIFT, 2 << NAME_SHIFT]
    bench.map(14, 1, file=1)
    bench.do("set_vma_name", 11, 5, 1, ret=-EBADF)
    assert bench.kept(NAME, 11, 13, 15) == [1 << NAME_SHIFT, 1 << NAME_SHIFT, 2 << NAME_SHIFT]
    bench.do("set_vma_name", 12, 1, 0)
    assert bench.kept(NAME, 12) == [0]
    bench.do("mremap", 12, 2, 2, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, 50, ret=-EFAULT)  # not one mapping
    bench.without(anon_vma_name=False)
    bench.do("set_vma_name", 10, 1, 1, ret=-EINVAL)


def test_policies(bench: Attributes) -> None:
    """A hole is an error before anything is done, except for the default policy."""
    bench.do("mbind", 12, 3, 1, ret=-EFAULT)
    bench.do("mbind", 12, 2, 3)
    assert bench.kept(POLICY, 11, 12) == [0, 3 << POLICY_SHIFT]
    bench.do("mremap", 11, 2, 2, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, 50, ret=-EFAULT)
    bench.do("mbind", 12, 9, 0)
    assert bench.kept(POLICY, 12) == [0]
    bench.do("mbind", 50, 1, 0, ret=-EFAULT)


def test_memory_merge(bench: Attributes) -> None:
    """Private memory is offered, now and later, by children too; shared memory never."""
    bench.map(20, 1, file=1, flags=MAP_SHARED | MAP_FIXED)
    bench.do("memory_merge", 1)
    bench.map(21, 1, file=1)
    assert bench.kept(VM_MERGEABLE, 10, 20, 21) == [VM_MERGEABLE, 0, VM_MERGEABLE]
    bench.do("fork", 1)
    bench.do("mmap", 22, 1, RW, FIXED, 0, 0, ret=22, proc=1)
    assert bench.kept(VM_MERGEABLE, 10, 22, proc=1) == [VM_MERGEABLE] * 2
    bench.do("memory_merge", 0)
    assert bench.kept(VM_MERGEABLE, 10, 21) == [0, 0]
    bench.without(ksm_per_process=False)
    bench.do("memory_merge", 1, ret=-EINVAL)


def test_protection_keys(bench: Attributes) -> None:
    bench.do("pkey_mprotect", 10, 1, PROT_READ, 1, ret=-EINVAL)
    bench.do("pkey_mprotect", 10, 1, PROT_READ, 0)
    assert bench.kept(7, 10) == [PROT_READ]


def test_remapped_pages(bench: Attributes) -> None:
    """Shared mappings of one file and kind; they show other pages of it then."""
    bench.do("remap_file_pages", 10, 1, 0, ret=-EINVAL)
    bench.map(20, 4, file=1, flags=MAP_SHARED | MAP_FIXED)
    token = bench.do("write", 23, 1)
    bench.do("mlock", 20, 2)
    bench.do("remap_file_pages", 20, 3, 3, ret=-EINVAL)
    bench.do("remap_file_pages", 20, 2, 3)
    assert (1, token) in bench.content(20)
    assert bench.kept(VM_LOCKED, 20, 22) == [VM_LOCKED, 0]
    bench.do("mseal", 22, 2)
    bench.do("remap_file_pages", 22, 1, 0, ret=-EPERM)


@pytest.mark.parametrize(
    ("op", "after"),
    [
        (Op("mseal", 0, (10, 2)), Page(RW | VM_SEALED, None, 0)),
        (Op("set_vma_name", 0, (10, 2, 1)), Page(RW | 1 << NAME_SHIFT, None, 0)),
        (Op("mbind", 0, (10, 2, 2)), Page(RW | 2 << POLICY_SHIFT, None, 0)),
        (Op("pkey_mprotect", 0, (10, 2, PROT_READ, 0)), Page(PROT_READ, None, 0)),
    ],
)
def test_after_a_failure(bench: Attributes, op: Op, after: Page) -> None:
    """Each mapping in the range is done or not."""
    shown = {10: after, 11: Page(RW, None, 0)}
    assert settle(bench.spec, op, Outcome(-ENOMEM, None, True), 1, lambda _, n, page: shown[n] == page) is None
    assert bench.spec.procs[0][10] == after


def test_offers_that_could_not_be_taken_back(bench: Attributes) -> None:
    """All that can be offered is offered then, also what madvise had taken back before, and so is what comes."""
    bench.map(14, 1, file=1, flags=MAP_SHARED | MAP_FIXED)
    bench.do("memory_merge", 1)
    bench.do("madvise", 11, 1, MADV_UNMERGEABLE)
    for on, offered in ((1, 0), (0, VM_MERGEABLE)):
        op = Op("memory_merge", 0, (on,))
        assert settle(bench.spec, op, Outcome(-ENOMEM, None, True), 1, lambda *_: True) is None
        assert bench.kept(VM_MERGEABLE, 10, 11, 14) == [VM_MERGEABLE, offered, 0]
    bench.map(20, 1)
    assert bench.kept(VM_MERGEABLE, 20) == [VM_MERGEABLE]


# ---- on the machine


@pytest.mark.parametrize(
    ("design", "op", "signature"),
    [
        (planted.ForgetsNames, Op("set_vma_name", 0, (0, 1, 1)), "specification/name:set_vma_name"),
        (planted.ForgetsPolicies, Op("mbind", 0, (0, 1, 1)), "specification/policy:mbind"),
        (planted.SealsNothing, Op("mseal", 0, (0, 1)), "specification/flags:mseal"),
    ],
)
def test_planted(design: type, op: Op, signature: str) -> None:
    """A call that says yes and does nothing."""
    workload = Workload("small4", (Step((Op("mmap", 0, (0, 2, RW, FIXED, 0, 0)),)), Step((op,))))
    assert Judge(kernel_image(Mainline)).run(workload).findings == ()
    assert [f.signature for f in Judge(kernel_image(design)).run(workload).findings] == [signature]


def test_mprotect_stops_at_a_hole() -> None:
    """What stands before the hole is changed all the same."""
    bench = Bench()
    bench.map(10, 2)
    bench.map(13, 2)
    bench.do("mprotect", 10, 5, PROT_READ, ret=-ENOMEM)
    bench.do("write", 11, 0, ret=SIGSEGV)
    bench.do("write", 13, 0)
    bench.do("mprotect", 20, 1, PROT_READ, ret=-ENOMEM)
    bench.do("mprotect", 20, 0, PROT_READ)
    assert bench.refuses("mprotect", 13, 2, PROT_READ, ret=-ENOMEM)
