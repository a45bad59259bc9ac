"""The vma_merge() of 5.17 and its rewrite: each of the eight cases, and that both and mainline do the same on 5.17."""

from __future__ import annotations

from typing import Final

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from emulator.designs.base import Design
from emulator.designs.eight_case import EightCase
from emulator.designs.eight_case_refactored import EightCaseRefactored
from emulator.designs.mainline import Mainline
from tests.emulator.mm.vma_bench import FLAGS, Bench

DESIGNS: Final = (EightCase, EightCaseRefactored, Mainline)
LOCKED: Final = 0x2000  # a flag that no VMA of the bench has

# (what, VMAs before, range, VMAs afterwards); a range in a hole is new, any other gets the flags that it has
CASES: Final = [
    ("1 a hole: all three", "0-2 4-6", (2, 4), "0-6"),
    ("1 next brings its anon_vma", "0-2 4-6@1", (2, 4), "0-6@1"),
    ("1 both have the same", "0-2@1 4-6@1", (2, 4), "0-6@1"),
    ("2 a hole: prev", "0-2 6-8", (2, 4), "0-4 6-8"),
    ("2 two anon_vmas keep next out", "0-2@1 4-6@2", (2, 4), "0-4@1 4-6@2"),
    ("3 a hole: next", "0-1 4-6", (2, 4), "0-1 2-6"),
    ("3 beside a VMA that is none of it", "0-2:9 4-6@1", (2, 4), "0-2:9 2-6@1"),
    ("4 the end of prev: next", "0-4 4-6", (2, 4), "0-2 2-6"),
    ("4 with its anon_vma", "0-4@1 4-6@1", (2, 4), "0-2@1 2-6@1"),
    ("5 the beginning of area: prev", "0-2 2-6", (2, 4), "0-4 4-6"),
    ("5 an anon_vma for a range without", "0-2@1 2-6", (2, 4), "0-4@1 4-6"),
    ("6 area: all three", "0-2 2-4 4-6", (2, 4), "0-6"),
    ("6 area brings nothing, next does", "0-2 2-4 4-6@1", (2, 4), "0-6@1"),
    ("7 area: prev", "0-2 2-4 6-8", (2, 4), "0-4 6-8"),
    ("7 two anon_vmas keep next out", "0-2@1 2-4 4-6@2", (2, 4), "0-4@1 4-6@2"),
    ("8 area: next", "0-2:9 2-4 4-6", (2, 4), "0-2:9 2-6"),
    ("8 with its anon_vma", "2-4@1 4-6@1", (2, 4), "2-6@1"),
    ("a part in the middle", "0-8", (2, 4), "0-8"),
    ("a faulted range, an unfaulted prev", "0-2 2-4@1", (2, 4), "0-2 2-4@1"),
    ("a faulted range, an unfaulted next", "2-4@1 4-6", (2, 4), "2-4@1 4-6"),
    ("an unfaulted range, a fork child", "0-2@1F 2-4", (2, 4), "0-2@1F 2-4"),
    ("a hole beside a fork child", "0-2@1F", (2, 4), "0-2@1F"),
    ("close() keeps out", "0-2C 2-4 4-6", (2, 4), "0-2C 2-6"),
    ("close() of both", "0-2C 4-6C", (2, 4), "0-2C 4-6C"),
    ("page offsets do not fit", "0-2:9 4-6:9", (2, 4), "0-2:9 4-6:9"),
]  # fmt: skip


def merge(bench: Bench, start: int, end: int, flags: int = FLAGS) -> tuple[str, str]:
    """Merge the range: the layout, and which VMA it is part of (empty: none)."""
    inside = bench.mm.mm_mt.lookup(start << 12) is not None
    merged, vmg = bench.modify(start, end, flags) if inside else bench.new(start, end, flags)
    success = bench.image.vma.VMA_MERGE_SUCCESS
    assert (vmg.state == success) == (merged is not None)
    bench.check()
    return bench.layout(), "" if merged is None else bench.describe(merged)


