"""process_madvise in the specification: madvise, range by range (rules: mm/madvise.c).

The result counts the pages of the ranges that were done; of the one that ended it, only the first tells its errno.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

from emulator.uapi import (
    EAGAIN,
    EBUSY,
    EINVAL,
    ENOMEM,
    EPERM,
    ESRCH,
    MADV_COLD,
    MADV_COLLAPSE,
    MADV_PAGEOUT,
    MADV_WILLNEED,
)
from emulator.workload import Op, Outcome
from oracle.specification.page import Refusal, wrong_result

if TYPE_CHECKING:
    from oracle.specification.state import Specification

ERRORS: Final = (-EINVAL, -ENOMEM, -EPERM, -EAGAIN, -EBUSY)
_FOR_OTHERS: Final = frozenset((MADV_COLD, MADV_PAGEOUT, MADV_WILLNEED, MADV_COLLAPSE))

Do = Callable[["Specification", Op, Outcome], Refusal | None]
"""Does one call of madvise to a specification."""


def ranges(op: Op) -> list[Op]:
    """The calls of madvise that it stands for."""
    target, *places, advice = op.args
    pairs = zip(places[::2], places[1::2], strict=True)
    return [Op("madvise", target, (start, length, advice)) for start, length in pairs if length]


def done_and_last(op: Op, ret: int) -> tuple[list[Op], Op | None, tuple[int, ...]] | None:
    """(calls that succeeded, the one that failed if any, its possible errnos); None: the result cannot be."""
    calls = ranges(op)
    if ret < 0:
        return ([], calls[0], (ret,)) if calls else None
    done = 0
    for number, call in enumerate(calls):
        if done == ret:
            return (calls[:number], call, ERRORS) if ret else None
        done += call.args[1]
    return (calls, None, ()) if done == ret else None


def refused(spec: Specification, op: Op) -> int:
    """The errno with which the call is refused whatever its ranges are, or 0."""
    target, advice = op.args[0], op.args[-1]
    if target not in spec.procs:
        return -ESRCH
    checked = target != op.proc or not spec.limits.profile.process_madvise_self
    unknown = advice not in _FOR_OTHERS or advice in spec.limits.profile.advice_unknown
    return -EINVAL if checked and unknown else 0


def process_madvise(spec: Specification, op: Op, ret: int, do: Do) -> Refusal | None:
    """Do the call with this result, each of its ranges by ``do``. None: allowed."""
    error = refused(spec, op)
    if error:
        return None if ret == error else wrong_result(op, ret, "an error")
    found = done_and_last(op, ret)
    if found is None:
        return wrong_result(op, ret, "the pages of its first ranges, or an error")
    done, last, errors = found
    for call in done:
        refusal = do(spec, call, Outcome(0))
        if refusal is not None:
            return refusal
    if last is None:
        return None
    outcome = next((Outcome(e) for e in errors if do(spec.copy(), last, Outcome(e)) is None), Outcome(errors[0]))
    return do(spec, last, outcome)


def alternatives(
    spec: Specification, op: Op, ret: int, each: Callable[[Specification, Op, Outcome], Iterator[Specification]]
) -> Iterator[Specification]:
    """The states that it may have left where an allocation failed; ``each`` gives those of one call of madvise."""
    found = None if refused(spec, op) else done_and_last(op, ret)
    if found is None:
        return
    done, last, errors = found
    states = [spec]
    for call in done:
        states = [after for state in states for after in each(state, call, Outcome(0, None, True))]
    for state in states:
        if last is None:
            yield state
        for error in errors:
            if last is not None:
                yield from each(state, last, Outcome(error, None, True))
