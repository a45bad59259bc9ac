"""The table and the picture, held to snapshots. After a wanted change: python -m tests.fuzz.compare.test_shown"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest
from rich.console import Console

from fuzz.compare import picture, table
from fuzz.compare.figures import Figures
from fuzz.compare.run import Comparison
from tests.fuzz.compare.handmade import comparison

EXPECTED = Path(__file__).parent / "expected"
SVG = "{http://www.w3.org/2000/svg}"


def as_text() -> str:
    """The table as a file gets it."""
    out = io.StringIO()
    Console(file=out, width=120).print(table.render(comparison()))
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


def as_svg() -> str:
    return picture.draw(comparison()) + "\n"


SHOWN: list[tuple[str, Callable[[], str]]] = [("table.txt", as_text), ("picture.svg", as_svg)]


@pytest.mark.parametrize(("name", "show"), SHOWN)
def test_snapshot(name: str, show: Callable[[], str]) -> None:
    """What a person sees changes only on purpose."""
    assert show() == (EXPECTED / name).read_text()


@pytest.mark.parametrize(("width", "tables"), [(120, 1), (80, 1), (65, 2)])
def test_narrow_terminal(width: int, tables: int) -> None:
    """What does not fit beside goes below, with the first design again, so that no figure is cut."""
    out = io.StringIO()
    Console(file=out, width=width).print(table.render(comparison()))
    text = out.getvalue()
    assert text.count("merges missed because of") == tables
    assert "…" not in text
    assert text.count("30,000") == tables


def test_picture_is_drawn_inside_its_frame() -> None:
    """It is well-formed XML, names are escaped, and no bar or text begins outside the picture."""
    root = ElementTree.fromstring(as_svg())
    width, height = (float(root.attrib[side]) for side in ("width", "height"))
    for shape in root.iter():
        x, y = shape.attrib.get("x"), shape.attrib.get("y")
        if x is not None and x != "100%":
            assert 0 <= float(x) < width
        if y is not None:
            assert 0 <= float(y) < height
    texts = [text.text for text in root.iter(f"{SVG}text")]
    assert "stopped" in texts
    assert "none" in texts


def test_bars_are_to_scale() -> None:
    """The longest bar of a column has its full length, the others their part of it."""
    cells = picture._column(picture.PANELS[0], 0, list(comparison().figures.values()))
    widths = [sum(part.width for part in cell.parts) for cell in cells]
    assert widths == [picture.BAR, picture.BAR * 80 / 100, 0]
    assert [cell.change for cell in cells] == ["", "−20 %", "−100 %"]


def test_picture_of_nothing() -> None:
    """All figures 0: no bar, no division by it."""
    root = ElementTree.fromstring(picture.draw(Comparison("6.18", ("x",), {"mainline": Figures()})))
    assert root.tag == f"{SVG}svg"


if __name__ == "__main__":
    EXPECTED.mkdir(exist_ok=True)
    for file, make in SHOWN:
        (EXPECTED / file).write_text(make())
