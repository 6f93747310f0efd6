/* SPDX-License-Identifier: Apache-2.0 */
/* The four domains: what their entities are called, what they have, and how that is put into words. */
#include <string.h>

#include "bench/text2json_inside.h"

/* -------------------------------------------------------------------- names */

static uint32_t draw_word(lode_random_t *random, const lode_words_t *words, lode_text2json_split_t split)
{
    return lode_random_below(random, lode_words_count(words, split));
}

/* Beginnings of a split, all endings. */
static const char *ending_at(const lode_words_t *words, uint32_t i)
{
    return words->list[i];
}

/* Parts: brand, its ending, letters, number. */
static const char *const series[] = {"K", "S", "MX", "T", "R", "QL", "V", "DX",
                                     "A", "E", "HT", "Z", "P", "NX", "L", "G"};
enum { SERIES = sizeof series / sizeof *series, SERIES_NUMBERS = 198 };

static void draw_product(lode_random_t *random, lode_text2json_split_t split, uint32_t *parts)
{
    parts[0] = draw_word(random, &lode_words_brand, split);
    parts[1] = lode_random_below(random, lode_words_brand_end.count);
    parts[2] = lode_random_below(random, SERIES);
    parts[3] = lode_random_below(random, SERIES_NUMBERS);
}

static void vary_product(lode_random_t *random, lode_text2json_split_t split, uint32_t *parts)
{
    (void)split;
    if (lode_random_once_in(random, 3))
        parts[2] = lode_random_below(random, SERIES);
    else
        parts[3] = lode_random_below(random, SERIES_NUMBERS);
}

static void write_product(lode_prose_t *out, lode_text2json_split_t split, const uint32_t *parts)
{
    lode_prose_format(out, "%s%s %s%u", lode_words_at(&lode_words_brand, split, parts[0]),
                      ending_at(&lode_words_brand_end, parts[1]), series[parts[2]], 10 + 5 * parts[3]);
}

/* Parts: first name, initial, surname, its ending. */
static void draw_doctor(lode_random_t *random, lode_text2json_split_t split, uint32_t *parts)
{
    parts[0] = draw_word(random, &lode_words_first_name, split);
    parts[1] = lode_random_below(random, 26);
    parts[2] = draw_word(random, &lode_words_surname, split);
    parts[3] = lode_random_below(random, lode_words_surname_end.count);
}

static void vary_doctor(lode_random_t *random, lode_text2json_split_t split, uint32_t *parts)
{
    if (lode_random_once_in(random, 2))
        parts[0] = draw_word(random, &lode_words_first_name, split);
    else
        parts[3] = lode_random_below(random, lode_words_surname_end.count);
}

static void write_doctor(lode_prose_t *out, lode_text2json_split_t split, const uint32_t *parts)
{
    lode_prose_format(out, "Dr. %s %c. %s%s", lode_words_at(&lode_words_first_name, split, parts[0]),
                      'A' + (int)parts[1], lode_words_at(&lode_words_surname, split, parts[2]),
                      ending_at(&lode_words_surname_end, parts[3]));
}

/* Parts: pattern, place, its ending, surname, its ending, aim. */
static void draw_organisation(lode_random_t *random, lode_text2json_split_t split, uint32_t *parts)
{
    parts[0] = lode_random_below(random, 3);
    parts[1] = draw_word(random, &lode_words_place, split);
    parts[2] = lode_random_below(random, lode_words_place_end.count);
    parts[3] = draw_word(random, &lode_words_surname, split);
    parts[4] = lode_random_below(random, lode_words_surname_end.count);
    parts[5] = lode_random_below(random, lode_words_aim.count);
}

static void vary_organisation(lode_random_t *random, lode_text2json_split_t split, uint32_t *parts)
{
    (void)split;
    if (lode_random_once_in(random, 2))
        parts[5] = lode_random_below(random, lode_words_aim.count);
    else
        parts[0] = lode_random_below(random, 3);
}

