# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What ElastiCache asks of an S3 bucket before it exports to it or seeds from it."""

from __future__ import annotations

import fnmatch
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from boto3.s3.transfer import TransferConfig
from botocore.exceptions import ClientError

from .protocol import AwsError, modelled

# The older way to grant access: an ACL grant to this id, which is ElastiCache's in all regions enabled by default.
CANONICAL_ID = "540804c33a284a299d2547575ce1010f2312ef3da9b3a053c8bc45bf233e4353"

# The permission that ElastiCache's error names -> the actions that it stands for (user guide, "Exporting a backup").
EXPORT = {
    "READ": ("GetObject", "ListBucket", "ListMultipartUploadParts", "ListBucketMultipartUploads"),
    "WRITE": ("PutObject",),
    "READ_ACP": ("GetBucketAcl",),
}
SEED = {"READ": ("GetObject", "ListBucket"), "READ_ACP": ("GetBucketAcl",)}

# moto reads the whole object again for every ranged GET, so a transfer has few and big parts.
TRANSFER = TransferConfig(multipart_threshold=64 << 20, multipart_chunksize=64 << 20, max_concurrency=2)


def export_policy(bucket: str, region: str) -> str:
    """The bucket policy (JSON) that lets ElastiCache of a region export to a bucket and seed from it."""
    actions = [f"s3:{action}" for permission in EXPORT.values() for action in permission]
    statement = {
        "Effect": "Allow",
        "Principal": {"Service": _principal(region)},
        "Action": actions,
        "Resource": [f"arn:aws:s3:::{bucket}", f"arn:aws:s3:::{bucket}/*"],
    }
    return json.dumps({"Version": "2012-10-17", "Statement": [statement]})


class Buckets:
    """S3 as ElastiCache sees it, through a boto3 client."""

    def __init__(self, client: Any, region: str) -> None:
        self.client = client
        self.region = region

    def check_export(self, bucket: str, keys: list[str]) -> None:
        """Raise the error that AWS gives when objects cannot be exported under these keys."""
        self._check_bucket(bucket)
        for permission in EXPORT:
            if missing := self._missing(bucket, keys[0], EXPORT[permission], permission):
                raise _refused(
                    f"ElastiCache has not been granted {permission} permissions {', '.join(missing)} on the S3 Bucket."
                )
        for key in keys:
            if self._head(bucket, key) is not None:
                raise _refused(f"The S3 bucket {bucket} already contains an object with key {key}.")

    def check_seed(self, arn: str) -> tuple[str, str]:
        """(bucket, key) of an object that a group can be seeded from. The texts of the refusals are not AWS's own."""
        match = re.fullmatch(r"arn:aws:s3:::([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])/([^,]+)", arn)
        if not match:
            raise _refused(f"Invalid snapshot ARN {arn}: not an S3 object's ARN, or a comma in the object's name.")
        bucket, key = match.groups()
        self._check_bucket(bucket)
        for permission, actions in SEED.items():
            if missing := self._missing(bucket, key, actions, permission):
                raise _refused(f"No permission to access S3 object: {bucket}/{key} ({', '.join(missing)})")
        head = self._head(bucket, key)
        if head is None:
            raise _refused(f"The S3 object {bucket}/{key} does not exist.")
        if head.get("ServerSideEncryption", "AES256") != "AES256":
            raise _refused(f"The S3 object {bucket}/{key} is not encrypted with SSE-S3.")
        return bucket, key

    def put(self, path: Path, bucket: str, key: str) -> None:
        """Upload a file."""
        self.client.upload_file(str(path), bucket, key, Config=TRANSFER)

    def fetch(self, bucket: str, key: str, path: Path) -> None:
        """Download an object."""
        self.client.download_file(bucket, key, str(path), Config=TRANSFER)

    def _check_bucket(self, bucket: str) -> None:
        if bucket not in {found["Name"] for found in self.client.list_buckets()["Buckets"]}:
            try:
                self.client.get_bucket_location(Bucket=bucket)
            except ClientError as error:
                if error.response["Error"]["Code"] == "NoSuchBucket":
                    raise _refused(f"The S3 bucket {bucket} does not exist.") from error
            raise _refused(f"The S3 bucket {bucket} is not owned by the authenticated user.")
        if (self.client.get_bucket_location(Bucket=bucket)["LocationConstraint"] or "us-east-1") != self.region:
            raise _refused(f"The S3 bucket {bucket} is outside of the region.")

    def _head(self, bucket: str, key: str) -> dict[str, Any] | None:
        try:
            return dict(self.client.head_object(Bucket=bucket, Key=key))
        except ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] != 404:
                raise
            return None

    def _missing(self, bucket: str, key: str, actions: Iterable[str], permission: str) -> list[str]:
        statements = self._statements(bucket)
        missing = [
            f"s3:{action}"
            for action in actions
            if not allowed(statements, _principal(self.region), f"s3:{action}", _resource(bucket, key, action))
        ]
        if missing and {permission, "FULL_CONTROL"} & self._granted(bucket):
            return []
        return missing

    def _statements(self, bucket: str) -> list[dict[str, Any]]:
        try:
            found = json.loads(self.client.get_bucket_policy(Bucket=bucket)["Policy"])["Statement"]
        except ClientError as error:
            if error.response["Error"]["Code"] != "NoSuchBucketPolicy":
                raise
            return []
        return found if isinstance(found, list) else [found]

    def _granted(self, bucket: str) -> set[str]:
        grants = self.client.get_bucket_acl(Bucket=bucket)["Grants"]
        return {grant["Permission"] for grant in grants if grant["Grantee"].get("ID") == CANONICAL_ID}


def allowed(statements: list[dict[str, Any]], service: str, action: str, resource: str) -> bool:
    """Whether a bucket policy lets a service do an action on a resource. Conditions are taken as met."""
    effects = {
        statement["Effect"]
        for statement in statements
        if _is_for(statement.get("Principal"), service)
        and _matches(statement.get("Action", []), action)
        and _matches(statement.get("Resource", []), resource)
    }
    return effects == {"Allow"}


def _is_for(principal: Any, service: str) -> bool:
    if isinstance(principal, dict):
        return service in _listed(principal.get("Service", [])) or "*" in _listed(principal.get("AWS", []))
    return bool(principal == "*")


def _matches(patterns: Any, value: str) -> bool:
    return any(fnmatch.fnmatchcase(value.lower(), pattern.lower()) for pattern in _listed(patterns))


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _resource(bucket: str, key: str, action: str) -> str:
    is_bucket_action = "Bucket" in action
    return f"arn:aws:s3:::{bucket}" if is_bucket_action else f"arn:aws:s3:::{bucket}/{key}"


def _principal(region: str) -> str:
    return f"{region}.elasticache-snapshot.amazonaws.com"


def _refused(message: str) -> AwsError:
    # The model declares no error for buckets; InvalidParameterValue is the only candidate.
    return modelled("InvalidParameterValueException", message)
