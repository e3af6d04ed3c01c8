# make run    a virtual environment in .venv, everything installed, and the main job
# make test   the same environment, then style and tests
# make site   the docs as a site in runs/site, with the lessons as `make notebooks` left them
# make notebooks   the lessons, executed in a size that shows that they run, and as HTML
# make page   the page in which a relay runs, in runs/page; needs Node.js
# The plain commands behind these are in README.md.

BASE   := $(shell for p in python3.11 python3 python; do \
            $$p -c 'import sys, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && command -v $$p && break; done)
BIN    := .venv/bin
READY  := .venv/.installed
RUN    := runs/first

# Everything here works without a network; what would look a model up on a hub shall say so instead of waiting for it.
export HF_HUB_OFFLINE ?= 1
# Compiling 30,000 files takes longer than installing them: Python compiles those that are used, when they are.
unexport PYTHONDONTWRITEBYTECODE

.DELETE_ON_ERROR:
.PHONY: run test lint format notebooks page site clean

run: $(READY)
	@rm -rf $(RUN)
	@echo "== 1/3  200 test problems of ten embedded suites: the student alone, the relay, the teacher alone"
	@$(BIN)/relaylab evaluate --suite lifelike --limit 20 --methods "student relay teacher" --out $(RUN)
	@echo "== 2/3  one relay: the teacher's tokens stand in « »"
	@$(BIN)/relaylab show $(RUN)/traces/0/relay.jsonl --id tiles-test-0-0
	@echo "== 3/3  a page that plays all of them"
	@$(BIN)/relaylab show $(RUN)/traces/0/relay.jsonl --limit 200 --id tiles-test-0-0 \
		--html $(RUN)/player.html

# The whole series, each lesson executed and as a page that needs no kernel. `make notebooks SIZE=` runs the lessons at
# their own parameters, a minute each; those of --smoke are in notebooks/smoke.yaml.
SIZE    := --smoke
LESSONS := $(notdir $(basename $(wildcard notebooks/*.ipynb)))
notebooks: $(READY)
	@$(BIN)/relaylab notebooks run $(LESSONS) $(SIZE) --folder notebooks --out runs/notebooks --timeout 900 --html
	@echo "== done: executed lessons, their results as JSON, and pages are in runs/notebooks"

# A folder of static files for any web server (docs/web.md).
page: $(READY)
	@$(BIN)/python web/build_page.py --out runs/page

site: $(READY)
	@$(BIN)/python -c 'import mkdocs, material, mkdocstrings, latex2mathml' 2>/dev/null || \
	    $(BIN)/pip install -qq --no-compile --disable-pip-version-check -c constraints.txt -e '.[dev,docs]'
	@$(BIN)/python website/build.py

test: lint
	$(BIN)/python -m pytest -n auto --dist loadfile $(PYTEST_ARGS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv web/node_modules dist build .pytest_cache .ruff_cache .hypothesis
	rm -rf $(addprefix runs/,first site page browser)  # what nothing but make writes
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Done once, and again when what is to be installed changes. `make clean` starts from nothing.
$(READY): pyproject.toml constraints.txt relaylab/version.py
	@test -n "$(BASE)" || { echo "relaylab needs Python 3.11 or newer, with venv; none was found on the PATH"; exit 1; }
	@echo "== $$($(BASE) --version) at $(BASE): making .venv"
	@$(BASE) -m venv .venv
	@echo "== installing as pinned in constraints.txt (1.5 GB, some minutes)"
	@$(BIN)/pip install -qq --no-compile --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@ && echo "== installed"
