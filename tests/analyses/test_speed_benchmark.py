"""The benchmark of speed: its opponents, its protocol, its chain of variants, and what it writes."""

from __future__ import annotations

import json
import math
import random
import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from analyses.benchmarks import opponents, speed, steps
from analyses.formulas import spectra
from featmap import Network, channel, image_ops, load
from featmap.errors import FeatmapError
from featmap.optimize.batch import Batches
from featmap.optimize.recipe import Octave, Recipe
from tests.helpers import networks

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("one_thread")


def inception() -> Network:
    return load(networks.small_inception(), input_size=32)


def test_aims_are_compared_with_measurements() -> None:
    opponents_of = [{"name": "lucent", "size": 128}, {"name": "lucent, batched", "size": 128}]
    rows = [
        {"opponent": opponent, "recipe": name, "precision": "float32", "size": size, "ratios": ratios}
        for opponent, name, size, ratios in (
            ("lucent", "pixels", 128, [10.0, 50.0, 29.0]),
            ("lucent", "pixels-long", 128, [31.0, 0.0, 30.0]),
            ("lucent", "pixels", 96, [99.0] * 3),
            ("lucent", "pixels-long", 96, [90.0] * 3),
            ("lucent, batched", "pixels", 128, [40.0] * 3),
            ("lucent, batched", "pixels-long", 128, [41.0] * 3),
            ("lucent, batched", "pixels", 96, [50.0] * 3),
            ("lucent, batched", "pixels-long", 96, [60.0] * 3),
        )
    ]
    variants = [("whole", "float32", 40.0, 0.1), ("article", "float32", 30.0, 0.2), ("ours", "float32", 11.2, 0.9)]
    chain = [
        {"variant": v, "precision": p, "in_use": True, "ms": ms, "share": share}
        for v, p, ms, share in [*variants, ("ours, half", "bfloat16", 5.0, 0.5)]
    ]
    compared = {"opponents": opponents_of, "own_size": 96, "rows": rows}
    lines = speed._aim_lines({"compared": compared, "steps": {"rows": chain}})
    assert lines[2] == "| times faster than lucent, 128 px | 30 | 30 (`pixels-long`; 2 of 3 features) | reached |"
    assert lines[3] == (
        "| times faster than lucent, batched, 96 px | 100 | 60 (`pixels-long`; 3 of 3 features) | **not reached** |"
    )
    assert lines[4] == "| a step in float32, times faster than the article's | 2.7 | 2.68 | **not reached** |"
    assert [line.endswith("| reached |") for line in lines[5:]] == [False, True, True, True, False]


@pytest.mark.parametrize("name", ["article", "article-normalised"])
def test_the_articles_own_loop_makes_what_our_recipe_of_its_name_makes(name: str) -> None:
    network = inception()
    octaves = tuple(
        replace(o, steps=6, size=size, rate=(0.02, 0.01))
        for o, size in zip(Recipe.named(name).octaves, (24, 28, 32), strict=True)
    )
    short = replace(Recipe.named(name), octaves=octaves, rows=2)
    first = short.mean + short.std * image_ops.noise(3, 24)[None]
    theirs = opponents.article_loop(network, "mixed", 2, first, octaves, normalised=short.optimiser == "rms")
    ours = Batches(network, CPU).descend([channel("mixed", 2)], short, 3).images
    assert torch.linalg.vector_norm(theirs - ours) < 1e-3 * torch.linalg.vector_norm(theirs - theirs.mean())
    assert all(p.grad is None for p in network.module.parameters())


def test_an_image_is_judged_clamped_and_at_the_size_named() -> None:
    network = inception()
    image = 3 * torch.rand(1, 3, 40, 40, generator=torch.Generator().manual_seed(1)) - 1
    found = speed.judge_at_sizes(network, "mixed", 4, image, [32, 40])
    for size in (32, 40):
        shown = image_ops.resize(image.clamp(0, 1), size)
        with torch.no_grad():
            kept = steps._run_whole(network.module, "mixed", network.normalise(shown))
        activation, high = found[size]
        assert activation == pytest.approx(float(kept[0, 4].mean()), rel=1e-5)
        assert high == pytest.approx(float(spectra.high_frequency_share(shown.numpy())[0]), rel=1e-6)


