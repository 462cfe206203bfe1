"""Damage to bytes, texts and JSON, drawn from a seeded generator; knows nothing of savimae.

Every function takes a `random.Random` and what is whole, and returns what is damaged. The same
generator gives the same damage.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from typing import Any

# Sizes and counts that a header may claim: none, negative, just beyond 8 to 64 bits, huge.
EXTREMES = (
    0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 1_000_000, 1_000_000_000,
    0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0x7FFFFFFFFFFFFFFF, 0x8000000000000000, 0xFFFFFFFFFFFFFFFF,
)  # fmt: skip
HEADER_BYTES = 512  # most containers say the sizes of what follows in so many bytes
DEEP = 100_000  # brackets within brackets: more than Python's recursion limit
DIGITS = 5000  # of a number: more than Python turns into an int


def damaged_bytes(
    rng: random.Random, whole: bytes, markers: Sequence[bytes] = (), others: Sequence[bytes] = ()
) -> bytes:
    """One to four kinds of damage, one after the other.

    Args:
        markers: names of fields; numbers near them are set to extremes.
        others: whole files of other contents, to splice from.
    """
    content = bytearray(whole)
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 4))):
        ways: list[Callable[[], None]] = [
            lambda: _flip(rng, content), lambda: _flip(rng, content), lambda: _cut(rng, content),
            lambda: _remove(rng, content), lambda: _overwrite(rng, content),
            lambda: _splice(rng, content, [whole, *others]), lambda: _grow(rng, content),
            lambda: _extreme(rng, content), lambda: _extreme(rng, content),
        ]  # fmt: skip
        if markers:
            ways += [lambda: _extreme_near(rng, content, markers)] * 4
        rng.choice(ways)()
    return bytes(content)


def _place(rng: random.Random, content: bytearray) -> int:
    """A position; half of them in the header."""
    limit = len(content) if rng.random() < 0.5 else min(HEADER_BYTES, len(content))
    return rng.randrange(max(limit, 1))


def _span(rng: random.Random, content: bytearray) -> tuple[int, int]:
    start = _place(rng, content)
    return start, start + rng.choice((1, 2, 4, 8, 32, 200, 2000))


def _flip(rng: random.Random, content: bytearray) -> None:
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        if content:
            content[_place(rng, content)] ^= 1 << rng.randrange(8)


def _cut(rng: random.Random, content: bytearray) -> None:
    del content[_place(rng, content) :]


def _remove(rng: random.Random, content: bytearray) -> None:
    start, stop = _span(rng, content)
    del content[start:stop]


def _overwrite(rng: random.Random, content: bytearray) -> None:
    start, stop = _span(rng, content)
    n = len(content[start:stop])
    content[start:stop] = rng.choice((bytes(n), b"\xff" * n, rng.randbytes(n)))


def _splice(rng: random.Random, content: bytearray, sources: Sequence[bytes]) -> None:
    source = rng.choice(sources)
    start = rng.randrange(max(len(source), 1))
    piece = source[start : start + rng.choice((4, 64, 1000, len(source)))]
    place = _place(rng, content)
    content[place : place + (len(piece) if rng.random() < 0.5 else 0)] = piece


def _grow(rng: random.Random, content: bytearray) -> None:
    n = rng.choice((1, 3, 64, 5000))
    piece = rng.choice((bytes(n), rng.randbytes(n), bytes(content[-n:])))
    place = len(content) if rng.random() < 0.5 else _place(rng, content)
    content[place:place] = piece


def _extreme(rng: random.Random, content: bytearray) -> None:
    _set_number(rng, content, _place(rng, content))


def _extreme_near(rng: random.Random, content: bytearray, markers: Sequence[bytes]) -> None:
    found = [marker for marker in markers if marker in content]
    if found:
        marker = rng.choice(found)
        places = []
        start = content.find(marker)
        while start >= 0 and len(places) < 50:
            places.append(start)
            start = content.find(marker, start + 1)
        _set_number(rng, content, rng.choice(places) + rng.randrange(-4, len(marker) + 48))


def _set_number(rng: random.Random, content: bytearray, place: int) -> None:
    n_bytes, order = rng.choice((1, 2, 4, 4, 8)), rng.choice(("big", "little"))
    number = rng.choice(EXTREMES) % 256**n_bytes
    place = max(place, 0)
    if place + n_bytes <= len(content):
        content[place : place + n_bytes] = number.to_bytes(n_bytes, order)


# --------------------------------------------------------------------------------------- texts

TOKENS = (
    "", "-1", "0", "0.5", "-0.0", "1e999", "nan", "NaN", "-Infinity", "9" * 25, "9" * DIGITS,
    "٣", "²",
    "true", "None", "..", "../../x", "/", "//", "a b", "#", "# root: 3", "# root: \"\\ud800\"",
    "# root: \"\\u0000\"", "# classes: {}", "# classes: [1]", "# bytes: [1]",
    "# bytes: [-1, 1e999]",
    "# classes: " + "[" * DEEP, "# bytes: " + "9" * DIGITS, "x" * 5000, "%s", "${x}", "=", "[", "]",
    "[all]", "[all", "[train]", "\u2028", "\x0b", "\x1b[31m", "\ufeff", "é", "名", "\udcff", "\0",
)  # fmt: skip


def damaged_text(rng: random.Random, whole: str, tokens: Sequence[str] = TOKENS) -> bytes:
    """Lines and words taken out, doubled, swapped and replaced; then perhaps another encoding."""
    if rng.random() < 0.2:
        return damaged_bytes(rng, whole.encode())
    lines = whole.split("\n")
    for _ in range(rng.choice((1, 1, 2, 4))):
        place = rng.randrange(len(lines))
        way = rng.randrange(7)
        if way == 0 and len(lines) > 1:
            del lines[place]
        elif way == 1:
            lines.insert(place, lines[rng.randrange(len(lines))])
        elif way == 2:
            lines.insert(place, rng.choice(tokens))
        elif way == 3:
            words = lines[place].split(" ")
            words[rng.randrange(len(words))] = rng.choice(tokens)
            lines[place] = " ".join(words)
        elif way == 4:
            cut = rng.randrange(len(lines[place]) + 1)
            lines[place] = lines[place][:cut] + rng.choice(tokens) + lines[place][cut:]
        elif way == 5:
            lines[place] += rng.choice((" ", "\t", "\r", " " + rng.choice(tokens)))
        else:
            lines[place] = lines[place] * rng.choice((2, 1000))
    return encoded(rng, "\n".join(lines))


def encoded(rng: random.Random, text: str) -> bytes:
    """A text as UTF-8, or as some program might have left it."""
    content = text.encode("utf-8", "surrogateescape" if "\udcff" in text else "surrogatepass")
    way = rng.randrange(14)
    if way == 0:
        return b"\xef\xbb\xbf" + content
    if way == 1:
        return content.replace(b"\n", b"\r\n")
    if way == 2:
        return text.encode("utf-16", "surrogatepass")
    if way == 3:
        return damaged_bytes(rng, content)
    if way == 4:
        return content.replace(b"\n", b"\r")
    return content


# ---------------------------------------------------------------------------------------- JSON


class Raw(str):
    """Text that stands in JSON as it is."""

    __slots__ = ()


VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 0.5, -0.0, 7, 10**9, 2**31, 2**63, 2**64, 10**30, 1e300,
    Raw("NaN"), Raw("Infinity"), Raw("-Infinity"), Raw("1e999"), Raw("9" * DIGITS),
    Raw("-" + "9" * DIGITS), Raw("[" * DEEP), Raw("[" * DEEP + "]" * DEEP), Raw('{"a":' * DEEP),
    Raw('"\\ud800"'), Raw('"\\u0000"'), Raw('"\x01"'), Raw(""), Raw("'a'"), Raw("01"),
    "", "a", "é", "1", "x" * 100_000, "\x1b[31m", "/nowhere", "..", "%", [], [1], [[]], ["a"],
    [None], {},
    {"a": 1}, {"": []}, [0] * 1000, [1e300], [-1], "base", "mean",
)  # fmt: skip


def damaged_json(rng: random.Random, whole: Any, indent: int | None = 2) -> bytes:
    """Values replaced, keys taken out, renamed and doubled; then perhaps another encoding."""
    if rng.random() < 0.15:
        return damaged_bytes(rng, json.dumps(whole, indent=indent).encode())
    raw: dict[str, str] = {}
    content = json.loads(json.dumps(whole))
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        content = damaged_value(rng, content, VALUES)

    def plain(value: Any) -> Any:
        if isinstance(value, Raw):
            name = f"raw-{len(raw)}-raw"
            raw[json.dumps(name)] = value
            return name
        if isinstance(value, dict):
            return {str(plain(key)): plain(each) for key, each in value.items()}
        return list(map(plain, value)) if isinstance(value, list) else value

    text = json.dumps(plain(content), indent=indent)
    for name, value in raw.items():
        text = text.replace(name, value)
    if rng.random() < 0.05:
        text = rng.choice(("", "null", "[]", "3", '"a"', text + text, text + ",", "[" * DEEP))
    return encoded(rng, text)


def damaged_value(rng: random.Random, value: Any, values: Sequence[Any]) -> Any:
    """`value`, a tree of dicts and lists, with one place in it changed."""
    if isinstance(value, dict) and value and rng.random() < 0.93:
        key = rng.choice(list(value))
        way = rng.randrange(12)
        if way == 0:
            return {name: each for name, each in value.items() if name != key}
        if way == 1:
            return {**value, rng.choice(("unknown", "", "é", "-1", "model")): rng.choice(values)}
        if way == 2:
            return {(f"{name}x" if name == key else name): each for name, each in value.items()}
        return {**value, key: damaged_value(rng, value[key], values)}
    if isinstance(value, list) and value and rng.random() < 0.8:
        place = rng.randrange(len(value))
        way = rng.randrange(6)
        if way == 0:
            return value[:place] + value[place + 1 :]
        if way == 1:
            return [*value[:place], rng.choice(values), *value[place:]]
        return [*value[:place], damaged_value(rng, value[place], values), *value[place + 1 :]]
    return rng.choice(values)
