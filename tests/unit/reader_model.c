/* SPDX-License-Identifier: Apache-2.0 */
/* The model: its files, its angles, its arithmetic. */
#include <criterion/criterion.h>
#include <dirent.h>
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/safetensors.h"
#include "kernels/kernels.h"
#include "reader/elementwise.h"
#include "reader/model_config.h"
#include "reader/products.h"
#include "tests/unit/reader_products.h"
#include "reader/rope.h"
#include "reader_dense.h"

TestSuite(model_config, .timeout = 60);
TestSuite(model_files, .timeout = 60);
TestSuite(model_loops, .timeout = 60);
TestSuite(model_products, .timeout = 120);
TestSuite(model_parity, .timeout = 120);

#define VECTORS LODE_TEST_VECTORS "/models"

/* ------------------------------------------------------------------- folders */

static char folder[64];

static void make_folder(void)
{
    snprintf(folder, sizeof folder, "/tmp/lode-model-XXXXXX");
    cr_assert(mkdtemp(folder));
}

static void remove_folder(void)
{
    DIR *list = opendir(folder);
    char path[512];
    for (struct dirent *entry; list && (entry = readdir(list));) {
        snprintf(path, sizeof path, "%s/%s", folder, entry->d_name);
        if (entry->d_name[0] != '.')
            unlink(path);
    }
    closedir(list);
    rmdir(folder);
}

static uint8_t *read_bytes(const char *path, size_t *size)
{
    FILE *file = fopen(path, "rb");
    cr_assert(file, "%s", path);
    fseek(file, 0, SEEK_END);
    *size = (size_t)ftell(file);
    rewind(file);
    uint8_t *bytes = malloc(*size + 1);
    cr_assert(fread(bytes, 1, *size, file) == *size);
    bytes[*size] = 0;
    fclose(file);
    return bytes;
}

static void write_bytes(const char *name, const void *bytes, size_t size)
{
    char path[256];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *file = fopen(path, "wb");
    cr_assert(file && fwrite(bytes, 1, size, file) == size);
    fclose(file);
}

static void write_json(const char *name, const json_t *object)
{
    char *text = json_dumps(object, 0);
    write_bytes(name, text, strlen(text));
    free(text);
}

static json_t *load_json(const char *path)
{
    json_error_t error;
    json_t *object = json_load_file(path, 0, &error);
    cr_assert(object, "%s: %s", path, error.text);
    return object;
}

/* ------------------------------------------------------------- configurations */

/* A configuration that is fine, with a field replaced by a value; NULL: without the field. */
static lode_status_t read_with(const char *name, json_t *value, lode_model_config_t *config)
{
    json_t *object = load_json(VECTORS "/qwen2/config.json");
    if (value)
        json_object_set_new(object, name, value);
    else
        json_object_del(object, name);
    write_json("config.json", object);
    json_decref(object);
    return lode_model_config_read(folder, config);
}

static void expect_refused(const char *name, json_t *value, lode_status_t status, const char *says)
{
    lode_model_config_t config;
    lode_status_t got = read_with(name, value, &config);
    cr_assert(got == status, "%s: %s, not %s", name, lode_status_string(got), lode_status_string(status));
    cr_assert(strstr(lode_error_message(), says), "%s", lode_error_message());
    cr_assert(strstr(lode_error_message(), folder), "%s", lode_error_message());
}

Test(model_config, what_is_not_known_is_refused_by_name, .init = make_folder, .fini = remove_folder)
{
    const lode_status_t no = LODE_ERR_UNSUPPORTED;
    expect_refused("model_type", json_string("mixtral"), no, "\"mixtral\"");
    expect_refused("architectures", json_pack("[s]", "Qwen2ForSequenceClassification"), no, "SequenceClassification");
    expect_refused("hidden_act", json_string("gelu"), no, "\"gelu\"");
    expect_refused("use_sliding_window", json_true(), no, "use_sliding_window");
    expect_refused("layer_types", json_pack("[ss]", "full_attention", "sliding_attention"), no, "sliding_attention");
    expect_refused("attention_bias", json_true(), no, "attention_bias");
    expect_refused("mlp_bias", json_true(), no, "mlp_bias");
    expect_refused("quantization_config", json_pack("{s:s}", "quant_method", "awq"), no, "quantization_config");
    expect_refused("num_experts", json_integer(8), no, "num_experts");
    expect_refused("partial_rotary_factor", json_real(0.5), no, "partial_rotary_factor");
    expect_refused("head_dim", json_integer(80), no, "dimension 80");
    expect_refused("rope_scaling", json_pack("{s:s s:f}", "type", "dynamic", "factor", 2.0), no, "\"dynamic\"");
    expect_refused("rope_scaling", json_pack("{s:s s:f s:b}", "rope_type", "yarn", "factor", 2.0, "truncate", 0), no,
                   "truncate");
}

