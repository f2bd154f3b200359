"""Files of an interaction run: tables, JSON, graph, panel, sheets; and its sentences."""

from __future__ import annotations

import csv
import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pandas as pd
import pytest
from PIL import Image

import featmap
from featmap.errors import FeatmapError
from featmap.interaction import groups, report
from featmap.interaction import run as interaction_run
from featmap.interaction.conclusion import list_notes, state_conclusion
from featmap.interaction.job import JointJob
from featmap.interaction.kinds import summarise
from featmap.interaction.run import Interaction
from featmap.plotting import interaction_panel, labels, style
from featmap.report.interaction import build_reports
from tests.helpers import couples, networks, settings, tiny
from tests.helpers.settings import options
from tests.helpers.tables import check_plain_tables
from tests.interaction.test_job import carried_out, job_of
from tests.plotting.test_heatmaps import overlaps

pytestmark = pytest.mark.usefixtures("threads")

SETTINGS: dict[str, Any] = {"size": 12, "steps": 6, "rows": 4, "seeds": 3}
HEADLINE = "response_nonlinearity"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Interaction:
    folder = tmp_path_factory.mktemp("pair") / "run"
    return featmap.interact(["second:3", "first:5"], tiny.small(), **options("interact", out=folder, **SETTINGS))


@pytest.fixture(scope="module")
def layers(tmp_path_factory: pytest.TempPathFactory) -> Interaction:
    folder = tmp_path_factory.mktemp("layers") / "run"
    return featmap.interact(
        network=tiny.small(),
        layers=[("second", "0-3"), ("first", [0, 2, 5])],
        **options("interact", out=folder, **SETTINGS),
    )


@pytest.fixture(scope="module")
def undefined(tmp_path_factory: pytest.TempPathFactory) -> Interaction:
    folder = tmp_path_factory.mktemp("undefined") / "run"
    return featmap.interact(
        ["features:0", "features:3"], couples.twins(), **options("interact", out=folder, **SETTINGS)
    )


def strict(path: Path) -> Any:
    """JSON as the standard has it: NaN and Infinity are no numbers there."""

    def refuse(name: str) -> None:
        raise ValueError(name)

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


