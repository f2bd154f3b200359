"""Write analyses/README.md from the stored results of the studies.

    python -m analyses.tables [--check]

The page has one section for each study: the claim in our words, or a question of ours, the article's section, and a
table of findings by network. A network without results is "not measured". Everything comes from analyses/results:
conclusions are written again from the stored numbers, in the words of today. `--check` writes nothing and reports
whether the page agrees.
"""

from __future__ import annotations

import json
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

from analyses.support.commands import run
from analyses.support.provenance import UNRECORDED, outdated
from analyses.support.records import IN_FULL, MANY_WORDS, describe_descents, describe_left_out, read_stored
from analyses.support.study import NETWORKS, RESULTS, StoredResult, Study, Verdict
from analyses.support.verdicts import (
    describe_caveats,
    describe_disagreement,
    describe_gap,
    describe_parts,
    display_name,
    measured_networks,
    verdict_table,
)
from featmap import FeatmapError
from featmap.files import write_atomically

PAGE = Path(__file__).resolve().parent / "README.md"
ORDER = (
    *("maximised_unit", "neuron_growth", "octaves", "coactivation", "layer_maps", "metrics"),
    *("architectures", "gradient_sum", "reproducibility", "natural_start", "branches", "joint_pair"),
)
HEAD = """\
# Studies

Every experiment of the article that featmap grew from ("Feature Visualization I: Feature Maps"), as a command that
anyone can run from a checkout: on the bundled network, on `--model googlenet`, `inception_v3` or `resnet50` where their
weights are available, or on any other network with `--layers`:

    python -m analyses.NAME
    python -m analyses.NAME --model package.module:factory --mean 0.5,0.5,0.5 --std 0.5,0.5,0.5 --input-size 112 \\
        --layers FIRST,LAST --name COLUMN       # a network of one's own
    python -m analyses.tables       # writes this page from the stored results
    python -m analyses.all --stale  # says which results, pictures and pages are older than what they rest on

By default most studies draw 16 features of each layer at random and use three seeds of the noise, as on the bundled
network; `layer_maps` takes the first 8, `joint_pair` one pair with five seeds and random pairs. On networks trained on
ImageNet fewer were taken, for time. Units that a claim names are measured as well:
`--units LAYER:CHANNEL,...` names features to measure before any is drawn, each with rows of its own. On InceptionV3
those that the article names are measured so; where weights are not the article's, they are the same numbers, most
likely of other features.

Brackets are 95 % intervals over n features, each averaged over seeds first, unless a row says otherwise; with few
features they are wide, and may end beyond what is possible. The claims are our paraphrases of the article's; a study
that asks a question of ours instead says so in its row and its section.

A verdict concerns only the network and the sizes that were measured: the bundled network is small and was trained on
small images, those of the article on ImageNet. Other networks may have been measured with fewer layers, features or
seeds, or smaller images, than by default: the line with the link to the table has the layers, features and seeds, the
recipes with their image sizes and numbers of steps, and the command. Images may be smaller than the network's input
size; `--size PIXELS` makes others. Results with `--full`, by the article's octaves and numbers of steps (in recipes
called normalised with the gradient divided by its root mean square) but not always at its sizes, stand beside those
without it. Where `--model` is `package.module:factory`, the factory returns the network with its weights loaded;
`python -m analyses.all --factories MODULE` runs all those commands again.

The photograph `grace_hopper.jpg` is in matplotlib's sample data; this prints where:

    python -c "from matplotlib.cbook import get_sample_data as f; print(f('grace_hopper.jpg', asfileobj=False))"

Many features of a network trained on ImageNet have no gradient on noise; `--rescue 1` passes one through dead ReLUs
where a recipe does not do so itself, and what is left out all the same is counted beside the result.
"""


def load_study(name: str) -> Study:
    """Load the study of a module of this folder."""
    study = getattr(import_module(f"analyses.{name}"), "STUDY", None)
    if not isinstance(study, Study) or study.name != name:
        raise FeatmapError(f"analyses/{name}.py contains no study of that name")
    return study


def is_ours(name: str) -> bool:
    """Check whether a study asks a question of ours, and not whether a claim of the article holds."""
    module = f"analyses.{name}"
    return find_spec(module) is not None and bool(getattr(import_module(module), "OURS", False))


def restate(path: Path) -> tuple[Verdict, str]:
    """Write verdict and conclusion of a stored record again, from its findings and its table."""
    verdict: Verdict
    module = import_module(f"analyses.{path.parent.name}")
    verdict, conclusion = module.restate(StoredResult.read(path))
    return verdict, conclusion


def rewrite_conclusions(results: Path = RESULTS) -> list[Path]:
    """Write the conclusions of all records in the words of today, and the rule that today's verdicts follow.

    Raises
    ------
    FeatmapError
        If a verdict would be another one: then the study has to be run again, unless it compares networks.
    """
    changed = []
    for path in (p for name in ORDER for p in sorted((results / name).glob("*.json"))):
        record = json.loads(path.read_text(encoding="utf-8"))
        verdict, conclusion = restate(path)
        changing = getattr(import_module(f"analyses.{path.parent.name}"), "COMPARES", False)
        if verdict != record["verdict"] and not changing:
            raise FeatmapError(
                f"{path.parent.name}/{path.name}: the stored verdict is {record['verdict']!r}, today's {verdict!r}; "
                f"run python -m analyses.{path.parent.name}"
            )
        rule = load_study(path.parent.name).rule
        written = record | {"verdict": verdict, "conclusion": conclusion} | ({"rule": rule} if rule else {})
        if written != record:
            text = json.dumps(written, indent=1, ensure_ascii=False, allow_nan=False)
            write_atomically(path, lambda p, text=text: p.write_text(text + "\n", encoding="utf-8"))  # type: ignore[misc]
            changed.append(path)
    return changed


