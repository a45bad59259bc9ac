"""``vmafuzz export``: a program in a file or on standard output, and one line for what cannot be exported."""

from __future__ import annotations

from pathlib import Path

import pytest

from fuzz import cli
from fuzz.workload import text, wire

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def workload(tmp_path: Path) -> Path:
    place = tmp_path / "small.msgpack"
    place.write_bytes(wire.encode(text.from_text("world small8\nmmap addr=4 len=2 prot=rw flags=private|fixed\n")))
    return place


def test_to_a_file(capsys: Capture, workload: Path, tmp_path: Path) -> None:
    """The lines to paste name the file that was written."""
    place = tmp_path / "two-pages.c"
    assert cli.run(["export", str(workload), "--format", "c", "-o", str(place)]) == 0
    assert capsys.readouterr() == ("", "")
    assert " *     cc -Wall -Wextra -o two-pages two-pages.c && ./two-pages\n" in place.read_text()


def test_to_standard_output(capsys: Capture, workload: Path) -> None:
    """The file is then called as the workload is, most likely."""
    assert cli.run(["export", str(workload), "--format", "c"]) == 0
    out, err = capsys.readouterr()
    assert "-o small small.c" in out
    assert out.endswith("}\n")
    assert err == ""


def test_another_kernel(capsys: Capture, tmp_path: Path) -> None:
    """The profile's rules hold: before 6.17 a move takes one VMA only. The lines to paste name it."""
    place = tmp_path / "two.msgpack"
    lines = """\
        world small8
        mmap     addr=4 len=2 prot=rw flags=private|fixed
        mmap     addr=6 len=2 prot=r flags=private|fixed
        mremap   addr=4 old_len=4 new_len=4 flags=maymove|fixed new_addr=20
        """
    place.write_bytes(wire.encode(text.from_text(lines)))
    for profile, result in (("6.18", "20"), ("5.17", "-EFAULT")):
        assert cli.run(["export", str(place), "--format", "c", "--profile", profile]) == 0
        out, _ = capsys.readouterr()
        assert f"at(20)), {result});" in out
        assert f"is as on Linux {profile}\\n" in out
    assert "replay two.msgpack --design mainline --profile 5.17\n" in out


def test_inexpressible(capsys: Capture, tmp_path: Path) -> None:
    """One line that names file and step, status 2, nothing written."""
    place = tmp_path / "pin.msgpack"
    place.write_bytes(wire.encode(text.from_text("world small8\ngup_slow addr=4 flags=pin pin=0\n")))
    assert cli.run(["export", str(place), "--format", "c", "-o", str(tmp_path / "x.c")]) == 2
    expected = f"vmafuzz: {place}: no program can do this by itself: step 0: gup_slow, which only the kernel does\n"
    assert capsys.readouterr() == ("", expected)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pin.msgpack"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.msgpack", "--format", "c"], "none.msgpack: cannot be read: No such file or directory"),
        (["bad.msgpack", "--format", "c"], "bad.msgpack: "),
        (["bad.msgpack", "--format", "c", "--profile", "2.4"], "unknown profile '2.4'; there are 5.17"),
        (["bad.msgpack"], "Missing option '--format'"),
        (["bad.msgpack", "--format", "cobol"], "Invalid value for '--format'"),
    ],
)
def test_usage_errors(
    capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    """One line, status 2, no files."""
    monkeypatch.chdir(tmp_path)
    Path("bad.msgpack").write_bytes(b"\x91" * 500)
    assert cli.run(["export", *arguments, "-o", "x.c"]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert message in err
    assert [path.name for path in tmp_path.iterdir()] == ["bad.msgpack"]
