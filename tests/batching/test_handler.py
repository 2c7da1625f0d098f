"""The front door for programs: what is sent when, who gets which answer, and who is told what else."""

import asyncio
import gc
import math
from collections.abc import Awaitable, Sequence
from typing import Any, TypeAlias
from weakref import ref

import pytest

from muster_batching import ClosedError, LimitError, TurnAwayReason, TurnedAway
from muster_batching.handler import AnswerCountError, BatchHandler, HandlerOptions, ModeError
from muster_batching.tickets import RequestClass, SessionId, TenantId, Usage

TEAM_A = TenantId("team-a")
TEAM_B = TenantId("team-b")
LONG_MS = 60_000.0
GREEDY = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "temperature": 0}


class EngineError(Exception):
    """What the engine below raises when it is told to fail."""


class Call:
    """A call of the engine, which the test answers."""

    def __init__(self, request: Any) -> None:
        self.request = request
        self.reply: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.has_ended = asyncio.Event()

    def answer(self, answer: Any) -> None:
        """Return the answer, or for a batch the answers."""
        self.reply.set_result(answer)

    def fail(self, error: BaseException) -> None:
        """Raise the error."""
        self.reply.set_exception(error)


class Engine:
    """A client of both kinds, whose calls end when the test says so."""

    def __init__(self) -> None:
        self.calls: asyncio.Queue[Call] = asyncio.Queue()

    async def chat_completion(self, request: Any, /) -> Any:
        """Serve one request."""
        return await self._serve(request)

    async def batch_chat_completion(self, requests: Sequence[Any], /) -> Sequence[Any]:
        """Serve a batch."""
        return await self._serve(requests)

    async def _serve(self, request: Any) -> Any:
        call = Call(request)
        self.calls.put_nowait(call)
        try:
            return await call.reply
        finally:
            call.has_ended.set()


Handler: TypeAlias = BatchHandler[Any, Any]
Answers: TypeAlias = asyncio.Task[Any]


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    """Run each test on asyncio's own event loop and on uvloop."""
    return "asyncio", {"use_uvloop": request.param}


@pytest.fixture
def engine() -> Engine:
    """The engine behind the handler."""
    return Engine()


async def settle() -> None:
    """Let every task run until each waits for something that the test has yet to do."""
    for _ in range(20):
        await asyncio.sleep(0)


async def ask(handler: Handler, *requests: Any, **terms: Any) -> list[Answers]:
    """Add requests one after another, each from a task of its own."""
    tasks: list[Answers] = []
    for request in requests:
        tasks.append(asyncio.get_running_loop().create_task(handler.add_request(request, **terms)))
        await settle()
    return tasks


async def errors(tasks: Sequence[Answers]) -> list[BaseException | None]:
    """Wait for the tasks' ends; list what they raised."""
    await asyncio.wait(tasks)
    return [task.exception() for task in tasks]


async def reasons(tasks: Sequence[Answers]) -> list[TurnAwayReason]:
    """Wait for the tasks' ends; list why they were turned away."""
    turned_away = await errors(tasks)
    assert all(isinstance(error, TurnedAway) for error in turned_away)
    return [error.reason for error in turned_away if isinstance(error, TurnedAway)]


def continuous(engine: Engine, max_batch_size: int, **options: Any) -> Handler:
    """Make a handler in continuous mode."""
    return BatchHandler(engine, max_batch_size=max_batch_size, options=HandlerOptions(**options))


def windowed(engine: Engine, max_batch_size: int, timeout_ms: float = LONG_MS, **options: Any) -> Handler:
    """Make a handler in window mode; without another timeout only a full window goes."""
    return BatchHandler(
        engine,
        max_batch_size=max_batch_size,
        timeout_ms=timeout_ms,
        mode="window",
        options=HandlerOptions(**options),
    )


async def test_each_request_gets_its_answer(engine: Engine) -> None:
    """In continuous mode a request is sent alone and at once, and its answer is given back as it is."""
    async with BatchHandler[Any, Any](engine) as handler:
        (task,) = await ask(handler, "hi")
        call = engine.calls.get_nowait()
        call.answer("hello")

        assert call.request == "hi"
        assert await task == "hello"


