"""Plan a run of descents and probes, and do its work units: from objectives to stored images and responses."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from featmap import image_ops
from featmap.errors import FeatmapError, ModelError, RecipeError
from featmap.network.model import Network
from featmap.optimize import limits, memory, parameterization
from featmap.optimize.batch import Batches
from featmap.optimize.descent import Descent, OnStep, frame_steps
from featmap.optimize.objective import Objective
from featmap.optimize.recipe import Recipe, whole
from featmap.optimize.responses import Probe, joint
from featmap.runs.device import environment, remembered_settings, thread_count
from featmap.runs.engine import HERE, Engine, Landing, Silent, Task, Watcher, WorkUnit, begin, landing, plan, run_here
from featmap.runs.store import ArraySpec, Run

STATUSES = ("live", "rescued", "dead", "unconverged", "not-finite")
LIVE, RESCUED, DEAD, UNCONVERGED, NOT_FINITE = range(5)
RISE = 1e-6
MOST_SEEDS = 10_000
PAUSE = 0.25
"""Seconds between two looks at what a GPU has reached."""


def check_seeds(seed: int | None, seeds: int, recipe: Recipe) -> tuple[int, ...]:
    """Return the seeds of a run: `seeds` consecutive ones from `seed` (or the recipe's own)."""
    first = recipe.default_seed if seed is None else whole("seed", seed)
    whole("seeds", seeds)
    if not 1 <= seeds <= MOST_SEEDS or not 0 <= first < 2**31:
        raise RecipeError(
            f"seed {first}, {seeds} seeds; give --seed 0 to 2147483647 and --seeds 1 or more, {MOST_SEEDS:,} at most"
        )
    return tuple(range(first, first + seeds))


@dataclass(frozen=True)
class Job:
    """Everything that a run's numbers depend on.

    Parameters
    ----------
    objectives : one an image; `labels` are their names
    responses : layers whose features' responses to every image are recorded (the columns of A)
    start : an image to start from (3 x H x H; a photograph lies in [0, 1]) instead of noise
    about : further settings that belong to the identity of the run (what is shown, which command)
    frames : keep every image at the start and after every so many steps, and the responses to it; 0 keeps none
    """

    network: Network
    objectives: tuple[Objective, ...]
    recipe: Recipe
    seeds: tuple[int, ...] = (0,)
    responses: tuple[str, ...] = ()
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    start: Tensor | None = None
    about: tuple[tuple[str, Any], ...] = ()
    frames: int = 0

    @property
    def labels(self) -> list[str]:
        """The names of the images."""
        return [str(o) for o in self.objectives]

    @property
    def layers(self) -> list[str]:
        """The layers that are maximised."""
        return list(dict.fromkeys(layer for o in self.objectives for layer in o.layers))

    @property
    def columns(self) -> list[str]:
        """The names of the responses, ``layer:channel``."""
        size = self.recipe.size
        return [f"{la}:{c}" for la in self.responses for c in range(self.network.layer(la, size).channels)]

    def check(self) -> Job:
        """Return this job with every unit checked against the network at every size of the recipe."""
        checked = []
        for target in self.objectives:
            terms = tuple((w, self.network.unit(u, self.recipe.size)) for w, u in target.terms)
            limits.check(self.network, self.recipe, [unit.layer for _, unit in terms])
            for size in set(self.recipe.sizes):
                for _, unit in terms:
                    unit.check(self.network.layer(unit.layer, size).shape)
            checked.append(Objective(terms))
        for size in {self.recipe.size, *(self.recipe.sizes if self.frames else ())}:
            for layer in self.responses:
                self.network.layer(layer, size)
        memory.check(self.network, self.recipe, [la for o in checked for la in o.layers], self.device)
        if self.network.arguments.get("model") is None or ":" in self.network.arguments["model"]:
            self._try_step(checked)
        return replace(self, objectives=tuple(dict.fromkeys(checked)))

    def _try_step(self, objectives: Sequence[Objective]) -> None:
        """Make one step on each layer of somebody's own network, so that a fault shows before there is a folder."""
        firsts = {tuple(o.layers): o for o in reversed(objectives)}
        short = replace(self.recipe, octaves=(replace(self.recipe.octaves[-1], steps=1),))
        for layout in (torch.channels_last, torch.contiguous_format):
            self.network.layout = layout
            try:
                worker = Worker(replace(self, objectives=tuple(firsts.values()), recipe=short, responses=(), frames=0))
                worker.descend(tuple(firsts.values())[: short.rows], short, self.seeds[0], lambda _, __: None)
                return
            except (FeatmapError, MemoryError):
                raise
            except Exception as error:  # noqa: BLE001 - somebody else's network may raise anything
                fault = error
        raise ModelError(
            f"network {self.network.name} cannot be descended in a batch of {short.rows} at {short.size} pixels, on "
            f"{', '.join(self.layers)} ({type(fault).__name__}: {(str(fault).splitlines() or [''])[0][:160]}); "
            "its forward has to take any batch and pass gradients"
        ) from fault

    def identity(self) -> dict[str, Any]:
        """Return what tells this run from any other, as plain JSON values."""
        names = "\n".join(self.labels)
        photo = None if self.start is None else hashlib.sha256(self.start.numpy().tobytes()).hexdigest()
        return {
            "model": self.network.identity(),
            "images": {
                "count": len(self.labels),
                "first": self.labels[0],
                "last": self.labels[-1],
                "sha256": hashlib.sha256(names.encode()).hexdigest(),
            },
            "responses": list(self.responses),
            "recipe": self.recipe.identity(),
            "seeds": list(self.seeds),
            "start": photo,
            "device": self.device.type,
            **({"frames": self.frames} if self.frames else {}),
            **dict(self.about),
        }

    def arrays(self) -> dict[str, ArraySpec]:
        """Return the arrays of the run folder; a chunk is what one batch makes."""
        seeds, count, rows = len(self.seeds), len(self.objectives), self.recipe.rows
        size, steps, columns = self.recipe.size, self.recipe.steps, len(self.columns)
        pixels = ("channel", "y", "x")
        meanings = (("flag_values", list(range(len(STATUSES)))), ("flag_meanings", " ".join(STATUSES)))
        specs = {
            "images": ArraySpec(("seed", "image", *pixels), (seeds, count, 3, size, size), (1, rows, 3, size, size)),
            "null_images": ArraySpec(("seed", *pixels), (seeds, 3, size, size), (1, 3, size, size)),
            "activation": ArraySpec(("seed", "image"), (seeds, count), (1, rows)),
            "null_activation": ArraySpec(("seed", "image"), (seeds, count), (1, rows)),
            "curve": ArraySpec(("seed", "image", "step"), (seeds, count, steps), (1, rows, steps)),
            "status": ArraySpec(("seed", "image"), (seeds, count), (1, rows), "uint8", meanings),
        }
        if columns:
            dims = ("seed", "image", "response")
            specs["A"] = ArraySpec(dims, (seeds, count, columns), (1, rows, columns))
            specs["null"] = ArraySpec(("seed", "response"), (seeds, columns), (1, columns))
        return specs | self._frame_arrays()

    def _frame_arrays(self) -> dict[str, ArraySpec]:
        first, kept = (len(self.seeds), len(self.objectives)), len(frame_steps(self.recipe.steps, self.frames))
        if not kept:
            return {}
        dims, picture = ("seed", "image", "frame"), (3, self.recipe.size, self.recipe.size)
        specs = {
            "frames": ArraySpec(
                (*dims, "channel", "y", "x"), (*first, kept, *picture), (1, self.recipe.rows, 1, *picture)
            )
        }
        if columns := len(self.columns):
            shape = (*first, kept, columns)
            specs["frame_A"] = ArraySpec((*dims, "response"), shape, (1, self.recipe.rows, *shape[2:]))
        return specs

    def coords(self) -> dict[str, np.ndarray]:
        """Return the labels along the arrays' dimensions."""
        found = {
            "seed": np.array(self.seeds, dtype=np.int64),
            "image": np.array(self.labels),
            "step": np.arange(self.recipe.steps, dtype=np.int64),
            "channel": np.array(["red", "green", "blue"]),
        }
        if self.frames:
            found["frame"] = np.array(frame_steps(self.recipe.steps, self.frames), dtype=np.int64)
        return found | ({"response": np.array(self.columns)} if self.responses else {})

    def units(self) -> list[WorkUnit]:
        """Return the work units of the run."""
        return plan(len(self.objectives), self.recipe.rows, self.seeds)

    def cost(self, unit: WorkUnit) -> float:
        """Return how much work a unit is: the numbers computed in its passes, one for each set of layers."""
        sets = {tuple(sorted(o.layers)) for o in self.objectives[unit.first : unit.last]}
        return float(sum(max(self.network.layer(la, self.recipe.size).reach for la in layers) for layers in sets))


class Worker:
    """A network that is loaded and prepared once, and does work units of a job."""

    def __init__(self, job: Job, watcher: Watcher | None = None) -> None:
        self.job, self.watcher = job, watcher or Silent()
        network, recipe = job.network, job.recipe
        self.batches = Batches(network, job.device)
        self.probe = Probe(network, recipe.rows, job.device)
        self._nulls: dict[int, Tensor] = {}
        self._null_outputs: dict[int, dict[str, Tensor]] = {}

    def descend(self, objectives: Sequence[Objective], recipe: Recipe, seed: int, on_step: OnStep) -> Descent:
        """Return the descents of a batch."""
        return self.batches.descend(objectives, recipe, seed, self.job.start, on_step, self.job.frames)

    def null_image(self, seed: int) -> Tensor:
        """Return the null image of a seed, 3 x H x W."""
        if seed not in self._nulls:
            self._nulls[seed] = parameterization.null_images(self.job.recipe, seed, self.job.start).float()
        return self._nulls[seed]

    def null_activation(self, seed: int, objectives: Sequence[Objective]) -> np.ndarray:
        """Return each objective's activation on the null image of a seed, which the network sees once."""
        if seed not in self._null_outputs:
            (self._null_outputs[seed],) = self.probe.outputs(self.null_image(seed)[None], self.job.layers)
        return self.probe.reached(self._null_outputs[seed], objectives)

    def make(self, unit: WorkUnit) -> dict[str, np.ndarray]:
        """Return what one work unit gives, by the names of the run's arrays."""
        return self._batch(unit) if unit.last else self._null(unit.seed)

    def work(self, unit: WorkUnit, store: Run) -> None:
        """Do one work unit and land it in the run folder."""
        at = self.job.seeds.index(unit.seed)
        region = (at, slice(unit.first, unit.last)) if unit.last else (at,)
        made = self.make(unit)
        store.land(
            unit.name,
            {k: ((*region, *[slice(None)] * (v.ndim - len(region) + 1)), v) for k, v in made.items()},
        )

    def _null(self, seed: int) -> dict[str, np.ndarray]:
        image = self.null_image(seed)
        made = {"null_images": image.numpy()}
        if self.job.responses:
            made["null"] = self._responses(image[None])[0]
        return made

    def _responses(self, images: Tensor) -> np.ndarray:
        found = self.probe.responses(images, self.job.responses)
        return np.concatenate([found[la] for la in self.job.responses], axis=1)

    def _frames(self, frames: Sequence[Tensor]) -> dict[str, np.ndarray]:
        """Return the frames at the final size, and the responses to them at the size that each had."""
        if not frames:
            return {}
        made = {"frames": np.stack([image_ops.resize(f, self.job.recipe.size).numpy() for f in frames], axis=1)}
        if self.job.responses:
            made["frame_A"] = np.stack([self._responses(f) for f in frames], axis=1)
        return made

    def _batch(self, unit: WorkUnit) -> dict[str, np.ndarray]:
        job = self.job
        chosen = job.objectives[unit.first : unit.last]
        result = self.descend(chosen, job.recipe, unit.seed, told(self.watcher, job.device))
        reached, responses = self.probe.look(result.images, chosen, job.responses)
        curve = torch.stack([joint(result.curve[:, k], chosen) for k in range(result.curve.shape[1])], dim=1).numpy()
        made = {
            "images": result.images.numpy(),
            "activation": reached,
            "null_activation": self.null_activation(unit.seed, chosen),
            "curve": curve,
        }
        if job.responses:
            made["A"] = responses
        made |= self._frames(result.frames)
        made["status"] = statuses(made, result.moved.numpy(), result.revived.numpy())
        return made


def told(watcher: Watcher, device: torch.device) -> OnStep:
    """Return what tells a watcher of each step; a GPU is asked for the activation now and then, for it has to stop."""
    pause = 0.0 if device.type == "cpu" else PAUSE
    known, asked = 0.0, -math.inf

    def on_step(_: int, means: Tensor) -> None:
        nonlocal known, asked
        if time.monotonic() - asked >= pause:
            known, asked = float(means[:, 0].mean()), time.monotonic()
        watcher.step(known)

    return on_step


def statuses(made: dict[str, np.ndarray], moved: np.ndarray, revived: np.ndarray) -> np.ndarray:
    """Return each row's status as an index into `STATUSES`.

    dead: it never had a gradient, or none without help and did not rise with it; unconverged: it had one and
    did not rise above the null image; not-finite: NaN or infinity in its image or in its own response.
    """
    with np.errstate(invalid="ignore"):
        floor = RISE * np.maximum(np.abs(made["activation"]), np.abs(made["null_activation"]))
        rose = made["activation"] - made["null_activation"] > floor
    finite = np.isfinite(made["activation"]) & np.isfinite(made["images"]).all((1, 2, 3))
    found = np.where(rose, np.where(revived, RESCUED, LIVE), np.where(revived | ~moved, DEAD, UNCONVERGED))
    return np.where(finite, found, NOT_FINITE).astype(np.uint8)


def execute(job: Job, store: Run, watcher: Watcher | None = None, engine: Engine | None = None) -> int:
    """Do what is left of a job in its run folder; return how many work units were made now."""
    engine = engine or Engine()
    return perform(task_of(job, Worker, engine), [job.units()], store, watcher, engine)


def task_of(job: Any, kind: Callable[[Any, Watcher], Any], engine: Engine) -> Task:
    """Return what any process has to know to do units of a job (a `Job` or `JointJob`) by a worker of this kind."""
    if engine.name != HERE:  # a worker sees one GPU, its own, whatever number that has here
        job = replace(job, device=torch.device(job.device.type))
    return Task(
        partial(kind, job),
        remembered_settings,
        partial(environment, job.device),
        job.recipe.steps,
        job.cost,
        job.device.type == "cuda",
        memory.needed(job.network, job.recipe, job.layers) if engine.name != HERE else 0,
    )


def perform(
    task: Task,
    waves: Sequence[Sequence[Landing]],
    store: Run,
    watcher: Watcher | None = None,
    engine: Engine | None = None,
) -> int:
    """Do the units that have not landed, those of a wave after those of the one before; return how many were made.

    Raises
    ------
    IncompleteError
        where an engine of several processes left units out.
    """
    watcher, engine = watcher or Silent(), engine or Engine()
    threads = engine.threads_of_each(torch.get_num_threads())
    if engine.name == HERE:
        holder: list[Any] = []

        def work(unit: Landing) -> None:
            if not holder:
                holder.append(task.make(watcher))
            holder[0].work(unit, kept)

        with task.settings(), thread_count(threads), landing(store, task.gpu) as kept:
            return run_here([u for wave in waves for u in wave], store, work, task.steps, watcher)
    open_units = {u.name for u in begin([u for wave in waves for u in wave], store, task.steps, watcher)}
    if not open_units:
        return 0
    from featmap.runs import ray_engine  # only where it is asked for: Ray may not be installed

    left = [[u for u in wave if u.name in open_units] for wave in waves]
    note: Callable[[dict[str, Any]], None] = partial(enter_environment, store, watcher=watcher)
    return ray_engine.run(task, [wave for wave in left if wave], store, watcher, engine, threads, note)


def enter_environment(store: Run, now: dict[str, Any], watcher: Watcher) -> None:
    """Note in the manifest, and say, that units are made in another environment than the run was begun in."""
    later = store.manifest.get("later_environments", [])
    if now == store.manifest["environment"] or now in later:
        return
    store.manifest["later_environments"] = [*later, now]
    store.save()
    watcher.note(
        "parts of this run are made with other library versions or threads: images may differ in the last bits"
    )
