"""Overcommit with gigabytes: the machine and the running kernel, of the same calls.

The kernel's counter is everybody's, and read from a sum of parts that lag behind by some 0.4 % of memory. So all sizes
are gigabytes that nobody touches, and what decides is gigabytes away from the limit on either side, which leaves the
others as much to live on meanwhile.
"""

from __future__ import annotations

import json
from typing import Any, Final

import pytest

from emulator.designs.mainline import Mainline
from emulator.geometry import PAGE_SHIFT
from emulator.machine import Machine
from emulator.mm_types import MmStruct
from emulator.profile import PROFILES, Profile
from emulator.uapi import (
    ENOMEM,
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_NORESERVE,
    MAP_PRIVATE,
    MAP_SHARED,
    MREMAP_DONTUNMAP,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    OVERCOMMIT_ALWAYS,
    OVERCOMMIT_GUESS,
    OVERCOMMIT_NEVER,
    PROT_READ,
)
from emulator.workload import Op, Step, Workload
from oracle.live import overcommit
from oracle.live.alone import undisturbed
from oracle.live.calls import GEOMETRY
from tests.emulator.kernel_world import RW, kernel_image
from tests.oracle.live.running_kernel import on_linux, run_script

GIB: Final = 1 << 30  # bytes
LIMIT: Final = 12 * GIB  # what all may be promised beyond what they have
PLACE: Final = 0x2000_0000_0000  # bytes: free in every process
PRIVATE: Final = MAP_PRIVATE | MAP_FIXED
SHARED: Final = MAP_SHARED | MAP_FIXED
MOVE: Final = MREMAP_MAYMOVE | MREMAP_FIXED

Call = tuple[Any, ...]
"""Name and arguments: places and sizes in bytes."""


def at(gigabytes: int) -> int:
    return PLACE + gigabytes * GIB


def map8(place: int, prot: int = RW, flags: int = PRIVATE) -> Call:
    """Eight gigabytes."""
    return "mmap", at(place), 8 * GIB, prot, flags


# Calls with what they give: a place is named by the call itself.
STRICT: Final[dict[str, list[tuple[Call, int]]]] = {
    "what is unmapped can be promised again": [
        (map8(0), at(0)),
        (map8(10), -ENOMEM),
        (("munmap", at(0), 8 * GIB), 0),
        (map8(10), at(10)),
    ],
    "noreserve is not heeded": [
        (map8(0, RW, PRIVATE | MAP_NORESERVE), at(0)),
        (map8(10, RW, PRIVATE | MAP_NORESERVE), -ENOMEM),
    ],
    "what cannot be written needs no promise": [
        (map8(0, PROT_READ), at(0)),
        (map8(10, PROT_READ), at(10)),
        (("mprotect", at(0), 8 * GIB, RW), 0),
        (("mprotect", at(10), 8 * GIB, RW), -ENOMEM),
    ],
    "shared memory is promised as a whole": [
        (map8(0, PROT_READ, SHARED), at(0)),
        (map8(10, PROT_READ, SHARED), -ENOMEM),
        (("munmap", at(0), 8 * GIB), 0),
        (map8(10, RW, SHARED), at(10)),
    ],
    "growing": [
        (map8(0), at(0)),
        (("mremap", at(0), 8 * GIB, 16 * GIB, 0, 0), -ENOMEM),
        (("mremap", at(0), 8 * GIB, 1 * GIB, 0, 0), at(0)),
        (("mremap", at(0), 1 * GIB, 8 * GIB, 0, 0), at(0)),
    ],
    "a move needs no promise, one that keeps the old place does": [
        (map8(0), at(0)),
        (("mremap", at(0), 8 * GIB, 8 * GIB, MOVE, at(10)), at(10)),
        (("mremap", at(10), 8 * GIB, 8 * GIB, MOVE | MREMAP_DONTUNMAP, at(20)), -ENOMEM),
    ],
    "a child is promised the same again": [
        (map8(0), at(0)),
        (("fork",), -ENOMEM),
        (("munmap", at(0), 6 * GIB), 0),
        (("fork",), 0),
    ],
    "what is replaced passes its promise on": [(map8(0), at(0)), (map8(0), at(0)), (map8(2), at(2))],
}


