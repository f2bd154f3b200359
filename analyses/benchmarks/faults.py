"""What kills at random moments do to a run: begun, killed with SIGKILL, begun again by the same command, compared.

    python -m analyses.benchmarks.faults                  # 200 kills
    python -m analyses.benchmarks.faults --kills 5 --seed 1

A small similarity run and a small interaction run are made undisturbed; each kill then hits a fresh run of one of them
at a moment drawn uniformly from its length. What is counted afterwards: files that differ in any byte from the
undisturbed run's, work units that had landed before the kill and were made again all the same, and what
`featmap verify` still finds. Children are forked from a process that has loaded torch already. The result goes to
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
from pathlib import Path
from typing import Any

import torch
from torch import nn

from analyses.benchmarks import records
from analyses.support import commands
from featmap.cli import app
from featmap.runs import integrity  # so that forked children need not load them
from featmap.runs.manifest import CHECKSUM, COPY, MANIFEST
from featmap.runs.store import LOCK, OWNER, Run

SMALL = ["--model", "analyses.benchmarks.faults:network", "--size", "16", "--steps", "40", "--rows", "2"]
RUNS = {
    "optimize": ["optimize", "second:0", "second:1", "first:2:1", *SMALL, "--device", "cpu"],
    "similarity": ["similarity", "--layer", "second", *SMALL, "--device", "cpu"],
    "interact": ["interact", "second:0", "first:1", *SMALL, "--seeds", "2", "--device", "cpu"],
}
JUDGED = ("similarity", "interact")
HASTE = 0.95  # of a run's length: the last moment of a kill


def network() -> nn.Module:
    """Return two convolutions with a ReLU between them, of weights drawn from a seed."""
    made = nn.Sequential(
        OrderedDict(first=nn.Conv2d(3, 6, 3, 2, 1), relu=nn.ReLU(), second=nn.Conv2d(6, 8, 3, 1, 1, bias=False))
    )
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for tensor in made.parameters():
            tensor.copy_(0.3 * torch.randn(tensor.shape, generator=generator))
    return made.eval()


@dataclass(frozen=True)
class Outcome:
    """What one kill left behind.

    Attributes
    ----------
    run, moment : which of `RUNS`, and when it was killed (seconds, or the number of a move)
    killed : was it still at work?
    landed : work units that had landed before
    redone : those among them that were made again
    status : the exit status of the same command given again
    differing : files that differ from the undisturbed run's
    faults : what `featmap verify` finds in the end
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
        """Is the run what it would have been, and nothing made twice?"""
        return not (self.redone or self.status or self.differing or self.faults)


def fork(arguments: list[str], before: Callable[[], None] | None = None) -> int:
    """Give a command in a forked child and return its process; its output is dropped."""
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


