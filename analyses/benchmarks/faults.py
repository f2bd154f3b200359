"""Kill runs at random moments, resume them with the same command, and compare the results.

    python -m analyses.benchmarks.faults                  # 200 kills
    python -m analyses.benchmarks.faults --kills 5 --seed 1

A small similarity run and a small interaction run are completed undisturbed. Each SIGKILL then hits a fresh run of one
of them at a moment drawn uniformly from its length. Counted afterwards are files that differ in any byte from the
undisturbed run's, work units that were stored before the kill and were computed again nevertheless, and what
`featmap verify` reports. Children are forked from a process that has already loaded what they need. The result goes to
`faults.json` beside this file and, between two marks, to `README.md`.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import tempfile
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn

from analyses.benchmarks import records
from analyses.support import commands
from featmap.cli import app
from featmap.runs import integrity
from featmap.runs.folder_layout import LOCK, OWNER
from featmap.runs.manifest import CHECKSUM, COPY, MANIFEST
from featmap.runs.store import Run

SMALL = ["--model", "analyses.benchmarks.faults:network", "--size", "16", "--steps", "40", "--rows", "2"]
RUNS = {
    "optimize": ["optimize", "second:0", "second:1", "first:2:1", *SMALL, "--device", "cpu"],
    "similarity": ["similarity", "--layer", "second", *SMALL, "--device", "cpu"],
    "interact": ["interact", "second:0", "first:1", *SMALL, "--seeds", "2", "--device", "cpu"],
}
COUNTED = ("similarity", "interact")
LATEST = 0.95
"""Last moment of a kill, as a share of a run's length."""


def network() -> nn.Module:
    """Make two convolutions with a ReLU between them, with seeded weights."""
    module = nn.Sequential(
        OrderedDict(first=nn.Conv2d(3, 6, 3, 2, 1), relu=nn.ReLU(), second=nn.Conv2d(6, 8, 3, 1, 1, bias=False))
    )
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for tensor in module.parameters():
            tensor.copy_(0.3 * torch.randn(tensor.shape, generator=generator))
    return module.eval()


@dataclass(frozen=True)
class Outcome:
    """Outcome of one kill.

    Parameters
    ----------
    run : str
        Name of the run, of `RUNS`.
    moment : float
        When it was killed, in seconds, or the number of a move.
    killed : bool
        Whether it was still running.
    landed : int
        Number of work units stored before.
    redone : tuple of str
        Files of these that were computed again.
    status : int
        Exit status of the same command afterwards.
    differing : tuple of str
        Files that differ from the undisturbed run's.
    faults : tuple of str
        What `featmap verify` reports in the end.
    """

    run: str
    moment: float
    killed: bool
    landed: int
    redone: tuple[str, ...]
    status: int
    differing: tuple[str, ...]
    faults: tuple[str, ...]

    @property
    def lost_nothing(self) -> bool:
        """Whether the run is what it would have been, and nothing was computed twice."""
        return not (self.redone or self.status or self.differing or self.faults)


def load_commands() -> None:
    """Import what the commands import when they run, so that forked children need not: it takes half of their time."""
    for name in ("mapping.run", "interaction.run", "runs.maximise", "runs.integrity", "report.atlas", "cli.console"):
        import_module(f"featmap.{name}")
    for name in ("featmap.interaction.report", "pyarrow.dataset", "pyarrow.pandas_compat", "pandas.io.formats.csvs"):
        import_module(name)
    for name in ("agg", "svg"):
        import_module(f"matplotlib.backends.backend_{name}")
    Image.init()


def fork_command(arguments: list[str], before: Callable[[], None] | None = None) -> int:
    """Run a command in a forked child without output, and return its process id."""
    pid = os.fork()
    if pid:
        return pid
    status = 70
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        if before is not None:
            before()
        app.main(arguments)
    except SystemExit as end:
        status = int(end.code or 0)
    finally:
        os._exit(status)


