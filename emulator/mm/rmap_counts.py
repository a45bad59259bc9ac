"""Mapcounts and exclusive marks of folios: what mm/rmap.c and include/linux/rmap.h do at each entry made or removed.

``page`` is the number of a page in its folio. The page-table lock is held throughout. A folio that is mapped by a
PMD has the exclusive mark of all its pages on page 0.
"""

from __future__ import annotations

from emulator.errors import KernelBug
from emulator.geometry import PAGE_SHIFT
from emulator.mm import mlock_folio, rmap
from emulator.mm import vma as vma_ops
from emulator.mm_types import NO_MM, VM_DROPPABLE, VM_LOCKED, Folio, VmAreaStruct
from emulator.rmap_types import AnonVma
from emulator.uapi import EBUSY

# ---- adding


def count_mappings(folio: Folio, nr: int, vma: VmAreaStruct) -> None:
    """folio_add_large_mapcount, folio_sub_large_mapcount: ``nr`` more (or, negative, fewer) mappings in this process.

    Two processes are known by name. When there was a third one, the folio counts as shared until a known one has all
    the mappings, also after those two have gone.
    """
    asid = vma.vm_mm.asid
    folio.large_mapcount += nr
    ids = folio.mm_ids
    for i, (known, count) in enumerate(ids):
        if known == asid:
            ids[i] = (asid, count + nr) if count + nr > 0 else NO_MM
            break
    else:
        free = next((i for i, slot in enumerate(ids) if slot is NO_MM), None)
        if nr > 0 and free is not None:
            ids[free] = (asid, nr)
            folio.mm_ids_shared = folio.mm_ids_shared or folio.large_mapcount != nr
    if nr < 0 and any(count == folio.large_mapcount for _, count in ids):
        folio.mm_ids_shared = False


def folio_rmap_sanity_checks(folio: Folio, vma: VmAreaStruct) -> None:
    """A mapped anonymous folio has an anon_vma that is alive; the zero page is never counted."""
    m = vma.vm_mm.machine
    if folio.freed:
        raise KernelBug("use-after-free", f"{folio} has been freed, and its mappings change", folio)
    if m.phys.is_zero(folio):
        m.warn("rmap-zero-page", "a mapping of the zero page was counted", folio)
    mapping = folio.mapping
    if folio.anon and not folio.ksm and (not isinstance(mapping, AnonVma) or mapping.freed):
        m.warn("rmap-anon-vma-freed", f"the mappings of {folio} change, and its anon_vma is gone", folio)


def add_rmap_ptes(folio: Folio, page: int, nr: int, vma: VmAreaStruct) -> None:
    """__folio_add_rmap for PTEs."""
    folio_rmap_sanity_checks(folio, vma)
    mapcounts = folio.mapcounts
    if folio.order == 0:
        mapcounts[0] += 1
        return
    for i in range(page, page + nr):
        mapcounts[i] += 1
    count_mappings(folio, nr, vma)


def add_rmap_pmd(folio: Folio, vma: VmAreaStruct) -> None:
    """__folio_add_rmap for a PMD."""
    folio_rmap_sanity_checks(folio, vma)
    folio.entire_mapcount += 1
    count_mappings(folio, 1, vma)


def folio_set_anon(folio: Folio, vma: VmAreaStruct, address: int, exclusive: bool) -> None:
    """__folio_set_anon: a new folio gets its mapping and index. One that is not exclusive hangs at the root."""
    anon_vma = vma.anon_vma
    if anon_vma is None:
        raise KernelBug("no-anon-vma", f"an anonymous page is mapped in {vma}, which is not faulted", vma)
    folio.mapping = anon_vma if exclusive else anon_vma.root
    folio.anon = True
    folio.swapbacked = not vma.vm_flags & VM_DROPPABLE
    folio.index = vma_ops.linear_page_index(vma, address)


def check_new_range(folio: Folio, vma: VmAreaStruct, address: int) -> None:
    if address < vma.vm_start or address + (folio.nr_pages << PAGE_SHIFT) > vma.vm_end:
        vma.vm_mm.machine.warn(
            "rmap-outside-vma", f"{folio} is mapped at {address:#x}, not inside {vma}", folio
        )


