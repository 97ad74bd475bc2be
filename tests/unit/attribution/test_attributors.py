"""Words with a planted influence get it, by every method; each game is kept honest."""

import numpy as np
import pytest

from rerank_core.attribution.attributor import DOCUMENTS_AT_ONCE, SearchAttributor
from rerank_core.attribution.contract import check_residual
from rerank_core.attribution.estimators import ExactShapley, PartitionOwen, PrunedOwen
from rerank_core.attribution.shap_adapter import ShapAttributor
from rerank_core.errors import ConfigError, DataError
from rerank_core.records import Document, Query
from rerank_core.testing import AdditiveScorer, OverlapScorer

QUERY = Query("q1", "sea ice")


class CountingScorer(OverlapScorer):
    """Records every text it scores; reads the first `num_characters` of a document."""

    def __init__(self, num_characters=1000):
        self.num_characters = num_characters
        self.texts = []

    def score(self, query, documents):
        self.texts += [document.content for document in documents]
        cut = [Document(d.doc_id, d.content[: self.num_characters]) for d in documents]
        return super().score(query, cut)

    def visible_span(self, query, document):
        return 0, min(self.num_characters, len(document.content))

    def visible_query(self, query):
        return query.text[: self.num_characters]


ESTIMATES = ["shap", "partition", "pruned"]
METHODS = [*ESTIMATES, "exact"]


def _attributor(method, scorer, tokenizer, *, max_evals=500, **settings):
    if method == "shap":
        return ShapAttributor(scorer, tokenizer, max_evals=max_evals)
    estimators = {"partition": PartitionOwen, "pruned": PrunedOwen}
    estimator = ExactShapley() if method == "exact" else estimators[method](max_evals)
    return SearchAttributor(scorer, tokenizer, estimator, **settings)


def _attribute(method, scorer, tokenizer, document, *, seed=0, **settings):
    (attribution,) = _attributor(method, scorer, tokenizer, **settings).attribute(
        QUERY, [document], seed=seed
    )
    return attribution


@pytest.fixture(params=METHODS)
def method(request):
    return request.param


@pytest.fixture(params=ESTIMATES)
def estimate(request):
    return request.param


def _by_word(attribution):
    return [(unit.text, value) for unit, value in zip(attribution.units, attribution.values, strict=True)]


def test_an_additive_scorer_gets_its_weights_back(method, bert_tokenizer):
    scorer = AdditiveScorer({"ice": 2.0, "warm": -1.0, "earthquake": 4.0})
    document = Document("d", "warm sea, and ice: earthquake", title="Ice")
    attribution = _attribute(method, scorer, bert_tokenizer, document)
    expected = [("Ice", 2.0), ("warm", -1.0), ("sea", 0.0), ("and", 0.0), ("ice", 2.0), ("earthquake", 4.0)]
    assert [word for word, _ in _by_word(attribution)] == [word for word, _ in expected]
    assert attribution.values == pytest.approx([value for _, value in expected], abs=1e-6)
    assert attribution.base_value == 0.0
    assert attribution.score == 7.0
    assert (attribution.query_id, attribution.doc_id, attribution.method) == ("q1", "d", method)


def test_the_sub_words_of_a_word_share_its_weight(method, bert_tokenizer):
    word = "hydrometeorology"
    assert len(bert_tokenizer.tokenize(word)) > 2
    attribution = _attribute(
        method, AdditiveScorer({word: 3.0}), bert_tokenizer, Document("d", f"map of {word} sites")
    )
    assert dict(_by_word(attribution)) == pytest.approx({"map": 0, "of": 0, word: 3.0, "sites": 0}, abs=1e-6)


def test_a_planted_keyword_ranks_first(estimate, plain_tokenizer):
    document = Document("d", "the warm water map (surface) and ice of the quakes, the water surface map")
    attribution = _attribute(estimate, OverlapScorer(), plain_tokenizer, document, max_evals=100)
    values = dict(_by_word(attribution))
    assert max(values, key=lambda word: values[word]) == "ice"
    assert values["ice"] == pytest.approx(1.0, abs=0.1)


def test_a_word_that_changes_nothing_has_no_value(method, masking_tokenizer):
    attribution = _attribute(method, OverlapScorer(), masking_tokenizer, Document("d", "warm sea map ice"))
    values = dict(_by_word(attribution))
    assert abs(values["warm"]) < 1e-9
    assert abs(values["map"]) < 1e-9


