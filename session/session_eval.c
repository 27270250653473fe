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

static int emit(void *arg, const float *logits, int32_t row_begin, int32_t rows)
{
    struct sink *k = arg;
    (void)row_begin;
    return ps_st_writer_append(k->w, logits, (size_t)rows * k->vocab * sizeof *logits, k->err);
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
    for (size_t i = 0; ret == 0 && i < n; i++)
        ret = ps_trainer_logits(s->trainer, d->ids + d->row_begin[i],
                                (int32_t)(d->row_begin[i + 1] - d->row_begin[i]), emit, &k);
    if (ret == 0)
        ret = ps_st_writer_close(k.w, err);
    else
        ps_st_writer_abort(k.w);
    free(name);
    free(spec);
    return ret;
}
