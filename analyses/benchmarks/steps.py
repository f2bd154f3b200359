"""The chain of improvements of one step of a descent, measured in turns, beside the peak of a matrix product."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from analyses.benchmarks.opponents import cut
from featmap import Network
from featmap.prepare import prepared

SIZE, ROUNDS, BATCH, MATRIX = 224, 5, 16, 2048
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Variant:
    """One way of taking a step: the module, whether it stops at the layer, images at once, layout, precision."""

    name: str
    module: nn.Module
    stops: bool
    rows: int
    layout: torch.memory_format = torch.contiguous_format
    dtype: torch.dtype = torch.float32


def variants(network: Network, layer: str, size: int) -> list[Variant]:
    """Return the chain; each link adds one thing to the one before."""
    whole = copy.deepcopy(network.module).eval().requires_grad_(True)
    frozen = copy.deepcopy(network.module).eval().requires_grad_(False)
    folds = network.trace(size).folds
    folded = prepared(network.module, folds, [layer], CPU, torch.contiguous_format)
    last = prepared(network.module, folds, [layer], CPU, torch.channels_last)
    half = prepared(network.module, folds, [layer], CPU, torch.channels_last).to(torch.bfloat16)
    return [
        Variant("the whole network, weights with gradients, one image", whole, False, 1),
        Variant("stopped at the layer (the article)", whole, True, 1),
        Variant("weights frozen", frozen, True, 1),
        Variant("batch norms folded", folded, True, 1),
        Variant("channels last", last, True, 1, torch.channels_last),
        Variant(f"{BATCH} images at once", last, True, BATCH, torch.channels_last),
        Variant("bfloat16", half, True, BATCH, torch.channels_last, torch.bfloat16),
    ]


def stepper(variant: Variant, network: Network, layer: str, size: int) -> Callable[[], Tensor]:
    """Return a function that computes one step's gradient of a variant: of the mean of channel k in row k."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(variant.rows, 3, size, size, generator=generator)
    images = images.to(memory_format=variant.layout)
    rows = torch.arange(variant.rows)

    def step() -> Tensor:
        p = images.detach().requires_grad_(True)
        given = network.normalise(p).to(variant.dtype)
        if variant.stops:
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


def measure(network: Network, layer: str) -> dict[str, Any]:
    """Return milliseconds an image and step of every variant, median over rounds in which all take turns."""
    size, rounds = SIZE, ROUNDS
    chain = variants(network, layer, size)
    work: dict[str, tuple[Callable[[], Tensor], int]] = {
        v.name: (stepper(v, network, layer, size), v.rows) for v in chain
    }
    peaks = {"float32": product(torch.float32), "bfloat16": product(torch.bfloat16)}
    seconds: dict[str, list[float]] = {name: [] for name in (*work, *peaks)}
    for turn in range(rounds + 1):
        for name, (step, rows) in work.items():
            took = synchronised(step)
            if turn:  # the first warms up
                seconds[name].append(took / rows)
        for name, multiply in peaks.items():
            took = min(synchronised(multiply) for _ in range(3))
            if turn:
                seconds[name].append(took)
    count = flops(network, layer, size)
    peak = {name: 2 * MATRIX**3 / min(seconds[name]) for name in peaks}
    rows = [
        {
            "variant": v.name,
            "ms": 1000 * float(np.median(seconds[v.name])),
            "all_ms": [1000 * t for t in seconds[v.name]],
            "share": count / float(np.median(seconds[v.name])) / peak[str(v.dtype).removeprefix("torch.")],
        }
        for v in chain
    ]
    best = next(v for v in reversed(chain) if v.dtype is torch.float32)
    shares = operations(work[best.name][0])
    return {"operations": {"of": best.name, "shares": shares}} | {
        "size": size,
        "gflop": count / 1e9,
        "peak_gflops": {k: v / 1e9 for k, v in peak.items()},
        "rows": rows,
    }


def operations(step: Callable[[], object], least: float = 0.01) -> dict[str, float]:
    """Return the share of a step's time that each of torch's operations takes by itself, largest first."""
    step()
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        for _ in range(3):
            step()
    times = {e.key.removeprefix("aten::"): float(e.self_cpu_time_total) for e in seen.key_averages()}
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
    peak = found["peak_gflops"]
    lines = [
        f"One step of one image at {found['size']} pixels ({found['gflop']:.1f} GFLOP, forward and back to the image), "
        f"median of rounds in which all take turns; the peak of a {MATRIX} x {MATRIX} matrix product in the same run "
        f"is {peak['float32']:.0f} GFLOP/s in float32, {peak['bfloat16']:.0f} in bfloat16.",
        "",
        "| | ms | faster than the article | than the whole network | share of the peak |",
        "|---|---|---|---|---|",
    ]
    whole, article = (found["rows"][k]["ms"] for k in (0, 1))
    for row in found["rows"]:
        lines.append(
            f"| {row['variant']} | {row['ms']:.1f} | {article / row['ms']:.2f} | {whole / row['ms']:.2f} | "
            f"{row['share']:.2f} |"
        )
    if any(row["share"] > 1 for row in found["rows"]):
        lines += [
            "",
            "(A share above 1: convolutions can take fewer operations than are counted, and need not be as slow as "
            "the library's matrix product.)",
        ]
    taken = found["operations"]
    shares = ", ".join(f"`{name}` {100 * share:.0f} %" for name, share in taken["shares"].items())
    lines += ["", f"Where the time of a step goes ({taken['of']}, float32): {shares}."]
    return "\n".join(lines)
