"""Every file accounted for: known by content, passed over by reason; links followed or named; lists as written."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest
from PIL import Image

from captune.config import TaskConfig
from captune.data import catalog, file_kinds
from captune.data.catalog import load_dataset
from captune.data.dataset import Dataset
from captune.data.decode import Unreadable, decode_file
from captune.data.loose_images import image_files
from captune.errors import DataError, UsageError
from captune.preprocessing import Preprocessing
from tests.data.miniatures import write_image
from tests.slow import in_one_test

_SMALL = Preprocessing(8, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def _load(dataset: str, **values: object) -> Dataset:
    return load_dataset(TaskConfig.parse({"dataset": dataset, "paradigm": "ul", **values}))


def _two_classes(folder: Path, count: int = 4) -> Path:
    for name in ("a", "b"):
        for number in range(count):
            write_image(folder / name / f"{number}.jpg", number)
    return folder


def _encoded(kind: str, **options: object) -> bytes:
    data = io.BytesIO()
    Image.effect_noise((20, 16), 60).convert("RGB").save(data, kind, **options)
    return data.getvalue()


@in_one_test("kind", ["JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "JPEG2000", "AVIF"])
def test_images_are_known_by_content_whatever_they_are_called(tmp_path: Path, kind: str) -> None:
    folder = _two_classes(tmp_path)
    for name in ("no suffix", "odd.suffix", "wrong.jpg"):
        (folder / "a" / name).write_bytes(_encoded(kind))
    dataset = _load(f"folder:{folder}")
    assert dataset.num_images == 11
    assert decode_file(folder / "a" / "no suffix", _SMALL).shape[2] == 3


def test_what_is_passed_over_is_counted_by_reason(tmp_path: Path) -> None:
    folder = _two_classes(tmp_path)
    for name in (".ipynb_checkpoints", "@eaDir"):
        write_image(folder / "a" / name / "0.jpg")
    write_image(folder / "__MACOSX" / "a" / "._0.jpg")
    for name in ("Thumbs.db", ".DS_Store", "0.json", "notes.txt"):
        (folder / "a" / name).write_text("x")
    (folder / "b" / "photo.dng").write_bytes(b"II*\0")
    dataset = _load(f"folder:{folder}")
    assert dataset.num_images == 8
    (note,) = [note for note in dataset.notes if note.startswith("passed over")]
    for part in (
        "hidden files: 2",
        "files that are no images: 2 (a/0.json, a/notes.txt)",
        "camera raw files (export them as JPEG or TIFF): 1",
        "folders of the system or of a program: 3",
    ):
        assert part in note


def test_heic_is_read_with_the_extra_and_else_named_with_its_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pillow_heif")
    assert file_kinds.reads_heic()
    folder = _two_classes(tmp_path)
    (folder / "a" / "phone.HEIC").write_bytes(_encoded("HEIF"))
    (folder / "a" / "phone").write_bytes(_encoded("HEIF"))
    assert _load(f"folder:{folder}").num_images == 10
    assert decode_file(folder / "a" / "phone.HEIC", _SMALL).shape == (8, 10, 3)
    monkeypatch.setattr(file_kinds, "reads_heic", lambda: False)
    catalog._read_dataset.cache_clear()  # which knows that nothing has changed on the disk
    dataset = _load(f"folder:{folder}")
    assert dataset.num_images == 8
    assert any("HEIC images (to read them: pip install 'captune[heic]'): 2" in note for note in dataset.notes)


def test_folders_that_are_not_to_be_read_are_named(tmp_path: Path) -> None:
    for split in ("train", "test"):
        _two_classes(tmp_path / split)
    write_image(tmp_path / "sample" / "1.jpg")
    dataset = _load(f"folder:{tmp_path}", pass_over="sample")
    assert dataset.class_names == ("a", "b")
    assert any("the folder sample (--pass-over)" in note for note in dataset.notes)
    with pytest.raises(UsageError, match=r"folders that are there, but got smaple"):
        _load(f"folder:{tmp_path}", pass_over="sample,smaple")


def test_devices_and_pipes_are_named_and_never_waited_for(tmp_path: Path) -> None:
    folder = _two_classes(tmp_path)
    os.mkfifo(folder / "a" / "pipe.jpg")
    dataset = _load(f"folder:{folder}")
    assert dataset.num_images == 8
    assert any("devices, pipes and sockets: 1 (a/pipe.jpg)" in note for note in dataset.notes)
    with pytest.raises(DataError, match=r"must be a file or a folder, but got .*pipe\.jpg"):
        image_files([folder / "a" / "pipe.jpg"])


def test_links_may_end_inside_the_data_root_or_anywhere_if_asked(tmp_path: Path) -> None:
    folder = _two_classes(tmp_path / "project" / "images")
    write_image(tmp_path / "project" / "cache" / "ab12", 7)
    (folder / "a" / "9.jpg").symlink_to(tmp_path / "project" / "cache" / "ab12")
    with pytest.raises(DataError, match=r"1 that lead out of it.*--data-root, or say --follow-links"):
        _load(f"folder:{folder}")
    assert _load(f"folder:{folder}", data_root=tmp_path / "project").num_images == 9
    assert _load(f"folder:{folder}", follow_links=True).num_images == 9


def test_links_to_nowhere_to_themselves_and_in_circles_are_named(tmp_path: Path) -> None:
    folder = _two_classes(tmp_path / "one")
    (folder / "a" / "gone.jpg").symlink_to(folder / "nowhere.jpg")
    with pytest.raises(DataError, match=r"1 that lead nowhere: .*gone\.jpg.*dvc pull"):
        _load(f"folder:{folder}")
    (folder / "a" / "gone.jpg").unlink()
    (folder / "a" / "self.jpg").symlink_to(folder / "a" / "self.jpg")
    with pytest.raises(DataError, match=r"lead nowhere: .*self\.jpg"):
        _load(f"folder:{folder}")
    (folder / "a" / "self.jpg").unlink()
    (folder / "a" / "x").symlink_to(folder / "b", target_is_directory=True)
    (folder / "b" / "y").symlink_to(folder / "a", target_is_directory=True)
    with pytest.raises(DataError, match="must not lead to a folder it lies in"):
        _load(f"folder:{folder}")


def test_a_pointer_in_place_of_an_image_is_told(tmp_path: Path) -> None:
    (tmp_path / "1.jpg").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n")
    with pytest.raises(Unreadable, match="git lfs pull"):
        decode_file(tmp_path / "1.jpg", _SMALL)


# ---- lists


_ROWS = [
    ("i/1.jpg", "cat", "train"),
    ("i/2.jpg", "dog", "train"),
    ("i/3.jpg", "cat", "test"),
    ("i/4.jpg", "dog", "test"),
]


@in_one_test("delimiter", [",", ";", "\t"])
@in_one_test("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
@in_one_test("end", ["\n", "\r\n", "\r"])
def test_lists_are_read_as_spreadsheets_write_them(tmp_path: Path, delimiter: str, encoding: str, end: str) -> None:
    for path, _, _ in _ROWS:
        write_image(tmp_path / path)
    rows = [("Split", " PATH ", "Label"), *((split, path.replace("/", "\\"), label) for path, label, split in _ROWS)]
    (tmp_path / "l.csv").write_bytes(end.join(delimiter.join(row) for row in rows).encode(encoding))
    dataset = _load(f"csv:{tmp_path / 'l.csv'}")
    assert dataset.class_names == ("cat", "dog")
    assert (dataset.train.labels_N.tolist(), dataset.test.labels_N.tolist()) == ([0, 1], [0, 1])


def test_columns_may_be_named(tmp_path: Path) -> None:
    for path, _, _ in _ROWS:
        write_image(tmp_path / path)
    lines = ["sep=;", "File;Species;Set", *(";".join(row) for row in _ROWS)]
    (tmp_path / "l.csv").write_text("\n".join(lines))
    named = {"image_column": "file", "label_column": "species", "split_column": "set"}
    assert len(_load(f"csv:{tmp_path / 'l.csv'}", **named).test) == 2
    with pytest.raises(DataError, match=r"a column specie, but got File, Species, Set.*Did you mean 'Species'"):
        _load(f"csv:{tmp_path / 'l.csv'}", **{**named, "label_column": "specie"})


@in_one_test(
    ("text", "message"),
    [
        ("path,label\ni/1.jpg,Cat\ni/2.jpg,cat \ni/3.jpg,dog\n", "spelled in one way, but got 'Cat' and 'cat '"),
        ("path,label,label\ni/1.jpg,x,y\n", "columns must have different names, but got label"),
        ("path,label\ni/1.jpg,x,y\n", r"2 cells, as the header, but got 3 \(in .*line 2"),
        ("path,label\ni/1.jpg,x\ni/../i/1.jpg,y\n", "an image must have one label, but got 1 with two"),
        ("path,label,split\ni/1.jpg,x,train\ni/../i/1.jpg,x,test\n", "must stand in one split"),
        ("path,label\ni,x\ni/1.jpg,y\n", "must be a file, but got other things: i"),
        ("path,label\n../o.jpg,x\ni/1.jpg,y\n", "inside the data root, but got 1 outside"),
        ("path,label\ni/2.jpg,x\n\ni/5.jpg,x\n", "1 missing: i/5.jpg"),
    ],
)
def test_lists_that_say_two_things_are_refused_by_name(tmp_path: Path, text: str, message: str) -> None:
    folder = tmp_path / "in"
    for path, _, _ in _ROWS:
        write_image(folder / path)
    write_image(tmp_path / "o.jpg")
    (folder / "l.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        _load(f"csv:{folder / 'l.csv'}")


def test_a_root_around_the_list_holds_its_images(tmp_path: Path) -> None:
    write_image(tmp_path / "images" / "1.jpg")
    write_image(tmp_path / "images" / "2.jpg")
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "l.csv").write_text("path,label\n../images/1.jpg,x\n../images/2.jpg,y\n")
    assert _load(f"csv:{tmp_path / 'lists' / 'l.csv'}", data_root=tmp_path).num_images == 2


@pytest.mark.parametrize(
    "item",
    ['["a", -1, "x"]', '["a", 2000000000, "x"]', '["a", Infinity, "x"]', '["a", NaN, "x"]', '["a", true, "x"]',
     '["\\ud800", 0, "x"]', '["a", 0, "\\udfff"]', '["a\\u0000", 0, "x"]', '["a", "0", "x"]', '[["a"], 0, "x"]', "7"],
)  # fmt: skip
def test_split_files_are_checked_whole_before_anything_is_used(tmp_path: Path, item: str) -> None:
    (tmp_path / "eurosat" / "2750").mkdir(parents=True)
    split = tmp_path / "eurosat" / "split_zhou_EuroSAT.json"
    split.write_text(f'{{"train": [["b", 0, "y"], {item}], "val": [], "test": []}}')
    with pytest.raises(DataError, match=r"another shape in train|without gaps"):
        _load("eurosat", data_root=tmp_path)
    split.write_text("[" * 100_000)
    with pytest.raises(DataError, match="split file must be JSON"):
        _load("eurosat", data_root=tmp_path)
