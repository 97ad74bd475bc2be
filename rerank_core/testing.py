"""Shipped fakes: real, tiny parts with a known answer, for our tests and for users' tests."""

from __future__ import annotations

import json
import re
from itertools import product
from typing import TYPE_CHECKING

import numpy as np

from rerank_core.errors import ConfigError
from rerank_core.explanation.grounding import connectives
from rerank_core.records import Collection, Document, Generation, Query
from rerank_core.text import normalise, words

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from typing import Any


class OverlapScorer:
    """A `Scorer`: the number of distinct query words that occur in the document."""

    def score(self, query: Query, documents: Sequence[Document]) -> list[float]:
        """Return one score per document, in the order of `documents`."""
        wanted = _word_forms(query.text)
        return [float(len(wanted & _word_forms(document.content))) for document in documents]

    def score_pairs(self, pairs: Sequence[tuple[Query, Document]]) -> list[float]:
        """Return one score per pair, in the order of `pairs`."""
        return [score for query, document in pairs for score in self.score(query, [document])]

    def visible_span(self, query: Query, document: Document) -> tuple[int, int]:
        """Return all characters of the document's content: nothing is cut."""
        return 0, len(document.content)

    def visible_query(self, query: Query) -> str:
        """Return all of the query's text: nothing is cut."""
        return query.text


class AdditiveScorer:
    """A `Scorer` without interactions: each occurrence of a word adds the word's weight, whatever the query.

    So the Shapley value and the Owen value of every occurrence is that weight, and 0 for a word without one.
    """

    def __init__(self, weights: Mapping[str, float]) -> None:
        self._weights = {normalise(word): weight for word, weight in weights.items()}

    def score(self, query: Query, documents: Sequence[Document]) -> list[float]:
        """Return one score per document, in the order of `documents`."""
        return [
            sum(self._weights.get(normalise(word.text), 0.0) for word in words(document.content))
            for document in documents
        ]

    def visible_span(self, query: Query, document: Document) -> tuple[int, int]:
        """Return all characters of the document's content: nothing is cut."""
        return 0, len(document.content)

    def visible_query(self, query: Query) -> str:
        """Return all of the query's text: nothing is cut."""
        return query.text


class ScriptedGenerator:
    """A `TextGenerator` that answers what `answer(prompt, schema)` says; `prompts` keeps what was asked."""

    def __init__(self, answer: Callable[[str, Mapping[str, Any]], str]) -> None:
        self._answer = answer
        self.prompts: list[str] = []

    @classmethod
    def saying(cls, texts: Iterable[str]) -> ScriptedGenerator:
        """Return a generator that says the given texts in turn.

        Raises (when it generates):
            ConfigError: it is asked for more texts than were given.
        """
        script = iter(texts)

        def next_text(prompt: str, schema: Mapping[str, Any]) -> str:
            text = next(script, None)
            if text is None:
                raise ConfigError(f"the script has no text left for the prompt {prompt[:60]!r}")
            return text

        return cls(next_text)

    def generate(
        self, prompts: Sequence[str], schemas: Sequence[Mapping[str, Any]], *, attempt: int = 1
    ) -> list[Generation]:
        """Return one generation per prompt, in order; words stand for tokens in its counts."""
        self.prompts += prompts
        return [
            Generation(text, len(words(prompt)), len(words(text)))
            for prompt, schema in zip(prompts, schemas, strict=True)
            for text in [self._answer(prompt, schema)]
        ]


def grounded_answer(prompt: str, schema: Mapping[str, Any]) -> str:
    """Return an answer to a question about a placement that passes verification, made of its schema alone.

    One sentence of the document's longest words, which cites the first words that it may for each effect.
    For a `ScriptedGenerator`, or wherever a language model would cost too much.
    """
    properties = schema["properties"]["sentences"]["items"]["properties"]
    pattern = re.fullmatch(
        r"\^\((?P<openings>.*?)\) \(\((?P<terms>.*?)\),\? \).*", properties["text"]["pattern"]
    )
    assert pattern is not None, "the pattern is not one of `explanation.task`"
    terms = [re.sub(r"\\(.)", r"\1", term) for term in re.split(r"(?<!\\)\|", pattern["terms"])]
    own = {normalise(term): term for term in terms if normalise(term) not in connectives()}
    distinct = [*own.values(), *connectives()][:6]
    sentence: dict[str, Any] = {"text": f"{pattern['openings'].split('|')[0]} {' '.join(distinct)}."}
    for name, found in properties.items():
        if name != "text":
            sentence[name] = found["items"]["enum"][: found["maxItems"]]
    return json.dumps({"sentences": [sentence]})