def test_reached_is_the_first_step_with_activation_and_few_frequencies() -> None:
    found = speed.Course("pixels", "float32", 32, [0, 2, 4, 6], [[9.0, 1.0, 2.0, 3.0]] * 2, [[0.0, 0.5, 0.4, 0.1]] * 2)
    assert speed.first_reached(found, 0, 1.0, 0.5) == 2, "the start does not count"
    assert speed.first_reached(found, 0, 1.0, 0.3) == 6
    assert speed.first_reached(found, 0, 3.5, 1.0) is None
    finals = [speed.Final("x", f"a:{k}", k, 12.0, {32: level}, {32: 0.4}) for k, level in enumerate((1.5, 9.0))]
    paces = [{32: speed.Pace(0, 0.5, 0.5)}] * 2
    assert speed.time_ratios(finals, found, ["a:0", "a:1"], paces, Recipe.named("pixels").resolved(32)) == [
        12.0 / (4 * 0.5),
        0.0,
    ]
    assert speed.format_ratios([6.0, 0.0]) == "not reached (0 to 6), 1 of 2"
    assert speed.format_ratios([6.0, 0.0, 8.0]) == "**6** (0 to 8), 2 of 3"
    assert speed.format_ratios([1234.5, 0.42, 15.6]) == "**16** (0.42 to 1,234), 3 of 3"


def test_a_course_is_judged_like_any_image() -> None:
    network = inception()
    found = speed.follow_course(network, "mixed", [1, 4], "pixels", "float32", 32, 0)
    made = Batches(network, CPU).descend(
        [channel("mixed", 1), channel("mixed", 4)], speed.resolved_recipe(network, "pixels", 32, rows=2), 0
    )
    activation, high = speed.judge_images(network, "mixed", [1, 4], made.images)
    assert found.steps == list(range(0, Recipe.named("pixels").steps + 1, 2))
    assert np.allclose([row[-1] for row in found.activation], activation, rtol=1e-5)
    assert np.allclose([row[-1] for row in found.high], high, rtol=1e-5)
    assert found.activation[0][-1] > found.activation[0][0]


def test_every_variant_of_a_step_has_the_same_gradient() -> None:
    network = inception()
    gradients = {v.name: steps.make_step(v, network, "mixed", 32)()[0] for v in steps.variants(network, "mixed", 32)}
    first = gradients.pop("the whole network, weights with gradients, one image")
    size = torch.linalg.vector_norm(first)
    assert size > 0 and len(gradients) == 7
    for name, gradient in gradients.items():
        gap = torch.linalg.vector_norm(gradient - first) / size
        assert gap < (0.15 if name == "bfloat16" else 1e-4), (name, gap)


def test_operations_are_counted_forward_and_back_to_the_image() -> None:
    network = load(nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False)).eval(), input_size=16)
    assert steps.count_flops(network, "0", 16) == 2 * (2 * 8 * 3 * 9 * 16 * 16)


def test_compiled_and_plain_steps_share_module_and_rows() -> None:
    network = inception()
    ours, plain = steps.compile_variant(network, "mixed", 32, CPU, 2, "torch.compile, float32")
    assert ours.module is plain.module and ours.rows == plain.rows == 2 and plain.run is None and ours.run is not None
    with pytest.raises(FeatmapError, match="--rows 1: give 2 or more"):
        steps.main(rows=1)


def test_both_peaks_are_of_as_many_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    for make in steps.PEAKS.values():
        with steps.FlopCounterMode(display=False) as counted:
            make(torch.float32, CPU, 64)()
        assert counted.get_total_flops() == 2 * 64**3


