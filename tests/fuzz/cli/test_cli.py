"""The command line: exit statuses, one-line errors, the JSON that scripts read, nothing half-written."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgpack
import pytest

from fuzz import cli, minimize, target
from fuzz.workload import wire
from oracle.live.view import Depth

Capture = pytest.CaptureFixture[str]


def run(capsys: Capture, *arguments: str | Path) -> tuple[int, str, str]:
    """Exit status, stdout, stderr."""
    status = cli.run([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def one_line(text: str) -> str:
    """The one line that an error is."""
    assert text.startswith("vmafuzz: ")
    assert text.count("\n") == 1
    assert "Traceback" not in text
    return text


# ---- replay


def test_replay_of_a_finding(capsys: Capture, tmp_path: Path, planted: str, shows_planted: Path) -> None:
    """Status 1, the steps with their results, the broken promise, and the JSON."""
    place = tmp_path / "out.json"
    status, out, _ = run(capsys, "replay", shows_planted, "--design", planted, "--json", place)
    assert status == 1
    assert ">>>  1  mprotect addr=4 len=2 prot=none" in out
    (result,) = json.loads(place.read_text())
    assert list(result) == ["workload", "verdict", "digest", "findings"]
    assert (result["workload"], result["verdict"]) == (str(shows_planted), "finding")
    assert result["findings"][0]["oracle"] == "specification"
    assert result["findings"][0]["signature"] in out
    assert result["findings"][0]["detail"] in out


def test_replay_of_a_clean_workload(capsys: Capture, tmp_path: Path, shows_planted: Path) -> None:
    """Status 0; the digest is printed, so two machines can be compared by eye."""
    place = tmp_path / "out.json"
    status, out, err = run(capsys, "replay", shows_planted, "--design", "mainline", "--json", place)
    (result,) = json.loads(place.read_text())
    assert (status, err) == (0, "")
    assert (result["verdict"], result["findings"]) == ("clean", [])
    assert f"digest {result['digest']}" in out


def test_digest_is_the_same_in_every_process(shows_planted: Path) -> None:
    """Also under other hash seeds."""
    outputs = set()
    for seed in ("0", "1"):
        done = subprocess.run(
            [sys.executable, "-m", "fuzz", "replay", str(shows_planted), "--design", "mainline"],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        )
        outputs.add(done.stdout)
    assert len(outputs) == 1


def test_an_invalid_file_among_others(capsys: Capture, tmp_path: Path, shows_planted: Path) -> None:
    """The others are replayed all the same; status 2."""
    bad = tmp_path / "bad.msgpack"
    bad.write_bytes(b"\xff")
    place = tmp_path / "out.json"
    status, _, err = run(capsys, "replay", bad, shows_planted, "--design", "mainline", "--json", place)
    assert status == 2
    assert "bad.msgpack" in one_line(err)
    verdicts = [(result["verdict"], result["digest"] is None) for result in json.loads(place.read_text())]
    assert verdicts == [("invalid", True), ("clean", False)]


HOSTILE: dict[str, bytes] = {
    "empty": b"",
    "truncated": wire.encode(wire.decode(msgpack.packb(["vmafuzz", 1, "small8", [[6, 0, 1]]])))[:-2],
    "oversized": b"\x00" * (wire.SIZE_MAX + 1),
    "deep": b"\x91" * 5000,
    "version": msgpack.packb(["vmafuzz", 99, "small8", []]),
    "extension": msgpack.packb(msgpack.ExtType(4, b"x" * 100)),
    "long list": b"\xdd\xff\xff\xff\xff",
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("command", ["replay", "show", "minimize"])
def test_hostile_bytes(capsys: Capture, tmp_path: Path, command: str, name: str) -> None:
    """One clear line, status 2, nothing written."""
    place = tmp_path / "hostile.msgpack"
    place.write_bytes(HOSTILE[name])
    status, out, err = run(capsys, command, place)
    assert (status, out) == (2, "")
    assert "hostile.msgpack" in one_line(err)
    assert [path.name for path in tmp_path.iterdir()] == ["hostile.msgpack"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["replay", "none.msgpack"], "none.msgpack: cannot be read: No such file or directory"),
        (["replay", ".", "--design", "mainline"], ".: cannot be read: Is a directory"),
        (["replay", "x", "--design", "nonesuch"], "unknown design 'nonesuch'; there are"),
        (["replay", "x", "--reference", "nonesuch"], "unknown design 'nonesuch'; there are"),
        (["replay", "x", "--profile", "2.4"], "unknown profile '2.4'; there are 5.17, 6.18, 7.0"),
        (["replay"], "Missing argument 'FILE…"),
        (["fuzz", "--design", "nonesuch", "--out", "x/o"], "unknown design 'nonesuch'"),
        (["fuzz", "--time", "-1"], "Invalid value for '--time'"),
        (["fuzz", "--nonesuch"], "No such option: --nonesuch"),
        (["nonesuch"], "No such command 'nonesuch'"),
        (["record", "-o", "x.rec", "--", "nonesuch-command"], "nonesuch-command"),
        (["import", "none.txt", "-o", "x.rec"], "none.txt"),
        (["assemble", "none.txt", "-o", "x.msgpack"], "none.txt: cannot be read"),
    ],
)
def test_usage_errors(
    capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    """One line that says what to do, status 2, and no files."""
    monkeypatch.chdir(tmp_path)
    status, out, err = run(capsys, *arguments)
    assert (status, out) == (2, "")
    assert message in one_line(err)
    assert list(tmp_path.iterdir()) == []


def test_no_arguments_is_help(capsys: Capture) -> None:
    """Somebody who types the bare name wants to know what there is."""
    status, out, err = run(capsys)
    assert status in (0, 2)
    commands = "fuzz replay minimize show assemble export record import designs doctor bench"
    for command in commands.split():
        assert command in out + err


def test_version(capsys: Capture) -> None:
    """What to write into a report."""
    status, out, err = run(capsys, "--version")
    assert (status, err) == (0, "")
    assert out.startswith("vmafuzz 0.")


# ---- minimize, show, assemble


def test_minimize_keeps_the_signature(capsys: Capture, tmp_path: Path, planted: str) -> None:
    """A long workload becomes a short one that shows the same."""
    text = tmp_path / "long.txt"
    text.write_text(
        "world small8\n"
        + "mmap addr=100 len=3 prot=rw flags=private|fixed\nwrite addr=101 at=1\n" * 8
        + "mmap addr=4 len=2 prot=rw flags=private|fixed\nmprotect addr=4 len=2 prot=none\nwrite addr=4 at=0\n"
    )
    long, small, place = (tmp_path / name for name in ("long.msgpack", "small.msgpack", "out.json"))
    assert run(capsys, "assemble", text, "-o", long)[0] == 0
    status, out, _ = run(capsys, "minimize", long, "-o", small, "--design", planted)
    assert status == 1
    assert "19 steps down to" in out
    assert run(capsys, "replay", long, small, "--design", planted, "--json", place)[0] == 1
    before, after = json.loads(place.read_text())
    assert before["findings"][0]["signature"] == after["findings"][0]["signature"]
    assert len(wire.decode(small.read_bytes()).steps) <= 3


def test_minimize_of_a_clean_workload(capsys: Capture, shows_planted: Path, tmp_path: Path) -> None:
    """There is nothing to keep, most likely the design is the wrong one."""
    status, _, err = run(capsys, "minimize", shows_planted, "--design", "mainline")
    assert status == 2
    assert "no finding, so there is nothing to keep (is the --design right?)" in one_line(err)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["shows.msgpack"]


def test_show_and_assemble_are_inverse(
    capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shows_planted: Path
) -> None:
    """What show prints, assemble reads, from a file or from a pipe."""
    status, text, _ = run(capsys, "show", shows_planted)
    assert status == 0
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    place = tmp_path / "again.msgpack"
    assert run(capsys, "assemble", "-", "-o", place)[0] == 0
    assert place.read_bytes() == shows_planted.read_bytes()


@pytest.mark.parametrize("data", [b"world small8\nnonesuch addr=1\n", b"\xff\xfe", b"world nowhere\n"])
def test_assemble_of_bad_text(capsys: Capture, tmp_path: Path, data: bytes) -> None:
    """Nothing is written."""
    (tmp_path / "bad.txt").write_bytes(data)
    status, _, err = run(capsys, "assemble", tmp_path / "bad.txt", "-o", tmp_path / "x.msgpack")
    assert status == 2
    assert "bad.txt" in one_line(err)
    assert not (tmp_path / "x.msgpack").exists()


@pytest.mark.parametrize("output", ["no/such/folder/x.msgpack", "."])
def test_an_output_that_cannot_be_written(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, output: str
) -> None:
    """One line, status 2."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "w.txt").write_text("world small8\n")
    status, _, err = run(capsys, "assemble", "w.txt", "-o", output)
    assert status == 2
    assert "cannot be written" in one_line(err)
    assert [path.name for path in tmp_path.iterdir()] == ["w.txt"]


