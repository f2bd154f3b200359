"""Measure how well runs are foretold: by `--dry-run`, and by the first line of progress.

    python -m analyses.benchmarks.estimates                    # all commands, once
    python -m analyses.benchmarks.estimates --only facets      # one of them
    python -m analyses.benchmarks.estimates --append           # another round beside those that are stored

Each command is a user's, in a process of its own: first with `--dry-run`, then in earnest, from the start of the
process to its end. The first line of progress names the time that is left; it is compared with the time that the
process then took. A busy machine makes other seconds, not another comparison: run it on the machine as it is.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from PIL import Image

from analyses.benchmarks import records
from analyses.support.commands import run
from featmap import image_ops
from featmap.cli.console import err
from featmap.errors import FeatmapError

TOLERANCE = 0.3
"""A forecast holds if it lies within this share of the time taken."""
PROGRAM = (sys.executable, "-c", "from featmap.cli.app import main; main()")
PHOTOGRAPHS, SIDE = 64, 96
"""Photographs that the benchmark makes where none are given, and their side in pixels."""
MAP = "small map"
"""Command whose run is validated."""
FORECAST = re.compile(r"about ([\d.]+) (s|minutes)\b")
LEFT = re.compile(r"about ([\d.]+) (s|minutes) left")


@dataclass(frozen=True)
class Command:
    """A command to measure.

    Parameters
    ----------
    words : str
        What it does.
    arguments : tuple of str
        Arguments of `featmap`; PHOTOGRAPHS and RUN stand for the folders of the photographs and of the small map.
    """

    words: str
    arguments: tuple[str, ...]


_QUICK = ("--size", "64", "--steps", "8")
_UNITS = ("maximise", "--layer", "inception4a", "--features")
_MAP = ("similarity", *_QUICK, "--stimuli", "shown", "--layer", "inception4a", "--features")
_PICTURED = (
    "similarity",
    *_QUICK,
    "--layer",
    "conv2",
    "--features",
    "0-7",
    "--photographs",
    "PHOTOGRAPHS",
    "--stimuli",
)
_PAIRS = ("interact", *_QUICK, "--seeds", "2", "--layers", "inception4a", "inception4b", "--features", "0-3", "0-3")
COMMANDS = {
    "one unit": Command("`maximise`, one unit", ("maximise", "inception4a:17")),
    "units": Command("`maximise`, 24 units, 8 steps", (*_UNITS, "0-23", "--steps", "8")),
    "facets": Command("`maximise`, 2 facets of 2 units", (*_UNITS, "0-1", "--facets", "2", *_QUICK)),
    MAP: Command("`similarity`, 24 features", (*_MAP, "0-23")),
    "large map": Command("`similarity`, 128 features", (*_MAP, "0-127")),
    "both stimuli": Command("`similarity`, 8 features, with photographs", (*_PICTURED, "shown")),
    "photographs": Command("`similarity`, 8 features, photographs alone", (*_PICTURED, "photographs")),
    "group": Command(
        "`interact`, two units", ("interact", "inception4a:17", "inception4b:42", *_QUICK, "--seeds", "3")
    ),
    "pairs": Command("`interact`, 4 x 4 pairs", _PAIRS),
    "screening": Command(
        "`interact --screen`, 4 + 2 of 16 pairs", (*_PAIRS, "--screen", "--checks", "4", "--top", "2")
    ),
    "validation": Command(
        "`validate`, the map of 24 features", ("validate", "RUN", "--seeds", "2", "--null-seeds", "1")
    ),
}


@dataclass(frozen=True)
class Line:
    """A line that a process printed.

    Parameters
    ----------
    at : float
        Seconds since the start of the process.
    text : str
        The line.
    """

    at: float
    text: str


def read_seconds(pattern: re.Pattern[str], text: str) -> float | None:
    """Read a forecast from a line, in seconds; None where there is none."""
    found = pattern.search(text)
    return None if found is None else float(found[1]) * (60.0 if found[2] == "minutes" else 1.0)


def run_command(arguments: Sequence[str]) -> tuple[float, list[Line]]:
    """Run a command; return its seconds and the lines that it printed.

    Raises
    ------
    FeatmapError
        If it ends with a status other than 0.
    """
    start, lines = time.perf_counter(), []
    with subprocess.Popen(
        [*PROGRAM, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        for text in process.stdout:
            lines.append(Line(time.perf_counter() - start, text.rstrip("\n")))
    if process.returncode:
        last = lines[-1].text if lines else "no output"
        raise FeatmapError(f"featmap {' '.join(arguments)} ended with status {process.returncode}: {last}")
    return time.perf_counter() - start, lines


def measure(arguments: Sequence[str], out: Sequence[str]) -> dict[str, float | None]:
    """Measure one command: foretold by the dry run, taken; foretold by the first line of progress, taken from then.

    Raises
    ------
    FeatmapError
        If the dry run foretells nothing, or a command fails.
    """
    _, dry = run_command([*arguments, *out, "--dry-run"])
    # the last one: the dry run may read photographs, and shows its progress
    foretold = next((s for line in reversed(dry) if (s := read_seconds(FORECAST, line.text)) is not None), None)
    if foretold is None:
        raise FeatmapError(f"featmap {' '.join(arguments)} --dry-run foretold nothing")
    taken, lines = run_command([*arguments, *out])
    first = next(((line.at, s) for line in lines if (s := read_seconds(LEFT, line.text)) is not None), None)
    return {
        "foretold_s": foretold,
        "taken_s": taken,
        "line_at_s": None if first is None else first[0],
        "left_foretold_s": None if first is None else first[1],
        "left_taken_s": None if first is None else taken - first[0],
    }


def make_photographs(folder: Path) -> Path:
    """Make pictures with the spectrum of photographs."""
    folder.mkdir()
    for k, image in enumerate(image_ops.pink_noise(PHOTOGRAPHS, SIDE).numpy()):
        pixels = (255 * np.clip(image, 0, 1)).astype(np.uint8).transpose(1, 2, 0)
        Image.fromarray(pixels).save(folder / f"{k:03d}.png")
    return folder


def measure_all(names: Sequence[str], photographs: Path | None) -> Iterator[tuple[str, dict[str, Any]]]:
    """Measure commands one after the other, in folders that are removed afterwards; yield name and numbers of each."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        pictures = photographs or make_photographs(folder / "pictures")
        if "validation" in names and MAP not in names:
            run_command([*COMMANDS[MAP].arguments, "--out", str(folder / f"run of {MAP}")])
        for name in names:
            known = {"PHOTOGRAPHS": str(pictures), "RUN": str(folder / f"run of {MAP}")}
            arguments = [known.get(a, a) for a in COMMANDS[name].arguments]
            err().print(f"{name}: featmap {' '.join(arguments)}")
            # a validation belongs into its run
            out = () if name == "validation" else ("--out", str(folder / f"run of {name}"))
            yield name, measure(arguments, out) | {"load": round(os.getloadavg()[0], 2)}


