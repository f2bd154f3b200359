"""Sheets of dataset examples: a row for each feature, its maximising image and photographs that excite it.

First come those that excite it most, then those at percentiles of all responses.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from featmap.plotting import display
from featmap.plotting.pages import HEIGHT, MARGIN, WIDTH
from featmap.plotting.sheets import draw_note, note_height
from featmap.plotting.style import (
    DPI,
    FAINT,
    add_page,
    draw_image,
    draw_picture,
    draw_text,
    fit_square,
    fit_text,
    house_style,
    text_width,
    title_height,
)

IMAGE, GAP, APART, LEFT = 0.9, 0.035, 0.14, 0.25
"""Side of a maximising image, space between photographs, more space before the first and before those at percentiles,
and left margin, in inches."""
HEAD, UNDER, BETWEEN = 0.2, 0.27, 0.06
"""Heights in inches: above the first row, of the texts of a row, and between rows."""
FINEST, COARSEST, PIXELS = 200, 80, 40_000_000
"""Longer side in pixels at which photographs are drawn, and how many pixels all of them may have in one file."""
PICTURE_ROWS, PAGE_ROWS = 24, 512
"""Most features on a sheet that is a single picture, and on all pages."""


def tile_pixels(rows: int, across: int) -> int:
    """Choose the size at which photographs are drawn for a sheet.

    Parameters
    ----------
    rows : int
        Number of rows.
    across : int
        Photographs in a row.

    Returns
    -------
    int
        Longer side of a photograph in pixels, smaller for many of them.
    """
    return int(np.clip((PIXELS / max(1, rows * across)) ** 0.5, COARSEST, FINEST))


@dataclass(frozen=True, eq=False)
class ExampleRow:
    """One row of a sheet: a feature and the photographs that excite it most.

    Parameters
    ----------
    name : str
        Name of the feature.
    text : str
        Line below the name, such as the activation of the maximising image.
    image : numpy.ndarray or None
        Maximising image, C x H x W in [0, 1], which is shown with the display stretch; None without one.
    tiles : sequence of numpy.ndarray
        The photographs, h x w x 3, uint8, see `featmap.plotting.overlays.Example.draw`; the best first. May be empty.
    captions : sequence of str
        Text below each photograph.
    columns : sequence of int
        Column of each photograph, from 0 on.
    """

    name: str
    text: str
    image: np.ndarray | None
    tiles: Sequence[np.ndarray]
    captions: Sequence[str]
    columns: Sequence[int]


@dataclass(frozen=True)
class ExampleSheet:
    """What is written on a sheet of examples, and its layout.

    Parameters
    ----------
    title : str
        Title; it is repeated on every page.
    note : str
        What is shown, below the title.
    names : sequence of str
        Names of all features, for one font size.
    across : int
        Best photographs in a row.
    percentiles : sequence of int
        Percentiles whose photographs follow the best ones.
    with_images : bool, default True
        Whether rows begin with a maximising image.
    """

    title: str
    note: str
    names: Sequence[str]
    across: int
    percentiles: Sequence[int]
    with_images: bool = True

    @property
    def full_note(self) -> str:
        """The note, with that on the display stretch of maximising images."""
        stretch = display.NOTE.removeprefix("display: ")
        return f"{self.note}; maximising images: {stretch}" if self.with_images else self.note

    @property
    def side(self) -> float:
        """Side of a photograph, in inches."""
        free = WIDTH - 2 * LEFT - IMAGE - 2 * APART
        return min(IMAGE, free / (self.across + len(self.percentiles)) - GAP)

    def left(self, column: int) -> float:
        """Compute the left end of a photograph, in inches.

        Parameters
        ----------
        column : int
            Column of the photograph; those at percentiles stand apart.

        Returns
        -------
        float
            Distance from the left end of the page.
        """
        apart = APART * (1 + (column >= self.across))
        return LEFT + IMAGE + apart + column * (self.side + GAP)

    @property
    def rise(self) -> float:
        """Height of a row with its texts, in inches."""
        return IMAGE + UNDER + BETWEEN

    def draw(self, page: Axes, top: float, rows: Sequence[ExampleRow]) -> None:
        """Draw rows below each other.

        Parameters
        ----------
        page : matplotlib.axes.Axes
            Axes in inches, see `featmap.plotting.style.add_page`.
        top : float
            Upper end of the first row's heading, in inches.
        rows : sequence of ExampleRow
            The rows.
        """
        size, _ = fit_text(self.names, IMAGE + 0.06, 7.5)
        heads = [(LEFT + IMAGE / 2, "maximising image", "center")] if self.with_images else []
        heads.append((self.left(0), "photographs, by falling response", "left"))
        if self.percentiles:
            text = f"percentiles {', '.join(map(str, self.percentiles))}"
            heads.append((self.left(self.across + len(self.percentiles)) - GAP, text, "right"))
        for x, text, place in heads:
            draw_text(page, x, top + 0.02, text, 7, color=FAINT, ha=place)
        for k, row in enumerate(rows):
            y = top + HEAD + k * self.rise
            self._draw_row(page, y, row)
            below = y + IMAGE + 0.03 if self.with_images else y + IMAGE / 2 - 0.12
            (name,) = fit_text([row.name], (IMAGE + 0.06) * 7.5 / size, 7.5)[1]
            draw_text(page, LEFT + IMAGE / 2, below, name, size)
            draw_text(page, LEFT + IMAGE / 2, below + 0.12, row.text, 6, color=FAINT)

    def _draw_row(self, page: Axes, y: float, row: ExampleRow) -> None:
        """Draw the pictures of a row."""
        if row.image is not None:
            draw_image(page, display.stretch(row.image), LEFT, y, IMAGE, 2 * DPI)
        drop = IMAGE - self.side  # photographs stand on the line of the maximising image
        widest = max((text_width(caption) for caption in row.captions), default=0.0)
        size = min(6.0, self.side / widest) if widest else 6.0  # numbers are shown whole, however small
        for tile, caption, column in zip(row.tiles, row.captions, row.columns, strict=True):
            x = self.left(column)
            wide, tall = fit_square(tile.shape[0], tile.shape[1], self.side)
            draw_picture(page, tile, x + (self.side - wide) / 2, y + drop + (self.side - tall) / 2, wide, tall)
            draw_text(page, x + self.side / 2, y + IMAGE + 0.03, caption, size)
        if not row.tiles:
            draw_text(
                page, self.left(0), y + IMAGE / 2 - 0.05, "responds to all photographs alike", 7, color=FAINT, ha="left"
            )


@house_style
def example_figure(sheet: ExampleSheet, rows: Sequence[ExampleRow]) -> Figure:
    """Draw all rows as one figure.

    Parameters
    ----------
    sheet : ExampleSheet
        Texts and layout.
    rows : sequence of ExampleRow
        The rows, `PICTURE_ROWS` at most.

    Returns
    -------
    matplotlib.figure.Figure
        The sheet, as wide as a page of A4.
    """
    figure, note = Figure(), sheet.full_note
    page, top = add_page(figure, WIDTH, note_height(WIDTH, note) + HEAD + len(rows) * sheet.rise + 0.1, sheet.title)
    sheet.draw(page, draw_note(page, WIDTH, top, note), rows)
    return figure


def example_pages(sheet: ExampleSheet, rows: Iterable[ExampleRow]) -> Iterator[Figure]:
    """Draw rows on pages of A4, one after the other.

    Parameters
    ----------
    sheet : ExampleSheet
        Texts and layout; as many names as there are rows.
    rows : iterable of ExampleRow
        The rows, which are read as they are needed; their photographs are stored in 256 colours each, a third
        of the bytes.

    Yields
    ------
    matplotlib.figure.Figure
        The pages, each drawn when it is needed.
    """
    note = sheet.full_note
    above = title_height(sheet.title, WIDTH) + note_height(WIDTH, note) + HEAD
    count = max(1, int((HEIGHT - MARGIN - above) / sheet.rise))
    pages, left = -(-len(sheet.names) // count), iter(rows)
    for number in range(1, pages + 1):
        page = [replace(row, tiles=[_to_palette(tile) for tile in row.tiles]) for row in islice(left, count)]
        yield _draw_page(sheet, page, f"{number} / {pages}")


def _to_palette(tile: np.ndarray) -> np.ndarray:
    """Reduce a picture to 256 colours, dithered; matplotlib then writes a byte a pixel."""
    picture = Image.fromarray(tile)
    # chosen from a reduced picture, as the choice takes most of the time
    palette = picture.reduce(3).quantize(256)
    return np.asarray(picture.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG).convert("RGB"))


@house_style
def _draw_page(sheet: ExampleSheet, rows: list[ExampleRow], number: str) -> Figure:
    """Draw one page."""
    figure = Figure()
    page, top = add_page(figure, WIDTH, HEIGHT - title_height(sheet.title, WIDTH), sheet.title)
    sheet.draw(page, draw_note(page, WIDTH, top, sheet.full_note), rows)
    draw_text(page, WIDTH / 2, HEIGHT - 0.3, number, 7.5, color=FAINT)
    return figure
