"""Pages beside that of one layer, in Chromium: an index over layers, interactions, units of any kind."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from torch import nn

import featmap
from featmap.report.atlas import atlas
from tests.helpers import tiny
from tests.helpers.browser import Tab, chromium, needs_chromium
from tests.helpers.settings import options

pytestmark = [
    needs_chromium,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::featmap.stats.measures.FewStimuliWarning"),
]
FAST: dict[str, Any] = {"size": 16, "steps": 3, "rows": 4, "device": "cpu"}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as opened:
        yield opened


@pytest.fixture(scope="module")
def layers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("index") / "layers"
    featmap.similarity(["second", "first"], tiny.small(), **options(out=folder, **FAST))
    atlas(folder, network=featmap.load(tiny.small()))
    return folder


def test_index_links_to_features_and_other_layers(browser: Any, layers: Path) -> None:
    tab = Tab(browser, layers / "atlas.html")
    page = tab.page
    tab.keep("index")
    table = pd.read_parquet(layers / "cross" / "layers.parquet").reset_index()
    shown = page.locator("table.grid td a").evaluate_all("links => links.map((link) => link.ariaLabel)")
    assert [text.partition(":")[0] for text in shown] == ["second to first", "first to second"]
    for text, row in zip(shown, table.itertuples(), strict=True):
        assert f"S {row.best:.3f}" in text
    page.fill("#search", "third:1")
    page.keyboard.press("Enter")
    assert "No layer of this atlas contains third:1" in str(page.locator("#message").text_content())
    page.fill("#search", "first:3")
    page.keyboard.press("Enter")
    page.wait_for_url("**/first/atlas.html#first:3")
    assert tab.ready().locator("#card h2").text_content() == "first:3"
    elsewhere = page.locator("#card details a").first
    name = str(elsewhere.text_content())
    elsewhere.click()
    page.wait_for_url(f"**/second/atlas.html#{name}")
    assert tab.ready().locator("#card h2").text_content() == name
    page.locator("a.back").click()
    page.wait_for_url("**/layers/atlas.html")
    tab.close()
    for link in ("#second:4", "#second:4&map=photographs"):
        linked = Tab(browser, layers / "atlas.html", link)
        linked.page.wait_for_url(f"**/second/atlas.html{link}")
        linked.close()


@pytest.mark.parametrize("name", ["third:1", "third%"])
def test_index_reports_the_name_of_a_wrong_link(browser: Any, layers: Path, name: str) -> None:
    tab = Tab(browser, layers / "atlas.html", f"#{name}")
    assert f"No layer of this atlas contains {name}." in str(tab.page.locator("#message").text_content())
    tab.close()


def test_activation_map_is_drawn_over_the_image(browser: Any, layers: Path) -> None:
    tab = Tab(browser, layers / "second" / "atlas.html", "#second:2")
    page = tab.ready()
    page.wait_for_selector("#card .stack canvas")
    alphas = page.evaluate(
        """() => { const canvas = document.querySelector('#card .stack canvas');
        const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
        return Array.from(data).filter((_, k) => k % 4 === 3); }"""
    )
    import torch

    from featmap.optimize.responses import Probe

    image = featmap.open_arrays(layers)["images"].isel(seed=0).sel(image=["second:2"]).values
    values = (
        Probe(featmap.load(tiny.small()), 4)
        .activation_maps(torch.from_numpy(image), ["second"])["second"][0, 2]
        .clip(0)
    )
    expected = 0.88 * 255 * (1 - values / values.max())
    assert alphas == pytest.approx(expected.ravel().tolist(), abs=3)
    alt = page.locator("#card .stack img").get_attribute("alt")
    assert alt.startswith(f"activation map 8 x 8, largest {float(format(values.max(), '.3g')):g}")
    tab.keep("activation-map")
    tab.close()


def test_markup_in_layer_names_is_text_on_the_index(browser: Any, tmp_path: Path) -> None:
    names = ["<img src=x onerror=alert(1)>", "\"><script>alert('&')</script>"]
    module = nn.Sequential(OrderedDict(zip(names, (tiny._conv(3, 4, 9), tiny._conv(4, 3, 5)), strict=True))).eval()
    featmap.similarity(names, module, **options(out=tmp_path / "run", **FAST))
    first, *rest = atlas(tmp_path / "run")
    assert len(rest) == 2
    tab = Tab(browser, first)
    assert tab.page.locator("table.grid th[scope=row]").all_text_contents() == names
    assert tab.page.locator("img, table script").count() == 0
    tab.page.locator("table.grid th[scope=row] a").first.click()
    assert tab.ready().locator("h1").text_content() == names[0]
    tab.close()


def test_interactions_have_their_own_view(browser: Any, tmp_path: Path) -> None:
    featmap.interact(
        ["second:1", "second:4"], tiny.small(), **options("interact", seeds=2, out=tmp_path / "duo", **FAST)
    )
    featmap.similarity("second", tiny.small(), **options(out=tmp_path / "run", **FAST))
    (page,) = atlas(tmp_path / "run", interactions=[tmp_path / "duo"])
    tab = Tab(browser, page)
    tab.ready().get_by_role("tab", name="Interactions").click()
    assert tab.page.locator("#view-reports h2").text_content() == "second:1 + second:4"
    assert tab.page.locator("#view-reports img").evaluate("(image) => image.complete && image.naturalWidth > 300")
    tab.keep("interactions")
    tab.close()
    (alone,) = atlas(tmp_path / "duo")
    other = Tab(browser, alone)
    assert other.page.locator("section.report").count() == 1
    other.keep("interaction-run")
    other.close()


def test_units_of_any_kind_have_cards(browser: Any, tmp_path: Path) -> None:
    featmap.maximise(["second:1", "second:1 + 0.5 * first:2"], tiny.small(), **options(out=tmp_path / "run", **FAST))
    (page,) = atlas(tmp_path / "run")
    tab = Tab(browser, page)
    shown = tab.ready()
    assert shown.get_by_role("tab", name="Map").is_hidden()
    shown.keyboard.press("ArrowDown")
    assert "0.5" in str(shown.locator("#card h2").text_content())
    tab.keep("units")
    tab.close()
