"""The command line: `whyrank <job> --help`."""

from __future__ import annotations

import argparse
import functools
import importlib
import inspect
import logging
import operator
import sys
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from jobs.config import AttributeJob, DemoJob, EvaluateJob, ExplainJob, PrepareJob, ReportJob, ScoreJob
from jobs.environment import prepare_environment
from jobs.recipes import RECIPES, comparison_of, memory_of
from jobs.training_config import CompareJob, GenerativeTrainJob, MemoryJob, TrainJob
from rerank_core.errors import WhyrankError
from serve.args import KeyCommand, ServeCommand

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

JOBS: dict[str, type] = {
    "prepare": PrepareJob,
    "memory": MemoryJob,
    "train": TrainJob,
    "train-generative": GenerativeTrainJob,
    "score": ScoreJob,
    "attribute": AttributeJob,
    "explain": ExplainJob,
    "evaluate": EvaluateJob,
    "compare": CompareJob,
    "report": ReportJob,
    "demo": DemoJob,
}
"""Each job's configuration; `jobs.<name>.run_<name>` (`_` for `-`) runs it, and is imported only then."""

SERVING: dict[str, type] = {"serve": ServeCommand, "key": KeyCommand}
"""What else there is to run: `serve.start.run_<name>`."""

WITH_RECIPE: dict[str, Callable[[TrainJob], TrainJob | MemoryJob | CompareJob]] = {
    "train": lambda recipe: recipe,
    "memory": memory_of,
    "compare": comparison_of,
}
"""The jobs that take `--recipe`, and what each makes of a training run."""

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
    default = _take_recipe(given) if given and given[0] in WITH_RECIPE else None
    choices = [_choice(name, kind, given=given, default=default) for name, kind in (JOBS | SERVING).items()]
    any_job: type[Any] = functools.reduce(operator.or_, choices)
    return tyro.cli(
        any_job,
        prog="whyrank",
        description=DESCRIPTION,
        args=given,
        config=(tyro.conf.OmitSubcommandPrefixes,),
    )


def _take_recipe(given: list[str]) -> TrainJob | MemoryJob | CompareJob | None:
    """Take `--recipe NAME` out of the arguments of a job that trains; return the settings it stands for.

    Exits with 2 where there is no such recipe.
    """
    reader = argparse.ArgumentParser(prog=f"whyrank {given[0]}", add_help=False, allow_abbrev=False)
    reader.add_argument("--recipe", choices=RECIPES)
    found, given[:] = reader.parse_known_args(given)
    if found.recipe is None:
        return None
    recipe = RECIPES[found.recipe](tyro.MISSING, tyro.MISSING)  # the two folders stay to be given
    return WITH_RECIPE[given[0]](recipe)


def _choice(name: str, kind: type, *, given: Sequence[str], default: object) -> Any:
    """Return a job as tyro reads it; its examples belong in its own help, not in the list of all jobs."""
    text = inspect.getdoc(kind) or ""
    text = text if [*given[:1]] == [name] else text.partition("\n")[0]
    if type(default) is kind:
        settings = tyro.conf.subcommand(name, prefix_name=False, description=text, default=default)
    else:
        settings = tyro.conf.subcommand(name, prefix_name=False, description=text)
    return Annotated[kind, settings]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one job; return 0, or 2 where the user can mend what is wrong."""
    prepare_environment()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("whyrank").setLevel(logging.INFO)
    try:
        config = parse(arguments)
        name = next(name for name, kind in (JOBS | SERVING).items() if type(config) is kind)
        module = "serve.start" if name in SERVING else f"jobs.{name.replace('-', '_')}"
        getattr(importlib.import_module(module), f"run_{name.replace('-', '_')}")(config)
    except WhyrankError as error:
        return _refused(str(error))
    except FileNotFoundError as error:
        return _refused(f"{error.filename} is missing; run the job that writes it again")
    except ModuleNotFoundError as error:
        return _refused(
            f"{error.name} is not installed; install Whyrank with the extra that the job needs:"
            " pip install 'whyrank[train,batch,cpu]' (or gpu)"
        )
    return 0


def _refused(message: str) -> int:
    sys.stderr.write(f"whyrank: {message}\n")
    return EXIT_USER_ERROR


if __name__ == "__main__":
    sys.exit(main())
