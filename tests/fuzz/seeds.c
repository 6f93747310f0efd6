/* SPDX-License-Identifier: Apache-2.0 */
/* seeds DIR: valid inputs for the fuzzers to start from, in DIR/capture, DIR/message, DIR/session,
 * DIR/options, DIR/scores, DIR/tokenizer and DIR/manner. */
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "cluster/epoch.h"
#include "cluster/message.h"
#include "service/session.h"

static const char *folder;

static void save(const char *target, const char *name, const void *data, size_t bytes)
{
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", folder, target);
    mkdir(path, 0777);
    snprintf(path, sizeof path, "%s/%s/%s", folder, target, name);
    FILE *file = fopen(path, "wb");
    if (!file || fwrite(data, 1, bytes, file) != bytes || fclose(file) != 0) {
        perror(path);
        exit(1);
    }
}

/* Two tokens, one KV head of 64 coordinates, two query heads, one query; zeros throughout. */
static void save_capture(const char *name, const char *dtype, size_t element)
{
    char file[8192] = {0}, *header = file + 8;
    size_t kv = 2 * 64 * element, q = 2 * 64 * element;
    int length = snprintf(header, 4096,
                          "{\"__metadata__\":{\"lodemark.capture\":\"1\",\"rope_theta\":\"10000\"},"
                          "\"layers.0.k\":{\"dtype\":\"%s\",\"shape\":[2,1,64],\"data_offsets\":[0,%zu]},"
                          "\"layers.0.v\":{\"dtype\":\"%s\",\"shape\":[2,1,64],\"data_offsets\":[%zu,%zu]},"
                          "\"layers.0.q\":{\"dtype\":\"%s\",\"shape\":[1,2,64],\"data_offsets\":[%zu,%zu]},"
                          "\"q_positions\":{\"dtype\":\"I64\",\"shape\":[1],\"data_offsets\":[%zu,%zu]}}",
                          dtype, kv, dtype, kv, 2 * kv, dtype, 2 * kv, 2 * kv + q, 2 * kv + q, 2 * kv + q + 8);
    while (length % 8)
        header[length++] = ' ';
    memcpy(file, &(uint64_t){(uint64_t)length}, 8);
    save("capture", name, file, 8 + (size_t)length + 2 * kv + q + 8);
}

static void save_message(const char *name, uint8_t kind, const ProtobufCMessage *message, const void *payload,
                         size_t bytes)
{
    uint8_t file[4096];
    size_t length = protobuf_c_message_pack(message, file + 3);
    file[0] = kind;
    file[1] = (uint8_t)length;
    file[2] = (uint8_t)(length >> 8);
    memcpy(file + 3 + length, payload, bytes);
    save("message", name, file, 3 + length + bytes);
}

static void save_messages(void)
{
    Lodemark__Publish publish = LODEMARK__PUBLISH__INIT;
    publish.block = 42;
    publish.tokens = 128;
    Lodemark__Call call = LODEMARK__CALL__INIT;
    call.id = 7;
    call.body_case = LODEMARK__CALL__BODY_PUBLISH;
    call.publish = &publish;
    save_message("call", 0, &call.base, "", 0);

    Lodemark__Reply reply = LODEMARK__REPLY__INIT;
    reply.message = (char *)"page 7 does not fit";
    reply.status = LODE_ERR_FULL;
    save_message("reply", 1, &reply.base, "", 0);

    uint32_t missing[] = {0, 5};
    Lodemark__FetchReply answer = LODEMARK__FETCH_REPLY__INIT;
    answer.missing = missing;
    answer.n_missing = 2;
    save_message("fetch-reply", 2, &answer.base, "", 0);

    uint64_t blocks[] = {42, 43};
    lode_wire_item_t items[] = {{.mask = 1, .page = 3}, {.mask = UINT64_MAX, .page = 4, .head = 7, .block = 1}};
    Lodemark__FetchRequest request = LODEMARK__FETCH_REQUEST__INIT;
    request.id = 8;
    request.epoch = 1;
    request.record_bytes = 264;
    request.blocks = blocks;
    request.n_blocks = 2;
    save_message("fetch-request", 3, &request.base, items, sizeof items);

    uint64_t set[] = {epoch_who(1, 0) | EPOCH_MEMBER, epoch_who(1, 0) | EPOCH_MEMBER};
    epoch_beat_t beat = {.from = 1,
                         .slots = 2,
                         .number = 1,
                         .phase = EPOCH_ACCEPT,
                         .who = epoch_who(1, 0),
                         .ballot = 4097,
                         .set = set,
                         .verdicts = (const uint8_t *)"\0\0",
                         .value = set};
    epoch_wire_t wire;
    uint8_t file[3 + sizeof wire + 64] = {4, sizeof wire};
    epoch_pack(&beat, 0, &wire, file + 3 + sizeof wire);
    memcpy(file + 3, &wire, sizeof wire);
    save("message", "heartbeat", file, 3 + sizeof wire + epoch_wire_bytes(&beat));
}

