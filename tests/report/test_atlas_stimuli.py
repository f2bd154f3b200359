"""The atlas of runs with photographs: a switch between the two maps, all pairs by both, and photographs alone."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from featmap.mapping.result import read_maps
from featmap.mapping.run import similarity
from featmap.mapping.view import View
from featmap.plotting import heatmaps
from featmap.report import html
from featmap.report.atlas import atlas
from featmap.runs import integrity
from featmap.runs.store import open_arrays
from tests.helpers import pictures
from tests.helpers import planted_photographs as planted
from tests.helpers.browser import Tab, chromium, needs_chromium, read_pair
from tests.helpers.pictures import BLUE, BRIGHT_GREEN, GREEN, RED
from tests.helpers.run_kinds import run_command
from tests.helpers.settings import options
from tests.report.test_atlas import blob_of, data_of

pytestmark = [
    pytest.mark.filterwarnings("ignore::featmap.stats.measures.FewStimuliWarning"),
    pytest.mark.usefixtures("one_thread", "cheap_runs"),
]
ALONE = View(stimuli="photographs")


@pytest.fixture(scope="module")
def runs(cheap_runs: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of three runs: `both` of two maps; `alone` and `planted` of photographs alone."""
    out = tmp_path_factory.mktemp("stimuli")
    colours = pictures.save_colours(out / "folder-of-colours", pictures.purple_and_green(40))
    settings: dict[str, Any] = {"size": 16, "steps": 12, "rows": 4, "device": "cpu"}
    similarity("features", pictures.parting(), photographs=colours, **options(out=out / "both", **settings))
    words = ["--model", "tests.helpers.pictures:parting", "--layer", "features", "--size", "16", "--device", "cpu"]
    words += ["--photographs", str(colours), "--stimuli", "photographs", "--out", str(out / "alone")]
    assert run_command("similarity", *words) == 0  # the command writes the atlas too
    some = settings | {"features": "0-4", "stimuli": "shown"}
    similarity("features", pictures.parting(), photographs=colours, **options(out=out / "some", **some))
    folder = planted.save_photographs(out / "folder-of-patterns")
    settings |= {"size": planted.SIZE, "out": out / "planted"}
    similarity("relu", planted.network(), photographs=folder, view=ALONE, **options(**settings))
    atlas(out / "both", activation_maps=False)
    atlas(out / "some", activation_maps=False)
    atlas(out / "planted")
    atlas(out / "planted", embed_photographs=True, out=out / "embedded")
    return out


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as opened:
        yield opened


@pytest.fixture
def tab(browser: Any, runs: Path) -> Iterator[Tab]:
    opened = Tab(browser, runs / "both" / "atlas.html")
    opened.ready()
    yield opened
    opened.close()


def is_shown(text: str, value: float) -> bool:
    """Check whether a text of the page is a value to three significant digits."""
    if math.isnan(value):
        return text == "undefined"
    return math.isclose(float(text), value, rel_tol=0.0051, abs_tol=1e-6)


def matrix(run: Path, name: str) -> pd.DataFrame:
    return pd.read_parquet(run / f"{name}.parquet").astype(float)


def test_a_page_with_both_maps_holds_their_stored_similarities(runs: Path) -> None:
    page = runs / "both" / "atlas.html"
    data, S = data_of(page), matrix(runs / "both", "photographs_profile")
    own = data["photographs"]
    names = [data["features"]["name"][k] for k in own["order"]]
    assert sorted(names) == sorted(S.columns)
    packed = S.loc[names, names].to_numpy()[np.triu_indices(len(names))]
    np.testing.assert_allclose(blob_of(page, "photograph_S"), packed, rtol=1e-6, atol=1e-7)
    features = pd.read_parquet(runs / "both" / "photographs_features.parquet").loc[data["features"]["name"]]
    for column in ("mean", "deviation", "community"):
        assert own["features"][column] == pytest.approx(features[column].tolist())
    agreement = pd.read_parquet(runs / "both" / "photographs_agreement.parquet").loc[data["features"]["name"]]
    assert own["agreement"]["agreement"] == pytest.approx(agreement["agreement"].tolist())
    assert "stimuli" not in data
    json.dumps(data, allow_nan=False)  # raises at a NaN


