"""Planted mistakes: each changes the code it names and nothing else."""

from __future__ import annotations

import ast
import sys

import pytest

from emulator.designs.mainline import Mainline
from emulator.image import MM_FOLDER, KernelImage
from emulator.machine import Machine
from fuzz.conform.mutants import Mutant, lines_run, mutants, sample
from fuzz.conform.workloads import round_of


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("a < b", "a <= b"),
        ("a == b", "a != b"),
        ("a is b", "a is not b"),
        ("a and b", "a or b"),
        ("a + b", "a - b"),
        ("a & b", "a | b"),
        ("c += 1", "pass"),
        ("f(a)", "pass"),
        ("m.sched.point('x.y')", None),  # has no effect where nothing runs beside
        ("a: int | None = f", None),  # is not run
        ("if a:\n    return 1", "if not a:\n    return 1"),
    ],
)
def test_change(before: str, after: str | None) -> None:
    """The first place of a function, changed."""
    body = "\n".join(f"    {line}" for line in before.splitlines())
    tree = ast.parse(f"def f():\n{body}\n")
    mutant = Mutant("vma.py", 2, 0, "", "")
    if after is None:
        with pytest.raises(AssertionError):
            mutant.transform(tree, str(MM_FOLDER / "vma.py"))
        return
    changed = mutant.transform(tree, str(MM_FOLDER / "vma.py"))
    assert ast.unparse(changed.body[0].body[0]) == after  # type: ignore[attr-defined]


def test_other_files_stay() -> None:
    """A mutant is of one file."""
    tree = ast.parse("def f():\n    return a < b\n")
    assert Mutant("vma.py", 2, 0, "", "").transform(tree, str(MM_FOLDER / "rmap.py")) is tree


def test_only_lines_that_run() -> None:
    """Lines are taken from a real run; a mutant on one of them loads and is chosen by seed alone."""
    image = KernelImage(Mainline)
    workload = next(round_of(1))

    def work() -> None:
        machine = Machine(image, workload.geometry)
        for step in workload.steps:
            machine.run_step(step)

    lines = lines_run(work)
    assert any(file == "mmap.py" for file, _ in lines)
    assert not any(file == "ksm_scan.py" for file, _ in lines)  # what only the kernel does
    chosen = sample(lines, 5, 1)
    assert chosen == sample(lines, 5, 1)
    assert {(mutant.file, mutant.line) for mutant in mutants(lines)} <= lines
    for mutant in chosen:
        KernelImage(Mainline, mutant.transform)


def test_a_mutant_changes_what_the_machine_does() -> None:
    """The mutated image runs the mutated code: mmap of nothing is an error no longer."""
    place = next(
        mutant
        for mutant in mutants({("mmap.py", line) for line in range(1, 400)})
        if mutant.before == "not length" and mutant.after == "not not length"
    )
    ops = next(round_of(1)).steps[0].ops[0]._replace(kind="mmap", args=(0, 0, 3, 0x12, 0, 0))
    results = []
    for transform in (None, place.transform):
        machine = Machine(KernelImage(Mainline, transform), "x86-64")
        results.append(machine.image.entry.do_mmap(machine.procs[0], ops.args))
    assert results[0] != results[1]


def test_a_tracer_that_was_there_comes_back() -> None:
    """Else a debugger stops, and tests that run afterwards count as never run."""

    def tracer(*_: object) -> None: ...

    before = sys.gettrace()
    sys.settrace(tracer)
    try:
        lines_run(lambda: None)
        assert sys.gettrace() is tracer
    finally:
        sys.settrace(before)
