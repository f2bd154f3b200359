"""Make the pictures of the project's front page with the commands beside them.

    python -m analyses.showcase [--runs FOLDER] [--pictures analyses/pictures]    # some minutes on two cores
    python -m analyses.showcase --only interaction
    python -m analyses.showcase --imagenet "--model imagenet_nets:googlenet --mean 0.48,0.46,0.41 ..."

Each picture is made by a user's command in a process of its own: the heatmap (`featmap similarity`), the maximising
images (`featmap maximise`), the panel of two features (`featmap interact`). Chromium takes the screenshot of the atlas
through Playwright (`pip install -e '.[test]'`); without it the old picture is kept, with a message. Runs in `--runs`
are resumed. The commands print what the front page quotes. `pictures.json` records the weights and commands.

`googlenet.png` is of a GoogLeNet trained on ImageNet, whose weights are not part of the project: it is made where
`--imagenet` names such a network, and kept otherwise.
"""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from PIL import Image

from analyses.support.commands import run
from featmap import FeatmapError, load
from featmap.cli.console import err
from featmap.files import digest, hash_file, write_atomically
from featmap.optimize.recipe import Recipe

COMMAND = (sys.executable, "-c", "from featmap.cli.app import main; main()")
RECIPES = ("fast", "interact")
LAYER, PAIR = "inception4a", ("inception4a:17", "inception4b:201")
COMMANDS = {
    "heatmap": ("similarity", "--layer", LAYER),
    "features": ("maximise", "--layer", LAYER, "--features", "0-23"),
    "interaction": ("interact", *PAIR),
    "atlas": (
        "similarity",
        "--layer",
        LAYER,
        "--features",
        "0-127",
        "--stimuli",
        "shown",
        "--probe-layer",
        "inception4b",
    ),
}
"""Pictures and the commands that make them; the front page quotes the first three."""
IMAGENET = ("maximise", "--layer", "inception4c", "--features", "0-23", "--recipe", "natural")
"""Command of `googlenet.png`, without the options that name the network."""
PICTURES = {"heatmap": "heatmap.png", "features": "features.png", "interaction": "panel.png"}
SELECTED, HOVERED = f"#{LAYER}:81", (30, 44)
"""Feature of the atlas whose card is shown, and row and column of the heatmap under the mouse."""
WINDOW = {"width": 1280, "height": 900}


def run_command(name: str, command: tuple[str, ...], weights: str, runs: Path) -> Path:
    """Run or resume the command of a picture, and return its run folder.

    The name of the folder depends on the SHA-256 of the weights.

    Raises
    ------
    FeatmapError
        If it ends with a status other than 0.
    """
    identity = {"weights": weights, "command": command, "recipes": [Recipe.named(n).identity() for n in RECIPES]}
    folder, words = runs / f"{name}-{digest(identity)}", f"featmap {shlex.join(command)}"
    err().print(words)
    done = subprocess.run([*COMMAND, *command, "--out", str(folder)], stdout=sys.stderr, check=False)
    if done.returncode:
        raise FeatmapError(f"{words} ended with status {done.returncode}; see its output above")
    return folder


def capture_atlas(page: Path, picture: Path, selected: str = SELECTED, hovered: tuple[int, int] = HOVERED) -> bool:
    """Take a picture of an atlas with a feature's card and a hovered pair.

    False where no browser is available.
    """
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        return False
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        return False
    with sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=browser, args=["--no-sandbox", "--disable-gpu"])
        tab = opened.new_context(offline=True, viewport=WINDOW).new_page()
        tab.goto(page.absolute().as_uri() + selected)
        for _ in range(300):
            if tab.evaluate("typeof FM !== 'undefined' && FM.images !== null && FM.shownOnCard !== undefined"):
                break
            tab.wait_for_timeout(100)
        else:
            raise FeatmapError(f"{page} was not ready within 30 seconds; open it in a browser to see why")
        tab.mouse.move(*tab.evaluate("([i, j]) => FM.map.pixel(i, j)", list(hovered)))
        tab.wait_for_selector("#tip:not([hidden])")
        tab.wait_for_timeout(500)
        screenshot = tab.screenshot()
        opened.close()
    write_atomically(picture, lambda p: p.write_bytes(screenshot))
    return True


def main(
    runs: Annotated[Path, typer.Option(help="Folder of the runs, which are resumed.")] = Path("runs/showcase"),
    pictures: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("analyses/pictures"),
    imagenet: Annotated[
        str | None, typer.Option(help="Options that name a GoogLeNet trained on ImageNet, such as '--model nets:make'.")
    ] = None,
    only: Annotated[
        str | None, typer.Option(help=f"Make one picture, and keep the others: {', '.join(COMMANDS)}.")
    ] = None,
) -> None:
    """Make the front page's pictures."""
    if only is not None and only not in COMMANDS:
        raise FeatmapError(f"only {only!r}: there is no such picture; give one of {', '.join(COMMANDS)}")
    pictures.mkdir(parents=True, exist_ok=True)
    store = pictures / "pictures.json"
    records = dict[str, Any](json.loads(store.read_text(encoding="utf-8"))["pictures"] if store.is_file() else {})
    weights = load().sha256
    for name, command in COMMANDS.items() if only is None else ((only, COMMANDS[only]),):
        folder = run_command(name, command, weights, runs)
        picture = pictures / f"{name}.png"
        if name in PICTURES:
            shutil.copyfile(folder / PICTURES[name], picture)
        elif not capture_atlas(folder / "atlas.html", picture):
            err().print(f"{picture} is kept: Chromium with Playwright is missing here; open {folder / 'atlas.html'}")
            continue
        records[name] = {"command": f"featmap {shlex.join(command)}", "sha256": hash_file(picture)}
    if imagenet is not None:
        folder, picture = (
            run_command("googlenet", (*IMAGENET, *shlex.split(imagenet)), "", runs),
            pictures / "googlenet.png",
        )
        with Image.open(folder / "features.png") as sheet:  # images of ImageNet's detail: under 2 MB at this size
            smaller = sheet.convert("RGB").resize(
                (sheet.width * 9 // 10, sheet.height * 9 // 10), Image.Resampling.LANCZOS
            )
        write_atomically(picture, lambda p: smaller.save(p, format="PNG", optimize=True))
        network = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["identity"]["model"]["sha256"]
        words = f"featmap {shlex.join(IMAGENET)}"
        records["googlenet"] = {"command": words, "sha256": hash_file(picture), "weights": network}
    text = json.dumps({"weights": weights, "pictures": records}, indent=1) + "\n"
    write_atomically(store, lambda p: p.write_text(text, encoding="utf-8"))


if __name__ == "__main__":
    run(main)
