"""A comparison as a picture (SVG) for a cover letter: a line for each design, a column of bars for each figure."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from importlib.resources import files
from typing import TYPE_CHECKING, Final, NamedTuple

from jinja2 import Environment, StrictUndefined

from fuzz.compare.causes import Cause
from fuzz.compare.figures import SIZEOF_ANON_VMA, SIZEOF_AVC, SIZEOF_VMA, Figures
from fuzz.compare.run import Comparison

if TYPE_CHECKING:
    from jinja2 import Template

NAMES: Final = 178  # width of the column of names
PANEL: Final = 128  # ... of a column of bars
BAR: Final = 50  # ... of the longest bar in it
GAP: Final = 4  # between a bar and its figure
LINE: Final = 30  # height of a design's line
HEAD: Final = 118  # ... of what stands above the first
FOOT: Final = 46
MARGIN: Final = 20

# Colours that are told apart with any kind of colour vision (Okabe and Ito).
_BLUE: Final = "#0072b2"
_COLOURS: Final = {
    Cause.PAGE_OFFSET: "#e69f00",
    Cause.ANON_VMA: "#56b4e9",
    Cause.SHARED_PAGES: "#d55e00",
    Cause.NOTHING: "#999999",
}


class Panel(NamedTuple):
    """A column: its heading in two lines, and the parts of a design's bar with their colours."""

    heading: tuple[str, str]
    parts: Callable[[Figures], list[tuple[float, str]]]


class Part(NamedTuple):
    """A piece of a bar, in the picture's units."""

    x: float
    width: float
    colour: str


class Cell(NamedTuple):
    """What one design has in one column."""

    x: float
    parts: list[Part]
    text: str
    text_x: float
    change: str  # against the first design; empty: none


class Line(NamedTuple):
    """One design."""

    name: str
    y: int
    cells: list[Cell]
    findings: int
    stopped: bool


def _plain(value: Callable[[Figures], float]) -> Callable[[Figures], list[tuple[float, str]]]:
    return lambda figures: [(value(figures), _BLUE)]


PANELS: Final = (
    Panel(("VMAs", "at the peak"), _plain(lambda figures: figures.vmas_peak)),
    Panel(("merges", "done"), _plain(lambda figures: figures.merges_done)),
    Panel(
        ("merges missed", "by cause"),
        lambda figures: [(figures.missed[cause.value], colour) for cause, colour in _COLOURS.items()],
    ),
    Panel(("folios", "touched"), _plain(lambda figures: figures.folios)),
    Panel(("page-table", "entries stored"), _plain(lambda figures: figures.entries)),
    Panel(("locks", "taken"), _plain(lambda figures: figures.locks.total())),
    Panel(("metadata at the", "peak, bytes"), _plain(lambda figures: figures.metadata_peak)),
)


def draw(comparison: Comparison) -> str:
    """The SVG text."""
    figures = comparison.figures
    columns = [_column(panel, number, list(figures.values())) for number, panel in enumerate(PANELS)]
    lines = [
        Line(
            name,
            HEAD + number * LINE,
            [column[number] for column in columns],
            sum(len(signatures) for signatures in one.findings.values()),
            bool(one.stopped),
        )
        for number, (name, one) in enumerate(figures.items())
    ]
    found_x = MARGIN + NAMES + len(PANELS) * PANEL
    return _template().render(
        width=found_x + 90 + MARGIN,
        height=HEAD + len(lines) * LINE + FOOT + MARGIN,
        head=HEAD,
        line_height=LINE,
        margin=MARGIN,
        bottom=HEAD + len(lines) * LINE,
        title=_title(comparison),
        subtitle=_subtitle(comparison),
        panels=[(panel.heading, MARGIN + NAMES + number * PANEL) for number, panel in enumerate(PANELS)],
        lines=lines,
        found_x=found_x,
        legend=[
            (cause.value, colour, MARGIN + NAMES + number * 130)
            for number, (cause, colour) in enumerate(_COLOURS.items())
        ],
        sizes=f"VMA {SIZEOF_VMA}, anon_vma {SIZEOF_ANON_VMA}, anon_vma_chain {SIZEOF_AVC} bytes",
        any_stopped=any(line.stopped for line in lines),
    )


def _column(panel: Panel, number: int, all_figures: list[Figures]) -> list[Cell]:
    left = MARGIN + NAMES + number * PANEL
    bars = [panel.parts(figures) for figures in all_figures]
    sums = [sum(value for value, _ in bar) for bar in bars]
    longest = max(sums) or 1
    cells = []
    for bar, total in zip(bars, sums, strict=True):
        parts, x = [], float(left)
        for value, colour in bar:
            width = value / longest * BAR
            if width:
                parts.append(Part(round(x, 2), round(width, 2), colour))
            x += width
        cells.append(Cell(left, parts, f"{total:,.0f}", round(x + GAP, 2), _change(total, sums[0])))
    return cells


def _change(value: float, first: float) -> str:
    """``−5.4 %`` against the first design."""
    percent = (value / first - 1) * 100 if first else 0
    if abs(percent) < 0.05:
        return ""
    return f"{'+' if percent > 0 else '−'}{abs(percent):.{0 if abs(percent) >= 10 else 1}f} %"


def _title(comparison: Comparison) -> str:
    designs, inputs = len(comparison.figures), len(comparison.inputs)
    what = "input" if inputs == 1 else f"{inputs} inputs"
    return f"{designs} design{'s' * (designs != 1)} on the same {what}"


def _subtitle(comparison: Comparison) -> str:
    names = [name.rpartition("/")[2] for name in comparison.inputs]
    steps = next(iter(comparison.figures.values())).steps
    shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
    first = next(iter(comparison.figures))
    return f"{shown}; {steps:,} steps; rules of Linux {comparison.profile}; changes against {first}"


@lru_cache(maxsize=1)
def _template() -> Template:
    environment = Environment(
        undefined=StrictUndefined, autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(files("fuzz.compare").joinpath("picture.svg.jinja").read_text())
