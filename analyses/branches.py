"""Do features that are alike come from the same branch of their module?"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

import featmap
from analyses.formulas import partitions
from analyses.formulas.partitions import PermutationTest
from analyses.support.image_sets import spanned
from analyses.support.study import Context, Finding, Outcome, Study, Verdict, averaged, plain_finding, start
from featmap.mapping.result import SimilarityMap
from featmap.network.trace import Layer
from featmap.plotting import style
from featmap.rng import generator
from featmap.stats import clustering, measures, similarity_frame

WHOLE, SHARE, NOTICEABLE, P = 256, 2, 0.1, 0.05
SMALL, LARGER = 64, 96
NUMBER = "z.3f"
"""As numbers are told; what is rounded to zero has no sign."""
LAYERS = ("inception3a", "inception4a")

STUDY = Study(
    "branches",
    section="Mapping InceptionV3 Features",
    claim="A module is made of parallel branches whose features are concatenated; if branches divide the work, "
    "features that are alike come from the same branch.",
    measured="agreement (adjusted Rand index, ARI) of the consensus clusters of S with the branches, against "
    f"{partitions.PERMUTATIONS:,} permutations of the branches, and S within a branch against S across branches, "
    f"bootstrapped over features; all features of a layer of up to {WHOLE}, of a larger one {SHARE} x --features of "
    f"each branch; {SMALL} pixels ({LARGER} for networks of larger input)",
    rule=f"the claim holds if in every layer the ARI is above chance (p < {P}) and the lower end of its interval above "
    f"{NOTICEABLE}; in part if in any layer the ARI is above chance and that end above 0; it does not hold if in no "
    "layer ARI or contrast is above chance; else it is not decided",
    full="all features of both layers, at 299 to 380 pixels and 300 steps (the recipe `article-normalised`)",
    layers={
        "reference": LAYERS,
        "googlenet": LAYERS,
        "inception_v3": ("Mixed_5b", "Mixed_6b"),
        "resnet50": ("layer3.2", "layer4.2"),
    },
)


@dataclass(frozen=True, eq=False)
class Divided:
    """One layer: its map, the branch of each live feature, and how far S and clusters go with the branches."""

    layer: str
    found: SimilarityMap
    branches: np.ndarray
    rand: PermutationTest
    contrast: PermutationTest
    own: np.ndarray
    chance: np.ndarray
    seeds: list[tuple[float, float]]
    """Of each seed's map: adjusted Rand index and contrast."""

    @property
    def S(self) -> np.ndarray:
        """The profile similarity of the live features."""
        return similarity_frame.symmetric_values(self.found.clusters.similarity)


def chosen(context: Context, layer: Layer) -> list[int]:
    """Return the channels to map: all of a small layer, as many of each branch of a larger one."""
    if layer.channels <= WHOLE or context.full:
        return list(range(layer.channels))
    rng, first, found = generator("branches", context.network.name, layer.name), 0, []
    for _, width in layer.branches:
        count = min(width, SHARE * context.features)
        found += (first + np.sort(rng.choice(width, count, replace=False))).tolist()
        first += width
    return found


def mapped(context: Context, layer: Layer) -> SimilarityMap:
    """Return the map of the chosen features of a layer, on their own images."""
    natural = context.network.input_size
    made = {"recipe": "article-normalised"} if context.full else {"recipe": "fast", "size": size_of(natural)}
    channels = chosen(context, layer)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", measures.FewStimuliWarning)  # said by the count of features
        return featmap.similarity(
            layer.name,
            context.network,
            features=channels,
            stimuli="shown",
            seeds=context.seeds,
            device=context.device,
            out=context.folder(layer.name, channels=channels, seeds=context.seeds, **made),
            watcher=context.watcher,
            **made,
        )


def size_of(natural: int) -> int:
    """Return the size of the images, in pixels: the smallest at which the modules of a network have a grid."""
    return min(natural, SMALL if natural <= 2 * SMALL else LARGER)


