"""``vmafuzz bench``: measurements."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from fuzz import files
from fuzz.campaign import benchmark
from fuzz.cli.app import CLEAN, DESIGN, PROFILE, DesignOption, ProfileOption, app
from fuzz.cli.campaign import require_atheris
from fuzz.cli.conform import DepthOption, WorkersOption, depth_of, require_live
from fuzz.conform.rounds import default_workers
from fuzz.conform.sensitivity import Request, choose, try_all
from oracle.live.settings import still

bench: typer.Typer = typer.Typer(help="Measure this machine.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(bench, name="bench")

TimeOption = Annotated[float, typer.Option(help="Seconds for each measurement.", min=0.1)]
SeedOption = Annotated[int, typer.Option(help="Of the generated workloads.", min=0)]
JsonOption = Annotated[Path | None, typer.Option(help="Write the result there.")]


@bench.command()
def instrumentation(
    design: DesignOption = DESIGN, time: TimeOption = 5.0, seed: SeedOption = 1, json: JsonOption = None
) -> int:
    """Our counters against Atheris's stock instrumentation, on the same workloads."""
    return _measure(benchmark.MODES, design, time, seed, json)


@bench.command()
def speed(
    design: DesignOption = DESIGN, time: TimeOption = 5.0, seed: SeedOption = 1, json: JsonOption = None
) -> int:
    """Workloads of 16 steps a second on one core, with all oracles, as in a campaign."""
    return _measure(("own",), design, time, seed, json)


@bench.command()
def sensitivity(
    mutants: Annotated[int, typer.Option(help="How many mistakes to plant, one at a time.", min=1)] = 30,
    time: Annotated[float, typer.Option(help="Seconds for each.", min=0.1)] = 60.0,
    seed: SeedOption = 1,
    depth: DepthOption = "maps",
    profile: ProfileOption = PROFILE,
    workers: WorkersOption = None,
    json: JsonOption = None,
) -> int:
    """One-line mistakes planted in the machine: the share that 'conform' notices."""
    deep = depth_of(depth)
    require_live(deep)
    requests = [Request(mutant, profile, deep, seed, time) for mutant in choose(mutants, seed, deep)]
    trials = []
    with still(deep):
        for trial in try_all(requests, workers or default_workers()):
            trials.append(trial)
            after = f"after {trial.seconds:5.1f} s: {trial.noticed}" if trial.noticed else "NOT NOTICED"
            print(f"{trial.mutant}\n    {after}", flush=True)
    noticed = sum(bool(trial.noticed) for trial in trials)
    print(f"{noticed} of {len(trials)} noticed, at depth {depth}, {time:g} s each")
    if json is not None:
        rows = [
            {"mutant": str(trial.mutant), "noticed": trial.noticed, "seconds": trial.seconds} for trial in trials
        ]
        files.write_json(json, {"depth": depth, "seed": seed, "noticed": noticed, "mutants": rows})
    return CLEAN


def _measure(modes: tuple[str, ...], design: str, seconds: float, seed: int, json: Path | None) -> int:
    require_atheris()
    speeds = [benchmark.measure(mode, design, seconds, seed) for mode in modes]
    own = next(speed for speed in speeds if speed.mode == "own")
    table = Table(box=None, pad_edge=False)
    columns = ("instrumentation", "workloads/s", "steps/s", "own is faster by", "in a campaign", "own is faster by")
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left")
    for one in speeds:
        ratio = own.execs_per_second / one.execs_per_second
        row = [one.mode, f"{one.execs_per_second:,.0f}", f"{one.steps_per_second:,.0f}", f"{ratio:.2f}"]
        campaign = one.campaign_execs_per_second
        if campaign is not None and own.campaign_execs_per_second is not None:
            row += [f"{campaign:,.0f}/s", f"{own.campaign_execs_per_second / campaign:.2f}"]
        table.add_row(*row)
    Console().print(table)
    if json is not None:
        rows = [
            {
                "instrumentation": one.mode,
                "execs_per_second": round(one.execs_per_second, 1),
                "steps_per_second": round(one.steps_per_second, 1),
                "campaign_execs_per_second": one.campaign_execs_per_second,
            }
            for one in speeds
        ]
        files.write_json(json, {"design": design, "seed": seed, "steps": benchmark.STEPS, "speeds": rows})
    return CLEAN
