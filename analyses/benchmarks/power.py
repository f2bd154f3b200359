"""Measure how much interaction differs between seeds, and which nonlinearity a number of seeds finds.

    python -m analyses.benchmarks.power
    python -m analyses.benchmarks.power --model mypackage.nets:mine --layers layer2.1,layer3.0
    python -m analyses.benchmarks.power --restate
    python -m analyses.benchmarks.power --check

Random pairs of two layers' features are measured with several seeds, as `featmap interact --layers` does. From the
excess of the response nonlinearity over its floor, one value for each pair and seed, follow

- the *spread*: standard deviation over seeds, pooled over pairs;
- the smallest excess that is found with 80 % power, for one group of units (p below 0.05) and for many pairs (false
  discovery rate below 5 %, a tenth of the pairs have it), twice: *normal*, spread times
  `featmap.interaction.power.smallest_effect`; and *planted*, where runs are put together from the measured pairs: each
  pair has the spread of one of them and deviations drawn from all, so that pairs differ in spread and seeds are not
  normal; a tenth gets the excess added; and the summary's own test decides
  (`p_above_zero`, `q_values`). Beside it the share of false ones among what is found. The numbers of pairs are those of
  the forms of the command, a screening's random and top pairs among them. With `--seeds auto` each pair has the seeds
  at which its own deviations end; *normal* is then stated for their median;
- how `--seeds auto` ends on the same deviations without any excess: false positives, seeds, and intervals that miss 0;
- *repeatability*: correlation, over pairs, of the nonlinearity from one seed with that from another, and of means of
  three seeds; with and without the floor, with a floor averaged over seeds, and of logarithms.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from analyses.benchmarks import records
from analyses.benchmarks.image_records import short_name
from analyses.benchmarks.image_ways import split_names
from analyses.benchmarks.speed import draw_features
from analyses.support.commands import run
from featmap import rng
from featmap.cli import console
from featmap.cli.app import expand_options
from featmap.cli.options import NetworkOptions
from featmap.errors import FeatmapError
from featmap.interaction import groups
from featmap.interaction import run as joint
from featmap.interaction.power import LEVEL, PLANTED_SHARE, POWER, smallest_effect
from featmap.interaction.precision import AUTO, LEAST_SEEDS, AutoSeeds
from featmap.network.model import Network
from featmap.network.unit import Unit
from featmap.optimize.recipe import Recipe
from featmap.runs import lifecycle
from featmap.runs.engine import Execution
from featmap.stats.correlation import pearson, t_interval
from featmap.stats.interaction import ROUNDING, p_above_zero, q_values

STORE, SECTION = records.FOLDER / "power.json", "power"
SCREENINGS = {"`--screen`, its top pairs": 50, "`--screen`, its random pairs": 200}
"""Runs of a screening, whose number of seeds is given, and their numbers of pairs."""
FORMS = {"one group": 1, "16 features of one layer": 120, "16 x 16 features of two layers": 256} | SCREENINGS
"""Forms of the command, and their numbers of pairs."""
SEEDS = (3, 5, 10, 20)
PLANTED = 300
"""Planted pairs of each form and number of seeds, over repetitions of the run."""
AIMS = {"reference": 0.7}
"""Repeatability of single seeds that is aimed at, by network."""
AIM = 0.8
"""The same for other networks."""


@dataclass(frozen=True)
class Measured:
    """What was measured of one network.

    Parameters
    ----------
    source : str
        Network.
    layers : list of str
        The two layers.
    size : int
        Side of the images in pixels.
    pairs : list of str
        Names of the pairs.
    nonlinearity, floor : list of list of float
        Response nonlinearity and its floor, a row for each pair, a column for each seed; None where undefined.
    normal, planted, false : dict
        Smallest excess by both simulations, and the share of false discoveries, by form and number of seeds or "auto".
    auto_seeds : dict of float
        Median number of automatic seeds, by form.
    auto : dict of float
        What `--seeds auto` does without any excess.
    """

    source: str
    layers: list[str]
    size: int
    pairs: list[str]
    nonlinearity: list[list[float | None]]
    floor: list[list[float | None]]
    normal: dict[str, dict[str, float | None]] = field(default_factory=dict)
    planted: dict[str, dict[str, float | None]] = field(default_factory=dict)
    false: dict[str, dict[str, float | None]] = field(default_factory=dict)
    auto_seeds: dict[str, float] = field(default_factory=dict)
    auto: dict[str, float | None] = field(default_factory=dict)

    def values(self) -> tuple[np.ndarray, np.ndarray]:
        """Return nonlinearity and floor of the pairs that every seed defines, pairs x seeds."""
        raw, floor = np.array(self.nonlinearity, dtype=float), np.array(self.floor, dtype=float)
        defined = np.isfinite(raw - floor).all(1)
        return raw[defined], floor[defined]


def draw_pairs(network: Network, layers: Sequence[str], features: int, count: int) -> list[tuple[Unit, Unit]]:
    """Draw features of two layers, and pairs of them, at random."""
    first, second = ([Unit(la, c) for c in draw_features(network, la, features, 0)] for la in layers)
    every = [(a, b) for a in first for b in second]
    if not 3 <= count <= len(every):
        raise FeatmapError(f"pairs {count}: {features} features of each layer make {len(every)}; give 3 or more")
    chosen = rng.generator("power pairs", network.name, *layers).choice(len(every), count, replace=False)
    return [every[k] for k in sorted(chosen)]


def measure(
    network: Network, pairs: Sequence[tuple[Unit, Unit]], recipe: Recipe, seeds: int, place: Execution
) -> Measured:
    """Measure pairs with several seeds."""
    job = groups.pairs_job(tuple(pairs), network, recipe, groups.JointSettings(seeds=seeds))
    table = joint.carry_out(job, lifecycle.open_run(job, place.out), place).statistics

    def rows(name: str) -> list[list[float | None]]:
        grid = table.pivot(index="group", columns="seed", values=name).loc[job.labels].to_numpy(dtype=float)
        return [[round(float(v), 6) if np.isfinite(v) else None for v in row] for row in grid]

    layers = [u.layer for u in job.groups[0]]
    found = rows("response_nonlinearity"), rows("response_nonlinearity_floor")
    return Measured(short_name(network.name), layers, int(recipe.size), job.labels, *found)


def deviations(measured: Measured) -> np.ndarray:
    """Compute each pair's deviations of the excess over seeds from its mean, pairs x seeds.

    They are scaled so that their mean square is the unbiased variance.
    """
    raw, floor = measured.values()
    excess = raw - floor
    return (excess - excess.mean(1, keepdims=True)) * np.sqrt(excess.shape[1] / (excess.shape[1] - 1))


def draw(residuals: np.ndarray, shape: tuple[int, int], seeds: int, generator: np.random.Generator) -> np.ndarray:
    """Draw deviations for pairs without an excess.

    Each of `shape` has the spread of one measured pair; its seeds are deviations of all pairs, each in units of its own
    pair's spread. (Six seeds of one pair, drawn again with replacement, are often all alike.) The result has the shape
    ``(*shape, seeds)``; of each pair mean 0, and the variance of the measured one.
    """
    spreads = np.sqrt((residuals**2).mean(1))
    pool = (residuals / spreads[:, None]).ravel()
    return generator.choice(spreads, (*shape, 1)) * generator.choice(pool, (*shape, seeds))


def end_seeds(rule: AutoSeeds, excess: np.ndarray) -> np.ndarray:
    """Count the seeds at which automatic seeds end, each group by itself, groups x `rule.most`."""
    counts: tuple[int, ...] = (LEAST_SEEDS,) * len(excess)
    made = np.arange(rule.most)
    while (grown := rule.choose(counts, np.where(made < np.array(counts)[:, None], excess, np.nan), 1)) is not None:
        counts = grown
    return np.array(counts)


def plant(
    residuals: np.ndarray, pairs: int, seeds: int | AutoSeeds, planted: int = PLANTED
) -> tuple[float, float, float]:
    """Find the smallest excess that the summary's test finds with a power of `POWER` in runs of measured deviations.

    Parameters
    ----------
    residuals : numpy.ndarray
        Result of `deviations`.
    pairs : int
        Number of pairs of a run.
    seeds : int or AutoSeeds
        Number of seeds of each pair, or the rule by which they are added; it sees the deviations alone, since an excess
        changes no width.
    planted : int, default 300
        Planted pairs, over repetitions of the run.

    Returns
    -------
    tuple of float
        The excess, the mean share of pairs without one among those found, and the median number of seeds; inf and NaN
        for the first two where no excess up to 1 is found.
    """
    each = max(1, round(PLANTED_SHARE * pairs))
    runs, most = -(-planted // each), seeds.most if isinstance(seeds, AutoSeeds) else seeds
    key = ("auto",) if isinstance(seeds, AutoSeeds) else (seeds,)
    excess = draw(residuals, (runs, pairs), most, rng.generator("planted", pairs, *key))
    counts = np.full((runs, pairs), most)
    if isinstance(seeds, AutoSeeds):
        counts = end_seeds(seeds, excess.reshape(-1, most)).reshape(runs, pairs)
    rows = [[row[:n] for row, n in zip(one, ends, strict=True)] for one, ends in zip(excess, counts, strict=True)]
    p, median = np.array([[p_above_zero(row) for row in one] for one in rows]), float(np.median(counts))

    def found(size: float) -> np.ndarray:
        p[:, :each] = [[p_above_zero(row + size) for row in one[:each]] for one in rows]
        return np.array([q_values(row) for row in p]) < LEVEL

    low, high = 0.0, 1.0
    if found(high)[:, :each].mean() < POWER:
        return float("inf"), float("nan"), median
    while high - low > 0.004:
        middle = (low + high) / 2
        low, high = (low, middle) if found(middle)[:, :each].mean() >= POWER else (middle, high)
    hits = found(high)
    false = hits[:, each:].sum(1) / np.maximum(hits.sum(1), 1)
    return high, float(false.mean()) if pairs > 1 else float("nan"), median


def end_automatically(residuals: np.ndarray, groups_: int = 4000) -> dict[str, float]:
    """Let `--seeds auto`, with its defaults, end on deviations without an excess.

    Returns
    -------
    dict of float
        "positive", the share of groups with p below 0.05; "missed", of those whose interval misses 0; "seeds", their
        mean; "limit", the share that ends at the largest number of seeds.
    """
    rule = AutoSeeds()
    excess = draw(residuals, (groups_, 1), rule.most, rng.generator("auto"))[:, 0]
    counts = end_seeds(rule, excess)
    rows = [row[:n] for row, n in zip(excess, counts, strict=True)]
    intervals = [t_interval(list(row)) for row in rows]
    return {
        "positive": float(np.mean([p_above_zero(row) < LEVEL for row in rows])),
        "missed": float(np.mean([i is not None and not i[0] <= 0 <= i[1] for i in intervals])),
        "seeds": float(np.mean(counts)),
        "limit": float(np.mean(counts == rule.most)),
    }


def analyse(measured: Measured, planted: int = PLANTED) -> Measured:
    """Add everything that is simulated from what was measured."""
    residuals, normal, found, false = deviations(measured), {}, {}, {}
    spread, auto_seeds = float(np.sqrt((residuals**2).mean())), {}
    for name, pairs in FORMS.items():
        rules: dict[str, int | AutoSeeds] = {str(n): n for n in SEEDS}
        rules |= {} if name in SCREENINGS else {AUTO: AutoSeeds()}
        results = {key: plant(residuals, pairs, rule, planted) for key, rule in rules.items()}
        normal[name] = {n: _round(spread * smallest_effect(pairs, int(median))) for n, (*_, median) in results.items()}
        found[name] = {n: _round(excess) for n, (excess, *_) in results.items()}
        false[name] = {n: _round(share) for n, (_, share, _) in results.items()}
        auto_seeds |= {name: results[AUTO][2]} if AUTO in results else {}
    auto = {name: _round(value) for name, value in end_automatically(residuals).items()}
    return replace(measured, normal=normal, planted=found, false=false, auto_seeds=auto_seeds, auto=auto)


def _round(value: float) -> float | None:
    """Round to four digits; None for what is not finite."""
    return float(f"{value:.4g}") if np.isfinite(value) else None


def repeatability(values: np.ndarray, seeds: int = 1) -> float:
    """Correlate, over pairs, means of some seeds with means of as many others; mean over all choices.

    Parameters
    ----------
    values : numpy.ndarray
        One value for each pair and seed.
    seeds : int, default 1
        Number of seeds of a mean.

    Returns
    -------
    float
        In [-1, 1].
    """
    columns = range(values.shape[1])
    halves = [(list(a), list(b)) for a in combinations(columns, seeds) for b in combinations(columns, seeds) if a < b]
    apart = [(values[:, a].mean(1), values[:, b].mean(1)) for a, b in halves if not set(a) & set(b)]
    return float(np.mean([pearson(a, b) for a, b in apart]))


def cyclic_correlation(residuals: np.ndarray) -> float:
    """Correlate deviations of neighbouring seeds, whose floors share an image; chance makes it -1 / (seeds - 1)."""
    return float((residuals * np.roll(residuals, -1, axis=1)).sum() / (residuals**2).sum())


def read(store: Path) -> list[Measured]:
    """Read the results of a file; none where there is no file."""
    return [Measured(**r) for r in json.loads(store.read_text())["results"]] if store.exists() else []


def _size(value: float | None) -> str:
    """Format an excess; one that no excess up to 1 reaches is a dash."""
    return "-" if value is None or value >= 1 else f"{value:.2f}"


def format_page(results: list[Measured]) -> str:
    """Format the results as tables, for the README.

    Parameters
    ----------
    results : list of Measured
        Results of all networks.

    Returns
    -------
    str
        Markdown.
    """
    lines = ["## Power of interaction", ""]
    lines += [
        "Smallest excess of the response nonlinearity over its floor that is found with 80 % power: of one group at "
        "p < 0.05, of many pairs at a false discovery rate of 5 %, a tenth of them with the excess. In each cell: from "
        "normal deviations of the pooled spread / planted into the measured deviations, tested as a run is; -: none up "
        "to 1. With `--seeds auto`, which a screening does not take, each pair has the seeds at which its own "
        "deviations end; in brackets their median, for which the first number is.",
        "",
        f"| network | command | {' | '.join(f'{n} seeds' for n in SEEDS)} | auto | false among those found |",
        "|---" * (len(SEEDS) + 4) + "|",
    ]
    for m in results:
        for form, pairs in FORMS.items():
            cells = [f"{_size(m.normal[form][str(n)])} / {_size(m.planted[form][str(n)])}" for n in SEEDS]
            ended = m.auto_seeds.get(form)
            sizes = f"{_size(m.normal[form].get(AUTO))} / {_size(m.planted[form].get(AUTO))}"
            cells.append("" if ended is None else f"{sizes} ({ended:g})")
            shares = [100 * v for v in m.false[form].values() if v is not None]
            false = f"{np.mean(shares):.0f} %" if shares else ""
            name = form if pairs == 1 else f"{form}: {pairs} pairs"
            lines.append(f"| {m.source} | {name} | {' | '.join(cells)} | {false} |")
    lines += ["", "Correlation over pairs of the response nonlinearity from one seed with that from another:", ""]
    lines += [
        "| network | raw | less its floor | less the floor's mean over seeds | logarithm of raw | means of three seeds:"
        " raw | less its floor | aim for one seed |",
        "|---" * 8 + "|",
    ]
    for m in results:
        raw, floor = m.values()
        kinds = (raw, raw - floor, raw - floor.mean(1, keepdims=True), np.log(np.maximum(raw, ROUNDING)))
        each = [f"{repeatability(v):.2f}" for v in kinds] + [f"{repeatability(v, 3):.2f}" for v in kinds[:2]]
        aim = AIMS.get(m.source, AIM)
        each.append(f"{aim:g}: {'reached' if repeatability(raw) >= aim else 'not reached'}")
        lines.append(f"| {m.source} | {' | '.join(each)} |")
    lines.append("")
    for m in results:
        raw, floor = m.values()
        residuals = deviations(m)
        each_spread = np.sort(np.sqrt((residuals**2).mean(1)))
        lines.append(
            f"- {m.source}, {' with '.join(m.layers)}, {m.size} pixels: {len(raw)} of {len(m.pairs)} pairs have "
            f"statistics of all {raw.shape[1]} seeds; mean response nonlinearity {raw.mean():.3f}, floor "
            f"{floor.mean():.3f}; spread of the excess over seeds {np.sqrt((residuals**2).mean()):.3f}, of single "
            f"pairs {each_spread[0]:.3f} to {each_spread[-1]:.3f}; correlation of neighbouring seeds, whose floors "
            f"share an image, {cyclic_correlation(residuals):+.2f} ({-1 / (raw.shape[1] - 1):+.2f} by chance)"
        )
    lines.append("")
    for m in results:
        a = m.auto
        lines.append(
            f"- `--seeds auto` on these deviations without an excess ({m.source}; width {AutoSeeds.width:g}, at most "
            f"{AutoSeeds.most} seeds): p < 0.05 in {100 * a['positive']:.1f} %, the interval misses 0 in "
            f"{100 * a['missed']:.1f} %, {a['seeds']:.1f} seeds on average, {100 * a['limit']:.0f} % end at the limit"
        )
    return "\n".join([*lines, "", *state_losers(results)])


def state_losers(results: list[Measured]) -> list[str]:
    """State, in words computed from the numbers, what does not hold or does not help."""
    lines = []
    for m in results:
        raw, floor = m.values()
        one, less = repeatability(raw), repeatability(raw - floor)
        helps = "raises" if less > one + 0.01 else "lowers" if less < one - 0.01 else "does not change"
        three, five = (m.planted["16 x 16 features of two layers"][n] for n in ("3", "5"))
        lines.append(
            f"- {m.source}: subtracting each seed's own floor {helps} the correlation between seeds ({one:.2f} to "
            f"{less:.2f}); of 256 pairs three seeds find "
            f"{'nothing' if three is None else f'an excess of {_size(three)}'}, five "
            f"{'nothing' if five is None else _size(five)}"
        )
    return lines


def main(
    network: NetworkOptions,
    layers: Annotated[str, typer.Option(help="Two layers, joined by a comma.")] = "inception4a,inception4b",
    features: Annotated[int, typer.Option(help="Features drawn of each layer.")] = 5,
    pairs: Annotated[int, typer.Option(help="Pairs drawn of these features.")] = 24,
    seeds: Annotated[int, typer.Option(help="Seeds of every pair.")] = 6,
    size: Annotated[int, typer.Option(help="Side of the images in pixels.")] = 96,
    out: Annotated[Path, typer.Option(help="Folder of the runs.")] = Path("runs/power"),
    store: Annotated[Path, typer.Option(help="The values, as JSON.")] = STORE,
    readme: Annotated[Path, typer.Option(help="The table is written between marks in this file.")] = records.README,
    check: Annotated[bool, typer.Option("--check", help="Write nothing; check that table and values agree.")] = False,
    restate: Annotated[
        bool, typer.Option("--restate", help="Measure nothing: simulate again from the stored deviations.")
    ] = False,
) -> None:
    """Measure the spread of interaction over seeds, and which nonlinearity a number of seeds finds."""
    if check:
        if format_page(read(store)) not in readme.read_text():
            raise FeatmapError(f"{readme.name} and {store.name} disagree; make the table again")
        return
    if restate:
        _write([analyse(m) for m in read(store)], store, readme)
        return
    names = split_names(layers)
    if len(names) != 2:
        raise FeatmapError(f"layers {layers}: give two, joined by a comma")
    if seeds < 6:
        raise FeatmapError(
            f"seeds {seeds}: means of three seeds are compared with means of three others; give 6 or more"
        )
    loaded = network.load()
    recipe = Recipe.named("interact", size=size).resolved(loaded.input_size)
    drawn = draw_pairs(loaded, names, features, pairs)
    with console.ProgressBars() as watcher:
        place = Execution("cpu", out=out / short_name(loaded.name), watcher=watcher)
        found = analyse(measure(loaded, drawn, recipe, seeds, place))
    _write([*(m for m in read(store) if m.source != found.source), found], store, readme)


def _write(results: list[Measured], store: Path, readme: Path) -> None:
    """Store the results, and write and print their table."""
    records.write_json(store, {"results": [asdict(m) for m in results]})
    records.write_table(SECTION, format_page(results), readme)
    console.out().print(format_page(results), soft_wrap=True)


if __name__ == "__main__":
    run(expand_options(main))
