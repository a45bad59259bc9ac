"""What the kernel itself complains of, as findings: bugs, warnings, and exceptions out of its code."""

from __future__ import annotations

import re
import traceback
from pathlib import Path

from emulator.errors import KernelBug
from emulator.image import MM_FOLDER
from emulator.mm_types import Folio
from oracle.finding import Finding, Subject, finding


def oops_place(error: BaseException) -> str:
    """The function of ``emulator/mm`` out of which the error came (``rmap.rmap_walk``); empty: not out of there."""
    frames = traceback.extract_tb(error.__traceback__)
    file = Path(frames[-1].filename) if frames else Path()
    return f"{file.stem}.{frames[-1].name}" if file.parent == MM_FOLDER else ""


def kernel_bug(bug: KernelBug, index: int) -> Finding:
    return finding(
        "kernel",
        bug.rule,
        bug.detail,
        index,
        cause=cause_of(bug.rule, bug.detail, bug.subject),
        subjects=subjects_of(bug.subject),
    )


def cause_of(rule: str, detail: str, subject: object) -> str:
    """A short cause for the signature: which locks a deadlock is about, else the kind of object concerned."""
    if rule == "deadlock":
        locks = set(re.findall(r"waits for (?:ever for )?([^,]+)", detail))
        # who waits for mmap_lock beside two others only stands behind them
        return ", ".join(sorted(locks - {"mmap_lock"} if len(locks) > 2 else locks))
    if rule == "sleep-in-atomic":
        return ", ".join(re.findall(r"\(([^)]*)\)", detail))
    return type(subject).__name__ if subject is not None else ""


def subjects_of(subject: object) -> tuple[Subject, ...]:
    if isinstance(subject, Folio):
        return (("folio", subject.pfn),)
    serial = getattr(subject, "serial", None)
    return (("anon_vma", serial),) if isinstance(serial, int) else ()
