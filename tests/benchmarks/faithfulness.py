"""How faithful attributions are per training method, on the finished cells of `whyrank compare`.

    python tests/benchmarks/faithfulness.py --prepared runs/sample --output runs/faithfulness \\
        --cells runs/sample-compared/cells/minilm --folds 0 1 --queries 6

For each method it attributes the same documents, the first of the first stage for the first test queries of
each fold, as `whyrank attribute` would, without Ray; then it does what `whyrank evaluate --faithfulness`
does. Its page, `faithfulness.md`, lies in the folder `metrics` of the output. A cell that is missing or not
finished is an error.
"""

from __future__ import annotations

import argparse
import logging
from dataclasses import dataclass
from pathlib import Path

import torch

from jobs.attribute import AttributeWorker, attributor_settings
from jobs.config import AttributeJob, EvaluateJob
from jobs.evaluate import run_evaluate
from jobs.manifest import finish_output, folder_digest, opened_output, require_finished, text_digests
from jobs.run_folders import long_documents_of
from jobs.shards import Key, plan_shards
from rerank_core.data.splits import members
from rerank_core.formats import read_candidates, read_documents, read_split
from rerank_core.models.artefact import artefact_digest

METHODS = ("sft", "rm", "dpo", "ppo")


@dataclass(frozen=True, slots=True)
class Cell:
    """One method trained for one fold, and its run."""

    method: str
    fold: int
    artefact: Path
    run: Path


def finished_cells(root: Path, *, folds: list[int], seed: int) -> list[Cell]:
    """Return the cells of all methods and folds."""
    cells = []
    for method in METHODS:
        for fold in folds:
            folder = root / f"seed-{seed}-fold-{fold}"
            require_finished(folder / "runs" / method, job="score")
            cells.append(Cell(method, fold, folder / "train" / method, folder / "runs" / method))
    return cells


def planned(prepared: Path, *, fold: int, num_queries: int, num_documents: int) -> list[Key]:
    """Return the first documents of the first stage for the first test queries of a fold."""
    tested = members(read_split(prepared / f"fold-{fold}" / "split.parquet"))["test"]
    candidates = read_candidates(prepared / "candidates.parquet", read_documents(prepared / "corpus.parquet"))
    return [
        (query_id, candidate.document.doc_id)
        for query_id in sorted(tested)[:num_queries]
        for candidate in sorted(candidates[query_id], key=lambda found: found.first_stage_rank)[
            :num_documents
        ]
    ]


def attribute(job: AttributeJob, keys: list[Key]) -> None:
    """Attribute the documents into the job's output, as the job would; nothing where that is finished."""
    inputs = {
        **text_digests(job.prepared),
        "artefact": artefact_digest(job.artefact),
        "run": folder_digest(job.run, patterns=("data/shard-*.parquet",)),
    }
    with opened_output(job.output, job="attribute", config=job, inputs=inputs) as state:
        if state == "finished":
            return
        worker = AttributeWorker(
            prepared=str(job.prepared),
            artefact=str(job.artefact),
            output=str(job.output),
            settings=attributor_settings(job),
            audit_share=job.audit_share,
            seed=job.seed,
            long_documents=long_documents_of(job.run),
        )
        for shard in plan_shards(job.output, keys, size=job.shard_documents):
            worker(shard)
        finish_output(job.output, results={"documents": len(keys)})


def main() -> None:
    """Attribute, measure, and leave the page."""
    options = parse_arguments()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    words, runs = [], []
    for cell in finished_cells(options.cells, folds=options.folds, seed=options.seed):
        output = options.output / f"{cell.method}-fold-{cell.fold}"
        job = AttributeJob(
            prepared=options.prepared,
            artefact=cell.artefact,
            run=cell.run,
            output=output,
            max_evals=options.max_evals,
            audit_share=0.0,
        )
        keys = planned(
            options.prepared,
            fold=cell.fold,
            num_queries=options.queries,
            num_documents=options.documents,
        )
        attribute(job, keys)
        logging.info("%s: %d documents attributed", output, len(keys))
        words.append(f"{cell.method}={output}")
        runs.append(f"{cell.method}={cell.run}")
    run_evaluate(
        EvaluateJob(
            prepared=options.prepared,
            output=options.output / "metrics",
            runs=tuple(runs),
            faithfulness=tuple(words),
            num_close_ups=options.close_ups,
        )
    )


def parse_arguments() -> argparse.Namespace:
    """Return the settings of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prepared", type=Path, required=True, help="the prepared folder of the cells")
    parser.add_argument("--cells", type=Path, required=True, help="the folder of one model's cells")
    parser.add_argument("--output", type=Path, required=True, help="folder for attributions and metrics")
    parser.add_argument("--folds", type=int, nargs="+", default=[0], help="folds whose test queries count")
    parser.add_argument("--seed", type=int, default=0, help="seed of training")
    parser.add_argument("--queries", type=int, default=6, help="test queries of each fold")
    parser.add_argument("--documents", type=int, default=1, help="documents of each query")
    parser.add_argument("--max-evals", type=int, default=300, help="evaluations of an attribution")
    parser.add_argument("--close-ups", type=int, default=1, help="documents of each query looked at closer")
    return parser.parse_args()


if __name__ == "__main__":
    main()
