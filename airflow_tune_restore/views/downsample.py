"""Fewer points of a curve that look the same: largest triangle three buckets. Pure.

After Sveinn Steinarsson, "Downsampling Time Series for Visual Representation" (2013). From each bucket of
neighbours the point is kept that makes the largest triangle with the one kept before and the mean of the
next bucket: peaks stay.
"""

import math
from collections.abc import Collection, Sequence
from itertools import pairwise

_GAPS = 50
"""Gaps in a curve that are kept; more than that cannot be told apart."""


def choose_points(
    x: Sequence[float], y: Sequence[float | None], most: int, keep: Collection[int] = ()
) -> list[int]:
    """Return the numbers of at most `most` points to show, ascending: all of them if they are few.

    The first, the last and those in `keep` always stay, as long as these alone are not too many. `x`
    grows. Points without a value are gaps: the first of each run of them stays, of many gaps some.
    """
    count = len(x)
    if count <= most:
        return list(range(count))
    gaps = [i for i in range(count) if y[i] is None and (i == 0 or y[i - 1] is not None)]
    kept = {0, count - 1, *(i for i in keep if 0 <= i < count), *_spread(gaps, _GAPS)}
    points = [(i, x[i], value) for i in range(count) if (value := y[i]) is not None]
    chosen = _largest_triangles(points, most - len(kept))
    return sorted(kept.union(chosen))


def _spread(items: list[int], most: int) -> list[int]:
    """Return at most so many items, in equal steps."""
    step = max(1, math.ceil(len(items) / most))
    return items[::step]


def _largest_triangles(points: list[tuple[int, float, float]], most: int) -> list[int]:
    """Return the numbers of at most `most` points, among them the first and the last."""
    count = len(points)
    if count <= most:
        return [point[0] for point in points]
    if most < 3:  # noqa: PLR2004  no bucket lies between the ends
        return [points[0][0], points[-1][0]][: max(most, 0)]
    edges = [1 + (count - 2) * bucket // (most - 2) for bucket in range(most - 1)]
    chosen = [points[0][0]]
    before = points[0]
    for start, end in pairwise(edges):
        after = points[end : end + max(1, end - start)]
        mean_x = sum(point[1] for point in after) / len(after)
        mean_y = sum(point[2] / len(after) for point in after)
        before = _farthest(points[start:end], before, (mean_x, mean_y))
        chosen.append(before[0])
    return [*chosen, points[-1][0]]


def _farthest(
    bucket: list[tuple[int, float, float]],
    before: tuple[int, float, float],
    after: tuple[float, float],
) -> tuple[int, float, float]:
    """Return the point that makes the largest triangle with two others."""
    _, x0, y0 = before
    x2, y2 = after
    best, largest = bucket[0], -1.0
    for point in bucket:
        # with values near the largest float it is infinite or NaN, and then not larger than another
        area = abs((x0 - x2) * (point[2] - y0) - (x0 - point[1]) * (y2 - y0))
        if area > largest:
            best, largest = point, area
    return best
