"""What a program can check of the style of code: short lines, short cells, plain assignments.

`check_notebooks.py --style` reports it; `CONTRIBUTING.md` gives the rules. Each finding is `(line, rule, text)`.
"""
import ast, io, re, tokenize

WIDTH,WIDE,LINES,TARGETS = 120,140,30,3
RULES = ('width', 'cell', 'targets', 'lambda', 'import', 'if-else', 'times')
FUNCTIONS = ast.FunctionDef,ast.AsyncFunctionDef
CONDITIONS = 'bool', 'isinstance', 'hasattr', 'callable', 'any', 'all'   # these functions return true or false
EXPORTED = re.compile(r'^\s*#\|\s*export', re.M)
DIRECTIVE = re.compile(r'^\s*#\|')
CAPTION = re.compile(r'^\s*#\|\s*fig-(alt|cap)\b')

# Cells that may break a rule: id -> reason. At most ten.
EXCEPTIONS = {
    'ac1023f5': 'study/01_methods: METHODS is a table, one row per line',
    '2652b5ab': 'baselines/03_registry: BASELINES is a table, one row per line',
}


def parsed(src):
    "The code without lines of IPython, or `None` where it is not Python"
    code = '\n'.join('pass' if l.startswith(('%', '!')) else l for l in src.splitlines())
    try: return ast.parse(code)
    except SyntaxError: return None


def lines_of(node):
    "The lines a piece of code fills, counted from 1"
    return range(node.lineno, node.end_lineno+1)


def comments(src):
    "Where each line's comment begins, line -> column"
    tokens = tokenize.generate_tokens(io.StringIO(src).readline)
    try: return {t.start[0]: t.start[1] for t in tokens if t.type==tokenize.COMMENT}
    except (tokenize.TokenError, SyntaxError): return {}


def argument_lines(tree):
    "Lines of signatures and of annotated fields: their comments say what an argument is"
    lines = set()
    for n in ast.walk(tree):
        if isinstance(n, FUNCTIONS): lines |= set(range(n.lineno, n.body[0].lineno))
        fields = [f for f in n.body if isinstance(f, ast.AnnAssign)] if isinstance(n, ast.ClassDef) else []
        lines |= {i for f in fields for i in lines_of(f)}
    return lines


def called(node):
    "The name of what a call calls"
    return getattr(node.func, 'id', getattr(node.func, 'attr', '')) if isinstance(node, ast.Call) else ''


def error_lines(tree):
    "Lines of error sentences: `raise …` and `expect(…)`"
    return {i for n in ast.walk(tree) if isinstance(n, ast.Raise) or called(n)=='expect' for i in lines_of(n)}


def check_width(src, tree):
    "Lines of at most 120 characters; error sentences and comments on arguments may reach 140"
    comment = comments(src)
    arguments = argument_lines(tree) if tree else set()
    errors = error_lines(tree) if tree else set()
    for i,l in enumerate(src.splitlines(), 1):
        if len(l)<=WIDTH or CAPTION.match(l): continue
        remark = i in arguments and len(l[:comment.get(i, len(l))].rstrip())<=WIDTH
        limit = WIDE if i in errors or remark else WIDTH
        if len(l)>limit: yield i, 'width', f'has {len(l)} characters, expected at most {limit}'


def rows(value):
    "The elements of a table, or nothing: of a display, of a call, or of what a comprehension runs over"
    if isinstance(value, ast.Dict): return value.values
    if isinstance(value, (ast.List, ast.Tuple, ast.Set)): return value.elts
    if isinstance(value, (ast.DictComp, ast.ListComp, ast.GeneratorExp)): return rows(value.generators[0].iter)
    if not isinstance(value, ast.Call): return []
    inner = [*value.args, *(k.value for k in value.keywords)]
    return rows(inner[0]) if len(inner)==1 else inner


