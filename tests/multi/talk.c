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
#include "reader/tokenizer_inside.h"
#include "steps.h"
#include "talk_replay.h"

static int failures;
static const char *lode_test_model;

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

static const char *const files[] = {"model.safetensors", "model.safetensors.index.json",
                                    "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"};

static void make_folder(job_t *job, const char *model, bool shared, uint32_t context)
{
    char from[4096], to[128];
    json_error_t error;
    snprintf(from, sizeof from, "%s/config.json", model);
    json_t *config = json_load_file(from, 0, &error);
    CHECK(config && json_object_set_new(config, "max_position_embeddings", json_integer(context)) == 0);
    snprintf(job->folder, sizeof job->folder, "/tmp/lode-talk-XXXXXX");
    CHECK(mkdtemp(job->folder) != NULL);
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        snprintf(from, sizeof from, "%s/%s", model, files[i]);
        snprintf(to, sizeof to, "%s/%s", job->folder, files[i]);
        CHECK(access(from, R_OK) != 0 || symlink(from, to) == 0);
    }
    write_tokenizer(job->folder);
    write_json(job->folder, "config.json", config);
    write_json(job->folder, "reader.json",
               json_pack("{s:i, s:s, s:s, s:s, s:i}", "version", 1, "document", "<{text}>", "question", "{question}?",
                         "positions", shared ? "shared" : "cumulative", "range", 256));
}

