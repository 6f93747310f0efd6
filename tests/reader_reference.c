/* SPDX-License-Identifier: Apache-2.0 */
#include "reader_reference.h"

#include <dirent.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/safetensors.h"

enum { FILES_MAX = 16 };

typedef struct layer {
    double *norm1, *norm2, *q, *k, *v, *o, *gate, *up, *down, *q_norm, *k_norm, *q_bias, *k_bias, *v_bias;
    double *keys, *values; /* (tokens, KV heads · dim), of what came so far */
} layer_t;

struct reference {
    uint32_t layers, heads, kv_heads, dim, hidden, inner, vocabulary, tokens, room;
    double eps, scale;
    double freq[128];
    double *embedding, *head, *norm, *logits;
    layer_t *layer;
    lode_safetensors_t files[FILES_MAX];
    uint8_t *bytes[FILES_MAX];
    uint32_t file_count;
};

static void die(const char *what)
{
    fprintf(stderr, "the reference cannot go on: %s\n", what);
    abort();
}

static void *room_for(size_t n)
{
    void *room = calloc(n ? n : 1, sizeof(double));
    if (!room)
        die("no memory");
    return room;
}

/* -------------------------------------------------------------------- files */

static void read_file(reference_h r, const char *path)
{
    FILE *file = fopen(path, "rb");
    if (!file || r->file_count == FILES_MAX || fseek(file, 0, SEEK_END) != 0)
        die(path);
    size_t size = (size_t)ftell(file);
    rewind(file);
    uint8_t *bytes = malloc(size);
    if (!bytes || fread(bytes, 1, size, file) != size ||
        lode_safetensors_parse(bytes, size, size, &r->files[r->file_count]) != LODE_OK)
        die(path);
    fclose(file);
    r->bytes[r->file_count++] = bytes;
}

static void read_files(reference_h r, const char *folder)
{
    char path[4096];
    DIR *list = opendir(folder);
    if (!list)
        die(folder);
    for (struct dirent *entry; (entry = readdir(list));) {
        size_t n = strlen(entry->d_name);
        if (n < 12 || strcmp(entry->d_name + n - 12, ".safetensors") != 0)
            continue;
        snprintf(path, sizeof path, "%s/%s", folder, entry->d_name);
        read_file(r, path);
    }
    closedir(list);
}

static double half_number(uint16_t bits)
{
    int exponent = bits >> 10 & 31, fraction = bits & 1023;
    double size = exponent ? ldexp(1024 + fraction, exponent - 25) : ldexp(fraction, -24);
    return bits & 0x8000 ? -size : size;
}

static double element(const lode_tensor_t *tensor, size_t i)
{
    float wide;
    uint16_t half;
    if (strcmp(tensor->dtype, "F32") == 0) {
        memcpy(&wide, tensor->data + 4 * i, 4);
        return wide;
    }
    memcpy(&half, tensor->data + 2 * i, 2);
    if (strcmp(tensor->dtype, "F16") == 0)
        return half_number(half);
    uint32_t bits = (uint32_t)half << 16;
    memcpy(&wide, &bits, 4);
    return wide;
}

/* A tensor as doubles; NULL if there is none. */
static double *find(reference_h r, const char *name)
{
    for (uint32_t i = 0; i < r->file_count; i++) {
        const lode_tensor_t *tensor = lode_safetensors_find(&r->files[i], name);
        if (!tensor)
            continue;
        size_t n = (size_t)(tensor->end - tensor->begin) / tensor->element;
        double *numbers = room_for(n);
        for (size_t j = 0; j < n; j++)
            numbers[j] = element(tensor, j);
        return numbers;
    }
    return NULL;
}

static double *find_in_layer(reference_h r, uint32_t i, const char *what)
{
    char name[128];
    snprintf(name, sizeof name, "model.layers.%u.%s", i, what);
    return find(r, name);
}

