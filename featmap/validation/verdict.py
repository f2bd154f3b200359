"""State what the evaluation of a map allows to conclude, and write it as one page of Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

from featmap.mapping.flags import RELIABLE
from featmap.stats.map_agreement import NEAREST
from featmap.validation.results import Evaluation, Statistic, Validation
from featmap.validation.statistics import TARGET_RELIABILITY

HIGH_SHARE = 0.9
"""Share of the ceiling of the agreement with photographs from which S may be read as similarity over photographs: the
lower end of its interval must reach it."""
LOW_SHARE = 0.4
"""Share of that ceiling up to which no conclusion about photographs is drawn."""
MIN_RELIABILITY = 0.95
"""Reliability of the photographs that this takes: with few of them the ceiling falls more than the agreement, and the
share rises. In one layer of GoogLeNet the share was 1.12 with 32 photographs, 0.91 with 250 and 0.86 with 1,000."""
LOW_AGREEMENT = 0.3
"""Correlation with S over photographs up to which none is drawn whatever the ceiling: a low ceiling is soon reached."""
TYPICAL_PATH, ATYPICAL_PATH = 0.8, 0.5
"""Processing-path scores from which images count as typical preferred stimuli, and below which they do not at all."""
MAX_OUTDONE = 0.25
"""Share of features that a photograph excites more than their image, above which images do not count as maximising."""
MIN_ARI, MIN_ARI_SHARE = 0.8, 0.9
"""Agreement of two seeds' clusters from which members may be named: as an ARI, and as a share of Louvain's own ARI."""
ALPHA = 0.05
"""Level at or below which a p-value counts."""

SENTENCES = {
    "repeatability": "S of one seed correlates {value} with S of another (mean over pairs of seeds).",
    "repeatability_of_map": "The run's own map (mean of {count} seed(s)) would correlate {value} with its repetition.",
    "repeatability_of_all": "The mean of all {count} seeds would correlate {value} with its repetition.",
    "seeds_needed": f"A map of {{value}} seed(s) would reach {TARGET_RELIABILITY}, by Spearman-Brown.",
    "feature_reliability": "Half of the {count} features have a seed-to-seed reliability above {value}.",
    "unreliable_features": f"{{value}} of {{count}} features have a reliability below {RELIABLE} in the run's map and "
    "are marked.",
    "stimuli_reliability": "Over the choice of the {count} images S has a reliability of at least {value} (split "
    "halves, Spearman-Brown).",
    "ari_of_seeds": "Clusters of two seeds agree with ARI {value}.",
    "ari_of_louvain": "Clusters of one and the same map, found again with other seeds of Louvain, agree with ARI "
    "{value}: the agreement between seeds is compared with this.",
    "photographs_pearson": "S correlates {value} with S over photographs (Mantel, raw).",
    "photographs_spearman": "The same in ranks: {value}.",
    "photographs_reliability": "S over these {count} photographs has a split-half reliability of {value}.",
    "photographs_corrected": "Corrected for attenuation, S correlates {value} with S over photographs.",
    "photographs_agreement": "S correlates {value} with S over half of the photographs (mean of both halves).",
    "photographs_ceiling": "The ceiling of that: with one best photograph of each feature, chosen in the other half, "
    "in the place of its image, the correlation is {value}.",
    "photographs_share": "S reaches {value} of the ceiling (1: as much as best photographs; {count} features).",
    "photographs_halves": "S over the one half of the photographs correlates {value} with S over the other.",
    "photographs_overlap": f"Of a feature's {NEAREST} nearest features {{value}} are among the nearest over half of "
    "the photographs.",
    "photographs_overlap_ceiling": "With best photographs in the place of the images it is {value}.",
    "photographs_overlap_share": "Above the overlap of unrelated maps, that is {value} of the ceiling.",
    "dora_layer_spearman": "DORA's layer-wise extreme-activation distance, computed from the same A, has a rank "
    "correlation of {value} with S over photographs.",
    "dora_pair_spearman": "DORA's pair-wise extreme-activation distance, computed from the same A, has {value}.",
    "multiple": "The maximising image excites its feature {value} times as much as the best photograph (median).",
    "below_best_photograph": "{value} of the features have a photograph that excites them more than their image does.",
    "path_passed_over": "{value} of the {count} layers on the processing path were not measured.",
    "incoming_weights": "S correlates {value} with the cosine of incoming weights, over the {count} pairs of one "
    "convolution.",
    "incoming_weights_spearman": "The same in ranks: {value}.",
    "outgoing_weights": "S correlates {value} with the cosine of the weights that read the features ({count} pairs).",
    "outgoing_weights_spearman": "The same in ranks: {value}.",
    "clusters": "The nulls allow {value} clusters of two or more features.",
    "modularity": "Louvain reaches a modularity of {value} on the map's neighbour graph.",
    "modularity_permuted": "With A permuted within columns it reaches {value}.",
}
_PATH_SENTENCE = "At {layer}, maximising images are {value} of the way from other features' photographs to their own."
WHOLE_NUMBERS = ("seeds_needed", "unreliable_features", "clusters", "path_passed_over")
"""Statistics that are counts."""


def format_value(value: float | None, whole: bool = False) -> str:
    """Format a number for the page.

    Parameters
    ----------
    value : float or None
        The number.
    whole : bool, default False
        Whether it is a count.

    Returns
    -------
    str
        Three decimals, four from 0.98 to 1, three significant digits from 10 on; a dash where it is undefined.
    """
    if value is None:
        return "–"
    if whole:
        return f"{value:.0f}"
    return f"{value:.4f}" if 0.98 <= abs(value) < 1 else f"{value:.3g}" if abs(value) >= 10 else f"{value:.3f}"


def format_interval(low: float | None, high: float | None, form: str = " [{}, {}]", whole: bool = False) -> str:
    """Format an interval for the page.

    Parameters
    ----------
    low, high : float or None
        Its ends.
    form : str, default " [{}, {}]"
        Text with a place for each end.
    whole : bool, default False
        Whether the ends are counts.

    Returns
    -------
    str
        "" where there is no interval or its ends are equal.
    """
    return "" if low is None or low == high else form.format(format_value(low, whole), format_value(high, whole))


def format_count(count: float, noun: str) -> str:
    """Format a number of things.

    Parameters
    ----------
    count : float
        A whole number.
    noun : str
        The thing, in the singular.

    Returns
    -------
    str
        Such as "1 layer" or "3 layers".
    """
    return f"{count:.0f} {noun}" + ("" if count == 1 else "s")


def describe_statistic(statistic: Statistic) -> str:
    """Describe a statistic in a sentence.

    Parameters
    ----------
    statistic : Statistic
        The statistic.

    Returns
    -------
    str
        The sentence; where the value is undefined, why.
    """
    if statistic.value is None and statistic.name.startswith("ari_"):
        return "Undefined: every partition is one cluster or has single features only, or there is too little data."
    if statistic.value is None:
        return f"Undefined: {statistic.note or 'too few features or pairs that vary'}."
    number = format_value(statistic.value, statistic.name in WHOLE_NUMBERS)
    if statistic.name.startswith("path:"):
        return _PATH_SENTENCE.format(layer=statistic.name[5:], value=number) + f" ({statistic.note})"
    count = "–" if statistic.count is None else f"{statistic.count:,}"
    return SENTENCES[statistic.name].format(value=number, count=count)


@dataclass
class Verdict:
    """Conclusions that one layer's map allows, and those that it does not.

    Parameters
    ----------
    layer : str
        Name of the layer.
    may, may_not : list of str
        What may be concluded, and what may not; each completes "you may" or "you may not".
    remedies : list of str
        What would allow more.
    """

    layer: str
    may: list[str] = field(default_factory=list)
    may_not: list[str] = field(default_factory=list)
    remedies: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """Format the verdict as lines of text.

        Returns
        -------
        list of str
            Such as "inception4a: may not: ...".
        """
        parts = (("may", self.may), ("may not", self.may_not), ("remedy", self.remedies))
        return [f"{self.layer}: {head}: {text}" for head, texts in parts for text in texts]


def reach_verdict(evaluation: Evaluation, random: Evaluation | None = None) -> Verdict:
    """Decide what a layer's map allows to conclude, by fixed thresholds.

    A conclusion must hold at the lower end of its interval; a claim about learning must also exceed what the same
    network reaches with random weights. The thresholds are the constants of this module.

    Parameters
    ----------
    evaluation : Evaluation
        Evaluation of the layer in the trained network.
    random : Evaluation, optional
        Evaluation of the same layer with random weights.

    Returns
    -------
    Verdict
        The conclusions.
    """
    verdict = Verdict(evaluation.evidence.layer)
    _judge_repeatability(evaluation, verdict)
    _judge_clusters(evaluation, random, verdict)
    _judge_photographs(evaluation, random, verdict)
    _judge_responses(evaluation, verdict)
    _judge_path(evaluation, random, verdict)
    _judge_weights(evaluation, random, verdict)
    return verdict


def _value_with_interval(evaluation: Evaluation, name: str) -> str:
    """Format a statistic with its interval."""
    statistic = evaluation.statistics.get(name)
    if statistic is None:
        return "–"
    return format_value(statistic.value) + format_interval(statistic.low, statistic.high)


def _judge_repeatability(evaluation: Evaluation, verdict: Verdict) -> None:
    """Judge what may be quoted by the repeatability of the map, of its stimuli and of its features."""
    r, marked = evaluation.value("repeatability_of_map"), evaluation.value("unreliable_features")
    needed, stimuli = evaluation.value("seeds_needed"), evaluation.value("stimuli_reliability")
    count = int(evaluation.evidence.live.sum())
    features, images = format_count(count, "feature"), format_count(count, "image")
    if r is None:
        verdict.may_not.append("treat any similarity as repeatable: it is undefined (too few live features)")
    elif r >= TARGET_RELIABILITY:
        verdict.may.append(
            f"quote single similarities of these {features} over their {images}: a repetition of the map "
            f"would correlate {format_value(r)} with it"
        )
    elif r >= RELIABLE:
        verdict.may.append(
            f"describe the overall pattern of this map of {features}: a repetition would correlate "
            f"{format_value(r)} with it"
        )
        verdict.may_not.append(f"quote single similarities to two decimals (this needs {TARGET_RELIABILITY})")
    else:
        verdict.may_not.append(
            f"base any conclusion on this map: a repetition would correlate only {format_value(r)} with it"
        )
    if r is not None and r >= RELIABLE and stimuli is not None and stimuli < TARGET_RELIABILITY:
        verdict.may_not.append(
            f"generalise the similarities to other stimuli: over the choice of the {images} their reliability "
            f"is at least {format_value(stimuli)}, but not shown to be {TARGET_RELIABILITY}"
        )
    if r is not None and r < TARGET_RELIABILITY and needed is not None:
        verdict.remedies.append(f"a run of {format_count(needed, 'seed')}: {TARGET_RELIABILITY} is expected of it")
    if marked:
        names = evaluation.features.index[evaluation.features["reliable"] == 0]
        some = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        verdict.may_not.append(
            f"base any conclusion on the {format_count(marked, 'feature')} marked as unreliable ({some})"
        )


def _judge_clusters(evaluation: Evaluation, random: Evaluation | None, verdict: Verdict) -> None:
    """Judge the clusters by the nulls and by their agreement between seeds."""
    clusters, between_seeds, within_map = (
        evaluation.value(name) for name in ("clusters", "ari_of_seeds", "ari_of_louvain")
    )
    if clusters is None:
        return
    if clusters == 0:
        verdict.may_not.append("speak of clusters: the nulls do not allow any")
        return
    if (
        between_seeds is not None
        and within_map is not None
        and between_seeds >= MIN_ARI
        and between_seeds >= MIN_ARI_SHARE * within_map
    ):
        verdict.may.append(
            f"name the {format_count(clusters, 'cluster')} and their members (ARI over seeds "
            f"{format_value(between_seeds)}, of the same map with other seeds of Louvain {format_value(within_map)})"
        )
    else:
        verdict.may.append(f"say that there are groups (modularity beyond both nulls; {clusters:.0f} found)")
        verdict.may_not.append(
            f"assign single features to clusters: two seeds agree by ARI {format_value(between_seeds)}, the same map "
            f"with other seeds of Louvain by {format_value(within_map)} (at least {MIN_ARI} and {MIN_ARI_SHARE} of the "
            "latter are required)"
        )
    k = evaluation.evidence.neighbours
    verdict.may_not.append(f"look for groups of fewer than {k + 1} features: a graph of {k} neighbours can merge them")
    null = None if random is None else random.value("clusters")
    if null:
        verdict.may_not.append(
            f"attribute the existence of clusters to training: with random weights there are {null:.0f}"
        )


def _judge_photographs(evaluation: Evaluation, random: Evaluation | None, verdict: Verdict) -> None:
    """Judge what may be said of photographs by the share of the ceiling that the agreement with them reaches."""
    name, share_name = "photographs_pearson", "photographs_share"
    r, p, low = evaluation.value(name), evaluation.p(name), evaluation.low(name)
    if name not in evaluation.statistics:
        verdict.may_not.append("conclude anything about photographs: none were given")
        return
    share, least = evaluation.value(share_name), evaluation.low(share_name)
    values = f"share {_value_with_interval(evaluation, share_name)}: agreement "
    values += f"{_value_with_interval(evaluation, 'photographs_agreement')}, ceiling "
    values += f"{_value_with_interval(evaluation, 'photographs_ceiling')}; halves of the photographs with each other "
    values += f"{_value_with_interval(evaluation, 'photographs_halves')}; with all photographs raw r "
    values += _value_with_interval(evaluation, name)
    if r is None or p is None or p > ALPHA or r < LOW_AGREEMENT or (share is not None and share < LOW_SHARE):
        verdict.may_not.append(f"carry any of it over to photographs ({values})")
        return
    if share is None or least is None:
        statistic = evaluation.statistics.get(share_name)
        why = statistic.note if statistic is not None and statistic.note else "too few features or photographs"
        verdict.may_not.append(f"carry any of it over to photographs: the ceiling is undefined ({why}; {values})")
        return
    if least <= LOW_SHARE:
        verdict.may_not.append(
            f"carry any of it over to photographs: the interval reaches down to {LOW_SHARE} of the ceiling ({values})"
        )
        return
    of_photographs = evaluation.value("photographs_reliability")
    few = of_photographs is None or of_photographs < MIN_RELIABILITY
    if least >= HIGH_SHARE and not few:
        verdict.may.append(
            f"read S as similarity over photographs too, as far as one stimulus for each feature can show it ({values})"
        )
    else:
        verdict.may.append(f"expect features that are similar here to be similar over photographs as a rule ({values})")
        needed = f"the lower end of the share's interval at {HIGH_SHARE}"
        needed += f" and photographs of a reliability of {MIN_RELIABILITY}" if few else ""
        verdict.may_not.append(f"carry single similarities over to photographs (this needs {needed})")
        if few:
            verdict.remedies.append(
                "more photographs: these are too few to measure S over photographs reliably, and with few the ceiling "
                "falls more than the agreement, so that the share is too large"
            )
    null = None if random is None else random.value(name)
    if null is not None and low is not None and null >= low:
        verdict.may_not.append(
            f"credit training with the agreement with photographs: with random weights it is {format_value(null)}"
        )


def _judge_responses(evaluation: Evaluation, verdict: Verdict) -> None:
    """Judge whether the images are maximising by the responses to the best photographs."""
    multiple, outdone = evaluation.value("multiple"), evaluation.value("below_best_photograph")
    if multiple is not None and outdone is not None and (multiple < 1 or outdone > MAX_OUTDONE):
        verdict.may_not.append(
            f"call the images maximising: {100 * outdone:.0f} % of the features have a photograph that excites them "
            f"more (the median response to the image is {format_value(multiple)} times that to the best photograph)"
        )
        verdict.remedies.append("more steps or another recipe: these images do not reach the responses to photographs")


def _judge_path(evaluation: Evaluation, random: Evaluation | None, verdict: Verdict) -> None:
    """Judge whether the images are processed as photographs are, by the lowest score on the path."""
    path = {name[5:]: s for name, s in evaluation.statistics.items() if name.startswith("path:")}
    defined = {layer: s for layer, s in path.items() if s.value is not None}
    if not defined:
        if path:
            verdict.may_not.append(
                "say how the images are processed: too few features, or a feature's photographs are no more similar "
                "than others"
            )
        return
    layer = evaluation.evidence.layer
    lows = {name: -1.0 if s.low is None else s.low for name, s in defined.items()}
    worst, own = min(defined, key=lambda name: defined[name].value or 0.0), lows.get(layer, -1.0)
    skipped = evaluation.value("path_passed_over")
    where = f"at the {format_count(len(defined), 'layer')} measured"
    where += f", of {len(path) + int(skipped)} on the path" if skipped else ""
    lowest = f"lowest at {worst}: {_value_with_interval(evaluation, f'path:{worst}')}"
    null = None if random is None else random.value(f"path:{layer}")
    if own >= TYPICAL_PATH and null is not None and null >= own:
        verdict.may_not.append(
            f"regard the images as typical preferred stimuli: with random weights their path scores "
            f"{format_value(null)} at {layer} too (trained {_value_with_interval(evaluation, f'path:{layer}')})"
        )
    elif min(lows.values()) >= TYPICAL_PATH:
        verdict.may.append(f"regard the images as typical preferred stimuli {where} ({lowest})")
    elif own >= TYPICAL_PATH:
        verdict.may.append(
            f"regard the images as typical preferred stimuli at {layer} itself "
            f"({_value_with_interval(evaluation, f'path:{layer}')})"
        )
        verdict.may_not.append(f"assume that they are processed as photographs are {where} ({lowest})")
    else:
        highest = [s.value if s.high is None else s.high for s in defined.values()]
        extent = "at all" if any(h is not None and h < ATYPICAL_PATH for h in highest) else "without reserve"
        itself = ""
        if layer in defined and layer != worst:
            itself = f"; {layer} itself: {_value_with_interval(evaluation, f'path:{layer}')}"
        verdict.may_not.append(
            f"assume {extent} that the images are processed as photographs are {where} ({lowest}{itself})"
        )


def _judge_weights(evaluation: Evaluation, random: Evaluation | None, verdict: Verdict) -> None:
    """Judge whether S follows the incoming weights, and more so than with random weights."""
    name = "incoming_weights"
    r, p, low = evaluation.value(name), evaluation.p(name), evaluation.low(name)
    if r is None or p is None:
        return
    null = None if random is None else random.value(name)
    values = f"r {_value_with_interval(evaluation, name)}"
    values += "" if null is None else f", with random weights {format_value(null)}"
    if p <= ALPHA and low is not None and low > max(0.0, null or 0.0):
        verdict.may.append(f"say that features of similar incoming weights tend to be similar here ({values})")
    else:
        verdict.may_not.append(
            f"say that features of similar incoming weights are similar here because of learning ({values})"
        )


def format_page(title: str, network: str, validation: Validation, notes: Sequence[str]) -> str:
    """Format the page: verdicts and statistics, and how they were computed.

    Parameters
    ----------
    title : str
        Its title.
    network : str
        Description of the network.
    validation : Validation
        Results of the validation.
    notes : sequence of str
        How the results were computed.

    Returns
    -------
    str
        Markdown.
    """
    lines = [f"# {title}", "", network, ""]
    for layer, evaluation in validation.trained.items():
        verdict = reach_verdict(evaluation, validation.random.get(layer))
        lines += [f"## {layer}", ""]
        for head, texts in (
            ("What may be concluded", verdict.may),
            ("What may not", verdict.may_not),
            ("What would allow more", verdict.remedies),
        ):
            if texts:
                lines += [f"**{head}**", "", *[f"- {t[0].upper()}{t[1:]}." for t in texts], ""]
        lines += _statistics_table(evaluation, validation.random.get(layer), validation.permuted.get(layer, {}))
        lines += [""]
    if validation.reason:
        lines += [f"With random weights: none ({validation.reason}).", ""]
    lines += ["## How it was computed", "", *[f"- {n}" for n in notes], ""]
    # Nothing on the page is markup except its own tables and lists: names of layers and files are text.
    return escape("\n".join(lines), quote=False)


def _statistics_table(evaluation: Evaluation, random: Evaluation | None, permuted: dict[str, Statistic]) -> list[str]:
    """Format all statistics of a layer as a table, with those of random weights and of permuted A beside them."""
    head = "| statistic | value | interval | kind of interval | p | n | random weights | A permuted | in words |"
    rows = [head, "|---|---|---|---|---|---|---|---|---|"]
    for name, statistic in evaluation.statistics.items():
        whole = name in WHOLE_NUMBERS
        ends = format_interval(statistic.low, statistic.high, "{} to {}", whole)
        of_random = None if random is None else random.statistics.get(name)
        of_permuted = permuted.get(name)
        permuted_text = "–"
        if of_permuted is not None:
            permuted_text = format_value(of_permuted.value, whole)
            permuted_text += format_interval(of_permuted.low, of_permuted.high, " ({} to {})", whole)
        cells = [
            name.replace("_", " ").replace("|", "\\|"),
            format_value(statistic.value, whole),
            ends or "–",
            statistic.interval if ends else "–",
            "–" if statistic.p is None else f"{statistic.p:.3g}",
            "–" if statistic.count is None else f"{statistic.count:,}",
            "–" if of_random is None else format_value(of_random.value, whole),
            permuted_text,
            describe_statistic(statistic).replace("|", "\\|"),
        ]
        rows.append("| " + " | ".join(cells) + " |")
    return rows
