"""What a result rests on: digests of code, the modules that count, recipes, and what is older than they are."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from analyses import tables
from analyses.support import commands, ledger, provenance
from analyses.support.study import RESULTS
from featmap.optimize.recipe import RECIPES

CODE = '"""Text."""\nSIZE = 3\n"""Pixels."""\n\ndef area(side):\n    """Square."""\n    return side * side  # exact\n'
STORED = sorted(p for p in RESULTS.glob("*/*.json") if p.parent.name in tables.ORDER)


def digest_of(text: str, folder: Path) -> str:
    path = folder / "module.py"
    path.write_text(text, encoding="utf-8")
    return provenance.code_digest(path)


def test_comments_and_docstrings_do_not_count_and_code_does(tmp_path: Path) -> None:
    plain = "SIZE = 3\n\n\ndef area(side):\n    return side * side\n"
    assert digest_of(CODE, tmp_path) == digest_of(plain, tmp_path)
    assert digest_of(plain.replace("side * side", "(side\n        * side)"), tmp_path) == digest_of(plain, tmp_path)
    assert len({digest_of(t, tmp_path) for t in (plain, plain.replace("3", "4"), plain.replace("*", "+"))}) == 3
    assert digest_of('def f():\n    """Only this."""\n', tmp_path) == digest_of("def f():\n    pass\n", tmp_path)


def checkout(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        path = folder / "analyses" / f"{name}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder


def test_modules_of_this_folder_count_with_what_they_import(tmp_path: Path) -> None:
    root = checkout(
        tmp_path,
        a="import numpy\nfrom analyses import b\nfrom featmap import load\n",
        b="def f():\n    from analyses.c import g\n",
        c="import analyses.a\n",
        d="",
    )
    assert list(provenance.modules_of("analyses.a", root=root)) == ["analyses.a", "analyses.b", "analyses.c"]
    assert list(provenance.modules_of("analyses.d", root=root)) == ["analyses.d"]


def test_modules_that_no_number_depends_on_do_not_count() -> None:
    found = provenance.identities("octaves")
    assert {"octaves", "formulas.spectra", "support.image_sets", "support.study"} <= found["code"].keys()
    assert not found["code"].keys() & {"tables", "support.records", "support.study_command", "support.provenance"}


def test_recipes_count_that_a_module_names(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text('from featmap.optimize.recipe import INTERACT\nNAME = "pixels"\n', encoding="utf-8")
    assert provenance.named_recipes([path]) == {name: RECIPES[name].digest for name in ("interact", "pixels")}


def test_what_changed_is_named() -> None:
    then = {"code": {"a": "1", "b": "2"}, "recipes": {"fast": "3"}, "formula": 1}
    assert provenance.changes(then, then) == []
    now = {"code": {"a": "9", "c": "2"}, "recipes": {"fast": "4"}, "formula": 2}
    assert provenance.changes(then, now) == [
        "analyses.a changed",
        "analyses.b is gone",
        "analyses.c is new",
        "recipe fast changed",
        "the formula of S changed",
    ]


def test_a_result_is_compared_with_its_study_and_with_weights_that_are_at_hand() -> None:
    record = {"study": "octaves", "weights_sha256": "one", "rests_on": provenance.identities("octaves")}
    assert provenance.outdated(record) == provenance.outdated(record, "one") == []
    assert provenance.outdated(record, "two") == ["the weights changed"]
    assert provenance.outdated({"study": "octaves", "weights_sha256": "one"}) == [provenance.UNRECORDED]
    older = json.loads(json.dumps(record))
    older["rests_on"]["code"]["octaves"] = "0" * 12
    assert provenance.outdated(older, "two") == ["the weights changed", "analyses.octaves changed"]


@pytest.mark.parametrize("path", STORED, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_the_page_names_results_that_are_older_than_what_they_rest_on(path: Path) -> None:
    record = json.loads(path.read_text(encoding="utf-8"))
    older = [note for note in tables.notes_on(record) if "older" in note.lower() or provenance.UNRECORDED in note]
    page = tables.PAGE.read_text(encoding="utf-8")
    line = next(x for x in page.splitlines() if f"](results/{path.parent.name}/{path.stem}.csv)" in x)
    said = (
        f"{' and '.join(older)} Run python -m analyses.{path.parent.name} again, or python -m analyses.tables to say so"
    )
    assert all(note in line for note in older), said
    assert older or "lder than what it rests on" not in line, "run python -m analyses.tables"


def test_a_ledger_remembers_code_weights_and_files(tmp_path: Path) -> None:
    made, book = tmp_path / "picture.png", tmp_path / "made.json"
    assert ledger.changes_of("showcase", [made], "w", book) == ["picture.png is missing"]
    made.write_bytes(b"1")
    assert ledger.changes_of("showcase", [made], "w", book) == [provenance.UNRECORDED]
    ledger.remember("showcase", [made], "w", book)
    ledger.remember("tour", [], "w", book)
    assert ledger.changes_of("showcase", [made], "w", book) == [] and list(ledger.read_ledger(book)) == [
        "showcase",
        "tour",
    ]
    assert ledger.changes_of("showcase", [made], "v", book) == ["the weights changed"]
    made.write_bytes(b"2")
    assert ledger.changes_of("showcase", [made], "w", book) == [
        "picture.png was changed by hand, or by its own command"
    ]


class Pictures:
    """A command of two pictures of its own and one of another network, and its ledger, in a folder of its own."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.files = tuple(folder / name for name in ("one.png", "two.png", "googlenet.png"))
        self.book, self.time = folder / "made.json", 0
        for file in self.files:
            file.write_bytes(b"0")
        monkeypatch.setattr(ledger, "files_of", lambda name: self.files if name == "showcase" else ())
        self.enter = ledger.enter
        monkeypatch.setattr(ledger, "enter", lambda *given: self.enter(*given, self.book))
        monkeypatch.setattr(provenance, "weights_of", lambda: "w")

    def give(self, monkeypatch: pytest.MonkeyPatch, *options: str, made: int = 2) -> list[str]:
        """Give the command, and say what is older after it."""
        monkeypatch.setattr(sys, "argv", ["showcase", *options])

        def main(count: int) -> None:
            for file in self.files[:count]:
                self.time += 1
                file.write_bytes(str(self.time).encode())
                os.utime(file, (self.time, self.time))  # clocks of file systems are coarse

        commands.entered(main, "showcase")(made)
        return ledger.changes_of("showcase", self.files, "w", self.book)


