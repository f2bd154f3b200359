"""The studies of rounding: two ways to take a gradient, and bits."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import xarray as xr
from torch import nn

from analyses import gradient_sum, reproducibility
from analyses.gradient_sum import PairDivergence
from analyses.reproducibility import BitComparison
from featmap.runs.folder_layout import LIVE_CODES
from tests.helpers import networks, tiny
from tests.helpers.studying import context_of, value_of

pytestmark = pytest.mark.usefixtures("one_thread")


def colours() -> nn.Module:
    """Layers `first` and `second` of 1 x 1 convolutions: every gradient is one colour, at every pixel, always."""
    first, second = nn.Conv2d(3, 4, 1, bias=False), nn.Conv2d(4, 4, 1, bias=False)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for layer in (first, second):
            layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator))
    return nn.Sequential(OrderedDict(first=first, second=second)).eval()


# ---------------------------------------------------------------- gradient_sum


def test_on_a_linear_network_both_ways_stay_one_rounding_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients there do not depend on the image, so nothing amplifies a rounding: blur makes it smaller."""
    monkeypatch.setattr(gradient_sum, "STEPS", 30)
    context = context_of(gradient_sum.STUDY, colours(), ("first", "second"), tmp_path, features=4, seeds=2)
    outcome = gradient_sum.measure(context)
    assert outcome.verdict == "holds"
    assert value_of(outcome, "ways") < 1e-5 and value_of(outcome, "rounding") < 1e-5
    assert value_of(outcome, "seeds") > 100 * value_of(outcome, "ways")
    assert value_of(outcome, "growth") < 1.2
    # a linear network answers to the sum of two layers' images alike, whatever the rounding and the way
    assert value_of(outcome, "same") == pytest.approx(value_of(outcome, "same rounding"), abs=1e-6)
    assert abs(value_of(outcome, "lacking")) < 1e-6 and value_of(outcome, "same seeds") <= value_of(outcome, "same")
    rows = outcome.rows
    assert set(rows["difference"]) == {"ways", "rounding", "seeds"}
    one = rows[(rows.pair == rows.pair[0]) & (rows["difference"] == "rounding")]
    assert list(one.step) == [*range(0, 29, 4), 30]
    # one unit in the last place of noise about 0.5: half of a float's epsilon there, root mean square
    assert one.rms.iloc[0] == pytest.approx(2.0**-24 * 0.75, rel=0.25)


def test_two_ways_are_judged_by_their_intervals() -> None:
    def of(ways: float, rounding: float, spread: float = 1.0, lacking: float = np.nan) -> list[PairDivergence]:
        factors = (1.0, 1.1 * spread, 0.9 / spread, 1.05 * spread, 0.95 / spread, 1.0)
        return [
            PairDivergence(
                f"p{k}", np.array([0, w * ways]), np.array([1e-8, rounding]), 0.2, 0.9, 0.0, 5.0, 0.9 + w * lacking
            )
            for k, w in enumerate(factors)
        ]

    assert gradient_sum.judge(of(1e-4, 1e-7)) == "holds", "nobody sees it"
    assert gradient_sum.judge(of(0.05, 0.06)) == "holds in part", "no more than rounding does"
    for rounding in (0.02, 1e-4):
        assert gradient_sum.judge(of(0.05, rounding, 1.0, 0.2)) == "does not hold", "neither images nor profiles"
        assert gradient_sum.judge(of(0.05, rounding, 1.0, 0.01)) == "holds in part", "profiles do"
        assert gradient_sum.judge(of(0.05, rounding, 1.0, 0.05)) == "not decided", "profiles are about the margin"
        assert gradient_sum.judge(of(0.05, rounding)) == "not decided", "profiles are undefined"
    assert gradient_sum.judge(of(0.05, 0.042, 1.0, 0.01)) == "holds in part", "images undecided, profiles do"
    assert gradient_sum.judge(of(0.05, 0.06, 1.0, 0.2)) == "holds in part", "images do"
    assert gradient_sum.judge(of(0.05, 0.05, 1.2)) == "not decided", "wide intervals decide nothing"
    assert gradient_sum.judge(of(0.05, 0.042)) == "not decided", "about the margin"
    assert gradient_sum.judge(of(0.05, 0.06)[:1]) == "not decided"
    assert gradient_sum.judge([]) == "not decided"
    assert gradient_sum.judge(of(np.nan, 1.0)) == "not decided"


