// inference/colorizer.py in the browser, for a network that maps L, and perhaps hints, to ab: what is around it.
// Names and numbers are those of that file, which says why each is as it is. A test compares the results.
//
// A stack is { channels, height, width, data }: float planes (C, h, w), one after the other. Pictures are
// RGBA of 8 bits, as a canvas gives them.

const LONG = 3; // long side / short side; what is longer is seen in parts
const MOST = 32; // times `size` px: the longest side that is seen

function makeStack(channels, height, width) {
  return { channels, height, width, data: new Float32Array(channels * height * width) };
}

/** Return [height, width] in px of the small picture that the network sees. */
function smallSize(size, height, width) {
  const short = Math.min(height, width);
  const long = Math.max(height, width);
  const most = long > LONG * short ? Math.max(2 * size, Math.min(long, MOST * size)) : 2 * size;
  const [part, whole] = size * long > most * short ? [most, long] : [size, short];
  return [height, width].map((side) => Math.max(1, Math.floor((2 * part * side + whole) / (2 * whole))));
}

function keys(d) { // Keys, 1981, eq. 15
  d = Math.abs(d);
  return d <= 1 ? (1.5 * d - 2.5) * d * d + 1 : d < 2 ? ((2.5 - 0.5 * d) * d - 4) * d + 2 : 0;
}

function triangle(d) {
  return Math.max(0, 1 - Math.abs(d));
}

/**
 * Return how a side of `length` px is filtered, antialiased, at `centers` (px): for each the first pixel that
 * counts, and `taps` weights. `scale`: px of the side per px of the result. The same as torch's and Pillow's.
 */
function filter(length, centers, scale, kernel, radius) {
  const wide = Math.max(1, scale);
  const taps = Math.ceil(2 * radius * wide) + 1;
  const first = new Int32Array(centers.length);
  const weights = new Float32Array(centers.length * taps);
  centers.forEach((center, i) => {
    first[i] = Math.max(0, Math.trunc(center - radius * wide + 0.5));
    const count = Math.min(length, Math.trunc(center + radius * wide + 0.5)) - first[i];
    let sum = 0;
    for (let j = 0; j < count; j++) sum += weights[i * taps + j] = kernel((first[i] + j + 0.5 - center) / wide);
    for (let j = 0; j < count; j++) weights[i * taps + j] /= sum;
    first[i] = Math.min(first[i], Math.max(0, length - 1));
  });
  return { taps, first, weights };
}

/** Return the filter that resizes a side from `length` to `target` px. */
function resizing(length, target, kernel = keys, radius = 2) {
  const scale = length / target;
  return filter(length, Array.from({ length: target }, (_, i) => (i + 0.5) * scale), scale, kernel, radius);
}

/** Filter one row: `length` numbers of `source` from `at` to as many of `target` from `to` as the filter makes. */
function filterRow(source, at, length, target, to, { taps, first, weights }) {
  for (let i = 0; i < first.length; i++) {
    const start = first[i];
    const end = Math.min(taps, length - start);
    let sum = 0;
    for (let j = 0, w = i * taps; j < end; j++) sum += source[at + start + j] * weights[w + j];
    target[to + i] = sum;
  }
}

function resizeRows(stack, height) {
  const { taps, first, weights } = resizing(stack.height, height);
  const { channels, width, data } = stack;
  const result = makeStack(channels, height, width);
  for (let c = 0; c < channels; c++) {
    for (let y = 0; y < height; y++) {
      const to = (c * height + y) * width;
      for (let j = 0; j < Math.min(taps, stack.height - first[y]); j++) {
        const weight = weights[y * taps + j];
        if (weight === 0) continue;
        const from = (c * stack.height + first[y] + j) * width;
        for (let x = 0; x < width; x++) result.data[to + x] += weight * data[from + x];
      }
    }
  }
  return result;
}