# ---- our own mistakes


def test_an_internal_error_keeps_its_input(
    capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shows_planted: Path
) -> None:
    """Status 3; the message names the folder with the traceback and the workload that caused it."""

    class Broken:
        def run(self, workload: Any) -> Any:
            raise KeyError("a bug of ours")

    monkeypatch.setattr(target.Target, "judge", lambda self: Broken())
    monkeypatch.chdir(tmp_path)
    status, _, err = run(capsys, "replay", shows_planted)
    assert status == 3
    assert one_line(err).startswith("vmafuzz: internal error: KeyError: 'a bug of ours'; the input and the traceback")
    folder = Path(err.strip().rpartition(" ")[2])
    assert (folder / "input.msgpack").read_bytes() == shows_planted.read_bytes()
    assert "KeyError" in (folder / "traceback.txt").read_text()


def test_an_internal_error_without_an_input(
    capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, planted: str, shows_planted: Path
) -> None:
    """Also then the traceback is kept and not printed."""

    def broken(*arguments: Any, **options: Any) -> Any:
        raise ZeroDivisionError

    monkeypatch.setattr(minimize, "minimize", broken)
    monkeypatch.chdir(tmp_path)
    status, _, err = run(capsys, "minimize", shows_planted, "--design", planted)
    assert status == 3
    assert "internal error: ZeroDivisionError" in one_line(err)


