// The page: which pictures there are, what was done to each, and what is to be coloured next.

const $ = (id) => document.getElementById(id);
const config = JSON.parse($("config").textContent);
const engine = config.server ? new Remote(config) : new Local(config);
const THUMB = 120; // px
const RADIUS = 0.012; // of a new spot, of the picture's short side: what the network was trained on
const RADII = [0.002, 0.2]; // the smallest and the largest
const HISTORY = 200; // steps that can be undone

const pictures = []; // { key, name, file, size, hints, strength, past, future, state, problem, item }
let current = null; // one of them
let selected = -1; // its spot that is edited
let picking = null; // the picture and spot for which a colour is taken
let keys = 0;
const wanted = { view: false, settle: false, detail: false, suggest: false, prepare: false, saves: [] };
let working = false;

const stage = new Stage({ place, select, move: moveSpot, resize: resizeSpot, remove: removeSpot, looked });
const picker = new Picker(recolor, () => $("spots").children[selected]?.focus());

let notice = ""; // what stays in the status line until the user does something

function say(sentence) {
  $("status").textContent = sentence;
  $("status").title = sentence;
}

function tell(sentence) {
  notice = sentence;
  say(sentence);
}

/** Return what the engine needs of a picture, as it is now. */
function snapshot({ key, file, hints, strength }) {
  return { key, file, hints: config.hints ? hints.map((hint) => ({ ...hint })) : [], strength };
}

// Pictures

function add(files) {
  const images = [...files].filter(({ type, name }) => type.startsWith("image/") || engine.endings.includes(endingOf(name)));
  const hintFiles = [...files].filter((file) => file.name.endsWith(".json"));
  const others = files.length - images.length - hintFiles.length;
  notice = "";
  if (others === files.length) return tell(`That is no picture: drop ${engine.formats} files.`);
  if (others) tell(`${others} of ${files.length} files are no pictures.`);
  for (const file of images) {
    const picture = {
      key: ++keys, name: freeName(file.name || "pasted.png"), file, size: null, hints: [], strength: 1, past: [], future: [],
      state: "waiting", problem: "",
    };
    picture.item = makeItem(picture);
    pictures.push(picture);
    $("queue").insertBefore(picture.item, $("more"));
  }
  for (const file of hintFiles) loadHints(file);
  if (!current && pictures.length) choose(pictures[0]);
  refresh();
  work();
}

/** Return a name that no other picture has: browsers call all that is pasted image.png. */
function freeName(name) {
  const taken = new Set(pictures.map((picture) => picture.name));
  const ending = name.slice(stemOf(name).length);
  for (let n = 2, free = name; ; n++) {
    if (!taken.has(free)) return free;
    free = `${stemOf(name)}_${n}${ending}`;
  }
}

function makeItem(picture) {
  const item = document.createElement("button");
  item.type = "button";
  item.className = "item";
  item.innerHTML = '<canvas></canvas><span class="state"></span><span class="close" title="Close (Delete)">&times;</span>';
  item.addEventListener("click", (event) => (event.target.closest(".close") ? close(picture) : choose(picture)));
  item.addEventListener("keydown", (event) => event.key === "Delete" && close(picture));
  return item;
}

function choose(picture) {
  if (current === picture) return;
  stage.endPress();
  if (begun) change(() => {});
  current = picture;
  selected = -1;
  picture.item.scrollIntoView({ block: "nearest", inline: "nearest" });
  if (picture.size) stage.reset(picture.size);
  else stage.reset({ width: 1, height: 1 });
  show();
}

function close(picture) {
  const spots = picture.hints.length;
  if (spots && !confirm(`Close ${picture.name}, and lose its ${spots} spot${spots > 1 ? "s" : ""}?`)) return;
  stage.endPress();
  if (picking) startPicking();
  const at = pictures.indexOf(picture);
  pictures.splice(at, 1);
  picture.item.remove();
  engine.call("close", { picture: snapshot(picture) }).catch(() => {});
  if (current === picture) {
    clearTimeout(turning);
    begun = current = null;
    if (pictures.length) choose(pictures[Math.min(at, pictures.length - 1)]);
  }
  refresh();
}

