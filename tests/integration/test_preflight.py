# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The playbook preflight on the lab: it tells everything, all problems at once, and changes nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from integration.cutover import SOURCE, TOP
from integration.plays import Playbook
from support.modules import LabModules

from lab import Lab


@pytest.fixture(scope="module")
def preflight(lab: Lab) -> Playbook:
    return Playbook(lab.info["dir"], TOP / "playbooks/preflight.yml")


def changing_calls(aws: LabModules, since: int) -> list[str]:
    """What the lab was asked since then that does more than read."""
    asked = [call["op"] for call in aws.lab("GET", "calls")[since:]]
    assert asked
    # These say whose credentials they are and how many nodes there may be; what is asked of them is in the body.
    asked = [op for op in asked if op not in ("sts:POST /", "servicequotas:POST /")]
    names = [op.partition(":")[2] or op for op in asked]
    return [name for name in names if not name.startswith(("Describe", "List", "Get", "Head", "GET ", "HEAD "))]


def test_it_tells_what_the_cutover_would_meet(preflight: Playbook, aws: LabModules, tmp_path: Path) -> None:
    since = len(aws.lab("GET", "calls"))
    outcome = preflight.succeed(src_db=1, report_dir=str(tmp_path / "tickets"))
    told = (tmp_path / "tickets" / f"{SOURCE}-db1-preflight.txt").read_text()
    assert told.startswith("PREFLIGHT  READY\n"), told
    assert "<- to be moved" in told and "####" in told and "string" in told
    assert "CLUSTER MODE as it is: no\n" in told and "cluster mode has database 0 only" in told
    assert "they fit" in told and "host   not set up yet" in told and "it fits" in told
    assert all(f"\n{way} " in told for way in ("resp", "rdb", "swap")), told
    assert "existing  not possible: target=existing is not asked" in told
    assert "PROBLEMS: none is known" in told
    for line in told.splitlines():
        assert " ".join(line.split()) in outcome.words
    assert changing_calls(aws, since) == []
    assert not (Path(aws.info["dir"]) / "host").exists()


def test_all_problems_are_told_at_once(preflight: Playbook, aws: LabModules) -> None:
    s3, bucket = aws.client("s3"), aws.info["bucket"]
    policy = s3.get_bucket_policy(Bucket=bucket)["Policy"]
    s3.delete_bucket_policy(Bucket=bucket)
    since = len(aws.lab("GET", "calls"))
    try:
        outcome = preflight.refuse(
            "NOT READY: 6 to fix",
            "cannot have the source's name",
            f"The replication group {SOURCE} exists already",
            "Database 9 of shared-redis holds no keys",
            f"may not use the bucket {bucket}",
            "CacheParameterGroupNotFound",
            "resp not possible: bucket policy",
            "By the least that its RDB can be: Not enough memory: an RDB of",
            src_db=9,
            target_replication_group_id=SOURCE,
            target_parameter_group_name="there-is-none",
            migration_host_memory_factor=10**9,
        )
        assert changing_calls(aws, since) == []
    finally:
        s3.put_bucket_policy(Bucket=bucket, Policy=policy)
    message = outcome.output.rpartition("Refuse what cannot work")[2]
    for words in ("cannot have the source's name", "Database 9", "may not use the bucket", "CacheParameterGroup"):
        assert words in " ".join(message.split()), message


def test_another_engine_needs_a_version_and_takes_no_parameter_group(preflight: Playbook) -> None:
    words = "the new ElastiCache is to be valkey: say which version of it, by target_engine_version"
    preflight.refuse(words, src_db=1, target_engine="valkey")
    preflight.succeed(src_db=1, target_engine="valkey", target_engine_version="8.1")
    preflight.refuse(
        "The parameter group default.redis7 is of the family redis7, and the target is to be valkey 8.1.",
        src_db=1,
        target_engine="valkey",
        target_engine_version="8.1",
        target_parameter_group_name="default.redis7",
    )


def test_versions_that_do_not_fit_are_told(preflight: Playbook, aws: LabModules) -> None:
    newer = {"replication_group_id": "newer", "node_type": "cache.t4g.small", "engine": "valkey"}
    aws.run("elasticache_replication_group", **newer, engine_version="9.1")
    older = {"target_engine": "redis", "target_engine_version": "7.1", "target_parameter_group_name": "default.redis7"}
    preflight.refuse(
        "VERSIONS (by RDB, and so by RESTORE payload): they do not fit",
        "The source, valkey 9.1.0, writes RDB 80, and the target, redis 7.1, does not read that.",
        src_db=0,
        source_replication_group_id="newer",
        strategy="rdb",
        **older,
    )
