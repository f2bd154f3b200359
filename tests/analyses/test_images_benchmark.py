"""The benchmark of images on planted networks: rows of recipes and tools, its table, and what it does not repeat."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import Tensor

from analyses.benchmarks import (
    image_records,
    image_strip,
    image_ways,
    images,
    opponents,
    records,
)
from analyses.benchmarks.image_records import Record, RecordFile
from analyses.benchmarks.opponents import Opponent
from featmap import Network
from featmap.cli.judge import JudgeOptions
from featmap.cli.options import NetworkOptions
from featmap.errors import FeatmapError
from featmap.image_ops import pink_noise
from featmap.validation.image_inputs import images_of_pixels
from tests.helpers import judges, twofold

pytestmark = [
    pytest.mark.filterwarnings("ignore::featmap.stats.measures.FewStimuliWarning"),
    pytest.mark.usefixtures("one_thread"),
]


DEFAULTS: dict[str, Any] = {
    "class_order": False,
    "opponents": "",
    "few": None,
    "units": None,
    "draw": 0,
    "seed": 0,
    "seeds": 1,
    "strip": None,
    "check": False,
}


def compare(folder: Path, photographs: Path | None = None, **changes: Any) -> dict[str, list[Record]]:
    """Run the benchmark on the classifier of colours; return all records by way."""
    settings: dict[str, Any] = {
        "photographs": photographs,
        "recipes": "pixels",
        "layers": "features",
        "classes": 3,
        "features": judges.CLASSES,
        "size": judges.SIZE,
        "out": folder / "images",
        "store": folder / "images.json",
        "readme": folder / "README.md",
    }
    images.main(
        NetworkOptions("tests.helpers.judges:colours", input_size=judges.SIZE),
        JudgeOptions(["tests.helpers.judges:same_colours"], by_input_size=["16"]),
        **DEFAULTS | settings | changes,
    )
    found: dict[str, list[Record]] = {}
    for record in RecordFile(folder / "images.json").read():
        found.setdefault(record.way, []).append(record)
    return found


def places(folder: Path) -> dict[str, Any]:
    """Where the values and the page are."""
    return {"store": folder / "images.json", "readme": folder / "README.md"}


def noisy(network: Network, layer: str, channels: Sequence[int], seed: int) -> Tensor:
    """A tool whose images are noise."""
    return pink_noise(len(channels), 24)


def failing(network: Network, layer: str, channels: Sequence[int], seed: int) -> Tensor:
    """A tool that was not written for this network."""
    raise KeyError("no such layer")


TOOLS = (
    Opponent("noise, batched", 24, "1/f noise", noisy, batched=True),
    Opponent("failing", 24, "fails", failing),
    Opponent("absent", 24, "is not installed", noisy, package="absent"),
)


@pytest.fixture
def tools(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_ways, "OPPONENTS", TOOLS)
    monkeypatch.setitem(opponents.MODULES, "absent", "no_module_of_this_name")


def values(record: Record, judge: str, name: str) -> pd.Series:
    """A judge's values by unit."""
    return pd.Series(record.transfer[judge][name], index=record.units, dtype=float)


