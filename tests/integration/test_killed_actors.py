"""An actor that is killed takes nothing with it: its work is done again, and counted once."""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

import psutil
import pytest

from jobs.attribute import run_attribute
from jobs.config import AttributeJob, ExplainJob
from jobs.explain import run_explain
from jobs.manifest import file_digest, write_json
from rerank_core.attribution.table import read_attributions
from rerank_core.explanation.table import read_explanations
from rerank_core.formats import RUN, documents_table, queries_table, table_of, write_table
from rerank_core.models.artefact import artefact_digest, save_artefact
from rerank_core.models.build import build_encoder, build_model, load_tokenizer
from rerank_core.models.scorer import LanguageModelScorer
from rerank_core.models.tiny import save_tiny_encoder
from rerank_core.records import Document, Query

if TYPE_CHECKING:
    from pathlib import Path

SHARDS = "data/shard-*.parquet"
NUM_DOCUMENTS = 12
QUERY = Query("q", "sea ice")
DOCUMENTS = [
    Document(f"d{n:02d}", f"sea ice extent number {n} from warm buoys of the north, every day", title="Ice")
    for n in range(NUM_DOCUMENTS)
]


@pytest.fixture
def job(tmp_path: Path) -> AttributeJob:
    """Return a job on the ranked documents of one query, one document in a shard."""
    prepared, run, model, artefact = (tmp_path / name for name in ("prepared", "run", "model", "artefact"))
    save_tiny_encoder(model, [QUERY.text, *(document.content for document in DOCUMENTS)], seed=0)
    neuron = build_model(model, head="linear", num_layers=None, seed=0)
    encoder = build_encoder(load_tokenizer(model), neuron.config, head="linear", max_length=64)
    scorer = LanguageModelScorer(neuron, encoder, digest="")
    save_artefact(scorer, artefact, head="linear", golden=[(QUERY, DOCUMENTS[0])], provenance={})
    prepared.mkdir()
    write_table(documents_table(DOCUMENTS), prepared / "corpus.parquet")
    write_table(queries_table([QUERY]), prepared / "queries.parquet")
    write_json(
        prepared / "manifest.json", {"job": "prepare", "status": "finished", "config": {}, "digests": {}}
    )
    digest = artefact_digest(artefact)
    rows = [("q", d.doc_id, 1, 0.0, -float(n), n, digest) for n, d in enumerate(DOCUMENTS, start=1)]
    (run / "data").mkdir(parents=True)
    write_table(table_of(rows, RUN), run / "data" / "shard-00000.parquet")
    digests = {f"input:{name}": file_digest(prepared / f"{name}.parquet") for name in ("corpus", "queries")}
    write_json(
        run / "manifest.json", {"job": "score", "status": "finished", "config": {}, "digests": digests}
    )
    return AttributeJob(
        prepared=prepared,
        artefact=artefact,
        run=run,
        output=tmp_path / "words",
        top_k=NUM_DOCUMENTS,
        max_evals=2_000,
        shard_documents=1,
    )


class Killer(threading.Thread):
    """Kills the first process of this Ray that works on a job, once the job has written its first file."""

    def __init__(self, output: Path, *, actor: str, first: str) -> None:
        """`first` is the pattern of the files, in the folder `output`, of which one is waited for."""
        super().__init__(daemon=True)
        self._output, self._actor, self._first = output, actor, first
        self.killed: int | None = None
        self.num_committed = 0  # shards, when the process was killed

    def run(self) -> None:
        """Wait for a file, then kill."""
        ends = time.monotonic() + 300
        while self.killed is None and time.monotonic() < ends:
            if any(self._output.glob(self._first)):
                self.num_committed = len(list(self._output.glob(SHARDS)))
                self._kill()
            time.sleep(0.01)

    def _kill(self) -> None:
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.NoSuchProcess):  # it may have ended by itself
                if self._actor in " ".join(process.cmdline()):
                    os.kill(process.pid, signal.SIGKILL)
                    self.killed = process.pid
                    return


@pytest.mark.ray
@pytest.mark.usefixtures("ray_instance")
def test_an_attributing_actor_is_killed_and_every_document_is_attributed_once(
    job: AttributeJob, tmp_path: Path
) -> None:
    killer = Killer(job.output, actor="ray::MapWorker(MapBatches(_ShardActor))", first=SHARDS)
    killer.start()
    result = run_attribute(job)
    killer.join()
    assert killer.killed is not None
    assert 0 < killer.num_committed < NUM_DOCUMENTS
    assert (result.num_documents, result.num_quarantined) == (NUM_DOCUMENTS, 0)
    undisturbed = replace(job, output=tmp_path / "undisturbed")
    run_attribute(undisturbed)
    assert read_attributions(job.output) == read_attributions(undisturbed.output)


@pytest.mark.ray
@pytest.mark.vllm
@pytest.mark.usefixtures("ray_instance")
@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning"
)  # Ray's LLM stages define pydantic models the old way
def test_an_engine_is_killed_and_every_text_is_written_once(job: AttributeJob, tmp_path: Path) -> None:
    run_attribute(replace(job, top_k=4, max_evals=60))
    explained = ExplainJob(
        prepared=job.prepared,
        run=job.run,
        attributions=job.output,
        output=tmp_path / "texts",
        max_model_tokens=768,
        shard_documents=1,
    )
    killer = Killer(explained.output, actor="vLLMEngineStageUDF", first="first_texts.jsonl")
    killer.start()
    result = run_explain(explained)
    killer.join()
    assert killer.killed is not None
    assert killer.num_committed < 4
    texts = read_explanations(explained.output)
    conditions = [(text.doc_id, text.with_attribution) for text in texts]
    assert conditions == [(f"d{n:02d}", with_words) for n in range(4) for with_words in (True, False)]
    assert not any(problem.startswith("generator_failed") for text in texts for problem in text.problems)
    assert all(text.generated_tokens > 0 for text in texts)
    assert (result.num_documents, result.num_texts_with, result.num_texts_without) == (4, 4, 4)
