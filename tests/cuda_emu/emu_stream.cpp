/* Streams as threads, events, waiting; launches.
 *
 * Design: an operation is held back until something that depends on it demands it, or for a random
 * time: the latest order that the program permits, so that a forgotten event shows. An event is a
 * stream and the number of its last operation at the time of the record; a wait takes that state
 * when it is called. */
#include "tests/cuda_emu/emu_internal.h"

#include <algorithm>
#include <chrono>
#include <deque>
#include <map>
#include <memory>
#include <thread>
#include <vector>

using namespace emu;

namespace
{

const uint32_t TOKENS = 2048; /* addresses that order operations for ThreadSanitizer */

struct operation {
    std::function<void()> run; /* or nothing: a wait */
    struct CUstream_st *after; /* a wait for operation after_seq of this stream */
    uint64_t after_seq;
};

} // namespace

struct CUstream_st {
    std::thread thread;
    std::condition_variable *work = nullptr; /* something was queued or demanded */
    std::deque<operation> queue;
    uint64_t queued = 0, done = 0, demand = 0; /* numbers of operations, from 1 */
    bool quit = false;
    char done_token[TOKENS], queued_token[TOKENS];
};

struct CUevent_st {
    CUstream_st *stream = nullptr;
    uint64_t seq = 0;
    bool timing = false;
    std::shared_ptr<double> at_ms;
};

namespace
{

std::mutex stream_lock; /* guards all streams and events */
struct tables {
    std::condition_variable progress;
    /* Not inside the streams, whose memory ThreadSanitizer would see made without any order. */
    std::condition_variable work_of[64];
    std::vector<CUstream_st *> streams, retired;
    std::map<const void *, size_t> dynamic_max; /* cudaFuncSetAttribute */
};
lasting<tables> all_tables;
auto &progress = all_tables.value.progress;
auto &work_of = all_tables.value.work_of;
auto &streams = all_tables.value.streams, &retired = all_tables.value.retired;
auto &dynamic_max = all_tables.value.dynamic_max;

void demand(CUstream_st *s, uint64_t seq)
{
    if (seq <= s->demand)
        return;
    s->demand = seq;
    s->work->notify_all();
}

void wait_locked(quiet_lock &l, CUstream_st *s, uint64_t seq)
{
    demand(s, seq);
    progress.wait(l.lock, [&] { return s->done >= seq; });
}

/* Take the next operation when it may run. False: the stream ends. */
bool take(CUstream_st *s, operation *op)
{
    quiet_lock l(stream_lock);
    s->work->wait(l.lock, [&] { return !s->queue.empty() || s->quit; });
    if (s->queue.empty())
        return false;
    uint64_t seq = s->done + 1;
    l.order(tsan_acquire, &s->queued_token[seq % TOKENS]);
    *op = std::move(s->queue.front());
    s->queue.pop_front();
    double ms = config().hold_ms * (random_u32() >> 8) * 0x1p-24;
    if (ms > 0)
        s->work->wait_for(l.lock, std::chrono::microseconds((long)(ms * 1000)),
                          [&] { return s->demand >= seq; });
    if (op->after)
        wait_locked(l, op->after, op->after_seq);
    return true;
}

void run_stream(CUstream_st *s)
{
    operation op;
    while (take(s, &op)) {
        if (op.after)
            tsan_acquire(&op.after->done_token[op.after_seq % TOKENS]);
        if (op.run)
            op.run();
        op.run = nullptr;
        tsan_release(&s->done_token[(s->done + 1) % TOKENS]);
        quiet_lock l(stream_lock);
        s->done++;
        progress.notify_all();
    }
}

uint64_t push(void *stream, operation op)
{
    auto s = static_cast<CUstream_st *>(stream);
    if (!s || s == cudaStreamLegacy || s == cudaStreamPerThread)
        die("the default stream is used");
    quiet_lock l(stream_lock);
    if (std::find(streams.begin(), streams.end(), s) == streams.end())
        die("a stream is used that does not exist");
    s->queue.push_back(std::move(op));
    s->queued++;
    l.order(tsan_release, &s->queued_token[s->queued % TOKENS]);
    s->work->notify_all();
    return s->queued;
}

double now_ms()
{
    using namespace std::chrono;
    return duration<double, std::milli>(steady_clock::now().time_since_epoch()).count();
}

} // namespace