def test_recipes_and_tools_are_measured_alike(tmp_path: Path, tools: None, capsys: pytest.CaptureFixture[str]) -> None:
    photographs = twofold.photographs(tmp_path / "photographs", count=40)
    strip = tmp_path / "strip.png"
    others = "noise, batched;failing;absent"
    found = compare(tmp_path, photographs, recipes="pixels,interact", opponents=others, strip=strip)
    printed = capsys.readouterr()
    assert list(found) == ["pixels", "interact", "noise, batched"]
    assert (
        "absent is left out" in printed.err and "failing is left out: it fails on this network (KeyError" in printed.err
    )
    ((fast,), _, (noise,)) = found.values()
    assert fast.source == "colours" and list(fast.transfer) == ["same_colours"]
    assert values(fast, "same_colours", "rank").dropna().tolist() == [0, 0, 0]
    assert values(noise, "same_colours", "rank").dropna().mean() > 0
    features = [u for u in fast.units if u.startswith("features:")]
    among = [values(r, "same_colours", "among_images")[features].mean() for r in (fast, noise)]
    assert among[0] > among[1]
    assert fast.seconds > 0 and noise.seconds > 0 and noise.size == "24"
    page = (tmp_path / "README.md").read_text()
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| ")]
    assert [row[0].strip("| ") for row in rows] == ["way", "pixels", "interact", "noise, batched"]
    assert len({len(row) for row in rows}) == 1
    assert rows[1][1] == "3 + 4, 16 px" and rows[1][3:6] == ["1.00 [0.44, 1.00]", "1.00 [0.44, 1.00]", "0"]
    with Image.open(strip) as picture:
        step = image_strip.CELL + image_strip.GAP
        assert picture.size == (image_strip.LABEL + 7 * step, 3 * step + step // 4)
    images.main(NetworkOptions(), JudgeOptions(), **places(tmp_path), check=True)
    (tmp_path / "README.md").write_text(page.replace("1.00", "0.99"))
    with pytest.raises(FeatmapError, match=r"README\.md and images\.json disagree"):
        images.main(NetworkOptions(), JudgeOptions(), **places(tmp_path), check=True)


def test_the_committed_table_agrees_with_the_values() -> None:
    assert image_records.STORE.is_file() and image_records.page_is_fresh()


def test_what_is_measured_is_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (first,) = compare(tmp_path, features=0)["pixels"]
    made: list[tuple[str, int]] = []
    real = image_ways.RecipeWay.make

    def counted(way: image_ways.RecipeWay, task: Any, seed: int, watcher: Any) -> Any:
        made.append((way.name, seed))
        return real(way, task, seed, watcher)

    monkeypatch.setattr(image_ways.RecipeWay, "make", counted)
    again = compare(tmp_path, recipes="pixels,interact", features=0)
    assert made == [("interact", 0)] and again["pixels"] == [first]
    compare(tmp_path, features=0, size=20)  # another size is another recipe, and takes its place
    assert made == [("interact", 0), ("pixels", 0)]
    found = compare(tmp_path, features=0, size=20, seeds=2)
    assert made[2:] == [("pixels", 1)] and [r.seed for r in found["pixels"]] == [0, 1] and len(found["interact"]) == 1
    assert "3, 20 px, 2 seeds" in (tmp_path / "README.md").read_text()


def test_a_tool_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[str, int]] = []

    def slow(network: Network, layer: str, channels: Sequence[int], seed: int) -> Tensor:
        made.extend((layer, c) for c in channels)
        if len(made) == 3:
            raise KeyboardInterrupt
        return pink_noise(1, 400) * len(made)

    monkeypatch.setattr(image_ways, "OPPONENTS", (Opponent("slow", 400, "slow", slow),))
    with pytest.raises(KeyboardInterrupt):
        compare(tmp_path, recipes="", opponents="slow", few="2+1")
    (record,) = compare(tmp_path, recipes="", opponents="slow", few="2+1")["slow"]
    assert record.size == "16", "larger images than photographs are measured at are reduced"
    assert record.units == [f"{layer}:{c}" for layer, c in (*made[:2], made[3])] and made[2] == made[3]
    assert [u.partition(":")[0] for u in record.units] == ["fc", "fc", "features"]
    compare(tmp_path, recipes="", opponents="slow", few="2+1")
    compare(tmp_path, recipes="", opponents="slow", few="2+2")
    assert len(made) == 5, "another feature leaves the others as they are"


def test_some_channels_are_evenly_spaced_and_nested() -> None:
    assert image_ways.spread([3, 5, 8, 9], 2) == [3, 8] and image_ways.spread([3, 5], 4) == [3, 5]
    assert set(image_ways.spread(range(16), 4)) < set(image_ways.spread(range(16), 8))
    with pytest.raises(FeatmapError, match="--few x: give a number"):
        image_ways.ToolWay(TOOLS[0], "x")


@pytest.mark.parametrize(
    ("text", "lucent", "horama"),
    [
        (None, [], []),
        ("8", [8], [8]),
        ("8+4;horama=2+0", [8, 4], [2, 0]),
        ("horama=2+0; 8+4", [8, 4], [2, 0]),
        ("horama=2", [], [2]),
        ("lucent, batched=3", [], []),
    ],
)
def test_one_tool_can_make_fewer_than_the_others(text: str | None, lucent: list[int], horama: list[int]) -> None:
    assert image_ways.parse_few(text, "lucent") == lucent and image_ways.parse_few(text, "horama") == horama


