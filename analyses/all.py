"""Make studies, tables, pictures, notebooks and benchmarks again, those that are older than what they rest on.

    python -m analyses.all --stale                  # what is older than its code, recipes or weights, and why
    python -m analyses.all --dry-run                # the commands that would be run
    python -m analyses.all                          # runs them, in order: hours
    python -m analyses.all octaves tables           # only these, whether anything changed or not
    python -m analyses.all --factories mynets --image PHOTOGRAPH --photographs FOLDER

A study is carried out for every network that it has a stored result of, with the command stored there. Networks of
one's own (`package.module:factory` in that command) need `--factories`, a module with factories of these names.
Whatever needs photographs needs `--photographs` or `--image`. What is not given is named and skipped. Benchmarks with
rows of networks that only their user can name are not among the steps, see `OTHER_BENCHMARKS`.

Each of these commands, whoever gives it, enters what it made in `analyses/made.json` when it ends
(`analyses.support.ledger`); that file is committed with what was made. Records of studies hold this themselves, and
their page is compared with them.

An interrupted call is resumed by the same call: what was finished is no longer older, and runs in `runs/` are resumed.
`analyses.support.provenance` says what counts as a change.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from analyses import tables
from analyses.support import ledger, provenance
from analyses.support.commands import run
from analyses.support.study import RESULTS
from featmap import FeatmapError
from featmap.cli.console import err, out

HERE = Path(__file__).resolve().parent
FACTORY, PHOTOGRAPH, PHOTOGRAPHS = "package.module:", "PHOTOGRAPH", "FOLDER"
"""Parts of a command that stand for what only its user has."""
NEEDS = {FACTORY: "--factories", PHOTOGRAPH: "--image", PHOTOGRAPHS: "--photographs"}
OTHER_BENCHMARKS = {
    "images": "judges networks by other networks",
    "image_candidates": "judges networks by other networks",
    "hidden_candidates": "judges networks by other networks",
    "measures": "has rows of networks that only its user has",
    "power": "has rows of networks that only its user has",
    "repeatability": "has rows of networks that only its user has",
    "screening": "reads runs that only its user has",
    "defined": "has rows of networks that only its user has",
    "methods": "has rows of networks that only its user has",
    "networks": "has rows of networks that only its user has",
    "estimates": "times commands beside each other, for an hour",
}
"""Benchmarks that are no step, and why: each is given by hand, as its section of the benchmarks' page says."""


@dataclass(frozen=True)
class Step:
    """One thing to make.

    Parameters
    ----------
    name : str
        Its module below `analyses`.
    network : str, default ""
        Network of a study's result; "" for what is no study.
    options : tuple of str, default ()
        Options of the command.
    files : tuple of Path, default ()
        Files that it writes; those of a study are in its record.
    """

    name: str
    network: str = ""
    options: tuple[str, ...] = ()
    files: tuple[Path, ...] = ()

    @property
    def title(self) -> str:
        """Name of the step, with its network."""
        return f"{self.name} on {self.network}" if self.network else self.name

    @property
    def command(self) -> str:
        """The command."""
        return shlex.join(["python", "-m", f"analyses.{self.name}", *self.options])

    @property
    def lacking(self) -> list[str]:
        """Options of this command that the step needs."""
        text = " ".join(self.options)
        return [option for part, option in NEEDS.items() if part in text]

    def changes(self, weights: str) -> list[str]:
        """Name what changed since it was made.

        Parameters
        ----------
        weights : str
            SHA-256 of the bundled weights.

        Returns
        -------
        list of str
            Empty where nothing changed.
        """
        if self.name == "tables":
            same = tables.PAGE.is_file() and tables.PAGE.read_text(encoding="utf-8") == tables.build_page()
            return [] if same else ["the page and the stored results disagree"]
        if not self.network:
            return ledger.changes_of(self.name, self.files, weights)
        path = RESULTS / self.name / f"{self.network}.json"
        if not path.is_file():
            return ["not measured"]
        record = json.loads(path.read_text(encoding="utf-8"))
        return provenance.outdated(record, weights if record.get("model") == "reference" else None)