Test(model_config, what_is_wrong_is_named, .init = make_folder, .fini = remove_folder)
{
    const lode_status_t wrong = LODE_ERR_FORMAT;
    expect_refused("model_type", NULL, wrong, "model_type");
    expect_refused("hidden_size", NULL, wrong, "hidden_size");
    expect_refused("hidden_size", json_string("64"), wrong, "hidden_size");
    expect_refused("hidden_size", json_integer(0), wrong, "hidden_size");
    expect_refused("vocab_size", json_integer(1LL << 40), wrong, "vocab_size");
    expect_refused("num_key_value_heads", json_integer(3), wrong, "3 KV heads");
    expect_refused("rms_norm_eps", json_real(-1), wrong, "rms_norm_eps");
    expect_refused("tie_word_embeddings", json_string("yes"), wrong, "tie_word_embeddings");
    expect_refused("rope_theta", json_real(0.5), wrong, "rope_theta");
    expect_refused("rope_scaling", json_string("yarn"), wrong, "rope_scaling");
    expect_refused("rope_scaling", json_pack("{s:s}", "rope_type", "linear"), wrong, "factor");
    expect_refused("rope_scaling", json_pack("{s:s s:f}", "rope_type", "llama3", "factor", 2.0), wrong,
                   "low_freq_factor");
    lode_model_config_t config;
    write_bytes("config.json", "{\"model_type\": ", 15);
    cr_assert(lode_model_config_read(folder, &config) == LODE_ERR_FORMAT);
    cr_assert(strstr(lode_error_message(), "line 1"), "%s", lode_error_message());
    write_bytes("config.json", "[]", 2);
    cr_assert(lode_model_config_read(folder, &config) == LODE_ERR_FORMAT);
    char path[128];
    snprintf(path, sizeof path, "%s/config.json", folder);
    unlink(path);
    cr_assert(lode_model_config_read(folder, &config) == LODE_ERR_IO);
    cr_assert(strstr(lode_error_message(), "config.json"), "%s", lode_error_message());
}

Test(model_config, the_family_decides_what_layers_have, .init = make_folder, .fini = remove_folder)
{
    lode_model_config_t config;
    cr_assert(read_with("num_key_value_heads", NULL, &config) == LODE_OK, "%s", lode_error_message());
    cr_assert(config.geometry.kv_heads == config.geometry.query_heads && config.geometry.head_dim == 64);
    cr_assert(config.biases && !config.head_norms && config.tied);
    cr_assert(read_with("model_type", json_string("qwen3"), &config) == LODE_OK, "%s", lode_error_message());
    cr_assert(config.head_norms && !config.biases);
    cr_assert(read_with("model_type", json_string("llama"), &config) == LODE_OK);
    cr_assert(!config.head_norms && !config.biases && config.rope_scale == 1);
}