def test_a_command_enters_itself_when_it_has_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = Pictures(tmp_path, monkeypatch)
    assert pictures.give(monkeypatch, made=1) == [provenance.UNRECORDED], "one of them is not all"
    assert pictures.give(monkeypatch, "--seeds", "1") == [provenance.UNRECORDED], "nor is another setting"
    assert pictures.give(monkeypatch, made=0) == [provenance.UNRECORDED] and not pictures.book.exists()
    assert pictures.give(monkeypatch, "--runs", "folder") == [], "the third is kept where its network is not named"
    entry = ledger.read_ledger(pictures.book)["showcase"]
    assert entry["rests_on"] == provenance.identities("showcase") and set(entry["files"]) == {
        f.name for f in pictures.files
    }
    pictures.files[2].write_bytes(b"by hand")
    assert pictures.give(monkeypatch) == [] and pictures.give(monkeypatch, "--imagenet=nets", made=3) == []


@pytest.mark.parametrize(
    ("options", "entered"),
    [
        (("--imagenet", "--model nets:make --input-size 224", "--runs", "folder"), True),
        (("--out", "folder", "--photographs", "--folder"), True),
        (("--debug", "--seeds", "1"), False),
        (("--runs", "folder", "--seeds=1"), False),
    ],
)
def test_only_settings_that_change_what_is_made_keep_a_command_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], entered: bool
) -> None:
    pictures = Pictures(tmp_path, monkeypatch)
    assert pictures.give(monkeypatch, *options, made=3) == ([] if entered else [provenance.UNRECORDED])


def test_a_part_that_is_made_again_leaves_what_the_whole_rests_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = Pictures(tmp_path, monkeypatch)
    pictures.give(monkeypatch)
    older = ledger.read_ledger(pictures.book)
    older["showcase"]["rests_on"]["code"]["showcase"] = "0" * 12
    pictures.book.write_text(json.dumps(older), encoding="utf-8")
    assert pictures.give(monkeypatch, "--only", "one", made=1) == ["analyses.showcase changed"]
    assert pictures.give(monkeypatch) == []


def test_a_command_that_fails_or_has_no_files_enters_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = Pictures(tmp_path, monkeypatch)

    def main() -> None:
        raise ValueError

    with pytest.raises(ValueError):
        commands.entered(main, "showcase")()
    assert commands.entered(main, "octaves") is main and not pictures.book.exists()
