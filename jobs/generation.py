"""Structured generation on Ray Data LLM: prompts in, JSON out, in whatever order the engine ends."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jobs.ray_session import Need, device_share, require
from jobs.shards import configure_ray_data
from rerank_core.errors import JobError
from rerank_core.explanation.engine import (
    EngineConfig,
    engine_environment,
    engine_settings,
    sampling_settings,
)
from rerank_core.records import Generation

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

ROWS_PER_BATCH = 16

NO_PROGRESS_TIMEOUT_S = 600.0
MAX_REASON_CHARS = 300

_RAISED = re.compile(r"^(?:\w+\.)*(\w*(?:Error|Exception)): ", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt as token ids, and the JSON schema of its answer; `index` names it in the result."""

    index: int
    prompt_token_ids: Sequence[int]
    schema: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Failure:
    """Why the engine gave no answer to one request."""

    reason: str


def generate(
    requests: Sequence[Request], engine: EngineConfig, *, attempt: int = 1
) -> Iterator[tuple[int, Generation | Failure]]:
    """Yield (index, answer) for every request, each once, batches as they end; see `sampling_settings`.

    The engine takes a GPU where the connected cluster has one, else a CPU. It is the only actor: prompts come
    tokenised and the engine returns text, so that the stages for both stay off.

    Raises:
        ResourceError: the cluster is too small.
        JobError: the engine did not start, died for good, or answered nothing for ten minutes.
    """
    from ray.data.exceptions import ExecutionTimeoutError
    from ray.exceptions import RayError

    share = device_share(1)
    require(Need(num_workers=1, cpus=share.cpus + 1, gpus=share.gpus))
    answers = _pipeline(requests, engine, attempt=attempt, on_gpu=share.gpus > 0)
    try:
        for row in answers.iter_rows():
            yield int(row["index"]), _answer(row)
    except (RayError, ExecutionTimeoutError) as error:
        raise JobError(
            f"the engine failed for good: {failure_reason(str(error))}; run the same command again to resume"
        ) from error


def failure_reason(message: str) -> str:
    """Return the last exception that a message names, on one line, or its beginning where it names none.

    Ray reports a dead actor by one text that holds the traceback of the actor's process.
    """
    raised = list(_RAISED.finditer(message))
    told = message[raised[-1].start(1) :] if raised else message
    return " ".join(told.split())[:MAX_REASON_CHARS]


def _pipeline(requests: Sequence[Request], engine: EngineConfig, *, attempt: int, on_gpu: bool) -> Any:
    import ray.data
    from ray.data.llm import build_processor, vLLMEngineProcessorConfig

    configure_ray_data(no_progress_timeout_s=NO_PROGRESS_TIMEOUT_S)
    processor = build_processor(
        vLLMEngineProcessorConfig(
            model_source=str(engine.model),
            engine_kwargs=engine_settings(engine, on_gpu=on_gpu),
            batch_size=ROWS_PER_BATCH,
            concurrency=1,
            should_continue_on_error=True,
            log_engine_metrics=False,
            chat_template_stage=False,
            tokenize_stage=False,
            detokenize_stage=False,
            placement_group_config=None if on_gpu else {"bundles": [{"CPU": 1}]},
            runtime_env={"env_vars": engine_environment(on_gpu=on_gpu)},
        ),
        preprocess=_Sampling(engine, attempt=attempt),
        postprocess=_kept_columns,
        preprocess_map_kwargs={"num_cpus": 0.25},
        postprocess_map_kwargs={"num_cpus": 0.25},
    )
    rows = [
        {
            "index": item.index,
            "tokenized_prompt": list(item.prompt_token_ids),
            "schema": json.dumps(item.schema),
        }
        for item in requests
    ]
    num_blocks = -(-len(rows) // ROWS_PER_BATCH)
    return processor(ray.data.from_items(rows, override_num_blocks=num_blocks))


class _Sampling:
    """Gives each row its sampling parameters, with its own schema."""

    def __init__(self, engine: EngineConfig, *, attempt: int) -> None:
        self._fixed = sampling_settings(engine, attempt=attempt)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        return {"sampling_params": {**self._fixed, "structured_outputs": {"json": row["schema"]}}}


def _kept_columns(row: dict[str, Any]) -> dict[str, Any]:
    return {
        name: row[name] for name in ("index", "generated_text", "num_input_tokens", "num_generated_tokens")
    }


def _answer(row: Mapping[str, Any]) -> Generation | Failure:
    if row["__inference_error__"]:
        return Failure(failure_reason(row["__inference_error__"]))
    return Generation(row["generated_text"], row["num_input_tokens"], row["num_generated_tokens"])