function resizeColumns(stack, width) {
  const how = resizing(stack.width, width);
  const result = makeStack(stack.channels, stack.height, width);
  for (let row = 0; row < stack.channels * stack.height; row++) {
    filterRow(stack.data, row * stack.width, stack.width, result.data, row * width, how);
  }
  return result;
}

/** Average blocks of `count` rows; the last may have fewer. */
function averageRows(stack, count) {
  const height = Math.ceil(stack.height / count);
  const { channels, width } = stack;
  const result = makeStack(channels, height, width);
  for (let c = 0; c < channels; c++) {
    for (let y = 0; y < stack.height; y++) {
      const to = (c * height + Math.floor(y / count)) * width;
      const from = (c * stack.height + y) * width;
      const rows = Math.min(count, stack.height - Math.floor(y / count) * count);
      for (let x = 0; x < width; x++) result.data[to + x] += stack.data[from + x] / rows;
    }
  }
  return result;
}

function luma(r, g, b) {
  return 0.299 * r + 0.587 * g + 0.114 * b;
}

function step(one, other) { // less what noise does
  return Math.max(0, Math.abs(one - other) - 0.03);
}

/** Reduces a picture that comes in strips of rows to what the network sees: its width first, then its height. */
class Shrinker {
  constructor(size, height, width) {
    [this.rows, this.columns] = smallSize(size, height, width);
    this.height = height;
    this.width = width;
    this.block = Math.max(1, Math.floor(width / (16 * this.columns))); // px that are averaged first
    this.blocks = this.block > 1 ? Math.ceil(width / this.block) : width;
    this.how = resizing(this.blocks, this.columns);
    this.narrow = makeStack(4, height, this.columns);
  }

  /** Take rows of RGBA, the first of which is row `top`. */
  add(rgba, top) {
    const { width, blocks, block, columns, height } = this;
    const row = new Float32Array(4 * blocks);
    for (let y = 0; y < rgba.length / (4 * width); y++) {
      row.fill(0);
      let before = 0;
      for (let x = 0, i = 4 * y * width; x < width; x++, i += 4) {
        const clear = rgba[i + 3] === 0; // what is wholly transparent is white
        const r = clear ? 1 : rgba[i] / 255;
        const g = clear ? 1 : rgba[i + 1] / 255;
        const b = clear ? 1 : rgba[i + 2] / 255;
        const gray = luma(r, g, b);
        const swing = x ? step(gray, before) : 0;
        before = gray;
        const to = block > 1 ? Math.floor(x / block) : x;
        const share = block > 1 ? 1 / Math.min(block, width - to * block) : 1;
        row[to] += r * share;
        row[blocks + to] += g * share;
        row[2 * blocks + to] += b * share;
        row[3 * blocks + to] += swing * share;
      }
      for (let c = 0; c < 4; c++) {
        filterRow(row, c * blocks, blocks, this.narrow.data, (c * height + top + y) * columns, this.how);
      }
    }
  }

  /** Return { small (3, h, w) in [0, 1], swing (1, h, w) }. */
  finish() {
    const { height, columns, rows } = this;
    const plane = height * columns;
    const data = this.narrow.data;
    for (let i = columns; i < plane; i++) {
      const j = i - columns;
      const now = luma(data[i], data[plane + i], data[2 * plane + i]);
      data[3 * plane + i] += step(now, luma(data[j], data[plane + j], data[2 * plane + j]));
    }
    const count = Math.floor(height / (16 * rows));
    const reduced = resizeRows(count > 1 ? averageRows(this.narrow, count) : this.narrow, rows);
    this.narrow = null;
    const area = rows * columns;
    const small = makeStack(3, rows, columns);
    const swing = makeStack(1, rows, columns);
    for (let i = 0; i < 3 * area; i++) small.data[i] = Math.min(1, Math.max(0, reduced.data[i]));
    for (let i = 0; i < area; i++) {
      swing.data[i] = (Math.max(0, reduced.data[3 * area + i]) * this.width) / columns;
    }
    return { small, swing };
  }
}

