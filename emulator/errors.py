"""The exception families. What the *target* did wrong is a finding, what *we* did wrong an internal error;
they never mix, and neither is what a user typed wrong.
"""

from __future__ import annotations


class VmafuzzError(Exception):
    """Base of everything that this project raises on purpose."""


class UsageError(VmafuzzError):
    """Bad input or bad usage: shown as one line, exit status 2. The message says what to do."""


class KernelBug(VmafuzzError):
    """The emulated kernel cannot go on (BUG, use after free, deadlock): always becomes a finding.

    ``rule`` is a short stable name (``"use-after-free"``), ``detail`` a sentence for people, ``subject``
    the object concerned (a folio, a VMA, a lock) or None.
    """

    def __init__(self, rule: str, detail: str, subject: object = None) -> None:
        super().__init__(f"{rule}: {detail}")
        self.rule = rule
        self.detail = detail
        self.subject = subject


class InternalError(VmafuzzError):
    """A broken expectation inside our own code: exit status 3, the input that caused it is kept."""
