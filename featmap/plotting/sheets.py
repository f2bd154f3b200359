"""Contact sheets: all images of a run, and groups of images with a caption.

Everything is drawn from finished images and numbers; nothing is measured here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from featmap.errors import FeatmapError
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


@house_style
def contact_sheet(
    images: np.ndarray,
    labels: Sequence[str],
    *,
    captions: Sequence[str] | None,
    groups: Sequence[int | None] | None,
    title: str,
    columns: int | None,
) -> Figure:
    """Draw all images row by row, each with its label and caption below.

    The order of the images is kept.

    Parameters
    ----------
    images : numpy.ndarray
        Images, float, `N x C x H x W`, clipped to [0, 1]; NaN is drawn gray. Other than three channels are shown as
        `featmap.image_shape.to_rgb` shows them.
    labels : sequence of str
        Label of every image.
    captions : sequence of str or None
        Caption of every image, below its label.
    groups : sequence of int or None
        Cluster number of every image (None or negative: in no cluster); the images get frames in the cluster colours of
        the heatmap, with the number where a cluster begins.
    title : str
        Title of the sheet.
    columns : int or None
        Number of images in a row; None: chosen so that the sheet is wider than high.

    Returns
    -------
    matplotlib.figure.Figure
        The sheet.

    Raises
    ------
    FeatmapError
        If there is no image, or a list has another length than the images.
    """
    n = len(images)
    if n == 0 or np.ndim(images) != 4 or 0 in np.shape(images):
        raise FeatmapError(f"a contact sheet needs one or more images, N x C x H x W, not {np.shape(images)}")
    for name, values in (("labels", labels), ("captions", captions), ("groups", groups)):
        if values is not None and len(values) != n:
            raise FeatmapError(f"a contact sheet of {n} images needs as many {name}, not {len(values)}")
    across = min(n, max(1, columns or int(np.ceil(np.sqrt(1.5 * n)))))
    down, side = -(-n // across), float(np.clip(7 / across, 0.78, 1.6))
    tiles = np.stack([thumbnail(image, int(1.5 * DPI * side)) for image in images])
    (h, w), inch = tiles.shape[1:3], max(tiles.shape[1:3]) / side  # in pixels of the mosaic
    frame, under = max(1, round(0.035 * inch)), 0.22 if captions is None else 0.34
    rise, pitch = h + 2 * frame + round(under * inch), w + 2 * frame + round(0.07 * inch)
    cells = np.full((down * across, rise, pitch, 3), 255, np.uint8)
    numbers = [] if groups is None else [-1 if g is None else max(-1, int(g)) for g in groups]
    if numbers:
        cells[:n, : h + 2 * frame, : w + 2 * frame] = np.multiply([[[colour(c)]] for c in numbers], 255).round()
    cells[:n, frame : frame + h, frame : frame + w] = tiles
    mosaic = cells.reshape(down, across, rise, pitch, 3).swapaxes(1, 2).reshape(down * rise, across * pitch, 3)
    wide, tall, figure = across * pitch / inch, down * rise / inch, Figure()
    page, top = add_page(figure, max(wide + 0.2, 3.4), tall + 0.12, title)
    top, left = top + 0.04, (max(wide + 0.2, 3.4) - wide + 0.07) / 2
    draw_picture(page, mosaic, left, top, wide, tall)
    (size, names), (small, notes) = fit_text(labels, side, 8), fit_text(captions or [""] * n, side, 7)
    for i in range(n):
        x, y = left + i % across * pitch / inch, top + i // across * rise / inch  # of the frame's upper left corner
        middle, bottom = x + (frame + w / 2) / inch, y + (2 * frame + h) / inch
        draw_text(page, middle, bottom + 0.03, names[i], size)
        draw_text(page, middle, bottom + 0.16, notes[i], small, color=FAINT)
        if numbers and (i == 0 or numbers[i] != numbers[i - 1]):
            text = "no cluster" if numbers[i] < 0 else f"cluster {numbers[i]}" if i == 0 else str(numbers[i])
            box = {"facecolor": colour(numbers[i]), "edgecolor": "none", "pad": 2}
            draw_text(page, x + 0.04, y + 0.03, text, 7.5, background=colour(numbers[i]), ha="left", bbox=box)
    return figure


@house_style
def card_sheet(cards: Sequence[Card], title: str) -> Figure:
    """Draw cards in the given order, row by row.

    Parameters
    ----------
    cards : sequence of Card
        Cards, all with the same number of images.
    title : str
        Title of the sheet.

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
    page, top = add_page(figure, across * pitch + 0.1, -(-len(cards) // across) * rise, title)
    for i, card in enumerate(cards):
        x, y = 0.2 + i % across * pitch, top + i // across * rise
        for k, image in enumerate(card.images):
            draw_image(page, image, x + (side + 0.08) * k, y, side, 2 * DPI)
            draw_text(page, x + (side + 0.08) * k + side / 2, y + side + 0.04, names[n * i + k], size)
        draw_text(page, x + inside / 2, y + side + 0.2, texts[i], 7.5, color=FAINT)
    return figure
