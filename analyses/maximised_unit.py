"""Where does a maximised neuron change the image, how far does the change reach, and is it one pattern?

    python -m analyses.maximised_unit

Neurons ``layer:f:m:n`` are maximised in linear steps (the recipe `interact`), so that an image less its null image is
the sum of the neuron's gradients: at eight places of the grid, drawn for each channel, and in the middle of it from
several starts. As many features are drawn of each branch of a module, and images are so large that they hold the fields
of the neurons in their middle, up to a limit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analyses.formulas import extents
from analyses.formulas.likeness import correlation_clusters, pairwise_correlations
from analyses.support.findings import (
    CLAIM_WORDS,
    POSITIVE,
    Finding,
    difference_finding,
    format_interval,
    format_value,
    mean_or_undefined,
    share_or_undefined,
    value_finding,
)
from analyses.support.image_sets import (
    ImageSet,
    image_size,
    make_images,
    tidy_rows,
    values_by_channel,
    values_by_feature,
)
from analyses.support.neurons import (
    FIRST,
    INTERIOR,
    LAST,
    Neurons,
    central_position,
    draw_by_branch,
    draw_positions,
    fields_fit,
    fitting_size,
)
from analyses.support.plotting import draw_strips, panels
from analyses.support.study import Context, Outcome, Study, Verdict, run_study
from featmap.optimize.recipe import INTERACT, Recipe
from featmap.plotting.sheets import contact_sheet
from featmap.plotting.style import GRAY, colour, encode_webp, house_style, thumbnail
from featmap.stats.correlation import standardise

STEPS, FULL_STEPS, FULL = 24, 300, 299
STARTS = 6
GOOD, HALF = 0.9, 0.5
"""Share of a neuron's best activation that a start has to reach; share of the distance between neurons that is
clear."""
MANY, ALIKE = 0.05, 1e-6
RESCUE = 0.25
"""A single neuron is often dead on noise: in the first quarter of the steps its gradient passes dead ReLUs."""
SHOWN, SIDE = 3, 96

STUDY = Study(
    "maximised_unit",
    section="Feature Visualization from First Principles",
    claim="A unit's place in the tensor is where its image changes; a neuron of an interior channel has a wider field "
    "than one of an exterior channel, because of the module's branches; one neuron can answer several patterns.",
    measured="centre of the change's energy against the centre of the analytic receptive field, the radius that holds "
    "90 % of the energy by branch, and how many clearly different images of one neuron, from different starts, reach "
    "90 % of its best activation (clearly: further apart than half the median distance between different neurons')",
    rule="the claim holds if the two centres are nearer than another place's, interior channels' radius lies "
    "above the first branch's and above the last one's (of these with the one whose analytic field is another than "
    "theirs: where the fields are the same, as of GoogLeNet's last branch, there is nothing to differ; in layers whose "
    "middle neurons' fields fit into the image), and more than one neuron in twenty has several different images by "
    "response profile; in part if one of these is so",
    full="299 pixels and 300 steps; one size instead of octaves, since a neuron's place in the grid belongs to a size",
    layers={
        "reference": ("inception3b", "inception4a"),
        "googlenet": ("inception3b", "inception4a"),
        "inception_v3": ("Mixed_5d", "Mixed_6b"),
        "resnet50": ("layer2.3", "layer3.2"),
    },
)


def measure(context: Context, size: int | None = None, steps: int = STEPS, starts: int = STARTS) -> Outcome:
    """Maximise the neurons and measure place, reach and variety of what changes."""
    size = size or fitting_size(context.network, context.layers, image_size(context))
    recipe = INTERACT.resolved(FULL, size, steps, rescue=RESCUE)
    if context.full:
        recipe = INTERACT.resolved(FULL, FULL, FULL_STEPS, rescue=RESCUE)
    made = [_maximise_neurons(context, name, recipe, starts) for name in context.layers]
    rows = pd.concat(
        [part for n in made for part in (*_position_rows(n), *_radius_rows(n), *_variety_rows(n))], ignore_index=True
    )
    found = _collect_findings(rows, made, recipe.size)
    verdict, conclusion = judge(found)
    figures: dict[str, Figure | bytes] = {
        "": draw_figure(rows, made),
        "-images.webp": encode_webp(draw_sheet(made), dpi=100),
    }
    return Outcome(rows, list(found.values()), verdict, conclusion, figures)


def _maximise_neurons(context: Context, name: str, recipe: Recipe, starts: int) -> Neurons:
    trace, layer = context.network.trace(recipe.size), context.network.layer(name, recipe.size)
    channels = draw_by_branch(context, layer)
    fields = [trace.field(name, f) for f in channels]
    m, n = central_position(layer, fields, recipe.size)
    others, starts = [draw_positions(layer, f, (m, n)) for f in channels], max(starts, context.seeds)
    context.log(
        f"{name}: {len(channels)} neurons, {starts} starts, {len(others[0])} other places, {recipe.size} pixels"
    )
    middle = make_images(
        context, [f"{name}:{f}:{m}:{n}" for f in channels], recipe, name, "middle", probe=name, seeds=starts
    )
    elsewhere = [f"{name}:{f}:{m}:{n}" for f, there in zip(channels, others, strict=True) for m, n in there]
    return Neurons(
        layer,
        channels,
        fields,
        [layer.branch(f) for f in channels],
        middle,
        make_images(context, elsewhere, recipe, name, "around", seeds=1) if elsewhere else None,
        others,
        fields_fit(context.network, name, recipe.size),
    )


def _position_rows(n: Neurons) -> list[pd.DataFrame]:
    """Return where the neurons' images changed, where their fields are, and how far that is from other places."""
    if n.elsewhere is None:
        return []
    found = np.stack([extents.centres(c) for c in n.elsewhere.changes])
    at = np.array(
        [extents.field_centre(f, *place) for f, there in zip(n.fields, n.positions, strict=True) for place in there]
    )
    error = np.linalg.norm(found - at, axis=2)
    count, rows = len(n.positions[0]), []
    for axis, what in enumerate(("row", "column")):
        rows.append(tidy_rows(f"{what} found", n.layer.name, n.elsewhere, found[..., axis], "interact"))
        rows.append(tidy_rows(f"{what} of the field", n.layer.name, n.elsewhere, at[:, axis] + 0 * error, "interact"))
    rows.append(tidy_rows("error", n.layer.name, n.elsewhere, error, "interact"))
    if count > 1:
        own = at.reshape(-1, count, 2)
        away = [
            np.linalg.norm(found.reshape(len(found), -1, count, 2) - np.roll(own, k, axis=1), axis=3)
            for k in range(1, count)
        ]
        rows.append(
            tidy_rows("error of another place", n.layer.name, n.elsewhere, np.mean(away, 0).reshape(error.shape), "")
        )
    return rows