def study_steps(name: str, results: Path = RESULTS) -> list[Step]:
    """List the steps of a study: the bundled network, and every other that has a stored result.

    Parameters
    ----------
    name : str
        Name of the study.
    results : Path, default RESULTS
        Folder of the results.

    Returns
    -------
    list of Step
        The steps.
    """
    steps = [Step(name, "reference")]
    for path in sorted((results / name).glob("*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        words = shlex.split(record.get("command", ""))[3:]
        if "--image" in words:
            words[words.index("--image") + 1] = PHOTOGRAPH
        if path.stem != "reference":
            steps.append(Step(name, path.stem, tuple(words) or ("--model", path.stem)))
        else:
            steps[0] = replace(steps[0], options=tuple(words))
    return steps


def all_steps() -> list[Step]:
    """List all steps in their order.

    Returns
    -------
    list of Step
        Studies, their page, the other pages, pictures, notebooks and benchmarks.
    """
    photographs = ("--photographs", PHOTOGRAPHS)
    others = ("directions", "trial", "planted_truth", "showcase", "tour")
    steps = [step for name in tables.ORDER for step in study_steps(name)]
    steps.append(Step("tables", files=(tables.PAGE,)))
    steps += [
        Step(name, options=photographs if name in ("directions", "trial") else (), files=ledger.files_of(name))
        for name in (*others, *(f"benchmarks.{benchmark}" for benchmark in ledger.BENCHMARKS))
    ]
    return steps


def choose(names: Sequence[str], steps: Sequence[Step]) -> list[Step]:
    """Choose the steps of some names.

    Parameters
    ----------
    names : sequence of str
        Names of steps; all for none.
    steps : sequence of Step
        All steps.

    Returns
    -------
    list of Step
        Those chosen, in their order.

    Raises
    ------
    FeatmapError
        If there is no step of a name.
    """
    known = list(dict.fromkeys(step.name for step in steps))
    unknown = [name for name in names if name not in known]
    if unknown:
        raise FeatmapError(f"step {unknown[0]!r} is unknown; allowed: {', '.join(known)}")
    return [step for step in steps if not names or step.name in names]


def fill_in(step: Step, factories: str | None, image: Path | None, photographs: Path | None) -> Step:
    """Put what the user gave into a command.

    Parameters
    ----------
    step : Step
        The step.
    factories : str or None
        Module with the factories of networks.
    image, photographs : Path or None
        A photograph, and a folder of photographs.

    Returns
    -------
    Step
        The step with its command.
    """
    given = {PHOTOGRAPH: image, PHOTOGRAPHS: photographs}
    options = [str(path.resolve()) if (path := given.get(word)) is not None else word for word in step.options]
    if factories:
        options = [word.replace(FACTORY, f"{factories}:") for word in options]
    return replace(step, options=tuple(options))


def carry_out(step: Step) -> None:
    """Run the command of a step, which enters in the ledger what it made.

    Parameters
    ----------
    step : Step
        The step.

    Raises
    ------
    FeatmapError
        If it ends with a status other than 0.
    """
    err().print(step.command, markup=False)
    words = [sys.executable, "-m", f"analyses.{step.name}", *step.options]
    done = subprocess.run(words, cwd=HERE.parent, check=False)
    if done.returncode:
        raise FeatmapError(f"{step.command} ended with status {done.returncode}; see above, then repeat this call")


def main(
    names: Annotated[list[str] | None, typer.Argument(help="Names of steps; default: all that are older.")] = None,
    stale: Annotated[bool, typer.Option("--stale", help="Only say what is older, and why.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print the commands.")] = False,
    factories: Annotated[str | None, typer.Option(help="Module with factories of networks of one's own.")] = None,
    image: Annotated[Path | None, typer.Option(help="A photograph, for studies that start from one.")] = None,
    photographs: Annotated[Path | None, typer.Option(help="A folder of photographs, or a zip of them.")] = None,
) -> None:
    """Make studies, tables, pictures, notebooks and benchmarks again where they are older than what they rest on."""
    weights = provenance.weights_of()
    given: dict[str, Any] = {"factories": factories, "image": image, "photographs": photographs}
    for step in choose(names or [], all_steps()):
        step = fill_in(step, **given)
        changes = step.changes(weights)
        if stale:
            out().print(f"{step.title}: {'; '.join(changes) or 'up to date'}", markup=False)
        elif not changes and not names:
            continue
        elif step.lacking:
            out().print(f"{step.title}: skipped, needs {' and '.join(step.lacking)}", markup=False)
        elif dry_run:
            out().print(step.command, markup=False)
        else:
            carry_out(step)


if __name__ == "__main__":
    run(main)
