# Everything here runs in .venv, which is made and refreshed as needed; nothing has to be activated.
#
#   make ablation                     Table 4's experiment on the embedded digits; again: resumes
#   make ablation ARGS='--seeds 0,1'  the same with options of sweeps/ablation.py
#   make test                         every test

PYTHON ?= python3
ARGS ?=
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help ablation tables pictures test fast-test lint ui lock bench clean

help:
	@sed -n 's/^# \{0,1\}//p' Makefile | head -n 6
	@echo
	@echo 'also: make tables | pictures | ui | lint | fast-test | lock | bench | clean'

# The stamp is written last: an installation that was interrupted is begun again. Compiled by all cores at once, where pip
# takes one; a few files are templates or for another Python, and no pip can compile them either.
$(BIN)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo 'Python 3.11 or newer is needed; name one with: make PYTHON=python3.11 ...'; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	PYTHONWARNINGS='ignore:Editable installation' $(BIN)/python -m pip install --quiet --no-compile --editable '.[test]'
	@$(BIN)/python -m compileall -qq -j 0 .venv/lib relvit sweeps analysis || true
	@touch $@

# The tables are of the runs that the sweep tracks; a plan, or a question for help, leaves none.
ablation: $(BIN)/.installed
	$(BIN)/python sweeps/ablation.py $(ARGS)
	@set -- $(ARGS); for each; do case $$each in --plan|--help|-h) exit 0; esac; done; \
	left=$$#; while [ $$left -gt 0 ]; do case $$1 in \
	  --experiment|--tracking-uri) set -- "$$@" "$$1" "$$2"; shift 2; left=$$((left - 2));; \
	  --experiment=*|--tracking-uri=*) set -- "$$@" "$$1"; shift; left=$$((left - 1));; \
	  *) shift; left=$$((left - 1)); esac; done; \
	set -x; $(BIN)/python analysis/make_tables.py "$$@"

tables: $(BIN)/.installed
	$(BIN)/python analysis/make_tables.py $(ARGS)

# What finished ViTs have learned, as artifacts of their MLflow runs.
pictures: $(BIN)/.installed
	$(BIN)/python sweeps/pictures.py $(ARGS)

# In the order of their names the slow files come first, so that both workers have something to do until the end.
test: $(BIN)/.installed
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations 15 $(ARGS)

# Without the tests that start Ray and MLflow.
fast-test: $(BIN)/.installed
	$(BIN)/python -m pytest -n 2 --dist loadfile -m 'not end_to_end' $(ARGS)

lint: $(BIN)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Every run, also while it trains: http://127.0.0.1:5000, with a password: others may have an account on this machine.
ui: $(BIN)/.installed
	MLFLOW_BACKEND_STORE_URI=sqlite:///mlflow.db $(BIN)/python sweeps/serve_mlflow.py --folder "$(HOME)/mlflow/local"

# requirements.lock, what the images and clusters install: the versions that are installed here. Run the tests first.
lock: $(BIN)/.installed
	$(BIN)/python -m pip install --quiet --editable '.[test,postgres]'
	$(BIN)/python kubernetes/lock.py > requirements.lock

bench: $(BIN)/.installed
	$(BIN)/python benchmarks/augmentation.py
	$(BIN)/python benchmarks/training_step.py
	$(BIN)/python benchmarks/training_step.py --at-224
	$(BIN)/python benchmarks/shared_memory.py
	$(BIN)/python benchmarks/sweep_overhead.py
	$(BIN)/python benchmarks/gather.py
	$(BIN)/python benchmarks/tables.py
	$(BIN)/python benchmarks/many_cells.py
	$(BIN)/python benchmarks/error_rates.py
	$(BIN)/python benchmarks/hpo_search.py share

# The environment only; results, data and mlflow.db are yours to remove.
clean:
	rm -rf .venv
