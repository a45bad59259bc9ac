"""What the tests of the fuzzing side share."""

from __future__ import annotations

from pathlib import Path

import pytest

PLANTED = '''\
"""A planted bug: mprotect says yes and does nothing."""

from emulator.designs.base import Design


def sys_mprotect(mm, start, length, prot):
    return 0


class Planted(Design):
    name = "planted"
    summary = "mprotect forgets to do it"
    replaces = {"mprotect.sys_mprotect": sys_mprotect}
'''

SHOWS_PLANTED = """\
world small8
mmap addr=4 len=2 prot=rw flags=private|fixed
mprotect addr=4 len=2 prot=none
write addr=4 at=0
"""


@pytest.fixture
def planted(tmp_path: Path) -> str:
    """A design with a bug that three steps show, as ``--design`` takes it."""
    place = tmp_path / "planted.py"
    place.write_text(PLANTED)
    return f"{place}:Planted"


@pytest.fixture
def shows_planted(tmp_path: Path) -> Path:
    """A workload that shows the planted bug; on mainline it is clean."""
    from fuzz.workload import text, wire

    place = tmp_path / "shows.msgpack"
    place.write_bytes(wire.encode(text.from_text(SHOWS_PLANTED)))
    return place
