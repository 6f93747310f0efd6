/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file talk.h
 * @brief A model that hears, thinks and speaks at once: streams of tokens over shared blocks (arXiv 2512.10931).
 *
 * The blocks of a talk, in the order of their positions: the reader's listed documents, the prompt, the input (what was
 * heard), the thoughts, the words. The thinker's view ends with the thoughts and writes there, the writer's with the
 * words, the input's with the input; the control's goes on behind the words with a draft that is cropped after each
 * probe. All that have something to say in a step go through the model in one pass, and see each other's tokens of that
 * same step. A block that grows moves those behind it in every view; nothing is computed anew.
 *
 * What a stream drew goes through the model with the next pass. A token that completes a stop text does not, and is in
 * no text; of a stop text that takes several tokens the first ones do, so stop texts are best one token long.
 *
 * A talk is stepped by its caller, who may hand in new input between any two steps:
 *
 *     lode_talk_begin(…, &talk);
 *     lode_talk_hear(talk, request, bytes, false);
 *     do
 *         lode_talk_step(talk, &step);
 *     while (step.state != LODE_TALK_ENDED);
 *     lode_talk_end(&talk);
 *
 * Threads: one at a time for each handle. Nothing is collective.
 */
#ifndef LODE_TALK_H
#define LODE_TALK_H

#include "reader/reader.h"

/** Texts of a prompts file that may be several: any of them will do. */
typedef struct lode_texts {
    char **texts; /**< (count) */
    uint32_t count;
} lode_texts_t;

/**
 * How a model is made to think and speak at once: talk.json of its folder, or another file; docs/streams.md has its
 * form. Special tokens are recognised in all of it, and never in what is heard. Without a file, what suits any
 * checkpoint that writes its thoughts between <think> and </think>.
 */
typedef struct lode_prompts {
    char *prompt;                                      /**< before all; "" for none */
    char *input_first, *input_next, *input_end;        /**< before the first input, before each other, after each */
    char *thinker_begin, *writer_begin, *writer_alone; /**< what their blocks begin with; alone: without thoughts */
    lode_texts_t thinker_stops, writer_stops;          /**< end the thoughts; end the words */
    lode_texts_t thinker_paragraphs, writer_paragraphs;
    lode_texts_t sentences; /**< of the thinker: input that came meanwhile is taken in behind them */
    char *control_question; /**< of the probe, behind the words; "": what would the writer say next? */
    lode_texts_t yes, no;   /**< ways to answer it, told apart by their first tokens */
    uint32_t probe_every;   /**< steps; besides, the thinker is probed at its paragraphs' ends */
} lode_prompts_t;

/**
 * @param[in] path  a file, a model's folder (its talk.json if it has one), or NULL for what suits most
 * @return ::LODE_ERR_IO, ::LODE_ERR_FORMAT (the message names key and file), as lode_manner_open().
 */
lode_status_t lode_prompts_open(const char *path, lode_tokenizer_h tokenizer, lode_prompts_t *prompts);
void lode_prompts_free(lode_prompts_t *prompts);

typedef enum lode_talk_mode {
    LODE_TALK_AT_ONCE,     /**< the control decides when the writer speaks beside the thinker */
    LODE_TALK_THINK_FIRST, /**< the writer begins when the thoughts have ended */
    LODE_TALK_NO_THOUGHT   /**< the writer alone, from when no more input is promised: half a request has no answer */
} lode_talk_mode_t;

typedef enum lode_talk_state {
    LODE_TALK_LISTENING, /**< nothing to do: nothing was heard yet, or all is said about it and more is to come */
    LODE_TALK_THINKING,  /**< the thinker alone: the writer has not begun, or pauses at the end of a paragraph */
    LODE_TALK_BOTH,
    LODE_TALK_WRITING, /**< the thoughts have ended */
    LODE_TALK_ENDED
} lode_talk_state_t;

typedef enum lode_talk_stream {
    LODE_TALK_INPUT,
    LODE_TALK_THINKER,
    LODE_TALK_WRITER,
    LODE_TALK_CONTROL,
    LODE_TALK_STREAMS
} lode_talk_stream_t;

