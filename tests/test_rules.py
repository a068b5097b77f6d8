"""The rules of the project: which package may import which, what a program may be, what is light to import."""

import ast
import importlib
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import ROOT
from core.cli import Parser
from core.errors import UsageError
from core.settings import Settings, get_fields
from experiments.config import ReportSettings, SweepSettings
from training.config import RunConfig

PROGRAMS = {"train", "evaluate", "sweep", "report", "predict", "app"}
LIGHTNING = {"lenet_module", "cifar_datamodule"}
LAYERS = [
    {"core"},
    {"cifar10"},
    {"models"},
    LIGHTNING,
    {"analysis"},
    {"training"},
    {"experiments"},
    PROGRAMS,
    {"benchmarks"},
]
LAYER = {package: number for number, packages in enumerate(LAYERS) for package in packages}
PACKAGES = LAYER.keys() - PROGRAMS - LIGHTNING
FUNCTION_LINES, TOP_FILES, README_LINES = 50, 8, 120
README_WORDS, README_WIDTH = 900, 100
PIPS = {"__index_url"}
SETTINGS = {"train.py": RunConfig, "sweep.py": SweepSettings, "report.py": ReportSettings}
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
    """Yield imports of a package of the same layer or above, and of a program by anything."""
    for path in sources(root):
        own = path.relative_to(root).with_suffix("").parts[0]
        for package in (imported_by(path) & LAYER.keys()) - {own}:
            if LAYER[package] >= LAYER[own] or package in PROGRAMS:
                yield f"{path.relative_to(root).as_posix()} imports {package}"