@pytest.mark.parametrize("kind", ["masking_tokenizer", "plain_tokenizer", "byte_tokenizer", "bert_tokenizer"])
@pytest.mark.parametrize("max_evals", [2, 3, 20, 500])
def test_base_value_and_values_add_up_to_the_score(estimate, kind, max_evals, request):
    document = Document("d", "  the sea\n\nice (CO₂ 🌊) map,\twarm sea ", title="Sea  ice")
    attribution = _attribute(
        estimate, OverlapScorer(), request.getfixturevalue(kind), document, max_evals=max_evals
    )
    assert attribution.base_value + sum(attribution.values) == pytest.approx(attribution.score, abs=1e-9)
    assert abs(attribution.residual) < 1e-9
    check_residual(attribution)
    for unit in attribution.units:
        assert getattr(document, unit.field)[unit.start : unit.end] == unit.text


def test_a_scorer_that_contradicts_itself_leaves_a_residual(method, plain_tokenizer):
    class MoodyScorer(OverlapScorer):
        num_calls = 0

        def score(self, query, documents):
            self.num_calls += 1
            return [score + 0.01 * self.num_calls for score in super().score(query, documents)]

    attribution = _attribute(method, MoodyScorer(), plain_tokenizer, Document("d", "the sea ice map"))
    assert abs(attribution.residual) > 0.005
    with pytest.raises(DataError, match="miss the score"):
        check_residual(attribution)


def test_evaluations_are_counted_as_made(estimate, masking_tokenizer):
    scorer = CountingScorer()
    attribution = _attribute(
        estimate, scorer, masking_tokenizer, Document("d", "the warm sea ice map a b c"), max_evals=20
    )
    assert attribution.num_evals == len(scorer.texts)
    assert 4 < attribution.num_evals <= 22


def test_only_what_the_scorer_reads_is_attributed(method, masking_tokenizer):
    document = Document("d", "ice map the sea", title="Warm")
    attribution = _attribute(method, CountingScorer(num_characters=12), masking_tokenizer, document)
    assert [(unit.field, unit.text) for unit in attribution.units] == [
        ("title", "Warm"),
        ("text", "ice"),
        ("text", "map"),
    ]
    assert attribution.is_truncated
    assert attribution.score == 1.0
    assert abs(attribution.residual) < 1e-9


def test_a_document_that_is_read_whole_is_not_truncated(method, masking_tokenizer):
    assert not _attribute(method, CountingScorer(), masking_tokenizer, Document("d", "sea ice")).is_truncated


@pytest.mark.parametrize("text", ["", " \n "])
@pytest.mark.parametrize("kind", ["plain_tokenizer", "byte_tokenizer", "bert_tokenizer"])
def test_an_empty_document_has_only_a_base_value(method, kind, text, request):
    attribution = _attribute(method, OverlapScorer(), request.getfixturevalue(kind), Document("d", text))
    assert (attribution.units, attribution.values) == ((), ())
    assert attribution.base_value == attribution.score == 0.0
    assert attribution.num_evals == 1


@pytest.mark.parametrize("kind", ["masking_tokenizer", "plain_tokenizer", "bert_tokenizer"])
def test_a_document_of_one_token_gets_the_whole_difference(method, kind, request):
    attribution = _attribute(method, OverlapScorer(), request.getfixturevalue(kind), Document("d", "sea"))
    assert _by_word(attribution) == [("sea", 1.0)]
    assert attribution.base_value == 0.0
    # shap's search switches the two special tokens too, which changes nothing
    assert attribution.num_evals == (9 if (method, kind) == ("partition", "bert_tokenizer") else 3)


def test_a_document_of_characters_that_the_tokenizer_drops_has_a_unit_without_value(method, bert_tokenizer):
    attribution = _attribute(method, OverlapScorer(), bert_tokenizer, Document("d", "\u0001\u0002"))
    assert attribution.values == (0.0,)
    assert attribution.residual == 0.0


def test_documents_are_independent_of_their_list_mates(estimate, plain_tokenizer):
    documents = [Document("a", "the sea ice map a b c d"), Document("b", "warm sea water (surface)")]
    attributor = _attributor(estimate, OverlapScorer(), plain_tokenizer, max_evals=12)
    together = attributor.attribute(QUERY, documents, seed=3)
    assert together == [attributor.attribute(QUERY, [document], seed=3)[0] for document in documents]


@pytest.mark.parametrize("method", ["shap", "partition"])
def test_the_same_seed_gives_the_same_values_and_another_breaks_ties_otherwise(method, plain_tokenizer):
    document = Document("d", "sea b sea c sea d sea e sea f sea g sea h sea a")  # many ties, few evaluations
    values = [
        _attribute(method, OverlapScorer(), plain_tokenizer, document, max_evals=24, seed=seed).values
        for seed in (1, 1, 2, 3, 4, 5)
    ]
    assert values[0] == values[1]
    assert len(set(values)) > 1


def test_the_global_random_state_is_given_back(plain_tokenizer):
    before = np.random.get_state()
    _attribute("shap", OverlapScorer(), plain_tokenizer, Document("d", "the sea ice map"))
    for left, right in zip(before, np.random.get_state(), strict=True):
        np.testing.assert_array_equal(left, right)


