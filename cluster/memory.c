/* SPDX-License-Identifier: Apache-2.0 */
#include <hwloc.h>
#include <inttypes.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "cluster/fabric_inside.h"

#define HUGE_PAGE ((size_t)2 << 20)
#define HUGE_PAGE_2MB (21u << 26) /* as memfd_create() is told; not in every libc header */

/** First number in a file that stands after @p key ("" : at its start). @return false if there is none. */
static bool read_number(const char *path, const char *key, uint64_t *number)
{
    char line[256];
    FILE *file = fopen(path, "r");
    bool found = false;
    if (!file)
        return false;
    while (!found && fgets(line, sizeof line, file)) {
        if (strncmp(line, key, strlen(key)) == 0)
            found = sscanf(line + strlen(key), "%" SCNu64, number) == 1; /* "max" is no number: no limit */
    }
    fclose(file);
    return found;
}

/** Lower *available to what a control group leaves. */
static void apply_limit(const char *limit_path, const char *used_path, uint64_t *available)
{
    uint64_t limit, used;
    if (!read_number(limit_path, "", &limit) || !read_number(used_path, "", &used))
        return;
    uint64_t left = limit > used ? limit - used : 0;
    if (left < *available)
        *available = left;
}

uint64_t fabric_memory_available(void)
{
    uint64_t kilobytes, available = UINT64_MAX;
    if (read_number("/proc/meminfo", "MemAvailable:", &kilobytes))
        available = kilobytes * 1024;
    apply_limit("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current", &available);
    apply_limit("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes",
                &available);
    return available;
}

/** Whether the pool of huge pages holds as much as all ranks of this host ask for. */
static bool huge_pages_for(lode_fabric_h fabric, size_t bytes)
{
    uint64_t pages = 0;
    int local = 1;
    if (fabric->born > 0)
        MPI_Comm_size(fabric->node_comm, &local);
    read_number("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages", "", &pages);
    return pages * HUGE_PAGE >= (uint64_t)local * (bytes + HUGE_PAGE);
}

bool fabric_arena_shared(lode_fabric_h fabric)
{
    return fabric_may_share() && fabric->params.path != LODE_PATH_BATCHED;
}

/* Pages come into being when they are first written; without this a host that promised too much would
   end in the kernel's out-of-memory killer, long after the start. */
lode_status_t fabric_memory_check(lode_fabric_h fabric)
{
    uint64_t mine = fabric->params.landing_bytes * LODE_LANDINGS, all = 0;
    if (!fabric_arena_shared(fabric) || !huge_pages_for(fabric, fabric->params.arena_bytes))
        mine += fabric->params.arena_bytes; /* what the pool of huge pages holds does not count as available */
    uint64_t available = fabric_memory_available();
    if (fabric->born > 0) {
        LODE_TRY(FABRIC_MPI(MPI_Allreduce(&mine, &all, 1, MPI_UINT64_T, MPI_SUM, fabric->node_comm)));
        LODE_TRY(FABRIC_MPI(MPI_Bcast(&available, 1, MPI_UINT64_T, 0, fabric->node_comm)));
    } else {
        all = mine;
    }
    if (all <= available)
        return LODE_OK;
    return lode_fail(LODE_ERR_NO_MEMORY,
                     "arenas and landing buffers of this host's ranks ask for %.2f GiB and %.2f GiB are available; "
                     "lower the arena or start fewer ranks a host",
                     (double)all / (1 << 30), (double)available / (1 << 30));
}

typedef struct binding {
    hwloc_topology_t topology;
    hwloc_nodeset_t nodes, old;
    hwloc_membind_policy_t old_policy;
    bool bound;
} binding_t;

/* The NUMA node of this rank's GPU if that is known and may be used, else those of its cores. */
static void choose_nodes(lode_fabric_h fabric, binding_t *binding, hwloc_const_cpuset_t cpus)
{
    int node = fabric->near.node;
    hwloc_cpuset_to_nodeset(binding->topology, cpus, binding->nodes);
    if (node >= 0 && hwloc_bitmap_isset(hwloc_topology_get_allowed_nodeset(binding->topology), (unsigned)node))
        hwloc_bitmap_only(binding->nodes, (unsigned)node);
}

