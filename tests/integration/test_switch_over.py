# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The role switch_over by itself: every ready way there and back, and what it says when the application is not well."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from integration.cutover import Outcome
from integration.plays import INVENTORY, Playbook, host_that_is_down, other_host, write_plays
from support.modules import LabModules

from lab import Lab

OLD = "redis://:hush-hush-hush@old:6379/1"
RECORD = "redis.example.internal."


class Application:
    """Everything by which an application may learn of its Redis, and the role run on it."""

    def __init__(self, lab: Lab, directory: Path) -> None:
        self.directory, self.run_dir = directory, directory / "night"
        self.run_dir.mkdir()
        self.aws = LabModules(lab)
        self.port = self.aws.lab("GET", "groups")["shared-redis"]["nodes"][0]["port"]
        self.url = f"redis://127.0.0.1:{self.port}/1"
        self.ssm, self.secrets = self.aws.client("ssm"), self.aws.client("secretsmanager")
        self.ssm.put_parameter(Name="/backend/redis", Value=OLD, Type="SecureString")
        self.secrets.create_secret(Name="backend", SecretString=json.dumps({"user": "app", "redis": OLD}))
        self._make_record()
        self._make_files()

    def _make_record(self) -> None:
        self.route53 = self.aws.client("route53")
        self.zone = self.route53.create_hosted_zone(Name="example.internal.", CallerReference="one")["HostedZone"]["Id"]
        record = {"Name": RECORD, "Type": "CNAME", "TTL": 77, "ResourceRecords": [{"Value": "old.example"}]}
        change = {"Action": "CREATE", "ResourceRecordSet": record}
        self.route53.change_resource_record_sets(HostedZoneId=self.zone, ChangeBatch={"Changes": [change]})

    def _make_files(self) -> None:
        self.path("url").write_text(OLD)
        self.path("url").chmod(0o640)
        self.path("template.j2").write_text("{{ cutover_host }} {{ cutover_port }}\n")
        self.inventories = [INVENTORY, *(other_host(self.directory, name) for name in ("backend", "second"))]

    def path(self, name: str) -> Path:
        return self.directory / name

    def facts(self) -> dict[str, Any]:
        """What the application would read, everywhere."""
        records = self.route53.list_resource_record_sets(HostedZoneId=self.zone)["ResourceRecordSets"]
        record = next(each for each in records if each["Name"] == RECORD)
        env = self.path("env")
        return {
            "url": (self.path("url").read_text(), oct(self.path("url").stat().st_mode)),
            "env": (env.read_text(), oct(env.stat().st_mode)) if env.exists() else None,
            "record": (record["TTL"], record["ResourceRecords"][0]["Value"]),
            "parameter": self.ssm.get_parameter(Name="/backend/redis", WithDecryption=True)["Parameter"]["Value"],
            "secret": json.loads(self.secrets.get_secret_value(SecretId="backend")["SecretString"]),
        }

    def remembered(self) -> list[dict[str, Any]]:
        return list(json.loads((self.run_dir / "switch.json").read_text())["remembered"])

    def run(self, *ways: dict[str, Any], entry: str = "main", arguments: tuple[str, ...] = ()) -> Outcome:
        """One play that includes the role for each of `ways`, which are its options without their prefix.

        It goes on after one that fails, so that one play shows many failures.
        """
        note = {"ansible.builtin.set_fact": {"failed": True}}
        keys = ("endpoint_url", "region", "access_key", "secret_key")
        play = {
            "hosts": "migration_host",
            "gather_facts": False,
            "module_defaults": {"group/keyferry.redis.aws": {key: f"{{{{ aws_{key} }}}}" for key in keys}},
            "tasks": [
                *({"block": [self._include(entry, way)], "rescue": [note]} for way in ways),
                {"ansible.builtin.assert": {"that": "failed is not defined"}},
            ],
        }
        playbook = write_plays(self.path("play.json"), play)
        outcome = Playbook(self.aws.info["dir"], playbook, *self.inventories).run(*arguments)
        assert "hush-hush-hush" not in outcome.output
        return outcome

    def _include(self, entry: str, way: dict[str, Any]) -> dict[str, Any]:
        new = {"replication_group_id": "new-redis", "host": "127.0.0.1", "port": self.port, "db": 1}
        options = {"dir": str(self.run_dir), **(new if entry == "main" else {}), **way}
        return {
            "ansible.builtin.include_role": {"name": "keyferry.redis.switch_over", "tasks_from": entry},
            "vars": {f"switch_over_{name}": value for name, value in options.items()},
        }


