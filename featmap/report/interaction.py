"""What a finished interaction run says, as words, tables and figures for a page."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from featmap.errors import StoreError
from featmap.network.unit import format_channels
from featmap.plotting.labels import labelled_statistics, statistic_label
from featmap.report.encode import encode_figure
from featmap.report.page import Picture, Report
from featmap.report.reproduction import Reproduction
from featmap.runs import store
from featmap.runs.store import Run, open_arrays

MAX_RANKED = 60


def build_reports(folder: Path) -> list[Report]:
    """Return the reports of a finished run of `featmap interact`: one, or three for a screening.

    Raises
    ------
    StoreError
        if it is of another command or not finished.
    """
    run = Run.read(folder)
    if run.manifest.status != "complete":
        raise StoreError(f"run {str(folder)!r} is not finished; its own command goes on with it")
    if (folder / "interaction.json").is_file():
        return [_group(run)]
    if (folder / "pairs.parquet").is_file():
        return [_pairs(run)]
    if (folder / "predictors.csv").is_file():
        return [_screening(run), *(r for part in ("top", "check") for r in build_reports(folder / part))]
    raise StoreError(f"run {str(folder)!r} is no interaction run; `featmap interact` makes one")


def _picture(path: Path, caption: str, said: str) -> Picture:
    uri, (width, height) = encode_figure(path)
    return Picture(uri, width, height, caption, f"{caption}. {said}" if said else caption)


def _pictures(folder: Path, wanted: list[tuple[str, str]], said: str) -> list[Picture]:
    """Return the figures that the run has written."""
    return [_picture(folder / name, caption, said) for name, caption in wanted if (folder / name).is_file()]


def _group(run: Run) -> Report:
    found = json.loads((run.folder / "interaction.json").read_text(encoding="utf-8"))
    units, seeds = found["units"], found["seeds"]
    rows: list[dict[str, Any]] = []
    for name in labelled_statistics(list(found["figures"])):
        values = found["figures"][name]
        low, high = values["interval"] or (None, None)
        row = {"figure": statistic_label(name, units), "mean": values["mean"], "low": low, "high": high}
        rows.append(row | {f"seed {s}": v for s, v in zip(seeds, values["seeds"], strict=True)})
    lines = [found["sentence"], *found["notes"]]
    caption = f"Every figure over {len(seeds)} seed(s); low and high: the interval of the mean"
    return Report(
        title=" + ".join(units),
        lines=lines,
        tables=[(caption, pd.DataFrame(rows))],
        pictures=_pictures(run.folder, [("panel.png", "Panel of " + " + ".join(units))], found["sentence"]),
        command=shlex.join(["featmap", "interact", *units, *_options(run)]),
    )


def _pairs(run: Run) -> Report:
    pairs, ranking = store.read_frame(run.folder, "pairs"), store.read_frame(run.folder, "ranking")
    layers = [str(pairs[side].iloc[0]).partition(":")[0] for side in "ab"]
    figures = labelled_statistics(list(pairs.columns))
    columns = [
        "a",
        "b",
        *(c for c in ("response_nonlinearity_floor", "response_nonlinearity_ceiling", "p", "q") if c in ranking),
    ]
    named = [c for c in figures if c in ("response_nonlinearity", "excess") or c.startswith("retention")]
    chosen = ranking[[*columns[:2], *named, *columns[2:]]].head(MAX_RANKED)
    shown = chosen.rename(columns={c: statistic_label(c) for c in chosen.columns[2:]})
    wanted = [(f"matrices/{name}.png", statistic_label(name)) for name in figures]
    pictures = []
    for name, caption in wanted:
        values = pairs[Path(name).stem].astype("float64")
        said = f"{values.notna().sum()} pairs, mean {values.mean():.3g}, from {values.min():.3g} to {values.max():.3g}"
        pictures += _pictures(run.folder, [(name, caption)], said)
    sheets = [("least-linear.png", "The least linear pairs"), ("most-linear.png", "The most linear pairs")]
    pictures += _pictures(run.folder, sheets, f"{len(ranking)} pairs are ranked")
    return Report(
        title=f"{layers[0]} with {layers[1]}: {len(pairs)} pairs",
        tables=[(f"The {len(shown)} least linear pairs", shown)],
        pictures=pictures,
        command=_grid_command(run, layers, [[str(u) for u in dict.fromkeys(pairs[side])] for side in "ab"], len(pairs)),
    )


def _features(units: Sequence[Sequence[str]]) -> list[str]:
    """Return the option that lists the channels of each side's features."""
    return ["--features", *(format_channels([int(u.rpartition(":")[2]) for u in side]) for side in units)]


def _grid_command(run: Run, layers: list[str], units: list[list[str]], count: int) -> str:
    """Return the command of a run of every pair; none for the few pairs that a screening has chosen."""
    if count < len(units[0]) * len(units[1]):
        return ""
    return shlex.join(["featmap", "interact", "--layers", *layers, *_features(units), *_options(run)])


def _options(run: Run) -> list[str]:
    """Return the options of a run's network, recipe and seeds."""
    seeds = run.identity["seeds"]
    return [*Reproduction(run.manifest).options(), "--seeds", str(len(seeds))]


def _screening(run: Run) -> Report:
    frame = pd.read_csv(run.folder / "predictors.csv")
    units: dict[str, list[str]] = {}
    for name in map(str, open_arrays(run.folder)["image"].values):
        units.setdefault(name.rpartition(":")[0], []).append(name)
    layers = list(units) if len(units) == 2 else [*units, *units]
    words = ["featmap", "interact", "--layers", *layers, *_features(list(units.values())), "--screen"]
    words += ["--top", str(run.identity["top"]), "--checks", str(run.identity["checks"])]
    words += ["--seeds", str(len(run.identity["fresh_seeds"])), *Reproduction(run.manifest).options()]
    return Report(
        title=f"Screening of {' with '.join(layers)}",
        tables=[("Predictors, judged by pairs drawn at random", frame)],
        pictures=_pictures(run.folder, [("screening.png", "Predictors against what was measured")], ""),
        # within one layer the folder does not tell the two lists of features apart
        command=shlex.join(words) if len(units) == 2 else "",
    )
