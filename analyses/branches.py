"""Test whether similar features come from the same branch of their module."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

import featmap
from analyses.formulas import partitions
from analyses.formulas.partitions import PermutationTest
from analyses.support.findings import Finding, format_interval, mean_or_undefined, value_finding
from analyses.support.settings import changed_recipe
from analyses.support.study import Context, Outcome, StoredResult, Study, Verdict
from analyses.support.study_command import run_study
from featmap.mapping.result import SimilarityMap
from featmap.network.trace import Layer
from featmap.plotting import style
from featmap.rng import generator
from featmap.stats import clustering, frames, measures

WHOLE_LAYER, SHARE = 256, 2
"""Most channels of a layer that is mapped whole; multiple of ``--features`` for each branch of a larger layer."""
NOTICEABLE, P = 0.1, 0.05
"""Least ARI for the hypothesis to hold, and the level of the tests."""
SMALL, LARGER = 64, 96
"""Size of the images in pixels, and the size for networks of larger input."""
NUMBER_FORMAT = "z.3f"
"""Format of numbers; what is rounded to zero has no sign."""
LAYERS = ("inception3a", "inception4a")
OURS = True
"""The study asks a question of ours; the article makes no such claim."""

STUDY = Study(
    "branches",
    section="Mapping InceptionV3 Features",
    claim="Our question (the article describes parallel branches and claims nothing of them): do similar features come "
    "from the same branch of a module, as they would if its branches divided the work? The hypothesis is that they do.",
    measured="agreement (adjusted Rand index, ARI) of the consensus clusters of S with the branches, compared with "
    f"{partitions.PERMUTATIONS:,} permutations of the branches, and S within a branch minus S across branches, "
    f"bootstrapped over features; all features of a layer of up to {WHOLE_LAYER}, {SHARE} x --features of each branch "
    f"of a larger one; {SMALL} pixels ({LARGER} for networks of larger input). Beside the ARI stands the one that "
    "clusters of the same sizes would reach if they were put into the branches whole as far as they fit",
    rule=f"the hypothesis holds if in every layer the ARI is above chance (p < {P}) and the lower end of its interval "
    f"is above {NOTICEABLE}; it holds in part if in any layer the ARI is above chance and that end is above 0; it does "
    "not hold if neither the ARI nor the difference of S is above chance in any layer; otherwise, and where a test is "
    "undefined or no layer can be tested, it is not decided. Layers without branches, or with live features in fewer "
    "than two of them, are not tested",
    takes_units=False,
    full="all features of both layers, at 299 to 380 pixels and 300 steps (the recipe `article-normalised`)",
    layers={
        "reference": LAYERS,
        "googlenet": LAYERS,
        "squeezenet": ("features.6", "features.9"),
        "inception_v3": ("Mixed_5b", "Mixed_6b"),
        "resnet50": ("layer3.2", "layer4.2"),
    },
)


@dataclass(frozen=True, eq=False)
class LayerTests:
    """Tests of one layer's branches, which verdict and conclusion depend on.

    Parameters
    ----------
    layer : str
        Name of the layer.
    rand, contrast : PermutationTest
        Adjusted Rand index of clusters and branches; mean S within minus across branches.
    clusters, branches : numpy.ndarray
        Cluster and branch of each live feature.
    """

    layer: str
    rand: PermutationTest
    contrast: PermutationTest
    clusters: np.ndarray
    branches: np.ndarray


@dataclass(frozen=True, eq=False)
class LayerBranches(LayerTests):
    """Similarity and branches of one layer.

    Parameters
    ----------
    layer, rand, contrast, clusters, branches
        See `LayerTests`.
    map : SimilarityMap
        Map of its features.
    own, chance : numpy.ndarray
        Whether the most similar feature of each feature is in its own branch, and the chance of that.
    seeds : list of (float, float)
        Adjusted Rand index and contrast of each seed's own map.
    """

    map: SimilarityMap
    own: np.ndarray
    chance: np.ndarray
    seeds: list[tuple[float, float]]

    @property
    def S(self) -> np.ndarray:
        """Profile similarity of the live features."""
        return frames.symmetric_values(self.map.clusters.similarity)


def choose_channels(context: Context, layer: Layer) -> list[int]:
    """Choose the channels to map.

    These are all channels of a small layer, and equally many of each branch of a larger one.
    """
    if layer.channels <= WHOLE_LAYER or context.full:
        return list(range(layer.channels))
    rng, first, channels = generator("branches", context.model, layer.name), 0, []
    for _, width in layer.branches:
        count = min(width, SHARE * context.features)
        channels += (first + np.sort(rng.choice(width, count, replace=False))).tolist()
        first += width
    return channels


def map_layer(context: Context, layer: Layer) -> SimilarityMap:
    """Map the chosen features of a layer over their own images."""
    natural = context.network.input_size
    settings: dict[str, Any] = {"recipe": "pixels", "size": map_size(natural)} | context.sized_changes
    if context.full:
        settings = {"recipe": "article-normalised"} | context.sized_changes
    channels = choose_channels(context, layer)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", measures.FewStimuliWarning)  # the number of features says so
        result = featmap.similarity(
            layer.name,
            context.network,
            view=featmap.View(channels, stimuli="shown"),
            seeds=context.seeds,
            recipe=changed_recipe(**settings),
            execution=featmap.Execution(
                context.device,
                out=context.folder(layer.name, channels=channels, seeds=context.seeds, **settings),
                watcher=context.watcher,
            ),
        )
    context.note_recipe(changed_recipe(**settings))
    context.count_images(result.dataset.sel(image=[f"{layer.name}:{c}" for c in channels]))
    return result


def map_size(natural: int) -> int:
    """Choose the image size in pixels, at which every module still has a grid."""
    return min(natural, SMALL if natural <= 2 * SMALL else LARGER)


def compare_with_branches(context: Context, layer: Layer) -> LayerBranches | None:
    """Compare a layer's similarities with its branches.

    None if fewer than two branches have live features.
    """
    result = map_layer(context, layer)
    S = result.clusters.similarity
    names = [str(n) for n in S.columns]
    branches = np.array([layer.branch(int(n.rpartition(":")[2])) for n in names])
    if len(set(branches)) < 2 or len(names) < 4:
        return None
    values = frames.symmetric_values(S)
    labels = result.clusters.communities.labels.reindex(names).to_numpy()
    own, chance = partitions.nearest_in_group(values, branches)
    return LayerBranches(
        layer.name,
        partitions.rand_index_test(labels, branches),
        partitions.contrast_test(values, branches),
        labels,
        branches,
        result,
        own,
        chance,
        agreement_by_seed(result, names, branches),
    )


def agreement_by_seed(result: SimilarityMap, names: list[str], branches: np.ndarray) -> list[tuple[float, float]]:
    """Compute the adjusted Rand index and the contrast of each seed's own map."""
    data, rows = result.dataset.sel(image=names, response=names), []
    for k in range(data.sizes["seed"]):
        A = pd.DataFrame(data["A"][k].values.astype(np.float64), index=names, columns=names)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", measures.FewStimuliWarning)
            S = measures.profile(A, pd.Series(data["null"][k].values.astype(np.float64), index=names), names)
        labels = clustering.communities(clustering.neighbour_graph(S)).labels.reindex(names).to_numpy()
        ari = float(partitions.rand_index(labels, branches)[0])
        rows.append((ari, float(partitions.contrast(frames.symmetric_values(S), branches)[0])))
    return rows


