# make demo        everything on a synthetic corpus, in minutes, without an account, a GPU or a network beyond PyPI
# make test        the tests;  make test-fast: without training, browser, servers or Ray;  make test-slow: long variants
# make download extract shard SPLIT=vggss [LISTS=DIR] [FROM=DIR|URL]    the stages on a real split
# make bench CLIPS=DIR                                                 speed against peers, on your clips, into bench/
# make verify train eval SPLIT=… RUN=…                                  the steps after them
# make setup       .venv with everything, pinned by .ci/constraints.txt (the others call it when needed)
# make lint clean help

PYTHON ?= $(shell command -v python3.11 || command -v python3)
SPLIT ?= vggss
LISTS ?=
FROM ?= youtube
ROOT ?= data
RUN ?= lvs-$(SPLIT)
DEMO ?= demo
CLIPS ?= $(ROOT)/clips

VENV := .venv
AVPIPE := $(VENV)/bin/avpipe --root $(ROOT)
READY := $(VENV)/.ready
BENCHMARK := $(VENV)/bin/python tests/benchmarks

.PHONY: help setup demo test test-fast test-slow lint bench clean manifest download extract shard verify train eval

help:
	@sed -n 's/^# make/make/p' Makefile

setup: $(READY)

$(READY): pyproject.toml .ci/constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "avpipe needs Python 3.11 or newer; name one with make PYTHON=…")'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check uv
	$(VENV)/bin/uv pip install --quiet --python $(VENV)/bin/python --constraint .ci/constraints.txt --editable '.[train,ray,s3,dev]'
	@touch $@

demo: $(READY)
	@$(VENV)/bin/python -m avpipe.train.demo $(DEMO)

PYTEST := $(VENV)/bin/python -m pytest --numprocesses auto --dist worksteal

test: $(READY)
	$(PYTEST) -m "not slow"

test-fast: $(READY)
	$(PYTEST) -m "not slow and not heavy"

test-slow: $(READY)
	$(PYTEST) -m slow

# One after the other, each alone on the machine.
bench: $(READY)
	@mkdir -p bench
	@if [ -d '$(CLIPS)' ]; then $(BENCHMARK)/extract.py '$(CLIPS)' --rounds 3 --json bench/extract.json; \
	else echo "There are no clips in $(CLIPS), so extraction is not measured; name a folder with CLIPS=DIR."; fi
	$(BENCHMARK)/load.py --rounds 3 --json bench/load.json
	$(BENCHMARK)/step.py --json bench/step.json
	$(BENCHMARK)/evaluate.py --json bench/evaluate.json
	$(BENCHMARK)/shard_write.py --json bench/shard-write.json
	$(BENCHMARK)/plot.py bench

lint: $(READY)
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check

# Built once; `avpipe manifest build` builds it anew, from the lists of its own choice.
$(ROOT)/manifest/splits.parquet: | $(READY)
	$(AVPIPE) manifest build $(if $(LISTS),--lists $(LISTS))

manifest: $(ROOT)/manifest/splits.parquet

download: manifest
	$(AVPIPE) download --split $(SPLIT) --from '$(FROM)'

# In one call of make the stages run in their order; each alone goes on with what the one before it left.
extract: $(READY) $(if $(filter download,$(MAKECMDGOALS)),download)
	$(AVPIPE) extract --split $(SPLIT)

shard: $(READY) $(if $(filter extract,$(MAKECMDGOALS)),extract)
	$(AVPIPE) shard --split $(SPLIT)

verify: $(READY) $(if $(filter shard,$(MAKECMDGOALS)),shard)
	$(AVPIPE) verify $(ROOT)/shards/$(SPLIT)

train: $(READY)
	$(AVPIPE) train --shards $(ROOT)/shards/$(SPLIT) --method lvs

eval: $(READY)
	$(AVPIPE) eval --split $(SPLIT) --checkpoint $(RUN) --protocol all

clean:
	rm -rf $(DEMO) bench build *.egg-info .pytest_cache .ruff_cache .hypothesis
