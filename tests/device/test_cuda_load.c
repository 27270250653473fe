/* The loader of the CUDA plug-in: where it looks, and its one line when there is none. It tries
 * once in a process, so each case is a child: this program again, copied where the case wants it.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <dlfcn.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "runtime/device/cuda_plugin.h"

#define CHILD "PS_TEST_CUDA_LOAD_CHILD"
#define THREADS 4

static void *load_once(void *arg)
{
    char why[256] = "";
    (void)arg;
    return (void *)ps_cuda_plugin_load(why);
}

/* Load from several threads; print "loaded" or the line. */
static int child(void)
{
    char why[256] = "", again[256] = "";
    pthread_t thread[THREADS];
    const struct ps_cuda_plugin *p[THREADS];
    for (int i = 0; i < THREADS; i++)
        if (pthread_create(&thread[i], NULL, load_once, NULL))
            return 2;
    for (int i = 0; i < THREADS; i++) {
        void *result = NULL;
        pthread_join(thread[i], &result);
        p[i] = result;
    }
    const struct ps_cuda_plugin *last = ps_cuda_plugin_load(why);
    if (ps_cuda_plugin_load(again) != last || strcmp(why, again) != 0 ||
        ps_cuda_plugin_load(NULL) != last)
        return 3;
    for (int i = 0; i < THREADS; i++)
        if (p[i] != last)
            return 4;
    printf("%s\n", last ? "loaded" : why);
    return strchr(why, '\n') ? 5 : 0;
}

/* First line of what a shell command prints; its exit status must be 0. */
static void output_of(const char *command, char *line, size_t bytes)
{
    FILE *f = popen(command, "r");
    assert_non_null(f);
    line[0] = '\0';
    if (fgets(line, (int)bytes, f))
        line[strcspn(line, "\n")] = '\0';
    int status = pclose(f);
    if (status != 0)
        fail_msg("%s: status %d, %s", command, status, line);
}

/* A copy of this program in dir, run there as a child with the variable set to named, NULL: not. */
static void load_in(const char *dir, const char *named, char *line, size_t bytes)
{
    char command[3 * PATH_MAX], self[PATH_MAX];
    ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    assert_true(n > 0);
    self[n] = '\0';
    snprintf(command, sizeof command, "mkdir -p %s && cp '%s' %s/program", dir, self, dir);
    assert_int_equal(system(command), 0);
    if (named)
        setenv("PENSTOCK_CUDA_PLUGIN", named, 1);
    else
        unsetenv("PENSTOCK_CUDA_PLUGIN");
    snprintf(command, sizeof command, CHILD "=1 %s/program 2>&1", dir);
    output_of(command, line, bytes);
    unsetenv("PENSTOCK_CUDA_PLUGIN");
}

static bool has_driver(void)
{
    return dlopen("libcuda.so.1", RTLD_LAZY | RTLD_LOCAL) != NULL;
}

/* A plug-in of one function; false when there is no compiler. */
static bool make_plugin(const char *path, const char *source)
{
    char command[2 * PATH_MAX];
    FILE *f = fopen("plugin.c", "w");
    assert_non_null(f);
    fputs(source, f);
    assert_int_equal(fclose(f), 0);
    snprintf(command, sizeof command, "cc -shared -fPIC plugin.c -o '%s' 2>cc.log", path);
    if (system("cc --version >/dev/null 2>&1") != 0) {
        print_message("skip: no C compiler\n");
        return false;
    }
    assert_int_equal(system(command), 0);
    return true;
}

#define TEXT(x) #x
#define TABLE(version)                                                                             \
    "static int t[64] = {" TEXT(version) "}; void *ps_cuda_plugin(void) { return t; }\n"
#define NUMBER(x) TEXT(x)

static void without_a_driver_it_says_so_first(void **state)
{
    char line[512];
    (void)state;
    if (has_driver()) {
        print_message("skip: there is a driver\n");
        skip();
    }
    load_in("none", NULL, line, sizeof line);
    assert_string_equal(line, "no NVIDIA driver: libcuda.so.1 is not found");
    load_in("none", "", line, sizeof line); /* empty is not set */
    assert_string_equal(line, "no NVIDIA driver: libcuda.so.1 is not found");
}

