"""Every kind of run there is, small: the commands that make it in the folder `run`, and ways to damage it."""

from __future__ import annotations

import random
from functools import partial
from pathlib import Path

import pytest

from featmap.cli.app import main
from featmap.stats import clustering

TWO = [
    "--model",
    "tests.helpers.tiny:two",
    "--size",
    "8",
    "--steps",
    "2",
    "--rows",
    "2",
    "--device",
    "cpu",
    "--out",
    "run",
]
SMALL = [
    "--model",
    "tests.helpers.tiny:small",
    "--size",
    "8",
    "--steps",
    "2",
    "--rows",
    "4",
    "--device",
    "cpu",
    "--out",
    "run",
]
MAP = ["similarity", "--layer", "second", *SMALL]
KINDS: dict[str, list[list[str]]] = {
    "similarity": [["similarity", "--layer", "features", *TWO]],
    "several layers": [["similarity", "--layers", "second,first", *SMALL]],
    "probe layer": [["similarity", "--layer", "first", "--probe-layer", "relu", *SMALL]],
    "optimize": [["optimize", "features:0", "features:1:2", *TWO]],
    "probe": [["optimize", "features:0", *TWO[:-1], "source"], ["probe", "source", "--layers", "features", *TWO[-2:]]],
    "interact": [["interact", "features:0", "features:1", *TWO, "--seeds", "1"]],
    "pairs": [["interact", "--layers", "features", "features", "--features", "0", "1", *TWO, "--seeds", "1"]],
    "screening": [
        [
            *("interact", "--layers", "first", "second", "--features", "0-1", "0-1", "--screen", "all"),
            *("--top", "1", "--checks", "2", *SMALL, "--seeds", "1"),
        ]
    ],
    "validate": [[*MAP, "--no-atlas"], ["validate", "run", "--seeds", "2", "--null-seeds", "1"], MAP],
    "atlas of interact": [["interact", "features:0", "features:1", *TWO, "--seeds", "1"], ["atlas", "run"]],
}


def give(*arguments: str) -> int:
    """Give one command; return its exit status."""
    with pytest.raises(SystemExit) as end:
        main(arguments)
    return int(end.value.code or 0)


def make(kind: str) -> None:
    """Give all commands of a kind; they have to succeed."""
    for command in KINDS[kind]:
        assert give(*command) == 0, command


def quick_clusters(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clusters with few draws: their number is not what these tests are about."""
    monkeypatch.setattr(clustering, "find_clusters", partial(clustering.find_clusters, runs=3, draws=5))


def files(folder: Path) -> list[Path]:
    """Every file of a run but its lock, in a fixed order."""
    every = (p for p in folder.rglob("*") if p.is_file() and p.name not in (".lock", ".owner.json"))
    return sorted(every)


def flip(path: Path, seed: object = 0) -> None:
    """Flip one bit somewhere in a file; an empty one gets a byte."""
    spoiled, dice = bytearray(path.read_bytes() or b"\0"), random.Random(f"{seed} {path.name}")
    spoiled[dice.randrange(len(spoiled))] ^= 1 << dice.randrange(8)
    path.write_bytes(bytes(spoiled))
