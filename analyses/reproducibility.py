"""Measure whether the same seed gives the same bits, and whether one rounding gives another image.

    python -m analyses.reproducibility [--layers inception4a,inception5a]

Bits are compared between processes, between numbers of threads, and between requests for other units. Then every pixel
of the start is raised by one unit in the last place (and, separately, a single pixel), and the difference is followed
to the end.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import xarray as xr
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from analyses.formulas.divergence import GRAY_LEVEL, first_crossing, growth_factor, rms_distances
from analyses.formulas.likeness import profile_agreement
from analyses.support.findings import Finding, geometric_findings, interval, mean_finding, share_finding, value_finding
from analyses.support.inputs import initial_noise, smallest_size
from analyses.support.settings import library_keywords
from analyses.support.study import Context, Outcome, StoredResult, Study, Verdict
from analyses.support.study_command import run_study
from analyses.support.units import named_findings
from featmap import FeatmapError, Network, load, maximise, open_arrays
from featmap.plotting import style
from featmap.runs.device import use_threads
from featmap.runs.folder_layout import LIVE_CODES

RECIPE = "article-normalised"
STEPS, BITS_STEPS, EVERY, ALONE = 300, 60, 4, 8
SHADES = ("#0072b2", "#d62728", "#009e73", "#e69f00")

WORDS = {
    "process": "in another process",
    "alone": "when requested alone",
    "order": "among others in reverse order",
    "threads": "with another number of threads",
}
FEWEST = 8
"""Fewest images whose profiles are compared: those of two are mirror images, whatever they show."""

STUDY = Study(
    "reproducibility",
    section="Feature Visualization from First Principles",
    claim="With a fixed seed, a program gives the same image in every run on one machine, but not on Colab; rounding "
    "is suspected to be the cause.",
    measured="whether images have the same bits in another process, with another number of threads, alone and in "
    "another order; and how much images differ whose starts differ by one rounding in every pixel, compared with two "
    "seeds: recipe `article-normalised`, 300 steps at a small size",
    rule="the claim holds in part at most, since no other machine is measured; it does so if all images have the same "
    "bits on this machine in another process, alone, and among others in reverse order, and a drawn feature rose from "
    "every seed; it does not hold if any image has other bits in one of these; it is not decided if no feature rose. "
    "Images with another number of threads are reported, and do not count. Whether rounding suffices as a cause does "
    "not count either: it does if the interval of the mean final difference that one rounding of every pixel makes "
    "(over the features of all layers, averaged over seeds) is above one gray level, it does not become visible if "
    "that is below, and otherwise it is not shown to",
    full="at 299, 340 and 380 pixels",
)


@dataclass(frozen=True)
class BitComparison:
    """One comparison of bits.

    Parameters
    ----------
    name, words : str
        Name and description.
    same, count : int
        Number of images with the same bits, and of all images compared.
    largest : float
        Largest root mean square difference of an image.
    """

    name: str
    words: str
    same: int
    count: int
    largest: float


@dataclass(frozen=True)
class FeatureDivergence:
    """Divergence of one feature's images: root mean square differences.

    Parameters
    ----------
    unit, layer : str
        Feature and layer.
    raised : numpy.ndarray
        Difference after raising every pixel of the start, by frame, mean over seeds.
    pixel : float
        Final difference after raising one pixel, for the first seed; NaN where that was not tried.
    seeds : float
        Final difference to another seed's image.
    same, different : float
        Correlation of the profile of the raised start's image with the plain one's, and with other features'.
    grows : float, default NaN
        Factor per step by which the rounding grows, geometric mean over seeds.
    """

    unit: str
    layer: str
    raised: np.ndarray
    pixel: float
    seeds: float
    same: float
    different: float
    grows: float = float("nan")


def measure(context: Context) -> Outcome:
    """Compare bits, then follow one rounding."""
    settings: dict[str, Any] = {"recipe": RECIPE, "rows": max(2, min(16, context.features))}
    settings |= context.sized_changes
    if not context.full:
        settings |= {"size": context.size or smallest_size(context.network, context.layers, RECIPE), "steps": STEPS}
    comparisons = compare_bits(context, settings)
    divergences: list[FeatureDivergence] = []
    shown: list[tuple[str, np.ndarray]] = []
    steps = np.zeros(1)
    for layer in context.layers:
        context.log(f"one rounding, {layer}")
        measured, pictures, steps = follow_rounding(context, layer, settings)
        divergences += measured
        shown += pictures
    return build_outcome(context, steps, comparisons, divergences, shown)


# ---------------------------------------------------------------- bits


def compare_bits(context: Context, settings: dict[str, Any]) -> list[BitComparison]:
    """Compare the first layer's images with those of other processes and requests.

    They are made in another process, alone, in another order, and with another number of threads.
    """
    units = context.draw_units(context.layers[0])
    short = settings | ({} if context.full else {"steps": BITS_STEPS})
    here = torch.get_num_threads()
    other = 2 if here == 1 else 1
    context.log(f"bits of {len(units)} images of {context.layers[0]}")
    plain = context.maximise(units, "bits", threads_label(here), **short)
    chosen = [units[k] for k in np.unique(np.linspace(0, len(units) - 1, ALONE).round().astype(int))]
    alone = [context.maximise([unit], "alone", threads_label(here), **short) for unit in chosen]
    order = context.maximise(units[::-1][: max(1, len(units) - 1)], "order", threads_label(here), **short)
    again = maximise_in_process(context, units, here, short)
    with use_threads(other):
        threaded = context.maximise(units, "bits", threads_label(other), **short)
    return [
        compare_runs("process", "images with the same bits in another process", plain, again),
        compare_runs("alone", "images with the same bits when requested alone", plain, *alone),
        compare_runs("order", "images with the same bits among others, in reverse order", plain, order),
        compare_runs("threads", f"images with the same bits with {other} threads instead of {here}", plain, threaded),
    ]


def threads_label(count: int) -> str:
    """Name a folder by its number of threads, since images may depend on it."""
    return f"{count}-threads"


def maximise_in_process(context: Context, units: Sequence[str], count: int, settings: dict[str, Any]) -> xr.Dataset:
    """Make the same images in a process of its own.

    Raises
    ------
    FeatmapError
        If that process fails.
    """
    folder = context.folder("process", threads_label(count), units=list(units), **settings)
    named = context.network.arguments.get("model") is not None
    network = dict(context.network.arguments) if named else replace(context.network, _traces={})
    spawn = multiprocessing.get_context("spawn")
    process = spawn.Process(
        target=_maximise_again, args=(network, list(units), folder, count, context.device, settings)
    )
    process.start()
    process.join()
    if process.exitcode != 0:
        raise FeatmapError(f"study reproducibility: the second process ended with status {process.exitcode}; see above")
    return open_arrays(folder)


def _maximise_again(
    network: Network | dict[str, Any], units: list[str], folder: Path, count: int, device: str, settings: dict[str, Any]
) -> None:
    """Maximise units in this process, which was started for it."""
    torch.set_num_threads(count)
    loaded = load(**network) if isinstance(network, dict) else network
    maximise(units, loaded, **library_keywords(device=device, out=folder, **settings))


def compare_runs(name: str, words: str, plain: xr.Dataset, *others: xr.Dataset) -> BitComparison:
    """Compare the images that a run has in common with others."""
    row = {str(u): k for k, u in enumerate(plain["image"].values)}
    pairs = [
        (plain["images"].values[0, row[str(u)]], other["images"].values[0, k])
        for other in others
        for k, u in enumerate(other["image"].values)
    ]
    same = sum(a.tobytes() == b.tobytes() for a, b in pairs)
    return BitComparison(name, words, same, len(pairs), max(float(rms_distances(a, b)) for a, b in pairs))


# ---------------------------------------------------------------- one rounding


def follow_rounding(
    context: Context, layer: str, settings: dict[str, Any]
) -> tuple[list[FeatureDivergence], list[tuple[str, np.ndarray]], np.ndarray]:
    """Follow one rounding in the images of a layer's features.

    Returns their divergence, three images of the median feature to show, and the steps.
    """
    units, here = context.draw_units(layer), threads_label(torch.get_num_threads())
    followed = settings | {"frames": EVERY * (5 if context.full else 1), "responses": layer}
    begin = [initial_noise(context, settings, seed) for seed in range(max(2, context.seeds))]
    plain = [context.maximise(units, "plain", here, start=image, **followed) for image in begin]
    runs: list[tuple[xr.Dataset, xr.Dataset, xr.Dataset, xr.Dataset | None]] = []
    for seed in range(context.seeds):
        raised = context.maximise(units, "raised", here, start=raise_all(begin[seed]), **followed)
        alone = seed == 0 and layer == context.layers[0]
        pixel = context.maximise(units, "pixel", here, start=raise_one(begin[seed]), **settings) if alone else None
        runs.append((plain[seed], raised, plain[(seed + 1) % len(plain)], pixel))
    divergences = measure_divergence(layer, runs)
    images = [d["images"].values[0] for d in runs[0][:3]]
    names = [str(u) for u in runs[0][0]["image"].values]
    pictures = []
    if divergences:
        middle = sorted(divergences, key=lambda d: float(d.raised[-1]))[len(divergences) // 2]
        row = names.index(middle.unit)
        pictures = [(middle.unit, np.stack([i[row] for i in images]))]
    return divergences, pictures, runs[0][0]["frame"].values


def raise_all(image: np.ndarray) -> np.ndarray:
    """Raise every pixel of an image by one unit in the last place."""
    raised: np.ndarray = np.nextafter(image, np.float32(np.inf))
    return raised


def raise_one(image: np.ndarray) -> np.ndarray:
    """Raise the red of the middle pixel by one unit in the last place."""
    raised, middle = image.copy(), image.shape[1] // 2
    raised[0, middle, middle] = np.nextafter(image[0, middle, middle], np.float32(np.inf))
    return raised


def measure_divergence(
    layer: str, runs: Sequence[tuple[xr.Dataset, xr.Dataset, xr.Dataset, xr.Dataset | None]]
) -> list[FeatureDivergence]:
    """Measure how each feature's images diverge.

    Features that did not rise are left out.
    """
    risen = np.all([np.isin(p["status"].values[0], LIVE_CODES) for p, *_ in runs], axis=0)
    raised = [rms_distances(p["frames"].values[0], r["frames"].values[0]) for p, r, *_ in runs]
    gaps, steps = np.mean(raised, axis=0), runs[0][0]["frame"].values
    grows = np.exp(np.mean([[np.log(growth_factor(steps, gap)) for gap in table] for table in raised], axis=0))
    seeds = np.mean([final_difference(p, s) for p, _, s, _ in runs], axis=0)
    single = [final_difference(p, x) for p, *_, x in runs if x is not None]
    pixel = np.mean(single, axis=0) if single else np.full(len(risen), np.nan)
    alike = [profile_agreement(p["A"].values[0], r["A"].values[0], FEWEST) for p, r, *_ in runs]
    same, different = (np.mean([getattr(a, k) for a in alike], axis=0) for k in ("same", "different"))
    units = [str(u) for u in runs[0][0]["image"].values]
    return [
        FeatureDivergence(
            u, layer, gaps[k], float(pixel[k]), float(seeds[k]), float(same[k]), float(different[k]), grows[k]
        )
        for k, u in enumerate(units)
        if risen[k]
    ]


def final_difference(one: xr.Dataset, two: xr.Dataset) -> np.ndarray:
    """Compute the difference of two runs' finished images."""
    return rms_distances(one["images"].values[0], two["images"].values[0])


