# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

BUILD := $(CURDIR)/.build
READY := $(BUILD)/.ready

export PATH := $(BUILD)/venv/bin:$(PATH)
export ANSIBLE_COLLECTIONS_PATH := $(BUILD)/collections
export PYTHONPATH := $(CURDIR)/tests
export LC_ALL := C.UTF-8

.PHONY: help setup
help: ## What can be made here
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/' | expand -t 12

setup: $(READY) ## Install what the other targets need, under .build/

$(READY): tests/setup.sh tests/requirements.txt
	@bash tests/setup.sh
