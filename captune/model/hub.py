"""Offline use of the Hugging Face Hub: without a network its client would retry for most of a minute in vain."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from urllib.parse import urlsplit
from urllib.request import getproxies

from huggingface_hub import constants

_SECONDS = 5.0


@contextlib.contextmanager
def offline_if_unreachable() -> Iterator[None]:
    """Within the block, where the Hub cannot be reached, its client uses its cache: what is cached still opens."""
    if constants.HF_HUB_OFFLINE or _reachable(constants.ENDPOINT):
        yield
        return
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = False


def _reachable(address: str) -> bool:
    """Whether the host takes a connection; True behind a proxy, which makes the connection itself."""
    if getproxies():
        return True
    parts = urlsplit(address)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        with socket.create_connection((parts.hostname or "", port), timeout=_SECONDS):
            return True
    except OSError:
        return False
