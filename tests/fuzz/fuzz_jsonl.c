/* Fuzz target: bytes as a data set -> ids, labels, micro-batches.
 *
 * The first byte chooses format, template and what happens to long rows; the rest is the file. Run
 * from the repository's root, or with PENSTOCK_ROOT set. */
#include <assert.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "runtime/data/batch.h"
#include "runtime/data/chat_template.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct ps_tokenizer *open_tokenizer(void)
{
    const char *root = getenv("PENSTOCK_ROOT");
    char path[512];
    struct ps_tokenizer *tok;
    struct ps_error err = {0};
    snprintf(path, sizeof path, "%s/tests/golden/byte_tokenizer", root ? root : ".");
    if (ps_tokenizer_open(&tok, path, &err) < 0) {
        fprintf(stderr, "%s: %s\n", path, err.message);
        exit(1);
    }
    return tok;
}

static void *get(size_t count, size_t size)
{
    void *p = malloc(count * size);
    assert(p);
    return p;
}

/* Go through every micro-batch of a short run, in arrays of exactly the promised size. */
static void read_batches(const struct ps_dataset *ds, unsigned mode)
{
    struct ps_batch_options o = {.batch_size = 1 + (int32_t)(mode & 1),
                                 .grad_accum = 2,
                                 .max_seq_len = mode & 2 ? 32 : 0,
                                 .packing = mode & 4,
                                 .shuffle = mode & 8,
                                 .epochs = 1.5};
    struct ps_batcher *b;
    if (ps_batcher_create(&b, ds, &o, NULL) < 0)
        return;
    size_t tok = (size_t)ps_batcher_tok_max(b), doc = (size_t)ps_batcher_doc_max(b);
    struct ps_batch m = {.ids = get(tok, sizeof *m.ids),
                         .target = get(tok, sizeof *m.target),
                         .position = get(tok, sizeof *m.position),
                         .doc_start = get(doc + 1, sizeof *m.doc_start),
                         .doc_row = get(doc, sizeof *m.doc_row)};
    for (uint64_t s = 0; s < ps_batcher_step_count(b) && s < 64; s++) {
        ps_batcher_seek(b, s);
        int64_t labels = 0;
        for (int32_t i = 0; i < ps_batcher_micro_count(b); i++) {
            ps_batcher_fill(b, i, &m);
            assert(m.n_tok >= 1 && (size_t)m.n_tok <= tok && (size_t)m.doc_count <= doc);
            labels += m.label_count;
        }
        assert(labels > 0 && labels == ps_batcher_window_labels(b));
    }
    free(m.ids);
    free(m.target);
    free(m.position);
    free(m.doc_start);
    free(m.doc_row);
    ps_batcher_destroy(b);
}

static void check(const struct ps_dataset *ds, const struct ps_dataset_options *opt)
{
    uint64_t labels = 0;
    for (uint64_t r = 0; r < ds->row_count; r++) {
        uint64_t begin = ds->row_begin[r], end = ds->row_begin[r + 1];
        assert(begin <= end && (!opt->max_seq_len || end - begin <= (uint64_t)opt->max_seq_len));
        for (uint64_t i = begin; i < end; i++) {
            assert(ds->ids[i] >= 0 && ds->ids[i] < opt->vocab_size);
            assert(ds->labels[i] == PS_LABEL_IGNORE ||
                   (ds->labels[i] >= 0 && ds->labels[i] < opt->vocab_size));
            labels += i > begin && ds->labels[i] != PS_LABEL_IGNORE;
        }
    }
    assert(labels == ds->label_count && labels > 0);
    assert(ds->row_begin[ds->row_count] == ds->token_count);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct ps_tokenizer *tok;
    static int fd = -1;
    if (!tok)
        tok = open_tokenizer();
    if (fd < 0)
        fd = memfd_create("rows", 0);
    if (size < 1 || fd < 0)
        return 0;
    unsigned mode = data[0];
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    if (ftruncate(fd, 0) < 0 || pwrite(fd, data + 1, size - 1, 0) != (ssize_t)(size - 1))
        return 0;
    struct ps_dataset_options opt = {
        .path = path,
        .max_seq_len = mode & 2 ? 32 : 0,
        .vocab_size = 261,
        .eos_token_id = mode & 1 ? 258 : -1,
        .overlength = mode & 16 ? PS_OVERLENGTH_SPLIT : PS_OVERLENGTH_TRUNCATE,
    };
    size_t name_count = 0;
    while (ps_chat_template_names()[name_count])
        name_count++;
    if (mode & 32)
        opt.chat_template = ps_chat_template_names()[mode % name_count];
    if (mode & 64)
        opt.field_map = "text=t,prompt=p,completion=c";
    struct ps_dataset ds, eval;
    struct ps_error err = {0};
    int ret = ps_dataset_load(&ds, &opt, mode & 128 ? NULL : tok, &err);
    if (ret < 0) {
        assert(err.code == ret && err.message[0]);
        return 0;
    }
    check(&ds, &opt);
    read_batches(&ds, mode);
    if (ps_dataset_split(&ds, &eval, 0.3, mode, NULL) == 0)
        ps_dataset_fini(&eval);
    ps_dataset_fini(&ds);
    return 0;
}
