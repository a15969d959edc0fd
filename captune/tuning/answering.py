"""Check whether a Ray cluster may answer at an address, without importing Ray, which takes seconds."""

from __future__ import annotations

import re
import socket

from captune.errors import UsageError

ANSWER_SECONDS = 4.0
# Every gRPC client begins with the preface and an empty SETTINGS frame (RFC 9113, section 3.4), and the server answers
# with a SETTINGS frame of its own. If anything else answers, Ray itself would go on trying for minutes.
_SETTINGS = bytes([4])
_HTTP2_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0]) + _SETTINGS + bytes(5)


def check_answers(address: str | None) -> None:
    """Check that something at an address speaks gRPC; Ray itself would wait for minutes if nothing does.

    Args:
        address: HOST:PORT or ray://HOST:PORT. None, `auto` and other schemes are not checked, but left to Ray.

    Raises:
        UsageError: nothing that speaks gRPC answers within seconds, or the address has another form.
    """
    if address is None or address == "auto" or ("://" in address and not address.startswith("ray://")):
        return
    found = re.fullmatch(r"(.+):(\d+)", address.removeprefix("ray://"))
    if found is None:
        raise no_cluster(f"'{address}', which is no HOST:PORT")
    try:
        with socket.create_connection((found[1].strip("[]"), int(found[2])), timeout=ANSWER_SECONDS) as connection:
            connection.settimeout(ANSWER_SECONDS)
            connection.sendall(_HTTP2_GREETING)
            frame = connection.recv(4)
    except TimeoutError:
        raise no_cluster(f"'{address}': no answer within {ANSWER_SECONDS:.0f} s") from None
    except (OSError, OverflowError) as error:
        raise no_cluster(f"'{address}': {getattr(error, 'strerror', None) or error}") from None
    if frame[3:] != _SETTINGS:  # a frame begins with three bytes for its length, followed by its type
        raise no_cluster(f"'{address}': something answers there that is not Ray")


def no_cluster(got: str) -> UsageError:
    """The error where no cluster answers."""
    return UsageError(
        "--address must lead to a running Ray cluster",
        got=got,
        next_step="Start one with `ray start --head`, or leave --address out to use this machine.",
    )
