"""The reranker artefact: one folder that training writes and everything else reads.

    config.json, model.safetensors, tokenizer files    the backbone and its tokenizer
    adapter/                                            LoRA adapters, where they are kept beside the weights
    head.safetensors                                    the single neuron
    reranker.json                                       template, head, calibration, lengths, provenance
    golden.jsonl                                        pairs with their scores; loading re-scores them
    SHA256SUMS                                          digests of all other files; loading compares them

Nothing in the folder is ever executed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, get_args

from safetensors.torch import load_file, save_file
from torch import nn

from rerank_core.errors import ArtefactError, ConfigError
from rerank_core.models.adapters import merge_adapter, save_backbone
from rerank_core.models.build import (
    LOAD_ERRORS,
    first_line,
    has_token_types,
    load_backbone,
    load_config,
    load_tokenizer,
    usable_positions,
)
from rerank_core.models.pretrained import check_model_folder
from rerank_core.models.scorer import (
    HeadKind,
    LanguageModelScorer,
    LongDocuments,
    PairEncoder,
    Pooling,
    PromptFormat,
    SingleNeuronModel,
)
from rerank_core.records import Calibration, Document, Query

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

FORMAT_VERSION = 2
READABLE_VERSIONS = (1, 2)
"""Format 1 had no `SHA256SUMS`: only its golden pairs tell whether such an artefact was altered."""

DIGESTS = "SHA256SUMS"
NUM_GOLDEN_PAIRS = 32
TOLERANCE = {"fp32": 1e-4}
"""How far a golden pair's score may lie from the recorded one, by precision, on any device."""


LARGEST_TOLERANCE = 1e-2


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
    calibration: Calibration | None = None
    long_documents: str = "truncate"
    tolerance: Mapping[str, float] = field(default_factory=lambda: dict(TOLERANCE))
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def prompt_format(self) -> PromptFormat:
        """Return how a pair becomes tokens."""
        return PromptFormat(
            template=self.template, max_length=self.max_length, max_query_length=self.max_query_length
        )


def save_artefact(  # noqa: PLR0913 - what an artefact states, and nothing else
    scorer: LanguageModelScorer,
    folder: Path,
    *,
    head: HeadKind,
    golden: Sequence[tuple[Query, Document]],
    provenance: Mapping[str, Any],
    calibration: Calibration | None = None,
) -> None:
    """Write an artefact; the folder appears whole or not at all, and replaces an older one.

    `golden` pairs are scored by the scorer as it is now; at most `NUM_GOLDEN_PAIRS` are kept. `calibration`
    says what the scores promise, where that was fitted.
    """
    spec = RerankerSpec(
        **asdict(scorer.encoder.format),
        head=head,
        pooling=scorer.model.pooling,
        calibration=calibration,
        provenance=dict(provenance),
    )
    for stale in folder.parent.glob(f".{folder.name}.*.tmp"):  # of a process that was killed
        shutil.rmtree(stale, ignore_errors=True)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    temporary.mkdir(parents=True)
    try:
        _write_files(scorer, temporary, spec=spec, golden=golden[:NUM_GOLDEN_PAIRS])
    except BaseException:  # a full disk would stay full of a half-written copy
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    if folder.exists():
        shutil.rmtree(folder)
    temporary.rename(folder)


def _write_files(
    scorer: LanguageModelScorer,
    folder: Path,
    *,
    spec: RerankerSpec,
    golden: Sequence[tuple[Query, Document]],
) -> None:
    golden_rows = _golden_rows(scorer, golden)  # before adapters are taken off
    save_backbone(scorer.model.backbone, folder)
    scorer.tokenizer.save_pretrained(folder)
    weights = {
        name: tensor.detach().cpu().contiguous() for name, tensor in scorer.model.head.state_dict().items()
    }
    save_file(weights, folder / "head.safetensors")
    (folder / "reranker.json").write_text(json.dumps(asdict(spec), indent=2) + "\n", encoding="utf-8")
    (folder / "golden.jsonl").write_text("".join(golden_rows), encoding="utf-8")
    write_digests(folder)


def write_digests(folder: Path) -> None:
    """Write `SHA256SUMS` for all files as they are now, as `sha256sum` would; `sha256sum -c` reads it."""
    (folder / DIGESTS).write_text(_digest_lines(_digest_by_name(folder)), encoding="utf-8")


def is_as_written(folder: Path) -> bool:
    """Return whether a folder's files, these and no others, have the digests that `SHA256SUMS` states."""
    try:
        digest_by_name = _digest_by_name(folder)
        return DIGESTS in digest_by_name and _read(folder / DIGESTS) == _digest_lines(digest_by_name).encode()
    except ArtefactError:
        return False


