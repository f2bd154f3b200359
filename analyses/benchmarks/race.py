"""Race to images that another network recognises: seconds against transfer, for recipes and other tools.

    python -m analyses.benchmarks.race
    python -m analyses.benchmarks.race --check

Nothing is computed anew: the records are those of `analyses.benchmarks.images`, where every way made images of the same
class logits and hidden features, each tool at its own defaults. A tool is compared on the classes and features that it
made. Against each tool runs the quickest recipe that reaches it:

- *class logits*: a share of true classes that the other network ranks first (top-1) at least as large as the tool's;
- *hidden features*: a mean percentile of the partner's response at least as large.

The figure shows every way as a point, seconds an image against each measure. An image of a tool that makes images in
one batch costs its share of the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import matplotlib as mpl
import numpy as np
import typer
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from analyses.benchmarks import records
from analyses.benchmarks.image_records import (
    PHOTOGRAPHS,
    RECIPE,
    STORE,
    Record,
    RecordFile,
    count_units,
    keep_comparable,
    pool,
)
from analyses.support.commands import run
from featmap.cli import console
from featmap.errors import FeatmapError
from featmap.plotting import style

SECTION = "race"
OURS = ("fast", "standard", "natural")
"""Recipes that run against the tools; the others are shown in the figure."""
Values = dict[str, float]


@dataclass(frozen=True)
class Heat:
    """One tool against the recipes, on one network and judge.

    Parameters
    ----------
    source, judge, tool : str
        Network, judge and tool.
    measure : str
        "top-1" or "percentile".
    count : int
        Classes or features that are compared.
    reached : float
        What the tool reaches.
    seconds : float
        Seconds of one of its images.
    ours : dict of (float, float)
        What each recipe reaches on the same ones, and its seconds.
    """

    source: str
    judge: str
    tool: str
    measure: str
    count: int
    reached: float
    seconds: float
    ours: dict[str, tuple[float, float]]

    @property
    def is_run(self) -> bool:
        """Whether the tool sets a mark: any image reaches a top-1 of 0."""
        return self.reached > 0

    @property
    def winner(self) -> str | None:
        """The quickest recipe that reaches the tool; None if none does, or there is no mark to reach."""
        if not self.is_run:
            return None
        reaching = [name for name, (value, _) in self.ours.items() if value >= self.reached]
        return min(reaching, key=lambda name: self.ours[name][1]) if reaching else None

    @property
    def ratio(self) -> float:
        """The tool's seconds over the winner's; NaN without one."""
        return self.seconds / self.ours[self.winner][1] if self.winner else float("nan")


def group_records(every: Sequence[Record], draw: int) -> dict[str, dict[str, list[Record]]]:
    """Group the records of one draw by network and way; photographs are left out."""
    groups: dict[str, dict[str, list[Record]]] = {}
    for record in every:
        if record.draw == draw and record.kind != PHOTOGRAPHS:
            groups.setdefault(record.source, {}).setdefault(record.way, []).append(record)
    return groups


def judges_of(ways: dict[str, list[Record]]) -> list[str]:
    """List the judges of a network's records, in their order."""
    return list(dict.fromkeys(judge for group in ways.values() for record in group for judge in record.transfer))


def is_recipe(way: str, group: Sequence[Record]) -> bool:
    """Check whether a way is a recipe of featmap's own; the article's are opponents."""
    return group[0].kind == RECIPE and not way.startswith("article")


def seconds_of(group: Sequence[Record]) -> float:
    """Average the seconds of an image over seeds; NaN where none is known."""
    known = [r.seconds for r in group if r.seconds is not None]
    return float(np.mean(known)) if known else float("nan")


def values_of(group: Sequence[Record], judge: str, measure: str) -> Values:
    """Collect what each class or feature reaches, averaged over seeds.

    Parameters
    ----------
    group : sequence of Record
        Records of one network and way.
    judge : str
        The judge.
    measure : str
        "top-1", "rank", "percentile" or "among_images".

    Returns
    -------
    dict of float
        By unit: class logits for the first two, hidden features for the others.
    """
    name = "rank" if measure in ("top-1", "rank") else measure
    found = pool(group, "transfer", name, judge)
    if measure == "top-1":
        found = (found == 0).astype(float)
    means = found.groupby(level=0).mean() if len(found) else found
    classes = f"{group[0].classes}:"
    return {str(u): float(v) for u, v in means.items() if str(u).startswith(classes) == (name == "rank")}


