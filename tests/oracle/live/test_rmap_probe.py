"""The reverse map of the running kernel, read by BPF, and held against the machine's."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest

from emulator.designs.base import Design
from emulator.designs.mainline import Mainline
from emulator.errors import InternalError, UsageError
from emulator.geometry import GEOMETRIES, PAGE_SHIFT, PAGE_SIZE
from emulator.machine import Machine
from emulator.mm_types import VmAreaStruct
from emulator.uapi import (
    MADV_DONTNEED,
    MADV_HUGEPAGE,
    MAP_FIXED,
    MAP_PRIVATE,
    MREMAP_DONTUNMAP,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    PROT_READ,
    PROT_WRITE,
)
from emulator.workload import Op, Step
from oracle.live import bpf, rmap_probe
from oracle.live.rmap_probe import RmapProbe, Unavailable, decode_vmas
from oracle.live.rmap_view import RawVma, RmapView, live_rmap, machine_rmap
from oracle.live.slabs import CACHES, slab_counts
from oracle.live.view import AnonView, FolioView
from tests.emulator.kernel_world import kernel_image
from tests.oracle.live.puppets import ARENA_START, Puppets

ARENA_END = GEOMETRIES["x86-64"].arena_end
RW = PROT_READ | PROT_WRITE
FIXED = MAP_PRIVATE | MAP_FIXED
MOVE = MREMAP_MAYMOVE | MREMAP_FIXED

lacks = rmap_probe.missing()
live = pytest.mark.skipif(bool(lacks), reason="; ".join(lacks))


@pytest.fixture(scope="module")
def probe() -> Iterator[RmapProbe]:
    with RmapProbe() as opened:
        yield opened


def op(kind: str, *args: int, proc: int = 0) -> Op:
    return Op(kind, proc, args)


def frames(pid: int, vmas: Sequence[RawVma]) -> dict[int, int]:
    """Arena page to frame number of every present page."""
    found = {}
    with Path(f"/proc/{pid}/pagemap").open("rb", buffering=0) as pagemap:
        for vma in vmas:
            pagemap.seek(vma.start // PAGE_SIZE * 8)
            for i, entry in enumerate(
                memoryview(pagemap.read((vma.end - vma.start) // PAGE_SIZE * 8)).cast("Q")
            ):
                if entry >> 63:
                    found[(vma.start - ARENA_START >> PAGE_SHIFT) + i] = entry & (1 << 55) - 1
    return found


def seen(probe: RmapProbe, puppets: Puppets) -> dict[int, RmapView]:
    """The views of all puppets."""
    vmas = probe.read(puppets.pids.values(), ARENA_START, ARENA_END)
    of_process = {label: frames(pid, vmas[pid]) for label, pid in puppets.pids.items()}
    folios = probe.folios({pfn for found in of_process.values() for pfn in found.values()})
    return live_rmap(
        {label: vmas[pid] for label, pid in puppets.pids.items()}, of_process, folios, ARENA_START
    )


def after(probe: RmapProbe, ops: Sequence[Op]) -> dict[int, RmapView]:
    """What the running kernel shows after ``ops``, all of which succeed."""
    with Puppets() as puppets:
        for one in ops:
            assert puppets.do(one) >= 0, one
        return seen(probe, puppets)


def of_machine(ops: Sequence[Op], design: type[Design] = Mainline) -> dict[int, RmapView]:
    machine = Machine(kernel_image(design), "x86-64")
    for one in ops:
        assert machine.run_step(Step((one,)))[0].ret >= 0, one
    return machine_rmap(machine)


# ---- what is known beforehand

SPLIT_AND_FORK = (
    op("mmap", 0, 3, RW, FIXED, 0, 0),
    op("write", 1, 0),
    op("mprotect", 1, 1, PROT_READ),
    op("fork", 1),
)


@live
def test_split_and_fork(probe: RmapProbe) -> None:
    """Three VMAs share one anon_vma; it counts itself and the child's three, whose parent it is."""
    views = after(probe, SPLIT_AND_FORK)
    assert views[0][0] == tuple(AnonView(page, page, 0, 0, 0, 4, 3, (0,)) for page in (0, 1, 2))
    assert views[1][0] == tuple(
        AnonView(page, page, number, 0, 0, 0, 1, (number, 0)) for page, number in ((0, 1), (1, 2), (2, 3))
    )
    assert views[0][1] == views[1][1] == (FolioView(1, 0, 1),)


@live
def test_a_moved_page_keeps_its_index(probe: RmapProbe) -> None:
    """mremap of a faulted VMA: page offset and anon_vma go along, as relocation would change."""
    views = after(
        probe, [op("mmap", 0, 2, RW, FIXED, 0, 0), op("write", 1, 0), op("mremap", 0, 2, 2, MOVE, 40)]
    )
    assert views[0] == ((AnonView(40, 0, 0, 0, 0, 1, 1, (0,)),), (FolioView(41, 0, 1),))


