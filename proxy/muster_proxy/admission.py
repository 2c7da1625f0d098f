"""Lets requests in: whose they are is decided before anything else of them is read."""

import time
from collections.abc import Sequence
from typing import Any

from muster_observability import logs
from muster_proxy.failures import Reason, RequestError
from muster_proxy.keys import BadKeyLimit, Door, Identity, OpenDoor

_log = logs.get("proxy")


class Admission:
    """Asks the door, and answers who comes with too many wrong keys.

    Args:
        door: Knows the keys.
    """

    def __init__(self, door: Door) -> None:
        self._door = door
        self._bad_keys = BadKeyLimit()

    @property
    def is_open(self) -> bool:
        """Whether everybody is let in: then a tenant is no more than the digest of what was sent for a key."""
        return isinstance(self._door, OpenDoor)

    def identify(
        self, authorization: str | None, api_key: str | None, client: Sequence[Any] | None
    ) -> Identity:
        """Whose request it is.

        Args:
            authorization: The header of that name.
            api_key: The header `x-api-key`.
            client: Address and port of the other end, as ASGI has them.

        Raises:
            RequestError: Nobody's (`INVALID_API_KEY`, or `TOO_MANY_BAD_KEYS`), or that cannot be told just now
                (`AUTHENTICATION_UNAVAILABLE`): what is not known is never let in.
        """
        try:
            return self._door.identify(authorization, api_key)
        except RequestError:
            self._count(str(client[0]) if client else "")
            raise
        except Exception as error:  # noqa: BLE001  whatever it is, it is no pass
            # Its words and its trace may hold the key.
            _log.error("a key could not be checked", error=type(error).__name__)
            raise RequestError(Reason.AUTHENTICATION_UNAVAILABLE) from None

    def _count(self, address: str) -> None:
        """Count a key that was refused.

        Raises:
            RequestError: There were too many (`TOO_MANY_BAD_KEYS`).
        """
        now_s = time.monotonic()
        retry_after_s = self._bad_keys.retry_after_s(address, now_s)
        if retry_after_s is not None:
            raise RequestError(Reason.TOO_MANY_BAD_KEYS, retry_after_s=retry_after_s)
        self._bad_keys.refused(address, now_s)
