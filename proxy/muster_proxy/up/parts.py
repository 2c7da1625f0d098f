"""The parts of a stack: what each runs, and how it says that it is ready."""

import os
import sys
from dataclasses import dataclass

from muster_observability.server import LOOPBACK
from muster_proxy.settings import Settings


@dataclass(frozen=True, slots=True)
class Part:
    """One process of the stack.

    Attributes:
        name: In the logs.
        arguments: Of the `muster` command.
        url: Where it listens.
        ready_path: Answers 200 when it is ready.
        restarts: Whether it is started again when it dies while the stack serves.
    """

    name: str
    arguments: tuple[str, ...]
    url: str
    ready_path: str
    restarts: bool = False

    @property
    def command(self) -> tuple[str, ...]:
        """The process's arguments."""
        return (sys.executable, "-m", "muster_proxy", *self.arguments)


def of(settings: Settings, agent_port: int) -> list[Part]:
    """The three parts, in the order in which requests reach them, last first."""
    engine_url = f"http://{LOOPBACK}:{settings.engine.port}"
    proxy_url = f"http://{LOOPBACK}:{settings.proxy.port}"
    return [
        Part("engine", _engine(settings), engine_url, "/health", restarts=True),
        Part(
            "proxy",
            (
                *("proxy", "--port", str(settings.proxy.port), "--upstream", engine_url),
                # None beyond its slots: what waits in the engine has no order, and a slot is taken again within
                # milliseconds, where an answer takes seconds.
                *("--tool-mode", "emulated", "--limit", str(settings.engine.slots)),
            ),
            proxy_url,
            "/health/ready",
        ),
        Part(
            "agent",
            ("agent", "--port", str(agent_port), "--proxy", proxy_url, *_agents_database(settings)),
            f"http://{LOOPBACK}:{agent_port}",
            "/ok",
        ),
    ]


def _agents_database(settings: Settings) -> tuple[str, ...]:
    """Where the agent keeps its threads, unless the environment says otherwise."""
    if os.environ.get("MUSTER_AGENT_DATABASE_URL"):
        return ()
    return ("--database", f"sqlite:///{settings.state_dir.expanduser().absolute() / 'agent.db'}")


def _engine(settings: Settings) -> tuple[str, ...]:
    engine = settings.engine
    given = {
        "--port": engine.port,
        "--slots": engine.slots,
        "--context": engine.context_tokens,
        "--threads": engine.threads,
        "--model": engine.model,
    }
    options = [(name, str(value)) for name, value in given.items() if value is not None]
    return ("engine", *(word for option in options for word in option))
