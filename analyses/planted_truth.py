"""Measure how well a map recovers planted similarity, at several noise levels.

    python -m analyses.planted_truth [--out analyses/planted_truth] [--draws 3]

Each network has 32 features (`featmap.validation.planted`): copies, scaled copies, blocks of cosine 0.6, or pairs of
cosines from -0.9 to 0.9; as a linear layer, after a ReLU, or after two ReLUs with a layer of mixtures between. Noise
is the share of a feature's squared weights that is its own. All measures are computed from the same A (one maximising
image for each feature); "linear profile" is S without square roots of the responses. DORA's distances are
standardised over A's own rows, since there are no natural images for such a network.

Written are `planted_truth.csv` (one row for each network and similarity), and `planted_truth.png` and `.svg` (means
over draws; scaled copies behave as copies do and are not drawn). Order is Somers' d of the similarity given the
planted cosines: 1 where every two pairs of features of different cosine are ordered correctly, 0 by chance (Somers,
1962, doi:10.2307/2090408). ARI is that of consensus communities with the planted groups.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import typer
from rich.progress import track
from scipy import stats

from analyses.support.commands import run
from featmap import load
from featmap.mapping.run import similarity_job
from featmap.plotting import scatter, style
from featmap.runs.device import deterministic_settings
from featmap.runs.worker import Worker
from featmap.stats import clustering, frames, measures, reliability
from featmap.stats.agreement import extreme_activation_distance
from featmap.validation.planted import DEPTHS, LINEAR, STRUCTURES, Planted, plant

NOISE = (0.0, 0.25, 0.5, 0.7, 0.8, 0.9, 1.0)
NEIGHBOURS = 5
SIMILARITIES = ("S (Pearson)", "S (Spearman)", "linear profile", "co-activation", "DORA, layer-wise", "DORA, pair-wise")


def measure_responses(planted: Planted) -> tuple[np.ndarray, np.ndarray]:
    """Measure A (`D x D`) and the null responses (D) of a planted network."""
    network = load(planted.module, input_size=planted.size)
    job = similarity_job("features", network, LINEAR)
    worker = Worker(job)
    with deterministic_settings():
        results = [worker.make(unit) for unit in job.work_units()]
    A = np.concatenate([r["A"] for r in results if "A" in r]).astype(np.float64)
    return A, results[0]["null"].astype(np.float64)


def compute_similarities(A: np.ndarray, null: np.ndarray) -> dict[str, np.ndarray]:
    """Compute every symmetric similarity of one A.

    Co-activation is the mean of both directions.
    """
    C = (A - null) / (np.diag(A) - null)
    mean, deviation = A.mean(axis=0), A.std(axis=0)
    return {
        "S (Pearson)": measures.profile_correlations(A),
        "S (Spearman)": measures.profile_correlations(A, "spearman"),
        "linear profile": measures.profile_correlations(A, roots=False),
        "co-activation": (C + C.T) / 2,
        "DORA, layer-wise": 1 - extreme_activation_distance(A, mean, deviation, "layer"),
        "DORA, pair-wise": 1 - extreme_activation_distance(A, mean, deviation, "pair"),
    }


def rank_order(S: np.ndarray, truth: np.ndarray) -> float:
    """Compute Somers' d of a similarity given the planted cosines, in [-1, 1]."""
    upper = np.triu_indices(len(S), 1)
    return float(stats.somersd(truth[upper].round(9), S[upper].round(9)).statistic)


def cluster_agreement(S: np.ndarray, groups: np.ndarray) -> float:
    """Compute the adjusted Rand index of communities and planted groups."""
    names = pd.Index([f"features:{k}" for k in range(len(S))])
    full = S.copy()
    np.fill_diagonal(full, 1.0)
    frame = frames.to_frame(full, names, names)
    labels = clustering.communities(clustering.neighbour_graph(frame, NEIGHBOURS)).labels
    return reliability.adjusted_rand(groups, labels.to_numpy())


def measure_recovery(structure: str, depth: str, noise: float, seed: int) -> list[dict[str, Any]]:
    """Measure the recovery of one planted network, one row for each similarity."""
    planted = plant(structure, depth=depth, noise=noise, seed=seed)
    A, null = measure_responses(planted)
    rows = []
    for name, S in compute_similarities(A, null).items():
        row: dict[str, Any] = {"structure": structure, "depth": depth, "noise": noise, "seed": seed, "similarity": name}
        row["order"] = rank_order(S, planted.structure.cosines)
        row["ari"] = None if planted.structure.clusters is None else cluster_agreement(S, planted.structure.clusters)
        exact = depth == "linear" and name == "S (Pearson)"
        error = np.abs(S - planted.closed_form(null, np.diag(A))).max() if exact else None
        row["closed_form_error"] = None if error is None else float(error)
        rows.append(row)
    return rows


def draw_figure(table: pd.DataFrame, path: Path) -> None:
    """Draw the curves of order and ARI against noise."""
    mean = table.groupby(["structure", "depth", "similarity", "noise"], as_index=False)[["order", "ari"]].mean()
    panels = []
    for structure in STRUCTURES:
        for column, y_label in (("order", "order (Somers' d)"), ("ari", "ARI of clusters")):
            for depth in DEPTHS:
                part = mean[(mean["structure"] == structure) & (mean["depth"] == depth)]
                if part[column].isna().all() or structure == "scaled":
                    continue
                curves = [
                    (
                        name,
                        part.loc[part["similarity"] == name, "noise"].tolist(),
                        part.loc[part["similarity"] == name, column].tolist(),
                    )
                    for name in SIMILARITIES
                ]
                panels.append((f"{structure}, {depth}", y_label, curves))
    style.save(scatter.recovery_curves(panels, "Recovery of planted similarity", columns=3), path)


def main(
    out: Annotated[Path, typer.Option(help="Path of the files without suffix.")] = Path("analyses/planted_truth"),
    draws: Annotated[int, typer.Option(help="Networks of each kind.")] = 3,
) -> None:
    """Measure recovery, and write the table and the figure."""
    cases = [(s, d, n, k) for s in STRUCTURES for d in DEPTHS for n in NOISE for k in range(draws)]
    rows = [row for case in track(cases, description="networks") for row in measure_recovery(*case)]
    table = pd.DataFrame(rows)
    table.to_csv(out.with_suffix(".csv"), index=False, float_format="%.6g", lineterminator="\n")
    draw_figure(table, out)
    clean = table[table["noise"] == 0]
    print(clean.groupby(["depth", "similarity"])[["order", "ari"]].mean().round(3).to_string())
    print(f"closed form of linear networks: largest error {table['closed_form_error'].max():.2g}")


if __name__ == "__main__":
    run(main)
