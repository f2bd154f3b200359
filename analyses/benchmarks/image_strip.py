"""Draw the images of several ways below each other: a row for each way, a column for each class and feature."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from featmap.files import write_atomically
from featmap.image_ops import resize
from featmap.validation.image_evidence import RunImages

CELL, LABEL, GAP, SHOWN = 96, 172, 2, 8
"""Sides of an image, of the labels and of the gaps, in pixels; columns of each layer."""


def choose_columns(rows: Sequence[tuple[str, RunImages]]) -> list[str]:
    """Choose the units that are shown.

    Parameters
    ----------
    rows : sequence of (str, RunImages)
        Name and images of each way.

    Returns
    -------
    list of str
        Up to `SHOWN` of each layer: those that most ways have images of first, in the order of the first way.
    """
    labels = list(dict.fromkeys(label for _, images in rows for label in images.labels))
    counts = {u: sum(u in images.labels for _, images in rows) for u in labels}
    columns: list[str] = []
    for layer in dict.fromkeys(u.rpartition(":")[0] for u in labels):
        of_layer = [u for u in labels if u.rpartition(":")[0] == layer]
        most = set(sorted(of_layer, key=lambda u: -counts[u])[:SHOWN])
        columns += [u for u in of_layer if u in most]
    return columns


def draw_strip(rows: Sequence[tuple[str, RunImages]], path: Path) -> None:
    """Draw images as they are stored, clamped to [0, 1] and resized.

    Parameters
    ----------
    rows : sequence of (str, RunImages)
        Name and images of each way.
    path : Path
        The picture; its suffix is the format.
    """
    columns = choose_columns(rows)
    step, font = CELL + GAP, ImageFont.load_default(13)
    picture = Image.new("RGB", (LABEL + step * len(columns), step * len(rows) + step // 4), "white")
    draw = ImageDraw.Draw(picture)
    layers = [unit.rpartition(":")[0] for unit in columns]
    for k, unit in enumerate(columns):  # a layer's name above its first column only: long ones would overlap
        shown = unit if k == layers.index(layers[k]) else unit.rpartition(":")[2]
        draw.text((LABEL + k * step + 2, 4), shown, fill="black", font=font)
    for n, (name, images) in enumerate(rows):
        top = step // 4 + n * step
        draw.text((4, top + CELL // 2 - 8), name, fill="black", font=font)
        for k, unit in enumerate(columns):
            if unit in images.labels:
                at = images.labels.index(unit)
                image = resize(torch.as_tensor(images.read(at, at + 1)).float().clamp(0, 1), CELL)[0]
                image = image.expand(3, -1, -1) if image.shape[0] == 1 else image[:3]
                pixels = (image.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
                picture.paste(Image.fromarray(pixels), (LABEL + k * step, top))
    write_atomically(path, lambda p: picture.save(p, quality=82))
