"""The page of studies and what is stored agree; how the page is written."""

from __future__ import annotations

import hashlib
import json
import shlex
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import torchvision

from analyses import showcase, tables
from analyses.support import provenance, verdicts
from analyses.support.records import read_stored, table_changed
from analyses.support.study import NETWORKS, RESULTS, Study, Verdict
from featmap import FeatmapError, load
from featmap.network.loading import find_data_folder

HEADINGS = {
    "Feature Visualization from First Principles",
    "Mapping InceptionV3 Features",
    "Feature Maps are Metric Invariant",
    "Mapping ResNet Features",
    "Layer and Neuron Interactions",
}
"""Of the article's sections, those that make claims."""
HEADS = {"aux_logits": False, "init_weights": False}
MODELS: dict[str, dict[str, bool]] = {"googlenet": HEADS, "squeezenet": {}, "inception_v3": HEADS, "resnet50": {}}
STORED = sorted(p for p in RESULTS.glob("*/*.json") if p.parent.name not in ("directions", "trial"))
FILES = sorted(p.stem for p in tables.PAGE.parent.glob("*.py") if "\nSTUDY = Study(" in p.read_text(encoding="utf-8"))


def test_page_and_stored_results_agree() -> None:
    assert tables.PAGE.read_text(encoding="utf-8") == tables.build_page(), "run python -m analyses.tables"


def test_every_study_was_run_on_the_bundled_network() -> None:
    assert sorted(tables.ORDER) == FILES
    assert sorted(p.parent.name for p in STORED if p.stem == "reference") == FILES


