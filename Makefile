# One word per thing a person does. `make` alone lists them.
.DEFAULT_GOAL := help
SHELL := /bin/bash
VENV  := .venv
BIN   := $(VENV)/bin
PY    := $(BIN)/python
PYTHON ?= python3
ARGS  ?=

.PHONY: help reproduce test verify check notebooks results pages readme preview docs benchmark faults fuzz distributed versions lock clean

help:            ## list these words
	@grep -hE '^[a-z]+: .*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## */\1|/' | awk -F'|' '{printf "  make %-12s %s\n", $$1, $$2}'

# The environment: made once, brought up to date when a file naming requirements changes. PyTorch is installed once.
$(PY):
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: settings.ini setup.py pyproject.toml | $(PY)
	@echo "Installing PyTorch and what else is needed into $(VENV), up to 6 GB; nothing more is printed for some minutes"
	$(PY) -m pip install --quiet --disable-pip-version-check -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PY) -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

# With LOCKED=1 in the versions of constraints.txt.
$(VENV)/.installed-locked: constraints.txt settings.ini setup.py pyproject.toml | $(PY)
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@ $(VENV)/.installed

reproduce: $(VENV)/.installed$(if $(LOCKED),-locked)   ## install, then the demonstration on the embedded digits (1-2 minutes; LOCKED=1: in exact versions)
	$(BIN)/ekd_reproduce $(ARGS)

test: check                          ## everything that must hold: notebooks, README, pytest
	OMP_NUM_THREADS=1 $(PY) tools/run_notebooks.py
	OMP_NUM_THREADS=1 $(PY) tools/preview/build.py
	$(PY) tools/preview/check.py
	OMP_NUM_THREADS=1 $(PY) -m pytest -q -n 2 --dist loadfile

check: $(VENV)/.installed-dev        ## the quick part of test: notebooks clean, library and README in sync
	$(PY) tools/check_notebooks.py
	$(PY) tools/readme.py --check

notebooks: $(VENV)/.installed-dev    ## run notebooks and store their outputs (ARGS='nbs/07_losses.ipynb' for some)
	OMP_NUM_THREADS=1 $(PY) tools/run_notebooks.py --save $(ARGS)

DATA     ?= cifar10
PRESET   ?= small
SEEDS    ?= 0,1,2,3,4
METHODS  ?= all
SETTINGS ?= full same

results: $(VENV)/.installed-dev      ## run what has no record yet (DATA, PRESET, METHODS, SEEDS, SETTINGS), then compute every page that shows records
	for t in $(SETTINGS); do $(BIN)/ekd_reproduce --data $(DATA) --preset $(PRESET) --methods $(METHODS) --seeds $(SEEDS) --teacher-data $$t \
	    --jobs 2 --out results --work .work --no-figure $(ARGS) || exit 1; done
	$(MAKE) pages

pages: $(VENV)/.installed-dev        ## compute every page that shows records again, and README.md
	OMP_NUM_THREADS=1 $(PY) tools/run_notebooks.py --save nbs/index.ipynb nbs/results/*.ipynb
	$(PY) tools/readme.py

readme: $(VENV)/.installed-dev       ## write README.md from nbs/index.ipynb
	$(PY) tools/readme.py

preview: $(VENV)/.installed-dev      ## build the site without Quarto into _preview/ and look at every page in Chromium
	OMP_NUM_THREADS=1 $(PY) tools/preview/build.py
	$(PY) tools/preview/check.py
	@echo "open _preview/index.html, or: $(PY) -m http.server -d _preview"

docs: $(VENV)/.installed-dev         ## build the site with Quarto into _docs/ and look at every page in Chromium
	@command -v quarto >/dev/null || { echo "make docs needs Quarto 1.7 or newer: see https://quarto.org/docs/get-started/ (or run $(BIN)/nbdev-install-quarto). 'make preview' does without."; exit 1; }
	$(BIN)/nbdev-docs
	$(PY) tools/preview/check.py _docs

faults: $(VENV)/.installed           ## kill runs, damage files, fill the disk: how many runs survive (a record in results/faults)
	OMP_NUM_THREADS=1 $(PY) -W ignore tools/faults.py $(ARGS)

N    ?= 500
SEED ?= 0

fuzz: $(VENV)/.installed-dev         ## train N=500 random combinations: each works or is refused with one sentence (a record in results/fuzz)
	OMP_NUM_THREADS=1 $(PY) -W ignore tools/fuzz.py --n $(N) --seed $(SEED) $(ARGS)

verify: $(VENV)/.installed           ## train one run of each main method again and compare it with its record, digit by digit (CIFAR-10; an hour on a core)
	OMP_NUM_THREADS=1 $(PY) -W ignore tools/verify.py --data $(DATA) --preset $(PRESET) --teacher-data full --work .work $(ARGS)

distributed: $(VENV)/.installed-dev  ## train with one and with two processes, record how far apart they are
	OMP_NUM_THREADS=1 $(PY) -W ignore tools/two_processes.py --record

# An environment of its own with an older PyTorch, everything else as in constraints.txt, without torchdistill (wants torch 2.12); made once.
OLDER := .venv-versions
$(OLDER)/.installed: settings.ini setup.py pyproject.toml
	test -x $(OLDER)/bin/python || $(PYTHON) -m venv $(OLDER)
	grep -vE '^(torch|torchvision|triton)==' constraints.txt > $(OLDER)/constraints.txt
	sed -n 's/^dev_requirements *= *//p' settings.ini | tr ' ' '\n' | grep -v '^torchdistill' > $(OLDER)/requirements.txt
	$(OLDER)/bin/python -m pip install --quiet --disable-pip-version-check 'torch==2.11.*' 'torchvision==0.26.*' -c $(OLDER)/constraints.txt -r $(OLDER)/requirements.txt -e .
	@touch $@

versions: $(OLDER)/.installed        ## run the library's tests with torch 2.11 and torchvision 0.26, in an environment of its own (6 GB)
	OMP_NUM_THREADS=1 $(OLDER)/bin/python tools/versions.py $(ARGS)

lock: $(VENV)/.installed-dev         ## write the versions of this environment to constraints.txt
	$(PY) tools/lock.py

benchmark: $(VENV)/.installed        ## time training and inference on this machine (QUICK=1: at most 10 minutes on 2 cores)
	$(PY) -W ignore -m ekd_nb.study.benchmark $(if $(QUICK),--quick) $(ARGS)

clean:                               ## remove what building leaves behind (not the environment)
	rm -rf _proc _docs _preview build *.egg-info .pytest_cache .hypothesis
