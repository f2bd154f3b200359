"""Each rule that gives a pair its kind, on networks in which that kind is planted, and on numbers."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from featmap.interaction import kinds, report
from featmap.interaction.conclusion import state_conclusion
from featmap.interaction.kinds import (
    ADDITIVE,
    COMPETING,
    SUPPRESSIVE,
    SYNERGISTIC,
    UNDECIDED,
    UNDEFINED,
    growth_exponents,
    summarise,
)
from featmap.interaction.statistics import JointArrays
from featmap.plotting import interaction_panel
from featmap.stats.interaction import additive_retentions, second_difference
from tests.helpers import couples, networks
from tests.interaction.test_job import carried_out, job_of

pytestmark = pytest.mark.usefixtures("cheap_runs", "threads")

SETTINGS: dict[str, Any] = {"size": 16, "steps": 12, "rows": 4, "seeds": 3}
COLOURS = {"units": ["colours:0", "colours:1"], "probe_layers": ["colours", "gates"]}


def measured(tmp_path: Any, module: Any, **changes: Any) -> JointArrays:
    settings = SETTINGS | changes
    return carried_out(job_of(settings.pop("units"), module, **settings), tmp_path / "run")


@pytest.mark.parametrize(
    ("module", "changes", "kind", "feature", "sign"),
    [
        (couples.halves(), {"units": ["out:0", "out:1"], "size": 32}, ADDITIVE, "", 0),
        (couples.twins(), {"units": ["features:0", "features:1"]}, ADDITIVE, "", 0),
        (couples.twins(), {"units": ["features:0", "features:4"]}, ADDITIVE, "", 0),
        (networks.linear_network(), {"units": ["conv3:0", "conv2:4"]}, ADDITIVE, "", 0),
        (couples.logic(), COLOURS, ADDITIVE, "", 0),
        (couples.logic(couples.AND_GATE), COLOURS, SYNERGISTIC, "gates:0", 1),
        (couples.logic(couples.OR_GATE), COLOURS, SUPPRESSIVE, "gates:1", -1),
        (couples.logic(couples.XOR_GATE), COLOURS, SUPPRESSIVE, "gates:2", -1),
        (couples.logic(couples.BLOCKED_GATE), COLOURS, SUPPRESSIVE, "gates:3", -1),
        (couples.rivals(), {"units": ["out:0", "out:1"]}, COMPETING, None, None),
        (couples.rivals(single=True), {"units": ["out:0", "out:1"]}, SUPPRESSIVE, None, None),
    ],
    ids=["apart", "copies", "linear", "two layers", "no gate", "and", "or", "xor", "blocked", "rivals", "one place"],
)
def test_planted_kinds_are_found(
    module: Any, changes: dict[str, Any], kind: str, feature: str | None, sign: int | None, tmp_path: Any
) -> None:
    row = summarise(measured(tmp_path, module, **changes).table()).iloc[0]
    assert row["kind"] == kind
    assert feature is None or row["second_difference_at"] == feature
    assert sign is None or row["second_difference_sign"] == pytest.approx(sign, abs=0.1)


def test_more_together_than_alone_is_no_synergy_in_a_linear_network(tmp_path: Any) -> None:
    arrays = measured(tmp_path, couples.rough(), units=["0:0", "0:1"], steps=60)
    row = summarise(arrays.table()).iloc[0]
    assert min(row["retention_a"], row["retention_b"]) > 1.05 and row["response_nonlinearity"] < 1e-4
    assert row["kind"] == ADDITIVE


def evidence(**changes: Any) -> kinds.Evidence:
    """Evidence of an additive pair, five seeds; a number stands for that mean with a spread of 0.01."""
    spread = np.array([-0.01, 0.01, 0.0, -0.005, 0.005])
    values: dict[str, Any] = {"excess": 0.0, "second_difference": 0.0, "self_saturation": 0.2, "retention": 0.7}
    values |= {"additive": 0.7, "divided": 0.2, "correlation": 0.3} | changes
    values.setdefault("signed_difference", values["second_difference"])
    values["second_difference"] = abs(values["second_difference"])

    def seeds(name: str) -> np.ndarray:
        given = np.atleast_1d(values[name]).astype(float)
        if name in ("self_saturation", "retention", "additive"):
            return np.broadcast_to(given, 2)[None] + spread[:, None]
        return given[0] + spread

    return kinds.Evidence(**{name: seeds(name) for name in values})


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({}, ADDITIVE),
        ({"excess": 0.08}, ADDITIVE),
        ({"excess": 0.1}, UNDECIDED),
        ({"second_difference": 0.25}, ADDITIVE),
        ({"second_difference": 0.35}, UNDECIDED),
        ({"second_difference": 0.8, "signed_difference": 0.0}, UNDECIDED),  # half of it by more, half by less
        ({"retention": 0.56}, UNDECIDED),
        ({"retention": (0.7, 0.5)}, SUPPRESSIVE),
        ({"retention": (0.7, 0.5), "divided": 0.9}, SUPPRESSIVE),
        ({"retention": (0.7, 0.5), "divided": 0.9, "correlation": -0.3}, COMPETING),
        ({"retention": (0.7, 0.5), "correlation": -0.3}, SUPPRESSIVE),
        ({"retention": (0.7, 0.5), "divided": 0.9, "correlation": math.nan}, SUPPRESSIVE),
        ({"divided": 0.9, "correlation": -0.3}, ADDITIVE),
        ({"retention": 1.1}, ADDITIVE),
        ({"retention": 1.1, "excess": 0.2}, SYNERGISTIC),
        ({"retention": (1.1, 0.9)}, ADDITIVE),
        ({"excess": 0.2, "second_difference": 0.1}, SYNERGISTIC),
        ({"excess": 0.2, "second_difference": 0.09}, UNDECIDED),  # sure, but too small to matter
        ({"excess": 0.09, "second_difference": 0.09}, ADDITIVE),
        ({"excess": 0.2, "second_difference": 0.8, "signed_difference": -0.15}, UNDECIDED),  # hardly a balance
        ({"excess": 0.2, "second_difference": 0.8, "signed_difference": -0.17}, SUPPRESSIVE),
        ({"excess": 0.2, "second_difference": -0.1}, SUPPRESSIVE),
        ({"excess": 0.2}, UNDECIDED),
        ({"additive": math.nan}, UNDECIDED),
        ({"additive": math.nan, "retention": 0.1}, UNDECIDED),
        ({"additive": math.nan, "retention": 0.1, "excess": 0.2, "second_difference": -0.1}, SUPPRESSIVE),
        ({"excess": math.nan}, UNDEFINED),
    ],
)
def test_the_rules_on_numbers(changes: dict[str, Any], kind: str) -> None:
    assert kinds.classify(evidence(**changes)) == kind


def test_a_kind_takes_three_seeds_and_an_interval_that_decides() -> None:
    loses = evidence(retention=(0.7, 0.5))
    two = kinds.Evidence(**{name: value[:2] for name, value in vars(loses).items()})
    assert kinds.classify(two) == UNDECIDED
    scattered = replace(loses, retention=loses.retention + np.array([-0.4, 0.4, 0, 0.3, -0.3])[:, None])
    assert kinds.classify(scattered) == UNDECIDED


def test_copies_that_keep_all_but_for_rounding_are_additive() -> None:
    plain = evidence(additive=1.0)
    kept = 1 + np.array([1.0, 1.2, 1.1, 1.0, 1.1])[:, None] * np.full(2, 2.0**-22)
    assert kinds.classify(replace(plain, retention=kept, additive=np.ones((5, 2)))) == ADDITIVE


ROW = {"status": "ok", "seeds": 5, "response_nonlinearity": 0.2, "response_nonlinearity_floor": 0.1, "low": 0.1}
ROW |= {"response_nonlinearity_ceiling": 0.9, "high": 0.3, "p": 0.01, "second_difference_at": "y:7"}
ROW |= {"territory_divided": 0.97, "retention_a": 0.5, "retention_b": 0.4, "additive_retention_a": 0.7}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kind": ADDITIVE}, "additive: together they reach 50 and 40 % of what each reaches alone, 70 % without"),
        ({"kind": SUPPRESSIVE, "retention_b": 0.5}, "suppressive: together they reach 50 % of what each reaches alone"),
        (
            {"kind": SUPPRESSIVE, "retention_a": 0.7, "retention_b": 0.7},
            "a mixture of the solo images by less than the sum of their",
        ),
        (
            {"kind": SYNERGISTIC},
            "by more than the sum of their responses to its parts (the largest difference is at y:7); together",
        ),
        (
            {"kind": SYNERGISTIC, "retention_a": 1.2, "retention_b": 1.3},
            "synergistic: together they reach 120 and",
        ),
        ({"kind": COMPETING}, "competing for place: at 97 % of the places where any responds, only one does; together"),
        ({"kind": UNDECIDED}, "undecided (no rule is surely met): together"),
        ({"kind": UNDECIDED, "seeds": 2, "p": math.nan, "low": math.nan}, "undecided (too few seeds): together"),
        ({"kind": COMPETING, "additive_retention_a": math.nan}, "of what each reaches alone. 20 % of the joint"),
    ],
)
def test_the_conclusion_begins_with_the_kind(changes: dict[str, Any], words: str) -> None:
    row = pd.Series(ROW | {"additive_retention_b": 0.7} | changes)
    sentence = state_conclusion(row, 5)
    assert words in sentence and sentence.startswith(changes["kind"]) and "nan" not in sentence
    assert "20 % of the joint image's response is not explained" in sentence


@pytest.mark.parametrize("direction", [1.0, -1.0])
def test_the_sign_of_a_second_difference_is_the_balance_of_its_squares(direction: float) -> None:
    deviation, joint = np.ones(3), np.array([1.0, 1.0, 1.0])
    fractions = np.full((2, 3), 0.5 * direction)  # their sum is 1, in size
    for middle, sign in (
        ([2, 1, 1], 1.0),  # an AND
        ([1, 0, 1], -1.0),  # an XOR
        ([2, 1, -0.5], (1 - 1.5**2) / (1 + 1.5**2)),  # beyond the other side of 0, but smaller
        ([4, 2, 0], 9 / 11),
    ):
        found = second_difference(direction * np.array(middle, dtype=float), fractions, joint, deviation)
        assert found.sign == pytest.approx(sign)
    assert second_difference(fractions.sum(0), fractions, joint, deviation).sign == 0


def test_a_response_that_grows_as_a_power_keeps_that_power_of_a_share() -> None:
    null, whole = 0.25, np.array([[2.25, 2.25, 2.25, 2.25, 0.25]])
    parts = null + 2 * np.array([[0.5, 0.25, 2**-0.5, -0.1, 0.5]])
    arrays = {"null": np.full((1, 5), null), "solo_A": whole, "solo_fraction": parts}
    found = [growth_exponents(arrays, 0, [(0, k), (0, None)]).tolist() for k in range(5)]
    np.testing.assert_allclose([a for a, _ in found], [1, 2, 0.5, np.nan, np.nan])
    assert {b for _, b in found} == {1.0}, "not probed: taken for linear"
    thirds = {"null": np.zeros((1, 1)), "solo_A": np.ones((1, 1)), "solo_fraction": np.full((1, 1), 1 / 9)}
    assert growth_exponents(thirds, 0, [(0, 0)] * 3)[0] == pytest.approx(2)
    steep = thirds | {"solo_fraction": np.full((1, 1), 0.01)}
    assert np.isnan(growth_exponents(steep, 0, [(0, 0)] * 2)[0])


def test_retentions_without_interaction_are_those_of_vectors() -> None:
    """Gradients g of the plane, no blur: solo images g / |g|, the joint one the unit vector of sum g / |g|^2 |g|."""
    generator = np.random.default_rng(3)
    for n in (2, 3):
        g = generator.normal(size=(n, 5))
        g /= np.linalg.norm(g, axis=1, keepdims=True)  # a scale cancels under solo balance
        joint = g.sum(0) / np.linalg.norm(g.sum(0))
        cosines = g @ g.T
        mean = (cosines.sum() - n) / (n * n - n)
        found = additive_retentions(cosines, np.ones(n), mean)
        np.testing.assert_allclose(found, np.minimum(g @ joint, 1), rtol=1e-9)
    assert np.isnan(additive_retentions(np.array([[1, -1], [-1, 1.0]]), np.ones(2), -1.0)).all()
    assert np.isnan(additive_retentions(np.array([[1, np.nan], [0, 1.0]]), np.ones(2), 0.0)).tolist() == [True, False]


def test_the_panel_has_the_kind_in_its_title(tmp_path: Any) -> None:
    arrays = measured(tmp_path, couples.rivals(), units=["out:0", "out:1"])
    table = arrays.table()
    row = summarise(table).iloc[0]
    content = report.make_panel(arrays, table, row, 0)
    assert content.title == "out:0 + out:1: competing for place"
    assert [label for _, label, _ in content.images] == ["out:0", "out:1", "joint", "best linear blend"]
    assert "competing for place" in " ".join(
        t.get_text() for t in interaction_panel.panel(content).findobj(match=_text)
    )


def _text(artist: Any) -> bool:
    return hasattr(artist, "get_text")
