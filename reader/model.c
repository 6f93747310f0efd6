/* SPDX-License-Identifier: Apache-2.0 */
/* A model is loaded: its configuration, its tensors, what each becomes. */
#include "reader/model.h"

#include <sched.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "reader/rope.h"
#include "reader/weights.h"

/* Everything that loading needs, and the name of the tensor at hand. */
typedef struct loader {
    lode_model_h model;
    lode_weights_h weights;
    const char *device; /* NULL: the processor */
    char name[128];
} loader_t;

static void name_tensor(loader_t *loader, uint32_t layer, const char *what)
{
    snprintf(loader->name, sizeof loader->name, "model.layers.%u.%s", layer, what);
}

/* Copy the named vector as fp32. */
static lode_status_t load_vector(loader_t *loader, uint32_t n, float **vector)
{
    const void *data;
    lode_dtype_t type;
    LODE_TRY(lode_weights_find(loader->weights, loader->name, n, 0, &data, &type));
    *vector = malloc(n * sizeof **vector);
    if (!*vector)
        return lode_fail(LODE_ERR_NO_MEMORY, "no memory for tensor \"%s\"", loader->name);
    lode_convert(type, data, LODE_FP32, *vector, n);
    loader->model->info.parameters += n;
    return LODE_OK;
}

static lode_status_t load_layer_vector(loader_t *loader, uint32_t layer, const char *what, uint32_t n, float **vector)
{
    name_tensor(loader, layer, what);
    return load_vector(loader, n, vector);
}

static lode_status_t find_part(loader_t *loader, uint32_t rows, uint32_t ins, lode_matrix_part_t *part)
{
    loader->model->info.parameters += (uint64_t)rows * ins;
    part->rows = rows;
    return lode_weights_find(loader->weights, loader->name, rows, ins, &part->data, &part->dtype);
}

/* Pack matrices of a layer above each other: names and rows, ended by NULL. */
static lode_status_t load_matrix(loader_t *loader, uint32_t layer, uint32_t ins, lode_matrix_h *matrix, ...)
{
    lode_matrix_part_t parts[3];
    uint32_t count = 0;
    lode_status_t status = LODE_OK;
    va_list list;
    va_start(list, matrix);
    for (const char *what; status == LODE_OK && count < 3 && (what = va_arg(list, const char *)); count++) {
        name_tensor(loader, layer, what);
        status = find_part(loader, va_arg(list, uint32_t), ins, &parts[count]);
    }
    va_end(list);
    LODE_TRY(status);
    return lode_matrix_create(loader->model->products, parts, count, ins, matrix);
}

/* -------------------------------------------------------------------- parts */

static lode_status_t load_biases(loader_t *loader, uint32_t i, uint32_t query, uint32_t key, float **bias)
{
    static const char *const names[] = {"self_attn.q_proj.bias", "self_attn.k_proj.bias", "self_attn.v_proj.bias"};
    *bias = malloc((query + 2 * (size_t)key) * sizeof **bias);
    if (!*bias)
        return lode_fail(LODE_ERR_NO_MEMORY, "no memory for the biases of layer %u", i);
    float *at = *bias;
    for (int part = 0; part < 3; part++) {
        uint32_t n = part ? key : query;
        const void *data;
        lode_dtype_t type;
        name_tensor(loader, i, names[part]);
        LODE_TRY(lode_weights_find(loader->weights, loader->name, n, 0, &data, &type));
        lode_convert(type, data, LODE_FP32, at, n);
        loader->model->info.parameters += n;
        at += n;
    }
    return LODE_OK;
}

