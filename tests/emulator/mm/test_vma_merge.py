"""mm/vma.c's merging, case by case as tools/testing/vma has them: layouts before and after (see ``vma_bench``)."""

from __future__ import annotations

from itertools import product

import pytest

from emulator.fs_types import File
from emulator.geometry import PAGE_SHIFT
from emulator.mm_types import VM_DONTEXPAND, VM_EXEC, VM_IO, VM_MIXEDMAP, VM_PFNMAP
from emulator.uapi import ENOMEM
from tests.emulator.mm.vma_bench import FLAGS, STICKY, Bench


def pages(text: str) -> tuple[int, int]:
    start, end = text.split("-")
    return int(start, 16), int(end, 16)


# name, before, new range, after ("" when nothing may merge), start of the VMA object that must grow
NEW = [
    ("simple_merge", "0-1 2-3", "1-2", "0-3", 0),
    ("alone", "0-2 3-4 b-c", "7-9", "", None),
    ("both", "0-2C 3-4 b-c", "2-3", "0-4C b-c", 0),
    ("prev", "0-4 b-c", "4-5", "0-5 b-c", 0),
    ("next", "0-5 7-9C b-c", "6-7", "0-5 6-9C b-c", 7),
    ("both_of_which_next_goes", "0-5 6-9 b-c", "5-6", "0-9 b-c", 0),
    ("next_at_a_distance_from_prev", "0-9 b-c", "a-b", "0-9 a-c", 0xB),
    ("both_to_the_last", "0-9 a-c", "9-a", "0-c", 0),
    ("next_has_close", "0-3 5-9C", "3-5", "0-5 5-9C", 0),
    ("both_have_close", "0-2C 5-7C", "2-5", "0-5C 5-7C", 0),
    ("next_has_close_and_is_target", "5-7C", "2-5", "2-7C", 5),
    ("prev_faulted", "0-3@1 5-9", "3-5", "0-9@1", 0),
    ("next_faulted", "0-3 5-9@1", "3-5", "0-9@1", 0),
    ("same_anon_vma", "0-3@1 5-9@1", "3-5", "0-9@1", 0),
    ("two_anon_vmas", "0-3@1 5-9@2", "3-5", "0-5@1 5-9@2", 0),
    ("only_next_and_faulted", "5-9@1", "3-5", "3-9@1", 5),
    ("prev_is_fork_child", "0-3@1F", "3-5", "", None),
    ("next_is_fork_child", "5-8@1F", "3-5", "", None),
    ("next_alone_is_fork_child", "0-3 5-8@1F", "3-5", "0-5 5-8@1F", 0),
    ("prev_ends_before", "0-2", "3-5", "", None),
    ("next_starts_later", "6-8", "3-5", "", None),
    ("prev_fits_by_offset_alone", "0-2:1", "3-5", "", None),
    ("next_fits_by_offset_alone", "6-8:5", "3-5", "", None),
    ("prev_of_another_offset", "0-3:1", "3-5", "", None),
    ("next_of_another_offset", "5-8:6", "3-5", "", None),
    ("nothing_around", "", "3-5", "", None),
]


@pytest.mark.parametrize(
    ("before", "new", "after", "target"), [pytest.param(*row[1:], id=row[0]) for row in NEW]
)
def test_merge_new(before: str, new: str, after: str, target: int | None) -> None:
    """A hole that is filled: which VMA grows over it, and which goes."""
    bench = Bench(before)
    merged, vmg = bench.new(*pages(new))
    if not after:
        assert (merged, vmg.state) == (None, bench.image.vma.VMA_MERGE_NOMERGE)
        assert bench.layout() == before
    else:
        assert target is not None
        assert merged is bench[target]
        assert vmg.state == bench.image.vma.VMA_MERGE_SUCCESS
        assert bench.layout() == after
    bench.check()


