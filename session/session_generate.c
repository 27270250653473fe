/* Generation: greedy, or sampling with temperature, top-k and top-p by counter-based random
 * numbers. */
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/rng.h"
#include "session/session_internal.h"

struct candidate {
    float logit;
    int32_t id;
};

static int by_logit(const void *a, const void *b)
{
    const struct candidate *x = a;
    const struct candidate *y = b;
    if (x->logit != y->logit)
        return x->logit < y->logit ? 1 : -1;
    return x->id < y->id ? -1 : 1;
}

static int32_t argmax(const float *logits, int32_t vocab)
{
    int32_t best = 0;
    for (int32_t i = 1; i < vocab; i++)
        if (logits[i] > logits[best])
            best = i;
    return best;
}

/* One id from softmax(logits / temperature), restricted to the top_k likeliest and to the smallest
 * set of probability top_p. `list` has room for vocab candidates. */
static int32_t sample(const struct ps_options *o, const float *logits, int32_t vocab,
                      struct candidate *list, uint32_t prompt_idx, uint64_t position)
{
    if (o->temperature <= 0)
        return argmax(logits, vocab);
    for (int32_t i = 0; i < vocab; i++)
        list[i] = (struct candidate){.logit = logits[i], .id = i};
    qsort(list, (size_t)vocab, sizeof *list, by_logit);
    int32_t keep = o->top_k > 0 && o->top_k < vocab ? o->top_k : vocab;
    double sum = 0;
    for (int32_t i = 0; i < keep; i++)
        sum += exp(((double)list[i].logit - (double)list[0].logit) / o->temperature);
    double reach = 0;
    int32_t count = 0;
    while (count < keep && (count == 0 || reach < o->top_p * sum))
        reach += exp(((double)list[count++].logit - (double)list[0].logit) / o->temperature);
    struct ps_rng_key key = {
        .seed = o->seed, .step = position, .micro_batch = prompt_idx, .site = PS_RNG_SAMPLE};
    double left = (double)(ps_rng_u64(&key, 0) >> 11) * 0x1p-53 * reach;
    for (int32_t i = 0; i < count; i++) {
        left -= exp(((double)list[i].logit - (double)list[0].logit) / o->temperature);
        if (left < 0)
            return list[i].id;
    }
    return list[count - 1].id;
}

static bool ends(const struct ps_session *s, int32_t id)
{
    for (int i = 0; i < s->eos_count; i++)
        if (s->eos[i] == id)
            return true;
    return false;
}

static int check_prompt(const struct ps_session *s, const int32_t *ids, size_t count,
                        struct ps_error *err)
{
    if (count == 0)
        return ps_error_full(err, PS_EDATA, NULL, "prompt", "give a longer --prompt",
                             "the prompt has no token");
    if (count >= (size_t)s->context_max)
        return ps_error_full(
            err, PS_EDATA, NULL, "prompt", "raise --max-seq-len",
            "the prompt has %zu tokens, the room for prompt and continuation is %d", count,
            s->context_max);
    for (size_t i = 0; i < count; i++)
        if (ids[i] < 0 || ids[i] >= s->cfg.vocab_size)
            return ps_error_full(
                err, PS_EDATA, NULL, "prompt", "the tokenizer does not belong to the model",
                "token id %d of the prompt is outside the model's vocabulary of %d", ids[i],
                s->cfg.vocab_size);
    return 0;
}

/* New ids into out (room for max); returns how many. */
static size_t run(struct ps_session *s, const int32_t *prompt, size_t n_prompt, uint32_t prompt_idx,
                  int32_t *out, size_t max, struct candidate *list)
{
    const float *logits = ps_trainer_decode(s->trainer, prompt, (int32_t)n_prompt, 0);
    size_t count = 0;
    while (count < max) {
        int32_t id = sample(s->opt, logits, s->cfg.vocab_size, list, prompt_idx, n_prompt + count);
        if (ends(s, id))
            break;
        out[count++] = id;
        if (count < max)
            logits = ps_trainer_decode(s->trainer, &id, 1, (int32_t)(n_prompt + count - 1));
    }
    return count;
}

int ps_session_generate_ids(struct ps_session *s, const int32_t *ids, size_t count,
                            uint32_t prompt_idx, struct ps_generation *out, struct ps_error *err)
{
    int ret = check_prompt(s, ids, count, err);
    if (ret < 0)
        return ret;
    size_t room = (size_t)s->context_max - count;
    size_t max = (size_t)s->opt->max_new_tokens < room ? (size_t)s->opt->max_new_tokens : room;
    struct ps_generation g = {.prompt_count = count};
    g.prompt_ids = malloc(count * sizeof *g.prompt_ids);
    g.ids = malloc((max + 1) * sizeof *g.ids);
    struct candidate *list = malloc((size_t)s->cfg.vocab_size * sizeof *list);
    ret = g.prompt_ids && g.ids && list ? 0 : ps_error_set(err, -ENOMEM, "out of memory");
    if (ret == 0) {
        memcpy(g.prompt_ids, ids, count * sizeof *ids);
        g.count = run(s, ids, count, prompt_idx, g.ids, max, list);
    }
    size_t len;
    if (ret == 0 && s->tok)
        ret = ps_tokenizer_decode(s->tok, g.ids, g.count, true, &g.text, &len, err);
    free(list);
    if (ret < 0) {
        ps_generation_fini(&g);
        return ret;
    }
    *out = g;
    return 0;
}

int ps_session_generate(struct ps_session *s, const char *prompt, uint32_t prompt_idx,
                        struct ps_generation *out, struct ps_error *err)
{
    int ret = ps_tokenizer_encode(s->tok, prompt, strlen(prompt), true, &s->enc, err);
    if (ret < 0)
        return ps_error_field(err, ret, "prompt");
    return ps_session_generate_ids(s, s->enc.ids, s->enc.count, prompt_idx, out, err);
}

void ps_generation_fini(struct ps_generation *g)
{
    free(g->prompt_ids);
    free(g->ids);
    free(g->text);
    memset(g, 0, sizeof *g);
}
