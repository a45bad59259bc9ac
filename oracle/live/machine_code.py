"""The machine code that a process of a live workload runs: raw system calls, and memory accesses that recover.

Position-independent x86-64, written by hand. One page of code is followed by one page of data, which the code reaches
relative to the instruction pointer. An access stores where to go on in ``RECOVER`` before it touches memory; the
signal handler sends the process there, with the negative signal number less 1000 as result (emulator.uapi SIGSEGV,
SIGBUS). A signal that no access expects ends the process as if there were no handler.
"""

from __future__ import annotations

from typing import Final

CODE_SIZE: Final = 4096  # bytes; the data page follows
SUB_PAGE: Final = 1024  # bytes between the places in a page where tokens stand
FETCH_OFFSET: Final = 512  # bytes; where a page holds zeros, whatever tokens it has

# Data, as offsets from the first byte of the code.
RECOVER: Final = CODE_SIZE  # where the process goes on after a fault, 0 outside accesses
SCRATCH: Final = CODE_SIZE + 8  # the byte that a fetched instruction adds to
WORDS: Final = CODE_SIZE + 16  # four words that the last load found
DEFAULT_ACTION: Final = CODE_SIZE + 64  # a struct sigaction of zeros: SIG_DFL
DATA_SIZE: Final = 4096

# struct ucontext: byte offsets of saved registers.
_RDI, _RAX, _RIP, _EFLAGS = 104, 144, 168, 176
_TRAP_FLAG = 0x100
_SIGTRAP = 5


class _Assembler:
    """Collects instructions; labels and data are reached by 32-bit distances from the instruction's end."""

    def __init__(self) -> None:
        self.code = bytearray()
        self.labels: dict[str, int] = {}
        self._distances: list[tuple[int, int, str | int]] = []  # (where, end of instruction, label or data)

    def label(self, name: str) -> None:
        self.labels[name] = len(self.code)

    def emit(self, opcode: str, target: str | int | None = None, tail: bytes = b"") -> None:
        """``opcode`` in hexadecimal; with a target its distance follows, then ``tail`` (an immediate)."""
        self.code += bytes.fromhex(opcode)
        if target is not None:
            where = len(self.code)
            self._distances.append((where, where + 4 + len(tail), target))
            self.code += bytes(4) + tail

    def bytes(self) -> bytes:
        for where, end, target in self._distances:
            position = self.labels[target] if isinstance(target, str) else target
            self.code[where : where + 4] = (position - end).to_bytes(4, "little", signed=True)
        return bytes(self.code)


def assemble() -> tuple[bytes, dict[str, int]]:
    """The code, and the offset of each entry point in it."""
    a = _Assembler()
    _system_call(a)
    _load(a)
    _store(a)
    _fetch(a)
    _handler(a)
    _grow_stack(a)
    return a.bytes(), a.labels


def _system_call(a: _Assembler) -> None:
    """long system_call(number, six arguments): the kernel's result, errors as negative numbers."""
    a.label("system_call")
    a.emit("48 89 f8")  # mov rax, rdi
    a.emit("48 89 f7")  # mov rdi, rsi
    a.emit("48 89 d6")  # mov rsi, rdx
    a.emit("48 89 ca")  # mov rdx, rcx
    a.emit("4d 89 c2")  # mov r10, r8
    a.emit("4d 89 c8")  # mov r8, r9
    a.emit("4c 8b 4c 24 08")  # mov r9, [rsp+8]
    a.emit("0f 05")  # syscall
    a.emit("c3")  # ret


def _arm(a: _Assembler) -> None:
    a.emit("48 8d 05", "recovered")  # lea rax, [recovered]
    a.emit("48 89 05", RECOVER)  # mov [RECOVER], rax


def _disarm(a: _Assembler) -> None:
    a.emit("48 c7 05", RECOVER, bytes(4))  # mov qword [RECOVER], 0


def _load(a: _Assembler) -> None:
    """long load(page): the four tokens go to WORDS."""
    a.label("load")
    _arm(a)
    for place in range(4):
        a.emit("48 8b 87" + (place * SUB_PAGE).to_bytes(4, "little").hex())  # mov rax, [rdi + place]
        a.emit("48 89 05", WORDS + 8 * place)  # mov [WORDS + place], rax
    a.emit("31 c0")  # xor eax, eax
    _disarm(a)
    a.label("recovered")  # from a fault: rax is the result, and the stack is as it was at the entry
    a.emit("c3")  # ret


