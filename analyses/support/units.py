"""Features that the article names: the option `--units`, and findings of each of them beside the means of all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from analyses.support.findings import Finding, value_finding
from analyses.support.study import FIRST, Context, Study
from featmap import FeatmapError, Network

DRAWN = "drawn"
"""Value of `--units` that draws all features, also where the article names some."""


def choose_units(
    text: str | None, study: Study, model: str, layers: Sequence[str], network: Network
) -> tuple[str, ...]:
    """Choose the features that a study measures before it draws any.

    Parameters
    ----------
    text : str or None
        Value of ``--units``: features joined by commas, `FIRST` or `DRAWN`; None: those that the article names, as far
        as their layers are measured and have so many channels.
    study : Study
        The study.
    model : str
        Name of the network's column.
    layers : sequence of str
        Layers to measure.
    network : Network
        The network.

    Returns
    -------
    tuple of str
        ``layer:channel``, or `FIRST` alone.

    Raises
    ------
    FeatmapError
        If the study takes no units, or if one is no feature of a layer to measure.
    """
    if text is None:
        named = study.units.get(model, ())
        return tuple(u for u in named if u == FIRST or _describe_fault(u, layers, network) is None)
    if not study.takes_units:
        raise FeatmapError(f"study {study.name} draws no features; leave out --units")
    units = tuple(dict.fromkeys(u.strip() for u in text.split(",") if u.strip()))
    if units in ((FIRST,), (DRAWN,)):
        return units if units == (FIRST,) else ()
    for unit in units:
        fault = _describe_fault(unit, layers, network)
        if fault is not None:
            raise FeatmapError(f"--units {unit!r}: {fault}")
    if not units:
        raise FeatmapError(f"--units names no feature; give LAYER:CHANNEL,..., {FIRST} or {DRAWN}")
    return units


def _describe_fault(unit: str, layers: Sequence[str], network: Network) -> str | None:
    """Say why a text is no feature of one of the layers; None where it is one."""
    layer, _, channel = unit.rpartition(":")
    if layer not in layers or not channel.isdecimal():
        return f"give LAYER:CHANNEL,... of {', '.join(layers)}; or {FIRST}, or {DRAWN}"
    channels = network.layer(layer, network.input_size).channels
    return None if int(channel) < channels else f"layer {layer!r} has {channels} features; give 0 to {channels - 1}"


def named_findings(
    context: Context, name: str, values: Mapping[str, Sequence[float] | np.ndarray], words: str, unit: str = ""
) -> list[Finding]:
    """Report each named feature on its own.

    Parameters
    ----------
    context : Context
        The study.
    name : str
        Name of the quantity.
    values : mapping of str to array_like
        Values by feature, ``layer:channel``; of seeds, or of neurons.
    words : str
        Description.
    unit : str, default ""
        Unit.

    Returns
    -------
    list of Finding
        One for each named feature, the mean of its values; undefined where it has none.
    """
    findings = []
    for named in context.units:
        if named == FIRST:
            continue
        own = np.asarray(values.get(named, ()), dtype=float)
        own = own[np.isfinite(own)]
        mean = float(own.mean()) if len(own) else np.nan
        findings.append(value_finding(f"{name} of {named}", mean, len(own), f"{named}, named: {words}", unit=unit))
    return findings


def named_rows(
    context: Context, rows: pd.DataFrame, quantities: Sequence[tuple[str, str, str, str, str]]
) -> list[Finding]:
    """Report each named feature on its own, from tidy rows.

    Parameters
    ----------
    context : Context
        The study.
    rows : pandas.DataFrame
        Rows of `analyses.support.image_sets.tidy_rows`; features may be neurons, `channel:row:column`.
    quantities : sequence of (str, str, str, str, str)
        Measure, recipe, against, description and unit of each quantity.

    Returns
    -------
    list of Finding
        For each quantity one for each named feature, means over seeds and neurons, whose number is n.
    """
    findings = []
    features = rows["layer"].astype(str) + ":" + rows["feature"].astype(str).str.split(":").str[0]
    for measure, recipe, against, words, unit in quantities:
        chosen = (rows["measure"] == measure) & (rows["recipe"] == recipe) & (rows["against"] == against)
        values = {str(f): own.to_numpy(dtype=float) for f, own in rows.loc[chosen, "value"].groupby(features[chosen])}
        name = " ".join(filter(None, (measure, recipe, against)))
        findings += named_findings(context, name, values, words, unit)
    return findings
