/* SPDX-License-Identifier: Apache-2.0 */
/* The command line of `lodemark talk`. */
#include <string.h>

#include "launch/talk.h"

static const lode_option_t talk_options[] = {
    LODE_READING_OPTIONS_FIRST,
    {"request", NULL, LODE_OPTION_TEXT, NULL, 0, 0, "what the first talk begins with, before any line of input"},
    {"prompts", NULL, LODE_OPTION_TEXT, NULL, 0, 0,
     "file that says how to make the model think and speak at once [talk.json of its folder]"},
    {"mode", "at-once", LODE_OPTION_CHOICE, "at-once|think-first|no-thought", 0, 0,
     "whether words may begin before the thoughts have ended, or there are none"},
    {"hear", "at-once", LODE_OPTION_CHOICE, "at-once|sentence", 0, 0,
     "when input that comes meanwhile is taken in: by the next step, or when the thinker has ended a sentence"},
    {"thoughts", NULL, LODE_OPTION_TEXT, NULL, 0, 0,
     "write the thoughts to this file; - for rows among the words, each behind \"| \""},
    {"max-thoughts", "1024", LODE_OPTION_COUNT, NULL, 1, 1 << 20, "most tokens of the thoughts of a talk"},
    {"max-words", "512", LODE_OPTION_COUNT, NULL, 1, 1 << 20, "most tokens of its words"},
    {"json", NULL, LODE_OPTION_TEXT, NULL, 0, 0,
     "write talks and costs to this file as one JSON object; - for stdout, then without the words"},
    LODE_READING_OPTIONS,
    {NULL},
};

void lode_talk_help(FILE *out)
{
    fprintf(
        out,
        "lodemark talk [--docs PATH...] [OPTIONS]\n"
        "mpirun -n RANKS lodemark talk [--docs PATH...] [OPTIONS]\n\n"
        "Talk with a language model that listens, thinks and speaks at once, over documents in the memory of all\n"
        "ranks, or of a running lodemarkd. Its words come to stdout, what they took to stderr.\n\n"
        "A line of input begins a talk. Lines that come before it has ended are heard by that talk, those after it\n"
        "begin another; talks know nothing of each other. A line that ends with \"\\\" or \"…\" promises more: the\n"
        "model thinks on, but waits for it before it ends. An empty line promises no more, and what comes after it\n"
        "is for another talk; the end of input, too.\n\n"
        "In a terminal the last thoughts are shown dimmed, and you can type at any time. Ctrl-C ends the running\n"
        "talk; again, or between talks, the command. NO_COLOR and TERM=dumb are heeded.\n\n"
        "  lodemark talk --docs notes/                       in a terminal\n"
        "  echo 'Who was it?' | lodemark talk --docs notes/  words alone\n"
        "  (echo 'List the tools of…'; sleep 2; echo 'steel.') | lodemark talk --docs notes/ --thoughts -\n\n");
    lode_reading_help(talk_options, out);
}

static void read_talking(lode_talker_t *talker)
{
    const lode_options_t *o = &talker->reading.options;
    const char *mode = lode_options_get(o, "mode");
    talker->talking = (lode_talking_t){
        .mode = *mode == 'a'   ? LODE_TALK_AT_ONCE
                : *mode == 't' ? LODE_TALK_THINK_FIRST
                               : LODE_TALK_NO_THOUGHT,
        .policy = talker->reading.policy,
        .sampling = talker->reading.sampling,
        .most_thoughts = (uint32_t)lode_options_count(o, "max-thoughts"),
        .most_words = (uint32_t)lode_options_count(o, "max-words"),
        .hear_at_once = strcmp(lode_options_get(o, "hear"), "at-once") == 0,
    };
}

lode_status_t lode_talk_options(int argc, char **argv, lode_talker_t *talker)
{
    LODE_TRY(lode_reading_options("talk", talk_options, argc, argv, &talker->reading));
    const lode_options_t *o = &talker->reading.options;
    read_talking(talker);
    talker->request = lode_options_get(o, "request");
    talker->prompts_path = lode_options_get(o, "prompts");
    talker->thoughts_path = lode_options_get(o, "thoughts");
    if (talker->request && talker->request[strspn(talker->request, " \t\r\n")] == 0)
        return lode_fail(LODE_ERR_INVALID, "--request is empty: leave it out to type one");
    if (talker->thoughts_path && talker->talking.mode == LODE_TALK_NO_THOUGHT)
        return lode_fail(LODE_ERR_INVALID, "--thoughts with --mode no-thought: there are none to write");
    if (lode_reading_quiet(&talker->reading) && talker->thoughts_path && strcmp(talker->thoughts_path, "-") == 0)
        return lode_fail(LODE_ERR_INVALID, "--json - and --thoughts -: only one of them can have standard output");
    return LODE_OK;
}

bool lode_talk_promises(char *line)
{
    static const char *const marks[] = {"\\", "\xe2\x80\xa6" /* … */};
    for (size_t i = 0; i < sizeof marks / sizeof *marks; i++) {
        size_t bytes = strlen(line), mark = strlen(marks[i]);
        if (bytes >= mark && strcmp(line + bytes - mark, marks[i]) == 0) {
            line[bytes - mark] = 0;
            return true;
        }
    }
    return false;
}
