"""Damage to files: what disks, networks and hands do to them, and what is made to try a format's
parser.
"""

import io
import json
import random
import struct
import zipfile
from collections.abc import Callable
from typing import Any

_DEEP = "nested"  # stands for lists in lists
ODD: list[Any] = [
    None,
    True,
    False,
    0,
    -1,
    2**31,
    10**30,
    0.5,
    1e308,
    float("nan"),
    "",
    "x" * 5000,
    [],
    {},
    [[]],
    "../..",
    _DEEP,
]
LENGTHS = (0, 1, 2**16, 2**31 - 1, 2**32 - 1, 2**40, 2**63 - 1, 2**64 - 1)


def damaged(content: bytes, rng: random.Random) -> bytes:
    """One to three kinds of damage, some of them made for the format."""
    choices: list[Callable[[bytes, random.Random], bytes]] = [
        flip,
        flip,
        truncate,
        insert,
        delete,
        zero,
        splice,
        lengthen,
    ]
    if content[:1] == b"{":
        choices = [*choices, *(5 * [mutate_json])]
    elif content[8:9] == b"{":
        choices = [*choices, *(4 * [mutate_header])]
    elif b"'shape': (" in content:
        choices = [*choices, *(3 * [mutate_shape])]
    found = content
    while found == content:
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            found = rng.choice(choices)(found, rng)
    return found


def _slice(content: bytes, rng: random.Random) -> tuple[int, int]:
    start = rng.randrange(len(content) + 1)
    return start, min(len(content), start + int(2 ** rng.uniform(0, 12)))


def flip(content: bytes, rng: random.Random) -> bytes:
    """Some bits."""
    found = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 8)) if content else 0):
        found[rng.randrange(len(found))] ^= 1 << rng.randrange(8)
    return bytes(found)


def truncate(content: bytes, rng: random.Random) -> bytes:
    """The end is missing."""
    return content[: rng.randrange(len(content) + 1)]


def insert(content: bytes, rng: random.Random) -> bytes:
    """Bytes too many."""
    at, _ = _slice(content, rng)
    return content[:at] + rng.randbytes(rng.choice((1, 8, 300))) + content[at:]


def delete(content: bytes, rng: random.Random) -> bytes:
    """Bytes too few."""
    start, stop = _slice(content, rng)
    return content[:start] + content[stop:]


def zero(content: bytes, rng: random.Random) -> bytes:
    """A block that was never written."""
    start, stop = _slice(content, rng)
    return content[:start] + bytes(stop - start) + content[stop:]


def splice(content: bytes, rng: random.Random) -> bytes:
    """A block of the file in the place of another."""
    (start, stop) = _slice(content, rng)
    at = rng.randrange(len(content) + 1)
    block = content[start:stop]
    return content[:at] + block + content[at + len(block) :]


def lengthen(content: bytes, rng: random.Random) -> bytes:
    """A length that the file has not, at its head, at its tail or anywhere."""
    size = rng.choice((2, 4, 8))
    at = rng.choice((0, max(0, len(content) - 22), rng.randrange(len(content) + 1)))
    value = rng.choice((*LENGTHS, len(content) + 1)) % 256**size
    return content[:at] + value.to_bytes(size, "little") + content[at + size :]


def mutate_json(content: bytes, rng: random.Random) -> bytes:
    """Another value, another name, or nested beyond any parser."""
    try:
        found = json.loads(content)
        places = _places(found)
        if not places or rng.random() < 0.02:
            return rng.choice(
                (b"[" * 200_000, b'{"a":' * 100_000, b"1" * 10_000, b"null", b"[]", b'"\xff"')
            )
        _edit(places, rng)
        depth = int(10 ** rng.uniform(1, 5))
        return json.dumps(found).replace(f'"{_DEEP}"', "[" * depth + "]" * depth).encode()
    except (ValueError, RecursionError):
        return flip(content, rng)


def _edit(places: list[tuple[Any, Any]], rng: random.Random) -> None:
    """Changes one entry: its name, whether it is there, or its value, to another's or an odd
    one.
    """
    (owner, key) = rng.choice(places)
    (other, name) = rng.choice(places)
    if rng.random() < 0.2 and isinstance(owner, dict):
        owner[key + "x" if rng.random() < 0.5 else key[:-1]] = owner.pop(key)
    elif rng.random() < 0.25:
        del owner[key]
    elif rng.random() < 0.3:
        owner[key] = json.loads(json.dumps(other[name]))
    else:
        owner[key] = rng.choice(ODD)


def _places(found: Any) -> list[tuple[Any, Any]]:
    """Every entry of every object and list in it."""
    keys = (
        list(found)
        if isinstance(found, dict)
        else range(len(found))
        if isinstance(found, list)
        else []
    )
    here = [(found, key) for key in keys]
    return here + [place for _, key in here for place in _places(found[key])]


def mutate_header(content: bytes, rng: random.Random) -> bytes:
    """The JSON within a safetensors file, mostly with a length that agrees."""
    size = struct.unpack("<Q", content[:8].ljust(8, b"\0"))[0]
    header = mutate_json(content[8 : 8 + min(size, len(content))], rng)
    told = len(header) if rng.random() < 0.9 else size
    return struct.pack("<Q", told) + header + content[8 + min(size, len(content)) :]


def mutate_shape(content: bytes, rng: random.Random) -> bytes:
    """Another digit in the header of a numpy array."""
    start = content.find(b"'shape': (")
    digits = (
        [i for i in range(start, min(len(content), start + 30)) if content[i : i + 1].isdigit()]
        if start >= 0
        else []
    )
    at = rng.choice(digits) if digits else 0
    return content[:at] + str(rng.randrange(10)).encode() + content[at + 1 :]


def repacked(content: bytes, rng: random.Random) -> bytes:
    """A zip archive with one member damaged and its checksum right: what no accident does, to try
    what is behind it.
    """
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    chosen = (
        rng.randrange(len(members))
        if rng.random() < 0.3
        else next(i for i, m in enumerate(members) if "data" in m[0])
    )
    with zipfile.ZipFile(buffer := io.BytesIO(), "w") as archive:
        for i, (name, member) in enumerate(members):
            archive.writestr(name, damaged(member, rng) if i == chosen and member else member)
    return buffer.getvalue()
