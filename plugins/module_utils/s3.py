# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Files between S3 and the disk: whole, checked, and only then under their name."""

from __future__ import annotations

import contextlib
import os
import threading
import time
import typing as t
from dataclasses import asdict, dataclass
from pathlib import Path

try:
    from botocore.exceptions import ClientError
    from s3transfer.exceptions import RetriesExceededError
    from s3transfer.manager import TransferConfig, TransferManager
    from s3transfer.subscribers import BaseSubscriber
except ImportError:
    # AnsibleAWSModule says what is missing before any of this runs.
    BaseSubscriber = object

try:
    from s3transfer.exceptions import S3DownloadFailedError, S3ValidationError
except ImportError:
    # An s3transfer from before it looked whether all parts are of one object.
    class S3DownloadFailedError(Exception):
        pass

    class S3ValidationError(Exception):
        pass


from ansible_collections.keyferry.redis.plugins.module_utils.aws import aws_errors, error_code
from ansible_collections.keyferry.redis.plugins.module_utils.crc64 import combine, crc64
from ansible_collections.keyferry.redis.plugins.module_utils.errors import KeyferryError
from ansible_collections.keyferry.redis.plugins.module_utils.part_file import PartFile, free_bytes
from ansible_collections.keyferry.redis.plugins.module_utils.progress import Progress, silent
from ansible_collections.keyferry.redis.plugins.module_utils.rdb_bytes import CRC_BYTES, HEADER_BYTES
from ansible_collections.keyferry.redis.plugins.module_utils.rdb_check import END_BYTES, Content, examine, judge

# Object metadata in which a put leaves the checksum: an ETag is no checksum of a multipart or encrypted object.
CRC64_METADATA = "keyferry-crc64"
DENIED_CODES = {"403", "AccessDenied"}
NOT_FOUND_CODES = {"404", "NoSuchKey", "NotFound"}


@dataclass(frozen=True)
class Tuning:
    """How a transfer is cut up: bytes of one part, and how many of them are under way at a time."""

    part_size: int = 64 * 1024 * 1024
    parallel: int = 8

    def config(self) -> TransferConfig:
        return TransferConfig(
            multipart_threshold=self.part_size,
            multipart_chunksize=self.part_size,
            max_request_concurrency=self.parallel,
            io_chunksize=1024 * 1024,
            # Bounds the memory of a download whose disk is slower than its network, to 64 MiB.
            max_io_queue_size=64,
        )


class ChecksummedFile:
    """A file that is written in parts of one size, in any order, and knows the CRC-64 of all that was written.

    Bytes of one part come in their order; a part that the transfer manager tries again comes again from its start.
    """

    def __init__(self, file: PartFile | t.BinaryIO, part_size: int) -> None:
        self._file = file
        self._part_size = part_size
        self._position = 0
        self._parts: dict[int, tuple[int, int]] = {}

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._position = self._file.seek(offset, whence)
        return self._position

    def tell(self) -> int:
        return self._position

    def write(self, data: bytes) -> int:
        self._file.write(data)
        view = memoryview(data)
        while view:
            part, offset = divmod(self._position, self._part_size)
            crc, length = self._parts.get(part, (0, 0)) if offset else (0, 0)
            if offset != length:
                raise KeyferryError(f"Byte {self._position} of the download came before those ahead of it")
            now = view[: self._part_size - offset]
            self._parts[part] = (crc64(now, crc), length + len(now))
            self._position += len(now)
            view = view[len(now) :]
        return len(data)

    @property
    def size(self) -> int:
        return sum(length for _crc, length in self._parts.values())

    def crc64(self) -> int:
        total = 0
        for part in sorted(self._parts):
            crc, length = self._parts[part]
            total = combine(total, crc, length)
        return total


class _Watcher(BaseSubscriber):
    """Tells the transfer manager what is known of the object, and tells I(progress) how far it is."""

    def __init__(self, size: int, etag: str | None, progress: Progress) -> None:
        self._size = size
        self._etag = etag
        self._progress = progress
        self._done = 0
        # Each part tells its progress from a thread of its own.
        self._lock = threading.Lock()

    def on_queued(self, future: t.Any, **kwargs: t.Any) -> None:
        future.meta.provide_transfer_size(self._size)
        # Ranged reads then ask for this very object (If-Match); an s3transfer that is too old for it checks nothing.
        if self._etag and hasattr(future.meta, "provide_object_etag"):
            future.meta.provide_object_etag(self._etag)

    def on_progress(self, future: t.Any, bytes_transferred: int, **kwargs: t.Any) -> None:
        with self._lock:
            self._done += bytes_transferred
            self._progress(self._done, self._done)


