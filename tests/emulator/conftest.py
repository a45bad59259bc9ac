"""``@pytest.mark.live``: what a test asked the machine for, a running Linux is asked for too.

After the test, what each of its worlds was asked for is done by the running kernel, and by mainline with page tables of
x86-64 whatever the world's were; results, contents, layouts and, with root, pages are compared after each step. Where
there is no kernel to ask, nothing happens.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from emulator.workload import Workload
from fuzz.conform.regression import difference
from oracle.live.calls import GEOMETRY
from oracle.live.expressible import expressible, has_prompt_swap
from oracle.live.facilities import missing
from oracle.live.view import Depth
from tests.emulator.kernel_world import World


@pytest.fixture(autouse=True)
def _running_linux(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if request.node.get_closest_marker("live") is None:
        yield
        return
    worlds: list[World] = []
    begin = World.__init__

    def begin_and_note(self: World, *args: object, **named: object) -> None:
        begin(self, *args, **named)  # type: ignore[arg-type]
        worlds.append(self)

    monkeypatch.setattr(World, "__init__", begin_and_note)
    yield
    for world in worlds:
        workload = Workload(GEOMETRY, tuple(world.steps))
        depth = deepest(workload)
        if depth is not None:
            signature, report = difference(workload, depth)
            assert not signature, f"the running Linux differs\n{report}"


def deepest(workload: Workload) -> Depth | None:
    """As much as can be compared of the workload here, pages at most; None: nothing."""
    swap = has_prompt_swap()
    for depth in (Depth.PAGES, Depth.MAPS):
        if workload.steps and not missing(depth) and not expressible(workload, depth, swap=swap):
            return depth
    return None
