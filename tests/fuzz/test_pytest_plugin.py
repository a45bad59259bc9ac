"""The pytest plugin: one test a workload, and failures that people can read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import fuzz.report
import fuzz.target
import oracle.judge

assert all((fuzz.report, fuzz.target, oracle.judge))  # loaded once: pytester forgets what a test imports

pytest_plugins = ["pytester"]


@pytest.fixture
def regressions(pytester: pytest.Pytester, shows_planted: Path, planted: str) -> Path:
    """A project with one regression in corpus/regressions/sub."""
    folder = pytester.path / "corpus" / "regressions" / "sub"
    folder.mkdir(parents=True)
    shutil.copy(shows_planted, folder / "shows.msgpack")
    expect(folder, design=planted, verdict="finding", signature="specification/write:permission", why="mprotect")
    return folder


def expect(folder: Path, **expected: str) -> None:
    (folder / "shows.json").write_text(json.dumps(expected))


def signature_of(pytester: pytest.Pytester, folder: Path, planted: str) -> str:
    """What the replay finds today, read from the failure of a test that expects nothing."""
    expect(folder, design=planted, verdict="clean", why="x")
    result = run(pytester)
    line = next(line for line in result.outlines if "expected no finding, got " in line)
    return line.rpartition("got ")[2]


def run(pytester: pytest.Pytester, *arguments: str) -> pytest.RunResult:
    return pytester.runpytest("-p", "no:cacheprovider", "-p", "no:cov", "-p", "no:xdist", *arguments)


def test_an_expected_finding_passes(pytester: pytest.Pytester, regressions: Path, planted: str) -> None:
    """A finding that is kept as a regression is a test that passes while it is still found."""
    signature = signature_of(pytester, regressions, planted)
    expect(regressions, design=planted, verdict="finding", signature=signature, why="x")
    result = run(pytester, "-v")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["*corpus/regressions/sub/shows.msgpack::shows PASSED*"])


def test_a_clean_workload_passes_on_mainline(pytester: pytest.Pytester, regressions: Path) -> None:
    """The other verdict."""
    expect(regressions, design="mainline", verdict="clean", why="mprotect works there")
    run(pytester).assert_outcomes(passed=1)


def test_a_lost_finding_fails_and_says_why_it_was_kept(pytester: pytest.Pytester, regressions: Path) -> None:
    """Whoever breaks it reads the workload and the reason, and no traceback."""
    expect(regressions, design="mainline", verdict="finding", signature="rmap/stale", why="the reviewer's case")
    result = run(pytester)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "*regression shows*",
            "shows.msgpack: expected rmap/stale, got no finding",
            "why it is here: the reviewer's case",
            "*mprotect addr=4 len=2 prot=none*",
        ]
    )
    assert "Traceback" not in result.stdout.str()
    assert "def runtest" not in result.stdout.str()


def test_a_new_finding_shows_the_broken_promise(pytester: pytest.Pytester, regressions: Path, planted: str) -> None:
    """The steps with ``>>>`` at the broken one, and what was promised."""
    expect(regressions, design=planted, verdict="clean", why="must stay clean")
    result = run(pytester)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["*expected no finding, got specification/*", ">>>*mprotect*", "specification/* (step 1)"]
    )


BAD: dict[str, tuple[str | None, str]] = {
    "missing": (None, "missing.json: cannot be read: No such file or directory"),
    "torn": ("{", "torn.json: not JSON"),
    "list": ("[]", "list.json: not an object of texts"),
    "bare": ('{"design": "mainline"}', "bare.json: needs design, why, verdict"),
    "unsigned": ('{"design": "mainline", "verdict": "finding", "why": "x"}', "unsigned.json: needs design, why"),
    "maybe": ('{"design": "mainline", "verdict": "maybe", "why": "x"}', "maybe.json: needs design, why, verdict"),
    "stray": ('{"design": "mainline", "verdict": "clean", "why": "x", "x": "y"}', "stray.json: needs design, why"),
    "unknown": ('{"design": "nonesuch", "verdict": "clean", "why": "x"}', "unknown.msgpack: unknown design 'nonesuch'"),
}


def test_bad_expectations_fail_in_one_line(pytester: pytest.Pytester, regressions: Path) -> None:
    """A regression without a whole expectation must not pass silently."""
    for name, (text, _) in BAD.items():
        shutil.copy(regressions / "shows.msgpack", regressions / f"{name}.msgpack")
        if text is not None:
            (regressions / f"{name}.json").write_text(text)
    (regressions / "shows.msgpack").unlink()
    result = run(pytester)
    result.assert_outcomes(failed=len(BAD))
    for _, message in BAD.values():
        result.stdout.fnmatch_lines([f"{message}*"])
    assert "Traceback" not in result.stdout.str()


def test_a_damaged_workload_fails_in_one_line(pytester: pytest.Pytester, regressions: Path) -> None:
    """As does one that does not decode."""
    expect(regressions, design="mainline", verdict="clean", why="x")
    (regressions / "shows.msgpack").write_bytes(b"\xff")
    result = run(pytester)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["shows.msgpack: not*"])


def test_other_files_are_left_alone(pytester: pytest.Pytester, regressions: Path) -> None:
    """Only corpus/regressions is collected: other projects' msgpack files are none of ours."""
    shutil.copy(regressions / "shows.msgpack", pytester.path / "other.msgpack")
    (pytester.path / "regressions").mkdir()
    shutil.move(regressions / "shows.msgpack", pytester.path / "regressions" / "shows.msgpack")
    assert run(pytester).ret == pytest.ExitCode.NO_TESTS_COLLECTED
