"""By which names the service may be asked for: against DNS rebinding.

A page's name can become this machine's address once the page is loaded. Then it is the service's own page for its
browser, which still says by which name it asks, in `Host`. So a name that anybody may own in public DNS has to be
listed; where keys are needed, one that is good does as well, for such a page has none.
"""

import ipaddress
from collections.abc import Collection
from urllib.parse import urlsplit

_NOBODYS = (".localhost", ".local", ".internal", ".svc")
"""Ends of names that cannot be had in public DNS: of this machine and its network, of containers and clusters."""


def is_own(host: str | None, listed: Collection[str]) -> bool:
    """Whether the service may be known by a name: a listed one, or one that nobody can own in public DNS.

    Args:
        host: The header `Host`, with a port or without; None (HTTP/1.0) comes from no browser.
        listed: Names in lower case.
    """
    if host is None:
        return True
    try:
        name = (urlsplit(f"//{host}").hostname or "").rstrip(".")
    except ValueError:  # such as `[::1`
        return False
    return name in listed or "." not in name or name.endswith(_NOBODYS) or _is_address(name)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
