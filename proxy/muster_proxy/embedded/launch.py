"""`muster engine`, from its options to its exit code."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from muster_observability import logs, server
from muster_observability.server import ExitCode
from muster_proxy import settings
from muster_proxy.embedded.engine import check_model_file, check_port, serve_engine
from muster_proxy.embedded.errors import EmbeddedError
from muster_proxy.embedded.model import DEFAULT_MODEL
from muster_proxy.embedded.progress import Progress, progress_on
from muster_proxy.embedded.settings import EngineSettings
from muster_proxy.embedded.weights import default_cache_dir, fetch_weights


def run_engine(options: Mapping[str, Any]) -> ExitCode:
    """Get the weights, then serve them until told to stop.

    A stop that was asked for ends the process with ExitCode.OK from inside `serve_engine`; what is returned
    here is why it did not come to that.

    Args:
        options: The command's options by setting; None counts as not given.
    """
    try:
        loaded = settings.load(None, {"engine": options})
        logs.configure(loaded.log_level, loaded.log_format)
        check_port(loaded.engine.port)  # before half a gigabyte is fetched for nothing
        server.interrupt_on_stop_signals()
        weights = find_weights(loaded.engine, loaded.cache_dir, progress_on(sys.stderr))
        serve_engine(loaded.engine, weights)
    except settings.ConfigurationError as error:
        return server.refuse(error, ExitCode.CONFIG)
    except EmbeddedError as error:
        return server.refuse(error, error.exit_code)
    except server.PortTakenError as error:
        return server.refuse(error, ExitCode.UNAVAILABLE)
    except KeyboardInterrupt:
        return server.refuse(
            "interrupted; the same command goes on where this one stopped", ExitCode.INTERRUPTED
        )


def find_weights(engine: EngineSettings, cache_dir: Path | None, progress: Progress) -> Path:
    """The model's file: the one that the settings name, else the default model's, fetched if need be.

    Args:
        engine: The settings.
        cache_dir: The cache; None takes the default one.
        progress: Told how a fetch goes.

    Raises:
        EmbeddedError: It is not to be had.
    """
    if engine.model is not None:
        named = engine.model.expanduser()
        check_model_file(named)
        return named
    directory = cache_dir.expanduser().absolute() if cache_dir is not None else default_cache_dir()
    return fetch_weights(DEFAULT_MODEL, directory, progress)
