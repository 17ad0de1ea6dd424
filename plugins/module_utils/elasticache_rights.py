# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the credentials lack of the rights that a migration needs, as IAM's own policy simulator says.

Nothing is tried out: a call that is refused half-way through the night is what this is to spare.
"""

from __future__ import annotations

import typing as t
from dataclasses import dataclass

from ansible_collections.keyferry.redis.plugins.module_utils.aws import aws_errors
from ansible_collections.keyferry.redis.plugins.module_utils.errors import KeyferryError


@dataclass(frozen=True)
class Right:
    """Actions, and the ARN that they are to be done to."""

    actions: tuple[str, ...]
    resource: str


def account_and_principal(sts_client: t.Any, iam_client: t.Any) -> tuple[str, str]:
    """Give back the account of these credentials, and the ARN of the user or role whose policies are theirs."""
    with aws_errors("find out whose credentials these are"):
        identity = sts_client.get_caller_identity(aws_retry=True)
    arn, account = identity["Arn"], identity["Account"]
    kind, _slash, name = arn.rpartition(":")[2].partition("/")
    if kind != "assumed-role":
        return account, arn
    # arn:aws:sts::123456789012:assumed-role/night/session says nothing of the role's path.
    with aws_errors("find the role of these credentials"):
        role = iam_client.get_role(RoleName=name.partition("/")[0], aws_retry=True)
    return account, role["Role"]["Arn"]


class Refused(t.NamedTuple):
    """An action that the policies of a principal do not allow, in words, and whether another policy may allow it."""

    words: str
    is_sure: bool


def lacking(iam_client: t.Any, principal: str, wanted: t.Iterable[Right]) -> list[Refused]:
    """Give back the actions that are not allowed, each with what it is refused for. Root may do everything."""
    if principal.endswith(":root"):
        return []
    return [refused for right in wanted for refused in _refused(iam_client, principal, right)]


def _refused(iam_client: t.Any, principal: str, right: Right) -> list[Refused]:
    with aws_errors("ask IAM what these credentials may do"):
        answer = iam_client.simulate_principal_policy(
            PolicySourceArn=principal,
            ActionNames=list(right.actions),
            ResourceArns=[right.resource],
            aws_retry=True,
        )
    # A policy with conditions on the request cannot be judged without it.
    return [
        Refused(f"{each['EvalActionName']} on {right.resource}", not _is_open(each))
        for each in answer["EvaluationResults"]
        if each["EvalDecision"] != "allowed" and not each.get("MissingContextValues")
    ]


def _is_open(result: dict[str, t.Any]) -> bool:
    """Whether the policy of the bucket or key itself may allow what no policy of the principal speaks of."""
    return result["EvalDecision"] == "implicitDeny" and result["EvalActionName"].startswith(("s3:", "kms:"))


def require_rights(
    sts_client: t.Any,
    iam_client: t.Any,
    rights_in: t.Callable[[str], t.Iterable[Right]],
    remark: t.Callable[[str], object],
) -> None:
    """Raise KeyferryError with all that is surely refused, and I(remark) what only may be.

    I(rights_in) gives the rights needed in an account.
    """
    account, principal = account_and_principal(sts_client, iam_client)
    found = lacking(iam_client, principal, rights_in(account))
    refused, perhaps = (", ".join(each.words for each in found if each.is_sure is sure) for sure in (True, False))
    if perhaps:
        remark(
            f"No policy of {principal} allows {perhaps}. Unless the policy of the bucket or key does, add them;"
            " docs/security.md has it whole."
        )
    if refused:
        raise KeyferryError(
            f"IAM does not allow {principal} these: {refused}. Add them to its policy; docs/security.md has it whole."
        )
