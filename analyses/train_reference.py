"""Train the bundled network: torchvision's GoogLeNet on Tiny-ImageNet, from random or given weights.

    python -m analyses.train_reference --data FOLDER_OR_ZIPS --out FILE [--init FILE] [--plan 4x48,4x64]

`--data` (once or several times) is a folder or zip with one folder for each class, or a folder of such zips. Training
is stochastic gradient descent with Nesterov momentum on random resized crops and flips; the rate rises over the first
steps, stays level, and falls linearly to zero; an exponential moving average of weights and batch statistics is stored.

A checkpoint `FILE.checkpoint` is written every few minutes, and at Ctrl-C after the current step (a second Ctrl-C does
not wait for it). The same command resumes from it, also after a process that was killed. A batch and its crops depend
on (seed, epoch, batch) alone, so that an interruption changes nothing. The plan may be changed during the training,
since the rate depends on the share of the plan that is done.

Written are FILE (safetensors; weights of convolutions and of the classifier in float16, the rest in float32) and
FILE.json (a record of the training), from which `python -m analyses.reference_card` writes the card.
"""

from __future__ import annotations

import json
import math
import pickle
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from filelock import FileLock, Timeout
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torchvision.transforms import v2

from analyses.support.commands import run
from analyses.support.labelled_images import LabelledImages, read_labelled_images
from featmap import FeatmapError
from featmap.cli.console import err
from featmap.errors import first_line
from featmap.files import hash_file, write_atomically
from featmap.network.loading import IMAGENET_MEAN, IMAGENET_STD, build_googlenet
from featmap.network.weights import load_state, read_state
from featmap.runs.device import deterministic_settings, select_device

WARM_UP_STEPS, AVERAGE_DECAY = 500, 0.998
REPORT_INTERVAL = 60.0
"""Seconds between two lines of progress without a terminal."""
CROP_AREA = (0.35, 1.0)


@dataclass(frozen=True)
class Phase:
    """Some epochs at one image size in pixels."""

    epochs: int
    size: int


@dataclass(frozen=True)
class Settings:
    """Settings of a training besides data, plan and initial weights."""

    rows: int = 128
    rate: float = 0.2
    fall: float = 0.7
    momentum: float = 0.9
    decay: float = 1e-4
    smoothing: float = 0.1
    seed: int = 0
    precision: str = "float32"


def read_plan(text: str) -> tuple[Phase, ...]:
    """Read the phases of a plan such as ``4x48,4x64``: epochs x pixels.

    Raises
    ------
    FeatmapError
        For anything else.
    """
    phases = []
    for part in text.split(","):
        epochs, by, size = part.strip().partition("x")
        if not (by and epochs.isdigit() and size.isdigit() and int(epochs) > 0 and int(size) >= 32):
            raise FeatmapError(
                f"plan {text!r}: {part!r} is not a phase; give epochs x pixels (32 or more), such as 4x48,4x64"
            )
        phases.append(Phase(int(epochs), int(size)))
    return tuple(phases)


def sizes(plan: Sequence[Phase]) -> list[int]:
    """List the image size of every epoch."""
    return [s.size for s in plan for _ in range(s.epochs)]


