"""Fields that take a text, several, or tokens instead of text: prompts of completions, inputs of embeddings."""

from typing import Any, cast

from muster_proxy.wire.limits import Token, Tokens
from muster_proxy.wire.strict import invalid, typed


def check_texts(value: str | list[Any], name: str, *, most: int) -> None:
    """Check that a field is a text, a list of texts, tokens, or a list of those.

    Args:
        value: The field's; a list has something in it.
        name: The field's.
        most: How many texts it may have; tokens of one text are bounded by the body's size.

    Raises:
        RequestError: It is something else.
    """
    if isinstance(value, str):
        return
    if count_of(value) > most:
        raise invalid(f"Expected array of length <= {most} for '{name}'.", name)
    match value[0]:
        case str():
            typed(value, list[str], name)
        case list():
            typed(value, list[Tokens], name)
        case _:
            typed(value, list[Token], name)


def count_of(value: str | list[Any]) -> int:
    """How many texts a field has."""
    if isinstance(value, str) or not isinstance(value[0], (str, list)):
        return 1
    return len(cast("list[object]", value))
