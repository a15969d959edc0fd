"""The embedded CLIP: about a megabyte, trained here on rendered glyphs, opened through open_clip like any other model.

`python -m tests.tools.train_tiny --out DIR` makes the committed folder again (captune/model/assets/tiny; its README.md
tells what was measured). Training never reads a real digit: the recipe is fixed and the last step is kept.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional as F

from captune.errors import CaptuneError, UsageError
from captune.model.sources import VOCABULARY
from captune.seeding import derive_seed, torch_generator

DEFAULT_STEPS: Final = 1100

_WEIGHTS = "open_clip_model.safetensors"
_CONFIG = "open_clip_config.json"

_NUM_GLYPHS = 36_000
_MAX_MERGES = 400
_BATCH = 64
_PEAK_LR = 2e-3
_WARMUP_STEPS = 50
_AUXILIARY_WEIGHT = 0.5
_MAX_LOGIT_SCALE = 100.0


def model_config(num_merges: int) -> dict[str, Any]:
    """The `open_clip_config.json` of the model: 256 bytes, alone and at a word's end, the merges, and two marks."""
    return {
        "model_cfg": {
            "embed_dim": 64,
            "vision_cfg": {
                "image_size": 32,
                "layers": 4,
                "width": 96,
                "head_width": 32,
                "patch_size": 8,
                "mlp_ratio": 4.0,
                "pool_type": "tok",
            },
            "text_cfg": {
                "context_length": 16,
                "vocab_size": 512 + num_merges + 2,
                "width": 64,
                "heads": 2,
                "layers": 3,
            },
        },
        "preprocess_cfg": {
            "mean": [0.5, 0.5, 0.5],
            "std": [0.5, 0.5, 0.5],
            "interpolation": "bicubic",
            "resize_mode": "squash",
        },
    }


def train_tiny(
    out: Path,
    *,
    seed: int = 0,
    num_steps: int = DEFAULT_STEPS,
    num_glyphs: int = _NUM_GLYPHS,
    report: Callable[[str], None] = lambda line: None,
) -> None:
    """Train the model on rendered glyphs and write its folder: configuration, weights (fp16), vocabulary.

    Runs on one CPU thread, so that two runs with the same seed write the same bytes on the same machine with the same
    versions of torch, Pillow (FreeType) and matplotlib (fonts); other processors may round otherwise.

    Args:
        out: directory to write to; made if absent, files of the same name replaced.
        seed: root seed of weights, glyphs, captions and batches.
        num_steps: optimiser steps; under about 250 the model stays near chance.
        num_glyphs: images drawn to train on.
        report: takes a line of progress now and then.

    Raises:
        UsageError: `num_steps` is below 1 or `out` cannot be written.
    """
    if num_steps < 1:
        raise UsageError("--steps must be at least 1", got=num_steps)
    _make_writable(out)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        _train(out, seed, num_steps, num_glyphs, report)
    finally:
        torch.set_num_threads(threads)


