# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Replication groups of ElastiCache: what there is, in the words of the modules' options, and what is wanted."""

from __future__ import annotations

import hashlib
import re
import typing as t
from dataclasses import dataclass, field

from ansible_collections.amazon.aws.plugins.module_utils.tagging import ansible_dict_to_boto3_tag_list
from ansible_collections.keyferry.redis.plugins.module_utils import elasticache_buckets
from ansible_collections.keyferry.redis.plugins.module_utils.aws import Deadline
from ansible_collections.keyferry.redis.plugins.module_utils.elasticache import ElastiCache, Facts
from ansible_collections.keyferry.redis.plugins.module_utils.elasticache_snapshots import (
    wait_available as wait_for_snapshot,
)
from ansible_collections.keyferry.redis.plugins.module_utils.errors import KeyferryError

# The tag that says what a group was made from: AWS does not tell, and a group made from something else is no success.
SEED_TAG = "keyferry:seed"
NOT_IN_A_TAG = re.compile(r"[^\w +\-=.:/@]")
LONGEST_TAG = 256
SLOTS = 16384
# Of every default parameter group.
DEFAULT_DATABASES = 16
# From 6 on, AWS has one patch of each minor version: it tells 7.1.0, and is to be asked for 7.1.
PATCHED_VERSION = re.compile(r"((?:[6-9]|\d\d+)\.\d+)\.\d+")
RESTORE_FAILED = (
    " A node that is restore-failed could not load its RDB file: it is damaged, newer than the engine, of several"
    " databases where cluster mode has one, or too large for the node type."
)
FAILED_NODE_STATUSES = ("restore-failed", "incompatible-network", "create-failed")

# Option of the module: member of CreateReplicationGroup.
REQUEST_MEMBERS = {
    "description": "ReplicationGroupDescription",
    "snapshot_name": "SnapshotName",
    "snapshot_arns": "SnapshotArns",
    "engine": "Engine",
    "engine_version": "EngineVersion",
    "node_type": "CacheNodeType",
    "port": "Port",
    "cluster_mode": "ClusterMode",
    "automatic_failover": "AutomaticFailoverEnabled",
    "multi_az": "MultiAZEnabled",
    "subnet_group_name": "CacheSubnetGroupName",
    "security_group_ids": "SecurityGroupIds",
    "parameter_group_name": "CacheParameterGroupName",
    "transit_encryption": "TransitEncryptionEnabled",
    "transit_encryption_mode": "TransitEncryptionMode",
    "auth_token": "AuthToken",
    "user_group_ids": "UserGroupIds",
    "at_rest_encryption": "AtRestEncryptionEnabled",
    "kms_key_id": "KmsKeyId",
    "snapshot_retention_limit": "SnapshotRetentionLimit",
    "snapshot_window": "SnapshotWindow",
    "maintenance_window": "PreferredMaintenanceWindow",
}
SHARD_OPTIONS = ("num_node_groups", "replicas_per_node_group")
# What an existing group cannot tell: the seed goes by its tag, the token is a secret.
UNTOLD_OPTIONS = ("snapshot_name", "snapshot_arns", "auth_token")
OPTIONS = (*REQUEST_MEMBERS, *SHARD_OPTIONS, "databases")
# What AWS keeps in lower case.
LOWERED_OPTIONS = ("parameter_group_name", "subnet_group_name", "snapshot_window", "maintenance_window")
COMPARED_OPTIONS = (*(each for each in REQUEST_MEMBERS if each not in UNTOLD_OPTIONS), *SHARD_OPTIONS)


