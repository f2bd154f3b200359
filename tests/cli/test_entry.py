"""How threads wait is said before torch is loaded, unless the user has said it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from featmap.cli import entry


@pytest.mark.parametrize(
    ("platform", "given", "found"),
    [
        ("linux", {}, {"GOMP_SPINCOUNT": "10000"}),
        ("darwin", {}, {"OMP_WAIT_POLICY": "PASSIVE"}),
        ("linux", {"OMP_WAIT_POLICY": "ACTIVE"}, {"OMP_WAIT_POLICY": "ACTIVE"}),
        ("linux", {"GOMP_SPINCOUNT": "5"}, {"GOMP_SPINCOUNT": "5"}),
    ],
)
def test_threads_spin_a_little_unless_told_otherwise(
    platform: str, given: dict[str, str], found: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    entry.limit_thread_spinning(given)
    assert given == found


@pytest.mark.parametrize("module", ["analyses", "featmap.cli.entry"])
def test_it_is_said_before_torch_is_there(module: str) -> None:
    said = "GOMP_SPINCOUNT" if sys.platform == "linux" else "OMP_WAIT_POLICY"
    program = (
        f"import os, sys, {module}\n"
        "import featmap.cli.entry as b, typer\n"
        "app = typer.Typer()\n"
        "app.command()(lambda: None)\n"
        "sys.argv = ['x']\n"
        "try:\n    b.run(app, 'x')\n"
        f"except SystemExit:\n    print(os.environ.get('{said}'), 'torch' in sys.modules)"
    )
    plain = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    found = subprocess.run([sys.executable, "-c", program], env=plain, capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["10000" if sys.platform == "linux" else "PASSIVE", "False"]


@pytest.mark.parametrize(("call", "frozen"), [("main()", "True"), ("main(['recipes', 'fast'])", "False")])
def test_only_a_process_of_its_own_ends_without_a_search_for_garbage(call: str, frozen: str) -> None:
    program = (
        "import atexit, gc, sys; atexit.register(lambda: print(gc.get_freeze_count() > 0)); "
        f"sys.argv = ['featmap', 'recipes', 'fast']; from featmap.cli import app as cli; cli.{call}"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.startswith("fast\n") and done.stdout.splitlines()[-1] == frozen
