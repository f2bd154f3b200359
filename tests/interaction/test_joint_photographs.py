"""Photographs of both features against the joint image: planted profiles, sums, products and gates."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot
from scipy import stats

import featmap
from featmap.interaction import natural
from featmap.interaction import run as joint
from featmap.interaction.conclusion import (
    DIFFERENCE,
    JOINT_AGREEMENT,
    PHOTOGRAPH_COLUMNS,
    _describe_joint_photographs,
    compare_methods,
    describe_photographs,
    describe_photographs_of_pairs,
)
from featmap.interaction.groups import JointSettings
from featmap.interaction.job import IMAGE_DERIVATIVES, LATER_ARRAYS
from featmap.interaction.natural import PhotographSets
from featmap.interaction.photographs import PhotographJointWorker
from featmap.interaction.run import add_photographs
from featmap.interaction.statistics import TWO_MIXTURES
from featmap.optimize.photograph_folder import Photographs
from featmap.plotting import heatmaps, sheets
from featmap.plotting.labels import statistic_label
from featmap.report.interaction import build_reports
from featmap.runs import integrity, lifecycle, store
from tests.helpers import couples
from tests.helpers.pictures import save_colours
from tests.helpers.settings import options
from tests.interaction.test_job import job_of
from tests.interaction.test_photographs import Measured, measure

pytestmark = pytest.mark.usefixtures("threads")

COUNT, FEATURES = 600, 40
UNITS, PROBED = ["colours:0", "colours:1"], ["colours", "next"]


def planted(gate: float, noise: float, seed: int = 0, bend: float = 1.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Responses r = u p + v q + gate u v s, the activations u and v, and the second difference of joint images."""
    rng = np.random.default_rng(seed)
    u, v = rng.gamma(1.0, 1.0, (2, COUNT))
    p, q, s = (x / np.linalg.norm(x) for x in rng.normal(size=(3, FEATURES)))
    r = np.outer(u, p) + np.outer(v, q) + gate * np.outer(u * v, s) + noise * rng.normal(size=(COUNT, FEATURES))
    return r, np.stack([u, v]), bend * s


def difference(gate: float, noise: float, seed: int = 0) -> dict[str, float]:
    r, units, second = planted(gate, noise, seed)
    return natural.natural_difference(r, units, natural.select_photographs(*units), second, "a + b")


# ---------------------------------------------------------------- the second difference on photographs


def test_the_second_difference_is_that_of_a_plain_computation() -> None:
    r, units, second = planted(0.5, 0.3)
    sets = natural.select_photographs(*units)
    found = natural.natural_difference(r, units, sets, second, "a + b")
    m = [r[at].mean(0) - r[sets.neither].mean(0) for at in (sets.both, sets.alone[0][:16], sets.alone[1][:16])]
    both, *alone = (
        units[:, at].mean(1) - units[:, sets.neither].mean(1) for at in (sets.both, *(a[:16] for a in sets.alone))
    )
    (a1, b1), (a2, b2) = alone  # Cramer's rule: both = s alone_1 + t alone_2
    s, t = (both[0] * b2 - both[1] * a2) / (a1 * b2 - a2 * b1), (a1 * both[1] - b1 * both[0]) / (a1 * b2 - a2 * b1)
    expected = m[0] - s * m[1] - t * m[2]
    assert found["natural_difference"] == pytest.approx(np.linalg.norm(expected) / np.linalg.norm(m[0]))
    assert found["natural_difference_agreement"] == pytest.approx(stats.spearmanr(expected, second)[0])
    slopes = np.linalg.inv(np.stack(alone)) @ np.stack(m[1:])  # what a unit's activation does, from photographs of one
    weights, rest = [1, -s, -t, s + t - 1], r - units.T @ slopes
    spread = sum(w**2 * rest[at].var(0, ddof=1).sum() / len(at) for w, at in zip(weights, sets.compared, strict=True))
    assert found["natural_difference_floor"] == pytest.approx(np.sqrt(spread) / np.linalg.norm(m[0]), rel=0.05)
    assert natural.natural_difference(r, units, sets, second, "a + b") == found