def is_table(statement):
    "One row per line: an assignment of rows, or a class that has fields only"
    if isinstance(statement, ast.ClassDef): return all(isinstance(n, (ast.AnnAssign, ast.Expr)) for n in statement.body)
    if not isinstance(statement, ast.Assign): return False
    begins = [o.lineno for o in rows(statement.value)]
    return len(begins)>2 and len(set(begins))==len(begins)


def check_cell(src, tree):
    "Exported cells of at most 30 lines; rows of a table are not counted"
    table = {i for s in tree.body if is_table(s) for i in lines_of(s)}
    n = sum(bool(l.strip()) and not DIRECTIVE.match(l) and i not in table for i,l in enumerate(src.splitlines(), 1))
    if n>LINES: yield 1, 'cell', f'an exported cell of {n} lines, expected at most {LINES}'


def check_assignments(tree):
    "No long tuple on the left"
    for n in ast.walk(tree):
        if not isinstance(n, ast.Assign): continue
        wide = max(len(t.elts) if isinstance(t, (ast.Tuple, ast.List)) else 1 for t in n.targets)
        if wide>TARGETS: yield n.lineno, 'targets', f'assigns {wide} names at once, expected at most {TARGETS}'


def check_lambdas(tree):
    "No function without a name of its own, also not one of two"
    for n in ast.walk(tree):
        value = n.value if isinstance(n, ast.Assign) else None
        values = [value.body, value.orelse] if isinstance(value, ast.IfExp) else [value]
        named = any(isinstance(v, ast.Lambda) for v in values)
        if named: yield n.lineno, 'lambda', 'gives a lambda a name, expected `def`'


def check_imports(src, tree):
    "An import inside a function says why in a comment on its line"
    comment = comments(src)
    functions = [n for n in ast.walk(tree) if isinstance(n, FUNCTIONS)]
    late = {n for f in functions for n in ast.walk(f) if isinstance(n, (ast.Import, ast.ImportFrom))}
    for n in sorted(late, key=lambda n: n.lineno):
        if any(i in comment for i in lines_of(n)): continue
        yield n.lineno, 'import', 'imports inside a function, expected a comment that says why'


def is_condition(node):
    "Is its value certainly true or false?"
    negated = isinstance(getattr(node, 'op', None), ast.Not)
    return negated or isinstance(node, (ast.Compare, ast.BoolOp)) or called(node) in CONDITIONS


def is_text_or_list(node):
    return isinstance(node, (ast.List, ast.Tuple, ast.JoinedStr)) or isinstance(getattr(node, 'value', None), str)


def check_expressions(tree):
    "No conditional expression within another, and none written as a product"
    for n in ast.walk(tree):
        if isinstance(n, ast.IfExp) and any(isinstance(o, ast.IfExp) for o in ast.walk(n) if o is not n):
            yield n.lineno, 'if-else', 'has a conditional expression inside another'
        if isinstance(n, ast.BinOp) and isinstance(n.op, ast.Mult):
            sides = n.left, n.right
            if any(map(is_text_or_list, sides)) and any(map(is_condition, sides)):
                yield n.lineno, 'times', 'multiplies by a condition, expected `… if … else …`'


def check_code(src):
    "Everything that this code breaks, in order of lines"
    tree = parsed(src)
    found = list(check_width(src, tree))
    if tree:
        found += [*check_imports(src, tree), *check_expressions(tree), *check_lambdas(tree)]
        if EXPORTED.search(src): found += [*check_cell(src, tree), *check_assignments(tree)]
    return sorted(set(found))


def check_cells(nb):
    "What the code cells of a notebook break, each `(cell number, line, rule, text)`"
    for i,c in enumerate(nb['cells']):
        if c['cell_type']=='code' and c.get('id') not in EXCEPTIONS:
            for found in check_code(''.join(c['source'])): yield i, *found


def check_file(src):
    "Of a tool or a test only the width"
    return list(check_width(src, parsed(src)))