def collect_findings(one: LayerBranches) -> list[Finding]:
    """Collect the findings of one layer."""
    n, layer = len(one.branches), one.layer
    ari, gap = one.rand.statistic, one.contrast.statistic
    seeds = np.array([a for a, _ in one.seeds if np.isfinite(a)])
    mean, low, high = (f(seeds) if len(seeds) else np.nan for f in (np.mean, np.min, np.max))
    own = f"{layer}: share of features whose most similar feature is in their own branch"
    return [
        value_finding(f"{layer}:ari", ari.value, n, f"{layer}: ARI of clusters with branches", ari.low, ari.high),
        value_finding(f"{layer}:ari_chance", one.rand.chance, n, f"{layer}: ARI with permuted branches, mean"),
        value_finding(f"{layer}:ari_p", one.rand.p, n, f"{layer}: p of the ARI"),
        value_finding(
            f"{layer}:ari_seed", mean, len(seeds), f"{layer}: ARI of n single seeds, mean and range", low, high
        ),
        value_finding(
            f"{layer}:contrast", gap.value, n, f"{layer}: mean S within a branch minus that across", gap.low, gap.high
        ),
        value_finding(f"{layer}:contrast_p", one.contrast.p, n, f"{layer}: p of that difference"),
        mean_or_undefined(f"{layer}:own_neighbour", one.own, own),
        value_finding(f"{layer}:own_chance", float(one.chance.mean()), n, f"{layer}: that share by chance"),
    ]


