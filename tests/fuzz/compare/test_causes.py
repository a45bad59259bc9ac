"""Why neighbours are two VMAs: one script for each cause, on mainline, and who else would say otherwise."""

from __future__ import annotations

from collections import Counter

import pytest

from emulator.designs.base import Design
from emulator.designs.eight_case import EightCase
from emulator.designs.mainline import Mainline
from emulator.designs.matena_2022 import Matena2022
from emulator.designs.relocate_anon_series import RelocateAnonSeries
from fuzz.compare.causes import CURABLE, Cause
from fuzz.compare.figures import Figures
from fuzz.compare.meter import MeteredMachine
from fuzz.workload.text import from_text
from tests.emulator.kernel_world import kernel_image

TWO_MOVED = """
mmap addr=0 len=2 prot=rw flags=private|fixed
write addr=0 at=0
mmap addr=10 len=2 prot=rw flags=private|fixed
write addr=10 at=0
"""
MOVED_BESIDE = "mremap addr=10 old_len=2 new_len=2 flags=maymove|fixed new_addr=2"

# what was done, and what the last step leaves apart
CAUSES: list[tuple[str, str, Counter[Cause]]] = [
    (
        "permissions",
        "mmap addr=0 len=2 prot=rw flags=private|fixed\nmmap addr=2 len=2 prot=r flags=private|fixed",
        Counter({Cause.FLAGS: 1}),
    ),
    (
        "name",
        "mmap addr=0 len=4 prot=rw flags=private|fixed\nset_vma_name addr=2 len=2 name=heap",
        Counter({Cause.FLAGS: 1}),
    ),
    (
        "anonymous_beside_file",
        "mmap addr=0 len=2 prot=rw flags=private|fixed\nmmap addr=2 len=2 prot=rw flags=private|fixed file=file0",
        Counter({Cause.FILE: 1}),
    ),
    (
        "another_place_of_the_file",
        "mmap addr=0 len=2 prot=rw flags=private|fixed file=file0 off=0\n"
        "mmap addr=2 len=2 prot=rw flags=private|fixed file=file0 off=7",
        Counter({Cause.FILE: 1}),
    ),
    ("moved", TWO_MOVED + MOVED_BESIDE, Counter({Cause.PAGE_OFFSET: 1})),
    (
        "moved_beside_unfaulted",
        "mmap addr=0 len=2 prot=rw flags=private|fixed\nmmap addr=10 len=2 prot=rw flags=private|fixed\n"
        f"write addr=10 at=0\n{MOVED_BESIDE}",
        Counter({Cause.PAGE_OFFSET: 1}),
    ),
    ("moved_and_both_shared", f"{TWO_MOVED}fork child=1\n{MOVED_BESIDE}", Counter({Cause.SHARED_PAGES: 1})),
    (
        "moved_when_the_child_is_gone",
        f"{TWO_MOVED}fork child=1\np1: exit\n{MOVED_BESIDE}",
        Counter({Cause.PAGE_OFFSET: 1}),
    ),
    (
        "anon_vmas",
        "mmap addr=0 len=2 prot=rw flags=private|fixed\nwrite addr=0 at=0\n"
        "mmap addr=3 len=1 prot=rw flags=private|fixed\nwrite addr=3 at=0\n"
        "mmap addr=2 len=1 prot=rw flags=private|fixed",
        Counter({Cause.ANON_VMA: 1}),
    ),
    (
        "hole",
        "mmap addr=0 len=2 prot=rw flags=private|fixed\nmmap addr=4 len=2 prot=r flags=private|fixed",
        Counter(),
    ),
    ("failed", "mmap addr=0 len=2 prot=r flags=private|fixed\nmprotect addr=2 len=2 prot=rw", Counter()),
    (
        "advice_without_flags",
        "mmap addr=0 len=2 prot=rw flags=private|fixed\nmmap addr=2 len=2 prot=r flags=private|fixed\n"
        "madvise addr=0 len=4 advice=dontneed",
        Counter(),
    ),
]


def last_step(text: str, design: type[Design] = Mainline, profile: str = "6.18") -> Figures:
    """What the last step of a workload added to the missed merges."""
    workload = from_text(f"world small8\n{text.strip()}\n")
    machine = MeteredMachine(kernel_image(design), workload.geometry, profile)
    for step in workload.steps[:-1]:
        machine.run_step(step)
    machine.figures.missed.clear()
    machine.figures.shared_for_sure = 0
    machine.run_step(workload.steps[-1])
    return machine.figures


@pytest.mark.parametrize(("text", "missed"), [pytest.param(*row[1:], id=row[0]) for row in CAUSES])
def test_cause(text: str, missed: Counter[Cause]) -> None:
    """The last step leaves these neighbours apart, for this reason."""
    assert last_step(text).missed == Counter({cause.value: count for cause, count in missed.items()})


def test_every_cause_has_a_script() -> None:
    """Of what a merge could cure, each cause is shown; NOTHING needs a design that does not try (below)."""
    shown = {cause for _, _, missed in CAUSES for cause in missed}
    assert shown == set(Cause) - {Cause.NOTHING}
    assert set(CURABLE) < shown


@pytest.mark.parametrize(
    ("design", "flags", "missed"),
    [
        (Mainline, "maymove|fixed", {Cause.PAGE_OFFSET.value: 1}),
        (Matena2022, "maymove|fixed", {}),
        (RelocateAnonSeries, "maymove|fixed", {Cause.PAGE_OFFSET.value: 1}),
        (RelocateAnonSeries, "maymove|fixed|relocate", {}),
    ],
)
def test_what_a_design_gains(design: type[Design], flags: str, missed: dict[str, int]) -> None:
    """The same move is no missed merge where the design lets it merge."""
    text = TWO_MOVED + MOVED_BESIDE.replace("maymove|fixed", flags)
    assert last_step(text, design, "5.17" if design is Matena2022 else "6.18").missed == missed


@pytest.mark.parametrize("write", ["", "write addr=0 at=0\n"], ids=["untouched", "one_faulted"])
@pytest.mark.parametrize(("design", "missed"), [(Mainline, 0), (EightCase, 1)])
def test_what_a_design_never_tries(design: type[Design], missed: int, write: str) -> None:
    """Growth in place does not merge in 5.17 with what it then touches: nothing stands in the way, and it is seen."""
    text = (
        "mmap addr=0 len=2 prot=rw flags=private|fixed\nmmap addr=3 len=2 prot=rw flags=private|fixed\n"
        f"{write}mremap addr=0 old_len=2 new_len=3 flags=0 new_addr=0"
    )
    assert last_step(text, design).missed[Cause.NOTHING.value] == missed


@pytest.mark.parametrize(("write", "sure"), [("", 1), ("write addr=0 at=0\nwrite addr=10 at=0\n", 0)])
def test_shared_for_sure(write: str, sure: int) -> None:
    """A child that lives may have the pages; whether it has is another question: after a write it has copies."""
    figures = last_step(f"{TWO_MOVED}fork child=1\n{write}{MOVED_BESIDE}")
    assert figures.missed == {Cause.SHARED_PAGES.value: 1}
    assert figures.shared_for_sure == sure
