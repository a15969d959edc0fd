"""The pages as a site: the Markdown where it lies, and an API reference made from docstrings.

    python -m tests.tools.site OUT        # mkdocs build --strict, offline

Pages keep their paths, so a link that works in the repository works on the site. A link to a file that is no page (a
module, a CSV) leads to a copy of it; one to a folder, to its README or to a list of what it holds.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
LINK = re.compile(r"\]\((?!https?:|mailto:|#)([^)\s#]+)(#[^)\s]*)?\)")
GUIDES = {
    "Start": "README.md",
    "Your own images": "captune/data/OWN_IMAGES.md",
    "Which method": "captune/algorithms/CHOOSING.md",
    "Reading the page": "captune/results/READING.md",
    "Clusters": "launch/README.md",
    "Changing captune": "CONTRIBUTING.md",
}
API = {
    "captune": "captune.api",
    "Adapted models": "captune.adapted.model",
    "Exports": "captune.adapted.exporting",
    "Configuration": "captune.config",
    "Methods' settings": "captune.algorithms.configs",
    "Errors": "captune.errors",
}


def pages() -> list[Path]:
    """Every Markdown page of the repository, relative to it."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return sorted(Path(line) for line in listed.stdout.split())


def targets(page: Path) -> list[str]:
    """What the relative links of a page lead to, as written."""
    text = re.sub(r"```.*?```", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.DOTALL)
    return [target for target, _ in LINK.findall(text)]


def collect(docs: Path) -> None:
    """Copy pages and what they link to."""
    for page in pages():
        text = (ROOT / page).read_text(encoding="utf-8")
        for target in targets(page):
            place = (ROOT / page).parent / target
            relative = place.resolve().relative_to(ROOT)
            if place.is_dir():
                index = "README.md" if (place / "README.md").exists() else "CONTENTS.md"
                text = text.replace(f"]({target})", f"]({target.rstrip('/')}/{index})")
                if index == "CONTENTS.md":
                    names = sorted(entry.name for entry in place.iterdir() if entry.is_file())
                    _write(docs / relative / index, f"# {relative}\n\n" + "".join(f"- {name}\n" for name in names))
            elif place.suffix != ".md":
                (docs / relative).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(place, docs / relative)
        _write(docs / page, text)
    for title, module in API.items():
        _write(docs / "api" / f"{module}.md", f"# {title}\n\n::: {module}\n")


def configuration(docs: Path, out: Path) -> dict[str, object]:
    """What mkdocs is told."""
    plain = [str(page) for page in pages() if str(page) not in GUIDES.values()]
    measured = [page for page in plain if page.startswith("analysis/measurements/")]
    return {
        "site_name": "captune",
        "docs_dir": str(docs),
        "site_dir": str(out),
        "theme": {"name": "mkdocs", "highlightjs": False},
        "use_directory_urls": False,
        "nav": [
            {"Guides": [{name: page} for name, page in GUIDES.items()]},
            {"API": [{title: f"api/{module}.md"} for title, module in API.items()]},
            {"Reference": [page for page in plain if page not in measured]},
            {"Measurements": measured},
        ],
        "not_in_nav": "CONTENTS.md\n",
        "plugins": [
            "search",
            {"mkdocstrings": {"handlers": {"python": {
                "paths": [str(ROOT)],
                "options": {"show_source": False, "docstring_style": "google", "show_root_toc_entry": False,
                            "filters": ["!^_"]},
            }}}},
        ],
        "markdown_extensions": ["tables", "fenced_code", "toc"],
        "validation": {"links": {"not_found": "warn", "unrecognized_links": "warn"}},
    }  # fmt: skip


def build(out: Path) -> int:
    """Build the site; the exit status of mkdocs, which fails on any warning."""
    with tempfile.TemporaryDirectory() as work:
        docs = Path(work) / "docs"
        collect(docs)
        config = Path(work) / "mkdocs.yml"
        config.write_text(yaml.safe_dump(configuration(docs, out.absolute()), sort_keys=False))
        command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--config-file", str(config)]
        return subprocess.run(command, check=False).returncode


def _write(place: Path, text: str) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(build(Path(sys.argv[1])))
