"""Sheets of pictures for a paper: all images of a run, pairs of alike ones. Measures nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from featmap.errors import FeatmapError
from featmap.plotting.style import DPI, FAINT, colour, fit, house_style, page_of, pixels, show, wrap, write


@dataclass(frozen=True, eq=False)
class Card:
    """Images side by side (float [3, h, w], clipped to [0, 1]), a label below each, and a text below all."""

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
    """Draw all images, in the order given, row by row, each with its label and caption below.

    `images` is float [n, 3, h, w], clipped to [0, 1] (NaN gray). `groups` holds cluster numbers (None or negative: in
    no cluster): frames in the heatmap's colours, numbered where a cluster begins. `columns` None chooses. Raises
    FeatmapError if there is no image, or a list has another length than the images.
    """
    n = len(images)
    if n == 0 or np.shape(images)[1:2] != (3,) or np.ndim(images) != 4:
        raise FeatmapError(f"a contact sheet needs n > 0 images [n, 3, h, w], not {np.shape(images)}")
    for name, given in (("labels", labels), ("captions", captions), ("groups", groups)):
        if given is not None and len(given) != n:
            raise FeatmapError(f"a contact sheet of {n} images needs as many {name}, not {len(given)}")
    across = min(n, max(1, columns or int(np.ceil(np.sqrt(1.5 * n)))))
    down, side = -(-n // across), float(np.clip(7 / across, 0.78, 1.6))
    tiles = np.stack([pixels(image, int(1.5 * DPI * side)) for image in images])
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
    page, top = page_of(figure, max(wide + 0.2, 3.4), tall + 0.12, title)
    top, left = top + 0.04, (max(wide + 0.2, 3.4) - wide + 0.07) / 2
    show(page, mosaic, left, top, wide, tall)
    (size, names), (small, notes) = fit(labels, side, 8), fit(captions or [""] * n, side, 7)
    for i in range(n):
        x, y = left + i % across * pitch / inch, top + i // across * rise / inch  # of the frame's upper left corner
        middle, bottom = x + (frame + w / 2) / inch, y + (2 * frame + h) / inch
        write(page, middle, bottom + 0.03, names[i], size)
        write(page, middle, bottom + 0.16, notes[i], small, color=FAINT)
        if numbers and (i == 0 or numbers[i] != numbers[i - 1]):
            text = "no cluster" if numbers[i] < 0 else f"cluster {numbers[i]}" if i == 0 else str(numbers[i])
            box = {"facecolor": colour(numbers[i]), "edgecolor": "none", "pad": 2}
            write(page, x + 0.04, y + 0.03, text, 7.5, on=colour(numbers[i]), ha="left", bbox=box)
    return figure


@house_style
def card_sheet(cards: Sequence[Card], title: str) -> Figure:
    """Draw cards, all of as many images, in the order given, row by row; raises FeatmapError if there is none."""
    if not cards:
        raise FeatmapError("a sheet of cards needs at least one card")
    n, side, figure = len(cards[0].images), 1.2, Figure()
    across, inside = min(len(cards), 8 // n), n * (side + 0.08) - 0.08
    pitch = inside + 0.3
    texts = [wrap(card.text, inside - 0.08, 7.5) for card in cards]
    size, names = fit([label for card in cards for label in card.labels], side, 8)
    rise = side + 0.55 + 0.15 * max(text.count("\n") for text in texts)
    page, top = page_of(figure, across * pitch + 0.1, -(-len(cards) // across) * rise, title)
    for i, card in enumerate(cards):
        x, y = 0.2 + i % across * pitch, top + i // across * rise
        for k, image in enumerate(card.images):
            show(page, pixels(image, 2 * DPI), x + (side + 0.08) * k, y, side, side)
            write(page, x + (side + 0.08) * k + side / 2, y + side + 0.04, names[n * i + k], size)
        write(page, x + inside / 2, y + side + 0.2, texts[i], 7.5, color=FAINT)
    return figure
