"""The reranker artefact: one folder that training writes and everything else reads.

    config.json, model.safetensors, tokenizer files    the backbone and its tokenizer
    head.safetensors                                    the single neuron
    reranker.json                                       template, head, scale, lengths, tolerance, provenance
    golden.jsonl                                        pairs with their scores; loading re-scores them

Nothing in the folder is ever executed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, get_args

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from rerank_core.errors import ArtefactError
from rerank_core.models.build import has_token_types, is_causal, load_tokenizer
from rerank_core.models.pretrained import check_model_folder
from rerank_core.models.scorer import (
    HeadKind,
    LanguageModelScorer,
    PairEncoder,
    Pooling,
    PromptFormat,
    SingleNeuronModel,
)
from rerank_core.records import Document, Query

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

FORMAT_VERSION = 1
NUM_GOLDEN_PAIRS = 32
TOLERANCE = {"fp32": 1e-4}
"""How far a golden pair's score may lie from the recorded one, by precision, on any device."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RerankerSpec:
    """What `reranker.json` states."""

    template: str
    max_length: int
    max_query_length: int
    head: HeadKind
    pooling: Pooling
    format_version: int = FORMAT_VERSION
    score_scale: str = "logit"
    calibration: None = None
    long_documents: str = "truncate"
    tolerance: Mapping[str, float] = field(default_factory=lambda: dict(TOLERANCE))
    provenance: Mapping[str, Any] = field(default_factory=dict)


def save_artefact(
    scorer: LanguageModelScorer,
    folder: Path,
    *,
    head: HeadKind,
    golden: Sequence[tuple[Query, Document]],
    provenance: Mapping[str, Any],
) -> None:
    """Write an artefact; the folder appears whole or not at all, and replaces an older one.

    `golden` pairs are scored by the scorer as it is now; at most `NUM_GOLDEN_PAIRS` are kept.
    """
    prompt_format = scorer.encoder.format
    spec = RerankerSpec(
        **asdict(prompt_format), head=head, pooling=scorer.model.pooling, provenance=dict(provenance)
    )
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    scorer.model.backbone.save_pretrained(temporary, safe_serialization=True)
    scorer.tokenizer.save_pretrained(temporary)
    weights = {
        name: tensor.detach().cpu().contiguous() for name, tensor in scorer.model.head.state_dict().items()
    }
    save_file(weights, temporary / "head.safetensors")
    (temporary / "reranker.json").write_text(json.dumps(asdict(spec), indent=2) + "\n", encoding="utf-8")
    _write_golden(scorer, temporary / "golden.jsonl", golden[:NUM_GOLDEN_PAIRS])
    if folder.exists():
        shutil.rmtree(folder)
    temporary.rename(folder)


def _write_golden(scorer: LanguageModelScorer, path: Path, pairs: Sequence[tuple[Query, Document]]) -> None:
    scores = scorer.score_pairs(pairs)
    with path.open("w", encoding="utf-8") as stream:
        for (query, document), score in zip(pairs, scores, strict=True):
            row = {"query": query.text, "title": document.title, "text": document.text, "score": score}
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")


def load_artefact(folder: Path, *, device: str = "cpu") -> LanguageModelScorer:
    """Return the scorer of an artefact, after its golden pairs have been scored again.

    Raises:
        ArtefactError: a file is missing, broken, unsafe, of another format, or a golden score differs.
    """
    spec = read_spec(folder)
    check_model_folder(folder)
    tokenizer = load_tokenizer(folder)
    encoder = PairEncoder(
        tokenizer,
        PromptFormat(
            template=spec.template,
            max_length=spec.max_length,
            max_query_length=spec.max_query_length,
        ),
    )
    model = _load_model(folder, pooling=spec.pooling).to(device)
    scorer = LanguageModelScorer(model, encoder, digest=artefact_digest(folder))
    _check_golden(scorer, folder / "golden.jsonl", tolerance=spec.tolerance["fp32"])
    return scorer


def is_artefact(folder: Path) -> bool:
    """Return whether a folder claims to be a reranker artefact."""
    return (folder / "reranker.json").is_file()


def read_spec(folder: Path) -> RerankerSpec:
    """Return what an artefact's `reranker.json` states.

    Raises:
        ArtefactError: the file is missing or says something this version does not know.
    """
    path = folder / "reranker.json"
    try:
        spec = RerankerSpec(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise ArtefactError(
            f"{path} is missing: {folder} is not a reranker artefact; train one first"
        ) from error
    except (UnicodeDecodeError, json.JSONDecodeError, TypeError) as error:
        raise ArtefactError(f"{path} is broken ({error}); copy the artefact again") from error
    if spec.format_version != FORMAT_VERSION:
        raise ArtefactError(
            f"{path} has format {spec.format_version}, this Whyrank reads {FORMAT_VERSION}; train again"
        )
    known = spec.pooling in get_args(Pooling) and spec.head in get_args(HeadKind)
    if (
        not known
        or spec.score_scale != "logit"
        or spec.long_documents != "truncate"
        or "fp32" not in spec.tolerance
    ):
        raise ArtefactError(
            f"{path} states a head, pooling, scale, long-document rule or tolerance that is not known"
        )
    return spec


def artefact_digest(folder: Path) -> str:
    """Return a digest over all that decides a score: weights, configuration, tokenizer, reranker.json."""
    whole = hashlib.sha256()
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        with path.open("rb") as stream:
            whole.update(f"{path.name} {hashlib.file_digest(stream, 'sha256').hexdigest()}\n".encode())
    return whole.hexdigest()


def _load_model(folder: Path, *, pooling: Pooling) -> SingleNeuronModel:
    from transformers import AutoConfig, AutoModel

    config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    extra = {} if is_causal(config) else {"add_pooling_layer": False}
    try:
        backbone = AutoModel.from_pretrained(
            folder,
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            **extra,
        )
        head = nn.Linear(config.hidden_size, 1)
        head.load_state_dict(load_file(folder / "head.safetensors"))
    except (OSError, SafetensorError, RuntimeError) as error:
        first_line = str(error).splitlines()[0]
        raise ArtefactError(
            f"the weights in {folder} are broken ({first_line}); copy the artefact again"
        ) from error
    return SingleNeuronModel(backbone, head, pooling=pooling, has_token_types=has_token_types(config))


def _check_golden(scorer: LanguageModelScorer, path: Path, *, tolerance: float) -> None:
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        pairs = [
            (Query("golden", row["query"]), Document("golden", row["text"], title=row["title"]))
            for row in rows
        ]
        recorded = [float(row["score"]) for row in rows]
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise ArtefactError(f"{path} is missing or broken ({error}); copy the artefact again") from error
    if not rows:
        raise ArtefactError(
            f"{path} holds no pairs, so the scores cannot be checked; train the artefact again"
        )
    for number, (now, then) in enumerate(zip(scorer.score_pairs(pairs), recorded, strict=True), start=1):
        if not abs(now - then) <= tolerance:  # NaN fails too
            raise ArtefactError(
                f"{path}:{number}: the pair now scores {now:.6f}, not {then:.6f} (tolerance {tolerance:g}):"
                " weights, tokenizer or template were altered; copy the artefact again or train it anew"
            )
