"""The benchmark of estimates: what it reads from a command's output, and what it counts."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from analyses.benchmarks import estimates, parts
from featmap.cli import console
from featmap.errors import FeatmapError
from featmap.runs import estimate

PLAYED = """
import sys, time
if "--dry-run" in sys.argv:
    print("photographs opened 10 %, about 50 minutes left", file=sys.stderr)
    print("1 image, 96 pixels: about 2.0 minutes, 1.1 GB of memory; it would go to x")
else:
    time.sleep(0.2)
    print("maximising 5 %, activation 1, about 7 s left", file=sys.stderr, flush=True)
    time.sleep(0.3)
    print("maximising 90 %, activation 1, about 9 s left", file=sys.stderr)
sys.exit(int("broken" in sys.argv))
"""


def row(foretold: float, taken: float, left: float | None = None, left_taken: float | None = None) -> dict[str, Any]:
    return {
        "foretold_s": foretold,
        "taken_s": taken,
        "line_at_s": None if left is None else 4.0,
        "left_foretold_s": left,
        "left_taken_s": left_taken,
        "load": 1.5,
    }


def test_the_dry_run_and_the_first_line_are_compared_with_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimates, "PROGRAM", (sys.executable, "-c", PLAYED))
    found = estimates.measure(["maximise", "inception4a:17"], ["--out", "x"])
    assert found["foretold_s"] == 120.0 and found["left_foretold_s"] == 7.0, "the last word of the one, the first of it"
    taken, at, left = (found[name] for name in ("taken_s", "line_at_s", "left_taken_s"))
    assert taken is not None and at is not None and left is not None
    assert 0.2 < at < taken - 0.2 and left == pytest.approx(taken - at)
    with pytest.raises(FeatmapError, match="featmap broken --dry-run ended with status 1: 1 image"):
        estimates.measure(["broken"], [])


@pytest.mark.parametrize(
    ("foretold", "taken", "held"),
    [(70.0, 100.0, True), (130.0, 100.0, True), (69.0, 100.0, False), (131.0, 100.0, False), (None, 100.0, None)],
)
def test_a_forecast_holds_within_three_tenths_of_the_time_taken(
    foretold: float | None, taken: float, held: bool | None
) -> None:
    assert estimates.holds(foretold, taken) is held


def test_the_table_counts_forecasts_of_each_round() -> None:
    rounds = [
        {"commands": {"one unit": row(10, 10, 5, 6), "group": row(10, 20)}},
        {"commands": {"one unit": row(10, 12, 5, 10), "group": row(19, 20, 3, 3)}},
    ]
    text = estimates.format_table({"machine": {"processor": "a processor", "cores": 2}, "rounds": rounds})
    assert "| `maximise`, one unit | 1 | 1.5 | 10.0 / 10.0 | 1.00 | 4.0 s | 5.0 / 6.0 | 0.83 |" in text
    assert "| `interact`, two units | 1 | 1.5 | 10.0 / 20.0 | **0.50** |  | no line |  |" in text
    assert "Dry runs within 30%: 1 of 2, 2 of 2." in text
    assert "First lines of progress within 30%: 1 of 1, 1 of 2." in text


def test_rounds_are_kept_beside_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimates, "PROGRAM", (sys.executable, "-c", PLAYED))
    numbers, page = tmp_path / "estimates.json", tmp_path / "README.md"
    for append in (False, True):
        estimates.main(only="one unit, both stimuli", append=append, out=numbers, readme=page)
    rounds = json.loads(numbers.read_text())["rounds"]
    assert [list(each["commands"]) for each in rounds] == [["one unit", "both stimuli"]] * 2
    assert page.read_text().count("| `maximise`, one unit |") == 2
    with pytest.raises(FeatmapError, match="command 'two' is unknown; allowed: one unit, units"):
        estimates.main(only="two", out=numbers, readme=page)


def test_photographs_are_made_where_none_are_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimates, "PHOTOGRAPHS", 3)
    made = estimates.make_photographs(tmp_path / "photographs")
    assert [p.name for p in sorted(made.iterdir())] == ["000.png", "001.png", "002.png"]
    calls: list[list[str]] = []
    monkeypatch.setattr(estimates, "measure", lambda arguments, out: calls.append([*arguments, *out]) or row(1, 1))
    assert [name for name, _ in estimates.measure_all(["photographs", "group"], made)] == ["photographs", "group"]
    assert str(made) in calls[0] and "--out" in calls[0] and "PHOTOGRAPHS" not in calls[0]


def test_a_validation_gets_the_run_that_it_validates(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[str, ...]] = []
    monkeypatch.setattr(estimates, "run_command", lambda arguments: made.append(tuple(arguments)) or (0.0, []))
    monkeypatch.setattr(estimates, "measure", lambda arguments, out: made.append((*arguments, *out)) or row(1, 1))
    monkeypatch.setattr(estimates, "make_photographs", lambda folder: folder)
    assert len(list(estimates.measure_all(["validation"], None))) == 1
    (first, second) = made
    assert first[0] == "similarity" and second[:2] == ("validate", first[-1]) and "--out" not in second


def test_parts_are_counted_in_rehearsals(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(parts.time, "process_time", lambda: now[0])

    def wait(seconds: float) -> int:
        now[0] += seconds
        return 0

    def command(_: Any) -> None:
        with console.ProgressBars() as bars:
            wait(3.0)
            bars.begin(2, 0)
            for k in range(4):
                wait(2.0)
                bars.stage("clusters", k + 1, 4)
            wait(1.0)
        raise SystemExit(0)

    # twice as slow a machine as the one of the costs
    monkeypatch.setattr(estimate, "_rehearse", lambda: wait(2 * estimate.REHEARSAL))
    monkeypatch.setattr(parts.app, "main", command)
    assert parts.measure([]).at_pace_one() == pytest.approx({"start": 1.5, "clusters": 4.0, "end": 0.5})
    assert console.ProgressBars.__name__ == "ProgressBars"
