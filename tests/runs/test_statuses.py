"""Networks of dead, constant or non-finite features: a status each, counted in the summary, never an error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from PIL import Image

import featmap
from featmap.cli.app import main
from featmap.interaction import report
from featmap.plotting import labels
from featmap.runs import integrity
from featmap.runs.folder_layout import STATUSES
from tests.helpers import run_kinds

REPOSITORY = Path(__file__).resolve().parent.parent.parent
OPTIONS = ["--size", "12", "--steps", "40", "--rows", "2", "--device", "cpu"]
pytestmark = [
    pytest.mark.filterwarnings("ignore::featmap.stats.measures.FewStimuliWarning"),
    pytest.mark.usefixtures("one_thread"),
]
NETWORKS: dict[str, tuple[str, str, list[str]]] = {
    # its layer, another one, and the statuses of the first one's features
    "sick": ("relu", "features", ["live", "dead", "dead", "not-finite"]),
    "asleep": ("relu", "features", ["dead"] * 3),
    "turning": ("turn", "first", ["live", "live", "not-finite", "not-finite"]),
    "broken": ("features", "relu", ["not-finite"] * 3),
    "level": ("level", "features", ["unconverged", "unconverged", "live"]),
}


@pytest.fixture(autouse=True)
def in_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(REPOSITORY)
    run_kinds.make_runs_cheap(monkeypatch)


def run_command(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    printed = capsys.readouterr()
    assert end.value.code == 0, (arguments, printed.err)
    if "--out" in arguments:
        assert integrity.inspect(Path(arguments[arguments.index("--out") + 1])).faults == []
    return printed.out


def statuses(data: xr.Dataset, layer: str) -> list[str]:
    worst = data["status"].max("seed")
    return [STATUSES[int(worst.sel(image=n))] for n in data["image"].values if n.startswith(f"{layer}:")]


def counted(listed: list[str]) -> str:
    return f"{len(listed)} features: " + ", ".join(f"{listed.count(s)} {s}" for s in STATUSES if s in listed)


def test_each_feature_gets_the_status_of_its_descent(capsys: pytest.CaptureFixture[str]) -> None:
    for name, (layer, _, expected) in NETWORKS.items():
        out = run_command(
            capsys,
            *("similarity", "--layer", layer, "--model", f"tests.helpers.tiny:{name}", *OPTIONS),
            *("--recipe", "pixels", "--out", name),
        )
        assert statuses(featmap.open_arrays(name), layer) == expected, name
        assert counted(expected) in out
        table = pd.read_parquet(Path(name, "features.parquet"))
        assert table["status"].to_list() == expected
        assert json.loads(Path(name, "manifest.json").read_text())["summary"]["statuses"] == {
            s: expected.count(s) for s in expected
        }


def test_a_descent_that_turns_nan_is_recorded_until_then(capsys: pytest.CaptureFixture[str]) -> None:
    run_command(
        capsys,
        "optimize",
        "turn:2",
        "turn:0",
        "--model",
        "tests.helpers.tiny:turning",
        *OPTIONS,
        "--recipe",
        "pixels",
        "--out",
        "run",
    )
    data = featmap.open_arrays("run")
    curves = np.isfinite(data["curve"].values[0])
    assert curves[0, 0] and not curves[0, -1]
    assert curves[1].all()
    assert [STATUSES[s] for s in data["status"].values[0]] == ["not-finite", "live"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sick", "turning", "broken"])
def test_every_command_handles_abnormal_features(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, other, expected = NETWORKS[name]
    ours = ["--model", f"tests.helpers.tiny:{name}", *OPTIONS[:3], "6", *OPTIONS[4:]]
    # it takes all steps until the last feature of `turning` is NaN; in linear steps 6 are enough
    steps = ["--steps", "40" if name == "turning" else "6"]
    maps = ["similarity", "--layers", f"{layer},{other}", *ours, *steps, "--seeds", "2", "--out", "maps"]
    out = run_command(capsys, *maps)
    assert f"{layer}: {len(expected)} features: " in out
    run_command(
        capsys, "similarity", "--layer", layer, "--probe-layer", other, *ours, "--measure", "profile", "--out", "probed"
    )
    run_command(capsys, "probe", "maps", "--layers", f"{layer},{other}", "--out", "responses")
    out = run_command(capsys, "optimize", f"{layer}:1", f"{layer}:0 + {layer}:2", *ours, "--out", "images")
    assert out.splitlines()[1].startswith("2 images: ")
    run_command(capsys, "interact", f"{layer}:0", f"{layer}:2", *ours, "--seeds", "1", "--out", "group")
    words = ["interact", "--layers", layer, other, "--features", "0-2", "0-1", *ours, "--seeds", "2", "--out", "pairs"]
    with monkeypatch.context() as patch:
        patch.setattr(report, "labelled_statistics", labels.labelled_statistics)  # a matrix of each statistic
        out = run_command(capsys, *words)
    assert out.splitlines()[1].startswith("6 pairs: ")
    pairs: Any = [
        "--layers",
        layer,
        other,
        "--features",
        "0-2",
        "0-1",
        "--screen",
        "--top",
        "1",
        "--checks",
        "3",
    ]
    run_command(capsys, "interact", *pairs, *ours, "--seeds", "1", "--out", "screening")
    rng = np.random.Generator(np.random.PCG64(0))
    Path("photographs").mkdir()
    for k in range(33):
        Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)).save(f"photographs/{k}.png")
    run_command(capsys, "validate", "maps", "--seeds", "3", "--null-seeds", "1", "--photographs", "photographs")
    for run in ("maps", "images", "group", "pairs", "screening"):
        run_command(capsys, "atlas", run)
    assert integrity.inspect(Path("maps")).faults == []
