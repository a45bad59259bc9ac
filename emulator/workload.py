"""What a machine can be asked to do: operations, collisions, workloads.

A workload is a list of steps. A step is one operation, or a *collision*: two or three operations that run at
the same time under a schedule. Addresses and lengths are pages of a small arena, so that operations meet.
A process, a pin or a reference is named by the small number that the operation which makes it carries.

Everything else that reads or writes workloads (wire form, text form, generator, mutator) is driven by the
``OPS`` table below.
"""

from __future__ import annotations

from enum import Enum
from typing import Final, NamedTuple

PROCS_MAX: Final = 4  # process labels 0 (the first process) to 3
PINS_MAX: Final = 8  # pin labels 0 to 7
FILES_MAX: Final = 3  # file labels 0 to 2
MEMFD: Final = 2  # the label of the file that is one of memory; those before it are files on a disk
SHARED_MEMORY: Final = 1 << 16  # with a token: the label of the file behind shared anonymous memory
FILE_PAGES: Final = 16  # every file's size
OFFSETS_MAX: Final = 4  # sub-page write offsets
COLLISION_OPS_MAX: Final = 3
PATTERNS_MAX: Final = 3  # what ``fill`` can store; 0 is zeros
SCAN_MAX: Final = 16
THP_ORDERS: Final = 0x1FC  # orders of large folios that faults may bring, a bit each: 4 to 256 pages
MAPS_MAX: Final = 64  # mappings that ``max_map_count`` may leave a process
SCHEDULE_MAX: Final = 8  # switches
STEPS_MAX: Final = 64


class Domain(Enum):
    """What values an argument may take, and how text shows it."""

    PAGE = "page"  # arena page, 0 … arena_pages-1
    LENGTH = "length"  # pages, 0 … arena_pages
    PROT = "prot"  # PROT_* bits
    MAP_FLAGS = "map_flags"  # MAP_* bits
    MREMAP_FLAGS = "mremap_flags"  # MREMAP_* bits
    ADVICE = "advice"  # MADV_* number
    TARGET = "target"  # label of a process, 0 … PROCS_MAX - 1, that need not live
    PROCESS_ADVICE = "process_advice"  # MADV_* number
    FILE = "file"  # 0 = anonymous, n = file n-1
    FILE_OFFSET = "file_offset"  # pages
    OFFSET = "offset"  # sub-page write offset, 0 … 3
    NEW_PROC = "new_proc"  # label of a process this op makes
    NEW_PIN = "new_pin"  # label of a pin or reference this op makes
    PIN = "pin"  # label of an existing one
    GUP_FLAGS = "gup_flags"  # GUP_* bits
    MLOCK2_FLAGS = "mlock2_flags"  # MLOCK_* bits, and one that does not exist
    MCL_FLAGS = "mcl_flags"  # MCL_* bits
    VMA_NAME = "vma_name"  # 0: none, n: VMA_NAMES[n - 1]
    POLICY = "policy"  # a number of POLICIES
    PKEY = "pkey"  # 0: none, n: protection key n-1
    SWITCH = "switch"  # 0 or 1
    UFFD_FEATURES = "uffd_features"  # UFFD_FEATURE_* bits beside those that every context has
    UFFD_REGISTER_MODE = "uffd_register_mode"  # UFFDIO_REGISTER_MODE_* bits
    UFFD_COPY_MODE = "uffd_copy_mode"  # UFFDIO_COPY_MODE_* bits
    UFFD_WP_MODE = "uffd_wp_mode"  # UFFDIO_WRITEPROTECT_MODE_WP or 0
    UFFD_MOVE_MODE = "uffd_move_mode"  # UFFDIO_MOVE_MODE_* bits
    PATTERN = "pattern"  # what ``fill`` stores, 0 … PATTERNS_MAX - 1
    RESOURCE = "resource"  # a number of RESOURCES
    LIMIT = "limit"  # pages, 0 … arena_pages
    MAPS = "maps"  # mappings, 0 … MAPS_MAX
    OVERCOMMIT = "overcommit"  # a number of OVERCOMMIT
    THP_ORDERS = "thp_orders"  # bits of THP_ORDERS
    SCAN = "scan"  # pages for a scanner to look at, 0 … SCAN_MAX


# get_user_pages flags (include/linux/mm_types.h FOLL_*), as far as the model tells them apart.
FOLL_WRITE: Final = 1
FOLL_PIN: Final = 2  # absent: FOLL_GET, an ordinary reference
FOLL_LONGTERM: Final = 4

