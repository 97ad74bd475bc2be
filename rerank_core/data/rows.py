"""One row of input, checked value by value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rerank_core.errors import DataError
from rerank_core.formats import Judgement, checked_judgement

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class InputRow:
    """The values of one row, with the file and the row (from 1) that errors name."""

    path: Path
    row: int
    values: Mapping[str, Any]

    def text(self, name: str) -> str:
        """Return a text; raise DataError where the column is missing or the value is no text."""
        if name not in self.values:
            raise self.error(f"column {name!r} is missing; present: {', '.join(self.values)}")
        value = self.values[name]
        if not isinstance(value, str):
            raise self.error(f"{name} is {type(value).__name__} {value!r:.60}, expected text; write a string")
        return value

    def optional_text(self, name: str) -> str:
        """Return a text, "" where it is missing or null; raise DataError where it is something else."""
        return "" if self.values.get(name) is None else self.text(name)

    def identifier(self, name: str) -> str:
        """Return a text that is not empty; raise DataError where it is."""
        value = self.text(name)
        if not value:
            raise self.error(f"{name} is empty; give every row one")
        return value

    def judgement(self) -> Judgement:
        """Return the row as a judgement; raise DataError where the grade is not an integer of 0 or more."""
        grade = self.values.get("grade")
        if not isinstance(grade, int) or isinstance(grade, bool):
            raise self.error(f"grade {grade!r} is not an integer; the column `grade` must hold 0, 1, 2 …")
        judgement = Judgement(self.row, self.identifier("query_id"), self.identifier("doc_id"), grade)
        return checked_judgement(self.path, judgement)

    def error(self, problem: str) -> DataError:
        """Return the error that says what is wrong with this row."""
        return DataError(f"{self.path}, row {self.row}: {problem}")


def is_encodable(text: str) -> bool:
    """Whether a text can be written as UTF-8: it holds no lone surrogate."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
