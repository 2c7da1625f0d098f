"""Threads, runs, their events, tool calls, responses, and idempotency keys."""
# SQLAlchemy leaves the type of a column of any JSON open.
# pyright: reportUnknownArgumentType=false

import sqlalchemy as sa
from alembic import op

from muster_storage import Json

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "agent_threads",
        sa.Column("thread_id", sa.Text(), nullable=False),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("updated_at", sa.Double(), nullable=False),
        sa.Column("state_updated_at", sa.Double(), nullable=False),
        sa.Column("metadata", Json(), nullable=False),
        sa.Column("config", Json(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("values", Json(), nullable=True),
        sa.Column("interrupts", Json(), nullable=True),
        sa.Column("error", Json(), nullable=True),
        sa.Column("is_temporary", sa.Boolean(), nullable=False),
        sa.Column("running_run_id", sa.Text(), nullable=True),
        sa.Column("fence", sa.BigInteger(), nullable=False),
        sa.Column("lease_owner", sa.Text(), nullable=True),
        sa.Column("lease_until", sa.Double(), nullable=True),
        sa.Column("events_before", sa.BigInteger(), nullable=False),
        sa.Column("approval_due", sa.Double(), nullable=True),
        sa.PrimaryKeyConstraint("thread_id"),
    )
    op.create_index("agent_threads_approvals", "agent_threads", ["approval_due"], unique=False)
    op.create_index("agent_threads_leased", "agent_threads", ["lease_until"], unique=False)
    op.create_index("agent_threads_of_tenant", "agent_threads", ["tenant", "updated_at"], unique=False)
    op.create_table(
        "agent_responses",
        sa.Column("response_id", sa.Text(), nullable=False),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("thread_id", sa.Text(), nullable=False),
        sa.Column("run_id", sa.Text(), nullable=False),
        sa.Column("checkpoint_id", sa.Text(), nullable=True),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("is_finished", sa.Boolean(), nullable=False),
        sa.Column("asked", Json(), nullable=False),
        sa.Column("body", Json(), nullable=False),
        sa.ForeignKeyConstraint(["thread_id"], ["agent_threads.thread_id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("response_id"),
    )
    op.create_index("agent_responses_of_run", "agent_responses", ["run_id"], unique=False)
    op.create_index("agent_responses_of_thread", "agent_responses", ["thread_id"], unique=False)
    op.create_table(
        "agent_runs",
        sa.Column(
            "seq", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False
        ),
        sa.Column("run_id", sa.Text(), nullable=False),
        sa.Column("thread_id", sa.Text(), nullable=False),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("assistant_id", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("metadata", Json(), nullable=False),
        sa.Column("kwargs", Json(), nullable=False),
        sa.Column("multitask_strategy", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("updated_at", sa.Double(), nullable=False),
        sa.Column("not_before", sa.Double(), nullable=False),
        sa.Column("timeout_s", sa.Double(), nullable=False),
        sa.Column("started_at", sa.Double(), nullable=True),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("stalls", sa.Integer(), nullable=False),
        sa.Column("progress", sa.Text(), nullable=True),
        sa.Column("cancel", sa.Text(), nullable=True),
        sa.Column("keeps_input", sa.Boolean(), nullable=False),
        sa.Column("events_before", sa.BigInteger(), nullable=False),
        sa.Column("sealed_key", sa.LargeBinary(), nullable=True),
        sa.Column("request_id", sa.Text(), nullable=False),
        sa.Column("error", Json(), nullable=True),
        sa.ForeignKeyConstraint(["thread_id"], ["agent_threads.thread_id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("seq"),
        sa.UniqueConstraint("run_id"),
        sqlite_autoincrement=True,
    )
    op.create_index("agent_runs_by_status", "agent_runs", ["status", "seq"], unique=False)
    op.create_index("agent_runs_of_thread", "agent_runs", ["thread_id", "seq"], unique=False)
    op.create_table(
        "agent_tool_calls",
        sa.Column("thread_id", sa.Text(), nullable=False),
        sa.Column("message_id", sa.Text(), nullable=False),
        sa.Column("call_id", sa.Text(), nullable=False),
        sa.Column("started_at", sa.Double(), nullable=False),
        sa.Column("result", Json(), nullable=True),
        sa.ForeignKeyConstraint(["thread_id"], ["agent_threads.thread_id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("thread_id", "message_id", "call_id"),
    )
    op.create_table(
        "agent_events",
        sa.Column("run_id", sa.Text(), nullable=False),
        sa.Column("seq", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("protocol", sa.SmallInteger(), nullable=False),
        sa.Column("event", sa.Text(), nullable=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["agent_runs.run_id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("run_id", "seq"),
    )
    op.create_table(
        "agent_idempotency",
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("run_id", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["agent_runs.run_id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("tenant", "key"),
    )
    op.create_index("agent_idempotency_of_run", "agent_idempotency", ["run_id"], unique=False)
