"""Measure where a maximised neuron changes the image, how far, and how variously.

    python -m analyses.maximised_unit

Neurons ``layer:f:m:n`` are maximised in linear steps (the recipe `interact`), so that an image minus its null image is
the sum of the neuron's gradients: at eight positions of the grid, drawn for each channel, and in the middle of it from
several starts. Equally many features are drawn of each branch of a module, and images are large enough, up to a limit,
for the receptive fields of the neurons in the middle.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analyses.formulas import extents
from analyses.support.findings import (
    POSITIVE,
    Finding,
    difference_finding,
    mean_or_undefined,
    share_or_undefined,
    value_finding,
)
from analyses.support.image_sets import (
    image_size,
    make_images,
    tidy_rows,
    values_by_channel,
    values_by_feature,
)
from analyses.support.kinds import count_kinds, good_starts, median_distance, standardised_profiles
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
from analyses.support.study import Context, Outcome, StoredResult, Study, Verdict
from analyses.support.study_command import run_study
from analyses.support.unit_verdict import HALF, NEEDED, count_findings, judge
from analyses.support.units import named_rows
from featmap.optimize.recipe import INTERACT, Recipe
from featmap.plotting.sheets import Sheet, contact_sheet
from featmap.plotting.style import GRAY, colour, encode_webp, house_style, thumbnail

STEPS, FULL_STEPS, FULL = 24, 300, 299
STARTS = 6
RESCUE = 0.25
"""Share of the steps in which the gradient passes dead ReLUs: a single neuron is often dead on noise."""
SHOWN, SIDE = 3, 96

STUDY = Study(
    "maximised_unit",
    section="Feature Visualization from First Principles",
    claim="A unit's position in the tensor is where its image changes; a neuron of an interior channel has a wider "
    "field than one of an exterior channel, because of the module's branches; one neuron ([415, 9, 9] of Mixed_6b) is "
    "activated by a number of different patterns at once, which its one image shows.",
    measured="distance of the centre of the change's energy from the centre of the analytic receptive field, the "
    "radius that holds 90 % of the energy by branch, and how many clearly different images of one neuron, from "
    "different starts, reach 90 % of its best activation (clearly: in clusters further apart, on average, than half "
    "the median distance between different neurons' images from one start), by pixels and by response profile, both "
    "less the null image's. Of the last part this says whether different starts give different images of one neuron; "
    "how many patterns one image holds is not measured",
    rule="position: the interval of the distance of the two centres is wholly below that of the distance to the fields "
    "of the channel's other positions (not so if it is wholly above); extent: the interval of the radius, relative to "
    "its layer's mean, of interior channels minus the first branch's is above 0, and so is that minus the last "
    "branch's (not so if one of these intervals is at or below 0); a branch with the same analytic field as interior "
    "channels is not compared, and where one of the two is left out for this, extent holds in part at most; layers "
    "whose central neurons' fields do not fit into the image are not compared either, and in layers without branches "
    "the first and the last quarter of the channels stand for the outer ones; variety: the interval of the share of "
    "neurons with two or more clearly different images, by response profile, is above one in twenty (not so if it is "
    f"at or below that, which takes at least {NEEDED} neurons). A part is not decided where intervals "
    "overlap, span their limit or are undefined. The claim holds if all three parts hold, in part if any does or does "
    "so in part, does not hold if none does and one is not so, and is not decided otherwise",
    units={"inception_v3": ("Mixed_6b:654", "Mixed_6b:415")},
    full="299 pixels and 300 steps; one size instead of octaves, since a neuron's position in the grid belongs to a "
    "size",
    layers={
        "reference": ("inception3b", "inception4a"),
        "googlenet": ("inception3b", "inception4a"),
        "squeezenet": ("features.6", "features.9"),
        "inception_v3": ("Mixed_5d", "Mixed_6b"),
        "resnet50": ("layer2.3", "layer3.2"),
    },
)


def measure(context: Context, size: int | None = None, steps: int = STEPS, starts: int = STARTS) -> Outcome:
    """Maximise neurons and measure position, extent and variety of the change."""
    size, steps = context.size or (FULL if context.full else size), FULL_STEPS if context.full else steps
    size = size or fitting_size(context.network, context.layers, image_size(context))
    recipe = INTERACT.resolved(FULL, size, steps, **({"rescue": RESCUE} | context.changes))
    neurons = [_maximise_neurons(context, name, recipe, starts) for name in context.layers]
    rows = pd.concat(
        [part for n in neurons for part in (*_position_rows(n), *_radius_rows(n), *_variety_rows(n))], ignore_index=True
    )
    findings = _collect_findings(rows, neurons, recipe.size)
    findings |= count_findings(rows, findings["truncated"])
    named = [
        ("error", "interact", "", "distance of the two centres", "pixels"),
        ("radius", "interact", "", "radius of 90 % of the change", "pixels"),
        ("different profiles", "interact", "", "clearly different images, by response profile", ""),
        ("different images", "interact", "", "clearly different images, by pixels", ""),
    ]
    findings |= {f.name: f for f in named_rows(context, rows, named)}
    verdict, conclusion = judge(findings)
    figures: dict[str, Figure | bytes] = {
        "": draw_figure(rows, neurons),
        "-images.webp": encode_webp(draw_sheet(neurons), dpi=100),
    }
    return Outcome(rows, list(findings.values()), verdict, conclusion, figures)


def _maximise_neurons(context: Context, name: str, recipe: Recipe, starts: int) -> Neurons:
    """Maximise one layer's neurons in the middle of the image and at other positions."""
    trace, layer = context.network.trace(recipe.size), context.network.layer(name, recipe.size)
    channels = draw_by_branch(context, layer)
    fields = [trace.field(name, f) for f in channels]
    m, n = central_position(layer, fields, recipe.size)
    others, starts = [draw_positions(layer, f, (m, n)) for f in channels], max(starts, context.seeds)
    context.log(
        f"{name}: {len(channels)} neurons, {starts} starts, {len(others[0])} other positions, {recipe.size} pixels"
    )
    central = make_images(
        context, [f"{name}:{f}:{m}:{n}" for f in channels], recipe, name, "middle", probe=name, seeds=starts
    )
    elsewhere = [f"{name}:{f}:{m}:{n}" for f, positions in zip(channels, others, strict=True) for m, n in positions]
    return Neurons(
        layer,
        channels,
        fields,
        [layer.branch(f) for f in channels],
        central,
        make_images(context, elsewhere, recipe, name, "around", seeds=1) if elsewhere else None,
        others,
        fields_fit(context.network, name, recipe.size),
    )


