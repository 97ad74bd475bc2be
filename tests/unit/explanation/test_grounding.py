"""What an explanation names must exist, with the sign that it has."""

import pytest

from rerank_core.explanation.grounding import check_citations, check_grounding, connectives
from rerank_core.prompting.parse import Citation, Sentence
from rerank_core.records import Document, Evidence, EvidenceWord

DOCUMENT = Document(
    "d", "Daily sea-ice extent of the Arctic, from PM2.5 buoys. Don't use <b>.", title="Ice charts"
)
EVIDENCE = Evidence(
    (EvidenceWord("ice", 1.5, 0.5), EvidenceWord("Arctic", 0.5, 0.2), EvidenceWord("buoys", -0.7, 0.2))
)
GOOD = "This document describes daily ice charts of the Arctic."


def _problems(text: str = GOOD, *cited: Citation, evidence: Evidence | None = EVIDENCE) -> list[str]:
    return check_grounding([Sentence(text, cited)], evidence=evidence, document=DOCUMENT)


def test_a_text_in_the_documents_words_with_right_citations_is_grounded() -> None:
    assert _problems(GOOD, Citation("ICE", "raised"), Citation("buoys", "lowered"), Citation("Arctic")) == []


@pytest.mark.parametrize(
    ("cited", "problems"),
    [
        (Citation("volcano"), ["absent_from_document:volcano", "absent_from_evidence:volcano"]),
        (Citation("volcano", "raised"), ["absent_from_document:volcano", "absent_from_evidence:volcano"]),
        (Citation("charts", "raised"), ["absent_from_evidence:charts"]),
        (Citation("ice", "lowered"), ["wrong_effect:ice"]),
        (Citation("buoys", "raised"), ["wrong_effect:buoys"]),
        (Citation("sea ice", "raised"), ["absent_from_document:sea ice", "absent_from_evidence:sea ice"]),
        (Citation(""), ["absent_from_document:", "absent_from_evidence:"]),
    ],
)
def test_a_wrong_citation_is_named(cited, problems) -> None:
    assert _problems(GOOD, cited) == problems


def test_evidence_that_the_document_lacks_cannot_be_cited() -> None:
    evidence = Evidence((EvidenceWord("volcano", 1.0, 1.0),))
    assert _problems(GOOD, Citation("volcano", "raised"), evidence=evidence) == [
        "absent_from_document:volcano"
    ]


def test_with_evidence_something_must_be_cited() -> None:
    assert _problems() == ["no_citation"]


def test_without_evidence_nothing_need_be_cited_and_no_effect_may_be_claimed() -> None:
    assert _problems(evidence=None) == []
    assert _problems(GOOD, Citation("charts"), evidence=None) == []
    assert _problems(GOOD, Citation("charts", "raised"), evidence=None) == ["wrong_effect:charts"]
    assert _problems(GOOD, Citation("volcano"), evidence=None) == ["absent_from_document:volcano"]


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        ("", ["empty_text"]),
        (" \n.", ["empty_text"]),
        (
            "This document describes a volcano and a Volcano.",
            ["absent_from_document:volcano", "absent_from_document:Volcano"],
        ),
        ("This document describes ice in ice://charts", ["link"]),
        ("This document describes ice in www.ice", ["absent_from_document:www", "link"]),
        ("This document describes ice in ice.arctic", ["link"]),
        ("This document describes no ice charts", ["refused_word:no", "absent_from_document:no"]),
        ("This document describes the best ice", ["refused_word:best", "absent_from_document:best"]),
        ("Ice of the Arctic", ["no_opening"]),
        ("This document describes <b>ice</b> charts", ["markup"]),
        ("This document describes **ice** charts", ["markup"]),
        ("This document describes [ice](charts)", ["markup"]),
        ("# This document describes ice", ["no_opening", "markup"]),
        ("This document describes &amp; ice", ["absent_from_document:amp", "markup"]),
        ("This document describes ice\u200b charts", ["hidden_characters"]),
        ("This document describes \u202eice", ["hidden_characters"]),
        ("This document describes ice <|ice|>", ["hidden_characters"]),
        ("This document describes ice of the Arctic of the Arctic ice, ice of the Arctic.", ["repeats"]),
    ],
)
def test_a_wrong_text_is_refused(text, problems) -> None:
    assert _problems(text, evidence=None) == problems


@pytest.mark.parametrize("text", ["Daily PM2.5, the Arctic’s not here", "Don’t use sea-ice charts."])
def test_spelling_with_signs_is_allowed(text) -> None:
    assert "link" not in _problems(text, evidence=None)
    assert "markup" not in _problems(text, evidence=None)


def test_inflections_are_the_documents_words_but_other_numbers_are_not() -> None:
    assert _problems("This document describes daily charting of a buoy, from PM2.5", evidence=None) == []
    assert _problems("This document describes PM2.6 buoys", evidence=None) == ["absent_from_document:PM2.6"]


def test_every_sentence_is_checked() -> None:
    sentences = [Sentence(GOOD, (Citation("ice", "raised"),)), Sentence("It also describes lava.", ())]
    assert check_grounding(sentences, evidence=EVIDENCE, document=DOCUMENT) == [
        "absent_from_document:lava",
        "no_citation",
    ]
    assert check_grounding([], evidence=EVIDENCE, document=DOCUMENT) == ["empty_text"]


def test_citations_can_be_checked_alone() -> None:
    assert check_citations([Citation("ice", "raised")], EVIDENCE, document=DOCUMENT) == []


def test_connectives_hold_no_word_of_content() -> None:
    assert {"this", "document", "describes", "the"} <= set(connectives())
    assert "ice" not in connectives()
