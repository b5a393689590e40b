# make setup | demo | test | bench | bench-gpu | clean. README.md has the same as plain commands.
# PYTHON=/path/to/python3.12 chooses the interpreter that .venv is made with.

BIN := .venv/bin
READY := .venv/.ready

# Threads that wait spin for a while before they sleep. Tests run in two processes, whose threads must leave each other
# the cores at once.
test: export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: help setup demo test bench bench-gpu clean

help:
	@echo "make setup   install into .venv"
	@echo "make demo    setup; train on the embedded digits, evaluate, draw where the model looked: a few minutes"
	@echo "make test    setup; pytest, ruff, mypy"
	@echo "make bench   setup; speed of the training step"
	@echo "make bench-gpu   setup; all that is to be measured on a GPU, in one run: the step in three precisions, with CUDA graphs and without, large batches, many seeds at once, MNIST from nothing"
	@echo "make clean   remove .venv and what was built; runs in outputs/ stay"

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	@python=; \
	for name in $(or $(PYTHON),python3.11 python3.12 python3 python); do \
	    if $$name -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null; then \
	        python=$$name; break; \
	    fi; \
	done; \
	if [ -z "$$python" ]; then \
	    echo "No Python 3.11 or 3.12 was found$(if $(PYTHON), as $(PYTHON)): install one, or name it with PYTHON=/path/to/python3.12." >&2; \
	    exit 1; \
	fi; \
	if ! [ -x $(BIN)/pip ]; then echo "Making .venv with $$python"; $$python -m venv --clear .venv; fi
	$(BIN)/pip install -c constraints.txt -e '.[test]'
	@touch $(READY)

demo: setup
	$(BIN)/attn train experiment=demo
	$(BIN)/attn eval --mc-samples 10
	$(BIN)/attn show
	@run=$$(ls -dt outputs/digits-ram-6g-*/ | head -n 1); \
	echo; \
	echo "Everything is in $$run"; \
	echo "  pictures/paths-test.png     where the model looked on 8 test images; pictures/glimpses-test-*.gif: the same, moving"; \
	echo "  curves.png, metrics.csv     the course of training"; \
	echo "  result.json                 errors, speed, versions; evaluation-test-mc10.json: with 10 averaged paths"; \
	echo "  checkpoints/, config.yaml   the model and all of its settings"

test: setup
	$(BIN)/pytest -n 2 --dist loadfile
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: setup
	$(BIN)/attn bench

bench-gpu: setup
	for precision in 32 tf32 bf16; do \
	    $(BIN)/attn bench device=cuda precision=$$precision output=bench-$$precision.json || exit 1; \
	done
	for precision in 32 bf16; do \
	    $(BIN)/attn bench device=cuda compile=graph precision=$$precision output=bench-graph-$$precision.json || exit 1; \
	done
	for compile in on graph; do \
	    $(BIN)/attn train experiment=ram/table1a_6 trainer.accelerator=gpu trainer.compile=$$compile || exit 1; \
	    awk -F, 'NR == 1 {for (i = 1; i <= NF; i++) at[$$i] = i; next} \
	        $$at["val_error"] <= 1.29 {print "validation error " $$at["val_error"] " after " $$at["seconds"] " s of training"; exit}' \
	        "$$(ls -dt outputs/mnist-ram-6g-*/ | head -n 1)metrics.csv"; \
	done
	$(BIN)/attn eval mc_samples=10 device=gpu batch_size=10000
	$(BIN)/attn bench device=cuda compile=graph batch_size=1024 output=bench-large.json
	$(BIN)/attn bench 'shapes=[28x28]' device=cuda samples=1 parallel_seeds=8 output=bench-parallel.json

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find attn_cli tests -name __pycache__ -type d -prune -exec rm -rf {} +