# SHARED PRIVATE DROPPABLE FIXED GROWSDOWN LOCKED NORESERVE POPULATE STACK NOREPLACE
MAP_FLAGS_ALLOWED: Final = 0x01 | 0x02 | 0x08 | 0x10 | 0x100 | 0x2000 | 0x4000 | 0x8000 | 0x20000 | 0x100000
UFFD_FEATURES_ALLOWED: Final = 1 << 1 | 1 << 2 | 1 << 13  # EVENT_FORK EVENT_REMAP WP_UNPOPULATED
# All advice of madvise(2) about memory and files.
ADVICE_ALLOWED: Final = (
    0, 1, 2, 3, 4, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 102, 103
)  # fmt: skip


# Of it, that process_madvise is used for: hints, and what is worth several ranges.
PROCESS_ADVICE_ALLOWED: Final = (3, 4, 20, 21, 25, 102, 103)

VMA_NAMES: Final = ("stack", "heap")
RLIMIT_AS: Final = 0
RLIMIT_DATA: Final = 1
RLIMIT_STACK: Final = 2
RLIMIT_MEMLOCK: Final = 3
OVERCOMMIT: Final = ("guess", "always", "never")  # by the kernel's numbers
RESOURCES: Final = ("as", "data", "stack", "memlock")  # by these numbers, which are our own
POLICIES: Final = ("default", "bind", "interleave", "preferred")  # of memory, all about node 0


class OpSpec(NamedTuple):
    """One kind of operation: its arguments in order, and the preemption points that it can pass."""

    code: int  # stable number on the wire; never reused
    args: tuple[tuple[str, Domain], ...]
    doc: str