def _train(out: Path, seed: int, num_steps: int, num_glyphs: int, report: Callable[[str], None]) -> None:
    # Heavy, and needed only to train: a study that opens the model must not pay for them.
    import open_clip

    from tests.tools.tiny_captions import CHARACTERS, all_captions, draw_captions, learn_merges, vocabulary_file
    from tests.tools.tiny_glyphs import draw_glyphs

    merges = learn_merges(all_captions(), _MAX_MERGES)
    config = model_config(len(merges))
    _write(out / VOCABULARY, vocabulary_file(merges))
    _write(out / _CONFIG, (json.dumps(config, indent=2) + "\n").encode())
    tokenizer = open_clip.SimpleTokenizer(
        bpe_path=str(out / VOCABULARY), context_length=config["model_cfg"]["text_cfg"]["context_length"]
    )

    labels_N = torch.arange(num_glyphs) % len(CHARACTERS)
    glyphs_NHW = draw_glyphs(labels_N, tuple(CHARACTERS.values()), torch_generator(seed, "tiny", "glyphs"))
    # open_clip and torch draw initial weights from the global generator; the caller's state is put back.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "tiny", "weights"))
        model = open_clip.model.CLIP(**config["model_cfg"])
        auxiliary = nn.Linear(config["model_cfg"]["embed_dim"], len(CHARACTERS))
    model.train()
    parameters = [*model.parameters(), *auxiliary.parameters()]
    optimizer = torch.optim.AdamW(_decay_groups(parameters), lr=_PEAK_LR, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, _PEAK_LR, total_steps=num_steps + 1, pct_start=min(0.3, _WARMUP_STEPS / num_steps)
    )
    batches = torch_generator(seed, "tiny", "batches")
    captions = torch_generator(seed, "tiny", "captions")
    for step in range(num_steps):
        picked_B = torch.randint(num_glyphs, (_BATCH,), generator=batches)
        loss = _loss(
            model, auxiliary, as_input(glyphs_NHW[picked_B]), labels_N[picked_B], tokenizer(draw_captions(captions))
        )
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=torch.tensor(_MAX_LOGIT_SCALE).log())
        if step % 100 == 0 or step == num_steps - 1:
            report(f"step {step + 1}/{num_steps}: loss {loss.item():.3f}")
    weights = {name: value.detach().half().contiguous() for name, value in model.state_dict().items()}
    _write(out / _WEIGHTS, save(weights))


def as_input(images_BHW: Tensor) -> Tensor:
    """Preprocess bytes about as open_clip does for this model: (B, H, W) uint8 → (B, 3, 32, 32) in [-1, 1].

    Pillow also clips and rounds between its two passes; beside sharp edges that differs by up to 0.15.
    """
    planes_B1HW = images_BHW.unsqueeze(1).float() / 255
    # antialias picks Pillow's bicubic kernel (a = -0.5) instead of torch's (a = -0.75).
    resized_B1HW = F.interpolate(planes_B1HW, size=(32, 32), mode="bicubic", antialias=True, align_corners=False)
    return ((resized_B1HW.clamp(0, 1) - 0.5) / 0.5).expand(-1, 3, -1, -1)


def _loss(model: nn.Module, auxiliary: nn.Module, images_B: Tensor, labels_B: Tensor, tokens_KL: Tensor) -> Tensor:
    """InfoNCE between B images and one caption for each of K classes, both ways, and a class head on the images."""
    images_BD, texts_KD, scale = model(images_B, tokens_KL)
    logits_BK = scale * images_BD @ texts_KD.T
    to_text = F.cross_entropy(logits_BK, labels_B)
    # A caption has several right images in the batch: its target is spread evenly over them.
    present_K = torch.bincount(labels_B, minlength=len(tokens_KL)) > 0
    target_KB = F.one_hot(labels_B, len(tokens_KL)).T[present_K].float()
    to_image = F.cross_entropy(logits_BK.T[present_K], target_KB / target_KB.sum(dim=1, keepdim=True))
    head = F.cross_entropy(auxiliary(images_BD * scale.detach()), labels_B)
    return (to_text + to_image) / 2 + _AUXILIARY_WEIGHT * head


def _decay_groups(parameters: Sequence[nn.Parameter]) -> list[dict[str, Any]]:
    """Weight decay on matrices only."""
    return [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": 0.05},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]


def _make_writable(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        probe = directory / ".captune-writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UsageError(
            "the output directory must be writable",
            got=error.strerror,
            where=directory,
            next_step="Choose another --out.",
        ) from error


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    path.chmod(0o644)  # a wheel keeps modes, and every user of a machine must be able to read the model


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code (0 done, 1 failed, 2 wrong usage)."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.tools.train_tiny", description="Train the embedded CLIP on glyphs."
    )
    parser.add_argument("--out", type=Path, default=Path("tiny"), help="directory to write (default: ./tiny)")
    parser.add_argument("--seed", type=int, default=0, help="root seed (default: 0)")
    parser.add_argument("--steps", type=int, default=DEFAULT_STEPS, help=f"optimiser steps (default: {DEFAULT_STEPS})")
    options = parser.parse_args(arguments)
    try:
        train_tiny(options.out, seed=options.seed, num_steps=options.steps, report=print)
    except CaptuneError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(f"wrote {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
