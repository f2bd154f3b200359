"""Judge a run's images by other networks, and compare them with photographs.

Everything is stored in `RUN/judge/`, as a run folder inside the judged run. A further call, with other judges or
photographs, replaces it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn

from featmap.errors import FeatmapError
from featmap.files import digest
from featmap.image_shape import Size, as_pair, format_size
from featmap.network.loading import load
from featmap.network.model import Network
from featmap.optimize.photograph_files import PhotographFiles
from featmap.optimize.photograph_folder import PhotographFolder
from featmap.optimize.photographs import check_photograph_channels
from featmap.runs import device, integrity, lifecycle, output
from featmap.runs.engine import Execution
from featmap.runs.manifest import COMPLETE, MAXIMISE, RUNNING, SIMILARITY, translate_read_errors
from featmap.runs.progress import Watcher
from featmap.runs.store import Run, open_arrays
from featmap.validation import image_statistics
from featmap.validation.image_evidence import RunImages
from featmap.validation.image_inputs import (
    Judge,
    PhotographEvidence,
    class_layer,
    image_batches,
    images_of_run,
    measure_own,
)
from featmap.validation.inputs import GivenPhotographs, decode_photographs, list_photographs
from featmap.validation.results import Statistic, statistics_frame, statistics_records

FOLDER = "judge"
MAX_INPUT_SIZE = 1024
"""Largest input size of a judge, in pixels: images are resized to it, 16 at a time."""
By = str | nn.Module | Network


@dataclass(frozen=True, eq=False)
class JudgementPlan:
    """Settings of a judgement, checked.

    Parameters
    ----------
    run : Run
        The judged run.
    images : RunImages
        Its images.
    network : Network
        Its network.
    judges : tuple of Judge
        The other networks.
    photographs : PhotographFiles, PhotographFolder or None
        Photographs that the images are compared with.
    skip_broken : bool
        Whether photographs that cannot be read are left out.
    folder : Path
        Folder of the judgement.
    device : torch.device
        Where the networks are computed.
    """

    run: Run
    images: RunImages
    network: Network
    judges: tuple[Judge, ...]
    photographs: PhotographFiles | PhotographFolder | None
    skip_broken: bool
    folder: Path
    device: torch.device


@dataclass(eq=False)
class Judgement:
    """What other networks, and photographs, say of a run's images.

    Parameters
    ----------
    folder : Path or None
        Folder of the results.
    images : pandas.DataFrame
        A row for each image, see `featmap.validation.image_statistics.image_table`.
    transfer : pandas.DataFrame
        A row for each judge and image of a class logit or hidden feature, see
        `featmap.validation.image_statistics.transfer_table`.
    results : list of Statistic
        The summary.
    notes : list of str
        What was not measured, and why.
    """

    folder: Path | None
    images: pd.DataFrame
    transfer: pd.DataFrame
    results: list[Statistic]
    notes: list[str]

    @property
    def statistics(self) -> pd.DataFrame:
        """The summary; `network` says of what, or by which judge, a statistic is."""
        return statistics_frame(self.results)


def plan_judgement(
    folder: str | Path,
    by: By | Sequence[By],
    *,
    photographs: GivenPhotographs | None = None,
    skip_broken: bool = False,
    network: Network | None = None,
    execution: Execution | None = None,
) -> JudgementPlan:
    """Check the settings of a judgement.

    Parameters
    ----------
    folder, by, photographs, skip_broken, network, execution
        See `judge`.

    Returns
    -------
    JudgementPlan
        The checked settings.

    Raises
    ------
    FeatmapError
        If the run is not complete, holds no images or is one of another network, or there is no judge or no photograph.
    """
    execution, folder = execution or Execution(), Path(folder)
    run = Run.read(folder)
    with translate_read_errors(folder):
        if run.identity.get("command") not in (MAXIMISE, SIMILARITY) or not run.manifest.is_complete:
            raise FeatmapError(
                f"run {str(folder)!r} is not a complete run of maximise or similarity; give the folder of one, or "
                "complete this one first"
            )
        integrity.require_intact(folder, pages=False, parts=False)
        network = lifecycle.with_run_directions(network, folder) if network else lifecycle.network_of(folder)
        lifecycle.require_network(run, network)
        images = images_of_run(open_arrays(folder))
    judges = load_judges(by)
    for judge in judges:
        if judge.network.channels != network.channels:
            raise FeatmapError(
                f"judge {judge.name} takes images of {judge.network.channels} channels, and those of the run have "
                f"{network.channels}; give a network that takes as many"
            )
    if photographs is not None:
        check_photograph_channels(network.channels)
    return JudgementPlan(
        run,
        images,
        network,
        judges,
        list_photographs(photographs),
        skip_broken,
        execution.out or folder / FOLDER,
        execution.torch_device(),
    )


def load_judges(by: By | Sequence[By]) -> tuple[Judge, ...]:
    """Load judges and give each a name of its own.

    Parameters
    ----------
    by : str, torch.nn.Module, Network or sequence of these
        The networks, see `judge`.

    Returns
    -------
    tuple of Judge
        In the order given.

    Raises
    ------
    FeatmapError
        If there is none, one is given twice, cannot be loaded or fails at its input size.
    """
    networks = [load(one) for one in ([by] if isinstance(by, (str, nn.Module, Network)) else by)]
    if not networks:
        raise FeatmapError("no judge; give at least one other network, by the names that featmap.load takes")
    for network in networks:
        size = format_size(network.input_size)
        if max(as_pair(network.input_size)) > MAX_INPUT_SIZE:
            raise FeatmapError(
                f"judge {network.name} takes images of {size} pixels; give a size of {MAX_INPUT_SIZE:,} or less"
            )
        if failure := network.trace().failure:
            raise FeatmapError(f"judge {network.name} fails at {size} pixels ({failure}); give its own input size")
    identities = [network.identity() for network in networks]
    for k, network in enumerate(networks):
        if identities[k] in identities[:k]:
            raise FeatmapError(f"judge {network.name} ({network.weights}) is given twice; give each network once")
    names = [network.name for network in networks]
    unique = [n if names.count(n) == 1 else f"{n} {net.sha256[:8]}" for n, net in zip(names, networks, strict=True)]
    unique = [n if unique.count(n) == 1 else f"{n} ({k + 1})" for k, n in enumerate(unique)]
    return tuple(Judge.of(network, name) for network, name in zip(networks, unique, strict=True))


def carry_out(plan: JudgementPlan, watcher: Watcher) -> Judgement:
    """Measure the images, and write the results into the folder of the judgement.

    Parameters
    ----------
    plan : JudgementPlan
        The judgement.
    watcher : Watcher
        Receives progress updates.

    Returns
    -------
    Judgement
        Tables and summary.
    """
    listed = plan.photographs
    photographs = None if listed is None else decode_photographs(listed, plan.skip_broken, watcher)
    identity = {"command": "judge", "run": digest(plan.run.identity)}
    about = {"network": str(plan.network), "environment": device.describe_environment(plan.device)}
    registered = lifecycle.registered_inside(plan.run.folder, plan.folder)
    with registered, Run(plan.folder, identity).open({}, {}, about).locked() as store:
        store.manifest.status = RUNNING
        store.save()
        with device.deterministic_settings():
            natural = None if photographs is None else PhotographEvidence(photographs, plan.device, watcher)
            judgement = measure_images(plan.images, plan.network, plan.judges, natural, plan.device, watcher)
        judgement.folder = plan.folder
        _write(plan, judgement, photographs, store)
    return judgement


def measure_images(
    images: RunImages,
    network: Network,
    judges: Sequence[Judge],
    photographs: PhotographEvidence | None,
    device: torch.device,
    watcher: Watcher,
) -> Judgement:
    """Measure images by their own network and judges, and against photographs.

    Parameters
    ----------
    images : RunImages
        The images and what they were made for.
    network : Network
        Network that they were made for.
    judges : sequence of Judge
        Other networks.
    photographs : PhotographEvidence or None
        Photographs.
    device : torch.device
        Where the networks are computed.
    watcher : Watcher
        Receives progress updates.

    Returns
    -------
    Judgement
        Tables and summary, without a folder.
    """
    size, notes, tables = images.size, list[str](), []
    batches = image_batches(images, watcher, f"images by {network.name}")
    own = measure_own(network, images, batches, size, device)
    natural = None if photographs is None else photographs.own(network, images, size)
    table = image_statistics.image_table(images, own, natural)
    results = image_statistics.image_statistics(table, images, own, natural)
    classes = class_layer(network, size)
    for judge in judges:
        shared = _shared_classes(network, classes, size, judge, images, notes)
        hidden = photographs is not None and bool(judge.layers) and any(la != shared for la in images.layers)
        batches = image_batches(images, watcher, f"images by {judge.name}")
        judged = judge.measure(batches, device, logits=shared is not None, hidden=hidden)
        both = None
        if hidden and photographs is not None and natural is not None:
            both = natural.responses, photographs.by(judge)
        recognised = image_statistics.transfer_table(images, (judge.name, judge.columns()), judged, both, shared)
        results += image_statistics.transfer_statistics(recognised, judge.class_count())
        tables.append(recognised)
        if judge.network.sha256 == network.sha256:
            notes.append(f"{judge.name} has the weights of the run's own network: this is no transfer")
    if photographs is None:
        notes.append("no photographs: hidden features, colour and agreement are not compared with any")
    if any(k < 0 for k in images.feature):
        notes.append("images of rows, neurons and sums of units are measured by their pixels only")
    return Judgement(None, table, pd.concat([t for t in tables if len(t)] or tables[:1]), results, notes)


def _shared_classes(
    network: Network, classes: str | None, size: Size, judge: Judge, images: RunImages, notes: list[str]
) -> str | None:
    """Find the layer of class logits that a judge can judge; append a note if the numbers of classes differ."""
    if classes is None or classes not in images.layers:
        return None
    own, other = network.layer(classes, size).channels, judge.class_count()
    if own == other:
        return classes
    notes.append(f"{judge.name} has {other:,} classes and {network.name} {own:,}: class logits are not judged")
    return None


def _write(plan: JudgementPlan, judgement: Judgement, photographs: PhotographFolder | None, store: Run) -> None:
    """Write the tables and the summary, and mark the judgement complete."""
    store.manifest.files = {}
    output.write_frame(store, "images", judgement.images)
    output.write_frame(store, "transfer", judgement.transfer)
    output.write_frame(store, "statistics", judgement.statistics, "row")
    summary: dict[str, Any] = {
        "network": str(plan.network),
        "judges": {judge.name: str(judge.network) for judge in plan.judges},
        "photographs": None if photographs is None else photographs.shown_name,
        "notes": judgement.notes,
        "statistics": statistics_records(judgement.statistics),
    }
    text = json.dumps(summary, indent=1) + "\n"
    store.write("summary.json", lambda p: p.write_text(text, encoding="utf-8"))
    manifest = store.manifest
    manifest.images = summary["photographs"]
    manifest.photographs = {} if photographs is None else photographs.record()
    manifest.summary = {"judges": summary["judges"], "notes": judgement.notes}
    manifest.status = COMPLETE
    store.save()


def judge(
    run: str | Path,
    by: By | Sequence[By],
    *,
    photographs: GivenPhotographs | None = None,
    skip_broken: bool = False,
    network: str | nn.Module | Network | None = None,
    execution: Execution | None = None,
) -> Judgement:
    """Judge a run's images by other networks, and compare them with photographs.

    Images are taken as a picture file holds them, clamped to [0, 1], and resized to each network's input size. Those of
    class logits are judged by the rank of their class in every judge with as many classes; those of hidden features,
    with photographs, by the response of the judge's most similar feature. Contrast, colour, spectrum and coverage of
    the grid are measured of all.

    Parameters
    ----------
    run : path
        Folder of a complete run of `maximise` or `similarity`.
    by : str, torch.nn.Module, Network or sequence of these
        The judges: names that `featmap.load` takes, modules that take images in [0, 1], or loaded networks.
    photographs : path or PhotographFolder, optional
        Folder or zip of at least `featmap.validation.inputs.FEWEST_PHOTOGRAPHS` photographs.
    skip_broken : bool, default False
        Go on without photographs that cannot be read; otherwise they are an error.
    network : str, torch.nn.Module or Network, optional
        Network of the run, needed only if it is one of the caller's own.
    execution : Execution, optional
        Device, folder of the results and progress. Without a folder it is `judge` inside the run.

    Returns
    -------
    Judgement
        `images` and `transfer` have a row for each image, `statistics` one for each summary.

    Raises
    ------
    FeatmapError
        If the run is not complete, holds no images or is one of another network, or there is no judge or no photograph.
    """
    execution = execution or Execution()
    loaded = None if network is None else load(network)
    plan = plan_judgement(
        run, by, photographs=photographs, skip_broken=skip_broken, network=loaded, execution=execution
    )
    return carry_out(plan, execution.watcher)
