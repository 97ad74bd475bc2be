"""Services of a gateway that need no model: words that two texts share, texts made of a schema."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rerank_core.attribution.attributor import PlainTexts, SearchAttributor
from rerank_core.attribution.deletion import CoalitionScores, Deletion, attributed_part, word_spans
from rerank_core.attribution.estimators import PrunedOwen
from rerank_core.attribution.masking import TokenMasker
from rerank_core.errors import ConfigError
from rerank_core.models.tiny import tiny_tokenizer
from rerank_core.testing import OverlapScorer, grounded_answer
from serve.chat import ChatCost, ChatPiece
from serve.reranker import ModelCard, tokenizer_digest

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
    from pathlib import Path

    from rerank_core.attribution.build import Method
    from rerank_core.attribution.deletion import Worths
    from rerank_core.attribution.leaves import Leaf
    from rerank_core.records import Attribution, Document, Query
    from serve.chat import ChatTask

TEXTS = (
    "sea ice thickness from radar",
    "river ice dates",
    "sand dunes of the desert",
    "ice on lakes and seas",
)
TOKENIZER = tiny_tokenizer(TEXTS, has_mask=True)


def card_of(artefact: Path) -> ModelCard:
    """Return the card of a model of 48 tokens that reads with an artefact's tokenizer."""
    return ModelCard(
        digest="ab" * 32,
        tokenizer_digest=tokenizer_digest(artefact),
        max_length=48,
        max_query_length=16,
        long_documents="truncate",
        calibration=None,
    )


def build_overlap_attributor(
    method: Method, *, leaf: Leaf, max_evals: int, before_call: Callable[[], None]
) -> SearchAttributor:
    """Return an attributor of the number of words that two texts share."""
    if method == "exact":
        raise ConfigError("too many words for an enumeration")
    scorer = OverlapScorer()

    class Watched(PlainTexts):
        def score_texts(self, texts: Sequence[tuple[Query, str]]) -> list[float]:
            before_call()
            return super().score_texts(texts)

    return SearchAttributor(
        scorer, TOKENIZER, PrunedOwen(max_evals), leaf=leaf, open_texts=lambda: Watched(scorer)
    )


def open_overlap_deletion(
    attribution: Attribution,
    *,
    query: Query,
    document: Document,
    rivals: Sequence[float],
    before_call: Callable[[], None],
) -> tuple[Deletion, Worths]:
    """Return a document whose words can be deleted, scored by the number of words that two texts share."""
    scorer = OverlapScorer()
    part = attributed_part(attribution, document, [scorer.visible_span(query, document)])
    masked = TokenMasker(TOKENIZER).masked(part.text, word_spans(attribution, part))
    deletion = Deletion(query, masked, attribution.score, tuple(rivals))
    return deletion, CoalitionScores(deletion, PlainTexts(scorer))


class ScriptedWriter:
    """Answers what it is told to, a few letters at a time."""

    def __init__(self, answer: Callable[[str, Mapping[str, Any]], str] = grounded_answer) -> None:
        self._answer = answer
        self.prompts: list[str] = []

    async def write(
        self, prompt: str, schema: Mapping[str, Any], *, attempt: int
    ) -> AsyncGenerator[str, None]:
        self.prompts.append(prompt)
        text = self._answer(prompt, schema)
        for start in range(0, len(text), 7):
            yield text[start : start + 7]


class ScriptedChat:
    """Continues every conversation with the same words, a few letters at a time, or fails as it is told."""

    def __init__(self, reply: str = "Sea ice floats.", error: Exception | None = None) -> None:
        self._reply = reply
        self._error = error
        self.tasks: list[ChatTask] = []

    async def converse(self, task: ChatTask) -> AsyncGenerator[ChatPiece | ChatCost, None]:
        self.tasks.append(task)
        yield ChatPiece("", None)
        for start in range(0, len(self._reply), 4):
            yield ChatPiece(self._reply[start : start + 4], None)
        if self._error is not None:
            raise self._error
        yield ChatPiece("", "stop")
        yield ChatCost(7, 5)