def test_a_compiler_that_fails_is_left_out(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def broken(*given: object) -> None:
        if given[-1] == "torch.compile, bfloat16":
            raise AssertionError
        raise RuntimeError("no compiler here\nand more")

    network = inception()
    monkeypatch.setattr(steps, "compile_variant", broken)
    for name, value in (("SIZE", 32), ("ROUNDS", 2), ("MATRIX", 64)):
        monkeypatch.setattr(steps, name, value)
    found = steps.measure(network, "mixed", CPU, 2)
    printed = capsys.readouterr().err
    assert "torch.compile, float32 is left out: RuntimeError: no compiler here\n" in printed
    assert "torch.compile, bfloat16 is left out: AssertionError" in printed
    assert [r["in_use"] for r in found["rows"]] == [True] * 8
    assert list(found["operations"]) == ["first convolution regrouped", "bfloat16"]
    best = max(found["peak_gflops"]["float32"].values())
    row = found["rows"][5]
    assert row["share"] == pytest.approx(found["gflop"] / (row["ms"] / 1000) / best)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # the compiler looks at the normalised images'
def test_steps_are_measured_on_a_device_and_by_the_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("SIZE", 32), ("ROUNDS", 2), ("MATRIX", 64)):
        monkeypatch.setattr(steps, name, value)
    monkeypatch.setattr(steps, "load", lambda *_: inception())
    page, numbers = tmp_path / "README.md", tmp_path / "steps.json"
    steps.main(device="cpu", rows=2, layer="mixed", out=numbers, readme=page)
    (found,) = json.loads(numbers.read_text()).values()
    assert steps.format_table(found) in page.read_text()
    assert found["images"] == 2 and all(r["ms"] > 0 for r in found["rows"])
    tried = [r["variant"] for r in found["rows"] if not r["in_use"]]
    if shutil.which("g++"):
        assert tried == ["torch.compile, float32", "torch.compile, bfloat16"]
        assert "| torch.compile, float32 (tried, not in use; without the compiler, in the same" in page.read_text()


def test_time_is_divided_among_operations() -> None:
    one, two = torch.rand(400, 400), torch.rand(400, 400)
    shares = steps.operation_shares(lambda: (one @ two).relu())
    assert max(shares, key=lambda name: shares[name]) == "mm" and 0.5 < sum(shares.values()) <= 1.001


def test_predicted_seconds_include_steps_that_rescue_dead_rows() -> None:
    short = replace(Recipe.named("pixels").resolved(32), rescue=0.25)
    steps_made, looking = short.steps, math.ceil(short.steps / 4)
    paces = {32: speed.Pace(5, 3, 1)}
    assert speed.predict_seconds(paces, 1, short) == 8
    assert speed.predict_seconds(paces, steps_made, short) == 5 + 3 * looking + (steps_made - looking)
    final = [speed.Final("x", "mixed:1", turn, 60.0, {32: 1.0}, {32: 0.5}) for turn in (0, 1)]
    course = speed.Course("pixels", "float32", 32, [0, 2], [[9.0, 1.0]], [[0.0, 0.5]])
    by_turn = [{32: speed.Pace(0, 3, 1)}, {32: speed.Pace(4, 3, 1)}]
    assert speed.time_ratios(final, course, ["mixed:1"], by_turn, short) == [10.0, 6.0]


def test_steps_of_a_smaller_octave_cost_what_they_cost_there() -> None:
    octaves = (Octave(4, (0.1, 0.1), size=16), Octave(4, (0.1, 0.1), size=32))
    two = replace(Recipe.named("pixels"), octaves=octaves, rescue=0.75)
    paces = {16: speed.Pace(100, 2, 1), 32: speed.Pace(5, 20, 10)}
    assert speed.predict_seconds(paces, 3, two) == 5 + 3 * 2
    assert speed.predict_seconds(paces, 5, two) == 5 + 4 * 2 + 20
    assert speed.predict_seconds(paces, 8, two) == 5 + 4 * 2 + 2 * 20 + 2 * 10


