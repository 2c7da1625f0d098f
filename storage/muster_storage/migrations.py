"""Bringing a database to the version that the code expects."""

from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Connection, inspect, text

from muster_storage.errors import StorageError

# Replicas that start together migrate one after the other. Any number that nothing else uses.
_LOCK = 0x4D_55_53_54_45_52


@dataclass(frozen=True, slots=True)
class Schema:
    """The tables of one part.

    Attributes:
        part: Names the table that holds the version, `muster_PART_version`, so that parts may share a database.
        scripts: The folder with Alembic's `env.py` and `versions`.
        head: The newest revision, which the code expects. `tests/storage` holds it to the scripts.
    """

    part: str
    scripts: Path
    head: str

    @property
    def version_table(self) -> str:
        """Where the database says which revision it has."""
        return f"muster_{self.part}_version"


def migrate(connection: Connection, schema: Schema) -> None:
    """Bring the database to `schema.head`, in the caller's transaction: wholly or not at all.

    Raises:
        StorageError: The database is of a newer Muster.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
    found = _revision(connection, schema)
    if found == schema.head:
        return  # and Alembic, which takes a while to import, is not needed
    _upgrade(connection, schema, found)


def _revision(connection: Connection, schema: Schema) -> str | None:
    if not inspect(connection).has_table(schema.version_table):
        return None
    row = connection.execute(text(f"SELECT version_num FROM {schema.version_table}")).first()  # noqa: S608 - a name of ours
    return None if row is None else str(row[0])


def _upgrade(connection: Connection, schema: Schema, found: str | None) -> None:
    from alembic import command  # noqa: PLC0415 - only where there is something to migrate
    from alembic.config import Config  # noqa: PLC0415 - likewise
    from alembic.script import ScriptDirectory  # noqa: PLC0415 - likewise

    config = Config()
    config.set_main_option("script_location", str(schema.scripts).replace("%", "%%"))
    config.attributes["connection"] = connection
    config.attributes["version_table"] = schema.version_table
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    if found is not None and found not in known:
        raise StorageError(
            f"the database has version {found} of the {schema.part}'s tables, which this release does not know: it was "
            "written by a newer release. Run that one, or restore a backup from before the upgrade."
        )
    command.upgrade(config, schema.head)
