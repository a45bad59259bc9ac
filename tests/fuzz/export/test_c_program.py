"""The exported program: what it says of a difference, when it cannot run, what cannot be exported."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Final

import pytest

from emulator.errors import UsageError
from fuzz.export.expectation import expect
from fuzz.workload import text
from oracle.live.expressible import has_vma_names
from tests.fuzz.export.programs import COMPILERS, PROFILE, build, compiled, program, run

MOVED: Final = """\
world small8
mmap     addr=4 len=8 prot=rw flags=private|fixed
write    addr=5 at=1
mremap   addr=4 old_len=2 new_len=2 flags=maymove|fixed new_addr=20
read     addr=21
read     addr=4
munmap   addr=4 len=0
"""

# Everything that a program can contain.
ALL: Final = """\
world small8
mmap     addr=4 len=8 prot=rw flags=private|fixed
write    addr=5 at=0
mmap     addr=20 len=4 prot=r flags=shared|fixed file=file0 off=14
mmap     addr=30 len=2 prot=w flags=private|fixed file=file1
write    addr=31 at=3
read     addr=20
read     addr=22
fork     child=1
p1: write    addr=5 at=1
read     addr=5
mremap   addr=4 old_len=2 new_len=3 flags=maymove
mmap     addr=5 len=2 prot=rw flags=private
mprotect addr=20 len=4 prot=x
exec     addr=21
exec     addr=22
exec     addr=7
madvise  addr=4 len=1 advice=pageout
madvise  addr=7 len=1 advice=hugepage
p1: fork     child=2
p1: munmap   addr=0 len=192
p1: exit
fork     child=2
p2: read     addr=5
p1: read     addr=5
exit
p2: munmap   addr=5 len=1
"""


# Each call of userfaultfd, with a child, which is without.
USERFAULTFD: Final = """\
world small8
userfaultfd features=wp_unpopulated
userfaultfd features=none
mmap     addr=0 len=8 prot=rw flags=private|fixed
mmap     addr=20 len=8 prot=rw flags=private|fixed
write    addr=20 at=0
write    addr=21 at=1
uffd_register addr=0 len=8 mode=missing|wp
read     addr=0
uffd_copy dst=0 src=20 len=2 mode=wp
write    addr=0 at=2
uffd_copy dst=1 src=20 len=1 mode=none
uffd_wp  addr=0 len=1 mode=none
write    addr=0 at=2
uffd_zeropage addr=2 len=2
uffd_move dst=4 src=20 len=3 mode=none
uffd_move dst=4 src=24 len=1 mode=holes
uffd_move dst=5 src=24 len=1 mode=none
uffd_poison addr=6 len=1
read     addr=6
fork     child=1
p1: read     addr=7
p1: uffd_close
read     addr=7
uffd_unregister addr=0 len=1
uffd_close
uffd_close
"""

# What calls say about mappings, and the heap. The running kernel may know no names: see NAMES.
ATTRIBUTES: Final = """\
world small8
brk      addr=99
write    addr=98 at=0
fork     child=1
p1: brk      addr=97
p1: read     addr=98
brk      addr=90
mmap     addr=4 len=8 prot=rw flags=private|fixed
mbind    addr=4 len=2 policy=bind
mbind    addr=6 len=2 policy=interleave
mbind    addr=8 len=2 policy=preferred
mbind    addr=4 len=8 policy=default
memory_merge on=1
memory_merge on=0
madvise  addr=4 len=2 advice=mergeable
pkey_mprotect addr=4 len=1 prot=r pkey=none
pkey_mprotect addr=4 len=1 prot=r pkey=0
pkey_mprotect addr=4 len=1 prot=r pkey=1
mmap     addr=20 len=4 prot=rw flags=shared|fixed file=file0
remap_file_pages addr=21 len=1 off=9
remap_file_pages addr=5 len=1 off=9
read     addr=21
mmap     addr=30 len=4 prot=rw flags=droppable|fixed
fill     addr=30 pattern=1
fill     addr=30 pattern=0
madvise  addr=31 len=1 advice=guard_install
write    addr=31 at=0
madvise  addr=31 len=1 advice=guard_remove
mmap     addr=40 len=4 prot=rw flags=private|fixed|noreserve|stack|populate
madvise  addr=40 len=4 advice=collapse
mseal    addr=40 len=2
munmap   addr=41 len=1
mseal    addr=40 len=9
"""

NAMES: Final = """\
world small8
mmap     addr=4 len=8 prot=rw flags=private|fixed
set_vma_name addr=4 len=2 name=heap
set_vma_name addr=5 len=1 name=none
set_vma_name addr=5 len=9 name=stack
"""

LOCKS: Final = """\
world small8
mmap     addr=4 len=8 prot=rw flags=private|fixed
mlock    addr=4 len=2
mlock2   addr=6 len=2 flags=onfault
munlock  addr=4 len=1
mlockall flags=current|onfault
mlockall flags=future
mmap     addr=12 len=8 prot=rw flags=private|fixed
munlockall
mmap     addr=20 len=8 prot=rw flags=private|fixed|locked
"""


def test_snapshot() -> None:
    """A small program in full: what changes here, people see. To renew it, write ``program(MOVED)`` there."""
    assert program(MOVED) == (Path(__file__).parent / "moved.c").read_text()


def test_the_program_carries_its_workload() -> None:
    """The lines that the comment's ``sed`` takes out are the workload, to the letter."""
    source = program(ALL)
    lines = re.findall(r"^ \*   \| (.*)$", source, re.MULTILINE)
    assert text.from_text("\n".join(lines)) == text.from_text(ALL)
    assert "sed -n 's/^ \\*   | //p' test.c | vmafuzz assemble - -o test.msgpack" in source


