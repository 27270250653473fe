/* What the GPU benchmarks share: see gpu_bench.h. */
#include "tools/bench/gpu_bench.h"

#include <dlfcn.h>
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define PATTERN ((size_t)1 << 20)
#define BATCH_S 0.02
#define BATCHES_MIN 3
#define BATCHES_MAX 200
#define BUDGET_MAX 0.5
#define EXIT_SKIP 77 /* what test programs mean by it: nothing to run on */

double gpu_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

_Noreturn void gpu_fail(const char *what, const char *why)
{
    fprintf(stderr, "%s: %s\n", what, why);
    exit(1);
}

void gpu_parse(struct gpu_bench *g, int argc, char **argv,
               bool (*more)(void *arg, const char *flag, const char *value), void *arg)
{
    g->deadline = gpu_now() + 60;
    for (int i = 1; i < argc; i++) {
        const char *value = i + 1 < argc ? argv[i + 1] : NULL;
        if (!strcmp(argv[i], "--tiny")) {
            g->tiny = true;
            continue;
        }
        bool known = value != NULL;
        if (known && !strcmp(argv[i], "--seconds"))
            g->deadline = gpu_now() + atof(value);
        else if (known && !strcmp(argv[i], "--out"))
            known = (g->out = fopen(value, "a")) != NULL;
        else
            known = known && more && more(arg, argv[i], value);
        if (!known) {
            fprintf(stderr, "%s: cannot use %s%s%s\n", argv[0], argv[i], value ? " " : "",
                    value ? value : "");
            exit(2);
        }
        i++;
    }
}

/* Device-to-device copies are not in the table of kernels: the run has none. */
static void open_driver(struct gpu_bench *g)
{
    if (g->plugin->emulated)
        return;
    g->driver = dlopen("libcuda.so.1", RTLD_NOW);
    if (g->driver)
        *(void **)&g->copy = dlsym(g->driver, "cuMemcpyDtoDAsync_v2");
}

void gpu_open(struct gpu_bench *g, size_t arena_bytes, size_t mn_max)
{
    const size_t unit = (size_t)2 << 20;
    struct ps_error err = {0};
    char why[256] = "";
    g->plugin = ps_cuda_plugin_load(why);
    if (g->plugin && g->plugin->probe(&g->info, &err)) {
        snprintf(why, sizeof why, "%.255s", err.message);
        g->plugin = NULL;
    }
    if (!g->plugin) {
        fprintf(stderr, "no CUDA device: %s\n", why);
        exit(EXIT_SKIP);
    }
    g->cx = (struct ps_compute){
        .k = g->plugin->kernels, .fault = &g->fault, .dtype = PS_DTYPE_BF16, .math = PS_GEMM_BF16};
    size_t workspace = g->cx.k->gemm_workspace_bytes(&g->cx, mn_max);
    g->arena_bytes = (arena_bytes + workspace + 2 * unit) / unit * unit;
    if (g->plugin->device->open(&g->device, g->arena_bytes, &err) ||
        g->plugin->compute_open(&g->cx, &err))
        gpu_fail("the device", err.message);
    g->cx.gemm_workspace = gpu_take(g, workspace);
    g->cx.gemm_workspace_bytes = workspace;
    open_driver(g);
}

void gpu_close(struct gpu_bench *g)
{
    g->plugin->compute_close(&g->cx);
    g->device->ops->close(g->device);
    if (g->out)
        fclose(g->out);
}

void *gpu_take(struct gpu_bench *g, size_t bytes)
{
    unsigned char *p = (unsigned char *)g->device->ops->base(g->device) + g->used;
    g->used += (bytes + GPU_ALIGN - 1) / GPU_ALIGN * GPU_ALIGN;
    if (g->used > g->arena_bytes)
        gpu_fail("the arena", "too small for this benchmark");
    return p;
}

