"""What using an adapted model needs: none of the packages that only a study or a report does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from captune.cli.main import main

STUDY_ONLY = ("ray", "optuna", "pandas", "matplotlib", "scipy", "sklearn", "jinja2")
WITHOUT_THEM = f"""
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {STUDY_ONLY}:
            raise ModuleNotFoundError(f"No module named '{{name}}'", name=name)

sys.meta_path.insert(0, Missing())
"""
LOAD_AND_PREDICT = f"""{WITHOUT_THEM}
import captune
model = captune.load(sys.argv[1])
print(len(model.class_names), model.encode(sys.argv[2]).shape)
from captune.cli.main import main
main(["predict", *sys.argv[1:]])
"""


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model adapted to digits, and a picture of one."""
    folder = tmp_path_factory.mktemp("light")
    picture = folder / "digit.png"
    Image.fromarray((load_digits().images[3] * 15.9).astype(np.uint8)).resize((32, 32)).save(picture)
    quick = ["--epochs", "1", "--steps-per-epoch", "2", "--batch-size", "8"]
    with pytest.raises(SystemExit) as ended:
        main(["adapt", "--dataset", "digits", "--paradigm", "ul", *quick, "--out", str(folder / "adapted")])
    assert ended.value.code == 0
    return folder / "adapted", picture


def python(program: str, *arguments: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_load_and_predict_say_the_same_where_only_the_light_core_is_installed(
    adapted: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    model, picture = adapted
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["predict", str(model), str(picture)])
    light = python(LOAD_AND_PREDICT, model, picture)
    assert light.returncode == 0, light.stderr
    assert light.stdout == "10 (1, 64)\n" + capsys.readouterr().out


def test_the_packages_are_missing_in_these_tests() -> None:
    assert python(f"{WITHOUT_THEM}\nimport scipy").returncode != 0
