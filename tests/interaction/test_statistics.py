"""Networks whose units' interaction is known, from the descents to the statistics."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.ndimage import correlate1d
from torch import nn

import featmap
from featmap.interaction import statistics
from featmap.interaction.job import JointJob
from featmap.interaction.kinds import summarise
from featmap.interaction.statistics import CANCELLED, DEAD_PARTNER, NOT_FINITE, OK
from featmap.network.loading import load
from featmap.network.unit import Unit
from featmap.optimize.recipe import INTERACT, RECIPES, Octave, Recipe
from tests.helpers import couples, networks, tiny
from tests.helpers.settings import options
from tests.interaction.test_job import carried_out, job_of

pytestmark = pytest.mark.usefixtures("threads")

LINEAR = 1e-4
SETTINGS: dict[str, Any] = {"size": 16, "steps": 12, "rows": 4}
APART: dict[str, Any] = {"size": 32, "steps": 12, "rows": 4}


@pytest.fixture
def compute(tmp_path: Path) -> Any:
    """A function that computes the table of statistics of a group, without its report."""

    def run(units: Sequence[str], module: nn.Module, **changes: Any) -> pd.DataFrame:
        job = job_of(units, module, **(SETTINGS | changes))
        return carried_out(job, tmp_path / str(len(list(tmp_path.iterdir())))).table()

    return run


def assert_linear(table: pd.DataFrame) -> None:
    """A table without interaction: nonlinearities within 1e-4, second differences nothing but rounding."""
    assert (table["status"] == OK).all()
    assert (table[["response_nonlinearity", "image_nonlinearity"]].to_numpy(dtype=float) <= LINEAR).all()
    mixed = table.filter(like="mixture_nonlinearity").to_numpy(dtype=float)
    assert mixed.shape[1] == 3
    assert not (mixed > LINEAR).any()  # undefined where the solo images cancel
    assert (table["second_difference"].to_numpy(dtype=float) < 1e-5).all()
    assert (table["second_difference_at"] == "").all()
    for c in ("a", "b"):
        assert (table[f"self_saturation_{c}"].to_numpy(dtype=float) < 1e-5).all()


# ---------------------------------------------------------------- a linear network


def gradient(network: featmap.Network, name: str, size: int) -> np.ndarray:
    """The gradient of the mean over a unit's neurons, in float64: in a linear network one for all images."""
    unit = Unit.parse(name)
    channels, mask = unit.mask(network.layer(unit.layer, size).shape)
    x = torch.zeros(1, 3, size, size, dtype=torch.float64, requires_grad=True)
    out: Any = network.normalise(x)
    for layer, child in network.module.double().named_children():
        out = child(out)
        if layer == unit.layer:
            break
    values = out[0, channels]
    (values.mean() if mask is None else values[torch.from_numpy(mask)].mean()).backward()
    network.module.float()
    assert x.grad is not None
    return x.grad[0].numpy()


def descended(direction: np.ndarray, recipe: Recipe) -> np.ndarray:
    """Image difference d if the gradient is `direction` at every step: add it over its RMS, blur, and again."""
    (octave,) = recipe.octaves
    d, step = np.zeros_like(direction), direction / math.sqrt(np.mean(direction**2))
    for i in range(octave.steps):
        rate, sigma = (e[0] + (e[1] - e[0]) * i / octave.steps for e in (octave.rate, octave.sigma))
        side = math.exp(-0.5 / sigma**2)
        taps = np.array([side, 1, side]) / (1 + 2 * side)
        d = correlate1d(correlate1d(d + rate * step, taps, axis=1, mode="mirror"), taps, axis=2, mode="mirror")
    return d


