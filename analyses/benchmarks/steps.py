"""Measure the chain of improvements of one step of a descent, compared with the peak of the machine.

    python -m analyses.benchmarks.steps --device cuda --rows 128    # on a GPU; on a CPU it is a part of `speed`

Each variant adds one change to the one before, and all take turns. Changes that are not in use (TF32, torch.compile,
CUDA graphs) are tried as well, on a GPU and at the end. The peak is the better of a square matrix product and a 1 x 1
convolution with as many operations, measured in the same run: the libraries behind them, and which is faster, differ
between processors. Written are `steps.json`, by device, and a table in `README.md`.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from torch import Tensor, nn
from torch.autograd import DeviceType
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.feature_extraction import create_feature_extractor

from analyses.benchmarks import records
from analyses.benchmarks.opponents import stop_at_layer
from analyses.support.commands import run as run_command
from featmap import Network, load
from featmap.cli.console import err
from featmap.errors import FeatmapError, describe_error
from featmap.optimize.prepare import ChannelSumNorm, prepare
from featmap.optimize.recipe import MIN_ROWS
from featmap.runs.device import deterministic_settings, select_device

SIZE, ROUNDS, BATCH, MATRIX = 224, 5, 16, 2048
"""Image size in pixels, rounds, images in a batch, and side of the matrices."""
CPU = torch.device("cpu")
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
Run = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Variant:
    """One way of computing a step.

    Parameters
    ----------
    name : str
        Name of the variant.
    module : torch.nn.Module
        Prepared copy of the network.
    stops : bool
        Whether it stops at the layer.
    rows : int
        Images in a batch.
    layout : torch.memory_format, default contiguous
        Memory layout of the images.
    dtype : torch.dtype, default float32
        Precision.
    run : callable, default None
        Function from images to the layer's output; None: the module's own forward up to the layer.
    tf32 : bool, default False
        Whether float32 products may be rounded to ten bits.
    in_use : bool, default True
        Whether featmap computes steps like this, or did before.
    """

    name: str
    module: nn.Module
    stops: bool
    rows: int
    layout: torch.memory_format = torch.contiguous_format
    dtype: torch.dtype = torch.float32
    run: Run | None = None
    tf32: bool = False
    in_use: bool = True

    @property
    def precision(self) -> str:
        """Name of its type."""
        return str(self.dtype).removeprefix("torch.")


def variants(network: Network, layer: str, size: int, where: torch.device = CPU, rows: int = BATCH) -> list[Variant]:
    """Make the chain of variants; each adds one change to the one before."""
    whole = copy.deepcopy(network.module).eval().requires_grad_(True).to(where)
    frozen = copy.deepcopy(network.module).eval().requires_grad_(False).to(where)
    folds = network.trace(size).folds
    pooled = {"space_to_depth": False, "channel_sums": False}
    folded = prepare(network.module, folds, [layer], where, torch.contiguous_format, **pooled)
    last = prepare(network.module, folds, [layer], where, torch.channels_last, **pooled)
    summed = prepare(network.module, folds, [layer], where, torch.channels_last, space_to_depth=False)
    grouped = prepare(network.module, folds, [layer], where, torch.channels_last, space_to_depth=True)
    half = prepare(network.module, folds, [layer], where, torch.channels_last, torch.bfloat16)
    nhwc = torch.channels_last
    chain = [
        Variant("the whole network, weights with gradients, one image", whole, False, 1),
        Variant("stopped at the layer (the article)", whole, True, 1),
        Variant("weights frozen", frozen, True, 1),
        Variant("batch norms folded", folded, True, 1),
        Variant("channels last", last, True, 1, nhwc),
        Variant(f"{rows} images at once", last, True, rows, nhwc),
        *(
            Variant("local response norms by sums over channels", summed, True, rows, nhwc)
            for _ in [m for m in summed.modules() if isinstance(m, ChannelSumNorm)][:1]
        ),
        Variant("first convolution regrouped", grouped, True, rows, nhwc, in_use=where.type == "cpu"),
        Variant("bfloat16", half, True, rows, nhwc, torch.bfloat16),
    ]
    if where.type == "cuda":
        chain.append(Variant("TF32", last, True, rows, nhwc, tf32=True, in_use=False))
    return chain


def compiler_settings(where: torch.device) -> dict[str, tuple[str, torch.dtype]]:
    """List the modes and precisions in which torch's compiler is tried.

    On a GPU with CUDA graphs too.
    """
    modes = {"torch.compile": "default"} | ({"CUDA graphs": "reduce-overhead"} if where.type == "cuda" else {})
    return {f"{words}, {kind}": (mode, dtype) for words, mode in modes.items() for kind, dtype in PRECISIONS.items()}


def compile_variant(
    network: Network, layer: str, size: int, where: torch.device, rows: int, name: str
) -> tuple[Variant, Variant]:
    """Make a variant with torch's compiler, and the same without it."""
    mode, dtype = compiler_settings(where)[name]
    folds, nhwc = network.trace(size).folds, torch.channels_last
    module = prepare(network.module, folds, [layer], where, nhwc, dtype, space_to_depth=False)
    run = _select_output(torch.compile(create_feature_extractor(module, {layer: "out"}), mode=mode))
    plain = Variant("plain", module, True, rows, nhwc, dtype, in_use=False)
    return replace(plain, name=name, run=run), plain


