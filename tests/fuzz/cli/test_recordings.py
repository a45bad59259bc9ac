"""The commands that take recordings."""

from __future__ import annotations

from pathlib import Path

import pytest

from fuzz import cli
from fuzz.workload import wire

RECORDING = Path(__file__).parents[3] / "corpus" / "recordings" / "kselftest-mremap_dontunmap.perf.txt.xz"


def run(*words: object) -> int:
    """The exit status of ``vmafuzz`` with these words."""
    return cli.run([str(word) for word in words])


def test_cut(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What a recording is cut into are canonical workloads, ready to be a corpus, the same each time."""
    assert run("cut", RECORDING, "-o", tmp_path / "a") == 0
    assert run("cut", RECORDING, "-o", tmp_path / "b") == 0
    files = sorted((tmp_path / "a").iterdir())
    assert capsys.readouterr().out.splitlines()[0].endswith(f": {len(files)} workloads")
    assert len(files) >= 2
    for path in files:
        data = path.read_bytes()
        assert wire.encode(wire.decode(data)) == data
        assert (tmp_path / "b" / path.name).read_bytes() == data


def test_cut_of_rubbish(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line, status 2, and no folder is left behind."""
    (tmp_path / "x").write_text("hello\n")
    assert run("cut", tmp_path / "x", "-o", tmp_path / "out") == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "out").exists()
