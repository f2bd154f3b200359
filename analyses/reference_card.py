"""Write trained weights into data/ with their card: accuracy, checksum, training and a contact sheet.

    python -m analyses.reference_card WEIGHTS --validation IMAGES [--checkpoint WEIGHTS.checkpoint] [--data data]

WEIGHTS and the record beside it (WEIGHTS.json) are the output of `python -m analyses.train_reference`. Written are the
weights, card.json, CARD.md, and features.png: eight features, drawn at random, of each of six layers. With the
checkpoint, the card also states the accuracy of the weights before they were rounded to float16.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from safetensors.torch import load_file, save_file

from analyses.evaluate_reference import evaluate
from analyses.support.commands import run
from featmap import FeatmapError, load, maximise, rng
from featmap.cli.console import ProgressBars, err
from featmap.files import hash_file, write_atomically
from featmap.network.model import Network
from featmap.plotting import sheets, style
from featmap.runs.engine import Execution

SIZES = (64, 96, 128)
LAYERS = ("inception3a", "inception3b", "inception4a", "inception4c", "inception5a", "inception5b")
FEATURES = 8
ARCHITECTURE = "torchvision.models.googlenet(weights=None, num_classes=200, aux_logits=False, transform_input=False)"


def measure_accuracies(network: Network, images: Path) -> dict[str, Any]:
    """Measure top1 and top5 at each size, and the number of images."""
    results = {size: evaluate(network, images, size) for size in SIZES}
    shares = {k: {str(size): round(results[size][k], 4) for size in SIZES} for k in ("top1", "top5")}
    return shares | {"validation_images": results[SIZES[0]]["images"]}


def load_unrounded(checkpoint: Path, weights: Path) -> Network:
    """Load the averaged weights of a checkpoint in float32.

    Raises
    ------
    FeatmapError
        If the weights are not those of the checkpoint, rounded.
    """
    average = torch.load(checkpoint, map_location="cpu", weights_only=True)["average"]
    state = {k.removeprefix("module."): v.contiguous() for k, v in average.items() if k.startswith("module.")}
    stored = load_file(weights)
    if any(not torch.equal(state[k].to(v.dtype), v) for k, v in stored.items()):
        raise FeatmapError(f"{checkpoint} holds other weights than {weights}; leave out --checkpoint")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "float32.safetensors"
        save_file(state, path)
        return load("reference", path)


def draw_sheet(weights: Path, path: Path) -> None:
    """Draw eight features, chosen at random, of each of six layers."""
    network = load("reference", weights)
    chosen = {
        la: sorted(rng.generator("card", la).choice(network.layer(la, network.input_size).channels, FEATURES, False))
        for la in LAYERS
    }
    units = [f"{la}:{c}" for la, channels in chosen.items() for c in channels]
    with ProgressBars() as bars:
        data = maximise(units, network, recipe="pixels-long", execution=Execution(watcher=bars))
    reached = [f"{a:.3g}" for a in data["activation"].values[0]]
    sheet = sheets.Sheet(
        images=np.asarray(data["images"].values[0]),
        labels=units,
        captions=reached,
        title="Maximising images of the bundled network, and the activation each reaches",
        columns=FEATURES,
    )
    style.save(sheets.contact_sheet(sheet), path.with_suffix(""), ("png",), dpi=110)


def describe_training(record: dict[str, Any]) -> str:
    """Describe how the network was trained."""
    settings, history = record["settings"], record["history"]
    initial = record["init"]
    phases: list[list[int]] = []
    for row in history:
        if not phases or phases[-1][1] != row["size"]:
            phases.append([0, row["size"]])
        phases[-1][0] += 1
    epochs = ", then ".join(f"{n} epochs at {size} px" for n, size in phases)
    changed = [f"{plan} from step {step:,} on" for step, plan in record["plans"][1:]]
    plans = f" (the plan was changed on the way: {'; '.join(changed)})" if changed else ""
    origin = "from random weights" if initial is None else f"from earlier weights (SHA-256 {initial['sha256'][:12]})"
    return (
        f"`python -m analyses.train_reference`, {origin}: {epochs}{plans}; {record['images']:,} images; "
        f"SGD, Nesterov {settings['momentum']}, batch {settings['rows']}, rate {settings['rate']}, rising over the "
        f"first {settings['warm_up_steps']} steps at most, level, and falling to 0 over the last "
        f"{100 * settings['fall']:.0f} % of the steps, weight decay {settings['decay']:g} "
        f"(not on norms and biases), label smoothing {settings['smoothing']}, random resized crops (area "
        f"{settings['crop_area'][0]} to {settings['crop_area'][1]:g}) and flips, exponential moving average "
        f"({settings['average']}) of weights and statistics, {settings['precision']}, seed {settings['seed']}"
    )


def write_card(card: dict[str, Any], record: dict[str, Any]) -> str:
    """Write CARD.md."""
    exact = "; ".join(
        f"{100 * card['top1'][s]:.1f} % and {100 * card['top5'][s]:.1f} % at {s} px" for s in map(str, SIZES)
    )
    cost = ""
    if card.get("top1_float32"):
        lost = max(card["top1_float32"][str(s)] - card["top1"][str(s)] for s in SIZES)
        cost = f" (rounding cost at most {max(0.0, 100 * lost):.2f} points of top-1)"
    earlier = "".join(f" Before that: {text}." for text in card["training"][:-1])
    rows = {
        "architecture": f"`{ARCHITECTURE}`",
        "input": "RGB in [0, 1], then ImageNet mean (.485 .456 .406) and standard deviation (.229 .224 .225)",
        "data": f"the {record['images']:,} training images of Tiny-ImageNet ({len(card['classes'])} classes, 64 x 64; "
        "images of ImageNet, whose terms are non-commercial research), re-encoded as WebP; SHA-256 of the pixels "
        f"{record['data'][:12]}...",
        "classes": "sorted wnids, in `card.json`",
        "training": f"{card['training'][-1]}.{earlier}",
        "accuracy": f"on {card['validation_images']:,} validation images, brought to size bilinearly, top-1 and "
        f"top-5: {exact}",
        "measured by": "`python -m analyses.evaluate_reference IMAGES`",
        "terms": "the weights: Apache-2.0, as featmap itself; the images they were trained on: ImageNet's terms, "
        "non-commercial research use. Whoever uses the weights commercially should satisfy themselves that they may",
        "file": f"safetensors, convolutions and classifier in float16, the rest as trained{cost}; SHA-256 "
        f"`{card['sha256']}`",
    }
    table = "\n".join(f"| {name} | {text} |" for name, text in rows.items())
    return f"""# {Path(card["file"]).stem}

