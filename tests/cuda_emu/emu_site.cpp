/* Sites of synchronisation and of fragments: which ones kernels meet, and one broken on demand.
 * Bank conflicts. */
#include "tests/cuda_emu/emu_internal.h"

#include <string.h>

namespace emu
{

namespace
{

std::mutex site_lock; /* guards all below */
const size_t SITES_MAX = 512;
ps_emu_site met[SITES_MAX];
size_t met_count;
ps_emu_site broken = {PS_EMU_BARRIER, 0, ""};
ps_emu_break broken_how = PS_EMU_WHOLE;

bool same(const char *a, const char *b)
{
    return a == b || strcmp(a, b) == 0;
}

/* Blocks run one at a time: the last sites met are known without the lock. */
struct recent {
    const char *file;
    int line;
} last[64];

} // namespace

enum ps_emu_break site(enum ps_emu_site_kind kind, const char *file, int line)
{
    recent *r = &last[(unsigned)line % 64];
    if (r->file != file || r->line != line) {
        *r = recent{file, line};
        quiet_lock lock(site_lock);
        size_t i = 0;
        while (i < met_count &&
               (met[i].line != line || met[i].kind != kind || !same(met[i].file, file)))
            i++;
        if (i == met_count && met_count < SITES_MAX)
            met[met_count++] = ps_emu_site{kind, line, file};
    }
    if (broken_how == PS_EMU_WHOLE || line != broken.line || kind != broken.kind ||
        !same(file, broken.file))
        return PS_EMU_WHOLE;
    return broken_how;
}

uint32_t bank_conflicts(const void *const row[8])
{
    uint32_t most = 0;
    for (int i = 0; i < 8; i++) {
        uint32_t ways = 0;
        for (int k = 0; k < 8; k++) {
            const uintptr_t a = reinterpret_cast<uintptr_t>(row[i]) / 16,
                            b = reinterpret_cast<uintptr_t>(row[k]) / 16;
            bool first = true; /* one address is read once, for however many lanes */
            for (int e = 0; e < k; e++)
                first = first && row[e] != row[k];
            ways += first && a % 8 == b % 8;
        }
        most = ways > most ? ways : most;
    }
    return most - 1;
}

} // namespace emu

using namespace emu;

extern "C" {

size_t ps_emu_take_sites(struct ps_emu_site *out, size_t max)
{
    quiet_lock lock(site_lock);
    size_t n = met_count < max ? met_count : max;
    for (size_t i = 0; i < n; i++)
        out[i] = met[i];
    met_count = 0;
    memset(last, 0, sizeof last);
    return n;
}

void ps_emu_break_site(const struct ps_emu_site *site, enum ps_emu_break how)
{
    quiet_lock lock(site_lock);
    broken = *site;
    broken_how = how;
}

} // extern "C"
