"""Names of statistics in words, as figures and reports show them."""

from __future__ import annotations

from collections.abc import Sequence

STATISTIC_LABELS = {
    "response_nonlinearity": "response nonlinearity",
    "excess": "response nonlinearity less its floor",
    "image_nonlinearity": "image nonlinearity",
    "retention": "retention: share of its solo response that {0} keeps on the joint image",
    "crosstalk": "cross-talk: share of its solo response that {0} gives to the image of {1}",
    "second_difference": "second difference over |r_ab|",
    "self_saturation": "second difference of {0} with itself",
    "joint_gain": "joint gain over the best blend",
    "gradient_agreement": "gradient agreement (mean cosine)",
    "territory_divided": "share of firing positions with one unit",
    "territory_correlation": "correlation of the activation maps",
}


def statistic_label(figure: str, names: Sequence[str] = ()) -> str:
    """Return a figure's name in words; `names` are the units a, b, ... that its letters stand for."""
    head = next(
        (k for k in STATISTIC_LABELS if figure == k or (figure.startswith(f"{k}_") and "{" in STATISTIC_LABELS[k])),
        None,
    )
    if head is None:
        return figure.replace("_", " ")
    letters = [part for part in figure.removeprefix(head).split("_") if part and part != "on"]
    said = [names[ord(c) - ord("a")] if names else c for c in letters]
    return STATISTIC_LABELS[head].format(*said)


def labelled_statistics(columns: Sequence[str]) -> list[str]:
    """Return the figures among a table's columns that reports draw, in the order of `LABELS`."""
    found = []
    for head in STATISTIC_LABELS:
        found += [c for c in columns if c == head or (c.startswith(f"{head}_") and "{" in STATISTIC_LABELS[head])]
    return found
