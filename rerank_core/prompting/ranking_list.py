"""A ranking as lines of text: the prompt that asks for it, the answer, and the reading of any answer."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rerank_core.errors import DataError
from rerank_core.prompting.parse import MAX_ANSWER_CHARS
from rerank_core.prompting.render import load_template, neutralise, render
from rerank_core.text import words

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from rerank_core.records import Document, Query

_LINE = re.compile(r"rank ?([0-9]{1,6}) ?: ?(.+)", re.IGNORECASE)
_SEPARATOR = re.compile(r" ?[–—] ?| -+ |: ")  # between an id and its reason; or as candidates are listed
_MAX_QUOTED_CHARS = 40
"""How much of a foreign id a problem repeats."""


@dataclass(frozen=True, slots=True)
class ParsedRanking:
    """What could be read of an answer: always an exact permutation of the candidates, best first.

    `reasons` holds what the answer says of a document, where it says something. `problems` are short strings:
    `answer_too_long`, `malformed:<line from 1>`, `ranks_out_of_sequence`, then by rank `foreign:<its id>` and
    `duplicate:<doc_id>`, then `missing:<doc_id>` in first-stage order.
    """

    order: tuple[str, ...]
    reasons: Mapping[str, str]
    problems: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Line:
    rank: int
    doc_id: str
    reason: str


def render_query_prompt(
    query: Query, documents: Sequence[Document], *, max_words: int, special_tokens: Iterable[str] = ()
) -> str:
    """Ask for the order of a query's documents, which are listed as given, `max_words` words of each.

    Raises:
        DataError: a document's id cannot stand in a line.
    """
    tokens = tuple(special_tokens)
    lines = [
        f"{_checked_id(document.doc_id, tokens)}:"
        f" {neutralise(first_words(document, max_words=max_words), special_tokens=tokens)}"
        for document in documents
    ]
    slots = {
        "query": neutralise(query.text, special_tokens=tokens),
        "candidates": "\n".join(lines),
        "num_candidates": str(len(documents)),
    }
    return render(load_template("rank"), slots)


def render_ranking(doc_ids: Sequence[str], reasons: Mapping[str, str]) -> str:
    """Return an order, best first, as the lines that a prompt asks for; `reasons` may lack documents."""
    lines = []
    for rank, doc_id in enumerate(doc_ids, start=1):
        reason = neutralise(reasons.get(doc_id, ""))
        lines.append(f"Rank {rank}: {doc_id} – {reason}" if reason else f"Rank {rank}: {doc_id}")
    return "\n".join(lines)


def parse_ranking(text: str, candidates: Sequence[str]) -> ParsedRanking:
    """Read any text as an order of the candidates, which are distinct and in first-stage order.

    Lines `Rank k: id – reason` count by their stated rank, equal ranks in the order of the text, and of two
    lines for one document the first. What the text leaves out follows in first-stage order. Never raises.
    """
    problems = ["answer_too_long"] if len(text) > MAX_ANSWER_CHARS else []
    stated = _read_lines(text[:MAX_ANSWER_CHARS], problems)
    if [line.rank for line in stated] != list(range(1, len(stated) + 1)):
        problems.append("ranks_out_of_sequence")
    known, found = set(candidates), dict[str, _Line]()
    for line in sorted(stated, key=lambda line: line.rank):
        if line.doc_id not in known:
            problems.append(f"foreign:{line.doc_id[:_MAX_QUOTED_CHARS]}")
        elif line.doc_id in found:
            problems.append(f"duplicate:{line.doc_id}")
        else:
            found[line.doc_id] = line
    missing = [doc_id for doc_id in candidates if doc_id not in found]
    problems.extend(f"missing:{doc_id}" for doc_id in missing)
    reasons = {doc_id: line.reason for doc_id, line in found.items() if line.reason}
    return ParsedRanking((*found, *missing), reasons, tuple(problems))


def first_words(document: Document, *, max_words: int) -> str:
    """Return what a prompt shows of a document: its content up to the end of word `max_words`."""
    found = words(document.content)
    return document.content[: found[max_words - 1].end] if len(found) > max_words else document.content


def _checked_id(doc_id: str, special_tokens: tuple[str, ...]) -> str:
    read_back, *_ = _SEPARATOR.split(f"{doc_id} – ", maxsplit=1)
    if neutralise(read_back, special_tokens=special_tokens) != doc_id:
        raise DataError(
            f"document {doc_id!r} cannot be named in a line of a ranking: its id holds a line break, an outer"
            " or double blank, what separates id and reason, an invisible character or a chat token;"
            " rename it"
        )
    return doc_id


def _read_lines(text: str, problems: list[str]) -> list[_Line]:
    """Return the lines that state a rank and an id; blank lines are left out, any other is a problem."""
    lines = []
    for number, raw in enumerate(text.splitlines(), start=1):
        line = neutralise(raw)
        if found := _LINE.fullmatch(line):
            doc_id, *reason = _SEPARATOR.split(found[2], maxsplit=1)
            lines.append(_Line(int(found[1]), doc_id, "".join(reason)))
        elif line:
            problems.append(f"malformed:{number}")
    return lines
