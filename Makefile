PYTHON  ?= python3
VENV    ?= .venv
RUN     ?= demo
UPDATES ?=
ARGS    ?=
BIN     := $(VENV)/bin
READY   := $(VENV)/.ready
export JUPYTER_PREFER_ENV_PATH := 1
IN      := PATH="$(abspath $(BIN)):$$PATH"

.DEFAULT_GOAL := help
.PHONY: help train test deep mutants bless lab export docs hooks browser

help:  ## this list
	@sed -n 's/^\([a-z]*\): [^#]*##  *\(.*\)/  make \1|\2/p' Makefile | column -t -s '|' 2>/dev/null \
		|| sed -n 's/^\([a-z]*\): [^#]*##  *\(.*\)/  make \1: \2/p' Makefile
	@echo; echo "  make train RUN=name UPDATES=400 ARGS='--world corridor' names the run and sets its parameters"

train: $(READY)  ## set up, then train a pack of mechs into runs/demo and show the battle in runs/demo/train.ipynb
	@run='$(RUN)'; n=2; while [ -e "runs/$$run/train.ipynb" ]; do run="$(RUN)-$$n"; n=$$((n+1)); done; \
	echo "run: runs/$$run" && $(BIN)/echelon train --run "$$run" $(if $(UPDATES),--updates $(UPDATES)) $(ARGS) </dev/null && \
	echo "(make lab opens JupyterLab)"

test: $(READY)  ## set up, then run every check: package, lint, types, tests, notebooks, docs
	@$(IN) bash .ci/check

deep: $(READY)  ## the long checks: slow notebook cells and tests marked `deep`
	@$(IN) bash .ci/check deep

mutants: $(READY)  ## change one thing in the rules of combat, 200 times: do the tests notice? (a quarter of an hour)
	$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e '.[mutants]'
	$(BIN)/python .ci/mutants.py

bless: $(READY)  ## accept the maps and the battles that are made now as the golden ones
	$(BIN)/pytest tests/test_landscape.py tests/test_combat.py -k golden --bless

lab: $(READY)  ## open the book in JupyterLab
	$(BIN)/jupyter lab nbs/index.ipynb

export: $(READY)  ## clean the notebooks, write the package and README.md from them
	$(BIN)/nbdev_clean && $(BIN)/nbdev_export && $(BIN)/python .ci/readme.py

docs: $(READY)  ## render the site with Quarto; without Quarto, check all that can be checked
	@if command -v quarto >/dev/null; then $(BIN)/python .ci/readme.py && $(BIN)/nbdev_docs; else $(BIN)/python .ci/docs_check.py; fi

hooks: $(READY)  ## git: merge notebooks by cell, refuse a commit of notebooks that are not clean and exported
	@bash .ci/hooks "$(BIN)"

browser: $(READY)  ## install Chromium for the tests that look at a page
	$(BIN)/playwright install --with-deps chromium

$(READY): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "make: $(PYTHON) not found; on Debian: apt-get install git make python3-venv" >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "make: Python 3.11 or later is needed, $(PYTHON) is $$($(PYTHON) -V 2>&1); name another: make PYTHON=python3.13 ..." >&2; exit 2; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || \
		{ echo "make: $(PYTHON) cannot make virtual environments; on Debian: apt-get install python3-venv" >&2; exit 2; }
	@rm -f $@
	@echo "setting up $(VENV): about 1.9 GB and a few minutes, once"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e '.[dev]' </dev/null
	@touch $@
