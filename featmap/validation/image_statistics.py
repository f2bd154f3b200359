"""Compute the tables and statistics of a judgement from its evidence."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pandas as pd

from featmap.image_shape import channel_names
from featmap.stats import agreement, image_quality, transfer
from featmap.stats.correlation import t_interval
from featmap.stats.frames import finite_column
from featmap.stats.measures import FEW_STIMULI
from featmap.stats.reliability import Interval
from featmap.validation.image_evidence import OwnEvidence, RunImages
from featmap.validation.results import Statistic
from featmap.validation.statistics import Collector

IMAGES, PHOTOGRAPHS = "images", "photographs"
"""Subject of a statistic that is not a judge's, in place of the judge's name."""
ALL = "all images"
"""Stands for the layer in a statistic of all images."""
IMAGE_RANGE, WILSON, STUDENT = "90 % of images", "95 %, Wilson", "95 %, Student"
"""Kinds of intervals."""


def image_table(images: RunImages, own: OwnEvidence, photographs: OwnEvidence | None) -> pd.DataFrame:
    """Build the table of the measures that need no other network.

    Parameters
    ----------
    images : RunImages
        The images.
    own : OwnEvidence
        Measures of the R images.
    photographs : OwnEvidence or None
        The same of P photographs.

    Returns
    -------
    pandas.DataFrame
        A row for each image: seed, live, layer, activation, contrast, slope, coverage, and the correlation of each two
        of its channels, such as correlation_red_green; with photographs also contrast_ratio, slope_difference and
        colour_distance (the image's own compared with the photographs'), coverage_of_best_photograph and
        multiple_of_best_photograph. NaN where undefined.
    """
    row, feature = np.arange(len(images.labels)), images.feature
    is_feature = feature >= 0
    table = pd.DataFrame(
        {
            "seed": images.seeds,
            "live": images.live,
            "layer": [images.features[k].layer if k >= 0 else "" for k in feature],
            "activation": finite_column(images.activation),
            "contrast": own.pixels.contrast,
            "slope": own.pixels.slope,
            "coverage": _of_feature(own.coverage[row, feature], is_feature) if images.features else np.nan,
        },
        index=pd.Index(images.labels, name="image"),
    )
    names = channel_names(own.pixels.colour.shape[1])
    for a, b in combinations(range(len(names)), 2):
        table[f"correlation_{names[a]}_{names[b]}"] = own.pixels.colour[:, a, b]
    if photographs is not None:
        reference = photographs.pixels
        table["contrast_ratio"] = own.pixels.contrast / _positive(_median(reference.contrast))
        table["slope_difference"] = own.pixels.slope - _median(reference.slope)
        table["colour_distance"] = image_quality.colour_distance(own.pixels.colour, mean_colour(photographs))
        if images.features:
            best = agreement.best_photographs(photographs.responses, 1)[:, 0]
            of_best = photographs.coverage[best, np.arange(len(best))]
            table["coverage_of_best_photograph"] = _of_feature(of_best[feature], is_feature)
            multiples = agreement.multiples_of_best(own.responses[row, feature], photographs.responses[:, feature])
            table["multiple_of_best_photograph"] = _of_feature(multiples, is_feature)
    return table


def _of_feature(values: np.ndarray, is_feature: np.ndarray) -> np.ndarray:
    """Replace the values of images that were not made for a feature by NaN."""
    return finite_column(np.where(is_feature, values, np.nan))


def _positive(value: float) -> float:
    """Replace a denominator that is not above 0 by NaN."""
    return value if value > 0 else float("nan")


def _median(values: np.ndarray) -> float:
    """Compute the median of the finite values; NaN without any."""
    finite = values[np.isfinite(values)]
    return float(np.median(finite)) if len(finite) else float("nan")


def mean_colour(photographs: OwnEvidence) -> np.ndarray:
    """Average the colour correlations of photographs.

    Parameters
    ----------
    photographs : OwnEvidence
        Measures of P photographs; those with a constant channel are left out.

    Returns
    -------
    numpy.ndarray
        C x C; NaN if none is left.
    """
    colour = photographs.pixels.colour
    defined = np.isfinite(colour).all((1, 2))
    return colour[defined].mean(axis=0) if defined.any() else np.full(colour.shape[1:], np.nan)


def transfer_table(
    images: RunImages,
    judge: tuple[str, Sequence[str]],
    judged: tuple[np.ndarray, np.ndarray],
    photographs: tuple[np.ndarray, np.ndarray] | None,
    classes: str | None,
) -> pd.DataFrame:
    """Build the table of what one judge recognises.

    Parameters
    ----------
    images : RunImages
        The images.
    judge : tuple of str and sequence of str
        Name of the other network, and names of its G features.
    judged : tuple of numpy.ndarray
        The judge's logits and responses to the R images, see
        `featmap.validation.image_inputs.Judge.measure`.
    photographs : tuple of numpy.ndarray or None
        Responses to P photographs of the run's own features, P x D, and of the judge's, P x G.
    classes : str or None
        The run's layer of class logits, if the judge has the same classes.

    Returns
    -------
    pandas.DataFrame
        A row for each image of a class logit (`rank` among the judge's classes, from 0) and, with photographs, of a
        hidden feature (`partner`, its correlation, `percentile`, `baseline` and so on, see
        `featmap.stats.transfer.FeatureTransfer`).
    """
    parts = []
    (name, columns), (logits, responses) = judge, judged
    is_class = np.array([k >= 0 and images.features[k].layer == classes for k in images.feature])
    if classes is not None and is_class.any():
        channels = np.array([images.features[k].channel for k in images.feature[is_class]])
        parts.append(_rows(images, name, is_class, "logit", rank=transfer.class_ranks(logits[is_class], channels)))
    for layer in images.layers if photographs is not None and columns else ():
        at = images.features_of(layer)
        rows = np.isin(images.feature, at)
        if layer == classes:
            continue
        assert photographs is not None
        source, other = photographs[0][:, at], photographs[1]
        partners = transfer.match_features(source, other)
        feature = np.searchsorted(at, images.feature[rows])
        found = transfer.feature_transfer(feature, partners, responses[rows], source, other)
        measures = {
            "partner": [columns[g] if g >= 0 else None for g in partners.features[feature]],
            "partner_correlation": partners.correlation[feature],
            "partner_held_out": partners.held_out[feature],
            "percentile": found.own,
            "baseline": found.baseline,
            "among_images": found.among_images,
            "ceiling": found.ceiling,
        }
        parts.append(_rows(images, name, rows, "feature", **measures))
    return pd.concat(parts) if parts else _rows(images, name, np.zeros(len(images.labels), dtype=bool), "logit")


def _rows(images: RunImages, judge: str, rows: np.ndarray, kind: str, **columns: object) -> pd.DataFrame:
    """Build the rows of some images in the table of a judge."""
    at = np.flatnonzero(rows)
    head = {
        "seed": images.seeds[at],
        "judge": judge,
        "layer": [images.features[k].layer for k in images.feature[at]],
        "kind": kind,
    }
    return pd.DataFrame(head | columns, index=pd.Index([images.labels[k] for k in at], name="image"))


def image_statistics(
    table: pd.DataFrame, images: RunImages, own: OwnEvidence, photographs: OwnEvidence | None
) -> list[Statistic]:
    """Summarise the measures that need no other network.

    Parameters
    ----------
    table : pandas.DataFrame
        From `image_table`.
    images : RunImages
        The images.
    own : OwnEvidence
        Measures of the images.
    photographs : OwnEvidence or None
        The same of photographs.

    Returns
    -------
    list of Statistic
        Medians over images, with the range of 90 % of them; for each layer coverage, multiple of the best photograph
        and agreement of S, of live features.
    """
    whole, natural = Collector(ALL, IMAGES), Collector(ALL, PHOTOGRAPHS)
    for name in ("contrast", "contrast_ratio", "slope", "slope_difference", "colour_distance"):
        if name in table:
            _add_median(whole, name, table[name].to_numpy())
    if photographs is not None:
        _add_median(natural, "contrast", photographs.pixels.contrast)
        _add_median(natural, "slope", photographs.pixels.slope)
    collectors = [whole, natural]
    for layer in images.layers:
        of_images, of_photographs = Collector(layer, IMAGES), Collector(layer, PHOTOGRAPHS)
        rows = table[(table["layer"] == layer) & table["live"]]
        has_grid = bool(rows["coverage"].notna().any())
        if has_grid:
            _add_median(of_images, "coverage", rows["coverage"].to_numpy())
        if photographs is not None:
            if has_grid:
                _add_median(of_photographs, "coverage", rows["coverage_of_best_photograph"].to_numpy())
            _add_median(of_images, "multiple_of_best_photograph", rows["multiple_of_best_photograph"].to_numpy())
            _add_agreement(of_images, layer, images, own, photographs)
        collectors += [of_images, of_photographs]
    return [s for collector in collectors for s in collector.statistics.values()]


def _add_median(collector: Collector, name: str, values: np.ndarray) -> None:
    """Add the median of the finite values and the range of 90 % of them."""
    finite = values[np.isfinite(values)]
    interval = Interval(_median(values), *np.percentile(finite, [5, 95])) if len(finite) else Interval(float("nan"))
    collector.add(name, interval, count=len(finite), interval=IMAGE_RANGE)


def _add_agreement(
    collector: Collector, layer: str, images: RunImages, own: OwnEvidence, photographs: OwnEvidence
) -> None:
    """Add the agreement of S over a layer's images with S over photographs, of features that are live in all seeds."""
    at = images.features_of(layer)
    live = np.array([images.live[images.feature == k].all() for k in at], dtype=bool)
    at = at[live]
    if len(at) < 3:
        return
    A = np.stack([own.responses[images.feature == k][:, at].mean(axis=0) for k in at])
    is_few = len(at) < FEW_STIMULI
    note = f"over {len(at)} images only; below {FEW_STIMULI} chance correlations are large" if is_few else ""
    for name, roots in (("agreement", True), ("linear_agreement", False)):
        found = image_quality.similarity_agreement(A, photographs.responses[:, at], roots)
        collector.add(name, found, count=len(at), note=note)


def transfer_statistics(table: pd.DataFrame, classes: int) -> list[Statistic]:
    """Summarise what one judge recognises.

    Parameters
    ----------
    table : pandas.DataFrame
        From `transfer_table`.
    classes : int
        Number of the judge's classes.

    Returns
    -------
    list of Statistic
        For class logits top-1, top-5 and median rank; for the features of each layer the means of the columns, and of
        the percentile less the baseline.
    """
    statistics: list[Statistic] = []
    for (judge, layer, kind), rows in table.groupby(["judge", "layer", "kind"], sort=False):
        collector = Collector(str(layer), str(judge))
        if kind == "logit":
            _add_ranks(collector, rows, classes)
        else:
            gain = rows["percentile"] - rows["baseline"]
            for name, values in (
                ("percentile", rows["percentile"]),
                ("baseline", rows["baseline"]),
                ("gain", gain),
                ("among_images", rows["among_images"]),
                ("ceiling", rows["ceiling"]),
                ("partner_held_out", rows["partner_held_out"]),
            ):
                # images of one feature from several seeds are one observation
                of_features = values.groupby(level="image").mean().dropna()
                mean = float(of_features.mean()) if len(of_features) else float("nan")
                ends = t_interval(of_features.to_list())
                collector.add(name, Interval(mean, *(ends or ())), count=len(of_features), interval=STUDENT)
        statistics += collector.statistics.values()
    return statistics


def _add_ranks(collector: Collector, rows: pd.DataFrame, classes: int) -> None:
    """Add the statistics of ranks; images of one class from several seeds count as one observation."""
    ranks = rows["rank"].to_numpy(dtype=np.float64)
    count = rows.index[np.isfinite(ranks)].nunique()
    for n in (1, 5):
        note = f"{n} in {classes:,} by chance"
        collector.add(f"top{n}", transfer.top_share(ranks, n, count), count=count, note=note, interval=WILSON)
    finite = ranks[np.isfinite(ranks)]
    ends = np.percentile(finite, [5, 95]) if len(finite) else ()
    note = f"0 is first of {classes:,}; {(classes - 1) / 2:g} by chance"
    collector.add("median_rank", Interval(_median(ranks), *ends), count=count, note=note, interval=IMAGE_RANGE)


def summary_rows(statistics: Sequence[Statistic]) -> list[tuple[str, ...]]:
    """Format statistics as the rows of a short table.

    Parameters
    ----------
    statistics : sequence of Statistic
        The statistics.

    Returns
    -------
    list of tuple of str
        Layer, by or of what, measure, value, interval, count.
    """

    def number(value: float | None) -> str:
        return "undefined" if value is None else f"{value:.3g}"

    return [
        (
            s.layer,
            s.network,
            s.name.replace("_", " "),
            number(s.value),
            "" if s.low is None else f"{number(s.low)} to {number(s.high)} ({s.interval})",
            "" if s.count is None else str(s.count),
        )
        for s in statistics
    ]
