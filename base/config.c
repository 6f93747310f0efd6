/* SPDX-License-Identifier: Apache-2.0 */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/config.h"

struct lode_config {
    lode_options_t options;
};

#define KIB UINT64_C(1024)
#define MIB (1024 * KIB)
#define GIB (1024 * MIB)

const lode_option_t lode_library_options[] = {
    {"log", "warn", LODE_OPTION_CHOICE, "off|error|warn|info|debug|trace", 0, 0,
     "least urgent lines to print on stderr"},
    {"arena", "1GiB", LODE_OPTION_BYTES, NULL, 64 * KIB, 0, "host memory for pages that this rank owns"},
    {"replicas", "1", LODE_OPTION_COUNT, NULL, 1, LODE_REPLICAS_MAX, "owners a page, each in another failure domain"},
    {"landmarks", "64GiB", LODE_OPTION_BYTES, NULL, MIB, 0,
     "most memory for landmarks on a node, taken only as blocks grow"},
    {"blocks", "4096", LODE_OPTION_COUNT, NULL, 1, 1 << 20, "most blocks alive at once"},
    {"transform", "", LODE_OPTION_TEXT, NULL, 0, 0,
     "file of lodemark calibrate, the same for all ranks: what keys and queries go through before landmarks; empty: "
     "Hadamard"},
    {"path", "auto", LODE_OPTION_CHOICE, "auto|one-sided|batched", 0, 0,
     "how records are fetched; auto: one-sided where the lane reads memory remotely"},
    {"node", "", LODE_OPTION_TEXT, NULL, 0, 0, "name of this rank's failure domain; empty: the host's name"},
    {"failure-domain", "auto", LODE_OPTION_CHOICE, "auto|node|rank", 0, 0,
     "what replicas are kept apart by; auto: node, or rank with fewer nodes than replicas"},
    {"landing", "16MiB", LODE_OPTION_BYTES, NULL, 64 * KIB, 4 * GIB, "one of the four buffers that records land in"},
    {"hot-cache", "64MiB", LODE_OPTION_BYTES, NULL, 0, 0, "fetched records that this rank keeps; 0: none"},
    {"reply", "256KiB", LODE_OPTION_BYTES, NULL, 4 * KIB, GIB, "aim of one reply message of a batched fetch"},
    {"credit", "8MiB", LODE_OPTION_BYTES, NULL, 64 * KIB, 4 * GIB, "most bytes asked of one owner and not yet landed"},
    {"fetch-deadline", "500", LODE_OPTION_COUNT, NULL, 1, 3600000, "ms until the next owner of a record is asked"},
    {"hedge", "20", LODE_OPTION_COUNT, NULL, 0, 3600000,
     "ms that an owner may be silent before the next is asked as well; 0: never"},
    {"call-deadline", "10000", LODE_OPTION_COUNT, NULL, 1, 3600000, "ms until a rank that does not answer is given up"},
    {"replication", "auto", LODE_OPTION_CHOICE, "auto|nccl|host", 0, 0,
     "how landmarks get to other GPUs; nccl: broadcasts between them, or an error; host: each from its node's store; "
     "auto: nccl where every rank has a GPU of its own"},
    {"affinity", "try", LODE_OPTION_CHOICE, "yes|try|no", 0, 0,
     "memory and threads of a rank at the NUMA node of its GPU, and the network adapter nearest to it; yes: or the "
     "rank does not start"},
    {"repair-rate", "100MiB", LODE_OPTION_BYTES, NULL, 64 * KIB, 0,
     "bytes a second that a rank copies at most to restore or move replicas, and to fill ranks that joined"},
    {"max-ranks", "0", LODE_OPTION_COUNT, NULL, 0, 4096,
     "ranks there can be once others join; 0: those of the job and 8"},
    {"heartbeat", "0", LODE_OPTION_COUNT, NULL, 0, 60000, "ms between heartbeats; 0: only failed connections are seen"},
    {"suspect", "1000", LODE_OPTION_COUNT, NULL, 0, 3600000, "ms without a heartbeat until a rank is held for lost"},
    {"lease", "1000", LODE_OPTION_COUNT, NULL, 1, 3600000,
     "ms without contact to the deciding rank until a rank refuses calls; at most suspect"},
    {"threads", "0", LODE_OPTION_COUNT, NULL, 0, 64,
     "threads of a step, the caller's included; 0: as many as the rank has cores, shared with the other ranks of its "
     "node"},
    {"spin", "50", LODE_OPTION_COUNT, NULL, 0, 1000000, "us that an idle thread polls before it sleeps"},
    {"reconnect", "5000", LODE_OPTION_COUNT, NULL, 0, 3600000,
     "ms that a client looks for a living rank when its own is lost"},
    {"hung", "700", LODE_OPTION_COUNT, NULL, 10, 3600000, "ms without a sign of life until a client leaves a rank"},
    {"mailbox", "try", LODE_OPTION_CHOICE, "yes|try|no", 0, 0,
     "steps of a client through memory shared with its rank; yes: or it does not connect"},
    {"kernels", "auto", LODE_OPTION_TEXT, NULL, 0, 0,
     "instruction set of the arithmetic, as lodemark info lists them; auto: the best that the processor has"},
    {"device", "none", LODE_OPTION_CHOICE, "none|cuda|auto", 0, 0,
     "what steps run on; none: the CPU; cuda: a GPU, or the rank does not start; auto: a GPU if there is one"},
    {"device-ordinal", "", LODE_OPTION_TEXT, NULL, 0, 0, "number of the GPU; empty: ranks of a node take them in turn"},
    {"gpu-cache", "25%", LODE_OPTION_TEXT, NULL, 0, 0,
     "device memory for records that the GPU keeps, for each storage format in use: bytes, or a share of what is free; "
     "0: "
     "none"},
    {"gpu-staging", "256MiB", LODE_OPTION_BYTES, NULL, 64 * KIB, 0,
     "most device memory that records are gathered in before they are attended over"},
    {"gpu-prefetch", "yes", LODE_OPTION_CHOICE, "yes|no", 0, 0,
     "fetch ahead what the next layer's last step had of other ranks and the GPU's cache did not keep"},
    {NULL},
};

