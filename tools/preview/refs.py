"Works on the syntax tree of one page: numbers figures, tables and equations, resolves references, dresses callouts"
import html, json, re

CELL = re.compile(r'<!--cell (\S+)-->')
KINDS = {'fig': 'Figure', 'tbl': 'Table', 'eq': 'Equation', 'sec': 'Section'}
REF = re.compile(r'^(fig|tbl|eq|sec)-')
LABEL = re.compile(r'^\{#((?:tbl|eq)-[\w-]+)\}$')
CALLOUT = re.compile(r'^callout-(note|tip|warning|important|caution)$')


def text_of(node):
    "The plain text below a node"
    if isinstance(node, list): return ''.join(map(text_of, node))
    if not isinstance(node, dict) or node.get('t') in (None, 'RawInline', 'RawBlock'): return ''
    if node['t'] == 'Str': return node['c']
    if node['t'] == 'Cite': return text_of(node['c'][1])
    if node['t'] in ('Space', 'SoftBreak', 'LineBreak'): return ' '
    if node['t'] in ('Code', 'Math'): return node['c'][1]
    return text_of(node.get('c'))


def inlines(text): return [x for w in text.split() for x in ({'t': 'Str', 'c': w}, {'t': 'Space'})]
def raw(s): return {'t': 'RawBlock', 'c': ['html', s]}


class Refs:
    def __init__(self, keys, fail, link):
        "`keys`: citations of the bibliography; `fail(cell, text)`: complain; `link(target, cell)`: where a link leads"
        self.keys, self.fail, self.link = keys, fail, link
        self.cell, self.labels, self.counts, self.cited = None, {}, {}, False

    def __call__(self, doc):
        doc['blocks'] = self.number(doc['blocks'])
        self.cell = None
        doc['blocks'] = self.resolve(doc['blocks'])
        if self.cited:
            doc['blocks'] += [{'t': 'Header', 'c': [2, ['references', [], []], inlines('References')[:-1]]},
                              {'t': 'Div', 'c': [['refs', [], []], []]}]
        return doc

    def see_cell(self, node):
        m = CELL.match(node['c'][1]) if node.get('t') == 'RawBlock' else None
        if m: self.cell = None if m[1] == '-' else int(m[1])

    def label(self, name):
        "Give `name` the next number of its kind"
        kind = name.split('-')[0]
        if name in self.labels: self.fail(self.cell, f'label {name!r} is given twice')
        n = self.counts[kind] = self.counts.get(kind, 0) + 1
        self.labels[name] = f'{KINDS[kind]} {n}'
        return n

    def caption(self, name, content):
        self.label(name)
        return inlines(self.labels[name] + ':') + content

    # first walk: everything that carries a label gets its number, in reading order
    def number(self, node):
        if isinstance(node, list): return [self.number(x) for x in node]
        if not isinstance(node, dict): return node
        self.see_cell(node)
        t, c = node['t'] if 't' in node else None, node.get('c')
        if t == 'Header' and c[1][0].startswith('sec-'):
            self.label(c[1][0])
            self.labels[c[1][0]] = f'“{text_of(c[2])}”'
        elif t == 'Figure' and REF.match(c[0][0]) and c[1][1]: c[1][1][0]['c'] = self.caption(c[0][0], c[1][1][0]['c'])
        elif t == 'Table': self.number_table(c)
        elif t == 'Div' and REF.match(c[0][0]):
            c[0][1].append('figure')
            if c[1] and c[1][-1]['t'] in ('Para', 'Plain'):
                caption = {'t': 'Para', 'c': self.caption(c[0][0], c[1][-1]['c'])}
                c[1][-1] = {'t': 'Div', 'c': [['', ['caption'], []], [caption]]}
            else: self.label(c[0][0])
        elif t in ('Para', 'Plain'): self.number_equations(c)
        if c is not None: node['c'] = self.number(c)
        return node

    def number_table(self, c):
        blocks = c[1][1]
        if not blocks: return
        content, name = blocks[0]['c'], c[0][0] if REF.match(c[0][0]) else None
        m = LABEL.match(content[-1]['c']) if content and content[-1]['t'] == 'Str' else None
        if m: name, content = m[1], content[:-1]
        if name:
            c[0][0] = name
            blocks[0]['c'] = self.caption(name, content)

    def number_equations(self, c):
        for i, x in enumerate(c):
            m = x['t'] == 'Str' and LABEL.match(x['c'])
            if not m: continue
            at = next((j for j in range(i-1, -1, -1) if c[j]['t'] == 'Math'), None)
            if at is None: self.fail(self.cell, f'{x["c"]} follows no equation')
            n = self.label(m[1])
            number = {'t': 'Span', 'c': [['', ['eqno'], []], [{'t': 'Str', 'c': f'({n})'}]]}
            c[at] = {'t': 'Span', 'c': [[m[1], ['equation'], []], [c[at], number]]}
            c[i] = {'t': 'Str', 'c': ''}

    # second walk: references and links lead somewhere, callouts get their dress
    def resolve(self, node):
        if isinstance(node, list): return [y for x in node for y in self.resolved(x)]
        if isinstance(node, dict) and 'c' in node: node['c'] = self.resolve(node['c'])
        return node

    def resolved(self, x):
        if not isinstance(x, dict): return [self.resolve(x)]
        self.see_cell(x)
        x = self.resolve(x)
        if x.get('t') == 'Cite': return self.cite(x)
        if x.get('t') == 'Link': x['c'][2][0] = self.link(x['c'][2][0], self.cell)
        m = next(filter(None, map(CALLOUT.match, x['c'][0][1])), None) if x.get('t') == 'Div' else None
        return self.callout(m[1], *x['c']) if m else [x]

    def cite(self, x):
        ids = [c['citationId'] for c in x['c'][0]]
        for i in ids:
            if REF.match(i) and i not in self.labels: self.fail(self.cell, f'unknown cross-reference @{i}')
            if not REF.match(i) and i not in self.keys: self.fail(self.cell, f'unknown citation @{i}')
        self.cited = self.cited or any(i in self.keys for i in ids)
        if not all(map(REF.match, ids)): return [x]
        links = []
        for i in (i for i in ids if i in self.labels):
            if links: links += [{'t': 'Str', 'c': ','}, {'t': 'Space'}]
            links.append({'t': 'Link', 'c': [['', ['ref'], []], inlines(self.labels[i])[:-1], [f'#{i}', '']]})
        return links

    def callout(self, kind, attr, blocks):
        given = dict(attr[2])
        title = given.get('title')
        if not title and blocks and blocks[0]['t'] == 'Header':
            title, blocks = text_of(blocks[0]['c'][2]), blocks[1:]
        title = html.escape(title or kind.capitalize())
        fold = given.get('collapse') == 'true'
        tags = ('<details', '<summary class="callout-title">', '</summary>', '</details>') if fold else \
               ('<div', '<p class="callout-title">', '</p>', '</div>')
        return [raw(f'{tags[0]} class="callout callout-{kind}">{tags[1]}{title}{tags[2]}'), *blocks, raw(tags[3])]


def bib_keys(text): return set(re.findall(r'^\s*@\w+\s*\{\s*([^,\s]+)\s*,', text, re.M))
