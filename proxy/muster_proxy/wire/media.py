"""What is in a request beside text: images, sound, files; and what of it an engine may be asked to fetch.

An engine that fetches what a client names reaches every address that its network does, so media comes as `data:` URLs.
vLLM 0.32 looks for media by the names in a part where its type is missing, or where it has a `uuid`: the names count
here too, whatever the type says.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from muster_proxy.wire.strict import invalid

if TYPE_CHECKING:
    from muster_proxy.wire.calls import Call

Part: TypeAlias = dict[str, Any]
Content: TypeAlias = tuple[str, Iterable[object]]
"""The path of a content in the request, and its parts."""


@dataclass(frozen=True, slots=True)
class PartTypes:
    """The types of parts that an API has.

    Attributes:
        plain: Those that every model of text reads.
        text: Others that are no media.
        media: Images, sound, files.
    """

    plain: frozenset[str]
    text: frozenset[str]
    media: frozenset[str]

    def is_known(self, part: Part) -> bool:
        """Whether the API has parts of this type."""
        kind = part.get("type")
        return isinstance(kind, str) and (kind in self.plain or kind in self.text or kind in self.media)

    def is_media(self, part: Part) -> bool:
        """Whether a part is media, or might be taken for it."""
        return part.get("type") in self.media or not _MEDIA_NAMES.isdisjoint(part)


_CHAT_MEDIA = frozenset({"image_url", "input_image", "input_audio", "audio_url", "video_url", "file"})

CHAT_PARTS = PartTypes(
    plain=frozenset({"text"}),
    text=frozenset({"refusal", "thinking", "input_text", "output_text", "tool_reference"}),
    media=_CHAT_MEDIA,
)
RESPONSES_PARTS = PartTypes(
    plain=frozenset({"input_text", "output_text", "text", "refusal", "reasoning_text", "summary_text"}),
    text=frozenset(),
    media=_CHAT_MEDIA | {"input_file", "computer_screenshot"},
)
MESSAGES_PARTS = PartTypes(
    plain=frozenset({"text", "tool_use", "tool_result", "thinking", "redacted_thinking"}),
    text=frozenset({"tool_reference", "tool_addition", "tool_removal"}),
    media=frozenset({"image", "document"}),
)

_TEXTS = frozenset({"text", "input_text", "output_text"})
_EMBEDDINGS = frozenset({"image_embeds", "audio_embeds", "video_embeds", "prompt_embeds"})
_HOLDERS = ("source", "file", "image", "video", "audio")
_URL_NAMES = ("url", "image_url", "video_url", "audio_url", "file_url")
_MEDIA_NAMES = frozenset({*_HOLDERS, *_URL_NAMES, "input_audio", "image_pil", *_EMBEDDINGS})


def parts_of(contents: Iterable[Content]) -> Iterator[tuple[str, object]]:
    """Every part of some contents with the path of its content; those within a tool's result too."""
    for place, parts in contents:
        waiting = list(parts)
        while waiting:
            part = waiting.pop()
            yield place, part
            inner = cast("Part", part).get("content") if isinstance(part, dict) else None
            if isinstance(inner, list):
                waiting += cast("list[object]", inner)


def refuse_media(call: "Call") -> None:
    """Refuse content other than text, for a model that reads no other; engines answer it with a 500.

    Raises:
        RequestError: A message has a part of another type.
    """
    types = call.request.part_types
    for place, part in parts_of(call.contents):
        if not isinstance(part, dict) or not _is_plain(types, cast("Part", part)):
            raise invalid(f"Only text is read by this model: '{place}'.", place)


def refuse_remote_media(call: "Call", *, is_fetching_allowed: bool = False) -> None:
    """Refuse media that an engine would have to fetch, and parts that are not known.

    Args:
        call: The request.
        is_fetching_allowed: Whether `http:` and `https:` addresses may pass; files of the engine never do.

    Raises:
        RequestError: A part names something else than a `data:` URL, has no known type, or holds embeddings, which an
            engine would load as they are.
    """
    allowed = ("data:", "http:", "https:") if is_fetching_allowed else ("data:",)
    types = call.request.part_types
    for place, part in parts_of(call.contents):
        if not isinstance(part, dict) or not types.is_known(cast("Part", part)):
            raise invalid(f"The type of a part is missing or not known: '{place}'.", place)
        if not _EMBEDDINGS.isdisjoint(cast("Part", part)):
            raise invalid(f"Embeddings are not taken in a part: '{place}'.", place)
        if not all(_begins(url, allowed) for url in _urls(cast("Part", part))):
            raise invalid(f"Media is not fetched: send it as a data: URL in '{place}'.", place)


def _is_plain(types: PartTypes, part: Part) -> bool:
    kind = part.get("type")
    if not isinstance(kind, str) or kind not in types.plain or types.is_media(part):
        return False
    return kind not in _TEXTS or isinstance(part.get("text"), str)


def _urls(part: Mapping[str, object]) -> Iterator[object]:
    """Whatever a part has where an engine looks for an address."""
    for name in _URL_NAMES:
        value = part.get(name)
        yield cast("Mapping[str, object]", value).get("url") if isinstance(value, dict) else value
    for name in _HOLDERS:
        value = part.get(name)
        if isinstance(value, dict):
            yield from _urls(cast("Mapping[str, object]", value))
        elif isinstance(value, str) and name != "source":
            yield value


def _begins(url: object, schemes: tuple[str, ...]) -> bool:
    """Whether there is no address, or one of these schemes, which are read in any case as engines do."""
    return url is None or (isinstance(url, str) and url[:6].lower().startswith(schemes))
