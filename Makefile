# Two commands for people: `make demo` and `make test`. Plain enough for GNU and BSD make.

PYTHON = python3
VENV = .venv
BIN = $(VENV)/bin
ONEFILE = -k "not 3.2"

all: demo

# This list.
help:
	@awk '/^# / { text = text (text == "" ? "" : " ") substr($$0, 3) } /^[a-z][a-z-]*:/ { split($$0, name, ":"); \
		if (text != "") printf "  make %-13s %s\n", name[1], text } !/^# / { text = "" }' Makefile

$(VENV)/made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/demo: $(VENV)/made setup.py pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[demo]'
	@touch $@

$(VENV)/test: $(VENV)/made setup.py pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	@touch $@

$(VENV)/dist: $(VENV)/made setup.py pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dist]'
	@touch $@

$(VENV)/bench: $(VENV)/made
	$(PYTHON) -m venv .cache/easyhaproxy
	.cache/easyhaproxy/bin/python -m pip install --quiet --disable-pip-version-check easyhaproxy==6.5
	@touch $@

# The whole thing on loopback, no root.
demo: $(VENV)/demo
	$(BIN)/agent demo

# Everything, with the oldest and the newest HAProxy. As root on Debian it installs the system packages it needs.
test: system lint unit versions integration onefile onefile-later house

# The same with every HAProxy in between and in every later Python, and the faults with the lowest dependencies: an hour.
test-all: system lint unit house
	EDGEAGENT_ALL_VERSIONS=1 $(MAKE) ONEFILE= versions integration onefile
	EDGEAGENT_ALL_VERSIONS=1 sh tests/onefile-later.sh
	.cache/lowest/bin/python -m pytest -n 2 --dist loadfile tests/faults

# The system packages and HAProxys that the tests need, as root on Debian.
system:
	sh tests/prepare.sh

# Style, types, import rules: all of them, whatever fails.
lint: $(VENV)/test
	@bad=0; for check in "ruff check ." "ruff format --check ." "mypy" "lint-imports --no-logo"; do \
		echo "$(BIN)/$$check"; $(BIN)/$$check || bad=1; done; exit $$bad

# Without HAProxy: about a minute.
unit: $(VENV)/test
	$(BIN)/python -m pytest -n 2 tests/unit

# Unit tests with every lower bound of setup.py, and with properties in the newest Python.
versions: $(VENV)/test
	sh tests/versions.sh -q

# With HAProxy, with Postfix, Dovecot, sshd, Prometheus and Chromium; three files at a time (they mostly wait), those that take long first.
integration: $(VENV)/test
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder \
		tests/faults tests/mail tests/freebsd tests/linux tests/release tests/remote tests/metrics tests/states tests/cluster tests/property tests/golden

# The integration suite, by the one file in a Python that has nothing else: as on a firewall. The newest HAProxy is left to
# the newest Python, below.
onefile: pyz $(VENV)/test
	EDGEAGENT_ONE_FILE=`ls dist/edgeagent-*.pyz` $(BIN)/python -m pytest -n 3 --dist loadfile tests/integration $(ONEFILE)

# The same by a later Python, with the newest HAProxy.
onefile-later: pyz $(VENV)/test
	sh tests/onefile-later.sh -k 3.2

# The cluster's suite against the API server that KUBECONFIG names: 1.25 or later, without controllers (such as envtest's).
test-cluster: $(VENV)/test
	@[ -n "$${KUBECONFIG:-}" ] || { echo "KUBECONFIG must name an API server whose objects may be made and removed"; exit 2; }
	EDGEAGENT_KUBECONFIG=$$KUBECONFIG $(BIN)/python -m pytest tests/cluster

# The documents as a site, strictly: .cache/site/index.html. The reference is written anew out of the code before.
docs: $(VENV)/test
	$(BIN)/python docs/generate.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# The packages, the documents, and that nothing was left behind.
house: $(VENV)/test
	$(BIN)/python -m pytest tests/house

# The properties without HAProxy, and the random walk on every HAProxy, at length: an hour.
fuzz: $(VENV)/test
	HYPOTHESIS_PROFILE=fuzz $(BIN)/python -m pytest tests/property -k "not haproxy"
	EDGEAGENT_ALL_VERSIONS=1 EDGEAGENT_WALK=2000 $(BIN)/python -m pytest tests/faults/test_walk.py

# Put the style right.
format: $(VENV)/test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# What it costs, and side by side with easyhaproxy (as root): a table, and bench/results.json.
bench: $(VENV)/test $(VENV)/bench pyz
	$(BIN)/python bench/run.py

# One file that a bare Python 3.11 runs: dist/edgeagent-VERSION.pyz.
pyz: $(VENV)/dist
	rm -f dist/edgeagent-*.pyz
	$(BIN)/python deploy/release/pyz.py

# A package for `pkg add` on FreeBSD: dist/edgeagent-VERSION.pkg.
pkg: $(VENV)/dist
	$(BIN)/python deploy/release/pkg.py

# All that a release consists of, in dist/: sdist, wheel, the one file, the package for FreeBSD, an SBOM, SHA256SUMS; with
# KEY=FILE ssh signatures of them. See docs/releasing.md.
dist: $(VENV)/dist
	$(BIN)/python deploy/release/dist.py $(KEY)

# Remove all that was made here.
clean:
	rm -rf $(VENV) .cache build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache

.PHONY: all help demo test test-all system lint unit versions integration onefile onefile-later test-cluster docs house pyz pkg dist fuzz format bench clean
