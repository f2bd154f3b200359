"""How a study is run from the command line: as featmap's own commands are."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import typer

from featmap.cli import entry


def run(main: Callable[..., Any]) -> None:
    """Run a function as a command: one line and exit status 2 for bad input, a traceback only with ``--debug``."""
    app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    app.command()(main)
    module = sys.modules["__main__"].__spec__
    entry.run(app, f"python -m {module.name}" if module is not None else main.__module__)
