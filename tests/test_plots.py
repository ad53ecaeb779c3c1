"Plots: what is no lesson in nbs/study/09_plots.ipynb"
import itertools, matplotlib
matplotlib.use('agg')
import matplotlib.pyplot as plt, numpy as np, pytest
from ekd_nb.study import diagrams, figures, plots as P, style
from ekd_nb.study.records import example_records
from ekd_nb.core import EKDError

def record(method='ekd', seed=0, **kw):
    return {**dict(data='digits', preset='quick', method=method, seed=seed, fraction=1., params=1000, flops=10_000,
                   test_accuracy=.9-.01*seed,
        branch_accuracy=[.8,.82,.84], curves=dict(accuracy=[.1,.5,.9], train_loss=[2.,1.,.5]),
        disagreement_matrix=[[0,.1,.2],[.1,0,.3],[.2,.3,0]],
        reliability=dict(n=[1,3], confidence=[.4,.9], accuracy=[.5,.8]), wall_s=3.), **kw}

ALL = [P.training_curves, P.branch_bars, P.method_bars, P.disagreement_matrix, P.reliability_diagram]
words = lambda ax: ' '.join(t.get_text() for t in [*ax.texts, *ax.get_xticklabels(), *ax.get_yticklabels()])

@pytest.fixture(autouse=True)
def close():
    yield
    plt.close('all')

# Machado, Oliveira & Fernandes 2009, severity 1, on linear RGB
VISION = {'normal': np.eye(3),
    'protan': [[.152286,1.052583,-.204868],[.114503,.786281,.099216],[-.003882,-.048116,1.051998]],
    'deutan': [[.367322,.860646,-.227968],[.280085,.672501,.047413],[-.011820,.042940,.968881]],
    'tritan': [[1.255528,-.076749,-.178779],[-.078411,.930809,.147602],[.004733,.691367,.303900]]}

def lab(color, vision):
    v = np.array([int(color[i:i+2],16)/255 for i in (1,3,5)])
    v = np.clip(np.array(VISION[vision])@np.where(v<=.04045, v/12.92, ((v+.055)/1.055)**2.4), 0, 1)
    f = np.cbrt(np.array([[.4124,.3576,.1805],[.2126,.7152,.0722],[.0193,.1192,.9505]])@v/[.9505,1,1.089])
    return np.array([116*f[1]-16, 500*(f[0]-f[1]), 200*(f[1]-f[2])])

@pytest.mark.parametrize('vision', list(VISION))
@pytest.mark.parametrize('colors', [list(P.METHOD_COLORS.values()), P.TEACHER_COLORS[:3]], ids=['methods', 'teachers'])
def test_colours_stay_apart(vision, colors):
    assert len(set(colors)) == len(colors)
    assert min(np.linalg.norm(lab(a,vision)-lab(b,vision)) for a,b in itertools.combinations(colors, 2)) > 18

@pytest.mark.parametrize('f', ALL)
def test_returns_axes_with_units_and_leaves_the_style_alone(f):
    before = dict(plt.rcParams)
    ax = f([record(m, s) for m in ('ekd','branched') for s in range(2)])
    assert isinstance(ax, plt.Axes) and dict(plt.rcParams) == before and ax.figure.get_facecolor()[3] == 0
    assert any(u in ax.get_ylabel()+ax.get_xlabel() for u in ('%', 'nats', 'epoch'))

@pytest.mark.parametrize('f', ALL)
def test_draws_where_it_is_told(f):
    ax = plt.subplots()[1]
    assert f([record()], ax=ax) is ax and len(plt.get_fignums()) == 1

@pytest.mark.parametrize('f', ALL)
def test_nothing_to_show_reads_not_measured(f):
    bare = dict(data='digits', preset='quick', method='ekd', seed=0)
    assert 'not measured' in words(f([])) and 'not measured' in words(f([bare]))

@pytest.mark.parametrize('f', [f for f in ALL if f is not P.disagreement_matrix])
def test_two_data_sets_are_not_mixed(f):
    with pytest.raises(EKDError, match='cifar10, digits'): f([record(), record(data='cifar10')])

