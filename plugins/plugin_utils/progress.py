# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Shows how far a module is while it runs; Ansible itself shows nothing until it has ended.

The module runs exactly as it would without this: check mode, async, become, no_log, defaults and interrupts are
ansible-core's. All that is added is an eye on the file that the module keeps (its option progress_file), over a
connection of its own, in a thread whose failure nobody notices.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import shlex
import signal
import threading
import typing as t

from ansible import constants as C
from ansible.errors import AnsibleActionFail, AnsibleError
from ansible.plugins.action.normal import ActionModule as NormalAction
from ansible.plugins.loader import connection_loader
from ansible.utils import color
from ansible.utils.display import Display

# When a line is shown, and how often: a variable, else an environment variable, else this.
_SETTINGS = {"keyferry_progress": "auto", "keyferry_progress_interval": "5"}
_SIZES = ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))
_WHEN = ("auto", "always", "never")
# How long the end of a task waits for a look at the file that is under way, and an interrupt for a line.
_LAST_LOOK_S = 2

display = Display()


class ProgressAction(NormalAction):
    """Runs the module of the action's own name. C(unit) is what the module counts: V(seconds) where it only waits."""

    unit = "keys"

    def run(self, tmp: t.Any = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        with self._shown(task_vars or {}):
            return super().run(tmp, task_vars)

    @contextlib.contextmanager
    def _shown(self, task_vars: dict[str, t.Any]) -> t.Iterator[None]:
        """Have lines shown from time to time, where somebody looks and there will be something to see."""
        wanted, interval = self._settings(task_vars)
        if not wanted or self._task.async_val or self._task.check_mode:
            yield
            return
        over, line = threading.Event(), threading.Lock()
        with self._progress_file() as path, _interrupted_between(line):
            about = f"{self._task.action.rpartition('.')[2]} on {task_vars.get('inventory_hostname', 'the host')}"
            looking = threading.Thread(target=self._look, args=(path, over, line, interval, about), daemon=True)
            looking.start()
            try:
                yield
            finally:
                over.set()
                looking.join(_LAST_LOOK_S)

    def _settings(self, task_vars: dict[str, t.Any]) -> tuple[bool, float]:
        """Give back whether lines are wanted, and the seconds between them."""
        when = self._setting("keyferry_progress", task_vars)
        if when not in _WHEN:
            raise AnsibleActionFail(f"keyferry_progress is {when}; it must be one of {', '.join(_WHEN)}")
        seconds = self._setting("keyferry_progress_interval", task_vars)
        try:
            interval = float(seconds)
        except ValueError:
            interval = 0.0
        if not interval > 0:
            raise AnsibleActionFail(f"keyferry_progress_interval is {seconds}; it must be a number of seconds above 0")
        return when == "always" or (when == "auto" and _has_terminal()), interval

    def _setting(self, name: str, task_vars: dict[str, t.Any]) -> str:
        value = self._templar.template(task_vars[name]) if name in task_vars else os.environ.get(name.upper())
        return str(value if value is not None else _SETTINGS[name])

    @contextlib.contextmanager
    def _progress_file(self) -> t.Iterator[str]:
        """Give back the file that the task names, or have one on the host for as long as the module runs."""
        if self._task.args.get("progress_file"):
            yield self._remote_expand_user(self._task.args["progress_file"])
            return
        # By whom the module is run by, so that become makes no difference.
        made = self._low_level_execute_command('umask 77 && mktemp -d "${TMPDIR:-/tmp}/keyferry.XXXXXXXXXX"')
        folder = made["stdout"].strip().rpartition("\n")[2].strip() if made["rc"] == 0 else ""
        if not folder.startswith("/"):
            yield ""
            return
        self._task.args["progress_file"] = f"{folder}/progress.json"
        try:
            yield self._task.args["progress_file"]
        finally:
            del self._task.args["progress_file"]
            # Where the host cannot be reached any more, the module's own failure says so.
            with contextlib.suppress(AnsibleError):
                self._low_level_execute_command(f"rm -rf {shlex.quote(folder)}")

    def _look(self, path: str, over: threading.Event, line: threading.Lock, interval: float, about: str) -> None:
        """Show a line each I(interval) seconds until it is I(over), holding I(line) meanwhile."""
        with contextlib.suppress(Exception):
            other = self._beside()
            while path and not over.wait(interval):
                found = other._low_level_execute_command(f"cat {shlex.quote(path)}")
                if found["rc"] == 0 and not over.is_set():
                    facts = json.loads(found["stdout"])
                    if facts["state"] == "running":
                        shown = f"{about}: {described(facts, self.unit)}"
                        with line:
                            display.display(shown, C.COLOR_VERBOSE, screen_only=True)

    def _beside(self) -> ProgressAction:
        """Give back this action with a connection of its own: the one of the module is taken until that has ended."""
        connection = connection_loader.get(self._connection._load_name, self._play_context, new_stdin=None)
        connection.set_options(direct=self._connection.get_options())
        connection.set_become_plugin(copy.copy(self._connection.become))
        connection._shell = copy.copy(self._connection._shell)
        other = copy.copy(self)
        other._connection = connection
        return other


@contextlib.contextmanager
def _interrupted_between(line: threading.Lock) -> t.Iterator[None]:
    """Have an interrupt wait until nobody holds I(line).

    It ends this process at once, and one that ends while it writes leaves the queue to ansible-playbook locked, which
    would then wait for ever.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def end(number: int, frame: t.Any) -> None:
        is_held = line.acquire(timeout=_LAST_LOOK_S)
        try:
            before[signal.Signals(number)](number, frame)
        finally:
            if is_held:
                line.release()

    handled = [number for number, handler in before.items() if callable(handler)]
    for number in handled:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in handled:
            signal.signal(number, before[number])


def described(facts: dict[str, t.Any], unit: str) -> str:
    """Give back the contents of a progress file as a line: what is done, of how much, the bytes, rate and time left."""
    if unit == "seconds":
        return f"waiting for {_clock(facts['elapsed'])} so far"
    done, total = facts["done"], facts["total"]
    shown, what = (_size, "") if unit == "bytes" else (_number, f" {unit}")
    parts = [f"{shown(done)}{what}"]
    if total:
        parts = [f"{shown(done)} of {shown(total)}{what} ({min(done / total, 1):.0%})"]
    if unit != "bytes":
        parts.append(_size(facts["bytes"]))
    parts.append(f"{shown(facts['per_second'])} a second")
    if facts["seconds_left"] is not None:
        parts.append(f"{_clock(facts['seconds_left'])} left")
    return ", ".join(parts)


def _number(count: int) -> str:
    return f"{count:,}"


def _size(count: int) -> str:
    return next((f"{count / unit:,.1f} {name}" for unit, name in _SIZES if count >= unit), f"{count} bytes")


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _has_terminal() -> bool:
    """Tell whether ansible-playbook, whose child this is, writes to a terminal."""
    try:
        # Opening a terminal must not make it the one that controls this process.
        output = os.open(f"/proc/{os.getppid()}/fd/1", os.O_WRONLY | os.O_NOCTTY)
    except OSError:
        # What ansible-core found when it started, where it was not told otherwise.
        return not os.path.isdir("/proc/self/fd") and bool(color.ANSIBLE_COLOR)
    try:
        return os.isatty(output)
    finally:
        os.close(output)