/** Bring what is around the picture up to date. */
function refresh() {
  const any = pictures.length > 0;
  for (const [id, shown] of [["welcome", !any], ["work", any], ["panel", any]]) $(id).hidden = !shown;
  for (const picture of pictures) {
    const { item, state, problem, name, hints } = picture;
    const count = config.hints ? hints.length : 0;
    const said = state === "done" ? (count ? `${count} spot${count > 1 ? "s" : ""}` : "") : state;
    item.querySelector(".state").textContent = said;
    item.querySelector(".state").hidden = !said;
    item.title = problem ? `${name}: ${problem}` : name;
    item.setAttribute("aria-label", `${name}, ${problem || said || "coloured"}`);
    item.setAttribute("aria-current", picture === current);
  }
  const left = pictures.filter(({ state }) => state === "waiting" || state === "working").length;
  const failed = pictures.filter(({ state }) => state === "failed").length;
  $("download-all").hidden = pictures.length < 2;
  $("download-all").disabled = left > 0 || wanted.saves.length > 0;
  $("download").disabled = current?.state !== "done" || wanted.saves.length > 0;
  if (wanted.saves.length) return;
  if (notice) say(notice);
  else if (left) say(pictures.length > 1 ? `${pictures.length - left} of ${pictures.length} pictures coloured` : "");
  else if (any) say(`${current?.name ?? ""}${failed ? ` (${failed} of ${pictures.length} could not be coloured)` : ""}`);
  else say("");
}

/** Show the current picture with its settings, and colour it. */
function show() {
  if (!current) return;
  const { strength, problem, past, future, size, name } = current;
  const hints = config.hints ? current.hints : []; // else they are kept for a model that takes them
  $("problem").hidden = !problem;
  $("problem-said").textContent = problem;
  $("strength").value = Math.round(strength * 100);
  $("strength-said").textContent = `${Math.round(strength * 100)} %`;
  $("undo").disabled = past.length === 0;
  $("redo").disabled = future.length === 0;
  $("before").setAttribute("aria-label", `${name} as it was`);
  $("after").setAttribute("aria-label", `${name} in colour`);
  $("save-hints").disabled = pictures.every((picture) => picture.hints.length === 0);
  $("spot-count").textContent = hints.length || "";
  if (selected >= hints.length) selected = -1;
  stage.showSpots(hints, selected);
  showEditor();
  if (size) wanted.view = !problem;
  wanted.suggest = config.suggests; // the spot may be another one, or lie elsewhere
  engine.changed();
  wanted.settle = false;
  stage.element.dataset.state = problem ? "failed" : "working";
  stage.hideDetail();
  refresh();
  work();
}

function showEditor() {
  const spot = current.hints[selected];
  const gray = spot && stage.colorAt(spot.x, spot.y, 0);
  $("editor").hidden = !gray;
  $("spot-help").hidden = Boolean(spot);
  if (!gray) return;
  picker.show(spot.color, labOf(gray)[0]);
  const [low, high] = reach();
  $("radius").value = Math.round((100 * (Math.log(spot.radius) - low)) / (high - low));
  $("radius-said").textContent = `${Number(spot.radius.toPrecision(3))} px`;
}

// Spots; every change can be undone

const shortSide = () => Math.min(current.size.width, current.size.height);
const reach = () => RADII.map((part) => Math.log(part * shortSide())); // of the slider, ends of a logarithmic scale

const stateOf = ({ hints, strength }) => JSON.stringify({ hints, strength });
const PAUSE = 400; // ms without a turn of the wheel, after which the next one is another change
let begun = null; // the state before a change that is still going on, such as a drag
let turning = 0;

/** Change the current picture; `done` is false while the change goes on. */
function change(how, done = true) {
  clearTimeout(turning);
  const picture = current;
  if (picture.state === "failed" && !revive(picture)) return;
  begun ??= stateOf(picture);
  how(picture);
  if (done) {
    if (begun !== stateOf(picture)) {
      picture.past = [...picture.past, begun].slice(-HISTORY);
      picture.future = [];
    }
    begun = null;
  }
  show();
}

/** Let a picture that failed be coloured again; tells whether it can be looked at, as it was read before. */
function revive(picture) {
  if (picture.size) Object.assign(picture, { state: "done", problem: "" });
  return Boolean(picture.size);
}

