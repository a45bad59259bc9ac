"""A finding: one broken promise, as a value."""

from __future__ import annotations

from typing import NamedTuple

Subject = tuple[str, int]
"""What a finding is about: ("folio", pfn), ("anon_vma", serial), ("swap", slot) or ("page", proc << 40 | page)."""


class Finding(NamedTuple):
    """One broken promise.

    ``signature`` names the flaw for deduplication: ``oracle/rule`` and, after a colon, a short normalised cause
    without addresses or step numbers. ``detail`` is a sentence for people. ``step`` is the index of the step,
    ``op`` the number of the operation in it where one can be named. ``ends_run`` is False for a complaint after
    which the machine's state is still good (WARN_ON).
    """

    oracle: str
    rule: str
    signature: str
    detail: str
    step: int
    op: int | None = None
    subjects: tuple[Subject, ...] = ()
    ends_run: bool = True

    def __str__(self) -> str:
        where = f"step {self.step}" if self.op is None else f"step {self.step} op {self.op}"
        return f"{self.signature} at {where}: {self.detail}"


def finding(
    oracle: str,
    rule: str,
    detail: str,
    step: int,
    *,
    cause: str = "",
    op: int | None = None,
    subjects: tuple[Subject, ...] = (),
    ends_run: bool = True,
) -> Finding:
    """A finding with the signature made from oracle, rule and cause."""
    signature = f"{oracle}/{rule}:{cause}" if cause else f"{oracle}/{rule}"
    return Finding(oracle, rule, signature, detail, step, op, subjects, ends_run)


def distinct(findings: list[Finding]) -> list[Finding]:
    """Drop findings about an object of which a better one of the same step speaks already, and repeated signatures.

    Those of a step stand in order of specificity: the first oracle to speak about an object wins. A complaint that
    did not end the run gives way to any finding about the same object that did.
    """
    kept: list[Finding] = []
    ending = {(found.step, subject) for found in findings if found.ends_run for subject in found.subjects}
    spoken: set[tuple[int, Subject]] = set()
    signatures: set[str] = set()
    for found in findings:
        about = [(found.step, subject) for subject in found.subjects]
        if found.ends_run:
            known = any(subject in spoken for subject in about)
            spoken.update(about)
        else:
            known = any(subject in ending for subject in about)
        if not known and found.signature not in signatures:
            signatures.add(found.signature)
            kept.append(found)
    return kept
