"""``vmafuzz export --format c``: a workload as a C program that checks itself.

The program does the workload's system calls and accesses, and compares with ``expectation`` at each step. It is
written for people: what every program has stands in ``program.c.jinja``, cut to what this workload needs.
"""

from __future__ import annotations

import re
import textwrap
from functools import lru_cache
from importlib.resources import files
from typing import TYPE_CHECKING, Final

from jinja2 import Environment, FunctionLoader, StrictUndefined

from emulator import uapi
from emulator.errors import UsageError
from emulator.geometry import GEOMETRIES
from emulator.uapi import (
    MADV_COLLAPSE,
    MADV_HUGEPAGE,
    MADV_MERGEABLE,
    MADV_NOHUGEPAGE,
    MADV_REMOVE,
    MADV_UNMERGEABLE,
    MAP_LOCKED,
    PROT_EXEC,
    PROT_READ,
    PROT_WRITE,
)
from emulator.workload import FILE_PAGES, MEMFD, OFFSETS_MAX, PROCS_MAX, SHARED_MEMORY
from fuzz.export import c_calls
from fuzz.export.c_calls import EMITTERS
from fuzz.export.expectation import FILE_TOKENS, REAL, expect, is_idle, looked_at
from fuzz.target import Target
from fuzz.workload.text import show_op, to_text
from oracle.live.calls import SYS_MSEAL, SYS_PKEY_MPROTECT
from oracle.live.machine_code import SUB_PAGE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jinja2 import Template

    from emulator.workload import Op, Workload
    from fuzz.export.expectation import Expectation, Expected, Layout
    from oracle.live.view import VmaView

TAB: Final = 8  # columns
WIDTH: Final = 110  # columns; only a step's text may be longer
# Constants that the headers of an old C library may not have.
_ADVICE_KNOWN: Final = 18  # MADV_WIPEONFORK and what came after it: C libraries in use may not know it
_NEWER: Final[dict[str, int]] = {
    **{
        name: value
        for name, value in vars(uapi).items()
        if name.startswith(("UFFD", "PR_")) or (name.startswith("MADV_") and value >= _ADVICE_KNOWN)
    },
    **{
        name: getattr(uapi, name)
        for name in (
            *("MAP_FIXED_NOREPLACE", "MAP_DROPPABLE", "MREMAP_DONTUNMAP", "MLOCK_ONFAULT", "MCL_ONFAULT"),
        )
    },
    "SYS_mseal": SYS_MSEAL,
    "SYS_pkey_mprotect": SYS_PKEY_MPROTECT,
}
_END: Final = 24  # columns at the end of a statement that no line ends in
_LETTERS: Final = (("r", PROT_READ), ("w", PROT_WRITE), ("x", PROT_EXEC))
_CALLED: Final = re.compile(r"\b([a-z_]+)\(")


def export(workload: Workload, stem: str, profile: str) -> str:
    """The program's text. ``stem``: what its file is called, without the ``.c``. Raises ``UsageError``."""
    check(workload)
    expected = expect(workload, profile)
    alone = all(step.op.kind not in ("fork", "exit") for step in expected.steps)
    body = _Body(alone)
    body.write(expected)
    text = "\n\n".join(body.paragraphs)
    if "step(" not in text:
        raise UsageError("the workload does nothing")
    return _template().render(
        stem=stem,
        profile=profile,
        target=Target("mainline", profile=profile).options(),
        workload=to_text(workload).splitlines(),
        steps=len(expected.steps),
        body=text,
        ends_after=body.number,
        arena=hex(REAL.arena_start),
        looked_at=looked_at(workload),
        fallbacks=[(name, hex(value)) for name, value in _NEWER.items() if name in text],
        files=max((step.op.args[4] for step in expected.steps if step.op.kind == "mmap"), default=0),
        file_pages=FILE_PAGES,
        memfd=MEMFD,
        file_mark=hex(FILE_TOKENS),
        place=SUB_PAGE,
        places=OFFSETS_MAX,
        processes=PROCS_MAX,
        heap_page=GEOMETRIES[workload.geometry].heap_page,
        uses=_uses(expected, text, alone),
    )


