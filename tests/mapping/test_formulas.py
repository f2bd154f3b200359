"""The formula of S in run folders: maps of versions that took no roots are read as they are, and computed anew."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import featmap
from featmap.mapping import cluster_io
from featmap.mapping.neighbours import neighbour_frame
from featmap.mapping.result import LayerMaps, SimilarityMap, read_maps
from featmap.mapping.run import similarity
from featmap.mapping.view import View, recorded_formula
from featmap.network.loading import load
from featmap.report.layer_data import EARLIER_FORMULA
from featmap.runs import integrity
from featmap.runs.store import Run
from featmap.stats import blockwise, clustering, measures
from tests.helpers import pictures, tiny
from tests.helpers.settings import options

pytestmark = [
    pytest.mark.filterwarnings("ignore::featmap.stats.measures.FewStimuliWarning"),
    pytest.mark.usefixtures("cheap_runs"),
]
FAST: dict[str, Any] = {"size": 16, "steps": 20, "rows": 4, "device": "cpu"}
COLOURS = pictures.purple_and_green(60)


def by_hand(responses: np.ndarray, roots: bool) -> np.ndarray:
    values = np.sign(responses) * np.sqrt(np.abs(responses)) if roots else responses
    Z = (values - values.mean(0)) / values.std(0)
    return np.corrcoef(Z - Z.mean(1, keepdims=True), rowvar=False)


def map_colours(folder: Path, photographs: Path) -> SimilarityMap:
    found = similarity("features", pictures.parting(), photographs=photographs, **options(out=folder, **FAST))
    assert not isinstance(found, LayerMaps)
    return found


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures.save_colours(tmp_path_factory.mktemp("pictures") / "colours", COLOURS)


@pytest.fixture(scope="module")
def present(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> SimilarityMap:
    return map_colours(tmp_path_factory.mktemp("present") / "run", photographs)


def forget_formula(run: Run, names: list[str]) -> None:
    """Leave out the entries that earlier versions did not write."""
    for name in names:
        values = json.loads((run.folder / name).read_text())
        del values["formula"]
        text = json.dumps(values, indent=1) + "\n"
        run.write(name, lambda p, text=text: p.write_text(text, encoding="utf-8"))
    run.manifest.view = {k: v for k, v in run.manifest.view.items() if k != "formula"}
    run.save()


@pytest.fixture(scope="module")
def earlier(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run as an earlier version wrote it: S, clusters, tables and records without roots."""
    folder = tmp_path_factory.mktemp("earlier") / "run"
    with pytest.MonkeyPatch.context() as patch:
        for module in (measures, blockwise, clustering):
            patch.setattr(module, "signed_roots", lambda values: np.asarray(values, dtype=np.float64))
        map_colours(folder, photographs)
    forget_formula(Run.read(folder), ["clusters.json", "photographs_clusters.json"])
    return folder


@pytest.fixture
def folder(earlier: Path, tmp_path: Path) -> Path:
    shutil.copytree(earlier, tmp_path / "run")
    return tmp_path / "run"


def test_a_record_without_a_formula_is_of_the_first() -> None:
    assert recorded_formula({"measure": "profile", "neighbours": 10}) == measures.LINEAR
    assert recorded_formula(View().record({})) == measures.FORMULA != measures.LINEAR


def test_an_earlier_run_is_read_with_the_similarity_of_its_tables(earlier: Path) -> None:
    (found,) = read_maps(earlier).values()
    A = found.activations.to_numpy()
    np.testing.assert_allclose(found.measures["profile"], by_hand(A, roots=False), atol=1e-9)
    np.testing.assert_array_equal(pd.read_parquet(earlier / "profile.parquet"), found.measures["profile"])
    stored = json.loads((earlier / "clusters.json").read_text())
    assert found.clusters.communities.labels.tolist() == stored["community"]
    assert found.photographs is not None
    responses = pictures.responses_to_colours(COLOURS)
    np.testing.assert_allclose(found.photographs.similarity, by_hand(responses, roots=False), atol=1e-5)


def test_clusters_of_an_earlier_formula_are_not_used_for_another(earlier: Path, present: SimilarityMap) -> None:
    S, path = present.measures["profile"], earlier / "clusters.json"
    assert cluster_io.read(path, S, 10) is None
    assert cluster_io.read(path, S, 10, measures.LINEAR) is not None
    assert cluster_io.read(present.folder / "clusters.json", S, 10) is not None
    assert cluster_io.read(present.folder / "clusters.json", S, 10, measures.LINEAR) is None


def test_the_page_of_an_earlier_run_says_so(folder: Path) -> None:
    assert EARLIER_FORMULA in featmap.atlas(folder, network=load(pictures.parting()))[0].read_text(encoding="utf-8")


def test_the_runs_own_command_computes_it_anew(folder: Path, present: SimilarityMap, photographs: Path) -> None:
    arrays = {p: p.read_bytes() for p in (folder / "arrays.zarr").rglob("*") if p.is_file()}
    units, old = tiny.landed(folder), (folder / "profile.csv").read_bytes()
    again = map_colours(folder, photographs)
    assert {p: p.read_bytes() for p in (folder / "arrays.zarr").rglob("*") if p.is_file()} == arrays
    assert tiny.landed(folder) == units
    np.testing.assert_allclose(again.measures["profile"], by_hand(again.activations.to_numpy(), roots=True), atol=1e-9)
    assert (folder / "profile.csv").read_bytes() != old
    assert recorded_formula(Run.read(folder).manifest.view) == measures.FORMULA
    tables = ["profile.csv", "features.csv", "clusters.json", "graph.graphml", "photographs_profile.csv"]
    for name in [*tables, "photographs_clusters.json", "photographs_agreement.csv", "heatmap.png"]:
        assert (folder / name).read_bytes() == (present.folder / name).read_bytes(), name
    assert again.lines() == present.lines()
    pd.testing.assert_frame_equal(neighbour_frame("features:2", folder), neighbour_frame("features:2", present.folder))
    assert integrity.inspect(folder).faults == []


def test_the_linear_profile_can_be_shown(tmp_path: Path, present: SimilarityMap) -> None:
    assert "linear_profile" not in present.measures
    view = View(measure="linear_profile")
    found = similarity("features", pictures.parting(), view=view, **options(out=tmp_path / "run", **FAST))
    assert not isinstance(found, LayerMaps)
    expected = by_hand(found.activations.to_numpy(), roots=False)
    np.testing.assert_allclose(found.measures["linear_profile"], expected, atol=1e-9)
    pd.testing.assert_frame_equal(found.measures["profile"], present.measures["profile"])
    (stored,) = read_maps(found.folder).values()
    pd.testing.assert_frame_equal(stored.measures["linear_profile"], found.measures["linear_profile"])
    written = pd.read_parquet(found.folder / "linear_profile.parquet")
    np.testing.assert_allclose(written, expected, atol=1e-9)
    assert b"without roots" in (found.folder / "heatmap.svg").read_bytes()
