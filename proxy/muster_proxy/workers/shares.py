"""Divides a proxy's limits among its workers, so that the totals are what is configured."""

from muster_proxy.settings import ConfigurationError, ProxySettings, UpstreamSettings

_DIVIDED = ("max_waiting", "max_waiting_bytes", "batch_max_waiting", "batch_max_waiting_bytes")


def shares(settings: ProxySettings) -> list[ProxySettings]:
    """The settings of each worker; with one worker, the settings as they are.

    Raises:
        ConfigurationError: A limit is lower than the number of workers, so that one of them would have nothing.
    """
    count = settings.workers
    if count == 1:
        return [settings]
    for name in _DIVIDED:
        _check(f"proxy.{name}", getattr(settings, name), count)
    for place, upstream in enumerate(settings.upstreams):
        if upstream.limit is not None:
            _check(f"proxy.upstreams.{place}.limit", upstream.limit, count)
    return [_share(settings, index) for index in range(count)]


def _check(name: str, total: int, count: int) -> None:
    if total < count:
        raise ConfigurationError(
            f"{name}: {total} cannot be divided among {count} workers; expected {count} or more, or fewer workers"
        )


def _share(settings: ProxySettings, index: int) -> ProxySettings:
    count = settings.workers
    divided: dict[str, object] = {name: _part(getattr(settings, name), index, count) for name in _DIVIDED}
    upstreams = [_upstream_share(each, index, count) for each in settings.upstreams]
    return settings.model_copy(update={**divided, "upstreams": upstreams})


def _upstream_share(upstream: UpstreamSettings, index: int, count: int) -> UpstreamSettings:
    if upstream.limit is None:
        return upstream
    return upstream.model_copy(update={"limit": _part(upstream.limit, index, count)})


def _part(total: int, index: int, count: int) -> int:
    """The parts differ by 1 at most, and their sum is the total."""
    return total // count + (index < total % count)
