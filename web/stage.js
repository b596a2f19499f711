// The picture on the page: zoom, pan, the divider between before and after, and the spots on it.

const MAX_ZOOM = 16; // screen px per px of the picture
const LONG_PRESS = 600; // ms
const STILL = 6; // px that a finger may move and still tap

class Stage {
  /**
   * calls: place(x, y), select(i), move(i, x, y, done), resize(i, factor), remove(i), looked(): the view moved.
   * Places are in px of the picture.
   */
  constructor(calls) {
    this.calls = calls;
    this.element = document.getElementById("stage");
    this.sides = [document.getElementById("before"), document.getElementById("after")];
    this.split = document.getElementById("split");
    this.size = { width: 1, height: 1 };
    this.scale = 1; // screen px per px of the picture
    this.left = this.top = 0; // of the picture, in px of the stage
    this.fitted = true;
    this.strength = 1; // of the colours that are drawn
    this.pointers = new Map();
    this.endPress = () => {}; // ends what a finger on a spot does
    this.touched = false; // whether a finger was the last to press
    this.split.addEventListener("input", () => this.layout());
    this.listen();
    new ResizeObserver(() => (this.fitted ? this.fit() : this.layout())).observe(this.element);
  }

  listen() {
    const { element } = this;
    element.addEventListener("pointerdown", ({ pointerType }) => { // before all else: a second finger ends a press
      this.endPress();
      this.touched = pointerType === "touch";
    }, true);
    element.addEventListener("pointerdown", (event) => this.down(event));
    element.addEventListener("pointermove", (event) => this.moved(event));
    for (const name of ["pointerup", "pointercancel"]) element.addEventListener(name, (event) => this.up(event));
    element.addEventListener("contextmenu", (event) => event.preventDefault());
    element.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
    document.getElementById("grip").addEventListener("pointerdown", (event) => this.slide(event));
  }

  get box() {
    return { width: this.element.clientWidth, height: this.element.clientHeight };
  }

  get fitting() { // the scale at which the whole picture is seen
    const { width, height } = this.box;
    return Math.min(width / this.size.width, height / this.size.height, 4);
  }

  /** Show another picture, of a size, as a whole. */
  reset(size) {
    this.size = size;
    for (const canvas of this.element.querySelectorAll("canvas")) canvas.width = canvas.height = 0;
    this.hideDetail();
    this.fit();
  }

  fit() {
    this.fitted = true;
    this.scale = this.fitting;
    this.left = (this.box.width - this.size.width * this.scale) / 2;
    this.top = (this.box.height - this.size.height * this.scale) / 2;
    this.layout();
  }

  zoom(factor, x = this.box.width / 2, y = this.box.height / 2) {
    const scale = Math.min(Math.max(MAX_ZOOM, this.fitting), Math.max(this.fitting, this.scale * factor));
    this.left = x - ((x - this.left) * scale) / this.scale;
    this.top = y - ((y - this.top) * scale) / this.scale;
    this.scale = scale;
    this.fitted = scale === this.fitting;
    this.layout();
  }

  /** Put everything where scale and place say; a picture that fits is centred, another leaves no gap. */
  layout() {
    const place = (at, length, room) => (length <= room ? (room - length) / 2 : Math.min(0, Math.max(room - length, at)));
    const { width, height } = this.box;
    this.left = place(this.left, this.size.width * this.scale, width);
    this.top = place(this.top, this.size.height * this.scale, height);
    for (const side of this.sides) {
      const view = side.firstElementChild;
      view.style.width = `${this.size.width}px`;
      view.style.height = `${this.size.height}px`;
      view.style.transform = `translate(${this.left}px, ${this.top}px) scale(${this.scale})`;
    }
    const from = Math.max(0, this.left);
    const to = Math.min(width, this.left + this.size.width * this.scale);
    const x = from + ((to - from) * this.split.value) / 100;
    this.sides[1].style.clipPath = `inset(0 0 0 ${x}px)`;
    document.getElementById("divider").style.left = `${x}px`;
    this.split.setAttribute("aria-valuetext", `${this.split.value} % before`);
    for (const [tag, shown] of [[".left", x - from > 60], [".right", to - x > 60]]) {
      this.element.querySelector(`.tag${tag}`).hidden = !shown;
    }
    document.getElementById("zoom").textContent = `${Math.round(this.scale * 100)} %`;
    this.layoutSpots();
    this.calls.looked();
  }

