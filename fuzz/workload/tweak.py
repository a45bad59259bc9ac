"""Changes one argument of an operation to a value of its kind that is likely to matter."""

from __future__ import annotations

from random import Random

from emulator.geometry import GEOMETRIES
from emulator.workload import Domain, Op, Workload
from fuzz.workload.domains import MREMAP_FLAGS_MASK, OP_DOMAINS, args_in, clamp


class Tweaks:
    """Knows the pages and lengths of one workload, so that changed arguments meet those of other ops.

    ``mremap_flags``: the MREMAP_* bits that exist; others only give EINVAL.
    """

    __slots__ = ("huge", "lengths", "mremap_flags", "pages", "rng", "table")

    def __init__(self, rng: Random, workload: Workload, mremap_flags: int) -> None:
        self.rng = rng
        self.mremap_flags = mremap_flags
        self.table = OP_DOMAINS[workload.geometry]
        self.huge = GEOMETRIES[workload.geometry].hpage_pmd_nr
        self.pages = args_in(workload, (Domain.PAGE,)) or [0]
        self.lengths = args_in(workload, (Domain.LENGTH,)) or [1]

    def tweak(self, op: Op) -> Op:
        """The op with one argument changed; within its domain, but labels may want repair."""
        spec = self.table[op.kind]
        if not spec.arity:
            return op
        at = self.rng.randrange(spec.arity)
        domain = spec.domains[at]
        value = clamp(domain, self._value(domain, op, at), spec.values[at])
        args = list(op.args)
        # The two lengths of a move belong together more often than not.
        if domain is Domain.LENGTH and op.kind == "mremap" and args[1] == args[2] and self.rng.random() < 0.6:
            args[1] = args[2] = value
        args[at] = value
        return op._replace(args=tuple(args))

    def _value(self, domain: Domain, op: Op, at: int) -> int:
        rng = self.rng
        if domain is Domain.PAGE:
            return self._page(op.args[at])
        if domain is Domain.LENGTH:
            return self._length(op.args[at], op.args[0])
        if domain is Domain.MREMAP_FLAGS:
            return rng.randint(0, MREMAP_FLAGS_MASK) & self.mremap_flags
        values = self.table[op.kind].values[at]
        return rng.choice(values if isinstance(values, range) else sorted(values))

    def _page(self, page: int) -> int:
        rng = self.rng
        roll = rng.random()
        if roll < 0.35:
            return page + rng.choice((-2, -1, 1, 2, -self.huge, self.huge))
        if roll < 0.6:
            return rng.choice(self.pages)
        if roll < 0.85:  # where something ends
            return rng.choice(self.pages) + rng.choice(self.lengths)
        if roll < 0.95:
            return page - page % self.huge
        return page - rng.choice(self.lengths)

    def _length(self, length: int, page: int) -> int:
        rng = self.rng
        roll = rng.random()
        if roll < 0.4:
            return length + rng.choice((-2, -1, 1, 2))
        if roll < 0.6:
            return rng.choice(self.lengths)
        if roll < 0.75:  # up to where something begins
            return abs(rng.choice(self.pages) - page)
        if roll < 0.9:
            return rng.choice((1, self.huge, self.huge - page % self.huge))
        return rng.choice((length * 2, length // 2))
