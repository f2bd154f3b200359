"""Choose groups of units, and set up the jobs that maximise them together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch

from featmap.errors import UnitError
from featmap.image_shape import Size
from featmap.interaction.job import GROUP_COMMAND, LAYERS_COMMAND, Group, JointJob
from featmap.interaction.precision import AutoSeeds, GrowingJob
from featmap.network.model import Network
from featmap.network.unit import Unit, parse_channels
from featmap.optimize.limits import seeds_of
from featmap.optimize.recipe import Recipe
from featmap.runs.worker import checked
from featmap.stats.interaction import BALANCE

SEEDS_OF_GROUP, SEEDS_OF_PAIRS = 5, 3
"""Default numbers of seeds."""
MAX_PAIRS = 20_000
"""Largest number of pairs of a run."""
LayerChannels = str | tuple[str, str | Sequence[int]]
"""A layer, which stands for all its features, or a layer and channels as "0-15,42" or a sequence."""


@dataclass(frozen=True)
class JointSettings:
    """Settings of joint descents besides their units, network and recipe.

    Parameters
    ----------
    balance : str, default "solo"
        "solo" divides each unit by its solo maximum; "none" is the plain sum.
    probe_layers : str or sequence of str, optional
        Layers whose features' responses are compared. Default: the layers of the units.
    seeds : int, iterable of int, "auto" or AutoSeeds, optional
        Number of seeds, counted from the recipe's own, or the seeds themselves; "auto", or a rule, adds seeds until the
        result is as precise as asked for. None takes the default number of the job.
    device : torch.device, default the CPU
        Where the network is computed.
    """

    balance: str = BALANCE
    probe_layers: str | Sequence[str] = ()
    seeds: int | Iterable[int] | str | AutoSeeds | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))


def group_job(
    units: Sequence[str | Unit] | str,
    network: Network,
    recipe: Recipe,
    settings: JointSettings | None = None,
) -> JointJob:
    """Set up the job of one group of units.

    Parameters
    ----------
    units : sequence of str or Unit
        2 to 8 units.
    network : Network
        Network that they belong to.
    recipe : Recipe
        Resolved recipe.
    settings : JointSettings, optional
        Balance, probed layers, seeds and device. None takes the defaults, with `SEEDS_OF_GROUP` seeds.

    Returns
    -------
    JointJob
        The checked job.

    Raises
    ------
    FeatmapError
        If there are fewer than two units, one does not exist, or a setting is out of range.
    """
    names = [units] if isinstance(units, str) else units
    group = tuple(Unit.parse(network.number_names(u)) if isinstance(u, str) else u for u in names)
    if len(group) < 2:
        raise UnitError(f"{' '.join(map(str, group)) or 'no unit'}: interaction takes two units or more")
    return _joint_job((group,), network, recipe, settings or JointSettings(), GROUP_COMMAND)


def select_units(selection: LayerChannels, network: Network, size: Size) -> tuple[Unit, ...]:
    """Select features of a layer.

    Parameters
    ----------
    selection : str or (str, channels)
        A layer, which stands for all its features, or a layer and channels as "0-15,42" or a sequence.
    network : Network
        Network that it belongs to.
    size : int or (int, int)
        Image size in pixels.

    Returns
    -------
    tuple of Unit
        In the order of the channels.

    Raises
    ------
    UnitError
        If the layer does not exist or a channel is out of range.
    """
    layer, channels = (selection, "all") if isinstance(selection, str) else selection
    text = channels if isinstance(channels, str) else ",".join(map(str, channels))
    shape = network.layer(layer, size)
    return tuple(Unit(layer, c) for c in parse_channels(text, shape.channels, layer, shape.names))


def select_two_layers(
    layers: Sequence[LayerChannels], network: Network, size: Size
) -> tuple[tuple[Unit, ...], tuple[Unit, ...]]:
    """Select features of two layers.

    Parameters
    ----------
    layers : sequence of str or (str, channels)
        The layers, each with or without channels, see `select_units`.
    network : Network
        Network that they belong to.
    size : int or (int, int)
        Height and width of the images in pixels.

    Returns
    -------
    tuple of (tuple of Unit, tuple of Unit)
        Features of the first and of the second layer.

    Raises
    ------
    UnitError
        If there are not two layers, or a layer or feature does not exist.
    """
    if len(layers) != 2:
        raise UnitError(f"{len(layers)} layers: give two, each with channels if not all its features are meant")
    first, second = layers
    return select_units(first, network, size), select_units(second, network, size)


def pairs_of(layers: Sequence[LayerChannels], network: Network, size: Size) -> tuple[Group, ...]:
    """List every pair of two layers' features.

    Parameters
    ----------
    layers : sequence of str or (str, channels)
        Two layers; the same one twice gives each pair of its different features once.
    network : Network
        Network that they belong to.
    size : int or (int, int)
        Image size in pixels.

    Returns
    -------
    tuple of (Unit, Unit)
        At most `MAX_PAIRS`.

    Raises
    ------
    UnitError
        If there are not two layers, no pair, or too many.
    """
    first, second = select_two_layers(layers, network, size)
    pairs: list[Group] = [(a, b) for a in first for b in second if a != b]
    if first[0].layer == second[0].layer:  # a with b and b with a are one pair
        unordered: dict[frozenset[Unit], Group] = {}
        for pair in pairs:
            unordered.setdefault(frozenset(pair), pair)
        pairs = list(unordered.values())
    names = f"{first[0].layer} with {second[0].layer}"
    if not pairs:
        raise UnitError(f"{names}: these features make no pair; choose at least two different ones")
    if len(pairs) > MAX_PAIRS:
        raise UnitError(
            f"{names}: {len(pairs):,} pairs, {MAX_PAIRS:,} are allowed; "
            "choose fewer features, or let a screening find the most nonlinear pairs"
        )
    return tuple(pairs)


def pairs_job(
    groups: tuple[Group, ...],
    network: Network,
    recipe: Recipe,
    settings: JointSettings | None = None,
) -> JointJob:
    """Set up the job of many pairs.

    Parameters
    ----------
    groups : tuple of (Unit, Unit)
        The pairs, all of the same two layers.
    network : Network
        Network that they belong to.
    recipe : Recipe
        Resolved recipe.
    settings : JointSettings, optional
        Balance, probed layers, seeds and device. None takes the defaults, with `SEEDS_OF_PAIRS` seeds.

    Returns
    -------
    JointJob
        The checked job.

    Raises
    ------
    FeatmapError
        If a unit does not exist or a setting is out of range.
    """
    return _joint_job(groups, network, recipe, settings or JointSettings(), LAYERS_COMMAND)


def _joint_job(
    groups: tuple[Group, ...], network: Network, recipe: Recipe, settings: JointSettings, command: str
) -> JointJob:
    """Set up and check a job of one command."""
    layers = tuple(network.resolve_unit(u, recipe.size).layer for u in groups[0])
    probed = [settings.probe_layers] if isinstance(settings.probe_layers, str) else settings.probe_layers
    default = SEEDS_OF_GROUP if command == GROUP_COMMAND else SEEDS_OF_PAIRS
    rule, auto = settings.seeds, None
    if isinstance(rule, (str, AutoSeeds)):
        auto = AutoSeeds.parse(rule)
        rule = auto.start(recipe)
    job = JointJob(
        network=network,
        groups=groups,
        recipe=recipe,
        seeds=seeds_of(default if rule is None else rule, recipe),
        responses=tuple(dict.fromkeys(probed or layers)),
        balance=settings.balance,
        device=settings.device,
        command=command,
    )
    return GrowingJob.of(checked(job), auto) if auto else checked(job)


def require_pairs(job: JointJob) -> None:
    """Check that a job is of pairs of units, and has no photographs yet.

    Parameters
    ----------
    job : JointJob
        A job of joint descents that is to measure photographs.

    Raises
    ------
    UnitError
        If a group has more than two units, or the job is of another class, whose work the one with photographs would
        not do.
    """
    if type(job) not in (JointJob, GrowingJob):
        raise UnitError(f"photographs are added once, to a job of joint descents; this is a {type(job).__name__}")
    if job.members != 2:
        raise UnitError(
            f"photographs with {job.members} units: responding together is measured for two; give two units, or leave "
            "the photographs out"
        )