def _digest_by_name(folder: Path) -> dict[str, str]:
    """Return the digest of each file of a folder by its relative name, in the order of names.

    Raises:
        ArtefactError: a file cannot be read, or its name is no UTF-8.
    """
    found = {}
    path = folder
    try:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                name = path.relative_to(folder).as_posix()
                name.encode()  # else `SHA256SUMS` could not state it
                with path.open("rb") as stream:
                    found[name] = hashlib.file_digest(stream, "sha256").hexdigest()
    except (OSError, UnicodeError) as error:
        raise _unreadable(path, error) from error
    return found


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> ArtefactError:
    shown = str(path).encode(errors="backslashreplace").decode()
    return ArtefactError(f"{shown} cannot be read ({first_line(error)}); copy the artefact again")


def _digest_lines(digest_by_name: Mapping[str, str]) -> str:
    """Return what `SHA256SUMS` says of a folder's files."""
    return "".join(f"{digest}  {name}\n" for name, digest in digest_by_name.items() if name != DIGESTS)


def _golden_rows(scorer: LanguageModelScorer, pairs: Sequence[tuple[Query, Document]]) -> list[str]:
    rows = []
    encoded = [scorer.encoder.encode(query, document) for query, document in pairs]
    for (query, document), score in zip(pairs, scorer.score_encoded(encoded), strict=True):
        row = {"query": query.text, "title": document.title, "text": document.text, "score": score}
        rows.append(json.dumps(row, ensure_ascii=False) + "\n")
    return rows


def load_artefact(
    folder: Path,
    *,
    device: str = "cpu",
    max_tokens_per_batch: int = 8192,
    long_documents: LongDocuments = "truncate",
) -> LanguageModelScorer:
    """Return the scorer of an artefact, after its digests were compared and its golden pairs scored again.

    The golden pairs, and a calibration, are of truncated documents, as those in training are.

    Raises:
        ArtefactError: a file is missing, altered, broken, unreadable, unsafe, of another format or not the
            artefact's, or a golden score differs.
    """
    spec = check_artefact(folder)
    digest_by_name = _digest_by_name(folder)
    _check_digests(folder, digest_by_name, spec=spec)
    try:
        encoder = PairEncoder(load_tokenizer(folder), spec.prompt_format())
    except ConfigError as error:
        raise ArtefactError(
            f"{folder}: tokenizer and reranker.json do not fit ({error}); copy the artefact again"
        ) from error
    model = _load_model(folder, spec).to(device)
    scorer = LanguageModelScorer(
        model,
        encoder,
        digest=_whole_digest(digest_by_name),
        max_tokens_per_batch=max_tokens_per_batch,
        long_documents=long_documents,
    )
    _check_golden(scorer, folder / "golden.jsonl", tolerance=spec.tolerance["fp32"])
    return scorer


def is_artefact(folder: Path) -> bool:
    """Return whether a folder claims to be a reranker artefact."""
    return (folder / "reranker.json").is_file()


def check_artefact(folder: Path) -> RerankerSpec:
    """Return what an artefact states, after every check that needs neither its weights nor its tokenizer.

    Raises:
        ArtefactError: `reranker.json` is broken or of another format, a file is unsafe or missing.
    """
    spec = read_spec(folder)
    check_model_folder(folder)
    for name in ("tokenizer.json", "head.safetensors", "golden.jsonl"):
        if not (folder / name).is_file():
            raise ArtefactError(f"{folder / name} is missing; copy the artefact again")
    return spec


