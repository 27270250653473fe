/* What a directory lies on: see host_disk.h. */
#include "session/host_disk.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/statfs.h>

/* Numbers of the kernel's interface (statfs(2)). */
static const struct {
    uint32_t magic;
    const char *name;
    enum ps_fs_kind kind;
} systems[] = {
    {0x0000ef53, "ext4", PS_FS_LOCAL},   {0x58465342, "xfs", PS_FS_LOCAL},
    {0x9123683e, "btrfs", PS_FS_LOCAL},  {0xf2f52010, "f2fs", PS_FS_LOCAL},
    {0x2fc12fc1, "zfs", PS_FS_LOCAL},    {0xca451a4e, "bcachefs", PS_FS_LOCAL},
    {0x00004d44, "vfat", PS_FS_LOCAL},   {0x2011bab0, "exfat", PS_FS_LOCAL},
    {0x7366746e, "ntfs", PS_FS_LOCAL},   {0x01021994, "tmpfs", PS_FS_MEMORY},
    {0x858458f6, "ramfs", PS_FS_MEMORY}, {0x00006969, "nfs", PS_FS_NETWORK},
    {0xff534d42, "cifs", PS_FS_NETWORK}, {0xfe534d42, "smb2", PS_FS_NETWORK},
    {0x0000517b, "smb", PS_FS_NETWORK},  {0x01021997, "9p", PS_FS_NETWORK},
    {0x00c36400, "ceph", PS_FS_NETWORK}, {0x0bd00bd0, "lustre", PS_FS_NETWORK},
    {0x47504653, "gpfs", PS_FS_NETWORK}, {0x794c7630, "overlay", PS_FS_LAYERED},
    {0x65735546, "fuse", PS_FS_LAYERED}, {0x0000f15f, "ecryptfs", PS_FS_LAYERED},
};

int ps_host_disk(struct ps_host_disk *out, const char *dir, struct ps_error *err)
{
    struct statfs s;
    int ret;
    do
        ret = statfs(dir, &s) < 0 ? -errno : 0;
    while (ret == -EINTR);
    if (ret)
        return ps_error_full(err, ret, dir, NULL, NULL, "cannot examine the file system: %s",
                             ps_status_text(ret));
    memset(out, 0, sizeof *out);
    uint32_t magic = (uint32_t)s.f_type;
    PS_IGNORE(snprintf(out->name, sizeof out->name, "0x%08x", magic) < 0, "fits");
    out->kind = PS_FS_UNKNOWN;
    for (size_t i = 0; i < sizeof systems / sizeof systems[0]; i++)
        if (systems[i].magic == magic) {
            PS_IGNORE(snprintf(out->name, sizeof out->name, "%s", systems[i].name) < 0, "fits");
            out->kind = systems[i].kind;
        }
    uint64_t unit = s.f_frsize > 0 ? (uint64_t)s.f_frsize : (uint64_t)s.f_bsize;
    out->free_bytes = (uint64_t)s.f_bavail * unit;
    out->total_bytes = (uint64_t)s.f_blocks * unit;
    return 0;
}
