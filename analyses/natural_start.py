"""Measure what descents from a photograph reach, and how fast they depart from it.

    python -m analyses.natural_start --image PHOTOGRAPH [--layers inception4a,inception5a]

Without `--image` an image with the spectrum of natural images replaces the photograph: the project brings no
photographs of its own. Where a stored figure shows one, it is the portrait of Grace Hopper by the US Navy (public
domain) that matplotlib brings as `sample_data/grace_hopper.jpg`. Each feature is maximised from it and from noise; so
are all drawn features of a layer as one sum, and the whole layer. A profile is the responses of all features of the
layer, each divided by its standard deviation over 1/f images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch
import xarray as xr
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from analyses.formulas.divergence import profile_correlation
from analyses.support.findings import Finding, interval, mean_finding, value_finding
from analyses.support.half_life import (
    MIN_FEATURES,
    Departure,
    count_early,
    finite_or_nan,
    half_life_findings,
    half_life_sentence,
    lead_over_blur,
    mean_defined,
)
from analyses.support.inputs import REFERENCE_IMAGES, reference_statistics
from analyses.support.settings import resolved_recipe
from analyses.support.study import Context, Outcome, StoredResult, Study, Verdict
from analyses.support.study_command import run_study
from analyses.support.units import named_findings
from analyses.support.wording import plural
from featmap import image_ops, probe
from featmap.optimize.parameterization import null_frames
from featmap.optimize.photographs import read_photograph
from featmap.optimize.recipe import Recipe
from featmap.plotting import style
from featmap.plotting.style import encode_webp, printable_line, thumbnail
from featmap.runs.engine import Execution
from featmap.runs.folder_layout import LIVE_CODES

ENOUGH = 0.8
"""Least share of the activation from noise that a descent from another start has to reach."""
PHOTO, NOISE, TOGETHER, BLUR = "#d62728", "#0072b2", "#222222", "#009e73"

STUDY = Study(
    "natural_start",
    section="Layer and Neuron Interactions",
    claim="The descent can start from a natural image instead of noise, also for many features at once; the article "
    "only says that its part II shows this.",
    measured="activation that drawn features reach from a natural image divided by what they reach from noise; "
    "correlation of the response profile at every step with that of the starting image and with that of the "
    "noise-started image of the same feature; the half-life of the first; the same for all drawn features as one sum "
    "and for the whole layer. One image is tested: the photograph that `--image` names; without it a 1/f image, "
    "which is no photograph",
    rule="the claim holds if from a photograph the drawn features (lower end of the interval of the mean) and every "
    f"sum and whole layer that rose from noise reach {ENOUGH} of what they reach from noise; it holds in part if only "
    "one of these is true, and does not hold if neither is. Without a photograph it holds in part at most, and is not "
    "decided where neither is true; nor is it where no drawn feature rose from noise. A half-life within the first "
    "step is an upper bound: such features are counted, and the profile departs faster than under the recipe's blur "
    "alone only if the interval of the paired differences is above 0, a half-life within the first step counted as one "
    "step, and one that is never reached as the last step. Where half-lives are never reached under blur alone only, "
    "and none of blur alone is within the first step, the difference is at least the one given; where they are never "
    "reached in the descent only, and none of the descent is within the first step, it is at most the one given. The "
    "verdict is of the one image that was tested",
    full="`article-normalised`: octaves of 299, 340 and 380 pixels, 300 steps",
    takes_image=True,
)


def measure(context: Context) -> Outcome:
    """Maximise features from the photograph and from noise, one by one and together."""
    settings: dict[str, Any] = {"recipe": "article-normalised" if context.full else "pixels"} | context.sized_changes
    recipe = resolved_recipe(context.network, **settings)
    photograph = starting_image(context, recipe.sizes[0])
    single, together, pictures = [], [], []
    for layer in context.layers:
        units = context.draw_units(layer)
        context.log(f"features of {layer}")
        photo, noise = maximise_both(context, layer, units, photograph, settings, "features")
        scale = reference_statistics(context, [layer], recipe.size)
        still = blur_responses(context, layer, recipe, photograph, frame_interval(context))
        single += measure_departure(layer, photo, noise, scale, still)
        pictures.append(
            (layer, photo["images"].values[0], noise["images"].values[0], [str(u) for u in photo["image"].values])
        )
        context.log(f"all features of {layer} at once")
        sums = [" + ".join(units), f"{layer}:all"] if len(units) > 1 else [f"{layer}:all"]
        joint = maximise_both(context, layer, sums, photograph, settings | {"gradients": "together"}, "at-once")
        together += measure_departure(layer, *joint, scale, still)
    return build_outcome(context, photograph, single, together, pictures)


def frame_interval(context: Context) -> int:
    """Choose the number of steps between two frames."""
    return 5 if context.full else 1


def blur_responses(context: Context, layer: str, recipe: Recipe, photograph: np.ndarray, between: int) -> np.ndarray:
    """Measure the layer's responses under the recipe's blur alone.

    `frames x features`.
    """
    frames = null_frames(recipe, 0, torch.from_numpy(photograph), between)
    sizes = sorted({f.shape[-1] for f in frames}, key=[f.shape[-1] for f in frames].index)
    groups = [torch.stack([f for f in frames if f.shape[-1] == size]) for size in sizes]
    return np.concatenate(
        [probe(g, layer, context.network, execution=Execution(context.device)).values for g in groups]
    )


def starting_image(context: Context, size: int) -> np.ndarray:
    """Read the photograph, `3 x H x H` in [0, 1], or make a 1/f image instead.

    The 1/f image is not among those that responses are standardised with.
    """
    if context.image is not None:
        photograph: np.ndarray = read_photograph(context.image, size).numpy()
        return photograph
    context.log("no --image: starting from an image with a 1/f spectrum instead of a photograph")
    pink: np.ndarray = image_ops.pink_noise(REFERENCE_IMAGES + 1, size)[REFERENCE_IMAGES].clamp(0, 1).numpy()
    return pink


def maximise_both(
    context: Context, layer: str, units: Sequence[str], photograph: np.ndarray, settings: dict[str, Any], part: str
) -> tuple[xr.Dataset, xr.Dataset]:
    """Maximise units from the photograph, with frames, and from noise."""
    followed = settings | {"frames": frame_interval(context), "responses": layer}
    photo = context.maximise(units, part, layer, "photo", start=photograph, **followed)
    noise = context.maximise(units, part, layer, "noise", seeds=context.seeds, responses=layer, **settings)
    return photo, noise


def measure_departure(
    layer: str, photo: xr.Dataset, noise: xr.Dataset, scale: tuple[np.ndarray, np.ndarray], still: np.ndarray
) -> list[Departure]:
    """Measure how each unit departs from the photograph.

    Units that did not rise from noise are left out. `still` holds the responses under blur alone, `frames x features`.
    """
    mean, deviation = scale
    frames = (photo["frame_A"].values[0].astype(np.float64) - mean) / deviation
    ends = (noise["A"].values.astype(np.float64) - mean) / deviation
    start = profile_correlation(frames, frames[:, :1])
    target = profile_correlation(frames, ends[:, :, None])  # seed x unit x frame
    risen = np.isin(noise["status"].values, LIVE_CODES).all(0)
    under_blur = (np.asarray(still, dtype=np.float64) - mean) / deviation
    alone = profile_correlation(under_blur, under_blur[:1])
    names = [str(u) for u in photo["image"].values]
    departures = []
    for k, name in enumerate(names):
        if not risen[k]:
            continue
        others = [m for m in range(len(names)) if m != k and risen[m]]
        pairs = [(a, b) for a in range(len(ends)) for b in range(a)]
        null = noise["null_activation"].values[:, k].mean()
        rise = noise["activation"].values[:, k].mean() - null
        departures.append(
            Departure(
                name,
                layer,
                photo["frame"].values,
                start[k],
                target[:, k].mean(0),
                float(profile_correlation(ends[:, k], frames[k, 0]).mean()),
                mean_defined(profile_correlation(frames[k, -1], ends[:, others])),
                mean_defined(np.array([profile_correlation(ends[a, k], ends[b, k]) for a, b in pairs])),
                alone,
                float((photo["activation"].values[0, k] - null) / rise) if rise > 0 else float("nan"),
            )
        )
    return departures


def collect_findings(single: Sequence[Departure], together: Sequence[Departure], photograph: bool) -> list[Finding]:
    """Collect the findings.

    A half-life that was never reached is left out and counted.
    """
    findings, start = [], start_name(photograph)
    for layer in dict.fromkeys(r.layer for r in single):
        these = [r for r in single if r.layer == layer]
        for name, values, words in (
            ("reached", [r.reached for r in these], f"activation reached from {start} divided by that from noise"),
            (
                "own",
                [r.with_start[-1] for r in these],
                "final correlation of the profile with that of the starting image",
            ),
            ("floor", [r.floor for r in these], "the same for noise-started images"),
            (
                "aim",
                [r.with_target[-1] for r in these],
                "final correlation with the noise-started image of the same feature",
            ),
            ("other", [r.other for r in these], "final correlation with noise-started images of other features"),
            ("seeds", [r.seeds for r in these], "correlation of two noise-started images of the same feature"),
        ):
            if np.isfinite(values).any():
                findings.append(mean_finding(f"{name}:{layer}", values, f"{layer}: {words}"))
        findings += [qualify(finding, layer, these) for finding in half_life_findings(layer, these)]
        if np.isfinite(these[0].blurred[-1]):
            words = f"{layer}: correlation of the starting image's profile with that at the end of the blur"
            findings.append(value_finding(f"blurred:{layer}", float(these[0].blurred[-1]), 1, words))
    for r in together:
        if np.isfinite(r.half):
            words = f"{r.layer}: half-life with {group_name(r.unit)} at once{' (at most)' if count_early([r]) else ''}"
            findings.append(value_finding(f"half:{group_key(r.unit)}:{r.layer}", r.half, 1, words, unit="steps"))
        if np.isfinite(r.reached):
            words = f"{r.layer}: activation of {group_name(r.unit)} at once, from {start} divided by that from noise"
            findings.append(value_finding(f"reached:{group_key(r.unit)}:{r.layer}", r.reached, 1, words))
    return findings


def count_reached(departures: Sequence[Departure], which: str) -> tuple[int, int]:
    """Count the half-lives that end within the descent, and all that are defined.

    `which`: "half" or "half_blurred".
    """
    values = np.array([getattr(d, which) for d in departures], dtype=float)
    return int(np.isfinite(values).sum()), int((~np.isnan(values)).sum())


def lead_bound(departures: Sequence[Departure]) -> str | None:
    """Say in which direction the computed lead over blur alone bounds the true one.

    A half-life that is never reached counts as the last step, and the true one is longer; one within the first step
    counts as one step, and the true one is shorter. "at least" where the true lead can only be longer, "at most" where
    it can only be shorter, "neither" where it can be both, and None where every half-life is reached.
    """
    (within, count), (left, defined) = count_reached(departures, "half_blurred"), count_reached(departures, "half")
    if within == count and left == defined:
        return None
    if left == defined and not count_early(departures, "half_blurred"):
        return "at least"
    if within == count and not count_early(departures, "half"):
        return "at most"
    return "neither"


def qualify(finding: Finding, layer: str, departures: Sequence[Departure]) -> Finding:
    """Say in a finding's words in how many features half-lives are never reached."""
    bound = lead_bound(departures)
    if bound is None:
        return finding
    (within, count), (left, defined) = count_reached(departures, "half_blurred"), count_reached(departures, "half")
    never = [f"under blur alone in {count - within} of {plural(count, 'feature')}"] * (within < count)
    never += [f"in the descent in {defined - left} of {plural(defined, 'feature')}"] * (left < defined)
    words = {
        f"sooner:{layer}": f"; never reached, and counted as the last step, {' and '.join(never)}"
        + (f": the difference is {bound} this" if bound != "neither" else "")
    }
    if within < count:
        words[f"half_blurred:{layer}"] = f"; mean of the {within} of {plural(count, 'feature')} in which it is reached"
    return replace(finding, words=finding.words + words.get(finding.name, ""))


