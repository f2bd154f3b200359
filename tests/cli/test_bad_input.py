"""Whatever the input is: an answer, or one clear line and exit status 2."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from featmap.cli import app
from featmap.errors import FeatmapError
from featmap.files import MAX_NAME_BYTES, safe_file_name
from featmap.network.unit import Unit, parse_channels
from featmap.optimize.objective import Objective
from featmap.runs import integrity
from featmap.stats import clustering
from tests.helpers import hostile, tiny

REPOSITORY = Path(__file__).resolve().parent.parent.parent
OURS = ["--model", "tests.helpers.tiny:two", "--size", "8", "--steps", "2", "--rows", "2", "--device", "cpu"]
FRAGMENTS = st.sampled_from(
    [
        "features",
        ":",
        "0",
        "1",
        "-1",
        "..",
        "+",
        " + ",
        "*",
        "0.5",
        ",",
        "-",
        "all",
        "class",
        "e9",
        "nan",
        "²",
        "\0",
        "x",
    ]
)
TEXTS = st.one_of(st.lists(FRAGMENTS, max_size=6).map("".join), st.text(max_size=12))
VALUES = st.one_of(
    TEXTS,
    st.integers(-(10**20), 10**20).map(str),
    st.floats().map(str),
    st.sampled_from(
        ["run", "/dev/null", "/proc/nothing", "../..", "x" * 300, "run/manifest.json", "a\nb", "\u202e", "--"]
    ),
)
FEW = settings(max_examples=50, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
BASES = {
    "similarity": ["similarity", "--layer", "features", *OURS, "--dry-run"],
    "maximise": ["maximise", "features:0", *OURS, "--dry-run"],
    "optimize": ["optimize", "features:0", *OURS, "--dry-run"],
    "interact": ["interact", "features:0", "features:1", *OURS, "--seeds", "1", "--dry-run"],
    "probe": ["probe", "run", "--layers", "features", "--out", "probed"],
    "neighbours": ["neighbours", "features:0", "run"],
    "layers": ["layers", *OURS[:2]],
    "recipes": ["recipes"],
    "atlas": ["atlas", "run", "--no-maps", "--out", "pages"],
    "validate": ["validate", "run", "--seeds", "2", "--null-seeds", "0", "--dry-run"],
    "judge": ["judge", "run", "--by", "tests.helpers.tiny:other", "--by-input-size", "16", "--out", "judged"],
    "verify": ["verify", "run"],
}
pytestmark = [
    pytest.mark.filterwarnings("ignore::featmap.stats.measures.FewStimuliWarning"),
    pytest.mark.usefixtures("cheap_runs", "one_thread"),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a finished run, in which this file's tests work."""
    with pytest.MonkeyPatch.context() as patched:
        patched.syspath_prepend(REPOSITORY)
        folder = tmp_path_factory.mktemp("input")
        patched.chdir(folder)
        with pytest.raises(SystemExit):
            app.main(["similarity", "--layer", "features", *OURS, "--no-atlas", "--out", "run"])
        yield folder


