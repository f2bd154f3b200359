"""The library's verbs beside `similarity`: maximise units, probe images. The commands stand on these."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import ArrayLike
from torch import Tensor

from featmap.errors import FeatmapError, UnitError
from featmap.mapping import run as mapping
from featmap.network.model import Network, load
from featmap.network.unit import Unit
from featmap.optimize import photographs
from featmap.optimize.objective import Objective, objective
from featmap.optimize.recipe import Recipe, whole
from featmap.optimize.responses import Probe
from featmap.runs import device as devices
from featmap.runs import integrity, lifecycle
from featmap.runs import job as runs
from featmap.runs.engine import HERE, Engine, Silent, Watcher, WorkUnit, plan, run_here
from featmap.runs.job import Job, Worker
from featmap.runs.manifest import is_run
from featmap.runs.store import ArraySpec, Run, readable, sha256

ROWS = 16


def maximise_job(
    units: Iterable[str | Unit | Objective] | str | Unit | Objective,
    network: Network,
    recipe: Recipe,
    *,
    seed: int | None = None,
    seeds: int = 1,
    where: torch.device | None = None,
    start: str | Path | ArrayLike | None = None,
    frames: int = 0,
    responses: str | Sequence[str] | None = None,
) -> Job:
    """Return the checked job that makes the maximising images of some units or sums of units."""
    given = [units] if isinstance(units, (str, Unit, Objective)) else list(units)
    if not given:
        raise UnitError("no units; give at least one, such as inception4a:17")
    targets = tuple(dict.fromkeys(objective(u) for u in given))
    if whole("frames", frames) < 0:
        raise FeatmapError(f"frames {frames}: keep an image every 1 or more steps, or give 0 for none")
    if responses is None:
        responses = list(dict.fromkeys(layer for o in targets for layer in o.layers)) if frames else []
    layers = [responses] if isinstance(responses, str) else responses
    return Job(
        network,
        targets,
        recipe,
        runs.check_seeds(seed, seeds, recipe),
        tuple(dict.fromkeys(network.unit(Unit(layer, 0), recipe.size).layer for layer in layers)),
        where or torch.device("cpu"),
        None if start is None else photographs.starting_image(start, recipe.sizes[0]),
        (("command", "optimize"),),
        frames,
    ).check()


def maximise(
    units: Iterable[str | Unit | Objective] | str | Unit | Objective,
    model: Any = "reference",
    *,
    weights: str | Path | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    input_size: int | None = None,
    recipe: str | Recipe | None = None,
    size: int | None = None,
    steps: int | None = None,
    seed: int | None = None,
    seeds: int = 1,
    device: str = "auto",
    start: str | Path | ArrayLike | None = None,
    frames: int = 0,
    responses: str | Sequence[str] | None = None,
    out: str | Path | None = None,
    engine: str | Engine = "here",
    watcher: Watcher | None = None,
    **changes: Any,
) -> xr.Dataset:
    """Make the maximising images of units, or of sums of them.

    Parameters
    ----------
    units : "inception4a:17", a `Unit`, an `Objective`, or several
    model, weights, mean, std, input_size : the network, see `featmap.load`
    recipe, size, steps : how the images are made; `changes` are other fields of the recipe (metric, C, rows, gradients)
    seed, seeds : the first seed of the noise and how many of them
    start : a photograph to start from instead of noise, or 3 x H x H of floats (its size is brought to the recipe's)
    frames : keep every image at the start, after every so many steps and at the end; 0 keeps none
    responses : layers whose responses are recorded as well; None: with `frames` those of the units, else none
    out : a run folder to keep the result in and to go on from; None works in memory
    engine : where the descents run, "here", "ray" (which takes a run folder) or a `featmap.Engine`

    Returns
    -------
    xarray.Dataset
        `images` (seed, image, channel, y, x), `activation` and `null_activation` (seed, image), `curve`
        (seed, image, step), `status` (seed, image; an index into `featmap.runs.job.STATUSES`), `null_images`.
        With `responses` also `A` (seed, image, response) and `null` (seed, response). With `frames` also `frames`
        (seed, image, frame, channel, y, x), labelled by the steps made: as they would be stored, brought to the
        final size; and `frame_A` (seed, image, frame, response), the untouched network's responses to each at the
        size that it had. The last frame is the image, and its row of `frame_A` is that of `A`, bit for bit.

    Source: the article, section "Feature Visualization from First Principles".
    """
    where, engine = devices.device(device), Engine.of(engine)
    if out is None and engine.name != HERE:
        raise FeatmapError(f"engine {engine.name}: workers write into a run folder; give out, or use engine here")
    network = load(model, weights, mean=mean, std=std, input_size=input_size)
    chosen = mapping.resolve(network, where, recipe, size, steps, **changes)
    job = maximise_job(
        units, network, chosen, seed=seed, seeds=seeds, where=where, start=start, frames=frames, responses=responses
    )
    if out is not None:
        with mapping.open_run(job, out).held() as run:
            mapping.carry_out(job, run, watcher or Silent(), engine)
            mapping.complete(job, run)
        return mapping.open_arrays(run.folder)
    with devices.thread_count(engine.threads_of_each(torch.get_num_threads())):
        return _in_memory(job, watcher)


def _in_memory(job: Job, watcher: Watcher | None) -> xr.Dataset:
    specs, coords = job.arrays(), job.coords()
    arrays = {k: np.empty(s.shape, dtype=s.dtype) for k, s in specs.items()}
    worker = Worker(job, watcher)
    (watcher or Silent()).begin(sum(job.recipe.steps for u in job.units() if u.last), 0)
    with devices.remembered_settings():
        for unit in job.units():
            at = job.seeds.index(unit.seed)
            for name, values in worker.make(unit).items():
                arrays[name][(at, slice(unit.first, unit.last)) if unit.last else at] = values
    variables = {k: (specs[k].dims, v, dict(specs[k].attrs)) for k, v in arrays.items()}
    return xr.Dataset(variables, coords=coords, attrs={"network": str(job.network), "recipe": job.recipe.name})


@dataclass
class Source:
    """Images to probe, read a batch at a time: labels, their size, and how to get those from `first` to `last`."""

    labels: list[str]
    size: int
    digest: str
    read: Callable[[int, int], Tensor]

    def batches(self, rows: int) -> Iterator[Tensor]:
        """Yield the images in batches of `rows`."""
        for first in range(0, len(self.labels), rows):
            yield self.read(first, min(first + rows, len(self.labels)))


def source(images: Any, size: int | None, natural: int) -> Source:
    """Return the images of a run folder, a folder of photographs, a dataset or an array.

    Parameters
    ----------
    images : a run folder; a folder of photographs (brought to `size`, or to `natural` where that is None);
        what `maximise` returned; or N x 3 x H x W in [0, 1]
    """
    if size is not None and size < 1:
        raise FeatmapError(f"size {size}: an image has at least 1 pixel; give --size 32 or more")
    side = size or natural
    if isinstance(images, (str, Path)):
        folder = Path(images)
        if is_run(folder):
            if Run.read(folder).manifest.get("status") != "complete":
                raise FeatmapError(f"run {str(folder)!r} is not finished; run its own command again first")
            integrity.require(folder)
            images = mapping.open_arrays(folder)
            if size is not None and size != images.sizes.get("y", size):
                raise FeatmapError(
                    f"--size {size}: the run's images are stored at {images.sizes['y']} pixels; leave --size out"
                )
        else:
            paths = photographs.find_photographs(folder)
            names = [p.relative_to(folder).as_posix() for p in paths]
            listed = "\n".join(f"{n} {sha256(p)}" for n, p in zip(names, paths, strict=True))
            return Source(
                names,
                side,
                hashlib.sha256(listed.encode()).hexdigest(),
                lambda a, b: torch.stack([photographs.read_photograph(p, side) for p in paths[a:b]]),
            )
    if isinstance(images, xr.Dataset):
        return _from_dataset(images)
    array = torch.as_tensor(np.asarray(images), dtype=torch.float32)
    if array.dim() != 4 or array.shape[1] != 3 or array.shape[2] != array.shape[3] or not len(array):
        raise FeatmapError(f"images of shape {tuple(array.shape)}; allowed: N x 3 x H x H, N of 1 or more")
    digest = hashlib.sha256(array.numpy().tobytes()).hexdigest()
    return Source([str(k) for k in range(len(array))], array.shape[2], digest, lambda a, b: array[a:b])


def _from_dataset(data: xr.Dataset) -> Source:
    if "images" not in data:
        raise FeatmapError("this run has no images to probe; `featmap similarity` and `featmap optimize` make some")
    seeds, count = data.sizes["seed"], data.sizes["image"]
    names = [str(n) for n in data["image"].values]
    labels = names if seeds == 1 else [f"{n}@{s}" for s in data["seed"].values for n in names]

    def read(first: int, last: int) -> Tensor:
        wanted = [divmod(k, count) for k in range(first, last)]
        return torch.from_numpy(np.stack([data["images"][s, i].values for s, i in wanted]))

    identity = f"{data.attrs} {labels} {float(data['activation'].sum())!r}"
    return Source(labels, data.sizes["y"], hashlib.sha256(identity.encode()).hexdigest(), read)


def probe(
    images: Any,
    layers: str | Sequence[str],
    model: Any = "reference",
    *,
    weights: str | Path | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    input_size: int | None = None,
    size: int | None = None,
    device: str = "auto",
    out: str | Path | None = None,
    watcher: Watcher | None = None,
) -> xr.DataArray:
    """Return the responses of layers' features to images: the mean over each feature's grid.

    Parameters
    ----------
    images : see `source`
    layers : one or more names, as `featmap layers` prints them
    model, weights, mean, std, input_size : the network, see `featmap.load`
    size : of photographs, in pixels (default: the network's own input size)
    out : a run folder to keep the responses in and to go on from; None works in memory

    Returns
    -------
    xarray.DataArray
        dimensions image x response, float32, responses labelled "layer:channel". The untouched network in
        evaluation mode, no jitter.
    """
    network = load(model, weights, mean=mean, std=std, input_size=input_size)
    where = devices.device(device)
    wanted = list(dict.fromkeys([layers] if isinstance(layers, str) else layers))
    given = source(images, size, network.input_size)
    columns = [f"{la}:{c}" for la in wanted for c in range(network.layer(la, given.size).channels)]
    if out is not None:
        return _probe_to_folder(network, given, wanted, columns, where, Path(out), watcher or Silent())
    prober = Probe(network, ROWS, where)
    pieces = []
    with devices.remembered_settings():
        for batch in given.batches(ROWS):
            found = prober.responses(batch, wanted)
            pieces.append(np.concatenate([found[la] for la in wanted], axis=1))
    return xr.DataArray(
        np.concatenate(pieces),
        dims=("image", "response"),
        coords={"image": given.labels, "response": columns},
        name="A",
        attrs={"network": str(network)},
    )


def _probe_to_folder(
    network: Network,
    given: Source,
    layers: list[str],
    columns: list[str],
    where: torch.device,
    folder: Path,
    watcher: Watcher,
) -> xr.DataArray:
    identity = {
        "command": "probe",
        "model": network.identity(),
        "images": {"count": len(given.labels), "size": given.size, "sha256": given.digest},
        "responses": layers,
        "device": where.type,
    }
    spec = ArraySpec(("image", "response"), (len(given.labels), len(columns)), (ROWS, len(columns)))
    about = {
        "network": str(network),
        "model_arguments": network.arguments,
        "environment": devices.environment(where),
        "timings": {},
    }
    coords = {"image": np.array(given.labels), "response": np.array(columns)}
    run = Run(folder, identity).open({"A": spec}, coords, about)
    with run.held():
        prober = Probe(network, ROWS, where)

        def work(unit: WorkUnit) -> None:
            found = prober.responses(given.read(unit.first, unit.last), layers)
            values = np.concatenate([found[la] for la in layers], axis=1)
            run.land(unit.name, {"A": ((slice(unit.first, unit.last), slice(None)), values)})
            watcher.step(float(values.mean()))

        units = [u for u in plan(len(given.labels), ROWS, (0,)) if u.last]
        with devices.remembered_settings():
            made = run_here(units, run, work, 1, watcher)
        data = mapping.open_arrays(folder)["A"]
        if made or not run.is_complete():
            frame = data.to_pandas()
            frame.index.name = "image"
            run.write("responses.parquet", frame.to_parquet)
            run.write("responses.csv", lambda p: frame.to_csv(p, float_format="%.9g", lineterminator="\n"))
            lifecycle.complete(run, (u.name for u in units))
        return data


def network_of(folder: Path) -> Network:
    """Return the network that a run was made with.

    Raises
    ------
    FeatmapError
        if it cannot be loaded again, or its weights are others now.
    """
    run = Run.read(folder)
    with readable(folder):
        arguments, known = run.manifest.get("model_arguments") or {}, str(run.identity["model"]["sha256"])
        if not arguments.get("model"):
            raise FeatmapError(f"run {str(folder)!r} was made with a network of the caller's own; name it with --model")
        network = load(**arguments)
    if network.sha256 != known:
        raise FeatmapError(
            f"run {str(folder)!r} was made with other weights than {network.weights} now; give --model and --weights"
        )
    return network
