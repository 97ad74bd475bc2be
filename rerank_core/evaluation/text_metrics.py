"""How alike two texts are: the expert's and the model's document at the same rank."""

from __future__ import annotations

import re
from collections import defaultdict
from statistics import fmean
from typing import TYPE_CHECKING, Final

import numpy as np
from sacrebleu.metrics.bleu import BLEU

from rerank_core.errors import DataError
from rerank_core.ranking.contract import is_permutation

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from rerank_core.evaluation.ranking_metrics import QueryValues
    from rerank_core.protocols import Embedder
    from rerank_core.records import Document, Ranking, Run

    DocPair = tuple[str, str]  # the expert's document, the model's

TEXT_METRICS: Final = ("cosine", "bert_score", "bleu", "rouge_l")

_SENTENCE_BLEU = BLEU(effective_order=True)


def text_values(
    runs: Sequence[Run],
    experts: Sequence[Mapping[str, Ranking]],
    *,
    documents: Mapping[str, Document],
    embedder: Embedder,
    depth: int,
) -> dict[str, dict[str, QueryValues]]:
    """Return `values[run name][metric name][query_id]`: for each query the mean over its first `depth` ranks.

    At each rank the content (title and text) of the run's document is compared with that of the expert's,
    the reference. The metrics are `TEXT_METRICS`, from 0 (cosine and BERTScore may fall below) to 1 for the
    same text. A ranking shorter than `depth` is compared whole; an empty one has the value 0.

    Grades that are equal leave the expert's order open, and one order alone would favour the run that happens
    to share it: `experts` are several that are equally good (`rerank_core.evaluation.baselines`), and the
    value is the mean over them. Documents about one subject resemble each other in any order, so a value says
    little by itself: pass the ideal rankings, the floor's and some in random order among `runs`, and read the
    others between them. Runs measured together share the comparisons of equal documents.

    Raises:
        DataError: a run has another run's name, or does not rank an expert's queries and documents.
    """
    values: dict[str, dict[str, QueryValues]] = {}
    for run in runs:
        for expert in experts:
            _check_same_documents(run, expert)
        if run.name in values:
            raise DataError(f"two runs are named {run.name!r}; give each a name of its own")
        values[run.name] = {metric: {} for metric in TEXT_METRICS}
    for query_id in experts[0]:
        references = [expert[query_id].doc_ids[:depth] for expert in experts]
        pairs_by_run = {
            run.name: [
                pair
                for reference in references
                for pair in zip(reference, run.rankings[query_id].doc_ids[:depth], strict=True)
            ]
            for run in runs
        }
        distinct = sorted({pair for pairs in pairs_by_run.values() for pair in pairs})
        similarity = _similarities(distinct, documents, embedder=embedder)
        for name, pairs in pairs_by_run.items():
            for metric in TEXT_METRICS:
                found = [similarity[pair][metric] for pair in pairs]
                values[name][metric][query_id] = fmean(found) if found else 0.0
    return values


def bleu(text: str, *, reference: str) -> float:
    """Return sentence BLEU (Papineni et al. 2002) as sacrebleu computes it, from 0 to 1.

    Tokens of the scheme 13a with their case, exponential smoothing, and only as many n-gram lengths (at most
    4) as the text has, so that a short text can reach 1. Not symmetric: the brevity penalty is the text's.
    """
    return min(1.0, _SENTENCE_BLEU.sentence_score(text, [reference]).score / 100)


def rouge_l(text: str, *, reference: str) -> float:
    """Return ROUGE-L (Lin 2004), from 0 to 1: `2PR / (P + R)` of the longest common subsequence of words.

    P is its length over the words of the text, R over those of the reference. Words are runs of a–z and 0–9
    in lower case, without stemming, as in Google's rouge-score: texts in other scripts have none, hence 0.
    """
    found, wanted = (re.findall("[a-z0-9]+", each.lower()) for each in (text, reference))
    if not found or not wanted:
        return 0.0
    return 2 * _common_length(found, wanted) / (len(found) + len(wanted))  # = 2PR / (P + R)


def cosine(text: NDArray[np.float32], reference: NDArray[np.float32]) -> float:
    """Return the cosine between the mean token embeddings of two texts, from (tokens, width) each.

    It lies between −1 and 1; of a text without tokens it is 0.
    """
    if not len(text) or not len(reference):
        return 0.0
    found, wanted = text.mean(axis=0), reference.mean(axis=0)  # (width,)
    return float(found @ wanted / (np.linalg.norm(found) * np.linalg.norm(wanted)))


def bert_score(text: NDArray[np.float32], reference: NDArray[np.float32]) -> float:
    """Return BERTScore's F1 (Zhang et al. 2020) from two texts' token embeddings, (tokens, width) each.

    P is the mean, over the tokens of the text, of the largest cosine with a token of the reference; R the
    same the other way round; `F1 = 2PR / (P + R)`. Every token weighs the same (no idf), and the values are
    not rescaled to a baseline: unrelated texts lie far above 0, at a level that depends on the model, so only
    values of the same model compare. It is 0 where a text has no tokens, or P or R is not positive.
    """
    if not len(text) or not len(reference):
        return 0.0
    found, wanted = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in (text, reference))
    cosines = found @ wanted.T  # (tokens of the text, tokens of the reference)
    precision, recall = float(cosines.max(axis=1).mean()), float(cosines.max(axis=0).mean())
    if min(precision, recall) <= 0:
        return 0.0
    return 2 * precision * recall / (precision + recall)


def _similarities(
    pairs: Iterable[DocPair], documents: Mapping[str, Document], *, embedder: Embedder
) -> dict[DocPair, dict[str, float]]:
    """Return every metric of each (expert's document, model's document)."""
    pairs = list(pairs)
    doc_ids = sorted({doc_id for pair in pairs for doc_id in pair})
    contents = {doc_id: documents[doc_id].content for doc_id in doc_ids}
    tokens = dict(zip(doc_ids, embedder.embed(list(contents.values())), strict=True))
    return {
        (wanted, found): {
            "cosine": cosine(tokens[found], tokens[wanted]),
            "bert_score": bert_score(tokens[found], tokens[wanted]),
            "bleu": bleu(contents[found], reference=contents[wanted]),
            "rouge_l": rouge_l(contents[found], reference=contents[wanted]),
        }
        for wanted, found in pairs
    }


def _check_same_documents(run: Run, expert: Mapping[str, Ranking]) -> None:
    different = sorted(run.rankings.keys() ^ expert.keys())
    if different:
        raise DataError(
            f"query {different[0]!r} is in one of run {run.name!r} and the expert's ranking;"
            " compare runs of the same queries"
        )
    for query_id, reference in expert.items():
        if not is_permutation(run.rankings[query_id], reference.doc_ids):
            raise DataError(
                f"run {run.name!r} ranks other documents than the expert for query {query_id!r};"
                " compare runs of the same candidates"
            )


def _common_length(first: Sequence[str], second: Sequence[str]) -> int:
    """Return the length of the longest common subsequence, all of `first` at once as the bits of a number.

    After each word of `second`, bit i of `open_places` is 0 where the subsequence of `first[: i + 1]` is
    longer than that of `first[:i]` (Hyyrö 2004): the answer is the number of zeros.
    """
    places: defaultdict[str, int] = defaultdict(int)
    for place, word in enumerate(first):
        places[word] |= 1 << place
    every = (1 << len(first)) - 1
    open_places = every
    for word in second:
        matches = open_places & places[word]
        open_places = ((open_places + matches) | (open_places - matches)) & every
    return len(first) - open_places.bit_count()
