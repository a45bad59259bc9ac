"""Reads the text that ``strace -f`` prints, with or without ``-o``, ``-t``, ``-tt``, ``-ttt``, ``-y``, ``-T``.

strace shows neither page faults nor what exec maps, so a replay of such a recording knows less: which areas are
faulted, and everything that stood before the first system call, is unknown to it.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterable
from typing import Final, NamedTuple

from emulator.errors import UsageError
from fuzz.record.collector import CLONE_THREAD, CLONE_VFORK, CLONE_VM, FORKING, Collector
from fuzz.record.events import Exec, Exit, Fork, Header, Recording, Signal
from fuzz.record.strace_constants import CONSTANTS, SIGNALS

_PREFIX: Final = re.compile(
    r"(?:\[pid +(?P<pid>\d+)\] +|(?P<plain>\d+) +)?(?:\d+:\d+:\d+(?:\.\d+)? +|\d+\.\d+ +)?(?P<rest>.*)"
)
_START: Final = re.compile(r"(\w+)\((.*)")
_RESUMED: Final = re.compile(r"<\.\.\. (\w+) resumed> ?(.*)")
_UNFINISHED: Final = re.compile(r"(.*?),? *<unfinished \.\.\.>")
_RESULT: Final = re.compile(
    r"(?P<args>.*)\) += (?P<value>\?|-?\d+|0x[0-9a-f]+)(?:<.*>)?(?: (?P<error>E[A-Z0-9_]+))?(?: .*)?"
)
_EXITED: Final = re.compile(r"\+\+\+ (?:exited with (\d+)|killed by (\w+).*) \+\+\+")
_SUPERSEDED: Final = re.compile(r"\+\+\+ superseded by execve in pid (\d+) \+\+\+")
_SIGNALLED: Final = re.compile(r"--- (?:(SIG\w+) \{.*\}|stopped by SIG\w+) ---")
_CUT: Final = re.compile(r"(.+)strace: Process \d+ attached")
_FLAGS: Final = re.compile(r"flags=([A-Z0-9_x|]+)")
_U64: Final = (1 << 64) - 1
_KERNEL_ERRORS: Final = {  # not in errno.h: what a call that a signal cut short returns inside the kernel
    "ERESTARTSYS": 512, "ERESTARTNOINTR": 513, "ERESTARTNOHAND": 514, "ERESTART_RESTARTBLOCK": 516,
}  # fmt: skip
_RAW_ARGS: Final = frozenset(("execve", "execveat"))  # their arguments are strings and lists


class _Item(NamedTuple):
    """One line, taken apart."""

    line: int
    tid: int  # 0: the line does not say
    kind: str  # "start", "end" (of a call), "exit", "signal", "superseded"
    name: str = ""
    args: str = ""
    result: int | None = None
    failed_parse: bool = False


def parse(lines: Iterable[str], header: Header | None = None) -> Recording:
    """The recording that the text describes. Raises UsageError, naming the line, where a call is damaged."""
    collector = Collector(header or Header())
    collector.header.source = "strace"
    items = []
    head = ""  # of a line that a note of strace itself cut in two
    for number, line in enumerate(lines, 1):
        whole = head + line.rstrip("\n")
        head = ""
        if cut := _CUT.fullmatch(whole):
            head = cut[1]
            collector.skip("notes of strace")
        else:
            items += _read_line(number, whole, collector)
    if head:
        raise UsageError(f"the text ends within a call: {head[-80:]!r}")
    builder = _Builder(collector, items)
    for item in items:
        builder.take(item)
    return collector.finish()


def _read_line(number: int, line: str, collector: Collector) -> list[_Item]:
    match = _PREFIX.fullmatch(line)
    assert match is not None
    tid = int(match["pid"] or match["plain"] or 0)
    rest = match["rest"]
    if resumed := _RESUMED.fullmatch(rest):
        return [_ending(number, tid, resumed[1], resumed[2], "end")]
    if exited := _EXITED.fullmatch(rest):
        status = int(exited[1]) if exited[1] else 128 + SIGNALS.get(exited[2], 0)
        return [_Item(number, tid, "exit", result=status)]
    if signalled := _SIGNALLED.fullmatch(rest):
        return [_Item(number, tid, "signal", signalled[1])] if signalled[1] else []
    if superseded := _SUPERSEDED.fullmatch(rest):
        return [_Item(number, tid, "superseded", result=int(superseded[1]))]
    start = _START.fullmatch(rest)
    if start is None:
        if rest:
            collector.skip("notes of strace" if rest.startswith("strace: ") else "lines of another form")
        return []
    name, tail = start.groups()
    if unfinished := _UNFINISHED.fullmatch(tail):
        return [_Item(number, tid, "start", name, unfinished[1])]
    end = _ending(number, tid, name, tail, "end")
    return [_Item(number, tid, "start", name, end.args), end]


def _ending(number: int, tid: int, name: str, tail: str, kind: str) -> _Item:
    match = _RESULT.fullmatch(tail)
    if match is None:
        raise UsageError(f"line {number}: {name} without its result: {tail[-80:]!r}")
    value, error = match["value"], match["error"]
    if error:
        code = _KERNEL_ERRORS.get(error) or getattr(errno, error, None)
        if code is None:
            raise UsageError(f"line {number}: {name} failed with an error of unknown number: {error}")
        return _Item(number, tid, kind, name, match["args"], -code)
    return _Item(number, tid, kind, name, match["args"], None if value == "?" else int(value, 0))


class _Builder:
    """Turns items into events: knows which tasks live and who made whom."""

    def __init__(self, collector: Collector, items: list[_Item]) -> None:
        self.collector = collector
        self.parents: dict[int, int] = {}  # tid of a child to that of its parent
        self.main = 0
        self._find_families(items)
        self.alive = [self.main]
        self.pids = {self.main: self.main}
        self.forking: dict[int, int] = {}  # tid to clone flags of the forking call that it is in
        self.programs: dict[int, str] = {}  # tid to the file of the exec that it is in

    def _find_families(self, items: list[_Item]) -> None:
        for item in items:
            if item.kind == "end" and item.name in FORKING and item.result and item.result > 0:
                self.parents[item.result] = item.tid
        named = dict.fromkeys(item.tid for item in items if item.tid)
        self.main = next((tid for tid in named if tid not in self.parents), 1)
        self.parents = {child: parent or self.main for child, parent in self.parents.items()}

    def take(self, item: _Item) -> None:
        tid = item.tid or (self.alive[0] if len(self.alive) == 1 else self.main)
        if tid not in self.pids:
            self._born(tid, self.parents.get(tid, self.main))
        pid = self.pids[tid]
        if item.kind == "start":
            self._start(pid, tid, item)
        elif item.kind == "end":
            self._end(pid, tid, item)
        elif item.kind == "signal":
            position = self.collector.next()
            self.collector.add(Signal(position, pid, tid, SIGNALS.get(item.name, 0), 0, True))
        elif item.kind == "exit":
            self._exit(pid, tid, item)
        elif item.kind == "superseded" and tid in self.alive:
            self.alive.remove(tid)

    def _born(self, tid: int, parent: int) -> None:
        flags = self.forking.get(parent, 0)
        self.pids[tid] = self.pids.get(parent, parent) if flags & CLONE_THREAD else tid
        self.alive.append(tid)
        fork = Fork(self.collector.next(), self.pids.get(parent, parent), parent, self.pids[tid], tid, flags)
        self.collector.add(fork)

    def _start(self, pid: int, tid: int, item: _Item) -> None:
        if item.name in _RAW_ARGS:
            self.programs[tid] = item.args.split('"')[1] if '"' in item.args else ""
            self.collector.enter(pid, tid, item.name, ())
            return
        args, known = _numbers(item.name, item.args)
        if item.name in FORKING:
            self.forking[tid] = args[0] if item.name != "vfork" and args else 0
            if item.name == "vfork":
                self.forking[tid] = CLONE_VM | CLONE_VFORK
        self.collector.enter(pid, tid, item.name, args, known=known)

    def _end(self, pid: int, tid: int, item: _Item) -> None:
        if item.result is None:
            return  # did not return
        if item.name in FORKING:
            if item.result > 0 and item.result not in self.pids:
                self._born(item.result, tid)
            self.forking.pop(tid, None)
        if item.name in _RAW_ARGS and item.result == 0:
            filename = self.programs.pop(tid, "")
            self.collector.add(Exec(self.collector.next(), pid, tid, tid, filename))
            if not self.collector.header.program:
                self.collector.header.program = (filename,)
        self.collector.leave(pid, tid, item.name, item.result)

    def _exit(self, pid: int, tid: int, item: _Item) -> None:
        if tid in self.alive:
            self.alive.remove(tid)
        dead = not any(self.pids[other] == pid for other in self.alive)
        self.collector.add(Exit(self.collector.next(), pid, tid, dead))
        if tid == self.main:
            self.collector.header.exit_status = item.result


def _numbers(name: str, text: str) -> tuple[tuple[int, ...], bool]:
    """The arguments as numbers, and whether every name in them was known."""
    if name in ("clone", "clone3"):
        flags = _FLAGS.search(text)
        value = _number(flags[1]) if flags else None
        return (value or 0,), value is not None
    values = []
    known = True
    for part in _split(text):
        value = _number(part)
        if value is None:
            known = known and part[:1] in '"[{&'  # strings and structs have no number and need none
        values.append((value or 0) & _U64)
    return tuple(values), known


def _split(text: str) -> list[str]:
    """The arguments: parts between commas that stand in no quotes or brackets."""
    parts: list[str] = []
    depth = 0
    start = 0
    quoted = False
    i = 0
    while i < len(text):
        char = text[i]
        if quoted:
            if char == "\\":
                i += 1
            quoted = char != '"'
        elif char == '"':
            quoted = True
        elif char in "[{(<":
            depth += 1
        elif char in "]})>":
            depth -= 1
        elif char == "," and depth <= 0:
            parts.append(text[start:i].strip())
            start = i + 1
        i += 1
    last = text[start:].strip()
    return [*parts, last] if last or parts else parts


_COMMENT: Final = re.compile(r" */\*.*?\*/")
_PATH: Final = re.compile(r"<.*>$")
_SHIFT: Final = re.compile(r"(\d+)<<(\w+)")


def _number(text: str) -> int | None:
    """``0x10``, ``-1``, ``0644``, ``A|B|0x8``, ``3</etc/passwd>``; None for anything else."""
    text = _COMMENT.sub("", text)
    if shift := _SHIFT.search(text):  # 21<<MAP_HUGE_SHIFT
        text = text.replace(shift[0], str(int(shift[1]) << 26))
    text = _PATH.sub("", text)
    total = 0
    for part in text.split("|"):
        if part in CONSTANTS:
            total |= CONSTANTS[part]
            continue
        try:
            octal = len(part) > 1 and part[0] == "0" and part.isdecimal()
            total |= int(part, 8) if octal else int(part, 0)
        except ValueError:
            return None
    return total
