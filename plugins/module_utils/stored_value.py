# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A value that AWS keeps for applications, with its earlier versions. No error text holds a value."""

from __future__ import annotations

import json
import typing as t

from ansible_collections.keyferry.redis.plugins.module_utils.aws import RETRY, aws_errors
from ansible_collections.keyferry.redis.plugins.module_utils.errors import KeyferryError


class Store(t.Protocol):
    """Where one value is kept. Versions are texts, as they are remembered and given back."""

    what: str

    def version(self) -> str: ...

    def value(self, version: str | None = None) -> str: ...

    def put(self, value: str) -> str: ...


class SsmParameter:
    """A parameter of SSM Parameter Store, of any type; it keeps its type, tier and KMS key."""

    def __init__(self, client: t.Any, name: str) -> None:
        self.what = f"the parameter {name}"
        self._client, self._name = client, name

    def version(self) -> str:
        return str(self._get(self._name, decrypt=False)["Version"])

    def value(self, version: str | None = None) -> str:
        return str(self._get(f"{self._name}:{version}" if version else self._name, decrypt=True)["Value"])

    def put(self, value: str) -> str:
        with aws_errors(f"set {self.what}"):
            found = self._described()
            kept = {key: found[key] for key in ("Type", "KeyId", "Tier", "DataType") if key in found}
            answer = self._client.put_parameter(aws_retry=True, Name=self._name, Value=value, Overwrite=True, **kept)
        return str(answer["Version"])

    @RETRY
    def _described(self) -> dict[str, t.Any]:
        filters = [{"Key": "Name", "Option": "Equals", "Values": [self._name]}]
        # AWS may answer with pages that hold nothing.
        for page in self._client.get_paginator("describe_parameters").paginate(ParameterFilters=filters):
            for found in page["Parameters"]:
                return dict(found)
        raise KeyferryError(
            f"Could not set {self.what}: ssm:DescribeParameters tells nothing of it, so neither the type nor the KMS"
            " key that it is to keep. Give its name, not its ARN."
        )

    def _get(self, name: str, decrypt: bool) -> dict[str, t.Any]:
        with aws_errors(f"read {self.what}"):
            return dict(self._client.get_parameter(aws_retry=True, Name=name, WithDecryption=decrypt)["Parameter"])


class Secret:
    """A secret of Secrets Manager, whose value is text. Its policy, rotation and KMS key are left alone."""

    def __init__(self, client: t.Any, name: str) -> None:
        self.what = f"the secret {name}"
        self._client, self._name = client, name

    def version(self) -> str:
        with aws_errors(f"look at {self.what}"):
            stages = self._client.describe_secret(aws_retry=True, SecretId=self._name).get("VersionIdsToStages", {})
        current = [version for version, names in stages.items() if "AWSCURRENT" in names]
        if not current:
            raise KeyferryError(f"There is no current version of {self.what}. Give it a value first.")
        return str(current[0])

    def value(self, version: str | None = None) -> str:
        which = {"VersionId": version} if version else {}
        with aws_errors(f"read {self.what}"):
            found = self._client.get_secret_value(aws_retry=True, SecretId=self._name, **which)
        if "SecretString" not in found:
            raise KeyferryError(f"The value of {self.what} is binary. Only text can be set.")
        return str(found["SecretString"])

    def put(self, value: str) -> str:
        with aws_errors(f"set {self.what}"):
            answer = self._client.put_secret_value(aws_retry=True, SecretId=self._name, SecretString=value)
        return str(answer["VersionId"])


def with_value(store: Store, now: str, json_key: str | None, value: str) -> str:
    """What I(now) becomes when it, or the one key of its JSON, gets I(value)."""
    return value if json_key is None else _with_key(store, now, json_key, value)


def with_version(store: Store, now: str, json_key: str | None, version: str) -> str:
    """What I(now) becomes when it, or the one key of its JSON, is again what it was in I(version)."""
    before = store.value(version)
    if json_key is None:
        return before
    return _with_key(store, now, json_key, _object(store, before, json_key)[json_key])


def _with_key(store: Store, now: str, json_key: str, value: t.Any) -> str:
    fields = _object(store, now, json_key)
    return now if fields[json_key] == value else json.dumps({**fields, json_key: value})


def _object(store: Store, text: str, json_key: str) -> dict[str, t.Any]:
    try:
        fields = json.loads(text)
    except ValueError:
        fields = None
    if not isinstance(fields, dict):
        raise KeyferryError(
            f"The value of {store.what} is not a JSON object, so it has no key {json_key}. Leave json_key out."
        )
    if json_key not in fields:
        raise KeyferryError(
            f"The value of {store.what} has no key {json_key}, only {', '.join(fields)}. Check json_key."
        )
    return fields
