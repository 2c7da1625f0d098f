"""Opening checkpoints and the store where the service's database is."""

import asyncio
import importlib
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import make_url

from muster_agent import identity
from muster_agent.checkpoints.saver import Saver
from muster_agent.checkpoints.sqlite import open_sqlite
from muster_agent.checkpoints.tenant_store import TenantStore

if TYPE_CHECKING:
    from langgraph.store.base import BaseStore


@dataclass(frozen=True, slots=True)
class Memory:
    """What graphs remember.

    Attributes:
        saver: States of threads.
        store: Items beyond threads, of all tenants.
    """

    saver: Saver
    store: "BaseStore"


@asynccontextmanager
async def open_memory(url: str) -> AsyncGenerator[Memory]:
    """Open what belongs to the service's database at `url`: files beside a SQLite file, else the same database."""
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite":
        path = Path(str(parsed.database))
        async with open_sqlite(path.with_name(f"{path.stem}-checkpoints{path.suffix}")) as (saver, store):
            yield Memory(saver, TenantStore(store, identity.tenant))
        return
    # psycopg is in the extra `postgres`; a thread, because importing reads files.
    postgres = await asyncio.to_thread(importlib.import_module, "muster_agent.checkpoints.postgres")
    plain = parsed.set(drivername="postgresql").render_as_string(hide_password=False)
    async with postgres.open_postgres(plain) as (saver, store):
        yield Memory(saver, TenantStore(store, identity.tenant))
