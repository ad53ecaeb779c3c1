"Every refusal says what came, what was expected and, where that is not obvious, what to do"
import ast, re
from pathlib import Path
import pytest

PACKAGE = Path(__file__).resolve().parents[1]/'ekd_nb'
ERRORS = 'EKDError DataNotFound NonFiniteLoss'.split()

# sentences that need neither "expected" nor advice of their own, and why
COMPLETE = {
    '{reason}': 'part of a sentence: split_stages adds what to do',
    '{why}': 'the sentence of a refusal in a worker process, as it is',
    "{str(e).replace('batch'": 'the sentence about a training batch, said of one of validation',
    'its content is not what its name says': 'part of a warning: the checkpoint before is used',
    'The loss is not finite': 'training has stopped; which part is not finite says where to look',
}
# what a sentence may begin with besides an argument
SUBJECTS = 'record test_items torchdistill model address set graph item path the tta Weights'.split()
ADVICE = re.compile(r'expected |(?:[;:,(]|, or) (?:pass|use|set|choose|delete|make|add|save|start|connect|write)\b'
                    r'|\{(?:advice|instead|hint|wanted|_OTHER_FILES)')


def sentence(node):
    "The text of an expression, its values in braces"
    if isinstance(node, ast.Constant): return str(node.value)
    if isinstance(node, ast.JoinedStr): return ''.join(map(sentence, node.values))
    if isinstance(node, ast.FormattedValue): return '{'+ast.unparse(node.value)+'}'
    if isinstance(node, ast.BinOp): return sentence(node.left)+sentence(node.right)
    return '{'+ast.unparse(node)+'}'

def calls():
    for file in sorted(PACKAGE.rglob('*.py')):
        for node in ast.walk(ast.parse(file.read_text())):
            if not isinstance(node, ast.Call): continue
            yield f'{file.relative_to(PACKAGE.parent)}:{node.lineno}', ast.unparse(node.func).split('.')[-1], node

RAISED = [(at, sentence(n.args[0])) for at, f, n in calls() if f in ERRORS and n.args]
EXPECTED = [(at, [sentence(a) for a in n.args[1:4]], n) for at, f, n in calls()
            if f == 'expect' and 'core.py' not in at]


def arguments():
    "Names of all arguments of the package, and of the functions themselves"
    for file in PACKAGE.rglob('*.py'):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)): yield node.name
            if isinstance(node, ast.arg): yield node.arg
            if isinstance(node, ast.keyword) and node.arg: yield node.arg
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name): yield node.target.id   # fields

def test_there_are_many(): assert len(RAISED) > 250 and len(EXPECTED) > 140

@pytest.mark.parametrize('at, text', RAISED, ids=[at for at, _ in RAISED])
def test_a_sentence_says_what_was_expected_or_what_to_do(at, text):
    if any(text.startswith(o) for o in COMPLETE): return
    assert ADVICE.search(text), text
    assert '\n' not in text

def test_a_sentence_begins_with_what_it_is_about():
    "An argument, a file or a value; never a bare complaint"
    known = set(arguments()) | set(SUBJECTS)
    for at, text in RAISED:
        if any(text.startswith(o) for o in COMPLETE): continue
        first = re.match(r'\{.+?\}|[\w.]+', text)
        assert first and (first[0][0] == '{' or first[0] in known), f'{at} begins with none: {text}'

@pytest.mark.parametrize('at, texts, node', EXPECTED, ids=[at for at, *_ in EXPECTED])
def test_expect_names_argument_value_and_expectation(at, texts, node):
    name, got, wanted = texts
    assert len(node.args) == 4 and not node.keywords
    assert re.fullmatch(r'\{.+\}|[\w.]+', name), f'no name of an argument: {name!r}'
    assert got.strip() and (not isinstance(node.args[2], ast.Constant) or node.args[2].value)
    assert wanted.strip() and not re.match(r'(an? )?expected|got|must|should|[;,.]', wanted), wanted
    assert not wanted.endswith('.') and '\n' not in wanted

def test_the_exceptions_are_few_and_needed():
    assert len(COMPLETE) <= 10
    for o in COMPLETE: assert any(t.startswith(o) for _, t in RAISED), f'{o!r} is no sentence any more'

def test_nothing_takes_the_first_line_of_an_error_that_has_none():
    "`AssertionError()` has no line at all"
    for file in PACKAGE.rglob('*.py'):
        assert not re.search(r'str\(e\w*\)\.splitlines\(\)\[0\]', file.read_text()), file.name

def test_the_rule_is_one():
    assert not ADVICE.search('names: got 3 for 2 teachers') and ADVICE.search('names: got 3, expected 2')
