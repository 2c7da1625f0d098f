"""Runs one benchmark, from its options to its report."""

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)

from muster_batching.testing import PROFILES
from muster_batching.testing.simulation import Record
from muster_observability import server
from muster_observability.server import ExitCode
from muster_proxy.bench import report, servers, ways
from muster_proxy.bench.cases import (
    agents,
    light,
    live_agents,
    metrics,
    mixed,
    overload,
    scale,
    tenants,
)
from muster_proxy.bench.figures import Findings
from muster_proxy.bench.labs import BenchmarkError, Lab
from muster_proxy.bench.over_http import HttpLab
from muster_proxy.bench.simulated import SimulatedLab
from muster_proxy.bench.workloads import AgentShape, Mix
from muster_proxy.embedded.errors import EmbeddedError

LIVE = "agents live"
"""The case that starts an engine of its own, where none is named."""

_OF_ONE_KIND = {
    "rounds": "--rounds",
    "agents": "--agents",
    "working_sets": "--working-set",
    "turnover": "--sessions",
    "kv_tokens": "--kv-tokens",
}
"""The options that agents have live alone, or otherwise alone."""

REAL_LENGTHS = 0.25
"""An engine that is at hand is most often a small one: its contexts are short, and its user's time is too."""

_PLANS: Mapping[str, Mapping[str, Any]] = {
    "light": light.PLANS,
    "mixed": mixed.PLANS,
    "overload": overload.PLANS,
    "tenants": tenants.PLANS,
    "agents": agents.PLANS,
    LIVE: live_agents.PLANS,
    "metrics": metrics.PLANS,
    "scale": scale.PLANS,
}

_ON_A_LAB: Mapping[str, Callable[[Lab, Any], Findings]] = {
    "light": light.run,
    "mixed": mixed.run,
    "overload": overload.run,
    "tenants": tenants.run,
    "agents": agents.run,
}

_REDRAWN_EVERY = 64


@dataclass(frozen=True, slots=True)
class _Setting:
    """What the options say of the place, not of the plan."""

    upstream: str | None
    profile: str | None
    model: str | None
    json: Path | None
    plot: Path | None


class _Bar:
    """A line for each run, with the calls that ended.

    Args:
        progress: Draws it.
        calls: How many a run makes, where that is known beforehand.
    """

    def __init__(self, progress: Progress, calls: int | None = None) -> None:
        self._progress = progress
        self._calls = calls
        self._redrawn_every = _REDRAWN_EVERY if calls is None else 1
        self._task: TaskID | None = None
        self._ended = 0

    def run_begins(self, label: str) -> None:
        self.ends()
        self._task = self._progress.add_task(label, total=self._calls)

    def call_ended(self, record: Record) -> None:  # noqa: ARG002  the meter's protocol
        self._ended += 1
        if self._task is not None and self._ended % self._redrawn_every == 0:
            self._progress.advance(self._task, self._redrawn_every)

    def ends(self) -> None:
        if self._task is not None:
            self._progress.update(self._task, completed=self._ended, total=self._ended)
        self._ended = 0


def run_case(case: str, options: dict[str, Any]) -> ExitCode:
    """Run a benchmark, print what it found, and write it to where the options say.

    Args:
        case: Its name.
        options: Of its command, by name; those that are None leave a number to the plan.
    """
    console = Console(stderr=True)
    try:
        setting = _setting(options)
        draw = drawing() if setting.plot is not None else None
        plan = _plan(case, options, is_real=setting.upstream is not None or case == LIVE)
        began_s = time.monotonic()
        findings, place = _find(case, plan, setting, console)
    except (BenchmarkError, servers.ServerFailedError) as error:
        return server.refuse(error, ExitCode.FAILED)
    except EmbeddedError as error:
        return server.refuse(error, error.exit_code)
    except KeyboardInterrupt:
        return server.refuse("interrupted", ExitCode.INTERRUPTED)
    wall_s = time.monotonic() - began_s
    _tell(findings, place, wall_s)
    about = {"engine": place, "options": dataclasses.asdict(plan), "wall_s": wall_s}
    document = report.as_json(findings, about)
    if setting.json is not None:
        setting.json.write_bytes(document)
    if setting.plot is not None and draw is not None:
        draw(document, setting.plot)
    return ExitCode.OK


def _setting(options: dict[str, Any]) -> _Setting:
    """Take the place out of the options.

    Raises:
        BenchmarkError: They name two places, or a profile that does not exist.
    """
    upstream, profile = options.pop("upstream", None), options.pop("profile", None)
    is_simulated, is_live = options.pop("simulate", False), options.pop("live", False)
    check_place(upstream, profile, is_simulated=is_simulated)
    if is_simulated and is_live:
        raise BenchmarkError("--live and --simulate exclude each other: a live run is on a real engine")
    return _Setting(upstream, profile, options.pop("model", None), options.pop("json"), options.pop("plot"))


