"""Types of the native module that native/module.cpp defines (built at install)."""

from torch import Tensor

def topk_lowest(scores: Tensor, visible: Tensor, k: int, *, threads: int = 0) -> Tensor:
    """Columns of the k highest of the first `visible[i]` scores of each row, ascending, padded with -1.

    `scores` float32 [n, s] and `visible` int64 [n] (taken as between 0 and s), contiguous and on the CPU; `k` >= 0.
    Returns int64 [n, k]. Equal scores: the lower column wins; NaN ranks below -inf. `threads`: at most so many; 0 for
    as many as the machine has.

    Raises `ValueError` for a wrong length of `visible` or a negative `k`, `TypeError` for other dtypes, ranks, strides
    or devices.
    """
