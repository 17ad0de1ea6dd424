# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What would stop a snapshot, its export or a new group, found beforehand and all at once.

Each check is what the modules that do the work check too, and AWS has the last word on what may not be looked at.
"""

from __future__ import annotations

import contextlib
import re
import typing as t
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone

# AnsibleAWSModule says what is missing before any of this runs.
with contextlib.suppress(ImportError):
    from botocore.exceptions import BotoCoreError

from ansible_collections.keyferry.redis.plugins.module_utils import elasticache_buckets as buckets
from ansible_collections.keyferry.redis.plugins.module_utils import elasticache_groups as groups
from ansible_collections.keyferry.redis.plugins.module_utils import elasticache_rights as rights
from ansible_collections.keyferry.redis.plugins.module_utils import elasticache_snapshots as snapshots
from ansible_collections.keyferry.redis.plugins.module_utils.aws import aws_errors
from ansible_collections.keyferry.redis.plugins.module_utils.elasticache import ElastiCache, Facts
from ansible_collections.keyferry.redis.plugins.module_utils.errors import KeyferryError

# Manual snapshots of a node in any 24 hours (AWS: "Constraints when creating a backup").
SNAPSHOTS_PER_DAY = 20
DAY = timedelta(hours=24)
# Nodes of all engines that an account may have in a region (Service Quotas, service elasticache: "Nodes per Region").
NODES_QUOTA = "L-DFE45DF3"
IDENTIFIER = re.compile(r"[a-z](-?[a-z0-9])*", re.IGNORECASE)
LONGEST_IDENTIFIER = 40


Client = t.Callable[[str], t.Any]
# How the codes of AWS begin that say what is wrong with what was asked for, and not with asking.
WRONG = ("InvalidGroup", "InvalidSubnet", "NotFoundException")


@dataclass(frozen=True)
class Plan:
    """What is to be done: a snapshot of a source, its export, and a new group. What is None is left out."""

    replication_group_id: str | None = None
    cache_cluster_id: str | None = None
    snapshot_name: str | None = None
    bucket: str | None = None
    target_name: str | None = None
    target: Facts | None = None

    @property
    def export_name(self) -> str:
        """What the names of the exported objects begin with."""
        return (self.target_name or self.snapshot_name or "export").lower()


@dataclass
class Findings:
    """The problems, each with the check that found it, and what is only to be known."""

    problems: list[Facts] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @contextlib.contextmanager
    def of(self, check: str) -> t.Iterator[None]:
        """Note what a check raises, and go on."""
        try:
            yield
        except KeyferryError as error:
            self.problems.append({"check": check, "problem": error.msg, **error.result})

    @contextlib.contextmanager
    def where_allowed(self, check: str) -> t.Iterator[None]:
        """The same, but where it cannot be looked at that is only a remark: the run itself does without that look."""
        with self.of(check):
            try:
                yield
            except KeyferryError as error:
                if not _is_unanswered(error):
                    raise
                self.warnings.append(f"Not looked at before: {error.msg}")


def _is_unanswered(error: KeyferryError) -> bool:
    """Whether the service could not be reached, or did not say what it was asked."""
    if isinstance(error.__cause__, BotoCoreError):
        return True
    return "error_code" in error.result and not error.result["error_code"].startswith(WRONG)


def look(
    api: ElastiCache, s3_client: t.Any, client: Client, plan: Plan
) -> tuple[Findings, snapshots.SnapshotSource | None]:
    """Give back everything that stands in the way of a plan, and what its snapshot would be taken of.

    I(client) gives a client of the AWS service of that name, one that the work itself does not need.
    """
    findings = Findings()
    source = _source(api, plan, findings)
    snapshot = _snapshot(api, plan, source, findings)
    if source and plan.snapshot_name and not snapshot:
        with findings.of("snapshot_quota"):
            _require_quota(api, source)
    if plan.bucket:
        _bucket(api, s3_client, plan, snapshot, findings)
    if plan.target:
        _target(api, client, plan.target, findings)
    with findings.where_allowed("rights"):
        rights.require_rights(
            client("sts"), client("iam"), lambda account: _rights(api, account, plan, source), findings.warnings.append
        )
    return findings, source


def _rights(
    api: ElastiCache, account: str, plan: Plan, source: snapshots.SnapshotSource | None
) -> t.Iterator[rights.Right]:
    """What the modules of this collection ask AWS to do for a plan."""
    arn = f"arn:{api.partition}:elasticache:{api.region}:{account}"
    if source and plan.snapshot_name:
        copied = ("elasticache:CopySnapshot",) if plan.bucket else ()
        yield rights.Right(("elasticache:CreateSnapshot", *copied), f"{arn}:snapshot:{plan.snapshot_name}")
    if plan.bucket:
        bucket = f"arn:{api.partition}:s3:::{plan.bucket}"
        exported = plan.export_name
        yield rights.Right(("s3:ListBucket",), bucket)
        put = ("s3:PutObject",) if plan.target else ()
        yield rights.Right(("s3:GetObject", *put), f"{bucket}/{exported}-0001.rdb")
    if plan.target:
        name = plan.target["replication_group_id"].lower()
        actions = ("elasticache:CreateReplicationGroup", "elasticache:AddTagsToResource")
        yield rights.Right(actions, f"{arn}:replicationgroup:{name}")
        if (plan.target.get("kms_key_id") or "").startswith("arn:"):
            yield rights.Right(("kms:DescribeKey", "kms:CreateGrant"), plan.target["kms_key_id"])


def _source(api: ElastiCache, plan: Plan, findings: Findings) -> snapshots.SnapshotSource | None:
    source, group = None, None
    with findings.of("source"):
        if plan.replication_group_id:
            group = api.replication_group(plan.replication_group_id)
            if not group:
                _require_not_serverless(api, plan.replication_group_id)
            source = snapshots.source_of_replication_group(api, plan.replication_group_id)
            findings.warnings += source.warnings
        elif plan.cache_cluster_id:
            group = _group_of_node(api, plan.cache_cluster_id)
            source = snapshots.source_of_cache_cluster(plan.cache_cluster_id)
    if group and group["Status"] != "available":
        findings.warnings.append(
            f"{group['ReplicationGroupId']} is {group['Status']}: its snapshot is not taken before it is available."
        )
    if group and plan.bucket:
        with findings.of("data_tiering"):
            _require_no_data_tiering(group)
    return source


def _require_not_serverless(api: ElastiCache, name: str) -> None:
    if api.serverless_cache(name):
        raise KeyferryError(
            f"{name} is a serverless cache, which has database 0 alone and snapshots of another kind. A database can be"
            " moved only out of a replication group: check replication_group_id."
        )


def _group_of_node(api: ElastiCache, name: str) -> Facts | None:
    node = api.cache_clusters().get(name)
    if not node:
        raise KeyferryError(f"There is no cache cluster {name} in {api.region}: check cache_cluster_id and region.")
    return api.replication_group(node["ReplicationGroupId"]) if node.get("ReplicationGroupId") else None


def _require_no_data_tiering(group: Facts) -> None:
    if group.get("DataTiering") == "enabled":
        raise KeyferryError(
            f"{group['ReplicationGroupId']} has nodes with data tiering ({group.get('CacheNodeType')}), whose snapshots"
            " AWS cannot export to S3. Restore the snapshot into r6gd nodes instead (strategy=swap), or let the"
            " data be read over the network (resp_dump)."
        )


def _snapshot(
    api: ElastiCache, plan: Plan, source: snapshots.SnapshotSource | None, findings: Findings
) -> Facts | None:
    """The snapshot of the plan's name if there is one already that can be used."""
    if not plan.snapshot_name:
        return None
    snapshot = None
    with findings.of("snapshot_name"):
        _require_identifier("snapshot name", plan.snapshot_name)
        there = api.snapshot(plan.snapshot_name)
        if there:
            snapshots.require_usable(there, source)
            findings.warnings.append(
                f"The snapshot {plan.snapshot_name} is there already, begun {snapshots.taken(there)}, and is used: what"
                " was written to its source since then is not in it."
            )
        snapshot = there
    return snapshot