@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize(("before", "where", "after"), [pytest.param(*case[1:], id=case[0]) for case in CASES])
def test_case(design: type[Design], before: str, where: tuple[int, int], after: str) -> None:
    """The VMAs afterwards; mainline gives the same on 5.17."""
    assert merge(Bench(before, "5.17", design), *where)[0] == after


@st.composite
def layouts(draw: st.DrawFn) -> str:
    """Up to five VMAs of one to three pages, often adjacent, with page offsets, anon_vmas and hooks of all kinds."""
    texts: list[str] = []
    page = draw(st.integers(0, 1))
    for _ in range(draw(st.integers(1, 5))):
        page += draw(st.sampled_from((0, 0, 0, 1, 2)))
        end = page + draw(st.integers(1, 3))
        pgoff = draw(st.sampled_from(("", "", "", f":{page + 8:x}")))
        anon_vma = draw(st.sampled_from(("", "", "@1", "@1", "@2", "@3F")))
        if anon_vma == "@3F" and any("@3F" in text for text in texts):
            anon_vma = ""
        texts.append(f"{page:x}-{end:x}{pgoff}{anon_vma}{draw(st.sampled_from(('', '', '', '', 'C')))}")
        page = end
    return " ".join(texts)


@settings(max_examples=300, deadline=None)
@given(layouts(), st.integers(0, 15), st.integers(1, 4), st.sampled_from((FLAGS, FLAGS, FLAGS, FLAGS | LOCKED)))
def test_all_three_do_the_same(layout: str, start: int, pages: int, flags: int) -> None:
    """Any range, new or within one VMA, on any layout: same VMAs, same anon_vmas, same answer."""
    bench = Bench(layout, "5.17")
    areas = list(bench.mm.mm_mt)
    inside = bench.mm.mm_mt.lookup(start << 12)
    # 5.17 does not ask for a close() hook of the VMA that holds the range: neighbours that fit would have the same
    assume(inside is None or inside.vm_ops is None)
    end = min([start + pages, *(edge >> 12 for a in areas for edge in (a.vm_start, a.vm_end) if edge >> 12 > start)])
    first, *others = [merge(Bench(layout, "5.17", design), start, end, flags) for design in DESIGNS]
    assert others == [first, first]


@pytest.mark.parametrize("design", [EightCase, EightCaseRefactored])
@pytest.mark.parametrize(("before", "where"), [("0-2 4-6@1", (2, 4)), ("0-2 2-4 4-6@1", (2, 4))])
def test_out_of_memory_changes_nothing(design: type[Design], before: str, where: tuple[int, int]) -> None:
    """The copy of a chain is all that can fail; the range is not merged then."""
    bench = Bench(before, "5.17", design)
    bench.fail_next(1)
    assert merge(bench, *where) == (before, "")


@pytest.mark.parametrize("design", [EightCase, EightCaseRefactored])
@pytest.mark.parametrize("below", [False, True])
def test_split(design: type[Design], below: bool) -> None:
    """The old VMA keeps the half that is not new; both hang at the anon_vma."""
    bench = Bench("0-4@1", "5.17", design)
    old = bench[0]
    assert bench.image.vma_modify._split_vma(old, 1 << 12, below) == 0
    assert bench.layout() == "0-1@1 1-4@1"
    assert (old.vm_start == 1 << 12) is below
    bench.check()


@pytest.mark.parametrize("design", [EightCase, EightCaseRefactored])
def test_growth_in_place_merges_nothing(design: type[Design]) -> None:
    """vma_merge_extend of 5.17 is a mere adjustment."""
    bench = Bench("0-2 4-6", "5.17", design)
    assert bench.image.vma.vma_merge_extend(bench[0], 2 << 12) is bench[0]
    assert bench.layout() == "0-4 4-6"
