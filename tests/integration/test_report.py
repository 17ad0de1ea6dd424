# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The role report by itself: states as runs of every strategy leave them, complete or not, and what is made of them."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from integration.plays import Playbook, write_plays

START = 1795400687.5
PHASES = {
    "resp": ["restore", "move", "publish", "verify", "catch_up", "switch", "settle"],
    "rdb": ["cut", "publish", "verify", "catch_up", "switch", "settle"],
    "swap": ["publish", "promote", "verify", "catch_up", "switch", "settle"],
    "existing": ["fill", "verify", "catch_up", "switch"],
}
SECONDS = {"host": 41, "preflight": 12, "snapshot": 905, "restore": 74, "move": 212, "publish": 931, "verify": 63}
SECRET = "hush-hush-hush"
# What a name must not be able to do, to the page or to Jinja.
ODD = "<script>alert(1)</script>\"'&</code>{{ 7 * 7 }}\x01"

ENDPOINT = {"endpoint": {"address": "orders.example", "port": 6379}, "tls": True, "cluster_mode": "disabled"}
MOVED = {"types": {"hash": 2_410_022, "string": 27_589_978}}
ROUND = {"began": START + 2300, "seconds": 48.2, "compared": 30_000_000, "missing": 812, "different": 4401}
FACTS: dict[str, dict[str, Any]] = {
    "preflight": {
        "source": {"arn": "arn:aws:elasticache:…", "description": "not for the report"},
        "keys": 30_000_000,
        "expires": 18_012_311,
        "databases": {
            "0": {"keys": 20_512, "expires": 12, "types": {"string": 20_512}, "estimated_bytes": 4_183_040},
            "1": {
                "keys": 30_000_000,
                "expires": 18_012_311,
                "types": {"hash": 2_400_000, "string": 27_600_000},
                "estimated_bytes": 8_120_000_000,
            },
        },
        "used_memory": 9_210_044_416,
        "cluster_mode": {"eligible": False, "reasons": ["database 1 holds 30000000 keys", "automatic failover is off"]},
        "expected": {"snapshot": 960.0, "restore": 111.0, "move": 398.9, "publish": 941, "switch": 600},
    },
    "snapshot": {
        "snapshot": "night",
        "bucket": "exports",
        "key": "night-0001.rdb",
        "size": 4_026_531_840,
        "node": "n2",
    },
    "restore": {"keys": 30_000_000, "expires": 18_012_311, "size": 4_026_531_840},
    "move": {**MOVED, "dumped": 29_998_267, "expired": 1733, "loaded": 29_998_267, "keys": 29_998_267}
    | {"dump_bytes": 4_400_000_000, "path": "/var/lib/keyferry/dump.rdb", "size": 3_900_000_000},
    "cut": {**MOVED, "keys": 30_000_000, "path": "/var/lib/keyferry/runs/night/result.rdb", "size": 3_900_000_000},
    "fill": {**ENDPOINT, **MOVED, "dumped": 29_998_267, "expired": 1733, "loaded": 29_998_267},
    "publish": {**ENDPOINT, "bucket": "exports", "object": "night-result.rdb", "size": 3_900_000_000},
    "promote": {"keys": 29_998_267, "flushed": {"0": 20_512}},
    "verify": {"keys": 29_998_226, "compared": 29_998_267, "expired": 41, "mode": "full", "missing": 0, "extra": 0}
    | {"reference": "the RDB that it was made from", "different": 0, "compare_seconds": 61.4},
    "catch_up": {"rounds": [{**ROUND, "extra": 207, "repaired": 5420, "expired": 9}]},
    "switch": {"switched": True, "endpoint": "orders.example:6379", "tasks": "file"}
    | {"before": [{"tasks": "file", "name": "/etc/backend/redis.env", "host": "backend", "backup": "/etc/b.before"}]},
}
FACTS["settle"] = {"following": True, "followed": 52_144, "copied": 9120, "deleted": 131, "conflicts": 1}
FACTS["settle"] |= {"examples": {"conflicts": [ODD]}, "settled": True, "lost": False, "lost_reason": ""}


def phases_of(strategy: str) -> list[str]:
    return ["host", "preflight", "snapshot", *PHASES[strategy]]