@pytest.mark.parametrize("text", ["", "8+", "8+4+2", "8;horama=", "8;horama=x"])
def test_what_is_no_number_of_classes_is_refused(text: str) -> None:
    with pytest.raises(FeatmapError, match="give a number, or classes"):
        image_ways.parse_few(text, "horama")


def test_a_number_for_an_unknown_tool_is_refused() -> None:
    with pytest.raises(FeatmapError, match="opponent 'horma' is unknown; allowed: article"):
        image_ways.parse_few("8;horma=2", "horama")


def test_photographs_of_the_classes_are_the_ceiling(tmp_path: Path) -> None:
    folder = tmp_path / "photographs"
    folder.mkdir()
    for name, colour in zip("abcd", ("red", "lime", "blue", "gray"), strict=True):
        Image.new("RGB", (20, 20), colour).save(folder / f"{name}.png")
    (record,) = compare(tmp_path, folder, class_order=True, units="0,2", features=0)["photographs of the classes"]
    assert record.units == ["fc:0", "fc:2"] and record.kind == "photographs" and record.seconds is None
    assert record.transfer["same_colours"]["rank"] == [0, 0], "red and blue are what these classes are for"
    assert "| photographs of the classes | 2, 16 px |" in (tmp_path / "README.md").read_text()
    Image.new("RGB", (20, 20), "red").save(folder / "e.png")
    with pytest.raises(FeatmapError, match="5 photographs for 4 classes"):
        compare(tmp_path, folder, class_order=True, units="0,2", features=0)


def test_stored_photographs_give_the_same_measures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photographs = twofold.photographs(tmp_path / "photographs", count=40)
    first = compare(tmp_path, photographs)["pixels"]
    (tmp_path / "images.json").unlink()

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(image_ways.PhotographEvidence, "_batches", refuse)
    assert compare(tmp_path, photographs)["pixels"] == first


def test_classes_may_be_named(tmp_path: Path) -> None:
    assert compare(tmp_path, features=0, units="1,2")["pixels"][0].units == ["fc:1", "fc:2"]


def test_nothing_to_make_and_unknown_tools_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FeatmapError, match="nothing to make"):
        compare(tmp_path, classes=0, features=0)
    with pytest.raises(FeatmapError, match="is unknown; allowed: article"):
        compare(tmp_path, opponents="lucid")
    with pytest.raises(FeatmapError, match="--seeds 0: give 1 or more"):
        compare(tmp_path, seeds=0)


def made(seed: int, ranks: list[float | None], percentiles: list[float | None]) -> Record:
    """A record of two classes and three features."""
    units = ["fc:1", "fc:2", "l:1", "l:2", "l:3"]
    transfers = {"other": {"rank": [*ranks, None, None, None], "percentile": [None, None, *percentiles]}}
    record = Record("net", "0", "way", "recipe", "", seed, 0, "x", "8", "fc", units, 2.0 + seed, {}, transfers)
    record.measures["multiple_of_best_photograph"] = [9.0, 9.0, 1.0, 2.0, 4.0 + seed]
    return record


def test_seeds_of_one_class_are_one_observation() -> None:
    group = [made(0, [0, 7], [0.5, 0.7, 0.9]), made(1, [0, 3], [0.7, 0.9, None])]
    ranks = image_records.pool(group, "transfer", "rank", "other")
    # by hand: Wilson's interval of 2 of 4 images with n = 2 classes, z = 1.96
    z = 1.959964
    reach = z * np.sqrt(0.25 / 2 + z**2 / 16) / (1 + z**2 / 2)
    half = f"0.50 [{0.5 - reach:.2f}, {0.5 + reach:.2f}]"
    assert image_records.rank_cells(ranks) == [half, half.replace("0.50 [", "0.75 [") and _wilson(0.75, 2, z), "1.5"]
    means = np.array([0.6, 0.8, 0.9])
    ends = means.mean() + np.array([-1, 1]) * 4.302653 * means.std(ddof=1) / np.sqrt(3)
    cell = image_records.mean_cell(image_records.pool(group, "transfer", "percentile", "other"))
    assert cell == f"{means.mean():.2f} [{ends[0]:.2f}, {min(ends[1], 1):.2f}]"
    row = image_records.format_source(group).splitlines()[-1].split(" | ")
    assert row[:3] == ["| way", "2 + 3, 8 px, 2 seeds", "2.5"] and row[-2] == "2.00", "multiples are of features only"


