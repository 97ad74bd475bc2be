"""The attributor of a method, and what a method does not know."""

import pytest

from rerank_core.attribution.build import build_attributor
from rerank_core.errors import ConfigError
from rerank_core.models.build import build_encoder, build_model, load_tokenizer
from rerank_core.models.scorer import LanguageModelScorer
from rerank_core.models.tiny import save_tiny_causal
from rerank_core.records import Document, Query


@pytest.fixture(scope="module")
def scorer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    save_tiny_causal(folder, ["warm sea ice map"], seed=0)
    model = build_model(folder, head="linear", num_layers=None, seed=0)
    encoder = build_encoder(load_tokenizer(folder), model.config, head="linear", max_length=60)
    return LanguageModelScorer(model, encoder, digest="untrained")


@pytest.mark.parametrize("method", ["pruned", "partition", "exact", "shap"])
def test_every_method_adds_up_and_says_which_it_is(method, scorer):
    attributor = build_attributor(scorer, method, max_evals=60)
    (found,) = attributor.attribute(Query("q", "sea"), [Document("d", "warm sea ice map")], seed=0)
    assert found.method == method
    assert [unit.text for unit in found.units] == ["warm", "sea", "ice", "map"]
    assert abs(found.residual) < 1e-5


@pytest.mark.parametrize("method", ["pruned", "partition", "exact"])
def test_whoever_watches_the_work_can_end_it(method, scorer):
    class GoneError(Exception):
        pass

    calls = []

    def watch() -> None:
        calls.append(method)
        if len(calls) == 2:
            raise GoneError

    query, documents = Query("q", "sea"), [Document("d", "warm sea ice map")]
    watched = build_attributor(scorer, method, max_evals=60, before_call=lambda: None)
    assert watched.attribute(query, documents, seed=0) == build_attributor(
        scorer, method, max_evals=60
    ).attribute(query, documents, seed=0)
    ended = build_attributor(scorer, method, max_evals=60, before_call=watch)
    if method != "exact":  # which asks once for so few words
        with pytest.raises(GoneError):
            ended.attribute(query, documents, seed=0)


def test_an_unknown_method_is_refused_with_those_there_are(scorer):
    with pytest.raises(ConfigError, match="no method is called 'owen'; take one of pruned, partition, exact"):
        build_attributor(scorer, "owen", max_evals=60)  # type: ignore[arg-type]


@pytest.mark.parametrize("method", ["partition", "exact", "shap"])
def test_a_bound_is_refused_where_none_is_known(method, scorer):
    with pytest.raises(ConfigError, match=f"{method} knows no bound on its error"):
        build_attributor(scorer, method, max_evals=60, max_error=0.1)


def test_shap_is_refused_other_leaves(scorer):
    with pytest.raises(ConfigError, match="shap knows no sentence leaves"):
        build_attributor(scorer, "shap", max_evals=60, leaf="sentence")
