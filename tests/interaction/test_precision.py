"""Automatic seeds: the rule beside closed forms and a simulation of its own, and runs beside runs of fixed seeds."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib.pyplot as pyplot
import numpy as np
import pytest
from scipy import stats

import featmap
from featmap.cli.app import main
from featmap.errors import FeatmapError
from featmap.interaction import report
from featmap.interaction import run as interaction_run
from featmap.interaction import worker as jointwork
from featmap.interaction.job import JointJob
from featmap.interaction.precision import LEAST_SEEDS, AutoSeeds, GrowingJob, interval_width, seed_range
from featmap.interaction.run import Interaction
from featmap.interaction.statistics import TWO_MIXTURES
from featmap.plotting import interaction_panel
from featmap.report.interaction import build_reports
from featmap.runs import folder_layout, integrity, lifecycle
from featmap.runs.folder_layout import ARRAYS
from featmap.runs.progress import Silent
from featmap.runs.store import Run, open_arrays
from tests.cli.test_app import SMALL, at_home, fail, succeed
from tests.helpers import networks, tiny
from tests.helpers.settings import options
from tests.interaction.test_job import job_of

assert at_home  # the fixture under which commands work in a folder of their own

pytestmark = pytest.mark.usefixtures("cheap_runs", "threads")


@pytest.fixture(autouse=True, scope="module")
def _empty_figures() -> Iterator[None]:
    """Draw nothing: figures are not what these tests are about."""
    with pytest.MonkeyPatch.context() as patch:
        for module, name in (
            (interaction_panel, "panel"),
            (report.heatmaps, "cross_heatmap"),
            (report.sheets, "card_sheet"),
        ):
            patch.setattr(module, name, lambda *_, **__: pyplot.figure(figsize=(1, 1)))
        yield


SETTINGS: dict[str, Any] = {"size": 12, "steps": 3, "rows": 12}
SIDES = [("second", "0-2"), ("first", "1")]
T_975 = {2: 4.302653, 4: 2.776445, 9: 2.262157}
"""Quantiles of Student's t by degrees of freedom, from a printed table."""


# ---------------------------------------------------------------- the rule


@pytest.mark.parametrize("degrees", T_975)
def test_the_width_is_twice_t_times_the_standard_error(degrees: int) -> None:
    values = list(np.random.default_rng(degrees).normal(0.2, 0.1, degrees + 1))
    mean = math.fsum(values) / len(values)
    deviation = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / degrees)
    expected = 2 * T_975[degrees] * deviation / math.sqrt(len(values))
    assert interval_width([*values, math.nan]) == pytest.approx(expected, rel=1e-6)
    assert interval_width(-np.array(values) + 7) == pytest.approx(expected, rel=1e-6), "sign and size do not matter"


def test_the_width_takes_three_seeds() -> None:
    assert math.isnan(interval_width([0.1, 0.2, math.nan])) and interval_width([0.1, 0.1, 0.1]) < 1e-15


def spread(*deviations: float) -> np.ndarray:
    """Excess of groups with these deviations over five seeds, mean 0.3; NaN stays NaN."""
    return 0.3 + np.array(deviations)[:, None] * np.array([-1.0, 1.0, 0.0, -1.0, 1.0])


def test_groups_end_one_by_one_and_undefined_ones_at_once() -> None:
    rule, excess = AutoSeeds(width=0.05), spread(0.001, 0.1, math.nan, 0.2)
    assert rule.choose((5, 5, 5, 5), excess, 1) == (5, 6, 5, 6)
    more = np.hstack([excess, [[math.nan], [0.3], [math.nan], [0.3]]])
    assert rule.choose((5, 6, 5, 6), more, 1) == (5, 7, 5, 7)
    assert AutoSeeds(width=0.05, most=6).choose((5, 6, 5, 6), more, 1) is None
    assert AutoSeeds(width=0.9).choose((5, 5, 5, 5), excess, 1) is None


def test_a_batch_is_filled_with_the_widest_of_the_others() -> None:
    excess = spread(0.001, 0.1, math.nan, 0.01, 0.002)
    assert AutoSeeds(0.05).choose((5,) * 5, excess, 2) == (5, 6, 5, 6, 5)
    assert AutoSeeds(0.05).choose((5,) * 5, excess, 5) == (6,) * 5
    assert AutoSeeds(0.05).choose((5, 6, 5, 6, 5), excess, 4) == (5, 7, 5, 7, 5), "those that have ended stay so"


