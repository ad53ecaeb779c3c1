"""Notebook cells as markdown: what README.md and the preview have in common."""
import base64, html, re
from html.parser import HTMLParser
from itertools import groupby
import yaml

DIRECTIVE = re.compile(r'^\s*#\|\s?(.*)$')
ANSI = re.compile(r'\x1b\[[\d;]*[A-Za-z]')
EXT = {'image/png': 'png', 'image/jpeg': 'jpg', 'image/svg+xml': 'svg'}


class PageError(Exception):
    "Something on a page is wrong; says where"
    def __init__(self, notebook, cell, text):
        super().__init__(f'{notebook}{"" if cell is None else f", cell {cell}"}: {text}')


def joined(s): return ''.join(s) if isinstance(s, list) else s or ''


def options(source):
    "Quarto's `#| key: value` lines of a code cell, and the code below them"
    lines, opts = source.splitlines(), []
    while lines and (m := DIRECTIVE.match(lines[0])):
        opts.append(m[1])
        lines.pop(0)
    try: d = yaml.safe_load('\n'.join(o for o in opts if ':' in o or o.startswith((' ', '-')))) or {}
    except yaml.YAMLError: d = {}
    return (d if isinstance(d, dict) else {}), '\n'.join(lines).strip('\n')


def prose(source):
    "A markdown cell without the directives above it, as Quarto reads it"
    return re.sub(r'\A(?:#\|.*(?:\n|\Z))+', '', joined(source))


def fenced(text, lang=''):
    fence = '`'*max(3, 1+max((len(m) for m in re.findall(r'`+', text)), default=0))
    return f'{fence}{lang}\n{text}\n{fence}'


def outputs(cell):
    """What a code cell shows, in order: `(kind, value)` with kind text, markdown, html or an image type.
    Of an output in several forms it is the one that Quarto takes."""
    for printed, group in groupby(cell.get('outputs', []), lambda o: o['output_type'] == 'stream'):
        if printed:
            text = ''.join(joined(o['text']) for o in group if o.get('name') != 'stderr')
            yield 'text', ANSI.sub('', text).strip('\n')
            continue
        for data in (o.get('data', {}) for o in group):
            if 'text/html' in data:
                if text := plain_html(joined(data['text/html'])): yield 'html', text
            elif 'text/markdown' in data: yield 'markdown', joined(data['text/markdown'])
            elif image := next((k for k in EXT if k in data), None):
                raw = joined(data[image])
                yield image, raw.encode() if image.endswith('xml') else base64.b64decode(raw)
            elif 'text/plain' in data: yield 'text', ANSI.sub('', joined(data['text/plain']))


def plain_html(s):
    "HTML of an output without style sheets, scripts, borders and empty lines"
    s = re.sub(r'(?s)<(style|script)\b.*?</\1>', '', s)
    s = re.sub(r'\s(border|style)="[^"]*"', '', s)
    return '\n'.join(l for l in s.splitlines() if l.strip())


class Tables(HTMLParser):
    "The tables of some HTML, each a list of rows of `(text, is a heading)`, and the text outside of them"
    def __init__(self, text):
        super().__init__()
        self.tables, self.text, self.cell, self.hush = [], '', None, 0
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.hush += tag in ('style', 'script', 'progress')
        if tag == 'table': self.tables.append([])
        if tag == 'tr' and self.tables: self.tables[-1].append([])
        if tag in ('td', 'th'): self.cell, self.span = '', int(dict(attrs).get('colspan') or 1)
        if tag == 'br' and self.cell is not None: self.cell += ' '

    def handle_endtag(self, tag):
        self.hush -= tag in ('style', 'script', 'progress')
        if tag not in ('td', 'th') or self.cell is None: return
        self.tables[-1][-1] += [(' '.join(self.cell.split()), tag == 'th')] + [('', False)]*(self.span-1)
        self.cell = None

    def handle_data(self, data):
        if self.hush: return
        if self.cell is not None: self.cell += data
        else: self.text += data


