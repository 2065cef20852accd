# Two commands matter: `make run` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
ONESHOT ?=

.PHONY: run test check lint format clean

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

format: .venv/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.venv/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; this is $$($(PYTHON) --version). Try make PYTHON=python3.11"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "Installing into .venv (a few minutes the first time) …"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

.venv/.installed-dev: .venv/.installed
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

clean:
	rm -rf .venv var