def _radius_rows(n: Neurons) -> list[pd.DataFrame]:
    radius = np.stack([extents.radii(c) for c in n.central.changes])
    return [
        tidy_rows("radius", n.layer.name, n.central, radius, "interact"),
        tidy_rows("end", n.layer.name, n.central, np.array([float(n.branch_position(f)) for f in n.channels]), ""),
        tidy_rows("field side", n.layer.name, n.central, np.array([np.sqrt(np.prod(f.size)) for f in n.fields]), ""),
    ]


def _variety_rows(n: Neurons) -> list[pd.DataFrame]:
    """Return how many clearly different images reach `GOOD` of each neuron's best, by pixels and by response
    profile."""
    A = n.central.responses
    Z = standardise(A.reshape(-1, A.shape[2]), np.ones(A.shape[0] * A.shape[1], dtype=bool)).reshape(A.shape)
    Z = Z[..., np.isfinite(Z).all((0, 1))]
    rows = []
    for what, held in (("images", n.central.changes), ("profiles", Z)):
        apart = _median_distance(held, n.central.live)
        counts, own = count_kinds(held, n.central, 1 - HALF * apart)
        rows.append(tidy_rows(f"different {what}", n.layer.name, n.central, counts, "interact"))
        rows.append(tidy_rows(f"distance of {what} between starts", n.layer.name, n.central, own, "interact"))
        rows.append(
            tidy_rows(f"distance of {what} between neurons", n.layer.name, n.central, apart + 0 * own, "interact")
        )
    good = good_starts(n.central)
    rows.append(
        tidy_rows("good starts", n.layer.name, n.central, np.where(good.any(0), good.sum(0), np.nan), "interact")
    )
    return rows


