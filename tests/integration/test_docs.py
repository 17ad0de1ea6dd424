# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every command, playbook and example of the documentation does what the pages say, as it is pasted, in one lab.

A new command belongs in STORY, or in ELSEWHERE with the reason why it is not run here.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from integration.cutover import SOURCE, TOP, Cutover, Outcome
from integration.pages import Block, all_blocks, commands, pages

from lab.nodes import RedisServer, free_port

MIGRATE = "ansible-playbook keyferry.redis.migrate_db -i inventory"
PROVISION = "ansible-playbook keyferry.redis.provision_host -i inventory -e src_db=1"
IN_CHECKOUT = ".build/venv/bin/ansible-playbook playbooks"
RUN = f"{SOURCE}-db1"


@dataclass(frozen=True)
class Try:
    """What a command prints when it did what it is there for, and what the lab needs said beyond what is pasted."""

    words: str
    more: list[str] = field(default_factory=list)


# In this order: a story of one night.
STORY = {
    "ansible-playbook one_module.yml -e redis_host=redis.example.com": Try("database 2: ", ["redis_port={source}"]),
    "ansible-playbook keyferry.redis.preflight -i inventory -e src_db=1": Try("failed=0"),
    f"{MIGRATE} -e src_db=1 --check": Try("Would fetch s3://"),
    f"{MIGRATE} -e src_db=1 --tags host": Try("Start the supervisor"),
    "ansible-playbook may_follow.yml -i inventory -e source_host=redis.example.com": Try(
        "failed=0", ["source_port={source}"]
    ),
    "ansible-playbook try_switch.yml -i inventory -e source_host=redis.example.com": Try(
        "failed=0", ["source_port={source}"]
    ),
    "ansible-playbook whole_cutover.yml -i inventory": Try("keys are proven; the application is at"),
    f"{MIGRATE} -e src_db=1": Try(f"The run {RUN} is complete."),
    # It says something at a terminal only.
    "ansible-vault encrypt inventory/group_vars/migration_host/vault.yml": Try(""),
    f"{MIGRATE} -e src_db=1 --ask-vault-pass": Try(f"The run {RUN} is complete."),
    "ansible-playbook migration_host.yml -i inventory -e rdb_file=/srv/export.rdb": Try(
        "Ask what is in it", ["rdb_file={host}/runs/" + RUN + "/export.rdb", "migration_host_dir={here}/own", "{port}"]
    ),
    "ansible-playbook migration_host.yml -i inventory --tags remove": Try(
        "Delete its directory", ["migration_host_dir={here}/own", "{port}"]
    ),
    "ansible-playbook module_defaults.yml -i inventory -e source_host=redis.example.com": Try(
        "bytes in S3",
        ["source_port={source}", "target_port={target}", "dump_path={here}/db2.resp", "dump_bucket={bucket}"],
    ),
    "ansible-playbook several_databases.yml -i inventory -e strategy=rdb": Try("COMPLETE, run shared-redis-db3"),
    "ansible-playbook keyferry.redis.compare -i inventory -e src_db=1": Try("Keys now: "),
    "ansible-playbook keyferry.redis.rollback -i inventory -e src_db=1": Try(
        "The application is on database 1 of shared-redis again."
    ),
    f"{IN_CHECKOUT}/rollback.yml -e src_db=1": Try("was put back already"),
    "ansible-playbook keyferry.redis.cleanup -i inventory -e src_db=1 --check": Try(
        f"s3://{{bucket}}/{RUN}-result.rdb", ["force=true"]
    ),
    "ansible-playbook keyferry.redis.cleanup -i inventory -e src_db=1": Try(
        f"Delete the snapshot {RUN}", ["force=true"]
    ),
    f"{PROVISION} -e host_subnet_id=subnet-0123456789abcdef0": Try("r7i.2xlarge with 40 GiB of gp3"),
    f"{PROVISION} -e state=absent": Try("Delete the role keyferry-"),
}
ELSEWHERE = {
    f"{IN_CHECKOUT}/migrate_db.yml -e src_db=3 -e strategy=rdb": "test_migrate_db_strategies.py runs every strategy",
    "aws elasticache delete-replication-group --replication-group-id shared-redis-db1": "needs AWS's own command line",
    "git clone https://github.com/keyferry/keyferry.redis && cd keyferry.redis": "is how this checkout was made",
    "ansible-galaxy collection install keyferry.redis": "needs Galaxy; tests/artefact.sh installs what was built",
    "ansible-builder build --file execution-environment.yml --tag keyferry-ee": (
        "needs a container engine; tests/galaxy.sh does all before that"
    ),
    (
        "ansible-navigator run keyferry.redis.migrate_db -i inventory -e src_db=1 --eei keyferry-ee --pp missing"
        " --enable-prompts"
    ): "needs a container engine, too",
}


