"""Style shared by all figures: colours, text that fits its space, pictures, and atomic saving."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterable, Sequence
from functools import partial
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

from featmap.files import write_atomically
from featmap.image_shape import to_8_bit

# The colours of Okabe and Ito without black, then always the colour farthest (in OKLab) from those before it under
# normal, protan, deutan and tritan vision (Machado et al. 2009, doi:10.1109/TVCG.2009.113), in an order in which
# neighbours differ.
_COLOURS = (
    "0072b2e69f00009e73d55e00cc79a756b4e9f0e442a52d6996b4874b1e969678ff695a0078ffb4004bc3692d2d"
    "785ae1a55a4b87d2ff966987f0c3785a4b96ff78d25a2d6978a55a872d4b96e1a57878d2f0783ca5f0e1a5784b"
)
COLOUR_MAP = "RdBu_r"
"""Diverging colour map of every heatmap."""
MAX_LABELS = 64
"""Most features that are all labelled on an axis of a heatmap; of more, about 32 are."""
FAINT, GRAY = "#555555", "#c9c9c9"
NARROWEST = 1e-6
"""Least width of a text in inches per point, so that an empty one has a font size too."""
DPI, MAX_PIXELS = 150, 5000
"""Resolution of a PNG in pixels per inch, and the most pixels on its longer side."""
_STYLE = {"font.sans-serif": ["DejaVu Sans", "Verdana", "Arial"], "text.hinting": "none"}
_STYLE |= {"svg.fonttype": "none", "svg.hashsalt": "featmap"}
_FONT = ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")), 100)
house_style = plt.style.context(["default", _STYLE])
"""Decorator and context manager: draw with the same style whatever the user's matplotlibrc says."""
# No dates, so that the bytes repeat. Z_RLE (3) of zlib takes half the time for pictures, and the files are no larger.
_OPTIONS: dict[str, dict[str, Any]] = {
    "png": {"metadata": {"Software": None}, "pil_kwargs": {"compress_level": 1, "compress_type": 3}},
    "svg": {"metadata": {"Date": None}},
}


def cluster_colours(k: int) -> list[tuple[float, float, float]]:
    """Choose the colours of clusters 0 to k - 1, the same in every figure.

    Parameters
    ----------
    k : int
        Number of clusters; the 30 colours repeat beyond that.

    Returns
    -------
    list of tuple of float
        RGB in [0, 1], one for each cluster.
    """
    return [colour(c) for c in range(k)]


def colour(cluster: int) -> tuple[float, float, float]:
    """Choose the colour of one cluster or data series.

    Parameters
    ----------
    cluster : int
        Number of the cluster; negative for features in no cluster.

    Returns
    -------
    tuple of float
        RGB in [0, 1]; gray for a negative number.
    """
    return mcolors.to_rgb(f"#{_COLOURS[6 * cluster % len(_COLOURS) :][:6]}" if cluster >= 0 else GRAY)


def printable_line(text: object) -> str:
    """Convert a text into one line of printable characters.

    Control characters, some of which XML forbids in an SVG, become replacement characters.

    Parameters
    ----------
    text : object
        Text, or an object whose string form is used.

    Returns
    -------
    str
        The text, each run of white space replaced by one space.
    """
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in " ".join(str(text).split()))


def text_width(text: str) -> float:
    """Measure the width of a text set at a size of one point.

    Parameters
    ----------
    text : str
        One line of text.

    Returns
    -------
    float
        Width in inches; multiply by the font size in points.
    """
    return _FONT.getlength(text) / 7200