# ---------------------------------------------------------------- findings and verdict


def collect_findings(
    steps: np.ndarray, comparisons: Sequence[BitComparison], divergences: Sequence[FeatureDivergence]
) -> list[Finding]:
    """Collect the findings."""
    findings = [share_finding(c.name, c.same, c.count, c.words) for c in comparisons]
    for c in comparisons:
        if c.name == "threads" and c.same < c.count:
            words = "largest difference of an image with the other number of threads (pixels 0 to 1)"
            findings.append(value_finding("threads_gap", c.largest, c.count, words))
    for layer in dict.fromkeys(p.layer for p in divergences):
        these = [p for p in divergences if p.layer == layer]
        findings += [*difference_findings(layer, steps, these), *growth_findings(layer, steps, these)]
    single = single_pixel_differences(divergences)
    if len(single):
        words = "share of images that differ in the end after one rounding in a single pixel"
        findings.append(share_finding("pixel", int((single > 0).sum()), len(single), words))
    return findings


def single_pixel_differences(divergences: Sequence[FeatureDivergence]) -> np.ndarray:
    """List the final differences after raising a single pixel, where that was tried."""
    tried = np.array([p.pixel for p in divergences], dtype=float)
    return tried[np.isfinite(tried)]


def difference_findings(layer: str, steps: np.ndarray, these: Sequence[FeatureDivergence]) -> list[Finding]:
    """Summarise how much one layer's images differ in the end."""
    gaps, seeds = np.array([p.raised[-1] for p in these]), np.array([p.seeds for p in these])
    share = gaps / np.where(seeds > 0, seeds, np.nan)
    findings = []
    for name, values, words in (
        ("gap", gaps, f"difference (pixels 0 to 1) after {steps[-1]} steps by one rounding"),
        ("seeds", seeds, "difference (pixels 0 to 1) of two seeds"),
        ("share", share, "the first divided by the second"),
        ("same", [p.same for p in these], "correlation of response profiles, one rounding apart"),
        ("different", [p.different for p in these], "correlation of response profiles, different features"),
    ):
        if np.isfinite(values).any():
            findings.append(mean_finding(f"{name}:{layer}", values, f"{layer}: {words}"))
    return findings


