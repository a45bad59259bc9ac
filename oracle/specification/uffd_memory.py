"""Files of memory for userfaultfd in the specification: which of their pages there are, and which of those are mapped.

(Rules: mm/shmem.c, mm/memory.c with PTE markers.) A file of memory has a page once somebody has read or written it, or
userfaultfd has filled it, in whatever process; a hole that is punched takes it away, and so may reclaim where it holds
zeros that nobody wrote. Whether a page table has an entry for it is another thing: reclaim takes entries away, and a
child begins without. Missing pages are those that the file has not, minor faults those on pages that it has and the
page table has not. Protection stays with a page of a file whatever becomes of its entry, until it is ended or the page
is unmapped.

States are those of ``uffd.py``: of a page of a process they say whether it has an entry, of a page of a file (in
``Specification.resident``) whether the file has it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from emulator.mm_types import VM_UFFD_MINOR, VM_UFFD_MISSING, VM_UFFD_WP
from emulator.workload import is_memory
from oracle.specification.page import Page, Pages

if TYPE_CHECKING:
    from oracle.specification.state import Specification
    from oracle.specification.uffd import Userfaults

# What is known of a page beside its contents; contents other than zeros are there in any case. 0: nothing is there.
THERE: Final = 1  # a page, perhaps of zeros, perhaps swapped out
MAYBE: Final = 2  # something may be there
PROTECTED: Final = 4  # a write is told of, where the page is registered for that; nothing being there: it has a marker
MAYBE_PROTECTED: Final = 8
POISONED: Final = 16  # every access fails
MAYBE_POISONED: Final = 32
ZEROS: Final = 64  # of a private mapping of a file: the page of zeros, which goes when the file gets a hole there

PROTECTION: Final = PROTECTED | MAYBE_PROTECTED
POISON: Final = POISONED | MAYBE_POISONED

Cell = tuple[int, int]
"""A page of a file: (file, page number)."""


def cell(page: Page) -> Cell | None:
    """The page of a file of memory that stands behind a page; None: none does."""
    backing = page.backing
    if backing is None or not is_memory(backing.file) or backing.page >= backing.length:
        return None
    return backing.file, backing.page


def can_be_registered(page: Page) -> bool:
    """Is it memory, anonymous or of a file?"""
    return page.backing is None or is_memory(page.backing.file)


def follows(page: Page) -> bool:
    """Does the page show what its file has, having nothing of its own?"""
    return page.backing is not None and (page.backing.shared or page.content is None)


def has(spec: Specification, place: Cell) -> tuple[bool, bool]:
    """(has the file certainly a page there, may it have one)."""
    if place in spec.contested:
        return False, True
    state = spec.resident.get(place, 0)
    certainly = state & THERE != 0 or spec.file_content(*place) != 0
    return certainly, certainly or state != 0


def mapped(spec: Specification, known: Userfaults, number: int, page: Page) -> tuple[bool, bool]:
    """(has a page with a file behind it certainly an entry, may it have one).

    Of a file that may have huge pages nothing is certain: they are mapped as a whole, and unmapped when that is cut.
    """
    assert page.backing is not None
    state = known.states.get(number, 0)
    open_ = page.backing.file in spec.overhangs or (page.backing.file, page.backing.page) in spec.contested
    certainly = not follows(page) or (state & THERE != 0 and not open_)
    return certainly, certainly or open_ or state & (THERE | MAYBE) != 0 or known.blurred


def traps(spec: Specification, known: Userfaults, number: int, page: Page, write: bool) -> tuple[bool, bool]:
    """(may an access to a page of a file of memory be told, must it); poison and guards are somebody else's."""
    place = cell(page)
    if place is None:
        return False, False  # behind the end of its file
    state = known.states.get(number, 0)
    counts = write and page.flags & VM_UFFD_WP != 0
    may, must = counts and state & PROTECTION != 0, counts and state & PROTECTED != 0
    if not follows(page):
        return may, must
    filled, maybe_filled = has(spec, place)
    there, maybe_there = mapped(spec, known, number, page)
    if page.flags & VM_UFFD_MISSING:
        may, must = may or not (filled or there), must or not maybe_filled
    if page.flags & VM_UFFD_MINOR:
        may, must = may or (maybe_filled and not there), must or (filled and not maybe_there)
    if page.flags & VM_UFFD_MISSING and page.flags & VM_UFFD_MINOR:
        must = must or not maybe_there
    return may, must


