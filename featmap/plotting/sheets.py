"""Contact sheets: all images of a run, and groups of images with a caption.

Everything is drawn from finished images and numbers; nothing is measured here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from featmap.errors import FeatmapError
from featmap.plotting import display
from featmap.plotting.style import (
    DPI,
    FAINT,
    add_page,
    colour,
    draw_image,
    draw_picture,
    draw_text,
    fit_text,
    house_style,
    thumbnail,
    wrap_text,
)


@dataclass(frozen=True, eq=False)
class Card:
    """Images side by side, with a label below each and a caption below all.

    Parameters
    ----------
    images : tuple of numpy.ndarray
        Images, float, `C x H x W`, clipped to [0, 1].
    labels : tuple of str
        Label of every image.
    text : str
        Caption below all images.
    """

    images: tuple[np.ndarray, ...]
    labels: tuple[str, ...]
    text: str


@dataclass(frozen=True, eq=False, kw_only=True)
class Sheet:
    """Content of a contact sheet: images, and what is written beside each.

    Parameters
    ----------
    images : numpy.ndarray
        Images, float, `N x C x H x W`, clipped to [0, 1]; NaN is drawn gray. Other than three channels are shown as
        `featmap.image_shape.to_rgb` shows them.
    labels : sequence of str
        Label of every image.
    title : str
        Title of the sheet.
    captions : sequence of str, optional
        Caption of every image, below its label.
    groups : sequence of int or None, optional
        Cluster number of every image (None or negative: in no cluster); the images get frames in the cluster colours of
        the heatmap, with the number where a cluster begins.
    columns : int, optional
        Number of images in a row. None: chosen so that the sheet is wider than high; on pages,
        `featmap.plotting.pages.ACROSS`.
    stretched : bool, default False
        Whether images are shown with the display stretch, see `featmap.plotting.display`; the sheet says so.

    Raises
    ------
    FeatmapError
        If there is no image, or a list has another length than the images.
    """

    images: np.ndarray
    labels: Sequence[str]
    title: str
    captions: Sequence[str] | None = None
    groups: Sequence[int | None] | None = None
    columns: int | None = None
    stretched: bool = False

    def __post_init__(self) -> None:
        n = len(self.images)
        if n == 0 or np.ndim(self.images) != 4 or 0 in np.shape(self.images):
            raise FeatmapError(f"a contact sheet needs one or more images, N x C x H x W, not {np.shape(self.images)}")
        for name, values in (("labels", self.labels), ("captions", self.captions), ("groups", self.groups)):
            if values is not None and len(values) != n:
                raise FeatmapError(f"a contact sheet of {n} images needs as many {name}, not {len(values)}")

    @property
    def note(self) -> str:
        """Note on the display stretch; empty where images are shown as they are."""
        return display.NOTE if self.stretched else ""

    def grid(self, across: int, side: float) -> Grid:
        """Lay out all images.

        Parameters
        ----------
        across : int
            Number of images in a row.
        side : float
            Longer side of an image, in inches.

        Returns
        -------
        Grid
            With labels and captions in sizes that fit.
        """
        return Grid(
            self.images,
            fit_text(self.labels, side, 8),
            fit_text(self.captions or [""] * len(self.images), side, 7),
            cluster_numbers(self.groups),
            across,
            side,
            self.captions is not None,
            self.stretched,
        )


@dataclass(frozen=True, eq=False)
class Grid:
    """Images in rows, each with its label and caption, and how large they are drawn.

    Parameters
    ----------
    images : numpy.ndarray
        Images, float, `N x C x H x W`, clipped to [0, 1]; NaN is drawn gray. Other than three channels are
        shown as `featmap.image_shape.to_rgb` shows them.
    names : (float, list of str)
        Font size in points and label of every image, see `featmap.plotting.style.fit_text`.
    notes : (float, list of str)
        The same for the captions below the labels; empty texts where there are none.
    numbers : list of int
        Cluster number of every image, negative in no cluster; empty draws no frames.
    across : int
        Number of images in a row.
    side : float
        Longer side of an image, in inches.
    captioned : bool
        Whether there is room for captions.
    stretched : bool
        Whether images are shown with the display stretch.
    """

    images: np.ndarray
    names: tuple[float, list[str]]
    notes: tuple[float, list[str]]
    numbers: list[int]
    across: int
    side: float
    captioned: bool
    stretched: bool

    def part(self, first: int, last: int) -> Grid:
        """Select consecutive images, with the font sizes of all.

        Parameters
        ----------
        first, last : int
            Images, `last` exclusive.

        Returns
        -------
        Grid
            The images with their texts.
        """
        of, (size, names), (small, notes) = slice(first, last), self.names, self.notes
        return replace(
            self, images=self.images[of], names=(size, names[of]), notes=(small, notes[of]), numbers=self.numbers[of]
        )

    @cached_property
    def tiles(self) -> np.ndarray:
        """Pictures, uint8, `N x h x w x 3`."""
        longest = int(1.5 * DPI * self.side)
        # one by one: the images of a large layer would not fit into memory twice
        return np.stack([thumbnail(display.stretch(i) if self.stretched else i, longest) for i in self.images])

    @property
    def inch(self) -> float:
        """Pixels of a picture per inch."""
        return float(max(self.tiles.shape[1:3]) / self.side)

    @property
    def frame(self) -> int:
        """Width of a frame, in pixels."""
        return max(1, round(0.035 * self.inch))

    @property
    def cell(self) -> tuple[int, int]:
        """Height and width of an image with frame, texts and gap, in pixels."""
        h, w = self.tiles.shape[1:3]
        under = 0.34 if self.captioned else 0.22
        # cells of tall images are as wide as these are high: texts need the room
        return h + 2 * self.frame + round(under * self.inch), max(w, h) + 2 * self.frame + round(0.07 * self.inch)

    @property
    def extent(self) -> tuple[float, float]:
        """Width and height, in inches."""
        (rise, pitch), down = self.cell, -(-len(self.images) // self.across)
        return self.across * pitch / self.inch, down * rise / self.inch

    def draw(self, page: Axes, left: float, top: float, first: bool = True) -> None:
        """Draw the grid on a page.

        Parameters
        ----------
        page : matplotlib.axes.Axes
            Axes in inches, see `featmap.plotting.style.add_page`.
        left, top : float
            Upper left corner, in inches.
        first : bool, default True
            Whether the images are the first ones: their first frame then bears the word "cluster".
        """
        n, (h, w), (rise, pitch) = len(self.images), self.tiles.shape[1:3], self.cell
        inch, frame, numbers, down = self.inch, self.frame, self.numbers, -(-len(self.images) // self.across)
        cells, at = np.full((down * self.across, rise, pitch, 3), 255, np.uint8), (max(w, h) - w) // 2
        if numbers:
            colours = np.multiply([[[colour(c)]] for c in numbers], 255).round()
            cells[:n, : h + 2 * frame, at : at + w + 2 * frame] = colours
        cells[:n, frame : frame + h, at + frame : at + frame + w] = self.tiles
        mosaic = cells.reshape(down, self.across, rise, pitch, 3).swapaxes(1, 2)
        draw_picture(page, mosaic.reshape(down * rise, self.across * pitch, 3), left, top, *self.extent)
        for i in range(n):
            x, y = left + (i % self.across * pitch + at) / inch, top + i // self.across * rise / inch  # of the frame
            middle, bottom = x + (frame + w / 2) / inch, y + (2 * frame + h) / inch
            draw_text(page, middle, bottom + 0.03, self.names[1][i], self.names[0])
            draw_text(page, middle, bottom + 0.16, self.notes[1][i], self.notes[0], color=FAINT)
            if numbers and (i == 0 or numbers[i] != numbers[i - 1]):
                word = "cluster " if i == 0 and first else ""
                text = "no cluster" if numbers[i] < 0 else f"{word}{numbers[i]}"
                box = {"facecolor": colour(numbers[i]), "edgecolor": "none", "pad": 2}
                draw_text(page, x + 0.04, y + 0.03, text, 7.5, background=colour(numbers[i]), ha="left", bbox=box)


def cluster_numbers(groups: Sequence[int | None] | None) -> list[int]:
    """Convert cluster numbers for a `Grid`, or for the bands of a heatmap.

    Parameters
    ----------
    groups : sequence of int or None
        Cluster number of every image; None, NaN or negative: in no cluster.

    Returns
    -------
    list of int
        -1 for no cluster; empty for None.
    """
    return [] if groups is None else [-1 if g is None or pd.isna(g) else max(-1, int(g)) for g in groups]


def draw_note(page: Axes, width: float, top: float, note: str) -> float:
    """Draw a note below the title of a sheet.

    Parameters
    ----------
    page : matplotlib.axes.Axes
        Axes in inches.
    width : float
        Width of the sheet, in inches.
    top : float
        Lower end of the title, in inches.
    note : str
        The note; nothing is drawn for an empty one.

    Returns
    -------
    float
        Lower end of the note, in inches.
    """
    if note:
        draw_text(page, width / 2, top, wrap_text(note, width - 0.4, 7.5), 7.5, color=FAINT)
    return top + note_height(width, note)


def note_height(width: float, note: str) -> float:
    """Compute the height that `draw_note` takes.

    Parameters
    ----------
    width : float
        Width of the sheet, in inches.
    note : str
        The note.

    Returns
    -------
    float
        Height in inches.
    """
    return 0.14 * len(wrap_text(note, width - 0.4, 7.5).splitlines()) + 0.03 * bool(note)


@house_style
def contact_sheet(sheet: Sheet) -> Figure:
    """Draw all images row by row, each with its label and caption below.

    The order of the images is kept.

    Parameters
    ----------
    sheet : Sheet
        Images and texts.

    Returns
    -------
    matplotlib.figure.Figure
        The sheet.
    """
    n = len(sheet.images)
    across = min(n, max(1, sheet.columns or int(np.ceil(np.sqrt(1.5 * n)))))
    grid, figure = sheet.grid(across, float(np.clip(7 / across, 0.78, 1.6))), Figure()
    wide, tall = grid.extent
    width = max(wide + 0.2, 3.4)
    page, top = add_page(figure, width, note_height(width, sheet.note) + tall + 0.12, sheet.title)
    grid.draw(page, (width - wide + 0.07) / 2, draw_note(page, width, top, sheet.note) + 0.04)
    return figure


@house_style
def card_sheet(cards: Sequence[Card], title: str, stretched: bool = False) -> Figure:
    """Draw cards in the given order, row by row.

    Parameters
    ----------
    cards : sequence of Card
        Cards, all with the same number of images.
    title : str
        Title of the sheet.
    stretched : bool, default False
        Whether images are shown with the display stretch, see `featmap.plotting.display`; the sheet says so.

    Returns
    -------
    matplotlib.figure.Figure
        The sheet.

    Raises
    ------
    FeatmapError
        If there is no card.
    """
    if not cards:
        raise FeatmapError("a sheet of cards needs at least one card")
    n, side, figure = len(cards[0].images), 1.2, Figure()
    across, inside = min(len(cards), 8 // n), n * (side + 0.08) - 0.08
    pitch = inside + 0.3
    texts = [wrap_text(card.text, inside - 0.08, 7.5) for card in cards]
    size, names = fit_text([label for card in cards for label in card.labels], side, 8)
    rise = side + 0.55 + 0.15 * max(text.count("\n") for text in texts)
    width, note = across * pitch + 0.1, display.NOTE if stretched else ""
    page, top = add_page(figure, width, note_height(width, note) + -(-len(cards) // across) * rise, title)
    top = draw_note(page, width, top, note)
    for i, card in enumerate(cards):
        x, y = 0.2 + i % across * pitch, top + i // across * rise
        for k, image in enumerate(card.images):
            image = display.stretch(image) if stretched else image
            draw_image(page, image, x + (side + 0.08) * k, y, side, 2 * DPI)
            draw_text(page, x + (side + 0.08) * k + side / 2, y + side + 0.04, names[n * i + k], size)
        draw_text(page, x + inside / 2, y + side + 0.2, texts[i], 7.5, color=FAINT)
    return figure
