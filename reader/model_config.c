/* SPDX-License-Identifier: Apache-2.0 */
#include "reader/model_config.h"

#include <errno.h>
#include <jansson.h>
#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* What the fields are read from, and how errors name it. */
typedef struct source {
    const char *path;
    const json_t *object;
} source_t;

static const json_t *field(const source_t *from, const char *name)
{
    const json_t *value = json_object_get(from->object, name);
    return json_is_null(value) ? NULL : value;
}

/* A whole number from 1 to most; @p otherwise where it is not said, 0: it must be. */
static lode_status_t read_count(const source_t *from, const char *name, uint32_t otherwise, uint32_t most,
                                uint32_t *count)
{
    const json_t *value = field(from, name);
    if (!value && otherwise) {
        *count = otherwise;
        return LODE_OK;
    }
    if (!value)
        return lode_fail(LODE_ERR_FORMAT, "%s: \"%s\" is missing", from->path, name);
    if (!json_is_integer(value) || json_integer_value(value) < 1 || json_integer_value(value) > most)
        return lode_fail(LODE_ERR_FORMAT, "%s: \"%s\" is not a whole number from 1 to %u", from->path, name, most);
    *count = (uint32_t)json_integer_value(value);
    return LODE_OK;
}

/* A finite number above 0; @p otherwise where it is not said, 0: it must be. */
static lode_status_t read_number(const source_t *from, const char *name, double otherwise, double *number)
{
    const json_t *value = field(from, name);
    if (!value && otherwise > 0) {
        *number = otherwise;
        return LODE_OK;
    }
    if (!value)
        return lode_fail(LODE_ERR_FORMAT, "%s: \"%s\" is missing", from->path, name);
    if (!json_is_number(value) || !(json_number_value(value) > 0) || !isfinite(json_number_value(value)))
        return lode_fail(LODE_ERR_FORMAT, "%s: \"%s\" is not a number above 0", from->path, name);
    *number = json_number_value(value);
    return LODE_OK;
}

static lode_status_t read_flag(const source_t *from, const char *name, bool *flag)
{
    const json_t *value = field(from, name);
    if (value && !json_is_boolean(value))
        return lode_fail(LODE_ERR_FORMAT, "%s: \"%s\" is neither true nor false", from->path, name);
    *flag = json_is_true(value);
    return LODE_OK;
}

/* ------------------------------------------------------------- what we know */

static const char *const families[] = {"llama", "qwen2", "qwen3"};

static lode_status_t read_family(const source_t *from, lode_model_config_t *config)
{
    const json_t *value = field(from, "model_type");
    const char *type = json_string_value(value);
    if (!type)
        return lode_fail(LODE_ERR_FORMAT, "%s: \"model_type\" is missing or no text", from->path);
    for (size_t i = 0; i < sizeof families / sizeof *families; i++)
        if (strcmp(type, families[i]) == 0)
            config->family = families[i];
    if (!config->family)
        return lode_fail(LODE_ERR_UNSUPPORTED,
                         "%s: the architecture \"%s\" is not known; those that are: llama, qwen2, qwen3", from->path,
                         type);
    const char *class = json_string_value(json_array_get(field(from, "architectures"), 0));
    size_t length = class ? strlen(class) : 0, ending = strlen("ForCausalLM");
    if (class && (length < ending || strcmp(class + length - ending, "ForCausalLM") != 0))
        return lode_fail(LODE_ERR_UNSUPPORTED, "%s: the architecture \"%s\" is no language model (…ForCausalLM)",
                         from->path, class);
    return LODE_OK;
}

/* Texts that may have one value alone. */
static lode_status_t refuse_other(const source_t *from, const char *name, const char *known, bool needed)
{
    const json_t *value = field(from, name);
    const char *text = json_string_value(value);
    if (!value && !needed)
        return LODE_OK;
    if (!text)
        return lode_fail(LODE_ERR_FORMAT, "%s: \"%s\" is missing or no text", from->path, name);
    if (strcmp(text, known) != 0)
        return lode_fail(LODE_ERR_UNSUPPORTED, "%s: \"%s\" is \"%s\"; known is \"%s\" alone", from->path, name, text,
                         known);
    return LODE_OK;
}

