"""How much memory may be promised: overcommit (mm/util.c). Pages."""

from __future__ import annotations

from typing import TYPE_CHECKING

from emulator.geometry import PAGE_SHIFT
from emulator.uapi import ENOMEM, OVERCOMMIT_ALWAYS, OVERCOMMIT_GUESS

if TYPE_CHECKING:
    from emulator.machine import Machine
    from emulator.mm_types import MmStruct

USER_RESERVE_SHARE = 32  # of a process's size is kept back for others: one part in so many


def overcommit_policy_store(m: Machine, policy: int) -> int:
    """vm.overcommit_memory: how promises are judged from now on (OVERCOMMIT_*); 0."""
    m.overcommit_memory = policy
    return 0


def vm_enough_memory(m: Machine, mm: MmStruct | None, pages: int) -> int:
    """__vm_enough_memory: promise ``pages`` more to ``mm`` (None: to the kernel). 0, or -ENOMEM with nothing promised.

    GUESS looks at this one request only: more than there is of memory and swap cannot be meant. ALWAYS does not look.
    NEVER adds up what is promised, which must stay below the limit; root may use what is kept back for root, and nobody
    what one large process must leave for others.
    """
    profile = m.profile
    m.committed += pages
    if m.overcommit_memory == OVERCOMMIT_ALWAYS:
        return 0
    if m.overcommit_memory == OVERCOMMIT_GUESS:
        if profile.ram_and_swap is None or pages <= profile.ram_and_swap:
            return 0
    elif profile.commit_limit is None or m.committed < allowed(m, mm, profile.commit_limit):
        return 0
    m.committed -= pages
    return -ENOMEM


def allowed(m: Machine, mm: MmStruct | None, limit: int) -> int:
    """What of the limit is left to ``mm``."""
    profile = m.profile
    if not profile.cap_sys_admin:
        limit -= profile.admin_reserve >> PAGE_SHIFT
    if mm is not None:
        limit -= min(mm.total_vm // USER_RESERVE_SHARE, profile.user_reserve >> PAGE_SHIFT)
    return limit
