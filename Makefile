# Two commands do all the set-up on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3.11
HOST := .venv/bin
DEVICE := .venv-device/bin
OLDEST := .venv-oldest/bin
TRAINING := .venv-ort-training/bin
FLEET := .venv-fleet/bin
ENVIRONMENTS := .venv/.test .venv/.browser .venv-device/.done .venv-oldest/.done .venv-ort-training/.done .venv-fleet/.done
export HF_HUB_OFFLINE = 1
export EDGEPEFT_DEVICE_PYTHON = $(DEVICE)/python
export EDGEPEFT_OLDEST_PYTHON = $(OLDEST)/python
export EDGEPEFT_ORT_TRAINING_PYTHON = $(TRAINING)/python
export EDGEPEFT_FLEET_PYTHON = $(FLEET)/python

# Browsers that the web runtime is tested in, by their names on the path.
BROWSERS := chromium-headless-shell chromium google-chrome chromium-browser

.PHONY: demo demo-flower test lint slow aarch64 bench bench-fleet bench-methods bench-accuracy clean

# The workstation prepares, a separate environment without torch fine-tunes, the workstation merges.
demo: .venv/.demo .venv-device/.done
	$(HOST)/python examples/docstring_topics.py --device-python $(DEVICE)/python
	$(HOST)/python examples/shifted_digits.py --device-python $(DEVICE)/python
	$(HOST)/python examples/quantized_onnx.py --device-python $(DEVICE)/python
	$(HOST)/python examples/answer_style.py --device-python $(DEVICE)/python
	$(HOST)/python examples/fleet.py --device-python $(DEVICE)/python

# Twenty devices on Flower, simulated; `make slow` runs it too.
demo-flower: .venv/.demo .venv-fleet/.done
	$(HOST)/python examples/flower_fleet.py --fleet-python $(FLEET)/python

# Two at a time, but for a browser, whose pages are to have the machine for themselves.
test: $(ENVIRONMENTS) lint
	$(HOST)/python -m pytest -n 2 -rs --ignore tests/web --durations 20
	$(HOST)/python -m pytest -rs tests/web

# End-to-end cases of many seconds, and every method on every network, as docs/METHODS.md has it.
slow: $(ENVIRONMENTS)
	$(HOST)/python -m pytest -n 2 -rs -m 'slow or matrix' --ignore tests/web
	$(HOST)/python -m pytest -rs -m slow tests/web

# The device runtime on an emulated Raspberry Pi: 160 MB the first time, into .aarch64. Skipped with a reason where it cannot be had.
aarch64: .venv/.test
	$(HOST)/python -m pytest -m aarch64 -rs

lint: .venv/.test
	$(HOST)/ruff check .
	$(HOST)/ruff format --check .
	$(HOST)/mypy
	$(HOST)/lint-imports

# Speed and memory against peers, side by side; where the time goes. Leave the machine alone meanwhile.
bench: .venv/.demo .venv-ort-training/.done
	$(HOST)/python -m benchmarks --training-python $(TRAINING)/python
	$(HOST)/python -m benchmarks.profile minilm edgepeft-int8

# Devices that a host serves, updates that it verifies and aggregates, per second; its memory.
bench-fleet: .venv/.test
	$(HOST)/python -m benchmarks.fleet_load
	$(HOST)/python -m benchmarks.fleet

# All methods side by side on one task: most of an hour. A run that was stopped goes on with --resume.
bench-methods: .venv/.demo
	$(HOST)/python -m benchmarks.methods

# Accuracy against PyTorch, five seeds each: half an hour. A run that was stopped goes on with --resume.
bench-accuracy: .venv/.demo
	$(HOST)/python -m benchmarks.accuracy

.venv/.demo: pyproject.toml
	$(PYTHON) -m venv .venv
	$(HOST)/pip install --quiet --disable-pip-version-check -e '.[examples]'
	touch $@

.venv/.test: .venv/.demo
	$(HOST)/pip install --quiet --disable-pip-version-check -e '.[test]'
	touch $@

# A browser, where there is none and this is root on Debian; elsewhere its tests are skipped, and say why.
.venv/.browser: .venv/.test
	@for name in $(EDGEPEFT_CHROMIUM) $(BROWSERS); do command -v $$name && break; done > /dev/null \
	  || { apt-get update -qq && apt-get install -qq -y --no-install-recommends chromium-headless-shell; } > /dev/null \
	  || echo "No browser, and none could be installed: the tests in one will be skipped."
	@touch $@

# What a device holds: numpy, onnxruntime, tokenizers, and edgepeft without its host extras.
.venv-device/.done: pyproject.toml
	$(PYTHON) -m venv .venv-device
	$(DEVICE)/pip install --quiet --disable-pip-version-check -e '.[device,text]'
	touch $@

# The oldest onnxruntime that bundles must run on.
.venv-oldest/.done: pyproject.toml
	$(PYTHON) -m venv .venv-oldest
	$(OLDEST)/pip install --quiet --disable-pip-version-check -e . 'onnxruntime==1.19.2'
	touch $@

# ONNX Runtime's own training, a second engine and a peer: its wheel overwrites the stock one.
.venv-ort-training/.done: pyproject.toml
	$(PYTHON) -m venv .venv-ort-training
	$(TRAINING)/pip install --quiet --disable-pip-version-check -e '.[ort-training]'
	touch $@

# Flower, for fleets that outgrow one host, and what simulates them here: it holds packages below what the workstation takes.
.venv-fleet/.done: pyproject.toml
	$(PYTHON) -m venv .venv-fleet
	$(FLEET)/pip install --quiet --disable-pip-version-check -e '.[fleet,dp]' 'flwr[simulation]' 'pytest>=8'
	touch $@

clean:
	rm -rf .venv .venv-device .venv-oldest .venv-ort-training .venv-fleet .aarch64 .mypy_cache .pytest_cache .ruff_cache
	rm -rf runtimes/web/node_modules runtimes/web/dist runtimes/web/build examples/*/node_modules examples/*/dist
