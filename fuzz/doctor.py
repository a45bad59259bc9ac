"""What this machine can do: ``vmafuzz doctor``."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
from pathlib import Path
from typing import Final, NamedTuple

from emulator.errors import VmafuzzError
from emulator.profile import nearest, release_number
from fuzz.campaign import selftest
from fuzz.campaign.breeding import Breeder
from fuzz.campaign.seeds import seed_inputs
from fuzz.feedback.counters import Counters
from fuzz.feedback.features import END_OF_STATES, Feedback
from fuzz.target import Target
from oracle.judge import Judge
from oracle.live import facilities, rmap_probe, userfault
from oracle.live.view import Depth

PARANOID: Final = Path("/proc/sys/kernel/perf_event_paranoid")
PTRACE_SCOPE: Final = Path("/proc/sys/kernel/yama/ptrace_scope")
THP: Final = Path("/sys/kernel/mm/transparent_hugepage/enabled")
KSM: Final = Path("/sys/kernel/mm/ksm/run")
FREE_MIN: Final = 1 << 30  # bytes


class Check(NamedTuple):
    """One thing that is, or is not, so here."""

    what: str
    ok: bool
    here: str
    required: bool = False  # nothing works without it


def examine() -> list[Check]:
    """All checks; takes under a second and changes nothing."""
    root = os.geteuid() == 0
    free = shutil.disk_usage(".").free
    return [
        Check(
            "Python 3.11 or newer", sys.version_info >= (3, 11), f"{platform.python_version()}, {sys.executable}", True
        ),
        _judges(),
        _kernel(),
        _atheris(),
        Check("two cores for a campaign", (cores := len(os.sched_getaffinity(0))) >= 2, f"{cores}"),
        Check("a GiB of disk", free >= FREE_MIN, f"{free / (1 << 30):.1f} GiB free in {Path.cwd()}"),
        Check("Linux on x86-64, to record", _records(), " ".join(platform.uname()[index] for index in (0, 2, 4))),
        Check("perf, to record", (perf := shutil.which("perf")) is not None, perf or "apt install linux-perf"),
        Check("leave to trace the whole system", root or _number(PARANOID) < 0, _leave(root)),
        Check("ptrace of children", root or _number(PTRACE_SCOPE) < 2, f"yama ptrace_scope {_number(PTRACE_SCOPE)}"),
        *_live(),
    ]


def _judges() -> Check:
    """Runs the seeds with counters: the machine works here, and fuzzing would not be blind."""
    what = "machine, oracles and counters work"
    try:
        target = Target("mainline")
        counters = Counters(END_OF_STATES)
        image, _ = target.images(counters.transform)
        feedback = Feedback(counters, image)
        judge, breeder, runs = Judge(image), Breeder(), []
        for data in seed_inputs(1)[:16]:
            workload = breeder.decode(data)
            if workload is not None:
                judge.run(workload)
                runs.append(feedback.take())
        selftest.check_instrumented(feedback, target.check())
        selftest.check_moved(feedback, runs)
    except VmafuzzError as error:
        return Check(what, False, str(error), True)
    reached = sum(map(len, runs)) // len(runs)
    return Check(what, True, f"{len(counters.sites)} counters, {reached} features a seed", True)


def _kernel() -> Check:
    """Which profile stands for the kernel that runs here."""
    what = "a profile of this kernel"
    release = platform.release()
    if platform.system() != "Linux":
        return Check(what, False, f"{platform.system()} {release}")
    profile = nearest(release)
    same = release_number(profile.name) == release_number(release)
    return Check(what, same, f"--profile {profile.name}" + ("" if same else f" is the nearest to {release}"))


def _atheris() -> Check:
    if importlib.util.find_spec("atheris") is None:
        return Check("Atheris, to fuzz", False, "pip install 'vmafuzz[fuzz]'")
    return Check("Atheris, to fuzz", True, importlib.metadata.version("atheris"))


def _records() -> bool:
    return platform.system() == "Linux" and platform.machine() == "x86_64"


def _live() -> list[Check]:
    """What ``vmafuzz conform`` can compare on this kernel."""
    lacks = facilities.missing(Depth.MAPS)
    layouts = _complete("conform: layouts and results", lacks, "--depth maps")
    if lacks:
        return [layouts]
    return [
        layouts,
        _complete("conform: pages", facilities.missing(Depth.PAGES), "--depth pages"),
        _complete("conform: reverse map", rmap_probe.missing(), "--depth rmap"),
        _userfaultfd(),
        _huge_pages(),
        _ksm(),
    ]


def _complete(what: str, lacks: list[str], here: str) -> Check:
    return Check(what, not lacks, "; ".join(lacks) or here)


def _userfaultfd() -> Check:
    refused = userfault.refused()
    return Check("conform: userfaultfd", not refused, refused or "allowed")


def _huge_pages() -> Check:
    """The machine's profiles have the setting of most distributions."""
    what = "conform: huge pages"
    try:
        setting = THP.read_text().partition("[")[2].partition("]")[0]
    except OSError:
        return Check(what, False, "none, where the machine has them: boot a kernel with CONFIG_TRANSPARENT_HUGEPAGE")
    here = setting if setting == "madvise" else f"{setting}, the machine has madvise: echo madvise > {THP}"
    return Check(what, setting == "madvise", here)


def _ksm() -> Check:
    what = "conform: KSM"
    if not KSM.exists():
        return Check(what, False, "none, madvise mergeable fails: boot a kernel with CONFIG_KSM")
    return Check(what, True, f"run {_number(KSM)}")


def _leave(root: bool) -> str:
    return "root" if root else f"perf_event_paranoid {_number(PARANOID)}, needs -1 or root"


def _number(path: Path) -> int:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return 0