def divided(context: Context, layer: Layer) -> Divided | None:
    """Return how one layer's similarities go with its branches; None if fewer than two branches have live features."""
    found = mapped(context, layer)
    S = found.clusters.similarity
    names = [str(n) for n in S.columns]
    branches = np.array([layer.branch(int(n.rpartition(":")[2])) for n in names])
    if len(set(branches)) < 2 or len(names) < 4:
        return None
    values = similarity_frame.symmetric_values(S)
    labels = found.clusters.communities.labels.reindex(names).to_numpy()
    own, chance = partitions.nearest_in_group(values, branches)
    return Divided(
        layer.name,
        found,
        branches,
        partitions.rand_index_test(labels, branches),
        partitions.contrast_test(values, branches),
        own,
        chance,
        by_seed(found, names, branches),
    )


def by_seed(found: SimilarityMap, names: list[str], branches: np.ndarray) -> list[tuple[float, float]]:
    """Return the adjusted Rand index and the contrast of each seed's own map."""
    data, rows = found.dataset.sel(image=names, response=names), []
    for k in range(data.sizes["seed"]):
        A = pd.DataFrame(data["A"][k].values.astype(np.float64), index=names, columns=names)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", measures.FewStimuliWarning)
            S = measures.profile(A, pd.Series(data["null"][k].values.astype(np.float64), index=names), names)
        labels = clustering.communities(clustering.neighbour_graph(S)).labels.reindex(names).to_numpy()
        ari = float(partitions.rand_index(labels, branches)[0])
        rows.append((ari, float(partitions.contrast(similarity_frame.symmetric_values(S), branches)[0])))
    return rows


def findings(one: Divided) -> list[Finding]:
    """Return the figures of one layer."""
    n, layer = len(one.branches), one.layer
    ari, gap = one.rand.figure, one.contrast.figure
    seeds = np.array([a for a, _ in one.seeds if np.isfinite(a)])
    mean, low, high = (f(seeds) if len(seeds) else np.nan for f in (np.mean, np.min, np.max))
    own = f"{layer}: features whose most similar one is of their own branch, as a share"
    return [
        plain_finding(f"{layer}:ari", ari.value, n, f"{layer}: ARI of clusters with branches", ari.low, ari.high),
        plain_finding(f"{layer}:ari_chance", one.rand.chance, n, f"{layer}: ARI with permuted branches, mean"),
        plain_finding(f"{layer}:ari_p", one.rand.p, n, f"{layer}: p of the ARI"),
        plain_finding(f"{layer}:ari_seed", mean, len(seeds), f"{layer}: ARI of n single seeds, their range", low, high),
        plain_finding(
            f"{layer}:contrast", gap.value, n, f"{layer}: mean S within a branch less that across", gap.low, gap.high
        ),
        plain_finding(f"{layer}:contrast_p", one.contrast.p, n, f"{layer}: p of that difference"),
        averaged(f"{layer}:own_neighbour", one.own, own),
        plain_finding(f"{layer}:own_chance", float(one.chance.mean()), n, f"{layer}: that share by chance"),
    ]


def verdict(layers: list[Divided]) -> Verdict:
    """Return what the layers say of the claim: by the lower ends of the intervals, as `STUDY.rule` words it."""
    if not layers:
        return "not decided"
    ends = [one.rand.figure.low if one.rand.p < P else -np.inf for one in layers]
    if all(low > NOTICEABLE for low in ends):
        return "holds"
    if any(low > 0 for low in ends):
        return "holds in part"
    above = any(min(one.rand.p, one.contrast.p) < P for one in layers)
    return "not decided" if above else "does not hold"


def conclusion(layers: list[Divided], asked: tuple[str, ...]) -> str:
    """Return the sentence."""
    if not layers:
        return f"Undefined: {' and '.join(asked)} join no branches, or 0 or 1 of them have live features."
    said = [
        f"in {one.layer} clusters and branches agree by an ARI of {spanned(one.rand.figure, NUMBER)} (chance "
        f"{one.rand.chance:{NUMBER}}, p {one.rand.p:.2g}), and S within a branch is "
        f"{spanned(one.contrast.figure, NUMBER)} "
        f"above S across (p {one.contrast.p:.2g})"
        for one in layers
    ]
    return "I" + "; ".join(said)[1:] + "."