def _select_output(extractor: Callable[[Tensor], dict[str, Tensor]]) -> Run:
    """Make a function that returns the layer's output of a feature extractor."""
    return lambda images: extractor(images)["out"]


@contextmanager
def float32_products(tf32: bool) -> Iterator[None]:
    """Set whether a GPU may round float32 products, and restore it afterwards.

    With TF32 it rounds them to ten bits.
    """
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32
    cudnn.allow_tf32 = matmul.allow_tf32 = tf32
    try:
        yield
    finally:
        cudnn.allow_tf32, matmul.allow_tf32 = before


def make_step(
    variant: Variant, network: Network, layer: str, size: int, where: torch.device = CPU
) -> Callable[[], Tensor]:
    """Make a function that computes one step's gradient of a variant.

    The objective is the mean of channel k in row k.
    """
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(variant.rows, 3, size, size, generator=generator)
    images = images.to(where).to(memory_format=variant.layout)
    rows = torch.arange(variant.rows, device=where)

    def step() -> Tensor:
        p = images.detach().requires_grad_(True)
        inputs = network.normalise(p).to(variant.dtype)
        with float32_products(variant.tf32):
            if variant.run is not None:
                output = variant.run(inputs)
            elif variant.stops:
                with stop_at_layer(variant.module, layer) as run:
                    output = run(inputs)
            else:
                output = _run_whole(variant.module, layer, inputs)
            grid = output if output.ndim == 4 else output.transpose(1, -1)[..., None]  # tokens: the channels come last
            loss = -grid[rows, rows % grid.shape[1]].float().mean((1, 2)).sum()
            loss.backward()
        assert p.grad is not None
        variant.module.zero_grad(set_to_none=True)
        return p.grad

    return step


def _run_whole(module: nn.Module, layer: str, images: Tensor) -> Tensor:
    """Run the whole network and return the output of one layer."""
    outputs: list[Tensor] = []

    def keep(_: nn.Module, __: object, output: Tensor) -> None:
        outputs.append(output)

    handle = module.get_submodule(layer).register_forward_hook(keep)
    try:
        module(images)
    finally:
        handle.remove()
    return outputs[0]


def count_flops(network: Network, layer: str, size: int) -> int:
    """Count the floating-point operations of one image's step.

    Forward to the layer, and back to the image.
    """
    frozen = copy.deepcopy(network.module).eval().requires_grad_(False)
    with FlopCounterMode(display=False) as counter:
        make_step(Variant("", frozen, True, 1), network, layer, size)()
    return int(counter.get_total_flops())


def make_product(dtype: torch.dtype, where: torch.device = CPU, side: int | None = None) -> Callable[[], Tensor]:
    """Make a function that multiplies two square matrices on a device.

    Their side is `MATRIX` for None.
    """
    generator, side = torch.Generator().manual_seed(1), side or MATRIX
    one, two = (torch.rand(side, side, generator=generator).to(where, dtype) for _ in range(2))
    return lambda: one @ two


def make_pointwise(dtype: torch.dtype, where: torch.device = CPU, side: int | None = None) -> Callable[[], Tensor]:
    """Make a 1 x 1 convolution with as many operations as `make_product`.

    Its tensors are channels last.
    """
    generator, side = torch.Generator().manual_seed(2), side or MATRIX
    channels, rows = side // 4, side // 16  # rows x 16 x 16 positions x channels^2 = side^3
    images = torch.rand(rows, channels, 16, 16, generator=generator).to(where, dtype)
    weights = torch.rand(channels, channels, 1, 1, generator=generator).to(where, dtype)
    images, weights = (t.to(memory_format=torch.channels_last) for t in (images, weights))
    return lambda: functional.conv2d(images, weights)