function retry() {
  if (!revive(current)) Object.assign(current, { state: "waiting", problem: "" }); // to be read again
  show();
}

function travel(from, to) {
  stage.endPress(); // what goes on ends here
  if (begun) change(() => {});
  if (picking) startPicking();
  if (!current?.[from].length) return;
  const moved = JSON.stringify(JSON.parse(current[from].at(-1)).hints) !== JSON.stringify(current.hints);
  if (moved && !config.hints) return tell("That change was of a spot: choose a model that takes spots first.");
  if (current.state === "failed" && !revive(current)) return;
  current[to].push(stateOf(current));
  Object.assign(current, JSON.parse(current[from].pop()));
  show();
}

const undo = () => travel("past", "future");
const redo = () => travel("future", "past");

const LEAST_STRENGTH = 0.2; // below it, 8 bits tell too little of a colour

/** Return the colour that a strength makes this one of: a spot's colour is strengthened as all others are. */
function weaken(rgb, strength) {
  const [L, a, b] = labOf(rgb);
  const share = 1 / Math.max(strength, LEAST_STRENGTH);
  return rgbOf(L, a * share, b * share);
}

function place(x, y) {
  [x, y] = [Math.floor(x), Math.floor(y)];
  const rgb = stage.colorAt(x, y, !picking || stage.isAfter(x) ? 1 : 0);
  if (!rgb) return;
  const color = toHex(weaken(rgb, picking ? picking.picture.strength : stage.strength)); // so that it looks like this one
  if (picking) return finishPicking(color);
  if (!config.hints) return tell("This model takes no colour spots.");
  if (!stage.isAfter(x)) { // else what it does would not be seen
    stage.split.value = 0;
    stage.layout();
  }
  const short = shortSide();
  const radius = Math.max(1, Math.round(RADIUS * short));
  selected = current.hints.length;
  change((picture) => picture.hints.push({ x, y, radius, color }));
  $("spots").lastElementChild.focus({ preventScroll: true });
  picker.suggest([]);
}

function select(index) {
  if (selected === index) return;
  selected = index;
  stage.showSpots(current.hints, selected);
  showEditor();
  wanted.suggest = config.suggests;
  picker.suggest([]);
  work();
}

function moveSpot(index, x, y, done) {
  change(({ hints }) => Object.assign(hints[index], { x, y }), done);
}

function resizeSpot(index, factor) {
  select(index);
  const short = shortSide();
  const limit = (radius) => Math.min(RADII[1] * short, Math.max(RADII[0] * short, 0.5, radius));
  change(({ hints }) => (hints[index].radius = Number(limit(hints[index].radius * factor).toPrecision(4))), false);
  turning = setTimeout(change, PAUSE, () => {}); // a wheel turns many times, and is undone once
}

function removeSpot(index) {
  stage.endPress();
  if (picking) startPicking();
  selected = -1;
  change(({ hints }) => hints.splice(index, 1));
  stage.element.focus({ preventScroll: true });
}

function recolor(hex, done) {
  if (current?.hints[selected]) change(({ hints }) => (hints[selected].color = hex), done);
}

function startPicking() {
  picking = picking ? null : { picture: current, selected };
  $("dropper").setAttribute("aria-pressed", Boolean(picking));
  stage.element.classList.toggle("picking", Boolean(picking));
  tell(picking ? "Click a colour in this picture, or in another one below." : "");
}

function finishPicking(hex) {
  const { picture, selected: spot } = picking;
  startPicking();
  if (current !== picture) choose(picture);
  select(spot);
  recolor(hex, true);
}

// What is coloured next: first what is looked at, then what is saved, then what waits

async function work() {
  if (working) return;
  working = true;
  document.body.dataset.working = true;
  for (let job = next(); job; job = next()) {
    await job();
    refresh();
  }
  working = false;
  document.body.dataset.working = false;
  $("busy").hidden = true;
}

