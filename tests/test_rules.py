"""The rules of the house: which room may know which, what a door may be, what is light to import."""

import ast
import importlib
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from conftest import ROOT
from core.cli import Parser
from core.errors import UsageError

DOORS = {"train", "evaluate", "sweep", "report", "predict"}
HALVES = {"lenet_module", "cifar_datamodule"}
FLOORS = [
    {"core"},
    {"cifar10"},
    {"models"},
    HALVES,
    {"analysis"},
    {"training"},
    {"experiments"},
    DOORS,
    {"benchmarks"},
]
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
PACKAGES = FLOOR.keys() - DOORS - HALVES
DOOR_LINES, TOP_FILES, README_LINES = 50, 8, 120
README_WORDS, README_WIDTH = 900, 100
PIPS = {"__index_url"}
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])


def sources(root: Path) -> list[Path]:
    """All Python files of the project but its tests; with git, those that it knows."""
    found = {*root.glob("*.py")}.union(*(root.glob(f"{package}/**/*.py") for package in PACKAGES))
    if (root / ".git").exists():
        names = subprocess.run(["git", "ls-files"], cwd=root, capture_output=True, text=True, check=True).stdout
        found &= {root / name for name in names.splitlines()}
    assert found
    return sorted(found)


def imported_by(path: Path) -> set[str]:
    """Modules and packages, by first name, that a file imports anywhere: in functions, for type checking too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module or "")
    return {name.partition(".")[0] for name in names}


def upward_imports(root: Path) -> Iterator[str]:
    """Imports of a room on the same floor or above, and of a door by anything."""
    for path in sources(root):
        own = path.relative_to(root).with_suffix("").parts[0]
        for room in (imported_by(path) & FLOOR.keys()) - {own}:
            if FLOOR[room] >= FLOOR[own] or room in DOORS:
                yield f"{path.relative_to(root).as_posix()} imports {room}"


def long_functions(root: Path) -> Iterator[str]:
    """Functions of doors with more than DOOR_LINES lines of code: of those after the docstring."""
    for path in (root / f"{door}.py" for door in DOORS if (root / f"{door}.py").exists()):
        lines = path.read_text(encoding="utf-8").splitlines()
        for node in ast.walk(ast.parse("\n".join(lines))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                first = node.body[0]
                start = (first.end_lineno or 0) if ast.get_docstring(node) else first.lineno - 1
                body = [line.strip() for line in lines[start : node.end_lineno]]
                code = [line for line in body if line and not line.startswith("#")]
                if len(code) > DOOR_LINES:
                    yield f"{path.name}: {node.name}"


def test_imports_run_downwards_and_nothing_imports_a_door() -> None:
    assert set(upward_imports(ROOT)) == set()


def test_functions_of_doors_are_short() -> None:
    assert set(long_functions(ROOT)) == set()


def test_at_the_top_lie_the_doors_and_the_two_halves_alone() -> None:
    top = [path for path in sources(ROOT) if path.parent == ROOT]
    assert {path.stem for path in top} <= DOORS | HALVES
    assert len(top) <= TOP_FILES


def test_importing_a_package_does_nothing() -> None:
    assert [path for path in sources(ROOT) if path.name == "__init__.py" and path.read_bytes()] == []
    assert {path.parent.name for path in sources(ROOT) if path.name == "__init__.py"} >= PACKAGES


def test_no_program_changes_where_python_imports_from() -> None:
    assert [path for path in sources(ROOT) if "sys.path" in path.read_text(encoding="utf-8")] == []


def test_cores_are_counted_in_one_place() -> None:
    counting = {path.name for path in sources(ROOT) if "cpu_count" in path.read_text(encoding="utf-8")}
    assert counting == {"cores.py", "study.py"}  # a sweep asks how many are whole ones


@pytest.mark.parametrize("line", ["import train", "def f():\n    from train import main", "from training.run import x"])
def test_an_import_that_runs_upwards_is_found_wherever_it_stands(line: str, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "networks.py").write_text(f"from typing import TYPE_CHECKING\n{line}\n")
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "speed.py").write_text("import models.networks, experiments.runs\n")
    (found,) = upward_imports(tmp_path)
    assert found == f"models/networks.py imports {'training' if 'training' in line else 'train'}"


def test_the_two_halves_do_not_know_each_other(tmp_path: Path) -> None:
    (tmp_path / "lenet_module.py").write_text("if TYPE_CHECKING:\n    from cifar_datamodule import CIFAR10DataModule\n")
    assert list(upward_imports(tmp_path)) == ["lenet_module.py imports cifar_datamodule"]


def test_a_functions_length_is_that_of_its_code(tmp_path: Path) -> None:
    head = 'def main():\n    """Text.\n\n    More.\n    """\n    # why\n\n'
    for count, found in ((DOOR_LINES, []), (DOOR_LINES + 1, ["train.py: main"])):
        (tmp_path / "train.py").write_text(head + "    x = 1\n" * count)
        assert list(long_functions(tmp_path)) == found


def test_runs_are_read_without_loading_what_trains_or_downloads() -> None:
    heavy = "requests PIL torch pytorch_lightning lightning_fabric tensorboard cv2 skimage matplotlib pandas scipy"
    code = f"import sys, experiments.runs; print(*{set(heavy.split())} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


MODULES = {"pyyaml": "yaml", "pillow": "PIL", "opencv-python-headless": "cv2", "scikit-image": "skimage"}


def required(kind: str) -> set[str]:
    """The modules that the packages of a requirements file are imported as; each has a comment what it is for."""
    lines = (ROOT / f"requirements{kind}.txt").read_text(encoding="utf-8").splitlines()
    packages = [line for line in lines if line and not line.startswith(("#", "-r "))]
    assert [line for line in packages if not re.fullmatch(r"\S+  # .+", line)] == []
    names = [re.split(r"[\[>=<]", line)[0].strip() for line in packages]
    return {MODULES.get(name, name.replace("-", "_")) for name in names}


def test_what_is_required_is_imported_and_what_is_imported_is_required() -> None:
    ours = FLOOR.keys() | sys.stdlib_module_names | {"lightning_fabric"}  # Lightning's own, in the same package
    imported = {name for path in sources(ROOT) for name in imported_by(path)} - ours
    assert imported == required("")


def test_what_single_options_require_is_asked_for_before_it_is_used() -> None:
    asked = "".join(path.read_text(encoding="utf-8") for path in sources(ROOT))
    calls = [re.findall(r'"(\w+)"', call) for call in re.findall(r'require_extra\("[^"]+", ([^)]*)\)', asked)]
    assert {name for names in calls for name in names} == {name.split("[")[0] for name in required("-extra")}


def test_what_tests_import_is_required() -> None:
    used = {name for path in ROOT.glob("tests/**/*.py") for name in imported_by(path)}
    own = FLOOR.keys() | sys.stdlib_module_names | {path.stem for path in ROOT.glob("tests/**/*.py")}
    tested = required("") | required("-extra") | required("-dev")
    assert used - own - {"_pytest", "lightning_fabric"} - tested == set()
    plugins = {"pytest_xdist", "pytest_randomly", "ipykernel", "jsonargparse", "ruff", "mypy"}
    assert required("-dev") - used - plugins - {name for name in tested if name.startswith("types_")} == set()


def code_in(page: Path) -> list[str]:
    """The code of a page, in its lines and in blocks of their own."""
    text = page.read_text(encoding="utf-8")
    return re.findall(r"(?<!`)`([^`\n]+)`(?!`)", text) + re.findall(r"^    (\S.*)", text, re.MULTILINE)


def dead_links(page: Path) -> Iterator[str]:
    """Links to files, and names of files in the project's folders, that lead nowhere."""
    for target in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
        if "://" not in target and not (page.parent / target).exists():
            yield target
    folders = "|".join([*PACKAGES, "recipes", "results", "docs", "tests", r"\.github"])
    for code in code_in(page):
        for name in re.findall(rf"(?<!\S)(?:(?:{folders})/[\w./-]*|requirements[\w-]*\.txt)", code):
            if not (ROOT / name).exists():
                yield name