def _wilson(share: float, n: int, z: float) -> str:
    """Wilson's interval as the two roots of (share - p)^2 = z^2 p (1 - p) / n."""
    low, high = sorted(np.roots([1 + z**2 / n, -(2 * share + z**2 / n), share**2]))
    return f"{share:.2f} [{low:.2f}, {high:.2f}]"


def test_records_are_kept_in_place_and_read_back(tmp_path: Path) -> None:
    store = RecordFile(tmp_path / "images.json")
    for record in (made(0, [0, 7], [0.5, 0.7, 0.9]), made(1, [None, 3], [0.7, 0.9, 1]), made(0, [1, 1], [0, 0, 0])):
        store.add(record)
    found = store.read()
    assert [(r.seed, r.transfer["other"]["rank"][0]) for r in found] == [(0, 1), (1, None)]
    assert store.find("net", "way", 1, "x") == found[1] and store.find("net", "way", 1, "y") is None
    text = store.path.read_text()
    assert json.loads(text) and all(len(line) < 200 for line in text.splitlines()) and text.count("\n") < 90


def test_every_draw_has_its_own_records_and_table(tmp_path: Path) -> None:
    store = RecordFile(tmp_path / "images.json")
    store.add(made(0, [0, 7], [0.5, 0.7, 0.9]))
    store.add(replace(made(0, [0, 0], [0.5, 0.7, 0.9]), draw=3, settings="y"))
    assert store.find("net", "way", 0, "y").draw == 3 and store.find("net", "way", 0, "x").draw == 0  # type: ignore[union-attr]
    page = image_records.format_page(store.read())
    first, second = page.split("### Images of net, draw ")[1:]
    assert first.startswith("0\n") and "| 0.50 [" in first and second.startswith("3\n") and "| 1.00 [" in second