def state(strategy: str, done: list[str] | None = None, **news: dict[str, Any]) -> dict[str, Any]:
    """A state.json: these phases, or all, one right after the other, with some facts of their own."""
    began, phases = START, {}
    for name in phases_of(strategy) if done is None else done:
        seconds = SECONDS.get(name, 30)
        phases[name] = {**FACTS.get(name, {}), **news.get(name, {}), "began": began, "seconds": seconds}
        began += seconds
    about = {"source": "shared", "src_db": 1, "dest_db": 0, "target": "orders", "strategy": strategy}
    return {"about": about, "phases": phases}


CASES: dict[str, dict[str, Any]] = {
    "resp": state("resp"),
    "rdb": state("rdb", ["host", "preflight", "snapshot", "cut"]),
    "swap": state("swap", verify={"reference": "the source", "missing": 812, "different": 4401, "extra": 207}),
    "existing": state("existing", verify={"extra": 55}, switch={"switched": False, "before": []}),
    "back": state("resp", switch={"switched": False, "rolled_back": START + 9000}),
    "nothing": state("resp", []),
    "verify-only": state("rdb", ["verify"], verify={"mode": "count", "compared": 0}),
    "gap": state("resp", settle={}),
    "odd": state(
        "resp",
        verify={"missing": 1, "examples": {"missing": [ODD], "extra": []}},
        publish={"bucket": ODD, "object": ODD},
        move={"path": f"/srv/{ODD}", "types": {ODD: 1}},
    ),
}
CASES["back"] |= {"cleaned": {"at": START + 10000}, "removed": ["snapshot night", "/srv/night/export.rdb"]}
CASES["gap"]["phases"]["settle"]["began"] += 86_400
CASES["odd"]["about"] |= {"source": ODD, "target": ODD}
FAILURES = {"rdb": {"phase": "publish", "task": "Create the ElastiCache orders", "message": "It is create-failed."}}
STRATEGIES = {"rdb": "rdb", "swap": "swap", "existing": "existing", "verify-only": "rdb"}
COMMANDS = {"Go back": "ansible-playbook keyferry.redis.rollback -i inventory -e src_db=1", ODD: f"echo '{ODD}'"}


