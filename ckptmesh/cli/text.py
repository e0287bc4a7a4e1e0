"""Text for people: safe on their terminal, with numbers that they can read."""

from __future__ import annotations

import re

# C0, DEL, C1, line separators, and marks that turn the direction of text.
_COMMANDING = "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]"
_ANY = re.compile(_COMMANDING)
_NOT_LINES = re.compile(_COMMANDING.replace("\x00-\x1f", "\x00-\x08\x0b-\x1f"))


def escaped(text: str) -> str:
    """JSON text without a character that could command a terminal, and with the same meaning: such
    a character can only stand inside a string of it."""
    return _ANY.sub(_number, text)


def plain(text: str) -> str:
    """Text as it is, tabs and line ends too, but for characters that could command a terminal."""
    return _NOT_LINES.sub(_number, text)


def _number(found: re.Match[str]) -> str:
    return f"\\u{ord(found[0]):04x}"


def preview(text: str, most: int = 60) -> str:
    """The beginning of a text, and … where there is more."""
    return text if len(text) <= most else text[: most - 1] + "…"


def many(count: int, what: str) -> str:
    """`1 key`, `2,000 keys`."""
    return f"{count:,} {what}" + ("" if count == 1 else "s")


def size_text(size: int) -> str:
    """Bytes for people: 512 B, 1.5 KiB, 4.0 GiB."""
    if abs(size) < 1024:
        return f"{size} B"
    amount = float(size)
    for unit in ("KiB", "MiB", "GiB", "TiB"):
        amount /= 1024
        if abs(amount) < 1024 or unit == "TiB":
            break
    return f"{amount:.1f} {unit}"


def span_text(seconds: float) -> str:
    """A length of time for people, two units at most: 4s, 3m 20s, 2h 5m, 3d 4h."""
    left = max(0, int(seconds))
    units = (("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1))
    for index, (name, length) in enumerate(units):
        if left >= length or name == "s":
            text = f"{left // length}{name}"
            rest = units[index + 1:index + 2]
            if rest and left % length // rest[0][1]:
                text += f" {left % length // rest[0][1]}{rest[0][0]}"
            return text
    raise AssertionError("not reached: seconds always fit")