@cache
def door(name: str) -> tuple[Parser, set[str]]:
    """The parser of a door, and its flags, with underscores."""
    parser = importlib.import_module(name).parser()
    return parser, {flag.replace("-", "_") for action in parser._actions for flag in action.option_strings}


def refused_commands(page: Path) -> Iterator[str]:
    """Commands that their doors do not take, and flags that none has; beside a word such as NAME only flags count."""
    for code in code_in(page):
        if not code.startswith(("python ", "--")):
            continue
        words = shlex.split(code, comments=True)
        flags = {word.replace("-", "_") for word in words if word.startswith("--")}
        if words[:2] == ["python", "-m"] and words[2].partition(".")[0] in PACKAGES:
            if not (ROOT / words[2].replace(".", "/")).with_suffix(".py").exists():
                yield code
        elif words[:1] == ["python"] and words[1].removesuffix(".py") in DOORS:
            parser, known = door(words[1].removesuffix(".py"))
            try:
                if flags <= known and not any(re.fullmatch("[A-Z]+|--help|.*config.yaml", word) for word in words):
                    parser.parse_args(words[2:])
            except (SystemExit, UsageError):
                yield code
            if not flags <= known:
                yield code
        elif words[0].startswith("--") and not any(flags <= door(name)[1] | PIPS for name in DOORS):
            yield code


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_a_page_links_and_names_is_there_and_its_commands_are_taken(page: Path) -> None:
    assert list(dead_links(page)) == []
    assert list(refused_commands(page)) == []


def test_a_dead_link_a_missing_file_and_a_wrong_flag_are_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("[a](b.md), `python train.py --config recipes/none.yaml`\n\n    python -m benchmarks.none\n")
    assert list(dead_links(page)) == ["b.md", "recipes/none.yaml"]
    assert len(list(refused_commands(page))) == 2
    page.write_text(
        "`python train.py --epochs 0`, `python predict.py a.jpg --fit no`, `python sweep.py --gird X`, `--lrr 1`"
    )
    assert len(list(refused_commands(page))) == 4


def code_blocks(page: Path) -> list[str]:
    """Return the code of a page, in fenced and in indented lines."""
    return re.findall(r"^```\w+\n(.*?)^```$|^    (\S.*)$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def test_the_readme_is_short() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= README_LINES
    assert len(text.split()) <= README_WORDS
    assert max(map(len, text.splitlines())) <= README_WIDTH


def test_the_chinese_readme_has_the_code_of_the_english_one() -> None:
    assert code_blocks(ROOT / "README.zh-CN.md") == code_blocks(ROOT / "README.md") != []