def test_identical_and_unrisen_pairs_are_counted() -> None:
    ways = [[0.0, w, 0.03] for w in (0.0, 1e-8, 1e-6)]
    given = [
        PairDivergence(f"p{k}", np.array(w), np.array([1e-8, 1e-8, 0.04]), 0.2, 0.9, 0.0, 50.0, 0.91 + k / 100, 0.6)
        for k, w in enumerate(ways)
    ]
    outcome = gradient_sum.build_outcome(np.array([0, 4, 8]), given, 5)
    assert value_of(outcome, "bits") == pytest.approx(1 / 3)
    first, ratio = (next(f for f in outcome.findings if f.name == n) for n in ("first", "ratio"))
    assert (first.value, first.count) == (pytest.approx(1e-7), 2)
    assert (ratio.value, ratio.count) == (pytest.approx(0.75), 3)
    lacking = next(f for f in outcome.findings if f.name == "lacking")
    assert (lacking.value, lacking.low) == (
        pytest.approx(-0.02),
        pytest.approx(-0.02 - 4.3027 * 0.01 / 3**0.5, abs=1e-5),
    )
    last = outcome.rows[outcome.rows.step == 8].pivot(index="pair", columns="difference", values="likeness")
    assert lacking.value == pytest.approx((last["ways"] - last["rounding"]).mean())
    conclusion = outcome.conclusion
    assert (
        conclusion.startswith("That the two ways are nearly identical does not hold: over 3 of 5 pairs")
        and "grows 50.0 [50.0, 50.0] times per step while it grows" in conclusion
    )
    assert (
        "than after one rounding of the start is not decided: by the median of 3 pairs, 0.75 times as much "
        "(margin 1.25; 6 pairs are needed for an interval)" in conclusion
    )
    assert "as after one rounding holds: r 0.900 compared with 0.920" in conclusion and "two seeds: 0.600" in conclusion


def pairs_of(ends: list[tuple[float, float]]) -> list[PairDivergence]:
    """Pairs a0 + b0, a1 + b1, ... whose two ways, and starts one rounding apart, differ so at the end."""
    return [
        PairDivergence(f"a{k} + b{k}", np.array([0, ways]), np.array([4e-8, rounding]), 0.1, 0.9, 0.0, 5.0, 0.9, 0.6)
        for k, (ways, rounding) in enumerate(ends)
    ]