def lead_sentence(departures: Sequence[Departure]) -> str:
    """Say whether the lead over blur alone is a lower or an upper bound.

    Empty where no half-life is cut at the last step, and where the lead has no interval.
    """
    defined = [d for d in departures if not np.isnan(d.half)]
    bound = lead_bound(defined)
    if bound is None or np.isfinite(lead_over_blur(defined)).sum() < MIN_FEATURES:
        return ""
    (within, count), (left, all_left) = count_reached(defined, "half_blurred"), count_reached(defined, "half")
    reached = f"the half-life is within the {int(defined[0].steps[-1])} steps in"
    if bound == "at least":
        return f". The difference is at least this: under blur alone {reached} only {within} of {count} features"
    if bound == "at most":
        return f". The difference is at most this: in the descent {reached} only {left} of {all_left} features"
    return (
        f". The difference is neither an upper nor a lower bound: {reached} {within} of {count} features under blur "
        f"alone, and in {left} of {all_left} in the descent"
    )


def start_name(photograph: bool) -> str:
    """Name the start of the descents."""
    return "the photograph" if photograph else "a 1/f image"


def group_key(unit: str) -> str:
    """Choose the key of several units maximised at once: "sum" or "layer"."""
    return "sum" if " + " in unit else "layer"


def group_name(unit: str) -> str:
    """Name a group of units maximised at once."""
    return f"{unit.count(' + ') + 1} drawn features" if " + " in unit else "the whole layer"