@pytest.mark.parametrize(
    "units",
    [
        ["conv3:0", "conv3:1"],
        ["conv3:0", "conv2:4"],
        ["conv3:1", "conv2:4", "conv1:2"],
        ["conv3:0:3:3", "conv3:1:..7"],
        ["conv3:2", "conv2:1:0:0+2:5:5"],
        ["conv3:all", "conv2:1:4"],
    ],
    ids=" ".join,
)
def test_a_linear_network_has_no_interaction_and_known_retention(units: list[str], compute: Any) -> None:
    """Every d is M g / rms(g) with one linear M (steps and blurs), so d_ab lies in the cone of the parts' d.

    With u(d) = g_u . d, alpha_u = u(d_u) and w = 1 / alpha, g_ab = sum w_u g_u: retention is u(d_ab) / alpha_u,
    cross-talk u(d_v) / alpha_u, and the gain over the blends sum_u t_u d_u a maximum over the ends of a line.
    """
    table = compute(units, networks.linear_network())
    assert_linear(table)
    network = load(networks.linear_network())
    recipe = INTERACT.resolved(16, size=16, steps=12)
    g = [gradient(network, u, 16) for u in units]
    d = [descended(one, recipe) for one in g]
    alpha = [float((one * two).sum()) for one, two in zip(g, d, strict=True)]
    together = descended(sum(one / a for one, a in zip(g, alpha, strict=True)), recipe)
    retention = [float((one * together).sum()) / a for one, a in zip(g, alpha, strict=True)]
    cosines = []
    for i, c in enumerate("abc"[: len(units)]):
        np.testing.assert_allclose(table[f"solo_{c}"], alpha[i], rtol=1e-4)
        np.testing.assert_allclose(table[f"retention_{c}"], retention[i], rtol=1e-4, atol=1e-5)
        for j, other in enumerate("abc"[: len(units)]):
            if j != i:
                talk = float((g[i] * d[j]).sum()) / alpha[i]
                np.testing.assert_allclose(table[f"crosstalk_{c}_on_{other}"], talk, rtol=1e-3, atol=1e-4)
            if j < i:
                cosines.append((g[i] * g[j]).sum() / np.linalg.norm(g[i]) / np.linalg.norm(g[j]))
    np.testing.assert_allclose(table["gradient_agreement"], np.mean(cosines), atol=1e-4)
    ends = [sum((one * two).sum() / a for one, a in zip(g, alpha, strict=True)) for two in d]
    np.testing.assert_allclose(table["joint_gain"], (sum(retention) - max(ends)) / len(units), rtol=1e-3, atol=1e-4)


def test_a_linear_network_under_the_default_settings(tmp_path: Path) -> None:
    """Nothing set but the size: 60 steps, 16 rows, 5 seeds."""
    result = featmap.interact(
        ["conv3:0", "conv3:1"], networks.linear_network(), **options("interact", size=16, out=tmp_path / "run")
    )
    assert len(result.statistics) == 5
    assert_linear(result.statistics)
    assert not result.notes
    assert result.summary.loc[0, "p"] == 1 and "not above its floor" in result.sentences[0]


@pytest.mark.parametrize(
    ("change", "least"), [({"optimiser": "adam"}, 0.1), ({"clamp": "every"}, 0.05), ({"clamp": "end"}, 0.05)]
)
def test_adam_or_a_clamp_make_a_linear_network_look_nonlinear(
    change: dict[str, Any], least: float, compute: Any
) -> None:
    """Why they are not the default of `interact`; the report says so where they are asked for."""
    table = compute(["conv3:0", "conv3:1"], networks.linear_network(), steps=40, **change)
    assert (table["image_nonlinearity"] > least).all()
    assert (table["response_nonlinearity"] > 10 * LINEAR).all()
    assert not replace(INTERACT.resolved(16), **change).linear


def octaves(optimiser: Any, *sizes: float | None) -> Recipe:
    return replace(
        INTERACT, optimiser=optimiser, octaves=tuple(Octave(6, (0.05, 0.03), (0.8, 0.4), size) for size in sizes)
    )


@pytest.mark.parametrize(
    ("recipe", "is_linear"),
    [
        (replace(INTERACT, jitter=2), True),
        (octaves("gradient", 0.5, None), True),
        (octaves("rms", None, None), True),
        (octaves("rms", 0.5, None), False),
        (RECIPES["article"], True),
        (RECIPES["article-normalised"], False),
        (RECIPES["pixels"], False),
        (replace(INTERACT, parameterisation="fourier"), False),
    ],
    ids=lambda v: getattr(v, "name", v),
)
def test_linear_steps_show_no_interaction(recipe: Recipe, is_linear: bool, compute: Any) -> None:
    """A gradient over its RMS changes its length from size to size, of two units not alike."""
    changes = {} if recipe.name.startswith("article") else {"steps": 12}
    if recipe.name.startswith("article"):
        small = tuple(replace(o, size=s, steps=4) for o, s in zip(recipe.octaves, (12, 14, 16), strict=True))
        recipe, changes = replace(recipe, octaves=small), {"steps": 12}
    unit = "conv3:0" if recipe.jitter else "conv3:0:1:1"  # the image moves on under a single neuron
    table = compute([unit, "conv3:1"], networks.linear_network(), recipe=recipe, **changes)
    assert ((table["response_nonlinearity"] <= LINEAR) & (table["image_nonlinearity"] <= LINEAR)).all() == is_linear
    assert recipe.resolved(16, size=16).linear == is_linear


