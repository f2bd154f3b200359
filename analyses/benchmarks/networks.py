"""Compare a step with the one that a user would write, and one unit with sixteen, on any network.

    python -m analyses.benchmarks.networks --model resnet50 --weights random --layer layer3.2
    python -m analyses.benchmarks.networks --check

The step as a user would write it has frozen weights, stops at the layer and computes all images in one batch; featmap's
has the same batch. All take turns. The weights do not matter to the time, so that random ones will do. Then one unit
and sixteen are maximised, in turns too, with the number of rows that featmap finds for each; the bits of the image that
both have are compared. Results of another call for the same network and layer are replaced.
"""

from __future__ import annotations

import copy
import json
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

import featmap
from analyses.benchmarks import records, steps
from analyses.benchmarks.image_records import short_name
from analyses.support.commands import run
from featmap import Execution, Network
from featmap.cli.app import expand_options
from featmap.cli.options import NetworkOptions
from featmap.errors import FeatmapError
from featmap.optimize.prepare import prepare
from featmap.optimize.recipe import Recipe
from featmap.runs.device import deterministic_settings

STORE, SECTION = records.FOLDER / "networks.json", "networks"
UNITS, ROUNDS = 16, 2
AIMS = {"float32": 3, "bfloat16": 5}
"""Times that a step is faster than the user's, by precision."""
SHOWN = 4
"""Operations that are named."""


def step_variants(network: Network, layer: str) -> dict[str, steps.Variant]:
    """Prepare the user's step and featmap's two.

    Parameters
    ----------
    network : Network
        The network.
    layer : str
        Layer at which a step stops.

    Returns
    -------
    dict of str to Variant
        "user", and the precisions of `AIMS`.
    """
    frozen = copy.deepcopy(network.module).eval().requires_grad_(False)
    folds, nhwc = network.trace(steps.SIZE).folds, torch.channels_last
    found = {"user": steps.Variant("user", frozen, True, steps.BATCH)}
    for name in AIMS:
        dtype = steps.PRECISIONS[name]
        given = None if dtype == torch.float32 else dtype
        module = prepare(network.module, folds, [layer], steps.CPU, nhwc, given)
        found[name] = steps.Variant(name, module, True, steps.BATCH, nhwc, dtype)
    return found


def measure_steps(network: Network, layer: str) -> dict[str, Any]:
    """Measure the milliseconds of one image's step, and shares of the peak.

    Parameters
    ----------
    network : Network
        The network.
    layer : str
        Layer at which a step stops.

    Returns
    -------
    dict
        Plain JSON values.
    """
    chain = step_variants(network, layer)
    work = {k: (steps.make_step(v, network, layer, steps.SIZE), v.rows) for k, v in chain.items()}
    seconds = {name: float(np.median(took)) for name, took in steps.time_rounds(work).items()}
    peaks = {name: max(steps.measure_peaks(name).values()) for name in AIMS}
    flops = steps.count_flops(network, layer, steps.SIZE)
    shares = list(steps.operation_shares(work["float32"][0]).items())[:SHOWN]
    return {
        "gflop": round(flops / 1e9, 2),
        "ms": {name: round(1000 * took, 2) for name, took in seconds.items()},
        "share": {name: round(flops / seconds[name] / peaks[name], 3) for name in AIMS},
        "operations": dict(shares),
    }


def measure_units(network: Network, layer: str, recipe: str | Recipe = "fast") -> dict[str, Any]:
    """Measure the seconds of one unit and of sixteen, and compare the bits of the first one's image.

    Parameters
    ----------
    network : Network
        The network.
    layer : str
        Layer of the units.
    recipe : str or Recipe, default "fast"
        Recipe of the descents.

    Returns
    -------
    dict
        Plain JSON values.
    """
    channels = network.layer(layer).channels
    if channels < 2:
        raise FeatmapError(f"layer {layer!r} has one feature, which has nothing to stand beside; give another --layer")
    units = [f"{layer}:{c}" for c in range(min(UNITS, channels))]
    seconds: dict[int, list[float]] = {1: [], len(units): []}
    images: dict[int, np.ndarray] = {}
    rows: dict[int, int] = {}
    for _ in range(ROUNDS):
        for count in seconds:
            with tempfile.TemporaryDirectory() as folder:
                begin = time.perf_counter()
                data = featmap.maximise(
                    units[:count], network, recipe=recipe, execution=Execution("cpu", out=Path(folder) / "run")
                )
                images[count] = data["images"].values[0, 0]
                seconds[count].append(time.perf_counter() - begin)
                manifest = json.loads((Path(folder) / "run" / "manifest.json").read_text(encoding="utf-8"))
                found = [r["rows"] for r in manifest["batch_rows"] if r["pass"] == "descent" and r["images"] == count]
                rows[count] = found[0] if found else Recipe.named(recipe).rows
    few, many = seconds
    return {
        "units": len(units),
        "size": images[few].shape[-1],
        "seconds": [round(float(np.mean(seconds[n])), 2) for n in (few, many)],
        "rows": [rows[n] for n in (few, many)],
        "same_bits": bool(np.array_equal(images[few], images[many])),
    }


