"""The rmap oracle: the places that the reverse map leads to are the places that map the folio.

Correct means (mm/rmap.c): for every entry that maps page i of folio F in VMA v, v has an AVC in F's anon_vma,
standing in its interval tree under v's range, and ``v.pgoff + page of the entry in v == F.index + i``. A folio in
the swap cache is held to the same for the swap entries that will bring it back, as swap-in reuses its mapping
and index (but not what was a KSM page, see ``oracle.ksm``). After a step no migration entry is left: one that the walk
could not find is a page lost.

``check`` looks at the entries and VMAs that the step touched; ``check_all`` walks for every folio.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from emulator.hw.pte import PRESENT, PSE, SPECIAL
from emulator.ksm_types import KsmStableNode
from emulator.rmap_types import AnonVma
from emulator.workload import FOLL_PIN
from oracle.finding import Finding, finding
from oracle.ksm import KsmPlaces
from oracle.leaves import KIND_MIGRATION, KIND_SWAP, Leaf, leaf_key
from oracle.observation import Observer

if TYPE_CHECKING:
    from emulator.mm_types import Folio, VmAreaStruct
    from emulator.rmap_types import AnonVmaChain


def reaches(vma: VmAreaStruct, anon_vma: AnonVma, pgoff: int) -> bool:
    """Does a walk of ``anon_vma`` for page ``pgoff`` meet ``vma``?"""
    for avc in vma.anon_vma_chain:
        key = avc.key
        if avc.anon_vma is anon_vma and key is not None and key.first <= pgoff <= key.last:
            return key in anon_vma.rb_root
    return False


def other_family(vma: VmAreaStruct, anon_vma: AnonVma) -> bool:
    """Does the anon_vma descend from another root than the VMA's?"""
    return vma.anon_vma is not None and vma.anon_vma.root is not anon_vma.root