class Twin:
    """A process of the machine that makes the same calls."""

    def __init__(self, profile: Profile) -> None:
        self.image = kernel_image(Mainline)
        self.machine = Machine(self.image, GEOMETRY, profile)
        self.children = 0

    @property
    def mm(self) -> MmStruct:
        return self.machine.procs[0]

    def do(self, kind: str, *args: int) -> int:
        if kind == "mmap":
            return int(self.image.mmap.sys_mmap(self.mm, *args[:3], args[3] | MAP_ANONYMOUS, None, 0))
        if kind == "fork":
            result = self.machine.run_step(Step((Op("fork", 0, (1,)),)))[0].ret
            if not result:
                self.machine.run_step(Step((Op("exit", 1, ()),)))
            return result
        module = getattr(self.image, kind)
        return int(getattr(module, f"sys_{kind}")(self.mm, *args))


def meminfo(name: str) -> int:
    """kB."""
    with open("/proc/meminfo", encoding="ascii") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def ask_linux(mode: int, calls: list[Call]) -> list[int]:
    """What the running kernel gives in this mode, with ``LIMIT``."""
    with undisturbed(Workload(GEOMETRY, (Step((Op("overcommit_memory", 0, (mode,)),)),))):
        overcommit.limit(meminfo("Committed_AS") - meminfo("SwapTotal") + (LIMIT >> 10))
        overcommit.store(mode)
        found: list[int] = run_script("tests.emulator.mm.promises", json.dumps(calls))
    return found


may_set = pytest.mark.skipif(bool(overcommit.refused()), reason="only root may set how the system overcommits")


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("name", STRICT)
def test_strict(name: str, profile: str) -> None:
    """Whatever is promised adds up, in each kernel."""
    twin = Twin(PROFILES[profile]._replace(overcommit_memory=OVERCOMMIT_NEVER, commit_limit=LIMIT >> PAGE_SHIFT))
    assert [twin.do(*call) for call, _ in STRICT[name]] == [result for _, result in STRICT[name]]


@on_linux
@may_set
@pytest.mark.parametrize("name", STRICT)
def test_strict_linux(name: str) -> None:
    """The running kernel does the same."""
    before = [file.read_text() for file in (overcommit.MODE, overcommit.RATIO, overcommit.KBYTES)]
    assert ask_linux(OVERCOMMIT_NEVER, [call for call, _ in STRICT[name]]) == [result for _, result in STRICT[name]]
    assert [file.read_text() for file in (overcommit.MODE, overcommit.RATIO, overcommit.KBYTES)] == before


@on_linux
@may_set
@pytest.mark.parametrize("mode", [OVERCOMMIT_GUESS, OVERCOMMIT_ALWAYS])
def test_one_request(mode: int) -> None:
    """As much as there is of memory and swap, a page more, and more and more that adds up: both sides."""
    most = meminfo("MemTotal") + meminfo("SwapTotal") << 10
    page = 1 << PAGE_SHIFT
    sizes = (most, most + page, most // 2, most // 2, most // 2)
    calls: list[Call] = [("mmap", at(number << 12), size, RW, PRIVATE) for number, size in enumerate(sizes)]
    twin = Twin(PROFILES["6.18"]._replace(overcommit_memory=mode, ram_and_swap=most >> PAGE_SHIFT))
    expected = [call[1] for call in calls]
    if mode == OVERCOMMIT_GUESS:
        expected[1] = -ENOMEM
    assert [twin.do(*call) for call in calls] == expected
    assert ask_linux(mode, calls) == expected
