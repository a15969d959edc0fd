"""The files of a report: which are there, that they agree, that the page holds no number of its own."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
import yaml
from synthetic import FakeStudy, whole_study
from typer.testing import CliRunner

from captune.algorithms import member_config
from captune.algorithms.configs import BlendConfig
from captune.errors import UsageError
from captune.results.best import metrics_by_seed
from captune.results.formats import duration
from captune.results.load import load_study
from captune.results.report import report_studies, report_study, tables_of

ALL_CSV = {"studies", "notes", "columns", "trials", "epochs", "confirm", "best_configs", "robustness", "comparisons",
           "importance", "marginals", "curves", "selection", "classes", "pairs", "confusion", "reliability",
           "pictures"}  # fmt: skip
FIGURES = {"study", "robustness", "comparisons", "curves", "shares", "reliability"}


@pytest.fixture(scope="module")
def reported(real_dir: Path) -> Path:
    return real_dir


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory, few_trees: None) -> Path:
    """A study that adapts: three seeds, gains beyond doubt, stress trials."""
    directory = whole_study(tmp_path_factory.mktemp("runs") / "digits-ul-cap")
    report_study(directory)
    return directory


def small_study(directory: Path, **options: str) -> Path:
    """Quick to report: three trials, one of them confirmed, the seal opened."""
    study = FakeStudy(directory, **options)
    study.references()
    study.search(3)
    study.confirm([1])
    study.open_seal()
    return study.close()


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small study with its report; not to be written into."""
    directory = small_study(tmp_path_factory.mktemp("small") / "run")
    report_study(directory)
    return directory


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small study that the oracle selected, of a dataset whose name is HTML."""
    directory = small_study(
        tmp_path_factory.mktemp("odd") / "run", dataset="<script>alert(1)</script>", select_by="oracle"
    )
    report_study(directory)
    return directory


HIDDEN = ("style", "script", "svg")
"""What a reader does not see as text of the page; a figure's numbers are those of its axes."""


class Page(HTMLParser):
    """Visible text, tags and addresses of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.text: list[str] = []
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self._hidden = 0
        self._open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href", "action") and value]
        if tag not in ("meta", "img", "br"):
            self._open.append(tag)
        self._hidden += tag in HIDDEN

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag, "tags must nest"
        self._hidden -= tag in HIDDEN

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.text.append(data)


def numbers_of(text: str) -> list[str]:
    return re.findall(r"(?<![\w.])[+-]?\d+(?:\.\d+)?(?:e-?\d+)?(?![\w.])", text.replace("−", "-"))


def shown_forms(directory: Path) -> set[str]:
    """Every way the page may show a CSV's cell."""
    forms: set[str] = set()
    for path in directory.glob("*.csv"):
        for cell in pd.read_csv(path, dtype=str).to_numpy().ravel():
            if not isinstance(cell, str):
                continue
            forms |= set(numbers_of(cell))
            try:
                value = float(cell)
            except ValueError:
                continue
            forms |= {f"{100 * value:.1f}", f"{100 * value:+.1f}", f"{value:.2f}", f"{value:.4g}", str(round(value))}
            forms |= {f"{100 * value:.4g}", *numbers_of(duration(value))}
    return forms


def test_every_file_is_written(reported: Path) -> None:
    names = {path.name for path in reported.iterdir()}
    assert {f"{name}.csv" for name in ALL_CSV} <= names
    assert {f"{name}.{kind}" for name in FIGURES for kind in ("png", "svg")} <= names
    assert {"best_config.yaml", "report.html"} <= names
    assert not [name for name in names if name.endswith(".part")]


def test_page_holds_no_number_that_is_not_in_a_csv(reported: Path) -> None:
    page = Page((reported / "report.html").read_text(encoding="utf-8"))
    allowed = shown_forms(reported)
    unknown = [n for n in numbers_of(" ".join(page.text)) if n not in allowed]
    assert unknown == []
    assert len(numbers_of(" ".join(page.text))) > 80, "the page does hold numbers"