# ---------------------------------------------------------------- two features that read disjoint parts


@pytest.mark.parametrize(("module", "scale"), [(couples.halves, 1.0), (couples.unequal, 0.5)])
def test_disjoint_linear_features_share_the_step(module: Any, scale: float, compute: Any) -> None:
    """Without interaction; but under `interact` each keeps 1/sqrt(2), not 1.

    A step has one RMS over the whole image, alone and together. With z_u = g_u . d, d_u = M g_u / rms(g_u) and
    disjoint g of length s_u, alpha_u is proportional to s_u, so the weights 1 / alpha make both gradients equally
    long whatever their scales, the joint one sqrt(2) times that, and each part moves 1/sqrt(2) as far as alone.
    Their sum is sqrt(2) where a blend has at most 1: the gain is (sqrt(2) - 1) / 2 although all is linear.
    """
    table = compute(["out:0", "out:1"], module(), **APART)
    assert_linear(table)
    assert (table["territory_divided"] == 1).all()
    lengths = couples.COLOURS.norm(dim=1)
    np.testing.assert_allclose(table["solo_b"] / table["solo_a"], scale * float(lengths[1] / lengths[0]), rtol=1e-4)
    for c in "ab":
        np.testing.assert_allclose(table[f"retention_{c}"], 1 / math.sqrt(2), rtol=1e-4)
    np.testing.assert_allclose(table["crosstalk_a_on_b"], 0, atol=1e-6)
    np.testing.assert_allclose(table["gradient_agreement"], 0, atol=1e-6)
    np.testing.assert_allclose(table["joint_gain"], (math.sqrt(2) - 1) / 2, rtol=1e-4)


def test_disjoint_features_under_a_plain_sum_share_by_scale(compute: Any) -> None:
    """`--balance none`: lengths s and s/2 stay as they are, so the parts keep 2/sqrt(5) and 1/sqrt(5)."""
    table = compute(["out:0", "out:1"], couples.unequal(), balance="none", **APART)
    assert_linear(table)
    g = [couples.COLOURS[0].norm(), 0.5 * couples.COLOURS[1].norm()]
    whole = math.hypot(*g)
    np.testing.assert_allclose(table["retention_a"], float(g[0]) / whole, rtol=1e-4)
    np.testing.assert_allclose(table["retention_b"], float(g[1]) / whole, rtol=1e-4)
    assert (table["joint_a"] > table["joint_b"]).all(), "the unit of larger scale dominates, and both are reported"


def test_disjoint_features_keep_all_under_plain_gradients(compute: Any) -> None:
    """The issue's "retention 1": without a common RMS, d_ab = d_a + d_b."""
    table = compute(["out:0", "out:1"], couples.unequal(), balance="none", optimiser="gradient", **APART)
    assert_linear(table)
    for c in "ab":
        np.testing.assert_allclose(table[f"retention_{c}"], 1, rtol=1e-5)
    assert (table["territory_divided"] == 1).all()


def test_disjoint_features_that_saturate_keep_all_under_interact(compute: Any) -> None:
    """The issue's "retention 1" again, under the default recipe: each is full in the end, alone and together."""
    table = compute(["out:0", "out:1"], couples.saturating(), **(APART | {"steps": 60}))
    for c in "ab":
        np.testing.assert_allclose(table[f"retention_{c}"], 1, rtol=1e-5)
    assert (table["territory_divided"] == 1).all()
    assert (table["response_nonlinearity"] < 1e-2).all() and (table["second_difference"] < 1e-5).all()
    assert (table["self_saturation_a"] > 0.05).all()


# ---------------------------------------------------------------- duplicates, opposites, an AND


