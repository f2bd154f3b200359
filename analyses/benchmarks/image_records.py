"""Records of the benchmark of images: what each way of making images reached, their file, and their table.

A record is of one network, way and seed. It keeps the values of every image, so that those of several seeds are put
together as in `featmap judge`: a class, or a feature, is one observation however many images it has.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd

from analyses.benchmarks import records
from featmap.files import write_atomically
from featmap.stats import transfer
from featmap.stats.correlation import t_interval
from featmap.stats.frames import finite_column
from featmap.validation.judgement import Judgement

STORE, SECTION = records.FOLDER / "images.json", "images"
"""File of the records, and name of the table in the README."""
RECIPE, TOOL, PHOTOGRAPHS = "recipe", "tool", "photographs"
"""Kinds of ways of making images."""
MEASURES = (
    "contrast_ratio",
    "slope_difference",
    "colour_distance",
    "coverage",
    "coverage_of_best_photograph",
    "multiple_of_best_photograph",
)
TRANSFER = ("rank", "percentile", "baseline", "among_images")
AGREEMENT = {"linear_agreement": "agreement", "agreement": "agreement_of_S"}
"""Name of a record's agreement by that of the judgement. Records from before S took roots have `agreement_of_roots`
in place of `agreement_of_S`: roots of the responses to images, but not to photographs."""
ROOTS = ("agreement_of_S", "agreement_of_roots")
DEAD_ZONE = 0.9
"""Share of the best photograph's coverage below which an image is said to have dead zones."""
BOTH = "+"
"""Marks agreements with roots of both."""
DIGITS = 5
Values = list[float | None]


@dataclass
class Record:
    """Values of the images that one way of making them gave for one network, from one seed.

    Parameters
    ----------
    source : str
        Name of the network that the images were made for, without its module.
    weights : str
        SHA-256 of its weights.
    way, kind : str
        Name and kind of the way.
    words : str
        Its settings in words.
    seed, draw : int
        Seed of the images, and number of the draw of classes and features.
    settings : str
        Digest of everything that the values depend on: images with the same one are not made again.
    size : str
        Size of the images in pixels, as they were measured.
    classes : str
        Layer of the class logits; "" where none were made.
    units : list of str
        What each image was made for.
    seconds : float or None
        Processor seconds per image; None where making them was interrupted.
    measures : dict of list
        Values of each image by name; None where undefined.
    transfer : dict of dict of list
        The same by judge and name.
    agreement : dict of dict
        Agreement of S with photographs by layer and name.
    photographs : dict
        Contrast and slope of the photographs of this size.
    """

    source: str
    weights: str
    way: str
    kind: str
    words: str
    seed: int
    draw: int
    settings: str
    size: str
    classes: str
    units: list[str]
    seconds: float | None = None
    measures: dict[str, Values] = field(default_factory=dict)
    transfer: dict[str, dict[str, Values]] = field(default_factory=dict)
    agreement: dict[str, dict[str, float | None]] = field(default_factory=dict)
    photographs: dict[str, float | None] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, str, int, int]:
        """Network, way, seed and draw: a file has one record of each."""
        return self.source, self.way, self.seed, self.draw

    def fill(self, judgement: Judgement) -> None:
        """Take the values of a judgement of its images.

        Parameters
        ----------
        judgement : Judgement
            The judgement.
        """
        table, judged = judgement.images, judgement.transfer
        live = table["live"].to_numpy(dtype=bool)
        for name in MEASURES:
            if name in table:
                values = finite_column(table[name].to_numpy())
                self.measures[name] = _plain(np.where(live, values, np.nan) if name in MEASURES[3:] else values)
        judges = [str(name) for name in judged["judge"].unique()]
        shorter = [short_name(name) for name in judges]
        for judge, rows in judged.groupby("judge", sort=False):
            short = short_name(str(judge))
            found = {name: rows[name].reindex(self.units) for name in TRANSFER if name in rows}
            values = {name: _plain(finite_column(v.to_numpy())) for name, v in found.items() if v.notna().any()}
            self.transfer[short if shorter.count(short) == 1 else str(judge)] = values
        for s in judgement.results:
            if s.name in AGREEMENT:
                self.agreement.setdefault(s.layer, {})[AGREEMENT[s.name]] = _round(s.value)
            elif s.network == PHOTOGRAPHS and s.name in ("contrast", "slope"):
                self.photographs[s.name] = _round(s.value)


