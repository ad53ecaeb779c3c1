"""How large the letters in a picture are, measured on its pixels: a picture does not tell.

Only horizontal words are measured in which tall letters stand beside low ones (`teachers`, not `runs` or `0.25`): among
these alone the size of the font shows. It is found to within two pixels, since letters are drawn in whole ones.
"""
import numpy as np
from PIL import Image
from scipy import ndimage

TALL, LOW = .755, .56   # heights of letters with and without a stem or a tail, of the size of the font (DejaVu Sans)
MOST = 2500   # pieces of a picture; more are a photograph


def pieces(path):
    "`(top, bottom, left, right)` of everything of one piece that could be a letter, from left to right"
    a = np.asarray(Image.open(path).convert('RGBA')).astype(int)
    paper = a[0, 0]
    ink = a[..., 3] > 110 if paper[3] < 128 else np.abs(a[..., :3]-paper[:3]).sum(-1) > 200
    places = ndimage.find_objects(ndimage.label(ink, np.ones((3, 3)))[0])
    boxes = [(y.start, y.stop, x.start, x.stop) for y, x in places if len(places) <= MOST]
    return sorted((o for o in boxes if 3 <= o[1]-o[0] <= 40 and o[3]-o[2] <= 1.7*(o[1]-o[0])), key=lambda o: o[2])


def words(boxes):
    "Rows of pieces that stand as close together as letters do"
    rows = []
    for top, bottom, left, right in boxes:
        for row in rows:
            t, b, l, r = row[-1]
            shared = min(b, bottom)-max(t, top)
            if 0 < left-l and left-r <= .5*max(b-t, bottom-top) and shared >= .5*min(b-t, bottom-top): break
        else: rows.append(row := [])
        row.append((top, bottom, left, right))
    return rows


def font_size(row):
    "Size of the font of a word, in pixels; None where its letters do not tell"
    heights = [b-t for t, b, _, _ in row]
    low = sorted(heights)[len(heights)//2]
    tall = [h for h in heights if 1.2 < h/low < 1.7]
    near = [h for h in heights if abs(h-low) <= 1]
    if not tall or len(near) < 3 or len(tall)+len(near) < .8*len(row): return None
    return (max(tall)/TALL + low/LOW)/2   # each is rounded to a pixel


def smallest(path):
    "Size in pixels of the smallest letters of a picture; None where none can be measured"
    sizes = [s for row in words(pieces(path)) if (s := font_size(row))]
    return min(sizes, default=None)