def table_markdown(rows):
    "Rows of `(text, is a heading)` as a markdown table; several rows of headings become one, numbers are aligned right"
    width = max(map(len, rows))
    rows = [[*r, *[('', False)]*(width-len(r))] for r in rows]
    top = 1
    while top < len(rows) and all(th or not t for t, th in rows[top]): top += 1
    head = [' '.join(t for t, _ in column if t) for column in zip(*rows[:top])]
    body = [[t for t, _ in r] for r in rows[top:]]
    number = re.compile(r'[-+−]?[\d.,]+(e[-+]?\d+)?( ?[%kMG])?|nan|NaN|inf|')
    right = [any(column) and all(map(number.fullmatch, column)) for column in zip(*body)] or [False]*width
    line = lambda cells: f'| {" | ".join(map(escaped, cells))} |'
    return '\n'.join([line(head), '|' + '|'.join('--:' if r else '---' for r in right) + '|', *map(line, body)])


def escaped(text):
    "Text of a cell of a table so that markdown takes nothing in it for markup, but for `code`"
    parts = re.split(r'(`[^`]+`)', text)
    return ''.join(p.replace('|', r'\|') if i % 2 else re.sub(r'([\\`*_|<>$@^~#])', r'\\\1', p)
                   for i, p in enumerate(parts)) or ' '


def without_paths(text):
    "What a cell writes to stderr, without warnings of other packages and without folders of this machine"
    text = re.sub(r'(?m)^\S+/site-packages/\S+:\d+: \w*Warning: .*\n?(?:  .*\n?)?', '', text)
    text = re.sub(r'(?m)^\S+/ipykernel_\d+/\d+\.py:\d+: ', '', text)
    return re.sub(r'(?m)^/\S+/(\w+\.py:\d+: )', r'\1', text)


def without_html(outputs):
    """Outputs of a cell with tables in markdown instead of HTML, without progress bars, style sheets and paths.
    HTML in an output makes Quarto load scripts from another host, and brings colours that no dark page can read."""
    kept = []
    for o in outputs:
        data = o.get('data', {})
        if o.get('name') == 'stderr':
            text = without_paths(joined(o['text']))
            if text.strip(): kept.append({**o, 'text': text.splitlines(True)})
            continue
        if 'text/html' not in data:
            kept.append(o)
            continue
        found = Tables(joined(data['text/html']))
        tables = [table_markdown(t) for t in found.tables if t]
        plain = joined(data.get('text/plain', ''))
        if tables:
            new = {'text/markdown': '\n\n'.join(tables)}
            if plain and not plain.startswith('<'): new['text/plain'] = data['text/plain']
        elif text := re.sub(r'\s*\d+\.\d+% \[\d+/\d+ [\d:<? ]*\]', '', found.text).strip():
            new = {'text/plain': text}
        else: continue
        kept.append({**o, 'data': new})
    return kept


def code_markdown(cell, image, code='python', output='', html_block='{}', raw='{}'):
    """A code cell as markdown.
    `image(kind, data, opts, k)` writes its k-th picture and returns the markdown for it.
    `raw` is how a tag is written."""
    opts, src = options(joined(cell['source']))
    if opts.get('include') is False: return ''
    parts = [fenced(src, code)] if src and opts.get('echo') is not False else []
    if opts.get('code-fold') and parts:
        summary = html.escape(str(opts.get('code-summary', 'Code')))
        parts = [raw.format(f'<details><summary>{summary}</summary>'), *parts, raw.format('</details>')]
    k = 0
    for kind, value in outputs(cell) if opts.get('output') is not False else ():
        if kind in EXT:
            parts.append(image(kind, value, opts, k))
            k += 1
        elif kind == 'markdown' or opts.get('output') == 'asis': parts.append(value)
        elif kind == 'html': parts.append(html_block.format(value))
        elif value.strip(): parts.append(fenced(value, output))
    return '\n\n'.join(parts)
