"""Downloads against a server on this machine: resumed, checked, unpacked inside their folder or not at all."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torchvision

from captune.config import TaskConfig
from captune.data import catalog
from captune.data.catalog import load_dataset
from captune.data.download import DOWNLOADS, Archive, Download, download, extract, fetch
from captune.data.known_datasets import DATASETS
from captune.data.names import EUROSAT
from captune.errors import DataError, UsageError
from tests.data.miniatures import write_image


class _Server:
    """Files by name; knows ranges; `limit` cuts the next answer short as a lost connection does."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.ranges: list[str | None] = []
        self.limit: int | None = None
        self.knows_ranges = True
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = outer.files.get(self.path.strip("/"))
                asked = self.headers.get("Range")
                outer.ranges.append(asked)
                if body is None:
                    self.send_error(404)
                    return
                start = int(asked[6:-1]) if asked and outer.knows_ranges else 0
                if start >= len(body) and start:
                    self.send_error(416)
                    return
                self.send_response(206 if start else 200)
                self.send_header("Content-Length", str(len(body) - start))
                self.end_headers()
                piece = body[start:] if outer.limit is None else body[start : start + outer.limit]
                outer.limit = None
                self.wfile.write(piece)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/{name}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[_Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    running = _Server()
    yield running
    running.close()


def _md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def _eurosat_zip(folder: Path) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for directory in EUROSAT:
            for number in range(4):
                write_image(folder / "one.jpg", number)
                archive.write(folder / "one.jpg", f"2750/{directory}/{directory}_{number}.jpg")
    return buffer.getvalue()


def _serve_eurosat(server: _Server, monkeypatch: pytest.MonkeyPatch, body: bytes, md5: str | None = None) -> None:
    server.files["EuroSAT.zip"] = body
    recipe = Download((Archive(server.url("EuroSAT.zip"), md5 or _md5(body), "eurosat"),), ("eurosat/2750",))
    monkeypatch.setitem(DOWNLOADS, "eurosat", recipe)


# ---- fetching


def test_file_goes_on_where_the_connection_was_lost(server: _Server, tmp_path: Path) -> None:
    server.files["a.bin"] = body = os.urandom(100_000)
    server.limit = 30_000
    with pytest.raises(DataError, match=r"must reach its end.*again: it goes on from there"):
        fetch(server.url("a.bin"), _md5(body), tmp_path / "a.bin")
    assert not (tmp_path / "a.bin").exists(), "nothing half-written is taken for whole"
    assert fetch(server.url("a.bin"), _md5(body), tmp_path / "a.bin").read_bytes() == body
    assert server.ranges == [None, "bytes=30000-"]


def test_server_without_ranges_starts_again(server: _Server, tmp_path: Path) -> None:
    server.files["a.bin"] = body = os.urandom(50_000)
    server.knows_ranges = False
    (tmp_path / "a.bin.part").write_bytes(b"x" * 100)
    assert fetch(server.url("a.bin"), _md5(body), tmp_path / "a.bin").read_bytes() == body


def test_whole_part_is_only_checked(server: _Server, tmp_path: Path) -> None:
    server.files["a.bin"] = body = os.urandom(500)
    (tmp_path / "a.bin.part").write_bytes(body)  # killed between the last byte and the new name
    assert fetch(server.url("a.bin"), _md5(body), tmp_path / "a.bin").read_bytes() == body


def test_wrong_checksum_is_removed(server: _Server, tmp_path: Path) -> None:
    server.files["a.bin"] = b"something else"
    with pytest.raises(DataError, match="must have its checksum"):
        fetch(server.url("a.bin"), _md5(b"the dataset"), tmp_path / "a.bin")
    assert list(tmp_path.iterdir()) == []


def test_missing_file_and_missing_network_are_explained(server: _Server, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"404.*put it at .*a\.bin"):
        fetch(server.url("a.bin"), None, tmp_path / "a.bin")
    server.close()
    with pytest.raises(DataError, match="must reach its end"):
        fetch(server.url("a.bin"), None, tmp_path / "a.bin")


def test_progress_tells_bytes(server: _Server, tmp_path: Path) -> None:
    server.files["a.bin"] = b"x" * 1000
    calls: list[tuple[str, int, int | None]] = []
    fetch(server.url("a.bin"), None, tmp_path / "a.bin", progress=lambda *now: calls.append(now))
    assert calls[-1] == ("a.bin", 1000, 1000)


# ---- unpacking


def _tar(path: Path, *members: tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for member in members:
            archive.addfile(member, io.BytesIO(b"x" * member.size))
    return path


def _member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    info.size = 3 if kind == tarfile.REGTYPE else 0
    return info


@pytest.mark.parametrize(
    "member",
    [
        _member("../evil"),
        _member("/tmp/evil"),
        _member("a/../../evil"),
        _member("link", tarfile.SYMTYPE, "../../etc"),
        _member("link", tarfile.SYMTYPE, "/etc/passwd"),
        _member("link", tarfile.LNKTYPE, "../evil"),
        _member("fifo", tarfile.FIFOTYPE),
    ],
)
def test_tar_that_climbs_out_is_refused(tmp_path: Path, member: tarfile.TarInfo) -> None:
    archive = _tar(tmp_path / "a.tar.gz", _member("good"), member)
    target = tmp_path / "deep" / "target"
    target.mkdir(parents=True)
    with pytest.raises(DataError, match=r"stay inside its folder|files and folders only"):
        extract(archive, target)
    assert not (tmp_path / "evil").exists() and not (tmp_path / "deep" / "evil").exists()


def test_tar_that_climbs_through_its_own_link_is_refused(tmp_path: Path) -> None:
    archive = _tar(tmp_path / "a.tar.gz", _member("d", tarfile.SYMTYPE, "."), _member("d/../../evil"))
    (tmp_path / "target").mkdir()
    with pytest.raises(DataError, match=r"stay inside its folder|needs a Python that unpacks them safely"):
        extract(archive, tmp_path / "target")


@pytest.mark.parametrize("name", ["../evil", "/tmp/evil", "a/../../evil", "..\\evil"])
def test_zip_that_climbs_out_is_refused(tmp_path: Path, name: str) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("good", "x")
        archive.writestr(name, "x")
    (tmp_path / "target").mkdir()
    with pytest.raises(DataError, match="stay inside its folder"):
        extract(tmp_path / "a.zip", tmp_path / "target")
    assert list((tmp_path / "target").iterdir()) == [], "refused before anything is unpacked"


@pytest.mark.parametrize("name", ["a.zip", "a.tar.gz", "a.tgz"])
def test_damaged_archives_are_refused(tmp_path: Path, name: str) -> None:
    members = [_member(f"file{number}") for number in range(50)]
    if name.endswith("zip"):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            for member in members:
                archive.writestr(member.name, os.urandom(100))
    else:
        _tar(tmp_path / name, *members)
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: len(data) // 2])
    (tmp_path / "target").mkdir()
    with pytest.raises(DataError, match="an archive must be whole"):
        extract(tmp_path / name, tmp_path / "target")


# ---- datasets


def test_download_puts_a_dataset_where_it_is_found(
    server: _Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _serve_eurosat(server, monkeypatch, _eurosat_zip(tmp_path))
    root = tmp_path / "root"
    assert download("eurosat", root) == root / "eurosat/2750"
    dataset = load_dataset(TaskConfig(dataset="eurosat", paradigm="ul", data_root=root))
    assert dataset.num_images == 40 and dataset.layout == "official release"
    assert [path.name for path in root.iterdir()] == ["eurosat"], "no working files stay"
    assert download("eurosat", root) is None, "what is there is not fetched again"
    assert len(server.ranges) == 1


def test_interrupted_download_leaves_no_dataset_and_goes_on(
    server: _Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _serve_eurosat(server, monkeypatch, _eurosat_zip(tmp_path))
    root = tmp_path / "root"
    server.limit = 1000
    with pytest.raises(DataError, match="goes on from there"):
        download("eurosat", root)
    assert not (root / "eurosat").exists()
    assert download("eurosat", root) is not None
    assert server.ranges == [None, "bytes=1000-"]


def test_climbing_archive_leaves_no_dataset(server: _Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = io.BytesIO(_eurosat_zip(tmp_path))
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr("../../../../evil", "x")
    _serve_eurosat(server, monkeypatch, buffer.getvalue())
    with pytest.raises(DataError, match="stay inside its folder"):
        download("eurosat", tmp_path / "root")
    assert not (tmp_path / "root" / "eurosat").exists() and not list(tmp_path.rglob("evil"))


def test_archive_without_the_dataset_is_refused(
    server: _Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("something/else.txt", "x")
    _serve_eurosat(server, monkeypatch, buffer.getvalue())
    with pytest.raises(DataError, match="must hold the dataset, but got no eurosat/2750"):
        download("eurosat", tmp_path / "root")


def test_archive_in_an_archive_is_unpacked(server: _Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w:gz") as tar:
        for directory in ("accordion", "Faces", "BACKGROUND_Google"):
            for number in range(4):
                write_image(tmp_path / "one.jpg", number)
                tar.add(tmp_path / "one.jpg", f"101_ObjectCategories/{directory}/image_{number:04d}.jpg")
    outer = io.BytesIO()
    with zipfile.ZipFile(outer, "w") as archive:
        archive.writestr("caltech-101/101_ObjectCategories.tar.gz", inner.getvalue())
    server.files["caltech-101.zip"] = outer.getvalue()
    archives = (Archive(server.url("caltech-101.zip"), _md5(outer.getvalue()), "caltech101"),)
    monkeypatch.setitem(DOWNLOADS, "caltech101", replace(DOWNLOADS["caltech101"], archives=archives))
    monkeypatch.setitem(catalog.DATASETS, "caltech101", replace(DATASETS["caltech101"], num_classes=2))
    download("caltech101", tmp_path / "root")
    dataset = load_dataset(TaskConfig(dataset="caltech101", paradigm="ul", data_root=tmp_path / "root"))
    assert dataset.class_names == ("face", "accordion")


def test_place_that_is_taken_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "dtd" / "dtd").mkdir(parents=True)
    with pytest.raises(DataError, match=r"must be free, but got dtd/dtd.*Move it away"):
        download("dtd", tmp_path)


def test_what_cannot_be_fetched_says_where_it_is(tmp_path: Path) -> None:
    for key in sorted(set(DATASETS) - set(DOWNLOADS) - {"digits"}):
        with pytest.raises(DataError, match=f"{key} must be fetched by hand") as caught:
            download(key, tmp_path)
        assert DATASETS[key].how_to_get in str(caught.value)
    with pytest.raises(UsageError, match="Did you mean 'eurosat'"):
        download("eurosatt", tmp_path)
    assert download("digits", tmp_path) is None


def test_rows_offer_what_can_be_fetched() -> None:
    assert {key for key, row in DATASETS.items() if row.torchvision is not None} == set(DOWNLOADS)
    for key, row in DATASETS.items():
        if row.torchvision is not None:
            assert hasattr(torchvision.datasets, row.torchvision)
            found = {place for layout in row.layouts for need in layout.needs for place in [need]}
            assert any(place in need for place in DOWNLOADS[key].places for need in found)


def test_checksums_are_torchvisions() -> None:
    source = Path(torchvision.datasets.__file__).parent
    text = "".join(file.read_text(encoding="utf-8") for file in source.glob("*.py"))
    for recipe in DOWNLOADS.values():
        for archive in recipe.archives:
            assert archive.md5 is None or archive.md5 in text, archive.url
            assert archive.name in text or archive.name == "EuroSAT.zip"


@pytest.mark.parametrize("form", ["zip", "zip that lies", "tar"])
def test_an_archive_that_unpacks_to_far_more_is_refused(
    tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("captune.data.download._SMALL", 1 << 20)
    zeros = bytes(32 << 20)
    if form == "tar":
        archive = tmp_path / "bomb.tar.gz"
        with tarfile.open(archive, "w:gz") as file:
            member = tarfile.TarInfo("zeros")
            member.size = len(zeros)
            file.addfile(member, io.BytesIO(zeros))
    else:
        archive = tmp_path / "bomb.zip"
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
            file.writestr("zeros", zeros)
        if form == "zip that lies":
            content = bytearray(archive.read_bytes())
            for mark, offset in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
                at = content.index(mark) + offset
                content[at : at + 4] = (1000).to_bytes(4, "little")
            archive.write_bytes(content)
    with pytest.raises(DataError, match=r"50 times its size|must be whole"):
        extract(archive, tmp_path / "out")
    assert sum(path.stat().st_size for path in (tmp_path / "out").rglob("*") if path.is_file()) <= 1 << 20