def run_heats(every: Sequence[Record], draw: int) -> list[Heat]:
    """Compare every tool with the recipes.

    Parameters
    ----------
    every : sequence of Record
        All records.
    draw : int
        Draw of classes and features.

    Returns
    -------
    list of Heat
        By network, judge, measure and tool.
    """
    heats = []
    for source, ways in group_records(every, draw).items():
        judges = judges_of(ways)
        tools = [name for name, group in ways.items() if not is_recipe(name, group)]
        for judge in judges:
            for measure in ("top-1", "percentile"):
                ours = {name: values_of(ways[name], judge, measure) for name in OURS if name in ways}
                for tool in tools:
                    theirs, seconds = values_of(ways[tool], judge, measure), seconds_of(ways[tool])
                    shared = [u for u in theirs if all(u in values for values in ours.values())]
                    if not shared or not ours or not np.isfinite(seconds):
                        continue
                    reached = {
                        name: (float(np.mean([v[u] for u in shared])), seconds_of(ways[name]))
                        for name, v in ours.items()
                    }
                    value = float(np.mean([theirs[u] for u in shared]))
                    heats.append(Heat(source, judge, tool, measure, len(shared), value, seconds, reached))
    return heats


def format_page(every: Sequence[Record], draw: int) -> str:
    """Write the tables.

    Parameters
    ----------
    every : sequence of Record
        All records.
    draw : int
        Draw of classes and features.

    Returns
    -------
    str
        Markdown.
    """
    heats = run_heats(every, draw)
    parts = [
        "## Seconds to an image that another network recognises",
        f"`python -m analyses.benchmarks.race` makes this from the records of the images (draw {draw}, above): for "
        "each tool, the quickest of the recipes fast, standard and natural that reaches it on the same classes or "
        "features. Seconds are the processor's, an image. With few classes a share is known coarsely: 8 classes have a "
        "standard error of 0.18 near a half. A tool none of whose images the judge ranks first sets no mark. "
        "The images have the size that each way makes them at.",
    ]
    for measure, words in (("top-1", "Class logits, top-1"), ("percentile", "Hidden features, partner's percentile")):
        rows = [h for h in heats if h.measure == measure]
        if not rows:
            continue
        lines = [
            f"{words}:",
            "",
            "| images of | judged by | opponent | number | reaches | s | "
            + " | ".join(f"{name}: reaches, s" for name in OURS)
            + " | quickest to reach it | times faster |",
            "|---" * (8 + len(OURS)) + "|",
        ]
        for h in rows:
            cells = [f"{h.ours[n][0]:.2f}, {h.ours[n][1]:.2g}" if n in h.ours else "" for n in OURS]
            winner, ratio = (h.winner, f"**{h.ratio:.3g}**") if h.winner else ("none", "not reached")
            winner, ratio = (winner, ratio) if h.is_run else ("", "no mark to reach")
            about = [h.source, h.judge, h.tool, str(h.count), f"{h.reached:.2f}", f"{h.seconds:.3g}"]
            lines.append(f"| {' | '.join([*about, *cells, winner, ratio])} |")
        parts.append("\n".join(lines))
    parts.append("![Seconds against transfer, agreement and activation](race.png)")
    return "\n\n".join(parts)


def _agreement(group: Sequence[Record]) -> float:
    """Average the agreement of linear profiles with photographs' over layers and seeds; NaN without any."""
    found = [v.get("agreement") for r in group for layer, v in r.agreement.items() if layer != r.classes]
    known = [v for v in found if v is not None]
    return float(np.mean(known)) if known else float("nan")


def _mean(values: Values) -> float:
    """Average values; NaN without any."""
    return float(np.mean(list(values.values()))) if values else float("nan")


def _activation(group: Sequence[Record]) -> float:
    """Compute the median multiple of the best photograph's response, of hidden features."""
    found = pool(group, "measures", "multiple_of_best_photograph")
    hidden = [v for unit, v in found.items() if not str(unit).startswith(f"{group[0].classes}:")]
    return float(np.median(hidden)) if hidden else float("nan")