def size_of(client: t.Any, bucket: str, key: str) -> int | None:
    """The bytes of an object, None when there is none."""
    found = head(client, bucket, key)
    return found["ContentLength"] if found else None


def head(client: t.Any, bucket: str, key: str) -> dict[str, t.Any] | None:
    """What S3 says of an object (the reply of HeadObject), None when there is none.

    Raises KeyferryError when the bucket does not exist or the object may not be read.
    """
    with aws_errors(f"look at s3://{bucket}/{key}"):
        try:
            return client.head_object(Bucket=bucket, Key=key)
        except ClientError as error:
            if error_code(error) not in NOT_FOUND_CODES:
                raise
    require_bucket(client, bucket)
    return None


def require_bucket(client: t.Any, bucket: str) -> dict[str, t.Any]:
    """Give back the reply of HeadBucket. Raises KeyferryError when the bucket does not exist or is closed to us."""
    with aws_errors(f"look at the bucket {bucket}"):
        try:
            return client.head_bucket(Bucket=bucket)
        except ClientError as error:
            if error_code(error) in NOT_FOUND_CODES | {"NoSuchBucket"}:
                raise KeyferryError(f"The bucket {bucket} does not exist. Create it, or correct its name.") from error
            if error_code(error) in DENIED_CODES:
                raise KeyferryError(
                    f"The bucket {bucket} may not be read: either it belongs to another account, or these credentials"
                    f" lack s3:ListBucket on arn:aws:s3:::{bucket}.",
                    error_code=error_code(error),
                ) from error
            raise


def get(
    client: t.Any,
    bucket: str,
    key: str,
    path: Path,
    tuning: Tuning,
    progress: Progress = silent,
) -> dict[str, t.Any]:
    """Bring an object to I(path), and give back what is there and whether it is C(changed).

    The bytes go to C(path.part) beside it, which takes the name only when they are complete, checked and on the disk.
    An RDB whose own CRC-64 does not match, a full disk, and an object that changes meanwhile raise KeyferryError.
    """
    remote, local = _both_ends(client, bucket, key, path)
    if local:
        return _unchanged(local)
    start = time.monotonic()
    # A snapshot holds everything that the database holds: this is for the eyes of its owner only.
    file = PartFile(str(path))
    try:
        # What a killed run has left takes no room any more.
        require_space(path, remote["ContentLength"])
        content = _download(client, bucket, key, file, remote, tuning, progress)
        _check_metadata(content, remote, f"s3://{bucket}/{key}")
        file.commit()
    finally:
        file.discard()
    return {"changed": True, **asdict(content), "elapsed": time.monotonic() - start}


def look_before_get(client: t.Any, bucket: str, key: str, path: Path) -> dict[str, t.Any]:
    """Give back what get() would where the file is there already, else C(changed) and the bytes that would come."""
    remote, local = _both_ends(client, bucket, key, path)
    if local:
        return _unchanged(local)
    require_space(path, remote["ContentLength"])
    return {"changed": True, "size": remote["ContentLength"]}


def _both_ends(client: t.Any, bucket: str, key: str, path: Path) -> tuple[dict[str, t.Any], Content | None]:
    """What S3 says of an object, and what is at I(path) if it surely is that already. Raises where it cannot be."""
    remote = head(client, bucket, key)
    if remote is None:
        raise KeyferryError(f"There is no object {key} in the bucket {bucket}.")
    if path.is_dir():
        raise KeyferryError(f"{path} is a directory: path must name the file to write.")
    if not path.parent.is_dir():
        raise KeyferryError(f"The directory {path.parent} does not exist: create it first.")
    return remote, _unchanged_copy(client, bucket, key, path, remote)


def _unchanged(content: Content) -> dict[str, t.Any]:
    return {"changed": False, **asdict(content), "elapsed": 0.0}


