"""What the agent service stores, but for checkpoints and the store, whose tables are LangGraph's.

Times are seconds since 1970 by the database's clock. Identifiers are text.
"""

from pathlib import Path

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    Table,
    Text,
)

from muster_storage import Json, Schema

SCHEMA = Schema("agent", Path(__file__).parent / "migrations", "0003")

METADATA = MetaData()

THREADS = Table(
    "agent_threads",
    METADATA,
    Column("thread_id", Text, primary_key=True),
    Column("tenant", Text, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("updated_at", Double, nullable=False),
    Column("state_updated_at", Double, nullable=False),
    Column("metadata", Json, nullable=False),
    Column("config", Json, nullable=False),
    Column("status", Text, nullable=False),  # idle, busy, interrupted, error
    Column("values", Json),  # the state's values after the last run, for lists
    Column("interrupts", Json),
    Column("error", Json),
    Column("is_temporary", Boolean, nullable=False),  # made for one run, and goes with it
    # The lease: at most one run at a time, owned by one process until then. Each owner has a higher fence than every
    # one before, and writes nothing when the row has another.
    Column("running_run_id", Text),
    Column("fence", BigInteger, nullable=False),
    Column("lease_owner", Text),
    Column("lease_until", Double),
    Column("approval_due", Double),  # when what waits for a person is denied
)
Index("agent_threads_of_tenant", THREADS.c.tenant, THREADS.c.updated_at)
Index("agent_threads_changed", THREADS.c.state_updated_at)
Index("agent_threads_leased", THREADS.c.lease_until)
Index("agent_threads_approvals", THREADS.c.approval_due)
Index(
    "agent_threads_temporary",
    THREADS.c.updated_at,
    sqlite_where=THREADS.c.is_temporary,
    postgresql_where=THREADS.c.is_temporary,
)

GONE_THREADS = Table(
    "agent_gone_threads",
    METADATA,
    Column("thread_id", Text, primary_key=True),  # deleted, and its states are still to go
)

RUNS = Table(
    "agent_runs",
    METADATA,
    # SQLite counts up a primary key of this very type alone.
    Column("seq", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
    Column("run_id", Text, nullable=False, unique=True),
    Column("thread_id", Text, ForeignKey(THREADS.c.thread_id, ondelete="CASCADE"), nullable=False),
    Column("tenant", Text, nullable=False),
    Column("assistant_id", Text, nullable=False),
    Column("status", Text, nullable=False),  # pending, running, success, error, timeout, interrupted
    Column("metadata", Json, nullable=False),
    Column("kwargs", Json, nullable=False),  # what was asked for
    Column("multitask_strategy", Text, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("updated_at", Double, nullable=False),
    Column("not_before", Double, nullable=False),
    Column("timeout_s", Double, nullable=False),
    Column("started_at", Double),  # by its first attempt: its deadline counts from here
    Column("attempt", Integer, nullable=False),
    Column("stalls", Integer, nullable=False),  # attempts since its last new checkpoint
    Column("progress", Text),  # its newest checkpoint when it was last claimed
    Column("cancel", Text),  # interrupt or rollback: asked for
    Column("keeps_input", Boolean, nullable=False),  # cancelled, its input still enters the thread
    Column("sealed_key", LargeBinary),  # the caller's key, encrypted, until the run has ended
    Column("request_id", Text, nullable=False),
    Column("error", Json),
    # A number is not given again when its run is deleted: clients come back with numbers of events.
    sqlite_autoincrement=True,
)
Index("agent_runs_of_thread", RUNS.c.thread_id, RUNS.c.seq)
Index("agent_runs_of_thread_by_status", RUNS.c.thread_id, RUNS.c.status, RUNS.c.seq)
Index("agent_runs_by_status", RUNS.c.status, RUNS.c.seq)
Index("agent_runs_updated", RUNS.c.updated_at)
Index(
    "agent_runs_sealed",
    RUNS.c.thread_id,
    sqlite_where=RUNS.c.sealed_key.is_not(None),
    postgresql_where=RUNS.c.sealed_key.is_not(None),
)

STARTS = Table(
    "agent_run_starts",
    METADATA,
    # Of runs that go on from what is there: an answer to a question, for one.
    Column("run_id", Text, ForeignKey(RUNS.c.run_id, ondelete="CASCADE"), primary_key=True),
    Column("pending", LargeBinary, nullable=False),  # what stood beside the checkpoint where the run began
)

EVENTS = Table(
    "agent_events",
    METADATA,
    Column("run_id", Text, ForeignKey(RUNS.c.run_id, ondelete="CASCADE"), primary_key=True),
    Column("seq", BigInteger, primary_key=True, autoincrement=False),  # from 1, without gaps
    Column("protocol", SmallInteger, nullable=False),  # 1 of runs, 2 of threads
    Column("event", Text, nullable=False),
    Column("data", LargeBinary, nullable=False),  # JSON as it goes out
)

TOOL_CALLS = Table(
    "agent_tool_calls",
    METADATA,
    Column("thread_id", Text, ForeignKey(THREADS.c.thread_id, ondelete="CASCADE"), primary_key=True),
    Column("message_id", Text, primary_key=True),  # of the model's message that asks for it
    Column("call_id", Text, primary_key=True),
    Column("started_at", Double, nullable=False),
    Column("result", Json),  # unknown until it has returned
)

RESPONSES = Table(
    "agent_responses",
    METADATA,
    Column("response_id", Text, primary_key=True),
    Column("tenant", Text, nullable=False),
    Column("thread_id", Text, ForeignKey(THREADS.c.thread_id, ondelete="CASCADE"), nullable=False),
    Column("run_id", Text, nullable=False),
    Column("checkpoint_id", Text),  # where the thread was when it ended: what the next one continues
    Column("created_at", Double, nullable=False),
    Column("is_finished", Boolean, nullable=False),  # until then the run's events are what it is read from
    Column("asked", Json, nullable=False),  # the input items, and how the run is told
    Column("body", Json, nullable=False),
)
Index("agent_responses_of_thread", RESPONSES.c.thread_id)
Index("agent_responses_of_run", RESPONSES.c.run_id)

IDEMPOTENCY = Table(
    "agent_idempotency",
    METADATA,
    Column("tenant", Text, primary_key=True),
    Column("key", Text, primary_key=True),
    Column("run_id", Text, ForeignKey(RUNS.c.run_id, ondelete="CASCADE"), nullable=False),
)
Index("agent_idempotency_of_run", IDEMPOTENCY.c.run_id)