@pytest.mark.parametrize("other", [couples.COPY, couples.LARGER])
@pytest.mark.parametrize("balance", ["solo", "none"])
def test_a_feature_with_its_duplicate(other: int, balance: str, compute: Any) -> None:
    table = compute(["features:0", f"features:{other}"], couples.twins(), balance=balance)
    assert_linear(table)
    for name in ("crosstalk_a_on_b", "crosstalk_b_on_a", "retention_a", "retention_b", "gradient_agreement"):
        np.testing.assert_allclose(table[name], 1, atol=1e-5)
    np.testing.assert_allclose(table["territory_divided"], 0)
    np.testing.assert_allclose(table["territory_correlation"], 1, atol=1e-5)
    np.testing.assert_allclose(table["joint_gain"], 0, atol=1e-5)


def test_a_linear_feature_with_its_negative_is_cancelled(tmp_path: Path) -> None:
    """Gradient agreement -1, and nothing left of the response: undefined, not 0 and not NaN."""
    result = featmap.interact(
        ["features:0", "features:3"], couples.twins(), **options("interact", out=tmp_path / "run", seeds=3, **SETTINGS)
    )
    table = result.statistics
    assert (table["status"] == CANCELLED).all()
    np.testing.assert_allclose(table["gradient_agreement"].to_numpy(dtype=float), -1, atol=1e-6)
    for name in ("response_nonlinearity", "image_nonlinearity", "second_difference"):
        assert table[name].isna().all()
    assert result.sentences == ["response nonlinearity is undefined: cancelled (3 seeds)."]
    for c in "ab":
        np.testing.assert_allclose(table[f"retention_{c}"].to_numpy(dtype=float), 0, atol=1e-6)


def test_a_feature_is_driven_down_by_its_larger_negative(compute: Any) -> None:
    """A plain sum of z and -3 z is -2 z: a is driven below the null image, which no non-negative mixture does less."""
    module = couples.twins()
    with torch.no_grad():
        module.features.weight[couples.OPPOSITE] *= 3  # type: ignore[union-attr, operator]
    table = compute(["features:0", "features:3"], module, balance="none")
    np.testing.assert_allclose(table["retention_b"], 1, atol=1e-5)
    np.testing.assert_allclose(table["retention_a"], -1, atol=1e-5)
    assert_linear(table)


def test_a_run_without_the_perturbed_mixture_is_finished_and_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs that an earlier version began have no such array."""
    job = job_of(["second:3", "first:5"], tiny.small(), size=12, steps=4, rows=4, seeds=2)
    whole, arrays, column = carried_out(job, tmp_path / "whole").table(), JointJob.arrays, statistics.TWO_MIXTURES
    assert whole[column].notna().all()

    def earlier(self: JointJob) -> Any:
        return {name: spec for name, spec in arrays(self).items() if name != "joint_middle_perturbed"}

    monkeypatch.setattr(JointJob, "arrays", earlier)
    without = carried_out(job, tmp_path / "without").table()
    assert without[column].isna().all()
    pd.testing.assert_frame_equal(without.drop(columns=column), whole.drop(columns=column))


@pytest.mark.parametrize("probed", [["gates"], ["colours", "gates"], ["gates", "colours"]])
def test_the_second_difference_is_largest_at_the_planted_and(probed: list[str], compute: Any) -> None:
    table = compute(["colours:0", "colours:1"], couples.gated(), probe_layers=probed)
    assert (table["second_difference_at"] == f"gates:{couples.AND}").all()
    assert (table["second_difference"] > 0.02).all()
    assert summarise(table).loc[0, "second_difference_at"] == f"gates:{couples.AND}"
    assert (table["mixture_nonlinearity"] > table["mixture_nonlinearity_floor"] + 1e-3).all()


def test_without_the_and_no_feature_computes_with_the_pair(compute: Any) -> None:
    table = compute(["colours:0", "colours:1"], couples.gated(), probe_layers=["colours"])
    assert (table["second_difference_at"] == "").all()
    assert (table["mixture_nonlinearity"] <= LINEAR).all()


def test_the_deviation_of_a_colour_difference_is_that_of_its_mean(tmp_path: Path) -> None:
    """Minus red plus blue: its response is the difference of two channels' means."""
    job = job_of(["colours:0", "colours:1"], couples.gated(), probe_layers=["colours", "gates"], **SETTINGS)
    result = carried_out(job, tmp_path / "run")
    red, _, blue = np.asarray(result.arrays["pink_images"][...], dtype=float).mean((2, 3)).T
    assert result.small_arrays["deviation"][5] == pytest.approx((blue - red).std(), rel=1e-4)
    assert result.small_arrays["deviation"][5] > 0.01 and np.isfinite(result.small_arrays["deviation"][6 + couples.AND])


