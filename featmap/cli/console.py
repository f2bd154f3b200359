"""What the user sees while a command runs: progress with the time left, notes and results."""

from __future__ import annotations

import io
import time
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from featmap.image_shape import format_size

if TYPE_CHECKING:
    from featmap.runs.estimate import Estimate
    from featmap.runs.job import Job

REPORT_INTERVAL = 30.0
"""Seconds between two progress lines where there is no terminal to draw bars on."""
MARK_INTERVAL = 1.0
"""Seconds between two records of the progress, from which the speed is computed."""
TABLE_WIDTH = 100_000
"""Characters that a line may have: the terminal wraps lines, the table never does."""


def out() -> Console:
    """Create the console for results.

    Names and paths are printed as plain text, never as markup.

    Returns
    -------
    rich.console.Console
        On the standard output.
    """
    return Console(highlight=False, markup=False, soft_wrap=True)


def err() -> Console:
    """Create the console for progress, notes and errors.

    Returns
    -------
    rich.console.Console
        On the standard error, plain text as well.
    """
    return Console(stderr=True, highlight=False, markup=False, soft_wrap=True)


def table_lines(columns: Iterable[object], rows: Iterable[Iterable[object]]) -> list[str]:
    """Format a table as aligned lines of text.

    Parameters
    ----------
    columns : iterable
        Names of the columns.
    rows : iterable of iterable
        Cells; as many in each row as there are columns.

    Returns
    -------
    list of str
        The line of names, then a line for each row.
    """
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="")
    for column in columns:
        table.add_column(Text(str(column)), no_wrap=True)
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    buffer = io.StringIO()
    Console(file=buffer, width=TABLE_WIDTH, color_system=None).print(table)
    return [line.rstrip() for line in buffer.getvalue().splitlines()]


class ProgressBars:
    """Watcher that shows progress bars, or plain lines where there is no terminal.

    Parameters
    ----------
    console : rich.console.Console, optional
        Where to show them. None takes `err`.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or err()
        self.live = self.console.is_terminal
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            TextColumn("{task.fields[detail]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        self.progress = Progress(*columns, console=self.console, disable=not self.live)
        self.tasks: dict[str, TaskID] = {}
        self.total = self.done = self.from_store = 0
        self.report_time = time.monotonic()
        self.marks = [(self.report_time, 0)]
        # when a stage began, how far it was then, and how far it is
        self.stages: dict[str, tuple[float, int, int]] = {}

    def __enter__(self) -> ProgressBars:
        self.progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.progress.stop()

    def begin(self, total: int, done: int) -> None:
        """Start the bar of the descents.

        Parameters
        ----------
        total : int
            Steps of the whole run.
        done : int
            Steps that are stored already.
        """
        self.total, self.done, self.from_store = total, done, done
        self.report_time = time.monotonic()
        # stored steps took no time in this process
        self.marks = [(self.report_time, done)]
        if done and done < total:
            self.note(f"resuming: {100 * done / total:.0f} % of this run is stored in its folder")
        self.tasks["descent"] = self.progress.add_task("maximising", total=total or 1, completed=done, detail="")
        if done == total:
            self.progress.update(self.tasks["descent"], completed=total or 1)

    def step(self, activation: float, count: int = 1) -> None:
        """Advance the bar of the descents.

        Parameters
        ----------
        activation : float
            Mean activation of the batch.
        count : int, default 1
            Number of steps.
        """
        self.done += count
        detail = f"activation {activation:.3g}"
        self.progress.update(self.tasks["descent"], advance=count, detail=detail)
        now = time.monotonic()
        if now - self.marks[-1][0] > MARK_INTERVAL:
            self.marks.append((now, self.done))
        if not self.live and now - self.report_time > REPORT_INTERVAL:
            self.report_time = now
            # the later half of the steps tells the speed: the first ones are slow, and other work comes and goes
            then, done = next(m for m in reversed(self.marks) if m[1] <= (self.from_store + self.done) / 2)
            left = (now - then) / (self.done - done) * (self.total - self.done)
            self.note(f"maximising {100 * self.done / self.total:.0f} %, {detail}, about {left / 60:.1f} minutes left")

    def landed(self) -> None:
        """Ignore a stored work unit: its steps have moved the bar already."""

    def stage(self, name: str, done: int, total: int) -> None:
        """Show a later stage as a bar of its own.

        Parameters
        ----------
        name : str
            Name of the stage.
        done, total : int
            Finished parts, and all parts.
        """
        if name not in self.tasks:
            self.tasks[name] = self.progress.add_task(name, total=total, detail="")
            if not self.live:
                self.note(name)
        now = time.monotonic()
        start, before, latest = self.stages.get(name, (now, done, done))
        if done < latest:  # the stage begins again, as it does for each layer of a map
            start, before = now, done
        self.stages[name] = start, before, done
        self.progress.update(self.tasks[name], completed=done, total=total)
        if not self.live and before < done < total and now - max(start, self.report_time) > REPORT_INTERVAL:
            self.report_time = now
            left = (now - start) / (done - before) * (total - done)
            self.note(f"{name} {100 * done / total:.0f} %, about {left / 60:.1f} minutes left")

    def note(self, text: str) -> None:
        """Print a line above the bars.

        Parameters
        ----------
        text : str
            The line.
        """
        self.console.print(text)


def run_with_progress(work: Callable[[Any], Any]) -> Any:
    """Run a function with progress bars, and print the warnings it raises as notes.

    Parameters
    ----------
    work : callable
        Takes the watcher.

    Returns
    -------
    Any
        The result of `work`.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        with ProgressBars() as bars:
            result = work(bars)
    for text in dict.fromkeys(str(w.message) for w in caught if w.category.__module__.startswith("featmap")):
        bars.note(f"note: {text}")
    return result


def print_estimate(estimate: Estimate, work: str, folder: Path) -> None:
    """Print the time, memory and disk space that a run would take.

    Parameters
    ----------
    estimate : Estimate
        The three of them, and the free disk space.
    work : str
        Short description of the work.
    folder : Path
        Run folder that it would be written to.
    """
    seconds = estimate.start + estimate.seconds
    minutes = f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} minutes"
    out().print(
        f"{work}: about {minutes}, {estimate.memory / 1e9:.1f} GB of memory, {estimate.disk / 1e6:,.0f} MB on disk "
        f"({estimate.free / 1e9:,.1f} GB free); it would go to {folder}"
    )


def print_dry_run(job: Job, folder: Path | None) -> None:
    """Estimate a job and print the time, memory and disk space that it would take.

    Parameters
    ----------
    job : Job
        The checked job.
    folder : Path or None
        Run folder. None is the job's own.
    """
    from featmap.runs.estimate import estimate

    folder = folder or job.default_folder()
    print_estimate(estimate(job, folder), describe_job(job), folder)


def describe_job(job: Job) -> str:
    """Say how many images a job makes, and of which kind.

    Parameters
    ----------
    job : Job
        The job.

    Returns
    -------
    str
        Number of images and seeds, steps, pixels and facets.
    """
    return (
        f"{len(job.objectives)} image{'s' * (len(job.objectives) != 1)} x {len(job.seeds)} seed(s), "
        f"{job.recipe.steps} steps, "
        f"{format_size(job.recipe.size)} pixels"
    ) + (f", {job.facets} facets of each" if job.facets else "")
