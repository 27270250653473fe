/* Static shared memory: the static variables of functions of the emulated sources.
 *
 * Design: a compiler may ignore a section attribute on a static variable of a template, so the
 * variables are found by name instead: uninitialised objects in the program's own symbol table
 * whose mangled name is that of an entity inside a function (_ZZ). The emulation itself has none.
 *
 * The same name tells the function. Before a block the variables of its kernel are poisoned and
 * those of helpers, not those of other kernels, which it cannot reach: functions that were
 * launched, or that are called ..._kernel. */
#include "tests/cuda_emu/emu_internal.h"

#include <elf.h>
#include <fcntl.h>
#include <link.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <algorithm>
#include <map>
#include <set>
#include <string>
#include <vector>

namespace emu
{

namespace
{

struct variable {
    shared_range at;
    std::string name;
    uintptr_t owner; /* address of the function, 0: not known */
};
struct tables {
    std::vector<variable> variables; /* ascending */
    std::map<std::string, uintptr_t> functions;
    std::set<uintptr_t> kernels; /* launched so far */
};
lasting<tables> all_tables;
auto &variables = all_tables.value.variables;
auto &functions = all_tables.value.functions;
auto &kernels = all_tables.value.kernels;

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
            const char *name = names + symbol->st_name;
            if (symbol->st_shndx == SHN_UNDEF || symbol->st_shndx >= e->e_shnum)
                continue;
            if (ELF64_ST_TYPE(symbol->st_info) == STT_FUNC && strncmp(name, "_Z", 2) == 0)
                functions[name] = base + symbol->st_value;
            if (ELF64_ST_TYPE(symbol->st_info) == STT_OBJECT && strncmp(name, "_ZZ", 3) == 0 &&
                sections[symbol->st_shndx].sh_type == SHT_NOBITS)
                variables.push_back(
                    {{reinterpret_cast<unsigned char *>(base + symbol->st_value), symbol->st_size},
                     name,
                     0});
        }
    }
}

/* _ZZ<function>E<variable> belongs to _Z<function>. */
uintptr_t find_owner(const std::string &name)
{
    for (size_t e = name.rfind('E'); e != std::string::npos && e > 3; e = name.rfind('E', e - 1)) {
        auto f = functions.find("_Z" + name.substr(3, e - 3));
        if (f != functions.end())
            return f->second;
    }
    return 0;
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
              [](const variable &a, const variable &b) { return a.at.begin < b.at.begin; });
    for (auto &v : variables)
        v.owner = find_owner(v.name);
}

std::vector<shared_range> shared_static_of(const void *kernel)
{
    auto address = reinterpret_cast<uintptr_t>(kernel);
    std::vector<shared_range> list;
    kernels.insert(address);
    for (const auto &v : variables)
        if (v.owner == address ||
            (!kernels.count(v.owner) && v.name.find("_kernel") == std::string::npos))
            list.push_back(v.at);
    return list;
}

bool shared_static_holds(const void *p, size_t n)
{
    auto c = static_cast<const unsigned char *>(p);
    auto after =
        std::upper_bound(variables.begin(), variables.end(), c,
                         [](const unsigned char *x, const variable &v) { return x < v.at.begin; });
    if (after == variables.begin())
        return false;
    --after;
    return c + n <= after->at.begin + after->at.bytes;
}

} // namespace emu
