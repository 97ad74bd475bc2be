"""A language model's answer, read without ever raising."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal

from rerank_core.text import normalise

Effect = Literal["raised", "lowered"]
EFFECTS: tuple[Effect, ...] = ("raised", "lowered")

MAX_ANSWER_CHARS = 20_000
"""A longer answer is not read: no schema of ours asks for one."""


@dataclass(frozen=True, slots=True)
class Citation:
    """A word that an answer names as a cause, with what it says that word did to the score, if it says."""

    word: str
    effect: Effect | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What could be read of an answer; `problems` says what could not, as short machine-readable strings."""

    text: str
    citations: tuple[Citation, ...]
    problems: tuple[str, ...]


def parse_answer(raw: str) -> Answer:
    """Read `{"reason": text, "raised": [word…], "lowered": [word…]}`; the lists may be missing.

    Whatever the input, an `Answer` comes back. A word cited twice with the same effect counts once.
    """
    if len(raw) > MAX_ANSWER_CHARS:
        return Answer("", (), ("answer_too_long",))
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError):
        return Answer("", (), ("not_json",))
    if not isinstance(value, dict):
        return Answer("", (), ("not_an_object",))
    problems = [] if value.keys() <= {"reason", *EFFECTS} else ["unknown_field"]
    text = _read_text(value, problems)
    citations = [
        Citation(word, effect) for effect in EFFECTS for word in _read_words(value, effect, problems)
    ]
    return Answer(text, _without_repeats(citations), tuple(problems))


def _read_text(value: dict[str, Any], problems: list[str]) -> str:
    text = value.get("reason")
    if not isinstance(text, str):
        problems.append("no_reason")
        return ""
    return _encodable(" ".join(text.split()))


def _read_words(value: dict[str, Any], name: str, problems: list[str]) -> list[str]:
    found = value.get(name, [])
    if not isinstance(found, list) or not all(isinstance(word, str) for word in found):
        problems.append(f"not_a_list_of_words:{name}")
        return []
    return [_encodable(word) for word in found]


def _encodable(text: str) -> str:
    """Replace lone surrogates, which JSON can spell but no file can hold."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _without_repeats(citations: list[Citation]) -> tuple[Citation, ...]:
    first: dict[tuple[str, Effect | None], Citation] = {}
    for citation in citations:
        first.setdefault((normalise(citation.word), citation.effect), citation)
    return tuple(first.values())
