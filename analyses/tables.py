"""Write analyses/README.md from what the studies stored.

    python -m analyses.tables [--check]

One section a study: the claim in our words, the article's section, and a table with a row a network. A network that was
not put to a study is "not measured". Everything comes from analyses/results; `--check` writes nothing and says whether
the page agrees with them.
"""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

from analyses.support.commands import run
from analyses.support.study import NETWORKS, RESULTS, Study
from featmap import FeatmapError
from featmap.files import hash_file, write_atomically

PAGE = Path(__file__).resolve().parent / "README.md"
ORDER = (
    *("maximised_unit", "neuron_growth", "octaves", "coactivation", "layer_maps", "metrics"),
    *("architectures", "gradient_sum", "reproducibility", "natural_start", "branches", "joint_pair"),
)
HEAD = """\
# Studies

Every experiment of the article that featmap grew from ("Feature Visualization I: Feature Maps"), as a command that
anyone can run from a checkout, on the bundled network or with `--model googlenet`, `inception_v3` or `resnet50` where
their weights can be had, or on any other network with `--layers`:

    python -m analyses.NAME
    python -m analyses.tables       # makes this page of the stored results

A study draws 16 features at random of each of its layers and takes three seeds of the noise, unless its claim names its
units; brackets hold 95 % intervals over features (n of them), each averaged over seeds before, unless a row says
otherwise. What the claims say is our paraphrase. A claim is judged on the network and at the sizes that were measured,
and on nothing else: the bundled network is a small one trained on small images, the article's were ImageNet's.
"""


def load_study(name: str) -> Study:
    """Return the study of a file of this folder."""
    found = getattr(import_module(f"analyses.{name}"), "STUDY", None)
    if not isinstance(found, Study) or found.name != name:
        raise FeatmapError(f"analyses/{name}.py holds no study of that name")
    return found


def read_stored(name: str, results: Path) -> dict[str, dict[str, Any]]:
    """Return what is stored of a study, by network: those of the article first.

    Raises
    ------
    FeatmapError
        if the table beside a record is not the one that was stored with it (records of old do not say which).
    """
    found = {}
    for path in sorted((results / name).glob("*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        if table_changed(path, record):
            raise FeatmapError(
                f"{name}/{path.stem}.csv is not the table that {path.name} was made with; run python -m analyses.{name}"
            )
        found[str(record["model"])] = record
    return {m: found[m] for m in (*NETWORKS, *sorted(found)) if m in found}


def table_changed(path: Path, record: dict[str, Any]) -> bool:
    """Is the CSV beside a stored record another one than it was stored with, or gone?"""
    table, told = path.with_suffix(".csv"), record.get("csv_sha256")
    return told is not None and not (table.is_file() and hash_file(table) == told)


def format_number(value: float | None) -> str:
    """Return a number as the tables show it: three significant digits."""
    if value is None:
        return "undefined"
    if value != 0 and (abs(value) < 1e-3 or abs(value) >= 1e5):
        return f"{value:.2e}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"


def format_finding(finding: dict[str, Any]) -> str:
    """Return a finding's value with its interval and unit."""
    text = format_number(finding["value"])
    if finding["low"] is not None and finding["high"] is not None:
        text += f" [{format_number(finding['low'])}, {format_number(finding['high'])}]"
    return text + (f" {finding['unit']}" if finding["unit"] else "")


def escape_cell(text: str) -> str:
    """Return a text that cannot end its cell of a table or hide in markup."""
    return " ".join(str(text).split()).replace("|", "\\|").replace("<", "&lt;")


def is_random(record: dict[str, Any]) -> bool:
    """Is this of a network whose weights were drawn, not trained?"""
    return ", weights random" in record.get("network", "")


def display_name(model: str, record: dict[str, Any]) -> str:
    """Return a network's name as the page writes it."""
    return f"{model} with random weights" if is_random(record) else model


def study_section(study: Study, records: dict[str, dict[str, Any]]) -> str:
    """Return the part of the page that one study has."""
    lines = [
        f"## `{study.name}`",
        "",
        f'**Claim** (section "{study.section}"): {study.claim}',
        "",
        f"**Measured**: {study.measured}. With `--full`: {study.full}.",
        "",
    ]
    for model, record in records.items():
        verdict = "is not decided" if record["verdict"] == "not decided" else record["verdict"]
        lines += [f"**{display_name(model, record)}**: the claim {verdict}. {escape_cell(record['conclusion'])}", ""]
        if record.get("rule"):
            lines += [f"Judged so: {escape_cell(record['rule'])}.", ""]
    lines += ["| network | figure | value | n |", "|---|---|---|---|"]
    for model, record in records.items():
        for finding in record["findings"]:
            lines.append(
                f"| {display_name(model, record)} | {escape_cell(finding['words'])} | {format_finding(finding)} | {finding['count']:,} |"
            )
    trained = {model for model, record in records.items() if not is_random(record)}
    lines += [f"| {model} | not measured | | |" for model in NETWORKS if model not in trained]
    for model, record in records.items():
        settings = record["settings"]
        asked = "".join(f"--{option}; " for option in ("full", "image") if settings.get(option))
        lines += [
            "",
            f"{display_name(model, record)}: layers {', '.join(settings['layers'])}; weights {record['weights_sha256'][:12]}; "
            f"{asked}--features {settings['features']} --seeds {settings['seeds']}; torch {settings['torch']}, "
            f"{settings['device']}, {settings['threads']} threads; [table](results/{study.name}/{record['stem']}.csv).",
        ]
        for figure in record["figures"]:
            if figure.endswith((".png", ".webp")):
                lines += ["", f"![{study.name}, {model}](results/{study.name}/{figure})"]
            else:
                lines += ["", f"[{figure}](results/{study.name}/{figure})"]
    return "\n".join(lines) + "\n"


def build_page(results: Path = RESULTS) -> str:
    """Return the whole page."""
    return "\n".join([HEAD, *(study_section(load_study(name), read_stored(name, results)) for name in ORDER)])


def main(
    check: Annotated[bool, typer.Option("--check", help="Write nothing; say whether page and results agree.")] = False,
) -> None:
    """Write analyses/README.md from the stored results."""
    text = build_page()
    if check:
        if not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != text:
            raise FeatmapError(f"{PAGE.name} and the stored results disagree; run python -m analyses.tables")
        return
    write_atomically(PAGE, lambda p: p.write_text(text, encoding="utf-8"))
    print(PAGE)


if __name__ == "__main__":
    run(main)
