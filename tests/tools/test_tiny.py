"""The embedded model: it opens like any other, lies in its promised range, and can be made again."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import stat
from functools import cache
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from PIL import Image
from torch import Tensor

from captune.data.digits import CLASS_NAMES, TEMPLATE, load_digits_arrays
from captune.errors import UsageError
from captune.model.sources import TINY_DIR, VOCABULARY
from tests.tools.tiny_captions import (
    CHARACTERS,
    DIGIT_NAMES,
    SHAPES,
    all_captions,
    draw_captions,
    learn_merges,
    vocabulary_file,
)
from tests.tools.tiny_glyphs import draw_glyphs, font_files, printed
from tests.tools.train_tiny import as_input, main, train_tiny

NEEDED = ("open_clip_config.json", "open_clip_model.safetensors", "bpe_vocabulary.txt.gz", "README.md")


@cache
def opened() -> tuple[Any, Any, Any]:
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{TINY_DIR}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{TINY_DIR}", bpe_path=str(TINY_DIR / VOCABULARY))
    return model.eval(), preprocess, tokenizer


@cache
def zero_shot() -> tuple[Tensor, Tensor]:
    """Predictions and labels of all real digits, both (N,)."""
    model, preprocess, tokenizer = opened()
    images_NHW, labels_N = load_digits_arrays()
    with torch.inference_mode():
        pixels = torch.stack([preprocess(Image.fromarray(image).convert("RGB")) for image in images_NHW])
        images_ND = model.encode_image(pixels, normalize=True)
        texts_KD = model.encode_text(tokenizer([TEMPLATE.format(name) for name in CLASS_NAMES]), normalize=True)
    return (images_ND @ texts_KD.T).argmax(dim=1), torch.from_numpy(labels_N)


# the committed files


def test_folder_is_complete_small_and_readable_by_everybody() -> None:
    files = [path for path in TINY_DIR.iterdir() if path.is_file()]
    assert {path.name for path in files} == set(NEEDED)
    assert sum(path.stat().st_size for path in files) < 2_000_000
    if os.name == "posix":
        # safetensors' own writer withholds others' reading bits; a checkout gives them as far as the umask lets it.
        wanted = 0o644 & ~_umask()
        for path in files:
            assert stat.S_IMODE(path.stat().st_mode) & wanted == wanted, path.name


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_open_clip_opens_it_with_its_own_preprocessing_and_vocabulary() -> None:
    model, preprocess, tokenizer = opened()
    config = json.loads((TINY_DIR / "open_clip_config.json").read_text())["model_cfg"]
    assert model.visual.pool_type == "tok"
    assert tokenizer.vocab_size == config["text_cfg"]["vocab_size"] == model.vocab_size
    assert tokenizer.context_length == 16
    assert tuple(preprocess(Image.new("RGB", (8, 8), "white")).shape) == (3, 32, 32)
    assert torch.allclose(preprocess(Image.new("RGB", (8, 8), "white")), torch.ones(3, 32, 32))


def test_every_class_name_and_shape_fits_the_text_tower_in_whole_words() -> None:
    _, _, tokenizer = opened()
    # start + "a photo of a" (4) + name + "." + end = 8 tokens
    assert (tokenizer([TEMPLATE.format(name) for name in CLASS_NAMES]) != 0).sum(dim=1).tolist() == [8] * 10
    for shapes in SHAPES.values():
        for shape in shapes:
            assert len(tokenizer.encode(f"a photo of {shape}.")) + 2 <= 16, shape


def test_training_input_is_near_open_clip_preprocessing() -> None:
    _, preprocess, _ = opened()
    images_NHW, _ = load_digits_arrays()
    by_open_clip = torch.stack([preprocess(Image.fromarray(image).convert("RGB")) for image in images_NHW[:20]])
    # On a scale from -1 to 1. Pillow clips the overshoot after its first pass already, which shows beside sharp edges.
    difference = (as_input(torch.from_numpy(images_NHW[:20])) - by_open_clip).abs()
    assert difference.mean() < 0.01
    assert difference.max() < 0.25


# zero-shot on real digits


def test_zero_shot_lies_between_55_and_80_percent() -> None:
    predicted_N, labels_N = zero_shot()
    assert 0.55 <= float((predicted_N == labels_N).double().mean()) <= 0.80


def test_zero_shot_predictions_are_imbalanced() -> None:
    predicted_N, labels_N = zero_shot()
    recall_K = [float((predicted_N[labels_N == k] == k).double().mean()) for k in range(10)]
    counts_K = torch.bincount(predicted_N, minlength=10)
    assert min(recall_K) < 0.6 < 0.9 < max(recall_K)
    # The classes have 174 to 183 images each.
    assert counts_K.max() > 1.4 * 180 and counts_K.min() < 0.75 * 180


# making it again


def test_names_are_those_of_the_dataset() -> None:
    assert DIGIT_NAMES == CLASS_NAMES
    assert set(SHAPES) == set(CLASS_NAMES)


def test_glyphs_are_small_bytes_in_seventeen_levels_and_repeat_with_their_seed() -> None:
    labels = torch.arange(36).repeat(2)
    first, again, other = (
        draw_glyphs(labels, tuple(CHARACTERS.values()), torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)
    )
    assert first.shape == (72, 8, 8) and first.dtype == torch.uint8
    assert set(first.unique().tolist()) <= {round(level * 255 / 16) for level in range(17)}
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_every_font_draws_distinct_characters() -> None:
    assert len(font_files()) >= 10
    assert not any("LastResort" in path.name for path in font_files())
    for font in font_files():
        glyphs = printed(font, "0123456789")
        for one in range(10):
            for other in range(one):
                assert (glyphs[one] - glyphs[other]).abs().sum() > 20, (font.name, one, other)


def test_a_step_draws_one_caption_for_each_character_in_order() -> None:
    captions = draw_captions(torch.Generator().manual_seed(0))
    assert len(captions) == len(CHARACTERS) == 36
    for name, caption in zip(CHARACTERS, captions, strict=True):
        assert name in caption or any(shape in caption for shape in SHAPES.get(name, ())), (name, caption)
    assert set(captions) <= set(all_captions())


def test_merges_of_a_hand_worked_text() -> None:
    # "aab aab ab": (a, b</w>) 3 times, (a, a) twice. After joining ab</w>: (a, ab</w>) twice; then nothing is left.
    assert learn_merges(["aab aab ab"], 10) == [("a", "b</w>"), ("a", "ab</w>")]
    assert learn_merges(["aab aab ab"], 1) == [("a", "b</w>")]


def test_vocabulary_file_is_reproducible_and_has_no_empty_merge() -> None:
    content = vocabulary_file([("a", "b</w>")])
    assert content == vocabulary_file([("a", "b</w>")])
    assert gzip.decompress(content).decode().split("\n")[1:] == ["a b</w>"]


def test_committed_vocabulary_is_the_one_the_captions_give() -> None:
    written = gzip.decompress((TINY_DIR / VOCABULARY).read_bytes()).decode().split("\n")[1:]
    assert [tuple(line.split()) for line in written] == learn_merges(all_captions(), 1000)


def test_two_runs_write_the_same_bytes_and_leave_the_global_generator_alone(tmp_path: Path) -> None:
    state = torch.random.get_rng_state()
    for name in ("one", "two"):
        train_tiny(tmp_path / name, seed=5, num_steps=2, num_glyphs=360)
    assert _digests(tmp_path / "one") == _digests(tmp_path / "two")
    assert torch.equal(state, torch.random.get_rng_state())
    assert stat.S_IMODE((tmp_path / "one" / "open_clip_model.safetensors").stat().st_mode) == 0o644


def _digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


@pytest.mark.slow
def test_longer_training_is_deterministic_lowers_the_loss_and_depends_on_the_seed(tmp_path: Path) -> None:
    lines: list[str] = []
    for name in ("one", "two"):
        train_tiny(tmp_path / name, num_steps=120, report=lines.append)
    train_tiny(tmp_path / "other", seed=1, num_steps=1)
    assert _digests(tmp_path / "one") == _digests(tmp_path / "two")
    weights = "open_clip_model.safetensors"
    assert _digests(tmp_path / "one")[weights] != _digests(tmp_path / "other")[weights]
    losses = [float(line.rsplit(" ", 1)[1]) for line in lines]
    assert losses[-1] < losses[0] - 1


def test_no_steps_is_a_usage_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--out", str(tmp_path), "--steps", "0"]) == 2
    assert "--steps must be at least 1, but got 0." in capsys.readouterr().err


def test_an_output_that_is_a_file_is_refused_before_training(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("taken")
    with pytest.raises(UsageError, match=r"output directory must be writable.*Choose another --out"):
        train_tiny(tmp_path / "file", num_steps=1)