def judge(single: Sequence[Departure], together: Sequence[Departure], photograph: bool) -> Verdict:
    """Judge the claim.

    It holds where drawn features reach `ENOUGH` of what they reach from noise (lower end of the interval), and so does
    every sum of them and whole layer; in part where one of the two does; otherwise not. Without a photograph it holds
    in part at most (a start other than noise works), and a failure decides nothing.
    """
    alone, joint = (np.array([r.reached for r in rs], dtype=float) for rs in (single, together))
    if not np.isfinite(alone).any():
        return "not decided"
    each = interval(alone)[1] >= ENOUGH
    all_at_once = bool(np.isfinite(joint).any()) and bool((joint[np.isfinite(joint)] >= ENOUGH).all())
    if not each and not all_at_once:
        return "does not hold" if photograph else "not decided"
    return "holds" if each and all_at_once and photograph else "holds in part"


def build_outcome(
    context: Context,
    photograph: np.ndarray,
    single: Sequence[Departure],
    together: Sequence[Departure],
    pictures: Sequence[tuple[str, np.ndarray, np.ndarray, list[str]]],
) -> Outcome:
    """Build rows, findings, verdict, conclusion and figure."""
    rows = [
        (r.layer, r.unit if r in single else group_name(r.unit), what, step, v)
        for r in (*single, *together)
        for what, values in (("own", r.with_start), ("aim", r.with_target))
        for step, v in zip(r.steps, values, strict=True)
    ]
    for r in (*single, *together):
        name, end = (r.unit if r in single else group_name(r.unit)), r.steps[-1]
        rows += [(r.layer, name, w, end, getattr(r, w)) for w in ("floor", "other", "seeds", "reached")]
    first = {r.layer: r for r in (*together, *single)}
    rows += [
        (la, "blur alone", "own", step, v)
        for la, r in first.items()
        for step, v in zip(r.steps, r.blurred, strict=True)
    ]
    findings = collect_findings(single, together, context.image is not None)
    words = f"activation reached from {start_name(context.image is not None)} divided by that from noise"
    findings += named_findings(context, "reached", {r.unit: [r.reached] for r in single}, words)
    verdict = judge(single, together, context.image is not None)
    text = write_conclusion(single, together, context.image is not None)
    table = pd.DataFrame(rows, columns=["layer", "unit", "part", "step", "value"])
    figure = draw_figure(photograph, single, together, pictures)  # WebP: a fifth of the bytes of a PNG
    return Outcome(table, findings, verdict, text, {".webp": encode_webp(figure, dpi=100)})


