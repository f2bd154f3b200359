"""Doing joint descents: the pieces of a joint job, made one after another in a run folder."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from featmap import image_ops
from featmap.interaction.job import MEMBERS, PINK, Group, JointJob, JointUnit, Solo, neurons
from featmap.network.unit import Unit
from featmap.optimize import parameterization
from featmap.optimize.batch import Batches
from featmap.optimize.descent import Descent
from featmap.optimize.objective import Objective
from featmap.optimize.responses import Probe
from featmap.runs import array_layout, progress
from featmap.runs.progress import Silent, Watcher
from featmap.runs.store import Run
from featmap.stats import interaction


class JointWorker:
    """A network that is loaded and prepared once, and does the pieces of a joint job."""

    def __init__(self, job: JointJob, watcher: Watcher | None = None) -> None:
        self.job, self.watcher = job, watcher or Silent()
        self.probe = Probe(job.network, job.recipe.rows, job.device)
        self.batches = Batches(job.network, job.device)
        self._starts: dict[tuple[int, bool], Tensor] = {}
        self._nulls: dict[tuple[int, bool], Tensor] = {}

    def start(self, seed: int, perturbed: bool) -> Tensor:
        """Return the noise that a row starts from, 3 x H x W."""
        if (seed, perturbed) not in self._starts:
            make = parameterization.perturbed_initial_image if perturbed else parameterization.initial_image
            self._starts[seed, perturbed] = make(self.job.recipe, seed)
        return self._starts[seed, perturbed]

    def null(self, seed: int, perturbed: bool) -> Tensor:
        """Return the null image of that noise, 3 x H x W."""
        if (seed, perturbed) not in self._nulls:
            start = self.start(seed, perturbed)
            self._nulls[seed, perturbed] = parameterization.null_image(self.job.recipe, seed, start).float()
        return self._nulls[seed, perturbed]

    def work(self, unit: JointUnit, store: Run) -> None:
        """Do one unit and land it in the run folder."""
        if unit.stage == "ground":
            made = self.ground()
            store.land(unit.name, {k: ((slice(None),) * v.ndim, v) for k, v in made.items()})
            return
        make = self.solo if unit.stage == "solo" else self.joint
        rows = slice(unit.first, unit.last)
        made = make(unit, store)
        store.land(unit.name, {k: ((rows, *[slice(None)] * (v.ndim - 1)), v) for k, v in made.items()})

    def ground(self) -> dict[str, np.ndarray]:
        """Return what needs no descent: null images, and the yardstick of each feature's variation."""
        job = self.job
        nulls = torch.stack([self.null(*start) for start in job.starts])
        responses, units = self.probe.measure_units(nulls, job.responses, job.units)
        pink = image_ops.pink_noise(PINK, job.recipe.size)
        return {
            "null_images": nulls.numpy(),
            "null": responses,
            "null_units": units,
            "pink_images": pink.numpy(),
            "deviation": yardstick(self.probe, pink, job.responses),
        }

    def _descend(self, objectives: Sequence[Objective], starts: Sequence[tuple[int, bool]]) -> Descent:
        return self.batches.descend(
            objectives,
            self.job.recipe,
            [seed for seed, _ in starts],
            torch.stack([self.start(*start) for start in starts]),
            progress.step_callback(self.watcher, self.job.device),
        )

    def solo(self, unit: JointUnit, store: Run) -> dict[str, np.ndarray]:
        """Return what a batch of solo descents gives."""
        job = self.job
        rows = job.solos[unit.first : unit.last]
        starts = [(row.seed, row.perturbed) for row in rows]
        targets = [Objective(((1.0, row.unit),)) for row in rows]
        result = self._descend(targets, starts)
        nulls = torch.stack([self.null(*start) for start in starts])
        responses, units = self.probe.measure_units(result.images, job.responses, job.units)
        fractions = nulls + (result.images - nulls) / job.members
        reached = self.probe.activations(result.images, targets)
        found = {"images": result.images.numpy(), "activation": reached}
        found["null_activation"] = self.probe.activations(nulls, targets)
        return {
            "solo_images": found["images"],
            "solo_A": responses,
            "solo_units": units,
            "solo_fraction": self.probe.measure_units(fractions, job.responses, ())[0],
            "solo_activation": reached,
            "solo_curve": result.curve[..., 0].numpy(),
            "solo_status": array_layout.row_statuses(found, result.had_gradient.numpy(), result.rescued.numpy()),
        }

    def weights(self, group: Group, best: np.ndarray, alive: np.ndarray) -> np.ndarray:
        """Return w, the weights of J = sum w_i z_i; 0 for a unit whose solo descent found nothing.

        Parameters
        ----------
        best : z_i(x_i) of each member
        alive : whether its solo descent rose
        """
        if self.job.balance == "solo":
            return np.where(alive, 1 / np.where(alive, best, 1.0), 0.0)
        counts = np.array([neurons(u, self.job.shape(u.layer)) for u in group], dtype=float)
        return counts / counts.max()

    def joint(self, unit: JointUnit, store: Run) -> dict[str, np.ndarray]:
        """Return what a batch of joint descents gives, and what is measured for comparison with it."""
        job, solo_at, unit_at = self.job, {s: k for k, s in enumerate(self.job.solos)}, _places(self.job.units)
        rows = job.joints[unit.first : unit.last]
        arrays = store.arrays
        status, reached, null = arrays["solo_status"][:], arrays["solo_units"][:], arrays["null_units"][:]
        start_at = {start: k for k, start in enumerate(job.starts)}
        weights, targets, images = [], [], []
        for g, seed in rows:
            group = job.groups[g]
            at, of = [solo_at[Solo(u, seed)] for u in group], [unit_at[u] for u in group]
            with np.errstate(invalid="ignore"):  # infinite activations have no status that counts below
                best = reached[at, of].astype(float) - null[start_at[seed, False], of]
            alive = np.isin(status[at], (array_layout.LIVE, array_layout.RESCUED))
            w = self.weights(group, best, alive)
            weights.append(w)
            # the loss adds up neurons, J their mean; the scale is one that plain gradients are used to
            counts = np.array([neurons(u, job.shape(u.layer)) for u in group], dtype=float)
            scaled = w / counts
            scaled = scaled / scaled.mean() if scaled.any() else scaled
            targets.append(Objective(tuple((float(s), u) for s, u in zip(scaled, group, strict=True))))
            images.append(torch.from_numpy(np.stack([arrays["solo_images"][k] for k in at])))
        starts = [(seed, False) for _, seed in rows]
        result = self._descend(targets, starts)
        solos, nulls = torch.stack(images), torch.stack([self.null(*start) for start in starts])
        responses, units = self.probe.measure_units(result.images, job.responses, job.units)
        middles = nulls + (solos - nulls[:, None]).sum(1) / job.members
        found = {"images": result.images.numpy(), "activation": self.probe.activations(result.images, targets)}
        found["null_activation"] = self.probe.activations(nulls, targets)
        return {
            "joint_images": found["images"],
            "joint_A": responses,
            "joint_units": units,
            "joint_middle": self.probe.measure_units(middles, job.responses, ())[0],
            "joint_weight": np.stack(weights),
            "joint_blend": self._blends(rows, solos),
            "joint_curve": result.curve.numpy(),
            "joint_agreement": result.agreement.numpy(),
            "joint_status": array_layout.row_statuses(found, result.had_gradient.numpy(), result.rescued.numpy()),
            **self._maps(rows, result.images),
        }

    def _blends(self, rows: Sequence[tuple[int, int]], solos: Tensor) -> np.ndarray:
        """Return each member's activation on the blends of the solo images: rows x points x members."""
        points = torch.from_numpy(interaction.simplex_lattice(self.job.members)).float()
        blends = torch.einsum("pm,rmchw->rpchw", points, solos)
        groups = [self.job.groups[g] for g, _ in rows]
        units = list(dict.fromkeys(u for group in groups for u in group))
        _, found = self.probe.measure_units(blends.flatten(0, 1), (), units)
        found, at = found.reshape(len(rows), len(points), -1), _places(units)
        return np.stack([found[k][:, [at[u] for u in group]] for k, group in enumerate(groups)])

    def _maps(self, rows: Sequence[tuple[int, int]], images: Tensor) -> dict[str, np.ndarray]:
        """Return each member's activation map on the joint images: the mean over the channels that it reads."""
        groups = [self.job.groups[g] for g, _ in rows]
        outputs = self.probe.activation_maps(images, list(dict.fromkeys(u.layer for u in groups[0])))
        maps = {}
        for k, letter in enumerate(MEMBERS[: self.job.members]):
            read = [(outputs[g[k].layer][r], g[k].mask(self.job.shape(g[k].layer))[0]) for r, g in enumerate(groups)]
            maps[f"joint_map_{letter}"] = np.stack([out[channels].mean(0) for out, channels in read])
        return maps


def _places(units: Sequence[Unit]) -> dict[Unit, int]:
    return {u: k for k, u in enumerate(units)}


def yardstick(probe: Probe, pink: Tensor, layers: Sequence[str]) -> np.ndarray:
    """Return the standard deviation over images of all features of some layers, NaN for those that do not vary."""
    outputs = list(probe.outputs(pink, layers))
    found = []
    for layer in layers:
        responses = torch.cat([out[layer].mean((2, 3)).cpu() for out in outputs]).numpy()
        sizes = torch.cat([out[layer].abs().mean((2, 3)).cpu() for out in outputs]).numpy()
        found.append(interaction.response_deviations(responses, sizes))
    return np.concatenate(found)
