"""People's own data: folders, manifests, features, names and templates; and what is said when they are wrong."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest
import yaml

from captune.config import TaskConfig
from captune.data.catalog import load_dataset
from captune.data.dataset import Dataset
from captune.errors import CaptuneError, ConfigError, DataError, UsageError
from tests.data.miniatures import write_image
from tests.slow import in_one_test


def _load(dataset: str, **values: object) -> Dataset:
    return load_dataset(TaskConfig.parse({"dataset": dataset, "paradigm": "ul", **values}))


def _classes(folder: Path, names: list[str], count: int = 10) -> Path:
    for label, name in enumerate(names):
        for number in range(count):
            write_image(folder / name / f"{number}.jpg", label)
    return folder


# ---- class folders


def test_class_folders_are_cut_by_class(tmp_path: Path) -> None:
    dataset = _load(f"folder:{_classes(tmp_path, ['tabby_cat', 'dog'])}")
    assert dataset.class_names == ("dog", "tabby cat")
    for split, size in ((dataset.train, 5), (dataset.val, 2), (dataset.test, 3)):
        assert Counter(split.labels_N.tolist()) == {0: size, 1: size}
    assert all(
        ("tabby_cat" in path) == (label == 1)
        for path, label in zip(dataset.train.paths, dataset.train.labels_N, strict=True)
    )
    assert dataset.template == "a photo of a {}."


def test_split_folders_are_kept(tmp_path: Path) -> None:
    for split, count in (("train", 4), ("valid", 1), ("test", 2)):
        _classes(tmp_path / split, ["a", "b"], count)
    dataset = _load(f"folder:{tmp_path}")
    assert [len(split) for split in (dataset.train, dataset.val, dataset.test)] == [8, 2, 4]


def test_val_serves_as_test_where_there_is_no_test(tmp_path: Path) -> None:
    for split, count in (("train", 4), ("val", 2)):
        _classes(tmp_path / split, ["a", "b"], count)
    dataset = _load(f"folder:{tmp_path}")
    assert [len(split) for split in (dataset.train, dataset.val, dataset.test)] == [8, 0, 4]


def test_train_folder_alone_is_cut(tmp_path: Path) -> None:
    _classes(tmp_path / "train", ["a", "b"])
    dataset = _load(f"folder:{tmp_path}")
    assert [len(split) for split in (dataset.train, dataset.val, dataset.test)] == [10, 4, 6]


def test_files_that_are_no_images_and_hidden_ones_are_passed_over(tmp_path: Path) -> None:
    _classes(tmp_path, ["a", "b"], 2)
    (tmp_path / "a" / "tmp").write_text("x")
    (tmp_path / "a" / "Thumbs.db").write_text("x")
    (tmp_path / "a" / "._0.jpg").write_text("x")
    (tmp_path / ".cache").mkdir()
    (tmp_path / "readme.txt").write_text("x")
    assert _load(f"folder:{tmp_path}").num_images == 4


def test_cut_does_not_depend_on_other_classes(tmp_path: Path) -> None:
    first = _load(f"folder:{_classes(tmp_path / 'one', ['a', 'b'])}")
    second = _load(f"folder:{_classes(tmp_path / 'two', ['a', 'b', 'c'])}")

    def of(dataset: Dataset, name: str) -> list[str]:
        return [Path(path).name for path in dataset.train.paths if Path(path).parent.name == name]

    assert of(first, "a") == of(second, "a") and of(first, "a") != of(first, "b")


def test_bad_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="must be a folder, but got none"):
        _load(f"folder:{tmp_path / 'nowhere'}")
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match="must be a folder, but got a file"):
        _load(f"folder:{tmp_path / 'file'}")
    (tmp_path / "flat").mkdir()
    write_image(tmp_path / "flat" / "a.jpg")
    with pytest.raises(DataError, match=r"must come with the names of the classes, but got 1 image and no names"):
        _load(f"folder:{tmp_path / 'flat'}")
    _classes(tmp_path / "hollow", ["a", "b"], 1)
    (tmp_path / "hollow" / "empty").mkdir()
    with pytest.raises(DataError, match="every class folder must hold an image, but got 1 without: empty"):
        _load(f"folder:{tmp_path / 'hollow'}")
    _classes(tmp_path / "odd" / "train", ["a", "b", "c"], 1)
    _classes(tmp_path / "odd" / "test", ["a", "b", "d"], 1)
    with pytest.raises(DataError, match=r"3 in train and 3 in test; in one alone: c in train, d in test"):
        _load(f"folder:{tmp_path / 'odd'}")
    _classes(tmp_path / "headless" / "test", ["a", "b"], 1)
    with pytest.raises(DataError, match="must hold a train folder, but got test"):
        _load(f"folder:{tmp_path / 'headless'}")


def test_links_inside_the_tree_are_followed_and_links_out_of_it_refused(tmp_path: Path) -> None:
    outside = tmp_path / "secret.jpg"
    write_image(outside)
    folder = _classes(tmp_path / "data", ["a", "b"], 3)
    (folder / "a" / "again.jpg").symlink_to(folder / "a" / "0.jpg")
    assert _load(f"folder:{folder}").num_images == 7
    (tmp_path / "linked").symlink_to(folder)
    assert _load(f"folder:{tmp_path / 'linked'}").num_images == 7, "the folder itself may be a link"
    (folder / "b" / "leak.jpg").symlink_to(outside)
    with pytest.raises(DataError, match=r"inside their dataset's folder, but got 1 that lead out of it: .*leak\.jpg"):
        _load(f"folder:{folder}")
    (folder / "b" / "leak.jpg").unlink()
    (folder / "c").symlink_to(tmp_path, target_is_directory=True)
    with pytest.raises(DataError, match="lead out of it"):
        _load(f"folder:{folder}")


def test_class_folders_whose_names_are_no_text_are_refused(tmp_path: Path) -> None:
    _classes(tmp_path, ["a"], 1)
    try:
        (tmp_path / os.fsdecode(b"caf\xe9")).mkdir()
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    with pytest.raises(DataError, match="must be UTF-8 text, but got 1") as caught:
        _load(f"folder:{tmp_path}")
    str(caught.value).encode("utf-8")  # can be printed


# ---- manifests


def _manifest(folder: Path, text: str) -> str:
    (folder / "m.csv").write_bytes(text.encode() if isinstance(text, str) else text)
    return f"csv:{folder / 'm.csv'}"


def test_manifest_names_images_labels_and_splits(tmp_path: Path) -> None:
    for name in "abcdef":
        write_image(tmp_path / "i" / f"{name}.jpg")
    text = "split,path,label\ntrain,i/a.jpg,10\ntrain,i/b.jpg,9\nvalidation,i/c.jpg,9\ntest,i/d.jpg,10\nTest,i/e.jpg,\n"
    dataset = _load(_manifest(tmp_path, "\ufeff" + text + f"train,{tmp_path / 'i' / 'f.jpg'},-1\n"))
    assert dataset.class_names == ("9", "10"), "numbers are in numeric order"
    assert dataset.train.labels_N.tolist() == [1, 0, -1]
    assert dataset.val.labels_N.tolist() == [0] and dataset.test.labels_N.tolist() == [1, -1]
    assert dataset.train.paths[0] == str(tmp_path / "i/a.jpg")


def test_manifest_without_splits_is_cut_by_class(tmp_path: Path) -> None:
    _classes(tmp_path / "i", ["cat", "dog"])
    rows = [f"i/{name}/{number}.jpg,{name}" for name in ("dog", "cat") for number in range(10)]
    dataset = _load(_manifest(tmp_path, "path,label\n" + "\n".join(rows) + "\n"))
    assert [len(split) for split in (dataset.train, dataset.val, dataset.test)] == [10, 4, 6]
    assert dataset.class_names == ("cat", "dog")


@in_one_test(
    ("text", "message"),
    [
        ("path,class\na.jpg,x\n", "columns path, label and optionally split, but got path, class"),
        ("", "but got an empty file"),
        ("path,label\n", "must list images, but got a header alone"),
        ("path,label,split\na.jpg,x,holdout\n", r"train, val or test, but got 'holdout' \(in .*m\.csv: line 2\)"),
        ("path,label\n,x\n", "path must be given"),
        ("path,label\na.jpg,\n", "no label in the list and no names.*--class-names"),
        ("path,label\nno1.jpg,x\nno2.jpg,x\nno3.jpg,y\nno4.jpg,y\n", r"4 missing: .*no1\.jpg.*no2\.jpg.*no3\.jpg, …"),
        (b"path,label\ncaf\xe9.jpg,x\n", "must be UTF-8 text, but got byte 14"),
    ],
)
def test_bad_manifests_are_refused(tmp_path: Path, text: str | bytes, message: str) -> None:
    (tmp_path / "m.csv").write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(DataError, match=message):
        _load(f"csv:{tmp_path / 'm.csv'}")


def test_missing_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="a list of images must be readable"):
        _load(f"csv:{tmp_path / 'none.csv'}")


# ---- split files


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{not json", "split file must be JSON"),
        (b"\xff\xfe{}", "split file must be UTF-8 text, but got byte 0"),
        (b'{"train": []}', "another shape"),
        (b'{"train": [["a.jpg"]], "val": [], "test": []}', "another shape"),
        (b'{"train": [["a.jpg", 0, "x"], ["b.jpg", 0, "y"]], "val": [], "test": []}', "'x' and 'y' for label 0"),
        (
            b'{"train": [["a.jpg", 0, "x"], ["b.jpg", 2, "y"]], "val": [], "test": []}',
            "without gaps, but got no label 1",
        ),
        (b'{"train": [["../../a.jpg", 0, "x"], ["/etc/b", 1, "y"]], "val": [], "test": []}', "10 classes, but got 2"),
    ],
)
def test_bad_split_files_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "eurosat" / "2750").mkdir(parents=True, exist_ok=True)
    (tmp_path / "eurosat" / "split_zhou_EuroSAT.json").write_bytes(content)
    with pytest.raises(DataError, match=message):
        _load("eurosat", data_root=tmp_path)


def test_split_files_cannot_name_files_outside(tmp_path: Path) -> None:
    write_image(tmp_path / "a.jpg")
    (tmp_path / "eurosat" / "2750").mkdir(parents=True)
    rows = ", ".join(f'["../../a.jpg", {label}, "c{label}"]' for label in range(10))
    (tmp_path / "eurosat/split_zhou_EuroSAT.json").write_text(f'{{"train": [{rows}], "val": [], "test": []}}')
    with pytest.raises(DataError, match="10 that lead out of it"):
        _load("eurosat", data_root=tmp_path)


def test_a_part_of_a_layout_is_named_as_there(tmp_path: Path) -> None:
    (tmp_path / "dtd" / "images").mkdir(parents=True)
    with pytest.raises(DataError, match=r"a part of it(.|\n)*dtd/images \(is there\), dtd/split_zhou"):
        _load("dtd", data_root=tmp_path)


# ---- names and templates


def _yaml(folder: Path, values: object) -> Path:
    (folder / "names.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    return folder / "names.yaml"


def test_class_names_and_template_can_be_given(tmp_path: Path) -> None:
    names = [f"digit {number}" for number in range(10)]
    dataset = _load("digits", class_names=_yaml(tmp_path, names), template="the number {}")
    assert dataset.class_names == tuple(names) and dataset.template == "the number {}"
    mapping = {"class_names": {"two": "a two"}, "template": "{}!"}
    dataset = _load("digits", class_names=_yaml(tmp_path, mapping))
    assert dataset.class_names[1:4] == ("one", "a two", "three") and dataset.template == "{}!"


@in_one_test(
    ("values", "message"),
    [
        (["a"], "10 names in label order, but got 1 names"),
        ([*"abcdefghi", "a"], "different and not empty, but got a"),
        ([*"abcdefghi", " "], "different and not empty, but got an empty name"),
        ([*"abcdefghi", True], "must be text, but got True"),
        ({"class_name": []}, "Did you mean 'class_names'"),
        ({"class_names": {"tow": "x"}}, "but got 'tow'.*Did you mean 'two'"),
        ("text", "list, or a mapping"),
        ({"template": "no place"}, "exactly one {}"),
    ],
)
def test_bad_names_are_refused(tmp_path: Path, values: object, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        _load("digits", class_names=_yaml(tmp_path, values))


def test_unreadable_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="must be readable"):
        _load("digits", class_names=tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("[a, b")
    with pytest.raises(ConfigError, match="must be valid YAML"):
        _load("digits", class_names=tmp_path / "bad.yaml")


@pytest.mark.parametrize("template", ["a photo", "{} and {}", "{0} {}", "{name}", "{{}}"])
def test_templates_must_hold_one_place(template: str) -> None:
    with pytest.raises(UsageError, match=r"exactly one \{\}"):
        _load("digits", template=template)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("digts", "Did you mean 'digits'"),
        ("caltech-101", "Did you mean 'caltech101'"),
        ("folder", "must name a dataset"),
        ("folder:", "must name a dataset"),
        ("zip:/x", "Known: .*folder:, csv:, features:"),
    ],
)
def test_unknown_datasets_are_refused_with_the_nearest_name(key: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        _load(key)
    assert isinstance(caught.value, CaptuneError) and caught.value.exit_code == 2


def test_a_link_in_a_circle_is_refused(tmp_path: Path) -> None:
    folder = _classes(tmp_path, ["a", "b"], 3)
    (folder / "a" / "up").symlink_to("..", target_is_directory=True)
    with pytest.raises(DataError, match=r"a link must not lead to a folder it lies in, but got .*/a/up"):
        _load(f"folder:{folder}")


def test_classes_that_read_the_same_in_a_prompt_are_refused_until_renamed(tmp_path: Path) -> None:
    folder = _classes(tmp_path / "data", ["red_fox", "red fox", "wolf"], 3)
    with pytest.raises(DataError, match=r"class names must be different .* but got 'red fox' and 'red fox'"):
        _load(f"folder:{folder}")
    names = tmp_path / "names.yaml"
    names.write_text("[red fox, fox that is red, wolf]")
    assert load_dataset(TaskConfig(dataset=f"folder:{folder}", paradigm="ul", class_names=names)).class_names == (
        "red fox",
        "fox that is red",
        "wolf",
    )


def test_one_folder_of_images_is_no_choice_of_classes(tmp_path: Path) -> None:
    _classes(tmp_path, ["photos"], 3)
    with pytest.raises(DataError, match="but got photos alone, which is no choice of classes"):
        _load(f"folder:{tmp_path}")


def test_numbers_that_count_class_names_are_said_to_count_from_0(tmp_path: Path) -> None:
    for name in "abcd":
        write_image(tmp_path / f"{name}.jpg")
    numbers = "path,label\na.jpg,1\nb.jpg,2\nc.jpg,1\nd.jpg,\n"
    dataset = _load(_manifest(tmp_path, numbers), class_names="ring,bar,cup")
    said = [note for note in dataset.notes if "count the class names" in note]
    assert said == ["labels are numbers that count the class names from 0: 1 = bar (2 images), 2 = cup (1 image)"]
    assert not any("count the class names" in note for note in _load(_manifest(tmp_path, numbers)).notes)


def test_what_is_read_as_a_name_though_it_may_not_be_one_is_said(tmp_path: Path) -> None:
    for name in "abcd":
        write_image(tmp_path / f"{name}.jpg")
    text = "path,label\na.jpg,nan\nb.jpg,ring\nc.jpg,-2\nd.jpg,None\n"
    notes = _load(_manifest(tmp_path, text)).notes
    assert any("read as names of classes: -2, None, nan; an unknown label is an empty cell" in note for note in notes)
    renamed = _load(_manifest(tmp_path, "path,label\na.jpg,x\nb.jpg,y\nc.jpg,x\nd.jpg,y\n"), class_names="ring,bar")
    assert renamed.class_names == ("ring", "bar")
    assert any("in this order: x = ring, y = bar" in note for note in renamed.notes)


def test_a_list_may_be_utf_32(tmp_path: Path) -> None:
    for name in "ab":
        write_image(tmp_path / f"{name}.jpg")
    (tmp_path / "m.csv").write_bytes("path,label\na.jpg,x\nb.jpg,y\n".encode("utf-32"))
    assert _load(f"csv:{tmp_path / 'm.csv'}").class_names == ("x", "y")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,label\n{a},\u00b2\n{b},y\n", None),
        ('path,label\n"' + "x" * 140_000 + '",y\n', "a list of images must be CSV, but got field larger"),
        ("path,label\n" + "x" * 400 + ".png,y\n", "every listed image must be on disk, but got 1 missing"),
        ("path,label,split\n{a},x,train\n{b},y,train\n{a},x,test\n", "must stand in one split, .* got 1 in two"),
    ],
)
def test_odd_manifests_are_read_or_refused_but_never_crash(tmp_path: Path, text: str, message: str | None) -> None:
    for name in ("a.png", "b.png"):
        write_image(tmp_path / name)
    (tmp_path / "m.csv").write_text(text.replace("{a}", "a.png").replace("{b}", "b.png"), encoding="utf-8")
    if message is None:
        assert set(_load(f"csv:{tmp_path / 'm.csv'}").class_names) == {"\u00b2", "y"}
        return
    with pytest.raises(DataError, match=message):
        _load(f"csv:{tmp_path / 'm.csv'}")
