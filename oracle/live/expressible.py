"""Which workloads a running kernel can be asked to do, and be compared in; and why the others not."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Set
from functools import cache
from typing import Final, NamedTuple

from emulator.uapi import (
    MADV_PAGEOUT,
    MCL_CURRENT,
    MREMAP_DONTUNMAP,
    MREMAP_FIXED,
    PR_SET_VMA,
    PR_SET_VMA_ANON_NAME,
)
from emulator.workload import OPS, RLIMIT_MEMLOCK, Domain, Op, Workload
from oracle.live import ksm, limits, map_count, overcommit, thp_sizes, userfault
from oracle.live.calls import ARENA_PAGES, CALLS, GEOMETRY, PROCESS_OPS
from oracle.live.userfault import NEEDS_A_READER
from oracle.live.view import Depth

_CAP_SYS_NICE: Final = 23
# What a running kernel may lack, by the kind of op that needs it.
_NEEDS: Final = {
    "max_map_count": map_count.refused,
    "overcommit_memory": overcommit.refused,
    "thp_sizes": thp_sizes.refused,
    "ksm_scan": ksm.refused,
}
_SHOWN_BY_PAGES: Final = ("thp_sizes", "ksm_scan")


class Surroundings(NamedTuple):
    """What an op is done among. ``kinds``: of all ops; ``limits_locking``: one of them limits locked memory."""

    depth: Depth
    swap: bool
    kinds: Set[str]
    limits_locking: bool


def expressible(workload: Workload, depth: Depth = Depth.MAPS, *, swap: bool = True) -> str:
    """Why a workload cannot run on a live kernel, one that has prompt ``swap`` or not; empty if it can."""
    if workload.geometry != GEOMETRY:
        return f"its world is {workload.geometry}, a live kernel's is {GEOMETRY}"
    kinds = {op.kind for step in workload.steps for op in step.ops}
    limiting = any(limits_locked_memory(step.ops[0]) for step in workload.steps)
    around = Surroundings(depth, swap, kinds, limiting)
    for number, step in enumerate(workload.steps):
        if len(step.ops) != 1:
            return f"step {number} is a collision"
        why = _nobody_can(step.ops[0]) or _lacks(step.ops[0]) or _cannot_compare(step.ops[0], around)
        if why:
            return f"step {number}: {why}"
    return ""


def _nobody_can(op: Op) -> str:
    """Why no kernel does the op."""
    if op.kind not in CALLS and op.kind not in PROCESS_OPS:
        return f"no system call does what {op.kind} does"
    if op.fail_nth:
        return f"no allocation of {op.kind} can be made to fail"
    if op.kind == "userfaultfd" and op.args[0] & NEEDS_A_READER:
        return "nobody reads the events of a userfaultfd"
    if _end(op) > ARENA_PAGES:
        return f"{op.kind} reaches beyond the arena"
    return ""


def _lacks(op: Op) -> str:
    """Why this kernel, or this process, does not do the op as the machine does."""
    if op.kind == "set_vma_name" and not has_vma_names():
        return "the running kernel knows no names of VMAs (CONFIG_ANON_VMA_NAME)"
    if op.kind == "pkey_mprotect" and op.args[3] and has_protection_keys():
        return "the processor has protection keys, the machine's has none"
    if op.kind == "process_madvise" and op.args[0] != op.proc and not has_nice():
        return "other processes may be advised with CAP_SYS_NICE only"
    if op.kind == "setrlimit":
        return limits.refused(*op.args)
    if op.kind.startswith(("userfaultfd", "uffd_")) and (why := userfault.refused()):
        return f"userfaultfd: {why}"
    if op.kind in _NEEDS and (why := _NEEDS[op.kind]()):
        return why
    return ""


def _cannot_compare(op: Op, around: Surroundings) -> str:
    """Why what the op does cannot be compared, at this depth, among these others."""
    if op.kind in _SHOWN_BY_PAGES and around.depth < Depth.PAGES:
        return f"what {op.kind} does shows in pages only"
    if op.kind == "ksm_scan" and "memory_merge" in around.kinds:
        return "the scanner would find what is mergeable outside of the arena too"
    if op.kind == "mlockall" and op.args[0] & MCL_CURRENT and around.limits_locking:
        return "mlockall counts what is outside of the arena, and locked memory is limited"
    pages_out = op.kind in ("madvise", "process_madvise") and op.args[-1] == MADV_PAGEOUT
    if pages_out and around.depth >= Depth.PAGES:
        if not around.swap:
            return "without swap on zram, when madvise pageout takes effect is chance"
        if "thp_sizes" in around.kinds:
            return "whether a large folio comes back whole hangs on where its swap slots lie"
    return ""


def _end(op: Op) -> int:
    """The first page behind what an op can touch."""
    args = op.args
    if op.kind == "mremap":
        end = args[0] + max(args[1], args[2])
        return max(end, args[4] + args[2]) if args[3] & (MREMAP_FIXED | MREMAP_DONTUNMAP) else end
    page = length = 0
    for (_, domain), value in zip(OPS[op.kind].args, args, strict=True):
        if domain is Domain.PAGE:
            page = max(page, value)
        elif domain is Domain.LENGTH:
            length = value
    return page + length


def limits_locked_memory(op: Op) -> bool:
    return op.kind == "setrlimit" and op.args[0] == RLIMIT_MEMLOCK


def has_prompt_swap() -> bool:
    """Does the running kernel swap pages out, and at once? Only zram is done when it is asked.

    From a disk or a file a page is gone when it has been written and reclaim comes by again: that is chance.
    """
    with open("/proc/swaps", encoding="ascii", errors="replace") as lines:
        devices = [line.split()[0] for line in lines][1:]
    return bool(devices) and all(device.startswith("/dev/zram") for device in devices)


@cache
def has_vma_names() -> bool:
    """Can the running kernel name anonymous memory?"""
    with mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE) as page:
        place = ctypes.addressof(ctypes.c_char.from_buffer(page))
        name = ctypes.c_char_p(b"vmafuzz")
        named = ctypes.CDLL(None).prctl(
            PR_SET_VMA, PR_SET_VMA_ANON_NAME, ctypes.c_ulong(place), ctypes.c_ulong(mmap.PAGESIZE), name
        )
    return bool(named == 0)


@cache
def has_nice() -> bool:
    """Has this process CAP_SYS_NICE, and so those that it makes?"""
    with open("/proc/self/status", encoding="ascii", errors="replace") as lines:
        effective = next(line.split()[1] for line in lines if line.startswith("CapEff:"))
    return bool(int(effective, 16) >> _CAP_SYS_NICE & 1)


@cache
def has_protection_keys() -> bool:
    """Does the processor have protection keys that the kernel uses?"""
    with open("/proc/cpuinfo", encoding="ascii", errors="replace") as lines:
        return any(line.startswith("flags") and "ospke" in line.split() for line in lines)
