/* Shared by the tests of the plug-in: both tables of kernels on the same numbers. They know the
 * plug-in alone, through the loader. Include after cmocka.h. */
#ifndef PS_TESTS_PLUGIN_CHECK_H
#define PS_TESTS_PLUGIN_CHECK_H

#include <dlfcn.h>
#include <limits.h>

#include "runtime/device/cuda_plugin.h"
#include "tests/cuda_emu/emu_host.h"
#include "tests/kernels/kernel_check.h"

#define ARENA_BYTES ((size_t)64 << 20)
#define GPU_ALIGN ((size_t)256)
#define BUFFERS_MAX 32

/* The emulation that is inside the plug-in; NULL functions on a real device. */
struct emulation {
    void (*fail_call)(uint64_t n);
    int (*fail_pending)(void);
    void (*get_counts)(struct ps_emu_counts *out);
};

enum side { CPU, GPU };

struct world {
    const struct ps_cuda_plugin *plugin;
    struct emulation emu;
    struct ps_device *device;
    struct ps_compute cx[2];
    int fault;
    size_t used;             /* of the arena */
    void *host[BUFFERS_MAX]; /* CPU sides, to be freed */
    size_t host_count;
};

/* The same tensor on both sides. */
struct two {
    void *at[2];
    enum ps_dtype type;
    size_t count;
};

static inline void *device_take(struct world *w, size_t bytes)
{
    unsigned char *base = w->device->ops->base(w->device);
    void *p = base + w->used;
    w->used += (bytes + GPU_ALIGN - 1) / GPU_ALIGN * GPU_ALIGN;
    assert_true(w->used <= ARENA_BYTES);
    return p;
}

static inline void upload(struct world *w, void *device, const void *host, size_t bytes)
{
    struct ps_error err = {0};
    if (w->device->ops->copy_h2d(w->device, device, host, bytes, &err))
        fail_msg("%s", err.message);
}

static inline void download(struct world *w, void *host, const void *device, size_t bytes)
{
    struct ps_error err = {0};
    if (w->device->ops->copy_d2h(w->device, host, device, bytes, &err))
        fail_msg("%s", err.message);
}

/* Bytes of src on both sides; NULL: zeros. */
static inline struct two two_bytes(struct world *w, const void *src, size_t bytes)
{
    struct two t = {.type = PS_DTYPE_F32, .count = bytes / 4};
    t.at[CPU] = aligned_alloc(64, (bytes + 64) / 64 * 64);
    assert_non_null(t.at[CPU]);
    assert_true(w->host_count < BUFFERS_MAX);
    w->host[w->host_count++] = t.at[CPU];
    memset(t.at[CPU], 0, bytes);
    if (src)
        memcpy(t.at[CPU], src, bytes);
    t.at[GPU] = device_take(w, bytes);
    upload(w, t.at[GPU], t.at[CPU], bytes);
    return t;
}

/* Roughly normal numbers; seed 0: zeros. */
static inline struct two two_make(struct world *w, enum ps_dtype type, size_t count, double scale,
                                  uint64_t seed)
{
    struct two t = two_bytes(w, NULL, count * ps_dtype_size(type));
    t.type = type;
    t.count = count;
    if (seed) {
        fill(t.at[CPU], type, count, scale, seed);
        upload(w, t.at[GPU], t.at[CPU], count * ps_dtype_size(type));
    }
    return t;
}

/* Wait for the device; it must not have failed. */
static inline void done(struct world *w)
{
    struct ps_compute *cx = &w->cx[GPU];
    if (cx->k->finish(cx))
        fail_msg("fault %d: %s", w->fault, w->plugin->fault_text(cx));
}

static inline void two_check(struct world *w, const struct two *t, const char *what, double atol,
                             double rtol)
{
    done(w);
    size_t bytes = t->count * ps_dtype_size(t->type);
    unsigned char *got = malloc(bytes);
    assert_non_null(got);
    download(w, got, t->at[GPU], bytes);
    for (size_t i = 0; i < t->count; i++)
        close_to(what, i, get(got, t->type, i), get(t->at[CPU], t->type, i), atol, rtol);
    free(got);
}

static inline void two_check_bytes(struct world *w, const struct two *t, const char *what,
                                   size_t bytes)
{
    done(w);
    unsigned char *got = malloc(bytes);
    assert_non_null(got);
    download(w, got, t->at[GPU], bytes);
    for (size_t i = 0; i < bytes; i++)
        if (got[i] != ((const unsigned char *)t->at[CPU])[i])
            fail_msg("%s: byte %zu of %zu differs", what, i, bytes);
    free(got);
}

