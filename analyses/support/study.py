"""What every study of an experiment of the article has in common: its claim, its options, what it stores.

A study is a file with a `STUDY` (claim, layers, what is measured) and a function `measure(context)` that returns an
`Outcome`: tidy rows, findings with intervals, a verdict, one sentence with a number, figures. `command` makes it a
command line. Descents go through the library with `context.folder(...)` as their run folder, so that a study that was
interrupted goes on where it stopped.

Stored in `--results` (default: analyses/results), under the study's name, for each network: MODEL.json (findings,
settings and the SHA-256 of the rows), MODEL.csv (tidy rows), MODEL*.png (figures). `python -m analyses.tables` makes
analyses/README.md of them.
"""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
import torch
import typer
import xarray as xr
from matplotlib.figure import Figure
from scipy import stats

from analyses.support.commands import run
from featmap import FeatmapError, Network, image_ops, load, maximise, probe
from featmap.cli.console import Bars, err, out
from featmap.files import digest, hash_file, write_atomically
from featmap.optimize.parameterization import initial_image
from featmap.optimize.photographs import read_photograph
from featmap.plotting import style
from featmap.rng import generator
from featmap.runs import device as devices
from featmap.stats import interaction
from tests.helpers.settings import resolve

RESULTS = Path(__file__).resolve().parent.parent / "results"
FEATURES, SEEDS, LEVEL, PINK = 16, 3, 0.95, 64
ANY, POSITIVE, SHARE = (-np.inf, np.inf), (0.0, np.inf), (0.0, 1.0)
"""What values a quantity can have: any, a length, a share; no interval reaches beyond."""
NETWORKS = ("reference", "googlenet", "inception_v3", "resnet50")
LATE = {
    "reference": ("inception4a", "inception5a"),
    "googlenet": ("inception4a", "inception5a"),
    "inception_v3": ("Mixed_6b", "Mixed_7a"),
    "resnet50": ("layer3.2", "layer4.2"),
}
"""A middle and a late layer of each network that the article looks at."""

Verdict = Literal["holds", "holds in part", "does not hold", "not decided"]


@dataclass(frozen=True)
class Study:
    """One experiment of the article.

    Parameters
    ----------
    name : of the study, its file and its folder of results
    section : the article's section that makes the claim
    claim : our paraphrase of it
    measured : what the study measures, in one line
    layers : the layers it takes of each network; those of networks that are not listed are given by ``--layers``
    full : what ``--full`` changes, in words
    takes_image : whether ``--image`` may name a photograph that it starts from
    seeds : of the noise, where ``--seeds`` does not say; a claim about named units wants five
    features, full_features : of each layer, where ``--features`` does not say, and with ``--full`` (None: as many)
    feature : the channel of the last layer that the claim names, where ``--feature`` names no other; None where it
        names none
    rule : how the claim is judged, in words; stored with the verdict
    pair : whether it takes two layers, no more and no fewer
    """

    name: str
    section: str
    claim: str
    measured: str
    full: str
    layers: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: LATE)
    takes_image: bool = False
    seeds: int = SEEDS
    features: int = FEATURES
    full_features: int | None = None
    feature: int | None = None
    pair: bool = False
    rule: str = ""


@dataclass(frozen=True)
class Finding:
    """One measured figure: its value, an interval (low to high; None where there is none), of how many it is.

    `words` says what it is, so that table and reader need nothing else; `unit` is "" for a pure number.
    """

    name: str
    value: float | None
    low: float | None
    high: float | None
    count: int
    words: str
    unit: str = ""


@dataclass(frozen=True)
class Outcome:
    """What a study found; `conclusion` is one sentence with a number."""

    rows: pd.DataFrame
    findings: Sequence[Finding]
    verdict: Verdict
    conclusion: str
    figures: Mapping[str, Figure | bytes]
    """By what follows MODEL in the file's name: "", "-detail" for a matplotlib figure, "-growth.webp" for bytes."""


