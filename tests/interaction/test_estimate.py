"""The estimate of joint descents."""

from __future__ import annotations

from pathlib import Path

import pytest

from featmap.interaction import run as estimate
from tests.helpers import networks
from tests.interaction.test_job import job_of

pytestmark = pytest.mark.usefixtures("one_thread")


def test_responses_and_the_start_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = job_of(["conv3:0", "conv3:1"], networks.linear_network(), size=16, steps=2, rows=4, seeds=2)
    monkeypatch.setattr(estimate, "estimate_seconds", lambda *_: 100.0)
    monkeypatch.setattr(estimate, "probe_seconds", lambda _, rows: 0.5 * rows)
    monkeypatch.setattr(estimate, "start_seconds", lambda: 3.0)
    found = estimate.estimate_joint(job, tmp_path)
    # two joint images: each is shown, with 21 blends of the two solo images beside it
    assert found.start == 3.0 and found.seconds > 100 + 0.5 * 2 * (1 + 21)


def test_joint_batches_weigh_their_blends() -> None:
    job = job_of(["conv3:0", "conv3:1"], networks.linear_network(), size=16, steps=2, rows=4, seeds=2)
    descents, statistics, _ = estimate.joint_parts(job)
    solo, joint = descents.work[0], descents.work[-1]
    # 4 passes beside two steps, or 6 and those of 21 blends; a step takes three passes
    assert joint / solo == pytest.approx((2 + 27 / 3) / (2 + 4 / 3))
    assert len(descents.work) == -(-len(job.solos) // 4) + 1 and set(descents.work) == {solo, joint}
    assert statistics.seconds > 0
