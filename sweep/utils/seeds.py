"""Derives independent seeds from one seed, so that no use of randomness affects another."""

import hashlib


def derive_seed(seed: int, stream: str) -> int:
    """Return a seed below 2^63 for one named use of randomness."""
    digest = hashlib.blake2b(f"{seed}/{stream}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 1  # torch accepts 63 bits