def test_real_page_tables() -> None:
    """A huge page of the small world is eight pages, and makes its VMA faulted at a read. On the kernel that runs the
    program it is not one: the VMA is still unfaulted, and merges where it is moved to."""
    workload = text.from_text(
        """\
        world small8
        mmap     addr=8 len=9 prot=rw flags=private|fixed
        mmap     addr=40 len=9 prot=rw flags=private|fixed
        madvise  addr=8 len=9 advice=hugepage
        madvise  addr=40 len=9 advice=hugepage
        read     addr=8
        mremap   addr=8 old_len=9 new_len=9 flags=maymove|fixed new_addr=49
        """
    )
    (last,) = expect(workload, PROFILE).steps[-1].layouts[0]
    assert (last.start, last.end) == (40, 58)


def test_a_place_that_the_kernel_chooses() -> None:
    """Elsewhere the kernel chooses another place: the program asks for the expected one, and says so. A hint that is
    taken stays one."""
    lines = "world small4\nmmap addr=4 len=2 prot=rw flags=private\nmmap addr=5 len=2 prot=r flags=private\n"
    source = " ".join(program(lines).split())
    assert "mmap(at(4), 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), 4)" in source
    assert "mmap(at(94), 2 * PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE" in source
    assert source.count("the kernel chooses where") == 1


# ---- what is wrong is said

