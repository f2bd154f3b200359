"""Is the map true, from the network's early layers to its late ones? The trial of several layers, and its page.

    python -m analyses.trial --images PHOTOGRAPHS    # a folder or a zip; about a quarter of an hour on two cores
    python -m analyses.trial --images PHOTOGRAPHS --full    # all features, five seeds: hours
    python -m analyses.trial                         # the page anew, of the results that are stored

Makes one map of `--layers` (64 features drawn at random of each, whose images are the stimuli), puts it to `featmap
validate`, and measures where similarity over photographs falls short and why (`analyses/shortfall.py`): over the stored
arrays, over images of 1/f noise, and over descents stopped after a quarter of the steps; the layer that repeats worst
is made again with twice the steps. Photographs are not part of the project.

Stored in `analyses/results/trial`: figures.csv (all figures of the trials), shortfall.csv, trial.json (settings,
verdicts). The page, analyses/validation.md, is made of these alone. Runs lie in `--runs` and are gone on with.
"""

from __future__ import annotations

import json
import shutil
import zipfile
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
from featmap.files import digest, hash_file, write_atomically
from featmap.mapping.result import LayerMaps
from featmap.optimize.photographs import SUFFIXES
from featmap.runs.progress import Watcher
from featmap.runs.store import Run
from featmap.stats import reliability
from featmap.validation import verdict
from featmap.validation.statistics import TARGET_RELIABILITY, Evaluation, Validation

LAYERS = "inception3a,inception3b,inception4a,inception4c,inception4e,inception5b"
FEATURES, SEEDS, FULL_SEEDS, NULL_SEEDS = 64, 3, 5, 2
NOISE, EARLY, LONGER = 1000, 0.25, 2
HERE = Path(__file__).resolve().parent
RESULTS, PAGE = HERE / "results" / "trial", HERE / "validation.md"


@dataclass(frozen=True)
class Plan:
    """What is measured: the network, its layers with the channels drawn of each, the photographs, the seeds."""

    network: Network
    features: dict[str, list[int]]
    images: Path
    seeds: int
    null_seeds: int
    recipe: dict[str, Any]
    runs: Path
    full: bool

    @property
    def layers(self) -> list[str]:
        """The layers, from early to late."""
        return list(self.features)

    def folder(self, name: str, **settings: Any) -> Path:
        """Return a run folder of this network, these features and settings."""
        about = {"weights": self.network.sha256, "features": self.features, "recipe": self.recipe} | settings
        return self.runs / f"{name}-{digest(json.loads(json.dumps(about, default=str)))}"

    def map(self, name: str, watcher: Watcher, layers: list[str] | None = None, **settings: Any) -> LayerMaps:
        """Make a map of the drawn features of the layers (None: all)."""
        chosen = {la: self.features[la] for la in layers or self.layers}
        given = self.recipe | settings
        folder = self.folder(name, layers=list(chosen), **settings)
        found = featmap.similarity(
            list(chosen),
            self.network,
            **library_keywords(features=chosen, stimuli="shown", out=folder, watcher=watcher, **given),
        )
        assert isinstance(found, LayerMaps)
        return found


def draw_channels(network: Network, layers: list[str], count: int | None, size: int | None) -> dict[str, list[int]]:
    """Return channels of each layer drawn at random, the same every time; all where `count` is None."""
    found = {}
    for layer in layers:
        channels = network.layer(layer, size or network.input_size).channels
        chosen = rng.generator("trial", layer).choice(channels, min(count or channels, channels), replace=False)
        found[layer] = sorted(chosen.tolist())
    return found


def unpack_photographs(given: Path, runs: Path) -> Path:
    """Return the folder of photographs; a zip's are laid out among the runs first."""
    if given.is_dir() or not zipfile.is_zipfile(given):
        return given
    folder = runs / f"photographs-{hash_file(given)[:12]}"
    done = folder.with_suffix(".complete")
    if not done.is_file():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        with zipfile.ZipFile(given) as archive:
            for name in archive.namelist():
                if Path(name).suffix.lower() in SUFFIXES:
                    archive.extract(name, folder)
        done.touch()
    return folder


def measure_all(plan: Plan, watcher: Watcher) -> dict[str, Any]:
    """Make map, trial and explanations; return what is stored: figures, shortfall (tables), about (plain values)."""
    made = plan.map("map", watcher)
    found = featmap.validate(
        made.folder,
        images=plan.images,
        seeds=plan.seeds,
        null_seeds=plan.null_seeds,
        network=plan.network,
        watcher=watcher,
    )
    early = plan.map("early", watcher, steps=max(2, round(_recipe(made).steps * EARLY)))
    noise = _noise(plan, watcher)
    rows = []
    for layer, trial in found.trained.items():
        figures = photograph_gap.explain_gap(_layer_evidence(trial, made, early, noise))
        rows += [
            {"layer": layer, "name": n, "value": f.value, "low": f.low, "high": f.high} for n, f in figures.items()
        ]
    return {
        "figures": found.figures,
        "shortfall": pd.DataFrame(rows),
        "about": _about(plan, made, found) | {"longer": _longer(plan, found, _recipe(made).steps * LONGER, watcher)},
    }


def _recipe(made: LayerMaps) -> Recipe:
    return Recipe.from_identity(Run.read(made.folder).identity["recipe"])


def _noise(plan: Plan, watcher: Watcher) -> pd.DataFrame:
    size = plan.recipe.get("size") or plan.network.input_size
    watcher.note(f"{NOISE} images of 1/f noise through {', '.join(plan.layers)}")
    found = featmap.probe(image_ops.pink_noise(NOISE, size).numpy(), plan.layers, plan.network)
    return pd.DataFrame(found.values.astype(np.float64), columns=[str(r) for r in found["response"].values])