/* Frequencies of every scaling, against transformers' fp32 and against those that steps turn queries by. */
Test(model_config, angles_are_those_of_transformers_and_of_steps, .init = make_folder, .fini = remove_folder)
{
    json_t *rows = load_json(VECTORS "/rope.json"), *row;
    size_t i;
    cr_assert(json_array_size(rows) >= 8);
    json_array_foreach(rows, i, row)
    {
        lode_model_config_t config;
        double freq[LODE_MAX_DIM / 2], steps[LODE_MAX_DIM / 2];
        write_json("config.json", json_object_get(row, "config"));
        cr_assert(lode_model_config_read(folder, &config) == LODE_OK, "%zu: %s", i, lode_error_message());
        const json_t *expected = json_object_get(row, "frequencies");
        uint32_t pairs = config.geometry.head_dim / 2;
        cr_assert(json_array_size(expected) == pairs);
        lode_reader_frequencies(&config.geometry.rope, config.geometry.head_dim, freq);
        cr_assert(lode_rope_frequencies(&config.geometry.rope, config.geometry.head_dim, steps) == LODE_OK);
        for (uint32_t j = 0; j < pairs; j++) {
            double theirs = json_number_value(json_array_get(expected, j));
            cr_assert(fabs(freq[j] - theirs) <= 2e-6 * theirs, "%zu, pair %u: %g, not %g", i, j, freq[j], theirs);
            cr_assert(fabs(freq[j] - steps[j]) <= 1e-14 * steps[j], "%zu, pair %u: %g, a step %g", i, j, freq[j],
                      steps[j]);
        }
        double factor = json_number_value(json_object_get(row, "attention_factor"));
        cr_assert(fabs(config.rope_scale - factor) < 1e-6, "%zu: %g, not %g", i, config.rope_scale, factor);
    }
    json_decref(rows);
}

Test(model_config, a_turn_by_two_angles_is_a_turn_by_their_sum)
{
    const lode_rope_t rope = {.theta = 10000};
    double freq[32];
    float c[3][32], s[3][32];
    lode_reader_frequencies(&rope, 64, freq);
    lode_reader_angles(freq, 32, 1000, 1, c[0], s[0]);
    lode_reader_angles(freq, 32, -300, 1, c[1], s[1]);
    lode_reader_angles(freq, 32, 700, 1, c[2], s[2]);
    for (int i = 0; i < 32; i++) {
        cr_assert(fabsf(c[0][i] * c[1][i] - s[0][i] * s[1][i] - c[2][i]) < 1e-6f);
        cr_assert(fabsf(s[0][i] * c[1][i] + c[0][i] * s[1][i] - s[2][i]) < 1e-6f);
    }
}

/* ---------------------------------------------------------------------- files */

static void copy_model(const char *from)
{
    DIR *list = opendir(from);
    char path[512];
    cr_assert(list, "%s", from);
    for (struct dirent *entry; (entry = readdir(list));) {
        if (entry->d_name[0] == '.')
            continue;
        size_t size;
        snprintf(path, sizeof path, "%s/%s", from, entry->d_name);
        uint8_t *bytes = read_bytes(path, &size);
        write_bytes(entry->d_name, bytes, size);
        free(bytes);
    }
    closedir(list);
}

static void expect_no_model(lode_status_t status, const char *says, const char *too)
{
    lode_model_h model = NULL;
    lode_status_t got = lode_model_open(folder, 1, NULL, &model);
    cr_assert(got == status && !model, "%s: %s", lode_status_string(got), lode_error_message());
    cr_assert(strstr(lode_error_message(), says) && strstr(lode_error_message(), too), "%s", lode_error_message());
}

/* Put another text of the same length into a file's header. */
static void patch(const char *name, const char *old, const char *new)
{
    char path[256];
    size_t size;
    snprintf(path, sizeof path, "%s/%s", folder, name);
    uint8_t *bytes = read_bytes(path, &size), *at = memmem(bytes, size, old, strlen(old));
    cr_assert(at && strlen(old) == strlen(new), "%s", old);
    memcpy(at, new, strlen(new));
    write_bytes(name, bytes, size);
    free(bytes);
}

static void set_field(const char *name, json_t *value)
{
    char path[256];
    snprintf(path, sizeof path, "%s/config.json", folder);
    json_t *object = load_json(path);
    json_object_set_new(object, name, value);
    write_json("config.json", object);
    json_decref(object);
}

Test(model_files, missing_and_torn_files, .init = make_folder, .fini = remove_folder)
{
    size_t size;
    char path[256];
    copy_model(VECTORS "/qwen2");
    uint8_t *bytes = read_bytes(VECTORS "/qwen2/model.safetensors", &size);
    write_bytes("model.safetensors", bytes, size - 100);
    expect_no_model(LODE_ERR_FORMAT, "model.safetensors", "truncated");
    write_bytes("model.safetensors", bytes, 5);
    expect_no_model(LODE_ERR_FORMAT, "model.safetensors", "too few");
    write_bytes("model.safetensors", bytes, 0);
    expect_no_model(LODE_ERR_FORMAT, "model.safetensors", "empty");
    write_bytes("model.safetensors", "\xff\xff\xff\xff\xff\xff\xff\x7f, and more", 18);
    expect_no_model(LODE_ERR_FORMAT, "model.safetensors", "header");
    free(bytes);
    snprintf(path, sizeof path, "%s/model.safetensors", folder);
    unlink(path);
    expect_no_model(LODE_ERR_IO, "neither", "model.safetensors.index.json");
}