def growth_findings(layer: str, steps: np.ndarray, these: Sequence[FeatureDivergence]) -> list[Finding]:
    """Summarise how fast one rounding grows, and when it becomes visible."""
    words = f"{layer}: factor per step by which one rounding grows, lower bound (a frame every {steps[1]} steps)"
    findings = geometric_findings(f"growth:{layer}", [p.grows for p in these], words)
    passed = np.array([first_crossing(steps, p.raised, GRAY_LEVEL) for p in these])
    seen = np.isfinite(passed)
    if seen.any():
        words = f"{layer}: step at which images differ by a gray level, of those that do"
        findings.append(mean_finding(f"passed:{layer}", np.where(seen, passed, np.nan), words))
    words = f"{layer}: share of images that come to differ by a gray level"
    return [*findings, share_finding(f"visible:{layer}", int(seen.sum()), len(these), words)]


def judge(comparisons: Sequence[BitComparison], divergences: Sequence[FeatureDivergence]) -> Verdict:
    """Judge the claim.

    It does not hold if images on this machine have other bits in another process, alone or in another order. If they
    repeat it holds in part: that half of the claim is measured, another machine is not. Whether rounding suffices as a
    cause is `rounding_effect`.
    """
    if not all(c.same == c.count for c in comparisons if c.name != "threads"):
        return "does not hold"
    return "holds in part" if np.isfinite([p.raised[-1] for p in divergences]).any() else "not decided"