static void read_layer(reference_h r, uint32_t i)
{
    layer_t *l = &r->layer[i];
    *l = (layer_t){.norm1 = find_in_layer(r, i, "input_layernorm.weight"),
                   .norm2 = find_in_layer(r, i, "post_attention_layernorm.weight"),
                   .q = find_in_layer(r, i, "self_attn.q_proj.weight"),
                   .k = find_in_layer(r, i, "self_attn.k_proj.weight"),
                   .v = find_in_layer(r, i, "self_attn.v_proj.weight"),
                   .o = find_in_layer(r, i, "self_attn.o_proj.weight"),
                   .gate = find_in_layer(r, i, "mlp.gate_proj.weight"),
                   .up = find_in_layer(r, i, "mlp.up_proj.weight"),
                   .down = find_in_layer(r, i, "mlp.down_proj.weight"),
                   .q_norm = find_in_layer(r, i, "self_attn.q_norm.weight"),
                   .k_norm = find_in_layer(r, i, "self_attn.k_norm.weight"),
                   .q_bias = find_in_layer(r, i, "self_attn.q_proj.bias"),
                   .k_bias = find_in_layer(r, i, "self_attn.k_proj.bias"),
                   .v_bias = find_in_layer(r, i, "self_attn.v_proj.bias")};
}

/* ------------------------------------------------------------------- angles */

static double number(const json_t *object, const char *name, double otherwise)
{
    const json_t *value = json_object_get(object, name);
    return json_is_number(value) ? json_number_value(value) : otherwise;
}

/* Wave length against the training's context, as in Llama 3.1's own code. */
static double llama3(const json_t *scaling, double freq)
{
    double factor = number(scaling, "factor", 0), low = number(scaling, "low_freq_factor", 0);
    double high = number(scaling, "high_freq_factor", 0);
    double context = number(scaling, "original_max_position_embeddings", 0), length = 2 * M_PI / freq;
    if (length > context / low)
        return freq / factor;
    if (length < context / high)
        return freq;
    double smooth = (context / length - low) / (high - low);
    return (1 - smooth) * freq / factor + smooth * freq;
}

/* (1 − ramp)·extrapolated + ramp·interpolated, the ramp between the pairs of 32 and of 1 turns. */
static double yarn(const json_t *scaling, double theta, double dim, double pair, double freq)
{
    double context = number(scaling, "original_max_position_embeddings", 0);
    double low = floor(dim * log(context / (number(scaling, "beta_fast", 32) * 2 * M_PI)) / (2 * log(theta)));
    double high = ceil(dim * log(context / (number(scaling, "beta_slow", 1) * 2 * M_PI)) / (2 * log(theta)));
    low = low < 0 ? 0 : low;
    high = high > dim - 1 ? dim - 1 : high;
    double ramp = (pair - low) / (high > low ? high - low : 0.001);
    ramp = ramp < 0 ? 0 : ramp > 1 ? 1 : ramp;
    return (1 - ramp) * freq + ramp * freq / number(scaling, "factor", 0);
}

static void set_angles(reference_h r, const json_t *config)
{
    const json_t *scaling = json_object_get(config, "rope_parameters");
    scaling = json_is_object(scaling) ? scaling : json_object_get(config, "rope_scaling");
    const json_t *type = json_object_get(scaling, "rope_type");
    const char *kind = json_string_value(type ? type : json_object_get(scaling, "type"));
    double theta = number(scaling, "rope_theta", number(config, "rope_theta", 10000));
    kind = kind ? kind : "default";
    r->scale = 1;
    for (uint32_t i = 0; i < r->dim / 2; i++) {
        double freq = 1 / pow(theta, 2.0 * i / r->dim);
        if (strcmp(kind, "linear") == 0)
            freq /= number(scaling, "factor", 0);
        else if (strcmp(kind, "llama3") == 0)
            freq = llama3(scaling, freq);
        else if (strcmp(kind, "yarn") == 0)
            freq = yarn(scaling, theta, r->dim, i, freq);
        r->freq[i] = freq;
    }
    if (strcmp(kind, "yarn") == 0)
        r->scale = number(scaling, "attention_factor", 0.1 * log(number(scaling, "factor", 0)) + 1);
}

