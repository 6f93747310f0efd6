/* SPDX-License-Identifier: Apache-2.0 */
/* What is near a GPU, in machines that are not this one. */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <string.h>

#include "cluster/affinity.h"
#include "cluster/landing.h"

static hwloc_topology_t topology;

/* Two sockets, GPUs 17, 2a and 2e on the first, b1 on the second; adapters beside them (the XML says which). */
static void load_sockets(void)
{
    cr_assert(eq(int, hwloc_topology_init(&topology), 0));
    hwloc_topology_set_io_types_filter(topology, HWLOC_TYPE_FILTER_KEEP_ALL);
    cr_assert(eq(int, hwloc_topology_set_xml(topology, LODE_TEST_TOPOLOGIES "/two-sockets.xml"), 0));
    cr_assert(eq(int, hwloc_topology_load(topology), 0));
}

static void unload(void)
{
    hwloc_topology_destroy(topology);
}

TestSuite(affinity, .init = load_sockets, .fini = unload, .timeout = 60);

static lode_affinity_t find(const char *gpu)
{
    lode_affinity_t found;
    cr_assert(eq(int, lode_affinity_find(topology, gpu, &found), LODE_OK), "%s", lode_error_message());
    fprintf(stderr, "%s\n", found.why);
    return found;
}

Test(affinity, node_and_cores)
{
    lode_affinity_t first = find("0000:17:00.0"), second = find("0000:B1:00.0");
    cr_assert(eq(int, first.node, 0));
    cr_assert(eq(str, first.cores, "0x0000000f"));
    cr_assert(eq(str, first.gpu, "0000:17:00.0"));
    cr_assert(eq(int, second.node, 1));
    cr_assert(eq(str, second.cores, "0x000000f0"));
    cr_assert(eq(str, second.gpu, "0000:b1:00.0"));
}

Test(affinity, adapter_behind_the_same_bridge)
{
    cr_assert(eq(str, find("0000:17:00.0").adapter, "mlx5_0:1"));
    cr_assert(eq(str, find("0000:2a:00.0").adapter, "mlx5_1:1"), "the other one there has its port down");
}

Test(affinity, adapters_alike)
{
    lode_affinity_t found = find("0000:b1:00.0");
    cr_assert(eq(str, found.adapter, ""));
    cr_assert(ne(ptr, strstr(found.why, "2 adapters are as near"), NULL));
    found = find("0000:2e:00.0"); /* a bridge of its own: two are as far */
    cr_assert(eq(str, found.adapter, ""));
    cr_assert(eq(int, found.node, 0));
}

Test(affinity, not_there)
{
    lode_affinity_t found = {.node = 77};
    static const char *const none[] = {"0000:99:00.0", "0001:17:00.0"};
    for (int i = 0; i < 2; i++)
        cr_assert(eq(int, lode_affinity_find(topology, none[i], &found), LODE_ERR_NOT_FOUND));
    static const char *const wrong[] = {"",    "17",           "0000:17:00", "0000:17:00.0x", "0000:17:40.0",
                                        "gpu", "10000:17:00.0"};
    for (int i = 0; i < 7; i++)
        cr_assert(eq(int, lode_affinity_find(topology, wrong[i], &found), LODE_ERR_INVALID), "%s", wrong[i]);
    cr_assert(eq(int, found.node, 77), "outputs are set on success alone");
}

Test(affinity, all_gpus)
{
    static const char *const gpus[] = {"0000:17:00.0", "0000:2a:00.0", "0000:2e:00.0", "0000:b1:00.0"};
    char gpu[16];
    for (uint32_t i = 0; i < 4; i++) {
        cr_assert(lode_affinity_gpu(topology, i, gpu));
        cr_assert(strcmp(gpu, gpus[i]) == 0);
    }
    cr_assert(not(lode_affinity_gpu(topology, 4, gpu)));
}

/* One NUMA node is nothing to bind to, and a synthetic machine has no devices. */
Test(affinity, one_node)
{
    hwloc_topology_t small;
    lode_affinity_t found;
    char gpu[16];
    hwloc_topology_init(&small);
    hwloc_topology_set_synthetic(small, "numa:1 core:4 pu:2");
    hwloc_topology_load(small);
    cr_assert(eq(int, lode_affinity_find(small, "0000:17:00.0", &found), LODE_ERR_NOT_FOUND));
    cr_assert(not(lode_affinity_gpu(small, 0, gpu)));
    hwloc_topology_destroy(small);
}

Test(affinity, this_machine)
{
    hwloc_topology_t here;
    lode_affinity_t found;
    char gpu[16];
    cr_assert(eq(int, lode_affinity_load(&here), LODE_OK));
    for (uint32_t i = 0; lode_affinity_gpu(here, i, gpu); i++)
        cr_assert(eq(int, lode_affinity_find(here, gpu, &found), LODE_OK));
    hwloc_topology_destroy(here);
}

/* A record that was not checked must never be attended over: all three must hold. */
Test(landing, choice)
{
    for (int facts = 0; facts < 8; facts++) {
        char reason[192] = "";
        lode_landing_facts_t given = {facts & 1, facts & 2, facts & 4};
        cr_assert(eq(int, lode_landing_choose(&given, reason), facts == 7));
        cr_assert(reason[0] != 0);
        if (facts == 3)
            cr_assert(ne(ptr, strstr(reason, "checked by the host"), NULL));
        if (facts == 1)
            cr_assert(ne(ptr, strstr(reason, "without CUDA"), NULL));
    }
    cr_assert(not(LODE_LANDING_CHECKED_THERE), "who lets kernels check records adds their test here");
}
