"""Judge the predictors of `featmap interact --screen`, and a combination on networks that it has not seen.

    featmap interact --layers inception4a inception4b --screen --checks 140 --photographs FOLDER --out RUN
    python -m analyses.benchmarks.screening RUN ...
    python -m analyses.benchmarks.screening --check

Each run holds predictions of all its pairs, and exact measurements of random ones. Of each predictor the table gives
Spearman's rank correlation with the exact statistic: the response nonlinearity less its floor, mean over seeds. Weights
of a combination are learnt on the other networks together, by ridge regression on the predictors' ranks, and tested on
the one left out; beside it stands the single predictor that does best on these other networks, and the one that does
best on the network itself, which nobody knows beforehand. The ceiling is that of the exact statistic: no predictor can
correlate with it by more than the root of its reliability. Results of another run of the same network and layers are
replaced.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import typer
from scipy import stats

from analyses.benchmarks import records
from analyses.benchmarks.image_records import short_name
from analyses.support.commands import run
from featmap.errors import FeatmapError
from featmap.runs.store import Run
from featmap.stats.correlation import rank_correlation, seed_reliability
from featmap.stats.predictors import fit_combined
from featmap.stats.reliability import spearman_brown

STORE, SECTION = records.FOLDER / "screening.json", "screening"
AIM = 0.7
NONLINEARITY = ("response_nonlinearity", "response_nonlinearity_floor")
RIDGE = 100.0
"""Penalty of the weights, as a number of pairs."""
LEARNT, WITHIN = "combination learnt on the other networks", "combination learnt on other pairs of the network"
REPEATED = "the exact statistic of one seed, with the mean of the other seeds"
CHOSEN = "single predictor chosen on the other networks"


@dataclass(frozen=True)
class Screened:
    """What a screening predicted of its random pairs, and what was measured.

    Parameters
    ----------
    source, weights : str
        Network, and the SHA-256 of its weights.
    layers : list of str
        The two layers.
    size, steps, photographs : int
        Side of the images in pixels, steps of a descent, number of photographs; 0 for a screening without.
    features : list of int
        Numbers of features of the two layers that were screened.
    pairs : list of str
        Names of the random pairs.
    ranks : dict of list of float
        By predictor: rank of each pair among all predicted ones, -0.5 to 0.5; None where undefined.
    excess : list of list of float
        Response nonlinearity less its floor, a row for each pair, a column for each seed; None where undefined.
    """

    source: str
    weights: str
    layers: list[str]
    size: int
    steps: int
    photographs: int
    features: list[int]
    pairs: list[str]
    ranks: dict[str, list[float | None]]
    excess: list[list[float | None]]

    @property
    def exact(self) -> np.ndarray:
        """Excess of each pair: mean over its seeds, NaN where there is none."""
        values = np.array(self.excess, dtype=float)
        count = np.isfinite(values).sum(1)
        return np.where(count > 0, np.nansum(values, axis=1) / np.maximum(count, 1), np.nan)

    @property
    def reliability(self) -> tuple[float, float]:
        """Reliability of one seed's excess, and of the mean of all by Spearman and Brown."""
        values = np.array(self.excess, dtype=float)
        rows = [
            {"group": name, "seed": s, "response_nonlinearity": v, "response_nonlinearity_floor": 0.0}
            for name, row in zip(self.pairs, values, strict=True)
            for s, v in enumerate(row)
        ]
        one = seed_reliability(pd.DataFrame(rows))
        return one, spearman_brown(one, values.shape[1])

    def table(self, names: Sequence[str]) -> np.ndarray:
        """Return the ranks by the named predictors, pairs x predictors; 0, the middle, where undefined."""
        nothing = [None] * len(self.pairs)
        return np.nan_to_num(np.array([self.ranks.get(n, nothing) for n in names], dtype=float).T)


