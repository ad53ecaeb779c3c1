// Runs inside a page; returns figures that a reader cannot see well against the page: a bright slab on a dark page, or faint ink.
() => {
  const lum = c => { const f = v => (v /= 255) <= .03928 ? v/12.92 : ((v + .055)/1.055)**2.4; return .2126*f(c[0]) + .7152*f(c[1]) + .0722*f(c[2]) }
  const ratio = (a, b) => { const [x, y] = [lum(a), lum(b)].sort((p, q) => q - p); return (x + .05)/(y + .05) }
  const backs = [document.body, document.documentElement].map(e => getComputedStyle(e).backgroundColor.match(/[\d.]+/g).map(Number))
  const paper = backs.find(c => c.length < 4 || c[3]) || [255, 255, 255]
  const dark = lum(paper) < .2, bad = []
  for (const i of document.querySelectorAll('main img')) {
    if (!i.naturalWidth || !i.clientWidth) continue
    const c = document.createElement('canvas'), g = c.getContext('2d')
    c.width = i.naturalWidth
    c.height = i.naturalHeight
    g.drawImage(i, 0, 0)
    let d
    try { d = g.getImageData(0, 0, c.width, c.height).data } catch { continue }
    const at = (x, y) => [...d.slice(4*(y*c.width + x), 4*(y*c.width + x) + 4)]
    const corners = [at(1, 1), at(c.width - 2, 1), at(1, c.height - 2), at(c.width - 2, c.height - 2)]
    const solid = corners.filter(p => p[3] > 250).length == 4, name = i.getAttribute('src')
    if (solid && dark && lum(corners[0]) > .5) bad.push(`picture ${name} is a white slab on a dark page`)
    if (solid) continue
    const grey = new Map()   // opaque greys, of which writing and axes are drawn
    let opaque = 0
    for (let k = 0; k < d.length; k += 4) {
      opaque += d[k + 3] >= 250
      if (d[k + 3] < 250 || d[k] > 235 || Math.max(d[k], d[k + 1], d[k + 2]) - Math.min(d[k], d[k + 1], d[k + 2]) > 12) continue
      grey.set(d[k], (grey.get(d[k]) || 0) + 1)
    }
    if (opaque > .2*c.width*c.height) continue   // photographs, or areas of colour: no ink
    const [ink, n] = [...grey].sort((a, b) => b[1] - a[1])[0] || [0, 0]
    if (n > .002*c.width*c.height && ratio([ink, ink, ink], paper) < 4) bad.push(`ink of picture ${name} has a contrast of ${ratio([ink, ink, ink], paper).toFixed(1)}`)
  }
  return bad
}