@pytest.mark.parametrize("count", [180, 600])  # 8 to 16, and 16 photographs of each kind
def test_a_sum_is_found_above_its_floor_as_often_as_the_level_says(count: int) -> None:
    rng, p = np.random.default_rng(1), []
    for _ in range(150):
        units = rng.gamma(1.0, 1.0, (2, count))
        r = units.T @ rng.normal(size=(2, 200)) + rng.normal(size=(count, 200))
        sets = natural.select_photographs(*units)
        if not sets.lack:
            p.append(natural.natural_difference(r, units, sets, np.ones(200), "a + b")["natural_difference_p"])
    assert len(p) > 50 and 0.0 <= np.mean(np.array(p) < 0.05) < 0.12
    assert 0.35 < np.mean(p) < 0.65


def test_other_things_on_photographs_of_both_look_like_a_second_difference() -> None:
    """A network that adds: the third colour is high only where both units are, which p cannot tell from interaction."""
    r, units, second = planted(0.0, 0.1)
    sets = natural.select_photographs(*units)
    r[sets.both] += 1.0
    found = natural.natural_difference(r, units, sets, second, "a + b")
    row = pd.Series(dict.fromkeys(PHOTOGRAPH_COLUMNS, np.nan) | found | {"second_difference": 0.0})
    (line,) = _describe_joint_photographs(row)
    assert found["natural_difference_p"] < 0.01
    assert "photographs of both may differ in other things, too" in line


@pytest.mark.parametrize(
    ("others", "p", "words"),
    [
        (0.1, 0.01, "treat photographs of both as they treat the joint image"),
        (np.nan, 0.01, "treat photographs of both as they treat the joint image"),
        (0.45, 0.01, "more than random ones, but not surely more than those of other pairs, as they treat the joint"),
        (0.1, 0.2, "not surely as they treat the joint image"),
    ],
)
def test_only_what_exceeds_other_pairs_photographs_is_said_to_be_treated_alike(
    others: float, p: float, words: str
) -> None:
    row = dict.fromkeys(PHOTOGRAPH_COLUMNS, np.nan) | {"joint_agreement": 0.4, "joint_agreement_features": 9}
    row |= {"joint_agreement_low": 0.3, "joint_agreement_high": 0.5, "joint_agreement_p": p}
    (line,) = _describe_joint_photographs(pd.Series(row | {"joint_agreement_others": others}))
    assert words in line


def test_a_sum_has_none_whatever_the_levels() -> None:
    """Photographs of both are stronger than those of one, so that the plain difference of four means is not 0."""
    r, units, second = planted(0.0, 0.0)
    sets = natural.select_photographs(*units)
    both, one, two, neither = (r[at].mean(0) for at in sets.compared)
    assert np.linalg.norm(both - one - two + neither) > 0.05 * np.linalg.norm(both - neither)
    assert natural.natural_difference(r, units, sets, second, "a + b")["natural_difference"] < 1e-12


def test_a_product_is_above_its_floor_and_a_sum_is_at_it() -> None:
    p = []
    for seed in range(20):
        of_sum, of_product = difference(0.0, 0.3, seed), difference(1.0, 0.3, seed)
        p.append(of_sum["natural_difference_p"])
        assert of_sum["natural_difference"] < 1.5 * of_sum["natural_difference_floor"]
        assert of_product["natural_difference"] > 2 * of_product["natural_difference_floor"]
        assert of_product["natural_difference_p"] == pytest.approx(1 / 200)
        assert of_product["natural_difference_agreement"] > 0.8
        assert difference(-1.0, 0.3, seed)["natural_difference_agreement"] < -0.8
    assert np.sum(np.array(p) < 0.05) <= 4


def test_without_probed_features_there_are_no_other_pairs() -> None:
    found = object.__new__(natural.PhotographStatistics)
    found.standardised = np.zeros((200, 0))
    pairs, profiles = found.others
    assert pairs.shape == (0, 2) and profiles.shape == (0, 0)


def test_a_lack_of_photographs_leaves_it_undefined() -> None:
    r, units, second = planted(1.0, 0.1)
    nothing = np.empty(0, dtype=int)
    empty = PhotographSets(nothing, (nothing, nothing), nothing)
    assert np.isnan(list(natural.natural_difference(r, units, empty, second, "a + b").values())).all()
    sets = natural.select_photographs(*units)
    level = natural.natural_difference(r, np.ones_like(units), sets, second, "a + b")
    assert list(level) == list(DIFFERENCE) and np.isnan(list(level.values())).all()
    without = natural.natural_difference(r, units, sets, np.full(FEATURES, np.nan), "a + b")
    assert np.isfinite(without["natural_difference"]) and np.isnan(without["natural_difference_agreement"])


