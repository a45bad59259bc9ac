"""The running kernel's same-page scanner looks at what it is asked to, and then at nothing."""

from __future__ import annotations

import mmap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from emulator.workload import Op, Step, Workload
from oracle.live import ksm
from oracle.live.alone import undisturbed
from oracle.live.settings import asleep, quiet

pytestmark = pytest.mark.skipif(bool(ksm.refused()), reason=ksm.refused())
SCANS = Workload("x86-64", (Step((Op("ksm_scan", 0, (0,)),)),))


@pytest.fixture
def scanner() -> Iterator[mmap.mmap]:
    """A quiet scanner that is ours alone, and four mergeable pages with contents of their own."""
    with quiet(), asleep(), undisturbed(SCANS), mmap.mmap(-1, 4 * mmap.PAGESIZE, mmap.MAP_PRIVATE) as memory:
        memory.madvise(mmap.MADV_MERGEABLE)
        for page in range(4):
            memory[page * mmap.PAGESIZE] = page + 1
        yield memory


def scanned() -> int:
    return int((ksm.FOLDER / "pages_scanned").read_text())


def test_a_whole_scan_looks_at_every_page_once(scanner: mmap.mmap) -> None:
    for _ in range(2):
        before = scanned()
        ksm.scan(0)
        assert scanned() - before == 4


def test_a_part_of_a_scan_and_the_rest(scanner: mmap.mmap) -> None:
    before = scanned()
    ksm.scan(3)
    assert scanned() - before == 3
    ksm.scan(3)
    assert scanned() - before == 4


def test_it_sleeps_until_it_is_asked_again(scanner: mmap.mmap) -> None:
    ksm.scan(0)
    before = scanned()
    time.sleep(0.1)
    assert scanned() == before


def test_a_daemon_that_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when nobody has offered memory."""
    for name in ("full_scans", "pages_scanned", "sleep_millisecs"):
        (tmp_path / name).write_text("0")
    monkeypatch.setattr(ksm, "FOLDER", tmp_path)
    monkeypatch.setattr(ksm, "_PATIENCE", 0.01)
    with pytest.raises(TimeoutError, match="did not scan"):
        ksm.scan(0)
