"""Builds the address space that a recorded exec made, with the steps that the kernel's ELF loader takes.

What the kernel chose at random or read from files is taken from the recording: where the stack, the program, the
interpreter stand, and the top of the mmap area. The rest (where the vdso goes, page offsets, permissions, what the
stack looks like after its moves) is the machine's work and compared with the mappings that the kernel told.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from emulator.fs_types import File
from emulator.geometry import PAGE_SHIFT
from emulator.mm_types import (
    VM_DONTDUMP,
    VM_EXEC,
    VM_IO,
    VM_MAYEXEC,
    VM_MAYREAD,
    VM_MAYWRITE,
    VM_PFNMAP,
    VM_READ,
    MmStruct,
)
from emulator.uapi import MAP_FIXED, MAP_PRIVATE, PROT_EXEC, PROT_READ, PROT_WRITE
from fuzz.record.events import Layout, Mapping

if TYPE_CHECKING:
    from emulator.image import KernelImage
    from fuzz.record.files import InodeKey, Inodes

STACK: Final = "[stack]"
VDSO: Final = "[vdso]"
SPECIAL: Final = (VDSO, "[vvar]", "[vvar_vclock]")
_VDSO_FLAGS: Final = VM_READ | VM_EXEC | VM_MAYREAD | VM_MAYWRITE | VM_MAYEXEC
_VVAR_FLAGS: Final = VM_READ | VM_MAYREAD | VM_IO | VM_DONTDUMP | VM_PFNMAP


class CannotBuild(Exception):
    """The recording lacks what is needed to build this address space; the message says what."""


class NewImage:
    """Follows one exec, event by event."""

    def __init__(self, image: KernelImage, mm: MmStruct, inodes: Inodes, shown: Layout | None) -> None:
        self.image: Any = image
        self.mm = mm
        self.inodes = inodes
        self.shown = shown  # the layout that a ptrace stop showed after this exec
        self.files: dict[InodeKey, File] = {}  # exec opens the program and its interpreter once
        self.span: Mapping | None = None  # the mapping of a whole program, until its tail is unmapped
        self.vdso_area = (0, 0)
        self.wrong_place: tuple[int, int] | None = None  # (recorded, machine's) address of the vdso area

    def begin(self, mappings: list[Mapping]) -> None:
        """Look at all that exec maps, for what must be known from the start. Raises CannotBuild."""
        stack = next((mapping for mapping in mappings if mapping.name == STACK), None)
        if stack is None:
            raise CannotBuild("the recording does not show the stack that exec made")
        below = [mapping for mapping in mappings if mapping.end <= stack.start]
        if not below:
            raise CannotBuild("the recording does not show what exec mapped")
        self.mm.mmap_base = max(mapping.end for mapping in below)
        self.vdso_area = self._vdso_area(mappings)

    def _vdso_area(self, mappings: list[Mapping]) -> tuple[int, int]:
        """(start, end) of the pages that the kernel provides: they are placed as one."""
        special = [mapping for mapping in mappings if mapping.name in SPECIAL]
        if not special:
            return 0, 0
        return min(mapping.start for mapping in special), max(mapping.end for mapping in special)

    def map(self, mapping: Mapping) -> None:
        """Do what made the kernel tell of this mapping."""
        if mapping.name == STACK:
            self._stack(mapping)
        elif mapping.name in SPECIAL:
            self._special(mapping)
        elif mapping.inode or mapping.device != "00:00":
            self._segment(mapping)
        else:
            self._zeroes(mapping)

    def unmap_tail(self, following: Mapping | None) -> None:
        """The loader maps the whole span of a program first, then unmaps all but the first segment.

        perf does not tell how long the first segment is: the layout shown after exec does, else it is taken to
        reach to the ``following`` segment.
        """
        span = self.span
        if span is None:
            return
        self.span = None
        end = span.end
        if following is not None and _key(following) == _key(span) and span.start < following.start < end:
            end = following.start
        if self.shown is not None:
            end = next((line.end for line in self.shown.lines if line.start == span.start), end)
        if end < span.end:
            self.image.munmap.sys_munmap(self.mm, end, span.end - end)

    def _stack(self, mapping: Mapping) -> None:
        exec_ = self.image.vma_exec
        pages = (mapping.length - exec_.STACK_EXPAND) >> PAGE_SHIFT  # what the arguments took
        area = exec_.create_init_stack_vma(self.mm)
        if area is None or exec_.put_arguments(area, max(pages, 1)):
            raise CannotBuild("the machine has no memory for the stack")
        flags = exec_.VM_STACK_FLAGS | (VM_EXEC if "x" in mapping.perms else 0)
        if exec_.setup_arg_pages(area, mapping.end, flags):
            raise CannotBuild("the machine cannot place the stack")

    def _segment(self, mapping: Mapping) -> None:
        key = _key(mapping)
        file = self.files.get(key)
        if file is None:
            file = self.files[key] = self.inodes.open(key, mapping.name)
            self.span = mapping
        prot = PROT_READ if "r" in mapping.perms else 0
        prot |= PROT_WRITE if "w" in mapping.perms else 0
        prot |= PROT_EXEC if "x" in mapping.perms else 0
        flags = MAP_PRIVATE | MAP_FIXED
        self.image.mmap.sys_mmap(self.mm, mapping.start, mapping.length, prot, flags, file, mapping.offset)

    def _zeroes(self, mapping: Mapping) -> None:
        """vm_brk_flags: the part of the program's data that no file holds."""
        self.mm.mmap_lock.down_write()
        self.image.munmap.do_munmap(self.mm, mapping.start, mapping.length)
        self.image.brk.do_brk_flags(self.mm, None, mapping.start, mapping.length)
        self.mm.mmap_lock.up_write()

    def _special(self, mapping: Mapping) -> None:
        start, end = self.vdso_area
        if mapping.name == VDSO and end <= self.mm.mmap_base:  # the first mapped; a place is chosen for all
            chosen = self.image.mmap.get_unmapped_area(self.mm, None, 0, end - start, 0, 0)
            if chosen != start:
                self.wrong_place = (start, chosen)
        flags = _VDSO_FLAGS if mapping.name == VDSO else _VVAR_FLAGS
        self.mm.mmap_lock.down_write()
        self.image.vma_exec.install_special_mapping(self.mm, mapping.start, mapping.length, flags)
        self.mm.mmap_lock.up_write()


def _key(mapping: Mapping) -> InodeKey:
    return mapping.device, mapping.inode, mapping.generation
