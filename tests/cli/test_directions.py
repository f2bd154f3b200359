"""Directions on the command line: every command takes them, and wrong ones end in one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from featmap.cli.app import main
from tests.cli.test_app import SMALL, at_home, fail, photograph, succeed
from tests.helpers.tiny import FEATURES

assert at_home  # the fixture under which every test works in a folder of its own
pytestmark = [
    pytest.mark.usefixtures("cheap_runs", "one_thread"),
    pytest.mark.filterwarnings("ignore::featmap.stats.measures.FewStimuliWarning"),
]
VECTORS = np.concatenate([np.eye(FEATURES)[[3]], np.random.default_rng(0).normal(size=(3, FEATURES))])
NETWORK = ["--model", "tests.helpers.tiny:small"]
SET = ["--directions", "second/nmf=d.npz"]


@pytest.fixture(autouse=True)
def file(at_home: None) -> None:
    np.savez("d.npz", directions=VECTORS, bias=np.zeros(4), relu=False, names=list("abcd"))


def test_layers_are_listed_with_directions(capsys: pytest.CaptureFixture[str]) -> None:
    printed = succeed(capsys, "layers", *NETWORK, "--directions", "second=d.npz", "--size", "16")
    assert "second/d: 4 directions in 11 channels with a bias, SHA-256 " in printed
    (line,) = [text for text in printed.splitlines() if text.startswith("second/d ")]
    assert line.split()[1] == "directions" and " 4 " in line


def test_a_direction_of_one_channel_has_its_picture(capsys: pytest.CaptureFixture[str]) -> None:
    np.save("plain.npy", VECTORS)
    units = ["second/plain:0", "second:3", "second/plain:1 + 0.5 * second:2"]
    succeed(capsys, "maximise", *units, "--directions", "second=plain.npy", *SMALL, "--out", "run")
    pictures = [np.asarray(Image.open(p)) for p in sorted(Path("run/images").iterdir())]
    assert len(pictures) == 3 and np.array_equal(pictures[0], pictures[1])
    table = pd.read_csv("run/images.csv")
    assert table["activation"][0] == table["activation"][1]


def test_copies_of_channels_in_one_set_have_a_similarity_of_one(capsys: pytest.CaptureFixture[str]) -> None:
    np.save("both.npy", np.concatenate([np.eye(FEATURES), VECTORS]))
    words = ["similarity", "--layer", "second/both", "--directions", "second=both.npy", "--no-atlas"]
    succeed(capsys, *words, *SMALL, "--out", "run")
    S = pd.read_parquet("run/profile.parquet")
    assert abs(S.loc["second/both:3", f"second/both:{FEATURES}"] - 1) < 1e-9


def test_directions_may_be_given_by_their_names(capsys: pytest.CaptureFixture[str]) -> None:
    units = ["second/nmf:b", "second:3 + 0.5 * second/nmf:d"]
    succeed(capsys, "maximise", *units, *SET, *SMALL, "--out", "run")
    assert list(pd.read_csv("run/images.csv")["image"]) == ["second/nmf:1", "second:3 + 0.5 * second/nmf:3"]
    succeed(capsys, "maximise", "--layer", "second/nmf", "--features", "d,0-1", *SET, *SMALL, "--out", "some")
    assert list(pd.read_csv("some/images.csv")["image"]) == [f"second/nmf:{k}" for k in (0, 1, 3)]
    words = ["--seeds", "1", "--size", "16", "--steps", "2"]
    said = succeed(capsys, "interact", "second/nmf:c", "second:2", *NETWORK, *SET, *words, "--out", "pair")
    assert "second/nmf:2" in said
    message = fail(capsys, "maximise", "second/nmf:f", *SET, *SMALL, "--out", "wrong")
    assert "second/nmf has no direction 'f'" in message and "a number, 0 to 3" in message
    assert "'x' is not a number or range or name" in fail(
        capsys, "maximise", "--layer", "second/nmf", "--features", "x", *SET, *SMALL, "--out", "wrong"
    )


def test_names_that_are_read_as_something_else_are_noted(capsys: pytest.CaptureFixture[str]) -> None:
    np.savez("d.npz", directions=VECTORS, names=["0", "all", "2-3", "c,d"])
    units = ["second/nmf:c,d", "second/nmf:1"]
    printed = succeed(capsys, "maximise", *units, *SET, *SMALL, "--out", "run")
    assert list(pd.read_csv("run/images.csv")["image"]) == ["second/nmf:3", "second/nmf:1"]
    (note,) = [line for line in printed.splitlines() if line.startswith("note: second/nmf")]
    assert "directions named 'all', '2-3', which" in note and "'all' is second/nmf:1" in note
    assert "or its direction 'all'; write second/nmf or second/nmf:1" in fail(
        capsys, "maximise", "second/nmf:all", *SET, *SMALL
    )


def test_a_map_of_channels_and_directions(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["similarity", "--layer", "second", "--layer", "second/nmf", *SET, *SMALL, "--out", "run"]
    printed = succeed(capsys, *words)
    assert "2 layers, 15 features: second, second/nmf" in printed
    assert "result: run" in succeed(capsys, *words)
    assert "every checksum matches" in succeed(capsys, "verify", "run")
    nearest = succeed(capsys, "neighbours", "second/nmf:1", "run", "--count", "2")
    assert "second/nmf:" in nearest and "name" in nearest.splitlines()[1]
    named = succeed(capsys, "neighbours", "second/nmf:b", "run", "--count", "2")
    assert named.replace("second/nmf:b", "second/nmf:1") == nearest
    assert "give a name or a number" in fail(capsys, "neighbours", "second/nmf:e", "run")
    page = Path("run/second-nmf/atlas.html").read_text(encoding="utf-8")
    assert "--directions second/nmf=RUN/directions/second-nmf-" in page
    probed = succeed(capsys, "probe", "run", "--layers", "second/nmf,first", "--out", "probed")
    assert "15 images x 10 responses" in probed
    before = pd.read_parquet("run/second-nmf/activations.parquet")
    again = pd.read_parquet("probed/responses.parquet")
    assert np.array_equal(again.loc[before.index, before.columns], before.astype(np.float32))
    atlas = succeed(capsys, "atlas", "run", "--out", "pages")
    assert "and 2 pages of layers" in atlas


def test_the_commands_of_a_page_make_its_image_again(capsys: pytest.CaptureFixture[str]) -> None:
    from featmap.report.reproduction import Reproduction
    from featmap.runs.manifest import read

    succeed(capsys, "similarity", "--layer", "second/nmf", *SET, *SMALL, "--out", "RUN", "--no-atlas")
    command = Reproduction(read(Path("RUN"))).command("second/nmf:2")
    assert command is not None
    succeed(capsys, *command.split()[1:], "--out", "again")
    import featmap

    one = featmap.open_arrays("RUN")["images"].sel(image="second/nmf:2").values
    assert one.tobytes() == featmap.open_arrays("again")["images"].sel(image="second/nmf:2").values.tobytes()


def test_a_direction_and_a_channel_interact(capsys: pytest.CaptureFixture[str]) -> None:
    printed = succeed(capsys, "interact", "second/nmf:1", "second:5", *SET, *SMALL, "--seeds", "2", "--out", "run")
    assert "second/nmf:1: " in printed and "second:5: " in printed
    assert "every checksum matches" in succeed(capsys, "verify", "run")


def test_pairs_of_directions_and_channels(capsys: pytest.CaptureFixture[str]) -> None:
    pairs = ["--layers", "second/nmf", "first", "--features", "0-1", "0-1", "--seeds", "2"]
    succeed(capsys, "interact", *pairs, *SET, *SMALL, "--out", "run")
    assert len(pd.read_csv("run/pairs.csv")) == 4


@pytest.mark.slow
def test_a_map_of_directions_is_validated(capsys: pytest.CaptureFixture[str]) -> None:
    for k in range(32):
        photograph(Path(f"photographs/{k}.png"), seed=k)
    succeed(capsys, "similarity", "--layer", "second/nmf", *SET, *SMALL, "--out", "run", "--no-atlas")
    printed = succeed(capsys, "validate", "run", "--photographs", "photographs", "--seeds", "2", "--null-seeds", "1")
    assert "result: run/validation" in printed
    assert "every checksum matches" in succeed(capsys, "verify", "run")
    assert "second/nmf" in Path("run/validation/validation.md").read_text(encoding="utf-8")


def _with(**values: object) -> Callable[[], None]:
    return lambda: np.savez("bad.npz", **values)  # type: ignore[arg-type]


WRONG: list[tuple[str, str, Callable[[], None] | None, str]] = [
    ("no file", "second", None, "write LAYER=FILE or LAYER/NAME=FILE"),
    ("missing file", "second=none.npy", None, "'none.npy': there is no such file"),
    ("missing layer", "secnd/nmf=d.npz", None, "nearest: second"),
    ("wrong layer", "first/nmf=d.npz", None, "11 channels wide, while first has 6 channels"),
    ("bad name", "second/n:f=d.npz", None, "'n:f' cannot name a set"),
    ("not finite", "second=bad.npz", _with(directions=VECTORS * np.nan), "is nan"),
    ("zero row", "second=bad.npz", _with(directions=VECTORS * 0), "direction 0 is zero in all channels"),
    ("names twice", "second=bad.npz", _with(directions=VECTORS, names=["a"] * 4), "4 directions are named 'a'"),
    ("pickled", "second=bad.npz", _with(directions=np.array([{}], object)), "pickled objects"),
]


@pytest.mark.parametrize(("option", "prepare", "words"), [w[1:] for w in WRONG], ids=[w[0] for w in WRONG])
def test_wrong_directions_end_in_one_line(
    option: str, prepare: Callable[[], None] | None, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if prepare is not None:
        prepare()
    assert words in fail(capsys, "maximise", "second:0", "--directions", option, *SMALL)


def test_an_unloaded_set_ends_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert "name their file" in fail(capsys, "maximise", "second/nmf:0", *SMALL)
    assert "0 to 3" in fail(capsys, "maximise", "second/nmf:4", *SET, *SMALL)
    with pytest.raises(SystemExit) as end:
        main(["maximise", "second:0", *SET, *SET, *SMALL])
    assert end.value.code == 2 and "there is a layer 'second/nmf' already" in capsys.readouterr().err