static void write_organisation(lode_prose_t *out, lode_text2json_split_t split, const uint32_t *parts)
{
    const char *place = lode_words_at(&lode_words_place, split, parts[1]);
    const char *place_end = ending_at(&lode_words_place_end, parts[2]);
    const char *surname = lode_words_at(&lode_words_surname, split, parts[3]);
    const char *surname_end = ending_at(&lode_words_surname_end, parts[4]);
    const char *aim = lode_words_aim.list[parts[5]];
    if (parts[0] == 0)
        lode_prose_format(out, "%s%s %s%s %s", surname, surname_end, place, place_end, aim);
    else if (parts[0] == 1)
        lode_prose_format(out, "%s%s %s of %s%s", surname, surname_end, aim, place, place_end);
    else
        lode_prose_format(out, "%s%s %s %s%s", place, place_end, aim, surname, surname_end);
}

/* Parts: pattern, adjective, noun, place, its ending, first name. */
static void draw_film(lode_random_t *random, lode_text2json_split_t split, uint32_t *parts)
{
    parts[0] = lode_random_below(random, 3);
    parts[1] = draw_word(random, &lode_words_adjective, split);
    parts[2] = draw_word(random, &lode_words_film_noun, split);
    parts[3] = draw_word(random, &lode_words_place, split);
    parts[4] = lode_random_below(random, lode_words_place_end.count);
    parts[5] = draw_word(random, &lode_words_first_name, split);
}

static void vary_film(lode_random_t *random, lode_text2json_split_t split, uint32_t *parts)
{
    if (lode_random_once_in(random, 2))
        parts[1] = draw_word(random, &lode_words_adjective, split);
    else
        parts[2] = draw_word(random, &lode_words_film_noun, split);
}

static void write_film(lode_prose_t *out, lode_text2json_split_t split, const uint32_t *parts)
{
    const char *adjective = lode_words_at(&lode_words_adjective, split, parts[1]);
    const char *noun = lode_words_at(&lode_words_film_noun, split, parts[2]);
    const char *place = lode_words_at(&lode_words_place, split, parts[3]);
    const char *place_end = ending_at(&lode_words_place_end, parts[4]);
    const char *first = lode_words_at(&lode_words_first_name, split, parts[5]);
    if (parts[0] == 0)
        lode_prose_format(out, "The %s %s of %s%s", adjective, noun, place, place_end);
    else if (parts[0] == 1)
        lode_prose_format(out, "%s and the %s %s of %s%s", first, adjective, noun, place, place_end);
    else
        lode_prose_format(out, "%s%s: The %s %s", place, place_end, adjective, noun);
}

static void short_kind(lode_prose_t *out, const char *kind, const char *name)
{
    (void)name;
    lode_prose_format(out, "the %s", kind);
}

static void short_doctor(lode_prose_t *out, const char *kind, const char *name)
{
    (void)kind;
    lode_prose_format(out, "Dr. %s", strrchr(name, ' ') + 1);
}

static void short_film(lode_prose_t *out, const char *kind, const char *name)
{
    (void)kind, (void)name;
    lode_prose_add(out, "the film");
}

/* ----------------------------------------------- what can be said of any of them */

