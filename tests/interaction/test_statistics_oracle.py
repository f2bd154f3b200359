"""All statistics of a finished run again, from its labelled arrays alone and by the plain loops of the oracles."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest

import featmap
from featmap.interaction.groups import JointSettings
from featmap.interaction.run import Interaction
from tests.helpers import interaction_oracles as oracles
from tests.helpers import tiny
from tests.helpers.settings import options

pytestmark = pytest.mark.usefixtures("threads")

CASES: dict[str, dict[str, Any]] = {
    "two layers": {"units": ["second:3", "first:5"]},
    "one layer, probed before": {"units": ["second:3", "second:7"], "probe_layers": ["first"]},
    "three, plain sum": {"units": ["second:3", "second:7", "first:1"], "balance": "none", "seeds": 2},
    "one seed": {"units": ["second:3", "first:5"], "seeds": 1, "seed": 4},
}


@pytest.fixture(scope="module", params=CASES, ids=lambda name: name)
def run_result(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[list[str], Interaction]:
    case = dict(CASES[request.param])
    units = case.pop("units")
    chosen = JointSettings(case.pop("balance", "solo"), case.pop("probe_layers", ()))
    settings = {"size": 12, "steps": 10, "rows": 4, "seeds": 3} | case
    keywords = options("interact", out=tmp_path_factory.mktemp("run") / "run", **settings)
    return units, featmap.interact(units, tiny.small(), settings=chosen, **keywords)


class Run:
    """A run read by its labels: responses by unit, seed and image."""

    def __init__(self, units: list[str], interaction: Interaction) -> None:
        self.units, self.data = units, interaction.dataset.load()
        self.seeds = interaction.statistics["seed"].tolist()
        self.deviation = self.data["deviation"].values
        self.varying = [k for k, v in enumerate(self.deviation) if math.isfinite(v)]

    def start(self, seed: int, perturbed: bool = False) -> str:
        return f"seed={seed}" + (" perturbed" if perturbed else "")

    def solo(self, unit: str, seed: int, perturbed: bool = False) -> str:
        return f"{unit} {self.start(seed, perturbed)}"

    def joint(self, seed: int) -> str:
        return f"{' + '.join(self.units)} seed={seed}"

    def at(self, array: str, **label: str) -> np.ndarray:
        ((dim, name),) = label.items()
        (row,) = np.flatnonzero(self.data[dim].values == name)
        return self.data[array].values[row].astype(float)

    def r(self, responses: np.ndarray, start: str) -> list[float]:
        null = self.at("null", start=start)
        return [(responses[k] - null[k]) / self.deviation[k] for k in self.varying]

    def solo_r(self, unit: str, seed: int, perturbed: bool = False, array: str = "solo_A") -> list[float]:
        return self.r(self.at(array, solo=self.solo(unit, seed, perturbed)), self.start(seed, perturbed))

    def solo_d(self, unit: str, seed: int, perturbed: bool = False) -> list[float]:
        image = self.at("solo_images", solo=self.solo(unit, seed, perturbed))
        return (image - self.at("null_images", start=self.start(seed, perturbed))).ravel().tolist()

    def z(self, unit: str, responses: np.ndarray, seed: int) -> float:
        k = self.data["unit"].values.tolist().index(unit)
        return float(responses[k] - self.at("null_units", start=self.start(seed))[k])

    def growth(self, unit: str, seed: int, parts: int) -> float:
        """The exponent of a unit's own response to a part of its solo image; 1 where it is not probed."""
        names = self.data["response"].values.tolist()
        if unit not in names:
            return 1.0
        solo, null = self.solo(unit, seed), self.at("null", start=self.start(seed))[names.index(unit)]
        part, whole = (self.at(a, solo=solo)[names.index(unit)] - null for a in ("solo_fraction", "solo_A"))
        power = math.log(part / whole) / math.log(1 / parts) if part > 0 else math.nan
        return power if 1 / 3 <= power <= 3 else math.nan

    def controls(self) -> list[list[str]]:
        """The other features, as many of each unit's layer, in the order of the rows."""
        others: dict[str, list[str]] = {}
        for label in self.data["solo"].values:
            unit, _, rest = label.partition(" ")
            if unit not in self.units and rest == self.start(self.seeds[0]):
                others.setdefault(unit.partition(":")[0], []).append(unit)
        layers = [u.partition(":")[0] for u in self.units]
        count = min(len(v) // layers.count(la) for la, v in others.items())
        return [[others[la].pop(0) for la in layers] for _ in range(count)]


def test_every_statistic_by_plain_loops(run_result: tuple[list[str], Interaction]) -> None:
    units, interaction = run_result
    run, letters = Run(units, interaction), "abc"[: len(units)]
    controls = run.controls()
    for seed, row in zip(run.seeds, interaction.statistics.to_dict("records"), strict=True):
        expected: dict[str, float] = {}
        joint = run.r(run.at("joint_A", joint=run.joint(seed)), run.start(seed))
        parts = [run.solo_r(u, seed) for u in units]
        d = (run.at("joint_images", joint=run.joint(seed)) - run.at("null_images", start=run.start(seed))).ravel()
        images = [run.solo_d(u, seed) for u in units]
        expected["response_nonlinearity"] = oracles.non_negative_share(joint, parts)
        expected["image_nonlinearity"] = oracles.variance_share(d.tolist(), images)
        middle = run.r(run.at("joint_middle", joint=run.joint(seed)), run.start(seed))
        fractions = [run.solo_r(u, seed, array="solo_fraction") for u in units]
        expected["mixture_nonlinearity"] = oracles.non_negative_share(middle, fractions)
        again = run.r(run.at("joint_middle_perturbed", joint=run.joint(seed)), run.start(seed, True))
        halves = [run.solo_r(u, seed, True, array="solo_fraction") for u in units]
        both = expected["mixture_nonlinearity"], oracles.non_negative_share(again, halves)
        expected["mixture_nonlinearity_two_starts"] = sum(both) / 2
        alone = [oracles.non_negative_share(p, [f]) for p, f in zip(parts, fractions, strict=True)]
        expected["mixture_nonlinearity_floor"] = sum(alone) / len(units)
        size, where = oracles.second_difference(middle, fractions, joint)
        expected["second_difference"] = size
        named = "" if size < 1e-5 else run.data["response"].values[run.varying[where]]  # `first` is linear: rounding
        assert row["second_difference_at"] == named
        steps = [m - sum(f[k] for f in fractions) for k, m in enumerate(middle)]
        apart = [sum(f[k] for f in fractions) for k in range(len(middle))]
        signed = [x * x * math.copysign(1, abs(m) - abs(s)) for x, m, s in zip(steps, middle, apart, strict=True)]
        balance = math.fsum(signed) / math.fsum(x * x for x in steps)
        expected["second_difference_sign"] = balance if named else 0.0
        reached = run.at("joint_units", joint=run.joint(seed))
        best = [run.z(u, run.at("solo_units", solo=run.solo(u, seed)), seed) for u in units]
        for k, (c, unit) in enumerate(zip(letters, units, strict=True)):
            expected[f"solo_{c}"], expected[f"joint_{c}"] = best[k], run.z(unit, reached, seed)
            expected[f"retention_{c}"] = run.z(unit, reached, seed) / best[k]
            bent = [w - len(units) * f for w, f in zip(parts[k], fractions[k], strict=True)]
            expected[f"self_saturation_{c}"] = math.sqrt(oracles.dot(bent, bent) / oracles.dot(parts[k], parts[k]))
            for other, image in zip(letters, units, strict=True):
                if other != c:
                    there = run.z(unit, run.at("solo_units", solo=run.solo(image, seed)), seed)
                    expected[f"crosstalk_{c}_on_{other}"] = there / best[k]
        counts = [run.data[f"joint_map_{c}"].values[0].size for c in letters]
        # the plain sum is over neurons
        weights = [1 / b for b in best] if is_solo(interaction) else [n / max(counts) for n in counts]
        blends = run.at("joint_blend", joint=run.joint(seed))
        null = [run.at("null_units", start=run.start(seed))[list(run.data["unit"].values).index(u)] for u in units]
        sums = [sum(w * (v - n) for w, v, n in zip(weights, point, null, strict=True)) for point in blends]
        whole = sum(w * run.z(u, reached, seed) for w, u in zip(weights, units, strict=True))
        scale = sum(w * b for w, b in zip(weights, best, strict=True))
        expected["joint_gain"] = (whole - max(sums)) / scale
        maps = [run.at(f"joint_map_{c}", joint=run.joint(seed)).tolist() for c in letters]
        expected["territory_divided"] = oracles.territory(maps)[1] or 0.0
        expected["gradient_agreement"] = float(np.mean(run.at("joint_agreement", joint=run.joint(seed))))
        q = [1 / math.sqrt(oracles.dot(one, one) / len(one)) for one in images]
        both_ways = [q[i] * q[j] for i in range(len(q)) for j in range(len(q)) if i != j]
        step = math.sqrt(math.fsum(v * v for v in q) + expected["gradient_agreement"] * math.fsum(both_ways))
        for c, unit in zip(letters, units, strict=True):
            gifts = [1.0 if o == c else expected[f"crosstalk_{c}_on_{o}"] for o in letters]
            kept = min(1.0, math.fsum(g * v for g, v in zip(gifts, q, strict=True)) / step)
            kept = math.copysign(abs(kept) ** run.growth(unit, seed, len(units)), kept)
            expected[f"additive_retention_{c}"] = kept if is_solo(interaction) else math.nan
        following = run.seeds[(run.seeds.index(seed) + 1) % len(run.seeds)] if len(run.seeds) > 1 else seed + 1
        floors: dict[str, list[float]] = {"response": [], "image": []}
        for kind, other, perturbed in (("perturbed", seed, True), ("seed", following, False)):
            both: dict[str, list[float]] = {"response": [], "image": []}
            for c, unit in zip(letters, units, strict=True):
                share = oracles.non_negative_share(run.solo_r(unit, other, perturbed), [run.solo_r(unit, seed)])
                pixels = oracles.variance_share(run.solo_d(unit, other, perturbed), [run.solo_d(unit, seed)])
                for name, value in (("response", share), ("image", pixels)):
                    expected[f"{name}_nonlinearity_floor_{kind}_{c}"] = value
                    both[name].append(value)
            for name in floors:
                floors[name].append(sum(both[name]) / len(units))
        for name in floors:
            expected[f"{name}_nonlinearity_floor"] = max(floors[name])
        shares = [oracles.non_negative_share(joint, [run.solo_r(u, seed) for u in group]) for group in controls]
        expected["response_nonlinearity_ceiling"] = sum(shares) / len(shares)
        pixels_of = [oracles.variance_share(d.tolist(), [run.solo_d(u, seed) for u in group]) for group in controls]
        expected["image_nonlinearity_ceiling"] = sum(pixels_of) / len(pixels_of)
        for name, value in expected.items():
            assert row[name] == pytest.approx(value, rel=1e-4, abs=2e-6, nan_ok=True), (seed, name)
        left = set(row) - set(expected) - {"group", "seed", "status", "second_difference_at"}
        assert left == {"territory_correlation"}


def is_solo(interaction: Interaction) -> bool:
    return '"balance": "solo"' in (interaction.folder / "manifest.json").read_text()


def test_excess_interval_and_p_from_the_seeds(run_result: tuple[list[str], Interaction]) -> None:
    table, row = run_result[1].statistics, run_result[1].summary.iloc[0]
    values = [float(v) for v in table["response_nonlinearity"]]
    assert row["response_nonlinearity"] == pytest.approx(sum(values) / len(values))
    excess = [float(v) for v in table["response_nonlinearity"] - table["response_nonlinearity_floor"]]
    assert row["excess"] == pytest.approx(sum(excess) / len(excess))
    if len(values) < 3:
        assert pd.isna(row["low"]) and pd.isna(row["high"]) and pd.isna(row["p"]) and pd.isna(row["q"])
    else:
        assert (row["low"], row["high"]) == pytest.approx(oracles.interval(values))
        assert row["q"] == row["p"]
