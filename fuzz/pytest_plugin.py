"""pytest plugin: every ``corpus/regressions/**/*.msgpack`` is one test.

Beside ``NAME.msgpack`` stands ``NAME.json`` with what a replay must say::

    {"design": "relocate-anon", "verdict": "finding", "signature": "rmap/...", "why": "..."}

``verdict`` is ``finding`` or ``clean``; ``signature`` goes with a finding, ``why`` says what the test protects;
``reference`` and ``profile`` may be given. With ``depth`` (maps, pages, rmap) the workload is compared with the running
kernel instead, and the test is skipped where that cannot be looked at so deeply. Nothing here needs Atheris, and
nothing of vmafuzz is imported until such a file is found, so the plugin costs other projects nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

if TYPE_CHECKING:
    from emulator.workload import Workload
    from fuzz.target import Target
    from oracle.judge import Judge

_VERDICTS: Final = ("clean", "finding")
_FIELDS: Final = {"design", "verdict", "signature", "why", "reference", "profile", "depth"}


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    """Take the workloads below a folder ``corpus/regressions``."""
    folders = file_path.parts[:-1]
    inside = any(pair == ("corpus", "regressions") for pair in zip(folders, folders[1:], strict=False))
    if file_path.suffix == ".msgpack" and inside:
        return RegressionFile.from_parent(parent, path=file_path)
    return None


class RegressionFile(pytest.File):
    """One workload; it holds one test."""

    def collect(self) -> Iterator[pytest.Item]:
        """The test, named as the file is."""
        yield Regression.from_parent(self, name=self.path.stem)


class BrokenPromiseError(Exception):
    """The replay does not say what it should; the text is all that is to be shown."""


class Regression(pytest.Item):
    """Replays the workload and compares with the expected verdict."""

    def runtest(self) -> None:
        """Raises ``BrokenPromiseError`` when the verdict is another one."""
        from emulator.errors import UsageError
        from fuzz import files
        from fuzz.report import explain
        from fuzz.target import Target
        from fuzz.workload import wire

        try:
            expected = _expectation(self.path.with_suffix(".json"))
            names = {name: expected[name] for name in ("design", "reference", "profile") if name in expected}
            workload = wire.decode(files.read_bytes(self.path, wire.SIZE_MAX))
            if "depth" in expected:
                return self._compare(workload, expected)
            verdict = _judge(Target(**names)).run(workload)
        except UsageError as error:
            raise BrokenPromiseError(f"{self.path.name}: {error}") from None
        found = [finding.signature for finding in verdict.findings]
        wanted = expected["signature"] if expected["verdict"] == "finding" else ""
        if found[:1] == ([wanted] if wanted else []) or (wanted and wanted in found):
            return None
        raise BrokenPromiseError(
            f"{self.path.name}: expected {wanted or 'no finding'}, got {found[0] if found else 'no finding'}\n"
            f"why it is here: {expected['why']}\n\n{explain(workload, verdict)}"
        )

    def _compare(self, workload: Workload, expected: dict[str, str]) -> None:
        """The same with the running kernel as the judge."""
        from fuzz.cli.conform import depth_of
        from fuzz.conform.regression import difference
        from oracle.live.facilities import missing

        depth = depth_of(expected["depth"])
        lacks = missing(depth)
        if lacks:
            pytest.skip("; ".join(lacks))
        found, report = difference(workload, depth)
        wanted = expected.get("signature", "")
        if found != wanted:
            raise BrokenPromiseError(
                f"{self.path.name}: expected {wanted or 'no difference'}, got {found or 'no difference'}\n"
                f"why it is here: {expected['why']}\n\n{report}"
            )

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """The workload and the first broken promise; a traceback only for errors of our own."""
        if isinstance(excinfo.value, BrokenPromiseError):
            return str(excinfo.value)
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Path, int | None, str]:
        """The heading of a failure."""
        return self.path, None, f"regression {self.name}"


def _expectation(path: Path) -> dict[str, str]:
    """The expected verdict. Raises ``BrokenPromiseError`` that says what is wrong with the file."""
    try:
        raw = json.loads(path.read_text())
    except OSError as error:
        raise BrokenPromiseError(f"{path.name}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise BrokenPromiseError(f"{path.name}: not JSON: {error}") from None
    if not isinstance(raw, dict) or not all(isinstance(value, str) for value in raw.values()):
        raise BrokenPromiseError(f"{path.name}: not an object of texts")
    missing = {"design", "verdict", "why"} - raw.keys() | ({"signature"} - raw.keys() if _is_finding(raw) else set())
    if missing or raw.keys() - _FIELDS or raw["verdict"] not in _VERDICTS:
        raise BrokenPromiseError(
            f"{path.name}: needs design, why, verdict (clean or finding) and for a finding its signature; "
            f"has {', '.join(sorted(raw)) or 'nothing'}"
        )
    return raw


def _is_finding(raw: dict[str, str]) -> bool:
    return raw.get("verdict") == "finding"


@lru_cache(maxsize=8)
def _judge(target: Target) -> Judge:
    return target.judge()
