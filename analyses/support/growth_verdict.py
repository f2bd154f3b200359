"""Verdict and conclusion of `analyses.neuron_growth`: what one more neuron of a feature changes, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy import stats

from analyses.support.decisions import exceeds
from analyses.support.findings import CLAIM_WORDS, LEVEL, Finding, format_interval, format_value, value_finding
from analyses.support.study import Verdict
from analyses.support.wording import plural
from featmap.stats.correlation import FLOOR

NETWORK, MOVED, AREA = "network", "changes something", "area outside the field"
"""Label of the network in the rows, and two of the measures."""
MOST, LITTLE_FREE = 0.5, 0.2
"""Share of added neurons that is most of them; share of an image free of fields that is little."""


def case_findings(rows: pd.DataFrame, layers: Sequence[str], units: Sequence[str] = ()) -> list[Finding]:
    """Count the cases, added neuron and seed, in which the image changed at all.

    Parameters
    ----------
    rows : pandas.DataFrame
        Rows of the study, as measured or as stored.
    layers : sequence of str
        Names of the layers.
    units : sequence of str, default ()
        Features with rows of their own, ``layer:channel``.

    Returns
    -------
    list of Finding
        ``moved:LAYER`` and ``most:LAYER`` for each layer; ``moved of UNIT`` and ``area of UNIT`` for each feature.
    """
    own = rows[rows["recipe"] == NETWORK].reset_index(drop=True)
    channels = own["layer"].astype(str) + ":" + own["feature"].astype(str).str.split(":").str[0]
    findings, cases = [], "cases (added neuron and seed) in which the image changed at all; n is their number"
    for name, chosen in [
        *((f"moved:{layer}", own["layer"] == layer) for layer in layers),
        *((f"moved of {unit}", channels == unit) for unit in units),
    ]:
        moved = own.loc[chosen & (own["measure"] == MOVED), "value"]
        words = f"{name.partition(':')[2]}: {cases}" if " of " not in name else f"{name[9:]}, named: {cases}"
        findings.append(value_finding(name, float((moved > 0).sum()) if len(moved) else np.nan, len(moved), words))
    for layer in layers:
        moved = own[(own["layer"] == layer) & (own["measure"] == MOVED)]
        shares = moved.groupby(channels[moved.index])["value"].mean()
        words = f"{layer}: share of added neurons that change anything, a mean over features (Wilson)"
        findings.append(mean_share_finding(f"most:{layer}", shares.to_numpy(dtype=float), words))
    for unit in units:
        area = own.loc[(channels == unit) & (own["measure"] == AREA), "value"]
        words = f"{unit}, named: share of the image outside the added neurons' fields"
        findings.append(value_finding(f"area of {unit}", float(area.mean()), len(area), words))
    return findings


def mean_share_finding(name: str, shares: np.ndarray, words: str) -> Finding:
    """Compute the mean of independent shares with Wilson's interval.

    A share lies between 0 and 1, so that its variance is at most m (1 - m), where m is its mean: that of one hit or
    miss. Wilson's interval, which takes this variance, therefore covers means of shares as well as of hits. Unlike
    Student's it has a width where all shares are the same.

    Parameters
    ----------
    name : str
        Name of the finding.
    shares : numpy.ndarray
        One share for each feature, between 0 and 1.
    words : str
        Description.

    Returns
    -------
    Finding
        The mean; undefined where there is no share.

    References
    ----------
    E. B. Wilson, "Probable inference, the law of succession, and statistical inference", Journal of the American
    Statistical Association 22, 1927.
    """
    count = len(shares)
    if not count:
        return value_finding(name, np.nan, 0, words)
    mean, z2 = float(shares.mean()), float(stats.norm.ppf((1 + LEVEL) / 2)) ** 2
    middle = (mean + z2 / (2 * count)) / (1 + z2 / count)
    reach = np.sqrt(z2 * (mean * (1 - mean) / count + z2 / (4 * count**2))) / (1 + z2 / count)
    return value_finding(name, mean, count, words, max(middle - reach, 0.0), min(middle + reach, 1.0))


def judge_reach(findings: Mapping[str, Finding], layer: str) -> Verdict:
    """Judge how far the change reaches of those added neurons that change anything.

    Parameters
    ----------
    findings : mapping of str to Finding
        Findings by name.
    layer : str
        Name of the layer.

    Returns
    -------
    str
        "holds" if the share outside the field is above the linear twin's and, paired by feature, above half of the
        share between two seeds (the whole image changed); "holds in part" if it is only above the twin's; "does not
        hold" if it is not, and below that half.
    """
    outside, linear, excess = (findings[f"{k}:{layer}"] for k in ("outside", "outside linear", "excess"))
    if outside.low is None or outside.count < 2:
        return "not decided"
    if outside.low > max(linear.high or 0.0, FLOOR):
        return "holds" if excess.count > 1 and (excess.low or 0) > 0 else "holds in part"
    return "does not hold" if excess.count > 1 and (excess.high or 0) < 0 else "not decided"


def most_change(findings: Mapping[str, Finding], layer: str) -> bool | None:
    """Check whether most added neurons of a layer change anything; None where the interval includes a half.

    Parameters
    ----------
    findings : mapping of str to Finding
        Findings by name.
    layer : str
        Name of the layer.

    Returns
    -------
    bool or None
        False if most of them change nothing.
    """
    return exceeds(findings[f"most:{layer}"], MOST)


def judge_layer(findings: Mapping[str, Finding], layer: str) -> Verdict:
    """Judge one layer.

    Parameters
    ----------
    findings : mapping of str to Finding
        Findings by name.
    layer : str
        Name of the layer.

    Returns
    -------
    str
        "holds" only if the change reaches the whole image and most added neurons change anything.
    """
    reach, most = judge_reach(findings, layer), most_change(findings, layer)
    if reach == "holds" and not most:
        return "holds in part"
    return "does not hold" if reach == "not decided" and most is False else reach


def judge(findings: Mapping[str, Finding], layers: Sequence[str], seeds: int) -> tuple[Verdict, str]:
    """Combine the layers' verdicts, and write the conclusion.

    Parameters
    ----------
    findings : mapping of str to Finding
        Findings by name.
    layers : sequence of str
        Names of the layers.
    seeds : int
        Number of seeds.

    Returns
    -------
    verdict, conclusion : str
        If the layers differ, the claim holds in part if it does so in any of them.
    """
    verdicts = {layer: judge_layer(findings, layer) for layer in layers}
    some = any(v in ("holds", "holds in part") for v in verdicts.values())
    common = next(iter(verdicts.values())) if len(set(verdicts.values())) == 1 else None
    verdict: Verdict = common or ("holds in part" if some else "not decided")

    def of(name: str, form: str) -> str:
        return " and ".join(_format(findings[f"{name}:{layer}"], form) for layer in layers)

    def share(layer: str) -> str:
        count, drawn = (findings[f"{k}:{layer}"].count for k in ("outside", "dead"))
        mean = _format(findings[f"outside:{layer}"], ".0%")
        return f"{mean} in {layer} (n = {count} of {drawn} features, {plural(seeds, 'seed')})"

    return verdict, (
        "Of the change by one more neuron that changes anything, "
        f"{' and '.join(share(layer) for layer in layers)} are outside its receptive field. "
        f"{still_phrase(findings, layers)}Without ReLUs and maxima the share is {of('outside linear', '.0e')}. "
        "Half of the share between two seeds, subtracted from the share, leaves "
        f"{of('excess', '+.0%')}. {layers_phrase(findings, layers)}{own_pixels_phrase(findings, layers)}"
        f"{elsewhere_phrase(findings, layers)}"
        f"{''.join(limits_of(findings, layer) for layer in layers)}{named_phrase(findings)}"
    )


def own_pixels_phrase(findings: Mapping[str, Finding], layers: Sequence[str]) -> str:
    """Say which share of the change is outside the pixels that the added neuron changes alone.

    Parameters
    ----------
    findings : mapping of str to Finding
        Findings by name.
    layers : sequence of str
        Names of the layers.

    Returns
    -------
    str
        Sentences with a space after each.
    """
    known, missing = _by_definition(findings, "beyond", layers)
    shares = " and ".join(
        f"{_format(f, '.0%')} in {layer} (n = {plural(f.count, 'feature')})" for layer, f in known.items()
    )
    text = f"Of the change, {shares} are outside the pixels that the neuron changes alone. " if known else ""
    if missing:
        text += (
            f"In {' and '.join(missing)} the share outside the pixels that the neuron changes alone is undefined, "
            "since no added neuron changes anything both alone and after others. "
        )
    return text


def elsewhere_phrase(findings: Mapping[str, Finding], layers: Sequence[str]) -> str:
    """Say by how much the image changes outside the field of the added neuron.

    Parameters
    ----------
    findings : mapping of str to Finding
        Findings by name.
    layers : sequence of str
        Names of the layers.

    Returns
    -------
    str
        A sentence.
    """
    known, missing = _by_definition(findings, "elsewhere", layers)
    if not known:
        return "How much the image changes outside its field, relative to what it was, is undefined."
    values = " and ".join(f"{_format(f, '.0%')} in {layer}" for layer, f in known.items())
    undefined = f" (undefined in {' and '.join(missing)})" if missing else ""
    return f"Outside its field the image changes by {values} of what it was{undefined}."


def _by_definition(
    findings: Mapping[str, Finding], name: str, layers: Sequence[str]
) -> tuple[dict[str, Finding], list[str]]:
    """Find the layers in which a finding is defined, with its values, and the others."""
    known = {layer: findings[f"{name}:{layer}"] for layer in layers if findings[f"{name}:{layer}"].value is not None}
    return known, [layer for layer in layers if layer not in known]


def still_phrase(findings: Mapping[str, Finding], layers: Sequence[str]) -> str:
    """Say how many added neurons changed nothing, and whether most changed anything.

    Parameters
    ----------
    findings : mapping of str to Finding
        Findings by name.
    layers : sequence of str
        Names of the layers.

    Returns
    -------
    str
        Sentences with a space after them; "" where nothing was added.
    """
    measured = [layer for layer in layers if findings[f"moved:{layer}"].count]
    if not measured:
        return ""
    most = [most_change(findings, layer) for layer in measured]
    word = CLAIM_WORDS[True if all(most) else False if False in most else None]
    counts, still = [], []
    for layer in measured:
        moved, share = findings[f"moved:{layer}"], findings[f"most:{layer}"]
        case = " (an added neuron and a seed)" * (not counts)
        counts.append(
            f"of {plural(moved.count, 'case')}{case} in {layer}, {moved.value:.0f} changed the image "
            f"({_format(share, '.0%')}, n = {plural(share.count, 'feature')})"
        )
        if (moved.value or 0) < moved.count:
            still.append(f"{1 - (moved.value or 0) / moved.count:.0%} of the cases in {layer}")
    none = (
        f"In {' and '.join(still)} nothing changed at all, since the added neuron has no gradient. These cases are not "
        "in the shares given here, although the claim is of each neuron. "
    )
    return f"That most added neurons change anything {word}: {', and '.join(counts)}. {none * bool(still)}"


def layers_phrase(findings: Mapping[str, Finding], layers: Sequence[str]) -> str:
    """Say in which layers the claim holds, and why it does not hold in full elsewhere.

    Parameters
    ----------
    findings : mapping of str to Finding
        Findings by name.
    layers : sequence of str
        Names of the layers.

    Returns
    -------
    str
        Sentences with a space after them.
    """
    found: dict[tuple[str, str], list[str]] = {}
    for layer in layers:
        found.setdefault((judge_layer(findings, layer), _reason(findings, layer)), []).append(layer)
    words = {"not decided": "is not decided"}
    return "".join(
        f"In {' and '.join(of)} the claim {words.get(verdict, verdict)}{f', since {why}' if why else ''}. "
        for (verdict, why), of in found.items()
    )


def _reason(findings: Mapping[str, Finding], layer: str) -> str:
    """Say why the claim does not hold in full in a layer; "" where it does."""
    outside, reach, most = findings[f"outside:{layer}"], judge_reach(findings, layer), most_change(findings, layer)
    reasons = {
        "holds": "",
        "holds in part": "the share is not clearly above half of that between two seeds",
        "does not hold": "the share is not above that without ReLUs and maxima, and below half of that between two "
        "seeds",
        "not decided": "the share is undefined"
        if outside.value is None
        else "the share is of one feature"
        if outside.count < 2
        else "the share is not clearly above that without ReLUs and maxima",
    }
    few = {True: "", False: "most of those added change nothing", None: "it is open whether most change anything"}
    if reach == "holds":
        return "" if most else f"those neurons that change anything change the whole image, but {few[most]}"
    return " and ".join([reasons[reach]] + [few[most]] * (most is False))


def named_phrase(findings: Mapping[str, Finding]) -> str:
    """Report the named features one by one, and why one has no value.

    Parameters
    ----------
    findings : mapping of str to Finding
        Findings by name.

    Returns
    -------
    str
        Sentences with a space before them; "" where no feature is named.
    """
    sentences, start = [], f"outside the field {NETWORK} of "
    for name, found in findings.items():
        if not name.startswith(start):
            continue
        unit = name.removeprefix(start)
        moved, area, seen = (findings.get(f"{k} of {unit}") for k in ("moved", "area", f"has a gradient {NETWORK}"))
        if found.value is not None:
            sentences.append(f" Of {unit}'s change {found.value:.0%} are outside the field (n = {found.count} cases).")
        elif seen is not None and not seen.value:
            sentences.append(f" {unit} has no value: it has no gradient on noise.")
        elif moved is not None and area is not None and area.value is not None:
            cases = "none of its" if not moved.value else f"{moved.value:.0f} of its"
            sentences.append(
                f" {unit} has no value: its fields leave {area.value:.0%} of the image free, and in {cases} "
                f"{plural(moved.count, 'case')} (added neuron and seed) the image changed at all."
            )
    return "".join(sentences)


def limits_of(findings: Mapping[str, Finding], layer: str) -> str:
    """Say where a layer has no share outside the field, or where fields leave little of the image free.

    Parameters
    ----------
    findings : mapping of str to Finding
        Findings by name.
    layer : str
        Name of the layer.

    Returns
    -------
    str
        A sentence with a space before it; "" where neither is so.
    """
    found, area = findings[f"outside:{layer}"], findings[f"area:{layer}"].value
    if found.value is None:
        return f" In {layer} no such share is defined: of {found.words.rpartition('; of ')[2]}."
    if area is None or area >= LITTLE_FREE:
        return ""
    return f" In {layer} the fields of the added neurons leave {area:.0%} of the image free, which is little."


def _format(finding: Finding, form: str) -> str:
    """Format a finding for a sentence, with its interval if it is of several features and not a power of ten."""
    return (
        format_value(finding.value, form) if finding.count < 2 or form.endswith("e") else format_interval(finding, form)
    )