def cells(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def assert_no_nan(folder: Path) -> None:
    """No table says nan or inf: what is undefined is empty, also in parquet."""
    for path in folder.glob("*.csv"):
        words = {value.lower() for row in cells(path) for value in row.values()}
        assert not words & {"nan", "inf", "-inf", "<na>", "none", "null"}, path
    assert check_plain_tables(folder)
    for path in folder.glob("*.parquet"):
        for name, column in pd.read_parquet(path).items():
            assert str(column.dtype) != "Float64", (path, name)
            if pd.api.types.is_float_dtype(column):
                defined = column.dropna().to_numpy(dtype=float)
                assert np.isfinite(defined).all(), (path, name)


# ---------------------------------------------------------------- one group


def test_the_files_of_one_group(pair: Interaction) -> None:
    names = {p.name for p in pair.folder.iterdir() if p.name not in (".lock", ".copy")}
    tables = {f"{name}.{suffix}" for name in ("figures", "interaction") for suffix in ("csv", "parquet")}
    assert names == tables | {"manifest.json", "arrays.zarr", "units", "interaction.json", "panel.png", "panel.svg"}
    files = json.loads((pair.folder / "manifest.json").read_text())["files"]
    assert set(files) == names - {"manifest.json", "arrays.zarr", "units"}
    with Image.open(pair.folder / "panel.png") as image:
        assert min(image.size) > 500
    svg = (pair.folder / "panel.svg").read_text()
    for words in ("second:3", "first:5", "best linear blend", "territory", "cross-talk of a on the image of b"):
        assert words in svg.replace("&#x", "&"), words
    assert_no_nan(pair.folder)


def test_the_summary_has_one_row_and_the_statistics_one_a_seed(pair: Interaction) -> None:
    (row,) = cells(pair.folder / "interaction.csv")
    assert row["group"] == "second:3 + first:5" and row["status"] == "ok" and row["seeds"] == "3"
    seeds = cells(pair.folder / "figures.csv")
    assert [s["seed"] for s in seeds] == ["0", "1", "2"]
    for name in (HEADLINE, "retention_a", "crosstalk_b_on_a", "joint_gain", f"{HEADLINE}_ceiling"):
        values = [float(s[name]) for s in seeds]
        assert float(row[name]) == pytest.approx(np.mean(values), rel=1e-6)
    for letter in "ab":
        assert float(row[f"solo_{letter}"]) > 0 and row[f"joint_{letter}"], "both activations, whatever the balance"
    pd.testing.assert_frame_equal(pd.read_parquet(pair.folder / "figures.parquet"), pair.statistics)
    pd.testing.assert_frame_equal(pd.read_parquet(pair.folder / "interaction.parquet"), pair.summary)


def test_the_json_has_every_statistic_with_all_seeds_and_limits(pair: Interaction) -> None:
    content = strict(pair.folder / "interaction.json")
    assert content["units"] == ["second:3", "first:5"] and content["sentence"] == pair.sentences[0]
    assert content["seeds"] == [0, 1, 2] and content["linear_steps"] is True and content["balance"] == "solo"
    assert set(content["figures"]) == set(pair.statistics.columns) - {"group", "seed", "status", "second_difference_at"}
    for name, figure in content["figures"].items():
        values = [None if pd.isna(v) else float(v) for v in pair.statistics[name]]
        assert figure["seeds"] == values
        defined = [v for v in values if v is not None]
        assert figure["mean"] == (pytest.approx(np.mean(defined)) if defined else None)
        assert (figure["interval"] is None) == (len(defined) < 3)
    for kind in ("floor", "floor_perturbed_a", "floor_seed_b", "ceiling"):
        assert f"{HEADLINE}_{kind}" in content["figures"]
    assert content["power"] == pair.power.record() and content["power"]["pairs"] == 1
    assert content["power"]["seeds"] == 3 and content["power"]["deviations"]["network"] == "Sequential"


def test_the_page_says_what_a_run_could_find(pair: Interaction, layers: Interaction, tmp_path: Path) -> None:
    for name, run in (("pair", pair), ("layers", layers)):
        (line,) = [text for text in build_reports(run.folder)[0].lines if text.startswith("Power: ")]
        known = strict(run.folder / "interaction.json")["power"]
        assert known == run.power.record() and known["basis"] and line == f"P{known['sentence'][1:]}. {known['basis']}"
        earlier = tmp_path / name  # versions so far stored no power, and of pairs no JSON
        shutil.copytree(run.folder, earlier)
        if name == "pair":
            content = {k: v for k, v in strict(earlier / "interaction.json").items() if k != "power"}
            (earlier / "interaction.json").write_text(json.dumps(content))
        else:
            (earlier / "interaction.json").unlink()
        (report,) = build_reports(earlier)
        assert report.lines and not any("ower" in text for text in report.lines) and report.tables


def test_undefined_values_are_null_in_json_and_empty_in_csv(undefined: Interaction) -> None:
    assert_no_nan(undefined.folder)
    content = strict(undefined.folder / "interaction.json")
    assert content["figures"][HEADLINE] == {"mean": None, "interval": None, "seeds": [None] * 3}
    assert content["status"] == ["cancelled"] * 3
    (row,) = cells(undefined.folder / "interaction.csv")
    assert row[HEADLINE] == row["image_nonlinearity"] == row["p"] == row["low"] == "" and row["status"] == "cancelled"
    assert float(row["gradient_agreement"]) == pytest.approx(-1)
    assert "undefined" in (undefined.folder / "panel.svg").read_text()


def test_the_arrays_are_labelled(pair: Interaction) -> None:
    data = pair.dataset
    assert list(data["member"].values) == ["a", "b"]
    assert data["joint_images"].sizes["joint"] == 3
    assert list(data["response"].values[[0, -1]]) == ["second:0", "first:5"]
    assert str(data["joint"].values[1]) == "second:3 + first:5 seed=1"
    assert "second:3" in pair._repr_html_()


@pytest.mark.parametrize("units", [2, 3, 5])
def test_panels_of_several_units_have_no_overlapping_texts(units: int, tmp_path: Path) -> None:
    job = job_of([f"second:{k}" for k in range(units)], tiny.small(), seeds=2)
    result = carried_out(job, tmp_path / "run")
    table = result.table()
    row = summarise(table).iloc[0]
    for at in (0, 1):
        shown = report.make_panel(result, table, row, at)
        assert len(shown.images) == units + 2 and len(shown.maps) == units and shown.curves.shape[1] == units
        figure = interaction_panel.panel(shown)
        assert overlaps(figure) == []
        style.save(figure, tmp_path / f"panel{at}", ("png",))


LONG = "features.denseblock4.denselayer16.conv2.some.more.names"


def example_panel(units: int, name: str, value: float = 0.4, owner: int = 0) -> interaction_panel.Panel:
    rng = np.random.Generator(np.random.PCG64(units))
    names = tuple(f"{name}:{k}" for k in range(units))
    figures = list(labels.STATISTIC_LABELS.values())[:6]
    images = [
        (rng.normal(size=(3, 9, 9)), n, "b gets 0.12; a: 3.21e+03") for n in (*names, "joint", "best linear blend")
    ]
    return interaction_panel.Panel(
        title=" + ".join(names),
        units=names,
        images=tuple(images),
        maps=tuple(np.full((4, 5), value) for _ in names),
        owner=np.full((4, 5), owner),
        curves=np.full((7, units), value) + np.arange(units) / 300,
        levels=tuple(1.0 for _ in names),
        strips=tuple(
            interaction_panel.Strip(n.format("a", "b"), (value, 0.3, value), 0.1, value, (0.2, 0.4)) for n in figures
        ),
        sentence="12 % of the joint image's response is not explained by a mixture of the solo images' responses; "
        "floor 3.0 %, ceiling 94 %.",
        notes=("a = x, b = y; pictures of seed 0",),
    )


@pytest.mark.parametrize("units", [2, 3, 5, 8])
@pytest.mark.parametrize("name", ["c", "inception4a", LONG])
def test_texts_of_a_panel_do_not_overlap(units: int, name: str) -> None:
    assert overlaps(interaction_panel.panel(example_panel(units, name))) == []


@pytest.mark.parametrize("value", [math.nan, math.inf, 0.0, -3.0, 1e30])
@pytest.mark.parametrize("owner", [-2, -1, 1])
def test_extreme_values_can_be_drawn(value: float, owner: int, tmp_path: Path) -> None:
    style.save(interaction_panel.panel(example_panel(2, "$a_1$ <b>", value, owner)), tmp_path / "panel", ("png", "svg"))


def test_an_empty_panel_is_refused() -> None:
    with pytest.raises(FeatmapError, match="needs units and images"):
        interaction_panel.panel(example_panel(0, "c"))


def test_names_at_the_ends_of_curves_are_moved_apart() -> None:
    assert interaction_panel.spread_labels([0.1, 0.5], 0.1, 1) == [0.1, 0.5]
    assert interaction_panel.spread_labels([0.5, 0.5, 0.52], 0.1, 1) == pytest.approx([0.5, 0.6, 0.7])
    assert interaction_panel.spread_labels([0.2, 0.95, 1.0, 1.0], 0.1, 1) == pytest.approx([0.2, 0.8, 0.9, 1.0])
    assert interaction_panel.spread_labels([], 0.1, 1) == []


def test_pictures_share_one_contrast() -> None:
    flat = [np.full((3, 2, 2), 0.5), np.full((3, 2, 2), 0.5)]
    flat[1][0, 0, 0] = 0.9
    for one, two in zip(interaction_panel.fit_range(flat), flat, strict=True):
        np.testing.assert_array_equal(one, two)
    far = [0.5 + 4 * np.linspace(-1, 1, 12).reshape(3, 2, 2), np.full((3, 2, 2), 1.5)]
    shown = interaction_panel.fit_range(far)
    slope = (shown[0].ravel()[1] - shown[0].ravel()[0]) / (far[0].ravel()[1] - far[0].ravel()[0])
    assert (shown[1] - 0.5) / (far[1] - 0.5) == pytest.approx(np.full((3, 2, 2), slope))
    assert slope < 0.2


# ---------------------------------------------------------------- the sentence


def row_of(**changes: Any) -> pd.Series:
    row = {"status": "ok", "seeds": 5, HEADLINE: 0.123, f"{HEADLINE}_floor": 0.031, f"{HEADLINE}_ceiling": 0.94}
    return pd.Series({**row, "low": 0.08, "high": 0.17, "p": 0.003} | changes)


@pytest.fixture(scope="module")
def job() -> JointJob:
    return job_of(["second:3", "first:5"], tiny.small(), seeds=5)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "12 % of the joint image's response is not explained by a mixture of the solo images' responses; "
             "floor 3.1 %, ceiling 94 %, interval 8.0 to 17 % (5 seeds); above its floor (p = 0.003)."),
        ({"p": 0.2}, "not above its floor (p = 0.2)."),
        ({"p": math.nan, "low": math.nan, "high": math.nan, "seeds": 1}, "ceiling 94 %, 1 seed: no interval."),
        ({f"{HEADLINE}_ceiling": math.nan}, "floor 3.1 %, interval"),
        ({"low": -0.2, "high": 1.3}, "interval 0.0 to 100 %"),
        ({HEADLINE: math.nan, "status": "dead partner", "seeds": 0}, "is undefined: dead partner (5 seeds)."),
        ({HEADLINE: math.nan}, "is undefined: no probed feature responds (5 seeds)."),
        ({HEADLINE: 0.0995}, "10 % of the joint"),
        ({HEADLINE: 0.0994}, "9.9 % of the joint"),
    ],
)  # fmt: skip
def test_the_conclusion_is_one_sentence_that_fits_its_case(changes: dict[str, Any], words: str, job: JointJob) -> None:
    sentence = state_conclusion(row_of(**changes), len(job.seeds))
    assert words in sentence and sentence.endswith(".") and "nan" not in sentence and "\n" not in sentence


