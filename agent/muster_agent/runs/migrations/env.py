"""Alembic runs this."""

from muster_storage import alembic_env

alembic_env.run()
