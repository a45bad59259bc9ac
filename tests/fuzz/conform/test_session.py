"""Comparing with the running kernel: a wrong machine is noticed, and who is wrong is said; a right one passes."""

from __future__ import annotations

import ast
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from emulator.workload import Op, Step, Workload
from fuzz.conform import campaign
from fuzz.conform.report import explain
from fuzz.conform.rounds import run_round
from fuzz.conform.session import Session
from fuzz.minimize import minimize
from fuzz.target import DEFAULT_PROFILE
from fuzz.workload import wire
from fuzz.workload.text import from_text
from oracle.live.facilities import missing
from oracle.live.view import Depth

pytestmark = pytest.mark.skipif(bool(missing(Depth.MAPS)), reason="needs a Linux on x86-64 to compare with")

MOVE_BESIDE = from_text(
    """world x86-64
    mmap addr=1 len=5 prot=rw flags=private|fixed
    mmap addr=7 len=5 prot=rw flags=private|fixed
    mremap addr=7 old_len=5 new_len=5 flags=maymove|fixed new_addr=100
    write addr=1 at=0
    mremap addr=100 old_len=5 new_len=5 flags=maymove|fixed new_addr=6
    read addr=1"""
)


def without(function: str) -> Callable[[ast.Module, str], ast.Module]:
    """A transform after which ``file.function`` does nothing and returns 0."""
    file, _, name = function.partition(".")

    def transform(tree: ast.Module, path: str) -> ast.Module:
        for node in tree.body if Path(path).stem == file else ():
            if isinstance(node, ast.FunctionDef) and node.name == name:
                node.body = ast.parse("return 0").body
        return ast.fix_missing_locations(tree)

    return transform


def compare(workload: Workload, wrong: str) -> tuple[str, str, str]:
    """(signature, who is wrong, the report) of a machine without that function."""
    with Session(DEFAULT_PROFILE, Depth.MAPS, without(wrong)) as session:
        got = session.compare(workload)
    assert got.finding is not None
    return got.finding.signature, got.wrong, explain(workload, got)


def test_equal() -> None:
    """A round of random workloads."""
    with Session(DEFAULT_PROFILE, Depth.MAPS) as session:
        done = run_round(session, seed=1, steps=400)
        assert session.compare(MOVE_BESIDE) == (6, None, (), (), "")
    assert done.divergences == ()
    assert done.steps >= 400


@pytest.mark.parametrize(
    ("wrong", "signature"),
    [
        ("vma.is_mergeable_anon_vma", "live/layout:mremap, more VMAs in the machine"),
        ("mremap_tables.move_page_tables", "live/result:mremap, -ENOMEM against success"),
        ("mmap.vm_stat_account", "live/counter:mmap, total_vm"),
    ],
)
def test_a_wrong_machine_is_noticed(wrong: str, signature: str) -> None:
    """Layouts, results and counters count."""
    assert compare(MOVE_BESIDE, wrong)[0] == signature


def test_who_is_wrong() -> None:
    """The specification knows neither side, and says whose result breaks it; of layouts it knows nothing."""
    _, wrong, report = compare(MOVE_BESIDE, "mremap_tables.move_page_tables")
    assert wrong.startswith("the machine: mremap of process 0 gave -ENOMEM")
    assert "the kernel:" not in wrong
    assert ">>>" in report
    assert "on the kernel" in report
    assert compare(MOVE_BESIDE, "vma.is_mergeable_anon_vma")[1] == ""


def test_minimised() -> None:
    """A divergence can be minimised with the tools of any finding."""
    with Session(DEFAULT_PROFILE, Depth.MAPS, without("vma.is_mergeable_anon_vma")) as session:
        found = session.compare(MOVE_BESIDE).finding
        assert found is not None
        small = minimize(MOVE_BESIDE, partial(session.shows, signature=found.signature))
    assert len(small.steps) < len(MOVE_BESIDE.steps)
    assert small.geometry == MOVE_BESIDE.geometry


def test_rounds_do_not_hang_on_processes(tmp_path: Path) -> None:
    """Every seed is run once, the last round being as long as what is left."""
    plan = campaign.Plan(DEFAULT_PROFILE, Depth.MAPS, 4500, 7, 2, tmp_path)
    assert list(campaign.seeds_of(plan)) == [(7, 2000), (8, 2000), (9, 500)]


def test_command(tmp_path: Path) -> None:
    """One workload: equal is 0; what a kernel cannot be asked for is bad input."""
    from fuzz.cli import run

    file = tmp_path / "w.msgpack"
    file.write_bytes(wire.encode(MOVE_BESIDE))
    assert run(["conform", "--workload", str(file)]) == 0
    file.write_bytes(wire.encode(MOVE_BESIDE._replace(geometry="small8")))
    assert run(["conform", "--workload", str(file)]) == 0  # in the only world that a kernel has
    file.write_bytes(wire.encode(Workload("x86-64", (Step((Op("migrate", 0, (1,)),)),))))
    assert run(["conform", "--workload", str(file)]) == 2
    assert run(["conform", "--depth", "bottom"]) == 2


def test_campaign(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rounds on two processes, figures as JSON."""
    from fuzz.cli import run

    out = tmp_path / "r.json"
    arguments = ["--steps", "300", "--seed", "5", "--workers", "2", "--out", str(tmp_path), "--json", str(out)]
    assert run(["conform", *arguments]) == 0
    assert "no differences" in capsys.readouterr().out
    assert '"findings": []' in out.read_text()


def test_what_the_machine_leaves_behind() -> None:
    """Linux's leak of a shrinking move (docs/mainline-findings.md): the 3 pages of the tail; else nothing."""
    leak = from_text(
        """world x86-64
        mmap addr=1 len=4 prot=rw flags=private|fixed
        fork child=1
        mremap addr=1 old_len=4 new_len=1 flags=maymove|fixed new_addr=9"""
    )
    with Session(DEFAULT_PROFILE, Depth.MAPS) as session:
        assert session.leaves_behind(leak) == 12
        assert session.leaves_behind(MOVE_BESIDE) == 0
        memfd = "world x86-64\nmmap addr=0 len=2 prot=rw flags=shared|fixed file=memfd\nwrite addr=0 at=0\n"
        assert session.leaves_behind(from_text(memfd)) == 0  # its page stays, until the next workload
