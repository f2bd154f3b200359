"""Measure the accuracy of a network on a folder or zip of labelled images, as its card states it.

    python -m analyses.evaluate_reference IMAGES [--model reference] [--sizes 64,96,128]

IMAGES holds one folder for each class (`n01443537/17.webp`), as a directory or a zip. A class belongs to the network's
output of the same name; images are resized bilinearly to each size and scaled to [0, 1].
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from PIL import Image
from rich.progress import track

from analyses.support.commands import run
from analyses.support.labelled_images import labelled_files
from featmap import FeatmapError, Network, load
from featmap.cli.console import err
from featmap.network.modules import freeze
from featmap.runs.device import deterministic_settings, select_device


def evaluate(
    network: Network, source: Path, size: int, rows: int = 64, where: torch.device | None = None
) -> dict[str, float]:
    """Measure the accuracy of a network on labelled images.

    Parameters
    ----------
    network : Network
        The network; its categories are the names of its outputs.
    source : Path
        Folder or zip of images, with one folder for each class.
    size : int
        Size to which images are resized, in pixels.
    rows : int, default 64
        Images in a batch.
    where : torch.device, default None
        Device; None: the CPU.

    Returns
    -------
    dict of str to float
        `top1` and `top5`, the shares of images whose class is the network's first, or among its first five, and
        `images`, their number.

    Raises
    ------
    FeatmapError
        If there are no images, or images of a class that the network does not have.
    """
    where = where or torch.device("cpu")
    index = {name: k for k, name in enumerate(network.categories)}
    items = list(labelled_files(source))
    unknown = {label for label, _ in items} - index.keys()
    if not items or unknown:
        raise FeatmapError(
            f"images {str(source)!r}: no images, or classes that {network.name} lacks: {sorted(unknown)[:3]}"
        )
    first = five = 0
    network.module.to(where)
    with freeze(network.module) as module, torch.inference_mode(), deterministic_settings():
        for k in track(range(0, len(items), rows), description=f"{size} pixels", console=err()):
            batch = items[k : k + rows]
            images = torch.stack([_decode(data, size) for _, data in batch]).to(where)
            labels = torch.tensor([index[label] for label, _ in batch])[:, None]
            ranked = module(network.normalise(images)).topk(min(5, len(index)), dim=1).indices.cpu()
            first += int((ranked[:, :1] == labels).sum())
            five += int((ranked == labels).sum())
    return {"top1": first / len(items), "top5": five / len(items), "images": len(items)}


def _decode(data: bytes, size: int) -> torch.Tensor:
    """Decode a picture at a size, `3 x size x size` in [0, 1]."""
    with Image.open(io.BytesIO(data)) as picture:
        pixels = picture.convert("RGB").resize((size, size), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.asarray(pixels, dtype=np.float32) / 255).permute(2, 0, 1)


def main(
    images: Path,
    model: str = "reference",
    weights: Annotated[str | None, typer.Option()] = None,
    sizes: str = "64,96,128",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda.")] = "auto",
) -> None:
    """Print the accuracy at each size as JSON."""
    requested = [size.strip() for size in sizes.split(",")]
    if not all(size.isdigit() and int(size) >= 32 for size in requested):
        raise FeatmapError(f"sizes {sizes!r}: give numbers of pixels from 32, joined by commas, such as 64,96")
    network, where = load(model, weights), select_device(device)
    accuracy = {size: evaluate(network, images, int(size), where=where) for size in requested}
    print(json.dumps({"network": str(network), "accuracy": accuracy}, indent=1))


if __name__ == "__main__":
    run(main)
