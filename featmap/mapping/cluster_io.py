"""Clusters kept in a run folder: written once, read again instead of being computed again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from featmap.stats.clustering import Clusters, Communities, neighbour_graph

NAME = "clusters.json"


def to_json(clusters: Clusters, neighbours: int) -> str:
    """Return clusters, communities and every null draw as JSON text."""
    found = clusters.communities
    values: dict[str, Any] = {
        "neighbours": neighbours,
        "allowed": bool(clusters.allowed),
        "reason": clusters.reason,
        "p_permuted": clusters.p_permuted,
        "p_factor": clusters.p_factor,
        "permuted_modularity": clusters.permuted.tolist(),
        "factor_modularity": clusters.factor.tolist(),
        "communities": {
            "modularity": found.modularity,
            "run_modularity": list(found.run_modularity),
            "mean_modularity": found.mean_modularity,
            "self_agreement": found.self_agreement,
        },
        "features": [str(f) for f in clusters.labels.index],
        "cluster": clusters.labels.tolist(),
        "community": found.labels.tolist(),
    }
    return json.dumps(values, indent=1) + "\n"


def read(path: Path, profile: pd.DataFrame, neighbours: int) -> Clusters | None:
    """Return the clusters that `to_json` wrote, or None where there are none for this profile and k.

    `profile` is the run's S; it and its graph are quick to make and are not stored twice.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values["neighbours"] != neighbours or values["features"] != [str(f) for f in profile.columns]:
            return None
        c = values["communities"]
        names = pd.Index(values["features"])
        communities = Communities(
            labels=pd.Series(values["community"], index=names, name="cluster"),
            modularity=c["modularity"],
            run_modularity=tuple(c["run_modularity"]),
            mean_modularity=c["mean_modularity"],
            self_agreement=c["self_agreement"],
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
    except (OSError, ValueError, KeyError, TypeError):
        return None
