"""mremap in the specification."""

from __future__ import annotations

import pytest

from emulator.uapi import (
    EFAULT,
    EINVAL,
    ENOMEM,
    MAP_FIXED,
    MAP_SHARED,
    MREMAP_DONTUNMAP,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    MREMAP_MUST_RELOCATE_ANON,
    MREMAP_RELOCATE_ANON,
    PROT_EXEC,
    PROT_READ,
)
from emulator.workload import (
    Op,
)
from oracle.specification.mremap import refused_to_relocate
from tests.oracle.specification.bench import MOVE, MUST, RW, Bench


def test_mremap_parameters(bench: Bench) -> None:
    """-EINVAL before anything else (mm/mremap.c, check_mremap_params)."""
    bench.map(10, 4)
    for old, new, flags, target in (
        (4, 0, MREMAP_MAYMOVE, 0),
        (4, 4, 64, 0),
        (4, 4, MREMAP_FIXED, 50),
        (4, 4, MREMAP_DONTUNMAP, 50),
        (4, 3, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, 50),
        (4, 4, MOVE, 12),
        (4, 4, MOVE, 198),
        (4, 4, MREMAP_MAYMOVE | MREMAP_RELOCATE_ANON, 0),
        (0, 4, MREMAP_MAYMOVE, 0),
    ):
        bench.do("mremap", 10, old, new, flags, target, ret=-EINVAL)
        assert bench.refuses("mremap", 10, old, new, flags, target, ret=target)


def test_relocation_flag_where_the_design_knows_it() -> None:
    """The flag changes nothing that a process sees, and needs MAYMOVE."""
    bench = Bench(mremap_flags=MREMAP_RELOCATE_ANON)
    bench.map(10, 2)
    bench.do("write", 10, 0)
    bench.do("mremap", 10, 2, 1, MREMAP_RELOCATE_ANON, 0, ret=-EINVAL)
    bench.do("mremap", 10, 2, 2, MOVE | MREMAP_RELOCATE_ANON, 50, ret=50)
    assert bench.mapped() == [50, 51]
    assert bench.content(50)




def test_must_flag_where_the_design_knows_it() -> None:
    """It needs MAYMOVE; success is as ever, but for memory of files, which must be refused."""
    bench = Bench(mremap_flags=MREMAP_MUST_RELOCATE_ANON)
    bench.map(10, 2)
    bench.map(20, 2, file=1)
    bench.do("mremap", 10, 2, 1, MREMAP_MUST_RELOCATE_ANON, 0, ret=-EINVAL)
    assert bench.refuses("mremap", 20, 2, 2, MUST, 50, ret=50).cause == "mremap gave success, allowed -EFAULT"
    assert bench.refuses("mremap", 20, 2, 3, MUST, 50, ret=50).cause == "mremap gave success, allowed -EFAULT"
    bench.do("mremap", 10, 2, 2, MUST, 50, ret=50)
    assert bench.mapped() == [20, 21, 50, 51]


def test_must_refuses_files_only_where_they_are_moved() -> None:
    """Grown or shrunk where it stands, nothing is relocated."""
    bench = Bench(mremap_flags=MREMAP_MUST_RELOCATE_ANON)
    bench.map(20, 2, file=1)
    bench.do("mremap", 20, 2, 3, MREMAP_MAYMOVE | MREMAP_MUST_RELOCATE_ANON, 0, ret=20)
    bench.do("mremap", 20, 3, 1, MREMAP_MAYMOVE | MREMAP_MUST_RELOCATE_ANON, 0, ret=20)
    assert bench.mapped() == [20]


REFUSALS = [  # addr, old_len, new_len, flags, new_addr, something else than -EFAULT is demanded
    ("moved", 10, 4, 4, MUST, 50, False),
    ("grown_and_moved", 10, 4, 6, MUST, 50, False),
    ("shrunk_and_moved", 10, 4, 2, MUST, 50, False),
    ("dontunmap", 10, 4, 4, MUST | MREMAP_DONTUNMAP, 50, False),
    ("anywhere", 10, 2, 5, MREMAP_MAYMOVE | MREMAP_MUST_RELOCATE_ANON, 0, False),
    ("without_the_flag", 10, 4, 4, MOVE, 50, True),
    ("shrunk_in_place", 10, 4, 2, MREMAP_MAYMOVE | MREMAP_MUST_RELOCATE_ANON, 0, True),
    ("grown_in_place", 13, 1, 3, MREMAP_MAYMOVE | MREMAP_MUST_RELOCATE_ANON, 0, True),
    ("of_length_0", 10, 0, 4, MUST, 50, True),
    ("overlapping", 10, 4, 4, MUST, 12, True),
]