reference_h reference_open(const char *folder)
{
    char path[4096];
    json_error_t error;
    reference_h r = calloc(1, sizeof *r);
    snprintf(path, sizeof path, "%s/config.json", folder);
    json_t *config = json_load_file(path, 0, &error);
    if (!r || !config)
        die(path);
    r->layers = (uint32_t)number(config, "num_hidden_layers", 0);
    r->heads = (uint32_t)number(config, "num_attention_heads", 0);
    r->kv_heads = (uint32_t)number(config, "num_key_value_heads", r->heads);
    r->hidden = (uint32_t)number(config, "hidden_size", 0);
    r->dim = (uint32_t)number(config, "head_dim", (double)(r->hidden / r->heads));
    r->inner = (uint32_t)number(config, "intermediate_size", 0);
    r->vocabulary = (uint32_t)number(config, "vocab_size", 0);
    r->eps = number(config, "rms_norm_eps", 1e-6);
    set_angles(r, config);
    read_files(r, folder);
    r->layer = calloc(r->layers, sizeof *r->layer);
    for (uint32_t i = 0; i < r->layers; i++)
        read_layer(r, i);
    r->embedding = find(r, "model.embed_tokens.weight");
    r->norm = find(r, "model.norm.weight");
    r->head = json_is_true(json_object_get(config, "tie_word_embeddings")) ? NULL : find(r, "lm_head.weight");
    r->logits = room_for(r->vocabulary);
    json_decref(config);
    return r;
}

void reference_close(reference_h *reference)
{
    reference_h r = *reference;
    for (uint32_t i = 0; i < r->layers; i++) {
        layer_t *l = &r->layer[i];
        double *all[] = {l->norm1, l->norm2,  l->q,      l->k,      l->v,      l->o,      l->gate, l->up,
                         l->down,  l->q_norm, l->k_norm, l->q_bias, l->k_bias, l->v_bias, l->keys, l->values};
        for (size_t j = 0; j < sizeof all / sizeof *all; j++)
            free(all[j]);
    }
    for (uint32_t i = 0; i < r->file_count; i++) {
        lode_safetensors_free(&r->files[i]);
        free(r->bytes[i]);
    }
    free(r->layer);
    free(r->embedding);
    free(r->head);
    free(r->norm);
    free(r->logits);
    free(r);
    *reference = NULL;
}

uint32_t reference_vocabulary(reference_h reference)
{
    return reference->vocabulary;
}

const double *reference_last(reference_h reference)
{
    return reference->logits;
}

/* --------------------------------------------------------------- arithmetic */

/* out (rows) = weights (rows, columns) · x + bias */
static void multiply(const double *weights, const double *bias, const double *x, uint32_t rows, uint32_t columns,
                     double *out)
{
    for (uint32_t i = 0; i < rows; i++) {
        double sum = bias ? bias[i] : 0;
        for (uint32_t j = 0; j < columns; j++)
            sum += weights[(size_t)i * columns + j] * x[j];
        out[i] = sum;
    }
}

static void norm(const double *x, const double *weights, double eps, uint32_t n, double *out)
{
    double squares = 0;
    for (uint32_t i = 0; i < n; i++)
        squares += x[i] * x[i];
    for (uint32_t i = 0; i < n; i++)
        out[i] = x[i] / sqrt(squares / n + eps) * weights[i];
}

static void turn(const reference_h r, double *head, double position)
{
    for (uint32_t i = 0; i < r->dim / 2; i++) {
        double a = head[i], b = head[i + r->dim / 2];
        double c = cos(position * r->freq[i]) * r->scale, s = sin(position * r->freq[i]) * r->scale;
        head[i] = a * c - b * s;
        head[i + r->dim / 2] = b * c + a * s;
    }
}

static void prepare_heads(const reference_h r, double *heads, uint32_t count, const double *weights)
{
    for (uint32_t i = 0; i < count; i++) {
        if (weights)
            norm(heads + i * r->dim, weights, r->eps, r->dim, heads + i * r->dim);
        turn(r, heads + i * r->dim, r->tokens);
    }
}

