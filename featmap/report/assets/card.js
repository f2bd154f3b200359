"use strict";
// The card of a feature, and the table of a pair.

FM.LISTED = 6;

FM.link = (k, ...children) => {
  const act = (event) => {
    event.preventDefault();
    FM.select(k);
  };
  return FM.element("a", { href: FM.hash(FM.names[k]), onclick: act }, ...children);
};

// Rows of the table of a pair: name, label and value. With two maps, S over both kinds of stimuli.
FM.rows = () => {
  const measures = FM.choices().filter((name) => !FM.hasBoth || name !== "profile");
  const rows = measures.map((name) => [name, name === "profile" ? "profile S" : name, FM.measures[name]]);
  const other = FM.stimuli === "images" ? "photographs" : "images";
  if (!FM.hasBoth) return rows;
  const both = [FM.rowOf(FM.stimuli), FM.rowOf(other)];
  const fewer = Object.keys(FM.compared).filter((stimuli) => FM.compared[stimuli] !== FM.maps[stimuli]);
  return [...rows, ...both, ...fewer.map((stimuli) => FM.rowOf(stimuli, FM.compared[stimuli]))];
};

FM.rowOf = (stimuli, map = FM.maps[stimuli]) => [
  map === FM.maps[stimuli] ? (stimuli === "images" ? "profile" : "photographs") : `compared-${stimuli}`,
  `profile S over ${FM.overStimuli(stimuli)}${map === FM.maps[stimuli] ? "" : ", centred over these features"}`,
  (i, j) => FM.similarity(map, i, j),
];

// Two features' images side by side with measures of the pair, in one direction or in both; S has no direction.
FM.pair = (i, j, both, rows = FM.rows()) => {
  const [a, b] = [FM.names[i], FM.names[j]];
  const figure = (k) => FM.element("figure", {}, FM.image(k, 128), FM.element("figcaption", {}, FM.link(k, FM.marked(FM.names[k]))));
  const directed = rows.some(([name]) => name === "coactivation");
  const heads = directed ? ["image of 1st, response of 2nd", ...(both ? ["image of 2nd, response of 1st"] : [])] : ["value"];
  const head = FM.element("tr", {}, ...["measure", ...heads].map((text) => FM.element("th", {}, text)));
  const lines = rows.map(([name, label, of]) => {
    const row = FM.element("tr", { "data-measure": name }, FM.element("th", {}, label), FM.element("td", {}, FM.number(of(i, j))));
    if (both && directed) row.append(FM.element("td", {}, FM.number(of(j, i))));
    return row;
  });
  const table = FM.element("table", { "aria-label": `measures of ${a} and ${b}` }, head, ...lines);
  return FM.element("div", { class: "pair", "data-one": a, "data-two": b }, figure(i), figure(j), table);
};

FM.single = (k) =>
  FM.element("figure", { class: "single" }, FM.image(k, 160), FM.element("figcaption", {}, FM.element("b", {}, FM.marked(FM.names[k])), FM.element("br"), FM.facts(k)));

FM.facts = (k) => {
  const f = FM.data.features;
  const reached = FM.data.stimuli ? `mean response ${FM.number(f.mean[k])}` : `activation ${FM.number(f.activation[k])}`;
  return `${reached}, ${f.status[k]}${FM.clusterOf(k) === null ? "" : `, cluster ${FM.clusterOf(k)}`}`;
};

// After a validation only; features below the bound are marked wherever they are named.
FM.reliability = (k) => {
  const values = FM.data.features.reliability;
  if (!values) return null;
  return FM.unreliable.has(FM.names[k]) ? `${FM.number(values[k])}: unreliable, marked ?` : FM.number(values[k]);
};

// What is known of a feature's responses to photographs, of a run that has any.
FM.onPhotographs = (k) => {
  const map = FM.maps.photographs;
  if (!map) return [];
  const { mean, deviation, status } = map.features;
  const { agreement } = FM.data.photographs || {};
  const lines = [["responses to photographs", `mean ${FM.number(mean[k])}, standard deviation ${FM.number(deviation[k])}`]];
  if (!FM.data.stimuli && status[k] !== "live") lines.push(["status on photographs", status[k]]);
  if (agreement && agreement.agreement[k] !== null) {
    const [value, low, high] = ["agreement", "low", "high"].map((name) => FM.number(agreement[name][k]));
    lines.push(["agreement of the two maps", `${value}, from ${low} to ${high} by bootstrap`]);
  }
  return lines;
};

// What is known of a feature's maximising image.
FM.onImage = (k) => {
  const f = FM.data.features;
  if (FM.data.stimuli) return [];
  return [
    ["activation reached", FM.number(f.activation[k])],
    ["null image", FM.number(f.null_activation[k])],
  ];
};

