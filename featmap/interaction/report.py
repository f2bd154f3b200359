"""Write the tables, plots and sentences of an interaction run."""

from __future__ import annotations

import json
from typing import Any

import networkx as nx
import numpy as np
import pandas as pd

from featmap.image_shape import colour_note, format_size
from featmap.interaction.communities import UnitGroups, find_groups, interacting_graph
from featmap.interaction.conclusion import (
    compare_methods,
    describe_nonlinearity,
    describe_photographs,
    format_number,
    list_notes,
    photograph_values,
    state_conclusion,
)
from featmap.interaction.job import MEMBERS, JointJob
from featmap.interaction.kinds import KINDS, UNDEFINED
from featmap.interaction.power import RunPower
from featmap.interaction.precision import end_notes, seed_range
from featmap.interaction.statistics import NONLINEARITIES, OK, JointArrays
from featmap.plotting import heatmaps, interaction_panel, sheets
from featmap.plotting.labels import labelled_statistics, statistic_label
from featmap.runs import output
from featmap.runs.progress import Watcher
from featmap.runs.store import Run
from featmap.stats import correlation, interaction
from featmap.stats.frames import finite_column, plain_columns


def to_finite(table: pd.DataFrame) -> pd.DataFrame:
    """Replace everything that is not finite in a table's float columns by NaN.

    Parameters
    ----------
    table : pandas.DataFrame
        Any table.

    Returns
    -------
    pandas.DataFrame
        A copy; float columns are float64.
    """
    floats = table.select_dtypes("float").columns
    return table.assign(**{c: finite_column(table[c].to_numpy()) for c in floats})


def write_table(run: Run, name: str, table: pd.DataFrame) -> None:
    """Write a table without its index as Parquet and CSV.

    Parameters
    ----------
    run : Run
        Run folder.
    name : str
        Name of the files without suffix.
    table : pandas.DataFrame
        The table; NaN becomes null in Parquet and empty in CSV.
    """
    finite = to_finite(table)
    run.write(f"{name}.parquet", lambda p: finite.to_parquet(p, index=False))
    run.write(f"{name}.csv", lambda p: finite.to_csv(p, index=False, float_format="%.9g", lineterminator="\n"))


# ---------------------------------------------------------------- one group


def write_group_report(
    run: Run, arrays: JointArrays, table: pd.DataFrame, summary: pd.DataFrame, power: RunPower
) -> None:
    """Write the report of a run of one group: tables, JSON and the panel.

    Parameters
    ----------
    run : Run
        Run folder.
    arrays : JointArrays
        Its arrays.
    table : pandas.DataFrame
        Statistics of every seed.
    summary : pandas.DataFrame
        Their summary, one row.
    power : RunPower
        What the run could find.
    """
    job, row = arrays.job, summary.iloc[0]
    write_table(run, "figures", table)
    write_table(run, "interaction", summary)
    _write_json(run, to_json(arrays, table, row, power))
    defined = [k for k in range(len(job.joints)) if arrays.status(k) == OK]
    content = make_panel(arrays, table, row, (defined or [0])[0])
    output.save_figure(run, interaction_panel.panel(content), "panel", ("png", "svg"))


def _write_json(run: Run, values: dict[str, Any]) -> None:
    """Write the results of a run as JSON."""
    text = json.dumps(values, indent=1, ensure_ascii=False, allow_nan=False)
    run.write("interaction.json", lambda p: p.write_text(text + "\n", encoding="utf-8"))


