"""The command line: parse, make one library call, print where the result lies."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from featmap.cli import entry
from featmap.cli.atlas import atlas
from featmap.cli.interact import interact
from featmap.cli.listing import layers, neighbours, recipes
from featmap.cli.maximise import maximise, probe
from featmap.cli.options import expand_options
from featmap.cli.similarity import similarity
from featmap.cli.validate import validate
from featmap.cli.verify import verify

app = typer.Typer(
    name="featmap",
    help="Feature similarity and interaction mapping in convolutional networks.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

for _command in (similarity, maximise, probe, interact, neighbours, atlas, validate, verify, layers, recipes):
    app.command(name=_command.__name__)(expand_options(_command))
app.command(name="optimize", help="Another name of maximise.")(expand_options(maximise))


def _version(wanted: bool) -> None:
    """Print the version and stop."""
    if wanted:
        from featmap import __version__

        print(f"featmap {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_version, help="Print the version and stop.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error (anywhere on the line).")
    ] = False,
) -> None:
    """Feature similarity and interaction mapping in convolutional networks."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line.

    Parameters
    ----------
    arguments : sequence of str, optional
        Words of the command line; None takes those of the process. See `featmap.cli.entry.run`.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    entry.run(app, "featmap", arguments if [w for w in words if w != "--debug"] else ["--help"])