def test_a_users_design_that_fails(
    capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, planted: str, shows_planted: Path
) -> None:
    """A Python error in the user's own file is not ours: status 2, and the workload is kept all the same."""
    place = tmp_path / "planted.py"
    place.write_text(place.read_text().replace("return 0", "return mm.nonesuch"))
    monkeypatch.chdir(tmp_path)
    for command in ("replay", "minimize"):
        status, _, err = run(capsys, command, shows_planted, "--design", planted)
        assert status == 2
        assert "the design's own code failed: AttributeError" in one_line(err)
        folder = Path(err.strip().rpartition(" ")[2])
        assert (folder / "input.msgpack").read_bytes() == shows_planted.read_bytes()
        assert "planted.py" in (folder / "traceback.txt").read_text()


# ---- designs, doctor


def test_designs_lists_what_is_installed(capsys: Capture) -> None:
    """Names to copy into --design."""
    status, out, _ = run(capsys, "designs")
    assert status == 0
    assert "mainline" in out
    assert "relocate-anon" in out
    assert "FILE.py:NAME" in out


def test_doctor_says_what_works(capsys: Capture, tmp_path: Path) -> None:
    """All that a workload needs works here; the rest is told, not required."""
    status, out, _ = run(capsys, "doctor", "--json", tmp_path / "d.json")
    checks = {check["what"]: check for check in json.loads((tmp_path / "d.json").read_text())}
    assert status == 0
    assert checks["machine, oracles and counters work"]["ok"]
    assert "Atheris, to fuzz" in checks
    assert "perf, to record" in out


@pytest.mark.parametrize(
    ("system", "release", "ok", "here"),
    [
        ("Linux", "7.0.3-arch1", True, "--profile 7.0"),
        ("Linux", "6.8.0-31-generic", False, "--profile 5.17 is the nearest to 6.8.0-31-generic"),
        ("Darwin", "23.1.0", False, "Darwin 23.1.0"),
    ],
)
def test_doctor_names_the_nearest_profile(
    capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, system: str, release: str, ok: bool, here: str
) -> None:
    """What to give --profile here, and whether it is this very kernel."""
    monkeypatch.setattr("platform.system", lambda: system)
    monkeypatch.setattr("platform.release", lambda: release)
    run(capsys, "doctor", "--json", tmp_path / "d.json")
    checks = {check["what"]: check for check in json.loads((tmp_path / "d.json").read_text())}
    check = checks["a profile of this kernel"]
    assert (check["ok"], check["here"], check["required"]) == (ok, here, False)


