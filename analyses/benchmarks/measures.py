"""Choose the step that stabilises the variance of responses before profile similarity S is computed.

    python -m analyses.benchmarks.measures --photographs FOLDER --layers inception3a,inception3b,inception4a,inception4c
    python -m analyses.benchmarks.measures --model mypackage.nets:mine --photographs FOLDER --layers layer1.2,layer2.3
    python -m analyses.benchmarks.measures --photographs FOLDER --layers inception4a --features 0
    python -m analyses.benchmarks.measures --check

A maximising image drives its own feature to several times the response of the best photograph, so that a few large
entries decide a correlation of plain responses. `STEPS` are what may be done to responses first. Of each layer some
features are drawn, their images made from two seeds, and S is compared, for every step, with

- *agreement*: S over photographs, computed with the same step; over halves of the photographs drawn at random, as is
- *ceiling*: the same where each feature's image is replaced by its best photograph of the other half: no image made
  for a feature by itself can be expected to agree better (`featmap.stats.map_agreement.share_of_ceiling`);
- *agreement with plain responses*: S over photographs without any step;
- *overlap*: the share of each feature's nearest features that the two maps have in common, and its ceiling;
- *repeatability*: correlation of S from one seed with S from another.

The rule, stated before the numbers were seen: the step with the highest mean agreement over every second layer of each
network (the tuned layers, beginning with the first), among those that do not lower the mean repeatability there; a step
within 0.01 of the best wins over it if it acts on each response alone, so that S can be computed while responses
stream. The other layers are the report. Square roots were chosen: `featmap.stats.measures.profile` takes them of both
kinds of responses, as *agreement* does here.

With `--features 0` the images of all features of a layer are the stimuli, as in `featmap similarity`. No choice rests
on such layers; they have a table of their own.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import typer

import featmap
from analyses.benchmarks import records
from analyses.benchmarks.image_records import short_name
from analyses.benchmarks.image_ways import split_names
from analyses.benchmarks.speed import draw_features
from analyses.support.commands import run
from featmap.cli import console
from featmap.cli.app import expand_options
from featmap.cli.options import NetworkOptions
from featmap.errors import FeatmapError
from featmap.optimize.photograph_folder import open_photographs
from featmap.optimize.recipe import Recipe
from featmap.runs.engine import Execution
from featmap.runs.folder_layout import LIVE_CODES
from featmap.stats.correlation import signed_roots
from featmap.stats.map_agreement import NEAREST, share_of_ceiling
from featmap.stats.measures import profile_correlations
from featmap.stats.reliability import pair_correlation
from featmap.stats.top_responses import halve

STORE, SECTION = records.FOLDER / "measures.json", "measures"
SHARE, REPEATABILITY = 0.9, 0.99
"""What is aimed at: share of a ceiling, and repeatability over seeds."""
CLOSE = 0.01
"""Agreements nearer than this to the best one count as equal."""
TRIED = (
    "What was tried to come nearer to the ceilings: these steps; the recipes fast, standard and natural, which agree "
    "about equally (the tables of images); and, in the table of hidden features, contrast with the layer's mean and "
    "spread, which these recipes have, and statistics of layers as photographs'. On the one layer measured, weak "
    "statistics raise the agreement as far as the contrast does, and both together further, but their images excite "
    "the partner in another network less; they need photographs, and no recipe has them yet."
)
Step = Callable[[np.ndarray], np.ndarray]


def plain(responses: np.ndarray) -> np.ndarray:
    """Return responses as they are, N x M."""
    return responses


def fourth_roots(responses: np.ndarray) -> np.ndarray:
    """Take fourth roots of magnitudes and keep the signs, N x M."""
    return signed_roots(signed_roots(responses))


def logarithms(responses: np.ndarray) -> np.ndarray:
    """Compute sign(x) log(1 + |x| / m), m the column's mean magnitude, N x M."""
    scale = np.abs(responses).mean(axis=0)
    return np.sign(responses) * np.log1p(np.abs(responses) / np.where(scale > 0, scale, 1.0))


def ranks(responses: np.ndarray) -> np.ndarray:
    """Replace each column's responses by their ranks, N x M."""
    return pd.DataFrame(responses).rank().to_numpy()


