# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ranges of S3 objects. moto reads a whole object for each range of it; this reads the range alone."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import parse_qs

from moto.s3.models import s3_backends

Environ = dict[str, Any]
Application = Callable[[Environ, Callable[..., Any]], Iterable[bytes]]


def with_ranges(moto: Application, account: str) -> Application:
    """moto, with its answers to GET of a range of an object given from that range."""

    def application(environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        path = re.fullmatch(r"/([^/]+)/(.+)", environ["PATH_INFO"])
        if environ["REQUEST_METHOD"] != "GET" or "HTTP_RANGE" not in environ or not path:
            return moto(environ, start_response)
        answer: list[Any] = []
        b"".join(moto({**environ, "REQUEST_METHOD": "HEAD"}, lambda *args: answer.append(args)))
        status, headers, *more = answer[0]
        span = re.fullmatch(r"bytes (\d+)-(\d+)/\d+", dict(headers).get("content-range", ""))
        if not status.startswith("206") or not span:
            # An error has a text, which is moto's.
            return moto(environ, start_response)
        version = parse_qs(environ.get("QUERY_STRING", "")).get("versionId", [None])[0]
        start_response(status, headers, *more)
        return [_read(account, *path.groups(), version, int(span[1]), int(span[2]) + 1)]

    return application


def _read(account: str, bucket: str, key: str, version: str | None, start: int, end: int) -> bytes:
    found = s3_backends[account]["aws"].get_object(bucket, key, version)
    with found.lock:
        found._value_buffer.seek(start)
        return bytes(found._value_buffer.read(end - start))
