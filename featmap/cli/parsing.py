"""Parse the values of options: numbers, layers, seeds and photographs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from featmap.errors import FeatmapError

Limit = Annotated[
    int | None,
    typer.Option(help="Largest number of photographs, evenly spaced in the order of their names. Default: all."),
]
SkipBroken = Annotated[
    bool,
    typer.Option(
        "--skip-broken",
        help="Go on without photographs that cannot be read. Otherwise the command names them and stops.",
    ),
]


def parse_numbers(text: str | None, option: str) -> list[float] | None:
    """Parse numbers joined by commas.

    Parameters
    ----------
    text : str or None
        The value of the option.
    option : str
        Name of the option, for the error.

    Returns
    -------
    list of float or None
        The numbers; None for None.

    Raises
    ------
    FeatmapError
        If a part is no number.
    """
    if text is None:
        return None
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise FeatmapError(f"{option} {text!r}: write numbers joined by commas, such as 0.5,0.5,0.5") from None


def parse_layers(text: str, option: str) -> list[str]:
    """Parse names of layers joined by commas.

    Parameters
    ----------
    text : str
        The value of the option.
    option : str
        Name of the option, for the error.

    Returns
    -------
    list of str
        The names in their order, each once.

    Raises
    ------
    FeatmapError
        If the text names no layer.
    """
    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not names:
        raise FeatmapError(f"{option} names no layer; write {option} inception4a,inception4b")
    return names


def parse_count(text: str) -> int:
    """Parse a number of seeds.

    Parameters
    ----------
    text : str
        The value of ``--seeds``.

    Returns
    -------
    int
        The number.

    Raises
    ------
    FeatmapError
        If it is none.
    """
    try:
        return int(text)
    except ValueError:
        raise FeatmapError(
            f"--seeds {text!r}: give a number, or auto where units or pairs are measured without --screen"
        ) from None


def parse_seeds(seed: int | None, seeds: int) -> int | range:
    """Parse ``--seed`` and ``--seeds``.

    Parameters
    ----------
    seed : int or None
        First seed, from 0 to 2**31 - 1. None leaves it to the recipe.
    seeds : int
        Number of seeds.

    Returns
    -------
    int or range
        A number of seeds, or the seeds themselves, as the library takes them.

    Raises
    ------
    FeatmapError
        If a number is out of range.
    """
    from featmap.optimize.limits import MAX_SEEDS

    if not 1 <= seeds <= MAX_SEEDS:
        raise FeatmapError(f"--seeds {seeds}: give --seeds 1 or more, {MAX_SEEDS:,} at most")
    if seed is None:
        return seeds
    if not 0 <= seed < 2**31:
        raise FeatmapError(f"--seed {seed}: give --seed 0 or more, 2147483647 at most")
    return range(seed, seed + seeds)


@dataclass
class PhotographOptions:
    """Options of the photographs that a finished run is compared with.

    Parameters
    ----------
    photographs : Path or None, default None
        Folder or zip of photographs.
    limit : int or None, default None
        Largest number of photographs.
    skip_broken : bool, default False
        Go on without photographs that cannot be read.
    """

    photographs: Annotated[
        Path | None,
        typer.Option(help="A folder or zip of photographs to compare the run with; a thousand are a good number."),
    ] = None
    limit: Limit = None
    skip_broken: SkipBroken = False
