"""The reverse map (mm/rmap.c): the life of anon_vmas, and the walk from a folio to the places that map it.

A VMA has an anon_vma_chain (AVC) to its own anon_vma and to that of every ancestor that it was forked through; an
anon_vma's tree holds the AVCs of all VMAs where its folios may be mapped. The lock of a whole family is that of its
root. Mapcounts stand in ``rmap_counts.py``, unmapping a folio everywhere in ``rmap_unmap.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from emulator.errors import KernelBug
from emulator.fs_types import AddressSpace
from emulator.mm import ksm
from emulator.mm import vma as vma_ops
from emulator.mm_types import Folio, VmAreaStruct
from emulator.rmap_types import AnonVma, AnonVmaChain, avc_insert, avc_overlapping, avc_remove
from emulator.uapi import ENOMEM

if TYPE_CHECKING:
    from emulator.machine import Machine

# enum vma_operation: why a chain is cloned
VMA_OP_SPLIT: Final = 0
VMA_OP_MERGE_UNFAULTED: Final = 1
VMA_OP_REMAP: Final = 2
VMA_OP_FORK: Final = 3

Visit = Callable[[Folio, VmAreaStruct, int], bool]
"""Called by a walk: the folio, a VMA, the address (bytes) of the folio's first page there. False ends the walk."""


# ---- one anon_vma


def anon_vma_lock_write(anon_vma: AnonVma) -> None:
    """The lock of the family: the root's."""
    anon_vma.root.rwsem.down_write()


def anon_vma_unlock_write(anon_vma: AnonVma) -> None:
    anon_vma.root.rwsem.up_write()


def anon_vma_lock_read(anon_vma: AnonVma) -> None:
    anon_vma.root.rwsem.down_read()


def anon_vma_unlock_read(anon_vma: AnonVma) -> None:
    anon_vma.root.rwsem.up_read()


def anon_vma_alloc(m: Machine) -> AnonVma | None:
    """A root of its own, with one reference; None: out of memory (a fault point)."""
    if m.should_fail("anon_vma_alloc"):
        return None
    serial = m.serial()
    anon_vma = AnonVma(m, serial, m.sched.rwsem("anon_vma lock", m.sched))
    m.anon_vmas_live[serial] = anon_vma
    return anon_vma


def anon_vma_free(anon_vma: AnonVma) -> None:
    """The last reference is gone. A reader that has just got the lock without a reference is waited for."""
    rwsem = anon_vma.root.rwsem
    if rwsem.writer is not None or rwsem.readers:
        rwsem.down_write()
        rwsem.up_write()
    anon_vma.freed = True
    del anon_vma.machine.anon_vmas_live[anon_vma.serial]


def get_anon_vma(anon_vma: AnonVma) -> None:
    """One more reference; somebody must hold one already."""
    if anon_vma.refcount <= 0:
        raise KernelBug("use-after-free", f"a reference was taken to {anon_vma}, which has none", anon_vma)
    anon_vma.refcount += 1


def put_anon_vma(anon_vma: AnonVma) -> None:
    """Give one reference back; the last frees the anon_vma, and drops its reference to the root."""
    if anon_vma.refcount <= 0:
        raise KernelBug("refcount-underflow", f"{anon_vma} was put more often than got", anon_vma)
    anon_vma.refcount -= 1
    if anon_vma.refcount == 0:
        release_anon_vma(anon_vma)


def release_anon_vma(anon_vma: AnonVma) -> None:
    """__put_anon_vma: free it, and the root with it when nothing else holds that."""
    root = anon_vma.root
    anon_vma_free(anon_vma)
    if root is not anon_vma:
        put_anon_vma(root)


# ---- the chain of a VMA


def anon_vma_chain_alloc(m: Machine, vma: VmAreaStruct, anon_vma: AnonVma) -> AnonVmaChain | None:
    """An AVC that is neither in the chain nor in the tree yet; None: out of memory (a fault point)."""
    if m.should_fail("anon_vma_chain_alloc"):
        return None
    return AnonVmaChain(m.serial(), vma, anon_vma)


def anon_vma_prepare(vma: VmAreaStruct) -> int:
    """Make the VMA faulted if it is not: 0 or -ENOMEM."""
    return 0 if vma.anon_vma is not None else _anon_vma_prepare(vma)