Test(model_files, tensors_that_do_not_fit, .init = make_folder, .fini = remove_folder)
{
    const char *file = "model.safetensors";
    copy_model(VECTORS "/qwen2");
    set_field("intermediate_size", json_integer(65));
    expect_no_model(LODE_ERR_FORMAT, "\"model.layers.0.mlp.gate_proj.weight\"", "(65, 128)");
    set_field("intermediate_size", json_integer(64));
    set_field("vocab_size", json_integer(127));
    expect_no_model(LODE_ERR_FORMAT, "\"model.embed_tokens.weight\"", file);
    set_field("vocab_size", json_integer(128));
    set_field("num_hidden_layers", json_integer(2));
    expect_no_model(LODE_ERR_FORMAT, "\"model.layers.1.input_layernorm.weight\"", file);
    set_field("num_hidden_layers", json_integer(1));
    set_field("tie_word_embeddings", json_false());
    expect_no_model(LODE_ERR_FORMAT, "\"lm_head.weight\"", file);
    set_field("tie_word_embeddings", json_true());
    set_field("model_type", json_string("llama"));
    set_field("architectures", json_null());
    expect_no_model(LODE_ERR_UNSUPPORTED, "proj.bias\"", file); /* tensors that nobody would look at */
    set_field("model_type", json_string("qwen3"));
    set_field("head_dim", json_integer(64));
    expect_no_model(LODE_ERR_FORMAT, "\"model.layers.0.self_attn.q_norm.weight\"", file);
    set_field("model_type", json_string("qwen2"));
    patch(file, "model.norm.weight", "model.gnom.weight");
    expect_no_model(LODE_ERR_FORMAT, "\"model.norm.weight\"", file);
    patch(file, "model.gnom.weight", "model.norm.weight");
    patch(file, "\"BF16\"", "\"I16\" ");
    expect_no_model(LODE_ERR_UNSUPPORTED, "I16", file);
    patch(file, "\"I16\" ", "\"F32\" ");
    expect_no_model(LODE_ERR_FORMAT, "F32", file);
}

Test(model_files, an_index_is_followed_within_its_folder, .init = make_folder, .fini = remove_folder)
{
    const char *index = "model.safetensors.index.json", *second = "model-00002-of-00002.safetensors";
    char path[256];
    copy_model(VECTORS "/llama");
    lode_model_h model;
    cr_assert(lode_model_open(folder, 1, NULL, &model) == LODE_OK, "%s", lode_error_message());
    lode_model_close(&model);
    snprintf(path, sizeof path, "%s/%s", folder, index);
    json_t *object = load_json(path), *map = json_object_get(object, "weight_map");
    json_object_set_new(map, "lm_head.weight", json_string("../elsewhere"));
    write_json(index, object);
    expect_no_model(LODE_ERR_FORMAT, index, "\"lm_head.weight\"");
    json_object_set_new(map, "lm_head.weight", json_string("model-00001-of-00002.safetensors"));
    write_json(index, object);
    expect_no_model(LODE_ERR_FORMAT, "model-00001-of-00002.safetensors", "\"lm_head.weight\"");
    json_object_del(map, "lm_head.weight");
    write_json(index, object);
    expect_no_model(LODE_ERR_FORMAT, index, "\"lm_head.weight\"");
    json_object_set_new(map, "lm_head.weight", json_string(second));
    write_json(index, object);
    json_decref(object);
    snprintf(path, sizeof path, "%s/%s", folder, second);
    unlink(path);
    expect_no_model(LODE_ERR_IO, second, "cannot be read");
    write_bytes(index, "{}", 2);
    expect_no_model(LODE_ERR_FORMAT, index, "weight_map");
}

/* ---------------------------------------------------------------------- loops */

enum { LOOP = 211 }; /* not a whole number of vectors */

