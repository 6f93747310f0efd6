/* SPDX-License-Identifier: Apache-2.0 */
#include <mpi.h>
#include <string.h>
#include <ucp/api/ucp.h>
#include <uct/api/uct.h>

#include "cluster/broadcast.h"
#include "cluster/landing.h"
#include "kernels/device.h"
#include "launch/info.h"
#include "reader/products.h"

json_t *lode_info_build(void)
{
    return json_pack("{s:s s:s s:s}", "compiler", LODE_BUILD_COMPILER, "type", LODE_BUILD_TYPE, "sanitizers",
                     *LODE_BUILD_SANITIZERS ? LODE_BUILD_SANITIZERS : "none");
}

json_t *lode_info_backends(void)
{
    json_t *list = json_array();
    lode_backend_t backend;
    for (uint32_t i = 0; lode_backend_query(i, &backend); i++)
        json_array_append_new(list, json_pack("{s:s s:b s:b}", "name", backend.name, "compiled", (int)backend.compiled,
                                              "usable", (int)backend.usable));
    return list;
}

static json_t *describe_device(const lode_device_ops_t *ops, uint32_t i)
{
    lode_device_info_t info;
    lode_device_h device;
    if (ops->query(i, &info) != LODE_OK)
        return json_pack("{s:s s:i s:s}", "backend", ops->name, "ordinal", (int)i, "why_not", ops->error());
    json_t *object = json_pack("{s:s s:i s:s s:o s:i s:I s:I s:s s:s}", "backend", ops->name, "ordinal", (int)i, "name",
                               info.name, "compute", json_sprintf("%d.%d", info.major, info.minor), "processors",
                               (int)info.processors, "memory_bytes", (json_int_t)info.memory_bytes, "free_bytes",
                               (json_int_t)info.free_bytes, "bus", info.bus, "uuid", info.uuid);
    if (ops->open(i, &device) == LODE_OK)
        ops->close(&device);
    else
        json_object_set_new(object, "why_not", json_string(ops->error()));
    return object;
}

json_t *lode_info_devices(void)
{
    json_t *list = json_array();
    const lode_device_ops_t *ops;
    uint32_t count;
    if (lode_device_get("cuda", &ops) != LODE_OK)
        json_array_append_new(list, json_pack("{s:s s:s}", "backend", "cuda", "why_not", "not compiled in"));
    else if (ops->count(&count) != LODE_OK)
        json_array_append_new(list, json_pack("{s:s s:s}", "backend", ops->name, "why_not", ops->error()));
    else
        for (uint32_t i = 0; i < count; i++)
            json_array_append_new(list, describe_device(ops, i));
    return list;
}

/* What broadcasts among GPUs would be made by. */
json_t *lode_info_nccl(void)
{
    uint32_t version;
    if (lode_broadcast_library(&version) != LODE_OK)
        return json_sprintf("none: %s", lode_error_message());
    return json_sprintf("version %u; chosen when each rank has a GPU of its own (--replication)", version);
}

/* What multiplies the matrices of the reader's model. */
json_t *lode_info_onednn(void)
{
    char text[96];
    lode_products_describe(text);
    return json_string(text);
}

json_t *lode_info_mpi(void)
{
    char text[MPI_MAX_LIBRARY_VERSION_STRING];
    int length = 0;
    MPI_Get_library_version(text, &length); /* allowed before MPI_Init */
    text[strcspn(text, ",\n")] = 0;
    return json_pack("{s:s}", "library", text);
}

/* Transports of one memory domain, as "tcp/eth0". */
static void list_domain(uct_component_h component, const char *name, json_t *list)
{
    uct_md_config_t *config;
    uct_md_h domain;
    uct_tl_resource_desc_t *resources;
    unsigned count = 0;
    if (uct_md_config_read(component, NULL, NULL, &config) != UCS_OK)
        return;
    if (uct_md_open(component, name, config, &domain) == UCS_OK) {
        if (uct_md_query_tl_resources(domain, &resources, &count) == UCS_OK) {
            for (unsigned i = 0; i < count; i++)
                json_array_append_new(list, json_sprintf("%s/%s", resources[i].tl_name, resources[i].dev_name));
            uct_release_tl_resource_list(resources);
        }
        uct_md_close(domain);
    }
    uct_config_release(config);
}

static void list_component(uct_component_h component, json_t *list)
{
    uct_component_attr_t attr = {.field_mask = UCT_COMPONENT_ATTR_FIELD_MD_RESOURCE_COUNT};
    if (uct_component_query(component, &attr) != UCS_OK || attr.md_resource_count == 0 || attr.md_resource_count > 64)
        return;
    uct_md_resource_desc_t domains[64];
    attr.field_mask = UCT_COMPONENT_ATTR_FIELD_MD_RESOURCES;
    attr.md_resources = domains;
    if (uct_component_query(component, &attr) != UCS_OK)
        return;
    for (unsigned i = 0; i < attr.md_resource_count; i++)
        list_domain(component, domains[i].md_name, list);
}

/* Memory that UCX can move bytes to and from, and what comes of it for records. */
static void add_memory(json_t *object)
{
    ucp_config_t *config;
    ucp_context_h context;
    char reason[192];
    ucp_params_t params = {.field_mask = UCP_PARAM_FIELD_FEATURES, .features = UCP_FEATURE_AM | UCP_FEATURE_RMA};
    ucp_context_attr_t attributes = {.field_mask = UCP_ATTR_FIELD_MEMORY_TYPES};
    if (ucp_config_read(NULL, NULL, &config) != UCS_OK)
        return;
    ucs_status_t status = ucp_init(&params, config, &context);
    ucp_config_release(config);
    if (status != UCS_OK)
        return;
    if (ucp_context_query(context, &attributes) == UCS_OK) {
        bool cuda = attributes.memory_types & UCS_BIT(UCS_MEMORY_TYPE_CUDA);
        lode_landing_facts_t facts = {.gpu = true, .ucx_cuda = cuda, .checked_there = LODE_LANDING_CHECKED_THERE};
        bool device = lode_landing_choose(&facts, reason);
        json_object_set_new(object, "memory", json_string(cuda ? "host, cuda" : "host"));
        json_object_set_new(object, "with_a_gpu",
                            json_sprintf("records land in %s memory: %s", device ? "device" : "host", reason));
    }
    ucp_cleanup(context);
}

json_t *lode_info_ucx(void)
{
    json_t *list = json_array();
    uct_component_h *components;
    unsigned count = 0;
    if (uct_query_components(&components, &count) == UCS_OK) {
        for (unsigned i = 0; i < count; i++)
            list_component(components[i], list);
        uct_release_component_list(components);
    }
    const char *only = getenv("UCX_TLS");
    json_t *object = json_pack("{s:s s:o}", "version", ucp_get_version_string(), "transports", list);
    if (object && only)
        json_object_set_new(object, "UCX_TLS", json_string(only));
    if (object)
        add_memory(object);
    return object;
}
