"""captune serve: an adapted model behind HTTP on this machine."""

from __future__ import annotations

import importlib.util
import secrets
import socket
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from captune.cli import options
from captune.cli.console import labelled, plain_console, say
from captune.cli.study_model import Yes, model_at
from captune.errors import UsageError

_PORT = 8000


@options.with_options("task", only=("backbone", "pretrained"))
def serve(
    given: options.Given,
    checkpoint: Annotated[
        Path, typer.Argument(help="checkpoint.safetensors, its folder, what `export` wrote, or a study.")
    ],
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help=f"Port on this machine; default: {_PORT}, or a free one.")
    ] = None,
    token_file: Annotated[
        Path | None, typer.Option(help="File that holds the token; default: a new one each time.", metavar="FILE")
    ] = None,
    yes: Yes = False,
    device: options.Device = "auto",
) -> None:
    """Serve an adapted model on this machine: POST an image, get classes; and a page to drop an image on.

    Example: captune serve adapted
    """
    missing = [name for name in ("grpc_reflection", "uvicorn") if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(
            "captune serve needs the extra captune[serve]", got=f"no {', '.join(missing)}",
            next_step='Type: pip install "captune[serve]"',
        )  # fmt: skip
    console = plain_console()
    token = secrets.token_urlsafe(24) if token_file is None else _token_in(token_file, console)
    checkpoint = model_at(checkpoint, yes=yes, device=device)
    with plain_console(stderr=True).status("Loading PyTorch and Ray, opening the model"):
        from captune.adapted import open_adapted
        from captune.tuning.serving import served

        # Open it here once, so that this process reports what is wrong with the model.
        _ = open_adapted(checkpoint, **given.task, device=device).image_backbone
    chosen = _port(port)
    with served(checkpoint, {**given.task, "device": device}, port=chosen, token=token) as address:
        console.print(f"Page: {address}", highlight=False, soft_wrap=True)
        console.print(
            f'curl -H "Authorization: Bearer {token}" --data-binary @photo.jpg http://127.0.0.1:{chosen}/predict',
            highlight=False, soft_wrap=True,
        )  # fmt: skip
        console.print("Only this machine can reach it. Ctrl-C ends it.", highlight=False)
        while True:
            time.sleep(1)


def _token_in(file: Path, console: Console) -> str:
    """The token that a file holds; warns if other users may read it.

    Raises:
        UsageError: it cannot be read, or holds no token.
    """
    try:
        token = file.read_text(encoding="utf-8").strip()
        mode = file.stat().st_mode
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            "--token-file must be a text file that can be read", got=getattr(error, "strerror", None) or str(error),
            where=file,
        ) from None  # fmt: skip
    if len(token) < 16 or not (token.isascii() and token.isprintable() and " " not in token):
        raise UsageError(
            "a token must have at least 16 letters, digits or signs of ASCII, and no spaces",
            got=f"{len(token)} characters", where=file,
            next_step='Make one: python -c "import secrets; print(secrets.token_urlsafe(24))"',
        )  # fmt: skip
    if mode & 0o077:
        say(console, labelled("warning", f"other users may open {file}, and so use this server: chmod 600", "yellow"))
    return token


def _port(asked: int | None) -> int:
    """A port that is free.

    Raises:
        UsageError: the one asked for is not.
    """
    for port in (asked,) if asked is not None else (_PORT, 0):
        with socket.socket() as server:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                server.bind(("127.0.0.1", port))
            except OSError as error:
                reason = error.strerror
            else:
                return int(server.getsockname()[1])
    raise UsageError("--port must be free", got=f"{asked}: {reason}", next_step="Leave it out to take a free one.")
