"""Which kernel is emulated: what differs between kernels stands here as data, in one place."""

from __future__ import annotations

from typing import Final, NamedTuple

from emulator.mm_types import VM_MAYBE_GUARD


class Profile(NamedTuple):
    """One kernel and its settings (the defaults of a distribution, with THP=madvise)."""

    name: str
    max_map_count: int = 65530  # sysctl vm.max_map_count
    stack_guard_gap: int = 256  # pages
    mmap_min_addr: int = 65536  # bytes
    rlimit_stack: int = 8 << 20  # bytes
    rlimit_memlock: int = 8 << 20  # bytes
    commit_limit: int | None = None  # pages; None: overcommit guesses and does not refuse
    vm_ignore_merge: int = VM_MAYBE_GUARD  # VM_STICKY: do not stop a merge (VM_SOFTDIRTY not configured)
    thp_always: bool = False  # transparent_hugepage/enabled: always instead of madvise


PROFILES: Final[dict[str, Profile]] = {p.name: p for p in (Profile("6.18"),)}
