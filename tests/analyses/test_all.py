"""One command makes everything again that is older than what it rests on."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from analyses import all as everything
from analyses import tables
from analyses.support import ledger, provenance
from featmap import FeatmapError

COMMAND = "python -m analyses.octaves --model package.module:mine --name mine --image photograph.jpg"


def stored(folder: Path, name: str, **record: Any) -> None:
    (folder / "octaves").mkdir(exist_ok=True)
    (folder / "octaves" / f"{name}.json").write_text(json.dumps(record), encoding="utf-8")


def test_every_study_page_picture_notebook_and_benchmark_is_a_step() -> None:
    names = [step.name for step in everything.all_steps()]
    assert list(dict.fromkeys(names))[: len(tables.ORDER)] == list(tables.ORDER)
    assert {"tables", "directions", "trial", "showcase", "tour", "benchmarks.speed"} <= set(names)
    assert all(provenance.path_of(f"analyses.{name}") for name in names)


def test_every_stored_benchmark_is_a_step_or_has_a_reason() -> None:
    stored = {path.stem for path in (everything.HERE / "benchmarks").glob("*.json")}
    assert not set(ledger.BENCHMARKS) & set(everything.OTHER_BENCHMARKS)
    assert stored == {*ledger.BENCHMARKS, *everything.OTHER_BENCHMARKS}


def test_every_step_without_a_record_of_its_own_has_files_and_an_entry() -> None:
    steps = [step for step in everything.all_steps() if not step.network and step.name != "tables"]
    assert len(steps) == 10 and all(step.files == ledger.files_of(step.name) for step in steps)
    for step in steps:
        files = [f for f in step.files if f.suffix != ".log"]
        assert files and all(f.is_file() for f in files), step.name
        module = provenance.path_of(f"analyses.{step.name}")
        assert module is not None and "run(main)" in module.read_text(encoding="utf-8"), "which enters the command"


def test_a_study_is_carried_out_on_each_network_with_the_stored_command(tmp_path: Path) -> None:
    assert everything.study_steps("octaves", tmp_path) == [everything.Step("octaves", "reference")]
    stored(tmp_path, "reference")
    stored(tmp_path, "mine", command=COMMAND)
    reference, mine = everything.study_steps("octaves", tmp_path)
    assert reference.command == "python -m analyses.octaves"
    assert mine.lacking == ["--factories", "--image"] and mine.title == "octaves on mine"
    filled = everything.fill_in(mine, "nets", tmp_path / "p.jpg", None)
    assert filled.command == f"python -m analyses.octaves --model nets:mine --name mine --image {tmp_path / 'p.jpg'}"
    assert filled.lacking == []


def test_unknown_names_are_refused() -> None:
    with pytest.raises(FeatmapError, match="step 'octave' is unknown; allowed: maximised_unit, "):
        everything.choose(["octave"], everything.all_steps())


class Steps:
    """Steps whose states a test sets, and the commands that were run."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **changes: list[str]) -> None:
        self.changes, self.run, self.status = changes, list[str](), 0
        steps = [
            everything.Step(name, options=("--photographs", "FOLDER") if name == "third" else ()) for name in changes
        ]
        monkeypatch.setattr(everything, "all_steps", lambda: steps)
        monkeypatch.setattr(everything.Step, "changes", lambda step, weights: self.changes[step.name])
        monkeypatch.setattr(subprocess, "run", self.command)

    def command(self, words: list[str], **settings: Any) -> SimpleNamespace:
        assert settings["cwd"] == everything.HERE.parent
        self.run.append(" ".join(words[1:]))
        return SimpleNamespace(returncode=self.status)


def test_what_is_older_is_said_and_nothing_is_run(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    steps = Steps(monkeypatch, first=["analyses.first changed"], second=[], third=["recipe fast changed"])
    everything.main(stale=True)
    assert capsys.readouterr().out.splitlines() == [
        "first: analyses.first changed",
        "second: up to date",
        "third: recipe fast changed",
    ]
    everything.main(dry_run=True)
    assert capsys.readouterr().out.splitlines() == [
        "python -m analyses.first",
        "third: skipped, needs --photographs",
    ]
    assert steps.run == []


def test_older_steps_are_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    steps = Steps(monkeypatch, first=["analyses.first changed"], second=[], third=["recipe fast changed"])
    everything.main(photographs=tmp_path)
    assert steps.run == ["-m analyses.first", f"-m analyses.third --photographs {tmp_path}"]
    everything.main(names=["second"])
    assert steps.run[2:] == ["-m analyses.second"], "a step that is named is carried out in any case"


def test_a_failing_step_ends_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = Steps(monkeypatch, first=["analyses.first changed"], second=["analyses.second changed"])
    steps.status = 3
    with pytest.raises(FeatmapError, match=r"python -m analyses\.first ended with status 3; see above, then repeat"):
        everything.main()
    assert steps.run == ["-m analyses.first"]


def test_the_page_is_older_where_it_disagrees_with_the_results(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tables, "PAGE", tmp_path / "README.md")
    monkeypatch.setattr(tables, "build_page", lambda: "page")
    step = everything.Step("tables")
    assert step.changes("w") == ["the page and the stored results disagree"]
    (tmp_path / "README.md").write_text("page", encoding="utf-8")
    assert step.changes("w") == []


def test_a_study_without_a_result_is_not_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(everything, "RESULTS", tmp_path)
    step = everything.Step("octaves", "mine")
    assert step.changes("w") == ["not measured"]
    stored(tmp_path, "mine", study="octaves", weights_sha256="v", rests_on=provenance.identities("octaves"))
    assert step.changes("w") == [], "the weights of other networks are not at hand"
    full = everything.Step("octaves", "reference-full")
    rests = provenance.identities("octaves")
    stored(tmp_path, "reference-full", study="octaves", model="reference", weights_sha256="v", rests_on=rests)
    assert full.changes("w") == ["the weights changed"]
