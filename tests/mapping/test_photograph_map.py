"""The map of photographs: planted networks whose two maps are known, and runs of photographs alone."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pandas as pd
import pytest

import featmap
from featmap.cli import app
from featmap.errors import FeatmapError
from featmap.mapping import photograph_map
from featmap.mapping.layer_arrays import select_compared
from featmap.mapping.neighbours import neighbour_frame
from featmap.mapping.result import LayerMaps, SimilarityMap, read_maps
from featmap.mapping.run import similarity
from featmap.mapping.tables import photograph_lines
from featmap.mapping.view import View
from featmap.network.loading import load
from featmap.report.atlas import atlas
from featmap.runs import integrity
from featmap.runs.store import Run
from featmap.stats.clustering import communities, find_clusters, neighbour_graph
from featmap.stats.measures import FORMULA, select_stimuli
from featmap.stats.reliability import adjusted_rand
from featmap.stats.top_responses import photograph_halves
from tests.helpers import pictures, tiny
from tests.helpers.pictures import BLUE, BRIGHT_GREEN, GREEN, RED
from tests.helpers.settings import options
from tests.helpers.tables import check_plain_tables

pytestmark = [
    pytest.mark.filterwarnings("ignore::featmap.stats.measures.FewStimuliWarning"),
    pytest.mark.usefixtures("cheap_runs"),
]
FAST: dict[str, Any] = {"size": 16, "steps": 20, "rows": 4, "device": "cpu"}
ALONE = View(stimuli="photographs")
COLOURS = pictures.purple_and_green(60)


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures.save_colours(tmp_path_factory.mktemp("pictures") / "colours", COLOURS)


@pytest.fixture(scope="module")
def both(colours: Path, tmp_path_factory: pytest.TempPathFactory) -> SimilarityMap:
    out = tmp_path_factory.mktemp("maps") / "both"
    return similarity("features", pictures.parting(), photographs=colours, **options(out=out, **FAST))


@pytest.fixture(scope="module")
def alone(colours: Path, tmp_path_factory: pytest.TempPathFactory) -> SimilarityMap:
    out = tmp_path_factory.mktemp("maps") / "alone"
    return similarity("features", pictures.parting(), photographs=colours, view=ALONE, **options(out=out, **FAST))


def by_hand(responses: np.ndarray) -> np.ndarray:
    roots = np.sign(responses) * np.sqrt(np.abs(responses))
    Z = (roots - roots.mean(0)) / roots.std(0)
    return np.corrcoef(Z - Z.mean(1, keepdims=True), rowvar=False)


def test_similarity_over_photographs_follows_its_formula(both: SimilarityMap) -> None:
    """Responses to photographs of one colour are known without the network."""
    assert both.photographs is not None
    responses = pictures.responses_to_colours(COLOURS)
    np.testing.assert_allclose(both.photographs.responses.values, responses, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(both.photographs.similarity.to_numpy(), by_hand(responses), atol=1e-5)
    np.testing.assert_allclose(both.photographs.features["mean"], responses.mean(0), rtol=1e-5)
    np.testing.assert_allclose(both.photographs.features["deviation"], responses.std(0), rtol=1e-5)


def test_features_that_photographs_drive_alike_differ_at_the_optimum(both: SimilarityMap) -> None:
    """Red equals blue in all photographs; the images of RED and BLUE have one of the two colours each."""
    assert both.photographs is not None
    assert both.photographs.similarity.iloc[RED, BLUE] == pytest.approx(1, abs=1e-6)
    assert abs(both.measures["profile"].iloc[RED, BLUE]) < 0.2
    assert both.photographs.features["nearest_1"].iloc[RED] in ("features:1", "features:3")


def test_features_alike_at_the_optimum_differ_on_photographs(both: SimilarityMap) -> None:
    """The images of GREEN and BRIGHT_GREEN are bright green, which no photograph is."""
    assert both.photographs is not None
    assert both.measures["profile"].iloc[GREEN, BRIGHT_GREEN] > 0.8
    assert abs(both.photographs.similarity.iloc[GREEN, BRIGHT_GREEN]) < 0.25


def test_shown_stimuli_are_compared_over_the_same_features(colours: Path, tmp_path: Path) -> None:
    """S over the images of four features is centred over these, and so is S over photographs that it is compared to."""
    view = View("0-3", stimuli="shown", measure="linear_profile")
    found = similarity(
        "features", pictures.parting(), photographs=colours, view=view, **options(out=tmp_path / "run", **FAST)
    )
    responses = pictures.responses_to_colours(COLOURS)
    assert found.agreement is not None and found.photographs is not None
    assert found.photographs.similarity.shape == (7, 7)
    own, upper = by_hand(responses[:, :4]), np.triu_indices(4, 1)
    np.testing.assert_allclose(found.agreement.second, own, atol=1e-5)
    expected = np.corrcoef(found.measures["profile"].to_numpy()[upper], own[upper])[0, 1]
    assert found.summary["photographs"]["agreement"]["correlation"] == pytest.approx(expected, abs=1e-5)
    table = pd.read_parquet(found.folder / "photographs_compared_profile.parquet")
    np.testing.assert_allclose(table.to_numpy(), own, atol=1e-5)
    assert list(table.columns) == [f"features:{k}" for k in range(4)]
    (stored,) = read_maps(found.folder).values()
    assert stored.agreement is not None
    np.testing.assert_array_equal(stored.agreement.second, found.agreement.second)
    # the earlier measure has a table over photographs too, of all features' responses, without roots
    Z = (responses - responses.mean(0)) / responses.std(0)
    linear = np.corrcoef(Z - Z.mean(1, keepdims=True), rowvar=False)[:4, :4]
    written = pd.read_parquet(found.folder / "photographs_linear_profile.parquet")
    np.testing.assert_allclose(written.to_numpy(dtype=float), linear, atol=1e-5)


def test_a_feature_that_one_map_lacks_does_not_enter_the_other(both: SimilarityMap) -> None:
    """Each map is centred over its own features, so both are compared when centred over those that both have."""
    assert both.photographs is not None
    found, own, live = both.photographs, both.measures["profile"], both.clusters.labels.index
    stimuli = select_stimuli(both.activations, both.null, list(live))
    same = select_compared(own, stimuli, found.responses, found.similarity, FORMULA)
    assert same[0] is own and same[2] is found.similarity
    fewer = live.delete(2)
    # without an image
    kept, responses, S = select_compared(
        own.loc[fewer, fewer], stimuli[fewer], found.responses, found.similarity, FORMULA
    )
    assert list(S.columns) == list(fewer) == [str(name) for name in responses["response"].values]
    np.testing.assert_allclose(S, by_hand(np.delete(pictures.responses_to_colours(COLOURS), 2, axis=1)), atol=1e-5)
    assert list(kept.columns) == list(fewer)
    # without a response to photographs
    again, _, S = select_compared(own, stimuli, found.responses, found.similarity.loc[fewer, fewer], FORMULA)
    assert list(again.columns) == list(S.columns) == list(fewer)
    np.testing.assert_allclose(again, by_hand(np.delete(stimuli.to_numpy(), 2, axis=1)), atol=1e-5)
    assert abs(again - own.loc[fewer, fewer]).max().max() > 1e-3


def test_a_feature_that_no_photograph_excites_is_left_out_of_both(tmp_path: Path) -> None:
    """All photographs have the same red: RED has an image and no S over photographs."""
    seen = np.array(COLOURS)
    seen[:, 0] = 0.5
    folder = pictures.save_colours(tmp_path / "colours", seen)
    found = similarity("features", pictures.parting(), photographs=folder, **options(out=tmp_path / "run", **FAST))
    assert found.photographs is not None and found.agreement is not None
    kept = list(found.photographs.similarity.columns)
    assert f"features:{RED}" not in kept and f"features:{RED}" in found.measures["profile"].columns
    table = pd.read_parquet(found.folder / "photographs_compared_profile_of_images.parquet")
    assert list(table.columns) == kept and not (found.folder / "photographs_compared_profile.parquet").exists()
    at = [int(name.rpartition(":")[2]) for name in kept]
    own = by_hand(found.activations.to_numpy()[:, at])
    np.testing.assert_allclose(table.to_numpy(), own, atol=1e-5)
    upper = np.triu_indices(len(kept), 1)
    expected = np.corrcoef(own[upper], found.photographs.similarity.to_numpy()[upper])[0, 1]
    assert found.summary["photographs"]["agreement"]["correlation"] == pytest.approx(expected, abs=1e-5)
    atlas(found.folder)
    page = (found.folder / "atlas.html").read_text(encoding="utf-8")
    assert 'id="blob-compared_images_S"' in page and 'id="blob-compared_S"' not in page


def test_two_partitions_that_say_nothing_have_no_index() -> None:
    names = list("abcd")
    one, each, halves = (pd.Series(labels, index=names) for labels in ([0] * 4, range(4), [0, 0, 1, 1]))
    for pair in ([one, one], [each, each], [one, each]):
        assert math.isnan(photograph_map._adjusted_rand(pair))
    assert photograph_map._adjusted_rand([halves, halves]) == 1.0
    assert photograph_map._adjusted_rand([halves, one]) == pytest.approx(0.0)


def test_photographs_alone_have_profile_similarity_only() -> None:
    with pytest.raises(FeatmapError, match="measure 'selective': over photographs alone"):
        View(stimuli="photographs", measure="selective")
    assert View(stimuli="photographs", measure="linear_profile").measure == "linear_profile"


@pytest.mark.parametrize(("layer", "factory"), [("relu", tiny.asleep), ("level", tiny.level)])
def test_maps_with_few_live_features_or_none_have_photographs(
    layer: str, factory: Any, colours: Path, tmp_path: Path
) -> None:
    found = similarity(layer, factory(), photographs=colours, **options(out=tmp_path / "run", **FAST))
    assert found.photographs is not None and found.agreement is not None
    live = list(found.clusters.labels.index)
    assert len(live) < len(found.features)
    # one feature alone has no similarity to centre
    assert live in ([], ["level:2"]) and found.agreement.features.empty
    assert (found.folder / "photographs_compared_profile.parquet").is_file() == bool(len(found.agreement.features))
    (stored,) = read_maps(found.folder).values()
    assert stored.lines() == found.lines()


def test_both_maps_are_read_from_their_files(both: SimilarityMap) -> None:
    (stored,) = read_maps(both.folder).values()
    assert stored.photographs is not None and both.photographs is not None
    pd.testing.assert_frame_equal(stored.photographs.similarity, both.photographs.similarity, check_names=False)
    pd.testing.assert_series_equal(stored.photographs.clusters.labels, both.photographs.clusters.labels)
    assert stored.photographs.lines() == both.photographs.lines() and stored.lines() == both.lines()
    written = pd.read_parquet(both.folder / "photographs_profile.parquet")
    np.testing.assert_array_equal(written.to_numpy(), both.photographs.similarity.to_numpy())
    names = [name for name in Run.read(both.folder).manifest.files if name.startswith("photographs_")]
    kinds = ("profile", "features", "agreement", "disagreements")
    tables = [f"photographs_{name}.{ending}" for name in kinds for ending in ("csv", "parquet")]
    drawn = [f"photographs_{name}.{ending}" for name in ("heatmap", "agreement") for ending in ("png", "svg")]
    assert sorted(names) == sorted([*tables, *drawn, "photographs_clusters.json", "photographs_graph.graphml"])
    graph = nx.read_graphml(both.folder / "photographs_graph.graphml")
    assert set(graph) == set(both.photographs.similarity.columns) and graph.nodes["features:0"]["status"] == "live"
    check_plain_tables(both.folder)
    assert integrity.inspect(both.folder).faults == []


def test_a_map_of_photographs_alone_is_that_of_a_run_with_both(alone: SimilarityMap, both: SimilarityMap) -> None:
    assert both.photographs is not None and alone.photographs is not None
    pd.testing.assert_frame_equal(alone.measures["profile"], both.photographs.similarity)
    for name in ("profile.csv", "features.csv", "graph.graphml", "clusters.json"):
        assert (alone.folder / name).read_bytes() == (both.folder / f"photographs_{name}").read_bytes()
    assert list(alone.measures) == ["profile"] and alone.activations.shape == (0, 7) and alone.null.isna().all()
    assert sorted(alone.dataset.data_vars) == ["photograph_A"]
    assert not (alone.folder / "features.png").exists() and (alone.folder / "heatmap.png").is_file()
    assert "no maximising images" in alone.lines()[-1]
    assert integrity.inspect(alone.folder).faults == []
    identity = Run.read(alone.folder).identity
    assert not {"recipe", "seeds", "images", "start"} & set(identity) and identity["stimuli"] == "photographs"


def test_the_same_call_reads_a_finished_map_and_writes_nothing(alone: SimilarityMap, colours: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in alone.folder.rglob("*") if path.is_file()}
    settings = options(out=alone.folder, **FAST)
    again = similarity("features", pictures.parting(), photographs=colours, view=ALONE, **settings)
    pd.testing.assert_frame_equal(again.measures["profile"], alone.measures["profile"])
    now = {path: path.stat().st_mtime_ns for path in alone.folder.rglob("*") if path.is_file()}
    assert {p: t for p, t in now.items() if p.name != ".lock"} == {p: t for p, t in before.items() if p.name != ".lock"}


def test_several_layers_have_a_map_of_photographs_each(tmp_path: Path) -> None:
    folder = pictures.save_noise(tmp_path / "noise", 40)
    settings = options(out=tmp_path / "run", size=16, steps=2, device="cpu")
    maps = similarity(["second", "first"], tiny.small(), photographs=folder, view=ALONE, **settings)
    assert isinstance(maps, LayerMaps) and list(maps.maps) == ["second", "first"] and not maps.crossings
    probed = featmap.probe(folder, ["second", "first"], tiny.small(), size=16).to_pandas().astype(float)
    for layer, one in maps.maps.items():
        own = probed[[name for name in probed if name.startswith(layer)]]
        np.testing.assert_allclose(one.measures["profile"].to_numpy(), by_hand(own.to_numpy()), atol=1e-9)
        assert (maps.folder / layer / "profile.csv").is_file()
    assert set(read_maps(maps.folder)["first"].measures["profile"]) == {f"first:{c}" for c in range(6)}


def test_the_pairs_that_part_are_the_planted_ones(both: SimilarityMap) -> None:
    """BRIGHT_GREEN sees nothing but blue in photographs, so it goes with RED and BLUE there, and with GREEN here."""
    table = pd.read_parquet(both.folder / "photographs_disagreements.parquet").reset_index()
    difference = {(a, b): d for a, b, d in table[["feature", "other", "difference"]].itertuples(index=False)}
    assert difference["features:0", "features:1"] > 0.8 and difference["features:0", "features:3"] > 0.8
    assert difference["features:2", "features:3"] < -0.8
    agreement = pd.read_parquet(both.folder / "photographs_agreement.parquet")
    assert both.agreement is not None and both.photographs is not None
    S, P = both.measures["profile"].to_numpy(), both.photographs.similarity.to_numpy()
    others = [k for k in range(7) if k != BRIGHT_GREEN]
    expected = np.corrcoef(S[BRIGHT_GREEN, others], P[BRIGHT_GREEN, others])[0, 1]
    assert agreement["agreement"].iloc[BRIGHT_GREEN] == pytest.approx(expected)
    upper = np.triu_indices(7, 1)
    summary = both.summary["photographs"]["agreement"]
    assert summary["correlation"] == pytest.approx(np.corrcoef(S[upper], P[upper])[0, 1])
    labels = both.clusters.communities.labels, both.photographs.clusters.communities.labels
    assert summary["ari"] == pytest.approx(adjusted_rand(*labels))
    halves = [by_hand(both.photographs.responses.values[at]) for at in photograph_halves(60)]
    names = list(both.measures["profile"])
    frames = [pd.DataFrame(half, names, names) for half in halves]
    partitions = [communities(neighbour_graph(frame, 10)).labels.to_numpy() for frame in frames]
    assert summary["ari_of_halves"] == pytest.approx(adjusted_rand(*partitions))
    between = np.corrcoef(halves[0][upper], halves[1][upper])[0, 1]
    assert summary["correlation_of_halves"] == pytest.approx(between, abs=1e-6) and between > 0.8
    check_ceiling(both, agreement)
    assert any("correlate by" in line and "ARI of the communities" in line for line in both.lines())


def check_ceiling(both: SimilarityMap, table: pd.DataFrame) -> None:
    """Ceiling and share follow from the stored responses."""
    assert both.photographs is not None and both.agreement is not None
    X, S = both.photographs.responses.values.astype(float), both.measures["profile"].to_numpy()
    upper, summary = np.triu_indices(7, 1), both.summary["photographs"]["agreement"]
    found = {"half_correlation": 0.0, "ceiling": 0.0}
    one, two = photograph_halves(len(X))
    for half, other in ((one, two), (two, one)):
        yardstick = by_hand(X[half])
        found["half_correlation"] += np.corrcoef(S[upper], yardstick[upper])[0, 1] / 2
        found["ceiling"] += np.corrcoef(by_hand(X[other][X[other].argmax(0)])[upper], yardstick[upper])[0, 1] / 2
    assert {name: summary[name] for name in found} == pytest.approx(found, abs=1e-6)
    line = next(line for line in both.lines() if "the ceiling" in line)
    if summary["share"] is None:
        assert summary["reason"] in line
    else:
        assert summary["share"] == pytest.approx(found["half_correlation"] / found["ceiling"], abs=1e-6)
        assert f"by {found['ceiling']:.2f}" in line
    assert {"ceiling", "share", "overlap", "overlap_ceiling"} < set(table)
    assert both.agreement.attained is not None and both.agreement.attained.ceiling.value == summary["ceiling"]
    older = {k: v for k, v in summary.items() if k in ("correlation", "low", "high", "median", "ari", "parted")}
    older |= {"correlation_of_halves": 0.9, "ari_of_halves": None}
    lines = photograph_lines(both.summary["photographs"] | {"agreement": older})
    assert not any("ceiling" in text for text in lines) and any("correlate by" in text for text in lines)


def test_the_agreement_is_that_of_the_present_graphs(both: SimilarityMap, colours: Path, tmp_path: Path) -> None:
    """Neighbours are part of the view: a finished run with others is mapped again."""
    shutil.copytree(both.folder, tmp_path / "run")
    run = Run.read(tmp_path / "run")
    run.manifest.summary["photographs"]["agreement"]["ari"] = -7.0
    run.save()
    settings = options(out=run.folder, **FAST)
    same = similarity("features", pictures.parting(), photographs=colours, **settings)
    assert same.summary["photographs"]["agreement"]["ari"] == -7
    again = similarity("features", pictures.parting(), photographs=colours, view=View(neighbours=2), **settings)
    assert again.photographs is not None
    labels = again.clusters.communities.labels, again.photographs.clusters.communities.labels
    assert again.summary["photographs"]["agreement"]["ari"] == pytest.approx(adjusted_rand(*labels))
    assert Run.read(run.folder).manifest.summary == again.summary


def test_clusters_are_those_of_all_responses_at_once(both: SimilarityMap) -> None:
    assert both.photographs is not None
    A = both.photographs.responses.to_pandas().astype(float)
    found = find_clusters(A, pd.Series(0.0, index=A.columns))
    pd.testing.assert_series_equal(found.labels, both.photographs.clusters.labels, check_names=False)
    np.testing.assert_allclose(found.permuted, both.photographs.clusters.permuted, atol=1e-9)
    np.testing.assert_allclose(found.factor, both.photographs.clusters.factor, atol=1e-9)


def test_nulls_of_many_photographs_are_drawn_from_evenly_spaced_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    assert photograph_map.null_photographs(1000, 512).tolist() == list(range(1000))
    monkeypatch.setattr(photograph_map, "NULL_CELLS", 400)
    assert photograph_map.null_photographs(100, 10).tolist() == [k * 100 // 40 for k in range(40)]
    assert len(photograph_map.null_photographs(100, 1000)) == 32


def test_dead_and_broken_features_have_no_similarity(colours: Path, tmp_path: Path) -> None:
    settings = options(out=tmp_path / "run", size=8, steps=2, device="cpu")
    found = similarity("relu", tiny.sick(), photographs=colours, view=ALONE, **settings)
    assert found.features["status"].tolist() == ["live", "constant", "constant", "not-finite"]
    assert found.measures["profile"].empty or found.measures["profile"].shape == (0, 0)
    assert found.features["mean"].iloc[2] == 0.25 and pd.isna(found.features["mean"].iloc[3])


def test_neighbours_of_either_map_are_listed(
    both: SimilarityMap, alone: SimilarityMap, capsys: pytest.CaptureFixture[str]
) -> None:
    of_images = neighbour_frame("features:2", both.folder)
    pd.testing.assert_frame_equal(of_images, neighbour_frame("features:2", both.folder, "images"))
    assert of_images["other"][0] == "features:3" and "coactivation" in of_images
    of_photographs = neighbour_frame("features:0", both.folder, "photographs")
    assert set(of_photographs["other"][:2]) == {"features:1", "features:3"}
    assert list(of_photographs) == ["other", "S", "cluster"]
    pd.testing.assert_frame_equal(of_photographs, neighbour_frame("features:0", alone.folder))
    with pytest.raises(FeatmapError, match="has a map of photographs only"):
        neighbour_frame("features:0", alone.folder, "images")
    with pytest.raises(FeatmapError, match="allowed: images or photographs"):
        neighbour_frame("features:0", both.folder, "drawings")
    with pytest.raises(SystemExit) as end:
        app.main(["neighbours", "features:0", str(both.folder), "--stimuli", "photographs", "-n", "2"])
    assert end.value.code == 0 and "coactivation" not in capsys.readouterr().out


def test_commands_that_need_images_refuse_photographs_alone(alone: SimilarityMap) -> None:
    network = load(pictures.parting())
    with pytest.raises(FeatmapError, match="has photographs as its only stimuli"):
        featmap.validate(alone.folder, network=network)
    with pytest.raises(FeatmapError, match="this run has no images to probe"):
        featmap.probe(alone.folder, "features", network)
