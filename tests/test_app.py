"""The page of app.py in a real browser: what a visitor sees and can do, and what the page never does."""

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
import torch
from PIL import Image

import app as main_program
import predict
from analysis import reports
from cifar10 import records
from cifar10.records import CLASS_NAMES
from conftest import ROOT, made_up_records
from core import extras
from core.cli import run_program
from made_up import write_checkpoint
from made_up_pictures import saved
from training.config import RunConfig
from training.files import write_config

PHOTO = Image.fromarray(np.random.default_rng(1).integers(0, 256, (6, 9, 3), dtype=np.uint8)).resize((90, 60))
RUN = "adam-lr0.004-bs128-seed0/version_0"
WAIT = 60_000  # milliseconds
WATCH = """
import os, sys

def write(event, arguments):
    if event == "socket.connect" and isinstance(arguments[1], tuple):
        print(arguments[1][0], file=open(os.environ["ASKED"], "a"))
    elif event == "socket.getaddrinfo":
        print(arguments[0], file=open(os.environ["ASKED"], "a"))

sys.addaudithook(write)
"""  # the hosts that a program connects to, or asks the address of


def write_run(folder: Path) -> Path:
    """Write what the page reads of a run of one epoch, on the made-up data; return the folder of its checkpoints."""
    logs, checkpoints = folder / "logs" / RUN, folder / "checkpoints" / RUN
    logs.mkdir(parents=True)
    checkpoints.mkdir(parents=True)
    write_config(logs, RunConfig())
    labels = torch.arange(100) % 10
    logits = torch.nn.functional.one_hot(labels, 10) * 5.0
    logits[3] = 9 * torch.eye(10)[5]  # the cat with index 3 as a dog
    reports.write_tables(logs, logits, labels, CLASS_NAMES)
    reports.write_predictions(logs, range(100), logits.softmax(1), labels, CLASS_NAMES)
    reports.write_csv(
        logs / reports.HISTORY, ["epoch", "train_loss", "val_loss", "train_acc", "val_acc"], [[1] * 5] * 2
    )
    (logs / reports.TREND).write_text("| trend | |\n|---|---|\n| advice | more epochs |\n")
    write_checkpoint(checkpoints / "last.ckpt", log_dir="logs", checkpoint_dir="checkpoints")
    return checkpoints


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run and a data set."""
    folder = tmp_path_factory.mktemp("app")
    write_run(folder)
    (folder / "data" / records.FOLDER).mkdir(parents=True)
    for seed, name in enumerate(records.FILES):
        (folder / "data" / records.FOLDER / name).write_bytes(made_up_records(seed).tobytes())
    return folder


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    """The page of two checkpoints side by side; afterwards the program is stopped, and its files have to be gone."""
    command = [
        sys.executable,
        str(ROOT / "app.py"),
        "--checkpoint",
        f"checkpoints/{RUN}",
        f"checkpoints/{RUN}/last.ckpt",
    ]
    temporary, asked = folder / "temporary", folder / "asked"
    temporary.mkdir()
    (folder / "sitecustomize.py").write_text(WATCH)  # which Python runs before the program
    environment = os.environ | {"TMPDIR": str(temporary), "PYTHONPATH": str(folder), "ASKED": str(asked)}
    with subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout
        yield re.findall(r"http://127\.0\.0\.1:\d+/", program.stdout.readline())[0]
        assert list(temporary.iterdir()) != []
        program.send_signal(signal.SIGTERM)
        assert program.wait(30) == 128 + signal.SIGTERM
    assert list(temporary.iterdir()) == []
    assert set(asked.read_text().split()) == {"127.0.0.1"}


@pytest.fixture
def visit(browser: Any, address: str) -> Iterator[Callable[..., Any]]:
    """Opens the page as a new visitor. No page may say an error, or ask another address than its own for anything."""
    errors, asked, contexts = [], set(), []

    def visit(width: int = 1200) -> Any:
        contexts.append(browser.new_context(viewport={"width": width, "height": 900}))
        page = contexts[-1].new_page()
        page.set_default_timeout(WAIT)
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("request", lambda request: asked.add(request.url))
        page.goto(address)
        page.wait_for_selector(".bar")
        return page

    yield visit
    for context in contexts:
        context.close()
    assert errors == []
    assert {urlsplit(url).hostname for url in asked if urlsplit(url).scheme not in ("data", "blob")} == {"127.0.0.1"}


def read_shares(page: Any) -> dict[str, str]:
    """The first network's probability of each class, as the page shows it, read at once."""
    script = "cells => Object.fromEntries(Array.from(cells, cell => [cell.dataset.class, cell.innerText]))"
    return page.locator(".columns >> nth=0 >> section >> nth=0 >> [data-class]").evaluate_all(script)


