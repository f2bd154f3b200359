"""What a map's trial comes to, in words: a sentence a figure, a verdict a layer, one page of Markdown. No torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from html import escape

from featmap.mapping.flags import RELIABLE
from featmap.validation.statistics import TARGET_RELIABILITY, Evaluation, Statistic, Validation

HIGH_AGREEMENT = 0.85
"""Raw correlation with photographs from which S may be read as similarity over photographs."""
LOW_AGREEMENT = 0.3
"""Raw correlation with photographs below which nothing is carried over to them."""
TYPICAL_PATH, ATYPICAL_PATH = 0.8, 0.5
"""Processing-path scores from which an image counts as one more liked photograph, and below which it does not."""
MAX_OUTDONE = 0.25
"""Share of features with a photograph above their image from which the images do not count as maximising."""
ALPHA = 0.05

SENTENCES = {
    "repeatability": "S of one seed correlates {value} with S of another (mean over pairs of seeds).",
    "repeatability_of_map": "The run's own map (mean of {count} seed(s)) would correlate {value} with its repetition.",
    "repeatability_of_all": "The mean of all {count} seeds would correlate {value} with its repetition.",
    "seeds_needed": f"A map of {{value}} seed(s) would reach {TARGET_RELIABILITY}, by Spearman-Brown.",
    "feature_reliability": "Half of the {count} features have a seed-to-seed reliability above {value}.",
    "unreliable_features": f"{{value}} of {{count}} features are below {RELIABLE} in the run's map, and marked.",
    "stimuli_reliability": "Over the choice of the {count} images S has a reliability of at least {value} (split "
    "halves, Spearman-Brown).",
    "ari_of_seeds": "Clusters of two seeds agree with ARI {value}.",
    "ari_of_louvain": "Clusters of one and the same map, found again with other seeds of Louvain, agree with ARI "
    "{value}: what lies between two seeds' maps is held to that.",
    "photographs_pearson": "S correlates {value} with S taken over photographs (Mantel, raw).",
    "photographs_spearman": "The same in ranks: {value}.",
    "photographs_reliability": "S over these {count} photographs has a split-half reliability of {value}.",
    "photographs_corrected": "Corrected for attenuation, S correlates {value} with S over photographs.",
    "dora_layer_spearman": "DORA's layer-wise extreme-activation distance on the same A has a rank correlation of "
    "{value} with the same.",
    "dora_pair_spearman": "DORA's pair-wise extreme-activation distance on the same A has {value}.",
    "multiple": "The maximising image excites its feature {value} times as much as the best photograph (median).",
    "below_best_photograph": "{value} of the features have a photograph that excites them more than their image does.",
    "path_passed_over": "{value} of the {count} layers on the way were not looked at.",
    "incoming_weights": "S correlates {value} with the cosine of incoming weights, over the {count} pairs of one "
    "convolution.",
    "incoming_weights_spearman": "The same in ranks: {value}.",
    "outgoing_weights": "S correlates {value} with the cosine of the weights that read the features ({count} pairs).",
    "outgoing_weights_spearman": "The same in ranks: {value}.",
    "clusters": "{value} clusters of two or more features are allowed by the nulls.",
    "modularity": "Louvain reaches a modularity of {value} on the map's neighbour graph.",
    "modularity_permuted": "With A permuted within columns it reaches {value}.",
}
_PATH_SENTENCE = "At {layer}, maximising images are {value} of the way from other features' photographs to their own."
WHOLE_NUMBERS = ("seeds_needed", "unreliable_features", "clusters", "path_passed_over")


def format_value(value: float | None, whole: bool = False) -> str:
    """Return a number as the page shows it; a dash where it is undefined."""
    if value is None:
        return "–"
    if whole:
        return f"{value:.0f}"
    return f"{value:.4f}" if 0.98 <= abs(value) < 1 else f"{value:.3g}" if abs(value) >= 10 else f"{value:.3f}"


def format_interval(low: float | None, high: float | None, form: str = " [{}, {}]", whole: bool = False) -> str:
    """Return an interval as the page shows it, "" where there is none or its ends are one."""
    return "" if low is None or low == high else form.format(format_value(low, whole), format_value(high, whole))


def describe_statistic(figure: Statistic) -> str:
    """Return one figure in a plain sentence."""
    if figure.value is None and figure.name.startswith("ari_"):
        return "Undefined: every partition is one cluster, or all single features; or too little to tell."
    if figure.value is None:
        return f"Undefined: {figure.note or 'too few features or pairs that vary'}."
    number = format_value(figure.value, figure.name in WHOLE_NUMBERS)
    if figure.name.startswith("path:"):
        return _PATH_SENTENCE.format(layer=figure.name[5:], value=number) + f" ({figure.note})"
    return SENTENCES[figure.name].format(value=number, count="–" if figure.count is None else f"{figure.count:,}")


@dataclass
class Verdict:
    """What may be concluded from one layer's map, what may not, and what would mend it."""

    layer: str
    may: list[str] = field(default_factory=list)
    may_not: list[str] = field(default_factory=list)
    mend: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """Return the verdict as lines of text."""
        heads = (("may", self.may), ("may not", self.may_not), ("what mends it", self.mend))
        return [f"{self.layer}: {head}: {text}" for head, texts in heads for text in texts]


