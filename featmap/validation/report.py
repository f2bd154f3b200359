"""Write the results of a validation: the page, tables, plots and each feature's panel with photographs."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd

from featmap.image_shape import colour_note, format_size
from featmap.mapping import flags, tables
from featmap.optimize.photograph_folder import PhotographFolder
from featmap.plotting import scatter, sheets
from featmap.runs import output, probe
from featmap.runs.job import Job
from featmap.runs.progress import Watcher
from featmap.runs.store import Run
from featmap.stats import agreement, reliability
from featmap.validation import null, verdict
from featmap.validation.evidence import layer_similarity, photograph_similarity
from featmap.validation.results import Evaluation, Validation, statistics_records
from featmap.validation.statistics import BEST_PHOTOGRAPHS

PANEL_PHOTOGRAPHS, PANELS_PER_PAGE = 3, 8
"""Best and worst photographs on a feature's panel, and panels on a sheet."""
PAGE = "validation.md"


def write_report(
    store: Run, job: Job, validation: Validation, images: PhotographFolder | None, watcher: Watcher
) -> None:
    """Write all files of a validation and record their checksums in its manifest.

    Parameters
    ----------
    store : Run
        Run folder of the validation.
    job : Job
        Job of the evaluated run.
    validation : Validation
        The results.
    images : PhotographFolder or None
        The photographs.
    watcher : Watcher
        Receives progress updates.
    """
    # The clusters with random weights were recorded when they were written; everything else is written again.
    store.manifest.files = {k: v for k, v in store.manifest.files.items() if k.startswith("random/")}
    statistics = validation.statistics
    output.write_frame(store, "figures", statistics, "row")
    text = json.dumps(statistics_records(statistics), indent=1) + "\n"
    store.write("validation.json", lambda p: p.write_text(text, encoding="utf-8"))
    folders, shown = tables.layer_folders(job.layers), job.shown
    source = (
        None if images is None else probe.open_source(images, job.recipe.size, job.recipe.size, job.network.channels)
    )
    for layer, evaluation in validation.trained.items():
        if source is not None:
            best = evaluation.features["best_photograph"]
            evaluation.features["best_photograph"] = [None if pd.isna(k) else source.labels[int(k)] for k in best]
        output.write_frame(store, f"{folders[layer]}features", evaluation.features, "feature")
        clouds, scores = _pair_clouds(evaluation), _path_scores(evaluation, validation.random.get(layer))
        figure = scatter.agreement_panels(clouds, scores, f"{layer}: its similarity and what it is compared with")
        output.save_figure(store, figure, f"{folders[layer]}agreement", ("png", "svg"))
        responses = evaluation.evidence.photograph_responses
        if source is not None and responses is not None:
            names = [name for name in shown if name in evaluation.features.index]
            _draw_panels(store, evaluation, responses, source, names, folders[layer], watcher)
    _remove_stale_panels(store, folders)
    page = compose_page(job, validation, images)
    store.write(PAGE, lambda p: p.write_text(page, encoding="utf-8"))


def _remove_stale_panels(store: Run, folders: dict[str, str]) -> None:
    """Remove panels of an earlier validation that were not drawn again."""
    for name in folders.values():
        folder = store.folder / name / "panels"
        for path in folder.glob("*"):
            if path.relative_to(store.folder).as_posix() not in store.manifest.files:
                path.unlink()
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def compose_page(job: Job, validation: Validation, images: PhotographFolder | None) -> str:
    """Compose the page of a validation, with notes on how it was computed.

    Parameters
    ----------
    job : Job
        Job of the evaluated run.
    validation : Validation
        The results.
    images : PhotographFolder or None
        The photographs.

    Returns
    -------
    str
        Markdown.
    """
    evidence = next(iter(validation.trained.values())).evidence
    photographs = "No photographs." if images is None else f"{images.describe()}."
    notes = [
        f"{len(evidence.seed_responses)} seeds, {evidence.run_seeds} of them the run's own; "
        f"{_describe_random(validation)}.",
        f"Recipe {job.recipe.name}, {job.recipe.steps} steps, {format_size(job.recipe.size)} pixels; "
        f"device {job.device.type}.",
        photographs,
        "The kind of an interval is named beside it. Bootstrap over features: "
        f"{reliability.DRAWS} draws, without pairs of a feature with its own copy. p: permutations of features, "
        f"one-sided. A permuted: mean and 95 % range of {null.DRAWS} draws; of clusters and modularity median, least "
        f"and most of {null.CLUSTER_DRAWS} (the nulls allow clusters in one such table of twenty).",
        f"A feature is marked if its reliability in the run's map is below {flags.RELIABLE} (predicted from single "
        "seeds by Spearman-Brown).",
        f"The processing path is measured on each feature's {BEST_PHOTOGRAPHS} best photographs. Nothing is corrected "
        f"for attenuation where a split-half reliability is below {agreement.CORRECTABLE}.",
        "The ceiling of the agreement with photographs is what S over one best photograph of each feature reaches. It "
        "is chosen in one half of the photographs (drawn at random) and compared with S over the other half, as the "
        "agreement is; both are means over the two halves. The interval of the share covers which features were "
        "mapped, not which photographs were given.",
        "Formulas and sources: the docstrings of featmap/stats/reliability.py, featmap/stats/agreement.py, "
        "featmap/stats/map_agreement.py and featmap/validation/statistics.py.",
    ]
    for layer, evaluation in validation.trained.items():
        missing = [side for side in ("incoming", "outgoing") if f"{side}_weights" not in evaluation.statistics]
        if missing:
            notes.append(
                f"{layer} is not compared with its {' and '.join(missing)} weights: between its features and the next "
                "convolution on that side the channels are mixed (by a sum or a reshape), or there is no convolution."
            )
    return verdict.format_page("Is the map true?", str(job.network), validation, notes)


