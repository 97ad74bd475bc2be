"""The artefact gives the same scores everywhere, or is refused."""

import hashlib
import json
import os
import resource
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from rerank_core.errors import ArtefactError
from rerank_core.models.artefact import (
    NUM_GOLDEN_PAIRS,
    artefact_digest,
    check_artefact,
    is_artefact,
    is_as_written,
    load_artefact,
    read_spec,
    save_artefact,
    write_digests,
)
from rerank_core.models.scorer import LanguageModelScorer
from rerank_core.records import Calibration, Document, Query

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


def test_golden_texts_may_hold_any_line_separator(scorer: LanguageModelScorer, tmp_path: Path) -> None:
    odd = Document(
        "odd", "sea\u2028surface\u2029temperature\x85of\x0bthe\x0cnorth\r\nsea\n", title="a\u2028b"
    )
    save_artefact(scorer, tmp_path / "odd", head="linear", golden=[(QUERY, odd)], provenance={})
    assert load_artefact(tmp_path / "odd").score(QUERY, [odd]) == pytest.approx(scorer.score(QUERY, [odd]))


def test_what_a_killed_process_left_is_cleared_away(scorer: LanguageModelScorer, tmp_path: Path) -> None:
    (tmp_path / ".artefact.1.tmp").mkdir()
    save_artefact(scorer, tmp_path / "artefact", head="linear", golden=GOLDEN, provenance={})
    assert [path.name for path in tmp_path.iterdir()] == ["artefact"]


def test_a_disk_that_fills_up_leaves_the_older_artefact_whole(
    scorer: LanguageModelScorer, artefact: Path
) -> None:
    before = artefact_digest(artefact)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))  # files end here, as on a full disk
    try:
        with pytest.raises(Exception, match=r"(File too large|os error 27)"):
            save_artefact(scorer, artefact, head="linear", golden=GOLDEN, provenance={})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert artefact_digest(artefact) == before
    assert [path.name for path in artefact.parent.iterdir()] == ["artefact"]
    load_artefact(artefact)


def test_a_calibration_is_stated_and_read_again(scorer: LanguageModelScorer, tmp_path: Path) -> None:
    calibration = Calibration(slope=1.5, intercept=-0.25)
    folder = tmp_path / "calibrated"
    save_artefact(scorer, folder, head="linear", golden=GOLDEN, provenance={}, calibration=calibration)
    assert read_spec(folder).calibration == calibration
    load_artefact(folder)


def test_a_changed_golden_score_is_refused(artefact: Path) -> None:
    path = artefact / "golden.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[4]["score"] += 2e-4
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_digests(artefact)
    with pytest.raises(ArtefactError, match=r"golden\.jsonl:5: the pair now scores"):
        load_artefact(artefact)


def test_a_golden_score_within_the_tolerance_is_accepted(artefact: Path) -> None:
    path = artefact / "golden.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[4]["score"] += 5e-5
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_digests(artefact)
    load_artefact(artefact)


def test_altered_weights_are_refused(artefact: Path) -> None:
    weights = load_file(artefact / "head.safetensors")
    save_file({name: tensor + 0.1 for name, tensor in weights.items()}, artefact / "head.safetensors")
    write_digests(artefact)
    with pytest.raises(ArtefactError, match="were altered"):
        load_artefact(artefact)


def test_weights_that_are_not_numbers_are_refused(artefact: Path) -> None:
    weights = load_file(artefact / "head.safetensors")
    save_file(
        {n: torch.full_like(t, float("nan")) for n, t in weights.items()}, artefact / "head.safetensors"
    )
    write_digests(artefact)
    with pytest.raises(ArtefactError, match="scores nan"):
        load_artefact(artefact)