def _word_forms(text: str) -> set[str]:
    return {normalise(word.text) for word in words(text)}


_GRADED_WORDS = {  # quality -> its words in the hidden order: the place is the grade, 0 to 9
    "warmth": ("frozen", "icy", "frigid", "chilly", "cool", "mild", "balmy", "toasty", "scorching", "molten"),
    "depth": ("skin", "ankle", "knee", "waist", "chest", "house", "tower", "cliff", "trench", "abyss"),
    "clarity": ("opaque", "muddy", "murky", "cloudy", "hazy", "misty", "pale", "lucid", "limpid", "crystal"),
}
_PLACES = ("northern", "southern", "eastern", "western", "upper", "lower", "inner", "outer", "old", "new")
_SUBJECTS = ("lake", "river", "glacier", "harbour", "lagoon", "marsh", "fjord", "delta", "strait", "bay")
_FILLER = ("station", "survey", "record", "sensor", "team", "cruise", "archive", "buoy", "grid", "season")
_NUM_GRADES = 10


def planted_world(num_queries: int, num_documents: int, *, seed: int) -> Collection:
    """Return a collection whose relevance follows one rule that word overlap cannot see.

    A query names a subject and a quality, as in `warmth of the northern lake`. Ten documents about that
    subject each hold one word for that quality, and the place of this word in a hidden order (`frozen` …
    `molten`) is the grade, 0 to 9: one document of each grade. Those ten are the query's pool. None names the
    quality itself, all have the same length and the same words in common with the query, so BM25 ties them;
    identifiers follow no order. The same word has the same grade in every query, so the rule can be learnt
    from some queries and tested on others.

    Documents come in groups of ten, one group per subject; queries take the groups in turn, and share them
    where there are fewer groups than queries. Documents beyond the last full group are unjudged and about
    nothing asked.

    Raises:
        ConfigError: fewer than 10 documents, or more groups of 10 than there are subjects.
    """
    subjects = list(product(_PLACES, _SUBJECTS))
    num_groups = num_documents // _NUM_GRADES
    if not 1 <= num_groups <= len(subjects):
        limit = _NUM_GRADES * (len(subjects) + 1)
        raise ConfigError(
            f"num_documents must be {_NUM_GRADES} or more, and below {limit}, got {num_documents}"
        )
    rng = np.random.default_rng(seed)
    qualities = list(_GRADED_WORDS)
    order = rng.permutation(len(subjects))[:num_groups]
    chosen = [(*subjects[index], qualities[number % len(qualities)]) for number, index in enumerate(order)]
    names = [f"d{number:05d}" for number in rng.permutation(num_documents)]
    groups = [names[start : start + _NUM_GRADES] for start in range(0, num_groups * _NUM_GRADES, _NUM_GRADES)]
    documents = {
        name: _graded_document(name, topic, grade=grade, rng=rng)
        for topic, group in zip(chosen, groups, strict=True)
        for grade, name in enumerate(group)
    }
    documents |= {name: _filler_document(name, rng) for name in names[num_groups * _NUM_GRADES :]}
    group_by_query = {f"q{number:04d}": number % num_groups for number in range(num_queries)}
    qrels = {
        query_id: {name: grade for grade, name in enumerate(groups[group])}
        for query_id, group in group_by_query.items()
    }
    return Collection(
        name="planted",
        documents=dict(sorted(documents.items())),
        queries={query_id: _query(query_id, chosen[group]) for query_id, group in group_by_query.items()},
        qrels=qrels,
        pool={query_id: tuple(sorted(grades)) for query_id, grades in qrels.items()},
        relevant_from=_NUM_GRADES // 2,
    )


def _query(query_id: str, topic: tuple[str, str, str]) -> Query:
    place, subject, quality = topic
    return Query(query_id, f"{quality} of the {place} {subject}")


def _graded_document(
    name: str, topic: tuple[str, str, str], *, grade: int, rng: np.random.Generator
) -> Document:
    place, subject, quality = topic
    text = [_GRADED_WORDS[quality][grade], *rng.choice(_FILLER, size=5, replace=False)]
    return Document(name, " ".join(rng.permutation(text)), title=f"{place} {subject}")


def _filler_document(name: str, rng: np.random.Generator) -> Document:
    return Document(name, " ".join(rng.choice(_FILLER, size=6, replace=False)), title="field notes")