def rate_share(step: int, total: int, fall: float) -> float:
    """Compute the rate of a step as a share of the largest.

    It rises over the first steps, stays level, and falls to 0 at the end.
    """
    warm = min(WARM_UP_STEPS, total // 10)
    if step < warm:
        return (step + 1) / (warm + 1)
    return min(1.0, (total - step) / max(1.0, fall * total))


def prefers_bfloat16(where: torch.device) -> bool:
    """Check whether a device convolves faster in bfloat16 than in float32.

    On a CPU this is measured in alternation: some CPUs support bfloat16 and are slower with it.
    """
    if where.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if where.type != "cpu" or not (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()):
        return False
    conv = nn.Conv2d(96, 208, 3, padding=1).to(memory_format=torch.channels_last)
    images = torch.zeros(32, 96, 16, 16).to(memory_format=torch.channels_last)
    best = {True: float("inf"), False: float("inf")}
    for _ in range(5):
        for halved in best:
            start = time.perf_counter()
            with torch.autocast("cpu", torch.bfloat16, enabled=halved):
                conv(images).float().sum().backward()
            best[halved] = min(best[halved], time.perf_counter() - start)
    return best[True] < best[False]


def parameter_groups(module: nn.Module, decay: float) -> list[dict[str, Any]]:
    """Group the parameters by weight decay.

    Convolutions and classifier have it; norms and biases do not.
    """
    parameters = list(module.parameters())
    return [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]


def epoch_order(seed: int, epoch: int, count: int) -> np.ndarray:
    """Draw the order in which an epoch takes the images."""
    return np.random.default_rng((seed, epoch)).permutation(count)


@contextmanager
def seeded(seed: tuple[int, int, int], where: torch.device) -> Iterator[None]:
    """Seed torch's global random state for a block, and restore it afterwards.

    Torchvision's transforms and dropout draw from that state only.
    """
    every = range(torch.cuda.device_count()) if where.type == "cuda" else []  # torch.manual_seed reseeds every device
    with torch.random.fork_rng(devices=every):
        torch.manual_seed(int(np.random.default_rng(seed).integers(2**62)))
        yield


def augment(images: Tensor, size: int) -> Tensor:
    """Crop and flip uint8 images at random, at `size` pixels, normalised."""
    crop = v2.Compose(
        [v2.RandomResizedCrop(size, scale=CROP_AREA, ratio=(0.8, 1.25), antialias=True), v2.RandomHorizontalFlip()]
    )
    cropped = torch.stack([crop(image) for image in images])
    return v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(IMAGENET_MEAN, IMAGENET_STD)])(cropped)


