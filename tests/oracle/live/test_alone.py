"""Who acts on the whole system is alone, and what he has set is put back, after a kill by the next."""

from __future__ import annotations

import fcntl
import json
from pathlib import Path

import pytest

from emulator.workload import Workload
from fuzz.workload.text import from_text
from oracle.live import alone
from oracle.live.alone import undisturbed

SETS = from_text("world x86-64\nthp_sizes sizes=4\n")
SETS_NOT = from_text("world x86-64\nread addr=1\n")


@pytest.fixture
def sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that stands for the sizes of folios."""
    file = tmp_path / "enabled"
    file.write_text("always inherit madvise [never]")
    monkeypatch.setattr(alone, "SIZE_FILES", {2: file})
    return file


def locked(lock: Path, how: int) -> bool:
    """Could somebody else have the lock now?"""
    with lock.open() as other:
        try:
            fcntl.flock(other, how | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


@pytest.mark.parametrize(("workload", "beside"), [(SETS, False), (SETS_NOT, True)])
def test_who_sets_sizes_is_alone(tmp_path: Path, sizes: Path, workload: Workload, beside: bool) -> None:
    lock = tmp_path / "lock"
    with undisturbed(workload, lock):
        assert locked(lock, fcntl.LOCK_SH) is beside
        assert not locked(lock, fcntl.LOCK_EX)
    assert locked(lock, fcntl.LOCK_EX)


def test_what_was_set_is_put_back(tmp_path: Path, sizes: Path) -> None:
    lock = tmp_path / "lock"
    with undisturbed(SETS, lock):
        assert json.loads(lock.read_text()) == {str(sizes): "never"}
        sizes.write_text("madvise")
    assert sizes.read_text() == "never"
    assert not lock.read_text()


@pytest.mark.parametrize("workload", [SETS, SETS_NOT])
def test_what_a_killed_one_has_left_the_next_puts_back(tmp_path: Path, sizes: Path, workload: Workload) -> None:
    """Before it begins, whether it would set sizes itself or not."""
    lock = tmp_path / "lock"
    sizes.write_text("madvise")
    lock.write_text(json.dumps({str(sizes): "never"}))
    with undisturbed(workload, lock):
        assert sizes.read_text() == "never"
    assert not lock.read_text()
    assert sizes.read_text() == "never"


def test_a_note_that_was_cut_short_is_of_somebody_who_had_set_nothing(tmp_path: Path, sizes: Path) -> None:
    lock = tmp_path / "lock"
    lock.write_text('{"/sys')
    with undisturbed(SETS_NOT, lock):
        assert not lock.read_text()
    assert "[never]" in sizes.read_text()
