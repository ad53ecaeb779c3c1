// Runs a network that ekd_nb.browser wrote: a list of operations (JSON) and 16-bit weights (.bin). Needs no library.
//
//   const student = await Network.load('ask/branches.json')
//   student.run(image)   // Float32Array [channels*height*width], normalised -> an array of logits for each branch
const Network = (() => {
  const fetched = async url => {
    const answer = await fetch(url).catch(() => ({ok: false}))
    if (!answer.ok) throw new Error(`${url.split('/').slice(-2).join('/')} could not be loaded`)
    return answer
  }

  // 16-bit floats, lowest byte first, as 32-bit floats
  const floats = bytes => {
    const halves = new Uint16Array(bytes), out = new Float32Array(halves.length)
    for (let i = 0; i < out.length; i++) {
      const h = halves[i], e = h >> 10 & 31, m = h & 1023
      out[i] = (h >> 15 ? -1 : 1) * (e ? 2 ** (e - 15) * (1 + m / 1024) : 2 ** -24 * m)
    }
    return out
  }

  // A map of zeros all around; every convolution then reads without looking for the edge
  const padded = ({data, c, h, w}, pad) => {
    if (!pad) return data
    const wide = w + 2 * pad, size = (h + 2 * pad) * wide, out = new Float32Array(c * size)
    for (let i = 0; i < c; i++)
      for (let y = 0; y < h; y++)
        out.set(data.subarray((i * h + y) * w, (i * h + y + 1) * w), i * size + (y + pad) * wide + pad)
    return out
  }

  const conv = ({n_in, n_out, k, stride, pad, at}, weights, x) => {
    const src = padded(x, pad), W = x.w + 2 * pad, H = x.h + 2 * pad, area = k * k
    const h = Math.floor((H - k) / stride) + 1, w = Math.floor((W - k) / stride) + 1
    const data = new Float32Array(n_out * h * w), biases = at + n_out * n_in * area
    for (let o = 0; o < n_out; o++) {
      const out = data.subarray(o * h * w, (o + 1) * h * w).fill(weights[biases + o])
      for (let i = 0; i < n_in; i++) {
        const map = src.subarray(i * H * W, (i + 1) * H * W), a = at + (o * n_in + i) * area
        if (k == 3) taps9(out, map, weights, a, h, w, W, stride)
        else for (let t = 0; t < area; t++) tap(out, map, weights[a + t], Math.floor(t / k) * W + t % k, h, w, W, stride)
      }
    }
    return {data, c: n_out, h, w}
  }

  const tap = (out, map, weight, from, h, w, W, stride) => {
    for (let y = 0, q = 0; y < h; y++)
      for (let x = 0, p = from + y * stride * W; x < w; x++, p += stride) out[q++] += weight * map[p]
  }

  const taps9 = (out, map, ws, a, h, w, W, stride) => {
    const w0 = ws[a], w1 = ws[a + 1], w2 = ws[a + 2], w3 = ws[a + 3], w4 = ws[a + 4], w5 = ws[a + 5]
    const w6 = ws[a + 6], w7 = ws[a + 7], w8 = ws[a + 8]
    for (let y = 0, q = 0; y < h; y++) {
      let p = y * stride * W, r = p + W, s = r + W
      for (let x = 0; x < w; x++, p += stride, r += stride, s += stride)
        out[q++] += w0 * map[p] + w1 * map[p + 1] + w2 * map[p + 2] + w3 * map[r] + w4 * map[r + 1] + w5 * map[r + 2] +
                    w6 * map[s] + w7 * map[s + 1] + w8 * map[s + 2]
    }
  }

  const widen = ({extra, stride}, x) => {
    const h = Math.ceil(x.h / stride), w = Math.ceil(x.w / stride), data = new Float32Array((x.c + extra) * h * w)
    for (let i = 0, q = 0; i < x.c; i++)
      for (let y = 0; y < x.h; y += stride)
        for (let k = 0; k < x.w; k += stride) data[q++] = x.data[(i * x.h + y) * x.w + k]
    return {data, c: x.c + extra, h, w}
  }

  const pool = x => {
    const data = new Float32Array(x.c), area = x.h * x.w
    for (let i = 0; i < x.c; i++) {
      let sum = 0
      for (let k = 0; k < area; k++) sum += x.data[i * area + k]
      data[i] = sum / area
    }
    return {data, c: x.c, h: 1, w: 1}
  }

  const linear = ({n_in, n_out, at}, weights, x) => {
    const data = new Float32Array(n_out)
    for (let o = 0; o < n_out; o++) {
      let sum = weights[at + n_out * n_in + o]
      for (let i = 0; i < n_in; i++) sum += weights[at + o * n_in + i] * x.data[i]
      data[o] = sum
    }
    return {data, c: n_out, h: 1, w: 1}
  }

  const OPERATIONS = {
    conv, linear,
    relu: (op, ws, x) => ({...x, data: x.data.map(v => v > 0 ? v : 0)}),
    add: (op, ws, x, z) => ({...x, data: x.data.map((v, i) => v + z.data[i])}),
    widen: (op, ws, x) => widen(op, x),
    pool: (op, ws, x) => pool(x),
    keep: (op, ws, x) => x,
  }

  class Network {
    constructor(about, weights) { this.about = about; this.weights = weights }

    static async load(url) {
      const about = await (await fetched(url)).json()
      const file = url.replace(/json$/, 'bin'), weights = floats(await (await fetched(file)).arrayBuffer())
      if (weights.length != about.n_weights)
        throw new Error(`${file.split('/').slice(-2).join('/')} holds ${weights.length} weights instead of ${about.n_weights}`)
      return new Network(about, weights)
    }

    run(image) {
      const [c, h, w] = this.about.size, values = {0: {data: image, c, h, w}}
      for (const op of this.about.ops) values[op.y] = OPERATIONS[op.op](op, this.weights, ...op.x.map(i => values[i]))
      return this.about.branches.map(i => Array.from(values[i].data))
    }
  }
  Network.floats = floats
  return Network
})()