function next() {
  if (current && !current.size && current.state === "waiting") return () => begin(current);
  const jobs = [["view", look], ["settle", view], ["suggest", suggest]];
  if (isForeseen()) jobs.splice(1, 0, ["suggest", suggest]);
  for (const [name, job] of jobs) {
    if (wanted[name] && !(name !== "view" && begun)) { // while a spot is dragged, drafts follow it
      wanted[name] = false;
      if (current?.size) return () => job(current);
    }
  }
  if (wanted.detail && !begun) {
    wanted.detail = false;
    if (current?.size && isCloser()) return () => view(current, true);
  }
  if (wanted.prepare) {
    wanted.prepare = false;
    if (current?.state === "done") return () => engine.call("prepare", { picture: snapshot(current) }).catch(() => {});
  }
  if (wanted.saves.length) return wanted.saves[0];
  const waiting = pictures.find(({ state }) => state === "waiting");
  return waiting && (() => begin(waiting));
}

/** Read and colour a picture that waits. */
async function begin(picture) {
  picture.state = "working";
  if (picture === current) $("busy").hidden = false;
  refresh();
  try {
    picture.size = await engine.call("open", { picture: snapshot(picture) });
    if (!pictures.includes(picture)) return; // closed meanwhile
    tellLeftOut(leaveOut(picture));
    if (picture === current) {
      stage.reset(picture.size);
      show();
      wanted.view = false; // it comes now
      await view(picture);
    } else {
      drawThumb(picture, await engine.call("view", { picture: snapshot(picture), ...whole(picture.size, THUMB ** 2 * 2) }));
    }
    if (picture.state === "working") picture.state = "done"; // else it failed, or another model was chosen
  } catch (error) {
    fail(picture, error);
  }
}

/** Leave out loaded spots that lie outside a picture. Return what there is to tell of them, in a list. */
function leaveOut(picture) {
  if (!picture.size) return []; // it is called again when the picture is read
  const count = picture.hints.length;
  picture.hints = picture.hints.filter(({ x, y }) => x < picture.size.width && y < picture.size.height);
  const outside = count - picture.hints.length;
  return outside ? [`${picture.name}: ${outside} of ${count} spots lie outside the picture and are left out.`] : [];
}

/** Say of spots that are not seen why. */
function tellHidden() {
  if (!config.hints && pictures.some(({ hints }) => hints.length)) tell("This model takes no colour spots; they are kept for another one.");
}

function tellLeftOut(sentences) {
  if (sentences.length) tell(sentences.join(" "));
}

function fail(picture, error) {
  picture.state = "failed";
  picture.problem = error.message;
  if (picture === current) show();
  if (picture === current) $("busy").hidden = true;
}

/** Return { region, columns, rows }: a picture of a size, on `most` px or fewer. */
function whole({ width, height }, most) {
  const scale = Math.min(1, Math.sqrt(most / (width * height)));
  const [columns, rows] = [width, height].map((side) => Math.max(1, Math.round(side * scale)));
  return { region: { x: 0, y: 0, width, height }, columns, rows };
}

/** Show the current picture as it is now: where its spots have changed, as a draft first. */
function look(picture) {
  const changed = picture.colored && picture.colored !== JSON.stringify(picture.hints);
  return view(picture, false, engine.drafts && changed);
}

/** Colour what is looked at: the whole picture, or closely the part of it that is seen; hasty: as a draft. */
async function view(picture, closely = false, hasty = false) {
  const spin = setTimeout(() => ($("busy").hidden = false), 400);
  try {
    const { width, height } = picture.size;
    const pixels = width * height * (Math.max(stage.fitting, 0.1) * devicePixelRatio) ** 2;
    let part = whole(picture.size, Math.min(hasty ? MAX_DRAFT : MAX_SHOWN, Math.max(pixels, 4e4)));
    if (closely) {
      const region = stage.visible;
      const scale = Math.min(1, stage.scale * devicePixelRatio, Math.sqrt((2 * MAX_SHOWN) / (region.width * region.height)));
      part = { region, columns: Math.max(1, Math.round(region.width * scale)), rows: Math.max(1, Math.round(region.height * scale)) };
    }
    const asked = snapshot(picture);
    const found = await engine.call("view", { picture: asked, ...part, hasty });
    const stale = JSON.stringify(asked) !== JSON.stringify(snapshot(picture));
    if (!closely) drawThumb(picture, found, false);
    if (picture !== current || (closely && (wanted.view || stale))) {
      found.before.close();
      found.after.close();
      return;
    }
    stage.draw(found, closely ? part.region : null, hasty);
    stage.strength = asked.strength;
    if (closely) return;
    if (hasty) wanted.settle = true;
    else picture.colored = JSON.stringify(asked.hints);
    wanted.prepare = engine.drafts && config.hints && !hasty;
    if (!wanted.view) stage.element.dataset.state = hasty ? "draft" : "ready";
    stage.shown = part.columns / width;
    if (selected >= 0) showEditor();
    looked();
  } catch (error) {
    if (error.name !== "AbortError") fail(picture, error); // else the picture was changed meanwhile
  } finally {
    clearTimeout(spin);
    $("busy").hidden = true;
  }
}