def to_json(arrays: JointArrays, table: pd.DataFrame, row: pd.Series, power: RunPower) -> dict[str, Any]:
    """Collect the results of one group as plain JSON values.

    Parameters
    ----------
    arrays : JointArrays
        Arrays of the run.
    table : pandas.DataFrame
        Statistics of every seed.
    row : pandas.Series
        The group's row of the summary.
    power : RunPower
        What the run could find.

    Returns
    -------
    dict
        Settings, conclusion and notes, under "power" what `RunPower.record` says, and under "figures" each statistic
        with its mean, interval and the values of all seeds; None where undefined.
    """
    job = arrays.job
    statistics: dict[str, Any] = {}
    for name in table.columns.drop(["group", "seed", "status", "second_difference_at"]):
        values = [float(v) if np.isfinite(v) else None for v in table[name]]
        interval = correlation.t_interval([np.nan if v is None else v for v in values])
        mean = float(row[name]) if np.isfinite(row[name]) else None
        statistics[name] = {"mean": mean, "interval": interval, "seeds": values}
    return {
        "units": [str(u) for u in job.groups[0]],
        "kind": row["kind"],
        "sentence": state_conclusion(row, len(job.seeds)),
        "notes": [*end_notes(job, row.to_frame().T), *list_notes(row, len(job.seeds), job.recipe)],
        **_settings(arrays),
        "power": power.record(),
        "status": table["status"].tolist(),
        "second_difference_at": table["second_difference_at"].tolist(),
        "figures": statistics,
    } | ({"photographs": photograph_values(row)} if "photographs" in row else {})


def _settings(arrays: JointArrays) -> dict[str, Any]:
    """Collect the settings of a run as plain JSON values, and how many features are left out."""
    job = arrays.job
    return {
        "balance": job.balance,
        "recipe": job.recipe.name,
        "linear_steps": job.recipe.linear,
        "probed_layers": list(job.responses),
        "features_dropped": int(np.isnan(arrays.small_arrays["deviation"]).sum()),
        "seeds": list(job.seeds),
    }


def make_panel(arrays: JointArrays, table: pd.DataFrame, row: pd.Series, joint_row: int) -> interaction_panel.Panel:
    """Collect the contents of one group's panel.

    Parameters
    ----------
    arrays : JointArrays
        Arrays of the run.
    table : pandas.DataFrame
        Statistics of every group and seed.
    row : pandas.Series
        The group's row of the summary.
    joint_row : int
        Joint descent whose images, maps and curves are shown.

    Returns
    -------
    featmap.plotting.interaction_panel.Panel
        Images, maps, curves, strips of all seeds' statistics, conclusion and notes.
    """
    job, small = arrays.job, arrays.small_arrays
    g, seed = job.joints[joint_row]
    group, letters = job.groups[g], MEMBERS[: job.members]
    group_table = table[table["group"] == job.labels[g]]
    names, shown = tuple(map(str, group)), table.iloc[joint_row]
    solos = [arrays.image("solo_images", arrays.solo_rows[u, seed, False]) for u in group]
    points = interaction.simplex_lattice(job.members)
    columns = [arrays.unit_columns[u] for u in group]
    null = small["null_units"][arrays.start_rows[seed, False], columns]
    weights = small["joint_weight"][joint_row]
    with np.errstate(invalid="ignore"):  # infinite activations: any blend is as good
        best = points[int(np.argmax((small["joint_blend"][joint_row] - null) @ weights))]
        curves = np.asarray(arrays.arrays["joint_curve"][joint_row]) - null
    blend = np.tensordot(best, np.stack(solos), 1)

    images = []
    for image, name, c in zip(solos, names, letters, strict=True):
        crosstalk = [f"{o} gets {format_number(shown[f'crosstalk_{o}_on_{c}'], 2)}" for o in letters if o != c]
        own = f"{c}: {shown[f'solo_{c}']:.3g}"
        images.append((image, name, f"{', '.join(crosstalk)}; {own}" if len(crosstalk) < 3 else own))
    retention = ", ".join(f"{format_number(shown[f'retention_{c}'], 2)} of {c}" for c in letters)
    joint_image = arrays.image("joint_images", joint_row)
    images.append((joint_image, "joint", f"keeps {retention}" if len(group) < 4 else ""))
    mixture = " + ".join(f"{t:.2g} {c}" for t, c in zip(best, letters, strict=True) if t)
    images.append((blend, "best linear blend", mixture))
    maps = arrays.activation_maps(joint_row)
    legend = ", ".join(f"{c} = {n}" for c, n in zip(letters, names, strict=True))
    return interaction_panel.Panel(
        title=" + ".join(names) + (f": {row['kind']}" if "kind" in row else ""),
        units=names,
        images=tuple(images),
        maps=tuple(maps),
        owner=interaction.territory(maps).owner,
        curves=curves,
        levels=tuple(float(shown[f"solo_{c}"]) for c in letters),
        strips=tuple(make_strips(group_table, row)),
        sentence=state_conclusion(row, len(job.seeds)),
        notes=(
            f"{legend}; images of seed {seed}, with one contrast for all; balance {job.balance}, "
            f"recipe {job.recipe.name}, {format_size(job.recipe.size)} pixels{colour_note(job.network.channels)}; "
            f"probed: {', '.join(job.responses)}",
            *end_notes(job, row.to_frame().T),
            *list_notes(row, len(job.seeds), job.recipe),
            *describe_photographs(row),
        ),
    )


