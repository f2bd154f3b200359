"""Stored results of studies: the record, the table beside it, and the figures.

Under `--results` (default: analyses/results) and the study's name, each network has NAME.json (findings, settings, the
SHA-256 of the rows, and what the result rests on, see `analyses.support.provenance`), NAME.csv (tidy rows) and
NAME*.png (figures). A result with ``--full`` has NAME-full.* beside that without it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from analyses.support import provenance
from analyses.support.study import NETWORKS, Context, Outcome
from featmap import FeatmapError
from featmap.files import hash_file, write_atomically
from featmap.image_shape import format_size
from featmap.plotting import style

WHY = {
    "dead": "without a gradient",
    "unconverged": "whose response did not rise",
    "not-finite": "that are not finite",
}
"""Why an image is left out, by its status."""
MANY_WORDS = "more than a third"
FULL_SUFFIX, IN_FULL = "-full", " in full"
"""What follows a network's name in the files, and on the page, of a result with ``--full``."""


def save_outcome(context: Context, outcome: Outcome, results: Path) -> list[Path]:
    """Store the outcome of a study.

    Parameters
    ----------
    context : Context
        The study.
    outcome : Outcome
        Its outcome.
    results : Path
        Folder of the results.

    Returns
    -------
    list of Path
        The record and the table.
    """
    folder = results / context.study.name
    name = re.sub(r"[^A-Za-z0-9._-]", "-", context.model) + FULL_SUFFIX * context.full
    record = {
        "study": context.study.name,
        "network": str(context.network).replace(f"network {context.network.name}", f"network {context.model}", 1),
        "model": context.model,
        **({"origin": context.given.origin} if context.given.origin else {}),
        "stem": name,
        "weights_sha256": context.network.sha256,
        "settings": {
            "layers": list(context.layers),
            "features": context.features,
            "seeds": context.seeds,
            "full": context.full,
            **({"input_size": size} if (size := context.network.arguments.get("input_size")) else {}),
            **context.sized_changes,
            **({"image": context.image.name} if context.image else {}),
            **({"feature": context.feature} if context.feature is not None else {}),
            **({"units": list(context.units)} if context.units else {}),
            "device": context.device,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__.partition("+")[0],
        },
        **({"command": context.given.command} if context.given.command else {}),
        "rests_on": context.given.rests_on or provenance.identities(context.study.name),
        "descents": [{"recipe": name, "sizes": sizes, "steps": steps} for name, sizes, steps in context.descents],
        "images": {layer: dict(sorted(counts.items())) for layer, counts in context.images.items()},
        "verdict": outcome.verdict,
        **({"rule": context.study.rule} if context.study.rule else {}),
        "conclusion": outcome.conclusion,
        "findings": [asdict(f) for f in outcome.findings],
        "figures": [f"{name}{s}" + (".png" if isinstance(f, Figure) else "") for s, f in outcome.figures.items()],
    }
    json.dumps(record, allow_nan=False)  # raise before any file is written, not after half of them
    frame = outcome.rows
    table = folder / f"{name}.csv"
    write_atomically(table, lambda p: frame.to_csv(p, index=False, float_format="%.6g", lineterminator="\n"))
    record["csv_sha256"] = hash_file(table)
    text = json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False)
    for suffix, figure in outcome.figures.items():
        if isinstance(figure, Figure):
            style.save(figure, folder / f"{name}{suffix}", ("png",), dpi=100)
        else:
            write_atomically(folder / f"{name}{suffix}", lambda p, data=figure: p.write_bytes(data))  # type: ignore[misc]
    path = folder / f"{name}.json"
    write_atomically(path, lambda p: p.write_text(text + "\n", encoding="utf-8"))
    return [path, table]


def describe_left_out(images: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Say how many images of each layer enter no mean, and why.

    Parameters
    ----------
    images : mapping of str to mapping of str to int
        Numbers of images by layer and status.

    Returns
    -------
    list of str
        A sentence for each layer of which any are left out.
    """
    sentences = []
    for layer, counts in images.items():
        total, live = sum(counts.values()), counts.get("live", 0)
        if live == total:
            continue
        why = ", ".join(f"{count} {WHY.get(status, status)}" for status, count in counts.items() if status != "live")
        many = f"{MANY_WORDS}, " if total - live > total / 3 else ""
        sentences.append(f"{total - live} of {total} images of {layer} are left out ({many}{why})")
    return sentences


def describe_descents(record: Mapping[str, Any]) -> str:
    """Say which recipes, image sizes and numbers of steps a result was made with.

    Parameters
    ----------
    record : mapping
        A stored record; earlier ones have no entry `descents`.

    Returns
    -------
    str
        Such as "article-normalised: octaves of 76, 86 and 96 pixels, 100 steps; "; "" where it was not recorded.
    """
    texts = []
    for used in record.get("descents", []):
        *most, last = map(format_size, used["sizes"])
        sizes = f"octaves of {', '.join(most)} and {last}" if most else last
        texts.append(f"{used['recipe']}: {sizes} pixels, {used['steps']} step{'s' * (used['steps'] != 1)}; ")
    return "".join(texts)


def read_stored(name: str, results: Path) -> dict[str, dict[str, Any]]:
    """Read the stored records of a study by network, those of the article first.

    A result with ``--full`` follows the one without it, as "NAME in full".

    Raises
    ------
    FeatmapError
        If the table beside a record is not the one stored with it (old records do not name theirs).
    """
    records = {}
    for path in sorted((results / name).glob("*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        if table_changed(path, record):
            raise FeatmapError(
                f"{name}/{path.stem}.csv is not the table stored with {path.name}; run python -m analyses.{name}"
            )
        records[column_name(record)] = record
    networks = (*NETWORKS, *sorted({str(record["model"]) for record in records.values()}))
    return {key: records[key] for model in networks for key in (model, f"{model}{IN_FULL}") if key in records}


def column_name(record: Mapping[str, Any]) -> str:
    """Name a record on the page: its network, and whether it was measured with ``--full``."""
    return f"{record['model']}{IN_FULL * bool(record['settings'].get('full'))}"


def table_changed(path: Path, record: dict[str, Any]) -> bool:
    """Check whether the CSV beside a record is missing or another than stored with it."""
    table, expected = path.with_suffix(".csv"), record.get("csv_sha256")
    return expected is not None and not (table.is_file() and hash_file(table) == expected)
