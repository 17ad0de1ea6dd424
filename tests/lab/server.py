# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab's process: one HTTP port, with the lab's ElastiCache and, for all other services, moto behind it."""

from __future__ import annotations

import fcntl
import io
import json
import logging
import os
import secrets
import shutil
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import boto3
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import make_server

from . import rights, sample_data, used_groups
from .buckets import Buckets, export_policy
from .elasticache import ElastiCache
from .faults import Faults
from .nodes import RedisServer, free_port, server_binary, wait_for
from .protocol import AwsError, parse_request, write_error, write_response
from .ranges import with_ranges
from .region import Place
from .state import NODES_PER_REGION
from .tls import make_tls

REGION = "eu-central-1"
ACCOUNT = "123456789012"
BUCKET = "keyferry-exports"
SOURCE = "shared-redis"
# The lab's own calls to S3: they meet no fault and do not get into the journal.
SERVICE_KEY = "AKIALABSERVICE000000"

Environ = dict[str, Any]
StartResponse = Callable[..., Any]
log = logging.getLogger("lab")


class Handler(MotoRequestHandler):
    """moto's own request handler, quiet, and ending a connection that a fault has broken."""

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        pass

    def connection_dropped(self, error: BaseException, environ: Environ | None = None) -> None:
        self.close_connection = True