/** Return the lightness L/100 (1, h, w) of a small picture. */
function guideOf(small) {
  const guide = makeStack(1, small.height, small.width);
  const area = guide.data.length;
  const [r, g, b] = [0, 1, 2].map((c) => small.data.subarray(c * area, (c + 1) * area));
  for (let i = 0; i < area; i++) guide.data[i] = lightness(toLinear(r[i]), toLinear(g[i]), toLinear(b[i])) / 100;
  return guide;
}

/**
 * Return hints as the network sees them, (3, h, w): ab/110, and 1 where there is one.
 *
 * hints: { x, y, radius, color } in px of the picture; later ones lie above earlier ones. Only the rows that
 * they touch are drawn, so that a large picture costs no more than they cover.
 */
function encodeHints(hints, height, width, rows, columns) {
  const layer = makeStack(4, rows, columns);
  const [across, down] = [resizing(width, columns, triangle, 1), resizing(height, rows, triangle, 1)];
  const discs = hints.map(({ x, y, radius, color }) => ({ x, y, radius, rgb: fromHex(color) }));
  const spans = discs.map(({ x, y, radius }) => ({
    top: Math.max(0, Math.floor(y - radius)), bottom: Math.min(height, Math.ceil(y + radius) + 1),
    left: Math.max(0, Math.floor(x - radius)), right: Math.min(width, Math.ceil(x + radius) + 1),
  }));
  const touched = new Set(spans.flatMap(({ top, bottom }) => Array.from({ length: bottom - top }, (_, i) => top + i)));
  const area = rows * columns;
  for (const y of touched) {
    const row = new Float32Array(4 * width);
    discs.forEach((disc, n) => {
      const { top, bottom, left, right } = spans[n];
      if (y < top || y >= bottom) return;
      for (let x = left; x < right; x++) {
        const inside = Math.hypot(y - disc.y, x - disc.x) <= disc.radius;
        if (!inside && !(y === Math.floor(disc.y) && x === Math.floor(disc.x))) continue;
        disc.rgb.forEach((level, c) => (row[c * width + x] = level / 255));
        row[3 * width + x] = 1;
      }
    });
    const narrow = new Float32Array(4 * columns);
    for (let c = 0; c < 4; c++) filterRow(row, c * width, width, narrow, c * columns, across);
    const center = ((y + 0.5) * rows) / height;
    const reach = Math.max(1, height / rows) * (rows / height) + 1;
    const last = Math.min(rows - 1, Math.ceil(center + reach));
    for (let r = Math.max(0, Math.floor(center - reach)); r <= last; r++) {
      const tap = y - down.first[r];
      const weight = tap >= 0 && tap < down.taps ? down.weights[r * down.taps + tap] : 0;
      if (weight === 0) continue;
      for (let c = 0; c < 4; c++) {
        for (let x = 0; x < columns; x++) layer.data[c * area + r * columns + x] += weight * narrow[c * columns + x];
      }
    }
  }
  return decideHints(layer);
}

/** Return (3, h, w), ab/110 and where, of a reduced layer (4, h, w) of colour times cover, and cover. */
function decideHints({ height, width, data }) {
  const result = makeStack(3, height, width);
  const area = height * width;
  const cover = data.subarray(3 * area);
  for (let y = 0, i = 0; y < height; y++) {
    for (let x = 0; x < width; x++, i++) {
      if (cover[i] <= 0.001) continue;
      let most = 0;
      for (let r = Math.max(0, y - 1); r <= Math.min(height - 1, y + 1); r++) {
        for (let c = Math.max(0, x - 1); c <= Math.min(width - 1, x + 1); c++) {
          most = Math.max(most, cover[r * width + c]);
        }
      }
      if (cover[i] <= 0.45 * most) continue;
      const rgb = [0, 1, 2].map((c) => toLinear(Math.min(1, data[c * area + i] / cover[i])));
      const [, a, b] = toLab(...rgb);
      result.data[i] = Math.min(1, Math.max(-1, a / 110));
      result.data[area + i] = Math.min(1, Math.max(-1, b / 110));
      result.data[2 * area + i] = 1;
    }
  }
  return result;
}

