"""What an interaction run writes beside its arrays: tables, figures, the sentence."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import networkx as nx
import numpy as np
import pandas as pd

from featmap.interaction.figures import FLOORED, OK, Interplay
from featmap.interaction.job import MEMBERS, JointJob
from featmap.optimize.recipe import Recipe
from featmap.plotting import heatmaps, interaction_panel, sheets
from featmap.plotting.labels import labelled_statistics, statistic_label
from featmap.runs import output
from featmap.runs.progress import Watcher
from featmap.runs.store import Run
from featmap.stats import correlation, interaction, measures

CLAIM = 5


def is_linear(recipe: Recipe) -> bool:
    """Does the recipe consist of linear steps, under which a linear network shows no interaction?

    A gradient over its RMS is one direction of one length at one size; at several, two units' lengths change apart.
    """
    straight = recipe.optimiser == "gradient" or (recipe.optimiser == "rms" and len(set(recipe.sizes)) == 1)
    return recipe.parameterisation == "pixels" and recipe.clamp == "never" and straight


def percent(share: float) -> str:
    """Return a share as a percentage without its sign, to a tenth below ten."""
    return f"{100 * share:.1f}" if abs(share) < 0.0995 else f"{100 * share:.0f}"


def number(value: Any, digits: int = 3) -> str:
    """Return a figure to some digits, or that it is undefined (NaN or `pd.NA`)."""
    return "undefined" if pd.isna(value) or not np.isfinite(value) else f"{value:.{digits}f}"


def headline(row: Mapping[str, Any]) -> str:
    """Return the response nonlinearity of one pair (a row of the summary) with its floor and ceiling."""
    floor, ceiling = (number(row[f"response_nonlinearity_{limit}"]) for limit in ("floor", "ceiling"))
    return f"response nonlinearity {number(row['response_nonlinearity'])}, floor {floor}, ceiling {ceiling}"


def counted(seeds: int) -> str:
    """Return a number of seeds in words."""
    return f"{seeds} seed" + ("" if seeds == 1 else "s")


def sentence(row: pd.Series, job: JointJob) -> str:
    """Return the conclusion about one group, from its row of the summary."""
    share = row.get("response_nonlinearity", np.nan)
    if not np.isfinite(share):
        why = "no probed feature responds" if row["status"] == OK else row["status"]
        return f"response nonlinearity is undefined: {why} ({counted(len(job.seeds))})."
    parts = [f"{percent(share)} % of the joint image's response is no mixture of its parts'"]
    floor, ceiling = row["response_nonlinearity_floor"], row["response_nonlinearity_ceiling"]
    limits = [f"{name} {percent(v)} %" for name, v in (("floor", floor), ("ceiling", ceiling)) if np.isfinite(v)]
    seeds = counted(int(row["seeds"]))
    if np.isfinite(row["low"]):
        low, high = np.clip([row["low"], row["high"]], 0, 1)
        limits.append(f"interval {percent(low)} to {percent(high)} % ({seeds})")
    else:
        limits.append(f"{seeds}: no interval")
    said = "; ".join([*parts, ", ".join(limits)])
    if np.isfinite(row["p"]):
        said += "; above its floor" if row["p"] < 0.05 else "; not above its floor"
        said += f" (p = {row['p']:.2g})"
    return said + "."


def notes(row: pd.Series, job: JointJob) -> list[str]:
    """Return what a reader has to know before believing the sentence."""
    found = []
    if not is_linear(job.recipe):
        found.append(f"recipe {job.recipe.name} has steps that are not linear: a linear network shows interaction too")
    if 0 < row["seeds"] < CLAIM:
        found.append(f"a claim wants {CLAIM} seeds: --seeds {CLAIM}")
    if 0 < row["seeds"] < len(job.seeds):
        found.append(f"{len(job.seeds) - int(row['seeds'])} of {len(job.seeds)} seeds have no figures (see status)")
    return found


def tidy(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table in which everything undefined is empty (pd.NA), never NaN."""
    floats = table.select_dtypes("float").columns
    return table.assign(**{c: measures.finite_column(table[c].to_numpy()) for c in floats})


def write_table(run: Run, name: str, table: pd.DataFrame) -> None:
    """Write a table without an index as parquet and CSV."""
    shown = tidy(table)
    run.write(f"{name}.parquet", lambda p: shown.to_parquet(p, index=False))
    run.write(f"{name}.csv", lambda p: shown.to_csv(p, index=False, float_format="%.9g", lineterminator="\n"))


def write_group(run: Run, found: Interplay, table: pd.DataFrame, summary: pd.DataFrame) -> None:
    """Write the report of a run of one group: panel, JSON, a row of CSV, and all seeds' figures."""
    job, row = found.job, summary.iloc[0]
    write_table(run, "figures", table)
    write_table(run, "interaction", summary)
    text = json.dumps(as_json(found, table, row), indent=1, ensure_ascii=False, allow_nan=False)
    run.write("interaction.json", lambda p: p.write_text(text + "\n", encoding="utf-8"))
    defined = [k for k in range(len(job.joints)) if found.status(k) == OK]
    output.save_figure(
        run, interaction_panel.panel(panel_of(found, table, row, (defined or [0])[0])), "panel", ("png", "svg")
    )


