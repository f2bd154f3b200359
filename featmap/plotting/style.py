"""What every figure is drawn with: one style, colours, texts that fit, pictures, and files written whole."""

from __future__ import annotations

import io
import os
import textwrap
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib import colors as mcolors
from matplotlib import pyplot as plt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from PIL import Image, ImageFont

# Okabe and Ito's colours (no black), then always the farthest next one in OKLab under normal, protan, deutan and
# tritan sight (Machado et al. 2009, doi:10.1109/TVCG.2009.113), in an order in which neighbours differ.
_COLOURS = (
    "0072b2e69f00009e73d55e00cc79a756b4e9f0e442a52d6996b4874b1e969678ff695a0078ffb4004bc3692d2d"
    "785ae1a55a4b87d2ff966987f0c3785a4b96ff78d25a2d6978a55a872d4b96e1a57878d2f0783ca5f0e1a5784b"
)
SHADES, NAMED = "RdBu_r", 64  # of every heatmap: its colours, and features with a name each
FAINT, GRAY = "#555555", "#c9c9c9"
DPI, LARGEST = 150, 5000  # pixels an inch; the longer side of a PNG
_STYLE = {"font.sans-serif": ["DejaVu Sans", "Verdana", "Arial"], "text.hinting": "none"}
_STYLE |= {"svg.fonttype": "none", "svg.hashsalt": "featmap"}
_FONT = ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")), 100)
house_style = plt.style.context(["default", _STYLE])  # draw alike whatever the user's matplotlibrc says
_OPTIONS: dict[str, dict[str, Any]] = {  # no dates; zlib's Z_RLE (3): half the seconds for pictures, and no larger
    "png": {"metadata": {"Software": None}, "pil_kwargs": {"compress_level": 1, "compress_type": 3}},
    "svg": {"metadata": {"Date": None}},
}


def cluster_colours(k: int) -> list[tuple[float, float, float]]:
    """Return the colours of clusters 0 .. k - 1 as RGB in [0, 1]: the same in every figure; 30, then again."""
    return [colour(c) for c in range(k)]


def colour(cluster: int) -> tuple[float, float, float]:
    """Return one cluster's colour, gray for those in none (below 0)."""
    return mcolors.to_rgb(f"#{_COLOURS[6 * cluster % len(_COLOURS) :][:6]}" if cluster >= 0 else GRAY)


def plain(text: object) -> str:
    """Return a text as one line of printable characters: XML forbids some of the others in an SVG."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in " ".join(str(text).split()))


def width_of(text: str) -> float:
    """Return the width of a text set in one point."""
    return _FONT.getlength(text) / 7200


def fit(texts: Iterable[str], inches: float, largest: float) -> tuple[float, list[str]]:
    """Return the font size at which all texts fit into a width, and the texts: at the smallest without middles."""
    lines = [plain(text) for text in texts]
    widths = [width_of(line) for line in lines]
    size = float(np.clip(inches / max([1e-6, *widths]), 5.5, largest))
    halves = [int(len(t) * inches / max(w * size, 1e-6)) // 2 for t, w in zip(lines, widths, strict=True)]
    pairs = zip(lines, halves, strict=True)
    return size, [t if len(t) <= 2 * k + 1 else f"{t[: k - 1]}…{t[len(t) - k :]}" for t, k in pairs]


def wrap(text: str, inches: float, size: float) -> str:
    """Break a text into lines of about a width; its own line breaks are kept."""
    lines: list[str] = []
    for line in map(plain, text.splitlines()):
        room = int(len(line) * inches / max(width_of(line) * size, inches)) + 1
        lines += textwrap.wrap(line, room, break_on_hyphens=False)
    return "\n".join(lines)


def write(axes: plt.Axes, x: float, y: float, text: str, size: float, on: Any = "white", **style: Any) -> None:
    """Write a text as it is (`$` is a character, not the start of a formula), black or white for a background."""
    style.setdefault("color", "black" if np.dot(mcolors.to_rgb(on), (0.299, 0.587, 0.114)) > 0.55 else "white")
    axes.text(x, y, text, parse_math=False, fontsize=size, **{"ha": "center", "va": "top"} | style)


def page_of(figure: Figure, width: float, below: float, title: str) -> tuple[plt.Axes, float]:
    """Size a figure for a title and what is below it; return an Axes in inches behind it all, the title's end."""
    size = max(11.0, 0.65 * width)
    heading = wrap(title, width - 0.4, size)
    top = 0.2 + size / 55 * len(heading.splitlines())
    FigureCanvasAgg(figure).figure.set_size_inches(width, top + below)
    page = figure.add_axes((0, 0, 1, 1), zorder=-1)
    page.set(xlim=(0, width), ylim=(top + below, 0), autoscale_on=False)
    page.set_axis_off()
    write(page, width / 2, 0.13, heading, size)
    return page, top