# name, before, modified range, after
EXISTING = [
    ("right_partial", "2-6 6-9", "3-6", "2-3 3-9", 6),
    ("right_whole", "2-6 6-9", "2-6", "2-9", 6),
    ("left_partial", "0-3 3-7", "3-6", "0-6 6-7", 0),
    ("left_whole", "0-3 3-7", "3-7", "0-7", 0),
    ("both", "0-3 3-7 7-9", "3-7", "0-9", 0),
    ("inside_1", "0-3 3-8 8-a", "4-5", "", None),
    ("inside_2", "0-3 3-8 8-a", "5-6", "", None),
    ("inside_3", "0-3 3-8 8-a", "6-7", "", None),
    ("inside_4", "0-3 3-8 8-a", "4-7", "", None),
    ("inside_5", "0-3 3-8 8-a", "4-6", "", None),
    ("right_partial_closes", "2-6C 6-9C", "3-6", "2-3C 3-9C", 6),
    ("left_partial_closes", "0-3C 3-7C", "3-6", "0-6C 6-7C", 0),
    ("left_whole_middle_close", "0-3 3-5C", "3-5", "", None),
    ("right_whole_middle_close", "3-5C 5-9", "3-5", "", None),
    ("both_middle_close", "0-3 3-5C 5-9", "3-5", "", None),
    ("both_next_close", "0-3 3-5 5-9C", "3-5", "0-5 5-9C", 0),
    ("both_prev_close", "0-3C 3-5 5-9", "3-5", "0-9C", 0),
    ("anon_vma_non_mergeable", "0-3@1 3-7 7-9@2", "3-7", "0-7@1 7-9@2", 0),
    ("prev_takes_next's_anon_vma", "0-3 3-5 5-8@1", "3-5", "0-8@1", 0),
    ("prev_takes_middle's_anon_vma_both", "0-3 3-5@1 5-8", "3-5", "0-8@1", 0),
    ("prev_takes_middle's_anon_vma_left", "0-3 3-8@1", "3-5", "0-5@1 5-8@1", 0),
    ("prev_takes_middle's_anon_vma_left_whole", "0-3 3-8@1", "3-8", "0-8@1", 0),
    ("next_takes_middle's_anon_vma", "0-5@1 5-8", "3-5", "0-3@1 3-8@1", 5),
    ("next_takes_middle's_anon_vma_whole", "0-5@1 5-8", "0-5", "0-8@1", 5),
    ("faulted_prev_of_another", "0-3@1 3-5@2", "3-5", "", None),
    ("unfaulted_prev_of_fork_child", "0-3 3-5@1F", "3-5", "", None),
    ("unfaulted_next_of_fork_child", "3-5@1F 5-8", "3-5", "", None),
    ("fork_child_prev_of_unfaulted", "0-3@1F 3-5", "3-5", "", None),
    ("fork_child_next_of_unfaulted", "3-5 5-8@1F", "3-5", "", None),
    ("fork_child_with_its_own_half", "0-3@1F 3-5@1F", "3-5", "0-5@1F", 0),
    ("gap_before", "0-2 3-5", "3-5", "", None),
    ("gap_after", "3-5 6-8", "3-5", "", None),
    ("gap_before_fitting", "0-2:1 3-5", "3-5", "", None),
    ("gap_after_fitting", "3-5 6-8:5", "3-5", "", None),
]


@pytest.mark.parametrize(
    ("before", "modified", "after", "target"), [pytest.param(*row[1:], id=row[0]) for row in EXISTING]
)
def test_merge_existing(before: str, modified: str, after: str, target: int | None) -> None:
    """Part of a VMA gets new attributes: with whom it merges, what is left, who has the anon_vma."""
    bench = Bench(before)
    merged, vmg = bench.modify(*pages(modified))
    if not after:
        assert (merged, vmg.state) == (None, bench.image.vma.VMA_MERGE_NOMERGE)
        assert bench.layout() == before
    else:
        assert target is not None
        assert merged is bench[target]
        assert bench.layout() == after
    bench.check()


@pytest.mark.parametrize("sticky", list(product(["", "S"], repeat=3)), ids="".join)
def test_sticky_flags_of_a_new_range(sticky: tuple[str, str, str]) -> None:
    """A sticky flag does not stop a merge, and stays if any participant had it."""
    prev, new, following = sticky
    bench = Bench(f"0-3{prev} 5-9{following}")
    bench.new(3, 5, FLAGS | (STICKY if new else 0))
    assert bench.layout() == "0-9" + ("S" if any(sticky) else "")


