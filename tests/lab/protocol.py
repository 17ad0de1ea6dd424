# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The AWS Query protocol, read and written strictly after botocore's own model of ElastiCache (2015-02-02)."""

from __future__ import annotations

import datetime
import uuid
from typing import Any
from urllib.parse import parse_qsl
from xml.etree import ElementTree

import botocore.session
from botocore.model import OperationModel, Shape

MODEL = botocore.session.get_session().get_service_model("elasticache")
NAMESPACE = MODEL.metadata["xmlNamespace"]


class AwsError(Exception):
    """An error as AWS puts it on the wire: code, HTTP status, message."""

    def __init__(self, code: str, message: str, status: int = 400) -> None:
        super().__init__(f"{code}: {message}")
        self.code, self.message, self.status = code, message, status


def modelled(shape_name: str, message: str) -> AwsError:
    """The error that the model calls `shape_name`, with the code and the status it has on the wire."""
    error = MODEL.shape_for(shape_name).metadata["error"]
    return AwsError(error["code"], message, error["httpStatusCode"])


def parse_request(body: str) -> tuple[OperationModel, dict[str, Any]]:
    """(operation, its parameters with the model's types) of a form-encoded body; AwsError for what the model lacks."""
    fields = dict(parse_qsl(body, keep_blank_values=True))
    action, version = fields.pop("Action", ""), fields.pop("Version", "")
    if action not in MODEL.operation_names or version != MODEL.metadata["apiVersion"]:
        raise AwsError("InvalidAction", f"Could not find operation {action} for version {version}")
    operation = MODEL.operation_model(action)
    tree: dict[str, Any] = {}
    for path, value in fields.items():
        *parents, leaf = path.split(".")
        node = tree
        for part in parents:
            node = node.setdefault(part, {})
        node[leaf] = value
    return operation, _read(operation.input_shape, tree, action)


def _read(shape: Shape, node: Any, where: str) -> Any:
    if shape.type_name == "structure":
        known = {_name(member, name): (name, member) for name, member in shape.members.items()}
        if unknown := sorted(set(node) - set(known)):
            raise AwsError("ValidationError", f"{where} has no parameter {', '.join(unknown)}")
        found = {known[key][0]: _read(known[key][1], value, f"{where}.{key}") for key, value in node.items()}
        if missing := sorted(set(shape.required_members) - set(found)):
            raise AwsError("ValidationError", f"{where} lacks the required parameter {', '.join(missing)}")
        return found
    if shape.type_name == "list":
        # An empty list is sent as `Name=`.
        items = node.get(_name(shape.member, "member"), {}) if node else {}
        return [_read(shape.member, items[key], where) for key in sorted(items, key=int)]
    if not isinstance(node, str):
        raise AwsError("MalformedInput", f"{where} is not a {shape.type_name}")
    return _scalar(shape, node, where)


def _scalar(shape: Shape, text: str, where: str) -> Any:
    try:
        if shape.type_name == "boolean":
            return {"true": True, "false": False}[text]
        if shape.type_name == "integer":
            return int(text)
        if shape.type_name == "timestamp":
            return datetime.datetime.fromisoformat(text)
    except (KeyError, ValueError) as error:
        raise AwsError("MalformedInput", f"{where} is not a {shape.type_name}: {text}") from error
    allowed = shape.metadata.get("enum")
    if allowed and text not in allowed:
        raise modelled("InvalidParameterValueException", f"{where} must be one of {', '.join(allowed)}, not {text}")
    return text


def _name(shape: Shape, default: str) -> str:
    return str(shape.serialization.get("name", default))


def write_response(operation: OperationModel, result: dict[str, Any]) -> bytes:
    """The XML of a successful answer; a KeyError for a member that the model does not have."""
    root = ElementTree.Element(f"{operation.name}Response", xmlns=NAMESPACE)
    if operation.output_shape is not None:
        _write(operation.output_shape, result, root, operation.output_shape.serialization["resultWrapper"])
    metadata = ElementTree.SubElement(root, "ResponseMetadata")
    ElementTree.SubElement(metadata, "RequestId").text = str(uuid.uuid4())
    return bytes(ElementTree.tostring(root, encoding="utf-8"))


def _write(shape: Shape, value: Any, parent: ElementTree.Element, name: str) -> None:
    element = ElementTree.SubElement(parent, name)
    if shape.type_name == "structure":
        for key, item in value.items():
            if item is not None:
                _write(shape.members[key], item, element, _name(shape.members[key], key))
    elif shape.type_name == "list":
        for item in value:
            _write(shape.member, item, element, _name(shape.member, "member"))
    else:
        element.text = _text(shape, value)


def _text(shape: Shape, value: Any) -> str:
    if shape.type_name == "boolean":
        return "true" if value else "false"
    if shape.type_name == "timestamp":
        return str(value.astimezone(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ"))
    if not isinstance(value, {"string": str, "integer": int}[shape.type_name]):
        raise TypeError(f"{shape.name} is a {shape.type_name}, not {value!r}")
    return str(value)


def write_error(error: AwsError) -> bytes:
    """The XML of an error answer."""
    root = ElementTree.Element("ErrorResponse", xmlns=NAMESPACE)
    details = ElementTree.SubElement(root, "Error")
    sender = "Sender" if error.status < 500 else "Receiver"
    for name, text in {"Type": sender, "Code": error.code, "Message": error.message}.items():
        ElementTree.SubElement(details, name).text = text
    ElementTree.SubElement(root, "RequestId").text = str(uuid.uuid4())
    return bytes(ElementTree.tostring(root, encoding="utf-8"))
