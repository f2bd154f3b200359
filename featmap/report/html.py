"""Render the pages of the atlas: values, plotting library and scripts in one HTML file that makes no requests.

Everything that comes from a run reaches the page as text: escaped by `html.escape`, or as JSON that a script writes
into text nodes. The page's Content-Security-Policy forbids every request.
"""

from __future__ import annotations

import json
import re
from base64 import b64encode
from html import escape
from importlib.resources import files
from typing import Any

import numpy as np
import pandas as pd
from bokeh.resources import Resources
from matplotlib import colormaps
from matplotlib.colors import to_hex

from featmap.plotting import style
from featmap.report.page import (
    COMPARED_IMAGES_S,
    COMPARED_S,
    PHOTOGRAPH_S,
    LayerPage,
    PairKinds,
    Report,
    UnitMark,
)

SCRIPTS = ("numbers.js", "map.js", "graph.js", "scatter.js", "card.js", "examples.js", "lists.js", "atlas.js")
"""Scripts of a layer's page, in the order in which they run."""
_EARLIER = "<p>Not computed: the run's version compared no layers over photographs; its own command does so now.</p>"


def read_asset(name: str) -> str:
    """Read a file of the pages: a script, a style sheet or a template.

    Parameters
    ----------
    name : str
        Name of the file in `featmap/report/assets`.

    Returns
    -------
    str
        Its content.
    """
    return (files("featmap.report") / "assets" / name).read_text(encoding="utf-8")


def to_json_text(values: Any) -> str:
    """Return values as JSON text that is safe inside a script element.

    Parameters
    ----------
    values : object
        Plain JSON values with any texts.

    Returns
    -------
    str
        JSON without the characters that could end the element.
    """
    text = json.dumps(values, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return re.sub("[<>&\u2028\u2029]", lambda match: f"\\u{ord(match[0]):04x}", text)


def fill_template(template: str, **parts: str) -> str:
    """Replace each `{{name}}` of a template once.

    The inserted text is not searched again: texts of a run that look like a placeholder stay as they are.

    Parameters
    ----------
    template : str
        Name of the file in `featmap/report/assets`.
    **parts : str
        HTML by name.

    Returns
    -------
    str
        HTML.
    """
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], read_asset(template))


def bokeh_scripts() -> str:
    """Return the scripts of the plotting library Bokeh.

    Returns
    -------
    str
        Inline script elements.
    """
    resources = Resources(mode="inline", components=["bokeh", "bokeh-api"], minified=True)
    return "".join(f"<script>{text}</script>\n" for text in resources.js_raw[:2])


def _script(name: str) -> str:
    """Return a script as an inline element."""
    return f"<script>\n{read_asset(name)}</script>\n"


def _blob(name: str, values: np.ndarray) -> str:
    """Return an array as base64 in an element that the page's scripts read: little-endian, with its type."""
    kinds = {"float32": "Float32Array", "float64": "Float64Array", "uint8": "Uint8Array"}
    # browsers read typed arrays in the byte order of the machine, which is little-endian nearly everywhere
    data = np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<"))
    return (
        f'<script type="text/plain" id="blob-{name}" data-kind="{kinds[values.dtype.name]}">'
        f"{b64encode(data.tobytes()).decode()}</script>\n"
    )


def _json(name: str, values: Any) -> str:
    """Return values as JSON in an element that the page's scripts read."""
    return f'<script type="application/json" id="{name}">{to_json_text(values)}</script>\n'


def render_layer_page(page: LayerPage, reports: list[Report], index: str | None) -> str:
    """Render the page of a layer, or of the images of a run without a map.

    Parameters
    ----------
    page : LayerPage
        Values of the page.
    reports : list of Report
        Interaction reports to include.
    index : str or None
        Relative link to the index page of a run of several layers.

    Returns
    -------
    str
        HTML.
    """
    # values before scripts before images: the browser draws the map while it is still reading the images
    early = ("A", "S", PHOTOGRAPH_S, COMPARED_S, COMPARED_IMAGES_S, "linear")
    first = {name: page.blobs[name] for name in early if name in page.blobs}
    rest = {name: blob for name, blob in page.blobs.items() if name not in first}
    back = "" if index is None else f'<a class="back" href="{escape(index)}">all layers</a>'
    return fill_template(
        "layer.html",
        title=escape(f"{page.title} - featmap atlas"),
        heading=escape(page.title),
        network=escape(page.data["network"]),
        back=back,
        style=read_asset("atlas.css"),
        notes="".join(f"<li>{escape(line)}</li>" for line in page.data["notes"]),
        reports=render_reports(reports),
        numbers=_json("data", page.data) + "".join(_blob(name, blob) for name, blob in first.items()),
        library=bokeh_scripts(),
        scripts="".join(map(_script, SCRIPTS)),
        images="".join(_blob(name, blob) for name, blob in rest.items())
        + _json("images", page.images)
        + _json("photographs", page.photographs),
    )


