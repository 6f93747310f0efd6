/* SPDX-License-Identifier: Apache-2.0 */
/* `lodemark ls` and `lodemark rm`. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "bench/job.h"
#include "launch/client.h"

/* Columns on a terminal: bytes of UTF-8 that begin a character. */
static int width_of(const char *text)
{
    int width = 0;
    for (; *text; text++)
        width += ((unsigned char)*text & 0xc0) != 0x80;
    return width;
}

static void print_blocks(const lode_block_entry_t *entries, uint32_t count)
{
    int widest = 4;
    for (uint32_t i = 0; i < count; i++)
        widest = width_of(entries[i].name) > widest ? width_of(entries[i].name) : widest;
    printf("%-*s  %10s  %-6s  %-12s  %8s  %-7s  %s\n", widest, "name", "tokens", "format", "landmarks", "replicas",
           "state", "writer");
    for (uint32_t i = 0; i < count; i++) {
        const lode_block_entry_t *e = &entries[i];
        char landmark[LODE_TEXT_MAX];
        printf("%s%*s  %10" PRIu64 "  %-6s  %-12s  %8u  %-7s  rank %u\n", e->name, widest - width_of(e->name), "",
               e->tokens, lode_format_name(e->format), lode_text_landmark(&e->landmark, landmark), e->replicas,
               e->sealed ? "sealed" : "open", e->writer);
    }
}

static json_t *blocks_json(const lode_block_entry_t *entries, uint32_t count)
{
    json_t *list = json_array();
    for (uint32_t i = 0; i < count; i++) {
        const lode_block_entry_t *e = &entries[i];
        char landmark[LODE_TEXT_MAX], id[20];
        snprintf(id, sizeof id, "%016" PRIx64, e->id);
        json_array_append_new(list, json_pack("{s:s s:s s:I s:s s:s s:i s:b s:i s:[ii]}", "name", e->name, "id", id,
                                              "tokens", (json_int_t)e->tokens, "format", lode_format_name(e->format),
                                              "landmarks", lode_text_landmark(&e->landmark, landmark), "replicas",
                                              (int)e->replicas, "sealed", (int)e->sealed, "writer", (int)e->writer,
                                              "kv_heads", (int)e->kv_head_begin, (int)e->kv_head_end));
    }
    return json_pack("{s:o}", "blocks", list);
}

static lode_status_t list(lode_client_t *client)
{
    lode_block_entry_t *entries;
    uint32_t count;
    lode_status_t status = LODE_OK;
    LODE_TRY(lode_client_open(client));
    LODE_TRY(lode_client_blocks(client, &entries, &count));
    if (lode_options_flag(&client->options, "json"))
        status = lode_client_json("-", blocks_json(entries, count));
    else if (count)
        print_blocks(entries, count);
    else
        printf("no blocks\n");
    free(entries);
    return status;
}

/* ----------------------------------------------------------------------- rm */

static lode_status_t drop(lode_client_t *client, const char *name)
{
    lode_block_entry_t entry;
    lode_block_h block;
    LODE_TRY(lode_client_find(client, name, &entry));
    LODE_TRY(lode_block_open(client->cluster, name, &block));
    lode_status_t status = lode_block_drop(&block);
    if (status != LODE_OK && block) {
        char sentence[512];
        snprintf(sentence, sizeof sentence, "%s", lode_error_message());
        lode_block_close(&block);
        return lode_fail(status, "%s", sentence);
    }
    return status;
}

/* Every name is tried; each that fails has its line. */
static lode_status_t remove_blocks(lode_client_t *client)
{
    bool json = lode_options_flag(&client->options, "json");
    LODE_TRY(lode_client_open(client));
    json_t *removed = json_array(), *failed = json_array();
    for (int i = 0; i < client->word_count; i++) {
        const char *name = client->words[i];
        char sentence[512], plain[2 * LODE_NAME_MAX];
        lode_text_plain(name, plain, sizeof plain);
        if (drop(client, name) == LODE_OK) {
            json_array_append_new(removed, json_string(plain));
            if (!json)
                printf("%s removed\n", plain);
            continue;
        }
        lode_text_plain(lode_error_message(), sentence, sizeof sentence);
        json_array_append_new(failed, json_pack("{s:s s:s}", "name", plain, "error", sentence));
        fprintf(stderr, "lodemark: %s\n", sentence);
        client->exit = LODE_EXIT_FAILED;
    }
    json_t *object = json_pack("{s:o s:o}", "removed", removed, "failed", failed);
    if (json)
        return lode_client_json("-", object);
    json_decref(object);
    return LODE_OK;
}

static const lode_option_t ls_options[] = {
    {"json", "no", LODE_OPTION_FLAG, NULL, 0, 0, "print one JSON object"},
    {NULL},
};

const lode_client_command_t lode_command_ls = {
    .name = "ls",
    .words = "",
    .doc = "The blocks of a running service, sorted by name. Tokens are those that are in pages; a block that is open\n"
           "still grows, and is dropped if its writer goes before it is sealed.",
    .options = ls_options,
    .run = list,
};

const lode_client_command_t lode_command_rm = {
    .name = "rm",
    .words = "NAME...",
    .doc = "Drop blocks everywhere, at once and without asking. Who attends to one gets a status that says so.\n"
           "Exits with 1 if a name could not be removed; the others are.",
    .options = ls_options,
    .least = 1,
    .most = -1,
    .run = remove_blocks,
};