def test_one_seed_has_no_spread():
    assert '90.0, one seed' in words(P.method_bars([record()])) and '±' not in words(P.method_bars([record()]))
    assert '89.5 ± 0.7' in words(P.method_bars([record(), record(seed=1)]))

def test_gain_of_the_ensemble(): assert '+8.0\n90.0' in words(P.branch_bars([record()]))

def test_methods_keep_order_and_unknown_ones_come_last_with_a_stable_colour():
    assert list(P.by_method([record('zzz'), record('ekd'), record('aaa'),
                             record('plain')])) == ['plain', 'ekd', 'aaa', 'zzz']
    assert P.method_color('aaa') == P.method_color('aaa') not in P.METHOD_COLORS.values()

def test_disagreement_is_the_mean_over_records_and_of_one_size():
    other = record(disagreement_matrix=[[0,.3,.2],[.3,0,.3],[.2,.3,0]])
    assert '20.0' in words(P.disagreement_matrix([record(), other]))
    with pytest.raises(EKDError, match='expected one number of branches'):
        P.disagreement_matrix([record(), record(disagreement_matrix=[[0,1],[1,0]])])

def test_curves_of_different_length_end_with_the_shortest():
    ax = P.training_curves([record(), record(seed=1, curves=dict(accuracy=[.2,.6]))])
    assert list(ax.lines[0].get_ydata()) == pytest.approx([15,55])

@pytest.mark.parametrize('n', [1,2,3,6])
def test_architecture_has_every_part(n):
    ax = diagrams.architecture(n, [f'T{i}' for i in range(n)])
    said = [t.get_text() for t in ax.texts]
    assert (said.count('KL') == said.count('CE') == n+1 and said.count('hint') == n and
            all(f'T{i}' in said for i in range(n)))

@pytest.mark.parametrize('draw', [diagrams.architecture, diagrams.overview_diagram])
def test_diagrams_refuse(draw):
    with pytest.raises(EKDError, match='n_branches=0'): draw(0)
    with pytest.raises(EKDError, match='teacher_names holds 1 names: expected 2'): draw(2, ['a'])

@pytest.mark.parametrize('n', [1,3,6])
def test_the_idea_shows_who_teaches_whom(n):
    said = [t.get_text() for t in diagrams.overview_diagram(n).texts]
    assert (all(f'teacher {i}' in said and f'branch {i}' in said for i in range(1, n+1)) and
            {'labels', 'mean', 'prediction', 'trunk, shared'} <= set(said))

def test_relatives_share_a_colour_and_differ_in_their_mark():
    for m,kin in style.METHOD_FAMILY.items():
        assert (style.method_color(m) == style.method_color(kin) and style.plot_kwargs(m) != style.plot_kwargs(kin) and
                style.label(m) != style.label(kin))

def test_students_without_branches_have_no_bars_of_branches():
    ax = P.branch_bars([record('plain', branch_accuracy=[.8]), record()])
    assert len(ax.patches) == 4 and 'plain' not in words(ax)

def test_at_a_glance_shows_six_students_and_says_what_is_missing():
    rs = example_records({'wide': .5, 'kd_wide': .55, 'rkd': .56, 'ekd': .6, 'ekd_light': .62, 'teachers': .7},
                         seeds=3)
    axs = figures.at_a_glance({'one': rs, 'empty': []})
    said = words(axs[0])
    assert 'RKD' in said and said.count('not measured')==1 and words(axs[1]).count('not measured')==6
    assert len(axs[0].containers)==5 and any(l.get_linestyle()=='--' for l in axs[0].lines)

def test_logarithmic_axes_have_plain_numbers():
    @style.styled
    def bars(most):
        ax = style.get_axes(None)
        ax.plot([1,2], [1,most]); ax.set(yscale='log')
        return ax
    def labels(most, minor=False):
        ax = bars(most)
        ax.figure.canvas.draw()
        return [t.get_text() for t in ax.get_yticklabels(minor=minor)]
    assert ' '.join(labels(5000)).split() == ['0.1', '1', '10', '100', '1,000', '10,000']
    assert {'2', '3', '4'} <= set(labels(8, minor=True)) and not any('$' in t for t in labels(8, minor=True))
