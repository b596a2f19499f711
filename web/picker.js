// Chooses the colour of a spot: likely ones, all of its lightness, a code, a palette of one's own.

const PALETTE = "tinct-palette"; // in the browser's storage
const MAX_PALETTE = 21;

function readPalette() {
  try {
    const found = JSON.parse(localStorage.getItem(PALETTE));
    return Array.isArray(found) ? found.filter((hex) => /^#[0-9a-f]{6}$/.test(hex)).slice(0, MAX_PALETTE) : [];
  } catch { // storage may be forbidden
    return [];
  }
}

function writePalette(colors) {
  try {
    localStorage.setItem(PALETTE, JSON.stringify(colors));
  } catch {
    // then it lasts as long as the page
  }
}

/** Return "#rrggbb" of what a person writes, "#a03c28", "a03c28", "#a32" or "160, 60, 40"; "" where it is no colour. */
function parseColor(text) {
  const hex = text.trim().toLowerCase().replace(/^#/, "");
  if (/^[0-9a-f]{6}$/.test(hex)) return "#" + hex;
  if (/^[0-9a-f]{3}$/.test(hex)) return "#" + [...hex].map((digit) => digit + digit).join("");
  const levels = text.match(/\d+/g)?.map(Number) ?? [];
  const isRgb = /^\s*(rgb)?[\s(]*\d+[\s,;]+\d+[\s,;]+\d+[\s)]*$/i.test(text);
  return isRgb && levels.every((level) => level < 256) ? toHex(levels) : "";
}

/** Call `act` at a right click, or when a finger has stayed; its end is then no click on what lies there by now. */
function onMenu(element, act) {
  let touched = false;
  element.addEventListener("contextmenu", (event) => {
    event.preventDefault();
    if (!touched) act(event); // some browsers send it for a finger, too
  });
  const ends = ["pointerup", "pointercancel"];
  const swallow = (event) => event.stopPropagation();
  element.addEventListener("pointerdown", (event) => {
    touched = event.pointerType === "touch";
    if (!touched) return;
    let held = false;
    const press = setTimeout(() => {
      held = true;
      act(event);
    }, LONG_PRESS);
    const end = ({ pointerId }) => {
      if (pointerId !== event.pointerId) return;
      clearTimeout(press);
      for (const name of ends) window.removeEventListener(name, end, true);
      if (!held) return;
      window.addEventListener("click", swallow, true);
      setTimeout(() => window.removeEventListener("click", swallow, true), 50);
    };
    for (const name of ends) window.addEventListener(name, end, true);
  });
}

/** Put buttons into a place; where one there had the focus, the one in its stead gets it. */
function replaceButtons(place, buttons) {
  const focused = [...place.children].indexOf(document.activeElement);
  place.replaceChildren(...buttons);
  if (focused >= 0) place.children[Math.min(focused, buttons.length - 1)]?.focus({ preventScroll: true });
}

class Picker {
  /**
   * onpick(hex, done): a colour was chosen; `done` is false while the pointer still moves over the gamut.
   * onleave(): the keyboard is to go back to the spot.
   */
  constructor(onpick, onleave) {
    this.onpick = onpick;
    this.gamut = document.getElementById("gamut");
    this.code = document.getElementById("code");
    this.palette = readPalette();
    this.L = null;
    this.hex = "#808080";
    this.code.addEventListener("change", () => this.enter());
    this.code.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || !parseColor(this.code.value)) return;
      event.preventDefault();
      onleave(); // in the field, Ctrl+Z undoes letters alone
    });
    this.gamut.addEventListener("pointerdown", (event) => this.drag(event));
    this.gamut.addEventListener("keydown", (event) => this.key(event));
    this.showPalette();
  }

  /** Show the colour of a spot, whose picture has lightness L there. */
  show(hex, L) {
    this.hex = hex;
    if (this.L === null || Math.abs(L - this.L) > 0.5) {
      this.L = L;
      this.paint();
    }
    const [, a, b] = labOf(fromHex(hex));
    this.a = a;
    this.b = b;
    this.mark();
    document.getElementById("chosen").style.background = toHex(rgbOf(this.L, a, b));
    if (document.activeElement !== this.code) { // else what is being written stays, and what is wrong with it
      this.code.value = hex;
      this.say("");
    }
    for (const swatch of document.querySelectorAll(".swatch[data-hex]")) {
      swatch.setAttribute("aria-pressed", swatch.dataset.hex === hex);
    }
  }

  say(problem) {
    const place = document.getElementById("code-problem");
    place.textContent = problem;
    place.hidden = !problem;
  }

  suggest(colors) {
    document.getElementById("likely-row").style.visibility = colors.length ? "" : "hidden"; // else what is below moves
    replaceButtons(document.getElementById("likely"), colors.map((rgb) => this.swatch(toHex(rgb))));
  }

  swatch(hex) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "swatch";
    button.dataset.hex = hex;
    button.style.background = hex;
    button.title = hex;
    button.setAttribute("aria-label", `colour ${hex}`);
    button.setAttribute("aria-pressed", hex === this.hex);
    button.addEventListener("click", () => this.onpick(hex, true));
    return button;
  }

  showPalette() {
    const add = document.createElement("button");
    add.type = "button";
    add.className = "swatch add";
    add.textContent = "+";
    add.title = "Keep this colour";
    add.setAttribute("aria-label", "keep this colour in my palette");
    add.addEventListener("click", () => this.keep(this.hex));
    const swatches = this.palette.map((hex) => {
      const swatch = this.swatch(hex);
      swatch.title = `${hex}; right-click, long press or Delete removes it`;
      const drop = (event) => {
        event.preventDefault();
        this.keep(hex, true);
      };
      onMenu(swatch, drop);
      swatch.addEventListener("keydown", (event) => event.key === "Delete" && drop(event));
      return swatch;
    });
    replaceButtons(document.getElementById("palette"), [...swatches, add]);
  }

  keep(hex, remove = false) {
    const others = this.palette.filter((other) => other !== hex);
    this.palette = remove ? others : [...others, hex].slice(-MAX_PALETTE);
    writePalette(this.palette);
    this.showPalette();
  }

  enter() {
    const hex = parseColor(this.code.value);
    if (!hex) return this.say("Write a colour as #a03c28, or as red, green, blue: 160, 60, 40.");
    this.code.value = hex;
    this.say("");
    this.onpick(hex, true);
  }

  /** Paint the colours of lightness L that a screen can show; a to the right, b upwards, as large as fits. */
  paint() {
    const inside = (a, b) => writeRgb(this.L, a, b, [0, 0, 0], 0) === 1;
    const bounds = { left: -2, right: 2, low: -2, high: 2 };
    for (let a = -108; a <= 100; a += 2) {
      for (let b = -108; b <= 96; b += 2) {
        if (!inside(a, b)) continue;
        bounds.left = Math.min(bounds.left, a - 2);
        bounds.right = Math.max(bounds.right, a + 2);
        bounds.low = Math.min(bounds.low, b - 2);
        bounds.high = Math.max(bounds.high, b + 2);
      }
    }
    const { width, height } = this.gamut;
    this.scale = Math.max((bounds.right - bounds.left) / width, (bounds.high - bounds.low) / height); // Lab per px
    this.center = [(bounds.left + bounds.right) / 2, (bounds.low + bounds.high) / 2];
    const pixels = new ImageData(width, height);
    for (let y = 0, i = 0; y < height; y++) {
      for (let x = 0; x < width; x++, i += 4) {
        const [a, b] = this.colorAt(x, y);
        const keep = writeRgb(this.L, a, b, pixels.data, i);
        pixels.data[i + 3] = 255 * Math.max(0, 1 - ((1 - keep) * Math.hypot(a, b)) / this.scale); // a smooth edge
      }
    }
    this.painted = pixels;
  }

  colorAt(x, y) {
    const { width, height } = this.gamut;
    return [this.center[0] + (x - width / 2) * this.scale, this.center[1] - (y - height / 2) * this.scale];
  }

  mark() {
    const { width, height } = this.gamut;
    const context = this.gamut.getContext("2d");
    context.putImageData(this.painted, 0, 0);
    const [, a, b] = labOf(rgbOf(this.L, this.a, this.b)); // where it lies when it is brought into the gamut
    const place = [width / 2 + (a - this.center[0]) / this.scale, height / 2 - (b - this.center[1]) / this.scale];
    for (const [color, line] of [["#000", 4], ["#fff", 2]]) {
      context.beginPath();
      context.arc(...place, 7, 0, 2 * Math.PI);
      context.strokeStyle = color;
      context.lineWidth = line;
      context.stroke();
    }
    this.gamut.setAttribute("aria-valuetext", `${this.hex}, a ${a.toFixed(0)}, b ${b.toFixed(0)}`);
    this.gamut.setAttribute("aria-valuenow", Math.round(Math.min(100, Math.hypot(a, b))));
  }

  pick(a, b, done) {
    this.onpick(toHex(rgbOf(this.L, a, b)), done);
  }

  drag(event) {
    event.preventDefault();
    this.gamut.focus();
    this.gamut.setPointerCapture(event.pointerId);
    const move = (moved, done) => {
      const box = this.gamut.getBoundingClientRect();
      const x = ((moved.clientX - box.left) * this.gamut.width) / box.width;
      const y = ((moved.clientY - box.top) * this.gamut.height) / box.height;
      this.pick(...this.colorAt(x, y), done);
    };
    let latest = event;
    this.gamut.onpointermove = (moved) => move((latest = moved), false);
    this.gamut.onpointerup = this.gamut.onpointercancel = () => {
      this.gamut.onpointermove = this.gamut.onpointerup = this.gamut.onpointercancel = null;
      move(latest, true);
    };
    move(event, false);
  }

  key(event) {
    const [across, up] = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[event.key] ?? [];
    if (across === undefined) return;
    event.preventDefault();
    const far = event.shiftKey ? 10 : 3; // units of Lab
    this.pick(this.a + far * across, this.b + far * up, true);
  }
}