# ---------------------------------------------------------------- planted networks


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs of independent colours."""
    values = np.random.default_rng(1).integers(0, 256, (200, 3))
    return save_colours(tmp_path_factory.mktemp("photographs") / "colours", values)


def treated(kind: str, colours: Path, out: Path) -> Measured:
    return measure(UNITS, couples.conjunctions(kind), colours, out, steps=6, probe_layers=PROBED)


@pytest.fixture(scope="module")
def conjunctions(colours: Path, tmp_path_factory: pytest.TempPathFactory) -> Measured:
    return treated("and", colours, tmp_path_factory.mktemp("conjunctions") / "run")


def test_a_next_layer_of_conjunctions_treats_photographs_as_joint_images(conjunctions: Measured) -> None:
    row = conjunctions.row
    assert row["joint_agreement"] > 0.8 and row["joint_agreement_p"] < 0.05
    assert row["joint_agreement_low"] < row["joint_agreement"] < row["joint_agreement_high"] <= 1
    assert row["joint_agreement_others"] < row["joint_agreement"] - 0.2
    assert row["joint_agreement_features"] == np.isfinite(conjunctions.data["deviation"].values).sum() - 2
    assert row["natural_difference"] > 0.2 and row["natural_difference_p"] < 0.01
    assert row["natural_difference_agreement"] > 0.8 and row["second_difference"] > 0.1
    lines = describe_photographs(row)
    assert any("treat photographs of both as they treat the joint image" in line for line in lines)
    assert any(line.startswith("The second difference on photographs is") for line in lines)


def test_a_next_layer_that_adds_has_no_second_difference(tmp_path: Path) -> None:
    """Photographs that differ in red and green only, so that no other colour is told apart by chance."""
    values = np.random.default_rng(1).integers(0, 256, (200, 3))
    values[:, 2] = 128
    row = treated("sum", save_colours(tmp_path / "photographs", values), tmp_path / "run").row
    assert row["natural_difference"] < 1e-4 and row["second_difference"] < 1e-3
    assert row["joint_agreement"] > 0.8


def test_a_network_that_turns_beyond_the_photographs_treats_joint_images_otherwise(tmp_path: Path) -> None:
    dark = np.random.default_rng(1).integers(0, 128, (200, 3))
    row = treated("turning", save_colours(tmp_path / "photographs", dark), tmp_path / "run").row
    assert row["joint_agreement"] < -0.5 and row["joint_agreement_p"] > 0.5
    assert any("otherwise than they treat the joint image" in line for line in describe_photographs(row))


def test_photographs_and_profiles_are_those_of_the_arrays(conjunctions: Measured) -> None:
    """The columns of a run against a plain computation from its labelled arrays."""
    data, row = conjunctions.data, conjunctions.row
    deviation, names = data["deviation"].values, data["response"].values.tolist()
    kept = [k for k, d in enumerate(deviation) if np.isfinite(d) and names[k] not in ("colours:0", "colours:1")]
    photographs = (data["photograph_A"].values.astype(float) / deviation)[:, kept]
    sets = natural.select_photographs(*data["photograph_units"].values.T.astype(float))
    solos, contrasts = data["solo"].values.tolist(), []
    for k, label in enumerate(data["joint"].values.tolist()):
        seed = label.rpartition(" ")[2]
        one, two = (data["solo_A"].values[solos.index(f"colours:{c} {seed}")].astype(float) for c in (0, 1))
        contrasts.append((data["joint_A"].values[k].astype(float) - (one + two) / 2) / deviation)
    both, first, second = (photographs[at].mean(0) for at in sets.compared[:3])
    expected = stats.spearmanr(both - (first + second) / 2, np.mean(contrasts, axis=0)[kept])[0]
    assert row["joint_agreement"] == pytest.approx(expected)


def test_pairs_say_how_many_are_treated_alike() -> None:
    rng = np.random.default_rng(0)
    numbers = {
        name: rng.random(9) for name in (*PHOTOGRAPH_COLUMNS, "response_nonlinearity", "excess", "second_derivative")
    }
    numbers |= {"second_difference": rng.random(9), "photograph_correlation_q": np.ones(9)}
    numbers |= {"photographs": np.full(9, 100), "joint_agreement": np.full(9, 0.5)}
    numbers |= {"joint_agreement_p": np.repeat([0.01, 0.2], [6, 3]), "joint_agreement_others": np.full(9, 0.1)}
    summary = pd.DataFrame(numbers).assign(group=[f"a:{k // 3} + b:{k % 3}" for k in range(9)])
    lines = describe_photographs_of_pairs(summary, compare_methods(summary))
    words = "photographs of both are treated more as the joint image is than random photographs in 6 of 9 pairs, at a"
    assert f"{words} false discovery rate of 5 %" in lines[1]
    assert "0.50 on average, 0.10 with other pairs' photographs" in lines[1]
    assert any(line.startswith("second derivative at photographs against mixed difference there") for line in lines)
    none = summary.assign(joint_agreement=np.nan)
    assert len(describe_photographs_of_pairs(none, compare_methods(none))) == len(lines) - 1


def test_the_page_of_pairs_states_it(colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module, figure in ((heatmaps, "cross_heatmap"), (sheets, "card_sheet")):
        monkeypatch.setattr(module, figure, lambda *_, **__: pyplot.figure(figsize=(1, 1)))
    kept = {"size": 12, "steps": 3, "rows": 4, "seeds": 1, "out": tmp_path / "run"}
    settings = JointSettings(probe_layers=PROBED)
    network, sides = couples.conjunctions("and"), [("colours", "0"), ("colours", "1-2")]
    result = featmap.interact(
        network=network,
        layers=sides,
        photographs=Photographs(colours, 200),
        settings=settings,
        **options("interact", **kept),
    )
    (page,) = build_reports(tmp_path / "run")
    methods = compare_methods(result.summary)
    assert set(describe_photographs_of_pairs(result.summary, methods)) < set(page.lines)
    captions = {picture.caption for picture in page.pictures}
    assert {statistic_label(name) for name in ("joint_agreement", "natural_difference", "direct_hessian")} <= captions
    read = store.read_frame
    earlier = {"columns": list(JOINT_AGREEMENT), "errors": "ignore"}
    monkeypatch.setattr(store, "read_frame", lambda folder, name: read(folder, name).drop(**earlier))
    assert not any("joint image" in line for line in build_reports(tmp_path / "run")[0].lines)


def test_too_few_photographs_of_both_have_a_reason(tmp_path: Path) -> None:
    red = np.arange(60) * 4
    folder = save_colours(tmp_path / "photographs", np.stack([red, 255 - red, red], axis=1))
    row = measure(UNITS, couples.conjunctions("and"), folder, tmp_path / "run").row
    assert np.isnan(row[[*JOINT_AGREEMENT[:-1], *DIFFERENCE]].astype(float)).all()
    assert "both are strong on 0 photographs, 8 are needed" in row["photographs_note"]


# ---------------------------------------------------------------- runs of earlier versions


def test_a_run_without_second_derivatives_gets_them(
    colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A complete run of a version that had no such array is completed; nothing else is computed again."""
    job = add_photographs(job_of(UNITS, couples.conjunctions("and"), probe_layers=PROBED), colours)
    kind = type(job)
    arrays, waves, hidden = kind.arrays, kind.waves, {"derivative_A", IMAGE_DERIVATIVES, LATER_ARRAYS[0]}
    stages = ("derivative", "image_derivative")
    with monkeypatch.context() as earlier:
        earlier.setattr(kind, "arrays", lambda self: {k: v for k, v in arrays(self).items() if k not in hidden})
        earlier.setattr(kind, "waves", lambda self: [[u for u in w if u.stage not in stages] for w in waves(self)])
        run = lifecycle.open_run(job, tmp_path / "run")
        lifecycle.carry_out(job, run, PhotographJointWorker)
        lifecycle.complete(job, run)
        run.unlock()
        kept = {name: np.asarray(run.arrays[name]).tobytes() for name in job.arrays()}
        assert not hidden & set(kept)
    records = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "run" / "units").iterdir()}
    again = lifecycle.open_run(job, tmp_path / "run")
    result = joint.carry_out(job, again)
    assert result.summary["direct_hessian"].notna().all()
    assert result.statistics[TWO_MIXTURES].isna().all()
    assert integrity.inspect(tmp_path / "run").faults == []
    for name, values in kept.items():
        assert np.asarray(again.arrays[name]).tobytes() == values, name
    later = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "run" / "units").iterdir()}
    assert set(later) - set(records) == {f"{stage}-000000-000001.json" for stage in stages}
    assert records.items() <= later.items()
