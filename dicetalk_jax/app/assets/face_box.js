// The portrait with the face's box: moved, resized or drawn with a pointer, arrow keys or numbers.
// props.value: {preview, width, height, faces: [[x, y, w, h]], box: [x, y, w, h] | null}, in the portrait's pixels.
const LEAST = 8;
const SIDES = ["left", "top", "width", "height"];
let box = null;
let drag = null;

function value() { return props.value && props.value.preview ? props.value : null; }
function part(name) { return element.querySelector(".dt-face-" + name); }
function clamp(x, low, high) { return Math.min(Math.max(x, low), high); }

function fitted([x, y, w, h]) {
  const { width, height } = value();
  w = clamp(Math.round(w), LEAST, width);
  h = clamp(Math.round(h), LEAST, height);
  return [clamp(Math.round(x), 0, width - w), clamp(Math.round(y), 0, height - h), w, h];
}

function place(node, [x, y, w, h]) {
  const { width, height } = value();
  node.style.left = (100 * x / width) + "%";
  node.style.top = (100 * y / height) + "%";
  node.style.width = (100 * w / width) + "%";
  node.style.height = (100 * h / height) + "%";
}

function paint() {
  const known = value(), root = part("root");
  if (!root) return;
  root.hidden = !known;
  if (!known) return;
  if (part("picture").getAttribute("src") !== known.preview) part("picture").src = known.preview;
  part("box").hidden = !box;
  if (box) place(part("box"), box);
  for (const [i, side] of SIDES.entries()) {
    const field = element.querySelector(`input[name=${side}]`);
    if (document.activeElement !== field) field.value = box ? box[i] : "";
    field.max = i % 2 ? known.height : known.width;
  }
  const others = part("others");
  others.replaceChildren();
  known.faces.forEach((face, i) => {
    if (box && face.every((side, k) => side === box[k])) return;
    const button = document.createElement("button");
    button.type = "button";
    button.className = "dt-face-other";
    button.setAttribute("aria-label", `Take face ${i + 1} of ${known.faces.length}`);
    button.title = "Take this face";
    button.dataset.face = i;
    place(button, face);
    others.append(button);
  });
  const count = known.faces.length;
  part("hint").textContent = !count && !box ? "Draw a box around the face." :
    count > 1 ? `${count} faces were found. Click the one that speaks, or draw a box.` :
    "Drag the box to move it, its corners to resize it, or draw another.";
}

function commit() {
  props.value = { ...value(), box };
  paint();
  trigger("edited");
}

function load() {
  const known = value();
  box = known && known.box ? known.box.map(Number) : null;
  drag = null;
  paint();
}

function point(event) {
  const frame = part("stage").getBoundingClientRect(), { width, height } = value();
  return [(event.clientX - frame.left) / frame.width * width, (event.clientY - frame.top) / frame.height * height];
}

element.addEventListener("pointerdown", (event) => {
  if (!value() || event.button || !event.target.closest(".dt-face-stage")) return;
  if (event.target.closest(".dt-face-other")) return;
  const [x, y] = point(event), corner = event.target.dataset.corner;
  if (corner) drag = { corner, from: [...box] };
  else if (event.target.closest(".dt-face-box")) drag = { move: [x, y], from: [...box] };
  else drag = { start: [clamp(x, 0, value().width), clamp(y, 0, value().height)], before: box };
  part("stage").setPointerCapture(event.pointerId);
  event.preventDefault();
  if (box) part("box").focus({ preventScroll: true });
});

element.addEventListener("pointermove", (event) => {
  if (!drag) return;
  const { width, height } = value();
  let [x, y] = point(event);
  if (drag.move) {
    box = fitted([drag.from[0] + x - drag.move[0], drag.from[1] + y - drag.move[1], drag.from[2], drag.from[3]]);
  } else {
    x = clamp(x, 0, width);
    y = clamp(y, 0, height);
    let anchor = drag.start;
    if (drag.corner) {
      const [bx, by, bw, bh] = drag.from;
      anchor = [drag.corner.includes("w") ? bx + bw : bx, drag.corner.includes("n") ? by + bh : by];
    }
    const drawn = [Math.min(x, anchor[0]), Math.min(y, anchor[1]), Math.abs(x - anchor[0]), Math.abs(y - anchor[1])];
    // A click draws nothing.
    if (drag.corner || Math.max(drawn[2], drawn[3]) >= LEAST) box = fitted(drawn);
  }
  drag.moved = true;
  paint();
});

for (const end of ["pointerup", "pointercancel"]) {
  element.addEventListener(end, () => {
    const moved = drag && drag.moved;
    drag = null;
    if (moved) commit();
  });
}

element.addEventListener("click", (event) => {
  const other = event.target.closest(".dt-face-other");
  if (!other) return;
  box = [...value().faces[Number(other.dataset.face)]];
  commit();
  part("box").focus({ preventScroll: true });
});

element.addEventListener("keydown", (event) => {
  const by = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
  if (!by || !box || !event.target.closest(".dt-face-box")) return;
  event.preventDefault();
  const step = Math.max(1, Math.round(value().width / 100));
  const [dx, dy] = by.map((sign) => sign * step);
  box = fitted(event.shiftKey ? [box[0], box[1], box[2] + dx, box[3] + dy] : [box[0] + dx, box[1] + dy, box[2], box[3]]);
  paint();
});

element.addEventListener("keyup", (event) => {
  if (event.key.startsWith("Arrow") && event.target.closest(".dt-face-box")) commit();
});

element.addEventListener("change", (event) => {
  if (!SIDES.includes(event.target.name) || !value()) return;
  const numbers = SIDES.map((side) => parseFloat(element.querySelector(`input[name=${side}]`).value));
  // A box is one when all four are there.
  if (numbers.some((number) => !isFinite(number))) return;
  box = fitted(numbers);
  event.target.value = box[SIDES.indexOf(event.target.name)];
  commit();
});

watch("value", load);
load();
