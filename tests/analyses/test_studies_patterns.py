"""The studies of octaves and metrics on networks whose answer is known."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from analyses import metrics, octaves
from analyses.support.findings import Finding, difference_finding, ratio_finding, share_or_undefined
from analyses.support.image_sets import ImageSet, mean_over_seeds
from analyses.support.study import Outcome
from featmap.optimize.recipe import ARTICLE_LOWRES, ARTICLE_NORMALISED
from featmap.plotting.style import fit_text
from tests.helpers.studying import context_of, value_of

pytestmark = pytest.mark.usefixtures("one_thread")


def linear(stride: int, features: int = 6, bias: float = 0.0) -> nn.Module:
    """One convolution: its gradient is a constant (stride 1) or repeats every `stride` pixels, whatever the image."""
    conv = nn.Conv2d(3, features, 3, stride, 1)
    with torch.no_grad():
        conv.bias.fill_(bias)
        conv.weight.copy_(torch.randn(conv.weight.shape, generator=torch.Generator().manual_seed(4)))
    return nn.Sequential(OrderedDict(features=conv)).eval()


def put(module: nn.Module, tmp_path: Path, size: int = 40, seeds: int = 2) -> Outcome:
    context = context_of(octaves.STUDY, module, ("features",), tmp_path, size=size, features=4, seeds=seeds)
    return octaves.measure(context, size, 9)


def finding(value: float | None, low: float | None = None, high: float | None = None) -> Finding:
    return Finding("", value, low, high, 8, "")


def known() -> dict[str, Finding]:
    """Findings by which no part holds: fewer high frequencies, little agreement, and grids in most features."""
    held = {f"{octaves.PLAIN}, {octaves.PLAIN}": finding(0.8, 0.7, 0.9)}
    held |= {f"{octaves.PLAIN}, {octaves.OCTAVES}": finding(0.1, 0.05, 0.15)}
    held |= {f"high {label}": finding(0.1) for label in octaves.LABELS}
    held |= {f"ratio {label}": finding(0.5) for label in (octaves.LOWRES, octaves.OCTAVES)}
    held |= {f"grid {label}": finding(0.7, 0.6, 0.8) for label in octaves.LABELS}
    return held | {"less low": finding(0.02, 0.01, 0.03)}


def observed(periods: Sequence[int] = ()) -> pd.DataFrame:
    """Rows of three seeds, and of grids with these periods under plain descent, one of 5 pixels with octaves."""
    rows = [("activation", seed, octaves.PLAIN, 1.0) for seed in range(3)]
    rows += [("grid period", 0, octaves.PLAIN, float(p)) for p in periods]
    rows.append(("grid period", 0, octaves.OCTAVES, 5.0))
    return pd.DataFrame(rows, columns=["measure", "seed", "recipe", "value"])


def test_blur_removes_the_grid_that_a_stride_of_two_leaves(tmp_path: Path) -> None:
    outcome = put(linear(2), tmp_path)
    periods = outcome.rows[outcome.rows["measure"] == "grid period"]
    assert set(periods.loc[periods["recipe"] == octaves.PLAIN, "value"]) == {2.0}
    assert value_of(outcome, f"grid {octaves.PLAIN}") == 1
    assert value_of(outcome, f"grid {octaves.LOWRES}") == 0
    assert value_of(outcome, "less") > 0.1
    assert outcome.verdict == "holds in part"  # all of the features are no minority
    assert "does not hold: the share is 100% [61%, 100%] with plain descent (n = 6 features)," in outcome.conclusion
    assert f"In all {len(periods)} images of plain descent with a grid, it repeats every 2 " in outcome.conclusion
    assert value_of(outcome, "less low") < 0, "blur at full size and then at smaller ones leaves less than octaves do"
    assert "That octaves give a higher resolution than down-sampling alone holds: they leave" in outcome.conclusion
    assert "(paired; n = 6 features of features, 2 seeds each)" in outcome.conclusion
    reached = outcome.rows[outcome.rows["measure"] == "activation"]
    wide = reached.pivot_table(index="feature", columns="recipe", values="value")  # means over seeds
    ratio = wide[octaves.OCTAVES] / wide[octaves.PLAIN]
    expected = ratio[ratio > 0].prod() ** (1 / (ratio > 0).sum())
    assert f"octaves reach {expected:.0%} [" in outcome.conclusion


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (-0.03, -0.01, "holds"),  # low resolution minus octaves: octaves keep more
        (0.01, 0.03, "does not hold"),
        (-0.01, 0.01, "is not decided"),
        (None, None, "is not decided"),
    ],
)
def test_octaves_are_compared_with_down_sampling(low: float | None, high: float | None, words: str) -> None:
    held = known() | {"less low": finding(0.0 if low is None else (low + high) / 2, low, high)}
    held |= {f"high {label}": finding(0.1 * k) for k, label in enumerate(octaves.LABELS)}
    verdict, text = octaves.judge(held, observed(), ["late"])
    assert f"That octaves give a higher resolution than down-sampling alone {words}: they leave" in text
    assert "leave 0.200 of the power at high frequencies and the low-resolution recipe 0.100, a difference" in text
    if words == "holds":
        assert "a difference of 0.020 [0.010, 0.030] (paired; n = 8 features of late, 3 seeds each)" in text
    assert "also clearer is not decided: this share cannot tell detail from noise" in text and "have 0.000." in text
    assert verdict == {"holds": "holds in part", "does not hold": "does not hold"}.get(words, "not decided")


def test_the_claim_holds_only_if_all_measured_parts_do() -> None:
    held = known() | {"less low": finding(-0.02, -0.03, -0.01), f"grid {octaves.PLAIN}": finding(0.25, 0.1, 0.4)}
    held |= {f"{octaves.PLAIN}, {octaves.OCTAVES}": finding(0.5, 0.4, 0.6)}
    held |= {f"{octaves.PLAIN}, {octaves.PLAIN}": finding(0.8, 0.7, 0.9), f"grid {octaves.OCTAVES}": finding(0.125)}
    assert octaves.judge(held, observed(), ["late"])[0] == "holds"
    for name, other in (
        ("less low", finding(0.02, 0.01, 0.03)),
        (f"{octaves.PLAIN}, {octaves.OCTAVES}", finding(0.39, 0.3, 0.5)),  # less than half of 0.8
        (f"grid {octaves.PLAIN}", finding(0.25, 0.1, 0.6)),
    ):
        assert octaves.judge(held | {name: other}, observed(), ["late"])[0] == "holds in part"


def test_agreement_is_a_share_of_that_of_two_seeds_and_activation_is_told() -> None:
    held = known() | {f"{octaves.PLAIN}, {octaves.OCTAVES}": finding(0.9, 0.8, 1.0)}
    held |= {f"{octaves.PLAIN}, {octaves.PLAIN}": finding(1.2, 1.1, 1.3)}
    held |= {f"ratio {octaves.OCTAVES}": finding(0.026, 0.021, 0.5), f"ratio {octaves.LOWRES}": finding(0.002)}
    text = octaves.judge(held, observed(), ["late"])[1]
    assert "agree by 0.90 more than those of different features (n = 8), which is 75% of what two seeds" in text
    assert "octaves reach 2.6% [2.1%, 50%] of plain descent's activation, and the low-resolution recipe 0.20%" in text


@pytest.mark.parametrize(
    ("across", "again", "expected"),
    [
        (finding(0.5, 0.4, 0.6), finding(0.8), True),
        (finding(0.5, -0.1, 1.1), finding(0.8), None),  # too few features
        (finding(0.39, 0.3, 0.5), finding(0.8), False),
        (finding(None), finding(0.8), None),
        (finding(0.5, 0.4, 0.6), finding(None), None),  # one seed
    ],
)
def test_patterns_are_compared_with_those_of_two_seeds(across: Finding, again: Finding, expected: bool | None) -> None:
    assert octaves.same_patterns(across, again) is expected


@pytest.mark.parametrize(
    ("periods", "expected"),
    [
        ([], ""),
        ([3], "In the one image of plain descent with a grid, it repeats every 3 pixels"),
        ([2, 2, 2], "In all 3 images of plain descent with a grid, it repeats every 2 pixels"),
        ([4, 2, 4, 8], "In 2 of 4 images of plain descent with a grid, it repeats every 4 pixels"),
    ],
)
def test_the_most_common_period_of_the_grids_is_told(periods: list[int], expected: str) -> None:
    text = octaves.describe_periods(observed(periods))
    assert text.strip().startswith(expected) and bool(text) == bool(periods)
    assert "5 pixels" not in text, "that of octaves"


def test_numbers_of_features_and_seeds_agree_with_their_nouns() -> None:
    held = known() | {"less low": replace(finding(0.02, 0.01, 0.03), count=1)}
    held |= {f"grid {label}": replace(finding(0.0, 0.0, 0.8), count=1) for label in octaves.LABELS}
    one = observed().query("seed == 0")
    text = octaves.judge(held, one, ["late"])[1]
    assert "n = 1 feature of late, 1 seed each)" in text and "with plain descent (n = 1 feature), and 0% with" in text
    assert text.endswith("the other reading, it is 0%."), "no sentence on the period of grids that are not there"
    none = {f"grid {label}": replace(finding(None), count=0) for label in octaves.LABELS}
    assert "the share is undefined with plain descent (n = 0 features)" in octaves.judge(held | none, one, ["late"])[1]


def test_a_stride_of_one_leaves_no_grid(tmp_path: Path) -> None:
    outcome = put(linear(1), tmp_path)
    assert value_of(outcome, f"grid {octaves.PLAIN}") == value_of(outcome, f"grid {octaves.OCTAVES}") == 0
    # a constant is added to white noise, of which 1 - pi / 16 lies above half the Nyquist frequency
    assert value_of(outcome, f"high {octaves.PLAIN}") == pytest.approx(1 - np.pi / 16, abs=0.03)
    assert value_of(outcome, f"high {octaves.OCTAVES}") < 0.1
    # in a linear network both recipes move along the same constant gradient
    assert value_of(outcome, f"{octaves.PLAIN}, {octaves.OCTAVES}") > 1
    assert value_of(outcome, f"{octaves.PLAIN}, {octaves.PLAIN}") > 1
    same = outcome.rows[outcome.rows["measure"] == "same"]
    assert same["value"].min() > 0.98


def test_no_caption_of_the_sheet_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    images, live = np.zeros((1, 3, 3, 8, 8)), np.array([[True, False, False]])
    made = ImageSet(("a:0", "a:1", "a:2"), images, images[0], np.ones((1, 3)), live)
    drawn: list[str] = []
    monkeypatch.setattr(octaves, "contact_sheet", lambda sheet: drawn.extend(sheet.captions))
    octaves.draw_sheet({layer: dict.fromkeys(octaves.LABELS, made) for layer in "abc"})
    assert set(drawn) == {*octaves.LABELS, "no gradient"} and len(drawn) == 27
    assert fit_text(drawn, 7 / 9, 7)[1] == drawn, "nine columns of seven inches"


@pytest.mark.parametrize(
    ("plain", "octave", "expected"),
    [
        ((0.2, 0.1, 0.4), 0.1, True),
        ((0.2, 0.1, 0.6), 0.1, None),  # few features: the interval spans a half
        ((0.67, 0.3, 0.9), 0.5, None),
        ((0.7, 0.52, 0.84), 0.2, False),
        ((0.2, 0.1, 0.4), 0.2, False),  # not fewer with octaves
        ((None, None, None), 0.2, None),
    ],
)
def test_few_features_do_not_decide_whether_a_minority_has_grids(
    plain: tuple[float | None, ...], octave: float, expected: bool | None
) -> None:
    assert octaves.minority_with_grids(finding(*plain), finding(octave)) is expected
    held = known() | {f"grid {octaves.PLAIN}": finding(*plain), f"grid {octaves.OCTAVES}": finding(octave)}
    verdicts = {True: "holds in part", None: "not decided", False: "does not hold"}
    assert octaves.judge(held, observed(), ["late"])[0] == verdicts[expected]


def test_one_seed_and_two_features_suffice(tmp_path: Path) -> None:
    context = context_of(octaves.STUDY, linear(2), ("features",), tmp_path, size=24, features=2, seeds=1)
    outcome = octaves.measure(context, 24, 3)
    again = next(f for f in outcome.findings if f.name == f"{octaves.PLAIN}, {octaves.PLAIN}")
    assert (again.value, again.count) == (None, 0)  # there is no other seed
    assert "That the patterns are those of plain descent is not decided" in outcome.conclusion
    assert "; how much two seeds of plain descent agree was not measured" in outcome.conclusion
    assert np.isfinite(outcome.rows["value"].to_numpy()).all()


def test_the_full_recipes_are_the_articles_sizes() -> None:
    chosen = octaves.make_recipes(None, None)
    assert chosen[octaves.OCTAVES].sizes == (299, 340, 380)
    assert chosen[octaves.LOWRES].sizes == ARTICLE_LOWRES.sizes == (299, 260, 224)
    assert (chosen[octaves.PLAIN].sizes, chosen[octaves.PLAIN].steps) == ((299,), 300)
    assert all(o.sigma == (0, 0) for o in chosen[octaves.PLAIN].octaves)
    assert {r.optimiser for r in chosen.values()} == {"rms"}
    reduced = octaves.make_recipes(96, 45)
    assert {r.size for r in reduced.values()} == {96} and {r.steps for r in reduced.values()} == {45}


def test_metrics_of_a_linear_network_agree(tmp_path: Path) -> None:
    context = context_of(metrics.STUDY, linear(1, 8, 5.0), ("features",), tmp_path, size=24, features=8, seeds=2)
    outcome = metrics.measure(context, 24, 6)
    # with C = 200 every neuron of L2 weighs 200 - z, which is all but the same: L1 again
    assert value_of(outcome, "image l2") > 0.9995
    assert value_of(outcome, "agreement l2") == pytest.approx(value_of(outcome, "ceiling l2"), abs=0.02)
    assert value_of(outcome, "ceiling l2") == pytest.approx(value_of(outcome, "agreement l1"))
    assert value_of(outcome, "compared l2") == 8
    # L2 with C at what was reached does not push what is there already
    correlations = [value_of(outcome, f"image {metrics.label_of_C(f)}") for f in metrics.FACTORS]
    assert correlations == sorted(correlations, reverse=True)
    assert correlations[0] > 0.99 > correlations[-1]
    assert [value_of(outcome, f"live {m}") for m in (metrics.L1, metrics.L2)] == [1, 1]
    high = outcome.rows[outcome.rows["measure"] == "high share"]
    wide = high.pivot_table(index="feature", columns="recipe", values="value")  # by hand: seeds first, then pairs
    assert value_of(outcome, "more linf") == pytest.approx((wide["linf"] - wide["l1"]).mean(), abs=1e-12)


def test_where_activations_are_high_a_larger_constant_is_taken(tmp_path: Path) -> None:
    """A bias of 50 in every feature: 200 is less than 4 a there, and 10 a is taken."""
    context = context_of(metrics.STUDY, linear(1, 4, 50.0), ("features",), tmp_path, size=16, features=4, seeds=1)
    outcome = metrics.measure(context, 16, 3)
    used, rows = value_of(outcome, "C"), outcome.rows
    reached = rows[(rows["measure"] == "activation") & (rows["recipe"] == "l1")]["value"].mean()
    assert reached > 50 and used == float(f"{10 * reached:.3g}")
    assert value_of(outcome, "C over a") == pytest.approx(10, abs=0.05)
    held = rows[rows["measure"] == "C"].set_index("recipe")["value"]
    assert set(held[list(metrics.OTHERS)]) == {used} and "l1" not in held.index
    assert held[metrics.label_of_C(3.0)] == pytest.approx(3 * reached, rel=0.01)
    assert f"C = {used:g} is 10 times the activation a" in outcome.conclusion and "C = 200" not in outcome.conclusion
    made = [p.name for p in (tmp_path / "metrics").iterdir()]
    assert any(f"-l2-{used}" in name for name in made) and any("-features-l1-" in name for name in made)


def test_the_usual_constant_stays_where_it_is_large_and_its_runs_are_found_again(tmp_path: Path) -> None:
    assert metrics.choose_constant(200.0, []) == metrics.choose_constant(200.0, [0.0, 19.9]) == 200
    assert metrics.choose_constant(200.0, [20.54, 1.0]) == 205 and metrics.choose_constant(200.0, [356.2]) == 3560
    context = context_of(metrics.STUDY, linear(1, 3, 5.0), ("features",), tmp_path, size=16, features=3, seeds=1)
    base = ARTICLE_NORMALISED.resolved(299, 16, 3)
    _, C = metrics.maximise_layers(context, base)
    recipe = base.resolved(299, None, None, metric="linf").identity()
    units, name = context.draw_units("features"), context.network.name
    assert C == 200
    assert context.folder("features", "linf", units=units, recipe=recipe, seeds=1, network=name).is_dir()


def test_the_deficit_from_the_ceiling_is_paired_by_feature() -> None:
    values = {"same": (0.8, 0.5, 0.3), "ceiling same": (0.9, 0.6, 0.6), "live": (1.0, 1.0, 1.0)}
    values |= {"different": (0.0, 0.1, 0.0), "ceiling different": (0.0, 0.0, 0.1)}
    rows = pd.DataFrame([(m, f"{k}", v) for m, row in values.items() for k, v in enumerate(row)])
    rows = rows.set_axis(["measure", "feature", "value"], axis=1).assign(layer="a", recipe="linf", seed=0)
    rows["against"] = np.where(rows["measure"] == "live", "", "l1")
    short = next(f for f in metrics._agreement_findings(rows, "linf") if f.name == "short linf")
    lacking = np.array([-0.1, -0.2, -0.2])
    reach = 4.302653 * lacking.std(ddof=1) / 3**0.5
    assert (short.value, short.low) == (pytest.approx(lacking.mean()), pytest.approx(lacking.mean() - reach, abs=1e-6))


def test_image_correlations_are_numpys(tmp_path: Path) -> None:
    context = context_of(metrics.STUDY, linear(1, bias=5.0), ("features",), tmp_path, size=16, features=3, seeds=2)
    sets = metrics.maximise_layers(context, ARTICLE_NORMALISED.resolved(299, 16, 3))[0]["features"]
    one, two = sets["linf"], sets["l1"]
    expected = [
        [np.corrcoef(one.changes[s, k].ravel(), two.changes[s, k].ravel())[0, 1] for k in range(3)] for s in range(2)
    ]
    np.testing.assert_allclose(metrics.change_correlations(one, two), expected, atol=1e-6)
    assert metrics.change_correlations(sets[metrics.label_of_C(1.0)], two).shape == (1, 3)


@pytest.mark.parametrize(
    ("l2", "linf", "more_l2", "more_linf", "verdict"),
    [
        ((0.4, 0.5), (0.1, 0.3), (0.01, 0.02), (0.03, 0.04), "holds"),
        ((0.4, 0.5), (0.1, 0.3), (-0.01, 0.02), (0.03, 0.04), "holds in part"),  # L2's noise is undecided
        ((0.4, 0.5), (-0.1, 0.3), (0.01, 0.02), (0.03, 0.04), "holds in part"),  # Linf's patterns are undecided
        ((0.4, 0.5), (-0.3, -0.1), (-0.03, -0.02), (0.03, 0.04), "does not hold"),
        ((0.4, 0.5), (None, None), (-0.03, 0.02), (None, None), "not decided"),
    ],
)
def test_the_verdict_on_metrics_follows_its_rules(
    l2: tuple, linf: tuple, more_l2: tuple, more_linf: tuple, verdict: str
) -> None:
    held = {f"half {m}": finding(v[0], *v) for m, v in (("l2", l2), ("linf", linf))}
    held |= {"agreement l2": finding(0.9), "agreement linf": finding(0.4), "agreement linf-elementwise": finding(None)}
    held |= {f"{what} {m}": finding(0.75) for what in ("ceiling", "live") for m in metrics.OTHERS}
    held |= {"half linf-elementwise": finding(None), "high l1": finding(0.05)}
    held |= {f"more {m}": finding(v[0], *v) for m, v in (("l2", more_l2), ("linf", more_linf))}
    held |= {"more linf-elementwise": finding(0.1, 0.0, 0.2), "C over a": finding(20.0)}
    lacking = dict(zip(metrics.FACTORS, ((0, 0), (-0.04, 0.01), (-0.09, -0.03), (-0.3, -0.1)), strict=True))
    for what in ("short", "image short"):
        held |= {f"{what} {m}": finding(-0.15, -0.2, -0.1) for m in ("linf", "linf-elementwise")}
        held |= {f"{what} l2": finding(0, -0.04 if what == "short" else -0.08, 0.01)}
        held |= {f"{what} {metrics.label_of_C(f)}": finding(low, low, high) for f, (low, high) in lacking.items()}
    held[metrics.FAR] = finding(0.73)
    found_, conclusion = metrics.judge(held)
    assert found_ == verdict
    assert "correlate with l1's by only 0.73 in pixels" in conclusion
    assert "two seeds of l1 down to C = 10 a and no longer at 1 a" in conclusion and "200 is 20 times the" in conclusion


@pytest.mark.parametrize(
    ("agreement", "ceiling", "half", "expected"),
    [
        (0.40, 0.75, (0.025, 0.01, 0.04), "by 53% of the ceiling, 0.75: more than half of it (+0.025 [+0.010, +0.040]"),
        (0.30, 0.75, (-0.075, -0.1, -0.05), "by 40% of the ceiling, 0.75: less than half of it (-0.075 [-0.100, -0.0"),
        (
            0.36,
            0.72,
            (0.0, -0.1, 0.1),
            "by 50% of the ceiling, 0.72: not clearly more or less than half of it (+0.000 ",
        ),
        (
            0.36,
            -0.2,
            (0.46, 0.1, 0.8),
            "by 0.36, with a ceiling of -0.20: more than half of it (+0.460 [+0.100, +0.800]",
        ),
        (0.36, None, (None, None, None), "by 0.36; the ceiling takes two seeds."),
    ],
)
def test_agreement_is_stated_as_a_share_of_its_ceiling(
    agreement: float, ceiling: float | None, half: tuple, expected: str
) -> None:
    held = {"agreement l2": finding(agreement), "ceiling l2": finding(ceiling), "half l2": finding(*half)}
    phrase = metrics.agreement_phrase(held | {"live l2": finding(0.75)}, "l2")
    assert phrase.startswith("l2 moves 75% of the features and agrees ") and expected in phrase
    none = metrics.agreement_phrase(held | {"agreement l2": finding(None), "live l2": finding(0.25)}, "l2")
    assert none == "l2 moves 25% of the features: too few to compare, for which it takes 8 of one layer and seed."


def test_helpers_average_as_they_say() -> None:
    values, live = np.array([[1.0, 2.0], [3.0, np.nan]]), np.array([[True, True], [True, True]])
    assert mean_over_seeds(values, live).tolist() == [2.0, 2.0]
    assert np.isnan(mean_over_seeds(values, ~live)).all()
    assert ratio_finding("", pd.Series([2.0, 8.0, -1.0]), "").value == pytest.approx(4)
    assert ratio_finding("", pd.Series([], dtype=float), "").value is None
    assert share_or_undefined("", pd.Series([True, False, True, True]), "").value == 0.75
    welch = difference_finding("", pd.Series([3.0, 5.0, 4.0]), pd.Series([1.0, 1.5]), "")
    assert welch.value == pytest.approx(2.75)
    assert welch.low is not None and welch.low < 2.75 < (welch.high or 0)
    assert difference_finding("", pd.Series([3.0]), pd.Series([1.0, 1.5]), "").value is None