def rounding_effect(divergences: Sequence[FeatureDivergence]) -> str:
    """Describe the effect of one rounding of the start on the finished image.

    It is compared with one gray level.
    """
    _, low, high = interval([p.raised[-1] for p in divergences])
    if low > GRAY_LEVEL:
        return "is enough to change the image visibly"
    return "does not become visible" if high < GRAY_LEVEL else "is not shown to become visible"


def build_outcome(
    context: Context,
    steps: np.ndarray,
    comparisons: Sequence[BitComparison],
    divergences: Sequence[FeatureDivergence],
    shown: Sequence[tuple[str, np.ndarray]],
) -> Outcome:
    """Build rows, findings, verdict, conclusion and figure."""
    rows = [("bits", context.layers[0], c.name, "", c.same / c.count, c.count) for c in comparisons]
    rows += [
        ("one rounding", p.layer, p.unit, step, v, 1)
        for p in divergences
        for step, v in zip(steps, p.raised, strict=True)
    ]
    for name in ("pixel", "seeds", "same", "different"):
        rows += [(name, p.layer, p.unit, steps[-1], getattr(p, name), 1) for p in divergences]
    verdict = judge(comparisons, divergences)
    findings = collect_findings(steps, comparisons, divergences)
    ends = {p.unit: [p.raised[-1]] for p in divergences}
    findings += named_findings(context, "gap", ends, f"difference (pixels 0 to 1) after {steps[-1]} steps")
    text = write_conclusion(comparisons, divergences, steps)
    table = pd.DataFrame(rows, columns=["part", "layer", "case", "step", "value", "count"])
    return Outcome(
        table,
        findings,
        verdict,
        text,
        {"": draw_figure(steps, divergences, shown)},
    )