FM.definitions = (k) => {
  const f = FM.data.features;
  const textOrNull = (value) => (value === null || value === undefined || value === "" ? null : String(value));
  const cluster = FM.clusterOf(k);
  const swatch = FM.element("i", { class: "swatch", style: `background:${FM.colour(cluster)}` });
  const over = FM.hasBoth ? ` over ${FM.overStimuli(FM.stimuli)}` : "";
  const lines = [
    ...FM.onImage(k),
    ["status", f.status[k]],
    ["start", f.start && f.start[k] === "rescued" ? "without a gradient, through dead ReLUs" : null],
    ["reliability over seeds", FM.reliability(k)],
    ["branch", textOrNull(f.branch && f.branch[k])],
    ...FM.onPhotographs(k),
    [`community${over}`, textOrNull(FM.communityOf(k))],
    ["own image is the best", f.identity && f.identity[k] !== null ? (f.identity[k] ? "yes" : "no") : null],
  ];
  const list = FM.element("dl", {});
  for (const [term, value] of lines) {
    if (value !== null) list.append(FM.element("dt", {}, term), FM.element("dd", {}, value));
  }
  if (FM.live > 0) {
    const none = FM.shown.clusters.allowed ? "none" : "none (not above the nulls)";
    const text = cluster === null ? FM.element("dd", {}, none) : FM.element("dd", {}, swatch, String(cluster));
    list.append(FM.element("dt", {}, `cluster${over}`), text);
  }
  return list;
};

// The activation map: the image is bright where the feature fires and dimmed elsewhere.
FM.activationMap = (k) => {
  const { reason, shape, largest } = FM.data.maps;
  if (reason) return FM.element("p", { class: "absent" }, `No activation map: ${reason}`);
  const [height, width] = shape[k];
  const start = shape.slice(0, k).reduce((sum, [h, w]) => sum + h * w, 0);
  const values = FM.activationMaps.subarray(start, start + height * width);
  // The map covers the picture, which is as large as it fits into a square.
  const [tall, wide] = FM.data.sides.map((n, _, both) => (100 * n) / Math.max(...both));
  const style = `width:${wide}%;height:${tall}%;left:${(100 - wide) / 2}%;top:${(100 - tall) / 2}%`;
  const canvas = FM.element("canvas", { width, height, style, "aria-hidden": "true" });
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(width, height);
  for (let p = 0; p < values.length; p += 1) pixels.data[4 * p + 3] = 0.88 * (255 - values[p]);
  context.putImageData(pixels, 0, 0);
  const best = values.indexOf(255);
  const where = best < 0 ? "zero everywhere" : `strongest at row ${Math.floor(best / width)}, column ${best % width}`;
  const caption = `activation map ${height} x ${width}, largest ${FM.number(largest[k])}, ${where}`;
  const image = FM.image(k, 210);
  image.alt = `${caption}, over the ${FM.describe(k)}`;
  return FM.element("figure", {}, FM.element("div", { class: "stack" }, image, canvas), FM.element("figcaption", {}, caption));
};

FM.curves = { built: false };

FM.curves.show = async (k) => {
  const steps = FM.data.steps;
  const values = Array.from(FM.curve.subarray(k * steps.length, (k + 1) * steps.length));
  const data = { step: steps, activation: values };
  if (!FM.curves.built) {
    const figure = new Bokeh.Plotting.Figure({
      sizing_mode: "stretch_width",
      height: 130,
      tools: "",
      toolbar_location: null,
      x_axis_label: "step",
      y_axis_label: "activation",
      min_border: 4,
    });
    FM.curves.source = new Bokeh.ColumnDataSource({ data });
    figure.line({ x: { field: "step" }, y: { field: "activation" }, line_width: 2, line_color: "#0072b2", source: FM.curves.source });
    figure.add_tools(new Bokeh.HoverTool({ tooltips: [["step", "@step"], ["activation", "@activation{0.000}"]], mode: "vline" }));
    FM.curves.built = true;
    await Bokeh.Plotting.show(figure, document.getElementById("curve"));
  } else {
    FM.curves.source.data = data;
  }
  const [first, last] = [values[0], values.at(-1)].map(FM.number);
  document.getElementById("curve").setAttribute("aria-label", `descent curve of ${FM.names[k]}: activation from ${first} to ${last}`);
};

FM.neighbours = (ranked) =>
  FM.element(
    "ol",
    { class: "thumbnails" },
    ...ranked.map(([k, s]) => FM.element("li", {}, FM.link(k, FM.thumbnail(k), FM.element("span", {}, FM.short(k)), FM.element("b", {}, FM.number(s))))),
  );

// A feature of another layer, with a link to its page if it has one.
FM.otherPage = (href, name) => (href ? FM.element("a", { href: href + FM.hash(name) }, FM.marked(name)) : FM.marked(name));