def test_maps_of_fewer_stimuli_are_compared_over_the_same_features(runs: Path) -> None:
    page = runs / "some" / "atlas.html"
    data = data_of(page)
    names = [data["features"]["name"][k] for k in data["photographs"]["order"]]
    with open_arrays(runs / "some") as arrays:
        responses = arrays["photograph_A"].sel(response=names).values.astype(np.float64)
    roots = np.sign(responses) * np.sqrt(np.abs(responses))
    Z = (roots - roots.mean(0)) / roots.std(0)
    expected = np.corrcoef((Z - Z.mean(1, keepdims=True)).T)  # by hand: centred over five features, not over seven
    upper = np.triu_indices(len(names))
    np.testing.assert_allclose(blob_of(page, "compared_S"), expected[upper], atol=1e-5)
    assert not np.allclose(blob_of(page, "photograph_S"), expected[upper], atol=0.01)
    assert 'id="blob-compared_S"' not in (runs / "both" / "atlas.html").read_text(encoding="utf-8")


@needs_chromium
@pytest.mark.slow
def test_the_scatter_of_fewer_stimuli_has_the_correlation_of_the_run(browser: Any, runs: Path) -> None:
    opened = Tab(browser, runs / "some" / "atlas.html")
    page = opened.ready()
    page.get_by_role("tab", name="Both maps").click()
    opened.until("FM.scatter.view !== undefined")
    summary = json.loads((runs / "some" / "manifest.json").read_text())["summary"]["photographs"]["agreement"]
    text = str(page.locator("#paired").text_content())
    assert text.startswith("10 pairs of 5 features") and text.endswith(" (both centred over these features)")
    assert is_shown(text.removesuffix(" (both centred over these features)").rsplit(" ", 1)[1], summary["correlation"])
    table = pd.read_parquet(runs / "some" / "photographs_disagreements.parquet").reset_index().iloc[0]
    one, two = (page.evaluate(f"FM.at.get('{table[column]}')") for column in ("feature", "other"))
    page.mouse.move(*page.evaluate(f"FM.scatter.pixel({one}, {two})"))
    page.wait_for_selector("#tip:not([hidden])")
    assert is_shown(read_pair(page.locator("#tip .pair"))["compared-photographs"], table["photographs"])
    page.mouse.click(*page.evaluate(f"FM.scatter.pixel({one}, {two})"))
    pinned = read_pair(page.locator("#pinned .pair"))  # both maps as they are, and the S that the point stands for
    whole = matrix(runs / "some", "photographs_profile").loc[table["feature"], table["other"]]
    assert is_shown(pinned["photographs"], whole) and is_shown(pinned["compared-photographs"], table["photographs"])
    opened.close()


def test_a_page_of_photographs_alone_holds_that_map_and_no_image(runs: Path) -> None:
    page = runs / "alone" / "atlas.html"
    data, text = data_of(page), page.read_text(encoding="utf-8")
    assert data["stimuli"] == "photographs" and data["thumbnails"] is None and "scales" not in data
    names = data["features"]["name"]
    S = matrix(runs / "alone", "profile").loc[names, names].to_numpy()
    np.testing.assert_allclose(blob_of(page, "S"), S[np.triu_indices(len(names))], rtol=1e-6, atol=1e-7)
    assert 'id="blob-A"' not in text and 'id="blob-photograph_S"' not in text
    assert data["notes"] == read_maps(runs / "alone")["features"].lines()
    assert integrity.inspect(runs / "alone").faults == []
    assert atlas(runs / "alone", out=runs / "again")[0].read_bytes() == page.read_bytes()