def check_place(upstream: str | None, profile: str | None, *, is_simulated: bool) -> None:
    """Check the options that say where a benchmark runs.

    Raises:
        BenchmarkError: They name two places, or a profile that does not exist.
    """
    if is_simulated and upstream is not None:
        raise BenchmarkError(
            "--upstream and --simulate exclude each other: a run is on a real engine or a simulated one"
        )
    if profile is not None and profile not in PROFILES:
        raise BenchmarkError(f"--profile: expected one of {', '.join(PROFILES)}, got {profile!r}")


def drawing() -> Callable[[bytes, Path], None]:
    """What draws a benchmark's JSON; found before the benchmark runs, so that a lack of it is told at once.

    Raises:
        BenchmarkError: matplotlib is not installed.
    """
    try:
        from muster_proxy.bench.charts.drawing import draw  # noqa: PLC0415  matplotlib is not in every installation
    except ModuleNotFoundError as error:
        if error.name not in ("matplotlib", "numpy"):
            raise
        raise BenchmarkError("--plot needs matplotlib: pip install 'muster[bench]'") from error
    return draw


def _plan(case: str, options: dict[str, Any], *, is_real: bool) -> Any:  # noqa: ANN401  each case has its own
    """The case's plan for the place, with what the options change."""
    is_quick = options.pop("quick")
    plan = _PLANS[case]["quick" if is_quick else "real" if is_real else "simulated"]
    _check_kind(options, plan, is_live=case == LIVE)
    lengths = options.pop("lengths", None) or (REAL_LENGTHS if is_real and case != LIVE else 1.0)
    options["seed"] = str(options["seed"])
    changes = {name: _frozen(value) for name, value in options.items() if value is not None}
    for field in dataclasses.fields(plan):
        value = getattr(plan, field.name)
        if isinstance(value, Mix | AgentShape):
            changes[field.name] = dataclasses.replace(value, scale=lengths)
    return dataclasses.replace(plan, **changes)


def _check_kind(options: Mapping[str, Any], plan: Any, *, is_live: bool) -> None:  # noqa: ANN401  see `_plan`
    """Refuse what the plan has no place for.

    Raises:
        BenchmarkError: An option is of the other kind of run.
    """
    has = {field.name for field in dataclasses.fields(plan)}
    for name, flag in _OF_ONE_KIND.items():
        if options.get(name) is not None and name not in has:
            raise BenchmarkError(f"{flag} is {'not for' if is_live else 'for'} --live")


def _frozen(value: object) -> object:
    """What an option holds, as a plan holds it."""
    return tuple(cast("list[object]", value)) if isinstance(value, list) else value


def _find(case: str, plan: Any, setting: _Setting, console: Console) -> tuple[Findings, dict[str, Any]]:  # noqa: ANN401
    if case == LIVE:
        return _find_live(plan, setting, console)
    with _meter(console) as bar:
        if case == "scale":
            return scale.run(plan, bar.run_begins), {}
        if setting.upstream is not None:
            target = asyncio.run(ways.find_target(setting.upstream, setting.model))
            place = {"upstream": target.url, "model": target.model}
            return _ON_A_LAB[case](HttpLab(target, bar), plan), place
        profile = PROFILES[cast("str", setting.profile)]
        lab = SimulatedLab(profile, bar)
        findings = metrics.run(lab, plan) if case == "metrics" else _ON_A_LAB[case](lab, plan)
        place = {
            "simulated": setting.profile,
            "virtual_s": lab.virtual_s,
            "parameters": dataclasses.asdict(profile),
        }
        return findings, place


def _find_live(
    plan: live_agents.Plan, setting: _Setting, console: Console
) -> tuple[Findings, dict[str, Any]]:
    with _live_engine(setting.upstream) as (url, limit):
        target = asyncio.run(ways.find_target(url, setting.model))
        with _meter(console, plan.calls) as bar:
            findings = live_agents.run(HttpLab(target, bar, limit), plan)
    return findings, {"upstream": setting.upstream, "model": target.model, "limit": limit}


@contextlib.contextmanager
def _live_engine(upstream: str | None) -> Generator[tuple[str, int | None]]:
    """The engine's URL, and Muster's limit for it; where none is named, the embedded one is started."""
    if upstream is not None:
        yield upstream, None
        return
    with servers.embedded_engine() as (url, limit):
        yield url, limit


@contextlib.contextmanager
def _meter(console: Console, calls: int | None = None) -> Generator[_Bar]:
    known: tuple[ProgressColumn, ...] = (BarColumn(), MofNCompleteColumn())
    counted = (TextColumn("{task.completed:,.0f}"),) if calls is None else known
    columns = (SpinnerColumn(), TextColumn("{task.description}"), *counted, TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        bar = _Bar(progress, calls)
        yield bar
        bar.ends()


def _tell(findings: Findings, place: Mapping[str, Any], wall_s: float) -> None:
    console = Console()
    if "simulated" in place:
        engine = f"simulated {place['simulated']}"
        passed = f"{place['virtual_s']:,.0f} s of virtual time passed in {wall_s:.1f} s"
    else:
        engine = str(place.get("model", "no engine"))
        passed = f"{wall_s:.0f} s"
    report.show(findings, engine, console)
    console.print(passed, highlight=False, style="dim")