OPS: Final[dict[str, OpSpec]] = {
    "mmap": OpSpec(
        1,
        (
            ("addr", Domain.PAGE),
            ("len", Domain.LENGTH),
            ("prot", Domain.PROT),
            ("flags", Domain.MAP_FLAGS),
            ("file", Domain.FILE),
            ("off", Domain.FILE_OFFSET),
        ),
        "map memory; file 0 is anonymous. Without FIXED the kernel chooses, addr being a hint",
    ),
    "munmap": OpSpec(2, (("addr", Domain.PAGE), ("len", Domain.LENGTH)), "unmap"),
    "mremap": OpSpec(
        3,
        (
            ("addr", Domain.PAGE),
            ("old_len", Domain.LENGTH),
            ("new_len", Domain.LENGTH),
            ("flags", Domain.MREMAP_FLAGS),
            ("new_addr", Domain.PAGE),
        ),
        "shrink, grow, move; new_addr counts with FIXED or DONTUNMAP",
    ),
    "mprotect": OpSpec(
        4, (("addr", Domain.PAGE), ("len", Domain.LENGTH), ("prot", Domain.PROT)), "change permissions"
    ),
    "madvise": OpSpec(
        5, (("addr", Domain.PAGE), ("len", Domain.LENGTH), ("advice", Domain.ADVICE)), "advise"
    ),
    "fork": OpSpec(6, (("child", Domain.NEW_PROC),), "make a child process under that label"),
    "exit": OpSpec(7, (), "end the process; its mappings go"),
    "read": OpSpec(8, (("addr", Domain.PAGE),), "load from the page; the result is its contents"),
    "write": OpSpec(
        9,
        (("addr", Domain.PAGE), ("at", Domain.OFFSET)),
        "store a token that is unique in the workload at one of four places in the page",
    ),
    "exec": OpSpec(10, (("addr", Domain.PAGE),), "fetch an instruction from the page"),
    "gup_fast": OpSpec(
        11,
        (("addr", Domain.PAGE), ("flags", Domain.GUP_FLAGS), ("pin", Domain.NEW_PIN)),
        "take a page without locks, falling back to the slow path",
    ),
    "gup_slow": OpSpec(
        12,
        (("addr", Domain.PAGE), ("flags", Domain.GUP_FLAGS), ("pin", Domain.NEW_PIN)),
        "take a page under the mmap lock",
    ),
    "unpin": OpSpec(13, (("pin", Domain.PIN),), "give a pin or reference back, dirtying if it was for write"),
    "pin_write": OpSpec(
        14, (("pin", Domain.PIN), ("at", Domain.OFFSET)), "store through a pin, as a device would"
    ),
    "reclaim": OpSpec(15, (("addr", Domain.PAGE),), "kernel: try to reclaim the folio mapped there"),
    "swap_readahead": OpSpec(
        16, (("addr", Domain.PAGE),), "kernel: bring the swap entry's page into the swap cache, unmapped"
    ),
    "fill": OpSpec(
        81,
        (("addr", Domain.PAGE), ("pattern", Domain.PATTERN)),
        "store one of a few patterns all over the page, so that pages may have the same contents",
    ),
    "setrlimit": OpSpec(
        59,
        (("resource", Domain.RESOURCE), ("pages", Domain.LIMIT)),
        "limit the process and its children to come; address space and data count from what a process has before it "
        "maps anything, and who limits locked memory gives CAP_IPC_LOCK up",
    ),
    "thp_sizes": OpSpec(
        58,
        (("sizes", Domain.THP_ORDERS),),
        "sysfs: of which sizes (pages) a first write brings large folios to memory that wants huge pages",
    ),
    "overcommit_memory": OpSpec(
        56,
        (("mode", Domain.OVERCOMMIT),),
        "vm.overcommit_memory: how the system judges what it is asked to promise; never: MAP_NORESERVE is not heeded",
    ),
    "max_map_count": OpSpec(
        57,
        (("maps", Domain.MAPS),),
        "vm.max_map_count: the process and its children to come may have so many mappings, or as many as it has, "
        "counted from what a process has before it maps anything",
    ),
    "ksm_scan": OpSpec(
        80,
        (("pages", Domain.SCAN),),
        "kernel: the same-page scanner looks at so many pages; 0: goes on to the end of its scan",
    ),
    "migrate": OpSpec(17, (("addr", Domain.PAGE),), "kernel: migrate the folio mapped there"),
    "mlock": OpSpec(18, (("addr", Domain.PAGE), ("len", Domain.LENGTH)), "lock, and fault in"),
    "munlock": OpSpec(19, (("addr", Domain.PAGE), ("len", Domain.LENGTH)), "unlock"),
    "mlock2": OpSpec(
        20,
        (("addr", Domain.PAGE), ("len", Domain.LENGTH), ("flags", Domain.MLOCK2_FLAGS)),
        "lock; with ONFAULT pages are faulted in when they are touched",
    ),
    "mlockall": OpSpec(
        21, (("flags", Domain.MCL_FLAGS),), "lock all that is mapped (CURRENT), all that will be (FUTURE)"
    ),
    "munlockall": OpSpec(22, (), "unlock all, and what comes"),
    "mseal": OpSpec(24, (("addr", Domain.PAGE), ("len", Domain.LENGTH)), "seal: no unmapping, moving, mprotect"),
    "set_vma_name": OpSpec(
        25,
        (("addr", Domain.PAGE), ("len", Domain.LENGTH), ("name", Domain.VMA_NAME)),
        "prctl: name anonymous memory, or take its name away",
    ),
    "memory_merge": OpSpec(
        26, (("on", Domain.SWITCH),), "prctl: offer all memory of the process to the same-page scanner, or none"
    ),
    "mbind": OpSpec(
        27,
        (("addr", Domain.PAGE), ("len", Domain.LENGTH), ("policy", Domain.POLICY)),
        "on which node memory is to come",
    ),
    "pkey_mprotect": OpSpec(
        28,
        (("addr", Domain.PAGE), ("len", Domain.LENGTH), ("prot", Domain.PROT), ("pkey", Domain.PKEY)),
        "change permissions, with a protection key",
    ),
    "remap_file_pages": OpSpec(
        29,
        (("addr", Domain.PAGE), ("len", Domain.LENGTH), ("off", Domain.FILE_OFFSET)),
        "let a shared mapping of a file show other pages of it",
    ),
    "process_madvise": OpSpec(
        30,
        (
            ("target", Domain.TARGET),
            ("addr", Domain.PAGE),
            ("len", Domain.LENGTH),
            ("addr2", Domain.PAGE),
            ("len2", Domain.LENGTH),
            ("advice", Domain.PROCESS_ADVICE),
        ),
        "advise two ranges of a process; the result is the pages advised, or the errno of the first range",
    ),
    "brk": OpSpec(
        23, (("addr", Domain.PAGE),), "move the end of the heap, which begins at page ``heap_page`` of the world"
    ),
    "userfaultfd": OpSpec(
        60, (("features", Domain.UFFD_FEATURES),), "open a userfaultfd with these features; a process has one at most"
    ),
    "uffd_close": OpSpec(61, (), "close it: nothing is registered any more"),
    "uffd_register": OpSpec(
        62,
        (("addr", Domain.PAGE), ("len", Domain.LENGTH), ("mode", Domain.UFFD_REGISTER_MODE)),
        "register with the process's userfaultfd, which this and all calls below open if there is none",
    ),
    "uffd_unregister": OpSpec(63, (("addr", Domain.PAGE), ("len", Domain.LENGTH)), "unregister"),
    "uffd_copy": OpSpec(
        64,
        (("dst", Domain.PAGE), ("src", Domain.PAGE), ("len", Domain.LENGTH), ("mode", Domain.UFFD_COPY_MODE)),
        "fill empty pages with copies; the result is the pages filled, or the errno of the first",
    ),
    "uffd_zeropage": OpSpec(
        65, (("addr", Domain.PAGE), ("len", Domain.LENGTH)), "let empty pages hold zeros; result as uffd_copy"
    ),
    "uffd_wp": OpSpec(
        66,
        (("addr", Domain.PAGE), ("len", Domain.LENGTH), ("mode", Domain.UFFD_WP_MODE)),
        "protect what is mapped, or allow writes again",
    ),
    "uffd_move": OpSpec(
        67,
        (("dst", Domain.PAGE), ("src", Domain.PAGE), ("len", Domain.LENGTH), ("mode", Domain.UFFD_MOVE_MODE)),
        "move pages to an empty place; the result is the pages moved, or the errno of the first",
    ),
    "uffd_poison": OpSpec(
        68,
        (("addr", Domain.PAGE), ("len", Domain.LENGTH)),
        "let accesses to empty pages fail for good; result as uffd_copy",
    ),
    "uffd_continue": OpSpec(
        69,
        (("addr", Domain.PAGE), ("len", Domain.LENGTH), ("mode", Domain.UFFD_COPY_MODE)),
        "map what a file of memory has where nothing is mapped; result as uffd_copy",
    ),
}

