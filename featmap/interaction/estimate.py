"""Estimate the time, memory and disk that a job of joint descents takes."""

from __future__ import annotations

from pathlib import Path

from featmap.interaction.job import PINK_IMAGES, JointJob, JointUnit
from featmap.interaction.photographs import PhotographJointJob
from featmap.optimize.objective import Objective
from featmap.runs import lifecycle
from featmap.runs.engine import AnyUnit
from featmap.runs.estimate import (
    Estimate,
    Part,
    descents,
    estimate_process_memory,
    estimate_seconds,
    later_seconds,
    part,
    probe_seconds,
    start_seconds,
)
from featmap.stats.interaction import simplex_lattice

SOLO_PASSES, JOINT_PASSES = 4, 5
"""Images that the untouched network is shown for each descent: the result, the null image and mixtures; those of the
blends of solo images come on top."""


def joint_parts(job: JointJob) -> list[Part]:
    """List the parts of a run of joint descents, in their order.

    Parameters
    ----------
    job : JointJob
        The checked job.

    Returns
    -------
    list of Part
        Descents, statistics, and the report of a group or of pairs.
    """

    def passes(unit: AnyUnit) -> float:
        blends = len(simplex_lattice(job.members))
        return JOINT_PASSES + blends if isinstance(unit, JointUnit) and unit.stage == "joint" else SOLO_PASSES

    report = part("matrices", len(job.groups)) if job.is_pairs else part("panel", job.members)
    return [descents(job, passes), part("statistics", len(job.joints)), report]


def estimate_joint(job: JointJob, folder: Path) -> Estimate:
    """Estimate a joint job from a few steps of its batches at each size.

    Parameters
    ----------
    job : JointJob
        The checked job.
    folder : Path
        Run folder that it would get; nothing is written.

    Returns
    -------
    Estimate
        Time, memory and disk.
    """
    rows, started = job.recipe.rows, start_seconds()
    solos: dict[str, list[Objective]] = {}
    for solo in job.solos:
        solos.setdefault(solo.unit.layer, []).append(Objective(((1.0, solo.unit),)))
    joints = [Objective(tuple((1.0, u) for u in job.groups[g])) for g, _ in job.joints]
    batches = [(objectives, -(-len(objectives) // rows)) for objectives in (*solos.values(), joints)]
    shown = PINK_IMAGES + len(job.starts) + SOLO_PASSES * len(job.solos)
    shown += (JOINT_PASSES + len(simplex_lattice(job.members))) * len(job.joints)
    shown += job.shown_photographs if isinstance(job, PhotographJointJob) else 0
    return Estimate(
        estimate_seconds(job, batches) + -(-shown // rows) * probe_seconds(job, rows),
        estimate_process_memory(job),
        int(1.1 * job.array_bytes),
        lifecycle.free_space(folder),
        started,
        later_seconds(joint_parts(job)),
    )
