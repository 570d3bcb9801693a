"""Seeds of torch's generators."""

import hashlib


def hashed(*parts: object) -> int:
    """A seed below 2^63 for torch's generators that depends on all parts, so that streams for other
    parts are unrelated.
    """
    text = " ".join(map(str, parts))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) % 2**63
