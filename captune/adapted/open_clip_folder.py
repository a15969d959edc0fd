"""A folder that open_clip opens by itself: the backbone, and class weights as the classifier to put on its features."""

from __future__ import annotations

import json
from pathlib import Path

from captune.adapted.model import WEIGHTS, AdaptedModel, member_shares
from captune.model.backbone import save_backbone
from captune.records import atomic_write
from captune.training.checkpoint import save_checkpoint

NAMES = "class_names.json"
README = "README.md"


def write_heads(model: AdaptedModel, out: Path) -> list[Path]:
    """The class weights of a model whose image side is frozen, and the class names.

    A blend whose members are all linear is written as its members' class weights: one set where logits are averaged,
    which is exact, else one set per member, whose probabilities are averaged when images are classified.
    """
    names = write_names(model, out)
    tensors = {"class_weights": model.text_KD, "bias": model.bias_K}
    if not model.is_linear:
        tensors = {
            f"member{number}.{name}": tensor
            for number, (_, member) in enumerate(model.members)
            for name, tensor in (("class_weights", member.text_KD), ("bias", member.bias_K))
        }
    meta = {key: value for key, value in model.meta.items() if key != "format"}
    save_checkpoint(out / WEIGHTS, tensors, meta)
    return [out / WEIGHTS, names]


def write_names(model: AdaptedModel, out: Path) -> Path:
    """The class names in label order, as a JSON list."""
    atomic_write(out / NAMES, json.dumps(model.class_names, ensure_ascii=False, indent=1) + "\n")
    return out / NAMES


def write_open_clip(model: AdaptedModel, out: Path) -> list[Path]:
    """The backbone in open_clip's own form, class weights, names, and a README whose lines use them."""
    files = write_heads(model, out)
    save_backbone(model.image_backbone, out)
    text = (
        f"# {len(model.class_names)} classes on {model.image_backbone.name}, adapted with captune\n\n"
        "Images go through the frozen backbone, which open_clip opens from this folder; prompts and whatever else was\n"
        "learned are in the class weights.\n\n" + open_clip_lines(model)
    )
    atomic_write(out / README, text)
    return [*files, *(file for file in sorted(out.iterdir()) if file not in files)]


def open_clip_lines(model: AdaptedModel, folder: str = ".") -> str:
    """Python that classifies an image with open_clip alone, as a Markdown block."""
    logits = f"{model.logit_scale!r} * features @ head[{{}}].T + head[{{}}]"
    if model.is_linear:
        last = f"probabilities = ({logits.format(_quoted('class_weights'), _quoted('bias'))}).softmax(-1)"
    else:
        one = logits.format('f"member{n}.class_weights"', 'f"member{n}.bias"')
        last = f"shares = {member_shares(model)!r}\n    probabilities = sum(\n"
        last += f"        share * ({one}).softmax(-1)\n        for n, share in enumerate(shares)\n    )"
    return f"""```python
import json
import open_clip, safetensors.torch, torch
from PIL import Image

folder = "{folder}"
model, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{{folder}}")
head = safetensors.torch.load_file(f"{{folder}}/{WEIGHTS}")
names = json.load(open(f"{{folder}}/{NAMES}", encoding="utf-8"))
model.eval()
with torch.no_grad():
    image = preprocess(Image.open("photo.jpg").convert("RGB")).unsqueeze(0)
    features = model.encode_image(image, normalize=True)
    {last}
for name, probability in zip(names, probabilities[0].tolist()):
    print(f"{{probability:.6f}} {{name}}")
```
"""


def _quoted(name: str) -> str:
    return f'"{name}"'