# ---------------------------------------------------------------- constant, single, dead, infinite


def assert_not_infinite(table: pd.DataFrame) -> None:
    """Nothing infinite; a number, or undefined."""
    assert not np.isinf(table.select_dtypes("float").to_numpy(dtype=float)).any()


@pytest.mark.parametrize(
    ("units", "module", "status"),
    [
        (["relu:0", "relu:1"], tiny.sick, DEAD_PARTNER),
        (["relu:0", "relu:2"], tiny.sick, DEAD_PARTNER),
        (["relu:1", "relu:2"], tiny.sick, DEAD_PARTNER),
        (["relu:0", "relu:3"], tiny.sick, NOT_FINITE),
        (["relu:1", "relu:3"], tiny.sick, NOT_FINITE),
        (["relu:0", "relu:3"], networks.dead_network, NOT_FINITE),
        (["relu:0", "relu:2"], networks.dead_network, DEAD_PARTNER),
    ],
)
def test_statuses_without_statistics(units: list[str], module: Any, status: str, compute: Any) -> None:
    table = compute(units, module(), seeds=3)
    assert (table["status"] == status).all()
    assert_not_infinite(table)
    shown = table.drop(columns=["group", "seed", "status", "second_difference_at", "solo_a", "solo_b"])
    assert shown.isna().to_numpy().all()
    row = summarise(table).iloc[0]
    assert row["seeds"] == 0 and row["status"] == status and math.isnan(row["p"]) and math.isnan(row["q"])


def test_a_partner_that_is_dead_until_it_is_rescued(compute: Any) -> None:
    units = [f"relu:{c}" for c in (networks.LIVE, networks.ASLEEP)]
    table = compute(units, networks.dead_network(), rescue=0.5, steps=40)
    assert set(table["status"]) <= {OK, DEAD_PARTNER}
    assert_not_infinite(table)


@pytest.mark.parametrize("units", [["fc:0", "fc:1"], ["class:0", "conv:1"], ["pool:1", "fc:2"]])
def test_single_positions_have_no_correlation(units: list[str], compute: Any) -> None:
    table = compute(units, networks.logits_network())
    assert (table["status"] == OK).all()
    assert_not_infinite(table)
    if units[1].startswith(("fc", "pool")):
        assert table["territory_correlation"].isna().all()
    controls = "conv" in units[1] or "pool" in units[0]
    assert table["response_nonlinearity_ceiling"].notna().all() == controls


def test_a_ceiling_needs_two_more_channels_than_the_pair(compute: Any) -> None:
    table = compute(["features:0", "features:1"], tiny.two())
    assert table["response_nonlinearity_ceiling"].isna().all()
    assert table["response_nonlinearity_floor"].notna().all()


def test_ceilings_are_higher_than_floors(compute: Any) -> None:
    table = compute(["second:3", "second:7"], tiny.small(), seeds=3, steps=30)
    for name in ("response_nonlinearity", "image_nonlinearity"):
        for kind in ("perturbed", "seed"):
            assert ((table[f"{name}_floor_{kind}_a"] >= 0) & (table[f"{name}_floor_{kind}_a"] <= 1)).all()
        means = [table[[f"{name}_floor_{kind}_{c}" for c in "ab"]].mean(axis=1) for kind in ("perturbed", "seed")]
        np.testing.assert_allclose(table[f"{name}_floor"], np.maximum(*means))
        assert (table[f"{name}_ceiling"] > table[f"{name}_floor"]).all()


def test_the_summary_is_the_mean_over_seeds(compute: Any) -> None:
    table = compute(["second:3", "second:7"], tiny.small(), seeds=3)
    row = summarise(table).iloc[0]
    excess = table["response_nonlinearity"] - table["response_nonlinearity_floor"]
    assert row["excess"] == pytest.approx(excess.mean())
    assert row["q"] == row["p"] and row["seeds"] == 3
    assert row["retention_a"] == pytest.approx(table["retention_a"].mean())
    table.loc[1, table.columns[3:]] = np.nan
    table["second_difference_at"], table.loc[1, "status"] = "", DEAD_PARTNER
    row = summarise(table).iloc[0]
    assert row["seeds"] == 2 and row["status"] == OK and math.isnan(row["p"]) and math.isnan(row["low"])
    assert row["retention_a"] == pytest.approx(table["retention_a"][[0, 2]].mean())
