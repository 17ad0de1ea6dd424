# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""`python -m lab start|stop|status|prove --dir DIR`."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path

from .handle import Lab, LabFailed


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(prog="python -m lab", description="An AWS on loopback, with real Redis servers.")
    verbs = top.add_subparsers(dest="verb", required=True)
    start = verbs.add_parser("start", help="start a lab in the background and print what it is")
    serve = verbs.add_parser("serve", help="run a lab in the foreground")
    for verb in (start, serve):
        verb.add_argument("--engine", choices=("redis", "valkey"), default="redis")
        verb.add_argument("--keys", type=int, default=10_000, help="how many keys of sample data (%(default)s)")
        verb.add_argument("--empty", action="store_true", help="no sample data")
        verb.add_argument("--delay", type=float, default=0.3, help="seconds that a state change takes (%(default)s)")
        verb.add_argument("--shards", type=int, default=0, help="shared-redis in cluster mode, with N shards")
    stop = verbs.add_parser("stop", help="end the lab and all its servers")
    status = verbs.add_parser("status", help="print what the lab is; exit 1 where none runs")
    prove = verbs.add_parser("prove", help="compare a DB of one group with a DB of another; exit 1 unless equal")
    for option in ("--source-group", "--target-group"):
        prove.add_argument(option, required=True)
    for option in ("--source-db", "--target-db"):
        prove.add_argument(option, type=int, required=True)
    for verb in (start, serve, stop, status, prove):
        verb.add_argument("--dir", type=Path, required=True, help="everything of the lab is in here")
    return top


def main() -> int:
    """Run a verb and give the exit code."""
    asked = parser().parse_args()
    if asked.verb == "serve":
        from .server import serve

        logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
        serve(asked.dir.resolve(), asked.engine, 0 if asked.empty else asked.keys, asked.delay, asked.shards)
        return 0
    lab = Lab(asked.dir)
    if asked.verb == "start":
        lab.options = {name: getattr(asked, name) for name in ("engine", "keys", "empty", "delay", "shards")}
        lab.start()
    elif asked.verb == "stop":
        lab.stop()
        return 0
    elif not lab.is_running():
        print(f"no lab runs in {lab.directory}", file=sys.stderr)
        return 1
    elif asked.verb == "prove":
        from .prove import prove

        verdict = prove(lab.info, asked.source_group, asked.source_db, asked.target_group, asked.target_db)
        print(json.dumps(verdict))
        return 0 if verdict["equal"] else 1
    print(json.dumps(lab.info))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (LabFailed, TimeoutError) as failure:
        sys.exit(f"lab: {failure}")
