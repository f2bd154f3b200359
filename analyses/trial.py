"""Validate the map of several layers, from early to late, and write the page of the results.

    python -m analyses.trial --photographs FOLDER    # a folder or a zip; about a quarter of an hour on two cores
    python -m analyses.trial --photographs FOLDER --full    # all features, five seeds: hours
    python -m analyses.trial                         # writes the page again from the stored results

One map of `--layers` is made (64 features drawn at random of each, whose images are the stimuli) and passed to `featmap
validate`. Then it is measured why similarity over photographs differs (`analyses.support.photograph_gap`): over the
stored arrays, over images of 1/f noise, and over descents stopped after a quarter of the steps; the layer that repeats
worst is mapped again with twice the steps. Photographs are not part of the project.

Stored in `analyses/results/trial` are statistics.csv (all statistics of the validation), shortfall.csv (those of the
difference) and trial.json (settings, verdicts). The page, analyses/validation.md, is written from these alone. Runs are
in `--runs` and are resumed.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import typer

import featmap
from analyses.support import photograph_gap, trial_page
from analyses.support.commands import run
from analyses.support.settings import library_keywords
from featmap import FeatmapError, Network, Recipe, image_ops, load, rng
from featmap.cli.console import err, out, run_with_progress
from featmap.cli.parsing import SkipBroken
from featmap.files import digest, write_atomically
from featmap.mapping.result import LayerMaps
from featmap.optimize.photograph_files import find_photographs
from featmap.optimize.photograph_folder import PhotographFolder
from featmap.runs.progress import Watcher
from featmap.runs.store import Run
from featmap.stats import reliability
from featmap.stats.measures import FORMULA, profile_correlations
from featmap.validation import verdict
from featmap.validation.inputs import decode_photographs
from featmap.validation.results import Evaluation, Validation
from featmap.validation.statistics import TARGET_RELIABILITY

LAYERS = "inception3a,inception3b,inception4a,inception4c,inception4e,inception5b"
FEATURES, SEEDS, FULL_SEEDS, NULL_SEEDS = 64, 3, 5, 2
RECIPE = "pixels"
NOISE, EARLY, LONGER = 1000, 0.25, 2
"""Images of 1/f noise; share of the steps of early images, and multiple of the steps of longer descents."""
HERE = Path(__file__).resolve().parent
RESULTS, PAGE = HERE / "results" / "trial", HERE / "validation.md"


@dataclass(frozen=True)
class Plan:
    """Network, drawn channels of its layers, photographs and seeds."""

    network: Network
    features: dict[str, list[int]]
    images: PhotographFolder
    seeds: int
    null_seeds: int
    recipe: dict[str, Any]
    runs: Path
    full: bool

    @property
    def layers(self) -> list[str]:
        """Layers, from early to late."""
        return list(self.features)

    def folder(self, name: str, **settings: Any) -> Path:
        """Name the run folder of this network, these features and settings."""
        about = {"weights": self.network.sha256, "features": self.features, "recipe": self.recipe} | settings
        return self.runs / f"{name}-{digest(json.loads(json.dumps(about, default=str)))}"

    def map(self, name: str, watcher: Watcher, layers: list[str] | None = None, **settings: Any) -> LayerMaps:
        """Map the drawn features of the layers (None: all layers)."""
        chosen = {la: self.features[la] for la in layers or self.layers}
        changes = self.recipe | settings
        folder = self.folder(name, layers=list(chosen), **settings)
        result = featmap.similarity(
            list(chosen),
            self.network,
            # named, as all maps of a trial have to share it: size and steps alone would change another recipe
            **library_keywords(recipe=RECIPE, features=chosen, stimuli="shown", out=folder, watcher=watcher, **changes),
        )
        assert isinstance(result, LayerMaps)
        return result


def draw_channels(network: Network, layers: list[str], count: int | None, size: int | None) -> dict[str, list[int]]:
    """Draw channels of each layer at random, always the same.

    All channels where `count` is None.
    """
    channels_of = {}
    for layer in layers:
        channels = network.layer(layer, size or network.input_size).channels
        chosen = rng.generator("trial", layer).choice(channels, min(count or channels, channels), replace=False)
        channels_of[layer] = sorted(chosen.tolist())
    return channels_of


def measure_all(plan: Plan, watcher: Watcher) -> dict[str, Any]:
    """Make the map, validate it, and explain the gap to photographs.

    Returns what is stored: statistics and shortfall (tables), about (plain values).
    """
    layer_maps = plan.map("map", watcher)
    validation = featmap.validate(
        layer_maps.folder,
        photographs=plan.images,
        seeds=plan.seeds,
        null_seeds=plan.null_seeds,
        network=plan.network,
        execution=featmap.Execution(watcher=watcher),
    )
    early = plan.map("early", watcher, steps=max(2, round(_recipe_of(layer_maps).steps * EARLY)))
    noise = _noise_responses(plan, watcher)
    rows = []
    for layer, trial in validation.trained.items():
        statistics = photograph_gap.explain_gap(_layer_evidence(trial, layer_maps, early, noise))
        rows += [
            {"layer": layer, "name": n, "value": f.value, "low": f.low, "high": f.high} for n, f in statistics.items()
        ]
    return {
        "statistics": validation.statistics,
        "shortfall": pd.DataFrame(rows),
        "about": _describe(plan, layer_maps, validation)
        | {"longer": _measure_longer(plan, validation, _recipe_of(layer_maps).steps * LONGER, watcher)},
    }


def _recipe_of(layer_maps: LayerMaps) -> Recipe:
    """Read the recipe of a map's run."""
    return Recipe.from_identity(Run.read(layer_maps.folder).identity["recipe"])