def _round(value: float | None) -> float | None:
    """Round to a few digits; None for what is not finite."""
    return None if value is None or not np.isfinite(value) else float(f"{value:.{DIGITS}g}")


def _plain(values: Iterable[float]) -> Values:
    """Make a list for JSON."""
    return [_round(float(v)) for v in values]


def short_name(name: str) -> str:
    """Shorten a network's name to what comes after its module.

    Parameters
    ----------
    name : str
        Such as `mypackage.nets:mine`.

    Returns
    -------
    str
        Such as `mine`.
    """
    return name.rpartition(":")[2]


class RecordFile:
    """A file of records, written after each one.

    Parameters
    ----------
    path : Path
        The file; it need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> list[Record]:
        """Read all records.

        Returns
        -------
        list of Record
            In the order of the file; empty if there is none.
        """
        if not self.path.is_file():
            return []
        return [Record(**values) for values in json.loads(self.path.read_text(encoding="utf-8"))["records"]]

    def find(self, source: str, way: str, seed: int, settings: str) -> Record | None:
        """Find a record that was made with the same settings.

        Parameters
        ----------
        source, way : str
            Network and way.
        seed : int
            Seed.
        settings : str
            Digest of the settings.

        Returns
        -------
        Record or None
            None where there is none, or it is of other settings.
        """
        found = [r for r in self.read() if r.key[:3] == (source, way, seed) and r.settings == settings]
        return found[0] if found else None

    def add(self, record: Record) -> None:
        """Add a record in place of one of the same network, way, seed and draw.

        Parameters
        ----------
        record : Record
            The record.
        """
        kept = self.read()
        at = next((k for k, r in enumerate(kept) if r.key == record.key), len(kept))
        kept[at : at + 1] = [record]
        text = json.dumps({"records": [asdict(r) for r in kept]}, indent=1, ensure_ascii=False)
        # lists of values on one line each: otherwise a record has a thousand lines
        text = re.sub(r"\[[^][{}]*\]", lambda m: re.sub(r"\s*\n\s*", " ", m.group()), text) + "\n"
        write_atomically(self.path, lambda p: p.write_text(text, encoding="utf-8"))


# ---------------------------------------------------------------- the table


def pool(group: Sequence[Record], part: str, name: str, judge: str = "") -> pd.Series:
    """Pool a value of all images of several seeds.

    Parameters
    ----------
    group : sequence of Record
        Records of one network and way.
    part : {"measures", "transfer"}
        Where the value is.
    name : str
        Its name.
    judge : str, default ""
        The judge, for a transfer.

    Returns
    -------
    pandas.Series
        Finite values, by what the images were made for.
    """
    series = []
    for record in group:
        values = getattr(record, part)
        found = (values.get(judge, {}) if judge else values).get(name)
        if found is not None:
            series.append(pd.Series(found, index=record.units, dtype=float))
    return pd.concat(series).dropna() if series else pd.Series(dtype=float)


def _with_interval(value: float, ends: tuple[float, float] | None) -> str:
    """Format a share with its interval."""
    return f"{value:.2f}" if ends is None else f"{value:.2f} [{max(ends[0], 0):.2f}, {min(ends[1], 1):.2f}]"


def rank_cells(ranks: pd.Series) -> list[str]:
    """Format top-1 and top-5 with Wilson's intervals, and the median rank.

    Parameters
    ----------
    ranks : pandas.Series
        Ranks of the true class, by class; several seeds of one class count as one observation.

    Returns
    -------
    list of str
        Three cells, empty without ranks.
    """
    if ranks.empty:
        return ["", "", ""]
    shares = [transfer.top_share(ranks.to_numpy(), n, ranks.index.nunique()) for n in (1, 5)]
    cells = [_with_interval(s.value, None if s.low is None or s.high is None else (s.low, s.high)) for s in shares]
    return [*cells, f"{ranks.median():g}"]


def mean_cell(values: pd.Series) -> str:
    """Format the mean over features with Student's interval.

    Parameters
    ----------
    values : pandas.Series
        Values by feature; those of several seeds are averaged first.

    Returns
    -------
    str
        "" without values.
    """
    means = values.groupby(level=0).mean()
    return "" if means.empty else _with_interval(float(means.mean()), t_interval(means.to_list()))


def _median_cell(values: pd.Series) -> str:
    """Format a median."""
    return "" if values.empty else f"{values.median():.2f}"


def _hidden(values: pd.Series, classes: str) -> pd.Series:
    """Keep the values of hidden features: a judge with other classes matches class logits to features too."""
    return values[[not str(unit).startswith(f"{classes}:") for unit in values.index]]


def _row(group: Sequence[Record], judges: Sequence[tuple[str, bool]]) -> list[str]:
    """Write a way's cells."""
    first, seconds = group[0], [r.seconds for r in group if r.seconds is not None]
    count = " + ".join(str(n) for n in count_units(first) if n)
    cells = [first.way, f"{count}, {first.size} px" + (f", {len(group)} seeds" if len(group) > 1 else "")]
    cells.append(f"{np.mean(seconds):.3g}" if seconds else "")
    for judge, ranked in judges:
        if ranked:
            cells += rank_cells(pool(group, "transfer", "rank", judge))
        own, others, among = (_hidden(pool(group, "transfer", n, judge), first.classes) for n in TRANSFER[1:])
        cells.append(f"{mean_cell(own)} ({others.mean():.2f})" if len(own) and len(others) else mean_cell(own))
        cells.append(mean_cell(among))
    cells.append(_coverage_cell(group))
    for name in ("contrast_ratio", "slope_difference", "colour_distance"):
        cells.append(_median_cell(pool(group, "measures", name)))
    cells.append(_median_cell(_hidden(pool(group, "measures", "multiple_of_best_photograph"), first.classes)))
    return [*cells, _agreement_cell(group)]


