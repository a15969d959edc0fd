"""Whether a Ray cluster may answer at an address: asked without Ray, whose import alone takes seconds."""

from __future__ import annotations

import re
import socket

from captune.errors import UsageError

ANSWER_SECONDS = 4.0
# How every gRPC client begins (RFC 9113, section 3.4): the preface and an empty SETTINGS frame; servers answer with
# theirs. A server of another protocol answers with other bytes, and Ray would ask it for minutes.
_SETTINGS = bytes([4])
_HTTP2_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0]) + _SETTINGS + bytes(5)


def check_answers(address: str | None) -> None:
    """Check that something at an address speaks gRPC; Ray itself would wait for it for minutes.

    Args:
        address: HOST:PORT or ray://HOST:PORT; None, `auto` and other schemes are left to Ray, which knows more of them.

    Raises:
        UsageError: nothing does, within seconds, or it is no such address.
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
    if frame[3:] != _SETTINGS:  # behind three bytes of its length, the type of the first frame
        raise no_cluster(f"'{address}': something answers there that is not Ray")


def no_cluster(got: str) -> UsageError:
    """The error where no cluster answers."""
    return UsageError(
        "--address must lead to a running Ray cluster",
        got=got,
        next_step="Start one with `ray start --head`, or leave --address out to use this machine.",
    )