def _noise_responses(plan: Plan, watcher: Watcher) -> pd.DataFrame:
    """Measure the responses to images of 1/f noise."""
    size = plan.recipe.get("size") or plan.network.input_size
    watcher.note(f"{NOISE} images of 1/f noise through {', '.join(plan.layers)}")
    responses = featmap.probe(image_ops.pink_noise(NOISE, size).numpy(), plan.layers, plan.network)
    return pd.DataFrame(responses.values.astype(np.float64), columns=[str(r) for r in responses["response"].values])


def _layer_evidence(
    trial: Evaluation, layer_maps: LayerMaps, early: LayerMaps, noise: pd.DataFrame
) -> photograph_gap.LayerEvidence:
    """Collect the responses that the explanations of one layer need.

    Only features live in both the map and the early map are taken.
    """
    evidence = trial.evidence
    layer, table = evidence.layer, layer_maps.maps[evidence.layer].features
    early_A = early.maps[layer].activations.to_numpy(dtype=np.float64)
    who = evidence.live & np.isfinite(early_A).all(axis=0) & np.isfinite(early_A).all(axis=1)
    names = [n for n, w in zip(evidence.names, who, strict=True) if w]
    inside = np.ix_(who, who)
    data = layer_maps.dataset["A"]
    rest = [str(n) for n in data["image"].values if str(n).rpartition(":")[0] != layer]
    others = data.sel(image=rest, response=names).values.astype(np.float64).mean(axis=0)
    assert evidence.photograph_responses is not None
    return photograph_gap.LayerEvidence(
        evidence.mean_responses[inside],
        evidence.photograph_responses[:, who].astype(np.float64),
        others[np.isfinite(others).all(axis=1)],
        early_A[inside],
        noise[names].to_numpy(),
        [str(b) for b in table.loc[names, "branch"].fillna("")],
    )


def _measure_longer(plan: Plan, validation: Validation, steps: int, watcher: Watcher) -> dict[str, Any] | None:
    """Measure whether more steps help the layer that repeats worst, if it falls short."""
    defined = {layer: r for layer, t in validation.trained.items() if (r := t.value("repeatability")) is not None}
    worst = min(defined, key=lambda layer: defined[layer], default=None)
    if worst is None or defined[worst] >= TARGET_RELIABILITY:
        return None
    again = plan.map("longer", watcher, [worst], steps=steps, seeds=2)
    data = again.dataset["A"].sel(response=again.maps[worst].shown)
    live = list(again.maps[worst].clusters.labels.index)
    tables = [profile_correlations(a.sel(image=live, response=live).values.astype(float)) for a in data]
    again_r = reliability.repeatability(tables)
    plain = {k: v if np.isfinite(v) else None for k, v in vars(again_r).items()}
    return {"layer": worst, "before": defined[worst], "steps": steps} | plain


