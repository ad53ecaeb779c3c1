// Runs inside a page; returns what a reader would stumble over.
() => {
  const bad = [], main = document.querySelector('main')
  if (!main) return {bad: ['has no main part'], words: 0, ids: [], links: []}
  const short = s => s.trim().replace(/\s+/g, ' ').slice(0, 60)
  for (const i of document.images) {
    if (!i.complete || !i.naturalWidth) bad.push(`picture ${i.getAttribute('src')} did not load`)
    if (i.naturalWidth > 1.4*i.clientWidth && i.clientWidth) bad.push(`picture ${i.getAttribute('src')} is ${i.naturalWidth} px wide and shown at ${i.clientWidth}: what is written in it is too small`)
    if (!(i.getAttribute('alt') || '').trim()) bad.push(`picture ${i.getAttribute('src')} has no alternative text`)
  }
  for (const m of document.querySelectorAll('math')) {
    if (m.closest('.collapse:not(.show)')) continue   // folded by Quarto
    const b = m.getBoundingClientRect()
    if (!b.width || !b.height || m.querySelector('merror')) bad.push(`equation is not drawn: ${short(m.textContent)}`)
  }
  document.querySelectorAll('span.math').forEach(m => bad.push(`equation is left as TeX: ${short(m.textContent)}`))
  for (const n of document.querySelectorAll('nav')) if (!n.getAttribute('aria-label')) bad.push(`navigation without a name: ${short(n.textContent)}`)
  for (const t of document.querySelectorAll('main th')) if (!t.scope) bad.push(`heading of a table without scope: ${short(t.textContent)}`)
  const raw = /:::|\\\(|\\\[|\$\$|\[?@(fig|tbl|eq|sec)-|#\||\?@|\]\(\S*\)|\{\.\w|`/
  const walk = document.createTreeWalker(main, NodeFilter.SHOW_TEXT)
  for (let n; n = walk.nextNode();) {
    const p = n.parentElement
    if (p.closest('code, pre, math, script, style, .cell-output')) continue
    const m = n.textContent.match(raw)
    if (m) bad.push(`raw markup ${m[0]} in “${short(n.textContent)}”`)
  }
  document.querySelectorAll('.output').forEach(p => { if (/^\s*(:::|#\|)/m.test(p.textContent)) bad.push(`raw markup in an output: ${short(p.textContent)}`) })
  document.querySelectorAll('code.sourceCode.html').forEach(c => { if (/^\s*<(div|table|style)\b/.test(c.textContent)) bad.push(`an output is shown as HTML source: ${short(c.textContent)}`) })
  const ids = [...document.body.querySelectorAll('[id]')].map(e => e.id)
  const terms = [...document.querySelectorAll('a.term')].map(a => a.getAttribute('href'))
  terms.filter((x, k) => terms.indexOf(x) != k).forEach(x => bad.push(`the glossary's ${x} is linked twice`))
  ids.filter((x, k) => ids.indexOf(x) != k).forEach(x => bad.push(`anchor #${x} is there twice`))
  const code = main.querySelector('pre'), after = Node.DOCUMENT_POSITION_FOLLOWING | Node.DOCUMENT_POSITION_CONTAINED_BY
  const texts = document.createTreeWalker(main, NodeFilter.SHOW_TEXT)
  let words = 0
  for (let t; (t = texts.nextNode()) && !(code && code.compareDocumentPosition(t) & after);)
    if (!t.parentElement.closest('script, style, .actions, header, h1, .description')) words += (t.textContent.match(/[\p{L}\p{N}][^\s]*/gu) || []).length
  return {bad, words, ids, links: [...document.querySelectorAll('a[href]')].map(a => a.href), title: document.title}
}
