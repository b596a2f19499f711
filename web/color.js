// sRGB <-> CIELAB (D65), as imaging/color.py computes it. Loaded by the page and by its worker.

const LINEAR = Float64Array.from({ length: 256 }, (_, level) => toLinear(level / 255)); // of each level
const STEPS = 65535; // of linear light, in the table below: fine enough for every level of 8 bits
const ENCODED = Uint8Array.from({ length: STEPS + 1 }, (_, i) => Math.round(255 * toSrgb(i / STEPS)));

function toLinear(value) {
  return value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
}

function toSrgb(value) {
  return value <= 0.0031308 ? value * 12.92 : 1.055 * value ** (1 / 2.4) - 0.055;
}

function labRoot(value) {
  return value > 0.008856 ? Math.cbrt(value) : 0.20689 + 7.787 * (value - 0.008856);
}

/** Return L in [0, 100] of linear RGB in [0, 1]. */
function lightness(r, g, b) {
  return 116 * labRoot(0.212671 * r + 0.71516 * g + 0.072169 * b) - 16;
}

/** Return [L, a, b] of linear RGB in [0, 1]. */
function toLab(r, g, b) {
  const x = labRoot((0.412453 * r + 0.35758 * g + 0.180423 * b) / 0.95047);
  const y = labRoot(0.212671 * r + 0.71516 * g + 0.072169 * b);
  const z = labRoot((0.019334 * r + 0.119193 * g + 0.950227 * b) / 1.08883);
  return [116 * y - 16, 500 * (x - y), 200 * (y - z)];
}

/** Return [L, a, b] of a colour of 8 bits, [r, g, b]. */
function labOf(rgb) {
  return toLab(...rgb.map((level) => LINEAR[level]));
}

function cube(f) {
  return f > 0.2068966 ? f * f * f : (f - 16 / 116) / 7.787;
}

/** Return how much of its distance from gray a channel may keep to stay in [0, 1]. */
function share(offset, gray) {
  const limit = offset > 0 ? 1 - gray : gray;
  return Math.abs(offset) > limit ? limit / Math.max(Math.abs(offset), 1e-8) : 1;
}

/**
 * Write the colour L, a, b as 8 bits into `out` at `at`. Outside sRGB it moves towards the gray of its
 * luminance, which keeps L; returns how much of its distance from gray is left, 1 inside sRGB.
 */
function writeRgb(L, a, b, out, at) {
  const fy = (L + 16) / 116;
  const y = cube(fy);
  const x = cube(fy + a / 500) * 0.95047;
  const z = cube(fy - b / 200) * 1.08883;
  const gray = Math.min(1, Math.max(0, y));
  const red = 3.240457143 * x - 1.537140042 * y - 0.498532607 * z - gray;
  const green = -0.969265039 * x + 1.876009528 * y + 0.041556363 * z - gray;
  const blue = 0.055642126 * x - 0.204024787 * y + 1.057225293 * z - gray;
  const keep = Math.min(share(red, gray), share(green, gray), share(blue, gray));
  out[at] = ENCODED[(Math.min(1, Math.max(0, gray + red * keep)) * STEPS + 0.5) | 0];
  out[at + 1] = ENCODED[(Math.min(1, Math.max(0, gray + green * keep)) * STEPS + 0.5) | 0];
  out[at + 2] = ENCODED[(Math.min(1, Math.max(0, gray + blue * keep)) * STEPS + 0.5) | 0];
  return keep;
}

/** Return the 8-bit colour [r, g, b] of L, a, b. */
function rgbOf(L, a, b) {
  const rgb = [0, 0, 0];
  writeRgb(L, a, b, rgb, 0);
  return rgb;
}

function toHex(rgb) {
  return "#" + rgb.map((level) => level.toString(16).padStart(2, "0")).join("");
}

function fromHex(hex) {
  return [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
}