@pytest.mark.parametrize("sticky", list(product(["", "S"], repeat=3)), ids="".join)
@pytest.mark.parametrize(
    ("before", "modified", "after", "who"),
    [
        ("0-3{0} 3-7{1} 7-9{2}", "3-7", "0-9{x}", (0, 1, 2)),
        ("0-3{0} 3-7{1} 8-9{2}", "3-7", "0-7{x} 8-9{2}", (0, 1)),
        ("0-2{0} 3-7{1} 7-9{2}", "3-7", "0-2{0} 3-9{x}", (1, 2)),
        ("0-3{0} 3-7{1} 7-9{2}", "3-5", "0-5{x} 5-7{1} 7-9{2}", (0, 1)),
        ("0-3{0} 3-7{1} 7-9{2}", "5-7", "0-3{0} 3-5{1} 5-9{x}", (1, 2)),
    ],
    ids=["both", "left", "right", "left_partial", "right_partial"],
)
def test_sticky_flags_of_an_existing_range(
    before: str, modified: str, after: str, who: tuple[int, ...], sticky: tuple[str, str, str]
) -> None:
    """The target of the merge gets the sticky flags of those that merged, and of nobody else."""
    bench = Bench(before.format(*sticky))
    start, end = pages(modified)
    bench.modify(start, end, FLAGS | (STICKY if sticky[1] else 0))
    expected = "S" if any(sticky[i] for i in who) else ""
    assert bench.layout() == after.format(*sticky, x=expected)


@pytest.mark.parametrize(
    "flag", [VM_IO, VM_DONTEXPAND, VM_PFNMAP, VM_MIXEDMAP], ids=["io", "dontexpand", "pfnmap", "mixedmap"]
)
def test_special_flags_never_merge(flag: int) -> None:
    """VM_SPECIAL blocks a merge of new and of existing ranges, though the flags are equal."""
    bench = Bench("0-3")
    bench[0].vm_flags |= flag
    assert bench.new(3, 4, FLAGS | flag)[0] is None
    bench.put("3-4").vm_flags |= flag
    assert bench.modify(3, 4, FLAGS | flag)[0] is None
    assert bench.layout() == "0-3 3-4"


def test_attributes_must_be_equal() -> None:
    """Flags, file, policy, userfaultfd context, name and page offset each keep neighbours apart."""
    bench = Bench("0-3 5-9")
    file = File(0, bench.world.machine.files[0].f_mapping)
    for change in (
        {"vm_flags": FLAGS | VM_EXEC},
        {"file": file},
        {"policy": "bind"},
        {"uffd_ctx": object()},
        {"anon_name": "heap"},
        {"pgoff": 4},
    ):
        vmg = bench.vmg(3, 5)
        vmg.prev, vmg.next = bench[0], bench[5]
        for name, value in change.items():
            setattr(vmg, name, value)
        assert bench.image.vma.vma_merge_new_range(vmg) is None, change
    assert bench.layout() == "0-3 5-9"
    assert bench.new(3, 5)[0] is bench[0]


def test_simple_modify() -> None:
    """No merge: the middle is cut out of the VMA, and is still the same object."""
    bench = Bench("0-3")
    vma = bench[0]
    changed = bench.image.vma_modify.vma_modify_flags(vma, vma, 1 << PAGE_SHIFT, 2 << PAGE_SHIFT, FLAGS | VM_EXEC)
    assert changed is vma
    assert bench.describe(vma) == "1-2"
    assert bench.layout() == "0-1 1-2 2-3"
    bench.check()


def test_simple_expand() -> None:
    """vma_expand grows its target."""
    bench = Bench("0-1")
    vmg = bench.vmg(0, 3)
    vmg.target = bench[0]
    assert bench.image.vma.vma_expand(vmg) == 0
    assert bench.layout() == "0-3"
    bench.check()


