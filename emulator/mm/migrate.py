"""Migration: moving a folio's contents to another folio under its users (mm/migrate.c).

The folio is found without any lock of the processes that map it, as compaction finds it; an address only says
which one. Every mapping becomes a migration entry, on which faults wait for the folio lock; the contents are
copied; the entries become mappings of the copy, or of the folio itself where the move failed.

A folio is tried once, synchronously. A folio mapped by a PMD is unmapped as on an architecture without PMD
migration entries: the PMD is split into PTEs first, and the copy is mapped by PTEs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from emulator.fs_types import AddressSpace
from emulator.hw.pte import (
    ACCESSED,
    RW,
    SOFT_DIRTY,
    SOFTLEAF_MIGRATION_READ,
    SOFTLEAF_MIGRATION_WRITE,
    SPECIAL,
    UFFD_WP,
    mk_pte,
    softleaf_type,
    softleaf_value,
)
from emulator.mm import (
    ksm,
    mlock_folio,
    page_vma_mapped,
    rmap,
    rmap_counts,
    rmap_unmap,
    swap,
    swap_state,
    vmscan,
)
from emulator.mm import vma as vma_ops
from emulator.mm_types import VM_LOCKED, Folio, MmStruct, VmAreaStruct
from emulator.rmap_types import AnonVma
from emulator.uapi import EAGAIN, ENOMEM

if TYPE_CHECKING:
    from emulator.machine import Machine


def try_to_map_unused_to_zeropage(folio: Folio, vma: VmAreaStruct, page: int, entry: int) -> int:
    """The entry that maps the zero page in place of a small page that holds nothing but zeros; 0: it stays mapped."""
    if folio.order or folio.content[page] or folio.mlocked or vma.vm_flags & VM_LOCKED:
        return 0
    prot = vma_ops.vm_page_prot(vma.vm_flags) | ACCESSED | SPECIAL | entry & (SOFT_DIRTY | UFFD_WP)
    return mk_pte(vma.vm_mm.machine.phys.zero_folio.pfn, prot)


def remove_migration_pte(src: Folio, dst: Folio, vma: VmAreaStruct, addr: int, unused_to_zeropage: bool) -> None:
    """Turn every migration entry of ``src`` in one VMA into a mapping of ``dst``, page for page."""
    prot = vma_ops.vm_page_prot(vma.vm_flags)
    for table, slot, address, entry in page_vma_mapped.page_vma_mapped_walk(src, vma, addr, migration=True):
        kind = softleaf_type(entry)
        page = softleaf_value(entry) - src.pfn
        zero = try_to_map_unused_to_zeropage(dst, vma, page, entry) if unused_to_zeropage else 0
        if zero:
            table.set(slot, zero)
            continue
        swap.folio_get(dst)
        pte = mk_pte(dst.pfn + page, prot | ACCESSED | entry & SOFT_DIRTY)
        if kind == SOFTLEAF_MIGRATION_WRITE:
            pte |= RW
        else:
            pte |= entry & UFFD_WP
        if dst.anon:
            exclusive = kind != SOFTLEAF_MIGRATION_READ
            rmap_counts.folio_add_anon_rmap_ptes(dst, page, 1, vma, address, exclusive)
        else:
            rmap_counts.folio_add_file_rmap_pte(dst, page, vma)
        table.set(slot, pte)
        if vma.vm_flags & VM_LOCKED:
            mlock_folio.mlock_drain_local(vma.vm_mm.machine)


def remove_migration_ptes(
    src: Folio, dst: Folio, *, locked: bool = False, unused_to_zeropage: bool = False
) -> None:
    """Turn all migration entries of ``src`` into mappings of ``dst``, which has its index and mapping by now.

    ``src`` and ``dst`` may be the same. ``locked``: the caller holds the rmap lock. ``unused_to_zeropage``: pages
    of zeros are not mapped again, the zero page is mapped in their place.
    """

    def visit(folio: Folio, vma: VmAreaStruct, addr: int) -> bool:
        remove_migration_pte(src, folio, vma, addr, unused_to_zeropage)
        return True

    if locked:
        rmap.rmap_walk_locked(dst, visit)
    else:
        rmap.rmap_walk(dst, visit)


def folio_migrate_mapping(m: Machine, dst: Folio, src: Folio, expected: int) -> int:
    """Put ``dst`` in the place of ``src`` in its mapping and caches. -EAGAIN when someone got hold of ``src``.

    The references of an anonymous small folio outside the swap cache are not looked at again: nobody can find it.
    """
    mapping = src.mapping
    cached = src.swapcache or isinstance(mapping, AddressSpace)
    if (cached or src.order) and src.refcount != expected:
        return -EAGAIN
    dst.index = src.index
    dst.mapping = mapping
    dst.anon = src.anon
    dst.ksm = src.ksm
    dst.dirty = src.dirty
    dst.uptodate = src.uptodate
    dst.swapbacked = src.swapbacked
    if not cached:
        return 0
    swap.folio_ref_add(dst, dst.nr_pages)
    if src.swapcache:
        dst.swapcache = True
        dst.swap = src.swap
        swap_state.replace_in_swap_cache(m, src, dst)
        src.swapcache = False
        src.swap = 0
    elif isinstance(mapping, AddressSpace):
        for i in range(src.index, src.index + src.nr_pages):
            mapping.pages[i] = dst
        src.mapping = None  # an anonymous folio stays anonymous until it is freed
    src.dirty = False
    swap.folio_put_refs(m, src, src.nr_pages)
    return 0


def move_to_new_folio(m: Machine, dst: Folio, src: Folio) -> int:
    """Copy contents and state of the unmapped ``src``; both are locked. -EAGAIN: it has other users (a pin)."""
    expected = vmscan.folio_expected_ref_count(src) + 1
    if src.refcount != expected:
        return -EAGAIN
    for i, page in enumerate(src.content):
        dst.content[i] = dict(page)
    m.sched.point("migrate.copied")
    error = folio_migrate_mapping(m, dst, src, expected)
    if not error and src.ksm:
        ksm.folio_migrate_ksm(dst, src)
    return error


def migrate_folio(m: Machine, src: Folio) -> int:
    """Migrate one isolated folio; the caller's reference stays. 0, -ENOMEM, -EAGAIN."""
    if m.should_fail("migrate_folio"):
        return -ENOMEM
    dst = m.phys.alloc(src.order)
    dst.lru = False
    src.lock.lock()
    dst.lock.lock()
    m.sched.point("migrate.folio_locked")
    # while no entry maps the folio, its anon_vma could go away under it
    anon_vma: AnonVma | None = rmap.folio_get_anon_vma(src) if src.anon and not src.ksm else None
    was_mapped = src.mapped() and src.mapping is not None
    if was_mapped:
        rmap_unmap.try_to_migrate(src)
    m.sched.point("migrate.unmapped")
    error = -EAGAIN if src.mapped() else move_to_new_folio(m, dst, src)
    dst.lru = not error
    if was_mapped:
        remove_migration_ptes(src, src if error else dst)
    m.sched.point("migrate.entries_removed")
    dst.lock.unlock()
    swap.folio_put(m, dst)
    if anon_vma is not None:
        rmap.put_anon_vma(anon_vma)
    src.lock.unlock()
    return error