class Reader:
    """Somebody with the collection installed, an inventory of the lab, and the examples in the folder `here`."""

    def __init__(self, cutover: Cutover, here: Path, target: int, port: int) -> None:
        self.cutover, self.here = cutover, here
        info = cutover.info
        ec2 = cutover.aws.client("ec2")
        self.said = {
            "redis.example.com": "127.0.0.1",
            "subnet-0123456789abcdef0": ec2.describe_subnets()["Subnets"][0]["SubnetId"],
        }
        self.facts = {
            "here": here,
            "host": cutover.host,
            "bucket": info["bucket"],
            "source": cutover.groups()[SOURCE]["nodes"][0]["port"],
            "target": target,
            "port": f"migration_host_port={port}",
        }
        (here / "backend").mkdir()
        for example in (TOP / "docs/examples").glob("*.yml"):
            (here / example.name).write_text(example.read_text().replace("/etc/backend", str(here / "backend")))
        self._lay_inventory(ec2.describe_images()["Images"][0]["ImageId"])

    def _lay_inventory(self, image: str) -> None:
        lab, inventory = TOP / "tests/lab/inventory", self.here / "inventory"
        for group in ("all", "migration_host"):
            (inventory / "group_vars" / group).mkdir(parents=True)
        (inventory / "hosts.yml").symlink_to(lab / "hosts.yml")
        (inventory / "group_vars/all/lab.yml").symlink_to(lab / "group_vars/migration_host.yml")
        # moto's instances answer nobody, so nothing is waited for.
        (inventory / "group_vars/all/host.yml").write_text(json.dumps({"host_image_id": image, "host_timeout": 0}))
        (inventory / "group_vars/migration_host/vault.yml").write_text("vault_nothing: secret\n")
        (self.here / "password").write_text("open sesame\n")

    def paste(self, command: str, more: list[str]) -> Outcome:
        """Run a command by the shell, with the lab's addresses for those of the pages, and `more` variables."""
        for example, real in self.said.items():
            command = command.replace(example, real)
        command += "".join(f" -e {each.format(**self.facts)}" for each in more)
        ended = subprocess.run(
            ["bash", "-c", command],
            cwd=TOP if command.startswith(IN_CHECKOUT) else self.here,
            env=self._environment(),
            input="open sesame\n",
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            start_new_session=True,
        )
        return Outcome(ended.returncode, ended.stdout)

    def _environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "ANSIBLE_COLLECTIONS_PATH": str(TOP / ".build/collections"),
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_PIPELINING": "1",
            "ANSIBLE_VAULT_PASSWORD_FILE": str(self.here / "password"),
            "KEYFERRY_LAB_DIR": self.cutover.info["dir"],
        }