def compare_coverage(group: Sequence[Record]) -> pd.DataFrame:
    """Compare the coverage of images with that of each feature's best photograph.

    Parameters
    ----------
    group : sequence of Record
        Records of one network and way.

    Returns
    -------
    pandas.DataFrame
        A row for each feature, with the mean over seeds of its images' `coverage`, its best photograph's (`of_best`)
        and `dead_zones`: whether the former is below `DEAD_ZONE` of the latter. Features of which one is unknown are
        left out.
    """
    names = {"coverage": "coverage", "of_best": "coverage_of_best_photograph"}
    columns = {k: pool(group, "measures", name).groupby(level=0, sort=False).mean() for k, name in names.items()}
    table = pd.DataFrame(columns).dropna()
    return table.assign(dead_zones=table["coverage"] < DEAD_ZONE * table["of_best"])


def _coverage_cell(group: Sequence[Record]) -> str:
    """Format the median coverage and, where it is known, how many images have no dead zones."""
    cell, table = _median_cell(pool(group, "measures", "coverage")), compare_coverage(group)
    if table.empty:
        return cell
    return f"{cell} ({int((~table['dead_zones']).sum())} of {len(table)})"


def _dead_zone_lines(by_way: dict[str, list[Record]]) -> list[str]:
    """Name the features whose images by recipes have dead zones."""
    lines = []
    for way, group in by_way.items():
        table = compare_coverage(group)
        dead = table[table["dead_zones"]]
        if group[0].kind == RECIPE and len(dead):
            named = [f"{unit} ({row.coverage:.2f} of {row.of_best:.2f})" for unit, row in dead.iterrows()]
            lines.append(f"- Dead zones by {way}: {', '.join(named)}")
    return ["", *lines] if lines else []


def count_units(record: Record) -> tuple[int, int]:
    """Count the class logits and the hidden features of a record."""
    classes = sum(u.rpartition(":")[0] == record.classes for u in record.units)
    return classes, len(record.units) - classes


def keep_comparable(rows: Sequence[Record]) -> list[Record]:
    """Leave out agreements of S among fewer features than others made.

    A correlation over the pairs of 4 features says nothing beside one over the pairs of 16.

    Parameters
    ----------
    rows : sequence of Record
        Records of one network and draw.

    Returns
    -------
    list of Record
        The same records; those with fewer hidden features than the most have no agreements.
    """
    most = max((count_units(r)[1] for r in rows), default=0)
    return [r if count_units(r)[1] == most else replace(r, agreement={}) for r in rows]