/* While UCX registers the memory its driver may touch it, so the thread is bound too, not only the area. */
static void binding_begin(lode_fabric_h fabric, binding_t *binding)
{
    *binding = (binding_t){0};
    if (hwloc_topology_init(&binding->topology) < 0)
        return;
    hwloc_cpuset_t cpus = hwloc_bitmap_alloc();
    binding->nodes = hwloc_bitmap_alloc();
    binding->old = hwloc_bitmap_alloc();
    if (cpus && binding->nodes && binding->old && hwloc_topology_load(binding->topology) == 0 &&
        hwloc_get_cpubind(binding->topology, cpus, HWLOC_CPUBIND_PROCESS) == 0) {
        choose_nodes(fabric, binding, cpus);
        binding->bound = hwloc_get_membind(binding->topology, binding->old, &binding->old_policy,
                                           HWLOC_MEMBIND_THREAD | HWLOC_MEMBIND_BYNODESET) == 0 &&
                         hwloc_set_membind(binding->topology, binding->nodes, HWLOC_MEMBIND_BIND,
                                           HWLOC_MEMBIND_THREAD | HWLOC_MEMBIND_BYNODESET) == 0;
    }
    hwloc_bitmap_free(cpus);
}

static void binding_area(const binding_t *binding, void *base, size_t bytes)
{
    if (!binding->bound || hwloc_set_area_membind(binding->topology, base, bytes, binding->nodes, HWLOC_MEMBIND_BIND,
                                                  HWLOC_MEMBIND_BYNODESET) < 0)
        lode_debug("%zu bytes of memory are not bound to a NUMA node: not allowed here", bytes);
}

static void binding_end(binding_t *binding)
{
    if (binding->bound)
        hwloc_set_membind(binding->topology, binding->old, binding->old_policy,
                          HWLOC_MEMBIND_THREAD | HWLOC_MEMBIND_BYNODESET);
    hwloc_bitmap_free(binding->nodes);
    hwloc_bitmap_free(binding->old);
    if (binding->topology)
        hwloc_topology_destroy(binding->topology);
}

/* Pages of the pool are reserved when they are mapped: it fails here or never. */
static bool map_huge(size_t bytes, fabric_region_t *region)
{
    size_t rounded = (bytes + HUGE_PAGE - 1) & ~(HUGE_PAGE - 1);
    if (fabric_memfile_create(rounded, MFD_HUGETLB | HUGE_PAGE_2MB, &region->fd) != LODE_OK)
        return false;
    void *base = mmap(NULL, rounded, PROT_READ | PROT_WRITE, MAP_SHARED, region->fd, 0);
    if (base == MAP_FAILED) {
        close(region->fd);
        region->fd = -1;
        return false;
    }
    region->base = base;
    region->bytes = rounded;
    return true;
}

static lode_status_t map(lode_fabric_h fabric, size_t bytes, bool shared, fabric_region_t *region)
{
    region->fd = -1;
    if (shared && huge_pages_for(fabric, bytes) && map_huge(bytes, region)) {
        lode_debug("arena of %zu bytes on huge pages", region->bytes);
        return LODE_OK;
    }
    if (shared)
        LODE_TRY(fabric_memfile_create(bytes, 0, &region->fd));
    int kind = shared ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS;
    void *base = mmap(NULL, bytes, PROT_READ | PROT_WRITE, kind | MAP_NORESERVE, region->fd, 0);
    if (base == MAP_FAILED)
        return lode_fail(LODE_ERR_NO_MEMORY, "the system gave no address space for %zu bytes: %m", bytes);
    region->base = base;
    region->bytes = bytes;
    if (madvise(base, bytes, MADV_HUGEPAGE) < 0) /* what the kernel thinks of it, it does not say */
        lode_debug("%zu bytes of memory without huge pages: %m", bytes);
    return LODE_OK;
}

lode_status_t fabric_region_create(lode_fabric_h fabric, size_t bytes, bool shared, fabric_region_t *region)
{
    binding_t binding;
    binding_begin(fabric, &binding);
    lode_status_t status = map(fabric, bytes, shared, region);
    if (status == LODE_OK) {
        binding_area(&binding, region->base, bytes);
        ucp_mem_map_params_t params = {.field_mask = UCP_MEM_MAP_PARAM_FIELD_ADDRESS | UCP_MEM_MAP_PARAM_FIELD_LENGTH,
                                       .address = region->base,
                                       .length = region->bytes};
        status = FABRIC_UCX(ucp_mem_map(fabric->context, &params, &region->memh));
    }
    binding_end(&binding);
    return status;
}

void fabric_region_destroy(lode_fabric_h fabric, fabric_region_t *region)
{
    if (region->memh)
        ucp_mem_unmap(fabric->context, region->memh);
    if (region->base)
        munmap(region->base, region->bytes);
    if (region->base && region->fd >= 0)
        close(region->fd);
    *region = (fabric_region_t){.fd = -1};
}