static void remove_folder(const job_t *job)
{
    static const char *const written[] = {"config.json", "tokenizer.json", "reader.json"};
    char path[128];
    size_t linked = sizeof files / sizeof *files;
    for (size_t i = 0; i < linked + 3; i++) {
        snprintf(path, sizeof path, "%s/%s", job->folder, i < linked ? files[i] : written[i - linked]);
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
    bool flat; /* all is replayed as one sequence, greedily */
    uint32_t different;
} watch_t;

static uint32_t block_of(const watch_t *watch, lode_talk_stream_t stream)
{
    return watch->flat ? LODE_TALK_PROMPT : lode_talk_block_of(stream);
}

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

/* What was drawn is the likeliest by the replay as well, unless bf16 may have turned a near tie. */
static void compare_choice(watch_t *watch, const float *replayed, lode_talk_stream_t stream)
{
    const float *logits = watch->talk->logits[stream];
    const lode_tokens_t *drawn = &watch->talk->pending[stream];
    uint32_t ours = 0, theirs = 0, n = lode_model_info(watch->replay.model)->vocabulary;
    float scale = 0;
    for (uint32_t i = 0; i < n; i++) {
        ours = logits[i] > logits[ours] ? i : ours;
        theirs = replayed[i] > replayed[theirs] ? i : theirs;
        scale = fmaxf(scale, fabsf(replayed[i]));
    }
    CHECK(!drawn->count || (drawn->count == 1 && drawn->ids[0] == ours));
    watch->different += replayed[theirs] - replayed[ours] > 1e-2f * scale;
}

static void compare(watch_t *watch, const float *replayed, lode_talk_stream_t stream)
{
    const float *logits = watch->talk->logits[stream];
    for (uint32_t i = 0; i < lode_model_info(watch->replay.model)->vocabulary; i++) {
        watch->errors += (logits[i] - replayed[i]) * (logits[i] - replayed[i]);
        watch->squares += replayed[i] * replayed[i];
    }
    watch->rows++;
    if (watch->flat)
        compare_choice(watch, replayed, stream);
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
    uint32_t block = block_of(watch, stream);
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
        replay_run(&watch->replay, block_of(watch, LODE_TALK_INPUT), going->tokens[LODE_TALK_INPUT],
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
    for (int s = LODE_TALK_INPUT; s <= LODE_TALK_CONTROL && !watch->flat; s++) {
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
    MUST(lode_talk_hear(watch->talk, inputs[0], strlen(inputs[0]), !watch->flat));
    do {
        bool now = lode_mix(seed, steps) % 9 == 0 || step.state == LODE_TALK_LISTENING;
        if (now && steps && heard < 4 && !watch->flat) {
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
    for (uint64_t seed = 0; seed < 3; seed++) {
        watch_t watch = {.job = job};
        lode_talking_t talking = {.mode = seed < 2 ? LODE_TALK_AT_ONCE : LODE_TALK_THINK_FIRST,
                                  .policy = dense,
                                  .sampling = {.temperature = 1, .top_p = 1, .seed = seed},
                                  .most_thoughts = 50,
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

/* A stream alone, and words behind thoughts, are one sequence. */
static void are_one_sequence(const job_t *job)
{
    lode_prompts_t prompts = random_prompts("");
    for (int mode = LODE_TALK_THINK_FIRST; mode <= LODE_TALK_NO_THOUGHT; mode++) {
        watch_t watch = {.job = job, .flat = true};
        lode_talking_t talking = {
            .mode = (lode_talk_mode_t)mode, .policy = dense, .most_thoughts = 30, .most_words = 20};
        watch_talk(&watch, &prompts, &talking, 0);
        double error = sqrt(watch.errors / watch.squares);
        CHECK(error <= 1e-2 && !watch.different, "mode %d: %g, %u tokens differ", mode, error, watch.different);
        CHECK(watch.rows >= 2 && !watch.probes && !watch.states[LODE_TALK_BOTH]);
        end_watch(&watch);
    }
    lode_prompts_free(&prompts);
}

/* ----------------------------------------------------------------- policies */

/* A talk without a replay, input in its middle. @return its text, all streams; to be freed */
static char *talk_through(const job_t *job, const lode_talking_t *talking, float *logits)
{
    lode_prompts_t prompts = random_prompts("?");
    uint32_t vocabulary = lode_model_info(lode_reader_model(job->reader))->vocabulary, steps = 0;
    lode_talk_h talk;
    lode_talk_step_t step;
    char *text = NULL;
    size_t bytes = 0, part;
    FILE *out = open_memstream(&text, &bytes);
    MUST(lode_talk_begin(job->reader, &prompts, talking, &talk));
    MUST(lode_talk_hear(talk, inputs[0], strlen(inputs[0]), true));
    do {
        if (steps++ == 20)
            MUST(lode_talk_hear(talk, inputs[1], strlen(inputs[1]), false));
        MUST(lode_talk_step(talk, &step));
    } while (step.state != LODE_TALK_ENDED && steps < 1000);
    for (int s = LODE_TALK_INPUT; s < LODE_TALK_STREAMS; s++)
        fprintf(out, "%d: %s\n", s, lode_talk_text(talk, (lode_talk_stream_t)s, &part));
    fclose(out);
    memcpy(logits, talk->logits[LODE_TALK_WRITER], vocabulary * sizeof *logits);
    lode_talk_end(&talk);
    lode_prompts_free(&prompts);
    return text;
}

static lode_talking_t random_talking(lode_policy_t policy)
{
    return (lode_talking_t){.policy = policy,
                            .sampling = {.temperature = 1, .top_p = 1, .seed = 2},
                            .most_thoughts = 100,
                            .most_words = 30};
}

static void a_full_budget_is_dense(const job_t *job)
{
    size_t bytes = lode_model_info(lode_reader_model(job->reader))->vocabulary * sizeof(float);
    float *logits[3] = {malloc(bytes), malloc(bytes), malloc(bytes)};
    lode_policy_t full = {.budget_share = 1}, many = {.budget_tokens = 100000, .sinks = 4, .window = 90};
    lode_talking_t talkings[3] = {random_talking(dense), random_talking(full), random_talking(many)};
    char *said[3];
    for (int i = 0; i < 3; i++) {
        said[i] = talk_through(job, &talkings[i], logits[i]);
        CHECK(strcmp(said[i], said[0]) == 0 && memcmp(logits[i], logits[0], bytes) == 0, "%s\n%s", said[0], said[i]);
    }
    CHECK(strstr(said[0], inputs[0]) && strstr(said[0], inputs[1]));
    for (int i = 0; i < 3; i++) {
        free(said[i]);
        free(logits[i]);
    }
}

/* What an attention between the talk and the steps sees. */
typedef struct onlooker {
    const job_t *job;
    lode_talk_h talk;
    uint64_t budget;
    uint32_t calls, fail_at, chosen; /* fail_at 0: never */
} onlooker_t;

/* Own tokens that have left as pages are all chosen, however few are chosen of the documents. */
static void check_chosen(onlooker_t *onlooker, const lode_stream_t *streams, uint32_t count)
{
    for (uint32_t s = 0; s < count; s++) {
        uint32_t held = 0, last = 0;
        for (uint32_t b = 0; b < LODE_TALK_BLOCKS; b++)
            if (onlooker->talk->blocks[b].view == streams[s].view)
                last = b;
        for (uint32_t b = 0; b <= last; b++)
            held += onlooker->talk->blocks[b].paged;
        const uint32_t *tokens;
        uint64_t n;
        MUST(lode_step_selection(onlooker->job->cluster, s, streams[s].tokens - 1, 0, &tokens, &n));
        CHECK(n == held + onlooker->budget && tokens, "%d of %u", (int)n, held);
        for (uint32_t i = 0; tokens && i < held && i < n; i++)
            CHECK(tokens[i] == i);
        onlooker->chosen += held;
    }
}

static lode_status_t look_on(void *self, uint32_t layer, const lode_stream_t *streams, uint32_t count)
{
    onlooker_t *onlooker = self;
    if (++onlooker->calls == onlooker->fail_at)
        return lode_fail(LODE_ERR_TIMEOUT, "as the test wanted");
    LODE_TRY(lode_step(onlooker->job->cluster, layer, streams, count, NULL));
    if (onlooker->talk && onlooker->budget)
        check_chosen(onlooker, streams, count);
    return LODE_OK;
}

static void a_small_budget_is_of_documents_alone(const job_t *job)
{
    lode_prompts_t prompts = random_prompts("?");
    onlooker_t onlooker = {.job = job, .budget = 5};
    const lode_attention_t attention = {&onlooker, look_on};
    lode_talking_t talking = random_talking((lode_policy_t){.budget_tokens = onlooker.budget});
    lode_talk_h talk;
    lode_talk_step_t step;
    talking.attention = &attention;
    talking.most_words = 200;
    MUST(lode_talk_begin(job->reader, &prompts, &talking, &talk));
    onlooker.talk = talk;
    for (int i = 0; i < 90; i++) {
        if (i % 25 == 0) /* pages leave when their block is written again */
            MUST(lode_talk_hear(talk, inputs[0], strlen(inputs[0]), true));
        MUST(lode_talk_step(talk, &step));
    }
    CHECK(onlooker.chosen > 1000, "%u", onlooker.chosen);
    lode_talk_end(&talk);
    lode_prompts_free(&prompts);
}

/* -------------------------------------------------------------- wrong turns */

static void a_failed_step_leaves_nothing_behind(const job_t *job)
{
    lode_prompts_t prompts = random_prompts("?");
    uint32_t before = blocks_here(job), begun = 0;
    for (uint32_t at = 1; at < 50; at += 6) {
        onlooker_t onlooker = {.job = job, .fail_at = at};
        const lode_attention_t attention = {&onlooker, look_on};
        lode_talking_t talking = random_talking(dense);
        lode_talk_h talk = NULL;
        lode_talk_step_t step = {0};
        talking.attention = &attention;
        lode_status_t status = lode_talk_begin(job->reader, &prompts, &talking, &talk);
        if (status == LODE_OK) {
            begun++;
            CHECK(blocks_here(job) == before + LODE_TALK_BLOCKS);
            MUST(lode_talk_hear(talk, inputs[0], strlen(inputs[0]), true));
            for (int i = 0; i < 200 && status == LODE_OK; i++)
                status = lode_talk_step(talk, &step);
            CHECK(lode_talk_step(talk, &step) == LODE_ERR_INVALID);
            CHECK(lode_talk_hear(talk, "x", 1, false) == LODE_ERR_INVALID);
            lode_talk_end(&talk);
        }
        CHECK(status == LODE_ERR_TIMEOUT && talk == NULL, "%u: %s", at, lode_status_string(status));
        CHECK(blocks_here(job) == before, "%u", at);
    }
    CHECK(begun > 5);
    lode_prompts_free(&prompts);
}

static void what_is_wrong_is_refused(const job_t *job)
{
    lode_prompts_t prompts = random_prompts("?");
    lode_talking_t talking = random_talking(dense), none = talking;
    uint32_t before = blocks_here(job);
    lode_talk_step_t step;
    lode_talk_h talk = NULL;
    char *much = calloc(1, 5000);
    memset(much, 'a', 4999);
    none.most_words = 0;
    CHECK(lode_talk_begin(job->reader, &prompts, &none, &talk) == LODE_ERR_INVALID && !talk);
    none = talking;
    none.most_thoughts = 0;
    CHECK(lode_talk_begin(job->reader, &prompts, &none, &talk) == LODE_ERR_INVALID && !talk);
    none = talking;
    none.policy = (lode_policy_t){.budget_share = 2};
    CHECK(lode_talk_begin(job->reader, &prompts, &none, &talk) == LODE_ERR_INVALID && !talk);
    CHECK(blocks_here(job) == before);
    MUST(lode_talk_begin(job->reader, &prompts, &talking, &talk));
    MUST(lode_talk_step(talk, &step));
    CHECK(step.state == LODE_TALK_LISTENING && !step.tokens[LODE_TALK_THINKER]);
    CHECK(lode_talk_hear(talk, "", 0, false) == LODE_ERR_INVALID);
    CHECK(lode_talk_hear(talk, "a\xff", 2, true) == LODE_ERR_FORMAT);
    CHECK(lode_talk_hear(talk, much, 4999, true) == LODE_ERR_INVALID && strstr(lode_error_message(), "context"));
    MUST(lode_talk_step(talk, &step));
    CHECK(step.state == LODE_TALK_LISTENING); /* as if nothing had been said */
    MUST(lode_talk_hear(talk, "x", 1, false));
    for (int i = 0; i < 1000 && step.state != LODE_TALK_ENDED; i++)
        MUST(lode_talk_step(talk, &step));
    CHECK(step.state == LODE_TALK_ENDED);
    CHECK(lode_talk_hear(talk, "y", 1, true) == LODE_ERR_INVALID && strstr(lode_error_message(), "ended"));
    MUST(lode_talk_step(talk, &step));
    CHECK(step.state == LODE_TALK_ENDED && !step.tokens[LODE_TALK_WRITER]);
    lode_talk_end(&talk);
    lode_talk_end(&talk); /* nothing to end */
    CHECK(blocks_here(job) == before);
    free(much);
    lode_prompts_free(&prompts);
}

/* Streams end before positions that the model does not have. */
static void the_context_is_enough(const job_t *job)
{
    lode_prompts_t prompts = random_prompts("?");
    lode_talking_t talking = random_talking(dense);
    lode_talk_step_t step;
    lode_talk_h talk;
    uint32_t context = lode_model_info(lode_reader_model(job->reader))->context, steps = 0, said[2] = {0};
    char *much = calloc(1, context + 1);
    memset(much, 'a', context);
    talking.most_words = talking.most_thoughts = 10 * context;
    free(prompts.thinker_stops.texts[0]);
    prompts.thinker_stops.texts[0] = strdup("never that");
    for (uint32_t i = 1; i < prompts.thinker_stops.count; i++)
        prompts.thinker_stops.texts[i][0] = 1;
    MUST(lode_talk_begin(job->reader, &prompts, &talking, &talk));
    uint64_t room = context - lode_talk_used(talk) - lode_talk_words_room(talk) - 1;
    CHECK(lode_talk_hear(talk, much, room - 2, false) == LODE_ERR_INVALID); /* the template has three tokens */
    MUST(lode_talk_hear(talk, much, room - 3 - 20, false));
    do {
        MUST(lode_talk_step(talk, &step));
        said[0] += step.said[LODE_TALK_THINKER];
        said[1] += step.said[LODE_TALK_WRITER];
        CHECK(lode_talk_end_of(talk, LODE_TALK_BLOCKS - 1) <= context);
        CHECK(steps || step.tokens[LODE_TALK_INPUT] == room - 20);
    } while (step.state != LODE_TALK_ENDED && ++steps < 2 * context);
    CHECK(said[0] >= 1 && said[0] <= 21 && said[1] > 0, "%u thoughts, %u words", said[0], said[1]);
    lode_talk_end(&talk);
    free(much);
    lode_prompts_free(&prompts);
}

/* Input longer than a pass takes is the same as in one passage. */
static void long_input_is_whole(const job_t *job)
{
    enum { BYTES = LODE_READER_PASS_TOKENS + 300 };
    lode_prompts_t prompts = random_prompts("");
    lode_talking_t talking = random_talking(dense);
    lode_talk_step_t step;
    lode_talk_h talk;
    lode_view_h view;
    char much[BYTES + 1];
    uint32_t vocabulary = lode_model_info(lode_reader_model(job->reader))->vocabulary;
    float *logits = malloc(vocabulary * sizeof *logits);
    double errors = 0, squares = 0;
    for (int i = 0; i < BYTES; i++)
        much[i] = (char)('a' + lode_mix(5, (uint64_t)i) % 26);
    talking.mode = LODE_TALK_NO_THOUGHT;
    MUST(lode_talk_begin(job->reader, &prompts, &talking, &talk));
    MUST(lode_talk_hear(talk, much, BYTES, false));
    lode_tokens_t tokens = {0};
    for (int s = LODE_TALK_INPUT; s <= LODE_TALK_WRITER; s++)
        if (talk->pending[s].count)
            MUST(lode_tokens_append(&tokens, talk->pending[s].ids, talk->pending[s].count));
    MUST(lode_talk_step(talk, &step));
    CHECK(step.tokens[LODE_TALK_INPUT] > LODE_READER_PASS_TOKENS && step.said[LODE_TALK_WRITER] == 1);
    talk->blocks[LODE_TALK_FIRST].tokens = 0; /* a block anew, behind the prompt alone */
    MUST(lode_view_destroy(&talk->blocks[LODE_TALK_FIRST].view));
    MUST(lode_block_drop(&talk->blocks[LODE_TALK_FIRST].block));
    MUST(lode_reader_own_block(job->reader, "test", 0, false, &talk->blocks[LODE_TALK_FIRST].block));
    MUST(lode_talk_view(talk, LODE_TALK_FIRST, &view));
    const lode_passage_t passage = {.view = view,
                                    .tokens = tokens.ids,
                                    .count = (uint32_t)tokens.count,
                                    .position = lode_talk_end_of(talk, LODE_TALK_PROMPT),
                                    .logits = logits,
                                    .logit_rows = 1};
    const lode_attention_t attention = {&(onlooker_t){.job = job}, look_on};
    MUST(lode_model_run(lode_reader_model(job->reader), &attention, &passage, 1));
    for (uint32_t i = 0; i < vocabulary; i++) {
        double error = logits[i] - talk->logits[LODE_TALK_WRITER][i];
        errors += error * error;
        squares += logits[i] * logits[i];
    }
    CHECK(sqrt(errors / squares) <= 1e-2, "%g", sqrt(errors / squares));
    lode_talk_end(&talk);
    lode_tokens_free(&tokens);
    free(logits);
    lode_prompts_free(&prompts);
}

/* ------------------------------------------------------- the shipped model */

typedef struct asked {
    char text[4096];
    uint32_t pieces;
} asked_t;

static void take_text(void *self, lode_talk_stream_t stream, const char *text, size_t bytes)
{
    asked_t *asked = self;
    CHECK(stream == LODE_TALK_THINKER || stream == LODE_TALK_WRITER);
    CHECK(strlen(asked->text) + bytes < sizeof asked->text && bytes);
    strncat(asked->text, text, bytes);
    asked->pieces++;
}

/* The whole request at once: who is asked so says what lode_reader_ask() does. */
static void expect_answer(const job_t *job, const lode_prompts_t *prompts, lode_talking_t talking, const char *question)
{
    lode_answer_t answer = {0};
    asked_t asked = {0};
    lode_talk_step_t step;
    lode_talk_h talk;
    size_t bytes;
    bool thinks = talking.mode == LODE_TALK_THINK_FIRST;
    const lode_asking_t asking = {.policy = talking.policy, .sampling = talking.sampling, .most_tokens = 60};
    MUST(lode_reader_ask(job->reader, question, strlen(question), &asking, &answer));
    talking.text = take_text;
    talking.self = &asked;
    MUST(lode_talk_begin(job->reader, prompts, &talking, &talk));
    MUST(lode_talk_hear(talk, question, strlen(question), false));
    do
        MUST(lode_talk_step(talk, &step));
    while (step.state != (thinks ? LODE_TALK_WRITING : LODE_TALK_ENDED));
    const char *said = lode_talk_text(talk, thinks ? LODE_TALK_THINKER : LODE_TALK_WRITER, &bytes);
    CHECK(strcmp(said, answer.text) == 0 && bytes == answer.bytes, "\"%s\" is not \"%s\"", said, answer.text);
    CHECK(strcmp(asked.text, said) == 0 && asked.pieces && bytes, "\"%s\"", asked.text);
    CHECK(strcmp(lode_talk_text(talk, LODE_TALK_INPUT, &bytes), question) == 0 && bytes == strlen(question));
    lode_talk_end(&talk);
    lode_answer_free(&answer);
}

static void equals_asking(const job_t *job)
{
    static const char *const questions[] = {"What is the yearly budget of Elmford Institute?",
                                            "Which documents describe a school?", "Document 2: head office?"};
    lode_prompts_t prompts;
    MUST(lode_prompts_open(lode_test_model, lode_reader_tokenizer(job->reader), &prompts));
    for (int i = 0; i < 3; i++) {
        lode_talking_t talking = {.mode = LODE_TALK_NO_THOUGHT,
                                  .policy = dense,
                                  .sampling = {.temperature = i == 1 ? 0.5 : 0, .top_p = 0.9, .seed = 7},
                                  .most_words = 60,
                                  .most_thoughts = 60};
        expect_answer(job, &prompts, talking, questions[i]);
        talking.policy = (lode_policy_t){.budget_tokens = 32};
        expect_answer(job, &prompts, talking, questions[i]);
    }
    lode_texts_t stops = prompts.thinker_stops;
    prompts.thinker_stops = prompts.writer_stops; /* of an answer that is no list */
    expect_answer(
        job, &prompts,
        (lode_talking_t){.mode = LODE_TALK_THINK_FIRST, .policy = dense, .most_words = 60, .most_thoughts = 60},
        questions[0]);
    prompts.thinker_stops = stops;
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
    make_folder(job, model, shared, shared ? 1200 : 4096);
    open_reader(job, config, job->folder);
    if (job->rank == 0) {
        replays(job, shared ? "" : "?");
        a_full_budget_is_dense(job);
        a_small_budget_is_of_documents_alone(job);
    }
    if (job->rank == 0 && job->ranks == 1) { /* for the rest documents might lie anywhere */
        are_one_sequence(job);
        a_failed_step_leaves_nothing_behind(job);
        what_is_wrong_is_refused(job);
        if (shared)
            the_context_is_enough(job);
        else
            long_input_is_whole(job);
    }
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
    bool shared = false;
    for (int i = 2; i < argc; i++)
        if (!strstr(argv[i], "qwen2")) { /* it has fewer tokens than there are bytes */
            try_tiny(&job, config, argv[i], shared);
            shared = !shared;
        }
    lode_test_model = argv[1];
    open_reader(&job, config, argv[1]);
    if (job.rank == 0)
        equals_asking(&job);
    close_reader(&job);
    lode_config_destroy(&config);
    MPI_Allreduce(MPI_IN_PLACE, &failures, 1, MPI_INT, MPI_MAX, MPI_COMM_WORLD);
    MPI_Finalize();
    return failures != 0 || argc < 2;
}
