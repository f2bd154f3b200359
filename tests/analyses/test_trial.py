"""The trial of several layers on a tiny network, and the explanations of a shortfall against plain loops."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import featmap
from analyses import trial
from analyses.support import photograph_gap, trial_page
from featmap import FeatmapError, Recipe, open_arrays
from featmap.mapping.result import LayerMaps
from featmap.rng import generator
from featmap.runs.progress import Silent
from featmap.stats import reliability
from featmap.stats.measures import profile_correlations
from tests.helpers import twofold
from tests.stats.test_reliability import symmetric, upper

pytestmark = [
    pytest.mark.filterwarnings("ignore::featmap.stats.measures.FewStimuliWarning"),
    pytest.mark.usefixtures("cheap_runs"),
]


def known(D: int = 24, N: int = 400, shift: float = 0.0) -> photograph_gap.LayerEvidence:
    """Photographs and images of features that mix six sources; `shift` is what is the images' alone."""
    rng = np.random.default_rng(0)
    mixing, alien = rng.normal(size=(6, D)), rng.normal(size=(6, D))
    photographs = np.maximum(rng.normal(size=(N, 6)) @ mixing + 0.3 * rng.normal(size=(N, D)), 0)
    A = mixing.T @ mixing + shift * (alien.T @ alien)
    noise = rng.normal(size=(100, D))
    branches = ["one"] * (D // 2) + ["two"] * (D - D // 2)
    return photograph_gap.LayerEvidence(
        A, photographs, A[:10] + 0.1 * rng.normal(size=(10, D)), A.copy(), noise, branches
    )


def test_explained_gaps_agree_with_slow_formulas() -> None:
    given = known()
    found = photograph_gap.explain_gap(given)
    assert list(found) == list(photograph_gap.STATISTICS)
    S, P = profile_correlations(given.A), profile_correlations(given.photographs)
    n = len(S)
    assert found["raw"].value == pytest.approx(stats.pearsonr(upper(S), upper(P)).statistic, abs=1e-12)
    pairs = [(i, j) for i in range(n) for j in range(i)]
    inside = [p for p in pairs if given.branches[p[0]] == given.branches[p[1]]]
    for name, chosen in (("within_branch", inside), ("across_branches", sorted(set(pairs) - set(inside)))):
        x, y = ([t[p] for p in chosen] for t in (S, P))
        assert found[name].value == pytest.approx(stats.pearsonr(x, y).statistic, abs=1e-12)
    rng, r = generator("favourites", 400), []
    for _ in range(photograph_gap.SPLITS):
        order = rng.permutation(400)
        halves = [given.photographs[sorted(part)] for part in (order[:200], order[200:])]
        liked = [
            [h[np.argsort(-h[:, j], kind="stable")[: photograph_gap.BEST]].mean(axis=0) for j in range(n)]
            for h in halves
        ]
        x, y = (upper(profile_correlations(np.array(mine))) for mine in liked)
        r.append(
            [stats.pearsonr(x, other).statistic for other in (upper(profile_correlations(halves[1])), upper(S), y)]
        )
    for name, by_hand in zip(("P", "S", "favourites"), np.mean(r, axis=0), strict=True):
        assert found[f"favourites_with_{name}"].value == pytest.approx(by_hand, abs=1e-12)
    best = [np.argsort(-given.photographs[:, j], kind="stable")[: photograph_gap.BEST] for j in range(n)]
    top = given.photographs[sorted({int(k) for b in best for k in b})]
    assert found["top_photographs"].value == pytest.approx(
        stats.pearsonr(upper(S), upper(profile_correlations(top))).statistic, abs=1e-12
    )
    centred = [stats.zscore(np.sign(X) * np.sqrt(np.abs(X)), axis=0) for X in (given.A, given.photographs)]
    x, y = (upper(stats.spearmanr(Z - Z.mean(axis=1, keepdims=True)).statistic) for Z in centred)
    assert found["by_rank"].value == pytest.approx(stats.pearsonr(x, y).statistic, abs=1e-9)
    assert found["early"].value == pytest.approx(found["raw"].value, abs=1e-12)
    assert abs(found["noise_with_P"].value) < 0.3 < found["raw"].value < found["favourites_with_P"].value + 0.2


def test_differences_of_branches_are_removed_pair_by_pair() -> None:
    table, branches = symmetric(9, 1), np.array(list("aaabbbccc"), dtype=object)
    found = photograph_gap.subtract_block_means(table, branches)
    for i in range(9):
        for j in range(i):
            block = [
                table[k, m]
                for k in range(9)
                for m in range(9)
                if k != m and (branches[k], branches[m]) == (branches[i], branches[j])
            ]
            assert found[i, j] == pytest.approx(table[i, j] - np.mean(block), abs=1e-12)
    np.testing.assert_allclose(found, found.T, atol=1e-12)


def test_dimensions_axes_and_own_images() -> None:
    assert photograph_gap.participation_ratio(np.eye(7)) == pytest.approx(7)
    assert photograph_gap.participation_ratio(np.ones((7, 7))) == pytest.approx(1)
    v = np.random.default_rng(0).normal(size=8)
    np.testing.assert_allclose(photograph_gap.subtract_leading_axis(np.outer(v, v)), 0, atol=1e-12)
    A = np.arange(9.0).reshape(3, 3)
    assert photograph_gap.replace_own_responses(A).tolist() == [[4.5, 1, 2], [3, 4, 5], [6, 7, 3.5]]


def test_a_gap_by_unnatural_images_is_attributed_to_them() -> None:
    found = photograph_gap.explain_gap(known(shift=2.0))
    assert found["raw"].value < 0.7 < found["favourites_with_P"].value
    conclusion = photograph_gap.gap_sentences(found.get, 0.85)
    assert any("mostly due to the images being synthetic, not to the choice" in line for line in conclusion)
    assert reason(raw=0.9) == [] and reason() == []
    conclusion = reason(raw=0.6, early=0.9, noise_with_P=0.7)
    assert (
        "stopping descents early: 0.900" in conclusion[0]
        and "enough" in conclusion[0]
        and "no less than the map" in conclusion[1]
    )
    assert reason(raw=0.6, early=0.61) == ["none of the changes tried raises 0.600 by 0.02 or more"]


def reason(**values: float) -> list[str]:
    return photograph_gap.gap_sentences({name: reliability.Interval(v) for name, v in values.items()}.get, 0.85)


@pytest.mark.parametrize(
    ("natural", "synthetic", "ceiling", "words"),
    [
        ((0.84, 0.94), (0.70, 0.80), (0.9, 0.98), "mostly due to the images being synthetic"),
        ((0.70, 0.80), (0.84, 0.94), (0.9, 0.98), "mostly due to the choice of strong stimuli"),
        ((0.70, 0.80), (0.75, 0.85), (0.9, 0.98), "both to the choice"),
        ((0.88, 0.93), (0.80, 0.89), (0.9, 0.98), "do not separate"),
    ],
)
def test_causes_are_separated_by_their_intervals(
    natural: tuple[float, float], synthetic: tuple[float, float], ceiling: tuple[float, float], words: str
) -> None:
    given = {"raw": reliability.Interval(0.6), "early": reliability.Interval(0.6)}
    for name, (low, high) in (("P", natural), ("S", synthetic), ("favourites", ceiling)):
        given[f"favourites_with_{name}"] = reliability.Interval((low + high) / 2, low, high)
    assert words in " ".join(photograph_gap.gap_sentences(given.get, 0.85))


@pytest.fixture(scope="module")
def trial_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trial")
    photographs = twofold.photographs(folder / "photographs", count=40)
    with zipfile.ZipFile(folder / "photographs.zip", "w") as archive:
        archive.writestr("notes.txt", "no picture")
        for path in sorted(photographs.iterdir()):
            archive.write(path, f"inner/{path.name}")
    put_to_test(folder)
    return folder


def put_to_test(folder: Path, results: str = "results") -> None:
    trial.main(
        folder / "photographs.zip",
        model="tests.helpers.tiny:wide",
        layers="first,second",
        features=12,
        seeds=2,
        null_seeds=1,
        size=16,
        steps=8,
        runs=folder / "runs",
        results=folder / results,
        page=folder / "page.md",
    )


def test_the_page_is_built_from_the_results_alone(trial_folder: Path) -> None:
    text = (trial_folder / "page.md").read_text()
    assert trial_page.build_page(trial_folder / "results") == text
    for words in ("**second**", "| S of one seed with S of another |", "random weights", "40 photographs", "12 of 24"):
        assert words in text
    assert "one draw of the weights, 1 seed(s) of noise" in text and "| modularity of the Louvain runs |" in text
    assert "nan" not in text.lower() and str(trial_folder) not in text
    trial.main(None, results=trial_folder / "results", page=trial_folder / "again.md")
    assert (trial_folder / "again.md").read_text() == text
    with pytest.raises(FeatmapError, match="give --photographs"):
        trial.main(None, results=trial_folder / "nowhere", page=trial_folder / "nothing.md")


def test_the_stored_statistics_are_those_of_the_validation(trial_folder: Path) -> None:
    (run,) = (p for p in (trial_folder / "runs").glob("map-*"))
    stored = pd.read_csv(trial_folder / "results" / "statistics.csv")
    found = pd.read_csv(run / "validation" / "figures.csv")
    merged = stored.merge(found, on=["layer", "network", "name"])
    assert len(merged) == len(stored) == len(found)
    np.testing.assert_allclose(merged["value_x"], merged["value_y"], rtol=1e-4)
    short = pd.read_csv(trial_folder / "results" / "shortfall.csv").set_index(["layer", "name"])["value"]
    raw = stored[(stored["network"] == "trained") & (stored["name"] == "photographs_pearson")]
    for layer, value in zip(raw["layer"], raw["value"], strict=True):
        assert short[layer, "raw"] == pytest.approx(value, rel=1e-4)


def test_a_repeated_trial_resumes_with_equal_results(trial_folder: Path) -> None:
    before = {p.name: p.read_bytes() for p in (trial_folder / "results").iterdir()}
    put_to_test(trial_folder)
    assert {p.name: p.read_bytes() for p in (trial_folder / "results").iterdir()} == before


def test_a_layer_that_repeats_too_little_is_mapped_with_more_steps(
    trial_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "TARGET_RELIABILITY", 1.01)
    put_to_test(trial_folder, "longer")
    longer = json.loads((trial_folder / "longer" / "trial.json").read_text())["longer"]
    (run,) = (p for p in (trial_folder / "runs").glob("longer-*"))
    data = open_arrays(run)
    names = [n for n in data["image"].values if n.startswith(f"{longer['layer']}:")]
    one, two = (profile_correlations(a.sel(image=names, response=names).values.astype(float)) for a in data["A"])
    assert longer["steps"] == 16 and data.sizes["step"] == 16
    assert longer["value"] == pytest.approx(np.corrcoef(upper(one), upper(two))[0, 1], abs=1e-12)


def test_all_maps_of_a_trial_have_one_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipes: list[Recipe] = []

    def similarity(*_: Any, recipe: Recipe, **__: Any) -> LayerMaps:
        recipes.append(recipe)
        return object.__new__(LayerMaps)

    monkeypatch.setattr(featmap, "similarity", similarity)
    network = featmap.load("tests.helpers.tiny:wide")
    plan = trial.Plan(network, {"first": [0], "second": [0]}, None, 1, 0, {}, tmp_path, False)  # type: ignore[arg-type]
    plan.map("map", Silent())
    plan.map("early", Silent(), steps=6)
    assert [recipe.name for recipe in recipes] == ["pixels", "pixels"] and recipes[1].steps == 6


def test_too_little_is_refused(tmp_path: Path) -> None:
    for settings, words in (({"features": 3}, "8 or more"), ({"layers": "first"}, "two or more")):
        with pytest.raises(FeatmapError, match=words):
            trial.main(tmp_path, model="tests.helpers.tiny:wide", **settings)  # type: ignore[arg-type]
