"""The table of verdicts: which claim holds on which network, where networks disagree, and what fills a gap."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from analyses.support.records import IN_FULL
from analyses.support.study import FIRST, NETWORKS, Study
from featmap.image_shape import format_size

Record = Mapping[str, Any]
OPTIONS = {
    "reference": "",
    "googlenet": " --model googlenet",
    "squeezenet": " --model squeezenet1_1 --name squeezenet",
    "inception_v3": " --model inception_v3",
    "resnet50": " --model resnet50",
}
"""Options that name each network, with the weights that torchvision publishes."""
NOT_MEASURED, OUR_QUESTION = "not measured", " (our question)"
BRIEFLY = {
    "maximised_unit": "position is place; interior channels see further; several images of one neuron",
    "neuron_growth": "one more neuron changes the whole image",
    "octaves": "octaves: finer than down-sampling, patterns of plain descent, fewer grids",
    "coactivation": "another feature ends almost as active as the maximised one",
    "layer_maps": "from colours to patterns with depth; a CMYK-like palette",
    "metrics": "l1, l2 and linf give the same patterns; l1 the least noise",
    "architectures": "last modules: GoogLeNet's images are the more coherent",
    "gradient_sum": "gradient of a sum and sum of gradients give the same image",
    "reproducibility": "same image again on one machine",
    "natural_start": "descents can start from a photograph",
    "branches": "similar features share a branch",
    "joint_pair": "the pair's joint image is far from linear, and divided",
}
"""The claims in a few words."""
REASONS = {
    "metrics": "What decides about the noise are differences of a few thousandths of the power between few features; "
    "results in full have other sizes and more steps than those beside them.",
    "branches": "The fewer branches a module has for its clusters, the lower is the ARI even of clusters that each lie "
    "within one branch, as with two branches and a dozen clusters; each conclusion says how high it could be.",
    "coactivation": "What differs is how high the named feature's runner-up ends, which depends on the scales of both "
    "features; whether runners-up respond to their targets' images is tested apart from that, see below.",
    "natural_start": "Where only a 1/f image was tried, it holds in part at most; with a photograph it can hold.",
}
"""Why networks disagree about a study's claim, where that is known; printed only where they do."""
PART_REASONS = {
    "maximised_unit": "squeezenet's modules have two branches, so that no channel is interior; on the bundled network "
    "the last branch has the field of interior channels, which leaves one comparison of two. That several images of "
    "one neuron are rare takes more neurons than were measured; that they are not can be shown with fewer.",
    "neuron_growth": "in the networks trained on ImageNet more of the added neurons have no gradient at their "
    "position, and with few features the interval of their share spans a half unless nearly all have one.",
    "octaves": "with few features in the first layer, the interval of the share with grids spans a half; the ceiling "
    "of the patterns' agreement takes two seeds.",
    "layer_maps": "a first layer of 3 x 3 pixels (squeezenet, inception_v3) has hardly room for more than a colour; "
    "one of 7 x 7 (reference, googlenet) has, and many of its features are edges and stripes.",
    "metrics": "l2 agrees with l1 everywhere; it is linf that decides, which agrees by about half of the ceiling in "
    "images of 224 pixels or more, and by more in smaller ones.",
    "joint_pair": "there is one pair on each network. How far from linear it is stays open where the interval over its "
    "seeds reaches the floor. Whether the two divide the image can be seen only in images larger than their receptive "
    "fields; each conclusion says where they are smaller.",
}
"""Why parts of a study's claim differ between networks, where that is known; printed only where they do."""
OTHER_FEATURES = {
    "inception_v3": "these weights, TensorFlow's of 2015, most likely have other features under the same numbers"
}
"""Why a feature of a number that the article names may not be the article's, by network."""
FIRST_WORDS = {
    "octaves": "The features are the first ones of each layer, as in the article's picture of the first layer; those "
    "of Mixed 6b it chooses arbitrarily",
    "coactivation": "The features are the first ones of the layer, and number 5 is the named one: the article names "
    "feature 5 of GoogLeNet's layer 5a, and none of this network",
}
"""What the first features of a layer are to the article, where it does not show them by number."""
_SAME_NUMBERS = f"have the numbers that the article names; {OTHER_FEATURES['inception_v3']}"
_PALETTE = "The article's palette is that of InceptionV3; it leaves open whether other networks have one like it"
_NOT_NAMED = "The article's numbers are features of another network; here they name features like any others"
CAVEATS = {
    ("architectures", "inception_v3"): "These weights end at Mixed_7a, before the two modules that the claim names; "
    "the numbers of classes are of their 1,280 pooled features, which are no classes",
    ("maximised_unit", "googlenet"): "The last branch of these modules has the field of the second; only the third's "
    "is larger",
    ("maximised_unit", "inception_v3"): "The article finds that a neuron of 415, an interior channel, changes more of "
    "the image than one of 654, which is near the end of the module",
    ("joint_pair", "inception_v3"): f"The features of the pair {_SAME_NUMBERS}",
    ("layer_maps", "inception_v3"): f"The first features of each layer {_SAME_NUMBERS}",
    ("layer_maps", "googlenet"): _PALETTE,
    ("layer_maps", "squeezenet"): _PALETTE,
    ("coactivation", "googlenet"): "The article's GoogLeNet has, most likely, other weights and another feature 5",
    ("coactivation", "squeezenet"): _NOT_NAMED,
    ("joint_pair", "googlenet"): _NOT_NAMED,
    ("joint_pair", "squeezenet"): _NOT_NAMED,
}
"""What a reader of a result has to know beside its conclusion, of weights that are not torchvision's."""
NUMBERS = ["no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
PART = re.compile(r"(?:^|[.] |claim )[Tt]hat ([^.:]+?),? (holds in part|holds|does not hold|is not decided)(?=[,:. ])")
"""A part of a claim, and whether it holds, in a conclusion."""
SAMPLES = {"joint_pair": "1 pair", "gradient_sum": "{} pairs", "branches": "maps"}
"""What a study is about, where that is not features of each layer."""
FEWEST_SEEDS = {"neuron_growth": 2}
"""Seeds that a study takes at least, whatever is given."""
FEW_PAIRS, BRANCHES, MODULES = 10, 4, ("reference", "googlenet", "inception_v3")
"""Random pairs among which a pair has no place yet; branches of a module of these networks."""


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


def describe_caveats(study: Study, model: str, record: Record) -> list[str]:
    """Say what a reader of a result has to know beside its conclusion.

    Parameters
    ----------
    study : Study
        The study.
    model : str
        Name of the network's column.
    record : mapping
        Its stored record.

    Returns
    -------
    list of str
        Sentences without their full stops.
    """
    texts = [CAVEATS[study.name, model]] if (study.name, model) in CAVEATS and record.get("origin") else []
    settings, findings = record["settings"], {f["name"]: f for f in record["findings"]}
    texts += _describe_units(study, model, settings, bool(record.get("origin")))
    pairs = findings["random_excess"]["count"] if "random_excess" in findings else FEW_PAIRS
    if pairs < FEW_PAIRS:
        were = "random pair was" if pairs == 1 else "random pairs were"
        texts.append(f"{pairs} {were} measured beside it: where the article's pair lies among others is not known here")
    if study.name == "maximised_unit" and model in MODULES and settings["features"] < 2 * BRANCHES:
        texts.append("With one neuron in each branch, means of branches have no interval")
    if study.name == "neuron_growth":
        shares = [(layer, findings.get(f"outside:{layer}")) for layer in settings["layers"]]
        texts += [_describe_share(found, layer) for layer, found in shares if found is not None]
    return [text for text in texts if text]


def _describe_units(study: Study, model: str, settings: Mapping[str, Any], other: bool) -> list[str]:
    """Say whether features are those that the article names, where it names some of this network.

    `other`: whether the weights are others than torchvision's.
    """
    named = study.units.get(model, ())
    if not named and not settings.get("units"):
        return []
    words = "the first ones of each layer" if FIRST in named else " and ".join(named)
    if not settings.get("units"):
        return [f"The features were drawn, and are not those that the article shows ({words})"]
    both = [unit for unit in settings["units"] if unit in named]
    if not both:
        given = " and ".join(settings["units"]).replace(FIRST, "the first ones of each layer")
        return [f"Features that were named: {given}; the others were drawn"]
    measured = " and ".join(both).replace(FIRST, "the first ones of each layer")
    missing = [unit for unit in named if unit not in settings["units"]]
    if FIRST in both and study.name in FIRST_WORDS:
        return [FIRST_WORDS[study.name] + (f"; {OTHER_FEATURES[model]}" if other and model in OTHER_FEATURES else "")]
    text = f"{_count_named(both, settings['features'])} the numbers that the article names ({measured})"
    text += f"; {' and '.join(missing)} were not measured" if missing else ""
    return [text + (f"; {OTHER_FEATURES[model]}" if other and model in OTHER_FEATURES else "")]


def _count_named(units: Sequence[str], features: int) -> str:
    """Say how many of the features are these, such as "Two of the six features of LAYER have"."""
    counts = Counter(unit.rpartition(":")[0] for unit in units if unit != FIRST)
    if all(count >= features for count in counts.values()):
        return "The features have"
    parts = [
        f"{_number(count)} of the {_number(features)} features of {layer}"
        if count < features
        else f"the features of {layer}"
        for layer, count in counts.items()
    ]
    text = _join(parts)
    return f"{text[0].upper()}{text[1:]} {'has' if sum(counts.values()) == 1 else 'have'}"


def _number(count: int) -> str:
    """Write a number as a word, up to twelve."""
    return NUMBERS[count] if count < len(NUMBERS) else str(count)


def _describe_share(finding: Mapping[str, Any], layer: str) -> str:
    """Say of how few of a layer's drawn features a share is; "" where they are two thirds or more, or none."""
    words, _, reasons = finding["words"].rpartition("; of ")
    drawn, _, why = reasons.partition(" drawn")
    if not words or not 0 < finding["count"] < 2 / 3 * int(drawn):
        return ""
    return f"The share outside the field in {layer} is of {finding['count']} of {drawn} drawn features{why}"


def filling_command(study: Study, model: str, *, full: bool = False) -> str:
    """Write the command that measures a study on a network.

    Parameters
    ----------
    study : Study
        The study.
    model : str
        Name of the network's column.
    full : bool, default False
        Whether the result in full is meant.

    Returns
    -------
    str
        The command.
    """
    image = " --image PHOTOGRAPH" if study.takes_image else ""
    options = f"{OPTIONS.get(model, f' --model {model}')}{image}{' --full' * full}"
    return f"python -m analyses.{study.name}{options}"


def describe_gap(study: Study, model: str, *, full: bool = False) -> str:
    """Say that a study was not measured on a network, and how it can be.

    Parameters
    ----------
    study : Study
        The study.
    model : str
        Name of the network's column.
    full : bool, default False
        Whether the result in full is meant.

    Returns
    -------
    str
        Text of a table cell.
    """
    return f"{NOT_MEASURED}: `{filling_command(study, model, full=full)}`"


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


def describe_disagreement(study: str, records: Mapping[str, Record], subject: str = "claim") -> str:
    """Say on which networks a claim holds, where they disagree.

    Parameters
    ----------
    study : str
        Name of the study.
    records : mapping of str to mapping
        Its records by network.
    subject : str, default "claim"
        What the verdicts are about.

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
    parts = [f"it {words.get(v, v)} on {_join(models)}" for v, models in networks.items()]
    reason = f" {REASONS[study]}" if study in REASONS else ""
    return f"The networks disagree about the {subject}: {', '.join(parts)}.{reason}"


def _join(names: Sequence[str]) -> str:
    """Join names by commas and "and"."""
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def describe_parts(study: str, records: Mapping[str, Record]) -> str:
    """Say which parts of a claim hold on some networks and not on others, as their conclusions say it.

    Parameters
    ----------
    study : str
        Name of the study.
    records : mapping of str to mapping
        Its records by network.

    Returns
    -------
    str
        A sentence, and another one where the reason is known; "" where no part is decided on one network and
        otherwise on another.
    """
    found: dict[str, dict[str, list[str]]] = {}
    for model, record in measured_networks(records).items():
        for part, outcome in PART.findall(record["conclusion"]):
            found.setdefault(part, {}).setdefault(outcome, []).append(model)
    differing = [
        f"that {part} {', '.join(f'{outcome} on {_join(models)}' for outcome, models in by_outcome.items())}"
        for part, by_outcome in found.items()
        if len(by_outcome) > 1
    ]
    if not differing:
        return ""
    reason = f" As far as the measured values tell why: {PART_REASONS[study]}" if study in PART_REASONS else ""
    return f"Parts of the claim that differ between networks: {'; '.join(differing)}.{reason}"


def describe_verdict(study: Study, record: Record) -> str:
    """Write a verdict with the number of parts that hold and the size of the sample.

    Parameters
    ----------
    study : Study
        The study.
    record : mapping
        A stored record.

    Returns
    -------
    str
        Text of a table cell, such as "holds in part (2 of 3; 8 x 2)".
    """
    parts = [outcome for _, outcome in PART.findall(record["conclusion"])]
    some = f", {parts.count('holds in part')} in part" if "holds in part" in parts else ""
    held = f"{parts.count('holds')} of {len(parts)}{some}; " if len(parts) > 1 else ""
    settings = record["settings"]
    sample = SAMPLES.get(study.name, "{}").format(settings["features"])
    sizes = {format_size(descent["sizes"][-1]): None for descent in record.get("descents", [])}
    size = " and ".join(sizes)
    pixels = f", {size} px" * bool(size)
    return f"{record['verdict']} ({held}{sample} x {max(settings['seeds'], FEWEST_SEEDS.get(study.name, 1))}{pixels})"


def verdict_table(
    studies: Sequence[Study], records: Mapping[str, Mapping[str, Record]], ours: Collection[str] = ()
) -> str:
    """Write the table of verdicts, one row for each study and one column for each network.

    Parameters
    ----------
    studies : sequence of Study
        The studies in the order of the page.
    records : mapping of str to mapping
        Records by study and network.
    ours : collection of str, default ()
        Names of the studies that ask a question of ours.

    Returns
    -------
    str
        A table in Markdown, followed by a line on each network whose weights have a stated origin.
    """
    measured = {study.name: measured_networks(records[study.name]) for study in studies}
    stored = [record for by_model in measured.values() for record in by_model.values()]
    further = {str(record["model"]) for record in stored} - set(NETWORKS)
    models = (*NETWORKS, *sorted(further))
    names = [f"{m} (bundled)" if m == "reference" else m for m in models]
    lines = ["## Verdicts", "", f"| study | claim | {' | '.join(names)} |", f"|---|---|{'---|' * len(models)}"]
    for study in studies:
        for in_full in ("", IN_FULL):
            of_study = {m: record for m in models if (record := measured[study.name].get(f"{m}{in_full}"))}
            if of_study or not in_full:
                cells = [describe_verdict(study, of_study[m]) if m in of_study else NOT_MEASURED for m in models]
                name = f"[{study.name}](#{study.name}){OUR_QUESTION * (study.name in ours)}{in_full}"
                lines.append(f"| {name} | {BRIEFLY.get(study.name, '')} | {' | '.join(cells)} |")
    lines += [
        "",
        "In brackets: how many of the measured parts of a claim hold, where it has several (what is not measured is "
        "not "
        'counted); how many features of each layer were asked for ("maps": whole layers) x seeds; the size of the '
        "images. Each section says which parts these are, how many features they rest on and where "
        "networks disagree, and gives the command that fills a gap.",
    ]
    if any(record["settings"].get("full") for record in stored):
        lines += ["", '"In full": with `--full`, by the article\'s octaves and numbers of steps.']
    for model in models:
        origins = {
            f"{record['origin'].replace('<', '&lt;')} (weights {record['weights_sha256'][:12]})": None
            for record in stored
            if record["model"] == model and record.get("origin")
        }
        words = f"`{model}`: {' and '.join(origins)}. These weights are not part of the project."
        lines += ["", words] if origins else []
    return "\n".join(lines) + "\n"
