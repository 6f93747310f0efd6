/* SPDX-License-Identifier: Apache-2.0 */
/* What placement knows of the ranks, as they come and go; and who leads. */
#include <stdlib.h>
#include <string.h>

#include "attend/inside.h"

static uint32_t count_domains(const lode_place_t *places, uint32_t ranks)
{
    uint32_t domains = 0;
    for (uint32_t i = 0; i < ranks; i++) {
        uint32_t j = 0;
        while (j < i && (places[j].node != places[i].node || !places[j].weight))
            j++;
        domains += j == i && places[i].weight;
    }
    return domains;
}

static uint32_t incarnation_now(lode_cluster_h cluster, uint32_t rank)
{
    return lode_fabric_alive(cluster->fabric, rank) ? lode_fabric_incarnation(cluster->fabric, rank) : 0;
}

/* A lost rank keeps its place: others' pages stay where they are. */
static void take_places(lode_cluster_h cluster)
{
    const lode_member_t *members = lode_fabric_members(cluster->fabric);
    cluster->places_split = atomic_load(&cluster->split);
    for (uint32_t i = 0; i < cluster->place_count; i++) {
        uint64_t node = cluster->places_split ? lode_mix(members[i].node, i + 1) : members[i].node;
        cluster->places[i] = (lode_place_t){node, cluster->incarnations[i] ? members[i].arena_bytes : 0};
    }
    cluster->domains = count_domains(cluster->places, cluster->place_count);
}

lode_status_t lode_places_create(lode_cluster_h cluster, const char *domain)
{
    uint32_t ranks = lode_fabric_ranks(cluster->fabric), capacity = lode_fabric_capacity(cluster->fabric);
    if (cluster->replicas > ranks)
        return lode_fail(LODE_ERR_INVALID, "%u replicas need as many ranks, the job has %u", cluster->replicas, ranks);
    cluster->places = calloc(capacity, sizeof *cluster->places);
    cluster->incarnations = calloc(capacity, sizeof *cluster->incarnations);
    cluster->newcomers = calloc(capacity, sizeof *cluster->newcomers);
    cluster->unasked = calloc(capacity, sizeof *cluster->unasked);
    cluster->changed = calloc(capacity, sizeof *cluster->changed);
    if (!cluster->places || !cluster->incarnations || !cluster->newcomers || !cluster->unasked || !cluster->changed)
        return lode_fail(LODE_ERR_NO_MEMORY, "no memory for %u ranks", capacity);
    cluster->place_count = ranks;
    for (uint32_t i = 0; i < ranks; i++) {
        cluster->incarnations[i] = incarnation_now(cluster, i);
        cluster->unasked[i] = cluster->incarnations[i] > 1 && i != lode_fabric_rank(cluster->fabric);
    }
    take_places(cluster);
    bool few = strcmp(domain, "auto") == 0 && cluster->domains < cluster->replicas;
    atomic_store(&cluster->split, few || strcmp(domain, "rank") == 0);
    if (few && lode_fabric_rank(cluster->fabric) == 0)
        lode_info("%u replicas on %u nodes: owners of a page are different ranks, not different nodes",
                  cluster->replicas, cluster->domains);
    take_places(cluster);
    return LODE_OK;
}

void lode_places_destroy(lode_cluster_h cluster)
{
    free(cluster->places);
    free(cluster->incarnations);
    free(cluster->newcomers);
    free(cluster->unasked);
    free(cluster->changed);
}

void lode_places_refresh(lode_cluster_h cluster)
{
    uint32_t ranks = lode_fabric_ranks(cluster->fabric);
    bool any = ranks != cluster->place_count || atomic_load(&cluster->split) != cluster->places_split;
    for (uint32_t i = 0; i < ranks; i++) {
        uint32_t now = incarnation_now(cluster, i);
        if (now == cluster->incarnations[i])
            continue;
        any = cluster->changed[i] = true;
        cluster->newcomers[i] = now > 0 && i != lode_fabric_rank(cluster->fabric);
        cluster->incarnations[i] = now;
    }
    if (!any)
        return;
    cluster->place_count = ranks;
    take_places(cluster);
}

uint32_t lode_leader(lode_cluster_h cluster)
{
    uint32_t self = lode_fabric_rank(cluster->fabric);
    for (uint32_t i = 0; i < cluster->place_count; i++) {
        if (i == self ? atomic_load(&cluster->filling) : cluster->newcomers[i])
            continue;
        if (lode_fabric_alive(cluster->fabric, i))
            return i;
    }
    return lode_fabric_leader(cluster->fabric);
}
