"""userfaultfd on files of memory: what the specification allows, and machines broken on purpose that it must find.

Scripts as in ``test_uffd``: pages 0 to 7 are of a memfd, mapped shared; pages 20 to 27 the same pages, mapped shared
too, 40 to 47 the same, mapped private; pages 60 to 67 are anonymous and written.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from emulator.designs.mainline import Mainline
from emulator.designs.mainline_fixed import MainlineFixed
from emulator.image import KernelImage
from emulator.uapi import EFAULT, MAP_FIXED, MAP_PRIVATE, MAP_SHARED, SIGBUS
from emulator.workload import MEMFD
from fuzz.workload import text
from oracle.judge import Judge
from oracle.specification.page import Page
from oracle.specification.uffd_follow import leave_open
from oracle.specification.uffd_memory import MAYBE, cell, has
from tests.oracle.specification.test_uffd import Script


class Memory(Script):
    def __init__(self) -> None:
        super().__init__()
        for first, flags in ((0, MAP_SHARED), (20, MAP_SHARED), (40, MAP_PRIVATE)):
            self.map(first, 8, file=MEMFD + 1, flags=flags | MAP_FIXED)
        self.map(60, 8)
        self.play("; ".join(f"write {page} 0" for page in range(60, 68)))


@pytest.mark.parametrize(
    "script",
    [
        "not uffd_register 0 8 missing = EINVAL; uffd_register 0 8 missing|wp|minor; not uffd_unregister 0 8 = EINVAL",
        "not uffd_register 60 8 minor; uffd_register 60 8 minor = EINVAL; uffd_register 40 8 minor",
        "mmap 80 4 rw shared|fixed file0 0 = 80; not uffd_register 80 4 wp; uffd_register 80 4 wp = EINVAL",
        "uffd_register 0 8 missing|wp; not uffd_copy 0 60 1 none = EINVAL; not uffd_continue 0 1 none = 1",
    ],
)
def test_registered(script: str) -> None:
    """Files of memory are, in every mode; those on disks are not."""
    Memory().play(script)


@pytest.mark.parametrize(
    "script",
    [
        "uffd_register 0 8 missing; not read 1; read 1 = SIGBUS; write 21 0; not read 1 = SIGBUS; read 1; write 1 0",
        "uffd_register 0 8 missing; read 21; not read 1 = SIGBUS; madvise 0 8 dontneed; read 1; not read 2",
        "write 1 0; uffd_register 0 8 missing; madvise 0 8 pageout; not read 1 = SIGBUS; read 1; madvise 20 8 remove; "
        "not read 1; read 1 = SIGBUS",
        "read 1; uffd_register 0 8 missing; madvise 20 8 pageout; read 1 = SIGBUS; not read 1",
        "read 1; uffd_register 0 8 missing; madvise 20 8 pageout; read 1; not write 1 0 = SIGBUS",
        "uffd_register 40 8 missing; not write 41 0; write 41 0 = SIGBUS; write 1 0; write 41 0; madvise 0 8 remove; "
        "not read 41 = SIGBUS; read 41; madvise 40 8 dontneed; not read 41; read 41 = SIGBUS",
        "uffd_register 0 8 missing; fork 1; not read 1; madvise 20 2 populate_read; read 1",
        "uffd_register 0 8 missing; mlock 20 2; read 1; not read 2",
        "uffd_register 0 8 missing; not madvise 0 1 populate_read; madvise 0 1 populate_read = EFAULT",
        "uffd_register 0 8 missing; not mlock 0 1; mlock 0 1 = ENOMEM",
        "mmap 80 20 rw shared|fixed memfd 0 = 80; uffd_register 80 20 missing; not read 97; read 97 = SIGBUS",
    ],
)
def test_missing(script: str) -> None:
    """What the file has not is missing, whatever the page table has; what it has in swap is not."""
    Memory().play(script)


@pytest.mark.parametrize(
    "script",
    [
        "uffd_register 0 8 minor; write 21 0; not read 1; read 1 = SIGBUS; not uffd_continue 1 1 none = EFAULT; "
        "uffd_continue 1 1 none = 1; not read 1 = SIGBUS; read 1; not uffd_continue 1 1 none = 1",
        "uffd_register 0 8 minor; read 1; not read 1 = SIGBUS; madvise 1 1 dontneed; not read 1; read 1 = SIGBUS",
        "uffd_register 0 8 minor; write 1 0; madvise 20 8 pageout; read 1 = SIGBUS; not read 1",
        "uffd_register 0 8 minor; not uffd_continue 1 1 none = 1; uffd_continue 1 1 none = EFAULT",
        "uffd_register 0 8 missing|minor; read 1 = SIGBUS; write 21 0; not write 1 0; write 1 0 = SIGBUS",
        "uffd_register 40 8 minor; write 1 0; not read 41; uffd_continue 41 1 none = 1; read 41; write 41 0; "
        "not uffd_continue 41 1 none = 1; uffd_continue 41 1 none = EEXIST",
        "uffd_register 0 8 minor|wp; write 21 0; uffd_continue 1 1 wp = 1; not write 1 0; read 1; write 1 0 = SIGBUS",
        "uffd_register 0 8 minor; not uffd_continue 1 1 wp = EFAULT; uffd_continue 1 1 wp = EINVAL",
        "uffd_register 60 8 wp; not uffd_continue 60 1 none = EEXIST; uffd_continue 60 1 none = EINVAL",
        "mmap 80 20 rw shared|fixed memfd 0 = 80; uffd_register 80 20 minor; not uffd_continue 97 1 none = EFAULT; "
        "uffd_continue 97 1 none = EINVAL",
    ],
)
def test_minor(script: str) -> None:
    """Minor is what the file has and the page table has not."""
    Memory().play(script)


@pytest.mark.parametrize(
    "script",
    [
        "uffd_register 0 8 missing; uffd_copy 0 60 2 none = 2; not read 0 = SIGBUS; read 20; not read 2",
        "uffd_register 0 8 missing; write 21 0; not uffd_copy 0 60 4 none = 4; uffd_copy 0 60 4 none = 1",
        "uffd_register 0 8 missing; write 21 0; not uffd_copy 1 60 1 none = 1; uffd_copy 1 60 1 none = EEXIST",
        "uffd_register 0 8 missing; not uffd_copy 1 21 1 none = 1; uffd_copy 1 21 1 none = EEXIST",
        "uffd_register 0 8 missing; not uffd_zeropage 0 8 = 1; uffd_zeropage 0 8 = 8; read 1; "
        "not uffd_zeropage 0 1 = 1",
        "uffd_register 40 8 missing; uffd_copy 40 60 1 none = 1; uffd_register 0 8 missing; not read 0; write 40 1",
        "uffd_register 40 8 missing; uffd_zeropage 40 2 = 2; write 0 0; not uffd_zeropage 40 1 = 1; read 40",
        "uffd_register 0 8 missing; uffd_poison 0 1 = 1; not read 0; uffd_zeropage 0 1 = 1; read 0",
        "uffd_register 0 8 missing; write 21 0; uffd_poison 1 1 = 1; not read 1; madvise 1 1 dontneed; read 1",
        "mmap 80 20 rw shared|fixed memfd 0 = 80; uffd_register 80 20 missing; not uffd_copy 97 60 1 none = 1; "
        "uffd_copy 97 60 1 none = EFAULT; uffd_zeropage 97 1 = EFAULT; uffd_poison 97 1 = EFAULT",
        "uffd_register 0 8 missing; not uffd_move 0 60 1 none = 1; uffd_move 0 60 1 none = EINVAL",
        "uffd_register 60 8 missing; not uffd_move 60 0 1 holes = 1; uffd_move 60 0 1 holes = EINVAL",
    ],
)
def test_fill(script: str) -> None:
    """A shared mapping's page goes into the file, which must not have it; a private one's is its own."""
    Memory().play(script)


@pytest.mark.parametrize(
    "script",
    [
        "uffd_register 0 8 wp; uffd_wp 0 2 wp; not write 0 0; read 1; write 1 0 = SIGBUS; uffd_wp 0 2 none; write 0 0",
        "write 0 0; uffd_register 0 8 wp; uffd_wp 0 2 wp; madvise 0 2 dontneed; not write 0 0; write 0 0 = SIGBUS",
        "write 0 0; uffd_register 0 8 wp; uffd_wp 0 2 wp; madvise 20 8 pageout; not write 0 0; write 0 0 = SIGBUS",
        "write 0 0; uffd_register 0 8 wp; uffd_wp 0 2 wp; madvise 20 8 remove; not write 0 0; write 0 0 = SIGBUS",
        "write 0 0; uffd_register 0 8 wp; uffd_wp 0 2 wp; uffd_unregister 0 8; not write 0 0 = SIGBUS; write 0 0",
        "write 40 0; uffd_register 40 8 wp; uffd_wp 40 1 wp; madvise 40 1 dontneed; not write 40 0; write 20 0",
        "uffd_register 0 8 wp; uffd_wp 0 2 wp; munmap 0 8; mmap 0 8 rw shared|fixed memfd 0 = 0; uffd_register 0 8 wp; "
        "not write 0 0 = SIGBUS; write 0 0",
        "uffd_register 0 8 wp; uffd_wp 0 2 wp; mlock 0 2; not write 0 0",
        "uffd_register 0 8 missing|wp; uffd_wp 0 2 wp; uffd_copy 0 60 1 none = 1; not write 0 0 = SIGBUS; write 0 0",
        "uffd_register 0 8 missing|wp; uffd_copy 0 60 1 wp = 1; not write 0 0; write 0 0 = SIGBUS; read 0",
    ],
)
def test_protection(script: str) -> None:
    """It stays with a file's page when that goes from the page table, or has not come there yet."""
    Memory().play(script)


