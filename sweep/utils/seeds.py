"""Seeds derived from one, so that no use of randomness shifts another."""

import hashlib


def derive_seed(seed: int, stream: str) -> int:
    """A seed below 2^63 for one named use of randomness."""
    digest = hashlib.blake2b(f"{seed}/{stream}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 1  # torch takes 63 bits