def reach_verdict(trial: Evaluation, random: Evaluation | None = None) -> Verdict:
    """Return the verdict on a layer's map, by fixed thresholds (the constants of this module).

    What may be concluded has to hold at the lower end of its interval, and, where it is of learning, above random
    weights.
    """
    found = Verdict(trial.evidence.layer)
    _judge_repeatability(trial, found)
    _judge_clusters(trial, random, found)
    _judge_photographs(trial, random, found)
    _judge_responses(trial, found)
    _judge_path(trial, random, found)
    _judge_weights(trial, random, found)
    return found


def _value_with_interval(trial: Evaluation, name: str) -> str:
    """Return a figure with its interval."""
    figure = trial.figures.get(name)
    return "–" if figure is None else format_value(figure.value) + format_interval(figure.low, figure.high)


def _judge_repeatability(trial: Evaluation, found: Verdict) -> None:
    r, marked = trial.value("repeatability_of_map"), trial.value("unreliable_features")
    needed, stimuli = trial.value("seeds_needed"), trial.value("stimuli_reliability")
    count = int(trial.evidence.live.sum())
    if r is None:
        found.may_not.append("take any similarity for repeatable: it is undefined (too few live features)")
    elif r >= TARGET_RELIABILITY:
        found.may.append(
            f"quote single similarities of these {count} features over their {count} images: a repetition of the map "
            f"would correlate {format_value(r)} with it"
        )
    elif r >= RELIABLE:
        found.may.append(
            f"speak of the map's pattern, of {count} features: a repetition would correlate {format_value(r)} with it"
        )
        found.may_not.append(f"quote single similarities to two decimals (that takes {TARGET_RELIABILITY})")
    else:
        found.may_not.append(f"rest anything on this map: a repetition would correlate only {format_value(r)} with it")
    if r is not None and r >= RELIABLE and stimuli is not None and stimuli < TARGET_RELIABILITY:
        found.may_not.append(
            f"take the similarities for those over other stimuli: over the choice of the {count} images their "
            f"reliability is {format_value(stimuli)} or more, and not known to be {TARGET_RELIABILITY}"
        )
    if r is not None and r < TARGET_RELIABILITY and needed is not None:
        found.mend.append(f"--seeds {needed:.0f} for the run: then {TARGET_RELIABILITY} is to be expected")
    if marked:
        names = trial.features.index[~trial.features["reliable"].fillna(True)]
        some = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        found.may_not.append(f"rest anything on the {marked:.0f} features marked as unreliable ({some})")