def format_page(results: list[dict[str, Any]]) -> str:
    """Write the section of the README.

    Parameters
    ----------
    results : list of dict
        Of each network and layer, see `measure_steps` and `measure_units`.

    Returns
    -------
    str
        Markdown.
    """
    machines = list(dict.fromkeys(f"{r['machine']['processor']}, {r['machine']['cores']} cores" for r in results))
    lines = [
        "## Steps and single units on several networks",
        "",
        f"`python -m analyses.benchmarks.networks`, a call for each row, on {' and '.join(machines)}. Milliseconds of "
        f"one image's step at {steps.SIZE} pixels, forward to the layer and back to the image, in batches of "
        f"{steps.BATCH}: as a user would write it (weights frozen, stopped at the layer, one batch), and featmap's, in "
        "brackets how many times faster. The share of the peak counts the operations of the step as it is written. "
        f"Aims: {AIMS['float32']} times in float32, {AIMS['bfloat16']} times in bfloat16.",
        "",
        "| network | layer | GFLOP | user, ms | float32, ms | bfloat16, ms | share of the peak | longest operations |",
        "|---|---|---|---|---|---|---|---|",
    ]
    ordered = sorted(results, key=lambda r: (r["source"], r["layers"]))
    for r in ordered:
        ms, shares = r["steps"]["ms"], r["steps"]["share"]
        times = [f"{ms[name]:.3g} ({_times(ms['user'] / ms[name], aim)})" for name, aim in AIMS.items()]
        taken = ", ".join(f"`{what}` {share:.0%}" for what, share in r["steps"]["operations"].items())
        both = " and ".join(f"{shares[name]:.2f}" for name in AIMS)
        cells = [r["source"], *r["layers"], f"{r['steps']['gflop']:.3g}", f"{ms['user']:.3g}", *times, both, taken]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        f"One unit beside {UNITS}, as `featmap.maximise` makes them (recipe `fast`), the mean of {ROUNDS} rounds, of "
        "which none warms up; the share is the first over the second. Rows: how many images are computed together for "
        "one unit, and for sixteen.",
        "",
        "| network | layer | pixels | one unit, s | sixteen, s | share | rows | same bits |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for r in ordered:
        found = r["units"]
        one, many = found["seconds"]
        cells = [r["source"], *r["layers"], str(found["size"]), f"{one:.2f}", f"{many:.2f}", f"{one / many:.2f}"]
        cells += [" and ".join(map(str, found["rows"])), "yes" if found["same_bits"] else "**no**"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _times(ratio: float, aim: float) -> str:
    """Format how many times faster a step is, in bold where the aim is reached."""
    return f"**{ratio:.2f}**" if ratio >= aim else f"{ratio:.2f}"


def main(
    network: NetworkOptions,
    layer: Annotated[str | None, typer.Option(help="Layer at which a step stops, and of the units.")] = None,
    store: Annotated[Path, typer.Option(help="The numbers, as JSON.")] = STORE,
    readme: Annotated[Path, typer.Option(help="The table is written between marks in this file.")] = records.README,
    check: Annotated[bool, typer.Option("--check", help="Write nothing; check that table and numbers agree.")] = False,
) -> None:
    """Compare a step with the one that a user would write, and one unit with sixteen."""
    found = []
    if not check:
        if layer is None:
            raise FeatmapError("no layer is given; give --layer, as `featmap layers` prints them")
        loaded = network.load()
        with deterministic_settings():
            found.append(
                {
                    "source": short_name(loaded.name),
                    "layers": [layer],
                    "machine": records.describe_machine("torchvision"),
                    "steps": measure_steps(loaded, layer),
                    "units": measure_units(loaded, layer),
                }
            )
    records.update_section(SECTION, found, format_page, (store, readme), check)


if __name__ == "__main__":
    run(expand_options(main))