def put(
    client: t.Any,
    bucket: str,
    key: str,
    path: Path,
    tuning: Tuning,
    encryption: str | None = None,
    check: bool = False,
    progress: Progress = silent,
) -> dict[str, t.Any]:
    """Bring a file to S3, where it appears only whole, and give back what is there and whether it is C(changed).

    Its CRC-64 goes with it as metadata, by which the next put and get know it. An RDB that is not intact is refused.
    """
    if not path.is_file():
        raise KeyferryError(f"There is no file {path} to upload.")
    before = path.stat()
    content = examine(path)
    remote = head(client, bucket, key)
    if remote and _same(content, remote) and encryption in (None, remote.get("ServerSideEncryption")):
        return _unchanged(content)
    if check:
        return {"changed": True, **asdict(content)}
    extra = {"Metadata": {CRC64_METADATA: content.crc64}, "ChecksumAlgorithm": "CRC32"}
    if encryption:
        extra["ServerSideEncryption"] = encryption
    start = time.monotonic()
    with _transfer_errors(f"upload {path} to s3://{bucket}/{key}"), TransferManager(client, tuning.config()) as manager:
        watcher = _Watcher(content.size, None, progress)
        manager.upload(str(path), bucket, key, extra_args=extra, subscribers=[watcher]).result()
    after = path.stat()
    stored = head(client, bucket, key)
    if (before.st_mtime_ns, before.st_size) != (after.st_mtime_ns, after.st_size):
        raise KeyferryError(f"{path} was changed while it was uploaded: s3://{bucket}/{key} cannot be trusted.")
    if not stored or not _same(content, stored):
        raise KeyferryError(
            f"s3://{bucket}/{key} is not what was uploaded from {path}: something else wrote it meanwhile."
        )
    return {"changed": True, **asdict(content), "elapsed": time.monotonic() - start}


def require_space(path: Path, needed: int) -> None:
    """Raise KeyferryError unless the file system of I(path) has room for I(needed) bytes."""
    free = free_bytes(str(path))
    if free < needed:
        mount = path.parent.resolve()
        while not mount.is_mount():
            mount = mount.parent
        raise KeyferryError(
            f"Not enough room for {path}: {needed} bytes are needed. {free} bytes are free on the file system mounted"
            f" at {mount}."
        )


def _unchanged_copy(client: t.Any, bucket: str, key: str, path: Path, remote: dict[str, t.Any]) -> Content | None:
    """What the file holds if it surely is the object already, else None."""
    if not path.is_file() or path.stat().st_size != remote["ContentLength"]:
        return None
    try:
        local = examine(path)
    except KeyferryError:
        return None
    if CRC64_METADATA in remote.get("Metadata", {}):
        return local if _same(local, remote) else None
    if local.rdb_checksum != "verified":
        return None
    stored = int.from_bytes(trailer(client, bucket, key), "little")
    return local if f"{stored:016x}" == local.crc64 else None


def trailer(client: t.Any, bucket: str, key: str) -> bytes:
    """The last bytes of an object, which of an RDB are its CRC-64, low byte first."""
    with aws_errors(f"read the end of s3://{bucket}/{key}"):
        reply = client.get_object(Bucket=bucket, Key=key, Range=f"bytes=-{CRC_BYTES}")
        return reply["Body"].read()


def _same(content: Content, remote: dict[str, t.Any]) -> bool:
    stored = remote.get("Metadata", {}).get(CRC64_METADATA)
    return (content.size, content.crc64) == (remote["ContentLength"], stored)


def _check_metadata(content: Content, remote: dict[str, t.Any], name: str) -> None:
    stored = remote.get("Metadata", {}).get(CRC64_METADATA, content.crc64)
    if stored != content.crc64:
        raise KeyferryError(
            f"{name} is damaged: its CRC-64 is {content.crc64}, but {stored} was stored with it when it was uploaded."
        )


def _download(
    client: t.Any,
    bucket: str,
    key: str,
    file: PartFile,
    remote: dict[str, t.Any],
    tuning: Tuning,
    progress: Progress,
) -> Content:
    name = f"s3://{bucket}/{key}"
    target = ChecksummedFile(file, tuning.part_size)
    with _transfer_errors(f"download {name}"), TransferManager(client, tuning.config()) as manager:
        watcher = _Watcher(remote["ContentLength"], remote.get("ETag"), progress)
        # By its ETag, not by its version: to read that takes a right of its own (s3:GetObjectVersion).
        manager.download(bucket, key, target, subscribers=[watcher]).result()
    if target.size != remote["ContentLength"]:
        raise KeyferryError(f"Only {target.size} of the {remote['ContentLength']} bytes of {name} came.")
    head_bytes = os.pread(file.fileno(), HEADER_BYTES, 0)
    tail = os.pread(file.fileno(), END_BYTES, max(target.size - END_BYTES, 0))
    return judge(target.size, head_bytes, tail, target.crc64(), name)


@contextlib.contextmanager
def _transfer_errors(doing: str) -> t.Iterator[None]:
    with aws_errors(doing):
        try:
            yield
        except RetriesExceededError as error:
            raise KeyferryError(f"Could not {doing}, tried again and again: {error.last_exception}") from error
        except (S3DownloadFailedError, S3ValidationError) as error:
            raise KeyferryError(f"Could not {doing}: the object was replaced meanwhile. Run it again.") from error
