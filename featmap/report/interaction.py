"""Build the report of a finished interaction run: text, tables and figures for a page."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from featmap.errors import StoreError
from featmap.interaction.conclusion import describe_photographs_of_pairs
from featmap.interaction.kinds import KINDS
from featmap.network.unit import format_channels
from featmap.plotting.labels import labelled_statistics, statistic_label
from featmap.report.encode import encode_figure
from featmap.report.page import Picture, Report
from featmap.report.pairs import MAX_LISTED, collect_pairs, list_communities, tabulate
from featmap.report.reproduction import Reproduction
from featmap.runs import integrity, store
from featmap.runs.store import Run, open_arrays
from featmap.stats.interaction import BALANCE

JSON_FILE = "interaction.json"


def build_reports(folder: Path) -> list[Report]:
    """Build the reports of a finished interaction run.

    Parameters
    ----------
    folder : Path
        Run folder of `featmap interact`.

    Returns
    -------
    list of Report
        One report; three for a screening: the screening, its best pairs and its check.

    Raises
    ------
    StoreError
        If the run is of another command or not finished.
    """
    run = integrity.read_finished(folder)
    if (folder / "pairs.parquet").is_file():
        return [_pairs(run)]
    if (folder / JSON_FILE).is_file():
        return [_group(run)]
    if (folder / "predictors.csv").is_file():
        return [_screening(run), *(r for part in ("top", "check") for r in build_reports(folder / part))]
    raise StoreError(f"run {str(folder)!r} is not an interaction run; give a run folder of `featmap interact`")


def _picture(path: Path, caption: str, description: str) -> Picture:
    """Return a figure of the run with its caption, and a description in its alternative text."""
    uri, (width, height) = encode_figure(path)
    return Picture(uri, width, height, caption, f"{caption}. {description}" if description else caption)


def _pictures(folder: Path, captions: list[tuple[str, str]], description: str) -> list[Picture]:
    """Return those figures that the run has written; names and captions are given in pairs."""
    return [_picture(folder / name, caption, description) for name, caption in captions if (folder / name).is_file()]


def _read_json(folder: Path) -> dict[str, Any]:
    """Read the results of a run as JSON; of a run of pairs of an earlier version there are none."""
    path = folder / JSON_FILE
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def _power(content: dict[str, Any]) -> list[str]:
    """Say in a line what the run could find; an earlier version did not store it."""
    power = content.get("power", {"sentence": "", "basis": ""})
    sentence, basis = power["sentence"], power["basis"]
    return [f"{_begin(sentence)}{'. ' if basis else ''}{basis}"] if sentence else []


def _begin(text: str) -> str:
    """Let a text begin with a capital letter."""
    return text[:1].upper() + text[1:]


def _group(run: Run) -> Report:
    """Return the report of one group of units."""
    content = _read_json(run.folder)
    units, seeds = content["units"], content["seeds"]
    rows: list[dict[str, Any]] = []
    for name in labelled_statistics(list(content["figures"])):
        values = content["figures"][name]
        low, high = values["interval"] or (None, None)
        row = {"statistic": statistic_label(name, units), "mean": values["mean"], "low": low, "high": high}
        rows.append(row | {f"seed {s}": v for s, v in zip(seeds, values["seeds"], strict=True)})
    lines = [content["sentence"], *content["notes"], *_power(content)]
    caption = f"Statistics over {len(seeds)} seed(s); low and high: bounds of the interval of the mean"
    lines += content.get("photographs", {}).get("sentences", [])  # runs without photographs have none
    return Report(
        title=" + ".join(units),
        lines=lines,
        tables=[(caption, pd.DataFrame(rows))],
        pictures=_pictures(run.folder, [("panel.png", "Panel of " + " + ".join(units))], content["sentence"]),
        command=_join(["featmap", "interact", *units], _options(run, units)),
    )


def _pairs(run: Run) -> Report:
    """Return the report of a run of many pairs."""
    pairs, ranking = store.read_frame(run.folder, "pairs"), store.read_frame(run.folder, "ranking")
    layers = [str(pairs[side].iloc[0]).partition(":")[0] for side in "ab"]
    statistics, kinds = labelled_statistics(list(pairs.columns)), collect_pairs(run.folder)
    table = tabulate(ranking.head(MAX_LISTED))
    tables = [] if kinds else [(f"The {len(table)} least linear pairs", table)]
    communities = list_communities(run.folder)
    if len(communities):
        tables.append(("Communities of units that interact, at a false discovery rate of 5 %", communities))
    values = pairs["kind"].value_counts() if "kind" in pairs else {}
    lines = (
        [f"Kinds: {', '.join(f'{values[kind]:,} {kind}' for kind in KINDS if kind in values)}"] if len(values) else []
    )
    notes = run.manifest.summary.get("notes", [])
    lines += [_begin(note) for note in notes if note.startswith("communities")]
    drawn = [] if kinds and kinds.cells else [("matrices/kind.png", "Kinds of interaction")]
    pictures = _pictures(run.folder, drawn, "".join(lines))
    lines += _power(_read_json(run.folder))
    lines += [note for note in notes if " seeds were made " in note]
    if "joint_agreement" in pairs:  # runs of earlier versions do not have it
        lines += describe_photographs_of_pairs(pairs, store.read_frame(run.folder, "methods"))
    for name in statistics:
        values = pairs[name].astype("float64")
        count = values.notna().sum()
        description = f"{count} pairs, mean {values.mean():.3g}, from {values.min():.3g} to {values.max():.3g}"
        pictures += _pictures(run.folder, [(f"matrices/{name}.png", statistic_label(name))], description)
    sheets = [("least-linear.png", "The least linear pairs"), ("most-linear.png", "The most linear pairs")]
    pictures += _pictures(run.folder, sheets, f"{len(ranking)} pairs are ranked")
    return Report(
        title=f"{layers[0]} with {layers[1]}: {len(pairs)} pairs",
        lines=lines,
        tables=[*tables, *_methods(run)],
        pairs=kinds,
        pictures=pictures,
        command=_grid_command(run, layers, [[str(u) for u in dict.fromkeys(pairs[side])] for side in "ab"], len(pairs)),
    )


def _methods(run: Run) -> list[tuple[str, pd.DataFrame]]:
    """Return the table of how far statistics agree over pairs, of a run with photographs."""
    if not (run.folder / "methods.parquet").is_file():
        return []
    table = store.read_frame(run.folder, "methods")
    names = {name: table[name].map(statistic_label) for name in ("one", "other")}
    return [("Rank correlations of statistics over pairs, with intervals", table.assign(**names))]


def _features(units: Sequence[Sequence[str]]) -> list[str]:
    """Return the option that lists the channels of both layers' features."""
    return ["--features", *(format_channels([int(u.rpartition(":")[2]) for u in side]) for side in units)]


