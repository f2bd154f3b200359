"""The chain of improvements of one step of a descent, measured in turns, beside the peak of the machine.

    python -m analyses.benchmarks.steps --device cuda --rows 128    # on a GPU; on a CPU it is a part of `speed`

Each link adds one thing to the one before; on a GPU, and at the end, what is not in use yet is tried too: TF32,
torch.compile, CUDA graphs. The peak is the better of a square matrix product and a 1 x 1 convolution of as many
operations, measured in the same run: which library does the one and which the other, and which is the faster, differs
from processor to processor. Written: `steps.json`, by device, and a table in `README.md`.
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
from analyses.benchmarks.opponents import cut
from analyses.support.commands import run as run_command
from featmap import Network, load
from featmap.cli.console import err
from featmap.errors import FeatmapError
from featmap.optimize.prepare import prepare
from featmap.optimize.recipe import MIN_ROWS
from featmap.runs.device import deterministic_settings, select_device

SIZE, ROUNDS, BATCH, MATRIX = 224, 5, 16, 2048
CPU = torch.device("cpu")
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
Run = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Variant:
    """One way of taking a step.

    Attributes
    ----------
    run : gives the layer's output for images as `module` takes them; None: the module's own forward up to the layer
    stops : does it stop at the layer?
    rows : images at once
    tf32 : may float32 products be rounded to ten bits?
    in_use : is it what featmap does, or was before it?
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
        """The name of its type."""
        return str(self.dtype).removeprefix("torch.")


def variants(network: Network, layer: str, size: int, where: torch.device = CPU, rows: int = BATCH) -> list[Variant]:
    """Return the chain; each link adds one thing to the one before."""
    whole = copy.deepcopy(network.module).eval().requires_grad_(True).to(where)
    frozen = copy.deepcopy(network.module).eval().requires_grad_(False).to(where)
    folds = network.trace(size).folds
    folded = prepare(network.module, folds, [layer], where, torch.contiguous_format)
    last = prepare(network.module, folds, [layer], where, torch.channels_last, space_to_depth=False)
    grouped = prepare(network.module, folds, [layer], where, torch.channels_last, space_to_depth=True)
    half = prepare(network.module, folds, [layer], where, torch.channels_last, torch.bfloat16)
    nhwc = torch.channels_last
    found = [
        Variant("the whole network, weights with gradients, one image", whole, False, 1),
        Variant("stopped at the layer (the article)", whole, True, 1),
        Variant("weights frozen", frozen, True, 1),
        Variant("batch norms folded", folded, True, 1),
        Variant("channels last", last, True, 1, nhwc),
        Variant(f"{rows} images at once", last, True, rows, nhwc),
        Variant("first convolution regrouped", grouped, True, rows, nhwc, in_use=where.type == "cpu"),
        Variant("bfloat16", half, True, rows, nhwc, torch.bfloat16),
    ]
    if where.type == "cuda":
        found.append(Variant("TF32", last, True, rows, nhwc, tf32=True, in_use=False))
    return found


def compilers(where: torch.device) -> dict[str, tuple[str, torch.dtype]]:
    """Return what torch's compiler is tried with, by name: its mode and the precision; on a GPU CUDA graphs too."""
    modes = {"torch.compile": "default"} | ({"CUDA graphs": "reduce-overhead"} if where.type == "cuda" else {})
    return {f"{words}, {kind}": (mode, dtype) for words, mode in modes.items() for kind, dtype in PRECISIONS.items()}


def compiled(
    network: Network, layer: str, size: int, where: torch.device, rows: int, name: str
) -> tuple[Variant, Variant]:
    """Return a variant by torch's compiler, of the network up to the layer, and the same without the compiler."""
    mode, dtype = compilers(where)[name]
    folds, nhwc = network.trace(size).folds, torch.channels_last
    module = prepare(network.module, folds, [layer], where, nhwc, dtype, space_to_depth=False)
    run = _taken(torch.compile(create_feature_extractor(module, {layer: "out"}), mode=mode))
    plain = Variant("plain", module, True, rows, nhwc, dtype, in_use=False)
    return replace(plain, name=name, run=run), plain


