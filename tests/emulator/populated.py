"""Worlds that a test begins with: small pages that are written, the same after a fork, huge pages."""

from __future__ import annotations

from emulator.uapi import MADV_HUGEPAGE
from tests.emulator.kernel_world import World


def written(pages: int = 4, *, fork: bool = False) -> World:
    """Pages 0 and up, each written once; ``fork``: with a child, process 1."""
    world = World()
    world.mmap(0, pages)
    for page in range(pages):
        world.write(page)
    if fork:
        world.fork(1)
    return world


def forked() -> World:
    """Four written pages that a child shares."""
    return written(fork=True)


def huge(pages: int = 8) -> World:
    """Huge pages from page 0 on, each mapped by a PMD; every page is written."""
    world = World()
    world.mmap(0, pages)
    assert world.do("madvise", 0, pages, MADV_HUGEPAGE) == 0
    for page in range(pages):
        world.write(page)
    for first in range(0, pages, 8):
        assert world.folio(first).order == 3
        assert world.folio(first).entire_mapcount == 1
    return world


def two_huge() -> World:
    """Two huge pages side by side, in memory too."""
    return huge(16)