Test(model_loops, every_level_gives_the_same_bits)
{
    float x[LOOP], y[LOOP], out[2][LOOP];
    uint16_t halves[2][LOOP];
    const lode_elementwise_t *plain = lode_elementwise_level(0), *level;
    for (int i = 0; i < LOOP; i++) {
        x[i] = (float)((int64_t)(lode_mix(1, (uint64_t)i) >> 40) - (1 << 23)) * (i % 7 == 0 ? 1e-3f : 4e-6f);
        y[i] = (float)((int64_t)(lode_mix(2, (uint64_t)i) >> 40) - (1 << 23)) * 1e-7f;
    }
    for (uint32_t n = 1; (level = lode_elementwise_level(n)); n++) {
        plain->norm(x, y, 1e-6f, LOOP, out[0]);
        level->norm(x, y, 1e-6f, LOOP, out[1]);
        cr_assert(memcmp(out[0], out[1], sizeof out[0]) == 0, "norm of %s", level->name);
        plain->swiglu(x, y, LOOP, out[0]);
        level->swiglu(x, y, LOOP, out[1]);
        cr_assert(memcmp(out[0], out[1], sizeof out[0]) == 0, "swiglu of %s", level->name);
        plain->turn(x, y, y + 3, LOOP / 2, out[0]);
        level->turn(x, y, y + 3, LOOP / 2, out[1]);
        cr_assert(memcmp(out[0], out[1], LOOP / 2 * 2 * sizeof **out) == 0, "turn of %s", level->name);
        plain->to_bf16(x, halves[0], LOOP);
        level->to_bf16(x, halves[1], LOOP);
        cr_assert(memcmp(halves[0], halves[1], sizeof halves[0]) == 0, "to_bf16 of %s", level->name);
    }
}

Test(model_loops, swiglu_is_what_it_is_called)
{
    const lode_elementwise_t *ops = lode_elementwise();
    for (double gate = -120; gate < 120; gate += 0.37) {
        float x = (float)gate, y = 1.5f, out;
        ops->swiglu(&x, &y, 1, &out);
        double expected = (double)x / (1 + exp(-(double)x)) * 1.5;
        cr_assert(fabs(out - expected) <= 4e-7 * fabs(expected) + 1e-35, "%g: %g, not %g", gate, (double)out, expected);
    }
}

Test(model_loops, halves_become_numbers_and_back)
{
    const uint16_t fp16[] = {0x3c00, 0xc000, 0x0001, 0x03ff, 0x0400, 0x7bff, 0x8000, 0x7c00};
    const float numbers[] = {1, -2, 0x1p-24f, 1023 * 0x1p-24f, 0x1p-14f, 65504, -0.0f, INFINITY};
    float out[8];
    lode_convert(LODE_FP16, fp16, LODE_FP32, out, 8);
    for (int i = 0; i < 8; i++)
        cr_assert(out[i] == numbers[i] && signbit(out[i]) == signbit(numbers[i]), "%d: %g", i, (double)out[i]);
    const float exact[] = {1, -3.5f, 1 + 0x1p-8f, 1 + 3 * 0x1p-8f, INFINITY, NAN};
    const uint16_t expected[] = {0x3f80, 0xc060, 0x3f80, 0x3f82, 0x7f80, 0x7fc0};
    uint16_t halves[6];
    lode_convert(LODE_FP32, exact, LODE_BF16, halves, 6);
    for (int i = 0; i < 6; i++)
        cr_assert((halves[i] & 0x7fff) == (expected[i] & 0x7fff), "%d: %04x", i, halves[i]);
    lode_convert(LODE_BF16, halves, LODE_FP32, out, 2);
    cr_assert(out[0] == 1 && out[1] == -3.5f);
}

/* ------------------------------------------------------------------- products */

static void check_on_processor(lode_dtype_t type, lode_team_h team)
{
    lode_products_h products;
    cr_assert(lode_products_create(team, type, &products) == LODE_OK, "%s", lode_error_message());
    cr_assert(strstr(lode_products_name(products), "oneDNN"));
    check_products(products);
    lode_products_destroy(&products);
}

Test(model_products, are_those_of_the_numbers)
{
    check_on_processor(LODE_FP32, NULL);
}

