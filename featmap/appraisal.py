"""What a map's trial comes to, in words: a sentence a figure, a verdict a layer, one page of Markdown. No torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from html import escape

from featmap.marks import RELIABLE
from featmap.trials import WANTED, Figure, Trial, Validation

NATURAL = 0.85
"""Raw correlation with photographs from which S may be read as similarity over photographs."""
WEAK = 0.3
"""Raw correlation with photographs below which nothing is carried over to them."""
TYPICAL, ATYPICAL = 0.8, 0.5
"""Processing-path scores from which an image counts as one more liked photograph, and below which it does not."""
ALPHA = 0.05

SENTENCES = {
    "repeatability": "S of one seed correlates {value} with S of another (mean over pairs of seeds).",
    "repeatability_of_map": "The run's own map (mean of {count} seed(s)) would correlate {value} with its repetition.",
    "repeatability_of_all": "The mean of all {count} seeds would correlate {value} with its repetition.",
    "seeds_needed": f"A map of {{value}} seed(s) would reach {WANTED}, by Spearman-Brown.",
    "feature_reliability": "Half of the features have a seed-to-seed reliability above {value} (interval: 90 %).",
    "unreliable_features": f"{{value}} of {{count}} features are below {RELIABLE} in the run's map, and marked.",
    "ari_of_seeds": "Clusters of two seeds agree with ARI {value} (interval: least and most).",
    "ari_of_louvain": "Louvain's runs on one seed's map agree by ARI {value}: two seeds could hardly do better.",
    "photographs_pearson": "S correlates {value} with S taken over photographs (Mantel, raw).",
    "photographs_spearman": "The same in ranks: {value}.",
    "photographs_reliability": "S over these {count} photographs has a split-half reliability of {value}.",
    "photographs_corrected": "Corrected for attenuation, S correlates {value} with S over photographs.",
    "dora_layer_spearman": "DORA's layer-wise extreme-activation distance on the same A has a rank correlation of "
    "{value} with the same.",
    "dora_pair_spearman": "DORA's pair-wise extreme-activation distance on the same A has {value}.",
    "multiple": "The maximising image excites its feature {value} times as much as the best photograph (median; 90 % "
    "of features).",
    "below_best_photograph": "{value} of the features have a photograph that excites them more than their image does.",
    "incoming_weights": "S correlates {value} with the cosine of incoming weights, over the {count} pairs of one "
    "convolution.",
    "incoming_weights_spearman": "The same in ranks: {value}.",
    "outgoing_weights": "S correlates {value} with the cosine of the weights that read the features ({count} pairs).",
    "outgoing_weights_spearman": "The same in ranks: {value}.",
    "clusters": "{value} clusters of two or more features are allowed by the nulls.",
    "modularity": "Louvain reaches a modularity of {value} on the map's neighbour graph.",
    "modularity_permuted": "With A permuted within columns it reaches {value}.",
}
_PATH = "At {layer}, maximising images are {value} of the way from other features' photographs to their own."
WHOLE = ("seeds_needed", "unreliable_features", "clusters")


def written(value: float | None, whole: bool = False) -> str:
    """Return a number as the page shows it; a dash where it is undefined."""
    if value is None:
        return "–"
    if whole:
        return f"{value:.0f}"
    return f"{value:.4f}" if 0.98 <= abs(value) < 1 else f"{value:.3g}" if abs(value) >= 10 else f"{value:.3f}"


def sentence(figure: Figure) -> str:
    """Return one figure in a plain sentence."""
    if figure.value is None:
        return "Undefined: too few features or pairs that vary, or a reliability below what a correction takes."
    number = written(figure.value, figure.name in WHOLE)
    if figure.name.startswith("path:"):
        return _PATH.format(layer=figure.name[5:], value=number) + f" ({figure.note})"
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


def verdict(trial: Trial, random: Trial | None = None) -> Verdict:
    """Return the verdict on a layer's map, by fixed thresholds (the constants of this module)."""
    found = Verdict(trial.evidence.layer)
    _on_seeds(trial, found)
    _on_clusters(trial, random, found)
    _on_photographs(trial, random, found)
    _on_path(trial, found)
    r, p = trial.value("incoming_weights"), trial.p("incoming_weights")
    if r is not None and p is not None and p <= ALPHA and r > 0:
        found.may.append(f"say that features of alike incoming weights tend to be alike here (r {written(r)})")
    return found


def _on_seeds(trial: Trial, found: Verdict) -> None:
    r, marked = trial.value("repeatability_of_map"), trial.value("unreliable_features")
    needed = trial.value("seeds_needed")
    if r is None:
        found.may_not.append("take any similarity for repeatable: it is undefined (too few live features)")
    elif r >= WANTED:
        found.may.append(f"quote single similarities: a repetition of the map would correlate {written(r)} with it")
    elif r >= RELIABLE:
        found.may.append(f"speak of the map's pattern: a repetition would correlate {written(r)} with it")
        found.may_not.append(f"quote single similarities to two decimals (that takes {WANTED})")
    else:
        found.may_not.append(f"rest anything on this map: a repetition would correlate only {written(r)} with it")
    if r is not None and r < WANTED and needed is not None:
        found.mend.append(f"--seeds {needed:.0f} for the run: then {WANTED} is to be expected")
    if marked:
        names = trial.features.index[~trial.features["reliable"].fillna(True)]
        some = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        found.may_not.append(f"rest anything on the {marked:.0f} features marked as unreliable ({some})")