def cell_of(n: int) -> float:
    """Return the side of a heatmap's cells in inches for n of them: whole pixels, so that all are alike."""
    return float(max(2, round(DPI * np.clip(0.16, 3.6 / n, 9.6 / n))) / DPI)


def name_step(n: int) -> int:
    """Return how many features lie between two that are named on a heatmap of n."""
    return 1 if n <= NAMED else -(-n // 32)


def number_stretches(axes: plt.Axes, numbers: Sequence[int], inches: float, upright: bool) -> None:
    """Write each cluster's number on those of its stretches of a band that are long enough."""
    end = 0.0
    for number, stretch in groupby(numbers):
        end += (length := len(list(stretch)))
        if number >= 0 and length * inches / len(numbers) >= 0.07 * len(str(number)) + 0.03:
            x, y = (0.5, end - length / 2) if upright else (end - length / 2, 0.5)
            write(axes, x, y, str(number), 7.5, on=colour(number), va="center_baseline")


def list_notes(page: plt.Axes, x: float, y: float, notes: Sequence[tuple[Any, str]]) -> None:
    """Write notes below a colour bar, each with a swatch of its colour (None: without)."""
    for i, (shade, note) in enumerate(notes):
        if shade is not None:
            page.add_patch(plt.Rectangle((x, y + 0.2 * i), 0.16, 0.12, facecolor=shade))
        write(page, x + (0 if shade is None else 0.21), y + 0.06 + 0.2 * i, note, 8, ha="left", va="center")


class _Picture(AxesImage):
    """An image scaled by Pillow in a PNG (matplotlib takes seconds for a large sheet), not at all in an SVG."""

    def make_image(self, renderer: Any, magnification: float = 1.0, unsampled: bool = False) -> Any:
        if unsampled:
            return super().make_image(renderer, magnification, unsampled)
        x0, y0, x1, y1 = np.rint(np.multiply(self.get_window_extent().extents, magnification)).astype(int)
        image = Image.fromarray(np.asarray(self.get_array()))
        image = image.resize((max(1, x1 - x0), max(1, y1 - y0)), Image.Resampling.BICUBIC).convert("RGBA")
        return np.array(image)[::-1], x0 / magnification, y0 / magnification, None


def show(page: plt.Axes, pixels: np.ndarray, x: float, y: float, w: float, h: float) -> None:
    """Show pixels (uint8 [h, w, 3]) on a page, their upper left corner at x, y; all in inches."""
    picture = _Picture(page, extent=(x, x + w, y + h, y), interpolation="none", origin="upper")
    picture.set_data(pixels)
    page.add_image(picture)


def pixels(image: np.ndarray, longest: int) -> np.ndarray:
    """Return float [3, h, w] as uint8 [h, w, 3], clipped to [0, 1], its longer side at most `longest`, not tiny."""
    finite = np.nan_to_num(np.asarray(image, dtype=np.float32), nan=0.5, posinf=1, neginf=0).clip(0, 1)
    zoom = max(1, longest // (3 * max(finite.shape)))  # a thumbnail's frame would be as coarse as its pixels
    tile = Image.fromarray(np.rint(255 * finite.transpose(1, 2, 0)).astype(np.uint8).repeat(zoom, 0).repeat(zoom, 1))
    tile.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    return np.asarray(tile)


@house_style
def save(
    figure: Figure, path_without_suffix: str | Path, formats: Sequence[str] = ("png", "svg"), dpi: int = DPI
) -> list[Path]:
    """Write a figure to `path_without_suffix` + "." + each format (png, svg), close it, return the paths.

    Files appear whole or not at all, the same bytes every time. A PNG's side has at most 5000 pixels, whatever `dpi`.
    """
    base, dots = Path(path_without_suffix), min(dpi, LARGEST / max(figure.get_size_inches()))
    paths = [base.with_name(f"{base.name}.{suffix}") for suffix in formats]
    base.parent.mkdir(parents=True, exist_ok=True)
    for path, suffix in zip(paths, formats, strict=True):
        part = base.with_name(f".{base.name}.{os.getpid()}.part.{suffix}")
        try:
            figure.savefig(part, dpi=dots, **_OPTIONS[suffix])
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    plt.close(figure)
    return paths


@house_style
def webp(figure: Figure, dpi: int = DPI, quality: int = 88) -> bytes:
    """Return a figure as WebP and close it: pictures take a fifth of their PNG. Same bytes every time."""
    stream, written = io.BytesIO(), io.BytesIO()
    figure.savefig(stream, format="png", dpi=min(dpi, LARGEST / max(figure.get_size_inches())), **_OPTIONS["png"])
    plt.close(figure)
    with Image.open(stream) as drawn:
        drawn.convert("RGB").save(written, "WEBP", quality=quality, method=4)
    return written.getvalue()
