"""What a machine lacks for the live oracle is asked of the kernel, as the very user who runs."""

from __future__ import annotations

import ctypes
import errno
import os
import resource
from collections.abc import Callable
from pathlib import Path

import pytest

from fuzz.workload.text import from_text
from oracle.live import facilities, map_count, rmap_probe, thp_sizes, userfault
from oracle.live.expressible import expressible
from oracle.live.view import Depth
from tests.oracle.live.running_kernel import on_linux

pytestmark = on_linux

_NOBODY = 65534


def as_nobody(question: Callable[[], object]) -> str:
    """The answer in a process without privileges."""
    answer, mouth = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([])
            os.setresgid(_NOBODY, _NOBODY, _NOBODY)
            os.setresuid(_NOBODY, _NOBODY, _NOBODY)
            os.write(mouth, str(question()).encode())
        finally:
            os._exit(0)
    os.close(mouth)
    os.waitpid(pid, 0)
    with os.fdopen(answer) as said:
        return said.read()


@pytest.mark.skipif(os.geteuid() != 0, reason="gives privileges up, so it has to have some")
@pytest.mark.parametrize(
    ("question", "words"),
    [
        (lambda: facilities.missing(Depth.PAGES), "no frame numbers, so sharing is unknown: run as root"),
        (rmap_probe.missing, "bpf(2) is refused (Operation not permitted): run as root"),
    ],
    ids=["frames", "reverse-map"],
)
def test_without_privileges(question: Callable[[], object], words: str) -> None:
    """What only root is shown is missing, and said to be."""
    assert words not in str(question())  # first, as nobody may be unable to read what Python imports for it
    assert words in as_nobody(question)


def test_only_the_deepest_look_needs_bpf(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the probe lacks is no reason against the other depths."""
    monkeypatch.setattr(rmap_probe, "missing", lambda: ["no clang"])
    assert "no clang" in facilities.missing(Depth.RMAP)
    assert "no clang" not in facilities.missing(Depth.PAGES)


def test_swap_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without swap that writes at once, what is out is chance: told, with how to make some."""
    for there in (True, False):
        monkeypatch.setattr(facilities, "has_prompt_swap", lambda there=there: there)
        assert any("swapon" in sentence for sentence in facilities.missing(Depth.PAGES)) is not there


@pytest.mark.skipif(os.geteuid() != 0, reason="gives privileges up, so it has to have some")
def test_userfaultfd_needs_no_privilege() -> None:
    """As the live oracle opens it: for faults of user mode, which is all that it waits for."""
    assert as_nobody(userfault.refused) == userfault.refused()


@pytest.mark.parametrize(
    ("error", "words"), [(errno.ENOSYS, "CONFIG_USERFAULTFD"), (errno.EPERM, "allow this container")]
)
def test_no_userfaultfd(error: int, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Doctor says what to do, and workloads with it do not run."""

    class Refusing:
        def syscall(self, *args: int) -> int:
            ctypes.set_errno(error)
            return -1

    monkeypatch.setattr(ctypes, "CDLL", lambda *args, **named: Refusing())
    assert words in userfault.refused()
    steps = from_text("world x86-64\nread addr=0\nuffd_close\n")
    assert expressible(steps).startswith("step 1: userfaultfd: ")
    assert words in expressible(steps)


def test_a_kernel_without_userfaultfd(monkeypatch: pytest.MonkeyPatch) -> None:
    """A system call that is not there."""
    monkeypatch.setattr(userfault, "SYS_USERFAULTFD", 4000)
    assert userfault.refused().startswith(os.strerror(errno.ENOSYS))


@pytest.mark.parametrize("call", ["madvise addr=0 len=4", "process_madvise target=0 addr=0 len=4 addr2=8 len2=4"])
def test_swapping_large_folios_out(call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By whichever call: with folios of all sizes it is chance what comes back."""
    monkeypatch.setattr(thp_sizes, "refused", lambda: "")
    steps = from_text(f"world x86-64\nthp_sizes sizes=4\n{call} advice=pageout\n")
    assert "comes back whole" in expressible(steps, Depth.PAGES)
    assert expressible(from_text(f"world x86-64\n{call} advice=pageout\n"), Depth.PAGES) == ""


def test_limits_that_cannot_be_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hard limit is not raised; where there is none, every limit can be set."""
    monkeypatch.setattr(resource, "getrlimit", lambda which: (1 << 20, 1 << 20))
    text = "world x86-64\nsetrlimit resource={} pages={}\n"
    refused = [
        bool(expressible(from_text(text.format(name, pages))))
        for name, pages in (("memlock", 256), ("memlock", 257), ("stack", 256), ("as", 1), ("data", 1))
    ]
    assert refused == [False, True, False, True, True]
    monkeypatch.setattr(resource, "getrlimit", lambda which: (1 << 20, resource.RLIM_INFINITY))
    assert expressible(from_text(text.format("as", 1))) == ""


def test_too_many_mappings_to_make(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Some distributions allow a million."""
    setting = tmp_path / "max_map_count"
    monkeypatch.setattr(map_count, "SETTING", setting)
    near = from_text("world x86-64\nmax_map_count maps=4\n")
    setting.write_text("1048576\n")
    assert expressible(near) == "step 0: vm.max_map_count is 1048576: too many mappings to make"
    setting.write_text("65530\n")
    assert expressible(near) == ""
