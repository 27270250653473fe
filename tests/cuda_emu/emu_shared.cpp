/* Static shared memory: the static variables of functions of the emulated sources.
 *
 * Design: a compiler may ignore a section attribute on a static variable of a template, so the
 * variables are found by name instead: uninitialised objects in the program's own symbol table
 * whose mangled name is that of an entity inside a function (_ZZ). The emulation itself has none.
 */
#include "tests/cuda_emu/emu_internal.h"

#include <elf.h>
#include <fcntl.h>
#include <link.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <algorithm>
#include <string>
#include <vector>

namespace emu
{

namespace
{

struct range {
    unsigned char *at;
    size_t bytes;
};
lasting<std::vector<range>> ranges; /* ascending */
std::vector<range> &variables = ranges.value;

void add_symbols(const unsigned char *file, uintptr_t base)
{
    auto e = reinterpret_cast<const Elf64_Ehdr *>(file);
    auto sections = reinterpret_cast<const Elf64_Shdr *>(file + e->e_shoff);
    for (int i = 0; i < e->e_shnum; i++) {
        if (sections[i].sh_type != SHT_SYMTAB)
            continue;
        auto symbol = reinterpret_cast<const Elf64_Sym *>(file + sections[i].sh_offset);
        auto names = reinterpret_cast<const char *>(file + sections[sections[i].sh_link].sh_offset);
        for (size_t k = 0; k < sections[i].sh_size / sizeof *symbol; k++, symbol++) {
            if (ELF64_ST_TYPE(symbol->st_info) != STT_OBJECT || symbol->st_shndx == SHN_UNDEF ||
                symbol->st_shndx >= e->e_shnum ||
                sections[symbol->st_shndx].sh_type != SHT_NOBITS ||
                strncmp(names + symbol->st_name, "_ZZ", 3) != 0)
                continue;
            variables.push_back(
                {reinterpret_cast<unsigned char *>(base + symbol->st_value), symbol->st_size});
        }
    }
}

/* The module that holds this code: the program or a shared object. */
int visit(struct dl_phdr_info *info, size_t, void *)
{
    auto here = reinterpret_cast<uintptr_t>(&visit);
    bool ours = false;
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const auto &p = info->dlpi_phdr[i];
        ours |= p.p_type == PT_LOAD && here - (info->dlpi_addr + p.p_vaddr) < p.p_memsz;
    }
    if (!ours)
        return 0;
    const char *path = info->dlpi_name && *info->dlpi_name ? info->dlpi_name : "/proc/self/exe";
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    struct stat st;
    if (fd < 0 || fstat(fd, &st) < 0)
        die("cannot read the symbol table of %s", path);
    void *file = mmap(nullptr, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    close(fd);
    if (file == MAP_FAILED)
        die("cannot map %s", path);
    add_symbols(static_cast<const unsigned char *>(file), info->dlpi_addr);
    munmap(file, (size_t)st.st_size);
    return 1;
}

} // namespace

void shared_static_find()
{
    dl_iterate_phdr(visit, nullptr);
    std::sort(variables.begin(), variables.end(),
              [](const range &a, const range &b) { return a.at < b.at; });
}

void shared_static_poison()
{
    for (const auto &v : variables)
        memset(v.at, 0xFF, v.bytes);
}

bool shared_static_holds(const void *p, size_t n)
{
    auto c = static_cast<const unsigned char *>(p);
    auto after = std::upper_bound(variables.begin(), variables.end(), c,
                                  [](const unsigned char *x, const range &v) { return x < v.at; });
    if (after == variables.begin())
        return false;
    --after;
    return c + n <= after->at + after->bytes;
}

} // namespace emu
