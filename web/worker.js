// The page's worker: it decodes pictures, runs the network and colours, so that the page never waits.
// ONNX Runtime is loaded before this file, as `ort`. A message { id, name, given } is answered by { id, result }
// or { id, error }, one after the other.

const MAX_PIXELS = 100e6;
const KEPT = 6; // pictures that are kept as the network sees them; others are read again when they are needed
const MAX_SIDE = 32767; // px of a canvas
const STRIP = 2 ** 20; // px that are read from a canvas at a time

let model = null; // what the page knows of the network: size, draft, multiple, least, hints
let session = null;
const kept = new Map(); // key -> what `open` found, the most recently used last
let decoded = { key: null, bitmap: null }; // of one picture, as it is large
const shown = new Map(); // what was looked at last, as it was: pixels of a draft, and of the exact look

/** A sentence for the person at the page. */
class PageError extends Error {}

async function inflate(base64) {
  const stream = new DecompressionStream("gzip");
  const writer = stream.writable.getWriter();
  writer.write(Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0)));
  writer.close();
  return new Uint8Array(await new Response(stream.readable).arrayBuffer());
}

/** Return pixels of a part of a picture, { x, y, width, height }, drawn on `columns` x `rows` px. */
function readPixels(bitmap, { x, y, width, height }, columns, rows) {
  const context = new OffscreenCanvas(columns, rows).getContext("2d", { willReadFrequently: true });
  if (!context) throw new PageError("There is not enough memory for this picture.");
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, x, y, width, height, 0, 0, columns, rows);
  return context.getImageData(0, 0, columns, rows);
}

/** Call `use` with strips of a picture at its full size: pixels, and their first row. */
function eachStrip(bitmap, use) {
  const rows = Math.max(1, Math.floor(STRIP / bitmap.width));
  for (let top = 0; top < bitmap.height; top += rows) {
    const height = Math.min(rows, bitmap.height - top);
    use(readPixels(bitmap, { x: 0, y: top, width: bitmap.width, height }, bitmap.width, height), top);
  }
}

async function decode({ key, file }) {
  if (decoded.key === key) return decoded.bitmap;
  decoded.bitmap?.close();
  decoded = { key: null, bitmap: null };
  const bitmap = await createImageBitmap(file).catch(async () => {
    await file.stream().getReader().read().catch(() => {
      throw new PageError("The file has been changed or removed: open it again.");
    });
    throw new PageError("This is no picture that the browser can read, or it is damaged or too large.");
  });
  if (bitmap.width * bitmap.height > MAX_PIXELS) {
    bitmap.close();
    throw new PageError("It has more than 100 megapixels, too many for a browser; colorize.py takes it.");
  }
  decoded = { key, bitmap };
  return bitmap;
}

/** Return a picture as the network sees it; from memory where it was among the last ones. */
async function open(picture) {
  let found = kept.get(picture.key);
  if (!found) {
    const bitmap = await decode(picture);
    const shrinker = new Shrinker(model.size, bitmap.height, bitmap.width);
    eachStrip(bitmap, (pixels, top) => shrinker.add(pixels.data, top));
    const size = { width: bitmap.width, height: bitmap.height };
    found = { size, ...shrinker.finish(), colored: null, drafted: null, suggested: null };
    found.guide = guideOf(found.small);
  }
  kept.delete(picture.key);
  kept.set(picture.key, found);
  if (kept.size > KEPT) kept.delete(kept.keys().next().value);
  return found;
}

/** Return pixels of a part of a picture as readPixels does; those that were looked at last are kept. */
async function readShown(picture, region, columns, rows) {
  const wanted = JSON.stringify([picture.key, region, columns, rows]);
  if (!shown.has(wanted)) {
    if (shown.size > 1) shown.delete(shown.keys().next().value);
    shown.set(wanted, readPixels(await decode(picture), region, columns, rows));
  }
  return new ImageData(shown.get(wanted).data.slice(), columns, rows);
}

async function run(data, shape) {
  const tensor = new ort.Tensor("float32", data, shape);
  const found = await session.run({ x: tensor });
  return { y: found.y.data, logits: found.logits?.data };
}

/** Return { y, shares } that the network predicts for a picture with hints, seen at a size of its own or a smaller one. */
async function look({ guide, size }, hints, config) {
  const [rows, columns] = smallSize(config.size, size.height, size.width);
  const isOwn = rows === guide.height && columns === guide.width;
  const seen = isOwn ? guide : resizeRows(resizeColumns(guide, columns), rows);
  const area = rows * columns;
  const x = makeStack(config.hints ? 4 : 1, rows, columns);
  for (let i = 0; i < area; i++) x.data[i] = 2 * seen.data[i] - 1;
  if (config.hints) x.data.set(encodeHints(hints, size.height, size.width, rows, columns).data, area);
  return predict(x, config, run);
}

/** Return the maps of a picture whose prediction is y; where there is a hint, it is the answer. */
function mapsOf({ small, swing, guide, size }, y, hints) {
  const area = small.height * small.width;
  const given = encodeHints(hints, size.height, size.width, small.height, small.width).data;
  const decided = { ...y, data: y.data.slice() };
  for (let i = 0; i < area; i++) {
    if (!given[2 * area + i]) continue;
    decided.data[i] = given[i];
    decided.data[area + i] = given[area + i];
  }
  return prepareMaps(small, swing, guide, decided, Math.min(size.height, small.height), Math.min(size.width, small.width));
}

