// The unit explorer: a map on a canvas, a table beside it for the keyboard, details of one unit.
// Untrusted text reaches the page through textContent only.
const $ = (id) => document.getElementById(id);
const make = (tag, text, attributes = {}) => {
  const e = document.createElement(tag);
  if (text !== undefined) e.textContent = text;
  for (const [k, v] of Object.entries(attributes)) e.setAttribute(k, v);
  return e;
};
const MARGIN = { left: 74, right: 8, top: 10, bottom: 42 };
const LISTED = 30;
const BACK_TO_FRONT = ["CU", "RU", "UCU", "SCU"];

(async () => {
  const head = JSON.parse(await unpackText(HEAD));
  const bytes = await unpack(UNITS);
  const n = head.kinds.reduce((sum, k) => sum + head.layers * k.width, 0);
  const columns = head.columns.map((name, i) => ({ name, values: new Float32Array(bytes, 4 * n * i, n) }));
  const role = new Uint8Array(bytes, 4 * n * head.columns.length, n);
  const mlp = head.layers * head.kinds[0].width; // units before the first head

  // ---- names and places of units

  const kindOf = (i) => (i < mlp ? 0 : 1);
  const layerOf = (i) => Math.floor((kindOf(i) ? i - mlp : i) / head.kinds[kindOf(i)].width);
  const indexOf = (i) => (kindOf(i) ? i - mlp : i) % head.kinds[kindOf(i)].width;
  const nameOf = (i) => `L${layerOf(i)}${kindOf(i) ? "H" : "N"}${indexOf(i)}`;
  const unitAt = (kind, layer, index) =>
    layer < head.layers && index < head.kinds[kind].width
      ? (kind ? mlp : 0) + layer * head.kinds[kind].width + index
      : -1;
  const parse = (text) => {
    const numbers = text.match(/\d+/g);
    if (!numbers || numbers.length !== 2) return -1;
    const kind = /h/i.test(text.replace(/the/gi, "")) ? 1 : 0;
    return unitAt(kind, Number(numbers[0]), Number(numbers[1]));
  };

  // ---- scores: ranks within a kind, a compressed scale

  const prepare = (column) => {
    if (column.rank) return column;
    column.rank = new Float32Array(n).fill(NaN);
    column.size = new Float32Array(n).fill(2); // share of the kind that is larger in magnitude; 2: not measured
    for (const [from, to] of [[0, mlp], [mlp, n]]) {
      const known = [];
      for (let i = from; i < to; i++) if (Number.isFinite(column.values[i])) known.push(i);
      const order = Uint32Array.from(known).sort((a, b) => column.values[a] - column.values[b]);
      order.forEach((unit, place) => (column.rank[unit] = order.length > 1 ? place / (order.length - 1) : 1));
      order.sort((a, b) => Math.abs(column.values[b]) - Math.abs(column.values[a]));
      order.forEach((unit, place) => (column.size[unit] = place / order.length));
    }
    const sizes = Float32Array.from(column.values.filter(Number.isFinite), Math.abs).sort();
    column.bulk = sizes[Math.floor(0.9 * sizes.length)] || sizes[sizes.length - 1] || 1;
    return column;
  };
  const compress = (column, v) => Math.asinh(v / (column.bulk / 3));

  // ---- what is shown

  const state = { column: columns[0], scale: "value", kind: "all", roles: new Set(head.roles.map((_, i) => i)),
    first: 0, last: head.layers - 1, share: 1, selected: -1 };
  const canvas = $("map");
  const pen = canvas.getContext("2d", { willReadFrequently: true });
  let shown = new Uint32Array(0), xs = new Float32Array(0), ys = new Float32Array(0);
  const colours = head.roles.map((r) => parseInt(r.colour.slice(1), 16));
  // A lane per role within each layer, the wider the more units it holds, but never too thin to see.
  const weights = head.counts.map((c) => Math.max(Math.sqrt(c / n), 0.15));
  const whole = weights.reduce((a, b) => a + b);
  const lanes = weights.map((w, i) => ({ width: w / whole, start: weights.slice(0, i).reduce((a, b) => a + b, 0) / whole }));

  const visibleUnits = () => {
    const { column, share } = state;
    const out = [];
    for (let i = 0; i < n; i++) {
      if (!state.roles.has(role[i]) || !Number.isFinite(column.values[i])) continue;
      if (state.kind !== "all" && kindOf(i) !== Number(state.kind)) continue;
      const layer = layerOf(i);
      if (layer < state.first || layer > state.last) continue;
      if (share < 1 && column.size[i] >= share) continue;
      out.push(i);
    }
    return Uint32Array.from(out);
  };

  const draw = () => {
    const column = prepare(state.column);
    shown = visibleUnits();
    const ratio = window.devicePixelRatio || 1;
    const width = canvas.clientWidth, height = canvas.clientHeight;
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
    const box = { x: MARGIN.left, y: MARGIN.top, w: width - MARGIN.left - MARGIN.right,
      h: height - MARGIN.top - MARGIN.bottom };
    const up = state.scale === "rank" ? (i) => column.rank[i] : (i) => compress(column, column.values[i]);
    let low = Infinity, high = -Infinity;
    for (const i of shown) {
      const v = up(i);
      if (v < low) low = v;
      if (v > high) high = v;
    }
    if (!(low < high)) [low, high] = Number.isFinite(low) ? [low - 1, low + 1] : [-1, 1];
    const band = box.w / (state.last - state.first + 1);
    const toY = (v) => box.y + box.h * (1 - (v - low) / (high - low));
    xs = new Float32Array(shown.length);
    ys = new Float32Array(shown.length);
    shown.forEach((unit, k) => {
      const spread = ((Math.imul(unit, 2654435761) >>> 0) / 4294967296) * 0.8 + 0.1;
      const lane = lanes[role[unit]];
      xs[k] = box.x + band * (layerOf(unit) - state.first + 0.04 + 0.92 * (lane.start + lane.width * spread));
      ys[k] = toY(up(unit));
    });
    pen.setTransform(1, 0, 0, 1, 0, 0);
    pen.fillStyle = "#fff";
    pen.fillRect(0, 0, canvas.width, canvas.height);
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    drawAxes(box, band, low, high, toY, column);
    drawPoints(ratio);
    mark(state.selected);
    canvas.setAttribute("aria-label",
      `Map of ${shown.length} units: layer from left to right, ${column.name} upwards, colour by role. ` +
      "Arrow keys go from unit to unit; the table below lists the strongest.");
  };

  const drawAxes = (box, band, low, high, toY, column) => {
    pen.font = "12px system-ui, sans-serif";
    pen.textBaseline = "top";
    pen.textAlign = "center";
    const count = state.last - state.first + 1;
    const every = Math.ceil((count * 26) / box.w);
    for (let layer = state.first; layer <= state.last; layer++) {
      const x = box.x + band * (layer - state.first);
      if ((layer - state.first) % 2) {
        pen.fillStyle = "#f4f6f8";
        pen.fillRect(x, box.y, band, box.h);
      }
      pen.fillStyle = "#4d5761";
      if ((layer - state.first) % every === 0) pen.fillText(layer, x + band / 2, box.y + box.h + 5);
    }
    const lanesTold = "layer (0 = first block); within a layer: " + head.roles.map((r) => r.name).join(", ");
    const room = pen.measureText(lanesTold).width <= box.w;
    pen.fillText(room ? lanesTold : "layer (0 = first block)", box.x + box.w / 2, box.y + box.h + 22);
    pen.save();
    pen.translate(4, box.y + box.h / 2);
    pen.rotate(-Math.PI / 2);
    pen.fillText(state.scale === "rank" ? `${column.name}: above this share of its kind` : column.name, 0, 0);
    pen.restore();
    pen.textAlign = "right";
    pen.textBaseline = "middle";
    let above = Infinity;
    for (const [v, text] of ticks(column, low, high)) {
      const y = toY(v);
      if (above - y < 16) continue;
      above = y;
      pen.fillStyle = "#e0e4e8";
      pen.fillRect(box.x, y, box.w, 1);
      pen.fillStyle = "#4d5761";
      pen.fillText(text, box.x - 6, y);
    }
  };

  const ticks = (column, low, high) => {
    if (state.scale === "rank") return [0, 0.25, 0.5, 0.75, 1].filter((v) => v >= low && v <= high).map((v) => [v, `${v * 100}%`]);
    const values = [0];
    for (let power = -9; power <= 9; power++)
      for (const digit of [1, 3]) values.push(digit * 10 ** power, -digit * 10 ** power);
    const inside = values.filter((v) => v === 0 || Math.abs(v) > column.bulk / 6).sort((a, b) => a - b)
      .map((v) => [compress(column, v), short(v)]);
    return inside.filter(([v]) => v >= low && v <= high);
  };

  const drawPoints = (ratio) => {
    const image = pen.getImageData(0, 0, canvas.width, canvas.height);
    const pixels = new Uint32Array(image.data.buffer);
    const base = shown.length > 60000 ? 1.4 : shown.length > 3000 ? 2.2 : 4;
    const order = BACK_TO_FRONT.map((r) => head.roles.findIndex((x) => x.name === r)).filter((r) => r >= 0);
    for (const r of order) {
      const rgb = colours[r];
      const word = 0xff000000 | ((rgb & 255) << 16) | (rgb & 0xff00) | (rgb >> 16); // little-endian ABGR
      for (let k = 0; k < shown.length; k++) {
        if (role[shown[k]] !== r) continue;
        const side = Math.max(1, Math.round((kindOf(shown[k]) ? base + 1.5 : base) * ratio));
        const left = Math.round(xs[k] * ratio - side / 2), top = Math.round(ys[k] * ratio - side / 2);
        for (let y = Math.max(top, 0); y < top + side && y < canvas.height; y++)
          pixels.fill(word, y * canvas.width + Math.max(left, 0), y * canvas.width + Math.min(left + side, canvas.width));
      }
    }
    pen.putImageData(image, 0, 0);
  };

  const mark = (unit) => {
    const k = shown.indexOf(unit);
    if (k < 0) return;
    pen.beginPath();
    pen.arc(xs[k], ys[k], 8, 0, 2 * Math.PI);
    pen.lineWidth = 2.5;
    pen.strokeStyle = "#000";
    pen.stroke();
  };

  const nearest = (x, y, reach) => {
    let best = -1, least = reach * reach;
    for (let k = 0; k < shown.length; k++) {
      const d = (xs[k] - x) ** 2 + (ys[k] - y) ** 2;
      if (d < least) [least, best] = [d, shown[k]];
    }
    return best;
  };

  // ---- numbers and words

  const short = (v) => (v === 0 ? "0" : Math.abs(v) >= 1000 || Math.abs(v) < 0.001 ? v.toExponential(0) : String(+v.toPrecision(2)));
  const exact = (v) => (Number.isFinite(v) ? String(+v.toPrecision(4)) : "not measured");
  const share = (v) => (v > 0.999 ? ">99.9%" : `${(v * 100).toFixed(1)}%`);

  // ---- the table and the details

  const unitButton = (unit) => {
    const b = make("button", nameOf(unit), { class: "unit", type: "button" });
    b.addEventListener("click", () => show(unit));
    return b;
  };

  const list = () => {
    const { column } = state;
    const best = Array.from(shown).sort((a, b) => column.size[a] - column.size[b] || a - b).slice(0, LISTED);
    $("listed").textContent = `${shown.length.toLocaleString("en")} of ${n.toLocaleString("en")} units shown; the ${best.length} largest in size within their kind, by ${column.name}`;
    $("heads").replaceChildren(...["unit", "role", ...columns.map((c) => c.name)].map((t) => make("th", t, { scope: "col" })));
    $("list").replaceChildren(...best.map((unit) => {
      const row = make("tr");
      const cell = make("td");
      cell.append(unitButton(unit));
      row.append(cell, make("td", head.roles[role[unit]].name), ...columns.map((c) => make("td", exact(c.values[unit]))));
      return row;
    }));
  };

  const snippet = ({ t, v, p }, most) => {
    const line = make("div", undefined, { class: "snippet", dir: "auto" });
    t.forEach((token, k) => {
      const span = make("span", head.tokens[token], { title: exact(v[k]) });
      const strength = Math.min(Math.abs(v[k]) / most, 1) * 0.75;
      span.style.backgroundColor = v[k] >= 0 ? `rgba(213,94,0,${strength})` : `rgba(0,114,178,${strength})`;
      if (k === p) span.className = "peak";
      line.append(span);
    });
    line.append(make("span", `  ${exact(v[p])}`, { class: "soft" }));
    return line;
  };

  const open = (unit, move = true) => {
    state.selected = unit;
    const r = head.roles[role[unit]];
    const title = make("h2", nameOf(unit));
    const badge = make("span", `${r.name}: ${r.meaning}`, { class: "badge" });
    badge.style.background = r.dark;
    title.append(badge);
    const facts = make("dl");
    const fact = (k, v, soft = "") => {
      const value = make("dd", v);
      value.append(make("span", soft, { class: "soft" }));
      facts.append(make("dt", k), value);
    };
    fact(kindOf(unit) ? "attention head" : "MLP neuron", `${indexOf(unit)} of layer ${layerOf(unit)}`);
    for (const c of columns) {
      prepare(c);
      fact(c.name, exact(c.values[unit]), Number.isFinite(c.rank[unit]) ? ` above ${share(c.rank[unit])}` : "");
    }
    const parts = [title, facts, make("p", `“above”: the share of all ${kindOf(unit) ? "heads" : "neurons"} with a smaller value`, { class: "soft" })];
    const context = head.contexts[nameOf(unit)];
    if (context) {
      if (context.direct !== null) fact("direct effect on refusing tokens", exact(context.direct));
      const most = Math.max(1e-9, ...Object.values(context.examples).flat().flatMap((s) => s.v.map(Math.abs)));
      parts.push(make("p", "Texts: orange is above zero, blue below; the number is the value of the outlined token. " +
        (kindOf(unit) ? "Of a head, the size of what it writes." : "Of a neuron, its activation."), { class: "soft" }));
      for (const [side, snippets] of Object.entries(context.examples)) {
        parts.push(make("h3", `Most active on ${side} prompts`));
        parts.push(...(snippets.length ? snippets.map((s) => snippet(s, most)) : [make("p", "no prompts", { class: "soft" })]));
      }
      if (context.neighbours.length) {
        parts.push(make("h3", "Units that write most alike (cosine)"));
        const p = make("p");
        for (const [name, cosine] of context.neighbours) {
          const other = parse(name);
          if (other >= 0) p.append(unitButton(other), ` ${cosine.toFixed(2)}  `);
        }
        parts.push(p);
      }
    } else parts.push(make("p", head.missing, { class: "soft" }));
    $("details").replaceChildren(...parts);
    $("details").dataset.unit = nameOf(unit);
    $("message").textContent = "";
    if (move) draw();
  };

  // On a narrow screen the details stand below the map: whoever opens a unit is taken to them.
  const show = (unit) => {
    open(unit);
    const box = $("details").getBoundingClientRect();
    if (box.top > window.innerHeight - 120 || box.bottom < 120) $("details").scrollIntoView({ block: "start" });
  };

  // ---- the map by keyboard: up and down within a layer, left and right to the nearest height of the next one

  const step = (key) => {
    const at = shown.indexOf(state.selected);
    if (at < 0) return shown.length ? Array.from(shown).sort((a, b) => state.column.size[a] - state.column.size[b])[0] : -1;
    const side = { ArrowLeft: -1, ArrowRight: 1 }[key] || 0;
    const layer = layerOf(state.selected);
    let best = -1, least = Infinity;
    for (let k = 0; k < shown.length; k++) {
      const away = ys[at] - ys[k]; // upwards
      const fits = side
        ? Math.sign(layerOf(shown[k]) - layer) === side
        : k !== at && layerOf(shown[k]) === layer && (key === "ArrowUp" ? away > 0 || (away === 0 && k > at) : away < 0 || (away === 0 && k < at));
      const distance = side ? Math.abs(layerOf(shown[k]) - layer) * 1e6 + Math.abs(away) : Math.abs(away);
      if (fits && distance < least) [least, best] = [distance, shown[k]];
    }
    return best;
  };

  // ---- controls

  head.roles.forEach((r, i) => {
    const label = make("label");
    const box = make("input", undefined, { type: "checkbox", value: r.name });
    box.checked = true;
    box.addEventListener("change", () => (box.checked ? state.roles.add(i) : state.roles.delete(i), refresh()));
    const swatch = make("span", undefined, { class: "swatch" });
    swatch.style.background = r.colour;
    label.append(box, swatch, `${r.name} (${head.counts[i].toLocaleString("en")})`);
    $("roles").append(label);
  });
  columns.forEach((c, i) => $("column").append(make("option", c.name, { value: i })));
  for (const id of ["first", "last"]) $(id).max = head.layers - 1;
  $("first").value = 0;
  $("last").value = head.layers - 1;
  $("title").textContent = head.title;
  $("words").textContent = head.words;

  const refresh = () => (draw(), list());
  const layerInput = () => {
    const clamp = (v, other) => (Number.isInteger(v) && v >= 0 && v < head.layers ? v : other);
    const first = clamp($("first").valueAsNumber, 0), last = clamp($("last").valueAsNumber, head.layers - 1);
    [state.first, state.last] = first <= last ? [first, last] : [last, first];
    refresh();
  };
  $("first").addEventListener("change", layerInput);
  $("last").addEventListener("change", layerInput);
  $("kind").addEventListener("change", (e) => ((state.kind = e.target.value), refresh()));
  $("scale").addEventListener("change", (e) => ((state.scale = e.target.value), refresh()));
  $("share").addEventListener("change", (e) => ((state.share = Number(e.target.value)), refresh()));
  $("column").addEventListener("change", (e) => ((state.column = columns[e.target.value]), refresh()));
  $("controls").addEventListener("submit", (e) => {
    e.preventDefault();
    const text = $("search").value.trim();
    const unit = parse(text);
    if (unit >= 0) show(unit);
    else $("message").textContent = text
      ? `No unit '${text}': there are layers 0-${head.layers - 1}, neurons N0-N${head.kinds[0].width - 1}, heads H0-H${head.kinds[1].width - 1}; for example L0N0.`
      : "Type a unit to find, for example L0N0.";
  });
  const place = (event) => {
    const box = canvas.getBoundingClientRect();
    return [event.clientX - box.left - canvas.clientLeft, event.clientY - box.top - canvas.clientTop];
  };
  let waiting = false;
  canvas.addEventListener("mousemove", (event) => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      const [x, y] = place(event);
      const unit = nearest(x, y, 10);
      const tip = $("tip");
      tip.style.display = unit < 0 ? "none" : "block";
      if (unit < 0) return;
      tip.textContent = `${nameOf(unit)}  ${head.roles[role[unit]].name}  ${state.column.name} ${exact(state.column.values[unit])}`;
      tip.style.left = `${Math.min(x + 12, canvas.clientWidth - tip.offsetWidth - 4)}px`;
      tip.style.top = `${Math.max(y - 30, 0)}px`;
    });
  });
  canvas.addEventListener("mouseleave", () => ($("tip").style.display = "none"));
  canvas.addEventListener("click", (event) => {
    const unit = nearest(...place(event), 14);
    if (unit >= 0) show(unit);
  });
  canvas.addEventListener("keydown", (event) => {
    if (!event.key.startsWith("Arrow")) return;
    event.preventDefault();
    const unit = step(event.key);
    if (unit >= 0) open(unit);
  });
  new ResizeObserver(() => draw()).observe(canvas.parentElement);

  // Where a unit is drawn, in pixels of the canvas: for scripts that drive the page.
  window.explorer = { open: (name) => open(parse(name)), where: (name) => {
    const k = shown.indexOf(parse(name));
    return k < 0 ? null : [xs[k], ys[k]];
  } };
  refresh();
  const asked = parse(decodeURIComponent(location.hash.slice(1)));
  if (asked >= 0) open(asked);
  document.body.dataset.ready = n;
})().catch(failed);