def make_strips(table: pd.DataFrame, row: pd.Series) -> list[interaction_panel.Strip]:
    """Collect the strips of a panel: each statistic's values over the seeds.

    Parameters
    ----------
    table : pandas.DataFrame
        One group's statistics of every seed.
    row : pandas.Series
        Its row of the summary.

    Returns
    -------
    list of featmap.plotting.interaction_panel.Strip
        One for each statistic that has a label.
    """
    strips = []
    for name in labelled_statistics(list(table.columns)):
        values = tuple(float(v) for v in table[name])
        has_limits = name in NONLINEARITIES
        floor, ceiling = (float(row[f"{name}_{kind}"]) if has_limits else None for kind in ("floor", "ceiling"))
        label = statistic_label(name)
        if name.startswith(("retention", "crosstalk")):
            label = label.split(":")[0]
        letters = name.rpartition("retention_")[2] if name.startswith("retention") else ""
        if name.startswith("crosstalk"):
            letters = name.removeprefix("crosstalk_").replace("_on_", " on the image of ")
        title = f"{label} of {letters}" if letters else label
        strips.append(interaction_panel.Strip(title, values, floor, ceiling, correlation.t_interval(values)))
    return strips


# ---------------------------------------------------------------- a pair of layers


def add_unit_columns(table: pd.DataFrame, job: JointJob) -> pd.DataFrame:
    """Replace the column `group` of a table by a column for each unit.

    Parameters
    ----------
    table : pandas.DataFrame
        A table with a column `group`.
    job : JointJob
        Job of the run.

    Returns
    -------
    pandas.DataFrame
        Columns `a`, `b`, ... with the units' names, then those of the table.
    """
    groups = dict(zip(job.labels, job.groups, strict=True))
    columns = {c: [str(groups[g][k]) for g in table["group"]] for k, c in enumerate(MEMBERS[: job.members])}
    return pd.concat([pd.DataFrame(columns, index=table.index), table.drop(columns="group")], axis=1)


def to_long(table: pd.DataFrame, job: JointJob) -> pd.DataFrame:
    """Reshape a table of statistics to one row for each statistic.

    Parameters
    ----------
    table : pandas.DataFrame
        Statistics of every group and seed.
    job : JointJob
        Job of the run.

    Returns
    -------
    pandas.DataFrame
        Columns `a`, `b`, `seed`, `status`, `figure` (the statistic's name) and `value`.
    """
    wide = add_unit_columns(table, job).drop(columns="second_difference_at")
    keys = [*MEMBERS[: job.members], "seed", "status"]
    return wide.melt(id_vars=keys, var_name="figure", value_name="value")


def rank_pairs(summary: pd.DataFrame) -> pd.DataFrame:
    """Rank the pairs by response nonlinearity less its floor.

    Parameters
    ----------
    summary : pandas.DataFrame
        Summary of all pairs.

    Returns
    -------
    pandas.DataFrame
        Rows whose `excess` is defined, the most nonlinear first.
    """
    return summary[summary["excess"].notna()].sort_values("excess", ascending=False, kind="stable")


