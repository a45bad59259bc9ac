"""The lifetime oracle: counts recounted, use after free, leaks at exit.

Folios: a reference for each entry that maps them, for each page in the swap or page cache, for each reference and
pin that get_user_pages gave out (``GUP_PIN_COUNTING_BIAS`` for a pin on a small folio), and no more; mapcounts
equal to the entries. Swap slots: as many uses as entries, and pages of files of memory. The anon_vma graph is judged by
``oracle.anon_vma_graph`` and files of memory by ``oracle.shared_memory``, whose findings come under this oracle's name.

After a step no operation is under way, so nothing else may hold a reference.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from emulator.fs_types import AddressSpace
from emulator.mm_types import GUP_PIN_COUNTING_BIAS
from emulator.workload import FOLL_PIN
from oracle import shared_memory
from oracle.anon_vma_graph import AnonVmaGraph
from oracle.finding import Finding, Subject, finding
from oracle.leaves import KIND_BITS, KIND_PRESENT, KIND_SWAP
from oracle.observation import Observer

if TYPE_CHECKING:
    from emulator.machine import Machine
    from emulator.mm_types import Folio, Pin
    from emulator.workload import Op

_CACHE_WORKERS = frozenset(("reclaim", "swap_readahead", "migrate", "madvise", "exit", "munmap", "ksm_scan"))


class LifetimeOracle:
    """Counts what the last step touched (``check``) or everything (``check_all``)."""

    __slots__ = ("_graph", "_held", "_ksm_ran", "_observer", "_pins", "_shared")

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self._graph = AnonVmaGraph(observer)
        self._ksm_ran = False  # the same-page scanner has, or had, something to scan
        self._shared = False  # there is, or was, shared memory
        self._pins: dict[int, Pin] = {}  # as after the last step
        self._held: dict[int, list[Pin]] = {}  # head pfn to what get_user_pages gave out, after the last step

    def check(self, step: int, ops: tuple[Op, ...]) -> list[Finding]:
        """Judge what the last step touched."""
        observer = self._observer
        machine = observer.machine
        folios: dict[int, Folio] = {}
        slots: dict[int, None] = {}
        frames = machine.phys.frames
        for key in observer.keys:
            kind = key & 7
            if kind == KIND_PRESENT:
                folio = frames[key >> KIND_BITS]
                folios[folio.pfn] = folio
            elif kind == KIND_SWAP:
                slots[key >> KIND_BITS] = None
        if machine.pins != self._pins:
            self._take_pins(folios)
        if machine.swap.cache and any(op.kind in _CACHE_WORKERS for op in ops):
            for slot, folio in machine.swap.cache.items():
                slots[slot] = None
                folios[folio.pfn] = folio
        self._ksm_ran = self._ksm_ran or bool(machine.ksm.mm_slots)
        found = self._graph.check(step)
        for slot in slots:
            self._check_slot(slot, step, found)
        zero = machine.phys.zero_folio
        for folio in folios.values():
            if folio is not zero:
                self._check_folio(folio, step, found)
        self._check_stray(step, found)
        self._check_shared_memory(step, found)
        return found

    def check_all(self, step: int) -> list[Finding]:
        """Judge every object of the machine (``observe_everything`` first)."""
        machine = self._observer.machine
        self._take_pins({})
        found = self._graph.check_all(step)
        for slot in machine.swap.count:
            self._check_slot(slot, step, found)
        for slot in machine.swap.cache:
            self._check_slot(slot, step, found)
        folios = dict(machine.phys.live)  # and those that are used though they are not alive
        for pin in machine.pins.values():
            folios[pin.folio.pfn] = pin.folio
        for folio in machine.swap.cache.values():
            folios[folio.pfn] = folio
        for key in self._observer.places:
            if key & 7 == KIND_PRESENT:
                folio = machine.phys.frames[key >> KIND_BITS]
                folios[folio.pfn] = folio
            elif key & 7 == KIND_SWAP and key >> KIND_BITS not in machine.swap.count:
                self._check_slot(key >> KIND_BITS, step, found)
        zero = machine.phys.zero_folio
        for folio in folios.values():
            if folio is not zero:
                self._check_folio(folio, step, found)
        self._check_stray(step, found)
        self._check_shared_memory(step, found)
        if not machine.procs:
            self._check_leaks(step, found)
        return found

    def _check_shared_memory(self, step: int, found: list[Finding]) -> None:
        machine = self._observer.machine
        if self._shared or shared_memory.in_use(machine):
            found += shared_memory.check_pages(machine, step)
            self._shared = True
        if self._shared and self._observer.spans:
            found += shared_memory.check_files(machine, step)

    def _take_pins(self, changed: dict[int, Folio]) -> None:
        """Notice pins given out and given back; their folios are to be counted."""
        pins = self._observer.machine.pins
        for label in {**self._pins, **pins}:
            before, now = self._pins.get(label), pins.get(label)
            if before is not now:
                if before is not None:
                    # the folio may have been split since it was given back: what stands there now is counted
                    folio = self._observer.machine.phys.frames[before.folio.pfn]
                    changed[folio.pfn] = folio
                if now is not None:
                    changed[now.folio.pfn] = now.folio
        self._pins = dict(pins)
        self._held = {}
        for pin in pins.values():
            self._held.setdefault(pin.folio.pfn, []).append(pin)

    # ---- folios

    def _check_folio(self, folio: Folio, step: int, found: list[Finding]) -> None:
        observer = self._observer
        places = observer.places
        pfn = folio.pfn
        subjects: tuple[Subject, ...] = (("folio", pfn),)
        entire = 0
        pages = 0
        wrong: str | None = None
        for i in range(folio.nr_pages):
            holders = places.get((pfn + i) << KIND_BITS)
            count = 0
            if holders:
                for table, _ in holders:
                    if table.level:
                        entire += 1
                    else:
                        count += 1
            pages += count
            if folio.mapcounts[i] != count and wrong is None:
                wrong = f"page {i} has mapcount {folio.mapcounts[i]} and {count} entries"
        mapped = entire + pages
        if folio.freed:
            self._check_freed(folio, mapped, step, found)
            return
        if folio.entire_mapcount != entire and wrong is None:
            wrong = f"entire_mapcount is {folio.entire_mapcount}, and {entire} PMDs map it"
        if wrong is not None:
            cause = _kind(folio)
            found.append(
                finding("lifetime", "mapcount", f"{folio}: {wrong}", step, cause=cause, subjects=subjects)
            )
            return
        held = self._held.get(pfn)
        refs = mapped + self._cache_refs(folio)
        if folio is observer.machine.phys.huge_zero_folio:
            refs += 1  # it is kept, mapped or not, and no entry counts
        pins = 0
        if held:
            for pin in held:
                if not pin.flags & FOLL_PIN:
                    refs += 1
                elif folio.order:
                    pins += 1
                    refs += 1
                else:
                    refs += GUP_PIN_COUNTING_BIAS
        if folio.refcount != refs:
            how = "too many" if folio.refcount > refs else "too few"
            detail = f"{folio} has {folio.refcount} references, {refs} are accounted for ({mapped} entries)"
            cause = f"{how}, {_kind(folio)}"
            found.append(finding("lifetime", "refcount", detail, step, cause=cause, subjects=subjects))
        elif folio.pincount != pins:
            detail = f"{folio} has pincount {folio.pincount}, and {pins} pins were given out"
            found.append(finding("lifetime", "pincount", detail, step, subjects=subjects))

    def _cache_refs(self, folio: Folio) -> int:
        refs = 0
        if folio.swapcache:
            cache = self._observer.machine.swap.cache
            refs += sum(cache.get(slot) is folio for slot in range(folio.swap, folio.swap + folio.nr_pages))
        mapping = folio.mapping
        if mapping.__class__ is AddressSpace:
            pages = mapping.pages
            refs += sum(pages.get(i) is folio for i in range(folio.index, folio.index + folio.nr_pages))
        return refs

    def _check_freed(self, folio: Folio, mapped: int, step: int, found: list[Finding]) -> None:
        holder = ""
        if mapped:
            holder = "mapped"
        elif folio.pfn in self._held:
            holder = "pinned"
        elif folio.swapcache and self._observer.machine.swap.cache.get(folio.swap) is folio:
            holder = "in the swap cache"
        if holder:
            found.append(
                finding(
                    "lifetime",
                    "use-after-free",
                    f"{folio} has been freed and is still {holder}",
                    step,
                    cause=f"folio {holder}",
                    subjects=(("folio", folio.pfn),),
                )
            )

    # ---- swap

    def _check_slot(self, slot: int, step: int, found: list[Finding]) -> None:
        swap = self._observer.machine.swap
        entries = len(self._observer.places.get(slot << KIND_BITS | KIND_SWAP, ()))
        if self._shared:
            entries += shared_memory.uses_of_slot(self._observer.machine, slot)
        count = swap.count.get(slot)
        folio = swap.cache.get(slot)
        subjects: tuple[Subject, ...] = (("swap", slot),)
        if folio is not None:
            subjects += (("folio", folio.pfn),)
        rule = ""
        if count is None:
            if entries or folio is not None:
                rule, detail = "swap-use-after-free", f"swap slot {slot} is free and still used"
        elif count != entries:
            how = "too many" if count > entries else "too few"
            rule = f"swap-count: {how}"
            detail = f"swap slot {slot} counts {count} uses, {entries} entries or files hold it"
        elif count == 0 and folio is None:
            rule, detail = "swap-leak", f"swap slot {slot} is neither used nor cached nor free"
        elif folio is not None and not (
            folio.swapcache and folio.swap <= slot < folio.swap + folio.nr_pages
        ):
            rule, detail = "swap-cache", f"swap slot {slot} caches {folio}, which does not know of it"
        if rule:
            found.append(finding("lifetime", rule, detail, step, subjects=subjects))

    # ---- entries and leaks

    def _check_stray(self, step: int, found: list[Finding]) -> None:
        for table, slot in self._observer.stray:
            detail = f"slot {slot} of {table} still holds an entry, and no living process reaches the table"
            found.append(finding("lifetime", "entry-leaked", detail, step))

    def _check_leaks(self, step: int, found: list[Finding]) -> None:
        """The last process is gone: of its memory only what is pinned may be left.

        And in the swap cache what was a KSM page: a fault that maps a copy of it leaves it there for reclaim.
        """
        machine = self._observer.machine
        for folio in machine.phys.live.values():
            if machine.phys.is_zero(folio) or _in_file(machine, folio):
                continue
            if folio.pfn not in self._held and not (self._ksm_ran and folio.swapcache):
                detail = f"no process is left, and {folio} is not free"
                subjects: tuple[Subject, ...] = (("folio", folio.pfn),)
                found.append(finding("lifetime", "folio-leaked", detail, step, subjects=subjects))
        for slot in machine.swap.count:
            if self._shared and shared_memory.uses_of_slot(machine, slot):
                continue
            folio_cached = machine.swap.cache.get(slot)
            if folio_cached is None or (folio_cached.pfn not in self._held and not self._ksm_ran):
                detail = f"no process is left, and swap slot {slot} is not free"
                found.append(finding("lifetime", "swap-leaked", detail, step, subjects=(("swap", slot),)))


def _in_file(machine: Machine, folio: Folio) -> bool:
    """Is the folio in the page cache of a file that is there?"""
    mapping = folio.mapping
    if not isinstance(mapping, AddressSpace):
        return False
    return not mapping.shmem or machine.shared_memory.get(mapping.label) is mapping


def _kind(folio: Folio) -> str:
    """What sort of folio, for a signature."""
    if folio.mapping.__class__ is AddressSpace:
        return "file"
    return "large" if folio.large else "small"