async def test_a_slot_is_filled_when_it_comes_free(engine: Engine) -> None:
    """As many requests as there are slots are under way, and the next goes when any one of them ends."""
    async with continuous(engine, 2) as handler:
        tasks = await ask(handler, "a", "b", "c")
        first, second = engine.calls.get_nowait(), engine.calls.get_nowait()
        assert engine.calls.empty()
        second.answer("B")
        third = await engine.calls.get()
        third.answer("C")
        first.answer("A")

        assert [await task for task in tasks] == ["A", "B", "C"]
        assert (handler.stats.total_requests, handler.stats.total_batches) == (3, 3)
        assert handler.stats.avg_batch_size == pytest.approx(5 / 3)


async def test_a_failure_is_its_own_requests_alone(engine: Engine) -> None:
    """The client's error reaches the one whose call failed, and its slot goes to the next."""
    async with continuous(engine, 1) as handler:
        failing, waiting = await ask(handler, "a", "b")
        error = EngineError()
        engine.calls.get_nowait().fail(error)
        (await engine.calls.get()).answer("B")

        assert await errors([failing]) == [error]
        assert await waiting == "B"


async def test_a_cancelled_task_takes_its_request_with_it(engine: Engine) -> None:
    """A waiting request is never sent, and the call of a running one is cancelled."""
    async with continuous(engine, 1) as handler:
        running, waiting, last = await ask(handler, "a", "b", "c")
        call = engine.calls.get_nowait()
        waiting.cancel()
        running.cancel()
        await call.has_ended.wait()
        next_call = await engine.calls.get()
        next_call.answer("C")

        assert next_call.request == "c"
        assert await last == "C"


async def test_only_so_many_wait(engine: Engine) -> None:
    """In continuous mode a request that comes when as many wait as may is turned away at once."""
    async with continuous(engine, 1, max_waiting=1) as handler:
        running, waiting, refused = await ask(handler, "a", "b", "c")

        assert await reasons([refused]) == [TurnAwayReason.WAITING_FULL]
        for task in (running, waiting):
            (await engine.calls.get()).answer("yes")
            assert await task == "yes"


async def test_nobody_waits_for_ever(engine: Engine) -> None:
    """In continuous mode a request that waits too long for its turn is turned away."""
    async with continuous(engine, 1, max_wait_s=0.01) as handler:
        running, waiting = await ask(handler, "a", "b")

        assert await reasons([waiting]) == [TurnAwayReason.WAITED_TOO_LONG]
        engine.calls.get_nowait().answer("A")
        assert await running == "A"


async def test_the_most_urgent_goes_first(engine: Engine) -> None:
    """A request's class decides its turn in continuous mode."""
    async with continuous(engine, 1) as handler:
        tasks = await ask(handler, "first")
        tasks += await ask(handler, "offline", request_class=RequestClass.BATCH)
        tasks += await ask(handler, "a person's", request_class=RequestClass.INTERACTIVE)
        sent: list[str] = []
        for _ in tasks:
            call = await engine.calls.get()
            sent.append(call.request)
            call.answer("yes")
        await asyncio.wait(tasks)

        assert sent == ["first", "a person's", "offline"]


async def test_a_deadline_that_cannot_be_kept_turns_away(engine: Engine) -> None:
    """A request whose first token would come too late is not kept waiting for it."""
    async with continuous(engine, 1) as handler:
        (running,) = await ask(handler, "a")
        late = await ask(handler, "b", ttft_deadline_s=0.005, session=SessionId("s"))

        assert await reasons(late) == [TurnAwayReason.DEADLINE]
        engine.calls.get_nowait().answer("A")
        assert await running == "A"


@pytest.mark.parametrize(
    ("tokens", "usage", "expected"),
    [
        ({}, None, "a2"),
        ({"a1": 10_000}, None, "b2"),
        ({}, Usage(input_tokens=1, output_tokens=10_000), "b2"),
    ],
    ids=["nothing is known", "it looks dear", "it was dear"],
)
async def test_what_a_request_costs_decides_whose_turn_is_next(
    engine: Engine, tokens: dict[str, int], usage: Usage | None, expected: str
) -> None:
    """A tenant whose request is dear, by its answer or else by the estimate, waits for the other."""

    def tokens_of(request: str) -> int:
        return tokens.get(request, 1)

    usages = {"A1": usage}
    async with continuous(engine, 2, tokens_of=tokens_of, usage_of=usages.get) as handler:
        tasks: list[Answers] = []
        for request, tenant in [("a1", TEAM_A), ("b1", TEAM_B), ("a2", TEAM_A), ("b2", TEAM_B)]:
            tasks += await ask(handler, request, tenant=tenant)
        engine.calls.get_nowait().answer("A1")
        await settle()
        engine.calls.get_nowait().answer("B1")
        third = await engine.calls.get()
        assert third.request == expected
        third.answer("yes")
        (await engine.calls.get()).answer("yes")
        await asyncio.wait(tasks)