def _require_identifier(what: str, name: str) -> None:
    if not IDENTIFIER.fullmatch(name) or len(name) > LONGEST_IDENTIFIER:
        raise KeyferryError(
            f"AWS takes no {what} {name}: it is to have 1 to {LONGEST_IDENTIFIER} letters, digits and hyphens, to begin"
            " with a letter, and neither to end with a hyphen nor to have two of them in a row."
        )


def _require_quota(api: ElastiCache, source: snapshots.SnapshotSource) -> None:
    """A snapshot that was deleted counts for AWS, but nobody can see it any more."""
    since = datetime.now(timezone.utc) - DAY
    taken = sorted(
        node["SnapshotCreateTime"]
        for snapshot in api.snapshots(**source.request)
        for node in snapshot.get("NodeSnapshots", [])[:1]
        if node.get("SnapshotCreateTime") and node["SnapshotCreateTime"] > since
    )
    if len(taken) >= SNAPSHOTS_PER_DAY:
        (name,) = source.request.values()
        raise KeyferryError(
            f"{len(taken)} manual snapshots were taken of {name} in the last 24 hours, and AWS takes no more than"
            f" {SNAPSHOTS_PER_DAY}, deleted ones among them, until {taken[-SNAPSHOTS_PER_DAY] + DAY:%Y-%m-%d %H:%M}Z."
            " Name another node (cache_cluster_id), or a snapshot that exists."
        )