class Page(HTMLParser):
    """A page read strictly: every tag closed in order, and what its text, ids and references are."""

    VOID = frozenset({"meta", "br", "link", "img", "input", "hr"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.words: list[str] = []
        self.ids: list[str] = []
        self.labels: list[str] = []
        self.attributes: set[str] = set()
        self.pairs: list[set[str]] = []
        self.feed(text)
        self.close()
        assert self.open == []
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self._note(tag, given)
        if tag not in self.VOID:
            self.open.append(tag)
        if given.get("class") == "pair":
            self.pairs.append(set())

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._note(tag, dict(attrs))

    def _note(self, tag: str, given: dict[str, str | None]) -> None:
        self.tags.add(tag)
        self.attributes |= given.keys()
        self.ids += [given["id"] or ""] if "id" in given else []
        self.labels += (given.get("aria-labelledby") or "").split()
        if self.pairs:
            self.pairs[-1].add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, self.getpos()

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words.append(data)


class Reports:
    """The reports of all cases, by one run of the role for each in one play."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        for name, case in CASES.items():
            self.run_dir(name).mkdir()
            (self.run_dir(name) / "state.json").write_text(json.dumps(case))
            (self.run_dir(name) / "export.rdb").write_bytes(b"x" * 2048)

    def run_dir(self, name: str) -> Path:
        return self.directory / name

    def write(self, *names: str) -> str:
        """Run the role for these cases, and give back what Ansible said."""
        cases = [
            {
                "dir": str(self.run_dir(name)),
                "strategy": STRATEGIES.get(name, "resp"),
                "phases": phases_of(STRATEGIES.get(name, "resp")),
                "failure": FAILURES.get(name, {}),
            }
            for name in names
        ]
        options = {
            "report_state": "{{ lookup('ansible.builtin.file', case.dir ~ '/state.json') | from_json }}",
            "report_path_html": "{{ case.dir }}/report.html",
            "report_path_json": "{{ case.dir }}/report.json",
            "report_run_id": "night",
            "report_strategy": "{{ case.strategy }}",
            "report_phases": "{{ case.phases }}",
            "report_failure": "{{ case.failure }}",
            "report_fetch_dir": "{{ case.dir }}/control",
            "report_commands": "{{ lookup('ansible.builtin.file', commands) | from_json }}",
        }
        commands = self.directory / "commands.json"
        commands.write_text(json.dumps(COMMANDS))
        loop = {"loop": cases, "loop_control": {"loop_var": "case", "label": "{{ case.dir }}"}}
        task = {"ansible.builtin.include_role": {"name": "keyferry.redis.report"}, "vars": options, **loop}
        play = {"hosts": "migration_host", "gather_facts": False, "tasks": [task]}
        plays = write_plays(self.directory / "play.yml", play)
        outcome = Playbook(self.directory, plays).succeed(commands=str(commands), source_login_password=SECRET)
        return str(outcome.output)

    def html(self, name: str) -> str:
        return (self.run_dir(name) / "report.html").read_text()

    def page(self, name: str) -> Page:
        return Page(self.html(name))

    def document(self, name: str) -> dict[str, Any]:
        return dict(json.loads((self.run_dir(name) / "report.json").read_text()))


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Reports:
    written = Reports(tmp_path_factory.mktemp("reports"))
    written.write(*CASES)
    return written


@pytest.mark.parametrize("name", CASES)
def test_every_page_is_whole_in_itself(reports: Reports, name: str) -> None:
    text, page = reports.html(name), reports.page(name)
    assert text.startswith("<!DOCTYPE html>")
    assert page.tags.isdisjoint({"script", "link", "img", "iframe", "object", "image", "use", "form"})
    assert page.attributes.isdisjoint({"src", "href", "xlink:href", "style", "onload", "onclick"})
    assert not re.search(r"https?://|url\(|@import", text)
    assert len(page.ids) == len(set(page.ids))
    assert set(page.labels) <= set(page.ids)
    assert text.count("<svg ") == text.count('<svg role="img" aria-labelledby=') == text.count("</desc>")
    assert all({"svg", "table"} <= pair for pair in page.pairs)


@pytest.mark.parametrize("name", CASES)
def test_nothing_secret_is_in_it_and_only_the_owner_may_read_it(reports: Reports, name: str) -> None:
    for file in ("report.html", "report.json"):
        path = reports.run_dir(name) / file
        assert path.stat().st_mode & 0o777 == 0o600
        assert SECRET not in path.read_text()
        assert "not for the report" not in path.read_text()


def test_a_complete_run_is_told_with_its_proof_and_times(reports: Reports) -> None:
    report, page = reports.document("resp"), reports.page("resp")
    assert (report["outcome"], report["equal"], report["to_do"]) == ("COMPLETE", True, [])
    assert "COMPLETE, proven equal. The application is on orders.example:6379." in page.text
    assert [phase["phase"] for phase in report["phases"]] == phases_of("resp")
    assert report["time"]["by_hand_seconds"] == 58 * 60
    assert report["time"]["elapsed"] == report["time"]["seconds"] == 2328
    assert "This run took 38:48.0 minutes, by hand it takes 58:00.0, and the window is 60:00.0." in page.text
    assert report["types"][0] == {"type": "hash", "before": 2_400_000, "after": 2_410_022}
    assert report["keys"][-1] == {"what": "on the target, database 0", "keys": 29_998_226}
    assert [each["moved"] for each in report["databases"]] == [False, True]
    assert "database 0 3.99 MiB" in page.text or "database 0 4.0 MiB" in page.text
    assert "hash 2,400,000, string 27,600,000" in page.text
    assert "not go to cluster mode as it was: database 1 holds 30000000 keys; automatic failover is off." in page.text
    assert [each["expected_seconds"] for each in report["phases"]][:4] == [None, None, 960.0, 111.0]
    assert "after: database 0 of the target 29,998,226" in page.text
    assert len(report["catch_up"]) == 1 and report["followed"]["copied"] == 9120
    assert "5,420 keys brought in line in all" in page.text
    assert "9,120 keys were copied and 131 removed as they were written to at the source. 1 was written on" in page.text
    assert "At the end the source was quiet" in page.text
    assert COMMANDS["Go back"] in page.text


def test_everything_made_is_listed(reports: Reports) -> None:
    made = [(each["what"], each["name"]) for each in reports.document("resp")["resources"]]
    assert made == [
        ("ElastiCache snapshot", "night"),
        ("S3 object", "s3://exports/night-0001.rdb"),
        ("S3 object", "s3://exports/night-result.rdb"),
        ("replication group", "orders"),
        ("file on the host", "/var/lib/keyferry/dump.rdb"),
        ("file on the host", str(reports.run_dir("resp") / "export.rdb")),
        ("changed by the switch", "/etc/backend/redis.env"),
    ]
    assert "the old one is /etc/b.before" in reports.page("resp").text


def test_a_run_that_is_not_complete_tells_why_and_what_is_to_do(reports: Reports) -> None:
    report, text = reports.document("rdb"), reports.page("rdb").text
    assert (report["outcome"], report["equal"]) == ("FAILED", None)
    assert report["failure"] == FAILURES["rdb"]
    assert report["to_do"] == ["publish", "verify", "catch_up", "switch", "settle"]
    assert "FAILED, not proven yet. The phase publish has failed at Create the ElastiCache orders" in text
    assert "Still to do: publish, verify, catch_up, switch, settle." in text and "It is create-failed." in text
    assert "The target was not compared yet" in text
    assert "A phase that was begun and is not done may have made more." in text


def test_a_run_that_has_done_nothing_is_called_not_complete(reports: Reports) -> None:
    report = reports.document("nothing")
    assert (report["outcome"], report["phases"], report["proof"]) == ("NOT COMPLETE", [], {})
    assert [each["what"] for each in report["resources"]] == ["file on the host"]
    assert report["time"]["elapsed"] == 0


def test_keys_that_differed_and_were_caught_up_since_are_told(reports: Reports) -> None:
    report, text = reports.document("swap"), reports.page("swap").text
    assert (report["outcome"], report["equal"], report["unequal"]) == ("COMPLETE", False, 5420)
    assert "COMPLETE, 5,420 keys differed from the source, which was still written to, and caught up since." in text
    assert "NOT EQUAL" not in text


def test_keys_that_were_there_before_are_nothing_wrong(reports: Reports) -> None:
    report, text = reports.document("existing"), reports.page("existing").text
    assert (report["outcome"], report["equal"]) == ("COMPLETE", True)
    assert "The application is not switched: point it at orders.example:6379 yourself." in text
    assert "Keys that only the target has were there before." in text
    assert ("replication group", "was there before, filled") in [
        (each["what"], each["note"]) for each in report["resources"]
    ]


def test_a_run_that_was_put_back_says_so(reports: Reports) -> None:
    report, text = reports.document("back"), reports.page("back").text
    assert report["outcome"] == "ROLLED BACK"
    assert "the application is on database 1 of shared again" in text
    assert "was cleaned up at 2026-11-23" in text
    assert "the cleanup has removed: snapshot night , /srv/night/export.rdb ." in text
    assert [each["what"] for each in report["resources"]][-1] == "put back"


def test_where_keys_were_only_counted_it_says_so(reports: Reports) -> None:
    assert "the numbers of keys are equal" in reports.page("verify-only").text


def test_a_run_left_lying_for_a_day_is_shown_without_the_gap(reports: Reports) -> None:
    time = reports.document("gap")["time"]
    assert time["without_gaps"] and time["elapsed"] == time["seconds"] + 86_400
    assert "it is shown without these gaps" in reports.page("gap").text


def test_odd_names_are_text(reports: Reports) -> None:
    html, page = reports.html("odd"), reports.page("odd")
    assert "<script" not in html
    shown = " ".join(ODD.split())
    assert page.text.count(shown) >= 8
    assert "1 key NOT EQUAL" in page.text
    assert reports.document("odd")["source"]["replication_group_id"] == ODD


def test_it_is_written_again_only_when_something_changed(reports: Reports) -> None:
    shutil.copy(reports.run_dir("rdb") / "state.json", reports.run_dir("verify-only") / "state.json")
    # A loop over both files counts as one task; then both are copied to the control node.
    assert re.search(r"changed=2 ", reports.write("resp", "verify-only"))
    for kind in ("html", "json"):
        copied, written = (reports.run_dir("verify-only") / f"{where}.{kind}" for where in ("control/night", "report"))
        assert copied.read_bytes() == written.read_bytes()
