"""Scripts of calls with the results that they must give, and what tests of userfaultfd look at.

``uffd_wp 0 4 wp; write 0 0 = SIGBUS; madvise 0 1 dontneed``: calls as in the text form of workloads, arguments without
their names, an address or a length being pages; ``= result`` where the call does not give 0.
"""

from __future__ import annotations

from emulator import uapi
from emulator.hw.pte import (
    MARKER_POISON,
    PRESENT,
    SPECIAL,
    UFFD_WP,
    is_guard,
    is_swap,
    is_uffd_wp_marker,
    softleaf_value,
)
from emulator.mm_types import VM_UFFD_MINOR, VM_UFFD_MISSING, VM_UFFD_WP
from emulator.uapi import (
    UFFDIO_REGISTER_MODE_MISSING,
    UFFDIO_REGISTER_MODE_WP,
    result_name,
)
from emulator.workload import OPS, Domain
from fuzz.workload.symbols import parse_value
from tests.emulator.kernel_world import World

MODES = (("m", VM_UFFD_MISSING), ("w", VM_UFFD_WP), ("i", VM_UFFD_MINOR))
MISSING = UFFDIO_REGISTER_MODE_MISSING
WP = UFFDIO_REGISTER_MODE_WP
ON = 1


def run(world: World, script: str, proc: int = 0) -> None:
    """Make the calls of a script one after the other; each must give its result."""
    for call in filter(None, map(str.strip, script.replace("\n", ";").split(";"))):
        text, _, result = call.partition(" = ")
        kind, *words = text.split()
        args = [value(domain, word) for (_, domain), word in zip(OPS[kind].args, words, strict=True)]
        got, expected = world.do(kind, *args, proc=proc), result_of(result or "0")
        assert got == expected, f"{call!r} gave {result_name(got)}"


def value(domain: Domain, word: str) -> int:
    """One argument; advice by its name in the interface."""
    if domain is Domain.ADVICE and not word.isdigit():
        advice: int = getattr(uapi, f"MADV_{word.upper()}")
        return advice
    return parse_value(domain, word)


def result_of(word: str) -> int:
    """A number, the name of a signal, or that of an error."""
    if word.lstrip("-").isdigit():
        return int(word)
    number: int = getattr(uapi, word)
    return number if word.startswith("SIG") else -number


def written(*pages: int, size: int = 8) -> World:
    """One VMA of ``size`` pages from page 0 on, these written."""
    world = World()
    world.mmap(0, size)
    for page in pages:
        world.write(page)
    return world


def registered(mode: int, *pages: int, size: int = 8, features: int = 0) -> World:
    """As ``written``, and then registered in this mode with a userfaultfd that has these features."""
    world = written(*pages, size=size)
    assert world.do("userfaultfd", features) == 0
    assert world.do("uffd_register", 0, size, mode) == 0
    return world


def modes(world: World, proc: int = 0) -> list[tuple[int, int, str]]:
    """(first page, pages, how it is registered) of each VMA: ``m`` missing, ``w`` write protection, ``i`` minor."""
    shown = []
    for first, pages in world.layout(proc):
        flags = world.vma(first, proc).vm_flags
        mode = "".join(letter for letter, flag in MODES if flags & flag)
        assert bool(mode) == (world.vma(first, proc).uffd_ctx is not None)
        shown.append((first, pages, mode or "-"))
    return shown


def entry(world: World, page: int, proc: int = 0) -> str:
    """What the entry of a page is: ``none page zero swap guard marker poison``; ``+`` after it: protected."""
    pte = world.pte(page, proc)
    if not pte:
        return "none"
    if is_guard(pte):
        return "guard"
    if is_uffd_wp_marker(pte):
        return "marker"
    protected = "+" if pte & UFFD_WP else ""
    if pte & PRESENT:
        return ("zero" if pte & SPECIAL else "page") + protected
    if is_swap(pte):
        return "swap" + protected
    assert softleaf_value(pte) == MARKER_POISON
    return "poison"


def entries(world: World, first: int, count: int, proc: int = 0) -> str:
    """The entries of a range, with blanks between."""
    return " ".join(entry(world, page, proc) for page in range(first, first + count))


def trapped(world: World, *pages: int, proc: int = 0) -> None:
    """Every read and write of these pages ends with SIGBUS."""
    for page in pages:
        run(world, f"read {page} = SIGBUS; write {page} 0 = SIGBUS", proc)