@pytest.fixture(scope="module")
def reader(cutover: Cutover, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    here = tmp_path_factory.mktemp("reader")
    target = RedisServer(here / "target", "redis")
    yield Reader(cutover, here, target.port, free_port())
    target.kill()


def test_every_block_says_what_it_is() -> None:
    assert not [block.place for block in all_blocks() if not block.language]


def test_every_command_is_tried() -> None:
    shown = {name: place for name, place in commands().items() if not name.startswith(("make ", "ansible-doc "))}
    tried = {*STORY, *ELSEWHERE}
    assert not {name: place for name, place in shown.items() if name not in tried}, "shown, and not tried"
    assert not tried - {*shown}, "tried, and no longer shown"


@pytest.mark.parametrize("command", STORY)
def test_the_commands_work_as_pasted(reader: Reader, command: str) -> None:
    outcome = reader.paste(command, STORY[command].more)
    assert outcome.code == 0, outcome.output
    assert STORY[command].words.format(**reader.facts) in outcome.words, outcome.output


def test_what_the_commands_have_made_is_proven(reader: Reader, cutover: Cutover) -> None:
    targets = {1: RUN, 2: "sessions-redis", 3: "carts-redis"}
    proofs = {db: cutover.proof(db, target) for db, target in targets.items()}
    assert all(proof["equal"] for proof in proofs.values()), proofs
    assert not (reader.here / "backend/redis.url").exists()  # the rollback has put back that there was none
    for name in ("sessions", "carts"):
        assert (reader.here / f"backend/{name}.url").read_text().startswith("redis://127.0.0.1:")
    vault = reader.here / "inventory/group_vars/migration_host/vault.yml"
    assert vault.read_text().startswith("$ANSIBLE_VAULT;")
    assert not cutover.half_files()


@pytest.mark.parametrize("command", [name for name in commands() if name.startswith("make ")])
def test_the_target_is_there(command: str) -> None:
    done = subprocess.run([*shlex.split(command), "--dry-run"], cwd=TOP, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("kind", ["module", "role"])
def test_ansible_doc_has_what_the_pages_ask_it(reader: Reader, kind: str) -> None:
    shown = [name for name in commands() if name.startswith("ansible-doc ")]
    asked = {name.split()[-1] for name in shown if ("-t role" in name) == (kind == "role")}
    every = {f"keyferry.redis.{path.stem}" for path in documented(kind)}
    names = every if f"keyferry.redis.<{kind}>" in asked else asked
    outcome = reader.paste(f"ansible-doc -t {kind} {' '.join(sorted(names))}", [])
    assert outcome.code == 0, outcome.output
    assert not [name for name in names | asked - {f"keyferry.redis.<{kind}>"} if name not in outcome.output]


def documented(kind: str) -> list[Path]:
    return [*(TOP / "plugins/modules").glob("*.py")] if kind == "module" else [*(TOP / "roles").iterdir()]


def test_every_yaml_is_one_that_ansible_takes(reader: Reader) -> None:
    plays = []
    for number, block in enumerate(all_blocks("yaml")):
        found = yaml.safe_load(block.text)
        assert found, block.place
        if isinstance(found, dict) and "module_defaults" not in found:
            assert {*found} <= known_variables(), block.place
            continue
        plays.append(reader.here / f"block-{number}.yml")
        plays[-1].write_text(json.dumps(as_plays(found)))
    outcome = reader.paste(f"ansible-playbook -i inventory --syntax-check {' '.join(map(str, plays))}", [])
    assert outcome.code == 0, outcome.output


def as_plays(found: Any) -> list[dict[str, Any]]:
    """Plays as they are, tasks as those of a play, and what belongs in a play in one."""
    if isinstance(found, dict):
        return [{"hosts": "all", **found}]
    return found if {"hosts", "ansible.builtin.import_playbook"} & {*found[0]} else [{"hosts": "all", "tasks": found}]


def known_variables() -> set[str]:
    """What docs/variables.md and the role migration_host describe, and the examples have of their own."""
    role = yaml.safe_load((TOP / "roles/migration_host/meta/argument_specs.yml").read_text())
    examples = [yaml.safe_load(path.read_text()) for path in (TOP / "docs/examples").glob("*.yml")]
    own = {name for plays in examples if isinstance(plays, list) for play in plays for name in play.get("vars", {})}
    described = set(re.findall(r"`([a-z0-9_]+)`", (TOP / "docs/variables.md").read_text()))
    return described | own | {*role["argument_specs"]["main"]["options"]}


def test_every_variable_that_a_page_gives_is_described() -> None:
    given = {name for page in pages() for name in re.findall(r"-e ['{\"]*([a-z0-9_]+)[\"=]", page.read_text())}
    assert len(given) > 10
    assert not given - known_variables()


@pytest.mark.parametrize("block", all_blocks("json"), ids=lambda block: block.place)
def test_every_json_is_one(block: Block) -> None:
    assert json.loads(block.text)
