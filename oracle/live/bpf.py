"""BPF programs through ctypes: libbpf loads them, bpf(2) attaches and runs them.

Everything is held by file descriptors and nothing is pinned, so the kernel clears up whatever way the process ends.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
from typing import Any, Final

LIBBPF: Final = "libbpf.so.1"

_NR_BPF: Final = {"x86_64": 321, "aarch64": 280, "riscv64": 280}

# include/uapi/linux/bpf.h: enum bpf_cmd, enum bpf_attach_type
_PROG_RUN: Final = 10
_PROG_GET_NEXT_ID: Final = 11
_LINK_CREATE: Final = 28
_ITER_CREATE: Final = 33
_TRACE_ITER: Final = 28

_LIBC: Final = ctypes.CDLL(None, use_errno=True)
_LIBBPF_WARN: Final = 0
_ATTR_BYTES: Final = 64  # enough for every command here; the kernel takes shorter ones than its own
_PRINTED_MAX: Final = 1 << 16  # bytes of one message of libbpf; the verifier's log comes as one


class BpfError(Exception):
    """The kernel or libbpf refused; the message ends with why."""


def _bpf(command: int, attributes: bytes) -> int:
    """The system call. Raises OSError."""
    number = _NR_BPF.get(platform.machine())
    if number is None:
        raise BpfError(f"bpf(2) on {platform.machine()}: its number is not known")
    attr = ctypes.create_string_buffer(attributes, _ATTR_BYTES)
    result: int = _LIBC.syscall(number, command, attr, _ATTR_BYTES)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def allowed() -> str:
    """Why this process may not use bpf(2) as root does, empty where it may."""
    try:
        _bpf(_PROG_GET_NEXT_ID, struct.pack("II", 0, 0))
    except FileNotFoundError:  # it was let in, and there is no program
        return ""
    except OSError as error:
        return os.strerror(error.errno or 0)
    except BpfError as error:
        return str(error)
    return ""


def iterator_of_process(program: int, pid: int) -> int:
    """Attach iterator ``program`` to the one process ``pid``; returns the descriptor of the link. Raises OSError.

    To the process, not to its only thread: an iterator over a thread starts again after each full buffer (6.18, 7.0).
    """
    assert pid > 0  # 0 would be every process of the system
    info = ctypes.create_string_buffer(struct.pack("II", 0, pid), 16)  # union bpf_iter_link_info: task.pid
    return _bpf(
        _LINK_CREATE, struct.pack("IIIIQI", program, 0, _TRACE_ITER, 0, ctypes.addressof(info), len(info))
    )


def read_iterator(link: int) -> bytes:
    """One pass of the iterator of ``link``: all that its program writes. Raises OSError."""
    descriptor = _bpf(_ITER_CREATE, struct.pack("II", link, 0))
    try:
        parts = []
        while part := os.read(descriptor, 1 << 16):
            parts.append(part)
        return b"".join(parts)
    finally:
        os.close(descriptor)


def run(program: int) -> None:
    """Run a program of type ``syscall`` once, without arguments. Raises OSError."""
    _bpf(_PROG_RUN, struct.pack("II", program, 0))


class BpfObject:
    """The programs and maps of one object file (its bytes), loaded; ``close`` unloads them. Raises BpfError."""

    def __init__(self, image: bytes) -> None:
        self._library = _libbpf()
        self._said: list[str] = []
        self._object = None
        printer = _Printer(self._keep)
        before = self._library.libbpf_set_print(printer)
        try:
            self._object = self._library.bpf_object__open_mem(image, len(image), None)
            if not self._object:
                raise BpfError(f"no BPF object: {os.strerror(ctypes.get_errno())}{self._last_words()}")
            status = self._library.bpf_object__load(self._object)
            if status:
                self.close()
                raise BpfError(f"the BPF programs do not load: {os.strerror(-status)}{self._last_words()}")
        finally:
            self._library.libbpf_set_print(ctypes.cast(before, _Printer))

    def program(self, name: str) -> int:
        """The descriptor of a program; the object owns it."""
        found = self._library.bpf_object__find_program_by_name(self._object, name.encode())
        descriptor: int = self._library.bpf_program__fd(found)
        return descriptor

    def map(self, name: str) -> int:
        """The descriptor of a map; the object owns it."""
        descriptor: int = self._library.bpf_object__find_map_fd_by_name(self._object, name.encode())
        return descriptor

    def close(self) -> None:
        if self._object:
            self._library.bpf_object__close(self._object)
            self._object = None

    def _keep(self, level: int, form: bytes, arguments: int) -> int:
        """libbpf says something: what it would print as a warning goes into the message of the error."""
        if level != _LIBBPF_WARN:
            return 0
        text = ctypes.create_string_buffer(_PRINTED_MAX)
        _LIBC.vsnprintf(text, _PRINTED_MAX, ctypes.c_char_p(form), ctypes.c_void_p(arguments))
        self._said.append(text.value.decode(errors="replace").strip())
        return 0

    def _last_words(self) -> str:
        """The warning that says most: the verifier's last line before its statistics, else libbpf's first."""
        lines = [line.strip() for message in self._said for line in message.splitlines() if line.strip()]
        for number, line in enumerate(lines):
            if line.startswith("processed ") and number:
                return f"; {lines[number - 1]}"
        return f"; {lines[0]}" if lines else ""


_Printer = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)


def _libbpf() -> Any:
    """libbpf 1.x with the types of what is called here. Raises BpfError."""
    try:
        library = ctypes.CDLL(LIBBPF, use_errno=True)
    except OSError as error:
        raise BpfError(str(error)) from error
    pointer, text, number = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int
    for name, result, arguments in (
        ("libbpf_set_print", pointer, [_Printer]),
        ("bpf_object__open_mem", pointer, [text, ctypes.c_size_t, pointer]),
        ("bpf_object__load", number, [pointer]),
        ("bpf_object__close", None, [pointer]),
        ("bpf_object__find_program_by_name", pointer, [pointer, text]),
        ("bpf_program__fd", number, [pointer]),
        ("bpf_object__find_map_fd_by_name", number, [pointer, text]),
    ):
        function = getattr(library, name)
        function.restype = result
        function.argtypes = arguments
    return library