static void save_session_message(const char *name, uint8_t kind, uint32_t payload, const ProtobufCMessage *message)
{
    uint8_t file[4096] = {kind};
    memcpy(file + 1, &payload, sizeof payload);
    save("session", name, file, 5 + protobuf_c_message_pack(message, file + 5));
}

static void save_session(void)
{
    Lodemark__SessionCall call = LODEMARK__SESSION_CALL__INIT;
    Lodemark__StepStream stream = LODEMARK__STEP_STREAM__INIT, *streams[] = {&stream, &stream};
    Lodemark__StepAsk step = LODEMARK__STEP_ASK__INIT;
    stream.view = stream.tokens = 1;
    stream.position = LODE_POSITION_END;
    stream.dtype = LODE_FP32;
    stream.writes = stream.wants_lse = stream.wants_lost = 1;
    step.streams = streams;
    step.n_streams = 2;
    call.id = 3;
    call.body_case = LODEMARK__SESSION_CALL__BODY_STEP;
    call.step = &step;
    save_session_message("step", 0, 6144, &call.base);

    Lodemark__BlockInfo info = LODEMARK__BLOCK_INFO__INIT;
    Lodemark__BlockCreate create = LODEMARK__BLOCK_CREATE__INIT;
    info.name = (char *)"document";
    create.info = &info;
    create.draft = 1;
    call.body_case = LODEMARK__SESSION_CALL__BODY_BLOCK_CREATE;
    call.block_create = &create;
    save_session_message("create", 0, 0, &call.base);

    Lodemark__BlockMove move = LODEMARK__BLOCK_MOVE__INIT;
    move.from = 1;
    move.first = 64;
    move.to = 2;
    call.body_case = LODEMARK__SESSION_CALL__BODY_BLOCK_MOVE;
    call.block_move = &move;
    save_session_message("move", 0, 0, &call.base);

    uint32_t blocks[] = {1, 2};
    int64_t offsets[] = {0, LODE_OFFSET_AFTER};
    Lodemark__ViewCreate view = LODEMARK__VIEW_CREATE__INIT;
    view.blocks = blocks;
    view.offsets = offsets;
    view.n_blocks = view.n_offsets = 2;
    call.body_case = LODEMARK__SESSION_CALL__BODY_VIEW_CREATE;
    call.view_create = &view;
    save_session_message("view", 0, 0, &call.base);

    Lodemark__RankStats numbers;
    Lodemark__RankReport report;
    lode_rank_stats_t rank = {.host = "n1", .steps = 7};
    Lodemark__SessionReply reply = LODEMARK__SESSION_REPLY__INIT;
    session_pack_rank(&rank, &numbers, &report);
    reply.id = 3;
    reply.message = (char *)"a sentence";
    reply.rank = &report;
    save_session_message("reply", 1, 0, &reply.base);

    Lodemark__BlockEntry entry = LODEMARK__BLOCK_ENTRY__INIT, *entries[] = {&entry};
    Lodemark__BlockList list = LODEMARK__BLOCK_LIST__INIT;
    entry.info = &info;
    list.blocks = entries;
    list.n_blocks = 1;
    save_session_message("list", 2, 0, &list.base);

    uint8_t head[5 + sizeof(session_frame_t)] = {3, 1};
    session_frame_t frame = {SESSION_MAGIC, SESSION_CALL, 100, 0, 4096};
    memcpy(head + 5, &frame, sizeof frame);
    save("session", "frame", head, sizeof head);
}