def try_split_folio(m: Machine, folio: Folio, folios: list[Folio]) -> bool:
    """Split an isolated large folio; its pages are appended to ``folios``, isolated."""
    folio.lock.lock()
    head = vmscan.split_folio_to_list(m, folio, folios)
    head.lock.unlock()
    if head.order:
        return False
    folios.append(head)
    return True


def migrate_pages(m: Machine, folios: list[Folio]) -> int:
    """Migrate isolated folios, splitting large ones that are partly mapped or find no memory as a whole.

    Returns how many were migrated; all are back on the LRU or gone afterwards.
    """
    migrated = 0
    while folios:
        folio = folios.pop(0)
        if folio.order and folio.partially_mapped and try_split_folio(m, folio, folios):
            continue
        if folio.refcount > 1:  # else it was freed by all others meanwhile
            error = migrate_folio(m, folio)
            if error == -ENOMEM and folio.order and try_split_folio(m, folio, folios):
                continue
            migrated += not error
        vmscan.folio_putback_lru(m, folio)
    return migrated


def migrate_folio_at(mm: MmStruct, addr: int) -> int:
    """Kernel activity: migrate the folio mapped at ``addr`` (bytes). 1 when it was, else 0."""
    m = mm.machine
    folio = vmscan.folio_at(mm, addr)
    if folio is None or not vmscan.folio_isolate_lru(folio):
        return 0
    m.sched.point("migrate.isolated")
    return 1 if migrate_pages(m, [folio]) else 0