def holds(foretold: float | None, taken: float | None) -> bool | None:
    """Decide whether a forecast lies within `TOLERANCE` of the time taken; None where there is none."""
    if foretold is None or taken is None:
        return None
    return abs(foretold - taken) <= TOLERANCE * taken


def count_held(rounds: Iterable[dict[str, Any]], foretold: str, taken: str) -> tuple[int, int]:
    """Count the forecasts that hold, and all."""
    verdicts = [holds(one[foretold], one[taken]) for each in rounds for one in each["commands"].values()]
    made = [v for v in verdicts if v is not None]
    return sum(made), len(made)


def format_table(numbers: dict[str, Any]) -> str:
    """Write all rounds as Markdown."""
    machine, rounds = numbers["machine"], numbers["rounds"]
    lines = [
        "## Estimates",
        "",
        f"`python -m analyses.benchmarks.estimates` on {machine['processor']}, {machine['cores']} cores: each command "
        "with `--dry-run`, then in earnest, in processes of their own. Seconds foretold / taken: by the dry run, from "
        "the start of the process to its end; by the first line of progress, from that line to the end. Load is the "
        "mean number of processes that were computing in the minute before the command ended.",
        "",
        "| command | round | load | dry run: foretold / taken | ratio | first line after | left: foretold / taken "
        "| ratio |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, command in COMMANDS.items():
        for k, each in enumerate(rounds, 1):
            one = each["commands"].get(name)
            if one is None:
                continue
            dry = _compare(one["foretold_s"], one["taken_s"])
            at = "" if one["line_at_s"] is None else f"{one['line_at_s']:.1f} s"
            left = _compare(one["left_foretold_s"], one["left_taken_s"])
            lines.append(f"| {command.words} | {k} | {one['load']:.1f} | {dry} | {at} | {left} |")
    lines.append("")
    for words, keys in (
        ("Dry runs", ("foretold_s", "taken_s")),
        ("First lines of progress", ("left_foretold_s", "left_taken_s")),
    ):
        parts = [count_held([each], *keys) for each in rounds]
        each_round = ", ".join(f"{held} of {made}" for held, made in parts)
        lines.append(f"{words} within {TOLERANCE:.0%}: {each_round}.")
    return "\n".join(lines)


def _compare(foretold: float | None, taken: float | None) -> str:
    """Write two cells: what was foretold and taken, and their ratio, in bold outside the tolerance."""
    if foretold is None or taken is None:
        return "no line | "
    ratio = f"{foretold / taken:.2f}"
    return f"{foretold:.1f} / {taken:.1f} | {ratio if holds(foretold, taken) else f'**{ratio}**'}"


def main(
    only: Annotated[str | None, typer.Option(help=f"Commands, joined by commas: {', '.join(COMMANDS)}.")] = None,
    photographs: Annotated[
        Path | None, typer.Option(help="A folder or zip of photographs. Default: made here.")
    ] = None,
    append: Annotated[bool, typer.Option("--append", help="Keep the rounds that are stored.")] = False,
    out: Annotated[Path, typer.Option(help="The numbers, as JSON.")] = records.FOLDER / "estimates.json",
    readme: Annotated[Path, typer.Option(help="The table is written between marks in this file.")] = records.README,
) -> None:
    """Measure how well commands are foretold on this machine."""
    names = list(COMMANDS) if only is None else [name.strip() for name in only.split(",")]
    for name in names:
        if name not in COMMANDS:
            raise FeatmapError(f"command {name!r} is unknown; allowed: {', '.join(COMMANDS)}")
    rounds = json.loads(out.read_text(encoding="utf-8"))["rounds"] if append and out.is_file() else []
    commands: dict[str, Any] = {}
    rounds.append({"threads": os.environ.get("OMP_NUM_THREADS", ""), "commands": commands})
    numbers = {"machine": records.describe_machine(), "rounds": rounds}
    for name, found in measure_all(names, photographs):
        commands[name] = found
        records.write_json(out, numbers)
        err().print(", ".join(f"{key} {value}" for key, value in found.items()))
    records.write_table("estimates", format_table(numbers), readme)
    print(format_table(numbers))


if __name__ == "__main__":
    run(main)
