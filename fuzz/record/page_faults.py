"""Runs recorded page faults in the machine: one fault there for each fault here, with the same outcome."""

from __future__ import annotations

from typing import Final, NamedTuple

from emulator.geometry import PAGE_SHIFT
from emulator.hw.pte import EXEC, RW, USER
from emulator.mm_types import VM_SHARED, MmStruct
from emulator.uapi import result_name
from fuzz.record.call_order import CallOrder
from fuzz.record.context import Context
from fuzz.record.events import Event, Fault, Mapping, Recording, Signal
from fuzz.record.files import SIZE_UNKNOWN
from fuzz.record.threads import Thread

# x86 error code
_PRESENT: Final = 1
_WRITE: Final = 2
_FETCH: Final = 16

_SIGBUS_NUMBER: Final = 7
_EFAULT: Final = -14
_FAULT_SIGNALS: Final = (_SIGBUS_NUMBER, 11)  # 11: SIGSEGV

_SI_KERNEL: Final = 128  # si_code of a signal for another reason than an address (a general protection fault)

# Notes: where the kernel faulted otherwise than the machine, for reasons that are known.
KERNEL_TWICE: Final = "accesses by the kernel that faulted twice, first where it may not sleep"
WRITE_NOTIFY: Final = "writes that the file system wanted to be told of (page_mkwrite)"
FAULT_AROUND: Final = "faults on pages that the kernel had mapped around an earlier fault"
MAPPED: Final = "faults on pages that are mapped in the machine"
AGAIN: Final = "faults that the machine needs more than once"


class Access(NamedTuple):
    """What the fault's instruction wanted."""

    flags: int  # FAULT_FLAG_*
    permission: int  # PTE bits that it needs


class PageFaults:
    """The faults of one recording."""

    def __init__(self, context: Context, order: CallOrder) -> None:
        self.context = context
        self.order = order
        self.image = context.image
        self.report = context.report
        self.signals: dict[int, int] = {}  # position of a fault that ended in a signal to its number
        self.tells_signals = False  # the source tells of signals at all
        self._repeated: set[int] = set()  # positions of faults after which the thread faulted there again
        self._repeats: set[int] = set()  # and of those second faults
        self._look_ahead(context.recording)

    def _look_ahead(self, recording: Recording) -> None:
        """What the next event of a thread tells of a fault: that it ended in a signal, or came again."""
        last: dict[int, Event] = {}
        for event in recording.events:
            if isinstance(event, Mapping):
                continue  # the stack grew: part of the fault
            before = last.get(event.tid)
            if isinstance(event, Signal):
                self.tells_signals = True
                by_fault = event.number in _FAULT_SIGNALS and 0 < event.code < _SI_KERNEL
                if by_fault and isinstance(before, Fault):
                    self.signals[before.at] = event.number
            elif isinstance(event, Fault) and isinstance(before, Fault):
                if event.address >> PAGE_SHIFT == before.address >> PAGE_SHIFT:
                    self._repeated.add(before.at)
                    self._repeats.add(event.at)
            last[event.tid] = event

    def run(self, thread: Thread, fault: Fault) -> None:
        """Let the machine fault, and compare how that ends."""
        space = thread.space
        if fault.address >= self.context.machine.geometry.task_size:
            self.report.apart["faults on kernel addresses"] += 1
            return
        if space is None:
            self.report.unmodelled["faults in an address space of which nothing is known"] += 1
            return
        if space.in_flight:
            self.order.hurry(thread, lambda: self._allowed(space.mm, fault))
        self.context.observer.fault(thread, fault)
        self.context.listener.take()
        result = self._handle(space.mm, fault)
        thread.told = self.context.listener.take()
        self._judge(thread, fault, result, space.mm)

    def _judge(self, thread: Thread, fault: Fault, result: int, mm: MmStruct) -> None:
        report = self.report
        signal = self.signals.get(fault.at, 0)
        fatal = bool(signal)
        call = thread.call
        if result and fault.kernel and not fatal and call is not None:
            fatal = call.result == _EFAULT  # the kernel does not signal: the call fails
        if signal == _SIGBUS_NUMBER and not result and self._learn_size(mm, fault.address):
            report.unmodelled["page faults past the end of a file of unknown size"] += 1
            return
        report.modelled["page fault by the kernel" if fault.kernel else "page fault"] += 1
        if result and not fatal and not self.tells_signals and not fault.kernel:
            report.notes["faults that fail in the machine; the source tells of no signals"] += 1
            return
        report.results_compared += 1
        if bool(result) != fatal:
            kind = "write to" if self._access_of(fault).permission & RW else "access to"
            what = f"{kind} {fault.address:x}{' by the kernel' if fault.kernel else ''}"
            ours = result_name(result) if result else "succeeds"
            self.context.differ(fault, what, "a signal" if fatal else "succeeds", ours)

    def _access_of(self, fault: Fault) -> Access:
        memory = self.image.memory
        if fault.error_code & _WRITE:
            return Access(memory.FAULT_FLAG_WRITE, USER | RW)
        if fault.error_code & _FETCH:
            return Access(memory.FAULT_FLAG_INSTRUCTION, USER | EXEC)
        return Access(0, USER)

    def _allowed(self, mm: MmStruct, fault: Fault) -> bool:
        """Would the machine's kernel resolve the fault, as far as VMAs say?"""
        area = mm.mm_mt.lookup(fault.address)
        module = self.image.fault
        flags = self._access_of(fault).flags
        translated = module.is_translated(mm, fault.address)
        return area is not None and not module.access_error(area.vm_flags, flags, translated)

    def _handle(self, mm: MmStruct, fault: Fault) -> int:
        """One fault in the machine. 0 or the signal."""
        module = self.image.fault
        address = fault.address
        access = self._access_of(fault)
        if module.hardware_walk(mm, address, access.permission):
            self.report.notes[self._why_mapped(mm, fault)] += 1
            return 0
        result: int = module.do_user_addr_fault(
            mm, address, access.flags, module.is_translated(mm, address)
        )
        if result or fault.at in self._repeated or module.hardware_walk(mm, address, access.permission):
            return result
        around = fault.error_code & _PRESENT and not fault.error_code & _WRITE
        self.report.notes[FAULT_AROUND if around else AGAIN] += 1
        again = module.access(mm, address, access.flags)
        return again if isinstance(again, int) else 0

    def _why_mapped(self, mm: MmStruct, fault: Fault) -> str:
        if fault.kernel and fault.at in self._repeats:
            return KERNEL_TWICE
        area = mm.mm_mt.lookup(fault.address)
        protected = fault.error_code & (_PRESENT | _WRITE) == _PRESENT | _WRITE
        if protected and area is not None and area.vm_file is not None and area.vm_flags & VM_SHARED:
            return WRITE_NOTIFY
        return MAPPED

    def _learn_size(self, mm: MmStruct, address: int) -> bool:
        """The kernel says SIGBUS: if it was not known how long the file is, now it is."""
        area = mm.mm_mt.lookup(address)
        if area is None or area.vm_file is None or area.vm_file.f_mapping.size != SIZE_UNKNOWN:
            return False
        page = area.vm_pgoff + ((address - area.vm_start) >> PAGE_SHIFT)
        area.vm_file.f_mapping.size = page << PAGE_SHIFT
        return True
