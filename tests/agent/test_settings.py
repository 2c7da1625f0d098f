"""Settings, and what the command says of wrong ones."""

import os
import re
import socket
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import pytest

from muster_agent.settings import AgentSettings, SettingsError, load

HOST = (
    "import sys, typer; from muster_agent.cli import agent; app = typer.Typer(); app.command()(agent); app()"
)


@pytest.fixture
def environ() -> Generator[dict[str, str]]:
    """The environment to set variables in; it is put back afterwards."""
    before = dict(os.environ)
    for name in [name for name in os.environ if name.startswith("MUSTER_")]:
        del os.environ[name]
    yield os.environ  # pyright: ignore[reportReturnType] - a mapping of strings
    os.environ.clear()
    os.environ.update(before)


def _command(*options: str, **variables: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MUSTER_")}
    return subprocess.run(
        [sys.executable, "-c", HOST, *options],
        env={**kept, **variables, "NO_COLOR": "1", "COLUMNS": "100"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.usefixtures("environ")
def test_defaults() -> None:
    """Without any setting the agent has the documented ones."""
    settings = load({})

    assert (settings.port, settings.proxy, settings.model) == (8081, "http://127.0.0.1:8080", None)
    assert (settings.runs_at_once, settings.agents_file, settings.secret) == (256, None, None)
    assert settings.database_url.startswith("sqlite:///")
    assert settings.database_url.endswith("/agent.db")


def test_the_database_lies_in_the_state_folder(environ: dict[str, str]) -> None:
    """Where the folder of Muster's state is named, the agent's database is in it."""
    environ.update(MUSTER_STATE_DIR="/somewhere")

    assert load({}).database_url == "sqlite:////somewhere/agent.db"


def test_replicas_share_a_secret(environ: dict[str, str]) -> None:
    """With PostgreSQL, where another process may go on with a run, the secret has to be given."""
    environ.update(MUSTER_AGENT_DATABASE_URL="postgresql://u:CANARY@h/n")

    with pytest.raises(SettingsError, match="MUSTER_AGENT_SECRET is needed") as caught:
        load({})

    assert "CANARY" not in str(caught.value)


def test_options_come_before_variables(environ: dict[str, str]) -> None:
    """The command line wins over the environment, which wins over the default."""
    environ.update(MUSTER_AGENT_PORT="9000", MUSTER_AGENT_RUNS_AT_ONCE="3", MUSTER_AGENT_MODEL="")

    settings = load({"port": 9001})

    assert (settings.port, settings.runs_at_once, settings.model) == (9001, 3, None)


@pytest.mark.usefixtures("environ")
@pytest.mark.parametrize("url", ["http://h:1", "http://h:1/", "http://h:1/v1", "http://h:1/v1/"])
def test_the_proxys_root_is_found(url: str) -> None:
    """A trailing slash or `/v1` is accepted and left out."""
    assert load({"proxy": url}).proxy == "http://h:1"


@pytest.mark.usefixtures("environ")
@pytest.mark.parametrize("url", ["", "h:1", "ftp://h", "http://", "http://u:p@h", "http://h?x=1"])
def test_what_is_no_address(url: str) -> None:
    """Another thing than an http address is refused by the option's name."""
    with pytest.raises(SettingsError, match="--proxy: "):
        load({"proxy": url})


def test_an_unknown_variable_is_named(environ: dict[str, str]) -> None:
    """A misspelt variable is an error with the nearest name, and every error is told at once."""
    environ.update(MUSTER_AGENT_PROT="1", MUSTER_AGENT_RUNS_AT_ONCE="many")

    with pytest.raises(SettingsError) as caught:
        load({})

    unknown, wrong = caught.value.problems
    assert unknown == "MUSTER_AGENT_PROT: unknown setting; did you mean MUSTER_AGENT_PORT?"
    assert wrong.startswith("MUSTER_AGENT_RUNS_AT_ONCE: ")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", "70000"),
        ("RUNS_AT_ONCE", "0"),
        ("KEEP_ALIVE_S", "inf"),
        ("KEEP_ALIVE_S", "0"),
        ("STATES_KEPT", "0"),
        ("ON_DISCONNECT", "ignore"),
        ("DRAIN_S", "-1"),
    ],
)
def test_a_value_out_of_range_is_named(environ: dict[str, str], name: str, value: str) -> None:
    """Ranges are held, and the variable is named."""
    environ[f"MUSTER_AGENT_{name}"] = value

    with pytest.raises(SettingsError, match=f"MUSTER_AGENT_{name}: "):
        load({})


def test_a_key_is_never_shown(environ: dict[str, str]) -> None:
    """Neither the settings nor an error about them shows the key."""
    environ.update(MUSTER_AGENT_API_KEY="sk-CANARY")

    assert "CANARY" not in repr(load({}))


def test_every_setting_is_described() -> None:
    """Each field says what it is."""
    assert [name for name, field in AgentSettings.model_fields.items() if not field.description] == []


def test_a_wrong_setting_ends_the_command() -> None:
    """The command says which setting is wrong and ends with the status for that."""
    done = _command(MUSTER_AGENT_MODLE="x")

    assert (done.returncode, done.stderr) == (
        78,
        "muster agent: MUSTER_AGENT_MODLE: unknown setting; did you mean MUSTER_AGENT_MODEL?\n",
    )


def test_a_wrong_log_setting_ends_the_command() -> None:
    """Log settings are checked like the others."""
    done = _command(MUSTER_LOG_LEVEL="loud")

    assert (done.returncode, done.stderr.startswith("muster agent: MUSTER_LOG_LEVEL: ")) == (78, True)


def test_a_taken_port_ends_the_command() -> None:
    """The command says which port is taken and how to choose another."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = _command("--port", str(taken.getsockname()[1]))

    assert done.returncode == 69
    assert re.search(r"port \d+ is taken.*--port or MUSTER_AGENT_PORT", done.stderr)


def test_help_names_the_options() -> None:
    """The help shows each option, its variable and its default."""
    done = _command("--help")

    text = " ".join(done.stdout.replace("\N{BOX DRAWINGS LIGHT VERTICAL}", " ").split())
    assert done.returncode == 0
    for part in (
        "--proxy URL",
        "--port",
        "--model",
        "MUSTER_AGENT_PROXY",
        "default: 8081",
        "MUSTER_AGENT_MODEL",
        "--agents FILE",
        "--database URL",
    ):
        assert part in text


def test_the_command_is_quick_to_import() -> None:
    """Importing the command brings in none of what a run needs."""
    code = "import sys, muster_agent.cli; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )

    heavy = {"langchain", "langchain_core", "langgraph", "fastapi", "openai", "pydantic", "uvicorn", "anyio"}
    assert heavy.isdisjoint(done.stdout.split())


def test_the_readme_lists_every_setting() -> None:
    """The README's table has each variable, and none that does not exist."""
    text = (Path(__file__).parents[2] / "agent" / "README.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^\| `(MUSTER_AGENT_\w+)`", text, re.MULTILINE))

    assert listed == {f"MUSTER_AGENT_{name.upper()}" for name in AgentSettings.model_fields}
