"""Which MCP servers the settings mean."""

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr, ValidationError

from muster_agent.tools.complaints import ToolkitError
from muster_agent.tools.mcp.settings import McpSettings, enabled_servers, filled_in


def settings(**server: Any) -> McpSettings:
    """Settings with one server."""
    return McpSettings.model_validate({"mcpServers": {"files": server}})


@pytest.mark.parametrize(
    ("server", "way"),
    [
        ({"command": "npx", "args": ["-y", "server"], "env": {"A": "b"}}, "stdio"),
        ({"command": "npx", "type": "stdio"}, "stdio"),
        ({"url": "http://127.0.0.1:1/mcp"}, "http"),
        ({"url": "http://127.0.0.1:1/mcp", "type": "http"}, "http"),
        ({"url": "http://127.0.0.1:1/mcp", "type": "streamable-http"}, "http"),
        ({"url": "http://127.0.0.1:1/mcp", "transport": "streamable_http"}, "http"),
        ({"url": "http://127.0.0.1:1/mcp", "type": "streamableHttp"}, "http"),
        ({"url": "http://127.0.0.1:1/sse", "transport": "sse"}, "sse"),
    ],
)
def test_the_spellings_of_other_clients_are_understood(server: dict[str, Any], way: str) -> None:
    """Command or url, `type` or `transport`, in any spelling in use."""
    assert enabled_servers(settings(**server))["files"].way == way


@pytest.mark.parametrize(
    ("server", "named"),
    [
        ({"command": "a", "comand": "b"}, "comand"),
        ({"command": "a", "disabledTools": ["x"]}, "disabledTools"),
        ({"command": "a", "url": "http://127.0.0.1/"}, "either `command` or `url`"),
        ({}, "either `command` or `url`"),
        ({"url": "http://127.0.0.1/", "args": ["x"]}, "args"),
        ({"command": "a", "headers": {"x": "y"}}, "headers"),
        ({"command": "a", "type": "http"}, "type stdio"),
        ({"url": "http://127.0.0.1/", "type": "stdio"}, "http or sse"),
        ({"url": "http://127.0.0.1/", "type": "sse", "transport": "sse"}, "got both"),
        ({"url": "http://127.0.0.1/", "type": "websocket"}, "transport|type"),
        ({"url": "http://user:secret@127.0.0.1/"}, "without credentials"),
        ({"url": "file:///etc/passwd"}, "expected an address"),
        ({"command": "a", "timeout_s": 0}, "timeout_s"),
        ({"command": "a", "pins": {"x": "abc"}}, "pins"),
    ],
)
def test_a_wrong_server_is_an_error_that_names_what_is_wrong(server: dict[str, Any], named: str) -> None:
    """The server and the key are named, and no value is shown."""
    with pytest.raises(ValidationError, match=named) as caught:
        settings(**server)

    assert "files" in str(caught.value)
    assert "secret" not in str(caught.value)


def test_keys_of_other_clients_that_only_skip_questions_are_ignored() -> None:
    """They do nothing here, which is the safe side."""
    server = settings(command="a", description="b", autoApprove=["c"], alwaysAllow=["d"], trust=True)

    assert enabled_servers(server)["files"].read_only == []


def test_a_disabled_server_is_left_out() -> None:
    """`disabled` is as in other clients."""
    assert enabled_servers(settings(command="a", disabled=True)) == {}


def test_servers_can_be_read_from_the_file_of_another_client(tmp_path: Path) -> None:
    """What else that client keeps in the file is its own."""
    file = tmp_path / "mcp.json"
    file.write_text(json.dumps({"mcpServers": {"files": {"command": "a"}}, "theme": "dark"}))

    assert enabled_servers(McpSettings(file=file))["files"].command == "a"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot be read"),
        ("{", "not JSON"),
        ("{}", "mcpServers: Field required"),
        ('{"mcpServers": {"files": {"command": "a", "cmd": "sesame"}}}', "mcpServers.files.cmd"),
    ],
)
def test_a_wrong_file_is_an_error_that_says_so(tmp_path: Path, content: str | None, said: str) -> None:
    """It names the key and keeps the value to itself."""
    file = tmp_path / "mcp.json"
    if content is not None:
        file.write_text(content)

    with pytest.raises(ToolkitError, match=said) as caught:
        enabled_servers(McpSettings(file=file))

    assert "sesame" not in str(caught.value)


@pytest.mark.parametrize("both", [{}, {"mcpServers": {}, "file": "x"}])
def test_the_servers_are_in_one_place(both: dict[str, Any]) -> None:
    """Here or in a file, and not nowhere."""
    with pytest.raises(ValidationError, match="either `mcpServers` or `file`"):
        McpSettings.model_validate(both)


def test_values_may_refer_to_variables_of_the_service() -> None:
    """Braces alone are a reference; a dollar sign is a character of many keys."""
    values = {"a": SecretStr("Bearer ${TOKEN}!"), "b": SecretStr("$TOKEN")}

    assert filled_in(values, {"TOKEN": "t$1"}) == {"a": "Bearer t$1!", "b": "$TOKEN"}


def test_a_variable_that_is_not_set_is_an_error() -> None:
    """An empty key would be a puzzle later."""
    with pytest.raises(ToolkitError, match="TOKEN is not set"):
        filled_in({"a": SecretStr("${TOKEN}")}, {})


def test_secrets_are_not_in_what_settings_look_like() -> None:
    """Settings end up in logs."""
    server = settings(command="a", env={"TOKEN": "sesame"})

    assert "sesame" not in repr(server) + str(server)
