// The emotion over the speech: coloured spans under the waveform, curves of strength beneath; rows to edit a timeline.
// props.value: {seconds, peaks, labels, colours, editable, clip, keyframes: [{time, weights: {label: strength}}]}.
const WIDTH = 420, WAVE = 84, CURVES = 70, AXIS = 18, GAP = 8, STRONGEST = 2, SAMPLES = 121;
const MARKER = 7;
let keyframes = [];
let drag = null;

function value() { return props.value || { seconds: 0, peaks: [], labels: [], colours: {}, keyframes: [] }; }
function part(name) { return element.querySelector(".dt-time-" + name); }
function seconds() { return value().seconds || 4; }
function colour(label) { return value().colours[label] || "#888"; }
function round(time) { return Math.round(time * 100) / 100; }

function escaped(text) {
  return String(text).replace(/[&<>"']/g, (c) => `&#${c.charCodeAt(0)};`);
}

// As `inference.emotion.Emotion.at`: held before the first and after the last, 3u² − 2u³ between.
function weightsAt(time) {
  const frames = keyframes, last = frames.length - 1;
  if (last < 0) return {};
  if (time <= frames[0].time) return frames[0].weights;
  if (time >= frames[last].time) return frames[last].weights;
  let i = 0;
  while (frames[i + 1].time <= time) i++;
  let u = (time - frames[i].time) / (frames[i + 1].time - frames[i].time);
  u = u * u * (3 - 2 * u);
  const mixed = {};
  for (const [label, weight] of Object.entries(frames[i].weights)) mixed[label] = (1 - u) * weight;
  for (const [label, weight] of Object.entries(frames[i + 1].weights)) mixed[label] = (mixed[label] || 0) + u * weight;
  return mixed;
}

function mixedColour(weights) {
  let total = 0;
  const sum = [0, 0, 0];
  for (const [label, weight] of Object.entries(weights)) {
    const hex = colour(label);
    for (let k = 0; k < 3; k++) sum[k] += weight * parseInt(hex.slice(1 + 2 * k, 3 + 2 * k), 16);
    total += weight;
  }
  return total ? `rgb(${sum.map((channel) => Math.round(channel / total)).join(",")})` : "transparent";
}

function figure() {
  const { peaks, clip, editable } = value(), whole = seconds(), id = element.id || "dt";
  const stops = [], curves = {};
  for (let k = 0; k < SAMPLES; k++) {
    const share = k / (SAMPLES - 1), weights = weightsAt(share * whole);
    const strength = Math.min(1, Object.values(weights).reduce((a, b) => a + b, 0));
    stops.push(`<stop offset="${share}" stop-color="${mixedColour(weights)}" stop-opacity="${0.12 + 0.5 * strength}"/>`);
    for (const label of new Set(keyframes.flatMap((frame) => Object.keys(frame.weights)))) {
      (curves[label] = curves[label] || []).push([share * WIDTH, weights[label] || 0]);
    }
  }
  const bars = peaks.map((peak, i) => {
    const x = (i + 0.5) * WIDTH / peaks.length, half = Math.max(0.6, peak * (WAVE / 2 - 6));
    return `<path d="M${x.toFixed(1)} ${(WAVE / 2 - half).toFixed(1)}v${(2 * half).toFixed(1)}"/>`;
  }).join("");
  const top = WAVE + GAP, most = Math.max(1, ...Object.values(curves).flat().map(([, y]) => y));
  const lines = Object.entries(curves).map(([label, points]) => {
    const d = points.map(([x, y]) => `${x.toFixed(1)} ${(top + CURVES - 2 - y / most * (CURVES - 6)).toFixed(1)}`).join("L");
    return `<path class="dt-time-curve" d="M${d}" stroke="${colour(label)}"/>`;
  }).join("");
  const spacing = [0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60].find((gap) => whole / gap <= 8) || 120;
  let ticks = "";
  for (let k = 0; k * spacing <= whole + 1e-9; k++) {
    const time = round(k * spacing), x = time / whole * WIDTH;
    const anchor = k === 0 ? "start" : x > WIDTH - 20 ? "end" : "middle";
    ticks += `<text x="${x.toFixed(1)}" y="${top + CURVES + AXIS - 4}" text-anchor="${anchor}">${time} s</text>`;
  }
  const markers = !editable ? "" : keyframes.map((frame, i) => {
    const x = Math.min(frame.time / whole, 1) * WIDTH, label = Object.keys(frame.weights)[0];
    return `<g class="dt-time-marker" data-marker="${i}"><path d="M${x.toFixed(1)} 0V${WAVE}" stroke="${colour(label)}"/>` +
      `<circle cx="${x.toFixed(1)}" cy="${MARKER + 1}" r="${MARKER}" fill="${colour(label)}"/></g>`;
  }).join("");
  const legend = Object.keys(curves).map((label) => `<span><i style="background:${colour(label)}"></i>${escaped(label)}</span>`);
  const words = clip ? `The emotion of ${clip}` : `Emotion over ${round(whole)} s`;
  const empty = peaks.length ? "" : `<text class="dt-time-empty" x="${WIDTH / 2}" y="${WAVE / 2 + 4}" text-anchor="middle">no speech yet</text>`;
  return `<svg viewBox="0 0 ${WIDTH} ${top + CURVES + AXIS}" role="img" aria-label="${escaped(words)}" class="${editable ? "dt-editable" : ""}">` +
    `<defs><linearGradient id="${id}-spans">${stops.join("")}</linearGradient></defs>` +
    `<rect class="dt-time-wave" width="${WIDTH}" height="${WAVE}" rx="6" fill="url(#${id}-spans)"/>` +
    `<g class="dt-time-bars">${bars}</g>${empty}` +
    `<path class="dt-time-axis" d="M0 ${top + CURVES - 2}H${WIDTH}M0 ${top + 4}H${WIDTH}"/>` +
    `<text class="dt-time-top" x="${WIDTH}" y="${top + 14}" text-anchor="end">${round(most)}</text>${lines}${ticks}${markers}</svg>` +
    `<div class="dt-time-legend">${clip ? `<span>emotion of ${escaped(clip)}</span>` : legend.join("")}</div>`;
}

function rows() {
  if (!value().editable) return "";
  const options = (chosen) => value().labels.map((label) =>
    `<option${label === chosen ? " selected" : ""}>${escaped(label)}</option>`).join("");
  const lines = keyframes.map((frame, i) => {
    const [label, strength] = Object.entries(frame.weights)[0];
    return `<li data-row="${i}"><i style="background:${colour(label)}"></i>` +
      `<label>at<input type="number" name="time" min="0" step="0.1" value="${frame.time}" aria-label="Time in seconds">s</label>` +
      `<select name="label" aria-label="Emotion">${options(label)}</select>` +
      `<label>×<input type="number" name="strength" min="0" max="${STRONGEST}" step="0.1" value="${strength}" aria-label="Strength"></label>` +
      `<button type="button" name="remove" aria-label="Remove ${escaped(label)} at ${frame.time} s"${keyframes.length < 2 ? " disabled" : ""}>✕</button></li>`;
  });
  return `<ol>${lines.join("")}</ol><button type="button" name="add" class="dt-button">Add an emotion</button>` +
    `<p class="dt-quiet">Or click the waveform where an emotion should begin, and drag its mark.</p>`;
}

function paint(whole = true) {
  if (!part("figure")) return;
  part("figure").innerHTML = figure();
  if (whole) part("rows").innerHTML = rows();
}

function load() {
  keyframes = (value().keyframes || []).map((frame) => ({ time: Number(frame.time), weights: { ...frame.weights } }));
  keyframes.sort((a, b) => a.time - b.time);
  if (!drag) paint();
}

function commit() {
  const focus = document.activeElement, row = focus && focus.closest && focus.closest("[data-row]");
  const kept = row && element.contains(row) ? [keyframes[Number(row.dataset.row)], focus.name] : null;
  keyframes.sort((a, b) => a.time - b.time);
  props.value = { ...value(), keyframes };
  paint();
  if (kept) {
    const again = element.querySelector(`[data-row="${keyframes.indexOf(kept[0])}"] [name=${kept[1]}]`);
    if (again) again.focus();
  }
  trigger("edited");
}

// Two emotions never share a time.
function freeTime(time) {
  time = round(Math.max(0, time));
  while (keyframes.some((frame) => frame.time === time)) time = round(time + 0.1);
  return time;
}

function add(time) {
  const last = keyframes.filter((frame) => frame.time <= time).pop() || keyframes[0];
  const used = last ? Object.keys(last.weights)[0] : "";
  const label = used === "happy" || !value().labels.includes("happy") ? value().labels.find((name) => name !== used) : "happy";
  const frame = { time: freeTime(time), weights: { [label]: 1 } };
  keyframes.push(frame);
  return frame;
}

function timeOf(event) {
  const frame = part("figure").querySelector("svg").getBoundingClientRect();
  return Math.min(Math.max((event.clientX - frame.left) / frame.width, 0), 1) * seconds();
}

element.addEventListener("pointerdown", (event) => {
  if (!value().editable || event.button) return;
  const svg = event.target.closest("svg"), marker = event.target.closest("[data-marker]");
  if (!svg) return;
  const frame = svg.getBoundingClientRect(), shareDown = (event.clientY - frame.top) / frame.height;
  if (marker) drag = { frame: keyframes[Number(marker.dataset.marker)] };
  else if (shareDown < WAVE / (WAVE + GAP + CURVES + AXIS)) drag = { frame: add(timeOf(event)), moved: true };
  else return;
  event.preventDefault();
  part("figure").setPointerCapture(event.pointerId);
  keyframes.sort((a, b) => a.time - b.time);
  paint(false);
});

element.addEventListener("pointermove", (event) => {
  if (!drag) return;
  const others = keyframes.filter((frame) => frame !== drag.frame), time = round(timeOf(event));
  if (others.some((frame) => frame.time === time)) return;
  drag.frame.time = time;
  drag.moved = true;
  keyframes.sort((a, b) => a.time - b.time);
  paint(false);
});

for (const end of ["pointerup", "pointercancel"]) {
  element.addEventListener(end, () => {
    const moved = drag && drag.moved;
    drag = null;
    if (moved) commit();
  });
}

element.addEventListener("click", (event) => {
  if (event.target.name === "add") {
    const last = keyframes.length ? keyframes[keyframes.length - 1].time : -1;
    const frame = add(last < 0 ? 0 : Math.min(last + 1, Math.max(seconds() - 0.1, last + 0.5)));
    commit();
    const field = element.querySelector(`[data-row="${keyframes.indexOf(frame)}"] [name=label]`);
    if (field) field.focus();
  } else if (event.target.name === "remove") {
    keyframes.splice(Number(event.target.closest("[data-row]").dataset.row), 1);
    commit();
    element.querySelector("[name=add]").focus();
  }
});

element.addEventListener("change", (event) => {
  const row = event.target.closest("[data-row]");
  if (!row) return;
  const frame = keyframes[Number(row.dataset.row)], [label, strength] = Object.entries(frame.weights)[0];
  const number = parseFloat(event.target.value);
  if (event.target.name === "label") frame.weights = { [event.target.value]: strength };
  if (event.target.name === "strength" && isFinite(number)) {
    frame.weights = { [label]: Math.min(Math.max(number, 0), STRONGEST) };
  }
  if (event.target.name === "time" && isFinite(number) && round(number) !== frame.time) {
    frame.time = -1;
    frame.time = freeTime(number);
  }
  commit();
});

watch("value", load);
load();
