"""Dataset examples on the card: shown on request, with escaped names and links; otherwise nothing of them."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image

from featmap.errors import FeatmapError
from featmap.mapping import result
from featmap.mapping.run import similarity
from featmap.optimize.photograph_folder import open_photographs
from featmap.plotting.overlays import FADED, PALE, VEIL, Example
from featmap.report import atlas as pages
from featmap.report import examples
from featmap.report.atlas import atlas
from featmap.runs import integrity
from featmap.runs.progress import Silent
from featmap.runs.store import Run, read_frame
from tests.helpers import planted_photographs as planted
from tests.helpers.browser import Tab, chromium, needs_chromium
from tests.helpers.settings import options

pytestmark = [
    pytest.mark.filterwarnings("ignore::featmap.stats.measures.FewStimuliWarning"),
    pytest.mark.usefixtures("one_thread"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return planted.save_photographs(tmp_path_factory.mktemp("pictures") / "my #1 pictures")


@pytest.fixture(scope="module")
def run(folder: Path, cheap_runs: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "planted"
    settings = options(out=out, size=planted.SIZE, steps=2, rows=4, device="cpu")
    similarity("relu", planted.network(), photographs=folder, **settings)
    return out


@pytest.fixture(scope="module")
def shown(run: Path) -> Path:
    """Page that embeds photographs."""
    return atlas(run, activation_maps=False, embed_photographs=True, out=run.parent / "shown")[0]


@pytest.fixture(scope="module")
def hidden(run: Path) -> Path:
    """Page that embeds none."""
    return atlas(run, activation_maps=False, out=run.parent / "hidden")[0]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as opened:
        yield opened


def element(page: Path, name: str) -> Any:
    match = re.search(rf'<script type="application/json" id="{name}">(.*?)</script>', page.read_text(encoding="utf-8"))
    assert match is not None
    return json.loads(match[1])


def test_a_page_without_photographs_has_no_name_and_no_picture_of_them(run: Path, hidden: Path, shown: Path) -> None:
    text = hidden.read_text(encoding="utf-8")
    data, pictures = element(hidden, "data"), element(shown, "photographs")
    assert data["examples"] == {"embedded": False} and element(hidden, "photographs") == []
    assert data["photographs"]["order"] and 'id="blob-photograph_S"' in text  # the map of photographs names none either
    assert 'id="blob-examples"' not in text and len(pictures) > 0
    for name in (*planted.PLACES, "my #1 pictures", "onerror=alert"):
        assert name not in text and json.dumps(name)[1:-1] not in text
    assert not any(uri.partition(",")[2] in text for uri in pictures)


def test_a_page_with_photographs_holds_the_boxes_of_the_table(run: Path, folder: Path, shown: Path) -> None:
    data, pictures = element(shown, "data"), element(shown, "photographs")
    found, table = data["examples"], read_frame(run, "examples")
    photographs = open_photographs(folder)
    for name, row in zip(data["features"]["name"], found["rows"], strict=True):
        own = table[table.index == name]
        assert [found["names"][one["photograph"]] for one in row] == own["photograph"].tolist()
        assert [one["box"] for one in row] == own[["top", "bottom", "left", "right"]].to_numpy().tolist()
        for one, label in zip(row, own["photograph"], strict=True):
            top, bottom, left, right = found["frames"][one["picture"]]
            with Image.open(io.BytesIO(base64.b64decode(pictures[one["picture"]].partition(",")[2]))) as picture:
                pixels = np.asarray(picture.convert("RGB")) / 255
            image = photographs.read([photographs.labels.index(label)], planted.SIZE)[0].numpy()
            np.testing.assert_allclose(pixels.transpose(2, 0, 1), image[:, top:bottom, left:right], atol=1 / 255)
    for name, link in zip(found["names"], found["links"], strict=True):
        assert (
            re.fullmatch(r"[\w./%-]+", link) and (shown.parent / unquote(link)).resolve() == (folder / name).resolve()
        )
    assert "<img src=x" not in shown.read_text(encoding="utf-8")


@needs_chromium
@pytest.mark.slow
def test_the_card_draws_what_the_sheets_show(browser: Any, run: Path, folder: Path, shown: Path) -> None:
    tab = Tab(browser, shown, f"#{planted.DETECTOR}")
    page = tab.ready()
    tab.until("document.querySelectorAll('#card ul.examples canvas[data-drawn]').length === 12")
    assert page.locator("#card ul.examples").count() == 2
    best = page.locator("#card ul.examples").first.locator("li")
    assert best.locator("a").all_text_contents() == planted.ranked_names()[:9]
    assert planted.HOSTILE in planted.ranked_names()[:9]
    assert page.locator("img[src=x]").count() == 0
    texts = page.locator("#card ul.examples canvas").evaluate_all("all => all.map((one) => one.ariaLabel)")
    assert texts[0].startswith(f"best photograph 1: {planted.ranked_names()[0]}, response ")
    found = page.evaluate(
        """() => [...document.querySelectorAll('#card ul.examples canvas')].map((c) =>
        c.toDataURL('image/png').split(',')[1])"""
    )
    table, maps = read_frame(run, "examples"), result.read_example_maps(run)
    photographs = open_photographs(folder)
    at = np.flatnonzero(table.index == planted.DETECTOR)
    for png, k in zip(found, at, strict=True):
        row = table.iloc[k]
        with Image.open(io.BytesIO(base64.b64decode(png))) as picture:
            drawn = np.asarray(picture.convert("RGB"))
        height, width = drawn.shape[:2]
        image = photographs.read([photographs.labels.index(row["photograph"])], planted.SIZE)[0].numpy()
        one = Example(image, maps["activation"].values[k], maps["y"].values, maps["x"].values)
        box = (int(row["top"]), int(row["bottom"]), int(row["left"]), int(row["right"]))
        expected = one.draw(box, max(height, width))
        assert expected.shape == drawn.shape
        # both scale a few pixels up, each in its own way
        assert np.abs(drawn - expected.astype(float)).mean() < 12
        assert (drawn[height // 2, width // 2] != drawn[2, 2]).any()
    tab.keep("examples")
    silent = Tab(browser, shown, f"#{planted.SILENT}")
    assert "responds to all photographs alike" in str(silent.ready().locator("#card").text_content())
    silent.close()
    tab.close()


@needs_chromium
@pytest.mark.slow
def test_the_card_says_how_photographs_are_included(browser: Any, hidden: Path) -> None:
    tab = Tab(browser, hidden, f"#{planted.DETECTOR}")
    text = str(tab.ready().locator("#card").text_content())
    assert "featmap atlas RUN --embed-photographs" in text and "can be shared" in text
    assert tab.page.locator("#card canvas[role=img]").count() == 0
    tab.keep("examples-left-out")
    tab.close()


def test_the_script_fades_as_the_sheets_do() -> None:
    text = (Path(pages.__file__).parent / "assets" / "examples.js").read_text(encoding="utf-8")
    assert f"pale: {PALE}, faded: {FADED}, veil: {VEIL}" in text


def test_each_photograph_is_read_once_for_all_its_parts() -> None:
    names = [f"{k % 20:02d}.png" for k in range(90)]
    frames = np.array([[0, 4, k % 4, 4 + k % 4] for k in range(90)])
    images = {name: np.random.default_rng(k).random((3, 8, 8)) for k, name in enumerate(sorted(set(names)))}
    read = list[str]()

    def read_images(wanted: Sequence[str]) -> np.ndarray:
        read.extend(wanted)
        return np.stack([images[name] for name in wanted])

    passed_on = dict[int, np.ndarray]()
    pictures, _ = examples._encode(names, frames, read_images, 10**6, passed_on.__setitem__, Silent())
    assert sorted(passed_on) == list(range(90))
    assert sorted(read[-20:]) == sorted(images) and len(read) <= 20 + examples.SAMPLE
    for k, uri in enumerate(pictures):
        with Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) as picture:
            pixels = np.asarray(picture.convert("RGB")).transpose(2, 0, 1) / 255
        np.testing.assert_allclose(pixels, images[names[k]][:, 0:4, k % 4 : 4 + k % 4], atol=1 / 255)


def test_a_page_is_written_again_where_the_choice_differs(run: Path) -> None:
    atlas(run, activation_maps=False, embed_photographs=True)
    assert pages.is_current(Run.read(run), True) and not pages.is_current(Run.read(run))
    atlas(run, activation_maps=False)
    assert pages.is_current(Run.read(run)) and not pages.is_current(Run.read(run), True)
    assert integrity.inspect(run).faults == []


def test_photographs_that_changed_or_are_gone_are_named(run: Path, folder: Path, tmp_path: Path) -> None:
    moved = tmp_path / "pictures"
    shutil.copytree(folder, moved)
    copied = tmp_path / "run"
    shutil.copytree(run, copied)
    again = Run.read(copied)
    again.manifest.photograph_folder = str(moved)
    again.save()
    best = planted.ranked_names()[0]
    Image.new("RGB", (planted.SIZE,) * 2).save(moved / best)
    call = {"activation_maps": False, "embed_photographs": True}
    with pytest.raises(FeatmapError, match=f"photograph '{best}' of .* has changed since the run"):
        atlas(copied, **call)
    (moved / best).unlink()
    with pytest.raises(FeatmapError, match=f"photograph '{best}' is not in .* any more"):
        atlas(copied, **call)
    shutil.rmtree(moved)
    with pytest.raises(FeatmapError, match="there is no such folder"):
        atlas(copied, **call)
    again.manifest.photograph_folder = None
    again.save()
    with pytest.raises(FeatmapError, match="has no photographs to embed"):
        atlas(copied, **call)


def test_photographs_of_a_zip_are_embedded_without_links(run: Path, folder: Path, tmp_path: Path) -> None:
    path = Path(shutil.make_archive(str(tmp_path / "pictures"), "zip", folder))
    copied = tmp_path / "run"
    shutil.copytree(run, copied)
    again = Run.read(copied)
    again.manifest.photograph_folder = str(path)
    again.save()
    (page,) = atlas(copied, activation_maps=False, embed_photographs=True)
    found = element(page, "data")["examples"]
    assert planted.HOSTILE in found["names"] and set(found["links"]) == {None}