class App:
    """The WSGI application. It routes by the service in the credential scope of the Authorization header."""

    def __init__(self, directory: Path, delay: float) -> None:
        self.faults = Faults()
        self.moto = with_ranges(DomainDispatcherApplication(create_backend_app), ACCOUNT)
        self.delay = delay
        self.directory = directory
        self.admin = ("lab-admin", secrets.token_urlsafe(24))
        self.tls = make_tls(directory / "tls")
        self.endpoint_url = ""
        self._regions: dict[str, ElastiCache] = {}
        self._lock = threading.Lock()

    def region(self, name: str) -> ElastiCache:
        """The ElastiCache of a region; empty at first."""
        with self._lock:
            if name not in self._regions:
                place = Place(self.directory / "regions" / name, name, ACCOUNT, self.admin, self.tls, self.delay)
                place.directory.mkdir(parents=True)
                self._regions[name] = ElastiCache(place, Buckets(self.s3(name), name))
            return self._regions[name]

    def s3(self, region: str) -> Any:
        """A client of the lab's own S3."""
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint_url,
            region_name=region,
            aws_access_key_id=SERVICE_KEY,
            aws_secret_access_key=SERVICE_KEY,
        )

    def close(self) -> None:
        """End all servers of all regions."""
        for elasticache in self._regions.values():
            elasticache.close()

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        if environ["PATH_INFO"].startswith("/_lab/"):
            return self._control(environ, start_response)
        access_key, region, service = _credential(environ)
        if access_key == SERVICE_KEY:
            return self.moto(environ, start_response)
        if service == "elasticache":
            return self._elasticache(environ, start_response, region)
        if service == "iam":
            body = _body(environ)
            environ["wsgi.input"] = io.BytesIO(body)
            if rights.is_asked(body.decode()):
                return _answer(start_response, 200, "text/xml", rights.simulate(body.decode(), ACCOUNT))
        if service == "ec2":
            body = _body(environ)
            environ["wsgi.input"] = io.BytesIO(body)
            if refusal := used_groups.refusal(body.decode(), ACCOUNT, region):
                return _answer(start_response, 400, "text/xml", refusal)
        return self._other(environ, start_response, service)

    def _elasticache(self, environ: Environ, start_response: StartResponse, region: str) -> Iterable[bytes]:
        op, asked, code = "", {}, None
        status = 200
        try:
            operation, asked = parse_request(_body(environ).decode())
            op = operation.name
            fault = self.faults.meet(op, asked)
            _before(fault, environ)
            body = write_response(operation, self.region(region).call(op, asked, fault))
            _after(fault)
        except AwsError as error:
            status, code, body = error.status, error.code, write_error(error)
        except ConnectionResetError:
            raise
        except Exception as error:
            log.exception("%s failed", op)
            status, code = 500, "InternalFailure"
            body = write_error(AwsError(code, f"the lab failed: {error!r}", status))
        self.faults.record(op, asked, status, code)
        return _answer(start_response, status, "text/xml", body)

    def _other(self, environ: Environ, start_response: StartResponse, service: str) -> Iterable[bytes]:
        op = f"{service}:{environ['REQUEST_METHOD']} {environ['PATH_INFO']}"
        fault = self.faults.meet(op, {})
        try:
            _before(fault, environ)
            answer: list[Any] = []
            app = _service_quotas if service == "servicequotas" else self.moto
            chunks = app(environ, lambda *args: answer.append(args))
            if fault.get("after"):
                b"".join(chunks)
            _after(fault)
        except AwsError as error:
            self.faults.record(op, {}, error.status, error.code)
            if service == "s3":
                xml = f"<Error><Code>{escape(error.code)}</Code><Message>{escape(error.message)}</Message></Error>"
                return _answer(start_response, error.status, "application/xml", xml.encode())
            if service in ("iam", "sts"):
                return _answer(start_response, error.status, "text/xml", write_error(error))
            shown = json.dumps({"__type": error.code, "message": error.message})
            return _answer(start_response, error.status, "application/json", shown.encode())
        status, *more = answer[0]
        self.faults.record(op, {}, int(status.split()[0]), None)
        start_response(status, *more)
        return _cut(chunks, fault["truncate"], environ) if "truncate" in fault else chunks

    def _control(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """POST and DELETE /_lab/faults, GET /_lab/calls and /_lab/groups."""
        what = f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}"
        status, answer = 200, None
        if what == "POST /_lab/faults":
            try:
                self.faults.order(json.loads(_body(environ)))
            except ValueError as error:
                status, answer = 400, str(error)
        elif what == "DELETE /_lab/faults":
            self.faults.clear()
        elif what == "GET /_lab/calls":
            answer = self.faults.calls
        elif what == "GET /_lab/groups":
            answer = self._groups()
        else:
            status, answer = 404, f"the lab has no {what}"
        return _answer(start_response, status, "application/json", json.dumps(answer, default=str).encode())

    def _groups(self) -> dict[str, Any]:
        """The servers behind each replication group of the lab's own region."""
        return {
            group.id: {
                "engine": group.settings.engine,
                "cluster": group.settings.cluster,
                "ca_certs": str(self.tls.ca) if group.settings.tls else None,
                "nodes": [
                    {
                        "id": name,
                        "role": "replica" if at else "primary",
                        "port": group.servers.nodes[name].port,
                        "pid": group.servers.nodes[name].pid,
                        "slots": shard.slots,
                    }
                    for shard in group.settings.shards
                    for at, name in enumerate(shard.members)
                    if name in group.servers.nodes
                ],
            }
            for group in list(self.region(REGION).groups.values())
        }


def _credential(environ: Environ) -> tuple[str, str, str]:
    """(access key, region, service) of a request that is signed; empty where it is not."""
    _before_it, found, rest = environ.get("HTTP_AUTHORIZATION", "").partition("Credential=")
    parts = rest.split(",")[0].split("/")
    return (parts[0], parts[2], parts[3]) if found and len(parts) == 5 else ("", "", "")


def _body(environ: Environ) -> bytes:
    return bytes(environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0)))


def _before(fault: dict[str, Any], environ: Environ) -> None:
    if "code" in fault:
        raise AwsError(fault["code"], "a fault orders it", fault.get("status", 400))
    if fault.get("reset"):
        _break(environ)


def _break(environ: Environ) -> None:
    connection: socket.socket = environ["werkzeug.socket"]
    # With nothing to linger for, close sends a reset.
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    os.close(connection.detach())
    raise ConnectionResetError("a fault orders it")


def _cut(chunks: Iterable[bytes], size: int, environ: Environ) -> Iterable[bytes]:
    yield b"".join(chunks)[:size]
    _break(environ)


