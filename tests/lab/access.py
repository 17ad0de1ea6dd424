# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Users and user groups (RBAC), and serverless caches, of which the lab has the names only."""

from __future__ import annotations

import hashlib
from typing import Any

from .buckets import Buckets
from .protocol import modelled
from .region import Fields, Place, Region
from .state import now
from .validation import clash, identifier, invalid, page


class Access(Region):
    """The operations on users, user groups and serverless caches."""

    def __init__(self, place: Place, buckets: Buckets) -> None:
        super().__init__(place, buckets)
        self.users: dict[str, Fields] = {}
        self.user_groups: dict[str, Fields] = {}
        self.serverless: dict[str, Fields] = {}
        # User id -> the rule of redis-server's ACL that says how to log in.
        self._logins: dict[str, str] = {}

    def create_user(self, asked: Fields, _fault: Fields) -> Fields:
        name = identifier(asked["UserId"], "UserId")
        if name in self.users:
            raise modelled("UserAlreadyExistsFault", f"User {name} already exists.")
        passwords = asked.get("Passwords", [])
        if bool(passwords) == asked.get("NoPasswordRequired", False):
            raise clash("A user has either passwords or NoPasswordRequired.")
        if any(not 16 <= len(password) <= 128 for password in passwords):
            raise invalid("A password has 16 to 128 characters.")
        hashed = (hashlib.sha256(password.encode()).hexdigest() for password in passwords)
        self._logins[name] = " ".join(f"#{each}" for each in hashed) or "nopass"
        self.users[name] = {
            "UserId": name,
            "UserName": asked["UserName"],
            "Status": "active",
            "Engine": asked["Engine"].lower(),
            "AccessString": asked["AccessString"],
            "UserGroupIds": [],
            "ARN": self._arn("user", name),
        }
        return self.users[name]

    def describe_users(self, asked: Fields, _fault: Fields) -> Fields:
        found = [self._user(asked["UserId"])] if "UserId" in asked else list(self.users.values())
        records, marker = page(found, asked)
        return {"Users": records, "Marker": marker}

    def create_user_group(self, asked: Fields, _fault: Fields) -> Fields:
        name, engine = identifier(asked["UserGroupId"], "UserGroupId"), asked["Engine"].lower()
        if name in self.user_groups:
            raise modelled("UserGroupAlreadyExistsFault", f"User group {name} already exists.")
        users = [self._user(user) for user in asked.get("UserIds", [])]
        if engine == "redis" and "default" not in {user["UserName"] for user in users}:
            raise modelled("DefaultUserRequired", "A user group of redis needs a user whose name is default.")
        for user in users:
            user["UserGroupIds"].append(name)
        self.user_groups[name] = {
            "UserGroupId": name,
            "Status": "active",
            "Engine": engine,
            "UserIds": [user["UserId"] for user in users],
            "ReplicationGroups": [],
            "ARN": self._arn("usergroup", name),
        }
        return self.user_groups[name]

    def describe_user_groups(self, asked: Fields, _fault: Fields) -> Fields:
        found = [self._user_group(asked["UserGroupId"])] if "UserGroupId" in asked else list(self.user_groups.values())
        records, marker = page(found, asked)
        return {"UserGroups": records, "Marker": marker}

    def _user(self, name: str) -> Fields:
        if name.lower() not in self.users:
            raise modelled("UserNotFoundFault", f"User {name} not found.")
        return self.users[name.lower()]

    def _user_group(self, name: str) -> Fields:
        if name.lower() not in self.user_groups:
            raise modelled("UserGroupNotFoundFault", f"User group {name} not found.")
        return self.user_groups[name.lower()]

    def _user_rules(self, asked: Fields, engine: str) -> dict[str, str]:
        """User name -> its rules, of the user group that a replication group is to have; checked as AWS does."""
        names = asked.get("UserGroupIds", [])
        if not names:
            return {}
        if len(names) > 1:
            raise invalid("A replication group has one user group at most.")
        group = self._user_group(names[0])
        if not asked.get("TransitEncryptionEnabled"):
            raise clash("User groups need TransitEncryptionEnabled.")
        if "AuthToken" in asked:
            raise clash("A replication group has an AUTH token or a user group, not both.")
        if engine == "redis" and group["Engine"] != engine:
            raise clash(f"User group {group['UserGroupId']} is of {group['Engine']}, not of {engine}.")
        users = (self._user(user) for user in group["UserIds"])
        return {user["UserName"]: f"{self._logins[user['UserId']]} {user['AccessString']}" for user in users}

    def create_serverless_cache(self, asked: Fields, _fault: Fields) -> Fields:
        name = identifier(asked["ServerlessCacheName"], "ServerlessCacheName")
        if name in self.serverless:
            raise modelled("ServerlessCacheAlreadyExistsFault", f"Serverless cache {name} already exists.")
        self.serverless[name] = {
            "ServerlessCacheName": name,
            "Status": "available",
            "Engine": asked["Engine"].lower(),
            "CreateTime": now(),
            "ARN": self._arn("serverlesscache", name),
        }
        return {"ServerlessCache": self.serverless[name]}

    def describe_serverless_caches(self, asked: Fields, _fault: Fields) -> Fields:
        found: list[Any] = list(self.serverless.values())
        if "ServerlessCacheName" in asked:
            name = asked["ServerlessCacheName"].lower()
            if name not in self.serverless:
                raise modelled("ServerlessCacheNotFoundFault", f"Serverless cache {name} not found.")
            found = [self.serverless[name]]
        return {"ServerlessCaches": found}