def collect(folder: Path) -> Screened:
    """Collect predictions and measurements of a run.

    Parameters
    ----------
    folder : Path
        Folder of a finished run of `featmap interact --screen`.

    Returns
    -------
    Screened
        Of its random pairs.

    Raises
    ------
    FeatmapError
        For a folder that is no such run.
    """
    identity = Run.read(folder).identity
    if identity.get("command") != "interact --screen" or not (folder / "predicted.parquet").is_file():
        raise FeatmapError(f"{folder} is no finished run of featmap interact --screen; give such a run")
    predicted = pd.read_parquet(folder / "predicted.parquet").drop(columns="combined")
    pairs = pd.read_parquet(folder / "check" / "pairs.parquet", columns=["a", "b"])
    figures = pd.read_parquet(folder / "check" / "figures.parquet")
    wide = {
        name: figures[figures["figure"] == name].pivot(index=["a", "b"], columns="seed", values="value")
        for name in NONLINEARITY
    }
    excess = wide[NONLINEARITY[0]] - wide[NONLINEARITY[1]]
    names = [c for c in predicted.columns if c not in ("a", "b")]
    values = predicted[names].to_numpy(dtype=float, na_value=np.nan)
    ranks = pd.DataFrame(_rank(values), columns=names).assign(a=predicted["a"], b=predicted["b"])
    own = pairs.merge(ranks, on=["a", "b"], how="left")
    octave = identity["recipe"]["octaves"][-1]
    return Screened(
        short_name(identity["model"]["name"]),
        identity["model"]["sha256"],
        [str(own[side].iloc[0]).rpartition(":")[0] for side in "ab"],
        octave["size"],
        sum(o["steps"] for o in identity["recipe"]["octaves"]),
        (identity.get("photographs") or {}).get("count", 0),
        list(identity["sides"]),
        (pairs["a"] + " + " + pairs["b"]).tolist(),
        {name: [_plain(v, 4) for v in own[name]] for name in names},
        [[_plain(v, 6) for v in row] for row in excess.reindex(pd.MultiIndex.from_frame(pairs)).to_numpy(dtype=float)],
    )


def _rank(values: np.ndarray) -> np.ndarray:
    """Rank each column from -0.5 to 0.5; NaN stays NaN."""
    ranked: np.ndarray = stats.rankdata(values, axis=0, nan_policy="omit") / np.maximum(np.isfinite(values).sum(0), 1)
    return ranked - 0.5


def _plain(value: float, digits: int) -> float | None:
    """Round a number; None where it is not finite."""
    return round(float(value), digits) if np.isfinite(value) else None


def learn(results: Sequence[Screened], names: Sequence[str], ridge: float = RIDGE) -> np.ndarray:
    """Learn the weights of a combination on some networks.

    Parameters
    ----------
    results : sequence of Screened
        The networks, each of which counts by its pairs.
    names : sequence of str
        Predictors.
    ridge : float, default 100
        Penalty, as a number of pairs.

    Returns
    -------
    numpy.ndarray
        A weight for each predictor: ridge regression of the exact statistic's ranks on the predictors' ranks, both
        centred within each network, so that no network's level counts.
    """
    tables, targets = [], []
    for one in results:
        measured = np.isfinite(one.exact)
        X, y = one.table(names)[measured], stats.rankdata(one.exact[measured]) / max(measured.sum(), 1)
        tables.append(X - X.mean(0))
        targets.append(y - y.mean())
    X, y = np.concatenate(tables), np.concatenate(targets)
    # ranks over their number have variance 1 / 12
    weights: np.ndarray = np.linalg.solve(X.T @ X + ridge / 12 * np.eye(X.shape[1]), X.T @ y)
    return weights


