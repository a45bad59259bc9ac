"""Of which sizes the running kernel gives large folios: a setting of the whole system, see ``alone``."""

from __future__ import annotations

import os

from oracle.live.settings import SIZE_FILES


def refused() -> str:
    """Why the sizes cannot be set; empty if they can."""
    for file in SIZE_FILES.values():
        if not file.exists():
            return "the running kernel has no sizes of large folios to set (Linux 6.8)"
        if not os.access(file, os.W_OK):
            return "only root may set sizes of large folios"
    return ""


def store(orders: int) -> None:
    """``madvise`` for the sizes of these orders (bit n: 2**n pages), ``never`` for the others."""
    for order, file in SIZE_FILES.items():
        handle = os.open(file, os.O_WRONLY)
        try:
            os.write(handle, b"madvise" if orders >> order & 1 else b"never")
        finally:
            os.close(handle)