def test_pairs_of_which_one_difference_is_nothing_move_the_median_by_one_rank() -> None:
    alike = [(0.04, 0.05), (0.045, 0.05), (0.05, 0.05), (0.055, 0.05), (0.04, 0.05), (0.05, 0.05), (0.045, 0.05)]
    known = {f.name: f for f in gradient_sum.ratio_findings(pairs_of(alike))}
    # of seven values, the exact interval of the median at 95 % ends at the smallest and the largest
    assert (known["ratio"].value, known["ratio"].low, known["ratio"].high) == pytest.approx((0.9, 0.8, 1.1))
    odd = pairs_of([*alike, (0.04, 1e-8), (0.0, 0.05), (0.0, 0.0), *alike])
    found = {f.name: f for f in gradient_sum.ratio_findings(odd)}
    assert found["ratio"].value == pytest.approx(0.9) and found["ratio"].count == 16
    assert (found["ratio"].low, found["ratio"].high) == pytest.approx((0.8, 1.0)), "ranks 4 and 13 of 16"
    assert gradient_sum.within_rounding(odd)[0] is True
    assert [found[name].value for name in ("still", "equal", "no ratio")] == [2, 2, 1]
    assert found["still"].words.endswith("(a7 + b7, a9 + b9)") and found["no ratio"].words.endswith("(a9 + b9)")
    text = gradient_sum.ratio_sentences(odd, True)
    assert "by the median of 16 pairs, 0.90 [0.80, 1.00] times as much (margin 1.25)" in text
    assert "In 2 of 17 the rounding did not grow (a7 + b7, a9 + b9)" in text
    assert "In 2 of 17 the two ways gave the same images, to the bit (a8 + b8, a9 + b9)" in text
    growth = next(f for f in gradient_sum.collect_findings(np.array([0, 4]), odd) if f.name == "growth")
    assert growth.count == 15 and growth.words.endswith("; without 2 pairs in which it did not")
    few = pairs_of([(0.03, 1e-8), (0.04, 0.05), (0.03, 2e-8)])
    assert gradient_sum.within_rounding(few)[0] is None and "1.5e+06 times as much" in gradient_sum.ratio_sentences(
        few, None
    )
    assert "made a difference" not in text and "In no pair" in gradient_sum.ratio_sentences(pairs_of([(0, 0)]), None)


def test_pairs_take_one_feature_of_each_layer_and_each_once(tmp_path: Path) -> None:
    context = context_of(gradient_sum.STUDY, networks.small_inception(), ("mixed", "narrow"), tmp_path, features=5)
    pairs = [p.split(" + ") for p in gradient_sum.draw_pairs(context)]
    assert len(pairs) == 5
    assert sorted(a for a, _ in pairs) == sorted(context.draw_units("mixed"))
    assert sorted(b for _, b in pairs) == sorted(context.draw_units("narrow"))


def test_dead_pairs_are_not_decided(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gradient_sum, "STEPS", 5)
    outcome = gradient_sum.measure(context_of(gradient_sum.STUDY, tiny.asleep(), ("relu", "relu"), tmp_path))
    assert outcome.verdict == "not decided" and [f.name for f in outcome.findings] == ["silent"]
    assert value_of(outcome, "silent") == 3
    assert outcome.conclusion.startswith("In none of 3 pairs did the sum rise and both features respond. Left out,")


def half_silent() -> nn.Module:
    """`colours`, with ReLUs behind the second layer, of which channel 2 never responds."""
    network = colours()
    with torch.no_grad():
        bias = nn.Parameter(torch.tensor([9.0, 9.0, -99.0, 9.0]))
        network.second.bias = bias
    return nn.Sequential(OrderedDict(first=network.first, mixed=network.second, second=nn.ReLU())).eval()


