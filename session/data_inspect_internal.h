/* What data_inspect.c measures and data_inspect_report.c prints. */
#ifndef PS_SESSION_DATA_INSPECT_INTERNAL_H
#define PS_SESSION_DATA_INSPECT_INTERNAL_H

#include <stdio.h>

#include "runtime/data/dataset.h"
#include "session/options.h"

#define PS__HISTOGRAM_MAX 20

/* Lengths in tokens. */
struct ps__lengths {
    uint64_t min, median, p90, p99, max;
    double mean;
};

struct ps__inspection {
    const struct ps_options *opt;
    struct ps_tokenizer *tok; /* NULL: the preview shows ids */
    struct ps_dataset rows;   /* as read: whole, rows without labels among them */
    struct ps_dataset
        trained; /* cut to max_seq_len as --overlength says, rows without labels dropped */
    uint64_t rows_too_long;
    struct ps__lengths length;
    uint64_t bin_size, bins, bin[PS__HISTOGRAM_MAX]; /* bin i: [i, i + 1) * bin_size tokens */
    bool packs;                                      /* there is something to pack */
    uint64_t sequences;                              /* of an epoch when packed */
    double efficiency, efficiency_unpacked;
};

/* Print as text or, with opt->json, as JSON. Returns 0, -ENOMEM or -EIO. */
int ps__inspection_print(const struct ps__inspection *in, FILE *to, struct ps_error *err);

#endif