def write_conclusion(single: Sequence[Departure], together: Sequence[Departure], photograph: bool) -> str:
    """Write the conclusion."""
    reached = np.array([r.reached for r in single], dtype=float)
    if not np.isfinite(reached).any():
        return "0 features rose from noise."
    mean, low, high = interval(reached)
    start = start_name(photograph) + ("" if photograph else " (no photograph was tested)")
    count = int(np.isfinite(reached).sum())
    text = f"From {start} {plural(count, 'feature')} {'reaches' if count == 1 else 'reach'} {mean:.2f} [{low:.2f}, "
    text += f"{high:.2f}] of what {'it reaches' if count == 1 else 'they reach'} from noise"
    joint = finite_or_nan([r.reached for r in together])
    if np.isfinite(joint).any():
        text += f". Sums of them and whole layers reach {np.nanmin(joint):.2f} or more"
    text += half_life_sentence(single) + lead_sentence(single)
    only = f"All this is of one {'photograph' if photograph else 'image'}"
    return f"{text}. {only}; the article shows nothing of it here, and only points to its part II."


def restate(stored: StoredResult) -> tuple[Verdict, str]:
    """Write verdict and conclusion from the stored result."""
    rows, photograph = stored.rows, "image" in stored.settings
    blurred = rows[rows["unit"] == "blur alone"]
    single, together = [], []
    for (layer, unit), own in rows[rows["unit"] != "blur alone"].groupby(["layer", "unit"], sort=False):
        by = {str(part): one.sort_values("step") for part, one in own.groupby("part")}
        ends = {name: float(by[name]["value"].iloc[-1]) for name in ("floor", "other", "seeds", "reached")}
        curves = (by["own"]["value"].to_numpy(), by["aim"]["value"].to_numpy())
        alone = blurred[blurred["layer"] == layer].sort_values("step")["value"].to_numpy()
        one = Departure(str(unit), str(layer), by["own"]["step"].to_numpy(), *curves, blurred=alone, **ends)
        (single if ":" in str(unit) else together).append(one)
    return judge(single, together, photograph), write_conclusion(single, together, photograph)