/* One query head over all tokens so far. */
static void attend(const reference_h r, const layer_t *l, const double *q, uint32_t kv_head, double *out)
{
    uint32_t width = r->kv_heads * r->dim, n = r->tokens + 1;
    double *weights = room_for(n), most = -INFINITY, sum = 0;
    for (uint32_t t = 0; t < n; t++) {
        for (uint32_t i = 0; i < r->dim; i++)
            weights[t] += q[i] * l->keys[(size_t)t * width + kv_head * r->dim + i];
        weights[t] /= sqrt(r->dim);
        most = fmax(most, weights[t]);
    }
    for (uint32_t t = 0; t < n; t++)
        sum += weights[t] = exp(weights[t] - most);
    for (uint32_t i = 0; i < r->dim; i++) {
        out[i] = 0;
        for (uint32_t t = 0; t < n; t++)
            out[i] += weights[t] / sum * l->values[(size_t)t * width + kv_head * r->dim + i];
    }
    free(weights);
}

static void run_attention(reference_h r, layer_t *l, double *x)
{
    uint32_t width = r->kv_heads * r->dim, whole = r->heads * r->dim;
    double *h = room_for(r->hidden), *q = room_for(whole), *out = room_for(whole);
    double *k = l->keys + (size_t)r->tokens * width, *v = l->values + (size_t)r->tokens * width;
    norm(x, l->norm1, r->eps, r->hidden, h);
    multiply(l->q, l->q_bias, h, whole, r->hidden, q);
    multiply(l->k, l->k_bias, h, width, r->hidden, k);
    multiply(l->v, l->v_bias, h, width, r->hidden, v);
    prepare_heads(r, q, r->heads, l->q_norm);
    prepare_heads(r, k, r->kv_heads, l->k_norm);
    for (uint32_t i = 0; i < r->heads; i++)
        attend(r, l, q + i * r->dim, i / (r->heads / r->kv_heads), out + i * r->dim);
    multiply(l->o, NULL, out, r->hidden, whole, h);
    for (uint32_t i = 0; i < r->hidden; i++)
        x[i] += h[i];
    free(h);
    free(q);
    free(out);
}

static void run_mlp(const reference_h r, const layer_t *l, double *x)
{
    double *h = room_for(r->hidden), *gate = room_for(r->inner), *up = room_for(r->inner);
    norm(x, l->norm2, r->eps, r->hidden, h);
    multiply(l->gate, NULL, h, r->inner, r->hidden, gate);
    multiply(l->up, NULL, h, r->inner, r->hidden, up);
    for (uint32_t i = 0; i < r->inner; i++)
        gate[i] = gate[i] / (1 + exp(-gate[i])) * up[i];
    multiply(l->down, NULL, gate, r->hidden, r->inner, h);
    for (uint32_t i = 0; i < r->hidden; i++)
        x[i] += h[i];
    free(h);
    free(gate);
    free(up);
}

static void grow(reference_h r)
{
    r->room = r->room ? 2 * r->room : 64;
    size_t bytes = (size_t)r->room * r->kv_heads * r->dim * sizeof(double);
    for (uint32_t i = 0; i < r->layers; i++) {
        r->layer[i].keys = realloc(r->layer[i].keys, bytes);
        r->layer[i].values = realloc(r->layer[i].values, bytes);
        if (!r->layer[i].keys || !r->layer[i].values)
            die("no memory");
    }
}

const double *reference_next(reference_h r, uint32_t token)
{
    double *x = room_for(r->hidden);
    if (r->tokens == r->room)
        grow(r);
    memcpy(x, r->embedding + (size_t)token * r->hidden, r->hidden * sizeof *x);
    for (uint32_t i = 0; i < r->layers; i++) {
        run_attention(r, &r->layer[i], x);
        run_mlp(r, &r->layer[i], x);
    }
    norm(x, r->norm, r->eps, r->hidden, x);
    multiply(r->head ? r->head : r->embedding, NULL, x, r->vocabulary, r->hidden, r->logits);
    free(x);
    r->tokens++;
    return r->logits;
}