@pytest.mark.parametrize(
    ("sessions", "expected"), [((None, None), "a2"), ((SessionId("a"), SessionId("b")), "b1")]
)
async def test_sessions_take_turns(
    engine: Engine, sessions: tuple[SessionId | None, SessionId | None], expected: str
) -> None:
    """Of one tenant's sessions the one that has had less is next; requests without one go as they came."""
    usages = {"A1": Usage(input_tokens=10, output_tokens=1_000_000)}
    async with continuous(engine, 1, usage_of=usages.get) as handler:
        tasks = await ask(handler, "a1", session=sessions[0])
        engine.calls.get_nowait().answer("A1")
        tasks += await ask(handler, "running")
        tasks += await ask(handler, "a2", session=sessions[0])
        tasks += await ask(handler, "b1", session=sessions[1])
        engine.calls.get_nowait().answer("yes")
        third = await engine.calls.get()
        assert third.request == expected
        third.answer("yes")
        (await engine.calls.get()).answer("yes")
        await asyncio.wait(tasks)


async def test_closing_ends_what_waits_and_spares_what_runs(engine: Engine) -> None:
    """In continuous mode the running request gets its answer, the waiting and the new ones an error."""
    handler = continuous(engine, 1)
    running, waiting = await ask(handler, "a", "b")
    await handler.aclose()
    engine.calls.get_nowait().answer("A")
    with pytest.raises(ClosedError):
        await handler.add_request("c")

    assert await running == "A"
    assert [type(error) for error in await errors([waiting])] == [ClosedError]


async def test_a_full_window_goes_at_once_as_one_call(engine: Engine) -> None:
    """In window mode requests are sent together, and the answers are handed out in their order."""
    async with windowed(engine, 3) as handler:
        tasks = await ask(handler, "a", "b", "c")
        call = engine.calls.get_nowait()
        call.answer(["A", "B", "C"])

        assert call.request == ["a", "b", "c"]
        assert [await task for task in tasks] == ["A", "B", "C"]
        assert (handler.stats.total_requests, handler.stats.total_batches) == (3, 1)
        assert handler.stats.avg_batch_size == 3.0


async def test_a_window_goes_when_its_time_is_up(engine: Engine) -> None:
    """A window that does not fill is sent after its timeout with what is in it."""
    async with windowed(engine, 3, timeout_ms=5.0) as handler:
        tasks = await ask(handler, "a", "b")
        call = await engine.calls.get()
        call.answer(["A", "B"])

        assert call.request == ["a", "b"]
        assert [await task for task in tasks] == ["A", "B"]


async def test_the_next_batch_forms_while_one_runs(engine: Engine) -> None:
    """In window mode one call is under way at a time; the next holds what has come meanwhile."""
    async with windowed(engine, 2) as handler:
        tasks = await ask(handler, "a", "b", "c", "d", "e")
        first = engine.calls.get_nowait()
        assert engine.calls.empty()
        first.answer(["A", "B"])
        second = await engine.calls.get()
        assert second.request == ["c", "d"]
        second.answer(["C", "D"])

        assert [await task for task in tasks[:4]] == ["A", "B", "C", "D"]
        tasks[4].cancel()


async def test_a_failed_batch_fails_all_in_it(engine: Engine) -> None:
    """The call's error reaches everyone in the batch at once, and the next batch is none the worse."""
    async with windowed(engine, 2) as handler:
        failing = await ask(handler, "a", "b")
        answered = await ask(handler, "c", "d")
        error = EngineError()
        engine.calls.get_nowait().fail(error)
        (await engine.calls.get()).answer(["C", "D"])

        assert await errors(failing) == [error, error]
        assert [await task for task in answered] == ["C", "D"]


