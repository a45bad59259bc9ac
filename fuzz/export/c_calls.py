"""Operations as C: for each kind one small function that writes the call with its check.

What the program itself offers (``expect``, ``load``, …) stands in ``program.c.jinja``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from emulator import uapi
from emulator.uapi import MAP_FIXED, MAP_FIXED_NOREPLACE, MREMAP_DONTUNMAP, MREMAP_FIXED, result_name
from emulator.workload import OFFSETS_MAX, OPS, POLICIES, RESOURCES, VMA_NAMES, Domain, pattern_token, token
from fuzz.export.expectation import FILE_TOKENS
from oracle.observation import KERNEL_ACTIVITY

if TYPE_CHECKING:
    from emulator.workload import Op, Outcome
    from fuzz.export.expectation import Expectation

# The order in which people write them.
_PROT: Final = ("PROT_READ", "PROT_WRITE", "PROT_EXEC")
_MAP: Final = (
    *("MAP_SHARED", "MAP_PRIVATE", "MAP_ANONYMOUS", "MAP_FIXED", "MAP_FIXED_NOREPLACE", "MAP_NORESERVE"),
    *("MAP_GROWSDOWN", "MAP_LOCKED", "MAP_POPULATE", "MAP_STACK", "MAP_DROPPABLE"),
)
_MLOCK: Final = ("MLOCK_ONFAULT",)
_MCL: Final = ("MCL_CURRENT", "MCL_FUTURE", "MCL_ONFAULT")
_UFFD_FEATURES: Final = ("UFFD_FEATURE_WP_UNPOPULATED",)
_UFFD_MODES: Final = {
    "uffd_register": tuple(f"UFFDIO_REGISTER_MODE_{name}" for name in ("MISSING", "WP", "MINOR")),
    "uffd_copy": ("UFFDIO_COPY_MODE_WP", "UFFDIO_COPY_MODE_DONTWAKE"),
    "uffd_continue": ("UFFDIO_CONTINUE_MODE_WP", "UFFDIO_CONTINUE_MODE_DONTWAKE"),
    "uffd_wp": ("UFFDIO_WRITEPROTECT_MODE_WP", "UFFDIO_WRITEPROTECT_MODE_DONTWAKE"),
    "uffd_move": ("UFFDIO_MOVE_MODE_ALLOW_SRC_HOLES", "UFFDIO_MOVE_MODE_DONTWAKE"),
}
_UFFD_EVENTS: Final = uapi.UFFD_FEATURE_EVENT_FORK | uapi.UFFD_FEATURE_EVENT_REMAP
_MREMAP: Final = ("MREMAP_MAYMOVE", "MREMAP_FIXED", "MREMAP_DONTUNMAP")
_ADVICE: Final = {value: name for name, value in vars(uapi).items() if name.startswith("MADV_")}
_KERNEL_ONLY: Final = KERNEL_ACTIVITY | {"gup_fast", "gup_slow", "unpin", "pin_write"}
_MREMAP_KNOWN: Final = uapi.MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP


def call(step: Expectation, number: int) -> str:
    """The statement that does the op and checks its result."""
    return EMITTERS[step.op.kind](step.op, step.outcome, number)


def remark(step: Expectation) -> str:
    """What the reader has to know of the call; empty: it is just what the workload says."""
    if _chosen(step.op, step.outcome):
        return "the kernel chooses where; this asks for the place that it has in the expected layout"
    return ""


def inexpressible(op: Op) -> str:
    """Why no program can do this op as the workload means it; empty: it can."""
    if op.fail_nth:
        return "an allocation that fails (fail_nth)"
    if op.kind in ("thp_sizes", "max_map_count", "overcommit_memory"):
        return f"{op.kind}, a setting of the whole system"
    if op.kind in _KERNEL_ONLY:
        return f"{op.kind}, which only the kernel does"
    if op.kind == "process_madvise" and op.args[0] != op.proc:
        return "advice for another process"
    if op.kind not in EMITTERS:
        return f"{op.kind}, for which there is no C yet"
    if op.kind == "mremap" and op.args[3] & ~_MREMAP_KNOWN:
        return "mremap flags that mainline does not have"
    if op.kind == "userfaultfd" and op.args[0] & _UFFD_EVENTS:
        return "a userfaultfd with events, which somebody has to read"
    return ""


def prots(op: Op) -> int:
    """The PROT_* bits that the op asks for."""
    for value, (_, domain) in zip(op.args, OPS[op.kind].args, strict=True):
        if domain is Domain.PROT:
            return value
    return 0


# ---- one function a kind


def _mmap(op: Op, outcome: Outcome, number: int) -> str:
    addr, length, prot, flags, file, offset = op.args
    if not file:
        flags |= uapi.MAP_ANONYMOUS
    if _chosen(op, outcome):
        addr = outcome.ret
        # MAP_SHARED_VALIDATE does not know NOREPLACE; nothing is there, so FIXED does as well
        validate = flags & uapi.MAP_TYPE == uapi.MAP_SHARED_VALIDATE
        flags |= MAP_FIXED if validate else MAP_FIXED_NOREPLACE
    handle = f"file[{file - 1}]" if file else "-1"
    where = f"{_at(addr)}, {_bytes(length)}, {_bits(prot, _PROT, 'PROT_NONE')}, {_bits(flags, _MAP)}"
    return f"expect_page(mmap({where}, {handle}, {_bytes(offset)}), {_result(outcome)});"


def _munmap(op: Op, outcome: Outcome, number: int) -> str:
    addr, length = op.args
    return f"expect(munmap({_at(addr)}, {_bytes(length)}), {_result(outcome)});"


def _mremap(op: Op, outcome: Outcome, number: int) -> str:
    addr, old, new, flags, target = op.args
    if _chosen(op, outcome):
        target = outcome.ret
        flags |= MREMAP_FIXED
    where = f", {_at(target)}" if flags & (MREMAP_FIXED | MREMAP_DONTUNMAP) else ""
    given = f"{_at(addr)}, {_bytes(old)}, {_bytes(new)}, {_bits(flags, _MREMAP)}{where}"
    return f"expect_page(mremap({given}), {_result(outcome)});"


def _mprotect(op: Op, outcome: Outcome, number: int) -> str:
    addr, length, prot = op.args
    return f"expect(mprotect({_at(addr)}, {_bytes(length)}, {_bits(prot, _PROT, 'PROT_NONE')}), {_result(outcome)});"


def _madvise(op: Op, outcome: Outcome, number: int) -> str:
    addr, length, advice = op.args
    return f"expect(madvise({_at(addr)}, {_bytes(length)}, {_ADVICE[advice]}), {_result(outcome)});"


def _process_madvise(op: Op, outcome: Outcome, number: int) -> str:
    *ranges, advice = op.args[1:]
    return f"expect(advise_ranges({', '.join(map(str, ranges))}, {_ADVICE[advice]}), {_result(outcome)});"


def _mlock(op: Op, outcome: Outcome, number: int) -> str:
    addr, length = op.args
    return f"expect({op.kind}({_at(addr)}, {_bytes(length)}), {_result(outcome)});"


def _mlock2(op: Op, outcome: Outcome, number: int) -> str:
    addr, length, flags = op.args
    return f"expect(mlock2({_at(addr)}, {_bytes(length)}, {_with_rest(flags, _MLOCK)}), {_result(outcome)});"


def _mlockall(op: Op, outcome: Outcome, number: int) -> str:
    return f"expect(mlockall({_with_rest(op.args[0], _MCL)}), {_result(outcome)});"


def _munlockall(op: Op, outcome: Outcome, number: int) -> str:
    return f"expect(munlockall(), {_result(outcome)});"


def _brk(op: Op, outcome: Outcome, number: int) -> str:
    return f"expect_page(set_break({op.args[0]}), {_result(outcome)});"


def _mseal(op: Op, outcome: Outcome, number: int) -> str:
    addr, length = op.args
    return f"expect(syscall(SYS_mseal, {_at(addr)}, {_bytes(length)}, 0), {_result(outcome)});"


def _set_vma_name(op: Op, outcome: Outcome, number: int) -> str:
    addr, length, number = op.args
    name = f'"{VMA_NAMES[number - 1]}"' if number else "NULL"
    given = f"PR_SET_VMA, PR_SET_VMA_ANON_NAME, {_at(addr)}, {_bytes(length)}, {name}"
    return f"expect(prctl({given}), {_result(outcome)});"


def _memory_merge(op: Op, outcome: Outcome, number: int) -> str:
    return f"expect(prctl(PR_SET_MEMORY_MERGE, {op.args[0]}, 0, 0, 0), {_result(outcome)});"


def _mbind(op: Op, outcome: Outcome, number: int) -> str:
    addr, length, policy = op.args
    return f"expect(bind_memory({addr}, {length}, MPOL_{POLICIES[policy].upper()}), {_result(outcome)});"


def _pkey_mprotect(op: Op, outcome: Outcome, number: int) -> str:
    addr, length, prot, key = op.args
    given = f"{_at(addr)}, {_bytes(length)}, {_bits(prot, _PROT, 'PROT_NONE')}, {key - 1}"
    return f"expect(syscall(SYS_pkey_mprotect, {given}), {_result(outcome)});"


def _remap_file_pages(op: Op, outcome: Outcome, number: int) -> str:
    addr, length, offset = op.args
    return f"expect(remap_file_pages({_at(addr)}, {_bytes(length)}, 0, {offset}, 0), {_result(outcome)});"


def _setrlimit(op: Op, outcome: Outcome, number: int) -> str:
    resource, pages = op.args
    return f"expect(set_limit(RLIMIT_{RESOURCES[resource].upper()}, {pages}), {_result(outcome)});"


def _userfaultfd(op: Op, outcome: Outcome, number: int) -> str:
    return f"expect(userfaultfd({_with_rest(op.args[0], _UFFD_FEATURES)}), {_result(outcome)});"


def _uffd(op: Op, outcome: Outcome, number: int) -> str:
    """A call on the userfaultfd: the functions of the program take pages, as the ops do."""
    *args, last = (str(value) for value in op.args)
    names = _UFFD_MODES.get(op.kind)
    last = _with_rest(op.args[-1], names) if names else last
    return f"expect({op.kind}({', '.join((*args, last))}), {_result(outcome)});"


def _uffd_close(op: Op, outcome: Outcome, number: int) -> str:
    return f"expect(uffd_close(), {_result(outcome)});"


def _fork(op: Op, outcome: Outcome, number: int) -> str:
    return f"fork_process({op.args[0]});"


def _exit(op: Op, outcome: Outcome, number: int) -> str:
    return "leave();"


def _read(op: Op, outcome: Outcome, number: int) -> str:
    if outcome.data is None:
        return f"expect(load({op.args[0]}), {_result(outcome)});"
    return load(op.args[0], outcome.data)


def _write(op: Op, outcome: Outcome, number: int) -> str:
    page, at = op.args
    return f"expect(store({page}, {at}, {token(number, 0)}), {_result(outcome)});"


def _fill(op: Op, outcome: Outcome, number: int) -> str:
    page, pattern = op.args
    return f"expect(fill({page}, {hex(pattern_token(pattern))}), {_result(outcome)});"


def _exec(op: Op, outcome: Outcome, number: int) -> str:
    return f"expect(fetch({op.args[0]}), {_result(outcome)});"


Emitter = Callable[["Op", "Outcome", int], str]
"""(op, its outcome, number of its step) to a C statement."""

EMITTERS: Final[dict[str, Emitter]] = {
    "mmap": _mmap,
    "munmap": _munmap,
    "mremap": _mremap,
    "mprotect": _mprotect,
    "madvise": _madvise,
    "process_madvise": _process_madvise,
    "mlock": _mlock,
    "munlock": _mlock,
    "mlock2": _mlock2,
    "mlockall": _mlockall,
    "munlockall": _munlockall,
    "brk": _brk,
    "setrlimit": _setrlimit,
    "mseal": _mseal,
    "set_vma_name": _set_vma_name,
    "memory_merge": _memory_merge,
    "mbind": _mbind,
    "pkey_mprotect": _pkey_mprotect,
    "remap_file_pages": _remap_file_pages,
    "userfaultfd": _userfaultfd,
    "uffd_close": _uffd_close,
    "uffd_register": _uffd,
    "uffd_unregister": _uffd,
    "uffd_copy": _uffd,
    "uffd_zeropage": _uffd,
    "uffd_wp": _uffd,
    "uffd_move": _uffd,
    "uffd_poison": _uffd,
    "uffd_continue": _uffd,
    "fork": _fork,
    "exit": _exit,
    "read": _read,
    "write": _write,
    "fill": _fill,
    "exec": _exec,
}


# ---- pieces


def load(page: int, data: tuple[tuple[int, int], ...]) -> str:
    """A page that can be read and holds this."""
    words = ["0"] * OFFSETS_MAX
    for at, value in data:
        words[at] = _word(value)
    return f"expect_words(load({page}), {', '.join(words)});"


def _chosen(op: Op, outcome: Outcome) -> bool:
    """The machine chose an address that the running kernel, with other neighbours, would not choose."""
    if outcome.ret < 0:
        return False
    if op.kind == "mmap":
        return not op.args[3] & (MAP_FIXED | MAP_FIXED_NOREPLACE) and outcome.ret != op.args[0]
    if op.kind == "mremap" and not op.args[3] & MREMAP_FIXED:
        wanted = op.args[4] if op.args[3] & MREMAP_DONTUNMAP else op.args[0]
        return outcome.ret != wanted
    return False


def _at(page: int) -> str:
    return f"at({page})"


def _bytes(pages: int) -> str:
    return "0" if not pages else "PAGE" if pages == 1 else f"{pages} * PAGE"


def _bits(value: int, names: tuple[str, ...], none: str = "0") -> str:
    return " | ".join(name for name in names if value & getattr(uapi, name)) or none


def _with_rest(value: int, names: tuple[str, ...]) -> str:
    """As ``_bits``, with what has no name as a number."""
    rest = value
    for name in names:
        rest &= ~getattr(uapi, name)
    named = _bits(value, names, "") if value != rest else ""
    return " | ".join(word for word in (named, str(rest) if rest or not named else "") if word)


def _result(outcome: Outcome) -> str:
    ret = outcome.ret
    name = result_name(ret)
    return f"SIGNALLED({name})" if ret in (uapi.SIGSEGV, uapi.SIGBUS) else name if ret < 0 else str(ret)


def _word(value: int) -> str:
    """A token as the program writes it: what files begin with by its name."""
    if value < FILE_TOKENS:
        return str(value)
    return f"FILE_WORD({value >> 20 & 0xFFFF}, {(value & 0xFFFFF) - 1})"
