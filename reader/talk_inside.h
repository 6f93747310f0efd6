/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file talk_inside.h
 * @brief What a talk is made of: its course (who goes next, without any model), its blocks and views, its words.
 */
#ifndef LODE_READER_TALK_INSIDE_H
#define LODE_READER_TALK_INSIDE_H

#include "reader/reader_inside.h"
#include "reader/talk.h"

/* ------------------------------------------------------------- talk_state.c */

/** How far a stream has come. */
typedef enum lode_talk_part {
    LODE_PART_NONE,  /**< this mode has no such stream */
    LODE_PART_IDLE,  /**< has not begun */
    LODE_PART_RUNS,  /**< its next token is drawn, or its begin text goes with the next pass */
    LODE_PART_RESTS, /**< the writer at the end of a paragraph; the thinker when it drew a stop too early */
    LODE_PART_DONE
} lode_talk_part_t;

/**
 * Where a talk stands, without its tokens. Each step asks what to do (plan), does it, and tells what came of it
 * (learn).
 */
typedef struct lode_talk_course {
    lode_talk_mode_t mode;
    bool hear_at_once;
    uint32_t probe_every; /**< ≥ 1 */
    lode_talk_state_t state;
    bool heard;   /**< something, taken in or not */
    bool more;    /**< is promised */
    bool waiting; /**< heard, but not taken in */
    lode_talk_part_t thinker, writer;
    bool thinker_full;              /**< it may draw no more */
    bool writer_stopped;            /**< it rests at a stop that it drew too early; its last token is asked again */
    bool at_paragraph, at_sentence; /**< of the thinker */
    bool probed_here;               /**< nothing was thought or said since the last probe */
    uint32_t since_probe;           /**< passes of the thinker, while it is alone */
} lode_talk_course_t;

/** Who goes into the next pass. */
typedef struct lode_talk_plan {
    bool input, thinker, writer, control;
    /** The last token is asked once more and writes nothing: the stop that was drawn after it does not count. */
    bool thinker_again, writer_again;
} lode_talk_plan_t;

/** What a stream drew. */
typedef struct lode_talk_drawn {
    bool stopped;
    bool full; /**< stopped by a limit */
    bool paragraph, sentence;
} lode_talk_drawn_t;

typedef struct lode_talk_learnt {
    lode_talk_drawn_t thinker, writer;
    bool yes; /**< the probe's answer */
} lode_talk_learnt_t;

/** @param[in] probe_every  ≥ 1 */
void lode_course_begin(lode_talk_course_t *course, lode_talk_mode_t mode, bool hear_at_once, uint32_t probe_every);
/** Whether more may be heard now. */
bool lode_course_may_hear(const lode_talk_course_t *course);
/** @param[in] some  whether there was anything in it, or only the word that more or no more is to come */
void lode_course_hear(lode_talk_course_t *course, bool some, bool more);
lode_talk_plan_t lode_course_plan(const lode_talk_course_t *course);
void lode_course_learn(lode_talk_course_t *course, const lode_talk_plan_t *plan, const lode_talk_learnt_t *learnt);
static inline bool lode_plan_is_empty(const lode_talk_plan_t *plan)
{
    return !plan->input && !plan->thinker && !plan->writer && !plan->control;
}

/* -------------------------------------------------------------------- a talk */

/** Blocks of its own, in the order of their positions; the streams' follow the prompt's. */
enum { LODE_TALK_PROMPT, LODE_TALK_FIRST, LODE_TALK_BLOCKS = LODE_TALK_FIRST + LODE_TALK_STREAMS };
static inline uint32_t lode_talk_block_of(lode_talk_stream_t stream)
{
    return LODE_TALK_FIRST + (uint32_t)stream;
}

typedef struct lode_talk_block {
    lode_block_h block; /**< NULL: the mode has none, or it would be empty */
    uint32_t tokens;
    uint32_t paged;   /**< of those, in pages */
    lode_view_h view; /**< that ends with this block and writes to it; NULL until it is needed */
    uint32_t held;    /**< tokens in pages of its own that the view's policy knows of */
} lode_talk_block_t;

