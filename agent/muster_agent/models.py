"""Which model the agent thinks with."""

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

    async def get(self) -> str:
        """The name.

        Raises:
            Failure: The proxy cannot be asked or lists no model.
        """
        if self._name is None:
            self._name = await self._first_listed()
        return self._name

    async def _first_listed(self) -> str:
        try:
            listed = (await self._client.models.list()).data
        except openai.OpenAIError as error:
            raise failures.of_model_call(error) from error
        except Exception as error:  # the SDK raises whatever an answer of another shape leads to
            raise failures.unreadable_answer() from error
        if not listed:
            raise failures.no_model()
        return str(listed[0].id)
