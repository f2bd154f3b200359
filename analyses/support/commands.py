"""Run a study or benchmark from the command line, with the error handling of featmap's own commands.

A command whose files have an entry in `analyses.support.ledger` enters itself there when it ends.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from typing import Any

import typer

from analyses.support import ledger, provenance
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
    module = sys.modules["__main__"].__spec__
    name = module.name if module is not None else main.__module__
    app.command()(entered(main, name.removesuffix(".__main__").removeprefix("analyses.")))
    entry.run(app, f"python -m {name}" if module is not None else name)


def entered(main: Callable[..., Any], name: str) -> Callable[..., Any]:
    """Let a command enter itself in the ledger when it has ended without an error.

    Parameters
    ----------
    main : callable
        The command.
    name : str
        Its module below `analyses`.

    Returns
    -------
    callable
        The command with the same parameters; `main` itself where no files of it have an entry.
    """
    if not ledger.files_of(name):
        return main

    @wraps(main)
    def command(*arguments: Any, **options: Any) -> Any:
        before = ledger.times_of(ledger.files_of(name))
        result = main(*arguments, **options)
        ledger.enter(name, sys.argv[1:], before, provenance.weights_of())
        return result

    return command