def _position_rows(n: Neurons) -> list[pd.DataFrame]:
    """Measure how far changes are from their own fields and from other positions'."""
    if n.elsewhere is None:
        return []
    centre = np.stack([extents.centres(c) for c in n.elsewhere.changes])
    field = np.array(
        [extents.field_centre(f, *at) for f, positions in zip(n.fields, n.positions, strict=True) for at in positions]
    )
    error = np.linalg.norm(centre - field, axis=2)
    count, rows = len(n.positions[0]), []
    for axis, what in enumerate(("row", "column")):
        rows.append(tidy_rows(f"{what} found", n.layer.name, n.elsewhere, centre[..., axis], "interact"))
        rows.append(
            tidy_rows(f"{what} of the field", n.layer.name, n.elsewhere, field[:, axis] + 0 * error, "interact")
        )
    rows.append(tidy_rows("error", n.layer.name, n.elsewhere, error, "interact"))
    if count > 1:
        own = field.reshape(-1, count, 2)
        distances = [
            np.linalg.norm(centre.reshape(len(centre), -1, count, 2) - np.roll(own, k, axis=1), axis=3)
            for k in range(1, count)
        ]
        rows.append(
            tidy_rows(
                "error of another place", n.layer.name, n.elsewhere, np.mean(distances, 0).reshape(error.shape), ""
            )
        )
    return rows


def _radius_rows(n: Neurons) -> list[pd.DataFrame]:
    """Measure the radius of each neuron's change, with its branch and its field."""
    radius = np.stack([extents.radii(c) for c in n.central.changes])
    return [
        tidy_rows("radius", n.layer.name, n.central, radius, "interact"),
        tidy_rows("end", n.layer.name, n.central, np.array([float(n.branch_position(f)) for f in n.channels]), ""),
        tidy_rows("field side", n.layer.name, n.central, np.array([np.sqrt(np.prod(f.size)) for f in n.fields]), ""),
    ]


def _variety_rows(n: Neurons) -> list[pd.DataFrame]:
    """Count the clearly different images that reach `GOOD` of each neuron's best.

    They are compared by pixels and by response profile, each less the null image of its start.
    """
    rows = []
    for what, values in (("images", n.central.changes), ("profiles", standardised_profiles(n.central))):
        apart = median_distance(values, n.central.live)
        counts, own = count_kinds(values, n.central, 1 - HALF * apart)
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


def _relative_by_branch(
    rows: pd.DataFrame, neurons: Sequence[Neurons], quantity: str, recipe: str
) -> dict[int, pd.Series]:
    """Divide a quantity by its layer's mean, and group it by the channels' branches.

    Only layers whose fields fit into the image are taken.
    """
    values = values_by_feature(rows, quantity, recipe)
    values = values[values.index.get_level_values(0).isin([n.layer.name for n in neurons if n.inside_image])]
    end = values_by_feature(rows, "end", "").reindex(values.index)
    relative = values / values.groupby("layer").transform("mean")
    return {at: relative[end == at] for at in (FIRST, INTERIOR, LAST)}


