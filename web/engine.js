// Who colours: a worker beside the page, or serve.py. Both answer the same calls, with promises:
//
//   open({ picture }) -> { width, height }
//   view({ picture, region, columns, rows, hasty }) -> { before, after }, bitmaps of a part of the picture
//   prepare({ picture }), where the engine has drafts: what the next hasty view needs
//   suggest({ picture, x, y }) -> [[r, g, b], ...], likely colours at a place, where config.suggests
//   save({ picture, type }) -> Blob, the coloured picture at its full size
//   close({ picture })
//
// A picture is { key, file, hints, strength }; hints are { x, y, radius, color }. Errors are sentences.

/** Return the sentence for what nobody expected. */
const failed = (reason) => new Error(`This picture could not be coloured, perhaps for lack of memory${reason ? ` (${reason})` : ""}.`);

/** Throw a sentence where a file can no longer be read. */
async function checkFile(file) {
  await file.stream().getReader().read().catch(() => {
    throw new Error("The file has been changed or removed: open it again.");
  });
}

const MAX_SHOWN = 1.3e6; // px that are coloured for a look at a whole picture; all are coloured when it is saved
const MAX_DRAFT = 2e5; // px of a draft
const DRAFT = 0.5; // of the size at which the network sees a picture, in a draft of what a changed spot does

/** The network in this file, in a worker that is made from it, since a page from a disk may load no other file. */
class Local {
  pause = 200; // ms without a movement before a closer look
  formats = "PNG, JPEG, WebP, GIF, BMP or AVIF";
  endings = []; // of pictures, besides those that the browser knows
  drafts = true; // a hasty view is one, a little less exact

  constructor(config) {
    this.config = { ...config, draft: Math.round(DRAFT * config.size) };
    this.calls = new Map();
    this.last = 0;
  }

  get missing() {
    for (const name of ["Worker", "WebAssembly", "OffscreenCanvas", "DecompressionStream", "createImageBitmap"]) {
      if (!(name in window)) return `This browser is too old for this page: it has no ${name}. Chromium, Chrome, Edge and Firefox of 2024 do.`;
    }
    const simd = [0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 10, 1, 8, 0, 65, 0, 253, 15, 253, 98, 11];
    if (!WebAssembly.validate(new Uint8Array(simd))) {
      return "This browser has no WebAssembly SIMD, which the network needs. Chromium, Chrome, Edge and Firefox of 2024 do.";
    }
    return "";
  }

  start() {
    const text = (id) => document.getElementById(id).textContent;
    const link = URL.createObjectURL(new Blob([text("runtime") + text("worker")], { type: "text/javascript" }));
    this.worker = new Worker(link);
    this.worker.onmessage = ({ data: { id, result, error, expected } }) => {
      const { resolve, reject } = this.calls.get(id);
      this.calls.delete(id);
      if (error === undefined) return resolve(result);
      reject(expected ? new Error(error) : failed(error));
      if (!expected) this.stop(); // nobody knows in which state it is
    };
    this.worker.onerror = (event) => {
      event.preventDefault();
      this.stop(event.message);
    };
    const given = { loader: text("loader"), wasm: text("wasm"), network: text("network"), config: this.config };
    return this.ask("start", given).finally(() => URL.revokeObjectURL(link));
  }

  changed() {}

  stop(reason) { // the next call makes another worker
    this.worker.terminate();
    this.started = null;
    for (const { reject } of this.calls.values()) reject(failed(reason));
    this.calls.clear();
  }

  ask(name, given) {
    const id = ++this.last;
    return new Promise((resolve, reject) => {
      this.calls.set(id, { resolve, reject });
      this.worker.postMessage({ id, name, given });
    });
  }

  async call(name, given) {
    this.started ??= this.start();
    await this.started;
    return this.ask(name, given);
  }
}

const MAX_TRIES = 300; // times that a server which is busy is asked again, after a second or what it says

/**
 * serve.py, which runs any model, in Python. Calls are answered one after the other. For a look at a large picture a
 * preview is sent, for a closer look and for a save the file itself.
 */
class Remote {
  formats = "PNG, JPEG, WebP, GIF, BMP, AVIF, TIFF, JPEG 2000, PPM, TGA or PCX";
  pause = 1500; // ms without a movement before a closer look, for which the whole picture is sent
  drafts = false;

  constructor(config) {
    this.config = config;
    this.endings = config.endings;
    this.opened = new Map(); // key -> { size, preview, by: how much smaller the preview is, across and down }
    this.decoded = { key: null, bitmap: null }; // of one picture, as it is large
    this.last = {}; // the last answers, for the preview and for the picture itself
    this.turn = Promise.resolve();
    this.looking = null; // what ends a closer look
  }

  get missing() {
    return "";
  }

  /** What was asked for has changed: a closer look at what was there before is no longer wanted. */
  changed() {
    this.looking?.abort();
  }

