"""The page of a trial of several layers, made of the stored results alone: see `analyses.trial`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd

from analyses.support import photograph_gap
from featmap import FeatmapError
from featmap.mapping.flags import RELIABLE
from featmap.stats import reliability
from featmap.stats.agreement import CORRECTABLE
from featmap.stats.reliability import Interval
from featmap.validation.null import CLUSTERED
from featmap.validation.null import DRAWS as PERMUTATIONS
from featmap.validation.verdict import NATURAL, WANTED, WHOLE, span, written

MAIN = {
    "repeatability": "S of one seed with S of another",
    "stimuli_reliability": "reliability of S over the choice of stimuli, at least (split halves of the images)",
    "seeds_needed": f"seeds that a map of r {WANTED} takes",
    "feature_reliability": "a feature's reliability (median; 90 % of features)",
    "unreliable_features": f"features below {RELIABLE}, marked",
    "ari_of_seeds": "clusters of two seeds, ARI (least and most)",
    "ari_of_louvain": "clusters of one map with other seeds of Louvain, ARI (least and most)",
    "clusters": "clusters that the nulls allow",
    "modularity": "modularity of Louvain's runs",
    "photographs_pearson": "S with S over photographs, raw",
    "photographs_spearman": "the same in ranks",
    "photographs_reliability": "split-half reliability of S over photographs",
    "photographs_corrected": f"corrected for attenuation (a dash: a reliability below {CORRECTABLE})",
    "dora_layer_spearman": "DORA's distance, layer-wise, in ranks",
    "dora_pair_spearman": "DORA's distance, pair-wise, in ranks",
    "multiple": "response to the image over that to the best photograph (median; 90 % of features)",
    "below_best_photograph": "share of features with a photograph above their image",
    "path": "processing path, at the layer itself",
    "path_worst": "processing path, lowest on the way",
    "path_passed_over": "layers on the way that were not looked at",
    "incoming_weights": "S with the cosine of incoming weights",
    "incoming_weights_spearman": "the same in ranks",
    "outgoing_weights": "S with the cosine of outgoing weights",
    "outgoing_weights_spearman": "the same in ranks",
}
"""Name of a figure -> its row's name; `path` and `path_worst` are picked from the figures `path:LAYER`."""
PERMUTED = (
    *("clusters", "modularity", "photographs_pearson", "photographs_spearman"),
    *("incoming_weights", "incoming_weights_spearman", "outgoing_weights", "outgoing_weights_spearman"),
)
HEADS = {"may": "May be concluded", "may_not": "May not", "mend": "What would mend it"}


def page(results: Path) -> str:
    """Return the page of the results in a folder.

    Raises
    ------
    FeatmapError
        if there are none.
    """
    try:
        about = json.loads((results / "trial.json").read_text(encoding="utf-8"))
        figures, explained = (pd.read_csv(results / f"{name}.csv") for name in ("figures", "shortfall"))
    except OSError as error:
        raise FeatmapError(
            f"{str(results)!r} holds no results of a trial; give --images PHOTOGRAPHS to make some"
        ) from error
    layers = list(about["layers"])
    lines = ["# Is the map true?", "", _intro(about), "", *_verdicts(about), "## The main figures", ""]
    lines += ["Brackets: 95 %, bootstrap over features, unless the row says otherwise.", ""]
    lines += [*_table(figures[figures["network"] == "trained"], layers, MAIN), ""]
    if (figures["network"] == "random weights").any():
        null = about["null_seeds"]
        lines += [f"The same network with random weights, one draw of them, {null} seed(s) of noise to begin from:", ""]
        lines += [*_table(figures[figures["network"] == "random weights"], layers, MAIN), ""]
    permuted = figures[figures["network"] == "columns permuted"]
    lines += [
        f"A permuted within its columns (mean and 95 % of {PERMUTATIONS} draws; of clusters and modularity median, "
        f"least and most of {CLUSTERED}, of which the nulls let one in twenty pass):",
        "",
    ]
    lines += [*_table(permuted, layers, {k: MAIN[k] for k in PERMUTED}), ""]
    lines += [f"## Repeatability: what falls short of {WANTED}", "", *_repeats(about, figures), ""]
    lines += [f"## Photographs: what falls short of {NATURAL} raw, and why", "", *_reasons(explained, layers), ""]
    lines += [*_table(explained, layers, photograph_gap.FIGURES), ""]
    lines += [
        "P is S over all photographs, S that of the map; brackets: 95 %, bootstrap over features. What rests on random "
        f"halves is the mean over {photograph_gap.SPLITS} of them.",
        "",
    ]
    lines += ["## How it was made", "", *_made(about), ""]
    return escape("\n".join(lines), quote=False)


def _intro(about: dict[str, Any]) -> str:
    shares = ", ".join(f"{la} {some} of {every}" for la, (some, every) in about["layers"].items())
    return (
        f"`featmap validate` of one map of {len(about['layers'])} layers, and what its figures come to, made with "
        f"{about['network']}. Features, each layer's own images being its stimuli: {shares}."
    )


