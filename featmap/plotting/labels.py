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
    "second_derivative": "second derivative along the solo images over |r_ab|",
    "self_saturation": "second difference of {0} with itself",
    "joint_gain": "joint gain over the best blend",
    "gradient_agreement": "gradient agreement (mean cosine)",
    "territory_divided": "share of firing positions with one unit",
    "territory_correlation": "correlation of the activation maps",
    "photograph_correlation": "correlation of the responses to photographs",
    "photograph_lift": "strong on the same photograph, times chance",
    "place_lift": "firing at the same place of photographs, times chance",
    "natural_nonlinearity": "response nonlinearity on photographs of both",
    "natural_difference": "second difference on photographs",
    "joint_agreement": "photographs of both against the joint image, rank correlation over features",
    "natural_excess": "response nonlinearity on photographs of both, less its floor",
    "direct": "mixed difference at photographs",
    "direct_curvature": "second derivative at photographs, by differences",
    "direct_hessian": "second derivative at photographs",
}


def statistic_label(name: str, units: Sequence[str] = ()) -> str:
    """Return the name of a statistic in words.

    Parameters
    ----------
    name : str
        Name of a column, such as "retention_a" or "crosstalk_b_on_a".
    units : sequence of str, optional
        Units that the letters a, b, ... stand for; without them the letters are shown.

    Returns
    -------
    str
        Its label; the column's own name, with spaces, if there is none.
    """
    head = next((k for k in STATISTIC_LABELS if _belongs_to(name, k)), None)
    if head is None:
        return name.replace("_", " ")
    letters = [part for part in name.removeprefix(head).split("_") if part and part != "on"]
    return STATISTIC_LABELS[head].format(*(units[ord(c) - ord("a")] if units else c for c in letters))


def labelled_statistics(columns: Sequence[str]) -> list[str]:
    """Select the statistics that reports draw.

    Parameters
    ----------
    columns : sequence of str
        Columns of a table.

    Returns
    -------
    list of str
        Those that have a label, in the order of `STATISTIC_LABELS`.
    """
    return [name for head in STATISTIC_LABELS for name in columns if _belongs_to(name, head)]


def _belongs_to(name: str, head: str) -> bool:
    """Check whether a column is a statistic, or one of those that a label with units in it names."""
    return name == head or (name.startswith(f"{head}_") and "{" in STATISTIC_LABELS[head])