static const char *const product_colour[] = {
    "testers were surprised by how little noise {s} makes",
    "{s} comes in a plain cardboard box without any plastic",
    "the manual of {n} is short and has clear drawings",
    "{p} main switch can be worked with gloves on",
    "some buyers wished that {s} took up less room on a shelf",
    "spare parts for {n} can be ordered one by one",
    "{s} was shown to the trade at two autumn fairs",
    "cleaning {n} takes a damp cloth and half a minute",
    "{s} went through three rounds of testing before it was released",
    "a carrying strap for {n} is sold separately",
    "shops in smaller towns seldom have {n} in stock",
    "{p} rubber feet keep it from sliding on smooth tiles",
    "reviewers liked the sober look of {n}",
    "{s} has no app and does not ask for an account",
    "the people who designed {n} had worked on hospital equipment before",
    "a forum of owners trades small repairs for {n}",
    NULL,
};
static const char *const doctor_colour[] = {
    "patients describe {n} as calm and exact",
    "{s} writes a column in a local paper twice a year",
    "{s} likes to draw what is going on in the body on a sheet of paper",
    "new patients should bring earlier letters to {n}",
    "students speak well of the evening classes that {s} gives",
    "{s} answers written questions at the end of the day",
    "colleagues ask {n} for a second opinion now and then",
    "the waiting room of {n} has a shelf of old travel books",
    "{s} took part in a study of how long appointments really last",
    "before medicine {s} thought of becoming a carpenter",
    "{s} cycles to work in every weather",
    "a short film about a day with {n} was shown at a health fair",
    "{s} asks everyone to arrive ten minutes early",
    "{p} team has hardly changed over the years",
    "{s} is known for remembering the names of grandchildren",
    "the first talk with {n} is meant to last half an hour",
    NULL,
};
static const char *const organisation_colour[] = {
    "visitors are shown around {n} on the first Sunday of a month",
    "{s} publishes a thin but careful yearly report",
    "volunteers of {n} meet for soup before every large event",
    "the archive of {n} fills two rooms and a stairwell",
    "{s} was once nearly merged with a rival and decided against it",
    "local schools send a class to {n} each spring",
    "{p} newsletter is still printed on paper",
    "{s} keeps a list of people who can help at short notice",
    "the logo of {n} was drawn by a retired sign painter",
    "a small shop helps to pay for the repairs of {n}",
    "{s} lends its hall to choirs and to the fire brigade",
    "most of what {s} does happens without any announcement",
    "neighbours describe {n} as a good place to ask for advice",
    "{p} statutes fit on four pages",
    "journalists rarely quote {n}, though it is always well prepared",
    "{s} moved its accounts to free software some time ago",
    NULL,
};
static const char *const film_colour[] = {
    "critics were divided over the ending of {n}",
    "{s} was cut twice before it reached the cinemas",
    "a restored print of {n} toured small towns",
    "the poster of {n} hangs in many student kitchens",
    "{s} opens with four minutes in which nobody speaks",
    "extras for {n} were found among the people who lived nearby",
    "{s} was made with hardly any artificial light",
    "a storm destroyed half the sets of {n}",
    "audiences at the first showing of {n} stayed in their seats for a long time",
    "{s} is often shown to students of sound design",
    "the script of {n} went through eleven versions",
    "{s} found its audience late, on night-time television",
    "one scene of {n} was filmed in a single take",
    "the costumes of {n} were lent by an opera house",
    "{s} has never been released with deleted scenes",
    "a stage version of {n} was tried and soon given up",
    NULL,
};

/* ------------------------------------------------------------------- tables */

