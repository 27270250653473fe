/* Print one value of a JSON document, for shell tests.
 *
 *   json_get FILE|- PATH        PATH is keys and array indices with dots, "" is the whole:
 * cases.0.ids json_get --last FILE|- PATH the same in the last line of a JSON-lines file
 *
 * Strings are printed as they are, numbers with all digits, arrays of scalars separated by spaces,
 * everything else as JSON; "#" as the last part of a path is the length of an array or object. Exit
 * 1 if there is no such value, 2 if the document is not JSON. */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static char *read_all(const char *path)
{
    FILE *f = strcmp(path, "-") == 0 ? stdin : fopen(path, "rb");
    if (f == NULL) {
        perror(path);
        exit(2);
    }
    size_t len = 0, cap = 1 << 16;
    char *text = malloc(cap);
    size_t got;
    while (text != NULL && (got = fread(text + len, 1, cap - len - 1, f)) > 0) {
        len += got;
        if (len + 1 == cap)
            text = realloc(text, cap *= 2);
    }
    if (text == NULL)
        exit(2);
    text[len] = '\0';
    if (f != stdin)
        fclose(f);
    return text;
}

static char *last_line(char *text)
{
    size_t len = strlen(text);
    while (len > 0 && text[len - 1] == '\n')
        text[--len] = '\0';
    char *nl = strrchr(text, '\n');
    return nl == NULL ? text : nl + 1;
}

static void print_scalar(const json_t *v)
{
    if (json_is_string(v))
        fputs(json_string_value(v), stdout);
    else if (json_is_integer(v))
        printf("%lld", (long long)json_integer_value(v));
    else if (json_is_real(v))
        printf("%.17g", json_real_value(v));
    else
        json_dumpf(v, stdout, JSON_ENCODE_ANY | JSON_COMPACT);
}

static void print_value(const json_t *v)
{
    if (json_is_array(v)) {
        for (size_t i = 0; i < json_array_size(v); i++) {
            if (i > 0)
                putchar(' ');
            print_scalar(json_array_get(v, i));
        }
    } else {
        print_scalar(v);
    }
    putchar('\n');
}

int main(int argc, char **argv)
{
    int last = argc > 1 && strcmp(argv[1], "--last") == 0;
    if (argc - last != 3) {
        fprintf(stderr, "usage: json_get [--last] FILE|- PATH\n");
        return 2;
    }
    char *text = read_all(argv[1 + last]);
    json_error_t err;
    json_t *root = json_loads(last ? last_line(text) : text, JSON_DECODE_ANY, &err);
    if (root == NULL) {
        fprintf(stderr, "json_get: %s:%d: %s\n", argv[1 + last], err.line, err.text);
        return 2;
    }
    const json_t *v = root;
    for (char *part = strtok(argv[2 + last], "."); part != NULL; part = strtok(NULL, ".")) {
        if (strcmp(part, "#") == 0) {
            printf("%zu\n", json_is_array(v) ? json_array_size(v) : json_object_size(v));
            json_decref(root);
            free(text);
            return 0;
        }
        v = json_is_array(v) ? json_array_get(v, (size_t)strtoul(part, NULL, 10))
                             : json_object_get(v, part);
        if (v == NULL) {
            fprintf(stderr, "json_get: no %s\n", part);
            return 1;
        }
    }
    print_value(v);
    json_decref(root);
    free(text);
    return 0;
}
