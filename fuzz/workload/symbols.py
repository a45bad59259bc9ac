"""Argument values by name: ``rw``, ``private|fixed``, ``dontneed``, ``file0``."""

from __future__ import annotations

import re
from typing import Final

from emulator import uapi
from emulator.workload import (
    FOLL_LONGTERM,
    FOLL_PIN,
    FOLL_WRITE,
    MEMFD,
    OVERCOMMIT,
    POLICIES,
    PROCESS_ADVICE_ALLOWED,
    RESOURCES,
    VMA_NAMES,
    Domain,
)

NONE: Final = "none"

_FLAGS: Final[dict[Domain, tuple[tuple[str, int], ...]]] = {
    Domain.MAP_FLAGS: (
        ("shared", uapi.MAP_SHARED),
        ("private", uapi.MAP_PRIVATE),
        ("droppable", uapi.MAP_DROPPABLE),
        ("fixed", uapi.MAP_FIXED),
        ("growsdown", uapi.MAP_GROWSDOWN),
        ("locked", uapi.MAP_LOCKED),
        ("noreserve", uapi.MAP_NORESERVE),
        ("populate", uapi.MAP_POPULATE),
        ("stack", uapi.MAP_STACK),
        ("noreplace", uapi.MAP_FIXED_NOREPLACE),
    ),
    Domain.MREMAP_FLAGS: (
        ("maymove", uapi.MREMAP_MAYMOVE),
        ("fixed", uapi.MREMAP_FIXED),
        ("dontunmap", uapi.MREMAP_DONTUNMAP),
        ("relocate", uapi.MREMAP_RELOCATE_ANON),
        ("must_relocate", uapi.MREMAP_MUST_RELOCATE_ANON),
    ),
    Domain.GUP_FLAGS: (("pin", FOLL_PIN), ("write", FOLL_WRITE), ("longterm", FOLL_LONGTERM)),
    Domain.MLOCK2_FLAGS: (("onfault", uapi.MLOCK_ONFAULT),),
    Domain.MCL_FLAGS: (
        ("current", uapi.MCL_CURRENT),
        ("future", uapi.MCL_FUTURE),
        ("onfault", uapi.MCL_ONFAULT),
    ),
    Domain.UFFD_FEATURES: (
        ("event_fork", uapi.UFFD_FEATURE_EVENT_FORK),
        ("event_remap", uapi.UFFD_FEATURE_EVENT_REMAP),
        ("wp_unpopulated", uapi.UFFD_FEATURE_WP_UNPOPULATED),
    ),
    Domain.UFFD_REGISTER_MODE: (
        ("missing", uapi.UFFDIO_REGISTER_MODE_MISSING),
        ("wp", uapi.UFFDIO_REGISTER_MODE_WP),
        ("minor", uapi.UFFDIO_REGISTER_MODE_MINOR),
    ),
    Domain.UFFD_COPY_MODE: (
        ("dontwake", uapi.UFFDIO_COPY_MODE_DONTWAKE),
        ("wp", uapi.UFFDIO_COPY_MODE_WP),
    ),
    Domain.UFFD_WP_MODE: (
        ("wp", uapi.UFFDIO_WRITEPROTECT_MODE_WP),
        ("dontwake", uapi.UFFDIO_WRITEPROTECT_MODE_DONTWAKE),
    ),
    Domain.THP_ORDERS: tuple((str(1 << order), 1 << order) for order in range(2, 9)),
    Domain.UFFD_MOVE_MODE: (
        ("dontwake", uapi.UFFDIO_MOVE_MODE_DONTWAKE),
        ("holes", uapi.UFFDIO_MOVE_MODE_ALLOW_SRC_HOLES),
    ),
}

_ADVICE: Final = (
    ("normal", uapi.MADV_NORMAL),
    ("random", uapi.MADV_RANDOM),
    ("sequential", uapi.MADV_SEQUENTIAL),
    ("willneed", uapi.MADV_WILLNEED),
    ("dontneed", uapi.MADV_DONTNEED),
    ("free", uapi.MADV_FREE),
    ("remove", uapi.MADV_REMOVE),
    ("dontfork", uapi.MADV_DONTFORK),
    ("dofork", uapi.MADV_DOFORK),
    ("mergeable", uapi.MADV_MERGEABLE),
    ("unmergeable", uapi.MADV_UNMERGEABLE),
    ("hugepage", uapi.MADV_HUGEPAGE),
    ("nohugepage", uapi.MADV_NOHUGEPAGE),
    ("dontdump", uapi.MADV_DONTDUMP),
    ("dodump", uapi.MADV_DODUMP),
    ("wipeonfork", uapi.MADV_WIPEONFORK),
    ("keeponfork", uapi.MADV_KEEPONFORK),
    ("cold", uapi.MADV_COLD),
    ("pageout", uapi.MADV_PAGEOUT),
    ("populate_read", uapi.MADV_POPULATE_READ),
    ("populate_write", uapi.MADV_POPULATE_WRITE),
    ("dontneed_locked", uapi.MADV_DONTNEED_LOCKED),
    ("collapse", uapi.MADV_COLLAPSE),
    ("guard_install", uapi.MADV_GUARD_INSTALL),
    ("guard_remove", uapi.MADV_GUARD_REMOVE),
)

