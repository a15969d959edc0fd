"""Recorded runs of the published CAP code on real EuroSAT images, as files that captune reads.

The record is not part of the repository: `shared/golden/official_run.npz` beside it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from captune.config import TaskConfig
from captune.data.catalog import load_dataset

OFFICIAL = Path(__file__).parents[3] / "shared/golden/official_run.npz"


class Official:
    """A run of the published code on real EuroSAT images, as files that captune reads."""

    def __init__(self, root: Path, paradigm: str) -> None:
        self.record, self.prefix = np.load(OFFICIAL), f"{paradigm}_"
        self.config = json.loads(str(self["config"]))
        self._write_images(root / "data/EuroSAT")
        self._write_model(root / "clip")
        self.task = TaskConfig(
            dataset="eurosat", paradigm=paradigm, protocol="paper", data_root=root / "data", cache_dir=root / "cache",
            backbone=f"local-dir:{root}/clip", prompt_form="published", split_seed=self.config["SPLIT_SEED"],
        )  # fmt: skip
        self.dataset = load_dataset(self.task)
        place = {Path(path).name: index for index, path in enumerate(self.dataset.paths)}
        self.ours = np.array([place[Path(str(file)).name] for file in self.record["files"]])

    def __getitem__(self, name: str) -> Any:
        return self.record[self.prefix + name]

    def _write_images(self, folder: Path) -> None:
        held, names = self.record, self.record["files"]
        raw, offsets = held["jpeg"].tobytes(), held["jpeg_offsets"]
        for number, name in enumerate(names):
            (folder / str(name)).parent.mkdir(parents=True, exist_ok=True)
            (folder / str(name)).write_bytes(raw[offsets[number] : offsets[number + 1]])
        first = int(held["num_pool"])
        lines = [f"test.zip@{name} {label}" for name, label in zip(names[first:], held["labels"][first:], strict=True)]
        (folder / "test.txt").write_text("\n".join(lines) + "\n")
        (folder / "class_names.txt").write_text("\n".join(map(str, held["class_names"])) + "\n")

    def _write_model(self, folder: Path) -> None:
        held = self.record
        state = {name[5:]: torch.from_numpy(held[name]).float() for name in held.files if name.startswith("clip.")}
        length, width = state["positional_embedding"].shape
        table = torch.zeros(49408, width)
        table[torch.from_numpy(held["used_token_ids"])] = torch.from_numpy(held["used_token_embeddings"]).float()
        state["token_embedding.weight"] = table

        def layers(prefix: str) -> int:
            blocks = (name for name in state if name.startswith(f"{prefix}transformer.resblocks."))
            return len({name.split("resblocks.")[1].split(".")[0] for name in blocks})

        image_width, _, patch, _ = state["visual.conv1.weight"].shape
        folder.mkdir()
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / "open_clip_model.safetensors")
        model = {
            "embed_dim": state["text_projection"].shape[1],
            "vision_cfg": {
                "image_size": 64, "layers": layers("visual."), "width": image_width, "head_width": 64,
                "patch_size": patch,
            },
            "text_cfg": {
                "context_length": length, "vocab_size": 49408, "width": width, "heads": width // 64,
                "layers": layers(""),
            },
            "quick_gelu": True,
        }  # fmt: skip
        means = {"mean": [0.48145466, 0.4578275, 0.40821073], "std": [0.26862954, 0.26130258, 0.27577711]}
        preprocessing = means | {"interpolation": "bicubic", "resize_mode": "shortest"}
        (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": model, "preprocess_cfg": preprocessing}))

    def initial(self) -> dict[str, torch.Tensor]:
        """The values the recorded run began with."""

        def of(name: str) -> torch.Tensor:
            return torch.from_numpy(self[f"init.{name}"])

        deep = range(self.config["PROMPT_DEPTH"] - 1)
        layers = ["proj", *(f"compound_prompt_projections.{number}" for number in deep)]
        values = {
            "context": of("model.ctx"),
            "deep": torch.stack([of(f"model.compound_prompts_text.{number}") for number in deep]),
            "projection": torch.stack([of(f"model.{layer}.weight").T for layer in layers]),
            "projection_bias": torch.stack([of(f"model.{layer}.bias") for layer in layers]),
        }
        adapters = {
            "main": "cross_adapter.visual_adapter",
            "text": "cross_adapter.textual_adapter",
            "pseudo": "pseudo_adapter",
        }
        for which, name in adapters.items():
            for part, number in (("down", 0), ("up", 2)):
                values[f"{which}.{part}_weight"] = of(f"debias.{name}.fc.{number}.weight")
                values[f"{which}.{part}_bias"] = of(f"debias.{name}.fc.{number}.bias")
        return values

    def boards(self, name: str, unseen: list[int]) -> dict[int, list[int]]:
        """Recorded boards by captune's image numbers."""
        rows = zip(self[f"{name}_classes"], self[f"{name}_images"], strict=True)
        return {int(k): [int(self.ours[i]) for i in images if i >= 0] for k, images in rows if int(k) in unseen}

    def pairs(self, kind: str, step: int) -> list[tuple[int, int]]:
        """What a step read, as (captune's image number, class): main samples ("m") or labelled images ("l")."""
        rows = zip(self[f"{kind}_images"][step], self[f"{kind}_labels"][step], strict=True)
        return [(int(self.ours[image]), int(label)) for image, label in rows if image >= 0]