static lode_status_t load_layer(loader_t *loader, uint32_t i)
{
    const lode_model_config_t *c = &loader->model->config;
    const lode_geometry_t *g = &c->geometry;
    uint32_t query = g->query_heads * g->head_dim, key = g->kv_heads * g->head_dim;
    lode_layer_t *layer = &loader->model->layers[i];
    LODE_TRY(load_layer_vector(loader, i, "input_layernorm.weight", c->hidden, &layer->attention_norm));
    LODE_TRY(load_matrix(loader, i, c->hidden, &layer->qkv, "self_attn.q_proj.weight", query, "self_attn.k_proj.weight",
                         key, "self_attn.v_proj.weight", key, NULL));
    if (c->biases)
        LODE_TRY(load_biases(loader, i, query, key, &layer->bias));
    if (c->head_norms) {
        LODE_TRY(load_layer_vector(loader, i, "self_attn.q_norm.weight", g->head_dim, &layer->query_norm));
        LODE_TRY(load_layer_vector(loader, i, "self_attn.k_norm.weight", g->head_dim, &layer->key_norm));
    }
    LODE_TRY(load_matrix(loader, i, query, &layer->out, "self_attn.o_proj.weight", c->hidden, NULL));
    LODE_TRY(load_layer_vector(loader, i, "post_attention_layernorm.weight", c->hidden, &layer->mlp_norm));
    LODE_TRY(load_matrix(loader, i, c->hidden, &layer->gate, "mlp.gate_proj.weight", c->intermediate,
                         "mlp.up_proj.weight", c->intermediate, NULL));
    return load_matrix(loader, i, c->intermediate, &layer->down, "mlp.down_proj.weight", c->hidden, NULL);
}

/* The embedding stays as it is in the file: a row a token is read. The head is packed. */
static lode_status_t load_ends(loader_t *loader)
{
    lode_model_h model = loader->model;
    const lode_model_config_t *c = &model->config;
    lode_matrix_part_t embedding, head;
    snprintf(loader->name, sizeof loader->name, "model.embed_tokens.weight");
    LODE_TRY(find_part(loader, c->vocabulary, c->hidden, &embedding));
    size_t bytes = (size_t)c->vocabulary * c->hidden * (embedding.dtype == LODE_FP32 ? 4 : 2);
    model->embedding = malloc(bytes);
    if (!model->embedding)
        return lode_fail(LODE_ERR_NO_MEMORY, "no memory for %zu bytes of tensor \"%s\"", bytes, loader->name);
    memcpy(model->embedding, embedding.data, bytes);
    model->embedding_type = embedding.dtype;
    head = embedding;
    if (!c->tied) {
        snprintf(loader->name, sizeof loader->name, "lm_head.weight");
        LODE_TRY(find_part(loader, c->vocabulary, c->hidden, &head));
    }
    LODE_TRY(lode_matrix_create(model->products, &head, 1, c->hidden, &model->head));
    snprintf(loader->name, sizeof loader->name, "model.norm.weight");
    return load_vector(loader, c->hidden, &model->norm);
}

static lode_status_t choose_gpu(const char *device, lode_dtype_t type, lode_products_h *products)
{
    const lode_device_ops_t *ops;
    uint64_t ordinal;
    if (strncmp(device, "cuda:", 5) != 0 || lode_parse_count(device + 5, &ordinal) != LODE_OK || ordinal > 255)
        return lode_fail(LODE_ERR_INVALID, "\"%s\" is no device to multiply matrices on: it takes \"cuda:0\"", device);
    if (lode_device_get("cuda", &ops) != LODE_OK)
        return lode_fail(LODE_ERR_UNSUPPORTED, "%s: this build has no CUDA backend", device);
    return lode_products_create_gpu(ops, (uint32_t)ordinal, type, products);
}

/* bf16 as it is where the processor or GPU multiplies it; anything else is multiplied in fp32. */
static lode_status_t choose_products(loader_t *loader)
{
    const void *data;
    lode_dtype_t type;
    const lode_model_config_t *c = &loader->model->config;
    LODE_TRY(lode_weights_find(loader->weights, "model.embed_tokens.weight", c->vocabulary, c->hidden, &data, &type));
    if (loader->device)
        return choose_gpu(loader->device, type == LODE_BF16 ? LODE_BF16 : LODE_FP32, &loader->model->products);
    return lode_products_create(loader->model->team, type == LODE_BF16 ? lode_products_native() : LODE_FP32,
                                &loader->model->products);
}