def render_index_page(
    title: str,
    network: str,
    layers: dict[str, tuple[str, int, list[str]]],
    table: pd.DataFrame | None,
    reports: list[Report],
) -> str:
    """Render the index page of a run of several layers.

    Parameters
    ----------
    title : str
        Title.
    network : str
        Line that names the network and its weights.
    layers : dict of str to (str, int, list of str)
        Relative link to the page, number of features shown, and findings in words, by layer.
    table : pandas.DataFrame or None
        One row an ordered pair, see `featmap.stats.cross_layer.layer_table`; None for maps of photographs alone.
    reports : list of Report
        Interaction reports to include.

    Returns
    -------
    str
        HTML.
    """
    cards = "".join(
        f'<article><h3><a href="{escape(href)}">{escape(name)}</a></h3><p>{count} features</p>'
        f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul></article>"
        for name, (href, count, lines) in layers.items()
    )
    return fill_template(
        "index.html",
        title=escape(f"{title} - featmap atlas"),
        heading=escape(title),
        network=escape(network),
        style=read_asset("atlas.css"),
        grid=_EARLIER if table is None else _grid(list(layers), {k: href for k, (href, _, _) in layers.items()}, table),
        layers=cards,
        reports=render_reports(reports),
        data=_json("data", {name: href for name, (href, _, _) in layers.items()}),
        scripts=_script("index.js"),
    )


def _shade(value: float) -> tuple[str, str]:
    """Return the colour of a similarity in [0, 1] and that of text on it; cividis suits colour-blind readers."""
    rgb = colormaps["cividis"](float(np.clip(value, 0, 1)))[:3]
    return to_hex(rgb), "#000000" if np.dot(rgb, (0.299, 0.587, 0.114)) > 0.5 else "#ffffff"


def _grid(layers: list[str], hrefs: dict[str, str], table: pd.DataFrame) -> str:
    """Return the table of layers: mean S of the rows' features with their best partners in the columns' layers."""
    pairs = {(str(r.layer), str(r.other)): r for r in table.itertuples()}
    head = "".join(f'<th scope="col"><span>{escape(name)}</span></th>' for name in layers)
    rows = []
    for one in layers:
        cells = []
        for other in layers:
            row = pairs.get((one, other))
            if row is None or pd.isna(row.best):
                cells.append(f'<td class="none">{"" if one == other else "undefined"}</td>')
                continue
            colour, ink = _shade(float(row.best))
            floor = "" if pd.isna(row.floor) else f", by chance {row.floor:.3f}"
            label = escape(f"{one} to {other}: best partner's S {row.best:.3f}{floor}, {row.features} features")
            chance = "" if pd.isna(row.floor) else f"<small>{row.floor:.2f}</small>"
            cells.append(
                f'<td style="background:{colour};color:{ink}" title="{label}">'
                f'<a href="{escape(hrefs[one])}" aria-label="{label}">{row.best:.2f}{chance}</a></td>'
            )
        link = f'<a href="{escape(hrefs[one])}">{escape(one)}</a>'
        rows.append(f'<tr><th scope="row">{link}</th>{"".join(cells)}</tr>')
    return f'<table class="grid"><thead><tr><td></td>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'


def render_report_page(title: str, network: str, reports: list[Report]) -> str:
    """Render the page of an interaction run.

    Parameters
    ----------
    title : str
        Title.
    network : str
        Line that names the network and its weights.
    reports : list of Report
        Reports of the run, and others to include.

    Returns
    -------
    str
        HTML.
    """
    return fill_template(
        "reports.html",
        title=escape(f"{title} - featmap atlas"),
        heading="Interactions",
        network=escape(network),
        style=read_asset("atlas.css"),
        reports=render_reports(reports),
    )


def render_reports(reports: list[Report]) -> str:
    """Render reports as sections with text, figures and tables.

    Parameters
    ----------
    reports : list of Report
        The reports.

    Returns
    -------
    str
        HTML.
    """
    return "".join(_section(report, k) for k, report in enumerate(reports))


