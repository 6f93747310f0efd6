# SPDX-License-Identifier: Apache-2.0
"""Invented documents and questions about them.

A context is {"documents": [text], "questions": [(kind, question, answer)]}. Entities come from the four domains of
`lodemark text2json` (its sentences; of its words only those not held out) or from schemes drawn at random. Most words
are invented on the spot, so that the model has to copy and to compare instead of knowing lists by heart.
"""
import json
import os
import random
import re
from collections import namedtuple

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


def draw_kinds(w, d, count):
    """Some differ from another in one word alone."""
    out = [draw_kind(w, d)]
    while len(out) < count:
        words, others = draw_kind(w, d).split(' '), w.rng.choice(out).split(' ')
        near = w.rng.random()
        out.append(' '.join(words[:1] + others[-1:] if near < 0.3 else others[:1] + words[-1:] if near < 0.4 else words))
    return out


class Entity:
    def __init__(self, w, domain, kind, place_, near=None):
        self.domain, self.kind = domain, kind
        self.parts = vary_name(w, domain['name'], near.parts) if near else name_parts(w, domain['name'])
        self.name = write_name(domain['name'], self.parts)
        self.values = [draw_value(w, a) for a in domain['attributes']]
        self.values[0] = place_
        self.told = set()  # attributes that a document tells
        self.later = set()  # of those, the ones that its second document tells
        self.at = self.at_later = None  # its documents in the context, where they are its own

    def tells(self, i):
        """Where an attribute is told, as a piece's looks."""
        at = self.at_later if i in self.later else self.at
        return [] if at is None else [('text', at)]


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


Piece = namedtuple('Piece', 'text looks weight skip')


class Answer:
    """Pieces of text, in order. Each says where the tokens before its own should look, that is, what tells them.

    what    one of LOOKS; 'text': at each token of the piece in a document, where it stands last, and 'named': where it stands
            first; else from the token before the piece, and for 'since' from those in the piece, as 'latest'
    where   a document of the context; for 'latest', 'since' and 'next' the place of an earlier piece; for 'kind' and 'place' what a
            document is of; None where nothing tells it

    asked: what -> (what is asked for, how the question begins to the end of that).
    ends: that nothing follows is to be foretold.
    """

    def __init__(self, ends=True):
        self.pieces, self.asked, self.ends = [], {}, ends

    def add(self, text, *looks, weight=1.0, given=False, skip=0):
        """given: not to be foretold. skip: positions left out before it. Gives the piece's place."""
        self.pieces.append(Piece(text, looks, 0.0 if given else weight, skip))
        return len(self.pieces) - 1


# text: the token of a document that is written next. document: the end of the document whose number was just written.
# kind, place: what the question asks for, if that document is of it. latest: the last document that was written about. next:
# the one found after it.
LOOKS = ('text', 'document', 'kind', 'place', 'latest', 'next')
CHOICE, SURE = 3.0, 0.3  # weights of tokens that take a choice, and of those that follow from the token before


def answer_value(e, i):
    answer = Answer()
    answer.add(e.values[i], *e.tells(i), weight=CHOICE)
    return answer


def ask_look_up(w, e, i):
    a = e.domain['attributes'][i]
    label = a['label'] if a['label'][1:2].isupper() else a['label'][0].lower() + a['label'][1:]
    return 'look', w.rng.choice(LOOK_UPS).format(l=label, n=e.name, a=a['asked']), answer_value(e, i)


def ask_number(w, e, i):
    form = w.rng.choice(['What is the {l} in document {n}?', 'Document {n}: {l}?'])
    return 'number', form.format(l=e.domain['attributes'][i]['label'].lower(), n=e.number), answer_value(e, i)


def described(kind, where, domain):
    return kind + (' %s %s' % (domain['request_place'], where) if where else '')