def test_pairs_with_a_silent_feature_are_left_out_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sum has the gradient of the other feature alone, so that the two ways are the same to the bit."""
    monkeypatch.setattr(gradient_sum, "STEPS", 8)
    context = context_of(gradient_sum.STUDY, half_silent(), ("first", "second"), tmp_path, features=4, seeds=2)
    (dead,) = (pair for pair in gradient_sum.draw_pairs(context) if pair.endswith("second:2"))
    outcome = gradient_sum.measure(context)
    assert value_of(outcome, "silent") == 1
    assert ": over 3 of 4 pairs" in outcome.conclusion
    assert outcome.conclusion.endswith(f"so that the sum has the gradient of the other alone: {dead}.")
    rows = outcome.rows
    assert list(rows.loc[rows["difference"] == gradient_sum.SILENT, "pair"]) == [dead]
    assert dead not in set(rows.loc[rows["difference"] != gradient_sum.SILENT, "pair"])
    settings = {"features": 4}
    stored = SimpleNamespace(rows=rows, settings=settings, findings={f.name: f for f in outcome.findings})
    assert gradient_sum.restate(stored) == (outcome.verdict, outcome.conclusion)
    # kept in, it would have counted as a pair whose two ways differ by nothing
    with monkeypatch.context() as patch:
        patch.setattr(gradient_sum, "silent_pairs", lambda *_: [])
        counted = gradient_sum.measure(context)
    equal, all_equal = (next(f for f in o.findings if f.name == "equal") for o in (outcome, counted))
    assert all_equal.value == equal.value + 1 and dead in all_equal.words and dead not in equal.words


# ---------------------------------------------------------------- reproducibility


def random_run(count: int, seed: int) -> xr.Dataset:
    """A finished run of `count` images of 2 x 2 pixels, two frames of each, and responses of 5 features."""
    rng = np.random.default_rng(seed)
    return xr.Dataset(
        {
            "status": (("seed", "image"), np.full((1, count), LIVE_CODES[0])),
            "frames": (("seed", "image", "frame", "channel", "y", "x"), rng.random((1, count, 2, 3, 2, 2))),
            "images": (("seed", "image", "channel", "y", "x"), rng.random((1, count, 3, 2, 2))),
            "A": (("seed", "image", "response"), rng.random((1, count, 5))),
        },
        {"image": [f"layer:{k}" for k in range(count)], "frame": [0, 4]},
    )


def test_profiles_of_few_images_are_not_compared() -> None:
    """Centred over two images they are mirror images of each other: correlations of 1 and -1, whatever was measured."""
    for count, defined in ((2, False), (reproducibility.FEWEST - 1, False), (reproducibility.FEWEST, True)):
        plain, raised, other = (random_run(count, seed) for seed in range(3))
        found = reproducibility.measure_divergence("layer", [(plain, raised, other, None)])
        assert [np.isfinite([d.same, d.different]).all() for d in found] == [defined] * count
    one, two = ((a := run["A"].values[0]) - a.mean(0) for run in (plain, raised))
    expected = np.corrcoef((one / one.std(0))[3], (two / two.std(0))[3])[0, 1]
    assert found[3].same == pytest.approx(expected)


def test_a_feature_that_is_silent_with_one_seed_leaves_its_pair_out() -> None:
    def way(first: list[float], second: list[float]) -> xr.Dataset:
        """Responses of two features in three frames of the one image, `a:0 + b:0`."""
        values = np.array([first, second]).T[None, None]
        return xr.Dataset({"frame_A": (("seed", "image", "frame", "response"), values)}, {"response": ["a:0", "b:0"]})

    awake, late, silent = way([1, 2, 3], [0, 1, 2]), way([1, 2, 3], [0, 0, 1]), way([1, 2, 3], [0, 0, 0])
    pairs = ["a:0 + b:0"]
    assert gradient_sum.silent_pairs(pairs, [(awake, late, awake), (late, awake, awake)]) == []
    assert gradient_sum.silent_pairs(pairs, [(silent, late, silent)]) == [], "it responds in one of the two ways"
    assert gradient_sum.silent_pairs(pairs, [(awake, awake, awake), (silent, silent, awake)]) == pairs


def few_steps(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    monkeypatch.setattr(reproducibility, "STEPS", steps)
    monkeypatch.setattr(reproducibility, "BITS_STEPS", 5)


@pytest.mark.slow
def test_a_linear_network_amplifies_no_rounding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few_steps(monkeypatch, 20)
    context = context_of(reproducibility.STUDY, colours(), ("first", "second"), tmp_path, features=3)
    outcome = reproducibility.measure(context)
    for name in ("process", "alone", "order"):
        assert value_of(outcome, name) == 1.0
    assert outcome.verdict == "holds in part" and "It does not become visible" in outcome.conclusion
    for layer in ("first", "second"):
        assert value_of(outcome, f"gap:{layer}") < 1e-5 < value_of(outcome, f"seeds:{layer}")
        assert value_of(outcome, f"visible:{layer}") == 0
    assert torch.get_num_threads() == 1, "as before"
    made = {p.parent.parent.name.rpartition("-")[0].partition("-")[2] for p in tmp_path.rglob("units/s*-000000-*.json")}
    assert {"process-1-threads", "alone-1-threads", "bits-1-threads", "bits-2-threads"} <= made


def test_a_steep_ripple_makes_one_rounding_visible(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few_steps(monkeypatch, 60)
    monkeypatch.setattr(
        reproducibility, "maximise_in_process", lambda c, units, k, s: c.maximise(units, "process", **s)
    )
    context = context_of(reproducibility.STUDY, Unstable().eval(), ("features",), tmp_path, features=5)
    outcome = reproducibility.measure(context)
    assert value_of(outcome, "gap:features") > 0.02
    assert value_of(outcome, "growth:features") > 1.5
    assert next(f for f in outcome.findings if f.name == "alone").count == 5
    assert (
        "5 of 5 when requested alone" in outcome.conclusion
        and "is enough to change the image visibly" in outcome.conclusion
    )
    assert outcome.verdict == "holds in part", "another machine was not measured"
    single = outcome.rows[(outcome.rows.part == "pixel")].value
    assert f"Raising a single pixel so changed {(single > 0).sum()} of 5 images" in outcome.conclusion
    assert outcome.conclusion.endswith("Another machine, such as the claim's Colab, was not measured.")


class Unstable(nn.Module):
    """Features that rise with a colour and with a fine ripple of it, whose slope is steep and of either sign."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Conv2d(3, 6, 1, bias=False)
        with torch.no_grad():
            self.features.weight.copy_(torch.rand(6, 3, 1, 1, generator=torch.Generator().manual_seed(1)) + 0.2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.features(torch.sin(400 * x) + x)


def test_the_claim_fails_where_bits_do_not_repeat() -> None:
    def checks(same: int = 8, threads: int = 8) -> list[BitComparison]:
        return [BitComparison(n, n, same, 8, 0.0) for n in ("process", "alone", "order")] + [
            BitComparison("threads", "", threads, 8, 0.0)
        ]

    def partings(gap: float) -> list[reproducibility.FeatureDivergence]:
        return [
            reproducibility.FeatureDivergence(f"a:{k}", "a", np.array([1e-8, gap * f]), 0.0, 0.2, 1.0, 0.0)
            for k, f in enumerate((1, 1.2, 0.9))
        ]

    assert reproducibility.judge(checks(), partings(0.1)) == "holds in part", "of one machine"
    assert reproducibility.judge(checks(threads=0), partings(0.1)) == "holds in part", "threads may change bits"
    assert reproducibility.rounding_effect(partings(0.1)) == "is enough to change the image visibly"
    assert reproducibility.rounding_effect(partings(1e-3)) == "does not become visible"
    assert reproducibility.rounding_effect(partings(4e-3)) == "is not shown to become visible"
    assert reproducibility.judge(checks(same=7), partings(0.1)) == "does not hold"
    assert reproducibility.judge(checks(), []) == "not decided"
    text = reproducibility.write_conclusion(checks(threads=2), partings(0.1), np.array([0, 8]))
    assert "6 of 8 images changed with the number of threads, which does not count here" in text
    assert "which does not count" not in reproducibility.write_conclusion(checks(), partings(0.1), np.array([0, 8]))


def test_raising_by_one_rounding() -> None:
    image = np.random.default_rng(0).normal(0.5, 0.1, (3, 8, 8)).astype(np.float32)
    raised, single = reproducibility.raise_all(image), reproducibility.raise_one(image)
    assert (raised > image).all() and (
        (raised.view(np.int32) - image.view(np.int32)) == np.where(image > 0, 1, -1)
    ).all()
    changed = np.argwhere(single != image)
    assert changed.tolist() == [[0, 4, 4]] and single[0, 4, 4] == raised[0, 4, 4]