/* With a driver, or a library of its name. */
static void without_a_plugin_it_says_where_it_looked(void **state)
{
    char line[512];
    (void)state;
    if (!has_driver()) {
        assert_int_equal(mkdir("driver", 0755), 0);
        if (!make_plugin("driver/libcuda.so.1", "int nothing(void) { return 1; }\n"))
            skip();
        setenv("LD_LIBRARY_PATH", "driver", 1);
    }
    load_in("none", NULL, line, sizeof line);
    unsetenv("LD_LIBRARY_PATH");
    if (strcmp(line, "loaded") == 0) {
        print_message("skip: a plug-in is installed\n");
        skip();
    }
    assert_non_null(strstr(line, "no CUDA plug-in: libpenstock_cuda.so is neither beside"));
}

static void a_named_plugin_that_is_not_there_is_named(void **state)
{
    char line[512];
    (void)state;
    load_in("named", "./nowhere.so", line, sizeof line);
    assert_non_null(strstr(line, "cannot load the CUDA plug-in ./nowhere.so"));
}

static void a_file_that_is_no_plugin_is_refused(void **state)
{
    char line[512];
    (void)state;
    if (!make_plugin("other.so", "int f(void) { return 1; }\n"))
        skip();
    load_in("other", "./other.so", line, sizeof line);
    assert_string_equal(line, "./other.so is no CUDA plug-in of Penstock");
}

static void another_version_is_refused(void **state)
{
    char line[512];
    (void)state;
    if (!make_plugin("old.so", TABLE(77)))
        skip();
    load_in("old", "./old.so", line, sizeof line);
    assert_string_equal(line, "the CUDA plug-in ./old.so is of version 77, this program needs "
                              "version " NUMBER(PS_CUDA_PLUGIN_VERSION));
}

static void a_missing_library_of_the_plugin_is_named(void **state)
{
    char line[512];
    (void)state;
    if (!make_plugin("libgone.so", "int gone(void) { return 1; }\n") ||
        !make_plugin("needs.so", "int gone(void); void *ps_cuda_plugin(void) { return gone() ? "
                                 "(void *)0 : (void *)0; }\n"))
        skip();
    assert_int_equal(system("cc -shared -fPIC plugin.c -o needs.so -L. -lgone && rm libgone.so"),
                     0);
    load_in("needs", "./needs.so", line, sizeof line);
    assert_string_equal(line, "the CUDA plug-in needs libgone.so, which is not found");
}

static void a_plugin_of_this_version_is_loaded_once_for_all_threads(void **state)
{
    char line[512];
    (void)state;
    if (!make_plugin("good.so", TABLE(PS_CUDA_PLUGIN_VERSION)))
        skip();
    load_in("good", "./good.so", line, sizeof line);
    assert_string_equal(line, "loaded");
}

static void beside_the_program_it_is_found_and_the_driver_is_asked_for(void **state)
{
    char line[512];
    (void)state;
    assert_int_equal(mkdir("beside", 0755), 0);
    if (!make_plugin("beside/libpenstock_cuda.so", TABLE(PS_CUDA_PLUGIN_VERSION)))
        skip();
    load_in("beside", NULL, line, sizeof line);
    assert_string_equal(line,
                        has_driver() ? "loaded" : "no NVIDIA driver: libcuda.so.1 is not found");
}

int main(void)
{
    if (getenv(CHILD))
        return child();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(without_a_driver_it_says_so_first),
        cmocka_unit_test(without_a_plugin_it_says_where_it_looked),
        cmocka_unit_test(a_named_plugin_that_is_not_there_is_named),
        cmocka_unit_test(a_file_that_is_no_plugin_is_refused),
        cmocka_unit_test(another_version_is_refused),
        cmocka_unit_test(a_missing_library_of_the_plugin_is_named),
        cmocka_unit_test(a_plugin_of_this_version_is_loaded_once_for_all_threads),
        cmocka_unit_test(beside_the_program_it_is_found_and_the_driver_is_asked_for),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
