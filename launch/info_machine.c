/* SPDX-License-Identifier: Apache-2.0 */
#include <dirent.h>
#include <hwloc.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "cluster/affinity.h"
#include "launch/info.h"

static json_t *gib(uint64_t bytes)
{
    return json_sprintf("%.2f GiB", (double)bytes / 0x1p30);
}

static json_t *numa_nodes(hwloc_topology_t topology)
{
    json_t *list = json_array();
    hwloc_obj_t node = NULL;
    while ((node = hwloc_get_next_obj_by_type(topology, HWLOC_OBJ_NUMANODE, node)))
        json_array_append_new(list, json_sprintf("%u (%d threads, %.1f GiB)", node->os_index,
                                                 node->cpuset ? hwloc_bitmap_weight(node->cpuset) : 0,
                                                 (double)node->attr->numanode.local_memory / 0x1p30));
    return list;
}

/* GPUs as PCI devices, whether or not CUDA can use them: where they are, and what is near. */
static json_t *gpus_of(hwloc_topology_t topology)
{
    json_t *list = json_array();
    lode_affinity_t near;
    char gpu[16];
    for (uint32_t i = 0; lode_affinity_gpu(topology, i, gpu); i++)
        if (lode_affinity_find(topology, gpu, &near) == LODE_OK)
            json_array_append_new(list, json_sprintf("%s;", near.why));
    return list;
}

json_t *lode_info_machine(void)
{
    hwloc_topology_t topology;
    json_t *object = json_object();
    if (lode_affinity_load(&topology) == LODE_OK) {
        hwloc_obj_t package = hwloc_get_obj_by_type(topology, HWLOC_OBJ_PACKAGE, 0);
        const char *model = package ? hwloc_obj_get_info_by_name(package, "CPUModel") : NULL;
        json_object_set_new(object, "cpu", json_string(model ? model : "unknown"));
        json_object_set_new(object, "packages", json_integer(hwloc_get_nbobjs_by_type(topology, HWLOC_OBJ_PACKAGE)));
        json_object_set_new(object, "cores", json_integer(hwloc_get_nbobjs_by_type(topology, HWLOC_OBJ_CORE)));
        json_object_set_new(object, "threads", json_integer(hwloc_get_nbobjs_by_type(topology, HWLOC_OBJ_PU)));
        json_object_set_new(object, "numa_nodes", numa_nodes(topology));
        json_object_set_new(object, "gpus", gpus_of(topology));
        hwloc_topology_destroy(topology);
    }
    return object;
}

static uint64_t read_number(const char *folder, const char *file)
{
    char path[512];
    uint64_t number = 0;
    snprintf(path, sizeof path, "%s/%s", folder, file);
    FILE *in = fopen(path, "r");
    if (!in)
        return 0;
    if (fscanf(in, "%" SCNu64, &number) != 1)
        number = 0;
    fclose(in);
    return number;
}

/* "2048 KiB: 0 of 0 free" a size that the kernel keeps. */
static json_t *huge_pages(void)
{
    static const char root[] = "/sys/kernel/mm/hugepages";
    json_t *list = json_array();
    DIR *folder = opendir(root);
    struct dirent *entry;
    while (folder && (entry = readdir(folder))) {
        uint64_t kib;
        char path[sizeof root + sizeof entry->d_name + 1];
        if (sscanf(entry->d_name, "hugepages-%" SCNu64 "kB", &kib) != 1)
            continue;
        snprintf(path, sizeof path, "%s/%s", root, entry->d_name);
        json_array_append_new(list,
                              json_sprintf("%" PRIu64 " KiB: %" PRIu64 " of %" PRIu64 " free;", kib,
                                           read_number(path, "free_hugepages"), read_number(path, "nr_hugepages")));
    }
    if (folder)
        closedir(folder);
    return list;
}

static json_t *transparent(void)
{
    char line[128] = "unknown", *begin = NULL, *end = NULL;
    FILE *in = fopen("/sys/kernel/mm/transparent_hugepage/enabled", "r");
    if (in && fgets(line, sizeof line, in) && (begin = strchr(line, '[')) && (end = strchr(begin, ']')))
        *end = 0;
    if (in)
        fclose(in);
    return json_string(end ? begin + 1 : "unknown");
}

json_t *lode_info_memory(void)
{
    char line[256];
    uint64_t total = 0, available = 0;
    FILE *in = fopen("/proc/meminfo", "r");
    while (in && fgets(line, sizeof line, in))
        if (sscanf(line, "MemTotal: %" SCNu64, &total) != 1)
            (void)!sscanf(line, "MemAvailable: %" SCNu64, &available);
    if (in)
        fclose(in);
    json_t *object = json_object();
    json_object_set_new(object, "total", gib(total << 10));
    json_object_set_new(object, "available", gib(available << 10));
    json_object_set_new(object, "huge_pages", huge_pages());
    json_object_set_new(object, "transparent_huge_pages", transparent());
    return object;
}