def test_expand_over_faulted_next() -> None:
    """An unfaulted VMA that swallows a faulted one has its anon_vma from then on."""
    bench = Bench("0-3 3-5@1")
    vmg = bench.vmg(0, 5)
    vmg.target, vmg.next = bench[0], bench[3]
    assert bench.image.vma.vma_expand(vmg) == 0
    assert bench.layout() == "0-5@1"
    bench.check()


# name, before, function, fault point that fails (each merge clones one AVC, then wants room in the tree)
PREALLOC = [
    ("existing_clone", "0-3 3-5@1", "modify", 1),
    ("existing_tree", "0-3 3-5@1", "modify", 2),
    ("existing_tree_unfaulted", "0-3 3-5", "modify", 1),
    ("new_clone", "0-3 5-9@1", "new", 1),
    ("new_tree", "0-3 5-9@1", "new", 2),
]


@pytest.mark.parametrize(
    ("before", "function", "point"), [pytest.param(*row[1:], id=row[0]) for row in PREALLOC]
)
@pytest.mark.parametrize("give_up", [False, True], ids=["", "give_up_on_oom"])
def test_out_of_memory_changes_nothing(before: str, function: str, point: int, give_up: bool) -> None:
    """A merge that cannot get memory takes back the anon_vma that it had given the target."""
    bench = Bench(before)
    bench.fail_next(point)
    if function == "modify":
        vmg = bench.image.vma.vmg_of_vma(bench[0], bench[3], bench[3].vm_start, bench[3].vm_end)
        call = bench.image.vma.vma_merge_existing_range
    else:
        vmg = bench.vmg(3, 5)
        vmg.prev, vmg.next = bench[0], bench[5]
        call = bench.image.vma.vma_merge_new_range
    vmg.give_up_on_oom = give_up
    assert call(vmg) is None
    assert bench.world.machine.sched.current.failed
    # the kernel does not report a failed clone of a growing VMA: the callers then make a new one
    reported = not give_up and (function == "modify" or point == 2)
    image = bench.image.vma
    assert vmg.state == (image.VMA_MERGE_ERROR_NOMEM if reported else image.VMA_MERGE_NOMERGE)
    assert bench.layout() == before
    bench.check()


def test_modify_reports_lack_of_memory() -> None:
    """A merge that should be and cannot get memory is an error: the VMA is not split in its place."""
    bench = Bench("0-3 3-7")
    bench.fail_next(1)
    vma = bench[3]
    changed = bench.image.vma_modify.vma_modify_flags(bench[0], vma, vma.vm_start, 5 << PAGE_SHIFT, FLAGS)
    assert changed == -ENOMEM
    assert bench.layout() == "0-3 3-7"


def test_merge_extend() -> None:
    """In-place growth up to the next VMA swallows it."""
    bench = Bench("0-1 3-4")
    assert bench.image.vma.vma_merge_extend(bench[0], 2 << PAGE_SHIFT) is bench[0]
    assert bench.layout() == "0-4"
    bench.check()


def test_merge_extend_takes_the_anon_vma_of_next() -> None:
    """The grown VMA is faulted when the swallowed one was."""
    bench = Bench("0-1 3-4@1")
    assert bench.image.vma.vma_merge_extend(bench[0], 2 << PAGE_SHIFT) is bench[0]
    assert bench.layout() == "0-4@1"
    bench.check()


def test_expand_only_mode() -> None:
    """just_expand grows prev and never merges with next."""
    bench = Bench("0-2 3-5 9-b")
    vmg = bench.vmg(5, 9)
    vmg.prev, vmg.next, vmg.just_expand = bench[3], bench[9], True
    assert bench.image.vma.vma_merge_new_range(vmg) is bench[3]
    assert bench.layout() == "0-2 3-9 9-b"
    bench.check()


