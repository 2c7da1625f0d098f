"""The `muster` command. Each subcommand imports what it needs when it runs, so that `--help` is instant."""

import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated

import typer

from muster_proxy.bench.command import bench
from muster_proxy.embedded.command import engine
from muster_proxy.up.command import up

UNAVAILABLE = 69  # server.ExitCode.UNAVAILABLE; an installation of one role may lack what that module needs

app = typer.Typer(
    name="muster",
    help="An OpenAI-compatible batching proxy for self-hosted language models, with an agent in front.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Settings come from options, MUSTER_* variables and muster.yaml: docs/configuration.md. "
    "Exit codes: 0 done, 1 failed, 2 usage, 69 a port, model or engine is not to be had, "
    "70 a part died, 74 disk, 78 a setting is wrong, 130 interrupted.",
)


def proxy(  # noqa: PLR0913, PLR0917  a command has as many options as it has
    upstream: Annotated[
        list[str] | None,
        typer.Option(
            metavar="URL",
            help="Root URL of an OpenAI-compatible server (a trailing /v1 is accepted). Repeat for several. "
            "[MUSTER_PROXY_UPSTREAMS]",
            show_default=False,
        ),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(help="Port; 0 takes a free one. [MUSTER_PROXY_PORT, 8080]", show_default=False),
    ] = None,
    host: Annotated[
        str | None,
        typer.Option(
            help="Address to listen on; one that others reach needs keys (muster key). "
            "[MUSTER_PROXY_HOST, 127.0.0.1]",
            show_default=False,
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            help="Processes that serve the port, each with a scheduler of its own. [MUSTER_PROXY_WORKERS, 1]",
            show_default=False,
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Configuration file. [MUSTER_CONFIG, muster.yaml]", show_default=False
        ),
    ] = None,
    tool_mode: Annotated[
        str | None,
        typer.Option(
            metavar="MODE",
            help="Who makes tool calls on the --upstream engines: native (the engine; default), emulated "
            "(the proxy, for models that cannot), none.",
            show_default=False,
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            help="Requests in flight on each --upstream at most; the rest waits in the proxy. [learned]",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Run the proxy alone, in front of any OpenAI-compatible server."""
    from muster_proxy.command import run_proxy  # noqa: PLC0415  see the module's docstring

    options = {"host": host, "port": port, "workers": workers}
    raise typer.Exit(run_proxy(upstream, config, options, {"tool_mode": tool_mode, "limit": limit}))


def key(
    tenant: Annotated[
        str | None,
        typer.Argument(help="Whose key it is, as it will stand in logs and metrics.", show_default=False),
    ] = None,
    weight: Annotated[
        float | None, typer.Option(help="The tenant's share beside the others'. [1]", show_default=False)
    ] = None,
    request_class: Annotated[
        str | None,
        typer.Option(
            "--class",
            metavar="CLASS",
            help="The most urgent class it may ask for: interactive, standard or batch. [interactive]",
            show_default=False,
        ),
    ] = None,
    expires: Annotated[
        str | None,
        typer.Option(
            metavar="DATE",
            help="When it stops to work, with a time zone: 2030-01-31T00:00:00Z. [never]",
            show_default=False,
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Which of the tenant's keys it is, in logs.", show_default=False)
    ] = None,
    *,
    digest: Annotated[
        bool,
        typer.Option(
            "--digest",
            help="Make no key: read one from standard input. Without TENANT its digest is printed alone.",
        ),
    ] = False,
) -> None:
    """Make a tenant's API key and the setting that lets it in. The key is shown once and stored nowhere."""
    from muster_proxy.key_command import run_key  # noqa: PLC0415  see the module's docstring

    options = {"tenant": tenant, "weight": weight, "class": request_class, "expires": expires, "name": name}
    raise typer.Exit(run_key(options, is_given=digest))


def main() -> None:
    """Run the command line."""
    for command in (up, proxy, engine, key):
        app.command()(command)
    app.add_typer(bench, name="bench")
    for plugin in entry_points(group="muster.commands"):
        app.command(plugin.name)(plugin.load())
    try:
        app()
    except ModuleNotFoundError as error:
        if not error.name or error.name.startswith("muster_"):
            raise
        # An installation of one role has this command too, and not what it needs.
        print(  # noqa: T201  the command's answer
            f"muster: this command needs {error.name}, which is not installed here; "
            "install Muster whole, or with the extra of this command's role.",
            file=sys.stderr,
        )
        sys.exit(UNAVAILABLE)