# workload, what is made wrong in the program's text, and what the program then says
WRONG: Final = {
    "result": (
        MOVED,
        ("at(20)), 20);", "at(20)), 21);"),
        "step 2: mremap   addr=4 old_len=2 new_len=2 flags=maymove|fixed new_addr=20\n"
        "  result expected: page 21\n  result got:      page 20\n",
    ),
    "errno": (
        MOVED,
        ("munmap(at(4), 0), -EINVAL)", "munmap(at(4), 0), -ENOMEM)"),
        "step 5: munmap   addr=4 len=0\n  result expected: -ENOMEM\n  result got:      -EINVAL\n",
    ),
    "success": (
        MOVED,
        ("munmap(at(4), 0), -EINVAL)", "munmap(at(4), PAGE), -EINVAL)"),
        "step 5: munmap   addr=4 len=0\n  result expected: -EINVAL\n  result got:      0\n",
    ),
    "signal": (
        MOVED,
        ("load(4), SIGNALLED(SIGSEGV)", "load(4), 0"),
        "step 4: read     addr=4\n  result expected: 0\n  result got:      SIGSEGV\n",
    ),
    "contents": (
        MOVED,
        ("expect_words(load(21), 0, 5, 0, 0);\n\n", "expect_words(load(21), 0, 7, 0, 0);\n\n"),
        "step 3: read     addr=21\n  contents expected: 0x7 at byte 1024\n  contents got:      0x5\n",
    ),
    "not zeros": (
        MOVED,
        (
            "expect_words(load(21), 0, 5, 0, 0);\n\n",
            "*(char *)at(21) = 1;\n\texpect_words(load(21), 0, 5, 0, 0);\n\n",
        ),
        "step 3: read     addr=21\n  contents expected: 0 at byte 0\n  contents got:      0x1\n",
    ),
    "contents at the end": (
        MOVED,
        ("expect_words(load(21), 0, 5, 0, 0);\n}", "expect_words(load(21), 9, 5, 0, 0);\n}"),
        "step 6: (the end)\n  contents expected: 0x9 at byte 0\n  contents got:      0\n",
    ),
    "layout": (
        MOVED,
        ('"6-12 rw-p, 20-22 rw-p"', '"6-10 rw-p, 10-12 rw-p, 20-22 rw-p"'),
        "step 2: mremap   addr=4 old_len=2 new_len=2 flags=maymove|fixed new_addr=20\n"
        "  layout expected: 6-10 rw-p, 10-12 rw-p, 20-22 rw-p\n  layout got:      6-12 rw-p, 20-22 rw-p\n",
    ),
    "layout at the end": (
        MOVED,
        ("load(21), 0, 5, 0, 0);\n}", "load(21), 0, 5, 0, 0);\n\tmunmap(at(6), PAGE);\n}"),
        "step 6: (the end)\n  layout expected: 6-12 rw-p, 20-22 rw-p\n  layout got:      7-12 rw-p, 20-22 rw-p\n",
    ),
    "file offset": (
        ALL,
        ("r--s file0+14", "r--s file0+13"),
        "step 2: mmap     addr=20 len=4 prot=r flags=shared|fixed file=file0 off=14\n"
        "  layout of process 0 expected: 4-12 rw-p, 20-24 r--s file0+13\n"
        "  layout of process 0 got:      4-12 rw-p, 20-24 r--s file0+14\n",
    ),
    "a child": (
        ALL,
        ("store(5, 1, 33), 0)", "store(5, 1, 33), SIGNALLED(SIGBUS))"),
        "step 8: p1: write    addr=5 at=1\n"
        "  result of process 1 expected: SIGBUS\n  result of process 1 got:      0\n",
    ),
    "another process": (
        ALL,
        (
            "expect(store(5, 1, 33), 0);",
            "expect(store(5, 1, 33), 0);\n\tif (me == 0)\n\t\tmunmap(at(4), PAGE);",
        ),
        "step 8: p1: write    addr=5 at=1\n"
        "  layout of process 0 expected: 4-12 rw-p, 20-24 r--s file0+14, 30-32 -w-p file1+0\n"
        "  layout of process 0 got:      5-12 rw-p, 20-24 r--s file0+14, 30-32 -w-p file1+0\n",
    ),
    "killed": (
        ALL,
        ("expect(store(5, 1, 33), 0);", "raise(SIGKILL);"),
        "step 8: a process is ended by signal 9\n",
    ),
    "an access that no step makes": (
        ALL,
        ("expect(store(5, 1, 33), 0);", "*(volatile char *)at(0) = 1;"),
        "step 8: a process is ended by signal 11\n",
    ),
    "hangs": (
        MOVED.replace("munmap", "madvise").replace("len=0", "len=0 advice=dontneed"),
        ("expect(madvise(", "alarm(1);\n\twhile (getpid())\n\t\t;\n\texpect(madvise("),
        "step 5: madvise  addr=4 len=0 advice=dontneed\n  does not come to an end\n",
    ),
    "a child hangs": (
        ALL,
        ("expect(store(5, 1, 33), 0);", "alarm(1), pause();"),
        "step 8: p1: write    addr=5 at=1\n  does not come to an end\n",
    ),
}


@compiled
@pytest.mark.parametrize("name", WRONG)
def test_a_difference(name: str, tmp_path: Path) -> None:
    """Said once, in these words, status 1; no process is left waiting."""
    workload, (right, wrong), message = WRONG[name]
    source = program(workload)
    assert right in source
    assert run(build(source.replace(right, wrong, 1), tmp_path)) == (1, message, "")


# ---- when it cannot run


@compiled
@pytest.mark.parametrize("page", [0, 100, 383])
def test_an_arena_that_is_occupied(page: int, tmp_path: Path) -> None:
    """Something is there before the test begins: status 2, and it is left alone."""
    there = f"mmap(at({page}), PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);"
    source = program(MOVED).replace("\tprepare();", f"\t{there}\n\tprepare();")
    assert run(build(source, tmp_path)) == (2, "", "cannot run: something is mapped in the arena\n")


@compiled
def test_no_place_for_files(tmp_path: Path) -> None:
    """The message says what helps."""
    place = build(program(ALL), tmp_path)
    expected = "cannot run: no temporary file can be made; set TMPDIR\n"
    assert run(place, TMPDIR=str(tmp_path / "none")) == (2, "", expected)


@compiled
def test_no_more_processes(tmp_path: Path) -> None:
    """A fork that fails in the middle is no difference."""
    forked = "pid = fork();\n\tif (pid < 0) {\n\t\tset_done"  # not the first fork, of process 0
    source = program(ALL).replace(forked, forked.replace("fork()", "-1"))
    assert run(build(source, tmp_path)) == (2, "", "cannot run: fork fails\n")


@compiled
def test_huge_pages(tmp_path: Path) -> None:
    """Where areas are large enough for a huge page, what is expected holds for one setting of the kernel only."""
    lines = """\
        world x86-64
        mmap     addr=100 len=2048 prot=rw flags=private|fixed
        madvise  addr=100 len=2048 advice=hugepage
        read     addr=600
        mremap   addr=100 old_len=2048 new_len=2048 flags=maymove|fixed new_addr=4096
        """
    setting = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    there = setting.exists() and "[madvise]" in setting.read_text()
    needed = "/sys/kernel/mm/transparent_hugepage/enabled is not madvise"
    expected = (0, "") if there else (2, f"cannot run: {needed}\n")
    status, _, err = run(build(program(lines), tmp_path))
    assert (status, err) == expected


