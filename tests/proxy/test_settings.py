"""Settings from options, the environment and the file; what is unknown or wrong is named."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PRINT = """
import json, sys
from pathlib import Path
from muster_proxy import settings
try:
    loaded = settings.load(Path(sys.argv[1]) if sys.argv[1] else None, json.loads(sys.argv[2]))
    print(loaded.model_dump_json())
except settings.ConfigurationError as error:
    print("refused:", error)
"""


def load(directory: Path, options: object = None, config: str = "", **environment: str) -> str:
    """What a process in `directory` makes of its settings."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MUSTER_")}
    return subprocess.run(
        [sys.executable, "-c", PRINT, config, json.dumps(options or {})],
        cwd=directory,
        env={**kept, **environment},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()


def test_an_option_wins_over_the_environment_over_the_file_over_the_default(tmp_path: Path) -> None:
    """Each setting on its own, at any depth."""
    (tmp_path / "muster.yaml").write_text("proxy: {port: 1, drain_s: 2, max_waiting: 3}\nlog_level: error\n")
    environment = {"MUSTER_PROXY_PORT": "11", "MUSTER_PROXY_DRAIN_S": "12", "MUSTER_ENGINE_SLOTS": "5"}
    loaded = json.loads(load(tmp_path, {"proxy": {"port": 21, "drain_s": None}}, **environment))

    assert (loaded["proxy"]["port"], loaded["proxy"]["drain_s"], loaded["proxy"]["max_waiting"]) == (
        21,
        12,
        3,
    )
    assert loaded["proxy"]["idle_timeout_s"] == 120
    assert (loaded["engine"]["slots"], loaded["engine"]["port"], loaded["log_level"]) == (5, 8082, "error")


def test_upstreams_come_from_the_file_or_from_json(tmp_path: Path) -> None:
    """A list of engines, each with settings of its own; a trailing /v1 is the same engine."""
    (tmp_path / "other.yaml").write_text(
        "proxy:\n  upstreams:\n    - url: http://a:1/v1/\n      tool_mode: emulated\n      name: big\n"
    )
    from_file = json.loads(load(tmp_path, config="other.yaml"))["proxy"]["upstreams"]
    from_json = json.loads(load(tmp_path, MUSTER_PROXY_UPSTREAMS='[{"url": "http://b:2"}]'))["proxy"][
        "upstreams"
    ]

    assert (from_file[0]["name"], from_file[0]["tool_mode"]) == ("big", "emulated")
    assert (from_json[0]["url"], from_json[0]["limit"]) == ("http://b:2", None)


def test_each_class_has_waiting_limits_of_its_own(tmp_path: Path) -> None:
    """Those of batch stand beside the others', in the file and as variables."""
    (tmp_path / "muster.yaml").write_text(
        "proxy: {max_wait_s: 5, batch_max_waiting: 7, single_flight: true, upstreams: [{url: 'http://a', limit: 3}]}"
    )
    environment = {"MUSTER_PROXY_BATCH_MAX_WAIT_S": "60", "MUSTER_PROXY_SCRAPE_INTERVAL_S": "1.5"}
    proxy = json.loads(load(tmp_path, **environment))["proxy"]

    assert (proxy["max_wait_s"], proxy["batch_max_wait_s"], proxy["batch_max_waiting"]) == (5, 60, 7)
    assert (proxy["max_waiting"], proxy["batch_max_waiting_bytes"]) == (10_000, 256 * 1024 * 1024)
    assert (proxy["single_flight"], proxy["scrape_interval_s"]) == (True, 1.5)
    assert proxy["upstreams"][0]["limit"] == 3


@pytest.mark.parametrize(
    ("yaml", "environment", "told"),
    [
        ("", {"MUSTER_PROXY_PROT": "1"}, ["MUSTER_PROXY_PROT", "MUSTER_PROXY_PORT"]),
        ("", {"MUSTER_FROB": "1"}, ["MUSTER_FROB", "docs/configuration.md"]),
        ("proxy: {prot: 1}", {}, ["proxy.prot", "proxy.port"]),
        ("porxy: {port: 1}", {}, ["porxy"]),
        ("proxy: {upstreams: [{url: 'http://a', limti: 3}]}", {}, ["proxy.upstreams.0.limti"]),
        ("proxy: {port: 99999}", {}, ["proxy.port", "65535"]),
        ("proxy: {batch_max_wait_s: .inf}", {}, ["proxy.batch_max_wait_s"]),
        ("proxy: {upstreams: [{url: 'http://a', limit: 0}]}", {}, ["proxy.upstreams.0.limit"]),
        ("", {"MUSTER_PROXY_SCRAPE_INTERVAL_S": "0"}, ["proxy.scrape_interval_s"]),
        ("", {"MUSTER_PROXY_SINGLE_FLIGHT": "perhaps"}, ["proxy.single_flight"]),
        ("", {"MUSTER_PROXY_PORT": "many"}, ["proxy.port"]),
        ("", {"MUSTER_PROXY_UPSTREAMS": "http://a"}, ["MUSTER_PROXY_UPSTREAMS", "JSON"]),
        ("proxy: {upstreams: [{url: 'localhost:8000'}]}", {}, ["proxy.upstreams.0", "http://127.0.0.1:8000"]),
        ("proxy: {upstreams: [{url: 'http://a:99999'}]}", {}, ["proxy.upstreams.0", "http://127.0.0.1:8000"]),
        ("proxy: {upstreams: [{url: 'http://a:http'}]}", {}, ["proxy.upstreams.0", "http://127.0.0.1:8000"]),
        ("proxy: {upstreams: [{url: 'http://u:secret@a'}]}", {}, ["proxy.upstreams.0", "api_key"]),
        ("", {"MUSTER_CONFIG": "missing.yaml"}, ["missing.yaml"]),
        ("proxy: [", {}, ["muster.yaml"]),
        ("- a", {}, ["muster.yaml"]),
    ],
)
def test_what_is_wrong_is_named(
    tmp_path: Path, yaml: str, environment: dict[str, str], told: list[str]
) -> None:
    """With what was meant, where something is near; and never with the value, which may be a secret."""
    if yaml:
        (tmp_path / "muster.yaml").write_text(yaml)
    said = load(tmp_path, **environment)

    assert said.startswith("refused:")
    assert all(each in said for each in told), said
    assert "secret" not in said


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["proxy"], 78, "--upstream"),
        (["proxy", "--limit", "3"], 78, "--upstream"),
        (["proxy", "--upstream", "nonsense"], 78, "http://127.0.0.1:8000"),
        (["proxy", "--upstream", "http://127.0.0.1:1", "--tool-mode", "magic"], 78, "tool_mode"),
        (["proxy", "--frob"], 2, "--frob"),
        (["frob"], 2, "frob"),
        (["up", "--config", "missing.yaml"], 78, "missing.yaml"),
    ],
)
def test_a_wrong_command_says_what_is_wrong_and_how_to_do_it_right(
    tmp_path: Path, arguments: list[str], code: int, told: str
) -> None:
    """One clear message, its exit code, and no traceback."""
    done = subprocess.run(
        [sys.executable, "-m", "muster_proxy", *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == code
    assert told in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "command", [[], ["up"], ["proxy"], ["engine"], ["agent"], ["bench"], ["bench", "seed"]]
)
def test_help_helps(command: list[str]) -> None:
    """Every command tells its options with their settings and defaults."""
    done = subprocess.run(
        [sys.executable, "-m", "muster_proxy", *command, "--help"], capture_output=True, text=True, check=True
    )

    assert "Usage:" in done.stdout
    if command in (["proxy"], ["engine"]):
        assert f"MUSTER_{command[0].upper()}_PORT" in done.stdout
