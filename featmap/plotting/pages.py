"""Sheets of many images for print: pages of A4 in one PDF, with the same bytes each time."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from pathlib import Path

from matplotlib import pyplot as plt
from matplotlib.backends.backend_pdf import PdfPages
from matplotlib.figure import Figure

from featmap.files import write_atomically
from featmap.plotting.sheets import Grid, Sheet, draw_note
from featmap.plotting.style import FAINT, add_page, draw_text, house_style, title_height

WIDTH, HEIGHT = 8.27, 11.69
"""A4, in inches."""
ACROSS, SIDE = 6, 1.06
"""Images in a row, and the longer side of each in inches: 42 square images with captions on a page."""
MARGIN = 0.45
"""Space at the lower edge, with the number of the page, in inches."""


def sheet_pages(sheet: Sheet) -> Iterator[Figure]:
    """Draw all images row by row on pages of A4, one after the other.

    Parameters
    ----------
    sheet : Sheet
        Images and texts; every page has the title. Where it names no number of columns there are `ACROSS`; more than
        that are drawn smaller.

    Yields
    ------
    matplotlib.figure.Figure
        The pages, each drawn when it is needed.
    """
    across = sheet.columns or ACROSS
    # laid out as a whole first: one font size for all pages
    whole = sheet.grid(across, SIDE * min(1, ACROSS / across))
    rise, above = whole.part(0, 1).extent[1], title_height(sheet.title, WIDTH) + 0.25
    count, n = across * max(1, int((HEIGHT - MARGIN - above) / rise)), len(sheet.images)
    pages = -(-n // count)
    for number, first in enumerate(range(0, n, count), 1):
        grid = whole.part(first, first + count)
        yield _draw_page(grid, sheet.title, sheet.note, f"{number} / {pages}", first == 0)


@house_style
def _draw_page(grid: Grid, title: str, note: str, number: str, first: bool) -> Figure:
    """Draw one page."""
    figure = Figure()
    page, top = add_page(figure, WIDTH, HEIGHT - title_height(title, WIDTH), title)
    grid.draw(page, (WIDTH - grid.extent[0]) / 2, draw_note(page, WIDTH, top, note) + 0.06, first)
    draw_text(page, WIDTH / 2, HEIGHT - 0.3, number, 7.5, color=FAINT)
    return figure


@house_style
def save_pages(figures: Iterable[Figure], path: Path) -> Path:
    """Write figures as the pages of a PDF and close them.

    The file appears complete or not at all. It holds no date: the same figures always give the same bytes. Texts are
    vectors, images keep their pixels.

    Parameters
    ----------
    figures : iterable of matplotlib.figure.Figure
        The pages.
    path : Path
        File to write; its folder is made if missing.

    Returns
    -------
    Path
        The file.
    """
    # in memory first: on a full disk matplotlib would leave its file open
    content, metadata = io.BytesIO(), {"Creator": "featmap", "Producer": None, "CreationDate": None}
    with PdfPages(content, metadata=metadata) as pages:
        for figure in figures:
            pages.savefig(figure)
            plt.close(figure)
    write_atomically(path, lambda p: p.write_bytes(content.getvalue()))
    return path
