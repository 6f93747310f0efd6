/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Talks of the first rank over documents that the last rank has read in: beside a replay that lays all blocks out anew,
 * beside lode_reader_ask(), and in ways they are not meant to go. Arguments: the shipped model's folder, then folders
 * of tiny random ones, which get a tokenizer of bytes.
 */
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "reader/talk_inside.h"
#include "steps.h"
#include "talk_replay.h"

static int failures;

enum { DOCUMENTS = 3, ROOM = 512 };

typedef struct job {
    lode_cluster_h cluster;
    lode_reader_h reader;
    int rank, ranks;
    char folder[64]; /* of a tiny model with its tokenizer */
    lode_document_t documents[DOCUMENTS];
} job_t;

/* ------------------------------------------------------------------- folders */

/* The character that stands for a byte in tokenizer.json, as UTF-8. */
static void letter_of(uint32_t byte, char text[4])
{
    uint32_t c = byte;
    bool prints = (byte > 32 && byte < 127) || (byte > 160 && byte != 173);
    if (!prints)
        c = 256 + (byte <= 32 ? byte : byte == 173 ? 67 : byte - 127 + 33);
    if (c < 128)
        snprintf(text, 4, "%c", (char)c);
    else
        snprintf(text, 4, "%c%c", (char)(0xc0 | c >> 6), (char)(0x80 | (c & 63)));
}

static void write_json(const char *folder, const char *name, json_t *file)
{
    char path[128];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    CHECK(json_dump_file(file, path, 0) == 0);
    json_decref(file);
}

static void write_tokenizer(const char *folder)
{
    json_t *vocab = json_object();
    char text[4];
    for (uint32_t byte = 0; byte < 256; byte++) {
        letter_of(byte, text);
        json_object_set_new(vocab, text, json_integer(byte));
    }
    write_json(folder, "tokenizer.json",
               json_pack("{s:[], s:n, s:{s:s, s:b, s:b}, s:n, s:{s:s, s:o, s:[]}}", "added_tokens", "normalizer",
                         "pre_tokenizer", "type", "ByteLevel", "add_prefix_space", 0, "use_regex", 1, "post_processor",
                         "model", "type", "BPE", "vocab", vocab, "merges"));
}

static const char *const files[] = {"config.json", "model.safetensors", "model.safetensors.index.json",
                                    "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"};

static void make_folder(job_t *job, const char *model, bool shared)
{
    char from[4096], to[128];
    snprintf(job->folder, sizeof job->folder, "/tmp/lode-talk-XXXXXX");
    CHECK(mkdtemp(job->folder) != NULL);
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        snprintf(from, sizeof from, "%s/%s", model, files[i]);
        snprintf(to, sizeof to, "%s/%s", job->folder, files[i]);
        CHECK(access(from, R_OK) != 0 || symlink(from, to) == 0);
    }
    write_tokenizer(job->folder);
    write_json(job->folder, "reader.json",
               json_pack("{s:i, s:s, s:s, s:s, s:i}", "version", 1, "document", "<{text}>", "question", "{question}?",
                         "positions", shared ? "shared" : "cumulative", "range", 256));
}

static void remove_folder(const job_t *job)
{
    char path[128];
    for (size_t i = 0; i < sizeof files / sizeof *files + 2; i++) {
        snprintf(path, sizeof path, "%s/%s", job->folder,
                 i < sizeof files / sizeof *files    ? files[i]
                 : i == sizeof files / sizeof *files ? "tokenizer.json"
                                                     : "reader.json");
        unlink(path);
    }
    rmdir(job->folder);
}

/* ------------------------------------------------------------------- prompts */

/* Each byte is a text. */
static lode_texts_t each_of(const char *bytes)
{
    lode_texts_t texts = {.texts = calloc(strlen(bytes) + 1, sizeof *texts.texts)};
    for (; *bytes; bytes++)
        texts.texts[texts.count++] = strndup(bytes, 1);
    return texts;
}

