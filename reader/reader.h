/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file reader.h
 * @brief A decoder-only language model (Llama 3, Qwen 3 family) whose attention is lode_step(): documents in, answers
 * out.
 *
 * Four parts, each usable alone: the model (weights and arithmetic), the tokenizer, the manner (how a model wants to be
 * asked), and the reader, which puts documents into blocks and asks questions of them. All of it uses lodemark.h and
 * base/ alone, so it works the same for a rank of a job and for a client of a service.
 *
 * Threads: one at a time for each handle. Nothing here is collective. All memory is the host's.
 */
#ifndef LODE_READER_H
#define LODE_READER_H

#include "base/base.h"

/* -------------------------------------------------------------------- model */

typedef struct lode_model *lode_model_h;

typedef struct lode_model_info {
    const char *family;       /**< "llama", "qwen2" or "qwen3" */
    lode_geometry_t geometry; /**< all KV heads */
    uint32_t hidden, intermediate, vocabulary;
    uint32_t context;     /**< max_position_embeddings */
    uint64_t parameters;  /**< tied ones once */
    uint64_t digest;      /**< of configuration and weights: blocks of different models never share a name */
    const char *products; /**< what multiplies matrices and in which type: "oneDNN 2.6.3, fp32" */
} lode_model_info_t;

/**
 * Load config.json and model.safetensors, or what model.safetensors.index.json lists, of a folder in the Hugging Face
 * layout. Every tensor's shape is checked against config.json; weights are bf16, fp16 or fp32.
 * @param[in] threads  for products of matrices, 0: as many as a step of attention would use
 * @param[in] device   what multiplies matrices. NULL: the processor, by oneDNN; "cuda:0": that GPU, by cuBLAS
 * @return ::LODE_ERR_IO, ::LODE_ERR_FORMAT (torn, missing tensor, shapes that disagree: the message names file and
 * tensor),
 *         ::LODE_ERR_UNSUPPORTED (an architecture, activation or rope scaling that is not known, by name; a
 * device that is not there),
 * ::LODE_ERR_NO_MEMORY.
 */
lode_status_t lode_model_open(const char *folder, uint32_t threads, const char *device, lode_model_h *model);
void lode_model_close(lode_model_h *model);
/** Borrowed until close. */
const lode_model_info_t *lode_model_info(lode_model_h model);

/** What attends. Streams come with q, k, v in fp32, rotated, and room for out; as lode_step() takes them. */
typedef struct lode_attention {
    void *self;
    lode_status_t (*attend)(void *self, uint32_t layer, const lode_stream_t *streams, uint32_t count);
} lode_attention_t;

/** Consecutive tokens of one stream to run through the model. */
typedef struct lode_passage {
    lode_view_h view;       /**< handed to the attention; its write block takes the keys and values */
    const uint32_t *tokens; /**< (count) */
    uint32_t count;
    int64_t position;       /**< view position of the first token: its queries are rotated to it */
    int64_t block_position; /**< position of the first token in the write block: its keys are rotated to it */
    float *logits;          /**< (logit_rows, vocabulary) of the last logit_rows tokens; NULL if logit_rows is 0 */
    uint32_t logit_rows;
} lode_passage_t;

/**
 * Run passages through all layers, in one pass. All or nothing for the outputs; keys of layers before a failing one
 * stay in the write blocks, which the caller drops.
 * @return what attend returned; ::LODE_ERR_INVALID (a token id beyond the vocabulary), ::LODE_ERR_NO_MEMORY.
 */
lode_status_t lode_model_run(lode_model_h model, const lode_attention_t *attention, const lode_passage_t *passages,
                             uint32_t count);

/* ---------------------------------------------------------------- tokenizer */

typedef struct lode_tokenizer *lode_tokenizer_h;

/** A growing list of token ids; zeroed is empty. */
typedef struct lode_tokens {
    uint32_t *ids; /**< (count) */
    size_t count, room;
} lode_tokens_t;
void lode_tokens_free(lode_tokens_t *tokens);

/**
 * Read tokenizer.json of a folder: byte-level BPE, with the normalizers and pre-tokenizers that Llama 3, Qwen 2 and 3
 * and GPT-2 use.
 * @return ::LODE_ERR_IO, ::LODE_ERR_FORMAT (torn; the message says where), ::LODE_ERR_UNSUPPORTED (another kind of
 * model, normalizer or pre-tokenizer, by name).
 */
