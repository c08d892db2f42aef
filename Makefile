# `make demo` and `make test` set everything up in .venv first.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
SETUP := $(VENV)/.done
BENCH := .venv-bench
PEERS := .venv-peers
BUSY := OMP_WAIT_POLICY=PASSIVE $(PY)  # torch's idle threads must not spin: decoders need the cores

OUT ?= runs/gpu
GPU_PYTHON := $(if $(or $(TINY),$(wildcard $(SETUP))),$(PY),$(PYTHON))  # a GPU machine may have all it needs already

unexport PYTHONDONTWRITEBYTECODE  # without .pyc files every process compiles torch and transformers again

CHROMIUM := chromium fonts-liberation  # Debian's; the page is tested in it
APT := DEBIAN_FRONTEND=noninteractive $(if $(filter-out 0,$(shell id -u)),sudo -n) apt-get

.PHONY: demo test lint bench gpu browser clean

$(SETUP): setup.cfg pyproject.toml demo/requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --upgrade pip uv
	$(PY) -m uv pip install --quiet --python $(PY) -e '.[all]' || $(PY) -m pip install --quiet -e '.[all]'
	$(PY) -m pip install --quiet --no-deps -r demo/requirements.txt
	touch $(SETUP)

demo: $(SETUP)
	$(PY) -m demo $(if $(PRETRAINED),--pretrained --folder runs/demo-pretrained)

test: $(SETUP) browser
	$(PY) -m pytest -n 2 --dist loadfile --no-loadscope-reorder

browser:
	@command -v chromium > /dev/null \
	    || { $(APT) update -qq && $(APT) install -qq -y --no-install-recommends $(CHROMIUM) > /dev/null; } \
	    || echo "no Chromium here, and apt-get cannot install it: the page's tests are skipped"

lint: $(SETUP)
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports setup.cfg

define environment
	$(PYTHON) -m venv $(@D)
	$(PY) -m uv pip install --quiet --python $(@D)/bin/python -r $(filter %.txt,$^) \
	    || $(@D)/bin/python -m pip install --quiet -r $(filter %.txt,$^)
	touch $@
endef

$(BENCH)/.done: $(SETUP) benchmarks/requirements.txt
	$(environment)

$(PEERS)/.done: $(SETUP) benchmarks/featurizers/requirements.txt
	$(environment)

bench: $(BENCH)/.done $(PEERS)/.done
	$(BENCH)/bin/python -m benchmarks.streaming streaming --python $(PY)
	TMPDIR=/dev/shm $(PY) -m benchmarks.growth growth
	$(PY) -m benchmarks.ranks ranks --items 100000 --items 1000000 --items 10000000
	$(PY) -m benchmarks.ranks ranks --items 2000000 --processes 8
	$(PY) -m benchmarks.featurizers race --python $(PEERS)/bin/python
	$(PY) -m benchmarks.featurizers failures --python $(PEERS)/bin/python
	$(BUSY) -m benchmarks.featurizing pipeline --videos 2 --dtype bfloat16
	$(BUSY) -m benchmarks.featurizing pipeline --hd --videos 24 --encoder clip:ViT-S-32/random --layer 1 --frames 2 --rounds 7
	$(BUSY) -m benchmarks.featurizing nested
	$(PY) -m benchmarks.metrics
	$(PY) -m benchmarks.asking client
	$(PY) -m benchmarks.asking ledger
	$(PY) -m benchmarks.intervals coverage
	$(PY) -m benchmarks.intervals power
	$(PY) -m benchmarks.curating
	$(PY) -m benchmarks.serving engines runs/demo/stage2/checkpoint runs/demo/store heldout  # after make demo
	$(PY) -m benchmarks.serving outside runs/demo/stage2/checkpoint
	$(PY) -m benchmarks.api load runs/demo/stage2/checkpoint runs/demo/store heldout
	$(PY) -m benchmarks.api uploads runs/demo/stage2/checkpoint runs/demo/corpus/clips/heldout000.mp4
	$(PY) -m benchmarks.api leave runs/demo/stage2/checkpoint
	$(PY) -m benchmarks.training packed
	$(PY) -m benchmarks.training trainer
	$(BUSY) -m benchmarks.online --only clips --only stills --steps 4
	$(BUSY) -m benchmarks.online --only light-clips --only light-stills --steps 20 --rounds 4

# TINY=1 runs the same parts in tiny shapes on the CPU; PARTS="stage1 zero" runs these alone.
gpu: $(if $(TINY),$(SETUP))
	$(GPU_PYTHON) -m benchmarks.gpu --out $(OUT) $(if $(TINY),--tiny) $(PARTS:%=--only %)

clean:
	rm -rf $(VENV) $(BENCH) $(PEERS) build runs *.egg-info