/* Things that a model may have and we do not: nothing of them is skipped in silence. */
static lode_status_t refuse_unknown(const source_t *from)
{
    static const char *const flags[] = {"attention_bias", "mlp_bias", "use_sliding_window"};
    static const char *const objects[] = {"quantization_config", "num_local_experts", "num_experts"};
    for (size_t i = 0; i < sizeof flags / sizeof *flags; i++) {
        bool set = false;
        LODE_TRY(read_flag(from, flags[i], &set));
        if (set)
            return lode_fail(LODE_ERR_UNSUPPORTED, "%s: \"%s\" is not supported", from->path, flags[i]);
    }
    for (size_t i = 0; i < sizeof objects / sizeof *objects; i++)
        if (field(from, objects[i]))
            return lode_fail(LODE_ERR_UNSUPPORTED, "%s: \"%s\" is not supported", from->path, objects[i]);
    const json_t *layers = field(from, "layer_types"), *type;
    size_t i;
    json_array_foreach(layers, i, type)
    {
        if (!json_string_value(type) || strcmp(json_string_value(type), "full_attention") != 0)
            return lode_fail(LODE_ERR_UNSUPPORTED, "%s: layer %zu has \"%s\", not \"full_attention\"", from->path, i,
                             json_string_value(type) ? json_string_value(type) : "?");
    }
    return refuse_other(from, "hidden_act", "silu", true);
}

/* --------------------------------------------------------------------- rope */

static double yarn_log(double factor, double multiplier)
{
    return factor <= 1 ? 1 : 0.1 * multiplier * log(factor) + 1;
}

static lode_status_t read_yarn(const source_t *from, lode_model_config_t *config)
{
    lode_rope_t *rope = &config->geometry.rope;
    const json_t *truncate = field(from, "truncate");
    if (truncate && !json_is_true(truncate))
        return lode_fail(LODE_ERR_UNSUPPORTED, "%s: YaRN with \"truncate\" false is not supported", from->path);
    LODE_TRY(read_number(from, "original_max_position_embeddings", config->context, &rope->original_context));
    LODE_TRY(read_number(from, "beta_fast", 32, &rope->beta_fast));
    LODE_TRY(read_number(from, "beta_slow", 1, &rope->beta_slow));
    double scale = yarn_log(rope->factor, 1), part = 1, whole = 1;
    if (field(from, "mscale") && field(from, "mscale_all_dim")) {
        LODE_TRY(read_number(from, "mscale", 0, &part));
        LODE_TRY(read_number(from, "mscale_all_dim", 0, &whole));
        scale = yarn_log(rope->factor, part) / yarn_log(rope->factor, whole);
    }
    LODE_TRY(read_number(from, "attention_factor", scale, &config->rope_scale));
    if (rope->beta_fast <= rope->beta_slow)
        return lode_fail(LODE_ERR_FORMAT, "%s: YaRN's \"beta_fast\" is not above its \"beta_slow\"", from->path);
    return LODE_OK;
}

static lode_status_t read_llama3(const source_t *from, lode_model_config_t *config)
{
    lode_rope_t *rope = &config->geometry.rope;
    LODE_TRY(read_number(from, "low_freq_factor", 0, &rope->low_freq_factor));
    LODE_TRY(read_number(from, "high_freq_factor", 0, &rope->high_freq_factor));
    LODE_TRY(read_number(from, "original_max_position_embeddings", 0, &rope->original_context));
    if (rope->high_freq_factor <= rope->low_freq_factor)
        return lode_fail(LODE_ERR_FORMAT, "%s: \"high_freq_factor\" is not above \"low_freq_factor\"", from->path);
    return LODE_OK;
}

static lode_status_t read_scaling(const source_t *from, lode_model_config_t *config)
{
    lode_rope_t *rope = &config->geometry.rope;
    const json_t *value = field(from, "rope_type") ? field(from, "rope_type") : field(from, "type");
    const char *type = value ? json_string_value(value) : "default";
    if (!type)
        return lode_fail(LODE_ERR_FORMAT, "%s: the type of rope scaling is no text", from->path);
    if (strcmp(type, "default") == 0)
        return LODE_OK;
    rope->scaling = strcmp(type, "linear") == 0   ? LODE_ROPE_LINEAR
                    : strcmp(type, "llama3") == 0 ? LODE_ROPE_LLAMA3
                                                  : LODE_ROPE_YARN;
    if (rope->scaling == LODE_ROPE_YARN && strcmp(type, "yarn") != 0)
        return lode_fail(LODE_ERR_UNSUPPORTED,
                         "%s: rope scaling \"%s\" is not known; those that are: default, linear, llama3, yarn",
                         from->path, type);
    LODE_TRY(read_number(from, "factor", 0, &rope->factor));
    if (rope->scaling == LODE_ROPE_LLAMA3)
        return read_llama3(from, config);
    return rope->scaling == LODE_ROPE_YARN ? read_yarn(from, config) : LODE_OK;
}

