"""Compute the work units of a joint job: from units to stored images, responses and activation maps."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from featmap import image_ops
from featmap.interaction.job import MEMBERS, PINK_IMAGES, Group, JointJob, JointUnit, Solo, count_neurons
from featmap.optimize import parameterization
from featmap.optimize.batch import Batches
from featmap.optimize.descent import Descent
from featmap.optimize.objective import Objective
from featmap.optimize.responses import Probe
from featmap.runs import folder_layout, progress
from featmap.runs.progress import Silent, Watcher
from featmap.runs.store import Run
from featmap.stats import interaction

T = TypeVar("T", bound=Hashable)


class JointWorker:
    """A network, prepared once, that computes work units of a joint job.

    Parameters
    ----------
    job : JointJob
        The checked job.
    watcher : Watcher, optional
        Receives progress updates.
    """

    def __init__(self, job: JointJob, watcher: Watcher | None = None) -> None:
        self.job, self.watcher = job, watcher or Silent()
        self.probe = Probe(job.network, job.recipe.rows, job.device)
        self.batches = Batches(job.network, job.device)
        self._starts: dict[tuple[int, bool], Tensor] = {}
        self._nulls: dict[tuple[int, bool], Tensor] = {}

    def start_image(self, seed: int, perturbed: bool) -> Tensor:
        """Look up the noise that a descent starts from, or compute it.

        Parameters
        ----------
        seed : int
            Seed of the noise.
        perturbed : bool
            Whether it is perturbed by 2 %.

        Returns
        -------
        Tensor
            `C x H x W`.
        """
        if (seed, perturbed) not in self._starts:
            initial = parameterization.perturbed_initial_image if perturbed else parameterization.initial_image
            self._starts[seed, perturbed] = initial(self.job.recipe, seed, channels=self.job.network.channels)
        return self._starts[seed, perturbed]

    def null_image(self, seed: int, perturbed: bool) -> Tensor:
        """Look up the null image of a start, or compute it.

        Parameters
        ----------
        seed : int
            Seed of the noise.
        perturbed : bool
            Whether the noise is perturbed by 2 %.

        Returns
        -------
        Tensor
            `C x H x W`.
        """
        if (seed, perturbed) not in self._nulls:
            start = self.start_image(seed, perturbed)
            self._nulls[seed, perturbed] = parameterization.null_image(self.job.recipe, seed, start).float()
        return self._nulls[seed, perturbed]

    def work(self, unit: JointUnit, store: Run) -> None:
        """Compute one work unit and write its arrays to the run folder.

        Parameters
        ----------
        unit : JointUnit
            One of the job's work units.
        store : Run
            The run folder; a joint unit reads the solo descents from it.
        """
        if unit.stage == "ground":
            starts = self.job.ground_starts(unit)
            arrays = self.compute_null_images(starts)
            regions = {k: ((starts, *[slice(None)] * (v.ndim - 1)), v) for k, v in arrays.items()}
            once = self.compute_deviations() if not unit.first else {}
            store.land(unit.name, regions | {k: ((slice(None),) * v.ndim, v) for k, v in once.items()})
            return
        rows = slice(unit.first, unit.last)
        arrays = self.descend_solo(unit) if unit.stage == "solo" else self.descend_joint(unit, store)
        store.land(unit.name, {k: ((rows, *[slice(None)] * (v.ndim - 1)), v) for k, v in arrays.items()})

    def compute_null_images(self, starts: slice) -> dict[str, np.ndarray]:
        """Compute null images and the responses to them.

        Parameters
        ----------
        starts : slice
            Positions of their starts among those of the job.

        Returns
        -------
        dict of numpy.ndarray
            By the names of the run's arrays.
        """
        nulls = torch.stack([self.null_image(*start) for start in self.job.starts[starts]])
        responses, units = self.probe.measure_units(nulls, self.job.responses, self.job.units)
        return {"null_images": nulls.numpy(), "null": responses, "null_units": units}

    def compute_deviations(self) -> dict[str, np.ndarray]:
        """Compute the deviations of responses, and the images that they are over.

        Returns
        -------
        dict of numpy.ndarray
            By the names of the run's arrays.
        """
        pink = image_ops.pink_noise(PINK_IMAGES, self.job.recipe.size, self.job.network.channels)
        deviation = measure_response_deviations(self.probe, pink, self.job.responses)
        return {"pink_images": pink.numpy(), "deviation": deviation}

    def _descend(self, objectives: Sequence[Objective], starts: Sequence[tuple[int, bool]]) -> Descent:
        """Compute a batch of descents, each from its own start."""
        return self.batches.descend(
            objectives,
            self.job.recipe,
            [seed for seed, _ in starts],
            torch.stack([self.start_image(*start) for start in starts]),
            progress.step_callback(self.watcher, self.job.device),
        )

    def descend_solo(self, unit: JointUnit) -> dict[str, np.ndarray]:
        """Compute a batch of solo descents and measure their images.

        Parameters
        ----------
        unit : JointUnit
            A work unit of the stage "solo".

        Returns
        -------
        dict of numpy.ndarray
            By the names of the run's arrays.
        """
        job = self.job
        rows = job.solos[unit.first : unit.last]
        starts = [(row.seed, row.perturbed) for row in rows]
        targets = [Objective(((1.0, row.unit),)) for row in rows]
        result = self._descend(targets, starts)
        nulls = torch.stack([self.null_image(*start) for start in starts])
        responses, units = self.probe.measure_units(result.images, job.responses, job.units)
        fractions = nulls + (result.images - nulls) / job.members
        measured = {"images": result.images.numpy(), **self.probe.activations_and_scales(result.images, targets)}
        measured |= {"null_images": nulls.numpy(), "null_activation": self.probe.activations(nulls, targets)}
        return {
            "solo_images": measured["images"],
            "solo_A": responses,
            "solo_units": units,
            "solo_fraction": self.probe.measure_units(fractions, job.responses, ())[0],
            "solo_activation": measured["activation"],
            "solo_curve": result.curve[..., 0].numpy(),
            "solo_status": folder_layout.row_statuses(
                measured,
                result.had_gradient.numpy(),
                result.rescued.numpy(),
                partial(self.probe.exact_changes, nulls, result.images, targets),
            ),
        }

    def joint_weights(self, group: Group, best: np.ndarray, live: np.ndarray) -> np.ndarray:
        """Compute the weights w of the joint objective J = sum w_i z_i.

        Parameters
        ----------
        group : tuple of Unit
            The n units.
        best : numpy.ndarray
            z_i(x_i), each unit's activation on its solo image less that on the null image, n.
        live : numpy.ndarray
            Whether each solo descent raised its unit's activation, n booleans.

        Returns
        -------
        numpy.ndarray
            n weights. Under balance "solo" 1 / z_i(x_i), and 0 for a unit that is not live; under "none" proportional
            to the units' numbers of neurons, the largest 1.
        """
        if self.job.balance == "solo":
            return np.where(live, 1 / np.where(live, best, 1.0), 0.0)
        counts = np.array([count_neurons(u, self.job.shape(u.layer)) for u in group], dtype=float)
        return counts / counts.max()

    def descend_joint(self, unit: JointUnit, store: Run) -> dict[str, np.ndarray]:
        """Compute a batch of joint descents; measure them and blends of solo images.

        Parameters
        ----------
        unit : JointUnit
            A work unit of the stage "joint".
        store : Run
            The run folder, in which the solo descents are complete.

        Returns
        -------
        dict of numpy.ndarray
            By the names of the run's arrays.
        """
        job = self.job
        solo_rows, start_rows, unit_columns = _positions(job.solos), _positions(job.starts), _positions(job.units)
        rows = job.joints[unit.first : unit.last]
        arrays = store.arrays
        status, reached, null = arrays["solo_status"][:], arrays["solo_units"][:], arrays["null_units"][:]
        weights, targets = [], []
        images: dict[bool, list[Tensor]] = {False: [], True: []}
        for g, seed in rows:
            group = job.groups[g]
            own_rows, columns = [solo_rows[Solo(u, seed)] for u in group], [unit_columns[u] for u in group]
            with np.errstate(invalid="ignore"):  # rows with infinite activations are not live and get no weight
                best = reached[own_rows, columns].astype(float) - null[start_rows[seed, False], columns]
            live = np.isin(status[own_rows], folder_layout.LIVE_CODES)
            w = self.joint_weights(group, best, live)
            weights.append(w)
            # The loss sums over neurons while J takes their mean, hence the division. Only the ratios of the weights
            # matter to gradients over their RMS; a mean weight of 1 keeps plain gradients at their usual scale.
            counts = np.array([count_neurons(u, job.shape(u.layer)) for u in group], dtype=float)
            scaled = w / counts
            scaled = scaled / scaled.mean() if scaled.any() else scaled
            targets.append(Objective(tuple((float(s), u) for s, u in zip(scaled, group, strict=True))))
            for perturbed, found in images.items():
                own_rows = [solo_rows[Solo(u, seed, perturbed)] for u in group]
                found.append(torch.from_numpy(np.stack([arrays["solo_images"][k] for k in own_rows])))
        starts = [(seed, False) for _, seed in rows]
        result = self._descend(targets, starts)
        solos, nulls = torch.stack(images[False]), torch.stack([self.null_image(*start) for start in starts])
        responses, units = self.probe.measure_units(result.images, job.responses, job.units)
        measured = {"images": result.images.numpy(), **self.probe.activations_and_scales(result.images, targets)}
        measured |= {"null_images": nulls.numpy(), "null_activation": self.probe.activations(nulls, targets)}
        return {
            "joint_images": measured["images"],
            "joint_A": responses,
            "joint_units": units,
            "joint_middle": self._mix(solos, nulls),
            **self._mix_perturbed(torch.stack(images[True]), rows, arrays),
            "joint_weight": np.stack(weights),
            "joint_blend": self._blends(rows, solos),
            "joint_curve": result.curve.numpy(),
            "joint_agreement": result.agreement.numpy(),
            "joint_status": self._joint_status(measured, result, nulls, targets),
            **self._maps(rows, result.images),
        }

    def _mix(self, solos: Tensor, nulls: Tensor) -> np.ndarray:
        """Measure the responses to the mean of each group's solo images, rows x features."""
        middles = nulls + (solos - nulls[:, None]).sum(1) / self.job.members
        return self.probe.measure_units(middles, self.job.responses, ())[0]

    def _mix_perturbed(self, solos: Tensor, rows: Sequence[tuple[int, int]], arrays: Any) -> dict[str, np.ndarray]:
        """Measure the same of the solo images from perturbed starts, where the run folder has room for it.

        A run that an earlier version began has no such array, and is finished without it.
        """
        if "joint_middle_perturbed" not in arrays:
            return {}
        nulls = torch.stack([self.null_image(seed, True) for _, seed in rows])
        return {"joint_middle_perturbed": self._mix(solos, nulls)}

    def _joint_status(
        self, measured: dict[str, np.ndarray], result: Descent, nulls: Tensor, targets: Sequence[Objective]
    ) -> np.ndarray:
        """Classify joint descents: where only cancelling gradients count as dead.

        The units are live alone. If they did not rise together although they were rescued, that is a finding about the
        pair, and the descent has statistics.
        """
        exact = partial(self.probe.exact_changes, nulls, result.images, targets)
        rescued = result.rescued.numpy()
        status = folder_layout.row_statuses(measured, result.had_gradient.numpy(), np.zeros_like(rescued), exact)
        live: np.ndarray = np.where(rescued & (status == folder_layout.LIVE), folder_layout.RESCUED, status)
        return live.astype(np.uint8)

    def _blends(self, rows: Sequence[tuple[int, int]], solos: Tensor) -> np.ndarray:
        """Measure each unit's activation on the blends of its group's solo images, rows x points x members."""
        points = torch.from_numpy(interaction.simplex_lattice(self.job.members)).float()
        blends = torch.einsum("pm,rmchw->rpchw", points, solos)
        groups = [self.job.groups[g] for g, _ in rows]
        units = list(dict.fromkeys(u for group in groups for u in group))
        _, activations = self.probe.measure_units(blends.flatten(0, 1), (), units)
        activations, columns = activations.reshape(len(rows), len(points), -1), _positions(units)
        return np.stack([activations[k][:, [columns[u] for u in group]] for k, group in enumerate(groups)])

    def _maps(self, rows: Sequence[tuple[int, int]], images: Tensor) -> dict[str, np.ndarray]:
        """Measure each unit's activation map on the joint images: the mean over the channels that it reads."""
        groups = [self.job.groups[g] for g, _ in rows]
        outputs = self.probe.activation_maps(images, list(dict.fromkeys(u.layer for u in groups[0])))
        maps = {}
        for k, letter in enumerate(MEMBERS[: self.job.members]):
            read = [(outputs[g[k].layer][r], g[k].mask(self.job.shape(g[k].layer))[0]) for r, g in enumerate(groups)]
            maps[f"joint_map_{letter}"] = np.stack([output[channels].mean(0) for output, channels in read])
        return maps


def _positions(values: Sequence[T]) -> dict[T, int]:
    """Map each value to its position."""
    return {value: k for k, value in enumerate(values)}


def measure_response_deviations(probe: Probe, images: Tensor, layers: Sequence[str]) -> np.ndarray:
    """Measure the standard deviation of features' responses over images.

    Parameters
    ----------
    probe : Probe
        Probe of the network.
    images : Tensor
        Images, `N x C x H x W`: those of `featmap.image_ops.pink_noise` in interaction runs.
    layers : sequence of str
        Layers whose features are measured.

    Returns
    -------
    numpy.ndarray
        One value for each feature of all layers, in their order; NaN for features that do not vary, see
        `featmap.stats.interaction.response_deviations`.
    """
    outputs = list(probe.outputs(images, layers))
    deviations = []
    for layer in layers:
        responses = torch.cat([out[layer].mean((2, 3)).cpu() for out in outputs]).numpy()
        sizes = torch.cat([out[layer].abs().mean((2, 3)).cpu() for out in outputs]).numpy()
        deviations.append(interaction.response_deviations(responses, sizes))
    return np.concatenate(deviations)