def test_a_failure_leaves_it_open() -> None:
    """What a call was about may be in the file, or mapped, or not."""
    memory = Memory().play("uffd_register 0 8 missing; read 21")
    leave_open(memory.spec, text.from_text("world small8\nuffd_zeropage addr=0 len=2\n").steps[0].ops[0])
    assert has(memory.spec, (MEMFD, 0)) == (False, True)
    assert has(memory.spec, (MEMFD, 1)) == (False, True)
    assert memory.spec.userfaults[0].states[0] & MAYBE
    assert cell(Page(0, None, 0)) is None


# ---- broken machines


def nothing(*args: Any) -> int:
    return 0


def never_missing(original: Any, *args: Any, **named: Any) -> Any:
    return original(*args, **{**named, "vmf": None})


def taken_for_new(original: Any, fill: Any, pmd: Any, area: Any, mapping: Any, folio: Any) -> Any:
    mapping.pages.pop(area.vm_pgoff + (fill.addr - area.vm_start >> 12), None)
    return original(fill, pmd, area, mapping, folio)


def unprotected(original: Any, *args: Any) -> Any:
    return original(*args[:-1], False)


def never(*args: Any) -> bool:
    return False


def always(*args: Any) -> bool:
    return True


PAGES = "mmap addr=0 len=8 prot=rw flags=shared|fixed file=memfd\n"
BROKEN: dict[str, tuple[Callable[..., Any], str]] = {
    "userfaultfd_k.pte_install_uffd_wp_if_needed": (
        nothing,
        "write addr=0 at=0\nuffd_register addr=0 len=8 mode=wp\nuffd_wp addr=0 len=1 mode=wp\n"
        "madvise addr=0 len=1 advice=dontneed\nwrite addr=0 at=1\n",
    ),
    "shmem.shmem_get_folio": (never_missing, "uffd_register addr=0 len=8 mode=missing\nread addr=1\n"),
    "shmem_userfaultfd.add_and_map": (
        taken_for_new,
        "write addr=1 at=0\nuffd_register addr=0 len=8 mode=missing\nmadvise addr=1 len=1 advice=dontneed\n"
        "uffd_zeropage addr=1 len=1\n",
    ),
    "userfaultfd_fill.mfill_atomic_install_pte": (
        unprotected,
        "mmap addr=20 len=8 prot=rw flags=private|fixed\nuffd_register addr=0 len=8 mode=missing|wp\n"
        "uffd_copy dst=0 src=20 len=1 mode=wp\nwrite addr=0 at=0\n",
    ),
    "memory.vmf_orig_pte_uffd_wp": (
        never,
        "uffd_register addr=0 len=8 mode=wp\nuffd_wp addr=0 len=1 mode=wp\nread addr=0\nwrite addr=0 at=0\n",
    ),
    "userfaultfd_k.userfaultfd_minor": (
        never,
        "write addr=0 at=0\nuffd_register addr=0 len=8 mode=minor\nmadvise addr=0 len=1 advice=dontneed\nread addr=0\n",
    ),
    "userfaultfd_k.vma_is_shmem": (never, "uffd_register addr=0 len=8 mode=missing\n"),
    "userfaultfd_k.userfaultfd_wp_use_markers": (
        never,
        "uffd_register addr=0 len=8 mode=wp\nuffd_wp addr=0 len=1 mode=wp\nwrite addr=0 at=0\n",
    ),
    "userfaultfd_fill.mfill_file_over_size": (
        never,
        "mmap addr=20 len=20 prot=rw flags=shared|fixed file=memfd\nuffd_register addr=20 len=20 mode=missing\n"
        "uffd_poison addr=37 len=1\n",
    ),
    "userfaultfd_fill.mfill_atomic_pte_continue": (
        nothing,
        "uffd_register addr=0 len=8 mode=minor\nuffd_continue addr=0 len=1 mode=none\n",
    ),
    "shmem.shmem_acct_blocks": (
        always,
        "uffd_register addr=0 len=8 mode=missing\nuffd_zeropage addr=1 len=1\n",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_machine(name: str) -> None:
    """A machine that breaks one rule is found out; one that does not is not."""
    function, script = BROKEN[name]
    workload = text.from_text(f"world small8\n{PAGES}{script}")
    broken = KernelImage(Mainline)
    broken.attach(name, function)
    assert Judge(broken).run(workload).findings
    for design in (Mainline, MainlineFixed):
        assert Judge(KernelImage(design)).run(workload).findings == ()


def test_a_source_that_goes_while_it_is_waited_for() -> None:
    """The destination has been looked at, the source is faulted in without the lock, and both are unmapped by then."""
    script = (
        "write addr=0 at=0\nuffd_register addr=0 len=8 mode=missing\nmadvise addr=0 len=8 advice=pageout\n"
        "together\n  uffd_copy dst=1 src=0 len=1 mode=none\n  munmap addr=0 len=2\n"
        "  schedule 0 until uffd.source_missing, 1 until end\nend\n"
    )
    verdict = Judge(KernelImage(MainlineFixed)).run(text.from_text(f"world small8\n{PAGES}{script}"))
    assert verdict.findings == ()
    assert [outcome.ret for outcome in verdict.outcomes[-1]] == [-EFAULT, 0]


def test_a_fault_brings_the_file_its_page_before_the_page_table() -> None:
    """Whoever looks in between meets a minor fault, though the page was nowhere before."""
    script = (
        "mmap addr=40 len=1 prot=rw flags=private|fixed file=memfd\nuffd_register addr=40 len=1 mode=minor\n"
        "together\n  write addr=40 at=0\n  read addr=40\n  schedule 1 until fault.pte_locked\nend\nread addr=40\n"
    )
    verdict = Judge(KernelImage(MainlineFixed)).run(text.from_text(f"world small8\n{script}"))
    assert verdict.findings == ()
    assert [outcome.ret for outcome in verdict.outcomes[2]] == [SIGBUS, 0]


@pytest.mark.parametrize("schedule", ["0 until uffd.in_page_cache, 1 until end", "0 until fault.end, 1 until end", ""])
@pytest.mark.parametrize(
    "ops",
    [
        ("uffd_copy dst=0 src=20 len=2 mode=none", "p1: write addr=0 at=1"),
        ("p1: write addr=0 at=1", "write addr=0 at=2"),
        ("p1: write addr=0 at=1", "uffd_zeropage addr=0 len=1"),
        ("uffd_zeropage addr=0 len=2", "madvise addr=0 len=8 advice=remove"),
        ("uffd_continue addr=0 len=1 mode=none", "p1: madvise addr=0 len=8 advice=pageout"),
        ("uffd_wp addr=0 len=2 mode=wp", "p1: madvise addr=0 len=8 advice=remove"),
        ("read addr=1", "p1: read addr=1"),
    ],
)
def test_collisions(ops: tuple[str, str], schedule: str) -> None:
    """Whatever comes first, some order explains it."""
    together = "together\n" + "".join(f"  {op}\n" for op in ops)
    together += f"  schedule {schedule}\nend\n" if schedule else "end\n"
    script = (
        "mmap addr=20 len=8 prot=rw flags=private|fixed\nwrite addr=20 at=0\n"
        "uffd_register addr=0 len=8 mode=missing|wp\nfork child=1\n"
    )
    after = "read addr=0\nwrite addr=0 at=3\np1: read addr=0\nread addr=1\n"
    workload = text.from_text(f"world small8\n{PAGES}{script}{together}{after}")
    assert Judge(KernelImage(MainlineFixed)).run(workload).findings == ()
