# SPDX-License-Identifier: Apache-2.0
"""Invented documents and questions about them.

A context is {"documents": [text], "about": [(kind, place)], "questions": [(kind, question, answer)]}, an answer a list of
texts with where they stand. Entities come from the four domains of
`lodemark text2json` (its sentences; of its words only those not held out) or from schemes drawn at random. Most words
are invented on the spot, so that the model has to copy and to compare instead of knowing lists by heart.
"""
import json
import os
import random
import re

HERE = os.path.dirname(os.path.abspath(__file__))
TABLES = json.load(open(os.path.join(HERE, 'domains.json'), encoding='utf-8'))
WORDS = TABLES['words']
SERIES = 'K S MX T R QL V DX A E HT Z P NX L G'.split()

ONSETS = ('b br c ch cl cr d dr f fl fr g gl gr h j k kl kr l m n p pl pr qu r s sc sh sk sl sm sn sp st str sw t th tr '
          'v w wh y z').split() + [''] * 4
VOWELS = 'a e i o u a e i o u ai ea ee ie oo ou au oa ia io ue'.split()
CODAS = ('b ck d ff g k l ll m n nd ng nk nt p r rd rk rm rn rt s sh ss st t th tt ve x z se le ne te re ly on er en al '
         'ian ium ery ist ing ent ure ow y').split() + [''] * 20
LABELS = ('owner depth width height length colour code price rank score speed age region capital status origin author '
          'editor licence version size section homepage maintainer priority grade teacher captain crew cargo port '
          'engine power voltage flavour season river valley king mayor rent floor shelf box key number date place '
          'weight material year budget phone room language director members').split()
THINGS = ('ship tower bridge garden museum engine book song tool package lamp river horse school train village '
          'cheese coin painting stone mill boat clock mountain recipe team robot station').split()


class Words:
    """Words, invented or known; pieces are what the tokenizer joins words from, once there is one."""

    def __init__(self, rng, pieces=(), invented=0.65):
        self.rng, self.pieces, self.invented = rng, pieces, invented

    def new(self, most=3):
        r = self.rng
        if self.pieces and r.random() < 0.5:
            return ''.join(r.choice(self.pieces) for _ in range(r.randint(1, min(most, 2))))
        return ''.join(r.choice(ONSETS) + r.choice(VOWELS) + r.choice(CODAS) for _ in range(r.choice((1, 1, 2, 2, 3)[:most + 2])))

    def of(self, name, title=False):
        """A word of a list, or one made up in its place."""
        r = self.rng
        if r.random() >= self.invented:
            return r.choice(WORDS[name])
        if name in ('product', 'organisation', 'material', 'colour', 'genre', 'speciality'):
            word = ' '.join(self.new(2) for _ in range(r.choice((1, 2, 2, 3) if name != 'speciality' else (1, 1, 2))))
            if name == 'genre' and r.random() < 0.5:
                word += ' ' + r.choice(('film', 'drama', 'comedy', 'story'))
            return word
        return self.new(2).capitalize()


# ------------------------------------------------------------------ entities

def person(w):
    return '%s %s%s' % (w.of('first_name'), w.of('surname'), w.rng.choice(WORDS['surname_end']))


def place(w):
    return w.of('place') + w.rng.choice(WORDS['place_end'])


