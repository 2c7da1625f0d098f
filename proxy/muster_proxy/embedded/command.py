"""`muster engine`. What it needs is imported when it runs, so that `muster --help` is instant."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from muster_proxy.embedded.settings import EngineSettings


def engine(
    port: Annotated[
        int | None,
        typer.Option(
            help="Port on 127.0.0.1; 0 takes a free one. [MUSTER_ENGINE_PORT, 8082]", show_default=False
        ),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="A GGUF file to serve. Without it a small instruct model is fetched once (0.5 GB) and kept. "
            "[MUSTER_ENGINE_MODEL]",
            show_default=False,
        ),
    ] = None,
    slots: Annotated[
        int | None,
        typer.Option(help="Requests worked on at once. [MUSTER_ENGINE_SLOTS, 8]", show_default=False),
    ] = None,
    context: Annotated[
        int | None,
        typer.Option(
            help="Tokens of prompt and answer together that one request may have. "
            "[MUSTER_ENGINE_CONTEXT_TOKENS, 4096]",
            show_default=False,
        ),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(
            help="Threads that compute. [MUSTER_ENGINE_THREADS, as many as cores]", show_default=False
        ),
    ] = None,
) -> None:
    """Run the embedded engine alone: a small model on llama.cpp, with OpenAI's HTTP API."""
    from muster_proxy.embedded.launch import run_engine  # noqa: PLC0415 - see the module's docstring

    options = {"port": port, "model": model, "slots": slots, "context_tokens": context, "threads": threads}
    raise typer.Exit(run_engine(options))


def prepare_weights(settings: "EngineSettings", cache_dir: Path | None) -> Path:
    """The weights that the engine will serve, fetched with a progress bar on stderr if the cache lacks them.

    Args:
        settings: Of the engine.
        cache_dir: The cache; None takes the default one.

    Raises:
        EmbeddedError: They are not to be had; its message is for the user, its `exit_code` for the command.
    """
    from muster_proxy.embedded.launch import find_weights  # noqa: PLC0415 - see the module's docstring
    from muster_proxy.embedded.progress import progress_on  # noqa: PLC0415 - likewise

    return find_weights(settings, cache_dir, progress_on(sys.stderr))