def list_panels(judge: str) -> dict[str, Callable[[Sequence[Record]], float]]:
    """List the measures of the figure.

    Parameters
    ----------
    judge : str
        Judge of the transfers.

    Returns
    -------
    dict of callable
        Function of the records of a way, by title.
    """
    return {
        "top-1 of classes": lambda g: _mean(values_of(g, judge, "top-1")),
        "median rank of classes": lambda g: float(np.median(list(values_of(g, judge, "rank").values()) or [np.nan])),
        "partner's percentile": lambda g: _mean(values_of(g, judge, "percentile")),
        "agreement of linear S": _agreement,
        "multiple of best photograph": _activation,
    }


@style.house_style
def draw_figure(every: Sequence[Record], draw: int) -> Figure:
    """Draw seconds against every measure, a row for each network.

    Parameters
    ----------
    every : sequence of Record
        All records.
    draw : int
        Draw of classes and features.

    Returns
    -------
    matplotlib.figure.Figure
        The figure; the judge is the one that ranks classes, or else the first.
    """
    groups = group_records(every, draw)
    groups = {
        source: {w: [r for r in keep_comparable([r for g in ways.values() for r in g]) if r.way == w] for w in ways}
        for source, ways in groups.items()
    }
    figure = Figure(figsize=(17, 3.3 * len(groups)), layout="constrained")
    panes: Any = figure.subplots(len(groups), 5, squeeze=False)
    for row, (source, ways) in zip(panes, groups.items(), strict=True):
        judges = judges_of(ways)
        judge = next((j for j in judges if any(values_of(g, j, "rank") for g in ways.values())), judges[0])
        for pane, (title, value) in zip(row, list_panels(judge).items(), strict=True):
            part = 0 if title.endswith("of classes") else 1  # of class logits and hidden features
            most = max(count_units(g[0])[part] for g in ways.values())
            points = [
                (seconds_of(g), value(g), name, is_recipe(name, g), count_units(g[0])[part] == most)
                for name, g in ways.items()
            ]
            known = sorted(p for p in points if np.isfinite(p[:2]).all())
            if not known:
                pane.set_visible(False)
                continue
            pane.set_title(f"{source}, {title}", fontsize=9)
            pane.set(xscale="log", xlabel="seconds an image")
            for k, (x, y, name, own, whole) in enumerate(known):
                colour = style.colour(0 if own else 2)
                pane.plot(x, y, "o" if own else "^", color=colour, mfc=colour if whole else "white", ms=6)
                above = k % 2 == 0
                place = {"ha": "center", "va": "bottom" if above else "top", "fontsize": 7}
                pane.annotate(name, (x, y), (0, 6 if above else -6), textcoords="offset points", **place)
            if title.startswith("median rank"):
                pane.set_yscale("symlog", linthresh=1)
                pane.set_ylim(1000, -0.5)
                pane.set_yticks([0, 1, 10, 100, 1000], ["0", "1", "10", "100", "1000"])
            pane.xaxis.set_minor_formatter(NullFormatter())
            pane.margins(x=0.25, y=0.2)
    figure.suptitle(
        "Circles: recipes of featmap. Triangles: the article's recipes, and other tools at their defaults. White: "
        "fewer classes or features than the others made; the tables compare each with ours on the same ones.",
        fontsize=9,
    )
    return figure


def main(
    draw: Annotated[int, typer.Option(help="Draw of classes and features.")] = 1,
    store: Annotated[Path, typer.Option(help="The records of the images.")] = STORE,
    readme: Annotated[Path, typer.Option(help="The table is written between marks in this file.")] = records.README,
    check: Annotated[bool, typer.Option("--check", help="Write nothing; check that table and values agree.")] = False,
) -> None:
    """Race to images that another network recognises."""
    every = RecordFile(store).read()
    if not run_heats(every, draw):
        raise FeatmapError(f"draw {draw}: no tool has images in {store.name}; analyses.benchmarks.images makes some")
    page = format_page(every, draw)
    if check:
        begin, end = records.marks(SECTION)
        if readme.read_text(encoding="utf-8").partition(begin)[2].partition(end)[0].strip() != page.strip():
            raise FeatmapError(f"{readme.name} and {store.name} disagree; make the table again")
        return
    records.write_table(SECTION, page, readme)
    with mpl.rc_context():
        style.save(draw_figure(every, draw), readme.with_name("race"), ("png",), dpi=110)
    console.out().print(page, soft_wrap=True)


if __name__ == "__main__":
    run(main)
