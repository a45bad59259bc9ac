"""``vmafuzz compare`` as scripts see it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fuzz import cli

CORPUS = Path(__file__).parents[3] / "corpus"
RECORDING = CORPUS / "recordings" / "true.rec"
UNDO = CORPUS / "regressions" / "relocate-anon" / "undo-beside-gup-fast.msgpack"


def run(*words: object) -> int:
    """The exit status of ``vmafuzz compare`` with these words."""
    return cli.run(["compare", *(str(word) for word in words)])


def test_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A workload and a recording in one go: table, JSON and picture; status 1 says that there are findings."""
    out, picture = tmp_path / "a.json", tmp_path / "a.svg"
    names = "mainline,relocate-anon"
    assert run("--designs", names, UNDO, "--recording", RECORDING, "--json", out, "--svg", picture) == 1
    shown = capsys.readouterr().out
    assert "merges missed because of" in shown
    assert "undo/folio-not-restored:pinned" in shown
    figures = json.loads(out.read_text())
    assert figures["inputs"] == [str(UNDO), str(RECORDING)]
    assert list(figures["designs"]) == ["mainline", "relocate-anon"]
    assert figures["designs"]["mainline"]["steps"] == 5 + 66
    assert picture.read_text().startswith("<svg ")


def test_clean(capsys: pytest.CaptureFixture[str]) -> None:
    """Recordings are taken as workloads are."""
    assert run("--designs", "mainline", RECORDING) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--designs", "mainline"), "nothing to compare"),
        (("--designs", " , ", RECORDING), "names no design"),
        (("--designs", "mainline,mainline", RECORDING), "twice"),
        (("--designs", "mainline,nothing", RECORDING), "unknown design"),
        (("--designs", "mainline", "--recording", UNDO), "is no text"),
        (("--designs", "mainline", "--profile", "2.4", RECORDING), "unknown profile"),
        (("--designs", "mainline", "no-such-file"), "no-such-file"),
    ],
)
def test_bad_input(words: tuple[object, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """One line, status 2."""
    assert run(*words) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
