"""Every figure of interaction of every group and seed, from the arrays of a finished run. No torch is needed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import pandas as pd

from featmap.interaction.job import MEMBERS, Group, JointJob
from featmap.stats import correlation, interaction

OK, DEAD, CANCELLED, NOT_FINITE = "ok", "dead partner", "cancelled", "not-finite"
UNCONVERGED = "unconverged partner"
LIVE, RESCUED, STILL, BROKEN = 0, 1, 2, 4
FLOORED = ("response_nonlinearity", "image_nonlinearity")
FLOORS = ("perturbed", "seed")


class Interplay:
    """The arrays of a run, read as the formulas need them.

    Parameters
    ----------
    job : what was run
    arrays : its arrays by name, as zarr or numpy has them
    """

    def __init__(self, job: JointJob, arrays: Any) -> None:
        self.job, self.arrays = job, arrays
        self.rows = {(s.unit, s.seed, s.perturbed): k for k, s in enumerate(job.solos)}
        self.starts = {start: k for k, start in enumerate(job.starts)}
        self.units = {u: k for k, u in enumerate(job.units)}
        self.floor = lru_cache(maxsize=None)(self._floor)
        self._chunk = lru_cache(maxsize=32)(self._read_chunk)

    def _read_chunk(self, name: str, chunk: int) -> np.ndarray:
        array = self.arrays[name]
        rows = array.chunks[0]
        return np.asarray(array[chunk * rows : (chunk + 1) * rows])

    def image(self, name: str, row: int) -> np.ndarray:
        """Return one row of an array of images, 3 x H x W."""
        chunk, at = divmod(row, self.arrays[name].chunks[0])
        found: np.ndarray = self._chunk(name, chunk)[at]
        return found

    @cached_property
    def read(self) -> dict[str, np.ndarray]:
        """All arrays but images and maps, in memory."""
        small = ("null", "null_units", "deviation")
        solo = ("A", "units", "fraction", "status")
        joint = ("A", "units", "middle", "weight", "blend", "agreement", "status")
        names = [*small, *(f"solo_{n}" for n in solo), *(f"joint_{n}" for n in joint)]
        return {name: np.asarray(self.arrays[name][...]) for name in names}

    def _r(self, responses: np.ndarray, seed: int, perturbed: bool = False) -> np.ndarray:
        null = self.read["null"][self.starts[seed, perturbed]]
        return interaction.standardise_responses(responses, null, self.read["deviation"])

    def solo_r(self, unit: Any, seed: int, perturbed: bool = False, of: str = "solo_A") -> np.ndarray:
        """Return r at a unit's solo image (or at the null image plus its n-th part: `of` "solo_fraction")."""
        return self._r(self.read[of][self.rows[unit, seed, perturbed]], seed, perturbed)

    def solo_d(self, unit: Any, seed: int, perturbed: bool = False) -> np.ndarray:
        """Return d of a unit's solo image, 3 x H x W."""
        found = self.image("solo_images", self.rows[unit, seed, perturbed]).astype(np.float64)
        return found - self.image("null_images", self.starts[seed, perturbed])

    def solo_z(self, of: Any, image: Any, seed: int) -> float:
        """Return the activation of unit `of` on the solo image of unit `image`, less that on the null image."""
        at = self.units[of]
        value = float(self.read["solo_units"][self.rows[image, seed, False], at])
        return value - float(self.read["null_units"][self.starts[seed, False], at])

    def alive(self, unit: Any, seed: int, perturbed: bool = False) -> bool:
        """Did the unit's solo descent rise?"""
        return int(self.read["solo_status"][self.rows[unit, seed, perturbed]]) in (LIVE, RESCUED)

    def _floor(self, unit: Any, seed: int, kind: str) -> tuple[float, float]:
        """Return response and image nonlinearity of a unit against itself."""
        other, perturbed = (seed, True) if kind == "perturbed" else (self.job.floor_seeds[seed], False)
        if not (self.alive(unit, seed) and self.alive(unit, other, perturbed)):
            return float("nan"), float("nan")
        again, once = self.solo_r(unit, other, perturbed), self.solo_r(unit, seed)
        image, first = self.solo_d(unit, other, perturbed), self.solo_d(unit, seed)
        return (
            interaction.response_nonlinearity(again, once[None]),
            interaction.image_nonlinearity(image, first[None]),
        )

    def status(self, row: int) -> str:
        """Return whether a joint descent has figures, and why not."""
        g, seed = self.job.joints[row]
        codes = [int(self.read["solo_status"][self.rows[u, seed, False]]) for u in self.job.groups[g]]
        joint = int(self.read["joint_status"][row])
        if BROKEN in codes or joint == BROKEN:
            return NOT_FINITE
        if any(code not in (LIVE, RESCUED) for code in codes):
            return DEAD if STILL in codes else UNCONVERGED
        return CANCELLED if joint == STILL else OK

    @cached_property
    def names(self) -> list[str]:
        """The names of all figures, whether a descent has them or not."""
        letters = MEMBERS[: self.job.members]
        found = [f"solo_{c}" for c in letters]
        found += [*FLOORED, "second_difference", "second_difference_at", "joint_gain", "gradient_agreement"]
        found += ["territory_divided", "territory_correlation"]
        for c in letters:
            found += [f"joint_{c}", f"retention_{c}", f"self_saturation_{c}"]
            found += [f"crosstalk_{c}_on_{other}" for other in letters if other != c]
        found += [f"{name}_floor_{kind}_{c}" for kind in FLOORS for name in FLOORED for c in letters]
        return found + [f"{name}_{limit}" for limit in ("floor", "ceiling") for name in FLOORED]

    def figures(self, row: int) -> dict[str, float]:
        """Return every figure of one joint descent by name; NaN where undefined."""
        g, seed = self.job.joints[row]
        group, letters = self.job.groups[g], MEMBERS[: self.job.members]
        status = self.status(row)
        best = np.array([self.solo_z(u, u, seed) for u in group])
        found = dict.fromkeys(self.names, float("nan"))
        found |= {f"solo_{c}": float(v) for c, v in zip(letters, best, strict=True)}
        if status in (DEAD, UNCONVERGED, NOT_FINITE):
            return found
        at = [self.units[u] for u in group]
        null = self.read["null_units"][self.starts[seed, False], at].astype(float)
        joint = self.read["joint_units"][row, at].astype(float) - null
        blends = self.read["joint_blend"][row].astype(float) - null
        r, parts = self._r(self.read["joint_A"][row], seed), np.stack([self.solo_r(u, seed) for u in group])
        fractions = np.stack([self.solo_r(u, seed, of="solo_fraction") for u in group])
        d, images = self.joint_d(row), np.stack([self.solo_d(u, seed) for u in group])
        second = interaction.second_difference(
            self._r(self.read["joint_middle"][row], seed), fractions, r, self.read["deviation"]
        )
        angles = self.read["joint_agreement"][row]
        land = interaction.territory(self.maps(row))
        found |= {
            "response_nonlinearity": interaction.response_nonlinearity(r, parts),
            "image_nonlinearity": interaction.image_nonlinearity(d, images),
            "second_difference": second.size,
            "second_difference_at": float("nan") if second.feature is None else float(second.feature),
            "joint_gain": interaction.joint_gain(joint, blends, self.read["joint_weight"][row], best),
            "gradient_agreement": float(np.nanmean(angles)) if np.isfinite(angles).any() else float("nan"),
            "territory_divided": land.divided,
            "territory_correlation": land.correlation,
        }
        for k, (c, unit) in enumerate(zip(letters, group, strict=True)):
            found[f"joint_{c}"] = float(joint[k])
            found[f"retention_{c}"] = interaction.quotient(joint[k], best[k], 0.0)
            found[f"self_saturation_{c}"] = interaction.self_saturation(parts[k], fractions[k], len(group))
            for other, image in zip(letters, group, strict=True):
                if other != c:
                    found[f"crosstalk_{c}_on_{other}"] = interaction.quotient(
                        self.solo_z(unit, image, seed), best[k], 0.0
                    )
        return found | self._floors(group, seed, letters) | self._ceilings(group, seed, r, d)

    def _floors(self, group: Group, seed: int, letters: Sequence[str]) -> dict[str, float]:
        found: dict[str, float] = {}
        for kind in FLOORS:
            both = np.array([self.floor(u, seed, kind) for u in group])
            for k, name in enumerate(FLOORED):
                found |= {f"{name}_floor_{kind}_{c}": float(v) for c, v in zip(letters, both[:, k], strict=True)}
        for name in FLOORED:
            means = [np.mean([found[f"{name}_floor_{kind}_{c}"] for c in letters]) for kind in FLOORS]
            found[f"{name}_floor"] = float(np.max(means))
        return found

    def _ceilings(self, group: Group, seed: int, r: np.ndarray, d: np.ndarray) -> dict[str, float]:
        live = [c for c in self.job.controls(group) if all(self.alive(u, seed) for u in c)]
        values = [
            (
                interaction.response_nonlinearity(r, np.stack([self.solo_r(u, seed) for u in control])),
                interaction.image_nonlinearity(d, np.stack([self.solo_d(u, seed) for u in control])),
            )
            for control in live
        ]
        means = np.mean(values, axis=0) if values else (float("nan"), float("nan"))
        return {f"{name}_ceiling": float(v) for name, v in zip(FLOORED, means, strict=True)}

    def joint_d(self, row: int) -> np.ndarray:
        """Return d of a joint image, 3 x H x W."""
        found = self.image("joint_images", row).astype(np.float64)
        return found - self.image("null_images", self.starts[self.job.joints[row][1], False])

    def maps(self, row: int) -> list[np.ndarray]:
        """Return each member's activation map on a joint image."""
        return [self.image(f"joint_map_{c}", row) for c in MEMBERS[: self.job.members]]

    def table(self, progress: Callable[[int, int], None] | None = None) -> pd.DataFrame:
        """Return all figures of all joint descents: group, seed, status, then a column a figure (NaN: undefined).

        `second_difference_at` is the name of the feature where it is largest.
        """
        records = []
        for row, (g, seed) in enumerate(self.job.joints):
            found: dict[str, Any] = {"group": self.job.labels[g], "seed": seed, "status": self.status(row)}
            found |= self.figures(row)
            where = found["second_difference_at"]
            found["second_difference_at"] = self.job.columns[int(where)] if np.isfinite(where) else ""
            records.append(found)
            if progress is not None and row % 16 == 0:
                progress(row, len(self.job.joints))
        return pd.DataFrame(records)


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Return one row a group: each figure's mean over the seeds that define it, and what the headline rests on.

    Columns besides the figures: `status` ("ok" where any seed has figures), `seeds` (how many), `low` and `high` (95 %
    t-interval of the response nonlinearity over seeds; three or more), `excess` (response nonlinearity less its
    floor, mean over seeds), `p` (of an excess not above 0) and `q` (p under control of the false discovery rate);
    `second_difference_at` is the feature that most seeds name.
    """
    rows = []
    for label, given in table.groupby("group", sort=False):
        ok = given[given["status"] == OK]
        means = given.drop(columns=["group", "seed", "status", "second_difference_at"]).mean()
        status = OK if len(ok) else str(given["status"].mode().iloc[0])
        row: dict[str, Any] = {"group": label, "status": status, "seeds": len(ok)} | means.to_dict()
        named = given["second_difference_at"][given["second_difference_at"] != ""].mode()
        row["second_difference_at"] = str(named.iloc[0]) if len(named) else ""
        shares = given["response_nonlinearity"]
        excess = shares - given["response_nonlinearity_floor"]
        row["low"], row["high"] = correlation.t_interval(shares.tolist()) or (np.nan, np.nan)
        row |= {"excess": excess.mean(), "p": interaction.p_above_zero(excess.tolist())}
        rows.append(row)
    found = pd.DataFrame(rows)
    found["q"] = interaction.q_values(found["p"].to_numpy(dtype=float))
    return found
