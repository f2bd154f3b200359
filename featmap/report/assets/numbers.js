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

// A map is S over one kind of stimuli: images or photographs. `order` lists its features as its dendrogram does, `place`
// is where a feature is in that order (-1: it has no S), `walk` is all features of the page, those of the map first.
FM.readMap = ({ tree, graph, clusters, reach, features }, order, blob) => {
  const place = new Int32Array(FM.count).fill(-1);
  for (const [at, k] of order.entries()) place[k] = at;
  const rest = [...FM.names.keys()].filter((k) => place[k] < 0);
  let S = null; // decoded when it is needed first
  return {
    tree,
    graph,
    clusters,
    reach,
    features,
    order,
    place,
    walk: [...order, ...rest],
    get S() {
      S ??= FM.blob(blob);
      return S;
    },
  };
};

FM.load = () => {
  const data = FM.parse("data");
  FM.data = data;
  FM.names = data.features.name;
  FM.count = FM.names.length;
  FM.at = new Map(FM.names.map((name, k) => [name, k]));
  FM.A = FM.blob("A");
  FM.unreliable = new Set(data.unreliable || []); // according to a validation, of all layers of the run
  FM.scales = {};
  for (const [name, values] of Object.entries(data.scales || {})) FM.scales[name] = FM.floats(values);
  FM.stimuli = data.stimuli || "images";
  // features that have S come first, in the order of the dendrogram
  const own = { ...data, reach: data.reach && data.reach.profile };
  FM.maps = { [FM.stimuli]: FM.readMap(own, Array.from({ length: data.live }, (_, k) => k), "S") };
  if (data.photographs) FM.maps.photographs = FM.readMap(data.photographs, data.photographs.order, "photograph_S");
  const linear = FM.blob("linear"); // only of a run whose heatmap shows it
  if (linear !== null) {
    const { order, place } = FM.maps.images;
    const map = { S: linear, order, place };
    FM.measures.linear_profile = (i, j) => FM.similarity(map, i, j);
  }
  // where one map has features that the other lacks: S of those that both have, centred over these, to compare
  const { order: together, place: places } = FM.maps.photographs || {};
  const over = (name, map) => {
    const S = FM.blob(name);
    return S === null ? map : { S, order: together, place: places };
  };
  FM.compared = { images: over("compared_images_S", FM.maps.images), photographs: over("compared_S", FM.maps.photographs) };
  FM.hasBoth = Object.keys(FM.maps).length > 1;
  FM.use(FM.stimuli);
};

// Make a map the one that heatmap, graph, clusters, neighbours and numbers show.
FM.use = (stimuli) => {
  FM.stimuli = stimuli;
  FM.shown = FM.maps[stimuli];
  FM.live = FM.shown.order.length;
};

FM.overStimuli = (stimuli) => (stimuli === "images" ? "maximising images" : "photographs");

FM.marked = (name) => (FM.unreliable.has(name) ? `${name} ?` : name);

FM.raw = (i, j) => FM.A[i * FM.count + j];

// i: feature of the image; j: responding feature. NaN is undefined.
FM.measures = {
  coactivation: (i, j) => (FM.raw(i, j) - FM.scales.null[j]) / FM.scales.best[j],
  raw: FM.raw,
  relative: (i, j) => FM.raw(i, j) / FM.scales.own[i],
  selective: (i, j) => (FM.raw(i, j) - FM.scales.mean[j]) / FM.scales.deviation[j],
  profile: (i, j) => FM.similarity(FM.shown, i, j),
};

// S of two features in one of the maps; NaN where either has none.
FM.similarity = ({ S, order, place }, i, j) => {
  const [a, b] = place[i] < place[j] ? [place[i], place[j]] : [place[j], place[i]];
  return a < 0 ? Number.NaN : S[a * order.length - (a * (a - 1)) / 2 + b - a];
};

// Measures that the map on display has: photographs have no A of features by features.
FM.choices = () => (FM.stimuli === "images" ? Object.keys(FM.measures) : ["profile"]);

FM.number = (value) => {
  if (value === null || value === undefined || !Number.isFinite(value)) return "undefined";
  return String(Number(value.toPrecision(3)));
};

// The other features of the map by similarity, the most similar first; undefined ones are left out.
FM.ranked = (k) => {
  const ranked = [];
  if (FM.shown.place[k] >= 0) {
    for (const j of FM.shown.order) {
      const s = FM.measures.profile(k, j);
      if (j !== k && Number.isFinite(s)) ranked.push([j, s]);
    }
  }
  return ranked.toSorted((a, b) => b[1] - a[1] || a[0] - b[0]);
};

// Cluster and community of a feature in the map on display; null for none.
FM.clusterOf = (k) => FM.shown.features.cluster?.[k] ?? null;
FM.communityOf = (k) => FM.shown.features.community?.[k] ?? null;

FM.describe = (k) => {
  const f = FM.data.features;
  const cluster = FM.clusterOf(k) === null ? "" : `, cluster ${FM.clusterOf(k)}`;
  const name = FM.marked(FM.names[k]);
  if (FM.data.stimuli) {
    return `${FM.hasExample(k) ? "best photograph of " : ""}${name}, mean activation ${FM.number(f.mean[k])}, ${f.status[k]}${cluster}`;
  }
  return `maximising image of ${name}, activation ${FM.number(f.activation[k])}, ${f.status[k]}${cluster}`;
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
  if (FM.data.stimuli) return FM.hasExample(k) ? FM.bestExample(k, side) : FM.blank(k, side);
  const node = FM.element("img", { alt: FM.describe(k), class: "stretched", style: FM.stretch(k), width: side, height: side });
  FM.whenImages(() => {
    node.src = FM.images[k];
  });
  return node;
};

FM.BLANK = 44;

// Stands for a feature without a picture: its name in the colour of its cluster.
FM.blank = (k, side) => {
  const style = `width:${side}px;height:${side}px;border-color:${FM.colour(FM.clusterOf(k))}`;
  return FM.element("span", { class: "blank", role: "img", "aria-label": FM.describe(k), style }, FM.short(k));
};

// A thumbnail is a window on the sheet of all thumbnails.
FM.thumbnail = (k) => {
  if (FM.data.thumbnails === null || (FM.data.stimuli && !FM.hasExample(k))) return FM.blank(k, FM.data.thumbnails?.side ?? FM.BLANK);
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
  FM.activationMaps = FM.blob("maps");
  FM.images = FM.parse("images");
  FM.photographs = FM.parse("photographs");
  FM.exampleMaps = FM.blob("examples");
  for (const id of ["images", "photographs"]) document.getElementById(id).remove();
  for (const act of FM.waiting.splice(0)) act();
};