def check(workload: Workload) -> None:
    """Raises ``UsageError`` that names everything in the workload that no program can do."""
    wrong = []
    for number, step in enumerate(workload.steps):
        reason = "a collision" if len(step.ops) > 1 else c_calls.inexpressible(step.ops[0])
        if reason:
            wrong.append(f"step {number}: {reason}")
    if wrong:
        raise UsageError(f"no program can do this by itself: {'; '.join(wrong)}")


@lru_cache(maxsize=1)
def _template() -> Template:
    environment = Environment(
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=StrictUndefined,
        loader=FunctionLoader(lambda name: files("fuzz.export").joinpath(name).read_text()),
    )
    return environment.get_template("program.c.jinja")


def _uses(expected: Expected, body: str, alone: bool) -> dict[str, bool]:
    """Which parts of the template the program needs: functions by what the body calls."""
    called = set(_CALLED.findall(body))
    functions = (
        "expect", "expect_page", "expect_words", "layout", "load", "store", "fill", "fetch", "fork_process",
    )  # fmt: skip
    uses = {name: name in called for name in functions}
    ops = [step.op for step in expected.steps]
    areas = [area for step in expected.steps for areas in step.layouts.values() for area in areas]
    advice = [op.args[-1] for op in ops if op.kind in ("madvise", "process_madvise")]
    uses["result"] = bool(called & {"expect", "expect_page", "expect_words"})
    uses["store"] = bool(called & {"store", "fill"})
    uses["access"] = bool(called & {"load", "store", "fill", "fetch"})
    uses |= {name: name in called for name in EMITTERS if name.startswith("uffd_")}
    uses["userfaultfd"] = any(name.startswith(("uffd_", "userfaultfd")) for name in called)
    uses["uffd_call"] = any(name.startswith("uffd_") for name in called - {"uffd_close"})
    uses["opens_userfaultfd"] = uses["uffd_call"] or "userfaultfd" in called
    uses["processes"] = not alone
    uses["files"] = any(op.kind == "mmap" and op.args[4] for op in ops)
    uses["memfd"] = any(op.kind == "mmap" and op.args[4] == MEMFD + 1 for op in ops)
    uses["remove"] = uses["files"] and MADV_REMOVE in advice
    uses["shared"] = any(area.file > SHARED_MEMORY for area in areas)
    uses["exec"] = any(c_calls.prots(op) & PROT_EXEC for op in ops)
    uses["exec_only"] = any(area.prot == PROT_EXEC for area in areas)
    uses["brk"] = "set_break" in called
    uses["advise_ranges"] = "advise_ranges" in called
    uses["bind_memory"] = "bind_memory" in called
    uses["set_limit"] = "set_limit" in called
    uses["names"] = any(op.kind == "set_vma_name" for op in ops)
    uses["pkeys"] = any(op.kind == "pkey_mprotect" and op.args[3] for op in ops)
    uses["locks"] = any(_locks(op) for op in ops)
    uses["prctl"] = "prctl" in called or uses["brk"]
    by_number = (
        *("processes", "exec_only", "memfd", "userfaultfd", "brk", "bind_memory", "advise_ranges", "pkeys"),
        "set_limit",
    )
    uses["syscall"] = "syscall" in called or any(uses[name] for name in by_number)
    uses["thp"] = bool({MADV_HUGEPAGE, MADV_NOHUGEPAGE, MADV_COLLAPSE} & set(advice))
    uses["ksm"] = bool({MADV_MERGEABLE, MADV_UNMERGEABLE} & set(advice)) or any(
        op.kind == "memory_merge" for op in ops
    )
    uses["huge"] = any(_holds_huge_page(area) for area in areas)
    return uses


def _locks(op: Op) -> bool:
    return op.kind in ("mlock", "mlock2", "mlockall") or (op.kind == "mmap" and bool(op.args[3] & MAP_LOCKED))


