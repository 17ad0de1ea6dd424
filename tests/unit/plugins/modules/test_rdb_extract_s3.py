# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""rdb_extract from S3 and to S3, against the lab's S3: an object appears whole and right, or not at all."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from botocore.client import BaseClient
from support.modules import LabModules, run_module
from unit.plugins.module_utils.rdb_files import sealed, select, string

from ansible_collections.keyferry.redis.plugins.module_utils import extract, s3_stream, s3_upload
from ansible_collections.keyferry.redis.plugins.module_utils.crc64 import crc64
from ansible_collections.keyferry.redis.plugins.modules import rdb_extract
from lab.nodes import RedisServer, wait_for

BUCKET = "keyferry-exports"
SRC = f"s3://{BUCKET}/in.rdb"
DEST = f"s3://{BUCKET}/out.rdb"
KIB = 1024
MIB = 1024 * KIB
# Twelve of them are less than the large values.
SMALL_PART = 256 * KIB
Run = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def rdb(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three databases; DB 1 is of two upload parts and a bit, with values larger than the window of the tests."""
    noise = random.Random(0)
    with RedisServer(tmp_path_factory.mktemp("rdb"), "redis") as server:
        for db, keys in ((0, 3000), (1, 30_000), (3, 3000)):
            pipe = server.client(db=db).pipeline(transaction=False)
            for number in range(keys):
                pipe.set(f"key:{db}:{number}", noise.randbytes(noise.randrange(100)), px=10**10 if number % 3 else None)
            pipe.execute()
        with server.client(db=1) as client:
            client.set("large:string", noise.randbytes(6 * MIB))
            client.hset("large:hash", mapping={f"field:{number}": noise.randbytes(200) for number in range(20_000)})
            client.function_load("#!lua name=mylib\nredis.register_function('f', function() return 1 end)")
            client.save()
        kept = tmp_path_factory.mktemp("kept") / "in.rdb"
        server.rdb.rename(kept)
    return kept


@pytest.fixture(scope="module")
def expected(rdb: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """What rdb_extract makes of the file."""
    dest = tmp_path_factory.mktemp("expected") / "out.rdb"
    assert run_module("rdb_extract", src=str(rdb), dest=str(dest), db=1)["changed"]
    return dest.read_bytes()


@pytest.fixture(autouse=True)
def bucket(aws: LabModules, rdb: Path) -> Iterator[None]:
    """The source is there, and nothing else; no fault and no upload is left over."""
    s3 = aws.client("s3")
    s3.put_object(Bucket=BUCKET, Key="in.rdb", Body=rdb.read_bytes())
    yield
    aws.forget_faults()
    for upload in s3.list_multipart_uploads(Bucket=BUCKET).get("Uploads", []):
        s3.abort_multipart_upload(Bucket=BUCKET, Key=upload["Key"], UploadId=upload["UploadId"])
    for found in s3.list_objects_v2(Bucket=BUCKET).get("Contents", []):
        s3.delete_object(Bucket=BUCKET, Key=found["Key"])


@pytest.fixture
def run(aws: LabModules, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the module with parts so small that even these files are many."""
    monkeypatch.setattr(s3_stream, "PART", SMALL_PART)

    def call(**args: Any) -> dict[str, Any]:
        named = {"src": SRC, "dest": DEST, "db": 1} if "extract" not in args else {"src": SRC}
        return aws.run("rdb_extract", **{**named, **args})

    return call


def fetch(aws: LabModules, key: str = "out.rdb") -> bytes | None:
    s3 = aws.client("s3")
    with contextlib.suppress(s3.exceptions.NoSuchKey):
        return bytes(s3.get_object(Bucket=BUCKET, Key=key)["Body"].read())
    return None


def uploads(aws: LabModules) -> list[Any]:
    return list(aws.client("s3").list_multipart_uploads(Bucket=BUCKET).get("Uploads", []))


def nothing_is_left(aws: LabModules) -> bool:
    return fetch(aws) is None and not uploads(aws)


# -- what is written ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("part", [SMALL_PART, 3 * MIB])
def test_from_s3_to_s3_comes_the_same_as_from_file_to_file(
    run: Run, aws: LabModules, expected: bytes, workers: int, part: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_stream, "PART", part)
    result = run(workers=workers)
    assert not result.get("failed"), result
    assert fetch(aws) == expected
    assert (result["changed"], result["dest"], result["keys"]) == (True, DEST, 30_002)
    assert result["types"] == {"hash": 1, "string": 30_001}
    assert not uploads(aws)
    found = aws.client("s3").head_object(Bucket=BUCKET, Key="out.rdb")
    assert found["ServerSideEncryption"] == "AES256"


def test_either_end_may_be_a_file(run: Run, aws: LabModules, rdb: Path, expected: bytes, tmp_path: Path) -> None:
    dest = tmp_path / "out.rdb"
    assert run(dest=str(dest))["changed"]
    assert dest.read_bytes() == expected
    assert not run(dest=str(dest))["changed"]
    dest.write_bytes(b"something else")
    assert run(dest=str(dest))["changed"]
    assert dest.read_bytes() == expected
    assert run(src=str(rdb))["changed"]
    assert fetch(aws) == expected
    assert {path.name for path in tmp_path.iterdir()} == {"out.rdb"}


def test_several_databases_are_cut_in_one_pass(run: Run, aws: LabModules, expected: bytes, tmp_path: Path) -> None:
    parts = [
        {"db": 3, "dest": f"s3://{BUCKET}/3.rdb", "target_db": 2},
        {"db": 1, "dest": DEST},
        {"db": 0, "dest": str(tmp_path / "0.rdb")},
    ]
    result = run(extract=parts)
    assert [each["keys"] for each in result["extracted"]] == [3000, 30_002, 3000]
    assert fetch(aws) == expected
    written = fetch(aws, "3.rdb")
    assert written and crc64(written) == 0
    assert (tmp_path / "0.rdb").stat().st_size == result["extracted"][2]["bytes"]


def test_check_mode_foresees_and_the_second_run_changes_nothing(run: Run, aws: LabModules, expected: bytes) -> None:
    foreseen = run(_check=True)
    assert foreseen["changed"] and nothing_is_left(aws)
    first, again = run(), run()
    for fact in ("sha256", "bytes", "keys"):
        assert foreseen[fact] == first[fact] == again[fact]
    assert (first["changed"], again["changed"], run(_check=True)["changed"]) == (True, False, False)
    assert not uploads(aws)
    assert run(server_side_encryption="aws:kms")["changed"]
    assert run(force=True)["changed"]
    aws.client("s3").put_object(Bucket=BUCKET, Key="out.rdb", Body=b"\x01" + expected[1:-8] + bytes(8))
    assert run()["changed"]
    assert fetch(aws) == expected


@pytest.mark.parametrize("where", ["S3", "here"])
def test_it_tells_how_far_it_is(run: Run, rdb: Path, tmp_path: Path, where: str) -> None:
    assert run(src=SRC if where == "S3" else str(rdb), progress_file=str(tmp_path / "progress"))["changed"]
    told = json.loads((tmp_path / "progress").read_text())
    size = rdb.stat().st_size
    assert (told["state"], told["done"], told["total"], told["seconds_left"]) == ("done", size, size, 0)
    assert run(src=f"{SRC}.none", progress_file=str(tmp_path / "progress"))["failed"]


# -- what goes wrong on the way ----------------------------------------------------------------------------------------


def test_passing_faults_are_tried_again(run: Run, aws: LabModules, expected: bytes) -> None:
    get, put = "s3:GET /keyferry-exports/in.rdb", "s3:PUT /keyferry-exports/out.rdb"
    aws.order(
        {"op": get, "code": "SlowDown", "status": 503, "times": 2},
        {"op": get, "reset": True},
        {"op": get, "truncate": 1000, "times": 3},
        {"op": get, "truncate": 0},
        {"op": put, "code": "SlowDown", "status": 503},
        {"op": put, "reset": True},
    )
    result = run()
    assert not result.get("failed"), result
    assert fetch(aws) == expected


@pytest.fixture
def at_the_last_request(aws: LabModules, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`at_the_last_request(code=...)` orders what the request meets that completes the upload."""

    def order(**fault: Any) -> None:
        settle = s3_upload.Upload._settle

        def settle_and_order(self: Any) -> None:
            settle(self)
            if self._parts and not self._sending:
                aws.order({"op": "s3:POST /keyferry-exports/out.rdb", **fault})

        monkeypatch.setattr(s3_upload.Upload, "_settle", settle_and_order)

    return order


def test_a_lost_answer_to_the_last_request_is_no_failure(
    run: Run, aws: LabModules, expected: bytes, at_the_last_request: Callable[..., None]
) -> None:
    at_the_last_request(after=True)
    result = run()
    assert not result.get("failed"), result
    assert fetch(aws) == expected


def test_an_older_object_of_the_same_size_is_not_taken_for_the_new_one(
    run: Run, aws: LabModules, expected: bytes, at_the_last_request: Callable[..., None]
) -> None:
    older = expected[:-8] + bytes(8)
    aws.client("s3").put_object(Bucket=BUCKET, Key="out.rdb", Body=older)
    # Somebody else has ended the upload.
    at_the_last_request(code="NoSuchUpload", status=404)
    result = run()
    assert result["failed"] and "is not what was written" in result["msg"]
    assert fetch(aws) == older


@pytest.mark.parametrize("fault", [{"truncate": 1000}, {"reset": True}, {"code": "SlowDown", "status": 503}])
def test_lasting_faults_leave_nothing(
    run: Run, aws: LabModules, fault: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_stream, "LONGEST_PAUSE", 0.01)
    monkeypatch.setattr(s3_stream, "TRIES", 2)
    monkeypatch.setattr(s3_stream, "PART", 3 * MIB)
    turns = itertools.count(1)
    read_into = s3_stream._Object.read_into

    def read_until_it_breaks(self: Any, view: memoryview, offset: int) -> None:
        if next(turns) == 2:
            aws.order({"op": "s3:GET /keyferry-exports/in.rdb", "times": 0, **fault})
        read_into(self, view, offset)

    monkeypatch.setattr(s3_stream._Object, "read_into", read_until_it_breaks)
    result = run()
    assert result["failed"] and "Could not read s3://keyferry-exports/in.rdb at byte" in result["msg"]
    assert nothing_is_left(aws)


@pytest.mark.parametrize("workers", [1, 2])
def test_an_object_that_is_replaced_meanwhile_is_noticed(
    run: Run, aws: LabModules, rdb: Path, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_into = s3_stream._Object.read_into
    data = rdb.read_bytes()

    def read_and_replace(self: Any, view: memoryview, offset: int) -> None:
        if offset == 20 * s3_stream.PART:
            aws.client("s3").put_object(Bucket=BUCKET, Key="in.rdb", Body=data[:-1] + b"x")
        read_into(self, view, offset)

    monkeypatch.setattr(s3_stream._Object, "read_into", read_and_replace)
    result = run(workers=workers)
    assert result["failed"] and "was replaced or deleted while it was read" in result["msg"]
    assert nothing_is_left(aws)


def test_what_fails_beside_the_walk_ends_it(run: Run, aws: LabModules, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_source: Any, _index: int) -> None:
        raise OSError("no such luck")

    monkeypatch.setattr(s3_stream.S3Source, "_punch", fail)
    result = run()
    assert result["failed"] and "no such luck" in result["msg"]
    assert nothing_is_left(aws)


@pytest.mark.parametrize("damage", ["cut", "cut in the checksum", "altered", "wrong checksum", "more behind it"])
def test_a_damaged_source_leaves_nothing(run: Run, aws: LabModules, rdb: Path, damage: str) -> None:
    data = rdb.read_bytes()
    middle = len(data) // 2
    body = {
        "cut": data[: len(data) - 100_000],
        "cut in the checksum": data[:-3],
        "altered": data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :],
        "wrong checksum": data[:-1] + bytes([data[-1] ^ 1]),
        "more behind it": data + data,
    }[damage]
    aws.client("s3").put_object(Bucket=BUCKET, Key="in.rdb", Body=body)
    for workers in (1, 3):
        result = run(workers=workers)
        assert result["failed"] and SRC in result["msg"], result
        assert result["offset"] > 0
        assert nothing_is_left(aws)


@pytest.mark.parametrize("behind", [1, 8])
def test_a_checksum_that_comes_last_is_waited_for(
    run: Run, aws: LabModules, behind: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last part holds nothing but I(behind) bytes of it."""
    head = len(sealed(select(1), string(b"k", b"x" * MIB)))
    body = sealed(select(1), string(b"k", b"x" * (MIB + 2 * SMALL_PART - head % SMALL_PART + behind)))
    assert len(body) % SMALL_PART == behind
    read_into = s3_stream._Object.read_into

    def read_the_last_late(self: Any, view: memoryview, offset: int) -> None:
        if offset == len(body) - behind:
            time.sleep(0.3)
        read_into(self, view, offset)

    monkeypatch.setattr(s3_stream._Object, "read_into", read_the_last_late)
    for end, is_whole in ((body[-1:], True), (bytes([body[-1] ^ 1]), False)):
        aws.client("s3").put_object(Bucket=BUCKET, Key="in.rdb", Body=body[:-1] + end)
        result = run(dest=str(tmp_path / "out.rdb"))
        assert is_whole is not result.get("failed", False), result


def test_an_object_with_versions_is_read_without_a_right_to_these(
    run: Run, aws: LabModules, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3 = aws.client("s3")
    s3.put_bucket_versioning(Bucket=BUCKET, VersioningConfiguration={"Status": "Enabled"})
    assert s3.put_object(Bucket=BUCKET, Key="in.rdb", Body=sealed(select(1), string(b"k", b"v")))["VersionId"]
    asked: list[dict[str, Any]] = []
    call = BaseClient._make_api_call

    def note(self: Any, operation: str, arguments: dict[str, Any]) -> Any:
        asked.append({"operation": operation, **arguments})
        return call(self, operation, arguments)

    monkeypatch.setattr(BaseClient, "_make_api_call", note)
    try:
        assert "failed" not in run()
    finally:
        s3.put_bucket_versioning(Bucket=BUCKET, VersioningConfiguration={"Status": "Suspended"})
    reads = [each for each in asked if each["operation"] == "GetObject"]
    assert reads and not [each for each in reads if "VersionId" in each]


@pytest.mark.parametrize("method", ["POST", "PUT"])
def test_without_the_right_to_put_nothing_is_left(run: Run, aws: LabModules, method: str) -> None:
    aws.order({"op": f"s3:{method} /keyferry-exports/out.rdb", "code": "AccessDenied", "status": 403, "times": 0})
    result = run()
    assert result["failed"] and result["error_code"] == "AccessDenied" and DEST in result["msg"]
    assert nothing_is_left(aws)


def test_what_cannot_work_is_told(run: Run, monkeypatch: pytest.MonkeyPatch, rdb: Path) -> None:
    for args, message in (
        ({"dest": SRC}, "is the source itself"),
        ({"src": f"s3://{BUCKET}/none"}, "There is no object none"),
        ({"dest": "s3://there-is-none/x"}, "The bucket there-is-none does not exist"),
        ({"dest": f"s3://{BUCKET}"}, "write it as s3://BUCKET/KEY"),
        ({"db": 4}, "has no keys in database 4"),
        ({"extract": [{"db": 1, "dest": DEST}] * 2}, "destination of two"),
    ):
        result = run(**args)
        assert result["failed"] and message in result["msg"], result
    monkeypatch.setattr(rdb_extract, "HAS_BOTO3", False)
    missing = run()
    assert missing["failed"] and "botocore and boto3" in missing["msg"]
    assert "failed" not in run_module("rdb_extract", src=str(rdb), dest=str(rdb.with_name("local")), db=1)


def test_a_file_that_has_no_room_is_not_begun(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extract, "free_bytes", lambda _name: 1000)
    result = run(dest=str(tmp_path / "out.rdb"))
    assert result["failed"] and "No space for" in result["msg"]
    assert not list(tmp_path.iterdir())


# -- a run that is ended -----------------------------------------------------------------------------------------------


def _begin(aws: LabModules) -> subprocess.Popen[str]:
    """A run in a process of its own, which hangs on the answer to its first upload part."""
    aws.order({"op": "s3:PUT /keyferry-exports/out.rdb", "late": 8})
    program = (
        "import json, sys; from support.modules import run_module;"
        "print(json.dumps(run_module('rdb_extract', **json.load(sys.stdin))))"
    )
    options = {key: aws.info[key] for key in ("endpoint_url", "region", "access_key", "secret_key")}
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        start_new_session=True,
    )
    arguments = process.stdin
    assert arguments
    json.dump({"src": SRC, "dest": DEST, "db": 1, "workers": 2, **options}, arguments)
    arguments.close()
    # So that communicate() does not flush what is closed.
    process.stdin = None
    wait_for(lambda: uploads(aws), "the upload to begin")
    return process


def _group_is_gone(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return True
    return False


def test_ended_by_sigterm_it_leaves_nothing(aws: LabModules) -> None:
    process = _begin(aws)
    process.send_signal(signal.SIGTERM)
    output, _errors = process.communicate(timeout=60)
    result = json.loads(output)
    assert result["failed"] and "Ended by SIGTERM" in result["msg"]
    assert nothing_is_left(aws)


def test_killed_it_leaves_no_object_and_the_next_run_ends_its_upload(
    run: Run, aws: LabModules, expected: bytes
) -> None:
    process = _begin(aws)
    process.kill()
    process.communicate(timeout=60)
    wait_for(lambda: _group_is_gone(process.pid), "the processes that walk to end with their parent")
    assert fetch(aws) is None
    assert uploads(aws)
    aws.forget_faults()
    aws.client("s3").create_multipart_upload(Bucket=BUCKET, Key="out.rdb.other")
    assert run()["changed"]
    assert fetch(aws) == expected
    assert [upload["Key"] for upload in uploads(aws)] == ["out.rdb.other"]
