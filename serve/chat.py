"""Conversations with the explainer's language model, as OpenAI's clients hold them and sampled as we say."""

from __future__ import annotations

import asyncio
import time
import uuid
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from rerank_core.prompting.render import break_turn_marks
from serve.deadlines import until
from serve.errors import RequestTimeoutError, TooLargeError, UnavailableError, UnknownModelError
from serve.lists import FEW_CHARACTERS
from serve.schemas import (
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatModelObject,
    ChatReply,
    ChatResponse,
    ChatUsage,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence

    from serve.admission import TokenAdmission
    from serve.schemas import ChatMessage, ChatRequest

MESSAGE_TOKENS = 16
"""What a chat format adds to a message, generously."""

FORMAT_TOKENS = 64
"""What a chat format adds to a conversation, generously; some begin it with instructions of their own."""

MAX_TOKEN_CHARACTERS = 64
"""What a token of a text holds on average, very generously: longer texts are refused before they are read."""

RETRY_AFTER_S = 2


@dataclass(frozen=True, slots=True)
class ChatTask:
    """A conversation, as (role, text), that a language model is to continue."""

    messages: tuple[tuple[str, str], ...]
    max_tokens: int


@dataclass(frozen=True, slots=True)
class ChatPiece:
    """Further words; the last ones say why they are the last: `stop`, or `length` at the limit of tokens."""

    text: str
    finish_reason: str | None


@dataclass(frozen=True, slots=True)
class ChatCost:
    """Tokens that a conversation had, and that were written."""

    num_prompt_tokens: int
    num_new_tokens: int


class ChatModel(Protocol):
    """A language model that continues conversations, in this process or behind a handle."""

    def converse(self, task: ChatTask) -> AsyncGenerator[ChatPiece | ChatCost, None]:
        """Yield the pieces of one reply, and at last its cost."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatLimits:
    """What one conversation may ask for."""

    max_model_tokens: int
    max_new_tokens: int
    timeout_s: float


class ChatService:
    """Answers OpenAI's clients where that is enabled: nothing of theirs but messages reaches the model."""

    def __init__(  # noqa: PLR0913 - one argument per part
        self,
        model: ChatModel | None,
        *,
        name: str,
        special_tokens: Sequence[str],
        num_tokens: Callable[[str], int],
        admission: TokenAdmission,
        limits: ChatLimits,
    ) -> None:
        """Take a model, or None where chat is not enabled; `num_tokens` counts a text's tokens."""
        self._model = model
        self._name = name
        self._special_tokens = tuple(special_tokens)
        self._num_tokens = num_tokens
        self._admission = admission
        self._limits = limits
        self._created = int(time.time())

    def models(self) -> list[ChatModelObject]:
        """Return what can be asked for by name: the language model where chat is enabled, else nothing."""
        if self._model is None:
            return []
        limit = self._limits.max_model_tokens
        return [ChatModelObject(id=self._name, created=self._created, max_length=limit)]

    async def complete(self, request: ChatRequest) -> ChatResponse:
        """Return the reply to a conversation.

        Raises:
            UnknownModelError: chat is not enabled, or another model is asked for.
            TooLargeError: the conversation is longer than the model reads.
            TooManyRequestsError: too many tokens are under way.
            RequestTimeoutError: the reply took too long.
            UnavailableError: the model failed.
        """
        told = [piece async for piece in self._told(request)]
        pieces = [piece for piece in told if isinstance(piece, ChatPiece)]
        return ChatResponse(
            id=_new_id(),
            created=int(time.time()),
            model=self._name,
            choices=[
                ChatChoice(
                    message=ChatReply(content="".join(piece.text for piece in pieces)),
                    finish_reason=next(
                        piece.finish_reason for piece in reversed(pieces) if piece.finish_reason
                    ),
                )
            ],
            usage=next((_usage(cost) for cost in told if isinstance(cost, ChatCost)), ChatUsage()),
        )

    async def chunks(self, request: ChatRequest) -> AsyncIterator[ChatChunk]:
        """Yield a reply as it is written; raises as `complete` does, before the first piece where it can."""
        head = {"id": _new_id(), "created": int(time.time()), "model": self._name}
        is_first = True
        async for told in self._told(request):
            if isinstance(told, ChatCost):
                if request.stream_options is not None and request.stream_options.include_usage:
                    yield ChatChunk.model_validate({**head, "choices": [], "usage": _usage(told)})
                continue
            delta = {"role": "assistant"} if is_first else {}
            is_first = False
            choice = ChatChunkChoice(delta=delta | {"content": told.text}, finish_reason=told.finish_reason)
            yield ChatChunk.model_validate({**head, "choices": [choice]})

    async def _told(self, request: ChatRequest) -> AsyncIterator[ChatPiece | ChatCost]:
        """Yield what the model says, within its time and its share of the work."""
        model = self._require_served(request.model)
        task, cost = await self._costed(request)
        with self._admission.work_of(cost):
            deadline = time.monotonic() + self._limits.timeout_s
            is_whole = False
            try:
                async with aclosing(model.converse(task)) as told:
                    async for piece in until(deadline, told):
                        if isinstance(piece, ChatPiece):
                            is_whole = is_whole or piece.finish_reason is not None
                        elif not is_whole:
                            break
                        yield piece
            except TimeoutError as error:
                raise RequestTimeoutError(
                    f"the reply was not written within {self._limits.timeout_s:g} s",
                    code="timeout",
                    remedy="send the request again, or with a smaller max_tokens",
                ) from error
            if not is_whole:
                raise UnavailableError(
                    "the model gave no whole reply",
                    code="no_reply",
                    remedy="send the request again after the time in Retry-After",
                    retry_after_s=RETRY_AFTER_S,
                )

    def _require_served(self, model: str | None) -> ChatModel:
        if self._model is None:
            raise UnknownModelError(
                "chat is not enabled on this server",
                code="chat_not_enabled",
                remedy="start it with --explainer MODEL --chat",
            )
        if model is not None and model != self._name:
            raise UnknownModelError(
                f"no model that chats is called {model[:200]!r} here",
                code="model_not_found",
                remedy=f"ask for {self._name!r}, or leave `model` out",
                param="model",
            )
        return self._model

    async def _costed(self, request: ChatRequest) -> tuple[ChatTask, int]:
        """Return what is asked of the model, and the bound on the tokens of conversation and reply.

        What would end a message's turn is broken.

        Raises:
            TooLargeError: it is more than the model reads.
        """
        told = [(one.role, _text_of(one)) for one in request.messages]
        asked = request.max_completion_tokens or request.max_tokens or self._limits.max_new_tokens
        max_tokens = min(asked, self._limits.max_new_tokens)
        around = FORMAT_TOKENS + MESSAGE_TOKENS * len(told) + max_tokens

        def costed() -> tuple[ChatTask, int]:
            broken = [break_turn_marks(text, special_tokens=self._special_tokens) for _, text in told]
            messages = tuple((role, text) for (role, _), text in zip(told, broken, strict=True))
            return ChatTask(messages, max_tokens), around + sum(map(self._num_tokens, broken))

        num_characters = sum(len(text) for _, text in told)
        self._require_readable(around + num_characters // MAX_TOKEN_CHARACTERS)
        task, cost = costed() if num_characters <= FEW_CHARACTERS else await asyncio.to_thread(costed)
        self._require_readable(cost)
        return task, cost

    def _require_readable(self, cost: int) -> None:
        if cost > self._limits.max_model_tokens:
            raise TooLargeError(
                f"the conversation and its reply may have {cost} tokens, and the model reads"
                f" {self._limits.max_model_tokens}",
                code="conversation_too_long",
                remedy="send shorter or fewer messages, or a smaller max_tokens",
                param="messages",
            )


def _text_of(message: ChatMessage) -> str:
    parts = message.content if isinstance(message.content, list) else [message.content]
    return "".join(part if isinstance(part, str) else part.text for part in parts)


def _usage(cost: ChatCost) -> ChatUsage:
    return ChatUsage(
        prompt_tokens=cost.num_prompt_tokens,
        completion_tokens=cost.num_new_tokens,
        total_tokens=cost.num_prompt_tokens + cost.num_new_tokens,
    )


def _new_id() -> str:
    return f"chatcmpl-{uuid.uuid4().hex}"
