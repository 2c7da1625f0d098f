"""What every part's `env.py` does: run the scripts on the connection that `migrate` gives."""

from alembic import context


def run() -> None:
    """Run the migrations in the caller's transaction."""
    attributes = context.config.attributes
    context.configure(connection=attributes["connection"], version_table=attributes["version_table"])
    # No begin_transaction(): the caller has one, and commits it or does not.
    context.run_migrations()
