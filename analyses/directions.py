"""Make NMF and PCA directions of a layer from photographs, map them, and compare them with channels.

    python -m analyses.directions --photographs FOLDER    # a folder or a zip
    python -m analyses.directions                         # writes the page again from the stored results

The layer's activations are read at some positions of every photograph (drawn at random, always the same). NMF
factorises them into additive parts (negative activations count as 0), PCA into axes of variance; each component, scaled
to length 1, is a direction. The directions are mapped by `featmap similarity`, and their responses to the photographs
compared with those of the channels.

Written into `--out` are nmf.safetensors and pca.safetensors, which `--directions` of featmap's commands reads, and the
run folders. Stored in `analyses/results/directions` are directions.csv (a row for each direction), directions.json
(settings and summaries) and images.webp; the page, analyses/directions.md, is written from these alone. Photographs are
not part of the project. scikit-learn is needed: pip install 'featmap[directions]'.
"""

from __future__ import annotations

import json
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import typer

import featmap
from analyses.formulas.directions import channels_for_share, explained_share, most_similar_channels
from analyses.support.commands import run
from analyses.support.settings import formula_note
from featmap import Execution, FeatmapError, Network, Recipe, View, load, rng
from featmap.cli.console import err, out, run_with_progress
from featmap.files import write_atomically
from featmap.mapping.result import LayerMaps
from featmap.network.directions import Directions
from featmap.optimize.photograph_folder import PhotographFolder, open_photographs
from featmap.optimize.responses import Probe
from featmap.plotting.sheets import Sheet, contact_sheet
from featmap.plotting.style import encode_webp, house_style
from featmap.runs.probe import ROWS, Source, open_source
from featmap.runs.progress import Watcher
from featmap.stats.measures import FORMULA

LAYER, COUNT, POSITIONS = "inception4a", 16, 16
"""Layer, directions of each kind, and positions of each photograph that are read."""
KINDS = ("nmf", "pca")
SHARE = 0.9
"""Share of a direction's squared weight that its channels are counted for."""
SHOWN = 16
"""Directions of each kind in the picture."""
ITERATIONS = 1000
HERE = Path(__file__).resolve().parent
RESULTS, PAGE = HERE / "results" / "directions", HERE / "directions.md"


@dataclass(frozen=True)
class Plan:
    """Network and layer, number of directions, photographs, recipe and folder of the files."""

    network: Network
    layer: str
    count: int
    positions: int
    images: PhotographFolder
    recipe: Recipe
    out: Path


def read_activations(plan: Plan, source: Source, watcher: Watcher) -> np.ndarray:
    """Read a layer's activations at some positions of every photograph.

    Parameters
    ----------
    plan : Plan
        Network, layer and number of positions.
    source : Source
        The photographs.
    watcher : Watcher
        Receives the progress.

    Returns
    -------
    numpy.ndarray
        N x C, float32: at most `plan.positions` rows for each photograph, all where its grid has no more.
    """
    probe, parts, done = Probe(plan.network, ROWS), [], 0
    for batch in source.batches(ROWS):
        for outputs in probe.outputs(batch, [plan.layer]):
            for grid in outputs[plan.layer].flatten(2).transpose(1, 2).numpy():
                # keyed by the photograph, so that others beside it do not change what is drawn
                generator = rng.generator("directions", plan.layer, source.labels[done])
                chosen = generator.choice(len(grid), min(plan.positions, len(grid)), replace=False)
                parts.append(grid[np.sort(chosen)])
                done += 1
        watcher.stage("activations of photographs", done, len(source.labels))
    return np.concatenate(parts)


