"""Puts the terms of the glossary into the index that Quarto's search looks through: a typed term finds its entry first.

    python tools/search_terms.py [SITE]

`_quarto.yml` names this as the step after rendering; Quarto then says where the site is. Needs Python's library only.

Quarto searches `title`, `section` and `text` with Fuse. A field that equals what was typed counts most. One that holds
it counts less the more spaces it has. So a term is a title, its plural or other name a section, and its explanation a
text with line breaks for spaces. Quarto lists what it finds page by page: `?term=` makes each term a page of its own.
"""
import html, json, os, re, sys
from html.parser import HTMLParser
from pathlib import Path

PAGE = 'glossary.html'


class Glossary(HTMLParser):
    "`terms`: of each item of a list that begins with an anchor, its `anchor`, its words in `bold` and its `text`"
    def __init__(self, page):
        super().__init__()
        self.terms, self.item, self.inside = [], None, []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        if tag == 'li': self.item = dict(anchor='', bold=[], text='')
        if self.item is None: return
        if tag == 'span' and not self.item['text']: self.item['anchor'] = dict(attrs).get('id', '')
        if tag == 'strong': self.item['bold'].append('')
        if tag in ('strong', 'annotation'): self.inside.append(tag)

    def handle_endtag(self, tag):
        if tag in self.inside: self.inside.remove(tag)
        if tag != 'li' or self.item is None: return
        if self.item['anchor'] and self.item['bold']: self.terms.append(self.item)
        self.item = None

    def handle_data(self, data):
        if self.item is None or 'annotation' in self.inside: return   # an annotation repeats a formula as TeX
        self.item['text'] += data
        if 'strong' in self.inside: self.item['bold'][-1] += data


def names(term, site):
    "A term, its plural if the text of the site has it, and what else the glossary calls it"
    name, *others = term['bold']
    plurals = [p for p in (f'{name}s', f'{name}es') if re.search(rf'\b{re.escape(p)}\b', site, re.I)]
    return [name, *plurals[:1], *others]


def uncapitalized(word): return word[:1].lower() + word[1:] if word[1:2].islower() else word


def rows(page, site):
    "Entries of the index, one for each term; shorter names come first, because Fuse keeps the order of equals"
    found = []
    for term in Glossary(page).terms:
        name, *others = called = names(term, site)
        href = f'{PAGE}?term={term["anchor"]}#{term["anchor"]}'
        explained = re.sub(r'\s+', '\n', term['text'].strip()[len(name):])
        text = ', '.join([name, *map(uncapitalized, others)]) + explained
        row = dict(objectID=href, href=href, title=name, section=(others or ['Glossary'])[0],
                   text=html.escape(text, quote=False), crumbs=['Glossary', name])
        found.append((min(map(len, called)), row))
    return [row for _, row in sorted(found, key=lambda o: o[0])]


def main(site):
    "Write the index of the site anew; nothing where a site has no index or no glossary"
    index, page = site/'search.json', site/PAGE
    if not (index.exists() and page.exists()): return
    others = [r for r in json.loads(index.read_text(encoding='utf-8')) if '?term=' not in r['href']]
    terms = rows(page.read_text(encoding='utf-8'), ' '.join(r['text'] for r in others))
    index.write_text(json.dumps(terms + others, ensure_ascii=False, indent=1), encoding='utf-8')
    print(f'{len(terms)} terms of the glossary in the index of the search')


if __name__ == '__main__': main(Path(sys.argv[1] if len(sys.argv) > 1 else os.environ['QUARTO_PROJECT_OUTPUT_DIR']))