def format_number(value: float | None) -> str:
    """Format a number with three significant digits."""
    if value is None:
        return "undefined"
    if value != 0 and (abs(value) < 1e-3 or abs(value) >= 1e5):
        return f"{value:.2e}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"


def format_finding(finding: dict[str, Any]) -> str:
    """Format a finding's value with its interval and unit."""
    text = format_number(finding["value"])
    if finding["low"] is not None and finding["high"] is not None:
        text += f" [{format_number(finding['low'])}, {format_number(finding['high'])}]"
    return text + (f" {finding['unit']}" if finding["unit"] else "")


def escape_cell(text: str) -> str:
    """Escape a text so that it can neither end its table cell nor hide in markup."""
    return " ".join(str(text).split()).replace("|", "\\|").replace("<", "&lt;")


def notes_on(record: dict[str, Any]) -> list[str]:
    """Write which images were left out (many are named beside the verdict), the command, and what changed since."""
    left_out = [text for text in describe_left_out(record.get("images", {})) if MANY_WORDS not in text]
    notes = [f"{escape_cell(sentence)}." for sentence in left_out]
    notes += [f"Made by `{record['command']}`."] if record.get("command") else []
    older = outdated(record)
    if older == [UNRECORDED]:
        return [*notes, f"Code and recipes: {UNRECORDED}."]
    return [*notes, f"Older than what it rests on: {', '.join(older)}."] if older else notes


def study_section(study: Study, records: dict[str, dict[str, Any]]) -> str:
    """Write the section of one study."""
    heading, subject = ("Not of the article", "hypothesis") if is_ours(study.name) else ("Claim", "claim")
    lines = [
        f"## `{study.name}`",
        "",
        f'**{heading}** (section "{study.section}"): {study.claim}',
        "",
        f"**Measured**: {study.measured}. With `--full`: {study.full}.",
        "",
    ]
    disagreement = describe_disagreement(study.name, records, subject)
    lines += [disagreement, ""] if disagreement else []
    differing = describe_parts(study.name, records)
    lines += [escape_cell(differing), ""] if differing else []
    for model, record in records.items():
        verdict = "is not decided" if record["verdict"] == "not decided" else record["verdict"]
        many = "".join(f" {text}." for text in describe_left_out(record.get("images", {})) if MANY_WORDS in text)
        caveats = "".join(f" {text}." for text in describe_caveats(study, record["model"], record))
        text = escape_cell(record["conclusion"] + many + caveats)
        lines += [f"**{display_name(model, record)}**: the {subject} {verdict}. {text}", ""]
    for rule in dict.fromkeys(record["rule"] for record in records.values() if record.get("rule")):
        lines += [f"Rule: {escape_cell(rule)}.", ""]
    lines += ["| network | finding | value | n |", "|---|---|---|---|"]
    for model, record in records.items():
        for finding in record["findings"]:
            cells = (
                display_name(model, record).partition(" (")[0],
                escape_cell(finding["words"]),
                format_finding(finding),
            )
            lines.append(f"| {' | '.join(cells)} | {finding['count']:,} |")
    trained = measured_networks(records)
    lines += [
        f"| {model}{IN_FULL * full} | {escape_cell(describe_gap(study, model, full=full))} | | |"
        for full in (False, True)
        for model in NETWORKS
        if f"{model}{IN_FULL * full}" not in trained and (not full or any(name.endswith(IN_FULL) for name in trained))
    ]
    for model, record in records.items():
        settings = record["settings"]
        options = "".join(f"--{option}; " for option in ("full", "image") if settings.get(option))
        if settings.get("input_size"):
            options += f"--input-size {settings['input_size']}; "
        if settings.get("size"):
            options += f"--size {settings['size']}; "
        if settings.get("units"):
            options += f"--units {','.join(settings['units'])}; "
        lines += [
            "",
            f"{display_name(model, record)}: layers {', '.join(settings['layers'])}; "
            f"weights {record['weights_sha256'][:12]}; {options}--features {settings['features']} "
            f"--seeds {settings['seeds']}; {describe_descents(record)}torch {settings['torch']}, {settings['device']}, "
            f"{settings['threads']} threads; [table](results/{study.name}/{record['stem']}.csv). "
            + " ".join(notes_on(record)),
        ]
        for figure in record["figures"]:
            if figure.endswith((".png", ".webp")):
                lines += ["", f"![{study.name}, {model}](results/{study.name}/{figure})"]
            else:
                lines += ["", f"[{figure}](results/{study.name}/{figure})"]
    return "\n".join(lines) + "\n"


def build_page(results: Path = RESULTS) -> str:
    """Write the whole page."""
    studies = [load_study(name) for name in ORDER]
    records = {name: read_stored(name, results) for name in ORDER}
    table = verdict_table(studies, records, [study.name for study in studies if is_ours(study.name)])
    return "\n".join([HEAD, table, *(study_section(study, records[study.name]) for study in studies)])


def main(
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; check that the page agrees with the results.")
    ] = False,
) -> None:
    """Write analyses/README.md from the stored results, whose conclusions are written again from their numbers."""
    if not check:
        for path in rewrite_conclusions():
            print(path)
    text = build_page()
    if check:
        if not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != text:
            raise FeatmapError(f"{PAGE.name} and the stored results disagree; run python -m analyses.tables")
        return
    write_atomically(PAGE, lambda p: p.write_text(text, encoding="utf-8"))
    print(PAGE)


if __name__ == "__main__":
    run(main)