@dataclass(frozen=True)
class Judged:
    """How well a network's pairs are predicted, as rank correlations with the exact statistic.

    Parameters
    ----------
    learnt, error : float
        Of the combination learnt on the other networks, with its standard error.
    within : float
        Of a combination learnt on other pairs of the network, by cross-validation.
    chosen, chosen_value : str, float
        The single predictor that does best on the other networks, and how it does here.
    best, best_value : str, float
        The single predictor that does best here.
    """

    learnt: float
    error: float
    within: float
    chosen: str
    chosen_value: float
    best: str
    best_value: float


def correlation(one: Screened, name: str) -> float:
    """Correlate a predictor with the exact statistic of a network's random pairs; NaN where it is undefined."""
    ranks = np.array(one.ranks.get(name, [None] * len(one.pairs)), dtype=float)
    return rank_correlation(ranks, one.exact)[0]


def repeated(one: Screened) -> float:
    """Correlate the statistic of one seed with the mean of the others: mean over the seeds, by ranks.

    That is what a pair's full measurement with another seed says of it.
    """
    values = np.array(one.excess, dtype=float)
    if values.shape[1] < 2:
        return float("nan")
    others = [np.delete(values, s, axis=1).mean(axis=1) for s in range(values.shape[1])]
    return float(np.mean([rank_correlation(values[:, s], mean)[0] for s, mean in enumerate(others)]))


def predictors_of(results: Sequence[Screened]) -> list[str]:
    """List the predictors of all networks, in the order of the first that has them."""
    return list(dict.fromkeys(name for one in results for name in one.ranks))


def judge(results: Sequence[Screened], position: int) -> Judged:
    """Judge the predictors on one network, and what the others say of them.

    Parameters
    ----------
    results : sequence of Screened
        Two networks or more.
    position : int
        The one that is judged.

    Returns
    -------
    Judged
        Rank correlations.
    """
    one, others = results[position], [r for k, r in enumerate(results) if k != position]
    names = predictors_of(results)
    weights = learn(others, names)
    learnt, error, _ = rank_correlation(one.table(names) @ weights, one.exact)
    raw = np.array([one.ranks.get(n, [None] * len(one.pairs)) for n in names], dtype=float).T
    within = rank_correlation(fit_combined(raw, one.exact)[1], one.exact)[0]
    elsewhere = {n: np.nan_to_num(np.mean([correlation(o, n) for o in others])) for n in names}
    chosen = max(names, key=lambda n: abs(elsewhere[n]))
    here = {n: correlation(one, n) for n in names}
    best = max(names, key=lambda n: np.nan_to_num(abs(here[n])))
    # a predictor that falls elsewhere where the statistic rises is read the other way round here, too
    sign = 1.0 if elsewhere[chosen] >= 0 else -1.0
    return Judged(learnt, error, within, chosen, sign * here[chosen], best, abs(here[best]))


def _two(value: float) -> str:
    """Format a correlation; a dash where it is undefined."""
    return f"{value:+.2f}" if np.isfinite(value) else "-"


