"""Verdict of `analyses.architectures`: its two parts, on GoogLeNet and InceptionV3, and on ResNet between them."""

from __future__ import annotations

from dataclasses import dataclass

from analyses.support.network_means import Means, compare_modules, compare_phrase, format_means
from analyses.support.study import Verdict

GOOGLENET, INCEPTION, RESNET = "googlenet", "inception_v3", "resnet50"
NAMES = ("GoogLeNet", "InceptionV3")
P = 0.05
"""Level of the tests."""


@dataclass(frozen=True)
class Part:
    """One part of the claim.

    Parameters
    ----------
    verdict : str
        Whether it holds.
    why : str
        The numbers, or what is missing.
    """

    verdict: Verdict
    why: str

    @property
    def verb(self) -> str:
        """The verdict as the verb of a sentence."""
        return "is not decided" if self.verdict == "not decided" else self.verdict


def judge_parts(counted: Means, published: Means) -> tuple[Verdict, Part, Part]:
    """Judge the claim and its two parts.

    Parameters
    ----------
    counted : dict
        Means of the networks that were measured in the claim's layers with published weights.
    published : dict
        Means of all networks with published weights.

    Returns
    -------
    verdict : str
        That on the claim: both parts have to hold.
    first, second : Part
        That GoogLeNet's images are more coherent than InceptionV3's, and that ResNet behaves like both.
    """
    first = judge_two(counted, published)
    second = judge_resnet(counted, published, first.verdict)
    return "holds in part" if first.verdict == "holds" != second.verdict else first.verdict, first, second


def judge_two(counted: Means, published: Means) -> Part:
    """Judge whether GoogLeNet's images are more coherent than InceptionV3's.

    Parameters
    ----------
    counted, published : dict
        See `judge_parts`.

    Returns
    -------
    Part
        It holds if GoogLeNet's share is the lower one in both modules, and in part if it is in one.
    """
    missing = [m for m in (GOOGLENET, INCEPTION) if m not in counted]
    if missing:
        why = "; ".join(describe_missing(m, published) for m in missing)
        if GOOGLENET in published and INCEPTION in published:
            why += f". In the layers measured, {compare_phrase(published[GOOGLENET], published[INCEPTION], NAMES)}"
        return Part("not decided", why)
    google, inception = counted[GOOGLENET], counted[INCEPTION]
    found, text = compare_modules(google, inception), compare_phrase(google, inception, NAMES)
    if all(one.below(P) for one in found):
        return Part("holds", text)
    if any(one.below(P / len(found)) for one in found):
        return Part("holds in part", text)
    return Part("does not hold" if any(one.above(P / len(found)) for one in found) else "not decided", text)


def judge_resnet(counted: Means, published: Means, first: Verdict) -> Part:
    """Judge whether ResNet behaves like both.

    Parameters
    ----------
    counted, published : dict
        See `judge_parts`.
    first : str
        Verdict on the two others: only where it holds are they the ends of a range.

    Returns
    -------
    Part
        It does not hold if ResNet's share is outside the range of the two in either module.
    """
    if RESNET not in counted:
        return Part("not decided", describe_missing(RESNET, published))
    third = counted[RESNET]
    shares = f"ResNet's shares are {format_means(third)} in {' and '.join(third)}"
    if first != "holds":
        return Part("not decided", f"{shares}, and the two others are not the ends of a range")
    below = any(one.below(P) for one in compare_modules(third, counted[GOOGLENET]))
    above = any(one.above(P) for one in compare_modules(third, counted[INCEPTION]))
    if below or above:
        ends = " and ".join(["below GoogLeNet's"] * below + ["above InceptionV3's"] * above)
        return Part("does not hold", f"{shares}, clearly {ends} in at least one module")
    return Part("holds", f"{shares}, in neither module clearly below GoogLeNet's or above InceptionV3's")


def describe_missing(model: str, published: Means) -> str:
    """Say why a network decides nothing.

    Parameters
    ----------
    model : str
        Name of the network.
    published : dict
        Means of all networks with published weights.

    Returns
    -------
    str
        That it was not measured, or in other layers than the claim's.
    """
    if model not in published:
        return f"{model} was not measured with published weights"
    return f"{model} was measured in {' and '.join(published[model])}, which are not the claim's layers"