typedef struct lode_talking {
    lode_talk_mode_t mode;
    /**
     * How much of the documents is looked at: budget, sinks and window are theirs. The talk's own tokens are all
     * attended to besides, whether they are in tails or have left as pages.
     */
    lode_policy_t policy;
    lode_sampling_t sampling; /**< of thinker and writer; each has a state of its own from the seed */
    /**
     * Tokens, ≥ 1. A stream that reaches it, or the end of the model's context, ends as if it had said a stop text; the
     * talk ends with the words. Thoughts leave most_words of the context for words, or a quarter of what documents and
     * prompt leave, if that is less.
     */
    uint32_t most_thoughts, most_words;
    uint32_t probe_every; /**< 0: as the prompts say */
    bool hear_at_once;    /**< input is taken in by the next step; else when the thinker has ended a sentence */
    /** Whole characters of the thinker or writer as they come; may be NULL. */
    void (*text)(void *self, lode_talk_stream_t stream, const char *text, size_t bytes);
    void *self;
    const lode_attention_t *attention; /**< NULL: lode_step() */
} lode_talking_t;

/** What a step did. */
typedef struct lode_talk_step {
    lode_talk_state_t state;            /**< after it */
    uint32_t tokens[LODE_TALK_STREAMS]; /**< that went through the model; the control's are forgotten */
    uint32_t
        said[LODE_TALK_STREAMS]; /**< that the thinker or writer drew in it, stops not; the next pass takes them in */
    bool probed;                 /**< then: */
    double yes, no;              /**< probabilities of their first tokens */
    uint64_t records_wanted, records_fetched, bytes_fetched; /**< sums over layers */
    uint64_t attend_ns, step_ns;
} lode_talk_step_t;

typedef struct lode_talk *lode_talk_h;

/*
 * How states follow one another, of a talk at once. THINKING: a probe goes with every probe_every-th pass and with the
 * one after a paragraph of the thinker ended; if "yes" is likelier than "no", BOTH. BOTH: no probes; when the writer
 * has ended a paragraph, THINKING. A paragraph has ended when the token just drawn completes one of its texts, or
 * begins with one: so " " stands for "between words". The writer's last token waits then, and is in the next probe.
 * Thoughts that end leave WRITING, without probes and pauses, until the words end. Words that end while there are
 * thoughts end the talk too.
 *
 * While input is promised or waits, no end counts: the stop is dropped, and drawn anew from the same place when there
 * are more thoughts (for the writer) or more input (for the thinker). A thinker that waits for it is probed once, so
 * that what is settled can be said before the talk is LISTENING.
 */

/**
 * Begin a talk over the reader's listed documents, which may be none. Makes its blocks and puts the prompt into one.
 * The list must stay as it is until the end.
 * @param[in] prompts  borrowed until the end, as is what @p talking points to
 */
lode_status_t lode_talk_begin(lode_reader_h reader, const lode_prompts_t *prompts, const lode_talking_t *talking,
                              lode_talk_h *talk);
/**
 * Hand in new input; it is taken in by a later step, as lode_talking_t.hear_at_once says; at once while the talk
 * listens.
 * @param[in] text  (bytes) UTF-8, copied; special tokens are not recognised. No bytes: nothing but @p more is said, as
 *                  when a promise is not kept.
 * @param[in] more  whether more is to come: then the thinker does not end before, but listens
 * @return ::LODE_ERR_INVALID (after the end, or after more was denied and the thoughts have ended, without thoughts:
 * the words begun; longer than the model's context has room; nothing at all and no more to come),
 *         ::LODE_ERR_FORMAT (no UTF-8); the talk goes on as if it had not been called.
 */
lode_status_t lode_talk_hear(lode_talk_h talk, const char *text, size_t bytes, bool more);
/**
 * One pass of the model with all streams that have something to say; more only for very long input. While it listens
 * and nothing new was heard, or has ended, nothing happens.
 * @return what the step of attention returned; then the talk can only be ended.
 */
lode_status_t lode_talk_step(lode_talk_h talk, lode_talk_step_t *step);
/** What a stream has said, (bytes) zero-terminated; of the input, what was taken in. Borrowed until the next step. */
const char *lode_talk_text(lode_talk_h talk, lode_talk_stream_t stream, size_t *bytes);
/** Drops the talk's blocks. @p talk is NULL afterwards. */
void lode_talk_end(lode_talk_h *talk);

#endif