@compiled
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be somebody else")
def test_no_privileges() -> None:
    """Nobody can run it, and nothing is left in the folder for temporary files."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o777)
        place = build(program(ALL), Path(folder))
        done = subprocess.run([place], user=65534, group=65534, env={"TMPDIR": folder}, check=False)
        assert done.returncode == 0
        assert sorted(os.listdir(folder)) == ["test", "test.c"]


@compiled
@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize("level", ["-O0", "-O2"])
@pytest.mark.parametrize("workload", [MOVED, ALL, USERFAULTFD, ATTRIBUTES, "world small8\nread addr=0\n"])
def test_no_warnings(workload: str, compiler: str, level: str, tmp_path: Path) -> None:
    """Any compiler, any level, and the program still says the same."""
    assert run(build(program(workload), tmp_path, level, compiler=compiler)).status == 0


@compiled
def test_names(tmp_path: Path) -> None:
    """A kernel that is built without names of memory is not a kernel that does it wrong."""
    lacking = "cannot run: this kernel has no names for memory (CONFIG_ANON_VMA_NAME)\n"
    status, _, err = run(build(program(NAMES), tmp_path))
    assert (status, err) == ((0, "") if has_vma_names() else (2, lacking))


@compiled
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to have CAP_IPC_LOCK and to be somebody else")
def test_locks() -> None:
    """What is expected of locks is what they do without a limit; whoever has one is told so."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        place = build(program(LOCKS), Path(folder))
        assert run(place).status == 0
        done = subprocess.run([place], user=65534, group=65534, capture_output=True, text=True, check=False)
    needed = "the results are those of a process that may lock what it wants (CAP_IPC_LOCK)"
    assert (done.returncode, done.stderr) == (2, f"cannot run: {needed}\n")


@compiled
@pytest.mark.parametrize(
    "op",
    [
        *("uffd_close", "uffd_unregister addr=1 len=1", "brk addr=99", "mbind addr=1 len=1 policy=bind"),
        *("mseal addr=1 len=1", "memory_merge on=1", "remap_file_pages addr=1 len=1 off=1"),
        *("pkey_mprotect addr=1 len=1 prot=r pkey=1", "munlockall", "exec addr=1", "fill addr=1 pattern=1"),
    ],
)
def test_alone(op: str, tmp_path: Path) -> None:
    """A program has what its calls need and nothing else, which a compiler would warn of."""
    assert run(build(program(f"world small8\n{op}\n"), tmp_path)).status == 0


# ---- what cannot be exported


@pytest.mark.parametrize(
    ("steps", "reason"),
    [
        ("munmap addr=1 len=1 (fail_nth 2)", "step 0: an allocation that fails (fail_nth)"),
        ("gup_fast addr=1 flags=pin pin=0", "step 0: gup_fast, which only the kernel does"),
        (
            "read addr=1\nmigrate addr=1\nreclaim addr=1",
            "step 1: migrate, which only the kernel does; step 2: recl",
        ),
        ("together\nread addr=1\nmunmap addr=1 len=1\nend", "step 0: a collision"),
        (
            "mremap addr=1 old_len=1 new_len=1 flags=maymove|relocate",
            "step 0: mremap flags that mainline does not",
        ),
        ("userfaultfd features=event_fork", "step 0: a userfaultfd with events, which somebody has to read"),
    ],
)
def test_inexpressible(steps: str, reason: str) -> None:
    """Named with the step, all of them in one line."""
    with pytest.raises(UsageError, match=re.escape(f"no program can do this by itself: {reason}")):
        program(f"world small8\n{steps}\n")


def test_nothing_to_do() -> None:
    """Such a program would only say that all is well."""
    with pytest.raises(UsageError, match="the workload does nothing"):
        program("world small8\np1: read addr=0\n")


def test_outside_of_the_arena() -> None:
    """A mapping that the kernel places below the arena cannot be compared."""
    with pytest.raises(UsageError, match="step 1: mmap maps memory outside of the arena"):
        program(
            "world small8\nmmap addr=0 len=192 prot=r flags=private|fixed\nmmap addr=0 len=2 prot=r flags=private"
        )


def test_the_example_of_the_documentation() -> None:
    """What docs/export.md shows is what its workload gives."""
    page = (Path(__file__).parents[3] / "docs" / "export.md").read_text()
    found = re.search(r"^(world .*?)^\$ .*?^```c\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert found is not None
    assert found[2] in program(found[1])
