"""One store for all tenants: each sees a part of it as if it were the whole."""

from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import quote

from langgraph.store.base import (
    BaseStore,
    GetOp,
    Item,
    ListNamespacesOp,
    MatchCondition,
    Op,
    PutOp,
    Result,
    SearchOp,
)


class TenantStore(BaseStore):
    """A store whose namespaces begin with a tenant's name, which its users do not see.

    Args:
        inner: Where items are.
        tenant: Tells whose part is meant at the moment of a call.
    """

    supports_ttl = False

    def __init__(self, inner: BaseStore, tenant: Callable[[], str]) -> None:
        self._inner = inner
        self._tenant = tenant

    def batch(self, ops: Iterable[Op]) -> list[Result]:
        """Carry out several operations; from another thread than the event loop's."""
        tenant = _label(self._tenant())
        return [_outside(result) for result in self._inner.batch([_inside(op, tenant) for op in ops])]

    async def abatch(self, ops: Iterable[Op]) -> list[Result]:
        """Carry out several operations."""
        tenant = _label(self._tenant())
        return [_outside(result) for result in await self._inner.abatch([_inside(op, tenant) for op in ops])]


def _label(tenant: str) -> str:
    """A tenant as part of a namespace, where nothing may be empty or have a dot."""
    return "tenant:" + quote(tenant, safe="").replace(".", "%2E")


def _inside(op: Op, tenant: str) -> Op:
    match op:
        case GetOp() | PutOp():
            return op._replace(namespace=(tenant, *op.namespace))
        case SearchOp():
            return op._replace(namespace_prefix=(tenant, *op.namespace_prefix))
        case ListNamespacesOp():
            return _namespaces_inside(op, tenant)
        case _:
            raise TypeError(f"unknown operation {type(op).__name__}")


def _namespaces_inside(op: ListNamespacesOp, tenant: str) -> ListNamespacesOp:
    given = op.match_conditions or ()
    prefixes = [condition for condition in given if condition.match_type == "prefix"]
    others = [condition for condition in given if condition.match_type != "prefix"]
    conditions = [condition._replace(path=(tenant, *condition.path)) for condition in prefixes] or [
        MatchCondition("prefix", (tenant,))
    ]
    depth = None if op.max_depth is None else op.max_depth + 1
    return op._replace(match_conditions=(*conditions, *others), max_depth=depth)


def _outside(result: Result) -> Result:
    match result:
        case Item():
            return _stripped(result)
        case None:
            return None
        case _:
            items: list[Any] = list(result)
            return [item[1:] if isinstance(item, tuple) else _stripped(item) for item in items]


def _stripped(item: Any) -> Any:  # noqa: ANN401 - either of two kinds of item, and the same comes back
    item.namespace = item.namespace[1:]
    return item
