"""Count the pairs of features whose interaction is defined, in stored runs of `featmap interact --layers`.

    featmap interact --layers inception4a inception4d --features 1,17,... 5,40,... --seeds 1 --size 112 --out RUN
    python -m analyses.benchmarks.defined RUN ...
    python -m analyses.benchmarks.defined --check

A pair is undefined where a unit has no response of its own to share, or a descent ended in a silent network: its
`status` in pairs.csv says so. A run pairs every feature given of one layer with every one of the other: pairs share
features, and the number of features is the sample's size. Beside the number of defined pairs stand the medians of the
response nonlinearity and of its floor. Results of another run of the same network and layers are replaced.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import typer

from analyses.benchmarks import records
from analyses.benchmarks.image_records import short_name
from analyses.support.commands import run
from featmap.errors import FeatmapError
from featmap.runs.store import Run

STORE, SECTION = records.FOLDER / "defined.json", "defined"
AIM = 0.98
OK = "ok"


def count(folder: Path) -> dict[str, Any]:
    """Count the defined pairs of a run.

    Parameters
    ----------
    folder : Path
        Folder of a finished run of `featmap interact --layers`.

    Returns
    -------
    dict
        Plain JSON values.

    Raises
    ------
    FeatmapError
        For a folder that is no such run.
    """
    identity = Run.read(folder).identity
    table = folder / "pairs.csv"
    if not table.is_file() or identity.get("command") != "interact --layers":
        raise FeatmapError(f"{folder} is no finished run of featmap interact --layers A B; give such a run")
    pairs = pd.read_csv(table)
    ok = pairs[pairs["status"] == OK]
    return {
        "source": short_name(identity["model"]["name"]),
        "weights": identity["model"]["sha256"],
        "layers": [str(pairs[side].iloc[0]).partition(":")[0] for side in "ab"],
        "size": identity["recipe"]["octaves"][-1]["size"],
        "recipe": identity["recipe"]["name"],
        "seeds": len(identity["seeds"]),
        "features": [sorted({int(u.rpartition(":")[2]) for u in pairs[side]}) for side in "ab"],
        "pairs": len(pairs),
        "statuses": dict(Counter(pairs["status"])),
        "nonlinearity": _median(ok["response_nonlinearity"]),
        "floor": _median(ok["response_nonlinearity_floor"]),
        "above_floor": int((ok["response_nonlinearity"] > ok["response_nonlinearity_floor"]).sum()),
    }


def _median(values: pd.Series) -> float | None:
    """Compute a median to four decimals; None without values."""
    return round(float(values.median()), 4) if values.notna().any() else None


def format_page(results: list[dict[str, Any]]) -> str:
    """Write the section of the README.

    Parameters
    ----------
    results : list of dict
        Of each run, see `count`.

    Returns
    -------
    str
        Markdown.
    """
    lines = [
        "## Pairs whose interaction is defined",
        "",
        "Features drawn at random from all of two layers each, every one of the first with every one of the second, "
        f"descended with the recipe of `featmap interact`. The aim is {AIM:.0%} of the pairs. Pairs share features: "
        "256 of them say less than 256 drawn one by one. Above the floor: pairs whose response nonlinearity exceeds "
        "its own floor; with one seed no single pair is claimed.",
        "",
        "| network | layers | features | pixels | seeds | pairs | defined | other statuses | median nonlinearity | "
        "median floor | above the floor |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in sorted(results, key=lambda r: (r["source"], r["layers"])):
        defined = r["statuses"].get(OK, 0)
        others = ", ".join(f"{name}: {n}" for name, n in sorted(r["statuses"].items()) if name != OK) or "none"
        medians = ["undefined" if r[k] is None else f"{r[k]:.3f}" for k in ("nonlinearity", "floor")]
        features = " x ".join(str(len(side)) for side in r["features"])
        cells = [r["source"], " and ".join(r["layers"]), features, r["size"], r["seeds"], r["pairs"], defined]
        cells += [others, *medians, r["above_floor"]]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def main(
    runs: Annotated[list[Path] | None, typer.Argument(help="Runs of featmap interact --layers.")] = None,
    store: Annotated[Path, typer.Option(help="The counts, as JSON.")] = STORE,
    readme: Annotated[Path, typer.Option(help="The table is written between marks in this file.")] = records.README,
    check: Annotated[bool, typer.Option("--check", help="Write nothing; check that table and counts agree.")] = False,
) -> None:
    """Count the pairs of features whose interaction is defined."""
    records.update_section(SECTION, [count(folder) for folder in runs or ()], format_page, (store, readme), check)


if __name__ == "__main__":
    run(main)
