/* Devices by name: see device.h. */
#include "runtime/device/device.h"

#include <string.h>

const struct ps_device_ops *ps_device_find(const char *name)
{
    static const struct ps_device_ops *const device[] = {&ps_device_cpu, &ps_device_emu};
    for (size_t i = 0; i < sizeof device / sizeof *device; i++)
        if (strcmp(device[i]->name, name) == 0)
            return device[i];
    return NULL;
}