def ended(pid: int) -> int:
    """Wait for a child; return its exit status, below 0 for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def kill_after(arguments: list[str], seconds: float) -> bool:
    """Give a command and kill it after so many seconds; was it still at work?"""
    pid = fork(arguments)
    time.sleep(seconds)
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    return ended(pid) == -signal.SIGKILL


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
    """Give a command that is killed when it is about to move its `number`-th file into place; did it get there?"""
    return ended(fork(arguments, lambda: die_at_move(number))) == -signal.SIGKILL


def contents(folder: Path) -> dict[str, bytes]:
    """Return the bytes of all files of a run; of the manifest, whose times differ, what should be alike."""
    found = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    for name in (LOCK, OWNER):
        found.pop(name, None)
    for name in found:
        if Path(name).name in (MANIFEST, Path(COPY).name):
            values = json.loads(found[name])
            found[name] = json.dumps({k: v for k, v in values.items() if k not in ("timings", CHECKSUM)}).encode()
    return found


def differing(one: dict[str, bytes], two: dict[str, bytes]) -> tuple[str, ...]:
    """Return the names of the files that are not in both, byte by byte."""
    return tuple(sorted(name for name in one.keys() | two.keys() if one.get(name) != two.get(name)))


def landed(folder: Path) -> dict[str, int]:
    """Return the files of the work units that have landed, with the times they were written at."""
    run, found = Run(folder, {}), {}
    for path in sorted((folder / "units").glob("[!.]*.json")):
        record = run.read_record(path.stem)
        for name in (*record, f"units/{path.name}") if record else ():
            found[name] = (folder / name).stat().st_mtime_ns
    return found


def outcome(name: str, folder: Path, moment: float, killed: bool, expected: dict[str, bytes]) -> Outcome:
    """Give the same command again after a kill and return what came of it."""
    before = landed(folder)
    status = ended(fork([*RUNS[name], "--out", str(folder)]))
    redone = tuple(f for f, at in before.items() if not (folder / f).is_file() or (folder / f).stat().st_mtime_ns != at)
    faults = tuple(map(str, integrity.inspect(folder).faults))
    units = sum(f.startswith("units/") for f in before)
    return Outcome(name, moment, killed, units, redone, status, differing(contents(folder), expected), faults)


def undisturbed(name: str, folder: Path) -> tuple[dict[str, bytes], float]:
    """Return the bytes of an undisturbed run, and the seconds that it takes."""
    begun = time.perf_counter()
    status = ended(fork([*RUNS[name], "--out", str(folder)]))
    seconds = time.perf_counter() - begun
    if status:
        raise RuntimeError(f"{name}: the undisturbed run ended with status {status}")
    return contents(folder), seconds


def random_kills(name: str, kills: int, seed: int, place: Path) -> Iterator[Outcome]:
    """Yield what so many kills at random moments come to; one that came too late does not count as one."""
    undisturbed(name, place / "first")  # the first run of a process finds cold caches
    expected, seconds = undisturbed(name, place / "undisturbed")
    moments, made = random.Random(f"{name} {seed}"), 0
    for number in range(4 * kills + 4):
        if made == kills:
            return
        folder, moment = place / f"killed-{number}", HASTE * seconds * moments.random()
        killed = kill_after([*RUNS[name], "--out", str(folder)], moment)
        made += killed
        yield outcome(name, folder, moment, killed, expected)
        shutil.rmtree(folder)
    raise RuntimeError(f"{name}: of {4 * kills + 4} kills only {made} came before the run's end")


def _share(kills: int, seed: int, place: Path) -> None:
    """Make one worker's kills and leave them in its folder."""
    names = JUDGED
    found: list[dict[str, Any]] = []
    for k, name in enumerate(names):
        part = kills // len(names) + (k < kills % len(names))
        found += [asdict(o) | {"lost_nothing": o.lost_nothing} for o in random_kills(name, part, seed, place / name)]
    (place / "outcomes.json").write_text(json.dumps(found), encoding="utf-8")


def study(kills: int, seed: int, workers: int, place: Path) -> list[dict[str, Any]]:
    """Return the outcomes of all kills, made by some forked workers side by side."""
    children = []
    for w in range(workers):
        (place / str(w)).mkdir(parents=True)
        pid = os.fork()
        if not pid:
            status = 1
            try:
                _share(kills // workers + (w < kills % workers), seed + w, place / str(w))
                status = 0
            finally:
                os._exit(status)
        children.append(pid)
    statuses = [ended(pid) for pid in children]  # of all: none is left behind
    if any(statuses):
        raise RuntimeError("a worker failed; its line is above")
    found: list[dict[str, Any]] = []
    for w in range(workers):
        found += json.loads((place / str(w) / "outcomes.json").read_text(encoding="utf-8"))
    return found


def table(found: list[dict[str, Any]]) -> str:
    """Return the result as a table."""
    lines = [
        "| run | kills | nothing landed yet | units kept | made again | files that differ | faults | lost nothing |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in JUDGED:
        hit = [o for o in found if o["run"] == name and o["killed"]]
        lines.append(
            f"| {name} | {len(hit)} | {sum(not o['landed'] for o in hit)} | {sum(o['landed'] for o in hit)} | "
            f"{sum(len(o['redone']) for o in hit)} | {sum(len(o['differing']) for o in hit)} | "
            f"{sum(len(o['faults']) for o in hit)} | {sum(o['lost_nothing'] for o in hit)} |"
        )
    return "\n".join(lines)


def main(kills: int = 200, seed: int = 0, workers: int = 2, out: Path = records.FOLDER) -> None:
    """Kill runs at random moments; write faults.json and the table in README.md."""
    torch.set_num_threads(1)
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as place:
        found = study(kills, seed, workers, Path(place))
    hit = [o for o in found if o["killed"]]
    result = {"machine": records.machine("zarr"), "kills": len(hit), "seed": seed}
    result |= {"lost_nothing": sum(o["lost_nothing"] for o in hit), "outcomes": found}
    records.write(out / "faults.json", result)
    words = f"`python -m analyses.benchmarks.faults --kills {kills} --seed {seed}`: the same command after each kill."
    readme = out / records.README.name
    records.write_table("faults", f"## Kills at random moments\n\n{words}\n\n{table(found)}", readme)
    print(f"{result['lost_nothing']} of {len(hit)} killed runs lost nothing; {time.perf_counter() - begun:.0f} s")
    print(f"result: {out / 'faults.json'}, {readme}")


if __name__ == "__main__":
    commands.run(main)
