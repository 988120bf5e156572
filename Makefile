# The two commands: `make demo` and `make test`. Both make .venv first and need only python3 (3.10+, venv), g++ and make.
#
#   make demo DATA=fashion-mnist     options of examples/train_cnn.py: DATA, EPOCHS
#   make test TORCH=torch            another torch than the default, e.g. the newest
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV := .venv
PY := $(VENV)/bin/python
BUILD_TOOLS := cmake ninja pybind11 setuptools wheel
TEST_TOOLS := numpy pytest pytest-benchmark pytest-xdist
DEMO_TOOLS := matplotlib scikit-learn tqdm
CHECK_TOOLS := clang-format==23.1.5 ruff==0.17.6
CPP_FILES = $(shell git ls-files 'csrc/*.h' 'csrc/*.cpp' 'tests/cpp/*.h' 'tests/cpp/*.cpp' \
            'csrc/*.cu' 'csrc/*.cuh' 'tests/cpp/*.cu' 'examples/simt/*.cu')
# The CUDA build of torch, and the GPUs of `make test-cuda-build`. Tools that read what nvcc makes: PyPI has them too.
TORCH_CUDA ?= torch==2.14.1
CUDA_BUILD_DIR ?= $(CURDIR)/build/cuda
CUDA_GPUS ?= 8.0
CUDA_TOOLS := nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm
VENV_CUDA := $(CURDIR)/.venv-cuda
SIMT_ORDERS ?= random:1
OP_TESTS := $(patsubst %,tests/test_%.py,conv2d pool2d batch_norm products half matmul layer_norm activation loss \
              cross_entropy softmax dropout)
DATA ?= digits
EPOCHS ?=

export DLKERNELS_BUILD_DIR := $(CURDIR)/build/make
export DLKERNELS_CPP_TESTS := ON
export DLKERNELS_SIMT := ON

.PHONY: all build demo accuracy bench bench-quick bench-report test test-cpp test-python test-isas test-simt test-sanitize test-simt-sanitize test-simt-race test-install \
        test-cuda-build check check-cuda cuda-budget format clean

all: build

$(VENV)/tools: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --upgrade pip
	$(PY) -m pip install --quiet "$(TORCH)" $(BUILD_TOOLS) $(TEST_TOOLS) $(DEMO_TOOLS)
	touch $@

$(VENV)/check-tools:
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet $(CHECK_TOOLS)
	touch $@

$(VENV)/cpp-tools:
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet cmake ninja
	touch $@

# Ninja rebuilds only what changed, so this runs every time.
build: $(VENV)/tools
	$(PY) -m pip install --quiet --no-build-isolation --no-deps --editable .

demo: export DLKERNELS_CPP_TESTS := OFF
demo: export DLKERNELS_SIMT := OFF
demo: build
	$(PY) examples/train_cnn.py --data $(DATA) $(if $(EPOCHS),--epochs $(EPOCHS))

# PyTorch and dlkernels in turns: a subset in less than two minutes; all cases, on one thread and on two, in less than 20.
# BENCH: further options of pytest, such as -k softmax. Results and report: build/benchmarks/{quick,full}.
bench-quick bench: bench%: build
	mkdir -p build/benchmarks
	$(PY) -m pytest benchmarks -q -p no:cacheprovider --benchmark-quiet --benchmark-json=build/benchmarks/run.json \
	  $(if $*,-m quick --threads 2 --budget 0.15) $(BENCH)
	$(PY) benchmarks/report.py make build/benchmarks/run.json build/benchmarks/$(if $*,quick,full)

# The results of `make bench` as docs/benchmarks, and the README's section made from them.
bench-report: build
	$(PY) benchmarks/report.py publish build/benchmarks/full

# Errors of PyTorch and dlkernels against float64: docs/benchmarks/accuracy.md.
accuracy: build
	$(PY) benchmarks/accuracy.py

# Two tests run at a time, so a thread that waits for another may not spin: it would take its core.
test: test-cpp test-python test-isas test-simt
test-cpp test-python test-isas test-simt test-sanitize: export OMP_WAIT_POLICY := passive

test-cpp: build
	$(VENV)/bin/ctest --test-dir $(DLKERNELS_BUILD_DIR) --parallel 2 --output-on-failure