static inline void two_check_f64(struct world *w, const struct two *t, const char *what,
                                 size_t count, double rtol)
{
    done(w);
    double *got = malloc(count * sizeof *got);
    assert_non_null(got);
    download(w, got, t->at[GPU], count * sizeof *got);
    for (size_t i = 0; i < count; i++)
        close_to(what, i, got[i], ((const double *)t->at[CPU])[i], 1e-12, rtol);
    free(got);
}

/* Group set-up: the plug-in that PENSTOCK_CUDA_PLUGIN names, or the emulated one of the build. */
static inline const struct ps_cuda_plugin *load_plugin(void)
{
    char path[PATH_MAX], why[256] = "";
    const char *build = getenv("PENSTOCK_BUILD");
    if (!getenv("PENSTOCK_CUDA_PLUGIN") && build) {
        snprintf(path, sizeof path, "%s/libpenstock_cuda_emu.so", build);
        setenv("PENSTOCK_CUDA_PLUGIN", path, 1);
    }
    const struct ps_cuda_plugin *p = ps_cuda_plugin_load(why);
    if (!p)
        print_message("no plug-in: %s\n", why);
    return p;
}

static inline struct emulation find_emulation(const struct ps_cuda_plugin *p)
{
    struct emulation e = {NULL, NULL, NULL};
    const char *path = getenv("PENSTOCK_CUDA_PLUGIN");
    void *lib = p->emulated && path ? dlopen(path, RTLD_NOW | RTLD_NOLOAD) : NULL;
    if (lib) {
        *(void **)&e.fail_call = dlsym(lib, "ps_emu_fail_call");
        *(void **)&e.fail_pending = dlsym(lib, "ps_emu_fail_pending");
        *(void **)&e.get_counts = dlsym(lib, "ps_emu_get_counts");
    }
    return e;
}

static inline int world_setup(void **state)
{
    struct world *w = calloc(1, sizeof *w);
    struct ps_error err = {0};
    struct ps_cuda_info info;
    if (!w || !(w->plugin = load_plugin()) || w->plugin->probe(&info, &err) ||
        w->plugin->device->open(&w->device, ARENA_BYTES, &err)) {
        print_message("%s\n", err.message);
        return -1;
    }
    w->emu = find_emulation(w->plugin);
    w->cx[CPU] = (struct ps_compute){.k = &ps_kernels_cpu, .isa = PS_ISA_PORTABLE};
    w->cx[GPU] = (struct ps_compute){.k = w->plugin->kernels, .fault = &w->fault};
    if (ps_pool_create(&w->cx[CPU].pool, 1) || w->plugin->compute_open(&w->cx[GPU], &err))
        return -1;
    w->cx[CPU].gemm_workspace = aligned_alloc(64, (ps_gemm_workspace_bytes(1) + 63) / 64 * 64);
    *state = w;
    return 0;
}

static inline int world_teardown(void **state)
{
    struct world *w = *state;
    if (!w)
        return 0;
    w->plugin->compute_close(&w->cx[GPU]);
    w->device->ops->close(w->device);
    ps_pool_destroy(w->cx[CPU].pool);
    free(w->cx[CPU].gemm_workspace);
    free(w);
    return 0;
}

/* Before each test: nothing taken but the workspace of products, no fault. */
static inline int world_fresh(void **state)
{
    struct world *w = *state;
    size_t bytes = w->cx[GPU].k->gemm_workspace_bytes(&w->cx[GPU], 1 << 16);
    w->used = 0;
    w->cx[GPU].gemm_workspace = device_take(w, bytes);
    w->cx[GPU].gemm_workspace_bytes = bytes;
    w->fault = 0;
    return 0;
}

static inline int world_clear(void **state)
{
    struct world *w = *state;
    for (size_t i = 0; i < w->host_count; i++)
        free(w->host[i]);
    w->host_count = 0;
    return 0;
}

/* The type of activations, and the math that goes with it, on both sides. */
static inline void compute_in(struct world *w, enum ps_dtype type)
{
    for (int i = 0; i < 2; i++) {
        w->cx[i].dtype = type;
        w->cx[i].math = type == PS_DTYPE_BF16 ? PS_GEMM_BF16 : PS_GEMM_F32;
    }
}

static const enum ps_dtype both_types[] = {PS_DTYPE_F32, PS_DTYPE_BF16};

/* Relative tolerance of a result that is rounded once to the type. */
static inline double rounding(enum ps_dtype type)
{
    return type == PS_DTYPE_BF16 ? 0x1p-7 : 1e-5;
}

#endif
