"""What runs have found when they began, threads whose states are still to go, and indexes for what grows."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Make the tables and the indexes."""
    op.create_table(
        "agent_run_starts",
        sa.Column("run_id", sa.Text(), nullable=False),
        sa.Column("pending", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["agent_runs.run_id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("run_id"),
    )
    op.create_table(
        "agent_gone_threads",
        sa.Column("thread_id", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("thread_id"),
    )
    op.create_index("agent_runs_of_thread_by_status", "agent_runs", ["thread_id", "status", "seq"])
    op.create_index("agent_runs_updated", "agent_runs", ["updated_at"])
    op.create_index("agent_threads_changed", "agent_threads", ["state_updated_at"])
    sealed = sa.text("sealed_key IS NOT NULL")
    op.create_index(
        "agent_runs_sealed", "agent_runs", ["thread_id"], sqlite_where=sealed, postgresql_where=sealed
    )
    temporary = sa.text("is_temporary")
    op.create_index(
        "agent_threads_temporary",
        "agent_threads",
        ["updated_at"],
        sqlite_where=temporary,
        postgresql_where=temporary,
    )