def first_end(excess: np.ndarray, width: float, most: int) -> np.ndarray:
    """The number of seeds at which each row ends: running sums and printed formulas, no code of the rule."""
    n = np.arange(1, most + 1)
    mean = np.cumsum(excess, 1) / n
    variance = (np.cumsum(excess**2, 1) - n * mean**2) / np.maximum(n - 1, 1)
    quantile = np.concatenate([[0.0], stats.t.ppf(0.975, n[1:] - 1)])
    narrow = 2 * quantile * np.sqrt(np.maximum(variance, 0) / n) <= width
    narrow[:, : LEAST_SEEDS - 1], narrow[:, -1] = False, True
    return narrow.argmax(1) + 1


def test_the_rule_ends_where_a_plain_simulation_does() -> None:
    excess = np.random.default_rng(3).normal(0, 0.06, (60, 12))
    rule, counts = AutoSeeds(0.08, 12), (5,) * 60
    while grown := rule.choose(counts, np.where(np.arange(12) < np.array(counts)[:, None], excess, np.nan), 1):
        counts = grown
    assert list(counts) == first_end(excess, 0.08, 12).tolist() and len(set(counts)) > 4


@pytest.mark.parametrize(
    ("scale", "low", "high"),
    [(0.01, 0.045, 0.055), (0.6, 0.05, 0.075), (0.8, 0.05, 0.075), (1.0, 0.05, 0.075), (4.0, 0.045, 0.055)],
)
def test_looking_at_the_width_finds_too_much_seldom(scale: float, low: float, high: float) -> None:
    """Of groups without an excess 5 % have p < 0.05 by right; with automatic seeds 5 to 7.5 %, whatever the spread."""
    excess = np.random.default_rng(11).normal(0, scale, (40_000, 20))
    end = first_end(excess, 1.0, 20)
    made = np.arange(20) < end[:, None]
    mean = np.where(made, excess, 0).sum(1) / end
    deviation = np.sqrt(np.where(made, (excess - mean[:, None]) ** 2, 0).sum(1) / (end - 1))
    p = stats.t.sf(mean / deviation * np.sqrt(end), end - 1)
    assert low < (p < 0.05).mean() < high
    assert (p < 0.002).mean() < 0.002 * 2


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (AutoSeeds(0), "width 0: "),
        (AutoSeeds(math.nan), "width nan: "),
        (AutoSeeds(1.5), "give a number between 0 and 1"),
        (AutoSeeds(most=4), "most seeds 4: automatic seeds begin with 5"),
        (AutoSeeds(most=100_000), "give 5 to 10,000"),
        (AutoSeeds(first=-1), "different seeds, each from 0"),
        ("automatic", "seeds 'automatic': give a number of seeds"),
    ],
)
def test_wrong_rules_are_refused_in_one_line(rule: Any, words: str) -> None:
    with pytest.raises(FeatmapError) as error:
        featmap.interact(["second:3", "first:5"], tiny.small(), **options("interact", **SETTINGS, seeds=rule))
    assert words in str(error.value) and "\n" not in str(error.value)


# ---------------------------------------------------------------- runs


class Recorded(Silent):
    """Watcher that keeps what it is told."""

    def __init__(self) -> None:
        self.begun, self.steps, self.notes = list[tuple[int, int]](), 0, list[str]()

    def begin(self, total: int, done: int) -> None:
        self.begun.append((total, done))

    def step(self, activation: float, count: int = 1) -> None:
        self.steps += count

    def note(self, text: str) -> None:
        self.notes.append(text)


def pair_run(folder: Path, seeds: Any) -> Interaction:
    units = ["second:3", "first:5"]
    return featmap.interact(units, tiny.small(), **options("interact", out=folder, seeds=seeds, **SETTINGS))


def layers_run(folder: Path, seeds: Any) -> Interaction:
    chosen = options("interact", out=folder, seeds=seeds, **(SETTINGS | {"rows": 7}))
    return featmap.interact(network=tiny.small(), layers=SIDES, **chosen)


def by_label(folder: Path) -> dict[str, dict[str, bytes]]:
    """The bytes of each row of the arrays that have rows, by its label."""
    data = open_arrays(folder)
    return {
        name: {str(label): values[k].values.tobytes() for k, label in enumerate(data[values.dims[0]].values)}
        for name, values in ((n, data[n].load()) for n in data.data_vars)
        if values.dims[0] in ("start", "solo", "joint")
        for values in [values]
    }


