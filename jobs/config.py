"""The frozen configuration of the jobs that do not train, checked once, before any work."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from rerank_core.errors import ConfigError

PLACE = {"digest": False}
"""Marks a field that says where or how fast a job runs, not what: it may differ when a job is resumed.

Where an input lies is such a field: what is in it is recorded as the input's digest.
"""


def check_setting(condition: bool, message: str) -> None:
    """Raise ConfigError with the message where a condition does not hold."""
    if not condition:
        raise ConfigError(message)


@dataclass(frozen=True, slots=True, kw_only=True)
class PrepareJob:
    """Turn a collection into Parquet tables: candidates, splits by query, training rows and pairs.

    Examples:
      whyrank prepare --output runs/sample
      whyrank prepare --collection path/to/folder --output runs/mine --eval-candidates 100
      whyrank prepare --collection ir_datasets:beir/scifact/test --output runs/scifact
    """

    output: Path = field(metadata=PLACE)
    """Folder that receives the tables."""
    collection: str = field(default="sample", metadata=PLACE)
    """`sample`, a folder with corpus, queries and qrels (JSONL, TREC or Parquet), or `ir_datasets:<name>`."""
    candidates: Literal["auto", "pool", "bm25"] = "auto"
    """The judged pool, or the BM25 top k; `auto` takes the pool where the collection ships one."""
    train_candidates: int = 10
    """Candidates per query for training."""
    eval_candidates: int = 50
    """Candidates per query for evaluation."""
    pairs_top: int = 5
    """Documents per query that are chosen in preference pairs."""
    pairs_bottom: int = 5
    """Documents per query that are rejected in preference pairs."""
    num_folds: int = 0
    """1 = one 80:10:10 split; 2 or more = cross-validation; 0 = the collection's own splits, else 5 under 100
    queries, else 1."""
    exclude: Path | None = field(default=None, metadata=PLACE)
    """Tab-separated file (query_id, doc_id) of pairs that must never be candidates."""
    max_document_chars: int = 100_000
    """Longer documents are cut here, and counted."""
    seed: int = 0
    """Seed of the split."""

    def __post_init__(self) -> None:
        check_setting(self.seed >= 0, f"seed must not be negative, got {self.seed}")
        for name in (
            "train_candidates",
            "eval_candidates",
            "pairs_top",
            "pairs_bottom",
            "max_document_chars",
        ):
            check_setting(getattr(self, name) >= 1, f"{name} must be at least 1, got {getattr(self, name)}")
        check_setting(self.num_folds >= 0, f"num_folds must not be negative, got {self.num_folds}")
        check_setting(
            self.eval_candidates >= self.train_candidates,
            f"eval_candidates ({self.eval_candidates}) must not be below"
            f" train_candidates ({self.train_candidates})",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreJob:
    """Score and rank the candidates of a prepared folder with an artefact.

    Examples:
      whyrank score --prepared runs/sample --artefact runs/minilm/dpo --output runs/minilm-run
      whyrank score --prepared runs/sample --artefact runs/minilm/dpo --output runs/minilm-test \\
        --split test --trec
    """

    prepared: Path = field(metadata=PLACE)
    """Folder written by `whyrank prepare`."""
    artefact: Path = field(metadata=PLACE)
    """Reranker artefact written by `whyrank train`."""
    output: Path = field(metadata=PLACE)
    """Folder that receives the run."""
    fold: int = 0
    """Whose split is meant by --split."""
    split: Literal["train", "dev", "test", "all"] = "all"
    """Which queries to score."""
    trec: bool = field(default=False, metadata=PLACE)
    """Also write `run.trec`."""
    shard_queries: int = 32
    """Queries in one shard: what is redone after a kill."""
    max_tokens_per_batch: int = 8192
    """Padded tokens in one model call."""
    long_documents: Literal["truncate", "max_chunk"] = "truncate"
    """What becomes of a document that does not fit next to its query: its end is cut, or it is read in chunks
    and has the score of the best one, whose words `whyrank attribute` then attributes."""
    num_workers: int = field(default=1, metadata=PLACE)
    """Scoring actors."""
    address: str | None = field(default=None, metadata=PLACE)
    """Address of a running Ray cluster; none starts a local Ray and stops it again."""

    def __post_init__(self) -> None:
        for name in ("shard_queries", "max_tokens_per_batch", "num_workers"):
            check_setting(getattr(self, name) >= 1, f"{name} must be at least 1, got {getattr(self, name)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class AttributeJob:
    """Measure which words of the top documents caused their scores: Owen or Shapley values.

    Examples:
      whyrank attribute --prepared runs/sample --artefact runs/minilm/dpo --run runs/minilm-run \\
        --output runs/words
      whyrank attribute --prepared runs/sample --artefact runs/minilm/dpo --run runs/minilm-run \\
        --output runs/more-words --top-k 10 --reuse runs/words
      whyrank attribute --prepared runs/sample --artefact runs/minilm/dpo --run runs/minilm-run \\
        --output runs/sentences --leaf sentence --method exact
    """

    prepared: Path = field(metadata=PLACE)
    """Folder written by `whyrank prepare`."""
    artefact: Path = field(metadata=PLACE)
    """Reranker artefact whose scores are attributed."""
    run: Path = field(metadata=PLACE)
    """Run folder written by `whyrank score` with the same artefact."""
    output: Path = field(metadata=PLACE)
    """Folder that receives the attributions."""
    top_k: int = 3
    """Documents per query, from rank 1."""
    max_documents: int | None = None
    """At most so many documents over all queries, in the order of rank, then query."""
    max_queries: int | None = None
    """Only the documents of the first so many queries, by query_id."""
    method: Literal["pruned", "partition", "exact", "shap"] = "pruned"
    """`pruned`: Owen values, with an estimated bound on their error. `partition`: the
    values of shap's Partition explainer, cheaper. `exact`: Shapley values, for at most 16 leaves. `shap`:
    that explainer itself."""
    leaf: Literal["token", "word", "sentence", "field"] = "token"
    """What is switched on and off; tokens are summed into words."""
    max_evals: int = 500
    """Model evaluations per document, for all methods but `exact`."""
    max_error: float = 0.0
    """`pruned` stops sooner where the estimated bound on the length of (values - exact values) is so low."""
    rank_flips: bool = False
    """Also search for the few words without which a document would rank lower."""
    query_words: bool = False
    """Also attribute the words of the query, next to each document: by tokens, or by words where the leaves
    are no tokens, with as many evaluations again."""
    audit_share: float = 0.01
    """Share of the documents that are attributed again without a budget, to report how far the values lie
    from the exact ones; costs tens of times an attribution each."""
    shard_documents: int = 8
    """Documents in one shard: what is redone after a kill."""
    reuse: tuple[Path, ...] = field(default=(), metadata=PLACE)
    """Earlier outputs with the same artefact, texts and settings, whose attributions are taken over."""
    num_workers: int = field(default=1, metadata=PLACE)
    """Attribution actors."""
    seed: int = 0
    """Seed from which each document's own seed is derived."""
    address: str | None = field(default=None, metadata=PLACE)
    """Address of a running Ray cluster; none starts a local Ray and stops it again."""

    def __post_init__(self) -> None:
        check_setting(self.seed >= 0, f"seed must not be negative, got {self.seed}")
        for name in ("top_k", "shard_documents", "num_workers"):
            check_setting(getattr(self, name) >= 1, f"{name} must be at least 1, got {getattr(self, name)}")
        check_setting(self.max_evals >= 2, f"max_evals must be at least 2, got {self.max_evals}")
        check_setting(self.max_error >= 0, f"max_error must not be negative, got {self.max_error}")
        check_setting(0 <= self.audit_share <= 1, f"audit_share must lie in [0, 1], got {self.audit_share}")
        check_setting(
            not self.rank_flips or self.leaf in ("token", "word"),
            f"rank flips are searched among words; take --leaf token or word, not {self.leaf}",
        )
        check_setting(
            not (self.query_words and self.method == "shap"),
            "shap attributes words of documents alone; leave out --query-words, or take another method",
        )
        check_setting(
            self.max_error == 0 or self.method == "pruned",
            f"{self.method} knows no bound on its error; leave --max-error at 0, or take --method pruned",
        )
        check_setting(
            self.method != "shap" or self.leaf == "token",
            f"shap knows no {self.leaf} leaves; take --leaf token, or another method",
        )
        for name in ("max_documents", "max_queries"):
            limit = getattr(self, name)
            check_setting(limit is None or limit >= 1, f"{name} must be at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplainJob:
    """Have a language model say why each attributed document was placed where it is, and check what it cites.

    Examples:
      whyrank explain --prepared runs/sample --run runs/minilm-run --attributions runs/words \\
        --output runs/texts
      whyrank explain --prepared runs/sample --run runs/minilm-run --attributions runs/words \\
        --output runs/llama-texts --model path/to/llama
      whyrank explain --prepared runs/sample --run runs/minilm-run --attributions runs/more-words \\
        --output runs/more-texts --reuse runs/texts
    """

    prepared: Path = field(metadata=PLACE)
    """Folder written by `whyrank prepare`."""
    run: Path = field(metadata=PLACE)
    """Run folder: ranks and scores."""
    attributions: Path = field(metadata=PLACE)
    """Folder written by `whyrank attribute`."""
    output: Path = field(metadata=PLACE)
    """Folder that receives the explanations."""
    model: str = "smollm2"
    """`smollm2`, a model folder, or a Hugging Face name that vLLM can run."""
    num_words: int = 10
    """Evidence words: those with the largest absolute values."""
    contrast: bool = False
    """Also say why each document stands above the next-ranked one, where that is attributed too."""
    max_new_tokens: int = 256
    """Longest text, in the model's tokens."""
    max_model_tokens: int = 2048
    """Longest prompt and text together, in the model's tokens."""
    temperature: float = 0.0
    """0 is greedy."""
    reuse: tuple[Path, ...] = field(default=(), metadata=PLACE)
    """Earlier outputs of the same model and settings: a text that is to tell the same (query, document, rank,
    words and their values) is taken over instead of written again."""
    shard_documents: int = 64
    """Explanations in one shard: what is redone after a kill."""
    seed: int = 0
    """Seed of sampling, where the temperature is above 0."""
    address: str | None = field(default=None, metadata=PLACE)
    """Address of a running Ray cluster; none starts a local Ray and stops it again."""

    def __post_init__(self) -> None:
        check_setting(self.seed >= 0, f"seed must not be negative, got {self.seed}")
        for name in ("num_words", "max_new_tokens", "shard_documents"):
            check_setting(getattr(self, name) >= 1, f"{name} must be at least 1, got {getattr(self, name)}")
        check_setting(
            self.max_model_tokens > self.max_new_tokens, "max_model_tokens must exceed max_new_tokens"
        )
        check_setting(self.temperature >= 0, f"temperature must not be negative, got {self.temperature}")


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateJob:
    """Evaluate runs against the judgements, beside floor, random, first stage and ideal.

    Examples:
      whyrank evaluate --prepared runs/sample --output runs/metrics --runs dpo=runs/minilm-run
      whyrank evaluate --prepared runs/sample --output runs/metrics \\
        --runs dpo=runs/fold-0 dpo=runs/fold-1 --fusion-weight 0.5
      whyrank evaluate --prepared runs/sample --output runs/faithful --runs dpo=runs/minilm-run \\
        --faithfulness dpo=runs/words
      whyrank evaluate --prepared runs/sample --output runs/methods \\
        --runs sft=runs/sft-run dpo=runs/dpo-run --faithfulness sft=runs/sft-words dpo=runs/dpo-words
      whyrank evaluate --prepared runs/sample --output runs/read --runs dpo=runs/minilm-run \\
        --explanations dpo=runs/texts --answers path/to/answers.jsonl
    """

    prepared: Path = field(metadata=PLACE)
    """Folder written by `whyrank prepare`."""
    output: Path = field(metadata=PLACE)
    """Folder that receives metrics.json and per_query.parquet."""
    runs: tuple[str, ...] = field(metadata=PLACE)
    """NAME=FOLDER; folders of the same name are pooled, as in cross-validation."""
    fold: int | None = None
    """Evaluate the test queries of this fold; none takes the fold that each run folder was scored for."""
    fusion_weight: float | None = None
    """Also evaluate (1 - weight) * first stage + weight * run, both standardised per query; none chooses the
    weight on the dev queries of each fold, where the run covers them (`score --split all`)."""
    faithfulness: tuple[str, ...] = field(default=(), metadata=PLACE)
    """NAME=FOLDER of `whyrank attribute`: delete the words that it names, and see what the scores do; folders
    of the same name are pooled, those of different names compared."""
    explanations: tuple[str, ...] = field(default=(), metadata=PLACE)
    """NAME=FOLDER of `whyrank explain`: what the texts carry of the evidence, and whether ranks can be told
    from them; folders of the same name are pooled."""
    answers: Path | None = field(default=None, metadata=PLACE)
    """JSONL of what people wrote (query_id, doc_id, answer, rationale?) beside --explanations: how near texts
    come to it, and attributed words to the rationale, the part of the document that a person marked."""
    text_model: str = "minilm"
    """Model whose vectors a reader of explanations sees, and BERTScore takes: `minilm`, or a model folder."""
    num_close_ups: int = 1
    """Documents of each query, the first that are attributed, whose deletion curves are normalised and whose
    first words are attributed again: with another seed, respelled, with an irrelevant sentence. Takes about
    as long as attributing them five times."""
    num_samples: int = 10_000
    """Bootstrap samples over queries."""
    seed: int = 0
    """Seed of the bootstrap, of the random rankings and of the random deletions."""

    def __post_init__(self) -> None:
        check_setting(self.seed >= 0, f"seed must not be negative, got {self.seed}")
        check_setting(bool(self.runs), "runs must name at least one NAME=FOLDER")
        for option in ("faithfulness", "explanations"):
            named = getattr(self, option)
            check_setting(
                all(0 < item.find("=") < len(item) - 1 for item in named),
                f"each of {option} must be NAME=FOLDER, got {named}",
            )
        check_setting(
            self.answers is None or bool(self.explanations), "answers need explanations to compare with"
        )
        check_setting(
            all(0 < r.find("=") < len(r) - 1 for r in self.runs),
            f"each run must be NAME=FOLDER, got {self.runs}",
        )
        check_setting(
            self.num_close_ups >= 0, f"num_close_ups must not be negative, got {self.num_close_ups}"
        )
        check_setting(self.num_samples >= 100, f"num_samples must be at least 100, got {self.num_samples}")
        check_setting(
            self.fusion_weight is None or 0 <= self.fusion_weight <= 1,
            f"fusion_weight must lie in [0, 1], got {self.fusion_weight}",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportJob:
    """Write one self-contained HTML page and pictures from the outputs of the other jobs.

    Examples:
      whyrank report --prepared runs/sample --metrics runs/metrics --run runs/minilm-run \\
        --attributions runs/words --explanations runs/texts --output runs/report
    """

    prepared: Path = field(metadata=PLACE)
    """Folder written by `whyrank prepare`."""
    metrics: Path = field(metadata=PLACE)
    """Folder written by `whyrank evaluate`."""
    run: Path = field(metadata=PLACE)
    """Run folder whose ranks are shown."""
    attributions: Path = field(metadata=PLACE)
    """Folder written by `whyrank attribute`."""
    explanations: Path = field(metadata=PLACE)
    """Folder written by `whyrank explain`."""
    output: Path = field(metadata=PLACE)
    """Folder that receives report.html, and its pictures as PNG and SVG in the folder `pictures`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoJob:
    """Run every job on the embedded sample with MiniLM, and say where the report is.

    Examples:
      whyrank demo
      whyrank demo --output runs/other --max-documents 6
    """

    output: Path = field(default=Path("runs/demo"), metadata=PLACE)
    """Folder that receives everything."""
    max_documents: int = 12
    """Documents that are attributed and explained."""
    seed: int = 0
    """Seed of every job."""
    address: str | None = field(default=None, metadata=PLACE)
    """Address of a running Ray cluster; none starts a local Ray and stops it again."""

    def __post_init__(self) -> None:
        check_setting(self.seed >= 0, f"seed must not be negative, got {self.seed}")
        check_setting(
            1 <= self.max_documents <= 12,
            f"max_documents must lie between 1 and 12, got {self.max_documents}",
        )
