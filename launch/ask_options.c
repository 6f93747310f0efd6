/* SPDX-License-Identifier: Apache-2.0 */
/* The command line of `lodemark ask`. */
#include "launch/ask.h"

static const lode_option_t ask_options[] = {
    LODE_READING_OPTIONS_FIRST,
    {"question", NULL, LODE_OPTION_TEXT, NULL, 0, 0, "what to ask"},
    {"questions", NULL, LODE_OPTION_TEXT, NULL, 0, 0,
     "file with a question a line; without either, lines of standard input are asked"},
    {"max-tokens", "512", LODE_OPTION_COUNT, NULL, 1, 1 << 20, "most tokens of an answer"},
    {"compare", "no", LODE_OPTION_FLAG, NULL, 0, 0,
     "ask each question densely as well: what that answers, reads and takes"},
    {"focus", "0", LODE_OPTION_COUNT, NULL, 0, 1 << 20,
     "find this many documents that matter most to the question first, and answer from those alone; 0: from all"},
    {"sources", "yes", LODE_OPTION_FLAG, NULL, 0, 0, "find out which documents an answer comes from"},
    {"json", NULL, LODE_OPTION_TEXT, NULL, 0, 0,
     "write answers and costs to this file as one JSON object; - for stdout"},
    LODE_READING_OPTIONS,
    {NULL},
};

void lode_ask_help(FILE *out)
{
    fprintf(out,
            "lodemark ask --docs PATH... [OPTIONS]\n"
            "mpirun -n RANKS lodemark ask --docs PATH... [OPTIONS]\n\n"
            "Read documents into the memory of all ranks, or of a running lodemarkd, and ask a language model about\n"
            "them. Each document is read in once; every question is asked of all of them at once. Without mpirun one\n"
            "process does it all.\n\n");
    lode_reading_help(ask_options, out);
}

static lode_status_t check(const lode_ask_t *ask)
{
    const lode_options_t *o = &ask->reading.options;
    if (!ask->reading.paths.count)
        return lode_fail(LODE_ERR_INVALID, "which documents? --docs PATH... names files or folders");
    if (lode_options_get(o, "question") && lode_options_get(o, "questions"))
        return lode_fail(LODE_ERR_INVALID, "--question and --questions: one of them");
    return LODE_OK;
}

lode_status_t lode_ask_options(int argc, char **argv, lode_ask_t *ask)
{
    LODE_TRY(lode_reading_options("ask", ask_options, argc, argv, &ask->reading));
    const lode_options_t *o = &ask->reading.options;
    ask->compare = lode_options_flag(o, "compare");
    ask->asking = (lode_asking_t){
        .policy = ask->reading.policy,
        .sampling = ask->reading.sampling,
        .most_tokens = (uint32_t)lode_options_count(o, "max-tokens"),
        .focus = (uint32_t)lode_options_count(o, "focus"),
        .sources = lode_options_flag(o, "sources"),
    };
    return check(ask);
}