def test_page_is_one_file_whose_only_script_is_the_one_its_policy_names(reported: Path) -> None:
    html = (reported / "report.html").read_text(encoding="utf-8")
    page = Page(html)
    assert not {"link", "iframe", "object", "form", "base"} & set(page.tags)
    (script,) = re.findall(r"<script[^>]*>(.*?)</script>", html, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', html)
    assert f"script-src 'sha256-{digest}'" in policy and "default-src 'none'" in policy and "img-src data:" in policy
    assert "@import" not in html and "url(" not in html.split("</style>")[0]
    assert 'name="viewport"' in html and "@media print" in html and "prefers-color-scheme: dark" in html
    assert not re.findall(r"\son\w+=", html), "no script in an attribute"


def test_every_link_of_the_page_leads_to_a_place_on_it_or_a_file_beside_it(reported: Path) -> None:
    html = (reported / "report.html").read_text(encoding="utf-8")
    places = set(re.findall(r'\bid="([^"]+)"', html))
    addresses = Page(html).addresses
    assert {"trials.csv", "columns.csv", "best_config.yaml", "datapackage.json", "#why"} <= set(addresses)
    assert all(one.startswith("data:image/jpeg;base64,") for one in addresses if one.startswith("data:"))
    for address in (one for one in addresses if not one.startswith("data:")):
        assert address.removeprefix("#") in places if address.startswith("#") else (reported / address).is_file()


def test_no_identifier_stands_twice_and_every_figure_has_a_title(reported: Path) -> None:
    html = (reported / "report.html").read_text(encoding="utf-8")
    names = re.findall(r'\bid="([^"]+)"', html)
    assert len(names) == len(set(names)) and html.count("<svg") == len(FIGURES)
    for labelled in re.findall(r'<svg[^>]*role="img" aria-labelledby="([^"]+)"', html):
        assert re.search(rf'<title id="{labelled}">[^<]{{20,}}</title>', html)
    assert html.count('role="img"') == len(FIGURES)
    assert not re.findall(r"#(?:222222|ffffff|0072b2)", html.split("</style>")[1], re.IGNORECASE), "colours are themed"


def test_the_first_sentence_is_the_answer_with_gain_uncertainty_and_the_next_command(simulated: Path) -> None:
    reported = simulated
    html = (reported / "report.html").read_text(encoding="utf-8")
    (first,) = re.findall(r'<p class="first">(.*?)</p>', html)
    best = pd.read_csv(reported / "best_configs.csv").iloc[0]
    said = unescape(first).replace("\u00a0", " ")  # no line is broken before a per cent sign
    assert said == best["answer"] and html.index(first) < html.index('id="why"')
    assert re.search(r"\d points above zero-shot.s [\d.]+ % \(95 % interval over seeds: \+", said)
    (command,) = re.findall(r"<pre>(.*?)</pre>", html)
    assert command == best["next_command"] and command.startswith("captune adapt")
    assert html.index("selection score") > html.index('id="why"'), "scores come after the answer"


def test_what_is_advised_is_the_same_everywhere(simulated: Path) -> None:
    reported = simulated
    name = pd.read_csv(reported / "best_configs.csv").iloc[0]["advised_candidate"]
    for file, column in (("robustness", "configuration"), ("confirm", "configuration"), ("trials", "key")):
        table = pd.read_csv(reported / f"{file}.csv", true_values=["yes"], false_values=["no"])
        marked = set(table.loc[table["advised"], column])
        assert marked == {f"t{int(name[1:]):04d}" if file == "trials" else name}, file
    html = (reported / "report.html").read_text(encoding="utf-8")
    marked_rows = re.findall(r'<tr class="advised">\s*<td>(.*?)</td>', html)
    assert set(marked_rows) == {name, f"t{int(name[1:]):04d}"}, "the configuration, and the trial it comes from"
    assert f"{name} – advised" in html.split('id="why"')[1].split("</svg>")[0]


def test_html_in_names_is_only_text(odd: Path) -> None:
    html = (odd / "report.html").read_text(encoding="utf-8")
    assert html.count("<script") == 1 and "&lt;script&gt;alert(1)" in html


def test_a_dollar_in_a_name_is_a_dollar_in_figures(tmp_path: Path) -> None:
    directories = [small_study(tmp_path / name) for name in ("cheap$1", "dear$2")]
    report_studies(directories, tmp_path / "out")
    assert "cheap$1" in (tmp_path / "out" / "curves.svg").read_text(encoding="utf-8")


def test_data_package_says_what_is_in_every_csv(reported: Path) -> None:
    package = json.loads((reported / "datapackage.json").read_text(encoding="utf-8"))
    resources = {resource["path"]: resource["schema"]["fields"] for resource in package["resources"]}
    assert set(resources) == {path.name for path in reported.glob("*.csv")}
    columns = pd.read_csv(reported / "columns.csv")
    for path in reported.glob("*.csv"):
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
        fields = resources[path.name]
        assert [field["name"] for field in fields] == list(table.columns), path.name
        assert list(columns[columns["table"] == path.name]["column"]) == list(table.columns), path.name
        for field in fields:
            cells = [cell for cell in table[field["name"]] if cell]
            assert field["description"] and all(CELLS[field["type"]].fullmatch(cell) for cell in cells), (path, field)
            if field.get("unit") in ("fraction", "probability"):
                assert all(-1 <= float(cell) <= 1 for cell in cells), (path.name, field["name"])


CELLS = {
    "string": re.compile(r".*", re.DOTALL),
    "number": re.compile(r"[+-]?\d+(\.\d+)?(e[+-]?\d+)?"),
    "integer": re.compile(r"-?\d+"),
    "boolean": re.compile(r"yes|no"),
    "datetime": re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"),
}
"""How a cell of each Frictionless type may look in the tables."""


def test_report_written_again_is_the_same_to_the_byte_whatever_was_edited(small: Path, tmp_path: Path) -> None:
    directory = Path(shutil.copytree(small, tmp_path / "run"))
    before = {path.name: path.read_bytes() for path in directory.iterdir()}
    (directory / "best_configs.csv").write_text("study,test_mean\nmine,0.99\n")
    (directory / "runs.csv").write_text("run\nwritten by an earlier version, which called studies.csv so\n")
    for name in ("importance.svg", "transfer.csv", "concepts.csv", "notes.txt", "mine.csv"):
        (directory / name).write_text("old")
    report_study(directory)
    kept = {"notes.txt": b"old", "mine.csv": b"old"}
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == before | kept, (
        "what the report does not support is removed, and nothing else"
    )


def test_best_config_holds_the_whole_configuration_and_the_advice(simulated: Path) -> None:
    reported = simulated
    text = (reported / "best_config.yaml").read_text(encoding="utf-8")
    values = yaml.safe_load(text)
    best = pd.read_csv(reported / "best_configs.csv").iloc[0]
    run = load_study(reported)
    trial = run.find(f"t{int(best['config_id']):04d}")
    assert trial is not None and values["method"] == "blend", "one member, with the seeds that were confirmed"
    (member,) = values["members"]
    assert (member["method"], member["settings"]) == ("cap", trial.config)
    assert member["seeds"] == sorted(metrics_by_seed(run, best["configuration"]))
    assert "# Advice: adapt." in text and "captune adapt --dataset digits --paradigm ul" in text


@pytest.mark.usefixtures("no_figures")
def test_advice_to_use_the_ensemble_is_a_blend_that_can_be_trained(tmp_path: Path) -> None:
    study = FakeStudy(tmp_path / "run")
    study.references()
    study.search(6)
    study.confirm([1, 3], seeds=2)
    chosen = load_study(study.directory).find("t0003")
    assert chosen is not None
    study.choice(
        advice="use the ensemble", name="ensemble", config_id=3, config=chosen.config, reason="", candidates=[]
    )
    report_study(study.close())
    text = (tmp_path / "run" / "best_config.yaml").read_text(encoding="utf-8")
    values = yaml.safe_load(text)
    assert (values.pop("method"), values.pop("learn_from")) == ("blend", "part") and "# The advised ensemble" in text
    config = BlendConfig.parse(values)
    run = load_study(tmp_path / "run")
    confirmed = {t.config_id: t.config for t in run.trials if t.phase == "confirm"}
    assert len(config.members) == len(confirmed) == 2 and config.average == "probabilities"
    for member in config.members:
        seeds = [t.seed for t in run.trials if t.phase == "confirm" and t.config == member.settings]
        assert member.method == "cap" and sorted(member.seeds) == sorted(seeds) and member.weight == 1
        own = member_config(config, member).model_dump(mode="json")
        assert own.items() >= member.settings.items()


def test_tables_agree_with_each_other(simulated: Path) -> None:
    reported = simulated
    best = pd.read_csv(reported / "best_configs.csv").iloc[0]
    robust = pd.read_csv(reported / "robustness.csv").set_index("configuration")
    confirm = pd.read_csv(reported / "confirm.csv")
    own = confirm[(confirm["configuration"] == best["configuration"]) & (confirm["phase"] == "confirm")]
    assert best["test_mean"] == pytest.approx(robust.loc[best["configuration"], "mean"])
    assert best["test_mean"] == pytest.approx(own["metric"].mean())
    assert robust.loc[best["configuration"], "advised"] == "yes"


def test_unfinished_study_is_reported_as_far_as_it_goes(tmp_path: Path) -> None:
    study = FakeStudy(tmp_path / "open")
    study.references()
    study.search(2)
    study.plan("t0002", "search", number=2, config_id=2, params=study.sample())
    written = {path.name for path in report_study(study.close())}
    assert {"trials.csv", "best_configs.csv", "report.html", "study.png"} <= written
    assert not {"confirm.csv", "selection.csv", "classes.csv", "importance.csv"} & written
    page = " ".join(Page((study.directory / "report.html").read_text(encoding="utf-8")).text)
    assert "test labels were not read yet" in page and "captune resume" in page


def test_study_without_any_trial_is_reported(tmp_path: Path) -> None:
    study = FakeStudy(tmp_path / "empty")
    written = {path.name for path in report_study(study.close())}
    assert {"studies.csv", "trials.csv", "best_configs.csv", "report.html"} <= written
    assert "best_config.yaml" not in written and "study.png" not in written


@pytest.mark.usefixtures("no_figures")
def test_study_in_which_everything_failed_is_reported(tmp_path: Path) -> None:
    study = FakeStudy(tmp_path / "failed")
    study.references()
    study.search(1, fail=0)
    report_study(study.close())
    page = " ".join(Page((study.directory / "report.html").read_text(encoding="utf-8")).text)
    assert "Many trials failed" in page and "Keep zero-shot" in page


def test_several_studies_make_one_report_and_stay_as_they_are(tmp_path: Path, few_trees: None) -> None:
    runs = []
    for index, (paradigm, method) in enumerate([("ul", "cap"), ("tft", "cap"), ("ul", "fpl")]):
        runs.append(whole_study(tmp_path / f"digits-{paradigm}-{method}", seed=index, paradigm=paradigm, method=method))
    unfinished = FakeStudy(tmp_path / "digits-ssl-cap", paradigm="ssl", seed=9)
    unfinished.references()
    runs.append(unfinished.close())
    written = {path.name for path in report_studies(runs, tmp_path / "out")}
    assert {"transfer.csv", "ranks.csv", "comparisons.csv", "comparisons.png", "report.html"} <= written
    assert "best_config.yaml" not in written and not (runs[0] / "report.html").exists()
    page = Page((tmp_path / "out" / "report.html").read_text(encoding="utf-8"))
    allowed = shown_forms(tmp_path / "out")
    assert [n for n in numbers_of(" ".join(page.text)) if n not in allowed] == []
    assert "digits-ssl-cap" in " ".join(page.text)


def test_oracle_stamp_is_on_page_and_tables(odd: Path) -> None:
    assert "research only" in (odd / "report.html").read_text(encoding="utf-8")
    for path in odd.glob("*.csv"):
        assert "stamp" in pd.read_csv(path).columns, path.name


def test_no_csv_holds_the_word_nan(reported: Path) -> None:
    for path in reported.glob("*.csv"):
        cells = pd.read_csv(path, dtype=str, keep_default_na=False).to_numpy().ravel()
        assert not {"nan", "NaN", "inf", "None", "<NA>"} & set(cells), path.name


def test_tables_are_left_out_when_empty(tmp_path: Path) -> None:
    study = FakeStudy(tmp_path / "empty")
    assert set(tables_of([load_study(study.close())])) == {"studies.csv", "notes.csv", "trials.csv", "best_configs.csv"}


@pytest.mark.usefixtures("no_figures")
def test_command_reports_one_study_in_place_and_asks_where_for_several(tmp_path: Path) -> None:
    import typer

    from captune.cli.report import report

    app = typer.Typer()
    app.command()(report)
    copy = small_study(tmp_path / "digits-ul-cap")
    done = CliRunner().invoke(app, [str(copy)])
    assert done.exit_code == 0 and (copy / "report.html").exists() and "keep zero-shot" in done.output
    other = FakeStudy(tmp_path / "other", seed=5)
    both = CliRunner().invoke(app, [str(copy), str(other.close())])
    assert both.exit_code == 0 and (tmp_path / "report" / "report.html").exists()
    far = FakeStudy(tmp_path / "elsewhere" / "third", seed=6)
    several = CliRunner().invoke(app, [str(copy), str(far.close())])
    assert isinstance(several.exception, UsageError) and "--out" in str(several.exception)
    absent = CliRunner().invoke(app, [str(tmp_path / "absent")])
    assert isinstance(absent.exception, UsageError)
