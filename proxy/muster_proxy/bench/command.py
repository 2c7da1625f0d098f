"""`muster bench NAME`."""

import dataclasses
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast, get_type_hints

import typer

bench = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

_Options = TypeVar("_Options")


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """Where the figures go, beside the terminal."""

    json: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the figures as JSON too.", show_default=False)
    ] = None
    plot: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.svg", help="Draw them too; needs matplotlib (extra bench).", show_default=False
        ),
    ] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial(Output):
    """What every benchmark but the original has."""

    quick: Annotated[bool, typer.Option("--quick", help="A trial of seconds; its figures mean little.")] = (
        False
    )
    seed: Annotated[int, typer.Option(help="Of all that is drawn.")] = 7


_Profile = Annotated[str, typer.Option(help="The simulated engine: h200-8b or cpu-135m.")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulation(Trial):
    """What a benchmark on a simulated engine has."""

    profile: _Profile = "h200-8b"
    lengths: Annotated[
        float | None,
        typer.Option(
            min=0.001,
            help="Multiply prompts and answers by it. [1, on a real engine 0.25]",
            show_default=False,
        ),
    ] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Place(Simulation):
    """What a benchmark on a real or a simulated engine has."""

    upstream: Annotated[
        str | None,
        typer.Option(
            metavar="URL", help="Run on this OpenAI-compatible server, in real time.", show_default=False
        ),
    ] = None
    simulate: Annotated[
        bool, typer.Option("--simulate", help="Run on a model of an engine, in virtual time. [default]")
    ] = False
    model: Annotated[
        str | None, typer.Option(help="A model of the upstream. [its first]", show_default=False)
    ] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine(Place):
    """What a benchmark has that measures the engine's capacity first."""

    capacity_requests: Annotated[
        int | None,
        typer.Option(
            min=10, help="Requests to measure the capacity with. [2000, real 150]", show_default=False
        ),
    ] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LightOptions(Engine):
    """Of `muster bench light`."""

    load: Annotated[
        float | None, typer.Option(min=0.001, help="In units of the capacity. [0.5]", show_default=False)
    ] = None
    duration_s: Annotated[
        float | None,
        typer.Option(
            "--duration", min=1, help="Seconds that requests arrive. [60, real 30]", show_default=False
        ),
    ] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MixedOptions(Engine):
    """Of `muster bench mixed`."""

    load: Annotated[
        float | None,
        typer.Option(min=0.001, help="What people send, in units of the capacity. [0.1]", show_default=False),
    ] = None
    lines: Annotated[
        int | None, typer.Option(min=1, help="Lines of the batch. [3000, real 100]", show_default=False)
    ] = None
    alone_s: Annotated[
        float | None,
        typer.Option("--alone", min=1, help="Seconds of people alone. [120, real 30]", show_default=False),
    ] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class OverloadOptions(Engine):
    """Of `muster bench overload`."""

    times: Annotated[
        float | None,
        typer.Option(min=0.1, help="The load, in units of the capacity. [10]", show_default=False),
    ] = None
    duration_s: Annotated[
        float | None, typer.Option("--duration", min=3, help="Seconds of it. [60]", show_default=False)
    ] = None
    deadline_s: Annotated[
        float | None,
        typer.Option(
            "--deadline", min=0.1, help="Seconds after which clients hang up. [10]", show_default=False
        ),
    ] = None
    silent: Annotated[bool, typer.Option("--silent", help="They do not tell it in their requests.")] = False


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantsOptions(Engine):
    """Of `muster bench tenants`."""

    load: Annotated[
        float | None,
        typer.Option(
            min=0.001, help="Of each polite tenant, in units of the capacity. [0.05]", show_default=False
        ),
    ] = None
    flood: Annotated[
        int | None,
        typer.Option(
            min=1, help="Requests that the flooder has under way. [500, real 100]", show_default=False
        ),
    ] = None
    flood_s: Annotated[
        float | None,
        typer.Option("--duration", min=1, help="Seconds of flooding. [90, real 60]", show_default=False),
    ] = None
    backlog: Annotated[
        int | None,
        typer.Option(min=1, help="Requests of each, when all want all. [100, real 20]", show_default=False),
    ] = None
    backlog_s: Annotated[
        float | None,
        typer.Option("--backlog-duration", min=1, help="Seconds of that. [150]", show_default=False),
    ] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentsOptions(Place):
    """Of `muster bench agents`."""

    live: Annotated[
        bool,
        typer.Option(
            "--live",
            help="Agents beside people, three ways in turns, on the embedded engine or the upstream; some minutes. "
            "Lengths suit a small engine: --lengths 10 for a large one.",
        ),
    ] = False
    agents: Annotated[
        int | None, typer.Option(min=1, help="Live: sessions at once. [16]", show_default=False)
    ] = None
    rounds: Annotated[
        int | None, typer.Option(min=1, help="Live: times that each way is run. [3]", show_default=False)
    ] = None
    working_sets: Annotated[
        list[float] | None,
        typer.Option(
            "--working-set",
            min=0.01,
            help="Contexts alive at once, in units of the KV cache; repeatable. [0.5 1 1.5 2 3, real 0.5 2]",
            show_default=False,
        ),
    ] = None
    turnover: Annotated[
        int | None,
        typer.Option("--sessions", min=1, help="Sessions for each place. [3, real 2]", show_default=False),
    ] = None
    kv_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Size of the KV cache. [as the engine tells]", show_default=False),
    ] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricsOptions(Simulation):
    """Of `muster bench metrics`."""

    clients: Annotated[
        int | None, typer.Option(min=1, help="Clients that saturate the engine. [600]", show_default=False)
    ] = None
    duration_s: Annotated[
        float | None,
        typer.Option("--duration", min=7, help="Seconds for each kind of metrics. [90]", show_default=False),
    ] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleOptions(Trial):
    """Of `muster bench scale`."""

    waiting: Annotated[
        list[int] | None,
        typer.Option(
            min=1,
            help="Tickets that wait; repeatable. [10 100 1000 10000 100000]",
            show_default=False,
        ),
    ] = None
    decisions: Annotated[
        int | None, typer.Option(min=10, help="Of each kind and size. [5000]", show_default=False)
    ] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SeedOptions(Output):
    """Of `muster bench seed`."""

    upstream: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Root URL of an OpenAI-compatible server. Without it the embedded engine is started for the run.",
            show_default=False,
        ),
    ] = None
    simulate: Annotated[
        bool, typer.Option("--simulate", help="Run on a model of an engine, which answers over HTTP.")
    ] = False
    profile: _Profile = "h200-8b"
    model: Annotated[
        str | None, typer.Option(help="A model of the upstream. [its first]", show_default=False)
    ] = None
    requests: Annotated[int, typer.Option(min=1, help="Requests each way.")] = 50
    rounds: Annotated[
        int,
        typer.Option(
            min=1, help="Times that the two concurrent ways are run, in turns, for a steadier ratio."
        ),
    ] = 1
    limit: Annotated[
        int | None,
        typer.Option(min=1, help="Muster's limit in flight. [engine's slots, or 256]", show_default=False),
    ] = None