def judge(layers: Sequence[LayerTests]) -> Verdict:
    """Judge the hypothesis by the lower ends of the intervals, see `STUDY.rule`."""
    if not layers:
        return "not decided"
    ends = [one.rand.statistic.low if one.rand.p < P else -np.inf for one in layers]
    if all(low > NOTICEABLE for low in ends):
        return "holds"
    if any(low > 0 for low in ends):
        return "holds in part"
    p = np.array([(one.rand.p, one.contrast.p) for one in layers])
    return "does not hold" if (p >= P).all() else "not decided"


def attainable_index(clusters: Sequence[object] | np.ndarray, branches: Sequence[object] | np.ndarray) -> float:
    """Compute about how high an ARI clusters and branches of these sizes allow.

    The clusters are put into the branches one by one, the largest first, each into the branch in which it leaves the
    least room. One that fits nowhere fills the branch with the most room, and what is left of it follows as a cluster
    of its own. The best arrangement may be slightly better. Where there are many more clusters than branches the value
    is low, since features of one branch are then in several clusters, although the ARI is corrected for chance.

    Parameters
    ----------
    clusters, branches : sequence
        Labels of the D features.

    Returns
    -------
    float
        ARI of that arrangement, or of the given one if that is higher; NaN where the ARI is undefined.
    """
    rooms, parts = list(Counter(branches).values()), sorted(Counter(clusters).values())
    packed: tuple[list[int], list[int]] = [], []  # cluster and branch of each feature of the arrangement
    pending = [(size, number) for number, size in enumerate(parts)]
    while pending:
        size, number = pending.pop()
        k = min(range(len(rooms)), key=lambda j: (rooms[j] < size, rooms[j] if rooms[j] >= size else -rooms[j]))
        placed = min(size, rooms[k])
        rooms[k] -= placed
        for labels, label in zip(packed, (number, k), strict=True):
            labels += [label] * placed
        if size > placed:
            pending = sorted([*pending, (size - placed, number)])
    return float(np.fmax(partitions.rand_index(*packed)[0], partitions.rand_index(clusters, branches)[0]))


def write_conclusion(layers: Sequence[LayerTests], requested: Sequence[str], seeds: int) -> str:
    """Write the conclusion."""
    if not layers:
        return f"Undefined: no branches in {' and '.join(requested)}, or live features in fewer than 2 of them."
    sentences = []
    for one in layers:
        sentences.append(
            f"In {one.layer}, clusters and branches agree by an ARI of {_format(one.rand)} (n = {len(one.branches)} "
            f"features of {len(set(one.branches))} branches, {seeds} seed{'s' * (seeds != 1)}; chance "
            f"{one.rand.chance:{NUMBER_FORMAT}}, p {one.rand.p:.2g}), {describe_agreement(one)}."
            f"{describe_attainable(one)} S within a branch is {_format(one.contrast)} above S across branches "
            f"(p {one.contrast.p:.2g})."
        )
    return " ".join(sentences)


