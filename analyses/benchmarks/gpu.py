"""Measure everything that a GPU decides, in one script of a few minutes.

    python -m analyses.benchmarks.gpu                       # any CUDA device; no part begins after 8 minutes
    python -m analyses.benchmarks.gpu --device cpu          # a small form without compilers: does it run to its end?

In this order, most important first, each part written to the JSON file as soon as it is measured:

1. *equality*: one gradient and the responses on the device against the CPU, in float32, as the norm of the difference
   over the norm of the CPU's;
2. *rows*: milliseconds per image of a step, by rows of a batch and precision (float32, TF32, bfloat16), channels last,
   with the share of the device's peak and its memory;
3. *layout and compiler*: the contiguous layout, torch.compile and CUDA graphs beside the same module without them;
4. *whole job*: descents of some batches of every layer of the network, with the probe, extrapolated to all features.

A part that the time does not suffice for, or that fails, is written as not measured, with the reason. The table in the
README is made from the file; a GPU that nobody has measured stays "not measured" there.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

from analyses.benchmarks import records, steps
from analyses.benchmarks.steps import CPU, Variant
from analyses.support.commands import run as run_command
from featmap import Network, Recipe, channel, load
from featmap.cli.console import err
from featmap.errors import FeatmapError, describe_error
from featmap.network.selection import select_layers
from featmap.optimize.batch import Batches
from featmap.optimize.prepare import prepare
from featmap.optimize.responses import Probe
from featmap.runs.device import deterministic_settings, select_device

STORE, SECTION = records.FOLDER / "gpu.json", "gpu"
ROWS = (16, 32, 64, 128, 256, 512)
MINUTES = 8.0
NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class Plan:
    """What is measured, and how much of it.

    Parameters
    ----------
    network : Network
        The network.
    layer : str
        Layer at which a step stops.
    where : torch.device
        The device.
    size : int
        Image size in pixels.
    rows : tuple of int
        Numbers of rows.
    batches : int
        Batches of each layer in the part "whole job".
    side : int
        Side of the matrices that the peak is measured with.
    recipe : Recipe
        Resolved recipe of the whole job.
    """

    network: Network
    layer: str
    where: torch.device
    size: int
    rows: tuple[int, ...]
    batches: int
    side: int
    recipe: Recipe


def plan(network: Network, layer: str, where: torch.device) -> Plan:
    """Choose what is measured: everything on a GPU, a small form on a CPU."""
    if where.type == "cpu":
        return Plan(network, layer, where, 64, (2, 4), 0, 256, Recipe.named("fast", size=32, steps=2).resolved(32))
    recipe = Recipe.named("standard", size=128, rows=128).resolved(128)
    return Plan(network, layer, where, steps.SIZE, ROWS, 1, 4 * steps.MATRIX, recipe)


def measure_equality(p: Plan) -> dict[str, Any]:
    """Compare one gradient and the responses with the CPU's, in float32 without TF32."""
    rows = min(p.rows)
    folds = p.network.trace(p.size).folds
    gradients, responses = [], []
    images = torch.rand(rows, 3, p.size, p.size, generator=torch.Generator().manual_seed(0))
    for where in (CPU, p.where):
        module = prepare(p.network.module, folds, [p.layer], where, torch.channels_last, space_to_depth=False)
        variant = Variant("step", module, True, rows, torch.channels_last)
        gradients.append(steps.make_step(variant, p.network, p.layer, p.size, where)().cpu().double())
        responses.append(Probe(p.network, rows, where).responses(images, [p.layer])[p.layer].astype(float))
    differences = {
        "gradient": float((gradients[1] - gradients[0]).norm() / gradients[0].norm()),
        "responses": float(np.linalg.norm(responses[1] - responses[0]) / np.linalg.norm(responses[0])),
    }
    return {"rows": rows, **differences}


def measure_rows(p: Plan) -> dict[str, Any]:
    """Measure a step by rows and precision; what the memory does not suffice for is left out and named."""
    folds, flops = p.network.trace(p.size).folds, steps.count_flops(p.network, p.layer, p.size)
    peaks = {name: max(steps.measure_peaks(name, p.where, p.side).values()) for name in steps.PRECISIONS}
    found: list[dict[str, Any]] = []
    kinds = [(name, dtype, False) for name, dtype in steps.PRECISIONS.items()]
    kinds += [("TF32", torch.float32, True)] if p.where.type == "cuda" else []
    for name, dtype, tf32 in kinds:
        module = prepare(p.network.module, folds, [p.layer], p.where, torch.channels_last, dtype, space_to_depth=False)
        for rows in p.rows:
            variant = Variant(name, module, True, rows, torch.channels_last, dtype, tf32=tf32)
            entry: dict[str, Any] = {"precision": name, "rows": rows, "ms": None, "share": None, "GB": None}
            found.append(entry)
            try:
                _reset_memory(p.where)
                work = {name: (steps.make_step(variant, p.network, p.layer, p.size, p.where), rows)}
                seconds = float(np.median(steps.time_rounds(work, p.where)[name]))
            except torch.OutOfMemoryError:
                continue
            entry["ms"] = 1000 * seconds
            entry["share"] = None if tf32 else flops / seconds / peaks[name]  # TF32 has another peak
            entry["GB"] = _peak_memory(p.where)
    return {"peak_gflops": {k: v / 1e9 for k, v in peaks.items()}, "gflop": flops / 1e9, "steps": found}