def assert_same_rows(few: Path, many: Path) -> None:
    """Every row of one run is in the other, bit by bit."""
    one, two = by_label(few), by_label(many)
    assert set(one) == set(two) and len(one) > 15
    for name, rows in one.items():
        assert {label: two[name][label] for label in rows} == rows, name


def test_a_linear_network_ends_at_once(tmp_path: Path) -> None:
    chosen = options("interact", out=tmp_path / "run", seeds=AutoSeeds(0.001), size=16, steps=6, rows=4)
    found = featmap.interact(["conv3:0", "conv3:1"], networks.linear_network(), **chosen)
    (row,) = found.summary.to_dict("records")
    assert row["seeds"] == 5 and row["excess_high"] - row["excess_low"] < 2e-4
    assert found.notes[0].startswith("5 seeds were made, the 95 % interval of the excess over the floor is ")
    assert found.notes[0].endswith("wide (at most 0.001 was asked for)")


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Interaction]]:
    """Runs of one group: seven seeds, by the limit and as given, and five."""
    folder = tmp_path_factory.mktemp("grown")
    rules = {"auto": AutoSeeds(1e-6, 7), "seven": 7, "five": 5}
    yield {name: pair_run(folder / name, seeds) for name, seeds in rules.items()}


def test_seeds_are_those_of_a_fixed_number_bit_by_bit(grown: dict[str, Interaction]) -> None:
    folders = {name: run.folder for name, run in grown.items()}
    assert_same_rows(folders["seven"], folders["auto"])
    assert_same_rows(folders["auto"], folders["seven"])
    assert_same_rows(folders["five"], folders["auto"])
    assert grown["auto"].statistics.equals(grown["seven"].statistics)
    assert grown["auto"].summary.equals(grown["seven"].summary)


def test_the_run_says_how_many_seeds_were_made_and_why(grown: dict[str, Interaction]) -> None:
    run = grown["auto"]
    assert run.notes[0].startswith("7 seeds were made, the largest number allowed: the 95 % interval")
    known = json.loads((run.folder / "interaction.json").read_text())
    assert known["notes"][0] == run.notes[0] and known["seeds"] == list(range(7))
    identity = Run.read(run.folder).identity
    assert identity["seeds"] == [0] and identity["auto"] == {"width": 1e-6, "least": 5, "most": 7}
    assert "auto" not in Run.read(grown["seven"].folder).identity


def test_a_complete_run_is_read_again_and_left_as_it_is(grown: dict[str, Interaction]) -> None:
    folder = grown["auto"].folder
    before = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.rglob("*") if p.is_file()}
    again = pair_run(folder, AutoSeeds(1e-6, 7))
    assert again.summary.equals(grown["auto"].summary) and again.notes == grown["auto"].notes
    assert {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.rglob("*") if p.is_file()} == before


def test_progress_has_one_beginning_with_the_steps_of_the_most_seeds(tmp_path: Path) -> None:
    watcher = Recorded()
    chosen = options("interact", out=tmp_path / "run", seeds=AutoSeeds(1e-6, 6), watcher=watcher, **SETTINGS)
    featmap.interact(["second:3", "first:5"], tiny.small(), **chosen)
    ((total, done),) = watcher.begun
    assert done == 0 and watcher.steps == total, "six seeds are the most"
    assert "seed 6 of at most 6" in watcher.notes