lode_status_t lode_tokenizer_open(const char *folder, lode_tokenizer_h *tokenizer);
void lode_tokenizer_close(lode_tokenizer_h *tokenizer);
/** One more than the highest id. */
uint32_t lode_tokenizer_size(lode_tokenizer_h tokenizer);
/**
 * Append the tokens of a text.
 * @param[in] text     (bytes) UTF-8; what is no UTF-8 is refused with its offset
 * @param[in] special  whether added tokens ("<|end|>") are recognised; without, they are text like any other
 * @return ::LODE_ERR_FORMAT (no UTF-8), ::LODE_ERR_NO_MEMORY; then @p tokens is as before.
 */
lode_status_t lode_tokenizer_encode(lode_tokenizer_h tokenizer, const char *text, size_t bytes, bool special,
                                    lode_tokens_t *tokens);
/** The bytes of one token, which may be part of a character; special ones give their text. NULL for no token. */
const char *lode_tokenizer_bytes(lode_tokenizer_h tokenizer, uint32_t id, size_t *bytes);
/** Id of an added token by its text, −1 if there is none. */
int64_t lode_tokenizer_special(lode_tokenizer_h tokenizer, const char *text);
/** Id of the token that the tokenizer's template puts before a text ("<|begin_of_text|>"), −1 if there is none. */
int64_t lode_tokenizer_begin(lode_tokenizer_h tokenizer);

/* ------------------------------------------------------------------- manner */

/**
 * How a model wants to be asked: reader.json of its folder (docs/reader.md), or what suits any checkpoint where there
 * is none. A document's block is `document[0]` text `document[1]`, a question's `question[0]` text `question[1]`.
 */
typedef struct lode_manner {
    char *document[2], *question[2]; /**< special tokens in these are recognised, in the texts between not */
    char **stops;                    /**< (stop_count) texts or special tokens that end an answer */
    uint32_t stop_count;
    bool shared_positions; /**< every document stands right before the question; else one after another */
    uint32_t range;        /**< most tokens of one block, template included */
    /** (head_count) layer and KV head of those that look facts up: they tell sources best. None: all heads vote. */
    uint32_t (*heads)[2];
    uint32_t head_count;
} lode_manner_t;

/** @param[in] context  the model's; bounds the range */
lode_status_t lode_manner_open(const char *folder, lode_tokenizer_h tokenizer, uint32_t context, lode_manner_t *manner);
void lode_manner_free(lode_manner_t *manner);
/**
 * Tokens of a document, cut into pieces of at most range tokens, at the end of a line or sentence where one is near.
 * @param[out] ends  tokens (piece_count) ends of pieces in @p tokens, each with its template; owned by the caller,
 * free()
 */
lode_status_t lode_manner_document(const lode_manner_t *manner, lode_tokenizer_h tokenizer, const char *text,
                                   size_t bytes, lode_tokens_t *tokens, size_t **ends, size_t *piece_count);
/** Tokens of a question with its template. @return ::LODE_ERR_INVALID if they are more than range. */
lode_status_t lode_manner_question(const lode_manner_t *manner, lode_tokenizer_h tokenizer, const char *text,
                                   size_t bytes, lode_tokens_t *tokens);

/* -------------------------------------------------------------------- scribe */

/**
 * Writes down an answer: takes bytes of tokens, which may end within a character, and gives out whole characters as
 * soon as they can no longer be part of a stop text. Zeroed but for its manner is empty.
 */
typedef struct lode_scribe {
    const lode_manner_t *manner; /**< whose stop texts end the answer; borrowed */
    char *text;                  /**< (bytes), zero-terminated: what was given out; NULL before the first */
    size_t bytes, room;
    bool stopped; /**< a stop text was met; it and what follows is not in the text */
    char *held;   /**< (held_bytes) may be part of a stop text or of a character */
    size_t held_bytes, held_room;
} lode_scribe_t;

/** Take a token's bytes; what is beyond `bytes` of before is new. Bytes that are no UTF-8 give U+FFFD. */
lode_status_t lode_scribe_write(lode_scribe_t *scribe, const char *bytes, size_t count);
/** No more tokens come: give out what is held. Then `text` is never NULL. */
lode_status_t lode_scribe_finish(lode_scribe_t *scribe);
void lode_scribe_free(lode_scribe_t *scribe);

/* ------------------------------------------------------------------ sampling */

typedef struct lode_sampling {
    double temperature; /**< 0: greedy */
    double top_p;       /**< (0, 1] */
    uint32_t top_k;     /**< 0: all */
    uint64_t seed;
} lode_sampling_t;

/** The next token. @param[in,out] state  of the random numbers, begins as the seed */
uint32_t lode_sample(const lode_sampling_t *sampling, const float *logits, uint32_t vocabulary, uint64_t *state);

/* ------------------------------------------------------------------- reader */

typedef struct lode_reader *lode_reader_h;

