"""The swap device: slots live while an entry or the cache needs them."""

from __future__ import annotations

import pytest

from emulator.errors import KernelBug
from emulator.hw.phys import PhysicalMemory
from emulator.hw.swap import SwapDevice
from emulator.sched.scheduler import Scheduler


def test_slots_are_never_used_twice() -> None:
    """Consecutive for a large folio, and new every time."""
    swap = SwapDevice()
    assert swap.alloc(4) == 1
    for slot in range(1, 5):
        swap.get(slot)
        swap.put(slot)
    assert not swap.count
    assert swap.alloc(1) == 5


def test_last_entry_frees_the_slot() -> None:
    """Contents go with the slot."""
    swap = SwapDevice()
    slot = swap.alloc(1)
    swap.content[slot] = {0: 1}
    swap.get(slot)
    swap.get(slot)
    swap.put(slot)
    assert swap.count == {slot: 1}
    swap.put(slot)
    assert not swap.count
    assert not swap.content


def test_cache_keeps_the_slot() -> None:
    """Until it lets go."""
    swap = SwapDevice()
    slot = swap.alloc(1)
    swap.cache[slot] = PhysicalMemory(Scheduler()).alloc(0)
    swap.get(slot)
    swap.put(slot)
    assert swap.count == {slot: 0}
    del swap.cache[slot]
    swap.drop_if_unused(slot)
    assert not swap.count


def test_misuse() -> None:
    """A freed slot, and a count below zero."""
    swap = SwapDevice()
    with pytest.raises(KernelBug, match="swap-use-after-free"):
        swap.get(1)
    slot = swap.alloc(1)
    with pytest.raises(KernelBug, match="swap-count-underflow"):
        swap.put(slot)
    swap.get(slot)
    swap.put(slot)
    with pytest.raises(KernelBug, match="swap-use-after-free"):
        swap.get(slot)
    with pytest.raises(KernelBug, match="swap-count-underflow"):
        swap.put(slot)
