"""The mends of Linux's own faults: what breaks a promise on mainline breaks none with them."""

from __future__ import annotations

from pathlib import Path

import pytest

from emulator.designs.mainline import Mainline
from emulator.designs.mainline_fixed import MainlineFixed
from emulator.image import KernelImage
from emulator.profile import PROFILES
from fuzz.workload import wire
from oracle.judge import Judge

FAULTS = {  # and the oracle that sees each
    "mremap-shrink-charge": "accounting",
    "mmap-failed-fixed-charge": "accounting",
    "mremap-grow-charge": "accounting",
    "mremap-uncut-source-charge": "accounting",
    "mremap-dontunmap-locked": "accounting",
    "stack-growth-charge": "accounting",
    "mremap-uffd-neighbour": "specification",
    "gup-livelock-huge-file": "kernel",
    "guard-over-protected-page": "kernel",
}
FOLDER = Path(__file__).parents[3] / "corpus" / "regressions" / "mainline"


@pytest.mark.parametrize(("fault", "oracle"), FAULTS.items())
def test_mended(fault: str, oracle: str) -> None:
    """Each fault of docs/mainline-findings.md is a finding on mainline, and none on the mended one."""
    workload = wire.decode((FOLDER / f"{fault}.msgpack").read_bytes())
    found = Judge(KernelImage(Mainline)).run(workload).findings
    assert [finding.oracle for finding in found] == [oracle]
    assert Judge(KernelImage(MainlineFixed)).run(workload).findings == ()


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("fault", FAULTS)
def test_mended_on_every_kernel(fault: str, profile: str) -> None:
    """A mend does no harm where the kernel leaks less."""
    workload = wire.decode((FOLDER / f"{fault}.msgpack").read_bytes())
    assert Judge(KernelImage(MainlineFixed), profile=profile).run(workload).findings == ()


@pytest.mark.parametrize("name", sorted(MainlineFixed.replaces))
def test_each_mend_is_needed(name: str) -> None:
    """Without one of them, one of the workloads shows its fault again."""
    image = KernelImage(MainlineFixed)
    module, _, function = name.partition(".")
    setattr(getattr(image, module), function, getattr(getattr(KernelImage(Mainline), module), function))
    judge = Judge(image)
    workloads = [wire.decode((FOLDER / f"{fault}.msgpack").read_bytes()) for fault in FAULTS]
    assert sum(bool(judge.run(workload).findings) for workload in workloads) == 1
