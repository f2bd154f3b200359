"""What a validation writes: the page, the figures, a row a feature, and each feature's panel with photographs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from featmap.mapping import flags, tables
from featmap.plotting import scatter, sheets
from featmap.runs import output, probe
from featmap.runs.progress import Watcher
from featmap.runs.store import Run
from featmap.stats import agreement, reliability
from featmap.validation import null as permutations
from featmap.validation import statistics, verdict
from featmap.validation.null import CLUSTER_DRAWS
from featmap.validation.statistics import Evaluation, Validation

if TYPE_CHECKING:
    from featmap.runs.job import Job

PANEL_PHOTOGRAPHS, PANELS_PER_PAGE = 3, 8
PAGE = "validation.md"


def write_report(store: Run, job: Job, found: Validation, images: Path | None, watcher: Watcher) -> None:
    """Write everything into the validation's folder and note its checksums."""
    # the clusters of the maps with random weights are noted as they are found
    store.manifest.files = {k: v for k, v in store.manifest.files.items() if k.startswith("random/")}
    output.write_frame(store, "figures", found.figures, "row")
    text = json.dumps(json.loads(found.figures.to_json(orient="records")), indent=1) + "\n"
    store.write("validation.json", lambda p: p.write_text(text, encoding="utf-8"))
    places, shown = tables.layer_folders(job.layers), job.shown
    source = None if images is None else probe.open_source(images, job.recipe.size, job.recipe.size)
    for layer, trial in found.trained.items():
        if source is not None:
            best = trial.features["best_photograph"]
            trial.features["best_photograph"] = [None if pd.isna(k) else source.labels[k] for k in best]
        output.write_frame(store, f"{places[layer]}features", trial.features, "feature")
        clouds, steps = _pair_clouds(trial), _path_scores(trial, found.random.get(layer))
        drawn = scatter.agreement_panels(clouds, steps, f"{layer}: what its similarity is held to")
        output.save_figure(store, drawn, f"{places[layer]}agreement", ("png", "svg"))
        responses = trial.evidence.photographs
        if source is not None and responses is not None:
            own = [f for f in shown if f in trial.features.index]
            _draw_panels(store, trial, responses, source, own, places[layer], watcher)
    _drop_stale(store, places)
    written = compose_page(job, found, images, None if source is None else len(source.labels))
    store.write(PAGE, lambda p: p.write_text(written, encoding="utf-8"))


def _drop_stale(store: Run, places: dict[str, str]) -> None:
    """Remove panels of an earlier validation, with photographs, that were not drawn again."""
    for place in places.values():
        folder = store.folder / place / "panels"
        for path in folder.glob("*"):
            if path.relative_to(store.folder).as_posix() not in store.manifest.files:
                path.unlink()
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def compose_page(job: Job, found: Validation, images: Path | None, count: int | None) -> str:
    """Return the page of result."""
    first = next(iter(found.trained.values()))
    seeds = len(first.evidence.seeds)
    notes = [
        f"{seeds} seeds, {first.evidence.kept} of them the run's own; {_describe_random(found)}.",
        f"Recipe {job.recipe.name}, {job.recipe.steps} steps, {job.recipe.size} pixels; device {job.device.type}.",
        "No photographs."
        if count is None or images is None
        else f"{count:,} photographs of the folder {images.name!r}.",
        f"Intervals are what their column says; bootstrap over features: {reliability.DRAWS} draws, pairs of a feature "
        "with its own copy dropped; p: permutations of features, one-sided; A permuted: mean and 95 % range of "
        f"{permutations.DRAWS} draws, of clusters and modularity median, least and most of "
        f"{CLUSTER_DRAWS} (the nulls let one such table in twenty pass).",
        f"A feature is marked below a reliability of {flags.RELIABLE} in the run's map (by Spearman-Brown from seeds).",
        f"The processing path is measured on each feature's {statistics.BEST_PHOTOGRAPHS} best photographs; nothing is corrected for "
        f"attenuation below a split-half reliability of {agreement.CORRECTABLE}.",
        "Formulas and sources: the docstrings of featmap/reliability.py, featmap/agreement.py and featmap/trials.py.",
    ]
    for layer, trial in found.trained.items():
        lacking = [k for k in ("incoming", "outgoing") if f"{k}_weights" not in trial.figures]
        if lacking:
            notes.append(
                f"{layer} is not held to {' and '.join(lacking)} weights: between its features and the next "
                "convolution on that side lies what mixes channels (a sum, a reshape), or there is none."
            )
    return verdict.format_page("Is the map true?", str(job.network), found, notes)


