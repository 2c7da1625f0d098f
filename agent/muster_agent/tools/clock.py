"""The clock: what time it is, anywhere.

Time zones come from the system's database or the tzdata package. A slim image may have neither; the tool
then knows UTC alone and says so, rather than calling every zone unknown.
"""

import zoneinfo
from datetime import UTC, datetime, tzinfo
from typing import Annotated

import anyio.to_thread
from langchain_core.tools import tool

from muster_agent.tools.complaints import ToolComplaint


class ClockError(ToolComplaint):
    """The time cannot be told; the text says why."""


def find_zone(name: str) -> tzinfo:
    """The time zone of an IANA name; reads a file the first time.

    Raises:
        ClockError: There is no such zone, or this machine has no time zone data.
    """
    if name.strip().upper() in {"", "UTC", "GMT", "Z"}:
        return UTC
    try:
        return zoneinfo.ZoneInfo(name.strip())
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        raise _no_zone(name) from None


def describe(now: datetime) -> str:
    """Write a zone's time so that a model need not work out the day: `Sunday 2026-11-22 14:05:09 +0100`."""
    return now.strftime("%A %Y-%m-%d %H:%M:%S %z")


@tool
async def current_time(
    timezone: Annotated[str, "An IANA time zone, for example: Europe/Berlin"] = "UTC",
) -> str:
    """Tell today's date, day of the week and the time now in a time zone."""
    zone = await anyio.to_thread.run_sync(find_zone, timezone)
    return f"{describe(datetime.now(zone))} ({timezone.strip() or 'UTC'})"


def _no_zone(name: str) -> ClockError:
    if not zoneinfo.available_timezones():
        return ClockError("this server has no time zone data, so only UTC is known")
    return ClockError(f"unknown time zone {name[:64]!a}; expected an IANA name such as Europe/Berlin or UTC")


current_time.metadata = {"changes_world": False}
