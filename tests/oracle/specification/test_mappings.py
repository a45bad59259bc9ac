"""mmap and munmap in the specification."""

from __future__ import annotations

from emulator.uapi import (
    EEXIST,
    EINVAL,
    ENOMEM,
    EOPNOTSUPP,
    MAP_FIXED,
    MAP_FIXED_NOREPLACE,
    MAP_GROWSDOWN,
    MAP_PRIVATE,
    MAP_SHARED,
    MAP_SHARED_VALIDATE,
)
from tests.oracle.specification.bench import FIXED, RW, Bench


def test_mmap_errors(bench: Bench) -> None:
    """Each error where it must come, and not where it must not."""
    bench.map(10, 4)
    bench.do("mmap", 10, 0, RW, FIXED, 0, 0, ret=-EINVAL)
    bench.do("mmap", 10, 1, RW, MAP_SHARED | MAP_FIXED | MAP_GROWSDOWN, 0, 0, ret=-EINVAL)
    bench.do("mmap", 10, 1, RW, MAP_SHARED_VALIDATE | MAP_FIXED, 0, 0, ret=-EINVAL)
    bench.do("mmap", 10, 1, RW, MAP_FIXED, 1, 0, ret=-EINVAL)
    bench.do("mmap", 12, 4, RW, MAP_PRIVATE | MAP_FIXED_NOREPLACE, 0, 0, ret=-EEXIST)
    validate = MAP_SHARED_VALIDATE | MAP_FIXED_NOREPLACE
    bench.do("mmap", 20, 4, RW, validate, 1, 0, ret=-EOPNOTSUPP)
    assert bench.refuses("mmap", 20, 4, RW, validate, 1, 0, ret=20)
    bench.do("mmap", 198, 4, RW, FIXED, 0, 0, ret=-ENOMEM)
    assert bench.refuses("mmap", 20, 4, RW, FIXED, 0, 0, ret=-ENOMEM)
    assert bench.refuses("mmap", 12, 4, RW, MAP_PRIVATE | MAP_FIXED_NOREPLACE, 0, 0, ret=12)
    assert bench.refuses("mmap", 20, 4, RW, FIXED, 0, 0, ret=21)


def test_mmap_wants_to_know_whether_it_is_shared(bench: Bench) -> None:
    """Of no type at all: for anonymous memory and for a file."""
    for file in (0, 1):
        bench.do("mmap", 10, 1, RW, MAP_FIXED, file, 0, ret=-EINVAL)
        bench.do("mmap", 10, 1, RW, 0, file, 0, ret=-EINVAL)


def test_mmap_chooses_any_free_place(bench: Bench) -> None:
    """Without FIXED every free range is right, and none that is in use or outside."""
    bench.map(10, 4)
    assert bench.refuses("mmap", 10, 2, RW, MAP_PRIVATE, 0, 0, ret=13).rule == "placement"
    assert bench.refuses("mmap", 10, 2, RW, MAP_PRIVATE, 0, 0, ret=199).rule == "placement"
    bench.do("mmap", 10, 2, RW, MAP_PRIVATE, 0, 0, ret=14)
    assert bench.mapped() == list(range(10, 16))


def test_mmap_out_of_space(bench: Bench) -> None:
    """-ENOMEM without a failure: when no gap is large enough, or too much is mapped."""
    assert bench.refuses("mmap", 0, 100, RW, MAP_PRIVATE, 0, 0, ret=-ENOMEM)
    bench.map(90, 4)
    bench.do("mmap", 0, 120, RW, MAP_PRIVATE, 0, 0, ret=-ENOMEM)
    bench.do("mmap", 0, 149, RW, FIXED, 0, 0, ret=-ENOMEM)
    assert bench.refuses("mmap", 0, 100, RW, MAP_PRIVATE, 0, 0, ret=-ENOMEM)


def test_munmap(bench: Bench) -> None:
    """Holes are fine, length 0 is not, and nothing else fails."""
    bench.map(10, 4)
    bench.do("munmap", 5, 7)
    assert bench.mapped() == [12, 13]
    bench.do("munmap", 12, 0, ret=-EINVAL)
    assert bench.refuses("munmap", 12, 1, ret=-ENOMEM)
