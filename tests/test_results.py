"""The written record: what README.md, docs/ and results/ say is what the files beside them say."""

import re
import shlex
import shutil
from collections.abc import Iterable
from pathlib import Path

import pytest

import report as main_program
from conftest import ROOT
from experiments import pages

RESULTS = ROOT / "results"


def made(path: Path) -> bool:
    """Whether it is a page that report.py makes, which the test of pages looks at."""
    return path.name == "README.md" and (path.parent / "runs.csv").exists()


PAGES = sorted(path.parent for path in RESULTS.glob("*/runs.csv"))
MEASURED: tuple[str, ...] = (  # what programs wrote, by the names of files
    *("table.csv", "comparison.csv", "severities.csv", "corrupted.md", "test.md", "reference.csv", "report.md"),
    "time_to_accuracy.md",
    *(path.name for path in (RESULTS / "throughput").glob("*.md")),
)
PROSE = [
    *(ROOT / name for name in ("README.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted(path for path in RESULTS.rglob("*.md") if path.name not in MEASURED and not made(path)),
]
FIGURE = re.compile(r"(?<![\w.,/-])[+-]?\d+\.\d+(?![\w]|\.\d)(?! GB)")  # what was measured has decimals
NUMBER = re.compile(r"\d+(?:,\d{3})*(?:\.\d+)?")
CODE = re.compile(r"```.*?```|^ {4}.*?$|`[^`]*`|\]\([^)]*\)", re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("folder", PAGES, ids=lambda folder: folder.name)
def test_every_page_is_what_report_makes_of_its_csv_files(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(folder, tmp_path / "results" / folder.name)
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    page = (folder / "README.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"^    python report\.py (.*)$", page, re.MULTILINE)
    flags = vars(main_program.make_parser().parse_args(shlex.split(command)))
    if folder.name != "robust":  # one page with its pictures is enough, which are not compared
        monkeypatch.setattr(pages, "save", lambda path, figure: path.touch())
    monkeypatch.chdir(tmp_path)
    for logs in flags["folders"]:
        logs.mkdir(parents=True)
    main_program.report(**flags)
    for path in folder.glob("*.*"):
        if path.suffix in (".md", ".csv", ".tex"):
            assert (tmp_path / "results" / folder.name / path.name).read_text(encoding="utf-8") == path.read_text(
                encoding="utf-8"
            ), path.name


@pytest.mark.parametrize("path", PROSE, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_figure_in_prose_is_in_a_file_that_a_program_wrote(path: Path) -> None:
    notes = (path.parent / "runs.csv").exists()
    known = numbers(file for file in RESULTS.rglob("*") if file.name in MEASURED or (made(file) and not notes))
    if notes:
        known |= numbers([path.parent / "runs.csv"])
        page = (path.parent / "README.md").read_text(encoding="utf-8")
        known |= numbers_in(page.replace(path.read_text(encoding="utf-8").strip(), ""))
    unknown = [figure for figure in figures(path.read_text(encoding="utf-8")) if not rounded(figure, known)]
    assert unknown == []


def test_a_figure_that_no_file_has_is_found() -> None:
    assert figures("It is 81.234% of 5.0 GB, `--lr 0.05`, version 2.14.1:\n\n    python x.py 0.7\n") == ["81.234"]
    assert rounded("-12.35", {12.345}) and rounded("3.5", {3.46}) and not rounded("3.5", {3.4, 35})


def figures(text: str) -> list[str]:
    return FIGURE.findall(CODE.sub(" ", text))


def numbers(files: Iterable[Path]) -> set[float]:
    return {number for file in files for number in numbers_in(file.read_text(encoding="utf-8"))}


def numbers_in(text: str) -> set[float]:
    return {float(number.replace(",", "")) for number in NUMBER.findall(text)}


def rounded(figure: str, known: set[float]) -> bool:
    """Whether a known number is the figure, rounded as it is."""
    digits = len(figure.partition(".")[2])
    return any(abs(number - abs(float(figure))) <= 0.5001 * 10**-digits for number in known)