@pytest.mark.parametrize(
    ("addr", "old", "new", "flags", "target", "wrong"), [pytest.param(*row[1:], id=row[0]) for row in REFUSALS]
)
def test_must_may_be_refused(addr: int, old: int, new: int, flags: int, target: int, wrong: bool) -> None:
    """-EFAULT where a move had begun; not where none was asked for, and not instead of other errors."""
    bench = Bench(mremap_flags=MREMAP_MUST_RELOCATE_ANON)
    bench.map(10, 4)
    op = Op("mremap", 0, (addr, old, new, flags, target))
    assert refused_to_relocate(bench.spec, op, -EFAULT) != wrong
    if wrong:
        assert bench.refuses("mremap", *op.args, ret=-EFAULT)


def test_mremap_shrinks_in_place(bench: Bench) -> None:
    """A plain shrink may cross other mappings and holes."""
    bench.map(10, 4)
    bench.map(15, 2, PROT_READ)
    bench.do("mremap", 10, 7, 2, 0, 0, ret=10)
    assert bench.mapped() == [10, 11]
    bench.do("mremap", 10, 2, 2, 0, 0, ret=10)
    assert bench.refuses("mremap", 10, 2, 1, 0, 0, ret=-EFAULT)


def test_mremap_grows(bench: Bench) -> None:
    """In place where there is room, else by a move if that is allowed."""
    bench.map(10, 2)
    bench.do("mremap", 10, 2, 4, 0, 0, ret=10)
    assert bench.mapped() == [10, 11, 12, 13]
    bench.map(14, 1, PROT_READ)
    bench.do("write", 10, 0)
    bench.do("mremap", 10, 4, 6, 0, 0, ret=-ENOMEM)
    assert bench.refuses("mremap", 10, 4, 6, 0, 0, ret=10).rule == "placement"
    assert bench.refuses("mremap", 10, 4, 6, 0, 0, ret=50)
    assert bench.refuses("mremap", 10, 4, 6, MREMAP_MAYMOVE, 0, ret=-ENOMEM)
    bench.do("mremap", 10, 4, 6, MREMAP_MAYMOVE, 0, ret=50)
    assert bench.mapped() == [14, *range(50, 56)]
    assert bench.content(50)
    assert bench.refuses("mremap", 14, 1, 2, MREMAP_MAYMOVE, 0, ret=50).rule == "placement"


def test_mremap_of_a_file_mapping_grows_along_the_file(bench: Bench) -> None:
    """New pages continue the file where the old ones ended; old length 0 maps a second time."""
    bench.map(10, 2, file=1, flags=MAP_SHARED | MAP_FIXED, off=3)
    bench.do("write", 11, 0)
    bench.do("mremap", 10, 2, 3, 0, 0, ret=10)
    backing = bench.spec.procs[0][12].backing
    assert backing is not None
    assert backing.page == 5
    bench.do("mremap", 10, 0, 2, MREMAP_MAYMOVE, 0, ret=60)
    assert bench.content(61) == bench.content(11) != ()
    bench.do("mremap", 10, 0, 2, 0, 0, ret=-ENOMEM)


def test_mremap_needs_one_vma(bench: Bench) -> None:
    """Pages of different kind stand in different VMAs; of one kind, the kernel knows."""
    bench.map(10, 2)
    bench.map(12, 2, PROT_READ)
    bench.do("mremap", 10, 4, 6, MREMAP_MAYMOVE, 0, ret=-EFAULT)
    assert bench.refuses("mremap", 10, 4, 6, MREMAP_MAYMOVE, 0, ret=60)
    bench.do("mremap", 10, 2, 3, MREMAP_MAYMOVE, 0, ret=-EFAULT)
    bench.do("mremap", 20, 2, 3, MREMAP_MAYMOVE, 0, ret=-EFAULT)
    bench.map(30, 2, file=1, off=0)
    bench.map(32, 2, file=1, off=9)
    bench.do("mremap", 30, 4, 6, MREMAP_MAYMOVE, 0, ret=-EFAULT)
    assert bench.refuses("mremap", 10, 1, 2, MREMAP_MAYMOVE, 0, ret=-EFAULT)


