"""ROUGE-L and BERTScore against the packages that define them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from bert_score.utils import greedy_cos_idf
from rouge_score.rouge_scorer import RougeScorer

from rerank_core.data.loading import load_collection
from rerank_core.evaluation.text_metrics import bert_score, rouge_l


def test_rouge_l_is_that_of_rouge_score() -> None:
    texts = [document.text for document in list(load_collection("sample").documents.values())[:12]]
    texts += ["Sea-ice: the 3rd_day's ÉTÉ", "", "sea ice"]
    scorer = RougeScorer(["rougeL"], use_stemmer=False)
    for text in texts:
        for reference in texts:
            theirs = scorer.score(reference, text)["rougeL"].fmeasure
            assert rouge_l(text, reference=reference) == pytest.approx(theirs, abs=1e-12)


def test_bert_score_is_that_of_bert_score_without_idf(rng: np.random.Generator) -> None:
    for num_found, num_wanted in ((3, 5), (7, 3), (1, 1), (40, 60)):  # at 2 tokens theirs reads "empty"
        found, wanted = (
            rng.normal(0.3, 1.0, size=(count, 8)).astype(np.float32) for count in (num_found, num_wanted)
        )
        _, _, f1 = greedy_cos_idf(
            torch.tensor(wanted)[None],
            torch.ones(1, num_wanted),
            torch.ones(1, num_wanted),
            torch.tensor(found)[None],
            torch.ones(1, num_found),
            torch.ones(1, num_found),
        )
        assert bert_score(found, wanted) == pytest.approx(max(0.0, f1.item()), abs=1e-6)
