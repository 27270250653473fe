/* Is there a GPU, a driver, and a plug-in that can use them? The driver's library is looked for at
 * run time: where it is absent, which is nothing wrong, nothing else is touched. See doctor.h. */
#include "session/doctor_internal.h"

#include <dlfcn.h>
#include <liburing.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "runtime/device/cuda_plugin.h"

#define PIN_BYTES ((size_t)64 << 20)

/* The few functions of the driver's interface that are asked; all return 0 on success. */
struct driver {
    int (*init)(unsigned flags);
    int (*version)(int *out); /* 1000 * major + 10 * minor */
    int (*count)(int *out);
    int (*name)(char *out, int size, int device);
    int (*memory)(size_t *out, int device);
};

/* POSIX lets dlsym return functions; ISO C has no such cast. */
static bool find(void *library, const char *symbol, void *fn)
{
    void *p = dlsym(library, symbol);
    memcpy(fn, &p, sizeof p);
    return p != NULL;
}

static void check_devices(struct ps_doctor_report *r, const struct driver *d)
{
    int count = 0;
    int ret = d->init(0);
    if (ret == 0)
        ret = d->count(&count);
    if (ret != 0 || count == 0) {
        /* 100: no device; 999 and others: the driver and the kernel module disagree */
        bool none = ret == 0 || ret == 100;
        struct ps_doctor_check *c = ps__doctor_add(r, "gpu", none ? PS_DOCTOR_OK : PS_DOCTOR_WARN,
                                                   none ? "none: cpu and emu only"
                                                        : "the driver fails with error %d: cpu "
                                                          "and emu only",
                                                   ret);
        if (!none)
            ps__doctor_advise(c, "see whether `nvidia-smi` works; after an update of the driver, "
                                 "restart the machine");
        return;
    }
    char name[128] = "unknown", memory[24];
    size_t bytes = 0;
    PS_IGNORE(d->name(name, sizeof name, 0), "the name stays unknown");
    PS_IGNORE(d->memory(&bytes, 0), "0 is printed");
    name[sizeof name - 1] = '\0';
    ps__doctor_add(r, "gpu", PS_DOCTOR_OK, "%d, first: %s, %s", count, name,
                   ps__doctor_bytes(memory, sizeof memory, bytes));
}

/* Memory that the card copies from and that disk requests go to is one and the same: page-locked
 * for the one, registered for the other. Can it be both? */
static void check_pinned(struct ps_doctor_report *r, const struct ps_cuda_plugin *plugin)
{
    struct ps_error err = {0};
    struct io_uring ring;
    char bytes[24];
    void *m = mmap(NULL, PIN_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (m == MAP_FAILED) {
        ps__doctor_advise(ps__doctor_add(r, "pinned", PS_DOCTOR_WARN, "no memory to try it with"),
                          "end other programs");
        return;
    }
    int ret = plugin->pin(m, PIN_BYTES, &err);
    int made = io_uring_queue_init(2, &ring, 0);
    struct iovec piece = {.iov_base = m, .iov_len = PIN_BYTES};
    int registered = made < 0 ? made : io_uring_register_buffers(&ring, &piece, 1);
    if (made == 0)
        io_uring_queue_exit(&ring);
    if (ret == 0)
        plugin->unpin(m);
    PS_IGNORE(munmap(m, PIN_BYTES), "our own");
    const char *size = ps__doctor_bytes(bytes, sizeof bytes, PIN_BYTES);
    if (ret == 0 && registered == 0) {
        ps__doctor_add(r, "pinned", PS_DOCTOR_OK,
                       "%s page-locked and registered with io_uring: from the disk to the card "
                       "without a copy",
                       size);
    } else if (ret < 0) {
        ps__doctor_advise(ps__doctor_add(r, "pinned", PS_DOCTOR_WARN,
                                         "%s of host memory cannot be page-locked: %s", size,
                                         err.message),
                          "copies to and from the card are slower; a container or WSL limits this, "
                          "and so does memory that is short");
    } else {
        ps__doctor_advise(ps__doctor_add(r, "pinned", PS_DOCTOR_WARN,
                                         "%s page-locked, but not registered with io_uring (%s)",
                                         size, ps_status_text(registered)),
                          "disk requests cost more processor time: see memlock and io_uring");
    }
}

static void check_plugin(struct ps_doctor_report *r)
{
    char why[256], free_text[24], total[24], own[24];
    struct ps_cuda_info info;
    struct ps_error err = {0};
    const struct ps_cuda_plugin *plugin = ps_cuda_plugin_load(why);
    if (!plugin) {
        ps__doctor_add(r, "cuda", PS_DOCTOR_OK, "%s", why);
        return;
    }
    if (plugin->probe(&info, &err) < 0) {
        ps__doctor_advise(ps__doctor_add(r, "cuda", PS_DOCTOR_WARN, "%s", err.message),
                          "`--device cuda` does not run here; see whether `nvidia-smi` works");
        return;
    }
    ps__doctor_add(r, "cuda", PS_DOCTOR_OK,
                   "%s%s, compute capability %d.%d, %s of %s free, %s for CUDA itself, %d copy "
                   "engine%s",
                   info.name, plugin->emulated ? " (emulated)" : "", info.major, info.minor,
                   ps__doctor_bytes(free_text, sizeof free_text, info.free_bytes),
                   ps__doctor_bytes(total, sizeof total, info.total_bytes),
                   ps__doctor_bytes(own, sizeof own, info.reserved_bytes), info.copy_engines,
                   info.copy_engines == 1 ? ": one direction at a time" : "s");
    check_pinned(r, plugin);
}

void ps__doctor_gpu(struct ps_doctor_report *r)
{
    struct driver d;
    int version = 0;
    char module[160] = "";
    void *library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    if (!library || !find(library, "cuInit", &d.init) ||
        !find(library, "cuDriverGetVersion", &d.version) ||
        !find(library, "cuDeviceGetCount", &d.count) ||
        !find(library, "cuDeviceGetName", &d.name) ||
        !find(library, "cuDeviceTotalMem_v2", &d.memory)) {
        ps__doctor_add(r, "gpu", PS_DOCTOR_OK, "no NVIDIA driver: cpu and emu only");
        ps__doctor_add(r, "driver", PS_DOCTOR_OK, "none");
    } else {
        check_devices(r, &d);
        PS_IGNORE(d.version(&version), "0.0 is printed");
        if (!ps__doctor_line("/proc/driver/nvidia/version", module, sizeof module))
            PS_IGNORE(snprintf(module, sizeof module, "no kernel module loaded") < 0, "fits");
        ps__doctor_add(r, "driver", PS_DOCTOR_OK, "CUDA %d.%d; %s", version / 1000,
                       version % 1000 / 10, module);
    }
    if (library)
        PS_IGNORE(dlclose(library), "nothing of it is used any more");
    const char *named = getenv("PENSTOCK_CUDA_PLUGIN");
    if (library || (named && *named))
        check_plugin(r);
}
