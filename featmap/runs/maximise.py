"""Maximise units: descents from noise to maximising images, in memory or in a run folder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import nn

from featmap.errors import FeatmapError, UnitError
from featmap.files import safe_file_name
from featmap.image_shape import colour_note
from featmap.network.loading import load
from featmap.network.model import Network
from featmap.network.unit import Unit
from featmap.optimize import photographs
from featmap.optimize.limits import resolve_recipe, seeds_of
from featmap.optimize.objective import Objective
from featmap.optimize.recipe import Recipe
from featmap.optimize.schedule import require_integer
from featmap.runs import folder_layout, lifecycle
from featmap.runs.device import deterministic_settings, use_threads
from featmap.runs.engine import HERE, Execution
from featmap.runs.job import Job
from featmap.runs.manifest import MAXIMISE
from featmap.runs.progress import Watcher
from featmap.runs.store import Run, open_arrays
from featmap.runs.worker import Worker, checked
from featmap.stats import facets
from featmap.stats.frames import finite_column, spell_flags

if TYPE_CHECKING:  # the first step is not to wait for what only reads and draws runs
    import pandas as pd
    import xarray as xr

Target = str | Unit | Objective


@dataclass(frozen=True)
class Extras:
    """What is made and stored beside the images of units.

    Parameters
    ----------
    frames : int, default 0
        Store the image at the start, after every this many steps and at the end; 0 stores none of them.
    responses : str or sequence of str, optional
        Layers whose features' responses are recorded. None takes, with `frames`, the layers of the units, else none.
    facets : int, default 0
        Make this many images of each unit, 2 to 16, that differ in the responses of the unit's layer; the first one is
        the unit's image. 0 makes no others. How many are clearly different is counted by
        `featmap.stats.facets.facet_table`.

    Raises
    ------
    FeatmapError
        If a number is out of range.
    """

    frames: int = 0
    responses: str | Sequence[str] | None = None
    facets: int = 0

    def __post_init__(self) -> None:
        if require_integer("frames", self.frames) < 0:
            raise FeatmapError(
                f"frames {self.frames}: give the number of steps between two stored images, or 0 for none"
            )
        facets.check_facets(self.facets)

    def layers(self, objectives: Iterable[Objective]) -> list[str]:
        """List the layers whose responses are recorded.

        Parameters
        ----------
        objectives : iterable of Objective
            What is maximised.

        Returns
        -------
        list of str
            Names as they were given, or the layers of the objectives, each once.
        """
        if self.responses is None:
            return list(dict.fromkeys(layer for o in objectives for layer in o.layers)) if self.frames else []
        return [self.responses] if isinstance(self.responses, str) else list(self.responses)


def maximise_job(
    units: Iterable[Target],
    network: Network,
    recipe: Recipe,
    *,
    extras: Extras | None = None,
    seeds: int | Iterable[int] = 1,
    start: str | Path | ArrayLike | None = None,
    device: torch.device | None = None,
) -> Job:
    """Create the checked job of the maximising images of units or sums of units.

    Parameters
    ----------
    units : iterable of str, Unit or Objective
        What to maximise; duplicates are dropped.
    network : Network
        Network that they belong to.
    recipe : Recipe
        Resolved recipe.
    extras, seeds, start
        See `maximise`.
    device : torch.device, optional
        Where the network is computed; None is the CPU.

    Returns
    -------
    Job
        The checked job.

    Raises
    ------
    FeatmapError
        If a unit does not exist or a setting is out of range.
    """
    extras = extras or Extras()
    objectives = tuple(
        dict.fromkeys(Objective.parse(network.number_names(u) if isinstance(u, str) else u) for u in units)
    )
    if not objectives:
        raise UnitError("no units; give at least one, such as inception4a:17")
    layers = extras.layers(objectives)
    job = Job(
        network=network,
        objectives=objectives,
        recipe=recipe,
        seeds=seeds_of(seeds, recipe),
        responses=tuple(dict.fromkeys(network.resolve_unit(Unit(layer, 0), recipe.size).layer for layer in layers)),
        device=device or torch.device("cpu"),
        start=None if start is None else photographs.load_start_image(start, recipe.sizes[0], network.channels),
        command=MAXIMISE,
        frames=extras.frames,
        facets=extras.facets,
    )
    return checked(job)


def maximise(
    units: Iterable[Target] | Target,
    network: str | nn.Module | Network = "reference",
    *,
    extras: Extras | None = None,
    recipe: str | Recipe | None = None,
    seeds: int | Iterable[int] = 1,
    start: str | Path | ArrayLike | None = None,
    execution: Execution | None = None,
) -> xr.Dataset:
    """Maximise units or sums of units.

    Parameters
    ----------
    units : str, Unit, Objective or iterable of these
        Such as "inception4a:17", "inception4a:17 + 0.5 * inception4b:201" or ``channel("inception4a", 17)``.
    network : str, torch.nn.Module or Network, default "reference"
        A name that `featmap.load` takes, a module that takes images in [0, 1], or a loaded network.
    extras : Extras, optional
        What is stored beside the images, such as ``Extras(frames=50, responses="inception4b")``; None stores nothing.
    recipe : str or Recipe, optional
        Settings of the descent, such as ``Recipe.named("fast", size=96, steps=40)``. None is "fast" on a CPU and
        "standard" on an accelerator.
    seeds : int or iterable of int, default 1
        Number of seeds of the noise, counted from the recipe's own, or the seeds themselves.
    start : path or array, optional
        A photograph, or C x H x W values in [0, 1], to start from instead of noise; resized for the recipe.
    execution : Execution, optional
        Device, engine, run folder and progress. Without a run folder the images are computed in memory.

    Returns
    -------
    xarray.Dataset
        `images` (seed, image, channel, y, x), `activation` and `null_activation` (seed, image), `curve`
        (seed, image, step), `status` (seed, image; an index into `featmap.runs.folder_layout.STATUSES`), `null_images`.
        With `responses` also `A` (seed, image, response) and `null` (seed, response). With `frames` also `frames`
        (seed, image, frame, channel, y, x), labelled by the number of steps, at the final size; and `frame_A` (seed,
        image, frame, response), the responses of the unmodified network to each frame at the size that it had. The last
        frame is the image, and its row of `frame_A` equals that of `A` bit for bit. With `facets` also `facets` (seed,
        image, facet, channel, y, x), `facet_activation`, `facet_distance` (seed, image, facet, other facet) and
        `facet_repeat` and `facet_repeat_activation` (seed, image), see `featmap.runs.folder_layout.facet_arrays`.

    Raises
    ------
    FeatmapError
        If a unit does not exist or a setting is out of range.

    Notes
    -----
    Tables and pictures are written by the command `featmap maximise` only.

    References
    ----------
    The article, section "Feature Visualization from First Principles".
    """
    execution = execution or Execution()
    if execution.out is None and execution.engine.name != HERE:
        raise FeatmapError(
            f"engine {execution.engine.name}: workers write into a run folder; choose one, or use the engine {HERE!r}"
        )
    loaded, device = load(network), execution.torch_device()
    job = maximise_job(
        [units] if isinstance(units, (str, Unit, Objective)) else units,
        loaded,
        resolve_recipe(recipe, loaded, device),
        extras=extras,
        seeds=seeds,
        start=start,
        device=device,
    )
    if execution.out is not None:
        with lifecycle.open_run(job, execution.out).locked() as run:
            lifecycle.carry_out(job, run, Worker, execution.watcher, execution.engine)
            lifecycle.complete(job, run)
        return open_arrays(run.folder)
    with use_threads(execution.engine.threads_per_worker(torch.get_num_threads())):
        return _in_memory(job, execution.watcher)


def _in_memory(job: Job, watcher: Watcher) -> xr.Dataset:
    """Compute all images of a job without a run folder."""
    import xarray as xr

    specs, coords = job.arrays(), job.coords()
    arrays = {k: np.empty(s.shape, dtype=s.dtype) for k, s in specs.items()}
    worker = Worker(job, watcher)
    (units,) = job.waves()
    watcher.begin(sum(job.steps_per_unit for u in units if u.last), 0)
    with deterministic_settings():
        for unit in units:
            at = job.seeds.index(unit.seed)
            for name, values in worker.make(unit).items():
                arrays[name][(at, slice(unit.first, unit.last)) if unit.last else at] = values
    variables = {k: (specs[k].dims, v, dict(specs[k].attrs)) for k, v in arrays.items()}
    return xr.Dataset(variables, coords=coords, attrs={"network": str(job.network), "recipe": job.recipe.name})


def write_images(job: Job, run: Run, watcher: Watcher) -> None:
    """Write the table, the pictures and the contact sheets of a run of `maximise`.

    Parameters
    ----------
    job : Job
        Job of the run.
    run : Run
        Its folder, in which every unit has landed.
    watcher : Watcher
        Receives the progress.
    """
    from featmap.plotting.sheets import Sheet
    from featmap.runs.output import format_number, save_sheet, to_picture

    data = open_arrays(run.folder)
    frame = data[["activation", "null_activation", "status"]].to_dataframe().reset_index()
    for column in ("activation", "null_activation"):
        frame[column] = finite_column(frame[column].to_numpy())
    codes = frame["status"]
    frame["status"], frame["start"] = folder_layout.status_names(codes), folder_layout.starts(codes)
    run.manifest.files = {}
    if job.facets:
        frame["facets"] = write_facets(job, run, data).to_numpy()
    run.write("images.csv", lambda p: frame.to_csv(p, index=False, float_format="%.9g", lineterminator="\n"))
    labels = job.labels
    for k, label in enumerate(labels):
        pixels = data["images"].isel(seed=0, image=k).values
        picture = to_picture(pixels)
        run.write(f"images/{k:05d}-{safe_file_name(label)}.png", picture.save)
        watcher.stage("pictures", k + 1, len(labels))
    first = frame[frame["seed"] == job.seeds[0]]
    captions = [
        format_number(value) + ("" if status == "live" else f" {status}")
        for value, status in zip(first["activation"], first["status"], strict=True)
    ]
    sheet = Sheet(
        images=data["images"].isel(seed=0).values,
        labels=labels,
        captions=captions,
        title=f"{len(labels)} maximising images" + colour_note(job.network.channels),
    )
    save_sheet(run, "features", sheet)


def write_facets(job: Job, run: Run, data: xr.Dataset) -> pd.Series:
    """Write the table, the pictures and the contact sheets of facets.

    Parameters
    ----------
    job : Job
        Job of the run.
    run : Run
        Its folder, in which every unit has landed.
    data : xarray.Dataset
        Its arrays.

    Returns
    -------
    pandas.Series
        Number of clearly different facets of each image, seed by seed, see `featmap.stats.facets.facet_table`.
    """
    import pandas as pd

    from featmap.runs.output import save_facets

    layers, tables, counts = [tuple(sorted(o.layers)) for o in job.objectives], [], []
    for k, seed in enumerate(job.seeds):
        values = [data[name].isel(seed=k).values for name in folder_layout.FACET_TABLE]
        table, count = facets.facet_table(job.labels, layers, *values)
        table.insert(0, "seed", seed)
        tables.append(table)
        counts.append(count)
    whole = spell_flags(pd.concat(tables, ignore_index=True))
    run.write("facets.csv", lambda p: whole.to_csv(p, index=False, float_format="%.9g", lineterminator="\n"))
    save_facets(run, "", data["facets"].isel(seed=0).values, tables[0])
    return pd.concat(counts)


def summarise_images(folder: Path) -> str:
    """Summarise a run of `maximise` in one line.

    Parameters
    ----------
    folder : Path
        Folder of the finished run.

    Returns
    -------
    str
        Number of images, in total and of each status, and the highest activation.
    """
    import pandas as pd

    frame = pd.read_csv(folder / "images.csv")
    rescued = int((frame["start"] == folder_layout.RESCUED_START).sum()) if "start" in frame else 0
    counts = folder_layout.count_statuses(Counter(frame["status"]), rescued)
    best = frame.loc[frame["activation"].idxmax()] if frame["activation"].notna().any() else None
    highest = "" if best is None else f"; highest activation {best['activation']:.4g} ({best['image']})"
    return f"{len(frame)} image{'s' * (len(frame) != 1)}: {counts}{highest}"
