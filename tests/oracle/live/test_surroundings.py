"""The arena is where the kernel looks first, and nothing outside it ever changes."""

from __future__ import annotations

from tests.oracle.live.running_kernel import on_linux, run_script


@on_linux
def test_free_places_are_found_in_the_arena_only() -> None:
    """Hundreds of mmaps without MAP_FIXED stand top-down below the arena's end; Python maps nothing meanwhile."""
    facts = run_script("tests.oracle.live.many_maps")
    assert len(facts) == 4
    assert all(facts.values()), facts
