// A ZIP of files as they are: pictures are compressed already.

const CRC = Uint32Array.from({ length: 256 }, (_, n) => {
  for (let i = 0; i < 8; i++) n = n & 1 ? 0xedb88320 ^ (n >>> 1) : n >>> 1;
  return n;
});

function crc32(bytes) {
  let crc = -1;
  for (const byte of bytes) crc = CRC[(crc ^ byte) & 255] ^ (crc >>> 8);
  return ~crc >>> 0;
}

/** Return little-endian bytes of [value, how many bytes] pairs. */
function packed(fields) {
  return Uint8Array.from(fields.flatMap(([value, size]) => Array.from({ length: size }, (_, i) => (value / 256 ** i) & 255)));
}

/** Collects files; only their checksums are kept in memory, their content is the browser's to keep. */
class Zip {
  constructor() {
    this.parts = [];
    this.entries = [];
    this.size = 0;
  }

  async add(name, blob) {
    const bytes = new TextEncoder().encode(name);
    const crc = crc32(new Uint8Array(await blob.arrayBuffer()));
    // version 2.0, names in UTF-8, stored, no time
    const shared = [[20, 2], [0x800, 2], [0, 2], [0, 2], [0x21, 2], [crc, 4], [blob.size, 4], [blob.size, 4], [bytes.length, 2], [0, 2]];
    if (this.size + blob.size > 0xffff0000 || this.entries.length === 65535) {
      throw new Error("A ZIP takes 4 GB, and it is full: download this picture alone.");
    }
    const head = packed([[0x04034b50, 4], ...shared]);
    this.entries.push([packed([[0x02014b50, 4], [20, 2], ...shared, [0, 2], [0, 2], [0, 2], [0, 4], [this.size, 4]]), bytes]);
    this.parts.push(head, bytes, blob);
    this.size += head.length + bytes.length + blob.size;
  }

  finish() {
    const directory = this.entries.flat();
    const length = directory.reduce((sum, part) => sum + part.length, 0);
    const count = this.entries.length;
    const end = packed([[0x06054b50, 4], [0, 2], [0, 2], [count, 2], [count, 2], [length, 4], [this.size, 4], [0, 2]]);
    return new Blob([...this.parts, ...directory, end], { type: "application/zip" });
  }
}
