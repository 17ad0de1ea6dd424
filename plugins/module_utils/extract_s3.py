# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""S3 as source and destination of extract: walked as it arrives, uploaded as it is written."""

from __future__ import annotations

import re
import typing as t

from ansible_collections.keyferry.redis.plugins.module_utils import s3
from ansible_collections.keyferry.redis.plugins.module_utils.errors import KeyferryError
from ansible_collections.keyferry.redis.plugins.module_utils.extract import Cut
from ansible_collections.keyferry.redis.plugins.module_utils.rdb_bytes import CRC_BYTES
from ansible_collections.keyferry.redis.plugins.module_utils.rdb_pass import RdbFile
from ansible_collections.keyferry.redis.plugins.module_utils.s3_stream import PARALLEL, S3Source
from ansible_collections.keyferry.redis.plugins.module_utils.s3_upload import Upload

URL = re.compile(r"s3://(?P<bucket>[a-z0-9][a-z0-9.\-]*)/(?P<key>.+)")
# The parts on their way, to here and from here, and the rest.
CONNECTIONS = 2 * PARALLEL


class S3:
    """What extract asks about C(s3://) names; I(encryption) is how S3 is to encrypt what is written there."""

    def __init__(self, client: t.Any, encryption: str | None) -> None:
        self._client = client
        self._encryption = encryption

    def is_url(self, name: str) -> bool:
        return is_url(name)

    def size(self, url: str) -> int | None:
        return s3.size_of(self._client, *split_url(url))

    def source(self, url: str) -> S3Source:
        return S3Source(self._client, *split_url(url))

    def destination(self, url: str) -> S3Destination:
        return S3Destination(self._client, url, self._encryption)


def is_url(name: str) -> bool:
    return name.startswith("s3://")


def split_url(url: str) -> tuple[str, str]:
    """Give back bucket and key."""
    match = URL.fullmatch(url)
    if not match:
        raise KeyferryError(f"{url} is not an S3 object; write it as s3://BUCKET/KEY")
    return match["bucket"], match["key"]


class S3Destination:
    """An object of S3 that a new RDB is to be."""

    def __init__(self, client: t.Any, url: str, encryption: str | None) -> None:
        self.name = self.place = url
        self._client = client
        self._bucket, self._key = split_url(url)
        self._encryption = encryption

    def check(self, source: RdbFile) -> None:
        if isinstance(source, S3Source) and source.is_object(self._bucket, self._key):
            raise KeyferryError(f"{self.name} is the source itself, which is only read: give another destination")
        s3.require_bucket(self._client, self._bucket)

    def exists(self) -> bool:
        return s3.head(self._client, self._bucket, self._key) is not None

    def has_space(self, size: int) -> bool:
        return True

    def holds(self, cut: Cut) -> bool:
        """By its size and the CRC-64 that it ends with, as s3.get does; and it is encrypted as asked."""
        found = s3.head(self._client, self._bucket, self._key)
        if not found or found["ContentLength"] != cut.bytes:
            return False
        if self._encryption not in (None, found.get("ServerSideEncryption")):
            return False
        return s3.trailer(self._client, self._bucket, self._key) == cut.trailer[-CRC_BYTES:]

    def sink(self, most: int) -> Upload:
        return Upload(self._client, self._bucket, self._key, self._encryption, most)