def _describe_random(validation: Validation) -> str:
    """Describe the random weights in words."""
    if not validation.random:
        return "no random weights"
    seeds = len(next(iter(validation.random.values())).evidence.seed_responses)
    return f"random weights: one draw of them, {seeds} seed(s) of noise to descend from"


def _pair_clouds(evaluation: Evaluation) -> list[scatter.PairCloud]:
    """Collect the pairs of features by S and by what it is compared with."""
    evidence = evaluation.evidence
    upper = np.triu_indices(len(evidence.names), 1)
    clouds = []
    if len(evidence.seed_responses) > 1:
        first, second = (layer_similarity(A, evidence.live_in_all_seeds)[upper] for A in evidence.seed_responses[:2])
        note = f"mean r over seeds {verdict.format_value(evaluation.value('repeatability'))}"
        clouds.append(scatter.PairCloud(first, second, "S, first seed", "S, second seed", note))
    S = evidence.S[upper]
    if evidence.photograph_responses is not None:
        P = photograph_similarity(evidence.photograph_responses, evidence.live)[upper]
        value = verdict.format_value(evaluation.value("photographs_pearson"))
        note = f"r {value}, over {len(evidence.photograph_responses):,} photographs"
        if evaluation.value("photographs_share") is not None:
            note += f"; share of the ceiling {verdict.format_value(evaluation.value('photographs_share'))}"
        clouds.append(scatter.PairCloud(S, P, "S, maximising images", "S, photographs", note))
    if evidence.incoming is not None:
        note = f"r {verdict.format_value(evaluation.value('incoming_weights'))}, within one convolution"
        cosines = evidence.incoming[0][upper]
        clouds.append(scatter.PairCloud(S, cosines, "S", "cosine of incoming weights", note, same_scale=False))
    return clouds


def _path_scores(evaluation: Evaluation, random: Evaluation | None) -> list[scatter.LayerScore]:
    """Collect the scores of the processing path, from the first layer to the features' own."""
    scores = []
    for name, statistic in evaluation.statistics.items():
        if name.startswith("path:"):
            of_random = None if random is None else random.value(name)
            layer = name.removeprefix("path:")
            scores.append(scatter.LayerScore(layer, statistic.value, statistic.low, statistic.high, of_random))
    return scores


def _draw_panels(
    store: Run,
    evaluation: Evaluation,
    responses: np.ndarray,
    source: probe.Source,
    names: list[str],
    folder: str,
    watcher: Watcher,
) -> None:
    """Draw features' panels on sheets: the maximising image, the best and the worst photographs."""
    evidence = evaluation.evidence
    best = agreement.best_photographs(responses, PANEL_PHOTOGRAPHS)
    worst = agreement.best_photographs(-responses, PANEL_PHOTOGRAPHS)
    title = f"{evidence.layer}: each maximising image, and the photographs that excite its feature most and least"
    title += colour_note(len(evidence.read_image(names[0])) if names else 3)
    for number, first in enumerate(range(0, len(names), PANELS_PER_PAGE), 1):
        watcher.stage(f"panels of {evidence.layer}", first, len(names))
        cards = []
        for name in names[first : first + PANELS_PER_PAGE]:
            j = evidence.names.index(name)
            photographs = [*best[j], *worst[j]]
            pictures = [source.read(int(k), int(k) + 1)[0].numpy() for k in photographs]
            labels = [
                *flags.marked_names(evaluation.features, [name]),
                *[f"{responses[k, j]:.3g}" for k in photographs],
            ]
            text = _panel_text(evaluation, name)
            cards.append(sheets.Card((evidence.read_image(name), *pictures), tuple(labels), text))
        output.save_figure(
            store, sheets.card_sheet(cards, title, stretched=True), f"{folder}panels/page-{number:03d}", ("png",)
        )
    watcher.stage(f"panels of {evidence.layer}", len(names), len(names))


def _panel_text(evaluation: Evaluation, name: str) -> str:
    """Write the caption of a feature's panel."""
    row = evaluation.features.loc[name]

    def number(column: str) -> str:
        return "undefined" if column not in row or pd.isna(row[column]) else f"{row[column]:.3g}"

    return (
        f"image, {PANEL_PHOTOGRAPHS} best and {PANEL_PHOTOGRAPHS} worst photographs with their responses; that to the "
        f"image is {number('multiple_of_best_photograph')} times that to the best photograph; reliability "
        f"{number('reliability')}, processing path {number('path_score')}"
    )
