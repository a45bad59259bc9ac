"""How many VMAs, anon_vmas and AVCs the running kernel holds, to see a leak: counts before and after.

The counts are those of the allocator and rough: objects that a CPU keeps in store count as in use, and other
processes come and go, so a count moves by a few hundred without a leak. A leak shows as growth with the number of
repetitions: after some thousand, one object leaked in each stands out.
A cache that the allocator has merged with others of the same size (``anon_vma_chain`` often) counts theirs too; its
name may be absent from /proc/slabinfo then, but not from /sys/kernel/slab.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final, NamedTuple

from emulator.errors import UsageError

CACHES: Final = ("anon_vma", "anon_vma_chain", "vm_area_struct")
SLAB: Final = Path("/sys/kernel/slab")


class SlabCount(NamedTuple):
    """One cache."""

    objects: int  # in use, or in store for a CPU
    shared: bool  # other caches are merged with this one, so objects of others are counted too


def slab_counts(folder: Path = SLAB) -> dict[str, SlabCount]:
    """The counts of ``CACHES``, by name. Raises UsageError where the kernel does not tell."""
    counts = {}
    for name in CACHES:
        try:
            objects = int((folder / name / "objects").read_text().split()[0])  # "403 N0=403"
            shared = int((folder / name / "aliases").read_text()) > 0
        except PermissionError as error:
            raise UsageError(f"{error.filename} cannot be read: run as root") from error
        except (OSError, ValueError, IndexError) as error:
            raise UsageError(
                f"the kernel does not count its slabs ({error}): it needs CONFIG_SLUB_DEBUG"
            ) from error
        counts[name] = SlabCount(objects, shared)
    return counts