def facts(group: Facts, clusters: dict[str, Facts]) -> Facts:
    """What a replication group is, under the names of the module's options, with its nodes and endpoints.

    I(clusters) are ElastiCache.cache_clusters(). What AWS does not tell (yet) is None.
    """
    members = [clusters[name] for name in group.get("MemberClusters", []) if name in clusters]
    member = members[0] if members else {}
    shards = group.get("NodeGroups", [])
    clustered = bool(group.get("ClusterEnabled"))
    endpoint = _endpoint(group.get("ConfigurationEndpoint") or _first(shards, "PrimaryEndpoint"))
    return {
        "replication_group_id": group["ReplicationGroupId"],
        "arn": group.get("ARN"),
        "status": group["Status"],
        "description": group.get("Description"),
        "engine": group.get("Engine") or member.get("Engine"),
        "engine_version": member.get("EngineVersion"),
        "node_type": group.get("CacheNodeType"),
        "port": endpoint["port"] if endpoint else None,
        "cluster_mode": group.get("ClusterMode") or ("enabled" if clustered else "disabled"),
        "num_node_groups": len(shards) or None,
        "replicas_per_node_group": len(shards[0].get("NodeGroupMembers", [])) - 1 if shards else None,
        "automatic_failover": group.get("AutomaticFailover") in ("enabled", "enabling"),
        "multi_az": group.get("MultiAZ") == "enabled",
        "subnet_group_name": member.get("CacheSubnetGroupName"),
        "security_group_ids": sorted(each["SecurityGroupId"] for each in member.get("SecurityGroups", [])),
        "parameter_group_name": member.get("CacheParameterGroup", {}).get("CacheParameterGroupName"),
        "transit_encryption": bool(group.get("TransitEncryptionEnabled")),
        "transit_encryption_mode": group.get("TransitEncryptionMode"),
        "auth_token_enabled": bool(group.get("AuthTokenEnabled")),
        "user_group_ids": sorted(group.get("UserGroupIds", [])),
        "at_rest_encryption": bool(group.get("AtRestEncryptionEnabled")),
        "kms_key_id": group.get("KmsKeyId"),
        "snapshot_retention_limit": group.get("SnapshotRetentionLimit"),
        "snapshot_window": group.get("SnapshotWindow"),
        "maintenance_window": member.get("PreferredMaintenanceWindow"),
        "data_tiering": group.get("DataTiering") == "enabled",
        "endpoint": endpoint,
        "reader_endpoint": None if clustered else _endpoint(_first(shards, "ReaderEndpoint")),
        "nodes": [_node(node, shard, clusters) for shard in shards for node in shard.get("NodeGroupMembers", [])],
    }


def _first(shards: list[Facts], key: str) -> Facts | None:
    return shards[0].get(key) if shards else None


def _endpoint(endpoint: Facts | None) -> Facts | None:
    return {"address": endpoint["Address"], "port": endpoint["Port"]} if endpoint else None


def _node(node: Facts, shard: Facts, clusters: dict[str, Facts]) -> Facts:
    cluster = clusters.get(node["CacheClusterId"], {})
    addresses = [each["Endpoint"] for each in cluster.get("CacheNodes", []) if each.get("Endpoint")]
    endpoint = _endpoint(node.get("ReadEndpoint") or (addresses[0] if addresses else None))
    return {
        "cache_cluster_id": node["CacheClusterId"],
        "node_group_id": shard.get("NodeGroupId"),
        "slots": shard.get("Slots"),
        # In cluster mode AWS does not tell which node is the primary.
        "role": node.get("CurrentRole"),
        "status": cluster.get("CacheClusterStatus"),
        "availability_zone": node.get("PreferredAvailabilityZone"),
        "endpoint": endpoint,
    }


def databases(api: ElastiCache, parameter_group: str | None) -> int | None:
    """How many databases a server of this parameter group has; None where that cannot be told."""
    value = api.parameters(parameter_group).get("databases") if parameter_group else None
    return int(value) if value else None


def described(api: ElastiCache, name: str) -> list[Facts]:
    """The facts of one group, [] if there is none, or with an empty name of all; with `databases`."""
    if name:
        group = api.replication_group(name)
        found = [group] if group else []
    else:
        found = api.replication_groups()
    clusters = api.cache_clusters() if found else {}
    told = [facts(group, clusters) for group in found]
    counts = {each: databases(api, each) for each in {group["parameter_group_name"] for group in told}}
    return [{**group, "databases": counts[group["parameter_group_name"]]} for group in told]


