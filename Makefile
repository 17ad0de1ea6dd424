# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Make splits names at blanks, and what removes .build would remove another directory.
ifneq ($(words $(CURDIR)),1)
$(error The path of this checkout has a blank in it, which make cannot do with: $(CURDIR))
endif

BUILD := $(CURDIR)/.build
READY := $(BUILD)/.ready
# What was made under another path leads there still.
MOVED := $(filter-out $(CURDIR),$(shell cat $(READY) 2>/dev/null))
KEYS ?= 100000
RUNS ?= 3

export PATH := $(BUILD)/venv/bin:$(PATH)
export ANSIBLE_COLLECTIONS_PATH := $(BUILD)/collections
export PYTHONPATH := $(CURDIR)/tests
export MOLECULE_GLOB := tests/molecule/*/molecule.yml
export LC_ALL := C.UTF-8

LINTS := sanity lint-galaxy lint-playbooks lint-docs lint-files

.DELETE_ON_ERROR:
.PHONY: help setup demo stop lint $(LINTS) units integration molecule artefact release docs test bench clean moved
help: ## What can be made here
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

setup: $(READY) ## Install what the other targets need, under .build/

$(READY): tests/setup.sh meta/requirements.txt tests/requirements.txt tests/requirements-importer.txt $(if $(MOVED),moved)
	@bash tests/setup.sh

demo: $(READY) ## Move database 1 of a lab with KEYS=100000 keys, and prove it
	@bash tests/demo.sh start $(KEYS)

stop: ## End what the demo has left running, and remove it
	@[ ! -e .lab ] || bash tests/demo.sh stop

lint: $(READY) ## Every linter there is for a collection, ansible-test sanity among them
	@$(MAKE) --jobs=2 --output-sync=target $(LINTS)

sanity: $(READY) ## ansible-test sanity; compile and import on every Python from 3.9 to 3.13 that is there
	bash tests/sanity.sh

lint-galaxy: $(READY)
	bash tests/galaxy.sh

lint-playbooks: $(READY)
	ansible-lint --strict

lint-docs: $(READY)
	antsibull-docs lint-collection-docs --plugin-docs --validate-collection-refs all --skip-rstcheck .

lint-files: $(READY)
	ruff check plugins tests docs
	ruff format --check plugins tests docs
	yamllint --strict .
	check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	check-jsonschema --builtin-schema vendor.github-actions .github/actions/*/action.yml
	check-jsonschema --builtin-schema vendor.dependabot .github/dependabot.yml
	shellcheck .ci/run tests/*.sh
	antsibull-changelog lint
	reuse lint --lines

units: $(READY) ## Tests of the parts, module by module, and how many lines of module_utils they run
	pytest -q -n 2 --dist loadfile --cov --cov-config=pyproject.toml --cov-report=term tests/unit

# First, so that no worker is left alone with one of them at the end.
LONGEST := $(wildcard tests/integration/test_migrate_db*.py)

integration: $(READY) ## Tests of roles, playbooks and the lab, through ansible-playbook
	pytest -q -n 2 --dist loadfile --no-loadscope-reorder \
		$(LONGEST) $(filter-out $(LONGEST),$(wildcard tests/integration/test_*.py))

molecule: $(READY) ## The scenarios: migration_host, and the whole cutover
	molecule test --all

artefact: $(READY) ## Build the collection, install it elsewhere and run the playbook by its name, on ansible-core 2.17 too
	bash tests/artefact.sh
	PATH="$(BUILD)/oldest/bin:$$PATH" ANSIBLE_JINJA2_NATIVE=true bash tests/artefact.sh

docs: $(BUILD)/docs/index.html ## The site, into .build/docs: the pages of docs/ and the reference of modules and roles

$(BUILD)/docs/index.html: $(READY) $(wildcard $(shell git ls-files README.md CHANGELOG.md docs galaxy.yml plugins roles))
	rm -rf $(BUILD)/docs-source $(BUILD)/docs
	mkdir -p $(BUILD)/docs-source/docs
	cp -R docs README.md CHANGELOG.md $(BUILD)/docs-source
	mkdir -m 755 $(BUILD)/docs-source/docs/reference
	antsibull-docs collection --use-current --squash-hierarchy --fail-on-error \
		--dest-dir $(BUILD)/docs-source/docs/reference keyferry.redis
	sphinx-build --fail-on-warning --keep-going --quiet --conf-dir docs $(BUILD)/docs-source/docs $(BUILD)/docs

release: $(READY) ## Build VERSION= into .build/release/, which galaxy.yml and the changelog must say
	bash tests/release.sh "$(VERSION)"

test: $(READY) ## Everything that CI runs
	$(MAKE) --jobs=2 --output-sync=target $(LINTS) units
	$(MAKE) integration
	$(MAKE) --jobs=2 --output-sync=target molecule artefact docs

bench: export PYTHONPATH := $(BUILD)/collections:$(CURDIR)/tests
bench: KEYS := $(if $(filter command line environment,$(origin KEYS)),$(KEYS),1000000)
bench: $(READY) ## Measure the data path beside its peers, KEYS=1000000, RUNS=3, SCALE= sizes and a NOTE=, and write docs/benchmarks.md
	python tests/benchmarks/bench_resp.py --keys $(KEYS) --runs $(RUNS) --scale $(SCALE) --page docs/benchmarks.md --note "$(NOTE)"

clean: stop ## Remove everything that was made here
	rm -rf $(BUILD)