def runs(rng, count, most):
    """Of so many documents at most that many, in runs, the last among them."""
    kept = {count - 1}
    while len(kept) < min(most, count):
        begin = rng.randrange(count)
        kept |= set(range(begin, min(count, begin + rng.randint(1, most - len(kept)))))
    return sorted(kept)


REQUEST = 'Request: list every '


def think(answer, rng, numbers, documents, domain, asked_for, most):
    """The first line of the answer to a request: of every document its number and kind, its place if that is asked and the kind
    fits, and whom it is about if all fits. documents: the entity that each introduces, or None. Of many documents some are left
    out, as where numbers are missing between two: there the line has a gap. Gives [(entity, piece of its colon)]."""
    answer.add('Documents', weight=SURE)
    kind, where = asked_for
    answer.asked['kind'] = (kind, REQUEST + kind)
    if where:
        answer.asked['place'] = (where, REQUEST + described(kind, where, domain))
    said, expected, last = [], 1, None
    for at in runs(rng, len(numbers), most) + [None]:
        number = numbers[-1] + 1 if at is None else numbers[at]
        gap = max(0, number - expected)
        last = answer.add(' %d' % number, ('latest', last), given=gap > 0, skip=gap * 5 + rng.randint(0, 4 * gap))
        expected = number + 1
        if at is None:
            nothing = [('document', None)] if rng.random() < 0.2 else []
            answer.add('.', *nothing, weight=0.05)  # lines are short in training: their ends are weighed as if they were long
            break
        e = documents[at]
        told = e.kind if e else '?'
        answer.add(' ' + told, ('document', at), ('since', last), *([('named', at)] if e else []), weight=CHOICE)
        verdict, place = ('kind', told), None
        if told == kind and where:
            place = e.values[0] if 0 in e.told else '?'
            answer.add(' /', verdict, weight=CHOICE)
            answer.add(' ' + place, ('latest', last), ('since', last), *([('text', at)] if 0 in e.told else []), weight=CHOICE)
            verdict = ('place', place)
        if told == kind and place == where:
            colon = said[-1][1] if said else None
            said.append((e, answer.add(':', verdict, weight=CHOICE)))
            answer.add(' ' + e.name, ('named', at), ('latest', colon), ('since', said[-1][1]))
            answer.add(';')
        else:
            answer.add(',', verdict, weight=CHOICE)
    answer.add('\n', weight=SURE)
    return said


def broken_off(answer, said, rng):
    """What is thought so far, somewhere in the line, is given; what is said of that."""
    whole = answer.pieces[:-1]
    keep = rng.choice([piece for _, piece in said] or [1]) + rng.randint(1, 12) if rng.random() < 0.7 else rng.randint(1, len(whole))
    answer.pieces = whole[:keep]
    if len(answer.pieces) < len(whole) and rng.random() < 0.5:  # a name may be half there
        words = answer.pieces[-1].text.split(' ')
        answer.pieces[-1] = answer.pieces[-1]._replace(text=' '.join(words[:rng.randint(2, max(2, len(words)))]))
    answer.pieces = [piece._replace(weight=0.0) for piece in answer.pieces]
    answer.add('\n', given=True)
    return [(e, piece) for e, piece in said if piece < keep]


def request_begin(domain, kind, where):
    return REQUEST + '%s that the documents describe.' % described(kind, where, domain)


def request(domain, kind, where, asked):
    x, y = (domain['attributes'][i] for i in asked)
    return ('%s Answer with a JSON list and nothing else. For each give an object of three keys, all values strings: "name", '
            '"%s" (%s), "%s" (%s). Copy names and values as they are written.'
            % (request_begin(domain, kind, where), x['key'], x['asked'], y['key'], y['asked']))


def escaped(text):
    return json.dumps(text, ensure_ascii=False)[1:-1]