PEAKS = {"matrix product": make_product, "1 x 1 convolution": make_pointwise}


def time_rounds(
    work: Mapping[str, tuple[Callable[[], object], int]], where: torch.device = CPU, best_of: int = 1
) -> dict[str, list[float]]:
    """Measure the seconds per row of several functions that take turns.

    Each comes with its number of rows.
    """
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for turn in range(ROUNDS + 1):
        for name, (step, rows) in work.items():
            took = min(time_call(step, where) for _ in range(best_of))
            if turn:  # the first round warms up
                seconds[name].append(took / rows)
    return seconds


def measure_peaks(precision: str, where: torch.device = CPU, side: int | None = None) -> dict[str, float]:
    """Measure the operations per second that each of `PEAKS` reaches on a device."""
    side = side or MATRIX
    times = 1 if where.type == "cpu" else 10  # several products per call, since a GPU finishes one quickly
    works = {kind: make(PRECISIONS[precision], where, side) for kind, make in PEAKS.items()}
    took = time_rounds({kind: (_repeated(work, times), times) for kind, work in works.items()}, where, 3)
    return {kind: 2 * side**3 / min(took[kind]) for kind in PEAKS}


def _repeated(work: Callable[[], object], times: int) -> Callable[[], None]:
    """Repeat some work a number of times."""

    def several() -> None:
        for _ in range(times):
            work()

    return several


def measure(
    network: Network,
    layer: str,
    where: torch.device = CPU,
    rows: int = BATCH,
    side: int | None = None,
) -> dict[str, Any]:
    """Measure milliseconds per image and step of every variant, median over rounds.

    Parameters
    ----------
    network : Network
        The network.
    layer : str
        Layer at which a step stops.
    where : torch.device, default CPU
        Device.
    rows : int, default BATCH
        Images in a batch of the last variants.
    side : int, default None
        Side of the matrices for the peak.

    Returns
    -------
    dict
        Plain values for JSON.
    """
    chain = variants(network, layer, SIZE, where, rows)
    seconds = time_rounds({v.name: (make_step(v, network, layer, SIZE, where), v.rows) for v in chain}, where)
    before = {p: measure_peaks(p, where, side) for p in PRECISIONS}
    tried: list[Variant] = []
    beside: dict[str, list[float]] = {}
    for name in compiler_settings(where):
        try:
            pair = compile_variant(network, layer, SIZE, where, rows, name)
            took = time_rounds({v.name: (make_step(v, network, layer, SIZE, where), rows) for v in pair}, where)
        except Exception as error:  # noqa: BLE001 - the compiler is missing or cannot compile the network
            err().print(f"{name} is left out: {describe_error(error)}")
            continue
        tried.append(pair[0])
        seconds[name], beside[name] = took[name], took["plain"]
    count = count_flops(network, layer, SIZE)
    after = {p: measure_peaks(p, where, side) for p in PRECISIONS}
    kinds = {p: {k: max(before[p][k], after[p][k]) for k in PEAKS} for p in before}
    best = {p: max(values.values()) for p, values in kinds.items()}
    rows_of = []
    for v in [*chain, *tried]:
        median = float(np.median(seconds[v.name]))
        row = {
            "variant": v.name,
            "precision": v.precision,
            "in_use": v.in_use,
            "ms": 1000 * median,
            "all_ms": [1000 * t for t in seconds[v.name]],
            "share": None if v.tf32 else count / median / best[v.precision],  # TF32 has another peak
        }
        if v.name in beside:  # the same module in the same rounds, without the compiler
            row["plain_ms"] = 1000 * float(np.median(beside[v.name]))
        rows_of.append(row)
    shown = [v for v in chain if v.in_use][-2:]
    shares = {v.name: operation_shares(make_step(v, network, layer, SIZE, where), where) for v in shown}
    return {
        "size": SIZE,
        "images": rows,
        "matrix": side or MATRIX,
        "gflop": count / 1e9,
        "peak_gflops": {p: {k: v / 1e9 for k, v in values.items()} for p, values in kinds.items()},
        "rows": rows_of,
        "operations": shares,
    }