typedef struct lode_reader_params {
    const char *model;  /**< folder */
    uint32_t threads;   /**< see lode_model_open() */
    const char *device; /**< see there; NULL: the processor */
    lode_format_t format;
    lode_landmark_spec_t landmark;
    uint32_t replicas; /**< 0: the configuration's */
} lode_reader_params_t;

/**
 * Load a model with its tokenizer and manner. Needs no cluster yet: its geometry is what the cluster is joined with.
 * @return as lode_model_open(), lode_tokenizer_open(), lode_manner_open(); ::LODE_ERR_FORMAT if the tokenizer has more
 * tokens than the model.
 */
lode_status_t lode_reader_open(const lode_reader_params_t *params, lode_reader_h *reader);
/** Closes its blocks' handles too; the blocks of documents stay in the cluster. */
void lode_reader_close(lode_reader_h *reader);
lode_model_h lode_reader_model(lode_reader_h reader);
lode_tokenizer_h lode_reader_tokenizer(lode_reader_h reader);
const lode_manner_t *lode_reader_manner(lode_reader_h reader);
/** Use a cluster from now on; says the geometry to one that has none. Borrowed until close. */
lode_status_t lode_reader_attach(lode_reader_h reader, lode_cluster_h cluster);

typedef struct lode_document {
    const char *name; /**< for people: a path */
    const char *text; /**< (bytes) UTF-8 */
    size_t bytes;
} lode_document_t;

/** What became of a document. */
typedef struct lode_ingest {
    uint64_t tokens;
    uint32_t pieces;  /**< blocks; more than one if it is longer than the range */
    uint32_t present; /**< of those, in the cluster already */
} lode_ingest_t;

/**
 * Prefill documents, each piece as a block of its own whose name is a digest of model, text and storage; pieces that
 * the cluster has already are left as they are. Ranks of a job divide the documents among themselves and call it each
 * for its own.
 * @param[in]  progress  called after each piece with tokens so far; NULL: nobody asks
 * @param[out] ingests   (count); may be NULL
 * @return ::LODE_ERR_FORMAT (no UTF-8: document and offset), ::LODE_ERR_INVALID (empty), or what appending returned; no
 *         partial block stays.
 */
lode_status_t lode_reader_ingest(lode_reader_h reader, const lode_document_t *documents, uint32_t count,
                                 void (*progress)(void *self, uint64_t tokens), void *self, lode_ingest_t *ingests);
/** List documents, in this order, as what questions are asked of; all must have been ingested by somebody. */
lode_status_t lode_reader_list(lode_reader_h reader, const lode_document_t *documents, uint32_t count);

typedef struct lode_asking {
    lode_policy_t policy;
    lode_sampling_t sampling;
    uint32_t most_tokens;                                     /**< of the answer */
    void (*text)(void *self, const char *text, size_t bytes); /**< whole characters as they come; may be NULL */
    bool (*stop)(void *self); /**< asked before each token: true ends the answer; may be NULL */
    void *self;
    bool sources; /**< find out which documents the answer comes from: some steps more */
    /**
     * Not 0: find this many documents that matter most to the question, by what its tokens would choose of all, and
     * answer from those alone, densely.
     */
    uint32_t focus;
    const lode_attention_t *attention; /**< NULL: lode_step() */
} lode_asking_t;

typedef struct lode_source {
    uint32_t document; /**< of the list; the first of those with the same text */
    double share;      /**< of the tokens that matter most to the answer's first tokens, all layers and heads */
} lode_source_t;

enum { LODE_SOURCES_MAX = 8 };

typedef struct lode_answer {
    char *text; /**< (bytes), zero-terminated; owned, lode_answer_free() */
    size_t bytes;
    uint32_t question_tokens, answer_tokens;
    bool stopped; /**< by a stop text; else by most_tokens */
    lode_source_t sources[LODE_SOURCES_MAX];
    uint32_t source_count;
    uint64_t visible_tokens;                     /**< of the documents that it was answered from */
    uint32_t document_count;                     /**< those */
    uint64_t question_ns, answer_ns, sources_ns; /**< apart from one another */
    /** Sums over layers and answer steps, as lode_step_stats_t has them. */
    uint64_t records_wanted, records_local, records_hit, records_fetched, bytes_fetched, attend_ns;
} lode_answer_t;

/**
 * Ask the listed documents. The question is prefilled against them, the answer decoded token by token; both go to a
 * block of this question alone, which is dropped at the end.
 * @return ::LODE_ERR_INVALID (nothing listed; a question longer than the range), or what a step returned.
 */
lode_status_t lode_reader_ask(lode_reader_h reader, const char *question, size_t bytes, const lode_asking_t *asking,
                              lode_answer_t *answer);
void lode_answer_free(lode_answer_t *answer);

#endif
