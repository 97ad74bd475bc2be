"""The artefact gives the same scores everywhere, or is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from rerank_core.errors import ArtefactError
from rerank_core.models.artefact import (
    NUM_GOLDEN_PAIRS,
    artefact_digest,
    is_artefact,
    load_artefact,
    read_spec,
    save_artefact,
)
from rerank_core.models.scorer import LanguageModelScorer
from rerank_core.records import Document, Query

QUERY = Query("q", "sea surface temperature")
DOCUMENTS = [
    Document(str(n), f"snow depth number {n} of the north sea " * n, title="sea") for n in range(1, 41)
]
GOLDEN = [(QUERY, document) for document in DOCUMENTS]


@pytest.fixture
def artefact(scorer: LanguageModelScorer, tmp_path: Path) -> Path:
    save_artefact(scorer, tmp_path / "artefact", head="linear", golden=GOLDEN, provenance={"seed": 7})
    return tmp_path / "artefact"


def test_scores_are_the_same_before_and_after_saving(scorer: LanguageModelScorer, artefact: Path) -> None:
    loaded = load_artefact(artefact)
    assert loaded.score(QUERY, DOCUMENTS) == pytest.approx(scorer.score(QUERY, DOCUMENTS), abs=1e-5)
    assert loaded.digest == artefact_digest(artefact)


def test_the_folder_states_how_scores_come_about(artefact: Path) -> None:
    spec = read_spec(artefact)
    assert spec.provenance == {"seed": 7}
    assert spec.tolerance == {"fp32": 1e-4}
    assert spec.score_scale == "logit"
    assert len((artefact / "golden.jsonl").read_text().splitlines()) == NUM_GOLDEN_PAIRS


def test_a_folder_is_an_artefact_by_its_reranker_json(artefact: Path) -> None:
    assert is_artefact(artefact)
    assert not is_artefact(artefact.parent)


def test_saving_again_replaces_the_folder(scorer: LanguageModelScorer, artefact: Path) -> None:
    save_artefact(scorer, artefact, head="linear", golden=GOLDEN[:3], provenance={"seed": 8})
    assert read_spec(artefact).provenance == {"seed": 8}
    assert [path.name for path in artefact.parent.iterdir() if "tmp" in path.name] == []


def test_a_changed_golden_score_is_refused(artefact: Path) -> None:
    path = artefact / "golden.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[4]["score"] += 2e-4
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ArtefactError, match=r"golden\.jsonl:5: the pair now scores"):
        load_artefact(artefact)


def test_a_golden_score_within_the_tolerance_is_accepted(artefact: Path) -> None:
    path = artefact / "golden.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[4]["score"] += 5e-5
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    load_artefact(artefact)


def test_altered_weights_are_refused(artefact: Path) -> None:
    weights = load_file(artefact / "head.safetensors")
    save_file({name: tensor + 0.1 for name, tensor in weights.items()}, artefact / "head.safetensors")
    with pytest.raises(ArtefactError, match="were altered"):
        load_artefact(artefact)


def test_weights_that_are_not_numbers_are_refused(artefact: Path) -> None:
    weights = load_file(artefact / "head.safetensors")
    save_file(
        {n: torch.full_like(t, float("nan")) for n, t in weights.items()}, artefact / "head.safetensors"
    )
    with pytest.raises(ArtefactError, match="scores nan"):
        load_artefact(artefact)


def _set(name: str, value: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        spec = json.loads((folder / "reranker.json").read_text())
        (folder / "reranker.json").write_text(json.dumps(spec | {name: value}))

    return change


def _write(name: str, content: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).write_text(content)

    return change


BROKEN = {
    "no reranker.json": (lambda folder: (folder / "reranker.json").unlink(), "not a reranker artefact"),
    "reranker.json no JSON": (_write("reranker.json", "{"), "broken"),
    "unknown setting": (_set("surprise", 1), "broken"),
    "other format": (_set("format_version", 99), "format 99"),
    "unknown pooling": (_set("pooling", "cls"), "not known"),
    "unknown scale": (_set("score_scale", "percent"), "not known"),
    "no golden pairs": (_write("golden.jsonl", ""), "holds no pairs"),
    "golden no JSON": (_write("golden.jsonl", "{"), "missing or broken"),
    "golden without score": (
        _write("golden.jsonl", '{"query": "a", "title": "b", "text": "c"}'),
        "missing or broken",
    ),
    "head missing": (lambda folder: (folder / "head.safetensors").unlink(), "weights in .* are broken"),
    "weights cut short": (_write("model.safetensors", "short"), "weights in .* are broken"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_artefact_is_refused_by_name(artefact: Path, fault: str) -> None:
    change, message = BROKEN[fault]
    change(artefact)
    with pytest.raises(ArtefactError, match=message):
        load_artefact(artefact)


def test_the_digest_follows_every_file(artefact: Path, tmp_path: Path) -> None:
    before = artefact_digest(artefact)
    copy = shutil.copytree(artefact, tmp_path / "copy")
    assert artefact_digest(copy) == before
    (copy / "tokenizer_config.json").write_text("{}")
    assert artefact_digest(copy) != before
