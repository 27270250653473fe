/* How much work that runs at the same time slows each other down: see bench.h.
 *
 * Each pair is measured alone, together, and alone again (the two are averaged): on a shared
 * machine rates drift. The product runs on the calling thread's pool, the other work on a thread
 * and a pool of its own, as the lanes of a run do. */
#include "session/bench_internal.h"

#include <errno.h>
#include <pthread.h>
#include <string.h>
#include <time.h>

#define ALONE_S 0.4
#define BOTH_S 1.0
#define FACTOR_MAX 100.0
#define HANG_S 10.0

/* What runs beside the product, over and over, until `stop`. */
struct rival {
    ps__bench_fn fn; /* NULL: stream from the disk */
    void *arg;
    struct ps__bench_file *file;
    struct ps__bench_flow flow;
    atomic_bool stop;
    _Atomic uint64_t done; /* calls, or bytes of the disk */
    int ret;
    struct ps_error err;
};

static void *rival_thread(void *arg)
{
    struct rival *r = arg;
    if (!r->fn) {
        double rate;
        r->ret = ps__bench_stream(r->file, &r->flow, &rate, &r->err);
        return NULL;
    }
    while (!atomic_load_explicit(&r->stop, memory_order_relaxed)) {
        r->fn(r->arg);
        atomic_fetch_add_explicit(&r->done, 1, memory_order_relaxed);
    }
    return NULL;
}

static int rival_start(struct rival *r, pthread_t *thread, struct ps_error *err)
{
    atomic_store_explicit(&r->stop, false, memory_order_relaxed);
    atomic_store_explicit(&r->done, 0, memory_order_relaxed);
    r->flow.stop = &r->stop;
    r->flow.moved = &r->done;
    r->flow.seconds = 3600;
    int ret = pthread_create(thread, NULL, rival_thread, r);
    if (ret)
        return ps_error_set(err, -ret, "cannot start a thread: %s", ps_status_text(-ret));
    return 0;
}

static int rival_stop(struct rival *r, pthread_t thread, struct ps_error *err)
{
    atomic_store_explicit(&r->stop, true, memory_order_relaxed);
    PS_IGNORE(pthread_join(thread, NULL), "it was started");
    if (r->ret && err)
        *err = r->err;
    return r->ret;
}

static double scale(const struct ps__bench *b)
{
    return b->quick ? 0.05 : 1;
}

static void nap(void)
{
    struct timespec t = {.tv_nsec = 200000};
    PS_IGNORE(nanosleep(&t, NULL), "an early return is harmless: callers look at the clock");
}

/* Calls a second of the product alone. */
static double product_alone(const struct ps__bench *b, struct ps__bench_product *p)
{
    ps__bench_product_run(p);
    double begin = ps__bench_now(), end = begin;
    uint64_t calls = 0;
    while (end - begin < ALONE_S * scale(b) || calls < 2) {
        ps__bench_product_run(p);
        calls++;
        end = ps__bench_now();
    }
    return (double)calls / (end - begin);
}

/* Rates over the same time: the product's calls a second (product NULL: the caller sleeps) and the
 * rival's. Only the rival's finished calls count, over the time until the last one. */
static int together(const struct ps__bench *b, struct ps__bench_product *product, struct rival *r,
                    double seconds, double *product_rate, double *rival_rate, struct ps_error *err)
{
    pthread_t thread;
    int ret = rival_start(r, &thread, err);
    if (ret)
        return ret;
    uint64_t first;
    double limit = ps__bench_now() + HANG_S;
    while ((first = atomic_load_explicit(&r->done, memory_order_relaxed)) == 0 &&
           ps__bench_now() < limit)
        nap();
    double begin = ps__bench_now(), end = begin, seen = begin;
    uint64_t calls = 0, last = first;
    /* one of the two may not come along: what is counted by then is the rate */
    while ((end - begin < seconds * scale(b) || calls < 2 || last == first) &&
           end - begin < HANG_S) {
        if (product)
            ps__bench_product_run(product);
        else
            nap();
        calls++;
        end = ps__bench_now();
        uint64_t done = atomic_load_explicit(&r->done, memory_order_relaxed);
        if (done != last) {
            last = done;
            seen = end;
        }
    }
    ret = rival_stop(r, thread, err);
    if (ret)
        return ret;
    *product_rate = (double)calls / (end - begin);
    *rival_rate = (double)(last - first) / (seen > begin ? seen - begin : end - begin);
    return 0;
}

