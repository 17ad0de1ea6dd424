# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What ElastiCache asks of a bucket that it exports to or seeds from, told before AWS tells it minutes later.

Only what is surely wrong is an error: where these credentials may not look, AWS has the last word.
"""

from __future__ import annotations

import contextlib
import json
import re
import typing as t

# AnsibleAWSModule says what is missing before any of this runs.
with contextlib.suppress(ImportError):
    from botocore.exceptions import ClientError

from ansible_collections.keyferry.redis.plugins.module_utils import s3
from ansible_collections.keyferry.redis.plugins.module_utils.aws import error_code
from ansible_collections.keyferry.redis.plugins.module_utils.errors import KeyferryError

Facts = dict[str, t.Any]

# What ElastiCache's service principal needs, on the bucket and on its objects (AWS: "Exporting a backup").
EXPORT_ACTIONS = (
    ("s3:ListBucket", "s3:GetBucketAcl", "s3:ListBucketMultipartUploads"),
    ("s3:PutObject", "s3:GetObject", "s3:ListMultipartUploadParts"),
)
SEED_ACTIONS = (("s3:ListBucket", "s3:GetBucketAcl"), ("s3:GetObject",))
KMS_ENCRYPTIONS = ("aws:kms", "aws:kms:dsse")
S3_ARN = re.compile(r"arn:(?P<partition>[^:]+):s3:::(?P<bucket>[^/]+)/(?P<key>.+)")


def service_principal(region: str) -> str:
    return f"{region}.elasticache-snapshot.amazonaws.com"


def statement(bucket_arn: str, region: str, actions: tuple[tuple[str, ...], tuple[str, ...]]) -> Facts:
    """The bucket policy statement that gives ElastiCache of a region what it needs."""
    return {
        "Sid": "ElastiCacheSnapshots",
        "Effect": "Allow",
        "Principal": {"Service": service_principal(region)},
        "Action": sorted([*actions[0], *actions[1]]),
        "Resource": [bucket_arn, f"{bucket_arn}/*"],
    }


def missing_actions(
    policy: Facts, bucket_arn: str, key: str, region: str, actions: tuple[tuple[str, ...], tuple[str, ...]]
) -> list[str]:
    """The actions that no Allow statement of a bucket policy gives to ElastiCache.

    Conditions are taken as fulfilled and Deny is not weighed, so that what is listed is missing for sure.
    """
    wanted = [(action, bucket_arn) for action in actions[0]] + [
        (action, f"{bucket_arn}/{key}") for action in actions[1]
    ]
    statements = [each for each in _list(policy.get("Statement")) if each.get("Effect") == "Allow"]
    granting = [each for each in statements if _names_principal(each, region)]
    return sorted(action for action, arn in wanted if not any(_grants(each, action, arn) for each in granting))


def require_export_bucket(client: t.Any, bucket: str, key: str, region: str, partition: str) -> list[str]:
    """Raise KeyferryError if ElastiCache of a region surely cannot export to the bucket; give back warnings."""
    require_bucket_in(client, bucket, region)
    require_policy(client, bucket, key, region, partition, EXPORT_ACTIONS)
    return encryption_warnings(client, bucket)


def encryption_warnings(client: t.Any, bucket: str) -> list[str]:
    """What is to be known of the bucket's default encryption before a group is seeded from it."""
    if _default_encryption(client, bucket) not in KMS_ENCRYPTIONS:
        return []
    return [
        f"The bucket {bucket} encrypts with a KMS key by default. ElastiCache cannot be seeded from objects encrypted"
        " so: what is uploaded for that needs SSE-S3 (AES256)."
    ]


def require_seed(client: t.Any, arn: str, region: str) -> None:
    """Raise KeyferryError if ElastiCache of a region surely cannot be seeded from the RDB file at an S3 ARN."""
    parsed = S3_ARN.fullmatch(arn)
    if not parsed:
        raise KeyferryError(f"{arn} is no ARN of an S3 object: it looks like arn:aws:s3:::BUCKET/KEY.")
    if "," in parsed["key"]:
        raise KeyferryError(f"ElastiCache cannot be seeded from {arn}: the object's name may not contain a comma.")
    try:
        _require_readable(client, parsed, region)
    except KeyferryError as error:
        # ElastiCache may be let in where these credentials are not.
        if error.result.get("error_code") not in s3.DENIED_CODES:
            raise