def operation_shares(step: Callable[[], object], where: torch.device = CPU, least: float = 0.01) -> dict[str, float]:
    """Measure the share of a step's time of each torch operation, largest first."""
    gpu = where.type == "cuda"
    time_call(step, where)
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]) as profiler:
        for _ in range(3):
            time_call(step, where)
    kind = "self_device_time_total" if gpu else "self_cpu_time_total"
    # A GPU's kernels are separate events from the operations that start them.
    events = [e for e in profiler.key_averages() if e.device_type == DeviceType.CPU]
    times = {e.key.removeprefix("aten::"): float(getattr(e, kind)) for e in events}
    whole = sum(times.values())
    ordered = sorted(times.items(), key=lambda item: -item[1])
    return {name: round(t / whole, 4) for name, t in ordered if t >= least * whole}


def time_call(work: Callable[[], object], where: torch.device = CPU) -> float:
    """Measure the seconds of some work, until the device has finished."""
    start = time.perf_counter()
    work()
    if where.type == "cuda":
        torch.cuda.synchronize(where)
    return time.perf_counter() - start


def format_table(result: dict[str, Any]) -> str:
    """Write the chain as Markdown."""
    peaks_of = "; ".join(
        f"in {precision} {', '.join(f'{kind} {v:,.0f}' for kind, v in kinds.items())} GFLOP/s"
        for precision, kinds in result["peak_gflops"].items()
    )
    lines = [
        f"One step of one image at {result['size']} pixels ({result['gflop']:.1f} GFLOP, forward and back to the "
        "image), median of rounds in which all variants take turns. The peak is the better of two in the same run, of "
        f"{2 * result['matrix'] ** 3 / 1e9:,.0f} GFLOP each: {peaks_of}.",
        "",
        "| | ms | faster than the article | than the whole network | share of the peak |",
        "|---|---|---|---|---|",
    ]
    whole, article = (result["rows"][k]["ms"] for k in (0, 1))
    for row in result["rows"]:
        plain = f"; without the compiler, in the same rounds: {row['plain_ms']:.1f} ms" if "plain_ms" in row else ""
        share = "" if row["share"] is None else f"{row['share']:.2f}"
        lines.append(
            f"| {row['variant']}{'' if row['in_use'] else f' (tried, not in use{plain})'} | {row['ms']:.1f} | "
            f"{article / row['ms']:.2f} | {whole / row['ms']:.2f} | {share} |"
        )
    for name, shares in result["operations"].items():
        taken = ", ".join(f"`{what}` {100 * share:.0f} %" for what, share in shares.items())
        lines += ["", f"Time of a step by operation ({name}): {taken}."]
    return "\n".join(lines)


def main(
    device: Annotated[str, typer.Option(help="As for `featmap similarity`.")] = "auto",
    rows: Annotated[int, typer.Option(help="Images in a batch of the last variants.")] = BATCH,
    layer: Annotated[str, typer.Option(help="Layer at which a step stops.")] = "inception4a",
    model: Annotated[str, typer.Option(help="As for `featmap similarity`.")] = "reference",
    weights: Annotated[str | None, typer.Option(help="As for `featmap similarity`.")] = None,
    out: Annotated[Path, typer.Option(help="The numbers, as JSON.")] = records.FOLDER / "steps.json",
    readme: Annotated[Path, typer.Option(help="The table is written between marks in this file.")] = records.README,
) -> None:
    """Measure the chain of improvements of one step on a device."""
    if rows < MIN_ROWS:
        raise FeatmapError(f"--rows {rows}: give {MIN_ROWS} or more, the smallest batch of featmap")
    network, where = load(model, weights), select_device(device)
    with deterministic_settings():
        side = MATRIX if where.type == "cpu" else 4 * MATRIX
        result = measure(network, layer, where, rows, side=side)
    stored = json.loads(out.read_text(encoding="utf-8")) if out.is_file() else {}
    machine = records.describe_machine("torchvision")
    name = torch.cuda.get_device_name(where) if where.type == "cuda" else machine["processor"]
    stored[name] = result | {"machine": machine, "network": network.name, "sha256": network.sha256, "layer": layer}
    records.write_json(out, stored)
    parts = [
        f"{name}, {v['layer']} of {v['network']}, {v['images']} images.\n\n{format_table(v)}"
        for name, v in stored.items()
    ]
    records.write_table("steps", "\n\n".join(["## Steps by device", *parts]), readme)
    print(format_table(result))


if __name__ == "__main__":
    run_command(main)