def folio_add_new_anon_rmap(folio: Folio, vma: VmAreaStruct, address: int, exclusive: bool) -> None:
    """The first mapping of a new anonymous folio, every page by a PTE; ``address`` is that of page 0."""
    folio_set_anon(folio, vma, address, exclusive)
    check_new_range(folio, vma, address)
    add_rmap_ptes(folio, 0, folio.nr_pages, vma)
    if exclusive:
        folio.anon_exclusive = (1 << folio.nr_pages) - 1


def folio_add_new_anon_rmap_pmd(folio: Folio, vma: VmAreaStruct, address: int, exclusive: bool) -> None:
    """The first mapping of a new huge page, by a PMD."""
    folio_set_anon(folio, vma, address, exclusive)
    check_new_range(folio, vma, address)
    add_rmap_pmd(folio, vma)
    if exclusive:
        folio.anon_exclusive = 1


def check_anon_rmap(folio: Folio, page: int, vma: VmAreaStruct, address: int) -> None:
    """__page_check_anon_rmap: the folio's mapping and index must be those of the place where it is mapped.

    Those of a KSM folio say nothing of places.
    """
    if folio.ksm:
        return
    mapping = folio.mapping
    own = vma.anon_vma
    same_root = isinstance(mapping, AnonVma) and own is not None and mapping.root is own.root
    if not same_root or folio.index + page != vma_ops.linear_page_index(vma, address):
        detail = f"page {page} of {folio} is mapped at {address >> PAGE_SHIFT:#x} in {vma}"
        vma.vm_mm.machine.warn("page-check-anon-rmap", detail, folio)


def check_exclusive(folio: Folio, page: int, nr: int, vma: VmAreaStruct) -> None:
    """An exclusive page is mapped once."""
    marks = folio.anon_exclusive >> page & ((1 << nr) - 1)
    if not marks:
        return
    mapcounts = folio.mapcounts
    if folio.entire_mapcount > 1 or any(marks >> i & 1 and mapcounts[page + i] > 1 for i in range(nr)):
        detail = f"an exclusive page of {folio} is mapped more than once"
        vma.vm_mm.machine.warn("exclusive-mapped-twice", detail, folio)


def folio_add_anon_rmap_ptes(
    folio: Folio, page: int, nr: int, vma: VmAreaStruct, address: int, exclusive: bool, *, check: bool = True
) -> None:
    """Pages [page, page+nr) of an anonymous folio get a PTE each, the first at ``address``. The folio is locked.

    ``check``: is it looked at whether mapping and index of the folio fit?
    """
    add_rmap_ptes(folio, page, nr, vma)
    if check:
        check_anon_rmap(folio, page, vma, address)
    if exclusive:
        folio.anon_exclusive |= ((1 << nr) - 1) << page
    check_exclusive(folio, page, nr, vma)
    if vma.vm_flags & VM_LOCKED and nr == folio.nr_pages:
        mlock_folio.mlock_vma_folio(folio, vma)


def folio_add_anon_rmap_pmd(folio: Folio, vma: VmAreaStruct, address: int, exclusive: bool) -> None:
    """A PMD maps the whole of an anonymous folio. The folio is locked."""
    add_rmap_pmd(folio, vma)
    check_anon_rmap(folio, 0, vma, address)
    if exclusive:
        folio.anon_exclusive |= 1
    check_exclusive(folio, 0, folio.nr_pages, vma)
    mlock_folio.mlock_vma_folio(folio, vma)


def check_file_rmap(folio: Folio, vma: VmAreaStruct) -> None:
    if folio.anon:
        vma.vm_mm.machine.warn("rmap-file-anon", f"{folio} is mapped as a file's, and is anonymous", folio)


def folio_add_file_rmap_ptes(folio: Folio, page: int, nr: int, vma: VmAreaStruct) -> None:
    """Pages [page, page+nr) of a file's folio get a PTE each."""
    check_file_rmap(folio, vma)
    add_rmap_ptes(folio, page, nr, vma)
    if vma.vm_flags & VM_LOCKED and nr == folio.nr_pages:
        mlock_folio.mlock_vma_folio(folio, vma)


def folio_add_file_rmap_pte(folio: Folio, page: int, vma: VmAreaStruct) -> None:
    """A PTE maps a page of a file."""
    folio_add_file_rmap_ptes(folio, page, 1, vma)


def folio_add_file_rmap_pmd(folio: Folio, vma: VmAreaStruct) -> None:
    """A PMD maps the whole of a file's folio."""
    check_file_rmap(folio, vma)
    add_rmap_pmd(folio, vma)
    mlock_folio.mlock_vma_folio(folio, vma)