/* "rope_theta" beside "rope_scaling", or both in "rope_parameters" as newer files have it. */
static lode_status_t read_rope(const source_t *from, lode_model_config_t *config)
{
    const json_t *object =
        field(from, "rope_parameters") ? field(from, "rope_parameters") : field(from, "rope_scaling");
    if (object && !json_is_object(object))
        return lode_fail(LODE_ERR_FORMAT, "%s: \"rope_scaling\" is no object", from->path);
    source_t inner = {from->path, object};
    const source_t *theta = object && field(&inner, "rope_theta") ? &inner : from;
    double partial = 1;
    config->rope_scale = 1;
    LODE_TRY(read_number(theta, "rope_theta", 10000, &config->geometry.rope.theta));
    LODE_TRY(read_number(object && field(&inner, "partial_rotary_factor") ? &inner : from, "partial_rotary_factor", 1,
                         &partial));
    if (config->geometry.rope.theta <= 1)
        return lode_fail(LODE_ERR_FORMAT, "%s: \"rope_theta\" is not above 1", from->path);
    if (partial != 1)
        return lode_fail(LODE_ERR_UNSUPPORTED, "%s: \"partial_rotary_factor\" %g is not supported", from->path,
                         partial);
    return object ? read_scaling(&inner, config) : LODE_OK;
}

/* -------------------------------------------------------------------- shape */

static lode_status_t read_heads(const source_t *from, lode_model_config_t *config)
{
    enum { QWEN3_DIM = 128 }; /* where its file does not say */
    lode_geometry_t *g = &config->geometry;
    LODE_TRY(read_count(from, "num_hidden_layers", 0, 4096, &g->layers));
    LODE_TRY(read_count(from, "num_attention_heads", 0, 4096, &g->query_heads));
    LODE_TRY(read_count(from, "num_key_value_heads", g->query_heads, 4096, &g->kv_heads));
    uint32_t whole = config->hidden / g->query_heads;
    LODE_TRY(read_count(from, "head_dim", config->head_norms ? QWEN3_DIM : whole ? whole : 1, 4096, &g->head_dim));
    if (g->query_heads % g->kv_heads)
        return lode_fail(LODE_ERR_FORMAT, "%s: %u attention heads cannot share %u KV heads", from->path, g->query_heads,
                         g->kv_heads);
    if (g->head_dim != 64 && g->head_dim != 128 && g->head_dim != 256)
        return lode_fail(LODE_ERR_UNSUPPORTED, "%s: heads of dimension %u; those that can be attended: 64, 128, 256",
                         from->path, g->head_dim);
    return LODE_OK;
}

static lode_status_t read_fields(const source_t *from, lode_model_config_t *config)
{
    enum { MOST = 1 << 24 };
    LODE_TRY(read_family(from, config));
    config->head_norms = strcmp(config->family, "qwen3") == 0;
    config->biases = strcmp(config->family, "qwen2") == 0;
    LODE_TRY(refuse_unknown(from));
    LODE_TRY(read_count(from, "hidden_size", 0, MOST, &config->hidden));
    LODE_TRY(read_count(from, "intermediate_size", 0, MOST, &config->intermediate));
    LODE_TRY(read_count(from, "vocab_size", 0, MOST, &config->vocabulary));
    LODE_TRY(read_count(from, "max_position_embeddings", 0, INT_MAX, &config->context));
    LODE_TRY(read_heads(from, config));
    LODE_TRY(read_number(from, "rms_norm_eps", 1e-6, &config->eps));
    LODE_TRY(read_flag(from, "tie_word_embeddings", &config->tied));
    return read_rope(from, config);
}

lode_status_t lode_model_config_read(const char *folder, lode_model_config_t *config)
{
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s/config.json", folder);
    FILE *file = fopen(path, "re");
    if (!file)
        return lode_fail(LODE_ERR_IO, "%s cannot be read: %s", path, strerror(errno));
    json_error_t error;
    json_t *object = json_loadf(file, JSON_REJECT_DUPLICATES, &error);
    fclose(file);
    if (!json_is_object(object)) {
        json_decref(object);
        return lode_fail(LODE_ERR_FORMAT, "%s is no JSON object (line %d: %s)", path, error.line,
                         object ? "another value" : error.text);
    }
    lode_model_config_t made = {0};
    lode_status_t status = read_fields(&(source_t){path, object}, &made);
    json_decref(object);
    if (status == LODE_OK)
        *config = made;
    return status;
}