def write_list(answer, said, asked, given=False):
    """The list. Keys beyond those asked for do not count in the score."""
    answer.add('[', weight=SURE, given=given)
    number = None
    for e, colon in said:
        answer.add(', {"document": "' if number else '{"document": "', ('latest', number), ('next', colon), weight=CHOICE)
        last, number = number, len(answer.pieces)
        answer.add(str(e.number), ('latest', last), ('next', colon), weight=CHOICE)
        answer.add('", "name": "', weight=SURE)
        answer.add(escaped(e.name), ('named', e.at), ('latest', number), ('since', number))
        for j in asked:
            answer.add('", "%s": "' % e.domain['attributes'][j]['key'])
            answer.add(escaped(e.values[j]), *e.tells(j), ('latest', number), ('since', number), weight=CHOICE)
        answer.add('"}')
    answer.add(']', ('latest', number), ('next', None), weight=CHOICE)


def ask_for(r, kind, domain, asked_for, numbers, documents, asked, walked):
    """A request, answered in whole ('list'); of which the second half has not come yet: documents can be found already ('find');
    or in the midst of the thoughts ('part')."""
    answer = Answer(ends=kind != 'find')
    said = think(answer, r, numbers, documents, domain, asked_for, walked)
    if kind == 'find':
        return kind, request_begin(domain, *asked_for), answer
    if kind == 'part':
        said = broken_off(answer, said, r)
    write_list(answer, said, asked, kind == 'part')
    return kind, request(domain, *asked_for, asked), answer


# ----------------------------------------------------------------- contexts

class Numbers:
    """Increasing numbers of documents, each given once to all contexts of a batch: runs anywhere below 1000."""

    def __init__(self, rng):
        self.rng, self.free = rng, list(range(1, 999))

    def take(self, n):
        while True:
            out = sorted(self.draw(n))
            taken = set(out) | {out[-1] + 1}  # the one after the last is no document's
            if taken <= set(self.free):
                self.free = [i for i in self.free if i not in taken]
                return out

    def draw(self, n):
        r = self.rng
        if self.free[0] == 1 and r.random() < 0.7:
            return list(range(1, n + 1))
        out, free = set(), set(self.free)
        while len(out) < n:
            begin = self.free[int((len(self.free) - 1) * r.random() ** r.choice((1, 2)))]
            for number in range(begin, begin + (r.randint(1, n) if r.random() < 0.7 else n)):
                if number in free and len(out) < n:
                    out.add(number)
        return out