| | |
|---|---|
{table}

Tensors load with `load_state_dict` after `.float()` of the floating ones. Made by `python -m analyses.reference_card`.

![Eight features, drawn at random, of each of six layers](features.png)
"""


def main(
    weights: Annotated[Path, typer.Argument(help="Weights that analyses.train_reference wrote.")],
    validation: Annotated[Path, typer.Option(help="Labelled images not used in training.")],
    checkpoint: Annotated[
        Path | None, typer.Option(help="Checkpoint of the training, to measure the cost of float16.")
    ] = (None),
    data: Annotated[Path, typer.Option(help="Folder for weights and card.")] = Path("data"),
) -> None:
    """Evaluate trained weights and write them with their card."""
    beside = weights.with_name(weights.name + ".json")
    if not beside.is_file():
        raise FeatmapError(f"{beside} is missing; analyses.train_reference writes it beside the weights")
    record = json.loads(beside.read_text(encoding="utf-8"))
    if hash_file(weights) != record["sha256"]:
        raise FeatmapError(
            f"{weights} is not the file that {beside} describes; finish the training, or use the matching record"
        )
    network = _with_class_names(load("reference", weights), record["classes"])
    card = {
        "file": weights.name,
        "sha256": record["sha256"],
        "bytes": record["bytes"],
        **measure_accuracies(network, validation),
    }
    if checkpoint is not None:
        exact = _with_class_names(load_unrounded(checkpoint, weights), record["classes"])
        card["top1_float32"] = measure_accuracies(exact, validation)["top1"]
    card["training"] = [*training_history(record, data / "card.json"), describe_training(record)]
    card["record"] = {k: record[k] for k in ("settings", "init", "plans", "history", "data", "device", "versions")}
    card["classes"] = record["classes"]
    text, page, content = json.dumps(card, indent=1) + "\n", write_card(card, record), weights.read_bytes()
    data.mkdir(parents=True, exist_ok=True)
    draw_sheet(weights, data / "features.png")
    # One directly after another: weights beside another card are refused until this command is run again.
    write_atomically(data / weights.name, lambda p: p.write_bytes(content))
    write_atomically(data / "card.json", lambda p: p.write_text(text, encoding="utf-8"))
    write_atomically(data / "CARD.md", lambda p: p.write_text(page, encoding="utf-8"))
    err().print(f"{data / 'CARD.md'}: {json.dumps({k: card[k] for k in ('top1', 'top5')})}")


def _with_class_names(network: Network, classes: list[str]) -> Network:
    """Give a network the class names of its training's record."""
    if (outputs := network.module.fc.out_features) != len(classes):
        raise FeatmapError(
            f"the weights distinguish {outputs} classes, their record lists {len(classes)}; use their own record"
        )
    return replace(network, categories=tuple(classes))


def training_history(record: dict[str, Any], before: Path) -> list[str]:
    """List how the initial weights were trained, from the card at hand.

    Raises
    ------
    FeatmapError
        If that card is of other weights.
    """
    earlier = json.loads(before.read_text(encoding="utf-8")) if before.is_file() else {}
    if record["init"] is None:
        return []
    if record["init"]["sha256"] == earlier.get("sha256"):
        return list(earlier["training"])
    if record["sha256"] == earlier.get("sha256"):  # the same card, written again
        return list(earlier["training"][:-1])
    raise FeatmapError(
        f"the training started from weights {record['init']['sha256'][:12]}, {before} describes "
        f"{earlier.get('sha256', 'none')[:12]}; put the card of the former there first"
    )


if __name__ == "__main__":
    run(main)
