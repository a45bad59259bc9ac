"""Settings of the system are put back: at the end, by the last of several users, and after a kill by the next one."""

from __future__ import annotations

import mmap
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from oracle.live.settings import QUIET, asleep, quiet

SCANS = Path("/sys/kernel/mm/transparent_hugepage/khugepaged/full_scans")
SLEEP = SCANS.with_name("scan_sleep_millisecs")


def setting(folder: Path, value: str = "10000") -> tuple[Path, dict[str, str], Path]:
    """(a file that stands for a setting, what it shall be set to, a journal)."""
    file = folder / "scan_sleep"
    file.write_text(value)
    return file, {str(file): "4294967295"}, folder / "journal"


def test_set_and_put_back(tmp_path: Path) -> None:
    """Also when what runs inside fails."""
    file, settings, journal = setting(tmp_path)
    with quiet(settings, journal) as lacks:
        assert lacks == []
        assert file.read_text() == "4294967295"
    assert file.read_text() == "10000"
    try:
        with quiet(settings, journal):
            raise ValueError
    except ValueError:
        assert file.read_text() == "10000"


def test_the_last_one_puts_back(tmp_path: Path) -> None:
    """Two comparisons at once: the first to end leaves the kernel quiet for the other."""
    file, settings, journal = setting(tmp_path)
    with quiet(settings, journal):
        with quiet(settings, journal):
            pass
        assert file.read_text() == "4294967295"
    assert file.read_text() == "10000"


def test_after_a_kill(tmp_path: Path) -> None:
    """What a killed process had changed, the next one puts back, and takes as what was there before."""
    file, settings, journal = setting(tmp_path)
    program = (
        "import sys, time\nfrom pathlib import Path\nfrom oracle.live.settings import quiet\n"
        "with quiet({sys.argv[1]: '4294967295'}, Path(sys.argv[2])):\n    print('in', flush=True)\n    time.sleep(60)\n"
    )
    root = str(Path(__file__).parents[3])
    with subprocess.Popen(
        [sys.executable, "-c", program, str(file), str(journal)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": root},
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"in\n"
        child.send_signal(signal.SIGKILL)
    assert file.read_text() == "4294967295"
    with quiet(settings, journal):
        assert file.read_text() == "4294967295"
    assert file.read_text() == "10000"


def test_what_cannot_be_set(tmp_path: Path) -> None:
    """No such setting, or no place for the journal: a sentence, and nothing fails."""
    file, settings, journal = setting(tmp_path)
    absent = tmp_path / "absent"
    with quiet({**settings, str(absent): "1"}, journal) as lacks:
        assert lacks == [f"{absent} cannot be set: No such file or directory"]
        assert file.read_text() == "4294967295"
    with quiet(settings, tmp_path / "no" / "journal") as lacks:
        assert len(lacks) == 1
        assert file.read_text() == "10000"


@pytest.mark.skipif(not os.access(SCANS, os.R_OK) or os.geteuid() != 0, reason="needs root and huge pages")
def test_khugepaged_has_had_its_visit() -> None:
    """It comes once, to us, and not again when the next process wants huge pages."""
    before = SCANS.read_text()
    sleeps = SLEEP.read_text().strip() == QUIET[str(SLEEP)]  # another test's session is open beside this one
    with quiet(), asleep():
        visited = SCANS.read_text()
        with mmap.mmap(-1, 4 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
            memory.madvise(mmap.MADV_HUGEPAGE)
            memory[0] = 1
            time.sleep(0.3)
        assert SCANS.read_text() == visited
    assert sleeps or int(visited) > int(before)