  /** Return the part of the picture that is seen, in whole px of it. */
  get visible() {
    const [left, top] = [-this.left, -this.top].map((at) => Math.max(0, Math.floor(at / this.scale)));
    const right = Math.min(this.size.width, Math.ceil((this.box.width - this.left) / this.scale));
    const bottom = Math.min(this.size.height, Math.ceil((this.box.height - this.top) / this.scale));
    return { x: left, y: top, width: Math.max(1, right - left), height: Math.max(1, bottom - top) };
  }

  /** Draw { before, after }: of the whole picture, or over it of a part; hasty: less exact than what is there already. */
  draw({ before, after }, region, hasty) {
    if (region) this.region = region;
    [before, after].forEach((bitmap, i) => {
      const canvas = this.sides[i].querySelectorAll("canvas")[region ? 1 : 0];
      if (i === 0 && hasty && canvas.width) return bitmap.close();
      canvas.width = bitmap.width;
      canvas.height = bitmap.height;
      canvas.getContext("2d", { willReadFrequently: true }).drawImage(bitmap, 0, 0);
      bitmap.close();
      if (!region) return;
      canvas.hidden = false;
      const style = { left: region.x, top: region.y, width: region.width, height: region.height };
      for (const [name, value] of Object.entries(style)) canvas.style[name] = `${value}px`;
    });
  }

  hideDetail() {
    for (const canvas of this.element.querySelectorAll(".detail")) canvas.hidden = true;
  }

  /** Return the colour [r, g, b] at a place of the picture, before (0) or after (1); null where none is drawn yet. */
  colorAt(x, y, side) {
    const [whole, detail] = this.sides[side].querySelectorAll("canvas");
    if (!whole.width) return null;
    const [right, below] = [x - this.region?.x, y - this.region?.y];
    const isClose = !detail.hidden && right >= 0 && below >= 0 && right < this.region.width && below < this.region.height;
    const [canvas, { width, height }] = isClose ? [detail, this.region] : [whole, this.size];
    const at = (value, length, count) => Math.min(count - 1, Math.floor((value * count) / length));
    const place = [at(isClose ? right : x, width, canvas.width), at(isClose ? below : y, height, canvas.height)];
    return [...canvas.getContext("2d").getImageData(...place, 1, 1).data.slice(0, 3)];
  }

  toPicture(event) {
    const box = this.element.getBoundingClientRect();
    return [(event.clientX - box.left - this.left) / this.scale, (event.clientY - box.top - this.top) / this.scale];
  }

  isInside([x, y]) {
    return x >= 0 && y >= 0 && x < this.size.width && y < this.size.height;
  }

  /** Tell whether a place is shown as it is after colouring. */
  isAfter(x) {
    return this.left + x * this.scale >= parseFloat(document.getElementById("divider").style.left);
  }

  down(event) {
    if (event.target.closest(".spot, #grip, #problem") || event.button > 0) return;
    this.element.setPointerCapture(event.pointerId);
    this.pointers.set(event.pointerId, [event.clientX, event.clientY]);
    this.from = this.pointers.size === 1 ? [event.clientX, event.clientY] : null; // two fingers do not tap
  }

  moved(event) {
    const before = this.pointers.get(event.pointerId);
    if (!before) return;
    const now = [event.clientX, event.clientY];
    if (this.from && Math.hypot(now[0] - this.from[0], now[1] - this.from[1]) < STILL) return;
    this.from = null;
    this.element.classList.add("moving");
    const other = [...this.pointers].find(([id]) => id !== event.pointerId)?.[1];
    this.pointers.set(event.pointerId, now);
    this.left += (now[0] - before[0]) / this.pointers.size;
    this.top += (now[1] - before[1]) / this.pointers.size;
    if (!other) return this.layout();
    const box = this.element.getBoundingClientRect();
    const apart = (one) => Math.max(10, Math.hypot(one[0] - other[0], one[1] - other[1]));
    this.zoom(apart(now) / apart(before), (now[0] + other[0]) / 2 - box.left, (now[1] + other[1]) / 2 - box.top);
  }

  up(event) {
    this.element.classList.remove("moving");
    if (!this.pointers.delete(event.pointerId) || !this.from || event.type !== "pointerup") return;
    this.from = null;
    const place = this.toPicture(event);
    if (this.isInside(place)) this.calls.place(...place);
  }

  wheel(event) {
    event.preventDefault();
    const spot = event.target.closest(".spot");
    const turned = event.deltaY * (event.deltaMode === 1 ? 16 : 1);
    if (spot && !event.ctrlKey) return this.calls.resize(Number(spot.dataset.index), Math.exp(-turned / 500));
    const box = this.element.getBoundingClientRect();
    this.zoom(Math.exp(-turned / (event.ctrlKey ? 100 : 400)), event.clientX - box.left, event.clientY - box.top);
  }

