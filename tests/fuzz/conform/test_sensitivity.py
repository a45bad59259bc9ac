"""Planted mistakes are chosen from what is compared, and noticed."""

from __future__ import annotations

import pytest

from emulator.profile import nearest
from fuzz.conform.mutants import mutants
from fuzz.conform.sensitivity import Request, covered, try_all
from oracle.live import facilities, ksm, thp_sizes
from oracle.live.view import Depth

live = pytest.mark.skipif(bool(facilities.missing(Depth.MAPS)), reason="there is no kernel to compare with")


@pytest.mark.skipif(bool(ksm.refused() or thp_sizes.refused()), reason="only root may change what all feel")
def test_what_shows_in_pages_only() -> None:
    """The same-page scanner is not run where only layouts are compared (``test_mutants``); at this depth it is."""
    files = {file for file, _ in covered(1, Depth.PAGES)}
    assert {"ksm_scan.py", "ksm_merge.py", "mlock.py", "shmem.py", "userfaultfd.py", "swap.py", "sys.py"} <= files


@live
def test_a_mistake_is_noticed() -> None:
    """In a process of its own, by a comparison with the kernel."""
    lines = {("brk.py", line) for line in range(1, 120)}
    mistake = next(m for m in mutants(lines) if (m.before, m.after) == ("mm.total_vm += pages", "pass"))
    request = Request(mistake, nearest(facilities.kernel_release()).name, Depth.MAPS, 1, 30.0)
    (trial,) = try_all([request], 1)
    assert trial.noticed.startswith("live/")
    assert trial.seconds < 30
