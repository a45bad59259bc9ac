"""What all parts of a replay share: the recording, the machine, the report, and how to disagree."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from emulator.machine import Machine
from emulator.profile import Profile
from fuzz.record.events import Call, Event, Fault, Mapping, Recording
from fuzz.record.files import Inodes
from fuzz.record.report import Difference, Kind, ReplayReport
from fuzz.record.threads import Listener, Thread, Told

if TYPE_CHECKING:
    from emulator.image import KernelImage


class Observer:
    """Told of everything that a replay is about to do in the machine. Does nothing by itself."""

    def call(self, thread: Thread, call: Call) -> None:
        """A memory call."""

    def fault(self, thread: Thread, fault: Fault) -> None:
        """A page fault."""

    def fork(self, parent: Thread, child: Thread) -> None:
        """A fork that copied the address space; done already."""

    def leave(self, thread: Thread) -> None:
        """The end of a thread, or an exec: it leaves its address space."""

    def after(self, event: Event) -> None:
        """The machine has done all that the event brought (of a call: at its entry, and again at its return)."""


class Context:
    """One replay: its machine of x86-64 geometry, without a process yet."""

    def __init__(
        self,
        recording: Recording,
        image: KernelImage,
        profile: Profile,
        observer: Observer | None,
        machine_type: type[Machine],
    ) -> None:
        self.recording = recording
        self.image: Any = image
        self.machine = machine_type(image, "x86-64", profile)
        self.machine.procs.clear()
        self.report = ReplayReport(recording.header)
        self.inodes = Inodes(self.machine, recording.header.filesystems)
        self.listener = Listener(image)
        self.observer = observer or Observer()

    def differ(self, event: Event, what: str, recorded: str, machine: str, kind: Kind = "result") -> None:
        """The recorded kernel and the machine disagree."""
        self.report.differences.append(Difference(event.at, event.pid, event.tid, what, recorded, machine, kind))

    def compare_mapping(self, mapping: Mapping, ours: Told) -> None:
        """A mapping that perf told of, and what the machine's kernel would have told."""
        self.report.mappings_compared += 1
        theirs = (mapping.start, mapping.end, mapping.perms, mapping.offset)
        inode = self.inodes.keys.get(ours.file.f_mapping.label) if ours.file is not None else None
        same_file = inode == (mapping.device, mapping.inode, mapping.generation) if inode else not mapping.inode
        if ours[:4] != theirs or not same_file:
            text = f"{ours}{'' if same_file else ' of another file'}"
            self.differ(mapping, "a mapping", show(mapping), text, kind="layout")


def show(mapping: Mapping) -> str:
    """A mapping for people."""
    return f"{mapping.start:x}-{mapping.end:x} {mapping.perms} offset {mapping.offset:x} {mapping.name}"