def _anon_vma_prepare(vma: VmAreaStruct) -> int:
    """__anon_vma_prepare: give the VMA an anon_vma, a neighbour's if it can share it, else a new root.

    mmap_lock is held, perhaps only for reading: another fault may be faster.
    """
    m = vma.vm_mm.machine
    if m.should_fail("anon_vma_chain_alloc"):
        return -ENOMEM
    anon_vma = vma_ops.find_mergeable_anon_vma(vma)
    allocated = None
    if anon_vma is None:
        anon_vma = allocated = anon_vma_alloc(m)
        if anon_vma is None:
            return -ENOMEM
        anon_vma.num_children += 1  # a root is its own parent
    m.sched.point("anon_vma.found")
    anon_vma_lock_write(anon_vma)
    if vma.anon_vma is None:
        vma.anon_vma = anon_vma
        avc = AnonVmaChain(m.serial(), vma, anon_vma)
        vma.anon_vma_chain.insert(0, avc)
        avc_insert(avc)
        anon_vma.num_active_vmas += 1
        allocated = None
    anon_vma_unlock_write(anon_vma)
    if allocated is not None:
        put_anon_vma(allocated)
    m.sched.point("anon_vma.prepared")
    return 0


def check_anon_vma_clone(dst: VmAreaStruct, src: VmAreaStruct, operation: int) -> None:
    """What the kernel warns of before a clone."""
    fork = operation == VMA_OP_FORK
    if src.anon_vma is None:
        wrong = bool(src.anon_vma_chain) or dst.anon_vma is not None
    else:
        wrong = dst.anon_vma is not src.anon_vma if dst.anon_vma or not fork else False
        wrong |= operation == VMA_OP_MERGE_UNFAULTED and len(src.anon_vma_chain) != 1
    wrong |= bool(dst.anon_vma_chain) or (not fork and dst.vm_mm is not src.vm_mm)
    if wrong:
        dst.vm_mm.machine.warn("anon-vma-clone", f"{src} does not fit {dst}, its clone", src.anon_vma)


def maybe_reuse_anon_vma(dst: VmAreaStruct, src: VmAreaStruct, anon_vma: AnonVma) -> None:
    """fork: take over an ancestor's anon_vma that no VMA calls its own and that has one child at most."""
    if dst.anon_vma is not None:
        return
    if dst.vm_mm.machine.profile.reuse_by_degree:
        reusable = anon_vma is not src.anon_vma and anon_vma.num_active_vmas + anon_vma.num_children < 2
    else:
        reusable = anon_vma.num_active_vmas == 0 and anon_vma.num_children <= 1
    if reusable:
        dst.anon_vma = anon_vma
        anon_vma.num_active_vmas += 1


def anon_vma_clone(dst: VmAreaStruct, src: VmAreaStruct, operation: int) -> int:
    """Give ``dst`` an AVC for each AVC of ``src``. VMA_OP_*; ``dst.anon_vma`` is that of ``src``, or None in a fork.

    The copy has the order of ``src``, youngest anon_vma first, and a fork looks from its end for one to use again.
    -ENOMEM leaves ``dst`` unfaulted with an empty chain.
    """
    check_anon_vma_clone(dst, src, operation)
    active = src.anon_vma
    if active is None:
        return 0
    m = dst.vm_mm.machine
    chain = dst.anon_vma_chain
    turned = m.profile.clone_reverses_chain
    for old in src.anon_vma_chain if turned else reversed(src.anon_vma_chain):
        avc = anon_vma_chain_alloc(m, dst, old.anon_vma)
        if avc is None:
            cleanup_partial_anon_vmas(dst)
            return -ENOMEM
        chain.insert(0, avc)
    m.sched.point("anon_vma.clone_allocated")
    anon_vma_lock_write(active)
    for avc in reversed(chain):
        avc_insert(avc)
        if operation == VMA_OP_FORK:
            maybe_reuse_anon_vma(dst, src, avc.anon_vma)
    if operation != VMA_OP_FORK and dst.anon_vma is not None:
        dst.anon_vma.num_active_vmas += 1
    anon_vma_unlock_write(active)
    return 0


def cleanup_partial_anon_vmas(vma: VmAreaStruct) -> None:
    """Drop AVCs that have not reached any tree."""
    vma.anon_vma_chain.clear()
    vma.anon_vma = None


def anon_vma_and_avc_alloc(m: Machine) -> AnonVma | None:
    """A new root, and memory for the AVC that will lead to it; None: out of memory for one of them."""
    anon_vma = anon_vma_alloc(m)
    if anon_vma is not None and m.should_fail("anon_vma_chain_alloc"):
        put_anon_vma(anon_vma)
        return None
    return anon_vma