def test_notes_state_the_limits_of_a_conclusion(job: JointJob) -> None:
    assert list_notes(row_of(), len(job.seeds), job.recipe) == []
    assert list_notes(row_of(seeds=3), len(job.seeds), job.recipe) == [
        "a claim needs 5 seeds or more",
        "2 of 5 seeds have no statistics (see the column status)",
    ]
    nonlinear = job_of(["second:3", "first:5"], tiny.small(), recipe="pixels")
    assert list_notes(row_of(), len(nonlinear.seeds), nonlinear.recipe) == [
        "recipe pixels has steps that are not linear: under them even a linear network shows interaction"
    ]


def test_every_statistic_has_a_label_of_its_own(pair: Interaction) -> None:
    shown = labels.labelled_statistics(list(pair.statistics.columns))
    assert len(shown) == len(set(shown)) == 13
    texts = [labels.statistic_label(name, ["second:3", "first:5"]) for name in shown]
    assert len(set(texts)) == len(texts) and not any("{" in s or "_" in s for s in texts if "r_ab" not in s)
    assert labels.statistic_label("crosstalk_b_on_a", ["x:1", "y:2"]) == LABEL
    assert labels.statistic_label("joint_a") == "joint a"


LABEL = "cross-talk: share of its solo response that y:2 gives to the image of x:1"

