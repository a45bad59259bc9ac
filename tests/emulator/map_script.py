"""A small language for mapping tests, in the notation of the kernel's self-tests.

One statement a line or between semicolons; ``C`` is a carve-out of 30 PROT_NONE pages at the start of the arena::

    A = C1+10 NR        map 10 pages at page 1 of the carve-out (prot RO RWX RX NONE; NR: MAP_NORESERVE; FILE)
    B = A[5:10]         name a part
    ro A[0:5]           mprotect: ro rw rwx none
    F A[5]              write a byte to the first page    W A  to every page    R A  read every page
    unmap A[5:10]       drop A   MADV_DONTNEED
    mv B -> A+5         mremap MAYMOVE|FIXED; to C4, A+5, or +1 +2 (that many times "far" away); renames a bare B
    mvd B -> C4         ... and MREMAP_DONTUNMAP     mvr B -> C4   ... and MREMAP_RELOCATE_ANON
    mvm B -> C4         ... and MREMAP_MUST_RELOCATE_ANON; with EFAULT behind, it fails, and what stood at C4 is gone
    fork, child, parent the child is process 1; the others say who acts from here on; exit ends the child
    fork 2, proc 2      another child, of who acts now
    => A:10             the VMA that holds the first page of A starts there and has 10 pages

A runner keeps its own model of every page's contents and compares at the end.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from emulator.uapi import (
    EFAULT,
    MADV_DONTNEED,
    MAP_FIXED,
    MAP_NORESERVE,
    MAP_PRIVATE,
    MREMAP_DONTUNMAP,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    MREMAP_MUST_RELOCATE_ANON,
    MREMAP_RELOCATE_ANON,
    PROT_EXEC,
    PROT_NONE,
    PROT_READ,
    PROT_WRITE,
)
from tests.emulator.kernel_world import World

CARVE_OUT_PAGES = 30
PROTS = {
    "ro": PROT_READ,
    "rw": PROT_READ | PROT_WRITE,
    "rwx": PROT_READ | PROT_WRITE | PROT_EXEC,
    "rx": PROT_READ | PROT_EXEC,
    "none": PROT_NONE,
}
MOVES = {
    "mv": MREMAP_MAYMOVE | MREMAP_FIXED,
    "mvd": MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP,
    "mvr": MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_RELOCATE_ANON,
    "mvm": MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_MUST_RELOCATE_ANON,
}
RANGE = re.compile(r"(\w+)(?:\[(\d+)(?::(\d+))?\])?$")


class Place(NamedTuple):
    """Pages [start, start+pages) of the arena."""

    start: int
    pages: int


Pages = dict[int, dict[int, int]]


class ScriptRunner:
    """Runs statements on a world and keeps a model of every page's contents, by process."""

    def __init__(self, world: World, far: int, *, carve_out: bool = True) -> None:
        self.world = world
        self.far = far
        self.proc = 0
        self.places: dict[str, Place] = {}
        self.model: dict[int, Pages] = {0: {}}
        self.file_pages: set[int] = set()
        if carve_out:
            self.map(Place(0, CARVE_OUT_PAGES), PROT_NONE, 0)

    def run(self, script: str) -> None:
        """Run every statement, then compare contents and check the machine."""
        for statement in re.split(r"[;\n]", script):
            words = statement.split()
            if words:
                self.statement(words)
        for proc, pages in self.model.items():
            assert self.world.contents(proc) == pages
        self.world.check()

    def statement(self, words: list[str]) -> None:
        match words:
            case [name, "=", what, *options]:
                self.name(name, what, options)
            case ["=>", *expectations]:
                for expectation in expectations:
                    name, pages = expectation.split(":")
                    start = self.places[name].start
                    assert self.world.span(start, self.proc) == (start, int(pages)), expectation
            case [move, what, "->", where] if move in MOVES:
                self.move(what, where, MOVES[move])
            case [move, what, "->", where, "EFAULT"] if move in MOVES:
                self.refused(what, where, MOVES[move])
            case [prot, what] if prot in PROTS:
                place = self.place(what)
                self.ok("mprotect", place.start, place.pages, PROTS[prot])
            case ["F", what]:
                self.write(self.place(what).start)
            case ["W", what]:
                for page in self.range(what):
                    self.write(page)
            case ["R", what]:
                for page in self.range(what):
                    self.ok("read", page)
                    self.touched(page)
            case ["unmap", what]:
                place = self.place(what)
                self.ok("munmap", place.start, place.pages)
                for page in self.range(what):
                    self.model[self.proc].pop(page, None)
            case ["drop", what]:
                place = self.place(what)
                self.ok("madvise", place.start, place.pages, MADV_DONTNEED)
                self.model[self.proc].update((page, {}) for page in self.range(what))
            case ["fork", *label]:
                child = int(label[0]) if label else 1
                self.ok("fork", child)
                self.model[child] = {page: dict(content) for page, content in self.model[self.proc].items()}
            case ["exit"]:
                assert self.world.do("exit", proc=1) == 0
                del self.model[1]
                self.proc = 0
            case ["child"]:
                self.proc = 1
            case ["proc", label]:
                self.proc = int(label)
            case ["parent"]:
                self.proc = 0
            case _:
                raise AssertionError(f"unknown statement {' '.join(words)!r}")

    # ---- statements

    def name(self, name: str, what: str, options: list[str]) -> None:
        carved = re.fullmatch(r"C(\d+)\+(\d+)", what)
        if carved is None:
            self.places[name] = self.place(what)
            return
        prot = next((PROTS[o.lower()] for o in options if o.lower() in PROTS), PROT_READ | PROT_WRITE)
        flags = MAP_NORESERVE if "NR" in options else 0
        self.places[name] = Place(int(carved[1]), int(carved[2]))
        self.map(self.places[name], prot, flags, file=int("FILE" in options))

    def map(self, place: Place, prot: int, flags: int, file: int = 0) -> None:
        args = (place.start, place.pages, prot, flags | MAP_PRIVATE | MAP_FIXED, file, 0)
        assert self.world.do("mmap", *args, proc=self.proc) == place.start
        self.model[self.proc].update((p, {}) for p in range(place.start, place.start + place.pages))
        if file:
            self.file_pages.update(range(place.start, place.start + place.pages))

    def write(self, page: int) -> None:
        self.ok("write", page, 0)
        self.touched(page)
        content = self.world.content(page, self.proc)
        assert content is not None
        self.model[self.proc].setdefault(page, {})[0] = content[0]

    def touched(self, page: int) -> None:
        """Of a file's page the model knows nothing until it is mapped."""
        content = self.world.content(page, self.proc)
        if page in self.file_pages and content is not None:
            self.model[self.proc][page] = content

    def move(self, what: str, where: str, flags: int) -> None:
        source = self.place(what)
        target = self.target(source, where)
        args = (source.start, source.pages, source.pages, flags, target)
        assert self.world.do("mremap", *args, proc=self.proc) == target
        pages = self.model[self.proc]
        moved = {p: pages.get(p) for p in range(source.start, source.start + source.pages)}
        for page, content in moved.items():
            there = page - source.start + target
            if content is not None:
                pages[there] = content
                pages[page] = {}
                if not flags & MREMAP_DONTUNMAP:
                    del pages[page]
        if what in self.places:
            self.places[what] = Place(target, source.pages)

    def refused(self, what: str, where: str, flags: int) -> None:
        """A move that fails when its destination has been made free."""
        source = self.place(what)
        target = self.target(source, where)
        args = (source.start, source.pages, source.pages, flags, target)
        assert self.world.do("mremap", *args, proc=self.proc) == -EFAULT
        for page in range(target, target + source.pages):
            self.model[self.proc].pop(page, None)

    # ---- operands

    def ok(self, kind: str, *args: int) -> None:
        assert self.world.do(kind, *args, proc=self.proc) == 0, (kind, args)

    def place(self, what: str) -> Place:
        found = RANGE.match(what)
        assert found is not None, what
        place = self.places[found[1]]
        if found[2] is None:
            return place
        first = int(found[2])
        last = int(found[3]) if found[3] else first + 1
        return Place(place.start + first, last - first)

    def range(self, what: str) -> range:
        place = self.place(what)
        return range(place.start, place.start + place.pages)

    def target(self, source: Place, where: str) -> int:
        if where.startswith("+"):
            return source.start + int(where) * self.far
        name, _, offset = where.partition("+")
        base = int(name[1:]) if re.fullmatch(r"C\d+", name) else self.places[name].start
        return base + int(offset or 0)
