/* Evaluation: mean loss over labelled tokens, and logits. See penstock.h. */
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "runtime/model/safetensors.h"
#include "session/session_internal.h"

static double now_s(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (double)ts.tv_sec + 1e-9 * (double)ts.tv_nsec;
}

int ps__eval(struct ps_session *s, struct ps_eval_stats *out, struct ps_error *err)
{
    if (!s->eval_batcher)
        return ps_error_full(err, PS_EUSAGE, NULL, "eval-data", "give --eval-data or --val-split",
                             "there are no rows to evaluate");
    double sum;
    int64_t labels;
    int64_t tokens;
    double start = now_s();
    int ret = ps_trainer_eval(s->trainer, s->eval_batcher, &sum, &labels, &tokens, err);
    if (ret < 0)
        return ret;
    double seconds = now_s() - start;
    double loss = labels > 0 ? sum / (double)labels : 0;
    *out = (struct ps_eval_stats){.loss = loss,
                                  .perplexity = exp(loss),
                                  .rows = s->eval_data.row_count,
                                  .tokens = (uint64_t)tokens,
                                  .label_tokens = (uint64_t)labels,
                                  .seconds = seconds,
                                  .tokens_per_s = seconds > 0 ? (double)tokens / seconds : 0};
    return 0;
}

int ps_session_eval(struct ps_session *s, struct ps_eval_stats *out, struct ps_error *err)
{
    int ret = ps__eval(s, out, err);
    if (ret == 0 && !isfinite(out->loss))
        return ps_error_full(err, PS_EDIVERGED, s->opt->data, NULL,
                             "check the model and the adapter", "the loss is not finite");
    return ret;
}

struct sink {
    struct ps_st_writer *w;
    size_t vocab;
    struct ps_error *err;
};

static int emit(void *arg, int32_t seq, const float *logits, int32_t row_begin, int32_t rows)
{
    struct sink *k = arg;
    (void)seq;
    (void)row_begin;
    return ps_st_writer_append(k->w, logits, (size_t)rows * k->vocab * sizeof *logits, k->err);
}

/* Rows in order, as many in a pass over the weights as it takes. */
static int write_rows(struct ps_session *s, struct sink *k, struct ps_error *err)
{
    const struct ps_dataset *d = &s->eval_data;
    struct ps_trainer_seq seq[64];
    int32_t most = ps_trainer_seq_max(s->trainer);
    uint64_t group = most < 64 ? (uint64_t)most : 64;
    int ret = 0;
    for (uint64_t i = 0; ret == 0 && i < d->row_count; i += group) {
        int32_t count = (int32_t)(d->row_count - i < group ? d->row_count - i : group);
        for (int32_t j = 0; j < count; j++) {
            uint64_t begin = d->row_begin[i + (uint64_t)j];
            seq[j] = (struct ps_trainer_seq){
                .ids = d->ids + begin,
                .n_tok = (int32_t)(d->row_begin[i + (uint64_t)j + 1] - begin)};
        }
        ret = ps_trainer_logits(s->trainer, seq, count, emit, k, err);
    }
    return ret;
}

int ps_session_write_logits(struct ps_session *s, const char *path, struct ps_error *err)
{
    const struct ps_dataset *d = &s->eval_data;
    size_t n = (size_t)d->row_count;
    struct ps_st_spec *spec = calloc(n + 1, sizeof *spec);
    char(*name)[32] = calloc(n + 1, sizeof *name);
    struct sink k = {.vocab = (size_t)s->cfg.vocab_size, .err = err};
    int ret = spec && name ? 0 : ps_error_set(err, -ENOMEM, "out of memory");
    for (size_t i = 0; ret == 0 && i < n; i++) {
        PS_IGNORE(snprintf(name[i], sizeof name[i], "row.%zu", i) < 0, "cannot fail");
        spec[i] = (struct ps_st_spec){
            .name = name[i],
            .dtype = PS_DTYPE_F32,
            .rank = 2,
            .shape = {(int64_t)(d->row_begin[i + 1] - d->row_begin[i]), s->cfg.vocab_size}};
    }
    if (ret == 0)
        ret = ps_st_writer_create(&k.w, path, spec, n, err);
    if (ret == 0)
        ret = write_rows(s, &k, err);
    if (ret == 0)
        ret = ps_st_writer_close(k.w, err);
    else
        ps_st_writer_abort(k.w);
    free(name);
    free(spec);
    return ret;
}
