"""Every kind of run, small: the commands that make it in the folder `run`, and ways to damage it."""

from __future__ import annotations

import random
from contextlib import AbstractContextManager
from functools import partial, wraps
from html import escape
from pathlib import Path
from typing import IO, Any, BinaryIO

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg, RendererAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from featmap.cli.app import main
from featmap.interaction import report
from featmap.plotting import examples, labels, pages, style
from featmap.runs import estimate
from featmap.stats import clustering
from featmap.validation import null


def _options(network: str, rows: int) -> list[str]:
    """Options of a tiny run in the folder `run`, which is the last word."""
    settings = f"--model tests.helpers.tiny:{network} --size 8 --steps 2 --rows {rows} --device cpu --out run"
    return settings.split()


TWO = _options("two", 2)
SMALL = _options("small", 4)
PRINT_PNG, PRINT_SVG = FigureCanvasAgg.print_png, FigureCanvasSVG.print_svg
TEXTS: list[str] = []
"""Texts of the PNG that was drawn last while runs are cheap."""
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
            *("interact", "--layers", "first", "second", "--features", "0-1", "0-1", "--screen"),
            *("--top", "1", "--checks", "2", *SMALL, "--seeds", "1"),
        ]
    ],
    "validate": [[*MAP, "--no-atlas"], ["validate", "run", "--seeds", "2", "--null-seeds", "1"], MAP],
    "judge": [
        ["maximise", "features:0", "features:1:2", *TWO],
        ["judge", "run", "--by", "tests.helpers.tiny:other", "--by-input-size", "16", "--device", "cpu"],
    ],
    "atlas of interact": [["interact", "features:0", "features:1", *TWO, "--seeds", "1"], ["atlas", "run"]],
}


def run_command(*arguments: str) -> int:
    """Run one command line; return its exit status."""
    with pytest.raises(SystemExit) as end:
        main(arguments)
    return int(end.value.code or 0)


def make_run(kind: str) -> None:
    """Run all commands of a kind; they have to succeed."""
    for command in KINDS[kind]:
        assert run_command(*command) == 0, command


@wraps(PRINT_PNG)
def print_png(canvas: FigureCanvasAgg, *arguments: Any, **options: Any) -> None:
    """Draw a PNG, and keep only its own texts for the SVG that follows."""
    TEXTS.clear()
    PRINT_PNG(canvas, *arguments, **options)


def note_text(renderer: RendererAgg, gc: Any, x: float, y: float, text: str, *_: Any, **__: Any) -> None:
    """Note a text that has its place in a PNG, without drawing its glyphs."""
    TEXTS.append(text)


@wraps(PRINT_SVG)
def write_texts_as_svg(canvas: FigureCanvasSVG, target: str | IO[Any], **options: Any) -> None:
    """Write a file of SVG with the texts of the PNG before it; draw what goes elsewhere, such as into a page."""
    if isinstance(target, str):
        lines = ['<svg xmlns="http://www.w3.org/2000/svg">', *(f"<text>{escape(t)}</text>" for t in TEXTS), "</svg>\n"]
        Path(target).write_text("\n".join(lines), encoding="utf-8")
    else:
        PRINT_SVG(canvas, target, **options)


class EmptyPages(AbstractContextManager["EmptyPages"]):
    """`PdfPages` that draws nothing: a line for each page."""

    def __init__(self, file: BinaryIO, metadata: dict[str, Any]) -> None:
        self.file = file

    def savefig(self, figure: Figure) -> None:
        """Write a line with the size of the page."""
        self.file.write(f"%PDF: a page of {figure.get_size_inches()}\n".encode())

    def __exit__(self, *_: object) -> None:
        """Leave the file open, as `PdfPages` does."""


def cluster_with_few_draws(monkeypatch: pytest.MonkeyPatch, runs: int, draws: int) -> None:
    """Cluster with few Louvain runs and draws of the nulls."""
    monkeypatch.setattr(clustering, "ClusterSettings", partial(clustering.ClusterSettings, runs=runs, draws=draws))


def make_runs_cheap(monkeypatch: pytest.MonkeyPatch, runs: int = 3, draws: int = 5) -> None:
    """Cluster with few runs and draws, foretell roughly, and draw small and few figures: these tests are of others."""
    cluster_with_few_draws(monkeypatch, runs, draws)
    monkeypatch.setattr(estimate, "PACE_SECONDS", 0.0)
    monkeypatch.setattr(null, "CLUSTER_NULL_DRAWS", draws)
    # figures are drawn once, as PNG without glyphs; the SVG beside it holds the texts alone, the pages nothing
    monkeypatch.setattr(FigureCanvasAgg, "print_png", print_png)
    monkeypatch.setattr(RendererAgg, "draw_text", note_text)
    monkeypatch.setattr(FigureCanvasSVG, "print_svg", write_texts_as_svg)
    monkeypatch.setattr(pages, "PdfPages", EmptyPages)
    # of the many matrices of a run of pairs, which are drawn alike, the first ones
    monkeypatch.setattr(report, "labelled_statistics", lambda columns: labels.labelled_statistics(columns)[:3])
    monkeypatch.setattr(style, "MAX_PIXELS", 400)
    monkeypatch.setattr(examples, "FINEST", 24)
    monkeypatch.setattr(examples, "COARSEST", 24)


def files_of(folder: Path) -> list[Path]:
    """Every file of a run but its lock, in a fixed order."""
    every = (p for p in folder.rglob("*") if p.is_file() and p.name not in (".lock", ".owner.json"))
    return sorted(every)


def flip_bit(path: Path, seed: object = 0) -> None:
    """Flip one bit somewhere in a file; an empty one gets a byte."""
    content, dice = bytearray(path.read_bytes() or b"\0"), random.Random(f"{seed} {path.name}")
    content[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
    path.write_bytes(bytes(content))
