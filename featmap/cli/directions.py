"""The option `--directions`, which makes directions in a layer's channel space features like channels."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from featmap.errors import FeatmapError

if TYPE_CHECKING:
    from featmap.network.model import Network

DirectionFiles = Annotated[
    list[str] | None,
    typer.Option(
        "--directions",
        help="Directions in a layer's channel space as features: inception4a=FILE, or inception4a/NAME=FILE to name "
        "the set (.npy, .npz or .safetensors); may be repeated. Direction 7 is then written inception4a/NAME:7.",
    ),
]


def attach_directions(network: Network, options: Iterable[str] | None) -> Network:
    """Add the directions that options name to a network, and print them.

    Parameters
    ----------
    network : Network
        The network.
    options : iterable of str or None
        Texts such as ``inception4a/nmf=FILE``.

    Returns
    -------
    Network
        The network with them; the same one where there are none.

    Raises
    ------
    FeatmapError
        If a text or a file is malformed, or directions do not fit the network.
    """
    from featmap.network.unit import names_read_otherwise

    for text in options or ():
        layer, equals, path = text.partition("=")
        if not equals or not layer or not path:
            raise FeatmapError(
                f"--directions {text!r}: write LAYER=FILE or LAYER/NAME=FILE, such as inception4a=nmf.npz"
            )
        before = set(network.directions)
        network = network.with_directions({layer.strip(): Path(path)})
        for name in sorted(set(network.directions) - before):
            chosen = network.directions[name]
            more = [words for words, has in (("a bias", chosen.bias is not None), ("a ReLU", chosen.relu)) if has]
            typer.echo(
                f"{name}: {chosen.count} directions in {chosen.width} channels"
                f"{' with ' + ' and '.join(more) if more else ''}, SHA-256 {chosen.sha256[:12]}"
            )
            if others := names_read_otherwise(chosen.names):
                listed = ", ".join(f"{chosen.names[k]!r}" for k in others[:3])
                rest = f" and {len(others) - 3:,} more" if len(others) > 3 else ""
                typer.echo(
                    f"note: {name} has directions named {listed}{rest}, which units and --features read as numbers or "
                    f"all; select them by number: {chosen.names[others[0]]!r} is {name}:{others[0]}"
                )
    return network
