# SPDX-License-Identifier: Apache-2.0
"""Reads the word lists and sentences of `lodemark text2json` out of its C sources into domains.json.

Words held out for `--split test` (every fourth of a list) are left out, so that nothing trained on this file has
seen them. Run it again when bench/text2json_words.c or bench/text2json_domains.c change:

    python3 tables.py ../../bench domains.json [--check]

--check writes nothing and fails if the file is not what would be written (a test).
"""
import json
import re
import sys

STRING = r'"((?:[^"\\]|\\.)*)"'


def strings(text):
    """The string literals of a piece of C, neighbours joined as C does."""
    text = re.sub(r'"\s*\n\s*"', '', text)
    return [s.replace('\\"', '"') for s in re.findall(STRING, text)]


def block(text, start):
    """What lies between the brace at or after start and its partner."""
    i = text.index('{', start)
    depth, quoted = 0, False
    for j in range(i, len(text)):
        c = text[j]
        if c == '"' and text[j - 1] != '\\':
            quoted = not quoted
        elif not quoted:
            depth += (c == '{') - (c == '}')
            if depth == 0:
                return text[i + 1:j], j + 1
    raise ValueError('braces do not match')


def field(text, name):
    found = re.search(r'\.%s = ' % name + STRING, text)
    return found.group(1) if found else None


def listed(text, name):
    return strings(block(text, text.index('.%s = {' % name))[0])


def read_attributes(text):
    body, at, found = block(text, text.index('.attributes'))[0], 0, []
    while '{' in body[at:]:
        a, at = block(body, at)
        value = re.search(r'LODE_VALUE_(\w+)(?:, (?:&lode_words_(\w+)|NULL))?(.*)', block(a, a.index('.value'))[0], re.S)
        kind, words, rest = value.groups()
        numbers = [int(n) for n in re.findall(r'(?<![\w"$,])\d+(?![\w"])', re.sub(STRING, '""', rest))]
        around = re.findall(STRING + '|NULL', rest)
        found.append({'key': field(a, 'key'), 'asked': field(a, 'asked'), 'label': field(a, 'label'),
                      'kind': kind, 'words': words, 'numbers': numbers,
                      'before_value': around[0] if len(around) > 0 else '', 'after_value': around[1] if len(around) > 1 else '',
                      'sentences': listed(a, 'sentences'), 'before': listed(a, 'before')})
    return found


def main(folder, target, check=False):
    words = open(folder + '/text2json_words.c', encoding='utf-8').read()
    words = words[words.index('clang-format off'):]
    code = open(folder + '/text2json_domains.c', encoding='utf-8').read()
    prose = open(folder + '/text2json_prose.c', encoding='utf-8').read()
    lists = {}
    for name, body in re.findall(r'WORDS\((\w+),\s*(.*?)\);', words, re.S):
        found = strings(body)
        ending = name.endswith('_end') or name == 'aim'  # endings are shared by both splits
        lists[name] = found if ending else [w for i, w in enumerate(found) if i % 4 != 3]
    table, at, domains = block(code, code.index('lode_domains[LODE_TEXT2JSON_DOMAINS] = '))[0], 0, []
    while '{' in table[at:]:
        d, at = block(table, at)
        colour = re.search(r'\.colour = (\w+)', d).group(1)
        domains.append({'name': field(d, 'name'), 'kinds': re.search(r'\.kinds = &lode_words_(\w+)', d).group(1),
                        'kind_label': field(d, 'kind_label'), 'request_place': field(d, 'request_place'),
                        'pronoun': '.pronoun = true' in d, 'intro': listed(d, 'intro'), 'mistaken': listed(d, 'mistaken'),
                        'colour': strings(block(code, code.index('const %s[] = ' % colour))[0]),
                        'attributes': read_attributes(d)})
    everything = {'words': lists, 'domains': domains, 'openers': strings(block(prose, prose.index('openers[] = '))[0]),
                  'endings': strings(block(prose, prose.index('endings[] = '))[0])}
    text = json.dumps(everything, ensure_ascii=False, indent=1) + '\n'
    if check:
        if open(target, encoding='utf-8').read() != text:
            sys.exit('%s is not what %s says now; run tables.py without --check' % (target, folder))
        return
    with open(target, 'w', encoding='utf-8') as out:
        out.write(text)


if __name__ == '__main__':
    main(sys.argv[1], sys.argv[2], '--check' in sys.argv)
