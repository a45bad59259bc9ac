"""Whole campaigns: real workers, real engine, seconds long."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="needs Atheris"),
]

CRASHES = '''\
from emulator.designs.base import Design

def sys_mprotect(mm, start, length, prot):
    return mm.nonesuch

class Crashes(Design):
    name = "crashes"
    replaces = {"mprotect.sys_mprotect": sys_mprotect}
'''


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "fuzz", *map(str, arguments)]


def fuzz(folder: Path, *arguments: str | Path, timeout: float = 90) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command("fuzz", "--workers", "1", "--seed", "7", *arguments),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def status_of(out: Path) -> dict[str, Any]:
    try:
        status: dict[str, Any] = json.loads((out / "status.json").read_text())
    except FileNotFoundError:
        return {"execs": 0, "findings": []}
    return status


def wait_for_findings(out: Path, seconds: float = 60) -> dict[str, Any]:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        status = status_of(out)
        if status["findings"] and status["execs"]:
            return status
        time.sleep(0.1)
    raise AssertionError("no finding")


def processes_about(folder: Path) -> list[int]:
    """Living processes that have the folder on their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if str(folder).encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return [pid for pid in found if pid != os.getpid()]


def wait_for_none(folder: Path, seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not processes_about(folder):
            return
        time.sleep(0.05)
    raise AssertionError(f"still alive: {processes_about(folder)}")


def test_a_planted_bug_is_found_minimised_and_replays(tmp_path: Path, planted: str) -> None:
    """The promise of the whole thing, with every field that scripts read."""
    out = tmp_path / "out"
    done = fuzz(tmp_path, "--design", planted, "--time", "4", "--out", out, "--json", "r.json", "--trace")
    assert done.returncode == 1, done.stderr
    result = json.loads((tmp_path / "r.json").read_text())
    assert list(result) == [
        "design", "profile", "seed", "seconds", "workers", "execs", "execs_per_second", "steps_per_second",
        "features", "corpus", "stability", "findings",
    ]  # fmt: skip
    assert (result["design"], result["profile"], result["seed"], result["workers"]) == (planted, "6.18", 7, 1)
    assert result["execs"] > 10
    assert result["features"] > 100
    assert result["corpus"] > 10
    assert result["stability"] == 100.0
    ours = [found for found in result["findings"] if found["steps"] <= 3 and found["oracle"] == "specification"]
    assert ours
    assert list(ours[0]) == ["signature", "oracle", "rule", "steps", "workload", "replay"]
    line = ours[0]["replay"]
    assert done.stdout.count(line + "\n") == 1
    assert f"replay {ours[0]['workload']} --design {planted}" in line
    again = subprocess.run(
        command("replay", ours[0]["workload"], "--design", planted),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert again.returncode == 1
    assert ours[0]["signature"] in again.stdout
    bucket = (tmp_path / ours[0]["workload"]).parent
    assert sorted(path.name for path in bucket.iterdir()) == [
        "finding.json", "raw.msgpack", "workload.msgpack", "workload.txt",
    ]  # fmt: skip
    assert "\nTracepoints:\n" in done.stdout
    assert any(text.startswith("vm_av_merge: ") for text in json.loads((out / "status.json").read_text())["traced"])
    kept = json.loads((bucket / "finding.json").read_text())
    assert kept["replays"] == "20/20"
    assert kept["on_reference"] is False
    assert not processes_about(out)


def test_a_campaign_goes_on_after_kill_9(tmp_path: Path, planted: str) -> None:
    """Nothing found is lost, the workers die with the supervisor, and the second start continues."""
    out = tmp_path / "out"
    arguments = ("--workers", "1", "--seed", "7", "--design", planted, "--out", out)
    with subprocess.Popen(command("fuzz", *arguments), cwd=tmp_path, stderr=subprocess.DEVNULL) as process:
        before = wait_for_findings(out)
        process.kill()
    wait_for_none(out)
    # but for one that the kill has met half-written: libFuzzer names an input by the SHA-1 of its bytes
    corpus = (out / "corpus").iterdir()
    inputs = {path.name for path in corpus if hashlib.sha1(path.read_bytes()).hexdigest() == path.name}
    done = fuzz(tmp_path, "--design", planted, "--out", out, "--time", "4", "--json", "r.json")
    assert done.returncode == 1, done.stderr
    after = json.loads((tmp_path / "r.json").read_text())
    signatures = {found["signature"] for found in before["findings"]}
    assert signatures <= {found["signature"] for found in after["findings"]}
    assert after["execs"] > before["execs"]
    assert after["seconds"] > before["seconds"] + 1.5
    assert inputs <= {path.name for path in (out / "corpus").iterdir()}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_at_once_with_the_summary(tmp_path: Path, planted: str, number: signal.Signals) -> None:
    """Ctrl-C, or a service manager: within two seconds, nobody left behind, JSON and summary written."""
    out = tmp_path / "out"
    process = subprocess.Popen(
        command("fuzz", "--workers", "2", "--design", planted, "--out", out, "--json", "r.json"),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for_findings(out)
    started = time.monotonic()
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=30)
    assert time.monotonic() - started < 5
    assert process.returncode == 1
    assert "planted" in stdout
    assert "Traceback" not in stderr
    assert json.loads((tmp_path / "r.json").read_text())["findings"]
    wait_for_none(out)


def test_a_dead_worker_is_replaced(tmp_path: Path) -> None:
    """A worker that the kernel kills (out of memory) costs nothing but its last second."""
    out = tmp_path / "out"
    with subprocess.Popen(
        command("fuzz", "--workers", "1", "--design", "mainline", "--out", out, "--time", "60"),
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        deadline = time.monotonic() + 60
        killed = False
        while time.monotonic() < deadline:
            status = status_of(out)
            workers = [pid for pid in processes_about(out) if pid != process.pid]
            if not killed and status["execs"] and workers:
                os.kill(workers[0], signal.SIGKILL)
                killed = True
                at_death = status["execs"]
            if killed and status["restarts"] == 1 and status["execs"] > at_death:
                break
            time.sleep(0.1)
        else:
            raise AssertionError(status)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) in (0, 1)


def test_the_code_of_a_design_that_fails_is_the_users(tmp_path: Path) -> None:
    """A Python error in the user's own file: one line that names it, status 2, the workload kept."""
    (tmp_path / "crashes.py").write_text(CRASHES)
    done = fuzz(tmp_path, "--design", "crashes.py", "--time", "20", "--out", "out")
    assert done.returncode == 2, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("vmafuzz: the design's own code failed: AttributeError: ")
    folder = tmp_path / last.rpartition(" ")[2]
    assert (folder / "input.msgpack").is_file()
    assert "crashes.py" in (folder / "traceback.txt").read_text()


def test_an_internal_error_stops_the_campaign(tmp_path: Path) -> None:
    """Status 3, the message names the folder with the input that caused it."""
    broken = tmp_path / "sitecustomize.py"
    broken.write_text(
        "import sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'fuzz.campaign.breeding':\n"
        "            import oracle.judge\n"
        "            def run(self, workload): raise KeyError('a bug of ours')\n"
        "            oracle.judge.Judge.run = run\n"
        "sys.meta_path.insert(0, Finder())\n"
    )
    done = subprocess.run(
        command("fuzz", "--workers", "1", "--design", "mainline", "--time", "20", "--out", "out"),
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 3, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("vmafuzz: internal error: KeyError: 'a bug of ours'; the input and the traceback are in ")
    assert (tmp_path / last.rpartition(" ")[2] / "input.msgpack").is_file()
    assert not processes_about(tmp_path)


def test_a_corpus_that_cannot_be_written(tmp_path: Path) -> None:
    """One line, status 2, before any worker starts."""
    (tmp_path / "corpus").write_text("a file")
    done = fuzz(tmp_path, "--design", "mainline", "--out", "out", "--corpus", "corpus")
    assert done.returncode == 2
    assert done.stderr == "vmafuzz: corpus: cannot be written: File exists\n"


def test_rubbish_in_the_corpus_is_ignored(tmp_path: Path) -> None:
    """Hostile bytes in a corpus folder stay out of the engine's corpus, and the campaign is clean of them."""
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for number, data in enumerate((b"", b"\xff", b"\x91" * 3000, os.urandom(5000))):
        (corpus / f"bad{number}.msgpack").write_bytes(data)
    done = fuzz(tmp_path, "--design", "mainline", "--time", "4", "--out", "out", "--corpus", "corpus")
    assert done.returncode in (0, 1), done.stderr
    status = status_of(tmp_path / "out")
    assert status["rejected"] >= 3
    assert status["execs"] > 0
