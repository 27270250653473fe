/* The smallest use of the library: fine-tune a LoRA adapter through the C interface.
 *
 *   minimal MODEL_DIR DATA.jsonl OUTPUT_DIR [name=value ...] */
#include <stdio.h>
#include <string.h>

#include "session/penstock.h"

static int fail(const struct ps_error *err)
{
    fprintf(stderr, "%s: %s\n%s\n", err->file, err->message, err->advice);
    return ps_status_exit_code(err->code);
}

static void on_step(void *arg, const struct ps_step_stats *s)
{
    (void)arg;
    printf("step %llu/%llu loss %.4f\n", (unsigned long long)s->step,
           (unsigned long long)s->step_count, s->loss);
}

static int set(struct ps_options *opt, const char *name, const char *value, struct ps_error *err)
{
    return ps_options_set(opt, name, value, "minimal", err);
}

int main(int argc, char **argv)
{
    struct ps_error err = {0};
    struct ps_options opt;
    struct ps_session *session = NULL;
    if (argc < 4) {
        fprintf(stderr, "usage: minimal MODEL_DIR DATA.jsonl OUTPUT_DIR [name=value ...]\n");
        return 2;
    }
    ps_options_init(&opt, PS_CMD_TRAIN);
    int ret = set(&opt, "model", argv[1], &err);
    if (ret == 0)
        ret = set(&opt, "data", argv[2], &err);
    if (ret == 0)
        ret = set(&opt, "output", argv[3], &err);
    for (int i = 4; ret == 0 && i < argc; i++) {
        char *value = strchr(argv[i], '=');
        if (!value)
            return 2;
        *value = 0;
        ret = set(&opt, argv[i], value + 1, &err);
    }
    if (ret == 0)
        ret = ps_options_resolve(&opt, &err);
    if (ret == 0)
        ret = ps_session_open(&session, &opt, NULL, &err);
    struct ps_train_hooks hooks = {.on_step = on_step};
    if (ret == 0)
        ret = ps_session_train(session, &hooks, &err);
    ps_session_close(session);
    ps_options_fini(&opt);
    return ret < 0 ? fail(&err) : 0;
}
