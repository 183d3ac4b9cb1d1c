"""Object stores: `gs://bucket/…` and `s3://bucket/…` where a path may stand.

Small files go through etils.epath and fsspec's gcsfs or s3fs, arrays through tensorstore's own drivers. An object is
there whole or not at all, but cannot be appended to, renamed or locked, and a folder is but a part of names. So metrics
and answers are written in parts, whole files are put in their place at once, and a checkpoint is complete when its last
object is there, COMMITTED.

Tried with servers that speak the stores' protocols (tests/test_buckets.py), never with the stores themselves. Access
is configured as the libraries do: Google's application default credentials; AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY,
AWS_REGION and, for other stores of the protocol, AWS_ENDPOINT_URL.
"""

import contextlib
import glob as local
import importlib.util
import os
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from t5x_lite.errors import UserError

# Scheme -> what its paths need, which setup.cfg has as an extra of the scheme's name.
PACKAGES = {"gs": "gcsfs", "s3": "s3fs"}
COMMITTED = "commit_success.txt"  # Orbax's name for it
_PATH = re.compile(r"([a-z][a-z0-9+]*)://")
_NOT_PATHS = ("http", "https")
_CLIENTS = ("aiohttp", "botocore", "gcsfs", "google", "requests", "urllib3")


def is_remote(path) -> bool:
    """Whether the path is in an object store (gs://, s3://): nothing there is appended to, locked or renamed."""
    return "://" in os.fspath(path)


def is_failure_of_access(problem: Exception) -> bool:
    """Whether a file system or a network was at fault: what the clients of object stores raise is not all OSError."""
    return isinstance(problem, OSError) or type(problem).__module__.partition(".")[0] in _CLIENTS


@contextlib.contextmanager
def survived(say: Callable[[Exception], None] = lambda problem: None) -> Iterator[None]:
    """What could not be read or written within is said, and no more."""
    try:
        yield
    except Exception as e:
        if not is_failure_of_access(e):
            raise
        say(e)


def check(values: Iterable[Any]) -> None:
    """Looks for paths of object stores among bound values, at any depth, and sees to it that they can be used.

    Raises:
      UserError: an unknown scheme, or a package that is missing (named, with the extra that brings it).
    """
    schemes = {match[1]: text for text in _texts(values) if (match := _PATH.match(text))}
    for scheme, text in schemes.items():
        if scheme in _NOT_PATHS:
            continue
        if scheme not in PACKAGES:
            raise UserError(f"{text}: no such kind of path; there are local ones, gs:// and s3://")
        if importlib.util.find_spec(PACKAGES[scheme]) is None:
            raise UserError(f"{text} needs {PACKAGES[scheme]}: pip install 't5x-lite[{scheme}]'")
    if "s3" in schemes or "gs" in schemes:
        prepare()


def prepare() -> None:
    """Sets the libraries up for object stores; may be called again."""
    from fsspec.config import conf

    for protocol in ("s3", "gs", "gcs"):
        # tensorstore writes beside fsspec, which would remember a folder as it was before.
        conf.setdefault(protocol, {}).setdefault("use_listings_cache", False)
    _teach_orbax_s3()


def glob(pattern: str) -> list[str]:
    """Names of the files that a pattern stands for, in order; a name that has no wildcard stands for itself."""
    if not is_remote(pattern):
        found = local.glob(pattern, recursive=True)
        return sorted(found) if found or not os.path.exists(pattern) else [pattern]  # a name with [ in it
    from etils import epath

    if "*" not in pattern:
        return [pattern] if epath.Path(pattern).exists() else []
    folder = pattern.partition("*")[0].rpartition("/")[0]
    return sorted(map(str, epath.Path(folder).glob(pattern[len(folder) + 1 :])))


def rename(folder, target) -> None:
    """Gives a folder another name; of objects, one copy after the other, before the first one goes."""
    if not is_remote(folder):
        folder.rename(target)
        return
    from fsspec.core import url_to_fs

    filesystem, old = url_to_fs(os.fspath(folder))
    new = url_to_fs(os.fspath(target))[1]
    names = filesystem.find(old)  # s3fs' own renaming wants objects where there are but parts of names
    for name in names:
        filesystem.cp_file(name, new + name.removeprefix(old))
    filesystem.rm(names)


def version(path: str) -> str:
    """What an object's name and content are known by: another text for other content."""
    from fsspec.core import url_to_fs

    filesystem, name = url_to_fs(path)
    return filesystem.ukey(name)


def _texts(values: Iterable[Any]) -> Iterator[str]:
    for value in values:
        if isinstance(value, str):
            yield from value.split(",")
            yield value.partition(":")[2]  # of tsv:gs://bucket/file
        elif isinstance(value, dict):
            yield from _texts([*value.keys(), *value.values()])
        elif isinstance(value, (list, tuple)):
            yield from _texts(value)


def _teach_orbax_s3() -> None:
    """Orbax 0.12.8 hands gs:// paths to tensorstore's driver and takes all others for local files."""
    from orbax.checkpoint._src.path import gcs_utils
    from orbax.checkpoint._src.serialization import tensorstore_utils

    if getattr(gcs_utils.get_kvstore_for_gcs, "knows_s3", False):
        return
    of_gcs, normalize = gcs_utils.get_kvstore_for_gcs, tensorstore_utils._normalize_path

    def kvstore(path: str) -> dict[str, Any]:
        return s3_kvstore(path) if path.startswith("s3://") else of_gcs(path)

    vars(kvstore)["knows_s3"] = True
    gcs_utils.get_kvstore_for_gcs = kvstore
    tensorstore_utils._use_gcs_driver = lambda directory: directory.startswith(("gs://", "s3://"))
    tensorstore_utils._normalize_path = lambda path: re.sub("^s3:/(?!/)", "s3://", normalize(path))


def s3_kvstore(path: str) -> dict[str, Any]:
    """tensorstore's specification of the objects below a path, with the region and endpoint that s3fs takes."""
    bucket, _, key = path.removeprefix("s3://").partition("/")
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if endpoint and not region:
        region = "us-east-1"  # tensorstore would ask AWS
    return {
        "driver": "s3",
        "bucket": bucket,
        "path": key,
        **({"aws_region": region} if region else {}),
        **({"endpoint": endpoint} if endpoint else {}),
    }