@live
def test_only_what_was_asked_for(probe: RmapProbe) -> None:
    """VMAs that meet the range, of the processes given; one that is not there has none."""
    with Puppets() as puppets:
        for page in (0, 4, 8):
            puppets.do(op("mmap", page, 2, RW, FIXED, 0, 0))
        pid = puppets.pids[0]
        low, high = ARENA_START + 5 * PAGE_SIZE, ARENA_START + 9 * PAGE_SIZE
        assert [vma.start - ARENA_START >> PAGE_SHIFT for vma in probe.read([pid], low, high)[pid]] == [4, 8]
        everything = probe.read([pid], 0, 1 << 47)[pid]
        assert len(everything) > 10  # the interpreter
        assert any(vma.file for vma in everything)
    assert probe.read([pid], ARENA_START, ARENA_END) == {pid: []}


@live
def test_more_vmas_than_one_buffer_holds(probe: RmapProbe) -> None:
    """The kernel hands out some four hundred at a time; all arrive, each once."""
    with Puppets() as puppets:
        puppets.do(op("mmap", 0, 1000, RW, FIXED, 0, 0))
        for page in range(0, 1000, 2):
            puppets.do(op("mprotect", page, 1, PROT_READ))
        (vmas,) = probe.read(puppets.pids.values(), ARENA_START, ARENA_END).values()
    assert [vma.start - ARENA_START >> PAGE_SHIFT for vma in vmas] == list(range(1000))


@live
def test_more_frames_than_one_run_reads(probe: RmapProbe) -> None:
    """All arrive, in whatever order they are asked for; a frame that does not exist is left out."""
    pages = 5000
    with Puppets() as puppets:
        puppets.do(op("mmap", 0, pages, RW, FIXED, 0, 0))
        for page in range(pages):
            puppets.do(op("write", page, 0))
        pid = puppets.pids[0]
        vmas = probe.read([pid], ARENA_START, ARENA_END)[pid]
        found = frames(pid, vmas)
        folios = probe.folios([1 << 40, *found.values()])
        assert len(folios) == pages
        for page, pfn in found.items():
            assert folios[pfn] == (vmas[0].anon_vma, (ARENA_START >> PAGE_SHIFT) + page)


# ---- the machine does the same

SEQUENCES = {
    "split-and-fork": SPLIT_AND_FORK,
    "two moved together stay two": (
        op("mmap", 0, 2, RW, FIXED, 0, 0),
        op("mmap", 10, 2, RW, FIXED, 0, 0),
        op("write", 0, 0),
        op("write", 10, 0),
        op("mremap", 10, 2, 2, MOVE, 2),
        op("write", 3, 0),
    ),
    "an unfaulted neighbour takes the anon_vma over": (
        op("mmap", 0, 4, RW, FIXED, 0, 0),
        op("mprotect", 2, 2, PROT_READ),
        op("write", 0, 0),
        op("mprotect", 2, 2, RW),
        op("write", 3, 0),
    ),
    "written after a fork": (
        op("mmap", 0, 3, RW, FIXED, 0, 0),
        op("write", 0, 0),
        op("write", 1, 0),
        op("fork", 1),
        op("write", 0, 0, proc=1),
        op("write", 1, 0),
        op("madvise", 0, 1, MADV_DONTNEED, proc=1),
    ),
    "an orphan's pages": (
        op("mmap", 0, 2, RW, FIXED, 0, 0),
        op("write", 0, 0),
        op("fork", 1),
        op("munmap", 0, 2),
        op("write", 0, 0, proc=1),
    ),
    "the oldest idle ancestor is used again": (
        op("mmap", 0, 1, RW, FIXED, 0, 0),
        op("write", 0, 0),
        op("fork", 1),
        op("fork", 2, proc=1),
        op("fork", 3, proc=2),
        op("exit"),
        op("fork", 0, proc=3),
        op("exit", proc=1),
        op("exit", proc=2),
        op("fork", 1),
    ),
    "left behind without a page": (
        op("mmap", 0, 3, RW, FIXED, 0, 0),
        op("write", 1, 0),
        op("mremap", 0, 3, 3, MOVE | MREMAP_DONTUNMAP, 20),
        op("write", 2, 0),
    ),
    "a private file page": (
        op("mmap", 0, 4, RW, FIXED, 1, 2),
        op("read", 0),
        op("write", 1, 0),
        op("mremap", 1, 2, 2, MOVE, 20),
    ),
    "a huge page, moved in part": (
        op("mmap", 0, 1100, RW, FIXED, 0, 0),
        op("madvise", 0, 1100, MADV_HUGEPAGE),
        op("write", 700, 0),
        op("mremap", 600, 200, 200, MOVE, 2000),
        op("fork", 1),
        op("write", 2001, 0, proc=1),
    ),
}  # fmt: skip


@live
@pytest.mark.parametrize("ops", SEQUENCES.values(), ids=SEQUENCES)
def test_machine_and_kernel_agree(probe: RmapProbe, ops: Sequence[Op]) -> None:
    """Equal graphs of anon_vmas with their counters, equal mapping and index of every page."""
    thp = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if (
        any(one.kind == "madvise" and one.args[2] == MADV_HUGEPAGE for one in ops)
        and "[never]" in thp.read_text()
    ):
        pytest.skip(f"{thp} says never")
    assert after(probe, ops) == of_machine(ops)


