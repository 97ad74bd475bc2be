"""How far estimated values lie from the exact ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import kendalltau

from rerank_core.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True)
class AttributionError:
    """What an estimate misses, beside the bound that it stated."""

    relative_l2: float  # ‖values − exact‖ / ‖exact‖; 1 is what all zeros would have
    kendall_tau: float  # τ-b between both orders of the units, by value; 1 is the same order
    top_5: float  # share of the five exact values of largest size that are among the estimate's
    top_10: float
    length: float  # ‖values − exact‖, in logits
    bound: float | None  # what the estimate stated for it

    @property
    def is_covered(self) -> bool:
        """Whether the stated bound holds; False where none was stated."""
        return self.bound is not None and self.length <= self.bound


def attribution_error(
    values: Sequence[float], exact: Sequence[float], *, bound: float | None
) -> AttributionError:
    """Return what the values of some units miss of the exact values of the same units.

    Of fewer than five or ten units all count as the top. τ-b is 1 where either side has a single value.

    Raises:
        DataError: the numbers of values differ, or there is none.
    """
    if len(values) != len(exact) or not exact:
        raise DataError(f"{len(values)} values cannot be compared with {len(exact)} exact ones")
    length = float(np.linalg.norm(np.subtract(values, exact)))
    norm = float(np.linalg.norm(exact))
    return AttributionError(
        relative_l2=length / norm if norm else float(length > 0),
        kendall_tau=_kendall_tau(values, exact),
        top_5=_top_overlap(values, exact, size=5),
        top_10=_top_overlap(values, exact, size=10),
        length=length,
        bound=bound,
    )


def _kendall_tau(values: Sequence[float], exact: Sequence[float]) -> float:
    if len(set(values)) < 2 or len(set(exact)) < 2:  # no order to compare
        return 1.0
    return float(kendalltau(values, exact).statistic)


def _top_overlap(values: Sequence[float], exact: Sequence[float], *, size: int) -> float:
    size = min(size, len(exact))
    return len(_top(values, size=size) & _top(exact, size=size)) / size


def _top(values: Sequence[float], *, size: int) -> set[int]:
    """Return the places of the values of largest size, the first ones of equals."""
    return set(sorted(range(len(values)), key=lambda place: (-abs(values[place]), place))[:size])
