"""Draws the site's card (shown where a link to it is shared) and favicon: nbs/images/card.png, nbs/images/favicon.png.

    python tools/card.py

Three teachers above; below them a student, three branches on one trunk, in the colours that the teachers have on
every page.
"""
from pathlib import Path
import matplotlib
matplotlib.use('agg')
import matplotlib.pyplot as plt
from matplotlib.patches import Circle, FancyBboxPatch
from ekd_nb.study.style import TEACHER_COLORS

IMAGES = Path(__file__).resolve().parents[1]/'nbs/images'
TEXT_COLOR, SOFT, TRUNK = '#1c2733', '#51606f', '#6e7985'


def box(ax, x, y, w, h, color, r=.12):
    style = f'round,pad={r},rounding_size={r}'
    ax.add_patch(FancyBboxPatch((x+r, y+r), w-2*r, h-2*r, boxstyle=style, fc=color, ec='none'))


def canvas(width, height, facecolor, dpi=100):
    fig = plt.figure(figsize=(width/dpi, height/dpi), dpi=dpi, facecolor=facecolor)
    ax = fig.add_axes((0, 0, 1, 1))
    ax.set(xlim=(0, 12), ylim=(0, 12*height/width))
    ax.axis('off')
    return fig, ax


def card():
    fig, ax = canvas(1200, 630, '#ffffff')
    ax.text(.7, 4.7, 'ekd_nb', size=58, weight='bold', color=TEXT_COLOR, va='center')
    what = 'Ensemble Knowledge Distillation:\nseveral teachers, one branched\nstudent, every number measured'
    ax.text(.7, 3.3, what, size=22, color=SOFT, va='center', linespacing=1.5)
    ax.text(.7, 1.3, 'notebooks · fastai · PyTorch', size=18, color=SOFT, va='center')
    box(ax, 7.6, .6, 3.8, .8, TRUNK)
    for x, c in zip((8.1, 9.5, 10.9), TEACHER_COLORS):
        ax.plot((x, x), (1.4, 2.1), color=TRUNK, lw=8, zorder=0)
        box(ax, x-.5, 2, 1, 1.2, c)
        ax.annotate('', (x, 3.3), (x, 4.4), arrowprops=dict(arrowstyle='-|>', mutation_scale=24, color=c, lw=4))
        ax.add_patch(Circle((x, 5), .55, fc=c, ec='none'))
    return fig


def favicon():
    fig, ax = canvas(64, 64, 'none')
    box(ax, .6, 1, 10.8, 2.8, TRUNK, .5)
    for x, c in zip((.6, 4.6, 8.6), TEACHER_COLORS): box(ax, x, 4.8, 2.8, 6.2, c, .5)
    return fig


def main():
    IMAGES.mkdir(exist_ok=True)
    for draw in (card, favicon):
        fig = draw()
        fig.savefig(IMAGES/f'{draw.__name__}.png', metadata={'Software': None})
        plt.close(fig)


if __name__ == '__main__': main()
