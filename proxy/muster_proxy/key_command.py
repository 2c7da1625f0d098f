"""`muster key`: makes a tenant's API key, and what `muster.yaml` has to have of it."""

import getpass
import sys
from collections.abc import Iterator, Mapping

import yaml
from pydantic import ValidationError

from muster_observability import server
from muster_proxy.keys import MOST_KEY_BYTES, KeySettings, digest_of, is_sendable, new_key

_SHORT = 32
"""Characters. A shorter key has hardly 128 random bits, and its digest could be searched for it."""

_SHOWN_ONCE = (
    "The key is shown this once and kept nowhere: give it to the tenant. muster.yaml takes its digest."
)
_SHORT_KEY = (
    "This key is short: who gets to read muster.yaml may find it by trying. muster key makes a long one."
)


class _UsageError(Exception):
    """What the user gave cannot be used; the message says what is expected, and no key."""


def run_key(options: Mapping[str, object], *, is_given: bool) -> server.ExitCode:
    """Print a new key and the setting that lets it in; or only what the proxy has to know of a given one.

    Args:
        options: Fields of `KeySettings` by the names that the file has, None where not given. Without any, a given
            key's digest is printed alone.
        is_given: Read the key from standard input: an argument could be seen in the list of processes.
    """
    fields = {name: value for name, value in options.items() if value is not None}
    try:
        key = _given_key() if is_given else new_key()
        digest = digest_of(key)
        told = _setting({**fields, "digest": digest}) if fields or not is_given else digest
    except _UsageError as error:
        return server.refuse(error, server.ExitCode.USAGE)
    print(told if is_given else f"{key}\n\n{told}")  # noqa: T201  the command's answer
    _remark(key, is_given=is_given)
    return server.ExitCode.OK


def _remark(key: str, *, is_given: bool) -> None:
    """On stderr, so that the answer can be piped."""
    if not is_given:
        print(_SHOWN_ONCE, file=sys.stderr)  # noqa: T201  likewise
    elif len(key) < _SHORT:
        print(_SHORT_KEY, file=sys.stderr)  # noqa: T201  likewise


def _given_key() -> str:
    key = (getpass.getpass("Key: ") if sys.stdin.isatty() else _piped()).strip(" \t\r\n")
    if not is_sendable(key):
        raise _UsageError(
            f"expected one key on standard input: 1 to {MOST_KEY_BYTES} visible ASCII characters without spaces"
        )
    if key.startswith("sha256:"):
        # Its digest in the configuration would make a key of what another configuration shows.
        raise _UsageError("that is a digest already; expected the key that it was made from")
    return key


def _piped() -> str:
    """What comes on standard input, as far as a key can be that long; what is no ASCII does not become any."""
    return sys.stdin.buffer.read(2 * MOST_KEY_BYTES).decode("latin-1")


def _setting(fields: dict[str, object]) -> str:
    """The YAML to paste, without what is as it would be anyway."""
    try:
        key = KeySettings.model_validate(fields)
    except ValidationError as error:
        raise _UsageError("; ".join(_faults(error))) from None
    entry = key.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    return yaml.safe_dump({"proxy": {"keys": [entry]}}, sort_keys=False).rstrip()


def _faults(error: ValidationError) -> Iterator[str]:
    for fault in error.errors(include_url=False, include_context=False, include_input=False):
        name = str(fault["loc"][0])
        yield f"{'TENANT' if name == 'tenant' else f'--{name}'}: {fault['msg']}"
