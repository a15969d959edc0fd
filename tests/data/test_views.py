"""Views against open_clip's preprocessing and torchvision's RandomResizedCrop."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from scipy.stats import ks_2samp
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms import functional as F

from captune.data.dataset import Dataset, Split, empty_split
from captune.data.image_store import ImageStore
from captune.data.original_crops import OriginalCrops
from captune.data.resampling import by_products, one_by_one, resampling_weights
from captune.data.resident import ResidentPixels
from captune.data.views import FeatureViews, ImageViews, sample_boxes
from captune.preprocessing import Preprocessing

_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
# height, width, mode: taller, wider, square, smaller than the target, extreme, and what resizes in its own mode
_KINDS = [
    (90, 61, "RGB"), (61, 90, "RGB"), (64, 64, "RGB"), (20, 31, "RGB"), (31, 20, "L"), (48, 64, "CMYK"),
    (70, 50, "RGBA"), (50, 70, "P"), (300, 33, "RGB"), (33, 300, "RGB"), (47, 47, "1"), (57, 43, "LA"),
]  # fmt: skip


def _noisy_image(height: int, width: int, mode: str, seed: int) -> Image.Image:
    generator = np.random.default_rng(seed)
    smooth = generator.integers(0, 256, (6, 6, 3), dtype=np.uint8)
    image = Image.fromarray(smooth).resize((width, height), Image.Resampling.BICUBIC)
    noise = generator.integers(0, 40, (height, width, 3), dtype=np.uint8)
    pixels = np.clip(np.asarray(image).astype(int) + noise - 20, 0, 255).astype(np.uint8)
    return Image.fromarray(pixels).convert(mode)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> tuple[Dataset, list[Path]]:
    folder = tmp_path_factory.mktemp("images")
    paths = []
    for number, (height, width, mode) in enumerate(_KINDS):
        path = folder / f"{number}_{mode}.{'jpg' if mode == 'CMYK' else 'png'}"
        _noisy_image(height, width, mode, number).save(path)
        paths.append(path)
    split = Split(tuple(str(path) for path in paths), np.zeros(len(paths), np.int64))
    return Dataset("mini", ("a", "b"), "{}", split, empty_split(), empty_split()), paths


def _views(dataset: Dataset, preprocessing: Preprocessing, cache: Path) -> tuple[ImageStore, ImageViews]:
    store = ImageStore.open_or_build(dataset, preprocessing, cache)
    return store, ImageViews(store, preprocessing, "cpu")


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("resize_mode", ["shortest", "squash", "longest"])
@pytest.mark.parametrize("size", [32, 56])
def test_weak_view_is_open_clips_preprocessing(
    images: tuple[Dataset, list[Path]], tmp_path: Path, size: int, resize_mode: str, interpolation: str
) -> None:
    dataset, paths = images
    preprocessing = Preprocessing(size, _MEAN, _STD, resize_mode, interpolation)  # type: ignore[arg-type]
    theirs = open_clip.image_transform(
        size, is_train=False, mean=_MEAN, std=_STD, resize_mode=resize_mode, interpolation=interpolation
    )
    expected = torch.stack([theirs(Image.open(path)) for path in paths])
    _, views = _views(dataset, preprocessing, tmp_path)
    got = views.weak(np.arange(len(paths)))
    assert got.shape == expected.shape and got.dtype == torch.float32
    grey_levels = (got - expected).abs() * torch.tensor(_STD).reshape(3, 1, 1) * 255
    if resize_mode == "longest":
        # open_clip pads with the mode's zero: white in CMYK, the palette's first colour in P. Ours is always black.
        grey_levels = grey_levels[[number for number, kind in enumerate(_KINDS) if kind[2] not in ("CMYK", "P")]]
    # The residue is rounding in fp32 alone; a grey level is 1.
    assert grey_levels.max() < 1e-3


def test_weak_view_agrees_on_real_photographs(tmp_path: Path) -> None:
    root = Path(__file__).parents[3] / "shared" / "data" / "caltech-101" / "101_ObjectCategories"
    if not root.is_dir():
        pytest.skip("the subset of Caltech-101 is not beside this checkout")
    paths = sorted(root.glob("*/*.jpg"))[::60]
    split = Split(tuple(str(path) for path in paths), np.zeros(len(paths), np.int64))
    dataset = Dataset("real", ("a", "b"), "{}", split, empty_split(), empty_split())
    preprocessing = Preprocessing(224, _MEAN, _STD)
    _, views = _views(dataset, preprocessing, tmp_path)
    theirs = open_clip.image_transform(224, is_train=False, mean=_MEAN, std=_STD)
    expected = torch.stack([theirs(Image.open(path)) for path in paths])
    got = views.weak(np.arange(len(paths)))
    grey_levels = (got - expected).abs() * torch.tensor(_STD).reshape(3, 1, 1) * 255
    assert (grey_levels <= 1).float().mean() >= 0.999
    assert grey_levels.max() < 1e-3


def test_strong_view_is_torchvisions_crop_resize_and_flip(images: tuple[Dataset, list[Path]], tmp_path: Path) -> None:
    dataset, paths = images
    preprocessing = Preprocessing(32, _MEAN, _STD)
    store, views = _views(dataset, preprocessing, tmp_path)
    indices = np.arange(len(paths))
    for flip in (0.0, 1.0):
        got = views.strong(
            indices, torch.Generator().manual_seed(5), flip_probability=flip, crop_scale_min=0.08, feature_dropout=0.3
        )
        boxes = sample_boxes(store.sizes_N2, 0.08, torch.Generator().manual_seed(5))
        for row in indices:
            whole = torch.from_numpy(store.image(int(row)).copy()).permute(2, 0, 1).float()
            box = [int(each[row]) for each in (boxes.top_B, boxes.left_B, boxes.height_B, boxes.width_B)]
            expected = F.resized_crop(whole, *box, [32, 32], InterpolationMode.BICUBIC, antialias=True).clamp(0, 255)
            if flip:
                expected = expected.flip(-1)
            expected = F.normalize(expected / 255, list(_MEAN), list(_STD))
            torch.testing.assert_close(got[row], expected, atol=2e-4, rtol=0)


def test_boxes_resampled_one_by_one_are_those_resampled_by_products(
    images: tuple[Dataset, list[Path]], tmp_path: Path
) -> None:
    dataset, paths = images
    _, views = _views(dataset, Preprocessing(32, _MEAN, _STD), tmp_path)
    indices = np.arange(len(paths))
    draws_1B5 = views.draw(indices[None], torch.Generator().manual_seed(4), flip_probability=0.5, crop_scale_min=0.08)
    fed, boxes_B5 = views.feed_crops(indices[None], draws_1B5)(0), draws_1B5[0].clone()
    boxes_B5[:, :2] = 0
    torch.testing.assert_close(one_by_one(fed, boxes_B5, 32), by_products(fed, boxes_B5, 32), atol=2e-4, rtol=0)


def test_strong_view_of_the_originals_is_pillows_crop_of_the_file(
    images: tuple[Dataset, list[Path]], tmp_path: Path
) -> None:
    dataset, paths = images
    preprocessing = Preprocessing(24, _MEAN, _STD)
    _, views = _views(dataset, preprocessing, tmp_path)
    originals = OriginalCrops(views, dataset, preprocessing)
    places = np.array([row for row, (_, _, mode) in enumerate(_KINDS) if mode == "RGB"])
    given = {"flip_probability": 0.5, "crop_scale_min": 0.08}
    got = originals.strong(places, torch.Generator().manual_seed(2), **given)
    draws_1B5 = originals.draw(places[None], torch.Generator().manual_seed(2), **given)
    assert 0 < int(draws_1B5[..., 4].sum()) < len(places), "some are flipped, some are not"
    for row, (place, draw) in enumerate(zip(places, draws_1B5[0].tolist(), strict=True)):
        top, left, height, width, flipped = draw
        with Image.open(paths[place]) as image:
            crop = image.crop((left, top, left + width, top + height)).resize((24, 24), Image.Resampling.BICUBIC)
        pixels = torch.from_numpy(np.asarray(crop).copy()).permute(2, 0, 1).float() / 255
        expected = F.normalize(pixels.flip(-1) if flipped else pixels, list(_MEAN), list(_STD))
        torch.testing.assert_close(got[row], expected, atol=1e-5, rtol=0)


def test_strong_view_of_one_size_equals_that_of_a_ragged_store(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
    labels = Split((), np.zeros(6, np.int64))
    dataset = Dataset("array", ("a", "b"), "{}", labels, empty_split(), empty_split(), images_NHWC=pixels)
    preprocessing = Preprocessing(32, _MEAN, _STD, "squash")
    store, views = _views(dataset, preprocessing, tmp_path)
    arguments = {"flip_probability": 0.5, "crop_scale_min": 0.08}
    uniform = views.strong(np.arange(6), torch.Generator().manual_seed(1), **arguments)
    store.uniform_size = None
    ragged = views.strong(np.arange(6), torch.Generator().manual_seed(1), **arguments)
    torch.testing.assert_close(uniform, ragged, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("height", "width"), [(224, 224), (224, 300), (300, 224), (224, 1200), (1200, 224), (32, 32)])
def test_crop_statistics_equal_random_resized_crop(height: int, width: int) -> None:
    count = 2500
    torch.manual_seed(0)
    image = torch.empty(3, height, width)
    theirs = np.array([RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(count)])
    boxes = sample_boxes(np.tile([[height, width]], (count, 1)), 0.08, torch.Generator().manual_seed(0))
    ours = torch.stack([boxes.top_B, boxes.left_B, boxes.height_B, boxes.width_B], 1).numpy()
    assert (ours[:, 0] >= 0).all() and (ours[:, 1] >= 0).all()
    assert (ours[:, 0] + ours[:, 2] <= height).all() and (ours[:, 1] + ours[:, 3] <= width).all()
    for column in range(4):
        assert ks_2samp(theirs[:, column], ours[:, column]).pvalue > 1e-3
    area = [values[:, 2] * values[:, 3] for values in (theirs, ours)]
    ratio = [values[:, 3] / values[:, 2] for values in (theirs, ours)]
    assert ks_2samp(*area).pvalue > 1e-3
    assert ks_2samp(*ratio).pvalue > 1e-3


def test_crop_falls_back_to_the_centre_where_nothing_fits() -> None:
    # 10 × 1000: a crop of at least 90 % of the area is 9,000 pixels, but within the ratios at most 10 × 13 fits.
    boxes = sample_boxes(np.array([[10, 1000], [1000, 10]]), 0.9, torch.Generator().manual_seed(0))
    assert boxes.height_B.tolist() == [10, 13] and boxes.width_B.tolist() == [13, 10]
    assert boxes.top_B.tolist() == [0, 493] and boxes.left_B.tolist() == [493, 0]


def test_whole_crop_of_an_image_of_the_target_size_is_the_image() -> None:
    # No scaling: the kernel is 1 at 0 and 0 at whole numbers.
    weights = resampling_weights(torch.tensor([0]), torch.tensor([5]), 5, 5, "cpu")
    torch.testing.assert_close(weights[0], torch.eye(5), atol=1e-6, rtol=0)


def test_weights_of_a_row_add_up_to_one_and_stay_inside_the_crop() -> None:
    weights = resampling_weights(torch.tensor([3, 0]), torch.tensor([4, 9]), 9, 6, "cpu")
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 6))
    assert (weights[0, :, :3] == 0).all() and (weights[0, :, 7:] == 0).all()


def test_strong_view_depends_on_the_generator_alone(images: tuple[Dataset, list[Path]], tmp_path: Path) -> None:
    _, views = _views(images[0], Preprocessing(32, _MEAN, _STD), tmp_path)
    arguments = {"flip_probability": 0.5, "crop_scale_min": 0.08}
    first = views.strong(np.arange(4), torch.Generator().manual_seed(3), **arguments)
    torch.rand(7)
    again = views.strong(np.arange(4), torch.Generator().manual_seed(3), **arguments)
    other = views.strong(np.arange(4), torch.Generator().manual_seed(4), **arguments)
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_views_come_in_the_type_that_is_asked_for(images: tuple[Dataset, list[Path]], tmp_path: Path) -> None:
    preprocessing = Preprocessing(32, _MEAN, _STD)
    store = ImageStore.open_or_build(images[0], preprocessing, tmp_path)
    views = ImageViews(store, preprocessing, "cpu", torch.bfloat16)
    assert views.weak(np.array([0])).dtype == torch.bfloat16
    assert len(views) == len(_KINDS)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU compiles the kernel, for tensors of its own")
@pytest.mark.parametrize("resize_mode", [pytest.param("shortest", marks=pytest.mark.slow), "longest"])
def test_views_of_resident_images_are_those_of_the_store(
    images: tuple[Dataset, list[Path]], tmp_path: Path, resize_mode: str
) -> None:
    pytest.importorskip("triton", reason="Triton does not come with torch on this platform")
    preprocessing = Preprocessing(12, _MEAN, _STD, resize_mode)
    store, views = _views(images[0], preprocessing, tmp_path)
    indices = np.array([8, 3])
    draws = views.draw(indices[None], torch.Generator().manual_seed(3), flip_probability=0.5, crop_scale_min=0.08)
    resident = ResidentPixels(store, preprocessing, torch.device("cpu"))
    weak = resident.centres(torch.from_numpy(indices), torch.float32)
    strong = resident.crops(torch.from_numpy(indices), draws[0], torch.float32)
    torch.testing.assert_close(weak, views.weak(indices), atol=1e-5, rtol=1e-7)
    wanted = views.strong_of(views.feed_crops(indices[None], draws)(0), draws[0])
    torch.testing.assert_close(strong, wanted, atol=1e-4, rtol=1e-7)


def test_feature_views_drop_entries_and_normalise() -> None:
    features = torch.nn.functional.normalize(torch.randn(50, 64, generator=torch.Generator().manual_seed(0)), dim=-1)
    views = FeatureViews(features, "cpu")
    indices = np.array([4, 4, 9])
    assert torch.equal(views.weak(indices), features[[4, 4, 9]])
    strong = views.strong(np.arange(50), torch.Generator().manual_seed(1), feature_dropout=0.3)
    torch.testing.assert_close(strong.norm(dim=-1), torch.ones(50))
    assert 0.25 < (strong == 0).float().mean() < 0.35
    kept = strong != 0
    # What is kept keeps its direction: the ratio to the feature is one number a row.
    ratio = (strong / features).masked_fill(~kept, float("nan"))
    spread = ratio.nan_to_num(0).amax(-1) - ratio.nan_to_num(9).amin(-1)
    assert spread.abs().max() < 1e-4
    same = views.strong(np.arange(50), torch.Generator().manual_seed(1), feature_dropout=0.0)
    torch.testing.assert_close(same, features)