def _median_distance(held: np.ndarray, live: np.ndarray) -> float:
    """Return the median distance (1 - correlation) of images of different neurons from the same start; S x N x ..."""
    found = []
    for one, known in zip(held, live, strict=True):
        r = pairwise_correlations(one[known]) if known.sum() > 1 else np.empty((0, 0))
        found += r[np.triu_indices(len(r), 1)].tolist()
    return float(1 - np.nanmedian(found)) if np.isfinite(found).any() else float("nan")


def good_starts(made: ImageSet) -> np.ndarray:
    """Return which starts reach `GOOD` of their neuron's best activation: S x N."""
    value = np.where(made.live, made.activation, -np.inf)
    best = value.max(0)
    return (value >= GOOD * best) & (best > 0) & made.live


def count_kinds(held: np.ndarray, made: ImageSet, alike: float) -> tuple[np.ndarray, np.ndarray]:
    """Return how many kinds of images reach `GOOD` of each neuron's best, and their mean distance: N each.

    `held` is S x N x ..., what is compared; images are of one kind while they correlate with more than `alike`.
    """
    good = good_starts(made)
    counts, apart = np.full(good.shape[1], np.nan), np.full(good.shape[1], np.nan)
    for k in range(good.shape[1]):
        if good[:, k].any() and np.isfinite(alike):
            r = pairwise_correlations(held[good[:, k], k])
            counts[k] = len(set(correlation_clusters(r, alike)) - {-1})
            pairs = r[np.triu_indices(len(r), 1)]
            apart[k] = 1 - np.nanmean(pairs) if np.isfinite(pairs).any() else np.nan
    return counts, apart


def _relative_by_branch(
    rows: pd.DataFrame, neurons: Sequence[Neurons], measure: str, recipe: str
) -> dict[int, pd.Series]:
    """Return the radii (or sides of fields) over their layer's mean, by the channels' end; of layers that are whole."""
    values = values_by_feature(rows, measure, recipe)
    values = values[values.index.get_level_values(0).isin([n.layer.name for n in neurons if n.inside_image])]
    end = values_by_feature(rows, "end", "").reindex(values.index)
    relative = values / values.groupby("layer").transform("mean")
    return {at: relative[end == at] for at in (FIRST, INTERIOR, LAST)}


def _position_correlation(rows: pd.DataFrame) -> pd.Series:
    """Return, for each feature, the correlation of where its images changed with where its fields are."""
    wide = {
        (what, kind): values_by_feature(rows, f"{what} {kind}", "interact")
        for what in ("row", "column")
        for kind in ("found", "of the field")
    }
    pairs = pd.concat(
        [pd.DataFrame({"found": wide[w, "found"], "field": wide[w, "of the field"]}) for w in ("row", "column")]
    ).reset_index()
    if pairs.empty:
        return pd.Series(dtype=float)
    pairs["feature"] = pairs["feature"].str.split(":").str[0]
    centred = pairs.groupby(["layer", "feature"])[["found", "field"]]
    return centred.apply(lambda g: g["found"].corr(g["field"]) if g["field"].std() > 0 else np.nan).dropna()


def _width_findings(rows: pd.DataFrame, neurons: Sequence[Neurons], size: int) -> list[Finding]:
    """Return how much wider the changes and fields of interior channels are than each exterior branch's."""
    radius, field = (
        _relative_by_branch(rows, neurons, "radius", "interact"),
        _relative_by_branch(rows, neurons, "field side", ""),
    )
    found = []
    for at, which in ((FIRST, "first"), (LAST, "last")):
        words = f"radius of 90 % of the change over its layer's mean, interior channels less the {which} branch's"
        found.append(difference_finding(f"wider {which}", radius[INTERIOR], radius[at], words))
        more = field[INTERIOR].mean() - field[at].mean()
        count = len(field[INTERIOR]) + len(field[at])
        found.append(value_finding(f"field {which}", more, count, "the same of the analytic field's side"))
    short = [n.layer.name for n in neurons if not n.inside_image]
    words = f"layers whose middle neurons see beyond the {size} pixels, left out of this comparison"
    words += f" ({', '.join(short)})" if short else ""
    return [*found, value_finding("truncated", len(short), len(neurons), words)]


