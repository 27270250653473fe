/* Compare a series of a metrics.jsonl with a golden array.
 *
 *   jsonl_compare EXPECTED.json METRICS.jsonl KEY [--atol A] [--rtol R]
 *
 * EXPECTED.json holds an array under KEY; METRICS.jsonl one object a step, from step 1, with the
 * number under KEY (lines without "step" or with "event", and evaluation lines, are passed over).
 * All steps must be there, and |actual - expected| <= A + R |expected| for each. Exit 0, 1, or 2
 * for bad usage or files. */
#include <jansson.h>
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static bool is_step(const json_t *line, const char *key)
{
    return json_is_integer(json_object_get(line, "step")) && !json_object_get(line, "event") &&
           json_is_number(json_object_get(line, key));
}

int main(int argc, char **argv)
{
    if (argc < 4) {
        fprintf(stderr, "usage: jsonl_compare EXPECTED METRICS KEY [--atol A] [--rtol R]\n");
        return 2;
    }
    double atol = 0, rtol = 0;
    for (int i = 4; i + 1 < argc; i += 2)
        *(strcmp(argv[i], "--atol") == 0 ? &atol : &rtol) = atof(argv[i + 1]);
    const char *key = argv[3];
    json_error_t err;
    json_t *golden = json_load_file(argv[1], 0, &err);
    const json_t *want = json_object_get(golden, key);
    FILE *f = fopen(argv[2], "r");
    if (!json_is_array(want) || f == NULL) {
        fprintf(stderr, "jsonl_compare: cannot read %s (%s) or %s\n", argv[1], key, argv[2]);
        return 2;
    }
    size_t count = json_array_size(want), next = 0, bad = 0, worst_step = 0;
    double worst = -1;
    char *line = NULL;
    size_t cap = 0;
    while (getline(&line, &cap, f) > 0) {
        json_t *obj = json_loads(line, 0, &err);
        if (obj == NULL) {
            fprintf(stderr, "jsonl_compare: %s: not JSON: %s", argv[2], line);
            return 2;
        }
        if (is_step(obj, key)) {
            long long step = json_integer_value(json_object_get(obj, "step"));
            if (step != (long long)next + 1 || next >= count) {
                printf("step %lld where %zu of %zu was due\n", step, next + 1, count);
                bad++;
                json_decref(obj);
                break;
            }
            double e = json_number_value(json_array_get(want, next));
            double a = json_number_value(json_object_get(obj, key)), d = fabs(a - e);
            if (!(d <= atol + rtol * fabs(e))) {
                if (bad++ < 5)
                    printf("step %lld: %s %.9g, expected %.9g\n", step, key, a, e);
            }
            if (!(d <= worst)) {
                worst = d;
                worst_step = next + 1;
            }
            next++;
        }
        json_decref(obj);
    }
    if (next != count) {
        printf("%zu steps, expected %zu\n", next, count);
        bad++;
    }
    printf("%s: %zu steps, %zu bad, largest difference %.3g at step %zu\n", key, next, bad, worst,
           worst_step);
    free(line);
    fclose(f);
    json_decref(golden);
    return bad == 0 ? 0 : 1;
}