def _holds_huge_page(area: VmaView) -> bool:
    aligned = -area.start % REAL.hpage_pmd_nr
    return not area.file and area.end - area.start - aligned >= REAL.hpage_pmd_nr


class _Body:
    """The statements of ``workload()``, one paragraph a step.

    ``alone``: there is one process only, and the steps need not say whose they are.
    """

    def __init__(self, alone: bool) -> None:
        self.alone = alone
        self.paragraphs: list[str] = []
        self.number = 0  # of the next step
        self._layouts: dict[int, Layout] = {0: ()}  # by process, as the program expects them so far

    def write(self, expected: Expected) -> None:
        """All steps, and one more for each process that holds something at the end."""
        for step in expected.steps:
            self._step(step)
        for label, contents in expected.contents.items():
            if contents:
                text = "(the end)" if self.alone else f"(the end of process {label})"
                self._add(self._run(label, text, [c_calls.load(page, data) for page, data in contents]))

    def _add(self, lines: list[str]) -> None:
        self.paragraphs.append("\n".join(lines))
        self.number += 1

    def _step(self, step: Expectation) -> None:
        op = step.op
        if is_idle(step):
            self._add([f"\t/* step {self.number}: {show_op(op)}: there is no process that can do this */"])
            return
        remark = c_calls.remark(step)
        lines = [f"\t/* {remark} */"] if remark else []
        lines += self._run(op.proc, show_op(op), [c_calls.call(step, self.number)])
        if op.kind == "fork":
            self._layouts[op.args[0]] = self._layouts[op.proc]
        for label, areas in step.layouts.items():
            if areas != self._layouts[label]:
                lines += self._layout(label, areas)
        self._layouts = dict(step.layouts)
        self._add(lines)

    def _run(self, process: int, text: str, calls: list[str]) -> list[str]:
        """A process does ``calls`` as one step."""
        if self.alone:
            return [f'\tstep({self.number}, "{text}");', *_wrapped(1, calls)]
        head = f'\tif (step({self.number}, {process}, "{text}"))'
        return [head, *_wrapped(2, calls)] if len(calls) == 1 else [f"{head} {{", *_wrapped(2, calls), "\t}"]

    def _layout(self, process: int, areas: Layout) -> list[str]:
        head = "\tlayout(" if self.alone else f"\tlayout({process}, "
        pieces = [_show(area) for area in areas]
        room = WIDTH - TAB - len(head) - len('"");')
        text = textwrap.wrap(", ".join(pieces), room, break_long_words=False, break_on_hyphens=False)
        literals = [f'"{line} "' for line in text[:-1]] + [f'"{text[-1] if text else ""}"']
        lead = "\t" + " " * (len(head) - 1)
        return [(lead if index else head) + literal for index, literal in enumerate(literals[:-1])] + [
            (lead if len(literals) > 1 else head) + literals[-1] + ");"
        ]


def _show(area: VmaView) -> str:
    """``4-12 rw-p``, ``20-21 r--s file0+3``, ``30-34 rw-s shared+0`` (shared anonymous memory)."""
    letters = "".join(letter if area.prot & bit else "-" for letter, bit in _LETTERS)
    name = "shared" if area.file > SHARED_MEMORY else f"file{area.file - 1}"
    file = f" {name}+{area.pgoff}" if area.file else ""
    return f"{area.start}-{area.end} {letters}{'s' if area.shared else 'p'}{file}"


def _wrapped(tabs: int, calls: list[str]) -> Iterator[str]:
    """Statements below ``tabs`` tabs; long ones go on after a comma, two tabs further in. The end stays together."""
    for call in calls:
        kept = re.sub(r"(?<!,) ", "\0", call[:-_END]) + call[-_END:].replace(" ", "\0")
        first, more = (" " * TAB * depth for depth in (tabs, tabs + 2))
        lines = textwrap.wrap(
            kept, WIDTH, initial_indent=first, subsequent_indent=more, break_long_words=False
        )
        yield "\t" * tabs + lines[0].strip().replace("\0", " ")
        yield from ("\t" * (tabs + 2) + line.strip().replace("\0", " ") for line in lines[1:])
