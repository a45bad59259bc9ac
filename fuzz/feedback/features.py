"""All features of a run as one range of numbers, and an account of those that were ever seen."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from fuzz.feedback.counters import Counters
from fuzz.feedback.states import POOL, States

if TYPE_CHECKING:
    from emulator.image import KernelImage


class Feedback:
    """Counters and state features of one image as one range of numbers: states first, then counters.

    Make the image with ``counters.transform`` first.
    """

    def __init__(self, counters: Counters, image: KernelImage) -> None:
        self.counters = counters
        self.states = States(image)
        self.size = POOL + counters.features
        self._seen: set[int] = set()

    def take(self) -> list[int]:
        """The features of the run since the last call."""
        features = self.states.take()
        features += [POOL + number for number in self.counters.take()]
        return features

    def hand_over(self, features: list[int], trace_branch: Callable[[int], None], base: int) -> None:
        """Count each feature in the engine, whose counter for feature 0 has the number ``base``."""
        numbers = features if base == 0 else [base + number for number in features]
        deque(map(trace_branch, numbers), maxlen=0)

    def note(self, features: list[int]) -> bool:
        """Remember these features; True when one of them is new."""
        if self._seen.issuperset(features):
            return False
        self._seen.update(features)
        return True

    def seen_bits(self) -> bytes:
        """One bit for each feature, bit 0 of byte 0 first: what ``restore`` reads."""
        bits = bytearray((self.size + 7) // 8)
        for number in self._seen:
            bits[number >> 3] |= 1 << (number & 7)
        return bytes(bits)

    def restore(self, bits: bytes) -> None:
        """Take over what an earlier life saw of the same code; other sizes are ignored."""
        if len(bits) == (self.size + 7) // 8:
            self._seen = {number for number in range(self.size) if bits[number >> 3] >> (number & 7) & 1}
