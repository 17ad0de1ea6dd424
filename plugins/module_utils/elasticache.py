# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The ElastiCache API: what there is, calls that try again, and waiters.

States and error codes are those of the ElastiCache API of 2015-02-02, as botocore's service model names them.
"""

from __future__ import annotations

import contextlib
import typing as t

# AnsibleAWSModule says what is missing before any of this runs.
with contextlib.suppress(ImportError):
    from botocore.exceptions import ClientError, ConnectionError, HTTPClientError, WaiterError

    # No answer came: a name that is not resolved, a connection that is refused, breaks or times out.
    _UNREACHED = (HTTPClientError, ConnectionError)

from ansible_collections.amazon.aws.plugins.module_utils.retries import AWSRetry
from ansible_collections.amazon.aws.plugins.module_utils.tagging import (
    ansible_dict_to_boto3_tag_list,
    boto3_tag_list_to_ansible_dict,
)
from ansible_collections.amazon.aws.plugins.module_utils.waiter import BaseWaiterFactory
from ansible_collections.keyferry.redis.plugins.module_utils.aws import (
    BUSY_CODES,
    RETRY,
    Deadline,
    aws_errors,
    error_code,
)
from ansible_collections.keyferry.redis.plugins.module_utils.errors import KeyferryError

Facts = dict[str, t.Any]


def _acceptor(state: str, matcher: str, expected: t.Any, argument: str | None = None) -> Facts:
    acceptor = {"state": state, "matcher": matcher, "expected": expected}
    return {**acceptor, "argument": argument} if argument else acceptor


def _waiter(operation: str, *acceptors: Facts) -> Facts:
    busy = [_acceptor("retry", "error", code) for code in BUSY_CODES]
    return {"operation": operation, "delay": 5, "maxAttempts": 1, "acceptors": [*acceptors, *busy]}


class ElastiCacheWaiters(BaseWaiterFactory):
    """botocore has no waiter for snapshots, and its replication_group_available does not stop at create-failed."""

    @property
    def _waiter_model_data(self) -> Facts:
        snapshot, group = "Snapshots[].SnapshotStatus", "ReplicationGroups[].Status"
        return {
            "snapshot_available": _waiter(
                "DescribeSnapshots",
                _acceptor("success", "pathAll", "available", snapshot),
                _acceptor("failure", "pathAny", "failed", snapshot),
                _acceptor("failure", "pathAny", "deleting", snapshot),
            ),
            "snapshot_deleted": _waiter(
                "DescribeSnapshots",
                _acceptor("success", "path", True, "length(Snapshots[]) == `0`"),
                _acceptor("success", "error", "SnapshotNotFoundFault"),
            ),
            "replication_group_available": _waiter(
                "DescribeReplicationGroups",
                _acceptor("success", "pathAll", "available", group),
                _acceptor("failure", "pathAny", "create-failed", group),
                _acceptor("failure", "pathAny", "deleting", group),
            ),
            "replication_group_deleted": _waiter(
                "DescribeReplicationGroups",
                _acceptor("success", "path", True, "length(ReplicationGroups[]) == `0`"),
                _acceptor("success", "error", "ReplicationGroupNotFoundFault"),
            ),
        }


class ElastiCache:
    """The calls to ElastiCache, by a client that aws.retrying_client gave. Everything here raises KeyferryError."""

    def __init__(self, client: t.Any) -> None:
        self._client = client
        self._waiters = ElastiCacheWaiters()

    @property
    def region(self) -> str:
        return self._client.meta.region_name

    @property
    def partition(self) -> str:
        return self._client.meta.partition

    def snapshot(self, name: str) -> Facts | None:
        """The snapshot as AWS describes it, None when there is none."""
        found = self._described("describe_snapshots", "Snapshots", "SnapshotNotFoundFault", SnapshotName=name)
        return found[0] if found else None

    def replication_group(self, name: str) -> Facts | None:
        """The replication group as AWS describes it, None when there is none."""
        found = self._described(
            "describe_replication_groups",
            "ReplicationGroups",
            "ReplicationGroupNotFoundFault",
            ReplicationGroupId=name,
        )
        return found[0] if found else None

    def replication_groups(self) -> list[Facts]:
        return self._described("describe_replication_groups", "ReplicationGroups")

    def serverless_cache(self, name: str) -> Facts | None:
        """The serverless cache as AWS describes it, None when there is none, or where we may not ask."""
        try:
            found = self._described(
                "describe_serverless_caches",
                "ServerlessCaches",
                "ServerlessCacheNotFoundFault",
                ServerlessCacheName=name,
            )
        except (KeyferryError, AttributeError):
            # An older botocore does not know them.
            return None
        return found[0] if found else None

    def snapshots(self, **source: str) -> list[Facts]:
        """The manual snapshots of a cache cluster or replication group."""
        return self._described("describe_snapshots", "Snapshots", SnapshotSource="user", **source)

    def cache_clusters(self) -> dict[str, Facts]:
        """Every node of the region by its CacheClusterId; it alone knows engine version, subnet and security groups."""
        found = self._described("describe_cache_clusters", "CacheClusters", ShowCacheNodeInfo=True)
        return {cluster["CacheClusterId"]: cluster for cluster in found}

    def parameters(self, group: str) -> dict[str, str]:
        """The values in force in a parameter group."""
        found = self._described("describe_cache_parameters", "Parameters", CacheParameterGroupName=group)
        return {each["ParameterName"]: each.get("ParameterValue") for each in found}

    def events(self, group: str | None, members: t.Iterable[str]) -> list[str]:
        """What AWS noted of a group and its members in the last two hours, oldest first; [] where we may not ask."""
        sources = [("cache-cluster", member) for member in members]
        sources += [("replication-group", group)] if group else []
        found = []
        for kind, name in sources:
            try:
                found += self._described(
                    "describe_events", "Events", SourceType=kind, SourceIdentifier=name, Duration=120
                )
            except KeyferryError:
                continue
        found.sort(key=lambda event: event["Date"])
        return [
            f"{event['Date']:%Y-%m-%d %H:%M:%S}Z {event['SourceIdentifier']}: {event['Message']}" for event in found
        ]

    def tags(self, arn: str) -> dict[str, str]:
        reply = self.call(f"read the tags of {arn}", "list_tags_for_resource", ResourceName=arn)
        return boto3_tag_list_to_ansible_dict(reply["TagList"])

    def ensure_tags(self, arn: str, wanted: dict[str, str], check: bool) -> dict[str, str]:
        """Add or change the wanted tags and keep the others; give back those that lacked."""
        there = self.tags(arn) if wanted else {}
        # A tag is text, whatever YAML makes of it.
        lacking = {key: f"{value}" for key, value in wanted.items() if there.get(key) != f"{value}"}
        if lacking and not check:
            tags = ansible_dict_to_boto3_tag_list(lacking)
            self.call(f"tag {arn}", "add_tags_to_resource", ResourceName=arn, Tags=tags)
        return lacking

    def call(self, doing: str, operation: str, **request: t.Any) -> Facts:
        """Call an operation, again while AWS is too busy for it."""
        with aws_errors(doing):
            return getattr(self._client, operation)(aws_retry=True, **request)

    def call_when_ready(
        self, doing: str, operation: str, not_ready: t.Iterable[str], deadline: Deadline, **request: t.Any
    ) -> Facts:
        """Call an operation, again until the deadline while the resource is in a state that refuses it."""
        while True:
            try:
                return self.call(doing, operation, **request)
            except KeyferryError as error:
                if error.result.get("error_code") not in not_ready or deadline.passed:
                    raise
            deadline.sleep()

    def wait(
        self, waiter_name: str, deadline: Deadline, check: t.Callable[[], None] = lambda: None, **request: t.Any
    ) -> None:
        """Wait until the waiter is content, and call I(check), which may raise, now and then.

        Raises KeyferryError, with C(ended_as) when the resource ends in another state, else at the deadline.
        """
        name = " ".join(request.values())
        waiter = self._waiters.get_waiter(self._client, waiter_name)
        while True:
            looked = False
            with aws_errors(f"wait for {waiter_name.replace('_', ' ')} of {name}"):
                try:
                    waiter.wait(**request, WaiterConfig={"Delay": 0, "MaxAttempts": 1})
                    return
                except WaiterError as error:
                    looked, status = True, _status(error.last_response)
                    if "Error" in error.last_response and not _is_passing(error.last_response):
                        raise
                    if "terminal failure" in error.kwargs["reason"]:
                        raise KeyferryError(f"{name} ended as {status}.", ended_as=status) from error
                except _UNREACHED:
                    # A network that fails for a moment is no reason to give up a wait of many minutes.
                    status = "out of reach"
                    if deadline.passed:
                        raise
            if looked:
                with _tolerating_until(deadline):
                    check()
            if deadline.passed:
                raise KeyferryError(
                    f"{name} is still {status} after {deadline.seconds:g} seconds. Nothing is lost: run it again to go"
                    " on waiting, with a longer wait_timeout.",
                    status=status,
                )
            deadline.sleep()

    def _described(self, operation: str, key: str, missing: str = "", **request: t.Any) -> list[Facts]:
        names = " ".join(value for value in request.values() if isinstance(value, str))
        with aws_errors(f"{operation.replace('_', ' ')} {names}".strip()):
            try:
                return self._pages(operation, key, request)
            except ClientError as error:
                if error_code(error) == missing:
                    return []
                raise

    @RETRY
    def _pages(self, operation: str, key: str, request: Facts) -> list[Facts]:
        return [each for page in self._client.get_paginator(operation).paginate(**request) for each in page[key]]


@contextlib.contextmanager
def _tolerating_until(deadline: Deadline) -> t.Iterator[None]:
    """Let go by, until the deadline, what is an error of the network or of a busy server."""
    try:
        yield
    except KeyferryError as error:
        cause = error.__cause__
        is_passing = isinstance(cause, _UNREACHED) or (isinstance(cause, ClientError) and _is_passing(cause.response))
        if deadline.passed or not is_passing:
            raise


def _status(response: Facts) -> str:
    """The state that a Describe reply shows, or its error code."""
    for each in response.get("Snapshots", []):
        return each["SnapshotStatus"]
    for each in response.get("ReplicationGroups", []):
        return each["Status"]
    return response.get("Error", {}).get("Code", "gone")


def _is_passing(response: Facts) -> bool:
    """Whether an error is the server's own, or one of a caller that asks too often."""
    return response["ResponseMetadata"].get("HTTPStatusCode", 500) >= 500 or AWSRetry.found(
        _status(response), BUSY_CODES
    )