def _radius_by_branch(rows: pd.DataFrame, n: Neurons) -> dict[str, pd.Series]:
    """Return the radii of a layer's changes by branch; under the empty name where there are none."""
    radius, found = values_by_feature(rows, "radius", "interact"), {}
    for branch in dict.fromkeys(n.branches):
        wanted = {u.split(":", 1)[1] for u, b in zip(n.central.units, n.branches, strict=True) if b == branch}
        found[branch] = radius[[la == n.layer.name and f in wanted for la, f in radius.index]]
    return found


def _collect_findings(rows: pd.DataFrame, neurons: Sequence[Neurons], size: int) -> dict[str, Finding]:
    found = [
        mean_or_undefined(
            "follows", _position_correlation(rows), "correlation of where the image changes with where the field is"
        ),
        mean_or_undefined(
            "error", values_by_channel(rows, "error", "interact"), "distance of the two centres", "pixels", POSITIVE
        ),
        mean_or_undefined(
            "floor",
            values_by_channel(rows, "error of another place", ""),
            "distance from another place's field",
            "pixels",
        ),
        *_width_findings(rows, neurons, size),
    ]
    for n in neurons:
        radius = _radius_by_branch(rows, n) if n.layer.branches else {}
        first = next(iter(radius), "")
        for branch, own in radius.items():
            seen = f"{n.layer.name} {branch} (field {n.fields[n.branches.index(branch)]})"
            words = f"radius of 90 % of the change, {seen}"
            found.append(mean_or_undefined(f"radius {n.layer.name} {branch}", own, words, "pixels", POSITIVE))
            if branch != first:
                words = f"the same less {first}'s"
                found.append(
                    difference_finding(f"more {n.layer.name} {branch}", own, radius[first], f"{words} (pixels)")
                )
    for what, words in (("images", "by pixels"), ("profiles", "by response profile")):
        counts = values_by_feature(rows, f"different {what}", "interact")
        found.append(
            mean_or_undefined(f"kinds {what}", counts, f"clearly different images at 90 % of the best, {words}")
        )
        found.append(
            share_or_undefined(f"several {what}", counts > 1, f"share of neurons with two or more of them, {words}")
        )
        for between in ("starts", "neurons"):
            apart = values_by_feature(rows, f"distance of {what} between {between}", "interact")
            found.append(mean_or_undefined(f"{what} {between}", apart, f"distance of {what} between {between} (1 - r)"))
    good = values_by_feature(rows, "good starts", "interact")
    found.append(
        mean_or_undefined("good", good, f"starts of {len(neurons[0].central.images)} that reach 90 % of the best")
    )
    return {finding.name: finding for finding in found}


def judge(found: Mapping[str, Finding]) -> tuple[Verdict, str]:
    """Return verdict and conclusion, by the rule of the study."""
    error, floor, first, several_ = (found[k] for k in ("error", "floor", "wider first", "several profiles"))
    place = error.high is not None and floor.low is not None and error.high < floor.low
    held = (place, interior_wider(found), (several_.low or 0) > MANY)
    verdict: Verdict = "holds" if all(held) else "holds in part" if any(held) else "does not hold"
    same = "" if fields_differ(found, "last") else ", which is not compared: its field is the same"
    return verdict, (
        f"That the image changes at the neuron's place {CLAIM_WORDS[held[0]]}: {format_value(error.value, '.1f')} pixels from the "
        f"middle of its field ({format_value(floor.value, '.1f')} from another place's, correlation "
        f"{format_value(found['follows'].value)}). That interior channels reach further {CLAIM_WORDS[held[1]]}: by "
        f"{format_interval(first, '+.2f')} of their layer's mean more than the first branch's, and by "
        f"{format_interval(found['wider last'], '+.2f')} more than the last one's{same} (fields: "
        f"{format_value(found['field first'].value, '+.2f')} and {format_value(found['field last'].value, '+.2f')}). That one "
        f"neuron answers several patterns {CLAIM_WORDS[held[2]]}: {format_value(several_.value, '.0%')} of the neurons have two "
        f"or more clearly different images by response profile ({format_value(found['several images'].value, '.0%')} by "
        "pixels)."
    )


