"""Seeds that follow from the user's, for noise that must not repeat what another seed makes."""

from __future__ import annotations

from hashlib import sha256


def derived_seed(seed: int, index: int) -> int:
    """Return the `index`-th seed that follows from `seed`, in [0, 2^63).

    Hashed, since the host's generator is weak on seeds that are sums: with steps of a constant the pictures of the demo
    model came out less realistic (tests/benchmarks/RESULTS.md).
    """
    return int.from_bytes(sha256(f"{seed}:{index}".encode()).digest()[:8], "big") >> 1