STEPS: dict[str, Step] = {
    "none": plain,
    "square roots": signed_roots,
    "fourth roots": fourth_roots,
    "logarithms": logarithms,
    "ranks": ranks,
}
"""What may be done to responses before they are standardised, centred and correlated."""
SINGLE = ("none", "square roots", "fourth roots")
"""Steps that act on each response alone."""


@dataclass(frozen=True)
class Result:
    """What one step gives for one layer.

    Parameters
    ----------
    source, layer, step : str
        Network, layer and step.
    tuned : bool
        Whether the choice was made on this layer.
    features, photographs : int
        Numbers of features and photographs.
    recipe : str
        Recipe of the images.
    agreement, ceiling, with_plain, overlap, overlap_ceiling, repeatability : float
        See the head of the module.
    whole : bool, default False
        Whether these are all live features of the layer.
    """

    source: str
    layer: str
    step: str
    tuned: bool
    features: int
    photographs: int
    recipe: str
    agreement: float
    ceiling: float
    with_plain: float
    overlap: float
    overlap_ceiling: float
    repeatability: float
    whole: bool = False


def similarity(responses: np.ndarray, step: Step) -> np.ndarray:
    """Compute S of responses, N x M to M x M, after a step."""
    return profile_correlations(step(responses), roots=False)


def measure(images: list[np.ndarray], photographs: np.ndarray, step: Step) -> dict[str, float]:
    """Compute all measures of one step.

    Parameters
    ----------
    images : list of numpy.ndarray
        Responses to the maximising images of each seed, M x M.
    photographs : numpy.ndarray
        Responses to photographs, P x M.
    step : callable
        One of `STEPS`.

    Returns
    -------
    dict of float
        By name, as in `Result`; means over seeds and over both halves of the photographs.
    """
    maps = [similarity(A, step) for A in images]
    reached = share_of_ceiling(maps, halve(photographs, lambda responses: similarity(responses, step)), draws=0)
    unchanged = halve(photographs, lambda responses: similarity(responses, plain)).halves
    pairs = [float(pair_correlation(maps[i], maps[j])[0]) for i in range(len(maps)) for j in range(i)]
    return {
        "agreement": reached.agreement.value,
        "ceiling": reached.ceiling.value,
        "with_plain": float(np.mean([pair_correlation(S, half)[0] for S in maps for half in unchanged])),
        "overlap": reached.overlap.value,
        "overlap_ceiling": reached.overlap_ceiling.value,
        "repeatability": float(np.mean(pairs)) if pairs else float("nan"),
    }


def choose(results: list[Result]) -> str:
    """Apply the rule to the tuned layers.

    Parameters
    ----------
    results : list of Result
        Results of all steps on all layers.

    Returns
    -------
    str
        Name of the step.
    """
    table = pd.DataFrame([asdict(r) for r in results if r.tuned])
    means = table.groupby("step")[["agreement", "repeatability"]].mean()
    allowed = means[means["repeatability"] >= means.loc["none", "repeatability"]]
    best = str(allowed["agreement"].idxmax())
    if best in SINGLE:
        return best
    close = allowed[allowed["agreement"] >= allowed["agreement"].max() - CLOSE]
    single = close[close.index.isin(SINGLE)]
    return str(single["agreement"].idxmax()) if len(single) else best


def read(store: Path) -> list[Result]:
    """Read the results of a file; none where there is no file."""
    return [Result(**r) for r in json.loads(store.read_text())["results"]] if store.exists() else []


def format_page(results: list[Result]) -> str:
    """Format the results as tables, for the README.

    Parameters
    ----------
    results : list of Result
        Results of all steps on all layers.

    Returns
    -------
    str
        Markdown.
    """
    everything, columns = pd.DataFrame([asdict(r) for r in results]), list(Result.__dataclass_fields__)[7:-1]
    table = everything[~everything["whole"]]
    lines = ["## Variance of responses, and profile similarity", "", f"By the rule: **{choose(results)}**.", ""]
    heads = ["agreement", "its ceiling", "with plain responses", f"overlap of {NEAREST} nearest", "its ceiling"]
    for tuned, words in ((True, "Layers that the choice was made on"), (False, "Other layers")):
        part = table[table["tuned"] == tuned]
        if part.empty:
            continue
        layers = part.groupby("source")["layer"].unique()
        named = "; ".join(f"{source}: {', '.join(names)}" for source, names in layers.items())
        lines += [f"{words} ({named}), means over layers:", ""]
        lines += [f"| network | step | {' | '.join(heads)} | repeatability over seeds |", "|---" * 8 + "|"]
        for source, rows in part.groupby("source", sort=False):
            for step in STEPS:
                means = rows[rows["step"] == step][columns].mean()
                lines.append(f"| {source} | {step} | " + " | ".join(f"{v:.3f}" for v in means) + " |")
        lines.append("")
    counts = table.groupby("source")[["features", "photographs"]].first()
    drawn = [f"{s}: {r.features} features of each layer, {r.photographs} photographs" for s, r in counts.iterrows()]
    recipes = ", ".join(table["recipe"].unique())
    lines.append(f"{'; '.join(drawn)}; recipe {recipes}. The columns are described at the beginning of the script.")
    chosen = everything[everything["step"] == choose(results)]
    lines += state_aims(chosen[chosen["whole"]], whole=True) + state_aims(chosen[~chosen["whole"]], whole=False)
    lines += ["", compare_shares(table), "", TRIED]
    return "\n".join([*lines, *tabulate_whole(chosen[chosen["whole"]])])