def _require_readable(client: t.Any, arn: re.Match[str], region: str) -> None:
    bucket, key = arn["bucket"], arn["key"]
    require_bucket_in(client, bucket, region)
    found = s3.head(client, bucket, key)
    if not found:
        raise KeyferryError(f"There is no object {key} in the bucket {bucket}: upload the RDB file first.")
    if found.get("ServerSideEncryption") in KMS_ENCRYPTIONS:
        raise KeyferryError(
            f"ElastiCache cannot be seeded from {arn[0]}: the object is encrypted with a KMS key. Upload it again with"
            " SSE-S3 (keyferry.redis.s3_transfer with server_side_encryption=AES256)."
        )
    if _has_foreign_grant(lambda: client.get_object_acl(Bucket=bucket, Key=key)) is not False:
        return
    require_policy(client, bucket, key, region, arn["partition"], SEED_ACTIONS)


def require_bucket_in(client: t.Any, bucket: str, region: str) -> None:
    """Raise KeyferryError unless the bucket is there, and in the region as far as S3 tells."""
    reply = s3.require_bucket(client, bucket)
    found = reply.get("BucketRegion") or reply["ResponseMetadata"]["HTTPHeaders"].get("x-amz-bucket-region")
    if found and found != region:
        raise KeyferryError(
            f"The bucket {bucket} is in {found}, but ElastiCache of {region} reads and writes only buckets of {region}:"
            " name a bucket there."
        )


def require_policy(
    client: t.Any,
    bucket: str,
    key: str,
    region: str,
    partition: str,
    actions: tuple[tuple[str, ...], tuple[str, ...]],
) -> None:
    """Raise KeyferryError, with the statement to add, if neither policy nor ACL let ElastiCache do these actions."""
    policy = _policy(client, bucket)
    if policy is None:
        return
    arn = f"arn:{partition}:s3:::{bucket}"
    missing = missing_actions(policy, arn, key, region, actions)
    # The older way to let ElastiCache in is an ACL grant to its canonical user.
    if not missing or _has_foreign_grant(lambda: client.get_bucket_acl(Bucket=bucket)) is not False:
        return
    wanted = statement(arn, region, actions)
    raise KeyferryError(
        f"ElastiCache of {region} may not use the bucket {bucket}: its policy does not give {', '.join(missing)} to"
        f" {service_principal(region)}. Add this statement to the bucket policy:\n{json.dumps(wanted, indent=2)}",
        policy_statement=wanted,
    )


def _policy(client: t.Any, bucket: str) -> Facts | None:
    """The bucket's policy, an empty one if it has none, None if we may not know."""
    try:
        return json.loads(client.get_bucket_policy(Bucket=bucket)["Policy"])
    except ClientError as error:
        return {} if error_code(error) == "NoSuchBucketPolicy" else None


def _has_foreign_grant(read_acl: t.Callable[[], Facts]) -> bool | None:
    """Whether an ACL lets anyone but the owner in; None if we may not know."""
    try:
        acl = read_acl()
    except ClientError:
        return None
    grantees = (grant.get("Grantee", {}) for grant in acl.get("Grants", []))
    return any(each.get("ID") != acl["Owner"]["ID"] for each in grantees)


def _default_encryption(client: t.Any, bucket: str) -> str | None:
    try:
        reply = client.get_bucket_encryption(Bucket=bucket)
    except ClientError:
        return None
    rules = reply["ServerSideEncryptionConfiguration"]["Rules"]
    return next((rule.get("ApplyServerSideEncryptionByDefault", {}).get("SSEAlgorithm") for rule in rules), None)


def _list(value: t.Any) -> list[t.Any]:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def _names_principal(grant: Facts, region: str) -> bool:
    principal = grant.get("Principal")
    if principal is None or principal == "*" or "CanonicalUser" in principal:
        return True
    named = _list(principal.get("Service")) + _list(principal.get("AWS"))
    return "*" in named or service_principal(region) in named or service_principal(region) + ".cn" in named


def _grants(grant: Facts, action: str, arn: str) -> bool:
    actions, resources = _list(grant.get("Action")), _list(grant.get("Resource"))
    allowed = not actions or any(_matches(pattern.lower(), action.lower()) for pattern in actions)
    return allowed and (not resources or any(_matches(pattern, arn) for pattern in resources))


def _matches(pattern: str, text: str) -> bool:
    """IAM's wildcards: * for any characters, ? for any one."""
    return bool(re.fullmatch(re.escape(pattern).replace(r"\*", ".*").replace(r"\?", "."), text))
