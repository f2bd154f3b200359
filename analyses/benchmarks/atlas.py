"""How large an atlas is, and how long a browser takes to its first picture, by the number of features.

    python -m analyses.benchmarks.atlas FOLDER 512:128 2048:224

Each run is planted: a network of one convolution stands for the layer, images and responses are drawn at random
with groups in them and land in the run folder through the store, as a descent's would. Seconds are those of this
machine and belong beside its name.
"""

from __future__ import annotations

import sys
import time
from functools import partial
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


def network(features: int) -> Network:
    """Return a network of one layer, `features`, of so many features."""
    torch.manual_seed(0)
    layer = nn.Conv2d(3, features, 3, stride=8)
    return load(nn.Sequential(layer).eval(), input_size=64)


def image(rng: np.random.Generator, rows: int, size: int) -> np.ndarray:
    """Return images with the spectrum of maximising ones: blotches, texture and some grain; rows x 3 x size x size."""
    found = np.full((rows, 3, size, size), 0.5)
    for side, share in ((8, 0.15), (4, 0.1), (2, 0.06), (1, 0.02)):
        coarse = rng.standard_normal((rows, 3, -(-size // side), -(-size // side)))
        found += share * coarse.repeat(side, 2).repeat(side, 3)[:, :, :size, :size]
    return found.clip(0, 1).astype(np.float32)


def responses(rng: np.random.Generator, features: int) -> tuple[np.ndarray, np.ndarray]:
    """Return A and the null responses of groups of `GROUP` features that excite one another."""
    group = np.arange(features) // GROUP
    null = rng.random(features).astype(np.float32)
    A = null + rng.gamma(2.0, 0.3, (features, features)) + 2.0 * (group[:, None] == group) * rng.random((features,) * 2)
    return (A + 4 * np.eye(features)).astype(np.float32), null


def planted(folder: Path, features: int, size: int, draws: int = 19) -> tuple[Run, Network]:
    """Write a finished similarity run of so many features with images of so many pixels."""
    made = network(features)
    recipe = resolved_recipe(made, "fast", size, 40)
    job = mapping.similarity_job("0", made, recipe)
    run, rng = lifecycle.open_run(job, folder), np.random.default_rng(0)
    A, null = responses(rng, features)
    _land(job, run, rng, A, null)
    real = clustering.find_clusters
    clustering.find_clusters = partial(real, runs=4, draws=draws)  # the nulls take minutes and are not what is measured
    try:
        mapping.carry_out(job, run, View())
    finally:
        clustering.find_clusters = real
    return run, made


def _land(job: Job, run: Run, rng: np.random.Generator, A: np.ndarray, null: np.ndarray) -> None:
    size, steps = job.recipe.size, job.recipe.steps
    whole = slice(None)
    for unit in job.work_units():
        rows = slice(unit.first, unit.last)
        if not unit.last:
            image_of_none = np.full((3, size, size), 0.5, dtype=np.float32)
            run.land(unit.name, {"null_images": ((0, whole, whole, whole), image_of_none), "null": ((0, whole), null)})
            continue
        reached = A.diagonal()[rows]
        curve = reached[:, None] * (1 - np.exp(-np.arange(1, steps + 1) / 10))
        pieces = {
            "images": ((0, rows, whole, whole, whole), image(rng, unit.last - unit.first, size)),
            "A": ((0, rows, whole), A[rows]),
            "activation": ((0, rows), reached),
            "null_activation": ((0, rows), null[rows]),
            "curve": ((0, rows, whole), curve.astype(np.float32)),
            "status": ((0, rows), np.zeros(len(reached), dtype=np.uint8)),
        }
        run.land(unit.name, pieces)


def first_picture(page: Path) -> float:
    """Return the seconds from opening a page in Chromium to its heatmap being there."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=[*ARGUMENTS])
        tab = browser.new_context(offline=True, viewport={"width": 1280, "height": 900}).new_page()
        tab.goto(page.absolute().as_uri())
        while not tab.evaluate("performance.getEntriesByName('first-picture').length > 0 && FM.images !== null"):
            tab.wait_for_timeout(50)  # the page's policy forbids the evaluation that Playwright's own waiting needs
        found = tab.evaluate("performance.getEntriesByName('first-picture')[0].startTime")
        browser.close()
    return float(found) / 1000


def main(arguments: list[str]) -> None:
    """Print a line for each FEATURES:PIXELS."""
    folder = Path(arguments[0])
    for words in arguments[1:]:
        features, size = map(int, words.split(":"))
        run, made = planted(folder / f"planted-{features}-{size}", features, size)
        begun = time.perf_counter()
        (page,) = atlas(run.folder, network=made)
        seconds = time.perf_counter() - begun
        times = sorted(first_picture(page) for _ in range(3))
        print(
            f"{features} features of {size} pixels: {page.stat().st_size / 1e6:.1f} MB, made in {seconds:.0f} s; "
            f"first picture after {times[1]:.2f} s (of three, {times[0]:.2f} to {times[2]:.2f})"
        )


if __name__ == "__main__":
    main(sys.argv[1:])