def _judge_clusters(trial: Evaluation, random: Evaluation | None, found: Verdict) -> None:
    clusters, seeds, itself = (trial.value(k) for k in ("clusters", "ari_of_seeds", "ari_of_louvain"))
    if clusters is None:
        return
    if clusters == 0:
        found.may_not.append("speak of clusters: the nulls do not allow any")
        return
    if seeds is not None and itself is not None and seeds >= 0.8 and seeds >= 0.9 * itself:
        found.may.append(
            f"name the {clusters:.0f} clusters and their members (ARI over seeds {format_value(seeds)}, of the same map "
            f"with other seeds of Louvain {format_value(itself)})"
        )
    else:
        found.may.append(f"say that there are groups (modularity beyond both nulls; {clusters:.0f} found)")
        found.may_not.append(
            f"assign single features to clusters: two seeds agree by ARI {format_value(seeds)}, the same map with other "
            f"seeds of Louvain by {format_value(itself)} (0.8 and nine tenths of that are wanted)"
        )
    k = trial.evidence.neighbours
    found.may_not.append(f"look for groups of fewer than {k + 1} features: a graph of {k} neighbours can merge them")
    null = None if random is None else random.value("clusters")
    if null:
        found.may_not.append(f"take clusters as such for learnt: with random weights there are {null:.0f}")


def _judge_photographs(trial: Evaluation, random: Evaluation | None, found: Verdict) -> None:
    r, p, low = (of("photographs_pearson") for of in (trial.value, trial.p, trial.low))
    if "photographs_pearson" not in trial.figures:
        found.may_not.append("say anything of photographs: none were shown (--images FOLDER)")
        return
    halves, corrected = trial.value("photographs_reliability"), trial.figures.get("photographs_corrected")
    held = f"raw r {_value_with_interval(trial, 'photographs_pearson')}, corrected "
    held += "–" if corrected is None else format_value(corrected.value)
    held += f" ({corrected.note})" if corrected is not None and corrected.note else ""
    held += f", photographs' reliability {format_value(halves)}"
    if r is None or p is None or p > ALPHA or r < LOW_AGREEMENT:
        found.may_not.append(f"carry any of it over to photographs ({held})")
        return
    if low is None or low <= LOW_AGREEMENT:
        found.may_not.append(
            f"carry any of it over to photographs: the interval reaches down to {LOW_AGREEMENT} ({held})"
        )
        return
    if r >= HIGH_AGREEMENT:
        short = f"; the interval reaches below {HIGH_AGREEMENT}" if low < HIGH_AGREEMENT else ""
        found.may.append(f"read S as similarity over photographs too ({held}{short})")
    else:
        found.may.append(f"expect features alike here to be more alike over photographs as a rule ({held})")
        found.may_not.append(f"carry single similarities over to photographs (that takes a raw r of {HIGH_AGREEMENT})")
        if halves is not None and halves < 0.9:
            found.mend.append("more photographs: these are too few to measure S over photographs reliably")
    null = None if random is None else random.value("photographs_pearson")
    if null is not None and null >= low:
        found.may_not.append(
            f"credit training with the agreement with photographs: with random weights it is {format_value(null)}"
        )


def _judge_responses(trial: Evaluation, found: Verdict) -> None:
    multiple, better = trial.value("multiple"), trial.value("below_best_photograph")
    if multiple is not None and better is not None and (multiple < 1 or better > MAX_OUTDONE):
        found.may_not.append(
            f"take the images for maximising: {100 * better:.0f} % of the features have a photograph that excites them "
            f"more (the image's response is {format_value(multiple)} times the best photograph's in the median)"
        )
        found.mend.append("more steps (--steps) or another recipe: these images fall short of photographs")


