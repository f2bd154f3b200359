"""The boundary of every command: errors name options, and threads are set up before torch is loaded."""

from __future__ import annotations

import os
import subprocess
import sys
import types

import pytest
import typer
from torch import nn

from featmap.cli import app, entry
from featmap.errors import InputError


@pytest.mark.parametrize(
    ("platform", "environment", "expected"),
    [
        ("linux", {}, {"GOMP_SPINCOUNT": "10000"}),
        ("darwin", {}, {"OMP_WAIT_POLICY": "PASSIVE"}),
        ("linux", {"OMP_WAIT_POLICY": "ACTIVE"}, {"OMP_WAIT_POLICY": "ACTIVE"}),
        ("linux", {"GOMP_SPINCOUNT": "5"}, {"GOMP_SPINCOUNT": "5"}),
    ],
)
def test_threads_spin_a_little_unless_the_user_sets_it(
    platform: str, environment: dict[str, str], expected: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    entry.limit_thread_spinning(environment)
    assert environment == expected


@pytest.mark.parametrize("module", ["analyses", "featmap.cli.entry"])
def test_spinning_is_limited_before_torch_is_loaded(module: str) -> None:
    printed = "GOMP_SPINCOUNT" if sys.platform == "linux" else "OMP_WAIT_POLICY"
    program = (
        f"import os, sys, {module}\n"
        "import featmap.cli.entry as b, typer\n"
        "app = typer.Typer()\n"
        "app.command()(lambda: None)\n"
        "sys.argv = ['x']\n"
        "try:\n    b.run(app, 'x')\n"
        f"except SystemExit:\n    print(os.environ.get('{printed}'), 'torch' in sys.modules)"
    )
    plain = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    found = subprocess.run([sys.executable, "-c", program], env=plain, capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["10000" if sys.platform == "linux" else "PASSIVE", "False"]


@pytest.mark.parametrize(("call", "frozen"), [("main()", "True"), ("main(['recipes', 'fast'])", "False")])
def test_only_the_commands_own_process_skips_the_last_collection(call: str, frozen: str) -> None:
    program = (
        "import atexit, gc, sys; atexit.register(lambda: print(gc.get_freeze_count() > 0)); "
        f"sys.argv = ['featmap', 'recipes', 'fast']; from featmap.cli import app as cli; cli.{call}"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.startswith("fast (default on a CPU)\n") and done.stdout.splitlines()[-1] == frozen


@pytest.mark.parametrize(
    ("message", "words", "expected"),
    [
        ("size 0: an image has at least 1 pixel", ["--size", "0"], "--size 0: an image has at least 1 pixel"),
        ("size 0: an image has at least 1 pixel", ["--size=0"], "--size 0: an image has at least 1 pixel"),
        ("input size 0: give 1", ["--size", "8", "--input-size", "0"], "--input-size 0: give 1"),
        ("C nan: give a finite number", ["--C", "nan"], "--C nan: give a finite number"),
        ("metric 'l3' is unknown", ["--steps", "3", "--metric", "l3"], "--metric 'l3' is unknown"),
        ("size 9: choose 15 or more", ["--steps", "3"], "size 9: choose 15 or more"),  # the recipe's own size
        ("sizes 1, 2", ["--size", "1"], "sizes 1, 2"),
        ("no layer 'x' of size 3", ["--size", "3"], "no layer 'x' of size 3"),
        ("size", ["--size"], "size"),
        (" 0", ["--", "-", ""], " 0"),
        (
            "images 'a': 1 cannot be read; go on (skip_broken)",
            ["a"],
            "images 'a': 1 cannot be read; go on (--skip-broken)",
        ),
        ("allow it (allow_stochastic)", [], "allow it (--allow-stochastic)"),
    ],
)
def test_an_error_names_the_option_that_set_the_value(message: str, words: list[str], expected: str) -> None:
    assert entry.name_option(message, words) == expected


def test_a_guessed_size_names_the_option_that_sets_it(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        app.main(["layers", "--model", "tests.cli.test_entry:oblong"])
    printed = " ".join(capsys.readouterr().out.split())
    assert end.value.code == 0
    assert "input size 32 x 64, found by trying" in printed
    assert "other heights and widths may fit too, so name the one that it was trained for (--input-size)" in printed


def oblong() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 2, 1), nn.MaxPool2d(8), nn.Flatten(), nn.Linear(2 * 4 * 8, 3)).eval()


OPTIONS = ["--metric", "l3"], ["--recipe", "fats"], ["--rows", "1"], ["--features", "11"], ["--measure", "x"]


@pytest.mark.parametrize("words", [*OPTIONS, ["--neighbours", "0"], ["--weights", "none.pth"], ["--device", "x"]])
def test_a_wrong_value_is_reported_with_its_option(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    model = ["--model", "tests.helpers.tiny:small", "--layer", "second", "--size", "16", "--dry-run"]
    with pytest.raises(SystemExit) as end:
        app.main(["similarity", *model, *words])
    assert end.value.code == 2
    assert capsys.readouterr().err.startswith(f"featmap: {words[0]} ")


def test_a_wrapper_is_printed_below_the_message(capsys: pytest.CaptureFixture[str]) -> None:
    commands = typer.Typer()

    @commands.command()
    def command() -> None:
        raise InputError("network x takes two inputs", "class OnImages:\n    first\n    second")

    with pytest.raises(SystemExit) as ended:
        entry.run(commands, "featmap", [])
    assert ended.value.code == 2
    expected = "featmap: network x takes two inputs\nclass OnImages:\n    first\n    second\n"
    assert capsys.readouterr().err == expected


@pytest.mark.parametrize("loaded", [False, True])
def test_objects_are_collected_at_exit_where_the_compiler_is_loaded(
    loaded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    frozen: list[bool] = []
    monkeypatch.setattr("gc.freeze", lambda: frozen.append(True))
    monkeypatch.delitem(sys.modules, "triton", raising=False)
    if loaded:
        monkeypatch.setitem(sys.modules, "triton", types.ModuleType("triton"))
    entry._skip_last_collection()
    assert frozen == ([] if loaded else [True])