  slide(event) {
    event.preventDefault();
    const grip = event.currentTarget;
    grip.setPointerCapture(event.pointerId);
    const box = this.element.getBoundingClientRect();
    const from = Math.max(0, this.left);
    const to = Math.min(box.width, this.left + this.size.width * this.scale);
    grip.onpointermove = (moved) => {
      this.split.value = Math.min(100, Math.max(0, (100 * (moved.clientX - box.left - from)) / (to - from)));
      this.layout();
    };
    grip.onpointerup = grip.onpointercancel = () => (grip.onpointermove = null);
  }

  /** Show spots, { x, y, radius, color }; one of them, or none (-1), is selected. */
  showSpots(spots, selected) {
    const place = document.getElementById("spots");
    while (place.children.length > spots.length) place.lastElementChild.remove();
    while (place.children.length < spots.length) place.append(this.makeSpot(place.children.length));
    this.spots = spots;
    spots.forEach(({ x, y, color }, i) => {
      const element = place.children[i];
      element.style.background = color;
      element.setAttribute("aria-pressed", i === selected);
      element.setAttribute("aria-label", `colour spot ${i + 1}, ${color}, at ${Math.round(x)}, ${Math.round(y)}`);
    });
    this.layoutSpots();
  }

  layoutSpots() {
    (this.spots ?? []).forEach(({ x, y, radius }, i) => {
      const { style } = document.getElementById("spots").children[i];
      style.left = `${this.left + (x + 0.5) * this.scale}px`; // the centre of that px
      style.top = `${this.top + (y + 0.5) * this.scale}px`;
      style.setProperty("--reach", `${2 * radius * this.scale}px`);
    });
  }

  makeSpot(index) {
    const element = document.createElement("button");
    element.type = "button";
    element.className = "spot";
    element.dataset.index = index;
    element.addEventListener("pointerdown", (event) => this.dragSpot(event, index));
    element.addEventListener("focus", () => this.calls.select(index));
    element.addEventListener("contextmenu", (event) => {
      event.preventDefault();
      if (this.touched) return; // a finger's long press is watched below
      this.calls.remove(index);
    });
    element.addEventListener("keydown", (event) => this.spotKey(event, index));
    return element;
  }

  dragSpot(event, index) {
    if (event.button > 0 || event.ctrlKey) return; // which open a menu
    const element = event.currentTarget;
    element.setPointerCapture(event.pointerId);
    this.calls.select(index);
    const begin = [event.clientX, event.clientY];
    const { x, y } = this.spots[index];
    let dragged = false;
    const press = setTimeout(() => {
      end();
      this.calls.remove(index);
    }, event.pointerType === "touch" ? LONG_PRESS : 1e9);
    const at = (moved) => {
      const limit = (value, most) => Math.min(most - 1, Math.max(0, Math.round(value)));
      return [
        limit(x + (moved.clientX - begin[0]) / this.scale, this.size.width),
        limit(y + (moved.clientY - begin[1]) / this.scale, this.size.height),
      ];
    };
    let latest = [x, y];
    const end = () => {
      clearTimeout(press);
      element.onpointermove = element.onpointerup = element.onpointercancel = null;
      this.endPress = () => {};
      if (dragged) this.calls.move(index, ...latest, true);
    };
    this.endPress = end;
    element.onpointermove = (moved) => {
      if (moved.pointerId !== event.pointerId) return;
      if (!dragged && Math.hypot(moved.clientX - begin[0], moved.clientY - begin[1]) < STILL) return;
      clearTimeout(press);
      dragged = true;
      latest = at(moved);
      this.calls.move(index, ...latest, false);
    };
    element.onpointerup = element.onpointercancel = ({ pointerId }) => pointerId === event.pointerId && end();
  }

  spotKey(event, index) {
    const far = Math.max(1, Math.round((event.shiftKey ? 20 : 4) / this.scale));
    const { x, y } = this.spots[index];
    const step = { ArrowLeft: [-far, 0], ArrowRight: [far, 0], ArrowUp: [0, -far], ArrowDown: [0, far] }[event.key];
    const limit = (value, most) => Math.min(most - 1, Math.max(0, value));
    if (step) this.calls.move(index, limit(x + step[0], this.size.width), limit(y + step[1], this.size.height), true);
    else if (event.key === "+" || event.key === "-") this.calls.resize(index, event.key === "+" ? 1.25 : 0.8);
    else if (event.key === "Delete" || event.key === "Backspace") this.calls.remove(index);
    else return;
    event.preventDefault();
    event.stopPropagation();
  }
}
