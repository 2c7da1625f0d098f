"""What a subscription matches: the same as LangGraph's own client lets through."""

from typing import Any, cast

import hypothesis.strategies as st
from hypothesis import given
from langgraph_sdk.stream.subscription import matches_subscription

from muster_agent.streams.subscriptions import Subscription

NAMES = st.sampled_from(["a", "b", "a:1", "a:2", "b:1"])
NAMESPACES = st.lists(NAMES, max_size=3)
METHODS = st.sampled_from(
    ["values", "messages", "lifecycle", "input.requested", "custom", "custom:x", "custom:y"]
)
CHANNELS = st.sets(st.sampled_from(["values", "lifecycle", "input", "custom", "custom:x"]), min_size=1)


@given(
    channels=CHANNELS,
    prefixes=st.none() | st.lists(NAMESPACES, max_size=2),
    depth=st.none() | st.integers(0, 2),
    method=METHODS,
    namespace=NAMESPACES,
)
def test_it_agrees_with_the_client(
    channels: set[str], prefixes: list[list[str]] | None, depth: int | None, method: str, namespace: list[str]
) -> None:
    """An event is sent to a subscriber exactly where his client would keep it."""
    name = method.partition(":")[2]
    data = {"name": name} if name else {}
    event = {"method": method.partition(":")[0], "params": {"namespace": namespace, "data": data}}
    definition: dict[str, Any] = {"channels": list(channels), "namespaces": prefixes, "depth": depth}

    wanted = Subscription(frozenset(channels), prefixes or (), depth).wants(method, namespace)

    assert wanted == matches_subscription(cast("Any", event), cast("Any", definition))


def test_channels_of_later_releases() -> None:
    """A channel that no event has is no error, and a method that nobody knows is sent to whoever names it."""
    subscription = Subscription(frozenset({"dreams"}))

    assert subscription.wants("dreams", [])
    assert not subscription.wants("values", [])
