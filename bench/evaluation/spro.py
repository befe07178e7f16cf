"""Saturated per-region overlap (sPRO), the pixel metric of MVTec LOCO AD.

With regions A_i, their saturation areas s_i (0 < s_i <= |A_i|) and the pixels P above a threshold, sPRO(P) is the
mean over all regions of min(|A_i and P| / s_i, 1). The metric is the area under sPRO over the false positive rate from
0 to a limit, divided by the limit. Source: Bergmann et al., IJCV 2022, "Beyond Dents and Scratches", section 4 [P].

The n-th pixel of a region, by decreasing score, increases sPRO by min(n / s, 1) - min((n - 1) / s, 1), so the area is a
sum over these pixels, as for AUPRO. As there, a tie of defect and normal pixels is a straight line.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bench.errors import BenchError
from bench.evaluation.curves import Array, Bools, Curve, Floats
from bench.evaluation.metrics import curve_area


@dataclass(frozen=True, slots=True)
class Region:
    """One annotated defect.

    Attributes:
        pixels: (h, w), True for defect pixels.
        saturation: number of detected pixels that gives the full score, in (0, number of its pixels].
    """

    pixels: Bools
    saturation: float


def spro(
    maps: Sequence[Array], regions: Sequence[Sequence[Region]], limits: Sequence[float] = (0.05,)
) -> dict[str, float]:
    """Return the normalized area under sPRO up to each limit of the false positive rate, in [0, 1]: {"spro_05": ...}.

    Args:
        maps: n of (h, w), higher is more anomalous; read twice, so a lazy sequence works.
        regions: the regions of each image, of its map's size; none for a good image. Normal pixels are in no region.
        limits: limits of the false positive rate, in (0, 1].

    Returns:
        The values by name; empty if there is no region or no normal pixel.

    Raises:
        BenchError: a saturation area is not in (0, number of pixels of its region].
    """
    scores, gains = _collect_gains(maps, regions)
    if not scores.size:
        return {}
    distinct, inverse = np.unique(scores, return_inverse=True)  # ascending
    weights = np.bincount(inverse, weights=gains) / sum(map(len, regions))
    above = np.zeros(len(distinct), np.int64)
    tied = np.zeros(len(distinct), np.int64)
    n_normal = 0
    for index, image_regions in enumerate(regions):
        normal = np.sort(np.asarray(maps[index])[~_union(image_regions, np.shape(maps[index]))])
        lower, upper = (np.searchsorted(normal, distinct, side) for side in ("left", "right"))
        above += normal.size - upper
        tied += upper - lower
        n_normal += normal.size
    if not n_normal:
        return {}
    order = slice(None, None, -1)  # curves are by decreasing score
    curve = Curve(
        tp=np.ones(len(distinct), np.int64),
        region_fraction=weights[order],
        fp=above[order],
        tied_negatives=tied[order],
        approximate=np.zeros(len(distinct), np.bool_),
        n_negatives=np.asarray(n_normal),
    )
    return {f"spro_{round(100 * limit):02}": float(curve_area(curve, curve.region_fraction, limit)) for limit in limits}


def _collect_gains(maps: Sequence[Array], regions: Sequence[Sequence[Region]]) -> tuple[Floats, Floats]:
    """Return the scores of the pixels that increase the overlap of their region, and the increase by each."""
    scores: list[Floats] = []
    gains: list[Floats] = []
    for index, image_regions in enumerate(regions):
        anomaly_map = np.asarray(maps[index], np.float64) if image_regions else None
        for region in image_regions:
            assert anomaly_map is not None
            ordered = np.sort(anomaly_map[region.pixels])[::-1]
            if not 0 < region.saturation <= ordered.size:
                raise BenchError(
                    f"A saturation area must be in (0, {ordered.size}], the pixels of its region, got "
                    f"{region.saturation:g} in image {index}. Check the configuration of the defects."
                )
            count = int(np.ceil(region.saturation))
            overlap = np.minimum(np.arange(count + 1) / region.saturation, 1)
            scores.append(ordered[:count])
            gains.append(np.diff(overlap))
    return (np.concatenate(scores), np.concatenate(gains)) if scores else (np.empty(0), np.empty(0))


def _union(regions: Sequence[Region], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    union = np.zeros(shape, np.bool_)
    for region in regions:
        union |= region.pixels
    return union
