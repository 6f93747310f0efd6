/* SPDX-License-Identifier: Apache-2.0 */
/* HTML to TSV: a page that lists entities in one of three layouts; those of one kind are asked for, as rows. */
#include <stdlib.h>
#include <string.h>

#include "bench/text2json_inside.h"

/* A value that the page leaves out is empty in the entity and N/A in the answer. */
static const char *shown(const char *value)
{
    return *value ? value : "&ndash;";
}

static void write_row(const lode_entity_t *e, uint32_t number, lode_prose_t *out)
{
    lode_prose_format(out, "<tr class=\"row\"><td><a href=\"/%s/%u\">%s</a></td><td>%s</td>", e->domain->name, number,
                      e->name, e->kind);
    for (uint32_t i = 0; i < LODE_ATTRIBUTES; i++)
        lode_prose_format(out, "<td>%s</td>", shown(e->values[i]));
    lode_prose_add(out, "</tr>\n");
}

static void write_card(const lode_entity_t *e, uint32_t number, uint32_t first, lode_prose_t *out)
{
    lode_prose_format(out, "<article class=\"card\" id=\"item-%u\"><h3>%s</h3>\n<p class=\"kind\">%s</p>\n<dl>", number,
                      e->name, e->kind);
    for (uint32_t i = 0; i < LODE_ATTRIBUTES; i++) {
        uint32_t which = (first + i) % LODE_ATTRIBUTES;
        if (*e->values[which])
            lode_prose_format(out, "<dt>%s</dt><dd>%s</dd>", e->domain->attributes[which].label, e->values[which]);
    }
    lode_prose_format(out, "</dl>\n<a class=\"more\" href=\"/%s/%u\">Details</a></article>\n", e->domain->name, number);
}

static void write_list_item(const lode_entity_t *e, uint32_t first, lode_prose_t *out)
{
    lode_prose_format(out, "<li><strong>%s</strong> <em>%s</em>\n<ul>", e->name, e->kind);
    for (uint32_t i = 0; i < LODE_ATTRIBUTES; i++) {
        uint32_t which = (first + i) % LODE_ATTRIBUTES;
        if (*e->values[which])
            lode_prose_format(out, "<li><span class=\"label\">%s:</span> <span>%s</span></li>",
                              e->domain->attributes[which].label, e->values[which]);
    }
    lode_prose_add(out, "</ul></li>\n");
}

void lode_html_tell(const lode_making_t *m, const lode_entity_t *e, lode_random_t *random, lode_prose_t *out)
{
    uint32_t number = lode_random_between(random, 1000, 9999), first = lode_random_below(random, LODE_ATTRIBUTES);
    if (m->layout == 0)
        write_row(e, number, out);
    else if (m->layout == 1)
        write_card(e, number, first, out);
    else
        write_list_item(e, first, out);
}

static void write_head(const lode_making_t *m, lode_prose_t *out)
{
    static const char *const open[] = {"<table class=\"listing\">\n<tr><th>Name</th>", "<main class=\"cards\">\n",
                                       "<ul class=\"listing\">\n"};
    const lode_domain_t *d = m->domain;
    lode_prose_format(out,
                      "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<title>All %s</title>\n"
                      "<style>.row td { padding: 4px } .card { border: 1px solid #ccc } .kind { color: #666 }</style>\n"
                      "</head>\n<body>\n",
                      d->name);
    lode_prose_format(out,
                      "<nav><a href=\"/\">Home</a> <a href=\"/%s\">All %s</a> <a href=\"/about\">About</a></nav>\n"
                      "<h1>All %s</h1>\n<p>In no particular order. Last changed by the editors.</p>\n%s",
                      d->name, d->name, d->name, open[m->layout]);
    if (m->layout)
        return;
    lode_prose_format(out, "<th>%s</th>", d->kind_label);
    for (uint32_t i = 0; i < LODE_ATTRIBUTES; i++)
        lode_prose_format(out, "<th>%s</th>", d->attributes[i].label);
    lode_prose_add(out, "</tr>\n");
}

static void write_foot(const lode_making_t *m, lode_prose_t *out)
{
    static const char *const close[] = {"</table>\n", "</main>\n", "</ul>\n"};
    lode_prose_format(
        out,
        "%s<footer><p>Errors may be reported to the editors.</p> <a href=\"/imprint\">Imprint</a></footer>\n"
        "</body>\n</html>\n",
        close[m->layout]);
}

static char *rows_of(const lode_making_t *m)
{
    lode_prose_t rows = {0};
    const lode_attribute_t *attributes = m->domain->attributes;
    lode_prose_format(&rows, "name\t%s\t%s\n", attributes[m->asked[0]].key, attributes[m->asked[1]].key);
    for (uint32_t i = 0; i < m->pieces.count; i++) {
        if (m->pieces.list[i].item < 0)
            continue;
        const lode_entity_t *e = &m->items[m->pieces.list[i].item];
        const char *first = e->values[m->asked[0]], *second = e->values[m->asked[1]];
        lode_prose_format(&rows, "%s\t%s\t%s\n", e->name, *first ? first : "N/A", *second ? second : "N/A");
    }
    if (!rows.failed)
        return rows.text;
    lode_prose_free(&rows);
    return NULL;
}

lode_status_t lode_make_html_to_tsv(lode_making_t *m, lode_text2json_sample_t *sample)
{
    lode_prose_t problem = {0}, request = {0};
    const lode_attribute_t *first = &m->domain->attributes[m->asked[0]], *second = &m->domain->attributes[m->asked[1]];
    lode_prose_add(&problem, "This is a web page. A request follows it.\n\n```html\n");
    write_head(m, &problem);
    write_foot(m, &request);
    lode_prose_add(&request, "```\n\nRequest: from the page, list ");
    lode_making_request(m, &request);
    lode_prose_format(
        &request,
        ", in the order of the page: its name, %s, and %s. Answer with tab-separated rows and nothing else; "
        "the first row is the header: name\t%s\t%s\nLeave out tags, copy the text as it is, and write N/A "
        "where the page does not say.\n",
        first->asked, second->asked, first->key, second->key);
    lode_status_t status = lode_making_items(m);
    if (status == LODE_OK)
        status = lode_making_fill(m, lode_prose_tokens(&problem) + lode_prose_tokens(&request));
    lode_pieces_shuffle(&m->pieces, &m->random);
    for (uint32_t i = 0; i < m->pieces.count; i++)
        lode_prose_add(&problem, m->pieces.list[i].text);
    return lode_making_finish(m, status, &problem, &request, status == LODE_OK ? rows_of(m) : NULL, sample);
}