def _bucket(api: ElastiCache, s3_client: t.Any, plan: Plan, snapshot: Facts | None, findings: Findings) -> None:
    bucket = t.cast("str", plan.bucket)
    target = plan.export_name
    before = len(findings.problems)
    with findings.of("bucket"):
        buckets.require_bucket_in(s3_client, bucket, api.region)
    if len(findings.problems) > before:
        return
    with findings.of("bucket_policy"):
        buckets.require_policy(
            s3_client, bucket, f"{target}-0001.rdb", api.region, api.partition, buckets.EXPORT_ACTIONS
        )
    findings.warnings += buckets.encryption_warnings(s3_client, bucket)
    if plan.target_name or plan.snapshot_name:
        with findings.of("export_name"):
            _require_identifier("target_name", target)
            _require_export_name(s3_client, bucket, target, snapshot, api)


def _require_export_name(s3_client: t.Any, bucket: str, target: str, snapshot: Facts | None, api: ElastiCache) -> None:
    if snapshot:
        snapshots.Export(api, s3_client, snapshot["SnapshotName"], bucket, target).found(snapshot)
        return
    with aws_errors(f"list the objects of the bucket {bucket}"):
        found = s3_client.list_objects_v2(Bucket=bucket, Prefix=f"{target}-0001.rdb").get("Contents", [])
    if found:
        raise KeyferryError(
            f"The bucket {bucket} holds {found[0]['Key']} already, and AWS does not write over an object. Choose"
            " another target_name, or remove it."
        )


def _target(api: ElastiCache, client: Client, target: Facts, findings: Findings) -> None:
    name = target["replication_group_id"].lower()
    with findings.of("target_name"):
        _require_identifier("replication group", name)
        group = api.replication_group(name)
        if group:
            raise KeyferryError(
                f"The replication group {name} exists already (it is {group['Status']}), and is never replaced. Choose"
                " another name, or delete it if nothing needs it."
            )
    with findings.where_allowed("target_node_quota"):
        _require_node_quota(api, client, target.get("nodes") or 1)
    if target.get("kms_key_id"):
        with findings.where_allowed("target_kms_key"):
            _require_kms_key(client, target["kms_key_id"])
    with findings.of("target_databases"):
        groups.require_databases(api, {**target, "databases": target.get("databases") or 1})
        if target.get("parameter_group_name") and target.get("engine") and target.get("engine_version"):
            with findings.where_allowed("target_parameter_group"):
                _require_family(api, target)
    if target.get("subnet_group_name"):
        with findings.of("target_subnet_group"):
            found = api.call(
                f"find the subnet group {target['subnet_group_name']} of the target",
                "describe_cache_subnet_groups",
                CacheSubnetGroupName=target["subnet_group_name"],
            )
            with findings.where_allowed("target_addresses"):
                _require_addresses(client, found["CacheSubnetGroups"][0], target.get("nodes") or 1)
    if target.get("security_group_ids"):
        with findings.where_allowed("target_security_group"), aws_errors("find the security groups of the target"):
            client("ec2").describe_security_groups(GroupIds=target["security_group_ids"], aws_retry=True)
    for each in target.get("user_group_ids") or ():
        with findings.of("target_user_group"):
            api.call(f"find the user group {each} of the target", "describe_user_groups", UserGroupId=each)


