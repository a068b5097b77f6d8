"""Pages written from made-up log folders, whose figures are known."""

import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import report as main_program
from analysis.reports import HISTORY
from core.errors import UsageError
from experiments.runs import COLUMNS, RESULTS, list_texts
from experiments.tables import read_table, write_table
from training.config import RunConfig
from training.files import RunResult, write_config, write_result

FLAGS = RunConfig(epochs=3, lr=0.05).plain()
SEEDS = (1, 2, 3, 4, 5, 6)


class Logs:
    """A folder of runs."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.results = folder / "logs" / "tried", folder / "results"

    def add(self, val: list[float], test: float | None = None, validated: bool = True, **flags: Any) -> Path:
        """A run with this accuracy after each epoch; unfinished without a `test` accuracy."""
        flags = FLAGS | flags | ({"val_size": 0} if flags.get("select_on") == "test" else {})
        run = self.folder / f"{flags['optimizer']}-lr{flags['lr']:g}-bs{flags['batch_size']}-seed{flags['seed']}"
        folder = run / f"version_{len(list(run.glob('*')))}"
        folder.mkdir(parents=True)
        scores = dict.fromkeys([f"{flags['select_on']}_acc"] * validated + ["train_acc"], val)
        pd.DataFrame({"epoch": range(1, len(val) + 1)} | scores).to_csv(folder / HISTORY, index=False)
        write_config(folder, RunConfig(**flags))
        if test is not None:
            best = max(range(len(val)), key=val.__getitem__)
            result = RunResult(
                epochs=len(val),
                select_on=flags["select_on"],
                best_epoch=best + 1 if validated else None,
                val_acc=val[best] if validated else None,
                test_acc=test,
                test_loss=1.0,
                seconds=9.5,
                images_per_second=1.0,
                log_dir=folder,
                checkpoint=None,
                trend=None,
            )
            write_result(folder, RunConfig(**flags), result)
        return folder

    def report(self, **options: Any) -> str:
        return main_program.report([self.folder], results_dir=self.results, **options).read_text()

    def table(self, name: str = "runs") -> pd.DataFrame:
        return pd.read_csv(self.results / "tried" / f"{name}.csv")


@pytest.fixture
def logs(tmp_path: Path) -> Logs:
    return Logs(tmp_path)


def rows(page: str) -> list[dict[str, str]]:
    """The first table of a page."""
    lines = [line.strip("|").split("|") for line in page.splitlines() if line.startswith("|")]
    head, _, *cells = [[cell.strip() for cell in line] for line in lines]
    return [dict(zip(head, line, strict=False)) for line in cells]


def test_a_run_chosen_on_validation_is_a_row_of_what_it_reached(logs: Logs) -> None:
    logs.add([0.70, 0.80, 0.75], test=0.78)
    (row,) = rows(logs.report())
    assert row["best epoch"] == "2" and row["best validation accuracy, %"] == "80.00"
    assert row["test accuracy, %, epoch chosen on validation"] == "78.00"
    (cell,) = logs.table().to_dict("records")
    assert cell["run"] == "sgd-lr0.05-bs128-seed0/version_0" and cell["lr"] == 0.05 and cell["seed"] == 0
    assert (cell["best_epoch"], cell["best_val_acc"], cell["test_acc_at_best_val"], cell["seconds"]) == (2, 80, 78, 9.5)
    assert pd.isna(cell["best_test_acc"]) and pd.isna(cell["last_test_acc"])
    assert row["seconds"] == "10" and "Seconds are" in logs.report()
    assert list(logs.table("curves")["val_acc"]) == [0.70, 0.80, 0.75]
    assert {path.name for path in (logs.results / "tried").glob("*.png")} == {"accuracy.png", "curves.png"}


def test_seconds_that_a_table_of_runs_does_not_have_are_not_shown(logs: Logs) -> None:
    logs.add([0.70], test=0.78)
    logs.report()
    logs.table().assign(seconds="").to_csv(logs.results / "tried" / "runs.csv", index=False)
    shutil.rmtree(logs.folder)
    logs.folder.mkdir()
    page = logs.report()
    assert "seconds" not in rows(page)[0] and "Seconds are" not in page


def test_runs_without_validation_have_the_last_epochs_accuracy_and_the_curve_of_the_training(logs: Logs) -> None:
    for seed in (0, 1):
        logs.add([0.70, 0.80, 0.75], test=0.78, validated=False, seed=seed)
    page = logs.report()
    (row,) = rows(page)
    assert row["test accuracy, %, last epoch"].startswith("78.00") and "best validation accuracy, %" not in row
    html = (logs.results / "tried" / "report.html").read_text(encoding="utf-8")
    assert html.count("data:image/png;base64,") == len(re.findall(r"!\[.*?\]\(.*?\.png\)", page)) == 2


def test_what_was_chosen_on_the_test_set_stands_apart_with_what_that_adds(logs: Logs) -> None:
    for seed in (0, 1):
        logs.add([0.70, 0.80, 0.75], test=0.80, select_on="test", seed=seed)
        logs.add([0.70, 0.75, 0.76], test=0.76, select_on="test", seed=seed, lr=0.1)
    page = logs.report(compare=["lr=0.05", "lr=0.1"])
    shown = [row["test accuracy, %, epoch chosen on the test set"] for row in rows(page)[:2]]
    assert shown == ["76.00 ± 0.00", "80.00 ± 0.00"]
    shown = [row["test accuracy, %, last epoch"] for row in rows(page)[:2]]
    assert shown == ["76.00 ± 0.00", "75.00 ± 0.00"]
    assert "chosen on the test set, which flatters" in in_bold(page)[0]
    assert "adds 2.50 percentage points (0.00 to 5.00) to the last epoch's accuracy" in page


def test_tables_are_files_too_for_programs_and_for_latex(logs: Logs) -> None:
    pairs(logs, [0.01, 0.02])
    page = logs.report(compare=["optimizer=sgd", "optimizer=adam"])
    assert all(f"({name}.{kind})" in page for name in ("table", "comparison") for kind in ("csv", "tex"))
    shown = rows(page)[:2]
    assert pd.read_csv(logs.results / "tried" / "table.csv", dtype=str).to_dict("records") == shown
    latex = (logs.results / "tried" / "table.tex").read_text(encoding="utf-8")
    assert "\\toprule" in latex and "best validation accuracy, \\%" in latex and ".png" not in latex
    assert shown[0]["test accuracy, %, epoch chosen on validation"] in latex
    logs.report()
    assert not list((logs.results / "tried").glob("comparison*"))


def test_of_several_runs_of_one_seed_and_setting_the_newest_counts(logs: Logs) -> None:
    old, new = logs.add([0.60], test=0.6), logs.add([0.70], test=0.7)
    os.utime(new / "summary.json", ns=(1, 2 * 10**18))
    os.utime(old / "summary.json", ns=(1, 10**18))
    logs.add([0.70], test=0.8, seed=1)
    page = logs.report()
    (row,) = rows(page)
    assert row["test accuracy, %, epoch chosen on validation"] == "75.00 ± 7.07"  # of two, without an interval
    assert "Of several runs of one setting and seed the newest counts; 1 are left out." in page
    assert len(logs.table()) == 3
    os.utime(old / "summary.json", ns=(1, 3 * 10**18))
    assert rows(logs.report())[0]["test accuracy, %, epoch chosen on validation"] == "70.00 ± 14.14"


def test_what_follows_from_a_column_and_what_does_not_vary_stand_above_the_table(logs: Logs) -> None:
    for optimizer, lr, decay in (("sgd", 0.05, 0.0005), ("sgd", 0.1, 0.0005), ("adam", 0.002, 0.0)):
        logs.add([0.7], test=0.7, optimizer=optimizer, lr=lr, weight_decay=decay, crop=0)
    page = logs.report()
    assert list(rows(page)[0])[:3] == ["optimizer", "learning rate", "best epoch"]
    assert page.splitlines()[2:8:2] == [
        "Not the default recipe: epochs 3, crop 0.",
        "All runs: network: LeNet-5, width 3, 548,878 parameters; preprocessing: mean/std normalization; "
        "augmentation: no crop, horizontal flip; optimizer: onecycle schedule; batch: 128 images; epochs: 3; "
        "images: 45,000 for training, 5,000 for validation; number format: auto.",
        "With sgd: weight decay 0.0005; adam: weight decay 0.",
    ]


def test_the_rates_of_a_search_decide_nothing(logs: Logs) -> None:
    for seed, lr in enumerate((0.01, 0.02, 0.03, 0.04)):
        logs.add([0.7], test=0.7, lr=lr, crop=seed % 2, seed=0)
    assert list(rows(logs.report())[0])[:2] == ["learning rate", "crop"]


def test_the_accuracy_of_the_last_epoch_is_not_guessed_from_an_earlier_one(logs: Logs) -> None:
    folder = logs.add([0.5, 0.6, 0.7], test=0.7, select_on="test")
    whole = (folder / HISTORY).read_text().splitlines()
    for kept, expected in ((len(whole), "70.0"), (len(whole) - 1, ""), (1, "")):
        (folder / HISTORY).write_text("\n".join(whole[:kept]) + "\n")
        logs.report()
        table = pd.read_csv(logs.results / "tried" / "runs.csv", dtype=str).fillna("")
        assert table["last_test_acc"].tolist() == [expected]
    (folder / HISTORY).unlink()
    logs.report()


def test_corrupted_images_have_a_table_and_a_picture(logs: Logs) -> None:
    for seed in (0, 1):
        logs.add([0.7], test=0.7, seed=seed)
    (logs.results / "tried").mkdir(parents=True)
    lines = ["run,on,corruption,severity,accuracy"]
    for seed in (0, 1):
        run = f"sgd-lr0.05-bs128-seed{seed}/version_0,val"
        lines += [f"{run},clean,,{70 + seed}"]
        lines += [
            f"{run},{kind},{each},{start - each}" for kind, start in (("blur", 70), ("jpeg", 60)) for each in (1, 5)
        ]
    (logs.results / "tried" / "corrupted.csv").write_text("\n".join(lines))
    page = logs.report()
    assert "Accuracy on the validation images; for a corruption, the mean of severities 1, 5" in page
    line = re.findall(r"^\| sgd +\|.*70.5.*$", page, re.MULTILINE)[0]
    assert [cell.strip() for cell in line.split("|")[2:-1]] == ["70.5 ± 0.7", "67.0 ± 0.0", "57.0 ± 0.0", "62.0 ± 0.0"]
    assert "![Accuracy over severity of corruption](severities.png)" in page
    severe = logs.table("severities")
    assert severe[(severe["corruption"] == "jpeg") & (severe["severity"] == 5)]["mean"].tolist() == [55]


def in_bold(page: str) -> list[str]:
    return re.findall(r"\*\*(.*?)\*\*", page)


def pairs(logs: Logs, differences: list[float]) -> None:
    for seed, difference in zip(SEEDS, differences, strict=False):
        logs.add([0.7], test=0.78 + difference, seed=seed)
        logs.add([0.7], test=0.78, seed=seed, optimizer="adam", lr=0.002)


def test_groups_are_compared_by_pairs_of_the_same_seed(logs: Logs) -> None:
    pairs(logs, [0.01, 0.02, 0.03, 0.02, 0.02])
    logs.add([0.9], test=0.1, seed=0)  # has no partner, and is left out by --seeds
    page = logs.report(seeds="1, 2,3,4,5", compare=["optimizer=sgd", "optimizer=adam"])
    # Student's t with 4 degrees of freedom: 2.776 x 0.707 / sqrt(5) = 0.878; t = 6.32, so p = 0.0032
    assert in_bold(page) == [
        "sgd (learning rate 0.05) reaches 80.00% test accuracy, adam (learning rate 0.002) 78.00% (means of 5 runs "
        "each, paired by seed). The difference, 2.00 percentage points (95% interval 1.12 to 2.88), is more than "
        "chance explains (p = 0.0032)."
    ]
    figures = {line.split("|")[1].strip(): line.split("|")[2].strip() for line in page.splitlines() if line[:1] == "|"}
    assert figures["mean difference, percentage points"] == "+2.00"
    assert figures["p (paired t test, two-sided)"] == "0.0032"
    assert figures["effect size (mean / sd of the differences)"] == "2.83"  # 2 / sqrt(2 / 4)
    assert figures["pairs in which the first is better"] == "5 of 5"
    assert figures["95% interval (Student's t)"] == "+1.12 to +2.88"
    two = logs.report(seeds="1,2", compare=["optimizer=sgd", "optimizer=adam"])
    assert "2 pairs are too few to tell whether" in in_bold(two)[0] and "none: fewer than three pairs" in two
    assert "interval" not in in_bold(two)[0] and "p = " not in two


def test_several_groups_are_compared_with_the_first_and_p_is_corrected_for_their_number(logs: Logs) -> None:
    for seed, noise in zip((*SEEDS, 7), (0.01, -0.01, 0.02, -0.02, 0.005, 0.001, 0.0), strict=True):
        logs.add([0.7], test=0.78, seed=seed)
        logs.add([0.7], test=0.78 - noise, seed=seed, optimizer="adamw", lr=0.002)
        logs.add([0.7], test=0.77 - seed / 1000, seed=seed, optimizer="adam", lr=0.002)
    groups = ["optimizer=sgd", "optimizer=adamw", "optimizer=adam"]
    page = logs.report(compare=groups)
    assert "--compare optimizer=sgd optimizer=adamw optimizer=adam\n" in page
    unclear, clear = in_bold(page)
    assert "adamw (" in unclear and "within what chance explains (p = 0.87, corrected for 2 comparisons)" in unclear
    # Differences of 1.1, 1.2, ... 1.7: standard deviation 0.216, t = 17.1 with 6 degrees of freedom, p = 2.5e-6
    assert "adam (" in clear and "more than chance explains (p = 5e-06, corrected for 2 comparisons)" in clear
    table = logs.table("comparison").set_index("paired by seed")
    assert list(table) == ["optimizer=sgd against optimizer=adamw", "optimizer=sgd against optimizer=adam"]
    assert table.loc["p (paired t test, two-sided)"].iloc[1] == "2.5e-06"
    assert table.loc["p, corrected (Holm)"].iloc[1] == "5e-06"
    assert "corrected" not in logs.report(compare=groups[:2])


def test_equal_differences_have_no_interval_and_say_so(logs: Logs) -> None:
    pairs(logs, [0.01] * 6)
    page = logs.report(compare=["optimizer=sgd", "optimizer=adam"])
    assert "nan" not in page and "none: all differences are equal" in page
    assert "The difference, 1.00 percentage points, is the same in each pair" in page


def test_two_runs_of_one_name_in_different_folders_are_two(logs: Logs, tmp_path: Path) -> None:
    logs.add([0.70, 0.80], test=0.78)
    other = Logs(tmp_path / "other")
    other.add([0.50, 0.60], test=0.58)
    page = main_program.report([logs.folder, other.folder], name="both", results_dir=logs.results)
    cells = pd.read_csv(page.parent / "runs.csv")
    assert sorted(cells["test_acc_at_best_val"]) == [58, 78] and cells["run"].is_unique
    curves = pd.read_csv(page.parent / "curves.csv")
    assert sorted(list(part["val_acc"]) for _, part in curves.groupby("run")) == [[0.5, 0.6], [0.7, 0.8]]


def test_a_table_of_another_format_is_refused(logs: Logs) -> None:
    logs.add([0.70], test=0.7)
    logs.report()
    table = logs.results / "tried" / "runs.csv"
    pd.read_csv(table, dtype=str, keep_default_na=False).assign(format="3").to_csv(table, index=False)
    with pytest.raises(UsageError, match=r"runs\.csv, line 2: .*reads format 4 only; commit 9edcdda is the last"):
        logs.report()


@settings(max_examples=20)
@given(data=st.data())
def test_a_table_that_is_written_is_read_back_to_the_same(data: st.DataObject) -> None:
    flags: dict[str, Any] = {
        "lr": data.draw(st.none() | st.floats(1e-6, 10)),
        "crop": data.draw(st.integers(0, 31)),
        "flip": data.draw(st.booleans()),
        "denoise": "gaussian",
        "denoise_strength": data.draw(st.none() | st.floats(0.1, 16)),
        "teacher": data.draw(st.sampled_from([None, "a/b c", "x,y"])),
        "devices": data.draw(st.sampled_from([1, "auto"])),
    }
    row: dict[str, Any] = {"run": "a/version_0"} | list_texts(RunConfig(**flags))
    row |= {
        "best_epoch": data.draw(st.integers(1, 99)),
        "seconds": data.draw(st.floats(0, 1e6).map(lambda x: round(x, 1))),
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "runs.csv")
        write_table(path, pd.DataFrame([row], columns=["run", "format", *COLUMNS, *RESULTS]))
        assert read_table(path) == [row]
        before = path.read_bytes()
        write_table(path, pd.DataFrame(read_table(path), columns=["run", "format", *COLUMNS, *RESULTS]))
        assert path.read_bytes() == before


def test_each_setting_is_compared_with_its_own_baseline_by_pairs_of_the_same_seed(logs: Logs) -> None:
    for optimizer, lr, gains in (("adam", 0.002, (0.01, 0.02, 0.03)), ("sgd", 0.05, (0.00, 0.02, 0.04))):
        for seed, gain in enumerate(gains):
            start = 0.7 + 0.01 * seed
            logs.add([0.7], test=start, seed=seed, optimizer=optimizer, lr=lr, crop=0)
            logs.add([0.7], test=start + gain, seed=seed, optimizer=optimizer, lr=lr)
    page = logs.report(baseline="crop=0")
    shown = {(row["optimizer"], row["crop"]): row["minus baseline, percentage points"] for row in rows(page)}
    assert shown[("adam", "0")] == shown[("sgd", "0")] == ""
    assert shown[("adam", "2")] == "+2.00 ± 1.00 (-0.48 to +4.48)"
    assert shown[("sgd", "2")] == "+2.00 ± 2.00 (-2.97 to +6.97)"
    assert "--baseline crop=0" in page
    with pytest.raises(UsageError, match="baseline crop=7: no run is in this group"):
        logs.report(baseline="crop=7")
    with pytest.raises(UsageError, match="baseline optimizer=sgd: no setting differs in these settings alone"):
        logs.report(baseline="optimizer=sgd")  # the learning rate differs too


def test_a_reference_that_the_project_has_stands_beside_in_any_folder(logs: Logs) -> None:
    logs.add([0.7], test=0.7, select_on="test", optimizer="adam", lr=0.001, batch_size=64)
    logs.add([0.7], test=0.7, select_on="test", optimizer="adam", lr=0.001, batch_size=32)
    page = main_program.report([logs.folder], name="coursework", results_dir=logs.results).read_text()
    assert [row["report: accuracy, %"] for row in rows(page)] == ["71.08", "70.05"]


def test_the_figures_of_others_stand_beside_and_are_within_the_spread_of_several_seeds_or_not(logs: Logs) -> None:
    for lr, accuracies in ((0.2, [0.70, 0.71, 0.72]), (0.1, [0.600, 0.601, 0.602]), (0.05, [0.50]), (0.01, [0.40])):
        for seed, accuracy in enumerate(accuracies):
            logs.add([accuracy], test=accuracy, lr=lr, seed=seed)
    folder = logs.results / "tried"
    folder.mkdir(parents=True)
    lines = ["lr,best_epoch,accuracy,seconds to prepare", '2e-1,"60, 66",74,', "0.1,,61,1.5", "0.05,,50,"]
    (folder / "reference.csv").write_text("\n".join(lines))
    (folder / "notes.md").write_text("Why it differs.\n")
    page = logs.report()
    shown = {name: [row[name] for row in rows(page)] for name in rows(page)[0]}
    assert shown["report: best epoch"] == ["60, 66", "", "", ""] and shown["seconds to prepare"] == ["", "1.5", "", ""]
    assert shown["report: accuracy, %"] == ["74.00", "61.00", "50.00", ""]
    assert shown["report's within 95% prediction interval"] == ["yes (66.03 to 75.97)", "no (59.60 to 60.60)", "", ""]
    assert shown["ours minus report's"] == ["-3.00", "-0.90", "+0.00", ""]
    assert "over 3 settings: -1.30 ± 1.54 (-5.12 to +2.52) percentage points" in page
    assert "single run in 1 of the 2 settings with at least 3 seeds" in page
    assert "Why it differs." in page


def test_unfinished_runs_are_counted(logs: Logs) -> None:
    logs.add([0.70], test=0.7)
    logs.add([0.60, 0.50], seed=1)
    assert logs.report().endswith("Not finished: 1 of 2 runs.\n") and len(logs.table()) == 1


def test_runs_whose_logs_are_elsewhere_stay(logs: Logs) -> None:
    logs.add([0.70, 0.80], test=0.78)
    first = logs.report()
    elsewhere = Logs(logs.folder.parent.parent / "elsewhere")
    elsewhere.results = logs.results
    elsewhere.add([0.60, 0.65], test=0.64, lr=0.01)
    page = elsewhere.report()
    assert {row["learning rate"] for row in rows(page)} == {"0.05", "0.01"}
    assert len(logs.table()) == 2 and len(logs.table("curves")) == 4
    assert elsewhere.report() == page != first
    (logs.results / "tried" / "curves.csv").unlink()
    shutil.rmtree(elsewhere.folder)
    elsewhere.folder.mkdir()
    assert rows(elsewhere.report()) == rows(page) and not (logs.results / "tried" / "curves.csv").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"seeds": "7"}, "seeds 7: no run has seed 7"),
        ({"compare": ["optimizer=sgd"]}, "takes two groups"),
        ({"compare": ["optimizer=sgd lr=0.05", "lr=5e-2 optimizer=sgd"]}, "takes two groups or more, each once"),
        ({"name": "../elsewhere"}, "name ../elsewhere: must be letters, digits"),
        ({"compare": ["optimizer=sgd", "optimizer=nadam"]}, "compare optimizer=nadam: no run is in this group"),
        ({"compare": ["optimizer=sgd", "speed=1"]}, "speed=1: no setting of a run"),
        ({"compare": ["optimizer=sgd", "optimizer=adam"]}, "several runs have the same seed"),
        ({"compare": ["optimizer=sgd lr=0.05", "optimizer=adam"], "seeds": "1"}, "1 seeds in common"),
    ],
)
def test_what_cannot_be_reported_is_said_in_one_line(logs: Logs, options: dict[str, Any], said: str) -> None:
    pairs(logs, [0.01] * 5)
    logs.add([0.7], test=0.7, seed=1, lr=0.1)
    with pytest.raises(UsageError, match=said):
        logs.report(**options)
    assert not logs.results.exists()


def test_a_report_is_not_written_among_runs_nor_of_none(logs: Logs, tmp_path: Path) -> None:
    logs.add([0.7], test=0.7)
    with pytest.raises(UsageError, match="is a folder of runs; name another"):
        main_program.report([logs.folder], results_dir=logs.folder.parent)
    assert not list(logs.folder.glob("*.md"))
    (tmp_path / "logs" / "empty").mkdir()
    for empty, said in (("empty", "none of 0 runs is finished"), ("none", "none: no such folder")):
        with pytest.raises(UsageError, match=said):
            main_program.report([tmp_path / "logs" / empty], results_dir=logs.results)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("runs.csv", "lr,seed\n1,2\n", "runs.csv: damaged: has no column run"),
        ("corrupted.csv", "image,accuracy\nclean,70\n", "corrupted.csv: damaged: has no column run"),
        ("reference.csv", "", "reference.csv: damaged"),
    ],
)
def test_a_damaged_table_is_named_and_left_alone(logs: Logs, name: str, content: str, said: str) -> None:
    logs.add([0.70], test=0.7)
    logs.report()
    table = logs.results / "tried" / name
    table.write_text(content)
    with pytest.raises(UsageError, match=said):
        logs.report()
    assert table.read_text() == content
