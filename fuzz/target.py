"""What is under test: a design, judged against a reference, on one kernel profile.

Everything that runs workloads (campaign, replay, minimiser, pytest plugin) makes its judge here, so that all of
them see the same verdicts. Nothing in here needs Atheris.
"""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Final, NamedTuple

from emulator.errors import UsageError
from emulator.profile import PROFILES
from fuzz import designs

if TYPE_CHECKING:
    from emulator.designs.base import Design
    from emulator.image import KernelImage, Transform
    from oracle.judge import Judge

DEFAULT_DESIGN: Final = "relocate-anon"
DEFAULT_REFERENCE: Final = "mainline"
DEFAULT_PROFILE: Final = "6.18"


def check_profile(name: str) -> str:
    """The name of a profile; raises ``UsageError`` where there is none of that name."""
    if name not in PROFILES:
        raise UsageError(f"unknown profile {name!r}; there are {', '.join(PROFILES)}")
    return name


class Target(NamedTuple):
    """Design and reference by the names that a user gave, and the profile."""

    design: str = DEFAULT_DESIGN
    reference: str = DEFAULT_REFERENCE
    profile: str = DEFAULT_PROFILE

    def check(self) -> type[Design]:
        """The design; raises ``UsageError`` when it, the reference or the profile is unknown."""
        check_profile(self.profile)
        designs.find(self.reference)
        return designs.find(self.design)

    def images(self, transform: Transform | None = None) -> tuple[KernelImage, KernelImage | None]:
        """Design and reference; ``transform`` rewrites the design's kernel code, never the reference's.

        A design is no reference for itself (the second run would only repeat the first), nor for one that mends its
        faults: None then.
        """
        design, reference = self.check(), designs.find(self.reference)
        image = designs.load_image(design, transform)
        alone = reference is design or design.mends == reference.name
        return image, None if alone else designs.load_image(reference)

    def judge(self) -> Judge:
        """A judge of the design, not instrumented."""
        from oracle.judge import Judge

        return Judge(*self.images(), profile=self.profile)

    def options(self) -> str:
        """The options that name this target, for a line to paste."""
        words = ["--design", self.design]
        if self.reference != DEFAULT_REFERENCE:
            words += ["--reference", self.reference]
        if self.profile != DEFAULT_PROFILE:
            words += ["--profile", self.profile]
        return shlex.join(words)
