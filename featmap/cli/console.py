"""What a person sees while featmap works: progress with the time left, notes, results."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

EVERY = 30.0


def out() -> Console:
    """Return the console for results. Names and paths are text, never markup."""
    return Console(highlight=False, markup=False, soft_wrap=True)


def err() -> Console:
    """Return the console for progress, notes and errors."""
    return Console(stderr=True, highlight=False, markup=False, soft_wrap=True)


class Bars:
    """A progress bar with time left and activation reached; plain lines where there is no terminal."""

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
        self.begun = self.said = time.monotonic()

    def __enter__(self) -> Bars:
        self.progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.progress.stop()

    def begin(self, total: int, done: int) -> None:
        """Show how many of the descent's steps lie in the store already."""
        self.total, self.done, self.from_store = total, done, done
        self.begun = self.said = time.monotonic()
        if done and done < total:
            self.note(f"going on: {100 * done / total:.0f} % of this run lies in its folder already")
        self.tasks["descent"] = self.progress.add_task("maximising", total=total or 1, completed=done, detail="")
        if done == total:
            self.progress.update(self.tasks["descent"], completed=total or 1)

    def step(self, activation: float, count: int = 1) -> None:
        """Count one step of a batch, or several."""
        self.done += count
        detail = f"activation {activation:.3g}"
        self.progress.update(self.tasks["descent"], advance=count, detail=detail)
        now = time.monotonic()
        if not self.live and now - self.said > EVERY:
            self.said = now
            left = (now - self.begun) / (self.done - self.from_store) * (self.total - self.done)
            self.note(f"maximising {100 * self.done / self.total:.0f} %, {detail}, about {left / 60:.1f} minutes left")

    def landed(self) -> None:
        """Nothing to show: the bar has moved already."""

    def stage(self, name: str, done: int, total: int) -> None:
        """Show a later stage as a bar of its own."""
        if name not in self.tasks:
            self.tasks[name] = self.progress.add_task(name, total=total, detail="")
            if not self.live:
                self.note(name)
        self.progress.update(self.tasks[name], completed=done)

    def note(self, text: str) -> None:
        """Print a line above the bars."""
        self.console.print(text)