def _set(name: str, value: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        spec = json.loads((folder / "reranker.json").read_text())
        (folder / "reranker.json").write_text(json.dumps(spec | {name: value}))

    return change


def _edit(name: str, **settings: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(content | settings))

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
    "reranker.json a list": (_write("reranker.json", "[]"), r"reranker\.json is broken"),
    "reranker.json too deep": (_write("reranker.json", "[" * 200_000), r"reranker\.json is broken"),
    "unknown pooling": (_set("pooling", "cls"), "value of pooling that is not known"),
    "unknown scale": (_set("score_scale", "percent"), "value of score_scale that is not known"),
    "length as text": (_set("max_length", "48"), "value of max_length that is not known"),
    "length as truth": (_set("max_query_length", True), "value of max_query_length that is not known"),
    "length of zero": (_set("max_query_length", 0), "max_query_length must be at least 1"),
    "more length than positions": (_set("max_length", 129), "max_length 129, the model has 128 positions"),
    "no room for a document": (_set("max_query_length", 48), "leaves no room for a document"),
    "tolerance a number": (_set("tolerance", 1), "value of tolerance that is not known"),
    "tolerance endless": (_set("tolerance", {"fp32": float("inf")}), "value of tolerance that is not known"),
    "tolerance of zero": (_set("tolerance", {"fp32": 0.0}), "value of tolerance that is not known"),
    "tolerance as text": (_set("tolerance", {"fp32": "1e-4"}), "value of tolerance that is not known"),
    "calibration as text": (_set("calibration", "good"), "broken"),
    "calibration without intercept": (_set("calibration", {"slope": 1.0}), "broken"),
    "calibration of text": (_set("calibration", {"slope": "1", "intercept": 0.0}), "broken"),
    "calibration beyond numbers": (_set("calibration", {"slope": 10**400, "intercept": 0.0}), "broken"),
    "calibration upside down": (_set("calibration", {"slope": -1.0, "intercept": 0.0}), "slope above 0"),
    "provenance a list": (_set("provenance", []), "value of provenance that is not known"),
    "template a list": (_set("template", ["{query}"]), "value of template that is not known"),
    "template without query": (_set("template", "{document}"), "once each, in that order"),
    "template without document": (_set("template", "{query}"), "once each, in that order"),
    "template turned round": (_set("template", "{document}{query}"), "once each, in that order"),
    "template with unknown braces": (_set("template", "{query}{document}{user}"), "once each, in that order"),
    "template with a conversion": (_set("template", "{query!r}{document}"), "once each, in that order"),
    "template with a lone brace": (_set("template", "{query}{document}{"), "write {{ for a brace"),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), r"tokenizer\.json is missing"),
    "tokenizer empty": (_write("tokenizer.json", "{}"), "tokenizer .* in .* is missing or broken"),
    "tokenizer of an unknown kind": (
        _write("tokenizer.json", '{"version": "1.0", "added_tokens": [], "model": {"type": "Nope"}}'),
        "tokenizer .* in .* is missing or broken",
    ),
    "tokenizer settings a list": (_write("tokenizer_config.json", "[]"), "tokenizer .* is missing or broken"),
    "tokenizer without padding": (
        _write("tokenizer_config.json", '{"tokenizer_class": "PreTrainedTokenizerFast"}'),
        "neither a padding nor an end token",
    ),
    "unknown model": (_edit("config.json", model_type="nope"), r"config\.json is broken or of an unknown"),
    "config of another size": (_edit("config.json", hidden_size=40), "do not fit its config.json"),
    "config with text for a number": (
        _edit("config.json", hidden_size="x"),
        "(?s)copy the (folder|artefact)",
    ),
    "config of no text model": (_write("config.json", '{"model_type": "clip"}'), "copy the artefact again"),
    "folder for a file": (
        lambda folder: [(folder / "reranker.json").unlink(), (folder / "reranker.json").mkdir()],
        r"reranker\.json is broken",
    ),
    "golden text a number": (
        _write("golden.jsonl", '{"query": "a", "title": "", "text": 5, "score": 1.0}'),
        "missing or broken",
    ),
    "no golden pairs": (_write("golden.jsonl", ""), "holds no pairs"),
    "golden no JSON": (_write("golden.jsonl", "{"), "missing or broken"),
    "golden without score": (
        _write("golden.jsonl", '{"query": "a", "title": "b", "text": "c"}'),
        "missing or broken",
    ),
    "no golden file": (lambda folder: (folder / "golden.jsonl").unlink(), r"golden\.jsonl is missing"),
    "head missing": (
        lambda folder: (folder / "head.safetensors").unlink(),
        r"head\.safetensors is missing",
    ),
    "head cut short": (_write("head.safetensors", "short"), r"head\.safetensors are broken"),
    "weights cut short": (_write("model.safetensors", "short"), "weights in .* are broken"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_artefact_is_refused_by_name(artefact: Path, fault: str) -> None:
    """Whoever broke it may have written digests that fit."""
    change, message = BROKEN[fault]
    change(artefact)
    write_digests(artefact)
    with pytest.raises(ArtefactError, match=message):
        load_artefact(artefact)


def test_a_vocabulary_larger_than_the_weights_is_refused(artefact: Path) -> None:
    path = artefact / "tokenizer.json"
    content = json.loads(path.read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary["sea"] = len(vocabulary) + 100
    path.write_text(json.dumps(content))
    write_digests(artefact)
    with pytest.raises(ArtefactError, match=r"tokenizer\.json names tokens"):
        load_artefact(artefact)


def test_an_error_that_no_broken_file_causes_is_passed_on(
    artefact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def out_of_memory(*args: object, **kwargs: object) -> None:
        raise MemoryError

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", out_of_memory)
    with pytest.raises(MemoryError):
        load_artefact(artefact)


def test_an_artefact_is_checked_without_loading_it(artefact: Path) -> None:
    assert check_artefact(artefact) == read_spec(artefact)
    (artefact / "model.safetensors").unlink()
    (artefact / "head.safetensors").rename(artefact / "head.pt")
    with pytest.raises(ArtefactError, match="pickled code"):
        check_artefact(artefact)


FILES = (
    "SHA256SUMS",
    "config.json",
    "golden.jsonl",
    "head.safetensors",
    "model.safetensors",
    "reranker.json",
    "tokenizer.json",
    "tokenizer_config.json",
)


def test_an_artefact_has_these_files(artefact: Path) -> None:
    assert tuple(sorted(path.name for path in artefact.iterdir())) == FILES


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_in_any_file_is_refused(artefact: Path, name: str, rng: np.random.Generator) -> None:
    path = artefact / name
    whole = path.read_bytes()
    places = [0, len(whole) - 1, *rng.integers(len(whole), size=20).tolist()]
    for place in places:
        for bit in (0x01, 0x20, 0x80):  # of white space, of upper and lower case, of no ASCII any more
            altered = bytearray(whole)
            altered[place] ^= bit
            path.write_bytes(altered)
            with pytest.raises(ArtefactError, match=r"(copy|train|download) .* again"):
                load_artefact(artefact)
    path.write_bytes(whole)
    load_artefact(artefact)


def test_a_file_that_was_not_written_with_the_artefact_is_refused(artefact: Path) -> None:
    (artefact / "special_tokens_map.json").write_text("{}")
    with pytest.raises(ArtefactError, match=r"special_tokens_map\.json is none of the artefact's files"):
        load_artefact(artefact)


def test_a_file_that_is_gone_is_named(artefact: Path) -> None:
    (artefact / "tokenizer_config.json").unlink()
    with pytest.raises(ArtefactError, match=r"tokenizer_config\.json is missing"):
        load_artefact(artefact)


def test_digests_that_are_gone_are_missed(artefact: Path) -> None:
    (artefact / "SHA256SUMS").unlink()
    with pytest.raises(ArtefactError, match="SHA256SUMS is missing"):
        load_artefact(artefact)


def test_digests_are_those_that_sha256sum_would_check(artefact: Path) -> None:
    digests = [line.split("  ") for line in (artefact / "SHA256SUMS").read_text().splitlines()]
    assert {name for _, name in digests} == set(FILES) - {"SHA256SUMS"}
    for digest, name in digests:
        assert hashlib.sha256((artefact / name).read_bytes()).hexdigest() == digest


def test_digests_whose_line_ends_were_changed_are_named_themselves(artefact: Path) -> None:
    path = artefact / "SHA256SUMS"
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    with pytest.raises(ArtefactError, match="SHA256SUMS is not as it was written"):
        load_artefact(artefact)


def test_a_file_that_cannot_be_read_is_named(artefact: Path) -> None:
    (artefact / "tokenizer.model").symlink_to("/proc/self/mem")  # can be opened; nothing lies at its start
    with pytest.raises(
        ArtefactError, match=r"tokenizer\.model cannot be read \(OSError.*; copy the artefact"
    ):
        artefact_digest(artefact)


def test_a_name_that_is_no_utf8_is_told_in_print(artefact: Path) -> None:
    (artefact / os.fsdecode(b"caf\xe9.txt")).write_text("")
    with pytest.raises(ArtefactError, match="cannot be read") as refused:
        load_artefact(artefact)
    assert r"caf\udce9.txt" in str(refused.value)


def test_a_folder_is_as_written_until_a_file_is_altered_added_or_gone(artefact: Path) -> None:
    assert is_as_written(artefact)
    (artefact / "added.txt").write_text("")
    assert not is_as_written(artefact)
    (artefact / "added.txt").unlink()
    assert is_as_written(artefact)
    (artefact / "golden.jsonl").write_text("")
    assert not is_as_written(artefact)
    (artefact / "SHA256SUMS").unlink()
    assert not is_as_written(artefact)
    assert not is_as_written(artefact / "nowhere")


def test_an_artefact_of_the_format_before_digests_is_read(artefact: Path) -> None:
    _set("format_version", 1)(artefact)
    (artefact / "SHA256SUMS").unlink()
    assert load_artefact(artefact).digest == artefact_digest(artefact)
    _edit("tokenizer_config.json", note="nothing of it decides a score")(artefact)
    load_artefact(artefact)


def test_a_loaded_scorer_keeps_to_its_token_budget(artefact: Path) -> None:
    loaded = load_artefact(artefact, max_tokens_per_batch=64)
    assert loaded.max_tokens_per_batch == 64
    assert loaded.score(QUERY, DOCUMENTS) == pytest.approx(
        load_artefact(artefact).score(QUERY, DOCUMENTS), abs=1e-5
    )


def test_the_digest_follows_every_file(artefact: Path, tmp_path: Path) -> None:
    before = artefact_digest(artefact)
    copy = shutil.copytree(artefact, tmp_path / "copy")
    assert artefact_digest(copy) == before
    (copy / "tokenizer_config.json").write_text("{}")
    assert artefact_digest(copy) != before