def _taken(extractor: Callable[[Tensor], dict[str, Tensor]]) -> Run:
    return lambda images: extractor(images)["out"]


@contextmanager
def products(tf32: bool) -> Iterator[None]:
    """Let a GPU round float32 products to ten bits, or not; restored afterwards."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32
    cudnn.allow_tf32 = matmul.allow_tf32 = tf32
    try:
        yield
    finally:
        cudnn.allow_tf32, matmul.allow_tf32 = before


def stepper(
    variant: Variant, network: Network, layer: str, size: int, where: torch.device = CPU
) -> Callable[[], Tensor]:
    """Return a function that computes one step's gradient of a variant: of the mean of channel k in row k."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(variant.rows, 3, size, size, generator=generator)
    images = images.to(where).to(memory_format=variant.layout)
    rows = torch.arange(variant.rows, device=where)

    def step() -> Tensor:
        p = images.detach().requires_grad_(True)
        given = network.normalise(p).to(variant.dtype)
        with products(variant.tf32):
            if variant.run is not None:
                output = variant.run(given)
            elif variant.stops:
                with cut(variant.module, layer) as run:
                    output = run(given)
            else:
                output = _through(variant.module, layer, given)
            loss = -output[rows, rows % output.shape[1]].float().mean((1, 2)).sum()
            loss.backward()
        assert p.grad is not None
        variant.module.zero_grad(set_to_none=True)
        return p.grad

    return step


def _through(module: nn.Module, layer: str, images: Tensor) -> Tensor:
    """Run the whole network and return what one layer gave on the way."""
    kept: list[Tensor] = []

    def keep(_: nn.Module, __: object, output: Tensor) -> None:
        kept.append(output)

    handle = module.get_submodule(layer).register_forward_hook(keep)
    try:
        module(images)
    finally:
        handle.remove()
    return kept[0]


def flops(network: Network, layer: str, size: int) -> int:
    """Return the floating-point operations of one image's step: forward to the layer, and back to the image."""
    frozen = copy.deepcopy(network.module).eval().requires_grad_(False)
    with FlopCounterMode(display=False) as counted:
        stepper(Variant("", frozen, True, 1), network, layer, size)()
    return int(counted.get_total_flops())


def product(dtype: torch.dtype, where: torch.device = CPU, side: int | None = None) -> Callable[[], Tensor]:
    """Return a function that multiplies two square matrices (None: `MATRIX` on a side) on a device."""
    generator, side = torch.Generator().manual_seed(1), side or MATRIX
    one, two = (torch.rand(side, side, generator=generator).to(where, dtype) for _ in range(2))
    return lambda: one @ two


def pointwise(dtype: torch.dtype, where: torch.device = CPU, side: int | None = None) -> Callable[[], Tensor]:
    """Return a function that makes a 1 x 1 convolution of as many operations as `product` has, channels last."""
    generator, side = torch.Generator().manual_seed(2), side or MATRIX
    channels, rows = side // 4, side // 16  # rows x 16 x 16 positions x channels^2 = side^3
    images = torch.rand(rows, channels, 16, 16, generator=generator).to(where, dtype)
    weights = torch.rand(channels, channels, 1, 1, generator=generator).to(where, dtype)
    images, weights = (t.to(memory_format=torch.channels_last) for t in (images, weights))
    return lambda: functional.conv2d(images, weights)


PEAKS = {"matrix product": product, "1 x 1 convolution": pointwise}