@pytest.mark.parametrize("path", STORED, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_verdict_and_conclusion_follow_from_the_stored_numbers(path: Path) -> None:
    record = json.loads(path.read_text(encoding="utf-8"))
    assert tables.restate(path) == (record["verdict"], record["conclusion"]), "run python -m analyses.tables"


def test_conclusions_are_written_again_and_other_verdicts_refused(tmp_path: Path) -> None:
    shutil.copytree(RESULTS / "octaves", tmp_path / "octaves")
    path = tmp_path / "octaves" / "reference.json"
    written = path.read_text(encoding="utf-8")
    path.write_text(written.replace("That octaves ", "That some octaves "), encoding="utf-8")
    assert tables.rewrite_conclusions(tmp_path) == [path]
    assert path.read_text(encoding="utf-8") == written and tables.rewrite_conclusions(tmp_path) == []
    record = json.loads(written)
    path.write_text(json.dumps(record | {"rule": "an earlier one"}), encoding="utf-8")
    assert tables.rewrite_conclusions(tmp_path) == [path], "the rule is the one that today's verdict follows"
    assert path.read_text(encoding="utf-8") == written
    path.write_text(json.dumps(record | {"verdict": "holds"}), encoding="utf-8")
    with pytest.raises(FeatmapError, match=r"the stored verdict is 'holds', today's '.*'; run python -m analyses"):
        tables.rewrite_conclusions(tmp_path)


def test_a_verdict_about_several_networks_is_written_again(tmp_path: Path) -> None:
    shutil.copytree(RESULTS / "architectures", tmp_path / "architectures")
    path = tmp_path / "architectures" / "reference.json"
    written = path.read_text(encoding="utf-8")
    path.write_text(json.dumps(json.loads(written) | {"verdict": "holds"}), encoding="utf-8")
    assert tables.rewrite_conclusions(tmp_path) == [path] and path.read_text(encoding="utf-8") == written


@pytest.mark.parametrize("name", FILES)
def test_a_study_says_what_it_claims_and_measures(name: str) -> None:
    study = tables.load_study(name)
    assert study.section in HEADINGS
    assert not study.rule.endswith(".")
    assert study.claim.endswith(".") and not study.measured.endswith(".") and not study.full.endswith(".")
    assert study.layers.keys() == set(NETWORKS) and all(study.layers.values())


@pytest.mark.parametrize(("model", "extra"), MODELS.items())
def test_layers_of_the_studies_exist(model: str, extra: dict[str, bool]) -> None:
    with torch.random.fork_rng():
        architecture = {"squeezenet": "squeezenet1_1"}.get(model, model)
        network = load(torchvision.models.get_model(architecture, weights=None, **extra).eval(), input_size=128)
    known = network.trace(128).layers
    named = {name: [la for la in tables.load_study(name).layers[model] if la not in known] for name in FILES}
    assert not any(named.values()), named


def faults(path: Path) -> list[str]:
    """What a stored result lacks."""
    record = json.loads(path.read_text(encoding="utf-8"))
    files = [path.with_suffix(".csv"), *(path.parent / figure for figure in record["figures"])]
    found = [f"no {p.name}" for p in files if not p.is_file()]
    found += [f"{p.name} is large" for p in files if p.is_file() and p.stat().st_size > 500_000]
    if (record["study"], record["stem"]) != (path.parent.name, path.stem) or record["verdict"] not in get_args(Verdict):
        found.append("name or verdict")
    if table_changed(path, record):
        found.append(f"{path.stem}.csv is another table")
    if not any(c.isdigit() for c in record["conclusion"]) or not record["conclusion"].endswith("."):
        found.append("a sentence with a number")
    names = [finding["name"] for finding in record["findings"]]
    if not names or len(set(names)) != len(names):
        found.append("findings, each with a name of its own")
    for finding in record["findings"]:
        low, value, high = (finding[k] for k in ("low", "value", "high"))
        if (low is None) != (high is None) or (low is not None and (value is None or low > high)):
            found.append(f"the interval of {finding['name']}")
    return found


def test_stored_results_are_complete() -> None:
    assert {f"{p.parent.name}/{p.stem}": faults(p) for p in STORED if faults(p)} == {}


def test_faults_of_a_stored_result_are_detected(tmp_path: Path) -> None:
    path = tmp_path / "some" / "own.json"
    path.parent.mkdir()
    good = record("own") | {"study": "some", "figures": ["own.png"]}
    for name in ("own.csv", "own.png"):
        (path.parent / name).write_bytes(b"x")

    def seen(**changes: Any) -> list[str]:
        path.write_text(json.dumps(good | changes), encoding="utf-8")
        return faults(path)

    assert seen() == []
    assert seen(figures=["own-other.png"]) == ["no own-other.png"]
    assert seen(verdict="perhaps") == seen(study="other") == ["name or verdict"]
    assert seen(conclusion="It is so.") == seen(conclusion="It is 3") == ["a sentence with a number"]
    assert seen(findings=[finding(), finding()]) == ["findings, each with a name of its own"]
    for wrong in (finding(low=0.8), finding(high=None), finding(value=None)):
        assert seen(findings=[wrong]) == ["the interval of a"]
    held = hashlib.sha256(b"x").hexdigest()
    assert seen(csv_sha256=held) == [] and seen(csv_sha256="0" * 64) == ["own.csv is another table"]
    (path.parent / "own.csv").write_bytes(b"x" * 600_000)
    assert seen() == ["own.csv is large"]


def test_results_of_the_bundled_network_are_of_its_present_weights() -> None:
    sha256 = json.loads((find_data_folder() / "card.json").read_text(encoding="utf-8"))["sha256"]
    stored = {p.parent.name: json.loads(p.read_text(encoding="utf-8")) for p in STORED if p.stem == "reference"}
    assert {name: r["weights_sha256"] for name, r in stored.items()} == dict.fromkeys(stored, sha256)
    trial = json.loads((RESULTS / "trial" / "trial.json").read_text(encoding="utf-8"))
    assert sha256 in trial["network"] and sha256 in (RESULTS.parent / "validation.md").read_text(encoding="utf-8")
    for name in ("speed", "search", "whole"):
        path = RESULTS.parent / "benchmarks" / f"{name}.json"
        assert not path.is_file() or sha256 in path.read_text(encoding="utf-8")


def test_the_front_pages_pictures_are_of_the_present_weights() -> None:
    card = json.loads((find_data_folder() / "card.json").read_text(encoding="utf-8"))
    folder = RESULTS.parent / "pictures"
    known = json.loads((folder / "pictures.json").read_text(encoding="utf-8"))
    commands = showcase.COMMANDS | {"googlenet": showcase.IMAGENET}
    assert known["weights"] == card["sha256"] and set(known["pictures"]) == set(commands)
    for name, made in known["pictures"].items():
        assert made["sha256"] == hashlib.sha256((folder / f"{name}.png").read_bytes()).hexdigest()
        assert made["command"] == "featmap " + shlex.join(commands[name])
        assert ("weights" in made) == (name == "googlenet"), "the one picture that is not of the bundled network"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, "undefined"),
        (0.0, "0"),
        (0.12345, "0.123"),
        (-0.5, "-0.5"),
        (0.001, "0.001"),
        (0.00012345, "1.23e-04"),
        (12.345, "12.3"),
        (123.45, "123"),
        (1234.5, "1,234"),
        (-45678.0, "-45,678"),
        (123456.0, "1.23e+05"),
    ],
)
def test_numbers_are_shown_with_three_significant_digits(value: float | None, expected: str) -> None:
    assert tables.format_number(value) == expected


