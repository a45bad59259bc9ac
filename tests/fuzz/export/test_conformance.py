"""Exported programs on the running kernel: what the machine says is what Linux does."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Final

import pytest

from emulator.errors import UsageError
from emulator.workload import Op, Step, Workload
from fuzz.conform.workloads import round_of
from fuzz.export import c_program
from fuzz.workload import wire
from fuzz.workload.domains import OP_DOMAINS
from fuzz.workload.generate import Generator
from fuzz.workload.text import from_text
from tests.fuzz.export.programs import PROFILE, build, compiled, conforms, exportable, run

CORPUS: Final = Path(__file__).parents[3] / "corpus"
RECORDED: Final = sorted((CORPUS / "seeds" / "recorded").glob("*.msgpack"))
_ANY: Final = (
    "mmap mmap mmap mmap munmap mremap mremap mprotect madvise write read fill brk mlock mlock2 mlockall munlock mseal "
    "mbind memory_merge pkey_mprotect remap_file_pages uffd_register uffd_unregister uffd_copy uffd_zeropage uffd_wp "
    "uffd_move uffd_poison uffd_continue"
).split()
_LACKING: Final = ("CAP_IPC_LOCK", "CONFIG_ANON_VMA_NAME", "protection keys", "memory nodes", "userfaultfd")


_ENDLESS: Final = "guard-over-protected-page"  # it never returns: a program has a minute, then it says so


def _exportable_files() -> list[Path]:
    found = []
    for path in sorted((CORPUS / "regressions").rglob("*.msgpack")):
        if path.stem == _ENDLESS:
            continue
        try:
            c_program.check(wire.decode(path.read_bytes()))
        except UsageError:
            continue
        found.append(path)
    return found


def _agrees(workload: Workload, folder: Path) -> None:
    """The program ends with 0, says so in one line, and writes nothing else."""
    place = build(c_program.export(workload, "test", PROFILE), folder)
    steps = len(workload.steps)
    done = run(place)
    if done.status == 2 and any(reason in done.err for reason in _LACKING):
        pytest.skip(done.err)
    assert done == (0, f"{steps} steps: all is as on Linux {PROFILE}\n", "")


@compiled
@conforms
@pytest.mark.parametrize("path", _exportable_files(), ids=lambda path: path.stem)
def test_regressions(path: Path, tmp_path: Path) -> None:
    """What was a finding in the books only, everybody sees as correct from outside."""
    _agrees(wire.decode(path.read_bytes()), tmp_path)


def test_what_never_returns_is_refused() -> None:
    """One line says in which step the kernel itself breaks."""
    workload = wire.decode((CORPUS / "regressions" / "mainline" / f"{_ENDLESS}.msgpack").read_bytes())
    with pytest.raises(UsageError, match="step 3: mainline itself breaks here: never-returns"):
        c_program.export(workload, "test", PROFILE)


@compiled
@conforms
def test_userfaultfd_of_shared_memory(tmp_path: Path) -> None:
    """Missing pages, minor faults and protection of a memfd and of shared anonymous memory, and a child beside."""
    steps = """world x86-64
        mmap addr=10 len=4 prot=rw flags=shared|fixed
        mmap addr=20 len=4 prot=rw flags=shared|fixed file=memfd
        mmap addr=30 len=4 prot=rw flags=private|fixed file=memfd
        write addr=20 at=0
        uffd_register addr=10 len=4 mode=missing|wp
        uffd_register addr=30 len=4 mode=minor
        read addr=10
        uffd_copy dst=10 src=20 len=1 mode=wp
        uffd_zeropage addr=11 len=2
        write addr=10 at=1
        fork child=1
        p1: write addr=13 at=2
        read addr=13
        read addr=30
        uffd_continue addr=30 len=2 mode=none
        read addr=30
        uffd_wp addr=10 len=4 mode=none
        write addr=10 at=1
    """
    _agrees(from_text(steps), tmp_path)


@compiled
@conforms
def test_shared_memory(tmp_path: Path) -> None:
    """Parent and child, the file of a mapping beside an ordinary one, and its end."""
    steps = """world x86-64
        mmap addr=10 len=4 prot=rw flags=shared|fixed
        mmap addr=14 len=2 prot=rw flags=shared|fixed file=file0
        write addr=11 at=1
        fork child=1
        p1: write addr=10 at=0
        p1: mremap addr=10 old_len=0 new_len=6 flags=maymove|fixed new_addr=30
        madvise addr=10 len=4 advice=dontneed
        read addr=10
        p1: read addr=35
        p1: write addr=31 at=2
        mmap addr=40 len=8 prot=rw flags=shared|fixed file=memfd off=2
        mmap addr=50 len=8 prot=rw flags=private|fixed file=memfd off=2
        write addr=41 at=1
        read addr=51
        write addr=52 at=0
        madvise addr=40 len=3 advice=remove
        read addr=51
        read addr=52
        process_madvise target=0 addr=40 len=2 addr2=42 len2=2 advice=guard_install
        read addr=43
        process_madvise target=0 addr=40 len=4 addr2=100 len2=1 advice=guard_remove
        process_madvise target=0 addr=100 len=4 addr2=40 len2=1 advice=guard_remove
        madvise addr=14 len=1 advice=remove
        read addr=14
        read addr=15
    """
    _agrees(from_text(steps), tmp_path)


@compiled
@conforms
@pytest.mark.slow
@pytest.mark.parametrize("path", RECORDED[::5], ids=lambda path: path.stem)
def test_recorded_seeds(path: Path, tmp_path: Path) -> None:
    """What real programs did."""
    _agrees(exportable(wire.decode(path.read_bytes())), tmp_path)


@compiled
@conforms
@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_generated(seed: int, tmp_path: Path) -> None:
    """What the live oracle is fed with: x86-64, up to 60 steps, with processes that fork."""
    _agrees(exportable(next(round_of(seed))), tmp_path)


@compiled
@conforms
@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_generated_small(seed: int, tmp_path: Path) -> None:
    """What campaigns make for a small world, as real page tables see it."""
    _agrees(exportable(Generator(Random(seed), "small8").generate(40)), tmp_path)


@compiled
@conforms
@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_any_arguments(seed: int, tmp_path: Path) -> None:
    """Arguments that no generator would choose: most of them errors, and which error is compared too."""
    rng = Random(seed)
    steps = []
    for _ in range(64):
        kind = rng.choice(_ANY)
        args = []
        for values in OP_DOMAINS["small4"][kind].values:
            args.append(rng.choice(sorted(values)[:24]))
        steps.append(Step((Op(kind, 0, tuple(args)),)))
    workload = exportable(Workload("small4", tuple(steps)))
    try:
        _agrees(workload, tmp_path)
    except UsageError as error:
        pytest.skip(str(error))  # the kernel chose a place outside of the arena