class RmapOracle:
    """Remembers where each folio claimed to be when it was last right, to tell who went wrong."""

    __slots__ = ("_claims", "_ksm", "_ksm_runs", "_observer", "_pinned")

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self._claims: dict[int, tuple[object, int]] = {}  # head pfn to (mapping, index), last time it was right
        self._ksm = KsmPlaces(observer)
        self._ksm_runs = False  # the scanner has, or had, something to scan
        self._pinned: set[int] = set()  # head pfns of folios that were pinned when the last step ended

    # ---- one entry

    def check(self, step: int, injected: bool) -> list[Finding]:
        """Judge the leaves that the last step touched."""
        found: list[Finding] = []
        machine = self._observer.machine
        frames = machine.phys.frames
        cache = machine.swap.cache
        claims = self._claims
        self._ksm_runs = self._ksm_runs or bool(machine.ksm.mm_slots)
        if self._ksm_runs:
            self._ksm.note_swapped_out()
        for leaf in self._observer.leaves:
            _, _, _, address, entry, vma = leaf
            if not entry or vma is None:
                continue
            if entry & PRESENT:
                if entry & SPECIAL:
                    continue
                pfn = entry >> 12
                folio = frames[pfn]
                if not folio.anon:
                    continue
                if folio.ksm or folio.mapping.__class__ is KsmStableNode:
                    if self._ksm.lost(leaf, folio):
                        found.append(self._ksm_lost(leaf, folio, step))
                    continue
                page = pfn - folio.pfn
                state = "present"
            else:
                key = leaf_key(entry)
                kind = key & 7
                if kind == KIND_MIGRATION:
                    found.append(self._migration_entry_left(leaf, step))
                    continue
                if kind != KIND_SWAP:
                    continue
                slot = entry >> 12
                cached = cache.get(slot)
                if self._ksm_runs and self._ksm.was_ksm(leaf):
                    continue
                if cached is None or not cached.anon or cached.mapping is None:
                    continue
                folio = cached
                page = slot - folio.swap
                state = "swap cache"
            pgoff = vma.vm_pgoff + (address - vma.vm_start >> 12)
            mapping = folio.mapping
            if folio.index + page == pgoff and reaches(vma, mapping, pgoff):  # type: ignore[arg-type]
                claims[folio.pfn] = (mapping, folio.index)
            else:
                found.append(self._broken(leaf, vma, folio, page, pgoff, state, step, injected))
        if machine.pins or self._pinned:
            self._pinned = {pin.folio.pfn for pin in machine.pins.values() if pin.flags & FOLL_PIN}
        return found

    def _broken(
        self,
        leaf: Leaf,
        vma: VmAreaStruct,
        folio: Folio,
        page: int,
        pgoff: int,
        state: str,
        step: int,
        injected: bool,
    ) -> Finding:
        mapping: AnonVma = folio.mapping  # type: ignore[assignment]
        if folio.index + page != pgoff or other_family(vma, mapping):
            rule = "misplaced"
        else:
            rule = "unreachable"
        claim = self._claims.get(folio.pfn)
        if claim is None:
            # made in this very step; then the VMA is to blame if it changed in it
            who = "folio left behind" if vma in self._observer.changed else "folio made wrong"
        elif claim[0] is not mapping or claim[1] != folio.index:
            who = "folio ahead"
        else:
            who = "folio left behind"
        detail = (
            f"process {leaf.mm.label} maps page {page} of {folio} at {leaf.address >> 12:#x} in {vma}, where a walk "
            f"finds pgoff {pgoff:#x}, but the folio says {folio.index + page:#x} of {mapping}"
        )
        return finding(
            "rmap",
            rule,
            detail,
            step,
            cause=", ".join([who, *self._circumstances(folio, state, injected and who == "folio ahead")]),
            subjects=(("folio", folio.pfn),),
        )

    def _circumstances(self, folio: Folio, state: str, injected: bool) -> list[str]:
        """What tells flaws apart. A folio that was passed over is so for its state alone, however large it is."""
        words = [state]
        if state == "present" and (folio.pfn in self._pinned or is_pinned(self._observer, folio)):
            words.append("pinned")
        if injected:
            words.append("failure injected")
        return words

    def _ksm_lost(self, leaf: Leaf, folio: Folio, step: int) -> Finding:
        detail = (
            f"process {leaf.mm.label} maps the KSM page {folio} at {leaf.address >> 12:#x} in {leaf.vma}, "
            "where no item of its stable node leads"
        )
        return finding("rmap", "unreachable", detail, step, cause="KSM page", subjects=(("folio", folio.pfn),))

    def _migration_entry_left(self, leaf: Leaf, step: int) -> Finding:
        pfn = leaf.entry >> 12
        folio = self._observer.machine.phys.frames[pfn]
        detail = (
            f"process {leaf.mm.label} has a migration entry for {folio} at {leaf.address >> 12:#x} in {leaf.vma}, "
            "and the migration is over"
        )
        subjects = (("folio", folio.pfn), ("page", leaf.mm.label << 40 | leaf.address >> 12))
        return finding("rmap", "migration-entry-left", detail, step, subjects=subjects)

    # ---- every folio, by a real walk

    def check_all(self, step: int, injected: bool) -> list[Finding]:
        """Judge every folio: ``check`` on all leaves (``observe_everything`` first), then a walk for each."""
        found = self.check(step, injected)
        if found:
            return found
        for folio in self._observer.machine.phys.live.values():
            if folio.anon and folio.mapping.__class__ is AnonVma:
                walked = self._walk(folio)
                mapped = self._brute_force(folio)
                if walked != mapped:
                    found.append(self._walk_differs(folio, walked, mapped, step))
        return found

    def _walk(self, folio: Folio) -> list[tuple[int, int]]:
        """(process, address) of each visit of rmap_walk_anon where the entry maps the folio, sorted."""
        anon_vma: AnonVma = folio.mapping  # type: ignore[assignment]
        first, last = folio.index, folio.index + folio.nr_pages - 1
        visits = []
        for key in anon_vma.rb_root:
            if key.first > last:
                break
            if key.last >= first:
                visits.extend(self._visit(folio, key.avc))
        return sorted(visits)

    def _visit(self, folio: Folio, avc: AnonVmaChain) -> list[tuple[int, int]]:
        """The addresses in the AVC's VMA that the walk looks at and whose entry maps the expected page."""
        vma = avc.vma
        mm = vma.vm_mm
        geometry = self._observer.machine.geometry
        visits = []
        for page in range(folio.nr_pages):
            pgoff = folio.index + page
            address = vma.vm_start + (pgoff - vma.vm_pgoff << 12)
            if not vma.vm_start <= address < vma.vm_end:
                continue
            table = mm.pgd
            while True:
                entry = table.entries.get((address >> geometry.shifts[table.level]) & geometry.index_mask, 0)
                if isinstance(entry, int):
                    break
                table = entry
            if not entry & PRESENT or entry & SPECIAL:
                continue
            pfn = entry >> 12
            if entry & PSE and table.level:
                pfn += (address & ((1 << geometry.shifts[table.level]) - 1)) >> 12
            if pfn == folio.pfn + page:
                visits.append((mm.label, address))
        return visits

    def _brute_force(self, folio: Folio) -> list[tuple[int, int]]:
        """(process, address) of each page that any page table maps to the folio, sorted."""
        observer = self._observer
        mapped = []
        for page in range(folio.nr_pages):
            for place in observer.mappings(folio.pfn + page):
                leaf = observer.leaf_at(place)
                if leaf is None:
                    continue
                pages = 1
                if leaf.table.level:
                    pages = 1 << observer.machine.geometry.shifts[leaf.table.level] - 12
                mapped.extend([(leaf.mm.label, leaf.address + (i << 12)) for i in range(pages)])
        return sorted(mapped)

    def _walk_differs(
        self, folio: Folio, walked: list[tuple[int, int]], mapped: list[tuple[int, int]], step: int
    ) -> Finding:
        twice = len(set(walked)) != len(walked)
        missed = [place for place in mapped if place not in walked]
        rule = "walk-repeats" if twice else "walk-misses"
        detail = (
            f"the walk for {folio} visits {_places(walked)}, the page tables have it at {_places(mapped)}"
            + (f"; missed {_places(missed)}" if missed else "")
        )
        return finding("rmap", rule, detail, step, subjects=(("folio", folio.pfn),))


def is_pinned(observer: Observer, folio: Folio) -> bool:
    """Does a pin (FOLL_PIN) hold the folio now?"""
    return any(pin.folio is folio and pin.flags & FOLL_PIN for pin in observer.machine.pins.values())


def _places(places: list[tuple[int, int]]) -> str:
    return ", ".join(f"process {label} page {address >> 12:#x}" for label, address in places) or "nowhere"