def _require_family(api: ElastiCache, target: Facts) -> None:
    """Raise KeyferryError unless the parameter group is of the engine's major version: redis7, redis6.x, valkey8."""
    name, version = target["parameter_group_name"], f"{target['engine']} {target['engine_version']}"
    doing = f"find the parameter group {name} of the target"
    found = api.call(doing, "describe_cache_parameter_groups", CacheParameterGroupName=name)["CacheParameterGroups"]
    family = found[0]["CacheParameterGroupFamily"]
    major = target["engine_version"].partition(".")[0]
    if family.partition(".")[0] != f"{target['engine']}{major}":
        raise KeyferryError(
            f"The parameter group {name} is of the family {family}, and the target is to be {version}. Name one that"
            " fits (parameter_group_name), or none, and AWS takes its own."
        )
    if target.get("cluster_mode") == "enabled" and api.parameters(name).get("cluster-enabled") != "yes":
        raise KeyferryError(
            f"The parameter group {name} is not one for cluster mode (cluster-enabled is not yes). Name one that is"
            f" (parameter_group_name), for example default.{family}.cluster.on, or none, and AWS takes its own."
        )


def _require_addresses(client: Client, group: Facts, nodes: int) -> None:
    name, ids = group["CacheSubnetGroupName"], [each["SubnetIdentifier"] for each in group.get("Subnets", [])]
    if not ids:
        return
    with aws_errors(f"look at the subnets of the subnet group {name}"):
        subnets = client("ec2").describe_subnets(SubnetIds=ids, aws_retry=True)["Subnets"]
    free = sum(subnet["AvailableIpAddressCount"] for subnet in subnets)
    if free < nodes:
        raise KeyferryError(
            f"The subnets of the subnet group {name} ({', '.join(ids)}) have {free} free addresses, and the target has"
            f" {nodes} nodes. Add a subnet to it, or choose another subnet group."
        )


def _require_node_quota(api: ElastiCache, client: Client, nodes: int) -> None:
    with aws_errors("ask Service Quotas how many nodes the region may have"):
        quota = client("service-quotas").get_service_quota(
            ServiceCode="elasticache", QuotaCode=NODES_QUOTA, aws_retry=True
        )["Quota"]
    there = sum(cluster.get("NumCacheNodes", 1) for cluster in api.cache_clusters().values())
    if there + nodes > quota["Value"]:
        raise KeyferryError(
            f"The target has {nodes} nodes, and with the {there} that there are in {api.region} that is more than the"
            f" {quota['Value']:.0f} that this account may have. Have the quota {quota['QuotaName']} ({NODES_QUOTA}) of"
            " ElastiCache raised, or remove nodes that nothing needs."
        )


def _require_kms_key(client: Client, key: str) -> None:
    with aws_errors(f"look at the KMS key {key} of the target"):
        found = client("kms").describe_key(KeyId=key, aws_retry=True)["KeyMetadata"]
    if found["KeyState"] != "Enabled" or found.get("KeySpec", "SYMMETRIC_DEFAULT") != "SYMMETRIC_DEFAULT":
        raise KeyferryError(
            f"The KMS key {key} of the target is {found['KeyState']} ({found.get('KeySpec')}), and ElastiCache encrypts"
            " with an enabled, symmetric one. Enable it, or name another one (kms_key_id)."
        )
