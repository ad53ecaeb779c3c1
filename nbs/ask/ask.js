// The page "Ask the student": pictures, teachers' votes, targets, and a student that runs here. No other host is asked.
(() => {
  const FOLDER = new URL('.', document.currentScript.src).href
  const COLORS = ['#C2649F', '#AD8600', '#2E93D6'], ANSWER = '#D55E00'   // of the site's figures
  const SHORT = {airplane: 'plane', automobile: 'car'}
  const KINDS = {branches: {one: 'branch', many: 'branches', label: 'EKD (branches)'},
                 heads: {one: 'head', many: 'heads', label: 'EKD (heads)'}}
  const SHOWN = 5   // classes on a narrow page
  const state = {student: 'branches', picture: 0, tau: 4, lam: .5, noise: 0}
  const students = {}
  let data, ui, own = null, votes = null, said = null, trained = {}

  // ---- numbers
  const softmax = (z, tau = 1) => {
    const top = Math.max(...z), e = z.map(v => Math.exp((v - top) / tau)), sum = e.reduce((a, b) => a + b)
    return e.map(v => v / sum)
  }
  const mean = rows => rows[0].map((_, i) => rows.reduce((sum, r) => sum + r[i], 0) / rows.length)
  const entropy = p => p.reduce((h, v) => v > 0 ? h - v * Math.log(v) : h, 0)
  const mutualInformation = ps => Math.max(0, entropy(mean(ps)) - ps.reduce((h, p) => h + entropy(p), 0) / ps.length)
  const largest = p => p.indexOf(Math.max(...p))
  const percent = p => p > .995 && p < 1 ? '>99' : p > 0 && p < .005 ? '<1' : `${Math.round(100 * p)}`
  const shortly = p => p < .005 ? '' : percent(p)   // beside a bar
  const round = (v, digits) => v.toFixed(digits)

  // mulberry32, twelve numbers of 16 bits for each nearly normal one; the votes were computed with the same
  const GRAIN = (() => {
    const out = new Float64Array(32 * 32 * 3)
    let a = 0
    for (let i = 0; i < out.length; i++) {
      let sum = 0
      for (let k = 0; k < 12; k++) {
        a = (a + 0x6D2B79F5) | 0
        let t = Math.imul(a ^ a >>> 15, 1 | a)
        t = t + Math.imul(t ^ t >>> 7, 61 | t) ^ t
        sum += (t ^ t >>> 14) >>> 16
      }
      out[i] = (sum - 12 * 32767.5) / 65536
    }
    return out
  })()
  const withNoise = (pixels, sigma) =>
    pixels.map((v, i) => Math.min(255, Math.max(0, Math.floor(v + sigma * GRAIN[i] + .5))))

  // bytes [32,32,3] -> normalised floats [3,32,32]
  const normalised = (pixels, {mean, std}) => {
    const out = new Float32Array(3 * 1024)
    for (let i = 0; i < 1024; i++)
      for (let c = 0; c < 3; c++) out[c * 1024 + i] = (pixels[3 * i + c] / 255 - mean[c]) / std[c]
    return out
  }
  const pixelsOf = picture => picture == 'own' ? own.pixels : data.pixels.subarray(picture * 3072, (picture + 1) * 3072)
  const votesFor = (picture, level) => {
    if (picture == 'own') return null
    const n = data.classes.length, t = data.teachers.length, at = (picture * data.noise.length + level) * t * n
    return data.teachers.map((_, i) => Array.from(data.votes.subarray(at + i * n, at + (i + 1) * n)))
  }
  const targets = (votes, tau, lam) => {
    const average = mean(votes)
    return votes.map(z => softmax(z.map((v, i) => lam * v + (1 - lam) * average[i]), tau))
  }

  // ---- the page
  const h = (tag, attrs = {}, ...inside) => {
    const e = tag == 'svg' || h.svg.has(tag) ? document.createElementNS('http://www.w3.org/2000/svg', tag)
                                             : document.createElement(tag)
    for (const [k, v] of Object.entries(attrs)) k.startsWith('on') ? e[k] = v : v === true ? e.setAttribute(k, '') :
      v === false || v == null || e.setAttribute(k, v)
    e.append(...inside.filter(o => o != null))
    return e
  }
  h.svg = new Set(['path', 'line', 'text', 'circle', 'g'])

  const name = c => SHORT[data.classes[c]] || data.classes[c]
  const a = word => `${/^[aeiou]/.test(word) ? 'an' : 'a'} ${word.replace(/_/g, ' ')}`

  const draw = (canvas, pixels) => {
    const image = new ImageData(32, 32)
    for (let i = 0; i < 1024; i++) image.data.set([pixels[3 * i], pixels[3 * i + 1], pixels[3 * i + 2], 255], 4 * i)
    canvas.getContext('2d').putImageData(image, 0, 0)
  }
  const pictureCanvas = cls => h('canvas', {width: 32, height: 32, class: cls, 'aria-hidden': 'true'})

  // A list of bars, one for each class, that `show` fills again and again
  const panel = (color, big) => {
    const head = h('p', {class: 'ask-top'})
    const rows = data.classes.map((_, c) => {
      const bar = h('i', {class: 'ask-bar'}), tick = h('i', {class: 'ask-tick', hidden: true}), value = h('span')
      const row = h('li', {}, h('span', {}, name(c)), h('b', {class: 'ask-track'}, bar, tick), value)
      return {row, bar, tick, value}
    })
    const list = h('ul', {class: 'ask-bars', 'aria-hidden': 'true'}, ...rows.map(r => r.row))
    const box = h('div', {class: big ? 'ask-panel ask-big' : 'ask-panel', role: 'group', style: `--c: ${color}`}, head, list)
    const show = (p, what, ticks) => {
      head.textContent = p ? `${name(largest(p))} ${percent(Math.max(...p))} %` : 'no votes'
      const ranked = p ? p.map((v, c) => [v, c]).sort((a, b) => b[0] - a[0]).slice(0, 3) : []
      box.setAttribute('aria-label', `${what}: ` + (ranked.map(([v, c]) => `${data.classes[c]} ${percent(v)} %`).join(', ') || 'none'))
      box.classList.toggle('ask-empty', !p)
      rows.forEach(({row, bar, tick, value}, c) => {
        const v = p ? p[c] : 0
        bar.style.width = `${100 * v}%`
        value.textContent = p ? shortly(v) : ''
        row.classList.toggle('ask-most', !!p && c == largest(p))
        tick.hidden = !ticks
        if (ticks) tick.style.left = `${100 * ticks[c]}%`
      })
    }
    const only = kept => rows.forEach(({row}, c) => row.classList.toggle('ask-minor', !kept.includes(c)))
    return {box, show, only}
  }

  // A half circle with a needle; the scale is a square root, so that small values can be told apart
  const gauge = (title, measure, most, marks) => {
    const at = (v, r) => {
      const angle = Math.PI * (1 - Math.sqrt(Math.min(v, most) / most))
      return [100 + r * Math.cos(angle), 96 - r * Math.sin(angle)]
    }
    const arc = (from, to, r) => `M${at(from, r).join(' ')} A${r} ${r} 0 0 1 ${at(to, r).join(' ')}`
    const usual = h('path', {class: 'ask-usual'}), value = h('p', {class: 'ask-value'}), rank = h('p', {class: 'ask-rank'})
    const needle = h('g', {class: 'ask-needle'}, h('line', {x1: 100, y1: 96, x2: 34, y2: 96}), h('circle', {cx: 100, cy: 96, r: 5}))
    const labels = marks.map(v => {
      const [x, y] = at(v, 92)
      return h('text', {x, y: y - 2, 'text-anchor': x < 70 ? 'end' : x > 130 ? 'start' : 'middle'}, `${v}`)
    })
    const dial = h('svg', {viewBox: '-10 -14 220 122', 'aria-hidden': 'true'},
                   h('path', {class: 'ask-arc', d: arc(0, most, 80)}), usual,
                   ...marks.map(v => { const [x1, y1] = at(v, 84), [x2, y2] = at(v, 88)
                                       return h('line', {class: 'ask-mark', x1, y1, x2, y2}) }), ...labels, needle)
    const show = (v, quantiles) => {
      const below = quantiles.filter(q => q <= v).length - 1, turn = 180 * Math.sqrt(Math.min(v, most) / most)
      needle.style.transform = `rotate(${turn}deg)`
      usual.setAttribute('d', arc(quantiles[25], quantiles[75], 80))
      value.textContent = `${measure} ${round(v, v < .1 ? 3 : 2)}`
      rank.textContent = below < 1 ? 'less than for nearly all test pictures' : below > 99 ? 'more than for any test picture' :
        `more than for ${below} % of test pictures`
      return below
    }
    return {box: h('div', {class: 'ask-gauge'}, h('h4', {}, title), dial, value, rank), show}
  }

  const slider = (text, min, max, step, value, said, onchange) => {
    const out = h('span', {class: 'ask-now', 'aria-hidden': 'true'}), input = h('input', {type: 'range', min, max, step, value, 'aria-label': text})
    const say = () => { out.textContent = said(+input.value); input.setAttribute('aria-valuetext', out.textContent) }
    input.oninput = () => { say(); onchange(+input.value) }
    say()
    return {box: h('label', {class: 'ask-slider'}, h('span', {}, text), out, input), say,
            set: v => { input.value = v; say() }}
  }

  const radios = (group, entries, onchange) => entries.map(([value, inside, about]) => {
    const input = h('input', {type: 'radio', name: group, value, 'aria-label': about, checked: `${state[group]}` == `${value}`})
    input.onchange = () => onchange(value)
    return h('label', {}, input, inside)
  })

  const thumb = (picture, i) => {
    const canvas = pictureCanvas('ask-thumb')
    draw(canvas, pixelsOf(i))
    return [i, canvas, picture.label.replace(/_/g, ' ')]
  }

  const build = root => {
    const choose = p => { state.picture = p; ask() }
    const thumbs = seen => radios('picture', data.pictures.map(thumb).filter(([i]) => data.pictures[i].seen == seen), choose)
    const file = h('input', {type: 'file', accept: 'image/*', id: 'ask-file'})
    file.onchange = () => file.files[0] && read(file.files[0])
    const ownThumb = h('span', {hidden: true}), note = h('p', {class: 'ask-note', role: 'status'})

    const shown = pictureCanvas('ask-picture'), caption = h('p', {class: 'ask-caption'})
    const verdict = h('p', {class: 'ask-verdict', 'aria-live': 'polite'}), answer = panel(ANSWER, true)
    const nBranches = data.teachers.length
    const doubt = gauge('Do they disagree?', 'Mutual information', Math.log(nBranches), [0, .05, .25, .6, 1.1])
    const unsure = gauge('Is it unsure?', 'Entropy', Math.log(data.classes.length), [0, .2, .7, 1.4, 2.3])
    const meaning = h('p', {class: 'ask-meaning'}), cost = h('p', {class: 'ask-cost'}), time = h('span')

    const columns = make => data.teachers.map((_, i) => make(COLORS[i % COLORS.length], i))
    const voted = columns(c => panel(c)), taught = columns(c => panel(c)), spoke = columns(c => panel(c))
    const titles = Object.fromEntries(['voted', 'taught', 'spoke'].map(k => [k, columns(() => h('h4'))]))
    const lane = (k, panels) => h('div', {class: 'ask-lane'}, ...panels.map((p, i) => h('div', {}, titles[k][i], p.box)))
    const tau = slider('Temperature τ', 1, 10, .5, state.tau, v => `${v}${v == trained.tau ? ', as trained' : ''}`, v => { state.tau = v; show() })
    const lam = slider('Own teacher λ', 0, 1, .05, state.lam, v => `${round(v, 2)}${v == trained.lam ? ', as trained' : ''}`, v => { state.lam = v; show() })
    const noise = slider('Noise', 0, data.noise.length - 1, 1, 0, v => v ? `σ = ${data.noise[v]} of 255` : 'none', v => { state.noise = v; ask() })
    const near = h('p', {class: 'ask-near', 'aria-live': 'polite'}), heading = h('h3'), legend = h('p', {class: 'ask-legend'})
    const votesNote = h('p', {class: 'ask-legend'})
    const back = h('button', {type: 'button', class: 'ask-button', onclick: () => {
      Object.assign(state, {tau: trained.tau, lam: trained.lam}); tau.set(state.tau); lam.set(state.lam); show() }}, 'As trained')

    root.replaceChildren(
      h('fieldset', {class: 'ask-pick'}, h('legend', {}, 'Pick a picture'),
        h('div', {class: 'ask-groups'},
          h('div', {}, h('p', {}, 'CIFAR-10: classes it learned'), h('div', {class: 'ask-thumbs'}, ...thumbs(true))),
          h('div', {}, h('p', {}, 'CIFAR-100: classes it never saw'), h('div', {class: 'ask-thumbs'}, ...thumbs(false)))),
        h('div', {class: 'ask-own'}, h('label', {class: 'ask-button', for: 'ask-file'}, 'Your own picture…'), file, ownThumb, note)),
      h('fieldset', {class: 'ask-switch'}, h('legend', {}, 'Which student?'),
        h('div', {class: 'ask-segments'}, ...radios('student', Object.entries(KINDS).map(([k, v]) => [k, h('span', {}, v.label), v.label]), change)),
        cost),
      h('div', {class: 'ask-stage'},
        h('div', {class: 'ask-look'}, shown, caption, noise.box),
        h('div', {class: 'ask-say'}, h('h3', {}, 'The student says'), verdict, answer.box,
          h('p', {class: 'ask-legend'}, 'The mean of its ', h('span', {class: 'ask-many'}), ', in %. ', time), meaning),
        h('div', {class: 'ask-doubt'}, doubt.box, unsure.box)),
      h('h3', {}, '1 · The teachers vote'), votesNote, lane('voted', voted),
      heading, h('div', {class: 'ask-sliders'}, tau.box, lam.box, back), near, lane('taught', taught), legend,
      h('h3', {}, '3 · What each ', h('span', {class: 'ask-one'}), ' says'), lane('spoke', spoke))
    root.hidden = false
    return {root, shown, caption, verdict, answer, doubt, unsure, meaning, cost, time, voted, taught, spoke, titles, tau, lam,
            near, heading, legend, votesNote, note, ownThumb, file, choose}
  }

  const status = text => {
    const e = document.getElementById('ask-status')
    e.textContent = text
    e.hidden = !text
  }
  const words = text => text.replace(/_/g, ' ')
  const check = (kind, value) => { const e = ui.root.querySelector(`input[name=${kind}][value="${value}"]`); if (e) e.checked = true }

  const truth = () => state.picture == 'own' ? null : data.pictures[state.picture]
  const judged = p => {
    const best = largest(p), t = truth(), word = data.classes[best]
    if (!t) return ['', `It takes your picture for ${a(word)}.`]
    if (!t.seen) return ['ask-unknown', `It says ${word}; no answer can be right, it knows no ${words(t.label)}.`]
    return word == t.label ? ['ask-right', `It says ${word}, which is right.`] : ['ask-wrong', `It says ${word}; it is ${a(t.label)}.`]
  }
  const interpreted = (disagree, unsure, kind, right) => {
    const high = q => q >= 75, many = kind.many
    if (high(disagree) && high(unsure)) return `Unsure, and the ${many} differ.`
    if (high(disagree)) return `The ${many} differ more than usual, though their mean is fairly sure.`
    if (high(unsure)) return `Unsure, but the ${many} agree on what it could be.`
    if (truth() && !truth().seen) return `Sure of itself, and wrong: it does not notice that this class is new.`
    return right === false ? `Sure, the ${many} agree, and it is wrong: no needle warns.` : `Sure, and the ${many} agree.`
  }

  const show = () => {
    const kind = KINDS[state.student], about = students[state.student].about, ps = said.map(z => softmax(z)), p = softmax(mean(said))
    const us = votes && targets(votes, state.tau, state.lam), vs = votes && votes.map(z => softmax(z)), soft = said.map(z => softmax(z, state.tau))
    ui.answer.show(p, 'the student')
    const [cls, text] = judged(p)
    ui.verdict.className = `ask-verdict ${cls}`
    ui.verdict.textContent = text
    const d = ui.doubt.show(mutualInformation(ps), about.quantiles.mutual_information), e = ui.unsure.show(entropy(p), about.quantiles.entropy)
    ui.meaning.textContent = interpreted(d, e, kind, truth() ? cls == 'ask-right' : null)
    data.teachers.forEach((t, i) => {
      ui.voted[i].show(vs && vs[i], `teacher ${t}`)
      ui.taught[i].show(us && us[i], `target of ${kind.one} ${i + 1}`, us && soft[i])
      ui.spoke[i].show(ps[i], `${kind.one} ${i + 1}`)
      ui.titles.voted[i].textContent = t
      ui.titles.taught[i].textContent = ui.titles.spoke[i].textContent = `${kind.one} ${i + 1}`
    })
    const score = data.classes.map((_, c) => Math.max(p[c], ...ps.map(o => o[c]), ...(vs || []).map(o => o[c])))
    const kept = score.map((v, c) => [v, c]).sort((a, b) => b[0] - a[0]).slice(0, SHOWN).map(o => o[1])
    for (const o of [...ui.voted, ...ui.taught, ...ui.spoke]) o.only(kept)
    ui.near.textContent = nearness(us, kind)
    for (const k of ['one', 'many']) ui.root.querySelectorAll(`.ask-${k}`).forEach(o => o.textContent = kind[k])
  }
  const nearness = (us, kind) => {
    if (!us) return `Without votes there is nothing to teach: the teachers are too large for this page.`
    const apart = 100 * Math.max(...us[0].map((_, c) => Math.max(...us.map(u => u[c])) - Math.min(...us.map(u => u[c]))))
    const amount = `The three targets differ by at most ${round(apart, 1)} points in any class`
    if (state.lam == 0) return `At λ = 0 every ${kind.one} is taught the same: the mean of the teachers.`
    const first = new Set(us.map(largest))
    if (apart < 3) return amount + ': nearly the same lesson for all.'
    return amount + (first.size == 1 ? `; all put ${name(largest(us[0]))} first.` : '; they do not put the same class first.')
  }

  // Run the student, then show everything
  const ask = () => {
    const pixels = withNoise(pixelsOf(state.picture), data.noise[state.noise]), start = performance.now()
    said = compute(state.student, pixels)
    ui.time.textContent = `Computed here in ${Math.max(1, Math.round(performance.now() - start))} ms.`
    votes = votesFor(state.picture, state.noise)
    draw(ui.shown, pixels)
    const t = truth()
    ui.caption.textContent = !t ? 'Your picture' : `${a(t.label)[0].toUpperCase()}${a(t.label).slice(1)}${t.seen ? '' : ', a class it never saw'}`
    ui.votesNote.textContent = votes ? 'Computed beforehand, for this picture with this noise.' : 'There are none for your own picture: the teachers are too large for this page.'
    show()
  }
  const compute = (student, pixels) => students[student].run(normalised(pixels, students[student].about))

  const change = async student => {
    try { await load(student) } catch (e) { check('student', state.student); return ui.note.textContent = failed(e) }
    state.student = student
    const {about} = students[student], kind = KINDS[student]
    trained = about.protocol
    const most = Math.max(...about.test.branch_accuracy)
    ui.cost.textContent = `${about.params.toLocaleString('en')} weights, ${round(about.flops / 1e6, 1)} million multiply-adds a picture; ` +
      `right on ${round(100 * about.test.accuracy, 1)} % of 10,000 test pictures (best ${kind.one} alone: ${round(100 * most, 1)} %).`
    ui.heading.textContent = `2 · What each ${kind.one} is taught`
    ui.legend.textContent = `Bars: the target, (λ · own teacher + (1 − λ) · mean of teachers) softened by τ. Lines: what the ${kind.one} says, softened by the same τ. ` +
      `The sliders change the target only; the student was trained with τ = ${trained.tau} and λ = ${trained.lam}.`
    ui.tau.say(); ui.lam.say()
    ask()
  }

  // A picture of the reader's own: the middle square, 32×32
  const read = async file => {
    let image
    try { image = await createImageBitmap(file) }
    catch (e) { return ui.note.textContent = `${file.name} is no picture that this browser can read; expected PNG, JPEG, WebP or GIF.` }
    const side = Math.min(image.width, image.height), same = image.width == 32 && image.height == 32
    own = {pixels: shrunk(image, side)}
    ui.note.textContent = same ? '' : `Your picture has ${image.width}×${image.height} pixels; the student sees ` +
      `${image.width == image.height ? 'it' : 'its middle square'} at 32×32.`
    const canvas = pictureCanvas('ask-thumb')
    draw(canvas, own.pixels)
    ui.ownThumb.className = 'ask-thumbs'
    ui.ownThumb.hidden = false
    ui.ownThumb.replaceChildren(...radios('picture', [['own', canvas, 'your own picture']], ui.choose))
    check('picture', 'own')
    ui.file.value = ''
    ui.choose('own')
  }
  const shrunk = (image, side) => {
    let from = image, [x, y] = [(image.width - side) / 2, (image.height - side) / 2]
    for (;;) {   // by halves, so that every pixel counts
      const to = side >= 64 ? Math.max(32, Math.floor(side / 2)) : 32, canvas = h('canvas', {width: to, height: to})
      const context = canvas.getContext('2d', {willReadFrequently: true})
      context.imageSmoothingQuality = 'high'
      context.fillStyle = '#fff'
      context.fillRect(0, 0, to, to)
      context.drawImage(from, x, y, side, side, 0, 0, to, to)
      if (to == 32) return context.getImageData(0, 0, 32, 32).data.filter((_, i) => i % 4 < 3);
      [from, x, y, side] = [canvas, 0, 0, to]
    }
  }

  const failed = e => `The student cannot answer here: ${e.message}${location.protocol == 'file:' ? ' (a page opened from disk may load no files; use a web server)' : ''}.`
  const load = async student => students[student] ||= await Network.load(`${FOLDER}${student}.json`)
  const start = async () => {
    const root = document.getElementById('ask')
    status('Loading the student, 0.4 MB…')
    try {
      const answer = await fetch(`${FOLDER}pictures.json`).catch(() => ({ok: false}))
      if (!answer.ok) throw new Error('ask/pictures.json could not be loaded')
      data = await answer.json()
      const packed = await fetch(`${FOLDER}pictures.bin`).catch(() => ({ok: false}))
      if (!packed.ok) throw new Error('ask/pictures.bin could not be loaded')
      const content = await packed.arrayBuffer(), end = data.pictures.length * 3072
      data.pixels = new Uint8Array(content, 0, end)
      data.votes = Network.floats(content.slice(end))
      await load(state.student)
    } catch (e) { return status(failed(e)) }
    trained = students[state.student].about.protocol
    Object.assign(state, {tau: trained.tau, lam: trained.lam})
    ui = build(root)
    await change(state.student)
    status('')
  }

  // for tests: logits of every branch for a picture with noise
  window.askStudent = {
    ready: new Promise(done => addEventListener('DOMContentLoaded', () => start().then(done))),
    logits: async (student, picture, level) => { await load(student); return compute(student, withNoise(pixelsOf(picture), data.noise[level])) },
  }
})()
