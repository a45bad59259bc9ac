"""The mends of Linux's own leaks: what breaks a promise on mainline breaks none with them."""

from __future__ import annotations

from pathlib import Path

import pytest

from emulator.designs.mainline import Mainline
from emulator.designs.mainline_fixed import MainlineFixed
from emulator.image import KernelImage
from emulator.profile import PROFILES
from fuzz.workload import wire
from oracle.judge import Judge

LEAKS = (
    "mremap-shrink-charge",
    "mmap-failed-fixed-charge",
    "mremap-grow-charge",
    "mremap-uncut-source-charge",
    "mremap-dontunmap-locked",
    "stack-growth-charge",
)
FOLDER = Path(__file__).parents[3] / "corpus" / "regressions" / "mainline"


@pytest.mark.parametrize("leak", LEAKS)
def test_mended(leak: str) -> None:
    """Each leak of docs/mainline-findings.md is a finding on mainline, and none on the mended one."""
    workload = wire.decode((FOLDER / f"{leak}.msgpack").read_bytes())
    found = Judge(KernelImage(Mainline)).run(workload).findings
    assert [finding.oracle for finding in found] == ["accounting"]
    assert Judge(KernelImage(MainlineFixed), KernelImage(Mainline)).run(workload).findings == ()


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("leak", LEAKS)
def test_mended_on_every_kernel(leak: str, profile: str) -> None:
    """A mend does no harm where the kernel leaks less."""
    workload = wire.decode((FOLDER / f"{leak}.msgpack").read_bytes())
    image, reference = KernelImage(MainlineFixed), KernelImage(Mainline)
    assert Judge(image, reference, profile=profile).run(workload).findings == ()


@pytest.mark.parametrize("name", sorted(MainlineFixed.replaces))
def test_each_mend_is_needed(name: str) -> None:
    """Without one of them, one of the workloads shows its leak again."""
    image = KernelImage(MainlineFixed)
    module, _, function = name.partition(".")
    setattr(getattr(image, module), function, getattr(getattr(KernelImage(Mainline), module), function))
    judge = Judge(image)
    workloads = [wire.decode((FOLDER / f"{leak}.msgpack").read_bytes()) for leak in LEAKS]
    assert sum(bool(judge.run(workload).findings) for workload in workloads) == 1