/** Return indices that pad 0..length-1 on both sides by reflection to the next multiple, at least `least`. */
function mirror(length, multiple, least) {
  const total = Math.ceil(Math.max(length, least) / multiple) * multiple;
  const before = Math.floor((total - length) / 2);
  return Int32Array.from({ length: total }, (_, i) => {
    const at = (((i - before) % (2 * length)) + 2 * length) % (2 * length);
    return Math.min(at, 2 * length - 1 - at);
  });
}

/** Return the parts in which a side is seen: [{ start, length, share: Float32Array }]. */
function cutParts(length, size) {
  const part = 2 * size;
  if (length <= LONG * size) return [{ start: 0, length, share: new Float32Array(length).fill(1) }];
  const overlap = Math.max(1, part - Math.floor(size / 2) - 2);
  const count = Math.floor((length - part + overlap - 1) / overlap) + 1;
  const gap = (length - part) / (count - 1);
  return Array.from({ length: count }, (_, i) => ({
    start: Math.floor((i * (length - part)) / (count - 1)),
    length: part,
    share: Float32Array.from({ length }, (__, x) => {
      let off = x + 0.5 - (size + i * gap);
      if (i === 0) off = Math.max(0, off);
      if (i === count - 1) off = Math.min(0, off);
      return Math.min(1, Math.max(0, 0.5 + (gap / 2 - Math.abs(off)) / Math.max(1, Math.floor(size / 2))));
    }),
  }));
}

/**
 * Run the network on x (C, h, w); returns { y (2, h, w), shares }.
 *
 * run: async (Float32Array, [1, C, h, w]) -> { y, logits }, on sides that are multiples of model.multiple px.
 * shares: what `likelyColors` needs of each part, where the network says how likely each colour is.
 */
async function predict(x, model, run) {
  const y = makeStack(2, x.height, x.width);
  const down = x.height > x.width;
  const shares = [];
  for (const part of cutParts(down ? x.height : x.width, model.size)) {
    const rows = mirror(down ? part.length : x.height, model.multiple, model.least);
    const columns = mirror(down ? x.width : part.length, model.multiple, model.least);
    const [top, left] = down ? [part.start, 0] : [0, part.start];
    const given = makeStack(x.channels, rows.length, columns.length);
    let to = 0;
    for (let c = 0; c < x.channels; c++) {
      for (const r of rows) {
        const from = (c * x.height + top + r) * x.width + left;
        for (const column of columns) given.data[to++] = x.data[from + column];
      }
    }
    const found = await run(given.data, [1, x.channels, rows.length, columns.length]);
    const [height, width] = down ? [part.length, x.width] : [x.height, part.length];
    const pad = [(rows.length - height) >> 1, (columns.length - width) >> 1];
    if (found.logits) shares.push({ top, left, height, width, pad, columns: columns.length, logits: found.logits });
    for (let c = 0; c < 2; c++) {
      for (let r = 0; r < height; r++) {
        const from = (c * rows.length + pad[0] + r) * columns.length + pad[1];
        const at = (c * x.height + top + r) * x.width + left;
        for (let i = 0; i < width; i++) {
          y.data[at + i] += found.y[from + i] * part.share[part.start + (down ? r : i)];
        }
      }
    }
  }
  return { y, shares };
}

const BIN_SIDE = 16; // models.py: AB_SIDE, AB_STEP and AB_FIRST
const BIN_STEP = 12;
const BIN_FIRST = [-84, -96];