@pytest.fixture(scope="module")
def application(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Application:
    return Application(lab, tmp_path_factory.mktemp("application"))


@pytest.fixture(scope="module")
def ways(application: Application) -> list[dict[str, Any]]:
    """All ready ones."""
    script = application.path("notify")
    told = application.path("told")
    script.write_text(f'#!/bin/sh\n[ "$1" = back ] || read url\necho "$1 $url $CUTOVER_TLS $CUTOVER_DB" >> "{told}"\n')
    script.chmod(0o755)
    return [
        {"tasks": "file", "file_path": str(application.path("url"))},
        {
            "tasks": "template",
            "template_src": str(application.path("template.j2")),
            "file_path": str(application.path("env")),
            "hosts": "backend",
        },
        {"tasks": "command", "command": [str(script), "there"], "rollback_command": [str(script), "back"]},
        {
            "tasks": "route53",
            "route53_zone": "example.internal",
            "route53_private_zone": False,
            "route53_record": RECORD.rstrip("."),
        },
        {"tasks": "ssm_parameter", "ssm_parameter": "/backend/redis"},
        {"tasks": "secretsmanager", "secret": "backend", "json_key": "redis"},
    ]


# One story, in this order


def test_nothing_is_put_back_before_anything_was_switched(application: Application) -> None:
    outcome = application.run({}, entry="rollback")
    assert outcome.code != 0
    assert "so there is nothing to put back. Nothing was changed." in outcome.words, outcome.output


def test_every_ready_one_switches_and_remembers(application: Application, ways: list[dict[str, Any]]) -> None:
    outcome = application.run(*ways)
    assert outcome.code == 0, outcome.output
    assert application.facts() == {
        "url": (f"{application.url}\n", "0o100640"),
        "env": (f"127.0.0.1 {application.port}\n", "0o100600"),
        "record": (30, "127.0.0.1"),
        "parameter": application.url,
        "secret": {"user": "app", "redis": application.url},
    }
    assert application.path("told").read_text() == f"there {application.url} false 1\n"
    assert application.path("python.log").exists()
    memory = application.run_dir / "switch.json"
    assert "hush" not in memory.read_text() and oct(memory.stat().st_mode) == "0o100600"
    assert [each["tasks"] for each in application.remembered()] == [
        *("file", "file", "command", "route53", "ssm_parameter", "secretsmanager"),
    ]


def test_a_second_try_does_not_take_the_new_value_for_the_old_one(
    application: Application, ways: list[dict[str, Any]]
) -> None:
    before = application.remembered()
    outcome = application.run(ways[0], ways[4])
    assert outcome.code == 0, outcome.output
    assert outcome.recap["changed"] == 0, outcome.output
    assert application.remembered() == before


def test_all_of_it_is_put_back(application: Application) -> None:
    outcome = application.run({}, entry="rollback")
    assert outcome.code == 0, outcome.output
    assert outcome.recap["changed"] == 6, outcome.output
    assert application.facts() == {
        "url": (OLD, "0o100640"),
        "env": None,
        "record": (77, "old.example"),
        "parameter": OLD,
        "secret": {"user": "app", "redis": OLD},
    }
    assert application.path("told").read_text().splitlines()[-1].startswith("back")


def test_a_password_in_the_value_is_in_no_list_of_processes_and_in_no_diff(application: Application) -> None:
    """The command looks at the arguments and the environment of all that led to it."""
    value = "rediss://:hush-hush-hush@new:6379/0"
    seen, spy = application.path("seen"), application.path("spy")
    spy.write_text(
        f'#!/bin/sh\nread url\necho "$url" > "{seen}"\npid=$$\n'
        'while [ "$pid" -gt 1 ]; do\n  tr "\\0" " " < /proc/$pid/cmdline\n  tr "\\0" " " < /proc/$pid/environ\n'
        "  pid=$(cut -d ' ' -f 4 /proc/$pid/stat)\n"
        f'done >> "{seen}.processes"\n'
    )
    spy.chmod(0o755)
    outcome = application.run(
        {"tasks": "command", "command": [str(spy)], "rollback_command": ["true"], "value": value},
        {"tasks": "file", "file_path": str(application.path("secret-url")), "value": value},
        arguments=("--diff", "-vvv"),
    )
    assert outcome.code == 0, outcome.output
    assert seen.read_text() == f"{value}\n"
    processes = application.path("seen.processes").read_text()
    assert "ansible" in processes and "hush-hush-hush" not in processes
    assert oct(application.path("secret-url").stat().st_mode) == "0o100600"


def test_a_command_need_not_read_the_value(application: Application) -> None:
    more_than_a_pipe_holds = "x" * 200_000
    way = {"tasks": "command", "command": ["true"], "rollback_command": ["true"], "value": more_than_a_pipe_holds}
    outcome = application.run(way)
    assert outcome.code == 0, outcome.output


def test_a_command_that_fails_says_why(application: Application) -> None:
    way = {
        "tasks": "command",
        "command": ["sh", "-c", "echo no such backend >&2; exit 3"],
        "rollback_command": ["true"],
    }
    outcome = application.run(way, {**way, "command": ["/nowhere/notify"]})
    assert outcome.recap["rescued"] == 2
    assert "failed on localhost with the exit code 3: no such backend" in outcome.words, outcome.output
    assert "/nowhere/notify failed on localhost with the exit code 127" in outcome.words, outcome.output


# What a link leads to


def test_a_link_stays_one_and_what_it_leads_to_is_switched(application: Application) -> None:
    application.run_dir = application.path("links")
    application.run_dir.mkdir()
    files = {name: application.path(name) for name in ("linked-url", "linked-env")}
    for name, file in files.items():
        file.write_text(OLD)
        file.chmod(0o640)
        application.path(f"{name}.link").symlink_to(file)
    links = [application.path(f"{name}.link") for name in files]
    kept = [link.with_name(f"{link.name}.before-links") for link in links]
    outcome = application.run(
        {"tasks": "file", "file_path": str(links[0])},
        {"tasks": "template", "file_path": str(links[1]), "template_src": str(application.path("template.j2"))},
    )
    assert outcome.code == 0, outcome.output
    new = [f"{application.url}\n", f"127.0.0.1 {application.port}\n"]
    assert [file.read_text() for file in files.values()] == new
    assert {path.stat().st_mode & 0o777 for path in (*files.values(), *kept)} == {0o640}
    outcome = application.run({}, entry="rollback")
    assert outcome.code == 0, outcome.output
    assert [file.read_text() for file in files.values()] == [OLD, OLD]
    assert {file.stat().st_mode & 0o777 for file in files.values()} == {0o640}
    assert all(link.is_symlink() for link in links)


# What is refused, and what is not well


def test_what_cannot_be_switched_is_refused(application: Application) -> None:
    before = application.remembered()
    outcome = application.run(
        {"tasks": "command", "command": ["true"]},
        {"tasks": "magic"},
        {"tasks": "ssm_parameter", "ssm_parameter": "/backend/nothing"},
    )
    assert outcome.recap["rescued"] == 3
    for words in (
        "With switch_over_tasks=command, switch_over_rollback_command must be set. Nothing was switched.",
        "switch_over_tasks is 'magic', which is neither a ready one (file, template",
        "Could not read the parameter /backend/nothing",
    ):
        assert words in outcome.words, outcome.output
    assert application.remembered() == before


def test_tasks_of_the_users_own_are_undone_by_the_user(application: Application) -> None:
    mine, undo, told = application.path("mine.yml"), application.path("undo.yml"), application.path("mine")
    copy = {"dest": str(told), "mode": "0600", "content": "{{ cutover_host }}:{{ cutover_port }}"}
    mine.write_text(json.dumps([{"ansible.builtin.copy": copy}]))
    undo.write_text(json.dumps([{"ansible.builtin.file": {"path": str(told), "state": "absent"}}]))
    application.run_dir = application.path("own")
    application.run_dir.mkdir()
    assert application.run({"tasks": str(mine)}).code == 0
    assert told.read_text() == f"127.0.0.1:{application.port}"
    outcome = application.run({}, entry="rollback")
    assert outcome.code != 0 and f"switched by {mine}, which only its author can undo" in outcome.words
    assert application.run({"rollback_tasks": str(undo)}, entry="rollback").code == 0
    assert not told.exists()


# A host of several that is down


@pytest.fixture(scope="module")
def on_two_hosts(application: Application) -> list[dict[str, Any]]:
    """Ways on two hosts, of which the second goes down; for these tests they are one machine."""
    application.run_dir = application.path("two")
    application.run_dir.mkdir()
    told = application.path("told-two")
    application.path("url").write_text(OLD)
    return [
        {"tasks": "file", "file_path": str(application.path("url")), "hosts": ["second", "backend"]},
        {
            "tasks": "command",
            "command": ["sh", "-c", f"echo there >> {told}"],
            "rollback_command": ["sh", "-c", f"echo back >> {told}"],
            "hosts": ["backend", "second"],
        },
    ]


def test_nothing_is_switched_while_a_host_is_down(application: Application, on_two_hosts: list[dict[str, Any]]) -> None:
    host_that_is_down(application.directory, "second")
    outcome = application.run(on_two_hosts[0])
    assert outcome.recap["rescued"] == 1, outcome.output
    assert (
        "second could not be reached:" in outcome.words and "no route to host. Nothing was switched." in outcome.words
    )
    assert application.path("url").read_text() == OLD


def test_a_host_that_goes_down_at_the_switch_is_told_and_the_others_are_switched(
    application: Application, on_two_hosts: list[dict[str, Any]]
) -> None:
    other_host(application.directory, "second")
    assert application.run(*on_two_hosts).code == 0
    application.path("url").write_text(OLD)
    host_that_is_down(application.directory, "second")
    outcome = application.run(*on_two_hosts)
    assert outcome.recap["rescued"] == 2, outcome.output
    assert "Switched: backend. Run the same again when all can be reached, or go back: ansible-pl" in outcome.words
    assert "failed on second: " in outcome.words and "no route to host" in outcome.words
    assert application.path("url").read_text() == f"{application.url}\n"


def test_the_others_are_put_back_while_a_host_is_down(
    application: Application, on_two_hosts: list[dict[str, Any]]
) -> None:
    outcome = application.run({}, entry="rollback")
    assert outcome.recap["rescued"] == 3, outcome.output
    url, told = application.path("url"), application.path("told-two")
    assert url.read_text() == OLD and told.read_text().endswith("there\nback\n")
    words = outcome.words.partition("Not put back: ")[2]
    not_back, _put_back, back = words.partition("Put back: ")
    assert f"file {url} on second (" in not_back and f"echo there >> {told} on second (" in not_back, outcome.output
    assert f"echo there >> {told} on backend, file {url} on backend. Mend that and run the same again." in back
    other_host(application.directory, "second")
    assert application.run({}, entry="rollback").code == 0
    assert told.read_text().endswith("back\nback\nback\n")


def test_a_rollback_that_fails_somewhere_goes_on_elsewhere(application: Application) -> None:
    fails = ["sh", "-c", "echo the config service is away >&2; exit 4"]
    application.run_dir = application.path("fails")
    application.run_dir.mkdir()
    outcome = application.run(
        {"tasks": "file", "file_path": str(application.path("url"))},
        {"tasks": "command", "command": ["true"], "rollback_command": fails},
    )
    assert outcome.code == 0, outcome.output
    outcome = application.run({}, entry="rollback")
    assert "Not put back: command true on localhost (" in outcome.words, outcome.output
    assert ": the config service is away). Put back: file" in outcome.words, outcome.output
    assert application.path("url").read_text() == OLD


class Health(BaseHTTPRequestHandler):
    """An application that is not well at first."""

    asked = 0

    def do_GET(self) -> None:
        Health.asked += 1
        self.send_response(200 if self.path == "/well" and Health.asked > 2 else 503)
        self.end_headers()

    def log_message(self, *_args: object) -> None:
        pass


@pytest.fixture
def health() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Health) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_the_application_is_asked_until_it_is_well(application: Application, health: str) -> None:
    way = {"tasks": "file", "file_path": str(application.path("url")), "health_delay": 0, "min_keys": 10}
    assert application.run({**way, "health_url": f"{health}/well"}).code == 0
    assert Health.asked == 3


def test_when_it_is_not_well_the_way_back_is_told(application: Application, health: str) -> None:
    unwell = application.path("unwell.yml")
    unwell.write_text(json.dumps([{"ansible.builtin.fail": {"msg": "carts cannot be read"}}]))
    way = {"tasks": "file", "file_path": str(application.path("url"))}
    outcome = application.run(
        {**way, "min_keys": 1_000_000},
        {**way, "min_keys": 1, "port": 1},
        {**way, "health_url": f"{health}/unwell", "health_retries": 1, "health_delay": 0},
        {**way, "health_tasks": str(unwell)},
    )
    # Each is printed as the error and as the task's result.
    told = outcome.words.split("was switched to")[1::2]
    assert len(told) == 4
    reasons = ("keys, fewer than 1000000", "127.0.0.1:1", "503", "carts cannot be read")
    for reason, words in zip(reasons, told, strict=True):
        assert reason in words and "and is not well there" in words, words
        assert f"go back: ansible-playbook keyferry.redis.rollback -i {INVENTORY}" in words
        assert f"-e run_id={application.run_dir.name}" in words