/** The last bytes that a stream has drawn, to see paragraphs end. */
enum { LODE_TALK_TEXT_MAX = 256 };
typedef struct lode_talk_tail {
    char bytes[2 * LODE_TALK_TEXT_MAX];
    size_t count;
} lode_talk_tail_t;

/** Of the thinker or writer. */
typedef struct lode_talk_voice {
    lode_manner_t stops; /**< borrowed texts; what a scribe wants to know */
    lode_scribe_t scribe;
    const lode_texts_t *paragraphs, *sentences;
    lode_talk_tail_t tail;
    uint64_t random;
    uint32_t said, most;
    bool full; /**< drew what it may */
} lode_talk_voice_t;

/** First tokens that are a yes, or a no; each once. */
typedef lode_tokens_t lode_talk_answers_t;

struct lode_talk {
    lode_reader_h reader;
    const lode_prompts_t *prompts;
    lode_talking_t talking;
    lode_talk_course_t course;
    int64_t base; /**< view position of what comes after the documents */
    lode_talk_block_t blocks[LODE_TALK_BLOCKS];
    lode_tokens_t pending[LODE_TALK_STREAMS]; /**< to go through the model next; the control's are made for a probe */
    uint32_t last[LODE_TALK_STREAMS];         /**< token in the block */
    float *logits[LODE_TALK_STREAMS];
    lode_talk_voice_t voices[LODE_TALK_STREAMS];
    lode_tokens_t question; /**< the control's */
    lode_talk_answers_t yes, no;
    char *heard, *waiting; /**< zero-terminated texts: taken in, and not yet */
    size_t heard_bytes, waiting_bytes;
    bool failed;
    bool reads[LODE_TALK_STREAMS]; /**< passages of this pass that write nothing */
    lode_talk_step_t *step;        /**< of this pass */
};

/* ------------------------------------------------------------- talk_views.c */

/** Position after the first blocks of the talk, up to @p block and it. */
int64_t lode_talk_end_of(const struct lode_talk *talk, uint32_t block);
/**
 * The view of a block, which ends with it and writes to it. Made anew when the policy is to hold more of the talk's own
 * tokens than it knows of.
 */
lode_status_t lode_talk_view(struct lode_talk *talk, uint32_t block, lode_view_h *view);
void lode_talk_drop_blocks(struct lode_talk *talk);
/** Positions taken by documents, blocks and all that is on its way into them. */
uint64_t lode_talk_used(const struct lode_talk *talk);
/** Positions that are kept free for words while there are thoughts. */
uint64_t lode_talk_words_room(const struct lode_talk *talk);

/* ------------------------------------------------------------- talk_words.c */

lode_status_t lode_voice_begin(struct lode_talk *talk, lode_talk_stream_t stream);
/** The next token of a stream from its logits: written down, and pending unless it ends the stream. */
lode_status_t lode_voice_draw(struct lode_talk *talk, lode_talk_stream_t stream, lode_talk_drawn_t *drawn);
/** After a stop that did not count. */
void lode_voice_go_on(struct lode_talk *talk, lode_talk_stream_t stream);
/** Nothing more comes: give out what is held back. */
lode_status_t lode_voice_finish(struct lode_talk *talk, lode_talk_stream_t stream);
/** First tokens of texts, each once. */
lode_status_t lode_answers_of(lode_tokenizer_h tokenizer, const lode_texts_t *texts, lode_talk_answers_t *answers);
/** Their share of the probabilities. */
double lode_answers_share(const lode_talk_answers_t *answers, const float *logits, uint32_t vocabulary);
/** Whether what was drawn before ends with one of the texts, together with the next token or right before it. */
bool lode_tail_ends(const lode_talk_tail_t *tail, const lode_texts_t *texts, const char *next, size_t bytes);
void lode_tail_add(lode_talk_tail_t *tail, const char *next, size_t bytes);

#endif
