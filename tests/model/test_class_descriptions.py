"""Concept descriptions: what we ship keeps its promises, and a user's file is checked with the place named."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from captune.data.digits import CLASS_NAMES as DIGITS
from captune.errors import ConfigError
from captune.model.class_descriptions import (
    DESCRIPTIONS_DIR,
    class_key,
    described_datasets,
    load_descriptions,
    match_descriptions,
)
from tests.slow import in_one_test

NUM_CLASSES = {
    "caltech101": 100,
    "cub200": 200,
    "digits": 10,
    "dtd": 47,
    "eurosat": 10,
    "fgvc_aircraft": 100,
    "flowers102": 102,
    "resisc45": 45,
}
# The published mismatched classes; these above all must be described.
PUBLISHED_MISMATCHED = {
    "resisc45": ["chaparral", "terrace"],
    "dtd": ["lacelike", "gauzy", "veined", "pitted"],
    "flowers102": [
        *("sweet william", "sweet pea", "globe flower", "love in the mist", "great masterwort", "buttercup"),
        "bishop of llandaff",
    ],
    "cub200": ["blue winged warbler", "sayornis", "scott oriole", "wilson warbler", "orange crowned warbler"],
    "fgvc_aircraft": ["767-400", "757-200"],
}
SHARED_DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


def _distinct(dataset: str) -> dict[tuple[str, ...], str]:
    """Sentences of each class once, whatever names it stands under."""
    return {tuple(sentences): name for name, sentences in load_descriptions(dataset).items()}


def _split_names(path: Path) -> list[str]:
    if not path.is_file():
        pytest.skip(f"{path.name} is not beside this checkout (../shared/data)")
    names = {label: name for split in json.loads(path.read_text()).values() for _, label, name in split}
    return [names[label] for label in sorted(names)]


def test_every_file_of_the_folder_is_a_dataset_we_promise():
    assert described_datasets() == sorted(NUM_CLASSES)


@in_one_test("dataset", NUM_CLASSES)
def test_each_class_of_a_described_dataset_has_five_or_more_descriptions(dataset: str):
    classes = _distinct(dataset)
    assert len(classes) == NUM_CLASSES[dataset]
    assert [name for sentences, name in classes.items() if len(sentences) < 5] == []


@in_one_test("dataset", NUM_CLASSES)
def test_no_sentence_describes_two_classes(dataset: str):
    sentences = [sentence.casefold() for group in _distinct(dataset) for sentence in group]
    assert len(sentences) == len(set(sentences))


@in_one_test("dataset", NUM_CLASSES)
def test_a_description_is_one_whole_sentence_and_no_bare_prompt(dataset: str):
    for group, name in _distinct(dataset).items():
        for sentence in group:
            assert re.fullmatch(r"[A-Z0-9].*[^.\s]\.", sentence), sentence
            assert not re.search(r"[.!?] +[A-Z]", sentence), f"two sentences: {sentence}"
            assert len(sentence.split()) >= 5, f"too little to see: {sentence}"
            # A template around the name says nothing that the name does not.
            without_name = {word for word in class_key(sentence).split() if word not in class_key(name).split()}
            assert without_name - {"a", "an", "the", "photo", "image", "picture", "of", "is", "type"}, sentence


@pytest.mark.parametrize("dataset", NUM_CLASSES)
def test_a_description_is_under_sixty_tokens(dataset: str):
    open_clip = pytest.importorskip("open_clip", reason="open_clip counts the tokens")
    encode = open_clip.tokenizer.SimpleTokenizer().encode
    longest = max(len(encode(sentence)) + 2 for group in _distinct(dataset) for sentence in group)  # start and end
    assert longest < 60


@pytest.mark.parametrize("dataset", PUBLISHED_MISMATCHED)
def test_the_published_mismatched_classes_are_described(dataset: str):
    names = PUBLISHED_MISMATCHED[dataset]
    described, missing = match_descriptions(load_descriptions(dataset), names, extra_ok=True)
    assert missing == []
    assert len(described) == len(names)


def test_digits_are_described_in_label_order():
    described, missing = match_descriptions(load_descriptions("digits"), DIGITS)
    assert missing == []
    assert sorted(described) == list(range(10))
    assert "straight vertical stroke" in described[1][0]


def test_real_caltech_class_names_all_match():
    names = _split_names(SHARED_DATA / "caltech-101" / "split_zhou_Caltech101.json")
    described, missing = match_descriptions(load_descriptions("caltech101"), names)
    assert (len(described), missing) == (100, [])


def test_real_eurosat_class_names_all_match():
    names = _split_names(SHARED_DATA / "eurosat" / "split_zhou_EuroSAT.json")
    described, missing = match_descriptions(load_descriptions("eurosat"), names)
    assert (len(described), missing) == (10, [])


def test_both_layouts_of_eurosat_get_the_same_sentences():
    coop = ["Annual Crop Land", "Herbaceous Vegetation Land", "Sea or Lake"]
    grip = ["annual crop land", "brushland or shrubland", "lake or sea"]
    descriptions = load_descriptions("eurosat")
    first, _ = match_descriptions(descriptions, coop, extra_ok=True)
    second, _ = match_descriptions(descriptions, grip, extra_ok=True)
    assert first == second


@in_one_test(
    ("dataset", "names"),
    [
        ("flowers102", ["globe-flower", "globe flower"]),
        ("flowers102", ["pink-yellow dahlia", "pink and yellow dahlia"]),
        ("flowers102", ["ball moss", "air plant"]),
        ("fgvc_aircraft", ["F-16A/B", "F-16A-B"]),
        ("caltech101", ["car_side", "car side"]),
        ("resisc45", ["ground track field", "ground_track_field"]),
    ],
)
def test_the_two_names_of_one_class_share_descriptions(dataset: str, names: list[str]):
    described, missing = match_descriptions(load_descriptions(dataset), names, extra_ok=True)
    assert missing == []
    assert described[0] == described[1]


def test_a_dataset_without_descriptions_is_empty_and_all_its_classes_are_missing():
    assert load_descriptions("oxford_pets") == {}
    assert load_descriptions("folder:/somewhere") == {}
    assert match_descriptions({}, ["beagle", "pug"]) == ({}, ["beagle", "pug"])


def test_a_class_without_description_is_reported_and_left_out():
    described, missing = match_descriptions({"cat": ["A cat has whiskers."]}, ["dog", "cat", "newt"])
    assert described == {1: ["A cat has whiskers."]}
    assert missing == ["dog", "newt"]


def test_a_misspelled_class_is_refused_with_the_nearest_name_that_lacks_a_description():
    descriptions = {"sea lion": ["A sea lion has flippers."], "walrsu": ["A walrus has tusks."]}
    with pytest.raises(ConfigError, match=r"'walrsu': Did you mean 'walrus'\?"):
        match_descriptions(descriptions, ["walrus", "sea lion"], where="mine.yaml")


def test_a_description_of_no_class_passes_when_the_dataset_is_a_subset():
    described, missing = match_descriptions(load_descriptions("digits"), ["three", "eight"], extra_ok=True)
    assert (sorted(described), missing) == ([0, 1], [])


def test_a_user_file_is_read_by_path_or_by_its_ending(tmp_path: Path):
    path = tmp_path / "mine.yaml"
    path.write_text("oak: &oak\n- An oak leaf\n  has lobes.\nquercus: *oak\n", encoding="utf-8")
    expected = {"oak": ["An oak leaf has lobes."], "quercus": ["An oak leaf has lobes."]}
    assert load_descriptions(path) == expected
    assert load_descriptions(str(path)) == expected
    described, missing = match_descriptions(expected, ["Oak"])  # the alias is no unknown class
    assert (described, missing) == ({0: ["An oak leaf has lobes."]}, [])


@in_one_test(
    ("text", "message"),
    [
        ("", "must map each class name"),
        ("- a\n- b\n", "must map each class name.*a list"),
        ("oak: a leaf\n", r"mine\.yaml: oak: must be a list of sentences, but is a str"),
        ("oak: []\n", r"mine\.yaml: oak: has no sentence"),
        ("oak:\n- \n", r"mine\.yaml: oak: sentence 1 must be text, but is empty"),
        ("oak:\n- Bark is: grey.\n", "oak: sentence 1 must be text, but is a dict"),
        ("oak:\n- Grey.\n- Grey.\n", "oak: sentence 2 repeats"),
        ("7:\n- A seven.\n", "7: a class name must be text, but YAML reads a int"),
        ("true:\n- A truth.\n", "a class name must be text, but YAML reads a bool"),
        ("sea_lake:\n- Blue.\nSea Lake:\n- Wet.\n", "Sea Lake: the same class as 'sea_lake' above"),
        ("oak:\n- One.\noak:\n- Two.\n", "line 3: 'oak' again, first in line 1"),
        ("oak: [\n", "must be valid YAML"),
    ],
)
def test_a_wrong_user_file_is_refused_with_its_key(tmp_path: Path, text: str, message: str):
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=f"(?s){message}") as caught:
        load_descriptions(path)
    assert str(path) in str(caught.value)


def test_all_errors_of_a_file_are_told_at_once(tmp_path: Path):
    path = tmp_path / "mine.yaml"
    path.write_text("oak: []\nelm: 3\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"(?s)oak: has no sentence.*elm: must be a list"):
        load_descriptions(path)


def test_a_file_cannot_make_python_objects(tmp_path: Path):
    path = tmp_path / "mine.yaml"
    marker = tmp_path / "ran"
    path.write_text(
        f"oak: !!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path ['{marker}']]\n"
    )
    with pytest.raises(ConfigError, match="must be valid YAML"):
        load_descriptions(path)
    assert not marker.exists()


def test_a_missing_or_unreadable_file_is_one_clear_error(tmp_path: Path):
    with pytest.raises(ConfigError, match="must exist"):
        load_descriptions(tmp_path / "none.yaml")
    latin = tmp_path / "latin.yaml"
    latin.write_bytes(b"caf\xe9:\n- A caf\xe9.\n")
    with pytest.raises(ConfigError, match="UTF-8"):
        load_descriptions(latin)
    with pytest.raises(ConfigError, match="readable"):
        load_descriptions(tmp_path)


def test_the_example_of_the_readme_is_a_valid_file(tmp_path: Path):
    readme = (DESCRIPTIONS_DIR / "README.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```yaml\n(.*?)```", readme, flags=re.DOTALL)
    path = tmp_path / "example.yaml"
    path.write_text(example, encoding="utf-8")
    described, missing = match_descriptions(load_descriptions(path), ["Grey_Heron", "little egret", "common crane"])
    assert (sorted(described), missing) == ([0, 1], ["common crane"])