Test(model_products, are_the_same_of_a_team)
{
    lode_team_h team;
    cr_assert(lode_team_create(&(lode_team_params_t){.threads = 3, .sharers = 1000}, &team) == LODE_OK);
    check_on_processor(LODE_FP32, team);
    lode_team_destroy(&team);
}

/* oneDNN multiplies bf16 from AVX-512 on, in hardware or not; below that the model never asks it to. */
Test(model_products, in_bf16)
{
    if (!__builtin_cpu_supports("avx512bw"))
        cr_skip("this processor has no AVX-512");
    check_on_processor(LODE_BF16, NULL);
}

/* --------------------------------------------------------------------- parity */

static lode_model_h open_model(const char *path, uint32_t threads)
{
    lode_model_h model;
    cr_assert(lode_model_open(path, threads, NULL, &model) == LODE_OK, "%s", lode_error_message());
    return model;
}

static const char *const models[] = {VECTORS "/llama", VECTORS "/qwen2", VECTORS "/qwen3"};

/* Logits and 200 greedy tokens as transformers has them. */
Test(model_parity, logits_and_tokens_are_those_of_transformers)
{
    float *first = NULL;
    for (int i = 0; i < 3; i++) {
        for (uint32_t threads = 1; threads <= 2; threads++) {
            lode_model_h model = open_model(models[i], threads);
            dense_t dense;
            dense_open(&dense, lode_model_info(model), 512);
            parity_t parity;
            parity_open(&parity, models[i], model, false);
            const lode_attention_t attention = {&dense, dense_attend};
            cr_assert(parity_prompt(&parity, &attention, NULL) == LODE_OK, "%s", lode_error_message());
            cr_assert(parity.error < (parity.exact ? PARITY_EXACT : PARITY_TOLERANCE), "%s: %g", models[i],
                      parity.error);
            size_t bytes = sizeof(float) * parity.prompt_count * parity.vocabulary;
            first = threads == 1 ? memcpy(malloc(bytes), parity.logits, bytes) : first;
            cr_assert(memcmp(first, parity.logits, bytes) == 0, "%s: two threads give other bits", models[i]);
            cr_assert(parity_greedy(&parity, &attention, NULL) == LODE_OK, "%s", lode_error_message());
            cr_assert(parity.tokens == 200 && parity.different == 0, "%s: %u tokens, %u different", models[i],
                      parity.tokens, parity.different);
            parity_close(&parity);
            dense_close(&dense);
            lode_model_close(&model);
        }
        free(first);
    }
}

/* Whether the processor multiplies bf16 is asked through here (LINKER:--wrap), so that a test can say yes. */
static bool say_bf16;
lode_dtype_t __real_lode_products_native(void);
lode_dtype_t __wrap_lode_products_native(void);
lode_dtype_t __wrap_lode_products_native(void)
{
    return say_bf16 ? LODE_BF16 : __real_lode_products_native();
}

Test(model_parity, in_bf16)
{
    if (!__builtin_cpu_supports("avx512bw"))
        cr_skip("this processor has no AVX-512");
    say_bf16 = true;
    for (int i = 0; i < 3; i++) {
        lode_model_h model = open_model(models[i], 2);
        cr_assert(strstr(lode_model_info(model)->products, "bf16"));
        dense_t dense;
        parity_t parity;
        dense_open(&dense, lode_model_info(model), 512);
        parity_open(&parity, models[i], model, false);
        const lode_attention_t attention = {&dense, dense_attend};
        cr_assert(parity_prompt(&parity, &attention, NULL) == LODE_OK, "%s", lode_error_message());
        cr_assert(parity_greedy(&parity, &attention, NULL) == LODE_OK, "%s", lode_error_message());
        cr_assert(parity.error < PARITY_TOLERANCE && !parity.exact, "%s: %g", models[i], parity.error);
        cr_assert(parity.tokens == 200 && parity.different == 0, "%s: %u different", models[i], parity.different);
        parity_close(&parity);
        dense_close(&dense);
        lode_model_close(&model);
    }
}