/* For models whose tokens are as good as random. */
static lode_prompts_t random_prompts(const char *question)
{
    return (lode_prompts_t){
        .prompt = strdup("What follows is a talk of which nobody knows what it is about, and it is said in bytes."),
        .input_first = strdup("Q:"),
        .input_next = strdup("+"),
        .input_end = strdup("\n"),
        .thinker_begin = strdup("T:"),
        .writer_begin = strdup("W"),
        .writer_alone = strdup("A"),
        .thinker_stops = each_of("XYZxyz"),
        .writer_stops = each_of("QRqr"),
        .thinker_paragraphs = each_of(" \naeiouAEIOU0123456789"),
        .writer_paragraphs = each_of("bcdfgBCDFG.,;:!"),
        .sentences = each_of("hjklmnpstvwHJKLMNPSTVW"),
        .control_question = strdup(question),
        .yes = each_of("abcdefghijklmnopqrstuvwxyz0123456789"),
        .no = each_of("ABCDEFGHIJKLMNOPQRSTUVWXYZ+*"),
        .probe_every = 4};
}

/* ------------------------------------------------------------------- replay */

static const char *const inputs[] = {
    "first it is this, and it is said at some length, so that it takes more than one page of tokens to hold it all",
    "and then this", "a third thing comes late", "the last of them"};

typedef struct watch {
    const job_t *job;
    lode_talk_h talk;
    replay_t replay;
    double errors, squares;
    uint32_t rows, probes, again, states[LODE_TALK_ENDED + 1];
} watch_t;

/* Documents as the reader has them, and the prompt. */
static void open_replay(watch_t *watch)
{
    const job_t *job = watch->job;
    lode_tokenizer_h tokenizer = lode_reader_tokenizer(job->reader);
    uint32_t listed = job->reader->document_count;
    int64_t end = 0;
    replay_open(&watch->replay, lode_reader_model(job->reader), listed, ROOM);
    for (uint32_t i = 0; i < listed; i++) {
        lode_tokens_t tokens = {0};
        size_t *ends, pieces;
        MUST(lode_manner_document(lode_reader_manner(job->reader), tokenizer, job->documents[i].text,
                                  job->documents[i].bytes, &tokens, &ends, &pieces));
        CHECK(pieces == 1);
        bool shared = lode_reader_manner(job->reader)->shared_positions;
        replay_document(&watch->replay, i, tokens.ids, (uint32_t)tokens.count,
                        shared ? (int64_t)lode_reader_manner(job->reader)->range - (int64_t)tokens.count : end);
        end += (int64_t)tokens.count;
        watch->replay.base = shared ? lode_reader_manner(job->reader)->range : end;
        free(ends);
        lode_tokens_free(&tokens);
    }
    if (!listed && lode_reader_manner(job->reader)->shared_positions)
        watch->replay.base = lode_reader_manner(job->reader)->range;
    lode_tokens_t prompt = {0};
    const char *text = watch->talk->prompts->prompt;
    MUST(lode_tokenizer_encode(tokenizer, text, strlen(text), true, &prompt));
    if (prompt.count)
        replay_run(&watch->replay, 0, prompt.ids, (uint32_t)prompt.count);
    lode_tokens_free(&prompt);
}

static void compare(watch_t *watch, const float *replayed, lode_talk_stream_t stream)
{
    const float *logits = watch->talk->logits[stream];
    for (uint32_t i = 0; i < lode_model_info(watch->replay.model)->vocabulary; i++) {
        watch->errors += (logits[i] - replayed[i]) * (logits[i] - replayed[i]);
        watch->squares += replayed[i] * replayed[i];
    }
    watch->rows++;
}

/* What a step will run, copied before it does. */
typedef struct going {
    lode_talk_plan_t plan;
    uint32_t tokens[LODE_TALK_STREAMS][ROOM], counts[LODE_TALK_STREAMS], last[LODE_TALK_STREAMS];
} going_t;

static void look_ahead(const watch_t *watch, going_t *going)
{
    const struct lode_talk *talk = watch->talk;
    *going = (going_t){.plan = lode_course_plan(&talk->course)};
    for (int s = LODE_TALK_INPUT; s <= LODE_TALK_WRITER; s++) {
        going->counts[s] = (uint32_t)talk->pending[s].count;
        going->last[s] = talk->last[s];
        if (going->counts[s])
            memcpy(going->tokens[s], talk->pending[s].ids, going->counts[s] * sizeof(uint32_t));
    }
}

static void replay_voice(watch_t *watch, const going_t *going, lode_talk_stream_t stream, bool again)
{
    uint32_t block = lode_talk_block_of(stream);
    watch->again += again;
    compare(watch,
            again ? replay_again(&watch->replay, block, going->last[stream])
                  : replay_run(&watch->replay, block, going->tokens[stream], going->counts[stream]),
            stream);
}

