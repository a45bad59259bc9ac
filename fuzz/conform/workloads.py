"""Random workloads that a running kernel can be asked to do: no collisions, no injected failures, no kernel activity.

What merges, splits and moves VMAs comes most often. A round is a stream of workloads from one seed; the same seed
gives the same round on every machine.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from random import Random
from typing import Final

from emulator.uapi import MADV_HUGEPAGE, MAP_FIXED, MCL_CURRENT, OVERCOMMIT_ALWAYS, OVERCOMMIT_NEVER
from emulator.workload import THP_ORDERS, Op, Step, Workload
from fuzz.workload.domains import count_ops
from fuzz.workload.generate import Generator
from fuzz.workload.repair import repair
from oracle.live.calls import CALLS
from oracle.live.expressible import expressible, limits_locked_memory
from oracle.live.thp_sizes import refused
from oracle.live.view import Depth

GEOMETRY: Final = "x86-64"
ROUND_STEPS: Final = 2000
_LENGTHS: Final = (8, 16, 24, 32, 48, 60)  # steps of a workload: a fresh process costs as much as some twenty steps

_OTHERS: Final = 3  # the weight of whatever else a running kernel can be asked for
WEIGHTS: Final[dict[str, int]] = dict.fromkeys(CALLS, _OTHERS) | {
    "mmap": 16,
    "munmap": 8,
    "mremap": 24,
    "mprotect": 12,
    "madvise": 8,
    "fork": 3,
    "exit": 1,
    "read": 6,
    "write": 14,
    "exec": 1,
    "mlock": 4,
    "munlock": 3,
    "mlock2": 3,
    "mlockall": 1,
    "munlockall": 1,
    "brk": 4,
    "mseal": 1,
    "set_vma_name": 3,
    "memory_merge": 2,
    "mbind": 4,
    "pkey_mprotect": 1,
    "remap_file_pages": 3,
    "setrlimit": 1,
    "uffd_register": 8,
    "uffd_copy": 5,
    "uffd_wp": 5,
    "uffd_continue": 4,
    "max_map_count": 1,
    "overcommit_memory": 1,
    "ksm_scan": 4,
}
_SIZES_SHARE: Final = 0.3  # of the workloads have large folios of all sizes, where pages are compared
_ALL_SIZES: Final = Step((Op("thp_sizes", 0, (THP_ORDERS,)),))
_MAPS_SHARE: Final = 0.02  # of the workloads have processes near to vm.max_map_count, which take a moment to make
_MAPS: Final = range(2, 16)
_MODES_SHARE: Final = 0.02  # of the workloads change how the system overcommits, and have to be alone for that
_MODES: Final = (OVERCOMMIT_ALWAYS, OVERCOMMIT_NEVER, OVERCOMMIT_NEVER)


def round_of(
    seed: int, steps: int = ROUND_STEPS, depth: Depth = Depth.MAPS, *, swap: bool = True
) -> Iterator[Workload]:
    """Workloads of ``steps`` steps together, or a few more, the last one being whole.

    ``depth`` and ``swap`` (whether the kernel has any) say what cannot be compared; such steps are left out.
    """
    rng = Random(seed)
    done = 0
    while done < steps:
        generator = Generator(rng, GEOMETRY, weights=WEIGHTS, alone=True)
        made = generator.generate(rng.choice(_LENGTHS)).steps
        first: tuple[Step, ...] = ()
        if depth >= Depth.PAGES and rng.random() < _SIZES_SHARE and not refused():
            first = (_ALL_SIZES,)
            made = tuple(wanting_large_folios(made))
        else:
            made = tuple(step for step in made if step.ops[0].kind != "thp_sizes")
        if rng.random() < _MODES_SHARE:
            first = (*first, Step((Op("overcommit_memory", 0, (rng.choice(_MODES),)),)))
        else:
            made = tuple(step for step in made if step.ops[0].kind != "overcommit_memory")
        if rng.random() < _MAPS_SHARE:
            first = (*first, Step((Op("max_map_count", 0, (rng.choice(_MAPS),)),)))
        else:
            made = tuple(step for step in made if step.ops[0].kind != "max_map_count")
        first = tuple(step for step in first if not expressible(Workload(GEOMETRY, (step,)), depth, swap=swap))
        fit = [step for step in made if not expressible(Workload(GEOMETRY, (*first, step)), depth, swap=swap)]
        workload = repair(Workload(GEOMETRY, (*first, *kept_apart(fit))))
        done += count_ops(workload)
        yield workload


def kept_apart(steps: list[Step]) -> list[Step]:
    """Without those that cannot be compared beside others of the steps, see ``expressible``."""
    ops = [step.ops[0] for step in steps]
    kinds = {op.kind for op in ops}
    limits_locking = any(map(limits_locked_memory, ops))

    def fits(op: Op) -> bool:
        if op.kind == "memory_merge":
            return "ksm_scan" not in kinds
        return not (op.kind == "mlockall" and limits_locking and op.args[0] & MCL_CURRENT)

    return [step for step in steps if fits(step.ops[0])]


def wanting_large_folios(steps: Iterable[Step]) -> Iterator[Step]:
    """The steps, all anonymous memory that is mapped at a given place being advised to want huge pages at once."""
    for step in steps:
        yield step
        op = step.ops[0]
        if op.kind == "mmap" and op.args[3] & MAP_FIXED and not op.args[4]:
            yield Step((Op("madvise", op.proc, (*op.args[:2], MADV_HUGEPAGE)),))
