"""How many trials on frozen features are open, and train, side by side; without PyTorch, so that planning may ask."""

from __future__ import annotations

# Measured (analysis/measurements/packs.md): beyond, a step gains little, and what it holds at once grows.
MOST_AT_ONCE = 16
# On a GPU a product of more matrices at once may round otherwise. Packs have this size there, filled up where trials
# are fewer, so that a trial's numbers do not depend on how many others stand beside it.
SIZE_ON_A_GPU = 8
_BYTES_OF_FEATURES = 250e6


def most_in_memory(num_images: int, width: int) -> int:
    """Trials that may be open at once, at least 1: each keeps a copy of the features, 250 MB in all.

    Args:
        num_images: of the dataset.
        width: of its features.
    """
    return max(1, int(_BYTES_OF_FEATURES // (4 * max(1, num_images) * width)))
