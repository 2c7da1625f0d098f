"""How deeply JSON that a client sends may be nested.

orjson reads 1024 levels and writes 254. What is made of a request (a run, a state, an event) wraps it in some more.
"""

import orjson

_ROOM = 40


def is_too_deep(text: bytes | bytearray, content: object) -> bool:
    """Whether what is made of JSON could not be written.

    Args:
        text: The JSON.
        content: What it says.
    """
    if text.count(b"[") + text.count(b"{") < _ROOM:  # as in most requests, and fast to tell
        return False
    for _ in range(_ROOM):
        content = [content]
    try:
        orjson.dumps(content)
    except orjson.JSONEncodeError:
        return True
    return False