def modules_imported_by(path: Path, root: Path) -> set[Path]:
    """Return the project's files that a file imports anywhere: in functions, for type checking too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        found |= {root.joinpath(*name.split(".")).with_suffix(".py") for name in names}
    return {file for file in found if file.exists()}


def import_cycles(root: Path) -> list[str]:
    """Return the files that import each other, directly or through others."""
    left = {path: modules_imported_by(path, root) for path in sources(root)}
    while free := {
        path
        for path, imported in left.items()
        if not imported & left.keys() or not any(path in other for other in left.values())
    }:
        left = {path: imported for path, imported in left.items() if path not in free}
    return [path.relative_to(root).as_posix() for path in left]


def long_functions(root: Path) -> Iterator[str]:
    """Yield functions of programs with more than FUNCTION_LINES lines of code: of those after the docstring."""
    for path in (root / f"{program}.py" for program in PROGRAMS if (root / f"{program}.py").exists()):
        lines = path.read_text(encoding="utf-8").splitlines()
        for node in ast.walk(ast.parse("\n".join(lines))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                first = node.body[0]
                start = (first.end_lineno or 0) if ast.get_docstring(node) else first.lineno - 1
                body = [line.strip() for line in lines[start : node.end_lineno]]
                code = [line for line in body if line and not line.startswith("#")]
                if len(code) > FUNCTION_LINES:
                    yield f"{path.name}: {node.name}"


def test_imports_run_downwards_and_nothing_imports_a_program() -> None:
    assert set(upward_imports(ROOT)) == set()


def test_no_file_imports_one_that_imports_it() -> None:
    assert import_cycles(ROOT) == []


def test_a_cycle_of_imports_is_found_whatever_it_is_for(tmp_path: Path) -> None:
    (tmp_path / "core").mkdir()
    (tmp_path / "core" / "files.py").write_text("import os\n")
    (tmp_path / "core" / "cache.py").write_text("from core import files, locks\n")
    (tmp_path / "core" / "locks.py").write_text("if TYPE_CHECKING:\n    from core.cache import LazyArray\n")
    assert import_cycles(tmp_path) == ["core/cache.py", "core/locks.py"]


def test_functions_of_programs_are_short() -> None:
    assert set(long_functions(ROOT)) == set()


def test_at_the_top_lie_the_programs_and_the_two_lightning_classes_alone() -> None:
    top = [path for path in sources(ROOT) if path.parent == ROOT]
    assert {path.stem for path in top} <= PROGRAMS | LIGHTNING
    assert len(top) <= TOP_FILES


def test_importing_a_package_does_nothing() -> None:
    assert [path for path in sources(ROOT) if path.name == "__init__.py" and path.read_bytes()] == []
    assert {path.parent.name for path in sources(ROOT) if path.name == "__init__.py"} >= PACKAGES


@pytest.mark.parametrize("line", ["import train", "def f():\n    from train import main", "from training.run import x"])
def test_an_import_that_runs_upwards_is_found_wherever_it_stands(line: str, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "networks.py").write_text(f"from typing import TYPE_CHECKING\n{line}\n")
    (found,) = upward_imports(tmp_path)
    assert found == f"models/networks.py imports {'training' if 'training' in line else 'train'}"


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
    ours = LAYER.keys() | sys.stdlib_module_names | {"lightning_fabric"}  # Lightning's own, in the same package
    imported = {name for path in sources(ROOT) for name in imported_by(path)} - ours
    assert imported == required("") | required("-app")


def test_what_single_options_require_is_asked_for_before_it_is_used() -> None:
    asked = "".join(path.read_text(encoding="utf-8") for path in sources(ROOT))
    calls = [re.findall(r'"(\w+)"', call) for call in re.findall(r'require_extra\("[^"]+", ([^)]*)\)', asked)]
    assert {name for names in calls for name in names} == {
        name.split("[")[0] for name in required("-extra") | required("-app")
    }


def test_what_tests_import_is_required() -> None:
    used = {name for path in ROOT.glob("tests/**/*.py") for name in imported_by(path)}
    own = LAYER.keys() | sys.stdlib_module_names | {path.stem for path in ROOT.glob("tests/**/*.py")}
    tested = required("") | required("-extra") | required("-app") | required("-dev")
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


def read_parser(name: str) -> tuple[Parser, set[str]]:
    """Return the parser of a program, and its flags, with underscores."""
    parser = importlib.import_module(name).make_parser()
    return parser, {flag.replace("-", "_") for action in parser._actions for flag in action.option_strings}


def refused_commands(page: Path) -> Iterator[str]:
    """Yield commands that their programs refuse, and flags that none has; beside a word like NAME only flags count."""
    for code in code_in(page):
        if not code.startswith(("python ", "--")):
            continue
        words = shlex.split(code, comments=True)
        flags = {word.replace("-", "_") for word in words if word.startswith("--")}
        if words[:2] == ["python", "-m"] and words[2].partition(".")[0] in PACKAGES:
            if not (ROOT / words[2].replace(".", "/")).with_suffix(".py").exists():
                yield code
        elif words[:1] == ["python"] and words[1].removesuffix(".py") in PROGRAMS:
            parser, known = read_parser(words[1].removesuffix(".py"))
            try:
                if flags <= known and not any(re.fullmatch("[A-Z]+|--help|.*config.yaml", word) for word in words):
                    given = vars(parser.parse_args(words[2:]))
                    kind = SETTINGS.get(words[1], Settings)
                    kind(**{name: given[name] for name in given.keys() & get_fields(kind).keys()})
            except (SystemExit, UsageError):
                yield code
            if not flags <= known:
                yield code
        elif words[0].startswith("--") and not any(flags <= read_parser(name)[1] | PIPS for name in PROGRAMS):
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
    text = page.read_text(encoding="utf-8")
    return re.findall(r"^```\w+\n.*?^```$", text, re.MULTILINE | re.DOTALL) + re.findall(
        r"^    \S.*", text, re.MULTILINE
    )


def test_the_readme_is_short() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= README_LINES
    assert len(text.split()) <= README_WORDS
    assert max(map(len, text.splitlines())) <= README_WIDTH


def test_the_chinese_readme_has_the_code_of_the_english_one() -> None:
    assert code_blocks(ROOT / "README.zh-CN.md") == code_blocks(ROOT / "README.md") != []
