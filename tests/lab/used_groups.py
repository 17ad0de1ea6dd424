# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""EC2 deletes no security group that a rule of another one refers to; moto would."""

from __future__ import annotations

import uuid
from urllib.parse import parse_qsl

from moto.ec2.models import ec2_backends

REFERENCES = ("ip-permission.group-id", "egress.ip-permission.group-id")


def refusal(body: str, account: str, region: str) -> bytes:
    """EC2's error for a form-encoded DeleteSecurityGroup that must not be; empty for every other request."""
    asked = dict(parse_qsl(body))
    group = asked.get("GroupId", "")
    if asked.get("Action") != "DeleteSecurityGroup" or not _is_used(group, account, region):
        return b""
    details = f"<Code>DependencyViolation</Code><Message>resource {group} has a dependent object</Message>"
    request = f"<RequestID>{uuid.uuid4()}</RequestID>"
    return f"<Response><Errors><Error>{details}</Error></Errors>{request}</Response>".encode()


def _is_used(group: str, account: str, region: str) -> bool:
    ec2 = ec2_backends[account][region]
    found = [each for way in REFERENCES for each in ec2.describe_security_groups(filters={way: [group]})]
    return any(each.id != group for each in found)
