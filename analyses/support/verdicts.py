"""The table of verdicts: which claim holds on which network, where networks disagree, and what fills a gap."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from analyses.support.study import NETWORKS, Study

Record = Mapping[str, Any]
OPTIONS = {
    "reference": "",
    "googlenet": " --model googlenet",
    "squeezenet": " --model squeezenet1_1 --name squeezenet",
    "inception_v3": " --model inception_v3",
    "resnet50": " --model resnet50",
}
"""Options that name each network, with the weights that torchvision publishes."""
NOT_MEASURED = "not measured"
REASONS = {
    "coactivation": "What differs is how high the named feature's runner-up ends, which depends on the scales of both "
    "features; whether runners-up respond to their targets' images is tested apart from that, see below.",
    "natural_start": "Where only a 1/f image was tried, it holds in part at most; with a photograph it can hold.",
}
"""Why networks disagree about a study's claim, where that is known; printed only where they do."""
GAPS = {
    ("architectures", "inception_v3"): "the weights that were at hand for the other studies end at Mixed_7a, before "
    "the two modules that the claim names",
}
"""Why a study was not measured on a network on which others were; printed only where it was not."""

_DRAWN = "The features were drawn, and are not those that the article shows (654 and 415 of Mixed_6b, its first ones)"
CAVEATS = {
    (
        "joint_pair",
        "inception_v3",
    ): "One random pair was measured beside it: where the article's pair lies among others is not known here",
    ("maximised_unit", "inception_v3"): f"{_DRAWN}; with one neuron in each branch, means of branches have no interval",
    ("maximised_unit", "googlenet"): "The last branch of these modules has the smaller field here, and is compared",
    ("neuron_growth", "inception_v3"): _DRAWN,
    ("neuron_growth", "googlenet"): "The shares are of 4 of the 8 drawn features: in the others the added neurons "
    "change nothing, as more than half of all added neurons do",
    ("octaves", "inception_v3"): _DRAWN,
    ("metrics", "inception_v3"): _DRAWN,
    ("metrics", "googlenet"): "C = 200 is 0.56 of the activation that l1 reaches here, so that l2 and linf aim at less "
    "than l1: with C = 10 a, which is large, l2 agrees with l1 as l1 with itself (the last rows)",
    ("coactivation", "inception_v3"): "Five features, one of them with a tie, cannot reach the level of the test; the "
    "runner-up itself ends as high as on the other ImageNet networks",
    ("gradient_sum", "squeezenet"): "The ratio is over 3 of 5 pairs: in the other two both ways gave the same images, "
    "to the bit",
    ("gradient_sum", "inception_v3"): "The ratio's mean and interval say nothing: in one of four pairs the rounding "
    "did not grow, so that the ratio of that pair is very large",
    ("layer_maps", "inception_v3"): "Two features of each layer were maximised, and 32 of the first one for the "
    "palette, of which one without a gradient is left out",
    ("reproducibility", "inception_v3"): "With two threads instead of one, neither image was the same: the number of "
    "threads is reported, and does not count for the verdict",
}
"""What a reader of a network's result has to know beside its conclusion."""


def is_random(record: Record) -> bool:
    """Check whether a record is of a network with random weights.

    Parameters
    ----------
    record : mapping
        A stored record.

    Returns
    -------
    bool
        True if it is.
    """
    return ", weights random" in record.get("network", "")


def display_name(model: str, record: Record) -> str:
    """Choose a network's name on the page.

    Parameters
    ----------
    model : str
        Name of its column.
    record : mapping
        A stored record.

    Returns
    -------
    str
        The name, with the origin of the weights in brackets where it is known.
    """
    if is_random(record):
        return f"{model} with random weights"
    return f"{model} ({record['origin'].replace('<', '&lt;')})" if record.get("origin") else model


def filling_command(study: Study, model: str) -> str:
    """Write the command that measures a study on a network.

    Parameters
    ----------
    study : Study
        The study.
    model : str
        Name of the network's column.

    Returns
    -------
    str
        The command.
    """
    image = " --image PHOTOGRAPH" if study.takes_image else ""
    return f"python -m analyses.{study.name}{OPTIONS.get(model, f' --model {model}')}{image}"


def describe_gap(study: Study, model: str) -> str:
    """Say that a study was not measured on a network, how it can be, and why it was not where that is known.

    Parameters
    ----------
    study : Study
        The study.
    model : str
        Name of the network's column.

    Returns
    -------
    str
        Text of a table cell.
    """
    reason = f" ({GAPS[study.name, model]})" if (study.name, model) in GAPS else ""
    return f"{NOT_MEASURED}: `{filling_command(study, model)}`{reason}"


def measured_networks(records: Mapping[str, Record]) -> dict[str, Record]:
    """Leave out the records of networks with random weights.

    Parameters
    ----------
    records : mapping of str to mapping
        Records of one study by network.

    Returns
    -------
    dict of str to mapping
        The others.
    """
    return {model: record for model, record in records.items() if not is_random(record)}


def describe_disagreement(study: str, records: Mapping[str, Record]) -> str:
    """Say on which networks a claim holds, where they disagree.

    Parameters
    ----------
    study : str
        Name of the study.
    records : mapping of str to mapping
        Its records by network.

    Returns
    -------
    str
        A sentence, and another one where the reason is known; "" where the decided verdicts are the same.
    """
    networks: dict[str, list[str]] = {}
    for model, record in measured_networks(records).items():
        networks.setdefault(record["verdict"], []).append(model)
    decided = [verdict for verdict in networks if verdict != "not decided"]
    if len(decided) < 2:
        return ""
    words = {"not decided": "is not decided"}
    parts = [
        f"it {words.get(v, v)} on {' and '.join(filter(None, (', '.join(models[:-1]), models[-1])))}"
        for v, models in networks.items()
    ]
    reason = f" {REASONS[study]}" if study in REASONS else ""
    return f"The networks disagree about the claim: {', '.join(parts)}.{reason}"


def verdict_table(studies: Sequence[Study], records: Mapping[str, Mapping[str, Record]]) -> str:
    """Write the table of verdicts, one row for each study and one column for each network.

    Parameters
    ----------
    studies : sequence of Study
        The studies in the order of the page.
    records : mapping of str to mapping
        Records by study and network.

    Returns
    -------
    str
        A table in Markdown, followed by a line on each network whose weights have a stated origin.
    """
    measured = {study.name: measured_networks(records[study.name]) for study in studies}
    further = {model for by_model in measured.values() for model in by_model} - set(NETWORKS)
    models = (*NETWORKS, *sorted(further))
    lines = ["## Verdicts", "", f"| study | {' | '.join(models)} |", f"|---|{'---|' * len(models)}"]
    for study in studies:
        of_study = measured[study.name]
        cells = [of_study[m]["verdict"] if m in of_study else NOT_MEASURED for m in models]
        lines.append(f"| [{study.name}](#{study.name}) | {' | '.join(cells)} |")
    lines += ["", "Each section gives the command that fills a gap, and says where networks disagree."]
    for model in models:
        origins = {
            f"{record['origin'].replace('<', '&lt;')} (weights {record['weights_sha256'][:12]})": None
            for by_model in measured.values()
            for name, record in by_model.items()
            if name == model and record.get("origin")
        }
        words = f"`{model}`: {' and '.join(origins)}. These weights are not part of the project."
        lines += ["", words] if origins else []
    return "\n".join(lines) + "\n"
