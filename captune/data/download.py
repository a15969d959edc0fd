"""Opt-in downloads of the datasets that torchvision can fetch, from the same archives with the same checksums.

They can be resumed, and archives are checked while they are unpacked. Everything happens in
`<root>/.captune-download/<key>`; only a complete dataset is moved to its place.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import tarfile
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

from captune.data.build_once import locked
from captune.data.catalog import dataset_row, find_layout
from captune.errors import DataError

Progress = Callable[[str, int, int | None], None]
_CHUNK = 1 << 20
# Images hardly shrink in an archive, annotations tenfold. An archive that expands far more is made to fill the disk.
_MAX_RATIO = 50
_SMALL = 100 << 20
_TIMEOUT_SECONDS = 60


@dataclass(frozen=True)
class Archive:
    """One file to fetch.

    Attributes:
        url: its address.
        md5: its checksum as torchvision has it; None if nobody publishes one.
        into: folder below the data root that it is unpacked or copied into.
    """

    url: str
    md5: str | None
    into: str

    @property
    def name(self) -> str:
        """File name."""
        return self.url.rsplit("/", 1)[-1]


@dataclass(frozen=True)
class Download:
    """What a dataset is made of.

    Attributes:
        archives: what to fetch.
        places: the resulting files and folders, relative to the data root.
        inner: an archive inside the archive that holds the images, if there is one.
    """

    archives: tuple[Archive, ...]
    places: tuple[str, ...]
    inner: str | None = None


_VGG = "https://www.robots.ox.ac.uk/~vgg/data"
DOWNLOADS: dict[str, Download] = {
    "caltech101": Download(
        (
            Archive(
                "https://data.caltech.edu/records/mzrjq-6wc02/files/caltech-101.zip",
                "3138e1922a9193bfa496528edbbc45d0",
                "caltech101",
            ),
        ),
        ("caltech101/101_ObjectCategories",),
        inner="caltech101/caltech-101/101_ObjectCategories.tar.gz",
    ),
    "oxford_pets": Download(
        (
            Archive(f"{_VGG}/pets/data/images.tar.gz", "5c4f3ee8e5d25df40f4fd59a7f44e54c", "oxford-iiit-pet"),
            Archive(f"{_VGG}/pets/data/annotations.tar.gz", "95a8c909bbe2e81eed6a22bccdf3f68f", "oxford-iiit-pet"),
        ),
        ("oxford-iiit-pet/images", "oxford-iiit-pet/annotations"),
    ),
    "flowers102": Download(
        (
            Archive(f"{_VGG}/flowers/102/102flowers.tgz", "52808999861908f626f3c1f4e79d11fa", "flowers-102"),
            Archive(f"{_VGG}/flowers/102/imagelabels.mat", "e0620be6f572b9609742df49c70aed4d", "flowers-102"),
            Archive(f"{_VGG}/flowers/102/setid.mat", "a5357ecc9cb78c4bef273ce3793fc85c", "flowers-102"),
        ),
        ("flowers-102/jpg", "flowers-102/imagelabels.mat", "flowers-102/setid.mat"),
    ),
    "food101": Download(
        (Archive("http://data.vision.ee.ethz.ch/cvl/food-101.tar.gz", "85eeb15f3717b99a5da872d97d918f87", ""),),
        ("food-101",),
    ),
    "fgvc_aircraft": Download(
        (Archive(f"{_VGG}/fgvc-aircraft/archives/fgvc-aircraft-2013b.tar.gz", None, ""),),
        ("fgvc-aircraft-2013b",),
    ),
    "sun397": Download(
        (
            Archive(
                "http://vision.princeton.edu/projects/2010/SUN/SUN397.tar.gz", "8ca2778205c41d23104230ba66911c7a", ""
            ),
        ),
        ("SUN397",),
    ),
    "dtd": Download(
        (Archive(f"{_VGG}/dtd/download/dtd-r1.0.1.tar.gz", "fff73e5086ae6bdbea199a49dfb8a4c1", "dtd"),), ("dtd/dtd",)
    ),
    "eurosat": Download(
        (
            Archive(
                "https://huggingface.co/datasets/torchgeo/eurosat/resolve/"
                "c877bcd43f099cd0196738f714544e355477f3fd/EuroSAT.zip",
                "c8fa014336c82ac7804f0398fcb19387",
                "eurosat",
            ),
        ),
        ("eurosat/2750",),
    ),
}


def download(key: str, root: Path, *, progress: Progress | None = None) -> Path | None:
    """Fetch a dataset into the data root.

    Args:
        key: catalogue key.
        root: the data root; created if need be.
        progress: called with (file name, bytes so far, bytes in all if known).

    Returns:
        the first of the dataset's places; None if the dataset is already there.

    Raises:
        UsageError: no such dataset.
        DataError: it cannot be fetched (where to get it instead), the network fails (what was fetched is kept for the
            next attempt), a wrong checksum, an archive that climbs out of its folder, no room.
    """
    row = dataset_row(key)
    if key == "digits" or find_layout(row, root) is not None:
        return None
    if key not in DOWNLOADS:
        raise DataError(f"{key} must be fetched by hand", where=root, next_step=f"{row.how_to_get}")
    recipe = DOWNLOADS[key]
    taken = [place for place in recipe.places if (root / place).exists()]
    if taken:
        raise DataError(
            f"the place of {key} must be free",
            got=f"{taken[0]} of something that is not the whole dataset",
            where=root,
            next_step="Move it away, then try again.",
        )
    work = root / ".captune-download" / key
    try:
        work.mkdir(parents=True, exist_ok=True)
        with locked(work / ".lock"):
            if find_layout(row, root) is None:  # another process downloaded it meanwhile
                _install(recipe, work, root, progress)
        shutil.rmtree(work)
        _remove_if_empty(work.parent)
    except OSError as error:
        raise DataError(
            "the data root must be writable and have room",
            got=error.strerror or str(error),
            where=root,
            next_step="What was fetched so far is kept; the same command goes on from there.",
        ) from error
    return root / recipe.places[0]


def _install(recipe: Download, work: Path, root: Path, progress: Progress | None) -> None:
    files = [fetch(archive.url, archive.md5, work / archive.name, progress=progress) for archive in recipe.archives]
    tree = work / "tree"
    shutil.rmtree(tree, ignore_errors=True)  # left by an attempt that was killed
    try:
        for archive, file in zip(recipe.archives, files, strict=True):
            folder = tree / archive.into
            folder.mkdir(parents=True, exist_ok=True)
            if file.suffix in (".gz", ".tgz", ".zip"):
                extract(file, folder)
            else:
                shutil.copyfile(file, folder / file.name)
        if recipe.inner is not None:
            extract(tree / recipe.inner, tree / recipe.archives[0].into)
        missing = [place for place in recipe.places if not (tree / place).exists()]
        if missing:
            raise DataError("the archive must hold the dataset", got=f"no {missing[0]}", where=recipe.archives[0].url)
        for place in recipe.places:
            (root / place).parent.mkdir(parents=True, exist_ok=True)
            (tree / place).rename(root / place)
    finally:
        shutil.rmtree(tree, ignore_errors=True)


def fetch(url: str, md5: str | None, target: Path, *, progress: Progress | None = None) -> Path:
    """Fetch a file, going on where an earlier attempt stopped. It gets its own name only when it is complete.

    Raises:
        DataError: the network fails, or the checksum is wrong (the file is removed).
    """
    if target.exists():
        return target
    part = target.with_name(target.name + ".part")
    try:
        _fetch_rest(url, part, progress)
    except (urllib.error.URLError, HTTPException, TimeoutError, ConnectionError) as error:
        size = part.stat().st_size if part.exists() else 0
        raise DataError(
            "the download must reach its end",
            got=f"{error} after {size / 1e6:.1f} MB",
            where=url,
            next_step="Run the same command again: it goes on from there. Without a network, fetch the file elsewhere "
            f"and put it at {target}.",
        ) from None
    if md5 is not None and _md5(part) != md5:
        part.unlink()
        raise DataError(
            "the file must have its checksum",
            got="another one; the file was removed",
            where=url,
            next_step="Run the same command again; if it stays so, the file has changed at its source.",
        )
    part.rename(target)
    return target


def _fetch_rest(url: str, part: Path, progress: Progress | None) -> None:
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"User-Agent": "captune"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # nothing is left to fetch
            return
        raise
    with response, part.open("ab" if response.status == 206 else "wb") as file:
        done = have if response.status == 206 else 0
        length = response.headers.get("Content-Length")
        total = None if length is None else done + int(length)
        while chunk := response.read(_CHUNK):
            file.write(chunk)
            done += len(chunk)
            if progress is not None:
                progress(url.rsplit("/", 1)[-1], done, total)
        file.flush()
        os.fsync(file.fileno())
    if total is not None and done < total:
        raise ConnectionError(f"the connection closed at {done} of {total} bytes")


def _md5(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def extract(archive: Path, folder: Path) -> None:
    """Unpack a .zip, .tar.gz or .tgz into a folder.

    Raises:
        DataError: a damaged archive; a member that would land outside the folder, links outside, or is a device.
    """
    try:
        if archive.suffix == ".zip":
            _extract_zip(archive, folder)
        else:
            _extract_tar(archive, folder)
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, zipfile.LargeZipFile, zlib.error, RuntimeError) as error:
        # zlib.error: damaged deflate streams. RuntimeError: encrypted members, and compressions that Python lacks.
        raise DataError("an archive must be whole", got=str(error) or "a truncated file", where=archive) from None
    except OSError as error:
        if error.errno is None:  # gzip's own OSErrors have no error number; that of a full disk has one
            raise DataError("an archive must be whole", got=str(error), where=archive) from None
        raise


def _extract_zip(archive: Path, folder: Path) -> None:
    limit = _unpacked_limit(archive)
    with zipfile.ZipFile(archive) as file:
        members = file.infolist()
        if sum(member.file_size for member in members) > limit:
            raise _bomb(archive, sum(member.file_size for member in members))
        for member in members:
            _refuse_climbing(member.filename, folder, archive)
        done = 0
        for member in members:
            # zipfile stops reading at the declared size; if that is wrong, the checksum fails.
            done += Path(file.extract(member, folder)).stat().st_size if not member.is_dir() else 0
            if done > limit:
                raise _bomb(archive, done)


def _extract_tar(archive: Path, folder: Path) -> None:
    limit, declared = _unpacked_limit(archive), 0
    with tarfile.open(archive, "r:gz") as file:
        for member in file:
            declared += member.size
            if declared > limit:
                raise _bomb(archive, declared)
            _refuse_climbing(member.name, folder, archive)
            if member.issym():
                _refuse_climbing(str(Path(member.name).parent / member.linkname), folder, archive)
            elif member.islnk():
                _refuse_climbing(member.linkname, folder, archive)
            elif not (member.isfile() or member.isdir()):
                raise DataError("an archive must hold files and folders only", got=member.name, where=archive)
            if hasattr(tarfile, "data_filter"):
                file.extract(member, folder, filter="data")
            elif member.isfile() or member.isdir():
                file.extract(member, folder, set_attrs=False)
            else:
                raise DataError(
                    "an archive with links needs a Python that unpacks them safely, 3.11.4 or newer",
                    got=f"Python {platform.python_version()} and the link {member.name}",
                    where=archive,
                    next_step="Unpack it by hand into the data root, or use a newer Python.",
                )


def _unpacked_limit(archive: Path) -> int:
    return max(_SMALL, _MAX_RATIO * archive.stat().st_size)


def _bomb(archive: Path, num_bytes: int) -> DataError:
    return DataError(
        f"an archive of images must not unpack to more than {_MAX_RATIO} times its size",
        got=f"{num_bytes} bytes out of {archive.stat().st_size}",
        where=archive,
        next_step="Do not unpack this file: it is meant to fill the disk.",
    )


def _refuse_climbing(name: str, folder: Path, archive: Path) -> None:
    base = os.path.realpath(folder)
    target = os.path.realpath(os.path.join(base, name.replace("\\", "/")))  # noqa: PTH118 - an absolute name wins
    if target != base and not target.startswith(base + os.sep):
        raise DataError(
            "an archive must stay inside its folder",
            got=f"the member '{name}'",
            where=archive,
            next_step="Do not unpack this file: it is damaged or meant to harm.",
        )


def _remove_if_empty(folder: Path) -> None:
    if not any(folder.iterdir()):
        folder.rmdir()
