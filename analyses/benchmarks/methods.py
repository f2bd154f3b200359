"""Compare the ways of measuring interaction, over the pairs of stored runs on photographs.

    featmap interact --layers features.6 features.9 --features 1,17,... 5,40,... --photographs FOLDER --out RUN
    python -m analyses.benchmarks.methods RUN ...
    python -m analyses.benchmarks.methods --check

A pair has a response nonlinearity (the joint descent); differences and second derivatives along the solo images, at
photographs and at images (the direct tests, without a joint descent); and where enough photographs excite both units, a
nonlinearity on these. Where two of them measure the same, they rank pairs alike: the table gives Spearman's rank
correlations, with 95 % intervals under a bootstrap of the units, which pairs share. Beside it stands how far they agree
over the probed features of one pair, how the joint image agrees with photographs of both, and the kinds of the pairs.
Results of another run of the same network and layers are replaced.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import typer

from analyses.benchmarks import records
from analyses.benchmarks.image_records import short_name
from analyses.support.commands import run
from featmap.errors import FeatmapError
from featmap.interaction.conclusion import METHODS, compare_methods
from featmap.runs.store import Run

STORE, SECTION = records.FOLDER / "methods.json", "methods"
OTHERS = (
    "direct_agreement",
    "second_derivative_agreement",
    "joint_agreement",
    "joint_agreement_p",
    "joint_agreement_others",
    "photographs_both",
)
"""Statistics of a pair that are stored beside those compared."""
WORDS = {
    "direct": "mixed difference at photographs",
    "direct_curvature": "second derivative at photographs, over first derivatives",
    "direct_hessian": "second derivative at photographs",
    "natural_nonlinearity": "nonlinearity on photographs of both",
    "natural_excess": "nonlinearity on photographs of both less its floor",
    "natural_difference": "second difference on photographs",
    "photograph_correlation": "correlation over photographs",
    "response_nonlinearity": "response nonlinearity",
    "second_difference": "second difference of solo images",
    "second_derivative": "second derivative at images",
    "excess": "response nonlinearity less its floor",
}


def collect(folder: Path) -> dict[str, Any]:
    """Collect the statistics of a run's pairs.

    Parameters
    ----------
    folder : Path
        Folder of a finished run of `featmap interact --layers A B --photographs FOLDER`.

    Returns
    -------
    dict
        Plain JSON values; `pairs` has a value of each pair for each statistic, None where it is undefined.

    Raises
    ------
    FeatmapError
        For a folder that is no such run.
    """
    identity = Run.read(folder).identity
    table = folder / "pairs.csv"
    if not table.is_file() or "photographs" not in identity or identity.get("command") != "interact --layers":
        raise FeatmapError(
            f"{folder} is no finished run of featmap interact --layers A B --photographs FOLDER; give such a run"
        )
    pairs = pd.read_csv(table)
    names = list(dict.fromkeys([name for both in METHODS for name in both])) + list(OTHERS)
    if missing := [name for name in names if name not in pairs]:
        raise FeatmapError(f"{folder} was measured before {missing[0]} was; run its command again")
    octaves = identity["recipe"]["octaves"]
    return {
        "source": short_name(identity["model"]["name"]),
        "weights": identity["model"]["sha256"],
        "layers": [str(pairs[side].iloc[0]).rpartition(":")[0] for side in "ab"],
        "size": octaves[-1]["size"],
        "steps": sum(octave["steps"] for octave in octaves),
        "seeds": len(identity["seeds"]),
        "photographs": identity["photographs"]["count"],
        "groups": (pairs["a"] + " + " + pairs["b"]).tolist(),
        "kinds": pairs["kind"].fillna("undefined").tolist(),
        "pairs": {name: [float(f"{v:.6g}") if np.isfinite(v) else None for v in pairs[name]] for name in names},
    }


def frame(result: dict[str, Any]) -> pd.DataFrame:
    """Make a table of a stored result, with a row for each pair."""
    values = {name: np.array(column, dtype=float) for name, column in result["pairs"].items()}
    return pd.DataFrame({"group": result["groups"], **values})


def _with_interval(row: dict[str, Any]) -> str:
    """Format a rank correlation with its interval and number of pairs."""
    if not np.isfinite(row["spearman"]):
        return f"undefined ({row['pairs']} pairs)"
    interval = f" [{row['low']:+.2f}, {row['high']:+.2f}]" if np.isfinite(row["low"]) else ""
    return f"{row['spearman']:+.2f}{interval} ({row['pairs']})"


def _quartiles(values: pd.Series) -> str:
    """Format the quartiles of a statistic over the pairs that define it."""
    defined = values.dropna()
    if defined.empty:
        return "undefined"
    low, middle, high = np.quantile(defined, (0.25, 0.5, 0.75))
    return f"{middle:.2f} ({low:.2f} to {high:.2f}; {len(defined)} pairs)"


def format_page(results: list[dict[str, Any]]) -> str:
    """Write the section of the README.

    Parameters
    ----------
    results : list of dict
        Of each run, see `collect`.

    Returns
    -------
    str
        Markdown.
    """
    results = sorted(results, key=lambda r: (r["source"], r["layers"]))
    sources = Counter(r["source"] for r in results)
    heads = [
        r["source"] if sources[r["source"]] == 1 else f"{r['source']}, {' with '.join(r['layers'])}" for r in results
    ]
    frames = [frame(r) for r in results]
    lines = [
        "## Agreement of the ways of measuring interaction",
        "",
        "Spearman's rank correlation over pairs, with its 95 % interval under a bootstrap of the units, and the number "
        "of pairs that define both. Two ways that measure the same rank pairs alike; an interval that spans zero does "
        "not show that they do.",
        "",
        f"| compared | {' | '.join(heads)} |",
        "|---" * (len(results) + 1) + "|",
    ]
    tables = [compare_methods(one).to_dict("records") for one in frames]
    for rows in zip(*tables, strict=True):
        name = f"{WORDS[rows[0]['one']]} against {WORDS[rows[0]['other']]}"
        lines.append(f"| {name} | {' | '.join(_with_interval(row) for row in rows)} |")
    lines += [
        "",
        "Within a pair, over the probed features: differences and second derivatives (ReLUs as softplus: a ReLU has "
        "none but at its kink), and the joint image against photographs of both, beside other pairs' "
        "photographs; medians over pairs, with quartiles.",
        "",
        f"| within a pair | {' | '.join(heads)} |",
        "|---" * (len(results) + 1) + "|",
    ]
    within = {
        "direct_agreement": "mixed difference and second derivative at photographs: rank correlation over features",
        "second_derivative_agreement": "second difference and second derivative at images: the same",
        "joint_agreement": "joint image and photographs of both: rank correlation over features",
        "joint_agreement_others": "joint image and other pairs' photographs: the same",
    }
    for name, words in within.items():
        lines.append(f"| {words} | {' | '.join(_quartiles(one[name]) for one in frames)} |")
    kinds = [Counter(r["kinds"]) for r in results]
    for kind in sorted({kind for counts in kinds for kind in counts}):
        lines.append(f"| pairs that are {kind} | {' | '.join(str(counts[kind]) for counts in kinds)} |")
    lines.append("")
    for r in results:
        lines.append(
            f"- {r['source']}: {' with '.join(r['layers'])}, {len(r['groups'])} pairs of "
            f"{len({u for g in r['groups'] for u in g.split(' + ')})} features, {r['seeds']} seeds, "
            f"{r['size']} pixels, {r['steps']} steps, {r['photographs']:,} photographs"
        )
    return "\n".join([*lines, *(["", *state(heads, tables)] if results else [])])


QUESTIONS = {
    ("direct", "response_nonlinearity"): "the direct test at photographs and the joint descent rank pairs alike",
    ("direct_hessian", "direct"): "second derivatives and mixed differences at photographs rank pairs alike",
    ("second_derivative", "second_difference"): "second derivatives and second differences at images rank pairs alike",
    ("natural_nonlinearity", "response_nonlinearity"): "photographs of both and joint images rank pairs alike",
}
"""What has to hold before a statement about pairs rests on two methods."""


def state(heads: list[str], tables: list[list[dict[str, Any]]]) -> list[str]:
    """State, in words computed from the intervals, which ways of measuring agree on how many networks."""
    lines = []
    for both, words in QUESTIONS.items():
        rows = [next(row for row in table if (row["one"], row["other"]) == both) for table in tables]
        shown = [head for head, row in zip(heads, rows, strict=True) if row["low"] > 0]
        opposed = [head for head, row in zip(heads, rows, strict=True) if row["high"] < 0]
        text = f"- {words}: shown on {', '.join(shown) or 'none'}, of {len(heads)}"
        lines.append(text + (f"; the opposite on {', '.join(opposed)}" if opposed else ""))
    return lines


def main(
    runs: Annotated[list[Path] | None, typer.Argument(help="Runs of interact --layers with photographs.")] = None,
    store: Annotated[Path, typer.Option(help="The statistics, as JSON.")] = STORE,
    readme: Annotated[Path, typer.Option(help="The table is written between marks in this file.")] = records.README,
    check: Annotated[bool, typer.Option("--check", help="Write nothing; check that table and values agree.")] = False,
) -> None:
    """Compare the ways of measuring interaction over pairs."""
    records.update_section(SECTION, [collect(folder) for folder in runs or ()], format_page, (store, readme), check)


if __name__ == "__main__":
    run(main)