namespace emu
{

uint64_t enqueue(void *stream, std::function<void()> op)
{
    return push(stream, operation{std::move(op), nullptr, 0});
}

void wait_stream(void *stream, uint64_t seq)
{
    auto s = static_cast<CUstream_st *>(stream);
    {
        quiet_lock l(stream_lock);
        wait_locked(l, s, seq);
    }
    if (seq)
        tsan_acquire(&s->done_token[seq % TOKENS]);
}

void wait_device()
{
    count(&counts.device_syncs);
    std::vector<std::pair<CUstream_st *, uint64_t>> all;
    {
        quiet_lock l(stream_lock);
        for (auto s : streams)
            all.push_back({s, s->queued});
    }
    for (size_t i = 0; i < all.size(); i++) {
        std::swap(all[i], all[i + random_u32() % (all.size() - i)]);
        wait_stream(all[i].first, all[i].second);
    }
}

cudaError_t launch(const char *name, const void *kernel, dim3 grid, dim3 block, size_t smem,
                   void *stream, std::function<void()> body)
{
    if (injected())
        return fail(cudaErrorUnknown);
    count(&counts.launches);
    size_t smem_max = 48 << 10;
    {
        quiet_lock l(stream_lock);
        auto i = dynamic_max.find(kernel);
        if (i != dynamic_max.end())
            smem_max = i->second;
    }
    uint64_t threads = (uint64_t)block.x * block.y * block.z;
    if (threads == 0 || threads > 1024 || block.z > 64 || grid.x == 0 || grid.y == 0 ||
        grid.z == 0 || grid.x > 0x7FFFFFFF || grid.y > 65535 || grid.z > 65535 || smem > smem_max)
        return fail(cudaErrorInvalidConfiguration);
    enqueue(stream, [=] { run_grid(name, kernel, grid, block, smem, body); });
    return cudaSuccess;
}

} // namespace emu

extern "C" {

cudaError_t cudaFuncSetAttribute(const void *kernel, enum cudaFuncAttribute a, int value)
{
    if (injected())
        return fail(cudaErrorUnknown);
    if (a != cudaFuncAttributeMaxDynamicSharedMemorySize)
        return cudaSuccess;
    if (value < 0 || (size_t)value > config().smem_optin)
        return fail(cudaErrorInvalidValue);
    quiet_lock l(stream_lock);
    dynamic_max[kernel] = (size_t)value;
    return cudaSuccess;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *out, unsigned flags)
{
    if (injected())
        return fail(cudaErrorUnknown);
    if (flags != cudaStreamNonBlocking)
        die("a stream without cudaStreamNonBlocking waits for the default stream");
    auto s = new CUstream_st;
    {
        quiet_lock l(stream_lock);
        s->work = &work_of[(streams.size() + retired.size()) % 64];
        streams.push_back(s);
    }
    s->thread = std::thread(run_stream, s); /* its start orders what it is given */
    *out = s;
    return cudaSuccess;
}

cudaError_t cudaStreamCreateWithPriority(cudaStream_t *out, unsigned flags, int)
{
    return cudaStreamCreateWithFlags(out, flags);
}

cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest)
{
    *least = 0;
    *greatest = -5;
    return cudaSuccess;
}

static uint64_t queued(cudaStream_t s)
{
    quiet_lock l(stream_lock);
    return s->queued;
}

cudaError_t cudaStreamSynchronize(cudaStream_t s)
{
    if (injected())
        return fail(cudaErrorUnknown);
    if (!s)
        die("the default stream is used");
    wait_stream(s, queued(s));
    return cudaSuccess;
}