def describe_attainable(one: LayerTests) -> str:
    """Say about how high the ARI could be; "" where it is undefined."""
    index = attainable_index(one.clusters, one.branches)
    if not np.isfinite(index):
        return ""
    return (
        f" The {len(set(one.clusters))} clusters would reach about {index:{NUMBER_FORMAT}} if they followed the "
        f"{len(set(one.branches))} branches as closely as their sizes allow."
    )


def _format(test: PermutationTest) -> str:
    """Format a statistic for a sentence, with its interval where it has one."""
    found = test.statistic
    ends = np.isfinite([found.low, found.high]).all()
    return format_interval(found, NUMBER_FORMAT) if ends else f"{found.value:{NUMBER_FORMAT}} (no interval)"


def describe_agreement(one: LayerTests) -> str:
    """Say what the rule finds in one layer."""
    low = one.rand.statistic.low
    if not np.isfinite(one.rand.p):
        return "which is undefined"
    if one.rand.p >= P:
        return "which is not above chance"
    if not np.isfinite(low):
        return "which is above chance, but has no interval"
    if low > NOTICEABLE:
        return f"which is above chance and above {NOTICEABLE}"
    if low > 0:
        return f"which is above chance, but not clearly above {NOTICEABLE}"
    return "which is above chance, but whose interval includes 0"


def restate(stored: StoredResult) -> tuple[Verdict, str]:
    """Write verdict and conclusion from the stored result."""
    layers = [la for la in stored.settings["layers"] if f"{la}:ari" in stored.findings]
    rows = {la: stored.rows[stored.rows["layer"] == la] for la in layers}
    tests = [
        LayerTests(
            la,
            _stored_test(stored, f"{la}:ari"),
            _stored_test(stored, f"{la}:contrast"),
            rows[la]["cluster"].to_numpy(),
            rows[la]["branch"].to_numpy(dtype=object),
        )
        for la in layers
    ]
    return judge(tests), write_conclusion(tests, stored.settings["layers"], stored.settings["seeds"])


def _stored_test(stored: StoredResult, name: str) -> PermutationTest:
    """Restore a test from its findings; of the permutations only the mean is stored, and not of every test."""
    chance = [stored.value(f"{name}_chance")] if f"{name}_chance" in stored.findings else []
    return PermutationTest(stored.interval(name), stored.value(f"{name}_p"), np.array(chance))


def feature_rows(one: LayerBranches) -> pd.DataFrame:
    """Arrange the features as rows.

    Each has its branch, cluster and nearest neighbour, and its mean S within its branch and across.
    """
    names = [str(n) for n in one.map.clusters.similarity.columns]
    S, same = one.S, one.branches[:, None] == one.branches
    defined = np.isfinite(S) & ~np.eye(len(S), dtype=bool)

    def mean(table: np.ndarray) -> list[float | None]:
        return [float(S[j, table[j]].mean()) if table[j].any() else None for j in range(len(S))]

    nearest = np.where(defined, S, -np.inf).argmax(1)
    return pd.DataFrame(
        {
            "layer": one.layer,
            "feature": names,
            "branch": one.branches,
            "cluster": one.clusters,
            "nearest": [names[k] for k in nearest],
            "nearest_branch": one.branches[nearest],
            "S_within": mean(defined & same),
            "S_across": mean(defined & ~same),
        }
    )


@style.house_style
def draw_figure(layers: list[LayerBranches]) -> Figure:
    """Draw one row for each layer.

    It shows the branches in each cluster, S between branches on one scale, and the ARI with its null distribution.
    """
    drawing = Figure(figsize=(11, 3.9 * len(layers)), layout="constrained")
    grid = drawing.subplots(len(layers), 3, squeeze=False, gridspec_kw={"width_ratios": (1.25, 1, 1)})
    tables = [partitions.mean_between_groups(one.S, one.branches) for one in layers]
    magnitudes = np.concatenate([np.abs(t[np.isfinite(t)]) for t in tables])
    reach = float(magnitudes.max(initial=0)) or 1.0
    for axes, one, table in zip(grid, layers, tables, strict=True):
        _draw_composition(axes[0], one)
        image = _draw_means(axes[1], one, table, reach)
        _draw_null(axes[2], one)
    drawing.colorbar(
        image, ax=grid[:, 1].tolist(), location="bottom", shrink=0.8, label="mean S (one scale for all layers)"
    )
    return drawing


