"""A caller's key while its run is not over: encrypted, because the run may go on in another process.

A run that is resumed after a crash makes model calls for its caller, whose key must be known then. It is stored under a
secret that is not in the database, and erased when the run has ended.
"""

import os
from pathlib import Path

from cryptography.fernet import Fernet, InvalidToken

from muster_observability import logs

_log = logs.get("agent")


class Seals:
    """Encrypts and decrypts keys.

    Args:
        secret: 32 bytes as URL-safe base64, as `Fernet.generate_key` makes them.

    Raises:
        ValueError: The secret is none.
    """

    def __init__(self, secret: str) -> None:
        self._fernet = Fernet(secret)

    def seal(self, key: str | None) -> bytes | None:
        """The key as it may be stored."""
        return None if key is None else self._fernet.encrypt(key.encode(errors="surrogateescape"))

    def open(self, sealed: bytes | None) -> str | None:
        """The key; None where there is none, or where it was sealed under another secret."""
        if sealed is None:
            return None
        try:
            return self._fernet.decrypt(bytes(sealed)).decode(errors="surrogateescape")
        except InvalidToken:
            _log.warning("a run's key was stored under another secret; its model calls go without a key")
            return None


def secret_in(path: Path) -> str:
    """The secret in this file, which is made if there is none, for its owner alone to read.

    Raises:
        OSError: The file cannot be read or made.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return path.read_text(encoding="ascii").strip()
    with open(descriptor, "wb") as file:  # noqa: PTH123 - a descriptor has no path
        secret = Fernet.generate_key()
        file.write(secret + b"\n")
        file.flush()
        os.fsync(file.fileno())
    return secret.decode()