class Training:
    """A network in training, with all that a checkpoint has to hold."""

    def __init__(self, data: LabelledImages, plan: Sequence[Phase], settings: Settings, where: torch.device) -> None:
        self.data, self.settings, self.where = data, settings, where
        self.sizes = sizes(plan)
        self.batches = len(data.labels) // settings.rows
        if not self.batches:
            raise FeatmapError(
                f"{len(data.labels)} images are fewer than a batch of {settings.rows}; give more images or fewer --rows"
            )
        with seeded((settings.seed, 0, 0), torch.device("cpu")):
            module = build_googlenet(len(data.classes), init=True)
        self.module = module.to(where).to(memory_format=torch.channels_last)
        self.average = AveragedModel(self.module, multi_avg_fn=get_ema_multi_avg_fn(AVERAGE_DECAY), use_buffers=True)
        self.optimiser = torch.optim.SGD(
            parameter_groups(self.module, settings.decay), settings.rate, momentum=settings.momentum, nesterov=True
        )
        self.loss = nn.CrossEntropyLoss(label_smoothing=settings.smoothing)
        self.step, self.history = 0, list[dict[str, Any]]()
        self.losses = 0.0
        self.origin: dict[str, Any] = {"init": None, "plans": []}
        self.mid_step = False
        self.schedule: LambdaLR | None = None

    def make_schedule(self) -> LambdaLR:
        """Make the schedule of the step size from this step on.

        It depends on step, plan and settings alone.
        """
        for group in self.optimiser.param_groups:
            group["initial_lr"] = self.settings.rate

        def share(step: int) -> float:
            return rate_share(step, self.total, self.settings.fall)

        self.schedule = LambdaLR(self.optimiser, share, last_epoch=self.step - 1)
        return self.schedule

    @property
    def uses_bfloat16(self) -> bool:
        """Whether convolutions run in bfloat16."""
        return self.settings.precision == "bfloat16"

    @property
    def total(self) -> int:
        """Steps of the whole plan."""
        return len(self.sizes) * self.batches

    def load_initial(self, weights: Path) -> None:
        """Load initial weights from a file."""
        load_state(self.module, read_state(weights), "GoogLeNet", weights.name)
        load_state(self.average.module, read_state(weights), "GoogLeNet", weights.name)
        self.origin["init"] = {"file": weights.name, "sha256": hash_file(weights)}

    def advance(self) -> float:
        """Make one step and return its loss.

        Raises
        ------
        FeatmapError
            If the loss is not finite; no checkpoint is written then.
        """
        settings, self.mid_step = self.settings, True
        epoch, batch = divmod(self.step, self.batches)
        chosen = epoch_order(settings.seed, epoch, len(self.data.labels))[
            batch * settings.rows : (batch + 1) * settings.rows
        ]
        labels = self.data.labels[chosen].to(self.where)
        schedule = self.schedule or self.make_schedule()
        self.module.train()
        mixed = torch.autocast(self.where.type, torch.bfloat16, enabled=self.uses_bfloat16)
        with seeded((settings.seed, epoch, batch), self.where):
            images = augment(self.data.images[chosen], self.sizes[epoch])
            images = images.to(self.where, memory_format=torch.channels_last)
            with mixed:
                scores = self.module(images)
        loss = self.loss(scores.float(), labels)
        if not math.isfinite(value := float(loss.detach())):
            raise FeatmapError(f"the loss of step {self.step} is {value}: take a smaller --rate than {settings.rate}")
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
        schedule.step()
        self.average.update_parameters(self.module)
        self.step, self.losses, self.mid_step = self.step + 1, self.losses + value, False
        return value

    def save(self, path: Path) -> None:
        """Write a checkpoint."""
        state = {
            "settings": vars(self.settings),
            "data": self.data.digest,
            "network": self.module.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "step": self.step,
            "history": self.history,
            "losses": self.losses,
            "origin": self.origin,
        }
        write_atomically(path, lambda p: torch.save(state, p))

    def resume(self, path: Path) -> None:
        """Resume from a checkpoint.

        Raises
        ------
        FeatmapError
            If it is damaged, or was made with other settings or data.
        """
        try:
            state = torch.load(path, map_location=self.where, weights_only=True)
            if self.settings.precision == "auto":
                self.settings = replace(self.settings, precision=str(state["settings"]["precision"]))
            current = {**vars(self.settings), "data": self.data.digest}
            saved = {**state["settings"], "data": state["data"]}
            different = [k for k in current if current[k] != saved.get(k)]
            if different:
                k = different[0]
                raise FeatmapError(
                    f"{path} was made with {k} {saved.get(k)!r}, not {current[k]!r}; use that, or delete the checkpoint"
                )
            self.module.load_state_dict(state["network"])
            self.average.load_state_dict(state["average"])
            self.optimiser.load_state_dict(state["optimiser"])
            self.step, self.history, self.origin = int(state["step"]), list(state["history"]), dict(state["origin"])
            self.losses = float(state.get("losses", 0.0))
        except (RuntimeError, KeyError, TypeError, ValueError, EOFError, OSError, pickle.UnpicklingError) as error:
            raise FeatmapError(
                f"checkpoint {path} cannot be read ({first_line(error)}); delete it to start again"
            ) from error
        self.schedule = None


def stored_state(module: nn.Module) -> dict[str, Tensor]:
    """Collect the tensors to store.

    Weights of two and more dimensions are rounded to float16, the rest stays as trained.
    """
    state = {k: v.detach().cpu().contiguous() for k, v in module.state_dict().items()}
    return {k: v.half() if v.dim() > 1 else v for k, v in state.items() if not k.endswith("num_batches_tracked")}