def read_spec(folder: Path) -> RerankerSpec:
    """Return what an artefact's `reranker.json` states.

    Raises:
        ArtefactError: the file is missing or says something this version does not know.
    """
    path = folder / "reranker.json"
    if path.exists() and not path.is_file():  # whoever opens a pipe waits for ever
        raise ArtefactError(f"{path} is broken (it is no file); copy the artefact again")
    try:
        spec = _spec_of(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise ArtefactError(
            f"{path} is missing: {folder} is not a reranker artefact; train one first"
        ) from error
    except (OSError, OverflowError, RecursionError, TypeError, ValueError) as error:
        raise ArtefactError(f"{path} is broken ({error}); copy the artefact again") from error
    if spec.format_version not in READABLE_VERSIONS:
        readable = " and ".join(map(str, READABLE_VERSIONS))
        raise ArtefactError(
            f"{path} has format {spec.format_version}, this Whyrank reads {readable}; train again"
        )
    wrong = [name for name, is_known in _known_settings(spec).items() if not is_known]
    if wrong:
        raise ArtefactError(
            f"{path} states a value of {', '.join(wrong)} that is not known; copy the artefact again"
        )
    try:
        spec.prompt_format()  # its own checks
    except ConfigError as error:
        raise ArtefactError(f"{path} is broken ({error}); copy the artefact again") from error
    return spec


def _spec_of(stated: dict[str, Any]) -> RerankerSpec:
    spec = RerankerSpec(**stated)
    return (
        spec if spec.calibration is None else replace(spec, calibration=Calibration(**stated["calibration"]))
    )


def _known_settings(spec: RerankerSpec) -> dict[str, bool]:
    """Return for each setting whether its value is one that this version knows; JSON can hold anything."""
    return {
        "template": isinstance(spec.template, str),
        "max_length": type(spec.max_length) is int,  # not a bool
        "max_query_length": type(spec.max_query_length) is int,
        "head": spec.head in get_args(HeadKind),
        "pooling": spec.pooling in get_args(Pooling),
        "score_scale": spec.score_scale == "logit",
        "long_documents": spec.long_documents == "truncate",
        "tolerance": isinstance(spec.tolerance, dict) and _is_tolerance(spec.tolerance.get("fp32")),
        "provenance": isinstance(spec.provenance, dict),
    }


def _is_tolerance(value: object) -> bool:
    """A tolerance that lets any score pass would be no check."""
    return isinstance(value, float) and 0 < value <= LARGEST_TOLERANCE


def artefact_digest(folder: Path) -> str:
    """Return a digest over all that decides a score: weights, configuration, tokenizer, reranker.json.

    Raises:
        ArtefactError: a file cannot be read, or its name is no UTF-8.
    """
    return _whole_digest(_digest_by_name(folder))


def _whole_digest(digest_by_name: Mapping[str, str]) -> str:
    whole = hashlib.sha256()
    for name, digest in digest_by_name.items():
        whole.update(f"{name} {digest}\n".encode())
    return whole.hexdigest()


def _check_digests(folder: Path, digest_by_name: Mapping[str, str], *, spec: RerankerSpec) -> None:
    """Compare a folder's files with what `SHA256SUMS` states of them.

    Raises:
        ArtefactError: a file has another digest, is missing or is not named there; or there are no digests,
            and the format is one that has them.
    """
    path = folder / DIGESTS
    if DIGESTS not in digest_by_name:
        if spec.format_version == 1:
            return
        raise ArtefactError(f"{path} is missing; copy the artefact again")
    raw = _read(path)
    if raw == _digest_lines(digest_by_name).encode():
        return
    lines = [line.removesuffix("\r").partition("  ") for line in raw.decode(errors="replace").split("\n")]
    stated = {name: digest for digest, _, name in lines if name}
    for name in sorted({*stated, *digest_by_name} - {DIGESTS}):
        if name not in digest_by_name:
            raise ArtefactError(f"{folder / name} is missing; copy the artefact again")
        if name not in stated:
            raise ArtefactError(
                f"{folder / name} is none of the artefact's files ({DIGESTS} does not name it); delete it, or"
                " copy the artefact again"
            )
        if stated[name] != digest_by_name[name]:
            raise ArtefactError(
                f"{folder / name} is not as it was written ({DIGESTS} states another digest); copy the"
                " artefact again"
            )
    raise ArtefactError(f"{path} is not as it was written; copy the artefact again")


def _load_model(folder: Path, spec: RerankerSpec) -> SingleNeuronModel:
    config = load_config(folder)
    backbone = load_backbone(folder, config)
    merge_adapter(backbone, folder)
    positions = usable_positions(config)
    if positions is not None and spec.max_length > positions:
        raise ArtefactError(
            f"{folder / 'reranker.json'} states max_length {spec.max_length}, the model has {positions}"
            " positions; copy the artefact again"
        )
    path = folder / "head.safetensors"
    try:
        head = nn.Linear(config.hidden_size, 1)
        head.load_state_dict(load_file(path))
    except LOAD_ERRORS as error:
        raise ArtefactError(
            f"the weights in {path} are broken ({first_line(error)}); copy the artefact again"
        ) from error
    return SingleNeuronModel(backbone, head, pooling=spec.pooling, has_token_types=has_token_types(config))


def _check_golden(scorer: LanguageModelScorer, path: Path, *, tolerance: float) -> None:
    try:
        # not splitlines(), which would also split at the line separators that a text may hold
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
        pairs = [
            (Query("golden", row["query"]), Document("golden", row["text"], title=row["title"]))
            for row in rows
        ]
        recorded = [float(row["score"]) for row in rows]
        encoded = [scorer.encoder.encode(query, document) for query, document in pairs]
    except (OSError, RecursionError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise ArtefactError(f"{path} is missing or broken ({error}); copy the artefact again") from error
    if not rows:
        raise ArtefactError(
            f"{path} holds no pairs, so the scores cannot be checked; train the artefact again"
        )
    try:
        scores = scorer.score_encoded(encoded)
    except IndexError as error:
        raise ArtefactError(
            f"{path.parent}: tokenizer.json names tokens that the weights have no rows for;"
            " copy the artefact again"
        ) from error
    for number, (now, then) in enumerate(zip(scores, recorded, strict=True), start=1):
        if not abs(now - then) <= tolerance:  # NaN fails too
            raise ArtefactError(
                f"{path}:{number}: the pair now scores {now:.6f}, not {then:.6f} (tolerance {tolerance:g}):"
                " weights, tokenizer or template were altered; copy the artefact again or train it anew"
            )