def finding(**changes: Any) -> dict[str, Any]:
    return {"name": "a", "value": 0.5, "low": 0.25, "high": 0.75, "count": 16, "words": "a thing", "unit": ""} | changes


def test_a_cell_holds_value_interval_and_unit() -> None:
    assert tables.format_finding(finding()) == "0.5 [0.25, 0.75]"
    assert tables.format_finding(finding(unit="pixels")) == "0.5 [0.25, 0.75] pixels"
    assert tables.format_finding(finding(low=None, high=None)) == "0.5"
    assert tables.format_finding(finding(value=None, low=None, high=None)) == "undefined"


def test_texts_cannot_leave_their_cell() -> None:
    assert tables.escape_cell("a | b\n<script>alert()</script>  c") == r"a \| b &lt;script>alert()&lt;/script> c"


def record(model: str, **changes: Any) -> dict[str, Any]:
    settings = {"layers": ["one", "two"], "features": 4, "seeds": 2, "full": False, "device": "cpu", "threads": 2}
    return {
        "model": model,
        "stem": model,
        "verdict": "holds",
        "conclusion": "It is 0.5.",
        "weights_sha256": "0123456789abcdef",
        "settings": settings | {"torch": "2.9"},
        "findings": [finding()],
        "figures": [f"{model}.png", f"{model}-maps.webp", f"{model}-growth.gif"],
    } | changes


STUDY = Study(
    "some", section="A section", claim="Claims.", measured="a figure", full="more", layers={"reference": ("one",)}
)


def test_networks_that_were_not_measured_are_named() -> None:
    lines = tables.study_section(STUDY, {"googlenet": record("googlenet")}).splitlines()
    assert "| googlenet | a thing | 0.5 [0.25, 0.75] | 16 |" in lines
    assert [line for line in lines if "not measured" in line] == [
        f"| {model} | not measured: `python -m analyses.some{options}` | | |"
        for model, options in verdicts.OPTIONS.items()
        if model != "googlenet"
    ]
    assert "**googlenet**: the claim holds. It is 0.5." in lines
    assert '**Claim** (section "A section"): Claims.' in lines
    assert "**Measured**: a figure. With `--full`: more." in lines


def test_a_verdict_is_shown_with_the_rule_that_it_was_stored_with() -> None:
    lines = tables.study_section(STUDY, {"own": record("own", rule="the claim holds if it is | above 0")}).splitlines()
    at = lines.index("**own**: the claim holds. It is 0.5.")
    assert lines[at + 2] == r"Rule: the claim holds if it is \| above 0."
    assert "Rule:" not in tables.study_section(STUDY, {"own": record("own")})


def test_settings_table_and_figures_are_linked() -> None:
    text = tables.study_section(STUDY, {"own": record("own")})
    assert "own: layers one, two; weights 0123456789ab; --features 4 --seeds 2; torch 2.9, cpu, 2 threads;" in text
    assert "[table](results/some/own.csv)" in text
    assert "![some, own](results/some/own.png)" in text and "![some, own](results/some/own-maps.webp)" in text
    assert "\n[own-growth.gif](results/some/own-growth.gif)" in text
    full = record("own", settings=record("own")["settings"] | {"full": True})
    assert "0123456789ab; --full; --features" in tables.study_section(STUDY, {"own": full})


def test_random_weights_are_named_so_and_measure_no_published_network() -> None:
    drawn = record("resnet50") | {"network": "network resnet50, weights random:0, SHA-256 ab"}
    lines = tables.study_section(STUDY, {"resnet50": drawn}).splitlines()
    assert "**resnet50 with random weights**: the claim holds. It is 0.5." in lines
    assert "| resnet50 with random weights | a thing | 0.5 [0.25, 0.75] | 16 |" in lines
    assert "| resnet50 | not measured: `python -m analyses.some --model resnet50` | | |" in lines