def test_mremap_to_a_fixed_place(bench: Bench) -> None:
    """What stood there goes; a shrinking move drops its tail."""
    bench.map(10, 4)
    bench.map(50, 3, PROT_READ)
    bench.do("write", 10, 0)
    bench.do("mremap", 10, 4, 2, MOVE, 50, ret=50)
    assert bench.mapped() == [50, 51, 52]
    assert bench.content(50)
    assert bench.spec.procs[0][52].flags == PROT_READ
    assert bench.refuses("mremap", 50, 2, 3, MOVE, 60, ret=61)
    bench.do("mremap", 50, 2, 3, MOVE, 60, ret=60)
    assert bench.mapped() == [52, 60, 61, 62]


def test_mremap_of_several_vmas(bench: Bench) -> None:
    """Since 6.17 a pure move takes all VMAs along and leaves gaps of the destination alone."""
    bench.map(10, 1)
    bench.map(12, 1, PROT_READ)
    bench.map(51, 1, PROT_EXEC)
    bench.do("mremap", 10, 4, 4, MOVE, 50, ret=50)
    assert bench.mapped() == [50, 51, 52]
    assert [bench.spec.procs[0][n].flags for n in (50, 51, 52)] == [RW, PROT_EXEC, PROT_READ]
    bench.do("mremap", 10, 4, 4, MOVE, 50, ret=-EFAULT)
    assert bench.refuses("mremap", 50, 3, 3, MOVE, 70, ret=71)
    assert bench.refuses("mremap", 50, 3, 3, MOVE, 70, ret=-ENOMEM)


def test_old_mremap_of_several_vmas() -> None:
    """Before 6.17 every move is of one VMA, and the destination has gone when that is found out."""
    bench = Bench(old_mremap=True)
    bench.map(10, 1)
    bench.map(12, 1, PROT_READ)
    bench.map(50, 4)
    assert bench.refuses("mremap", 10, 3, 3, MOVE, 51, ret=51)
    bench.do("mremap", 10, 3, 3, MOVE, 51, ret=-EFAULT)
    assert bench.mapped() == [10, 12, 50]
    bench.map(60, 2)
    assert bench.refuses("mremap", 60, 1, 1, MOVE, 70, ret=-EFAULT)
    bench.do("mremap", 60, 2, 2, MOVE, 70, ret=-EFAULT)  # two VMAs of one kind, perhaps
    bench.do("mremap", 60, 2, 2, MOVE, 70, ret=70)


def test_old_mremap_shrinks_and_moves() -> None:
    """The tail has gone too when the rest cannot be moved."""
    bench = Bench(old_mremap=True)
    bench.map(10, 1)
    bench.map(11, 2, PROT_READ)
    bench.do("mremap", 10, 3, 2, MOVE, 50, ret=-EFAULT)
    assert bench.mapped() == [10, 11]


@pytest.mark.parametrize(("old", "errno"), [(False, EINVAL), (True, EFAULT)])
def test_which_error_of_mremap_comes_first(old: bool, errno: int) -> None:
    """A place where the range cannot go, for a source that is not there: before 6.17 the latter counts."""
    bench = Bench(old_mremap=old)
    bench.do("mremap", 10, 2, 2, MOVE, 11, ret=-errno)
    assert bench.refuses("mremap", 10, 2, 2, MOVE, 11, ret=-(EINVAL + EFAULT - errno))
    bench.do("mremap", 10, 2, 2, MREMAP_FIXED, 50, ret=-EINVAL)
    bench.map(10, 2)
    bench.do("mremap", 10, 2, 2, MOVE, 11, ret=-EINVAL)


def test_mremap_dontunmap(bench: Bench) -> None:
    """The contents move, the source stays: empty, or showing its file."""
    bench.map(10, 2)
    bench.map(20, 1, file=1, flags=MAP_SHARED | MAP_FIXED)
    bench.do("write", 10, 0)
    bench.do("write", 20, 0)
    bench.do("mremap", 10, 2, 2, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, 0, ret=60)
    assert bench.content(10) == ()
    assert bench.content(60)
    bench.do("mremap", 20, 1, 1, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, 0, ret=70)
    assert bench.content(20) == bench.content(70) != ()
    bench.map(80, 75)
    bench.do("mremap", 80, 75, 75, MOVE | MREMAP_DONTUNMAP, 100, ret=-EINVAL)
    bench.do("mremap", 80, 75, 75, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, 0, ret=-ENOMEM)