def was_trapped(spec: Specification, known: Userfaults, number: int, page: Page, write: bool) -> None:
    """What it tells that an access to the page was told of."""
    place = cell(page)
    if place is None:
        return
    state = known.states.get(number, 0)
    absent = follows(page) and traps(spec, known, number, page._replace(flags=page.flags & ~VM_UFFD_WP), write)[0]
    if not (write and page.flags & VM_UFFD_WP and state & PROTECTION):  # so it was not its protection
        known.set((number,), state & ~(THERE | MAYBE))
        filled = has(spec, place)
        if page.flags & VM_UFFD_MISSING and not page.flags & VM_UFFD_MINOR:
            spec.resident.pop(place, None)
        elif page.flags & VM_UFFD_MINOR and not page.flags & VM_UFFD_MISSING and not filled[0]:
            spec.resident[place] = THERE
    elif absent:  # one or the other
        known.states[number] = state | MAYBE
        stir(spec, place)
    else:  # it was brought in, and is protected
        known.states[number] = state & ~(MAYBE | MAYBE_PROTECTED) | THERE | PROTECTED
        if follows(page):
            spec.resident[place] = THERE


def appears(spec: Specification, known: Userfaults, number: int, page: Page) -> None:
    """An access to the page succeeds: there is an entry now, and the file has the page that it leads to."""
    place = cell(page)
    if place is not None and follows(page):
        spec.resident[place] = THERE
    known.states[number] = known.states.get(number, 0) & ~(MAYBE | POISON) | THERE


# ---- what becomes uncertain


def stir(spec: Specification, place: Cell) -> None:
    """The file may have got a page there."""
    spec.resident[place] = spec.resident.get(place, 0) | MAYBE


def stir_files(spec: Specification, pages: Pages, numbers: Iterable[int]) -> None:
    """Whatever stands behind these pages of a process may have got pages there."""
    for number in numbers:
        page = pages.get(number)
        place = cell(page) if page is not None else None
        if place is not None:
            stir(spec, place)


def stir_whole_files(spec: Specification, pages: Pages, numbers: Iterable[int]) -> None:
    """The files behind these pages may have got pages anywhere."""
    found = {page.backing for number in numbers if (page := pages.get(number)) is not None and page.backing is not None}
    for file, length in {(backing.file, backing.length) for backing in found if is_memory(backing.file)}:
        for index in range(length):
            stir(spec, (file, index))


def shaken(spec: Specification) -> None:
    """Reclaim may have taken entries away everywhere, and pages of zeros."""
    for place, state in spec.resident.items():
        if state & THERE:
            spec.resident[place] = state & ~THERE | MAYBE
    for label, known in spec.userfaults.items():
        pages = spec.procs.get(label, {})
        for number, state in known.states.items():
            page = pages.get(number)
            if state & THERE and page is not None and page.backing is not None and follows(page):
                known.states[number] = state & ~THERE | MAYBE


def punched(spec: Specification, file: int, index: int) -> None:
    """The file has no page there any more, and nobody an entry for it; who has a page of his own keeps it.

    A part of a huge page that cannot be split stays, and holds zeros.
    """
    if not is_memory(file):
        return
    spec.resident.pop((file, index), None)
    if file in spec.overhangs:
        stir(spec, (file, index))
    for label, known in spec.userfaults.items():
        pages = spec.procs.get(label, {})
        for number, page in pages.items():
            if page.backing is None or (page.backing.file, page.backing.page) != (file, index):
                continue
            state = known.states.get(number, 0)
            if state & ZEROS and not page.backing.shared:
                page = pages[number] = page._replace(content=None)
            if follows(page):
                known.set((number,), state & (PROTECTION | POISON))


# ---- what other operations leave


def dropped(known: Userfaults, number: int, page: Page) -> None:
    """MADV_DONTNEED of a page of a file: protection stays, where it counts for certain."""
    state = known.states.get(number, 0) & PROTECTION
    if state & PROTECTED and not page.flags & VM_UFFD_WP:
        state = MAYBE_PROTECTED
    known.set((number,), state)


def inherited(state: int, page: Page) -> int:
    """A child's state of a page with a file behind it: its page table is copied where a fault would not do, or not."""
    if state & POISONED:
        state = state & ~POISONED | MAYBE_POISONED
    if state & THERE and follows(page):
        state = state & ~THERE | MAYBE
    return state
