"""What the user sees while a command runs: progress with the time left, notes and results."""

from __future__ import annotations

import io
import math
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from featmap.image_shape import format_size

if TYPE_CHECKING:
    from featmap.runs.estimate import Estimate, Part
    from featmap.runs.job import Job

REPORT_INTERVAL = 30.0
"""Seconds between two progress lines where there is no terminal to draw bars on."""
FIRST_REPORT = 3.0
"""Seconds of measured work after which the first progress line says how long the whole run will take."""
EARLY = 10.0
"""Seconds of steps up to which all of them tell the speed, and not their later half alone."""
PRIOR = 1.0
"""Seconds that the pace measured beforehand weighs against the parts whose time is known."""
DESCENTS = "maximising"
"""Name of the descents, as `featmap.runs.progress` has it."""
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

    The time left is that of the whole run. Steps are timed while they run; what the parts after them take was foretold
    (`featmap.runs.estimate.Part`), and is corrected by those that have ended.

    Parameters
    ----------
    console : rich.console.Console, optional
        Where to show them. None takes `err`.
    parts : sequence of Part, default ()
        Parts of the run, in their order; of parts that are not listed no time is foretold.
    """

    def __init__(self, console: Console | None = None, parts: Sequence[Part] = ()) -> None:
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
        self.report_time, self.reported = time.monotonic(), False
        self.marks = [(self.report_time, 0)]
        # when a stage began, how far it was then, and how far it is
        self.stages: dict[str, tuple[float, int, int]] = {}
        self.plan, self.whole = _Plan(parts), ""

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
        self.plan.enter(DESCENTS, self.report_time)
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
        now, detail = time.monotonic(), f"activation {activation:.3g}"
        self.done += count
        self.plan.touch(now)
        if self.done == self.from_store + count:
            self.marks = [(now, self.done)]  # before the first step ends, the network is prepared
        elif now - self.marks[-1][0] > MARK_INTERVAL:
            self.marks.append((now, self.done))
            if self.live and self.plan.parts:
                self.whole = f", {format_seconds(self._steps_left(now) + self.plan.after())} left in all"
        self.progress.update(self.tasks["descent"], advance=count, detail=detail + self.whole)
        if not self.live and self.done > self.marks[0][1] and self._is_due(now, self.marks[0][0]):
            left = format_seconds(self._steps_left(now) + self.plan.after())
            self.note(f"maximising {100 * self.done / self.total:.0f} %, {detail}, about {left} left")

    def _is_due(self, now: float, begun: float) -> bool:
        """Decide whether it is time for a progress line, and note that one is printed."""
        due = now - max(begun, self.report_time) > REPORT_INTERVAL or (
            not self.reported and now - begun >= FIRST_REPORT
        )
        if due:
            self.report_time, self.reported = now, True
        return due

    def _steps_left(self, now: float) -> float:
        """Estimate the seconds of the steps that are left."""
        first = self.marks[0]
        if now - first[0] > EARLY:
            # the later half of the steps tells the speed: other work comes and goes
            half = (self.from_store + self.done) / 2
            first = next((m for m in reversed(self.marks) if m[1] <= half), first)
        begun, done, whole = (self.plan.work_until(k, self.total) for k in (first[1], self.done, self.total))
        if done > begun:
            self.plan.work_seconds = (now - first[0]) / (done - begun)
        return self.plan.work_seconds * (whole - done)

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
        now = time.monotonic()
        start, before, latest = self.stages.get(name, (now, done, done))
        # the stage may begin again, as it does for each layer of a map
        if name not in self.stages or done < latest or latest >= total:
            self.plan.enter(name, now, done / max(total, 1))
            start, before = now, done
        self.stages[name] = start, before, done
        if name not in self.tasks:
            self.tasks[name] = self.progress.add_task(name, total=total, detail="")
            if not self.live:
                known = self.plan.is_at(name) and done < total
                left = self.plan.left(now, 0.0) + self.plan.after() if known else 0.0
                self.note(f"{name}, about {format_seconds(left)} left" if left >= 1 else name)
                self.reported = self.reported or left >= 1
        self.progress.update(self.tasks[name], completed=done, total=total)
        if not self.live and before < done < total and self._is_due(now, start):
            own = (now - start) / (done - before) * (total - done)
            left = (self.plan.left(now, own) if self.plan.is_at(name) else own) + self.plan.after()
            self.note(f"{name} {100 * done / total:.0f} %, about {format_seconds(left)} left")

    def note(self, text: str) -> None:
        """Print a line above the bars.

        Parameters
        ----------
        text : str
            The line.
        """
        self.console.print(text)


class _Plan:
    """The parts of a run: which one is at work, and how long those after it will take."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self.parts, self.at = tuple(parts), -1
        # seconds of one unit of the measure of work, or of a step where no work is listed
        self.work_seconds = 0.0
        # when the present part began, and the last sign of life
        self.begun = self.latest = time.monotonic()
        # of the parts that have ended: seconds at pace 1, and those that they took
        self.expected = self.took = 0.0
        self._pace: float | None = None

    def enter(self, name: str, now: float, share: float = 0.0) -> None:
        """Go on to the next part of that name, of which a share is done; nothing happens where there is none."""
        following = [k for k in range(self.at + 1, len(self.parts)) if self.parts[k].name == name]
        if not following:
            self.touch(now)
            return
        descended = self.at >= 0 and bool(self.parts[self.at].work)
        # parts without news of their own have passed meanwhile; those after descents began when the last step ended
        passed = math.fsum(one.seconds for one in self.parts[self.at + descended : following[0]]) if self.at >= 0 else 0
        begun, own = self.latest if descended else self.begun, share * self.parts[following[0]].seconds
        ratio = (now - begun) / (passed + own) if passed + own else 0.0
        self.expected += passed
        self.took += ratio * passed
        self.at, self.begun = following[0], now - ratio * own
        self.touch(now)

    def work_until(self, step: int, total: int) -> float:
        """Compute the work of the first steps of the present descents, whose units have equally many steps each."""
        work = self.parts[self.at].work if self.at >= 0 else ()
        if not work or not total:
            return float(step)
        units, rest = divmod(step * len(work) / total, 1)
        return math.fsum(work[: int(units)]) + (rest * work[int(units)] if rest else 0.0)

    def touch(self, now: float) -> None:
        """Note a sign of life."""
        self.latest = now

    def is_at(self, name: str) -> bool:
        """Check whether a part of known seconds is at work."""
        return self.at >= 0 and self.parts[self.at].name == name and self.parts[self.at].seconds > 0

    @property
    def factor(self) -> float:
        """Seconds of a part for each second at pace 1: as measured beforehand, then as the parts have taken."""
        if self._pace is None:
            from featmap.runs.estimate import measure_pace

            self._pace = measure_pace()
        return (self.took + PRIOR * self._pace) / (self.expected + PRIOR)

    def left(self, now: float, own: float) -> float:
        """Estimate what the present part will still take; `own` is what its own progress says."""
        left = self.factor * self.parts[self.at].seconds - (now - self.begun)
        return left if left > 0 else own

    def after(self) -> float:
        """Estimate the seconds of the parts after the present one."""
        rest = self.parts[self.at + 1 :]
        seconds = math.fsum(one.seconds for one in rest)
        work = math.fsum(math.fsum(one.work) for one in rest)
        return self.work_seconds * work + (self.factor * seconds if seconds else 0.0)


def format_seconds(seconds: float) -> str:
    """Format a length of time.

    Parameters
    ----------
    seconds : float
        Seconds, 0 or more.

    Returns
    -------
    str
        Seconds below two minutes, else minutes.
    """
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} minutes"


def run_with_progress(work: Callable[[Any], Any], parts: Sequence[Part] = ()) -> Any:
    """Run a function with progress bars, and print the warnings it raises as notes.

    Parameters
    ----------
    work : callable
        Takes the watcher.
    parts : sequence of Part, default ()
        Parts of the run, for the time that is left.

    Returns
    -------
    Any
        The result of `work`.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        with ProgressBars(parts=parts) as bars:
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
    seconds = format_seconds(estimate.start + estimate.seconds + estimate.later)
    out().print(
        f"{work}: about {seconds}, {estimate.memory / 1e9:.1f} GB of memory, {estimate.disk / 1e6:,.0f} MB on disk "
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
    from featmap.runs.estimate import estimate, image_parts, later_seconds

    folder = folder or job.default_folder()
    found = estimate(job, folder)
    print_estimate(replace(found, later=later_seconds(image_parts(job))), describe_job(job), folder)


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
