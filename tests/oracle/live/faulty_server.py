"""A server of the live oracle whose ``read`` goes wrong, in a way that the arena page chooses."""

from __future__ import annotations

import ctypes
import os
import signal
import time

from oracle.live import calls, server


def _read(context: calls.Context, args: calls.Args, token: int) -> tuple[int, calls.Data]:
    what = args[0]
    if what in (1, 5):
        if what == 5:
            os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(600)
    if what == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    if what == 3:
        ctypes.string_at(8)
    if what == 4:
        raise ValueError("out of order")
    return 0, ()


calls.CALLS["read"] = _read
if __name__ == "__main__":
    server.main()
