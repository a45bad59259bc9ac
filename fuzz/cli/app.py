"""The typer application and what its commands share."""

from __future__ import annotations

from importlib.metadata import version
from typing import Annotated, Final

import typer

from fuzz.target import DEFAULT_DESIGN, DEFAULT_PROFILE, DEFAULT_REFERENCE

CLEAN: Final = 0
FINDINGS: Final = 1
USAGE: Final = 2
INTERNAL: Final = 3

app: Final = typer.Typer(
    name="vmafuzz",
    help="Fuzz designs of Linux VMA merging and anonymous-memory relocation; replay what was found.",
    epilog="Exit status: 0 clean, 1 findings, 2 usage or bad input, 3 internal error.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"vmafuzz {version('vmafuzz')}")
        raise typer.Exit


@app.callback()
def options(
    show_version: Annotated[
        bool, typer.Option("--version", help="Say which version this is.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Fuzz designs of Linux VMA merging and anonymous-memory relocation; replay what was found."""


DesignOption = Annotated[str, typer.Option(help="Design under test: a name (see 'designs') or FILE.py:NAME.")]
ReferenceOption = Annotated[str, typer.Option(help="Design to compare with.")]
ProfileOption = Annotated[str, typer.Option(help="Kernel whose rules hold.")]

DESIGN: Final = DEFAULT_DESIGN
REFERENCE: Final = DEFAULT_REFERENCE
PROFILE: Final = DEFAULT_PROFILE
