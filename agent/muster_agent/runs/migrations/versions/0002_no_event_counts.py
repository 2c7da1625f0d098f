"""Threads and runs no longer count the events before them: nothing asks for it."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Drop the counts, where there are any: for a while revision 0001 made none."""
    found = sa.inspect(op.get_bind())
    for table in ("agent_threads", "agent_runs"):
        if any(column["name"] == "events_before" for column in found.get_columns(table)):
            op.drop_column(table, "events_before")
