"""Which kernel is emulated: what differs between kernels stands here as data, in one place.

A field is one rule that changed between releases. Its value is what Linux 6.18 does, so that a profile lists only
where it differs; its comment says since when the rule is so and where that can be read up (the title of the patch, the
commit where it is known). Each field is asked at one place in ``emulator/mm`` (the flags that a merge ignores: wherever
flags are compared or kept). docs/machine.md has the table.

6.18 is its late stable series (6.18.44), with the fixes and the guard flag that came back from later kernels and that
the first 6.18 releases had not. 7.0 is read from 7.0-rc6, 5.17 from 5.17-rc5.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from emulator.errors import UsageError
from emulator.geometry import PAGE_SHIFT
from emulator.mm_types import VM_IO, VM_MAYBE_GUARD, VM_SPECIAL
from emulator.uapi import (
    MADV_COLLAPSE,
    MADV_DONTNEED_LOCKED,
    MADV_GUARD_INSTALL,
    MADV_GUARD_REMOVE,
    OVERCOMMIT_GUESS,
)


class Profile(NamedTuple):
    """One kernel and its settings (the defaults of a distribution, with THP=madvise)."""

    name: str

    # ---- settings
    max_map_count: int = 65530  # sysctl vm.max_map_count
    stack_guard_gap: int = 256  # pages
    mmap_min_addr: int = 65536  # bytes
    rlimit_stack: int = 8 << 20  # bytes
    rlimit_memlock: int = 8 << 20  # bytes
    cap_ipc_lock: bool = True  # CAP_IPC_LOCK, as root has: rlimit_memlock does not bind
    cap_sys_admin: bool = True  # CAP_SYS_ADMIN, as root has: what is kept back for root may be used
    overcommit_memory: int = OVERCOMMIT_GUESS  # sysctl vm.overcommit_memory
    ram_and_swap: int | None = None  # pages; where overcommit guesses, no request may be larger. None: none is
    commit_limit: int | None = None  # pages, CommitLimit of /proc/meminfo; counts with OVERCOMMIT_NEVER. None: endless
    user_reserve: int = 128 << 20  # bytes, sysctl vm.user_reserve_kbytes: what a large process must leave, likewise
    admin_reserve: int = 8 << 20  # bytes, sysctl vm.admin_reserve_kbytes: what is kept back for root, likewise
    thp_always: bool = False  # transparent_hugepage/enabled: always instead of madvise
    use_zero_page: bool = True  # transparent_hugepage/use_zero_page: reads map the huge page of zeros
    swap_synchronous: bool = False  # swap on zram (SWP_SYNCHRONOUS_IO)

    # ---- mm/vma.c
    vm_ignore_merge: int = VM_MAYBE_GUARD  # VM_STICKY: do not stop a merge (VM_SOFTDIRTY not configured)
    # A faulted range may merge with an unfaulted neighbour: since 6.16 (879bca0a2c4f). Before, the neighbour's chain
    # had to have one entry, and an unfaulted one has none.
    merges_with_unfaulted: bool = True
    # A VMA with a close() hook never merges; between 6.1 and 6.12 that became: it never vanishes in a merge.
    close_forbids_merge: bool = False
    # A merge for which memory is lacking is an error of the call: since 6.12 at the latest (in 6.1 the call goes on
    # as if nothing could be merged).
    failed_merge_is_error: bool = True
    # VMAs stand in a maple tree, for which memory is needed when a VMA comes, goes or moves: since 6.1. The red-black
    # tree before it needed none.
    maple_tree: bool = True
    # Memory that mremap grows in place merges with what it then touches: since 6.1 at the latest (J. Matena, "mm: add
    # merging after mremap resize").
    growth_merges: bool = True

    # ---- mm/mremap.c
    # The new address and the source VMA are looked at before anything is unmapped: since 6.17 (L. Stoakes, "mm/mremap:
    # refactor initial parameter sanity checks"). Before, the source was looked up first of all, and only when the
    # destination and the tail had gone was it asked whether it can be moved. (What a move that shrinks is charged for
    # came with the rework of 6.15: docs/mainline-findings.md.)
    mremap_checks_first: bool = True
    # A move to a fixed place that keeps its length may cover several VMAs: since 6.17 (L. Stoakes, "mm/mremap: permit
    # mremap() move of multiple VMAs").
    mremap_moves_several: bool = True
    # A move begins at the page-table boundary below when that lets whole tables move: since 6.7 (J. Fernandes,
    # "mm/mremap: optimize the start addresses in move_page_tables()").
    mremap_realigns: bool = True
    # Locked memory that is moved with DONTUNMAP counts twice as locked, though its old place is locked no longer: since
    # the rework of 6.15 (in 6.12 it is right).
    dontunmap_counts_locked: bool = True

    # ---- what a kernel may be built without
    anon_vma_name: bool = True  # CONFIG_ANON_VMA_NAME: anonymous VMAs have names, and merge only with equal ones
    # Shared anonymous memory may have a name too: since 6.2 (P. Tatashin, "mm: anonymous shared memory naming").
    anon_shmem_name: bool = True

    # ---- mm/mseal.c
    # mseal(2): since 6.10 (J. Xu, "mseal: add mseal syscall").
    mseal: bool = True

    # ---- brk (mm/mmap.c)
    # The heap grows from the VMA before it even where that is not the heap (bss): until 6.1 (L. Howlett, "mm/mmap:
    # change do_brk_flags() to expand existing VMA").
    heap_joins_bss: bool = False
    # A break that is moved down must cut a VMA: since 6.1, the same patch. Before, a heap that the process had
    # unmapped itself was no matter.
    heap_must_be_there: bool = True

    # ---- mmap (mm/mmap.c, since 6.11 mm/vma.c)
    # A MAP_FIXED mapping takes over the charge of what it replaces, and replaces nothing when the rest cannot be
    # charged: since 6.12 (L. Howlett, "Avoid MAP_FIXED gap exposure"). Before, once the limits of the process allowed
    # it, the old mappings went, whatever came then. (When the new mapping fails later, newer kernels lose that charge:
    # docs/mainline-findings.md.)
    mmap_takes_over_charge: bool = True
    # MAP_STACK keeps huge pages out, so a thread's stack does not merge with a heap beside it: since 6.7 (Y. Shi, "mm:
    # mmap: map MAP_STACK to VM_NOHUGEPAGE").
    map_stack_nohugepage: bool = True
    # MAP_DROPPABLE, memory that reclaim may empty: since 6.11 (J. Donenfeld, "mm: add MAP_DROPPABLE for designating
    # always lazily freeable mappings").
    map_droppable: bool = True
    # Where the kernel chooses, a file is placed so that huge pages fit: since 5.18 (before, DAX files only).
    thp_aligned_files: bool = True
    # ... and anonymous memory, when its length is a multiple of a huge page: since 6.7 (R. van Riel, "mm: align larger
    # anonymous mappings on THP boundaries"; the multiple since 6.13).
    thp_aligned_anon: bool = True

    # ---- mm/mprotect.c
    # Anonymous memory that nobody has touched is charged no longer once it cannot be written: between 6.1 and 6.12.
    # Before, what had been writable stayed charged, and so mergeable with other memory that had been.
    mprotect_uncharges: bool = True

    # ---- mm/huge_memory.c
    # Large folios smaller than huge pages come to anonymous memory: since 6.8 (R. Roberts, "mm: thp: introduce
    # multi-size THP sysfs interface").
    anon_folio_sizes: bool = True
    # A huge page that is split gives its pages of zeros back, and the zero page is mapped in their place: since 6.12
    # (Y. Zhao, "mm: remap unused subpages to shared zeropage when splitting isolated thp").
    split_maps_zero_page: bool = True
    # When PTEs take the place of a PMD, the rmap is asked whether mapping and index of the page fit the VMA: between
    # 5.17 and 6.18. Before, only the mapcounts were counted up.
    split_checks_rmap: bool = True

    # ---- mm/memory.c
    # A page that is swapped in for a write leaves the swap cache before it is mapped, so even one that is known to be
    # exclusive: until 6.18. Later kernels map first, and then see no write that is still to be done.
    swap_freed_before_mapping: bool = True

    # MADV_DONTNEED frees a table of PTEs that it has emptied as a whole: since 6.14 (Q. Zheng, "mm: pgtable: reclaim
    # empty PTE page in madvise(MADV_DONTNEED)").
    pt_reclaim: bool = True

    # ---- mm/madvise.c
    # Advice that the kernel does not know yet: guard regions came with 6.13 (L. Stoakes, "mm: madvise: implement
    # lightweight guard page mechanism"), MADV_COLLAPSE with 6.1 (Z. O'Keefe, "mm: userspace hugepage collapse"),
    # MADV_DONTNEED_LOCKED with 5.18 (J. Weiner, "mm: madvise: MADV_DONTNEED_LOCKED").
    advice_unknown: tuple[int, ...] = ()
    # process_madvise of the process itself takes any advice: since 6.13 (L. Stoakes, "tools/mm: selftests for guard
    # pages", which uses it). Before, hints only, as for other processes.
    process_madvise_self: bool = True
    # MADV_POPULATE_* ends at the first hole: between 6.1 and 6.12. Before, it went on behind it, one VMA after another.
    populate_ends_at_hole: bool = True
    # VMAs to which MADV_DOFORK is refused: VM_IO; since 6.19 or 7.0 all VM_SPECIAL.
    dofork_refused: int = VM_IO

    # ---- mm/ksm.c
    # prctl(PR_SET_MEMORY_MERGE): since 6.4 (S. Roesch, "mm: add new api to enable ksm per process").
    ksm_per_process: bool = True

    # ---- growth of stacks (arch/x86/mm/fault.c, mm/gup.c)
    # A stack grows with mmap_lock held for reading, and get_user_pages makes it grow too: until 6.5 (L. Torvalds, "mm:
    # always expand the stack with the mmap write lock held", "gup: avoid stack expansion warning for known-good case").
    stack_grows_under_read_lock: bool = False
    gup_grows_stack: bool = False

    # ---- mm/rmap.c
    # fork uses an ancestor's anon_vma again when its VMAs and children are fewer than two together: until 6.0
    # (2555283eb40d, CVE-2022-42703). Since then it must have no VMA and one child at most.
    reuse_by_degree: bool = False
    # A copy of a chain has the order turned round, and fork looks for an anon_vma to use again from the youngest on:
    # since 7.0 (L. Stoakes, "mm: clean up anon_vma implementation"). Before, the order was kept, youngest first, and
    # fork began at the oldest.
    clone_reverses_chain: bool = False
    # fork allocates an anon_vma before it knows whether it needs one: since 7.0, the same series.
    fork_allocates_first: bool = False

    # ---- mm/userfaultfd.c
    # UFFDIO_COPY takes any marker for an empty entry, that of a guard region too: until 7.0.
    uffd_copy_fills_guards: bool = True

    @property
    def memlock_pages(self) -> int | None:
        """How many pages a process may lock; None: as many as it likes."""
        return None if self.cap_ipc_lock else self.rlimit_memlock >> PAGE_SHIFT


PROFILES: Final[dict[str, Profile]] = {
    profile.name: profile
    for profile in (
        Profile(
            "5.17",
            vm_ignore_merge=0,
            merges_with_unfaulted=False,
            close_forbids_merge=True,
            failed_merge_is_error=False,
            maple_tree=False,
            growth_merges=False,
            mremap_checks_first=False,
            mremap_moves_several=False,
            mremap_realigns=False,
            dontunmap_counts_locked=False,
            heap_joins_bss=True,
            heap_must_be_there=False,
            mmap_takes_over_charge=False,
            map_stack_nohugepage=False,
            map_droppable=False,
            anon_folio_sizes=False,
            mseal=False,
            thp_aligned_files=False,
            thp_aligned_anon=False,
            mprotect_uncharges=False,
            split_maps_zero_page=False,
            split_checks_rmap=False,
            pt_reclaim=False,
            anon_shmem_name=False,
            process_madvise_self=False,
            advice_unknown=(MADV_COLLAPSE, MADV_DONTNEED_LOCKED, MADV_GUARD_INSTALL, MADV_GUARD_REMOVE),
            populate_ends_at_hole=False,
            ksm_per_process=False,
            stack_grows_under_read_lock=True,
            gup_grows_stack=True,
            reuse_by_degree=True,
        ),
        Profile("6.18"),
        Profile(
            "7.0",
            swap_freed_before_mapping=False,
            dofork_refused=VM_SPECIAL,
            clone_reverses_chain=True,
            fork_allocates_first=True,
            uffd_copy_fills_guards=False,
        ),
    )
}
"""By name, the oldest kernel first."""


def release_number(release: str) -> tuple[int, int]:
    """(6, 18) of "6.18.44-foo" (uname -r). Raises ``UsageError`` where there are no two numbers to begin with."""
    found = re.match(r"(\d+)\.(\d+)", release)
    if found is None:
        raise UsageError(f"{release!r} is no release of Linux, as 6.18.44")
    return int(found[1]), int(found[2])


def nearest(release: str) -> Profile:
    """The profile for a kernel release: the newest that is not newer, the oldest where all are."""
    number = release_number(release)
    profiles = list(PROFILES.values())
    return next((p for p in reversed(profiles) if release_number(p.name) <= number), profiles[0])