def format_page(results: list[Screened]) -> str:
    """Write the section of the README.

    Parameters
    ----------
    results : list of Screened
        Of all networks.

    Returns
    -------
    str
        Markdown.
    """
    names, heads = predictors_of(results), [one.source for one in results]
    mean = {n: float(np.nan_to_num(np.mean([correlation(one, n) for one in results]))) for n in names}
    lines = [
        "## Predictors of a screening",
        "",
        "Spearman's rank correlation, over random pairs, with the response nonlinearity less its floor, mean over "
        f"seeds. The aim is {AIM:g}. Random pairs of a run share features, so they say less than as many pairs drawn "
        "one by one. Predictors in the order of the mean of their correlations. How long all pairs of two layers of "
        '512 features take stands under "Whole commands".',
        "",
        f"| predictor | {' | '.join(heads)} |",
        "|---" * (len(heads) + 1) + "|",
    ]
    for name in sorted(names, key=lambda n: -abs(mean[n])):
        lines.append(f"| {name} | {' | '.join(_two(correlation(one, name)) for one in results)} |")
    if len(results) > 1:
        judged = [judge(results, k) for k in range(len(results))]
        lines.append(f"| **{LEARNT}** | {' | '.join(f'**{_two(j.learnt)}**' for j in judged)} |")
        lines.append(f"| {WITHIN} | {' | '.join(_two(j.within) for j in judged)} |")
        lines.append(
            f"| single predictor chosen on the other networks | {' | '.join(_two(j.chosen_value) for j in judged)} |"
        )
    reliabilities = [one.reliability for one in results]
    lines.append(f"| *{REPEATED}* | {' | '.join(_two(repeated(one)) for one in results)} |")
    lines.append(f"| *reliability of one seed* | {' | '.join(_two(one) for one, _ in reliabilities)} |")
    lines.append(f"| *reliability of the mean over seeds* | {' | '.join(_two(mean) for _, mean in reliabilities)} |")
    lines.append(
        f"| *ceiling: its root* | {' | '.join(_two(float(np.sqrt(max(mean, 0)))) for _, mean in reliabilities)} |"
    )
    lines.append("")
    for one in results:
        shown = f"{one.photographs:,} photographs" if one.photographs else "no photographs"
        lines.append(
            f"- {one.source}: {' with '.join(one.layers)}, {one.features[0]} x {one.features[1]} features, "
            f"{np.isfinite(one.exact).sum()} of {len(one.pairs)} random pairs measured, "
            f"{len(one.excess[0])} {'seed' if len(one.excess[0]) == 1 else 'seeds'}, "
            f"{one.size} pixels, {one.steps} steps, {shown}"
        )
    return "\n".join([*lines, *(["", *state(results)] if len(results) > 1 else [])])


def state(results: list[Screened]) -> list[str]:
    """State, in words computed from the numbers, what the combination is worth and whether the aim is reached."""
    lines, ahead, of_chosen = [], 0, 0
    for k, one in enumerate(results):
        j = judge(results, k)
        reliability = one.reliability[1]
        ceiling = f"{max(reliability, 0) ** 0.5:.2f}" if np.isfinite(reliability) else "unknown, with one seed"
        ahead += j.learnt > j.best_value
        of_chosen += j.learnt > np.nan_to_num(j.chosen_value)
        lines.append(
            f"- {one.source}: the combination that has not seen it reaches {j.learnt:.2f} (standard error "
            f"{j.error:.2f}), {j.chosen} (chosen on the other networks) {j.chosen_value:.2f}, the best single "
            f"predictor here, {j.best}, {j.best_value:.2f}; the ceiling is {ceiling}; the aim of {AIM:g} is "
            f"{'reached' if j.learnt >= AIM else 'not reached'}"
        )
    total = len(results)
    choice = "could choose by it" if ahead == total else "goes on choosing by each run's own random pairs"
    lines.append(
        f"- the combination beats the best single predictor of the network itself on {ahead} of {total} networks, the "
        f"one chosen on the other networks on {of_chosen}: `--screen` {choice}"
    )
    return lines


def read(store: Path) -> list[Screened]:
    """Read the stored results; none without the file."""
    return [Screened(**r) for r in records.read_results(store)]


def _format_stored(results: list[dict[str, Any]]) -> str:
    """Write the section from stored results."""
    return format_page([Screened(**r) for r in results])


def main(
    runs: Annotated[list[Path] | None, typer.Argument(help="Runs of featmap interact --screen.")] = None,
    store: Annotated[Path, typer.Option(help="Predictions and measurements, as JSON.")] = STORE,
    readme: Annotated[Path, typer.Option(help="The table is written between marks in this file.")] = records.README,
    check: Annotated[bool, typer.Option("--check", help="Write nothing; check that table and values agree.")] = False,
) -> None:
    """Judge the predictors of a screening, and a combination on networks that it has not seen."""
    records.update_section(
        SECTION, [asdict(collect(folder)) for folder in runs or ()], _format_stored, (store, readme), check
    )


if __name__ == "__main__":
    run(main)