def tabulate_whole(table: pd.DataFrame) -> list[str]:
    """Tabulate layers of which all features were mapped.

    Parameters
    ----------
    table : pandas.DataFrame
        Results of the chosen step, a row for each layer.

    Returns
    -------
    list of str
        Lines; none without such layers.
    """
    if table.empty:
        return []
    head = f"agreement | its ceiling | share | overlap of {NEAREST} nearest | its ceiling | share | repeatability"
    lines = [
        "",
        f"Whole layers, as `featmap similarity` maps them (all features are stimuli; {table['step'].iloc[0]}):",
        "",
        f"| network | layer | features | {head} |",
        "|---" * 10 + "|",
    ]
    for r in add_shares(table).itertuples():
        values = (
            *(r.agreement, r.ceiling, r.agreement / r.ceiling),
            *(r.overlap, r.overlap_ceiling, r.of_overlap, r.repeatability),
        )
        lines.append(f"| {r.source} | {r.layer} | {r.features} | " + " | ".join(f"{v:.3f}" for v in values) + " |")
    return lines


def add_shares(table: pd.DataFrame) -> pd.DataFrame:
    """Add the shares of both ceilings, as `featmap.stats.map_agreement.CeilingShare` has them.

    Parameters
    ----------
    table : pandas.DataFrame
        Results, a row for each layer and step.

    Returns
    -------
    pandas.DataFrame
        With the columns `of_agreement`, and `of_overlap`, both of whose terms are less the overlap of unrelated maps;
        NaN where the ceiling is not above that.
    """
    chance = NEAREST / (table["features"] - 1)
    above = table["overlap_ceiling"] - chance
    of_overlap = (table["overlap"] - chance) / above.where(above > 0)
    return table.assign(of_agreement=table["agreement"] / table["ceiling"], of_overlap=of_overlap)


def state_aims(table: pd.DataFrame, whole: bool) -> list[str]:
    """State how far the map with the chosen step is from what is aimed at.

    Parameters
    ----------
    table : pandas.DataFrame
        Results of the chosen step, a row for each layer.
    whole : bool
        Whether these are whole layers, which is what `featmap similarity` maps unless it is told otherwise.

    Returns
    -------
    list of str
        Lines: for each network, range over its layers and how many reach the aim; none without layers.
    """
    if table.empty:
        return []
    features = "on whole layers, the default" if whole else "on the drawn features"
    aims = f"Aims, with {table['step'].iloc[0]}, {features}: {SHARE} of either ceiling, and {REPEATABILITY}"
    lines = ["", f"{aims} over seeds.", ""]
    for source, rows in add_shares(table).groupby("source", sort=False):
        parts = []
        for words, values, aim in (
            ("of the ceiling of the agreement", rows["of_agreement"], SHARE),
            ("of that of the overlap above chance", rows["of_overlap"], SHARE),
            ("over seeds", rows["repeatability"], REPEATABILITY),
        ):
            reached = f"{int((values >= aim).sum())} of {len(values)} layers reach it"
            span = f"{values.min():.3f} to {values.max():.3f}" if len(values) > 1 else f"{values.iloc[0]:.3f}"
            parts.append(f"{span} {words} ({reached})")
        lines.append(f"- {source}: {'; '.join(parts)}")
    return lines