const lode_domain_t lode_domains[LODE_TEXT2JSON_DOMAINS] = {
    {
        .name = "products",
        .kinds = &lode_words_product,
        .kind_label = "Product type",
        .request_place = "made in",
        .pronoun = true,
        .draw_name = draw_product,
        .vary_name = vary_product,
        .write_name = write_product,
        .write_short = short_kind,
        .colour = product_colour,
        .intro = {"{s} is {k} for everyday use", "{s} is {k} from a small maker", "among the new arrivals is {s}, {k}",
                  "{s}, {k}, has been on sale for some time", "this entry describes {s}, {k}",
                  "the next item, {s}, is {k}"},
        .mistaken = {"shops sometimes shelve {n} as {k}, which it is not",
                     "{s} is easily mistaken for {k}, but it is nothing of the kind"},
        .attributes =
            {{.key = "made_in",
              .asked = "the country in which it is made",
              .label = "Made in",
              .value = {LODE_VALUE_WORD, &lode_words_country},
              .sentences = {"{s} is made in {v}", "{s} is assembled and packed in {v}",
                            "the factory of {n} stands in {v}", "{p} country of manufacture is {v}",
                            "every unit of {n} leaves a plant in {v}", "it is in {v} that {s} is produced"},
              .before = {"production of {n} has moved from {o} to {v}, where {s} is made today",
                         "{s} used to come from {o}; now it is made in {v}"}},
             {.key = "price",
              .asked = "the price asked for it now",
              .label = "Price",
              .value = {LODE_VALUE_PRICE, NULL, 19, 1900, 1, "$", NULL},
              .sentences = {"{s} costs {v}", "the price of {n} is {v}", "buyers pay {v} for {n}", "{s} is sold at {v}",
                            "the shop asks {v} for {n}", "{p} price tag reads {v}"},
              .before = {"{s} cost {o} when it came out and is sold at {v} now",
                         "the price of {n}, once {o}, has been set to {v}"}},
             {.key = "warranty",
              .asked = "how long its warranty lasts",
              .label = "Warranty",
              .value = {LODE_VALUE_NUMBER, NULL, 12, 120, 3, NULL, " months"},
              .sentences = {"{s} comes with a warranty of {v}", "the maker guarantees {n} for {v}",
                            "{p} warranty runs for {v}", "repairs of {n} are free for the first {v}",
                            "for {v} after the purchase, defects of {n} are covered", "a guarantee of {v} covers {n}"},
              .before = {"the warranty of {n} was {o} at first and is {v} today",
                         "older leaflets promise {o} of warranty for {n}; what holds is {v}"}},
             {.key = "colour",
              .asked = "its colour",
              .label = "Colour",
              .value = {LODE_VALUE_WORD, &lode_words_colour},
              .sentences = {"{s} is finished in {v}", "the colour of {n} is {v}", "{s} is only delivered in {v}",
                            "{p} housing is {v}", "those who order {n} get it in {v}", "the maker paints {n} {v}"},
              .before = {"{s} was {o} in its first year and is {v} now",
                         "the colour of {n} was changed from {o} to {v}"}},
             {.key = "material",
              .asked = "the material its body is made of",
              .label = "Material",
              .value = {LODE_VALUE_WORD, &lode_words_material},
              .sentences = {"the body of {n} is made of {v}", "{s} is built from {v}",
                            "it is mostly {v} that {n} is made of", "{p} shell consists of {v}",
                            "for the body of {n} the designers chose {v}",
                            "the makers of {n} settled on {v} for its body"},
              .before = {"the body of {n}, first planned in {o}, is made of {v}",
                         "a prototype of {n} was made of {o}; the one on sale is of {v}"}},
             {.key = "weight",
              .asked = "its weight",
              .label = "Weight",
              .value = {LODE_VALUE_NUMBER, NULL, 210, 9800, 10, NULL, " g"},
              .sentences = {"{s} weighs {v}", "the weight of {n} is {v}", "on the scales {s} comes to {v}",
                            "{p} weight without packaging is {v}", "at {v}, {s} can be lifted by most people",
                            "{s} brings {v} to the scales"},
              .before = {"the first version of {n} weighed {o}; this one weighs {v}",
                         "leaflets give {o} for {n}, but it weighs {v}"}}},
    },
    {
        .name = "doctors",
        .kinds = &lode_words_speciality,
        .kind_label = "Speciality",
        .request_place = "practising in",
        .draw_name = draw_doctor,
        .vary_name = vary_doctor,
        .write_name = write_doctor,
        .write_short = short_doctor,
        .colour = doctor_colour,
        .intro = {"{s} is {k} with a loyal circle of patients", "{s}, {k}, takes new patients again",
                  "{s} has worked as {k} for most of a working life", "this entry is about {s}, {k}",
                  "those who look for {k} may be sent to {n}", "by training and by temper {s} is {k}"},
        .mistaken = {"an old directory calls {n} {k}, which is an error", "{s} is now and then taken for {k}, wrongly"},
        .attributes = {{.key = "city",
                        .asked = "the city of the practice",
                        .label = "City",
                        .value = {LODE_VALUE_PLACE},
                        .sentences = {"{s} practises in {v}", "the practice of {n} is in {v}",
                                      "patients come to {v} to see {n}", "{p} consulting rooms are in {v}",
                                      "{s} sees patients in {v} only", "the address of {n} is in {v}"},
                        .before = {"{s} left {o} and practises in {v} now", "{p} practice moved from {o} to {v}"}},
                       {.key = "clinic",
                        .asked = "the clinic the doctor belongs to",
                        .label = "Clinic",
                        .value = {LODE_VALUE_PLACE, NULL, 0, 0, 0, NULL, " Clinic"},
                        .sentences = {"{s} belongs to the staff of {v}", "{s} works at {v}",
                                      "operations of {n} take place at {v}", "{v} lists {n} among its staff",
                                      "{p} hospital is {v}", "in an emergency {s} is found at {v}"},
                        .before = {"{s} was at {o} before joining {v}", "after years at {o}, {s} works at {v}"}},
                       {.key = "phone",
                        .asked = "the telephone number",
                        .label = "Telephone",
                        .value = {LODE_VALUE_PHONE},
                        .sentences = {"{s} can be reached by telephone at {v}", "the number to call for {n} is {v}",
                                      "appointments with {n} are made at {v}", "{p} telephone number is {v}",
                                      "calls to {v} reach the desk of {n}", "dial {v} to speak to the office of {n}"},
                        .before = {"the old number of {n}, {o}, is dead; call {v}",
                                   "{p} telephone number changed from {o} to {v}"}},
                       {.key = "experience",
                        .asked = "how many years the doctor has practised",
                        .label = "Experience",
                        .value = {LODE_VALUE_NUMBER, NULL, 3, 41, 1, NULL, " years"},
                        .sentences = {"{s} has practised for {v}", "{s} looks back on {v} of practice",
                                      "{p} experience amounts to {v}", "for {v} {s} has done this work",
                                      "{s} brings {v} of experience", "behind {n} lie {v} in the profession"},
                        .before = {"a leaflet gives {n} {o} of practice; by now it is {v}",
                                   "{s} has practised for {v}, not for {o} as was printed"}},
                       {.key = "language",
                        .asked = "the second language the doctor speaks",
                        .label = "Second language",
                        .value = {LODE_VALUE_WORD, &lode_words_language},
                        .sentences = {"besides English {s} speaks {v}", "{p} second language is {v}",
                                      "consultations with {n} are possible in {v}", "{s} also sees patients in {v}",
                                      "those who prefer {v} can use it with {n}", "{s} grew up speaking {v}"},
                        .before = {"{s} speaks {v}, not {o} as the website has it",
                                   "a leaflet says that {s} speaks {o}; in truth it is {v}"}},
                       {.key = "room",
                        .asked = "the consulting room",
                        .label = "Room",
                        .value = {LODE_VALUE_ROOM},
                        .sentences = {"{s} sees patients in room {v}", "the door of {n} is marked {v}",
                                      "ask for room {v} to find {n}", "{p} consulting room is {v}",
                                      "room {v} is where {s} works", "appointments with {n} are held in room {v}"},
                        .before = {"{s} moved from room {o} to room {v}",
                                   "the sign still says {o}, but {s} is in room {v}"}}},
    },
    {
        .name = "organisations",
        .kinds = &lode_words_organisation,
        .kind_label = "Type of organisation",
        .request_place = "with its head office in",
        .pronoun = true,
        .draw_name = draw_organisation,
        .vary_name = vary_organisation,
        .write_name = write_organisation,
        .write_short = short_kind,
        .colour = organisation_colour,
        .intro = {"{s} is {k} known well beyond its region", "{s}, {k}, opened its books for this survey",
                  "{s} describes itself as {k}", "this page is about {s}, {k}",
                  "one of the older names here is {s}, {k}", "{s} has always been {k}"},
        .mistaken = {"newspapers once called {n} {k}, which was never true",
                     "{s} is confused with {k} from time to time, without reason"},
        .attributes = {{.key = "headquarters",
                        .asked = "the place of its head office",
                        .label = "Head office",
                        .value = {LODE_VALUE_PLACE},
                        .sentences = {"{s} has its head office in {v}", "the head office of {n} is in {v}",
                                      "{s} is run from {v}", "{p} headquarters are in {v}",
                                      "letters to {n} are sent to {v}", "{v} is the seat of {n}"},
                        .before = {"{s} moved its head office from {o} to {v}",
                                   "once at home in {o}, {s} is run from {v} now"}},
                       {.key = "founded",
                        .asked = "the year in which it was founded",
                        .label = "Founded",
                        .value = {LODE_VALUE_NUMBER, NULL, 1861, 2021, 1, NULL, NULL},
                        .sentences = {"{s} was founded in {v}", "the founding of {n} goes back to {v}",
                                      "{s} has existed since {v}", "{p} founding year is {v}",
                                      "it was in {v} that {s} was set up",
                                      "the first members signed the charter of {n} in {v}"},
                        .before = {"{s} was founded in {v}, not in {o} as a plaque claims",
                                   "planned since {o}, {s} was founded in {v}"}},
                       {.key = "director",
                        .asked = "its present director",
                        .label = "Director",
                        .value = {LODE_VALUE_PERSON},
                        .sentences = {"{s} is led by {v}", "the director of {n} is {v}", "{v} runs {n}",
                                      "{p} director is {v}", "at the head of {n} stands {v}",
                                      "{v} was elected to direct {n}"},
                        .before = {"{o} handed the direction of {n} to {v}",
                                   "{v} has followed {o} as director of {n}"}},
                       {.key = "members",
                        .asked = "its number of members",
                        .label = "Members",
                        .value = {LODE_VALUE_NUMBER, NULL, 120, 9800, 10, NULL, NULL},
                        .sentences = {"{s} counts {v} members", "the number of members of {n} is {v}",
                                      "{v} people belong to {n}", "{p} membership stands at {v}",
                                      "{s} has {v} members on its list", "dues are paid to {n} by {v} members"},
                        .before = {"the membership of {n} went from {o} to {v}",
                                   "{s} had {o} members a decade ago and has {v} today"}},
                       {.key = "budget",
                        .asked = "its yearly budget",
                        .label = "Yearly budget",
                        .value = {LODE_VALUE_NUMBER, NULL, 2, 240, 1, "$", ",000 a year"},
                        .sentences = {"{s} spends {v}", "the budget of {n} is {v}", "{s} gets by on {v}",
                                      "{p} means amount to {v}", "donors provide {n} with {v}",
                                      "about {n} one reads that it spends {v}"},
                        .before = {"the budget of {n} was raised from {o} to {v}",
                                   "{s} used to spend {o}; at present it is {v}"}},
                       {.key = "partner",
                        .asked = "the university it works with",
                        .label = "Partner university",
                        .value = {LODE_VALUE_PLACE, NULL, 0, 0, 0, NULL, " University"},
                        .sentences = {"{s} works together with {v}", "the academic partner of {n} is {v}",
                                      "{v} supports {n} with students", "{p} partner is {v}",
                                      "{s} shares a laboratory with {v}", "a contract ties {n} to {v}"},
                        .before = {"{s} ended its work with {o} and is a partner of {v} now",
                                   "{v} has taken the place of {o} as the partner of {n}"}}},
    },
    {
        .name = "films",
        .kinds = &lode_words_genre,
        .kind_label = "Genre",
        .request_place = "shot in",
        .pronoun = true,
        .draw_name = draw_film,
        .vary_name = vary_film,
        .write_name = write_film,
        .write_short = short_film,
        .colour = film_colour,
        .intro = {"{s} is {k} that has aged well", "{s}, {k}, was shown again last month",
                  "the catalogue lists {s} as {k}", "this note is about {s}, {k}",
                  "for an evening with {k} one could choose {s}", "{s} was announced as {k} and is one"},
        .mistaken = {"the poster makes {n} look like {k}, which it is not",
                     "{s} is filed as {k} in some shops, by mistake"},
        .attributes = {{.key = "filmed_in",
                        .asked = "the country in which it was shot",
                        .label = "Shot in",
                        .value = {LODE_VALUE_WORD, &lode_words_country},
                        .sentences = {"{s} was shot in {v}", "the crew of {n} worked in {v}",
                                      "{v} is where {n} was filmed", "{p} outdoor scenes show {v}",
                                      "for {n} the company spent a summer in {v}", "all locations of {n} lie in {v}"},
                        .before = {"{s} was to be shot in {o} and was then shot in {v}",
                                   "though set in {o}, {s} was shot in {v}"}},
                       {.key = "director",
                        .asked = "its director",
                        .label = "Director",
                        .value = {LODE_VALUE_PERSON},
                        .sentences = {"{s} was directed by {v}", "the director of {n} is {v}", "{v} directed {n}",
                                      "{p} director was {v}", "with {n}, {v} returned to directing",
                                      "{v} sat in the director's chair of {n}"},
                        .before = {"{o} was to direct {n}, but {v} did", "{v} replaced {o} as director of {n}"}},
                       {.key = "year",
                        .asked = "the year of its release",
                        .label = "Year",
                        .value = {LODE_VALUE_NUMBER, NULL, 1931, 2024, 1, NULL, NULL},
                        .sentences = {"{s} was released in {v}", "the release of {n} was in {v}",
                                      "{s} reached the cinemas in {v}", "{p} year of release is {v}",
                                      "{s} dates from {v}", "it was {v} when {s} came out"},
                        .before = {"{s} was finished in {o} and released in {v}",
                                   "announced for {o}, {s} was released in {v}"}},
                       {.key = "runtime",
                        .asked = "how long it runs",
                        .label = "Running time",
                        .value = {LODE_VALUE_NUMBER, NULL, 71, 214, 1, NULL, " minutes"},
                        .sentences = {"{s} runs for {v}", "the running time of {n} is {v}", "{s} lasts {v}",
                                      "{p} length is {v}", "one needs {v} to watch {n}",
                                      "after {v} the lights go on again in {n}"},
                        .before = {"a first cut of {n} ran for {o}; the released one runs for {v}",
                                   "television showed {o} of {n}, which in full lasts {v}"}},
                       {.key = "lead_actor",
                        .asked = "who plays the leading part",
                        .label = "Leading part",
                        .value = {LODE_VALUE_PERSON},
                        .sentences = {"{v} plays the leading part in {n}", "the lead of {n} is {v}", "{s} stars {v}",
                                      "{p} main character is played by {v}",
                                      "{n} rests on the shoulders of {v}, who plays the lead",
                                      "the main part of {n} went to {v}"},
                        .before = {"the leading part of {n} was offered to {o} and went to {v}",
                                   "{v} took over the lead of {n} from {o}"}},
                       {.key = "composer",
                        .asked = "who composed its music",
                        .label = "Music",
                        .value = {LODE_VALUE_PERSON},
                        .sentences = {"the music of {n} was composed by {v}", "{v} wrote the score of {n}",
                                      "{s} has a score by {v}", "{p} composer is {v}",
                                      "for the sound of {n} one thanks its composer {v}",
                                      "{v} composed what is heard in {n}"},
                        .before = {"the score of {n} by {o} was dropped for one by {v}",
                                   "{o} began the music of {n}; what is heard was composed by {v}"}}},
    },
};

