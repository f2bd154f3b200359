"""The pictures of the front page: the atlas is photographed with a feature's card and a pair under the mouse."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from analyses import showcase
from featmap import FeatmapError
from featmap.mapping.run import similarity
from featmap.report.atlas import atlas
from tests.helpers import tiny
from tests.helpers.browser import needs_chromium
from tests.helpers.settings import options


@needs_chromium
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::featmap.stats.measures.FewStimuliWarning")
def test_a_picture_of_the_atlas_shows_card_and_pair(tmp_path: Path) -> None:
    similarity(
        "features", tiny.planted(), **options(features="0-8,10", out=tmp_path / "run", size=16, steps=6, device="cpu")
    )
    page, one, two = tmp_path / "run" / "atlas.html", tmp_path / "one.png", tmp_path / "two.png"
    atlas(tmp_path / "run", activation_maps=False)
    assert showcase.capture_atlas(page, one, "#features:4", (0, 1))
    assert showcase.capture_atlas(page, two, "#features:5", (2, 3))
    with Image.open(one) as picture:
        assert picture.size == (1280, 900)
    assert one.read_bytes() != two.read_bytes()


def test_without_a_browser_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(showcase.shutil, "which", lambda _: None)
    assert not showcase.capture_atlas(tmp_path / "atlas.html", tmp_path / "one.png")
    assert not list(tmp_path.iterdir())


def test_the_picture_of_a_network_that_is_not_part_of_the_project_is_kept_or_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = list[tuple[str, ...]]()

    def run_command(name: str, command: tuple[str, ...], weights: str, runs: Path) -> Path:
        asked.append(command)
        folder = runs / f"{name}-{len(asked)}"
        folder.mkdir(parents=True)
        for picture in (*showcase.PICTURES.values(), "features.png"):
            Image.new("RGB", (20, 10), (len(asked), 0, 0)).save(folder / picture)
        (folder / "manifest.json").write_text(json.dumps({"identity": {"model": {"sha256": "abc"}}}))
        return folder

    monkeypatch.setattr(showcase, "run_command", run_command)
    monkeypatch.setattr(showcase, "capture_atlas", lambda page, picture: False)
    showcase.main(tmp_path / "runs", tmp_path / "pictures", "--model 'my nets:make' --input-size 224")
    assert asked[-1] == (*showcase.IMAGENET, "--model", "my nets:make", "--input-size", "224")
    first = json.loads((tmp_path / "pictures" / "pictures.json").read_text())["pictures"]
    with Image.open(tmp_path / "pictures" / "googlenet.png") as picture:
        assert picture.size == (18, 9) and picture.getpixel((9, 4)) == (5, 0, 0)
    assert first["googlenet"]["weights"] == "abc" and "my nets" not in first["googlenet"]["command"]
    showcase.main(tmp_path / "runs", tmp_path / "pictures")
    again = json.loads((tmp_path / "pictures" / "pictures.json").read_text())["pictures"]
    assert again["googlenet"] == first["googlenet"] and again["heatmap"] != first["heatmap"]
    with Image.open(tmp_path / "pictures" / "googlenet.png") as picture:
        assert picture.getpixel((9, 4)) == (5, 0, 0)


def test_one_picture_is_made_and_the_others_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[str]()

    def run_command(name: str, command: tuple[str, ...], weights: str, runs: Path) -> Path:
        asked.append(name)
        runs.mkdir(exist_ok=True)
        Image.new("RGB", (20, 10)).save(runs / "panel.png")
        return runs

    monkeypatch.setattr(showcase, "run_command", run_command)
    kept = {"heatmap": {"command": "featmap similarity", "sha256": "abc"}}
    (tmp_path / "pictures").mkdir()
    store = tmp_path / "pictures" / "pictures.json"
    store.write_text(json.dumps({"weights": "", "pictures": kept}))
    showcase.main(tmp_path / "runs", tmp_path / "pictures", only="interaction")
    known = json.loads(store.read_text())["pictures"]
    assert asked == ["interaction"] and known["heatmap"] == kept["heatmap"] and set(known) == {"heatmap", "interaction"}
    assert {p.name for p in (tmp_path / "pictures").iterdir()} == {"interaction.png", "pictures.json"}
    with pytest.raises(FeatmapError, match="only 'panel': there is no such picture; give one of heatmap"):
        showcase.main(tmp_path / "runs", tmp_path / "pictures", only="panel")
