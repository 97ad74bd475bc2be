"""A long document is read in chunks, each whole, and has the score of the best one."""

from dataclasses import replace
from itertools import pairwise
from math import ceil, nan

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.deletions import document_deletion
from jobs.score import score_and_cut
from rerank_core.attribution import document_deletion as core
from rerank_core.attribution.build import build_attributor
from rerank_core.attribution.contract import check_residual
from rerank_core.attribution.rank_flip import find_rank_flip
from rerank_core.errors import DataError
from rerank_core.models.build import build_encoder, build_model, load_tokenizer
from rerank_core.models.chunks import chunk_spans
from rerank_core.models.scorer import LanguageModelScorer, Reading, best_reading
from rerank_core.models.tiny import save_tiny_writer
from rerank_core.records import Document, Query, Ranking, Run
from rerank_core.text import words

QUERY = Query("q", "sea surface temperature")
LONG = Document(
    "long",
    "monthly river discharge of the danube at vienna. " * 3
    + "daily sea surface temperature of the north sea. "
    + "snow depth at the station in the north. " * 4,
    title="records",
)


def token_ends(text):
    """Return where tokens of at most three letters end; white space belongs to no token."""
    return [min(start + 3, word.end) for word in words(text) for start in range(word.start, word.end, 3)]


@given(
    st.lists(st.sampled_from(["a", "sea", "ices", "glaciers", "temperatures"]), max_size=60),
    st.integers(1, 20),
)
def test_chunks_hold_every_word_once_and_no_more_tokens_than_there_is_room(found, room):
    text = "  ".join(found)
    ends = token_ends(text)
    spans = chunk_spans(text, ends, room=room)
    assert "".join(text[slice(*span)] for span in spans).replace(" ", "") == text.replace(" ", "")
    assert all(one[1] <= other[0] for one, other in pairwise(spans))
    for start, end in spans:
        assert text[start:end] == text[start:end].strip() != ""
        assert 1 <= sum(start < token_end <= end for token_end in ends) <= room


@given(st.integers(1, 80), st.integers(1, 20))
def test_words_of_one_token_make_the_fewest_chunks_as_even_as_can_be(num_words, room):
    text = " ".join(["sea"] * num_words)
    sizes = [len(text[slice(*span)].split()) for span in chunk_spans(text, token_ends(text), room=room)]
    assert len(sizes) == ceil(num_words / room)
    assert max(sizes) - min(sizes) <= 1


def test_a_word_is_cut_only_where_a_chunk_has_no_white_space_to_end_at():
    text = "sea glaciers"
    assert [text[slice(*span)] for span in chunk_spans(text, token_ends(text), room=3)] == ["sea", "glaciers"]
    text = "海" * 5
    assert [text[slice(*span)] for span in chunk_spans(text, range(1, 6), room=3)] == ["海海海", "海海"]


def test_a_chunk_has_room_for_something():
    with pytest.raises(ValueError, match="room for a token, got 0"):
        chunk_spans("sea", [3], room=0)


@pytest.fixture
def chunking(scorer):
    return LanguageModelScorer(scorer.model.double(), scorer.encoder, digest="x", long_documents="max_chunk")


def test_a_long_document_has_the_highest_score_of_its_chunks(chunking):
    readings = chunking.readings([(QUERY, LONG)])[0]
    chunks = [Document("chunk", LONG.content[slice(*reading.span)]) for reading in readings]
    assert len(chunks) >= 3
    assert not any(reading.is_truncated for reading in readings)
    alone = [chunking.score(QUERY, [chunk])[0] for chunk in chunks]
    assert [reading.score for reading in readings] == pytest.approx(alone, abs=1e-9)
    assert chunking.score(QUERY, [LONG]) == pytest.approx([max(alone)], abs=1e-9)
    assert chunking.visible_span(QUERY, LONG) == readings[alone.index(max(alone))].span


def test_a_document_that_fits_is_read_as_ever(chunking, scorer):
    short = Document("short", "snow depth", title="records")
    assert chunking.score(QUERY, [short]) == pytest.approx(scorer.score(QUERY, [short]), abs=1e-9)
    assert chunking.visible_span(QUERY, short) == (0, len(short.content))


