"""What an explanation names must exist, with the sign that it has."""

import pytest

from rerank_core.explanation.grounding import check_citations, check_grounding, connectives
from rerank_core.prompting.parse import Citation, Sentence
from rerank_core.records import Document, Evidence, EvidenceWord

DOCUMENT = Document(
    "d",
    "Daily sea-ice extent of the Arctic, from PM2.5 buoys at -25 and 102 m. Don't import.",
    title="Ice charts",
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
        ("This document describes ice in ice://charts", ["symbols"]),
        ("This document describes ice in ice.arctic", ["symbols"]),
        ("This document describes no ice charts", ["refused_word:no", "absent_from_document:no"]),
        ("This document describes the best ice", ["refused_word:best", "absent_from_document:best"]),
        ("Ice of the Arctic", ["no_opening"]),
        ("This document describes a document that describes an and a.", ["says_nothing"]),
        ("This document describes ice. The Arctic.", ["symbols"]),
        ("This document describes <b>ice</b> charts", ["absent_from_document:b", "symbols"]),
        ("This document describes **ice** charts", ["symbols"]),
        ("# This document describes ice", ["no_opening", "symbols"]),
        ("This document describes ice!", ["symbols"]),
        ("This document describes ice\u200b charts", ["symbols"]),
        ("This document describes sea-charts", ["symbols"]),
        ("This document describes ice of the Arctic of the Arctic ice, ice of the Arctic.", ["repeats"]),
    ],
)
def test_a_wrong_text_is_refused(text, problems) -> None:
    assert _problems(text, evidence=None) == problems


def test_inflections_are_the_documents_words_but_other_numbers_are_not() -> None:
    assert _problems("This document describes daily charting of a buoy, from PM2.5", evidence=None) == []
    assert _problems("This document describes sea-ice of the Arctic, by buoys", evidence=None) == []
    for word in ("PM2.6", "10\u00b2", "25", "important"):
        found = _problems(f"This document describes {word} buoys", evidence=None)
        assert found == [f"absent_from_document:{word}"]


def test_words_that_deny_or_judge_are_refused_also_where_the_document_has_them() -> None:
    document = Document("d", "The best ice isn't ranked, and no trusted chart recommends it.")
    for word in ("best", "isn't", "isn’t", "ranking", "no", "trusting", "recommended"):
        found = check_grounding(
            [Sentence(f"This document describes {word} ice", ())], evidence=None, document=document
        )
        assert f"refused_word:{word}" in found


def test_there_are_two_sentences_and_three_citations_at_most() -> None:
    one = Sentence(GOOD, (Citation("ice", "raised"),))
    other = Sentence("It also describes buoys.", (Citation("ice", "raised"),))
    assert check_grounding([one, other], evidence=EVIDENCE, document=DOCUMENT) == []
    third = Sentence("It also describes the Arctic.", (Citation("ice", "raised"),))
    found = check_grounding([one, other, third], evidence=EVIDENCE, document=DOCUMENT)
    assert found == ["too_many_sentences"]
    cited = tuple(Citation("ice", "raised") for _ in range(4))
    assert check_grounding([Sentence(GOOD, cited)], evidence=EVIDENCE, document=DOCUMENT) == [
        "too_many_citations"
    ]


def test_two_sentences_may_share_words_but_not_say_the_same() -> None:
    said = [Sentence("This document describes the extent of the sea-ice.", ())]
    shared = Sentence("It also describes charts of the sea-ice.", ())
    assert check_grounding([*said, shared], evidence=None, document=DOCUMENT) == []
    same = Sentence("It also describes the extent of the sea-ice.", ())
    assert check_grounding([*said, same], evidence=None, document=DOCUMENT) == ["repeats"]


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
