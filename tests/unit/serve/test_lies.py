"""The suite of lies and planted orders, through the API: nothing false, nothing obeyed, nothing leaked."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from rerank_core.records import Attribution, EvidenceWord, Unit
from serve.attributor import Attributed, AttributionTask
from serve.reranker import ModelCard, Scored, ScoringTask
from tests.lies import Case, lies, truths

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Mapping, Sequence

    from starlette.testclient import TestClient

STREAM = {"Accept": "text/event-stream"}


class Stage:
    """A reranker, an attributor and a writer that together put one case on the stage."""

    def __init__(self, card: ModelCard) -> None:
        self._card = card
        self.case: Case | None = None

    @property
    def _placed(self) -> Any:
        assert self.case is not None
        return self.case.placement

    @property
    def scores(self) -> list[float]:
        """Of as many documents as the case has candidates, best first, so that its document has its rank."""
        placement = self._placed
        contrast = placement.evidence.contrast
        margin = contrast.margin if contrast else 1.0
        lower = [-margin - n for n in range(placement.num_candidates - placement.rank)]
        return [*(float(placement.rank - n) for n in range(1, placement.rank)), 0.0, *lower]

    async def describe(self) -> ModelCard:
        return self._card

    async def score(self, task: ScoringTask) -> Scored:
        return Scored(tuple(self.scores), self._card)

    async def attribute(self, task: AttributionTask) -> AsyncGenerator[Attributed, None]:
        placement = self._placed
        evidence = placement.evidence
        told = [(evidence.words, 0.0)]
        if evidence.contrast:
            told.append((evidence.contrast.words, -evidence.contrast.margin))
        yield Attributed(tuple(attribution(*one) for one in told), self._card.digest, is_refined=True)

    async def write(
        self, prompt: str, schema: Mapping[str, Any], *, attempt: int
    ) -> AsyncGenerator[str, None]:
        assert self.case is not None
        for start in range(0, len(self.case.answer), 11):
            yield self.case.answer[start : start + 11]

    def body(self) -> dict[str, Any]:
        placement = self._placed
        contrast = placement.evidence.contrast
        documents: list[dict[str, str]] = [
            {"text": "something else"} for _ in range(placement.num_candidates)
        ]
        for rank, document in ((placement.rank, placement.document), (placement.rank + 1, contrast)):
            shown = contrast.document if contrast and document is contrast else document
            if shown is not None:
                documents[rank - 1] = {"text": shown.text, "title": shown.title}
        explain = {"top_k": 1, "skip": placement.rank - 1, "contrast": contrast is not None}
        return {"query": placement.query.text, "documents": documents, "explain": explain}


def attribution(words: Sequence[EvidenceWord], score: float) -> Attribution:
    units = tuple(Unit(word.text, 0, len(word.text)) for word in words)
    return Attribution("", "", score, 0.0, units, tuple(word.value for word in words), "x", 1, 0.0, 0)


@pytest.fixture
def stage(card: ModelCard) -> Stage:
    return Stage(card)


@pytest.fixture
def client(connect: Callable[..., TestClient], stage: Stage) -> TestClient:
    return connect(stage, attributors=stage, writer=stage)


def told_about(client: TestClient, stage: Stage, case: Case) -> tuple[str, dict[str, Any]]:
    """Return the draft and the explanation of a case, as the API streams them."""
    stage.case = case
    answer = client.post("/v1/explain", json=stage.body(), headers=STREAM)
    assert answer.status_code == 200
    events = [block.split("\n") for block in answer.text.strip().split("\n\n")]
    told = [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in events]
    assert told[-1] == ("done", {"degraded": []})
    draft = "".join(value["text"] for name, value in told if name == "draft")
    (text,) = [value["text"] for name, value in told if name == "explanation"]
    return draft, text


def test_no_lie_of_the_suite_is_told(client: TestClient, stage: Stage) -> None:
    for case in lies():
        draft, text = told_about(client, stage, case)
        assert text["is_fallback"], case
        assert case.problem.partition(":")[0] in text["problems"], case
        assert text["text"].startswith("This document is at rank 2 of 10"), case
        for sign in ("PWNED", "unrivalled", "http", "<", "`", "shop", "tickets", "](", "|"):
            assert sign not in draft + text["text"], case


def test_every_honest_answer_is_told(client: TestClient, stage: Stage) -> None:
    for case in truths():
        draft, text = told_about(client, stage, case)
        assert not text["is_fallback"], (case, text)
        assert draft.startswith("This document describes ")
