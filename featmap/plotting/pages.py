"""Sheets of many images for print: pages of A4 in one PDF, with the same bytes each time."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.backends.backend_pdf import PdfPages
from matplotlib.figure import Figure

from featmap.files import write_atomically
from featmap.plotting import display
from featmap.plotting.sheets import Grid, check_images, cluster_numbers, draw_note
from featmap.plotting.style import FAINT, add_page, draw_text, fit_text, house_style, title_height

WIDTH, HEIGHT = 8.27, 11.69
"""A4, in inches."""
ACROSS, SIDE = 6, 1.06
"""Images in a row, and the longer side of each in inches: 42 square images with captions on a page."""
MARGIN = 0.45
"""Space at the lower edge, with the number of the page, in inches."""


def sheet_pages(
    images: np.ndarray,
    labels: Sequence[str],
    *,
    captions: Sequence[str] | None,
    groups: Sequence[int | None] | None,
    title: str,
    columns: int | None = None,
    stretched: bool = False,
) -> Iterator[Figure]:
    """Draw all images row by row on pages of A4, one after the other.

    Parameters
    ----------
    images, labels, captions, groups, title
        See `featmap.plotting.sheets.contact_sheet`; every page has the title.
    columns : int or None, default None
        Number of images in a row; None: `ACROSS`. More than that are drawn smaller.
    stretched : bool, default False
        See `featmap.plotting.sheets.contact_sheet`.

    Yields
    ------
    matplotlib.figure.Figure
        The pages, each drawn when it is needed.

    Raises
    ------
    FeatmapError
        If there is no image, or a list has another length than the images.
    """
    check_images(images, labels, captions, groups)
    across = columns or ACROSS
    side = SIDE * min(1, ACROSS / across)
    numbers, note = cluster_numbers(groups), display.NOTE if stretched else ""
    # one font size for all pages
    (size, names), (small, notes) = fit_text(labels, side, 8), fit_text(captions or [""] * len(images), side, 7)

    def grid(first: int, last: int) -> Grid:
        of = slice(first, last)
        texts = (size, names[of]), (small, notes[of])
        return Grid(images[of], *texts, numbers[of], across, side, captions is not None, stretched)

    rise, above = grid(0, 1).extent[1], title_height(title, WIDTH) + 0.25
    count = across * max(1, int((HEIGHT - MARGIN - above) / rise))
    pages = -(-len(images) // count)
    for number, first in enumerate(range(0, len(images), count), 1):
        yield _draw_page(grid(first, first + count), title, note, f"{number} / {pages}", first == 0)


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