def write_conclusion(
    comparisons: Sequence[BitComparison], divergences: Sequence[FeatureDivergence], steps: np.ndarray
) -> str:
    """Write the conclusion."""
    text = "Images on this machine had the same bits: " + ", ".join(
        f"{c.same} of {c.count} {WORDS[c.name]}" for c in comparisons
    )
    gaps = np.array([p.raised[-1] for p in divergences], dtype=float)
    if np.isfinite(gaps).any():
        mean, low, high = interval(gaps)
        text += (
            f". Raising every pixel of the start by one rounding, the smallest step of a 32-bit number, changed the "
            f"image after {steps[-1]} steps by {mean:.2g} [{low:.2g}, {high:.2g}] (n = {len(gaps)}; root mean square, "
            f"pixels 0 to 1; two seeds: {np.nanmean([p.seeds for p in divergences]):.2g}). It "
            f"{rounding_effect(divergences)}"
        )
    single = single_pixel_differences(divergences)
    if len(single):
        text += f". Raising a single pixel so changed {(single > 0).sum()} of {len(single)} images"
    threads = next((c for c in comparisons if c.name == "threads"), None)
    if threads is not None and threads.same < threads.count:
        other = threads.count - threads.same
        text += f". {other} of {threads.count} images changed with the number of threads, which does not count here"
    return text + ". Another machine, such as the claim's Colab, was not measured."


def restate(stored: StoredResult) -> tuple[Verdict, str]:
    """Write verdict and conclusion from the stored result."""
    rows = stored.rows
    comparisons = [
        BitComparison(str(r["case"]), "", round(r["value"] * r["count"]), int(r["count"]), np.nan)
        for r in rows[rows["part"] == "bits"].to_dict("records")
    ]
    divergences, steps = [], np.sort(rows.loc[rows["part"] == "one rounding", "step"].unique().astype(int))
    for (layer, unit), own in rows[rows["part"] != "bits"].groupby(["layer", "case"], sort=False):
        by = {str(part): one.sort_values("step")["value"].to_numpy() for part, one in own.groupby("part")}
        ends = {name: float(by[name][-1]) for name in ("pixel", "seeds", "same", "different")}
        divergences.append(FeatureDivergence(str(unit), str(layer), by["one rounding"], **ends))
    return judge(comparisons, divergences), write_conclusion(comparisons, divergences, steps)


@style.house_style
def draw_figure(
    steps: np.ndarray, divergences: Sequence[FeatureDivergence], shown: Sequence[tuple[str, np.ndarray]]
) -> Figure:
    """Draw the growth of the difference, and images of each layer's median feature."""
    figure = plt.figure(figsize=(9, 4.6), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1.25, 1))
    axes = left.subplots()
    for k, layer in enumerate(dict.fromkeys(p.layer for p in divergences)):
        lines = np.array([p.raised for p in divergences if p.layer == layer])
        lines = np.where(lines > 0, lines, np.nan)
        for m, line in enumerate(lines):
            label = f"{layer}: one rounding" if m == 0 else None
            axes.plot(steps, line, color=SHADES[k % len(SHADES)], lw=1, alpha=0.7, label=label)
        ends = [p.seeds for p in divergences if p.layer == layer]
        axes.plot(
            [steps[-1] * 1.03] * len(ends), ends, "_", color=SHADES[k % len(SHADES)], ms=9, label=f"{layer}: two seeds"
        )
    axes.axhline(GRAY_LEVEL, color="#222222", lw=0.8, ls=":", label="one gray level, 1/255")
    axes.set(yscale="log", xlabel="step", ylabel="root mean square difference (pixels 0 to 1)")
    axes.set_xlim(0, 1.06 * max(1, steps[-1]))
    axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=2, frameon=False)
    axes.set_title("images that start one rounding apart", fontsize=10)
    cells = right.subplots(max(1, len(shown)), 3, squeeze=False)
    for row, panes in enumerate(cells):
        for column, pane in enumerate(panes):
            pane.set_axis_off()
            if row < len(shown):
                unit, images = shown[row]
                pane.imshow(style.thumbnail(images[column], 256), interpolation="nearest")
                title = ("start as it is", "one rounding up", "another seed")[column]
                pane.set_title(f"{unit}\n{title}" if column == 0 else title, fontsize=8)
    return figure


if __name__ == "__main__":
    run_study(STUDY, measure)