def _describe(plan: Plan, layer_maps: LayerMaps, validation: Validation) -> dict[str, Any]:
    """Collect settings and verdicts as plain values."""
    recipe = _recipe_of(layer_maps)
    first = next(iter(validation.trained.values())).evidence
    verdicts = {}
    for layer, trial in validation.trained.items():
        reached = verdict.reach_verdict(trial, validation.random.get(layer))
        table = trial.features
        bad = [str(n) for n in table.index[table["reliable"] == 0]]
        verdicts[layer] = {"may": reached.may, "may_not": reached.may_not, "mend": reached.remedies, "unreliable": bad}
    return {
        "network": str(plan.network),
        "layers": {la: [len(c), plan.network.layer(la, recipe.size).channels] for la, c in plan.features.items()},
        "photographs": 0 if first.photograph_responses is None else len(first.photograph_responses),
        "seeds": plan.seeds,
        "null_seeds": plan.null_seeds,
        "without_random": validation.reason,
        "recipe": recipe.name,
        "steps": recipe.steps,
        "size": recipe.size,
        "device": str(Run.read(layer_maps.folder).identity["device"]),
        "full": plan.full,
        "formula": FORMULA,
        "verdicts": verdicts,
    }


def store_results(measured: dict[str, Any], results: Path) -> None:
    """Write the tables and the record, small enough to be kept with the project."""
    for name in ("statistics", "shortfall"):
        table: pd.DataFrame = measured[name].astype({"count": "Int64"} if name == "statistics" else {})
        path = results / f"{name}.csv"
        write_atomically(path, lambda p, t=table: t.to_csv(p, index=False, float_format="%.6g", lineterminator="\n"))  # type: ignore[misc]
    text = json.dumps(measured["about"], indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    write_atomically(results / "trial.json", lambda p: p.write_text(text, encoding="utf-8"))


def main(
    photographs: Annotated[
        Path | None, typer.Option(help="A folder or a zip. None: only write the page again.")
    ] = None,
    model: Annotated[str, typer.Option(help="As for `featmap similarity`.")] = "reference",
    weights: Annotated[str | None, typer.Option()] = None,
    layers: Annotated[str, typer.Option(help="Joined by commas, early to late.")] = LAYERS,
    features: Annotated[int, typer.Option(help="Features drawn of each layer.")] = FEATURES,
    seeds: Annotated[int, typer.Option(help="Number of seeds.")] = SEEDS,
    null_seeds: Annotated[int, typer.Option(help="Seeds of the map with random weights.")] = NULL_SEEDS,
    skip_broken: SkipBroken = False,
    full: Annotated[bool, typer.Option("--full", help="All features and five seeds.")] = False,
    size: Annotated[int | None, typer.Option()] = None,
    steps: Annotated[int | None, typer.Option()] = None,
    runs: Annotated[Path, typer.Option(help="Folder of the runs, which are resumed.")] = Path("runs/trial"),
    results: Annotated[Path, typer.Option(help="Folder for the tables.")] = RESULTS,
    page: Annotated[Path, typer.Option(help="File for the page.")] = PAGE,
) -> None:
    """Validate the map of several layers and write the page."""
    if photographs is not None:
        if features < 8 and not full:
            raise FeatmapError(f"--features {features}: similarity needs 8 or more of each layer")
        network = load(model, weights)
        chosen = [n.strip() for n in layers.split(",") if n.strip()]
        if len(set(chosen)) < 2:
            raise FeatmapError(f"--layers {layers!r}: give two or more; `featmap validate` validates a single layer")
        recipe = {k: v for k, v in {"size": size, "steps": steps}.items() if v is not None}
        channels = draw_channels(network, chosen, None if full else features, size)
        # before the map, which takes much longer than to open all photographs
        listed = find_photographs(photographs)
        decoded = run_with_progress(lambda watcher: decode_photographs(listed, skip_broken, watcher))
        plan = Plan(
            network,
            channels,
            decoded,
            max(seeds, FULL_SEEDS) if full else seeds,
            null_seeds,
            recipe,
            runs,
            full,
        )
        store_results(run_with_progress(lambda watcher: measure_all(plan, watcher)), results)
        err().print(f"results: {results}")
    text = trial_page.build_page(results)
    write_atomically(page, lambda p: p.write_text(text, encoding="utf-8"))
    out().print(f"page: {page}")


if __name__ == "__main__":
    run(main)
