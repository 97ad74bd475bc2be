"""Server-sent events as a client reads them."""

from __future__ import annotations

import json
from typing import Any

STREAM = {"Accept": "text/event-stream"}


def events_of(answer: Any) -> list[tuple[str, Any]]:
    """Return the events of a stream, each with its name."""
    events = []
    for block in answer.text.strip().split("\n\n"):
        name, data = block.split("\n")
        events.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return events