def draw_value(w, a):
    r, kind, n = w.rng, a['kind'], a['numbers']
    if kind == 'WORD':
        v = w.of(a['words'])
    elif kind == 'NUMBER':
        v = str(n[0] + n[2] * r.randrange((n[1] - n[0]) // n[2] + 1))
    elif kind == 'PRICE':
        v = '%d.%d0' % (r.randint(n[0], n[1]), r.randrange(10))
    elif kind == 'PHONE':
        v = '0%d %d %d' % tuple(r.randint(100, 999) for _ in range(3))
    elif kind == 'ROOM':
        v = '%s%d' % (r.choice('ABCDEFGH'), r.randint(101, 939))
    elif kind == 'PERSON':
        v = person(w)
    else:
        v = place(w)
    return a['before_value'] + v + a['after_value']


def name_parts(w, domain):
    r = w.rng
    if domain == 'products':
        return [0, w.of('brand'), r.choice(WORDS['brand_end']), r.choice(SERIES), 10 + 5 * r.randrange(198)]
    if domain == 'doctors':
        return [0, w.of('first_name'), r.choice('ABCDEFGHIJKLMNOPQRSTUVWXYZ'), w.of('surname'), r.choice(WORDS['surname_end'])]
    if domain == 'organisations':
        return [r.randrange(3), place(w), w.of('surname') + r.choice(WORDS['surname_end']), r.choice(WORDS['aim'])]
    if domain == 'films':
        return [r.randrange(3), w.of('adjective'), w.of('film_noun'), place(w), w.of('first_name')]
    return [r.randrange(4), w.new(2).capitalize(), w.new(2), r.randint(1, 999)]


def write_name(domain, p):
    if domain == 'products':
        return '%s%s %s%d' % tuple(p[1:])
    if domain == 'doctors':
        return 'Dr. %s %s. %s%s' % tuple(p[1:])
    if domain == 'organisations':
        return ('%s %s %s' % (p[2], p[1], p[3]), '%s %s of %s' % (p[2], p[3], p[1]), '%s %s %s' % (p[1], p[3], p[2]))[p[0]]
    if domain == 'films':
        return ('The %s %s of %s' % tuple(p[1:4]), '%s and the %s %s of %s' % (p[4], p[1], p[2], p[3]),
                '%s: The %s %s' % (p[3], p[1], p[2]))[p[0]]
    return (p[1], p[1] + ' ' + p[2].capitalize(), p[1] + ' %d' % p[3], p[1].lower() + '-' + p[2])[p[0]]


def vary_name(w, domain, parts):
    """One part changed, so that the name is nearly the same."""
    p, fresh = list(parts), name_parts(w, domain)
    i = w.rng.randrange(1, len(p))
    p[i] = fresh[i]
    return p


def random_scheme(w):
    """A kind of record nobody has seen before, in the shape of a domain."""
    r = w.rng
    attributes = []
    for label in r.sample(LABELS, 4) + [w.new(2), w.new(3)]:
        v = r.randrange(5)
        kind, numbers, words = (('WORD', [], 'material'), ('NUMBER', [1, 9999, 1], None), ('PERSON', [], None),
                                ('PLACE', [], None), ('WORD', [], 'colour'))[v]
        unit = ' ' + r.choice(('km', 'kg', 'years', 'EUR', w.new(1))) if kind == 'NUMBER' and r.random() < 0.5 else ''
        attributes.append({'key': label, 'asked': 'its ' + label, 'label': label.capitalize(), 'kind': kind, 'words': words,
                           'numbers': numbers, 'before_value': '', 'after_value': unit,
                           'sentences': ['the %s of {n} is {v}' % label, '{p} %s is {v}' % label, '{s} has the %s {v}' % label,
                                         'for {n} the %s is given as {v}' % label, '{v} is the %s of {n}' % label],
                           'before': ['the %s of {n} was {o} once and is {v} now' % label,
                                      'the %s of {n} is {v}, not {o}' % label]})
    return {'name': 'records', 'kinds': None, 'kind_label': 'Kind', 'request_place': 'of ' + attributes[0]['key'],
            'pronoun': True, 'intro': ['{s} is {k}', 'this is about {s}, {k}', '{s}, {k}, is described here'],
            'mistaken': ['{s} is not {k}', 'some take {n} for {k}, wrongly'],
            'colour': ['nobody knows how old {n} is', '{s} is well liked', 'there is more to say about {n}'],
            'attributes': attributes}


def draw_kind(w, d):
    if d['kinds']:
        return w.of(d['kinds'])
    return w.rng.choice(THINGS) if w.rng.random() < 0.3 else ' '.join(w.new(2) for _ in range(w.rng.randint(1, 2)))


class Entity:
    def __init__(self, w, domain, kind, place_, near=None):
        self.domain, self.kind = domain, kind
        self.parts = vary_name(w, domain['name'], near.parts) if near else name_parts(w, domain['name'])
        self.name = write_name(domain['name'], self.parts)
        self.values = [draw_value(w, a) for a in domain['attributes']]
        self.values[0] = place_
        self.told = {}   # attribute -> True once a document tells it
        self.later = {}  # of those, the ones that its second document tells
        self.at = self.at_later = None  # its documents in the context, where they are its own

    def tells(self, i, look):
        at = self.at_later if i in self.later else self.at
        return None if at is None else (look, at)


# ---------------------------------------------------------------- documents

def article(kind):
    return ('an ' if kind[0] in 'aeiou' else 'a ') + kind


def short_name(e):
    d = e.domain['name']
    return 'Dr. ' + e.name.split(' ')[-1] if d == 'doctors' else 'the film' if d == 'films' else 'the ' + e.kind


def sentence(w, e, pattern, state, value='', other='', kind=''):
    r = w.rng

    def mention(match):
        c = match.group(1)
        if c in 'vok':
            return {'v': value, 'o': other, 'k': article(kind) if kind else ''}[c]
        pronoun = c != 'n' and e.domain['pronoun']
        if state['first'] or r.random() < 1 / 3:
            state['first'] = False
            return e.name + ("'s" if c == 'p' else '')
        if pronoun and r.random() < 0.5:
            return 'its' if c == 'p' else 'it'
        return short_name(e) + ("'s" if c == 'p' else '')

    opener = r.choice(TABLES['openers']) if not state['first'] and r.random() < 1 / 6 else ''
    text = opener + re.sub(r'\{(\w)\}', mention, pattern)
    return text[0].upper() + text[1:] + '.'


def tell_prose(w, e, facts, introduced, colour, mistaken, before):
    r, d, state, out = w.rng, e.domain, {'first': True}, []
    if introduced:
        out.append(sentence(w, e, r.choice(d['intro']), state, kind=e.kind))
    if mistaken:
        out.append(sentence(w, e, r.choice(d['mistaken']), state, kind=mistaken))
    order = list(facts) + [None] * colour
    r.shuffle(order)
    for i in order:
        if i is None:
            pattern = r.choice(d['colour']) + (r.choice(TABLES['endings']) if r.random() < 0.25 else '')
            out.append(sentence(w, e, pattern, state))
            continue
        a = d['attributes'][i]
        if i == before:
            other = draw_value(w, a)
            while other == e.values[i]:
                other = draw_value(w, a)
            out.append(sentence(w, e, r.choice(a['before']), state, e.values[i], other))
        else:
            out.append(sentence(w, e, r.choice(a['sentences']), state, e.values[i]))
    return ' '.join(out)


def tell_card(w, e, facts, introduced):
    d, lines = e.domain, ['Name: ' + e.name]
    if introduced:
        lines.append('%s: %s' % (d['kind_label'], e.kind))
    facts = list(facts)
    w.rng.shuffle(facts)
    lines += ['%s: %s' % (d['attributes'][i]['label'], e.values[i]) for i in facts]
    return '\n'.join(lines)


def tell_table(w, entities, facts):
    """A few entities as rows, lightly marked up."""
    r, d = w.rng, entities[0].domain
    heads = ['Name'] + [d['attributes'][i]['label'] for i in facts]
    rows = [[e.name] + [e.values[i] for i in facts] for e in entities]
    style = r.randrange(3)
    if style == 0:
        lines = ['| ' + ' | '.join(x) + ' |' for x in [heads, ['---'] * len(heads)] + rows]
    elif style == 1:
        lines = [', '.join(x) for x in [heads] + rows]
    else:
        lines = ['* ' + x[0] + ': ' + '; '.join('%s %s' % (h, v) for h, v in zip(heads[1:], x[1:])) for x in rows]
    return '\n'.join(lines)


# ---------------------------------------------------------------- questions

LOOK_UPS = ['What is the {l} of {n}?', 'What is the {l} of {n}?', 'What is the {l} of {n}?', '{n}: {l}?', 'Give the {l} of {n}.',
            'Which {l} does {n} have?', 'About {n}: {a}?', 'Look up {n} and tell {a}.', 'I need the {l} of {n}.']


# An answer is a list of (text, look): look is None or (what, document), which document of the context tells the text.
# what: ANYWHERE, no other context tells it to this question; HERE, others might; END, the document as a whole is meant: one
# about what the question asks for, (kind, place or None). Texts that an answer begins with may be GIVEN: not to be foretold.

ANYWHERE, HERE, END, GIVEN = range(4)


def ask_look_up(w, e, i, look=ANYWHERE):
    a = e.domain['attributes'][i]
    label = a['label'] if a['label'][1:2].isupper() else a['label'][0].lower() + a['label'][1:]
    form = w.rng.choice(LOOK_UPS)
    return 'look', form.format(l=label, n=e.name, a=a['asked']), [(e.values[i], e.tells(i, look))]


def ask_number(w, number, e, i):
    a = e.domain['attributes'][i]
    form = w.rng.choice(['What is the {l} in document {n}?', 'Document {n}: {l}?'])
    return 'number', form.format(l=a['label'].lower(), n=number), [(e.values[i], e.tells(i, HERE))]


def described(kind, where, domain):
    return kind + (' %s %s' % (domain['request_place'], where) if where else '')


def numbers_of(entities, asked_for):
    found = [(' %d' % e.number, (END, e.at, asked_for)) for e in entities]
    return [('Documents', None)] + found if found else [('none', None)]


def ask_which(w, domain, kind, where, entities):
    form = w.rng.choice(['Which documents describe {k}?', 'Which documents describe {k}?', 'Documents about {k}?'])
    return 'which', form.format(k=article(described(kind, where, domain))), numbers_of(entities, (kind, where))


def findings(entities, asked_for):
    """The first line of the answer to a request: the numbers of the documents that fit, then whom each is about."""
    out = numbers_of(entities, asked_for) + [(':', None)]
    for i, e in enumerate(entities):
        out += [(';', None)] if i else []
        out += [(' %d' % e.number, None), (' ' + e.name, (HERE, e.at))]
    return out + [('\n', None)]


def request_begin(domain, kind, where):
    return 'Request: list every %s that the documents describe.' % described(kind, where, domain)


def request(domain, kind, where, asked):
    x, y = (domain['attributes'][i] for i in asked)
    return ('%s Answer with a JSON list and nothing else. For each give an object of three keys, all values strings: "name", '
            '"%s" (%s), "%s" (%s). Copy names and values as they are written.'
            % (request_begin(domain, kind, where), x['key'], x['asked'], y['key'], y['asked']))


def ask_early(domain, asked_for, entities):
    """A request of which the second half has not come yet: the documents can be found already."""
    return 'early', request_begin(domain, *asked_for), findings(entities, asked_for) + [('[', None)]


def escaped(text):
    return json.dumps(text, ensure_ascii=False)[1:-1]


def listed(entities, asked):
    """The list. Keys beyond those asked for do not count in the score."""
    out = [('[', None)]
    for i, e in enumerate(entities):
        out += [(', {"document": "' if i else '{"document": "', None), (str(e.number), None), ('", "name": "', None),
                (escaped(e.name), (HERE, e.at))]
        for j in asked:
            out += [('", "%s": "' % e.domain['attributes'][j]['key'], None), (escaped(e.values[j]), e.tells(j, HERE))]
        out.append(('"}', None))
    return out + [(']', None)]


def ask_json(domain, asked_for, entities, asked):
    return 'json', request(domain, *asked_for, asked), findings(entities, asked_for) + listed(entities, asked)


def ask_part(w, domain, asked_for, entities, asked):
    """What is written while documents are still being found: the list of those found so far."""
    thoughts = [text for text, _ in findings(entities, asked_for)[:-1]]
    thoughts = thoughts[:w.rng.randint(1, len(thoughts))]
    found = min(len(thoughts) - 1, len(entities))
    if len(thoughts) > len(entities) + 1:  # a name may be half there
        words = thoughts[-1].split(' ')
        thoughts[-1] = ' '.join(words[:w.rng.randint(2, max(2, len(words)))])
    return ('part', request(domain, *asked_for, asked),
            [(t, (GIVEN,)) for t in thoughts + ['\n', '[']] + listed(entities[:found], asked)[1:])


# ----------------------------------------------------------------- contexts

def numbers_for(r, n):
    """Increasing numbers of documents: 1 to n, or any below 1000, so that all of them are met early."""
    if r.random() < 0.4 or n > 700:
        return list(range(1, n + 1))
    top = 999 if r.random() < 0.5 else min(999, max(n * 2, 30))
    return sorted(r.sample(range(1, top + 1), n))


def context(rng, documents, task, questions=8, pieces=(), rich=0.5, styles=('card', 'prose'), most_items=6, near_names=0.25):
    """One context of about so many documents. rich: 0 for the shortest documents, 1 for those of `text2json make`."""
    w = Words(rng, pieces, invented=rng.choice((0.0, 0.15, 0.5, 1.0) if rng.random() < 0.5 else (0.0, 0.2)))
    r = rng
    random_one = r.random() < (0.15 if task != 'json' else 0.1)
    d = random_scheme(w) if random_one else r.choice(TABLES['domains'])
    style = r.choice(styles)
    table = task == 'look' and r.random() < 0.07
    kinds = [draw_kind(w, d) for _ in range(r.randint(2, 4) if documents < 40 else r.randint(3, 10))]
    places = [draw_value(w, d['attributes'][0]) for _ in range(r.randint(2, 4))]
    asked = None
    target = None
    if task == 'json':
        first = 1 if r.random() < 0.5 else 0
        target = (kinds[0], places[0] if first else None)
        asked = r.sample(range(first, 6), 2)
    same = r.sample(range(6), r.choice((1, 1, 2))) if task == 'look' and r.random() < 0.7 else None  # only the name tells
    few = task != 'look' and documents > most_items
    entities, texts = [], []
    wanted = r.randint(0 if task == 'which' else 1, max(1, min(most_items, documents)))
    while len(texts) < documents:
        near = r.choice(entities) if entities and r.random() < near_names else None
        kind, where = r.choice(kinds), r.choice(places)
        is_item = False
        if task == 'json':
            is_item = len(entities) < wanted
            if is_item:
                kind, where = target[0], target[1] or where
            else:
                if target[1] is None or (kind == target[0] and where == target[1]) or len(kinds) < 2:
                    kind = r.choice([k for k in kinds if k != target[0]] or [draw_kind(w, d)])
        elif few and r.random() < 1 - 2.0 * most_items / documents:
            kind = draw_kind(w, d)
        e = Entity(w, d, kind, where, near)
        if any(e.name == x.name for x in entities):
            continue
        entities.append(e)
        e.item = is_item
        if table:
            texts.append(None)
            continue
        facts = set()
        if task == 'which':
            facts.add(0)
            if r.random() < rich:
                facts.add(r.randrange(6))
        elif task == 'json':
            facts |= set(asked)
            if target[1] is not None or r.random() < 0.5:
                facts.add(0)
        else:
            facts |= set(same or r.sample(range(6), r.randint(1, 2 if rich < 0.3 else 3)))
        extra = int(rich * r.randint(0, 10))
        for _ in range(extra // 2):
            facts.add(r.randrange(6))
        colour = extra - extra // 2
        mistaken = r.choice(kinds) if r.random() < 0.25 * rich else None
        mistaken = None if mistaken == e.kind else mistaken
        before = r.choice(sorted(facts)) if facts and r.random() < 0.3 * rich else -1
        card = style == 'card' or (style == 'mixed' and r.random() < 0.33)
        introduced = task != 'look' or r.random() < 0.4 + rich
        for i in facts:
            e.told[i] = True
        e.split = None
        if introduced and rich > 0.5 and len(facts) > 1 and r.random() < 0.2:
            second = {i for i in facts if i != 0 and r.random() < 0.5}
            if second:
                facts -= second
                e.later = second
                e.split = tell_card(w, e, second, False) if card else tell_prose(w, e, second, False, colour // 2, None, before)
        text = tell_card(w, e, facts, introduced) if card else tell_prose(w, e, facts, introduced, colour, mistaken, before)
        e.introduced = introduced
        texts.append((text, e))
        if e.split:
            texts.append((e.split, e))
    if table:
        facts = r.sample(range(6), r.randint(1, 3))
        texts, at = [], 0
        while at < len(entities):
            rows = entities[at:at + r.randint(1, 4)]
            texts.append((tell_table(w, rows, facts), rows[0]))
            at += len(rows)
        for e in entities:
            e.told = {i: True for i in facts}
    r.shuffle(texts)
    numbered = task != 'look' or r.random() < 0.4
    numbers = numbers_for(r, len(texts))
    documents_out = [('Document %d\n' % n if numbered else '') + text for (text, e), n in zip(texts, numbers)]
    for at, ((text, e), n) in enumerate(zip(texts, numbers)):
        if table:
            continue
        if text is e.split:
            e.at_later = at
        else:
            e.at, e.number = at, n
    entities = [e for e in entities if e.told]
    out = []
    if task == 'look':
        for _ in range(questions):
            e = r.choice(entities)
            i = r.choice(sorted(e.told))
            if numbered and not table and not e.split and r.random() < 0.05:
                out.append(ask_number(w, e.number, e, i))
            else:
                out.append(ask_look_up(w, e, i))
    elif task == 'which':
        ordered = sorted(entities, key=lambda e: e.number)
        pairs = sorted({(e.kind, e.values[0]) for e in entities if e.kind in kinds})
        tries = 0
        while len(out) < questions and tries < 40:
            tries += 1
            kind, where = r.choice(pairs) if pairs and r.random() < 0.85 else (r.choice(kinds), r.choice(places))
            if r.random() < 0.4:
                where = None
            found = [e for e in ordered if e.kind == kind and where in (None, e.values[0])]
            if len(found) <= most_items + 2:
                early = found and r.random() < 0.3
                out.append(ask_early(d, (kind, where), found) if early else ask_which(w, d, kind, where, found))
        while len(out) < questions:
            out.append(ask_which(w, d, draw_kind(w, d), None, []))
    else:
        ordered = sorted((e for e in entities if e.item), key=lambda e: e.number)
        out.append(ask_json(d, target, ordered, asked))
        out.append(ask_early(d, target, ordered) if r.random() < 0.3 else ask_part(w, d, target, ordered, asked))
    about = [(e.kind, e.values[0]) for _, e in texts]
    return {'documents': documents_out, 'about': about, 'questions': out}


if __name__ == '__main__':
    import sys
    rng = random.Random(int(sys.argv[1]) if len(sys.argv) > 1 else 1)
    for task in ('look', 'which', 'json'):
        for rich in (0.0, 1.0):
            c = context(rng, 4, task, 4, rich=rich)
            print('=====', task, rich)
            print('\n\n'.join(c['documents']))
            for q in c['questions']:
                print('--', q[0], '|', q[1], '|', ''.join(text for text, _ in q[2]))