/* Words that wait, then the question; where there is neither, the writer's last token. */
static void replay_probe(watch_t *watch, const going_t *going)
{
    const lode_tokens_t *question = &watch->talk->question;
    uint32_t block = lode_talk_block_of(LODE_TALK_CONTROL), count = going->counts[LODE_TALK_WRITER];
    uint32_t words = lode_talk_block_of(LODE_TALK_WRITER);
    const float *logits = NULL;
    if (count)
        logits = replay_run(&watch->replay, block, going->tokens[LODE_TALK_WRITER], count);
    if (question->count)
        logits = replay_run(&watch->replay, block, question->ids, (uint32_t)question->count);
    if (!logits)
        logits = replay_again(&watch->replay, words, going->last[LODE_TALK_WRITER]);
    compare(watch, logits, LODE_TALK_CONTROL);
    replay_clear(&watch->replay, block);
    watch->probes++;
}

/* In the order of their views: each sees what those before it wrote in the same step. */
static void replay_step(watch_t *watch, const going_t *going)
{
    if (going->plan.input)
        replay_run(&watch->replay, lode_talk_block_of(LODE_TALK_INPUT), going->tokens[LODE_TALK_INPUT],
                   going->counts[LODE_TALK_INPUT]);
    if (going->plan.thinker)
        replay_voice(watch, going, LODE_TALK_THINKER, going->plan.thinker_again);
    if (going->plan.writer)
        replay_voice(watch, going, LODE_TALK_WRITER, going->plan.writer_again);
    if (going->plan.control)
        replay_probe(watch, going);
}

static void check_step(const watch_t *watch, const going_t *going, const lode_talk_step_t *step)
{
    const lode_talk_plan_t *plan = &going->plan;
    CHECK(step->tokens[LODE_TALK_INPUT] == (plan->input ? going->counts[LODE_TALK_INPUT] : 0));
    CHECK(step->tokens[LODE_TALK_THINKER] == (!plan->thinker        ? 0
                                              : plan->thinker_again ? 1
                                                                    : going->counts[LODE_TALK_THINKER]));
    CHECK(step->probed == plan->control && (step->tokens[LODE_TALK_CONTROL] > 0) == plan->control);
    CHECK(step->said[LODE_TALK_THINKER] <= plan->thinker && step->said[LODE_TALK_WRITER] <= plan->writer);
    for (int s = LODE_TALK_INPUT; s <= LODE_TALK_CONTROL; s++) {
        uint64_t tokens = 0;
        lode_block_h block = watch->talk->blocks[lode_talk_block_of((lode_talk_stream_t)s)].block;
        if (block)
            MUST(lode_block_tokens(block, 0, &tokens));
        CHECK(tokens == replay_tokens(&watch->replay, lode_talk_block_of((lode_talk_stream_t)s)), "stream %d", s);
    }
}

/* A talk to its end, with input at steps that the seed tells. */
static void watch_talk(watch_t *watch, const lode_prompts_t *prompts, const lode_talking_t *talking, uint64_t seed)
{
    lode_talk_step_t step = {0};
    uint32_t heard = 1, steps = 0;
    going_t *going = malloc(sizeof *going);
    MUST(lode_talk_begin(watch->job->reader, prompts, talking, &watch->talk));
    open_replay(watch);
    MUST(lode_talk_hear(watch->talk, inputs[0], strlen(inputs[0]), true));
    do {
        bool now = lode_mix(seed, steps) % 9 == 0 || step.state == LODE_TALK_LISTENING;
        if (now && steps && heard < 4) {
            MUST(lode_talk_hear(watch->talk, inputs[heard], strlen(inputs[heard]), heard < 3));
            heard++;
        }
        look_ahead(watch, going);
        MUST(lode_talk_step(watch->talk, &step));
        replay_step(watch, going);
        check_step(watch, going, &step);
        watch->states[step.state]++;
        steps++;
    } while (step.state != LODE_TALK_ENDED && steps < 1000);
    CHECK(step.state == LODE_TALK_ENDED);
    free(going);
}

static void end_watch(watch_t *watch)
{
    replay_close(&watch->replay);
    lode_talk_end(&watch->talk);
}

static uint32_t blocks_here(const job_t *job)
{
    uint32_t count;
    MUST(lode_cluster_blocks(job->cluster, NULL, 0, &count));
    return count;
}

