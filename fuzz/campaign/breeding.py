"""Custom mutator and crossover for the engine: bytes in, bytes of a valid workload out.

Both are total: bytes that do not decode (the engine tries the empty input first) are answered with a new
workload, so nothing that is no workload ever enters a corpus.
"""

from __future__ import annotations

from random import Random
from typing import Final

from emulator.errors import UsageError
from emulator.workload import Workload
from fuzz.workload import mutate, wire
from fuzz.workload.generate import Generator
from fuzz.workload.schedules import Schedules

SIZE_MAX: Final = 4096  # bytes of an input; 64 steps take about 1,500
_KNOWN_MAX: Final = 4096
_FRESH: Final = 0.25  # of the children are new workloads: a mutator alone gets caught among similar ones


class Breeder:
    """Breeds inputs for one target; ``mremap_flags`` are those that its design adds."""

    def __init__(self, mremap_flags: int = 0) -> None:
        self._flags = mremap_flags
        self._known: dict[bytes, Workload] = {}  # spares decoding: a parent is run and mutated many times
        self._rng = Random(0)
        self._schedules = Schedules()
        self._mutator = mutate.Mutator(self._rng, mremap_flags_extra=mremap_flags)

    def decode(self, data: bytes) -> Workload | None:
        """The workload, None when the bytes are none."""
        workload = self._known.get(data)
        if workload is None:
            try:
                workload = wire.decode(data)
            except UsageError:
                return None
            self._remember(data, workload)
        return workload

    def mutate(self, data: bytes, size_max: int, seed: int) -> bytes:
        """A child of one parent (``atheris.Setup`` custom_mutator)."""
        rng = self._rng
        rng.seed(seed)
        parent = self.decode(data)
        if parent is None or rng.random() < _FRESH:
            generator = Generator(rng, mremap_flags_extra=self._flags, schedules=self._schedules)
            return self._bytes(generator.generate(), data, size_max)
        return self._bytes(self._mutator.mutate(parent), data, size_max)

    def cross(self, first: bytes, second: bytes, size_max: int, seed: int) -> bytes:
        """A child of two parents (``atheris.Setup`` custom_crossover)."""
        one, other = self.decode(first), self.decode(second)
        if one is None or other is None:
            return self.mutate(first, size_max, seed)
        self._rng.seed(seed)
        return self._bytes(mutate.crossover(one, other, self._rng), first, size_max)

    def _bytes(self, child: Workload, parent: bytes, size_max: int) -> bytes:
        data = wire.encode(child)
        if len(data) > size_max:
            return parent[:size_max]
        self._remember(data, child)
        return data

    def _remember(self, data: bytes, workload: Workload) -> None:
        if len(self._known) >= _KNOWN_MAX:
            self._known.clear()
        self._known[data] = workload
