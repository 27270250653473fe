/* Warps: shuffles, votes, ldmatrix, mma, and each thread's cp.async copies. */
#include "tests/cuda_emu/emu_internal.h"

namespace emu
{

namespace
{

float bf16_half(uint32_t r, int high)
{
    uint32_t u = high ? r & 0xffff0000u : r << 16;
    float x;
    memcpy(&x, &u, sizeof x);
    return x;
}

typedef float row8 __attribute__((vector_size(32)));

/* The layouts of the PTX ISA, Matrix Fragments for mma.m16n8k16 with floating point type;
 * test_fragment_layout.c holds them against that text. */
void compute_mma(warp *w)
{
    float a[16][16];
    row8 b[16], d[16];
    for (int l = 0; l < 32; l++) {
        const warp_lane &p = w->lane[l];
        const int g = l / 4, t = l % 4;
        for (int i = 0; i < 4; i++) {
            float *to = &a[g + (i & 1) * 8][t * 2 + (i >> 1) * 8];
            to[0] = bf16_half(p.a[i], 0);
            to[1] = bf16_half(p.a[i], 1);
            d[g + (i >> 1) * 8][t * 2 + (i & 1)] = p.d[i];
        }
        for (int i = 0; i < 2; i++) {
            b[t * 2 + i * 8][g] = bf16_half(p.b[i], 0);
            b[t * 2 + i * 8 + 1][g] = bf16_half(p.b[i], 1);
        }
    }
    for (int i = 0; i < 16; i++) {
        row8 sum = d[i];
        for (int k = 0; k < 16; k++)
            sum += a[i][k] * b[k];
        d[i] = sum;
    }
    for (int l = 0; l < 32; l++) {
        const int g = l / 4, t = l % 4;
        for (int i = 0; i < 4; i++)
            w->lane[l].d[i] = d[g + (i >> 1) * 8][t * 2 + (i & 1)];
    }
}

void compute_ldmatrix(warp *w, bool trans)
{
    for (int i = 0; i < 4; i++) {
        const void *row[8];
        for (int k = 0; k < 8; k++)
            row[k] = w->lane[i * 8 + k].row_at;
        count(&counts.ldmatrix_phases);
        count(&counts.bank_conflicts, bank_conflicts(row));
    }
    for (int l = 0; l < 32; l++)
        for (int i = 0; i < 4; i++) {
            if (!trans) {
                w->lane[l].r[i] = w->lane[i * 8 + l / 4].row[l % 4];
                continue;
            }
            uint16_t h[2];
            for (int e = 0; e < 2; e++)
                memcpy(&h[e],
                       reinterpret_cast<const char *>(w->lane[i * 8 + l % 4 * 2 + e].row) +
                           l / 4 * 2,
                       2);
            w->lane[l].r[i] = h[0] | (uint32_t)h[1] << 16;
        }
}

/* The source lane of lane l; an end of the group keeps its own value. */
int shuffle_source(const warp_lane &p, int l, warp_kind kind)
{
    int group = l & ~(p.width - 1), at = l & (p.width - 1), from;
    switch (kind) {
    case SHFL_IDX:
        from = p.arg & (p.width - 1);
        break;
    case SHFL_UP:
        from = at - p.arg;
        break;
    case SHFL_DOWN:
        from = at + p.arg;
        break;
    default:
        from = at ^ p.arg;
        break;
    }
    return from < 0 || from >= p.width ? l : group + from;
}

void complete(warp *w, const warp_slot *slot)
{
    uint32_t ballot = 0;
    switch (slot->kind) {
    case WARP_SYNC:
        return;
    case WARP_MMA:
        compute_mma(w);
        return;
    case WARP_LDMATRIX:
    case WARP_LDMATRIX_TRANS:
        compute_ldmatrix(w, slot->kind == WARP_LDMATRIX_TRANS);
        return;
    case WARP_VOTE:
        for (int l = 0; l < 32; l++)
            if (slot->mask >> l & 1)
                ballot |= (uint32_t)(w->lane[l].pred != 0) << l;
        for (int l = 0; l < 32; l++)
            w->lane[l].out = slot->mask >> l & 1 ? ballot : w->lane[l].out;
        return;
    default:
        for (int l = 0; l < 32; l++)
            if (slot->mask >> l & 1) {
                int from = shuffle_source(w->lane[l], l, slot->kind);
                if (!(slot->mask >> from & 1))
                    die("shuffle reads lane %d, which is not in mask %08x, %s:%d", from, slot->mask,
                        slot->file, slot->line);
                w->lane[l].out = w->lane[from].in;
            }
    }
}

/* The pending operation that shares lanes with `mask`, or a free slot. */
warp_slot *find_slot(warp *w, uint32_t mask, warp_kind kind, const char *file, int line)
{
    warp_slot *free_slot = nullptr;
    for (auto &x : w->slot) {
        if (!x.arrived) {
            free_slot = &x;
            continue;
        }
        if (!(x.mask & mask))
            continue;
        if (x.mask != mask || x.kind != kind || x.line != line ||
            (x.file != file && strcmp(x.file, file) != 0))
            die("divergent warp operation: %s:%d mask %08x against %s:%d mask %08x", file, line,
                mask, x.file, x.line, x.mask);
        return &x;
    }
    if (!free_slot)
        die("more than four parts of a warp wait at once, %s:%d", file, line);
    *free_slot = warp_slot{mask, 0, kind, line, file};
    return free_slot;
}

/* Meet the other lanes of the mask; the last one computes for all. */
void meet(uint32_t mask, warp_kind kind, const char *file, int line)
{
    fiber *f = self();
    warp *w = &now.warps[f->warp];
    f->file = file;
    f->line = line;
    if (!(mask >> f->lane & 1))
        die("lane %u is not in its own mask %08x, %s:%d", f->lane, mask, file, line);
    if (kind >= WARP_LDMATRIX && w->lanes != ~0u)
        die("mma or ldmatrix in a partial warp, %s:%d", file, line);
    mask &= w->lanes;
    warp_slot *slot = find_slot(w, mask, kind, file, line);
    slot->arrived |= 1u << f->lane;
    char *order = &w->sync[w->generation & 1];
    if (kind == WARP_SYNC)
        tsan_release(order); /* nothing else orders memory */
    if (slot->arrived == mask) {
        slot->arrived = 0;
        if (kind == WARP_SYNC)
            w->generation++;
        complete(w, slot);
        for (uint32_t m = mask; m; m &= m - 1)
            make_ready(f->warp * 32 + (uint32_t)__builtin_ctz(m));
    } else {
        f->state = FIBER_IN_WARP;
    }
    yield_fiber();
    if (kind == WARP_SYNC)
        tsan_acquire(order);
}

warp_lane *my_lane()
{
    return &now.warps[self()->warp].lane[self()->lane];
}

} // namespace

void warp_sync(uint32_t mask, const char *file, int line)
{
    if (site(PS_EMU_SYNCWARP, file, line) == PS_EMU_WHOLE)
        meet(mask, WARP_SYNC, file, line);
}

uint64_t warp_shuffle(uint32_t mask, uint64_t v, warp_kind kind, int arg, int width,
                      const char *file, int line)
{
    warp_lane *p = my_lane();
    if (width < 1 || width > 32 || (width & (width - 1)))
        die("shuffle of width %d, %s:%d", width, file, line);
    p->in = v;
    p->arg = arg;
    p->width = width;
    meet(mask, kind, file, line);
    return p->out;
}

uint32_t warp_ballot(uint32_t mask, int pred, const char *file, int line)
{
    warp_lane *p = my_lane();
    p->pred = pred;
    meet(mask, WARP_VOTE, file, line);
    return (uint32_t)p->out;
}

void ldmatrix4(uint32_t r[4], const void *shared, bool trans, const char *file, int line)
{
    warp_lane *p = my_lane();
    check_shared(shared, 16, "ldmatrix", file, line);
    tsan_read(shared, 16);
    memcpy(p->row, shared, 16);
    p->row_at = shared;
    p->r = r;
    meet(~0u, trans ? WARP_LDMATRIX_TRANS : WARP_LDMATRIX, file, line);
    if (site(PS_EMU_LDMATRIX, file, line) != PS_EMU_WHOLE)
        std::swap(r[1], r[2]);
}

void mma_bf16(float d[4], const uint32_t a[4], uint32_t b0, uint32_t b1, const char *file, int line)
{
    warp_lane *p = my_lane();
    p->d = d;
    p->a = a;
    const bool whole = site(PS_EMU_MMA, file, line) == PS_EMU_WHOLE;
    p->b[0] = whole ? b0 : b1;
    p->b[1] = whole ? b1 : b0;
    meet(~0u, WARP_MMA, file, line);
}

/* ---- cp.async ---- */

void copies_reset(copy_queue *q)
{
    q->first = q->count = q->group_first = q->group_count = 0;
}

uint32_t copies_left(const copy_queue *q)
{
    return q->count - q->first;
}

void cp_async16(void *shared, const void *global, int bytes, const char *file, int line)
{
    copy_queue *q = &self()->copies;
    check_shared(shared, 16, "cp.async", file, line);
    if (reinterpret_cast<uintptr_t>(global) & 15)
        die("cp.async: global address is not 16-byte aligned, %s:%d", file, line);
    if (bytes < 0 || bytes > 16)
        die("cp.async of %d bytes, %s:%d", bytes, file, line);
    tsan_write(shared, 16);
    memset(shared, 0xFF, 16); /* undefined until waited for: a reader that is too early loses */
    if (q->count == q->capacity) {
        q->capacity = q->capacity ? 2 * q->capacity : 64;
        q->copy = static_cast<pending_copy *>(realloc(q->copy, q->capacity * sizeof(pending_copy)));
        if (!q->copy)
            die("no memory for a copy");
    }
    q->copy[q->count++] = pending_copy{shared, global, bytes};
}

void cp_commit()
{
    copy_queue *q = &self()->copies;
    if (q->group_count == EMU_GROUPS_MAX)
        die("more than %d groups of cp.async under way", EMU_GROUPS_MAX);
    q->end[(q->group_first + q->group_count++) % EMU_GROUPS_MAX] = q->count;
}

void cp_wait(int n, const char *file, int line)
{
    copy_queue *q = &self()->copies;
    const enum ps_emu_break how = site(PS_EMU_COPY_WAIT, file, line);
    if (how == PS_EMU_BROKEN)
        return;
    n += how == PS_EMU_ONE_GROUP_FEWER;
    while ((int)q->group_count > n) {
        uint32_t end = q->end[q->group_first % EMU_GROUPS_MAX];
        q->group_first++;
        q->group_count--;
        for (; q->first < end; q->first++) {
            const pending_copy &c = q->copy[q->first];
            tsan_read(c.from, (size_t)c.bytes);
            tsan_write(c.to, 16);
            memset(c.to, 0, 16);
            memcpy(c.to, c.from, (size_t)c.bytes);
        }
    }
    if (q->first == q->count && q->group_count == 0)
        copies_reset(q);
}

void trap(const char *file, int line)
{
    die("trap at %s:%d", file, line);
}

} // namespace emu