def rows_of(one: Divided) -> pd.DataFrame:
    """Return a row a feature: branch, cluster, nearest neighbour's branch, mean S within its branch and across."""
    names = [str(n) for n in one.found.clusters.similarity.columns]
    S, same = one.S, one.branches[:, None] == one.branches
    known = np.isfinite(S) & ~np.eye(len(S), dtype=bool)

    def mean(table: np.ndarray) -> list[float | None]:
        return [float(S[j, table[j]].mean()) if table[j].any() else None for j in range(len(S))]

    nearest = np.where(known, S, -np.inf).argmax(1)
    return pd.DataFrame(
        {
            "layer": one.layer,
            "feature": names,
            "branch": one.branches,
            "cluster": one.found.clusters.communities.labels.reindex(names).to_numpy(),
            "nearest": [names[k] for k in nearest],
            "nearest_branch": one.branches[nearest],
            "S_within": mean(known & same),
            "S_across": mean(known & ~same),
        }
    )


@style.house_style
def figure(layers: list[Divided]) -> Figure:
    """Draw a row a layer: the branches in each cluster, S between branches on one scale, ARI against its null."""
    made = Figure(figsize=(11, 3.9 * len(layers)), layout="constrained")
    grid = made.subplots(len(layers), 3, squeeze=False, gridspec_kw={"width_ratios": (1.25, 1, 1)})
    tables = [partitions.mean_between_groups(one.S, one.branches) for one in layers]
    known = np.concatenate([np.abs(t[np.isfinite(t)]) for t in tables])
    reach = float(known.max(initial=0)) or 1.0
    for axes, one, table in zip(grid, layers, tables, strict=True):
        _composition(axes[0], one)
        shown = _means(axes[1], one, table, reach)
        _null(axes[2], one)
    made.colorbar(
        shown, ax=grid[:, 1].tolist(), location="bottom", shrink=0.8, label="mean S (one scale for all layers)"
    )
    return made


def _short(branches: np.ndarray) -> dict[str, str]:
    names = sorted(set(branches))
    return {name: name.rpartition(".")[2] or name for name in names}


def _composition(axes: Axes, one: Divided) -> None:
    names = [str(n) for n in one.found.clusters.similarity.columns]
    clusters = one.found.clusters.communities.labels.reindex(names).to_numpy()
    bottom = np.zeros(clusters.max() + 1)
    for k, (branch, short) in enumerate(_short(one.branches).items()):
        count = np.bincount(clusters[one.branches == branch], minlength=len(bottom)).astype(float)
        axes.bar(range(len(bottom)), count, bottom=bottom, color=style.colour(k), label=f"{short} ({int(count.sum())})")
        bottom += count
    axes.set(xlabel="cluster of S", ylabel="features", title=f"{one.layer}: who is in the clusters")
    axes.legend(title="branch (features)", fontsize=8, title_fontsize=8)
    if len(bottom) <= 20:
        axes.set_xticks(range(len(bottom)))
    axes.spines[["top", "right"]].set_visible(False)


def _means(axes: Axes, one: Divided, table: np.ndarray, reach: float) -> AxesImage:
    names = list(_short(one.branches).values())
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


def _null(axes: Axes, one: Divided) -> None:
    axes.hist(one.rand.permuted, bins=24, color=style.GRAY, label=f"{len(one.rand.permuted):,} permutations")
    shown = one.rand.figure
    axes.axvline(shown.value, color=style.colour(0), linewidth=2, label=f"found: {shown.value:{NUMBER}}")
    if np.isfinite(shown.low):
        axes.axvspan(shown.low, shown.high, color=style.colour(0), alpha=0.15, linewidth=0, label="95 % interval")
    axes.axvline(NOTICEABLE, color=style.colour(3), linewidth=1, linestyle="--", label=f"bar: {NOTICEABLE:g}")
    axes.set(xlabel="ARI of clusters with branches", ylabel="permutations", title=f"p = {one.rand.p:.2g}")
    axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)


def measure(context: Context) -> Outcome:
    """Measure how far similarity follows the branches of each layer."""
    size = context.network.input_size
    layers = [context.network.layer(name, size) for name in context.layers]
    found = [one for layer in layers if len(layer.branches) > 1 and (one := divided(context, layer)) is not None]
    said = conclusion(found, context.layers)
    if not found:
        none = plain_finding("branches", np.nan, 0, "ARI of clusters with branches (no branches to compare with)")
        return Outcome(pd.DataFrame({"layer": context.layers}), [none], verdict(found), said, {})
    return Outcome(
        pd.concat([rows_of(one) for one in found], ignore_index=True),
        [figure for one in found for figure in findings(one)],
        verdict(found),
        said,
        {"": figure(found)},
    )


if __name__ == "__main__":
    start(STUDY, measure)
