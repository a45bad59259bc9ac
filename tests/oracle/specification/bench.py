"""A specification on a bench: operations with the outcomes that they are to have, and what must come of them."""

from __future__ import annotations

from emulator.uapi import (
    MAP_FIXED,
    MAP_PRIVATE,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    MREMAP_MUST_RELOCATE_ANON,
    PROT_READ,
    PROT_WRITE,
)
from emulator.workload import (
    Op,
    Outcome,
)
from oracle.contents import unpack
from oracle.specification.page import Limits, Refusal
from oracle.specification.state import Specification

RW = PROT_READ | PROT_WRITE
FIXED = MAP_PRIVATE | MAP_FIXED
MOVE = MREMAP_MAYMOVE | MREMAP_FIXED
MUST = MOVE | MREMAP_MUST_RELOCATE_ANON


class Bench:
    """A specification and a counter of tokens."""

    def __init__(self, *, mremap_flags: int = 0, old_mremap: bool = False) -> None:
        limits = Limits(200, 150, mremap_flags)
        if old_mremap:
            old = limits.profile._replace(mremap_checks_first=False, mremap_moves_several=False)
            limits = limits._replace(profile=old)
        self.spec = Specification(limits)
        self.token = 0

    def try_(self, kind: str, *args: int, ret: int = 0, proc: int = 0) -> Refusal | None:
        self.token += 1
        data = None
        if kind == "read" and ret == 0:
            page = self.spec.procs.get(proc, {}).get(args[0])
            data = () if page is None else unpack(self.spec.content(page))
        return self.spec.apply(Op(kind, proc, args), Outcome(ret, data), self.token)

    def do(self, kind: str, *args: int, ret: int = 0, proc: int = 0) -> int:
        """An op whose outcome must be allowed; the token that it wrote."""
        assert self.try_(kind, *args, ret=ret, proc=proc) is None
        return self.token

    def refuses(self, kind: str, *args: int, ret: int = 0, proc: int = 0) -> Refusal:
        """The outcome must not be allowed. Leaves the state alone."""
        saved, self.spec = self.spec, self.spec.copy()
        refusal = self.try_(kind, *args, ret=ret, proc=proc)
        self.spec = saved
        assert refusal is not None
        return refusal

    def map(self, first: int, pages: int, prot: int = RW, *, file: int = 0, flags: int = FIXED, off: int = 0) -> None:
        self.do("mmap", first, pages, prot, flags, file, off, ret=first)

    def content(self, number: int, proc: int = 0) -> tuple[tuple[int, int], ...]:
        return unpack(self.spec.content(self.spec.procs[proc][number]))

    def mapped(self, proc: int = 0) -> list[int]:
        return sorted(self.spec.procs[proc])
