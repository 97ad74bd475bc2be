"""A language model's answer, read without ever raising."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal

from rerank_core.text import normalise

Effect = Literal["raised", "lowered", "other_raised", "other_lowered"]
EFFECTS: tuple[Effect, ...] = ("raised", "lowered", "other_raised", "other_lowered")
"""What a word did to the score of the document in question, or of the other one that it is compared with."""

MAX_ANSWER_CHARS = 20_000
"""A longer answer is not read: no schema of ours asks for one."""


@dataclass(frozen=True, slots=True)
class Citation:
    """A word that an answer names as a cause, with what it says that word did to the score, if it says."""

    word: str
    effect: Effect | None = None


@dataclass(frozen=True, slots=True)
class Sentence:
    """A sentence of an answer, with the words that it cites."""

    text: str
    citations: tuple[Citation, ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """What could be read of an answer; `problems` says what could not, as short machine-readable strings."""

    sentences: tuple[Sentence, ...]
    problems: tuple[str, ...]

    @property
    def text(self) -> str:
        """All sentences, one after the other."""
        return " ".join(sentence.text for sentence in self.sentences)

    @property
    def citations(self) -> tuple[Citation, ...]:
        """The citations of all sentences; a word cited twice with the same effect counts once."""
        first: dict[tuple[str, Effect | None], Citation] = {}
        for sentence in self.sentences:
            for citation in sentence.citations:
                first.setdefault((normalise(citation.word), citation.effect), citation)
        return tuple(first.values())


def parse_answer(raw: str) -> Answer:
    """Read `{"sentences": [{"text": …, "raised": [word…], "lowered": [word…]}, …]}`.

    The lists of words, one per effect, may be missing. Whatever the input, an `Answer` comes back.
    """
    if len(raw) > MAX_ANSWER_CHARS:
        return Answer((), ("answer_too_long",))
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError):
        return Answer((), ("not_json",))
    if not isinstance(value, dict):
        return Answer((), ("not_an_object",))
    problems = [] if value.keys() <= {"sentences"} else ["unknown_field"]
    found = value.get("sentences")
    if not isinstance(found, list) or not found:
        return Answer((), (*problems, "no_sentences"))
    sentences = tuple(_read_sentence(item, problems) for item in found)
    return Answer(sentences, tuple(dict.fromkeys(problems)))


def _read_sentence(value: Any, problems: list[str]) -> Sentence:
    if not isinstance(value, dict) or not isinstance(value.get("text"), str):
        problems.append("no_text")
        return Sentence("", ())
    if not value.keys() <= {"text", *EFFECTS}:
        problems.append("unknown_field")
    citations = (
        Citation(word, effect) for effect in EFFECTS for word in _read_words(value, effect, problems)
    )
    return Sentence(_encodable(" ".join(value["text"].split())), tuple(citations))


def _read_words(value: dict[str, Any], name: str, problems: list[str]) -> list[str]:
    found = value.get(name, [])
    if not isinstance(found, list) or not all(isinstance(word, str) for word in found):
        problems.append(f"not_a_list_of_words:{name}")
        return []
    return [_encodable(word) for word in found]


def _encodable(text: str) -> str:
    """Replace lone surrogates, which JSON can spell but no file can hold."""
    return text.encode("utf-8", "replace").decode("utf-8")
