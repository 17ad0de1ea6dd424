# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""stored_value against the lab's SSM Parameter Store and Secrets Manager."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from botocore.stub import Stubber
from support.modules import LabModules

from ansible_collections.amazon.aws.plugins.module_utils.retries import RetryingBotoClientWrapper
from ansible_collections.keyferry.redis.plugins.module_utils.aws import RETRY
from ansible_collections.keyferry.redis.plugins.module_utils.errors import KeyferryError
from ansible_collections.keyferry.redis.plugins.module_utils.stored_value import SsmParameter

OLD, NEW = "redis://:hush-hush@old:6379/1", "rediss://:hush-hush@new:6379/0"
STORES = ("ssm_parameter", "secretsmanager")


class Kept:
    """One value of one store, as AWS has it."""

    def __init__(self, aws: LabModules, store: str, name: str, value: str) -> None:
        self.aws, self.store, self.name = aws, store, name
        self.ssm, self.secrets = aws.client("ssm"), aws.client("secretsmanager")
        if store == "ssm_parameter":
            self.ssm.put_parameter(Name=name, Value=value, Type="SecureString", KeyId="alias/mine", Overwrite=True)
        else:
            self.secrets.create_secret(Name=name, SecretString=value, Description="of the backend")

    @property
    def value(self) -> str:
        if self.store == "ssm_parameter":
            return str(self.ssm.get_parameter(Name=self.name, WithDecryption=True)["Parameter"]["Value"])
        return str(self.secrets.get_secret_value(SecretId=self.name)["SecretString"])

    def run(self, **args: Any) -> dict[str, Any]:
        result = self.aws.run("stored_value", store=self.store, name=self.name, **args)
        assert "hush-hush" not in json.dumps(result)
        return result


@pytest.fixture(params=STORES)
def keep(aws: LabModules, request: pytest.FixtureRequest) -> Callable[[str], Kept]:
    """`keep(value)` gives a parameter or a secret of the test's own, with that value."""
    name = f"backend-{request.node.name.partition('[')[0]}"
    return lambda value: Kept(aws, request.param, name, value)


def test_set_and_go_back(keep: Callable[[str], Kept]) -> None:
    kept = keep(OLD)
    looked = kept.run()
    assert looked["version"] and not looked["changed"]
    assert kept.run(value=NEW, _check=True)["changed"] and kept.value == OLD
    switched = kept.run(value=NEW)
    assert kept.value == NEW
    assert switched["before_version"] == looked["version"] != switched["version"]
    assert not kept.run(value=NEW)["changed"]
    back = kept.run(version=switched["before_version"])
    assert back["changed"] and kept.value == OLD
    assert not kept.run(version=switched["before_version"])["changed"]


def test_one_key_of_it_is_set_and_put_back(keep: Callable[[str], Kept]) -> None:
    kept = keep(json.dumps({"user": "app", "redis": OLD}))
    version = kept.run(json_key="redis", value=NEW)["before_version"]
    assert json.loads(kept.value) == {"user": "app", "redis": NEW}
    assert not kept.run(json_key="redis", value=NEW)["changed"]
    # What is written to another key in the meantime stays.
    kept.run(json_key="user", value="another")
    kept.run(json_key="redis", version=version)
    assert json.loads(kept.value) == {"user": "another", "redis": OLD}
    refused = kept.run(json_key="reddis", value=NEW)
    assert refused["failed"] and "has no key reddis, only user, redis. Check json_key." in refused["msg"]


def test_what_cannot_be_is_refused_without_telling_the_value(keep: Callable[[str], Kept]) -> None:
    kept = keep(OLD)
    assert "is not a JSON object, so it has no key redis" in kept.run(json_key="redis", value=NEW)["msg"]
    assert kept.run(version="00000000-0000-0000-0000-000000000099")["failed"]
    assert kept.value == OLD
    kept.name = "nowhere"
    missing = kept.run(value=NEW)
    assert missing["failed"] and "nowhere" in missing["msg"]


def test_a_parameter_keeps_its_type_and_key(aws: LabModules) -> None:
    kept = Kept(aws, "ssm_parameter", "typed", OLD)
    kept.run(value=NEW)
    found = kept.ssm.describe_parameters(ParameterFilters=[{"Key": "Name", "Values": ["typed"]}])["Parameters"][0]
    assert (found["Type"], found["KeyId"]) == ("SecureString", "alias/mine")


def test_a_parameter_keeps_its_type_and_key_where_aws_tells_them_on_a_later_page(aws: LabModules) -> None:
    client = aws.client("ssm")
    parameter = SsmParameter(RetryingBotoClientWrapper(client, RETRY), "typed")
    kept = {"Type": "SecureString", "KeyId": "alias/mine"}
    with Stubber(client) as answers:
        answers.add_response("describe_parameters", {"Parameters": [], "NextToken": "1"})
        answers.add_response("describe_parameters", {"Parameters": [{"Name": "typed", **kept}]})
        answers.add_response(
            "put_parameter", {"Version": 2}, {"Name": "typed", "Value": NEW, "Overwrite": True, **kept}
        )
        assert parameter.put(NEW) == "2"
        answers.add_response("describe_parameters", {"Parameters": []})
        with pytest.raises(KeyferryError, match=r"Could not set the parameter typed: .* nor the KMS key"):
            parameter.put(NEW)
        answers.assert_no_pending_responses()


def test_a_binary_secret_is_refused(aws: LabModules) -> None:
    aws.client("secretsmanager").create_secret(Name="bytes", SecretBinary=b"\x00\xff")
    refused = aws.run("stored_value", store="secretsmanager", name="bytes", value=NEW)
    assert refused["msg"] == "The value of the secret bytes is binary. Only text can be set."