def drift(wanted: Facts, found: Facts) -> dict[str, Facts]:
    """Option: what was asked and what was found, for each option that was given and that differs."""
    pairs = ((option, wanted.get(option), found.get(option)) for option in COMPARED_OPTIONS)
    return {
        option: {"asked": asked, "found": there}
        for option, asked, there in pairs
        if asked is not None and there is not None and not _agrees(option, asked, there)
    }


def _agrees(option: str, asked: t.Any, found: t.Any) -> bool:
    if isinstance(asked, list):
        return sorted(asked) == sorted(found)
    if option in LOWERED_OPTIONS:
        return asked.lower() == found.lower()
    if option == "engine_version":
        # 7.1 and 6.x are asked where AWS says 7.1.0 and 6.2.6.
        prefix = asked[: -len(".x")] if asked.endswith(".x") else asked
        return f"{found}.".startswith(f"{prefix}.")
    if option == "kms_key_id":
        # An alias says nothing of the key that it stands for.
        return "alias/" in asked or asked.rpartition("/")[2] == found.rpartition("/")[2]
    return asked == found


def create_request(name: str, wanted: Facts, tags: dict[str, str]) -> Facts:
    """The request to CreateReplicationGroup. Raises KeyferryError for what can be told wrong without AWS."""
    if not wanted.get("node_type"):
        raise KeyferryError(f"node_type is needed to create the replication group {name}, for example cache.r7g.large.")
    request = {member: wanted[option] for option, member in REQUEST_MEMBERS.items() if wanted.get(option) is not None}
    request["ReplicationGroupId"] = name
    if wanted.get("engine_version"):
        request["EngineVersion"] = PATCHED_VERSION.sub(r"\1", wanted["engine_version"])
    request.setdefault("ReplicationGroupDescription", name)
    if has_data_tiering(wanted["node_type"]):
        # AWS wants it said, though these nodes have it in any case.
        request["DataTieringEnabled"] = True
    shards, replicas = wanted.get("num_node_groups") or 1, wanted.get("replicas_per_node_group") or 0
    if wanted.get("cluster_mode") != "enabled":
        if shards != 1:
            raise KeyferryError(f"{name} cannot have {shards} node groups (shards) with cluster_mode=disabled.")
        request["NumCacheClusters"] = replicas + 1
    elif wanted.get("snapshot_arns"):
        request["NodeGroupConfiguration"] = node_groups(shards, replicas)
    else:
        request.update(NumNodeGroups=shards, ReplicasPerNodeGroup=replicas)
    if tags:
        request["Tags"] = ansible_dict_to_boto3_tag_list(tags)
    return request


def has_data_tiering(node_type: str | None) -> bool:
    return ".r6gd." in f"{node_type}"


