"""``@pytest.mark.live``: what a test asked the machine for, a running Linux is asked for too.

After the test, what each of its worlds was asked for is done by the running kernel, and by mainline with page tables of
x86-64 whatever the world's were; results, contents and layouts are compared after each step. Where there is no kernel
to ask, nothing happens.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from emulator.workload import Workload
from fuzz.conform.report import explain
from fuzz.conform.session import Session
from fuzz.target import DEFAULT_PROFILE
from oracle.live.calls import GEOMETRY, expressible
from oracle.live.facilities import missing
from oracle.live.view import Depth
from tests.emulator.kernel_world import World


@pytest.fixture(scope="session")
def session() -> Iterator[Session | None]:
    """The running kernel, if there is one."""
    if missing(Depth.MAPS):
        yield None
        return
    with Session(DEFAULT_PROFILE, Depth.MAPS) as opened:
        yield opened


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

    session: Session | None = request.getfixturevalue("session")
    monkeypatch.setattr(World, "__init__", begin_and_note)
    yield
    if session is None:
        return
    for world in worlds:
        workload = Workload(GEOMETRY, tuple(world.steps))
        if workload.steps and not expressible(workload):
            comparison = session.compare(workload)
            assert comparison.finding is None, f"the running Linux differs\n{explain(workload, comparison)}"