def _agreement_cell(group: Sequence[Record]) -> str:
    """Format the mean agreement of linear profiles and of roots; "" where one is not known."""
    layers = [v for r in group for layer, v in r.agreement.items() if layer != r.classes]
    roots = next((name for name in ROOTS if all(v.get(name) is not None for v in layers)), ROOTS[-1])
    known = [[v[name] for v in layers if v.get(name) is not None] for name in ("agreement", roots)]
    if not all(known):
        return ""
    return " / ".join(f"{np.mean(v):.2f}" for v in known) + BOTH * (roots == ROOTS[0])


def format_source(rows: Sequence[Record]) -> str:
    """Write the table of one network and draw.

    Parameters
    ----------
    rows : sequence of Record
        Its records.

    Returns
    -------
    str
        Markdown: a row for each way; photographs, recipes and other tools, each in the order of the records.
    """
    judges = list(dict.fromkeys(j for r in rows for j in r.transfer))
    named = [(j, not pool(rows, "transfer", "rank", j).empty) for j in judges]
    head = ["way", "classes + features", "s an image"]
    for judge, ranked in named:
        head += [f"{judge}: top-1", "top-5", "median rank"] if ranked else []
        head += [f"{judge}: partner's percentile (of other images)", "among images"]
    head += ["coverage", "contrast", "slope", "colour", "multiple of best photograph"]
    head.append("agreement of S, linear / of roots")
    seeds = ", ".join(str(n) for n in sorted({r.seed for r in rows}))
    about = f"Weights with SHA-256 {rows[0].weights[:16]}; seed {seeds}."
    lines = [
        f"### Images of {rows[0].source}, draw {rows[0].draw}",
        "",
        about,
        "",
        f"| {' | '.join(head)} |",
        f"|{'---|' * len(head)}",
    ]
    by_way: dict[str, list[Record]] = {}
    for record in sorted(keep_comparable(rows), key=lambda r: ORDER.index(r.kind)):
        by_way.setdefault(record.way, []).append(record)
    lines += [f"| {' | '.join(_row(group, named))} |" for group in by_way.values()]
    lines += _dead_zone_lines(by_way)
    return "\n".join(lines)


ABOUT = """`python -m analyses.benchmarks.images` made these tables; a call for each network adds its rows. Recipes of
featmap, and other tools at their own defaults, make images of the same class logits and hidden features, and other
networks judge them (`featmap judge --help`). Top-1 and top-5 are shares of the classes, with Wilson's 95 % interval;
the best median rank is 0. A hidden feature is judged by the percentile of its partner's response among photographs,
with Student's 95 % interval over features, and by the share of the other features' images that excite the partner
less. Coverage is the median share of a feature's grid that its image excites above a tenth of the maximum; in
brackets, for how many features that is at least 0.9 of what the best photograph's excites. The images of the others
have dead zones; for recipes, they are named below the table. Contrast is a multiple of photographs', slope that of the
power spectrum less photographs', colour the distance of the channels' correlations from theirs. Agreement of S is that
of the few features drawn, and empty for who made fewer of them: of the profiles of plain responses
(`linear_profile`), and with square roots of the responses to the images, or of the responses to images and photographs
(marked by +), as S is computed. Seconds are the processor's, of one core of a busy machine. `reference` is the bundled
network, which has other classes."""
ORDER = (PHOTOGRAPHS, RECIPE, TOOL)
"""Order of the rows."""


def format_page(every: Sequence[Record]) -> str:
    """Write the tables of all networks and draws.

    Parameters
    ----------
    every : sequence of Record
        All records.

    Returns
    -------
    str
        Markdown.
    """
    tables: dict[tuple[str, int], list[Record]] = {}
    for record in every:
        tables.setdefault((record.source, record.draw), []).append(record)
    parts = ["## Images that other networks recognise", ABOUT]
    parts += [format_source(rows) for rows in tables.values()]
    words = dict.fromkeys((r.way, r.words) for r in every if r.words)
    parts.append("\n".join(f"- {way}: {text}" for way, text in words))
    return "\n\n".join(parts)


def page_is_fresh(store: Path = STORE, readme: Path = records.README) -> bool:
    """Compare the README's section with the stored records.

    Parameters
    ----------
    store, readme : Path
        The files.

    Returns
    -------
    bool
        Whether the section is what the records give.
    """
    begin, end = records.marks(SECTION)
    text = readme.read_text(encoding="utf-8").partition(begin)[2].partition(end)[0]
    return text.strip() == format_page(RecordFile(store).read()).strip()
