"""What numbers are stored as, what they are read as, and how they change without a silent loss."""

from collections.abc import Collection

import ml_dtypes
import numpy as np
from jaxtyping import Shaped

_HALF, _BRAIN, _FULL = map(np.dtype, (np.float16, ml_dtypes.bfloat16, np.float32))

READABLE = (_HALF, _BRAIN, _FULL)
"""What a parameter is in memory and in what is written."""

READ_AS: dict[np.dtype, np.dtype] = {
    **{dtype: dtype for dtype in READABLE},
    np.dtype(ml_dtypes.float8_e4m3fn): _BRAIN,
    np.dtype(ml_dtypes.float8_e5m2): _BRAIN,
    np.dtype(np.float64): _FULL,
}
"""What a parameter may be stored as, and as what it is read; float64 alone loses digits."""


def common(stored: Collection[np.dtype]) -> np.dtype:
    """What the layers of one parameter are read as: their own kind, or float32 for several.

    float16 and bfloat16 each have numbers that the other has not; float32 has those of both.
    """
    kinds = {READ_AS[dtype] for dtype in stored}
    return kinds.pop() if len(kinds) == 1 else _FULL


def cast(
    array: Shaped[np.ndarray, "..."], dtype: np.dtype, address: str
) -> Shaped[np.ndarray, "..."]:
    """The array in another dtype.

    Raises:
        ValueError: if a finite number becomes infinite: bfloat16 reaches 3e38, float16 only 65504.
    """
    if array.dtype == dtype:
        return array
    with np.errstate(over="ignore"):
        result = array.astype(dtype)
    lost = np.count_nonzero(np.isinf(result)) - np.count_nonzero(np.isinf(array))
    if lost:
        advice = ": write the model with --dtype bfloat16 or float32" if dtype == _HALF else ""
        raise ValueError(
            f"{address}: {lost} of {array.size} numbers are too large for {dtype}{advice}"
        )
    return result
