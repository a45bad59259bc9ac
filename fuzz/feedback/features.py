"""All features of a run as one range of numbers, and an account of those that were ever seen."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from emulator.errors import InternalError
from fuzz.feedback.counters import Counters
from fuzz.feedback.states import POOL, States

if TYPE_CHECKING:
    from emulator.image import KernelImage


FIRST: Final = 1  # Atheris numbers its counters from 1: a feature's number is its counter's
END_OF_STATES: Final = FIRST + POOL


class Feedback:
    """Counters and state features of one image as one range of numbers: states first, then counters.

    Make the counters with ``Counters(END_OF_STATES)``, and the image with their ``transform``.
    """

    def __init__(self, counters: Counters, image: KernelImage) -> None:
        self.counters = counters
        self.states = States(image, FIRST)
        self.end = END_OF_STATES + counters.features
        self._seen: set[int] = set()

    def take(self) -> list[int]:
        """The features of the run since the last call."""
        return self.states.take() + self.counters.take()

    def reserve(self, reserve_counter: Callable[[], int]) -> None:
        """Get a counter of the engine for every feature. Raises ``InternalError`` when it numbers them otherwise."""
        if [reserve_counter() for _ in range(FIRST, self.end)] != list(range(FIRST, self.end)):
            raise InternalError("the engine does not number its counters as expected")

    def hand_over(self, features: list[int], trace_branch: Callable[[int], None]) -> None:
        """Count each feature in the engine, once."""
        deque(map(trace_branch, features), maxlen=0)

    def note(self, features: list[int]) -> bool:
        """Remember these features; True when one of them is new."""
        if self._seen.issuperset(features):
            return False
        self._seen.update(features)
        return True

    def seen_bits(self) -> bytes:
        """One bit for each feature, bit 0 of byte 0 first: what ``restore`` reads."""
        bits = bytearray((self.end + 7) // 8)
        for number in self._seen:
            bits[number >> 3] |= 1 << (number & 7)
        return bytes(bits)

    def restore(self, bits: bytes) -> None:
        """Take over what an earlier life saw of the same code; other sizes are ignored."""
        if len(bits) == (self.end + 7) // 8:
            self._seen = {number for number in range(FIRST, self.end) if bits[number >> 3] >> (number & 7) & 1}