def fit_text(texts: Iterable[str], inches: float, largest: float) -> tuple[float, list[str]]:
    """Choose one font size at which all texts fit into a width.

    Parameters
    ----------
    texts : iterable of str
        Texts, of one line each.
    inches : float
        Width available, in inches.
    largest : float
        Largest font size, in points; the smallest is 5.5.

    Returns
    -------
    size : float
        Font size in points.
    lines : list of str
        The texts; those too long even at the smallest size have their middle replaced by an ellipsis.
    """
    lines = [printable_line(text) for text in texts]
    widths = [text_width(line) for line in lines]
    size = float(np.clip(inches / max([NARROWEST, *widths]), 5.5, largest))
    halves = [int(len(t) * inches / max(w * size, NARROWEST)) // 2 for t, w in zip(lines, widths, strict=True)]
    pairs = zip(lines, halves, strict=True)
    return size, [t if len(t) <= 2 * k + 1 else f"{t[: k - 1]}…{t[len(t) - k :]}" for t, k in pairs]


def wrap_text(text: str, inches: float, size: float) -> str:
    """Break a text into lines of about a given width.

    Parameters
    ----------
    text : str
        Text; its own line breaks are kept.
    inches : float
        Width of a line, in inches.
    size : float
        Font size, in points.

    Returns
    -------
    str
        The text with line breaks.
    """
    lines: list[str] = []
    for line in map(printable_line, text.splitlines()):
        room = int(len(line) * inches / max(text_width(line) * size, inches)) + 1
        lines += textwrap.wrap(line, room, break_on_hyphens=False)
    return "\n".join(lines)


def draw_text(
    axes: plt.Axes, x: float, y: float, text: str, size: float, background: Any = "white", **style: Any
) -> None:
    """Draw a text literally: `$` is a character, not the start of a formula.

    Parameters
    ----------
    axes : matplotlib.axes.Axes
        Axes to draw in.
    x, y : float
        Position in the axes' data coordinates: by default of the middle of the text's upper edge.
    text : str
        Text to draw.
    size : float
        Font size, in points.
    background : colour, default "white"
        Colour behind the text, which is drawn in black or white, whichever contrasts more.
    **style : Any
        Further properties of a matplotlib text.
    """
    style.setdefault("color", "black" if np.dot(mcolors.to_rgb(background), (0.299, 0.587, 0.114)) > 0.55 else "white")
    axes.text(x, y, text, parse_math=False, fontsize=size, **{"ha": "center", "va": "top"} | style)


def add_page(figure: Figure, width: float, below: float, title: str) -> tuple[plt.Axes, float]:
    """Size a figure for its title and content, and draw the title.

    Parameters
    ----------
    figure : matplotlib.figure.Figure
        Empty figure.
    width : float
        Width of the figure, in inches.
    below : float
        Height of the content below the title, in inches.
    title : str
        Title, broken into lines as needed.

    Returns
    -------
    page : matplotlib.axes.Axes
        Axes behind all others, in inches from the figure's upper left corner.
    top : float
        Lower end of the title, in inches.
    """
    size, heading, top = _title(title, width)
    FigureCanvasAgg(figure).figure.set_size_inches(width, top + below)
    page = figure.add_axes((0, 0, 1, 1), zorder=-1)
    page.set(xlim=(0, width), ylim=(top + below, 0), autoscale_on=False)
    page.set_axis_off()
    draw_text(page, width / 2, 0.13, heading, size)
    return page, top


def _title(title: str, width: float) -> tuple[float, str, float]:
    """Choose the font size of a title and break it into lines; return its lower end too, in inches."""
    size = max(11.0, 0.65 * width)
    heading = wrap_text(title, width - 0.4, size)
    return size, heading, 0.2 + size / 55 * len(heading.splitlines())


def title_height(title: str, width: float) -> float:
    """Compute where the title that `add_page` draws ends.

    Parameters
    ----------
    title : str
        The title.
    width : float
        Width of the figure, in inches.

    Returns
    -------
    float
        Inches from the upper edge.
    """
    return _title(title, width)[2]


def cell_size(n: int) -> float:
    """Choose the side of a heatmap's cells, in whole pixels.

    Whole pixels make all cells look the same.

    Parameters
    ----------
    n : int
        Number of rows or columns.

    Returns
    -------
    float
        Side in inches.
    """
    return float(max(2, round(DPI * np.clip(0.16, 3.6 / n, 9.6 / n))) / DPI)


def label_step(n: int) -> int:
    """Choose which features are labelled on a heatmap: every k-th.

    Parameters
    ----------
    n : int
        Number of features.

    Returns
    -------
    int
        The step k: 1 for up to `MAX_LABELS` features.
    """
    return 1 if n <= MAX_LABELS else -(-n // 32)


def label_runs(axes: plt.Axes, numbers: Sequence[int], inches: float, upright: bool) -> None:
    """Write cluster numbers on a band of colours, on every run long enough.

    Parameters
    ----------
    axes : matplotlib.axes.Axes
        Axes of the band, with one unit for each feature along it and [0, 1] across.
    numbers : sequence of int
        Cluster numbers along the band; negative ones are not written.
    inches : float
        Length of the band, in inches.
    upright : bool
        Whether the band runs downwards.
    """
    end = 0.0
    for number, run in groupby(numbers):
        end += (length := len(list(run)))
        if number >= 0 and length * inches / len(numbers) >= 0.07 * len(str(number)) + 0.03:
            x, y = (0.5, end - length / 2) if upright else (end - length / 2, 0.5)
            draw_text(axes, x, y, str(number), 7.5, background=colour(number), va="center_baseline")


def draw_notes(page: plt.Axes, x: float, y: float, notes: Sequence[tuple[Any, str]]) -> None:
    """Draw a list of notes, each with a swatch of its colour.

    Parameters
    ----------
    page : matplotlib.axes.Axes
        Axes in inches, as `add_page` returns them.
    x, y : float
        Upper left corner of the list, in inches.
    notes : sequence of (colour, str)
        Colour of the swatch (None for no swatch) and text of each note.
    """
    for i, (shade, note) in enumerate(notes):
        if shade is not None:
            page.add_patch(plt.Rectangle((x, y + 0.2 * i), 0.16, 0.12, facecolor=shade))
        draw_text(page, x + (0 if shade is None else 0.21), y + 0.06 + 0.2 * i, note, 8, ha="left", va="center")


class _Picture(AxesImage):
    """An image scaled by Pillow in a PNG and not at all in an SVG."""

    def make_image(self, renderer: Any, magnification: float = 1.0, unsampled: bool = False) -> Any:
        if unsampled:
            return super().make_image(renderer, magnification, unsampled)
        # Pillow instead of matplotlib's own resampling, which takes seconds for a large sheet.
        x0, y0, x1, y1 = np.rint(np.multiply(self.get_window_extent().extents, magnification)).astype(int)
        image = Image.fromarray(np.asarray(self.get_array()))
        image = image.resize((max(1, x1 - x0), max(1, y1 - y0)), Image.Resampling.BICUBIC).convert("RGBA")
        return np.array(image)[::-1], x0 / magnification, y0 / magnification, None


def draw_picture(page: plt.Axes, pixels: np.ndarray, x: float, y: float, w: float, h: float) -> None:
    """Draw a picture on a page.

    Parameters
    ----------
    page : matplotlib.axes.Axes
        Axes in inches, as `add_page` returns them.
    pixels : numpy.ndarray
        Picture, uint8, `H x W x 3`.
    x, y : float
        Upper left corner, in inches.
    w, h : float
        Width and height, in inches.
    """
    picture = _Picture(page, extent=(x, x + w, y + h, y), interpolation="none", origin="upper")
    picture.set_data(pixels)
    page.add_image(picture)


def fit_square(height: int, width: int, side: float) -> tuple[float, float]:
    """Compute how large an image is that fits into a square.

    Parameters
    ----------
    height, width : int
        Rows and columns of the image.
    side : float
        Side of the square, in inches.

    Returns
    -------
    (float, float)
        Width and height, in inches.
    """
    return side * min(1, width / height), side * min(1, height / width)


def draw_image(page: plt.Axes, image: np.ndarray, x: float, y: float, side: float, longest: int) -> tuple[float, float]:
    """Draw an image as large as it fits into a square, in the middle of it.

    Parameters
    ----------
    page : matplotlib.axes.Axes
        Axes in inches, as `add_page` returns them.
    image : numpy.ndarray
        Image, `C x H x W`, clipped to [0, 1].
    x, y : float
        Upper left corner of the square, in inches.
    side : float
        Side of the square, in inches.
    longest : int
        Most pixels on the longer side, see `thumbnail`.

    Returns
    -------
    (float, float)
        Width and height of the image, in inches.
    """
    height, width = np.shape(image)[1:]
    wide, tall = fit_square(height, width, side)
    draw_picture(page, thumbnail(image, longest), x + (side - wide) / 2, y + (side - tall) / 2, wide, tall)
    return wide, tall


def thumbnail(image: np.ndarray, longest: int) -> np.ndarray:
    """Convert an image to 8 bits and bring it to about a given size.

    Parameters
    ----------
    image : numpy.ndarray
        Image, `C x H x W`, clipped to [0, 1]; NaN becomes middle gray. Other than three channels are shown as
        `featmap.image_shape.to_rgb` shows them.
    longest : int
        Most pixels on the longer side. A very small image is enlarged by a whole factor to at least a third of about
        that.

    Returns
    -------
    numpy.ndarray
        Picture, uint8, `h x w x 3`.
    """
    pixels = to_8_bit(image)
    zoom = max(1, longest // (3 * max(pixels.shape)))  # the frame of a tiny picture would be as coarse as its pixels
    tile = Image.fromarray(pixels.repeat(zoom, 0).repeat(zoom, 1))
    tile.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    return np.asarray(tile)


@house_style
def save(
    figure: Figure, path_without_suffix: str | Path, formats: Sequence[str] = ("png", "svg"), dpi: int = DPI
) -> list[Path]:
    """Write a figure in one or more formats and close it.

    Each file appears complete or not at all, and the same figure always gives the same bytes.

    Parameters
    ----------
    figure : matplotlib.figure.Figure
        Figure to write.
    path_without_suffix : str or Path
        Path to which "." and the format are appended; its folder is made if missing.
    formats : sequence of str, default ("png", "svg")
        Formats to write, of "png" and "svg".
    dpi : int, default DPI
        Resolution of a PNG in pixels per inch, lowered so that no side has more than `MAX_PIXELS` (5000) pixels.

    Returns
    -------
    list of Path
        The files, one for each format.
    """
    base, dots = Path(path_without_suffix), min(dpi, MAX_PIXELS / max(figure.get_size_inches()))
    paths = [base.with_name(f"{base.name}.{suffix}") for suffix in formats]
    for path, suffix in zip(paths, formats, strict=True):
        write_atomically(path, partial(figure.savefig, dpi=dots, **_OPTIONS[suffix]))
    plt.close(figure)
    return paths


@house_style
def encode_webp(figure: Figure, dpi: int = DPI, quality: int = 88) -> bytes:
    """Encode a figure as WebP and close it.

    A figure of pictures takes a fifth of the bytes of its PNG. The same figure always gives the same bytes.

    Parameters
    ----------
    figure : matplotlib.figure.Figure
        Figure to encode.
    dpi : int, default DPI
        Resolution in pixels per inch, lowered so that no side has more than `MAX_PIXELS` (5000) pixels.
    quality : int, default 88
        Quality of the compression, 0 to 100.

    Returns
    -------
    bytes
        The WebP file.
    """
    png, encoded = io.BytesIO(), io.BytesIO()
    figure.savefig(png, format="png", dpi=min(dpi, MAX_PIXELS / max(figure.get_size_inches())), **_OPTIONS["png"])
    plt.close(figure)
    with Image.open(png) as picture:
        picture.convert("RGB").save(encoded, "WEBP", quality=quality, method=4)
    return encoded.getvalue()