def test_the_global_random_state_is_given_back_after_an_error(plain_tokenizer):
    class FailingScorer(OverlapScorer):
        def score(self, query, documents):
            if "..." in documents[0].content:
                raise DataError("no score")
            return super().score(query, documents)

    before = np.random.get_state()
    with pytest.raises(DataError, match="no score"):
        _attribute("shap", FailingScorer(), plain_tokenizer, Document("d", "the sea ice map"))
    for left, right in zip(before, np.random.get_state(), strict=True):
        np.testing.assert_array_equal(left, right)


def test_a_score_that_is_not_a_number_is_refused_before_the_search(method, plain_tokenizer):
    class BrokenScorer(OverlapScorer):
        def score(self, query, documents):
            return [float("nan")] * len(documents)

    with pytest.raises(DataError, match=r"query 'q1', document 'd': the score is nan"):
        _attribute(method, BrokenScorer(), plain_tokenizer, Document("d", "the sea"))


def test_too_few_evaluations_for_any_value_are_refused(estimate, plain_tokenizer):
    with pytest.raises(ConfigError, match=r"max_evals must be at least 2, .*, got 1"):
        _attributor(estimate, OverlapScorer(), plain_tokenizer, max_evals=1)


def test_an_error_bound_below_zero_is_refused():
    with pytest.raises(ConfigError, match="max_error must not be negative, got -1"):
        PrunedOwen(100, max_error=-1)


def test_more_players_than_can_be_listed_are_refused_with_the_way_out(plain_tokenizer):
    with pytest.raises(ConfigError, match=r"17 players are too many .* larger leaves, such as sentences"):
        _attribute("exact", OverlapScorer(), plain_tokenizer, Document("d", "a " * 17))


def test_more_documents_than_run_at_once_are_attributed_each_by_itself(estimate, plain_tokenizer):
    documents = [Document(str(n), "the sea ice map " * (n % 3 + 1)) for n in range(2 * DOCUMENTS_AT_ONCE + 1)]
    attributor = _attributor(estimate, OverlapScorer(), plain_tokenizer, max_evals=30)
    together = attributor.attribute(QUERY, documents, seed=0)
    assert together == [attributor.attribute(QUERY, [document], seed=0)[0] for document in documents]
    assert [attribution.doc_id for attribution in together] == [document.doc_id for document in documents]


def test_an_error_bound_is_stored_where_the_method_has_one(plain_tokenizer):
    document = Document("d", "the sea ice map " * 6)
    error = {
        (method, max_evals): _attribute(
            method, OverlapScorer(), plain_tokenizer, document, max_evals=max_evals
        ).error
        for method in ESTIMATES
        for max_evals in (6, 100)
    }
    assert error["pruned", 100] > 0
    assert {found for key, found in error.items() if key != ("pruned", 100)} == {None}  # 6 teach too little
    assert _attribute("exact", OverlapScorer(), plain_tokenizer, Document("d", "the sea")).error == 0.0


def test_a_search_ends_early_where_the_bound_on_its_error_is_low_enough(plain_tokenizer):
    document = Document("d", "the sea ice map " * 6)

    def attribution(max_error):
        attributor = SearchAttributor(OverlapScorer(), plain_tokenizer, PrunedOwen(400, max_error=max_error))
        return attributor.attribute(QUERY, [document], seed=0)[0]

    rough, fine = attribution(3.0), attribution(0.0)
    assert rough.num_evals < fine.num_evals
    assert rough.error <= 3.0


def test_effects_that_cancel_are_found(method, bert_tokenizer):
    scorer = AdditiveScorer({"good": 3.0, "bad": -3.0})
    for text, expected in [
        ("good sea ice bad", [3.0, 0.0, 0.0, -3.0]),
        ("map map. good bad", [0.0, 0.0, 3.0, -3.0]),
    ]:
        attribution = _attribute(method, scorer, bert_tokenizer, Document("d", text))
        assert attribution.values == pytest.approx(expected, abs=1e-9)


def test_documents_of_one_name_keep_their_own_values(method, plain_tokenizer):
    documents = [Document("d", "sea ice map"), Document("d", "the ice"), Document("d", "")]
    attributor = _attributor(method, OverlapScorer(), plain_tokenizer)
    together = attributor.attribute(QUERY, documents, seed=0)
    assert together == [attributor.attribute(QUERY, [document], seed=0)[0] for document in documents]
    assert [len(attribution.units) for attribution in together] == [3, 2, 0]