def anon_vma_fork(vma: VmAreaStruct, pvma: VmAreaStruct) -> int:
    """Attach a child's VMA to all anon_vmas of its parent's ``pvma``, and to one of its own. 0 or -ENOMEM."""
    parent = pvma.anon_vma
    if parent is None:
        return 0
    vma.anon_vma = None
    m = vma.vm_mm.machine
    first = m.profile.fork_allocates_first
    anon_vma = anon_vma_and_avc_alloc(m) if first else None
    if first and anon_vma is None:
        return -ENOMEM
    error = anon_vma_clone(vma, pvma, VMA_OP_FORK)
    if error or vma.anon_vma is not None:  # failed, or an ancestor's is used again
        if anon_vma is not None:
            put_anon_vma(anon_vma)
        return error
    if anon_vma is None:
        anon_vma = anon_vma_and_avc_alloc(m)
    if anon_vma is None:
        unlink_inherited(vma, parent)
        return -ENOMEM
    anon_vma.num_active_vmas = 1
    anon_vma.root = parent.root
    anon_vma.parent = parent
    get_anon_vma(anon_vma.root)  # the lock lives there
    vma.anon_vma = anon_vma
    avc = AnonVmaChain(m.serial(), vma, anon_vma)
    vma.anon_vma_chain.insert(0, avc)
    m.sched.point("anon_vma.forked")
    anon_vma_lock_write(anon_vma)
    avc_insert(avc)
    parent.num_children += 1
    anon_vma_unlock_write(anon_vma)
    return 0


def unlink_inherited(vma: VmAreaStruct, parent: AnonVma) -> None:
    """A child's VMA that gets no anon_vma of its own leaves those of its parent, who keeps all of them alive."""
    anon_vma_lock_write(parent)
    for avc in vma.anon_vma_chain:
        avc_remove(avc)
    vma.anon_vma_chain.clear()
    anon_vma_unlock_write(parent)


def unlink_anon_vmas(vma: VmAreaStruct) -> None:
    """Sever the VMA from the rmap: it becomes unfaulted. An anon_vma that no VMA is linked to any more is freed."""
    active = vma.anon_vma
    m = vma.vm_mm.machine
    if active is None:
        if vma.anon_vma_chain:
            m.warn("anon-vma-unlink", f"{vma} is not faulted and has AVCs", vma.anon_vma_chain[0].anon_vma)
        return
    anon_vma_lock_write(active)
    empty: list[AnonVma] = []
    for avc in vma.anon_vma_chain:
        avc_remove(avc)
        anon_vma = avc.anon_vma
        if not anon_vma.rb_root:
            anon_vma.parent.num_children -= 1
            empty.append(anon_vma)
    active.num_active_vmas -= 1
    vma.anon_vma_chain.clear()
    vma.anon_vma = None
    anon_vma_unlock_write(active)
    m.sched.point("anon_vma.unlinked")
    for anon_vma in empty:  # freeing takes the lock
        if anon_vma.num_children or anon_vma.num_active_vmas:
            detail = (
                f"{anon_vma} is freed with {anon_vma.num_children} children, {anon_vma.num_active_vmas} VMAs"
            )
            m.warn("anon-vma-freed-in-use", detail, anon_vma)
        put_anon_vma(anon_vma)


def anon_vma_interval_tree_pre_update_vma(vma: VmAreaStruct) -> None:
    """The VMA's range is about to change: out of all trees. The caller holds the lock for writing."""
    for avc in vma.anon_vma_chain:
        avc_remove(avc)


def anon_vma_interval_tree_post_update_vma(vma: VmAreaStruct) -> None:
    """Back into the trees, under the range that the VMA has now."""
    for avc in vma.anon_vma_chain:
        avc_insert(avc)


# ---- from a folio to its anon_vma


def folio_anon_vma(folio: Folio) -> AnonVma | None:
    """What the mapping of an anonymous folio says; it must be alive while the folio is mapped. None: a KSM folio."""
    anon_vma = folio.mapping
    if not folio.anon or not isinstance(anon_vma, AnonVma):
        return None
    if anon_vma.freed and folio.mapped():
        raise KernelBug("use-after-free", f"{folio} is mapped, and its anon_vma has been freed", folio)
    return anon_vma


