/* SPDX-License-Identifier: Apache-2.0 */
#include "cluster/affinity.h"

#include <stdlib.h>
#include <string.h>

enum { VENDOR_NVIDIA = 0x10de, CLASS_DISPLAY = 0x03 };

lode_status_t lode_affinity_load(hwloc_topology_t *out)
{
    hwloc_topology_t topology;
    if (hwloc_topology_init(&topology) < 0)
        return lode_fail(LODE_ERR_NO_MEMORY, "no memory for a topology");
    hwloc_topology_set_io_types_filter(topology, HWLOC_TYPE_FILTER_KEEP_IMPORTANT);
    /* what PCI and the system say is enough; the plugins for GPUs would start their drivers */
    static const char *const plugins[] = {"opencl", "cuda", "nvml", "rsmi", "gl", "levelzero"};
    for (size_t i = 0; i < sizeof plugins / sizeof *plugins; i++)
        hwloc_topology_set_components(topology, HWLOC_TOPOLOGY_COMPONENTS_FLAG_BLACKLIST, plugins[i]);
    if (hwloc_topology_load(topology) < 0) {
        hwloc_topology_destroy(topology);
        return lode_fail(LODE_ERR_UNSUPPORTED, "hwloc cannot read this machine");
    }
    *out = topology;
    return LODE_OK;
}

bool lode_affinity_gpu(hwloc_topology_t topology, uint32_t i, char gpu[16])
{
    hwloc_obj_t device = NULL;
    while ((device = hwloc_get_next_pcidev(topology, device))) {
        const struct hwloc_pcidev_attr_s *pci = &device->attr->pcidev;
        if (pci->vendor_id != VENDOR_NVIDIA || pci->class_id >> 8 != CLASS_DISPLAY || i--)
            continue;
        snprintf(gpu, 16, "%04x:%02x:%02x.%01x", pci->domain & 0xffff, pci->bus, pci->dev, pci->func & 7);
        return true;
    }
    return false;
}

/* -------------------------------------------------------------------- adapters */

/* InfiniBand and RoCE; where the system tells, with the first port up (4: active). */
static bool is_adapter(hwloc_obj_t device)
{
    if (device->attr->osdev.type != HWLOC_OBJ_OSDEV_OPENFABRICS)
        return false;
    const char *state = hwloc_obj_get_info_by_name(device, "Port1State");
    return !state || strcmp(state, "4") == 0;
}

/* Bridges that two devices have in common. */
static uint32_t common_bridges(hwloc_obj_t one, hwloc_obj_t other)
{
    uint32_t count = 0;
    for (hwloc_obj_t a = one->parent; a; a = a->parent)
        for (hwloc_obj_t b = other->parent; b; b = b->parent)
            count += a == b && a->type == HWLOC_OBJ_BRIDGE;
    return count;
}

/* The nearest adapter of the GPU's node; NULL if there is none, or another as near: *others says how many in all. */
static hwloc_obj_t nearest_adapter(hwloc_topology_t topology, hwloc_obj_t gpu, hwloc_obj_t ancestor, uint32_t *others)
{
    hwloc_obj_t device = NULL, nearest = NULL;
    uint32_t most = 0, equal = 0;
    *others = 0;
    while ((device = hwloc_get_next_osdev(topology, device))) {
        hwloc_obj_t home = hwloc_get_non_io_ancestor_obj(topology, device);
        if (!is_adapter(device) || !home || !hwloc_bitmap_isequal(home->nodeset, ancestor->nodeset))
            continue;
        uint32_t bridges = common_bridges(gpu, device);
        ++*others;
        if (nearest && bridges < most)
            continue;
        equal = nearest && bridges == most ? equal + 1 : 1;
        nearest = device;
        most = bridges;
    }
    return equal == 1 ? nearest : NULL;
}

/* ------------------------------------------------------------------------ find */

static void describe(lode_affinity_t *found, uint32_t adapters)
{
    char where[64], net[96];
    if (found->node >= 0)
        snprintf(where, sizeof where, "GPU %s is at NUMA node %d", found->gpu, found->node);
    else
        snprintf(where, sizeof where, "GPU %s is at no single NUMA node", found->gpu);
    if (found->adapter[0])
        snprintf(net, sizeof net, "adapter %s is nearest", found->adapter);
    else
        snprintf(net, sizeof net, adapters ? "%u adapters are as near" : "no InfiniBand or RoCE adapter is near",
                 adapters);
    snprintf(found->why, sizeof found->why, "%s; %s", where, net);
}

lode_status_t lode_affinity_find(hwloc_topology_t topology, const char *gpu, lode_affinity_t *affinity)
{
    lode_affinity_t found = {.node = -1};
    unsigned domain, bus, device, function;
    int end = 0;
    if (gpu[strspn(gpu, "0123456789abcdefABCDEF:.")] ||
        sscanf(gpu, "%x:%x:%x.%x%n", &domain, &bus, &device, &function, &end) != 4 || gpu[end] || domain > 0xffff ||
        bus > 0xff || device > 0x1f || function > 7)
        return lode_fail(LODE_ERR_INVALID, "\"%s\" is no PCI address like 0000:17:00.0", gpu);
    snprintf(found.gpu, sizeof found.gpu, "%04x:%02x:%02x.%01x", domain, bus, device, function);
    hwloc_obj_t pci = hwloc_get_pcidev_by_busid(topology, domain, bus, device, function);
    hwloc_obj_t home = pci ? hwloc_get_non_io_ancestor_obj(topology, pci) : NULL;
    if (!home || !home->nodeset)
        return lode_fail(LODE_ERR_NOT_FOUND, "GPU %s is not among the PCI devices that hwloc sees here", found.gpu);
    uint32_t adapters;
    hwloc_obj_t nearest = nearest_adapter(topology, pci, home, &adapters);
    if (nearest && strlen(nearest->name) + 3 <= sizeof found.adapter)
        snprintf(found.adapter, sizeof found.adapter, "%s:1", nearest->name);
    if (hwloc_bitmap_weight(home->nodeset) == 1 && hwloc_get_nbobjs_by_type(topology, HWLOC_OBJ_NUMANODE) > 1) {
        found.node = hwloc_bitmap_first(home->nodeset);
        hwloc_bitmap_snprintf(found.cores, sizeof found.cores, home->cpuset);
    }
    describe(&found, adapters);
    *affinity = found;
    return LODE_OK;
}
