/* The emulated device's properties, errors, settings, random numbers and the error exit. */
#include "tests/cuda_emu/emu_internal.h"

#include <stdarg.h>
#include <sys/syscall.h>

#include <atomic>

#undef warpSize

namespace emu
{

struct ps_emu_counts counts;
__thread bool in_host_function;

namespace
{

__thread cudaError_t last_error = cudaSuccess;
std::atomic<uint64_t> fail_in{0};

double number(const char *name, double otherwise)
{
    const char *text = getenv(name);
    return text && *text ? atof(text) : otherwise;
}

settings read_settings()
{
    settings s;
    s.seed = (uint32_t)number("PS_EMU_SEED", 1);
    s.hold_ms = number("PS_EMU_HOLD_MS", 20);
    s.gpu_bytes = (size_t)number("PS_EMU_GPU_MIB", 8192) << 20;
    s.context_bytes = (size_t)number("PS_EMU_CONTEXT_MIB", 256) << 20;
    s.smem_optin = (size_t)number("PS_EMU_SMEM_OPTIN", 101376);
    return s;
}

settings the_settings = read_settings();
std::atomic<uint64_t> random_state{the_settings.seed * 0x9E3779B97F4A7C15u};

} // namespace

settings &config()
{
    return the_settings;
}

/* splitmix64 */
uint32_t random_u32()
{
    uint64_t z = random_state.fetch_add(0x9E3779B97F4A7C15u) + 0x9E3779B97F4A7C15u;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return (uint32_t)(z >> 32);
}

void die(const char *format, ...)
{
    va_list list;
    va_start(list, format);
    fputs("emu: ", stderr);
    vfprintf(stderr, format, list);
    va_end(list);
    fprintf(stderr, " [kernel %s block %u,%u,%u seed %u]\n", kernel_name, blk.bid.x, blk.bid.y,
            blk.bid.z, config().seed);
    fflush(stderr);
    syscall(SYS_exit_group, 3); /* past what sanitizers do at an exit with a lock held */
    abort();
}

cudaError_t fail(cudaError_t e)
{
    last_error = e;
    return e;
}

bool injected()
{
    if (in_host_function)
        die("a CUDA call inside a host function");
    uint64_t n = fail_in.load();
    while (n && !fail_in.compare_exchange_weak(n, n - 1)) {
    }
    return n == 1;
}

} // namespace emu

using namespace emu;

