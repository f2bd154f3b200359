"""The command line: parse, make one library call, print where the result is."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass
from functools import wraps
from typing import Annotated, Any, get_type_hints

import typer

from featmap.cli import entry, help_texts
from featmap.cli.atlas import atlas
from featmap.cli.interact import PHOTOGRAPH_HELP, RESULTS_HELP, interact
from featmap.cli.judge import judge
from featmap.cli.listing import layers, neighbours, recipes
from featmap.cli.maximise import maximise, probe
from featmap.cli.similarity import similarity
from featmap.cli.validate import validate
from featmap.cli.verify import verify

app = typer.Typer(
    name="featmap",
    help="Feature similarity and interaction mapping in convolutional networks.",
    epilog="A first command: featmap similarity --layer inception4a. Each command explains itself: "
    "featmap similarity --help.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def expand_options(command: Callable[..., None]) -> Callable[..., None]:
    """Turn parameters that are groups of options into the options themselves.

    Typer reads one option from each parameter of a function; commands take groups, which this makes of the options.

    Parameters
    ----------
    command : callable
        Function whose annotations may name dataclasses of options.

    Returns
    -------
    callable
        Function with one parameter for each option, which builds the groups and calls `command`.
    """
    hints = get_type_hints(command, include_extras=True)
    parameters: list[inspect.Parameter] = []
    groups: dict[str, Any] = {}
    for parameter in inspect.signature(command).parameters.values():
        kind = hints[parameter.name]
        if not is_dataclass(kind):
            parameters.append(parameter.replace(annotation=kind, kind=inspect.Parameter.KEYWORD_ONLY))
            continue
        groups[parameter.name] = kind
        options = get_type_hints(kind, include_extras=True)
        parameters += [
            inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=f.default, annotation=options[f.name])
            for f in fields(kind)
        ]

    @wraps(command)
    def expanded(**values: Any) -> None:
        arguments = {name: kind(**{f.name: values.pop(f.name) for f in fields(kind)}) for name, kind in groups.items()}
        command(**values, **arguments)

    # typer inspects the signature, and resolves annotations by name: both have to be those of the options
    expanded.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    expanded.__annotations__ = {p.name: p.annotation for p in parameters}
    return expanded


COMMANDS: dict[Callable[..., None], str] = {
    similarity: help_texts.SIMILARITY,
    maximise: help_texts.MAXIMISE,
    probe: help_texts.PROBE,
    interact: help_texts.INTERACT + RESULTS_HELP + PHOTOGRAPH_HELP + help_texts.PHOTOGRAPHS,
    neighbours: help_texts.NEIGHBOURS,
    atlas: help_texts.ATLAS,
    validate: help_texts.VALIDATE,
    judge: help_texts.JUDGE,
    verify: help_texts.VERIFY,
    layers: help_texts.LAYERS,
    recipes: help_texts.RECIPES,
}
for _command, _text in COMMANDS.items():
    app.command(name=_command.__name__, epilog=_text)(expand_options(_command))
app.command(name="optimize", help="Another name of maximise.", epilog=help_texts.MAXIMISE)(expand_options(maximise))


def _version(requested: bool) -> None:
    """Print the version and stop."""
    if requested:
        from featmap import __version__

        print(f"featmap {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_version, help="Print the version and stop.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error; may stand anywhere on the line.")
    ] = False,
) -> None:
    """Feature similarity and interaction mapping in convolutional networks."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line.

    Parameters
    ----------
    arguments : sequence of str, optional
        Words of the command line. None takes those of the process. See `featmap.cli.entry.run`.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    entry.run(app, "featmap", arguments if [w for w in words if w != "--debug"] else ["--help"])
