"""The sentences of a document that give commands, instead of describing something."""

from __future__ import annotations

import re
from functools import cache

from rerank_core.prompting.render import load_template

_SENTENCE = re.compile(r"(?:[^.!?\n]|\.(?=\S)|\n(?!\s*\n))+(?:[.!?]+|\n\s*\n|\Z)\s*|.", re.DOTALL)


def without_instructions(text: str) -> str:
    """Return a text without its sentences that give commands, or speak of models and their verdicts.

    Neither what a prompt shows nor what an explanation may say comes from such a sentence. A line break does
    not end a sentence, a blank line does. The patterns (`templates/commands.txt`) are English, and know the
    common forms only; a command that they miss still meets the other checks of `grounding`.
    """
    kept = (found.group() for found in _SENTENCE.finditer(text))
    return "".join(sentence for sentence in kept if not _gives_commands(sentence)).strip()


def _gives_commands(sentence: str) -> bool:
    line = " ".join(sentence.split())
    return any(pattern.search(line) for pattern in _commands())


@cache
def _commands() -> tuple[re.Pattern[str], ...]:
    return tuple(re.compile(line, re.IGNORECASE) for line in load_template("commands").splitlines())
