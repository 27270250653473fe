/* Fuzz target: the text of a config.json. What is accepted must be usable. */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/model/config.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct ps_model_config c;
    struct ps_error err = {0};
    if (ps_model_config_parse(&c, (const char *)data, size, "config.json", &err) != 0) {
        if (!err.message[0] || strcmp(err.file, "config.json") != 0)
            abort();
        return 0;
    }
    if (c.n_head % c.n_kv_head || c.head_dim % 2 || c.head_dim < 2 || c.eos_count > PS_EOS_MAX)
        abort();
    float *inv = malloc(sizeof(float) * (size_t)(c.head_dim / 2));
    if (!inv)
        abort();
    ps_model_rope_inv_freq(&c, inv);
    for (int i = 0; i < c.head_dim / 2; i++)
        if (!isfinite(inv[i]))
            abort();
    free(inv);
    return 0;
}