def accuracy(
    module: nn.Module, data: LabelledImages, size: int, where: torch.device, halved: bool, rows: int = 128
) -> float:
    """Estimate the top-1 accuracy quickly; `evaluate_reference` is exact."""
    right = 0
    prepare = v2.Compose(
        [
            v2.Resize([size, size], antialias=True),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )
    module.eval()
    with torch.inference_mode():
        for k in range(0, len(data.labels), rows):
            images = prepare(data.images[k : k + rows]).to(where, memory_format=torch.channels_last)
            with torch.autocast(where.type, torch.bfloat16, enabled=halved):
                right += int((module(images).argmax(1).cpu() == data.labels[k : k + rows]).sum())
    return right / len(data.labels)


@contextmanager
def _progress_bar(training: Training) -> Iterator[tuple[Progress, Any]]:
    """Show a progress bar of the training's steps."""
    columns = (
        TextColumn("epoch {task.fields[epoch]}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %  loss {task.fields[loss]:.3f}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err(), speed_estimate_period=600, disable=not sys.stderr.isatty()) as bars:
        yield bars, bars.add_task("", total=training.total, completed=training.step, epoch="", loss=float("nan"))


@contextmanager
def _stop_request() -> Iterator[threading.Event]:
    """Yield an event that Ctrl-C sets, so that a step is never left half done.

    A second Ctrl-C interrupts at once.
    """
    requested = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield requested
        return

    def request(_: int, __: object) -> None:
        if requested.is_set():
            raise KeyboardInterrupt
        requested.set()

    before = signal.getsignal(signal.SIGINT)
    if before is not signal.default_int_handler:  # another handler, or ignored: left alone
        yield requested
        return
    signal.signal(signal.SIGINT, request)
    try:
        yield requested
    finally:
        signal.signal(signal.SIGINT, before)


def run_training(training: Training, checkpoint: Path, every: float, validation: LabelledImages | None) -> None:
    """Make the remaining steps, with checkpoints at intervals and at Ctrl-C.

    Raises
    ------
    KeyboardInterrupt
        After Ctrl-C, with the checkpoint written.
    """
    saved = start = reported = time.monotonic()
    first = training.step
    with _stop_request() as requested, _progress_bar(training) as (bars, task):
        try:
            while training.step < training.total:
                loss = training.advance()
                epoch, batch = divmod(training.step, training.batches)
                bars.update(task, completed=training.step, epoch=f"{epoch + 1}/{len(training.sizes)}", loss=loss)
                left = (time.monotonic() - start) / (training.step - first) * (training.total - training.step)
                if batch == 0:
                    row: dict[str, Any] = {"epoch": epoch, "size": training.sizes[epoch - 1]}
                    row["loss"] = round(training.losses / training.batches, 4)
                    training.history.append(row)
                    training.losses = 0.0
                    training.save(checkpoint)
                    if validation is not None:
                        row["top1"] = accuracy(
                            training.average.module, validation, row["size"], training.where, training.uses_bfloat16
                        )
                        training.save(checkpoint)
                    _print(bars, f"{json.dumps(row)}, about {left / 60:.0f} minutes left")
                if time.monotonic() - saved > every:
                    training.save(checkpoint)
                    saved = time.monotonic()
                if bars.disable and time.monotonic() - reported > REPORT_INTERVAL:
                    _print(bars, f"step {training.step} of {training.total}, about {left / 60:.0f} minutes left")
                    reported = time.monotonic()
                if requested.is_set():
                    raise KeyboardInterrupt
        except KeyboardInterrupt:
            if not training.mid_step:
                training.save(checkpoint)
            raise


def _print(bars: Progress, line: str) -> None:
    """Print a line above the progress bar."""
    bars.console.print(line, markup=False, soft_wrap=True)


def finish(training: Training, out: Path) -> None:
    """Write the averaged network and the record of its training."""
    write_atomically(out, lambda p: save_file(stored_state(training.average.module), p))
    names = ("featmap", "torch", "torchvision", "numpy")
    record = {
        "file": out.name,
        "sha256": hash_file(out),
        "bytes": out.stat().st_size,
        "classes": training.data.classes,
        "settings": vars(training.settings)
        | {"warm_up_steps": WARM_UP_STEPS, "average": AVERAGE_DECAY, "crop_area": CROP_AREA},
        **training.origin,
        "history": training.history,
        "images": len(training.data.labels),
        "data": training.data.digest,
        "device": training.where.type,
        "versions": {n: version(n) for n in names},
    }
    text = json.dumps(record, indent=1, allow_nan=False)
    write_atomically(out.with_name(out.name + ".json"), lambda p: p.write_text(text + "\n", encoding="utf-8"))


def main(
    data: Annotated[list[Path], typer.Option(help="Training images: a folder or zip, one folder for each class.")],
    out: Annotated[Path, typer.Option(help="File for the weights (.safetensors).")],
    init: Annotated[Path | None, typer.Option(help="Initial weights; without it, random ones.")] = None,
    plan: Annotated[str, typer.Option(help="Epochs x pixels, in order.")] = "12x48,12x64",
    rate: Annotated[float, typer.Option(help="Largest step size.")] = 0.2,
    fall: Annotated[float, typer.Option(help="Share of the plan in which the rate falls to 0.")] = 0.7,
    rows: Annotated[int, typer.Option(help="Images in a batch.")] = 128,
    seed: Annotated[int, typer.Option(help="Seed of weights, order and crops.")] = 0,
    precision: Annotated[str, typer.Option(help="float32, bfloat16, or auto: bfloat16 where it is faster.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda.")] = "auto",
    validation: Annotated[Path | None, typer.Option(help="Images to evaluate after every epoch.")] = None,
    every: Annotated[float, typer.Option(help="Minutes between checkpoints.")] = 3.0,
) -> None:
    """Train, or resume a training; write the weights and their record."""
    where = select_device(device)
    if precision not in ("auto", "float32", "bfloat16"):
        raise FeatmapError(f"precision {precision!r} is unknown; allowed: auto, float32, bfloat16")
    if rate <= 0 or not 0 < fall <= 1 or rows < 2 or seed < 0:
        raise FeatmapError(
            f"rate {rate}, fall {fall}, rows {rows}, seed {seed}: rate is above 0, fall in (0, 1], rows from 2, "
            "seed from 0"
        )
    phases = read_plan(plan)
    out.parent.mkdir(parents=True, exist_ok=True)
    with _lock(out), deterministic_settings():
        settings = Settings(rows=rows, rate=rate, fall=fall, seed=seed, precision=precision)
        training = Training(read_labelled_images(data), phases, settings, where)
        evaluated = None if validation is None else read_labelled_images([validation], training.data.classes)
        if evaluated is not None and (shared := training.data.count_shared(evaluated)):
            raise FeatmapError(
                f"{shared} images of --validation are among --data; give images that are not used in training"
            )
        checkpoint = out.with_name(out.name + ".checkpoint")
        _start(training, checkpoint, init, plan)
        run_training(training, checkpoint, 60 * every, evaluated)
        finish(training, out)
    print(out)


@contextmanager
def _lock(out: Path) -> Iterator[None]:
    """Hold the lock of the output file."""
    try:
        with FileLock(out.with_name(out.name + ".lock"), timeout=0):
            yield
    except Timeout:
        raise FeatmapError(f"another process trains {out}; wait for it, or choose another --out") from None


def _start(training: Training, checkpoint: Path, init: Path | None, plan: str) -> None:
    """Resume from a checkpoint, or start from given or random weights, and record the plan."""
    if checkpoint.is_file():
        training.resume(checkpoint)
        used = training.origin["init"]
        if init is not None and (used is None or used["sha256"] != hash_file(init)):
            raise FeatmapError(f"{checkpoint} started from other weights than {init}; leave out --init, or delete it")
        if training.step > training.total:
            raise FeatmapError(
                f"plan {plan!r} has {training.total} steps, {checkpoint} has {training.step}: give a longer plan"
            )
        err().print(f"resuming from step {training.step} of {training.total}")
    else:
        if training.settings.precision == "auto":
            chosen = "bfloat16" if prefers_bfloat16(training.where) else "float32"
            training.settings = replace(training.settings, precision=chosen)
        if init is not None:
            training.load_initial(init)
    if training.step < training.total and (not training.origin["plans"] or training.origin["plans"][-1][1] != plan):
        training.origin["plans"].append([training.step, plan])


if __name__ == "__main__":
    run(main)
