"""``vmafuzz conform``."""

from __future__ import annotations

import random
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from emulator.errors import UsageError
from emulator.profile import nearest, release_number
from emulator.workload import Workload
from fuzz import files
from fuzz.campaign.screen import duration
from fuzz.cli.app import CLEAN, FINDINGS, app
from fuzz.cli.replay import load
from fuzz.conform import campaign
from fuzz.conform.report import explain
from fuzz.conform.rounds import default_workers
from fuzz.conform.session import Session
from fuzz.target import check_profile
from oracle.live import facilities
from oracle.live.calls import GEOMETRY
from oracle.live.expressible import expressible
from oracle.live.residue import COMMITTED, residue
from oracle.live.settings import still
from oracle.live.view import Depth

DepthOption = Annotated[str, typer.Option(help="maps, pages or rmap: how deep to look.")]
ProfileOption = Annotated[
    str | None, typer.Option(help="Kernel whose rules hold; default: the nearest to the one that runs.")
]
WorkersOption = Annotated[int | None, typer.Option(help="Processes; default: one a core.", min=1, max=512)]

_EVERY = 10.0  # seconds between lines of progress
_QUIET = 2.0  # kB, half a page: what a leak of one page stands out from
_QUIET_OBJECTS = 0.5  # likewise


@app.command()
def conform(
    steps: Annotated[int, typer.Option(help="Random steps to compare.", min=1)] = 20_000,
    seed: Annotated[
        int | None, typer.Option(help="Of the first round; default: another one each time.", min=0)
    ] = None,
    workload: Annotated[Path | None, typer.Option(help="Compare this workload only.")] = None,
    depth: DepthOption = "maps",
    profile: ProfileOption = None,
    repeat: Annotated[
        int | None, typer.Option(help="Run --workload so often, to see what it leaves behind.", min=5)
    ] = None,
    workers: WorkersOption = None,
    out: Annotated[Path, typer.Option(help="Folder for divergences.")] = Path("out/conform"),
    json: Annotated[Path | None, typer.Option(help="Write the result there.")] = None,
) -> int:
    """Run the same workloads in the machine and on the running kernel, and compare after each step."""
    deep = depth_of(depth)
    kernel = profile_of(profile)
    left_out = require_live(deep)
    with still(deep) as lacks:
        left_out += lacks
        for sentence in left_out:
            sys.stderr.write(f"not compared: {sentence}\n")
        if workload is not None:
            return _one(workload, kernel, deep, repeat)
        first = random.SystemRandom().randrange(1 << 31) if seed is None else seed
        plan = campaign.Plan(kernel, deep, steps, first, workers or default_workers(), out)
        outcome = campaign.run(plan, _Progress(plan))
    if json is not None:
        files.write_json(json, campaign.for_json(plan, outcome, facilities.kernel_release(), left_out))
    print(_summary(plan, outcome))
    return FINDINGS if outcome.found else CLEAN


def require_live(depth: Depth) -> list[str]:
    """What this machine cannot show, a sentence each. Raises ``UsageError`` when nothing can be compared."""
    missing = facilities.missing(Depth.MAPS)
    if missing:
        raise UsageError(f"nothing can be compared here: {'; '.join(missing)}")
    return facilities.missing(depth)


def profile_of(name: str | None) -> str:
    """The profile of that name; without one the nearest to the kernel that runs, which is said."""
    if name is not None:
        return check_profile(name)
    release = facilities.kernel_release()
    profile = nearest(release)
    if release_number(profile.name) != release_number(release):
        sys.stderr.write(
            f"profile {profile.name} is the nearest to Linux {release}: what changed between, differs\n"
        )
    return profile.name


def depth_of(name: str) -> Depth:
    """The depth of that name. Raises ``UsageError`` that says which there are."""
    try:
        return Depth[name.upper()]
    except KeyError:
        raise UsageError(
            f"unknown depth {name!r}; there are {', '.join(d.name.lower() for d in Depth)}"
        ) from None


def _one(path: Path, profile: str, depth: Depth, repeat: int | None) -> int:
    """One workload of the user's."""
    workload = load(path)
    if workload.geometry != GEOMETRY:
        sys.stderr.write(
            f"in the world {GEOMETRY} in place of {workload.geometry}, as a running kernel has no other\n"
        )
        workload = workload._replace(geometry=GEOMETRY)
    reason = expressible(workload, depth)
    if reason:
        raise UsageError(f"{path}: a running kernel cannot be asked for this: {reason}")
    with Session(profile, depth) as session:
        comparison = session.compare(workload)
        if comparison.finding is None and repeat is not None:
            return _left_behind(path, session, workload, repeat)
    if comparison.finding is None:
        print(f"{path}: equal, {comparison.steps} steps at depth {depth.name.lower()}")
        return CLEAN
    print(f"{path}: differs\n{explain(workload, comparison)}")
    return FINDINGS


def _left_behind(path: Path, session: Session, workload: Workload, repeat: int) -> int:
    """What each of many runs leaves behind, beside what the machine says that it leaves: Committed_AS only."""
    seen = residue(session.live, workload, repeat)
    expected = session.leaves_behind(workload)
    status = CLEAN
    print(f"{path}: what each of {repeat} runs leaves")
    for name, (left, wander) in seen.items():
        unit, quiet, wanted = (
            ("kB", _QUIET, expected) if name == COMMITTED else ("objects", _QUIET_OBJECTS, 0)
        )
        print(f"  {name}: {left:,.1f} {unit}, give or take {wander:,.1f}; in the machine {wanted:,}")
        if abs(left - wanted) > wander + quiet and (
            left > wanted or name == COMMITTED
        ):  # no cache shrinks for good
            print("  the two differ")
            status = FINDINGS
        elif wander > quiet:
            print(
                "  so much else goes on that less cannot be told: try again on a quiet system, with more runs"
            )
    if len(seen) == 1:
        print("not compared: slab counts, which only root sees, and only with CONFIG_SLUB_DEBUG")
    return status


class _Progress:
    """A line every ten seconds, and one for each new divergence at once."""

    def __init__(self, plan: campaign.Plan) -> None:
        self._plan = plan
        self._next = time.monotonic() + _EVERY
        self._known = 0

    def __call__(self, outcome: campaign.Outcome) -> None:
        now = time.monotonic()
        if now < self._next and len(outcome.found) == self._known:
            return
        self._next = now + _EVERY
        for found in outcome.found[self._known :]:
            sys.stderr.write(f"differs: {found.signature} ({found.steps} steps)\n")
        self._known = len(outcome.found)
        sys.stderr.write(
            f"[{duration(outcome.seconds)}] {outcome.steps:,} of {self._plan.steps:,} steps, "
            f"{outcome.steps_per_second:,.0f}/s, differences {len(outcome.found)}\n"
        )
        sys.stderr.flush()


def _summary(plan: campaign.Plan, outcome: campaign.Outcome) -> str:
    lines = [
        f"{plan.profile} against Linux {facilities.kernel_release()}, depth {plan.depth.name.lower()}, "
        f"seeds {plan.seed} to {plan.seed + outcome.rounds - 1}: {outcome.workloads:,} workloads, "
        f"{outcome.steps:,} steps compared in {duration(outcome.seconds)} ({outcome.steps_per_second:,.0f}/s), "
        f"{len(outcome.found) or 'no'} difference{'' if len(outcome.found) == 1 else 's'}."
    ]
    for number, found in enumerate(outcome.found, 1):
        lines += ["", f"{number}. seen {found.seen} times", found.text]
        lines.append(f"   {campaign.replay_line(found.workload, plan)}")
    return "\n".join(lines)
