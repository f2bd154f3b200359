"""The page of the trial of several layers, written from the stored results alone: see `analyses.trial`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd

from analyses.support import photograph_gap
from analyses.support.settings import formula_note
from featmap import FeatmapError
from featmap.mapping.flags import RELIABLE
from featmap.stats import reliability
from featmap.stats.agreement import CORRECTABLE
from featmap.stats.map_agreement import NEAREST
from featmap.stats.reliability import Interval
from featmap.validation.null import CLUSTER_DRAWS
from featmap.validation.null import DRAWS as PERMUTATIONS
from featmap.validation.statistics import TARGET_RELIABILITY
from featmap.validation.verdict import WHOLE_NUMBERS, format_interval, format_value

ROWS = {
    "repeatability": "S of one seed with S of another",
    "stimuli_reliability": "reliability of S over the choice of stimuli, lower bound (split halves of the images)",
    "seeds_needed": f"seeds needed for a map of r {TARGET_RELIABILITY}",
    "feature_reliability": "a feature's reliability (median; 90 % of features)",
    "unreliable_features": f"features below {RELIABLE}, which are marked",
    "ari_of_seeds": "clusters of two seeds, ARI (range)",
    "ari_of_louvain": "clusters of one map with other seeds of Louvain, ARI (range)",
    "clusters": "clusters beyond the null distributions",
    "modularity": "modularity of the Louvain runs",
    "photographs_pearson": "S with S over photographs, raw",
    "photographs_spearman": "the same by ranks",
    "photographs_reliability": "split-half reliability of S over photographs",
    "photographs_corrected": f"corrected for attenuation (a dash: a reliability below {CORRECTABLE})",
    "photographs_agreement": "S with S over half of the photographs (mean of both halves)",
    "photographs_ceiling": "its ceiling: the same with one best photograph of each feature, chosen in the other half",
    "photographs_share": "share of the ceiling that S reaches",
    "photographs_halves": "S over the one half of the photographs with S over the other",
    "photographs_overlap": f"share of the {NEAREST} nearest features in common with S over half of the photographs",
    "photographs_overlap_ceiling": "its ceiling, with best photographs",
    "photographs_overlap_share": "share of that ceiling, both above chance",
    "dora_layer_spearman": "DORA's distance, layer-wise, by ranks",
    "dora_pair_spearman": "DORA's distance, pair-wise, by ranks",
    "multiple": "response to the image divided by that to the best photograph (median; 90 % of features)",
    "below_best_photograph": "share of features that respond more to a photograph than to their image",
    "path": "processing path, at the layer itself",
    "path_worst": "processing path, lowest layer on it",
    "path_passed_over": "layers on the path that were not measured",
    "incoming_weights": "S with the cosine of incoming weights",
    "incoming_weights_spearman": "the same by ranks",
    "outgoing_weights": "S with the cosine of outgoing weights",
    "outgoing_weights_spearman": "the same by ranks",
}
"""Name and row label of each statistic; `path` and `path_worst` are chosen from the statistics `path:LAYER`."""
PERMUTED_ROWS = (
    *("clusters", "modularity", "photographs_pearson", "photographs_spearman"),
    *("incoming_weights", "incoming_weights_spearman", "outgoing_weights", "outgoing_weights_spearman"),
)
HEADINGS = {"may": "You may", "may_not": "You may not", "mend": "Remedy"}

EARLIER_RULE = (
    " The verdicts follow the rules of these versions too: agreement with photographs was judged by its raw "
    "correlation, not by the share of a ceiling."
)
"""Note on a page whose verdicts were stored before the ceiling decided."""


def build_page(results: Path) -> str:
    """Write the page from the results in a folder.

    Parameters
    ----------
    results : Path
        Folder with the stored results.

    Returns
    -------
    str
        The page, in Markdown.

    Raises
    ------
    FeatmapError
        If there are no results.
    """
    try:
        about = json.loads((results / "trial.json").read_text(encoding="utf-8"))
        statistics, explained = (pd.read_csv(results / f"{name}.csv") for name in ("statistics", "shortfall"))
    except OSError as error:
        raise FeatmapError(
            f"{str(results)!r} holds no results of a trial; give --photographs FOLDER to compute them"
        ) from error
    layers = list(about["layers"])
    lines = ["# Is the map valid?", "", _intro(about), "", *_verdicts(about), "## Main statistics", ""]
    lines += ["Brackets: 95 % intervals, bootstrap over features, unless the row says otherwise.", ""]
    lines += [*_table(statistics[statistics["network"] == "trained"], layers, ROWS), ""]
    if (statistics["network"] == "random weights").any():
        null = about["null_seeds"]
        lines += [f"The same network with random weights, one draw of the weights, {null} seed(s) of noise:", ""]
        lines += [*_table(statistics[statistics["network"] == "random weights"], layers, ROWS), ""]
    permuted = statistics[statistics["network"] == "columns permuted"]
    lines += [
        f"A with its columns permuted (mean and 95 % of {PERMUTATIONS} draws; of clusters and modularity the median "
        f"and range of {CLUSTER_DRAWS} draws, of which one in twenty passes the null test):",
        "",
    ]
    lines += [*_table(permuted, layers, {k: ROWS[k] for k in PERMUTED_ROWS}), ""]
    lines += [f"## Repeatability: layers below {TARGET_RELIABILITY}", "", *_repeatability(about, statistics), ""]
    lines += [
        "## Photographs: what keeps layers below their ceiling",
        "",
        "The ceiling is what S over each feature's best photographs, in place of its images, reaches.",
        "",
        *_reasons(explained, layers),
        "",
    ]
    lines += [*_table(explained, layers, photograph_gap.STATISTICS), ""]
    lines += [
        "P is S over all photographs, S that of the map; brackets: 95 % intervals, bootstrap over features. Statistics "
        f"of random halves are means over {photograph_gap.SPLITS} of them.",
        "",
    ]
    lines += ["## How this was computed", "", *_provenance(about), ""]
    return escape("\n".join(lines), quote=False)


def _intro(about: dict[str, Any]) -> str:
    shares = ", ".join(f"{la} {some} of {every}" for la, (some, every) in about["layers"].items())
    return (
        f"`featmap validate` of one map of {len(about['layers'])} layers, and what its statistics allow to conclude; "
        f"{about['network']}. Features measured, whose own images are the layer's stimuli: {shares}."
        + formula_note(about)
        + (EARLIER_RULE if formula_note(about) else "")
    )


def _verdicts(about: dict[str, Any]) -> list[str]:
    lines = ["## Verdicts", ""]
    for layer, verdict in about["verdicts"].items():
        lines += [f"**{layer}**", ""]
        lines += [f"- {head}: {text}." for key, head in HEADINGS.items() for text in verdict[key]]
        lines += [""]
    return lines


def _row_of(part: pd.DataFrame, layer: str, name: str) -> pd.Series | None:
    """Find the row of one statistic of one layer; None where there is none."""
    rows = part[part["layer"] == layer]
    if name == "path_worst":
        path = rows[rows["name"].str.startswith("path:") & rows["value"].notna()]
        return None if path.empty else path.loc[path["value"].idxmin()]
    matches = rows[rows["name"] == (f"path:{layer}" if name == "path" else name)]
    return None if matches.empty else matches.iloc[0]


def _cell(row: pd.Series | None, name: str) -> str:
    if row is None or pd.isna(row["value"]):
        return "–"
    whole = name in WHOLE_NUMBERS
    text = format_value(float(row["value"]), whole)
    if pd.notna(row["low"]):
        text += format_interval(float(row["low"]), float(row["high"]), whole=whole)
    return text + (f" at {row['name'][5:]}" if name == "path_worst" else "")


def _table(part: pd.DataFrame, layers: Sequence[str], names: dict[str, str]) -> list[str]:
    """Write a table of statistics by layers, without the statistics that no layer has."""
    lines = ["| | " + " | ".join(layers) + " |", "|---|" + "---|" * len(layers)]
    for name, words in names.items():
        cells = [_cell(_row_of(part, layer, name), name) for layer in layers]
        if set(cells) != {"–"}:
            lines.append(f"| {words} | " + " | ".join(c.replace("|", "\\|") for c in cells) + " |")
    return lines


def _repeatability(about: dict[str, Any], statistics: pd.DataFrame) -> list[str]:
    """Describe the layers and features that repeat too little, and the remedy."""
    trained, lines = statistics[statistics["network"] == "trained"], []
    for layer, verdict in about["verdicts"].items():
        row, needed = (_row_of(trained, layer, name) for name in ("repeatability", "seeds_needed"))
        bad = verdict["unreliable"]
        marked = ""
        if bad:
            some = ", ".join(bad[:8]) + (f" and {len(bad) - 8} more" if len(bad) > 8 else "")
            marked = f" Features below {RELIABLE} in the map: {some}."
        r = None if row is None or pd.isna(row["value"]) else float(row["value"])
        if r is None:
            lines.append(f"- {layer}: undefined (too few live features).{marked}")
        elif r < TARGET_RELIABILITY:
            k = (
                reliability.seeds_needed(r, TARGET_RELIABILITY)
                if needed is None or pd.isna(needed["value"])
                else int(needed["value"])
            )
            remedy = "no number of seeds suffices" if k is None else f"take the mean of {k} seeds (Spearman-Brown)"
            lines.append(
                f"- {layer}: {format_value(r)} between single seeds; to reach {TARGET_RELIABILITY}: {remedy}.{marked}"
            )
        elif marked:
            lines.append(f"- {layer}: {format_value(r)}.{marked}")
    if not lines:
        some, every = (sum(counts[k] for counts in about["layers"].values()) for k in (0, 1))
        lines.append(
            f"None: of the {some:,} features measured ({every:,} in these layers), all are at {RELIABLE} or above, and "
            f"all layers at {TARGET_RELIABILITY} or above."
        )
    longer = about["longer"]
    if longer:
        value, low, high, before = (format_value(longer[k]) for k in ("value", "low", "high", "before"))
        lines += [
            "",
            f"Longer descents: {longer['layer']} with {longer['steps']} instead of {about['steps']} steps repeats "
            f"with {value} [{low}, {high}] instead of {before}.",
        ]
    return lines


def _reasons(explained: pd.DataFrame, layers: Sequence[str]) -> list[str]:
    """Describe the explanations of each layer that falls short."""
    lines = []
    for layer in layers:
        rows = explained[(explained["layer"] == layer) & explained["value"].notna()]
        ends = zip(rows["value"], rows["low"], rows["high"], strict=True)
        statistics = {str(n): Interval(*map(float, e)) for n, e in zip(rows["name"], ends, strict=True)}
        ceiling = statistics.get("favourites_with_P")
        sentences = [] if ceiling is None else photograph_gap.gap_sentences(statistics.get, ceiling.value)
        lines += [f"- {layer}: {'; '.join(sentences)}."] if sentences else []
    return lines or ["None: all layers reach it, or it was not measured."]


def _provenance(about: dict[str, Any]) -> list[str]:
    again = "python -m analyses.trial --photographs FOLDER" + (" --full" if about["full"] else "")
    null = f"; random weights: one draw, {about['null_seeds']} seed(s)" if not about["without_random"] else ""
    return [
        f"- `{again}`; the numbers are in [analyses/results/trial](results/trial), and without `--photographs` "
        "this page is written from them again.",
        f"- {about['seeds']} seeds, the map is that of the first{null}; recipe {about['recipe']}, "
        f"{about['steps']} steps, {about['size']} pixels, device {about['device']}; "
        f"{about['photographs']:,} photographs, resized to that size.",
        "- Intervals of correlations: bootstrap over features, without pairs of a feature and its own copy. "
        "Path: 0 is the level of other features' photographs, 1 that of another of the feature's own.",
        "- Formulas and sources: the docstrings of featmap/stats/reliability.py, featmap/stats/agreement.py, "
        "featmap/validation/statistics.py and analyses/support/photograph_gap.py.",
    ]
