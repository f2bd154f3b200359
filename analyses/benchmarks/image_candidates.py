"""Compare variants of one recipe, from which the settings of `fast` were chosen.

    python -m analyses.benchmarks.image_candidates --model mypackage.nets:mine --by mypackage.nets:other
    python -m analyses.benchmarks.image_candidates --model mypackage.nets:mine --by mypackage.nets:other \
        --photographs FOLDER --layers layer2.3 --only base,spread,statistics-1

Most candidates differ from `base` in what their description says and in nothing else; the last ones are variants of
`fast` at about its cost, and the recipes themselves. All make images of the same class logits, of `--draw`, which other
networks judge by top-1, top-5 and median rank; `analyses.benchmarks.images` reports the winners on classes of another
draw. The values go to a JSON file after each candidate, and from there to the README: a call for each network adds its
columns. With `--layers` the images are of hidden features, and a table of their own says how well S over them agrees
with S over photographs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from analyses.benchmarks import records
from analyses.benchmarks.image_records import ROOTS, Record, RecordFile
from analyses.benchmarks.image_variants import Change, VariantWay
from analyses.benchmarks.image_ways import RecipeWay, StoredPhotographs, Task, split_names
from analyses.benchmarks.images import CLASSES, Comparison, draw_units
from analyses.support.commands import run
from featmap.cli import console
from featmap.cli.app import expand_options
from featmap.cli.judge import JudgeOptions
from featmap.cli.options import NetworkOptions
from featmap.errors import FeatmapError
from featmap.optimize.photograph_folder import open_photographs
from featmap.optimize.recipe import FAST, NATURAL, PIXELS, STANDARD, Octave, Recipe
from featmap.optimize.schedule import Transform
from featmap.validation.judgement import load_judges

STORE, SECTION = records.FOLDER / "image_candidates.json", "image-candidates"
HIDDEN_STORE, HIDDEN = records.FOLDER / "hidden_candidates.json", "hidden-candidates"
"""File of the records, and name of the table, of hidden features."""
MIDDLE = Transform(rotation=10.0, scale=(0.85, 1.2), shift=0.1, flip=True)
WIDE = Transform(rotation=15.0, scale=(0.6, 1.15), shift=0.1, flip=True)
ZOOM = Transform(rotation=15.0, scale=(0.85, 1.67), shift=0.1, flip=True)
STILL = Transform(rotation=0.0, scale=(1.0, 1.0), shift=0.0, flip=False)
NARROW = FAST.transform
BASE = replace(FAST, name="base", octaves=(Octave(48, (0.1, 0.1)),), transform=MIDDLE, spread=0.0)


@dataclass(frozen=True)
class Candidate:
    """A recipe and how it differs from `base`.

    Parameters
    ----------
    recipe : Recipe
        The recipe.
    description : str
        What is different.
    size : int or None, default None
        Image size in pixels; None takes that of the command.
    change : Change or None, default None
        A prior that no recipe has.
    """

    recipe: Recipe
    description: str
    size: int | None = None
    change: Change | None = None


def _variant(name: str, description: str, rate: tuple[float, float] = (0.1, 0.1), **changes: Any) -> Candidate:
    """Change some settings of `base`."""
    if "octaves" not in changes:
        changes["octaves"] = (Octave(48, rate),)
    return Candidate(replace(BASE, name=name, **changes), description)


def _fast_variant(name: str, description: str, size: int, steps: int, rate: float, **changes: Any) -> Candidate:
    """Change size and steps of `fast`, at about the same cost."""
    return Candidate(replace(FAST, name=name, octaves=(Octave(steps, (rate, rate)),), **changes), description, size)


def _changed(name: str, description: str, rate: float = 0.1, **change: Any) -> Candidate:
    """Add to `base` a prior that no recipe has."""
    return Candidate(replace(BASE, name=name, octaves=(Octave(48, (rate, rate)),)), description, None, Change(**change))


def _transform(**changes: Any) -> Transform:
    """Change some ranges of no transform at all."""
    return replace(STILL, **changes)


CANDIDATES = {
    c.recipe.name: c
    for c in (
        Candidate(BASE, "48 steps of 0.1, transforms of a middle width, contrast 1"),
        _variant("narrow", "narrow transforms", transform=NARROW),
        _variant("still", "no transform", transform=None),
        _variant("shifted", "shift alone", transform=_transform(shift=0.1)),
        _variant("turned", "rotation alone", transform=_transform(rotation=10.0)),
        _variant("scaled", "scale alone", transform=_transform(scale=(0.85, 1.2))),
        _variant("flipped", "flip alone", transform=_transform(flip=True)),
        _variant("wide", "wide transforms that shrink", transform=WIDE),
        _variant("zoom", "wide transforms that enlarge", transform=ZOOM),
        _variant("no-contrast", "the response itself", contrast=0.0),
        _variant("half-contrast", "less half the layer's mean", contrast=0.5),
        _variant("double-contrast", "less twice the layer's mean", contrast=2.0),
        _variant("flat-spectrum", "decay 0.5", decay=0.5),
        _variant("steep-spectrum", "decay 1.2", decay=1.2),
        _variant("steeper-spectrum", "decay 1.5", decay=1.5),
        _variant("quiet-start", "noise of 0.01", std=0.01),
        _variant("loud-start", "noise of 1", std=1.0),
        _variant("short-steps", "steps of 0.05", (0.05, 0.05)),
        _variant("shrinking-steps", "steps from 0.15 to 0.05", (0.15, 0.05)),
        _variant("long-steps", "steps from 0.2 to 0.05", (0.2, 0.05)),
        _variant("short-memory", "betas 0.8, 0.99", betas=(0.8, 0.99)),
        _variant(
            "half-first",
            "24 steps at half the size",
            octaves=(Octave(24, (0.1, 0.1), size=0.5), Octave(24, (0.1, 0.1))),
        ),
        _variant(
            "three-sizes",
            "16 steps at 0.5, 0.75 and 1",
            octaves=tuple(Octave(16, (0.1, 0.1), size=s) for s in (0.5, 0.75, 1.0)),
        ),
        _variant("half-steps", "24 steps of 0.15", octaves=(Octave(24, (0.15, 0.15)),)),
        _variant("third-fewer-steps", "32 steps of 0.12", octaves=(Octave(32, (0.12, 0.12)),)),
        _changed("variation", "a tenth of the gradient's length from total variation", variation=0.1),
        _changed("more-variation", "half of the gradient's length from total variation", variation=0.5),
        _changed("blurred-gradient", "gradients blurred by 2 pixels, falling to 0.5", blur=2.0),
        _changed("noisy-gradient", "gradients of the image with noise of 0.1", noise=0.1),
        _changed("mean-gradient", "the same, mean of 4 copies", noise=0.1, copies=4),
        _changed("phases", "MACO: fixed magnitudes, steps of 0.1", phases=True),
        _changed("long-phases", "the same, steps of 0.5", 0.5, phases=True),
        _changed("weak-statistics", "statistics of layers as photographs', 0.3 of the gradient", statistics=0.3),
        _changed("statistics", "the same, as long as the gradient", statistics=1.0),
        _changed("strong-statistics", "the same, 3 times as long", statistics=3.0),
        *(
            Candidate(
                replace(BASE, name=f"{word}-statistics-spread", transform=NARROW, spread=1.0),
                f"spread (below), and statistics of layers as photographs', {share} of the gradient",
                None,
                Change(statistics=share),
            )
            for word, share in (("faint", 0.1), ("weak", 0.3))
        ),
        _changed("log-probability", "the logarithm of the class's probability", log_probability=True),
        Candidate(PIXELS, "pixels with blur, 24 steps"),
        Candidate(replace(PIXELS, name="pixels-transformed", transform=MIDDLE), "the same, transformed"),
        Candidate(
            replace(BASE, name="fourier", parameterisation="fourier"), "the spectrum of version 0.1, steps of 0.1"
        ),
        _variant("long", "96 steps of 0.07, transforms as zoom", octaves=STANDARD.octaves, transform=ZOOM),
        _variant("longer", "192 steps of 0.05, transforms as zoom", octaves=NATURAL.octaves, transform=ZOOM),
        _fast_variant("spread", "narrow, and less one standard deviation of the layer", 128, 48, 0.1),
        _fast_variant("half-spread", "less half a standard deviation", 128, 48, 0.1, spread=0.5),
        _fast_variant("double-spread", "less two standard deviations", 128, 48, 0.1, spread=2.0),
        Candidate(FAST, "the same as spread, 32 steps of 0.12 at 160 px", 160),
        _fast_variant("fast-zoom", "the same, transforms as zoom", 160, 32, 0.12, transform=ZOOM),
        _fast_variant("fast-192", "22 steps of 0.15 at 192 px", 192, 22, 0.15),
        _fast_variant("fast-224", "16 steps of 0.2 at 224 px", 224, 16, 0.2),
        _fast_variant("fast-mean", "32 steps of 0.12 at 160 px, less the mean alone", 160, 32, 0.12, spread=0.0),
        Candidate(STANDARD, "as long, less one standard deviation, 224 px", 224),
        Candidate(NATURAL, "as longer, less one standard deviation, 224 px", 224),
    )
}
"""Candidates by name."""


def _tabulate(every: list[Record], heading: list[str], cells: Callable[[dict[str, Record]], list[str]]) -> list[str]:
    """Write a row for each candidate that has records; `cells` makes its cells from its records by network."""
    heading = ["candidate", "what is different", *heading]
    lines = [f"| {' | '.join(heading)} |", f"|{'---|' * len(heading)}"]
    for name, candidate in CANDIDATES.items():
        rows = {r.source: r for r in every if r.way == name}
        shown = f"**{name}**" if candidate.recipe in (FAST, STANDARD, NATURAL) else name
        if rows:
            lines.append(f"| {' | '.join([shown, candidate.description, *cells(rows)])} |")
    return lines


def format_candidates(every: list[Record]) -> str:
    """Write the table of all candidates, with columns for each network and judge.

    Parameters
    ----------
    every : list of Record
        All records.

    Returns
    -------
    str
        Markdown; candidates in the order of `CANDIDATES`.
    """
    pairs = list(dict.fromkeys((r.source, judge) for r in every for judge in r.transfer))
    sources = dict.fromkeys(source for source, _ in pairs)
    heading = [*(f"{source} by {judge}" for source, judge in pairs), *(f"s a class, {source}" for source in sources)]

    def cells(rows: dict[str, Record]) -> list[str]:
        seconds = [rows[source].seconds if source in rows else None for source in sources]
        ranks = [_transfer(rows[source], judge) if source in rows else "" for source, judge in pairs]
        return ranks + ["" if s is None else f"{s:.2f}" for s in seconds]

    lines = _tabulate(every, heading, cells)
    count, size = len(every[0].units), every[0].size
    about = (
        f"`python -m analyses.benchmarks.image_candidates`: top-1 / top-5 / median rank of {count} class logits (draw "
        f"{every[0].draw}, seed {every[0].seed}, {size} px unless another size is named) by another network, "
        "from which the settings of `fast` were chosen; the tables above report on classes of other draws. With 16 "
        "classes the standard error of a share near a half is 0.12. Seconds are the processor's, of one core of a busy "
        "machine; priors that no recipe has were written out in a plain loop, whose seconds say nothing."
    )
    return "\n".join(["## How the recipes were chosen", "", about, "", *lines])


def format_hidden(every: list[Record]) -> str:
    """Write the table of all candidates on hidden features, with columns for each network.

    Parameters
    ----------
    every : list of Record
        All records.

    Returns
    -------
    str
        Markdown; candidates in the order of `CANDIDATES`.
    """
    sources = {r.source: r for r in every}
    heading = []
    for source, record in sources.items():
        judges = (f"percentile by {judge}" for judge in record.transfer)
        heading += [f"{source}: S linear / of roots", *judges, "multiple"]

    def cells(rows: dict[str, Record]) -> list[str]:
        found = [_hidden_cells(rows[s]) if s in rows else [""] * (2 + len(one.transfer)) for s, one in sources.items()]
        return [cell for part in found for cell in part]

    lines = _tabulate(every, heading, cells)
    layers = "; ".join(f"{s}: {len(r.units)} of {', '.join(r.agreement)}" for s, r in sources.items())
    first = every[0]
    about = (
        f"The same candidates on hidden features ({layers}; draw {first.draw}, seed {first.seed}, {first.size} px "
        "unless another size is named): agreement of S over their images with S over photographs (linear profiles, and "
        "with square roots of both), mean percentile of the partner in another network, and median multiple of the "
        "response to the best photograph."
    )
    return "\n".join(["### Hidden features", "", about, "", *lines])


def _hidden_cells(record: Record) -> list[str]:
    """Format agreement, percentiles and activation of one candidate."""
    found = list(record.agreement.values())
    mean = [np.mean([v[n] for v in found if v.get(n) is not None]) for n in ("agreement", ROOTS[0])]
    percentiles = [np.mean([v for v in t["percentile"] if v is not None]) for t in record.transfer.values()]
    multiples = [v for v in record.measures["multiple_of_best_photograph"] if v is not None]
    return [f"{mean[0]:.3f} / {mean[1]:.3f}", *(f"{v:.2f}" for v in percentiles), f"{np.median(multiples):.1f}"]


def _transfer(record: Record, judge: str) -> str:
    """Format top-1, top-5 and median rank of the classes."""
    ranks = np.array([r for r in record.transfer[judge].get("rank", []) if r is not None], dtype=float)
    return f"{(ranks == 0).mean():.2f} / {(ranks < 5).mean():.2f} / {np.median(ranks):g}" if len(ranks) else ""


def main(
    network: NetworkOptions,
    judges: JudgeOptions,
    only: Annotated[str, typer.Option(help="Names of candidates, joined by commas; default: all.")] = "",
    photographs: Annotated[
        Path | None, typer.Option(help="A folder of photographs, for candidates with their statistics.")
    ] = None,
    layers: Annotated[str, typer.Option(help="Hidden features of these layers instead, joined by commas.")] = "",
    features: Annotated[int, typer.Option(help="Hidden features drawn of each layer.")] = 48,
    classes: Annotated[int, typer.Option(help="Class logits drawn.")] = CLASSES,
    size: Annotated[int, typer.Option(help="Image size in pixels.")] = 128,
    draw: Annotated[int, typer.Option(help="Number of the draw of classes.")] = 0,
    seed: Annotated[int, typer.Option(help="Seed of every image.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder of images.")] = Path("runs/images"),
    store: Annotated[Path | None, typer.Option(help="The values, as JSON.")] = None,
    readme: Annotated[Path, typer.Option(help="The table is written between marks in this file.")] = records.README,
) -> None:
    """Compare variants of one recipe by how far other networks recognise their images."""
    chosen = split_names(only) or list(CANDIDATES)
    unknown = [name for name in chosen if name not in CANDIDATES]
    if unknown:
        raise FeatmapError(f"candidate {unknown[0]!r} is unknown; allowed: {', '.join(CANDIDATES)}")
    loaded, by = network.load(), load_judges(judges.load())
    hidden = split_names(layers)
    if hidden and photographs is None:
        raise FeatmapError("photographs are missing: hidden features are compared with them; give a folder or zip")
    layer, drawn = draw_units(loaded, hidden, 0 if hidden else classes, features, None, draw)
    task, natural = (
        Task(loaded, layer, drawn, draw, out),
        None if photographs is None else open_photographs(photographs),
    )
    store = store or (HIDDEN_STORE if hidden else STORE)
    section, format_table = (HIDDEN, format_hidden) if hidden else (SECTION, format_candidates)
    with console.ProgressBars() as watcher:
        evidence = StoredPhotographs(natural, task, watcher) if natural is not None and hidden else None
        comparison = Comparison(task, by, evidence, RecordFile(store))
        for name in chosen:
            candidate = CANDIDATES[name]
            recipe = candidate.recipe.resolved(loaded.input_size, size=candidate.size or size)
            way = RecipeWay(recipe) if candidate.change is None else VariantWay(recipe, candidate.change, natural)
            comparison.record(way, seed, watcher)
            records.write_table(section, format_table(comparison.store.read()), readme)
    console.out().print(f"result: {store} and {readme}")


if __name__ == "__main__":
    run(expand_options(main))