/** Return up to `count` likely and different colours [a, b] at a place of the small picture, the likeliest first. */
function likelyColors(shares, row, column, count = 6) {
  const part = shares.find(
    ({ top, left, height, width }) => row >= top && row < top + height && column >= left && column < left + width,
  );
  if (!part) return [];
  const width = part.columns >> 2; // the network answers at a quarter of the size
  const cells = part.logits.length / BIN_SIDE ** 2;
  const at = ((part.pad[0] + row - part.top) >> 2) * width + ((part.pad[1] + column - part.left) >> 2);
  const odds = Float32Array.from({ length: BIN_SIDE ** 2 }, (_, bin) => part.logits[bin * cells + at]);
  const found = [];
  for (const bin of [...odds.keys()].sort((one, other) => odds[other] - odds[one])) {
    const a = BIN_FIRST[0] + BIN_STEP * Math.floor(bin / BIN_SIDE);
    const b = BIN_FIRST[1] + BIN_STEP * (bin % BIN_SIDE);
    if (found.every((other) => Math.hypot(a - other[0], b - other[1]) > 1.5 * BIN_STEP)) found.push([a, b]);
    if (found.length === count) break;
  }
  return found;
}

/** Average windows of 3 x 3 px; at the edges, of what there is. */
function average3({ channels, height, width, data }) {
  const result = makeStack(channels, height, width);
  const sums = new Float64Array(width + 2); // of three rows, with a zero on both sides
  for (let row = 0; row < channels * height; row++) {
    const y = row % height;
    const [first, last] = [y > 0 ? row - 1 : row, y < height - 1 ? row + 1 : row];
    sums.fill(0);
    for (let r = first; r <= last; r++) {
      for (let x = 0; x < width; x++) sums[x + 1] += data[r * width + x];
    }
    for (let x = 0; x < width; x++) {
      const count = (last - first + 1) * (1 + (x > 0) + (x < width - 1));
      result.data[row * width + x] = (sums[x] + sums[x + 1] + sums[x + 2]) / count;
    }
  }
  return result;
}

/** Return (1, h, w): 1 where luma moves on, as at an edge, and near 0 where it swings, as in screentone. */
function steadiness(small, swing) {
  const { height, width } = small;
  const area = height * width;
  const gray = new Float32Array(area);
  for (let i = 0; i < area; i++) gray[i] = luma(small.data[i], small.data[area + i], small.data[2 * area + i]);
  const both = makeStack(2, height, width);
  both.data.set(swing.data, area);
  for (let y = 0, i = 0; y < height; y++) {
    for (let x = 0; x < width; x++, i++) {
      const row = y * width;
      const across = gray[row + Math.min(width - 1, x + 1)] - gray[row + Math.max(0, x - 1)];
      const down = gray[Math.min(height - 1, y + 1) * width + x] - gray[Math.max(0, y - 1) * width + x];
      both.data[i] = (Math.abs(across) + Math.abs(down)) / 2;
    }
  }
  const mean = average3(both).data;
  const steady = makeStack(1, height, width);
  for (let i = 0; i < area; i++) steady.data[i] = Math.min(1, (2 * (mean[i] + 0.02)) / (mean[area + i] + 0.02));
  return steady;
}

/** Return how much the two planes of a stack change per unit of the guide, around each pixel: (2, h, w). */
function localGain(guide, planes) {
  const { height, width } = guide;
  const area = height * width;
  const moments = makeStack(7, height, width); // g, a, b, gg, ga, gb, aa + bb
  const m = moments.data;
  for (let i = 0; i < area; i++) {
    const [g, a, b] = [guide.data[i], planes.data[i], planes.data[area + i]];
    m[i] = g;
    m[area + i] = a;
    m[2 * area + i] = b;
    m[3 * area + i] = g * g;
    m[4 * area + i] = g * a;
    m[5 * area + i] = g * b;
    m[6 * area + i] = a * a + b * b;
  }
  const mean = average3(moments).data;
  const gain = makeStack(2, height, width);
  for (let i = 0; i < area; i++) {
    const [g, a, b] = [mean[i], mean[area + i], mean[2 * area + i]];
    const variance = Math.max(0, mean[3 * area + i] - g * g);
    const [ga, gb] = [mean[4 * area + i] - g * a, mean[5 * area + i] - g * b];
    const variances = Math.max(0, mean[6 * area + i] - a * a - b * b);
    const fit = Math.min(1, (ga * ga + gb * gb) / Math.max(1e-12, variance * variances)) ** 2;
    gain.data[i] = (ga / (variance + 0.0016)) * fit;
    gain.data[area + i] = (gb / (variance + 0.0016)) * fit;
  }
  return average3(gain);
}

