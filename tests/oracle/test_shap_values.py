"""Our values of real scorers against shap's Partition explainer, as a user would run it, in float64."""

import numpy as np
import pytest
import torch
from shap.explainers import PartitionExplainer
from shap.maskers import Text

from rerank_core.attribution.build import build_attributor
from rerank_core.attribution.contract import document_seed
from rerank_core.attribution.words import Part, merge_into_words
from rerank_core.models.build import build_encoder, build_model, load_tokenizer
from rerank_core.models.scorer import LanguageModelScorer
from rerank_core.models.tiny import save_tiny_causal, save_tiny_encoder, save_tiny_writer
from rerank_core.records import Document, Query

QUERY = Query("q", "warm sea ice of the north")
TEXTS = [
    "the warm sea ice map of the north, and (near the coast) its earthquakes.",
    "Cold water was recorded at every station; but ice wasn't seen, nor heard!",
    "station records of the water: 10 cold, 3 warm and one that nobody's seen",
]
SAVE = {"causal": save_tiny_causal, "byte-level causal": save_tiny_writer, "encoder": save_tiny_encoder}


@pytest.fixture(scope="module", params=SAVE)
def scorer(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    SAVE[request.param](folder, TEXTS, seed=0)
    model = build_model(folder, head="linear", num_layers=None, seed=0).double()
    torch.nn.init.normal_(model.head.weight)
    encoder = build_encoder(load_tokenizer(folder), model.config, head="linear", max_length=120)
    return LanguageModelScorer(model, encoder, digest="untrained")


@pytest.mark.parametrize("max_evals", [60, 500])
def test_partition_gives_the_values_of_shap(scorer, max_evals):
    documents = [Document(f"d{place}", text) for place, text in enumerate(TEXTS)]
    ours = build_attributor(scorer, "partition", max_evals=max_evals).attribute(QUERY, documents, seed=3)
    for found, document in zip(ours, documents, strict=True):
        theirs, spans = by_shap(scorer, document, max_evals=max_evals)
        _, values = merge_into_words(spans, theirs, Part.at((0, len(document.text)), document))
        limit = 1e-4 * np.abs(theirs).max()
        assert np.abs(np.subtract(found.values, values)).max() <= limit
        assert np.abs(theirs).max() > 0


def by_shap(scorer, document, *, max_evals):
    """Return shap's value of each token of a document, and where the tokens stand."""

    def score_texts(texts):
        return np.array(scorer.score(QUERY, [Document("", str(text)) for text in texts]))

    tokenizer = scorer.tokenizer
    state = np.random.get_state()
    own_seed = document_seed(3, QUERY.query_id, doc_id=document.doc_id)
    np.random.set_state(np.random.RandomState(own_seed).get_state())
    result = PartitionExplainer(score_texts, Text(tokenizer))(
        [document.text], max_evals=max_evals, silent=True
    )
    np.random.set_state(state)
    return result.values[0], tokenizer(document.text, return_offsets_mapping=True)["offset_mapping"]