def _after(fault: dict[str, Any]) -> None:
    time.sleep(fault.get("late", 0))
    if fault.get("after"):
        raise AwsError("InternalFailure", "a fault orders it: done, and the answer is lost", 500)


def _service_quotas(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """GetServiceQuota of the one quota that the lab's ElastiCache keeps; moto has none of ElastiCache's."""
    asked = json.loads(_body(environ))
    if asked != {"ServiceCode": "elasticache", "QuotaCode": "L-DFE45DF3"}:
        raise AwsError("NoSuchResourceException", f"The lab has no quota {asked}.", 400)
    quota = {**asked, "QuotaName": "Nodes per Region", "Value": float(NODES_PER_REGION)}
    return _answer(start_response, 200, "application/x-amz-json-1.1", json.dumps({"Quota": quota}).encode())


def _answer(start_response: StartResponse, status: int, content_type: str, body: bytes) -> list[bytes]:
    start_response(f"{status} -", [("Content-Type", content_type), ("Content-Length", str(len(body)))])
    return [body]


def serve(directory: Path, engine: str, keys: int, delay: float, shards: int) -> None:
    """Run a lab in `directory` until SIGTERM; `lab.json` is there when it is ready."""
    # Nothing closes the descriptor: the lock lasts as long as the process does, to its very end.
    lock = os.open(directory / "lab.lock", os.O_WRONLY | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.truncate(lock, 0)
    os.write(lock, str(os.getpid()).encode())
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_args: stop.set())
    shutil.rmtree(directory / "regions", ignore_errors=True)
    app = App(directory, delay)
    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=Handler)
    app.endpoint_url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        _furnish(app, engine, keys, shards)
        _write_info(app, engine)
        stop.wait()
    finally:
        (directory / "lab.json").unlink(missing_ok=True)
        app.close()


def _furnish(app: App, engine: str, keys: int, shards: int) -> None:
    """Make the bucket and the source group, and fill it."""
    s3 = app.s3(REGION)
    s3.create_bucket(Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": REGION})
    s3.put_bucket_policy(Bucket=BUCKET, Policy=export_policy(BUCKET, REGION))
    asked: dict[str, Any] = {
        "ReplicationGroupId": SOURCE,
        "ReplicationGroupDescription": "One Redis that many services share",
        "Engine": engine,
        "CacheNodeType": "cache.r7g.large",
        "AutomaticFailoverEnabled": True,
        "ReplicasPerNodeGroup": 1,
    }
    if shards:
        asked |= {"NumNodeGroups": shards, "ClusterMode": "enabled"}
    elasticache = app.region(REGION)
    elasticache.call("CreateReplicationGroup", asked, {})
    group = elasticache.groups[SOURCE]
    wait_for(lambda: group.status != "creating", f"{SOURCE} to start", 120)
    if group.status != "available":
        raise RuntimeError(f"{SOURCE} did not start")
    if shards and keys:
        with RedisServer(app.directory / "regions" / "sample", engine) as server:
            sample_data.fill(server.client(), keys)
            server.client().save()
            group.servers.distribute(server.rdb)
    elif keys:
        sample_data.fill_sample(group.servers.primaries()[0].client(), keys)
    group.servers.wait_synced()


def _write_info(app: App, engine: str) -> None:
    info = {
        "endpoint_url": app.endpoint_url,
        "region": REGION,
        "access_key": f"AKIA{secrets.token_hex(8).upper()}",
        "secret_key": secrets.token_urlsafe(30),
        "account": ACCOUNT,
        "bucket": BUCKET,
        "source_replication_group_id": SOURCE,
        "admin_user": app.admin[0],
        "admin_password": app.admin[1],
        "ca_certs": str(app.tls.ca),
        "pid": os.getpid(),
        "engine": engine,
        # What the migration host's own instance runs, and where.
        "server_binary": server_binary(engine),
        "migration_host_port": free_port(),
        "dir": str(app.directory),
    }
    part = app.directory / "lab.json.part"
    part.touch(mode=0o600)
    part.write_text(json.dumps(info, indent=2) + "\n")
    part.rename(app.directory / "lab.json")
