"""Which kinds of operation a workload is made of: each draws weights of its own and leaves some kinds out."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate
from random import Random
from typing import Final, NamedTuple

from fuzz.workload.recipes import RECIPES, Recipe

# Weights before the swarm: moves and writes most, as merging and relocation are what is tested.
WEIGHTS: Final[dict[str, int]] = {
    "mmap": 14,
    "munmap": 7,
    "mremap": 24,
    "mprotect": 7,
    "madvise": 8,
    "fork": 4,
    "exit": 1,
    "read": 6,
    "write": 14,
    "exec": 1,
    "gup_fast": 6,
    "gup_slow": 4,
    "unpin": 3,
    "pin_write": 2,
    "reclaim": 5,
    "swap_readahead": 2,
    "migrate": 4,
    "process_madvise": 2,
    "mlock": 2,
    "munlock": 1,
    "mlock2": 1,
    "mlockall": 1,
    "munlockall": 1,
    "brk": 3,
    "mseal": 1,
    "set_vma_name": 1,
    "memory_merge": 1,
    "mbind": 1,
    "pkey_mprotect": 1,
    "remap_file_pages": 1,
    "userfaultfd": 1,
    "uffd_close": 1,
    "uffd_register": 10,
    "uffd_unregister": 2,
    "uffd_copy": 5,
    "uffd_zeropage": 2,
    "uffd_wp": 6,
    "uffd_move": 8,
    "uffd_poison": 1,
    "uffd_continue": 3,
    "fill": 4,
    "ksm_scan": 3,
    "thp_sizes": 2,
    "setrlimit": 1,
    "max_map_count": 1,
    "overcommit_memory": 1,
}
# The same for what runs beside another op: what works without the mmap lock, or tries to.
COMPANIONS: Final[dict[str, int]] = {
    "mmap": 1,
    "munmap": 4,
    "mremap": 5,
    "mprotect": 2,
    "madvise": 3,
    "fork": 4,
    "read": 4,
    "write": 5,
    "exec": 1,
    "gup_fast": 12,
    "gup_slow": 3,
    "unpin": 2,
    "pin_write": 2,
    "reclaim": 6,
    "swap_readahead": 2,
    "migrate": 5,
    "process_madvise": 2,
    "mlock": 2,
    "munlock": 1,
    "mlock2": 1,
    "mlockall": 1,
    "munlockall": 1,
    "brk": 1,
    "mseal": 1,
    "set_vma_name": 1,
    "memory_merge": 1,
    "mbind": 1,
    "pkey_mprotect": 1,
    "remap_file_pages": 1,
    "userfaultfd": 2,
    "uffd_close": 3,
    "uffd_register": 2,
    "uffd_unregister": 3,
    "uffd_copy": 3,
    "uffd_zeropage": 2,
    "uffd_wp": 4,
    "uffd_move": 5,
    "uffd_poison": 2,
    "uffd_continue": 2,
    "fill": 2,
    "ksm_scan": 3,
    "thp_sizes": 1,
    "setrlimit": 1,
    "max_map_count": 1,
    "overcommit_memory": 1,
}
# What most workloads are without: it makes the layout richer, and is not what designs change.
_SELDOM: Final = frozenset(
    (
        "mlock", "munlock", "mlock2", "mlockall", "munlockall", "brk", "mseal", "set_vma_name", "memory_merge", "mbind",
        "pkey_mprotect", "remap_file_pages", "process_madvise", "setrlimit",
        "max_map_count", "overcommit_memory",
    )
)  # fmt: skip
_USERFAULTFD: Final = frozenset(kind for kind in WEIGHTS if kind.startswith(("uffd_", "userfaultfd")))
_USERFAULTFD_SHARE: Final = 0.2  # of the workloads have any of it, and then all: no call is worth much alone
_ALWAYS: Final = ("mmap", "mremap", "write")  # no swarm leaves these out
_MOVES_OF_DESIGN: Final = 3  # as many times more do its recipes move something


class Swarm(NamedTuple):
    """The taste of one workload."""

    kinds: tuple[str, ...]
    cumulated: tuple[int, ...]  # weights of the kinds, summed up
    companions: tuple[str, ...]
    companions_cumulated: tuple[int, ...]
    recipes: tuple[Recipe, ...]


def draw_swarm(rng: Random, weights: Mapping[str, int], *, relocates: bool) -> Swarm:
    """The taste of a new workload. ``relocates``: the design under test adds a way to move."""
    kinds: dict[str, int] = {}
    userfaultfd = rng.choice((2, 4, 8)) if rng.random() < _USERFAULTFD_SHARE else 0
    for kind, weight in weights.items():
        if kind in _USERFAULTFD:
            if userfaultfd:
                kinds[kind] = weight * userfaultfd
        elif kind in _ALWAYS or rng.random() < (0.3 if kind in _SELDOM else 0.75):
            kinds[kind] = weight * rng.choice((1, 2, 2, 2, 4, 8))
    recipes = [recipe for recipe in RECIPES if recipe.kinds <= kinds.keys()]
    if relocates:
        recipes += [recipe for recipe in recipes if recipe.moves] * _MOVES_OF_DESIGN
    beside = {kind: weight for kind, weight in COMPANIONS.items() if kind in kinds}
    return Swarm(
        tuple(kinds),
        tuple(accumulate(kinds.values())),
        tuple(beside),
        tuple(accumulate(beside.values())),
        tuple(recipes),
    )