def compare_shares(table: pd.DataFrame) -> str:
    """Compare all steps by the shares of both ceilings, which rise with what is divided by them.

    Parameters
    ----------
    table : pandas.DataFrame
        Results of all steps, a row for each layer and step.

    Returns
    -------
    str
        One sentence, with means over the layers of every network.
    """
    means = add_shares(table).groupby("step", sort=False)[["of_agreement", "of_overlap"]].mean()
    parts = [f"{step} {row.of_agreement:.3f} and {row.of_overlap:.3f}" for step, row in means.iterrows()]
    return (
        "The rule looks at agreement and repeatability alone; the ceilings change with the step, too. Shares of the "
        f"ceilings of agreement and of overlap above chance, means over all layers: {'; '.join(parts)}."
    )


def main(
    network: NetworkOptions,
    photographs: Annotated[Path | None, typer.Option(help="A folder of photographs, about 1,000.")] = None,
    layers: Annotated[str, typer.Option(help="Layers, joined by commas.")] = "inception4a",
    features: Annotated[int, typer.Option(help="Features drawn of each layer; 0 takes all.")] = 48,
    seeds: Annotated[int, typer.Option(help="Seeds of every image.")] = 2,
    recipe: Annotated[str, typer.Option(help="Recipe of the images.")] = "fast",
    out: Annotated[Path, typer.Option(help="Folder of images and responses.")] = Path("runs/measures"),
    store: Annotated[Path, typer.Option(help="The values, as JSON.")] = STORE,
    readme: Annotated[Path, typer.Option(help="The table is written between marks in this file.")] = records.README,
    check: Annotated[bool, typer.Option("--check", help="Write nothing; check that table and values agree.")] = False,
) -> None:
    """Compare steps that stabilise the variance of responses before S is computed."""
    if check:
        if format_page(read(store)) not in readme.read_text():
            raise FeatmapError(f"{readme.name} and {store.name} disagree; make the table again")
        return
    if photographs is None:
        raise FeatmapError("photographs are missing; give a folder or zip of about 1,000")
    if seeds < 2:
        raise FeatmapError(f"seeds {seeds}: repeatability compares the maps of two seeds; give 2 or more")
    if features and features <= NEAREST:
        raise FeatmapError(f"features {features}: give more than the {NEAREST} nearest ones that are counted, or 0")
    loaded, names = network.load(), split_names(layers)
    source = short_name(loaded.name)
    resolved = Recipe.named(recipe).resolved(loaded.input_size)
    counts = {layer: features or loaded.layer(layer, loaded.input_size).channels for layer in names}
    drawn = {layer: draw_features(loaded, layer, count, 0) for layer, count in counts.items()}
    stored = [r for r in read(store) if r.source != source or r.whole == bool(features) or r.layer not in names]
    # drawn features are measured again in all layers: on every second one a choice rests
    kept = [r for r in stored if r.source != source or r.whole or not features]
    with console.ProgressBars() as watcher:
        place = Execution("cpu", out=out / source / "photographs", watcher=watcher)
        natural = featmap.probe(open_photographs(photographs), names, loaded, execution=place)
        for position, layer in enumerate(names):
            units = [f"{layer}:{c}" for c in drawn[layer]]
            place = Execution("cpu", out=out / source / layer, watcher=watcher)
            made = featmap.maximise(units, loaded, recipe=resolved, seeds=seeds, execution=place)
            responses = featmap.probe(place.out, [layer], loaded, execution=Execution("cpu", watcher=watcher))
            if not features:  # as in a map, features without an image are left out
                live = np.isin(made["status"].values, LIVE_CODES).all(axis=0)
                units, made = [u for u, is_live in zip(units, live, strict=True) if is_live], made.isel(image=live)
                responses = responses.isel(image=np.tile(live, made.sizes["seed"]))
            A = responses.sel(response=units).values.astype(np.float64).reshape(made.sizes["seed"], len(units), -1)
            P = natural.sel(response=units).values.astype(np.float64)
            for step, function in STEPS.items():
                values = measure(list(A), P, function)
                tuned = bool(features) and position % 2 == 0
                one = Result(
                    source, layer, step, tuned, len(units), len(P), resolved.name, **values, whole=not features
                )
                kept.append(one)
            records.write_json(store, {"results": [asdict(r) for r in kept]})
    records.write_table(SECTION, format_page(kept), readme)
    console.out().print(format_page(kept), soft_wrap=True)


if __name__ == "__main__":
    run(expand_options(main))
