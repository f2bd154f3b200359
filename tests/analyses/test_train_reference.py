"""The training of the bundled network: interrupted, killed, refused; what it stores and reads."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image
from torch import nn

from analyses import train_reference
from analyses.support.labelled_images import read_labelled_images
from analyses.train_reference import Phase, Settings, Training, finish, read_plan, run_training
from featmap import FeatmapError, load
from tests.helpers import labels
from tests.helpers.labels import CLASSES, EACH

pytestmark = pytest.mark.usefixtures("one_thread")
ROOT = Path(__file__).resolve().parent.parent.parent
CPU, PLAN = torch.device("cpu"), (Phase(1, 32), Phase(1, 40))


def tiny(classes: int, init: bool) -> nn.Module:
    """A network with all that GoogLeNet has and a checkpoint must hold: batch statistics, dropout, a classifier."""
    assert init
    layers = OrderedDict(
        conv=nn.Conv2d(3, 4, 3, 2), norm=nn.BatchNorm2d(4), relu=nn.ReLU(), pool=nn.AdaptiveAvgPool2d(2)
    )
    return nn.Sequential(layers | OrderedDict(flat=nn.Flatten(), drop=nn.Dropout(0.3), fc=nn.Linear(16, classes)))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return labels.write(tmp_path_factory.mktemp("pictures"))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_reference, "build_googlenet", tiny)


def training(pictures: Path, **settings: Any) -> Training:
    return Training(read_labelled_images([pictures]), PLAN, Settings(rows=4, **settings), CPU)


def trained(one: Training, folder: Path) -> bytes:
    """The stored weights of a training that makes all the steps that are left."""
    folder.mkdir(exist_ok=True)
    run_training(one, folder / "checkpoint", 1e9, None)
    finish(one, folder / "weights.safetensors")
    return (folder / "weights.safetensors").read_bytes()


class Killed(BaseException):
    """What nothing catches, as nothing catches SIGKILL."""


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(("end", "every"), [(KeyboardInterrupt, 1e9), (Killed, -1.0)])
@pytest.mark.parametrize("at", [1, 3, 5])
def test_a_stopped_training_resumes_to_the_same_bits(
    pictures: Path, tmp_path: Path, at: int, end: type[BaseException], every: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = training(pictures)
    expected = trained(whole, tmp_path / "whole")
    stopped, step = training(pictures), Training.advance
    assert stopped.total == 6  # 15 images in batches of 4, the rest of an epoch left out

    def advance(self: Training) -> float:
        if self.step == at:
            raise end
        return step(self)

    with monkeypatch.context() as patch, pytest.raises(end):
        patch.setattr(Training, "advance", advance)
        run_training(stopped, tmp_path / "checkpoint", every, None)
    later = training(pictures)
    later.resume(tmp_path / "checkpoint")
    assert later.step == at
    assert trained(later, tmp_path / "later") == expected
    assert [row["epoch"] for row in later.history] == [1, 2] and later.history[-1]["size"] == 40


@pytest.mark.usefixtures("small")
@pytest.mark.skipif(os.name == "nt", reason="no signal can be raised there as a terminal does")
@pytest.mark.parametrize("moment", ["backward", "average", "looking"])
def test_ctrl_c_in_the_middle_of_a_step_finishes_it(
    pictures: Path, tmp_path: Path, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, images = training(pictures), read_labelled_images([pictures])
    run_training(whole, tmp_path / "whole.checkpoint", 1e9, images)
    finish(whole, tmp_path / "whole.safetensors")
    moments: dict[str, tuple[Any, str]] = {
        "backward": (torch.Tensor, "backward"),
        "average": (train_reference.AveragedModel, "update_parameters"),
        "looking": (train_reference, "accuracy"),
    }
    interrupted, where = training(pictures), moments[moment]
    original, asked = getattr(*where), []

    def pressed(*given: Any, **more: Any) -> Any:
        found = original(*given, **more)
        if interrupted.step == (3 if moment == "looking" else 1) and not asked:
            asked.append(signal.raise_signal(signal.SIGINT))
        return found

    monkeypatch.setattr(signal, "getsignal", lambda _: signal.default_int_handler)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(*where, pressed)
        run_training(interrupted, tmp_path / "checkpoint", 1e9, images)
    assert len(asked) == 1 and interrupted.step == (3 if moment == "looking" else 2)
    later = training(pictures)
    later.resume(tmp_path / "checkpoint")
    run_training(later, tmp_path / "checkpoint", 1e9, images)
    finish(later, tmp_path / "later.safetensors")
    assert (tmp_path / "later.safetensors").read_bytes() == (tmp_path / "whole.safetensors").read_bytes()
    assert later.history == whole.history and {"loss", "top1"} <= later.history[0].keys()


@pytest.mark.usefixtures("small")
def test_a_training_that_diverged_ends_and_writes_nothing(pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(FeatmapError, match=r"the loss of step \d+ is nan: take a smaller --rate than 1000"):
        train_reference.main([pictures], tmp_path / "w.safetensors", plan="9x32", rate=1e12, every=0, **GIVEN)
    assert not (tmp_path / "w.safetensors").exists()


PROGRAM = """
import sys, time
sys.path.insert(0, {tests!r})
import torch
torch.set_num_threads(1)
from tests.analyses import test_train_reference
from analyses import train_reference
from pathlib import Path
train_reference.build_googlenet, step = test_train_reference.tiny, train_reference.Training.advance
train_reference.Training.advance = lambda self: (time.sleep(0.25), step(self))[1]
given = dict(rows=4, precision="float32", device="cpu")
train_reference.main([Path(sys.argv[1])], Path(sys.argv[2]), plan={plan!r}, every=0, **given)
"""
GIVEN: dict[str, Any] = {"rows": 4, "precision": "float32", "device": "cpu"}


@pytest.mark.usefixtures("small")
@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_a_killed_training_is_resumed(pictures: Path, tmp_path: Path) -> None:
    plan, out, whole = "10x32", tmp_path / "killed.safetensors", tmp_path / "whole.safetensors"
    program = PROGRAM.format(tests=str(ROOT / "tests"), plan=plan)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-c", program, str(pictures), str(out)], env=environment, cwd=tmp_path)
    checkpoint, begun = out.with_name(out.name + ".checkpoint"), time.monotonic()
    while not checkpoint.is_file() and process.poll() is None and time.monotonic() - begun < 300:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL and checkpoint.is_file() and not out.exists()
    assert 0 < torch.load(checkpoint, weights_only=True)["step"] < 30
    for path in (out, whole):
        train_reference.main([pictures], path, plan=plan, **GIVEN)
    assert out.read_bytes() == whole.read_bytes()
    record = json.loads(out.with_name(out.name + ".json").read_text(encoding="utf-8"))
    assert record["plans"] == [[0, plan]] and len(record["history"]) == 10
    assert record["sha256"] == hashlib.sha256(out.read_bytes()).hexdigest()


@pytest.mark.usefixtures("small")
def test_a_plan_may_be_changed_on_the_way(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, step = tmp_path / "weights.safetensors", Training.advance

    def advance(self: Training) -> float:
        if self.step == 4:
            raise KeyboardInterrupt
        return step(self)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Training, "advance", advance)
        train_reference.main([pictures], out, plan="3x32", **GIVEN)
    train_reference.main([pictures], out, plan="1x32,1x40", **GIVEN)
    record = json.loads(out.with_name(out.name + ".json").read_text(encoding="utf-8"))
    assert record["plans"] == [[0, "3x32"], [4, "1x32,1x40"]]
    assert [row["size"] for row in record["history"]] == [32, 40]


@pytest.mark.usefixtures("small")
def test_a_checkpoint_of_something_else_is_refused(pictures: Path, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    training(pictures).save(path)
    with pytest.raises(FeatmapError, match=r"made with seed 0, not 3; use that, or delete"):
        training(pictures, seed=3).resume(path)
    with pytest.raises(FeatmapError, match="made with rate"):
        training(pictures, rate=0.1).resume(path)
    other = tmp_path / "other"
    shutil.copytree(pictures, other)
    Image.new("RGB", (36, 36)).save(other / CLASSES[0] / "images" / "0.png")
    with pytest.raises(FeatmapError, match="made with data"):
        training(other).resume(path)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(FeatmapError, match=r"cannot be read .* delete it to start again"):
        training(pictures).resume(path)


def test_a_plan_is_read_as_epochs_of_a_size() -> None:
    assert read_plan("4x48, 2x64") == (Phase(4, 48), Phase(2, 64))
    assert train_reference.sizes(read_plan("1x48,2x64")) == [48, 64, 64]


@pytest.mark.parametrize("text", ["", "4", "4x", "x48", "0x48", "4x31", "4x48,", "-1x48", "4*48", "1.5x48"])
def test_other_plans_are_refused(text: str) -> None:
    with pytest.raises(FeatmapError, match="is not a phase; give epochs x pixels"):
        read_plan(text)


def test_the_rate_rises_stays_and_falls() -> None:
    total, fall = 10_000, 0.7
    shares = np.array([train_reference.rate_share(k, total, fall) for k in range(total)])
    assert shares[:500] == pytest.approx(np.arange(1, 501) / 501)
    assert (shares[500:3001] == 1).all()
    assert shares[3000:] == pytest.approx(np.arange(7000, 0, -1) / 7000)
    short = [train_reference.rate_share(k, 10, 1.0) for k in range(10)]
    assert short[0] == 0.5 and short[1:] == pytest.approx(np.arange(9, 0, -1) / 10)


@pytest.mark.usefixtures("small")
def test_step_lengths_follow_the_schedule_after_a_stop(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths, step = list[float](), torch.optim.SGD.step

    def noted(self: torch.optim.SGD, *given: Any) -> Any:
        lengths.extend({group["lr"] for group in self.param_groups})
        return step(self, *given)

    one = training(pictures, rate=0.05)
    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.SGD, "step", noted)
        for _ in range(2):
            one.advance()
        one.save(tmp_path / "checkpoint")
        later = training(pictures, rate=0.05)
        later.resume(tmp_path / "checkpoint")
        while later.step < later.total:
            later.advance()
    assert lengths == [0.05 * train_reference.rate_share(k, 6, 0.7) for k in range(6)]


def test_batches_depend_on_seed_and_epoch_alone() -> None:
    first, second = (train_reference.epoch_order(0, epoch, 50) for epoch in (0, 1))
    assert sorted(first) == sorted(second) == list(range(50)) and not np.array_equal(first, second)
    assert np.array_equal(first, train_reference.epoch_order(0, 0, 50))
    state = torch.get_rng_state()
    with train_reference.seeded((0, 1, 2), CPU):
        drawn = torch.rand(3)
    with train_reference.seeded((0, 1, 2), CPU):
        assert torch.equal(drawn, torch.rand(3))
    assert torch.equal(state, torch.get_rng_state())


def test_what_is_stored_loads_as_the_bundled_network(pictures: Path, tmp_path: Path) -> None:
    one = Training(read_labelled_images([pictures]), (Phase(1, 32),), Settings(rows=12), CPU)
    out = tmp_path / "weights.safetensors"
    trained(one, tmp_path)
    record = json.loads((tmp_path / "weights.safetensors.json").read_text(encoding="utf-8"))
    assert (record["sha256"], record["bytes"]) == (hashlib.sha256(out.read_bytes()).hexdigest(), out.stat().st_size)
    assert record["classes"] == list(CLASSES) and record["images"] == 15
    network = load("reference", out)
    assert network.sha256 == record["sha256"]
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    one.average.module.eval()
    with torch.inference_mode():
        expected, given = one.average.module(images), network.module(images)
    assert given.shape == (2, 3)
    assert torch.allclose(given, expected, atol=1e-2 * float(expected.abs().max()))  # weights in float16


def test_folders_and_zips_are_read_alike(pictures: Path, tmp_path: Path) -> None:
    folder = read_labelled_images([pictures])
    assert folder.classes == list(CLASSES) and folder.images.shape == (15, 3, 36, 36)
    assert folder.labels.tolist() == [0] * EACH + [1] * EACH + [2] * EACH
    for names, zip_name in ((CLASSES[:2], "a.zip"), (CLASSES[2:], "b.zip")):
        with zipfile.ZipFile(tmp_path / zip_name, "w") as archive:
            for path in sorted(p for n in names for p in (pictures / n).rglob("*.png")):
                archive.write(path, path.relative_to(pictures))
    zipped, both = read_labelled_images([tmp_path / "a.zip", tmp_path / "b.zip"]), read_labelled_images([tmp_path])
    assert zipped.digest == both.digest == folder.digest
    assert torch.equal(zipped.images, folder.images)


def test_images_that_cannot_be_trained_on_are_refused(pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(FeatmapError, match="no pictures there"):
        read_labelled_images([tmp_path / "empty"])
    with pytest.raises(FeatmapError, match="neither a folder nor a zip"):
        read_labelled_images([tmp_path / "nothing"])
    with pytest.raises(FeatmapError, match="class 'n03' is unknown"):
        read_labelled_images([pictures], CLASSES[:2])
    broken = tmp_path / "broken" / "n01"
    shutil.copytree(pictures / "n01" / "images", broken)
    Image.new("RGB", (36, 35)).save(broken / "2.png")
    with pytest.raises(FeatmapError, match=r"\(35, 36\) pixels, others \(36, 36\)"):
        read_labelled_images([broken.parent])
    (broken / "2.png").write_bytes(b"no picture")
    with pytest.raises(FeatmapError, match="cannot be read"):
        read_labelled_images([broken.parent])
    with pytest.raises(FeatmapError, match="15 images are fewer than a batch of 128"):
        Training(read_labelled_images([pictures]), PLAN, Settings(), CPU)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "half"}, "precision 'half'"),
        ({"rate": 0.0}, "rate is above 0"),
        ({"fall": 1.5}, r"fall in \(0, 1\]"),
    ],
)
def test_settings_out_of_range_are_refused(
    options: dict[str, Any], message: str, pictures: Path, tmp_path: Path
) -> None:
    with pytest.raises(FeatmapError, match=message):
        train_reference.main([pictures], tmp_path / "weights.safetensors", device="cpu", **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("small")
def test_unsuitable_data_and_checkpoints_are_refused(pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "weights.safetensors"
    shutil.copytree(pictures, tmp_path / "sets" / "train")
    shutil.copytree(pictures / "n01" / "images", tmp_path / "sets" / "val" / "images")
    with pytest.raises(FeatmapError, match="'val' is a set of images, not a class"):
        train_reference.main([tmp_path / "sets"], out, plan="1x32", **GIVEN)
    with pytest.raises(FeatmapError, match="15 images of --validation are among --data"):
        train_reference.main([pictures], out, plan="1x32", validation=pictures, **GIVEN)
    one = training(pictures)
    one.advance()
    one.save(tmp_path / "weights.safetensors.checkpoint")
    finish(one, tmp_path / "other.safetensors")
    with pytest.raises(FeatmapError, match="started from other weights than"):
        train_reference.main([pictures], out, plan="1x32", init=tmp_path / "other.safetensors", **GIVEN)
    one.step = 5
    one.save(tmp_path / "weights.safetensors.checkpoint")
    with pytest.raises(FeatmapError, match=r"has 3 steps, .* has 5: give a longer plan"):
        train_reference.main([pictures], out, plan="1x32", **GIVEN)
    with FileLock(tmp_path / "weights.safetensors.lock"), pytest.raises(FeatmapError, match="another process trains"):
        train_reference.main([pictures], out, plan="2x32", **GIVEN)
    (tmp_path / "weights.safetensors.checkpoint").write_bytes(b"no checkpoint")
    with pytest.raises(FeatmapError, match=r"cannot be read .* delete it"):
        train_reference.main([pictures], out, plan="2x32", **GIVEN)