/** Tell whether more of the picture could be seen than is drawn. */
const isCloser = () => Math.min(1, stage.scale * devicePixelRatio) > 1.15 * (stage.shown ?? 1);

let looking = 0;

/** The view was moved: once it is still, what is seen closely is drawn closely. */
function looked() {
  clearTimeout(looking);
  looking = setTimeout(() => {
    if (!current?.size || !isCloser()) return;
    wanted.detail = true;
    work();
  }, engine.pause);
}

/** Return the spots of the current picture without the selected one, whose colour is then the network's own. */
const others = () => current?.hints.filter((_, i) => i !== selected);

/** Tell whether likely colours need no further look of the network, as at a new spot: it saw the picture like this. */
const isForeseen = () => current?.colored === JSON.stringify(others());

async function suggest(picture) {
  const spot = picture.hints[selected];
  if (!spot) return;
  const asked = { ...snapshot(picture), hints: others() };
  const colors = await engine.call("suggest", { picture: asked, x: spot.x, y: spot.y }).catch(() => []);
  if (picture === current && picture.hints[selected] === spot) picker.suggest(colors);
}

function drawThumb(picture, { before, after }, close = true) {
  const canvas = picture.item.querySelector("canvas");
  const scale = THUMB / Math.min(after.width, after.height);
  canvas.width = Math.min(2 * THUMB, Math.round(after.width * scale));
  canvas.height = Math.min(2 * THUMB, Math.round(after.height * scale));
  canvas.getContext("2d").drawImage(after, 0, 0, after.width, after.height, 0, 0, canvas.width, canvas.height);
  if (!close) return;
  before.close();
  after.close();
}

// Files out and in