def wait_for(pid: int) -> int:
    """Wait for a child and return its exit status, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def kill_after(arguments: list[str], seconds: float) -> bool:
    """Run a command and kill it after some seconds.

    Returns whether it was still running.
    """
    pid = fork_command(arguments)
    time.sleep(seconds)
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    return wait_for(pid) == -signal.SIGKILL


def die_at_move(number: int) -> None:
    """Make this process die when it is about to move its `number`-th file into place."""
    real, count = os.replace, 0

    def replace(source: Any, target: Any, **more: Any) -> None:
        nonlocal count
        count += 1
        if count == number:
            os.kill(os.getpid(), signal.SIGKILL)
        real(source, target, **more)

    os.replace = replace


def kill_at_move(arguments: list[str], number: int) -> bool:
    """Run a command that dies at its `number`-th move of a file.

    Returns whether it got there.
    """
    return wait_for(fork_command(arguments, lambda: die_at_move(number))) == -signal.SIGKILL


def read_contents(folder: Path) -> dict[str, bytes]:
    """Read all files of a run.

    Timings are removed from the manifest, since they differ.
    """
    files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    for name in (LOCK, OWNER):
        files.pop(name, None)
    for name in files:
        if Path(name).name in (MANIFEST, Path(COPY).name):
            values = json.loads(files[name])
            files[name] = json.dumps({k: v for k, v in values.items() if k not in ("timings", CHECKSUM)}).encode()
    return files


def differing_files(one: dict[str, bytes], two: dict[str, bytes]) -> tuple[str, ...]:
    """List the files that are not the same in both, byte for byte."""
    return tuple(sorted(name for name in one.keys() | two.keys() if one.get(name) != two.get(name)))


def landed_files(folder: Path) -> dict[str, int]:
    """List the files of the stored work units with their modification times."""
    run, files = Run(folder, {}), {}
    for path in sorted((folder / "units").glob("[!.]*.json")):
        record = run.read_record(path.stem)
        for name in (*record, f"units/{path.name}") if record else ():
            files[name] = (folder / name).stat().st_mtime_ns
    return files


def rerun(name: str, folder: Path, moment: float, killed: bool, expected: dict[str, bytes]) -> Outcome:
    """Run the same command again after a kill, and describe the outcome."""
    before = landed_files(folder)
    status = wait_for(fork_command([*RUNS[name], "--out", str(folder)]))
    redone = tuple(f for f, at in before.items() if not (folder / f).is_file() or (folder / f).stat().st_mtime_ns != at)
    faults = tuple(map(str, integrity.inspect(folder).faults))
    units = sum(f.startswith("units/") for f in before)
    return Outcome(
        name, moment, killed, units, redone, status, differing_files(read_contents(folder), expected), faults
    )


def run_undisturbed(name: str, folder: Path) -> tuple[dict[str, bytes], float]:
    """Run a command undisturbed; return its files and its seconds."""
    start = time.perf_counter()
    status = wait_for(fork_command([*RUNS[name], "--out", str(folder)]))
    seconds = time.perf_counter() - start
    if status:
        raise RuntimeError(f"{name}: the undisturbed run ended with status {status}")
    return read_contents(folder), seconds


def kill_at_random(name: str, kills: int, seed: int, place: Path) -> Iterator[Outcome]:
    """Yield the outcomes of kills at random moments.

    Kills that come too late do not count.
    """
    run_undisturbed(name, place / "first")  # the first run has cold caches
    expected, seconds = run_undisturbed(name, place / "undisturbed")
    moments, done = random.Random(f"{name} {seed}"), 0
    for number in range(4 * kills + 4):
        if done == kills:
            return
        folder, moment = place / f"killed-{number}", LATEST * seconds * moments.random()
        killed = kill_after([*RUNS[name], "--out", str(folder)], moment)
        done += killed
        yield rerun(name, folder, moment, killed, expected)
        shutil.rmtree(folder)
    raise RuntimeError(f"{name}: of {4 * kills + 4} kills only {done} came before the run's end")


def _run_share(kills: int, seed: int, place: Path) -> None:
    """Make one worker's kills and store their outcomes in its folder."""
    names = COUNTED
    outcomes: list[dict[str, Any]] = []
    for k, name in enumerate(names):
        part = kills // len(names) + (k < kills % len(names))
        outcomes += [
            asdict(o) | {"lost_nothing": o.lost_nothing} for o in kill_at_random(name, part, seed, place / name)
        ]
    (place / "outcomes.json").write_text(json.dumps(outcomes), encoding="utf-8")


def run_kills(kills: int, seed: int, workers: int, place: Path) -> list[dict[str, Any]]:
    """Make all kills with some forked workers in parallel, and collect the outcomes."""
    children = []
    for w in range(workers):
        (place / str(w)).mkdir(parents=True)
        pid = os.fork()
        if not pid:
            status = 1
            try:
                _run_share(kills // workers + (w < kills % workers), seed + w, place / str(w))
                status = 0
            finally:
                os._exit(status)
        children.append(pid)
    statuses = [wait_for(pid) for pid in children]  # wait for all, so that none is left behind
    if any(statuses):
        raise RuntimeError("a worker failed; its line is above")
    outcomes: list[dict[str, Any]] = []
    for w in range(workers):
        outcomes += json.loads((place / str(w) / "outcomes.json").read_text(encoding="utf-8"))
    return outcomes


def format_table(outcomes: list[dict[str, Any]]) -> str:
    """Write the result as a table."""
    lines = [
        "| run | kills | before the first unit | units kept | computed again | files that differ | faults | "
        "nothing lost |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in COUNTED:
        hit = [o for o in outcomes if o["run"] == name and o["killed"]]
        lines.append(
            f"| {name} | {len(hit)} | {sum(not o['landed'] for o in hit)} | {sum(o['landed'] for o in hit)} | "
            f"{sum(len(o['redone']) for o in hit)} | {sum(len(o['differing']) for o in hit)} | "
            f"{sum(len(o['faults']) for o in hit)} | {sum(o['lost_nothing'] for o in hit)} |"
        )
    return "\n".join(lines)


def main(kills: int = 200, seed: int = 0, workers: int = 2, out: Path = records.FOLDER) -> None:
    """Kill runs at random moments; write faults.json and the table in README.md."""
    torch.set_num_threads(1)
    load_commands()
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as place:
        outcomes = run_kills(kills, seed, workers, Path(place))
    hit = [o for o in outcomes if o["killed"]]
    result = {"machine": records.describe_machine("zarr"), "kills": len(hit), "seed": seed}
    result |= {"lost_nothing": sum(o["lost_nothing"] for o in hit), "outcomes": outcomes}
    records.write_json(out / "faults.json", result)
    command = f"python -m analyses.benchmarks.faults --kills {kills} --seed {seed}"
    words = f"`{command}`: each run is resumed with the same command."
    readme = out / records.README.name
    records.write_table("faults", f"## Kills at random moments\n\n{words}\n\n{format_table(outcomes)}", readme)
    print(f"{result['lost_nothing']} of {len(hit)} killed runs lost nothing; {time.perf_counter() - start:.0f} s")
    print(f"result: {out / 'faults.json'}, {readme}")


if __name__ == "__main__":
    commands.run(main)
