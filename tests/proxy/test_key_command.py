"""`muster key`: what it prints lets its tenant in, and a key that it is given is shown nowhere."""

import contextlib
import io
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
import yaml

from muster_batching import RequestClass
from muster_observability.server import ExitCode
from muster_proxy.key_command import run_key
from muster_proxy.keys import KeyRing, KeySettings, digest_of

KEY = "sk-canary-of-another-system-0123456789"

PROGRAM = """
import sys
from muster_proxy.key_command import run_key
sys.exit(run_key({}, is_given=True))
"""

Given = Callable[..., tuple[ExitCode, str, str]]


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Given:
    """What the command makes of a key on its standard input: exit code, standard output and error."""

    def run(key: bytes, **options: str) -> tuple[ExitCode, str, str]:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(key)))
        code = run_key(options, is_given=True)
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


def pasted(snippet: str) -> KeySettings:
    """The setting that a snippet of YAML is."""
    (entry,) = yaml.safe_load(snippet)["proxy"]["keys"]
    return KeySettings.model_validate(entry)


def test_a_new_key_lets_in_whom_its_setting_names(capsys: pytest.CaptureFixture[str]) -> None:
    """The first line is the key, what follows goes into muster.yaml as it is."""
    options = {
        "tenant": "acme",
        "weight": 2.5,
        "class": "batch",
        "expires": "2999-01-31T00:00:00Z",
        "name": "ci",
    }
    assert run_key(options, is_given=False) is ExitCode.OK
    key, _, snippet = capsys.readouterr().out.partition("\n")
    setting = pasted(snippet)

    assert setting.digest == digest_of(key)
    assert setting.expires == datetime(2999, 1, 31, tzinfo=UTC)
    identity = KeyRing([setting]).identify(f"Bearer {key}", None)
    assert (identity.tenant, identity.weight) == ("acme", 2.5)
    assert (identity.ceiling, identity.key_name) == (RequestClass.BATCH, "ci")


def test_a_new_key_is_printed_once(capsys: pytest.CaptureFixture[str]) -> None:
    """On standard output, with a word on standard error that it is kept nowhere."""
    run_key({"tenant": "acme", "weight": None}, is_given=False)
    printed = capsys.readouterr()
    key = printed.out.splitlines()[0]

    assert printed.out.count(key) == 1
    assert key not in printed.err
    assert "once" in printed.err


def test_a_setting_has_only_what_was_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    """The defaults are left to the documents, also where an option says the same."""
    run_key({"tenant": "acme", "weight": 1.0}, is_given=False)
    (entry,) = yaml.safe_load(capsys.readouterr().out.partition("\n")[2])["proxy"]["keys"]
    assert set(entry) == {"digest", "tenant"}


@pytest.mark.parametrize("tenant", ["null", "1", "1.0", "no", "2030-01-31", "-"])
def test_a_tenants_name_stays_what_it_is_in_yaml(tenant: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Where YAML would read another thing."""
    run_key({"tenant": tenant}, is_given=False)
    assert pasted(capsys.readouterr().out.partition("\n")[2]).tenant == tenant


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({}, "TENANT"),
        ({"tenant": "a b"}, "TENANT"),
        ({"tenant": "a", "weight": 0.0}, "--weight"),
        ({"tenant": "a", "class": "urgent"}, "--class"),
        ({"tenant": "a", "expires": "2030-01-31"}, "--expires: Input should have timezone info"),
        ({"tenant": "a", "name": ""}, "--name"),
        ({"weight": 2.0}, "TENANT"),
    ],
)
def test_a_wrong_option_is_named(
    options: dict[str, Any], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a fault of usage, and no key is made for it."""
    assert run_key(options, is_given=False) is ExitCode.USAGE
    printed = capsys.readouterr()

    assert told in printed.err
    assert not printed.out
    assert "sha256:" not in printed.err


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n"])
def test_the_digest_of_a_given_key_is_printed_alone(end: bytes, given: Given) -> None:
    """The line's end is none of the key's."""
    assert given(KEY.encode() + end) == (ExitCode.OK, digest_of(KEY) + "\n", "")


def test_a_given_key_gets_a_setting_too(given: Given) -> None:
    """Where a tenant is named; the key itself is not printed."""
    _, printed, remark = given(KEY.encode(), tenant="acme", **{"class": "standard"})

    assert KEY not in printed + remark
    assert KeyRing([pasted(printed)]).identify(None, KEY).ceiling is RequestClass.STANDARD


@pytest.mark.parametrize(
    ("key", "told"),
    [
        (b"", "one key"),
        (b"\n", "one key"),
        (b"two keys", "one key"),
        (b"canary\ncanary\n", "one key"),
        ("canaré".encode(), "one key"),
        (b"canary\xff", "one key"),
        (b"canary\x00", "one key"),
        (b"c" * 513, "one key"),
        (b"c" * 100_000, "one key"),
        (digest_of(KEY).encode(), "a digest already"),
    ],
)
def test_what_can_be_no_key_is_refused(key: bytes, told: str, given: Given) -> None:
    """Before it is configured, and without showing it."""
    code, printed, remark = given(key)

    assert code is ExitCode.USAGE
    assert told in remark
    assert not printed
    assert "canar" not in remark


@pytest.mark.parametrize(("length", "is_warned"), [(31, True), (32, False)])
def test_a_short_key_is_warned_of(length: int, is_warned: bool, given: Given) -> None:
    """Its digest could be searched for it; standard output has the digest alone."""
    _, printed, remark = given(b"k" * length)

    assert ("short" in remark) is is_warned
    assert printed == digest_of("k" * length) + "\n"


def test_a_key_that_is_typed_is_not_echoed() -> None:
    """On a terminal it is asked for, as a password is."""
    terminal, stdin = pty.openpty()
    with os.fdopen(terminal, "r+b", buffering=0) as screen:
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM],
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # no controlling terminal: the one on standard input is all it has
        )
        os.close(stdin)
        with process:
            assert process.stderr is not None
            assert process.stderr.read(len("Key: ")) == b"Key: "
            screen.write(KEY.encode() + b"\n")
            printed, _ = process.communicate(timeout=60)
        shown = _left_on(screen.fileno())
    assert process.returncode == 0
    assert printed.decode() == digest_of(KEY) + "\n"
    assert KEY.encode() not in shown


def _left_on(screen: int) -> bytes:
    """What a terminal shows that nothing writes to any more."""
    shown = b""
    with contextlib.suppress(OSError):  # Linux's end of a terminal
        while piece := os.read(screen, 4096):
            shown += piece
    return shown