def _short_names(branches: np.ndarray) -> dict[str, str]:
    """Shorten the branches' names to their last part."""
    names = sorted(set(branches))
    return {name: name.rpartition(".")[2] or name for name in names}


def _draw_composition(axes: Axes, one: LayerBranches) -> None:
    """Draw how many features of each branch are in each cluster."""
    clusters = one.clusters
    bottom = np.zeros(clusters.max() + 1)
    for k, (branch, short) in enumerate(_short_names(one.branches).items()):
        count = np.bincount(clusters[one.branches == branch], minlength=len(bottom)).astype(float)
        axes.bar(range(len(bottom)), count, bottom=bottom, color=style.colour(k), label=f"{short} ({int(count.sum())})")
        bottom += count
    axes.set(xlabel="cluster of S", ylabel="features", title=f"{one.layer}: composition of the clusters")
    axes.legend(title="branch (features)", fontsize=8, title_fontsize=8)
    if len(bottom) <= 20:
        axes.set_xticks(range(len(bottom)))
    axes.spines[["top", "right"]].set_visible(False)


def _draw_means(axes: Axes, one: LayerBranches, table: np.ndarray, reach: float) -> AxesImage:
    """Draw the mean S between every two branches."""
    names = list(_short_names(one.branches).values())
    shown = axes.imshow(table, cmap=style.COLOUR_MAP, vmin=-reach, vmax=reach)
    for (i, j), value in np.ndenumerate(table):
        text = "" if np.isnan(value) else f"{value:z.2f}"
        axes.text(
            j, i, text, ha="center", va="center", color="white" if abs(value) > 0.6 * reach else "black", fontsize=9
        )
    axes.set_xticks(range(len(names)), names, rotation=30, ha="right", fontsize=8)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_title("mean S between branches")
    return shown


def _draw_null(axes: Axes, one: LayerBranches) -> None:
    """Draw the ARI with its permutation distribution."""
    axes.hist(one.rand.permuted, bins=24, color=style.GRAY, label=f"{len(one.rand.permuted):,} permutations")
    shown = one.rand.statistic
    axes.axvline(shown.value, color=style.colour(0), linewidth=2, label=f"observed: {shown.value:{NUMBER_FORMAT}}")
    if np.isfinite(shown.low):
        axes.axvspan(shown.low, shown.high, color=style.colour(0), alpha=0.15, linewidth=0, label="95 % interval")
    axes.axvline(NOTICEABLE, color=style.colour(3), linewidth=1, linestyle="--", label=f"threshold: {NOTICEABLE:g}")
    axes.set(xlabel="ARI of clusters with branches", ylabel="permutations", title=f"p = {one.rand.p:.2g}")
    axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)


def measure(context: Context) -> Outcome:
    """Measure how far similarity follows the branches of each layer."""
    size = context.network.input_size
    layers = [context.network.layer(name, size) for name in context.layers]
    compared = [
        one
        for layer in layers
        if len(layer.branches) > 1 and (one := compare_with_branches(context, layer)) is not None
    ]
    conclusion = write_conclusion(compared, context.layers, context.seeds)
    if not compared:
        none = value_finding("branches", np.nan, 0, "ARI of clusters with branches (no branches to compare with)")
        return Outcome(pd.DataFrame({"layer": context.layers}), [none], judge(compared), conclusion, {})
    return Outcome(
        pd.concat([feature_rows(one) for one in compared], ignore_index=True),
        [finding for one in compared for finding in collect_findings(one)],
        judge(compared),
        conclusion,
        {"": draw_figure(compared)},
    )


if __name__ == "__main__":
    run_study(STUDY, measure)
