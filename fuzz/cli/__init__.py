"""The command ``vmafuzz``: one file for each group of commands; ``main`` turns what happened into an exit status."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import typer

from emulator.errors import UsageError
from fuzz import internal_errors
from fuzz.campaign.selftest import BlindError
from fuzz.campaign.supervisor import WorkerError
from fuzz.cli import bench, campaign, compare, conform, convert, environment, export, recordings, replay
from fuzz.cli.app import CLEAN, INTERNAL, USAGE, app
from fuzz.files import USERS_ERRNOS

__all__ = [
    "bench",
    "campaign",
    "compare",
    "conform",
    "convert",
    "environment",
    "export",
    "main",
    "recordings",
    "replay",
    "run",
]

_INTERRUPTED = 130  # as shells say it for Ctrl-C


def main() -> None:
    """The console entry."""
    status = run(sys.argv[1:])
    try:
        sys.stdout.flush()
    except BrokenPipeError:  # "vmafuzz ... | head" is no error
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(status)


def run(arguments: Sequence[str]) -> int:
    """Run one command; the exit status. Errors are one line on stderr."""
    try:
        result = app(args=list(arguments), prog_name="vmafuzz", standalone_mode=False)
        return result if isinstance(result, int) else CLEAN
    except typer.TyperException as error:  # what was typed is no command or option of ours
        return _say(_typed_wrong(error), USAGE)
    except UsageError as error:
        return _say(str(error), USAGE)
    except (WorkerError, BlindError) as error:
        return _say(str(error) if isinstance(error, BlindError) else f"internal error: {error}", INTERNAL)
    except (KeyboardInterrupt, typer.Abort):
        return _INTERRUPTED
    except BrokenPipeError:
        return CLEAN
    except Exception as error:
        if isinstance(error, OSError) and error.errno in USERS_ERRNOS:
            name = f"{error.filename}: " if error.filename else ""
            return _say(f"{name}{error.strerror}", USAGE)
        return _say(internal_errors.message(error, internal_errors.save(error)), INTERNAL)


def _typed_wrong(error: typer.TyperException) -> str:
    text = error.format_message() if hasattr(error, "format_message") else str(error)
    return " ".join(text.split())


def _say(text: str, status: int) -> int:
    sys.stderr.write(f"vmafuzz: {text}\n")
    return status