def wait_for_change(page: Any, shares: dict[str, str]) -> dict[str, str]:
    for _ in range(WAIT // 100):
        if (found := read_shares(page)) and found != shares:
            return found
        page.wait_for_timeout(100)
    raise AssertionError("the answer stays as it is")


def upload(page: Any, file: Path) -> None:
    page.get_by_role("tab", name="Your picture").click()
    page.locator("input[type=file]").first.set_input_files(file)


def overflow(page: Any) -> int:
    return page.evaluate("document.documentElement.scrollWidth - innerWidth")


def test_a_picture_has_the_probabilities_of_predict_until_a_slider_changes_them_and_no_picture_changes_nothing(
    visit: Any, folder: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    page, photo = visit(), saved(tmp_path / "photo.png", PHOTO)
    before = read_shares(page)
    upload(page, photo)
    shares = wait_for_change(page, before)
    monkeypatch.setattr(
        sys, "argv", ["predict.py", "--json", "--checkpoint", str(folder / "checkpoints" / RUN), str(photo)]
    )
    assert run_program(predict.main) == 0
    (found,) = json.loads(capsys.readouterr().out)
    for ranked in (found, *found["next"]):
        assert shares[ranked["class"]] == f"{ranked['confidence']:.1%}"
    page.get_by_label("Noise").first.fill("0.3")
    noisy = wait_for_change(page, shares)
    page.get_by_role("button", name="Undo all").click()
    assert wait_for_change(page, noisy) == shares
    (tmp_path / "b.png").write_text("no picture")
    upload(page, tmp_path / "b.png")
    page.get_by_text("no image that Pillow knows, or damaged").wait_for()
    assert read_shares(page) == shares


def test_two_visitors_do_not_see_each_others_pictures(visit: Any, tmp_path: Path) -> None:
    one, other = visit(), visit()
    before = read_shares(other)
    upload(one, saved(tmp_path / "photo.png", PHOTO))
    mine = wait_for_change(one, before)
    other.get_by_label("Severity").first.fill("1")  # which makes the server answer the other
    assert wait_for_change(other, before) != mine
    other.get_by_role("button", name="Undo all").click()
    assert wait_for_change(other, read_shares(other)) == before
    assert read_shares(one) == mine


def test_a_drawing_is_classified(visit: Any) -> None:
    page = visit()
    before = read_shares(page)
    page.get_by_role("tab", name="Draw").click()
    canvas = page.locator("canvas").first
    canvas.wait_for()
    page.get_by_role("button", name="Brush").click()
    place = canvas.bounding_box()
    x, y = place["x"] + place["width"] / 2, place["y"] + place["height"] / 2
    page.mouse.move(x - 50, y - 50)
    page.mouse.down()
    page.mouse.move(x + 50, y + 50, steps=5)
    page.mouse.up()
    wait_for_change(page, before)


def test_a_click_in_the_confusion_matrix_shows_its_images_and_one_on_an_image_brings_it_into_the_first_tab(
    visit: Any,
) -> None:
    page = visit(390)  # a phone's width
    before, answers = read_shares(page), page.locator(".answer")
    assert answers.count() == 2 and answers.nth(0).inner_text() == answers.nth(1).inner_text()
    assert overflow(page) <= 0
    page.get_by_role("tab", name="Its training").click()
    page.get_by_text("more epochs").first.wait_for()
    page.locator("[data-testid='cell-0-0']").first.wait_for()
    assert overflow(page) <= 0
    for row, name in ((5, "dog"), (3, "cat")):
        page.locator(f"[data-testid='cell-{row}-6']").first.click()
        page.get_by_role("heading", name=f"{name} as dog").wait_for()
    pictures = page.locator(".sheet:visible").first.locator("[data-pick]")  # of the first network
    assert [each.get_attribute("data-pick") for each in pictures.all()] == ["train/3"]
    pictures.first.click()
    wait_for_change(page, before)
    assert "cat" in page.locator(".answer").first.inner_text()  # the truth: right, or what it is


def test_test_images_are_chosen_by_class_and_by_mistake(visit: Any) -> None:
    page = visit()
    before = read_shares(page)
    assert page.locator("[data-pick='test/3']").count() == 1  # of cats
    page.get_by_label("Only those").check()
    page.get_by_label("Pictures of").click()
    page.get_by_role("option", name="ship").click()
    pictures = page.locator(".sheet:visible [data-pick^='test/']")
    page.locator("[data-pick^='test/'][data-pick$='3']").first.wait_for(state="detached")
    pictures.first.wait_for()
    assert all(int(each.get_attribute("data-pick").partition("/")[2]) % 10 == 8 for each in pictures.all())
    pictures.first.click()
    wait_for_change(page, before)
    assert "it is: ship" in page.locator(".answer").first.inner_text()


def test_a_file_that_is_too_large_is_not_taken(address: str) -> None:
    boundary = "x" * 20
    body = f'--{boundary}\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'.encode()
    body += bytes(32_000_000) + f"\r\n--{boundary}--\r\n".encode()
    kind = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
    request = urllib.request.Request(f"{address}gradio_api/upload", body, kind)
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request, timeout=60)
    assert caught.value.code == 413


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--port", "0"], "--port 0: must be from 1 to 65535"),
        (["--data_dir", "none"], "--data_dir none: has no cifar-10-batches-bin"),
        (["--checkpoint", "none.ckpt"], "none.ckpt: No such file or directory"),
    ],
)
def test_bad_flags_are_refused_in_one_line(
    flags: list[str], line: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(sys, "argv", ["app.py", *flags])
    monkeypatch.setattr(extras, "find_spec", lambda name: name)
    assert run_program(main_program.main) == 2
    assert capsys.readouterr().err == f"app.py: {line}\n"


def test_without_gradio_a_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(sys, "argv", ["app.py"])
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    assert run_program(main_program.main) == 2
    assert capsys.readouterr().err == "app.py: app.py needs gradio: pip install -r requirements-app.txt\n"
