"""Coherence of an image to a network: how few features it excites and how uniform it is, without torch."""

from __future__ import annotations

import numpy as np

from featmap.stats.correlation import TINY, TINY_POWER, unit_vectors


def effective_number(values: np.ndarray) -> np.ndarray:
    """Compute the participation ratio of each row, `(sum v^2)^2 / sum v^4`.

    It is the number of values that carry the energy of the row.

    Parameters
    ----------
    values : numpy.ndarray
        `N x D`, responses on comparable scales.

    Returns
    -------
    numpy.ndarray
        N values in [1, D]: 1 where a single feature responds, D where all respond equally. NaN for a row that is zero
        or not finite.

    References
    ----------
    Bell & Dean (1970), Atomic vibrations in vitreous silica. doi:10.1039/df9705000055
    """
    energy = np.square(values.astype(np.float64))
    largest = energy.max(axis=1, keepdims=True, initial=0)
    with np.errstate(invalid="ignore"):  # infinite responses have no shares
        shares = energy / np.where(np.isfinite(largest) & (largest > TINY_POWER), largest, np.nan)
        number: np.ndarray = shares.sum(1) ** 2 / np.square(shares).sum(1)
    return number


def effective_waves(images: np.ndarray) -> np.ndarray:
    """Compute how many plane waves make up each image.

    This is the `effective_number` of the Fourier coefficients of the deviation from middle gray, the power of the
    channels added. It does not depend on contrast.

    Parameters
    ----------
    images : numpy.ndarray
        Images, `N x C x H x W`, in [0, 1].

    Returns
    -------
    numpy.ndarray
        N values in [1, H W]: 1 for a flat colour (the wave of frequency 0), 2 for one grating around gray (it counts
        with its mirror image), high for an image that is neither flat nor periodic. NaN for an image that is gray
        throughout or not finite.
    """
    spectrum = np.fft.fft2(np.asarray(images, dtype=np.float64) - 0.5)
    return effective_number(np.sqrt(np.square(np.abs(spectrum)).sum(axis=1)).reshape(len(images), -1))


def excited_share(responses: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Compute the share of features excited more than by any reference image.

    Parameters
    ----------
    responses : numpy.ndarray
        Responses to the images, `N x D`.
    reference : numpy.ndarray
        Responses of the same features to M reference images, `M x D`.

    Returns
    -------
    numpy.ndarray
        N values in [0, 1]; one more reference image would have `1 / (M + 1)`. NaN without features, or for an image
        with a non-finite response.
    """
    if not responses.shape[1]:
        return np.full(len(responses), np.nan)
    beyond = (responses > reference.max(axis=0)).mean(axis=1)
    return np.where(np.isfinite(responses).all(axis=1), beyond, np.nan)


def relative_effective_number(responses: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Compute how many features each image excites, relative to reference images.

    Each image's `effective_number` is divided by the median of the reference images. It is taken of the responses above
    the mean over the reference images, as shares of the feature's largest such response to any of the N + M images:
    divided by a standard deviation, features that hardly vary over the reference images would dominate.

    Parameters
    ----------
    responses : numpy.ndarray
        Responses to the images, `N x D`.
    reference : numpy.ndarray
        Responses of the same features to M reference images, `M x D`.

    Returns
    -------
    numpy.ndarray
        N values; low where an image excites few features, NaN where undefined.
    """
    centre = reference.mean(axis=0)
    rises = [np.maximum(r.astype(np.float64) - centre, 0) for r in (responses, reference)]
    largest = np.maximum(*(r.max(axis=0, initial=0) for r in rises))
    responsive = np.isfinite(largest) & (largest > TINY)
    numbers, usual = (effective_number(r[:, responsive] / largest[responsive]) for r in rises)
    usual = usual[np.isfinite(usual)]
    return numbers / np.median(usual) if len(usual) else np.full(len(numbers), np.nan)


def effective_classes(logits: np.ndarray) -> np.ndarray:
    """Compute how many classes a network sees in each image.

    This is the exponential of the softmax's entropy.

    Parameters
    ----------
    logits : numpy.ndarray
        `N x K`.

    Returns
    -------
    numpy.ndarray
        N values in [1, K]; NaN where logits are not finite.
    """
    values = logits.astype(np.float64)
    finite = np.asarray(np.isfinite(values).all(axis=1))
    shifted = np.where(finite[:, None], values, 0.0)
    shifted = shifted - shifted.max(axis=1, keepdims=True)
    logs = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return np.where(finite, np.exp(-(np.exp(logs) * logs).sum(axis=1)), np.nan)


def unit_directions(maps: np.ndarray, centre: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """Compute the unit vector of the standardised responses at each position.

    Parameters
    ----------
    maps : numpy.ndarray
        Activation maps, `N x D x y x x`.
    centre, spread : numpy.ndarray
        Mean and standard deviation of each of the D features over the positions of reference images. Features whose
        spread is zero or not finite are left out.

    Returns
    -------
    numpy.ndarray
        `N x P x D'` with P = y x positions and D' features left; NaN for a position whose responses all lie at the
        centre.
    """
    varying = np.flatnonzero(np.isfinite(spread) & (spread > TINY))
    z = (maps[:, varying].astype(np.float64) - centre[varying][:, None, None]) / spread[varying][:, None, None]
    z = z.reshape(len(z), z.shape[1], -1).transpose(0, 2, 1)
    return unit_vectors(z, axis=2)


def position_similarity(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute the mean cosine of positions within each image and across images.

    Parameters
    ----------
    vectors : numpy.ndarray
        Unit vectors, `N x P x D`, from `unit_directions`; positions that are NaN are left out.

    Returns
    -------
    within : numpy.ndarray
        N values in [-1, 1]: mean over pairs of positions of the image. NaN below two positions.
    across : numpy.ndarray
        N values in [-1, 1]: mean over pairs of a position of the image and one of another image. NaN for a single
        image.
    """
    defined = np.isfinite(vectors).all(axis=2)
    # The sum of all pairwise products of unit vectors is |sum of vectors|^2; each with itself gives 1.
    sums = np.where(defined[..., None], vectors, 0.0).sum(axis=1)
    count = defined.sum(axis=1)
    pairs = count * (count - 1)
    within = (np.square(sums).sum(1) - count) / np.where(pairs > 0, pairs, np.nan)
    rest, others = sums.sum(0) - sums, count.sum() - count
    across = (sums * rest).sum(1) / np.where(count * others > 0, count * others, np.nan)
    return within, across
