"""The atlas of a network of gray images that are not square, as a reader has it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import featmap
from featmap.optimize.recipe import Recipe
from featmap.runs.engine import Execution
from tests.helpers.browser import Tab, chromium, needs_chromium

COLOURS = """async (source) => {
  const picture = new Image(); picture.src = source; await picture.decode();
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [picture.width, picture.height];
  const context = canvas.getContext("2d"); context.drawImage(picture, 0, 0);
  const { data } = context.getImageData(0, 0, canvas.width, canvas.height);
  let colour = 0, low = 255, high = 0;
  for (let p = 0; p < data.length; p += 4) {
    colour = Math.max(colour, Math.abs(data[p] - data[p + 1]), Math.abs(data[p] - data[p + 2]));
    low = Math.min(low, data[p]); high = Math.max(high, data[p]);
  }
  return [picture.width, picture.height, colour, high - low];
}"""


@needs_chromium
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::featmap.stats.measures.FewStimuliWarning")
def test_gray_pictures_are_gray_and_keep_their_ratio(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module: Any = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 5, 3, padding=1)).eval()
    network, folder = featmap.load(module), tmp_path / "gray"
    recipe = Recipe.named("pixels", size=(16, 32), steps=4, rows=4)
    featmap.similarity("2", network, recipe=recipe, execution=Execution("cpu", out=folder))
    page = featmap.atlas(folder, network=network)[0]
    with chromium() as browser:
        tab = Tab(browser, page, "#2:1")
        opened = tab.ready()
        picture = opened.locator(".stack img").first
        picture.wait_for()
        width, height, colour, contrast = opened.evaluate(COLOURS, picture.get_attribute("src"))
        assert (width, height) == (32, 16) and colour <= 2 and contrast > 10
        whole = picture.bounding_box()
        covered = opened.locator(".stack canvas").first.bounding_box()
        assert covered["width"] == pytest.approx(whole["width"], abs=1)
        assert covered["height"] == pytest.approx(whole["height"] / 2, abs=1), "the map covers what the picture fills"
        assert covered["y"] - whole["y"] == pytest.approx(whole["height"] / 4, abs=1)
        assert tab.faults == []
        tab.keep("gray")