def clone_in_reverse(original: Any, dst: VmAreaStruct, src: VmAreaStruct, operation: int) -> int:
    """Turns the chain round, as 7.0 does, so that another ancestor is used again."""
    chain = src.anon_vma_chain
    src.anon_vma_chain = chain[::-1]
    result: int = original(dst, src, operation)
    src.anon_vma_chain = chain
    return result


def fork_of_a_root(vma: VmAreaStruct, pvma: VmAreaStruct) -> int:
    """Gives the child's VMA the parent's own anon_vma."""
    from emulator.mm import rmap

    vma.anon_vma = pvma.anon_vma
    result: int = rmap.anon_vma_clone(vma, pvma, rmap.VMA_OP_SPLIT)
    return result


class ClonesInReverse(Design):
    name = "clones-in-reverse"
    replaces: ClassVar = {"rmap.anon_vma_clone": clone_in_reverse}


class SharesInFork(Design):
    name = "shares-in-fork"
    replaces: ClassVar = {
        "rmap.anon_vma_fork": fork_of_a_root,
        "rmap.check_anon_vma_clone": lambda *args: None,
    }


@live
@pytest.mark.parametrize(
    ("design", "ops"),
    [
        (ClonesInReverse, SEQUENCES["the oldest idle ancestor is used again"]),
        (SharesInFork, SPLIT_AND_FORK),
    ],
)
def test_a_machine_that_differs_shows(probe: RmapProbe, design: type[Design], ops: Sequence[Op]) -> None:
    """A design that breaks the cloning of anon_vmas is told from the running kernel."""
    assert after(probe, ops) != of_machine(ops, design)


# ---- when something is missing, or wrong


def test_what_is_missing_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One sentence for each, with what to do; the probe says the same and does not start."""
    monkeypatch.setattr(bpf, "LIBBPF", "libbpf.so.none")
    monkeypatch.setattr(bpf, "allowed", lambda: "Operation not permitted")
    monkeypatch.setattr(rmap_probe, "BTF", tmp_path / "btf")
    monkeypatch.setattr(rmap_probe, "LOCKDOWN", tmp_path / "lockdown")
    (tmp_path / "lockdown").write_text("none integrity [confidentiality]\n")
    monkeypatch.setattr("platform.release", lambda: "5.17.3-test")
    monkeypatch.setattr("shutil.which", lambda name: None)
    sentences = rmap_probe.missing()
    words = ("6.1", "root", "CONFIG_DEBUG_INFO_BTF", "lockdown=", "apt install clang", "apt install libbpf1")
    for sentence, word in zip(sentences, words, strict=True):
        assert word in sentence
    with pytest.raises(Unavailable, match="apt install clang"):
        RmapProbe()


@live
def test_a_program_that_does_not_load_says_why() -> None:
    """The words of libbpf or of the verifier, not a number alone."""
    with pytest.raises(bpf.BpfError, match=r"no BPF object: .*; libbpf: "):
        bpf.BpfObject(b"garbage")


def test_a_chain_that_goes_on_is_no_chain() -> None:
    """Half a chain would compare as a whole one."""
    record = (ARENA_START, ARENA_START + PAGE_SIZE, 0, 0, 8, 8, 8, 1, 1)
    assert [vma.chain for vma in decode_vmas(struct.pack("11Q", *record, 8, 0))] == [(8,)]
    with pytest.raises(InternalError, match="AVCs"):
        list(decode_vmas(struct.pack("11Q", *record, 8, 1)))


# ---- slabs


@pytest.mark.skipif(
    os.geteuid() != 0 or not Path("/sys/kernel/slab/anon_vma/objects").exists(), reason="needs root"
)
def test_slabs_count_what_is_there() -> None:
    """Two thousand VMAs that are faulted one by one stand out from the noise."""
    before = slab_counts()
    with Puppets() as puppets:
        for page in range(0, 4000, 2):
            puppets.do(op("mmap", page, 1, RW, FIXED, 0, 0))
            puppets.do(op("write", page, 0))
        during = slab_counts()
    for name in CACHES:
        assert during[name].objects - before[name].objects > 1000, name


def test_slabs_that_are_not_counted(tmp_path: Path) -> None:
    """One line that says what the kernel lacks."""
    with pytest.raises(UsageError, match="CONFIG_SLUB_DEBUG"):
        slab_counts(tmp_path)
    folder = tmp_path / "merged"
    for name in CACHES:
        (folder / name).mkdir(parents=True)
        (folder / name / "objects").write_text("12 N0=12\n")
        (folder / name / "aliases").write_text(f"{int(name == 'anon_vma_chain')}\n")
    counts = slab_counts(folder)
    assert {name for name in CACHES if counts[name].shared} == {"anon_vma_chain"}
    assert counts["anon_vma"].objects == 12
