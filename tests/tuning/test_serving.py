"""captune serve over HTTP and in a real browser: the same answers as predict, to who knows the token only."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

import captune
from captune.tuning.serving import files_in_form
from tests.tuning.processes import assert_gone, descendants

BROWSER = next((found for name in ("chromium", "google-chrome") if (found := shutil.which(name))), None)
TOKEN = "a-token-for-tests-only"
pytestmark = [pytest.mark.slow, pytest.mark.timeout(420)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("model") / "adapted"
    captune.adapt(dataset="digits", method="balanced", out=out, device="cpu")
    return out


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("photo") / "photo.png"
    Image.fromarray((load_digits().images[0] * 15.9).astype(np.uint8)).resize((32, 32)).save(file)
    return file


@contextlib.contextmanager
def serving(model: Path, *, ended_by: signal.Signals) -> Iterator[str]:
    """The server's address, from what the command prints; it ends in order on the signal, and its port is free."""
    (model.parent / "token").write_text(TOKEN)
    (model.parent / "token").chmod(0o600)
    process = subprocess.Popen(
        [sys.executable, "-m", "captune", "serve", str(model), "--token-file", str(model.parent / "token")],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    try:
        assert process.stdout is not None and process.stderr is not None
        said = process.stdout.readline()
        found = re.search(r"(http://127\.0\.0\.1:(\d+))/#(\S+)", said)
        assert found is not None and found.group(3) == TOKEN, said + process.stderr.read()
        yield found.group(1)
    finally:
        below = list(descendants(process.pid))
        process.send_signal(ended_by)
        assert process.wait(timeout=60) == 130
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", int(found.group(2))), timeout=5)
    assert_gone(below)


@pytest.fixture(scope="module")
def address(model: Path) -> Iterator[str]:
    with serving(model, ended_by=signal.SIGINT) as found:
        yield found


@pytest.mark.parametrize("ended_by", [signal.SIGTERM, signal.SIGHUP])
def test_a_server_ends_in_order_and_refuses_a_port_that_is_taken(model: Path, ended_by: signal.Signals) -> None:
    with serving(model, ended_by=ended_by) as address:
        command = [sys.executable, "-m", "captune", "serve", str(model), "--port", address.rpartition(":")[2]]
        refused = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert refused.returncode == 2 and "--port must be free" in refused.stderr


def ask(address: str, content: bytes, *, token: str = TOKEN, **headers: str) -> tuple[int, dict[str, Any]]:
    request = urllib.request.Request(
        address, data=content, method="POST", headers={"Authorization": f"Bearer {token}", **headers}
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_posted_images_get_the_answers_of_predict(address: str, model: Path, photo: Path) -> None:
    status, said = ask(f"{address}/predict?top=3", photo.read_bytes())
    assert status == 200
    table = captune.load(model, device="cpu").predict(photo, top=3)
    assert [row["class"] for row in said["classes"]] == list(table["class"])
    assert np.allclose([row["probability"] for row in said["classes"]], table["probability"], atol=2e-6)


def form(*files: bytes) -> tuple[bytes, str]:
    """A form as curl -F sends it, and its type: a note, then the files."""
    parts = [b'Content-Disposition: form-data; name="note"\r\n\r\nhello']
    for content in files:
        head = b'Content-Disposition: form-data; name="file"; filename="a b.jpg"\r\nContent-Type: image/jpeg\r\n\r\n'
        parts.append(head + content)
    body = b"".join(b"--------a1b2\r\n" + part + b"\r\n" for part in parts) + b"--------a1b2--\r\n"
    return body, "multipart/form-data; boundary=------a1b2"


def test_files_of_a_form_are_taken_as_they_are() -> None:
    contents = [bytes(range(256)), b"\r\n--------a1b\r\n\r\n", b"", b"\n\n", bytes(range(255, -1, -1)) * 3 + b"\r"]
    assert files_in_form(*form(*contents)) == contents
    assert files_in_form(b"no form", "multipart/form-data") == []


def test_an_image_sent_as_a_form_gets_the_same_answer(address: str, photo: Path) -> None:
    body, kind = form(photo.read_bytes())
    assert ask(f"{address}/predict", body, **{"Content-Type": kind}) == ask(f"{address}/predict", photo.read_bytes())
    body, kind = form(photo.read_bytes(), photo.read_bytes())
    status, said = ask(f"{address}/predict", body, **{"Content-Type": kind})
    assert status == 422 and "got 2 files" in said["error"] and "--data-binary @photo.jpg" in said["error"]


def test_who_does_not_know_the_token_or_names_another_host_is_refused(address: str, photo: Path) -> None:
    assert ask(f"{address}/predict", photo.read_bytes(), token="wrong")[0] == 401
    assert ask(f"{address}/predict", photo.read_bytes(), Host="evil.example")[0] == 403
    assert ask(f"{address}/elsewhere", b"")[0] == 404
    status, said = ask(f"{address}/predict", b"this is no image")
    assert status == 422 and "captune-image-" not in said["error"] and "--data-binary @photo.jpg" in said["error"]
    assert ask(f"{address}/predict?top=0", photo.read_bytes())[0] == 422


class Tab:
    """A page of a headless Chromium, driven by its debugging protocol."""

    def __init__(self, connection: Any) -> None:
        self._connection, self._number = connection, 0

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        self._connection.send(json.dumps({"id": self._number, "method": method, "params": parameters}))
        while True:
            answer: dict[str, Any] = json.loads(self._connection.recv(timeout=60))
            if answer.get("id") == self._number:
                return answer["result"]  # type: ignore[no-any-return]

    def evaluate(self, code: str) -> Any:
        return self.call("Runtime.evaluate", expression=code, returnByValue=True)["result"].get("value")


@contextlib.contextmanager
def browser(profile: Path) -> Iterator[Tab]:
    from websockets.sync.client import connect

    process = subprocess.Popen(
        [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
         "--remote-debugging-port=0", f"--user-data-dir={profile}", "about:blank"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        port = profile / "DevToolsActivePort"
        deadline = time.monotonic() + 60
        while not (port.exists() and port.read_text().count("\n")) and time.monotonic() < deadline:
            time.sleep(0.2)
        listed = f"http://127.0.0.1:{port.read_text().splitlines()[0]}/json"
        with urllib.request.urlopen(listed, timeout=30) as answer:
            page = next(entry for entry in json.load(answer) if entry["type"] == "page")
        with connect(page["webSocketDebuggerUrl"], max_size=None) as connection:
            yield Tab(connection)
    finally:
        process.terminate()
        process.wait(timeout=30)


@pytest.mark.skipif(BROWSER is None, reason="needs a Chromium on the path")
def test_an_image_dropped_on_the_page_is_classified(address: str, model: Path, photo: Path, tmp_path: Path) -> None:
    (best,) = captune.load(model, device="cpu").predict(photo)["class"]
    content = base64.b64encode(photo.read_bytes()).decode()
    with browser(tmp_path / "profile") as tab:
        tab.call("Page.navigate", url=f"{address}/#{TOKEN}")
        wait_for(tab, "document.getElementById('drop') !== null && document.readyState === 'complete'")
        tab.evaluate(
            f"const bytes = Uint8Array.from(atob('{content}'), c => c.charCodeAt(0));"
            "const transfer = new DataTransfer(); transfer.items.add(new File([bytes], 'photo.png'));"
            "document.getElementById('drop').dispatchEvent(new DragEvent('drop', {dataTransfer: transfer, "
            "bubbles: true, cancelable: true}));"
        )
        wait_for(tab, "document.querySelectorAll('#rows tr').length > 0")
        assert tab.evaluate("document.querySelector('#rows td').textContent") == best
        assert tab.evaluate("document.getElementById('shown').naturalWidth") == 32


def wait_for(tab: Tab, condition: str) -> None:
    deadline = time.monotonic() + 60
    while not tab.evaluate(condition):
        assert time.monotonic() < deadline, condition
        time.sleep(0.2)
