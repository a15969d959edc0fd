"""The token file of captune serve, which is looked at before any model is opened."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from captune.cli.main import main

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("uvicorn") is None or importlib.util.find_spec("grpc_reflection") is None,
    reason="captune[serve] is not installed",
)
TOKEN = "a-token-for-tests-only"


def served(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as ended:
        main(["serve", str(tmp_path / "no-model"), "--token-file", str(tmp_path / "token")])
    assert ended.value.code == 2
    said = capsys.readouterr()
    return " ".join((said.out + said.err).split())


@pytest.mark.parametrize("content", [b"short", b"two-lines-that-are\nlong-enough", "Zähler-ohne-Grenzen".encode()])
def test_a_file_without_a_token_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes) -> None:
    (tmp_path / "token").write_bytes(content)
    assert "a token must have at least 16 letters" in served(tmp_path, capsys)


@pytest.mark.parametrize("kind", ["missing", "folder", "binary"])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    if kind == "folder":
        (tmp_path / "token").mkdir()
    if kind == "binary":
        (tmp_path / "token").write_bytes(b"\xff\xfe" * 20)
    said = served(tmp_path, capsys)
    assert "--token-file must be a text file that can be read" in said and "token" in said


@pytest.mark.parametrize(("mode", "warned"), [(0o600, False), (0o640, True), (0o604, True)])
def test_a_token_that_others_may_read_is_warned_about(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], mode: int, warned: bool
) -> None:
    (tmp_path / "token").write_text(TOKEN + "\n")
    (tmp_path / "token").chmod(mode)
    assert ("other users may open" in served(tmp_path, capsys)) == warned