def _position_correlation(rows: pd.DataFrame) -> pd.Series:
    """Correlate, for each feature, the centres of its changes and of its fields."""
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
    """Compare changes and fields of interior channels with those of exterior branches."""
    radius, field = (
        _relative_by_branch(rows, neurons, "radius", "interact"),
        _relative_by_branch(rows, neurons, "field side", ""),
    )
    findings = []
    for at, which in ((FIRST, "first"), (LAST, "last")):
        words = (
            f"radius of 90 % of the change, relative to its layer's mean: interior channels minus the {which} branch"
        )
        findings.append(difference_finding(f"wider {which}", radius[INTERIOR], radius[at], words))
        more = field[INTERIOR].mean() - field[at].mean()
        count = len(field[INTERIOR]) + len(field[at])
        findings.append(value_finding(f"field {which}", more, count, "the same for the side of the analytic field"))
    words = "the same radius: the last branch minus the first"
    findings.append(difference_finding("wider outer", radius[LAST], radius[FIRST], words))
    more, count = field[LAST].mean() - field[FIRST].mean(), len(field[LAST]) + len(field[FIRST])
    findings.append(value_finding("field outer", more, count, "the same for the side of the analytic field"))
    short = [n.layer.name for n in neurons if not n.inside_image]
    words = f"layers whose central neurons see beyond the {size} pixels, not in this comparison"
    words += f" ({', '.join(short)})" if short else ""
    return [*findings, value_finding("truncated", len(short), len(neurons), words)]


def _radius_by_branch(rows: pd.DataFrame, n: Neurons) -> dict[str, pd.Series]:
    """Look up the radii of a layer's changes by branch."""
    radius, radii = values_by_feature(rows, "radius", "interact"), {}
    ordered = [b for b, _ in n.layer.branches if b in n.branches] or list(dict.fromkeys(n.branches))
    for branch in ordered:
        units = {u.split(":", 1)[1] for u, b in zip(n.central.units, n.branches, strict=True) if b == branch}
        radii[branch] = radius[[la == n.layer.name and f in units for la, f in radius.index]]
    return radii


def _collect_findings(rows: pd.DataFrame, neurons: Sequence[Neurons], size: int) -> dict[str, Finding]:
    """Collect the findings by name."""
    findings = [
        mean_or_undefined(
            "follows", _position_correlation(rows), "correlation of the centre of the change with that of the field"
        ),
        mean_or_undefined(
            "error", values_by_channel(rows, "error", "interact"), "distance of the two centres", "pixels", POSITIVE
        ),
        mean_or_undefined(
            "floor",
            values_by_channel(rows, "error of another place", ""),
            "distance from the centre of another position's field",
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
            findings.append(mean_or_undefined(f"radius {n.layer.name} {branch}", own, words, "pixels", POSITIVE))
            if branch != first:
                words = f"the same minus {first}'s"
                findings.append(
                    difference_finding(f"more {n.layer.name} {branch}", own, radius[first], f"{words} (pixels)")
                )
    for what, words in (("images", "by pixels"), ("profiles", "by response profile")):
        counts = values_by_feature(rows, f"different {what}", "interact")
        findings.append(
            mean_or_undefined(f"kinds {what}", counts, f"clearly different images at 90 % of the best, {words}")
        )
        findings.append(
            share_or_undefined(f"several {what}", counts > 1, f"share of neurons with two or more of them, {words}")
        )
        for between in ("starts", "neurons"):
            apart = values_by_feature(rows, f"distance of {what} between {between}", "interact")
            findings.append(
                mean_or_undefined(f"{what} {between}", apart, f"distance of {what} between {between} (1 - r)")
            )
    good = values_by_feature(rows, "good starts", "interact")
    findings.append(
        mean_or_undefined("good", good, f"starts, of {len(neurons[0].central.images)}, that reach 90 % of the best")
    )
    return {finding.name: finding for finding in findings}


def restate(stored: StoredResult) -> tuple[Verdict, str]:
    """Write verdict and conclusion from the stored result.

    What earlier results lack is counted in their rows.
    """
    return judge(count_findings(stored.rows, stored.findings["truncated"]) | stored.findings)


@house_style
def draw_figure(rows: pd.DataFrame, neurons: Sequence[Neurons]) -> Figure:
    """Draw the centres of change and field, the radii by branch and the kinds."""
    titles = [f"{n.layer.name}: centre of the change and of the field" for n in neurons]
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
            legend.remove()  # the first panels show the colours
    return figure


@house_style
def draw_sheet(neurons: Sequence[Neurons]) -> Figure:
    """Draw a few neurons' changes from their starts, the best first."""
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
    title = "One neuron from several starts: change of the image, each on its own scale, and activation reached"
    return contact_sheet(Sheet(images=np.stack(images), labels=labels, captions=captions, title=title, columns=columns))


if __name__ == "__main__":
    run_study(STUDY, measure)