def timed(
    work: Mapping[str, tuple[Callable[[], object], int]], where: torch.device = CPU, best_of: int = 1
) -> dict[str, list[float]]:
    """Return seconds a row of each piece of work (with its number of rows), by rounds in which all take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for turn in range(ROUNDS + 1):
        for name, (step, rows) in work.items():
            took = min(synchronised(step, where) for _ in range(best_of))
            if turn:  # the first warms up
                seconds[name].append(took / rows)
    return seconds


def peaks(precision: str, where: torch.device = CPU, side: int | None = None) -> dict[str, float]:
    """Return the operations a second that each of `PEAKS` reaches on a device, the best of many."""
    side, times = side or MATRIX, 1 if where.type == "cpu" else 10  # a GPU is asked less often than it is given work
    made = {kind: make(PRECISIONS[precision], where, side) for kind, make in PEAKS.items()}
    took = timed({kind: (_repeated(work, times), times) for kind, work in made.items()}, where, 3)
    return {kind: 2 * side**3 / min(took[kind]) for kind in PEAKS}


def _repeated(work: Callable[[], object], times: int) -> Callable[[], None]:
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
    """Return milliseconds an image and step of every variant, median over rounds in which all take turns.

    Parameters
    ----------
    rows : images at once in the last links
    side : of the matrices that the peak is taken of
    """
    chain = variants(network, layer, SIZE, where, rows)
    seconds = timed({v.name: (stepper(v, network, layer, SIZE, where), v.rows) for v in chain}, where)
    before = {p: peaks(p, where, side) for p in PRECISIONS}
    tried: list[Variant] = []
    beside: dict[str, list[float]] = {}
    for name in compilers(where):
        try:
            pair = compiled(network, layer, SIZE, where, rows, name)
            took = timed({v.name: (stepper(v, network, layer, SIZE, where), rows) for v in pair}, where)
        except Exception as error:  # noqa: BLE001 - a compiler that is not there, or does not take the network
            said = (str(error).strip().splitlines() or [""])[0][:200]
            err().print(f"{name} is left out: {type(error).__name__}: {said}")
            continue
        tried.append(pair[0])
        seconds[name], beside[name] = took[name], took["plain"]
    count = flops(network, layer, SIZE)
    after = {p: peaks(p, where, side) for p in PRECISIONS}
    kinds = {p: {k: max(before[p][k], after[p][k]) for k in PEAKS} for p in before}
    best = {p: max(values.values()) for p, values in kinds.items()}
    found = []
    for v in [*chain, *tried]:
        median = float(np.median(seconds[v.name]))
        row = {
            "variant": v.name,
            "precision": v.precision,
            "in_use": v.in_use,
            "ms": 1000 * median,
            "all_ms": [1000 * t for t in seconds[v.name]],
            "share": None if v.tf32 else count / median / best[v.precision],  # of another unit's peak
        }
        if v.name in beside:  # the same module in the same rounds, not compiled
            row["plain_ms"] = 1000 * float(np.median(beside[v.name]))
        found.append(row)
    shown = [v for v in chain if v.in_use][-2:]
    shares = {v.name: operations(stepper(v, network, layer, SIZE, where), where) for v in shown}
    return {
        "size": SIZE,
        "images": rows,
        "matrix": side or MATRIX,
        "gflop": count / 1e9,
        "peak_gflops": {p: {k: v / 1e9 for k, v in values.items()} for p, values in kinds.items()},
        "rows": found,
        "operations": shares,
    }


def operations(step: Callable[[], object], where: torch.device = CPU, least: float = 0.01) -> dict[str, float]:
    """Return the share of a step's time that each of torch's operations takes by itself, largest first."""
    gpu = where.type == "cuda"
    synchronised(step, where)
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]) as seen:
        for _ in range(3):
            synchronised(step, where)
    kind = "self_device_time_total" if gpu else "self_cpu_time_total"
    # a GPU's kernels are events of their own beside the operations that started them
    events = [e for e in seen.key_averages() if e.device_type == DeviceType.CPU]
    times = {e.key.removeprefix("aten::"): float(getattr(e, kind)) for e in events}
    whole = sum(times.values())
    ordered = sorted(times.items(), key=lambda item: -item[1])
    return {name: round(t / whole, 4) for name, t in ordered if t >= least * whole}


def synchronised(work: Callable[[], object], where: torch.device = CPU) -> float:
    """Return the seconds that some work takes, until the device is done."""
    begun = time.perf_counter()
    work()
    if where.type == "cuda":
        torch.cuda.synchronize(where)
    return time.perf_counter() - begun


def table(found: dict[str, Any]) -> str:
    """Return the chain as Markdown."""
    peaks_of = "; ".join(
        f"in {precision} {', '.join(f'{kind} {v:,.0f}' for kind, v in kinds.items())} GFLOP/s"
        for precision, kinds in found["peak_gflops"].items()
    )
    lines = [
        f"One step of one image at {found['size']} pixels ({found['gflop']:.1f} GFLOP, forward and back to the image), "
        "median of rounds in which all take turns. The peak is the better of two in the same run, of "
        f"{2 * found['matrix'] ** 3 / 1e9:,.0f} GFLOP each: {peaks_of}.",
        "",
        "| | ms | faster than the article | than the whole network | share of the peak |",
        "|---|---|---|---|---|",
    ]
    whole, article = (found["rows"][k]["ms"] for k in (0, 1))
    for row in found["rows"]:
        plain = f"; not compiled, in the same rounds: {row['plain_ms']:.1f} ms" if "plain_ms" in row else ""
        share = "" if row["share"] is None else f"{row['share']:.2f}"
        lines.append(
            f"| {row['variant']}{'' if row['in_use'] else f' (tried, not in use{plain})'} | {row['ms']:.1f} | "
            f"{article / row['ms']:.2f} | {whole / row['ms']:.2f} | {share} |"
        )
    for name, shares in found["operations"].items():
        taken = ", ".join(f"`{what}` {100 * share:.0f} %" for what, share in shares.items())
        lines += ["", f"Where the time of a step goes ({name}): {taken}."]
    return "\n".join(lines)


def main(
    device: Annotated[str, typer.Option(help="As for `featmap similarity`.")] = "auto",
    rows: Annotated[int, typer.Option(help="Images at once in the last links of the chain.")] = BATCH,
    layer: Annotated[str, typer.Option(help="The layer that a step goes to.")] = "inception4a",
    model: Annotated[str, typer.Option(help="As for `featmap similarity`.")] = "reference",
    weights: Annotated[str | None, typer.Option(help="As for `featmap similarity`.")] = None,
    out: Annotated[Path, typer.Option(help="The numbers, as JSON.")] = records.FOLDER / "steps.json",
    readme: Annotated[Path, typer.Option(help="The table is written between marks in this file.")] = records.README,
) -> None:
    """Measure the chain of improvements of one step on a device."""
    if rows < MIN_ROWS:
        raise FeatmapError(f"--rows {rows}: give {MIN_ROWS} or more; featmap makes no image alone")
    network, where = load(model, weights), select_device(device)
    with deterministic_settings():
        side = MATRIX if where.type == "cpu" else 4 * MATRIX
        found = measure(network, layer, where, rows, side=side)
    known = json.loads(out.read_text(encoding="utf-8")) if out.is_file() else {}
    machine = records.machine("torchvision")
    name = torch.cuda.get_device_name(where) if where.type == "cuda" else machine["processor"]
    known[name] = found | {"machine": machine, "network": network.name, "sha256": network.sha256, "layer": layer}
    records.write(out, known)
    parts = [
        f"{name}, {v['layer']} of {v['network']}, {v['images']} images.\n\n{table(v)}" for name, v in known.items()
    ]
    records.write_table("steps", "\n\n".join(["## Steps by device", *parts]), readme)
    print(table(found))


if __name__ == "__main__":
    run_command(main)
