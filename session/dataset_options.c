/* From the session's options to those of the data set reader: see dataset_options.h. */
#include "session/dataset_options.h"

#include <string.h>

struct word {
    const char *text;
    int value;
};

static int look_up(const struct word *words, size_t count, const char *text, const char *field,
                   int *out, struct ps_error *err)
{
    for (size_t i = 0; i < count; i++)
        if (!text || strcmp(words[i].text, text) == 0) { /* not given: the first, auto */
            *out = words[i].value;
            return 0;
        }
    return ps_error_full(err, PS_EUSAGE, NULL, field, "see --help", "unknown %s '%s'", field, text);
}

int ps_dataset_options_from(struct ps_dataset_options *out, const struct ps_options *opt,
                            const char *path, const char *split, struct ps_error *err)
{
    static const struct word formats[] = {
        {"auto", PS_DATA_AUTO},         {"messages", PS_DATA_MESSAGES},
        {"sharegpt", PS_DATA_SHAREGPT}, {"alpaca", PS_DATA_ALPACA},
        {"text", PS_DATA_TEXT},         {"completion", PS_DATA_COMPLETION},
        {"tokens", PS_DATA_TOKENS}};
    static const struct word losses[] = {{"auto", PS_LOSS_AUTO},
                                         {"assistant", PS_LOSS_ASSISTANT},
                                         {"completion", PS_LOSS_COMPLETION},
                                         {"all", PS_LOSS_ALL}};
    static const struct word lengths[] = {{"truncate", PS_OVERLENGTH_TRUNCATE},
                                          {"drop", PS_OVERLENGTH_DROP},
                                          {"split", PS_OVERLENGTH_SPLIT},
                                          {"error", PS_OVERLENGTH_ERROR}};
    int format = 0;
    int loss = 0;
    int length = 0;
    int ret =
        look_up(formats, sizeof formats / sizeof formats[0], opt->format, "format", &format, err);
    if (ret == 0)
        ret =
            look_up(losses, sizeof losses / sizeof losses[0], opt->loss_on, "loss-on", &loss, err);
    if (ret == 0)
        ret = look_up(lengths, sizeof lengths / sizeof lengths[0], opt->overlength, "overlength",
                      &length, err);
    if (ret < 0)
        return ret;
    *out = (struct ps_dataset_options){
        .path = path,
        .split = split,
        .format = (enum ps_data_format)format,
        .field_map = opt->field_map,
        .chat_template = opt->chat_template,
        .loss_on = (enum ps_loss_on)loss,
        .overlength = (enum ps_overlength)length,
        .max_seq_len = opt->max_seq_len,
        .eos_token_id = -1,
    };
    return 0;
}