/** Return a picture's maps, predicted for its hints. */
async function colour(found, { hints }) {
  const wanted = JSON.stringify(hints);
  if (found.colored?.wanted !== wanted) {
    const { y, shares } = await look(found, hints, model);
    found.colored = { wanted, hints, y, shares, maps: mapsOf(found, y, hints) };
    found.drafted = null;
  }
  return found.colored.maps;
}

/** See a picture, as it was coloured last, in the size of a draft too. */
async function prepare(found) {
  found.drafted ??= (await look(found, found.colored.hints, { ...model, size: model.draft })).y;
  return found.drafted;
}

/** Return a picture's maps for its hints, soon: what it was coloured with last, and what its draft has changed since. */
async function draft(found, { hints }) {
  if (!found.colored || found.colored.wanted === JSON.stringify(hints)) return colour(found, { hints });
  const before = await prepare(found);
  const { y } = await look(found, hints, { ...model, size: model.draft });
  // a spot reaches further in a smaller copy, so its change counts less: 0.81 and 0.86 of it (1 and 5 spots) fit best at half the size
  const share = 0.5 + (0.5 * model.draft) / model.size;
  for (let i = 0; i < y.data.length; i++) y.data[i] = share * (y.data[i] - before.data[i]);
  const changed = resizeRows(resizeColumns(y, found.small.width), found.small.height);
  for (let i = 0; i < changed.data.length; i++) changed.data[i] += found.colored.y.data[i];
  return mapsOf(found, changed, hints);
}

const CALLS = {
  async start({ config, loader, wasm, network }) {
    model = config;
    ort.env.wasm.numThreads = 1; // more need a server that sends two headers
    const link = URL.createObjectURL(new Blob([loader], { type: "text/javascript" }));
    ort.env.wasm.wasmPaths = { mjs: link };
    ort.env.wasm.wasmBinary = await inflate(wasm);
    ort.env.logLevel = "error";
    session = await ort.InferenceSession.create(await inflate(network), { executionProviders: ["wasm"] });
  },

  /** Return the picture's size. */
  async open({ picture }) {
    return (await open(picture)).size;
  },

  /** Return { before, after }: a part of the picture as it was and coloured, on `columns` x `rows` px. */
  async view({ picture, region, columns, rows, hasty }) {
    const found = await open(picture);
    const maps = await (hasty ? draft : colour)(found, picture);
    const pixels = await readShown(picture, region, columns, rows);
    const before = await createImageBitmap(pixels);
    colorPixels(pixels.data, rows, columns, maps, region, found.size, picture.strength);
    return { before, after: await createImageBitmap(pixels) };
  },

  /** Make what the next hasty view of a picture needs. */
  async prepare({ picture }) {
    const found = await open(picture);
    await colour(found, picture);
    await prepare(found);
  },

  /** Return likely colours [r, g, b] at a place of the picture, at the lightness that it has there. */
  async suggest({ picture, x, y }) {
    const found = await open(picture);
    const { small, size, guide } = found;
    const wanted = JSON.stringify(picture.hints);
    const known = [found.colored, found.suggested].find((one) => one?.wanted === wanted);
    const { shares } = known ?? (await look(found, picture.hints, model));
    found.suggested = { wanted, shares };
    const row = Math.min(small.height - 1, Math.floor((y * small.height) / size.height));
    const column = Math.min(small.width - 1, Math.floor((x * small.width) / size.width));
    const L = 100 * guide.data[row * small.width + column];
    return likelyColors(shares, row, column).map(([a, b]) => rgbOf(L, a, b));
  },

  /** Return the coloured picture at its full size, as a file of a type. */
  async save({ picture, type }) {
    const found = await open(picture);
    const { size } = found;
    const maps = await colour(found, picture);
    if (Math.max(size.width, size.height) > MAX_SIDE) {
      throw new PageError("It has a side of more than 32,767 px, too long for a browser to save; colorize.py takes it.");
    }
    const bitmap = await decode(picture);
    const canvas = new OffscreenCanvas(size.width, size.height);
    const context = canvas.getContext("2d");
    if (!context) throw new PageError("There is not enough memory for a picture of this size.");
    eachStrip(bitmap, (pixels, top) => {
      const region = { x: 0, y: top, width: size.width, height: pixels.height };
      colorPixels(pixels.data, pixels.height, size.width, maps, region, size, picture.strength);
      context.putImageData(pixels, 0, top);
    });
    if (type === "image/jpeg") { // what is transparent becomes white, as in Python
      context.globalCompositeOperation = "destination-over";
      context.fillStyle = "#fff";
      context.fillRect(0, 0, size.width, size.height);
    }
    return canvas.convertToBlob({ type, quality: 0.95 });
  },

  async close({ picture }) {
    kept.delete(picture.key);
    shown.clear();
    if (decoded.key === picture.key) {
      decoded.bitmap.close();
      decoded = { key: null, bitmap: null };
    }
  },
};

let turn = Promise.resolve();

self.onmessage = ({ data: { id, name, given } }) => {
  turn = turn.then(async () => {
    try {
      const result = await CALLS[name](given);
      const moved = name === "view" ? [result.before, result.after] : [];
      self.postMessage({ id, result }, moved);
    } catch (error) {
      self.postMessage({ id, error: String(error?.message ?? error), expected: error instanceof PageError });
    }
  });
};
