# One line a task. `make help` lists them. Everything lives in .venv, which `make` builds from the hash-locked
# requirements when they change; nothing else on the machine is touched.
PYTHON ?= python3
BIN := .venv/bin
ARGS ?=
WORKERS ?= 4
PYTHONS ?= 3.11 3.12 3.13
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.DEFAULT_GOAL := help

help: ## list the tasks
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

.venv/run.stamp: requirements/run.txt pyproject.toml
	@test -x $(BIN)/python || { echo "setup 1 of 3: creating .venv, once" >&2; $(PYTHON) -m venv .venv; }
	@echo "setup 2 of 3: installing $$(grep -c '==' $<) packages into .venv, about half a minute" >&2
	@$(BIN)/pip install --quiet --require-hashes -r requirements/run.txt >&2
	@echo "setup 3 of 3: installing the project itself" >&2
	@$(BIN)/pip install --quiet --no-build-isolation --no-deps -e . >&2
	@touch $@

.venv/dev.stamp: requirements/dev.txt requirements/compiler.txt .venv/run.stamp
	@echo "setup: adding $$(grep -c '==' requirements/dev.txt) developers' packages to .venv, once, about a minute" >&2
	@$(BIN)/pip install --quiet --require-hashes -r requirements/dev.txt >&2
	@command -v cc >/dev/null || command -v gcc >/dev/null || $(BIN)/pip install --quiet --require-hashes -r requirements/compiler.txt >&2
	@touch $@

.venv/docs.stamp: requirements/docs.txt .venv/run.stamp
	@echo "setup: adding $$(grep -c '==' $<) packages that build the site to .venv, once" >&2
	@$(BIN)/pip install --quiet --require-hashes -r requirements/docs.txt >&2
	@touch $@

setup: .venv/dev.stamp ## build .venv with everything

demo: .venv/run.stamp ## the main job on an embedded cluster; ARGS="--once --output json"
	@$(BIN)/hamictl demo $(ARGS)

test: .venv/dev.stamp ## unit, model, component and architecture tests; ARGS="-m 'not slow'" for the fast ones
	$(BIN)/python -m pytest tests/unit tests/model tests/component tests/architecture \
	    -p no:schemathesis --numprocesses $(WORKERS) --dist loadscope --cov --cov-fail-under=100 $(ARGS)

search: .venv/dev.stamp ## hunt at random with the property tests; ARGS="--minutes 30", ARGS="--seed N" for one round again
	$(BIN)/python -m tests.search $(ARGS)

fuzz: .venv/dev.stamp ## random bytes for every parser, HTTP API and socket; ARGS="--minutes 10", ARGS="--seed N --only record"
	@$(BIN)/python -m tests.fuzz $(ARGS)

test-pythons: .venv/dev.stamp ## the unit tests on each Python that is supported; uv finds or fetches them
	@for version in $(PYTHONS); do \
	    echo "=== Python $$version" && \
	    $(BIN)/uv venv --quiet --allow-existing --python $$version build/python-$$version && \
	    $(BIN)/uv pip install --quiet --python build/python-$$version --require-hashes \
	        -r requirements/run.txt -r requirements/dev.txt && \
	    build/python-$$version/bin/python -m pytest tests/unit -q -p no:schemathesis \
	        --numprocesses $(WORKERS) --dist loadscope $(ARGS) || exit 1; \
	done

soak-model: .venv/dev.stamp ## 500,000 random steps of the extender's books; ARGS="--seed N" for one walk again
	$(BIN)/python -m tests.model.walk --steps 500000 $(ARGS)

fix: .venv/dev.stamp ## format and mend what can be mended
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

check: .venv/dev.stamp ## format, lint, types, imports, dependencies, words
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/deptry .
	$(BIN)/python -m checks.words