@pytest.mark.parametrize("answers", [["A"], ["A", "B", "C"]])
async def test_a_wrong_number_of_answers_is_an_error_to_all(engine: Engine, answers: list[str]) -> None:
    """Nobody is given what may be another's answer."""
    async with windowed(engine, 2) as handler:
        tasks = await ask(handler, "a", "b")
        engine.calls.get_nowait().answer(answers)

        for error in await errors(tasks):
            assert isinstance(error, AnswerCountError)
            assert (error.expected, error.got) == (2, len(answers))


async def test_who_leaves_a_window_is_not_sent(engine: Engine) -> None:
    """A request whose task is cancelled before the window goes is not in the batch."""
    async with windowed(engine, 2) as handler:
        (leaver,) = await ask(handler, "a")
        leaver.cancel()
        await settle()
        stayers = await ask(handler, "b", "c")
        call = engine.calls.get_nowait()
        call.answer(["B", "C"])

        assert call.request == ["b", "c"]
        assert [await task for task in stayers] == ["B", "C"]


async def test_who_leaves_a_running_batch_hurts_nobody(engine: Engine) -> None:
    """The others of the batch get their own answers."""
    async with windowed(engine, 3) as handler:
        tasks = await ask(handler, "a", "b", "c")
        tasks[1].cancel()
        await settle()
        engine.calls.get_nowait().answer(["A", "B", "C"])

        assert [await tasks[0], await tasks[2]] == ["A", "C"]


async def test_a_batch_that_all_have_left_is_cancelled(engine: Engine) -> None:
    """A call that nobody waits for is ended, and the next batch goes."""
    async with windowed(engine, 2) as handler:
        leavers = await ask(handler, "a", "b")
        stayers = await ask(handler, "c", "d")
        call = engine.calls.get_nowait()
        for task in leavers:
            task.cancel()
        await call.has_ended.wait()
        assert call.reply.cancelled()
        (await engine.calls.get()).answer(["C", "D"])

        assert [await task for task in stayers] == ["C", "D"]


async def test_a_task_is_cancelled_as_its_answer_comes(engine: Engine) -> None:
    """A task cancelled between the end of its batch's call and the handing out does not hurt the others."""
    async with windowed(engine, 2) as handler:
        leaver, stayer = await ask(handler, "a", "b")
        call = engine.calls.get_nowait()
        call.answer(["A", "B"])
        await call.has_ended.wait()
        leaver.cancel()

        assert await stayer == "B"
        assert leaver.cancelled()


async def test_only_so_many_wait_for_a_window(engine: Engine) -> None:
    """In window mode a request that comes when as many wait as may is turned away at once."""
    async with windowed(engine, 2, max_waiting=1) as handler:
        waiting, refused = await ask(handler, "a", "b")

        assert await reasons([refused]) == [TurnAwayReason.WAITING_FULL]
        waiting.cancel()


async def test_nobody_waits_for_ever_for_a_batch_to_end(engine: Engine) -> None:
    """In window mode a request that waits too long behind a running call is turned away."""
    async with windowed(engine, 1, timeout_ms=0.0, max_wait_s=0.01) as handler:
        running, waiting = await ask(handler, "a", "b")

        assert await reasons([waiting]) == [TurnAwayReason.WAITED_TOO_LONG]
        engine.calls.get_nowait().answer(["A"])
        assert await running == "A"


async def test_closing_a_window_waits_for_the_running_call(engine: Engine) -> None:
    """The running batch is answered before closing ends; the waiting and the new get an error at once."""
    handler = windowed(engine, 1)
    running, waiting = await ask(handler, "a", "b")
    closing = asyncio.get_running_loop().create_task(handler.aclose())
    assert [type(error) for error in await errors([waiting])] == [ClosedError]
    with pytest.raises(ClosedError):
        await handler.add_request("c")
    assert not closing.done()
    engine.calls.get_nowait().answer(["A"])
    await closing
    await handler.aclose()

    assert running.result() == "A"


