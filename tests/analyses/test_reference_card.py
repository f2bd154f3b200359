"""The card of trained weights: made of what is there, refused for anything else; the weights in data/."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from analyses import reference_card
from analyses.support.labelled_images import read_labelled_images
from analyses.train_reference import Phase, Settings, Training, finish, run_training
from featmap import FeatmapError, load
from featmap.network.loading import IMAGENET_MEAN, IMAGENET_STD, find_data_folder
from tests.helpers import labels
from tests.helpers.labels import CLASSES, EACH

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return labels.write(tmp_path_factory.mktemp("pictures"))


@pytest.fixture
def delivered(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a GoogLeNet for three classes, just begun, with its record and checkpoint."""
    one = Training(read_labelled_images([pictures]), (Phase(1, 32),), Settings(rows=12), CPU)
    run_training(one, tmp_path / "weights.safetensors.checkpoint", 1e9, None)
    one.origin["plans"] = [[0, "1x32"]]
    finish(one, tmp_path / "weights.safetensors")
    monkeypatch.setattr(reference_card, "draw_sheet", lambda weights, path: path.write_bytes(weights.read_bytes()[:9]))
    monkeypatch.setattr(reference_card, "SIZES", (32, 40))
    return tmp_path


def test_a_card_is_built_from_the_stored_values(pictures: Path, delivered: Path) -> None:
    weights, data = delivered / "weights.safetensors", delivered / "data"
    reference_card.main(weights, pictures, delivered / "weights.safetensors.checkpoint", data)
    card, page = json.loads((data / "card.json").read_text()), (data / "CARD.md").read_text(encoding="utf-8")
    assert (data / weights.name).read_bytes() == weights.read_bytes()
    assert card["sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest() and card["sha256"] in page
    assert card["bytes"] == weights.stat().st_size and card["classes"] == list(CLASSES)
    assert card["validation_images"] == 15 and "on 15 validation images" in page and "1 epochs at 32 px" in page
    network = load("reference", weights)
    for size in (32, 40):  # a slower second implementation of the accuracy
        right = 0
        for k, path in enumerate(sorted(pictures.rglob("*.png"))):
            pixels = np.asarray(Image.open(path).convert("RGB").resize((size, size), Image.Resampling.BILINEAR))
            given = (pixels / 255 - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD)
            with torch.inference_mode():
                network.module.eval()
                scores = network.module(torch.tensor(given.transpose(2, 0, 1)[None], dtype=torch.float32))
            right += int(scores.argmax() == k // EACH)
        assert card["top1"][str(size)] == round(right / 15, 4) and f"{100 * right / 15:.1f} %" in page
        assert card["top5"][str(size)] == 1
    assert set(card["top1_float32"]) == {"32", "40"}
    reference_card.main(weights, pictures, None, data)  # the same card again
    assert json.loads((data / "card.json").read_text())["training"] == card["training"]


def test_a_card_of_something_else_is_refused(pictures: Path, delivered: Path) -> None:
    weights, data, record = (
        delivered / "weights.safetensors",
        delivered / "data",
        delivered / "weights.safetensors.json",
    )
    stored = json.loads(record.read_text())
    for change, message in (
        ({"sha256": "0" * 64}, "is not the file that .* describes"),
        ({"classes": ["n01", "n02", "n04"]}, "no images, or classes that reference lacks"),
        ({"classes": ["n01", "n02"]}, "distinguish 3 classes, their record lists 2"),
        ({"init": {"file": "x", "sha256": "1" * 64}}, "the training started from weights 111111111111"),
    ):
        record.write_text(json.dumps(stored | change))
        with pytest.raises(FeatmapError, match=message):
            reference_card.main(weights, pictures, None, data)
    record.write_text(json.dumps(stored))
    held = torch.load(delivered / "weights.safetensors.checkpoint", weights_only=True)
    held["average"]["module.fc.bias"] += 1
    torch.save(held, delivered / "other.checkpoint")
    with pytest.raises(FeatmapError, match="holds other weights than"):
        reference_card.main(weights, pictures, delivered / "other.checkpoint", data)
    assert not (data / "card.json").exists()


def test_the_bundled_weights_are_those_of_their_card() -> None:
    card = json.loads((find_data_folder() / "card.json").read_text(encoding="utf-8"))
    held = (find_data_folder() / card["file"]).read_bytes()
    assert (len(held), hashlib.sha256(held).hexdigest()) == (card["bytes"], card["sha256"])
    assert len(held) < 14e6
    stored = load_file(find_data_folder() / card["file"])
    assert {v.dtype for v in stored.values() if v.dim() > 1} == {torch.float16}
    page = (find_data_folder() / "CARD.md").read_text(encoding="utf-8")
    assert card["sha256"] in page and (find_data_folder() / "features.png").is_file()
    for size in ("64", "96", "128"):
        assert f"{100 * card['top1'][size]:.1f} % and {100 * card['top5'][size]:.1f} % at {size} px" in page
    assert card["classes"] == sorted(set(card["classes"]))
