# Two commands matter: `make run` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
ONESHOT ?=

# What the console is built from; `pip install` builds it.
CONSOLE := $(shell find app/console/web -name node_modules -prune -o -type f -print 2>/dev/null)

.PHONY: run test check lint format types audit clean

run: .venv/.installed
	@$(BIN)/precedent demo $(if $(ONESHOT),--oneshot)

# The everyday suite: lint, types, and every test that is not slow.
test: .venv/.installed-dev lint
	$(BIN)/python -m pytest -q -m "not slow" $(PYTEST)

# What is slow: full sweeps and real servers. Runs after `make test`.
check: .venv/.installed-dev
	$(BIN)/python -m pytest -q -m slow $(PYTEST)

lint: .venv/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python hatch_build.py check

format: .venv/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The TypeScript types of the API, after it has changed.
types: .venv/.installed-dev
	@mkdir -p .scratch
	LITESTAR_APP=app.asgi:create_app $(BIN)/litestar schema openapi --output .scratch/openapi.json
	$(BIN)/python hatch_build.py types $(CURDIR)/.scratch/openapi.json

.venv/.installed: pyproject.toml constraints.txt hatch_build.py $(CONSOLE)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; this is $$($(PYTHON) --version). Try make PYTHON=python3.11"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "Installing into .venv (a few minutes the first time) …"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

.venv/.installed-dev: .venv/.installed
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

# Known vulnerabilities of what constraints.txt names, by PyPI's advisories; what those do not know is listed as skipped.
audit: .venv/.installed-dev
	@test -x .venv/audit/bin/pip-audit || { $(PYTHON) -m venv .venv/audit && \
		.venv/audit/bin/pip install --quiet --disable-pip-version-check 'pip-audit>=2.10,<3'; }
	$(BIN)/python -m pip check
	.venv/audit/bin/pip-audit -r constraints.txt --no-deps --disable-pip --progress-spinner off

clean:
	rm -rf .venv var