def folio_get_anon_vma(folio: Folio) -> AnonVma | None:
    """The anon_vma of a locked folio, with a reference; None: not anonymous, or not mapped by now."""
    check_folio_locked(folio)
    anon_vma = folio_anon_vma(folio)
    if anon_vma is None or not folio.mapped() or anon_vma.refcount <= 0:
        return None
    anon_vma.refcount += 1
    return anon_vma


def folio_lock_anon_vma_read(folio: Folio) -> AnonVma | None:
    """As ``folio_get_anon_vma``, and locked for reading instead of referenced."""
    check_folio_locked(folio)
    anon_vma = folio_anon_vma(folio)
    if anon_vma is None or not folio.mapped():
        return None
    if anon_vma.root.rwsem.try_down_read():
        return anon_vma
    if anon_vma.refcount <= 0:
        return None
    anon_vma.refcount += 1  # so that it is still there when the lock is
    anon_vma_lock_read(anon_vma)
    anon_vma.refcount -= 1
    if anon_vma.refcount == 0:
        anon_vma_unlock_read(anon_vma)
        release_anon_vma(anon_vma)
        return None
    return anon_vma


def check_folio_locked(folio: Folio) -> None:
    if folio.lock.owner is None:
        raise KernelBug("folio-not-locked", f"{folio} must be locked here", folio)


# ---- walks


def visit_vma(folio: Folio, vma: VmAreaStruct, visit: Visit) -> bool:
    """Tell ``visit`` where the VMA has the folio."""
    vma.vm_mm.machine.sched.point("rmap.walk_next")
    address = vma_ops.vma_address(vma, folio.index, folio.nr_pages)
    if address is None:
        raise KernelBug("rmap-address", f"the rmap of {folio} leads to {vma}, which does not hold it", folio)
    return visit(folio, vma, address)


def rmap_walk_anon(folio: Folio, visit: Visit, anon_vma: AnonVma) -> None:
    """Every VMA in the tree that overlaps the folio. The lock is held."""
    first = folio.index
    for avc in avc_overlapping(anon_vma, first, first + folio.nr_pages - 1):
        if not visit_vma(folio, avc.vma, visit):
            return


def rmap_walk_file(folio: Folio, visit: Visit, mapping: AddressSpace) -> None:
    """Every VMA of the file that overlaps the folio. i_mmap_rwsem is held."""
    for vma in mapping.i_mmap.overlapping(folio.index, folio.index + folio.nr_pages - 1):
        if not visit_vma(folio, vma, visit):
            return


def rmap_walk(folio: Folio, visit: Visit, *, mapped_only: bool = False) -> None:
    """Visit every place where the locked folio may be mapped, under the rmap lock for reading.

    ``mapped_only``: nothing to do once the folio is not mapped. Without it the caller sees to it that the
    anon_vma stays: with a reference, or because entries that name the folio are left in its VMAs.
    """
    check_folio_locked(folio)
    if folio.ksm:
        ksm.rmap_walk_ksm(folio, visit)
    elif folio.anon:
        if mapped_only:
            anon_vma = folio_lock_anon_vma_read(folio)
            if anon_vma is None:
                return
        else:
            anon_vma = folio_anon_vma(folio)
            if anon_vma is None:
                return
            if anon_vma.freed:
                raise KernelBug("use-after-free", f"the walk for {folio} begins at a freed anon_vma", folio)
            anon_vma_lock_read(anon_vma)
        rmap_walk_anon(folio, visit, anon_vma)
        anon_vma_unlock_read(anon_vma)
    elif isinstance(folio.mapping, AddressSpace):
        mapping = folio.mapping
        mapping.i_mmap_rwsem.down_read()
        rmap_walk_file(folio, visit, mapping)
        mapping.i_mmap_rwsem.up_read()


def rmap_walk_locked(folio: Folio, visit: Visit) -> None:
    """As ``rmap_walk``; the caller holds the rmap lock. Not for KSM folios, which have no single one."""
    check_folio_locked(folio)
    mapping = folio.mapping
    if folio.anon:
        anon_vma = folio_anon_vma(folio)
        if anon_vma is None:
            raise KernelBug("no-anon-vma", f"{folio} is anonymous and has no anon_vma", folio)
        rmap_walk_anon(folio, visit, anon_vma)
    elif isinstance(mapping, AddressSpace):
        rmap_walk_file(folio, visit, mapping)