static lode_status_t load_weights(loader_t *loader)
{
    lode_model_h model = loader->model;
    LODE_TRY(choose_products(loader));
    LODE_TRY(load_ends(loader));
    model->layers = calloc(model->config.geometry.layers, sizeof *model->layers);
    if (!model->layers)
        return lode_fail(LODE_ERR_NO_MEMORY, "no memory for %u layers", model->config.geometry.layers);
    for (uint32_t i = 0; i < model->config.geometry.layers; i++)
        LODE_TRY(load_layer(loader, i));
    return lode_weights_all_used(loader->weights, model->config.tied);
}

static lode_status_t fill_angles(lode_model_h model)
{
    const lode_geometry_t *g = &model->config.geometry;
    uint32_t pairs = g->head_dim / 2;
    model->freq = malloc(pairs * sizeof *model->freq);
    model->cosine = malloc((size_t)LODE_ANGLE_POSITIONS * pairs * sizeof *model->cosine);
    model->sine = malloc((size_t)LODE_ANGLE_POSITIONS * pairs * sizeof *model->sine);
    if (!model->freq || !model->cosine || !model->sine)
        return lode_fail(LODE_ERR_NO_MEMORY, "no memory for rotary angles");
    lode_reader_frequencies(&g->rope, g->head_dim, model->freq);
    for (uint32_t i = 0; i < LODE_ANGLE_POSITIONS; i++)
        lode_reader_angles(model->freq, pairs, i, model->config.rope_scale, model->cosine + (size_t)i * pairs,
                           model->sine + (size_t)i * pairs);
    return LODE_OK;
}

/* -------------------------------------------------------------------- model */

static uint64_t mix_number(uint64_t seed, double number)
{
    uint64_t bits;
    memcpy(&bits, &number, sizeof bits);
    return lode_mix(seed, bits);
}

/* Of what decides the numbers: not of files' names or how they are cut. */
static uint64_t digest(const lode_model_config_t *c, uint64_t weights)
{
    const lode_geometry_t *g = &c->geometry;
    const lode_rope_t *r = &g->rope;
    const double numbers[] = {g->layers,           g->query_heads,
                              g->kv_heads,         g->head_dim,
                              c->hidden,           c->eps,
                              c->intermediate,     c->vocabulary,
                              c->rope_scale,       r->theta,
                              r->scaling,          r->factor,
                              r->low_freq_factor,  r->high_freq_factor,
                              r->beta_fast,        r->beta_slow,
                              r->original_context, c->tied,
                              c->head_norms,       c->biases};
    uint64_t h = weights;
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        h = mix_number(h, numbers[i]);
    return h;
}

/* Ranks of this node, as mpirun or srun tell them; 1 without. */
static uint32_t local_ranks(void)
{
    static const char *const names[] = {"OMPI_COMM_WORLD_LOCAL_SIZE", "SLURM_STEP_TASKS_PER_NODE"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        const char *text = getenv(names[i]); /* "4", or Slurm's "4(x3),2" */
        long count = text ? strtol(text, NULL, 10) : 0;
        if (count > 0 && count < 4096)
            return (uint32_t)count;
    }
    return 1;
}

/*
 * The cores that this process may use, shared with the ranks that may use them too: those of the node, if each got as
 * much of it as this one.
 */
static uint32_t fair_threads(void)
{
    cpu_set_t set;
    long machine = sysconf(_SC_NPROCESSORS_ONLN);
    CPU_ZERO(&set);
    if (machine < 1 || sched_getaffinity(0, sizeof set, &set) != 0)
        return 1;
    uint64_t cores = (uint64_t)CPU_COUNT(&set),
             sharers = (local_ranks() * cores + (uint64_t)machine - 1) / (uint64_t)machine;
    uint64_t threads = cores / (sharers ? sharers : 1);
    return threads < 1 ? 1 : threads > LODE_TEAM_THREADS ? LODE_TEAM_THREADS : (uint32_t)threads;
}

