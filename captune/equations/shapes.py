"""Checks of arguments, with which every function of this package begins.

A tensor's name carries its shape (`logits_BK`: batch by classes), so the name is also the check: letters that occur
twice must have one size. Only shapes are looked at, never values, so nothing here waits for the device.
"""

from __future__ import annotations

from torch import Tensor


def check_shapes(**tensors: Tensor | None) -> dict[str, int]:
    """Sizes by letter, read from the shape suffixes of the names.

    Args:
        **tensors: tensors by name; the letters after the last underscore are the dimensions. None is passed over.

    Returns:
        The size behind each letter, as {"B": 32, "K": 10}.

    Raises:
        ValueError: a tensor has another number of dimensions than its name, or one letter stands for two sizes.
    """
    sizes: dict[str, int] = {}
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        letters = name.rsplit("_", 1)[-1]
        shape = tuple(tensor.shape)
        fits = len(shape) == len(letters)
        known = {letter: sizes[letter] for letter in letters if letter in sizes}
        if not fits or any(sizes.setdefault(letter, size) != size for letter, size in zip(letters, shape, strict=True)):
            with_sizes = f" with {', '.join(f'{letter}={size}' for letter, size in known.items())}" if known else ""
            raise ValueError(f"{name} must have shape [{', '.join(letters)}]{with_sizes}, but got shape {list(shape)}.")
    return sizes


def require(holds: bool, invariant: str, **got: object) -> None:
    """Raise ValueError in the form of captune's errors unless an invariant holds.

    Args:
        holds: whether it does.
        invariant: as code, "0 < temperature".
        **got: the values that break it, by name.

    Raises:
        ValueError: "0 < temperature must hold, but got (temperature=0.0)."
    """
    if not holds:
        values = ", ".join(f"{name}={value!r}" for name, value in got.items())
        raise ValueError(f"{invariant} must hold, but got ({values}).")
