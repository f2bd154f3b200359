"use strict";
// The run's values, decoded once from the page; every measure of a pair is computed from A on demand.

const FM = {};

FM.parse = (id) => JSON.parse(document.getElementById(id).textContent);

FM.blob = (id) => {
  const element = document.getElementById(`blob-${id}`);
  if (element === null) return null;
  const text = atob(element.textContent);
  const bytes = new Uint8Array(text.length);
  for (let k = 0; k < text.length; k += 1) bytes[k] = text.charCodeAt(k);
  element.remove(); // frees the memory of the text
  const kinds = { Float32Array, Float64Array, Uint8Array };
  return new kinds[element.dataset.kind](bytes.buffer);
};

FM.floats = (values) => Float64Array.from(values, (v) => (v === null ? Number.NaN : v));

FM.load = () => {
  const data = FM.parse("data");
  FM.data = data;
  FM.names = data.features.name;
  FM.count = FM.names.length;
  FM.live = data.live; // these come first, in the order of the dendrogram
  FM.at = new Map(FM.names.map((name, k) => [name, k]));
  FM.A = FM.blob("A");
  FM.S = FM.blob("S");
  const linear = FM.blob("linear"); // only of a run whose heatmap shows it
  if (linear !== null) FM.measures.linear_profile = (i, j) => FM.symmetric(linear, i, j);
  FM.unreliable = new Set(data.unreliable || []); // according to a validation, of all layers of the run
  FM.scales = {};
  for (const [name, values] of Object.entries(data.scales || {})) FM.scales[name] = FM.floats(values);
};

FM.marked = (name) => (FM.unreliable.has(name) ? `${name} ?` : name);

FM.raw = (i, j) => FM.A[i * FM.count + j];

// i: feature of the image; j: responding feature. NaN is undefined.
FM.measures = {
  coactivation: (i, j) => (FM.raw(i, j) - FM.scales.null[j]) / FM.scales.best[j],
  raw: FM.raw,
  relative: (i, j) => FM.raw(i, j) / FM.scales.own[i],
  selective: (i, j) => (FM.raw(i, j) - FM.scales.mean[j]) / FM.scales.deviation[j],
  profile: (i, j) => FM.symmetric(FM.S, i, j),
};

// A symmetric table of the live features is stored as its upper triangle, row by row.
FM.symmetric = (triangle, i, j) => {
  const [a, b] = i < j ? [i, j] : [j, i];
  if (b >= FM.live) return Number.NaN; // a dead feature has no profile
  return triangle[a * FM.live - (a * (a - 1)) / 2 + b - a];
};

FM.number = (value) => {
  if (value === null || value === undefined || !Number.isFinite(value)) return "undefined";
  return String(Number(value.toPrecision(3)));
};

// The other live features by similarity, the most similar first; undefined ones are left out.
FM.ranked = (k) => {
  const ranked = [];
  if (k < FM.live) {
    for (let j = 0; j < FM.live; j += 1) {
      const s = FM.measures.profile(k, j);
      if (j !== k && Number.isFinite(s)) ranked.push([j, s]);
    }
  }
  return ranked.toSorted((a, b) => b[1] - a[1] || a[0] - b[0]);
};

FM.describe = (k) => {
  const f = FM.data.features;
  const cluster = f.cluster && f.cluster[k] !== null ? `, cluster ${f.cluster[k]}` : "";
  return `maximising image of ${FM.marked(FM.names[k])}, activation ${FM.number(f.activation[k])}, ${f.status[k]}${cluster}`;
};

FM.colour = (cluster) => {
  const defined = cluster !== null && cluster !== undefined && cluster >= 0;
  return defined ? FM.data.colours[cluster % FM.data.colours.length] : FM.data.gray;
};

// Create an element with attributes and children; strings become text nodes, never markup.
FM.element = (tag, attributes = {}, ...children) => {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
};

// The display stretch: brightness(b) contrast(c) shows b c v + (1 - c) / 2, which is gain v + offset. The image itself
// keeps the stored pixels; thumbnails are stretched already.
FM.stretch = (k) => {
  const [gain, offset] = FM.data.display.factors[k];
  const contrast = 1 - 2 * offset;
  return `--stretch: brightness(${gain / contrast}) contrast(${contrast})`;
};

FM.image = (k, side) => {
  const node = FM.element("img", { alt: FM.describe(k), class: "stretched", style: FM.stretch(k), width: side, height: side });
  FM.whenImages(() => {
    node.src = FM.images[k];
  });
  return node;
};

// A thumbnail is a window on the sheet of all thumbnails.
FM.thumbnail = (k) => {
  const { side, columns, uri } = FM.data.thumbnails;
  const style = `object-position:${-(k % columns) * side}px ${-Math.floor(k / columns) * side}px`;
  return FM.element("img", { class: "thumbnail", src: uri, alt: FM.describe(k), width: side, height: side, style });
};

// Images are at the end of the page; functions that need them wait until they are read.
FM.waiting = [];
FM.images = null;
FM.whenImages = (act) => {
  if (FM.images === null) FM.waiting.push(act);
  else act();
};
FM.readImages = () => {
  FM.curve = FM.blob("curve");
  FM.maps = FM.blob("maps");
  FM.images = FM.parse("images");
  FM.photographs = FM.parse("photographs");
  FM.exampleMaps = FM.blob("examples");
  for (const id of ["images", "photographs"]) document.getElementById(id).remove();
  for (const act of FM.waiting.splice(0)) act();
};