@dataclass(frozen=True)
class Context:
    """What a study works with: the network, its layers, the options, where runs lie, what shows progress.

    `image` is a photograph's path, of a study that takes one and was given one; in `results` lies what was stored of
    other networks, for a study that compares them. `feature` is the channel that the claim names, or the one asked for.
    """

    study: Study
    network: Network
    layers: tuple[str, ...]
    full: bool
    features: int
    seeds: int
    device: str
    runs: Path
    watcher: Bars
    image: Path | None = None
    results: Path = RESULTS
    feature: int | None = None

    def drawn(self, layer: str, count: int | None = None) -> list[int]:
        """Return channels of a layer drawn at random (always the same), in order: `features`, or all if fewer."""
        channels = self.network.layer(layer, self.network.input_size).channels
        wanted = min(count or self.features, channels)
        rng = generator("study", self.network.name, layer)
        return sorted(rng.choice(channels, wanted, replace=False).tolist())

    def units(self, layer: str, count: int | None = None) -> list[str]:
        """Return the drawn features as units, ``layer:channel``."""
        return [f"{layer}:{c}" for c in self.drawn(layer, count)]

    def folder(self, *parts: Any, **settings: Any) -> Path:
        """Return the run folder of one piece of the work: named by `parts`, a hash of `settings` and of the weights."""
        given = {"sha256": self.network.sha256, "parts": parts, "settings": settings, "full": self.full}
        name = re.sub(r"[^A-Za-z0-9._-]", "-", "-".join(map(str, (self.network.name, *parts))))
        return self.runs / self.study.name / f"{name[:80]}-{digest(json.loads(json.dumps(given, default=_told)))}"

    def maximise(self, units: Sequence[str], *parts: Any, **settings: Any) -> xr.Dataset:
        """Return `featmap.maximise` of some units, kept in a run folder of its own, to go on from."""
        folder = self.folder(*parts, units=list(units), **settings)
        return maximise(units, self.network, device=self.device, out=folder, watcher=self.watcher, **settings)

    def say(self, text: str) -> None:
        """Tell what is being done."""
        err().print(f"{self.study.name}: {text}")


def beginning(context: Context, settings: Mapping[str, Any], seed: int) -> np.ndarray:
    """Return the noise of a seed that a descent with these settings starts from, 3 x H x H."""
    kept = {k: settings[k] for k in ("recipe", "size", "steps") if k in settings}
    recipe = resolve(context.network, devices.device(context.device), **kept)
    noise: np.ndarray = initial_image(recipe, seed).numpy()
    return noise


def small_size(network: Network, layers: Sequence[str], wanted: int = 64) -> int:
    """Return a small image size for many steps: `wanted` pixels, or the next of some that all the layers can take.

    Never above the network's own input size, which is the last that is tried.
    """
    sizes = [s for s in (wanted, 80, 96, 128, 160) if wanted <= s < network.input_size]
    for size in sizes:
        if all(layer in network.trace(size).layers for layer in layers):
            return size
    return network.input_size


