"""Characters that a person who reviews a text does not see and a model reads: a place to hide orders to it."""

import re
from typing import Final

_UNSEEN: Final = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e"
    "\u2060-\u206f\u3164\ufe00-\ufe0d\ufeff\uffa0\ufff9-\ufffb\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
"""Controls, directions, joiners, fillers, variants, tags; not tabs, line ends, and the two variants that emoji have."""


def has_unseen(text: str) -> bool:
    """Whether there is such a character in a text."""
    return _UNSEEN.search(text) is not None


def without_unseen(text: str) -> str:
    """The text as it is seen, but for emoji and letters that are joined: these come apart."""
    return _UNSEEN.sub("", text)
