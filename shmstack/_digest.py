"""blake2b, without the OpenSSL that `hashlib` loads beside it (3 ms, and pages that each forked child copies)."""
try:
    from _blake2 import blake2b
except ImportError:                   # an interpreter that was configured without its own
    from hashlib import blake2b

__all__ = ["blake2b"]