  /** Return what the server makes of a file; first: of its frames or pages, of the first alone. */
  async post(picture, body, [across, down], type, first, signal) {
    const hints = picture.hints.map(({ x, y, radius, color }) => ({
      x: x * across, y: y * down, radius: radius * Math.sqrt(across * down), color,
    }));
    const query = new URLSearchParams({ strength: picture.strength, format: type.split("/")[1].replace("jpeg", "jpg") });
    if (this.config.model) query.set("model", this.config.model);
    if (first) query.set("first", 1);
    const headers = hints.length ? { "X-Hints": JSON.stringify(hints) } : {};
    if (this.config.token) headers.Authorization = `Bearer ${this.config.token}`;
    if (body.size > this.config.most) throw new Error(`A file has at most ${this.config.most / 1e6} MB here; colorize.py takes it.`);
    for (let tried = 0; ; tried++) {
      const answer = await fetch(`colorize?${query}`, { method: "POST", body, headers, signal }).catch(async (error) => {
        if (error.name === "AbortError") throw error;
        await checkFile(body);
        throw new Error("The server does not answer: is serve.py still running?");
      });
      if (answer.status !== 429 || tried === MAX_TRIES) return this.read(answer);
      const seconds = Number(answer.headers.get("Retry-After")) || 1;
      await new Promise((done) => setTimeout(done, 1000 * seconds)); // it is busy with others
      signal?.throwIfAborted();
    }
  }

  /** Return the picture that is an answer; throw the sentence that it is instead. */
  async read(answer) {
    try {
      if (answer.ok) return await answer.blob();
      if (answer.headers.get("Content-Type")?.startsWith("text/plain")) throw new Error(await answer.text());
    } catch (error) {
      if (error.name === "AbortError" || !(error instanceof TypeError)) throw error;
      throw new Error("The answer of the server broke off, perhaps as the connection is slow: try again, or save as JPEG.");
    }
    throw new Error(`The server, or a proxy before it, answered ${answer.status}.`);
  }

  /** Return a picture as a bitmap; what the browser does not read, such as TIFF, comes gray from the server. */
  async decode(picture) {
    if (this.decoded.key === picture.key) return this.decoded.bitmap;
    this.decoded.bitmap?.close();
    this.decoded = { key: null, bitmap: null };
    const bitmap = await createImageBitmap(picture.file).catch(async () => {
      await checkFile(picture.file);
      return createImageBitmap(await this.post({ hints: [], strength: 0 }, picture.file, [1, 1], "image/png", true));
    });
    this.decoded = { key: picture.key, bitmap };
    return bitmap;
  }

  async open({ picture }) {
    if (!this.opened.has(picture.key)) {
      const bitmap = await this.decode(picture);
      const size = { width: bitmap.width, height: bitmap.height };
      const scale = Math.min(1, Math.sqrt(MAX_SHOWN / (size.width * size.height)));
      const [columns, rows] = [size.width, size.height].map((side) => Math.max(1, Math.round(side * scale)));
      const preview = scale < 1 ? await part(bitmap, [0, 0, size.width, size.height], columns, rows).convertToBlob() : null;
      this.opened.set(picture.key, { size, preview, by: [columns / size.width, rows / size.height] });
    }
    return this.opened.get(picture.key).size;
  }

  /** Return the colours of a picture as a bitmap: of its preview, or of the picture itself. */
  async colored(picture, small) {
    const wanted = JSON.stringify([picture.key, picture.hints, picture.strength, this.config.model, small]);
    if (this.last[small]?.wanted !== wanted) {
      const { preview, by } = this.opened.get(picture.key);
      this.looking = preview && !small ? new AbortController() : null;
      const given = small && preview ? [preview, by] : [picture.file, [1, 1]];
      const blob = await this.post(picture, ...given, "image/png", true, this.looking?.signal);
      this.last[small]?.bitmap.close();
      this.last[small] = { wanted, key: picture.key, bitmap: await createImageBitmap(blob) };
    }
    return this.last[small].bitmap;
  }

  async view({ picture, region, columns, rows }) {
    const size = await this.open({ picture });
    const { by } = this.opened.get(picture.key);
    const small = columns / region.width <= by[0] * 1.01;
    const seen = [await this.decode(picture), await this.colored(picture, small)];
    const [before, after] = seen.map((image) => {
      const [across, down] = [image.width / size.width, image.height / size.height];
      const places = [region.x * across, region.y * down, region.width * across, region.height * down];
      return part(image, places, columns, rows).transferToImageBitmap();
    });
    return { before, after };
  }

  async save({ picture, type }) {
    return this.post(picture, picture.file, [1, 1], type, false);
  }

  async close({ picture }) {
    this.opened.delete(picture.key);
    if (this.decoded.key === picture.key) {
      this.decoded.bitmap.close();
      this.decoded = { key: null, bitmap: null };
    }
    for (const [small, { key, bitmap }] of Object.entries(this.last)) {
      if (key !== picture.key) continue;
      bitmap.close();
      delete this.last[small];
    }
  }

  call(name, given) {
    const answer = this.turn.then(() => this[name](given));
    this.turn = answer.catch(() => {});
    return answer;
  }
}

/** Return a canvas of `columns` x `rows` px with a part [x, y, width, height] of an image. */
function part(image, places, columns, rows) {
  const canvas = new OffscreenCanvas(columns, rows);
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(image, ...places, 0, 0, columns, rows);
  return canvas;
}
