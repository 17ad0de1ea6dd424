# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""An object that appears when it is whole: parts that S3 keeps apart until then."""

from __future__ import annotations

import contextlib
import io
import typing as t
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from ansible_collections.keyferry.redis.plugins.module_utils import s3
from ansible_collections.keyferry.redis.plugins.module_utils.aws import aws_errors, done_already
from ansible_collections.keyferry.redis.plugins.module_utils.ending import LOOK_S, raise_if_ended
from ansible_collections.keyferry.redis.plugins.module_utils.errors import KeyferryError
from ansible_collections.keyferry.redis.plugins.module_utils.rdb_bytes import CRC_BYTES
from ansible_collections.keyferry.redis.plugins.module_utils.rdb_pass import RdbFile

# Of an upload: S3 takes parts of 5 MiB or more, 10,000 at most; so many bytes are on their way at a time.
LEAST_UPLOAD_PART = 5 << 20
MOST_UPLOAD_PARTS = 9_000
UPLOADING = 30 << 20

Facts = dict[str, t.Any]


class Upload:
    """The object that appears when it is whole: parts that S3 keeps apart until then."""

    def __init__(self, client: t.Any, bucket: str, key: str, encryption: str | None, most: int) -> None:
        self._client = client
        self._name = f"s3://{bucket}/{key}"
        self._place = {"Bucket": bucket, "Key": key}
        self._options = {"ChecksumAlgorithm": "CRC32"}
        if encryption:
            self._options["ServerSideEncryption"] = encryption
        self._part_bytes = max(LEAST_UPLOAD_PART, -(-most // MOST_UPLOAD_PARTS))
        self._parallel = max(1, UPLOADING // self._part_bytes - 1)
        self._buffer = io.BytesIO()
        self._bytes = 0
        self._end = b""
        self._id: str | None = None
        self._pool: ThreadPoolExecutor | None = None
        self._sending: set[Future[None]] = set()
        self._parts: dict[int, Facts] = {}
        self._begun = 0

    def write(self, data: bytes | memoryview) -> None:
        self._buffer.write(data)
        self._bytes += len(data)
        self._end = (self._end + bytes(data[-CRC_BYTES:]))[-CRC_BYTES:]
        if self._buffer.tell() >= self._part_bytes:
            self._send()

    def copy(self, source: RdbFile, start: int, end: int) -> None:
        while start < end:
            size = min(end - start, self._part_bytes - self._buffer.tell())
            for block in source.blocks(start, start + size):
                self.write(block)
            start += size

    def _send(self) -> None:
        """Let the buffer go as the next part, when there is room for one more under way."""
        if not self._pool:
            self._id = self._call("begin", "create_multipart_upload", **self._options)["UploadId"]
            self._pool = ThreadPoolExecutor(self._parallel, thread_name_prefix="upload")
        while len(self._sending) >= self._parallel:
            self._settle()
        self._begun += 1
        self._sending.add(self._pool.submit(self._send_part, self._begun, self._buffer.getvalue()))
        self._buffer = io.BytesIO()

    def _send_part(self, number: int, body: bytes) -> None:
        reply = self._call(
            "write", "upload_part", UploadId=self._id, PartNumber=number, Body=body, ChecksumAlgorithm="CRC32"
        )
        known = {name: reply[name] for name in ("ETag", "ChecksumCRC32") if name in reply}
        self._parts[number] = {"PartNumber": number, **known}

    def _settle(self) -> None:
        while not (settled := wait(self._sending, LOOK_S, FIRST_COMPLETED)).done:
            raise_if_ended()
        done, self._sending = settled
        for each in done:
            each.result()

    def _call(self, doing: str, operation: str, **request: t.Any) -> Facts:
        with aws_errors(f"{doing} {self._name}"):
            return getattr(self._client, operation)(**self._place, **request)

    def commit(self) -> None:
        if not self._pool:
            self._call("write", "put_object", Body=self._buffer.getvalue(), **self._options)
            self._buffer = io.BytesIO()
            self._require_whole()
            self._abort_stale()
            return
        if self._buffer.tell():
            self._send()
        while self._sending:
            self._settle()
        parts = [self._parts[number] for number in sorted(self._parts)]
        # The object tells whether it was completed already.
        with done_already("NoSuchUpload"):
            self._call("complete", "complete_multipart_upload", UploadId=self._id, MultipartUpload={"Parts": parts})
        self._id = None
        self._require_whole()
        self._abort_stale()

    def _abort_stale(self) -> None:
        """End uploads of this name that were begun before: of a run that was killed, and superseded now."""
        with contextlib.suppress(KeyferryError), aws_errors(f"list the uploads of {self._name}"):
            place = {"Bucket": self._place["Bucket"], "Prefix": self._place["Key"]}
            for each in self._client.list_multipart_uploads(**place).get("Uploads", []):
                if each["Key"] == self._place["Key"]:
                    self._call("abort an older upload of", "abort_multipart_upload", UploadId=each["UploadId"])

    def _require_whole(self) -> None:
        """By size and CRC-64: an older object may be as large."""
        place = (self._client, self._place["Bucket"], self._place["Key"])
        found = s3.head(*place)
        if not found or found["ContentLength"] != self._bytes or s3.trailer(*place) != self._end:
            raise KeyferryError(
                f"{self._name} is not what was written ({self._bytes} bytes): something else wrote or deleted it"
                " meanwhile. Run it again"
            )

    def discard(self) -> None:
        if self._pool:
            for each in self._sending:
                each.cancel()
            # A part that arrives after the end of its upload would stay in the bucket.
            self._pool.shutdown(wait=True)
        if self._id:
            with contextlib.suppress(KeyferryError):
                self._call("abort", "abort_multipart_upload", UploadId=self._id)
            self._id = None