def _takes(options: type[_Options]) -> Callable[[Callable[[_Options], None]], Callable[..., None]]:
    """Give a command the options that a dataclass describes, and hand it the dataclass."""

    def decorate(command: Callable[[_Options], None]) -> Callable[..., None]:
        def run(**given: object) -> None:
            command(options(**given))

        hints = get_type_hints(options, include_extras=True)
        fields = dataclasses.fields(cast("Any", options))
        parameters = [
            inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=field.default,
                annotation=hints[field.name],
            )
            for field in fields
        ]
        run.__name__, run.__doc__ = command.__name__, command.__doc__
        run.__annotations__ = hints
        run.__signature__ = inspect.Signature(parameters)  # pyright: ignore[reportFunctionMemberAccess]  PEP 362's
        return run

    return decorate


def _run(case: str, options: Trial) -> None:
    from muster_proxy.bench.benchmark import run_case  # noqa: PLC0415  `muster --help` imports none of it

    raise typer.Exit(run_case(case, dataclasses.asdict(options)))


@bench.callback()
def benchmarks() -> None:
    """Compare Muster with going to the engine directly, in one run."""


@bench.command()
@_takes(SeedOptions)
def seed(options: SeedOptions) -> None:
    """Run the original comparison: one at a time, all at once, one explicit batch, through Muster, in windows.

    50 requests of 10 to 150 tokens each way. The ratio is the requests per second over those of one at a time.
    """
    from muster_proxy.bench.seed import Plan, run_seed  # noqa: PLC0415  see above

    given = dataclasses.asdict(options)
    json, plot = given.pop("json"), given.pop("plot")
    raise typer.Exit(run_seed(Plan(**given), json, plot))


@bench.command()
@_takes(LightOptions)
def light(options: LightOptions) -> None:
    """Below saturation: what Muster adds where there is nothing to win."""
    _run("light", options)


@bench.command()
@_takes(MixedOptions)
def mixed(options: MixedOptions) -> None:
    """People alone, then beside a large batch: how long they wait, and what the batch gets."""
    _run("mixed", options)


@bench.command()
@_takes(OverloadOptions)
def overload(options: OverloadOptions) -> None:
    """Ten times the capacity, from clients that hang up after a while: how many are served."""
    _run("overload", options)


@bench.command()
@_takes(TenantsOptions)
def tenants(options: TenantsOptions) -> None:
    """One tenant floods, nine are polite; then all want all: who gets what."""
    _run("tenants", options)


@bench.command()
@_takes(AgentsOptions)
def agents(options: AgentsOptions) -> None:
    """Agents whose contexts fit the engine's KV cache, and ever more that do not; or --live, beside people."""
    _run("agents live" if options.live else "agents", options)


@bench.command()
@_takes(MetricsOptions)
def metrics(options: MetricsOptions) -> None:
    """Metrics that are missing, old or untrue: what a saturated engine loses. Simulated only."""
    _run("metrics", options)


@bench.command()
@_takes(ScaleOptions)
def scale(options: ScaleOptions) -> None:
    """What a decision of the scheduler costs with 10 to 100,000 tickets waiting. Needs no engine."""
    _run("scale", options)