// Responses of other layers to the image; collapsed if there are many layers.
FM.otherLayers = (k) =>
  FM.data.cross.map(({ layer, href, strongest, similar }) => {
    const rows = strongest[k].map(([name, z, a]) =>
      FM.element("tr", {}, FM.element("td", {}, FM.otherPage(href, name)), FM.element("td", {}, FM.number(z)), FM.element("td", {}, FM.number(a))),
    );
    const head = ["strongest responses", "standard deviations", "activation"].map((text) => FM.element("th", {}, text));
    const alike = FM.element("p", {}, similar[k].length ? "most similar by profile: " : "no similarity is defined");
    similar[k].forEach(([name, s], at) => alike.append(at ? ", " : "", FM.otherPage(href, name), ` ${FM.number(s)}`));
    const best = strongest[k].length ? `: strongest ${FM.marked(strongest[k][0][0])}` : "";
    const table = FM.element("table", {}, FM.element("tr", {}, ...head), ...rows);
    const details = FM.element("details", {}, FM.element("summary", {}, `In ${layer}${best}`), table, alike);
    details.open = FM.data.cross.length <= 3;
    return details;
  });

FM.reproduction = (k) => {
  const { command, python, reproduction_notes: reproductionNotes } = FM.data;
  const line = command[k] === null ? "no command-line options give this run's recipe; use the Python code" : command[k];
  const notes = reproductionNotes.map((note) => FM.element("p", {}, note));
  return [FM.element("h3", {}, "Reproduce this image"), FM.element("pre", {}, line), FM.element("pre", {}, python[k]), ...notes];
};

// What is shown of the images: stretched, or the stored pixels.
FM.displayed = () => {
  const stored = () => document.body.classList.contains("stored");
  const text = () => (stored() ? "stored pixels" : FM.data.display.note);
  const note = FM.element("span", {}, text());
  const other = () => (stored() ? "stretch the contrast" : "show the stored pixels");
  const act = () => {
    document.body.classList.toggle("stored");
    note.textContent = text();
    button.textContent = other();
    button.setAttribute("aria-pressed", String(stored()));
  };
  const button = FM.element("button", { type: "button", class: "display", "aria-pressed": String(stored()), onclick: act }, other());
  return [FM.element("br"), note, FM.element("br"), button];
};

// Image, activation map and descent curve; of photographs alone there are none.
FM.ownImage = (k) => {
  if (FM.data.stimuli) return [];
  const images = FM.element("div", { class: "images" });
  images.append(FM.element("figure", {}, FM.image(k, 210), FM.element("figcaption", {}, `seed ${FM.data.seed}; ${FM.data.coding}`, ...FM.displayed())));
  return [images, document.getElementById("descent")];
};

FM.neighbourLists = (k) => {
  const ranked = FM.ranked(k);
  const { status } = FM.stimuli === "images" ? FM.data.features : FM.shown.features;
  if (ranked.length === 0) {
    if (FM.live === 0) return [];
    const why = FM.shown.place[k] >= 0 ? "Its similarity to others is undefined." : `It is ${status[k]}: it takes no part in map, graph and clusters.`;
    return [FM.element("p", {}, why)];
  }
  const half = Math.min(FM.LISTED, Math.ceil(ranked.length / 2)); // no feature is in both lists
  const opposed = ranked.slice(half).slice(-FM.LISTED).toReversed();
  const of = `of ${FM.live} features, by profile similarity S`;
  const among = FM.live < FM.data.mapped ? " of those shown" : "";
  const over = FM.hasBoth ? ` over ${FM.overStimuli(FM.stimuli)}` : "";
  return [
    FM.element("h3", { title: of }, `Nearest${among}${over}`),
    FM.neighbours(ranked.slice(0, half)),
    FM.element("h3", { title: of }, `Most opposed${among}${over}`),
    FM.neighbours(opposed),
  ];
};

FM.card = (k) => {
  FM.shownOnCard = k;
  const title = FM.element("h2", {}, FM.element("a", { href: FM.hash(FM.names[k]), title: "permanent link" }, FM.marked(FM.names[k])));
  const [images = null, descent = null] = FM.ownImage(k);
  const reproduction = FM.data.stimuli ? [] : FM.reproduction(k);
  const children = [title, images, ...FM.examples(k), FM.definitions(k), descent, ...FM.neighbourLists(k), ...FM.otherLayers(k), ...reproduction];
  document.getElementById("card").replaceChildren(...children.filter((child) => child !== null));
  if (images === null) return;
  FM.whenImages(() => {
    if (!images.isConnected) return; // the card was drawn again while the images were read
    images.append(FM.activationMap(k));
    descent.hidden = false;
    FM.curves.show(k);
  });
};