def test_a_question_of_ours_is_no_claim_of_the_article() -> None:
    assert [name for name in tables.ORDER if tables.is_ours(name)] == ["branches"] and not tables.is_ours("some")
    study = tables.load_study("branches")
    assert study.claim.startswith("Our question (the article describes parallel branches and claims nothing of them): ")
    records = {"own": record("own"), "reference": record("reference", verdict="does not hold")}
    lines = tables.study_section(study, records).splitlines()
    assert f'**Not of the article** (section "{study.section}"): {study.claim}' in lines
    assert "**own**: the hypothesis holds. It is 0.5." in lines and not any("the claim" in line for line in lines)
    assert any(line.startswith("The networks disagree about the hypothesis: ") for line in lines)
    table = verdicts.verdict_table([STUDY, study], {"some": {}, "branches": records}, ["branches"]).splitlines()
    assert table[4].startswith("| [some](#some) |  | not") and table[5].startswith(
        "| [branches](#branches) (our question) | similar features share a branch | does not hold (maps x 2) |"
    )
    assert "| [branches](#branches) (our question) |" in tables.build_page()


def test_a_result_in_full_has_a_row_of_its_own_in_the_columns_of_its_network(tmp_path: Path) -> None:
    (tmp_path / "some").mkdir()
    for model in ("googlenet", "own"):
        (tmp_path / "some" / f"{model}.json").write_text(json.dumps(record(model)), encoding="utf-8")
    settings = record("own")["settings"] | {"full": True, "size": 224}
    full = record("googlenet", settings=settings, verdict="does not hold", stem="googlenet-full")
    (tmp_path / "some" / "googlenet-full.json").write_text(json.dumps(full), encoding="utf-8")
    records = read_stored("some", tmp_path)
    assert list(records) == ["googlenet", "googlenet in full", "own"]
    lines = verdicts.verdict_table([STUDY], {"some": records}).splitlines()
    assert lines[2].endswith("| own |") and "in full" not in lines[2]
    assert lines[4:6] == [
        "| [some](#some) |  | not measured | holds (4 x 2) |" + " not measured |" * 3 + " holds (4 x 2) |",
        "| [some](#some) in full |  | not measured | does not hold (4 x 2) |" + " not measured |" * 4,
    ]
    text = tables.study_section(STUDY, records)
    assert "**googlenet in full**: the claim does not hold. It is 0.5." in text
    gap = "| {0} in full | not measured: `python -m analyses.some --model {0} --full` | | |"
    assert gap.format("inception_v3") in text and gap.format("googlenet") not in text
    assert "--full" not in tables.study_section(STUDY, {"own": record("own")}).replace("With `--full`", "")
    assert "--full; --size 224; --features" in text and "results/some/googlenet-full.csv" in text
    assert "it holds on googlenet and own, it does not hold on googlenet in full" in text


def test_the_command_that_fills_a_gap_names_network_and_photograph() -> None:
    assert verdicts.filling_command(STUDY, "squeezenet").endswith("some --model squeezenet1_1 --name squeezenet")
    starting = replace(STUDY, takes_image=True)
    assert verdicts.filling_command(starting, "reference") == "python -m analyses.some --image PHOTOGRAPH"
    assert verdicts.OPTIONS.keys() == set(NETWORKS)


def test_a_result_says_its_command_what_was_left_out_and_what_changed_since() -> None:
    images = {"one": {"live": 9, "dead": 3}, "two": {"live": 4, "dead": 1, "unconverged": 2}, "three": {"live": 5}}
    made = record("own", command="python -m analyses.some --name own", images=images, origin="a zoo")
    text = tables.study_section(STUDY, {"own": made})
    assert "**own (a zoo)**: the claim holds." in text and "| own | a thing |" in text
    assert "3 of 12 images of one are left out (3 without a gradient)." in text
    many = "3 of 7 images of two are left out (more than a third, 1 without a gradient, 2 whose response did not rise)."
    assert f"**own (a zoo)**: the claim holds. It is 0.5. {many}" in text.splitlines() and text.count(many) == 1
    assert "of three" not in text and "Made by `python -m analyses.some --name own`." in text
    assert f"Code and recipes: {provenance.UNRECORDED}." in text
    rests = provenance.identities("octaves")
    assert tables.notes_on(record("own", study="octaves", rests_on=rests)) == []
    older = json.loads(json.dumps(rests))
    older["formula"] = 0
    (note,) = tables.notes_on(record("own", study="octaves", rests_on=older))
    assert note == "Older than what it rests on: the formula of S changed."


