# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations


class ModuleDocFragment:
    """How far a long task is, as a file and as a line; a module says in its notes what it counts."""

    DOCUMENTATION = r"""
options:
  progress_file:
    description:
      - A file to keep, while the module runs, about how far it is. JSON with C(state) (V(running), V(done) or
        V(failed)), C(done) and C(total) (V(null) where it is not known), C(bytes), C(per_second), C(seconds_left) and
        C(elapsed). The notes say what is counted.
    type: path
notes:
  - With or without O(progress_file), C(ansible-playbook) shows a line with the same facts every 5 seconds while the
    module runs, where its output goes to a terminal. The variable C(keyferry_progress) makes that V(always) or
    V(never), and C(keyferry_progress_interval) is the number of seconds; so do the environment variables
    E(KEYFERRY_PROGRESS) and E(KEYFERRY_PROGRESS_INTERVAL). A task with C(async) and one in check mode show none.
"""
