"""Which model the agents think with."""

from typing import Any, cast

import openai

from muster_agent import failures


class ModelName:
    """The model's name: the configured one, or the first that the proxy lists.

    The proxy is asked when the name is first needed, so that the agent may start before it, and is not asked
    again once it has answered.

    Args:
        configured: The operator's choice, if any.
        client: How to ask the proxy.
    """

    def __init__(self, configured: str | None, client: openai.AsyncOpenAI) -> None:
        self._name = configured
        self._client = client
        self._context_tokens: int | None = None
        self._has_asked = False

    async def get(self) -> str:
        """The name.

        Raises:
            Failure: The proxy cannot be asked or lists no model.
        """
        if self._name is None:
            self._name = str((await self._listed())[0].id)
        return self._name

    async def context_tokens(self) -> int | None:
        """How many tokens the model's context has; None where the proxy does not tell.

        Raises:
            Failure: The proxy cannot be asked or lists no model.
        """
        if not self._has_asked:
            name = await self.get()
            card = next((card for card in await self._listed() if card.id == name), None)
            self._context_tokens = None if card is None else _context_tokens(card.model_dump())
            self._has_asked = True
        return self._context_tokens

    async def _listed(self) -> list[Any]:
        try:
            listed = (await self._client.models.list()).data
        except openai.OpenAIError as error:
            raise failures.of_model_call(error) from error
        except Exception as error:  # the SDK raises whatever an answer of another shape leads to
            raise failures.unreadable_answer() from error
        if not listed:
            raise failures.no_model()
        return list(listed)


def _context_tokens(card: dict[str, Any]) -> int | None:
    """What vLLM calls `max_model_len`, and llama.cpp `meta.n_ctx`."""
    meta: Any = card.get("meta")
    told: Any = card.get("max_model_len")
    if told is None and isinstance(meta, dict):
        told = cast("dict[str, Any]", meta).get("n_ctx")
    return told if isinstance(told, int) and told > 0 else None