def as_json(found: Interplay, table: pd.DataFrame, row: pd.Series) -> dict[str, Any]:
    """Return every figure with the values of all seeds, as plain JSON values; undefined is null."""
    job = found.job
    figures: dict[str, Any] = {}
    for name in table.columns.drop(["group", "seed", "status", "second_difference_at"]):
        values = [float(v) if np.isfinite(v) else None for v in table[name]]
        interval = correlation.t_interval([np.nan if v is None else v for v in values])
        mean = float(row[name]) if np.isfinite(row[name]) else None
        figures[name] = {"mean": mean, "interval": interval, "seeds": values}
    return {
        "units": [str(u) for u in job.groups[0]],
        "sentence": sentence(row, job),
        "notes": notes(row, job),
        "balance": job.balance,
        "recipe": job.recipe.name,
        "linear_steps": is_linear(job.recipe),
        "probed_layers": list(job.responses),
        "features_dropped": int(np.isnan(found.read["deviation"]).sum()),
        "seeds": list(job.seeds),
        "status": table["status"].tolist(),
        "second_difference_at": table["second_difference_at"].tolist(),
        "figures": figures,
    }


def panel_of(found: Interplay, table: pd.DataFrame, row: pd.Series, at: int) -> interaction_panel.Panel:
    """Return what the panel shows of one group (`row` of the summary); its pictures are those of joint descent `at`."""
    job = found.job
    g, seed = job.joints[at]
    group, letters = job.groups[g], MEMBERS[: job.members]
    own = table[table["group"] == job.labels[g]]
    names, one = tuple(map(str, group)), table.iloc[at]
    solos = [found.image("solo_images", found.rows[u, seed, False]) for u in group]
    points = interaction.simplex_lattice(job.members)
    units = [found.units[u] for u in group]
    null = found.read["null_units"][found.starts[seed, False], units]
    weights = found.read["joint_weight"][at]
    with np.errstate(invalid="ignore"):  # infinite activations: any blend is as good
        best = points[int(np.argmax((found.read["joint_blend"][at] - null) @ weights))]
        curves = np.asarray(found.arrays["joint_curve"][at]) - null
    blend = np.tensordot(best, np.stack(solos), 1)

    images = []
    for image, name, c in zip(solos, names, letters, strict=True):
        talk = [f"{o} gets {number(one[f'crosstalk_{o}_on_{c}'], 2)}" for o in letters if o != c]
        said = f"{c}: {one[f'solo_{c}']:.3g}"
        images.append((image, name, f"{', '.join(talk)}; {said}" if len(talk) < 3 else said))
    kept = ", ".join(f"{number(one[f'retention_{c}'], 2)} of {c}" for c in letters)
    images.append((found.image("joint_images", at), "joint", f"keeps {kept}" if len(group) < 4 else ""))
    mixture = " + ".join(f"{t:.2g} {c}" for t, c in zip(best, letters, strict=True) if t)
    images.append((blend, "best linear blend", mixture))
    maps = found.maps(at)
    key = ", ".join(f"{c} = {n}" for c, n in zip(letters, names, strict=True))
    return interaction_panel.Panel(
        title=" + ".join(names),
        units=names,
        images=tuple(images),
        maps=tuple(maps),
        owner=interaction.territory(maps).owner,
        curves=curves,
        levels=tuple(float(one[f"solo_{c}"]) for c in letters),
        strips=tuple(strips(own, row)),
        sentence=sentence(row, job),
        notes=(
            f"{key}; pictures of seed {seed}, contrast alike for all; balance {job.balance}, recipe {job.recipe.name}, "
            f"{job.recipe.size} pixels; probed: {', '.join(job.responses)}",
            *notes(row, job),
        ),
    )


def strips(table: pd.DataFrame, row: pd.Series) -> list[interaction_panel.Strip]:
    """Return the strips of a panel: every figure over the seeds."""
    found = []
    for name in labelled_statistics(list(table.columns)):
        floored = name in FLOORED
        values = tuple(float(v) for v in table[name])
        floor, ceiling = (float(row[f"{name}_{kind}"]) if floored else None for kind in ("floor", "ceiling"))
        short = (
            statistic_label(name).split(":")[0]
            if name.startswith(("retention", "crosstalk"))
            else statistic_label(name)
        )
        letters = name.rpartition("retention_")[2] if name.startswith("retention") else ""
        if name.startswith("crosstalk"):
            letters = name.removeprefix("crosstalk_").replace("_on_", " on the image of ")
        said = f"{short} of {letters}" if letters else short
        found.append(interaction_panel.Strip(said, values, floor, ceiling, correlation.t_interval(values)))
    return found


# ---------------------------------------------------------------- a pair of layers