# name, before, VMA to copy (2 pages), where to, layout after, source merged with its copy, need_rmap_locks
COPY = [
    ("new_vma", "3-5", 3, 0, "0-2 3-5", False, False),
    ("merged_with_next", "0-2 6-8", 0, 4, "0-2 4-8", False, False),
    ("merged_with_prev", "0-2 6-8", 6, 2, "0-4 6-8", False, True),
    ("merged_with_itself_after", "0-2", 0, 2, "0-4", True, True),
    ("merged_with_itself_before", "2-4", 2, 0, "0-4", True, True),
    ("merged_with_itself_and_prev", "0-2 4-6", 4, 2, "0-6", True, True),
    ("faulted_keeps_its_offset", "3-5@1", 3, 0, "0-2:3@1 3-5@1", False, False),
    ("faulted_does_not_fit", "0-2 6-8@1", 6, 2, "0-2 2-4:6@1 6-8@1", False, False),
    # its offset fits behind 0-2, as after an earlier move; what moves in brings its anon_vma (fixed in January 2026)
    ("faulted_fits_behind_unfaulted", "0-2 6-8:2@1", 6, 2, "0-4@1 6-8:2@1", False, True),
    ("faulted_fits_before_unfaulted", "4-6 8-a:2@1", 8, 2, "2-6@1 8-a:2@1", False, True),
    ("fork_child_does_not_merge", "0-2 6-8:2@1F", 6, 2, "0-2 2-4@1F 6-8:2@1F", False, False),
]


@pytest.mark.parametrize(
    ("before", "source", "to", "after", "itself", "locks"),
    [pytest.param(*row[1:], id=row[0]) for row in COPY],
)
def test_copy_vma(before: str, source: int, to: int, after: str, itself: bool, locks: bool) -> None:
    """mremap's destination: a copy with the old page offset if faulted, else merged wherever it fits."""
    bench = Bench(before)
    vma = bench[source]
    copied = bench.image.vma_link.copy_vma(vma, to << PAGE_SHIFT, 2 << PAGE_SHIFT, vma.vm_pgoff)
    assert copied is not None
    old, new, need_rmap_locks = copied
    assert bench.layout() == after
    assert need_rmap_locks == locks
    assert new.vm_start <= to << PAGE_SHIFT < new.vm_end
    assert (old is new) == itself
    bench.check()


def test_copy_vma_refuses_an_occupied_place() -> None:
    """The caller must have unmapped the destination."""
    bench = Bench("0-2 6-8")
    assert bench.image.vma_link.copy_vma(bench[0], 5 << PAGE_SHIFT, 2 << PAGE_SHIFT, 0) is None


# name, layout, page whose VMA faults, whose anon_vma it shares (None: a new one)
SHARING = [
    ("next_first", "0-3@1 3-5 5-8@2", 3, "2"),
    ("prev_else", "0-3@1 3-5 5-8", 3, "1"),
    ("gap", "0-2@1 3-5 6-8@2", 3, None),
    ("fork_child_next_passed_over", "0-3@1 3-5 5-8@2F", 3, "1"),
    ("fork_children_both", "0-3@1F 3-5 5-8@2F", 3, None),
    ("gap_fitting_by_offset", "0-2:1@1 3-5 6-8:5@2", 3, None),
    ("offsets_differ", "0-3:1@1 3-5 5-8:9@2", 3, None),
]


@pytest.mark.parametrize(("layout", "page", "name"), [pytest.param(*row[1:], id=row[0]) for row in SHARING])
def test_find_mergeable_anon_vma(layout: str, page: int, name: str | None) -> None:
    """At its first fault a VMA shares a compatible neighbour's anon_vma, next first, but not a fork child's."""
    bench = Bench(layout)
    found = bench.image.vma.find_mergeable_anon_vma(bench[page])
    assert found is (None if name is None else bench.anon_vmas[name])


@pytest.mark.parametrize(
    ("change", "shared"),
    [
        ("vm_flags:4", True),
        ("vm_flags:8192", False),
        ("vm_policy:1", False),
        ("anon_name:1", True),
        ("uffd_ctx:1", True),
    ],
    ids=["access", "locked", "policy", "name", "uffd"],
)
def test_anon_vma_compatible(change: str, shared: bool) -> None:
    """Permissions, name and userfaultfd context do not stop the sharing; other flags and the policy do."""
    bench = Bench("0-3@1 3-5")
    name, value = change.split(":")
    setattr(bench[3], name, getattr(bench[3], name) ^ int(value) if name == "vm_flags" else value)
    assert (bench.image.vma.find_mergeable_anon_vma(bench[3]) is not None) == shared
