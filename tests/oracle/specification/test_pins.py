"""What get_user_pages promises, in the specification."""

from __future__ import annotations

from emulator.uapi import (
    EBUSY,
    EFAULT,
    EINVAL,
    MADV_DONTNEED,
    MAP_FIXED,
    MAP_SHARED,
    PROT_NONE,
    PROT_READ,
    PROT_WRITE,
)
from emulator.workload import (
    FOLL_LONGTERM,
    FOLL_PIN,
    FOLL_WRITE,
)
from oracle.contents import unpack
from tests.oracle.specification.bench import MOVE, Bench


def test_pin_stays_with_the_parent(bench: Bench) -> None:
    """A page pinned for writing is shared with the device, not with the child."""
    bench.map(10, 1)
    bench.do("gup_fast", 10, FOLL_PIN | FOLL_WRITE, 4)
    bench.do("fork", 1)
    token = bench.do("pin_write", 4, 2)
    assert bench.content(10) == ((2, token),)
    assert bench.content(10, 1) == ()
    own = bench.do("write", 10, 0)
    assert unpack(bench.spec.cells[bench.spec.pins[4].cell]) == ((0, own), (2, token))
    bench.do("mremap", 10, 1, 1, MOVE, 50, ret=50)
    later = bench.do("pin_write", 4, 3)
    assert (3, later) in bench.content(50)
    bench.do("madvise", 50, 1, MADV_DONTNEED)
    bench.do("pin_write", 4, 1)
    assert bench.content(50) == ()
    bench.do("unpin", 4)
    bench.do("unpin", 4, ret=-EINVAL)
    bench.do("pin_write", 4, 0, ret=-EINVAL)
    assert bench.refuses("unpin", 4)


def test_pin_of_a_file_page(bench: Bench) -> None:
    """Through a pin on a shared mapping one writes the file; not with a long-term pin."""
    bench.map(10, 1, file=1, flags=MAP_SHARED | MAP_FIXED)
    bench.do("gup_slow", 10, FOLL_WRITE, 1)
    token = bench.do("pin_write", 1, 0)
    assert bench.content(10) == ((0, token),)
    bench.do("gup_slow", 10, FOLL_PIN | FOLL_WRITE | FOLL_LONGTERM, 2, ret=-EFAULT)
    bench.map(20, 1, file=1)
    bench.do("gup_slow", 20, FOLL_PIN | FOLL_LONGTERM, 2)
    bench.do("write", 10, 1)
    assert bench.content(20) == ((0, token),)


def test_pin_for_reading(bench: Bench) -> None:
    """Coherent where the page has contents of its own; else it may be the zero page, and promises nothing."""
    bench.map(10, 2)
    bench.do("write", 10, 0)
    bench.do("gup_fast", 10, FOLL_PIN, 1)
    bench.do("gup_fast", 10, FOLL_PIN, 2)
    bench.do("gup_fast", 11, FOLL_PIN, 3)
    assert bench.spec.pins[1].cell == bench.spec.pins[2].cell > 0
    assert bench.spec.pins[3].cell == 0
    bench.do("pin_write", 1, 0, ret=-EINVAL)


def test_gup_errors(bench: Bench) -> None:
    """Each refusal of get_user_pages."""
    bench.map(10, 1, PROT_READ)
    bench.map(11, 1, PROT_WRITE)
    bench.map(12, 1, PROT_NONE)
    bench.map(13, 1, file=1, off=16)
    bench.do("gup_slow", 10, FOLL_WRITE, 0, ret=-EFAULT)
    bench.do("gup_slow", 11, 0, 0, ret=-EFAULT)
    assert bench.refuses("gup_slow", 11, 0, 0, ret=0)
    bench.do("gup_fast", 11, 0, 0, ret=-EFAULT)
    bench.do("gup_fast", 11, 0, 0, ret=0)
    bench.do("gup_slow", 10, 0, 0, ret=-EBUSY)
    for page in (12, 13, 14):
        bench.do("gup_slow", page, 0, 1, ret=-EFAULT)
    bench.do("gup_slow", 10, FOLL_LONGTERM, 1, ret=-EINVAL)


def test_reference_without_promise_is_wild(bench: Bench) -> None:
    """What is written through FOLL_GET may show anywhere the folio is mapped."""
    bench.map(10, 1)
    bench.do("gup_fast", 10, FOLL_WRITE, 1)
    bench.do("pin_write", 1, 0)
    assert bench.spec.wild == [1]
