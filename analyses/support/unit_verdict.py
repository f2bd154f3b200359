"""Verdict and conclusion of `analyses.maximised_unit`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import pandas as pd
from scipy import stats

from analyses.support.decisions import all_hold, exceeds
from analyses.support.findings import (
    CLAIM_WORDS,
    LEVEL,
    Finding,
    format_interval,
    format_value,
    value_finding,
)
from analyses.support.image_sets import values_by_feature
from analyses.support.neurons import FIRST, INTERIOR, LAST
from analyses.support.study import Verdict
from analyses.support.wording import plural
from featmap.stats.correlation import FLOOR

HALF = 0.5
"""Share of the distance between neurons that is clear."""
MANY, ALIKE = 0.05, FLOOR
"""Least share of neurons with several patterns, and largest difference of fields that are the same."""
GROUPS = {"interior": INTERIOR, "first": FIRST, "last": LAST}
"""Groups of neurons whose radii are compared, with their places in the module."""


def neurons_needed(limit: float) -> int:
    """Compute how many cases without a hit it takes to show that a share is low.

    That is, for the share's Wilson interval to end at or below a limit.

    Parameters
    ----------
    limit : float
        The limit.

    Returns
    -------
    int
        The smallest number; without a hit the interval of n cases ends at z^2 / (n + z^2).
    """
    z = float(stats.norm.ppf((1 + LEVEL) / 2))
    return math.ceil(z**2 * (1 - limit) / limit)


NEEDED = neurons_needed(MANY)
"""Fewest neurons that can refute variety, which they do if none has a second pattern."""


def count_findings(rows: pd.DataFrame, truncated: Finding) -> dict[str, Finding]:
    """Count the neurons whose radii are compared, and the positions of each feature.

    Parameters
    ----------
    rows : pandas.DataFrame
        Rows of the study, as measured or as stored.
    truncated : Finding
        The finding that names the layers left out.

    Returns
    -------
    dict of str to Finding
        ``neurons interior``, ``neurons first`` and ``neurons last``, whose words name the layers, and ``positions``.
    """
    # a column of empty texts is read back from the CSV as NaN
    rows = rows.assign(**{k: rows[k].astype(object).where(rows[k].notna(), "") for k in ("recipe", "against")})
    radius, end = values_by_feature(rows, "radius", "interact"), values_by_feature(rows, "end", "")
    end = end.reindex(radius.index)
    end = end[~end.index.get_level_values(0).isin(layers_left_out(truncated))]
    layers = list(dict.fromkeys(end.index.get_level_values(0)))
    of = f" ({', '.join(layers)})" if layers else ""
    findings = {}
    for which, place in GROUPS.items():
        count = int((end == place).sum())
        channels = "interior channels" if which == "interior" else f"the {which} branch"
        words = f"central neurons of {channels} whose radii are compared{of}"
        findings[f"neurons {which}"] = value_finding(f"neurons {which}", count, count, words)
    found = values_by_feature(rows, "error", "interact").reset_index()
    number = found.groupby(["layer", found["feature"].astype(str).str.split(":").str[0]]).size()
    words = "most positions of a feature, other than the middle"
    findings["positions"] = value_finding("positions", float(number.max()), len(number), words)
    return findings


def layers_left_out(truncated: Finding) -> list[str]:
    """List the layers whose fields do not fit into the image.

    Parameters
    ----------
    truncated : Finding
        The finding that names them.

    Returns
    -------
    list of str
        Their names.
    """
    names = truncated.words.partition(" (")[2].removesuffix(")")
    return names.split(", ") if names else []


def judge(findings: Mapping[str, Finding]) -> tuple[Verdict, str]:
    """Judge the claim by the rule of the study, and write the conclusion.

    Parameters
    ----------
    findings : mapping of str to Finding
        Findings by name.

    Returns
    -------
    verdict, conclusion : str
        The verdict of the three parts, and sentences.
    """
    error, floor, several = (findings[k] for k in ("error", "floor", "several profiles"))
    wider, varied = interior_wider(findings), exceeds(several, MANY)
    whole = len(branches_compared(findings)) == 2
    parts = (nearer(error, floor), wider, varied)
    verdict: Verdict = "not decided"
    if all(parts) and whole:
        verdict = "holds"
    elif any(parts):
        verdict = "holds in part"
    elif False in parts:
        verdict = "does not hold"
    position, extent, variety = (CLAIM_WORDS[part] for part in parts)
    extent += " in part" if wider and not whole else ""
    return verdict, (
        f"That the image changes at the neuron's position {position}: the change is centred "
        f"{format_value(error.value, '.1f')} pixels from the centre of its field and "
        f"{format_value(floor.value, '.1f')} from that of another position ({places_phrase(findings)}). The two "
        f"centres correlate by {format_value(findings['follows'].value)}. That interior channels extend further "
        f"{extent}: {extent_phrase(findings)}{pair_phrase(findings)} That different starts give clearly different "
        f"images of one neuron {variety}: {variety_phrase(findings)}"
    )


def places_phrase(findings: Mapping[str, Finding]) -> str:
    """Say of how many features, positions and starts the distances of centres are.

    Parameters
    ----------
    findings : mapping of str to Finding
        Findings by name.

    Returns
    -------
    str
        Such as "n = 16 features at up to 8 positions each, 1 start".
    """
    positions = findings["positions"].value if "positions" in findings else None
    at = f" at up to {plural(round(positions), 'position')} each" if positions is not None else ""
    return f"n = {plural(findings['error'].count, 'feature')}{at}, 1 start"


def variety_phrase(findings: Mapping[str, Finding]) -> str:
    """Describe how many neurons have several images, and how far these are apart.

    Parameters
    ----------
    findings : mapping of str to Finding
        Findings by name.

    Returns
    -------
    str
        Sentences.
    """
    several, own, between = (findings[k] for k in ("several profiles", "profiles starts", "profiles neurons"))
    starts = findings["good"].words.partition("of ")[2].partition(",")[0] if "good" in findings else ""
    pixels = format_value(findings["several images"].value, ".0%")
    if several.value is None:
        text = (
            "the share of neurons with two or more clearly different images is undefined, since no start gave images "
            f"of two neurons to compare by what they excite; judged by their pixels, it is {pixels}."
        )
    else:
        text = (
            f"of {plural(several.count, 'neuron')} with {plural(int(starts), 'start') if starts else 'several starts'} "
            f"each, {format_interval(several, '.0%')} have two or more clearly different images, judged by what these "
            f"excite, and {pixels}, judged by their pixels."
        )
    if own.value is not None and between.value is not None:
        text += (
            f" What the images of one neuron excite is on average {own.value:.2f} apart (1 - r, n = "
            f"{plural(own.count, 'neuron')}), and has to be more than {HALF * between.value:.2f} apart to differ "
            f"clearly: half of the {between.value:.2f} between different neurons."
        )
    if several.value == 0 and exceeds(several, MANY) is None:
        text += (
            f" To refute this part it takes at least {NEEDED} neurons: with fewer the interval ends above {MANY:.0%}, "
            "even where none has several images."
        )
    for name, kinds in findings.items():
        if name.startswith("different profiles interact of ") and kinds.value is not None:
            unit = name.rpartition(" ")[2]
            by_pixels = format_value(findings[f"different images interact of {unit}"].value, ".0f")
            text += (
                f" Of images that differ clearly, {unit} has {kinds.value:.0f} by what they excite and {by_pixels} by "
                "pixels."
            )
    return f"{text} Whether one image holds several patterns at once, as the article says, is not measured."


def nearer(error: Finding, floor: Finding) -> bool | None:
    """Check whether one distance is below another.

    Parameters
    ----------
    error, floor : Finding
        The two distances.

    Returns
    -------
    bool or None
        True if the first is wholly below the second, False if it is wholly above; None where their intervals overlap,
        or one is undefined.
    """
    if error.low is None or error.high is None or floor.low is None or floor.high is None:
        return None
    return True if error.high < floor.low else False if error.low > floor.high else None


def image_side(findings: Mapping[str, Finding]) -> str:
    """Look up the side of the images in pixels, as the finding ``truncated`` names it.

    Parameters
    ----------
    findings : mapping of str to Finding
        Findings by name.

    Returns
    -------
    str
        Digits; "" where there is no such finding.
    """
    words = findings["truncated"].words if "truncated" in findings else ""
    return words.partition("beyond the ")[2].partition(" pixels")[0]


def beyond_phrase(findings: Mapping[str, Finding]) -> str:
    """Name the layers whose fields do not fit into the image.

    Parameters
    ----------
    findings : mapping of str to Finding
        Findings by name.

    Returns
    -------
    str
        A sentence with a space before it; "" for none.
    """
    layers = layers_left_out(findings["truncated"]) if "truncated" in findings else []
    if not layers:
        return ""
    side = image_side(findings)
    return (
        f" The radius is not compared in {' and '.join(layers)}: not all branches there have neurons whose fields fit "
        f"into the {side} pixels."
    )


def pair_phrase(findings: Mapping[str, Finding]) -> str:
    """Report the radii of the named features, where there are several.

    Parameters
    ----------
    findings : mapping of str to Finding
        Findings by name.

    Returns
    -------
    str
        A sentence with a space before it; "" where fewer than two are named.
    """
    start = "radius interact of "
    named = [(name.removeprefix(start), f) for name, f in findings.items() if name.startswith(start)]
    radii = [
        f"{f.value:.1f} pixels for {unit} (n = {plural(f.count, 'start')})" for unit, f in named if f.value is not None
    ]
    if len(radii) < 2:
        return ""
    return (
        f" The radii of the named features, in images of {image_side(findings)} pixels, are {' and '.join(radii)}. One "
        "neuron of each decides nothing, and is not counted by the rule."
    )


def extent_phrase(findings: Mapping[str, Finding]) -> str:
    """Describe how far interior channels extend compared with exterior branches.

    Parameters
    ----------
    findings : mapping of str to Finding
        Findings by name.

    Returns
    -------
    str
        Sentences; where no channel is interior, the two exterior branches are compared.
    """
    fields = {which: findings[f"field {which}"].value for which in ("first", "last")}
    if all(field is None for field in fields.values()):
        return f"{outer_phrase(findings)}{beyond_phrase(findings)}"
    sentences = []
    for which, field in fields.items():
        wider = findings[f"wider {which}"]
        count = f"n = {group_count(findings, 'interior')} against {group_count(findings, which)} neurons"
        if field is None:
            sentences.append(f"there is no {which} branch to compare with.")
        elif not fields_differ(findings, which):
            radii = "" if wider.value is None else f"the radii differ by {format_interval(wider, '+.2f')}, "
            sentences.append(
                f"with the {which} branch they are not compared, since its analytic field is the same ({radii}{count})."
            )
        elif wider.value is None:
            sentences.append(
                f"with the {which} branch they are not compared, for which it takes two neurons of each "
                f"({count}{group_layers(findings)})."
            )
        else:
            sentences.append(
                f"the radius of their change is larger than the {which} branch's by {format_interval(wider, '+.2f')} "
                f"of their layer's mean ({count}{group_layers(findings)}), their field's side by {field:+.2f}."
            )
    first, last = sentences
    return f"{first} {last[0].upper()}{last[1:]}{beyond_phrase(findings)}"


def outer_phrase(findings: Mapping[str, Finding]) -> str:
    """Compare the two exterior branches, where no channel is interior.

    Parameters
    ----------
    findings : mapping of str to Finding
        Findings by name.

    Returns
    -------
    str
        Sentences; that there is nothing to compare, where one of the two is missing as well.
    """
    field = findings["field outer"].value if "field outer" in findings else None
    if field is None:
        return "there are no two branches to compare."
    outer = findings["wider outer"]
    count = f"n = {group_count(findings, 'last')} and {group_count(findings, 'first')} neurons{group_layers(findings)}"
    text = "no channel is interior, as in modules of two branches."
    if outer.value is None:
        return (
            f"{text} The radii of the last branch and of the first are not compared, for which it takes two neurons of "
            f"each ({count}); their fields' sides differ by {field:+.2f} of their layer's mean."
        )
    return (
        f"{text} The radius of the last branch's change is larger than the first branch's by "
        f"{format_interval(outer, '+.2f')} of their layer's mean ({count}), their field's side by {field:+.2f}."
    )


def group_count(findings: Mapping[str, Finding], which: str) -> str:
    """Look up how many neurons of a group are compared.

    Parameters
    ----------
    findings : mapping of str to Finding
        Findings by name.
    which : str
        One of `GROUPS`.

    Returns
    -------
    str
        Their number; "unknown" where it was not counted.
    """
    return format_value(findings[f"neurons {which}"].value, ".0f") if f"neurons {which}" in findings else "unknown"


def group_layers(findings: Mapping[str, Finding]) -> str:
    """Name the layers whose neurons are compared.

    Parameters
    ----------
    findings : mapping of str to Finding
        Findings by name.

    Returns
    -------
    str
        Such as " of Mixed_5d"; "" where they are not known.
    """
    words = findings["neurons first"].words if "neurons first" in findings else ""
    layers: Sequence[str] = words.partition(" (")[2].removesuffix(")").split(", ")
    return f" of {' and '.join(layers)}" if any(layers) else ""


def fields_differ(findings: Mapping[str, Finding], which: str) -> bool:
    """Check whether the analytic fields of interior channels differ from a branch's.

    Parameters
    ----------
    findings : mapping of str to Finding
        Findings by name.
    which : str
        "first" or "last".

    Returns
    -------
    bool
        False also where there are none to compare.
    """
    more = findings[f"field {which}"].value
    return more is not None and abs(more) > ALIKE


def branches_compared(findings: Mapping[str, Finding]) -> list[str]:
    """List the branches that interior channels are compared with.

    Parameters
    ----------
    findings : mapping of str to Finding
        Findings by name.

    Returns
    -------
    list of str
        Of "first" and "last" those with another analytic field.
    """
    return [which for which in ("first", "last") if fields_differ(findings, which)]


def interior_wider(findings: Mapping[str, Finding]) -> bool | None:
    """Check whether interior channels extend further than each branch compared.

    Parameters
    ----------
    findings : mapping of str to Finding
        Findings by name.

    Returns
    -------
    bool or None
        None where no branch is compared, or an interval spans 0 and none is below.
    """
    return all_hold(exceeds(findings[f"wider {which}"], 0) for which in branches_compared(findings))
