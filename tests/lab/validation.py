# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What ElastiCache checks in a request before it does anything; each raises the error that AWS gives.

Where AWS's own text is not known, the text is the lab's; codes and statuses are the model's.
"""

from __future__ import annotations

import re
from typing import Any

from .groups import Shard, even_slots
from .protocol import AwsError, modelled
from .state import VERSIONS

# Parameters of CreateReplicationGroup that the lab would have to leave undone.
UNSUPPORTED = (
    *("GlobalReplicationGroupId", "PrimaryClusterId", "CacheSecurityGroupNames"),
    *("LogDeliveryConfigurations", "ServerlessCacheSnapshotName", "Durability"),
)


def invalid(message: str) -> AwsError:
    """InvalidParameterValue."""
    return modelled("InvalidParameterValueException", message)


def clash(message: str) -> AwsError:
    """InvalidParameterCombination."""
    return modelled("InvalidParameterCombinationException", message)


def identifier(value: str, parameter: str) -> str:
    """The name in lower case, as ElastiCache keeps it: 1-40 letters, digits and hyphens, beginning with a letter."""
    if not re.fullmatch(r"[a-z](-?[a-z0-9])*", value.lower()) or len(value) > 40:
        raise invalid(
            f"The parameter {parameter} is not a valid identifier. Identifiers must begin with a letter; must contain "
            "only ASCII letters, digits, and hyphens; and must not end with a hyphen or contain two consecutive "
            "hyphens."
        )
    return value.lower()


def page(items: list[Any], asked: dict[str, Any], most: int = 100) -> tuple[list[Any], str | None]:
    """(one page of the items, the marker of the next one); MaxRecords is 20 to `most`."""
    size = asked.get("MaxRecords", most)
    if not 20 <= size <= most:
        raise invalid(f"Invalid value {size} for MaxRecords. Must be between 20 and {most}")
    marker = asked.get("Marker", "0")
    if not marker.isdigit():
        raise invalid(f"Invalid marker: {marker}")
    start = int(marker)
    return items[start : start + size], str(start + size) if start + size < len(items) else None


def engine_version(asked: dict[str, Any]) -> tuple[str, str]:
    """(engine, version as it is shown); the newest when none is asked for."""
    engine = asked.get("Engine", "redis").lower()
    if engine not in VERSIONS:
        raise invalid(f"The parameter Engine must be one of redis, valkey, not {engine}")
    known = VERSIONS[engine]
    version = asked.get("EngineVersion", list(known)[-1])
    if version in known.values():
        return engine, version
    if version not in known:
        raise clash(f"Cannot find version {version} for {engine}")
    return engine, known[version]


def group_request(asked: dict[str, Any]) -> None:
    """What can be said about CreateReplicationGroup from its parameters alone."""
    for name in UNSUPPORTED:
        if asked.get(name):
            raise invalid(f"The lab does not have {name}")
    if not asked["ReplicationGroupDescription"].strip():
        raise invalid("The parameter ReplicationGroupDescription must be provided and must not be blank.")
    if not re.fullmatch(r"cache\.[a-z0-9]+\.[a-z0-9]+", asked.get("CacheNodeType", "")):
        raise invalid(f"Invalid CacheNodeType: {asked.get('CacheNodeType')}")
    if "SnapshotName" in asked and "SnapshotArns" in asked:
        raise clash("Cannot specify both SnapshotName and SnapshotArns.")
    _auth_token(asked)
    if asked.get("MultiAZEnabled") and not asked.get("AutomaticFailoverEnabled"):
        raise clash("Multi-AZ requires automatic failover to be enabled.")


def data_tiering(asked: dict[str, Any], is_of_snapshot: bool) -> None:
    """Nodes of the family r6gd have it, no others; a snapshot of such nodes is restored to such nodes."""
    has_disks = ".r6gd." in asked["CacheNodeType"]
    if has_disks != asked.get("DataTieringEnabled", False):
        raise clash("DataTieringEnabled must be true with nodes of the family r6gd, and only with these.")
    if is_of_snapshot and not has_disks:
        raise clash("A snapshot of nodes with data tiering can be restored to nodes of the family r6gd only.")


def _auth_token(asked: dict[str, Any]) -> None:
    if "AuthToken" not in asked:
        return
    if not asked.get("TransitEncryptionEnabled"):
        raise clash("The AUTH token is only supported when encryption-in-transit is enabled.")
    if not re.fullmatch(r"[!-~]{16,128}", asked["AuthToken"]) or set(asked["AuthToken"]) & set('@"/'):
        raise invalid('Invalid AuthToken provided: 16 to 128 printable characters without @, " and /.')


def shards(group_id: str, asked: dict[str, Any], is_cluster: bool, snapshot_shards: int) -> tuple[Shard, ...]:
    """The node groups of a request; a snapshot says how many when the request does not."""
    if not is_cluster:
        return (Shard("0001", "0-16383", tuple(f"{group_id}-{at:03}" for at in range(1, _cluster_count(asked) + 1))),)
    configured = asked.get("NodeGroupConfiguration", [])
    count = asked.get("NumNodeGroups", len(configured) or snapshot_shards)
    if not 1 <= count <= 90:
        raise invalid(f"Invalid NumNodeGroups: {count}")
    if configured and len(configured) != count:
        raise clash("NumNodeGroups must match the number of entries in NodeGroupConfiguration.")
    if "SnapshotArns" in asked and not all(entry.get("Slots") for entry in configured or [{}]):
        raise clash("Slots must be provided when restoring from snapshot ARNs with cluster mode enabled")
    if not asked.get("AutomaticFailoverEnabled"):
        raise clash("Redis with cluster mode enabled cannot be created with auto failover turned off.")
    made = []
    for number, (entry, slots) in enumerate(zip(configured or [{}] * count, even_slots(count), strict=True), 1):
        number_id = entry.get("NodeGroupId", f"{number:04}")
        nodes = entry.get("ReplicaCount", asked.get("ReplicasPerNodeGroup", 0)) + 1
        members = tuple(f"{group_id}-{number_id}-{at:03}" for at in range(1, nodes + 1))
        made.append(Shard(number_id, entry.get("Slots") or slots, members))
    _all_slots(made)
    return tuple(made)


def _cluster_count(asked: dict[str, Any]) -> int:
    if "NumCacheClusters" in asked and "ReplicasPerNodeGroup" in asked:
        raise clash("Cannot specify both NumCacheClusters and ReplicasPerNodeGroup.")
    count = int(asked.get("NumCacheClusters", asked.get("ReplicasPerNodeGroup", 0) + 1))
    if not 1 <= count <= 6:
        raise invalid(f"Invalid NumCacheClusters: {count}. Must be between 1 and 6.")
    if asked.get("AutomaticFailoverEnabled") and count < 2:
        raise clash("Automatic failover requires at least 2 cache clusters.")
    return count


def _all_slots(made: list[Shard]) -> None:
    try:
        slots = sorted(slot for shard in made for a, b in shard.slot_ranges() for slot in range(a, b + 1))
    except ValueError as error:
        raise invalid("Slots must be ranges such as 0-8191") from error
    if slots != list(range(16384)):
        raise invalid("The slots of all node groups must be 0-16383, each of them once.")
