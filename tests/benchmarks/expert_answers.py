"""ClimRetrieve's expert answers and marked sentences, in the columns of `whyrank evaluate --answers`.

    python tests/benchmarks/expert_answers.py --collection path/to/climretrieve --prepared runs/clim \\
        --output runs/clim-answers.jsonl

An answer of the collection is of a query and a report: every judged passage of the report gets it.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from rerank_core.formats import read_documents, read_jsonl, read_qrels


def write_answers(collection: Path, prepared: Path, file: Path) -> int:
    """Write the answers, and return how many."""
    documents = read_documents(prepared / "corpus.parquet")
    answer_of = {
        (row["query_id"], row["report"]): row["answer"] for _, row in read_jsonl(collection / "answers.jsonl")
    }
    marked = {row["doc_id"]: row["relevant_text"] for _, row in read_jsonl(collection / "corpus.jsonl")}
    rows = [
        {
            "query_id": query_id,
            "doc_id": doc_id,
            "answer": answer_of[query_id, documents[doc_id].title],
            "rationale": marked[doc_id] if marked[doc_id] in documents[doc_id].content else None,
        }
        for query_id, grades in read_qrels(prepared / "qrels.parquet").items()
        for doc_id in grades
        if (query_id, documents[doc_id].title) in answer_of
    ]
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return len(rows)


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--collection", type=Path, required=True, help="the folder of ClimRetrieve")
    parser.add_argument("--prepared", type=Path, required=True, help="its prepared folder")
    parser.add_argument("--output", type=Path, required=True, help="the file to write")
    options = parser.parse_args()
    number = write_answers(options.collection, options.prepared, options.output)
    sys.stdout.write(f"{options.output}: {number} answers\n")


if __name__ == "__main__":
    main()