@style.house_style
def draw_figure(
    photograph: np.ndarray,
    single: Sequence[Departure],
    together: Sequence[Departure],
    pictures: Sequence[tuple[str, np.ndarray, np.ndarray, list[str]]],
) -> Figure:
    """Draw the correlations over the steps, and images from both starts."""
    figure = plt.figure(figsize=(9, 3.8 + 1.9 * len(pictures)), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=(3.8, 1.9 * len(pictures)))
    panes = top.subplots(1, len(pictures), squeeze=False, sharey=True)[0]
    for axes, (layer, *_) in zip(panes, pictures, strict=True):
        draw_curves(axes, layer, [r for r in single if r.layer == layer], [r for r in together if r.layer == layer])
    panes[0].set_ylabel("correlation of profiles")
    shown = {label: line for pane in panes for line, label in zip(*pane.get_legend_handles_labels(), strict=True)}
    if shown:
        top.legend(shown.values(), shown, loc="outside lower center", ncols=3, fontsize=7.5, frameon=False)
    cells = bottom.subplots(2 * len(pictures), 7, squeeze=False)
    for pane in cells.flat:
        pane.set_axis_off()
    for k, (_, photo, noise, names) in enumerate(pictures):
        cells[2 * k][0].imshow(thumbnail(photograph, 128), interpolation="nearest")
        cells[2 * k][0].set_title("start", fontsize=8)
        cells[2 * k + 1][0].text(0.5, 0.5, "from noise", ha="center", va="center", fontsize=8)
        for m, name in enumerate(names[:6]):
            cells[2 * k][m + 1].imshow(thumbnail(photo[m], 128), interpolation="nearest")
            cells[2 * k][m + 1].set_title(printable_line(name), fontsize=8)
            cells[2 * k + 1][m + 1].imshow(thumbnail(noise[m], 128), interpolation="nearest")
    return figure


def draw_curves(axes: plt.Axes, layer: str, single: Sequence[Departure], together: Sequence[Departure]) -> None:
    """Draw one thin line for each feature, their mean, and groups dashed."""
    steps = next((r.steps for r in (*single, *together)), np.zeros(1))
    for name, shade, words in (
        ("with_start", PHOTO, "with the start"),
        ("with_target", NOISE, "with the noise-started image"),
    ):
        lines = np.array([getattr(r, name) for r in single], dtype=float)
        for line in lines:
            axes.plot(steps, line, color=shade, lw=0.5, alpha=0.35)
        whole = [line for line in lines if np.isfinite(line).all()]
        if whole:
            axes.plot(steps, np.mean(whole, axis=0), color=shade, lw=2.2, label=words)
    for r, line_style in zip(together, ("--", ":"), strict=False):
        axes.plot(
            r.steps,
            r.with_start,
            color=TOGETHER,
            lw=1.2,
            ls=line_style,
            label=f"with the start, {group_name(r.unit)} at once",
        )
    for r in single[:1]:
        axes.plot(r.steps, r.blurred, color=BLUR, lw=1.6, ls="-.", label="with the start, blur alone")
    floors = [r.floor for r in single if np.isfinite(r.floor)]
    if floors:
        axes.axhline(float(np.mean(floors)), color=PHOTO, lw=0.8, ls=":", label="noise-started with the start")
    axes.set(xlabel="step", xlim=(0, max(1, steps[-1])))
    axes.set_title(printable_line(layer), fontsize=10)


if __name__ == "__main__":
    run_study(STUDY, measure)