# ---- removing


def folio_remove_rmap_ptes(folio: Folio, page: int, nr: int, vma: VmAreaStruct) -> None:
    """The PTEs of pages [page, page+nr) are gone. A large folio may be partly mapped from now on."""
    folio_rmap_sanity_checks(folio, vma)
    mapcounts = folio.mapcounts
    last = 0
    for i in range(page, page + nr):
        mapcounts[i] -= 1
        if mapcounts[i] < 0:
            raise KernelBug(
                "mapcount-underflow", f"page {i} of {folio} is unmapped more often than mapped", folio
            )
        last += mapcounts[i] == 0
    if folio.order:
        count_mappings(folio, -nr, vma)
        if last and not folio.entire_mapcount and any(mapcounts) and folio.anon:
            folio.partially_mapped = True
    if vma.vm_flags & VM_LOCKED:
        mlock_folio.munlock_vma_folio(folio, vma)


def folio_remove_rmap_pmd(folio: Folio, vma: VmAreaStruct) -> None:
    """The PMD that mapped the whole folio is gone."""
    folio_rmap_sanity_checks(folio, vma)
    folio.entire_mapcount -= 1
    if folio.entire_mapcount < 0:
        raise KernelBug("mapcount-underflow", f"{folio} is unmapped more often than mapped", folio)
    count_mappings(folio, -1, vma)
    if not folio.entire_mapcount and folio.anon and any(folio.mapcounts) and not all(folio.mapcounts):
        folio.partially_mapped = True
    mlock_folio.munlock_vma_folio(folio, vma)


# ---- fork


def folio_try_dup_anon_rmap_pte(folio: Folio, page: int, dst_vma: VmAreaStruct, src_vma: VmAreaStruct) -> int:
    """fork: a second PTE for the page, which is not exclusive from now on; both entries must be read-only.

    -EBUSY, and nothing done: the page is exclusive and may be pinned, so the child must get a copy.
    """
    if folio.anon_exclusive >> page & 1:
        if folio.maybe_dma_pinned():
            return -EBUSY
        folio.anon_exclusive &= ~(1 << page)
    add_rmap_ptes(folio, page, 1, dst_vma)
    return 0


def folio_try_dup_anon_rmap_pmd(folio: Folio, dst_vma: VmAreaStruct, src_vma: VmAreaStruct) -> int:
    """As ``folio_try_dup_anon_rmap_pte`` for a huge page that a PMD maps."""
    if folio.anon_exclusive & 1:
        if folio.maybe_dma_pinned():
            return -EBUSY
        folio.anon_exclusive &= ~1
    add_rmap_pmd(folio, dst_vma)
    return 0


def folio_dup_file_rmap_pte(folio: Folio, page: int, dst_vma: VmAreaStruct) -> None:
    """fork: a second PTE for a file's page."""
    add_rmap_ptes(folio, page, 1, dst_vma)


# ---- sharing and moving


def folio_try_share_anon_rmap_pte(folio: Folio, page: int) -> int:
    """Take the exclusive mark away before the page is unmapped for swap or migration; the PTE is cleared by now.

    -EBUSY: the page may be pinned, and must stay exclusive. GUP-fast takes its reference first and looks at the
    PTE again afterwards, so one of the two always notices the other.
    """
    if folio.maybe_dma_pinned():
        return -EBUSY
    folio.anon_exclusive &= ~(1 << page)
    return 0


def folio_try_share_anon_rmap_pmd(folio: Folio) -> int:
    """As ``folio_try_share_anon_rmap_pte`` for a huge page; the PMD is invalid by now."""
    return folio_try_share_anon_rmap_pte(folio, 0)


def folio_move_anon_rmap(folio: Folio, vma: VmAreaStruct) -> None:
    """The folio belongs to this VMA alone: its rmap need not visit the family. The index stays. Folio locked."""
    rmap.check_folio_locked(folio)
    if vma.anon_vma is None:
        raise KernelBug("no-anon-vma", f"{folio} is moved to {vma}, which is not faulted", vma)
    folio.mapping = vma.anon_vma


def folio_maybe_mapped_shared(folio: Folio) -> bool:
    """Do several processes map the folio? A small folio that one process maps twice counts too (a file's)."""
    if folio.order == 0:
        return folio.mapcounts[0] > 1
    return folio.large_mapcount > 1 and folio.mm_ids_shared