def build_graph(summary: pd.DataFrame, units: pd.DataFrame | None = None) -> nx.Graph:
    """Build the graph of pairs.

    Parameters
    ----------
    summary : pandas.DataFrame
        Summary of all pairs, with columns `a` and `b`.
    units : pandas.DataFrame, optional
        Clusters and communities of the units, see `featmap.interaction.communities.UnitGroups`.

    Returns
    -------
    networkx.Graph
        Units are nodes; a pair's defined statistics are the attributes of its edge, `weight` is its `excess`, and
        `interacting` says whether it is one of the edges that communities are made of. Nodes of two layers have the
        attribute `bipartite`, 0 or 1; with `units` those that have them have `cluster` and `community`.
    """
    interacting = interacting_graph(summary)
    graph: nx.Graph = nx.Graph(weight="excess: response nonlinearity less its floor")
    disjoint = not set(summary["a"]) & set(summary["b"])  # a layer paired with itself has no two sides
    for k, letter in enumerate("ab"):
        for name in dict.fromkeys(summary[letter]):
            graph.add_node(name, layer=name.partition(":")[0], **({"bipartite": k} if disjoint else {}))
    for row in summary.to_dict("records"):
        defined = {k: v for k, v in row.items() if k not in ("a", "b") and not (isinstance(v, float) and np.isnan(v))}
        if np.isfinite(row.get("excess", np.nan)):
            defined["weight"] = float(row["excess"])
        graph.add_edge(row["a"], row["b"], interacting=interacting.has_edge(row["a"], row["b"]), **defined)
    for column in () if units is None else ("cluster", "community"):
        for name, value in units[column].dropna().items():  # type: ignore[index]
            graph.nodes[name][column] = int(value)
    return graph


def pair_matrix(summary: pd.DataFrame, name: str) -> pd.DataFrame:
    """Arrange one statistic as a matrix of the first layer's units by the second's.

    Parameters
    ----------
    summary : pandas.DataFrame
        Summary of all pairs, with columns `a` and `b`.
    name : str
        Name of the statistic.

    Returns
    -------
    pandas.DataFrame
        Units a by units b; NaN for pairs without a joint descent.
    """
    rows, columns = list(dict.fromkeys(summary["a"])), list(dict.fromkeys(summary["b"]))
    return summary.pivot(index="a", columns="b", values=name).reindex(index=rows, columns=columns)


def pairs_to_json(arrays: JointArrays, pairs: pd.DataFrame, groups: UnitGroups, power: RunPower) -> dict[str, Any]:
    """Collect what is concluded from all pairs as plain JSON values.

    Parameters
    ----------
    arrays : JointArrays
        Arrays of the run.
    pairs : pandas.DataFrame
        Summary of all pairs.
    groups : UnitGroups
        Clusters and communities of the units.
    power : RunPower
        What the run could find.

    Returns
    -------
    dict
        Layers, settings, number of pairs by status and by kind; under "communities" their `sizes`, the number of
        interacting `pairs`, `modularity` and `p`, None where undefined; under "power" what `RunPower.record` says.
    """
    structure = {"modularity": groups.modularity, "p": groups.p}
    return {
        "layers": [u.layer for u in arrays.job.groups[0]],
        **_settings(arrays),
        "pairs": len(pairs),
        "statuses": {str(k): int(n) for k, n in pairs["status"].value_counts().items()},
        "kinds": {str(k): int(n) for k, n in pairs["kind"].value_counts().items()},
        "communities": {"sentence": str(groups), "sizes": groups.sizes, "pairs": groups.edges}
        | {name: float(v) if np.isfinite(v) else None for name, v in structure.items()},
        "power": power.record(),
    }


