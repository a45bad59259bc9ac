"""Limits of the processes of a live workload.

A limit of address space or of data is meant for what a workload maps; what its process has before that is added.
"""

from __future__ import annotations

import ctypes
import resource
from typing import Final, NamedTuple

from emulator.geometry import PAGE_SHIFT
from emulator.workload import RLIMIT_AS, RLIMIT_DATA, RLIMIT_MEMLOCK, RLIMIT_STACK
from oracle.live.processor import Processor

_SYS_CAPGET: Final = 125
_SYS_CAPSET: Final = 126
_CAPABILITIES: Final = 0x20080522  # version 3: two words of each kind
_CAP_IPC_LOCK: Final = 1 << 14

_RESOURCES: Final = {
    RLIMIT_AS: resource.RLIMIT_AS,
    RLIMIT_DATA: resource.RLIMIT_DATA,
    RLIMIT_STACK: resource.RLIMIT_STACK,
    RLIMIT_MEMLOCK: resource.RLIMIT_MEMLOCK,
}


class Before(NamedTuple):
    """What a process has before it maps anything: pages of address space, and of data."""

    size: int
    data: int


NOTHING: Final = Before(0, 0)


def set_soft(processor: Processor, which: int, pages: int, before: Before) -> None:
    """Set the soft limit. CAP_IPC_LOCK, which lifts the limit of locked memory, is given up for that."""
    if which == RLIMIT_MEMLOCK:
        give_up_ipc_lock(processor)
    pages += {RLIMIT_AS: before.size, RLIMIT_DATA: before.data}.get(which, 0)
    limit = pages << PAGE_SHIFT
    resource.setrlimit(_RESOURCES[which], (limit, resource.getrlimit(_RESOURCES[which])[1]))


def refused(which: int, pages: int) -> str:
    """Why the limit cannot be set here; empty where it can."""
    hard = resource.getrlimit(_RESOURCES[which])[1]
    if hard == resource.RLIM_INFINITY or (pages << PAGE_SHIFT <= hard and which not in (RLIMIT_AS, RLIMIT_DATA)):
        return ""
    return f"the hard limit is {hard >> PAGE_SHIFT} pages"


def give_up_ipc_lock(processor: Processor) -> None:
    """For this process and its children to come."""
    head = (ctypes.c_uint32 * 2)(_CAPABILITIES, 0)
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable: the lower words, then the upper ones
    places = ctypes.addressof(head), ctypes.addressof(sets)
    result = processor.call(_SYS_CAPGET, *places)
    sets[0] &= ~_CAP_IPC_LOCK
    result = result or processor.call(_SYS_CAPSET, *places)
    if result:
        raise OSError(-result, "CAP_IPC_LOCK cannot be given up")