cudaError_t cudaStreamQuery(cudaStream_t s)
{
    if (injected())
        return fail(cudaErrorUnknown);
    quiet_lock l(stream_lock);
    demand(s, s->queued);
    if (s->done < s->queued)
        return cudaErrorNotReady;
    if (s->done)
        l.order(tsan_acquire, &s->done_token[s->done % TOKENS]);
    return cudaSuccess;
}

/* The object stays, as events may name it. */
cudaError_t cudaStreamDestroy(cudaStream_t s)
{
    if (injected())
        return fail(cudaErrorUnknown);
    wait_stream(s, queued(s));
    {
        quiet_lock l(stream_lock);
        s->quit = true;
        s->work->notify_all();
        streams.erase(std::find(streams.begin(), streams.end(), s));
        retired.push_back(s);
    }
    s->thread.join();
    return cudaSuccess;
}

cudaError_t cudaDeviceSynchronize(void)
{
    if (injected())
        return fail(cudaErrorUnknown);
    wait_device();
    return cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *out, unsigned flags)
{
    if (injected())
        return fail(cudaErrorUnknown);
    *out = new CUevent_st;
    (*out)->timing = !(flags & cudaEventDisableTiming);
    return cudaSuccess;
}

cudaError_t cudaEventCreate(cudaEvent_t *out)
{
    return cudaEventCreateWithFlags(out, 0);
}

cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s)
{
    if (injected())
        return fail(cudaErrorUnknown);
    if (!s)
        die("the default stream is used");
    std::shared_ptr<double> at;
    if (e->timing) {
        at = std::make_shared<double>(0.0);
        enqueue(s, [at] { *at = now_ms(); });
    }
    quiet_lock l(stream_lock);
    e->stream = s;
    e->seq = s->queued;
    e->at_ms = at;
    return cudaSuccess;
}

cudaError_t cudaEventRecordWithFlags(cudaEvent_t e, cudaStream_t s, unsigned)
{
    return cudaEventRecord(e, s);
}

cudaError_t cudaEventQuery(cudaEvent_t e)
{
    if (injected())
        return fail(cudaErrorUnknown);
    quiet_lock l(stream_lock);
    if (!e->stream)
        return cudaSuccess;
    demand(e->stream, e->seq);
    if (e->stream->done < e->seq)
        return cudaErrorNotReady;
    if (e->seq)
        l.order(tsan_acquire, &e->stream->done_token[e->seq % TOKENS]);
    return cudaSuccess;
}

cudaError_t cudaEventSynchronize(cudaEvent_t e)
{
    if (injected())
        return fail(cudaErrorUnknown);
    CUstream_st *s;
    uint64_t seq;
    {
        quiet_lock l(stream_lock);
        s = e->stream;
        seq = e->seq;
    }
    if (s)
        wait_stream(s, seq);
    return cudaSuccess;
}

cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t first, cudaEvent_t last)
{
    quiet_lock l(stream_lock);
    if (!first->at_ms || !last->at_ms)
        return fail(cudaErrorInvalidResourceHandle);
    if (first->stream->done < first->seq || last->stream->done < last->seq)
        return cudaErrorNotReady;
    *ms = (float)(*last->at_ms - *first->at_ms);
    return cudaSuccess;
}

cudaError_t cudaEventDestroy(cudaEvent_t e)
{
    delete e;
    return cudaSuccess;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t e, unsigned)
{
    if (injected())
        return fail(cudaErrorUnknown);
    CUstream_st *after;
    uint64_t seq;
    {
        quiet_lock l(stream_lock);
        after = e->stream;
        seq = e->seq;
    }
    if (after && seq)
        push(s, operation{nullptr, after, seq});
    return cudaSuccess;
}

cudaError_t cudaLaunchHostFunc(cudaStream_t s, cudaHostFn_t fn, void *arg)
{
    if (injected())
        return fail(cudaErrorUnknown);
    enqueue(s, [=] {
        in_host_function = true;
        fn(arg);
        in_host_function = false;
    });
    return cudaSuccess;
}

} // extern "C"
