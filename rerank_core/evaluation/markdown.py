"""Tables and numbers as Markdown."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rerank_core.evaluation.significance import Interval


def table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Return a table with one line per row."""
    rule = ["---"] * len(header)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [header, rule, *lines])


def interval(found: Interval) -> str:
    """Return `0.123 [0.100, 0.150]`."""
    return f"{found.mean:.3f} [{found.low:.3f}, {found.high:.3f}]"


def signed_interval(found: Interval) -> str:
    """Return `+0.123 [+0.100, +0.150]`."""
    return f"{found.mean:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"
