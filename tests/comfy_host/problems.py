"""Problems a person can solve: one sentence, no traceback."""

from __future__ import annotations

import errno
import re
import shutil
from pathlib import Path


class Problem(Exception):
    """Something the user can repair; its text is a sentence: what is wrong, where, what to do."""


def disk_problem(error: OSError, folder: Path) -> Problem | None:
    """Return the sentence for a full or read-only disk, or None if `error` is something else."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        free = shutil.disk_usage(folder).free / 1e9
        return Problem(
            f"The disk is full ({free:.1f} GB free at {folder}): make room (about 8 GB) and try again."
        )
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return Problem(
            f"{error.filename or folder} cannot be written: change its permissions or move the folder."
        )
    return None


# What pip says, and what it means for the user; the first match wins.
PIP_CAUSES = (
    (
        r"No space left on device|Errno 28|not enough space",
        "the disk is full: make room (about 8 GB) and try again",
    ),
    (
        r"NewConnectionError|NameResolutionError|Temporary failure in name resolution|ConnectTimeout|"
        r"getaddrinfo|Network is unreachable|Connection refused|ProxyError|Failed to establish a new",
        "there is no network connection to the package registry: connect and try again",
    ),
    (
        r"SSLError|CERTIFICATE_VERIFY_FAILED",
        "the registry's certificate is not trusted: check the clock or proxy",
    ),
    (r"DO NOT MATCH THE HASHES", "the download is broken: try again"),
    (
        r"IncompleteRead|ProtocolError|Connection broken|ReadTimeout|reset by peer",
        "the download broke off: try again",
    ),
    (
        r"No matching distribution found for (\S+)",
        "the registry has no {0} for this Python and system: try Python 3.12 (on a Mac: Apple silicon)",
    ),
)


def pip_problem(what: str, output: str, log: Path) -> Problem:
    """Turn pip's `output` into one sentence about `what` could not be done and why."""
    for pattern, meaning in PIP_CAUSES:
        if found := re.search(pattern, output):
            return Problem(f"{what} failed: {meaning.format(*found.groups())} (details in {log}).")
    errors = [line for line in output.splitlines() if line.startswith("ERROR:")]
    cause = errors[-1].removeprefix("ERROR:").strip() if errors else "pip stopped without saying why"
    return Problem(f"{what} failed: {cause} (details in {log}).")
