# make fuzz    fuzz the posted relocation for a minute and show what it breaks
# make test    lint, types, tests with coverage
# make clean   remove what these made
#
# Needs Python 3.11 and make; the packages come from requirements.lock into .venv.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
SECONDS ?= 60
DESIGN ?= relocate-anon
OUT ?= out/$(DESIGN)

.PHONY: fuzz test lint lock clean

# Status 1 says that there are findings: here that is what was wanted.
fuzz: .venv/ready
	@$(BIN)/vmafuzz fuzz --design $(DESIGN) --time $(SECONDS) --out $(OUT); status=$$?; \
	if [ $$status -le 1 ]; then exit 0; else exit $$status; fi

# Coverage is asked of emulator/ and oracle/ by their own tests: what runs whole campaigns under it adds a minute, and nothing.
test: lint
	$(BIN)/python -m pytest -q -n 2 --cov --cov-report=term --cov-fail-under=90 tests/emulator tests/oracle corpus/regressions
	$(BIN)/python -m pytest -q -n 2 tests/fuzz

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/mypy

.venv/ready: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "vmafuzz needs Python 3.11 or newer, $(PYTHON) is older: make PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --no-deps --require-hashes -r requirements.lock
	PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	touch $@

# Newer packages: renews requirements.lock. Index addresses stay out of it.
lock: .venv/ready
	$(BIN)/pip-compile --quiet --upgrade --all-extras --generate-hashes --allow-unsafe --strip-extras \
		--no-emit-index-url --no-emit-find-links --no-emit-trusted-host --no-emit-options --no-header \
		--annotation-style=line --output-file=requirements.new pyproject.toml
	(echo '# Every package that make installs, with hashes. Made from pyproject.toml by "make lock".'; \
		cat requirements.new) > requirements.lock
	rm requirements.new

clean:
	rm -rf .venv build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage .coverage.* htmlcov
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
