# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""s3_transfer against the lab's S3: what arrives is whole, or nothing arrives."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.modules import LabModules

from ansible_collections.keyferry.redis.plugins.module_utils import s3
from ansible_collections.keyferry.redis.plugins.module_utils.crc64 import crc64
from ansible_collections.keyferry.redis.plugins.module_utils.errors import KeyferryError
from lab.nodes import RedisServer, free_port

BUCKET = "keyferry-exports"
MIB = 1024 * 1024
Run = Callable[..., dict[str, Any]]


@pytest.fixture
def run(aws: LabModules) -> Run:
    """Run the module with small parts, so that a few MiB are many of them."""

    def call(mode: str, key: str, path: Path, **args: Any) -> dict[str, Any]:
        options = {"bucket": BUCKET, "object": key, "path": str(path), "part_size_mb": 5, "parallel": 4}
        return aws.run("s3_transfer", mode=mode, **{**options, **args})

    return call


@pytest.fixture(scope="module")
def rdb(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """An RDB of a real server, of four parts."""
    with RedisServer(tmp_path_factory.mktemp("rdb"), "redis") as server:
        noise = random.Random(0)
        for number in range(17):
            server.client().set(f"key:{number}", noise.randbytes(MIB))
        server.client().save()
        return server.rdb.read_bytes()


def store(aws: LabModules, key: str, body: bytes, **args: Any) -> None:
    aws.client("s3").put_object(Bucket=BUCKET, Key=key, Body=body, **args)


def fetch(aws: LabModules, key: str) -> bytes:
    return bytes(aws.client("s3").get_object(Bucket=BUCKET, Key=key)["Body"].read())


def only_files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


class TestGet:
    def test_brings_an_rdb_once(self, run: Run, aws: LabModules, rdb: bytes, tmp_path: Path) -> None:
        store(aws, "get.rdb", rdb)
        path = tmp_path / "dump.rdb"
        checked = run("get", "get.rdb", path, _check=True)
        assert (checked["changed"], checked["size"], only_files(tmp_path)) == (True, len(rdb), {})
        first, again = run("get", "get.rdb", path), run("get", "get.rdb", path)
        assert only_files(tmp_path) == {"dump.rdb": rdb}
        assert path.stat().st_mode & 0o777 == 0o600
        assert (first["changed"], again["changed"]) == (True, False)
        for result in (first, again):
            assert result["crc64"] == f"{int.from_bytes(rdb[-8:], 'little'):016x}"
            assert (result["bucket"], result["object"], result["path"]) == (BUCKET, "get.rdb", str(path))
            assert (result["size"], result["rdb_version"], result["rdb_checksum"]) == (len(rdb), 10, "verified")

    def test_replaces_a_file_that_is_another(self, run: Run, aws: LabModules, rdb: bytes, tmp_path: Path) -> None:
        store(aws, "another.rdb", rdb)
        path = tmp_path / "dump.rdb"
        (tmp_path / "dump.rdb.part").write_bytes(b"left by a run that was killed")
        for wrong in (b"short", rdb[:-1] + b"x", b"x" * len(rdb)):
            path.write_bytes(wrong)
            assert run("get", "another.rdb", path)["changed"]
            assert only_files(tmp_path) == {"dump.rdb": rdb}

    @pytest.mark.parametrize("size", [0, 1, 5 * MIB - 1, 5 * MIB, 5 * MIB + 1])
    def test_brings_any_file_of_any_size(self, run: Run, aws: LabModules, tmp_path: Path, size: int) -> None:
        data = random.Random(size).randbytes(size)
        store(aws, f"any-{size}", data)
        result = run("get", f"any-{size}", tmp_path / "any")
        assert only_files(tmp_path) == {"any": data}
        assert (result["crc64"], result["rdb_version"]) == (f"{crc64(data):016x}", None)

    @pytest.mark.parametrize("damage", ["cut", "cut in the header", "altered"])
    def test_a_damaged_rdb_is_not_kept(
        self, run: Run, aws: LabModules, rdb: bytes, tmp_path: Path, damage: str
    ) -> None:
        altered = rdb[:1000] + bytes([rdb[1000] ^ 1]) + rdb[1001:]
        store(aws, "bad.rdb", {"cut": rdb[:-9], "cut in the header": rdb[:12], "altered": altered}[damage])
        (tmp_path / "dump.rdb").write_bytes(b"what was there")
        result = run("get", "bad.rdb", tmp_path / "dump.rdb")
        assert result["failed"] and "s3://keyferry-exports/bad.rdb is not a whole RDB file" in result["msg"]
        assert only_files(tmp_path) == {"dump.rdb": b"what was there"}

    def test_an_object_that_is_not_what_was_uploaded_is_not_kept(
        self, run: Run, aws: LabModules, tmp_path: Path
    ) -> None:
        store(aws, "forged", b"two", Metadata={s3.CRC64_METADATA: f"{crc64(b'one'):016x}"})
        result = run("get", "forged", tmp_path / "file")
        assert result["failed"] and "is damaged: its CRC-64 is" in result["msg"]
        assert only_files(tmp_path) == {}

    def test_an_rdb_without_a_checksum_is_taken(self, run: Run, aws: LabModules, tmp_path: Path) -> None:
        with RedisServer(tmp_path / "server", "redis", "--rdbchecksum", "no") as server:
            server.client().set("key", "value")
            server.client().save()
            store(aws, "no-checksum.rdb", server.rdb.read_bytes())
        result = run("get", "no-checksum.rdb", tmp_path / "dump.rdb")
        assert (result["changed"], result["rdb_version"], result["rdb_checksum"]) == (True, 10, "disabled")

    def test_an_rdb_of_valkey_is_known(self, run: Run, aws: LabModules, tmp_path: Path) -> None:
        with RedisServer(tmp_path / "server", "valkey") as server:
            server.client().set("key", "value")
            server.client().save()
            store(aws, "valkey.rdb", server.rdb.read_bytes())
        result = run("get", "valkey.rdb", tmp_path / "dump.rdb")
        assert (result["rdb_version"], result["rdb_checksum"]) == (80, "verified")

    def test_what_is_not_there_is_told(self, run: Run, tmp_path: Path) -> None:
        missing = run("get", "nothing", tmp_path / "file")
        assert missing["failed"] and "no object nothing in the bucket keyferry-exports" in missing["msg"]
        bucket = run("get", "nothing", tmp_path / "file", bucket="there-is-none")
        assert bucket["failed"] and "The bucket there-is-none does not exist" in bucket["msg"]

    def test_a_path_that_cannot_be_written_is_told(self, run: Run, aws: LabModules, tmp_path: Path) -> None:
        store(aws, "small", b"x")
        assert "is a directory" in run("get", "small", tmp_path)["msg"]
        assert "does not exist: create it" in run("get", "small", tmp_path / "no" / "file")["msg"]

    def test_a_wrong_endpoint_is_told(self, run: Run, tmp_path: Path) -> None:
        url = f"http://127.0.0.1:{free_port()}"
        config = {"retries": {"max_attempts": 1}}
        result = run("get", "small", tmp_path / "file", endpoint_url=url, aws_config=config)
        assert result["failed"] and url in result["msg"] and "Check endpoint_url" in result["msg"]

    def test_passing_faults_are_tried_again(self, run: Run, aws: LabModules, rdb: bytes, tmp_path: Path) -> None:
        store(aws, "again.rdb", rdb)
        get = "s3:GET /keyferry-exports/again.rdb"
        aws.order(
            {"op": get, "code": "SlowDown", "status": 503, "times": 2},
            {"op": get, "code": "InternalError", "status": 500},
            {"op": get, "reset": True},
        )
        assert run("get", "again.rdb", tmp_path / "dump.rdb")["changed"]
        assert only_files(tmp_path) == {"dump.rdb": rdb}

    def test_lasting_faults_leave_nothing(self, run: Run, aws: LabModules, rdb: bytes, tmp_path: Path) -> None:
        store(aws, "never.rdb", rdb)
        aws.order({"op": "s3:GET /keyferry-exports/never.rdb", "code": "InternalError", "status": 500, "times": 0})
        config = {"retries": {"max_attempts": 1}}
        result = run("get", "never.rdb", tmp_path / "dump.rdb", aws_config=config)
        assert result["failed"] and "Could not download s3://keyferry-exports/never.rdb" in result["msg"]
        assert only_files(tmp_path) == {}

    def test_a_full_disk_leaves_what_was_there(self, aws: LabModules, rdb: bytes, tmp_path: Path) -> None:
        store(aws, "large.rdb", rdb)
        (tmp_path / "dump.rdb").write_bytes(b"what was there")
        args = {"mode": "get", "bucket": BUCKET, "object": "large.rdb", "path": str(tmp_path / "dump.rdb")}
        result = _run_with_limited_files(aws, 6 * MIB, **args, part_size_mb=5)
        assert result["failed"] and f"Cannot write {tmp_path}/dump.rdb.part: File too large (" in result["msg"]
        assert f"MiB are free in {tmp_path}). Nothing is left of it" in result["msg"]
        assert only_files(tmp_path) == {"dump.rdb": b"what was there"}

    def test_an_object_that_is_replaced_meanwhile_is_told(self, aws: LabModules, rdb: bytes, tmp_path: Path) -> None:
        store(aws, "changing.rdb", rdb)

        def replace_it(done: int, _bytes: int) -> None:
            if done == len(rdb):
                return
            store(aws, "changing.rdb", rdb[::-1])

        tuning = s3.Tuning(5 * MIB, 1)
        with pytest.raises(KeyferryError, match="the object was replaced meanwhile"):
            s3.get(aws.client("s3"), BUCKET, "changing.rdb", tmp_path / "dump.rdb", tuning, progress=replace_it)
        assert only_files(tmp_path) == {}

    def test_two_at_once_do_not_mix(self, aws: LabModules, rdb: bytes, tmp_path: Path) -> None:
        store(aws, "twice.rdb", rdb)
        refused: list[str] = []

        def get_again(_done: int, _bytes: int) -> None:
            with pytest.raises(KeyferryError) as caught:
                get()
            refused.append(caught.value.msg)

        def get(**args: Any) -> dict[str, Any]:
            return s3.get(aws.client("s3"), BUCKET, "twice.rdb", tmp_path / "dump.rdb", s3.Tuning(5 * MIB, 1), **args)

        assert get(progress=get_again)["changed"]
        assert set(refused) == {f"Another run is writing {tmp_path}/dump.rdb.part: wait for it to end, or end it"}
        assert only_files(tmp_path) == {"dump.rdb": rdb}


class TestPut:
    def test_brings_a_file_once(self, run: Run, aws: LabModules, rdb: bytes, tmp_path: Path) -> None:
        path = tmp_path / "dump.rdb"
        path.write_bytes(rdb)
        checked = run("put", "put.rdb", path, _check=True)
        assert (checked["changed"], checked["crc64"]) == (True, f"{int.from_bytes(rdb[-8:], 'little'):016x}")
        assert "no object" in run("get", "put.rdb", tmp_path / "none")["msg"]
        first = run("put", "put.rdb", path, server_side_encryption="AES256")
        again = run("put", "put.rdb", path, server_side_encryption="AES256")
        assert (first["changed"], again["changed"]) == (True, False)
        assert fetch(aws, "put.rdb") == rdb
        head = aws.client("s3").head_object(Bucket=BUCKET, Key="put.rdb")
        assert (head["Metadata"], head["ServerSideEncryption"]) == ({"keyferry-crc64": first["crc64"]}, "AES256")

    def test_a_dump_is_known_again_by_what_the_upload_left(self, run: Run, aws: LabModules, tmp_path: Path) -> None:
        (tmp_path / "dump.resp").write_bytes(b"*1\r\n$4\r\nPING\r\n")
        assert run("put", "dump.resp", tmp_path / "dump.resp")["rdb_version"] is None
        assert run("put", "dump.resp", tmp_path / "dump.resp")["changed"] is False
        assert run("get", "dump.resp", tmp_path / "dump.resp")["changed"] is False
        (tmp_path / "dump.resp").write_bytes(b"*1\r\n$4\r\nPONG\r\n")
        assert run("put", "dump.resp", tmp_path / "dump.resp")["changed"] is True
        assert fetch(aws, "dump.resp") == b"*1\r\n$4\r\nPONG\r\n"

    def test_a_damaged_rdb_is_not_uploaded(self, run: Run, rdb: bytes, tmp_path: Path) -> None:
        (tmp_path / "dump.rdb").write_bytes(rdb[:-20])
        result = run("put", "damaged.rdb", tmp_path / "dump.rdb")
        assert result["failed"] and "dump.rdb is not a whole RDB file" in result["msg"]
        assert "no object" in run("get", "damaged.rdb", tmp_path / "none")["msg"]

    def test_what_is_not_there_is_told(self, run: Run, tmp_path: Path) -> None:
        assert "no file" in run("put", "x", tmp_path / "none")["msg"]
        (tmp_path / "file").write_bytes(b"x")
        missing = run("put", "x", tmp_path / "file", bucket="there-is-none")
        assert missing["failed"] and "The bucket there-is-none does not exist" in missing["msg"]
        parts = run("put", "x", tmp_path / "file", part_size_mb=4)
        assert parts["failed"] and "part_size_mb must be 5" in parts["msg"]

    def test_passing_faults_are_tried_again(self, run: Run, aws: LabModules, rdb: bytes, tmp_path: Path) -> None:
        (tmp_path / "dump.rdb").write_bytes(rdb)
        put = "s3:PUT /keyferry-exports/retried.rdb"
        aws.order({"op": put, "code": "SlowDown", "status": 503}, {"op": put, "reset": True})
        assert run("put", "retried.rdb", tmp_path / "dump.rdb")["changed"]
        assert fetch(aws, "retried.rdb") == rdb

    def test_lasting_faults_leave_nothing(self, run: Run, aws: LabModules, rdb: bytes, tmp_path: Path) -> None:
        (tmp_path / "dump.rdb").write_bytes(rdb)
        aws.order({"op": "s3:PUT /keyferry-exports/unstored.rdb", "code": "AccessDenied", "status": 403, "times": 0})
        result = run("put", "unstored.rdb", tmp_path / "dump.rdb")
        assert result["failed"] and result["error_code"] == "AccessDenied"
        s3_client = aws.client("s3")
        assert not s3_client.list_multipart_uploads(Bucket=BUCKET).get("Uploads")
        assert not s3_client.list_objects_v2(Bucket=BUCKET, Prefix="unstored").get("Contents")


def test_progress_is_told_in_bytes(run: Run, aws: LabModules, rdb: bytes, tmp_path: Path) -> None:
    path = tmp_path / "dump.rdb"
    path.write_bytes(rdb)
    told: list[tuple[int, int]] = []
    client, tuning = aws.client("s3"), s3.Tuning(5 * MIB, 2)
    s3.put(client, BUCKET, "told.rdb", path, tuning, progress=lambda *done: told.append(done))
    assert told[-1] == (len(rdb), len(rdb)) and len(told) > 3
    told.clear()
    path.unlink()
    s3.get(client, BUCKET, "told.rdb", path, tuning, progress=lambda *done: told.append(done))
    assert told[-1] == (len(rdb), len(rdb)) and len(told) > 3
    path.write_bytes(rdb[:9])
    file = tmp_path / "progress.json"
    for mode, key in (("get", "told.rdb"), ("put", "told-again.rdb")):
        run(mode, key, path, progress_file=str(file))
        facts = json.loads(file.read_text())
        assert (facts["state"], facts["done"], facts["total"]) == ("done", len(rdb), len(rdb))


def _run_with_limited_files(aws: LabModules, limit: int, **args: Any) -> dict[str, Any]:
    """Run the module in a process that can write no file larger than `limit`, which fails as a full disk does."""
    program = (
        "import json, resource, sys; from support.modules import run_module;"
        "limit, args = json.loads(sys.stdin.read()); resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit));"
        "print(json.dumps(run_module('s3_transfer', **args)))"
    )
    options = {key: aws.info[key] for key in ("endpoint_url", "region", "access_key", "secret_key")}
    done = subprocess.run(
        [sys.executable, "-c", program],
        input=json.dumps([limit, {**options, **args}]),
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return dict(json.loads(done.stdout))
