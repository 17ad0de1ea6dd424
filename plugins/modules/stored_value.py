#!/usr/bin/python
# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: stored_value
short_description: Set a value in SSM Parameter Store or Secrets Manager, and go back to an earlier version
version_added: 0.2.0
author:
  - The keyferry.redis authors (@keyferry)
description:
  - Sets what applications read from a parameter or a secret, the whole value or one key of its JSON.
  - Returns which version was the current one before, which is all that is needed to go back.
  - It never returns a value.
  - The parameter or secret must exist. Its type, KMS key, policy and rotation stay as they are.
options:
  store:
    description:
      - Where the value is kept.
    type: str
    choices: [ssm_parameter, secretsmanager]
    required: true
  name:
    description:
      - Name of the parameter or the secret, or the ARN of a secret.
    type: str
    required: true
  value:
    description:
      - What to set it to. Without this and O(version), nothing is changed, and RV(version) is the current one.
    type: str
  version:
    description:
      - Set the value to what it was in this version, as RV(before_version) gave it. What is set is a new version.
    type: str
  json_key:
    description:
      - The value is a JSON object, and only this key of it is meant. The key must be there. What else has been written
        to the other keys since O(version) stays.
    type: str
notes:
  - The credentials need C(ssm:GetParameter), C(ssm:DescribeParameters) and C(ssm:PutParameter), or
    C(secretsmanager:DescribeSecret), C(secretsmanager:GetSecretValue) and C(secretsmanager:PutSecretValue). AWS grants
    C(ssm:DescribeParameters) on C(*) only.
  - Where the KMS key is not AWS's own, they need C(kms:Decrypt) and C(kms:GenerateDataKey) on it, for a parameter of
    the standard tier C(kms:Encrypt) instead of the latter.
  - SSM Parameter Store keeps the last 100 versions.
seealso:
  - module: community.aws.ssm_parameter
    description: Makes and removes parameters.
  - module: community.aws.secretsmanager_secret
    description: Makes and removes secrets. It removes the policy and rotation that it is not given.
extends_documentation_fragment:
  - amazon.aws.common.modules
  - amazon.aws.region.modules
  - amazon.aws.boto3
  - keyferry.redis.attributes
  - keyferry.redis.attributes.aws
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
    details:
      - A diff would show values.
  idempotent:
    support: full
"""

EXAMPLES = r"""
- name: Point the backend at its Redis
  keyferry.redis.stored_value:
    store: ssm_parameter
    name: /backend/redis-url
    value: rediss://master.orders-redis.example.euc1.cache.amazonaws.com:6379/0
  register: switched

- name: Go back
  keyferry.redis.stored_value:
    store: ssm_parameter
    name: /backend/redis-url
    version: "{{ switched.before_version }}"

- name: Change one key of a secret
  keyferry.redis.stored_value:
    store: secretsmanager
    name: backend
    json_key: redis_host
    value: master.orders-redis.example.euc1.cache.amazonaws.com
"""

RETURN = r"""
version:
  description: The current version. In check mode, the one that is current now.
  returned: success
  type: str
  sample: "4"
before_version:
  description: The version that was current before.
  returned: success
  type: str
  sample: "3"
error_code:
  description: The error code of AWS.
  returned: failure, where AWS has refused a call
  type: str
  sample: AccessDenied
request_id:
  description: What AWS calls the refused call, for its support.
  returned: failure, where AWS has refused a call
  type: str
  sample: 6f1d2f6e-0d3c-4a5b-8f4e-2f4c9b7d1a10
"""

import typing as t

from ansible_collections.amazon.aws.plugins.module_utils.modules import AnsibleAWSModule
from ansible_collections.keyferry.redis.plugins.module_utils.ansible_module import run
from ansible_collections.keyferry.redis.plugins.module_utils.aws import retrying_client
from ansible_collections.keyferry.redis.plugins.module_utils.stored_value import (
    Secret,
    SsmParameter,
    Store,
    with_value,
    with_version,
)

STORES = {"ssm_parameter": ("ssm", SsmParameter), "secretsmanager": ("secretsmanager", Secret)}


def work(module: AnsibleAWSModule) -> dict[str, t.Any]:
    """Bring the value to what is asked, and give back the module's result."""
    params = module.params
    service, kind = STORES[params["store"]]
    store = kind(retrying_client(module, service), params["name"])
    before = store.version()
    if params["value"] is None and params["version"] is None:
        return {"changed": False, "version": before, "before_version": before}
    now = store.value()
    wanted = _wanted(store, now, params)
    after = store.put(wanted) if wanted != now and not module.check_mode else before
    return {"changed": wanted != now, "version": after, "before_version": before}


def _wanted(store: Store, now: str, params: dict[str, t.Any]) -> str:
    if params["version"] is not None:
        return with_version(store, now, params["json_key"], params["version"])
    return with_value(store, now, params["json_key"], params["value"])


def main() -> None:
    module = AnsibleAWSModule(
        argument_spec={
            "store": {"type": "str", "choices": list(STORES), "required": True},
            "name": {"type": "str", "required": True},
            "value": {"type": "str", "no_log": True},
            "version": {"type": "str"},
            "json_key": {"type": "str", "no_log": False},
        },
        mutually_exclusive=[("value", "version")],
        supports_check_mode=True,
    )
    run(module, work)


if __name__ == "__main__":
    main()
