"""References to folios: the last frees, and what cannot be free any more or not yet ends the machine."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from emulator.errors import KernelBug
from emulator.mm_types import Folio
from tests.emulator.kernel_world import World


def test_the_last_reference_frees() -> None:
    """Not the last but one."""
    world = World()
    m, swap = world.machine, world.image.swap
    folio = m.phys.alloc(1)
    swap.folio_get(folio)
    swap.folio_ref_add(folio, 2)
    swap.folio_put_refs(m, folio, 3)
    assert not folio.freed
    assert folio.pfn in m.phys.live
    swap.folio_put(m, folio)
    assert folio.freed
    assert folio.pfn not in m.phys.live


def test_use_after_free() -> None:
    """Neither taking nor giving back works on a folio that has been freed."""
    world = World()
    m, swap = world.machine, world.image.swap
    folio = m.phys.alloc(0)
    swap.folio_put(m, folio)
    with pytest.raises(KernelBug, match="use-after-free"):
        swap.folio_get(folio)
    with pytest.raises(KernelBug, match="use-after-free"):
        swap.folio_put(m, folio)


def test_more_given_back_than_taken() -> None:
    """Underflow is noticed at once, not when the count comes round."""
    world = World()
    folio = world.machine.phys.alloc(0)
    with pytest.raises(KernelBug, match="refcount-underflow"):
        world.image.swap.folio_put_refs(world.machine, folio, 2)


def mapped(world: World, folio: Folio) -> None:
    folio.mapcounts[0] = 1


def in_swap_cache(world: World, folio: Folio) -> None:
    folio.swapcache = True


def in_page_cache(world: World, folio: Folio) -> None:
    folio.mapping = world.machine.files[0].f_mapping


def pinned(world: World, folio: Folio) -> None:
    folio.pincount = 1


def locked(world: World, folio: Folio) -> None:
    folio.lock.lock()


@pytest.mark.parametrize("state", [mapped, in_swap_cache, in_page_cache, pinned, locked])
def test_bad_page_state(state: Callable[[World, Folio], None]) -> None:
    """A folio that somebody still uses must not go back to the allocator."""
    world = World()
    folio = world.machine.phys.alloc(1)
    state(world, folio)
    with pytest.raises(KernelBug, match="bad-page-state"):
        world.image.swap.folio_put(world.machine, folio)
    assert not folio.freed
