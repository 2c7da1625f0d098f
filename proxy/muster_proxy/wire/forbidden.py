"""The fields that a client may not set, although an engine would take them.

| field | what it does in an engine | here |
| --- | --- | --- |
| `cache_salt` | parts the prefix cache (vLLM) | stripped: the proxy gives each tenant its own |
| `priority` | orders the engine's own queue (vLLM, SGLang) | stripped: the order is the scheduler's |
| `request_id`, `rid` | name the request inside the engine (vLLM, SGLang) | stripped: two of one name collide |
| `id_slot` | picks a slot and so a cache (llama.cpp) | stripped |
| `prompt_embeds` | loaded as a tensor (vLLM) | refused |
| `kv_transfer_params`, `ec_transfer_params` | move caches between engines (vLLM) | refused |
| `bootstrap_host`, `bootstrap_port`, `bootstrap_room` | the engine connects there (SGLang) | refused |
| `mm_processor_kwargs`, `media_io_kwargs` | change what media costs (vLLM, off by default) | refused |
| `allowed_local_media_path`, `allowed_media_domains` | what the engine may read (vLLM, at start) | refused |
| `lora_path`, `lora_local_path`, `lora_request` | weights that the engine loads (SGLang, vLLM) | refused |
| `custom_logit_processor` | code that the engine runs (SGLang) | refused |
| `chat_template` | a program of the client's in the engine (vLLM, off by default) | refused |

`vllm_xargs` passes: its values are texts and numbers for extensions that the engine's operator has installed, and no
connector takes its parameters in that form. `bad_words`, `chat_template_kwargs` and `structured_outputs` pass: the
engine checks them.
"""

from enum import Enum
from typing import TYPE_CHECKING

from muster_proxy.wire.strict import invalid

if TYPE_CHECKING:
    from muster_proxy.wire.calls import Call


class Treatment(Enum):
    """What becomes of a field that a client may not set."""

    STRIPPED = "stripped"
    REFUSED = "refused"


TABLE: dict[str, Treatment] = {
    **dict.fromkeys(("cache_salt", "priority", "request_id", "rid", "id_slot"), Treatment.STRIPPED),
    **dict.fromkeys(
        (
            "prompt_embeds",
            "kv_transfer_params",
            "ec_transfer_params",
            "bootstrap_host",
            "bootstrap_port",
            "bootstrap_room",
            "mm_processor_kwargs",
            "media_io_kwargs",
            "allowed_local_media_path",
            "allowed_media_domains",
            "lora_path",
            "lora_local_path",
            "lora_request",
            "custom_logit_processor",
            "chat_template",
        ),
        Treatment.REFUSED,
    ),
}

NAMES = frozenset(TABLE)


def names_to_strip(call: "Call") -> tuple[str, ...]:
    """The fields to be taken out of a request before it is sent; refused ones that are null are among them.

    Raises:
        RequestError: A field that is refused has a value.
    """
    names = call.forbidden()
    for name in names:
        if TABLE[name] is Treatment.REFUSED and call.fields[name] is not None:
            raise invalid(f"The field '{name}' is not taken from clients.", name)
    return names