def test_pages_name_no_photograph_unless_they_embed_it(runs: Path) -> None:
    for run in ("both", "alone", "planted"):
        text = (runs / run / "atlas.html").read_text(encoding="utf-8")
        assert data_of(runs / run / "atlas.html")["examples"] == {"embedded": False}
        for name in (*(f"{k:03d}.png" for k in range(40)), "folder-of-", *planted.PLACES, str(runs)):
            assert name not in text and json.dumps(name)[1:-1] not in text
        assert 'id="blob-examples"' not in text
    shown = data_of(runs / "embedded" / "atlas.html")
    assert planted.HOSTILE in shown["examples"]["names"] and shown["thumbnails"]["uri"].startswith("data:image/")


def test_pages_of_large_layers_show_some_of_their_features(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for run, embeds, shown in (("both", False, [0, 2, 4, 6]), ("planted", True, [0, 2, 3])):
        monkeypatch.setattr(heatmaps, "MAX_CELLS", len(shown))
        (page,) = atlas(runs / run, activation_maps=False, out=runs / f"part-of-{run}", embed_photographs=embeds)
        data, features = data_of(page), pd.read_parquet(runs / run / "features.parquet").index
        names = data["features"]["name"]
        assert sorted(names) == sorted(features[shown]) and data["live"] < data["mapped"] <= len(features)
        for blob, table in (("S", "profile"), *([("photograph_S", "photographs_profile")] if run == "both" else [])):
            order = [names[k] for k in data["photographs"]["order"]] if table != "profile" else names[: data["live"]]
            assert len(order) >= 2
            S = matrix(runs / run, table).loc[order, order].to_numpy()
            np.testing.assert_allclose(blob_of(page, blob), S[np.triu_indices(len(order))], rtol=1e-6, atol=1e-7)
        part = f"this page shows {len(shown)} of {len(features)} features, evenly spaced by number"
        assert data["notes"][-1].startswith(part)
        if embeds:
            whole = data_of(runs / "embedded" / "atlas.html")
            at = [whole["features"]["name"].index(name) for name in names]
            numbers = [[(row["number"], row["response"]) for row in own] for own in data["examples"]["rows"]]
            expected = [[(row["number"], row["response"]) for row in whole["examples"]["rows"][k]] for k in at]
            assert numbers == expected and set(data["examples"]["names"]) <= set(whole["examples"]["names"])


def test_several_layers_of_photographs_alone_get_an_index(runs: Path) -> None:
    settings = options(out=runs / "layers", size=16, steps=1, rows=4, device="cpu")
    similarity(
        ["features", "parts"], pictures.parting(), photographs=runs / "folder-of-colours", view=ALONE, **settings
    )
    index, *pages = atlas(runs / "layers")
    assert [page.parent.name for page in pages] == ["features", "parts"]
    table = pd.read_parquet(runs / "layers" / "cross" / "layers.parquet")
    assert f"{table['best'].iloc[0]:.2f}" in index.read_text(encoding="utf-8")
    assert "compared no layers" not in index.read_text(encoding="utf-8")
    assert "compared no layers over photographs" in html.render_index_page("title", "network", {}, None, [])
    assert {data_of(page)["stimuli"] for page in pages} == {"photographs"}
    assert str(runs) not in index.read_text(encoding="utf-8")


@needs_chromium
@pytest.mark.slow
def test_a_card_says_that_its_neighbours_are_of_those_shown(
    browser: Any, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heatmaps, "MAX_CELLS", 5)
    (page,) = atlas(runs / "both", activation_maps=False, out=runs / "five")
    for path, among in ((page, " of those shown"), (runs / "both" / "atlas.html", "")):
        opened = Tab(browser, path, "#" + data_of(page)["features"]["name"][0])
        opened.ready()
        opened.until("document.querySelectorAll('#card h3').length > 2")
        headings = opened.page.locator("#card h3").all_text_contents()
        assert {f"Nearest{among} over maximising images", f"Most opposed{among} over maximising images"} <= set(
            headings
        )
        opened.close()


@needs_chromium
@pytest.mark.slow
def test_the_switch_changes_map_clusters_neighbours_and_numbers(tab: Tab, runs: Path) -> None:
    page, run = tab.page, runs / "both"
    name = f"features:{RED}"
    page.evaluate(f"FM.select(FM.at.get('{name}'))")
    read = "Array.from(FM.map.values('profile'))"
    for stimuli, prefix in (("images", ""), ("photographs", "photographs_")):
        page.locator(f"#stimuli input[value={stimuli}]").click()
        assert page.evaluate("FM.stimuli") == stimuli
        assert page.url.endswith(f"#{name}" + ("&map=photographs" if prefix else ""))
        S, features = matrix(run, f"{prefix}profile"), pd.read_parquet(run / f"{prefix}features.parquet")
        order = page.evaluate("FM.shown.order.map((k) => FM.names[k])")
        assert page.evaluate(read) == pytest.approx(S.loc[order, order].to_numpy().ravel().tolist(), rel=1e-5, abs=1e-6)
        first = page.locator("#card ol.thumbnails").first.locator("a").first
        nearest = S.loc[name].drop(name)
        assert is_shown(str(first.locator("b").text_content()), nearest.max())
        assert nearest[str(first.locator("span").text_content()).join(["features:", ""])] == pytest.approx(
            nearest.max()
        )
        summary = json.loads((run / "manifest.json").read_text())["summary"]
        summary = summary["photographs"] if prefix else summary
        assert page.locator("#clusters .sentence").text_content() == summary["clusters"]["sentence"]
        communities = page.evaluate("FM.names.map((_, k) => FM.communityOf(k))")
        assert communities == features.loc[page.evaluate("FM.names"), "community"].tolist()
        assert page.locator("#measure option").count() == (1 if prefix else 5)
    card = str(page.locator("#card").text_content())
    assert "Nearest over photographs" in card and "responses to photographsmean" in card
    one, two = (page.evaluate(f"FM.at.get('features:{k}')") for k in (RED, BLUE))
    shown = tab.hover(one, two)
    assert set(shown) == {"photographs", "profile", "one", "two"}
    assert is_shown(shown["photographs"], matrix(run, "photographs_profile").loc[name, f"features:{BLUE}"])
    assert is_shown(shown["profile"], matrix(run, "profile").loc[name, f"features:{BLUE}"])
    tab.keep("map-of-photographs")
    page.keyboard.press("2")
    tab.until("FM.graph.view !== undefined")
    weights = page.evaluate("FM.shown.graph.weight")
    assert f"of {len(weights)} edges" in str(page.locator("#edges").text_content())
    page.mouse.click(*page.evaluate("FM.graph.pixel(FM.shown.order[2])"))
    tab.until("FM.selected === FM.shown.order[2]")
    page.keyboard.press("p")
    assert page.evaluate("FM.stimuli") == "images" and "&map" not in page.url
    assert page.evaluate("FM.graph.nodes.data.x") == page.evaluate("FM.maps.images.graph.x")


@needs_chromium
@pytest.mark.slow
def test_a_link_opens_the_map_of_photographs_and_the_keyboard_switches_it(browser: Any, runs: Path) -> None:
    opened = Tab(browser, runs / "both" / "atlas.html", "#features:3&map=photographs")
    page = opened.ready()
    assert page.evaluate("[FM.stimuli, FM.names[FM.selected]]") == ["photographs", "features:3"]
    assert page.locator("#measure").is_disabled() and page.locator("#measure").input_value() == "profile"
    group = page.get_by_role("group", name="Similarity over")
    assert group.get_by_role("radio").count() == 2
    group.get_by_role("radio", name="photographs").focus()
    page.keyboard.press("ArrowUp")
    assert page.evaluate("[FM.stimuli, FM.names[FM.selected]]") == ["images", "features:3"]
    assert page.url.endswith("#features:3") and page.locator("#measure").input_value() == "coactivation"
    page.go_back()
    opened.until("FM.stimuli === 'photographs'")
    assert group.get_by_role("radio", name="photographs").is_checked()
    page.evaluate("location.hash = '#&map=<b>'")
    opened.until("document.getElementById('message').textContent === 'This page has no map of <b>.'")
    opened.close()
    again = Tab(browser, runs / "both" / "atlas.html", "#&map=photographs")
    assert again.ready().evaluate("[FM.stimuli, FM.selected]") == ["photographs", None]
    again.close()


@needs_chromium
@pytest.mark.slow
def test_the_scatter_shows_every_pair_by_both_similarities(tab: Tab, runs: Path) -> None:
    page, run = tab.page, runs / "both"
    page.get_by_role("tab", name="Both maps").click()
    tab.until("FM.scatter.view !== undefined")
    of_images, of_photographs = matrix(run, "profile"), matrix(run, "photographs_profile")
    names = page.evaluate("FM.names")
    drawn = page.evaluate("FM.scatter.all.data")
    upper = np.triu_indices(len(names), 1)
    for axis, S in (("x", of_images), ("y", of_photographs)):
        values = S.loc[names, names].to_numpy()[upper]
        assert [
            drawn[axis][str(k)] if isinstance(drawn[axis], dict) else drawn[axis][k] for k in range(len(values))
        ] == (pytest.approx(values.tolist(), rel=1e-5, abs=1e-6))
    # the correlation of the page is that of the run, which shows all features
    summary = json.loads((run / "manifest.json").read_text())["summary"]["photographs"]["agreement"]
    assert str(page.locator("#paired").text_content()).startswith("21 pairs of 7 features")
    assert is_shown(str(page.locator("#paired").text_content()).rsplit(" ", 1)[1], summary["correlation"])
    for one, two in ((RED, BLUE), (GREEN, BRIGHT_GREEN)):
        page.mouse.move(5, 5)
        page.mouse.move(*page.evaluate(f"FM.scatter.pixel(FM.at.get('features:{one}'), FM.at.get('features:{two}'))"))
        page.wait_for_selector("#tip:not([hidden])")
        shown = read_pair(page.locator("#tip .pair"))
        assert {shown["one"], shown["two"]} == {f"features:{one}", f"features:{two}"}
        assert is_shown(shown["profile"], of_images.loc[shown["one"], shown["two"]])
        assert is_shown(shown["photographs"], of_photographs.loc[shown["one"], shown["two"]])
        assert page.locator("#tip img").count() == 2
    tab.keep("scatter")
    page.mouse.click(*page.evaluate(f"FM.scatter.pixel(FM.at.get('features:{RED}'), FM.at.get('features:{BLUE}'))"))
    assert page.locator("#pinned .pair").count() == 1
    assert page.evaluate("FM.pinned.map((k) => FM.names[k]).toSorted()") == [f"features:{RED}", f"features:{BLUE}"]
    assert page.evaluate("FM.scatter.pin.data.x.length") == 1
    # the table of the pairs that part most is that of the run, and opens them by the keyboard
    table = pd.read_parquet(run / "photographs_disagreements.parquet").reset_index()
    rows = page.locator("#parted tr:has(td)")
    assert rows.count() == min(10, (table["difference"] > 0).sum()) + min(10, (table["difference"] < 0).sum())
    below = table[table["difference"] < 0].iloc[0]
    first = rows.first
    assert is_shown(str(first.locator("td").nth(3).text_content()), below["difference"])
    first.locator("button").focus()
    page.keyboard.press("Enter")
    assert page.evaluate("FM.scatter.marked.below[0] === FM.scatter.number(...FM.pinned)")


@needs_chromium
@pytest.mark.slow
def test_many_pairs_are_drawn_as_counts_and_still_found(tab: Tab) -> None:
    page = tab.page
    page.evaluate("FM.scatter.POINTS = 5")
    page.get_by_role("tab", name="Both maps").click()
    tab.until("FM.scatter.view !== undefined")
    counted = "[...FM.scatter.counts.data.image[0]].filter(Number.isFinite).reduce((sum, n) => sum + n, 0)"
    assert page.evaluate("FM.scatter.all.data.x.length") == 0 and page.evaluate(counted) == 21
    # the grid finds the same pair as looking at all of them does
    found = page.evaluate(
        """() => { const { pairs, figure, NEAR, ends } = FM.scatter; const wrong = [];
        const unit = (ends[1] - ends[0]) / figure.frame_width;
        for (let row = 0; row < 60; row += 1) for (let column = 0; column < 60; column += 1) {
          const at = (k) => ends[0] + ((k + 0.5) / 60) * (ends[1] - ends[0]);
          const event = { x: at(column), y: at(row) };
          const away = (p) => Math.hypot(pairs.x[p] - event.x, pairs.y[p] - event.y) / unit;
          const least = Math.min(...Array.from({ length: pairs.count }, (_, p) => away(p)));
          const pair = FM.scatter.find(event);
          const right = pair === null ? least >= NEAR : Math.abs(away(FM.scatter.number(...pair)) - least) < 1e-9;
          if (!right) wrong.push([row, column]);
        } return wrong; }"""
    )
    assert found == []
    # closer in, the pairs that are left are few again
    page.evaluate("FM.scatter.POINTS = 8")
    middle = page.evaluate("[FM.scatter.pairs.x[0], FM.scatter.pairs.y[0]]")
    for axis, value in zip(("x", "y"), middle, strict=True):
        page.evaluate(f"FM.scatter.figure.{axis}_range.setv({{ start: {value - 1e-4}, end: {value + 1e-4} }})")
    tab.until("FM.scatter.all.data.x.length > 0 && FM.scatter.counts.data.image.length === 0")


@needs_chromium
@pytest.mark.slow
@pytest.mark.parametrize("run", ["alone", "embedded"])
def test_the_atlas_of_photographs_alone_shows_its_map(browser: Any, runs: Path, run: str) -> None:
    opened = Tab(browser, runs / run / "atlas.html", "" if run == "alone" else f"#{planted.DETECTOR}")
    page = opened.ready()
    table = runs / ("planted" if run == "embedded" else run)
    S, features = matrix(table, "profile"), pd.read_parquet(table / "features.parquet")
    order = page.evaluate("FM.shown.order.map((k) => FM.names[k])")
    values = page.evaluate("Array.from(FM.map.values('profile'))")
    assert values == pytest.approx(S.loc[order, order].to_numpy().ravel().tolist(), rel=1e-5, abs=1e-6)
    shown = opened.hover(0, 1)
    assert set(shown) == {"profile", "one", "two"} and is_shown(shown["profile"], S.loc[shown["one"], shown["two"]])
    assert not page.locator("#stimuli").is_visible()
    assert not page.get_by_role("tab", name="Both maps").is_visible()
    card, name = str(page.locator("#card").text_content()), str(page.locator("#card h2").text_content())
    assert is_shown(card.split("responses to photographsmean ")[1].split(",")[0], features["mean"][name])
    assert "activation reached" not in card and "Reproduce" not in card
    if run == "embedded":
        opened.until("document.querySelectorAll('#card ul.examples canvas[data-drawn]').length === 12")
        assert page.locator("#card img.thumbnail").count() == len(order) - 1
        assert page.locator("#tip canvas").count() == 2
    else:
        assert "no maximising image" in card and "featmap atlas RUN --embed-photographs" in card
        assert page.locator("#views img, #card img").count() == 0
    opened.keep(f"photographs-{run}")
    page.keyboard.press("2")
    opened.until("FM.graph.view !== undefined")
    page.mouse.click(*page.evaluate("FM.graph.pixel(FM.shown.order[1])"))
    opened.until("FM.selected === FM.shown.order[1]")
    opened.keep(f"photographs-{run}-graph")
    page.keyboard.press("3")
    assert page.locator("#clusters ul.mosaic a").count() == len(features)
    if run == "embedded":
        page.evaluate(f"FM.select(FM.at.get('{planted.SILENT}'))")
        assert "takes no part in map" in str(page.locator("#card").text_content())
    opened.close()