# ---------------------------------------------------------------- a pair of layers


def test_the_files_of_two_layers(layers: Interaction) -> None:
    names = {p.relative_to(layers.folder).as_posix() for p in layers.folder.rglob("*") if p.is_file()}
    names = {n for n in names if not n.startswith(("arrays.zarr", "units/", ".lock", ".copy"))}
    tables = {f"{name}.{suffix}" for name in ("figures", "pairs", "ranking", "units") for suffix in ("csv", "parquet")}
    shown = labels.labelled_statistics([c for c in layers.summary.columns if layers.summary[c].notna().any()])
    heat = {f"matrices/{figure}.{suffix}" for figure in [*shown, "kind"] for suffix in ("png", "svg")}
    assert f"matrices/{HEADLINE}.png" in heat and "matrices/retention_b.svg" in heat
    others = {"manifest.json", "interaction.json", "interaction.graphml", "least-linear.png", "most-linear.png"}
    assert names == tables | heat | others
    assert_no_nan(layers.folder)


def test_the_json_of_two_layers_counts_statuses_kinds_and_communities(layers: Interaction) -> None:
    content = strict(layers.folder / "interaction.json")
    assert content["layers"] == ["second", "first"] and content["pairs"] == 12 and content["seeds"] == [0, 1, 2]
    assert content["statuses"] == {"ok": 12} == layers.summary["status"].value_counts().to_dict()
    assert content["kinds"] == layers.summary["kind"].value_counts().to_dict()
    found = content["communities"]
    assert found["sentence"] in layers.notes and found["pairs"] == (layers.summary["q"] < 0.05).sum()
    assert (found["p"] is None) == (found["pairs"] == 0) and len(found["sizes"]) <= found["pairs"]
    assert content["power"]["pairs"] == 12 and content["power"]["deviations"]["groups"] == 12


