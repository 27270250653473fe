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

/* One prompt on its way. */
struct state {
    const int32_t *prompt;
    size_t n_prompt, max;
    uint32_t prompt_idx;
    int32_t *out; /* room for max */
    size_t count;
    int32_t last; /* id to feed next */
    bool done;
};

/* Sample what follows from the last logits of place i. */
static void advance(struct ps_session *s, struct state *p, int32_t i, struct candidate *list)
{
    int32_t id = sample(s->opt, ps_trainer_last_logits(s->trainer, i), s->cfg.vocab_size, list,
                        p->prompt_idx, p->n_prompt + p->count);
    if (ends(s, id)) {
        p->done = true;
        return;
    }
    p->out[p->count++] = id;
    p->last = id;
    p->done = p->count >= p->max;
}

/* All prompts in lockstep: each pass over the weights gives every one that goes on its next id. */
static int run(struct ps_session *s, struct state *p, int32_t count, struct candidate *list,
               struct ps_error *err)
{
    struct ps_trainer_seq *seq = calloc((size_t)count, sizeof *seq);
    if (!seq)
        return ps_error_set(err, -ENOMEM, "out of memory");
    bool busy = false;
    for (int32_t i = 0; i < count; i++) {
        p[i].done = p[i].max == 0;
        busy |= !p[i].done;
        if (!p[i].done)
            seq[i] = (struct ps_trainer_seq){.ids = p[i].prompt, .n_tok = (int32_t)p[i].n_prompt};
    }
    int ret = 0;
    while (ret == 0 && busy) {
        ret = ps_trainer_decode(s->trainer, seq, count, err);
        busy = false;
        for (int32_t i = 0; ret == 0 && i < count; i++) {
            if (!p[i].done)
                advance(s, &p[i], i, list);
            seq[i] = (struct ps_trainer_seq){0};
            if (p[i].done)
                continue;
            busy = true;
            seq[i] = (struct ps_trainer_seq){
                .ids = &p[i].last, .n_tok = 1, .n_past = (int32_t)(p[i].n_prompt + p[i].count - 1)};
        }
    }
    free(seq);
    return ret;
}

/* Ids of a prompt, and room for its continuation. */
static int prepare(struct ps_session *s, const struct ps_prompt *prompt, uint32_t prompt_idx,
                   struct ps_generation *g, struct state *p, struct ps_error *err)
{
    const int32_t *ids = prompt->ids;
    size_t count = prompt->id_count;
    if (prompt->text) {
        int ret =
            ps_tokenizer_encode(s->tok, prompt->text, strlen(prompt->text), true, &s->enc, err);
        if (ret < 0)
            return ps_error_field(err, ret, "prompt");
        ids = s->enc.ids;
        count = s->enc.count;
    }
    int ret = check_prompt(s, ids, count, err);
    if (ret < 0)
        return ret;
    size_t room = (size_t)s->context_max - count;
    size_t max = (size_t)s->opt->max_new_tokens < room ? (size_t)s->opt->max_new_tokens : room;
    g->prompt_count = count;
    g->prompt_ids = malloc(count * sizeof *g->prompt_ids);
    g->ids = malloc((max + 1) * sizeof *g->ids);
    if (!g->prompt_ids || !g->ids)
        return ps_error_set(err, -ENOMEM, "out of memory");
    memcpy(g->prompt_ids, ids, count * sizeof *ids);
    *p = (struct state){.prompt = g->prompt_ids,
                        .n_prompt = count,
                        .max = max,
                        .prompt_idx = prompt_idx,
                        .out = g->ids};
    return 0;
}

/* The text of ids; those past the tokenizer's vocabulary (a model's may be padded) have none. */
static int decode_text(struct ps_session *s, struct ps_generation *g, struct ps_error *err)
{
    size_t known = ps_tokenizer_vocab_size(s->tok);
    size_t count = 0;
    size_t len;
    int32_t *ids = malloc((g->count + 1) * sizeof *ids);
    if (!ids)
        return ps_error_set(err, -ENOMEM, "out of memory");
    for (size_t i = 0; i < g->count; i++)
        if (g->ids[i] >= 0 && (size_t)g->ids[i] < known)
            ids[count++] = g->ids[i];
    int ret = ps_tokenizer_decode(s->tok, ids, count, true, &g->text, &len, err);
    free(ids);
    return ret;
}

/* One group that goes through the weights together. */
static int generate_group(struct ps_session *s, struct state *p, int32_t count,
                          struct candidate *list, struct ps_generation *out, struct ps_error *err)
{
    int ret = run(s, p, count, list, err);
    for (int32_t i = 0; ret == 0 && i < count; i++) {
        out[i].count = p[i].count;
        if (s->tok)
            ret = decode_text(s, &out[i], err);
    }
    return ret;
}

int ps_session_generate_many(struct ps_session *s, const struct ps_prompt *prompt, size_t count,
                             uint32_t prompt_idx, struct ps_generation *out, struct ps_error *err)
{
    struct state *p = calloc(count + 1, sizeof *p);
    struct candidate *list = malloc((size_t)s->cfg.vocab_size * sizeof *list);
    int ret = p && list ? 0 : ps_error_set(err, -ENOMEM, "out of memory");
    memset(out, 0, count * sizeof *out);
    for (size_t i = 0; ret == 0 && i < count; i++)
        ret = prepare(s, &prompt[i], prompt_idx + (uint32_t)i, &out[i], &p[i], err);
    size_t most = (size_t)ps_trainer_seq_max(s->trainer);
    for (size_t i = 0; ret == 0 && i < count; i += most) {
        size_t group = count - i < most ? count - i : most;
        ret = generate_group(s, p + i, (int32_t)group, list, out + i, err);
    }
    for (size_t i = 0; ret < 0 && i < count; i++)
        ps_generation_fini(&out[i]);
    free(list);
    free(p);
    return ret;
}

size_t ps_session_prompts_per_pass(const struct ps_session *s, bool *streamed)
{
    if (streamed)
        *streamed = ps_trainer_map(s->trainer)->stream_count > 0;
    return (size_t)ps_trainer_seq_max(s->trainer);
}

double ps_session_token_seconds(const struct ps_session *s)
{
    return s->chosen.step.busy_s[PS_LANE_DISK_WEIGHTS];
}

int ps_session_generate_ids(struct ps_session *s, const int32_t *ids, size_t count,
                            uint32_t prompt_idx, struct ps_generation *out, struct ps_error *err)
{
    struct ps_prompt p = {.ids = ids, .id_count = count};
    return ps_session_generate_many(s, &p, 1, prompt_idx, out, err);
}

int ps_session_generate(struct ps_session *s, const char *prompt, uint32_t prompt_idx,
                        struct ps_generation *out, struct ps_error *err)
{
    struct ps_prompt p = {.text = prompt};
    return ps_session_generate_many(s, &p, 1, prompt_idx, out, err);
}

void ps_generation_fini(struct ps_generation *g)
{
    free(g->prompt_ids);
    free(g->ids);
    free(g->text);
    memset(g, 0, sizeof *g);
}