def _on_clusters(trial: Trial, random: Trial | None, found: Verdict) -> None:
    clusters, seeds, itself = (trial.value(k) for k in ("clusters", "ari_of_seeds", "ari_of_louvain"))
    if clusters is None:
        return
    if clusters == 0:
        found.may_not.append("speak of clusters: the nulls do not allow any")
    elif seeds is not None and itself is not None and seeds >= 0.8 and seeds >= 0.9 * itself:
        found.may.append(f"name the {clusters:.0f} clusters and their members (ARI over seeds {written(seeds)})")
    else:
        found.may.append(f"say that there are groups (modularity beyond both nulls; {clusters:.0f} found)")
        found.may_not.append(
            f"assign single features to clusters: two seeds agree by ARI {written(seeds)}, "
            f"Louvain with itself by {written(itself)}"
        )
    null = None if random is None else random.value("clusters")
    if clusters and null:
        found.may_not.append(f"take clusters as such for learnt: with random weights there are {null:.0f}")


def _on_photographs(trial: Trial, random: Trial | None, found: Verdict) -> None:
    r, p = trial.value("photographs_pearson"), trial.p("photographs_pearson")
    if "photographs_pearson" not in trial.figures:
        found.may_not.append("say anything of photographs: none were shown (--images FOLDER)")
        return
    halves, corrected = trial.value("photographs_reliability"), trial.value("photographs_corrected")
    held = f"raw r {written(r)}, corrected {written(corrected)}, photographs' reliability {written(halves)}"
    if r is None or p is None or p > ALPHA or r < WEAK:
        found.may_not.append(f"carry any of it over to photographs ({held})")
    elif r >= NATURAL:
        found.may.append(f"read S as similarity over photographs too ({held})")
    else:
        found.may.append(f"expect features alike here to be more alike over photographs as a rule ({held})")
        found.may_not.append(f"carry single similarities over to photographs (that takes a raw r of {NATURAL})")
        if halves is not None and halves < 0.9:
            found.mend.append("more photographs: these are too few to measure S over photographs reliably")
    null = None if random is None else random.figures.get("photographs_pearson")
    mine = trial.figures["photographs_pearson"]
    if null is not None and null.value is not None and mine.low is not None and null.value >= mine.low:
        found.may_not.append(
            f"credit training with the agreement with photographs: with random weights it is {written(null.value)}"
        )


def _on_path(trial: Trial, found: Verdict) -> None:
    scores = {name[5:]: f.value for name, f in trial.figures.items() if name.startswith("path:")}
    known = {layer: value for layer, value in scores.items() if value is not None}
    if not known:
        if scores:
            found.may_not.append(
                "say how the images are processed: too few features, or a feature's photographs no more alike than any"
            )
        return
    own = known.get(trial.evidence.layer)
    worst = min(known, key=lambda layer: known[layer])
    text = "; ".join(f"{layer} {written(value)}" for layer, value in known.items())
    if min(known.values()) >= TYPICAL:
        found.may.append(f"take the images for typical liked stimuli, all along the path ({text})")
    elif own is not None and own >= TYPICAL:
        found.may.append(f"take the images for typical liked stimuli at {trial.evidence.layer} itself ({written(own)})")
        found.may_not.append(
            f"take the way there for that of photographs: at {worst} the score is {written(known[worst])} ({text})"
        )
    else:
        head = "at all " if min(known.values()) < ATYPICAL else "without reserve "
        found.may_not.append(f"take the images {head}for what photographs do to the layers ({text})")


def page(title: str, network: str, found: Validation, notes: list[str]) -> str:
    """Return the one page of result: verdicts first, then all figures of each layer, then how they were made."""
    lines = [f"# {title}", "", network, ""]
    for layer, trial in found.trained.items():
        held = verdict(trial, found.random.get(layer))
        lines += [f"## {layer}", ""]
        for head, texts in (
            ("What may be concluded", held.may),
            ("What may not", held.may_not),
            ("What would mend it", held.mend),
        ):
            if texts:
                lines += [f"**{head}**", "", *[f"- {t[0].upper()}{t[1:]}." for t in texts], ""]
        lines += [*_table(trial, found.random.get(layer), found.permuted.get(layer, {})), ""]
    if found.reason:
        lines += [f"With random weights: none ({found.reason}).", ""]
    # nothing on the page is markup but its own tables and lists: names of layers and files are text
    return escape("\n".join([*lines, "## How it was made", "", *[f"- {n}" for n in notes], ""]), quote=False)


def _table(trial: Trial, random: Trial | None, permuted: dict[str, Figure]) -> list[str]:
    head = "| figure | value | 95 % interval | p | n | random weights | A permuted | in words |"
    rows = [head, "|---|---|---|---|---|---|---|---|"]
    for name, figure in trial.figures.items():
        whole = name in WHOLE
        span = "–" if figure.low is None else f"{written(figure.low)} to {written(figure.high)}"
        null = None if random is None else random.figures.get(name)
        drawn = permuted.get(name)
        cells = [
            name.replace("_", " ").replace("|", "\\|"),
            written(figure.value, whole),
            span,
            "–" if figure.p is None else f"{figure.p:.3g}",
            "–" if figure.count is None else f"{figure.count:,}",
            "–" if null is None else written(null.value, whole),
            "–" if drawn is None else f"{written(drawn.value)} ({written(drawn.low)} to {written(drawn.high)})",
            sentence(figure).replace("|", "\\|"),
        ]
        rows.append("| " + " | ".join(cells) + " |")
    return rows
