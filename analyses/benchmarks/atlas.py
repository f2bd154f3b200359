"""Measure the size of an atlas and the time to its first picture, by the number of features.

    python -m analyses.benchmarks.atlas FOLDER 512:128 2048:224

Each run is synthetic: a network of one convolution replaces the layer, and random images and responses with groups of
features are stored in the run folder as a descent would store them. Seconds depend on the machine.
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from analyses.support.settings import resolved_recipe
from featmap.mapping import run as mapping
from featmap.mapping.view import View
from featmap.network.loading import load
from featmap.network.model import Network
from featmap.report.atlas import atlas
from featmap.runs import lifecycle
from featmap.runs.job import Job
from featmap.runs.store import Run
from featmap.stats import clustering

CHROMIUM = "/usr/bin/chromium"
ARGUMENTS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
)
GROUP = 32


def make_network(features: int) -> Network:
    """Make a network of one layer with a number of features."""
    torch.manual_seed(0)
    layer = nn.Conv2d(3, features, 3, stride=8)
    return load(nn.Sequential(layer).eval(), input_size=64)


def make_images(rng: np.random.Generator, rows: int, size: int) -> np.ndarray:
    """Draw images with a spectrum like that of maximising images.

    They have blotches, texture and some grain, `rows x 3 x size x size`.
    """
    images = np.full((rows, 3, size, size), 0.5)
    for side, share in ((8, 0.15), (4, 0.1), (2, 0.06), (1, 0.02)):
        coarse = rng.standard_normal((rows, 3, -(-size // side), -(-size // side)))
        images += share * coarse.repeat(side, 2).repeat(side, 3)[:, :, :size, :size]
    return images.clip(0, 1).astype(np.float32)


def make_responses(rng: np.random.Generator, features: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw A and the null responses.

    Features form groups of `GROUP` that excite each other.
    """
    group = np.arange(features) // GROUP
    null = rng.random(features).astype(np.float32)
    A = null + rng.gamma(2.0, 0.3, (features, features)) + 2.0 * (group[:, None] == group) * rng.random((features,) * 2)
    return (A + 4 * np.eye(features)).astype(np.float32), null


def write_planted_run(folder: Path, features: int, size: int, draws: int = 19) -> tuple[Run, Network]:
    """Write a finished similarity run with a number of features and an image size."""
    network = make_network(features)
    recipe = resolved_recipe(network, "pixels", size, 40)
    job = mapping.similarity_job("0", network, recipe)
    run, rng = lifecycle.open_run(job, folder), np.random.default_rng(0)
    A, null = make_responses(rng, features)
    _land_units(job, run, rng, A, null)
    real = clustering.find_clusters
    # the null distributions take minutes and are not measured here
    clustering.find_clusters = lambda A, null, live, settings, progress=None: real(
        A, null, live, replace(settings, runs=4, draws=draws), progress
    )
    try:
        mapping.carry_out(job, run, View())
    finally:
        clustering.find_clusters = real
    return run, network


def _land_units(job: Job, run: Run, rng: np.random.Generator, A: np.ndarray, null: np.ndarray) -> None:
    """Store the arrays of every work unit."""
    size, steps = job.recipe.size, job.recipe.steps
    whole = slice(None)
    for unit in job.work_units():
        rows = slice(unit.first, unit.last)
        if not unit.last:
            null_image = np.full((3, size, size), 0.5, dtype=np.float32)
            run.land(unit.name, {"null_images": ((0, whole, whole, whole), null_image), "null": ((0, whole), null)})
            continue
        reached = A.diagonal()[rows]
        curve = reached[:, None] * (1 - np.exp(-np.arange(1, steps + 1) / 10))
        arrays = {
            "images": ((0, rows, whole, whole, whole), make_images(rng, unit.last - unit.first, size)),
            "A": ((0, rows, whole), A[rows]),
            "activation": ((0, rows), reached),
            "null_activation": ((0, rows), null[rows]),
            "curve": ((0, rows, whole), curve.astype(np.float32)),
            "status": ((0, rows), np.zeros(len(reached), dtype=np.uint8)),
        }
        run.land(unit.name, arrays)


def time_first_picture(page: Path) -> float:
    """Measure the seconds from opening a page in Chromium to its heatmap."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=[*ARGUMENTS])
        tab = browser.new_context(offline=True, viewport={"width": 1280, "height": 900}).new_page()
        tab.goto(page.absolute().as_uri())
        while not tab.evaluate("performance.getEntriesByName('first-paint-of-map').length > 0 && FM.images !== null"):
            tab.wait_for_timeout(50)  # the content policy of the page forbids what wait_for_function needs
        start = tab.evaluate("performance.getEntriesByName('first-paint-of-map')[0].startTime")
        browser.close()
    return float(start) / 1000


def main(arguments: list[str]) -> None:
    """Print one line for each FEATURES:PIXELS."""
    folder = Path(arguments[0])
    for words in arguments[1:]:
        features, size = map(int, words.split(":"))
        run, network = write_planted_run(folder / f"planted-{features}-{size}", features, size)
        start = time.perf_counter()
        (page,) = atlas(run.folder, network=network)
        seconds = time.perf_counter() - start
        times = sorted(time_first_picture(page) for _ in range(3))
        print(
            f"{features} features of {size} pixels: {page.stat().st_size / 1e6:.1f} MB, written in {seconds:.0f} s; "
            f"first picture after {times[1]:.2f} s (median of three, {times[0]:.2f} to {times[2]:.2f})"
        )


if __name__ == "__main__":
    main(sys.argv[1:])
