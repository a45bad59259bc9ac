"""Small pieces of ``perf script`` text for tests."""

from __future__ import annotations

from fuzz.record import perf_script
from fuzz.record.events import Recording

ANON = 0x22  # MAP_PRIVATE | MAP_ANONYMOUS


class Script:
    """Writes lines as perf prints them; the clock ticks by itself."""

    def __init__(self, comm: str = "prog") -> None:
        self.comm = comm
        self.lines: list[str] = []

    def line(self, event: str, pid: int = 100, tid: int | None = None) -> Script:
        time = f"{len(self.lines) // 10}.{len(self.lines) % 10:09d}"
        self.lines.append(f"            {self.comm} {pid}/{tid or pid} [000]  {time}: {event}\n")
        return self

    def enter(self, number: int, *args: int, pid: int = 100, tid: int | None = None) -> Script:
        shown = ", ".join(f"{arg & (1 << 64) - 1:x}" for arg in (*args, *[0] * (6 - len(args))))
        return self.line(f"   raw_syscalls:sys_enter: NR {number} ({shown})", pid, tid)

    def leave(self, number: int, result: int, pid: int = 100, tid: int | None = None) -> Script:
        return self.line(f"    raw_syscalls:sys_exit: NR {number} = {result}", pid, tid)

    def call(self, number: int, *args: int, result: int, pid: int = 100, tid: int | None = None) -> Script:
        return self.enter(number, *args, pid=pid, tid=tid).leave(number, result, pid, tid)

    def mapping(
        self,
        start: int,
        length: int,
        perms: str = "rw-p",
        name: str = "//anon",
        *,
        offset: int | None = None,
        inode: int = 0,
        pid: int = 100,
        tid: int | None = None,
    ) -> Script:
        offset = start if offset is None else offset
        device = "fe:00" if inode else "00:00"
        where = f"[0x{start:x}(0x{length:x}) @ {offset:#x} {device} {inode} {7 if inode else 0}]"
        return self.line(f"PERF_RECORD_MMAP2 {pid}/{tid or pid}: {where}: {perms} {name}", pid, tid)

    def fault(self, address: int, error_code: int = 6, pid: int = 100, tid: int | None = None) -> Script:
        return self.line(
            f"  exceptions:page_fault_user: address={address:#x} ip=0x400000 error_code={error_code:#x}", pid, tid
        )

    def recording(self) -> Recording:
        return perf_script.parse(self.lines)


STACK_TOP = 0x7FFD_0000_0000
MMAP_BASE = 0x7F00_0000_0000
FIRST = MMAP_BASE - 0x1000  # where the lowest mapping of ``started`` begins


def started(pid: int = 100) -> Script:
    """A program whose exec has mapped a stack, one file and nothing else."""
    script = Script()
    script.mapping(STACK_TOP - 0x21000, 0x21000, name="[stack]", offset=0x7FFFFFFDE000, pid=pid)
    script.mapping(MMAP_BASE - 0x1000, 0x1000, "r-xp", "/lib/ld.so", offset=0, inode=5, pid=pid)
    script.line(f"sched:sched_process_exec: filename=./prog pid={pid} old_pid={pid}", pid)
    return script.leave(59, 0, pid)


def map_page(script: Script, address: int, pages: int = 1, **at: int) -> Script:
    """An mmap of anonymous memory that the kernel placed at ``address``, with the mapping that perf tells."""
    length = pages << 12
    script.enter(9, 0, length, 3, ANON, -1, 0, **at).mapping(address, length, **at)  # type: ignore[arg-type]
    return script.leave(9, address, **at)


def forked(script: Script, flags: int = 0x1200011) -> Script:
    """Process 100 forks process 200."""
    script.enter(56, flags)
    script.line("sched:sched_process_fork: comm=prog pid=100 child_comm=prog child_pid=200")
    return script.leave(56, 200)


def exits(script: Script, pid: int) -> Script:
    """The process ends."""
    return script.enter(231, 0, pid=pid).line(
        f"sched:sched_process_exit: comm=prog pid={pid} prio=120 group_dead=true", pid
    )
