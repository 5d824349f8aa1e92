# make serve | check | test | test-v2 | test-deploy | laws | lint | demo | bench; each sets up .venv first, once.
PORT ?= 8000
PYTHON ?= $(firstword $(foreach p,python3.11 python3.12 python3,$(if $(shell $(p) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null && echo ok),$(p))))
BUILD ?= $(if $(shell nvidia-smi -L 2>/dev/null),gpu,cpu)

BIN := .venv/bin
STAMP := .venv/.installed-$(BUILD)
# uv does not read pip's find-links; without them, torch's own index has the CPU build.
ifneq ($(PIP_FIND_LINKS),)
export UV_FIND_LINKS := $(PIP_FIND_LINKS)
else
TORCH := $(if $(filter cpu,$(BUILD)),--torch-backend cpu)
endif

.PHONY: serve check test test-v2 test-deploy laws lint format demo bench clean

serve: $(STAMP)
	$(BIN)/cdserve serve $(if $(DEMO),--demo $(DEMO)) --port $(PORT) $(ARGS)

check: $(STAMP)
	$(BIN)/python -m tests.parts check $(ARGS)

test: $(STAMP)
	$(BIN)/python -m tests.parts test $(ARGS)

test-v2: $(STAMP)
	$(BIN)/python -m tests.v2.suite $(ARGS)

test-deploy: $(STAMP)
	$(BIN)/python -m pytest -m deploy $(ARGS)

laws: $(STAMP)
	LAW_DRAWS=100000 $(BIN)/python -m pytest tests/server/test_laws.py tests/decoders/test_distribution.py $(ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

demo: $(STAMP)
	$(BIN)/python -m cdserve.demo.tiny.build

bench: $(STAMP)
	$(BIN)/python benchmarks/overhead.py $(ARGS)

$(STAMP): pyproject.toml
	@test -n "$(PYTHON)" || { echo "cdserve needs Python 3.11 or 3.12 on the PATH"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "uv>=0.9"
	$(BIN)/uv pip install --compile-bytecode --python $(BIN)/python $(TORCH) --editable ".[$(BUILD),dev]"
	touch $@

clean:
	rm -rf .venv