@pytest.mark.parametrize("method", ["partition", "pruned", "exact"])
def test_a_masked_text_without_a_score_is_named(method, plain_tokenizer):
    class BrokenGaps(OverlapScorer):
        def score(self, query, documents):
            scores = super().score(query, documents)
            return [float("inf") if "..." in d.content else s for d, s in zip(documents, scores, strict=True)]

    with pytest.raises(DataError, match=r"query 'q1', document 'd': the score is inf"):
        _attribute(method, BrokenGaps(), plain_tokenizer, Document("d", "the sea ice"))


@pytest.mark.parametrize(
    ("leaf", "expected"),
    [
        ("word", [("title", "Sea"), ("text", "Sea"), ("text", "ice"), ("text", "Warm"), ("text", "map")]),
        ("sentence", [("title", "Sea"), ("text", "Sea ice."), ("text", "Warm map!")]),
        ("field", [("title", "Sea"), ("text", "Sea ice.  Warm map!")]),
    ],
)
@pytest.mark.parametrize("method", ["partition", "pruned", "exact"])
def test_leaves_other_than_tokens_are_the_units(method, leaf, expected, bert_tokenizer):
    document = Document("d", "Sea ice.  Warm map! ", title="Sea")
    scorer = AdditiveScorer({"sea": 1.0, "ice": 2.0, "warm": -1.0})
    attribution = _attribute(method, scorer, bert_tokenizer, document, leaf=leaf)
    assert [(unit.field, unit.text) for unit in attribution.units] == expected
    for unit, value in zip(attribution.units, attribution.values, strict=True):
        assert getattr(document, unit.field)[unit.start : unit.end] == unit.text
        assert value == pytest.approx(scorer.score(QUERY, [Document("u", unit.text)])[0], abs=1e-9)


def test_one_model_call_answers_the_documents_of_a_round(plain_tokenizer):
    class CallCounter(OverlapScorer):
        num_calls = 0

        def score(self, query, documents):
            self.num_calls += 1
            return super().score(query, documents)

    def num_calls(num_documents):
        scorer = CallCounter()
        documents = [Document(str(n), "the sea ice map a b c d") for n in range(num_documents)]
        _attributor("pruned", scorer, plain_tokenizer).attribute(QUERY, documents, seed=0)
        return scorer.num_calls

    assert num_calls(DOCUMENTS_AT_ONCE) <= num_calls(1) + 3  # the contexts are drawn anew for each document


@pytest.mark.parametrize("method", ["partition", "pruned", "exact"])
def test_the_words_of_a_query_share_the_score_of_each_document(method, plain_tokenizer):
    documents = [Document("d1", "warm sea", title="Ice"), Document("d2", "warm ice"), Document("d3", "")]
    found = _attributor(method, OverlapScorer(), plain_tokenizer).attribute_query(QUERY, documents, seed=0)
    assert [one.doc_id for one in found] == ["d1", "d2", "d3"]
    assert [[(unit.text, unit.field) for unit in one.units] for one in found] == [
        [("sea", "query"), ("ice", "query")]
    ] * 3
    assert [one.values for one in found] == [(1.0, 1.0), (0.0, 1.0), (0.0, 0.0)]
    assert [(one.score, one.base_value) for one in found] == [(2.0, 0.0), (1.0, 0.0), (0.0, 0.0)]
    assert all(QUERY.text[unit.start : unit.end] == unit.text for one in found for unit in one.units)


def test_only_what_the_scorer_reads_of_a_query_is_attributed(plain_tokenizer):
    attributor = _attributor("exact", CountingScorer(num_characters=7), plain_tokenizer, leaf="sentence")
    (found,) = attributor.attribute_query(QUERY, [Document("d", "sea ice")], seed=0)
    assert ([unit.text for unit in found.units], found.is_truncated) == (["sea", "ice"], False)
    attributor = _attributor("exact", CountingScorer(num_characters=3), plain_tokenizer)
    (found,) = attributor.attribute_query(QUERY, [Document("d", "sea")], seed=0)
    assert ([unit.text for unit in found.units], found.is_truncated) == (["sea"], True)


def test_beside_a_masked_query_no_more_of_a_document_is_read_than_beside_the_whole_one(plain_tokenizer):
    scorer = CountingScorer(num_characters=7)
    document = Document("d", "sea ice warm water")
    _attributor("pruned", scorer, plain_tokenizer).attribute_query(QUERY, [document], seed=0)
    whole, *beside_masked = scorer.texts
    assert whole == document.content
    assert len(beside_masked) > 1
    assert set(beside_masked) == {"sea ice"}


def test_a_query_without_words_has_only_a_base_value(plain_tokenizer):
    attributor = _attributor("pruned", OverlapScorer(), plain_tokenizer)
    (found,) = attributor.attribute_query(Query("q", " "), [Document("d", "sea")], seed=0)
    assert (found.units, found.base_value, found.residual) == ((), 0.0, 0.0)