static void upload(struct gpu_bench *g, void *device, const void *host, size_t bytes)
{
    struct ps_error err = {0};
    if (g->device->ops->copy_h2d(g->device, device, host, bytes, &err))
        gpu_fail("copy to the device", err.message);
}

void *gpu_upload(struct gpu_bench *g, const void *host, size_t bytes)
{
    void *p = gpu_take(g, bytes);
    upload(g, p, host, bytes);
    return p;
}

/* (0, 1) */
static double uniform(uint64_t *state)
{
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return ((double)(*state >> 11) + 0.5) * 0x1p-53;
}

void *gpu_random(struct gpu_bench *g, enum ps_dtype dtype, size_t count, float deviation)
{
    size_t size = ps_dtype_size(dtype), n = count < PATTERN ? count : PATTERN;
    unsigned char *p = gpu_take(g, count * size), *host = malloc(PATTERN * sizeof(float));
    uint64_t state = ++g->seed;
    if (!host)
        gpu_fail("random numbers", "no memory");
    for (size_t i = 0; i < n; i++) {
        double r = sqrt(-2 * log(uniform(&state))), turn = 6.283185307179586 * uniform(&state);
        float x = deviation * (float)(r * cos(turn));
        if (dtype == PS_DTYPE_F32)
            memcpy(host + 4 * i, &x, 4);
        else
            memcpy(host + 2 * i, &(uint16_t){ps_f32_to_bf16(x)}, 2);
    }
    for (size_t at = 0; at < count; at += n)
        upload(g, p + at * size, host, (count - at < n ? count - at : n) * size);
    free(host);
    return p;
}

void gpu_finish(struct gpu_bench *g)
{
    if (g->cx.k->finish(&g->cx))
        gpu_fail("a kernel", g->plugin->fault_text(&g->cx));
}

static double run_batch(struct gpu_bench *g, gpu_work_fn work, void *arg, size_t calls)
{
    double start = gpu_now();
    for (size_t i = 0; i < calls; i++)
        work(g, arg);
    gpu_finish(g);
    return (gpu_now() - start) / (double)calls;
}

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double gpu_time(struct gpu_bench *g, gpu_work_fn work, void *arg, double budget)
{
    double t[BATCHES_MAX], start = gpu_now();
    int n = 0;
    run_batch(g, work, arg, 1); /* loads modules, chooses algorithms */
    double once = run_batch(g, work, arg, 1);
    size_t calls = g->tiny ? 1 : (size_t)fmin(1000, fmax(1, BATCH_S / once));
    int least = g->tiny ? 2 : BATCHES_MIN;
    budget = fmin(budget, BUDGET_MAX);
    while (n < least || (!g->tiny && n < BATCHES_MAX && gpu_now() - start < budget))
        t[n++] = run_batch(g, work, arg, calls);
    qsort(t, (size_t)n, sizeof *t, ascending);
    return n % 2 ? t[n / 2] : (t[n / 2 - 1] + t[n / 2]) / 2;
}

void gpu_copy(struct gpu_bench *g, void *dst, const void *src, size_t bytes)
{
    const int32_t first = 0;
    if (g->copy) {
        if (g->copy((uint64_t)(uintptr_t)dst, (uint64_t)(uintptr_t)src, bytes, g->cx.stream))
            gpu_fail("copy", "cuMemcpyDtoDAsync failed");
        return;
    }
    if (!g->row_zero)
        g->row_zero = gpu_upload(g, &first, sizeof first);
    g->cx.k->gather_rows(&g->cx, dst, src, g->row_zero, 1, bytes / sizeof(uint16_t));
}

void gpu_line(struct gpu_bench *g, const char *format, ...)
{
    char text[1024];
    va_list ap;
    va_start(ap, format);
    vsnprintf(text, sizeof text, format, ap);
    va_end(ap);
    puts(text);
    fflush(stdout);
    if (g->out) {
        fprintf(g->out, "%s\n", text);
        fflush(g->out);
    }
}