async def test_a_closing_that_is_cancelled_ends_the_call(engine: Engine) -> None:
    """Who does not want to wait for the running call cancels the closing: the batch is told it was closed."""
    handler = windowed(engine, 1)
    tasks = await ask(handler, "a")
    closing = asyncio.get_running_loop().create_task(handler.aclose())
    await settle()
    closing.cancel()
    await asyncio.wait([closing])

    assert engine.calls.get_nowait().reply.cancelled()
    assert [type(error) for error in await errors(tasks)] == [ClosedError]


async def test_closing_crosses_a_cancellation(engine: Engine) -> None:
    """A task cancelled in the moment of closing ends as cancelled."""
    handler = windowed(engine, 2)
    (waiting,) = await ask(handler, "a")
    waiting.cancel()
    await handler.aclose()
    await asyncio.wait([waiting])

    assert waiting.cancelled()


async def test_a_call_cancelled_from_within_leaves_nobody_waiting(engine: Engine) -> None:
    """A cancellation that none of the batch asked for reaches them all."""
    async with windowed(engine, 2) as handler:
        tasks = await ask(handler, "a", "b")
        engine.calls.get_nowait().fail(asyncio.CancelledError())
        await asyncio.wait(tasks)

        assert [task.cancelled() for task in tasks] == [True, True]


async def test_a_failure_with_nobody_left_is_reported_to_the_loop() -> None:
    """A call that fails as it is cancelled behind the last of its batch does not go unnoticed."""
    reports: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, report: reports.append(report))

    class Failing:
        async def batch_chat_completion(self, _requests: Sequence[str], /) -> Sequence[str]:
            try:
                return await asyncio.get_running_loop().create_future()
            finally:
                raise EngineError

    async with BatchHandler(Failing(), max_batch_size=1, mode="window") as handler:
        (task,) = await ask(handler, "a")
        task.cancel()
        await settle()
    gc.collect()

    assert [type(report["exception"]) for report in reports] == [EngineError]


async def test_a_call_is_cancelled_once() -> None:
    """While a cancelled call takes its time to end, others that give up do not disturb it."""

    class Slow:
        def __init__(self) -> None:
            self.cancellations = 0
            self.may_end = asyncio.Event()

        async def batch_chat_completion(self, _requests: Sequence[str], /) -> Sequence[str]:
            while not self.may_end.is_set():
                try:
                    await self.may_end.wait()
                except asyncio.CancelledError:
                    self.cancellations += 1
            return ["too late"]

    client = Slow()
    options = HandlerOptions[str, str](max_wait_s=0.01)
    handler = BatchHandler(client, max_batch_size=1, timeout_ms=0.0, mode="window", options=options)
    leaver, waiting = await ask(handler, "a", "b")
    leaver.cancel()

    assert await reasons([waiting]) == [TurnAwayReason.WAITED_TOO_LONG]
    await settle()
    assert client.cancellations == 1
    client.may_end.set()
    await handler.aclose()


async def test_an_idle_window_leaves_nothing_on_the_loop() -> None:
    """Once nobody waits no timer and no task keeps alive what a handler held that was let go."""

    async def leave_one(engine: Engine) -> None:
        handler = windowed(engine, 2)
        (task,) = await ask(handler, "a")
        task.cancel()
        await asyncio.wait([task])

    engine = Engine()
    await leave_one(engine)
    remains = ref(engine)
    del engine
    gc.collect()

    assert remains() is None


@pytest.mark.parametrize("mode", ["continuous", "window"])
async def test_equal_requests_share_one_answer(engine: Engine, mode: Any) -> None:
    """With single flight one call answers all equal deterministic requests that are under way together."""
    handler = BatchHandler[Any, Any](
        engine, mode=mode, max_batch_size=1, single_flight=True, options=HandlerOptions(key_of=str)
    )
    async with handler:
        tasks = await ask(handler, "hi", "hi", "hi")
        engine.calls.get_nowait().answer("A")
        answers = [await task for task in tasks]

        assert answers == ["A", "A", "A"]
        assert engine.calls.empty()
        assert handler.stats.total_requests == 1


async def test_a_leader_that_leaves_does_not_take_the_answer(engine: Engine) -> None:
    """The request that came first may be cancelled: its call goes on for the other."""
    async with BatchHandler[Any, Any](engine, single_flight=True) as handler:
        leader, follower = await ask(handler, GREEDY, GREEDY)
        leader.cancel()
        await settle()
        engine.calls.get_nowait().answer("A")

        assert await follower == "A"