/** Turn a prediction y (2, h, w) into maps (5, rows, columns): colours ab/110, their gain per unit of L/100, L/100. */
function prepareMaps(small, swing, guide, y, rows, columns) {
  const { height, width } = small;
  const area = height * width;
  const packed = makeStack(4, height, width); // a, b, guide, steady
  packed.data.set(y.data);
  packed.data.set(guide.data, 2 * area);
  packed.data.set(steadiness(small, swing).data, 3 * area);
  const resized = rows === height && columns === width ? packed : resizeRows(resizeColumns(packed, columns), rows);
  const plane = rows * columns;
  const pick = (from, channels) => ({
    channels, height: rows, width: columns, data: resized.data.subarray(from * plane, (from + channels) * plane),
  });
  const gain = localGain(pick(2, 1), pick(0, 2));
  const maps = makeStack(5, rows, columns);
  maps.data.set(pick(0, 2).data);
  for (let i = 0; i < 2 * plane; i++) {
    maps.data[2 * plane + i] = gain.data[i] * Math.min(1, Math.max(0, resized.data[3 * plane + (i % plane)]));
  }
  maps.data.set(pick(2, 1).data, 4 * plane);
  return maps;
}

/**
 * Colour RGBA pixels in place. They show `region` { x, y, width, height } of a picture of `size`
 * { width, height } px, to which the maps belong; at its full size, the result is what Colorizer gives.
 */
function colorPixels(rgba, rows, columns, maps, region, size, strength) {
  const { height, width } = maps;
  const [scaleX, scaleY] = [width / size.width, height / size.height];
  const centers = Array.from({ length: columns }, (_, i) => (region.x + ((i + 0.5) * region.width) / columns) * scaleX);
  const across = filter(width, centers, scaleX, keys, 2);
  const narrow = new Float32Array(5 * width);
  const wide = new Float32Array(5 * columns);
  for (let row = 0; row < rows; row++) {
    const y = (region.y + ((row + 0.5) * region.height) / rows) * scaleY - 0.5;
    const first = Math.floor(y) - 1;
    narrow.fill(0);
    for (let tap = first; tap < first + 4; tap++) {
      const weight = keys(y - tap);
      const from = Math.min(height - 1, Math.max(0, tap)) * width;
      for (let c = 0; c < 5; c++) {
        for (let x = 0; x < width; x++) narrow[c * width + x] += weight * maps.data[c * height * width + from + x];
      }
    }
    for (let c = 0; c < 5; c++) filterRow(narrow, c * width, width, wide, c * columns, across);
    for (let x = 0, i = 4 * row * columns; x < columns; x++, i += 4) {
      if (rgba[i + 3] === 0) rgba[i] = rgba[i + 1] = rgba[i + 2] = 255;
      const L = lightness(LINEAR[rgba[i]], LINEAR[rgba[i + 1]], LINEAR[rgba[i + 2]]);
      const off = L / 100 - wide[4 * columns + x];
      const a = 110 * strength * (wide[x] + wide[2 * columns + x] * off);
      const b = 110 * strength * (wide[columns + x] + wide[3 * columns + x] * off);
      writeRgb(L, a, b, rgba, i);
    }
  }
}