/* ----------------------------------------------------------------- entities */

static void copy(char *to, size_t room, const lode_prose_t *from)
{
    snprintf(to, room, "%s", from->text ? from->text : "");
}

static void write_entity_name(lode_entity_t *e, lode_text2json_split_t split)
{
    lode_prose_t name = {0};
    e->domain->write_name(&name, split, e->parts);
    copy(e->name, sizeof e->name, &name);
    lode_prose_free(&name);
}

void lode_entity_draw_name(lode_entity_t *e, lode_random_t *random, lode_text2json_split_t split)
{
    e->domain->draw_name(random, split, e->parts);
    write_entity_name(e, split);
}

void lode_entity_vary_name(lode_entity_t *e, const lode_entity_t *of, lode_random_t *random,
                           lode_text2json_split_t split)
{
    memcpy(e->parts, of->parts, sizeof e->parts);
    e->domain->vary_name(random, split, e->parts);
    write_entity_name(e, split);
}

static void write_person(lode_prose_t *out, lode_random_t *random, lode_text2json_split_t split)
{
    const char *first = lode_words_pick(&lode_words_first_name, split, random);
    const char *surname = lode_words_pick(&lode_words_surname, split, random);
    lode_prose_format(out, "%s %s%s", first, surname,
                      ending_at(&lode_words_surname_end, lode_random_below(random, lode_words_surname_end.count)));
}

