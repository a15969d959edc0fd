"""Precomputed features: a `features:` file as a dataset, and the bank of features that a node encodes once."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from captune.data.array_files import read_npz
from captune.data.build_once import build_once, note_work
from captune.data.dataset import UNKNOWN, Dataset, IntArray, Split
from captune.data.overrides import checked_names, checked_template
from captune.errors import DataError
from captune.plain_text import counted

Features = npt.NDArray[np.float32]
_FORMAT = 1
_SMALLEST_NORM, _LARGEST_NORM = 1e-12, 1e15
_KNOWN = ("image_features", "labels", "split", "text_features", "class_names", "logit_scale", "template")


class FeatureBank:
    """Features of every image by one frozen backbone, encoded once per node and memory-mapped by its trials."""

    @staticmethod
    def open_or_build(
        key: str,
        num_images: int,
        dim: int,
        encode: Callable[[IntArray], npt.NDArray[np.floating]],
        cache_dir: Path,
        *,
        batch_size: int = 128,
        progress: Callable[[int, int], None] | None = None,
    ) -> Features:
        """The features of images 0 … num_images - 1, encoded first if this node does not have them yet.

        Args:
            key: content address of images and encoder together, any text.
            num_images: M.
            dim: D.
            encode: indices (B,) → features (B, D).
            cache_dir: where banks are kept on this node.
            batch_size: images given to `encode` at once.
            progress: called with (images done, images in all) while encoding.

        Returns:
            features_MD fp32, mapped copy-on-write: writing to it changes no file.

        Raises:
            DataError: features of another width or not finite, or a cache directory that cannot be written.
        """
        name = hashlib.sha256(f"{_FORMAT}/{key}/{num_images}/{dim}".encode()).hexdigest()[:32]
        directory = cache_dir / f"features-{name}"

        def build(part: Path) -> None:
            features_MD = np.lib.format.open_memmap(
                part / "features.npy", mode="w+", dtype=np.float32, shape=(num_images, dim)
            ) if num_images else np.empty((0, dim), np.float32)  # fmt: skip
            for start in range(0, num_images, batch_size):
                indices = np.arange(start, min(start + batch_size, num_images), dtype=np.int64)
                features_BD = np.asarray(encode(indices))
                if features_BD.shape != (len(indices), dim) or not np.isfinite(features_BD).all():
                    raise DataError(
                        f"encoded features must be finite and of shape ({len(indices)}, {dim})",
                        got=f"shape {features_BD.shape}, {int((~np.isfinite(features_BD)).sum())} values not finite",
                        next_step="With --precision fp16 this is overflow: use bf16 or fp32.",
                    )
                features_MD[indices] = features_BD
                if progress is not None:
                    progress(int(indices[-1]) + 1, num_images)
            if isinstance(features_MD, np.memmap):
                features_MD.flush()
            else:
                np.save(part / "features.npy", features_MD)
            (part / "meta.json").write_text(json.dumps({"format": _FORMAT, "shape": [num_images, dim]}))
            note_work(encoded=num_images)

        def is_whole(at: Path) -> bool:
            try:
                meta = json.loads((at / "meta.json").read_text())
                return meta == {"format": _FORMAT, "shape": [num_images, dim]} and (
                    np.load(at / "features.npy", mmap_mode="r" if num_images else None).shape == (num_images, dim)
                )
            except (OSError, ValueError, KeyError):
                return False

        build_once(directory, is_whole=is_whole, build=build)
        features: Features = np.load(directory / "features.npy", mmap_mode="c" if num_images else None)
        return features


def read_feature_file(file: Path, key: str, template: str) -> Dataset:
    """A `features:FILE.npz` dataset.

    The file holds `image_features` (M, D), `labels` (M,) with -1 for unknown, `split` (M,) of train/val/test, and
    `text_features` (K, D) or `class_names` (K,), or both; optionally `logit_scale` (exponentiated) and `template`.
    Rows are put in the order train, val, test.

    Raises:
        DataError: missing or unknown arrays, shapes that disagree, NaN, labels without a class.
    """
    arrays = read_npz(file)
    missing = [name for name in ("image_features", "labels", "split") if name not in arrays]
    if "text_features" not in arrays and "class_names" not in arrays:
        missing.append("text_features or class_names")
    if missing:
        raise DataError(
            "a feature file must hold image_features, labels, split, and text_features or class_names",
            got=f"no {', no '.join(missing)}",
            where=file,
        )
    unknown = sorted(set(arrays) - set(_KNOWN))
    if unknown:
        raise DataError(f"a feature file must hold nothing but {', '.join(_KNOWN)}", got=unknown[0], where=file)
    image_MD = checked_features(arrays["image_features"], f"{file}: image_features")
    text_KD = checked_features(arrays["text_features"], f"{file}: text_features") if "text_features" in arrays else None
    if text_KD is not None and text_KD.shape[1] != image_MD.shape[1]:
        raise DataError(
            "image_features and text_features must have the same width",
            got=f"{image_MD.shape[1]} and {text_KD.shape[1]}",
            where=file,
            next_step="Were they made by the same model?",
        )
    names = _names(arrays["class_names"], file) if "class_names" in arrays else []
    if text_KD is not None and names and len(names) != len(text_KD):
        raise DataError(
            "class_names and text_features must be of the same classes",
            got=f"{len(names)} names and {len(text_KD)} rows",
            where=file,
        )
    names = names or [f"class {number}" for number in range(len(text_KD) if text_KD is not None else 0)]
    labels_M = _labels(arrays["labels"], len(image_MD), len(names), file)
    parts = _split_rows(arrays["split"], len(image_MD), file)
    order = np.concatenate(list(parts.values()))
    return Dataset(
        key=key,
        class_names=tuple(names),
        template=_template(arrays["template"], file) if "template" in arrays else template,
        train=Split((), labels_M[parts["train"]]),
        val=Split((), labels_M[parts["val"]]),
        test=Split((), labels_M[parts["test"]]),
        image_features_MD=image_MD[order],
        rows_M=order,
        text_features_KD=text_KD,
        logit_scale=_logit_scale(arrays, file),
        source=str(file),
        layout="precomputed features",
        licence="that of your own data",
    )


def read_image_features(file: Path) -> Features:
    """The image features (N, D) of an `.npz`, in its order; of a `features:` file those of all splits.

    Raises:
        DataError: no such file or array, or no features.
    """
    arrays = read_npz(file, only=("image_features",))
    if not arrays:
        raise DataError(
            "a file of features must hold image_features",
            got="no such array",
            where=file,
            next_step="Write it by numpy.savez(file, image_features=…).",
        )
    return checked_features(arrays["image_features"], f"{file}: image_features")


def check_table(values: npt.NDArray[np.generic], where: str) -> None:
    """Check that features are a table (N, D) with a row and a column at least.

    Raises:
        DataError: they are not.
    """
    if values.ndim != 2 or 0 in values.shape:
        raise DataError(
            "features must be a table (N, D): a row per image or class, a column per dimension, at least one of each",
            got=f"the shape {values.shape}",
            where=where,
        )


def checked_features(values: npt.NDArray[np.generic], where: str, *, first_row: int = 0) -> Features:
    """Features (N, D) as fp32, one row per image or class.

    Args:
        values: the features.
        where: how error messages name them.
        first_row: the number of their first row, if they are a part of a larger table.

    Raises:
        DataError: not a table, not of floating-point numbers, NaN or infinity, rows of no or of a far too large length.
    """
    check_table(values, where)
    if not np.issubdtype(values.dtype, np.floating):
        # Integers are rounded or scaled features, and only their maker knows the scale.
        raise DataError(
            "features must be floating-point numbers",
            got=str(values.dtype),
            where=where,
            next_step="Save them as the model returned them, before they were rounded: features.astype('float32').",
        )
    with np.errstate(over="ignore"):  # an overflow becomes infinite and is reported below
        features = values.astype(np.float32)
    wrong_N = ~np.isfinite(features).all(axis=1)
    if wrong_N.any():
        raise DataError(
            "features must be finite",
            got=f"{counted(int(wrong_N.sum()), 'row')} with NaN or infinity, first row "
            f"{first_row + int(wrong_N.argmax())}",
            where=where,
        )
    # Squares must fit float32; otherwise the length is infinite or zero and the direction is lost.
    norms_N = np.linalg.norm(features.astype(np.float64), axis=1)
    wrong_N = (norms_N < _SMALLEST_NORM) | (norms_N > _LARGEST_NORM)
    if wrong_N.any():
        row = int(wrong_N.argmax())
        raise DataError(
            "features must not be zero: they have no direction"
            if norms_N[row] == 0
            else f"features must have a length between {_SMALLEST_NORM:g} and {_LARGEST_NORM:g}",
            got=f"row {first_row + row}" if norms_N[row] == 0 else f"{norms_N[row]:.3g} in row {first_row + row}",
            where=where,
        )
    return features


def _names(values: npt.NDArray[np.generic], file: Path) -> list[str]:
    if values.dtype.kind != "U" or values.ndim != 1:
        raise DataError(
            "class_names must be a row of text", got=f"{values.dtype} {values.shape}", where=f"{file}: class_names"
        )
    return list(checked_names(values.tolist(), f"{file}: class_names"))


def _template(values: npt.NDArray[np.generic], file: Path) -> str:
    if values.dtype.kind != "U" or values.size != 1:
        raise DataError("template must be one text", got=f"{values.dtype} {values.shape}", where=f"{file}: template")
    return checked_template(values.reshape(-1)[0], f"{file}: template")


def _labels(values: npt.NDArray[np.generic], num_images: int, num_classes: int, file: Path) -> IntArray:
    if values.shape != (num_images,) or not np.issubdtype(values.dtype, np.integer):
        raise DataError(
            f"labels must be {num_images} whole numbers, one per image",
            got=f"{values.dtype} {values.shape}",
            where=file,
        )
    lowest, highest = int(values.min()), int(values.max())  # before they are converted to 64 bits
    if highest >= num_classes or lowest < UNKNOWN:
        raise DataError(
            f"labels must lie between -1 (unknown) and {num_classes - 1}: there are {num_classes} classes",
            got=f"{lowest} to {highest}",
            where=file,
        )
    return values.astype(np.int64)


def _is_ascii(values: npt.NDArray[np.generic]) -> bool:
    return values.dtype.kind == "U" or max(values.tobytes(), default=0) < 128


def _split_rows(values: npt.NDArray[np.generic], num_images: int, file: Path) -> dict[str, IntArray]:
    if values.shape != (num_images,):
        raise DataError(f"split must be {num_images} names, one per image", got=f"shape {values.shape}", where=file)
    if values.dtype.kind not in "US":
        raise DataError("split must be text: train, val or test", got=str(values.dtype), where=file)
    names = values.astype(str) if _is_ascii(values) else np.full(values.shape, "bytes that are no text")
    unknown = sorted(set(names.tolist()) - {"train", "val", "test"})
    if unknown:
        raise DataError("split must be train, val or test", got=f"'{unknown[0]}'", where=file)
    return {name: np.flatnonzero(names == name) for name in ("train", "val", "test")}


def _logit_scale(arrays: dict[str, npt.NDArray[np.generic]], file: Path) -> float | None:
    if "logit_scale" not in arrays:
        return None
    values = arrays["logit_scale"]
    scale = (
        float(values.astype(np.float64).reshape(-1)[0]) if values.size == 1 and values.dtype.kind in "fiu" else math.nan
    )
    if not 0 < scale < float("inf"):
        raise DataError("logit_scale must be a number above 0 (exponentiated, CLIP's is 100)", got=scale, where=file)
    return scale
