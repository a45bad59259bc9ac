"""All features of a run as one range of numbers, and an account of those that were ever seen."""

from __future__ import annotations

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
        self.seen = bytearray(self.size)

    def take(self) -> list[int]:
        """The features of the run since the last call, ascending."""
        features = self.states.take()
        features += [POOL + number for number in self.counters.take()]
        return features

    def note(self, features: list[int]) -> bool:
        """Remember these features; True when one of them is new."""
        seen = self.seen
        new = False
        for number in features:
            if not seen[number]:
                seen[number] = 1
                new = True
        return new

    def seen_bits(self) -> bytes:
        """One bit for each feature, bit 0 of byte 0 first: what ``restore`` reads."""
        digits = self.seen[::-1].translate(_DIGITS)
        return int(digits, 2).to_bytes((self.size + 7) // 8, "little")

    def restore(self, bits: bytes) -> None:
        """Take over what an earlier life saw of the same code; other sizes are ignored."""
        if len(bits) == (self.size + 7) // 8:
            number = int.from_bytes(bits, "little")
            digits = bin(number)[2:].zfill(self.size).encode()
            self.seen = bytearray(digit & 1 for digit in digits[::-1][: self.size])


# Bytes 0 and 1 as the digits "0" and "1", which int() reads in base 2 faster than any loop.
_DIGITS = bytes((48 + (byte & 1)) for byte in range(256))