def tell(w, e, facts, rich, card, kinds, introduced):
    """The document of an entity, or two: what kind it is and where in the first, some of the rest in the second."""
    r = w.rng
    extra = int(rich * r.randint(0, 10))
    e.told = facts | {r.randrange(6) for _ in range(extra // 2)}
    colour = extra - extra // 2
    mistaken = r.choice(kinds) if r.random() < 0.25 * rich else None
    mistaken = None if mistaken == e.kind else mistaken
    before = r.choice(sorted(e.told)) if e.told and r.random() < 0.3 * rich else -1
    second = {i for i in e.told if i and r.random() < 0.5} if introduced and r.random() < 0.25 else set()
    e.later = second if len(second) < len(e.told) else set()
    parts = [(e.told - e.later, introduced, colour - colour // 2 if e.later else colour, mistaken)]
    if e.later:
        parts.append((e.later, False, colour // 2, None))
    return [tell_card(w, e, told, first) if card else tell_prose(w, e, told, first, colours, other, before)
            for told, first, colours, other in parts]


def tell_tables(w, entities):
    r, facts, out, at = w.rng, w.rng.sample(range(6), w.rng.randint(1, 3)), [], 0
    while at < len(entities):
        rows = entities[at:at + r.randint(1, 4)]
        out.append(tell_table(w, rows, facts))
        at += len(rows)
    for e in entities:
        e.told = set(facts)
    r.shuffle(out)
    return out


def draw_entities(w, d, documents, kinds, places, near_names):
    r, out, names = w.rng, [], set()
    while len(out) < documents:
        near = r.choice(out) if out and r.random() < near_names else None
        e = Entity(w, d, r.choice(kinds), r.choice(places), near)
        if e.name not in names:
            names.add(e.name)
            out.append(e)
    return out


def context(rng, documents, task, numbers, questions=8, pieces=(), rich=0.5, styles=('card', 'prose'), near_names=0.25, walked=13):
    """One context of about so many documents. rich: 0 for the shortest documents, 1 for those of `text2json make`. walked: documents
    in the first line of an answer, at most."""
    r = rng
    w = Words(r, pieces, invented=r.choice((0.0, 0.3, 0.6, 1.0) if r.random() < 0.5 else (0.2, 0.5)))
    d = random_scheme(w) if r.random() < 0.12 else r.choice(TABLES['domains'])
    style = r.choice(styles)
    kinds = draw_kinds(w, d, r.randint(2, 4) if documents < 40 else r.randint(3, 10))
    places = [draw_value(w, d['attributes'][0]) for _ in range(r.randint(2, 4))]
    entities = draw_entities(w, d, documents, kinds, places, near_names)
    look = task == 'look'
    if look and r.random() < 0.07:
        return {'documents': tell_tables(w, entities), 'questions': [ask_told(w, entities) for _ in range(questions)]}
    if look:
        same = set(r.sample(range(6), r.choice((1, 1, 2)))) if r.random() < 0.7 else None  # only the name tells
    else:
        common = r.sample(range(6), 3)
    texts = []
    for e in entities:
        card = style == 'card' or (style == 'mixed' and r.random() < 0.33)
        if look:
            facts, introduced = same or set(r.sample(range(6), r.randint(1, 2 if rich < 0.3 else 3))), r.random() < 0.4 + rich
        else:
            facts, introduced = set(common) | ({0} if r.random() < 0.75 else set()), True
        texts += [(text, e, nth) for nth, text in enumerate(tell(w, e, facts, rich, card, kinds, introduced))]
    r.shuffle(texts)
    numbered = not look or r.random() < 0.4
    given = numbers.take(len(texts)) if numbered else [None] * len(texts)
    for at, ((_, e, nth), number) in enumerate(zip(texts, given)):
        if nth:
            e.at_later = at
        else:
            e.at, e.number = at, number
    documents_out = [('Document %d\n' % n if numbered else '') + text for (text, _, _), n in zip(texts, given)]
    if look:
        return {'documents': documents_out, 'questions': [ask_told(w, entities, numbered) for _ in range(questions)]}
    introduced_in = [e if nth == 0 else None for _, e, nth in texts]
    out = []
    while len(out) < questions:
        e = r.choice(entities)
        kind, where = (e.kind, e.values[0]) if r.random() < 0.9 else (r.choice(kinds), r.choice(places))
        if r.random() < 0.5:
            where = None
        if sum(x.kind == kind for x in entities) > max(4, len(texts) // 2) and where is None:
            continue
        asked = r.sample([i for i in common if i or where is None], 2)
        what = 'find' if task == 'find' else 'list' if r.random() < 0.7 else 'part'
        out.append(ask_for(r, what, d, (kind, where), given, introduced_in, asked, walked))
    return {'documents': documents_out, 'questions': out}


def ask_told(w, entities, numbered=False):
    e = w.rng.choice(entities)
    i = w.rng.choice(sorted(e.told))
    if numbered and not e.later and w.rng.random() < 0.05:
        return ask_number(w, e, i)
    return ask_look_up(w, e, i)


if __name__ == '__main__':
    import sys
    rng = random.Random(int(sys.argv[1]) if len(sys.argv) > 1 else 1)
    for task in ('look', 'find', 'list'):
        for rich in (0.0, 1.0):
            c = context(rng, 4, task, Numbers(rng), 4, rich=rich)
            print('=====', task, rich)
            print('\n\n'.join(c['documents']))
            for kind, question, answer in c['questions']:
                print('--', kind, '|', question, '|', ''.join(p.text if p.weight else '<%s>' % p.text for p in answer.pieces))