def end(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """Run a command and return its status and error output; an error is one line and never a bug."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        app.main(list(arguments))
    printed, status = capsys.readouterr().err, int(ended.value.code or 0)
    if arguments[0] == "verify" and status == 1:
        return 0, printed
    assert status in (0, 2), (shlex.join(arguments), printed)
    if status == 2:
        *progress, line = printed.splitlines()
        # notes about photographs that turned out not to fit afterwards are progress, and no second error
        assert line.startswith("featmap: ") and not any(p.startswith("featmap: ") for p in progress), (
            arguments,
            printed,
        )
        assert not progress or progress[0] == "photographs opened", (arguments, printed)
        assert not line.startswith("featmap: unexpected") and "Traceback" not in printed
        assert len(line) < 1100
    return status, printed


@FEW
@given(TEXTS)
def test_a_text_is_a_unit_that_prints_as_itself_or_is_refused(text: str) -> None:
    for parse in (Unit.parse, Objective.parse):
        try:
            found = parse(text)
        except FeatmapError as error:
            assert str(error)
            continue
        assert parse(str(found)) == found


@FEW
@given(TEXTS, st.integers(1, 5))
def test_a_text_is_a_list_of_channels_or_is_refused(text: str, count: int) -> None:
    try:
        found = parse_channels(text, count, "layer")
    except FeatmapError as error:
        assert "\n" not in str(error) or "\n" in text
        return
    assert found and set(found) <= set(range(count))


def options(command: str) -> list[str]:
    known = typer.main.get_command(app.app).commands[command].params  # type: ignore[attr-defined]
    return [o for p in known for o in (*p.opts, *p.secondary_opts) if o.startswith("-") and o != "--out"]


@pytest.mark.parametrize("command", BASES)
def test_every_option_takes_or_refuses_every_value(
    command: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    @settings(FEW, max_examples=15)
    @given(st.sampled_from(options(command) or ["--json"]), VALUES, st.booleans(), st.integers(0, 9))
    def give(option: str, value: str, joined: bool, at: int) -> None:
        words = [f"{option}={value}"] if joined and option.startswith("--") else [option, value]
        base = BASES[command]
        at = 1 + at % len(base)
        if words[0].startswith(("--model", "--by")) and ":" in value:
            return  # an import path runs what it names
        end(capsys, *base[:at], *words, *base[at:])

    give()
    integrity.require_intact(Path("run"))


@pytest.mark.parametrize("command", ["neighbours", "atlas", "verify", "validate", "judge", "probe"])
@pytest.mark.parametrize(
    "folder", ["", "run/manifest.json", "a\0b", "x" * 5000, "/dev/null", "nowhere", "\udcff", "run/units"]
)
def test_a_path_that_is_not_a_run_folder_is_refused(
    command: str, folder: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [folder if w == "run" else w for w in BASES[command]]
    model = OURS[:2] if command == "probe" else []
    assert end(capsys, *words, *model)[0] == 2


@pytest.mark.parametrize(
    "name", ["climbing", "parent", "markup", "long", "wide", "lines", "own", "surrogate", "nothing"]
)
def test_names_of_layers_stay_inside_the_run_folder(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(REPOSITORY)
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a" / "b")
    few = partial(clustering.ClusterSettings, runs=3, draws=5)
    monkeypatch.setattr(clustering, "ClusterSettings", few)
    layer, ours = hostile.NAMES[name], ["--model", f"tests.helpers.hostile:{name}", *OURS[2:]]
    status, _ = end(capsys, "similarity", "--layers", f"{layer},last", *ours, "--no-atlas", "--out", "run")
    end(capsys, "maximise", f"{layer}:0", *ours, "--out", "images")
    outside = [p for p in tmp_path.rglob("*") if p.is_file() and not p.is_relative_to(Path("run").absolute())]
    assert [p for p in outside if not p.is_relative_to(Path("images").absolute())] == []
    if status == 0:
        assert integrity.inspect(Path("run")).faults == []
        assert end(capsys, "atlas", "run", "--no-maps")[0] == 0
        pages = [p.read_text(encoding="utf-8") for p in Path("run").rglob("atlas.html")]
        assert len(pages) == (3 if layer.strip() else 1) and all("<img src=x" not in page for page in pages)
    assert end(capsys, "neighbours", f"{layer}:0", "run")[0] == (0 if status == 0 and layer.strip() else 2)


@pytest.mark.parametrize("name", [*hostile.NAMES.values(), "", "....", "-" * 200, "con", "é" * 90])
def test_a_safe_file_name_is_valid_on_every_system(name: str) -> None:
    found = safe_file_name(name)
    assert 0 < len(found.encode()) <= MAX_NAME_BYTES
    assert not set(found) & set('/\\\0:*?"<>|\n') and not found.startswith(".")


def spoiled(state: dict[str, Any], how: str, key: str) -> Any:
    if how == "lost":
        return {k: v for k, v in state.items() if k != key}
    return {
        "shape": state | {key: torch.zeros(2, 2, 2)},
        "scalar": state | {key: torch.tensor(1.0)},
        "words": state | {key: "weights"},
        "integers": state | {key: torch.zeros_like(state[key], dtype=torch.int64)},
        "complex": state | {key: state[key].to(torch.complex64)},
        "more": state | {"another.weight": state[key]},
        "nested": {"state_dict": {"state_dict": {"deep": state}}},
        "keys": {1: state[key]},
        "empty": {},
        "nan": state | {key: torch.full_like(state[key], float("nan"))},
        "sparse": state | {key: state[key].to_sparse()},
        "half": {k: v.half() for k, v in state.items()},
        "empty tensor": state | {key: torch.zeros(0)},
        "number": 3,
    }[how]


HOWS = ["lost", "shape", "scalar", "words", "integers", "complex", "more", "nested", "keys", "empty", "nan", "sparse"]


@pytest.mark.parametrize("how", [*HOWS, "half", "empty tensor", "number"])
def test_a_state_dict_fits_or_is_refused(how: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = tiny.two().state_dict()
    torch.save(spoiled(state, how, "features.weight"), "state.pth")
    words = [*BASES["similarity"], "--weights", "state.pth"]
    assert end(capsys, *words)[0] == (0 if how in ("integers", "nan", "half", "nested") else 2)