def _grid_command(run: Run, layers: list[str], units: list[list[str]], count: int) -> str:
    """Return the command of a run of every pair; "" for the few pairs that a screening has chosen."""
    if count < len(units[0]) * len(units[1]):
        return ""
    return _join(["featmap", "interact", "--layers", *layers, *_features(units)], _options(run, layers))


def _join(words: list[str], options: list[str] | None) -> str:
    """Join the words of a command; "" where no options give the run."""
    return "" if options is None else shlex.join([*words, *options])


def _joint_options(run: Run, own: Sequence[str]) -> list[str]:
    """Return the options for balance and probed layers, where they are not the default; `own` has units or layers."""
    balance, probed = run.identity.get("balance", BALANCE), list(run.identity.get("responses", ()))
    words = [] if balance == BALANCE else ["--balance", balance]
    is_default = not probed or probed == list(dict.fromkeys(name.partition(":")[0] for name in own))
    return words if is_default else [*words, "--probe-layers", ",".join(probed)]


def _count_up(seeds: Sequence[int]) -> bool:
    """Check whether seeds count up by one, as those of options do."""
    return list(seeds) == list(range(seeds[0], seeds[0] + len(seeds)))


def _options(run: Run, own: Sequence[str]) -> list[str] | None:
    """Return the options of a run; None for seeds that do not count up, which no option gives."""
    seeds, auto = run.identity["seeds"], run.identity.get("auto")
    if not _count_up(seeds):
        return None
    count = ["--seeds", "auto", "--width", f"{auto['width']:g}", "--most-seeds", str(auto["most"])] if auto else None
    options = [*Reproduction(run.manifest).options(), *_joint_options(run, own)]
    return [*options, *(count or ["--seeds", str(len(seeds))]), *_photograph_options(run)]


def _photograph_options(run: Run) -> list[str]:
    """Return the options of a run's photographs; a page says nothing of the reader's own folder."""
    photographs = run.identity.get("photographs") or {}
    words = ["--photographs", "FOLDER"] if photographs else []
    return words + (["--limit", str(photographs["limit"])] if photographs.get("limit") else [])


def _screening(run: Run) -> Report:
    """Return the report of a screening, without those of its parts."""
    frame = pd.read_csv(run.folder / "predictors.csv")
    units: dict[str, list[str]] = {}
    for name in map(str, open_arrays(run.folder)["image"].values):
        units.setdefault(name.rpartition(":")[0], []).append(name)
    layers = list(units) if len(units) == 2 else [*units, *units]
    words = ["featmap", "interact", "--layers", *layers, *_features(list(units.values())), "--screen"]
    words += ["--top", str(run.identity["top"]), "--checks", str(run.identity["checks"])]
    solo, fresh = run.identity["seeds"], run.identity["fresh_seeds"]
    words += ["--seeds", str(len(fresh)), *Reproduction(run.manifest).options()]
    words += [*_joint_options(run, layers), *_photograph_options(run)]
    return Report(
        title=f"Screening of {' with '.join(layers)}",
        tables=[("Predictors, evaluated on random pairs", frame)],
        pictures=_pictures(run.folder, [("screening.png", "Predictors against measured values")], ""),
        # within one layer, the folder does not say which feature belongs to which of the two lists
        command=shlex.join(words) if len(units) == 2 and _count_up([*solo, *fresh]) else "",
    )