async def test_a_failure_is_not_shared(engine: Engine) -> None:
    """When the shared call fails, the one that made it is told, and the other makes its own."""
    async with BatchHandler[Any, Any](engine, single_flight=True) as handler:
        leader, follower = await ask(handler, GREEDY, GREEDY)
        error = EngineError()
        engine.calls.get_nowait().fail(error)
        (await engine.calls.get()).answer("A")

        assert await errors([leader]) == [error]
        assert await follower == "A"


async def test_closing_reaches_all_who_share(engine: Engine) -> None:
    """Requests that share one that waits are ended with it."""
    handler = BatchHandler[Any, Any](engine, max_batch_size=1, single_flight=True)
    (running,) = await ask(handler, "a")
    sharing = await ask(handler, GREEDY, GREEDY)
    await handler.aclose()

    assert [type(error) for error in await errors(sharing)] == [ClosedError, ClosedError]
    engine.calls.get_nowait().answer("A")
    assert await running == "A"


@pytest.mark.parametrize(
    ("requests", "terms"),
    [
        ([{**GREEDY, "temperature": 1}, {**GREEDY, "temperature": 1}], [{}, {}]),
        (["hi", "hi"], [{}, {}]),
        ([GREEDY, {**GREEDY, "max_tokens": 1}], [{}, {}]),
        ([GREEDY, GREEDY], [{"tenant": TEAM_A}, {"tenant": TEAM_B}]),
        ([GREEDY, GREEDY], [{}, {"request_class": RequestClass.BATCH}]),
    ],
    ids=["sampled", "no body", "another", "two tenants", "two classes"],
)
async def test_what_differs_is_not_shared(engine: Engine, requests: list[Any], terms: list[Any]) -> None:
    """What is sampled or is no body, and what differs in itself, its tenant or its class, is sent each."""
    async with BatchHandler[Any, Any](engine, single_flight=True) as handler:
        tasks = [
            task
            for request, one_terms in zip(requests, terms, strict=True)
            for task in await ask(handler, request, **one_terms)
        ]
        for answer in ("A", "B"):
            engine.calls.get_nowait().answer(answer)

        assert [await task for task in tasks] == ["A", "B"]


async def test_nothing_is_shared_unless_asked_for(engine: Engine) -> None:
    """By default equal requests are sent each."""
    async with BatchHandler[Any, Any](engine) as handler:
        tasks = await ask(handler, GREEDY, GREEDY)
        for answer in ("A", "B"):
            engine.calls.get_nowait().answer(answer)

        assert [await task for task in tasks] == ["A", "B"]


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"max_batch_size": 0}, "max_batch_size"),
        ({"timeout_ms": -1.0}, "timeout_ms"),
        ({"timeout_ms": math.inf}, "timeout_ms"),
        ({"options": HandlerOptions[Any, Any](max_wait_s=math.inf)}, "max_wait_s"),
        ({"mode": "window", "options": HandlerOptions[Any, Any](max_waiting=0)}, "max_waiting"),
    ],
)
def test_numbers_outside_their_range_are_refused(arguments: dict[str, Any], name: str) -> None:
    """A handler that could not send, or that lets somebody wait for ever, is not made."""
    with pytest.raises(LimitError) as caught:
        BatchHandler(Engine(), **arguments)

    assert caught.value.name == name


class OneByOne:
    """A client for continuous mode alone."""

    def chat_completion(self, request: str, /) -> Awaitable[str]:
        """Serve one request."""
        raise NotImplementedError(request)


class Together:
    """A client for window mode alone."""

    def batch_chat_completion(self, requests: Sequence[str], /) -> Awaitable[Sequence[str]]:
        """Serve a batch."""
        raise NotImplementedError(requests)


@pytest.mark.parametrize(
    ("client", "mode"), [(OneByOne(), "window"), (Together(), "continuous"), (Engine(), "both")]
)
def test_a_mode_that_the_client_does_not_fit_is_refused(client: Any, mode: Any) -> None:
    """The client's method is looked for as the handler is made, and not at the first request."""
    with pytest.raises(ModeError, match="expected 'continuous' and a client with chat_completion") as caught:
        BatchHandler(client, mode=mode)

    assert caught.value.mode == mode
