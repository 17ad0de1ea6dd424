# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Parameter groups, subnet groups, tags and events."""

from __future__ import annotations

import datetime

from .buckets import Buckets
from .protocol import modelled
from .region import Fields, Place, Region
from .state import FIXED_PARAMETERS, PARAMETERS, ParameterGroup, now
from .validation import identifier, invalid, page


class Catalogue(Region):
    """The operations on what replication groups refer to."""

    def __init__(self, place: Place, buckets: Buckets) -> None:
        super().__init__(place, buckets)
        self.subnet_groups = {"default": self._subnet_group("default", "Default subnet group", [])}

    def describe_cache_parameter_groups(self, asked: Fields, _fault: Fields) -> Fields:
        name = asked.get("CacheParameterGroupName")
        groups = [self._parameter_group(name)] if name else self.parameter_groups.values()
        records, marker = page([self._shown_parameter_group(group) for group in groups], asked)
        return {"CacheParameterGroups": records, "Marker": marker}

    def describe_cache_parameters(self, asked: Fields, _fault: Fields) -> Fields:
        parameters = self._parameter_group(asked["CacheParameterGroupName"]).parameters()
        wanted = [found for found in parameters if asked.get("Source", found["Source"]) == found["Source"]]
        records, marker = page(wanted, asked)
        return {"Parameters": records, "Marker": marker, "CacheNodeTypeSpecificParameters": []}

    def create_cache_parameter_group(self, asked: Fields, _fault: Fields) -> Fields:
        name = identifier(asked["CacheParameterGroupName"], "CacheParameterGroupName")
        if name in self.parameter_groups:
            raise modelled("CacheParameterGroupAlreadyExistsFault", f"Cache parameter group {name} already exists.")
        if asked["CacheParameterGroupFamily"] not in {group.family for group in self.parameter_groups.values()}:
            raise invalid(f"CacheParameterGroupFamily {asked['CacheParameterGroupFamily']} is not a valid family.")
        group = ParameterGroup(name, asked["CacheParameterGroupFamily"], asked["Description"])
        self.parameter_groups[name] = group
        return {"CacheParameterGroup": self._shown_parameter_group(group)}

    def modify_cache_parameter_group(self, asked: Fields, _fault: Fields) -> Fields:
        group = self._parameter_group(asked["CacheParameterGroupName"])
        values = {pair["ParameterName"]: pair["ParameterValue"] for pair in asked["ParameterNameValues"]}
        if unknown := set(values) - set(PARAMETERS):
            raise invalid(f"Unknown parameter: {', '.join(sorted(unknown))}")
        users = [user for user in self.groups.values() if user.asked["CacheParameterGroupName"] == group.name]
        if group.name.startswith("default.") or (users and set(values) & set(FIXED_PARAMETERS)):
            raise modelled(
                "InvalidCacheParameterGroupStateFault",
                f"Cache parameter group {group.name} is in use or a default one.",
            )
        group.values |= values
        for user in users:
            user.servers.configure(group.immediate_settings())
        return {"CacheParameterGroupName": group.name}

    def _shown_parameter_group(self, group: ParameterGroup) -> Fields:
        return {
            "CacheParameterGroupName": group.name,
            "CacheParameterGroupFamily": group.family,
            "Description": group.description,
            "IsGlobal": False,
            "ARN": self._arn("parametergroup", group.name),
        }

    def create_cache_subnet_group(self, asked: Fields, _fault: Fields) -> Fields:
        name = asked["CacheSubnetGroupName"].lower()
        if name in self.subnet_groups:
            raise modelled("CacheSubnetGroupAlreadyExistsFault", f"Cache subnet group {name} already exists.")
        made = self._subnet_group(name, asked["CacheSubnetGroupDescription"], asked["SubnetIds"])
        self.subnet_groups[name] = made
        return {"CacheSubnetGroup": made}

    def describe_cache_subnet_groups(self, asked: Fields, _fault: Fields) -> Fields:
        name = asked.get("CacheSubnetGroupName", "").lower()
        if name and name not in self.subnet_groups:
            raise modelled("CacheSubnetGroupNotFoundFault", f"Cache subnet group {name} does not exist.")
        found = [self.subnet_groups[name]] if name else list(self.subnet_groups.values())
        records, marker = page(found, asked)
        return {"CacheSubnetGroups": records, "Marker": marker}

    def _subnet_group(self, name: str, description: str, subnets: list[str]) -> Fields:
        return {
            "CacheSubnetGroupName": name,
            "CacheSubnetGroupDescription": description,
            "VpcId": "vpc-lab",
            "Subnets": [{"SubnetIdentifier": subnet} for subnet in subnets],
            "ARN": self._arn("subnetgroup", name),
        }

    def list_tags_for_resource(self, asked: Fields, _fault: Fields) -> Fields:
        return self._tag_list(self._resource(asked["ResourceName"]))

    def add_tags_to_resource(self, asked: Fields, _fault: Fields) -> Fields:
        arn = self._resource(asked["ResourceName"])
        self._set_tags(arn, asked["Tags"])
        return self._tag_list(arn)

    def remove_tags_from_resource(self, asked: Fields, _fault: Fields) -> Fields:
        arn = self._resource(asked["ResourceName"])
        for key in asked["TagKeys"]:
            if key not in self.tags.get(arn, {}):
                raise modelled("TagNotFoundFault", f"Tag {key} not found.")
            del self.tags[arn][key]
        return self._tag_list(arn)

    def _tag_list(self, arn: str) -> Fields:
        return {"TagList": [{"Key": key, "Value": value} for key, value in self.tags.get(arn, {}).items()]}

    def _resource(self, arn: str) -> str:
        """The ARN, when there is such a thing."""
        *head, kind, name = arn.split(":")
        if head != self._arn(kind, name).split(":")[:-2]:
            raise modelled("InvalidARNFault", f"{arn} is not an ARN of this region and account.")
        if kind == "snapshot":
            self._snapshot(name)
        elif kind == "replicationgroup":
            self._group(name, "available")
        elif kind == "cluster":
            self._group_of(name)
        elif kind == "parametergroup":
            self._parameter_group(name)
        else:
            raise modelled("InvalidARNFault", f"The lab keeps no tags for {kind}.")
        return arn

    def describe_events(self, asked: Fields, _fault: Fields) -> Fields:
        until = asked.get("EndTime", now())
        since = asked.get("StartTime", until - datetime.timedelta(minutes=asked.get("Duration", 60)))
        found = [
            event
            for event in self.events
            if since <= event["Date"] <= until
            and all(asked.get(key, event[key]) == event[key] for key in ("SourceIdentifier", "SourceType"))
        ]
        records, marker = page(found, asked)
        return {"Events": records, "Marker": marker}
