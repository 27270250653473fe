/* Giving up a store without opening it: see spill_store.h. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "offload/spill_store_internal.h"

#define FILES_MAX 64

/* Remove the files of the directory that are of this run, by name and by what is in them. */
static int remove_files(const struct ps__spill_dir *d, const uint8_t run[16], struct ps_error *err)
{
    void *block = ps__spill_page_aligned(PS__SPILL_BLOCK);
    int rc = block ? 0 : ps__spill_no_memory(err);
    for (uint32_t i = 0; rc == 0 && i < FILES_MAX; i++) {
        char name[16];
        struct stat sb;
        struct ps__spill_header h;
        ps__spill_file_name(name, i);
        rc = ps__spill_read_block(d, name, 0, block, &sb, err);
        if (rc == -ENOENT) {
            rc = 0;
            continue;
        }
        if (rc < 0)
            break;
        enum ps__super_state state = ps__spill_header_decode(&h, block, run);
        bool unfinished = state == PS__SUPER_BLANK && (uint64_t)sb.st_size <= PS__SPILL_BLOCK;
        bool ours = unfinished || (state == PS__SUPER_OK && h.index == i);
        if (ours && unlinkat(d->fd, name, 0) != 0)
            rc = ps__spill_errno(err, d->path, "cannot remove a file of the spill store", NULL);
    }
    free(block);
    return rc;
}

int ps_spill_store_discard(const char *path, const char *run_uuid, struct ps_error *err)
{
    uint8_t run[16];
    struct ps__spill_dir d = {.parent = -1, .fd = -1, .lock = -1};
    if (!ps__spill_uuid_parse(run, run_uuid))
        return ps_error_full(err, PS_EUSAGE, path, "run_uuid", NULL, "this is no UUID");
    if (strlen(path) >= sizeof d.root)
        return ps_error_full(err, -ENAMETOOLONG, path, NULL, NULL, "the path is too long");
    memcpy(d.root, path, strlen(path) + 1);
    if (access(path, F_OK) != 0)
        return 0;
    int rc = ps__spill_dir_parent(&d, err);
    if (rc == 0)
        rc = ps__spill_dir_open(&d, run_uuid, false, err);
    if (rc == 0 && d.fd >= 0)
        rc = ps__spill_dir_lock(&d, true, err);
    if (rc == 0 && d.fd >= 0)
        rc = remove_files(&d, run, err);
    if (rc == 0 && d.fd >= 0)
        ps__spill_dir_remove(&d);
    else
        ps__spill_dir_close(&d);
    return rc;
}
