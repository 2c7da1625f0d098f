"""A tool that changes the world: what it does outlives the process that does it, and can be counted."""

import asyncio
import os
import random
from pathlib import Path
from typing import Annotated

from langchain_core.tools import tool

LEDGER = "MUSTER_BENCHMARK_LEDGER"
"""The variable that names the file."""

LINGERS_S = 0.3
"""The longest that the tool takes before it writes, and after: time to be killed in."""


@tool
async def append_line(line: Annotated[str, "What is written"]) -> str:
    """Write a line into the ledger."""
    await asyncio.sleep(_a_while_s())
    await asyncio.to_thread(_append, line)
    await asyncio.sleep(_a_while_s())
    return f"wrote {line}"


def _a_while_s() -> float:
    return random.uniform(0, LINGERS_S)  # noqa: S311 - no secret


def _append(line: str) -> None:
    with Path(os.environ[LEDGER]).open("a", encoding="utf-8") as ledger:
        ledger.write(f"{line}\n")
