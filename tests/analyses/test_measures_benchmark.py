"""The benchmark that chooses what is done to responses before S is computed."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analyses.benchmarks import measures, records
from analyses.benchmarks.measures import STEPS, Result, compare_shares
from featmap.cli.options import NetworkOptions
from featmap.errors import FeatmapError

RNG = np.random.default_rng(0)


def result(step: str, agreement: float, repeatability: float, tuned: bool = True) -> Result:
    return Result("net", "a", step, tuned, 8, 100, "fast", agreement, 0.8, 0.5, 0.4, 0.6, repeatability)


def test_every_step_keeps_the_order_and_the_sign_of_responses() -> None:
    values = np.sort(RNG.normal(size=(50, 3)), axis=0)
    for name, step in STEPS.items():
        assert (np.diff(step(values), axis=0) > 0).all(), name
        if name != "ranks":
            np.testing.assert_array_equal(np.sign(step(values)), np.sign(values))
        np.testing.assert_allclose(
            measures.similarity(values * [1.0, 7.0, 0.1], step), measures.similarity(values, step), atol=1e-9
        )


def test_roots_agree_better_where_own_images_drive_features_far() -> None:
    """Two planted groups of features respond alike; each feature's own image drives it ten times as far."""
    groups = np.repeat([0, 1], 8)
    factors = RNG.exponential(size=(200, 2))
    photographs = factors[:, groups] + 0.2 * RNG.exponential(size=(200, 16))
    alike = (groups[:, None] == groups[None, :]).astype(float)
    images = [alike + 0.2 * RNG.exponential(size=(16, 16)) + np.diag(RNG.uniform(5, 15, 16)) for _ in range(2)]
    found = {name: measures.measure(images, photographs, step) for name, step in STEPS.items()}
    assert found["square roots"]["agreement"] > found["none"]["agreement"] + 0.02
    assert found["square roots"]["repeatability"] > found["none"]["repeatability"]
    assert all(0 <= f["overlap"] <= 1 and f["ceiling"] <= 1 for f in found.values())
    assert found["none"]["with_plain"] == pytest.approx(found["none"]["agreement"])


@pytest.mark.parametrize(
    ("agreements", "repeatabilities", "chosen"),
    [
        ((0.5, 0.60, 0.55, 0.61, 0.4), (0.9, 0.9, 0.9, 0.9, 0.9), "square roots"),  # near the best, and simpler
        ((0.5, 0.58, 0.55, 0.61, 0.4), (0.9, 0.9, 0.9, 0.9, 0.9), "logarithms"),
        ((0.5, 0.58, 0.55, 0.61, 0.4), (0.9, 0.9, 0.9, 0.8, 0.9), "square roots"),  # the best repeats less
        ((0.7, 0.58, 0.55, 0.61, 0.4), (0.9, 0.9, 0.9, 0.9, 0.9), "none"),
    ],
)
def test_the_rule_chooses_on_tuned_layers(
    agreements: tuple[float, ...], repeatabilities: tuple[float, ...], chosen: str
) -> None:
    found = [result(s, a, r) for s, a, r in zip(STEPS, agreements, repeatabilities, strict=True)]
    others = [replace(one, tuned=False, agreement=1 - one.agreement) for one in found]
    assert measures.choose([*found, *others]) == chosen


@pytest.mark.parametrize(("settings", "words"), [({"seeds": 1}, "seeds 1"), ({"features": 5}, "features 5")])
def test_settings_that_leave_a_measure_undefined_are_refused_at_once(settings: dict[str, int], words: str) -> None:
    network = NetworkOptions(model="tests.helpers.tiny:small")
    with pytest.raises(FeatmapError, match=words):
        measures.main(network, Path("photographs"), **settings)


def test_whole_layers_have_a_table_of_their_own() -> None:
    drawn = [result(step, 0.6, 0.9) for step in STEPS]
    whole = [replace(one, layer="second", agreement=0.72, features=512, tuned=False, whole=True) for one in drawn]
    page, without = measures.format_page([*drawn, *whole]), measures.format_page(drawn)
    assert "Whole layers" not in without and "on whole layers" not in without
    # no choice and no mean takes them into account
    assert [line for line in without.splitlines() if line not in page.splitlines()] == []
    aims = page.index("on whole layers, the default: 0.9 of either ceiling"), page.index("on the drawn features: 0.9")
    assert aims[0] < aims[1] and "- net: 0.900 of the ceiling of the agreement (" in page
    (row,) = [line for line in page.splitlines() if "| second | 512 |" in line]
    assert "| 0.720 | 0.800 | 0.900 |" in row


def test_the_shares_of_the_ceilings_are_those_of_every_step() -> None:
    plain, roots = result("none", 0.4, 0.9), result("square roots", 0.6, 0.9)  # ceilings 0.8
    share = (0.4 - 5 / 63) / (0.6 - 5 / 63)
    text = compare_shares(pd.DataFrame([asdict(replace(r, features=64)) for r in (plain, plain, roots)]))
    assert text.endswith(f"means over all layers: none 0.500 and {share:.3f}; square roots 0.750 and {share:.3f}.")


def test_a_ceiling_below_chance_has_no_share() -> None:
    """Of 8 features unrelated maps share 5 of 7 nearest ones, which is more than an overlap of 0.4 and its ceiling."""
    table = measures.add_shares(pd.DataFrame([asdict(result("none", 0.4, 0.9))]))
    assert np.isnan(table["of_overlap"].item()) and table["of_agreement"].item() == pytest.approx(0.5)


def test_the_table_in_the_readme_is_that_of_the_stored_values() -> None:
    stored = measures.read(measures.STORE)
    assert len(stored) % len(STEPS) == 0 and {r.step for r in stored} == set(STEPS)
    assert measures.format_page(stored) in records.README.read_text(encoding="utf-8")