def test_recipes_sizes_and_steps_are_in_the_line_with_layers_and_features() -> None:
    used = [{"recipe": "article-normalised", "sizes": [76, 86, 96], "steps": 100}]
    settings = record("own")["settings"] | {"units": ["one:3", "two:0"]}
    text = tables.study_section(STUDY, {"own": record("own", descents=used, settings=settings)})
    assert (
        "--units one:3,two:0; --features 4 --seeds 2; article-normalised: octaves of 76, 86 and 96 pixels, 100 steps; "
        "torch 2.9" in text
    )


@pytest.mark.parametrize("path", STORED, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_caveats_can_be_written_for_every_stored_result(path: Path) -> None:
    held = json.loads(path.read_text(encoding="utf-8"))
    study = tables.load_study(path.parent.name)
    texts = verdicts.describe_caveats(study, held["model"], held)
    assert all(text and not text.endswith(".") for text in texts)
    drawn = study.units.get(held["model"]) and "units" not in held["settings"]
    assert any(text.startswith("The features were drawn") for text in texts) == bool(drawn)


def test_hostile_words_stay_in_their_row() -> None:
    words = finding(words="a | b <img src=x>", value=None, low=None, high=None, count=12345)
    text = tables.study_section(STUDY, {"own": record("own", findings=[words], conclusion="1 <b>|\n| x |")})
    assert r"| own | a \| b &lt;img src=x> | undefined | 12,345 |" in text.splitlines()
    assert "<img" not in text and "<b>" not in text and "\n| x |" not in text


def test_stored_results_come_in_the_articles_order(tmp_path: Path) -> None:
    (tmp_path / "some").mkdir()
    for model in ("vgg", "resnet50", "reference", "alexnet"):
        (tmp_path / "some" / f"{model}.json").write_text(json.dumps(record(model)), encoding="utf-8")
    assert list(read_stored("some", tmp_path)) == ["reference", "resnet50", "alexnet", "vgg"]
    assert read_stored("other", tmp_path) == {}


def test_a_table_that_was_changed_or_lost_makes_no_page(tmp_path: Path) -> None:
    (tmp_path / "some").mkdir()
    table, path = (tmp_path / "some" / f"own.{suffix}" for suffix in ("csv", "json"))
    path.write_text(json.dumps(record("own", csv_sha256=hashlib.sha256(b"x\n1\n").hexdigest())), encoding="utf-8")
    table.write_bytes(b"x\n1\n")
    assert list(read_stored("some", tmp_path)) == ["own"]
    table.write_bytes(b"x\n2\n")
    with pytest.raises(FeatmapError, match=r"own\.csv is not the table stored .*run python -m analyses\.some"):
        read_stored("some", tmp_path)
    table.unlink()
    with pytest.raises(FeatmapError, match="is not the table"):
        read_stored("some", tmp_path)


def test_a_changed_result_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    results, page = tmp_path / "results", tmp_path / "README.md"
    (results / "some").mkdir(parents=True)
    path = results / "some" / "reference.json"
    path.write_text(json.dumps(record("reference")), encoding="utf-8")
    whole = tables.build_page
    monkeypatch.setattr(tables, "ORDER", ("some",))
    monkeypatch.setattr(tables, "load_study", lambda name: STUDY)
    monkeypatch.setattr(tables, "build_page", lambda: whole(results))
    monkeypatch.setattr(tables, "PAGE", page)
    with pytest.raises(FeatmapError, match=r"disagree; run python -m analyses\.tables"):
        tables.main(check=True)  # there is no page
    tables.main()
    assert page.read_text(encoding="utf-8").startswith("# Studies") and capsys.readouterr().out == f"{page}\n"
    tables.main(check=True)
    path.write_text(json.dumps(record("reference", findings=[finding(value=0.51)])), encoding="utf-8")
    with pytest.raises(FeatmapError, match="disagree"):
        tables.main(check=True)


def test_a_file_that_holds_no_such_study_is_refused() -> None:
    with pytest.raises(FeatmapError, match=r"analyses/evaluate_reference\.py contains no study"):
        tables.load_study("evaluate_reference")
