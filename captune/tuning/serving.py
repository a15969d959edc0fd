"""An adapted model behind HTTP on this machine, by Ray Serve: POST an image, get classes and probabilities.

It listens on loopback only. Since any page in a browser can reach loopback, every request must name this machine as the
host, and a request for a prediction must carry the token.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import secrets
import tempfile
from collections.abc import Iterator
from email.parser import BytesParser
from email.policy import HTTP
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response

from captune.adapted import AdaptedModel, open_adapted
from captune.errors import CaptuneError
from captune.tuning.cluster import connected

HOST = "127.0.0.1"
MAX_BYTES = 64 * 2**20
_HOSTS = (HOST, "localhost")
_PAGE = Path(__file__).with_name("serving.html")
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'nonce-{}'; img-src blob:; connect-src 'self'"
_SHOWN = 5
_HOW_TO_SEND = "with curl, send one image by --data-binary @photo.jpg, or by -F file=@photo.jpg"


class Classifier:
    """Answers requests with one model; every process of a deployment holds one.

    Args:
        place: the model, as `open_adapted` takes it.
        options: backbone, pretrained and device for it.
        token: secret that a request must carry.
    """

    def __init__(self, place: str, options: dict[str, Any], token: str) -> None:
        self._model: AdaptedModel = open_adapted(Path(place), **options)
        _ = self._model.image_backbone
        self._token = token

    async def __call__(self, request: Request) -> Response:
        """`GET /`: the page. `POST /predict?top=K` with an image as the body, or in a form: its K likeliest classes.

        401 without the token (`Authorization: Bearer TOKEN`), 403 for another host's name, 404 for another path, 405
        for another method, 413 above MAX_BYTES, 422 for a body that is no readable image and for a wrong `top`.
        """
        if request.url.hostname not in _HOSTS:
            return _refusal(403, f"this server answers to {' and '.join(_HOSTS)} only")
        if request.url.path == "/" and request.method == "GET":
            nonce = secrets.token_urlsafe(16)
            page = _PAGE.read_text(encoding="utf-8").replace("NONCE", nonce)
            return HTMLResponse(page, headers={"Content-Security-Policy": _POLICY.format(nonce)})
        if request.url.path != "/predict":
            return _refusal(404, "there are GET / and POST /predict")
        if request.method != "POST":
            return _refusal(405, "send the image by POST")
        given = request.headers.get("authorization", "").removeprefix("Bearer ").encode()
        if not hmac.compare_digest(given, self._token.encode()):
            return _refusal(401, "the header Authorization must be: Bearer TOKEN, with the token captune serve showed")
        top = request.query_params.get("top", str(_SHOWN))
        if not top.isdecimal() or int(top) < 1:
            return _refusal(422, "top must be a whole number from 1")
        body = bytearray()
        async for part in request.stream():
            body += part
            if len(body) > MAX_BYTES:
                return _refusal(413, f"an image must have at most {MAX_BYTES} bytes")
        content = bytes(body)
        kind = request.headers.get("content-type", "")
        if kind.lower().startswith("multipart/form-data"):
            files = files_in_form(content, kind)
            if len(files) != 1:
                return _refusal(422, f"a form must hold one image, but got {len(files)} files: {_HOW_TO_SEND}")
            content = files[0]
        return await asyncio.to_thread(self._classified, content, int(top))

    def _classified(self, content: bytes, top: int) -> Response:
        # Written to a file, so that the code of `captune predict` decodes it.
        with tempfile.NamedTemporaryFile(prefix="captune-image-") as file:
            file.write(content)
            file.flush()
            try:
                table = self._model.predict(Path(file.name), top=top)
            except CaptuneError as error:
                reason = f"{error.must_hold}, but got {error.got}".replace(file.name, "the image")
                return _refusal(422, f"{reason}; {_HOW_TO_SEND}")
        rows = [
            {"class": str(label), "probability": round(float(value), 6)}
            for label, value in zip(table["class"], table["probability"], strict=True)
        ]
        return JSONResponse({"classes": rows})


def files_in_form(body: bytes, content_type: str) -> list[bytes]:
    """The contents of the files in a form as `curl -F file=@photo.jpg` sends it (multipart/form-data, RFC 7578)."""
    head = f"Content-Type: {content_type}\r\n\r\n".encode("latin-1")
    form = BytesParser(policy=HTTP).parsebytes(head + body)
    files = [part.get_payload(decode=True) for part in form.walk() if part.get_filename() is not None]
    return [content for content in files if isinstance(content, bytes)]


def _refusal(status: int, text: str) -> Response:
    return JSONResponse({"error": text}, status_code=status)


@contextlib.contextmanager
def served(place: Path, options: dict[str, Any], *, port: int, token: str) -> Iterator[str]:
    """Serve a model while the block runs; yields the address of its page, the token in its fragment.

    Args:
        place: the model, as `open_adapted` takes it.
        options: backbone, pretrained and device for it.
        port: on loopback.
        token: secret that a request must carry.

    Raises:
        StudyError: Ray does not start.
        RuntimeError: the model cannot be opened by the deployment.
    """
    with connected(None, threads=1, dashboard=False):
        from ray import serve  # needs captune[serve], and Ray's settings as `connected` leaves them

        deployment: Any = serve.deployment(Classifier)
        serve.start(http_options={"host": HOST, "port": port}, logging_config={"log_level": "ERROR"})
        try:
            serve.run(deployment.bind(str(place.absolute()), options, token), route_prefix="/", logging_config=None)
            # A browser does not send the fragment of an address, so the token does not appear in requests for the page.
            yield f"http://{HOST}:{port}/#{token}"
        finally:
            serve.shutdown()  # type: ignore[no-untyped-call]