def write_pairs_report(
    run: Run, arrays: JointArrays, table: pd.DataFrame, summary: pd.DataFrame, power: RunPower, watcher: Watcher
) -> UnitGroups:
    """Write the report of a run of pairs: tables, JSON, graph, matrices, sheets.

    Parameters
    ----------
    run : Run
        Run folder.
    arrays : JointArrays
        Its arrays.
    table : pandas.DataFrame
        Statistics of every pair and seed.
    summary : pandas.DataFrame
        Their summary.
    power : RunPower
        What the run could find.
    watcher : Watcher
        Receives progress updates.

    Returns
    -------
    UnitGroups
        Clusters of the units, and communities of those that interact.
    """
    job = arrays.job
    pairs = add_unit_columns(summary, job)
    write_table(run, "figures", to_long(table, job))
    write_table(run, "pairs", pairs)
    ranking = rank_pairs(pairs)
    write_table(run, "ranking", ranking)
    if "photographs" in summary:
        write_table(run, "methods", compare_methods(summary))
    groups = find_groups(arrays.solo_similarity, pairs, lambda done, total: watcher.stage("communities", done, total))
    write_table(run, "units", plain_columns(groups.units.reset_index()))
    _write_json(run, pairs_to_json(arrays, pairs, groups, power))
    run.write("interaction.graphml", lambda p: nx.write_graphml(build_graph(pairs, groups.units), p))
    _write_matrices(run, job, pairs, groups, watcher)
    _write_sheets(run, arrays, ranking)
    return groups


def _write_matrices(run: Run, job: JointJob, pairs: pd.DataFrame, groups: UnitGroups, watcher: Watcher) -> None:
    """Write the matrices of all statistics and of the kinds, in the order of the clusters of each layer's units."""
    names, layers = labelled_statistics(list(pairs.columns)), [u.layer for u in job.groups[0]]
    rows, columns = (groups.order(side) for side in "ab")
    shown = [kind for kind in KINDS if kind != UNDEFINED]
    numbered = pairs.assign(kind=pairs["kind"].map({kind: k for k, kind in enumerate(shown)}))
    for k, name in enumerate(["kind", *names]):
        watcher.stage("matrices", k, len(names) + 1)
        values = pair_matrix(numbered, name).reindex(index=rows, columns=columns)
        # the few pairs that a screening selects among many units would leave a matrix almost empty
        if values.size <= 4 * len(pairs) and values.notna().to_numpy().any():
            figure = heatmaps.cross_heatmap(
                values,
                rows=heatmaps.Axis(f"a: unit of {layers[0]}", groups.clusters("a"), groups.communities("a")),
                columns=heatmaps.Axis(f"b: unit of {layers[1]}", groups.clusters("b"), groups.communities("b")),
                title=f"{layers[0]} with {layers[1]}, {len(pairs)} pairs, mean of {seed_range(job)} seeds",
                cbar_label="kind of interaction" if name == "kind" else statistic_label(name),
                categories=shown if name == "kind" else None,
            )
            output.save_figure(run, figure, f"matrices/{name}", ("png", "svg"))
    watcher.stage("matrices", len(names) + 1, len(names) + 1)


def _write_sheets(run: Run, arrays: JointArrays, ranking: pd.DataFrame, limit: int = 12) -> None:
    """Write the sheets of images of the least and the most linear pairs."""
    job, seed = arrays.job, arrays.job.seeds[0]
    joint_rows = {(str(job.groups[g][0]), str(job.groups[g][1]), s): k for k, (g, s) in enumerate(job.joints)}
    count = min(limit, -(-len(ranking) // 2))
    for name, pairs in (("least-linear", ranking.head(count)), ("most-linear", ranking.iloc[::-1].head(count))):
        cards = []
        for row in pairs.to_dict("records"):
            k = joint_rows[row["a"], row["b"], seed]
            group = job.groups[job.joints[k][0]]
            images = [arrays.image("solo_images", arrays.solo_rows[u, seed, False]) for u in group]
            shown = interaction_panel.fit_range([*images, arrays.image("joint_images", k)])
            q = "" if not np.isfinite(row["q"]) else f", q {row['q']:.2g}"
            retention = " and ".join(format_number(row[f"retention_{c}"], 2) for c in MEMBERS[: job.members])
            text = f"{describe_nonlinearity(row)}{q}; keeps {retention}"
            cards.append(sheets.Card(tuple(shown), (row["a"], row["b"], "joint"), text))
        if cards:
            title = f"The {len(cards)} {name.replace('-', ' ')} of {len(ranking)} pairs"
            title += colour_note(job.network.channels)
            output.save_figure(run, sheets.card_sheet(cards, title), name, ("png",))
