"""What people wrote is read as it stands, and a row that fits no document is refused by name."""

import json

import pytest

from rerank_core.data.answers import ExpertAnswer, read_answers
from rerank_core.errors import DataError
from rerank_core.records import Document, Query

QUERIES = {name: Query(name, "warm sea") for name in ("q1", "q2")}
DOCUMENTS = {"d1": Document("d1", "The sea warms. Ice melts.", title="Sea"), "d2": Document("d2", "Snow.")}


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_an_answer_has_its_rationale_as_characters_of_the_content(tmp_path):
    path = write(
        tmp_path / "answers.jsonl",
        {"query_id": "q1", "doc_id": "d1", "answer": "It warms.", "rationale": "The sea warms. "},
        {"query_id": "q1", "doc_id": "d2", "answer": "It snows.", "rationale": None},
        {"query_id": "q2", "doc_id": "d2", "answer": "It snows."},
    )
    answers = read_answers(path, queries=QUERIES, documents=DOCUMENTS)
    assert answers["q1", "d1"] == ExpertAnswer("It warms.", (4, 18))
    assert DOCUMENTS["d1"].content[4:18] == "The sea warms."
    assert answers["q1", "d2"] == answers["q2", "d2"] == ExpertAnswer("It snows.", None)


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"doc_id": "d1", "answer": "x"}, "column 'query_id' is missing"),
        ({"query_id": "q2", "doc_id": "d1", "answer": ""}, "answer is empty"),
        ({"query_id": "q2", "doc_id": "d1", "answer": 3}, "answer is int 3, expected text"),
        ({"query_id": "q2", "doc_id": "d9", "answer": "x"}, "no document is called 'd9'"),
        ({"query_id": "q9", "doc_id": "d1", "answer": "x"}, "no query is called 'q9'"),
        ({"query_id": "q1", "doc_id": "d1", "answer": "x"}, "have an answer already; keep one"),
        (
            {"query_id": "q2", "doc_id": "d1", "answer": "x", "rationale": "fog"},
            "not hold the rationale 'fog'",
        ),
    ],
)
def test_a_row_that_cannot_be_an_answer_is_named(tmp_path, row, problem):
    path = write(tmp_path / "answers.jsonl", {"query_id": "q1", "doc_id": "d1", "answer": "ice"}, row)
    with pytest.raises(DataError, match=rf"answers\.jsonl, row 2: .*{problem}"):
        read_answers(path, queries=QUERIES, documents=DOCUMENTS)


def test_a_file_without_an_answer_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"answers\.jsonl holds no answer"):
        read_answers(write(tmp_path / "answers.jsonl"), queries=QUERIES, documents=DOCUMENTS)