# The C++ tests under the address and undefined-behaviour sanitizers (assertions on): needs no torch.
test-sanitize: $(VENV)/cpp-tools
	$(VENV)/bin/cmake -S . -B build/sanitize -G Ninja -DDLK_SANITIZE=ON -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(VENV)/bin/ninja
	$(VENV)/bin/cmake --build build/sanitize
	$(VENV)/bin/ctest --test-dir build/sanitize --parallel 2 --output-on-failure

# The tests of the ops again, on the CUDA kernels, run on the CPU by csrc/simt. After changes of csrc/cuda in more orders of
# threads and blocks: make test-simt SIMT_ORDERS="forward reverse random:1". gradcheck, which calls small kernels thousands
# of times and tests formulas rather than orders, runs in the order `forward` only, which is not the default.
test-simt: build
	for order in $(SIMT_ORDERS); do \
	  test $$order = forward && select= || select="not gradcheck"; echo "order $$order"; \
	  DLKERNELS_SIMT_ORDER=$$order OMP_NUM_THREADS=1 $(PY) -m pytest -q -n 2 --backend=simt -k "$$select" $(OP_TESTS) || exit; \
	done

# The CUDA kernels under the host executor, in its builds that find wrong addresses and data races: see docs/simt.md.
test-simt-sanitize test-simt-race: test-simt-%: $(VENV)/cpp-tools
	$(VENV)/bin/cmake -S . -B build/simt-$* -G Ninja -DDLK_SIMT=ON -DDLK_SIMT_MODE=$* -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(VENV)/bin/ninja
	$(VENV)/bin/cmake --build build/simt-$* --target simt_tests
	$(VENV)/bin/ctest --test-dir build/simt-$* -L simt --parallel 2 --output-on-failure

# Every way of installing, in a fresh venv, against TORCH.
test-install:
	tests/install.sh "$(TORCH)"

test-python: build
	$(PY) -m pytest -q -n 2

# The tests of the ops again, on the instruction sets below the best that this processor has.
test-isas: build
	for isa in $$($(PY) -c 'import dlkernels; print(*dlkernels._C.available_isas()[:-1])'); do \
	  echo "instruction set $$isa"; DLKERNELS_ISA=$$isa $(PY) -m pytest -q -n 2 $(OP_TESTS) || exit; \
	done

# Compiles the CUDA kernels for sm_80 and sm_90 and checks what came out: needs nvcc and no GPU.
$(VENV)/cuda-tools:
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet $(CUDA_TOOLS)
	touch $@

check-cuda: $(VENV)/cuda-tools
	$(PY) tests/cuda/check_binaries.py

# Writes the budget that check-cuda holds the kernels to.
cuda-budget: $(VENV)/cuda-tools
	$(PY) tests/cuda/check_binaries.py --update

# The extension with CUDA kernels against a CUDA build of torch: links, imports, registers its ops. Needs nvcc and no GPU.
# No kernel runs there, so none is optimised; what nvcc makes of them with -O3 is the business of check-cuda.
$(VENV_CUDA)/tools:
	$(PYTHON) -m venv $(VENV_CUDA)
	$(VENV_CUDA)/bin/python -m pip install --quiet "$(TORCH_CUDA)" $(BUILD_TOOLS) $(TEST_TOOLS)
	touch $@

test-cuda-build: $(VENV_CUDA)/tools
	DLKERNELS_CUDA=1 TORCH_CUDA_ARCH_LIST="$(CUDA_GPUS)" DLKERNELS_CPP_TESTS=OFF DLKERNELS_SIMT=OFF \
	  DLKERNELS_BUILD_DIR=$(CUDA_BUILD_DIR) NVCC_APPEND_FLAGS="-Xcicc -O0 -Xptxas -O0" \
	  $(VENV_CUDA)/bin/python -m pip install --quiet --no-build-isolation --no-deps .
	cd tests && $(VENV_CUDA)/bin/python -P -m pytest -q -p no:cacheprovider cuda/check_build.py

check: $(VENV)/check-tools
	$(VENV)/bin/clang-format --dry-run --Werror $(CPP_FILES)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	@! grep -nE '#include *<(torch|ATen|c10)/' -r csrc/cpu csrc/cuda csrc/simt csrc/core csrc/memory || { echo "torch stops at csrc/bindings"; exit 1; }

format: $(VENV)/check-tools
	$(VENV)/bin/clang-format -i $(CPP_FILES)
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

clean:
	rm -rf build $(VENV) $(VENV_CUDA) dlkernels/*.so dlkernels/_build_info.py *.egg-info