static void save_options(void)
{
    static const char *const lines[] = {"--arena\n1.5GiB\n--path=batched\nfile", "--replicas\n2\n--\n--log\ndebug",
                                        "3.125%\n0.03125\n64 KiB", "landmark2\nlandmark4:c8\nlandmark2:higgs:nocentre",
                                        "bf16\nfp8\nhiggs4\n--areba\n1"};
    for (size_t i = 0; i < sizeof lines / sizeof *lines; i++) {
        char name[16];
        snprintf(name, sizeof name, "%zu", i);
        save("options", name, lines[i], strlen(lines[i]));
    }
}

static void save_scores(void)
{
    static const char list[] = "[{\"name\": \"Ann\u2019s\", \"a\": 12, \"b\": \"x\"}, {\"name\": \"B\", \"a\": null}]";
    static const char rows[] = "```tsv\nname\ta\nfox\t1.5\nB\tN/A\n```";
    save("scores", "list", list, strlen(list));
    save("scores", "rows", rows, strlen(rows));
}

/* A file and a text, as fuzz_tokenizer and fuzz_manner take them. */
static void save_pair(const char *target, const char *name, const char *file, const char *text)
{
    char pair[4096];
    int bytes = snprintf(pair, sizeof pair, "%s%c%s", file, 0, text);
    save(target, name, pair, (size_t)bytes);
}

static void save_reader(void)
{
    static const char text[] = "It's 12 lamps,\n\n  isn't it?\xe4\xbb\xb7 <|end|>e\xcc\x81";
    save_pair("tokenizer", "gpt2", "{\"pre_tokenizer\": {\"type\": \"ByteLevel\", \"add_prefix_space\": false}}", text);
    save_pair("tokenizer", "sequence",
              "{\"normalizer\": {\"type\": \"NFC\"}, \"pre_tokenizer\": {\"type\": \"Sequence\", \"pretokenizers\": "
              "[{\"type\": \"Split\", \"pattern\": {\"Regex\": \"(?i:'s|'t)|[^\\r\\n\\\\p{L}\\\\p{N}]?\\\\p{L}+|"
              "\\\\p{N}{1,3}|\\\\s+(?!\\\\S)|\\\\s+\"}, \"behavior\": \"Isolated\"}, {\"type\": \"Split\", "
              "\"pattern\": {\"String\": \"12\"}, \"behavior\": \"Removed\", \"invert\": true}, "
              "{\"type\": \"ByteLevel\", \"use_regex\": false}]}}",
              text);
    save_pair("tokenizer", "model",
              "{\"model\": {\"ignore_merges\": true, \"merges\": [\"t h\", [\"i\", \"t\"]]}, \"post_processor\": "
              "{\"type\": \"TemplateProcessing\", \"single\": [{\"SpecialToken\": {\"id\": \"<|end|>\"}}]}, "
              "\"added_tokens\": [{\"id\": 300, \"content\": \"<|end|>\", \"normalized\": true}]}",
              text);
    save_pair("manner", "all",
              "{\"version\": 1, \"document\": \"<|end|>{text}\", \"question\": \"{question}?\", "
              "\"stop\": [\"<|end|>\", \"12\"], \"positions\": \"shared\", \"range\": 20}",
              text);
    save_pair("manner", "none", "{\"version\": 1}", text);
    save_pair(
        "manner", "talk",
        "{\"version\": 1, \"prompt\": \"p\", \"input\": {\"first\": \"a\", \"next\": \"b\", \"end\": \"c\"}, "
        "\"thinker\": {\"begin\": \"t\", \"stop\": [\"<|end|>\"], \"paragraph\": [\"s,\"], \"sentence\": [\".\"]}, "
        "\"writer\": {\"begin\": \"w\", \"alone\": \"v\", \"stop\": [\"it\"], \"paragraph\": [\"\\n\"]}, "
        "\"control\": {\"question\": \"?\", \"yes\": [\"y\"], \"no\": [\"n\"], \"every\": 3}}",
        text);
}

int main(int argc, char **argv)
{
    if (argc != 2) {
        fprintf(stderr, "seeds DIR\n");
        return 2;
    }
    folder = argv[1];
    mkdir(folder, 0777);
    save_capture("bf16", "BF16", 2);
    save_capture("f32", "F32", 4);
    save_messages();
    save_session();
    save_options();
    save_scores();
    save_reader();
    return 0;
}
