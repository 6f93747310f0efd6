/* SPDX-License-Identifier: Apache-2.0 */
#include <string.h>

#include "bench/job.h"
#include "launch/info.h"

static const lode_option_t info_options[] = {
    {"json", "no", LODE_OPTION_FLAG, NULL, 0, 0, "print one JSON object"},
    {"config", "no", LODE_OPTION_FLAG, NULL, 0, 0,
     "print only the configuration: every option, its value and variable"},
    {"help", "no", LODE_OPTION_FLAG, NULL, 0, 0, "print this"},
    {NULL},
};

static json_t *config_json(lode_config_h config)
{
    json_t *object = json_object();
    for (const lode_option_t *row = lode_library_options; row->name; row++)
        json_object_set_new(object, row->name, json_string(lode_config_get(config, row->name)));
    return object;
}

/* "  key   value" for texts and numbers, lists in one line, objects with a further indent. */
static void print_value(const char *key, const json_t *value, int indent)
{
    const char *name;
    json_t *part;
    size_t i;
    printf("%*s%-*s", indent, "", 22 - indent, key);
    if (json_is_object(value)) {
        printf("\n");
        json_object_foreach((json_t *)(uintptr_t)value, name, part) print_value(name, part, indent + 2);
        return;
    }
    if (json_is_string(value))
        printf(" %s", json_string_value(value));
    else if (json_is_boolean(value))
        printf(" %s", json_is_true(value) ? "yes" : "no");
    else if (json_is_integer(value))
        printf(" %lld", (long long)json_integer_value(value));
    else
        json_array_foreach(value, i, part) printf(" %s", json_string_value(part));
    printf("\n");
}

static void print_backends(const json_t *backends)
{
    json_t *backend;
    size_t i;
    printf("backends\n");
    json_array_foreach(backends, i, backend)
    {
        bool compiled = json_is_true(json_object_get(backend, "compiled"));
        printf("  %-20s %s\n", json_string_value(json_object_get(backend, "name")),
               !compiled                                          ? "not compiled in"
               : json_is_true(json_object_get(backend, "usable")) ? "compiled, usable"
                                                                  : "compiled, not usable on this machine");
    }
}

/* "  cuda 0   name (compute 9.0), 132 processors, 139.8 GiB, 138.9 free, 0000:17:00.0", or why there is none. */
static void print_devices(const json_t *devices)
{
    json_t *device;
    size_t i;
    printf("devices\n");
    json_array_foreach(devices, i, device)
    {
        const char *backend, *name = NULL, *compute, *bus, *why_not = NULL;
        int ordinal = -1, processors;
        json_int_t bytes, left;
        char key[32];
        json_unpack(device, "{s:s s?s s?i}", "backend", &backend, "why_not", &why_not, "ordinal", &ordinal);
        snprintf(key, sizeof key, ordinal < 0 ? "%s" : "%s %d", backend, ordinal);
        printf("  %-20s", key);
        if (json_unpack(device, "{s:s s:s s:i s:I s:I s:s}", "name", &name, "compute", &compute, "processors",
                        &processors, "memory_bytes", &bytes, "free_bytes", &left, "bus", &bus) == 0)
            printf(" %s (compute %s), %d processors, %.1f GiB, %.1f free, %s", name, compute, processors,
                   (double)bytes * 0x1p-30, (double)left * 0x1p-30, bus);
        if (why_not)
            printf("%s %s", name ? "; not usable:" : "", why_not);
        printf("\n");
    }
}

static void print_text(const json_t *info, lode_config_h config)
{
    static const char *const parts[] = {"build", "ucx", "nccl", "onednn", "mpi", "machine", "memory"};
    printf("lodemark %s\n", lode_version());
    print_backends(json_object_get(info, "backends"));
    print_devices(json_object_get(info, "devices"));
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        print_value(parts[i], json_object_get(info, parts[i]), 0);
    printf("configuration\n");
    lode_config_print(config, stdout);
}

static json_t *gather(lode_config_h config)
{
    return json_pack("{s:s s:o s:o s:o s:o s:o s:o s:o s:o s:o s:o}", "version", lode_version(), "build",
                     lode_info_build(), "backends", lode_info_backends(), "devices", lode_info_devices(), "ucx",
                     lode_info_ucx(), "nccl", lode_info_nccl(), "onednn", lode_info_onednn(), "mpi", lode_info_mpi(),
                     "machine", lode_info_machine(), "memory", lode_info_memory(), "config", config_json(config));
}

static lode_status_t show(const lode_options_t *options)
{
    lode_config_h config;
    LODE_TRY(lode_config_create(&config));
    if (lode_options_flag(options, "config") && !lode_options_flag(options, "json")) {
        lode_config_print(config, stdout);
        lode_config_destroy(&config);
        return LODE_OK;
    }
    json_t *info = gather(config);
    if (info && lode_options_flag(options, "json")) {
        json_dumpf(lode_options_flag(options, "config") ? json_object_get(info, "config") : info, stdout,
                   JSON_INDENT(2));
        printf("\n");
    } else if (info) {
        print_text(info, config);
    }
    lode_config_destroy(&config);
    lode_status_t status = info ? LODE_OK : lode_fail(LODE_ERR_NO_MEMORY, "no memory for what is known");
    json_decref(info);
    return status;
}

int lode_command_info(int argc, char **argv)
{
    lode_options_t options;
    int rest, code = LODE_EXIT_OK;
    if (lode_options_create(info_options, &options) != LODE_OK)
        return lode_job_refuse(LODE_EXIT_FAILED, "%s", lode_error_message());
    if (lode_options_parse(&options, argc, argv, &rest) != LODE_OK) {
        code = lode_job_refuse(LODE_EXIT_USAGE, "%s", lode_error_message());
    } else if (rest < argc) {
        code =
            lode_job_refuse(LODE_EXIT_USAGE, "\"%s\": info takes options only; see lodemark info --help", argv[rest]);
    } else if (lode_job_rank_hint() == 0) { /* under mpirun one rank speaks for its own node */
        if (lode_options_flag(&options, "help")) {
            printf("lodemark info [OPTIONS]\n\nWhat this build and this machine can do. Needs no mpirun.\n\n");
            lode_options_help(info_options, stdout);
        } else if (show(&options) != LODE_OK) {
            fprintf(stderr, "lodemark: %s\n", lode_error_message());
            code = LODE_EXIT_FAILED;
        }
    }
    lode_options_destroy(&options);
    return code;
}