static double factor(double alone, double both)
{
    if (!(both > 0) || !(alone > 0))
        return FACTOR_MAX;
    double f = alone / both;
    return f < 1 ? 1 : f > FACTOR_MAX ? FACTOR_MAX : f;
}

static int measure_pair(const struct ps__bench *b, struct ps__bench_product *p, struct rival *r,
                        double *product_by_rival, double *rival_by_product, struct ps_error *err)
{
    double unused;
    double product[2], rival[2], both_product, both_rival;
    for (int i = 0; i < 2; i++) {
        product[i] = product_alone(b, p);
        int ret = together(b, NULL, r, ALONE_S, &unused, &rival[i], err);
        if (ret)
            return ret;
        if (i == 1)
            break;
        ret = together(b, p, r, BOTH_S, &both_product, &both_rival, err);
        if (ret)
            return ret;
    }
    *product_by_rival = factor((product[0] + product[1]) / 2, both_product);
    *rival_by_product = factor((rival[0] + rival[1]) / 2, both_rival);
    return 0;
}

static int beside_disk(struct ps__bench *b, struct ps__bench_product *p, struct ps_error *err)
{
    struct ps_profile *profile = &b->out->profile;
    const struct ps_profile_disk *disk = &profile->disk[0];
    struct rival r = {.file = &b->file,
                      .flow = {.chunk_bytes = disk->chunk_bytes, .depth = disk->depth}};
    return measure_pair(b, p, &r, &profile->compute_by_disk, &profile->disk_by_compute, err);
}

static int beside_update(struct ps__bench *b, struct ps__bench_product *p, struct ps_error *err)
{
    struct ps__bench_update u;
    int ret = ps__bench_update_init(&u, b, b->other, err);
    if (ret)
        return ret;
    struct rival r = {.fn = ps__bench_update_run, .arg = &u};
    ret = measure_pair(b, p, &r, &b->out->profile.compute_by_optim,
                       &b->out->profile.optim_by_compute, err);
    ps__bench_update_fini(&u);
    return ret;
}

static int beside_copy(struct ps__bench *b, struct ps__bench_product *p, struct ps_error *err)
{
    size_t bytes = b->quick ? (size_t)2 << 20 : (size_t)64 << 20;
    while (2 * bytes > b->memory_bytes && bytes > (size_t)2 << 20)
        bytes /= 2;
    unsigned char *memory = ps__bench_alloc(2 * bytes);
    if (!memory)
        return ps_error_set(err, -ENOMEM, "out of memory for arrays of %zu bytes", 2 * bytes);
    struct ps__bench_copy c = {b->other, memory, memory + bytes, bytes};
    struct rival r = {.fn = ps__bench_copy_run, .arg = &c};
    int ret = measure_pair(b, p, &r, &b->out->profile.compute_by_copy,
                           &b->out->profile.copy_by_compute, err);
    ps__bench_free(memory, 2 * bytes);
    return ret;
}

int ps__bench_interference(struct ps__bench *b, struct ps_error *err)
{
    ps_log(b->opt->log, PS_LOG_INFO,
           "interference: products beside disk reads, updates and copies");
    struct ps__bench_product p;
    int ret = b->quick ? ps__bench_product_init(&p, b, 128, 576, 576, PS_DTYPE_BF16, err)
                       : ps__bench_product_init(&p, b, 512, 2048, 2048, PS_DTYPE_BF16, err);
    if (ret)
        return ret;
    ret = b->file_open ? beside_disk(b, &p, err) : 0;
    if (ret == 0)
        ret = beside_update(b, &p, err);
    if (ret == 0)
        ret = beside_copy(b, &p, err);
    ps__bench_product_fini(&p);
    return ret;
}
