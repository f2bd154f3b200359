"""How coherent an image is to a network: how few features it excites, how alike it is all over. No torch."""

from __future__ import annotations

import numpy as np

from featmap.stats.correlation import TINY


def effective_number(values: np.ndarray) -> np.ndarray:
    """Return how many of D values carry a vector's energy: the participation ratio (sum v^2)^2 / sum v^4.

    Parameters
    ----------
    values : N x D, responses scaled so that features compare

    Returns
    -------
    N values in [1, D]: 1 where a single feature responds, D where all respond alike. NaN for a vector that is zero or
    not finite. Source: Bell & Dean (1970, 10.1039/df9705000055), of vibrations of glasses.
    """
    energy = np.square(values.astype(np.float64))
    whole = energy.max(axis=1, keepdims=True, initial=0)
    with np.errstate(invalid="ignore"):  # infinite responses have no energy to share out
        shares = energy / np.where(np.isfinite(whole) & (whole > TINY**2), whole, np.nan)
        found: np.ndarray = shares.sum(1) ** 2 / np.square(shares).sum(1)
    return found


def effective_waves(images: np.ndarray) -> np.ndarray:
    """Return how many waves make up each image: the `effective_number` of its Fourier coefficients.

    N values in [1, H W] for images N x C x H x W in [0, 1], of the deviation from middle gray, channels' power added: 1
    for a flat colour (the wave of frequency 0), 2 for one grating about gray (it counts with its mirror image), high
    for what neither is flat nor repeats. Free of contrast. NaN for an image that is gray throughout or not finite.
    """
    spectrum = np.fft.fft2(np.asarray(images, dtype=np.float64) - 0.5)
    return effective_number(np.sqrt(np.square(np.abs(spectrum)).sum(axis=1)).reshape(len(images), -1))


def excited_share(responses: np.ndarray, yardstick: np.ndarray) -> np.ndarray:
    """Return the share of features that each image excites more than any yardstick image does.

    Parameters
    ----------
    responses, yardstick : N x D and M x D, of the same D features

    Returns
    -------
    N values in [0, 1]; 1 / (M + 1) is what one more yardstick image would have. NaN without features, or for an image
    with a response that is not finite.
    """
    if not responses.shape[1]:
        return np.full(len(responses), np.nan)
    beyond = (responses > yardstick.max(axis=0)).mean(axis=1)
    return np.where(np.isfinite(responses).all(axis=1), beyond, np.nan)


def relative_effective_number(responses: np.ndarray, yardstick: np.ndarray) -> np.ndarray:
    """Return the `effective_number` of features that each image excites, over the median of yardstick images.

    What counts is a response above the mean over the yardstick (M x D), as a share of the feature's largest such
    response to any of the N + M images: a deviation would blow up features that hardly vary over the yardstick. Low:
    the image excites few features. NaN where undefined.
    """
    centre = yardstick.mean(axis=0)
    rises = [np.maximum(r.astype(np.float64) - centre, 0) for r in (responses, yardstick)]
    largest = np.maximum(*(r.max(axis=0, initial=0) for r in rises))
    known = np.isfinite(largest) & (largest > TINY)
    mine, theirs = (effective_number(r[:, known] / largest[known]) for r in rises)
    theirs = theirs[np.isfinite(theirs)]
    return mine / np.median(theirs) if len(theirs) else np.full(len(mine), np.nan)


def effective_classes(logits: np.ndarray) -> np.ndarray:
    """Return how many classes a network sees in each image: the exponential of the entropy of its softmax.

    N values in [1, K] for logits N x K; NaN where they are not finite.
    """
    given = logits.astype(np.float64)
    finite = np.asarray(np.isfinite(given).all(axis=1))
    shifted = np.where(finite[:, None], given, 0.0)
    shifted = shifted - shifted.max(axis=1, keepdims=True)
    logs = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return np.where(finite, np.exp(-(np.exp(logs) * logs).sum(axis=1)), np.nan)


def unit_directions(maps: np.ndarray, centre: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """Return each position's standardised responses as a unit vector: N x P x D' for maps N x D x y x x.

    `centre` and `spread` are each feature's mean and deviation over positions of yardstick images; features whose
    spread is not above zero or not finite are left out (D' of D). A position whose responses are all at the centre has
    no direction: NaN.
    """
    kept = np.flatnonzero(np.isfinite(spread) & (spread > TINY))
    z = (maps[:, kept].astype(np.float64) - centre[kept][:, None, None]) / spread[kept][:, None, None]
    z = z.reshape(len(z), z.shape[1], -1).transpose(0, 2, 1)
    length = np.linalg.norm(z, axis=2, keepdims=True)
    return z / np.where(np.isfinite(length) & (length > TINY), length, np.nan)


def position_similarity(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean cosine of positions of one image, and of positions of that image and all others.

    Parameters
    ----------
    vectors : N x P x D, from `directions`; positions without a direction are left out

    Returns
    -------
    N values each, in [-1, 1]; the first is NaN for images with fewer than two positions, the second for a single image.
    """
    known = np.isfinite(vectors).all(axis=2)
    sums = np.where(known[..., None], vectors, 0.0).sum(axis=1)
    count = known.sum(axis=1)
    pairs = count * (count - 1)
    within = (np.square(sums).sum(1) - count) / np.where(pairs > 0, pairs, np.nan)
    rest, others = sums.sum(0) - sums, count.sum() - count
    across = (sums * rest).sum(1) / np.where(count * others > 0, count * others, np.nan)
    return within, across
