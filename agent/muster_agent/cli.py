"""The `muster agent` command.

This module is imported whenever `muster` starts, so what costs time to import is imported when the command
runs.
"""

import sys
from typing import Annotated

import typer


def agent(
    proxy: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Root URL of the proxy, or of any OpenAI-compatible server; a trailing /v1 is accepted. "
            "(MUSTER_AGENT_PROXY; default: http://127.0.0.1:8080)",
        ),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(help="Port on 127.0.0.1; 0 takes a free one. (MUSTER_AGENT_PORT; default: 8081)"),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="Model to think with. (MUSTER_AGENT_MODEL; default: the first that the proxy lists)"
        ),
    ] = None,
    agents: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="The agents, as YAML. (MUSTER_AGENT_AGENTS_FILE; default: one with a calculator and a clock)",
        ),
    ] = None,
    database: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Where threads and runs are kept: sqlite:///FILE or postgresql://... (MUSTER_AGENT_DATABASE_URL; "
            "default: agent.db in MUSTER_STATE_DIR)",
        ),
    ] = None,
) -> None:
    """Run the agent service: LangGraph agents for LangGraph's clients, and OpenAI models for everybody else's."""
    options = {"proxy": proxy, "port": port, "model": model, "agents_file": agents, "database_url": database}
    raise typer.Exit(_serve({name: value for name, value in options.items() if value is not None}))


def _serve(options: dict[str, str | int]) -> int:
    from muster_agent.settings import SettingsError, load, load_log  # noqa: PLC0415 - likewise
    from muster_observability import logs, server  # noqa: PLC0415 - see the module's docstring

    try:
        settings = load(options)
        log = load_log()
    except SettingsError as error:
        _complain(str(error))
        return server.ExitCode.CONFIG
    logs.configure(log.level, log.format)
    try:
        # Before the application's imports, which take seconds: a taken port is told at once.
        listener = server.bind(settings.port, "--port or MUSTER_AGENT_PORT")
    except server.PortTakenError as error:
        _complain(str(error))
        return server.ExitCode.UNAVAILABLE

    from muster_agent.agents.declarations import AgentsFileError, default_agents, load_agents  # noqa: PLC0415 - likewise
    from muster_agent.app import Opening, create_app  # noqa: PLC0415 - likewise

    try:
        agents = default_agents() if settings.agents_file is None else load_agents(settings.agents_file)
    except AgentsFileError as error:
        _complain(str(error))
        return server.ExitCode.CONFIG
    opening = Opening()
    app, manner = create_app(settings, agents, opening), server.Manner(websockets=True)
    try:
        code = server.serve(app, listener, part="agent", drain_s=settings.drain_s, manner=manner)
    except SystemExit:  # so uvicorn ends where the application does not start
        code = server.ExitCode.FAILED
    if opening.problem is not None:
        _complain(opening.problem)
        return server.ExitCode.CONFIG
    return code


def _complain(text: str) -> None:
    for line in text.splitlines():
        print(f"muster agent: {line}", file=sys.stderr)  # noqa: T201 - a command speaks to its user
