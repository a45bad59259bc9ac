"""The tasks of a recording: fork, exec, exit, and the layouts that ptrace stops showed."""

from __future__ import annotations

from emulator.uapi import result_name
from fuzz.record.call_order import is_memory_call
from fuzz.record.collector import CLONE_FILES, CLONE_VFORK, CLONE_VM, FORKING
from fuzz.record.context import Context, show
from fuzz.record.events import Event, Exec, Exit, Fault, Fork, Layout, Mapping
from fuzz.record.files import FdTable
from fuzz.record.layout import first_difference, format_line, machine_layout
from fuzz.record.new_image import STACK, CannotBuild, NewImage
from fuzz.record.page_faults import PageFaults
from fuzz.record.threads import Space, Thread, told


class Processes:
    """All tasks that live, and what is known of their address spaces."""

    def __init__(self, context: Context, faults: PageFaults) -> None:
        self.context = context
        self.faults = faults
        self.report = context.report
        self.threads: dict[int, Thread] = {}
        self.layouts = {(shown.tid, shown.when, shown.nth): shown for shown in context.recording.layouts}
        self.execs: dict[int, int] = {}  # tid to the number of its execs

    def thread(self, event: Event) -> Thread:
        """The event's thread; one whose beginning was not recorded has an unknown address space."""
        thread = self.threads.get(event.tid)
        if thread is None:
            siblings = (other for other in self.threads.values() if other.pid == event.pid)
            sibling = next(siblings, None)
            space, fds = (sibling.space, sibling.fds) if sibling else (None, FdTable())
            thread = self.threads[event.tid] = Thread(event.pid, event.tid, space, fds)
        return thread

    def fork(self, fork: Fork) -> None:
        parent = self.thread(fork)
        flags = fork.flags or 0
        space = parent.space
        if space is not None and flags & CLONE_VM:
            space.mm.mm_users += 1
        elif space is not None:
            child_mm = self.context.machine.new_mm(fork.child_pid)
            if self.context.image.fork.dup_mmap(child_mm, space.mm):
                self.context.differ(fork, "fork", "succeeds", "fails")
                space = None
            else:
                self.context.machine.procs[fork.child_pid] = child_mm
                placed = space.placed
                space = Space(child_mm, whole=space.whole)
                space.placed = placed
        fds = parent.fds if flags & CLONE_FILES else parent.fds.copy()
        child = self.threads[fork.child_tid] = Thread(fork.child_pid, fork.child_tid, space, fds)
        if space is not None and space is not parent.space:
            self.context.observer.fork(parent, child)
        if fork.flags is None:
            self.report.unmodelled["forks of which it is not known what they share"] += 1
        elif parent.space is None:
            self.report.unmodelled["forks of an address space of which nothing is known"] += 1
        else:
            kind = "vfork" if flags & CLONE_VFORK else "clone of a thread" if flags & CLONE_VM else "fork"
            self.report.modelled[kind] += 1

    def exec(self, event: Exec) -> None:
        thread = self.thread(event)
        nth = self.execs.get(event.tid, 0)
        self.execs[event.tid] = nth + 1
        if event.old_tid != event.tid and event.old_tid in self.threads:
            old = self.threads.pop(event.old_tid)
            self._leave_space(thread)
            thread.space, thread.fds, thread.exec_events = old.space, old.fds, old.exec_events
            thread.call = old.call
        steps = thread.exec_events
        thread.exec_events = None
        mm = self.context.machine.new_mm(event.pid)
        mm.merge_any = thread.space.mm.merge_any if thread.space is not None else False
        shown = self.layouts.get((event.tid, "exec", nth))
        self._leave_space(thread)
        thread.fds = thread.fds.copy()
        try:
            self._build(event, NewImage(self.context.image, mm, self.context.inodes, shown), steps, thread)
            thread.space = Space(mm, whole=True)
            self.report.modelled["exec"] += 1
        except CannotBuild as problem:
            # Only what the process maps by itself is known then.
            thread.space = Space(mm, whole=False)
            self.report.unmodelled[f"exec: {problem}"] += 1
        self.context.machine.procs[event.pid] = mm
        if shown is not None and thread.space.whole:
            self._compare_layout(event, thread.space, shown, "layout after exec")

    def _build(self, event: Exec, new: NewImage, steps: list[Event] | None, thread: Thread) -> None:
        if steps is None:
            raise CannotBuild("the source does not show what exec maps")
        new.begin([step for step in steps if isinstance(step, Mapping)])
        thread.space = Space(new.mm, whole=True)
        for step in steps:
            if isinstance(step, Mapping):
                new.unmap_tail(step)
                self.context.listener.take()
                new.map(step)
                news = self.context.listener.take()
                if step.name == STACK or not news:  # special mappings are not told of by a function we listen to
                    area = new.mm.mm_mt.lookup(step.start)
                    news = [told(area)] if area is not None else []
                if news:
                    self.context.compare_mapping(step, news[-1])
                else:
                    self.context.differ(step, "a mapping of exec", show(step), "none", kind="layout")
            elif isinstance(step, Fault):
                new.unmap_tail(None)
                self.faults.run(thread, step)
        new.unmap_tail(None)
        if new.wrong_place is not None:
            recorded, ours = new.wrong_place
            self.context.differ(event, "place of the vdso", hex(recorded), result_name(ours))

    def exit(self, event: Exit) -> None:
        thread = self.thread(event)
        space = thread.space
        self.threads.pop(event.tid, None)
        if thread.call is not None and is_memory_call(thread.call) and not thread.ran:
            self.report.unmodelled[f"{thread.call.name} that did not return"] += 1
        if space is None:
            self.report.unmodelled["ends of processes of which nothing is known"] += 1
            return
        shown = self.layouts.get((event.tid, "exit", 0))
        if shown is not None and space.whole and (space.mm.mm_users == 1 or self._others_wait(thread)):
            self._compare_layout(event, space, shown, "layout at the end")
        self.report.modelled["exit" if space.mm.mm_users == 1 else "exit of a thread"] += 1
        self._leave_space(thread)

    def _others_wait(self, thread: Thread) -> bool:
        """All other users of the address space wait in vfork (or exec has left them behind)."""
        return all(
            other.call is not None and other.call.name in FORKING
            for other in self.threads.values()
            if other.space is thread.space
        )

    def _leave_space(self, thread: Thread) -> None:
        """The thread uses its address space no longer; with the last user it ends."""
        space = thread.space
        if space is None:
            return
        self.context.observer.leave(thread)
        thread.space = None
        space.in_flight.pop(thread.tid, None)
        mm = space.mm
        if mm.mm_users > 1:
            mm.mm_users -= 1
            return
        self.context.image.fork.sys_exit(mm)

    def _compare_layout(self, event: Event, space: Space, shown: Layout, what: str) -> None:
        self.report.layouts_compared += 1
        difference = first_difference(shown.lines, machine_layout(space.mm, self.context.inodes.keys))
        if difference is not None:
            theirs, ours = difference
            self.context.differ(
                event,
                what,
                format_line(theirs) if theirs else "ends before",
                format_line(ours) if ours else "ends before",
                kind="layout",
            )
