"""The command line: `whyrank <job> --help`."""

from __future__ import annotations

import functools
import importlib
import inspect
import logging
import operator
import sys
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from jobs.config import (
    AttributeJob,
    DemoJob,
    EvaluateJob,
    ExplainJob,
    PrepareJob,
    ReportJob,
    ScoreJob,
    TrainJob,
)
from jobs.environment import prepare_environment
from rerank_core.errors import WhyrankError

if TYPE_CHECKING:
    from collections.abc import Sequence

JOBS: dict[str, type] = {
    "prepare": PrepareJob,
    "train": TrainJob,
    "score": ScoreJob,
    "attribute": AttributeJob,
    "explain": ExplainJob,
    "evaluate": EvaluateJob,
    "report": ReportJob,
    "demo": DemoJob,
}
"""Each job's configuration; `jobs.<name>.run_<name>` runs it, and is imported only then."""

DESCRIPTION = """Re-rank with a language model, and measure which words caused each rank.

Examples:
  whyrank demo
  whyrank prepare --output runs/sample
  whyrank train --prepared runs/sample --output runs/minilm
  whyrank score --prepared runs/sample --artefact runs/minilm/dpo --output runs/minilm-run
  whyrank evaluate --prepared runs/sample --output runs/metrics --runs dpo=runs/minilm-run
"""

EXIT_USER_ERROR = 2


def parse(arguments: Sequence[str] | None) -> Any:
    """Return the configuration that the arguments ask for; exits after `--help` and on unknown arguments."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    choices = [_choice(name, kind, with_examples=given[:1] == [name]) for name, kind in JOBS.items()]
    any_job: type[Any] = functools.reduce(operator.or_, choices)
    return tyro.cli(
        any_job,
        prog="whyrank",
        description=DESCRIPTION,
        args=given,
        config=(tyro.conf.OmitSubcommandPrefixes,),
    )


def _choice(name: str, kind: type, *, with_examples: bool) -> Any:
    """Return a job as tyro reads it; its examples belong in its own help, not in the list of all jobs."""
    text = inspect.getdoc(kind) or ""
    text = text if with_examples else text.partition("\n")[0]
    return Annotated[kind, tyro.conf.subcommand(name, prefix_name=False, description=text)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one job; return 0, or 2 where the user can mend what is wrong."""
    prepare_environment()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("whyrank").setLevel(logging.INFO)
    try:
        config = parse(arguments)
        name = next(name for name, kind in JOBS.items() if type(config) is kind)
        getattr(importlib.import_module(f"jobs.{name}"), f"run_{name}")(config)
    except WhyrankError as error:
        sys.stderr.write(f"whyrank: {error}\n")
        return EXIT_USER_ERROR
    return 0


if __name__ == "__main__":
    sys.exit(main())