static void write_place(lode_prose_t *out, lode_random_t *random, lode_text2json_split_t split)
{
    const char *place = lode_words_pick(&lode_words_place, split, random);
    lode_prose_format(out, "%s%s", place,
                      ending_at(&lode_words_place_end, lode_random_below(random, lode_words_place_end.count)));
}

void lode_entity_draw_value(const lode_domain_t *domain, uint32_t which, lode_random_t *random,
                            lode_text2json_split_t split, char value[64])
{
    lode_prose_t out = {0};
    const lode_attribute_t *a = &domain->attributes[which];
    uint32_t least = a->value.least, step = a->value.step ? a->value.step : 1, drawn, letter;
    lode_prose_add(&out, a->value.before ? a->value.before : "");
    switch (a->value.kind) {
    case LODE_VALUE_WORD:
        lode_prose_add(&out, lode_words_pick(a->value.words, split, random));
        break;
    case LODE_VALUE_NUMBER:
        drawn = lode_random_below(random, (a->value.most - least) / step + 1);
        lode_prose_format(&out, "%u", least + drawn * step);
        break;
    case LODE_VALUE_PRICE:
        drawn = lode_random_between(random, least, a->value.most);
        lode_prose_format(&out, "%u.%u0", drawn, lode_random_below(random, 10));
        break;
    case LODE_VALUE_PHONE:
        drawn = lode_random_between(random, 100, 999);
        letter = lode_random_between(random, 100, 999);
        lode_prose_format(&out, "0%u %u %u", drawn, letter, lode_random_between(random, 100, 999));
        break;
    case LODE_VALUE_ROOM:
        letter = lode_random_below(random, 8);
        lode_prose_format(&out, "%c%u", 'A' + (int)letter, lode_random_between(random, 101, 939));
        break;
    case LODE_VALUE_PERSON:
        write_person(&out, random, split);
        break;
    case LODE_VALUE_PLACE:
        write_place(&out, random, split);
        break;
    }
    lode_prose_add(&out, a->value.after ? a->value.after : "");
    copy(value, 64, &out);
    lode_prose_free(&out);
}

void lode_entity_draw_values(lode_entity_t *e, lode_random_t *random, lode_text2json_split_t split)
{
    for (uint32_t i = 0; i < LODE_ATTRIBUTES; i++)
        lode_entity_draw_value(e->domain, i, random, split, e->values[i]);
}