function offer(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

const stemOf = (name) => name.replace(/\.[^.]*$/, "") || name;
const endingOf = (name) => name.slice(stemOf(name).length).toLowerCase();

function save(chosen, zipped) {
  const type = $("type").value;
  const ending = type === "image/png" ? "png" : "jpg";
  const zip = zipped ? new Zip() : null;
  const names = new Set();
  const failed = [];
  const store = async (picture, i) => {
    say(`Saving ${picture.name}${zipped ? `, ${i + 1} of ${chosen.length}` : ""}`);
    try {
      const blob = await engine.call("save", { picture: snapshot(picture), type });
      let name = `${stemOf(picture.name)}_colour.${ending}`;
      for (let n = 2; names.has(name.toLowerCase()); n++) name = `${stemOf(picture.name)}_colour_${n}.${ending}`;
      names.add(name.toLowerCase());
      if (zip) await zip.add(name, blob);
      else offer(blob, name);
    } catch (error) { // the others are saved all the same
      failed.push(`${picture.name} (${error.message})`);
    }
  };
  wanted.saves = chosen.map((picture, i) => async () => {
    if (pictures.includes(picture)) await store(picture, i); // else it was closed meanwhile
    wanted.saves.shift();
    if (wanted.saves.length) return;
    if (zip?.entries.length) offer(zip.finish(), "colour.zip");
    if (failed.length) tell(`Not saved: ${failed.join(", ")}`);
  });
  refresh();
  work();
}

function saveHints() {
  const withHints = pictures.filter(({ hints }) => hints.length);
  const content = Object.fromEntries(withHints.map(({ name, hints }) => [name, hints]));
  const name = withHints.length === 1 ? `${stemOf(withHints[0].name)}_spots.json` : "spots.json";
  offer(new Blob([JSON.stringify(content, null, 1) + "\n"], { type: "application/json" }), name);
  const renamed = withHints.filter(({ name, file }) => file.name && file.name !== name);
  const names = renamed.map((picture) => picture.name).join(", ");
  if (names) tell(`The page has renamed ${names}: rename the file too, or colorize.py does not find its spots.`);
}

/** Return points as a hint file holds them. Throws a sentence where they are something else. */
function parseHints(content, { name }) {
  if (!Array.isArray(content)) throw new Error("Spots are a list of points, as colorize.py --hints reads it.");
  return content.map((entry, i) => {
    const { x, y, radius = 4, color = entry?.colour } = entry ?? {};
    const spot = `${name}, spot ${i + 1}`;
    if (![x, y, radius].every(Number.isFinite) || radius <= 0) throw new Error(`${spot} has no x, y and radius in px.`);
    if (!/^#[0-9a-f]{6}$/i.test(color)) throw new Error(`${spot} has no color as #rrggbb.`);
    if (x < 0 || y < 0) throw new Error(`${spot} lies outside the picture.`);
    return { x, y, radius, color: color.toLowerCase() };
  });
}

async function loadHints(file) {
  try {
    const content = await file.text().then(JSON.parse).catch(() => {
      throw new Error(`${file.name} is not JSON.`);
    });
    if (!(config.models ?? [config]).some(({ hints }) => hints)) throw new Error("This model takes no colour spots.");
    const given = Array.isArray(content) ? [[current?.name, content]] : Object.entries(content ?? {});
    const found = new Map(); // picture -> its spots; nothing changes until all are read
    for (const [name, points] of given) {
      const last = String(name).split("/").pop();
      const named = pictures.filter((one) => one.name === last);
      const fitting = named.length ? named : pictures.filter((one) => stemOf(one.name) === last);
      if (fitting.length > 1) throw new Error(`${file.name}: ${last} may be ${fitting.map((one) => one.name).join(" or ")}; name it with its ending.`);
      if (found.has(fitting[0])) throw new Error(`${file.name}: ${fitting[0].name} has spots twice; put them together.`);
      if (fitting.length) found.set(fitting[0], parseHints(points, fitting[0]));
    }
    if (!found.size) throw new Error(`${file.name} has spots for other pictures: open those first.`);
    for (const [picture, hints] of found) {
      picture.past.push(stateOf(picture));
      picture.future = [];
      picture.hints = hints;
      if (picture.state === "done" && picture !== current) picture.state = "waiting";
    }
    tellLeftOut([...found.keys()].flatMap(leaveOut));
    tellHidden();
    show();
  } catch (error) {
    tell(error.message);
  }
}

// The page's controls

function listen() {
  const pick = (id) => () => $(id).click();
  $("choose").addEventListener("click", pick("files"));
  $("camera").addEventListener("click", pick("photo"));
  $("load-hints").addEventListener("click", pick("hint-file"));
  for (const id of ["files", "photo", "hint-file"]) {
    $(id).addEventListener("change", ({ target }) => {
      add(target.files);
      target.value = "";
    });
  }
  $("more").addEventListener("click", pick("files"));
  $("files").accept = ["image/*", ...engine.endings].join();
  $("undo").addEventListener("click", undo);
  $("redo").addEventListener("click", redo);
  $("in").addEventListener("click", () => stage.zoom(1.5));
  $("out").addEventListener("click", () => stage.zoom(1 / 1.5));
  $("fit").addEventListener("click", () => stage.fit());
  for (const [event, done] of [["input", false], ["change", true]]) {
    $("strength").addEventListener(event, ({ target }) => change((picture) => (picture.strength = target.value / 100), done));
    $("radius").addEventListener(event, ({ target }) => {
      const [low, high] = reach();
      const radius = Math.max(0.5, Math.exp(low + ((high - low) * target.value) / 100));
      change(({ hints }) => (hints[selected].radius = Number(radius.toPrecision(4))), done);
    });
  }
  $("remove").addEventListener("click", () => removeSpot(selected));
  $("retry").addEventListener("click", retry);
  $("dropper").addEventListener("click", startPicking);
  $("download").addEventListener("click", () => save([current], false));
  $("download-all").addEventListener("click", () => save(pictures.filter(({ state }) => state === "done"), true));
  $("save-hints").addEventListener("click", saveHints);
  $("about-open").addEventListener("click", () => $("about").showModal());
  for (const name of ["pointerdown", "keydown"]) {
    document.addEventListener(name, () => (notice = picking ? notice : ""), true); // it has been seen
  }
  stage.element.addEventListener("pointerdown", () => $("code").blur(), true); // what was typed is for the spot before
  document.addEventListener("keydown", shortcut);
  stage.element.addEventListener("keydown", steer);
  stage.element.addEventListener("blur", () => ($("cross").hidden = true));
  for (const name of ["dragover", "dragleave", "drop"]) document.addEventListener(name, drag);
  document.addEventListener("paste", ({ clipboardData }) => clipboardData.files.length && add(clipboardData.files));
  window.addEventListener("beforeunload", (event) => {
    if (pictures.some(({ hints }) => hints.length)) event.preventDefault(); // spots would be lost
  });
}

function drag(event) {
  event.preventDefault();
  document.body.classList.toggle("dragging", event.type === "dragover");
  if (event.type === "drop" && event.dataTransfer.files.length) add(event.dataTransfer.files);
}

function shortcut(event) {
  if (event.target.matches("input[type=text]") || $("about").open) return;
  const key = event.key.toLowerCase();
  if ((event.ctrlKey || event.metaKey) && (key === "z" || key === "y")) {
    event.preventDefault();
    return key === "y" || event.shiftKey ? redo() : undo();
  }
  if (event.key === "Escape" && picking) startPicking();
  const step = { PageUp: -1, PageDown: 1 }[event.key];
  if (step && current && !event.target.matches("input")) {
    event.preventDefault();
    choose(pictures[Math.min(pictures.length - 1, Math.max(0, pictures.indexOf(current) + step))]);
  }
}

let cross = [0.5, 0.5]; // where the keyboard is on the stage, in parts of it

/** The stage's keys: arrows move a cross, Enter places a spot at it. */
function steer(event) {
  if (event.target !== stage.element || event.ctrlKey || event.metaKey) return;
  const far = event.shiftKey ? 0.1 : 0.02;
  const step = { ArrowLeft: [-far, 0], ArrowRight: [far, 0], ArrowUp: [0, -far], ArrowDown: [0, far] }[event.key];
  const { left, top, width, height } = stage.element.getBoundingClientRect();
  if (step) {
    cross = cross.map((at, i) => Math.min(1, Math.max(0, at + step[i])));
  } else if (event.key === "Enter") {
    const at = stage.toPicture({ clientX: left + cross[0] * width, clientY: top + cross[1] * height });
    if (stage.isInside(at)) place(...at);
  } else if (event.key === "+" || event.key === "=") stage.zoom(1.25);
  else if (event.key === "-") stage.zoom(0.8);
  else if (event.key === "0") stage.fit();
  else return;
  event.preventDefault();
  $("cross").hidden = event.key === "Enter";
  $("cross").style.left = `${cross[0] * width}px`;
  $("cross").style.top = `${cross[1] * height}px`;
}

/** Say what the model is, and offer what it takes. */
function describe() {
  $("spot-section").hidden = !config.hints;
  $("likely-row").hidden = !config.suggests;
  $("save-hints").parentElement.hidden = !config.hints;
  $("model-said").textContent = config.said;
}

function start() {
  if (engine.missing) {
    $("drop").replaceChildren(Object.assign(document.createElement("p"), { textContent: engine.missing, role: "alert" }));
    return;
  }
  listen();
  $("privacy").textContent = config.server
    ? "They go to the program serve.py that showed you this page, and nowhere else."
    : "Nothing is uploaded: this page works without a network, and your pictures stay on this device.";
  $("depth").textContent = config.server
    ? "As colorize.py writes it, with 16 bits and metadata where PNG or JPEG hold them."
    : "8 bits per channel, without metadata. A scan of 16 bits keeps them with colorize.py.";
  if (config.models?.length > 1) {
    $("models").hidden = false;
    $("model").replaceChildren(...config.models.map(({ model }) => new Option(model)));
    $("model").addEventListener("change", ({ target }) => {
      Object.assign(config, config.models[target.selectedIndex]);
      describe();
      if (picking) startPicking();
      tellHidden();
      for (const picture of pictures) Object.assign(picture, { state: "waiting", problem: "" });
      show();
    });
  }
  describe();
}

start();
