# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""IAM's policy simulator, which moto lacks: what the policies of a user or role that moto keeps allow."""

from __future__ import annotations

import json
import uuid
from typing import Any
from urllib.parse import parse_qsl
from xml.sax.saxutils import escape

from moto.iam.access_control import IAMPolicy, PermissionResult
from moto.iam.models import iam_backends

ACTION = "SimulatePrincipalPolicy"
NAMESPACE = "https://iam.amazonaws.com/doc/2010-05-08/"
DECISIONS = {PermissionResult.PERMITTED: "allowed", PermissionResult.DENIED: "explicitDeny"}


def is_asked(body: str) -> bool:
    return dict(parse_qsl(body)).get("Action") == ACTION


def simulate(body: str, account: str) -> bytes:
    """The answer to a form-encoded request: one result for each action, as for one resource."""
    asked = dict(parse_qsl(body))
    policies = _policies(account, asked["PolicySourceArn"])
    resource = asked.get("ResourceArns.member.1", "*")
    actions = [value for name, value in asked.items() if name.startswith("ActionNames.member.")]
    members = "".join(_member(policies, action, resource) for action in actions)
    result = f"<IsTruncated>false</IsTruncated><EvaluationResults>{members}</EvaluationResults>"
    request = f"<ResponseMetadata><RequestId>{uuid.uuid4()}</RequestId></ResponseMetadata>"
    answer = f"<{ACTION}Result>{result}</{ACTION}Result>{request}"
    return f'<{ACTION}Response xmlns="{NAMESPACE}">{answer}</{ACTION}Response>'.encode()


def _member(policies: list[dict[str, Any]], action: str, resource: str) -> str:
    said = [IAMPolicy(json.dumps(policy)).is_action_permitted(action, resource) for policy in policies]
    found = next((each for each in (PermissionResult.DENIED, PermissionResult.PERMITTED) if each in said), None)
    missing = "" if found else "".join(f"<member>{escape(key)}</member>" for key in _conditions(policies))
    return (
        f"<member><EvalActionName>{escape(action)}</EvalActionName>"
        f"<EvalResourceName>{escape(resource)}</EvalResourceName>"
        f"<EvalDecision>{DECISIONS.get(found, 'implicitDeny')}</EvalDecision>"
        f"<MissingContextValues>{missing}</MissingContextValues></member>"
    )


def _conditions(policies: list[dict[str, Any]]) -> list[str]:
    """The context keys that the policies ask for, of which a simulation without a request has none."""
    statements = [each for policy in policies for each in policy["Statement"]]
    return [key for each in statements for test in each.get("Condition", {}).values() for key in test]


def _policies(account: str, arn: str) -> list[dict[str, Any]]:
    """The policies of a user or role; one that the lab has not made, such as its own, may do everything."""
    kind, name = arn.rpartition(":")[2].split("/", 1)
    iam = iam_backends[account]["aws"]
    if kind == "user" and name not in iam.users:
        return [{"Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}]}]
    owner = iam.get_user(name) if kind == "user" else iam.get_role(name.rpartition("/")[2])
    managed = [policy.document for policy in owner.managed_policies.values()]
    return [json.loads(document) for document in [*owner.policies.values(), *managed]]