static const lode_policy_t dense = {.select = LODE_SELECT_DENSE, .budget_share = 1};

static void replays(const job_t *job, const char *question)
{
    lode_prompts_t prompts = random_prompts(question);
    uint32_t before = blocks_here(job), again = 0, probes = 0, both = 0, rows = 0;
    double worst = 0;
    for (uint64_t seed = 0; seed < 4; seed++) {
        watch_t watch = {.job = job};
        lode_talking_t talking = {.mode = seed < 3 ? LODE_TALK_AT_ONCE : LODE_TALK_THINK_FIRST,
                                  .policy = dense,
                                  .sampling = {.temperature = 1, .top_p = 1, .seed = seed},
                                  .most_thoughts = 60,
                                  .most_words = 40,
                                  .hear_at_once = seed & 1};
        watch_talk(&watch, &prompts, &talking, seed);
        double error = sqrt(watch.errors / watch.squares);
        CHECK(error <= 1e-2, "seed %d: %g of %u rows", (int)seed, error, watch.rows);
        worst = fmax(worst, error);
        again += watch.again;
        probes += watch.probes;
        both += watch.states[LODE_TALK_BOTH];
        rows += watch.rows;
        end_watch(&watch);
    }
    printf("%s: %u rows within %.5f; %u asked again, %u probes, %u steps of both\n",
           lode_model_info(lode_reader_model(job->reader))->family, rows, worst, again, probes, both);
    CHECK(again && probes && both, "the schedules do not meet everything");
    CHECK(blocks_here(job) == before);
    lode_prompts_free(&prompts);
}

/* -------------------------------------------------------------------- jobs */

static const char *const texts[DOCUMENTS] = {"a lamp stands in the hall, and its price is twelve; nobody has asked for "
                                             "it since the town was built in stone, and so it stays",
                                             "the oil is sold by the keeper of the list",
                                             "who pays three hundred is told where the list ends, in which book"};

static void open_reader(job_t *job, lode_config_h config, const char *folder)
{
    lode_reader_params_t params = {.model = folder, .threads = 1, .format = LODE_FORMAT_BF16};
    MUST(lode_landmark_parse("landmark2", &params.landmark));
    MUST(lode_reader_open(&params, &job->reader));
    MUST(lode_cluster_join(config, &lode_model_info(lode_reader_model(job->reader))->geometry, &job->cluster));
    MUST(lode_reader_attach(job->reader, job->cluster));
    if (job->rank == job->ranks - 1)
        MUST(lode_reader_ingest(job->reader, job->documents, DOCUMENTS, NULL, NULL, NULL));
    MPI_Barrier(MPI_COMM_WORLD);
    if (job->rank == 0)
        MUST(lode_reader_list(job->reader, job->documents, DOCUMENTS));
}

static void close_reader(job_t *job)
{
    MPI_Barrier(MPI_COMM_WORLD);
    lode_reader_close(&job->reader);
    MUST(lode_cluster_leave(&job->cluster));
}

static void try_tiny(job_t *job, lode_config_h config, const char *model, bool shared)
{
    make_folder(job, model, shared);
    open_reader(job, config, job->folder);
    if (job->rank == 0)
        replays(job, shared ? "" : "?");
    close_reader(job);
    remove_folder(job);
}

int main(int argc, char **argv)
{
    lode_config_h config;
    job_t job = {0};
    MPI_Init_thread(&argc, &argv, MPI_THREAD_FUNNELED, &(int){0});
    MPI_Comm_rank(MPI_COMM_WORLD, &job.rank);
    MPI_Comm_size(MPI_COMM_WORLD, &job.ranks);
    MUST(lode_config_create(&config));
    MUST(lode_config_set(config, "arena", "64MiB"));
    for (int i = 0; i < DOCUMENTS; i++)
        job.documents[i] = (lode_document_t){.name = "document", .text = texts[i], .bytes = strlen(texts[i])};
    for (int i = 2; i < argc; i++)
        if (!strstr(argv[i], "qwen2")) /* it has fewer tokens than there are bytes */
            try_tiny(&job, config, argv[i], i % 2);
    lode_config_destroy(&config);
    MPI_Allreduce(MPI_IN_PLACE, &failures, 1, MPI_INT, MPI_MAX, MPI_COMM_WORLD);
    MPI_Finalize();
    return failures != 0 || argc < 2;
}