lode_options_t *lode_config_options(lode_config_h config)
{
    return &config->options;
}

static bool known_variable(const char *name, size_t length)
{
    static const char *const others[] = {"LODEMARK_CLUSTER", "LODEMARK_TOKEN", "LODEMARK_TOKEN_FILE"}; /* clients */
    for (size_t i = 0; i < sizeof others / sizeof *others; i++)
        if (strlen(others[i]) == length && strncmp(others[i], name, length) == 0)
            return true;
    for (const lode_option_t *row = lode_library_options; row->name; row++) {
        char variable[LODE_VARIABLE_MAX];
        lode_option_variable(row->name, variable);
        if (strlen(variable) == length && strncmp(variable, name, length) == 0)
            return true;
    }
    return false;
}

/* All ranks of a job are mostly started with one environment: the first may speak for them. */
static bool speaks_for_job(void)
{
    const char *rank = getenv("PMIX_RANK");
    return !rank || strcmp(rank, "0") == 0;
}

/* A misspelt variable would otherwise be a setting that silently does nothing. */
static void warn_unknown_variables(void)
{
    static const char prefix[] = "LODEMARK_", test_prefix[] = "LODEMARK_TEST_";
    for (char **variable = environ; variable && *variable; variable++) {
        const char *equals = strchr(*variable, '=');
        if (!equals || strncmp(*variable, prefix, sizeof prefix - 1) != 0 ||
            strncmp(*variable, test_prefix, sizeof test_prefix - 1) == 0)
            continue;
        size_t length = (size_t)(equals - *variable);
        if (known_variable(*variable, length))
            continue;
        char name[LODE_VARIABLE_MAX], nearest[LODE_VARIABLE_MAX];
        snprintf(name, sizeof name, "%.*s", (int)(length - (sizeof prefix - 1)), *variable + sizeof prefix - 1);
        const char *option = lode_options_nearest(lode_library_options, name);
        if (option)
            lode_option_variable(option, nearest);
        lode_warn("the variable %.*s means nothing here and is ignored%s%s%s", (int)length, *variable,
                  option ? "; did you mean " : "", option ? nearest : "", option ? "?" : "");
    }
}

lode_status_t lode_config_create(lode_config_h *config)
{
    lode_config_h made = calloc(1, sizeof *made);
    if (!made)
        return lode_fail(LODE_ERR_NO_MEMORY, "no memory for a configuration");
    lode_status_t status = lode_options_create(lode_library_options, &made->options);
    if (status == LODE_OK)
        status = lode_options_environment(&made->options);
    if (status == LODE_OK)
        status = lode_log_set(lode_options_get(&made->options, "log"));
    if (status != LODE_OK) {
        lode_config_destroy(&made);
        return status;
    }
    if (speaks_for_job())
        warn_unknown_variables();
    *config = made;
    return LODE_OK;
}

lode_status_t lode_config_set(lode_config_h config, const char *name, const char *value)
{
    if (!config || !name || !value)
        return lode_fail(LODE_ERR_INVALID, "lode_config_set: config, name and value must be given");
    LODE_TRY(lode_options_set(&config->options, name, value));
    return strcmp(name, "log") == 0 ? lode_log_set(value) : LODE_OK;
}

const char *lode_config_get(lode_config_h config, const char *name)
{
    return config && name ? lode_options_get(&config->options, name) : NULL;
}

void lode_config_print(lode_config_h config, FILE *out)
{
    for (const lode_option_t *row = lode_library_options; row->name; row++) {
        char variable[LODE_VARIABLE_MAX];
        lode_option_variable(row->name, variable);
        fprintf(out, "%-15s %-8s %-24s %s\n", row->name, lode_options_get(&config->options, row->name), variable,
                row->doc);
    }
}

void lode_config_destroy(lode_config_h *config)
{
    if (!config || !*config)
        return;
    lode_options_destroy(&(*config)->options);
    free(*config);
    *config = NULL;
}