def test_a_strip_shows_units_that_most_ways_have(tmp_path: Path) -> None:
    many, few = [f"l:{k}" for k in range(12)], ["l:3", "l:11"]
    rows = [("many", images_of_pixels(many, pink_noise(12, 8))), ("few", images_of_pixels(few, torch.ones(2, 3, 8, 8)))]
    columns = image_strip.choose_columns(rows)
    assert (
        len(columns) == image_strip.SHOWN
        and {"l:3", "l:11"} < set(columns)
        and columns == sorted(columns, key=many.index)
    )
    image_strip.draw_strip([(n, i) for n, i in rows], tmp_path / "strip.png")
    with Image.open(tmp_path / "strip.png") as picture:
        pixels = np.asarray(picture.convert("L"))
    step = image_strip.CELL + image_strip.GAP
    blank = pixels[step // 4 + step :, image_strip.LABEL :]
    assert blank.min() > 250, "a way without an image of a unit leaves its cell white, and ones are white"


def test_a_tool_gets_a_network_of_its_own() -> None:
    network = Network(judges.original(), "original", "its own", "0", mean=(0.5, 0.5, 0.5), std=(2.0, 2.0, 2.0))
    copy = image_ways.copy_network(network)
    assert copy.mean == network.mean and copy.std == network.std and copy.module is not network.module
    with torch.no_grad():
        copy.module.features.conv.weight.zero_()
    assert network.module.features.conv.weight.abs().sum() > 0
    assert all(p.requires_grad for p in network.module.parameters())
    assert not any(p.requires_grad for p in copy.module.parameters())


def test_the_network_of_a_tool_normalises_by_itself() -> None:
    network = Network(judges.original(), "original", "its own", "0", mean=(0.5, 0.4, 0.3), std=(2.0, 3.0, 4.0))
    x = torch.rand(2, 3, 16, 16)
    by_hand = (x - torch.tensor(network.mean)[:, None, None]) / torch.tensor(network.std)[:, None, None]
    assert torch.allclose(opponents.Normalised(network)(x), network.module(by_hand), atol=1e-6)


def test_values_of_horama_reach_the_network_in_zero_to_one(monkeypatch: pytest.MonkeyPatch) -> None:
    network = Network(judges.colours(), "colours", "its own", "0", mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    seen: dict[str, Any] = {}
    fake, part = ModuleType("horama"), ModuleType("horama.maco_fv")

    def maco(objective: Any, **options: Any) -> tuple[Tensor, None]:
        crops = torch.linspace(-2.5, 2.5, 6 * 3 * 16 * 16).reshape(6, 3, 16, 16).requires_grad_(True)
        score = objective(crops)
        score.backward()
        seen.update(score=score.item(), crops=crops.detach(), gradient=crops.grad, options=options)
        return crops[0], None

    fake.maco, fake.maco_fv, part.MACO_SPECTRUM_FILENAME, part.tqdm = maco, part, "", None  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "horama", fake)
    monkeypatch.setitem(sys.modules, "horama.maco_fv", part)
    image = opponents._horama(total_steps=7)(network, "fc", [2], 0)
    assert image.shape == (1, 3, 16, 16) and image.min() == 0 and seen["options"] == {"device": "cpu", "total_steps": 7}
    expected = network.module(((seen["crops"] / 5 + 0.5) - 0.5) / 0.25)[:, 2].mean()
    assert seen["score"] == pytest.approx(expected.item(), rel=1e-5) and seen["gradient"].abs().sum() > 0
    assert records.marks("x")[0] == "<!-- x: made by the script -->"


def test_agreements_among_fewer_features_are_left_out() -> None:
    agreement = {"l": {"agreement": 0.5, "agreement_of_S": 0.6}}
    whole = replace(made(0, [0, 7], [0.5, 0.7, 0.9]), agreement=agreement)
    less = replace(whole, way="slow", units=whole.units[:-1], measures={}, transfer={})
    assert image_records.count_units(whole) == (2, 3) and image_records.count_units(less) == (2, 2)
    kept, emptied = image_records.keep_comparable([whole, less])
    assert kept == whole and emptied == replace(less, agreement={})
    assert image_records.keep_comparable([less]) == [less], "alone, it has no other to be compared with"
    fewer_classes = replace(whole, units=whole.units[1:])
    assert image_records.keep_comparable([whole, fewer_classes]) == [whole, fewer_classes]
    lines = image_records.format_source([whole, less]).splitlines()
    assert [line.split(" | ")[-1] for line in lines if "8 px" in line] == ["0.50 / 0.60+ |", " |"]


def test_agreements_of_earlier_and_present_records_are_told_apart() -> None:
    """Earlier records took roots of the responses to images only."""
    old, new = {"agreement": 0.5, "agreement_of_roots": 0.6}, {"agreement": 0.7, "agreement_of_S": 0.9}

    def cell(*agreements: dict[str, float | None]) -> str:
        group = [made(k, [0, 7], [0.5, 0.7, 0.9]) for k in range(len(agreements))]
        layers = [{"l": values, "fc": {"agreement": 0.0}} for values in agreements]
        return image_records._agreement_cell([replace(r, agreement=v) for r, v in zip(group, layers, strict=True)])

    assert cell(old) == "0.50 / 0.60" and cell(new) == "0.70 / 0.90+"
    assert cell(old, old | {"agreement": 0.7}) == "0.60 / 0.60"
    assert cell() == cell({}) == cell({"agreement": 0.5}) == ""


def test_dead_zones_are_counted_and_named() -> None:
    """A feature's coverage is the mean over seeds; the limit is 0.9 of its best photograph's, by hand."""
    group = [made(k, [0, 7], [0.5, 0.7, 0.9]) for k in range(2)]
    for record, covered in zip(group, ([0.52, 0.80, 0.2], [0.4, 0.84, None]), strict=True):
        record.measures["coverage"] = [None, None, *covered]
        record.measures["coverage_of_best_photograph"] = [None, None, 0.5, 0.90, 0.25]
    table = image_records.compare_coverage(group)
    assert table["coverage"].tolist() == pytest.approx([0.46, 0.82, 0.2])
    assert table["dead_zones"].tolist() == [False, False, True]
    text = image_records.format_source(group)
    assert "| 0.52 (2 of 3) |" in text, "the median over all images: 0.2, 0.4, 0.52, 0.8, 0.84"
    assert text.splitlines()[-1] == "- Dead zones by way: l:3 (0.20 of 0.25)"
    unknown = [replace(r, measures={"coverage": r.measures["coverage"]}) for r in group]
    assert image_records.compare_coverage(unknown).empty and "Dead zones" not in image_records.format_source(unknown)
    tool = [replace(r, kind="tool") for r in group]
    assert "Dead zones" not in image_records.format_source(tool), "only recipes are ours to mend"
