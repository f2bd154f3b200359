"""Statistics of interaction of every group and seed, computed from the arrays of a finished run.

The formulas are in `featmap.stats.interaction`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import pandas as pd

from featmap.interaction.job import IMAGE_DERIVATIVES, LATER_ARRAYS, MEMBERS, Group, JointJob
from featmap.interaction.kinds import OK, growth_exponents
from featmap.network.unit import Unit
from featmap.runs import folder_layout
from featmap.runs.folder_layout import LIVE_CODES
from featmap.stats import interaction
from featmap.stats.measures import profile_correlations

DEAD_PARTNER, CANCELLED, NOT_FINITE = "dead partner", "cancelled", "not-finite"
UNCONVERGED_PARTNER = "unconverged partner"
"""Statuses of a joint descent that lacks statistics; others are `OK`."""
NONLINEARITIES = ("response_nonlinearity", "image_nonlinearity")
"""Statistics that have floors and a ceiling."""
MIXTURE = "mixture_nonlinearity"
"""Nonlinearity of the mean of the solo images, which needs no joint descent; it has a floor of its own."""
TWO_MIXTURES = "mixture_nonlinearity_two_starts"
"""Its mean with that of the solo images from the perturbed start."""
FLOOR_KINDS = ("perturbed", "seed")
"""What a unit is compared with for a floor: itself from a perturbed start, and from the noise of another seed."""


class JointArrays:
    """Arrays of a joint run, indexed by unit and seed, and their statistics.

    Notation: d is an image less the null image of the same start; r the standardised responses of the probed features
    to an image less those to the null image; z a unit's activation on an image less that on the null image.

    Parameters
    ----------
    job : JointJob
        Job of the run.
    arrays : mapping of str to array
        Its arrays by name: a zarr group, or anything whose items have `chunks` and can be indexed.
    """

    def __init__(self, job: JointJob, arrays: Any) -> None:
        self.job, self.arrays = job, arrays
        self.solo_rows = {(s.unit, s.seed, s.perturbed): k for k, s in enumerate(job.solos)}
        self.start_rows = {start: k for k, start in enumerate(job.starts)}
        self.unit_columns = {u: k for k, u in enumerate(job.units)}
        self.response_columns = {name: k for k, name in enumerate(job.columns)}
        self.joint_rows = {joint: k for k, joint in enumerate(job.joints)}
        # Many groups share a unit, and neighbouring rows a chunk: neither is computed or read again for each group.
        self._unit_floor = lru_cache(maxsize=None)(self._compute_unit_floor)
        self._chunk = lru_cache(maxsize=32)(self._read_chunk)
        self._array = lru_cache(maxsize=None)(arrays.__getitem__)  # zarr reads the metadata at each access

    def _read_chunk(self, name: str, chunk: int) -> np.ndarray:
        """Read one chunk of an array's rows."""
        array = self._array(name)
        rows = array.chunks[0]
        return np.asarray(array[chunk * rows : (chunk + 1) * rows])

    def image(self, name: str, row: int) -> np.ndarray:
        """Read one row of an array, such as an image or an activation map.

        Parameters
        ----------
        name : str
            Name of the array, such as "joint_images".
        row : int
            Its row.

        Returns
        -------
        numpy.ndarray
            `C x H x W` for an image, `h x w` for an activation map.
        """
        chunk, position = divmod(row, self._array(name).chunks[0])
        values: np.ndarray = self._chunk(name, chunk)[position]
        return values

    @cached_property
    def small_arrays(self) -> dict[str, np.ndarray]:
        """All arrays except images, curves and activation maps, in memory."""
        shared = ("null", "null_units", "deviation")
        solo = ("A", "units", "fraction", "status")
        joint = ("A", "units", "middle", "weight", "blend", "agreement", "status")
        names = [*shared, *(f"solo_{n}" for n in solo), *(f"joint_{n}" for n in joint)]
        names += [name for name in (*LATER_ARRAYS, IMAGE_DERIVATIVES) if name in self.arrays]
        return {name: np.asarray(self.arrays[name][...]) for name in names}

    def _standardise(self, responses: np.ndarray, seed: int, perturbed: bool = False) -> np.ndarray:
        """Compute r from raw responses to images that descended from one start."""
        null = self.small_arrays["null"][self.start_rows[seed, perturbed]]
        return interaction.standardise_responses(responses, null, self.small_arrays["deviation"])

    def solo_responses(self, unit: Unit, seed: int, perturbed: bool = False, array: str = "solo_A") -> np.ndarray:
        """Compute r of a unit's solo image.

        Parameters
        ----------
        unit : Unit
            The unit.
        seed : int
            Seed of the start.
        perturbed : bool, default False
            Whether the start is the perturbed one.
        array : str, default "solo_A"
            "solo_A" for the solo image, "solo_fraction" for the null image plus d/n with n units in the group.

        Returns
        -------
        numpy.ndarray
            One value for each probed feature that varies.
        """
        return self._standardise(self.small_arrays[array][self.solo_rows[unit, seed, perturbed]], seed, perturbed)

    def solo_similarity(self, names: Sequence[str]) -> pd.DataFrame:
        """Compute the profile similarity of units over the solo images of all units.

        Parameters
        ----------
        names : sequence of str
            Names of units.

        Returns
        -------
        pandas.DataFrame
            S, in [-1, 1], of those that are live with every seed, over the images of all live units, averaged over
            seeds; empty where fewer than two are live.
        """
        units, small = self.job.units, self.small_arrays
        rows = np.array([[self.solo_rows[u, seed, False] for seed in self.job.seeds] for u in units])
        live: np.ndarray = np.asarray(np.isin(small["solo_status"][rows], LIVE_CODES).all(axis=1))
        alive = {str(u): self.unit_columns[u] for u, is_live in zip(units, live, strict=True) if is_live}
        own = [name for name in names if name in alive]
        if len(own) < 2:
            return pd.DataFrame()
        A = small["solo_units"][rows].astype(np.float64).mean(1)[live]
        return pd.DataFrame(profile_correlations(A[:, [alive[name] for name in own]]), index=own, columns=own)

    def solo_difference(self, unit: Unit, seed: int, perturbed: bool = False) -> np.ndarray:
        """Compute d of a unit's solo image.

        Parameters
        ----------
        unit : Unit
            The unit.
        seed : int
            Seed of the start.
        perturbed : bool, default False
            Whether the start is the perturbed one.

        Returns
        -------
        numpy.ndarray
            `C x H x W`, float64.
        """
        image = self.image("solo_images", self.solo_rows[unit, seed, perturbed]).astype(np.float64)
        return image - self.image("null_images", self.start_rows[seed, perturbed])

    def solo_activation(self, unit: Unit, image_unit: Unit, seed: int) -> float:
        """Compute z of one unit on the solo image of another, or of the same.

        Parameters
        ----------
        unit : Unit
            Unit whose activation is measured.
        image_unit : Unit
            Unit whose solo image is shown.
        seed : int
            Seed of the start.

        Returns
        -------
        float
            Activation less that on the null image.
        """
        column = self.unit_columns[unit]
        value = float(self.small_arrays["solo_units"][self.solo_rows[image_unit, seed, False], column])
        return value - float(self.small_arrays["null_units"][self.start_rows[seed, False], column])

    def is_live(self, unit: Unit, seed: int, perturbed: bool = False) -> bool:
        """Check whether a unit's solo descent raised its activation.

        Parameters
        ----------
        unit : Unit
            The unit.
        seed : int
            Seed of the start.
        perturbed : bool, default False
            Whether the start is the perturbed one.

        Returns
        -------
        bool
            True if its status is live.
        """
        return int(self.small_arrays["solo_status"][self.solo_rows[unit, seed, perturbed]]) in LIVE_CODES

    def _compute_unit_floor(self, unit: Unit, seed: int, other: int) -> tuple[float, float]:
        """Compute the nonlinearities of a unit against itself, from another seed or the same one's perturbed start.

        NaN where one of the two descents did not rise.
        """
        perturbed = other == seed
        if not (self.is_live(unit, seed) and self.is_live(unit, other, perturbed)):
            return float("nan"), float("nan")
        r_again, r = self.solo_responses(unit, other, perturbed), self.solo_responses(unit, seed)
        d_again, d = self.solo_difference(unit, other, perturbed), self.solo_difference(unit, seed)
        return interaction.response_nonlinearity(r_again, r[None]), interaction.image_nonlinearity(d_again, d[None])

    def status(self, row: int) -> str:
        """Determine whether a joint descent has statistics, and if not, why.

        Parameters
        ----------
        row : int
            Row of the joint arrays.

        Returns
        -------
        str
            "ok"; "dead partner" or "unconverged partner" (a unit did not rise alone); "cancelled" (the gradients of the
            units cancel); "not-finite".
        """
        g, seed = self.job.joints[row]
        codes = [int(self.small_arrays["solo_status"][self.solo_rows[u, seed, False]]) for u in self.job.groups[g]]
        joint = int(self.small_arrays["joint_status"][row])
        if folder_layout.NOT_FINITE in (*codes, joint):
            return NOT_FINITE
        if any(code not in LIVE_CODES for code in codes):
            return DEAD_PARTNER if folder_layout.DEAD in codes else UNCONVERGED_PARTNER
        return CANCELLED if joint == folder_layout.DEAD else OK

    @cached_property
    def statistic_names(self) -> list[str]:
        """Names of all statistics, whether a descent has them or not.

        `second_derivative` is one of them where its array was computed, in runs with photographs.
        """
        letters = MEMBERS[: self.job.members]
        names = [f"solo_{c}" for c in letters]
        names += [*NONLINEARITIES, MIXTURE, f"{MIXTURE}_floor", TWO_MIXTURES]
        names += ["second_difference", "second_difference_sign", "second_difference_at"]
        names += ["second_derivative"] if IMAGE_DERIVATIVES in self.small_arrays else []
        names += ["joint_gain", "gradient_agreement"]
        names += ["territory_divided", "territory_correlation"]
        for c in letters:
            names += [f"joint_{c}", f"retention_{c}", f"additive_retention_{c}", f"self_saturation_{c}"]
            names += [f"crosstalk_{c}_on_{other}" for other in letters if other != c]
        names += [f"{name}_floor_{kind}_{c}" for kind in FLOOR_KINDS for name in NONLINEARITIES for c in letters]
        return names + [f"{name}_{limit}" for limit in ("floor", "ceiling") for name in NONLINEARITIES]

    def statistics(self, row: int) -> dict[str, float]:
        """Compute every statistic of one joint descent.

        Parameters
        ----------
        row : int
            Row of the joint arrays.

        Returns
        -------
        dict of float
            By name, see `statistic_names`; NaN where undefined. `second_difference_at` is the column of a feature.
        """
        g, seed = self.job.joints[row]
        group, letters = self.job.groups[g], MEMBERS[: self.job.members]
        status = self.status(row)
        best = np.array([self.solo_activation(u, u, seed) for u in group])
        result = dict.fromkeys(self.statistic_names, float("nan"))
        result |= {f"solo_{c}": float(v) for c, v in zip(letters, best, strict=True)}
        if status in (DEAD_PARTNER, UNCONVERGED_PARTNER, NOT_FINITE):
            return result
        small = self.small_arrays
        columns = [self.unit_columns[u] for u in group]
        null = small["null_units"][self.start_rows[seed, False], columns].astype(float)
        joint = small["joint_units"][row, columns].astype(float) - null
        blends = small["joint_blend"][row].astype(float) - null
        r, parts = (
            self._standardise(small["joint_A"][row], seed),
            np.stack([self.solo_responses(u, seed) for u in group]),
        )
        fractions = np.stack([self.solo_responses(u, seed, array="solo_fraction") for u in group])
        d, images = self.joint_difference(row), np.stack([self.solo_difference(u, seed) for u in group])
        middle = self._standardise(small["joint_middle"][row], seed)
        second = interaction.second_difference(middle, fractions, r, small["deviation"])
        cosines = small["joint_agreement"][row]
        territory = interaction.territory(self.activation_maps(row))
        result |= {
            "response_nonlinearity": interaction.response_nonlinearity(r, parts),
            "image_nonlinearity": interaction.image_nonlinearity(d, images),
            MIXTURE: interaction.response_nonlinearity(middle, fractions),
            # a unit mixed with itself is its solo image
            f"{MIXTURE}_floor": float(
                np.mean([interaction.response_nonlinearity(p, f[None]) for p, f in zip(parts, fractions, strict=True)])
            ),
            "second_difference": second.size,
            "second_difference_sign": second.sign,
            "second_difference_at": float("nan") if second.feature is None else float(second.feature),
            "joint_gain": interaction.joint_gain(joint, blends, small["joint_weight"][row], best),
            # steps at which a gradient vanishes have no cosine
            "gradient_agreement": float(np.nanmean(cosines)) if np.isfinite(cosines).any() else float("nan"),
            "territory_divided": territory.divided,
            "territory_correlation": territory.correlation,
        }
        for k, (c, unit) in enumerate(zip(letters, group, strict=True)):
            result[f"joint_{c}"] = float(joint[k])
            result[f"retention_{c}"] = interaction.retention(joint[k], best[k])
            result[f"self_saturation_{c}"] = interaction.self_saturation(parts[k], fractions[k], len(group))
            for other, image_unit in zip(letters, group, strict=True):
                if other != c:
                    on_other = self.solo_activation(unit, image_unit, seed)
                    result[f"crosstalk_{c}_on_{other}"] = interaction.crosstalk(on_other, best[k])
        result[TWO_MIXTURES] = (result[MIXTURE] + self._perturbed_mixture(row)) / 2
        if "second_derivative" in result:
            size, largest = float(np.linalg.norm(r)), float(np.linalg.norm(fractions, axis=1).max())
            derived = float(np.linalg.norm(self.second_derivative(row)))
            result["second_derivative"] = interaction.quotient(derived, size, largest)
        if self.job.balance == "solo" and self.job.recipe.linear:
            gifts = [[result.get(f"crosstalk_{c}_on_{other}", 1.0) for other in letters] for c in letters]
            lengths = np.sqrt(np.square(images).reshape(len(group), -1).mean(1))
            without = interaction.additive_retentions(np.array(gifts), lengths, result["gradient_agreement"])
            probed = [(self.solo_rows[u, seed, False], self.response_columns.get(str(u))) for u in group]
            without = np.sign(without) * np.abs(without) ** growth_exponents(
                small, self.start_rows[seed, False], probed
            )
            result |= {f"additive_retention_{c}": float(v) for c, v in zip(letters, without, strict=True)}
        return result | self._floors(g, seed, letters) | self._ceilings(group, seed, r, d)

    def second_derivative(self, row: int) -> np.ndarray:
        """Read the second derivative of responses along the halves of both solo images.

        Parameters
        ----------
        row : int
            Row of the joint arrays, of a run with photographs.

        Returns
        -------
        numpy.ndarray
            In standard deviations, one value for each probed feature that varies, see
            `featmap.interaction.photographs.PhotographJointWorker.derive_images`; NaN where it has none, such as for
            a seed that was added later.
        """
        (g, seed), deviation = self.job.joints[row], self.small_arrays["deviation"]
        found, k = self.small_arrays[IMAGE_DERIVATIVES][g], self.job.seeds.index(seed)
        nothing = np.zeros(len(deviation))
        return interaction.standardise_responses(found[k] if k < len(found) else nothing + np.nan, nothing, deviation)

    def _perturbed_mixture(self, row: int) -> float:
        """Compute the mixture nonlinearity of the solo images from perturbed starts; NaN where one did not rise."""
        g, seed = self.job.joints[row]
        group = self.job.groups[g]
        if "joint_middle_perturbed" not in self.small_arrays or not all(self.is_live(u, seed, True) for u in group):
            return float("nan")
        middle = self._standardise(self.small_arrays["joint_middle_perturbed"][row], seed, perturbed=True)
        fractions = [self.solo_responses(u, seed, perturbed=True, array="solo_fraction") for u in group]
        return interaction.response_nonlinearity(middle, np.stack(fractions))

    def excess(self) -> np.ndarray:
        """Compute only the excess of each response nonlinearity over its floor.

        Returns
        -------
        numpy.ndarray
            Groups x seeds, float64: the same bits as in `table`; NaN where undefined or not made.
        """
        found = np.full((len(self.job.groups), len(self.job.seeds)), np.nan)
        positions = {seed: k for k, seed in enumerate(self.job.seeds)}
        for row, (g, seed) in enumerate(self.job.joints):
            if self.status(row) in (DEAD_PARTNER, UNCONVERGED_PARTNER, NOT_FINITE):
                continue
            r = self._standardise(self.small_arrays["joint_A"][row], seed)
            parts = np.stack([self.solo_responses(u, seed) for u in self.job.groups[g]])
            floor = self._floors(g, seed, MEMBERS[: self.job.members])["response_nonlinearity_floor"]
            found[g, positions[seed]] = interaction.response_nonlinearity(r, parts) - floor
        return found

    def _floors(self, g: int, seed: int, letters: Sequence[str]) -> dict[str, float]:
        """Compute the floors of each unit and kind; the group's is the larger of the two kinds' means over units."""
        result: dict[str, float] = {}
        for kind in FLOOR_KINDS:
            other = seed if kind == "perturbed" else self.job.floor_seed(g, seed)
            floors = np.array([self._unit_floor(u, seed, other) for u in self.job.groups[g]])
            for k, name in enumerate(NONLINEARITIES):
                result |= {f"{name}_floor_{kind}_{c}": float(v) for c, v in zip(letters, floors[:, k], strict=True)}
        for name in NONLINEARITIES:
            means = [np.mean([result[f"{name}_floor_{kind}_{c}"] for c in letters]) for kind in FLOOR_KINDS]
            result[f"{name}_floor"] = float(np.max(means))
        return result

    def _ceilings(self, group: Group, seed: int, r: np.ndarray, d: np.ndarray) -> dict[str, float]:
        """Compute the ceilings: nonlinearity against the solo images of unrelated units, mean over control groups."""
        live = [c for c in self.job.controls(group) if all(self.is_live(u, seed) for u in c)]
        values = [
            (
                interaction.response_nonlinearity(r, np.stack([self.solo_responses(u, seed) for u in control])),
                interaction.image_nonlinearity(d, np.stack([self.solo_difference(u, seed) for u in control])),
            )
            for control in live
        ]
        means = np.mean(values, axis=0) if values else (float("nan"), float("nan"))
        return {f"{name}_ceiling": float(v) for name, v in zip(NONLINEARITIES, means, strict=True)}

    def joint_profiles(self, g: int, seeds: Collection[int]) -> tuple[np.ndarray, np.ndarray]:
        """Average over seeds what probed features do on a group's joint images.

        Parameters
        ----------
        g : int
            Position of the group in the job.
        seeds : collection of int
            The seeds; those whose joint descent has no statistics are left out.

        Returns
        -------
        contrast : numpy.ndarray
            r of the joint image less the mean of those of the solo images, one value for each probed feature that
            varies; all NaN without a seed.
        second : numpy.ndarray
            Second difference, see `featmap.stats.interaction.second_difference`.
        """
        group, small = self.job.groups[g], self.small_arrays
        found = []
        for row, seed in ((self.joint_rows[g, s], s) for s in seeds if (g, s) in self.joint_rows):
            if self.status(row) == OK:
                parts, fractions = (
                    np.stack([self.solo_responses(u, seed, array=name) for u in group])
                    for name in ("solo_A", "solo_fraction")
                )
                joint, middle = (self._standardise(small[name][row], seed) for name in ("joint_A", "joint_middle"))
                found.append((joint - parts.mean(0), middle - fractions.sum(0)))
        nothing = np.full((2, int(np.isfinite(small["deviation"]).sum())), np.nan)
        contrast, second = np.mean(found, axis=0) if found else nothing
        return contrast, second

    def joint_difference(self, row: int) -> np.ndarray:
        """Compute d of a joint image.

        Parameters
        ----------
        row : int
            Row of the joint arrays.

        Returns
        -------
        numpy.ndarray
            `C x H x W`, float64.
        """
        image = self.image("joint_images", row).astype(np.float64)
        return image - self.image("null_images", self.start_rows[self.job.joints[row][1], False])

    def activation_maps(self, row: int) -> list[np.ndarray]:
        """Read each unit's activation map on a joint image.

        Parameters
        ----------
        row : int
            Row of the joint arrays.

        Returns
        -------
        list of numpy.ndarray
            One `h x w` map for each unit of the group, on its own layer's grid.
        """
        return [self.image(f"joint_map_{c}", row) for c in MEMBERS[: self.job.members]]

    def table(self, progress: Callable[[int, int], None] | None = None) -> pd.DataFrame:
        """Compute all statistics of all joint descents.

        Parameters
        ----------
        progress : callable, optional
            Called with the rows done and their total.

        Returns
        -------
        pandas.DataFrame
            A row for each group and seed: `group`, `seed`, `status`, then a column for each statistic (NaN where
            undefined). `second_difference_at` is the name of the feature where the second difference is largest, ""
            where there is none.
        """
        records = []
        for row, (g, seed) in enumerate(self.job.joints):
            record: dict[str, Any] = {"group": self.job.labels[g], "seed": seed, "status": self.status(row)}
            record |= self.statistics(row)
            column = record["second_difference_at"]
            record["second_difference_at"] = self.job.columns[int(column)] if np.isfinite(column) else ""
            records.append(record)
            if progress is not None and row % 16 == 0:
                progress(row, len(self.job.joints))
        return pd.DataFrame(records)