def _layer_evidence(
    trial: Evaluation, made: LayerMaps, early: LayerMaps, noise: pd.DataFrame
) -> photograph_gap.LayerEvidence:
    """Return what the explanations of one layer rest on: the features that live in map and early map."""
    evidence = trial.evidence
    layer, table = evidence.layer, made.maps[evidence.layer].features
    begun = early.maps[layer].activations.to_numpy(dtype=np.float64)
    who = evidence.live & np.isfinite(begun).all(axis=0) & np.isfinite(begun).all(axis=1)
    names = [n for n, w in zip(evidence.names, who, strict=True) if w]
    inside = np.ix_(who, who)
    data = made.dataset["A"]
    rest = [str(n) for n in data["image"].values if str(n).rpartition(":")[0] != layer]
    others = data.sel(image=rest, response=names).values.astype(np.float64).mean(axis=0)
    assert evidence.photographs is not None
    return photograph_gap.LayerEvidence(
        evidence.own[inside],
        evidence.photographs[:, who].astype(np.float64),
        others[np.isfinite(others).all(axis=1)],
        begun[inside],
        noise[names].to_numpy(),
        [str(b) for b in table.loc[names, "branch"].fillna("")],
    )


def _longer(plan: Plan, found: Validation, steps: int, watcher: Watcher) -> dict[str, Any] | None:
    """Return what more steps do for the repeatability of the layer that repeats worst, if it falls short."""
    known = {layer: r for layer, t in found.trained.items() if (r := t.value("repeatability")) is not None}
    worst = min(known, key=lambda layer: known[layer], default=None)
    if worst is None or known[worst] >= TARGET_RELIABILITY:
        return None
    again = plan.map("longer", watcher, [worst], steps=steps, seeds=2)
    data = again.dataset["A"].sel(response=again.maps[worst].shown)
    live = list(again.maps[worst].clusters.labels.index)
    tables = [featmap.measures.correlations(a.sel(image=live, response=live).values.astype(float)) for a in data]
    again_r = reliability.repeatability(tables)
    defined = {k: v if np.isfinite(v) else None for k, v in vars(again_r).items()}
    return {"layer": worst, "before": known[worst], "steps": steps} | defined


def _about(plan: Plan, made: LayerMaps, found: Validation) -> dict[str, Any]:
    """Return settings and verdicts, as plain values."""
    recipe = _recipe(made)
    first = next(iter(found.trained.values())).evidence
    verdicts = {}
    for layer, trial in found.trained.items():
        held = verdict.reach_verdict(trial, found.random.get(layer))
        table = trial.features
        bad = [str(n) for n in table.index[~table["reliable"].fillna(True)]]
        verdicts[layer] = {"may": held.may, "may_not": held.may_not, "mend": held.mend, "unreliable": bad}
    return {
        "network": str(plan.network),
        "layers": {la: [len(c), plan.network.layer(la, recipe.size).channels] for la, c in plan.features.items()},
        "photographs": 0 if first.photographs is None else len(first.photographs),
        "seeds": plan.seeds,
        "null_seeds": plan.null_seeds,
        "without_random": found.reason,
        "recipe": recipe.name,
        "steps": recipe.steps,
        "size": recipe.size,
        "device": str(Run.read(made.folder).identity["device"]),
        "full": plan.full,
        "verdicts": verdicts,
    }


def store_results(found: dict[str, Any], results: Path) -> None:
    """Write what was measured, small enough to be kept with the project."""
    for name in ("figures", "shortfall"):
        table: pd.DataFrame = found[name]
        path = results / f"{name}.csv"
        write_atomically(path, lambda p, t=table: t.to_csv(p, index=False, float_format="%.6g", lineterminator="\n"))  # type: ignore[misc]
    text = json.dumps(found["about"], indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    write_atomically(results / "trial.json", lambda p: p.write_text(text, encoding="utf-8"))


def main(
    images: Annotated[
        Path | None, typer.Option(help="Photographs: a folder or a zip. None: only the page anew.")
    ] = None,
    model: Annotated[str, typer.Option(help="As for `featmap similarity`.")] = "reference",
    weights: Annotated[str | None, typer.Option()] = None,
    layers: Annotated[str, typer.Option(help="Joined by commas, early to late.")] = LAYERS,
    features: Annotated[int, typer.Option(help="Features drawn of each layer.")] = FEATURES,
    seeds: Annotated[int, typer.Option(help="Seeds in all.")] = SEEDS,
    null_seeds: Annotated[int, typer.Option(help="Maps with random weights.")] = NULL_SEEDS,
    full: Annotated[bool, typer.Option("--full", help="All features and five seeds.")] = False,
    size: Annotated[int | None, typer.Option()] = None,
    steps: Annotated[int | None, typer.Option()] = None,
    runs: Annotated[Path, typer.Option(help="Where the runs lie, to go on from.")] = Path("runs/trial"),
    results: Annotated[Path, typer.Option(help="Where the tables go.")] = RESULTS,
    page: Annotated[Path, typer.Option(help="The page.")] = PAGE,
) -> None:
    """Put several layers' map to the test and write the page of result."""
    if images is not None:
        if features < 8 and not full:
            raise FeatmapError(f"--features {features}: a layer's similarity takes 8 or more")
        network = load(model, weights)
        chosen = [n.strip() for n in layers.split(",") if n.strip()]
        if len(set(chosen)) < 2:
            raise FeatmapError(f"--layers {layers!r}: give two or more; `featmap validate` puts one layer to the test")
        recipe = {k: v for k, v in {"size": size, "steps": steps}.items() if v is not None}
        listed = draw_channels(network, chosen, None if full else features, size)
        plan = Plan(
            network,
            listed,
            unpack_photographs(images, runs),
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