def test_the_tidy_table_and_the_pairs_agree(layers: Interaction) -> None:
    tidy = pd.read_parquet(layers.folder / "figures.parquet")
    assert list(tidy.columns) == ["a", "b", "seed", "status", "figure", "value"]
    assert len(tidy[["a", "b"]].drop_duplicates()) == 4 * 3
    assert not tidy.duplicated(["a", "b", "seed", "figure"]).any()
    pairs = pd.read_parquet(layers.folder / "pairs.parquet")
    assert len(pairs) == 12
    for figure in (HEADLINE, "retention_a", "joint_gain"):
        means = tidy[tidy["figure"] == figure].groupby(["a", "b"])["value"].mean()
        for row in pairs.to_dict("records"):
            assert row[figure] == pytest.approx(float(means[row["a"], row["b"]]))
    assert "second_difference_at" in pairs and (pairs["second_difference_at"] != "").any()


def test_the_ranking_is_sorted_by_excess_and_controls_false_discoveries(layers: Interaction) -> None:
    ranking = pd.read_parquet(layers.folder / "ranking.parquet")
    excess = ranking["excess"].to_numpy(dtype=float)
    assert len(ranking) == 12 and (np.diff(excess) <= 0).all()
    defined = ranking.dropna(subset=["p"])
    assert (defined["q"] >= defined["p"]).all() and (defined["q"] <= 1).all()
    lines = interaction_run.describe(job_for(layers), layers)
    assert lines[0] == "12 pairs: 12 ok"
    assert lines[1].startswith("kinds, each pair judged by itself: ")
    assert "of 12 are above their floor at a false discovery rate of 5 %" in lines[2]
    first = f"{ranking.loc[0, 'a']} + {ranking.loc[0, 'b']}: {ranking.loc[0, 'kind']}; response nonlinearity 0."
    assert lines[3].startswith("power: with 3 seeds ") and lines[4].startswith(first)


def job_for(result: Interaction) -> JointJob:
    network = featmap.load(tiny.small())
    recipe = settings.resolve_linear(network, size=12, steps=6, rows=4)
    pairs = groups.pairs_of([("second", "0-3"), ("first", "0,2,5")], network, 12)
    assert len(pairs) == len(result.summary)
    return groups.pairs_job(pairs, network, recipe)