OP_BY_CODE: Final[dict[int, str]] = {spec.code: kind for kind, spec in OPS.items()}


class Op(NamedTuple):
    """One operation of process ``proc``; ``args`` as in ``OPS[kind].args``.

    ``fail_nth``: 0, or the 1-based number of the allocation (fault point) of this op that shall fail.
    """

    kind: str
    proc: int
    args: tuple[int, ...]
    fail_nth: int = 0


class Switch(NamedTuple):
    """One line of a schedule: let op number ``op`` run until it has passed ``point`` ``nth`` times more.

    Or until it ends or blocks. An empty ``point`` counts every preemption point. After the last switch the
    ops run to their ends, in order. Points are named, so a schedule survives changes to the code.
    """

    op: int
    point: str
    nth: int


class Step(NamedTuple):
    """One op, or a collision of two or three under ``schedule``."""

    ops: tuple[Op, ...]
    schedule: tuple[Switch, ...] = ()


class Workload(NamedTuple):
    """A whole test case: the world it runs in and its steps."""

    geometry: str  # a key of emulator.geometry.GEOMETRIES
    steps: tuple[Step, ...]


class Outcome(NamedTuple):
    """What one op gave.

    ``ret`` is the system call's result (address results are *arena pages*), an errno as a negative number,
    SIGSEGV/SIGBUS of emulator.uapi for an access, or for kernel activity the number of folios handled.
    ``data`` is the page's contents for ``read``: sorted (offset, token) pairs; () is a page of zeros.
    ``injected`` says that a fault was injected (``fail_nth`` was reached).
    """

    ret: int
    data: tuple[tuple[int, int], ...] | None = None
    injected: bool = False


def token(step: int, op: int) -> int:
    """The value that a write stores: unique for each op of a workload, never 0."""
    return step * 4 + op + 1


def file_token(file: int, page: int) -> int:
    """What a page of a file holds at offset 0 before anybody writes there: different from every ``token``."""
    return 1 << 36 | file << 20 | page + 1


def shared_memory(token: int) -> int:
    """The label of the file behind the shared anonymous memory that the op with this ``token`` maps."""
    return SHARED_MEMORY | token


def is_memory(file: int) -> bool:
    """Is the file of that label one of memory (shmem), which holds zeros before anybody writes there?"""
    return file == MEMFD or file >= SHARED_MEMORY


def pattern_token(pattern: int) -> int:
    """What ``fill`` leaves at offset 0 of a page, 0 for zeros; different from every ``token`` and ``file_token``."""
    return 1 << 35 | pattern if pattern else 0
