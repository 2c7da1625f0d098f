"""The clock tool."""

import zoneinfo
from collections.abc import Generator
from datetime import UTC, datetime

import pytest

from muster_agent.tools.clock import ClockError, current_time, describe, find_zone


@pytest.fixture
def _no_zone_data() -> Generator[None]:
    """A machine without time zone data: no system database, and the tzdata package hidden."""
    before = zoneinfo.TZPATH
    zoneinfo.reset_tzpath(to=[])
    yield
    zoneinfo.reset_tzpath(to=before)


def test_a_zone_shifts_the_time() -> None:
    """The same moment reads differently in Berlin, its weekday included."""
    moment = datetime(2026, 11, 22, 23, 30, tzinfo=UTC)

    assert describe(moment) == "Sunday 2026-11-22 23:30:00 +0000"
    assert describe(moment.astimezone(find_zone("Europe/Berlin"))) == "Monday 2026-11-23 00:30:00 +0100"


@pytest.mark.parametrize("name", ["UTC", "utc", "Z", "GMT", ""])
def test_utc_needs_no_data(name: str) -> None:
    """UTC by any of its names is known without a database."""
    assert find_zone(name) is UTC


@pytest.mark.parametrize(
    "name", ["Mars/Olympus", "../etc/passwd", "/etc/passwd", "Europe", "x\0y", "\ud800", "é" * 99]
)
def test_an_unknown_zone_is_named(name: str) -> None:
    """The model is told which name was wrong and what one looks like."""
    with pytest.raises(ClockError, match=r"unknown time zone .*Europe/Berlin"):
        find_zone(name)


async def test_the_tool_tells_the_time_now() -> None:
    """The tool's answer is between the moments before and after it was asked, and names its zone."""
    before = datetime.now(UTC).replace(microsecond=0)
    answer = await current_time.ainvoke({"timezone": "Asia/Tokyo"})
    after = datetime.now(UTC)

    told = datetime.strptime(answer, "%A %Y-%m-%d %H:%M:%S %z (Asia/Tokyo)")
    assert before <= told <= after


@pytest.mark.usefixtures("_no_zone_data")
def test_a_machine_without_zone_data_says_so() -> None:
    """Where no zone is known at all, the answer blames the machine and not the name."""
    if zoneinfo.available_timezones():
        pytest.skip("the tzdata package is installed here")

    zoneinfo.ZoneInfo.clear_cache()
    with pytest.raises(ClockError, match="only UTC is known"):
        find_zone("Europe/Berlin")