def yardstick(context: Context, layers: Sequence[str], size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and standard deviation of every feature of some layers over 64 images with a 1/f spectrum.

    A feature that does not vary over them has no deviation: NaN (`featmap.stats.interaction.deviations`).
    """
    images = image_ops.pink_noise(PINK, size)
    found = [probe(images, layer, context.network, device=context.device).values for layer in layers]
    return np.concatenate([r.mean(0) for r in found]), np.concatenate(
        [interaction.response_deviations(r) for r in found]
    )


def _told(value: Any) -> str:
    """Return what tells a setting that is no plain value from others: of an array the SHA-256 of its bytes."""
    if isinstance(value, (np.ndarray, torch.Tensor)):
        return hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()
    return str(value)


def interval(
    values: Sequence[float] | np.ndarray, level: float = LEVEL, within: tuple[float, float] = ANY
) -> tuple[float, float, float]:
    """Return the mean of values and its t-interval, cut at what is possible; with one value the interval is that value.

    Give one value an independent case (a feature, after averaging over seeds), never pairs that share features.
    """
    found = np.asarray(values, dtype=float)
    found = found[np.isfinite(found)]
    if not len(found):
        raise FeatmapError("a study has no defined value to average; give other --layers or more --features")
    mean = float(found.mean())
    spread = float(found.std(ddof=1) / np.sqrt(len(found))) if len(found) > 1 else 0.0
    reach = spread * float(stats.t.ppf((1 + level) / 2, max(1, len(found) - 1)))
    return mean, max(mean - reach, within[0]), min(mean + reach, within[1])


def mean_finding(
    name: str, values: Sequence[float] | np.ndarray, words: str, unit: str = "", within: tuple[float, float] = ANY
) -> Finding:
    """Return the mean of independent values with its t-interval as a finding; undefined values are left out."""
    finite = np.asarray(values, dtype=float)
    mean, low, high = interval(finite, within=within)
    return Finding(name, mean, low, high, int(np.isfinite(finite).sum()), words, unit)


def plain_finding(
    name: str, value: float, count: int, words: str, low: float = np.nan, high: float = np.nan, unit: str = ""
) -> Finding:
    """Return a figure that comes with its interval, or without one; what is not finite is undefined."""
    numbers = [float(v) if np.isfinite(v) else None for v in (value, low, high)]
    return Finding(name, *numbers, count, words, unit)


def logs(values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Return natural logarithms; NaN of what is not above zero."""
    given = np.asarray(values, dtype=float)
    return np.log(np.where(given > 0, given, np.nan))


def geometric_findings(name: str, values: Sequence[float] | np.ndarray, words: str) -> list[Finding]:
    """Return the geometric mean of independent positive values, with its interval, if there are any."""
    given = logs(values)
    if not np.isfinite(given).any():
        return []
    mean, low, high = np.exp(interval(given))
    return [Finding(name, float(mean), float(low), float(high), int(np.isfinite(given).sum()), words)]


def averaged(name: str, values: Sequence[float] | np.ndarray, words: str, unit: str = "") -> Finding:
    """Return `mean_finding`, or that it is undefined where no value is defined."""
    if np.isfinite(np.asarray(values, dtype=float)).any():
        return mean_finding(name, values, words, unit)
    return plain_finding(name, np.nan, 0, words, unit=unit)


def share_finding(name: str, hits: int, count: int, words: str) -> Finding:
    """Return a share with Wilson's interval as a finding."""
    found = stats.binomtest(hits, count).proportion_ci(LEVEL, "wilson")
    return Finding(name, hits / count, float(found.low), float(found.high), count, words)


def save(context: Context, outcome: Outcome, results: Path) -> list[Path]:
    """Store what a study found; return the files."""
    where = results / context.study.name
    name = re.sub(r"[^A-Za-z0-9._-]", "-", context.network.name)
    held = {
        "study": context.study.name,
        "network": str(context.network),
        "model": context.network.name,
        "stem": name,
        "weights_sha256": context.network.sha256,
        "settings": {
            "layers": list(context.layers),
            "features": context.features,
            "seeds": context.seeds,
            "full": context.full,
            **({"image": context.image.name} if context.image else {}),
            **({"feature": context.feature} if context.feature is not None else {}),
            "device": context.device,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__.partition("+")[0],
        },
        "verdict": outcome.verdict,
        **({"rule": context.study.rule} if context.study.rule else {}),
        "conclusion": outcome.conclusion,
        "findings": [asdict(f) for f in outcome.findings],
        "figures": [f"{name}{s}" + (".png" if isinstance(f, Figure) else "") for s, f in outcome.figures.items()],
    }
    json.dumps(held, allow_nan=False)  # what cannot be told is no reason for half a result
    frame = outcome.rows
    table = where / f"{name}.csv"
    write_atomically(table, lambda p: frame.to_csv(p, index=False, float_format="%.6g", lineterminator="\n"))
    held["csv_sha256"] = hash_file(table)
    text = json.dumps(held, indent=1, ensure_ascii=False, allow_nan=False)
    for suffix, figure in outcome.figures.items():
        if isinstance(figure, Figure):
            style.save(figure, where / f"{name}{suffix}", ("png",), dpi=100)
        else:
            write_atomically(where / f"{name}{suffix}", lambda p, made=figure: p.write_bytes(made))  # type: ignore[misc]
    record = where / f"{name}.json"
    write_atomically(record, lambda p: p.write_text(text + "\n", encoding="utf-8"))
    return [record, table]


def check(
    study: Study, network: Network, layers: Sequence[str], feature: int | None, device: str, image: Path | None
) -> None:
    """Raise a FeatmapError for what a study could not be put to, before any of the work is done or told of."""
    if study.pair and len(layers) != 2:
        raise FeatmapError(f"study {study.name}: it takes two layers, not {len(layers)}; give --layers FIRST,SECOND")
    channels = [network.layer(layer, network.input_size).channels for layer in layers]
    if feature is not None and not 0 <= feature < channels[-1]:
        raise FeatmapError(
            f"layer {layers[-1]!r} has {channels[-1]} features, none of them {feature}; "
            f"give --feature 0 to {channels[-1] - 1}"
        )
    devices.device(device)
    if image is not None:
        read_photograph(image, 8)


def writable(option: str, folder: Path) -> None:
    """Make a folder to write into, or raise a FeatmapError that names the option."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise FeatmapError(
            f"--{option}: {str(folder)!r} is no folder to write into ({error.strerror}); give another --{option}"
        ) from error


def command(study: Study, measure: Callable[[Context], Outcome]) -> Callable[..., Outcome]:
    """Return the function that is a study's command line."""

    def main(
        model: Annotated[str, typer.Option(help="reference, googlenet, inception_v3, resnet50 or another.")] = (
            "reference"
        ),
        weights: Annotated[str | None, typer.Option(help="As for `featmap similarity`.")] = None,
        layers: Annotated[str | None, typer.Option(help="Layers in place of its own, joined by commas.")] = None,
        features: Annotated[
            int | None, typer.Option(help="Of each layer; by default as many as the study says.")
        ] = None,
        seeds: Annotated[int, typer.Option(help="Seeds of the noise.")] = study.seeds,
        feature: Annotated[int | None, typer.Option(help="Channel in place of the one that the claim names.")] = None,
        full: Annotated[bool, typer.Option("--full", help="The article's own sizes.")] = False,
        device: Annotated[str, typer.Option(help="auto, cpu, cuda.")] = "auto",
        image: Annotated[Path | None, typer.Option(help="A photograph, for a study that starts from one.")] = None,
        runs: Annotated[Path, typer.Option(help="Where the runs lie, to go on from.")] = Path("runs/studies"),
        results: Annotated[Path, typer.Option(help="Where the table and figures go.")] = RESULTS,
    ) -> Outcome:
        if features is None:
            features = study.full_features if full and study.full_features else study.features
        if features < 1 or seeds < 1:
            raise FeatmapError(f"--features {features}, --seeds {seeds}: give 1 or more of each")
        if image is not None and not study.takes_image:
            raise FeatmapError(f"study {study.name} starts from noise only; leave --image out")
        if feature is not None and study.feature is None:
            raise FeatmapError(f"the claim of study {study.name} names no feature; leave --feature out")
        network = load(model, weights)
        chosen = tuple(n.strip() for n in layers.split(",") if n.strip()) if layers else study.layers.get(model, ())
        if not chosen:
            raise FeatmapError(
                f"study {study.name}: no layers are known for {model!r}; give --layers, as `featmap layers` prints them"
            )
        named = study.feature if feature is None else feature
        check(study, network, chosen, named, device, image)
        for option, folder in (("runs", runs), ("results", results)):
            writable(option, folder / study.name)
        with Bars() as bars:
            context = Context(study, network, chosen, full, features, seeds, device, runs, bars, image, results, named)
            outcome = measure(context)
        for path in save(context, outcome, results):
            context.say(str(path))
        out().print(outcome.conclusion)
        return outcome

    main.__doc__ = f"{study.claim}\n\nMeasured: {study.measured}.\n\nWith --full: {study.full}."
    return main


def start(study: Study, measure: Callable[[Context], Outcome]) -> None:
    """Run a study as a command; the last lines of its file are ``if __name__ == "__main__": start(STUDY, measure)``."""
    run(command(study, measure))