def find_components(kind: str, values: np.ndarray, count: int) -> Directions:
    """Find directions by NMF or PCA.

    Parameters
    ----------
    kind : {"nmf", "pca"}
        The method; both start from fixed seeds.
    values : numpy.ndarray
        Activations, N x C.
    count : int
        Number of components.

    Returns
    -------
    Directions
        Components of length 1, that of the largest share first. Those of PCA point to their largest weight and have a
        bias, so that a value is a coordinate about the mean.

    Raises
    ------
    FeatmapError
        If scikit-learn is not installed, or the activations have too few components.
    """
    try:
        from sklearn.decomposition import NMF, PCA
        from sklearn.exceptions import ConvergenceWarning
    except ImportError:
        raise FeatmapError("scikit-learn is not installed; pip install 'featmap[directions]'") from None
    if kind == "pca":
        model = PCA(count, svd_solver="full").fit(values.astype(np.float64))
        vectors = model.components_
        largest = np.take_along_axis(vectors, np.abs(vectors).argmax(1)[:, None], axis=1)
        vectors = vectors * np.sign(largest)
        return _directions(kind, vectors, -vectors @ model.mean_)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # parts that still move a little are parts as well
        model = NMF(count, init="nndsvda", random_state=0, max_iter=ITERATIONS)
        codes = model.fit_transform(np.maximum(values, 0).astype(np.float64))
    lengths = np.linalg.norm(model.components_, axis=1)
    order = np.argsort(-(codes**2).sum(0) * lengths**2, kind="stable")
    return _directions(kind, model.components_[order])


