/* Is there a GPU, and a driver? The driver's library is looked for at run time: where it is absent,
 * which is nothing wrong, nothing else is touched. See doctor.h. */
#include "session/doctor_internal.h"

#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

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
}
