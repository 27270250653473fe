/* The benchmark's report: as text, and as the profile's JSON with more beside it. See bench.h. */
#include "session/bench.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/json.h"

#define PROFILE_BYTES_MAX ((size_t)1 << 20)

static double giga(double v)
{
    return 1e-9 * v;
}

static void text_gemm(FILE *to, const struct ps_profile *p)
{
    fprintf(to, "\ngemm, C = A B^T, GFLOP/s\n  %8s %8s %8s %10s %10s\n", "tokens", "out", "in",
            "bf16", "f32");
    for (int i = 0; i < p->gemm_count; i++) {
        const struct ps_profile_gemm *g = &p->gemm[i];
        if (g->dtype != PS_DTYPE_BF16)
            continue;
        fprintf(to, "  %8lld %8lld %8lld %10.1f", (long long)g->m, (long long)g->n, (long long)g->k,
                giga(g->flops));
        for (int j = 0; j < p->gemm_count; j++) {
            const struct ps_profile_gemm *f = &p->gemm[j];
            if (f->dtype == PS_DTYPE_F32 && f->m == g->m && f->n == g->n && f->k == g->k)
                fprintf(to, " %10.1f", giga(f->flops));
        }
        fputc('\n', to);
    }
    fprintf(to, "  attention, forward and backward, bf16: %.1f GFLOP/s\n",
            giga(p->attention_flops));
    fprintf(to, "  handing over a task: %.0f us\n", 1e6 * p->step_overhead_s);
}

static void text_copy(FILE *to, const struct ps_bench_report *r)
{
    fprintf(to,
            "\nmemory, GB/s read and written\n  copy %.1f, read %.1f, add %.1f, bf16 to f32 %.1f\n",
            giga(r->copy), giga(r->read), giga(r->add), giga(r->convert));
}

static void text_cells(FILE *to, const struct ps_bench_disk *d, bool write)
{
    uint32_t depths[PS_BENCH_CELL_MAX];
    int depth_count = 0;
    for (int i = 0; i < d->cell_count; i++) {
        bool seen = d->cell[i].write != write;
        for (int j = 0; j < depth_count; j++)
            seen = seen || depths[j] == d->cell[i].depth;
        if (!seen)
            depths[depth_count++] = d->cell[i].depth;
    }
    fprintf(to, "  %s, MB/s, by depth", write ? "write" : "read ");
    for (int j = 0; j < depth_count; j++)
        fprintf(to, " %7u", depths[j]);
    uint32_t chunk = 0;
    for (int i = 0; i < d->cell_count; i++) {
        const struct ps_bench_cell *c = &d->cell[i];
        if (c->write != write)
            continue;
        if (c->chunk_bytes != chunk)
            fprintf(to, "\n    %13u KiB    ", c->chunk_bytes >> 10);
        chunk = c->chunk_bytes;
        fprintf(to, " %7.0f", 1e-6 * c->rate);
    }
    fputc('\n', to);
}

static void text_disk(FILE *to, const struct ps_bench_report *r, int idx)
{
    const struct ps_profile_disk *p = &r->profile.disk[idx];
    const struct ps_bench_disk *d = &r->disk[idx];
    fprintf(to, "\ndisk %s: %s, %s, %s; test file of %.1f GiB, %.1f GB written\n", p->path, d->fs,
            d->backend, d->direct ? "direct" : "through the page cache: not the disk's own rate",
            (double)d->file_bytes / (1 << 30), 1e-9 * (double)d->written_bytes);
    if (d->why[0] && strcmp(d->why, d->backend) != 0)
        fprintf(to, "  %s\n", d->why);
    text_cells(to, d, false);
    text_cells(to, d, true);
    fprintf(to, "  best: read %.2f GB/s (%u KiB, depth %u), write %.2f GB/s, first writing %.2f\n",
            giga(p->read), p->chunk_bytes >> 10, p->depth, giga(p->write), giga(d->fill_rate));
    fprintf(to, "  both at once: read %.2f, write %.2f GB/s; one read of 4 KiB: %.0f us\n",
            giga(p->mixed_read), giga(p->mixed_write), 1e6 * p->latency_s);
    if (d->sustained_s > 0)
        fprintf(
            to,
            "  sustained over %.3g s each: read %.2f GB/s (at first %.2f), write %.2f (%.2f)%s\n",
            d->sustained_s, giga(p->sustained_read), giga(d->first_read), giga(p->sustained_write),
            giga(d->first_write),
            d->sustained_s < 60 ? "\n    too short to leave a drive's fast cache: `penstock bench "
                                  "disk` takes 120 s of each"
                                : "");
}

static void text_interference(FILE *to, const struct ps_profile *p)
{
    fprintf(to, "\ninterference, times slower\n");
    if (p->disk_count > 0)
        fprintf(to, "  products beside disk reads %.2f, disk reads beside products %.2f\n",
                p->compute_by_disk, p->disk_by_compute);
    fprintf(to,
            "  products beside updates %.2f, updates beside products %.2f\n"
            "  products beside copies %.2f, copies beside products %.2f\n",
            p->compute_by_optim, p->optim_by_compute, p->compute_by_copy, p->copy_by_compute);
}

