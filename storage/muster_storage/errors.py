"""What can be wrong with a database before the first query. Each message says what to do."""


class StorageError(Exception):
    """A database cannot be used; the message says why and what to do, and holds no password."""


class DatabaseInUseError(StorageError):
    """Another process has this SQLite database."""
