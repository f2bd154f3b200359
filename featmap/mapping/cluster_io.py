"""Write the clusters of a layer as JSON, and read them back instead of computing them again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from featmap.stats.clustering import Clusters, Communities, neighbour_graph
from featmap.stats.measures import FORMULA, LINEAR

FILE_NAME = "clusters.json"


def to_json(clusters: Clusters, neighbours: int) -> str:
    """Format clusters, communities and all null draws as JSON text.

    Parameters
    ----------
    clusters : Clusters
        Clusters of one layer.
    neighbours : int
        Nearest neighbours of each feature in the graph that was clustered.

    Returns
    -------
    str
        Content of `clusters.json`; the similarity and its graph are left out.
    """
    communities = clusters.communities
    values: dict[str, Any] = {
        "neighbours": neighbours,
        "formula": FORMULA,
        "allowed": bool(clusters.allowed),
        "reason": clusters.reason,
        "p_permuted": clusters.p_permuted,
        "p_factor": clusters.p_factor,
        "permuted_modularity": clusters.permuted.tolist(),
        "factor_modularity": clusters.factor.tolist(),
        "communities": {
            "modularity": communities.modularity,
            "run_modularity": list(communities.run_modularity),
            "mean_modularity": communities.mean_modularity,
            "self_agreement": communities.self_agreement,
        },
        "features": [str(f) for f in clusters.labels.index],
        "cluster": clusters.labels.tolist(),
        "community": communities.labels.tolist(),
    }
    return json.dumps(values, indent=1) + "\n"


def read(path: Path, profile: pd.DataFrame, neighbours: int, formula: int = FORMULA) -> Clusters | None:
    """Read the clusters that `to_json` wrote.

    Parameters
    ----------
    path : Path
        File, which need not exist.
    profile : pandas.DataFrame
        Profile similarity S of the layer. S and its graph are quick to compute and are not stored with the clusters.
    neighbours : int
        Nearest neighbours of each feature in the graph.
    formula : int, default FORMULA
        Formula of S, see `featmap.stats.measures.FORMULA`.

    Returns
    -------
    Clusters or None
        None if the file is missing or damaged, or belongs to other features, another number of neighbours or another
        formula of S.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        settings = values["neighbours"], values.get("formula", LINEAR)
        if settings != (neighbours, formula) or values["features"] != [str(f) for f in profile.columns]:
            return None
        stored = values["communities"]
        names = pd.Index(values["features"])
        communities = Communities(
            labels=pd.Series(values["community"], index=names, name="cluster"),
            modularity=stored["modularity"],
            run_modularity=tuple(stored["run_modularity"]),
            mean_modularity=stored["mean_modularity"],
            self_agreement=stored["self_agreement"],
        )
        return Clusters(
            labels=pd.Series(values["cluster"], index=names, name="cluster"),
            allowed=values["allowed"],
            reason=values["reason"],
            p_permuted=values["p_permuted"],
            p_factor=values["p_factor"],
            permuted=np.array(values["permuted_modularity"], dtype=float),
            factor=np.array(values["factor_modularity"], dtype=float),
            communities=communities,
            similarity=profile,
            graph=neighbour_graph(profile, neighbours),
        )
    except (OSError, ValueError, KeyError, TypeError):  # a missing or damaged file: the caller computes the clusters
        return None