def _verdicts(about: dict[str, Any]) -> list[str]:
    lines = ["## The verdicts", ""]
    for layer, held in about["verdicts"].items():
        lines += [f"**{layer}**", ""]
        lines += [f"- {head}: {text}." for key, head in HEADS.items() for text in held[key]]
        lines += [""]
    return lines


def _picked(part: pd.DataFrame, layer: str, name: str) -> pd.Series | None:
    """Return the row of one figure of one layer, None where there is none."""
    rows = part[part["layer"] == layer]
    if name == "path_worst":
        path = rows[rows["name"].str.startswith("path:") & rows["value"].notna()]
        return None if path.empty else path.loc[path["value"].idxmin()]
    wanted = rows[rows["name"] == (f"path:{layer}" if name == "path" else name)]
    return None if wanted.empty else wanted.iloc[0]


def _cell(row: pd.Series | None, name: str) -> str:
    if row is None or pd.isna(row["value"]):
        return "–"
    whole = name in WHOLE
    text = written(float(row["value"]), whole)
    if pd.notna(row["low"]):
        text += span(float(row["low"]), float(row["high"]), whole=whole)
    return text + (f" at {row['name'][5:]}" if name == "path_worst" else "")


def _table(part: pd.DataFrame, layers: Sequence[str], names: dict[str, str]) -> list[str]:
    """Return a table of figures by layers; figures that no layer has are left out."""
    lines = ["| | " + " | ".join(layers) + " |", "|---|" + "---|" * len(layers)]
    for name, words in names.items():
        cells = [_cell(_picked(part, layer, name), name) for layer in layers]
        if set(cells) != {"–"}:
            lines.append(f"| {words} | " + " | ".join(c.replace("|", "\\|") for c in cells) + " |")
    return lines


def _repeats(about: dict[str, Any], figures: pd.DataFrame) -> list[str]:
    """Return which layers and features repeat too little, and what mends it."""
    trained, lines = figures[figures["network"] == "trained"], []
    for layer, held in about["verdicts"].items():
        row, needed = (_picked(trained, layer, name) for name in ("repeatability", "seeds_needed"))
        bad = held["unreliable"]
        marked = ""
        if bad:
            some = ", ".join(bad[:8]) + (f" and {len(bad) - 8} more" if len(bad) > 8 else "")
            marked = f" Features below {RELIABLE} in the map: {some}."
        r = None if row is None or pd.isna(row["value"]) else float(row["value"])
        if r is None:
            lines.append(f"- {layer}: undefined (too few live features).{marked}")
        elif r < WANTED:
            k = (
                reliability.seeds_needed(r, WANTED)
                if needed is None or pd.isna(needed["value"])
                else int(needed["value"])
            )
            mend = "no number of seeds would" if k is None else f"the mean of {k} seeds would (Spearman-Brown)"
            lines.append(f"- {layer}: {written(r)} between single seeds; to reach {WANTED}, {mend}.{marked}")
        elif marked:
            lines.append(f"- {layer}: {written(r)}.{marked}")
    if not lines:
        some, every = (sum(counts[k] for counts in about["layers"].values()) for k in (0, 1))
        lines.append(
            f"None of the {some:,} features that were measured, of {every:,} in these layers, and no layer by them: "
            f"all layers are at {WANTED} or above, all features at {RELIABLE} or above."
        )
    longer = about["longer"]
    if longer:
        lines += [
            "",
            f"Longer descents: {longer['layer']} with {longer['steps']} steps in place of {about['steps']} repeats "
            f"with {written(longer['value'])} [{written(longer['low'])}, {written(longer['high'])}] in place of "
            f"{written(longer['before'])}.",
        ]
    return lines


def _reasons(explained: pd.DataFrame, layers: Sequence[str]) -> list[str]:
    """Return for each layer that falls short what its explanations say, in sentences."""
    lines = []
    for layer in layers:
        rows = explained[(explained["layer"] == layer) & explained["value"].notna()]
        ends = zip(rows["value"], rows["low"], rows["high"], strict=True)
        known = {str(n): Interval(*map(float, e)) for n, e in zip(rows["name"], ends, strict=True)}
        said = photograph_gap.reason(known.get, NATURAL)
        lines += [f"- {layer}: {'; '.join(said)}."] if said else []
    return lines or [f"No layer: all are at {NATURAL} or above."]


def _made(about: dict[str, Any]) -> list[str]:
    again = "python -m analyses.trial --images PHOTOGRAPHS" + (" --full" if about["full"] else "")
    null = f"; random weights: one draw, {about['null_seeds']} seed(s)" if not about["without_random"] else ""
    return [
        f"- `{again}`; the numbers lie in [analyses/results/trial](results/trial), and without `--images` "
        "this page is made of them anew.",
        f"- {about['seeds']} seeds, the map that of the first{null}; recipe {about['recipe']}, "
        f"{about['steps']} steps, {about['size']} pixels, device {about['device']}; "
        f"{about['photographs']:,} photographs, brought to that size.",
        "- Intervals of correlations: bootstrap over features, pairs of a feature with its own copy dropped. "
        "Path: 0 as to other features' photographs, 1 as to one more of the feature's own.",
        "- Formulas and sources: the docstrings of featmap/reliability.py, featmap/agreement.py, featmap/trials.py and "
        "analyses/shortfall.py.",
    ]