static void print_text(FILE *to, const struct ps_bench_report *r)
{
    fprintf(to, "%s\n%d thread%s, %s, %.0f s\n", r->profile.machine, r->profile.threads,
            r->profile.threads == 1 ? "" : "s", r->isa, r->seconds);
    if (r->parts & PS_BENCH_GEMM)
        text_gemm(to, &r->profile);
    if (r->parts & PS_BENCH_COPY)
        text_copy(to, r);
    if (r->parts & PS_BENCH_CPU_OPTIM)
        fprintf(to, "\ncpu-optim, AdamW: %.3f G parameters/s\n", giga(r->profile.cpu_optim_params));
    for (int i = 0; (r->parts & PS_BENCH_DISK) && i < r->profile.disk_count; i++)
        text_disk(to, r, i);
    if (r->parts & PS_BENCH_INTERFERENCE)
        text_interference(to, &r->profile);
    fprintf(to, "\nhardware profile: %s\n", r->output);
    if (r->parts != PS_BENCH_ALL)
        fprintf(to, "  the figures of the other parts are %s\n",
                r->kept ? "those of an earlier run" : "careful guesses: run `penstock bench`");
}

/* ---- JSON ----------------------------------------------------------------------------------- */

static json_t *json_cells(const struct ps_bench_disk *d)
{
    json_t *array = json_array();
    for (int i = 0; array && i < d->cell_count; i++) {
        const struct ps_bench_cell *c = &d->cell[i];
        if (json_array_append_new(array, json_pack("{s:s,s:I,s:I,s:f}", "direction",
                                                   c->write ? "write" : "read", "chunk_bytes",
                                                   (json_int_t)c->chunk_bytes, "depth",
                                                   (json_int_t)c->depth, "rate", c->rate))) {
            json_decref(array);
            return NULL;
        }
    }
    return array;
}

static json_t *json_disks(const struct ps_bench_report *r)
{
    json_t *array = json_array();
    for (int i = 0; array && (r->parts & PS_BENCH_DISK) && i < r->profile.disk_count; i++) {
        const struct ps_bench_disk *d = &r->disk[i];
        json_t *o = json_pack(
            "{s:s,s:s,s:s,s:s,s:b,s:I,s:I,s:f,s:f,s:f,s:f,s:o}", "path", r->profile.disk[i].path,
            "file_system", d->fs, "backend", d->backend, "why", d->why, "direct", (int)d->direct,
            "file_bytes", (json_int_t)d->file_bytes, "written_bytes", (json_int_t)d->written_bytes,
            "fill", d->fill_rate, "sustained_seconds", d->sustained_s, "first_read", d->first_read,
            "first_write", d->first_write, "cells", json_cells(d));
        if (json_array_append_new(array, o)) {
            json_decref(array);
            return NULL;
        }
    }
    return array;
}

static json_t *json_parts(unsigned parts)
{
    json_t *array = json_array();
    const char *const *names = ps_bench_part_names();
    for (unsigned i = 0; array && names[i]; i++)
        if ((parts >> i & 1u) && json_array_append_new(array, json_string(names[i]))) {
            json_decref(array);
            return NULL;
        }
    return array;
}

static int print_json(const struct ps_bench_report *r, char **text, struct ps_error *err)
{
    json_t *root;
    int ret = ps_json_load(r->output, PROFILE_BYTES_MAX, &root, err);
    if (ret)
        return ret;
    json_t *memory = (r->parts & PS_BENCH_COPY)
                         ? json_pack("{s:f,s:f,s:f,s:f}", "copy", r->copy, "read", r->read, "add",
                                     r->add, "convert", r->convert)
                         : json_null();
    json_t *more = json_pack("{s:s,s:o,s:f,s:b,s:{s:s,s:o,s:o}}", "output", r->output, "parts",
                             json_parts(r->parts), "seconds", r->seconds, "kept", (int)r->kept,
                             "details", "isa", r->isa, "memory", memory, "disk", json_disks(r));
    if (!more || json_object_update(root, more))
        ret = -ENOMEM;
    json_decref(more);
    *text = ret ? NULL : json_dumps(root, JSON_COMPACT);
    json_decref(root);
    return *text ? 0 : ps_error_set(err, -ENOMEM, "out of memory, or a path that is not UTF-8");
}

int ps_bench_print(const struct ps_bench_report *r, bool json, char **text, struct ps_error *err)
{
    *text = NULL;
    if (json)
        return print_json(r, text, err);
    size_t size;
    FILE *to = open_memstream(text, &size);
    if (!to)
        return ps_error_set(err, -ENOMEM, "out of memory");
    print_text(to, r);
    if (fclose(to)) {
        free(*text);
        *text = NULL;
        return ps_error_set(err, -ENOMEM, "out of memory");
    }
    return 0;
}
