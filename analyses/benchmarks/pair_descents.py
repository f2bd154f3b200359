"""Solo and joint descents of the pairs of two layers' features, from plain and perturbed starts, kept in a folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import product
from pathlib import Path

import numpy as np
import torch

from featmap import image_ops
from featmap.files import write_atomically
from featmap.interaction.job import PINK_IMAGES
from featmap.interaction.worker import measure_response_deviations
from featmap.network.model import Network
from featmap.network.unit import Unit
from featmap.optimize import parameterization
from featmap.optimize.batch import Batches
from featmap.optimize.objective import Objective
from featmap.optimize.recipe import Recipe
from featmap.optimize.responses import Probe

SHIFTS = ((3, 3), (-3, 3), (3, -3), (-3, -3))
"""Displacements in pixels, by reflection, at which images are shown again."""


class Descents:
    """Descents of one network's pairs, computed once and kept in a folder.

    Parameters
    ----------
    network : Network
        The network.
    units : sequence of sequence of Unit
        Features of the first and of the second layer.
    recipe : Recipe
        Resolved recipe.
    seeds : int
        Number of seeds, from 0.
    probed : sequence of str
        Layers whose responses are measured, the units' own among them.
    folder : Path
        Where the descents are kept.
    """

    def __init__(
        self,
        network: Network,
        units: Sequence[Sequence[Unit]],
        recipe: Recipe,
        seeds: int,
        probed: Sequence[str],
        folder: Path,
    ) -> None:
        self.network, self.recipe, self.seeds, self.probed, self.folder = network, recipe, seeds, probed, folder
        self.units = [*units[0], *units[1]]
        self.shape = len(units[0]), len(units[1])
        self.pairs = [(i, len(units[0]) + j) for i, j in product(*map(range, self.shape))]
        self.repeated = [p for p, (_, b) in enumerate(self.pairs) if (b - len(units[0])) % 3 == 0]
        self.probe = Probe(network, recipe.rows, "cpu")
        self.batches = Batches(network, torch.device("cpu"))

    def kept(self, name: str, compute: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """Read a stage from the folder, or compute and keep it."""
        path = self.folder / f"{name}.npz"
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            values = compute()

            def save(at: Path) -> None:
                with at.open("wb") as file:  # numpy appends .npz to a path without it, and not to a file
                    np.savez(file, **values)  # type: ignore[arg-type]

            write_atomically(path, save)
        with np.load(path) as stored:
            return {key: stored[key] for key in stored.files}

    def start(self, seed: int, perturbed: int) -> torch.Tensor:
        """Make the noise of a start."""
        make = parameterization.perturbed_initial_image if perturbed else parameterization.initial_image
        return make(self.recipe, seed, channels=self.network.channels)

    def null(self, seed: int, perturbed: int) -> torch.Tensor:
        """Make the null image of a start."""
        return parameterization.null_image(self.recipe, seed, self.start(seed, perturbed)).float()

    def measured(self, images: torch.Tensor) -> dict[str, np.ndarray]:
        """Measure responses of all probed features, also averaged over shifts, and the units' activations."""
        responses, units = self.probe.measure_units(images, self.probed, self.units)
        most = max(abs(s) for shift in SHIFTS for s in shift)
        wide = torch.nn.functional.pad(images, (most,) * 4, mode="reflect")
        height, width = images.shape[2:]
        moved = [wide[:, :, most + y : most + y + height, most + x : most + x + width] for y, x in SHIFTS]
        shown = [responses, *(self.probe.measure_units(m.contiguous(), self.probed, ())[0] for m in moved)]
        return {"responses": responses, "shifted": np.mean(shown, axis=0, dtype=np.float64), "units": units}

    def descended(self, rows: Sequence[tuple[Objective, int]], perturbed: int) -> dict[str, np.ndarray]:
        """Compute descents and measure their images."""
        found: list[dict[str, np.ndarray]] = []
        for first in range(0, len(rows), self.recipe.rows):
            batch = rows[first : first + self.recipe.rows]
            starts = torch.stack([self.start(seed, perturbed) for _, seed in batch])
            images = self.batches.descend([o for o, _ in batch], self.recipe, [s for _, s in batch], starts).images
            found.append({"images": images.numpy(), **self.measured(images)})
        return {key: np.concatenate([one[key] for one in found]) for key in found[0]}

    @cached_property
    def ground(self) -> dict[str, np.ndarray]:
        """Responses to the null images, by seed and start, and the features' deviations."""

        def compute() -> dict[str, np.ndarray]:
            nulls = torch.stack([self.null(s, k) for s in range(self.seeds) for k in (0, 1)])
            pink = image_ops.pink_noise(PINK_IMAGES, self.recipe.size, self.network.channels)
            each = [measure_response_deviations(self.probe, pink, [layer]) for layer in self.probed]
            by_start = {k: v.reshape(self.seeds, 2, -1) for k, v in self.measured(nulls).items()}
            return by_start | {"deviation": np.concatenate(each)}

        return self.kept("ground", compute)

    def solos(self, perturbed: int) -> dict[str, np.ndarray]:
        """Solo descents, units x seeds."""

        def compute() -> dict[str, np.ndarray]:
            rows = [(Objective(((1.0, u),)), s) for u in self.units for s in range(self.seeds)]
            found = self.descended(rows, perturbed)
            return {k: v.reshape(len(self.units), self.seeds, *v.shape[1:]) for k, v in found.items()}

        return self.kept(f"solo-{perturbed}", compute)

    def joints(self, perturbed: int, seeds: int) -> dict[str, np.ndarray]:
        """Joint descents, seeds x pairs, each unit weighted by its solo response from the same start.

        From perturbed starts only the pairs of every third feature of the second layer are made; NaN elsewhere.
        """
        made = self.repeated if perturbed else list(range(len(self.pairs)))

        def compute() -> dict[str, np.ndarray]:
            reached, null = self.solos(perturbed)["units"], self.ground["units"][:, perturbed]
            neurons = [int(np.prod(self.network.layer(u.layer, self.recipe.size).shape[1:])) for u in self.units]
            rows = []
            for seed, pair in product(range(seeds), [self.pairs[p] for p in made]):
                best = [float(reached[u, seed, u] - null[seed, u]) for u in pair]
                weights = np.array([1 / b / neurons[u] if b > 0 else 0.0 for b, u in zip(best, pair, strict=True)])
                weights = weights / weights.mean() if weights.any() else weights
                terms = tuple((float(w), self.units[u]) for w, u in zip(weights, pair, strict=True))
                rows.append((Objective(terms), seed))
            found = self.descended(rows, perturbed)
            return {k: v.reshape(seeds, len(made), *v.shape[1:]) for k, v in found.items()}

        found = {k: v for k, v in self.kept(f"joint-{perturbed}", compute).items() if k != "images"}
        whole = {k: np.full((len(v), len(self.pairs), *v.shape[2:]), np.nan) for k, v in found.items()}
        for key, values in found.items():
            whole[key][:, made] = values
        return whole

    def mixtures(self, perturbed: int) -> dict[str, np.ndarray]:
        """Responses to half of each solo image (seeds x units), and to halves of both (seeds x pairs)."""

        def compute() -> dict[str, np.ndarray]:
            images, halves, mixed = torch.from_numpy(self.solos(perturbed)["images"]), [], []
            for seed in range(self.seeds):
                null = self.null(seed, perturbed)
                d = (images[:, seed] - null) / 2
                both = torch.stack([null + d[a] + d[b] for a, b in self.pairs])
                halves.append(self.probe.measure_units(null + d, self.probed, ())[0])
                mixed.append(self.probe.measure_units(both, self.probed, ())[0])
            return {"halves": np.stack(halves), "mixed": np.stack(mixed)}

        return self.kept(f"mixture-{perturbed}", compute)

    def columns(self, layers: Sequence[str]) -> np.ndarray:
        """Mark the responses of some layers, of features that vary."""
        sizes = [self.network.layer(la, self.recipe.size).channels for la in self.probed]
        chosen = np.repeat([la in layers for la in self.probed], sizes)
        marked: np.ndarray = chosen & np.isfinite(self.ground["deviation"])
        return marked

    def standardised(self, responses: np.ndarray, seed: int, perturbed: int, kind: str = "responses") -> np.ndarray:
        """Compute r of all features."""
        null = self.ground[kind][seed, perturbed]
        standardised: np.ndarray = (responses.astype(np.float64) - null) / self.ground["deviation"]
        return standardised
