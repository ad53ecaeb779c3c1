// Runs inside a page; returns texts whose contrast with what is behind them is below 4.5.
() => {
  const parse = c => { const v = c.match(/[\d.]+/g).map(Number); return v.length < 4 ? [...v, 1] : v }
  const lum = c => { const f = v => (v /= 255) <= .03928 ? v/12.92 : ((v + .055)/1.055)**2.4; return .2126*f(c[0]) + .7152*f(c[1]) + .0722*f(c[2]) }
  const over = (a, b) => [0, 1, 2].map(i => a[i]*a[3] + b[i]*(1 - a[3])).concat(1)
  const behind = e => {
    const stack = []
    for (; e; e = e.parentElement) { const c = parse(getComputedStyle(e).backgroundColor); stack.push(c); if (c[3] == 1) break }
    return stack.reverse().reduce((below, c) => over(c, below), [255, 255, 255, 1])
  }
  const bad = new Map(), walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT)
  for (let n; n = walk.nextNode();) {
    const e = n.parentElement
    if (!n.textContent.trim() || e.closest('script, style') || !e.getClientRects().length) continue
    const bg = behind(e), fg = over(parse(getComputedStyle(e).color), bg), [a, b] = [lum(fg), lum(bg)].sort((x, y) => y - x)
    const ratio = (a + .05)/(b + .05)
    if (ratio < 4.5) bad.set(e.tagName + '.' + e.className, `contrast ${ratio.toFixed(1)} of <${e.tagName.toLowerCase()} class="${e.className}">: ${n.textContent.trim().slice(0, 40)}`)
  }
  return [...bad.values()]
}