def test_the_graph_is_bipartite_and_holds_every_statistic(layers: Interaction) -> None:
    graph = nx.read_graphml(layers.folder / "interaction.graphml")
    assert nx.is_bipartite(graph)
    assert {n for n, side in graph.nodes(data="bipartite") if side == 0} == {f"second:{k}" for k in range(4)}
    assert {data["layer"] for _, data in graph.nodes(data=True)} == {"second", "first"}
    assert graph.number_of_edges() == 12
    pairs = pd.read_parquet(layers.folder / "pairs.parquet").set_index(["a", "b"])
    for a, b, data in graph.edges(data=True):
        row = pairs.loc[(a, b) if (a, b) in pairs.index else (b, a)]
        assert data["weight"] == pytest.approx(row["excess"]) and data[HEADLINE] == pytest.approx(row[HEADLINE])
        assert not any(isinstance(v, float) and math.isnan(v) for v in data.values())


def test_a_matrix_has_a_cell_for_each_pair(layers: Interaction) -> None:
    pairs = pd.read_parquet(layers.folder / "pairs.parquet")
    table = report.pair_matrix(pairs, "retention_b")
    assert list(table.index) == [f"second:{k}" for k in range(4)] and list(table.columns) == [
        "first:0",
        "first:2",
        "first:5",
    ]
    for row in pairs.to_dict("records"):
        assert table.loc[row["a"], row["b"]] == row["retention_b"]


def test_a_layer_with_itself_gives_each_pair_once(tmp_path: Path) -> None:
    result = featmap.interact(
        network=tiny.small(), layers=[("second", "0-2")] * 2, **options("interact", out=tmp_path / "run", **SETTINGS)
    )
    assert list(result.summary["group"]) == [f"second:{a} + second:{b}" for a, b in ((0, 1), (0, 2), (1, 2))]
    graph = nx.read_graphml(result.folder / "interaction.graphml")
    assert graph.number_of_edges() == 3 and not nx.is_bipartite(graph)
    assert not any("bipartite" in data for _, data in graph.nodes(data=True))
    assert_no_nan(result.folder)


@pytest.mark.parametrize("module", [tiny.asleep, tiny.sick, networks.dead_network])
def test_pairs_without_statistics_are_listed_but_not_ranked(module: Any, tmp_path: Path) -> None:
    result = featmap.interact(
        network=module(),
        layers=["relu", ("relu", "all")],
        **options("interact-unrescued", out=tmp_path / "run", **SETTINGS),
    )
    assert not (result.summary["status"] == "ok").any()
    assert cells(result.folder / "ranking.csv") == []
    assert len(cells(result.folder / "pairs.csv")) == len(result.summary)
    assert not (result.folder / "least-linear.png").exists()
    assert nx.read_graphml(result.folder / "interaction.graphml").number_of_edges() == len(result.summary)
    assert_no_nan(result.folder)


def test_one_pair_of_a_layer_too_small_for_a_ceiling(tmp_path: Path) -> None:
    """One pair is reported as pairs are where layers were asked for."""
    result = featmap.interact(
        network=tiny.two(), layers=["features"] * 2, **options("interact", out=tmp_path / "run", **SETTINGS)
    )
    network = featmap.load(tiny.two())
    recipe = settings.resolve_linear(network, size=12, steps=6, rows=4)
    job = groups.pairs_job(groups.pairs_of(["features"] * 2, network, 12), network, recipe)
    assert re.search(r"floor 0\.\d+, ceiling undefined$", interaction_run.describe(job, result)[-1])
    assert cells(result.folder / "pairs.csv")[0][f"{HEADLINE}_ceiling"] == ""
    assert_no_nan(result.folder)


def test_the_page_gives_the_command_of_its_own_run(tmp_path: Path) -> None:
    units, changed = ["second:3", "first:5"], groups.JointSettings("none", ["first"])

    def command(name: str, **changes: Any) -> str:
        chosen = options("interact", out=tmp_path / name, **(SETTINGS | {"seeds": 2} | changes))
        featmap.interact(units, tiny.small(), **chosen)
        return build_reports(tmp_path / name)[0].command

    assert "--balance" not in command("plain") and "--probe-layers" not in command("plain")
    assert " --balance none --probe-layers first " in command("changed", settings=changed)
    assert " --seed 4 " in (later := command("later", seeds=[4, 5])) and later.endswith("--seeds 2")
    assert command("scattered", seeds=[3, 7]) == ""