def test_a_course_counts_steps_at_its_own_size_only() -> None:
    network = inception()
    found = speed.follow_course(network, "mixed", [1, 4], "large", "bfloat16", 32, 0)
    small, full = Recipe.named("large").octaves
    assert found.steps == [s for s in range(0, small.steps + full.steps + 1, 2) if s > small.steps]
    assert [len(row) for row in found.activation + found.high] == [len(found.steps)] * 4


def test_a_pace_is_what_the_clock_says(monkeypatch: pytest.MonkeyPatch) -> None:
    network, batches = inception(), Batches(inception(), CPU)
    begun = time.perf_counter()
    found = speed.measure_pace(batches, "mixed", 32, [3, 4], rows=4)
    whole = time.perf_counter() - begun
    made = 4 * (found.ends + 4 * found.looking + 4 * found.step)
    assert 0 < made < 3 * whole and min(found.looking, found.step) > 0 and network.name


def test_an_opponent_that_is_not_installed_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(opponents.MODULES, "torch-lucent", "no_such_module_at_all")
    here = {o.name: o.installed for o in opponents.OPPONENTS}
    assert here["article"] and here["article-normalised"] and not here["lucent"]


def test_global_generators_are_as_before() -> None:
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    drawn = []
    for _ in range(2):
        with opponents.seeded_globals(4):
            drawn.append((torch.rand(2).tolist(), random.random(), np.random.rand()))  # noqa: NPY002
    assert drawn[0] == drawn[1]
    assert torch.equal(before[0], torch.get_rng_state()) and before[1] == random.getstate()
    assert before[2] == np.random.get_state()[1].tolist()  # noqa: NPY002


def test_the_benchmark_writes_numbers_table_and_figure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lent = []

    def weak(network: Network, layer: str, channels: Sequence[int], seed: int) -> Tensor:
        """Noise; leaves hooks behind that keep what has gradients, as some tools do."""
        images = torch.stack([0.5 + 0.1 * image_ops.noise(seed + c, 24) for c in channels]).requires_grad_(True)
        network.module.get_submodule(layer).register_forward_hook(lambda _, __, output: lent.append(output))
        network.module(network.normalise(images))
        network.module.kept = lent[-1]
        return images.detach()

    known = (opponents.Opponent("weak", 24, "noise", weak), opponents.Opponent("both", 24, "x", weak, None, True))
    monkeypatch.setattr(speed, "OPPONENTS", known)
    monkeypatch.setattr(speed, "SIZES", (24, 32))
    monkeypatch.setattr(steps, "SIZE", 32)
    monkeypatch.setattr(steps, "ROUNDS", 2)
    monkeypatch.setattr(steps, "MATRIX", 64)
    monkeypatch.setattr(steps, "compiler_settings", lambda _: {})
    monkeypatch.setattr(speed, "load", lambda *_: inception())
    page, numbers = tmp_path / "README.md", tmp_path / "speed.json"
    speed.main(layer="mixed", features=2, out=numbers, readme=page)
    found = json.loads(numbers.read_text())
    assert speed.format_table(found) in page.read_text() and speed.format_table(found) in capsys.readouterr().out
    assert "\n| batch norms folded | " in page.read_text() and "\nTime of a step by operation (" in page.read_text()
    assert numbers.with_suffix(".png").stat().st_size > 5000
    finals = found["compared"]["finals"]
    assert [(f["opponent"], f["turn"]) for f in finals] == [("weak", 0), ("both", 0), ("both", 0), ("weak", 1)]
    assert len(lent) == 3, "one call for each feature, one for all in a batch; nobody else ran into its hooks"
    assert {r["size"] for r in found["compared"]["rows"]} == {24, 32}
    assert {(r["recipe"], r["precision"]) for r in found["compared"]["rows"]} == set(speed.OURS)
    assert "| opponent | `pixels` | `pixels-long` | `large` | `pixels-long`, bfloat16 | " in page.read_text()
    for row in found["compared"]["rows"]:
        assert len(row["ratios"]) == 2 and all(r >= 0 for r in row["ratios"])
    assert found["steps"]["rows"][0]["variant"].startswith("the whole network")
