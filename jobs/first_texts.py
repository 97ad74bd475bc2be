"""The first texts that an engine wrote, kept until all of their shards are committed."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

from rerank_core.records import Generation

if TYPE_CHECKING:
    from pathlib import Path

    from rerank_core.explanation.task import Placement

    Asked = tuple[str, str, str]  # query_id, doc_id, template


class FirstTexts:
    """A file of JSON lines, one for each first text.

    A shard waits for its refused texts, which are asked for once more after all others: what was written
    until then would be lost with a kill.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> dict[Asked, Generation]:
        """Return the texts by what was asked; a line that a kill has cut is left out."""
        if not self._path.exists():
            return {}
        found = {}
        for line in self._path.read_text(encoding="utf-8").splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            found[tuple(entry["asked"])] = Generation(**entry["generation"])
        return found

    def keep(self, placement: Placement, generation: Generation) -> None:
        """Add a text."""
        entry = {"asked": asked(placement), "generation": asdict(generation)}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(f"\n{json.dumps(entry)}\n")  # a line break first: the line before may be cut

    def drop(self) -> None:
        """Forget all texts."""
        self._path.unlink(missing_ok=True)


def asked(placement: Placement) -> Asked:
    """Return what tells a placement's question from the others of a job."""
    return placement.query.query_id, placement.document.doc_id, placement.template