def doctored(capsys: Capture, tmp_path: Path) -> dict[str, tuple[bool, str]]:
    """What doctor says: by what is checked, whether it is so, and what is here."""
    run(capsys, "doctor", "--json", tmp_path / "d.json")
    return {check["what"]: (check["ok"], check["here"]) for check in json.loads((tmp_path / "d.json").read_text())}


def test_doctor_says_what_the_live_oracle_lacks(
    capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each missing thing with what it costs and what to do; nothing of it is required."""
    monkeypatch.setattr("oracle.live.facilities.missing", lambda depth: ["run as root"] if depth > Depth.MAPS else [])
    monkeypatch.setattr("oracle.live.rmap_probe.missing", lambda: ["apt install clang", "run as root"])
    monkeypatch.setattr("oracle.live.userfault.refused", lambda: "for root only")
    monkeypatch.setattr("fuzz.doctor.THP", tmp_path / "enabled")
    monkeypatch.setattr("fuzz.doctor.KSM", tmp_path / "run")
    said = doctored(capsys, tmp_path)
    assert said["conform: layouts and results"] == (True, "--depth maps")
    for what, words in {
        "conform: pages": "run as root",
        "conform: reverse map": "apt install clang; run as root",
        "conform: userfaultfd": "for root only",
        "conform: huge pages": "CONFIG_TRANSPARENT_HUGEPAGE",
        "conform: KSM": "CONFIG_KSM",
    }.items():
        ok, here = said[what]
        assert not ok
        assert words in here


@pytest.mark.parametrize(
    ("setting", "ok"),
    [("always [madvise] never", True), ("[always] madvise never", False), ("always madvise [never]", False)],
)
def test_doctor_reads_the_settings_of_huge_pages_and_ksm(
    capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str, ok: bool
) -> None:
    """A setting that the machine does not have is told, with how to change it."""
    monkeypatch.setattr("oracle.live.facilities.missing", lambda depth: [])
    for name, text in (("THP", setting), ("KSM", "1")):
        (tmp_path / name).write_text(f"{text}\n")
        monkeypatch.setattr(f"fuzz.doctor.{name}", tmp_path / name)
    said = doctored(capsys, tmp_path)
    assert said["conform: huge pages"][0] is ok
    assert ("echo madvise" in said["conform: huge pages"][1]) is not ok
    assert said["conform: KSM"] == (True, "run 1")


def test_doctor_leaves_the_live_oracle_out_where_there_is_none(
    capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line in place of six."""
    monkeypatch.setattr("oracle.live.facilities.missing", lambda depth: ["needs Linux on x86-64"])
    said = doctored(capsys, tmp_path)
    assert [what for what in said if what.startswith("conform")] == ["conform: layouts and results"]
    assert said["conform: layouts and results"] == (False, "needs Linux on x86-64")


def test_doctor_notices_blindness(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """The trap that it is there for: code that is not instrumented."""
    monkeypatch.setattr("fuzz.feedback.counters.Counters.transform", lambda self, tree, filename: tree)
    status, out, _ = run(capsys, "doctor")
    assert status == 2
    assert "blind fuzzing" in " ".join(out.split())


# ---- as an installed command


def test_the_installed_command_survives_a_closed_pipe() -> None:
    """``vmafuzz designs | head -0`` is no error."""
    done = subprocess.run(
        f"{sys.executable} -m fuzz designs | head -c 0; exit ${{PIPESTATUS[0]}}",
        shell=True,
        executable="/bin/bash",
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in done.stderr


def test_replay_needs_no_atheris(shows_planted: Path, planted: str) -> None:
    """Replay, minimise and pytest work where Atheris cannot be installed."""
    code = (
        "import sys; sys.modules['atheris'] = None\n"
        "from fuzz import cli\n"
        f"sys.exit(cli.run(['replay', {str(shows_planted)!r}, '--design', {planted!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