def test_a_stop_while_the_arrays_grow_loses_nothing(
    grown: dict[str, Interaction], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shapes are written before the manifest knows them: a stop in between is where the two differ."""
    calls = list[int]()

    def write_and_stop(*given: Any) -> dict[str, str]:
        calls.append(1)
        written = folder_layout.write_layout(*given)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return written

    with monkeypatch.context() as patch:
        patch.setattr(lifecycle, "write_layout", write_and_stop)
        with pytest.raises(KeyboardInterrupt):
            pair_run(tmp_path / "run", AutoSeeds(1e-6, 7))
    stored = {p: p.stat().st_mtime_ns for p in (tmp_path / "run/units").iterdir()}
    assert len(stored) >= 15
    pair_run(tmp_path / "run", AutoSeeds(1e-6, 7))
    assert {p: p.stat().st_mtime_ns for p in stored} == stored
    for path in grown["auto"].folder.rglob("*"):
        if path.is_file() and path.name != "manifest.json":
            assert path.read_bytes() == (tmp_path / "run" / path.relative_to(grown["auto"].folder)).read_bytes(), path


def test_pairs_end_at_different_numbers_of_seeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # three pairs would fill one batch, and go on together
    monkeypatch.setattr(GrowingJob, "chunk_rows", {"start": 2, "solo": 7, "joint": 1})
    first = layers_run(tmp_path / "five", 5)
    widths = (first.summary["excess_high"] - first.summary["excess_low"]).to_numpy()
    width = float(np.nanmedian(widths))
    found = layers_run(tmp_path / "auto", AutoSeeds(width, 7))
    counts = found.statistics.groupby("group", sort=False)["seed"].count()
    assert counts.min() == 5 < counts.max() <= 7 and len(counts) == 3
    fixed = {n: layers_run(tmp_path / str(n), n).statistics.set_index("group") for n in sorted(set(counts) - {5})}
    fixed[5] = first.statistics.set_index("group")
    for group, count in counts.items():
        one, two = found.statistics.set_index("group").loc[group], fixed[count].loc[group]
        assert one.equals(two), "a pair's statistics are those of a run with its number of seeds"
    assert f"5 to {counts.max()} seeds were made of each pair" in found.notes[0]
    assert_same_rows(tmp_path / "five", tmp_path / "auto")
    assert found.notes[0] in build_reports(found.folder)[0].lines


def test_a_job_that_grows_begins_with_the_same_work_units() -> None:
    job = job_of(["second:3", "second:5"], tiny.small(), seeds=5, rows=4)
    small = GrowingJob.of(job, AutoSeeds())
    large = small.with_counts((9,))
    for few, many in zip(small.waves(), large.waves(), strict=True):
        assert {unit.name for unit in few} < {unit.name for unit in many}
    for name, spec in small.arrays().items():
        assert large.arrays()[name].chunks == spec.chunks, name
    assert seed_range(large) == "9" and seed_range(job) == "5"
    assert small.identity() == large.identity() and small.disk_needed == large.disk_needed > 0
    others = [GrowingJob.of(job, AutoSeeds(0.06)), GrowingJob.of(job, AutoSeeds(most=21)), job]
    assert len({json.dumps(j.identity(), sort_keys=True) for j in [small, *others]}) == 4


# ---------------------------------------------------------------- runs of earlier versions

LATER = "joint_middle_perturbed"


def earlier_run(folder: Path, seeds: Any, monkeypatch: pytest.MonkeyPatch) -> Interaction:
    """A run of a version without the array of perturbed mixtures, which stops at the least number of seeds."""
    arrays = JointJob.arrays
    with monkeypatch.context() as earlier:
        earlier.setattr(JointJob, "arrays", lambda self: {k: v for k, v in arrays(self).items() if k != LATER})
        earlier.setattr(GrowingJob, "grown", lambda self, excess: None)
        result = pair_run(folder, seeds)
    assert integrity.inspect(folder).faults == [] and LATER not in open_arrays(folder)
    return result


@pytest.mark.parametrize("seeds", [5, AutoSeeds(1e-6, 5)], ids=["given", "auto"])
def test_an_earlier_run_with_nothing_left_stays_as_it_is(
    seeds: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    earlier_run(folder, seeds, monkeypatch)
    before = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.rglob("*") if p.is_file()}
    again = pair_run(folder, seeds)
    assert {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.rglob("*") if p.is_file()} == before
    assert again.statistics[TWO_MIXTURES].isna().all() and integrity.inspect(folder).faults == []
    (folder / ARRAYS / "joint_middle" / ".zarray").unlink()
    pair_run(folder, seeds)
    assert {p for p in folder.rglob("*") if p.is_file()} == set(before)
    assert integrity.inspect(folder).faults == [], "metadata are repaired without the array"


def test_an_earlier_run_gets_further_seeds_without_the_array(
    grown: dict[str, Interaction], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, whole = tmp_path / "run", grown["auto"].statistics
    assert len(earlier_run(folder, AutoSeeds(1e-6, 7), monkeypatch).statistics) == 5
    again = pair_run(folder, AutoSeeds(1e-6, 7)).statistics
    assert integrity.inspect(folder).faults == [] and LATER not in open_arrays(folder)
    assert again[TWO_MIXTURES].isna().all() and whole[TWO_MIXTURES].notna().all()
    assert again.drop(columns=TWO_MIXTURES).equals(whole.drop(columns=TWO_MIXTURES)) and len(again) == 7


def test_an_array_of_which_only_later_seeds_are_there_is_removed(
    grown: dict[str, Interaction], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The array was once added to earlier runs, and remained unfinished for ever."""
    folder, rule = tmp_path / "run", AutoSeeds(1e-6, 7)
    earlier_run(folder, rule, monkeypatch)
    with monkeypatch.context() as once:
        once.setattr(interaction_run, "_list_lacking", lambda *_: [])
        pair_run(folder, rule)
    assert [(f.kind, f.path) for f in integrity.inspect(folder).faults] == [("unfinished", f"{ARRAYS}/{LATER}")]
    again = pair_run(folder, rule).statistics
    assert integrity.inspect(folder).faults == [] and LATER not in open_arrays(folder)
    whole = grown["auto"].statistics
    assert again.drop(columns=TWO_MIXTURES).equals(whole.drop(columns=TWO_MIXTURES))


# ---------------------------------------------------------------- commands

FEW = [*SMALL[: SMALL.index("--rows")], "--rows", "12", "--device", "cpu"]
AUTO = ["interact", "second:3", "first:5", *FEW, "--seeds", "auto", "--width", "0.00001", "--most-seeds", "6"]
LAYERS = ["interact", "--layers", "second", "first", "--features", "0", "2,4", *FEW, *AUTO[-6:]]


CUTS = [pytest.param(AUTO, -2, id="pair"), pytest.param(LAYERS, -2, id="layers", marks=pytest.mark.slow)]


@pytest.mark.parametrize(("arguments", "stop"), CUTS)
def test_an_interrupted_run_is_resumed(
    arguments: list[str], stop: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, made = jointwork.JointWorker.work, [0]

    def counted(self: jointwork.JointWorker, *given: Any) -> None:
        made[0] += 1
        if limit is not None and made[0] > limit:
            raise KeyboardInterrupt
        real(self, *given)

    monkeypatch.setattr(jointwork.JointWorker, "work", counted)
    limit: int | None = None
    whole = succeed(capsys, *arguments, "--out", "whole")
    limit, total = stop % made[0], made[0]
    made[0] = 0
    with pytest.raises(SystemExit) as end:
        main([*arguments, "--out", "cut"])
    assert end.value.code == 130 and "Traceback" not in capsys.readouterr().err
    limit, made[0] = None, 0
    assert succeed(capsys, *arguments, "--out", "cut") == whole.replace("whole", "cut")
    assert made[0] == total - stop % total, "what was stored is kept"
    for path in Path("whole").rglob("*"):
        if path.is_file() and "manifest.json" not in path.name:
            assert path.read_bytes() == (Path("cut") / path.relative_to("whole")).read_bytes(), path
    succeed(capsys, "verify", "cut")


WRONG: list[tuple[list[str], str]] = [
    (["--seeds", "many"], "--seeds 'many': give a number, or auto"),
    (["--seeds", "auto", "--width", "0"], "--width 0.0: "),
    (["--seeds", "auto", "--most-seeds", "4"], "--most-seeds 4: "),
    (["--seeds", "auto", "--seed", "-1"], "--seed -1"),
    (["--width", "0.1"], "--width 0.1 goes with automatic seeds"),
    (["--seeds", "7", "--most-seeds", "9"], "--most-seeds 9 goes with automatic seeds"),
]


@pytest.mark.parametrize(("arguments", "words"), WRONG, ids=[" ".join(w[0]) for w in WRONG])
def test_wrong_options_end_in_one_line(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert words in fail(capsys, "interact", "second:3", "first:5", *SMALL, *arguments)


def test_a_screening_takes_a_number_of_seeds(capsys: pytest.CaptureFixture[str]) -> None:
    screen = ["interact", "--layers", "second", "first", "--screen", *SMALL]
    assert "--seeds 'auto': give a number" in fail(capsys, *screen, "--seeds", "auto")
    assert "which --screen does not take" in fail(capsys, *screen, "--width", "0.1")


def test_a_dry_run_estimates_the_range(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed = succeed(capsys, *AUTO, "--dry-run").splitlines()
    assert printed[-2].startswith("at least 5 seeds, 60 solo and 5 joint descents")
    assert printed[-1].startswith("at most 6 seeds, 72 solo and 6 joint descents")
    assert printed[-1].split()[-1] == printed[-2].split()[-1], "one folder"
    assert list(tmp_path.iterdir()) == []


def test_the_page_repeats_the_command(grown: dict[str, Interaction]) -> None:
    assert build_reports(grown["auto"].folder)[0].command.endswith("--seeds auto --width 1e-06 --most-seeds 7")
    assert build_reports(grown["five"].folder)[0].command.endswith("--seeds 5")