def fields_differ(found: Mapping[str, Finding], which: str) -> bool:
    """Return whether interior channels' analytic fields differ from a branch's, so that their reach can differ too."""
    more = found[f"field {which}"].value
    return more is not None and abs(more) > ALIKE


def interior_wider(found: Mapping[str, Finding]) -> bool | None:
    """Return whether interior channels reach further than each branch that is compared; None where none is."""
    chosen = [found[f"wider {which}"] for which in ("first", "last") if fields_differ(found, which)]
    return all((f.low or 0) > 0 for f in chosen) if chosen else None


@house_style
def draw_figure(rows: pd.DataFrame, neurons: Sequence[Neurons]) -> Figure:
    """Draw where images change against the fields by layer, how far by branch, and the number of different images."""
    titles = [f"{n.layer.name}: middle of the change by that of the field" for n in neurons]
    figure, axes = panels(
        (*titles, "Radius that holds 90 % of the change, by branch", "Clearly different images at 90 % of the best"),
        widths=(*[0.9] * len(neurons), 1.5, 0.8),
    )
    middle, right = axes[-2:]
    for k, (left, n) in enumerate(zip(axes, neurons, strict=False)):
        for what, mark in (("row", "o"), ("column", "^")):
            x = values_by_feature(rows, f"{what} of the field", "interact")
            y = values_by_feature(rows, f"{what} found", "interact")
            own = x.index.get_level_values(0) == n.layer.name
            left.plot(x[own], y[own], mark, color=colour(k), markersize=2.5, alpha=0.5, label=f"{what}s")
        left.axline((0, 0), slope=1, color=GRAY, linewidth=0.8)
        left.set_xlabel("field (pixels)", fontsize=8)
        left.legend(fontsize=6.5, frameon=False, loc="upper left", handletextpad=0.1)
    axes[0].set_ylabel("change (pixels)", fontsize=8)
    groups = []
    for n in neurons:
        for branch, radius in _radius_by_branch(rows, n).items():
            seen = n.fields[n.branches.index(branch)]
            groups.append((f"{n.layer.name} {branch}\n{seen}".replace(" \n", "\n"), radius))
    draw_strips(middle, groups, "pixels", within=POSITIVE)
    middle.set_xticks(range(len(groups)), [g for g, _ in groups], rotation=90, fontsize=6.5)
    middle.set_xlabel("branch, receptive field in pixels", fontsize=8)
    middle.set_ylim(bottom=0)
    counts = [(w, values_by_feature(rows, f"different {w}", "interact")) for w in ("images", "profiles")]
    draw_strips(right, [(f"by {'pixels' if w == 'images' else 'response profile'}", v) for w, v in counts], "images")
    right.set_ylim(bottom=0)
    for one in (middle, right):
        if (legend := one.get_legend()) is not None:
            legend.remove()  # the colours are those of the first panels
    return figure


@house_style
def draw_sheet(neurons: Sequence[Neurons]) -> Figure:
    """Draw a few neurons' changes from their starts, the best first: a row a neuron."""
    images, labels, captions = [], [], []
    columns = min(len(neurons[0].central.images), 6)
    for n in neurons:
        counts = np.nan_to_num(count_kinds(n.central.changes, n.central, HALF)[0])
        for k in np.argsort(-counts, kind="stable")[:SHOWN]:
            order = np.argsort(-n.central.activation[:, k], kind="stable")[:columns]
            for s in order:
                change = n.central.changes[s, k]
                scale = np.abs(change).max() or 1.0
                images.append(thumbnail(0.5 + 0.5 * change / scale, SIDE).transpose(2, 0, 1) / 255)
                labels.append(n.central.units[k])
                captions.append(f"start {s}: {n.central.activation[s, k]:.3g}")
    title = "One neuron from several starts: what changed, each to its own largest change, and the activation reached"
    return contact_sheet(np.stack(images), labels, captions=captions, groups=None, title=title, columns=columns)


if __name__ == "__main__":
    run_study(STUDY, measure)
