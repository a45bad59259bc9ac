"""The kernel's guard-region tests (selftests/mm/guard-regions.c) as a table: anonymous memory, and shared files.

Files are on a disk or in memory.

The notation is that of ``guard_script``. What the machine is asked for, a running Linux is asked for too.
"""

from __future__ import annotations

from typing import Final

import pytest

from tests.emulator.guard_script import ANON, FILE, SHMEM, GuardScript

pytestmark = pytest.mark.live

ROWS: Final = [
    (
        "basic",
        """map 10; guard 0; guard 9; guard 5; trap 0; trap 9; trap 5; touch 1; guard 0:10; trap 3
           unguard 0:10; touch 0:10""",
    ),
    (
        "multi_vma",
        """map 10; munmap 2; munmap 5; munmap 8; protect 4 ro; guard 0:10 = ENOMEM; trap 0; trap 3
           trap 9; unguard 0:10 = ENOMEM; read 3""",
    ),
    ("munmap", "map 10; guard 0; guard 9; munmap 0; munmap 9; map 10; touch 0:10"),
    (
        "mprotect",
        """map 10; guard 5:2; protect 0:10 ro; trap 5; trap 6; protect 0:10 rw; trap 5; touch 4
           unguard 0:10; touch 0:10""",
    ),
    (
        "split_merge",
        """map 10; guard 0:10; munmap 2; munmap 5; munmap 8; fill 2; fill 5; fill 8
           trap 0; touch 2; trap 3; touch 5; trap 7; touch 8; guard 0:10; trap 0:10; vmas 1
           protect 0:3 ro; protect 7:3 ro; protect 0:3 rw; protect 7:3 rw; trap 0:10; vmas 1
           unguard 0:10; touch 0:10""",
    ),
    (
        "dontneed",
        """map 10; W 0:10; guard 0; guard 2; guard 4; advise 0:10 dontneed; trap 0; trap 2; trap 4
           empty 1; empty 3; empty 9""",
    ),
    (
        "mlock",
        """map 10; W 0:10; mlock 0:10; guard 0:10 = EINVAL; keep 0; munlock 0:5; guard 0:5; mlock 5:5
           trap 0:5; keep 5; unguard 0:10; empty 0; keep 9""",
    ),
    ("mremap_move", "map 5; guard 0; guard 4; move 0:5 20; trap 20; trap 24; touch 21:3"),
    (
        "mremap_expand",
        """map 5; guard 0; guard 4; grow 0:5 10; trap 0; trap 4; touch 5:5; grow 0:10 20 40; trap 40
           trap 44; touch 45:15""",
    ),
    ("mremap_shrink", "map 5; guard 0; guard 4; grow 0:5 3; trap 0; touch 1:2; grow 0:3 5; trap 0; touch 3:2"),
    ("fork", "map 10; guard 0:5; fork; child; trap 0:5; touch 5:5; unguard 0:10; touch 0:10; parent; trap 0:5"),
    (
        "fork_cow",
        """map 10; W 0:10; guard 0:5; fork; child; trap 0:5; keep 5; unguard 0:10; empty 0:5; parent
           trap 0:5; keep 5:5""",
    ),
    (
        "cold_pageout",
        """map 10; W 0:10; guard 0:5; advise 0:10 cold; trap 0:5; advise 0:10 pageout; trap 0:5; keep 5:5""",
    ),
    (
        "madvise_sequential",
        """map 10; guard 0:10; advise 0:10 sequential; trap 0:10; advise 0:10 normal; trap 0:10
           unguard 0:10; touch 0:10""",
    ),
    (
        "smaps",
        """map 10; flag no; guard 0:10; flag yes; unguard 0:10; flag yes; munmap 4; flag yes; flag5 yes
           fill 4; vmas 1; flag yes""",
    ),
    (
        "populate",
        """map 10; guard 0:10; advise 0:10 populate_read = EFAULT; advise 0:10 populate_write = EFAULT
           trap 0:10""",
    ),
    (
        "fault_around",
        """map 10; guard 0; guard 2; guard 4; guard 6; guard 8; touch 1; touch 3; trap 0; trap 2; touch 9
           trap 8""",
    ),
]  # fmt: skip
ROWS.append(
    (
        "process_madvise",  # the kernel's has three ranges in as many mappings
        """map 20; munmap 8:2; munmap 14:2; W 0:8; both guard 0:2 10:2; trap 0:2; keep 2:6; trap 10:2; touch 12:2
           both unguard 0:2 10:2; touch 0:8; touch 10:4; both guard 4:2 16:4; trap 4:2; trap 16:4""",
    )
)
OF_ANONYMOUS: Final = [
    ("fork_wipeonfork", "map 10; guard 0:5; advise 0:10 wipeonfork; fork; child; touch 0:10; parent; trap 0:5"),
    ("lazyfree", "map 10; W 0:10; guard 0:10; advise 0:10 free; trap 0:10"),
    ("anon_zeropage", "map 10; guard 0; guard 2; read 1; read 3; trap 0; trap 2"),
    ("collapse", "map 512; guard_every_second 512; advise 0:512 collapse = EINVAL; trap 0; touch 1; trap 510"),
]
OF_MEMORY: Final = [
    ("uffd", "map 10; register 0:10; missing 3; guard 0:10; trap 0:10; unguard 0:10; missing 0:10"),
]
OF_FILES: Final = [
    (
        "hole_punch",
        """map 10; W 0:10; guard 3:4; keep 0:3; trap 3:4; keep 7:3; advise 3:4 remove; keep 0:3; trap 3:4
           keep 7:3; unguard 0:10; keep 0:3; zeros 3:4; keep 7:3""",
    ),
    ("map_private", "private 10; guard 0; guard 2; W 5; trap 0; trap 2; keep 5; unguard 0:10; touch 0:10"),
    (
        "readonly_file",
        """readonly 10; guard 0; guard 5; trap_read 0; trap_read 5; read 1; unguard 0:10; read 0; read 5""",
    ),
]


@pytest.mark.parametrize(
    ("kind", "script"),
    [
        pytest.param(kind, script, id=f"{kind}-{name}")
        for kind, rows in (
            (ANON, ROWS + OF_ANONYMOUS + OF_MEMORY),
            (FILE, ROWS + OF_FILES),
            (SHMEM, ROWS + OF_FILES + OF_MEMORY),
        )
        for name, script in rows
    ],
)
def test_guard_regions(kind: str, script: str) -> None:
    """Guards fault, and stay where they are put until they are removed."""
    GuardScript(kind).run(script)