/* The model of this tree, whatever lies there now, against plain double. */
Test(model_parity, the_shipped_model)
{
    if (access(LODE_SHIPPED_MODEL "/model.safetensors", R_OK) != 0)
        cr_skip("there is none yet");
    lode_model_h model = open_model(LODE_SHIPPED_MODEL, 2);
    dense_t dense;
    parity_t parity;
    dense_open(&dense, lode_model_info(model), 512);
    parity_open(&parity, LODE_SHIPPED_MODEL, model, false);
    const lode_attention_t attention = {&dense, dense_attend};
    cr_assert(parity_prompt(&parity, &attention, NULL) == LODE_OK, "%s", lode_error_message());
    cr_assert(parity_greedy(&parity, &attention, NULL) == LODE_OK, "%s", lode_error_message());
    cr_assert(parity.error < (parity.exact ? PARITY_EXACT : PARITY_TOLERANCE), "%g", parity.error);
    cr_assert(parity.tokens == 200 && parity.different == 0, "%u different", parity.different);
    parity_close(&parity);
    dense_close(&dense);
    lode_model_close(&model);
}

/* A model's file in another type; its digest differs, its logits do not (fp16 rounds very small weights). */
static void rewrite(const char *from, const char *dtype)
{
    lode_safetensors_t file;
    size_t size, offset = 0, width = strcmp(dtype, "F32") == 0 ? 4 : 2;
    uint8_t *bytes = read_bytes(from, &size), *data = malloc(2 * size);
    cr_assert(lode_safetensors_parse(bytes, size, size, &file) == LODE_OK);
    json_t *header = json_object();
    for (size_t i = 0; i < file.count; i++) {
        const lode_tensor_t *tensor = &file.tensors[i];
        size_t n = (size_t)(tensor->end - tensor->begin) / 2, end = offset + n * width;
        float *numbers = malloc(n * sizeof *numbers);
        lode_convert(LODE_BF16, tensor->data, LODE_FP32, numbers, n);
        for (size_t j = 0; j < n; j++) {
            _Float16 half = (_Float16)numbers[j];
            memcpy(data + offset + j * width, width == 4 ? (void *)&numbers[j] : (void *)&half, width);
        }
        json_t *shape = json_array();
        for (uint32_t j = 0; j < tensor->rank; j++)
            json_array_append_new(shape, json_integer((json_int_t)tensor->shape[j]));
        json_object_set_new(header, tensor->name,
                            json_pack("{s:s s:o s:[II]}", "dtype", dtype, "shape", shape, "data_offsets",
                                      (json_int_t)offset, (json_int_t)end));
        offset = end;
        free(numbers);
    }
    char *text = json_dumps(header, 0);
    uint64_t length = strlen(text);
    uint8_t *whole = malloc(8 + length + offset);
    memcpy(whole, &length, 8);
    memcpy(whole + 8, text, length);
    memcpy(whole + 8 + length, data, offset);
    write_bytes("model.safetensors", whole, 8 + length + offset);
    free(whole);
    free(text);
    json_decref(header);
    lode_safetensors_free(&file);
    free(data);
    free(bytes);
}

Test(model_parity, weights_of_any_type, .init = make_folder, .fini = remove_folder)
{
    uint64_t digests[3];
    static const char *const types[] = {"BF16", "F16", "F32"};
    for (int i = 0; i < 3; i++) {
        copy_model(VECTORS "/qwen2");
        if (i)
            rewrite(VECTORS "/qwen2/model.safetensors", types[i]);
        lode_model_h model = open_model(folder, 1);
        digests[i] = lode_model_info(model)->digest;
        dense_t dense;
        parity_t parity;
        dense_open(&dense, lode_model_info(model), 512);
        parity_open(&parity, folder, model, false);
        const lode_attention_t attention = {&dense, dense_attend};
        cr_assert(parity_prompt(&parity, &attention, NULL) == LODE_OK, "%s", lode_error_message());
        cr_assert(parity.error < (parity.exact ? PARITY_EXACT : PARITY_TOLERANCE), "%s: %g", types[i], parity.error);
        parity_close(&parity);
        dense_close(&dense);
        lode_model_close(&model);
    }
    cr_assert(digests[0] != digests[1] && digests[1] != digests[2]);
}

