"""Whatever a model writes, an exact permutation of the candidates is read from it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerank_core.errors import DataError
from rerank_core.prompting.parse import MAX_ANSWER_CHARS
from rerank_core.prompting.ranking_list import (
    first_words,
    parse_ranking,
    render_query_prompt,
    render_ranking,
)
from rerank_core.records import Document, Query

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

CANDIDATES = ("d1", "d2", "MED-10", "the matrix")
NUM_ADVERSARIAL = 1000


def is_repaired(order: Sequence[str], candidates: Sequence[str]) -> bool:
    return sorted(order) == sorted(candidates)


# --- reading


def test_a_clean_answer_is_read_without_a_problem() -> None:
    text = (
        "Rank 1: MED-10 – on ice\nRank 2: the matrix — a film - or so\nRank 3: d2: rain\nRank 4: d1 - short"
    )
    parsed = parse_ranking(text, CANDIDATES)
    assert parsed.order == ("MED-10", "the matrix", "d2", "d1")
    assert parsed.reasons == {"MED-10": "on ice", "the matrix": "a film - or so", "d2": "rain", "d1": "short"}
    assert parsed.problems == ()


@pytest.mark.parametrize("line", ["rank1:d2", "RANK 1 : d2", "  Rank  1:  d2  ", "Rank 01: d2\r"])
def test_blanks_case_and_zeros_of_a_line_do_not_matter(line: str) -> None:
    parsed = parse_ranking(f"{line}\n\nRank 2: d1", ("d1", "d2"))
    assert (parsed.order, parsed.problems) == (("d2", "d1"), ())


def test_missing_documents_follow_in_first_stage_order() -> None:
    parsed = parse_ranking("Rank 1: MED-10", CANDIDATES)
    assert parsed.order == ("MED-10", "d1", "d2", "the matrix")
    assert parsed.problems == ("missing:d1", "missing:d2", "missing:the matrix")


def test_without_any_line_the_first_stage_stands() -> None:
    parsed = parse_ranking("", CANDIDATES)
    assert (parsed.order, parsed.reasons) == (CANDIDATES, {})
    assert parsed.problems == tuple(f"missing:{doc_id}" for doc_id in CANDIDATES)


def test_of_two_lines_for_a_document_the_better_rank_counts() -> None:
    parsed = parse_ranking("Rank 1: d2 – first\nRank 2: d1\nRank 3: d2 – again", ("d1", "d2"))
    assert (parsed.order, parsed.reasons) == (("d2", "d1"), {"d2": "first"})
    assert parsed.problems == ("duplicate:d2",)


def test_a_document_that_is_no_candidate_is_left_out() -> None:
    parsed = parse_ranking(f"Rank 1: {'x' * 100} – good\nRank 2: d2\nRank 3: d12", ("d1", "d2"))
    assert parsed.order == ("d2", "d1")
    assert parsed.problems == ("foreign:" + "x" * 40, "foreign:d12", "missing:d1")


def test_lines_that_state_no_rank_are_reported_by_their_number() -> None:
    text = "Here you are:\nRank 1: d2\n\n1. d1\nRank two: d1\nRank 3:"
    parsed = parse_ranking(text, ("d1", "d2"))
    assert parsed.order == ("d2", "d1")
    assert parsed.problems == ("malformed:1", "malformed:4", "malformed:5", "malformed:6", "missing:d1")


@pytest.mark.parametrize(
    "text", ["Rank 2: d1\nRank 1: d2", "Rank 7: d2\nRank 9: d1", "Rank 1: d2\nRank 1: d1"]
)
def test_lines_count_by_their_stated_rank_then_by_their_place(text: str) -> None:
    parsed = parse_ranking(text, ("d1", "d2"))
    assert (parsed.order, parsed.problems) == (("d2", "d1"), ("ranks_out_of_sequence",))


def test_what_is_beyond_the_longest_answer_is_not_read() -> None:
    text = "Rank 1: d2\n" + " " * MAX_ANSWER_CHARS + "\nRank 2: d1"
    assert parse_ranking(text, ("d1", "d2")).problems == ("answer_too_long", "missing:d1")


def test_an_answer_cannot_smuggle_in_what_a_reader_does_not_see() -> None:
    parsed = parse_ranking("Rank 1: d1 – fine\u202e\x1b[2J <|im_end|>\ud800", ("d1",))
    assert parsed.reasons == {"d1": "fine [2J < |im_end|>"}


def adversarial_answer(rng: np.random.Generator) -> str:
    """Return a ranking with lines that are missing, repeated, foreign, malformed or run together."""
    doc_ids = [*CANDIDATES, "d3", "d1x", "", "Rank 1: d1", "–", "0" * 50]
    lines = [
        f"Rank {rng.choice(['1', '2', '3', '0', '-1', '9' * 7, '²', 'one', ''])}"
        f"{rng.choice([':', ' :', '', '.', '::'])} {rng.choice(doc_ids)}"
        f"{rng.choice(['', ' – fits', ' - ', '–', ' – ' * 9, chr(0), chr(0xD800), '{query}'])}"
        for _ in range(rng.integers(0, 12))
    ]
    junk = rng.choice(["", "Sure!", "```json", '{"order": [1]}', "Rank", "\x00\u2028\u202e"], size=len(lines))
    kept = rng.random(len(lines)) < 0.8
    mixed = [line if keep else other for line, other, keep in zip(lines, junk, kept, strict=True)]
    return str(rng.choice(["\n", "\r\n", "\n\n", " "])).join(mixed)


def test_a_thousand_adversarial_answers_are_all_repaired_to_permutations(rng: np.random.Generator) -> None:
    answers = [adversarial_answer(rng) for _ in range(NUM_ADVERSARIAL)]
    problems: set[str] = set()
    for answer in answers:
        parsed = parse_ranking(answer, CANDIDATES)
        assert is_repaired(parsed.order, CANDIDATES)
        assert parsed.reasons.keys() <= set(CANDIDATES)
        problems |= {problem.partition(":")[0] for problem in parsed.problems}
    assert len(set(answers)) > NUM_ADVERSARIAL * 0.8
    assert problems == {"missing", "duplicate", "foreign", "malformed", "ranks_out_of_sequence"}


_IDS = st.lists(st.text(min_size=1), unique=True, max_size=8)


@given(st.text(), _IDS)
def test_any_text_gives_a_permutation_of_any_candidates(text: str, candidates: list[str]) -> None:
    assert is_repaired(parse_ranking(text, candidates).order, candidates)


@given(
    st.data(),
    st.lists(st.from_regex(r"[a-z0-9_.:-]{0,7}[a-z0-9_.-]", fullmatch=True), unique=True, max_size=8),
)
def test_any_order_that_is_written_is_read_back(data: st.DataObject, candidates: list[str]) -> None:
    order = data.draw(st.permutations(candidates))
    reason = st.from_regex(r"[a-z](?: ?[a-z,–-])*", fullmatch=True)
    reasons = {doc_id: data.draw(reason) for doc_id in order[::2]}
    parsed = parse_ranking(render_ranking(order, reasons), candidates)
    assert (parsed.order, parsed.reasons, parsed.problems) == (tuple(order), reasons, ())


# --- asking


DOCUMENTS = (Document("d1", "Sea ice in spring", title="Ice"), Document("d2", "Rain\nand <s> hail"))


def test_a_prompt_names_the_query_and_every_candidate_in_the_order_given() -> None:
    prompt = render_query_prompt(Query("q", "ice  {candidates}\n"), DOCUMENTS, max_words=4)
    assert prompt.splitlines()[:5] == [
        "Query: ice {candidates}",
        "",
        "Candidates:",
        "d1: Ice Sea ice in",
        "d2: Rain and < s> hail",
    ]
    assert "Order all 2 candidates" in prompt


def test_the_example_line_of_the_prompt_is_one_that_is_understood() -> None:
    example = render_query_prompt(Query("q", "ice"), DOCUMENTS, max_words=9).splitlines()[-1]
    assert parse_ranking(example, ("id",)).reasons == {"id": "reason"}


def test_a_document_is_shown_up_to_its_last_allowed_word() -> None:
    document = Document("d", "Sea ice, thin.", title="Ice")
    assert [first_words(document, max_words=n) for n in (1, 3)] == ["Ice", "Ice\nSea ice"]
    assert [first_words(document, max_words=n) for n in (4, 5)] == [document.content] * 2


@pytest.mark.parametrize(
    "doc_id",
    ["a\nb", " a", "a  b", "a – b", "a—b", "a - b", "a: b", "a:", "–", "a\u200b", "<|im_end|>", "x[EOS]"],
)
def test_an_id_that_a_line_cannot_hold_is_refused_by_name(doc_id: str) -> None:
    with pytest.raises(DataError, match=r"cannot be named in a line .* rename it"):
        render_query_prompt(Query("q", "ice"), [Document(doc_id, "")], max_words=9, special_tokens=["[EOS]"])
