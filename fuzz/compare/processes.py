"""The same function on several arguments at once, each in a forked process of its own.

What is large is shared through the fork, not sent. A child that dies is an error, never a wait without end, and Ctrl-C
ends them all at once.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import TypeVar

from emulator.errors import InternalError

Result = TypeVar("Result")


def each(names: Sequence[str], work: Callable[[str], Result]) -> Iterator[tuple[str, Result]]:
    """(name, ``work(name)``) as they come, as many at a time as there are cores.

    An exception of ``work`` is raised here, with the child's traceback as a note.
    """
    context = multiprocessing.get_context("fork")
    waiting = list(reversed(names))
    running: dict[Connection, tuple[str, BaseProcess]] = {}
    gc.collect()
    gc.freeze()  # the children share these pages as long as nobody looks at them
    try:
        while waiting or running:
            while waiting and len(running) < len(os.sched_getaffinity(0)):
                name = waiting.pop()
                ours, theirs = context.Pipe(duplex=False)
                child: BaseProcess = context.Process(target=_child, args=(theirs, work, name))
                child.start()
                theirs.close()  # so that its end is seen here
                running[ours] = name, child
            for ready in wait(list(running)):
                assert isinstance(ready, Connection)
                name, child = running[ready]
                try:
                    result, error = ready.recv()
                except EOFError:
                    child.join()
                    raise InternalError(f"the process of {name} ended with status {child.exitcode}") from None
                child.join()
                ready.close()
                del running[ready]
                if error is not None:
                    raise error
                yield name, result
    finally:
        gc.unfreeze()
        for connection, (_, child) in running.items():
            child.kill()
            child.join()
            connection.close()


def _child(pipe: Connection, work: Callable[[str], Result], name: str) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    try:
        pipe.send((work(name), None))
    except Exception as error:
        error.add_note(f"In the process of {name}:\n{traceback.format_exc()}")
        pipe.send((None, error))
