"""Templates with named slots, filled with untrusted text that stays data."""

from __future__ import annotations

import re
import unicodedata
from importlib.resources import files
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_SLOT = re.compile(r"\{([a-z][a-z_]*)\}")
# What chat formats mark turns with, whatever the model: <|im_start|>, <s>, [INST], <<SYS>>, <start_of_turn>.
_TURN_MARK = re.compile(r"<\|[^<>|\s]{1,40}\|>|</?s>|\[/?INST\]|<</?SYS>>|</?(?:start|end)_of_turn>")


def load_template(name: str) -> str:
    """Return the text of `templates/<name>.txt`, without the line break at its end."""
    path = files("rerank_core.prompting") / "templates" / f"{name}.txt"
    return path.read_text(encoding="utf-8").rstrip("\n")


def render(template: str, slots: Mapping[str, str]) -> str:
    """Fill every `{slot}` of a template in one pass, so that braces inside a value stay text.

    A slot is a lower-case name in braces; any other brace of the template stays as it is.

    Raises:
        ValueError: the template names a slot that is not given, or the other way round.
    """
    wanted = set(_SLOT.findall(template))
    if wanted != set(slots):
        raise ValueError(f"template and values differ in the slots {sorted(wanted ^ set(slots))}")
    return _SLOT.sub(lambda match: slots[match.group(1)], template)


def neutralise(text: str, *, special_tokens: Iterable[str] = ()) -> str:
    """Return untrusted text on one line that can neither end its turn nor hide something from a reader.

    Control characters, line breaks and lone surrogates become a space; invisible characters (zero width,
    direction marks, private use) go; the turn marks of common chat formats and the given special tokens of a
    tokenizer are broken by a space after their first character, so that no tokenizer reads them as one token.
    """
    visible = "".join(_visible(character) for character in text)
    return break_turn_marks(" ".join(visible.split()), special_tokens=special_tokens)


def break_turn_marks(text: str, *, special_tokens: Iterable[str] = ()) -> str:
    """Return a text that cannot end its turn, and is otherwise as it was.

    The turn marks of common chat formats and the given special tokens of a tokenizer are broken by a space
    after their first character, so that no tokenizer reads them as one token. A token of white space alone
    ends no turn, and stays.
    """
    text = _TURN_MARK.sub(lambda match: _broken(match.group()), text)
    for token in sorted(set(special_tokens), key=len, reverse=True):
        if len(token) > 1 and not token.isspace():
            text = text.replace(token, _broken(token))
    return text


def _visible(character: str) -> str:
    category = unicodedata.category(character)
    if category in {"Cc", "Cs", "Zl", "Zp"}:
        return " "
    return "" if category in {"Cf", "Co", "Cn"} else character


def _broken(token: str) -> str:
    return f"{token[0]} {token[1:]}"