def _reset_memory(where: torch.device) -> None:
    """Forget the largest memory so far."""
    if where.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(where)


def _peak_memory(where: torch.device) -> float | None:
    """Get the largest memory on a GPU since the last reset, in GB."""
    return torch.cuda.max_memory_allocated(where) / 1e9 if where.type == "cuda" else None


def measure_layouts(p: Plan) -> dict[str, Any]:
    """Measure the contiguous layout, and on a GPU torch.compile and CUDA graphs, in turns with the module without."""
    rows, folds, found = p.rows[len(p.rows) // 2], p.network.trace(p.size).folds, []

    def compare(name: str, changed: Variant, plain: Variant) -> None:
        work = {
            key: (steps.make_step(variant, p.network, p.layer, p.size, p.where), rows)
            for key, variant in (("changed", changed), ("plain", plain))
        }
        took = {key: float(np.median(v)) for key, v in steps.time_rounds(work, p.where).items()}
        found.append({"name": name, "rows": rows, **{f"{key}_ms": 1000 * v for key, v in took.items()}})

    layouts = {
        layout: Variant(
            "", prepare(p.network.module, folds, [p.layer], p.where, layout, space_to_depth=False), True, rows, layout
        )
        for layout in (torch.contiguous_format, torch.channels_last)
    }
    compare("contiguous, float32", layouts[torch.contiguous_format], layouts[torch.channels_last])
    for name in steps.compiler_settings(p.where) if p.where.type == "cuda" else ():
        try:
            compare(name, *steps.compile_variant(p.network, p.layer, p.size, p.where, rows, name))
        except Exception as error:  # noqa: BLE001 - the compiler is missing or cannot compile the network
            found.append({"name": name, "rows": rows, "reason": describe_error(error)})
    return {"steps": found}


def measure_job(p: Plan) -> dict[str, Any]:
    """Measure descents and probes of some batches of every block, and extrapolate to all features."""
    layers = select_layers("all", p.network, p.recipe.size) if p.batches else [p.layer]
    descender, probe = Batches(p.network, p.where), Probe(p.network, p.recipe.rows, p.where)
    rows, total, features, measured = p.recipe.rows, 0.0, 0, 0
    for layer in layers:
        count = p.network.layer(layer, p.recipe.size).channels
        batches = max(1, p.batches)
        objectives = [channel(layer, c) for c in range(min(rows, count))]
        descender.prepared_module((layer,), p.recipe.size, p.recipe.precision)  # made once for a layer
        start = time.perf_counter()
        for seed in range(batches):
            images = descender.descend(objectives, p.recipe, seed).images
            probe.responses(images, layers)
        total += (time.perf_counter() - start) / (batches * len(objectives)) * count
        features, measured = features + count, measured + batches * len(objectives)
    return {
        "layers": len(layers),
        "features": features,
        "measured_images": measured,
        "recipe": p.recipe.name,
        "size": p.recipe.size,
        "steps": p.recipe.steps,
        "rows": rows,
        "seconds": total,
    }


PARTS: dict[str, Callable[[Plan], dict[str, Any]]] = {
    "equality": measure_equality,
    "rows": measure_rows,
    "layouts": measure_layouts,
    "job": measure_job,
}


def measure(p: Plan, minutes: float, land: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Measure all parts that the time suffices for.

    Parameters
    ----------
    p : Plan
        What is measured.
    minutes : float
        No part begins later than this.
    land : callable
        Called with all results so far after each part.

    Returns
    -------
    dict
        Results by part; a part that is missing holds only its `reason`.
    """
    begun, found = time.monotonic(), {}
    for name, part in PARTS.items():
        if time.monotonic() - begun > 60 * minutes:
            found[name] = {"reason": f"the {minutes:g} minutes were over"}
        else:
            try:
                with deterministic_settings():
                    found[name] = part(p)
            except (RuntimeError, FeatmapError) as error:
                found[name] = {"reason": describe_error(error)}
                err().print(f"{name} is {NOT_MEASURED}: {found[name]['reason']}")
        land(found)
    return found


def format_page(stored: dict[str, Any]) -> str:
    """Format what is known of every device as Markdown.

    Parameters
    ----------
    stored : dict
        Content of the JSON file: results by name of the device.

    Returns
    -------
    str
        A section for the README.
    """
    lines = ["## GPU", ""]
    if not any(v["kind"] == "cuda" for v in stored.values()):
        lines += [
            f"`python -m analyses.benchmarks.gpu`: {NOT_MEASURED} on any GPU. Defaults on a GPU (16 rows, float32, "
            "channels last) are those that a CPU's measurements gave.",
            "",
        ]
    for device, v in stored.items():
        if v["kind"] == "cuda":
            lines += [f"{device}, {v['layer']} of {v['network']}:", "", *_format_device(v["parts"]), ""]
    return "\n".join(lines).rstrip()


def _format_device(parts: dict[str, Any]) -> list[str]:
    """Format the parts of one device."""
    lines = []
    for name, words in (("equality", "Equality with the CPU"), ("job", "Whole job")):
        part = parts.get(name, {"reason": "interrupted"})
        if "reason" in part:
            lines.append(f"- {words}: {NOT_MEASURED} ({part['reason']}).")
        elif name == "equality":
            lines.append(
                f"- {words}, norm of the difference: gradient {part['gradient']:.1e}, responses "
                f"{part['responses']:.1e}."
            )
        else:
            lines.append(
                f"- {words}: {part['features']:,} features of {part['layers']} layers, {part['steps']} steps at "
                f"{part['size']} pixels, {part['rows']} rows: {part['seconds'] / 60:.1f} minutes, extrapolated from "
                f"{part['measured_images']:,} images."
            )
    rows = parts.get("rows", {"reason": "interrupted"})
    if "reason" in rows:
        return [*lines, f"- Rows: {NOT_MEASURED} ({rows['reason']})."]
    lines += ["", "| precision | rows | ms per image | share of the peak | memory, GB |", "|---|---|---|---|---|"]
    for s in rows["steps"]:
        values = [f"{s['ms']:.2f}" if s["ms"] else "does not fit"]
        values += ["" if s[key] is None else f"{s[key]:.2f}" for key in ("share", "GB")]
        lines.append(f"| {s['precision']} | {s['rows']} | {' | '.join(values)} |")
    layouts = parts.get("layouts", {"reason": "interrupted"})
    if "reason" in layouts:
        return [*lines, "", f"- Layout and compiler: {NOT_MEASURED} ({layouts['reason']})."]
    lines += ["", "| change | rows | ms per image | without it |", "|---|---|---|---|"]
    for s in layouts["steps"]:
        values = f"{s['changed_ms']:.2f} | {s['plain_ms']:.2f}" if "plain_ms" in s else f"{NOT_MEASURED} | "
        lines.append(f"| {s['name']} | {s['rows']} | {values} |")
    return lines


def main(
    device: Annotated[str, typer.Option(help="As for `featmap similarity`.")] = "auto",
    layer: Annotated[str, typer.Option(help="Layer at which a step stops.")] = "inception4a",
    model: Annotated[str, typer.Option(help="As for `featmap similarity`.")] = "reference",
    weights: Annotated[str | None, typer.Option(help="As for `featmap similarity`.")] = None,
    minutes: Annotated[float, typer.Option(help="No part begins later than this.")] = MINUTES,
    out: Annotated[Path, typer.Option(help="The numbers, as JSON.")] = STORE,
    readme: Annotated[Path, typer.Option(help="The table is written between marks in this file.")] = records.README,
) -> None:
    """Measure equality, rows, precisions, compilers and the whole job on a device."""
    if not minutes > 0:
        raise FeatmapError(f"--minutes {minutes:g}: give a time above 0")
    network, where = load(model, weights), select_device(device)
    stored = json.loads(out.read_text(encoding="utf-8")) if out.is_file() else {}
    machine = records.describe_machine("torchvision")
    name = torch.cuda.get_device_name(where) if where.type == "cuda" else machine["processor"]
    about = {"kind": where.type, "machine": machine, "network": network.name, "layer": layer}

    def land(parts: dict[str, Any]) -> None:
        stored[name] = about | {"parts": parts}
        records.write_json(out, stored)

    measure(plan(network, layer, where), minutes, land)
    records.write_table(SECTION, format_page(stored), readme)
    print(format_page(stored))


if __name__ == "__main__":
    run_command(main)
