#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Records for the small model, and how many questions about them it answers.

    reader/corpus/records.py make LODEMARK COUNT > reader/corpus/records.txt
    reader/corpus/records.py try LODEMARK reader/corpus/records.txt [OPTION OF ask…]

make: cards of `lodemark text2json make --split test`: names and values that no training has seen. A card becomes a record if
no word of its name stands in a name before it. try: every value of every record is asked for; prints what was answered
right, and how often.
"""
import json
import os
import re
import subprocess
import sys
import tempfile

DOMAINS = ('products', 'doctors', 'organisations', 'films')


def cards(lodemark, domain):
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, 'samples')
        subprocess.run([lodemark, 'text2json', 'make', '--count', '4', '--seed', '21', '--tokens', '20000:22000', '--text', 'cards',
                        '--domains', domain, '--split', 'test', '--out', path], check=True, stdout=subprocess.DEVNULL)
        for line in open(path, encoding='utf-8'):
            for part in re.split(r'(?m)^(?:Document \d+$|Request:)', json.loads(line)['problem'])[1:-1]:
                yield part.strip()


def make(lodemark, count):
    streams, used, kept = [cards(lodemark, d) for d in DOMAINS], set(), []
    while len(kept) < count and streams:
        for stream in list(streams):
            card = next((c for c in stream if is_fresh(c, used)), None)
            if card is None:
                streams.remove(stream)
            elif len(kept) < count:
                kept.append(card)
    print('\n\n'.join(kept))


def words_of(card):
    return set(re.findall(r'\w{2,}', card.split('\n')[0].split(': ', 1)[1].lower())) - {'the', 'of', 'and', 'dr'}


def is_fresh(card, used):
    words = words_of(card)
    if words & used or not 3 <= card.count('\n') + 1 <= 6:
        return False
    used |= words
    return True


def questions(text):
    for card in text.strip().split('\n\n'):
        fields = [line.split(': ', 1) for line in card.split('\n')]
        for label, value in fields[1:]:
            yield 'What is the %s of %s?' % (label[0].lower() + label[1:], fields[0][1]), value


def attempt(lodemark, path, options):
    asked = list(questions(open(path, encoding='utf-8').read()))
    with tempfile.NamedTemporaryFile('w', suffix='.txt') as file:
        file.write(''.join(q + '\n' for q, _ in asked))
        file.flush()
        said = subprocess.run([lodemark, 'ask', '--docs', path, '--split', 'paragraph', '--questions', file.name, '--json', '-',
                               '--max-tokens', '24'] + options, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    answers = [a.get('answer', '').strip() for a in json.loads(said.stdout)['questions']]
    for (question, value), answer in zip(asked, answers):
        print('%s  %s  %s' % ('right' if value == answer else 'WRONG', question, answer if value == answer else '%s, not %s' % (answer, value)))
    right = sum(value == answer for (_, value), answer in zip(asked, answers))
    print('%d of %d are right' % (right, len(asked)))


if len(sys.argv) < 4 or sys.argv[1] not in ('make', 'try'):
    sys.exit(__doc__)
if sys.argv[1] == 'make':
    make(sys.argv[2], int(sys.argv[3]))
else:
    attempt(sys.argv[2], sys.argv[3], sys.argv[4:])