def _section(report: Report, number: int) -> str:
    """Return a report as an HTML section; its number makes the names of its controls unique."""
    paragraphs = "".join(f"<p>{escape(line)}</p>" for line in report.lines)
    tables = "".join(_table(caption, frame) for caption, frame in report.tables)
    pairs = _pairs(report.pairs, number) if report.pairs else ""
    figures = "".join(
        f'<figure><img src="{p.uri}" width="{p.width}" height="{p.height}" alt="{escape(p.alt)}" loading="lazy">'
        f"<figcaption>{escape(p.caption)}</figcaption></figure>"
        for p in report.pictures
    )
    command = f"<pre>{escape(report.command)}</pre>" if report.command else ""
    return (
        f'<section class="report"><h2>{escape(report.title)}</h2>{paragraphs}{pairs}'
        f'<div class="figures">{figures}</div>{tables}{command}</section>'
    )


def _pairs(pairs: PairKinds, number: int) -> str:
    """Return pairs by kind: a control, a map and a table.

    The control needs no script, which pages of reports do not have: the style sheet asks which kind is checked.
    """
    total = sum(count for *_, count in pairs.kinds)
    choices = [("all", "", f"all ({total:,})")]
    choices += [
        (str(k), f'<i class="swatch" style="background:{colour}"></i>', escape(f"{name} ({count:,})"))
        for k, (name, colour, count) in enumerate(pairs.kinds)
    ]
    control = "".join(
        f'<label><input type="radio" name="kind-{number}" value="{value}" autocomplete="off"'
        f"{' checked' if value == 'all' else ''}>{swatch}{words}</label>"
        for value, swatch, words in choices
    )
    classes = [
        f"kind k{k}{' beyond' if beyond else ''}" for k, beyond in zip(pairs.kind_of_row, pairs.beyond, strict=True)
    ]
    return (
        f'<div class="kinds"><fieldset><legend>Kind of interaction</legend>{control}</fieldset>'
        f"{_pair_map(pairs) if pairs.cells else ''}{_table(pairs.caption, pairs.table, classes)}</div>"
    )


def _pair_map(pairs: PairKinds) -> str:
    """Return the map of all pairs as a table, with the clusters and communities of its rows and columns."""
    marks = [*pairs.rows, *pairs.columns]
    bands = [word for word in ("cluster", "community") if any(getattr(mark, word) is not None for mark in marks)][::-1]

    def band(mark: UnitMark, word: str) -> str:
        group = getattr(mark, word)
        label = f"{mark.name}: in no {word}" if group is None else f"{mark.name}: {word} {group}"
        colour = to_hex(style.colour(-1 if group is None else group))
        return f'<td class="band" style="background:{colour}" title="{escape(label)}"></td>'

    corner = f'<td colspan="{len(bands)}"></td>' if bands else ""
    head = "".join(
        f'<tr class="band">{corner}<th scope="row">{word}</th>{"".join(band(m, word) for m in pairs.columns)}</tr>'
        for word in bands
    )
    words = "".join(f'<th scope="col"><span>{word}</span></th>' for word in bands)
    names = "".join(f'<th scope="col"><span>{escape(mark.name)}</span></th>' for mark in pairs.columns)
    body = []
    for i, row in enumerate(pairs.rows):
        cells = []
        for j in range(len(pairs.columns)):
            kind, label = pairs.cells.get((i, j), (-1, ""))
            colour = pairs.kinds[kind][1]
            cell = f'<td class="kind k{kind}" style="background:{colour}" title="{escape(label)}"></td>'
            cells.append(cell if label else "<td></td>")
        name = f'<th scope="row">{escape(row.name)}</th>'
        body.append(f"<tr>{''.join(band(row, word) for word in bands)}{name}{''.join(cells)}</tr>")
    return (
        f'<div class="scroll"><table class="pairs"><caption>All pairs; hover over a cell for its pair</caption>'
        f"<thead>{head}<tr>{words}<td></td>{names}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )


def _table(caption: str, frame: pd.DataFrame, classes: list[str] | None = None) -> str:
    """Return a data frame without its index as an HTML table, its rows with classes where they are given."""
    head = "".join(f'<th scope="col">{escape(str(name))}</th>' for name in frame.columns)
    tags = ["<tr>"] * len(frame) if classes is None else [f'<tr class="{name}">' for name in classes]
    rows = zip(tags, frame.itertuples(index=False), strict=True)
    body = "".join(f"{tag}{''.join(_cell(v) for v in row)}</tr>" for tag, row in rows)
    title = f"<caption>{escape(caption)}</caption>" if caption else ""
    return f'<div class="scroll"><table>{title}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _cell(value: Any) -> str:
    """Return a table cell: text, an integer, or a number to three significant digits."""
    if isinstance(value, str):
        return f"<td>{escape(value)}</td>"
    if value is None or pd.isna(value):
        return '<td class="none">undefined</td>'
    number = str(value) if isinstance(value, (int, np.integer)) else f"{value:.3g}"
    return f'<td class="number">{number}</td>'