_NUMBERS: Final[dict[Domain, tuple[tuple[str, int], ...]]] = {
    Domain.ADVICE: _ADVICE,
    Domain.PROCESS_ADVICE: tuple(named for named in _ADVICE if named[1] in PROCESS_ADVICE_ALLOWED),
    Domain.VMA_NAME: ((NONE, 0), *((name, n + 1) for n, name in enumerate(VMA_NAMES))),
    Domain.POLICY: tuple((name, n) for n, name in enumerate(POLICIES)),
    Domain.PKEY: ((NONE, 0), ("key0", 1), ("key1", 2)),
    Domain.RESOURCE: tuple((name, n) for n, name in enumerate(RESOURCES)),
    Domain.OVERCOMMIT: tuple((name, n) for n, name in enumerate(OVERCOMMIT)),
    Domain.SWITCH: (("off", 0), ("on", 1)),
    Domain.FILE: (("anon", 0), *((f"file{n}", n + 1) for n in range(MEMFD)), ("memfd", MEMFD + 1)),
}

# int() alone would also take "1_0", "-1" and digits of other scripts.
_NUMBER = re.compile(r"[0-9]{1,9}|0x[0-9a-f]{1,8}")

_PROT: Final = (("r", uapi.PROT_READ), ("w", uapi.PROT_WRITE), ("x", uapi.PROT_EXEC))

_FLAG_VALUES: Final = {domain: dict(table) for domain, table in _FLAGS.items()}
_NUMBER_VALUES: Final = {domain: dict(table) for domain, table in _NUMBERS.items()}
_NUMBER_NAMES: Final = {
    domain: {number: name for name, number in table} for domain, table in _NUMBERS.items()
}


def show_value(domain: Domain, value: int) -> str:
    """The value as people write it; ``parse_value`` reads it back."""
    if domain is Domain.PROT:
        return "".join(letter for letter, bit in _PROT if value & bit) or NONE
    if domain in _FLAGS:
        return _show_flags(_FLAGS[domain], value)
    return _NUMBER_NAMES.get(domain, {}).get(value) or str(value)


def _show_flags(table: tuple[tuple[str, int], ...], value: int) -> str:
    names = [name for name, bit in table if value & bit]
    rest = value & ~sum(bit for _, bit in table)
    if rest:
        names.append(hex(rest))  # bits that have no name: a design's own
    return "|".join(names) or NONE


def parse_value(domain: Domain, text: str) -> int:
    """The number behind a value as people write it. Raises ``ValueError`` that says what is allowed."""
    if domain is Domain.PROT:
        return _parse_prot(text)
    if domain in _FLAG_VALUES:
        known = _FLAG_VALUES[domain]
        value = 0
        if text != NONE:
            for part in text.split("|"):
                value |= _parse_name(known, part, "a flag")
        return value
    return _parse_name(_NUMBER_VALUES.get(domain, {}), text, "a value")


def _parse_prot(text: str) -> int:
    known = dict(_PROT)
    if text == NONE:
        return 0
    if not text or not set(text) <= known.keys() or len(set(text)) != len(text):
        raise ValueError(f"{_short(text)} is no protection; write letters of rwx, or none")
    return sum(known[letter] for letter in text)


def _parse_name(known: dict[str, int], text: str, what: str) -> int:
    if text in known:
        return known[text]
    if _NUMBER.fullmatch(text):
        return int(text, 16 if text.startswith("0x") else 10)
    if known:
        raise ValueError(f"{_short(text)} is not {what}; there are {' '.join(known)}")
    raise ValueError(f"{_short(text)} is no number")


def _short(text: str) -> str:
    shown = ascii(text)
    return shown if len(shown) <= 40 else shown[:37] + "..."