def node_groups(shards: int, replicas: int) -> list[Facts]:
    """The slots in even shares: AWS wants them said when a group in cluster mode is seeded from S3."""
    bounds = [SLOTS * shard // shards for shard in range(shards + 1)]
    return [
        {
            "NodeGroupId": f"{shard + 1:04d}",
            "Slots": f"{bounds[shard]}-{bounds[shard + 1] - 1}",
            "ReplicaCount": replicas,
        }
        for shard in range(shards)
    ]


def seed_of(wanted: Facts) -> str | None:
    """What the group is to be made from, as its tag says it."""
    arns = wanted.get("snapshot_arns")
    seed = wanted.get("snapshot_name") or (" ".join(sorted(arns)) if arns else None)
    if seed is None or (len(seed) <= LONGEST_TAG and not NOT_IN_A_TAG.search(seed)):
        return seed
    return "sha256:" + hashlib.sha256(seed.encode()).hexdigest()


@dataclass(frozen=True)
class Request:
    """Which group is wanted, and how: I(options) are the module's, and I(check) changes nothing."""

    name: str
    options: Facts
    tags: dict[str, str]
    wait: bool
    check: bool


@dataclass(frozen=True)
class Outcome:
    """What is there now (None: nothing), whether that is a change, what differs, and which tags were given."""

    changed: bool
    group: Facts | None
    drift: dict[str, Facts] = field(default_factory=dict)
    retagged: dict[str, str] = field(default_factory=dict)
    created: bool = False


def present(api: ElastiCache, s3_client: t.Any, wanted: Request, deadline: Deadline) -> Outcome:
    """Create the group unless it is there; one that is there is left as it is, but for its tags."""
    seed = seed_of(wanted.options)
    group = api.replication_group(wanted.name)
    created, fresh = not group, False
    if created:
        tags = {**wanted.tags, SEED_TAG: seed} if seed else wanted.tags
        request = create_request(wanted.name, wanted.options, tags)
        require_sources(api, s3_client, wanted.options)
        if wanted.check:
            return Outcome(True, None, created=True)
        if wanted.wait and wanted.options.get("snapshot_name"):
            wait_for_snapshot(api, wanted.options["snapshot_name"], deadline)
        made = create(api, request)
        fresh = made is not None
        group = made or api.replication_group(wanted.name)
    require_alive(api, group)
    if wanted.wait and not wanted.check:
        group = wait_available(api, wanted.name, deadline)
    # AWS tells the tags of a group only when it is available; a run that waits looks at them.
    has_tags = group["Status"] == "available"
    if seed and not fresh and has_tags:
        require_made_from(api, group, seed)
    found = facts(group, api.cache_clusters())
    retagged = {} if created or not has_tags else api.ensure_tags(group["ARN"], wanted.tags, wanted.check)
    return Outcome(created or bool(retagged), found, drift(wanted.options, found), retagged, created)


def absent(api: ElastiCache, wanted: Request, final_snapshot_name: str | None, deadline: Deadline) -> Outcome:
    """Delete the group unless it is gone."""
    group = api.replication_group(wanted.name)
    if not group:
        return Outcome(False, None)
    going = group["Status"] == "deleting"
    if not going and not wanted.check:
        delete(api, wanted.name, final_snapshot_name, deadline)
    if wanted.wait and not wanted.check:
        api.wait("replication_group_deleted", deadline, ReplicationGroupId=wanted.name)
    left = api.replication_group(wanted.name)
    return Outcome(not going, left and facts(left, api.cache_clusters()))


def require_sources(api: ElastiCache, s3_client: t.Any, options: Facts) -> None:
    """Raise KeyferryError if a group surely cannot be made from what it is to be made from."""
    for arn in options.get("snapshot_arns") or ():
        elasticache_buckets.require_seed(s3_client, arn, api.region)
    if options.get("snapshot_name"):
        require_snapshot(api, options["snapshot_name"], options.get("node_type"))
    if options.get("databases"):
        require_databases(api, options)


def require_databases(api: ElastiCache, options: Facts) -> None:
    """Raise KeyferryError if the group surely would have fewer databases than are wanted."""
    wanted, name = options["databases"], options.get("parameter_group_name")
    parameters = api.parameters(name) if name else {}
    clustered = options.get("cluster_mode") == "enabled" or parameters.get("cluster-enabled") == "yes"
    if clustered and not _has_databases_in_cluster_mode(options):
        found, reason = 1, "cluster mode has database 0 alone"
    else:
        found = int(parameters.get("databases") or DEFAULT_DATABASES)
        reason = f"the parameter group {name or 'that AWS takes by default'} has databases={found}"
    if found < wanted:
        raise KeyferryError(
            f"{wanted} databases are needed, but {reason}. Create a cache parameter group of the engine's family, set"
            f" its parameter databases to {wanted} or more before any group uses it, and name it by"
            " parameter_group_name.",
            databases=found,
        )


def _has_databases_in_cluster_mode(options: Facts) -> bool:
    """Valkey has, from 9.0 on (AWS: "Supported engines and versions"); it may be what AWS takes by default."""
    major = (options.get("engine_version") or "9").partition(".")[0]
    return options.get("engine") == "valkey" and major.isdigit() and int(major) >= 9


def require_made_from(api: ElastiCache, group: Facts, seed: str) -> None:
    """Raise KeyferryError unless an existing group says by its tag that it was made from this seed."""
    name = group["ReplicationGroupId"]
    found = api.tags(group["ARN"]).get(SEED_TAG)
    if found != seed:
        made = f"was made from {found}" if found else f"has no tag {SEED_TAG} that says what it was made from"
        raise KeyferryError(
            f"The replication group {name} exists already and {made}, not from {seed}. It is left as it is:"
            " choose another replication_group_id, or delete that group if nothing needs it."
        )


def require_alive(api: ElastiCache, group: Facts) -> None:
    """Raise KeyferryError, with the reasons, if a group is failed, or is being deleted."""
    name, status = group["ReplicationGroupId"], group["Status"]
    if status == "deleting":
        raise KeyferryError(f"The replication group {name} is being deleted. Run again when it is gone.")
    clusters = api.cache_clusters()
    statuses = {
        each: clusters[each]["CacheClusterStatus"] for each in group.get("MemberClusters", []) if each in clusters
    }
    failed = {each: found for each, found in statuses.items() if found in FAILED_NODE_STATUSES}
    if status != "create-failed" and not failed:
        return
    events = api.events(name, statuses)
    nodes = ", ".join(f"{each} is {found}" for each, found in sorted((failed or statuses).items()))
    reasons = [f"nodes: {nodes}"] if nodes else []
    reasons += [f"events: {'; '.join(events[-10:])}"] if events else []
    raise KeyferryError(
        f"The replication group {name} is {status} ({'; '.join(reasons) or 'AWS gives no reason'})."
        f"{RESTORE_FAILED if 'restore-failed' in failed.values() else ''} Delete it (state=absent) and create it"
        " again.",
        status=status,
        failed_nodes=failed,
        events=events,
    )


def wait_available(api: ElastiCache, name: str, deadline: Deadline) -> Facts:
    """Wait until a group is available and give it back. Raises KeyferryError, with the reasons, when it fails."""

    def look() -> Facts:
        group = api.replication_group(name)
        if not group:
            raise KeyferryError(f"The replication group {name} is gone: something else deleted it.")
        require_alive(api, group)
        return group

    try:
        api.wait("replication_group_available", deadline, check=look, ReplicationGroupId=name)
    except KeyferryError as error:
        if error.result.get("ended_as"):
            look()
        raise
    return look()


def require_snapshot(api: ElastiCache, name: str, node_type: str | None) -> None:
    """Raise KeyferryError if a group of this node type surely cannot be made from this snapshot."""
    snapshot = api.snapshot(name)
    if not snapshot:
        raise KeyferryError(f"There is no snapshot {name} in {api.region}: check snapshot_name and region.")
    if snapshot["SnapshotStatus"] in ("failed", "deleting"):
        raise KeyferryError(f"The snapshot {name} is {snapshot['SnapshotStatus']}: nothing can be made from it.")
    if snapshot.get("DataTiering") == "enabled" and not has_data_tiering(node_type):
        raise KeyferryError(
            f"The snapshot {name} is of nodes with data tiering, so that node_type must be of the family cache.r6gd,"
            f" not {node_type}."
        )


def create(api: ElastiCache, request: Facts) -> Facts | None:
    """Create a group and give back what it is then (creating); None when it is there after all.

    Then it was made by this very request, whose answer was lost, or by someone else: the caller looks at its seed.
    """
    name = request["ReplicationGroupId"]
    try:
        reply = api.call(f"create the replication group {name}", "create_replication_group", **request)
    except KeyferryError as error:
        if error.result.get("error_code") != "ReplicationGroupAlreadyExists":
            raise
        return None
    return reply["ReplicationGroup"]


def delete(api: ElastiCache, name: str, final_snapshot_name: str | None, deadline: Deadline) -> None:
    """Ask for a group's deletion; until the deadline while its state refuses it. One that is being deleted is fine."""
    request = {"ReplicationGroupId": name}
    if final_snapshot_name:
        request["FinalSnapshotIdentifier"] = final_snapshot_name
    while True:
        group = api.replication_group(name)
        if not group or group["Status"] == "deleting":
            return
        try:
            api.call(f"delete the replication group {name}", "delete_replication_group", **request)
            return
        except KeyferryError as error:
            if error.result.get("error_code") not in ("InvalidReplicationGroupState", "ReplicationGroupNotFoundFault"):
                raise
            if deadline.passed:
                raise
        deadline.sleep()