/* The same tokens in one piece, in pieces, as several passages of one run. */
Test(model_parity, passages_do_not_see_each_other)
{
    lode_model_h model = open_model(models[2], 2);
    uint32_t vocabulary = lode_model_info(model)->vocabulary, tokens[90];
    float *logits[3];
    for (int i = 0; i < 3; i++)
        logits[i] = calloc((size_t)90 * vocabulary, sizeof(float));
    for (uint32_t i = 0; i < 90; i++)
        tokens[i] = (uint32_t)(lode_mix(11, i) % vocabulary);
    dense_t dense[4];
    for (int i = 0; i < 4; i++)
        dense_open(&dense[i], lode_model_info(model), 128);
    const lode_attention_t alone = {&dense[0], dense_attend}, pieces = {&dense[1], dense_attend};
    const lode_passage_t whole = {.tokens = tokens, .count = 90, .logits = logits[0], .logit_rows = 90};
    cr_assert(lode_model_run(model, &alone, &whole, 1) == LODE_OK);
    for (uint32_t at = 0, n = 1; at < 90; at += n, n = at + 2 * n < 90 ? 2 * n : 90 - at) {
        const lode_passage_t piece = {.tokens = tokens + at,
                                      .count = n,
                                      .position = at,
                                      .block_position = at,
                                      .logits = logits[1] + (size_t)at * vocabulary,
                                      .logit_rows = n};
        cr_assert(lode_model_run(model, &pieces, &piece, 1) == LODE_OK);
    }
    const lode_attention_t both = {&dense[2], dense_attend_each};
    const lode_passage_t two[] = {{.tokens = tokens, .count = 90, .logits = logits[2], .logit_rows = 90},
                                  {.tokens = tokens + 40, .count = 50}};
    cr_assert(lode_model_run(model, &both, two, 2) == LODE_OK);
    for (size_t i = 0; i < (size_t)90 * vocabulary; i++) {
        cr_assert(fabsf(logits[0][i] - logits[1][i]) < 1e-2f, "%zu: %g, in pieces %g", i, (double)logits[0][i],
                  (double)logits[1][i]);
        cr_assert(fabsf(logits[0][i] - logits[2][i]) < 1e-2f, "%zu: %g, beside others %g", i, (double)logits[0][i],
                  (double)logits[2][i]);
    }
    for (int i = 0; i < 4; i++)
        dense_close(&dense[i]);
    for (int i = 0; i < 3; i++)
        free(logits[i]);
    lode_model_close(&model);
}

static lode_status_t refuse(void *self, uint32_t layer, const lode_stream_t *streams, uint32_t count)
{
    (void)self, (void)streams, (void)count;
    return layer ? lode_fail(LODE_ERR_TIMEOUT, "no more") : LODE_OK;
}

Test(model_parity, what_a_run_refuses)
{
    lode_model_h model = open_model(models[0], 1);
    uint32_t vocabulary = lode_model_info(model)->vocabulary, tokens[] = {1, 2, vocabulary};
    float *logits = calloc(vocabulary, sizeof *logits);
    dense_t dense;
    dense_open(&dense, lode_model_info(model), 16);
    const lode_attention_t attention = {&dense, dense_attend}, failing = {NULL, refuse};
    lode_passage_t passage = {.tokens = tokens, .count = 3, .logits = logits, .logit_rows = 1};
    cr_assert(lode_model_run(model, &attention, &passage, 1) == LODE_ERR_INVALID);
    cr_assert(strstr(lode_error_message(), "token 2"), "%s", lode_error_message());
    passage.count = 0;
    cr_assert(lode_model_run(model, &attention, &passage, 1) == LODE_ERR_INVALID);
    passage.count = 2;
    passage.logit_rows = 3;
    cr_assert(lode_model_run(model, &attention, &passage, 1) == LODE_ERR_INVALID);
    passage.logit_rows = 1;
    passage.logits = NULL;
    cr_assert(lode_model_run(model, &attention, &passage, 1) == LODE_ERR_INVALID);
    passage.logits = logits;
    cr_assert(lode_model_run(model, &failing, &passage, 1) == LODE_ERR_TIMEOUT);
    for (uint32_t i = 0; i < vocabulary; i++)
        cr_assert(logits[i] == 0);
    cr_assert(lode_model_run(model, &attention, NULL, 0) == LODE_OK);
    cr_assert(lode_model_run(model, &attention, &passage, 1) == LODE_OK && logits[0] != 0);
    dense_close(&dense);
    free(logits);
    lode_model_close(&model);
}