def _describe_random(found: Validation) -> str:
    """Return in words what random weights stand for."""
    if not found.random:
        return "no random weights"
    seeds = len(next(iter(found.random.values())).evidence.seeds)
    return f"random weights: one draw of them, {seeds} seed(s) of noise to descend from"


def _pair_clouds(trial: Evaluation) -> list[scatter.PairCloud]:
    """Return the pairs of features by S and by what it is held to."""
    evidence = trial.evidence
    upper = np.triu_indices(len(evidence.names), 1)
    found = []
    if len(evidence.seeds) > 1:
        one, two = (evidence.profile(A, evidence.alive)[upper] for A in evidence.seeds[:2])
        value = verdict.format_value(trial.value("repeatability"))
        found.append(scatter.PairCloud(one, two, "S, first seed", "S, second seed", f"mean r over seeds {value}"))
    S = evidence.S[upper]
    if evidence.photographs is not None:
        P = statistics.photograph_similarity(evidence.photographs, evidence.live)[upper]
        value = verdict.format_value(trial.value("photographs_pearson"))
        note = f"r {value}, over {len(evidence.photographs):,} photographs"
        found.append(scatter.PairCloud(S, P, "S, maximising images", "S, photographs", note))
    if evidence.incoming is not None:
        value = verdict.format_value(trial.value("incoming_weights"))
        note = f"r {value}, within one convolution"
        cosines = evidence.incoming[0][upper]
        found.append(scatter.PairCloud(S, cosines, "S", "cosine of incoming weights", note, same_scale=False))
    return found


def _path_scores(trial: Evaluation, random: Evaluation | None) -> list[scatter.LayerScore]:
    """Return the scores of the processing path, from the first layer to the features' own."""
    found = []
    for name, figure in trial.figures.items():
        if name.startswith("path:"):
            null = None if random is None else random.value(name)
            found.append(scatter.LayerScore(name[5:], figure.value, figure.low, figure.high, null))
    return found


def _draw_panels(
    store: Run,
    layer: Evaluation,
    responses: np.ndarray,
    source: probe.Source,
    shown: list[str],
    place: str,
    watcher: Watcher,
) -> None:
    """Draw each feature's panel: its maximising image, its best and its worst photographs; eight features a page."""
    evidence = layer.evidence
    best = agreement.best_photographs(responses, PANEL_PHOTOGRAPHS)
    worst = agreement.best_photographs(-responses, PANEL_PHOTOGRAPHS)
    title = f"{evidence.layer}: each maximising image, and the photographs that excite its feature most and least"
    for number, first in enumerate(range(0, len(shown), PANELS_PER_PAGE), 1):
        watcher.stage(f"panels of {evidence.layer}", first, len(shown))
        cards = []
        for name in shown[first : first + PANELS_PER_PAGE]:
            j = evidence.names.index(name)
            places = [*best[j], *worst[j]]
            pictures = [source.read(int(k), int(k) + 1)[0].numpy() for k in places]
            labels = [*flags.marked_names(layer.features, [name]), *[f"{responses[k, j]:.3g}" for k in places]]
            cards.append(sheets.Card((evidence.image_of(name), *pictures), tuple(labels), _panel_text(layer, name)))
        output.save_figure(store, sheets.card_sheet(cards, title), f"{place}panels/page-{number:03d}", ("png",))
    watcher.stage(f"panels of {evidence.layer}", len(shown), len(shown))


def _panel_text(layer: Evaluation, name: str) -> str:
    row = layer.features.loc[name]

    def number(column: str) -> str:
        return "undefined" if column not in row or pd.isna(row[column]) else f"{row[column]:.3g}"

    return (
        f"image, {PANEL_PHOTOGRAPHS} best and {PANEL_PHOTOGRAPHS} worst photographs with their responses; the image's is "
        f"{number('multiple_of_best_photograph')} times the best's; reliability {number('reliability')}, "
        f"processing path {number('path_score')}"
    )
