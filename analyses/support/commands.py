"""Run a study or benchmark from the command line, with the error handling of featmap's own commands."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import typer

from featmap.cli import entry


def run(main: Callable[..., Any]) -> None:
    """Run a function as a command.

    Invalid input ends with one line and exit status 2; a traceback appears only with ``--debug``.

    Parameters
    ----------
    main : callable
        Function whose parameters become the command's options, as Typer reads them.
    """
    app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    app.command()(main)
    module = sys.modules["__main__"].__spec__
    entry.run(app, f"python -m {module.name}" if module is not None else main.__module__)