def with_units(table: pd.DataFrame, job: JointJob) -> pd.DataFrame:
    """Return a table of groups with a column a unit (`a`, `b`) in place of the group's name."""
    groups = dict(zip(job.labels, job.groups, strict=True))
    named = {c: [str(groups[g][k]) for g in table["group"]] for k, c in enumerate(MEMBERS[: job.members])}
    return pd.concat([pd.DataFrame(named, index=table.index), table.drop(columns="group")], axis=1)


def long(table: pd.DataFrame, job: JointJob) -> pd.DataFrame:
    """Return every figure of every pair and seed as a row: a, b, seed, status, figure, value."""
    wide = with_units(table, job).drop(columns="second_difference_at")
    keys = [*MEMBERS[: job.members], "seed", "status"]
    return wide.melt(id_vars=keys, var_name="figure", value_name="value")


def ranked(summary: pd.DataFrame) -> pd.DataFrame:
    """Return the pairs that have figures, the most nonlinear first: by response nonlinearity less its floor."""
    return summary[summary["excess"].notna()].sort_values("excess", ascending=False, kind="stable")


def bipartite(summary: pd.DataFrame) -> nx.Graph:
    """Return the graph of pairs (columns a and b): units are nodes, every pair's figures lie on its edge."""
    graph: nx.Graph = nx.Graph(weight="excess: response nonlinearity less its floor")
    apart = not set(summary["a"]) & set(summary["b"])  # one layer with itself has no two sides
    for k, side in enumerate("ab"):
        for name in dict.fromkeys(summary[side]):
            graph.add_node(name, layer=name.partition(":")[0], **({"bipartite": k} if apart else {}))
    for row in summary.to_dict("records"):
        known = {k: v for k, v in row.items() if k not in ("a", "b") and not (isinstance(v, float) and np.isnan(v))}
        if np.isfinite(row.get("excess", np.nan)):
            known["weight"] = float(row["excess"])
        graph.add_edge(row["a"], row["b"], **known)
    return graph


def matrix(summary: pd.DataFrame, figure: str) -> pd.DataFrame:
    """Return one figure as a table of the first layer's units by the second's; NaN where no pair was made."""
    rows, columns = list(dict.fromkeys(summary["a"])), list(dict.fromkeys(summary["b"]))
    return summary.pivot(index="a", columns="b", values=figure).reindex(index=rows, columns=columns)


def write_pairs(run: Run, found: Interplay, table: pd.DataFrame, summary: pd.DataFrame, watcher: Watcher) -> None:
    """Write the report of a run of pairs of two layers: tables, matrices, ranking, graph."""
    job = found.job
    pairs = with_units(summary, job)
    write_table(run, "figures", long(table, job))
    write_table(run, "pairs", pairs)
    ranking = ranked(pairs)
    write_table(run, "ranking", ranking)
    run.write("interaction.graphml", lambda p: nx.write_graphml(bipartite(pairs), p))
    names = labelled_statistics(list(pairs.columns))
    layers = [u.layer for u in job.groups[0]]
    for k, name in enumerate(names):
        watcher.stage("matrices", k, len(names) + 1)
        values = matrix(pairs, name)
        # a few pairs among many units, as a screening has them, make no picture
        if values.size <= 4 * len(pairs) and values.notna().to_numpy().any():
            figure = heatmaps.cross_heatmap(
                values,
                row_clusters=None,
                column_clusters=None,
                row_name=f"a: unit of {layers[0]}",
                column_name=f"b: unit of {layers[1]}",
                title=f"{layers[0]} with {layers[1]}, {len(pairs)} pairs, mean of {len(job.seeds)} seeds",
                cbar_label=statistic_label(name),
            )
            output.save_figure(run, figure, f"matrices/{name}", ("png", "svg"))
    _pictures(run, found, ranking)
    watcher.stage("matrices", len(names) + 1, len(names) + 1)


def _pictures(run: Run, found: Interplay, ranking: pd.DataFrame, most: int = 12) -> None:
    """Write the sheets of the most and the least linear pairs."""
    job, seed = found.job, found.job.seeds[0]
    at = {(str(job.groups[g][0]), str(job.groups[g][1]), s): k for k, (g, s) in enumerate(job.joints)}
    count = min(most, -(-len(ranking) // 2))
    for name, chosen in (("least-linear", ranking.head(count)), ("most-linear", ranking.iloc[::-1].head(count))):
        cards = []
        for row in chosen.to_dict("records"):
            k = at[row["a"], row["b"], seed]
            images = [found.image("solo_images", found.rows[u, seed, False]) for u in job.groups[job.joints[k][0]]]
            shown = interaction_panel.stretch_contrast([*images, found.image("joint_images", k)])
            q = "" if not np.isfinite(row["q"]) else f", q {row['q']:.2g}"
            kept = " and ".join(number(row[f"retention_{c}"], 2) for c in MEMBERS[: job.members])
            text = f"{headline(row)}{q}; keeps {kept}"
            cards.append(sheets.Card(tuple(shown), (row["a"], row["b"], "joint"), text))
        if cards:
            title = f"The {len(cards)} {name.replace('-', ' ')} of {len(ranking)} pairs"
            output.save_figure(run, sheets.card_sheet(cards, title), name, ("png",))