def _store(a: _Assembler) -> None:
    """long store(address, token)."""
    a.label("store")
    _arm(a)
    a.emit("48 89 37")  # mov [rdi], rsi
    a.emit("31 c0")  # xor eax, eax
    _disarm(a)
    a.emit("c3")  # ret


def _fetch(a: _Assembler) -> None:
    """long fetch(address): runs one instruction there. Two bytes of zeros are ``add [rax], al``.

    The trap flag stops twice: on arrival, where the handler lets it go on, and after the instruction.
    """
    a.label("fetch")
    _arm(a)
    a.emit("48 8d 05", SCRATCH)  # lea rax, [SCRATCH]
    a.emit("9c")  # pushfq
    a.emit("48 81 0c 24" + _TRAP_FLAG.to_bytes(4, "little").hex())  # or qword [rsp], TF
    a.emit("9d")  # popfq
    a.emit("ff e7")  # jmp rdi


def _handler(a: _Assembler) -> None:
    """The handler of SIGSEGV, SIGBUS and SIGTRAP (SA_SIGINFO), and the restorer that it returns to."""
    a.label("handler")
    a.emit("48 8b 05", RECOVER)  # mov rax, [RECOVER]
    a.emit("48 85 c0")  # test rax, rax
    a.emit("0f 84", "unexpected")  # jz unexpected
    a.emit(f"83 ff {_SIGTRAP:02x}")  # cmp edi, SIGTRAP
    a.emit("0f 85", "fault")  # jne fault
    a.emit(f"48 8b 4a {_RDI:02x}")  # mov rcx, [saved rdi]: where fetch jumped
    a.emit(f"48 3b 8a {_RIP:02x} 00 00 00")  # cmp rcx, [saved rip]
    a.emit("0f 84", "return")  # je return: it has only arrived
    a.emit("31 ff")  # xor edi, edi
    a.emit("e9", "recover")  # jmp recover
    a.label("fault")
    a.emit("81 c7 e8 03 00 00")  # add edi, 1000
    a.emit("f7 df")  # neg edi
    a.label("recover")
    a.emit(f"48 89 82 {_RIP:02x} 00 00 00")  # mov [saved rip], rax
    a.emit("48 63 ff")  # movsxd rdi, edi
    a.emit(f"48 89 ba {_RAX:02x} 00 00 00")  # mov [saved rax], rdi
    a.emit(f"48 81 a2 {_EFLAGS:02x} 00 00 00 ff fe ff ff")  # and qword [saved eflags], ~TF
    _disarm(a)
    a.label("return")
    a.emit("c3")  # ret
    a.label("unexpected")  # rt_sigaction(signal, SIG_DFL): the fault comes again and ends the process
    a.emit("b8 0d 00 00 00")  # mov eax, 13
    a.emit("48 8d 35", DEFAULT_ACTION)  # lea rsi, [DEFAULT_ACTION]
    a.emit("31 d2")  # xor edx, edx
    a.emit("41 ba 08 00 00 00")  # mov r10d, 8
    a.emit("0f 05")  # syscall
    a.emit("c3")  # ret
    a.label("restorer")
    a.emit("b8 0f 00 00 00")  # mov eax, 15: rt_sigreturn
    a.emit("0f 05")  # syscall


def _grow_stack(a: _Assembler) -> None:
    """void grow_stack(pages): touches so many pages below the stack pointer, so that it need not grow later."""
    a.label("grow_stack")
    a.emit("48 89 e0")  # mov rax, rsp
    a.label("next page")
    a.emit("48 81 ec 00 10 00 00")  # sub rsp, 4096
    a.emit("c6 04 24 00")  # mov byte [rsp], 0
    a.emit("48 ff cf")  # dec rdi
    a.emit("0f 85", "next page")  # jnz next page
    a.emit("48 89 c4")  # mov rsp, rax
    a.emit("c3")  # ret
