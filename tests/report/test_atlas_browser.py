"""The atlas as a reader has it: opened in Chromium with the network off."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pandas as pd
import pytest

from featmap.mapping.run import similarity
from featmap.plotting import display
from featmap.report.atlas import atlas
from featmap.runs.store import open_arrays
from tests.helpers import tiny
from tests.helpers.browser import Tab, chromium, needs_chromium, read_pair
from tests.helpers.settings import options

pytestmark = [
    needs_chromium,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::featmap.stats.measures.FewStimuliWarning"),
]
FAST: dict[str, Any] = {"size": 16, "steps": 6, "rows": 4, "device": "cpu"}
FRAMES = {"coactivation": "coactivation", "raw": "activations", "relative": "relative", "selective": "selective"}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as opened:
        yield opened


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of twelve features in pairs of copies, ten of them shown, all of them stimuli."""
    folder = tmp_path_factory.mktemp("atlas") / "planted"
    similarity("features", tiny.planted(), **options(features="0-8,10", out=folder, **FAST))
    atlas(folder, activation_maps=False)
    return folder


@pytest.fixture(scope="module")
def sick(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("atlas") / "sick"
    similarity("relu", tiny.sick(), **options(out=folder, **FAST))
    atlas(folder)
    return folder


@pytest.fixture
def tab(browser: Any, run: Path) -> Iterator[Tab]:
    opened = Tab(browser, run / "atlas.html")
    opened.ready()
    yield opened
    opened.close()


def agrees(text: str, value: Any) -> bool:
    """Check whether a text is the value to three significant digits, or "undefined"."""
    if pd.isna(value):
        return text == "undefined"
    # the last of three digits may fall on either side of a tie
    return math.isclose(float(text), float(value), rel_tol=0.0051, abs_tol=1e-12) and (
        abs(float(text) - float(value)) <= 0.5001 * 10 ** (math.floor(math.log10(abs(value) or 1)) - 2)
    )


def stored(run: Path, one: str, two: str) -> dict[str, Any]:
    frames = {name: pd.read_parquet(run / f"{file}.parquet") for name, file in FRAMES.items()}
    values = {name: frame.loc[one, two] for name, frame in frames.items()}
    S = pd.read_parquet(run / "profile.parquet")
    return values | {"profile": S.loc[one, two] if {one, two} <= set(S.index) else pd.NA}


def test_hovered_values_match_the_tables(tab: Tab, run: Path) -> None:
    count = tab.page.evaluate("FM.live")
    assert count == 10
    for i, j in ((0, 1), (3, 3), (9, 0), (5, 7)):
        shown = tab.hover(i, j)
        names = tab.page.evaluate("FM.names")
        assert (shown["one"], shown["two"]) == (names[i], names[j])
        for measure, value in stored(run, names[i], names[j]).items():
            assert agrees(shown[measure], value), (measure, shown[measure], value)
    assert tab.page.locator("#tip img").count() == 2
    tab.keep("hover")


def test_all_values_of_the_page_match_the_tables(tab: Tab, run: Path) -> None:
    names = tab.page.evaluate("FM.names")
    for measure, file in (FRAMES | {"profile": "profile"}).items():
        frame = pd.read_parquet(run / f"{file}.parquet").loc[names, names].astype(float).to_numpy()
        shown = tab.page.evaluate(f"Array.from(FM.map.values('{measure}'))")
        assert shown == pytest.approx(frame.ravel().tolist(), rel=1e-5, abs=1e-6)


def test_a_run_that_shows_the_linear_profile_has_it_on_its_page(browser: Any, tmp_path: Path) -> None:
    similarity("features", tiny.planted(), **options(measure="linear_profile", out=tmp_path / "run", **FAST))
    (page,) = atlas(tmp_path / "run", activation_maps=False)
    tab = Tab(browser, page)
    tab.ready()
    names, shown = (tab.page.evaluate(x) for x in ("FM.names", "Array.from(FM.map.values('linear_profile'))"))
    frame = pd.read_parquet(tmp_path / "run" / "linear_profile.parquet").loc[names, names]
    assert shown == pytest.approx(frame.to_numpy().ravel().tolist(), rel=1e-5, abs=1e-6)
    assert tab.page.evaluate("[FM.measure, document.getElementById('measure').value]") == ["linear_profile"] * 2
    assert tab.page.locator("#measured").text_content() == "profile similarity of responses without roots"
    tab.close()


def test_heatmap_colours_match_the_values(tab: Tab) -> None:
    """The colours lie where the pointer reads them: row i, column j, not the other way round or upside down."""
    tab.page.select_option("#measure", "raw")
    i, j = tab.page.evaluate(
        """() => { const v = FM.map.values('raw'); const n = FM.live; let best = [0, 0], gap = -1;
        for (let i = 0; i < n; i++) for (let j = 0; j < n; j++)
        { const apart = Math.abs(v[i * n + j] - v[j * n + i]); if (apart > gap) { gap = apart; best = [i, j]; } }
        return best; }"""
    )
    tab.page.mouse.move(5, 5)
    tab.page.wait_for_timeout(300)
    colours = []
    for cell in ((i, j), (j, i)):
        x, y = tab.page.evaluate("([i, j]) => FM.map.pixel(i, j)", list(cell))
        shot = tab.page.screenshot(clip={"x": x - 1, "y": y - 1, "width": 3, "height": 3})
        colours.append(_mean_colour(shot))
    expected = tab.page.evaluate(
        """(cells) => cells.map(([i, j]) => { const span = FM.data.reach.raw;
        const at = Math.floor((FM.measures.raw(i, j) + span) / (2 * span) * 256);
        return FM.data.palette[Math.max(0, Math.min(255, at))]; })""",
        [[i, j], [j, i]],
    )
    for colour, hexadecimal in zip(colours, expected, strict=True):
        assert colour == pytest.approx([int(hexadecimal[k : k + 2], 16) for k in (1, 3, 5)], abs=6)


def _mean_colour(png: bytes) -> list[float]:
    import io

    import numpy as np
    from PIL import Image

    with Image.open(io.BytesIO(png)) as picture:
        return np.asarray(picture.convert("RGB"), dtype=float).mean((0, 1)).tolist()


def test_click_pins_a_pair_and_escape_unpins_it(tab: Tab) -> None:
    shown = tab.hover(2, 6)
    tab.page.mouse.click(*tab.page.evaluate("FM.map.pixel(2, 6)"))
    assert read_pair(tab.page.locator("#pinned .pair")) == shown
    tab.page.keyboard.press("Escape")
    assert tab.page.locator("#pinned .pair").count() == 0


def test_the_search_selects_a_feature_and_fills_its_card(tab: Tab, run: Path, browser: Any) -> None:
    tab.page.keyboard.press("/")
    tab.page.keyboard.type("features:7")
    tab.keep("search")
    tab.page.keyboard.press("Enter")
    assert tab.page.url.endswith("#features:7")
    assert tab.page.locator("#card h2").text_content() == "features:7"
    features = pd.read_parquet(run / "features.parquet")
    card = str(tab.page.locator("#card").text_content())
    assert f"activation reached{float(format(features.activation['features:7'], '.3g')):g}" in card
    nearest = tab.page.locator("#card ol.thumbnails").first.locator("a").first
    assert nearest.get_attribute("href") == f"#{features.nearest_1['features:7']}"
    assert "featmap maximise features:7 --model package.module:factory" in card
    assert "No activation map: left out" in card
    again = Tab(browser, run / "atlas.html", "#features:7")
    assert again.ready().locator("#card h2").text_content() == "features:7"
    again.close()
    tab.page.evaluate("location.hash = '#features:3'")
    tab.until("document.querySelector('#card h2').textContent === 'features:3'")
    tab.page.go_back()
    tab.until("document.querySelector('#card h2').textContent === 'features:7'")


def test_unknown_feature_is_reported(tab: Tab) -> None:
    tab.page.fill("#search", "features:99")
    assert "no feature of this page" in str(tab.page.locator("#matches").text_content())
    tab.page.evaluate("location.hash = '#<img src=x onerror=alert(1)>'")
    tab.until("document.getElementById('message').textContent.includes('<img')")


def test_arrow_keys_walk_through_neighbours(tab: Tab, run: Path) -> None:
    S = pd.read_parquet(run / "profile.parquet").astype(float)
    tab.page.evaluate("FM.select(FM.at.get('features:2'))")
    walk = ["features:2"]
    for _ in range(3):
        rest = S.loc[walk[-1]].drop(walk)
        walk.append(str(rest.idxmax()))
        tab.page.keyboard.press("ArrowRight")
        assert tab.page.locator("#card h2").text_content() == walk[-1]
    tab.page.keyboard.press("ArrowLeft")
    assert tab.page.locator("#card h2").text_content() == walk[-2]
    at = tab.page.evaluate("FM.selected")
    tab.page.keyboard.press("ArrowDown")
    assert tab.page.evaluate("FM.selected") == (at + 1) % 10
    tab.page.keyboard.press("?")
    assert tab.page.locator("dialog#help").is_visible()
    tab.keep("keys")
    tab.page.keyboard.press("Escape")
    assert not tab.page.locator("dialog#help").is_visible()
    tab.page.keyboard.press("m")
    assert tab.page.locator("#measure").input_value() == "raw"


def test_slider_hides_edges_and_clicked_node_is_selected(tab: Tab, run: Path) -> None:
    tab.page.keyboard.press("2")
    tab.until("FM.graph.view !== undefined")
    weights = [w for *_, w in nx.read_graphml(run / "graph.graphml").edges(data="weight")]
    assert f"{len(weights)} of {len(weights)} edges" in str(tab.page.locator("#edges").text_content())
    tab.page.locator("#threshold").fill("0.5")
    kept = sum(w >= 0.5 for w in weights)
    assert 0 < kept < len(weights)
    assert f"{kept} of {len(weights)} edges" in str(tab.page.locator("#edges").text_content())
    assert tab.page.evaluate("FM.graph.all.data.xs.length + FM.graph.own.data.xs.length") == kept
    tab.page.mouse.click(*tab.page.evaluate("FM.graph.pixel(4)"))
    tab.until("FM.selected === 4")
    name = tab.page.evaluate("FM.names[4]")
    assert tab.page.url.endswith(f"#{name}") and tab.page.locator("#card h2").text_content() == name
    assert tab.page.evaluate("FM.map.cross.data.top")[0] == 4
    tab.keep("graph")


def test_clusters_view_lists_features_with_alt_texts(tab: Tab) -> None:
    tab.page.keyboard.press("3")
    tab.keep("clusters")
    assert tab.page.locator("#clusters ul.mosaic a").count() == 10
    alts = tab.page.locator("img").evaluate_all("images => images.map((image) => image.alt)")
    assert alts and all("activation" in alt for alt in alts)
    tab.page.locator("#clusters ul.mosaic a").nth(5).click()
    assert tab.page.locator("#clusters a[aria-current]").count() >= 1


@pytest.mark.parametrize("width", [1024, 768])
def test_page_fits_a_tablet(browser: Any, run: Path, width: int) -> None:
    opened = Tab(browser, run / "atlas.html", width=width, height=768)
    page = opened.ready()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    opened.keep(f"tablet-{width}")
    opened.close()


def test_dead_feature_is_shown_as_dead(browser: Any, sick: Path) -> None:
    opened = Tab(browser, sick / "atlas.html", "#relu:1")
    card = str(opened.ready().locator("#card").text_content())
    assert "statusdead" in card and "takes no part in map, graph and clusters" in card
    assert "caller's own" in card
    opened.page.keyboard.press("3")
    assert "No clusters" in str(opened.page.locator("#clusters").text_content())
    opened.keep("dead")
    opened.close()


@pytest.mark.parametrize("factory", ["one", "asleep"])
def test_page_with_one_or_no_live_feature_works(browser: Any, tmp_path: Path, factory: str) -> None:
    layer = "features" if factory == "one" else "relu"
    similarity(layer, getattr(tiny, factory)(), **options(out=tmp_path / factory, **FAST))
    (page,) = atlas(tmp_path / factory)
    opened = Tab(browser, page)
    opened.ready()
    opened.keep(f"nothing-{factory}")
    for key in ("1", "2", "3", "4", "ArrowRight", "ArrowDown"):
        opened.page.keyboard.press(key)
        opened.page.wait_for_timeout(150)
    opened.close()


def test_markup_in_a_layer_name_is_shown_as_text(browser: Any, tmp_path: Path) -> None:
    layer = "<script>alert('&')</script>"
    similarity(layer, tiny.hostile(), **options(out=tmp_path / "run", **FAST))
    (page,) = atlas(tmp_path / "run")
    opened = Tab(browser, page)
    shown = opened.ready()
    assert shown.locator("h1").text_content() == layer
    shown.keyboard.press("ArrowDown")
    name = shown.evaluate("FM.names[FM.selected]")
    assert shown.locator("#card h2").text_content() == name and name.startswith("<script>")
    link = shown.url
    opened.hover(0, 1)
    opened.keep("hostile")
    opened.close()
    again = Tab(browser, page, "#" + link.partition("#")[2])
    assert again.ready().locator("#card h2").text_content() == name
    again.close()


def test_images_are_shown_stretched_or_as_stored(tab: Tab, run: Path) -> None:
    images = open_arrays(run)["images"].isel(seed=0)

    def shown() -> np.ndarray:
        """Draw the card's image at its own size, with the filter that the page applies to it."""
        found = tab.page.evaluate(
            """async () => {
              const image = document.querySelector("#card .images img"); await image.decode();
              const canvas = document.createElement("canvas");
              [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
              const context = canvas.getContext("2d"); context.filter = getComputedStyle(image).filter;
              context.drawImage(image, 0, 0);
              return [canvas.height, canvas.width, [...context.getImageData(0, 0, canvas.width, canvas.height).data]];
            }"""
        )
        return np.array(found[2]).reshape(found[0], found[1], 4)[:, :, :3].transpose(2, 0, 1) / 255

    tab.page.evaluate("FM.select(FM.at.get('features:4'))")
    image = images.sel(image="features:4").values
    assert display.stretch_factors(image)[0] > 1.2
    np.testing.assert_allclose(shown(), display.stretch(image), atol=0.03)
    assert display.NOTE in str(tab.page.locator("#card").text_content())
    tab.keep("stretched")
    tab.page.locator("#card button.display").click()
    np.testing.assert_allclose(shown(), image.clip(0, 1), atol=0.005)
    assert "stored pixels" in str(tab.page.locator("#card figcaption").first.text_content())
    tab.page.evaluate("FM.select(FM.at.get('features:5'))")
    np.testing.assert_allclose(shown(), images.sel(image="features:5").values.clip(0, 1), atol=0.005)
    tab.page.locator("#card button.display").click()
    np.testing.assert_allclose(shown(), display.stretch(images.sel(image="features:5").values), atol=0.03)