def _directions(kind: str, vectors: np.ndarray, bias: np.ndarray | None = None) -> Directions:
    """Scale components to length 1; components of length 0 are more than the activations have."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    if not (lengths > 0).all():
        raise FeatmapError(
            f"{int((lengths > 0).sum())} components of {len(vectors)} by {kind} are not 0: the activations have no "
            "more; give a smaller --count"
        )
    return Directions(vectors / lengths, None if bias is None else bias / lengths[:, 0], name=kind, source=kind)


def measure_all(plan: Plan, watcher: Watcher) -> dict[str, Any]:
    """Make the directions, write their files, map them and compare them with channels.

    Parameters
    ----------
    plan : Plan
        What to measure.
    watcher : Watcher
        Receives the progress.

    Returns
    -------
    dict
        `rows` (a table), `about` (plain values) and `picture` (bytes of a WebP).
    """
    source = open_source(plan.images, None, plan.network.input_size, plan.network.channels)
    values = read_activations(plan, source, watcher)
    sets = {kind: find_components(kind, values, plan.count) for kind in KINDS}
    for kind, directions in sets.items():
        write_atomically(plan.out / f"{kind}.safetensors", lambda p, d=directions: p.write_bytes(d.to_bytes()))  # type: ignore[misc]
    network = plan.network.with_directions({f"{plan.layer}/{kind}": d for kind, d in sets.items()})
    layers = [f"{plan.layer}/{kind}" for kind in KINDS]
    maps = featmap.similarity(
        layers,
        network,
        view=View(),
        recipe=plan.recipe,
        execution=Execution("cpu", out=plan.out / "map", watcher=watcher),
    )
    to_photographs = featmap.probe(
        plan.images,
        [plan.layer, *layers],
        network,
        execution=Execution("cpu", out=plan.out / "photographs", watcher=watcher),
    )
    rows = []
    width = network.layer(plan.layer).channels
    by_channel = to_photographs.sel(response=[f"{plan.layer}:{c}" for c in range(width)]).values
    for layer, directions in zip(layers, sets.values(), strict=True):
        names = [f"{layer}:{k}" for k in range(directions.count)]
        nearest, r = most_similar_channels(to_photographs.sel(response=names).values, by_channel)
        features = maps.maps[layer].features
        rows.append(
            pd.DataFrame(
                {
                    "direction": names,
                    "status": features.loc[names, "status"].to_numpy(),
                    "activation": features.loc[names, "activation"].to_numpy(),
                    "community": features.loc[names, "community"].to_numpy(),
                    "channels": channels_for_share(directions.vectors, SHARE),
                    "largest_channel": [f"{plan.layer}:{c}" for c in np.abs(directions.vectors).argmax(1)],
                    "similar_channel": [f"{plan.layer}:{c}" if c >= 0 else "" for c in nearest],
                    "correlation": r,
                }
            )
        )
    about = {
        "network": str(plan.network),
        "layer": plan.layer,
        "channels": width,
        "photographs": len(source.labels),
        "activations": len(values),
        "negative": float((values < 0).mean()),
        "recipe": [plan.recipe.name, plan.recipe.size, plan.recipe.steps],
        "explained": {k: explained_share(values, d.vectors, k == "pca") for k, d in sets.items()},
        "identity": {k: maps.maps[la].summary["identity_rate"] for k, la in zip(KINDS, layers, strict=True)},
        "sha256": {kind: directions.sha256 for kind, directions in sets.items()},
        "formula": FORMULA,
    }
    return {"rows": pd.concat(rows), "about": about, "picture": encode_webp(draw_images(maps, layers), dpi=80)}


@house_style
def draw_images(maps: LayerMaps, layers: list[str]) -> Any:
    """Draw the maximising images of the first directions of each kind, a kind after the other.

    Parameters
    ----------
    maps : LayerMaps
        The maps of the directions.
    layers : list of str
        Their layers.

    Returns
    -------
    matplotlib.figure.Figure
        The sheet.
    """
    names = [str(name) for layer in layers for name in maps.maps[layer].features.index[:SHOWN]]
    images = maps.dataset["images"].isel(seed=0).sel(image=names).values
    labels = [name.rpartition("/")[2] for name in names]
    columns = min(SHOWN, len(names)) // 2 or 1
    title = "Images that maximise directions"
    return contact_sheet(Sheet(images=images, labels=labels, title=title, columns=columns))


def store_results(measured: dict[str, Any], results: Path) -> None:
    """Write the table, the record and the picture.

    Parameters
    ----------
    measured : dict
        Result of `measure_all`.
    results : Path
        Folder of the results.
    """
    table: pd.DataFrame = measured["rows"]
    text = json.dumps(measured["about"], indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    path = results / "directions.csv"
    write_atomically(path, lambda p: table.to_csv(p, index=False, float_format="%.6g", lineterminator="\n"))
    write_atomically(results / "directions.json", lambda p: p.write_text(text, encoding="utf-8"))
    write_atomically(results / "images.webp", lambda p: p.write_bytes(measured["picture"]))


def build_page(results: Path, page: Path) -> str:
    """Write the page from the stored results.

    Parameters
    ----------
    results : Path
        Folder of the results.
    page : Path
        File of the page; links are relative to it.

    Returns
    -------
    str
        Markdown.

    Raises
    ------
    FeatmapError
        If nothing is stored.
    """
    if not (results / "directions.json").is_file():
        raise FeatmapError(f"{str(results)!r} holds no results; give --photographs FOLDER to make them")
    about = json.loads((results / "directions.json").read_text(encoding="utf-8"))
    table = pd.read_csv(results / "directions.csv")
    kinds = table["direction"].str.extract(r"/(\w+):")[0]
    layer, width = about["layer"], about["channels"]
    name, size, steps = about["recipe"]
    lines = [
        f"# Directions of {layer}",
        "",
        f"Made by `python -m analyses.directions` from {about['photographs']:,} photographs "
        f"({about['activations']:,} activations of {width} channels; NMF takes negative ones, "
        f"{about['negative']:.0%} of them, for 0), with {about['network'].partition(';')[0]}. Images: recipe {name}, "
        f"{size} pixels, {steps} steps.{formula_note(about)}",
        "",
        "| | " + " | ".join(kind.upper() for kind in KINDS) + " |",
        "|---|" + "---|" * len(KINDS),
    ]
    groups = [table[kinds == kind] for kind in KINDS]

    def row(words: str, values: list[str]) -> str:
        return f"| {words} | " + " | ".join(values) + " |"

    lines += [
        row("directions", [f"{len(g)}" for g in groups]),
        row(
            "share of the activations' sum of squares (PCA: of their variance) in their span",
            [f"{about['explained'][kind]:.0%}" for kind in KINDS],
        ),
        row(
            f"channels that explain {SHARE:.0%} of a direction's squared weight: median (range)",
            [f"{g.channels.median():.0f} ({g.channels.min()} to {g.channels.max()})" for g in groups],
        ),
        row(
            "correlation with the most similar channel over the photographs: median (range)",
            [f"{g.correlation.median():.2f} ({g.correlation.min():.2f} to {g.correlation.max():.2f})" for g in groups],
        ),
        row(
            "directions whose most similar channel is the one of their largest weight",
            [f"{(g.similar_channel == g.largest_channel).sum()}" for g in groups],
        ),
        row("live directions", [f"{(g.status == 'live').sum()}" for g in groups]),
        row("identity rate", ["-" if (v := about["identity"][k]) is None else f"{v:.2f}" for k in KINDS]),
    ]
    spread = [f"{g.channels.median():.0f} channels ({kind.upper()})" for kind, g in zip(KINDS, groups, strict=True)]
    shared = [f"{(g.correlation**2).median():.0%}" for g in groups]
    link = Path(os.path.relpath(results / "images.webp", page.parent)).as_posix()
    lines += [
        "",
        f"What they have in common with channels: half of the directions spread {SHARE:.0%} of their squared weight "
        f"over {' and '.join(spread)} or more, and the one channel that is most like a direction explains "
        f"{' and '.join(shared)} of its variance over the photographs (medians).",
        "",
        f"![Images that maximise the first directions of each kind]({link})",
        "",
        f"| direction | channels for {SHARE:.0%} | most similar channel | correlation | largest weight | community |",
        "|---|---|---|---|---|---|",
        *(
            f"| {one.direction} | {one.channels} | {one.similar_channel} | {one.correlation:.2f} "
            f"| {one.largest_channel} | {'' if pd.isna(one.community) else int(one.community)} |"
            for one in table.itertuples()
        ),
        "",
    ]
    return "\n".join(lines)


def main(
    photographs: Annotated[
        Path | None, typer.Option(help="A folder or a zip. None: only write the page again.")
    ] = None,
    model: Annotated[str, typer.Option(help="As for `featmap similarity`.")] = "reference",
    weights: Annotated[str | None, typer.Option()] = None,
    layer: Annotated[str, typer.Option(help="Layer whose channel space the directions are in.")] = LAYER,
    count: Annotated[int, typer.Option(help="Directions of each kind.")] = COUNT,
    positions: Annotated[int, typer.Option(help="Positions of each photograph that are read.")] = POSITIONS,
    size: Annotated[int | None, typer.Option(help="Size of the maximising images.")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of their descents.")] = None,
    out_: Annotated[
        Path, typer.Option("--out", help="Folder of the directions' files and of the runs, which are resumed.")
    ] = Path("runs/directions"),
    results: Annotated[Path, typer.Option(help="Folder for the table and the picture.")] = RESULTS,
    page: Annotated[Path, typer.Option(help="File for the page.")] = PAGE,
) -> None:
    """Make NMF and PCA directions of a layer, map them, and compare them with channels."""
    if photographs is not None:
        network = load(model, weights)
        width = network.layer(layer).channels
        if not 1 <= count <= width:
            raise FeatmapError(f"--count {count}: {layer} has {width} channels, so 1 to {width} are allowed")
        if positions < 1:
            raise FeatmapError(f"--positions {positions}: give 1 or more")
        recipe = Recipe.named("pixels", size, steps).resolved(network.input_size)
        plan = Plan(network, layer, count, positions, open_photographs(photographs), recipe, out_)
        store_results(run_with_progress(lambda watcher: measure_all(plan, watcher)), results)
        files = " and ".join(f"--directions {layer}={out_ / f'{kind}.safetensors'}" for kind in KINDS)
        out().print(f"directions: {files}")
        err().print(f"results: {results}")
    text = build_page(results, page)
    write_atomically(page, lambda p: p.write_text(text, encoding="utf-8"))
    out().print(f"page: {page}")


if __name__ == "__main__":
    run(main)
