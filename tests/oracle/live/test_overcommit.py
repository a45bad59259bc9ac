"""How the system overcommits is put back, whichever of the two ways to set a limit was used."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from emulator.uapi import OVERCOMMIT_NEVER
from oracle.live import alone, overcommit
from tests.oracle.live.running_kernel import workload


@pytest.mark.parametrize(
    ("kbytes", "ratio", "written"),
    [("0", "50", {"mode": "1", "ratio": "50"}), ("5000", "0", {"mode": "1", "kbytes": "5000"})],
)
def test_what_is_written_down(
    kbytes: str, ratio: str, written: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mode, and of limit and ratio the one that counted: to write the other would make it 0."""
    for name, text in (("MODE", "1"), ("KBYTES", kbytes), ("RATIO", ratio)):
        monkeypatch.setattr(overcommit, name, tmp_path / name.lower())
        (tmp_path / name.lower()).write_text(text)
    lock = tmp_path / "lock"
    with alone.undisturbed(workload("overcommit_memory mode=never"), lock):
        overcommit.store(OVERCOMMIT_NEVER)
        assert {Path(file).name: word for file, word in json.loads(lock.read_text()).items()} == written
        assert int(overcommit.KBYTES.read_text()) == overcommit.OUT_OF_REACH
        assert overcommit.mode() == OVERCOMMIT_NEVER
    assert {name: (tmp_path / name).read_text() for name in written} == written
    assert lock.read_text() == ""