protos: .venv/dev.stamp ## generate the code of the kubelet's wire formats
	$(BIN)/python -m grpc_tools.protoc -I . --plugin=protoc-gen-mypy=$(BIN)/protoc-gen-mypy \
	    --plugin=protoc-gen-mypy_grpc=$(BIN)/protoc-gen-mypy_grpc --python_out=. --grpc_python_out=. \
	    --mypy_out=quiet:. --mypy_grpc_out=quiet:. protos/deviceplugin/v1beta1/api.proto protos/podresources/v1/api.proto

e2e: .venv/dev.stamp ## on a real etcd, kube-apiserver, kube-scheduler, kubelet and containerd (built once into a cache)
	$(BIN)/python -m pytest tests/e2e -v -p no:schemathesis --numprocesses 2 --dist loadscope $(ARGS)

SCHEDULING := kinds_of_pods quota preemption gangs webhook record_guard chart api_contract existing_cluster
chaos: .venv/dev.stamp ## faults on purpose on a real control plane and node, and what holds; ARGS="--list", ARGS="--quick", ARGS=api-gone
	$(BIN)/python -m chaos $(ARGS)

soak: .venv/dev.stamp ## an hour of pods that come and go: nothing grows, the books stay right; ARGS="--minutes 5"
	$(BIN)/python -m chaos.soak $(ARGS)

e2e-version: export HAMI_KUBERNETES := $(HAMI_KUBERNETES)
e2e-version: .venv/dev.stamp ## scheduling, policies and chart on another Kubernetes: HAMI_KUBERNETES=v1.30.14 or v1.37.2
	$(BIN)/python -m pytest $(SCHEDULING:%=tests/e2e/test_%.py) -v -p no:schemathesis --numprocesses 2 --dist loadscope $(ARGS)

observability: .venv/dev.stamp ## a story on real processes under a real Prometheus: alerts, series, dashboards
	$(BIN)/python -m pytest tests/observability -v -s $(ARGS)

chart: .venv/dev.stamp ## the chart by real helms: lint, render, compare with files, refuse bad values
	$(BIN)/python -m pytest tests/chart -v $(ARGS)

dist: .venv/dev.stamp ## wheel and sdist into dist/, and what they hold, installed and run
	rm -rf dist
	$(BIN)/python -m hatchling build
	$(BIN)/python -m pytest tests/packaging -v $(ARGS)

release: .venv/dev.stamp ## what is missing for a release; ARGS="v0.1.0 --build" makes the files first; publishes nothing
	@$(BIN)/python -m release $(ARGS)

images: .venv/dev.stamp ## both container images without an engine (root; apt: mmdebstrap buildah busybox-static), and look into them
	$(BIN)/python -m images.build
	$(BIN)/python -m pytest tests/images -v -s $(ARGS)

webui: .venv/dev.stamp ## the pages in a real Chromium: content, liveness, accessibility
	$(BIN)/python -m pytest tests/webui -v $(ARGS)

gpu-check: .venv/run.stamp ## a machine with a real GPU: what its driver answers, against our fake driver's; ARGS="--out FILE"
	$(BIN)/python -m lab.gpu_check $(ARGS)

bench: .venv/dev.stamp ## every figure the documents quote, with its conditions
	$(BIN)/python -m bench $(ARGS)

bench-packing: .venv/dev.stamp ## how much of a public trace's GPUs each policy fills; ARGS="--trace T --seeds 42,43 --policies P,Q --output json"
	@$(BIN)/python -m bench.packing $(ARGS)

docs: .venv/dev.stamp ## write the reference pages that come from code
	$(BIN)/python -m docs.generate

site: .venv/docs.stamp ## the documents as a site in build/site; a link or anchor that leads nowhere fails
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

docs-test: .venv/dev.stamp ## the commands that the documents show, on the demo's cluster with a real kubectl
	$(BIN)/python -m pytest tests/docs -v $(ARGS)

lock: .venv/dev.stamp ## resolve the requirements again, with hashes
	$(BIN)/python requirements/lock.py $(ARGS)

ci: ## what CI runs
	.ci/run

.PHONY: help setup demo test chaos soak search fuzz test-pythons soak-model fix check protos e2e e2e-version observability webui chart images dist release gpu-check bench bench-packing docs site docs-test lock ci
