"""What a result is explained against: another document, or its own place in the list."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest

from rerank_core.attribution.rank_flip import MAX_FLIP_EVALS
from rerank_core.records import Document, Query
from serve.attributor import AttributorService
from serve.explanations import CLEAR_DIFFERENCE, Asked, RankedList, standing_at
from serve.gateway import explaining_cost
from tests.fake_services import ScriptedWriter, build_overlap_attributor, open_overlap_deletion
from tests.streams import STREAM, events_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from starlette.testclient import TestClient

    from rerank_core.attribution.deletion import Deletion, Worths
    from rerank_core.records import Attribution
    from serve.reranker import ModelCard

DOCUMENTS = ["sand dunes", "sea ice from radar", "ice of the sea", "river ice dates", "radar on lakes"]
ORDER = [1, 2, 3, 0, 4]  # their scores are 2, 2, 1, 0, 0
BODY: dict[str, Any] = {"query": "sea ice", "documents": DOCUMENTS, "scale": "logit"}


def attributed(client: TestClient, target: str, **settings: Any) -> dict[str, Any]:
    answer = client.post("/v1/attribute", json={**BODY, "target": target, **settings})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    assert [result["index"] for result in found["results"]] == ORDER
    return found


# --- margins over a document of the request


def test_margins_over_a_document_of_the_request_hold_the_words_of_both(
    connect: Callable[..., TestClient],
) -> None:
    results = attributed(connect(), "margin:3", explain={"top_k": 4})["results"]
    explanations = [result["explanation"] for result in results[:4]]
    assert [one["above"]["margin"] for one in explanations if "above" in one] == [1.0, 1.0, -1.0]
    assert "above" not in explanations[2]  # that document itself
    assert explanations[2]["attribution"]["score"] == 1.0
    for one in (explanations[0], explanations[1], explanations[3]):
        assert one["above"]["index"] == 3
        assert one["above"]["attribution"] == explanations[2]["attribution"]
        assert one["above"]["margin"] == one["attribution"]["score"] - 1.0


def test_a_margin_may_be_over_a_document_that_is_not_shown(connect: Callable[..., TestClient]) -> None:
    body = {**BODY, "target": "margin:4", "top_n": 1}
    (result,) = connect().post("/v1/attribute", json=body).json()["results"]
    above = result["explanation"]["above"]
    assert (above["index"], above["margin"]) == (4, 2.0)
    assert {unit["text"] for unit in above["attribution"]["units"]} == {"radar", "on", "lakes"}


def test_a_contrast_says_why_a_result_stands_above_that_document(connect: Callable[..., TestClient]) -> None:
    body = {**BODY, "target": "margin:3", "explain": {"top_k": 4, "contrast": True}}
    results = connect(writer=ScriptedWriter()).post("/v1/explain", json=body).json()["results"]
    texts = [result["explanation"]["text"]["text"] for result in results[:4]]
    assert ["above the document at rank 3" in text for text in texts] == [True, True, False, False]


@pytest.mark.parametrize(
    ("settings", "status", "code", "param"),
    [
        ({"target": "margin:5"}, 400, "no_such_document", "target"),
        ({"target": "margin:5", "documents": []}, 400, "no_documents", "documents"),
        ({"target": "margin:-1"}, 422, "string_pattern_mismatch", "target"),
        ({"target": "margin:"}, 422, "string_pattern_mismatch", "target"),
        ({"target": "margin:²"}, 422, "string_pattern_mismatch", "target"),
        ({"target": "rank\n"}, 422, "string_pattern_mismatch", "target"),
        ({"target": "order"}, 422, "string_pattern_mismatch", "target"),
        ({"target": "rank", "granularity": "sentence"}, 400, "rank_flips_of_words", "granularity"),
        ({"target": "listwise", "granularity": "field"}, 400, "rank_flips_of_words", "granularity"),
    ],
)
def test_targets_that_cannot_be_are_refused(
    connect: Callable[..., TestClient], settings: dict[str, Any], status: int, code: str, param: str
) -> None:
    refused = connect().post("/v1/attribute", json={**BODY, **settings})
    error = refused.json()["error"]
    assert (refused.status_code, error["code"], error["param"]) == (status, code, param)
    assert error["remedy"]


# --- the few words that hold a rank


def without(document: str, units: Sequence[dict[str, Any]]) -> str:
    for unit in sorted(units, key=lambda unit: -unit["start"]):
        assert document[unit["start"] : unit["end"]] == unit["text"]
        document = document[: unit["start"]] + document[unit["end"] :]
    return document


def test_without_the_words_of_its_rank_flip_a_result_stands_where_it_is_said_to(
    connect: Callable[..., TestClient],
) -> None:
    client = connect()
    answer = attributed(client, "rank", explain={"top_k": 5}, granularity="word")
    flips = [result["explanation"]["rank_flip"] for result in answer["results"]]
    assert "degraded" not in answer
    assert [flip["rank"] for flip in flips] == [1, 2, 3, 4, 5]
    assert [len(flip["units"]) for flip in flips] == [1, 2, 1, 0, 0]
    for index, flip in zip(ORDER[:3], flips[:3], strict=True):
        documents = [without(text, flip["units"]) if n == index else text for n, text in enumerate(DOCUMENTS)]
        changed = client.post("/v1/rerank", json={**BODY, "documents": documents}).json()["results"]
        (place,) = [n for n, result in enumerate(changed) if result["index"] == index]
        assert place + 1 == flip["flipped_rank"] > flip["rank"]
        assert changed[place]["relevance_score"] == flip["score"]


def test_where_no_few_words_hold_a_rank_none_are_named(connect: Callable[..., TestClient]) -> None:
    results = attributed(connect(), "rank", explain={"top_k": 1, "skip": 4})["results"]
    assert results[4]["explanation"]["rank_flip"] == {"units": [], "rank": 5}  # nobody to fall behind


def test_rank_flips_are_searched_where_they_are_asked_for_alone(connect: Callable[..., TestClient]) -> None:
    for target in ("score", "margin"):
        answer = attributed(connect(), target)
        assert not any("rank_flip" in result.get("explanation", {}) for result in answer["results"])


def test_in_a_stream_rank_flips_follow_the_refined_values(connect: Callable[..., TestClient]) -> None:
    body = {**BODY, "target": "rank", "explain": {"top_k": 1}}
    events = events_of(connect().post("/v1/attribute", json=body, headers=STREAM))
    told = [value for name, value in events if name == "attributions"]
    assert [value["is_refined"] for value in told] == [False, True, True]
    assert ["rank_flip" in value["explanations"]["1"] for value in told] == [False, False, True]
    assert told[1]["explanations"]["1"]["attribution"] == told[2]["explanations"]["1"]["attribution"]
    assert events[-1] == ("done", {"degraded": []})


def test_without_time_for_rank_flips_the_values_stay_and_it_is_said(
    connect: Callable[..., TestClient], card: ModelCard
) -> None:
    def open_slowly(attribution: Attribution, **of_document: Any) -> tuple[Deletion, Worths]:
        time.sleep(1.2)
        return open_overlap_deletion(attribution, **of_document)

    attributors = AttributorService(build_overlap_attributor, open_slowly, digest=card.digest)
    client = connect(attributors=attributors, attribution_timeout_s=1.0)
    answer = attributed(client, "rank", explain={"top_k": 1})
    assert answer["degraded"] == ["attributor"]
    explanation = answer["results"][0]["explanation"]
    assert explanation["attribution"]["is_refined"] is True
    assert "rank_flip" not in explanation


# --- the words that would change the order


def test_the_fewest_words_that_change_the_order_are_named_of_the_list(
    connect: Callable[..., TestClient],
) -> None:
    answer = attributed(connect(), "listwise", explain={"top_k": 5})
    assert answer["order_flip"] == {
        "index": 1,
        "rank_flip": answer["results"][0]["explanation"]["rank_flip"],
    }
    assert len(answer["order_flip"]["rank_flip"]["units"]) == 1
    assert len(answer["results"][1]["explanation"]["rank_flip"]["units"]) == 2
    body = {**BODY, "target": "listwise", "explain": {"top_k": 5}}
    events = events_of(connect().post("/v1/attribute", json=body, headers=STREAM))
    told = [value for name, value in events if name == "attributions"]
    assert ["order_flip" in value for value in told] == [False, False, True]
    assert told[2]["order_flip"] == answer["order_flip"]


def test_an_order_that_no_few_words_hold_has_no_flip(connect: Callable[..., TestClient]) -> None:
    assert "order_flip" not in attributed(connect(), "listwise", explain={"top_k": 2, "skip": 3})
    assert "order_flip" not in attributed(connect(), "rank", explain={"top_k": 5})


# --- standings and costs


def ranked(*scores: float) -> RankedList:
    order = tuple(sorted(range(len(scores)), key=lambda index: -scores[index]))
    return RankedList(Query("", "sea ice"), (Document("", "ice"),) * len(scores), scores, order, "d")


def test_among_equal_scores_a_standing_s_rank_is_that_of_the_list() -> None:
    listed = ranked(1.0, 2.0, 1.0, 1.0 - CLEAR_DIFFERENCE / 2, 0.0)
    for rank in range(1, 6):
        standing = standing_at(rank, listed)
        assert standing.score == listed.scores[listed.order[rank - 1]]
        assert 1 + sum(rival > standing.score for rival in standing.rivals) == rank


def test_a_result_falls_by_a_clear_difference_alone() -> None:
    standing = standing_at(1, ranked(1.0, 1.0, 0.5))
    for score, num_above in (
        (1.0, 0),
        (1.0 - CLEAR_DIFFERENCE / 2, 0),
        (1.0 - CLEAR_DIFFERENCE * 2, 1),
        (0.5, 1),  # it came before the last one
        (0.499999, 2),
    ):
        assert sum(rival > score for rival in standing.rivals) == num_above


def asked_for(*, skip: int = 0, with_flips: bool = True, over: int | None = None) -> Asked:
    return Asked(
        skip=skip,
        num_results=2,
        with_text=False,
        num_words=10,
        contrast=False,
        with_next=False,
        over=over,
        with_flips=with_flips,
        with_order_flip=False,
        method="pruned",
        leaf="token",
        max_evals=36,
        seed=0,
        deadline_s=9,
    )


def cost(asked: Asked, *, max_length: int = 2000) -> int:
    listed = ranked(3.0, 2.0, 1.0, 0.0)
    return explaining_cost(listed, [1000, 100, 10, 1], asked, max_length=max_length)


def test_rank_flips_are_costed_as_whole_texts() -> None:
    assert cost(asked_for(skip=1, with_flips=False)) == 110 * 50
    assert cost(asked_for(skip=1)) == 110 * 50 + 110 * (MAX_FLIP_EVALS + 1)
    assert cost(asked_for(skip=1, with_flips=False, over=0)) == 1110 * 50
    assert cost(asked_for(skip=1, with_flips=False, over=1)) == 110 * 50


def test_rank_flips_of_a_long_document_cost_one_chunk_a_text_and_its_other_chunks_once() -> None:
    assert cost(asked_for(), max_length=50) == 1100 * 50 + (50 + 50) * MAX_FLIP_EVALS + 1100


def test_what_cannot_fall_is_neither_searched_nor_charged(connect: Callable[..., TestClient]) -> None:
    assert cost(asked_for(skip=2)) == 11 * 50 + 10 * (MAX_FLIP_EVALS + 1)
    assert cost(asked_for(skip=3)) == 1 * 50

    def refuse(*_: Any, **__: Any) -> tuple[Deletion, Worths]:
        raise AssertionError("it was searched")

    attributors = AttributorService(build_overlap_attributor, refuse, digest="ab" * 32)
    body = {"query": "sea ice", "documents": ["sea ice"], "target": "listwise"}
    for stated in ({}, {"budget": 20}):
        answer = connect(attributors=attributors).post("/v1/attribute", json={**body, **stated}).json()
        assert "degraded" not in answer
        assert answer["results"][0]["explanation"]["rank_flip"] == {"units": [], "rank": 1}
