# Penstock: build with `make`, see `make help`. Everything is built under $(BUILD).
BUILD ?= build
WERROR ?= 0
CUDA ?= auto
PREFIX ?= /usr/local
CFLAGS ?= -O2 -g
AR ?= ar
CLANG ?= clang-14

WARN := -Wall -Wextra -Wshadow -Wconversion -Wstrict-prototypes -Wmissing-prototypes -Wvla
ifeq ($(WERROR),1)
WARN += -Werror
endif
CPPFLAGS += -I. -I$(BUILD) -D_GNU_SOURCE
ALL_CFLAGS = -std=c17 -fPIC -pthread -fno-fast-math $(WARN) $(CFLAGS)
LIBS = -luring -lzstd -ljansson -lyaml -lpcre2-8 -lutf8proc -lxxhash -lm -pthread
Q := $(if $(V),,@)
# Libraries are also looked for in a folder relative to the program, as the bundle for GPUs has them.
rpath = -Wl,-rpath,$(if $(filter /%,$1),$1,'$$ORIGIN/$1')

DIRS := runtime/base runtime/device runtime/kernels runtime/model runtime/data runtime/train offload optim peft session
LIB_SRC := $(sort $(foreach d,$(DIRS),$(wildcard $(d)/*.c)))
LIB_OBJ := $(LIB_SRC:%.c=$(BUILD)/%.o)
TOOL_SRC := $(sort $(wildcard tools/*.c))
TOOL_OBJ := $(TOOL_SRC:%.c=$(BUILD)/%.o)
BENCH_BIN := $(patsubst %.c,$(BUILD)/%,$(sort $(filter-out %/gpu_bench.c,$(wildcard tools/bench/*.c))))
EXAMPLE_BIN := $(patsubst %.c,$(BUILD)/%,$(sort $(wildcard examples/*.c)))
TEST_BIN := $(patsubst %.c,$(BUILD)/%,$(sort $(filter-out tests/cuda/%,$(wildcard tests/*/test_*.c))))
TEST_SH := $(sort $(wildcard tests/*/test_*.sh))
CRASH := $(filter $(BUILD)/tests/offload/test_spill_store%,$(TEST_BIN)) $(foreach t,$(TEST_BIN) $(TEST_SH),$(if $(findstring /test_crash,$t),$t))
FUZZ_BIN := $(patsubst %.c,$(BUILD)/%,$(sort $(wildcard tests/fuzz/fuzz_*.c)))
HELPER_BIN := $(patsubst %.c,$(BUILD)/%,$(sort $(wildcard tests/helpers/*.c)))
# What tests load into the program before the C library; sanitizers have an allocator of their own there.
PRELOAD := $(if $(findstring -fsanitize,$(CFLAGS)),,$(patsubst %.c,$(BUILD)/%.so,$(sort $(wildcard tests/preload/*.c))))

# CUDA: looking for nvcc is the only probe. Without it nothing of CUDA is built, and its tests are not run.
NVCC ?= $(if $(filter 0,$(CUDA)),,$(firstword $(shell command -v nvcc 2>/dev/null) $(wildcard /usr/local/cuda/bin/nvcc)))
ifeq ($(CUDA)$(NVCC),1)
$(error CUDA=1, and nvcc is neither in PATH nor in /usr/local/cuda/bin)
endif
CUDA_HOME = $(patsubst %/bin/nvcc,%,$(NVCC))
CUDA_ARCH ?= 80 86 89 90 120
# PTX runs on its own and newer architectures: 80 serves 10.x, which none of the others does.
CUDA_PTX ?= 80 120
CU_SRC := $(sort $(wildcard runtime/kernels/*.cu optim/*.cu runtime/device/cuda/*.cu))
CUDA_C := $(sort $(wildcard runtime/device/cuda/*.c))
EMU_SRC := $(sort $(wildcard tests/cuda_emu/*.cpp))
ifneq ($(NVCC),)
CUDA_TEST_BIN := $(patsubst %.c,$(BUILD)/%,$(sort $(wildcard tests/cuda/test_*.c)))
endif
# The same kernel sources for the host, against the emulation of CUDA under tests/.
EMU_CU := $(CU_SRC:%.cu=$(BUILD)/emu/%.o)
EMU_LIB := $(EMU_SRC:%.cpp=$(BUILD)/emu/%.o)
EMU_PLUG := $(CUDA_C:%.c=$(BUILD)/emu/%.o)
EMU_PROBE := $(patsubst %.cu,$(BUILD)/emu/%.o,$(sort $(wildcard tests/cuda/*.cu)))
# Sanitizers reach the kernels; ThreadSanitizer not the emulation itself, which tells it what it does.
EMU_SAN = $(filter -fsanitize% -fno-sanitize%,$(CFLAGS))
EMU_FLAGS = -DPS_CUDA_EMU -I. -isystem $(CUDA_HOME)/include -O2 -g -fPIC -fno-strict-aliasing -ffp-contract=off -pthread

GENCODE = $(foreach a,$(CUDA_ARCH),-gencode arch=compute_$(a),code=sm_$(a)) $(foreach a,$(CUDA_PTX),-gencode arch=compute_$(a),code=compute_$(a))
CUDA_OBJ := $(CU_SRC:%.cu=$(BUILD)/cuda/%.o) $(CUDA_C:%.c=$(BUILD)/cuda/%.o)
CUDA_LINK = -L$(CUDA_HOME)/lib64 -lcublasLt -lcudart_static -static-libgcc -Wl,-Bstatic -lstdc++ -Wl,-Bdynamic -ldl -lrt -lpthread -lm
GPU_TEST_BIN = $(patsubst %.c,$(BUILD)/gpu/%,$(sort $(shell grep -L emu_child.h $(wildcard tests/cuda/test_*.c))))
GPU_TOOLS = $(patsubst %,$(BUILD)/tests/helpers/%,st_compare jsonl_compare json_get) $(filter $(BUILD)/tools/bench/gpu_%,$(BENCH_BIN))
# Sanitized builds go without the plug-in: their runtime is not in it.
ifneq ($(NVCC),)
CUDA_PLUGIN := $(if $(findstring -fsanitize,$(CFLAGS)),,$(BUILD)/libpenstock_cuda.so)
endif

all: $(BUILD)/penstock $(BUILD)/libpenstock.so $(EXAMPLE_BIN) $(CUDA_PLUGIN)

help:
	@echo "targets: all test crash soak demo bench bench-full bench-stream bench-methods gpu-bundle gpu-check-dry asan tsan fuzz format tidy install clean (check is test)"
	@echo "variables: BUILD=$(BUILD) CFLAGS='$(CFLAGS)' WERROR=0|1 V=1 PREFIX=$(PREFIX) CUDA=auto|0|1 CUDA_ARCH='$(CUDA_ARCH)' CUDA_PTX='$(CUDA_PTX)'"

$(BUILD)/%_avx2.o: ISA_FLAGS = -mavx2 -mfma -mf16c
$(BUILD)/%_avx512.o: ISA_FLAGS = -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx2 -mfma -mf16c
$(BUILD)/%_avx512_bf16.o: ISA_FLAGS = -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512bf16 -mavx2 -mfma -mf16c
# One IEEE operation sequence for updates, whatever the compiler would like to contract.
$(BUILD)/optim/%.o: ISA_FLAGS += -O3 -ffp-contract=off -fno-trapping-math -fno-math-errno
$(BUILD)/runtime/device/cuda_load.o: CPPFLAGS += -DPS_LIBDIR='"$(PREFIX)/lib"'
$(BUILD)/session/catalog.o: CPPFLAGS += -DPS_COMMIT='"$(shell git rev-parse --short=12 HEAD 2>/dev/null || echo unknown)"'
# Kernels vectorise only at -O3.
$(BUILD)/runtime/kernels/%.o: ISA_FLAGS += -O3 -ffp-contract=off -fno-trapping-math $(KERNEL_FLAGS)

$(BUILD)/%.o: %.c
	@mkdir -p $(@D)
	@$(if $(V),,echo "CC $<")
	$(Q)$(CC) $(CPPFLAGS) $(ALL_CFLAGS) $(ISA_FLAGS) -MMD -MP -c $< -o $@

$(BUILD)/libpenstock.a: $(LIB_OBJ)
	$(Q)rm -f $@ && $(AR) rcs $@ $^
$(BUILD)/libpenstock.so: $(LIB_OBJ)
	$(Q)$(CC) -shared $(ALL_CFLAGS) $^ -o $@ $(LDFLAGS) $(LIBS)
$(BUILD)/penstock: $(TOOL_OBJ) $(BUILD)/libpenstock.a
	$(Q)$(CC) $(ALL_CFLAGS) $^ -o $@ $(LDFLAGS) $(call rpath,../lib) $(LIBS)
$(BUILD)/emu/%.o: %.cu
	@mkdir -p $(@D)
	@$(if $(V),,echo "EMU $<")
	$(Q)$(CXX) -x c++ -std=c++17 $(EMU_FLAGS) $(EMU_SAN) -Wno-unknown-pragmas -MMD -MP -c $< -o $@
$(BUILD)/emu/%.o: %.cpp
	@mkdir -p $(@D)
	@$(if $(V),,echo "CXX $<")
	$(Q)$(CXX) -std=c++17 $(EMU_FLAGS) $(filter-out %=thread,$(EMU_SAN)) -MMD -MP -c $< -o $@
$(BUILD)/emu/%.o: %.c
	@mkdir -p $(@D)
	@$(if $(V),,echo "CC $<")
	$(Q)$(CC) -std=c17 -D_GNU_SOURCE $(EMU_FLAGS) $(EMU_SAN) -MMD -MP -c $< -o $@
$(BUILD)/libpenstock_cuda_emu.so: $(EMU_PLUG) $(EMU_CU) $(EMU_LIB) $(BUILD)/libpenstock.a
	$(Q)$(CXX) -shared -pthread $(EMU_SAN) $^ -o $@ $(LIBS)
# The device plug-in: static cudart, C++ runtime inside, cuBLASLt beside it; it needs no driver to load.
$(BUILD)/cuda/%.o: CU_FLAGS = --fmad=false
$(BUILD)/cuda/runtime/kernels/attention_%.o: CU_FLAGS = -ftz=true
# x.ptxas keeps what the assembler says of registers and spills, for the tests.
$(BUILD)/cuda/%.o: %.cu $(BUILD)/cuda/archs
	@mkdir -p $(@D)
	@$(if $(V),,echo "NVCC $<")
	$(Q)$(NVCC) -t 4 -std=c++17 -O3 -I. $(GENCODE) $(CU_FLAGS) $(if $(filter 1,$(WERROR)),-Werror all-warnings) -Xptxas -v -Xcompiler -fPIC,-fvisibility=hidden -MMD -MP -c $< -o $@ >$(@:.o=.ptxas) 2>&1 || { cat $(@:.o=.ptxas); rm -f $@; exit 1; }
	@grep -i warning $(@:.o=.ptxas) || true
# What the objects are built for; newer only when that changes.
$(BUILD)/cuda/archs: FORCE
	@mkdir -p $(@D)
	@echo "$(CUDA_ARCH:%=elf-%) $(CUDA_PTX:%=ptx-%)" | cmp -s - $@ || echo "$(CUDA_ARCH:%=elf-%) $(CUDA_PTX:%=ptx-%)" >$@
$(BUILD)/cuda/%.o: %.c
	@mkdir -p $(@D)
	@$(if $(V),,echo "CC $<")
	$(Q)$(CC) $(CPPFLAGS) -isystem $(CUDA_HOME)/include $(ALL_CFLAGS) -fvisibility=hidden -MMD -MP -c $< -o $@
$(BUILD)/libpenstock_cuda.so: $(CUDA_OBJ) $(BUILD)/libpenstock.a
	$(Q)$(CC) -shared -pthread $^ -o $@ -Wl,--exclude-libs=ALL -Wl,-z,defs $(CUDA_LINK) -Wl,-rpath,'$$ORIGIN:$(CUDA_HOME)/lib64'
cuda: $(BUILD)/libpenstock_cuda.so
# For a GPU: the tests of kernels and of the plug-in, less those of the emulation, linked to nvcc's objects.
$(BUILD)/gpu/libkernels.a: $(CUDA_OBJ) $(EMU_PROBE:$(BUILD)/emu/%=$(BUILD)/cuda/%)
	@mkdir -p $(@D)
	$(Q)rm -f $@ && $(AR) rcs $@ $^
$(BUILD)/gpu/%: $(BUILD)/%.o $(BUILD)/gpu/libkernels.a $(BUILD)/libpenstock.a
	@mkdir -p $(@D)
	$(Q)$(CC) $(ALL_CFLAGS) $^ -o $@ $(LDFLAGS) $(call rpath,../../../../lib) $(call rpath,../../..) $(call rpath,$(CUDA_HOME)/lib64) $(CUDA_LINK) -Wl,--as-needed -lcmocka $(LIBS)
gpu-bundle: all $(GPU_TEST_BIN) $(GPU_TOOLS)
	$(Q)BUILD=$(BUILD) tools/gpu_bundle.sh $(GPU_TEST_BIN) $(GPU_TOOLS)
gpu-check-dry: gpu-bundle tests
	$(Q)BUILD=$(BUILD) tests/run.sh tests/tools/test_gpu_check.sh
$(BUILD)/tests/cuda/%.o: CPPFLAGS += -isystem $(CUDA_HOME)/include
$(BUILD)/tests/cuda/test_plugin%: $(BUILD)/tests/cuda/test_plugin%.o $(BUILD)/libpenstock.a
	$(Q)$(CC) $(ALL_CFLAGS) $^ -o $@ $(LDFLAGS) -lcmocka $(LIBS)
$(BUILD)/tests/cuda/test_%: $(BUILD)/tests/cuda/test_%.o $(EMU_PROBE) $(EMU_PLUG) $(EMU_CU) $(EMU_LIB) $(BUILD)/libpenstock.a
	$(Q)$(CXX) -pthread $(EMU_SAN) $^ -o $@ $(LDFLAGS) -lcmocka $(LIBS)
$(BUILD)/tests/preload/%.so: $(BUILD)/tests/preload/%.o
	$(Q)$(CC) -shared $(ALL_CFLAGS) $^ -o $@ $(LDFLAGS)
$(BUILD)/tests/%: $(BUILD)/tests/%.o $(BUILD)/libpenstock.a
	$(Q)$(CC) $(ALL_CFLAGS) $^ -o $@ $(LDFLAGS) $(call rpath,../../../lib) -lcmocka $(LIBS)
$(BUILD)/tools/bench/gpu_%: $(BUILD)/tools/bench/gpu_%.o $(BUILD)/tools/bench/gpu_bench.o $(BUILD)/libpenstock.a
	$(Q)$(CC) $(ALL_CFLAGS) $^ -o $@ $(LDFLAGS) $(call rpath,../../../lib) $(LIBS)
$(BUILD)/tools/bench/%: $(BUILD)/tools/bench/%.o $(BUILD)/libpenstock.a
	$(Q)$(CC) $(ALL_CFLAGS) $^ -o $@ $(LDFLAGS) $(LIBS)
$(BUILD)/examples/%: $(BUILD)/examples/%.o $(BUILD)/libpenstock.a
	$(Q)$(CC) $(ALL_CFLAGS) $^ -o $@ $(LDFLAGS) $(LIBS)

setup:
	@tools/setup.sh
tests: $(TEST_BIN) $(HELPER_BIN) $(PRELOAD) $(CUDA_TEST_BIN) $(if $(CUDA_TEST_BIN),$(EMU_PROBE) $(BUILD)/libpenstock_cuda_emu.so)
test check: setup
	$(Q)$(MAKE) --no-print-directory $(if $(findstring -j,$(MAKEFLAGS)),,-j$$(nproc)) all tests $(if $(CUDA_PLUGIN),gpu-bundle)
	$(Q)BUILD=$(BUILD) tests/run.sh $(TEST_BIN) $(CUDA_TEST_BIN) $(TEST_SH)
# The crash tests whole: more seeds, kills and flips than `make test` has time for. Parts of it need root.
crash: setup
	$(Q)$(MAKE) --no-print-directory all $(filter $(BUILD)/%,$(CRASH)) $(HELPER_BIN) $(PRELOAD)
	$(Q)PENSTOCK_CRASH=1 TEST_LIMIT=7200 BUILD=$(BUILD) tests/run.sh $(CRASH)
# 2,000 steps with a commit each: memory, descriptors and the store must not grow.
soak: $(BUILD)/penstock $(HELPER_BIN)
	$(Q)TEST_LIMIT=3600 BUILD=$(BUILD) tests/run.sh tests/cli/soak.sh
demo: setup
	$(Q)$(MAKE) --no-print-directory $(BUILD)/penstock $(EXAMPLE_BIN)
	$(Q)BUILD=$(BUILD) examples/demo/run.sh
bench: $(BUILD)/penstock $(BENCH_BIN)
	$(Q)BUILD=$(BUILD) tools/bench/run.sh
bench-full: $(BUILD)/penstock $(BENCH_BIN)
	$(Q)BUILD=$(BUILD) tools/bench/full.sh
bench-stream: $(BUILD)/penstock tests
	$(Q)BUILD=$(BUILD) tools/bench/stream.sh
	$(Q)BUILD=$(BUILD) tools/bench/memory_wall.sh
bench-methods: $(BUILD)/penstock $(EXAMPLE_BIN)
	$(Q)BUILD=$(BUILD) tools/bench/methods.sh
asan:
	$(Q)$(MAKE) --no-print-directory BUILD=$(BUILD)/asan CFLAGS="-O1 -g -fsanitize=address,undefined -fno-sanitize-recover=undefined" all tests
	$(Q)BUILD=$(BUILD)/asan tests/run.sh $(patsubst $(BUILD)/%,$(BUILD)/asan/%,$(TEST_BIN))
tsan:
	$(Q)$(MAKE) --no-print-directory BUILD=$(BUILD)/tsan CFLAGS="-O1 -g -fsanitize=thread" all tests
	$(Q)BUILD=$(BUILD)/tsan tests/run.sh $(patsubst $(BUILD)/%,$(BUILD)/tsan/%,$(TEST_BIN))
# The kernels on the emulation under a sanitizer: races between a kernel's threads, accesses past arrays.
CUDA_EMU_BIN = $(filter-out %/test_plugin %/test_plugin_kernels,$(CUDA_TEST_BIN))
cuda-asan:
	$(Q)$(MAKE) --no-print-directory BUILD=$(BUILD)/asan CFLAGS="-O1 -g -fsanitize=address,undefined -fno-sanitize-recover=undefined" cuda-emu
cuda-tsan:
	$(Q)$(MAKE) --no-print-directory BUILD=$(BUILD)/tsan CFLAGS="-O1 -g -fsanitize=thread" cuda-emu
cuda-emu: $(EMU_PROBE) $(CUDA_EMU_BIN)
	$(Q)BUILD=$(BUILD) TEST_LIMIT=900 tests/run.sh $(CUDA_EMU_BIN)
fuzz:
	$(Q)$(MAKE) --no-print-directory BUILD=$(BUILD)/fuzz CC=$(CLANG) CFLAGS="-O1 -g -fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-recover=undefined" LDFLAGS="-fsanitize=fuzzer,address,undefined" KERNEL_FLAGS=-fno-sanitize=all fuzz-bins
	$(Q)BUILD=$(BUILD)/fuzz tests/fuzz/run.sh
fuzz-bins: $(FUZZ_BIN)
format:
	$(Q)git ls-files '*.c' '*.h' | xargs clang-format -i
tidy:
	$(Q)tools/tidy
install: all
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/lib
	install -d $(DESTDIR)$(PREFIX)/include/penstock/session $(DESTDIR)$(PREFIX)/include/penstock/runtime/base
	install $(BUILD)/penstock $(DESTDIR)$(PREFIX)/bin/
	install -m644 $(BUILD)/libpenstock.a $(BUILD)/libpenstock.so $(DESTDIR)$(PREFIX)/lib/
	[ ! -e $(BUILD)/libpenstock_cuda.so ] || install -D -m644 $(BUILD)/libpenstock_cuda.so $(DESTDIR)$(PREFIX)/lib/penstock/libpenstock_cuda.so
	install -m644 session/penstock.h session/options.h $(DESTDIR)$(PREFIX)/include/penstock/session/
	install -m644 runtime/base/status.h runtime/base/log.h $(DESTDIR)$(PREFIX)/include/penstock/runtime/base/
clean:
	rm -rf $(BUILD)

FORCE:
.PHONY: FORCE cuda cuda-asan cuda-tsan cuda-emu gpu-bundle gpu-check-dry all help setup tests test check crash soak demo bench bench-full bench-stream bench-methods asan tsan fuzz fuzz-bins format tidy install clean
.SECONDARY:
-include $(EMU_CU:.o=.d) $(EMU_PROBE:.o=.d) $(EMU_PLUG:.o=.d) $(EMU_LIB:.o=.d) $(CUDA_OBJ:.o=.d) $(patsubst %,%.d,$(CUDA_TEST_BIN))
-include $(LIB_OBJ:.o=.d) $(TOOL_OBJ:.o=.d) $(BUILD)/tools/bench/gpu_bench.d $(patsubst %,%.d,$(TEST_BIN) $(EXAMPLE_BIN) $(BENCH_BIN))
