/* What a directory lies on: file system, free space. */
#ifndef PS_SESSION_HOST_DISK_H
#define PS_SESSION_HOST_DISK_H

#include <stdint.h>

#include "runtime/base/status.h"

#ifdef __cplusplus
extern "C" {
#endif

enum ps_fs_kind {
    PS_FS_LOCAL,   /* on a drive: ext4, xfs, btrfs, f2fs, ... */
    PS_FS_MEMORY,  /* tmpfs, ramfs: what is written there takes memory */
    PS_FS_NETWORK, /* nfs, smb, 9p, ceph, ... */
    PS_FS_LAYERED, /* overlay (containers), fuse: passes requests on, often slowly */
    PS_FS_UNKNOWN,
};

struct ps_host_disk {
    char name[32]; /* "ext4", ..., or its number in hex */
    enum ps_fs_kind kind;
    uint64_t free_bytes, total_bytes; /* free: for this user */
};

/* Look at an existing directory. Returns 0 or -errno (err names the directory). */
int ps_host_disk(struct ps_host_disk *out, const char *dir, struct ps_error *err) PS_WARN_UNUSED;

#ifdef __cplusplus
}
#endif
#endif