def test_a_chunk_whose_score_is_no_number_is_not_passed_over():
    readings = [Reading(score, (0, 1), is_truncated=False) for score in (1.0, nan, 2.0)]
    assert best_reading(readings) is readings[1]
    assert best_reading(readings[::2]) is readings[2]


@pytest.mark.parametrize("method", ["pruned", "shap"])
def test_the_words_of_the_best_chunk_are_attributed(chunking, method):
    (found,) = build_attributor(chunking, method, max_evals=60).attribute(QUERY, [LONG], seed=0)
    best = best_reading(chunking.readings([(QUERY, LONG)])[0])
    assert found.score == pytest.approx(best.score, abs=1e-9)
    assert found.is_truncated
    check_residual(found)
    text_start = len(LONG.content) - len(LONG.text)
    places = [unit.start + text_start * (unit.field == "text") for unit in found.units]
    assert [(place, unit.text) for place, unit in zip(places, found.units, strict=True)] == [
        (best.span[0] + word.start, word.text) for word in words(LONG.content[slice(*best.span)])
    ]
    for unit in found.units:
        assert getattr(LONG, unit.field)[unit.start : unit.end] == unit.text


@pytest.mark.parametrize(("above", "is_held"), [("best", True), ("second", False)])
def test_no_words_hold_a_rank_that_another_chunk_has_as_well(chunking, above, is_held):
    (found,) = build_attributor(chunking, "pruned", max_evals=60).attribute(QUERY, [LONG], seed=0)
    scores = sorted(reading.score for reading in chunking.readings([(QUERY, LONG)])[0])
    rival = {"best": scores[-1], "second": scores[-2]}[above] - 1e-9
    run = Run("run", {"q": Ranking("q", ("long", "rival"), (found.score, rival))})
    deletion, worths = document_deletion(found, QUERY, LONG, scorer=chunking, run=run)
    flip = find_rank_flip(deletion, found.values, worths)
    assert (flip is not None) == is_held
    if flip:
        assert scores[-2] <= flip.score < rival


def test_the_other_chunks_are_scored_no_further_once_nobody_waits(chunking):
    long = replace(LONG, text=LONG.text * 30)
    (found,) = build_attributor(chunking, "pruned", max_evals=20).attribute(QUERY, [long], seed=0)
    num_calls = ceil((len(chunking.visible_spans(QUERY, long)) - 1) / core.NUM_CHUNKS)
    assert num_calls > 2
    asked = []
    core.document_deletion(
        chunking, found, query=QUERY, document=long, rivals=[], before_call=lambda: asked.append("model")
    )
    assert len(asked) == num_calls

    def end_at_the_second():
        asked.append("end")
        if asked[-2:] == ["end", "end"]:
            raise TimeoutError

    with pytest.raises(TimeoutError):
        core.document_deletion(
            chunking, found, query=QUERY, document=long, rivals=[], before_call=end_at_the_second
        )
    assert asked.count("end") == 2


def test_an_attribution_of_another_text_is_refused(chunking):
    (found,) = build_attributor(chunking, "pruned", max_evals=60).attribute(QUERY, [LONG], seed=0)
    other = replace(LONG, text="so " + LONG.text)
    run = Run("run", {"q": Ranking("q", ("long",), (found.score,))})
    with pytest.raises(DataError, match="'long': the attributed words lie in no part that the scorer reads"):
        document_deletion(found, QUERY, other, scorer=chunking, run=run)


def test_a_chunk_is_read_where_all_before_it_are_blank(tmp_path):
    save_tiny_writer(tmp_path, [QUERY.text, LONG.content], seed=0)  # line breaks are tokens to it
    model = build_model(tmp_path, head="linear", num_layers=None, seed=0)
    encoder = build_encoder(load_tokenizer(tmp_path), model.config, head="linear", max_length=80)
    chunking = LanguageModelScorer(model, encoder, digest="x", long_documents="max_chunk")
    document = Document("d", "\n\t" * 200 + "ice")
    (readings,) = chunking.readings([(QUERY, document)])
    assert [document.content[slice(*reading.span)] for reading in readings] == ["ice"]


def test_a_document_that_is_read_in_chunks_does_not_count_as_cut(chunking):
    (readings,) = chunking.readings([(QUERY, LONG)])
    assert score_and_cut(readings) == (best_reading(readings).score, False)
