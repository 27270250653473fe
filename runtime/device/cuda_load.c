/* Loading the CUDA plug-in: see cuda_plugin.h. */
#include "runtime/device/cuda_plugin.h"

#include <dlfcn.h>
#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define PLUGIN_FILE "libpenstock_cuda.so"
#define WHY_BYTES 256
#ifndef PS_LIBDIR
#define PS_LIBDIR "/usr/local/lib"
#endif

/* The result of the one attempt of `auto`. */
static struct {
    pthread_once_t once;
    const struct ps_cuda_plugin *plugin;
    char why[WHY_BYTES];
} automatic = {.once = PTHREAD_ONCE_INIT};

/* The result of the one attempt: a loaded plug-in stays, as its context and its exit handlers do.
 */
static struct {
    pthread_once_t once;
    const struct ps_cuda_plugin *plugin;
    char why[WHY_BYTES];
} loaded = {.once = PTHREAD_ONCE_INIT};

/* dlerror() starts with the name of the library that is missing. */
static void say_load_error(char why[WHY_BYTES], const char *path, const char *text)
{
    char missing[64] = "";
    const char *colon = text ? strchr(text, ':') : NULL;
    if (colon && strstr(text, "cannot open shared object file") && (size_t)(colon - text) < 64)
        snprintf(missing, sizeof missing, "%.*s", (int)(colon - text), text);
    if (missing[0] && !strchr(missing, '/'))
        snprintf(why, WHY_BYTES, "the CUDA plug-in needs %s, which is not found", missing);
    else
        snprintf(why, WHY_BYTES, "cannot load the CUDA plug-in %.60s: %.150s", path,
                 text ? text : "unknown error");
}

static const struct ps_cuda_plugin *open_plugin(const char *path, char why[WHY_BYTES])
{
    ps_cuda_plugin_fn entry = NULL;
    void *lib = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!lib) {
        say_load_error(why, path, dlerror());
        return NULL;
    }
    *(void **)&entry = dlsym(lib, "ps_cuda_plugin");
    const struct ps_cuda_plugin *plugin = entry ? entry() : NULL;
    if (!plugin) {
        snprintf(why, WHY_BYTES, "%.180s is no CUDA plug-in of Penstock", path);
        return NULL;
    }
    if (plugin->version != PS_CUDA_PLUGIN_VERSION) {
        snprintf(why, WHY_BYTES,
                 "the CUDA plug-in %.120s is of version %d, this program needs version %d", path,
                 plugin->version, PS_CUDA_PLUGIN_VERSION);
        return NULL;
    }
    return plugin;
}

/* The plug-in's file into path: beside the program, or in the library folder. False: in neither. */
static bool find_plugin(char path[PATH_MAX])
{
    char self[PATH_MAX];
    ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    self[n > 0 ? n : 0] = '\0';
    char *slash = strrchr(self, '/');
    if (slash) {
        *slash = '\0';
        if (snprintf(path, PATH_MAX, "%s/" PLUGIN_FILE, self) < PATH_MAX && access(path, F_OK) == 0)
            return true;
    }
    snprintf(path, PATH_MAX, PS_LIBDIR "/penstock/" PLUGIN_FILE);
    return access(path, F_OK) == 0;
}

/* Asked before the plug-in is opened, which maps the 500 MB of cuBLASLt. */
static bool driver_library(char why[WHY_BYTES])
{
    void *lib = dlopen("libcuda.so.1", RTLD_LAZY | RTLD_LOCAL);
    if (lib)
        return true;
    snprintf(why, WHY_BYTES, "no NVIDIA driver: libcuda.so.1 is not found");
    return false;
}

static void load(void)
{
    char path[PATH_MAX] = "";
    const char *named = getenv("PENSTOCK_CUDA_PLUGIN");
    if (named && *named) {
        loaded.plugin = open_plugin(named, loaded.why);
        return;
    }
    if (!driver_library(loaded.why))
        return;
    if (!find_plugin(path)) {
        snprintf(loaded.why, WHY_BYTES,
                 "no CUDA plug-in: " PLUGIN_FILE " is neither beside the program nor in " PS_LIBDIR
                 "/penstock");
        return;
    }
    loaded.plugin = open_plugin(path, loaded.why);
}

const struct ps_cuda_plugin *ps_cuda_plugin_load(char why[256])
{
    pthread_once(&loaded.once, load);
    if (!loaded.plugin && why)
        memcpy(why, loaded.why, WHY_BYTES);
    return loaded.plugin;
}

static void choose(void)
{
    struct ps_cuda_info info;
    struct ps_error err = {0};
    const struct ps_cuda_plugin *p = ps_cuda_plugin_load(automatic.why);
    if (!p)
        return;
    if (p->emulated)
        snprintf(automatic.why, WHY_BYTES, "the CUDA plug-in is an emulation");
    else if (p->probe(&info, &err) < 0)
        snprintf(automatic.why, WHY_BYTES, "%.255s", err.message);
    else
        automatic.plugin = p;
}

const struct ps_cuda_plugin *ps_cuda_plugin_auto(char why[256])
{
    pthread_once(&automatic.once, choose);
    if (!automatic.plugin && why)
        memcpy(why, automatic.why, WHY_BYTES);
    return automatic.plugin;
}