/* As the option says it of a step, unless the caller does. */
static lode_status_t start_team(lode_model_h model, uint32_t threads)
{
    lode_config_h config;
    LODE_TRY(lode_config_create(&config));
    uint64_t asked = 0;
    lode_status_t status = lode_parse_count(lode_config_get(config, "threads"), &asked);
    lode_config_destroy(&config);
    LODE_TRY(status);
    threads = threads ? threads : asked ? (uint32_t)asked : fair_threads();
    /* so many sharers that none is bound and none polls: the cores are those of a step's team too */
    lode_team_params_t params = {.threads = threads < LODE_TEAM_THREADS ? threads : LODE_TEAM_THREADS,
                                 .sharers = 1u << 16};
    return lode_team_create(&params, &model->team);
}

static void describe(lode_model_h model, uint64_t weights)
{
    const lode_model_config_t *c = &model->config;
    model->info.family = c->family;
    model->info.geometry = c->geometry;
    model->info.hidden = c->hidden;
    model->info.intermediate = c->intermediate;
    model->info.vocabulary = c->vocabulary;
    model->info.context = c->context;
    model->info.digest = digest(c, weights);
    model->info.products = lode_products_name(model->products);
}

static lode_status_t load(lode_model_h model, const char *folder, uint32_t threads, const char *device)
{
    loader_t loader = {.model = model, .device = device};
    LODE_TRY(lode_model_config_read(folder, &model->config));
    LODE_TRY(lode_weights_open(folder, &loader.weights));
    model->ops = lode_elementwise();
    lode_status_t status = start_team(model, threads);
    if (status == LODE_OK)
        status = load_weights(&loader);
    if (status == LODE_OK)
        status = fill_angles(model);
    if (status == LODE_OK)
        describe(model, lode_weights_digest(loader.weights));
    lode_weights_close(&loader.weights);
    return status;
}

lode_status_t lode_model_open(const char *folder, uint32_t threads, const char *device, lode_model_h *model)
{
    lode_model_h made = calloc(1, sizeof *made);
    if (!made)
        return lode_fail(LODE_ERR_NO_MEMORY, "no memory for a model");
    lode_status_t status = load(made, folder, threads, device);
    if (status != LODE_OK) {
        lode_model_close(&made);
        return status;
    }
    *model = made;
    return LODE_OK;
}

static void free_layer(lode_layer_t *layer)
{
    free(layer->attention_norm);
    free(layer->mlp_norm);
    free(layer->query_norm);
    free(layer->key_norm);
    free(layer->bias);
    lode_matrix_destroy(&layer->qkv);
    lode_matrix_destroy(&layer->out);
    lode_matrix_destroy(&layer->gate);
    lode_matrix_destroy(&layer->down);
}

static void free_rooms(lode_run_rooms_t *rooms)
{
    lode_room_t *all[] = {&rooms->x,   &rooms->input,  &rooms->wide,   &rooms->q,       &rooms->k,    &rooms->v,
                          &rooms->out, &rooms->angles, &rooms->logits, &rooms->streams, &rooms->asked};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        free(all[i]->bytes);
}

void lode_model_close(lode_model_h *model)
{
    lode_model_h m = *model;
    if (!m)
        return;
    for (uint32_t i = 0; m->layers && i < m->config.geometry.layers; i++)
        free_layer(&m->layers[i]);
    free(m->layers);
    lode_matrix_destroy(&m->head);
    lode_products_destroy(&m->products);
    lode_team_destroy(&m->team);
    free_rooms(&m->rooms);
    free(m->embedding);
    free(m->norm);
    free(m->freq);
    free(m->cosine);
    free(m->sine);
    free(m);
    *model = NULL;
}

const lode_model_info_t *lode_model_info(lode_model_h model)
{
    return &model->info;
}
