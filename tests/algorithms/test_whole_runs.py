"""Whole runs of CAP: captune against the slow reference's record, and the reference against the published code's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as tf
from PIL import Image
from safetensors.torch import save_file

from captune.algorithms.cap import Cap
from captune.config import TaskConfig
from captune.data.catalog import load_dataset
from captune.model.class_prompts import class_prompts
from captune.training.context import open_context
from captune.training.loop import Loop
from tests.golden.make_cap_run import PARADIGMS, PATH, SEED, config, task
from tests.reference.cap_run import Batch, CapRun, Settings

OFFICIAL = Path(__file__).parents[3] / "shared/golden/official_run.npz"


@pytest.mark.parametrize("paradigm", PARADIGMS)
def test_a_run_is_the_one_on_record(paradigm: str) -> None:
    """Five epochs with growing boards and margins: boards in order, counts, margins, losses, predictions."""
    record = json.loads(PATH.read_text())[paradigm]
    context = open_context(task(paradigm), "report", "cpu")
    cap = Cap(context, config(), SEED)
    loop = Loop(cap, cap.config, cap.config.epochs)
    losses: list[float] = []
    step = loop._step

    def watched(batch: Any) -> Any:
        loss, seen = step(batch)
        losses.append(float(loss))
        return loss, seen

    loop._step = watched  # type: ignore[assignment]
    for number, epoch in enumerate(record["epochs"]):
        losses.clear()
        loop.run_epoch()
        np.testing.assert_allclose(cap.margin_KK.numpy(), epoch["margin"], atol=2e-4, err_msg=f"margin {number}")
        np.testing.assert_allclose(losses, epoch["losses"], atol=2e-4, err_msg=f"losses {number}")
        assert cap.counts_K.int().tolist() == epoch["counts"], number
        boards = {str(label): [image for image, _ in board] for label, board in cap.boards.items()}
        assert boards == epoch["boards"], number
    assert cap.predict(context.task.test).argmax(-1).tolist() == record["predictions"]


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


@pytest.mark.slow
@pytest.mark.skipif(not OFFICIAL.exists(), reason=f"no recorded runs of the published code at {OFFICIAL}")
@pytest.mark.parametrize("paradigm", PARADIGMS)
def test_the_reference_is_the_published_code(paradigm: str, tmp_path: Path) -> None:
    official = Official(tmp_path, paradigm)
    given = official.config
    context = open_context(official.task, "report", "cpu")
    held, backbone = context.task, context.backbone
    assert backbone is not None and context.image_views is not None
    views, preprocessing = context.image_views, backbone.preprocessing
    unseen = np.flatnonzero(held.pseudolabelled_K).tolist()
    labelled = [(int(official.ours[i]), int(label)) for i, label in official["labelled"]] if paradigm != "ul" else []
    run = CapRun(
        backbone.model,
        backbone.tokenize(class_prompts(held.class_names, "a photo of a {}.")),
        official.initial(),
        context.zero_shot_logits(held.pool).double().softmax(-1).tolist(),
        held.pool.tolist(),
        labelled,
        unseen,
        lambda images: views.weak(np.array(images)),
        Settings(
            epochs=given["EPOCHS"], steps=given["ITER_PER_EPOCH"], threshold=given["THRESHOLD"],
            margin_scale=given["MARGIN_SCALE"], main_samples=given["N_MAIN_SAMPLES"],
            max_ratio=given["MAX_MAIN_RATIO"], grow_every=given["ITER_EPOCHS"], learning_rate=given["LR"],
            weight_decay=given["DECAY"], momentum=0.9, warmup_epochs=given["WARMUP_EPOCHS"], residual=0.01,
            logit_scale=context.logit_scale,
        ),
    )  # fmt: skip
    assert {k: [i for i, _ in board] for k, board in run.boards.items()} == official.boards("first", unseen)

    def crop(image: int, box: list[int]) -> torch.Tensor:
        picture = Image.open(official.dataset.paths[image]).convert("RGB")
        cut = tf.hflip(tf.resized_crop(picture, *box, [64, 64], tf.InterpolationMode.BICUBIC))
        return tf.normalize(tf.to_tensor(cut), preprocessing.mean, preprocessing.std)

    def batches(epoch: int) -> Any:
        def batch(step: int) -> Batch:
            at = epoch * given["ITER_PER_EPOCH"] + step

            def pairs(kind: str) -> list[tuple[int, int]]:
                rows = zip(official[f"{kind}_images"][at], official[f"{kind}_labels"][at], strict=True)
                return [(int(official.ours[i]), int(label)) for i, label in rows if i >= 0]

            pool = [int(official.ours[i]) for i in official["u_images"][at]]
            boxes = official["crops"][at].tolist()
            strong = torch.stack([crop(image, box) for image, box in zip(pool, boxes, strict=True)])
            return Batch(pool, pairs("m"), pairs("l") if paradigm != "ul" else [], strong)

        return batch

    off = ~np.eye(held.num_classes, dtype=bool)
    for epoch in range(given["EPOCHS"]):
        record = run.run_epoch(epoch, batches(epoch))
        np.testing.assert_allclose(np.array(record.margin)[off], official[f"e{epoch}_margin"][off], atol=1e-3)
        np.testing.assert_allclose(record.losses, np.nansum(official[f"e{epoch}_losses"][:, :3], axis=1), atol=1e-3)
        assert record.counts == official[f"e{epoch}_counts"].tolist(), epoch
        assert record.boards == official.boards(f"e{epoch}_board", unseen), epoch
    expected = dict(
        zip(official.ours[int(official.record["num_pool"]) :].tolist(), official["predictions"].tolist(), strict=True)
    )
    assert run.predictions(held.test.tolist()) == [expected[image] for image in held.test.tolist()]
