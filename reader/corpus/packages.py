#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Make reader/corpus/packages.txt: what a Debian knows of some of its packages, a record each, an empty line between.

    reader/corpus/make > reader/corpus/packages.txt

Facts of the package lists (name, section, version, size) and the first line of the description. The choice of packages is
by a digest of their names, so it depends on nothing but what is installed.
"""
import hashlib
import re
import subprocess

COUNT = 300
FIELDS = ('Package', 'Section', 'Version', 'Installed-Size', 'binary:Summary')


def records():
    form = '\\t'.join('${%s}' % f for f in FIELDS) + '\\n'
    listed = subprocess.run(['dpkg-query', '-W', '-f', form], check=True, stdout=subprocess.PIPE, text=True).stdout
    seen = set()
    for line in listed.splitlines():
        name, section, version, size, summary = line.split('\t')
        version = re.sub(r'^\d+:', '', version)  # epoch
        version = re.sub(r'[-+~].*$', '', version)  # what Debian adds to the authors' own number
        if name in seen or not (section and size.isdigit() and summary and re.fullmatch(r'[0-9.]{3,10}', version)):
            continue
        if len(name) > 18 or len(summary) > 60 or not summary.isascii():
            continue
        seen.add(name)
        yield name, section, version, size, summary


def order(record):
    return hashlib.sha256(record[0].encode()).digest()


def main():
    chosen = sorted(sorted(records(), key=order)[:COUNT])
    print('\n\n'.join('Name: %s\nSection: %s\nVersion: %s\nSize: %s kB\nAbout: %s' % r for r in chosen))


main()
