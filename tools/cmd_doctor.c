/* penstock doctor: what of this machine is right for streaming, and what to do about the rest. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "session/doctor.h"
#include "tools/tool.h"

#define PATH_BYTES 4096

static int examine(const struct ps_options *opt, const char *const *path, size_t count, bool *ok,
                   struct ps_error *err)
{
    struct ps_doctor_options o = {.paths = path, .path_count = count, .hardware = opt->hardware};
    struct ps_doctor_report *r = malloc(sizeof *r);
    if (!r)
        return ps_error_set(err, -ENOMEM, "out of memory");
    char *text = NULL;
    int ret = ps_doctor(r, &o, err);
    if (ret == 0)
        ret = ps_doctor_print(r, opt->json, &text, err);
    if (ret == 0) {
        fputs(text, stdout);
        if (opt->json)
            putchar('\n');
        *ok = r->ok;
    }
    free(text);
    free(r);
    return ret;
}

int cmd_doctor(struct ps_options *opt, struct ps_error *err)
{
    int ret = ps_options_resolve(opt, err);
    if (ret)
        return ret;
    const char *path[PS_DOCTOR_PATH_MAX + 1];
    char item[PATH_BYTES];
    size_t count = 0;
    bool ok = true;
    while (ret == 0 && count <= PS_DOCTOR_PATH_MAX &&
           ps_options_list_item(opt->nvme_path, count, item, sizeof item)) {
        path[count] = strdup(item);
        ret = path[count] ? 0 : ps_error_set(err, -ENOMEM, "out of memory");
        count += ret == 0;
    }
    if (ret == 0)
        ret = examine(opt, path, count, &ok, err);
    for (size_t i = 0; i < count; i++)
        free((void *)(size_t)path[i]);
    if (ret == 0 && !ok)
        return ps_error_full(err, -ENOTSUP, NULL, NULL, "see what is marked BAD",
                             "this machine is not ready");
    return ret;
}