def _judge_path(trial: Evaluation, random: Evaluation | None, found: Verdict) -> None:
    scores = {name[5:]: f for name, f in trial.figures.items() if name.startswith("path:")}
    known = {layer: f for layer, f in scores.items() if f.value is not None}
    if not known:
        if scores:
            found.may_not.append(
                "say how the images are processed: too few features, or a feature's photographs no more alike than any"
            )
        return
    layer = trial.evidence.layer
    lows = {name: -1.0 if f.low is None else f.low for name, f in known.items()}
    worst, own = min(known, key=lambda name: known[name].value or 0.0), lows.get(layer, -1.0)
    over = trial.value("path_passed_over")
    looked = f"at the {len(known)} layers looked at"
    looked += f", of {len(scores) + int(over)} on the way" if over else ""
    text = f"lowest at {worst}: {_value_with_interval(trial, f'path:{worst}')}"
    null = None if random is None else random.value(f"path:{layer}")
    if own >= TYPICAL_PATH and null is not None and null >= own:
        found.may_not.append(
            f"take the images for typical liked stimuli: with random weights their path scores {format_value(null)} at "
            f"{layer} too (trained {_value_with_interval(trial, f'path:{layer}')})"
        )
    elif min(lows.values()) >= TYPICAL_PATH:
        found.may.append(f"take the images for typical liked stimuli {looked} ({text})")
    elif own >= TYPICAL_PATH:
        found.may.append(
            f"take the images for typical liked stimuli at {layer} itself ({_value_with_interval(trial, f'path:{layer}')})"
        )
        found.may_not.append(f"take the way there for that of photographs {looked} ({text})")
    else:
        highest = [f.value if f.high is None else f.high for f in known.values()]
        head = "at all " if any(h is not None and h < ATYPICAL_PATH for h in highest) else "without reserve "
        itself = (
            f"; {layer} itself: {_value_with_interval(trial, f'path:{layer}')}"
            if layer in known and layer != worst
            else ""
        )
        found.may_not.append(f"take the images {head}for what photographs do to the layers {looked} ({text}{itself})")


def _judge_weights(trial: Evaluation, random: Evaluation | None, found: Verdict) -> None:
    r, p, low = (of("incoming_weights") for of in (trial.value, trial.p, trial.low))
    if r is None or p is None:
        return
    null = None if random is None else random.value("incoming_weights")
    held = f"r {_value_with_interval(trial, 'incoming_weights')}" + (
        "" if null is None else f", with random weights {format_value(null)}"
    )
    if p <= ALPHA and low is not None and low > max(0.0, null or 0.0):
        found.may.append(f"say that features of alike incoming weights tend to be alike here ({held})")
    else:
        found.may_not.append(f"say that features of alike incoming weights are alike here by learning ({held})")


def format_page(title: str, network: str, found: Validation, notes: list[str]) -> str:
    """Return the one page of result: verdicts first, then all figures of each layer, then how they were made."""
    lines = [f"# {title}", "", network, ""]
    for layer, trial in found.trained.items():
        held = reach_verdict(trial, found.random.get(layer))
        lines += [f"## {layer}", ""]
        for head, texts in (
            ("What may be concluded", held.may),
            ("What may not", held.may_not),
            ("What would mend it", held.mend),
        ):
            if texts:
                lines += [f"**{head}**", "", *[f"- {t[0].upper()}{t[1:]}." for t in texts], ""]
        lines += [*_statistics_table(trial, found.random.get(layer), found.permuted.get(layer, {})), ""]
    if found.reason:
        lines += [f"With random weights: none ({found.reason}).", ""]
    # nothing on the page is markup but its own tables and lists: names of layers and files are text
    return escape("\n".join([*lines, "## How it was made", "", *[f"- {n}" for n in notes], ""]), quote=False)


def _statistics_table(trial: Evaluation, random: Evaluation | None, permuted: dict[str, Statistic]) -> list[str]:
    head = "| figure | value | interval | what interval | p | n | random weights | A permuted | in words |"
    rows = [head, "|---|---|---|---|---|---|---|---|---|"]
    for name, figure in trial.figures.items():
        whole = name in WHOLE_NUMBERS
        ends = format_interval(figure.low, figure.high, "{} to {}")
        null = None if random is None else random.figures.get(name)
        drawn = permuted.get(name)
        cells = [
            name.replace("_", " ").replace("|", "\\|"),
            format_value(figure.value, whole),
            ends or "–",
            figure.interval if ends else "–",
            "–" if figure.p is None else f"{figure.p:.3g}",
            "–" if figure.count is None else f"{figure.count:,}",
            "–" if null is None else format_value(null.value, whole),
            "–"
            if drawn is None
            else format_value(drawn.value, whole) + format_interval(drawn.low, drawn.high, " ({} to {})", whole),
            describe_statistic(figure).replace("|", "\\|"),
        ]
        rows.append("| " + " | ".join(cells) + " |")
    return rows