extern "C" {

void ps_emu_seed(uint32_t seed)
{
    config().seed = seed;
    random_state = seed * 0x9E3779B97F4A7C15u;
}

void ps_emu_hold_ms(double ms)
{
    config().hold_ms = ms;
}

void ps_emu_get_counts(struct ps_emu_counts *out)
{
    *out = counts;
}

void ps_emu_fail_call(uint64_t n)
{
    fail_in = n;
}

int ps_emu_fail_pending(void)
{
    return fail_in.load() != 0;
}

cudaError_t cudaGetLastError(void)
{
    cudaError_t e = last_error;
    last_error = cudaSuccess;
    return e;
}

cudaError_t cudaPeekAtLastError(void)
{
    return last_error;
}

const char *cudaGetErrorName(cudaError_t e)
{
    switch (e) {
    case cudaSuccess:
        return "cudaSuccess";
    case cudaErrorInvalidValue:
        return "cudaErrorInvalidValue";
    case cudaErrorMemoryAllocation:
        return "cudaErrorMemoryAllocation";
    case cudaErrorInvalidConfiguration:
        return "cudaErrorInvalidConfiguration";
    case cudaErrorNotReady:
        return "cudaErrorNotReady";
    default:
        return "cudaErrorUnknown";
    }
}

const char *cudaGetErrorString(cudaError_t e)
{
    return e == cudaSuccess ? "no error" : "emulated CUDA error";
}

cudaError_t cudaGetDeviceCount(int *out)
{
    if (injected())
        return fail(cudaErrorUnknown);
    *out = 1;
    return cudaSuccess;
}

cudaError_t cudaSetDevice(int device)
{
    if (injected())
        return fail(cudaErrorUnknown);
    return device == 0 ? cudaSuccess : fail(cudaErrorInvalidDevice);
}

cudaError_t cudaGetDevice(int *out)
{
    *out = 0;
    return cudaSuccess;
}

cudaError_t cudaSetDeviceFlags(unsigned)
{
    return cudaSuccess;
}

cudaError_t cudaInitDevice(int device, unsigned, unsigned)
{
    return cudaSetDevice(device);
}

cudaError_t cudaDeviceReset(void)
{
    return cudaSuccess;
}

cudaError_t cudaDriverGetVersion(int *out)
{
    *out = CUDART_VERSION;
    return cudaSuccess;
}

cudaError_t cudaRuntimeGetVersion(int *out)
{
    *out = CUDART_VERSION;
    return cudaSuccess;
}

/* A card of compute capability 8.9: 99 KiB of shared memory a block. */
cudaError_t cudaDeviceGetAttribute(int *out, enum cudaDeviceAttr a, int)
{
    if (injected())
        return fail(cudaErrorUnknown);
    switch (a) {
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
        *out = (int)config().smem_optin;
        break;
    case cudaDevAttrMaxSharedMemoryPerBlock:
        *out = 48 << 10;
        break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
        *out = 100 << 10;
        break;
    case cudaDevAttrReservedSharedMemoryPerBlock:
        *out = 1024;
        break;
    case cudaDevAttrMaxThreadsPerBlock:
        *out = 1024;
        break;
    case cudaDevAttrMaxThreadsPerMultiProcessor:
        *out = 1536;
        break;
    case cudaDevAttrMultiProcessorCount:
        *out = 4;
        break;
    case cudaDevAttrWarpSize:
        *out = 32;
        break;
    case cudaDevAttrMaxGridDimX:
        *out = 0x7FFFFFFF;
        break;
    case cudaDevAttrMaxGridDimY:
    case cudaDevAttrMaxGridDimZ:
        *out = 65535;
        break;
    case cudaDevAttrComputeCapabilityMajor:
        *out = 8;
        break;
    case cudaDevAttrComputeCapabilityMinor:
        *out = 9;
        break;
    case cudaDevAttrAsyncEngineCount:
        *out = 2;
        break;
    case cudaDevAttrUnifiedAddressing:
    case cudaDevAttrCanMapHostMemory:
    case cudaDevAttrHostRegisterSupported:
    case cudaDevAttrCanUseHostPointerForRegisteredMem:
        *out = 1;
        break;
    default:
        *out = 0;
    }
    return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *p, int device)
{
    if (injected())
        return fail(cudaErrorUnknown);
    if (device != 0)
        return fail(cudaErrorInvalidDevice);
    memset(p, 0, sizeof *p);
    strcpy(p->name, "emulated device");
    p->totalGlobalMem = config().gpu_bytes;
    p->sharedMemPerBlock = 48 << 10;
    p->sharedMemPerBlockOptin = config().smem_optin;
    p->warpSize = 32;
    p->maxThreadsPerBlock = 1024;
    p->multiProcessorCount = 4;
    p->major = 8;
    p->minor = 9;
    p->asyncEngineCount = 2;
    p->unifiedAddressing = 1;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetPCIBusId(char *out, int bytes, int)
{
    snprintf(out, (size_t)bytes, "0000:00:00.0");
    return cudaSuccess;
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *out, const void *, int threads,
                                                          size_t smem)
{
    int by_threads = threads > 0 ? 1536 / threads : 0, by_smem = (int)((100 << 10) / (smem + 1024));
    *out = by_threads < by_smem ? by_threads : by_smem;
    return cudaSuccess;
}

cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *out, const void *)
{
    if (injected())
        return fail(cudaErrorUnknown);
    memset(out, 0, sizeof *out);
    out->maxThreadsPerBlock = 1024;
    return cudaSuccess;
}

} // extern "C"
